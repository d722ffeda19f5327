# SPDX-License-Identifier: Apache-2.0
"""kvtier.control against an agent: everything that it can see and steer, beside what a client
knows; and a server of another kind for statuses that an agent seldom gives."""

import concurrent.futures
import hashlib
import inspect
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from unittest import mock

import grpc

import kvtier
from fixture import CHUNK, TestCase, key, keys, namespace, pattern
from kvtier import client, control, errors, layouts
from kvtier.control import Control, messages

KEY = bytes(range(32))
N = 8


class ControlCase(TestCase):
    """An agent with both tiers, a client with N chunks of one prompt in them, a connection."""

    def setUp(self):
        folder = tempfile.mkdtemp(prefix="kvt-store-", dir="/var/tmp")
        self.addCleanup(shutil.rmtree, folder, ignore_errors=True)
        self.sets = {"nvme.path": f"{folder}/store", "nvme.bytes": "64MiB",
                     "nvme.slab_bytes": "8MiB", "host.slab_bytes": "8MiB",
                     "nvme.scrub_bytes_per_s": "0"}
        super().setUp()
        self.path = control.default_path(self.agent.socket)
        self.control = Control(self.path)
        self.addCleanup(self.control.close)
        self.user = self.client()
        self.ns = self.user.namespace(namespace())
        self.chain = [key(n) for n in range(N)]
        done = self.user.store(self.ns, keys(range(N)), [pattern(n) for n in range(N)], durable=True,
                               timeout=30)
        self.assertEqual(done.n_ok, N)
        self.space = self.space_of("test")

    def space_of(self, model):
        return next(s.id for s in self.control.namespaces() if s.model == model)

    def held(self):
        return self.user.lookup(self.ns, keys(range(N))).n_ok

    def tiers_of(self, number):
        chunk = self.control.chunk(key(number), self.space)
        copy = messages["Chunk"].DESCRIPTOR.enum_types_by_name["Copy"].values_by_number
        return copy[chunk.host].name, copy[chunk.nvme].name

    def ended(self, job, **counts):
        job = self.control.wait_job(job, timeout=30)
        self.assertEqual(job.state, 3, job)  # done
        self.assertEqual({name: getattr(job, name) for name in counts}, counts, job)
        return job


