# SPDX-License-Identifier: Apache-2.0
"""The connector's half in each worker: moves chunks between the engine's KV memory and the agent.

Submits and polls, never waits for the agent. Every load is reported exactly once, whatever became
of it: libkvtier completes every op (an agent that is gone completes them at once), and past the
deadline an op is cancelled here first, after which nothing writes to the engine's blocks any more.
"""

import time

import numpy as np

from kvtier import BATCH_MAX, KEY_BYTES, Status

from . import compat
from .layout import CHUNK_BYTES_MAX, GroupMemory, block_bytes
from .meta import Shard, WorkerMeta
from .namespace import group_pages, identity, plans
from .port import LATE_NS
from .stats import Stats


class _Load:
    __slots__ = ("open", "parts", "give_up_ns")

    def __init__(self, give_up_ns):
        self.open = set()
        self.parts = []  # [transfer, first chunk, chunks, chunks that came without a gap]
        self.give_up_ns = give_up_ns


class _Save:
    __slots__ = ("open", "whole", "give_up_ns")

    def __init__(self, give_up_ns):
        self.open = set()
        self.whole = True
        self.give_up_ns = give_up_ns


class _Group:
    __slots__ = ("plan", "memory", "shard", "handle", "stores")


class WorkerHalf:
    def __init__(self, vllm_config, kv_cache_config, settings, port):
        compat.check_prefix(vllm_config)  # layers turn it off as well, while they are made
        self._vllm_config = vllm_config
        self._kv_cache_config = kv_cache_config
        self._settings = settings
        self._port = port
        self._plans = plans(vllm_config, kv_cache_config, settings)
        self._groups = []
        self._gpu = None        # the device that has the KV, unless it is the host
        self._described = False
        self._hash_domain = ""  # of the groups' namespaces
        self._ops = {}          # op -> (load or save, part); None: canceled
        self._loads = {}        # request id -> _Load
        self._saves = {}        # save id -> _Save
        self._came = set()      # requests to be reported
        self._failed = {}       # request id -> tokens that came, for the scheduler's half
        self._bad_blocks = set()
        self._bad_requests = set()
        self._saved, self._stored = {}, {}
        self.is_busy = True     # something is under way or to be told; asked thrice in each step
        self.stats = Stats()

    # ---- memory ----------------------------------------------------------------------------

    def register_kv_caches(self, kv_caches):
        """Reads the layouts; raises LayoutError, which keeps the engine from starting, where one
        is not known."""
        tp_rank, tp_size, pp_rank, pp_size = compat.ranks(self._vllm_config)
        model = identity(self._vllm_config, self._settings)
        for plan, found in zip(self._plans, group_pages(self._vllm_config, self._kv_cache_config,
                                                        kv_caches)):
            names, spec = found.names, found.spec
            group = _Group()
            group.plan = plan
            device = kv_caches[names[0]].device
            self._use(device)
            bytes_of_block = block_bytes(found.pages)
            sink = compat.byte_buffer(bytes_of_block, device) if plan.blocks_per_chunk > 1 else None
            group.memory = GroupMemory(found.pages, plan.blocks_per_chunk,
                                       self._kv_cache_config.num_blocks, sink)
            if group.memory.chunk_bytes > CHUNK_BYTES_MAX:
                raise ValueError(
                    f"KVTier: chunks of {plan.chunk_tokens} tokens have {group.memory.chunk_bytes} "
                    f"bytes, and an agent takes at most {CHUNK_BYTES_MAX}; set chunk_tokens to at "
                    f"most {CHUNK_BYTES_MAX // bytes_of_block * plan.block_tokens}")
            replicated = compat.is_mla(spec)  # every rank has the same: one copy is enough
            n_heads, head_dim = compat.spec_heads(spec)
            group.shard = Shard(
                **model, layout=found.layout, dtype=found.dtype[:15], n_layers=len(names),
                n_kv_heads=n_heads, head_dim=head_dim, tp_rank=0 if replicated else tp_rank,
                tp_size=1 if replicated else tp_size, pp_rank=pp_rank, pp_size=pp_size,
                kv_group=plan.index, n_segments=group.memory.n_segments,
                chunk_bytes=group.memory.chunk_bytes, tokens_per_chunk=plan.chunk_tokens)
            group.stores = not replicated or tp_rank == 0
            group.handle = -1
            self._groups.append(group)
            compat.log.info("KVTier: KV group %d: %d layers, %d bytes per chunk of %d tokens, "
                            "layout %s", plan.index, len(names), group.memory.chunk_bytes,
                            plan.chunk_tokens, group.shard.layout)

    def _use(self, device):
        """Raises ValueError where KV is in memory that cannot be moved, or in that of two GPUs."""
        if device.type == "cpu":
            return
        if device.type != "cuda" or self._gpu not in (None, device):
            raise ValueError(f"KVTier: KV of {device} cannot be moved, only that of the host and of "
                             "one CUDA device per worker")
        if self._gpu is None:
            self._port.cuda_attach(device.index)
            self._gpu = device

    def _namespaces(self, meta):
        if self._hash_domain == meta.hash_domain:
            return
        for group in self._groups:
            group.handle = self._port.namespace(group.shard.namespace(meta.hash_domain))
        self._hash_domain = meta.hash_domain

    # ---- transfers -------------------------------------------------------------------------

    def _submit(self, call, transfer, start, deadline_ns):
        """One op of at most BATCH_MAX chunks. @return (op or None, chunks)."""
        group = self._groups[transfer.group]
        names, blocks, parent = transfer.keys, transfer.blocks, transfer.parent
        n = len(names) // KEY_BYTES - start
        if start or n > BATCH_MAX:
            n = min(n, BATCH_MAX)
            per, end = group.plan.blocks_per_chunk, start + n
            if start:
                parent = names[(start - 1) * KEY_BYTES:start * KEY_BYTES]
            names = names[start * KEY_BYTES:end * KEY_BYTES]
            blocks = blocks[start * per:end * per]
        # The copy comes after what the engine has queued until now, and nobody waits for it.
        stream = compat.current_stream(self._gpu) if self._gpu is not None else None
        op = call(group.handle, names, group.memory.batch(blocks), parent or None, deadline_ns,
                  stream)
        return op, n

    def start_load_kv(self, meta):
        self.is_busy = True
        self._namespaces(meta)
        now = time.monotonic_ns()
        deadline = now + self._settings.load_timeout_ms * 1_000_000
        for req_id, transfers in meta.loads:
            load = self._loads[req_id] = _Load(deadline + LATE_NS)
            for transfer in transfers:
                start, total = 0, len(transfer.keys) // KEY_BYTES
                while start < total:
                    op, n = self._submit(self._port.load, transfer, start, deadline)
                    part = [transfer, start, n, 0]
                    load.parts.append(part)
                    if op:
                        load.open.add(op)
                        self._ops[op] = load, part
                    start += n
            if not load.open:
                self._load_over(req_id, load)

    def wait_for_save(self, meta):
        self.is_busy = True
        self._namespaces(meta)
        deadline = time.monotonic_ns() + self._settings.save_timeout_ms * 1_000_000
        for save_id, transfers in meta.saves:
            save = _Save(deadline + LATE_NS)
            for transfer in transfers:
                if not self._groups[transfer.group].stores:
                    continue
                start, total = 0, len(transfer.keys) // KEY_BYTES
                while start < total:
                    op, n = self._submit(self._port.store, transfer, start, deadline)
                    if op:
                        save.open.add(op)
                        self._ops[op] = save, [transfer, start, n, save_id]
                    else:
                        save.whole = False
                        self.stats.add("unstored_chunks", n)
                    start += n
            if save.open:
                self._saves[save_id] = save
            else:
                self._save_over(save_id, save)

    # ---- completions -----------------------------------------------------------------------

    def poll(self):
        for done in self._port.poll():
            self._done(done)
        self._late()

    def _done(self, done):
        entry = self._ops.pop(done, None)
        if entry is None:
            return
        owner, part = entry
        transfer, _, n, _ = part
        chunk_bytes = self._groups[transfer.group].memory.chunk_bytes
        if done.status == Status.UNREACH:
            self.stats.add("agent_lost")
        if isinstance(owner, _Save):
            owner.whole &= done.status == 0 and done.n_ok == n
            self._count_late(done, "save_timeouts")
            self.stats.add("stored_chunks", done.n_ok)
            self.stats.add("stored_bytes", done.n_ok * chunk_bytes)
            if done.n_ok < n:
                self.stats.add("unstored_chunks", n - done.n_ok)
            owner.open.discard(done)
            if not owner.open:
                del self._saves[part[3]]
                self._save_over(part[3], owner)
            return
        part[3] = done.n_prefix
        self.stats.add("loaded_bytes", done.n_prefix * chunk_bytes)
        owner.open.discard(done)
        self._count_late(done, "load_timeouts")
        if not owner.open:
            for req_id, load in self._loads.items():
                if load is owner:
                    self._load_over(req_id, load)
                    break

    def _count_late(self, done, name):
        """An op runs its course also when its deadline ends it: its items tell."""
        if done.status == 0 and done.n_ok < done.n_items:
            self.stats.add(name, int((done.statuses == Status.TIMEOUT).any()))

    def _late(self):
        """Ends what did not end by itself. After the cancel nothing touches the blocks any more.
        Both tables are in the order of deadlines."""
        now = time.monotonic_ns()
        while self._loads:
            req_id, load = next(iter(self._loads.items()))
            if now < load.give_up_ns:
                break
            self._cancel(load)
            self.stats.add("load_timeouts")
            self._load_over(req_id, load)
        while self._saves:
            save_id, save = next(iter(self._saves.items()))
            if now < save.give_up_ns:
                break
            self._cancel(save)
            save.whole = False
            self.stats.add("save_timeouts")
            del self._saves[save_id]
            self._save_over(save_id, save)

    def _cancel(self, owner):
        for op in owner.open:
            self._port.cancel(op)
            self._ops[op] = None  # still to be handed out, which gives its place back
        owner.open.clear()

    def _load_over(self, req_id, load):
        self._loads.pop(req_id, None)
        self._came.add(req_id)
        if all(n == came for _, _, n, came in load.parts):
            return
        if len(self._plans) > 1:
            self._bad_requests.add(req_id)
            self._failed[req_id] = 0
            return
        good_tokens, broken = 0, False
        for transfer, start, n, came in load.parts:
            per = self._plans[transfer.group].blocks_per_chunk
            blocks = np.frombuffer(transfer.blocks, np.int64)[start * per:(start + n) * per]
            if broken:
                came = 0
            good = blocks[:came * per]
            good_tokens += int((good >= 0).sum()) * self._plans[transfer.group].block_tokens
            bad = blocks[came * per:]
            self._bad_blocks.update(int(b) for b in bad[bad >= 0])
            broken |= came < n
        self._failed[req_id] = good_tokens

    def _save_over(self, save_id, save):
        self._saved[save_id] = 1
        if save.whole:
            self._stored[save_id] = 1

    # ---- what the engine asks --------------------------------------------------------------

    def take_results(self, finished_req_ids):
        """(requests whose load is over, of these: failed for several groups)."""
        if self._ops:
            self.poll()
        for req_id in finished_req_ids:  # aborted: its blocks are wanted back
            load = self._loads.get(req_id)
            if load is not None:
                self._cancel(load)
                self._load_over(req_id, load)
        came, self._came = self._came, set()
        failed, self._bad_requests = self._bad_requests & came, set()
        return came, failed

    def take_bad_blocks(self):
        taken, self._bad_blocks = self._bad_blocks, set()
        return taken

    def take_meta(self):
        """The last that is asked in a step."""
        self.is_busy = bool(self._ops or self._came or self._bad_blocks or not self._groups)
        shards = frozenset()
        if not self._described and self._groups:
            self._described = True
            shards = frozenset(g.shard for g in self._groups)
        if not (shards or self._saved or self._failed):
            return None
        meta = WorkerMeta(shards, int(bool(shards)), self._saved, self._stored, self._failed)
        self._saved, self._stored, self._failed = {}, {}, {}
        return meta

    def shutdown(self):
        self._port.close()
