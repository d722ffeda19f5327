# SPDX-License-Identifier: Apache-2.0
"""KVTier as the storage tier of SGLang's hierarchical cache; see docs/engines.md.

    --enable-hierarchical-cache --hicache-storage-backend dynamic
    --hicache-storage-backend-extra-config '{"backend_name": "kvtier",
        "module_path": "kvtier.sglang", "class_name": "KVTierStorage", "interface_v1": 1}'

A chunk is one page of SGLang's host pool, copied between the pool and the agent's memory by
libkvtier. Its key is SGLang's own hash of the page, which covers all tokens before, the adapter and
the cache salt. Everything else that must be equal (model, weights, ranks, type, order of the
bytes) is in the namespace.

SGLang calls from threads that an exception would end for the life of the server, so no data call
raises: what goes wrong is a miss, and a line in the log.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import logging
import os
import secrets
import time
from typing import Any, Callable, Sequence

import sglang
import torch
from sglang.srt.mem_cache import utils as sglang_utils
from sglang.srt.mem_cache.hicache_storage import HiCacheStorage

from sglang.srt.observability.metrics_collector import StorageMetrics

from . import BATCH_MAX, KEY_BYTES, Client, Layouts, Namespace, Op, Status
from .identity import adapter_digest, file_digest, local_folder, model_revision, short

log = logging.getLogger("kvtier.sglang")

_PREFIX = "kvtier_"
_SEGMENTS_MAX = 384
_LOG_S = 10  # what goes wrong in every call is said so often
_CLEAR_S = 60
_WRITES = ("begin_weight_update", "update_weights_from_disk", "update_weights_from_tensor",
           "update_weights_from_ipc", "load_weights_from_distributed")
_STATS_MAX = 1024  # batches kept for SGLang's metrics, which take them every few seconds


@dataclasses.dataclass(frozen=True)
class Settings:
    """Keys of the extra config, each with kvtier_ before it. docs/engines.md has the same table."""
    socket: str = ""              # "": $KVTIER_SOCKET, else the agent's default
    model: str = ""               # "": SGLang's model name
    revision: str = ""            # "": made from weights and server arguments
    tenant: str = ""              # part of the namespace: servers of other tenants share nothing
    load_timeout_ms: int = 2000   # then the pages that have not come are computed
    store_timeout_ms: int = 1000  # how long a store may wait for room
    copy_threads: int = 1

    @classmethod
    def read(cls, extra: dict[str, Any] | None) -> Settings:
        """Raises ValueError that names every mistake at once."""
        known = {field.name: type(field.default) for field in dataclasses.fields(cls)}
        wrong: list[str] = []
        values: dict[str, Any] = {}
        for key, value in (extra or {}).items():
            if not key.startswith(_PREFIX):
                continue  # SGLang's own
            name = key[len(_PREFIX):]
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                wrong.append(f"{key}: no such setting" + (f", {_PREFIX}{near[0]}?" if near else ""))
            elif type(value) is not known[name]:
                wrong.append(f"{key}: {value!r} is not of type {known[name].__name__}")
            elif isinstance(value, int) and value < 1:
                wrong.append(f"{key}: must be at least 1")
            else:
                values[name] = value
        if wrong:
            raise ValueError("hicache-storage-backend-extra-config: " + "; ".join(wrong))
        return cls(**values)


def _fallback(answer: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a call that never raises: answer() of its arguments in the place of an exception."""
    def decorate(call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def guarded(self: KVTierStorage, first: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return call(self, first, *args, **kwargs)
            except Exception as err:
                self._complain(f"{call.__name__}: {type(err).__name__}: {err}")
                return answer(first)
        return guarded
    return decorate


def _all_false(keys: Any) -> list[bool]:
    return [False] * len(keys)


def _key(name: str) -> bytes:
    """SGLang's keys are SHA-256 as hex; any other text gets a hash of its own."""
    if len(name) == 2 * KEY_BYTES:
        try:
            return bytes.fromhex(name)
        except ValueError:
            pass
    return hashlib.sha256(b"kvtier sglang key 1\0" + name.encode()).digest()


def _statuses(done: Op) -> list[int]:
    return [] if done.statuses is None else done.statuses.tolist()


def _revision() -> str:
    """Of this server's weights, and of what else changes the KV that they make."""
    from sglang.srt.runtime_context import get_server_args
    args = get_server_args()
    names = ("dtype", "quantization", "modelopt_quant", "rl_quant_profile", "kv_cache_dtype",
             "load_format", "json_model_override_args", "attention_backend",
             "prefill_attention_backend", "model_impl")
    facts: dict[str, Any] = {name: str(getattr(args, name, None)) for name in names}
    scales = getattr(args, "quantization_param_path", None)  # of KV in 8 bits
    facts["scales"] = file_digest(scales).hex() if scales else ""
    # SGLang's keys know an adapter of its arguments by name and path, whatever is in its files
    # today. One that is loaded later gets a random number, and its pages are found by nobody else.
    facts["lora"] = {
        f"{ref.lora_name} {ref.lora_path}":
            (adapter_digest(local_folder(ref.lora_path)) or b"").hex()
        for ref in getattr(args, "lora_paths", None) or []}
    config = {}
    model = local_folder(str(args.model_path), getattr(args, "revision", None))
    file = os.path.join(model, "config.json")
    if os.path.exists(file):
        with open(file, encoding="utf-8") as text:
            config = json.load(text)
    return model_revision(model, str(getattr(args, "revision", "") or ""), config, facts)


class _Weights:
    """Counts what writes to the weights of this process's model after it was loaded. SGLang tells
    storage backends nothing of that."""
    n_writes = 0
    watched = False

    @classmethod
    def watch(cls) -> None:
        if cls.watched:
            return
        try:
            from sglang.srt.model_executor.model_runner_components.weight_updater import \
                WeightUpdater
            calls = [(name, getattr(WeightUpdater, name)) for name in _WRITES]
        except (ImportError, AttributeError) as err:
            log.warning("KVTier: this SGLang does not show when weights are updated in a running "
                        "server (%s); restart the server instead", err)
            return
        cls.watched = True
        for name, call in calls:
            setattr(WeightUpdater, name, cls._counted(call))

    @classmethod
    def _counted(cls, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def counted(*args: Any, **kwargs: Any) -> Any:
            cls.n_writes += 1  # before the first byte changes
            return call(*args, **kwargs)
        return counted


class KVTierStorage(HiCacheStorage):
    """Built by SGLang as cls(storage_config, kwargs). A wrong setting or a pool that is not
    understood raises ValueError at the start of the server; no data call raises afterwards."""

    def __init__(self, storage_config: Any, kwargs: dict[str, Any] | None = None) -> None:
        extra = getattr(storage_config, "extra_config", None) or {}
        self._settings = Settings.read(extra)
        if not hasattr(sglang_utils, "storage_namespace_seed"):
            raise ValueError(
                "kvtier.sglang: the keys of this SGLang know neither adapter nor cache salt, so "
                "requests of different tenants would share KV; use 0.5.23 or later")
        if getattr(storage_config, "dcp_size", 1) > 1:
            raise ValueError("kvtier.sglang: decode context parallelism is not supported; run "
                             "without it or without this backend")
        self._config = storage_config
        self._zero_copy = bool(extra.get("interface_v1"))
        if not self._zero_copy:
            log.warning("KVTier: without \"interface_v1\": 1 in the extra config every page is "
                        "copied twice more")
        self._said_s: float = -_LOG_S
        self._n_unsaid = 0
        self._pool: Any = None
        self._handle = -1
        _Weights.watch()
        self._n_writes = _Weights.n_writes
        #: part of each key; empty: the weights are those of the server's start
        self._epoch = secrets.token_bytes(16) if self._n_writes else b""
        #: pages: found by lookups, loaded and stored, and those that were asked for and did not
        #: come (missing, late, agent away)
        self.counts = {"hit": 0, "loaded": 0, "unloaded": 0, "stored": 0, "unstored": 0}
        self._stats = StorageMetrics() if getattr(storage_config, "enable_storage_metrics",
                                                  False) else None
        self._client = Client(self._settings.socket or None, name="sglang",
                              n_copy_threads=self._settings.copy_threads)

    def _complain(self, what: str) -> None:
        now = time.monotonic()
        if now - self._said_s < _LOG_S:
            self._n_unsaid += 1
            return
        more = f" ({self._n_unsaid} more since the last such line)" if self._n_unsaid else ""
        self._said_s, self._n_unsaid = now, 0
        log.error("KVTier: %s%s", what, more)

    # ---- what the pages are ----------------------------------------------------------------

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        """Reads the pool's layout and derives the namespace. Raises ValueError."""
        super().register_mem_pool_host(mem_pool_host)
        self._follow(mem_pool_host)
        pool, page = mem_pool_host, mem_pool_host.page_size
        try:
            addresses, sizes = pool.get_page_buffer_meta(torch.arange(2 * page))
        except (NotImplementedError, ValueError, AttributeError) as err:
            raise ValueError(
                f"kvtier.sglang: host pool {type(pool).__name__} with layout {pool.layout!r} does "
                f"not name its pages ({err}); choose another --hicache-mem-layout") from err
        half = len(sizes) // 2
        if not sizes or len(addresses) != len(sizes) or sizes[:half] != sizes[half:]:
            raise ValueError(f"kvtier.sglang: pages of {type(pool).__name__} differ in size; "
                             "this pool is not supported")
        self._pool, self._sizes = pool, tuple(int(size) for size in sizes[:half])
        descriptor = self._descriptor = self._describe(pool)
        self._handle = self._client.namespace(descriptor)
        log.info("KVTier: %d bytes per page of %d tokens, layout %s, model %s %s",
                 descriptor.chunk_bytes, page, descriptor.layout, descriptor.model,
                 descriptor.revision)

    def register_mem_host_pool_v2(self, host_pool: Any, host_pool_name: Any) -> None:
        """Models with several kinds of state need all of them or none. Raises ValueError."""
        if str(host_pool_name) != "kv":
            raise ValueError(f"kvtier.sglang: pool {host_pool_name} of a hybrid model or a draft "
                             "model is not supported; run this model without the backend")
        super().register_mem_host_pool_v2(host_pool, host_pool_name)

    def _follow(self, pool: Any) -> None:
        """SGLang clears the pool when it drops all KV that it has."""
        clear = pool.clear

        @functools.wraps(clear)
        def cleared() -> None:
            clear()
            if self._n_writes != _Weights.n_writes:
                self._epoch, self._n_writes = secrets.token_bytes(16), _Weights.n_writes
                log.info("KVTier: the weights were updated; from here on this server shares pages "
                         "with no other, and finds none from before")
        pool.clear = cleared

    def _key(self, name: str) -> bytes:
        key = _key(name)
        if not self._epoch:
            return key
        return hashlib.sha256(b"kvtier sglang epoch 1\0" + self._epoch + key).digest()

    def _keys(self, names: Sequence[str]) -> bytes:
        """Raises RuntimeError while KV of other weights may be anywhere."""
        if self._n_writes != _Weights.n_writes:
            raise RuntimeError("the weights were updated and SGLang's cache was not flushed since; "
                               "nothing is loaded or stored until it is (POST /flush_cache)")
        return b"".join(map(self._key, names))

    def _describe(self, pool: Any) -> Namespace:
        config, settings = self._config, self._settings
        # Every rank of a model whose KV is the same on all of them may use what one stored.
        replicated = getattr(config, "is_rank_replicated", config.is_mla_model)
        chunk_bytes = sum(self._sizes)
        n_layers = int(getattr(pool, "layer_num", 0))
        wanted = min(max(n_layers, 1), _SEGMENTS_MAX)
        shape = ("layer_num", "head_num", "head_dim", "v_head_dim", "kv_lora_rank",
                 "qk_rope_head_dim", "start_layer", "end_layer")
        # What a pool calls page_first in one release may be something else in the next.
        facts = [sglang.__version__, type(pool).__name__, pool.layout, str(pool.dtype),
                 self._sizes, self._zero_copy, *(getattr(pool, name, None) for name in shape),
                 getattr(config, "attn_cp_rank", 0), getattr(config, "attn_cp_size", 1)]
        digest = hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()
        try:
            revision = settings.revision or _revision()
        except Exception as err:
            raise ValueError(f"kvtier.sglang: nothing is known of the weights ({type(err).__name__}"
                             f": {err}); name them with kvtier_revision") from err
        return Namespace(
            model=short(settings.model or config.model_name or "", 127),
            revision=short(revision, 63), layout=f"sglang1/{pool.layout}/{digest[:24]}",
            salt=short(settings.tenant, 63), hash_algo="sglang-sha256",
            dtype=str(pool.dtype).removeprefix("torch.")[:15], n_layers=n_layers,
            n_kv_heads=int(getattr(pool, "head_num", 0) or 0),
            head_dim=int(getattr(pool, "head_dim", 0) or 0), tokens_per_chunk=pool.page_size,
            tp_rank=0 if replicated else config.tp_rank,
            tp_size=1 if replicated else config.tp_size, pp_rank=config.pp_rank,
            pp_size=config.pp_size, chunk_bytes=chunk_bytes,
            n_segments=next(n for n in range(wanted, 0, -1) if chunk_bytes % n == 0))

    def _memory(self, host_indices: Any, n: int) -> Layouts:
        addresses, sizes = self._pool.get_page_buffer_meta(host_indices)
        if tuple(sizes[:len(self._sizes)]) != self._sizes or len(sizes) != n * len(self._sizes):
            raise ValueError(f"{n} keys, but {len(sizes)} pieces of memory of {len(self._sizes)} "
                             "each")
        return Layouts.of_extents(addresses, sizes, n, keep=self._pool)

    # ---- transfers -------------------------------------------------------------------------

    def _measure(self, kind: str, n_pages: int, began_s: float) -> None:
        """One batch for SGLang's histograms; kind: prefetch or backup."""
        stats = self._stats
        if stats is None or n_pages == 0:
            return
        pages = getattr(stats, kind + "_pgs")
        if len(pages) < _STATS_MAX:
            pages.append(n_pages)
            getattr(stats, kind + "_bandwidth").append(
                n_pages * sum(self._sizes) / (time.monotonic() - began_s) / (1 << 30))

    def get_stats(self) -> StorageMetrics | None:
        """What came and went since the last call; None without SGLang's storage metrics."""
        if self._stats is None:
            return None
        done, self._stats = self._stats, StorageMetrics()
        return done

    def _load(self, names: Sequence[str], memory: Layouts) -> list[bool]:
        began_s = time.monotonic()
        done = self._client.load(self._handle, self._keys(names), memory,
                                 timeout=self._settings.load_timeout_ms / 1000)
        self.counts["loaded"] += done.n_ok
        self.counts["unloaded"] += len(names) - done.n_ok
        self._measure("prefetch", done.n_ok, began_s)
        return [status == Status.OK for status in _statuses(done)]

    def _store(self, names: Sequence[str], memory: Layouts, extra_info: Any) -> list[bool]:
        before = getattr(extra_info, "prefix_keys", None)
        began_s = time.monotonic()
        done = self._client.store(self._handle, self._keys(names), memory,
                                  parent=self._key(before[-1]) if before else None,
                                  timeout=self._settings.store_timeout_ms / 1000)
        self.counts["stored"] += done.n_ok
        self.counts["unstored"] += len(names) - done.n_ok
        self._measure("backup", _statuses(done).count(Status.OK), began_s)  # others: held before
        return [status in (Status.OK, Status.EXISTS) for status in _statuses(done)]

    @_fallback(_all_false)
    def batch_get_v1(self, keys: Sequence[str], host_indices: Any,
                     extra_info: Any = None) -> list[bool]:
        """Loads pages into the pool. False: not loaded, and the page's memory is undefined."""
        if len(keys) == 0:
            return []
        return self._load(keys, self._memory(host_indices, len(keys)))

    @_fallback(_all_false)
    def batch_set_v1(self, keys: Sequence[str], host_indices: Any,
                     extra_info: Any = None) -> list[bool]:
        """Stores pages of the pool. True: held, whoever stored it."""
        if len(keys) == 0:
            return []
        return self._store(keys, self._memory(host_indices, len(keys)), extra_info)

    @_fallback(lambda keys: 0)
    def batch_exists(self, keys: Sequence[str], extra_info: Any = None) -> int:
        """Pages held without a gap from the first."""
        n_held = 0
        for start in range(0, len(keys), BATCH_MAX):
            part = keys[start:start + BATCH_MAX]
            n = self._client.lookup(self._handle, self._keys(part)).n_ok
            n_held += n
            if n < len(part):
                break
        self.counts["hit"] += n_held
        return n_held

    @_fallback(lambda key: False)
    def exists(self, key: str) -> bool:
        return self.batch_exists([key]) == 1

    # ---- the interface without zero copy: flat pages, which SGLang copies --------------------

    @_fallback(lambda keys: [None] * len(keys))
    def batch_get(self, keys: Sequence[str], target_locations: Any = None,
                  target_sizes: Any = None) -> list[Any]:
        """The target for each page that was loaded into it, else None."""
        if len(keys) == 0:
            return []
        loaded = self._load(keys, Layouts.of_buffers(target_locations))
        return [target if ok else None for ok, target in zip(loaded, target_locations)]

    @_fallback(lambda key: None)
    def get(self, key: str, target_location: Any = None, target_sizes: Any = None) -> Any:
        return self.batch_get([key], [target_location])[0]

    @_fallback(lambda keys: False)
    def batch_set(self, keys: Sequence[str], values: Any = None, target_locations: Any = None,
                  target_sizes: Any = None) -> bool:
        return len(keys) == 0 or all(self._store(keys, Layouts.of_buffers(values), None))

    @_fallback(lambda key: False)
    def set(self, key: str, value: Any = None, target_location: Any = None,
            target_sizes: Any = None) -> bool:
        return self.batch_set([key], [value])

    def clear(self) -> None:
        """Deletes this rank's pages, but for those that somebody pinned. For SGLang's HTTP request
        to clear the storage: raises what went wrong, and SGLang answers that it failed."""
        from .control import Control, default_path
        wanted = dataclasses.asdict(self._descriptor)
        with Control(default_path(self._settings.socket or None)) as agent:
            for space in agent.namespaces():
                if all(getattr(space, name) == value for name, value in wanted.items()):
                    agent.wait_job(agent.clear(namespace_id=space.id), _CLEAR_S)

    def close(self) -> None:
        """Ends the session; calls answer misses from now on."""
        if self._pool is not None:
            vars(self._pool).pop("clear", None)
        self._client.close()
