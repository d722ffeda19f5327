# SPDX-License-Identifier: Apache-2.0
"""Real vLLM, real agent: the same tokens as without a connector, and hits counted by the connector.

Usage: llm_test.py KVTIERD ENGINES_FOLDER VERSION [unittest arguments]
The folder is make_env.py's. Of the classes, Short* run in the gate, the others on demand.

A run is compared with an engine without a connector in the same arrangement of processes: one that
computes everything, or, where KV was loaded, one that found the same tokens in its own cache, so
that both compute the same shapes.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.request

import numpy as np
from agent import Agent
from engine import APART, ONE, TP2, Engine, prepare, prompt, transfer_config
from make_env import Env

from kvtier import Client, Namespace

KVTIERD = VERSION = ""
ENV = None
CLOSE = 1e-4  # cached paths differ by 1e-5 from computed ones, other prompts by far more


def at_least(major, minor):
    return tuple(int(x) for x in VERSION.split(".")[:2]) >= (major, minor)


class EngineCase(unittest.TestCase):
    references = {}

    def agent(self, **settings):
        agent = Agent(KVTIERD, **{"host_bytes": "256MiB", **settings})
        self.addCleanup(agent.close)
        return agent

    def engine(self, agent, model="tiny", **options):
        engine = Engine(ENV.model(model), agent.socket, **options)
        self.addCleanup(engine.close)
        return engine

    @classmethod
    def reference(cls, *prompts, own_cache=False, model="tiny", env=ONE, step=None, **options):
        """What an engine without a connector says. own_cache: when it has the prompts' KV."""
        name = json.dumps([cls.__name__, model, env, options], sort_keys=True)
        if name not in cls.references:
            while cls.references:  # one at a time: each takes 2 GB
                cls.references.popitem()[1].close()
            cls.references[name] = Engine(ENV.model(model), env=env, **options)
        engine = cls.references[name]
        found = engine.run(*prompts, reset=True, **(step or {}))
        return engine.run(*prompts, **(step or {})) if own_cache else found

    @classmethod
    def tearDownClass(cls):
        while cls.references:
            cls.references.popitem()[1].close()

    def same(self, got, wanted):
        self.assertEqual(got["tokens"], wanted["tokens"])
        self.assertEqual(set(got["reasons"]), {"length"})
        for one, other in zip(got["logprobs"], wanted["logprobs"]):
            for a, b in zip(one, other):
                self.assertAlmostEqual(a, b, delta=CLOSE)

    def counted(self, got, **wanted):
        self.assertEqual({n: got["counters"].get(n, 0) for n in wanted}, wanted)
        self.assertTrue(got["clean"], "blocks were left behind")

    def ended(self, engine):
        """A clean exit, with no block left behind."""
        self.assertEqual(engine.end(), (True, 0))

    def cold_and_warm(self, loaded, n=900, **options):
        """One engine computes and stores, a fresh one loads; neither differs from one without a
        connector."""
        agent, long = self.agent(), prompt(4, n)
        plain = {k: v for k, v in options.items() if k not in ("extra", "multi")}
        for own, tokens in ((False, 0), (True, loaded)):
            engine = self.engine(agent, **options)
            found = engine.run(long)
            self.ended(engine)
            self.same(found, self.reference(long, own_cache=own, **plain))
            self.counted(found, loaded_tokens=tokens, failed_loads=0)


    def failures(self, env):
        """An agent that is killed, stopped, away or damaged, in the middle of loads and stores."""
        agent = self.agent(nvme_bytes="256MiB", nvme__scrub_bytes_per_s="0B")  # finds nothing first
        long, other = prompt(6, 1000), prompt(7, 1000)
        wanted = {tuple(p): (self.reference(p, env=env),
                             self.reference(p, own_cache=True, env=env)) for p in (long, other)}
        engine = self.engine(agent, env=env,
                             extra={"load_timeout_ms": 400, "save_timeout_ms": 400})

        def run(tokens, loaded=0, **step):
            """loaded: how many tokens more than before were loaded."""
            before = run.counters
            found = engine.run(tokens, reset=True, **step)
            run.counters = found["counters"]
            new = {n: c - before.get(n, 0) for n, c in run.counters.items()}
            self.same(found, wanted[tuple(tokens)][new["loaded_tokens"] > 0])
            self.assertTrue(found["clean"])
            if loaded is not None:
                self.assertEqual(new["loaded_tokens"], loaded)
            return new

        def until_loaded(tokens):
            """The library reconnects by itself, and a slow agent is left alone for a while."""
            end = time.monotonic() + 15
            while run(tokens, None)["loaded_tokens"] != 960:
                self.assertLess(time.monotonic(), end)

        run.counters = {}
        run(other, strike={"at": "store", "pid": agent.pid, "after": "SIGKILL"})
        agent.kill()
        agent.start()
        until_loaded(other)
        run(long)
        new = run(long, strike={"at": "load", "pid": agent.pid, "before": "SIGSTOP"})
        self.assertEqual((new["failed_loads"], new["load_timeouts"]), (1, 1))
        run(other)                                   # stopped still: nobody waits for long
        agent.resume()
        until_loaded(long)
        new = run(long, strike={"at": "load", "pid": agent.pid, "before": "SIGSTOP",
                                "after": "SIGKILL"})
        self.assertEqual(new["failed_loads"], 1)
        agent.kill()
        run(long)                                    # and without an agent
        agent.start()
        until_loaded(long)                           # nothing wrong was stored
        until_loaded(other)
        self.ended(engine)
        agent.stop()
        agent.corrupt()
        agent.start()
        engine, run.counters = self.engine(agent, env=env), {}
        new = run(long)
        self.assertEqual((new["failed_loads"], new["failed_load_tokens"]), (1, 960))
        run(long, 960)
        self.ended(engine)


