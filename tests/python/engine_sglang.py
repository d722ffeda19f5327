# SPDX-License-Identifier: Apache-2.0
"""kvtier.sglang under SGLang's real cache controller: its threads, its host pools, its keys.

Runs in the environment of requirements-sglang.txt, without a GPU and without SGLang's kernels:
backup, hit query and prefetch are the controller's own, between its host pool and the agent.
"""

import importlib.machinery
import itertools
import os
import signal
import sys
import tempfile
import threading
import time
import types
import unittest
from array import array
from unittest import mock

import torch
import torch.distributed as dist


def stand_in_torchvision():
    """transformers imports names of it, and nothing of it is called; it is not installed since each
    of its builds wants one build of torch."""
    def anything(name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})

    for name in ("", ".io", ".ops", ".transforms", ".transforms.functional", ".transforms.v2",
                 ".transforms.v2.functional"):
        module = types.ModuleType("torchvision" + name)
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None, is_package=True)
        module.__path__ = []
        module.InterpolationMode = types.SimpleNamespace(
            **{mode: mode.lower() for mode in ("NEAREST", "NEAREST_EXACT", "BILINEAR", "BICUBIC",
                                               "BOX", "HAMMING", "LANCZOS")})
        module.__getattr__, module.__version__ = anything, "0.26"
        sys.modules[module.__name__] = module
        parent, _, child = module.__name__.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)


stand_in_torchvision()

from sglang.srt.lora.lora_registry import LoRARef  # noqa: E402
from sglang.srt.managers.cache_controller import HiCacheController  # noqa: E402
from sglang.srt.mem_cache.hicache_storage import PoolName  # noqa: E402
from sglang.srt.mem_cache.hybrid_cache.hybrid_cache_controller import (  # noqa: E402
    HybridCacheController)
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, MLATokenToKVPool  # noqa: E402
from sglang.srt.mem_cache.pool_host import base as pool_base  # noqa: E402
from sglang.srt.mem_cache.pool_host.group import HostPoolGroup, PoolEntry  # noqa: E402
from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost  # noqa: E402
from sglang.srt.mem_cache.pool_host.mla import MLATokenToKVPoolHost  # noqa: E402
from sglang.srt.mem_cache.radix_cache import RadixKey  # noqa: E402
from sglang.srt.mem_cache.utils import get_storage_hash_str  # noqa: E402
from sglang.srt.model_executor.model_runner_components import weight_updater  # noqa: E402
from sglang.srt.model_executor.model_runner_components.weight_updater import (  # noqa: E402
    WeightUpdater)
from sglang.srt.runtime_context import get_parallel  # noqa: E402

import kvtier  # noqa: E402
from fixture import WAIT_S, TestCase  # noqa: E402
from kvtier.sglang import KVTierStorage, Settings, _Weights  # noqa: E402

PAGE = 64
TOKENS = 8192  # of the device; host pools have room for twice as many
pool_base.HICACHE_HOST_MEMORY_RESERVE_BYTES = 0  # the pools here have a few MiB
numbers = itertools.count(1)


def tokens(n, first=0):
    return array("q", [(first + i) * 37 % 30000 + 5 for i in range(n)])


def page_hashes(key):
    return get_storage_hash_str(key, None, page_size=PAGE)


