# SPDX-License-Identifier: Apache-2.0
"""The control API of an agent: see into the node, steer it. Needs `pip install kvtier[control]`.

Messages are those of proto/kvtier/v1/control.proto, whose comments say what every field means.
They are built from the descriptor that the package ships, by whatever protobuf release is
installed: generated code would tie the package to the one that generated it.
"""

from __future__ import annotations

import importlib.resources
import math
import os
from typing import Any, Iterator, Sequence

try:
    import grpc
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    from google.protobuf.message import Message
except ImportError as err:
    raise ImportError(f"kvtier.control: {err}; pip install 'connector/python[control]' has what it "
                      "needs") from err

from .errors import (AgainError, AgentTimeoutError, InvalidError, KVTierError, NoMemoryError,
                     NotFoundError, UnreachableError)

_SERVICE = "kvtier.v1.Control"
_SOCKET = "/run/kvtier/kvtierd.sock"

_ERRORS = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.FAILED_PRECONDITION: InvalidError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: NoMemoryError,
    grpc.StatusCode.ABORTED: AgainError,
    grpc.StatusCode.UNAVAILABLE: UnreachableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: AgentTimeoutError,
}


def _load() -> tuple[Any, dict[str, type[Message]]]:
    data = importlib.resources.files(__package__).joinpath("control.pb")
    try:
        raw = data.read_bytes()
    except FileNotFoundError as err:
        raise ImportError("kvtier.control: control.pb is missing; it is made when the package is "
                          "installed: pip install connector/python[control]") from err
    pool = descriptor_pool.DescriptorPool()
    names = []
    for file in descriptor_pb2.FileDescriptorSet.FromString(raw).file:
        pool.Add(file)
        names += [f"{file.package}.{message.name}" for message in file.message_type]
    classes = {name.rpartition(".")[2]:
               message_factory.GetMessageClass(pool.FindMessageTypeByName(name)) for name in names}
    return pool.FindServiceByName(_SERVICE), classes


_service, messages = _load()
"""messages: class by name, such as messages["ChunkFilter"]."""


def default_path(session: str | os.PathLike[str] | None = None) -> str:
    """$KVTIER_CONTROL, else the control socket beside the session socket. session: its path;
    None: $KVTIER_SOCKET, else the agent's default."""
    named = os.environ.get("KVTIER_CONTROL")
    if named:
        return named
    session = session or os.environ.get("KVTIER_SOCKET") or _SOCKET
    return os.fspath(session).removesuffix(".sock") + ".control.sock"


def _enum(name: str, value: int | str) -> int:
    """Number of an enum's value, given by name with or without its prefix, or as it is."""
    if isinstance(value, int):
        return value
    values = _service.file.enum_types_by_name[name].values_by_name
    prefix = {"Tier": "TIER_", "LogLevel": "LOG_LEVEL_"}[name]
    for candidate in (value.upper(), prefix + value.upper()):
        if candidate in values:
            return values[candidate].number
    names = [v.name.removeprefix(prefix).lower() for v in values.values() if v.number != 0]
    raise InvalidError(f"{name}: no value {value!r}; there are {', '.join(names)}")