class ShortTest(EngineCase):
    """In one process: everything that goes right, then everything that goes wrong."""

    def test_hits(self):
        agent = self.agent(nvme_bytes="256MiB")
        long, short = prompt(1, 1000), prompt(1, 400)
        cold = self.engine(agent)
        self.same(cold.run(long), self.reference(long))
        found = cold.run(short, max_tokens=20, reset=True)
        self.same(found, self.reference(short, own_cache=True, step={"max_tokens": 20}))
        self.counted(found, loaded_tokens=384)
        salted = cold.run(long, salts=["a"], reset=True)
        self.same(salted, self.reference(long))
        self.counted(salted, loaded_tokens=384)
        self.ended(cold)
        agent.stop()                                 # what it has now is on its disk alone
        agent.start()
        warm = self.engine(agent)
        self.counted(warm.run(short[:200], max_tokens=1), loaded_tokens=192)
        found = warm.run(long)                       # from here on partly in the engine's cache
        self.same(found, self.reference(long, own_cache=True))
        self.counted(found, loaded_tokens=960)
        found = warm.run(long[:960], reset=True)     # all of it: the last token is computed again
        self.same(found, self.reference(long[:960]))
        self.counted(found, loaded_tokens=2 * 960)
        equal = warm.run(long, long, long, reset=True)
        self.assertEqual(equal["tokens"], 3 * self.reference(long)["tokens"])
        self.counted(equal, failed_loads=0, loaded_tokens=5 * 960)
        self.same(warm.run(long, salts=["b"], reset=True), self.reference(long))
        self.ended(warm)

    def test_failures(self):
        self.failures(ONE)


class ShortApartTest(EngineCase):
    def test_another_process_and_the_server(self):
        agent, long = self.agent(), prompt(2, 900)
        engine = self.engine(agent, env=APART)
        self.same(engine.run(long), self.reference(long, env=APART))
        self.ended(engine)
        wanted = self.reference(long, own_cache=True, env=APART)
        engine = self.engine(agent, env=APART)
        found = engine.run(long)
        self.same(found, wanted)
        self.counted(found, loaded_tokens=896)
        self.ended(engine)
        with Server(agent) as server:
            answer = server.complete(long)
            self.assertEqual(answer["choices"][0]["token_ids"], wanted["tokens"][0])
            self.assertEqual(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 896)
            metrics = server.metrics()
            self.assertEqual(metrics["vllm:kvtier_loaded_tokens_total"], 896)
            self.assertEqual(metrics["vllm:external_prefix_cache_hits_total"], 896)
            self.assertEqual(server.end(), 0)


class Server:
    """vLLM's OpenAI server."""

    START_S = 120

    def __init__(self, agent):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [ENV.python, "-m", "vllm.entrypoints.openai.api_server", "--model", ENV.model("tiny"),
             "--dtype", "float32", "--enforce-eager", "--max-model-len", "2048",
             "--block-size", "32", "--gpu-memory-utilization", "0.2", "--host", "127.0.0.1",
             "--port", self.url.rsplit(":", 1)[1], "--skip-tokenizer-init",
             "--enable-prompt-tokens-details", "--kv-transfer-config",
             json.dumps({**transfer_config(agent.socket, {"chunk_tokens": 64}),
                         "kv_connector_module_path": "kvtier.vllm"})],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, start_new_session=True,
            env={**os.environ, "PYTHONHASHSEED": "0", "VLLM_CPU_KVCACHE_SPACE": "1"})

    def __enter__(self):
        end = time.monotonic() + self.START_S
        while self.process.poll() is None and time.monotonic() < end:
            try:
                with urllib.request.urlopen(self.url + "/health", timeout=5):
                    return self
            except OSError:
                time.sleep(0.2)
        self.log.seek(0)
        log = self.log.read()[-6000:]
        self.__exit__()
        raise AssertionError("the server did not start:\n" + log)

    def __exit__(self, *exception):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.log.close()

    def complete(self, tokens):
        body = {"model": ENV.model("tiny"), "prompt": tokens, "max_tokens": 4, "temperature": 0,
                "ignore_eos": True, "return_token_ids": True}
        with urllib.request.urlopen(urllib.request.Request(
                self.url + "/v1/completions", json.dumps(body).encode(),
                {"Content-Type": "application/json"}), timeout=60) as answer:
            return json.load(answer)

    def metrics(self):
        with urllib.request.urlopen(self.url + "/metrics", timeout=10) as answer:
            lines = [line.rsplit(" ", 1) for line in answer.read().decode().splitlines()]
        return {name.split("{")[0]: float(value) for name, value in
                (line for line in lines if len(line) == 2 and line[0].startswith("vllm:"))}

    def end(self):
        self.process.terminate()
        return self.process.wait(60)


