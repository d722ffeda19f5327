# SPDX-License-Identifier: Apache-2.0
"""Clients of the control API that misbehave, against an agent under load of kvbench: they get the
right status, the agent's memory and descriptors stay bounded, and the data path goes on."""

import contextlib
import os
import random
import struct
import subprocess
import sys
import threading
import time

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

import fixture
import hostile
from hostile import (ACK, CONTINUATION, DATA, END_HEADERS, HEADERS, INITIAL_WINDOW_SIZE, PING,
                     RST_STREAM, SETTINGS, WINDOW_UPDATE, Peer, frame, headers)
from rig import ENDED, WAIT_S, TestCase, control_pb2_grpc, pb, until

TRACE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "data",
                     "conversation_trace.jsonl")
CONNECTIONS_MAX = 32
UNHEARD_S = 10           # the longest that the server waits for a client
MEMORY = 256 << 20       # what answers and requests of all clients together may take
P99_S = 0.05             # of lookups meanwhile; two busy cores are slow ones
STOP_S = 5
FLOOD_S = 3
FLOOD_CPUS = 0.3         # without a bound it is one


class Load:
    """kvbench replays over and over; it compares every byte it loads."""

    def __init__(self, test):
        self.test, self.n_runs, self.stop = test, 0, threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.fault = None

    def run(self):
        while not self.stop.is_set() and self.fault is None:
            done = subprocess.run(
                [os.environ["KVT_KVBENCH"], "replay", TRACE, "--max-requests", "60", "--seed",
                 str(self.n_runs + 1), "--socket", self.test.agent.socket], check=False,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True)
            self.n_runs += 1
            if done.returncode != 0:
                self.fault = f"kvbench ended with {done.returncode}:\n{done.stdout[-2000:]}"

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()
        self.test.assertIsNone(self.fault)
        self.test.assertGreater(self.n_runs, 0)


