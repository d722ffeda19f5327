# SPDX-License-Identifier: Apache-2.0
"""Statuses of libkvtier, and the exceptions that calls raise.

A miss, an agent that is away and an item that came too late are no exceptions: they are statuses
of an op and of its items. Exceptions are for what the caller has to change.
"""

from __future__ import annotations

import enum


class Status(enum.IntEnum):
    """Of an op, or of one item of it; the same numbers as in kvtier.h."""
    OK = 0
    NOMEM = -1
    AGAIN = -2      # queue full: nothing was started
    CORRUPT = -3
    UNREACH = -4    # agent away; for a store: dropped
    INVAL = -5
    MISS = -6       # load: not held
    EXISTS = -7     # store: already held, as wanted
    BUSY = -8       # store: somebody else is storing the same key just now
    NOSPACE = -9    # store: dropped, no room by the deadline
    IO = -10
    TIMEOUT = -11
    CANCELED = -12
    PROTO = -13
    VERSION = -14
    NOTSUP = -15
    EXPIRED = -16
    INTERNAL = -17


class KVTierError(Exception):
    """Base of all. `status` is the status behind it."""

    status: Status = Status.INTERNAL

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        if status is not None:
            self.status = status_of(status)


class InvalidError(KVTierError, ValueError):
    """An argument is wrong; the message names it."""
    status = Status.INVAL


class AgainError(KVTierError):
    """Nothing was started: a queue is full (poll, then submit again), or a listing must begin
    anew."""
    status = Status.AGAIN


class UnreachableError(KVTierError, ConnectionError):
    """No agent there, or the session belongs to the parent of this process."""
    status = Status.UNREACH


class VersionError(KVTierError):
    """The agent, or the library, is of another version."""
    status = Status.VERSION


class ClosedError(KVTierError):
    """The client was closed."""
    status = Status.INVAL


class AgentTimeoutError(KVTierError, TimeoutError):
    """The agent did not answer in time."""
    status = Status.TIMEOUT


class NotFoundError(KVTierError, LookupError):
    """The agent has nothing of that name."""
    status = Status.MISS


class NoMemoryError(KVTierError, MemoryError):
    """No memory, or one of the library's tables is full; the message says which."""
    status = Status.NOMEM


_BY_STATUS = {
    Status.INVAL: InvalidError,
    Status.AGAIN: AgainError,
    Status.UNREACH: UnreachableError,
    Status.VERSION: VersionError,
    Status.TIMEOUT: AgentTimeoutError,
    Status.NOMEM: NoMemoryError,
}


def status_of(number: int) -> Status:
    """Status of a number of the library, which may know more than this module."""
    try:
        return Status(number)
    except ValueError:
        return Status.INTERNAL


def error_of(number: int, message: str) -> KVTierError:
    """The exception for a status."""
    return _BY_STATUS.get(status_of(number), KVTierError)(message, number)
