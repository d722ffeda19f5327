# SPDX-License-Identifier: Apache-2.0
"""Lookups of a client at an agent whose index holds as many chunks as no test machine has room for.

The store is a block device over a file without blocks, and its metadata is told (meta_fill) that it
holds N chunks of 4 KiB more than were stored. The agent reads it as any other at its start; then
`kvbench micro --only lookup` asks for prompts that were really stored. For each N a new agent; all in
turns. Needs root and loop devices.

    big_index_bench.py KVTIERD KVBENCH META_FILL [--chunks 10000,10000000] [--rounds 3]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "robust"))
import kvt  # noqa: E402

SLAB_BYTES = 65792 << 10  # the agent's default
SLOT_BYTES = 8192         # a chunk of 4 KiB and its header page
FIGURES = ("p50_us", "roundtrip_p50_us", "close_p50_us", "p99_us")


def agent_of(folder, device, size):
    """Of the configuration of its defaults, but for the store."""
    return kvt.Agent(folder, host__bytes="1GiB", host__slab_bytes=None, index__chunks_max=None,
                     nvme__path=None, nvme__bytes=None, nvme__slab_bytes=None,
                     nvme__meta_path=os.path.join(folder, "meta"), nvme__disks__0__path=device,
                     nvme__disks__0__bytes=size)


def kvbench(options, *arguments):
    done = subprocess.run([options.kvbench, *arguments], check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def measure(options, n_chunks):
    size = (n_chunks // (SLAB_BYTES // SLOT_BYTES) + 16) * SLAB_BYTES
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder, \
            kvt.block_device(folder, size >> 20) as device, \
            agent_of(folder, device, size >> 20 << 20) as agent:
        lookup = ("micro", "--socket", agent.socket, "--only", "lookup", "--chunks-in-index",
                  "10000", "--json")
        agent.start()
        kvbench(options, *lookup)  # brings the namespace
        agent.stop()
        subprocess.run([options.meta_fill, os.path.join(folder, "meta"), str(n_chunks),
                        str(SLAB_BYTES), "4096"], check=True, capture_output=True)
        ready_s = agent.start()
        # The arena is backed from then on, which takes memory bandwidth and a core for a while.
        kvt.wait_until(lambda: "host tier:" in agent.log_tail(), "the arena was not backed", 60)
        result = kvbench(options, *lookup)["results"][0]
        result.update(ready_s=ready_s, resident_mib=agent.rss_bytes() >> 20)
        return result


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("kvtierd")
    parser.add_argument("kvbench")
    parser.add_argument("meta_fill")
    parser.add_argument("--chunks", default="10000,10000000")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.environ["KVT_KVTIERD"] = options.kvtierd
    counts = [int(word) for word in options.chunks.split(",")]
    results = {n: [] for n in counts}
    for _ in range(options.rounds):
        for n in counts:
            results[n].append(measure(options, n))
    for n in counts:
        print(f"{n:9} chunks more in the index:",
              ", ".join(f"{figure} {statistics.median(r[figure] for r in results[n]):.1f}"
                        for figure in FIGURES + ("ready_s", "resident_mib")))


if __name__ == "__main__":
    main()