class See(ControlCase):
    def test_node_tiers_and_config(self):
        node = self.control.node()
        self.assertEqual((node.pid, node.socket_path, node.control_path),
                         (self.agent.process.pid, self.agent.socket, self.path))
        self.assertEqual((node.version, node.state), (kvtier.__version__, 2))
        host, nvme = self.control.tiers()
        self.assertEqual((host.name, host.configured_bytes, host.n_chunks),
                         ("host", 64 << 20, N))
        self.assertEqual((nvme.name, nvme.n_chunks, list(nvme.paths)),
                         ("nvme", N, [self.agent.sets["nvme.path"]]))
        config = self.control.config()
        self.assertEqual((config["host.bytes"].value, config["host.bytes"].source),
                         ("64MiB", "--set"))
        self.assertTrue(config["log.level"].reloadable)

    def test_namespaces_and_stats(self):
        space = next(s for s in self.control.namespaces() if s.id == self.space)
        self.assertEqual((space.model, space.chunk_bytes, space.n_segments), ("test", CHUNK, 4))
        self.assertEqual((space.n_chunks, space.n_host_chunks, space.n_nvme_chunks), (N, N, N))
        stats = self.control.stats()
        self.assertEqual((stats["stored_chunks"], stats["stored_bytes"]), (N, N * CHUNK))
        self.assertEqual(self.held(), N)
        self.assertEqual(self.control.stats()["lookup_hits"], stats["lookup_hits"] + N)

    def test_sessions_and_leases(self):
        sessions = list(self.control.sessions())
        self.assertEqual({(s.client, s.pid) for s in sessions}, {("test", os.getpid())})
        self.assertEqual(list(self.control.leases()), [])
        found = self.user.lookup(self.ns, keys(range(5)), lease_ms=5000)
        lease, = self.control.leases()
        self.assertEqual((lease.namespace_id, lease.last_key), (self.space, key(4)))
        self.assertTrue(4000 < lease.expires_in_ms <= 5000, lease)
        self.assertEqual([c.key for c in self.control.chunks(leased=True)], [key(4)])
        self.user.release(found.lease)
        self.assertEqual(list(self.control.leases()), [])

    def test_chunks(self):
        chunks = {c.key: c for c in self.control.chunks(namespace_id=self.space)}
        self.assertEqual(set(chunks), set(self.chain))
        for n, name in enumerate(self.chain):
            self.assertEqual(chunks[name].parent_key, self.chain[n - 1] if n else b"")
            self.assertEqual(chunks[name], self.control.chunk(name, self.space))
            self.assertEqual(chunks[name], self.control.chunk(name))  # wherever it is
        for chunk_filter, n in (({"tiers": ["host"]}, N), ({"min_bytes": CHUNK + 1}, 0),
                                ({"max_bytes": CHUNK}, N), ({"pinned": True}, 0),
                                ({"unpinned": True}, N), ({"key_prefix": self.chain[3]}, 1)):
            with self.subTest(chunk_filter):
                self.assertEqual(len(list(self.control.chunks(**chunk_filter))), n)

    def test_listings_go_on_to_the_last_page(self):
        """More than two pages hold; nothing is asked for before it is wanted."""
        many = self.user.namespace(kvtier.Namespace(model="many", chunk_bytes=4096, n_segments=1))
        wanted = set()
        for first in range(0, 2500, 500):
            numbers = range(10000 + first, 10500 + first)
            self.user.store(many, keys(numbers), [bytes(4096)] * 500, timeout=30)
            wanted |= {key(n) for n in numbers}
        asked, call = [], self.control.call

        def counted(method, **fields):
            asked.append(method)
            return call(method, **fields)

        with mock.patch.object(self.control, "call", counted):
            found = self.control.chunks(namespace_id=self.space_of("many"))
            self.assertEqual(asked, ["ListNamespaces"])
            first = next(found)
            self.assertEqual(asked[1:], ["ListChunks"])
            got = [first.key, *(chunk.key for chunk in found)]
        self.assertGreaterEqual(len(asked), 1 + 3)
        self.assertEqual((len(got), set(got)), (2500, wanted))

    def test_lookup_by_keys_and_tokens(self):
        found = self.control.lookup(self.space, [*self.chain, KEY])
        self.assertEqual((found.n_keys, found.n_found, found.last_key), (N + 1, N, self.chain[-1]))
        self.assertEqual({tuple(place.tiers) for place in found.locations}, {(1, 2)})
        tokens, chain, parent = list(range(64)), [], bytes(32)
        for i in range(4):
            parent = hashlib.sha256(parent + b"".join(
                t.to_bytes(4, "little") for t in tokens[16 * i:16 * i + 16])).digest()
            chain.append(parent)
        prompts = self.user.namespace(kvtier.Namespace(
            model="prompts", hash_algo="kvtier_sha256", tokens_per_chunk=16, chunk_bytes=4096))
        self.user.store(prompts, chain[:3], [bytes(4096)] * 3, timeout=30)
        space = self.space_of("prompts")
        found = self.control.lookup(space, tokens=tokens)
        self.assertEqual((found.n_keys, found.n_found, found.n_tokens_found), (4, 3, 48))
        found = self.control.lookup(space, tokens=tokens[16:], parent_key=chain[0])
        self.assertEqual((found.n_keys, found.n_found), (3, 2))
        self.assertEqual(self.control.pin(space, tokens=tokens, owner="t").n_found, 3)