class Hostile(TestCase):
    sets = {"host__bytes": "128MiB", "nvme__bytes": "512MiB"}

    def setUp(self):
        super().setUp()
        seed = int(os.environ.get("KVT_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
        print(f"{self.id()}: KVT_SEED={seed}", file=sys.stderr)
        self.rng = random.Random(seed)
        self.peers = []
        self.addCleanup(lambda: [peer.close() for peer in self.peers])

    def peer(self, *args, **options):
        self.peers.append(Peer(self.path, *args, **options))
        return self.peers[-1]

    def close_peers(self):
        for peer in self.peers:
            peer.close()
        self.peers.clear()

    @contextlib.contextmanager
    def bystanders(self):
        """Load, and a client whose lookups must be quick; yields its function that says so."""
        client, ns, _ = self.fill(16)
        numbers = fixture.keys(range(16))
        self.call("GetNode")
        before, fds = self.rss_bytes(), self.n_fds()
        highest = [before]

        def check():
            took = []
            for _ in range(300):
                began = time.perf_counter()
                client.lookup(ns, numbers)
                took.append(time.perf_counter() - began)
            highest[0] = max(highest[0], self.rss_bytes())
            took.sort()
            self.assertLess(took[-3], P99_S)
            self.assertIsNone(self.agent.process.poll(), "the agent ended")

        with Load(self):
            yield check
            check()
        grown = highest[0] - before
        print(f"{self.id()}: memory grew by {grown >> 20} MiB, to {self.rss_bytes() - before >> 20}"
              " MiB at the end", file=sys.stderr)
        self.assertLess(grown, MEMORY)
        self.close_peers()
        until(lambda: self.n_fds() <= fds, f"{self.n_fds()} descriptors to be {fds} again")
        self.assertEqual(self.once("GetNode").pid, self.agent.process.pid)
        self.check_stop(STOP_S)

    def check_stop(self, limit_s):
        began = time.monotonic()
        self.agent.signal(15)
        self.assertEqual(self.agent.process.wait(WAIT_S), 0)
        self.assertLess(time.monotonic() - began, limit_s)

    def cpu_s(self):
        """What the agent has computed."""
        with open(f"/proc/{self.agent.process.pid}/stat", encoding="utf-8") as file:
            ticks = file.read().rpartition(")")[2].split()[11:13]
        return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")

    def newcomer(self):
        """Whether a new connection gets an answer."""
        try:
            return self.once("GetNode", timeout=3).pid
        except grpc.RpcError:
            return None

    def count(self, calls):
        """How often each status came."""
        codes = [call.code().name for call in calls]
        return {code: codes.count(code) for code in set(codes)}

    def test_nonsense(self):
        with self.bystanders() as check:
            for _ in range(300):
                peer = Peer(self.path, greet=False)
                peer.send(hostile.nonsense(self.rng))
                if self.rng.random() < 0.5:
                    peer.is_closed()
                peer.close()
            check()

    def test_a_flood_of_connections(self):
        """Each costs the server more than the client, so who makes many waits for them; who has one
        does not."""
        self.call("GetNode")
        began, used, n = time.monotonic(), self.cpu_s(), 0
        while time.monotonic() - began < FLOOD_S:
            Peer(self.path, greet=n % 2 == 0).close()
            n += 1
            if n % 100 == 0:
                self.call("GetNode", timeout=1)
        used = (self.cpu_s() - used) / (time.monotonic() - began)
        print(f"{self.id()}: {n} connections, {used:.2f} of a CPU", file=sys.stderr)
        self.assertLess(used, FLOOD_CPUS)
        until(self.newcomer, "room for a newcomer")

    def test_floods_of_frames(self):
        """Many small frames, each of which costs the server more than the client."""
        floods = {
            "streams that are reset at once": lambda n: b"".join(
                frame(HEADERS, END_HEADERS, 2 * i + 1, headers(hostile.CONTROL + "ListChunks")) +
                frame(RST_STREAM, 0, 2 * i + 1, struct.pack(">I", 8)) for i in range(n)),
            "pings": lambda n: frame(PING, 0, 0, bytes(8)) * n,
            "settings": lambda n: frame(SETTINGS, 0, 0) * n,
            "answers to nothing": lambda n: frame(SETTINGS, ACK, 0) * n,
            "empty data": lambda n: frame(HEADERS, END_HEADERS, 1, headers(
                hostile.CONTROL + "GetNode")) + frame(DATA, 0, 1) * n,
            "headers without an end": lambda n: frame(HEADERS, 0, 1, headers("/x")) + frame(
                CONTINUATION, 0, 1, hostile.literal(b"a", b"b" * 100)) * n,
            "windows beyond all bounds": lambda n: frame(
                WINDOW_UPDATE, 0, 0, struct.pack(">I", (1 << 31) - 1)) * n,
        }
        with self.bystanders() as check:
            for name, make in floods.items():
                with self.subTest(name):
                    threads = [threading.Thread(target=self.flood, args=(make(20000), 0.4))
                               for _ in range(3)]
                    for thread in threads:
                        thread.start()
                    check()
                    for thread in threads:
                        thread.join()

    def flood(self, data, seconds):
        """On a new connection whenever the server ends one."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(OSError), contextlib.closing(Peer(self.path)) as peer:
                peer.flood(data, end - time.monotonic())

    def test_oversized_and_many_parts(self):
        """4 MiB that become a hundred, from many clients at once."""
        bomb = b"\xf8\x3e\x01" * 1_390_000
        with self.bystanders() as check:
            channels = [self.channel() for _ in range(8)]
            raw = [c.unary_unary(hostile.CONTROL + "GetNode", request_serializer=lambda d: d,
                                 response_deserializer=lambda d: d) for c in channels]
            calls = [raw[i % 8].future(bomb, timeout=WAIT_S) for i in range(40)]
            calls += [raw[i % 8].future(bytes(5 << 20), timeout=WAIT_S) for i in range(20)]
            check()
            self.assertEqual(self.count(calls), {"RESOURCE_EXHAUSTED": 60})

    def test_thousands_of_streams(self):
        with self.bystanders() as check:
            channels = [self.channel() for _ in range(20)]
            stubs = [control_pb2_grpc.ControlStub(channel) for channel in channels]
            watches = [health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(),
                                                                 timeout=WAIT_S)
                       for _ in range(100) for channel in channels]
            calls = [stubs[i % 20].GetNode.future(pb.GetNodeRequest(), timeout=WAIT_S)
                     for i in range(2000)]
            check()
            self.assertEqual(self.count(calls), {"OK": 2000})  # beside all the streams
            refused = [watch for watch in watches if watch.done()]
            self.assertEqual(set(self.count(refused)), {"RESOURCE_EXHAUSTED"})
            self.assertRegex(refused[0].details(), r"Watch: 256 streams are open; end one, or ask")
            self.assertGreater(len(refused), 1000)
            for watch in watches:
                watch.cancel()
            health = health_pb2_grpc.HealthStub(channels[0])
            self.assertEqual(next(health.Watch(health_pb2.HealthCheckRequest(),
                                               timeout=WAIT_S)).status, 1)

    def greedy(self, window):
        """A connection that asks for much and takes nothing: it forbids every byte of an answer, or
        allows so many and leaves the socket full."""
        peer = self.peer(settings=struct.pack(">HI", INITIAL_WINDOW_SIZE, window))
        peer.send(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1 << 30)))
        peer.ask("ListChunks", pb.ListChunksRequest(), 100, 5)

    def served(self):
        try:
            return self.call("ListChunks", timeout=WAIT_S).chunks
        except grpc.RpcError as err:
            self.assertIn(err.code().name, ("RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"))
            return None

    def test_unread_answers_have_a_bound(self):
        """An agent without other clients is quick enough to reach it."""
        self.fill(1000, model="much", nvme=False)
        before = self.rss_bytes()
        for _ in range(3):
            self.greedy(0)

        def refusal():
            try:
                return self.call("ListChunks") and None
            except grpc.RpcError as err:
                return err

        err = until(refusal, "a refusal")
        self.assertEqual(err.code(), grpc.StatusCode.RESOURCE_EXHAUSTED)
        self.assertRegex(err.details(), "control: clients have not read 3[0-9] MiB of answers; read")
        self.assertLess(self.rss_bytes() - before, MEMORY)
        self.assertTrue(self.call("GetNode").pid)  # which is small

    def half(self, how):
        """A connection that stops in the midst of something."""
        head = headers(hostile.CONTROL + "GetNode")
        whole = frame(HEADERS, END_HEADERS, 1, head)
        peer = self.peer(greet=how != 4)
        peer.send((whole,                              # no message
                   frame(HEADERS, 0, 1, head),         # no end of the headers
                   whole[:30],                         # no end of the frame
                   whole + frame(DATA, 0, 1, b"\0" + struct.pack(">I", 4 << 20) + bytes(100)),
                   b"")[how])
        return peer

    def test_stuck_clients_of_every_kind(self):
        """They fill the table of connections; in time they are gone, and others get in."""
        self.fill(1000, model="much", nvme=False)
        with self.bystanders() as check:
            for window in (0, (1 << 31) - 1, 0):
                self.greedy(window)
            stuck = [self.half(number % 5) for number in range(20)]
            more = []
            with contextlib.suppress(OSError):
                for _ in range(200):
                    more.append(self.peer())
            until(lambda: sum(p.is_closed() for p in more) >= len(more) - 8, "the rest refused")
            check()
            self.assertLessEqual(self.n_fds(), 2 * CONNECTIONS_MAX + 80)
            self.refused("UNAVAILABLE", "", self.once, "GetNode", timeout=3)
            self.assertEqual(self.call("GetNode").pid, self.agent.process.pid)  # was there before
            began = time.monotonic()
            until(self.newcomer, "room for a newcomer", 3 * UNHEARD_S)
            until(self.served, "the stuck answers to be given up", 3 * UNHEARD_S)
            print(f"others served after {time.monotonic() - began:.1f} s", file=sys.stderr)
            until(lambda: all(p.is_closed() for p in stuck), "all of them to be gone",
                  3 * UNHEARD_S)

    def test_who_does_not_read_is_ended(self):
        """A full socket is no reason to keep a place."""
        self.fill(1000, model="much", nvme=False)
        self.assertTrue(self.call("GetNode").pid)
        fds = self.n_fds()
        for _ in range(3):
            self.greedy((1 << 31) - 1)
        until(lambda: self.n_fds() >= fds + 9, "their connections")
        until(lambda: self.n_fds() <= fds, "them to be gone", 3 * UNHEARD_S)
        self.assertTrue(self.call("GetNode").pid)

    def test_a_stop_waits_for_nobody(self):
        """Stuck calls, silent connections and watches do not hold up the agent's end."""
        self.fill(1000, model="much", nvme=False)
        self.peer(greet=False)
        stuck = self.peer(settings=struct.pack(">HI", INITIAL_WINDOW_SIZE, 0))
        stuck.send(b"".join(hostile.call(s, "ListChunks", pb.ListChunksRequest())
                            for s in range(1, 60, 2)))
        self.peer().send(frame(HEADERS, END_HEADERS, 1, headers(hostile.CONTROL + "GetNode")))
        watch = health_pb2_grpc.HealthStub(self.channel()).Watch(health_pb2.HealthCheckRequest())
        self.assertEqual(next(watch).status, health_pb2.HealthCheckResponse.SERVING)
        self.check_stop(STOP_S)

    def test_a_stop_with_a_full_socket(self):
        """gRPC waits for such a client for ever, so the gate ends it. A thread of gRPC's that looked
        after the blocked write may still be asleep, for 10 s at most."""
        self.fill(1000, model="much", nvme=False)
        self.assertTrue(self.call("GetNode").pid)
        fds = self.n_fds()
        self.greedy((1 << 31) - 1)
        until(lambda: self.n_fds() > fds, "its connection")
        time.sleep(0.5)  # the socket fills
        self.check_stop(10 + STOP_S)

    def test_a_flood_of_jobs_and_of_pins(self):
        with self.bystanders() as check:
            stop = threading.Event()
            counts = {}

            def flood(number):
                stub, rng = self.stub(), random.Random(number)
                while not stop.is_set():
                    method, fields = rng.choice((
                        ("Verify", {}), ("Clear", {"all_namespaces": True, "dry_run": True}),
                        ("Prefetch", {"selection": {"filter": {"key_prefix": rng.randbytes(1)}}}),
                        ("Demote", {"selection": {"filter": {"key_prefix": rng.randbytes(1)}}}),
                        ("Clear", {"all_namespaces": True,
                                   "filter": {"key_prefix": rng.randbytes(2)}}),
                        ("ListChunks", {"filter": {"leased": True}}),
                        ("CancelJob", {"id": rng.randrange(1, 5000)})))
                    code = "OK"
                    try:
                        self.call(method, stub=stub, **fields)
                    except grpc.RpcError as err:
                        code = err.code().name
                    counts[code] = counts.get(code, 0) + 1

            threads = [threading.Thread(target=flood, args=(n,)) for n in range(4)]
            for thread in threads:
                thread.start()
            for _ in range(3):
                check()
                time.sleep(0.2)
            stop.set()
            for thread in threads:
                thread.join()
            print(f"{self.id()}: {counts}", file=sys.stderr)
            self.assertLessEqual(set(counts), {"OK", "UNAVAILABLE", "NOT_FOUND",
                                               "FAILED_PRECONDITION", "DEADLINE_EXCEEDED"})
            until(lambda: all(job.state in ENDED for job in self.pages("ListJobs", "jobs")[0]),
                  "the jobs to end")
            self.assertTrue(all(job.n_bad == 0 for job in self.pages("ListJobs", "jobs")[0]))
