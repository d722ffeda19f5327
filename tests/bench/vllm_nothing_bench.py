# SPDX-License-Identifier: Apache-2.0
"""What vLLM loses to its connector when nothing is cached, on CPUs, in one process.

Usage: vllm_nothing_bench.py KVTIERD ENGINES [--role kv_consumer|kv_both] [--only steps,bursts]
           [--model small|0.5b] [--prompts N[,N]...] [--seconds N]
with ENGINES/venv/bin/python and PYTHONPATH=ENGINES/vllm-0.32.0:tests/engines
ENGINES is the folder that tests/engines/make_env.py made.

steps   steps in which 4 requests get a token each
bursts  prompts of 400 and 100 tokens (--prompts) at once that nobody has, 4 new tokens each

0.5b is as wide and deep as Qwen2.5-0.5B (1.7 GB, made when it is asked for first); the small model
has ten times as much KV per computation.

One engine works with its connector, as if it had none, so once more (the control), and with a
connector that does nothing, which is what vLLM takes for having any. The speed of a machine changes
by more than that from one tenth of a second to the next. So the ways change with each step
or burst, each round is its own mirror (a drift falls out), and rounds take all orders in turn (so
does what one way leaves behind for the next). Nothing is clocked within: a clock around each of 30
short calls is a part of what it measures. Counts come from bursts of their own, at the end.
"""

import argparse
import contextlib
import gc
import itertools
import math
import os
import random
import statistics
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
                                "engines"))
os.environ.update({"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR",
                   "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1",
                   "PYTHONHASHSEED": "0"})
from agent import Agent  # noqa: E402
from clock import SCHEDULER_CALLS, WORKER_CALLS, Clock, threads_us  # noqa: E402
from engine import prompt, transfer_config  # noqa: E402
from llm_run import reset, settle  # noqa: E402
from make_env import Env  # noqa: E402
from vllm import LLM, SamplingParams  # noqa: E402
from vllm.config import KVTransferConfig  # noqa: E402
from vllm.distributed.kv_transfer import kv_transfer_state  # noqa: E402
from vllm.distributed.kv_transfer.kv_connector.v1.base import (  # noqa: E402
    KVConnectorBase_V1, KVConnectorMetadata, KVConnectorRole, SupportsHMA)

BLOCKS = 80       # so few that a warm engine has touched them all
STEADY, STEADY_NEW = 130, 125  # neither a block nor a chunk ends while the ways change
MODELS = {"small": (20, 50), "0.5b": (3, 10)}  # bursts to warm up and to count in
TRIM = 0.1        # of the rounds, at each end
WITH, WITHOUT, CONTROL, EMPTY = WAYS = \
    "with it", "without", "without, once more", "one that does nothing"


class Nothing(KVConnectorBase_V1, SupportsHMA):
    requires_kv_delivery = False
    _meta = KVConnectorMetadata()

    def has_connector_metadata(self):
        return False

    def start_load_kv(self, forward_context, **kwargs):
        pass

    def wait_for_layer_load(self, layer_name):
        pass

    def save_kv_layer(self, layer_name, kv_layer, attn_metadata, **kwargs):
        pass

    def wait_for_save(self):
        pass

    def get_num_new_matched_tokens(self, request, num_computed_tokens):
        return 0, False

    def update_state_after_alloc(self, request, blocks, num_external_tokens):
        pass

    def build_connector_meta(self, scheduler_output):
        return self._meta

    def request_finished_all_groups(self, request, block_ids):
        return False, None


class Ways:
    """Changes an idle engine's connector, in the places where vLLM looks for it."""

    def __init__(self, llm, config):
        self.scheduler = llm.llm_engine.engine_core.engine_core.scheduler
        ours = self._found()
        none = [Nothing(config, role, self.scheduler.kv_cache_config)
                for role in (KVConnectorRole.SCHEDULER, KVConnectorRole.WORKER)]
        self._ways = {WITH: ours, EMPTY: (*none, ours[2]),
                      **dict.fromkeys((WITHOUT, CONTROL), (None, None, None))}

    def _found(self):
        return (self.scheduler.connector, kv_transfer_state._KV_CONNECTOR_AGENT,
                self.scheduler.connector_prefix_cache_stats)

    def _set(self, connector, agent, stats):
        self.scheduler.connector = connector
        kv_transfer_state._KV_CONNECTOR_AGENT = agent
        self.scheduler.connector_prefix_cache_stats = stats

    @contextlib.contextmanager
    def way(self, name):
        self._set(*self._ways[name])
        try:
            yield
        finally:
            self._set(*self._ways[WITH])


def orders_of_rounds():
    """Without end, each its own mirror."""
    orders = list(itertools.permutations(WAYS))
    for i in itertools.count():
        yield (*orders[i % len(orders)], *reversed(orders[i % len(orders)]))