class Steer(ControlCase):
    def test_pins(self):
        made = self.control.pin(self.space, self.chain[:4], owner="me", ttl=60)
        self.assertEqual((made.n_keys, made.n_found, made.pin.n_chunks, made.pin.bytes),
                         (4, 4, 4, 4 * CHUNK))
        self.assertTrue(made.pin.expires and 59000 < made.pin.expires_in_ms <= 60000, made)
        forever = self.control.pin(self.space, [self.chain[5]], owner="you").pin
        self.assertEqual((forever.n_chunks, forever.expires), (6, False))  # with all before it
        self.assertEqual({p.id for p in self.control.pins()}, {made.pin.id, forever.id})
        self.assertEqual([p.id for p in self.control.pins("you")], [forever.id])
        self.assertEqual(self.control.unpin(pin_id=made.pin.id), 1)
        self.assertEqual(self.control.unpin(owner="you"), 1)
        self.assertEqual(self.control.unpin(owner="you"), 0)
        with self.assertRaisesRegex(kvtier.NotFoundError, "Unpin: pin .*: is none, or has ended"):
            self.control.unpin(pin_id=made.pin.id)
        self.control.pin(self.space, self.chain, owner="shorter", ttl=0.0001)  # not 0, for ever
        self.control.pin(self.space, self.chain, owner="short", ttl=0.05)
        deadline = time.monotonic() + 30
        while list(self.control.pins()) and time.monotonic() < deadline:
            time.sleep(0.02)
        self.assertEqual(list(self.control.pins()), [])

    def test_demote_and_prefetch(self):
        self.ended(self.control.demote(self.space, self.chain, dry_run=True), n_matched=N,
                   n_changed=0)
        self.assertEqual(self.tiers_of(0), ("COPY_VALID", "COPY_VALID"))
        self.control.pin(self.space, self.chain[:2], owner="me")
        self.ended(self.control.demote(self.space, self.chain), n_changed=N - 2, n_skipped=2)
        self.ended(self.control.demote(self.space, self.chain[:1], subtree=True, force=True),
                   n_changed=2)
        self.assertEqual(self.tiers_of(0), ("COPY_NONE", "COPY_VALID"))
        self.ended(self.control.prefetch(self.space, self.chain[:1], subtree=True), n_changed=N,
                   n_bad=0, bytes=N * CHUNK)
        self.assertEqual({self.tiers_of(n) for n in range(N)}, {("COPY_VALID", "COPY_VALID")})
        self.load(self.user, self.ns, range(N))

    def test_delete(self):
        self.ended(self.control.delete(self.space, self.chain[6:], tiers=["nvme"]), n_changed=2)
        self.assertEqual(self.tiers_of(7), ("COPY_VALID", "COPY_NONE"))
        self.ended(self.control.delete(self.space, self.chain[4:], dry_run=True), n_matched=4)
        self.assertEqual(self.held(), N)
        self.control.delete(self.space, self.chain[7:])  # unfindable at once
        self.assertEqual(self.held(), 7)
        self.ended(self.control.delete(self.space, self.chain[2:3], subtree=True), n_changed=5)
        self.assertEqual(self.held(), 2)
        with self.assertRaisesRegex(kvtier.NotFoundError, "is not held"):
            self.control.chunk(self.chain[2], self.space)

    def test_clear(self):
        other = self.user.namespace(namespace(model="other"))
        self.store(self.user, other, range(3))
        self.control.pin(self.space, self.chain[:4], owner="me")
        self.ended(self.control.clear(namespace_id=self.space, dry_run=True), n_matched=N,
                   n_changed=0)
        self.ended(self.control.clear(namespace_id=self.space, tiers=["host"], unpinned=True),
                   n_changed=4)
        self.assertEqual((self.tiers_of(7)[0], self.held()), ("COPY_NONE", N))
        self.ended(self.control.clear(namespace_id=self.space), n_changed=4, n_skipped=4)
        self.assertEqual((self.held(), self.user.lookup(other, keys(range(3))).n_ok), (4, 3))
        self.ended(self.control.clear(all_namespaces=True, force=True), n_changed=7)
        self.assertEqual((self.held(), list(self.control.chunks())), (0, []))

    def test_verify_and_jobs(self):
        steps = list(self.control.watch_job(self.control.verify().id, interval=0.05, timeout=30))
        self.assertEqual((steps[-1].state, steps[-1].n_changed, steps[-1].n_bad), (3, N, 0))
        self.ended(self.control.verify(namespace_id=self.space, key_prefix=self.chain[0]),
                   n_changed=1)
        jobs = {job.id: job for job in self.control.jobs()}
        self.assertEqual(len(jobs), 2)
        self.assertEqual(self.control.job(steps[-1].id).n_changed, N)
        with self.assertRaisesRegex(kvtier.InvalidError, "CancelJob: job .*: is over"):
            self.control.cancel_job(steps[-1].id)
        with self.assertRaisesRegex(kvtier.NotFoundError, "GetJob: job"):
            self.control.job(77777)
        with self.assertRaisesRegex(kvtier.NotFoundError, "WatchJob: job"):
            list(self.control.watch_job(77777))

    def test_log_level(self):
        levels = messages["SetLogLevelRequest"].DESCRIPTOR.fields_by_name["level"].enum_type
        info = levels.values_by_name["LOG_LEVEL_INFO"].number
        self.assertEqual(self.control.set_log_level("debug"), info)
        self.assertEqual(self.control.config()["log.level"].value, "debug")
        self.assertEqual(self.control.set_log_level(info), info + 1)


