# SPDX-License-Identifier: Apache-2.0
"""Counters of the connector: what vLLM logs and exports. All of them only ever add up, so
workers, steps and halves aggregate by addition."""

from .compat import KVConnectorPromMetrics, KVConnectorStats

# name -> help. Scheduler half first, then what workers count (a sum over workers).
COUNTERS = {
    "lookups": "Lookups sent to the agent",
    "lookup_timeouts": "Lookups not answered in time; the request went on without KVTier",
    "queried_tokens": "Prompt tokens that were looked up beyond the engine's own hit",
    "hit_tokens": "Of these, tokens offered to the engine",
    "loaded_tokens": "Tokens whose KV was loaded and verified",
    "failed_load_tokens": "Tokens offered whose load failed; the engine computes them",
    "failed_loads": "Requests with a load that failed wholly or in part",
    "save_chunks": "Chunks handed to workers to be saved",
    "dropped_chunks": "Chunks not saved: too many of the engine's blocks were pinned until the request ended",
    "loaded_bytes": "Bytes loaded, all workers",
    "stored_chunks": "Chunks held after their save, stored now or before, all workers",
    "unstored_chunks": "Chunks whose save was refused or failed, all workers",
    "stored_bytes": "Bytes of saves that went through, all workers",
    "save_timeouts": "Saves ended by their deadline, all workers",
    "load_timeouts": "Loads ended by their deadline, all workers",
    "agent_lost": "Operations that found no agent, all halves",
}


class Stats(KVConnectorStats):
    """data: name -> count; absent means 0."""

    def add(self, name, n=1):
        if n:
            self.data[name] = self.data.get(name, 0) + n

    def __getitem__(self, name):
        """In one process the MultiConnector of 0.28 takes this for its serialized form."""
        return getattr(self, name)

    def reset(self):
        self.data = {}

    def aggregate(self, other):
        for name, n in other.data.items():
            self.add(name, n)
        return self

    def reduce(self):
        return dict(self.data)

    def is_empty(self):
        return not self.data

    def take(self):
        """What was counted since the last call."""
        taken, self.data = Stats(data=self.data), {}
        return taken


class PromMetrics(KVConnectorPromMetrics):
    """vllm:kvtier_<counter>_total."""

    def __init__(self, vllm_config, metric_types, labelnames, per_engine_labelvalues):
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._counters = {}
        for name, text in COUNTERS.items():
            counter = self._counter_cls(name=f"vllm:kvtier_{name}", documentation=text + ".",
                                        labelnames=labelnames)
            self._counters[name] = {engine: counter.labels(*values)
                                    for engine, values in per_engine_labelvalues.items()}

    def observe(self, transfer_stats_data, engine_idx=0):
        for name, n in transfer_stats_data.items():
            if name in self._counters:
                self._counters[name][engine_idx].inc(n)
