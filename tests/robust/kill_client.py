# SPDX-License-Identifier: Apache-2.0
"""Kills clients in mid-store, mid-load and with leases: the agent takes everything back."""

import os
import signal
import struct
import time

import kvt

KILLS = int(os.environ.get("KVT_CLIENT_KILLS", "20"))
BACK_S = 1.0


def killed_under_load(folder):
    rng = kvt.seeded("killed_under_load")
    with kvt.Agent(folder, nvme__bytes="128MiB") as agent:
        agent.start()
        slowest = 0.0
        for kill in range(KILLS):
            with kvt.Client(agent, chunks=1024, seed=kill, threads=3) as client:
                client.connect()
                client.ask("run 0 128")
                time.sleep(0.02 + rng.random() * 0.2)
                client.process.send_signal(signal.SIGKILL)
                began = time.monotonic()
                kvt.until(lambda: kvt.nothing_held(agent), BACK_S, "a killed client's things")
                slowest = max(slowest, time.monotonic() - began)
        agent.check_alive()
        kvt.note(f"{KILLS} clients killed, all taken back within {slowest * 1000:.0f} ms")
        with kvt.Client(agent, chunks=1024) as client:
            client.connect()
            client.load(0, 1024)
        agent.stop()


def in_child(function):
    """Runs function in a child that then waits to be killed; returns its pid when it is there."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            keep = function()
            os.write(write_fd, b"1" if keep is not None else b"0")
            signal.pause()
        finally:
            os._exit(1)
    os.close(write_fd)
    there = os.read(read_fd, 1)
    os.close(read_fd)
    kvt.check(there == b"1", "the child could not set up what is to be killed")
    return pid


def killed_holding(agent, function, gauge):
    pid = in_child(function)
    with kvt.Raw(agent) as raw:
        held = raw.stats()[gauge]
        kvt.check(held > 0, f"{gauge} is 0 while a client holds some")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    kvt.until(lambda: kvt.nothing_held(agent), BACK_S, f"{gauge} of a killed client")


def killed_between_reserve_and_commit(folder):
    with kvt.Agent(folder) as agent:
        agent.start()

        def hold():
            raw = kvt.Raw(agent)
            _, items = raw.reserve(raw.namespace("mid-store"), list(range(64)))
            return raw if all(status == 0 for status, _ in items) else None

        killed_holding(agent, hold, "reserved_bytes")
        with kvt.Raw(agent) as raw:  # and the keys are free for others
            _, items = raw.reserve(raw.namespace("mid-store"), list(range(64)))
            kvt.check(all(status == 0 for status, _ in items), f"not free again: {items}")
        agent.stop()


def killed_with_open_load(folder):
    with kvt.Agent(folder, nvme__path=None, nvme__bytes=None) as agent:
        agent.start()

        def hold():
            raw = kvt.Raw(agent)
            ns = raw.namespace("mid-load")
            numbers = list(range(16))
            op, items = raw.reserve(ns, numbers)
            if any(status != 0 for status, _ in items):
                return None
            raw.commit(op, numbers, [0] * 16)
            answer = raw.ask("LOAD", struct.pack("<IIIIQ", ns, 16, 0, 0, (1 << 63) - 1) +
                             b"".join(map(kvt.key_bytes, numbers)))
            status, n = struct.unpack_from("<iI", answer, kvt.HEADER.size)
            return raw if status == 0 and n > 0 else None  # LOAD_DONE is never sent

        killed_holding(agent, hold, "pins")
        agent.stop()


def killed_with_leases(folder):
    with kvt.Agent(folder) as agent:
        agent.start()
        with kvt.Client(agent) as client:
            client.connect()
            client.store(0, 8)
            found, lease = client.lookup(0, 8, lease=True)
            kvt.check(found == 8 and lease != 0, "no lease")
            with kvt.Raw(agent) as raw:
                stats = raw.stats()
                kvt.check(stats["leases"] == 1 and stats["pins"] > 0, f"not counted: {stats}")
        kvt.until(lambda: kvt.nothing_held(agent), BACK_S, "leases of a killed client")
        agent.stop()


def stopped_client_keeps_its_slots(folder):
    """A reservation never returns on time alone: a stopped client may still write into it."""
    with kvt.Agent(folder, lease__ttl="100ms", lease__ttl_max="200ms", nvme__path=None,
                   nvme__bytes=None) as agent:
        agent.start()
        with kvt.Raw(agent) as writer, kvt.Client(agent, chunk_bytes=64 << 10,
                                                  chunks=1024) as client:
            client.connect()
            ns = writer.namespace("stopped")
            _, items = writer.reserve(ns, list(range(32)))
            kvt.check(all(status == 0 for status, _ in items), f"reserve: {items}")
            held = writer.stats()["reserved_bytes"]
            time.sleep(0.5)  # more than any lease
            client.store(0, 1024)  # twice the arena: everything that may go, goes
            kvt.check(writer.stats()["reserved_bytes"] == held, "a live reservation was taken")
        agent.stop()


kvt.run(killed_under_load, killed_between_reserve_and_commit, killed_with_open_load,
        killed_with_leases, stopped_client_keeps_its_slots)
