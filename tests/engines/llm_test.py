# SPDX-License-Identifier: Apache-2.0
"""Real vLLM, real agent: the same tokens as without a connector, and hits counted by the connector.

Usage: llm_test.py KVTIERD ENGINES_FOLDER VERSION [unittest arguments]
The folder is make_env.py's. Classes Short* are what CI runs; the others take minutes each.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest

from agent import Agent
from llm_run import MARK
from make_env import Env

KVTIERD = VERSION = ""
ENV = None
HERE = os.path.dirname(os.path.abspath(__file__))
START_S, STEP_S = 150, 100
CLOSE = 1e-4  # cached paths differ by 1e-5 from computed ones, other prompts by far more

ONE = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
APART = {}
TP2 = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}


def prompt(seed, n):
    source = random.Random(seed)
    return [source.randrange(5, 31000) for _ in range(n)]


class Engine:
    """llm_run.py in a process of its own."""

    def __init__(self, socket="", env=ONE, model="tiny", extra=None, multi=None, **options):
        job = {"model": ENV.model(model), "socket": socket, "options": options,
               "extra": {"chunk_tokens": 64, **(extra or {})}, "multi": multi}
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [ENV.python, os.path.join(HERE, "llm_run.py")], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self.log, text=True, start_new_session=True,
            env={**os.environ, "PYTHONHASHSEED": "0", "VLLM_CPU_KVCACHE_SPACE": "1",
                 "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING", **env})
        self.timer = threading.Timer(START_S, self.kill)
        self.timer.start()
        self._send(job)
        self.pid = self._read()["ready"]
        self.timer.cancel()

    def _send(self, message):
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def _read(self):
        for line in self.process.stdout:
            if line.startswith(MARK):
                return json.loads(line[len(MARK):])
        self.log.seek(0)
        raise AssertionError("the engine ended:\n" + self.log.read()[-6000:])

    def run(self, *prompts, **step):
        timer = threading.Timer(STEP_S, self.kill)
        timer.start()
        try:
            self._send({"prompts": prompts, **step})
            return self._read()
        finally:
            timer.cancel()

    def start(self, *prompts, **step):
        """Like run(), but the answer is read by calling what this returns."""
        self._send({"prompts": prompts, **step})
        return self._read

    def end(self):
        """A clean exit, with no block left behind."""
        self._send({"end": True})
        left = self._read()["blocks_left"]
        status = self.process.wait(60)
        self.close()
        return left, status

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)

    def close(self):
        self.timer.cancel()
        if self.process.poll() is None:
            self.kill()
            self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.log):
            stream.close()


class EngineCase(unittest.TestCase):
    references = {}

    def agent(self, **settings):
        agent = Agent(KVTIERD, **{"host_bytes": "256MiB", **settings})
        self.addCleanup(agent.close)
        return agent

    def engine(self, *args, **options):
        engine = Engine(*args, **options)
        self.addCleanup(engine.close)
        return engine

    def reference(self, steps, **options):
        """What an engine without a connector says, in the same arrangement of processes."""
        name = json.dumps([steps, options], sort_keys=True, default=str)
        if name not in self.references:
            engine = self.engine(**options)
            self.references[name] = [engine.run(*p, **s) for p, s in steps]
            engine.end()
        return self.references[name]

    def same(self, got, wanted, close=CLOSE):
        self.assertEqual(got["tokens"], wanted["tokens"])
        for one, other in zip(got["logprobs"], wanted["logprobs"]):
            for a, b in zip(one, other):
                self.assertAlmostEqual(a, b, delta=close)

    def ended(self, engine):
        left, status = engine.end()
        self.assertIn(left, (0, None))
        self.assertEqual(status, 0)


class ShortTest(EngineCase):
    """Cold, warm in another process, warm after the agent's restart, salts, local prefix."""

    def test_in_one_process(self):
        agent = self.agent(nvme_bytes="256MiB")
        long, short = prompt(1, 1000), prompt(1, 400)
        steps = [([long], {}), ([short], {"max_tokens": 20})]
        wanted = self.reference(steps, env=ONE)
        cold = self.engine(agent.socket)
        self.same(cold.run(long), wanted[0])
        found = cold.run(short, max_tokens=20, reset=True)
        self.same(found, wanted[1])
        self.assertEqual(found["counters"]["loaded_tokens"], 384)
        salted = cold.run(long, salts=["a"], reset=True)
        self.same(salted, wanted[0])
        self.assertEqual(salted["counters"]["loaded_tokens"], 384)
        self.ended(cold)
        agent.stop()
        agent.start()
        warm = self.engine(agent.socket)
        found = warm.run(short[:200], max_tokens=1)        # partly in the engine from here on
        found = warm.run(long)
        self.same(found, wanted[0])
        self.assertEqual(found["counters"]["loaded_tokens"], 192 + 960 - 192)
        both = warm.run(long, long, long, reset=True)      # equal prompts at once
        for i in range(3):
            self.assertEqual(both["tokens"][i], wanted[0]["tokens"][0])
        agent.kill()
        found = warm.run(long, reset=True)                 # and without the agent
        self.same(found, wanted[0])
        agent.start()
        self.ended(warm)

    def test_core_and_worker_apart(self):
        agent = self.agent()
        long = prompt(2, 900)
        wanted = self.reference([([long], {})], env=APART)
        for tokens in (0, 896):
            engine = self.engine(agent.socket, env=APART)
            found = engine.run(long)
            self.same(found, wanted[0])
            self.assertEqual(found["counters"].get("loaded_tokens", 0), tokens)
            self.ended(engine)