class Control:
    """A connection to an agent's control socket. Threads may share it. Calls raise what
    `kvtier.errors` has: NotFoundError, InvalidError, UnreachableError, AgentTimeoutError, ..., with
    the agent's own words: object, cause, next step."""

    def __init__(self, path: str | os.PathLike[str] | None = None, *, timeout: float = 10) -> None:
        """path: of the control socket; None: default_path(). timeout: seconds for each call but
        watch_job()."""
        self._path = os.path.abspath(os.fspath(path) if path is not None else default_path())
        self._timeout = timeout
        self._channel = grpc.insecure_channel("unix:" + self._path)
        self._calls = {}
        for method in _service.methods:
            make = self._channel.unary_stream if method.server_streaming \
                else self._channel.unary_unary
            self._calls[method.name] = make(
                f"/{_SERVICE}/{method.name}", request_serializer=lambda m: m.SerializeToString(),
                response_deserializer=messages[method.output_type.name].FromString)

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection, and calls of other threads with it."""
        self._channel.close()

    def _raise(self, err: grpc.RpcError, what: str) -> None:
        code, text = err.code(), err.details()
        if code == grpc.StatusCode.UNAVAILABLE and "connect" in (text or "").lower():
            text = f"{self._path}: {text}; is kvtierd running, with control.path set?"
        raise _ERRORS.get(code, KVTierError)(f"{what}: {text}") from err

    def call(self, method: str, **fields: Any) -> Any:
        """Any method of the service by its name; fields as the request's constructor takes them."""
        if method not in self._calls:
            raise InvalidError(f"{method}: no such method; there are {', '.join(self._calls)}")
        try:
            request = messages[_service.methods_by_name[method].input_type.name](**fields)
        except ValueError as err:
            raise InvalidError(f"{method}: {err}") from err
        try:
            return self._calls[method](request, timeout=self._timeout)
        except grpc.RpcError as err:
            self._raise(err, method)
            raise AssertionError from err  # _raise() raises

    def _list(self, method: str, field: str, **fields: Any) -> Iterator[Any]:
        """All pages of a listing."""
        token = ""
        while True:
            page = self.call(method, page_token=token, **fields)
            yield from getattr(page, field)
            token = page.next_page_token
            if not token:
                return

    # ---- see -------------------------------------------------------------------------------

    def node(self) -> Any:
        """The agent itself: version, state, uptime, sockets, incarnation (a `Node`)."""
        return self.call("GetNode")

    def tiers(self) -> Sequence[Any]:
        """Host memory and, if there is one, NVMe: capacity, use, policy (`TierInfo`)."""
        return self.call("ListTiers").tiers

    def namespaces(self) -> Iterator[Any]:
        """What chunks are of, and how much is held of each (`Namespace`)."""
        return self._list("ListNamespaces", "namespaces")

    def sessions(self) -> Iterator[Any]:
        """Connected clients (`Session`)."""
        return self._list("ListSessions", "sessions")

    def leases(self) -> Iterator[Any]:
        """What lookups keep from being evicted for now (`Lease`)."""
        return self._list("ListLeases", "leases")

    def pins(self, owner: str = "") -> Iterator[Any]:
        """What pin() keeps (`PinInfo`). owner: whose; empty: of all."""
        return self._list("ListPins", "pins", owner=owner)

    def chunks(self, **chunk_filter: Any) -> Iterator[Any]:
        """Chunks that a ChunkFilter of these fields takes."""
        return self._list("ListChunks", "chunks", filter=_filter(chunk_filter))

    def chunk(self, key: bytes, namespace_id: bytes = b"") -> Any:
        """One chunk (`Chunk`), of the first namespace that holds the key if none is named."""
        return self.call("GetChunk", key=key, namespace_id=namespace_id)

    def stats(self) -> dict[str, int]:
        """Counters and gauges by name, all of one moment."""
        return {stat.name: stat.value for stat in self.call("GetStats").stats}

    def config(self) -> dict[str, Any]:
        """Option by key: value, source, reloadable."""
        return {option.key: option for option in self.call("GetConfig").options}

    def lookup(self, namespace_id: bytes, keys: Sequence[bytes] = (), *,
               tokens: Sequence[int] = (), parent_key: bytes = b"") -> Any:
        """How much of a prompt is held, and where; by keys or by tokens."""
        return self.call("Lookup", chain=_chain(namespace_id, keys, tokens, parent_key))

    # ---- steer -----------------------------------------------------------------------------

    def pin(self, namespace_id: bytes, keys: Sequence[bytes] = (), *, owner: str,
            tokens: Sequence[int] = (), parent_key: bytes = b"", ttl: float = 0) -> Any:
        """Keep a prefix (`PinResponse`). ttl: seconds; 0: until unpin() or the agent's end."""
        return self.call("Pin", chain=_chain(namespace_id, keys, tokens, parent_key), owner=owner,
                         ttl_ms=math.ceil(ttl * 1000))

    def unpin(self, *, pin_id: int | None = None, owner: str | None = None) -> int:
        """End one pin, or all of an owner. @return how many ended."""
        if (pin_id is None) == (owner is None):
            raise InvalidError("unpin: wanted either pin_id or owner")
        by = {"id": pin_id} if pin_id is not None else {"owner": owner}
        return self.call("Unpin", **by).n_unpinned

    def prefetch(self, namespace_id: bytes, keys: Sequence[bytes] = (), *,
                 tokens: Sequence[int] = (), parent_key: bytes = b"",
                 subtree: bool = False) -> Any:
        """Starts a job, as do the following: see wait_job()."""
        return self.call("Prefetch", selection={
            "chain": _chain(namespace_id, keys, tokens, parent_key), "subtree": subtree})

    def demote(self, namespace_id: bytes, keys: Sequence[bytes] = (), *,
               tokens: Sequence[int] = (), parent_key: bytes = b"", subtree: bool = False,
               dry_run: bool = False, force: bool = False) -> Any:
        """Frees host memory of chunks, after they are on NVMe. force: also what pins hold."""
        return self.call("Demote", dry_run=dry_run, force=force, selection={
            "chain": _chain(namespace_id, keys, tokens, parent_key), "subtree": subtree})

    def delete(self, namespace_id: bytes, keys: Sequence[bytes] = (), *,
               tokens: Sequence[int] = (), parent_key: bytes = b"", subtree: bool = False,
               tiers: Sequence[int | str] = (), dry_run: bool = False,
               force: bool = False) -> Any:
        """Deletes chunks. subtree: and what is behind them; tiers: their copies there alone."""
        return self.call("Delete", tiers=[_enum("Tier", tier) for tier in tiers], dry_run=dry_run,
                         force=force, selection={
                             "chain": _chain(namespace_id, keys, tokens, parent_key),
                             "subtree": subtree})

    def clear(self, *, all_namespaces: bool = False, tiers: Sequence[int | str] = (),
              dry_run: bool = False, force: bool = False, **chunk_filter: Any) -> Any:
        """What a ChunkFilter of these fields takes; with all_namespaces without a namespace."""
        return self.call("Clear", filter=_filter(chunk_filter), all_namespaces=all_namespaces,
                         tiers=[_enum("Tier", tier) for tier in tiers], dry_run=dry_run,
                         force=force)

    def verify(self, **chunk_filter: Any) -> Any:
        """Reads what is on NVMe, or what a ChunkFilter of these fields takes of it."""
        selection = {"selection": {"filter": _filter(chunk_filter)}} if chunk_filter else {}
        return self.call("Verify", **selection)

    # ---- jobs ------------------------------------------------------------------------------

    def jobs(self) -> Iterator[Any]:
        """Open jobs, and those that ended last (`Job`)."""
        return self._list("ListJobs", "jobs")

    def job(self, job_id: int) -> Any:
        """One job as it is now (`Job`)."""
        return self.call("GetJob", id=job_id)

    def cancel_job(self, job_id: int) -> Any:
        """Stops a job; what it has done stays done. @return the job."""
        return self.call("CancelJob", id=job_id)

    def watch_job(self, job_id: int, *, interval: float = 0.2,
                  timeout: float | None = None) -> Iterator[Any]:
        """The job as it goes on; the last one is how it ended. timeout: seconds for all of it."""
        request = messages["WatchJobRequest"](id=job_id, interval_ms=int(interval * 1000))
        try:
            yield from self._calls["WatchJob"](request, timeout=timeout)
        except grpc.RpcError as err:
            self._raise(err, "WatchJob")

    def wait_job(self, job: Any, timeout: float | None = None) -> Any:
        """The job as it ended. Raises AgentTimeoutError after timeout seconds."""
        for step in self.watch_job(job.id, timeout=timeout):
            job = step
        return job

    def set_log_level(self, level: int | str) -> int:
        """level: error, warn, info, debug or trace. @return the level before."""
        return self.call("SetLogLevel", level=_enum("LogLevel", level)).previous


def _filter(fields: dict[str, Any]) -> dict[str, Any]:
    if "tiers" in fields:
        fields["tiers"] = [_enum("Tier", tier) for tier in fields["tiers"]]
    return fields


def _chain(namespace_id: bytes, keys: Sequence[bytes], tokens: Sequence[int],
           parent_key: bytes) -> dict[str, Any]:
    if tokens:
        if keys:
            raise InvalidError("chain: wanted keys or tokens, not both")
        return {"namespace_id": namespace_id, "tokens": {"ids": tokens, "parent_key": parent_key}}
    return {"namespace_id": namespace_id, "keys": list(keys)}
