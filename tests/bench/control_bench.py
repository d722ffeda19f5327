# SPDX-License-Identifier: Apache-2.0
"""What clients of the control API cost those of the data path: kvbench's lookups with such clients at
the agent, without, and with them at another agent of the same machine, which takes the same share of
the CPUs and nothing of this agent. In turns.

Without --load the lookups are those of `kvbench micro`, of 512 chunks each, and new agents for each
turn do nothing else. With it they are those of `kvbench rag`, which loads what it finds and stores
what it does not, in agents whose tiers are full. Needs the package kvtier with its extra [control].
"""

import argparse
import contextlib
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
IDLE_FIGURES = ("p50_us", "p99_us", "close_p50_us", "close_p99_us")
LOAD_FIGURES = ("lookup_p50_us", "lookup_p99_us", "load_p50_us", "load_p99_us", "requests_per_s")
LOAD_TIERS = ("host.bytes=256MiB", "nvme.bytes=1GiB")
RESAMPLES = 10000


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


def ask(path, is_hostile):
    """Threads that ask without a pause, until stdin ends; prints when they begin, and how many calls
    that were. They take a CPU only when nobody else wants it: what they compute with the answers is not asked."""
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
        print("begun", flush=True)
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
    def __init__(self, kvtierd, folder, tiers):
        self.socket = os.path.join(folder, "kvtierd.sock")
        ready, write = os.pipe()
        settings = [f"socket.path={self.socket}", "metrics.listen=", *tiers]
        with open(os.path.join(folder, "log"), "wb") as log:
            self.process = subprocess.Popen(
                [kvtierd, "--ready-fd", str(write), *(x for s in settings for x in ("--set", s))],
                pass_fds=[write], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        os.close(write)
        if not select.select([ready], [], [], 30)[0] or not os.read(ready, 1):
            sys.exit("kvtierd did not start; run it by hand to see why")
        os.close(ready)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


class Client:
    """Of the control API; calls_per_s is what it got done (of abuse: tried)."""

    def __init__(self, agent, options):
        self.calls_per_s = 0
        self.process = None
        if agent is None:
            return
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--ask", agent.socket.removesuffix(".sock") + ".control.sock",
             *(["--hostile"] if options.hostile else [])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.process.stdout.readline()
        self.began = time.monotonic()
        if options.apart:
            place(self.process, False)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process is not None:
            calls, _ = self.process.communicate()
            self.calls_per_s = int(calls or 0) / (time.monotonic() - self.began)


def kvbench_json(command, **options):
    done = subprocess.run([*command, "--json"], check=False, capture_output=True, text=True,
                          **options)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit status {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout)


def idle_turn(options, mode):
    with tempfile.TemporaryDirectory(prefix="kvt-bench-") as one, \
            tempfile.TemporaryDirectory(prefix="kvt-bench-") as two, \
            Agent(options.kvtierd, one, ["host.bytes=1GiB"]) as agent, \
            Agent(options.kvtierd, two, ["host.bytes=1GiB"]) as other:
        bench_options = {}
        if options.apart:
            bench_options = {"preexec_fn": lambda: os.sched_setaffinity(0, cpus(True))}
            place(agent.process, True)
            place(other.process, False)
        command = [options.kvbench, "micro", "--only", "lookup", "--chunks-in-index",
                   str(options.chunks), "--arena-bytes", "1GiB", "--socket"]
        if mode == "elsewhere":  # so that there are as many chunks to list
            kvbench_json([*command, other.socket])
        with Client({"none": None, "elsewhere": other, "here": agent}[mode], options) as client:
            found = kvbench_json([*command, agent.socket], **bench_options)
        return found["results"][0], client.calls_per_s


@contextlib.contextmanager
def load_turns(options):
    """A function that measures one turn; the agents are the same in all of them."""
    with tempfile.TemporaryDirectory(prefix="kvt-bench-", dir="/var/tmp") as one, \
            tempfile.TemporaryDirectory(prefix="kvt-bench-", dir="/var/tmp") as two, \
            Agent(options.kvtierd, one, [*LOAD_TIERS, f"nvme.path={one}/store"]) as agent, \
            Agent(options.kvtierd, two, [*LOAD_TIERS, f"nvme.path={two}/store"]) as other:
        seeds = iter(range(1, 1 << 30))

        def rag(socket, n_requests, scale):
            return kvbench_json([options.kvbench, "rag", "--socket", socket, "--seed",
                                 str(next(seeds)), "--max-requests", str(n_requests),
                                 "--time-scale", str(scale)])

        for target in (agent, other):  # until both tiers are full
            while rag(target.socket, 4000, 0)["agent"]["evict_nvme_chunks"] == 0:
                pass

        def turn(mode):
            with Client({"none": None, "elsewhere": other, "here": agent}[mode], options) as client:
                found = rag(agent.socket, options.requests, options.load)
            return found, client.calls_per_s

        yield turn


def interval(ratios):
    """The median, and between what 95 % of the medians of resampled rounds lie."""
    rng = random.Random(1)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios)))
                     for _ in range(RESAMPLES))
    return (f"{statistics.median(ratios):.2f} ({medians[RESAMPLES // 40]:.2f} to "
            f"{medians[-RESAMPLES // 40]:.2f})")


def measure(options, turn, figures):
    found = {mode: [] for mode in MODES}
    for number in range(options.rounds):
        for mode in MODES[number % 3:] + MODES[:number % 3]:
            result, calls = turn(mode)
            found[mode].append(result)
            print(f"{number} {mode:9} {calls:6.0f} calls/s " +
                  " ".join(f"{name} {result[name]:.1f}" for name in figures), flush=True)
    for name in figures:
        values = {mode: [result[name] for result in found[mode]] for mode in MODES}
        ratios = {mode: interval([h / o for h, o in zip(values["here"], values[mode])])
                  for mode in MODES[:2]}
        print(f"{name:14} " + " ".join(f"{mode} {statistics.median(values[mode]):.1f} "
                                       f"[{min(values[mode]):.1f}-{max(values[mode]):.1f}]"
                                       for mode in MODES) +
              f"; here beside none {ratios['none']}, beside elsewhere {ratios['elsewhere']}")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kvtierd", nargs="?")
    parser.add_argument("kvbench", nargs="?")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hostile", action="store_true",
                        help="clients that send nonsense, floods of pings and resets, messages too "
                        "large and too many calls at once, and read nothing")
    parser.add_argument("--chunks", type=int, default=20000, help="in the index, without --load")
    parser.add_argument("--apart", action="store_true",
                        help="without --load: kvbench and the agent's reactor have a CPU and all "
                        "else has another, so that what the clients compute takes none of theirs")
    parser.add_argument("--load", type=float, metavar="SCALE",
                        help="lookups of the load: trace seconds per second, 0: as fast as it can")
    parser.add_argument("--requests", type=int, default=2000, help="of the load in a turn")
    parser.add_argument("--ask", metavar="SOCKET", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ask:
        ask(options.ask, options.hostile)
    elif options.kvbench is None or (options.load is not None and options.apart):
        parser.error("needs KVTIERD and KVBENCH; --apart is not for --load")
    elif options.load is None:
        measure(options, lambda mode: idle_turn(options, mode), IDLE_FIGURES)
    else:
        with load_turns(options) as turn:
            measure(options, turn, LOAD_FIGURES)


if __name__ == "__main__":
    main()
