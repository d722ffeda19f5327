# SPDX-License-Identifier: Apache-2.0
"""Clients that misbehave: the agent's memory stays bounded, and others do not wait for them."""

import contextlib
import os
import socket
import struct
import time

import kvt

MEMORY = 96 * kvt.MIB  # what all of them together may cost
P99_US = 50_000        # of another client's lookups meanwhile; two busy cores are slow ones


@contextlib.contextmanager
def bystander(agent):
    """A well-behaved client; after the body its lookups must be quick and memory bounded."""
    with kvt.Client(agent, chunks=1024, chunk_bytes=64 << 10) as client:
        client.connect()
        kvt.check(client.store(0, 8) == "O" * 8, "store")
        client.latency(200)
        before = agent.rss_bytes()
        yield client
        took = client.latency(2000)
        agent.check_alive()
        grown = agent.rss_bytes() - before
        kvt.note(f"lookups meanwhile: {took}; memory grew by {grown >> 10} KiB")
        kvt.check(took["p99_us"] <= P99_US, f"another client waits: {took}")
        kvt.check(grown <= MEMORY, f"memory grew by {grown} bytes")
        kvt.check(client.load(0, 8) == "O" * 8, "load")


def never_reads(folder):
    """Asks and asks, and takes no answer."""
    with kvt.Agent(folder) as agent:
        agent.start()
        with bystander(agent) as client, contextlib.ExitStack() as stack:
            for number in range(8):
                raw = stack.enter_context(kvt.Raw(agent))
                ns = raw.namespace(f"greedy-{number}")
                raw.socket.setblocking(False)
                keys = b"".join(map(kvt.key_bytes, range(1024)))
                with contextlib.suppress(OSError):
                    for op in range(20000):
                        raw.socket.send(kvt.message("RESERVE", 100 + op, struct.pack(
                            "<IIIIQ", ns, 1024, 0, 0, 0) + keys))
                        raw.socket.send(kvt.message("STATS", 1 << 40 | op))
                with contextlib.suppress(OSError):
                    for op in range(20000):
                        raw.socket.send(kvt.message("PING", 1 << 41 | op))
            took = client.latency(2000)
            kvt.check(took["p99_us"] <= P99_US, f"another client waits: {took}")
        kvt.until(lambda: kvt.nothing_held(agent), 2, "what the greedy held")
        agent.stop()


def a_million_tiny_ops(folder):
    with kvt.Agent(folder) as agent:
        agent.start()
        with bystander(agent) as client, kvt.Client(agent, chunks=1024) as spammer:
            spammer.connect()
            began = time.monotonic()
            spammer.send(f"spam {os.environ.get('KVT_SPAM', '1000000')}")
            took = client.latency(2000)
            answer = spammer.answer()
            kvt.check(answer == "ok", answer)
            kvt.note(f"a million lookups in {time.monotonic() - began:.1f} s; another's: {took}")
            kvt.check(took["p99_us"] <= P99_US, f"another client waits: {took}")
        agent.stop()


def thousand_connections(folder):
    """Most say nothing at all, some say HELLO and nothing more."""
    with kvt.Agent(folder) as agent:
        agent.start()
        silent, n_refused = [], 0
        with bystander(agent) as client:
            for number in range(1000):
                try:
                    raw = kvt.Raw(agent, hello=False)
                    raw.socket.setblocking(False)
                    silent.append(raw)
                    if number % 4 == 0:
                        raw.send("HELLO", struct.pack("<II48s", kvt.MAGIC, kvt.VERSION, b"quiet"))
                except OSError:
                    n_refused += 1
            took = client.latency(2000)
            kvt.check(took["p99_us"] <= P99_US, f"another client waits: {took}")
            kvt.note(f"{len(silent)} connected, {n_refused} refused")
        for raw in silent:
            raw.close()

        def newcomer():
            try:
                with kvt.Raw(agent):
                    return None
            except (OSError, kvt.Wrong, struct.error) as err:
                return repr(err)

        kvt.until(newcomer, 20, "a newcomer after they left")
        kvt.until(lambda: kvt.nothing_held(agent), 2, "their sessions")
        agent.stop()


