# SPDX-License-Identifier: Apache-2.0
"""kvtier.control: what it sends and what it makes of answers, by a server that records both; and
the whole way against an agent."""

import concurrent.futures
import os
import shutil
import tempfile
import unittest
from unittest import mock

import grpc

import kvtier
from fixture import TestCase, keys
from kvtier import control
from kvtier.control import Control, messages

KEY = bytes(range(32))
SPACE = bytes(32)


class Server(grpc.GenericRpcHandler):
    """Answers with what a test put into `answers`; an Exception of the status and text it names."""

    def __init__(self):
        self.answers, self.requests = {}, []

    def service(self, details):
        _, service, name = details.method.split("/")
        method = control._service.methods_by_name[name]
        assert service == control._service.full_name

        def call(request, context):
            self.requests.append((name, request))
            answer = self.answers[name]
            if callable(answer):
                answer = answer(request)
            if isinstance(answer, tuple):
                context.abort(*answer)
            return answer

        how = {"request_deserializer": messages[method.input_type.name].FromString,
               "response_serializer": lambda message: message.SerializeToString()}
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(call, **how)
        return grpc.unary_unary_rpc_method_handler(call, **how)


class Calls(unittest.TestCase):
    def setUp(self):
        folder = tempfile.mkdtemp(prefix="kvt-control-")
        self.addCleanup(shutil.rmtree, folder, ignore_errors=True)
        self.path = os.path.join(folder, "kvtierd.control.sock")
        self.handler = Server()
        server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
        server.add_generic_rpc_handlers([self.handler])
        server.add_insecure_port("unix:" + self.path)
        server.start()
        self.addCleanup(server.stop, None)
        self.control = Control(self.path)
        self.addCleanup(self.control.close)

    def answer(self, name, answer):
        self.handler.answers[name] = answer

    def asked(self):
        """The request of the last call."""
        return self.handler.requests[-1][1]

    def test_every_method_of_the_service_can_be_called(self):
        for method in control._service.methods:
            with self.subTest(method.name):
                answer = messages[method.output_type.name]()
                if method.server_streaming:
                    self.answer(method.name, iter([answer]))
                    self.assertEqual(len(list(self.control.watch_job(1))), 1)
                else:
                    self.answer(method.name, answer)
                    self.assertEqual(self.control.call(method.name), answer)
        self.assertEqual({name for name, _ in self.handler.requests},
                         {method.name for method in control._service.methods})

    def test_listings_go_on_to_the_last_page(self):
        def page(request):
            n = int(request.page_token or 0)
            return messages["ListChunksResponse"](
                chunks=[] if n == 1 else [{"key": bytes([n])}, {"key": bytes([n + 1])}],
                next_page_token=str(n + 1) if n < 3 else "")

        self.answer("ListChunks", page)
        found = self.control.chunks(namespace_id=SPACE, tiers=["nvme"], pinned=True)
        self.assertEqual(self.handler.requests, [])  # nothing is asked for before it is wanted
        self.assertEqual([chunk.key[0] for chunk in found], [0, 1, 2, 3, 3, 4])
        self.assertEqual([request.page_token for _, request in self.handler.requests],
                         ["", "1", "2", "3"])
        self.assertEqual((self.asked().filter.namespace_id, list(self.asked().filter.tiers),
                          self.asked().filter.pinned), (SPACE, [2], True))

    def test_what_is_sent(self):
        job = messages["Job"](id=7)
        for name in ("Prefetch", "Demote", "Delete", "Clear", "Verify"):
            self.answer(name, job)
        self.answer("Pin", messages["PinResponse"](n_found=1))
        self.answer("Unpin", messages["UnpinResponse"](n_unpinned=2))
        self.answer("SetLogLevel", messages["SetLogLevelResponse"](previous=3))
        self.control.pin(SPACE, [KEY], owner="me", ttl=1.5)
        self.assertEqual((list(self.asked().chain.keys), self.asked().owner, self.asked().ttl_ms),
                         ([KEY], "me", 1500))
        self.assertEqual(self.control.unpin(owner="me"), 2)
        self.assertEqual(self.asked().WhichOneof("by"), "owner")
        self.control.delete(SPACE, tokens=[1, 2], subtree=True, tiers=["host"], dry_run=True)
        self.assertEqual((list(self.asked().selection.chain.tokens.ids), self.asked().dry_run,
                          self.asked().selection.subtree, list(self.asked().tiers)),
                         ([1, 2], True, True, [1]))
        self.control.clear(all_namespaces=True, min_bytes=9)
        self.assertTrue(self.asked().all_namespaces and self.asked().filter.min_bytes == 9)
        self.control.verify()
        self.assertFalse(self.asked().HasField("selection"))
        self.control.verify(namespace_id=SPACE)
        self.assertEqual(self.asked().selection.filter.namespace_id, SPACE)
        self.control.prefetch(SPACE, [KEY])
        self.control.demote(SPACE, [KEY], force=True)
        self.assertTrue(self.asked().force)
        self.assertEqual(self.control.set_log_level("debug"), 3)
        self.assertEqual(self.asked().level, 4)

    def test_jobs_until_they_end(self):
        states = [messages["Job"](id=7, n_looked=n, state=2 + (n == 3)) for n in range(4)]
        self.answer("WatchJob", lambda request: iter(states))
        self.assertEqual(self.control.wait_job(states[0], timeout=5), states[3])
        self.assertEqual(self.asked().id, 7)

    def test_errors(self):
        for code, kind in ((grpc.StatusCode.NOT_FOUND, kvtier.NotFoundError),
                           (grpc.StatusCode.INVALID_ARGUMENT, kvtier.InvalidError),
                           (grpc.StatusCode.FAILED_PRECONDITION, kvtier.InvalidError),
                           (grpc.StatusCode.RESOURCE_EXHAUSTED, kvtier.NoMemoryError),
                           (grpc.StatusCode.ABORTED, kvtier.AgainError),
                           (grpc.StatusCode.UNAVAILABLE, kvtier.UnreachableError),
                           (grpc.StatusCode.INTERNAL, kvtier.KVTierError)):
            self.answer("GetChunk", (code, "chunk: cause; next step"))
            with self.assertRaisesRegex(kind, "GetChunk: chunk: cause; next step"):
                self.control.chunk(KEY)
        self.answer("WatchJob", (grpc.StatusCode.NOT_FOUND, "job 1: not there"))
        with self.assertRaisesRegex(kvtier.NotFoundError, "WatchJob: job 1"):
            list(self.control.watch_job(1))
        with self.assertRaisesRegex(kvtier.InvalidError, "Tier: no value 'tape'.*host, nvme"):
            self.control.clear(namespace_id=SPACE, tiers=["tape"])
        with self.assertRaisesRegex(kvtier.InvalidError, "not both"):
            self.control.lookup(SPACE, [KEY], tokens=[1])
        with self.assertRaisesRegex(kvtier.InvalidError, "either"):
            self.control.unpin()

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


