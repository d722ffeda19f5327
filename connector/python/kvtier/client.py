# SPDX-License-Identifier: Apache-2.0
"""A session with the node's agent.

Two ways to use it, which may be mixed:

* `submit_*()` start an op and return at once; `poll()` or `wait()` hand it back when it is over,
  and `fileno()` tells an event loop when to poll.
* `lookup()`, `store()`, `load()`, `prefetch()` do both and wait, without the GIL.

Ops hold what they were given (buffers, tensors, status arrays) until they are over, so the memory
of an op that nobody waits for any more stays valid until the library has let go of it.
"""

from __future__ import annotations

import ctypes
import os
import select
import sys
import threading
import time
import warnings
import weakref
from collections import deque
from typing import Any, Callable, Sequence, Union

import numpy as np

from . import _lib
from ._lib import BATCH_MAX, KEY_BYTES, lib
from .errors import ClosedError, InvalidError, Status, UnreachableError, error_of, status_of
from .layouts import Layouts, Memory, address_of, layouts_of
from .namespace import Namespace

#: Keys: n * 32 bytes in one buffer, or a sequence of 32-byte keys.
Keys = Union[bytes, bytearray, memoryview, np.ndarray, Sequence[bytes]]

_COMPLETIONS = 256
_ENTRY = _lib.COMPLETION.size
_SIGNAL_S = 1.0  # Python handles a signal (Ctrl-C) between two waits, not in one
_TRANSFERS = {"store": (lib.kvt_store, lib.kvt_store_cuda),
              "load": (lib.kvt_load, lib.kvt_load_cuda)}
_OK, _UNREACH = int(Status.OK), int(Status.UNREACH)
_UNREACH_BYTES = _UNREACH.to_bytes(4, sys.byteorder, signed=True)


class Op:
    """One asynchronous batch. Written by the client, read by the caller.

    status: None while open, then of the op as a whole. 0: it ran its course, and each item has its
    own status; else why it ended (`Status`), and a lookup found nothing.
    """

    __slots__ = ("id", "kind", "context", "status", "n_items", "n_ok", "n_prefix", "lease",
                 "lease_deadline_ns", "where", "_statuses", "_keep", "_queued")

    id: int
    kind: str                      # lookup, store, load or prefetch
    context: Any                   # the caller's
    status: int | None
    n_items: int
    n_ok: int                      # lookup: length of the prefix held; else items that are OK
    n_prefix: int                  # items that are OK without a gap from the first
    lease: int                     # lookup: for release(); 0: none
    lease_deadline_ns: int         # CLOCK_MONOTONIC (time.monotonic_ns())
    where: np.ndarray | None       # lookup with where=True: uint8 per key, the tier that has it

    def __init__(self, kind: str, context: Any, keep: Any, queued: bool) -> None:
        self.kind, self.context, self._keep, self._queued = kind, context, keep, queued
        self.status = self._statuses = self.where = None
        self.id = self.n_items = self.n_ok = self.n_prefix = 0
        self.lease = self.lease_deadline_ns = 0

    @property
    def statuses(self) -> np.ndarray | None:
        """int32 per item, valid when done; None for a lookup. An array only once it is wanted."""
        raw = self._statuses
        return np.frombuffer(raw, np.int32) if isinstance(raw, bytearray) else raw

    @property
    def done(self) -> bool:
        """Whether it is over, and status and what follows are valid."""
        return self.status is not None

    def __repr__(self) -> str:
        state = "open" if self.status is None else status_of(self.status).name
        return f"<Op {self.kind} {state}: {self.n_ok} of {self.n_items}>"


def _keys(keys: Any, parent: bytes | None) -> tuple[Any, int, Any]:
    """(what ctypes takes as pointer, number of keys, what owns the memory)"""
    if isinstance(keys, (list, tuple)):
        for key in keys:
            if len(key) != KEY_BYTES:
                raise InvalidError(f"keys: one of {len(key)} bytes; a key has {KEY_BYTES}")
        keys = b"".join(keys)
    if parent is not None:
        if len(parent) != KEY_BYTES:
            raise InvalidError(f"parent: {len(parent)} bytes; a key has {KEY_BYTES}")
        keys = bytes(parent) + bytes(keys)
    pointer: bytes | int
    if isinstance(keys, bytes):
        pointer, n_bytes = keys, len(keys)
    else:
        try:
            keys = np.frombuffer(keys, np.uint8)
        except (TypeError, ValueError, BufferError) as err:
            raise InvalidError(f"keys: {err}; wanted a contiguous buffer or 32-byte keys") from err
        pointer, n_bytes = address_of(keys), keys.size
    n, rest = divmod(n_bytes, KEY_BYTES)
    if rest or not 0 < n <= BATCH_MAX:
        raise InvalidError(f"keys: {n_bytes} bytes; wanted 1 to {BATCH_MAX} keys of {KEY_BYTES}")
    return pointer, n, keys


