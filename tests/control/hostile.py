# SPDX-License-Identifier: Apache-2.0
"""Clients of the control socket that misbehave below gRPC: bytes, and HTTP/2 made by hand."""

import contextlib
import os
import select
import socket
import struct
import time

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 8, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4
INITIAL_WINDOW_SIZE = 4
FRAME_BYTES = 16384  # the most of a frame
CONTROL = "/kvtier.v1.Control/"


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name, value):
    """A header field as HPACK has it where nothing is compressed."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def headers(path):
    return b"".join(literal(*field) for field in (
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode()),
        (b":authority", b"x"), (b"te", b"trailers"), (b"content-type", b"application/grpc")))


def message(request):
    data = request.SerializeToString()
    return b"\0" + struct.pack(">I", len(data)) + data


def call(stream, method, request):
    """Frames of a call of the service."""
    data = message(request)
    parts = [data[at:at + FRAME_BYTES] for at in range(0, len(data), FRAME_BYTES)]
    return frame(HEADERS, END_HEADERS, stream, headers(CONTROL + method)) + b"".join(
        frame(DATA, END_STREAM if part is parts[-1] else 0, stream, part) for part in parts)


class Peer:
    """A connection to the control socket; what it sends need not make sense. Nothing is read unless
    asked for, and nothing waits for a server that does not read either."""

    def __init__(self, path, greet=True, settings=b""):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.socket.setblocking(False)
        if greet:
            self.send(PREFACE + frame(SETTINGS, 0, 0, settings))

    def send(self, data):
        """False: the server has ended the connection, or does not read on."""
        try:
            while data:
                data = data[self.socket.send(data):]
        except OSError:
            return False
        return True

    def is_closed(self):
        """Whether the server has ended the connection; drops what it sent."""
        with contextlib.suppress(BlockingIOError):
            try:
                while self.socket.recv(1 << 16):
                    pass
                return True
            except ConnectionError:
                return True
        return False

    def flood(self, data, seconds):
        """Sends it again and again and drops what comes; False: the server ended that."""
        end = time.monotonic() + seconds
        view, at = memoryview(data), 0
        while time.monotonic() < end:
            try:
                at = (at + self.socket.send(view[at:at + (1 << 16)])) % len(data)
            except BlockingIOError:
                select.select([self.socket], [self.socket], [], 0.1)
            except OSError:
                return False
            if self.is_closed():
                return False
        return True

    def ask(self, method, request, n, seconds):
        """Sends n calls as the server takes them, and takes no answer."""
        self.socket.settimeout(seconds)
        with contextlib.suppress(OSError):
            for number in range(n):
                self.socket.sendall(call(2 * number + 1, method, request))
        self.socket.setblocking(False)

    def close(self):
        self.socket.close()


def nonsense(rng):
    """Bytes for one connection: nothing like HTTP/2, or nearly."""
    how = rng.randrange(8)
    if how == 0:
        return rng.randbytes(rng.randrange(1, 4096))
    if how == 1:
        return b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    if how == 2:
        return b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(500)  # TLS
    if how == 3:
        return PREFACE[:rng.randrange(1, len(PREFACE))]
    if how == 4:
        return PREFACE + rng.randbytes(rng.randrange(1, 4096))
    good = PREFACE + frame(SETTINGS, 0, 0)
    if how == 5:  # frames of any kind and length with any content
        return good + b"".join(frame(rng.randrange(12), rng.randrange(256), rng.randrange(8),
                                     rng.randbytes(rng.randrange(64))) for _ in range(20))
    if how == 6:  # a length that is not
        return good + struct.pack(">I", rng.randrange(1 << 24))[1:] + os.urandom(100)
    body = frame(DATA, END_STREAM, 1, rng.randbytes(1) + struct.pack(">I", rng.randrange(1 << 32)) +
                 rng.randbytes(rng.randrange(100)))
    return good + frame(HEADERS, END_HEADERS, 1, headers(CONTROL + "GetNode")) + body
