# SPDX-License-Identifier: Apache-2.0
"""kvtierd from outside: its command line, its start and stop, and clients that behave badly.

Usage: agent_test.py PATH_OF_KVTIERD [TEST...]
"""

import array
import os
import random
import re
import select
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
import unittest

KVTIERD = ""
MIB = 1 << 20
CHUNK_BYTES = 4096
CHUNK_SUM = 0x93d76fe148c689ba  # XXH3-64 of a chunk of zeros, as a fresh arena has them
WAIT_S = 30

HELLO, WELCOME, PING, PONG, NS_OPEN, NS_OPEN_R, LOOKUP, LOOKUP_R = range(1, 9)
RELEASE, RELEASE_R, RESERVE, RESERVE_R, COMMIT, COMMIT_R, LOAD, LOAD_R = range(9, 17)
LOAD_DONE, CANCEL, CANCEL_R, STATS, STATS_R = range(17, 22)
ERR_INVAL, ERR_AGAIN, ERR_VERSION = -5, -2, -14
STAT_HOST_CAPACITY_BYTES, STAT_SESSIONS, STAT_LEASES, STAT_RESERVED_BYTES, STAT_OPS = 2, 6, 7, 10, 9
OPS_MAX = 64


def message(kind, body=b"", op=1, length=None):
    total = 16 + len(body) if length is None else length
    return struct.pack("<HHIQ", kind, 0, total, op) + body


def hello(version=1, magic=0x3154564B, name=b"test"):
    return message(HELLO, struct.pack("<II48s", magic, version, name))


def descriptor(model=b"m", n_segments=1, chunk_bytes=CHUNK_BYTES):
    return (struct.pack("<128s64s64s64s32s16s", model, b"", b"", b"", b"", b"") +
            struct.pack("<10IQ", 1, 1, 1, 1, 0, 1, 0, 1, 0, n_segments, chunk_bytes) + bytes(96))


def key(n):
    return struct.pack("<Q24s", n * 0x9E3779B97F4A7C15 % 2**64, struct.pack("<Q", n) * 3)


def keys(numbers):
    return b"".join(key(n) for n in numbers)


class Client:
    """The session protocol, as bytes."""

    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MIB)
        self.sock.connect(path)
        self.sock.settimeout(WAIT_S)
        self.fds = []

    def close(self):
        self.sock.close()
        for fd in self.fds:
            os.close(fd)
        self.fds = []

    def send(self, msg):
        self.sock.send(msg)

    def receive(self):
        """(type, op, body), or None: the agent sends no more."""
        data = self.sock.recv(1 << 18)
        if not data:
            return None
        kind, _, total, op = struct.unpack_from("<HHIQ", data)
        assert total == len(data), (total, len(data))
        return kind, op, data[16:]

    def call(self, kind, body=b"", op=1):
        self.send(message(kind, body, op))
        return self.receive()

    def greet(self, **how):
        self.send(hello(**how))
        data, control, _, _ = self.sock.recvmsg(4096, socket.CMSG_SPACE(8))
        for level, kind, raw in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds = array.array("i")
                fds.frombytes(raw[:len(raw) - len(raw) % fds.itemsize])
                self.fds += fds
        return struct.unpack_from("<iIQIIQ", data, 16) if data else None

    def open(self, **desc):
        self.greet()
        _, _, body = self.call(NS_OPEN, descriptor(**desc))
        status, ns, _ = struct.unpack_from("<iIQ", body)
        assert status == 0, body
        return ns

    def stats(self):
        _, _, body = self.call(STATS)
        n, _ = struct.unpack_from("<II", body)
        return struct.unpack_from(f"<{n}Q", body, 8)

    def reserve(self, ns, numbers, op=1):
        body = struct.pack("<IIIIQ", ns, len(numbers), 0, 0, 0) + keys(numbers)
        return self.call(RESERVE, body, op)

    def store(self, ns, numbers, op=1):
        """Reserve and commit the zeros of a fresh arena."""
        n = len(numbers)
        kind, _, body = self.reserve(ns, numbers, op)
        assert kind == RESERVE_R and struct.unpack_from("<iI", body) == (0, n), body
        pad = bytes(4 * (n % 2))
        body = struct.pack(f"<II{n}I", n, 0, *range(n)) + pad + struct.pack("<Q", CHUNK_SUM) * n
        kind, _, body = self.call(COMMIT, body, op)
        assert kind == COMMIT_R and struct.unpack_from("<i", body) == (0,), body

    def lookup(self, ns, numbers, flags=0):
        body = struct.pack("<IIII", ns, len(numbers), flags, 0) + keys(numbers)
        _, _, body = self.call(LOOKUP, body)
        return struct.unpack_from("<iI", body)