def nonsense(folder):
    """Random and nearly right messages: the session ends or errs, the agent does neither."""
    rng = kvt.seeded("nonsense")
    with kvt.Agent(folder) as agent:
        agent.start()
        with bystander(agent):
            for number in range(400):
                with kvt.Raw(agent, hello=rng.random() < 0.8) as raw:
                    raw.socket.setblocking(False)
                    with contextlib.suppress(OSError):
                        for _ in range(rng.randrange(1, 20)):
                            raw.socket.send(nonsense_message(rng))
        kvt.until(lambda: kvt.nothing_held(agent), 2, "what they held")
        agent.stop()


def nonsense_message(rng):
    body = rng.randbytes(rng.choice((0, 1, 8, 24, 40, 512, 4096, 33000)))
    how = rng.randrange(4)
    if how == 0:
        return rng.randbytes(rng.randrange(1, 64))
    kind = rng.choice(kvt.TYPES)
    if how == 1:
        return kvt.message(kind, rng.randrange(1 << 64), body)
    if how == 2:  # a length that is not
        return kvt.HEADER.pack(kvt.TYPE[kind], 0, rng.randrange(1 << 32), 1) + body
    # right lengths, wrong contents
    n = rng.randrange(1, 5)
    keys = rng.randbytes(32 * n)
    fixed = {"LOOKUP": struct.pack("<IIII", rng.randrange(4), n, 1, 0),
             "RESERVE": struct.pack("<IIIIQ", rng.randrange(4), n, rng.randrange(4), 0, 0),
             "LOAD": struct.pack("<IIIIQ", rng.randrange(4), n, rng.randrange(8), 0, 0)}
    kind = rng.choice(tuple(fixed))
    return kvt.message(kind, rng.randrange(1, 4), fixed[kind] + keys)


NAMESPACES = 65536         # that the agent has places for
NAMESPACES_SESSION = 1024  # that one session may have


def take_namespaces(raw, name):
    """As many as the agent gives; it says when it is enough."""
    for number in range(NAMESPACES_SESSION + 1):
        try:
            raw.namespace(f"{name}-{number}")
        except kvt.Wrong as err:
            return number, str(err)
    raise kvt.Wrong(f"one session has {number + 1} namespaces")


def many_namespaces(folder):
    """More than there are places, first by sessions that stay: others keep theirs, and who comes
    is told. Then by one after another: who comes finds a place, and old ones make way for it."""
    with kvt.Agent(folder) as agent:
        agent.start()
        with bystander(agent):
            with contextlib.ExitStack() as stack:
                n, said = 0, ""
                while "in use" not in said:
                    raw = stack.enter_context(kvt.Raw(agent))
                    more, said = take_namespaces(raw, f"stays-{n}")
                    n += more
                    kvt.check("this session has 1024" in said or "all 65536 are in use" in said,
                              said)
                kvt.check(n + 1 == NAMESPACES, f"{n} namespaces beside another's")
            for number in range(NAMESPACES // NAMESPACES_SESSION + 6):
                with kvt.Raw(agent) as raw:
                    more, said = take_namespaces(raw, f"goes-{number}")
                    kvt.check(more == NAMESPACES_SESSION, said)
            with kvt.Client(agent, chunks=8, chunk_bytes=64 << 10, model="newcomer") as client:
                client.connect()
                kvt.check(client.store(0, 8) == "O" * 8, "store of a newcomer")
                kvt.check(client.load(0, 8) == "O" * 8, "load of a newcomer")
        agent.stop()
        agent.start()  # what both stored is still there, under the names of now
        for model, n_chunks in (("newcomer", 8), (None, 1024)):
            options = {"model": model} if model else {}
            with kvt.Client(agent, chunks=n_chunks, chunk_bytes=64 << 10, **options) as client:
                client.connect()
                kvt.check(client.load(0, 8) == "O" * 8, f"{model or 'bystander'} after a restart")
        agent.stop()


def large_messages(folder):
    """The socket's limit and beyond: an error for the sender alone."""
    with kvt.Agent(folder) as agent:
        agent.start()
        with bystander(agent), kvt.Raw(agent) as raw:
            raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
            with contextlib.suppress(OSError):
                raw.socket.send(kvt.message("LOOKUP", 1, bytes(200 << 10)))
                raw.socket.recv(1 << 20)
        agent.stop()


kvt.run(never_reads, a_million_tiny_ops, thousand_connections, nonsense, many_namespaces,
        large_messages)
