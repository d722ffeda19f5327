# SPDX-License-Identifier: Apache-2.0
"""Lookups of a client at an agent whose index holds as many chunks as no test machine has room for.

The store is a block device over a file without blocks, and its metadata is told (meta_fill) that it
holds N chunks of 4 KiB more than were stored. The agent reads it as any other at its start; then
`kvbench micro --only lookup` asks for prompts that were really stored. For each N a new agent; all in
turns. Needs root and loop devices.

    big_index_bench.py KVTIERD KVBENCH META_FILL [--chunks 10000,10000000] [--rounds 3]
"""

import argparse
import contextlib
import json
import os
import re
import statistics
import subprocess
import tempfile
import time

SLAB_BYTES = 65792 << 10  # the agent's default
SLOT_BYTES = 8192         # a chunk of 4 KiB and its header page
FIGURES = ("p50_us", "roundtrip_p50_us", "close_p50_us", "p99_us")


@contextlib.contextmanager
def device_of(folder, size):
    image = os.path.join(folder, "device")
    with open(image, "wb") as file:
        file.truncate(size)
    device = subprocess.run(["losetup", "--find", "--show", image], check=True,
                            capture_output=True, text=True).stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@contextlib.contextmanager
def agent_of(options, folder, device, size):
    """Yields its socket and the seconds from its start to ready."""
    path = os.path.join(folder, "sock")
    settings = {"socket.path": path, "host.bytes": "1GiB", "nvme.meta_path": os.path.join(folder, "meta"),
                "nvme.disks.0.path": device, "nvme.disks.0.bytes": str(size)}
    with open(os.path.join(folder, "log"), "ab") as log, \
            subprocess.Popen([options.kvtierd] + [word for key, value in settings.items()
                                                  for word in ("--set", f"{key}={value}")],
                             stdout=log, stderr=log) as agent:
        try:
            start = time.monotonic()
            while not os.path.exists(path):
                if agent.poll() is not None or time.monotonic() - start > 120:
                    with open(os.path.join(folder, "log"), encoding="utf-8") as text:
                        raise SystemExit("the agent did not start:\n" + text.read())
                time.sleep(0.01)
            yield path, time.monotonic() - start, agent.pid
        finally:
            agent.terminate()
            agent.wait()


def kvbench(options, *arguments):
    done = subprocess.run([options.kvbench, *arguments], check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def resident_bytes(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        return int(re.search(r"RssAnon:\s+(\d+)", status.read())[1]) << 10


def measure(options, n_chunks):
    size = (n_chunks // (SLAB_BYTES // SLOT_BYTES) + 16) * SLAB_BYTES
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder, device_of(folder, size) as device:
        with agent_of(options, folder, device, size) as (path, _, _):
            kvbench(options, "micro", "--socket", path, "--only", "lookup", "--chunks-in-index",
                    "10000", "--json")  # brings the namespace
        subprocess.run([options.meta_fill, os.path.join(folder, "meta"), str(n_chunks),
                        str(SLAB_BYTES), "4096"], check=True, capture_output=True)
        with agent_of(options, folder, device, size) as (path, ready_s, pid):
            result = kvbench(options, "micro", "--socket", path, "--only", "lookup",
                             "--chunks-in-index", "10000", "--json")["results"][0]
            result.update(ready_s=ready_s, resident_mib=resident_bytes(pid) >> 20)
        return result


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("kvtierd")
    parser.add_argument("kvbench")
    parser.add_argument("meta_fill")
    parser.add_argument("--chunks", default="10000,10000000")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
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