class TensorParallelTest(EngineCase):
    def test_two_ranks(self):
        agent = self.agent()
        long = prompt(3, 900)
        options = {"env": TP2, "tensor_parallel_size": 2}
        wanted = self.reference([([long], {})], **options)
        for tokens in (0, 896):
            engine = self.engine(agent.socket, **options)
            found = engine.run(long)
            self.same(found, wanted[0])
            self.assertEqual(found["counters"].get("loaded_tokens", 0), tokens)
            self.ended(engine)
        # One rank's KV is not another's, nor an engine's without ranks.
        engine = self.engine(agent.socket)
        self.assertEqual(engine.run(long)["counters"].get("loaded_tokens", 0), 0)
        self.ended(engine)


class ShapesTest(EngineCase):
    def check(self, tokens, n=900, close=CLOSE, **options):
        agent = self.agent()
        long = prompt(4, n)
        wanted = self.reference([([long], {})], **options)
        for loaded in (0, tokens):
            engine = self.engine(agent.socket, **options)
            found = engine.run(long)
            self.same(found, wanted[0], close)
            self.assertEqual(found["counters"].get("loaded_tokens", 0), loaded)
            self.ended(engine)

    def test_mla(self):
        self.check(896, model="mla", dtype="bfloat16", block_size=16, close=0.05)

    def test_hybrid(self):
        hybrid = tuple(int(x) for x in VERSION.split(".")[:2]) >= (0, 30)
        options = {} if hybrid else {"disable_hybrid_kv_cache_manager": True}
        self.check(896, model="hybrid", **options)

    def test_bfloat16(self):
        self.check(896, dtype="bfloat16", close=0.05)

    def test_fp8(self):
        self.check(896, kv_cache_dtype="fp8", dtype="bfloat16", close=0.05)

    def test_one_block_per_chunk_and_chunked_prefill(self):
        self.check(896, extra={"chunk_tokens": 1}, max_num_batched_tokens=128)


class PreemptionTest(EngineCase):
    def test_little_room(self):
        agent = self.agent()
        prompts = [prompt(5, 100) + prompt(10 + i, 60 + 20 * i) for i in range(6)]
        step = {"max_tokens": 150}
        wanted = self.reference([(prompts, step)], env=ONE)[0]
        for _ in range(2):
            engine = self.engine(agent.socket, num_gpu_blocks_override=30, max_model_len=512)
            found = engine.run(*prompts, **step)
            self.assertEqual(found["tokens"], wanted["tokens"])
            self.ended(engine)


