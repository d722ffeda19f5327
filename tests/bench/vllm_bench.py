# SPDX-License-Identifier: Apache-2.0
"""What KVTier gives to vLLM and what it takes: all figures of one run, on CPUs.

Usage: vllm_bench.py KVTIERD ENGINES [--rounds N] [--only ttft,step]
with ENGINES/venv/bin/python and PYTHONPATH=ENGINES/vllm-0.32.0:tests/engines
ENGINES is the folder that tests/engines/make_env.py made.

ttft    time to the first token of a prompt of 4096 tokens (model of 8 layers, hidden 512), which
        is computed, found in vLLM's own cache, in the agent's memory, on its disk
step    time in the connector's calls per step of vLLM's scheduler
Each prints its medians; ratios are medians of the rounds' ratios.
"""

import argparse
import gc
import os
import statistics
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
                                "engines"))
from agent import Agent  # noqa: E402
from clock import SCHEDULER_CALLS, Clock  # noqa: E402
from engine import Engine, prepare, prompt  # noqa: E402
from make_env import Env  # noqa: E402

TOKENS = 4096
OPTIONS = {"max_model_len": 8192, "block_size": 128, "max_num_batched_tokens": 8192}


def show(title, seconds, base):
    print(title)
    for name, values in seconds.items():
        ratio = statistics.median(v / b for v, b in zip(values, seconds[base]))
        print(f"  {name:28} {statistics.median(values) * 1e3:9.1f} ms [{min(values) * 1e3:.1f}-"
              f"{max(values) * 1e3:.1f}]   {ratio:6.3f} of {base}", flush=True)


def loaded(found):
    return found["counters"].get("loaded_tokens", 0)


def ttft(env, args):
    """By turns: an engine without a connector, and one whose own cache is emptied each time."""
    agent = Agent(args.kvtierd, host_bytes="2GiB", nvme_bytes="4GiB")
    engine = plain = None
    seconds = {n: [] for n in ("computed", "vLLM's own cache", "KVTier, host memory",
                               "KVTier, NVMe", "a prompt of one token")}

    def timed(name, engine, tokens, **step):
        found = engine.run(tokens, max_tokens=1, **step)
        seconds[name].append(found["seconds"])
        return loaded(found)

    try:
        plain = Engine(env.model("small"), **OPTIONS)
        engine = Engine(env.model("small"), agent.socket, extra={"chunk_tokens": 256}, **OPTIONS)
        known = prompt(0, TOKENS)
        for warm_up in (plain, engine):
            warm_up.run(known, max_tokens=1)
        for i in range(1, args.rounds + 1):
            tokens = prompt(i, TOKENS)
            timed("computed", plain, tokens, reset=True)
            timed("vLLM's own cache", plain, tokens)
            timed("a prompt of one token", plain, tokens[:1])
            before = loaded(engine.run(tokens, max_tokens=1, reset=True))
            assert timed("KVTier, host memory", engine, tokens, reset=True) == before + TOKENS
            agent.stop()
            agent.start()
            while before + 2 * TOKENS > loaded(engine.run(known, max_tokens=1, reset=True)):
                pass  # a prompt that the agent has tells when the engine is connected again
            assert timed("KVTier, NVMe", engine, tokens, reset=True) == before + 3 * TOKENS
    finally:
        for each in filter(None, (plain, engine)):
            each.close()
        agent.close()
    show(f"time to first token, {TOKENS} tokens, {args.rounds} rounds", seconds,
         "vLLM's own cache")


def step(env, args):
    """The scheduler's half, with 64 requests in each of the states that last."""
    from rig import Rig
    agent = Agent(args.kvtierd, host_bytes="256MiB")
    wide = {"blocks": 4096, "seqs": 64, "budget": 8192, "max_len": 4096}

    def measure(title, rig, steps=1000):
        gc.collect()
        gc.freeze()  # as an engine core of its own does
        clock = Clock(rig.scheduler.connector, SCHEDULER_CALLS)
        taken = []
        for _ in range(steps):
            rig.step()
            taken.append(clock.take_us())
        print(f"  {title:58} {statistics.median(taken):7.1f} us (p99 "
              f"{sorted(taken)[int(0.99 * len(taken))]:.1f})", flush=True)
        rig.close()

    print("time in the connector's calls, per step of the scheduler, median")
    try:
        rig = Rig(env.model("tiny"), agent.socket, **{**wide, "seqs": 1})
        for i in range(65):
            rig.add(prompt(i, 64), max_tokens=2000)
        rig.step()
        time.sleep(0.1)
        measure("1 running, 64 wait for their turn", rig)
        rig = Rig(env.model("tiny"), agent.socket, **wide,
                  extra={"lookup_timeout_ms": 600_000})
        rig.add([5] * 20, max_tokens=2000)
        for _ in range(3):
            rig.step()
        agent.pause()
        for i in range(64):
            rig.add(prompt(i, 500), max_tokens=4)
        rig.step()
        measure("64 wait for their lookups (agent stopped)", rig)
        agent.resume()
        rig = Rig(env.model("tiny"), agent.socket, **wide,
                  extra={"load_timeout_ms": 600_000})
        for i in range(64):
            rig.add(prompt(i, 64), max_tokens=2000)
        for _ in range(200):
            rig.step()
        measure("64 decode", rig, steps=300)
    finally:
        agent.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kvtierd")
    parser.add_argument("engines")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="ttft,step")
    args = parser.parse_args()
    prepare()
    env = Env(args.engines)
    for name in args.only.split(","):
        {"ttft": ttft, "step": step}[name](env, args)


if __name__ == "__main__":
    main()
