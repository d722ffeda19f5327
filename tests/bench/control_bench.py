# SPDX-License-Identifier: Apache-2.0
"""What clients of the control API cost those of the data path: kvbench's lookups of 512 chunks with
such clients, without, and with them at another agent of the same machine, which takes the same share
of the CPUs and nothing of this agent. In turns; each turn has new agents.

Usage: control_bench.py KVTIERD KVBENCH [ROUNDS [CHUNKS]] [--hostile] [--apart]
--hostile: clients that send nonsense, floods of pings and resets, messages too large and too many
calls at once, and read nothing. --apart: kvbench and the agent's reactor have a CPU and all else has
another, so that what the clients compute takes none of theirs. Needs the package kvtier with its extra [control].
"""

import json
import os
import random
import select
import statistics
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "control"))
import hostile  # noqa: E402
from kvtier.control import Control  # noqa: E402

MODES = ("none", "elsewhere", "here")
FIGURES = ("p50_us", "p99_us", "close_p50_us", "close_p99_us")


FLOODS = (hostile.frame(hostile.PING, 0, 0, bytes(8)) * 1000,
          b"".join(hostile.frame(hostile.HEADERS, hostile.END_HEADERS, 2 * i + 1,
                                 hostile.headers(hostile.CONTROL + "GetNode")) +
                   hostile.frame(hostile.RST_STREAM, 0, 2 * i + 1, bytes(4)) for i in range(1000)),
          b"".join(hostile.frame(hostile.HEADERS, hostile.END_HEADERS, 2 * i + 1,
                                 hostile.headers(hostile.CONTROL + "ListChunks")) +
                   hostile.frame(hostile.DATA, hostile.END_STREAM, 2 * i + 1, bytes(5))
                   for i in range(1000)))  # 1000 calls whose answers nobody reads
TOO_LARGE = hostile.frame(hostile.HEADERS, hostile.END_HEADERS, 1,
                          hostile.headers(hostile.CONTROL + "Lookup")) + \
    hostile.frame(hostile.DATA, 0, 1, b"\0\x7f\xff\xff\xff" + bytes(hostile.FRAME_BYTES - 5)) + \
    hostile.frame(hostile.DATA, 0, 1, bytes(hostile.FRAME_BYTES)) * 300


def abuse(path, again):
    """Threads of all kinds of abuse."""
    rng = random.Random(1)

    def once(data):
        peer = hostile.Peer(path)
        peer.flood(data, 0.2)
        peer.close()
        return 1

    def nonsense():
        peer = hostile.Peer(path, greet=False)
        peer.send(hostile.nonsense(rng))
        peer.close()
        return 1

    def attempt(call):
        try:
            return call()
        except OSError:  # the agent takes no more connections just now
            time.sleep(0.01)
            return 0

    return [threading.Thread(target=again, args=(lambda call=call: attempt(call),)) for call in
            (nonsense, *(lambda data=data: once(data) for data in (*FLOODS, TOO_LARGE)))]


def load(path, is_hostile):
    """Threads that ask without a pause, until stdin ends; prints how many calls that were. They
    take a CPU only when nobody else wants it: what they compute with the answers is not asked."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    stop, counts = threading.Event(), []

    def again(call):
        n = 0
        while not stop.is_set():
            n += call()
        counts.append(n)

    with Control(path, timeout=60) as agent:
        def chunks():
            return 1 + sum(1 for _ in agent.chunks()) // 1000

        def small():
            return bool(agent.stats()) + bool(agent.tiers()) + bool(list(agent.sessions()))

        def lookup():
            spaces = list(agent.namespaces())
            return len([agent.lookup(space.id, [bytes(32)] * 1000) for space in spaces]) + 1

        def job():
            agent.wait_job(agent.clear(all_namespaces=True, dry_run=True), timeout=60)
            return 2

        threads = abuse(path, again) if is_hostile else [
            threading.Thread(target=again, args=(call,)) for call in (chunks, small, lookup, job)]
        for thread in threads:
            thread.start()
        sys.stdin.read()
        stop.set()
        for thread in threads:
            thread.join()
    print(sum(counts))


def cpus(is_data_path):
    """With --apart: where a thread may run."""
    all_cpus = sorted(os.sched_getaffinity(0))
    return all_cpus[:1] if is_data_path else all_cpus[1:2]


def place(process, is_data_path):
    """All threads of a process, whose first is an agent's reactor; new ones follow their makers."""
    for thread in map(int, os.listdir(f"/proc/{process.pid}/task")):
        os.sched_setaffinity(thread, cpus(is_data_path and thread == process.pid))