class Server:
    """What a server has between its radix cache and the storage."""

    def __init__(self, case, layout="page_first", mla=False, dtype=torch.bfloat16, tp=(0, 1),
                 model="m", zero_copy=True, heads=(2, 8), pools=(), metrics=False,
                 **extra):
        """heads: their number and size, which make a page's bytes. pools: names of the host pools
        of the controller that a server has; empty: the one of a server that decodes only."""
        extra = {"kvtier_revision": "weights", "kvtier_load_timeout_ms": WAIT_S * 1000,
                 "kvtier_store_timeout_ms": WAIT_S * 1000, **extra}
        sizes = get_parallel().override(
            tp_rank=tp[0], tp_size=tp[1], pp_rank=0, pp_size=1, attn_tp_rank=tp[0],
            attn_tp_size=tp[1], attn_dp_rank=0, attn_dcp_size=1, attn_dcp_rank=0,
            launch_world_size=1, nnodes=1)
        common = {"size": TOKENS, "page_size": PAGE, "dtype": dtype, "layer_num": 3,
                  "device": "cpu", "enable_memory_saver": False}
        capacity = {"device_capacity_tokens": TOKENS, "start_layer": 0, "end_layer": 3}
        with sizes:
            if mla:
                device = MLATokenToKVPool(kv_lora_rank=32, qk_rope_head_dim=16, **common)
                self.host = MLATokenToKVPoolHost(
                    device._mla_buffer_info(), 2.0, 0, PAGE, layout, pin_memory=False,
                    target_layer_num=3, **capacity)
            else:
                device = MHATokenToKVPool(head_num=heads[0], head_dim=heads[1],
                                          enable_alt_stream=False, **common)
                self.host = MHATokenToKVPoolHost(device._mha_buffer_info(), 2.0, 0, PAGE, layout,
                                                 pin_memory=False, **capacity)
            allocator = types.SimpleNamespace(get_kvcache=lambda: device)
            host, kind = self.host, HiCacheController
            if pools:
                host, kind = HostPoolGroup([
                    PoolEntry(name=name, host_pool=self.host, device_pool=device,
                              layer_mapper=lambda layer: layer,
                              is_primary_index_anchor=name == PoolName.KV)
                    for name in pools]), HybridCacheController
            self.controller = kind(
                allocator, host, PAGE, dist.group.WORLD, threading.Event(),
                write_policy="write_through", io_backend="direct", storage_backend="dynamic",
                model_name=model, prefetch_threshold=PAGE, enable_storage_metrics=metrics,
                storage_backend_extra_config={
                    "backend_name": "kvtier", "module_path": "kvtier.sglang",
                    "class_name": "KVTierStorage", "interface_v1": int(zero_copy),
                    "kvtier_socket": case.agent.socket, **extra})
        case.addCleanup(self.controller.detach_storage_backend)
        self.storage = self.controller.storage_backend
        assert isinstance(self.storage, KVTierStorage)
        case.assertTrue(self.storage._client.connect_wait(WAIT_S))

    def pages(self, indices):
        return [self.host.get_data_page(int(indices[i])).clone()
                for i in range(0, len(indices), PAGE)]

    def fill(self, n):
        """Host slots for n tokens with random bytes in them."""
        indices = self.host.alloc(n)
        for i in range(0, n, PAGE):
            page = self.host.get_data_page(int(indices[i]))
            raw = torch.randint(0, 256, (page.numel() * page.element_size(),), dtype=torch.uint8)
            self.host.set_from_flat_data_page(int(indices[i]), raw.view(page.dtype))
        return indices

    def backup(self, key, indices, prefix_keys=None, last=None):
        """Tokens that the controller's thread reports as stored."""
        hashes = get_storage_hash_str(key, last, page_size=PAGE)
        self.controller.write_storage(indices, key, hash_value=hashes, prefix_keys=prefix_keys)
        return self.controller.ack_backup_queue.get(timeout=WAIT_S).completed_tokens

    def prefetch(self, key):
        """(tokens found, host slots, tokens that came), as the radix cache does it."""
        name = f"r{next(numbers)}"
        if isinstance(self.controller, HybridCacheController):
            name = types.SimpleNamespace(rid=name)
        self.controller.prefetch(name, key, None)
        op = self.controller.prefetch_hit_queue.get(timeout=WAIT_S)
        found = op.storage_hit_count
        if found == 0:
            return 0, None, 0
        op.host_indices = self.host.alloc(found)
        for i in range(0, found, PAGE):
            page = self.host.get_data_page(int(op.host_indices[i]))
            self.host.set_from_flat_data_page(int(op.host_indices[i]), torch.zeros_like(page))
        self.controller.prefetch_buffer.put(op)
        came = 0
        for _ in range(-(-found // (PAGE * 128))):
            came = self.controller.ack_prefetch_queue.get(timeout=WAIT_S).completed_tokens
        return found, op.host_indices, came

    def prefetch_all(self, key, deadline):
        """prefetch() until everything came: on a busy machine a call may run out of its time."""
        found, indices, came = self.prefetch(key)
        while came < len(key.token_ids):
            assert time.monotonic() < deadline, f"{came} of {found} tokens came"
            if indices is not None:
                self.host.free(indices)
            found, indices, came = self.prefetch(key)

    def threads(self):
        return [t.is_alive() for t in (self.controller.prefetch_thread,
                                       self.controller.backup_thread,
                                       self.controller.prefetch_io_aux_thread)]


class SGLang(TestCase):
    sets = {"host__bytes": "256MiB"}

    @classmethod
    def setUpClass(cls):
        if not dist.is_initialized():
            file = os.path.join(tempfile.mkdtemp(prefix="kvt-gloo-"), "init")
            dist.init_process_group("gloo", init_method="file://" + file, rank=0, world_size=1)

    def same(self, one, other):
        self.assertEqual(len(one), len(other))
        for i, (a, b) in enumerate(zip(one, other)):
            self.assertTrue(torch.equal(a.view(torch.uint8), b.view(torch.uint8)), f"page {i}")

    def round_trip(self, n=1024, **how):
        """What one server stored, another loads, byte for byte."""
        server = Server(self, **how)
        key = RadixKey(tokens(n))
        indices = server.fill(n)
        self.assertEqual(server.backup(key, indices), n)
        other = Server(self, **how)
        found, to, came = other.prefetch(RadixKey(tokens(n)))
        self.assertEqual((found, came), (n, n))
        self.same(server.pages(indices), other.pages(to))
        self.assertEqual(server.storage.counts["stored"], n // PAGE)
        self.assertEqual(other.storage.counts, {"hit": n // PAGE, "loaded": n // PAGE,
                                                "unloaded": 0, "stored": 0, "unstored": 0})
        self.assertTrue(all(server.threads() + other.threads()))

    def test_every_layout_and_type(self):
        for layout in ("layer_first", "page_first", "page_first_direct", "page_head"):
            for dtype in (torch.float32, torch.bfloat16, torch.float8_e4m3fn):
                with self.subTest(layout=layout, dtype=dtype):
                    self.round_trip(layout=layout, dtype=dtype)

    def test_controller_of_a_server(self):
        for layout in ("layer_first", "page_first", "page_first_direct", "page_head"):
            with self.subTest(layout=layout):
                self.round_trip(layout=layout, pools=[PoolName.KV])
        self.round_trip(mla=True, pools=[PoolName.KV])
        with self.assertRaisesRegex(ValueError, "pool swa of a hybrid model"):
            Server(self, pools=[PoolName.KV, PoolName.SWA])

    def test_mla(self):
        for layout in ("layer_first", "page_first", "page_first_direct"):
            with self.subTest(layout=layout):
                self.round_trip(layout=layout, mla=True)

    def test_without_zero_copy(self):
        for layout in ("layer_first", "page_first_direct"):
            with self.subTest(layout=layout):
                self.round_trip(layout=layout, zero_copy=False)

    def test_partial_page_and_longer_prompt(self):
        server = Server(self)
        indices = server.fill(960)
        self.assertEqual(server.backup(RadixKey(tokens(960)), indices), 960)
        found, to, came = server.prefetch(RadixKey(tokens(1000)))
        self.assertEqual((found, came), (960, 960))
        self.same(server.pages(indices), server.pages(to))
        self.assertEqual(server.prefetch(RadixKey(tokens(960, first=1)))[0], 0)

    def test_more_than_a_batch(self):
        """The controller cuts at 128 pages; the second batch goes on behind the first."""
        n = 192 * PAGE
        server = Server(self)
        indices = server.fill(n)
        self.assertEqual(server.backup(RadixKey(tokens(n)), indices, []), n)
        other = Server(self)
        found, to, came = other.prefetch(RadixKey(tokens(n)))
        self.assertEqual((found, came), (n, n))
        self.same(server.pages(indices), other.pages(to))

    def test_tensors_of_torch(self):
        """As memory of kvtier.Client, with any strides."""
        with kvtier.Client(self.agent.socket) as client:
            self.assertTrue(client.connect_wait(WAIT_S))
            for dtype in (torch.float32, torch.bfloat16, torch.float8_e4m3fn):
                whole = torch.randint(0, 127, (6, 4, 8, 64)).to(dtype)
                source, back = whole.permute(2, 0, 3, 1)[:, 1:5], torch.zeros(8, 4, 64, 4).to(dtype)
                ns = client.namespace(kvtier.Namespace(
                    model="t", dtype=str(dtype)[-15:], chunk_bytes=back.nbytes))
                self.assertEqual(client.store(ns, bytes(32), [source]).n_ok, 1)
                self.assertEqual(client.load(ns, bytes(32), [back]).n_ok, 1)
                self.assertTrue(torch.equal(source.float(), back.float()))

    def test_what_shares_nothing(self):
        server = Server(self)
        key = RadixKey(tokens(256))
        self.assertEqual(server.backup(key, server.fill(256)), 256)
        self.assertEqual(server.prefetch(RadixKey(tokens(256)))[0], 256)
        for how in ({"model": "other"}, {"tp": (0, 2)}, {"tp": (1, 2)}, {"dtype": torch.float16},
                    {"layout": "layer_first"}, {"layout": "page_first_direct"},
                    {"zero_copy": False}, {"mla": True}, {"kvtier_tenant": "t"},
                    {"kvtier_revision": "r"}, {"kvtier_model": "x"}):
            with self.subTest(**how):
                self.assertEqual(Server(self, **how).prefetch(RadixKey(tokens(256)))[0], 0)
        with mock.patch("sglang.__version__", "0.5.99"):
            self.assertEqual(Server(self).prefetch(RadixKey(tokens(256)))[0], 0)
        for how in ({"extra_key": "adapter"}, {"cache_salt": "tenant"}, {"extra_key": ""}):
            with self.subTest(**how):
                self.assertEqual(server.prefetch(RadixKey(tokens(256), **how))[0], 0)

    def test_mla_is_stored_once_for_all_ranks(self):
        server = Server(self, mla=True, tp=(0, 4))
        self.assertEqual(server.backup(RadixKey(tokens(256)), server.fill(256)), 256)
        other = Server(self, mla=True, tp=(3, 4))
        self.assertEqual(other.prefetch(RadixKey(tokens(256)))[2], 256)

    def test_agent_killed_and_started_again(self):
        server = Server(self, kvtier_load_timeout_ms=500)
        indices = server.fill(512)
        self.assertEqual(server.backup(RadixKey(tokens(512)), indices), 512)
        self.agent.kill()
        began = time.monotonic()
        self.assertEqual(server.prefetch(RadixKey(tokens(512)))[0], 0)
        self.assertEqual(server.backup(RadixKey(tokens(512)), indices), 0)
        self.assertLess(time.monotonic() - began, 10)
        self.assertTrue(all(server.threads()))
        self.agent.start()
        self.assertTrue(server.storage._client.connect_wait(WAIT_S))
        self.assertEqual(server.backup(RadixKey(tokens(512)), indices), 512)
        server.prefetch_all(RadixKey(tokens(512)), time.monotonic() + WAIT_S)

    def test_evicted_between_query_and_load(self):
        server = Server(self)
        self.assertEqual(server.backup(RadixKey(tokens(512)), server.fill(512)), 512)
        server.controller.prefetch("gone", RadixKey(tokens(512)), None)
        op = server.controller.prefetch_hit_queue.get(timeout=WAIT_S)
        self.assertEqual(op.storage_hit_count, 512)
        self.agent.kill()
        self.agent.start()
        self.assertTrue(server.storage._client.connect_wait(WAIT_S))
        op.host_indices = server.host.alloc(512)
        server.controller.prefetch_buffer.put(op)
        self.assertEqual(server.controller.ack_prefetch_queue.get(timeout=WAIT_S).completed_tokens,
                         0)
        self.assertTrue(all(server.threads()))

    def test_agent_killed_in_mid_store_and_load(self):
        """What the controller was told came is right, and nothing is written afterwards."""
        n = 96 * PAGE
        server = Server(self, heads=(8, 64), kvtier_load_timeout_ms=3000)
        indices, key = server.fill(n), RadixKey(tokens(n))
        wanted, names = server.pages(indices), page_hashes(key)
        to = server.host.alloc(n)
        counts = []
        self.addCleanup(sys.setswitchinterval, sys.getswitchinterval())
        sys.setswitchinterval(2e-5)  # kill when it is time, not when a call lets go of the GIL

        def kill(delay_s):
            time.sleep(delay_s)
            self.agent.process.kill()

        for turn in range(16):
            deadline = time.monotonic() + WAIT_S
            while turn % 2 and not all(server.storage.batch_set_v1(names, indices)):
                self.assertLess(time.monotonic(), deadline)  # a new agent's arena grows
            call, memory, step_s = ((server.storage.batch_set_v1, indices, 4e-3),
                                    (server.storage.batch_get_v1, to, 3e-4))[turn % 2]
            killer = threading.Thread(target=kill, args=[turn // 2 * step_s])
            killer.start()
            began = time.monotonic()
            answer = call(names, memory)
            self.assertLess(time.monotonic() - began, 10)
            killer.join()
            self.agent.kill()
            self.assertEqual((len(answer), {type(one) for one in answer}), (len(names), {bool}))
            counts.append(sum(answer))
            if turn % 2:
                came = server.pages(to)
                good = [i for i, ok in enumerate(answer) if ok]
                self.same([wanted[i] for i in good], [came[i] for i in good])
                for i in range(0, n, PAGE):
                    server.host.set_from_flat_data_page(int(to[i]), torch.zeros_like(came[0]))
            self.agent.start()
            self.assertTrue(server.storage._client.connect_wait(WAIT_S))
            self.assertFalse(any(bool(page.any()) for page in server.pages(to)))
        print(f"# pages that came before the agent was killed: {counts}", file=sys.stderr)
        self.same(wanted, server.pages(indices))
        server.host.free(to)
        while server.backup(RadixKey(tokens(n)), indices) < n:
            self.assertLess(time.monotonic(), deadline)
        server.prefetch_all(RadixKey(tokens(n)), deadline)
        self.assertTrue(all(server.threads()))

    def test_slow_agent(self):
        """Each call ends in its time, and the server goes on when the agent does."""
        server = Server(self, kvtier_load_timeout_ms=300, kvtier_store_timeout_ms=300)
        indices, names = server.fill(512), page_hashes(RadixKey(tokens(512)))
        self.assertEqual(server.backup(RadixKey(tokens(512)), indices), 512)
        to = server.host.alloc(512)
        self.agent.signal(signal.SIGSTOP)
        for call, answer in ((lambda: server.storage.batch_get_v1(names, to), [False] * 8),
                             (lambda: server.storage.batch_exists(names), 0),
                             (lambda: server.backup(RadixKey(tokens(512)), indices), 0),
                             (lambda: server.prefetch(RadixKey(tokens(512)))[0], 0)):
            began = time.monotonic()
            self.assertEqual(call(), answer)
            self.assertLess(time.monotonic() - began, 10)
        for i in range(0, 512, PAGE):
            page = server.host.get_data_page(int(to[i]))
            server.host.set_from_flat_data_page(int(to[i]), torch.zeros_like(page))
        self.agent.signal(signal.SIGCONT)
        self.assertTrue(server.storage._client.connect_wait(WAIT_S))
        self.assertTrue(server.storage._client.ping(WAIT_S))
        self.assertFalse(any(bool(page.any()) for page in server.pages(to)))
        server.prefetch_all(RadixKey(tokens(512)), time.monotonic() + WAIT_S)
        self.assertTrue(all(server.threads()))

    def test_full_agent(self):
        """Everything in it is leased: a store waits its time, and then is no error."""
        server = Server(self, heads=(8, 64), kvtier_store_timeout_ms=1000)
        n = 128 * PAGE
        indices = server.fill(n)
        client = server.storage._client
        leased, first = [], 0
        while True:
            key = RadixKey(tokens(n, first))
            stored = server.backup(key, indices)
            held = client.lookup(server.storage._handle,
                                 b"".join(map(bytes.fromhex, page_hashes(key))), lease_ms=60000)
            leased.append(held.lease)
            if stored < n:
                break
            first += 1
            self.assertLess(first, 20)
        self.assertGreater(server.storage.counts["unstored"], 0)
        began = time.monotonic()
        late = RadixKey(tokens(PAGE * 8, 1000))
        self.assertEqual(server.backup(late, indices[:PAGE * 8]), 0)
        self.assertLess(time.monotonic() - began, 10)
        deadline = time.monotonic() + WAIT_S
        server.prefetch_all(RadixKey(tokens(n)), deadline)  # what is held is served
        for lease in leased:
            client.release(lease, WAIT_S)
        while server.backup(late, indices[:PAGE * 8]) < PAGE * 8:
            self.assertLess(time.monotonic(), deadline)
        self.assertTrue(all(server.threads()))

    def test_nothing_raises_and_nothing_is_none(self):
        server = Server(self)
        storage, names = server.storage, page_hashes(RadixKey(tokens(256)))
        indices = server.fill(256)
        with self.assertLogs("kvtier.sglang", "ERROR"):
            for wrong in (indices[:64], indices[:100], None, "text"):
                self.assertEqual(storage.batch_get_v1(names, wrong), [False] * 4)
                self.assertEqual(storage.batch_set_v1(names, wrong), [False] * 4)
        self.assertEqual(storage.batch_get_v1(names, indices), [False] * 4)
        self.assertEqual((storage.batch_get_v1([], indices), storage.batch_exists([])), ([], 0))
        self.assertEqual(storage.batch_set_v1(names, indices), [True] * 4)
        self.assertEqual(storage.batch_set_v1(names, indices), [True] * 4)
        self.assertEqual(storage.batch_exists(["not a hash"] + names), 0)
        self.assertEqual((storage.exists(names[0]), storage.exists("nor this")), (True, False))
        self.assertEqual(storage.batch_get(names, None), [None] * 4)
        self.assertIsNone(storage.get(names[0]))
        self.assertEqual((storage.set("a", None), storage.batch_set(["a"], [3])), (False, False))
        storage.close()
        self.assertEqual(storage.batch_get_v1(names, indices), [False] * 4)
        self.assertEqual(storage.batch_exists(names), 0)
        storage.close()

    def test_weights_and_adapters_tell_models_apart(self):
        with self.assertRaisesRegex(ValueError, "kvtier_revision"):
            Server(self, kvtier_revision="")
        folder = os.path.join(self.folder, "model")
        os.makedirs(os.path.join(folder, "adapter"))

        def written(name, text):
            with open(os.path.join(folder, name), "w", encoding="ascii") as file:
                file.write(text)

        def found():
            args = types.SimpleNamespace(
                model_path=folder, revision=None, dtype="auto", quantization=None,
                quantization_param_path=folder + "/scales.json", lora_paths=[
                    types.SimpleNamespace(lora_name="a", lora_path=folder + "/adapter")])
            with mock.patch("sglang.srt.runtime_context.get_server_args", lambda: args):
                server = Server(self, kvtier_revision="")
            n = server.prefetch(RadixKey(tokens(256)))[0]
            if n == 0:
                server.backup(RadixKey(tokens(256)), server.fill(256))
            return n

        written("scales.json", "{}")
        self.assertEqual((found(), found()), (0, 256))
        for name in ("config.json", "model.safetensors", "scales.json", "adapter/adapter_model.safetensors",
                     "adapter/adapter_config.json"):
            written(name, '{"rope_theta": 1}')
            self.assertEqual((found(), found()), (0, 256), name)

    def test_an_adapter_that_is_loaded_later(self):
        """Its weights are in no revision: SGLang gives it a number that nobody else has."""
        server = Server(self)
        for _ in range(2):
            adapter = LoRARef(lora_name="a", lora_path=self.folder)
            key = RadixKey(tokens(256), extra_key=adapter.lora_id)
            self.assertEqual(server.prefetch(key)[0], 0)
            self.assertEqual(server.backup(key, server.fill(256)), 256)
            self.assertEqual(server.prefetch(key)[0], 256)

    def test_weights_from_the_hub(self):
        cache = os.path.join(self.folder, "hub")
        commits = [str(n) * 40 for n in range(2)]
        for commit in commits:
            folder = os.path.join(cache, "models--org--name", "snapshots", commit)
            os.makedirs(folder)
            with open(os.path.join(folder, "model.safetensors"), "w", encoding="ascii") as file:
                file.write(commit)
        os.makedirs(os.path.join(cache, "models--org--name", "refs"))

        def server(name):
            args = types.SimpleNamespace(model_path=name, revision=None)
            with mock.patch("sglang.srt.runtime_context.get_server_args", lambda: args), \
                    mock.patch("huggingface_hub.constants.HF_HUB_CACHE", cache):
                return Server(self, kvtier_revision="")

        for commit in commits:  # the hub's branch goes on
            with open(os.path.join(cache, "models--org--name", "refs", "main"), "w",
                      encoding="ascii") as file:
                file.write(commit)
            one = server("org/name")
            self.assertEqual(one.prefetch(RadixKey(tokens(256)))[0], 0)
            self.assertEqual(one.backup(RadixKey(tokens(256)), one.fill(256)), 256)
            self.assertEqual(server("org/name").prefetch(RadixKey(tokens(256)))[0], 256)
        with self.assertRaisesRegex(ValueError, "kvtier_revision"):
            server("org/other")

    def test_weights_that_are_updated_while_the_server_runs(self):
        """By SGLang's own code; its caches are flushed as the scheduler does it, or not at all."""
        model = torch.nn.Linear(2, 2)
        updater = WeightUpdater(tp_rank=0, device="cpu", gpu_id=0, model_config=None,
                                custom_weight_loaders={}, get_model=lambda: model,
                                update_model_fields=None, recapture_cuda_graph=None,
                                get_model_runner=None)
        self.addCleanup(setattr, _Weights, "n_writes", 0)
        server, key = Server(self), RadixKey(tokens(256))
        self.assertEqual(server.backup(key, server.fill(256)), 256)
        for value in (1.0, 2.0):
            self.assertEqual(server.prefetch(key)[0], 256)
            with get_parallel().override(tp_rank=0), mock.patch.object(
                    weight_updater, "get_model",
                    lambda: types.SimpleNamespace(weight_cache_mode="off")):
                self.assertTrue(updater.update_weights_from_tensor(
                    [("bias", torch.full((2,), value))], "direct")[0])
            self.assertEqual(model.bias.tolist(), [value, value])
            hashes = page_hashes(key)
            self.assertEqual(server.prefetch(key)[0], 0)
            self.assertEqual(server.storage.batch_set_v1(hashes, server.host.alloc(256)),
                             [False] * 4)
            server.controller.reset()
            server.controller.mem_pool_host.clear()
            self.assertEqual(server.prefetch(key)[0], 0)
            indices = server.fill(256)
            self.assertEqual(server.backup(key, indices), 256)
            found, to, came = server.prefetch(key)
            self.assertEqual((found, came), (256, 256))
            self.same(server.pages(indices), server.pages(to))
        self.assertEqual(Server(self).prefetch(key)[0], 0)  # attached anew to this server
        with mock.patch.object(_Weights, "n_writes", 0):  # as in another process
            self.assertEqual(Server(self).prefetch(key)[0], 256)

    def test_clear(self):
        server, other = Server(self), Server(self, model="other")
        for one in (server, other):
            self.assertEqual(one.backup(RadixKey(tokens(256)), one.fill(256)), 256)
        if not os.path.exists(self.agent.socket.removesuffix(".sock") + ".control.sock"):
            with self.assertRaises(kvtier.UnreachableError):
                server.storage.clear()
            return
        server.storage.clear()
        self.assertEqual(server.prefetch(RadixKey(tokens(256)))[0], 0)
        self.assertEqual(other.prefetch(RadixKey(tokens(256)))[0], 256)

    def test_metrics(self):
        server = Server(self)
        self.assertIsNone(server.storage.get_stats())
        server = Server(self, metrics=True)
        self.assertEqual(server.backup(RadixKey(tokens(512)), server.fill(512)), 512)
        self.assertEqual(server.prefetch(RadixKey(tokens(512)))[2], 512)
        stats = server.storage.get_stats()
        self.assertEqual((stats.backup_pgs, stats.prefetch_pgs), ([8], [8]))
        self.assertTrue(0 < min(stats.backup_bandwidth + stats.prefetch_bandwidth) < 100)
        self.assertEqual(server.storage.get_stats().backup_pgs, [])

    def test_settings(self):
        self.assertEqual(Settings.read(None), Settings())
        self.assertEqual(Settings.read({"prefetch_threshold": 1, "kvtier_tenant": "t"}).tenant, "t")
        with self.assertRaisesRegex(ValueError, "kvtier_tennant: no such setting, kvtier_tenant.*"
                                                "kvtier_copy_threads: must be at least 1"):
            Settings.read({"kvtier_tennant": "t", "kvtier_copy_threads": 0})
        with self.assertRaisesRegex(ValueError, "int"):
            Server(self, kvtier_load_timeout_ms="soon")


if __name__ == "__main__":
    unittest.main()
