# SPDX-License-Identifier: Apache-2.0
"""Lists a million chunks that an agent really holds: how long it takes, and what memory kvctl and
the agent need for it.

Usage: kvctl_list_bench.py KVCTL KVTIERD ROBUST_CLIENT [CHUNKS]   (a million needs 5 GiB of memory)
"""

import os
import re
import subprocess
import sys
import tempfile
import threading
import time

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "robust"))

import kvt

CHAIN = 64
CHUNK_BYTES = 4096
SLAB_BYTES = 64 << 20


class Peak:
    """The most anonymous memory that an agent has while this is entered, in bytes."""

    def __init__(self, agent):
        self.agent, self.most = agent, agent.rss_bytes()
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self.watch)

    def watch(self):
        while not self.ending.wait(0.02):
            self.most = max(self.most, self.agent.rss_bytes())

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ending.set()
        self.thread.join()


def peak_bytes(pid):
    """Not from wait4(): that counts what the parent had when it forked."""
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read())
    return int(found[1]) << 10 if found else 0  # it may have ended, and the pipe holds the rest


def listing(kvctl, agent, held, *args):
    """(lines, seconds, peak bytes of kvctl, growth of the agent in bytes)"""
    before, lines, most = agent.rss_bytes(), 0, 0
    began = time.monotonic()
    with Peak(agent) as peak:
        run = subprocess.Popen([kvctl, "get", "chunks", *args, "--socket", agent.socket],
                               stdout=subprocess.PIPE)
        for _ in run.stdout:
            lines += 1
            if lines % (held // 20) == 0:
                most = max(most, peak_bytes(run.pid))
        kvt.check(run.wait() == 0, f"kvctl ended with {run.returncode}")
    kvt.check(lines >= held, f"{lines} lines for {held} chunks")
    return lines, time.monotonic() - began, most, peak.most - before


def main():
    kvctl, os.environ["KVT_KVTIERD"], os.environ["KVT_CLIENT"] = map(os.path.abspath, sys.argv[1:4])
    n = int(sys.argv[4]) if len(sys.argv) > 4 else 1000000
    n += -n % CHAIN
    print(f"{'held':>8} {'kvctl get chunks':24} {'lines':>8} {'seconds':>8} {'kvctl MiB':>10} "
          f"{'agent grows MiB':>16}")
    arena = (n * CHUNK_BYTES // SLAB_BYTES + 2) * SLAB_BYTES
    with tempfile.TemporaryDirectory(prefix="kvt-list-", dir="/var/tmp") as folder:
        with kvt.Agent(folder, nvme__path=None, nvme__bytes=None, nvme__slab_bytes=None,
                       nvme__scrub_bytes_per_s=None, host__slab_bytes=SLAB_BYTES,
                       host__bytes=arena, index__chunks_max=2 * n) as agent:
            agent.start()
            with kvt.Client(agent, chunk_bytes=CHUNK_BYTES, segments=1, chain=CHAIN, chunks=n,
                            threads=0) as client:
                client.connect()
                kvt.wait_until(lambda: client.stats()["host_capacity_bytes"] >= arena, "the arena")
                held = 0
                for more in (n // 10 // CHAIN * CHAIN, n):
                    letters = client.store(held, more - held)
                    kvt.check(set(letters) == {"O"}, f"store: {set(letters)}")
                    held = more
                    for output in ("table", "wide", "json", "yaml"):
                        lines, seconds, kvctl_bytes, grown = listing(kvctl, agent, held, "-o",
                                                                     output)
                        print(f"{held:8} {'-o ' + output:24} {lines:8} {seconds:8.2f} "
                              f"{kvctl_bytes / kvt.MIB:10.1f} {grown / kvt.MIB:16.1f}", flush=True)


if __name__ == "__main__":
    main()
