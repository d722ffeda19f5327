# SPDX-License-Identifier: Apache-2.0
"""What the connector takes: time in its calls, and CPU time of the threads beside the engine."""

import os
import time

SCHEDULER_CALLS = ("get_num_new_matched_tokens", "update_state_after_alloc",
                   "build_connector_meta", "update_connector_output", "request_finished",
                   "request_finished_all_groups", "has_pending_push_work",
                   "has_pending_block_frees", "take_events", "get_kv_connector_stats",
                   "on_new_request")
WORKER_CALLS = ("handle_preemptions", "bind_connector_metadata", "has_connector_metadata",
                "start_load_kv", "wait_for_layer_load", "save_kv_layer", "wait_for_save",
                "get_transfer_results", "get_finished", "get_block_ids_with_load_errors",
                "get_kv_connector_stats", "build_connector_worker_meta",
                "clear_connector_metadata")


class Clock:
    """Adds up the time in an object's methods, less what the clock itself takes."""

    def __init__(self, target, names):
        self.ns = self.calls = 0
        for name in names:
            if hasattr(target, name):
                setattr(target, name, self.timed(getattr(target, name)))
        idle, self.own = self.timed(lambda: None), 0
        for _ in range(20000):
            idle()
        self.own, self.ns, self.calls = self.ns / self.calls, 0, 0

    def timed(self, call):
        clock = time.perf_counter_ns

        def wrapped(*args, **kwargs):
            began = clock()
            out = call(*args, **kwargs)
            self.ns += clock() - began
            self.calls += 1
            return out
        return wrapped

    def take_us(self):
        taken = max(0, self.ns - self.calls * self.own) / 1e3
        self.ns = self.calls = 0
        return taken


def threads_us(pid, name=""):
    """CPU time of a process's threads whose names begin so."""
    total = 0
    for thread in os.scandir(f"/proc/{pid}/task"):
        try:
            with open(thread.path + "/comm", encoding="ascii") as file:
                if not file.read().startswith(name):
                    continue
            with open(thread.path + "/schedstat", encoding="ascii") as file:
                total += int(file.read().split()[0])
        except OSError:
            pass  # it ended meanwhile
    return total / 1e3
