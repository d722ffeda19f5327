# SPDX-License-Identifier: Apache-2.0
"""A standard gRPC client of the control API, generated from the published .proto, and agents to use
it on. Chunks come from tests/python/fixture.py and are stored through libkvtier, so what the API
says can be compared with what is true."""

import hashlib
import os
import re
import tempfile
import time
from importlib import resources

import grpc
import grpc_tools.protoc
import kvtier
import numpy as np

import fixture
from fixture import CHUNK, WAIT_S, keys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def generate():
    """Python code of the published .proto, as its users make it. Its package is "kvtier.v1", which
    goes beside what else is called kvtier here."""
    folder = tempfile.TemporaryDirectory(prefix="kvt-proto-")
    status = grpc_tools.protoc.main([
        "protoc", "-I" + os.path.join(ROOT, "proto"),
        "-I" + str(resources.files("grpc_tools") / "_proto"), "--python_out=" + folder.name,
        "--grpc_python_out=" + folder.name, "kvtier/v1/control.proto"])
    if status != 0:
        raise AssertionError(f"protoc ended with {status}")
    kvtier.__path__.append(os.path.join(folder.name, "kvtier"))
    return folder


_generated = generate()

from kvtier.v1 import control_pb2 as pb  # noqa: E402
from kvtier.v1 import control_pb2_grpc  # noqa: E402

ENDED = (pb.Job.STATE_DONE, pb.Job.STATE_CANCELED, pb.Job.STATE_FAILED)


def key(number):
    return keys([number])


def plain_chain(tokens, size, parent=bytes(32)):
    """Keys of tokens as "kvtier_sha256" has them."""
    made = []
    for i in range(len(tokens) // size):
        part = np.array(tokens[size * i:size * (i + 1)], "<u4").tobytes()
        parent = hashlib.sha256(parent + part).digest()
        made.append(parent)
    return made


def until(condition, what, within_s=WAIT_S):
    """What condition returns, as soon as that is true."""
    end = time.monotonic() + within_s
    while not (result := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"waited {within_s} s for {what}")
        time.sleep(0.01)
    return result


class TestCase(fixture.TestCase):
    """An agent with both tiers, and stubs for it. A call that lasts longer than WAIT_S fails."""

    def agent_sets(self):
        return {"nvme__path": os.path.join(self.folder, "store"), "nvme__bytes": "128MiB",
                "nvme__slab_bytes": "8MiB", "nvme__scrub_bytes_per_s": "0B",
                "index__chunks_max": "65536", "metrics__listen": "", **self.sets}

    def setUp(self):
        super().setUp()
        self.api = self.stub()

    @property
    def path(self):
        return self.agent.socket.removesuffix(".sock") + ".control.sock"

    def channel(self, **options):
        """A connection of its own."""
        options.setdefault("options", []).append(("grpc.use_local_subchannel_pool", 1))
        channel = grpc.insecure_channel("unix:" + self.path, **options)
        self.addCleanup(channel.close)
        return channel

    def once(self, method, **fields):
        """A call on a connection that it has to make, and that ends with it."""
        with grpc.insecure_channel("unix:" + self.path,
                                   [("grpc.use_local_subchannel_pool", 1)]) as channel:
            return self.call(method, stub=control_pb2_grpc.ControlStub(channel), **fields)

    def stub(self, **options):
        return control_pb2_grpc.ControlStub(self.channel(**options))

    def call(self, method, /, stub=None, timeout=WAIT_S, **fields):
        """The answer of an RPC; its request is of the fields given."""
        request = getattr(pb, method + "Request")(**fields)
        return getattr(stub or self.api, method)(request, timeout=timeout)

    def refused(self, code, text, call, *args, **fields):
        """The call must fail so; returns the whole message, which has a cause and a next step."""
        if isinstance(call, str):
            args, call = (call, *args), self.call
        with self.assertRaises(grpc.RpcError) as caught:
            call(*args, **fields)
        details = caught.exception.details()
        self.assertEqual(caught.exception.code().name, code, details)
        self.assertRegex(details, text or ".")
        return details

    def pages(self, method, field, **fields):
        """All that a listing gives, and how many pages that were."""
        found, n, token = [], 0, ""
        while True:
            page = self.call(method, page_token=token, **fields)
            found += getattr(page, field)
            n += 1
            token = page.next_page_token
            if not token:
                return found, n

    def chunks(self, **filter):
        return self.pages("ListChunks", "chunks", filter=filter)[0]

    def listed(self, **filter):
        """Numbers of the chunks that match."""
        found = [int.from_bytes(c.key[:8], "little") for c in self.chunks(**filter)]
        self.assertEqual(len(found), len(set(found)), "listed twice")
        return set(found)

    def held(self, client, ns, numbers):
        """Which of these chunks the data path has: the truth."""
        return {n for n in numbers if client.lookup(ns, key(n)).n_ok == 1}

    def space(self, model):
        return next(s for s in self.pages("ListNamespaces", "namespaces")[0] if s.model == model)

    def fill(self, n, model="test", nvme=True, **fields):
        """A namespace with chunks 0 to n-1 in one chain; (client, its handle, what is listed)."""
        client = self.client()
        ns = client.namespace(fixture.namespace(model=model, **fields))
        for first in range(0, n, 64):
            part = range(first, min(first + 64, n))
            done = client.store(ns, keys(part), [fixture.pattern(i) for i in part],
                                parent=key(first - 1) if first else None, durable=nvme,
                                timeout=WAIT_S)
            self.assertEqual((done.status, done.n_ok), (0, len(part)))
        return client, ns, self.space(model)

    def chain(self, space, numbers):
        return pb.Chain(namespace_id=space.id, keys=[key(n) for n in numbers])

    def ended(self, job):
        """Follows a job to its end."""
        for job in self.api.WatchJob(pb.WatchJobRequest(id=job.id), timeout=WAIT_S):
            pass
        self.assertIn(job.state, ENDED)
        return job

    def done(self, job):
        job = self.ended(job)
        self.assertEqual((job.state, job.error), (pb.Job.STATE_DONE, ""))
        return job

    def stats(self):
        return {stat.name: stat.value for stat in self.call("GetStats").stats}

    def log_text(self):
        with open(self.agent.log, encoding="utf-8", errors="replace") as log:
            return log.read()

    def status_of_process(self, field):
        with open(f"/proc/{self.agent.process.pid}/status", encoding="ascii") as status:
            return int(re.search(rf"^{field}:\s+(\d+)", status.read(), re.M)[1])

    def rss_bytes(self):
        """Memory of the agent's own, without the arena."""
        return self.status_of_process("RssAnon") << 10

    def n_fds(self):
        return len(os.listdir(f"/proc/{self.agent.process.pid}/fd"))


__all__ = ["CHUNK", "WAIT_S", "ENDED", "TestCase", "control_pb2_grpc", "key", "keys", "pb",
           "plain_chain", "until"]
