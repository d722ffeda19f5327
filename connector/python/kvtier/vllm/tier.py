# SPDX-License-Identifier: Apache-2.0
"""A secondary tier of vLLM's tiered offloading: chunks go between vLLM's own CPU cache and the agent.

vLLM moves KV between the GPU and its CPU cache, and asks its tiers for what is not there. A chunk
here is one row of that cache: a block (or some) of all layers and all ranks, copied by libkvtier as
it is. All of it runs in the scheduler's process, so nothing here waits for the agent but
drain_jobs(), and nothing raises once the tier stands: what goes wrong is a miss, or a job that
failed.

A lookup is answered "retry" until the agent has answered, at most lookup_timeout_ms. Every job is
reported exactly once: libkvtier completes every op, and past the deadline an op is cancelled here
first, after which nothing touches vLLM's memory any more.
"""

import functools
import hashlib
import secrets
import time

import numpy as np
from vllm.v1.kv_offload.base import (Locality, LookupResult, Medium, RequestOffloadingContext,
                                     get_offload_block_hash, get_offload_group_idx)
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager

from kvtier import BATCH_MAX, Layouts, Status

from . import compat, keys
from .breaker import Breaker
from .layout import CHUNK_BYTES_MAX, n_segments
from .meta import Shard
from .namespace import identity, window_of
from .port import LATE_NS, LOG_NS, Port
from .settings import TierSettings

DRAIN_WAIT_S = 0.1

_NEW = object()
_LAST = 1 << 62


class _Request:
    __slots__ = ("domain", "usable", "verdicts", "batch", "asked_ns", "give_up_ns", "leases",
                 "asked", "no_store")

    def __init__(self, domain, usable):
        self.domain = domain
        self.usable = usable
        self.asked = {}        # offload key -> when, so to say
        self.no_store = False  # holds KV from before a reset
        self.forget()

    def forget(self):
        self.verdicts = {}     # offload key -> held; None: not known yet
        self.batch = []        # keys to be asked for when the step ends
        self.asked_ns = 0      # the last time
        self.give_up_ns = 0
        self.leases = []


class _Job:
    __slots__ = ("id", "keys", "is_load", "request_id", "open", "good", "began_ns", "give_up_ns")

    def __init__(self, job, now, timeout_ms):
        self.id = job.job_id
        self.keys = list(job.keys)
        self.is_load = job.is_promotion
        self.request_id = job.req_context.req_id
        self.open = set()
        self.good = []         # keys that came, or are held
        self.began_ns = now
        self.give_up_ns = now + timeout_ms * 1_000_000 + LATE_NS


def _by_group(offload_keys):
    """(group, its keys) with the order of the keys kept."""
    groups = {}
    for key in offload_keys:
        groups.setdefault(get_offload_group_idx(key), []).append(key)
    return groups.items()


def _batches(items):
    return [items[i:i + BATCH_MAX] for i in range(0, len(items), BATCH_MAX)]


def _harmless(answer):
    """Makes a call of the engine one that never raises; answer() stands for what it did not do."""
    def decorate(call):
        @functools.wraps(call)
        def guarded(self, *args):
            try:
                return call(self, *args)
            except Exception as err:
                self._complain(f"{call.__name__}: {type(err).__name__}: {err}")
                return answer()
        return guarded
    return decorate