class Agent:
    def __init__(self, folder, *sets, wait=True, nvme_bytes=0, args=()):
        self.path = os.path.join(folder, "s.sock")
        args = [KVTIERD, *args, "--set", f"socket.path={self.path}", "--set", "host.bytes=32MiB",
                "--set", "host.slab_bytes=8MiB", "--set", "host.huge_pages=off",
                "--set", "metrics.listen="]
        if nvme_bytes:
            args += ["--set", f"nvme.path={folder}/store", "--set", f"nvme.bytes={nvme_bytes}",
                     "--set", "nvme.slab_bytes=8MiB"]
        for item in sets:
            args += ["--set", item]
        read_fd, write_fd = os.pipe()
        self.log_path = os.path.join(folder, "log")
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(args + ["--ready-fd", str(write_fd)], stderr=log,
                                            pass_fds=[write_fd])
        os.close(write_fd)
        try:
            if wait:
                ready, _, _ = select.select([read_fd], [], [], WAIT_S)
                if not ready or os.read(read_fd, 16) != b"ready\n":
                    self.process.kill()
                    raise AssertionError(self.log())
        finally:
            os.close(read_fd)

    def log(self):
        with open(self.log_path, encoding="utf-8", errors="replace") as log:
            return log.read()

    def stop(self, sig=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(sig)
        return self.process.wait(WAIT_S)


class TestCase(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="kvt-agent-")
        self.agents, self.clients = [], []

    def tearDown(self):
        for client in self.clients:
            client.close()
        for agent in self.agents:
            if agent.process.poll() is None:
                agent.process.kill()
                agent.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def agent(self, *sets, **how):
        self.agents.append(Agent(self.folder, *sets, **how))
        return self.agents[-1]

    def client(self, agent):
        self.clients.append(Client(agent.path))
        return self.clients[-1]

    def run_once(self, *args):
        return subprocess.run([KVTIERD, *args], capture_output=True, text=True, timeout=WAIT_S,
                              check=False)


class CommandLine(TestCase):
    def test_help_and_version(self):
        for option, says in (("--help", "Exit status"), ("--version", "kvtierd "),
                             ("--keys", "host.bytes")):
            done = self.run_once(option)
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            self.assertIn(says, done.stdout)

    def test_wrong_usage(self):
        for args in (["--nonsense"], ["word"], ["--ready-fd", "77"], ["--ready-fd", "x"],
                     ["--set", "host.bytes"], ["--config", "/nonexistent"]):
            done = self.run_once(*args)
            self.assertEqual((done.returncode, done.stdout), (2, ""), args)
            self.assertTrue(done.stderr.startswith("kvtierd: "), args)

    def test_every_config_fault_at_once(self):
        path = os.path.join(self.folder, "bad.yaml")
        with open(path, "w", encoding="utf-8") as file:
            file.write("host:\n  byts: 1GiB\n  slab_bytes: 3MiB\nnvme:\n  path: /x\n"
                       "lease: {ttl: 1h}\n")
        done = self.run_once("--check-config", "--config", path, "--set", "log.level=loud")
        self.assertEqual(done.returncode, 2)
        for says in (f"{path}:2: host.byts: unknown key; the nearest known one is host.bytes",
                     "host.slab_bytes: 3MiB is not a multiple", "nvme.bytes: missing",
                     "--set: log.level: \"loud\" is not one of",
                     "lease.ttl: 1h is longer than the 10m of lease.ttl_max"):
            self.assertIn(says, done.stderr)

    def test_what_is_printed_is_a_config(self):
        args = ["--set", "nvme.path=/data/store", "--set", "nvme.bytes=1GiB",
                "--set", "host.bytes=100MiB"]
        first = self.run_once("--print-config", *args)
        self.assertEqual(first.returncode, 0, first.stderr)
        self.assertIn("bytes: 64MiB", first.stdout)  # rounded down to a slab
        path = os.path.join(self.folder, "printed.yaml")
        with open(path, "w", encoding="utf-8") as file:
            file.write(first.stdout)
        again = self.run_once("--print-config", "--config", path)
        self.assertEqual((again.returncode, again.stdout), (0, first.stdout), again.stderr)

    def test_sample_names_every_key(self):
        sample = os.path.join(os.path.dirname(__file__), "../../deploy/kvtierd.yaml")
        done = self.run_once("--check-config", "--config", sample)
        self.assertEqual(done.returncode, 0, done.stderr)
        with open(sample, encoding="utf-8") as file:
            sections = dict(re.findall(r"(?m)^([a-z]+):\n((?:[ #].*\n|\n)*)", file.read()))
        for line in self.run_once("--keys").stdout.splitlines():
            if not line.startswith(" "):
                section, *_, name = line.split(".")
                self.assertRegex(sections[section], rf"(?m)^[ #-]*{name}:", line)


class StartAndStop(TestCase):
    def test_serves_and_stops(self):
        agent = self.agent(nvme_bytes=64 * MIB)
        client = self.client(agent)
        ns = client.open()
        client.store(ns, range(100))
        self.assertEqual(client.lookup(ns, range(101)), (0, 100))
        self.assertEqual(agent.stop(), 0)
        self.assertFalse(os.path.exists(agent.path))
        self.assertIsNone(client.receive())

    def test_what_was_stored_is_there_after_a_restart(self):
        client = self.client(self.agent(nvme_bytes=64 * MIB))
        ns = client.open()
        client.store(ns, range(100))
        self.assertEqual(self.agents[0].stop(), 0)
        client = self.client(self.agent(nvme_bytes=64 * MIB))
        self.assertEqual(client.lookup(client.open(), range(101)), (0, 100))

    def test_starts_empty_without_metadata(self):
        client = self.client(self.agent(nvme_bytes=64 * MIB))
        ns = client.open()
        client.store(ns, range(10))
        self.agents[0].stop()
        shutil.rmtree(os.path.join(self.folder, "store.meta"))
        agent = self.agent(nvme_bytes=64 * MIB)
        client = self.client(agent)
        self.assertEqual(client.lookup(client.open(), range(10)), (0, 0))
        self.assertIn("no metadata for existing store files", agent.log())

    def test_damaged_metadata_is_moved_aside(self):
        client = self.client(self.agent(nvme_bytes=64 * MIB))
        ns = client.open()
        client.store(ns, range(10))
        self.agents[0].stop()
        with open(os.path.join(self.folder, "store.meta", "CURRENT"), "w",
                  encoding="utf-8") as file:
            file.write("nonsense")
        client = self.client(self.agent(nvme_bytes=64 * MIB))
        self.assertEqual(client.lookup(client.open(), range(10)), (0, 0))
        self.assertTrue(os.path.isdir(os.path.join(self.folder, "store.meta.damaged-1")))

    def test_metadata_of_another_store(self):
        client = self.client(self.agent(nvme_bytes=64 * MIB))
        client.store(client.open(), range(10))
        self.agents[0].stop()
        os.unlink(os.path.join(self.folder, "store"))
        agent = self.agent(nvme_bytes=64 * MIB)
        client = self.client(agent)
        self.assertEqual(client.lookup(client.open(), range(10)), (0, 0))
        self.assertIn("metadata belongs to another store", agent.log())

    def test_store_that_cannot_open(self):
        with open(os.path.join(self.folder, "store"), "w", encoding="utf-8") as file:
            file.write("not a store" * 1000)
        agent = self.agent(nvme_bytes=64 * MIB, wait=False)
        self.assertEqual(agent.process.wait(WAIT_S), 1)
        self.assertIn("error", agent.log())
        agent = self.agent("nvme.required=false", nvme_bytes=64 * MIB)
        self.assertIn("going on with host memory alone", agent.log())
        client = self.client(agent)
        ns = client.open()
        client.store(ns, range(10))
        self.assertEqual(client.lookup(ns, range(10)), (0, 10))
        self.assertEqual(agent.stop(), 0)
        with open(os.path.join(self.folder, "store"), encoding="utf-8") as file:
            self.assertTrue(file.read().startswith("not a store"))

    def test_second_agent_is_refused(self):
        agent = self.agent()
        second = self.agent(wait=False)
        self.assertEqual(second.process.wait(WAIT_S), 1)
        self.assertIn("serves another agent", second.log())
        self.assertIsNotNone(self.client(agent).greet())

    def test_socket_of_a_killed_agent_is_replaced(self):
        agent = self.agent(nvme_bytes=64 * MIB)
        agent.stop(signal.SIGKILL)
        self.assertTrue(os.path.exists(agent.path))
        self.assertEqual(self.client(self.agent(nvme_bytes=64 * MIB)).greet()[0], 0)

    def test_foreign_files_at_the_socket_path_stay(self):
        path = os.path.join(self.folder, "s.sock")
        with open(path, "w", encoding="utf-8") as file:
            file.write("mine")
        agent = self.agent(wait=False)
        self.assertEqual(agent.process.wait(WAIT_S), 1)
        self.assertIn("is no socket", agent.log())
        with open(path, encoding="utf-8") as file:
            self.assertEqual(file.read(), "mine")
        os.unlink(path)
        other = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        other.bind(path)
        other.listen()
        agent = self.agent(wait=False)
        self.assertEqual(agent.process.wait(WAIT_S), 1)
        self.assertIn("somebody listens", agent.log())
        other.close()

    def test_socket_permissions(self):
        agent = self.agent("socket.mode=0640")
        self.assertEqual(stat.S_IMODE(os.stat(agent.path).st_mode), 0o640)

    def test_second_signal_stops_at_once(self):
        agent = self.agent("shutdown.drain_timeout=1h", nvme_bytes=64 * MIB)
        client = self.client(agent)
        ns = client.open()
        client.reserve(ns, range(10))
        # A waiting reservation keeps the agent from being done.
        client.send(message(RESERVE, struct.pack("<IIIIQ", ns, 1024, 0, 0, 2**62) +
                            keys(range(1000, 2024)), op=2))
        agent.process.send_signal(signal.SIGTERM)
        agent.stop()
        self.assertIn(agent.process.returncode, (0, 1))

    def test_json_log(self):
        import json
        agent = self.agent("log.format=json")
        agent.stop()
        for line in agent.log().splitlines():
            self.assertIn("msg", json.loads(line))

    def test_idle_agent_sleeps(self):
        agent = self.agent(nvme_bytes=64 * MIB)
        client = self.client(agent)
        client.open()
        self.assertLess(self.busy_seconds(agent, 2.0), 0.05)

    def busy_seconds(self, agent, wall_s):
        def used():
            with open(f"/proc/{agent.process.pid}/stat", encoding="utf-8") as file:
                fields = file.read().rsplit(")", 1)[1].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        before = used()
        select.select([], [], [], wall_s)
        return used() - before


class Sessions(TestCase):
    def still_serves(self, agent):
        client = self.client(agent)
        self.assertEqual(client.greet()[0], 0)
        self.assertEqual(client.call(PING, op=9)[:2], (PONG, 9))
        client.close()

    def wait_stat(self, client, index, value):
        end = time.monotonic() + WAIT_S
        while client.stats()[index] != value:
            self.assertLess(time.monotonic(), end, f"stat {index} is {client.stats()[index]}")

    def test_welcome_carries_the_arena(self):
        client = self.client(self.agent())
        status, version, incarnation, n_regions, n_ops, _ = client.greet()
        self.assertEqual((status, version, len(client.fds)), (0, 1, n_regions))
        self.assertGreater(n_ops, 0)
        self.assertNotEqual(incarnation, 0)
        self.assertGreaterEqual(os.fstat(client.fds[0]).st_size, 32 * MIB)

    def test_other_version_is_told(self):
        client = self.client(self.agent())
        self.assertEqual(client.greet(version=7)[:2], (ERR_VERSION, 1))
        self.assertEqual(client.fds, [])
        self.assertIsNone(client.receive())

    def test_session_table_full_is_told(self):
        agent = self.agent("sessions.max=2")
        first, second, third = (self.client(agent) for _ in range(3))
        self.assertEqual([c.greet()[0] for c in (first, second, third)], [0, 0, ERR_AGAIN])
        first.close()
        end = time.monotonic() + WAIT_S
        while self.client(agent).greet()[0] != 0:
            self.assertLess(time.monotonic(), end)

    def test_nothing_before_hello(self):
        agent = self.agent()
        for first in (message(PING), message(LOOKUP), b"x", b"GET / HTTP/1.1\r\n\r\n",
                      hello(magic=1), hello(name=b"x" * 48), hello() + b"x"):
            client = self.client(agent)
            client.send(first)
            self.assertIsNone(client.receive(), first)
        self.still_serves(agent)

    def test_silent_connections_make_room(self):
        agent = self.agent()
        for _ in range(200):
            self.client(agent)
        self.still_serves(agent)

    def ended(self, client):
        """The agent told the client to go."""
        while (answer := client.receive()) is not None:
            self.assertIn(answer[0], (PONG, LOOKUP_R, RESERVE_R, LOAD_R, COMMIT_R, STATS_R,
                                      RELEASE_R, CANCEL_R, NS_OPEN_R))

    def test_broken_messages_end_the_session(self):
        agent = self.agent()
        broken = [b"", b"\0", message(PING)[:15], message(PING, length=17), message(0),
                  message(WELCOME), message(99), message(PING) + b"x", hello(),
                  message(LOOKUP, struct.pack("<IIII", 0, 5, 0, 0)), message(RELEASE),
                  message(LOOKUP, struct.pack("<IIII", 0, 2**27, 0, 0)),
                  message(COMMIT, struct.pack("<II", 2**30, 0)),
                  message(PING, bytes(140000))]
        for msg in broken:
            client = self.client(agent)
            client.greet()
            client.send(msg)
            self.ended(client)
        self.still_serves(agent)

    def test_random_bytes(self):
        agent = self.agent()
        seed = random.randrange(2**32)
        dice = random.Random(seed)
        print(f"# seed {seed}")
        for _ in range(300):
            client = self.client(agent)
            ns = client.open()
            try:
                for _ in range(20):
                    kind = dice.choice([NS_OPEN, LOOKUP, RELEASE, RESERVE, COMMIT, LOAD, LOAD_DONE,
                                        CANCEL, STATS, dice.randrange(65536)])
                    body = bytearray(dice.randbytes(dice.choice([0, 8, 16, 24, 56, 88, 512])))
                    if len(body) >= 8 and dice.random() < 0.8:
                        struct.pack_into("<II", body, 0, ns, max(len(body) - 16, 0) // 32)
                        body[8:16] = bytes(len(body[8:16]))
                    client.send(message(kind, bytes(body), op=dice.randrange(4)))
            except (BrokenPipeError, ConnectionResetError):
                pass
            client.close()
        self.still_serves(agent)
        self.assertEqual(agent.stop(), 0)

    def test_wrong_values_are_answered(self):
        client = self.client(self.agent())
        ns = client.open()
        self.assertEqual(client.lookup(ns, [])[0], ERR_INVAL)
        self.assertEqual(client.lookup(ns, [1], flags=64)[0], ERR_INVAL)
        self.assertEqual(client.lookup(ns, range(1025))[0], ERR_INVAL)
        self.assertNotEqual(client.lookup(ns + 1000, [1])[1], 1)
        kind, _, body = client.reserve(ns, range(1025))
        self.assertEqual((kind, struct.unpack_from("<i", body)[0]), (RESERVE_R, ERR_INVAL))
        kind, _, body = client.call(COMMIT, struct.pack("<IIII", 1, 0, 0, 0) + bytes(8), op=77)
        self.assertEqual((kind, struct.unpack_from("<i", body)[0]), (COMMIT_R, ERR_INVAL))
        kind, _, body = client.call(CANCEL, op=77)
        self.assertEqual((kind, struct.unpack_from("<i", body)[0]), (CANCEL_R, ERR_INVAL))
        _, _, body = client.call(NS_OPEN, descriptor(n_segments=3))
        self.assertEqual(struct.unpack_from("<i", body)[0], ERR_INVAL)
        self.assertIn(b"n_segments", body)
        self.assertEqual(client.call(PING)[0], PONG)

    def test_slots_of_an_ended_session_stay_until_it_closes(self):
        agent = self.agent()
        watcher, client = self.client(agent), self.client(agent)
        watcher.open()
        ns = client.open()
        client.reserve(ns, range(10))
        self.assertEqual(watcher.stats()[STAT_RESERVED_BYTES], 10 * CHUNK_BYTES)
        client.send(message(99))
        self.ended(client)
        client.send(message(PING))  # is discarded
        self.assertEqual(watcher.stats()[STAT_RESERVED_BYTES], 10 * CHUNK_BYTES)
        self.assertEqual(watcher.stats()[STAT_SESSIONS], 2)
        client.close()
        self.wait_stat(watcher, STAT_RESERVED_BYTES, 0)
        self.wait_stat(watcher, STAT_SESSIONS, 1)

    def test_client_that_never_reads(self):
        agent = self.agent(f"sessions.ops_max={OPS_MAX}")
        deaf, client = self.client(agent), self.client(agent)
        ns = deaf.open()
        client.open()
        deaf.store(ns, range(1024))
        deaf.sock.setblocking(False)
        before = self.anonymous_kib(agent)
        n_sent = 0
        load = struct.pack("<IIIIQ", ns, 1024, 0, 0, 2**62) + keys(range(1024))
        try:
            for op in range(2, 100000):
                deaf.send(message(LOAD, load, op))
                n_sent += 1
        except BlockingIOError:
            pass
        # It is held back, and nobody else is.
        self.assertLess(n_sent, 10000)
        start = time.monotonic()
        for n in range(200):
            self.assertEqual(client.call(PING, op=n + 1)[:2], (PONG, n + 1))
        self.assertLess(time.monotonic() - start, 5)
        self.assertLess(self.anonymous_kib(agent) - before, 32 * 1024)
        # When it reads at last, it gets every answer.
        deaf.sock.settimeout(WAIT_S)
        n_ops = 0
        while n_ops < n_sent:
            kind, _, body = deaf.receive()
            self.assertEqual(kind, LOAD_R)
            status, _, n_open = struct.unpack_from("<iII", body)
            n_ops += status != 0 or n_open == 0
        self.assertEqual(deaf.call(PING)[0], PONG)

    def anonymous_kib(self, agent):
        with open(f"/proc/{agent.process.pid}/status", encoding="utf-8") as file:
            return int(next(line for line in file if line.startswith("RssAnon")).split()[1])

    def test_index_is_as_large_as_the_arena_needs(self):
        """An arena full of the smallest chunks, with the default of index.chunks_max: all are held,
        and a table for 16 million would take 256 MiB once its places are used at random."""
        agent = self.agent()
        client = self.client(agent)
        ns = client.open()
        self.wait_stat(client, STAT_HOST_CAPACITY_BYTES, 32 * MIB)
        before = self.anonymous_kib(agent)
        n = 32 * MIB // CHUNK_BYTES
        for first in range(0, n, 1024):
            client.store(ns, range(first, first + 1024))
        for first in range(0, n, 1024):
            self.assertEqual(client.lookup(ns, range(first, first + 1024)), (0, 1024))
        self.assertLess(self.anonymous_kib(agent) - before, 64 * 1024)

    def test_dead_client_leaves_nothing(self):
        agent = self.agent()
        watcher = self.client(agent)
        ns = watcher.open()
        for n in range(50):
            client = self.client(agent)
            client.open()
            client.reserve(ns, range(n * 10, n * 10 + 10))
            client.close()
        self.wait_stat(watcher, STAT_RESERVED_BYTES, 0)
        self.wait_stat(watcher, STAT_OPS, 0)
        self.wait_stat(watcher, STAT_SESSIONS, 1)

    def test_abort_is_not_answered(self):
        client = self.client(self.agent())
        ns = client.open()
        client.reserve(ns, range(4), op=5)
        client.send(message(COMMIT, struct.pack("<IIIIII", 4, 1, 0, 1, 2, 3), op=5))
        self.assertEqual(client.call(PING)[0], PONG)
        self.assertEqual(client.stats()[STAT_RESERVED_BYTES], 0)
        self.assertEqual(client.lookup(ns, range(4)), (0, 0))


if __name__ == "__main__":
    KVTIERD = os.path.abspath(sys.argv.pop(1))
    unittest.main(verbosity=2)
