# SPDX-License-Identifier: Apache-2.0
"""put, get-chunk and doctor with an agent that serves an engine's load meanwhile.

Usage: smoke_test.py KVCTL KVTIERD KVBENCH [TEST...]
"""

import json
import os
import shutil
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "daemon"))

import agent_test
import program_test
from program_test import BAD, FAILED, KEY, NOT_FOUND, UNREACHABLE, WAIT_S

KVBENCH = ""
KIB, MIB = 1 << 10, 1 << 20


def key(number):
    return f"{number:064x}"


class TestCase(program_test.TestCase):
    SETS = ("host.slab_bytes=32MiB", "host.bytes=128MiB")

    def setUp(self):
        super().setUp()
        self.agent = agent_test.Agent(self.folder, *self.SETS, nvme_bytes=0)
        self.addCleanup(self.stop)

    def stop(self):
        if self.agent.process.poll() is None:
            self.agent.stop()

    def write(self, data):
        path = self.path("file")
        with open(path, "wb") as file:
            file.write(data)
        return path

    def read_back(self, name):
        out = self.path("back")
        self.kvctl("get-chunk", name, out)
        with open(out, "rb") as file:
            return file.read()


class Chunks(TestCase):
    def test_files_of_any_size_under_load(self):
        load = subprocess.Popen([KVBENCH, "rag", "--socket", self.agent.path, "--max-requests", "100000"],
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(load.wait)
        self.addCleanup(load.terminate)
        trailer = 16
        for number, n in enumerate((0, 1, 4096 - trailer, 4096 - trailer + 1, 5 * KIB, 64 * KIB - trailer,
                                    65 * KIB, 3 * MIB)):
            data = os.urandom(n)
            made = json.loads(self.kvctl("put", key(number), self.write(data), "-o", "json")[0])
            self.assertEqual(made["file_bytes"], n)
            self.assertGreaterEqual(made["chunk_bytes"], n + trailer)
            self.assertEqual(self.read_back(key(number)), data)
        self.assertIsNone(load.poll())

    def test_a_chunk_never_changes(self):
        self.kvctl("put", KEY, self.write(b"first"))
        for second in (b"second", bytes(100 * KIB)):  # whatever its size
            errors = self.kvctl("put", KEY, self.write(second), code=FAILED)[1]
            self.assertIn("held already", errors)
        self.assertEqual(self.read_back(KEY), b"first")

    def test_pipes(self):
        done = subprocess.run([program_test.KVCTL, "put", KEY, "-", "--socket", self.agent.path],
                              input=b"through pipes", stdout=subprocess.PIPE, timeout=60, check=True)
        self.assertIn(KEY.encode(), done.stdout)
        self.assertEqual(self.kvctl("get-chunk", KEY, "-")[0], "through pipes")

    def test_failures(self):
        self.assertIn("is not held", self.kvctl("get-chunk", KEY, "-", code=NOT_FOUND)[1])
        too_large = self.write(bytes(16 * MIB))
        self.assertIn("more than", self.kvctl("put", KEY, too_large, code=FAILED)[1])
        self.assertIn("/nowhere", self.kvctl("put", KEY, "/nowhere", code=FAILED)[1])
        self.assertIn("cannot read", self.kvctl("put", KEY, self.folder, code=FAILED)[1])
        self.kvctl("put", KEY, self.write(b"x" * 5000))
        self.assertIn("/nowhere", self.kvctl("get-chunk", KEY, "/nowhere/x", code=FAILED)[1])
        self.assertIn("No space left", self.kvctl("get-chunk", KEY, "/dev/full", code=FAILED)[1])
        self.stop()
        self.assertIn("No such file", self.kvctl("get-chunk", KEY, "-", code=UNREACHABLE)[1])

    def test_doctor_looks_at_the_agent(self):
        out, _ = self.kvctl("doctor", "-o", "json")
        found = [(f["check"], f["verdict"]) for f in json.loads(out)["findings"]]
        self.assertIn(("socket", "ok"), found)

    @unittest.skipUnless(os.geteuid() == 0, "only root can be somebody else")
    def test_somebody_else(self):
        """Is told as whom to come, by each socket."""
        os.chmod(self.folder, 0o755)
        kvctl = shutil.copy(program_test.KVCTL, self.folder)  # where it is may be closed to others

        def run(*args):
            return subprocess.run([kvctl, "--socket", self.agent.path, *args], capture_output=True,
                                  text=True, timeout=WAIT_S, check=False, cwd="/", user=65534,
                                  group=65534, extra_groups=[])

        done = run("info")
        self.assertEqual(done.returncode, UNREACHABLE, done.stderr)
        self.assertRegex(done.stderr, "control.sock: Permission denied; run kvctl as root or as")
        done = run("doctor", "-o", "json")
        self.assertEqual(done.returncode, BAD, done.stderr)
        found = [(f["check"], f["verdict"], f["remedy"]) for f in json.loads(done.stdout)["findings"]
                 if f["check"] in ("socket", "control")]
        self.assertEqual([f[:2] for f in found], [("socket", "FAIL"), ("control", "FAIL")])
        self.assertIn("in its group", found[0][2])
        self.assertIn("root", found[1][2])


class SmallSlabs(TestCase):
    """An agent that refuses the namespaces of larger files."""

    SETS = ("host.slab_bytes=2MiB", "host.bytes=16MiB")

    def test_sizes(self):
        self.assertIn("is not held", self.kvctl("get-chunk", KEY, "-", code=NOT_FOUND)[1])
        self.kvctl("put", KEY, self.write(b"small"))
        self.assertEqual(self.read_back(KEY), b"small")
        errors = self.kvctl("put", key(2), self.write(bytes(2 * MIB)), code=FAILED)[1]
        self.assertIn("takes no chunk of this size", errors)


if __name__ == "__main__":
    program_test.KVCTL, agent_test.KVTIERD, KVBENCH = (os.path.abspath(sys.argv.pop(1)) for _ in range(3))
    unittest.main(verbosity=2)
