# SPDX-License-Identifier: Apache-2.0
"""vLLM's scheduler, both halves of the connector and vLLM's KV allocator, without a model.

The "model" writes KV that depends on every token before, and checks all of it before each step: a
block that is wrong, stale, foreign or missing is named at once. Milliseconds per run.
"""

import os
import pickle
import time

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("PYTHONHASHSEED", "0")  # 0.28 draws its hash root at random without it

import torch
from vllm import SamplingParams
from vllm.config import (CacheConfig, DeviceConfig, KVEventsConfig, KVTransferConfig,
                         ModelConfig, SchedulerConfig, VllmConfig)
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import (get_kv_cache_configs, get_request_block_hasher,
                                         init_none_hash)
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, MLAAttentionSpec, SlidingWindowSpec
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

try:
    from vllm.v1.kv_cache_layout import KVCacheLayout
    from vllm.v1.worker.utils import allocate_kv_cache
    LAYOUTS = [layout.name for layout in KVCacheLayout]
except ImportError:  # 0.28: one storage per layer
    KVCacheLayout = None
    LAYOUTS = ["packed", "kv_first", "nhd"]

torch.set_num_threads(1)  # tiny tensors: more threads wait for each other, mostly
GARBAGE = -12345.0
HEADS, HEAD_SIZE = 2, 8


class WrongKV(AssertionError):
    pass


def legacy_caches(config, layout, spec):
    """What 0.28's backends made of a layer's bytes."""
    out = {}
    n, bs = config.num_blocks, spec.block_size
    for tensor in config.kv_cache_tensors:
        if layout == "packed":
            view = torch.zeros(n, HEADS, bs, 2 * HEAD_SIZE)
        elif layout == "kv_first":
            view = torch.zeros(2, n, HEADS, bs, HEAD_SIZE)
        else:
            view = torch.zeros(n, 2, bs, HEADS, HEAD_SIZE)
        out.update(dict.fromkeys(tensor.shared_by, view))
    return out