class Live(TestCase):
    def test_see_and_steer(self):
        path = self.agent.socket.removesuffix(".sock") + ".control.sock"
        if not os.path.exists(path):
            self.skipTest("this agent has no control socket")
        client = self.client()
        ns = client.namespace(kvtier.Namespace(model="live", chunk_bytes=64 << 10, n_segments=4))
        self.store(client, ns, range(8))
        chain = [keys([n]) for n in range(8)]
        with Control(path) as agent:
            self.assertEqual(agent.node().pid, self.agent.process.pid)
            self.assertIn("host", [tier.name for tier in agent.tiers()])
            self.assertEqual({session.client for session in agent.sessions()}, {"test"})
            space = next(s for s in agent.namespaces() if s.model == "live")
            self.assertEqual(space.n_chunks, 8)
            self.assertEqual(agent.stats()["stored_chunks"], 8)
            self.assertEqual(agent.config()["socket.path"].value, self.agent.socket)
            self.assertEqual({c.key for c in agent.chunks(namespace_id=space.id)}, set(chain))
            self.assertEqual(agent.lookup(space.id, chain).n_found, 8)
            pin = agent.pin(space.id, chain[:4], owner="test", ttl=60).pin
            self.assertEqual([p.owner for p in agent.pins()], ["test"])
            gone = agent.wait_job(agent.clear(namespace_id=space.id), timeout=10)
            self.assertEqual((gone.n_changed, client.lookup(ns, keys(range(8))).n_ok), (4, 4))
            self.assertEqual(agent.unpin(pin_id=pin.id), 1)
            agent.wait_job(agent.delete(space.id, chain[:1], subtree=True), timeout=10)
            self.assertEqual(client.lookup(ns, keys(range(8))).n_ok, 0)
            with self.assertRaises(kvtier.NotFoundError):
                agent.chunk(chain[0], space.id)
