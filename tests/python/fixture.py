# SPDX-License-Identifier: Apache-2.0
"""What the tests of the Python package share: agents of their own, and chunks with known bytes.

KVT_KVTIERD names the agent's program.
"""

import os
import select
import shutil
import signal
import subprocess
import tempfile
import unittest

import numpy as np

import kvtier

WAIT_S = 30
CHUNK = 64 << 10


def key(number):
    return number.to_bytes(8, "little") + bytes(16) + (~number & 0xFFFFFFFF).to_bytes(8, "big")


def keys(numbers):
    return b"".join(map(key, numbers))


def pattern(number, n_bytes=CHUNK):
    """Bytes of chunk `number`."""
    return np.random.default_rng(number).integers(0, 256, n_bytes, np.uint8)


def namespace(**fields):
    return kvtier.Namespace(**{"model": "test", "chunk_bytes": CHUNK, "n_segments": 4, **fields})


class Agent:
    """A kvtierd in a folder; may be stopped and started again."""

    def __init__(self, folder, **sets):
        self.socket = os.path.join(folder, "kvtierd.sock")
        self.log = os.path.join(folder, "log")
        self.sets = {"socket.path": self.socket, "host.bytes": "64MiB", "host.huge_pages": "off",
                     "host.slab_bytes": "4MiB"}
        self.sets.update({name.replace("__", "."): value for name, value in sets.items()})
        self.process = None

    def start(self):
        read_fd, write_fd = os.pipe()
        args = [os.environ["KVT_KVTIERD"], "--ready-fd", str(write_fd)]
        for name, value in self.sets.items():
            args += ["--set", f"{name}={value}"]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(args, stdin=subprocess.DEVNULL, stderr=log, stdout=log,
                                            pass_fds=[write_fd])
        os.close(write_fd)
        with os.fdopen(read_fd, "rb", buffering=0) as ready:
            if not select.select([ready], [], [], WAIT_S)[0] or not ready.read(1):
                self.kill()
                with open(self.log, encoding="utf-8", errors="replace") as log:
                    raise AssertionError("kvtierd did not start:\n" + log.read()[-4000:])
        return self

    def signal(self, number):
        self.process.send_signal(number)

    def kill(self):
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()


class TestCase(unittest.TestCase):
    """A folder, an agent in it (`sets`: its settings), and clients that are closed at the end."""

    sets = {}

    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="kvt-python-")
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.agent = Agent(self.folder, **self.agent_sets())
        self.addCleanup(self.agent.kill)
        self.agent.start()

    def agent_sets(self):
        return self.sets

    def client(self, connect=True, **options):
        client = kvtier.Client(self.agent.socket, name="test", **options)
        self.addCleanup(client.close)
        if connect:
            self.assertTrue(client.connect_wait(WAIT_S))
        return client

    def store(self, client, ns, numbers):
        done = client.store(ns, keys(numbers), [pattern(n) for n in numbers], timeout=WAIT_S)
        self.assertEqual((done.status, list(done.statuses)), (0, [0] * len(numbers)))

    def load(self, client, ns, numbers):
        back = np.zeros((len(numbers), CHUNK), np.uint8)
        done = client.load(ns, keys(numbers), back, timeout=WAIT_S)
        self.assertEqual((done.status, list(done.statuses)), (0, [0] * len(numbers)))
        for i, number in enumerate(numbers):
            self.assertTrue(np.array_equal(back[i], pattern(number)), number)