class Answers(ControlCase):
    def test_every_method_of_the_service(self):
        """The agent knows each; an empty request has an answer or a fault with a text."""
        for method in control._service.methods:
            with self.subTest(method.name):
                try:
                    if method.server_streaming:
                        list(self.control.watch_job(0, timeout=30))
                    else:
                        self.control.call(method.name)
                except (kvtier.InvalidError, kvtier.NotFoundError) as err:
                    self.assertRegex(str(err), f"{method.name}: .*[:;] ")

    def test_faults(self):
        with self.assertRaisesRegex(kvtier.InvalidError, "chain.keys.0.: has 3 bytes"):
            self.control.lookup(self.space, [b"abc"])
        with self.assertRaisesRegex(kvtier.NotFoundError, "namespace 00010203"):
            self.control.lookup(KEY, [KEY])
        with self.assertRaisesRegex(kvtier.NotFoundError, "Pin: "):
            self.control.pin(self.space, [KEY], owner="me")
        with self.assertRaisesRegex(kvtier.InvalidError, "cannot be derived from tokens"):
            self.control.lookup(self.space, tokens=range(1000))
        with self.assertRaisesRegex(kvtier.InvalidError, "'tape'; there are host, nvme$"):
            self.control.clear(namespace_id=self.space, tiers=["tape"])
        with self.assertRaisesRegex(kvtier.InvalidError, "Nope: no such method; there are GetNode,"):
            self.control.call("Nope")
        with self.assertRaisesRegex(kvtier.InvalidError, "ListChunks: .*colour"):
            list(self.control.chunks(colour="red"))
        with self.assertRaisesRegex(kvtier.InvalidError, "Pin: .*-1000"):
            self.control.pin(self.space, self.chain, owner="me", ttl=-1)
        with self.assertRaisesRegex(kvtier.InvalidError, "not both"):
            self.control.lookup(self.space, [KEY], tokens=[1])
        with self.assertRaisesRegex(kvtier.InvalidError, "either"):
            self.control.unpin()
        with self.assertRaisesRegex(kvtier.InvalidError, "set exactly one of them"):
            self.control.clear()
        self.assertEqual(self.held(), N)

    def test_pins_that_would_hold_too_much(self):
        numbers = range(100, 100 + 600)  # 37.5 MiB of 64, and half is the limit
        for first in range(0, 600, 100):
            self.store(self.user, self.ns, numbers[first:first + 100])
        with self.assertRaisesRegex(kvtier.NoMemoryError, "Pin: "):
            self.control.pin(self.space, [key(n) for n in numbers], owner="greedy")
        self.assertEqual(list(self.control.pins()), [])

    def test_restart(self):
        """A page token does not outlive its agent; the connection does."""
        page = self.control.call("ListChunks", page_size=1)
        self.assertTrue(page.next_page_token)
        before = self.control.node().incarnation
        self.agent.signal(signal.SIGTERM)
        self.agent.process.wait(30)
        with self.assertRaisesRegex(kvtier.UnreachableError, "is kvtierd running"):
            self.control.node()
        self.agent.start()
        deadline = time.monotonic() + 30
        while True:
            try:
                self.assertNotEqual(self.control.node().incarnation, before)
                break
            except kvtier.UnreachableError:
                self.assertLess(time.monotonic(), deadline)
                time.sleep(0.1)
        with self.assertRaisesRegex(kvtier.AgainError, "before the agent's restart"):
            self.control.call("ListChunks", page_size=1, page_token=page.next_page_token)
        self.assertEqual({c.key for c in self.control.chunks()}, set(self.chain))

    def test_an_agent_that_stands_still(self):
        self.agent.signal(signal.SIGSTOP)
        try:
            with Control(self.path, timeout=0.2) as hasty:
                began = time.monotonic()
                with self.assertRaises(kvtier.AgentTimeoutError):
                    hasty.node()
                self.assertLess(time.monotonic() - began, 5)
        finally:
            self.agent.signal(signal.SIGCONT)
        self.assertEqual(self.control.node().pid, self.agent.process.pid)

    def test_threads_share_a_connection(self):
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(lambda: {c.key for c in self.control.chunks()})
                     for _ in range(100)]
            for answer in asked:
                self.assertEqual(answer.result(), set(self.chain))