class TensorParallelTest(EngineCase):
    def test_two_ranks(self):
        agent, long = self.agent(), prompt(3, 900)
        options = {"env": TP2, "tensor_parallel_size": 2}
        for own, tokens in ((False, 0), (True, 896)):
            engine = self.engine(agent, **options)
            found = engine.run(long)
            self.ended(engine)
            self.same(found, self.reference(long, own_cache=own, **options))
            self.counted(found, loaded_tokens=tokens)
        # One rank's KV is not another's, nor an engine's without ranks.
        engine = self.engine(agent)
        self.counted(engine.run(long), loaded_tokens=0)
        self.ended(engine)


class ShapesTest(EngineCase):
    def test_mla_is_refused_where_vllm_has_no_prefixes(self):
        """On CPUs; rig_test.py has its layouts."""
        if not at_least(0, 32):
            self.skipTest("MLA starts on CPUs in the newest release alone")
        with self.assertRaisesRegex(AssertionError, "prefix caching is off, or not supported"):
            self.engine(self.agent(), model="mla", dtype="bfloat16", block_size=16)

    def test_hybrid(self):
        options = {} if at_least(0, 30) else {"disable_hybrid_kv_cache_manager": True}
        self.cold_and_warm(896, model="hybrid", **options)

    def test_bfloat16(self):
        self.cold_and_warm(896, dtype="bfloat16")

    def test_fp8(self):
        self.cold_and_warm(896, kv_cache_dtype="fp8", dtype="bfloat16")

    def test_one_block_per_chunk_and_chunked_prefill(self):
        self.cold_and_warm(896, extra={"chunk_tokens": 1}, max_num_batched_tokens=128)


class PreemptionTest(EngineCase):
    def test_little_room(self):
        agent = self.agent()
        prompts = [prompt(5, 100) + prompt(10 + i, 60 + 20 * i) for i in range(6)]
        step = {"max_tokens": 150}
        wanted = self.reference(*prompts, step=step)
        for _ in range(2):
            engine = self.engine(agent, num_gpu_blocks_override=30, max_model_len=512)
            found = engine.run(*prompts, **step)
            self.assertEqual(found["tokens"], wanted["tokens"])
            self.assertGreater(found["counters"]["num_preemptions"], 0)
            self.ended(engine)
        self.assertGreater(found["counters"]["loaded_tokens"], 0)
        engine = self.engine(agent)  # what was stored meanwhile is right
        for i, p in enumerate(prompts):
            found = engine.run(p + wanted["tokens"][i][:100], max_tokens=50)
            self.assertEqual(found["tokens"][0], wanted["tokens"][i][100:])
        self.ended(engine)