class Agent:
    def __init__(self, kvtierd, folder):
        self.socket = os.path.join(folder, "kvtierd.sock")
        ready, write = os.pipe()
        with open(os.path.join(folder, "log"), "wb") as log:
            self.process = subprocess.Popen(
                [kvtierd, "--ready-fd", str(write), "--set", f"socket.path={self.socket}", "--set",
                 "host.bytes=1GiB", "--set", "metrics.listen="], pass_fds=[write],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        os.close(write)
        if not select.select([ready], [], [], 30)[0] or not os.read(ready, 1):
            sys.exit("kvtierd did not start; run it by hand to see why")
        os.close(ready)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def measure(kvtierd, kvbench, mode, n_chunks, options):
    """kvbench's figures, and how many calls of the API were answered per second (of abuse: tried)."""
    with tempfile.TemporaryDirectory(prefix="kvt-bench-") as one, \
            tempfile.TemporaryDirectory(prefix="kvt-bench-") as two, \
            Agent(kvtierd, one) as agent, Agent(kvtierd, two) as other:
        apart = "--apart" in options
        bench_options = {"preexec_fn": lambda: os.sched_setaffinity(0, cpus(True))} if apart else {}
        if apart:
            place(agent.process, True)
            place(other.process, False)
        command = [kvbench, "micro", "--only", "lookup", "--chunks-in-index", str(n_chunks), "--json",
                   "--arena-bytes", "1GiB", "--socket"]
        if mode == "elsewhere":  # so that there are as many chunks to list
            subprocess.run([*command, other.socket], check=True, stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL)
        client = None
        if mode != "none":
            target = (agent if mode == "here" else other).socket
            client = subprocess.Popen(
                [sys.executable, __file__, "--load", target.removesuffix(".sock") + ".control.sock",
                 *options],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            if apart:
                place(client, False)
        began = time.monotonic()
        done = subprocess.run([*command, agent.socket], check=False, capture_output=True, text=True,
                              **bench_options)
        calls = 0
        if client is not None:
            calls = int(client.communicate()[0]) / (time.monotonic() - began)
        results = json.loads(done.stdout)["results"] if done.returncode == 0 else []
        if not results:
            sys.exit(f"kvbench measured nothing:\n{done.stderr}")
        return results[0], calls


def main():
    if sys.argv[1:2] == ["--load"]:
        load(sys.argv[2], "--hostile" in sys.argv)
        return
    options = [a for a in sys.argv[1:] if a in ("--hostile", "--apart")]
    kvtierd, kvbench, *numbers = [a for a in sys.argv[1:] if a not in options]
    rounds = int(numbers[0]) if numbers else 5
    n_chunks = int(numbers[1]) if len(numbers) > 1 else 20000
    found = {mode: [] for mode in MODES}
    for number in range(rounds):
        for mode in MODES[number % 3:] + MODES[:number % 3]:
            result, calls = measure(kvtierd, kvbench, mode, n_chunks, options)
            found[mode].append(result)
            print(f"{number} {mode:9} {calls:6.0f} calls/s " +
                  " ".join(f"{name} {result[name]:.1f}" for name in FIGURES), flush=True)
    for name in FIGURES:
        values = {mode: [result[name] for result in found[mode]] for mode in MODES}
        ratio = {mode: statistics.median(h / o for h, o in zip(values["here"], values[mode]))
                 for mode in MODES[:2]}
        print(f"{name:13} " + " ".join(f"{mode} {statistics.median(values[mode]):.1f} "
                                       f"[{min(values[mode]):.1f}-{max(values[mode]):.1f}]"
                                       for mode in MODES) +
              f"; here beside none {ratio['none']:.2f}, beside elsewhere {ratio['elsewhere']:.2f}")


if __name__ == "__main__":
    main()