class Rig:
    """One engine. tick, if given, is called between the halves of a step with the rig."""

    def __init__(self, model, socket, layout=LAYOUTS[0], block=16, blocks=64, layers=4, budget=256,
                 seqs=8, max_len=1000, window=0, extra=None, hash_algo="sha256", policy="recompute",
                 connector="KVTierConnector", module="kvtier.vllm", caching=True, mla=False,
                 gpu=None, load=lambda config: None, events=False):
        """load: what loading the model does to the worker's configuration."""
        self.layout, self.block = layout, block
        cache = CacheConfig(block_size=block, gpu_memory_utilization=0.3,
                            enable_prefix_caching=caching, num_gpu_blocks_override=blocks,
                            prefix_caching_hash_algo=hash_algo)
        if KVCacheLayout is not None:
            cache.kv_cache_layout = layout
        transfer = {"kv_connector": connector, "kv_role": "kv_both",
                    "kv_load_failure_policy": policy,
                    "kv_connector_module_path": module,
                    "kv_connector_extra_config": extra or {}}
        if connector == "KVTierConnector":
            transfer["kv_connector_extra_config"] = {
                "socket": socket, "chunk_tokens": block, **(extra or {})}
        self.config = VllmConfig(
            model_config=ModelConfig(model=model, dtype="float32", skip_tokenizer_init=True,
                                     max_model_len=max_len),
            scheduler_config=SchedulerConfig(
                max_num_seqs=seqs, max_num_batched_tokens=budget, max_model_len=max_len,
                enable_chunked_prefill=True, is_encoder_decoder=False, async_scheduling=False),
            cache_config=cache, device_config=DeviceConfig("cpu"),
            kv_events_config=KVEventsConfig(enable_kv_cache_events=events, publisher="null"),
            kv_transfer_config=KVTransferConfig(**transfer) if connector else None)
        shape = {"block_size": block, "num_kv_heads": HEADS, "head_size": HEAD_SIZE,
                 "dtype": torch.float32}
        full = FullAttentionSpec(**shape)
        if mla:  # one head, K and V in one
            full = MLAAttentionSpec(**{**shape, "num_kv_heads": 1, "head_size": 4 * HEAD_SIZE})
        self.window = window
        specs = {f"layers.{i}.attn": SlidingWindowSpec(**shape, sliding_window=window)
                 if window and i % 2 else full for i in range(layers)}
        self.kvc = get_kv_cache_configs(self.config, [specs],
                                        [full.page_size_bytes * layers * blocks])[0]
        cache.num_gpu_blocks = self.kvc.num_blocks
        if KVCacheLayout is not None:
            self.kv = allocate_kv_cache(self.kvc, torch.device("cpu"), KVCacheLayout[layout])
        else:
            self.kv = legacy_caches(self.kvc, layout, full)
        for view in self.kv.values():
            view.fill_(GARBAGE)
        told, self.gpu = self.kv, gpu
        if gpu is not None:
            self.kv, told = gpu.moved(self.kv)
        hash_fn = get_hash_fn_by_name(hash_algo)
        init_none_hash(hash_fn)
        self.hasher = get_request_block_hasher(block, hash_fn)
        self.scheduler = Scheduler(
            vllm_config=self.config, kv_cache_config=self.kvc, block_size=block, log_stats=True,
            structured_output_manager=StructuredOutputManager(self.config))
        self.groups = [(i, name, getattr(group.kv_cache_spec, "sliding_window", None))
                       for i, group in enumerate(self.kvc.kv_cache_groups)
                       for name in group.layer_names]
        self.worker = None
        load(self.config)
        if connector:
            self.worker = KVConnectorFactory.create_connector(
                self.config, KVConnectorRole.WORKER, self.kvc)
            self.worker.register_kv_caches(told)
            if (rows := self.worker.get_handshake_metadata()) is not None:
                self.scheduler.connector.set_xfer_handshake_metadata_pp_aware({(0, 0): rows})
            for half in (self.scheduler.connector, self.worker):
                if hasattr(half, "_half"):
                    half._half._port.wait_connected(5)
        self.requests, self.values, self.count, self.computed = {}, {}, 0, {}
        self.wrong_hits = False  # whether vLLM itself may find others' KV
        self.n_computed = 0
        self.stats = {}
        for half in (self.worker, self.scheduler.connector):
            if half is not None:
                half.get_kv_connector_stats = self.counted(half.get_kv_connector_stats)
        self.tick = lambda rig: None

    def counted(self, take):
        """Adds up what the halves hand to the engine."""
        def taken():
            stats = take()
            for name, n in (stats.data if stats is not None else {}).items():
                if isinstance(n, int):
                    self.stats[name] = self.stats.get(name, 0) + n
            return stats
        return taken

    def close(self):
        if self.worker is not None:
            self.worker.shutdown()
            self.scheduler.connector.shutdown()

    def add(self, tokens, max_tokens=4, salt=None, lora=None, rid=None):
        self.count += 1
        rid = rid or f"r{self.count}"
        sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
        sampling.update_from_generation_config({}, 2)
        self.requests[rid] = Request(
            request_id=rid, prompt_token_ids=list(tokens), sampling_params=sampling,
            pooling_params=None, block_hasher=self.hasher, cache_salt=salt, lora_request=lora)
        self.scheduler.add_request(self.requests[rid])
        return rid

    def abort(self, rid):
        self.scheduler.finish_requests(rid, RequestStatus.FINISHED_ABORTED)

    def wanted(self, rid, n):
        values, state = self.values.setdefault(rid, ([], [7]))
        tokens = self.requests[rid].all_token_ids
        salt = self.requests[rid].cache_salt
        lora = self.requests[rid].lora_request
        if not values:  # another tenant's or adapter's KV is other KV
            state[0] += sum((salt or "").encode()) * 1009
            state[0] += sum((lora.weights if lora else "").encode()) * 9176
        while len(values) < n:
            state[0] = (state[0] * 31 + tokens[len(values)] + 1) & 0x3fffff
            values.append(float(state[0]))
        return torch.tensor(values[:n])

    def read(self, name, blocks, offsets):
        t = self.kv[name]
        if KVCacheLayout is not None or self.layout == "packed":
            return t[blocks, :, offsets].flatten(1)
        if self.layout == "kv_first":
            return t[:, blocks, :, offsets].flatten(1)
        return t[blocks, :, offsets].flatten(1)

    def write(self, name, blocks, offsets, values):
        t = self.kv[name]
        values = values.to(t.device)
        if KVCacheLayout is not None or self.layout == "packed":
            t[blocks, :, offsets] = values[:, None, None].expand(-1, t.shape[1], t.shape[3])
        elif self.layout == "kv_first":
            t[:, blocks, :, offsets] = values[:, None, None, None].expand(-1, 2, HEADS, HEAD_SIZE)
        else:
            t[blocks, :, offsets] = values[:, None, None, None].expand(-1, 2, HEADS, HEAD_SIZE)

    def forward(self, out):
        if self.gpu is not None:
            self.gpu.compute()
        for rid, n in out.num_scheduled_tokens.items():
            tables = self.scheduler.kv_cache_manager.get_block_ids(rid)
            done = self.computed[rid]
            values = self.wanted(rid, done + n)
            position = torch.arange(done + n)
            for layer, (group, name, window) in enumerate(self.groups):
                ids = torch.tensor(tables[group])
                first = max(0, done - window + 1) if window else 0
                blocks, offsets = ids[position // self.block], position % self.block
                seen = self.read(name, blocks[first:done], offsets[first:done]).cpu()
                wrong = (seen != (values[first:done] + layer)[:, None]).any(1).nonzero()
                if len(wrong) and not self.wrong_hits:
                    i = int(wrong[0]) + first
                    raise WrongKV(f"{rid}: token {i} of {done}, layer {layer}, "
                                  f"block {int(blocks[i])}: {seen[i - first][:2]}")
                self.write(name, blocks[done:], offsets[done:], values[done:] + layer)
            self.n_computed += n

    def step(self):
        out = self.scheduler.schedule()
        self.computed = {r.req_id: r.num_computed_tokens for r in out.scheduled_new_reqs}
        cached = out.scheduled_cached_reqs
        self.computed.update(zip(cached.req_ids, cached.num_computed_tokens))
        report = None
        if self.worker is not None:
            worker = self.worker
            meta = pickle.loads(pickle.dumps(out.kv_connector_metadata))
            worker.handle_preemptions(meta)
            worker.bind_connector_metadata(meta)
            self.forward(out)
            self.tick(self)
            worker.start_load_kv(None)
            worker.wait_for_save()
            report = self.collect(worker, out.finished_req_ids)
            worker.clear_connector_metadata()
        else:
            self.forward(out)
        ids = list(out.num_scheduled_tokens)
        sampled = [[1000 + len(self.requests[r].output_token_ids)]
                   if self.computed[r] + out.num_scheduled_tokens[r] >= self.requests[r].num_tokens
                   else [] for r in ids]
        self.scheduler.update_from_output(out, ModelRunnerOutput(
            req_ids=ids, req_id_to_index={r: i for i, r in enumerate(ids)},
            sampled_token_ids=sampled, kv_connector_output=report))
        return out

    def collect(self, worker, finished):
        out = {}
        if hasattr(worker, "get_transfer_results"):
            results = worker.get_transfer_results(finished)
            out["finished_recving"] = results.finished_recving
            out["failed_recving"] = results.failed_recving
        else:
            out["finished_sending"], out["finished_recving"] = worker.get_finished(finished)
        out["invalid_block_ids"] = worker.get_block_ids_with_load_errors()
        out["kv_connector_stats"] = worker.get_kv_connector_stats()
        out["kv_connector_worker_meta"] = worker.build_connector_worker_meta()
        return KVConnectorOutput(**out)

    def busy(self):
        return self.scheduler.has_requests() or bool(self.scheduler.requests)

    def run(self, limit_s=30, steps=100000):
        end, n = time.monotonic() + limit_s, 0
        while self.busy():
            out = self.step()
            n += 1
            if not out.num_scheduled_tokens:
                time.sleep(0.0002)  # as the engine's process does
            if time.monotonic() > end or n > steps:
                raise TimeoutError({r: q.status.name for r, q in self.scheduler.requests.items()})
        return n

    def leaks(self):
        """Blocks in use after all requests ended; should be none."""
        pool = self.scheduler.kv_cache_manager.block_pool
        return pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()