def _statuses(op: Op, given: np.ndarray | None) -> int:
    """Gives the op its statuses. Their address."""
    n = op.n_items
    if given is None:
        op._statuses = raw = bytearray(_UNREACH_BYTES * n)
        return ctypes.addressof(ctypes.c_char.from_buffer(raw))
    if (given.dtype != np.int32 or given.ndim != 1 or len(given) < n or
            not given.flags.c_contiguous or not given.flags.writeable):
        raise InvalidError(f"statuses: wanted a contiguous int32 array with room for {n}")
    op._statuses = given
    return address_of(given)


def _timeout_ms(timeout: float | None) -> int:
    return -1 if timeout is None else min(max(int(timeout * 1000), 0), 1 << 30)


class Client:
    """A session. Any thread may use it. Opening never fails because there is no agent: lookups
    then miss, stores are dropped and loads report it, at once, and the library connects when it
    can.

    In a child of fork() every op is refused with UnreachableError; open a client of its own there.
    """

    def __init__(self, socket: str | os.PathLike[str] | None = None, *, name: str | None = None,
                 queue_depth: int = 0, n_copy_threads: int = 0,
                 spin_us: int | None = None) -> None:
        """socket: of the agent; None: $KVTIER_SOCKET, else /run/kvtier/kvtierd.sock. name: for the
        agent's log. queue_depth: ops submitted and not handed back yet, 0: 256. n_copy_threads: 0:
        1. spin_us: the longest that a wait spins before it sleeps, None: 50."""
        self._session = ctypes.c_void_p()
        self._forked = self._closing = False
        self._n_done = ctypes.c_uint32()  # the library's to write
        options = _lib.Options(
            ctypes.sizeof(_lib.Options), os.fsencode(socket) if socket is not None else None,
            name.encode() if name is not None else None, queue_depth, n_copy_threads,
            0xFFFFFFFF if spin_us is None else spin_us, ctypes.addressof(self._n_done))
        status = lib.kvt_open(ctypes.byref(options), ctypes.byref(self._session))
        if status != _OK:
            raise error_of(status, f"kvt_open: {strerror(status)}; check the length of the "
                           "socket's path and the options' ranges")
        self._buffer = bytearray(_COMPLETIONS * _ENTRY)  # all zero but for what is to be read
        self._buffer_c = (ctypes.c_char * len(self._buffer)).from_buffer(self._buffer)
        self._ops: dict[int, Op] = {}
        self._ready: deque[Op] = deque()
        self._n_queued = 0          # open ops that poll() will hand out
        self._looks_up = False      # answers to lookups, late ones too, are received by calls alone
        self._lock = threading.Lock()
        self._cond = threading.Condition(self._lock)
        self._leading = False       # a thread is in kvt_wait and takes what comes for all
        self._n_calls = 0           # threads in other calls that may block
        self._event: tuple[select.epoll, int] | None = None
        self._id = ctypes.c_uint64()
        self._id_p = ctypes.byref(self._id)
        _clients.add(self)

    # ---- life ------------------------------------------------------------------------------

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancels what is open, waits until nothing touches the caller's memory any more, ends the
        session. Waiting threads get their ops back as CANCELED. Can be called twice."""
        with self._cond:
            if self._closing:
                return
            self._closing = True
            for op_id in list(self._ops):
                lib.kvt_cancel(self._session, op_id)
        if not self._forked:
            self._drive(lambda: not self._ops and not self._n_calls and not self._leading, None)
        lib.kvt_close(self._session)
        self._session = ctypes.c_void_p()
        self._ready.clear()
        if self._event is not None:
            self._event[0].close()
            os.close(self._event[1])
            self._event = None

    def __del__(self) -> None:
        session = getattr(self, "_session", None)
        if session and hasattr(self, "_cond"):
            warnings.warn("kvtier.Client was not closed", ResourceWarning, stacklevel=2)
            self.close()

    def __reduce__(self) -> Any:
        raise TypeError("kvtier.Client: a session belongs to its process and cannot be pickled or "
                        "copied; open one where it is needed")

    def _after_fork(self) -> None:
        """In the child. Locks may be held by threads that are not there any more."""
        self._forked = True
        self._lock = threading.Lock()
        self._cond = threading.Condition(self._lock)
        self._leading, self._n_calls, self._n_queued = False, 0, 0
        for op in self._ops.values():
            op.status, op._keep = _UNREACH, None
        self._ops.clear()
        self._ready.clear()

    def _check(self) -> None:
        if self._closing:
            raise ClosedError("kvtier.Client: closed")
        if self._forked:
            raise UnreachableError("kvtier.Client: opened before fork(); open one in the child")

    def _fail(self, status: int, what: str) -> None:
        if status == Status.AGAIN:
            raise error_of(status, f"{what}: the queue is full; poll, then submit again")
        why = "" if status in (Status.UNREACH, Status.TIMEOUT) else self.last_error()
        raise error_of(status, why or f"{what}: {strerror(status)}")

    def _call(self, function: Callable[..., int], *args: Any) -> int:
        """A call that may block; close() waits for it."""
        with self._cond:
            self._check()
            self._n_calls += 1
        try:
            return function(self._session, *args)
        finally:
            with self._cond:
                self._n_calls -= 1
                if self._closing:
                    self._cond.notify_all()

    @property
    def connected(self) -> bool:
        """Connected to an agent just now."""
        with self._cond:
            return not self._closing and lib.kvt_connected(self._session) == 1

    def connect_wait(self, timeout: float | None = None) -> bool:
        """True: connected. False: not within timeout seconds (None: for ever). Raises VersionError
        where the agent is of another version."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = _SIGNAL_S if deadline is None else deadline - time.monotonic()
            status = self._call(lib.kvt_connect_wait, _timeout_ms(min(left, _SIGNAL_S)))
            if status == _OK:
                return True
            if status != Status.TIMEOUT:
                self._fail(status, "connect_wait")
            if deadline is not None and time.monotonic() >= deadline:
                return False

    def namespace(self, descriptor: Namespace) -> int:
        """Handle of a namespace; the same descriptor gives the same handle. It is negotiated with
        the agent at the next occasion; an agent that refuses it ends ops with the reason."""
        given = descriptor.struct()
        with self._cond:
            self._check()
            handle = lib.kvt_namespace(self._session, ctypes.byref(given))
        if handle < 0:
            self._fail(handle, "namespace")
        return handle

    # ---- GPU -------------------------------------------------------------------------------

    def cuda_attach(self, device: int = 0, *, n_threads: int = 0, kernel_below_bytes: int = 0,
                    library: str | None = None) -> None:
        """Let this session move memory of a GPU; once, when the engine has its memory. device:
        ordinal in this process. n_threads: for each direction, 0: 4 for loads, and for stores,
        which make checksums, three for every four CPUs more. kernel_below_bytes: chunks whose
        contiguous pieces average less go through a kernel, 0: the default, 1: never. library:
        the driver, None: libcuda.so.1. Raises InvalidError, NoMemoryError, and KVTierError with
        status NOTSUP (no driver or device, or built without CUDA) or IO."""
        given = _lib.Cuda(ctypes.sizeof(_lib.Cuda), os.fsencode(library) if library else None,
                          device, n_threads, kernel_below_bytes, 0)
        status = self._call(lib.kvt_cuda_attach, ctypes.byref(given))
        if status != _OK:
            self._fail(status, "cuda_attach")

    def cuda_stats(self) -> dict[str, int]:
        """Bytes since cuda_attach(): engine_bytes moved by copy engines, kernel_bytes by a kernel,
        staged_bytes of both through staging memory, pinned_bytes of the arena now."""
        stats = _lib.CudaStats(ctypes.sizeof(_lib.CudaStats))
        status = self._call(lib.kvt_cuda_stats, ctypes.byref(stats))
        if status != _OK:
            self._fail(status, "cuda_stats")
        return {name: getattr(stats, name) for name, *_ in stats._fields_[1:]}

    # ---- submit ----------------------------------------------------------------------------

    def _submit(self, op: Op, function: Callable[..., int], *args: Any) -> Op:
        """args: all between the session and the op's id."""
        with self._lock:
            if self._closing or self._forked:
                self._check()
            status = function(self._session, *args, self._id_p)
            if status == _OK:
                op.id = self._id.value
                self._ops[op.id] = op
                self._n_queued += op._queued
                return op
        self._fail(status, op.kind)
        raise AssertionError  # _fail() raises

    def submit_lookup(self, namespace: int, keys: Keys, *, lease_ms: int | None = None,
                      where: bool = False, context: Any = None, queued: bool = True) -> Op:
        """How long a prefix of keys is held: `n_ok` of the op.

        keys: 1 to 1024 in prefix order; copied. lease_ms: hold what is found for so long, or until
        `release(op.lease)`; None: do not. queued: poll() and wait() hand the op out.
        Raises InvalidError, AgainError (queue full), ClosedError, UnreachableError (after fork).
        """
        pointer, n, _ = held = _keys(keys, None)
        self._looks_up = True
        op = Op("lookup", context, held, queued)
        op.n_items = n
        address = None
        if where:
            op.where = np.zeros(n, np.uint8)
            address = address_of(op.where)
        return self._submit(op, lib.kvt_lookup, namespace, pointer, n,
                            _lib.LEASE if lease_ms is not None else 0, lease_ms or 0, address,
                            None)

    def _submit_transfer(self, op: Op, namespace: int, keys: Keys, layouts: Layouts,
                         parent: bytes | None, flags: int, deadline_ns: int,
                         statuses: np.ndarray | None, stream: int | None) -> Op:
        kind = op.kind
        pointer, n, held = _keys(keys, parent)
        op.n_items = n - (parent is not None)
        if len(layouts) != op.n_items:
            raise InvalidError(f"{kind}: memory for {len(layouts)} chunks, keys of {op.n_items}")
        if layouts.on_gpu is not None and layouts.on_gpu != (stream is not None):
            raise InvalidError(kind + (": memory of a GPU needs the stream argument"
                                       if layouts.on_gpu else ": a stream, but memory of the host"))
        op._keep = held, layouts.keep
        args = (namespace, pointer, n, layouts.address,
                flags | (_lib.PARENT if parent is not None else 0), deadline_ns,
                _statuses(op, statuses), None)
        host, gpu = _TRANSFERS[kind]
        if stream is None:
            return self._submit(op, host, *args)
        return self._submit(op, gpu, *args, stream)

    def submit_store(self, namespace: int, keys: Keys, memory: Memory, *,
                     parent: bytes | None = None, durable: bool = False, deadline_ns: int = 0,
                     statuses: np.ndarray | None = None, stream: int | None = None,
                     context: Any = None, queued: bool = True) -> Op:
        """Store chunks. memory: of each key's chunk, read until the op is over. parent: key of the
        chunk before the first one. durable: over when the chunks are on NVMe. deadline_ns: how
        long to wait for room (CLOCK_MONOTONIC; 0: not at all). statuses: int32 array to be used
        instead of a new one. Items that end as OK or EXISTS are held. Raises as submit_lookup().

        stream: for memory of the GPU that was given to cuda_attach(): a cudaStream_t as a number
        (torch.cuda.current_stream().cuda_stream; 0: the default stream). The copy comes after all
        work queued there before this call; work queued after the op was polled comes after the
        copy. None: memory of the host.
        """
        return self._submit_transfer(
            Op("store", context, None, queued), namespace, keys, layouts_of(memory), parent,
            _lib.DURABLE if durable else 0, deadline_ns, statuses, stream)

    def submit_load(self, namespace: int, keys: Keys, memory: Memory, *,
                    parent: bytes | None = None, deadline_ns: int = 0,
                    statuses: np.ndarray | None = None, stream: int | None = None,
                    context: Any = None, queued: bool = True) -> Op:
        """Load chunks into memory, which is written until the op is over and undefined where an
        item's status is not OK. deadline_ns: CLOCK_MONOTONIC; what has not come by then is
        TIMEOUT; 0: in 30 s. stream: as in submit_store(). Raises as submit_lookup()."""
        layouts = layouts_of(memory)
        if layouts.readonly:
            raise InvalidError("load: memory that is read only, or that elements of a view share")
        return self._submit_transfer(Op("load", context, None, queued), namespace, keys, layouts,
                                     parent, 0, deadline_ns, statuses, stream)

    def submit_prefetch(self, namespace: int, keys: Keys, *, parent: bytes | None = None,
                        deadline_ns: int = 0, statuses: np.ndarray | None = None,
                        context: Any = None, queued: bool = True) -> Op:
        """Have chunks brought to host memory. Arguments and errors as in submit_load()."""
        pointer, n, held = _keys(keys, parent)
        op = Op("prefetch", context, held, queued)
        op.n_items = n - (parent is not None)
        return self._submit(op, lib.kvt_prefetch, namespace, pointer, n,
                            _lib.PARENT if parent is not None else 0, deadline_ns,
                            _statuses(op, statuses), None)

    # ---- completions -----------------------------------------------------------------------

    def _dispatch_locked(self) -> None:
        """Gives what the library wrote into the buffer to its ops. The buffer says how much that
        is, so that an exception between the library's return and here loses nothing."""
        at, buffer, announce = 0, self._buffer, False
        while at < len(buffer):
            op_id, _, _, status, _, n_ok, n_prefix, _, lease, lease_deadline_ns = \
                _lib.COMPLETION.unpack_from(buffer, at)
            if op_id == 0:
                break
            op = self._ops.pop(op_id, None)
            if op is not None:
                op.n_ok, op.n_prefix = n_ok, n_prefix
                op.lease, op.lease_deadline_ns = lease, lease_deadline_ns
                op._keep, op.status = None, status
                if op._queued:
                    self._n_queued -= 1
                    self._ready.append(op)
                    announce = True
            buffer[at:at + 8] = bytes(8)
            at += _ENTRY
        if announce and self._event is not None:
            os.eventfd_write(self._event[1], 1)

    def _drive(self, ready: Callable[[], Any], deadline: float | None) -> bool:
        """Waits for ready(), which is called with the lock held. One thread at a time waits in the
        library and hands everyone theirs; the others wait for it. False: the deadline passed."""
        with self._cond:
            while not ready():
                left = _SIGNAL_S
                if deadline is not None:
                    left = min(left, deadline - time.monotonic())
                    if left <= 0:
                        return False
                if self._forked:
                    return False
                if self._leading or not self._ops:
                    self._cond.wait(left)
                    continue
                self._lead(left)
            return True

    def _lead(self, timeout: float) -> None:
        """Waits in the library for what comes for anyone. Called with the lock held."""
        interrupt = None
        self._leading = True
        self._cond.release()
        try:
            lib.kvt_wait(self._session, self._buffer_c, _COMPLETIONS, max(1, _timeout_ms(timeout)))
        finally:
            while True:  # a Ctrl-C while waiting for the lock must not leave without it
                try:
                    self._cond.acquire()
                    break
                except BaseException as err:
                    interrupt = err
            self._leading = False  # until here nobody else may touch the buffer
            self._dispatch_locked()
            self._cond.notify_all()
        if interrupt is not None:
            raise interrupt

    def _take_locked(self) -> list[Op]:
        if not self._ready:
            return []
        taken = list(self._ready)
        self._ready.clear()
        if self._event is not None:
            try:
                os.eventfd_read(self._event[1])
            except BlockingIOError:
                pass  # nothing was announced
        return taken

    def poll(self) -> list[Op]:
        """Ops that are over, each handed out once; never waits."""
        if not self._ready and not (self._n_queued and (self._looks_up or self._n_done.value)):
            return []  # for who looks after every step of an engine
        with self._lock:
            if self._closing or self._forked:
                return []
            if not self._leading:  # else that thread takes what comes
                n = _COMPLETIONS
                while n == _COMPLETIONS:
                    n = lib.kvt_poll(self._session, self._buffer_c, _COMPLETIONS)
                    if n:
                        self._dispatch_locked()
                        self._cond.notify_all()
            return self._take_locked()

    def wait(self, timeout: float | None = None) -> list[Op]:
        """Like poll(), but waits for at least one op, at most timeout seconds. Returns at once
        where no op is open that it could hand out."""
        deadline = None if timeout is None else time.monotonic() + timeout
        self._drive(lambda: self._ready or not self._n_queued or self._closing, deadline)
        with self._cond:
            return self._take_locked()

    def wait_for(self, op: Op, timeout: float | None = None) -> bool:
        """Waits until op is over; one that is queued is handed out by poll() all the same. False:
        not within timeout seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        return self._drive(lambda: op.status is not None, deadline)

    def fileno(self) -> int:
        """A descriptor that is readable when poll() may have something. Owned by the client."""
        with self._cond:
            self._check()
            if self._event is None:
                epoll = select.epoll()
                own = os.eventfd(1 if self._ready else 0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                epoll.register(own, select.EPOLLIN)
                epoll.register(lib.kvt_event_fd(self._session), select.EPOLLIN)
                self._event = epoll, own
            return self._event[0].fileno()

    def cancel(self, op: Op) -> bool:
        """End an op. When this returns nothing reads or writes the caller's memory for it any
        more. It is still handed out (CANCELED, unless it was over). False: it was over already."""
        return self._call(lib.kvt_cancel, op.id) == _OK

    # ---- submit and wait -------------------------------------------------------------------

    def _finish(self, op: Op) -> Op:
        """The library bounds every op, so there is no time-out here."""
        try:
            self.wait_for(op)
        except BaseException:
            # The op itself stays with the client, and holds its memory, until it is over.
            lib.kvt_cancel(self._session, op.id)
            raise
        return op

    def lookup(self, namespace: int, keys: Keys, *, lease_ms: int | None = None,
               where: bool = False) -> Op:
        """submit_lookup() and wait. `n_ok` is the length of the prefix held; 0 when the agent is
        away (`status` says so)."""
        return self._finish(self.submit_lookup(namespace, keys, lease_ms=lease_ms, where=where,
                                               queued=False))

    def store(self, namespace: int, keys: Keys, memory: Memory, *, parent: bytes | None = None,
              durable: bool = False, timeout: float = 0, statuses: np.ndarray | None = None,
              stream: int | None = None) -> Op:
        """submit_store() and wait. timeout: seconds to wait for room."""
        deadline_ns = time.monotonic_ns() + int(timeout * 1e9) if timeout > 0 else 0
        return self._finish(self.submit_store(namespace, keys, memory, parent=parent,
                                              durable=durable, deadline_ns=deadline_ns,
                                              statuses=statuses, stream=stream, queued=False))

    def load(self, namespace: int, keys: Keys, memory: Memory, *, parent: bytes | None = None,
             timeout: float = 30, statuses: np.ndarray | None = None,
             stream: int | None = None) -> Op:
        """submit_load() and wait. timeout: seconds after which what has not come is TIMEOUT."""
        deadline_ns = time.monotonic_ns() + max(int(timeout * 1e9), 1)
        return self._finish(self.submit_load(namespace, keys, memory, parent=parent,
                                             deadline_ns=deadline_ns, statuses=statuses,
                                             stream=stream, queued=False))

    def prefetch(self, namespace: int, keys: Keys, *, parent: bytes | None = None,
                 timeout: float = 30) -> Op:
        """submit_prefetch() and wait, at most timeout seconds."""
        deadline_ns = time.monotonic_ns() + max(int(timeout * 1e9), 1)
        return self._finish(self.submit_prefetch(namespace, keys, parent=parent,
                                                 deadline_ns=deadline_ns, queued=False))

    # ---- small calls -----------------------------------------------------------------------

    def release(self, lease: int, timeout: float = 0) -> bool:
        """Give a lease back. timeout 0: say so and do not wait; else True when the agent confirmed
        within so many seconds."""
        return self._call(lib.kvt_release, lease, _timeout_ms(timeout)) == _OK

    def ping(self, timeout: float = 1) -> bool:
        """The agent answered within timeout seconds."""
        return self._call(lib.kvt_ping, _timeout_ms(timeout)) == _OK

    def stats(self, timeout: float = 1) -> dict[str, int]:
        """The agent's counters. Raises UnreachableError, AgentTimeoutError."""
        values = (ctypes.c_uint64 * len(_lib.STAT_NAMES))()
        n = ctypes.c_uint32(len(values))
        status = self._call(lib.kvt_stats, values, ctypes.byref(n), _timeout_ms(timeout))
        if status != _OK:
            self._fail(status, "stats")
        return dict(zip(_lib.STAT_NAMES, values[:n.value]))

    def last_error(self) -> str:
        """What went wrong last on this session, for a log: object, cause, next step."""
        text = ctypes.create_string_buffer(512)
        with self._cond:
            if not self._closing:
                lib.kvt_last_error(self._session, text, len(text))
        return text.value.decode(errors="replace")


def strerror(status: int) -> str:
    """A status in words."""
    return lib.kvt_strerror(status).decode()


_clients: weakref.WeakSet[Client] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for client in _clients:
        client._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
