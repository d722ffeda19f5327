# SPDX-License-Identifier: Apache-2.0
"""The connector's half in the scheduler's process: what to look up, load and save, and when.

Nothing here waits. A lookup is sent when a request arrives and read when the scheduler asks; until
the answer is there the scheduler is told to ask again, at most lookup_timeout_ms. What a lookup
found is leased, so that it stays until the load; unused leases run out by themselves.

Saves copy out of blocks while the engine goes on, so every block of a save is pinned in the
engine's block pool (a reference count) until all workers reported. Whatever ends the request
meanwhile, preemption, abort or a sliding window, the block is not reused before that.
"""

import math
import secrets
import time
from array import array

import numpy as np

from kvtier import BATCH_MAX, KEY_BYTES

from . import compat, keys
from .breaker import Breaker
from .meta import NOTHING, Meta, Transfer
from .namespace import plans
from .stats import Stats

LEASE_MARGIN_NS = 500_000_000
PIN_WAIT_NS = 20_000_000
ASK_AGAIN = None, False
NEVER = 1 << 62


class _Lookup:
    """All namespaces of all groups for one request; done when open is empty."""
    __slots__ = ("open", "parts", "sent_ns", "lease_end_ns", "leases", "ops")

    def __init__(self, now):
        self.open = 0
        self.parts = []  # (group, shard number, part number, n asked) -> n found, as lists
        self.sent_ns, self.lease_end_ns = now, 1 << 63
        self.leases = []
        self.ops = []


class _Request:
    __slots__ = ("request", "lora", "domain", "keys", "lookup", "hit_tokens", "no_load",
                 "asked_local", "blocks", "next_save", "save_at", "no_save", "preemptions",
                 "load_tokens", "load_start", "load_failed", "give_up_ns", "waits")

    def __init__(self, request, domain, n_groups):
        self.request = request
        self.lora = getattr(request, "lora_request", None)
        self.domain = domain
        self.keys = [[] for _ in range(n_groups)]  # chunk keys by group
        self.lookup = None
        self.hit_tokens = None    # None: not known
        # A session's tokens may be replaced, and its block hashes with them.
        self.no_load = self.no_save = bool(getattr(request, "resumable", False))
        self.asked_local = 0
        self.blocks = None        # block ids by group
        self.next_save = [0] * n_groups
        self.save_at = 0          # so many tokens complete a chunk; 0: not known
        self.preemptions = request.num_preemptions
        self.load_failed = False
        self.load_tokens = 0      # of the load under way
        self.load_start = 0
        self.give_up_ns = 0
        self.waits = False        # told to ask again, and no answer came since


class _Pin:
    """Blocks of one save; the pool's reference counts keep them from being reused."""
    __slots__ = ("blocks", "n_left", "n_stored", "events", "since_ns")

    def __init__(self, blocks, n_workers, events, now):
        self.blocks = blocks
        self.n_left = n_workers  # that did not report yet
        self.n_stored = 0        # workers of which every chunk is held
        self.events = events
        self.since_ns = now


