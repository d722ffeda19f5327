# SPDX-License-Identifier: Apache-2.0
"""What gRPC's own tools know of a server: health and reflection, by the standard clients of both;
and the status of calls that go wrong."""

import subprocess
import sys
import threading
import time

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import \
    ProtoReflectionDescriptorDatabase

from rig import WAIT_S, TestCase, generate, key, pb

SERVICE = "kvtier.v1.Control"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health(TestCase):
    def setUp(self):
        super().setUp()
        self.health = health_pb2_grpc.HealthStub(self.channel())

    def test_check(self):
        for service in ("", SERVICE):
            answer = self.health.Check(health_pb2.HealthCheckRequest(service=service))
            self.assertEqual(answer.status, SERVING)
        for service in ("kvtier", SERVICE + "x", "x" * 10000, "%s\n"):
            self.refused("NOT_FOUND", "is not served here; ask for \"\" or \"kvtier.v1.Control\"",
                         self.health.Check, health_pb2.HealthCheckRequest(service=service))

    def test_watch_until_the_agent_ends(self):
        watch = self.health.Watch(health_pb2.HealthCheckRequest(), timeout=WAIT_S)
        unknown = self.health.Watch(health_pb2.HealthCheckRequest(service="who"), timeout=WAIT_S)
        self.assertEqual(next(watch).status, SERVING)
        self.assertEqual(next(unknown).status, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
        self.agent.signal(15)
        seen = []
        with self.assertRaises(grpc.RpcError) as caught:
            for answer in watch:
                seen.append(answer.status)
        self.assertLessEqual(len(seen), 1)
        self.assertLessEqual(set(seen), {NOT_SERVING})
        self.assertEqual(caught.exception.code(), grpc.StatusCode.UNAVAILABLE)
        with self.assertRaises(grpc.RpcError) as caught:
            next(unknown)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.UNAVAILABLE)
        self.assertEqual(self.agent.process.wait(WAIT_S), 0)

    def test_a_watch_is_silent_while_nothing_changes(self):
        watch = self.health.Watch(health_pb2.HealthCheckRequest(), timeout=WAIT_S)
        self.assertEqual(next(watch).status, SERVING)
        got = []
        thread = threading.Thread(target=lambda: got.extend(self.rest(watch)))
        thread.start()
        self.fill(2)
        self.done(self.call("Clear", all_namespaces=True))  # a job's end is news, but not for it
        time.sleep(0.2)
        watch.cancel()
        thread.join()
        self.assertEqual(got, [grpc.StatusCode.CANCELLED])

    @staticmethod
    def rest(watch):
        try:
            yield from watch
        except grpc.RpcError as err:
            yield err.code()


def without_json(serialized):
    """A descriptor as the .proto has it. Some compilers add to each field its name in JSON."""
    file = descriptor_pb2.FileDescriptorProto.FromString(serialized)

    def strip(messages):
        for message in messages:
            for field in message.field:
                field.ClearField("json_name")
            strip(message.nested_type)

    strip(file.message_type)
    return file


PUBLISHED = without_json(pb.DESCRIPTOR.serialized_pb)