class KVTierSecondaryTier(SecondaryTierManager):
    """Made by KVTierOffloadingConnector alone, which says what an OffloadingSpec does not know:
    the model and its weights, the hashes, and what the rows of the CPU cache mean."""

    medium = Medium.STORAGE

    def __init__(self, offloading_spec, primary_kv_view, tier_type, vllm_config=None,
                 kv_cache_config=None, backpressure_detector=None, **settings):
        super().__init__(offloading_spec, primary_kv_view, tier_type,
                         *compat.tier_arguments(backpressure_detector))
        if vllm_config is None:
            raise ValueError(
                "KVTier: OffloadingConnector does not tell its tiers which weights, hashes and "
                "layout a chunk comes from, so chunks of different models could be mixed up; set "
                'kv_connector to "KVTierOffloadingConnector" and kv_connector_module_path to '
                '"kvtier.vllm", which takes the same settings')
        self.locality = Locality.LOCAL
        self._settings = TierSettings.read(settings)
        self._algorithm = vllm_config.cache_config.prefix_caching_hash_algo
        compat.check_hashes(self._algorithm, self._settings)
        compat.check_prefix(vllm_config)
        compat.check_parallel(vllm_config)
        self._groups = kv_cache_config.kv_cache_groups
        self._windows = [window_of(group.kv_cache_spec) for group in self._groups]
        # No array is kept: while one is, vLLM cannot give the memory back if we refuse below.
        self._address = np.asarray(primary_kv_view).ctypes.data
        self._n_rows, self._row_bytes = primary_kv_view.shape
        if self._row_bytes > CHUNK_BYTES_MAX:
            raise ValueError(
                f"KVTier: chunks of {self._row_bytes} bytes; an agent takes at most "
                f"{CHUNK_BYTES_MAX}: make block_size or blocks_per_chunk smaller")
        self._parallel = vllm_config.parallel_config
        self._model = identity(vllm_config, self._settings)
        self._workers = ()        # what the rows mean, see offload.Rows
        self._handles = None      # of each group's namespace
        self._epoch = b""         # drawn by the last reset
        self._requests = {}
        self._lookups = {}        # op -> (request, keys)
        self._jobs = {}
        self._ops = {}            # op -> (job, keys)
        self._finished = []
        self._breaker = Breaker()
        self._may_ask = None      # in this step
        self._said_ns = 0
        #: chunks: found, loaded, stored (now or before), and those that did not go through
        self.counts = {"hit": 0, "loaded": 0, "unloaded": 0, "stored": 0, "unstored": 0,
                       "lookup_timeouts": 0}
        self._port = Port(self._settings.socket, "vllm tier", self._settings.copy_threads)

    def _complain(self, what):
        now = time.monotonic_ns()
        if now - self._said_ns >= LOG_NS:
            self._said_ns = now
            compat.log.error("KVTier: %s", what)

    # ---- what the rows are -----------------------------------------------------------------

    def describe(self, workers):
        """workers: Rows of each worker by (pipeline rank, tensor rank)."""
        self._workers = tuple(workers[rank] for rank in sorted(workers))
        self._handles = None

    def reset(self):
        """Nothing stored before is found again by this engine, as with KVTierConnector."""
        self._epoch = secrets.token_bytes(16)
        for state in self._requests.values():
            self._forget(state)
            state.no_store = True

    def _layout(self):
        """At most 63 bytes for all that the meaning of a row's bytes depends on. Where a group's
        pages are in a row may depend on those of the others."""
        spec = self._offloading_spec
        facts = [compat.row_facts(spec), self._row_bytes, self._n_ranks(),
                 *(worker.layouts for worker in self._workers)]
        digest = hashlib.sha256(repr(facts).encode()).hexdigest()
        return f"row1/{digest[:48]}"

    def _n_ranks(self):
        return self._parallel.tensor_parallel_size, self._parallel.pipeline_parallel_size

    def _ready(self):
        """Whether the namespaces are known; makes them when the last fact came."""
        if self._handles is not None:
            return True
        root = compat.hash_root()
        if root is None or len(self._workers) != self._parallel.world_size:
            return False
        domain = keys.hash_domain(self._algorithm, root, compat.python_version())
        tp_size, pp_size = self._n_ranks()
        made = []
        for index, group in enumerate(self._groups):
            heads, head_dim = compat.spec_heads(group.kv_cache_spec)
            tokens = group.kv_cache_spec.block_size * self._offloading_spec.blocks_per_chunk
            n_layers = len(group.layer_names)
            shard = Shard(
                **self._model, layout=self._layout(), dtype=self._workers[0].dtypes[index][:15],
                n_layers=n_layers, n_kv_heads=heads, head_dim=head_dim, tp_rank=0, tp_size=tp_size,
                pp_rank=0, pp_size=pp_size, kv_group=index,
                n_segments=n_segments(self._row_bytes, n_layers), chunk_bytes=self._row_bytes,
                tokens_per_chunk=tokens)
            made.append(self._port.namespace(shard.namespace(domain)))
        self._handles = made
        compat.log.info("KVTier: %d bytes per chunk of vLLM's CPU cache, model %s %s",
                        self._row_bytes, self._model["model"], self._model["revision"])
        return True

    # ---- requests --------------------------------------------------------------------------

    def announce(self, request_id, domain, usable):
        """A request of this engine; domain: see keys.request_domain. usable(): whether rows with
        its keys have its own KV for sure."""
        self._requests[request_id] = _Request(domain, usable)

    def on_new_request(self, req_context):
        return RequestOffloadingContext()

    @_harmless(lambda: None)
    def on_request_finished(self, req_context):
        state = self._requests.pop(req_context.req_id, None)
        if state is not None:
            self._forget(state)

    def _forget(self, state):
        """Its lookups, also those under way."""
        self._cancel_lookups(state)
        for lease in state.leases:
            self._port.release(lease)
        state.forget()

    def _cancel_lookups(self, state):
        """What is answered yet gives its lease back."""
        for op, (owner, _) in self._lookups.items():
            if owner is state:
                self._lookups[op] = None, ()
                self._port.cancel(op)

    def _names(self, state, offload_keys):
        domain = keys.in_epoch(self._epoch, state.domain)
        return b"".join(keys.chunk_key(domain, get_offload_block_hash(key))
                        for key in offload_keys)

    # ---- lookups ---------------------------------------------------------------------------

    @_harmless(lambda: LookupResult.MISS)
    def lookup(self, key, req_context):
        state = self._requests.get(req_context.req_id)
        if state is None or not state.usable():
            return LookupResult.MISS  # another engine's, through another tier; or mixed up
        held = state.verdicts.get(key, _NEW)
        if held is _NEW:
            if self._may_ask is None:
                self._may_ask = self._port.connected and self._ready() and \
                    not self._breaker.is_open(time.monotonic_ns())
            if not self._may_ask:
                return LookupResult.MISS
            if not self._has_time(state):
                state.verdicts[key] = False
                return LookupResult.MISS
            state.verdicts[key] = None
            state.batch.append(key)
            number = len(state.asked)
            state.asked.setdefault(key, -number if self._windows[get_offload_group_idx(key)]
                                   else number)  # windows are asked for from their end
            return LookupResult.RETRY
        if held is None:
            if time.monotonic_ns() < state.give_up_ns:
                return LookupResult.RETRY
            self._late(state)
            return LookupResult.MISS
        return LookupResult.HIT if held else LookupResult.MISS

    def _has_time(self, state):
        """Whether one more key may be asked for. vLLM asks for the keys of a window one after the
        other, each in another step where the agent has few of them: the time is for all."""
        now = time.monotonic_ns()
        timeout_ns = self._settings.lookup_timeout_ms * 1_000_000
        if now >= state.give_up_ns:
            if now < state.asked_ns + timeout_ns:
                return False
            state.give_up_ns = now + timeout_ns
        state.asked_ns = now
        return True

    def _late(self, state):
        """The time is over: what is not known counts as not held."""
        self._cancel_lookups(state)
        for key, held in state.verdicts.items():
            if held is None:
                state.verdicts[key] = False
        self.counts["lookup_timeouts"] += 1
        now = time.monotonic_ns()
        if now < state.asked_ns + self._settings.lookup_timeout_ms * 500_000:
            return  # it was vLLM that asked late: the agent had half of the time and less
        self._breaker.late(now)
        self._complain(f"the agent did not answer within {self._settings.lookup_timeout_ms} ms")

    @_harmless(lambda: None)
    def on_schedule_end(self, context):
        self._may_ask = None
        for request_id in context.preempted_req_ids:
            state = self._requests.get(request_id)
            if state is not None:
                self._forget(state)  # it is asked for again as new
        for state in self._requests.values():
            if state.batch:
                self._ask(state)

    def _ask(self, state):
        """One op for each group's keys in the order in which vLLM asked: from the start of a
        prefix, from the end of a window. The agent says how many of them it holds before the first
        that it does not."""
        batch, state.batch = state.batch, []
        for group, keys_of_group in _by_group(batch):
            for asked in _batches(keys_of_group):
                op = self._port.lookup(self._handles[group], self._names(state, asked),
                                       self._settings.lease_ms)
                if op is None:
                    state.verdicts.update(dict.fromkeys(asked, False))  # queue full
                    continue
                self._lookups[op] = state, asked

    def _answered(self, op):
        state, asked = self._lookups.pop(op)
        if state is None:  # canceled meanwhile
            if op.lease:
                self._port.release(op.lease)
            return
        verdicts = state.verdicts
        if op.lease:
            state.leases.append(op.lease)
        if op.status == 0:
            self._breaker.answered()
        self.counts["hit"] += op.n_ok
        for i, key in enumerate(asked):
            if verdicts.get(key, _NEW) is not None:
                continue  # a load of it failed meanwhile
            if i < op.n_ok:
                verdicts[key] = True
            elif i == op.n_ok or op.status != 0:
                verdicts[key] = False
            else:
                del verdicts[key]  # after a gap: to be asked for if vLLM still wants to know

    # ---- jobs ------------------------------------------------------------------------------

    def submit_store(self, job_metadata):
        self._begin(job_metadata, self._settings.save_timeout_ms)

    def submit_load(self, job_metadata):
        self._begin(job_metadata, self._settings.load_timeout_ms)

    def _begin(self, given, timeout_ms):
        now = time.monotonic_ns()
        job = self._jobs[given.job_id] = _Job(given, now, timeout_ms)
        try:
            self._submit(job, given, now + timeout_ms * 1_000_000)
        except Exception as err:
            self._complain(f"job of {len(job.keys)} chunks: {type(err).__name__}: {err}")
        if not job.open:
            self._over(job)

    def _submit(self, job, given, deadline_ns):
        state = self._requests.get(job.request_id)
        if state is None or not self._ready():
            return
        if not job.is_load and (state.no_store or not state.usable()):
            return
        places = dict(zip(job.keys, compat.job_rows(given)))
        rank = functools.partial(self._rank, state, given.req_context)
        for group, keys_of_group in _by_group(sorted(places, key=rank)):
            before = None if job.is_load else self._parent(state, rank, keys_of_group[0])
            for some in _batches(keys_of_group):
                rows = np.array([places[key] for key in some], np.uint64)
                if int(rows.max()) >= self._n_rows:
                    raise ValueError(f"row {rows.max()} of {self._n_rows}")
                memory = Layouts.of_strides(
                    np.uint64(self._address) + rows * np.uint64(self._row_bytes), self._row_bytes)
                call = self._port.load if job.is_load else self._port.store
                op = call(self._handles[group], self._names(state, some), memory, before,
                          deadline_ns)
                if op is not None:
                    job.open.add(op)
                    self._ops[op] = job, some
                before = self._names(state, some[-1:])

    @staticmethod
    def _rank(state, req_context, key):
        """Something that grows along the prompt: vLLM hands stores over in any order."""
        position = compat.key_position(req_context, key)
        return state.asked.get(key, _LAST) if position is None else position

    def _parent(self, state, rank, first):
        """The chunk before a key, as far as is known, so that the agent evicts ends first."""
        group, end = get_offload_group_idx(first), rank(first)
        before = [key for key in state.asked
                  if get_offload_group_idx(key) == group and rank(key) < end]
        return self._names(state, [max(before, key=rank)]) if before else None

    def _poll(self):
        try:
            self._take(self._port.poll())
        finally:
            self._end_late()

    def _take(self, ops):
        """One that cannot be made sense of must not take the others with it: its job ends late."""
        for op in ops:
            try:
                self._completed(op)
            except Exception as err:
                self._complain(f"{op.kind} of {op.n_items} chunks: {type(err).__name__}: {err}")

    def _completed(self, op):
        if op in self._lookups:
            self._answered(op)
            return
        job, some = self._ops.pop(op, (None, ()))
        if job is None:
            return
        good = (Status.OK,) if job.is_load else (Status.OK, Status.EXISTS)
        job.good += [key for key, status in zip(some, op.statuses.tolist()) if status in good]
        job.open.discard(op)
        if not job.open:
            self._over(job)

    def _end_late(self):
        """Ends jobs that did not end by themselves. After the cancel nothing touches their rows."""
        now = time.monotonic_ns()
        for job in [job for job in self._jobs.values() if now >= job.give_up_ns]:
            for op in job.open:
                self._port.cancel(op)
                self._ops.pop(op, None)
            job.open.clear()
            self._over(job)

    def _over(self, job):
        del self._jobs[job.id]
        n_bad = len(job.keys) - len(job.good)
        self.counts["loaded" if job.is_load else "stored"] += len(job.good)
        self.counts["unloaded" if job.is_load else "unstored"] += n_bad
        state = self._requests.get(job.request_id)
        if job.is_load and n_bad and state is not None:
            # Else vLLM would find them again at once, and again.
            good = set(job.good)
            state.verdicts.update((key, False) for key in job.keys if key not in good)
        self._finished.append(JobResult(
            job.id, success=n_bad == 0,
            successful_keys=tuple(job.good) if job.is_load and job.good and n_bad else None,
            transfer_time=(time.monotonic_ns() - job.began_ns) / 1e9))

    @_harmless(list)
    def get_finished_jobs(self):
        self._poll()
        done, self._finished = self._finished, []
        return done

    def drain_jobs(self):
        """Waits for what the jobs' deadlines bound."""
        while self._jobs:
            self._take(self._port.wait(DRAIN_WAIT_S))
            self._end_late()

    def shutdown(self):
        """Afterwards nothing touches vLLM's memory."""
        self._port.close()
