# SPDX-License-Identifier: Apache-2.0
"""A session as the two halves use it: nothing here waits for the agent, and no op raises. One that
could not be started is None."""

import time

from kvtier import AgainError, Client, KVTierError, Namespace

from .compat import log

QUEUE_DEPTH = 1024
LATE_NS = 1_000_000_000  # past its deadline an op is given so long to end by itself
LOG_NS = 10_000_000_000  # what goes wrong in every call is said so often


class Port:
    def __init__(self, socket, name, copy_threads):
        self._client = Client(socket or None, name=name, queue_depth=QUEUE_DEPTH,
                              n_copy_threads=copy_threads)
        self._said_ns = -LOG_NS
        self.poll = self._client.poll
        self.wait = self._client.wait

    @property
    def connected(self):
        return self._client.connected

    def wait_connected(self, timeout):
        return self._client.connect_wait(timeout)

    def namespace(self, fields):
        return self._client.namespace(Namespace(**fields))

    def cuda_attach(self, device):
        """Let stores and loads name memory of a GPU. Raises KVTierError, which says why not."""
        self._client.cuda_attach(device)

    def _submitted(self, submit, *args, **options):
        try:
            return submit(*args, **options)
        except AgainError:
            return None  # queue full: it is as if nothing was held
        except KVTierError as err:  # CUDA refused, for one; the engine goes on
            now = time.monotonic_ns()
            if now - self._said_ns >= LOG_NS:
                self._said_ns = now
                log.error("KVTier: %s", err)
            return None

    def lookup(self, namespace, keys, lease_ms):
        return self._submitted(self._client.submit_lookup, namespace, keys, lease_ms=lease_ms)

    def store(self, namespace, keys, memory, parent, deadline_ns, stream=None):
        return self._submitted(self._client.submit_store, namespace, keys, memory, parent=parent,
                               deadline_ns=deadline_ns, stream=stream)

    def load(self, namespace, keys, memory, parent, deadline_ns, stream=None):
        return self._submitted(self._client.submit_load, namespace, keys, memory, parent=parent,
                               deadline_ns=deadline_ns, stream=stream)

    def cancel(self, op):
        """When this returns the op touches no memory any more."""
        self._client.cancel(op)

    def release(self, lease):
        self._client.release(lease)

    def close(self):
        try:
            self._client.close()
        except KVTierError:
            pass  # the engine ends; there is nobody left to tell
