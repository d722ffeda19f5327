# SPDX-License-Identifier: Apache-2.0
"""Leaves an agent alone that does not answer, so that it costs a few time-outs and no more."""

AFTER = 3  # lookups not answered in time, one after the other
MIN_NS, MAX_NS = 1_000_000_000, 30_000_000_000


class Breaker:
    def __init__(self):
        self._n_late = 0
        self._until_ns = 0
        self._next_ns = MIN_NS

    def is_open(self, now):
        """Nothing is to be asked now."""
        return now < self._until_ns

    def answered(self):
        self._n_late, self._next_ns = 0, MIN_NS

    def late(self, now):
        """A lookup was not answered in time."""
        self._n_late += 1
        if self._n_late >= AFTER:
            self._until_ns = now + self._next_ns
            self._next_ns = min(2 * self._next_ns, MAX_NS)