class Reflection(TestCase):
    def test_services_and_calls_by_reflection_alone(self):
        channel = self.channel()
        database = ProtoReflectionDescriptorDatabase(channel)
        services = set(database.get_services())
        self.assertEqual(services, {SERVICE, "grpc.health.v1.Health",
                                    "grpc.reflection.v1.ServerReflection",
                                    "grpc.reflection.v1alpha.ServerReflection"})
        pool = descriptor_pool.DescriptorPool(database)
        for service in services:
            self.assertTrue(pool.FindServiceByName(service).methods)
        service = pool.FindServiceByName(SERVICE)
        self.assertEqual({method.name for method in service.methods},
                         {method.name for method in
                          pb.DESCRIPTOR.services_by_name["Control"].methods})
        found = pool.FindFileByName("kvtier/v1/control.proto").serialized_pb
        self.assertEqual(without_json(found), PUBLISHED)
        method = service.methods_by_name["GetNode"]
        call = channel.unary_unary(
            f"/{SERVICE}/{method.name}",
            request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=message_factory.GetMessageClass(method.output_type).FromString)
        answer = call(message_factory.GetMessageClass(method.input_type)(), timeout=WAIT_S)
        self.assertEqual(answer.pid, self.agent.process.pid)

    def ask(self, *requests, version="v1"):
        """Answers to these requests, all on one stream."""
        method = self.channel().stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString)
        return list(method(iter([reflection_pb2.ServerReflectionRequest(host="h", **r)
                                 for r in requests]), timeout=WAIT_S))

    def test_every_kind_of_question_in_both_versions(self):
        symbols = ("kvtier.v1.Control", "kvtier.v1.Control.Lookup", "kvtier.v1.Job.State",
                   "kvtier.v1.LookupResponse.Location", "kvtier.v1.Tier")
        for version in ("v1", "v1alpha"):
            answers = self.ask(
                {"list_services": "*"}, {"file_by_filename": "kvtier/v1/control.proto"},
                *({"file_containing_symbol": symbol} for symbol in symbols),
                {"all_extension_numbers_of_type": "kvtier.v1.Job"},
                {"file_by_filename": "none.proto"}, {"file_containing_symbol": "kvtier.v1.None"},
                {"all_extension_numbers_of_type": "none"},
                {"file_containing_extension": {"containing_type": "kvtier.v1.Job",
                                               "extension_number": 1}}, {}, version=version)
            self.assertEqual(len(answers), 13)
            self.assertTrue(all(a.valid_host == "h" for a in answers))
            self.assertEqual(len(answers[0].list_services_response.service), 4)
            for answer in answers[1:2 + len(symbols)]:
                self.assertEqual([without_json(file) for file in
                                  answer.file_descriptor_response.file_descriptor_proto],
                                 [PUBLISHED])
            self.assertEqual(answers[7].all_extension_numbers_response.base_type_name,
                             "kvtier.v1.Job")
            codes = [a.error_response.error_code for a in answers[8:]]
            self.assertEqual(codes, [5, 5, 5, 5, 3])  # NOT_FOUND, the last INVALID_ARGUMENT
            self.assertTrue(all(a.error_response.error_message for a in answers[8:]))

    def test_a_stream_without_a_question_ends_well(self):
        self.assertEqual(self.ask(), [])

    def test_standard_stub(self):
        stub = reflection_pb2_grpc.ServerReflectionStub(self.channel())
        answers = list(stub.ServerReflectionInfo(iter(
            [reflection_pb2.ServerReflectionRequest(list_services="")] * 50), timeout=WAIT_S))
        self.assertEqual(len(answers), 50)