class FailuresTest(EngineCase):
    def test_agent_killed_while_engines_run(self):
        agent = self.agent(nvme_bytes="512MiB")
        prompts = [prompt(20 + i, 1000) for i in range(6)]
        wanted = self.reference([(prompts, {})], env=ONE)[0]
        engine = self.engine(agent.socket, max_num_batched_tokens=512)
        for delay in (0.3, 0.8, 1.5, 0.1):
            read = engine.start(*prompts, reset=True)
            time.sleep(delay)
            agent.kill()
            time.sleep(0.2)
            agent.start()
            self.assertEqual(read()["tokens"], wanted["tokens"])
        self.ended(engine)

    def test_corrupted_chunks(self):
        agent = self.agent(nvme_bytes="256MiB", nvme__engine="threads")
        long = prompt(6, 1000)
        wanted = self.reference([([long], {})], env=ONE)[0]
        engine = self.engine(agent.socket)
        engine.run(long)
        self.ended(engine)
        agent.stop()
        store = os.path.join(agent.folder, "store")
        size = os.path.getsize(store)
        with open(store, "r+b") as file:  # flip a byte in every 64 KiB, but leave the superblock
            for at in range(1 << 20, size, 1 << 16):
                file.seek(at + 5000)
                byte = file.read(1)
                file.seek(at + 5000)
                file.write(bytes([byte[0] ^ 1]) if byte else b"")
        agent.start()
        for _ in range(2):
            engine = self.engine(agent.socket)
            self.same(engine.run(long), wanted)
            self.ended(engine)

    def test_full_agent(self):
        agent = self.agent(host_bytes="64MiB")
        prompts = [prompt(40 + i, 1500) for i in range(24)]
        wanted = self.reference([([p], {}) for p in prompts], env=ONE)
        engine = self.engine(agent.socket)
        for i, p in enumerate(prompts):
            self.same(engine.run(p, reset=True), wanted[i])
        for i, p in enumerate(prompts):
            self.same(engine.run(p, reset=True), wanted[i])
        self.ended(engine)

    def test_stopped_agent(self):
        agent = self.agent()
        long = prompt(7, 1000)
        wanted = self.reference([([long], {})], env=ONE)[0]
        engine = self.engine(agent.socket)
        engine.run(long)
        agent.pause()
        found = engine.run(long, reset=True)
        self.same(found, wanted)
        self.assertLess(found["seconds"], 10)
        agent.resume()
        self.ended(engine)


class SharedTest(EngineCase):
    def test_two_engines_at_once(self):
        agent = self.agent()
        prompts = [prompt(50, 500) + prompt(60 + i, 300) for i in range(4)]
        wanted = self.reference([(prompts, {})], env=ONE)[0]
        engines = [self.engine(agent.socket) for _ in range(2)]
        for _ in range(2):
            for read in [e.start(*prompts, reset=True) for e in engines]:
                self.assertEqual(read()["tokens"], wanted["tokens"])
        for engine in engines:
            self.ended(engine)

    def test_another_hash_root(self):
        agent = self.agent()
        long = prompt(8, 500)
        for seed in ("0", "1"):
            engine = self.engine(agent.socket, env={**ONE, "PYTHONHASHSEED": seed})
            self.assertEqual(engine.run(long)["counters"].get("loaded_tokens", 0), 0)
            self.ended(engine)

    def test_beside_another_connector(self):
        agent = self.agent()
        other = {"kv_connector": "ExampleConnector", "kv_role": "kv_both",
                 "kv_connector_extra_config": {
                     "shared_storage_path": os.path.join(agent.folder, "example")}}
        long = prompt(9, 500)
        wanted = self.reference([([long], {})], env=ONE)[0]
        for _ in range(2):
            engine = self.engine(agent.socket, multi=other)
            self.same(engine.run(long), wanted)
            self.ended(engine)


def main():
    global KVTIERD, VERSION, ENV
    KVTIERD, VERSION = sys.argv[1], sys.argv[3]
    ENV = Env(sys.argv[2])
    unittest.main(argv=[sys.argv[0], *sys.argv[4:]])


if __name__ == "__main__":
    main()