class Package(unittest.TestCase):
    def test_everything_public_is_described_and_typed(self):
        for module in (client, control, errors, layouts, kvtier.namespace):
            for name, thing in vars(module).items():
                if name.startswith("_") or getattr(thing, "__module__", "") != module.__name__:
                    continue
                members = {name: thing} if inspect.isroutine(thing) else {
                    f"{name}.{member}": getattr(value, "fget", value)
                    for member, value in vars(thing).items() if not member.startswith("_")}
                self.assertTrue(thing.__doc__, name)
                for path, value in members.items():
                    if inspect.isroutine(value):
                        self.assertTrue(value.__doc__, path)
                        self.assertIn("return", value.__annotations__, path)

    def test_what_control_needs_is_named(self):
        done = subprocess.run(
            [sys.executable, "-c", "import sys; sys.modules['grpc'] = None; import kvtier.control"],
            capture_output=True, text=True, timeout=60, check=False)
        self.assertRegex(done.stderr, r"ImportError: kvtier.control: .*pip install .*\[control\]")


class Statuses(unittest.TestCase):
    """Each status of gRPC has its exception, with the agent's own words."""

    def setUp(self):
        folder = tempfile.mkdtemp(prefix="kvt-control-")
        self.addCleanup(shutil.rmtree, folder, ignore_errors=True)
        self.path = os.path.join(folder, "kvtierd.control.sock")
        self.code = grpc.StatusCode.OK

        def refuse(_, context):
            context.abort(self.code, "chunk: cause; next step")

        server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(
            control._SERVICE, {"GetChunk": grpc.unary_unary_rpc_method_handler(refuse)})])
        server.add_insecure_port("unix:" + self.path)
        server.start()
        self.addCleanup(server.stop, None)

    def test_errors(self):
        with Control(self.path) as client:
            for self.code, kind in ((grpc.StatusCode.NOT_FOUND, kvtier.NotFoundError),
                                    (grpc.StatusCode.INVALID_ARGUMENT, kvtier.InvalidError),
                                    (grpc.StatusCode.FAILED_PRECONDITION, kvtier.InvalidError),
                                    (grpc.StatusCode.RESOURCE_EXHAUSTED, kvtier.NoMemoryError),
                                    (grpc.StatusCode.ABORTED, kvtier.AgainError),
                                    (grpc.StatusCode.UNAVAILABLE, kvtier.UnreachableError),
                                    (grpc.StatusCode.INTERNAL, kvtier.KVTierError)):
                with self.assertRaisesRegex(kind, "GetChunk: chunk: cause; next step"):
                    client.chunk(KEY)

    def test_nobody_there(self):
        with Control(self.path + ".none") as nobody:
            with self.assertRaisesRegex(kvtier.UnreachableError, "is kvtierd running"):
                nobody.node()

    def test_path(self):
        for environment, path in (
                ({}, "/run/kvtier/kvtierd.control.sock"),
                ({"KVTIER_SOCKET": "/x/a.sock"}, "/x/a.control.sock"),
                ({"KVTIER_SOCKET": "/x/a"}, "/x/a.control.sock"),
                ({"KVTIER_SOCKET": "/x/a.sock", "KVTIER_CONTROL": "/y/c"}, "/y/c")):
            with mock.patch.dict(os.environ, environment, clear=True):
                self.assertEqual(control.default_path(), path)