class FailuresTest(EngineCase):
    def test_agent_fails_with_core_and_worker_apart(self):
        self.failures(APART)

    def killed(self, env, victim):
        """A process of the engine, in mid-save and in mid-load: the agent gets everything back, and
        has nothing wrong."""
        agent, long = self.agent(), prompt(9, 1000)
        wanted = self.reference(long, env=env), self.reference(long, own_cache=True, env=env)
        for at in ("store", "load"):
            engine = self.engine(agent, env=env, extra={"lease_ms": 60_000})
            engine.start(long, strike={"at": at, "pid": victim, "after": "SIGKILL"})
            agent.until(sessions=0, leases=0, pins=0, ops=0, reserved_bytes=0)
            engine.close()
            engine = self.engine(agent, env=env)
            found = engine.run(long)
            self.same(found, wanted[found["counters"]["loaded_tokens"] > 0])
            self.assertTrue(found["clean"])
            if at == "load":
                self.assertEqual(found["counters"]["loaded_tokens"], 960)
            self.ended(engine)

    def test_an_engine_in_one_process_is_killed(self):
        self.killed(ONE, "worker")

    def test_a_worker_is_killed(self):
        self.killed(APART, "worker")

    def test_an_engine_core_is_killed(self):
        self.killed(APART, "core")

    def test_agent_killed_at_any_time(self):
        agent = self.agent(nvme_bytes="512MiB")
        prompts = [prompt(20 + i, 1000) for i in range(6)]
        wanted = self.reference(*prompts)
        engine = self.engine(agent, max_num_batched_tokens=512)
        for delay in (0.3, 0.8, 1.5, 0.1, 0.05):
            engine.start(*prompts, reset=True)
            time.sleep(delay)
            agent.kill()
            time.sleep(0.2)
            agent.start()
            self.assertEqual(engine.answer()["tokens"], wanted["tokens"])
        self.ended(engine)
        engine = self.engine(agent)
        self.assertEqual(engine.run(*prompts)["tokens"], wanted["tokens"])
        self.ended(engine)

    def test_full_agent(self):
        """Full of what others hold, and full of older prompts that make room."""
        prompts = [prompt(40 + i, 1500) for i in range(24)]
        wanted = [self.reference(p) for p in prompts]
        for full in (True, False):
            agent = self.agent(host_bytes="64MiB")
            if full:
                self.addCleanup(lease_all(agent.socket).close)
            engine = self.engine(agent, extra={"save_timeout_ms": 200})
            for _ in range(2):
                for p, w in zip(prompts, wanted):
                    found = engine.run(p, reset=True)
                    self.assertEqual(found["tokens"], w["tokens"])
            found = engine.run(prompts[-1], reset=True)
            self.assertEqual(found["counters"]["unstored_chunks"] > 0, full)
            self.assertEqual(found["counters"]["loaded_tokens"] > 0, not full)
            self.ended(engine)


def lease_all(socket_path):
    """Fills the agent with chunks and holds them. @return the client, whose end frees them."""
    client = Client(socket_path)
    client.connect_wait(5)
    size = 256 << 10
    namespace = client.namespace(Namespace(model="other", tokens_per_chunk=64, n_layers=1,
                                           n_kv_heads=1, head_dim=1, chunk_bytes=size))
    memory = np.zeros((64, size), np.uint8)
    for i in range(8):
        keys = [bytes([i, j]) + bytes(30) for j in range(64)]
        client.store(namespace, keys, memory, timeout=0.5)  # an agent makes its room as it starts
        client.lookup(namespace, keys, lease_ms=600_000)
    return client


class SharedTest(EngineCase):
    def test_two_engines_at_once(self):
        agent = self.agent()
        prompts = [prompt(50, 500) + prompt(60 + i, 300) for i in range(4)]
        wanted = self.reference(*prompts)
        engines = [self.engine(agent) for _ in range(2)]
        for _ in range(2):
            for engine in engines:
                engine.start(*prompts, reset=True)
            for engine in engines:
                found = engine.answer()
                self.assertEqual(found["tokens"], wanted["tokens"])
        self.assertGreaterEqual(found["counters"]["loaded_tokens"], 4 * 768)
        for engine in engines:
            self.ended(engine)

    def test_another_hash_root(self):
        agent, long = self.agent(), prompt(8, 500)
        for seed in ("0", "1"):
            engine = self.engine(agent, env={**ONE, "PYTHONHASHSEED": seed})
            self.counted(engine.run(long), loaded_tokens=0)
            self.ended(engine)

    def test_adapters(self):
        """Also two of the same name, whose KV vLLM's own hashes take for the same."""
        agent, long = self.agent(), prompt(70, 500)
        options = {"enable_lora": True, "max_lora_rank": 8, "max_loras": 1}
        loras = [None, *({"lora_name": "x", "lora_int_id": 1 + i, "lora_path": ENV.lora(name)}
                         for i, name in enumerate("ab"))]
        wanted = [self.reference(long, step={"lora": lora}, **options) for lora in loras]
        self.assertEqual(len({str(w["tokens"]) for w in wanted}), 3)
        for loaded in (0, 448):
            engine = self.engine(agent, **options)
            for i, lora in enumerate(loras):
                found = engine.run(long, reset=True, lora=lora)
                self.same(found, wanted[i])
                self.counted(found, loaded_tokens=(i + 1) * loaded)
            self.ended(engine)

    def test_beside_another_connector(self):
        agent = self.agent()
        other = {"kv_connector": "ExampleConnector", "kv_role": "kv_both",
                 "kv_connector_extra_config": {
                     "shared_storage_path": os.path.join(agent.folder, "example")}}
        self.cold_and_warm(896, multi=other)


def main():
    global KVTIERD, VERSION, ENV
    KVTIERD, VERSION = sys.argv[1], sys.argv[3]
    ENV = Env(sys.argv[2])
    prepare()
    unittest.main(argv=[sys.argv[0], *sys.argv[4:]])


if __name__ == "__main__":
    main()