class SchedulerHalf:
    def __init__(self, vllm_config, kv_cache_config, settings, port):
        self._settings = settings
        self._port = port
        self._algorithm = vllm_config.cache_config.prefix_caching_hash_algo
        compat.check_hashes(self._algorithm, settings)
        compat.check_prefix(vllm_config)
        self._n_workers = compat.check_parallel(vllm_config)
        self._may_load = vllm_config.kv_transfer_config.is_kv_consumer
        self._may_save = vllm_config.kv_transfer_config.is_kv_producer
        self._plans = plans(vllm_config, kv_cache_config, settings)
        self._align = math.lcm(*(p.chunk_tokens for p in self._plans))
        self._warned = set()      # names of adapters that are not trusted
        self._adapters = keys.Adapters(compat.adapter_hash_name)
        self._shards = frozenset()
        self._n_described = 0
        self._namespaces = None   # [(group, [handles])] once the workers told
        self._hash_domain = ""
        self._epoch = b""         # drawn by the last reset
        self._requests = {}
        self._lookups = {}        # op -> (lookup, found, place, request)
        self._pool = None
        self._null = 0
        self._pins = {}           # save id -> _Pin, oldest first
        self._n_pinned = 0
        self._n_pinned_max = 0
        self._next_save_id = 1
        self._loads = []
        self._steady = None       # ids of the running requests when each was looked at last
        self._steady_tokens = 0   # with fewer more, none of them completes a chunk
        self._loading = {}        # request id -> tokens; until its load was reported
        self._aborted_loads = set()
        self._polled = False
        self._breaker = Breaker()
        self.events = [] if compat.events_wanted(vllm_config) else None
        self.stats = Stats()

    # ---- lookups ---------------------------------------------------------------------------

    def bind_pool(self, pool):
        self._pool = pool
        self._null = pool.null_block.block_id
        self._n_pinned_max = max(1, int(pool.num_gpu_blocks * self._settings.max_pinned_share))

    def _ready(self):
        """Whether the namespaces are known; makes them when the last fact came."""
        if self._namespaces is not None:
            return True
        if not self._hash_domain:
            root = compat.hash_root()
            if root is None:
                return False
            self._hash_domain = keys.hash_domain(self._algorithm, root, compat.python_version())
        if self._n_described < self._n_workers:
            return False
        made = []
        for plan in self._plans:
            shards = sorted((s for s in self._shards if s.kv_group == plan.index),
                            key=lambda s: (s.pp_rank, s.tp_rank))
            made.append([self._port.namespace(s.namespace(self._hash_domain)) for s in shards])
        self._namespaces = made
        return True

    def _extend_keys(self, state):
        hashes = state.request.block_hashes
        domain = keys.in_epoch(self._epoch, state.domain)
        for plan, known in zip(self._plans, state.keys):
            step = plan.hashes_per_chunk
            for end in range((len(known) + 1) * step, len(hashes) + 1, step):
                known.append(keys.chunk_key(domain, hashes[end - 1]))

    def on_new_request(self, request):
        domain, trusted = keys.domain_of(request, self._adapters)
        state = _Request(request, domain, len(self._plans))
        if not trusted and not self._adapters.being_read(state.lora):
            self._warn_of(state.lora)
        state.no_save |= not self._may_save or not trusted
        state.no_load |= not self._may_load or not trusted or \
            bool(getattr(request, "skip_reading_prefix_cache", False))
        self._requests[request.request_id] = state
        if not state.no_load and self._ready():
            self._send_lookup(state, time.monotonic_ns())
        return state

    def _warn_of(self, lora):
        if lora.lora_name in self._warned:
            return
        self._warned.add(lora.lora_name)
        compat.log.warning(
            "KVTier: the weights of adapter %s (number %d) in %s cannot be read, or have changed "
            "since this engine loaded them; its requests go on without KVTier: load changed "
            "weights as a new adapter", lora.lora_name, lora.lora_int_id, lora.lora_path)

    def _send_lookup(self, state, now):
        """Asks every namespace for the request's chunks; sets hit_tokens where that is moot."""
        self._drop_lookup(state)
        self._extend_keys(state)
        state.hit_tokens = None
        if not all(state.keys):
            state.hit_tokens = 0
            return
        if self._breaker.is_open(now) or not self._port.connected:
            state.hit_tokens = 0
            return
        lookup = _Lookup(now)
        for group, known in enumerate(state.keys):
            for handle in self._namespaces[group]:
                found = []
                for start in range(0, len(known), BATCH_MAX):
                    part = known[start:start + BATCH_MAX]
                    op = self._port.lookup(handle, b"".join(part), self._settings.lease_ms)
                    if op is None:
                        break  # queue full: what follows counts as not held
                    self._lookups[op] = lookup, found, len(found), state
                    lookup.ops.append(op)
                    found.append([len(part), 0])
                    lookup.open += 1
                lookup.parts.append((group, found))
        self.stats.add("lookups")
        if lookup.open == 0:
            state.hit_tokens = 0
            return
        state.lookup = lookup

    def _drop_lookup(self, state):
        lookup, state.lookup = state.lookup, None
        if lookup is not None:
            for lease in lookup.leases:
                self._port.release(lease)
            lookup.leases = None  # an answer that came meanwhile gives its lease back
            if lookup.open:
                for op in lookup.ops:
                    self._port.cancel(op)

    def _poll(self):
        for done in self._port.poll():
            entry = self._lookups.pop(done, None)
            if entry is None:
                continue
            lookup, found, place, state = entry
            lookup.open -= 1
            if done.status == 0:
                found[place][1] = done.n_ok
                self._breaker.answered()
            elif lookup.leases is not None:
                self.stats.add("agent_lost")
            if done.lease:
                if lookup.leases is None:
                    self._port.release(done.lease)
                else:
                    lookup.leases.append(done.lease)
                    lookup.lease_end_ns = min(lookup.lease_end_ns, done.lease_deadline_ns)
            elif lookup.leases is not None:
                lookup.lease_end_ns = min(lookup.lease_end_ns,
                                          lookup.sent_ns + self._settings.lease_ms * 1_000_000)
            if lookup.open == 0 and state.lookup is lookup:
                self._answered(state, lookup)

    def _answered(self, state, lookup):
        held_by_all = [len(known) for known in state.keys]
        for group, found in lookup.parts:
            n = 0
            for asked, held in found:
                n += held
                if held < asked:
                    break
            held_by_all[group] = min(held_by_all[group], n)
        state.next_save, state.save_at, state.waits = held_by_all, 0, False
        tokens = min(n * p.chunk_tokens for n, p in zip(held_by_all, self._plans))
        state.hit_tokens = tokens // self._align * self._align

    def get_num_new_matched_tokens(self, request, local):
        state = self._requests.get(request.request_id)
        if state is None:
            state = self.on_new_request(request)
        elif state.waits and self._polled and self._now < state.give_up_ns:
            return ASK_AGAIN  # many may wait, each in every step
        state.waits = False
        state.asked_local, state.load_tokens = local, 0
        if local and state.lora is not None and self._adapters.mixed(state.lora):
            state.no_save = True  # what it computes may stand on the KV of other weights
            return 0, False
        if state.no_load:
            return 0, False
        if not self._polled:
            self._polled = True
            self._now = time.monotonic_ns()
            self._poll()
        now = self._now
        preemptions = request.num_preemptions
        if preemptions != state.preemptions:  # asked again as new
            state.preemptions = preemptions
            state.no_save, state.save_at = not self._may_save, 0  # again from nothing
            state.hit_tokens, state.give_up_ns = None, 0
            self._drop_lookup(state)
        if state.hit_tokens is not None and state.lookup is not None and \
                now > state.lookup.lease_end_ns - LEASE_MARGIN_NS:
            state.hit_tokens, state.give_up_ns = None, 0  # it waited for long: ask once more
            self._drop_lookup(state)
        if state.hit_tokens is None:
            if state.give_up_ns == 0:
                state.give_up_ns = now + self._settings.lookup_timeout_ms * 1_000_000
            if state.lookup is None and self._ready():
                self._send_lookup(state, now)
            if state.hit_tokens is None:
                if now < state.give_up_ns:
                    state.waits = state.lookup is not None
                    return ASK_AGAIN
                self._late(state, now)
                return 0, False
        extra = min(state.hit_tokens, request.num_tokens) // self._align * self._align - local
        if extra <= 0 or extra < self._settings.min_load_tokens:
            return 0, False
        return extra, True

    def _late(self, state, now):
        """The agent did not answer in time. A few in a row, and it is left alone for a while."""
        state.hit_tokens = 0
        if state.lookup is None:
            return  # the workers did not describe their memory yet: the engine's first step
        self._drop_lookup(state)
        self.stats.add("lookup_timeouts")
        self._breaker.late(now)

    # ---- loads -----------------------------------------------------------------------------

    def update_state_after_alloc(self, request, blocks, num_external_tokens):
        state = self._requests.get(request.request_id)
        if state is None or num_external_tokens <= 0:
            return  # nothing, or another connector loads
        local = state.asked_local
        end = local + num_external_tokens
        ids = blocks.get_block_ids()
        transfers = []
        for plan in self._plans:
            transfer = self._load_of(plan, state, ids[plan.index], local, end)
            if transfer is not None:
                transfers.append(transfer)
        state.load_start, state.load_tokens = local, num_external_tokens
        state.no_load = True  # until it came: a failed load would be offered again for ever
        self._loading[request.request_id] = state
        self._loads.append((request.request_id, transfers))
        self.stats.add("queried_tokens", max(0, request.num_tokens - local))
        self.stats.add("hit_tokens", num_external_tokens)

    def _load_of(self, plan, state, ids, local, end):
        """Chunks of tokens [local, end) for which the engine has blocks. Blocks that hold local
        tokens, lie past the end or are the null block get no bytes."""
        per = plan.blocks_per_chunk
        first, last = local // plan.chunk_tokens, -(-end // plan.chunk_tokens)
        table = np.full(last * per, -1, np.int64)
        start, stop = local // plan.block_tokens, min(end // plan.block_tokens, len(ids))
        table[start:stop] = ids[start:stop]
        table[table == self._null] = -1
        table = table[first * per:]
        wanted = np.flatnonzero((table >= 0).reshape(-1, per).any(axis=1))
        if wanted.size == 0:
            return None
        skip = int(wanted[0])
        first += skip
        known = state.keys[plan.index]
        return Transfer(plan.index, b"".join(known[first:last]),
                        known[first - 1] if first else b"",
                        array("q", table[skip * per:].tobytes()))

    # ---- saves -----------------------------------------------------------------------------

    def build_connector_meta(self, scheduler_output):
        self._polled = False
        cached = scheduler_output.scheduled_cached_reqs
        # No request gets more: each of the others gets one at least.
        self._steady_tokens -= scheduler_output.total_num_scheduled_tokens - len(cached.req_ids) + 1
        # Mostly the same requests get a token each, and neither a block nor a chunk ends.
        if self._steady_tokens > 0 and cached.req_ids == self._steady and not (
                self._loads or scheduler_output.scheduled_new_reqs or cached.resumed_req_ids or
                any(cached.new_block_ids)):
            return NOTHING
        ready = self._ready()
        meta = Meta(self._hash_domain, self._loads, [])
        self._loads = []
        if self._may_save:
            self._steady, self._steady_tokens = cached.req_ids, NEVER
            self._add_saves(scheduler_output, meta, ready)
        return meta if meta.loads or meta.saves else NOTHING

    def _add_saves(self, scheduler_output, meta, ready):
        for data in scheduler_output.scheduled_new_reqs:
            state = self._requests.get(data.req_id)
            if state is not None:
                state.blocks = [list(ids) for ids in data.block_ids]
                if not self._others_load(state, data.num_computed_tokens):
                    self._computed(state, data.num_computed_tokens, data.req_id,
                                   scheduler_output, meta, ready)
        cached = scheduler_output.scheduled_cached_reqs
        resumed, scheduled = cached.resumed_req_ids, scheduler_output.num_scheduled_tokens
        requests, all_computed = self._requests, cached.num_computed_tokens
        for i, (req_id, new) in enumerate(zip(cached.req_ids, cached.new_block_ids)):
            state = requests.get(req_id)
            if state is None:
                continue
            computed = all_computed[i]
            if req_id in resumed:
                state.blocks = [list(ids) for ids in new] if new else None
                if self._others_load(state, computed):
                    self._steady = None
                    continue
            elif new and state.blocks is not None:
                for known, ids in zip(state.blocks, new):
                    known.extend(ids)
            end = computed + scheduled.get(req_id, 0)
            if end >= state.save_at:  # mostly not: a token a step
                self._computed(state, computed, req_id, scheduler_output, meta, ready)
            self._steady_tokens = min(self._steady_tokens, state.save_at - end)

    @staticmethod
    def _others_load(state, computed):
        """Whether a request starts with KV of another connector, which may load it in this step and
        fail: what is computed on top of that is not known to be good before the next."""
        return computed > state.asked_local + state.load_tokens

    def _computed(self, state, computed, req_id, scheduler_output, meta, ready):
        """Adds to meta the chunks that are complete when this step is over."""
        n = scheduler_output.num_scheduled_tokens.get(req_id, 0)
        if state.no_save:
            state.save_at = NEVER
        if n == 0 or state.blocks is None or state.no_save or not ready:
            return
        if state.lora is not None and not self._adapters.trusted(state.lora):
            state.no_save = True
            return
        request, end = state.request, computed + n
        if not self._settings.save_decode:
            end = min(end, request.num_prompt_tokens)
        transfers, pinned, save_at = [], [], NEVER
        room = self._n_pinned_max - self._n_pinned
        for plan, n_plans in zip(self._plans, range(len(self._plans), 0, -1)):
            group = plan.index
            first = state.next_save[group]
            if plan.window is not None:  # blocks of earlier steps may be somebody else's by now
                first = max(first, computed // plan.chunk_tokens)
            last = end // plan.chunk_tokens
            save_at = min(save_at, (first + 1) * plan.chunk_tokens)
            if last <= first:
                continue
            if last > len(state.keys[group]):
                self._extend_keys(state)
            per = plan.blocks_per_chunk
            # What finds no room now is taken up again with the next step.
            last = min(last, len(state.keys[group]), len(state.blocks[group]) // per,
                       first + (room - len(pinned)) // n_plans // per)
            if last <= first:
                continue
            ids = state.blocks[group][first * per:last * per]
            if self._null in ids:
                continue
            transfers.append(Transfer(
                group, b"".join(state.keys[group][first:last]),
                state.keys[group][first - 1] if first else b"", array("q", ids)))
            pinned.extend(ids)
            state.next_save[group] = last
        if not transfers:
            state.save_at = save_at
            return
        self._pool.touch([self._pool.blocks[b] for b in pinned])
        self._n_pinned += len(pinned)
        save_id, self._next_save_id = self._next_save_id, self._next_save_id + 1
        self._pins[save_id] = _Pin(pinned, self._n_workers, self._event_of(state, transfers),
                                   time.monotonic_ns())
        self.stats.add("save_chunks", sum(len(t.keys) // KEY_BYTES for t in transfers))
        meta.saves.append((save_id, transfers))

    def _event_of(self, state, transfers):
        if self.events is None:
            return None
        out = []
        for t in transfers:
            plan = self._plans[t.group]
            n = len(t.keys) // KEY_BYTES
            first = state.next_save[t.group] - n
            hashes = state.request.block_hashes[first * plan.hashes_per_chunk:
                                                (first + n) * plan.hashes_per_chunk]
            parent = (state.request.block_hashes[first * plan.hashes_per_chunk - 1]
                      if first else None)
            out.append((t.group, list(hashes), parent))
        return out

    # ---- what workers report ---------------------------------------------------------------

    def update_connector_output(self, output):
        told = output.kv_connector_worker_meta
        if told is not None:
            self._shards |= told.shards
            self._n_described += told.n_described
            for req_id, n_tokens in told.failed.items():
                self._load_failed(req_id, n_tokens)
            for save_id, n in told.saved.items():
                self._saved(save_id, n, told.stored.get(save_id, 0))
        for req_id in output.finished_recving or ():
            state = self._loading.pop(req_id, None)
            if state is None:
                continue
            self._drop_lookup(state)
            if req_id in self._aborted_loads:
                self._aborted_loads.discard(req_id)
                continue
            if state.load_tokens:
                self.stats.add("loaded_tokens", state.load_tokens)
            if not state.load_failed:  # after a preemption it may be loaded again
                state.no_load, state.hit_tokens, state.give_up_ns = False, None, 0

    def _load_failed(self, req_id, n_tokens):
        """Reported before or with finished_recving; by each worker that failed."""
        state = self._loading.get(req_id)
        if state is None:
            return
        good = min(n_tokens, state.load_tokens)
        if not state.load_failed:
            self.stats.add("failed_loads")
        self.stats.add("failed_load_tokens", state.load_tokens - good)
        state.load_failed, state.load_tokens = True, good
        valid, state.save_at = state.load_start + good, 0
        for plan in self._plans:  # what was not there is saved when it was computed
            state.next_save[plan.index] = min(state.next_save[plan.index],
                                              valid // plan.chunk_tokens)

    def _saved(self, save_id, n_workers, n_stored):
        pin = self._pins.get(save_id)
        if pin is None:
            return
        pin.n_left -= n_workers
        pin.n_stored += n_stored
        if pin.n_left > 0:
            return
        del self._pins[save_id]
        self._n_pinned -= len(pin.blocks)
        # The end of a prefix goes first.
        self._pool.free_blocks([self._pool.blocks[b] for b in reversed(pin.blocks)])
        if pin.events and pin.n_stored == self._n_workers:
            for group, hashes, parent in pin.events:
                self.events.append(compat.block_stored(
                    [compat.event_hash(h) for h in hashes],
                    compat.event_hash(parent) if parent is not None else None,
                    self._plans[group].hash_tokens, group))

    # ---- the rest --------------------------------------------------------------------------

    def request_finished(self, request):
        req_id = request.request_id
        state = self._requests.pop(req_id, None)
        if state is None:
            return
        if req_id in self._loading:
            self._aborted_loads.add(req_id)  # leases stay until the workers are done
        else:
            self._drop_lookup(state)
        if not state.no_save and state.blocks is not None:
            for plan, known, n in zip(self._plans, state.keys, state.next_save):
                if plan.window is None and len(known) > n:
                    self.stats.add("dropped_chunks", max(0, min(
                        len(known), request.num_computed_tokens // plan.chunk_tokens) - n))

    def has_pending_work(self):
        return bool(self._pins)

    def has_pending_block_frees(self):
        """Blocks that nobody but a save holds are worth a short wait instead of a preemption."""
        blocks, newest = self._pool.blocks, time.monotonic_ns() - PIN_WAIT_NS
        return any(pin.since_ns > newest and any(blocks[b].ref_cnt == 1 for b in pin.blocks)
                   for pin in self._pins.values())

    def take_events(self):
        taken, self.events = self.events, []
        return taken

    def reset(self):
        """Nothing stored before is found again, by this engine: it stores and looks up under other
        keys from here on. What is under the old ones ages out; other engines keep it."""
        self._epoch = secrets.token_bytes(16)
        for state in self._requests.values():
            state.keys = [[] for _ in self._plans]
            state.next_save = [0] * len(self._plans)
            state.hit_tokens, state.give_up_ns = None, 0
            state.no_save = True  # it holds KV from before
            if state.request.request_id not in self._loading:
                self._drop_lookup(state)
        # Blocks in use mean that the engine's own cache could not be reset: not all is forgotten.
        return self._pool is None or \
            self._pool.get_num_free_blocks() == self._pool.num_gpu_blocks - 1

    def shutdown(self):
        self._port.close()