class Statuses(TestCase):
    def raw(self, method, data=b"", timeout=WAIT_S, stub=None, **options):
        """A call whose bytes are ours."""
        call = (stub or self.channel(**options)).unary_unary(
            method, request_serializer=lambda d: d, response_deserializer=lambda d: d)
        return call(data, timeout=timeout)

    def test_generated_code_goes_beside_the_package(self):
        with generate() as folder:
            done = subprocess.run(
                [sys.executable, "-c", "import sys; sys.path.append(sys.argv[1])\n"
                 "import kvtier.control, kvtier.v1.control_pb2 as pb; pb.PinRequest(owner='x')",
                 folder], capture_output=True, text=True, timeout=60, check=False)
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    def test_methods_that_are_none(self):
        for method in (f"/{SERVICE}/Nothing", f"/{SERVICE}/getnode", "/kvtier.v2.Control/GetNode",
                       "/x/y", f"/{SERVICE}/GetNode/", "/" + "x" * 4000):
            self.refused("UNIMPLEMENTED", "has none of that name; see its reflection", self.raw,
                         method)

    def test_bytes_that_are_no_message(self):
        for data in (b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x05ab", b"\x80" * 20, b"\x0b",
                     b"\x0a" + bytes([200]) + b"x"):
            self.refused("INVALID_ARGUMENT", "request: is no kvtier.v1.PinRequest; make it with kv",
                         self.raw, f"/{SERVICE}/Pin", data)
        # Unknown fields come from newer clients, and are not looked at.
        answer = self.raw(f"/{SERVICE}/GetNode", b"\xfa\x3f\x03abc\xf8\x3e\x05")
        self.assertEqual(pb.Node.FromString(answer).pid, self.agent.process.pid)

    def test_a_field_of_another_type_is_refused(self):
        """Clear, whose mistakes delete: a namespace that arrives as a number is no namespace."""
        self.fill(3)
        self.refused("INVALID_ARGUMENT", "request:|filter", self.raw, f"/{SERVICE}/Clear",
                     b"\x08\x01")
        self.assertEqual(self.listed(), {0, 1, 2})

    def test_too_large(self):
        data = pb.ListPinsRequest(owner="x" * (4 << 20)).SerializeToString()
        self.refused("RESOURCE_EXHAUSTED", "larger than max", self.raw, f"/{SERVICE}/ListPins", data)
        data = pb.ListPinsRequest(owner="x" * ((4 << 20) - 100)).SerializeToString()
        self.assertEqual(self.raw(f"/{SERVICE}/ListPins", data), b"")
        # Small on the way, large when unpacked.
        many = b"\xf8\x3e\x01" * 1_390_000
        self.refused("RESOURCE_EXHAUSTED", "request: has too many parts; ask for less", self.raw,
                     f"/{SERVICE}/GetNode", many)
        # gRPC may drop the connection with it.
        self.refused("RESOURCE_EXHAUSTED", "metadata",
                     lambda: self.stub().GetNode(pb.GetNodeRequest(), timeout=WAIT_S,
                                                 metadata=[("x", "y" * 20000)]))
        self.assertEqual(self.call("GetNode").pid, self.agent.process.pid)

    def test_compressed(self):
        for kind in (grpc.Compression.Gzip, grpc.Compression.Deflate):
            self.refused("UNIMPLEMENTED", "request: is compressed, which this agent does not take",
                         self.call, "ListPins", stub=self.stub(compression=kind), owner="a" * 1000)

    def test_no_message_and_too_many(self):
        stream = self.channel().stream_unary(
            f"/{SERVICE}/GetNode", request_serializer=lambda d: d,
            response_deserializer=pb.Node.FromString)
        self.refused("INVALID_ARGUMENT", "request: there is none; send a kvtier.v1.GetNodeRequest",
                     stream, iter([]), timeout=WAIT_S)
        self.assertEqual(stream(iter([b"", b"", b""]), timeout=WAIT_S).pid, self.agent.process.pid)

    def test_deadlines(self):
        """Of the client, which may be any, and each call ends by itself."""
        for timeout in (0.0, 1e-6, 1e-3):
            try:
                self.call("ListChunks", timeout=timeout)
            except grpc.RpcError as err:
                self.assertEqual(err.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
        self.assertTrue(self.api.GetNode(pb.GetNodeRequest()).pid)  # without any
        self.assertTrue(self.call("GetNode", timeout=1e9).pid)

    def test_canceled_by_the_client(self):
        calls = [self.api.ListChunks.future(pb.ListChunksRequest(), timeout=WAIT_S)
                 for _ in range(90)]  # of 100 at once
        for call in calls:
            call.cancel()
        self.assertTrue(self.call("GetNode").pid)

    def test_errors_name_cause_and_next_step(self):
        """Every refusal of the service has the form "object: cause; next step"."""
        self.fill(1)
        space = self.space("test")
        chain = self.chain(space, [9])
        for method, fields in (("GetChunk", {"key": key(9)}), ("GetChunk", {"key": b"1"}),
                               ("Pin", {"owner": "", "chain": chain}), ("Unpin", {"id": 1}),
                               ("Pin", {"owner": "me", "chain": chain}),
                               ("GetJob", {"id": 5}), ("Clear", {}), ("Delete", {}),
                               ("SetLogLevel", {}), ("ListChunks", {"page_token": "?"}),
                               ("Lookup", {}), ("Prefetch", {})):
            with self.subTest(method, **fields), self.assertRaises(grpc.RpcError) as caught:
                self.call(method, **fields)
            self.assertRegex(caught.exception.details(), r"^[\w. \[\]]+: .+(; |, see ).+")
