# SPDX-License-Identifier: Apache-2.0
"""An agent that engines use meanwhile, and clients whose chunks are known: what kvctl says of them
can be compared with the truth."""

import contextlib
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path += [os.path.join(HERE, "..", "daemon"), os.path.join(HERE, "..", "robust")]

import agent_test
import kvt
import metrics_test
import program_test
from program_test import OK, WAIT_S

KVBENCH = ""
CHAIN = 8  # chunks of a prompt
KIB, MIB = 1 << 10, 1 << 20
MASK = (1 << 64) - 1


def mix64(x):
    """As in tests/robust/client_chunk.c."""
    x = (x + 0x9e3779b97f4a7c15) & MASK
    x = ((x ^ x >> 30) * 0xbf58476d1ce4e5b9) & MASK
    x = ((x ^ x >> 27) * 0x94d049bb133111eb) & MASK
    return x ^ x >> 31


class Engine(kvt.Client):
    """A client with chunks of its own, in prompts of CHAIN chunks."""

    def __init__(self, socket, model, chunk_bytes=64 * KIB):
        self.model, self.chunk_bytes = model, chunk_bytes
        self.salt = 0
        for c in model.encode():
            self.salt = mix64((self.salt + c) & MASK)
        self.socket = socket
        super().__init__(self, model=model, chunk_bytes=chunk_bytes, segments=4, chain=CHAIN,
                         chunks=1024, threads=0)
        self.connect()

    def key(self, number):
        words = (mix64(self.salt ^ mix64(number << 8 | i)) for i in range(4))
        return b"".join(w.to_bytes(8, "little") for w in words).hex()

    def keys(self, numbers):
        return [self.key(n) for n in numbers]

    def parent(self, number):
        return self.key(number - 1) if number % CHAIN else ""

    def must_store(self, first, n, durable=True):
        letters = self.store(first, n, durable=durable)
        assert letters == "O" * n, letters


class Load:
    """kvbench's requests, again and again until the end: after the first round nothing is new, so
    nothing is evicted."""

    ARGS = ("rag", "--max-requests", "1000", "--chunk-bytes", "8KiB", "--clients", "2",
            "--time-scale", "30")

    def __init__(self, socket):
        self.command = [KVBENCH, *self.ARGS, "--socket", socket]
        self.ending, self.first_round = threading.Event(), threading.Event()
        self.faults, self.process = [], None
        self.lock = threading.Lock()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        if not self.first_round.wait(10 * WAIT_S):
            self.stop()
            raise AssertionError("kvbench took too long")

    def run(self):
        while not self.ending.is_set():
            with self.lock:
                self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL,
                                                stderr=subprocess.PIPE, text=True)
            errors = self.process.communicate()[1]
            if self.process.returncode != 0 and not self.ending.is_set():
                self.faults.append(errors)
                self.ending.set()
            self.first_round.set()

    def stop(self):
        self.ending.set()
        with self.lock, contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        self.thread.join()
        assert not self.faults, self.faults


class TestCase(program_test.TestCase):
    """One agent under load for all tests of a class; each test has a model of its own."""

    SETS = ("host.bytes=256MiB", "host.slab_bytes=16MiB", "nvme.slab_bytes=16MiB",
            "metrics.listen=127.0.0.1:0", "lease.ttl=10m", "nvme.scrub_bytes_per_s=0")
    NVME_BYTES = 768 * MIB
    LOADED = True

    @classmethod
    def setUpClass(cls):
        cls.home = tempfile.mkdtemp(prefix="kvt-live-", dir="/var/tmp")
        cls.addClassCleanup(shutil.rmtree, cls.home, ignore_errors=True)
        cls.agent = agent_test.Agent(cls.home, *cls.SETS, nvme_bytes=cls.NVME_BYTES)
        cls.addClassCleanup(cls.agent.stop)
        cls.port = int(re.findall(r"metrics served .*port=(\d+)", cls.agent.log())[-1])
        cls.load = Load(cls.agent.path) if cls.LOADED else None
        if cls.load is not None:
            cls.addClassCleanup(cls.load.stop)

    def setUp(self):
        super().setUp()
        self.socket = self.agent.path
        self.model = re.sub(r"^.*\.", "", self.id())
        if self.load is not None:
            self.assertEqual(self.load.faults, [])

    def engine(self, model=None, **how):
        engine = Engine(self.socket, model or self.model, **how)
        self.addCleanup(engine.kill)
        return engine

    def json(self, *args, code=OK):
        return json.loads(self.kvctl(*args, "-o", "json", code=code)[0])

    def get(self, kind, *args):
        return self.json("get", kind, *args)[kind]

    def namespace(self, model=None):
        """The id of the namespace of a model."""
        found = [n["id"] for n in self.get("namespaces") if n["model"] == (model or self.model)]
        self.assertEqual(len(found), 1, found)
        return found[0]

    def chunk(self, engine, number):
        return self.json("describe", "chunk", engine.key(number))

    def metrics(self):
        """{(name, labels): value} as /metrics says."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
        with contextlib.closing(connection):
            connection.request("GET", "/metrics")
            return metrics_test.parse(connection.getresponse().read().decode())

    def until(self, condition, what):
        deadline = time.monotonic() + WAIT_S
        while not condition():
            self.assertLess(time.monotonic(), deadline, what)
            time.sleep(0.02)

    def start(self, *args):
        """A run of kvctl that goes on."""
        run = subprocess.Popen([program_test.KVCTL, *args, "--socket", self.socket],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(run.communicate)
        self.addCleanup(run.kill)
        return run

    def terminal(self, *args):
        terminal = program_test.Terminal(program_test.KVCTL, *args, "--socket", self.socket)
        self.addCleanup(terminal.close)
        return terminal


def main():
    """argv: KVCTL KVTIERD KVBENCH ROBUST_CLIENT [TEST...]"""
    global KVBENCH  # pylint: disable=global-statement
    program_test.KVCTL, agent_test.KVTIERD, KVBENCH, os.environ["KVT_CLIENT"] = (
        os.path.abspath(sys.argv.pop(1)) for _ in range(4))
    unittest.main(verbosity=2)
