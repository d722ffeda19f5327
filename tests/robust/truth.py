# SPDX-License-Identifier: Apache-2.0
"""Answers that must be true: what does not fit says so per item, what was committed is found, what
was released is gone."""

import os
import signal
import subprocess
import time

import kvt


def does_not_fit(folder):
    """More than the arena, all of it leased: each chunk is said not to be stored, and counted."""
    with kvt.Agent(folder, nvme__path=None, nvme__bytes=None, host__bytes="16MiB") as agent:
        agent.start()
        with kvt.Client(agent, chunks=1024) as holder, kvt.Client(agent, chunks=1024) as client:
            holder.connect()
            client.connect()
            letters = holder.store(0, 64)
            kvt.check(letters == "O" * 64, letters)
            for first in range(0, 64, 8):
                found, lease = holder.lookup(first, 8, lease=True)
                kvt.check(found == 8 and lease != 0, f"found {found}, lease {lease}")
            before = client.stats()
            letters = client.store(64, 64, now=True)
            kvt.check(letters == "N" * 64, f"128 chunks of 256 KiB in 16 MiB: {letters}")
            kvt.check(client.load(64, 64) == "M" * 64, "refused, and there all the same")
            loaded = client.load(0, 64)
            kvt.check(loaded == "O" * 64, f"leased chunks went: {loaded}")
            after = client.stats()
            refused = after["store_refused_chunks"] - before["store_refused_chunks"]
            kvt.check(refused == 64, f"{refused} of 64 refusals counted")
            kvt.check(after["host_used_bytes"] <= after["host_capacity_bytes"], "over capacity")
        agent.stop()


def larger_than_any_slab(folder):
    """A chunk that can never fit is refused with a reason, not accepted and dropped."""
    with kvt.Agent(folder) as agent:
        agent.start()
        with kvt.Client(agent, chunks=16, chain=2, chunk_bytes=8 << 20, threads=0) as client:
            client.connect()
            letters = client.store(0, 2)
            kvt.check("O" not in letters, f"8 MiB chunks in 4 MiB slabs: {letters}")
            kvt.check(client.load(0, 2).count("O") == 0, "loaded what cannot be stored")
        agent.stop()


def found_after_commit(folder):
    with kvt.Agent(folder) as agent:
        agent.start()
        with kvt.Client(agent, chunks=4096, chunk_bytes=64 << 10) as writer, \
                kvt.Client(agent, chunks=4096, chunk_bytes=64 << 10) as reader:
            writer.connect()
            reader.connect()
            for first in range(0, 1024, 8):
                letters = writer.store(first, 8)
                kvt.check(letters == "O" * 8, letters)
                found, _ = reader.lookup(first, 8)
                kvt.check(found == 8, f"{found} of 8 found right after their commit")
        agent.stop()


def lease_gone_when_released(folder):
    with kvt.Agent(folder) as agent:
        agent.start()
        with kvt.Client(agent) as client, kvt.Raw(agent) as raw:
            client.connect()
            client.store(0, 8)
            for _ in range(200):
                found, lease = client.lookup(0, 8, lease=True)
                kvt.check(found == 8 and lease != 0, "no lease")
                held = raw.stats()
                kvt.check(held["leases"] == 1 and held["pins"] > 0, f"not held: {held['leases']}")
                kvt.check(client.ask(f"release {lease}") == "ok", "release")
                held = raw.stats()
                kvt.check(held["leases"] == 0 and held["pins"] == 0,
                          f"released: {held['leases']} leases, {held['pins']} pins")
        agent.stop()


def lease_holds(folder):
    """A leased prefix stays while three times the arena passes through it."""
    with kvt.Agent(folder, nvme__path=None, nvme__bytes=None) as agent:
        agent.start()
        with kvt.Client(agent, chunks=1024) as client:
            client.connect()
            client.store(0, 8)
            _, lease = client.lookup(0, 8, lease=True)
            client.store(8, 384)
            kvt.check(client.load(0, 8) == "O" * 8, "a leased chunk was evicted")
            client.ask(f"release {lease}")
            client.store(392, 384)
            kvt.check(client.lookup(0, 8)[0] < 8, "chunks nobody holds outlived 3 arenas")
        agent.stop()


