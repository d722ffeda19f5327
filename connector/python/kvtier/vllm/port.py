# SPDX-License-Identifier: Apache-2.0
"""A session as the two halves use it: nothing here waits for the agent, and nothing raises because
of it. An op that could not be started is None."""

from kvtier import AgainError, Client, KVTierError, Namespace, NoMemoryError

QUEUE_DEPTH = 1024
LATE_NS = 1_000_000_000  # past its deadline an op is given so long to end by itself
_DROPPED = (AgainError, NoMemoryError)  # queue full or no memory: it is as if nothing was held


class Port:
    def __init__(self, socket, name, copy_threads):
        self._client = Client(socket or None, name=name, queue_depth=QUEUE_DEPTH,
                              n_copy_threads=copy_threads)
        self.poll = self._client.poll
        self.wait = self._client.wait

    @property
    def connected(self):
        return self._client.connected

    def wait_connected(self, timeout):
        return self._client.connect_wait(timeout)

    def namespace(self, fields):
        return self._client.namespace(Namespace(**fields))

    def lookup(self, namespace, keys, lease_ms):
        try:
            return self._client.submit_lookup(namespace, keys, lease_ms=lease_ms)
        except _DROPPED:
            return None

    def store(self, namespace, keys, memory, parent, deadline_ns):
        try:
            return self._client.submit_store(namespace, keys, memory, parent=parent,
                                             deadline_ns=deadline_ns)
        except _DROPPED:
            return None

    def load(self, namespace, keys, memory, parent, deadline_ns):
        try:
            return self._client.submit_load(namespace, keys, memory, parent=parent,
                                            deadline_ns=deadline_ns)
        except _DROPPED:
            return None

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