class Bench:
    def __init__(self, agent, folder, role, prompts, n_warm_up, n_counted):
        self.agent, self.prompts, self.n_counted = agent, prompts, n_counted
        self.llm = LLM(
            model=folder, skip_tokenizer_init=True, dtype="float32", enforce_eager=True,
            max_model_len=8192, block_size=128, max_num_seqs=8, max_num_batched_tokens=8192,
            num_gpu_blocks_override=BLOCKS, gpu_memory_utilization=0.2, disable_log_stats=False,
            kv_transfer_config=KVTransferConfig(**transfer_config(
                agent.socket, {"chunk_tokens": 256}, role)))
        self.ways = Ways(self.llm, self.llm.llm_engine.vllm_config)
        self.step = self.llm.llm_engine.step
        self.seed = 0
        for _ in range(n_warm_up):
            for name in (WITH, WITHOUT):
                self.burst(name)
        gc.collect()
        gc.freeze()  # as an engine core of its own does

    def generate(self, lengths, n_new):
        prompts = []
        for n in lengths:
            self.seed += 1
            prompts.append({"prompt_token_ids": prompt(self.seed, n)})
        assert reset(self.llm)
        sampling = SamplingParams(max_tokens=n_new, temperature=0, detokenize=False,
                                  ignore_eos=True)
        began = time.perf_counter()
        self.llm.generate(prompts, sampling, use_tqdm=False)
        return time.perf_counter() - began

    def burst(self, name):
        with self.ways.way(name):
            took = self.generate(self.prompts, 4)
        settle(self.llm)
        return took

    def bursts(self, until):
        """[{way: [seconds, seconds]}] per round."""
        rounds = []
        for order in orders_of_rounds():
            if time.monotonic() > until:
                return rounds
            rounds.append({})
            for name in order:
                rounds[-1].setdefault(name, []).append(self.burst(name))

    def steps(self, until):
        rounds, open_round = [], []
        orders = orders_of_rounds()

        def timed():
            n[0] += 1
            # The prompts; and each request is to end where it began, or that connector keeps it.
            if n[0] < 4 or any(request.num_output_tokens >= STEADY_NEW - 1
                               for request in self.ways.scheduler.running):
                return self.step()
            if not open_round:
                open_round.extend(next(orders))
                rounds.append({})
            name = open_round.pop(0)
            with self.ways.way(name):
                began = time.perf_counter()
                out = self.step()
                rounds[-1].setdefault(name, []).append(time.perf_counter() - began)
            return out
        self.llm.llm_engine.step = timed
        while time.monotonic() < until:
            n = [0]
            self.generate([STEADY] * 4, STEADY_NEW)
            if open_round:
                open_round.clear()
                rounds.pop()
        self.llm.llm_engine.step = self.step
        settle(self.llm)
        return rounds

    def counts(self):
        """Shares of the time of one core: calls, the library's threads, the agent."""
        from vllm.distributed.kv_transfer import get_kv_transfer_group
        clocks = [Clock(self.ways.scheduler.connector, SCHEDULER_CALLS),
                  Clock(get_kv_transfer_group(), WORKER_CALLS)]
        threads, agent = threads_us(os.getpid(), "kvtier"), threads_us(self.agent.pid)
        whole = sum(self.burst(WITH) for _ in range(self.n_counted)) * 1e6
        return (sum(clock.take_us() for clock in clocks) / whole,
                (threads_us(os.getpid(), "kvtier") - threads) / whole,
                (threads_us(self.agent.pid) - agent) / whole)


def trimmed(values):
    values = sorted(values)
    cut = int(len(values) * TRIM)
    return statistics.fmean(values[cut:len(values) - cut])


def ratio(logs, draws=1000):
    """A trimmed mean of logarithms of ratios, and its 95 %, from values drawn again."""
    source = random.Random(0)
    drawn = sorted(trimmed(source.choices(logs, k=len(logs))) for _ in range(draws))
    low, high = drawn[int(0.025 * draws)], drawn[int(0.975 * draws)]
    return f"{math.exp(trimmed(logs)):.4f} [{math.exp(low):.4f} to {math.exp(high):.4f}]"


def show(title, rounds):
    logs = [{name: [math.log(t) for t in took] for name, took in each.items()} for each in rounds]
    print(f"{title}: {len(rounds)} rounds; median without the connector "
          f"{statistics.median(t for each in rounds for t in each[WITHOUT]) * 1e3:.2f} ms")
    for name in sorted(set(logs[0]) - {WITHOUT}):
        beside = [(sum(each[name]) - sum(each[WITHOUT])) / 2 for each in logs]
        print(f"  {name:22} {ratio(beside)}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kvtierd")
    parser.add_argument("engines")
    parser.add_argument("--role", choices=("kv_consumer", "kv_both"), default="kv_consumer")
    parser.add_argument("--only", default="steps,bursts")
    parser.add_argument("--model", choices=MODELS, default="small")
    parser.add_argument("--prompts", default="400,100", help="tokens of those of a burst")
    parser.add_argument("--seconds", type=float, default=60, help="for each")
    args = parser.parse_args()
    env = Env(args.engines)
    env.make((), (args.model,))
    with Agent(args.kvtierd, host_bytes="2GiB") as agent:
        prompts = [int(n) for n in args.prompts.split(",")]
        bench = Bench(agent, env.model(args.model), args.role, prompts, *MODELS[args.model])
        print(f"nothing cached, {args.role}, model {args.model}")
        for name in args.only.split(","):
            show(name, getattr(bench, name)(time.monotonic() + args.seconds))
        calls, threads, agents = bench.counts()
        print(f"of the time of one core, in bursts: calls {calls:.2%}, library's threads "
              f"{threads:.2%}, agent {agents:.2%}", flush=True)


if __name__ == "__main__":
    main()