def durable_survives(folder):
    """Durable means: killed right after the answer, it is there."""
    with kvt.Agent(folder) as agent:
        for turn in range(5):
            agent.start()
            with kvt.Client(agent) as client:
                client.connect()
                letters = client.store(turn * 64, 64, durable=True)
                agent.kill()
                kvt.check(letters == "O" * 64, letters)
        agent.start()
        with kvt.Client(agent) as client:
            client.connect()
            letters = client.load(0, 320)
            kvt.check(letters == "O" * 320, f"lost: {letters}")
        agent.stop()


def two_writers_of_one_key(folder):
    """Each item is stored by one of them; the other is told EXISTS or BUSY; all is found after."""
    with kvt.Agent(folder) as agent:
        agent.start()
        with kvt.Client(agent, chunks=512) as one, kvt.Client(agent, chunks=512) as two:
            one.connect()
            two.connect()
            one.send("store 0 512")
            two.send("store 0 512")
            first, second = one.answer(), two.answer()
            for number, pair in enumerate(zip(first, second)):
                kvt.check(set(pair) <= set("OEB"), f"chunk {number}: {pair}")
            for clients in (one, two):
                clients.load(0, 512)
        agent.stop()


def reserved_twice(folder):
    """A second writer of a reserved key is told BUSY, and gets it when the first is gone."""
    with kvt.Agent(folder) as agent:
        agent.start()
        with kvt.Raw(agent) as second:
            with kvt.Raw(agent) as first:
                ns = first.namespace("twice")
                _, items = first.reserve(ns, list(range(8)))
                kvt.check(all(s == 0 for s, _ in items), str(items))
                ns = second.namespace("twice")
                _, items = second.reserve(ns, list(range(8)))
                kvt.check(all(s == -8 for s, _ in items), f"second writer: {items}")
            kvt.until(lambda: None if second.stats()["sessions"] == 1 else "it is open", 1,
                      "the first writer's session")
            _, items = second.reserve(ns, list(range(8)))
            kvt.check(all(s == 0 for s, _ in items), f"after the first went: {items}")
        agent.stop()


def agent_restarts_under_client(folder):
    """Away: everything misses at once. Back: the same session works again."""
    with kvt.Agent(folder) as agent:
        agent.start()
        with kvt.Client(agent) as client:
            client.connect()
            kvt.check(client.store(0, 8, durable=True) == "O" * 8, "store")
            agent.kill()
            kvt.check(set(client.load(0, 8)) <= {"U"}, "load without an agent")
            kvt.check(client.lookup(0, 8) == (0, 0), "lookup without an agent")
            kvt.check(set(client.store(8, 8)) <= {"U"}, "store without an agent")
            agent.start()
            client.connect()
            kvt.check(client.load(0, 8) == "O" * 8, "the durable chunks after the restart")
        agent.stop()


def frozen_agent_does_not_hold_the_client(folder):
    """SIGSTOP: an op ends by its deadline, submitting goes on."""
    with kvt.Agent(folder) as agent:
        agent.start()
        with kvt.Client(agent) as client:
            client.connect()
            client.store(0, 8)
            agent.process.send_signal(signal.SIGSTOP)
            try:
                began = time.monotonic()
                letters = client.load(0, 8)
                kvt.check("?" not in letters, letters)
                kvt.check(time.monotonic() - began < 45, "a load passed its deadline")
            finally:
                agent.process.send_signal(signal.SIGCONT)
            client.connect()
            kvt.check(client.load(0, 8) == "O" * 8, "after the agent went on")
        agent.stop()


def example_of_the_readme(folder):
    """The README shows docs/example.c, and it does what it says."""
    with open(os.environ["KVT_EXAMPLE_C"], encoding="utf-8") as file:
        code = file.read().split("\n", 1)[1]  # behind the licence line
    with open(os.environ["KVT_README"], encoding="utf-8") as file:
        kvt.check("```c\n" + code + "```" in file.read(), "the README shows another program")
    with kvt.Agent(folder) as agent:
        agent.start()
        done = subprocess.run([os.environ["KVT_EXAMPLE"], agent.socket], capture_output=True,
                              text=True, timeout=60, check=False)
        kvt.check(done.returncode == 0 and
                  done.stdout == "stored 2 of 2 chunks\nloaded a prefix of 2 chunks\n",
                  f"{done}")
        agent.stop()


kvt.run(does_not_fit, larger_than_any_slab, found_after_commit, lease_gone_when_released,
        lease_holds, durable_survives, two_writers_of_one_key, reserved_twice,
        agent_restarts_under_client, frozen_agent_does_not_hold_the_client,
        example_of_the_readme)
