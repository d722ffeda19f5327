# SPDX-License-Identifier: Apache-2.0
"""Damages what a stopped agent left on disk: each time a miss or a clear error, counted, and never
a wrong byte (the client compares every one)."""

import os
import shutil
import struct

import kvt

N, CHUNK_BYTES = 64, 256 << 10
DAMAGED = set("MCI")  # what an item may be answered that cannot be served


def fill(agent, n=N, model="damage", first=0):
    """Stores durable chunks and stops the agent."""
    agent.start()
    with kvt.Client(agent, chunks=1024, chunk_bytes=CHUNK_BYTES, model=model) as client:
        client.connect()
        letters = client.store(first, n, durable=True)
        kvt.check(letters == "O" * n, f"store: {letters}\n{agent.log_tail()}")
    agent.stop()


def load_all(agent, n=N, model="damage", first=0):
    """Statuses by number, and the stats after it."""
    with kvt.Client(agent, chunks=1024, chunk_bytes=CHUNK_BYTES, model=model) as client:
        client.connect()
        return client.load(first, n), client.stats()


def judge(agent, n_damaged, counted=True):
    """The agent starts; exactly n_damaged chunks are gone, the rest is right; it goes on."""
    agent.start()
    letters, stats = load_all(agent)
    kvt.check(letters.count("O") == N - n_damaged and set(letters) <= DAMAGED | {"O"},
              f"{n_damaged} damaged: {letters}\n{agent.log_tail()}")
    if counted:
        kvt.check(stats["corrupt_chunks"] >= n_damaged, f"not counted: {stats['corrupt_chunks']}")
    again, _ = load_all(agent)
    kvt.check(again.count("O") == N - n_damaged, f"second load: {again}")
    with kvt.Client(agent, chunks=1024, chunk_bytes=CHUNK_BYTES, model="damage") as client:
        client.connect()
        for number in (i for i, letter in enumerate(letters) if letter != "O"):
            kvt.check(client.store(number, 1, durable=True) == "O", f"chunk {number}: store again")
        kvt.check(client.load(0, N) == "O" * N, "after storing again")
    agent.stop()


def flipped_data(folder):
    rng = kvt.seeded("flipped_data")
    with kvt.Agent(folder) as agent:
        fill(agent)
        for chunk, _ in rng.sample(kvt.slots(agent.store, CHUNK_BYTES), 10):
            kvt.flip(agent.store, chunk + rng.randrange(CHUNK_BYTES), rng.randrange(8))
        judge(agent, 10)


def flipped_header(folder):
    """Loads do not need the header page; a scrub finds that it is not what was written."""
    rng = kvt.seeded("flipped_header")
    with kvt.Agent(folder) as agent:
        fill(agent)
        for _, header in rng.sample(kvt.slots(agent.store, CHUNK_BYTES), 10):
            kvt.flip(agent.store, header + rng.randrange(kvt.PAGE), rng.randrange(8))
        agent.start()
        letters, _ = load_all(agent)
        kvt.check(letters == "O" * N, f"whole chunks: {letters}\n{agent.log_tail()}")
        agent.stop()
        agent.set(nvme__scrub_bytes_per_s="1GiB")
        agent.start()
        with kvt.Client(agent, chunks=1024, chunk_bytes=CHUNK_BYTES, model="damage") as client:
            client.connect()
            kvt.wait_until(lambda: client.stats()["corrupt_chunks"] >= 10, "the scrub to find 10")
        agent.set(nvme__scrub_bytes_per_s="0")
        agent.stop()
        judge(agent, 10, counted=False)


def swapped_slots(folder):
    rng = kvt.seeded("swapped_slots")
    with kvt.Agent(folder) as agent:
        fill(agent)
        chosen = rng.sample(kvt.slots(agent.store, CHUNK_BYTES), 8)
        with open(agent.store, "r+b") as file:
            for one, other in zip(chosen[::2], chosen[1::2]):
                for a, b, n_bytes in zip(one, other, (CHUNK_BYTES, kvt.PAGE)):
                    file.seek(a)
                    in_a = file.read(n_bytes)
                    file.seek(b)
                    in_b = file.read(n_bytes)
                    file.seek(a)
                    file.write(in_b)
                    file.seek(b)
                    file.write(in_a)
        judge(agent, 8)


def zeroed_slots(folder):
    """What a disk gives that lost its cache with the power: writes that never happened."""
    with kvt.Agent(folder) as agent:
        fill(agent)
        with open(agent.store, "r+b") as file:
            for chunk, header in kvt.slots(agent.store, CHUNK_BYTES)[::4]:
                file.seek(chunk)
                file.write(bytes(CHUNK_BYTES))
                file.seek(header)
                file.write(bytes(kvt.PAGE))
        judge(agent, len(range(0, N, 4)))


def stale_slots(folder):
    """The store file of an hour ago under the metadata of now."""
    with kvt.Agent(folder, nvme__bytes="10MiB") as agent:
        fill(agent, n=24)
        old = agent.store + ".old"
        shutil.copyfile(agent.store, old)
        for first in (100, 140, 180):
            fill(agent, n=24, first=first)
        os.replace(old, agent.store)
        agent.start()
        for first in (0, 100, 140, 180):
            letters, stats = load_all(agent, n=24, first=first)
            kvt.check(set(letters) <= DAMAGED | {"O"}, letters)
        kvt.check(stats["corrupt_chunks"] > 0, f"nothing was found stale: {letters}")
        agent.stop()


def truncated_store(folder):
    for size in (0, 4096, kvt.MIB, 9 * kvt.MIB):
        with kvt.Agent(folder) as agent:
            agent.wipe()
            fill(agent)
            os.truncate(agent.store, size)
            if agent.start_either():
                letters, _ = load_all(agent)
                kvt.check(set(letters) <= DAMAGED | {"O"}, letters)
                agent.stop()
            else:
                kvt.check(agent.store in agent.log_tail(), "does not name the file:\n" +
                          agent.log_tail())


def deleted_metadata(folder):
    with kvt.Agent(folder) as agent:
        fill(agent)
        shutil.rmtree(agent.meta)
        agent.start()
        letters, _ = load_all(agent)
        kvt.check(letters == "M" * N, f"served without metadata: {letters}")
        agent.stop()
        fill(agent)
        judge(agent, 0)


def deleted_store(folder):
    with kvt.Agent(folder) as agent:
        fill(agent)
        os.unlink(agent.store)
        agent.start()
        letters, _ = load_all(agent)
        kvt.check(set(letters) <= DAMAGED, f"served without a store: {letters}")
        agent.stop()


def metadata_of_another_store(folder):
    with kvt.Agent(folder) as agent:
        fill(agent, model="other")
        other = agent.meta + ".other"
        os.rename(agent.meta, other)
        agent.wipe()
        fill(agent)
        shutil.rmtree(agent.meta)
        os.rename(other, agent.meta)
        if agent.start_either():
            letters, _ = load_all(agent)
            kvt.check(letters == "M" * N, f"served by the metadata of another store: {letters}")
            letters, _ = load_all(agent, model="other")
            kvt.check(letters == "M" * N, f"served from the store of other metadata: {letters}")
            agent.stop()
        else:
            kvt.check("store" in agent.log_tail(), agent.log_tail())


def damaged_metadata(folder):
    rng = kvt.seeded("damaged_metadata")
    n_started = n_refused = 0
    with kvt.Agent(folder) as agent:
        fill(agent)
        good = agent.meta + ".good"
        shutil.copytree(agent.meta, good)
        for _ in range(int(os.environ.get("KVT_META_DAMAGES", "12"))):
            shutil.rmtree(agent.meta)
            shutil.copytree(good, agent.meta)
            names = sorted(n for n in os.listdir(agent.meta)
                           if os.path.getsize(os.path.join(agent.meta, n)) > 0)
            victims = rng.sample(names, rng.randrange(1, min(3, len(names)) + 1))
            how = []
            for name in victims:
                how.append(damage_file(rng, os.path.join(agent.meta, name)))
            if agent.start_either():
                n_started += 1
                letters, _ = load_all(agent)
                kvt.check(set(letters) <= DAMAGED | {"O"}, f"{how}: {letters}")
                agent.stop()
            else:
                n_refused += 1
                kvt.check(agent.meta in agent.log_tail(),
                          f"{how}: does not name the folder:\n{agent.log_tail()}")
        shutil.rmtree(agent.meta)
        agent.start()
        letters, _ = load_all(agent)
        kvt.check(letters == "M" * N, f"after removing the metadata: {letters}")
        agent.stop()
    kvt.note(f"damaged metadata: {n_started} starts, {n_refused} refusals")


def damage_file(rng, path):
    size = os.path.getsize(path)
    what = rng.choice(("flip", "overwrite", "truncate", "delete"))
    if what == "flip":
        kvt.flip(path, rng.randrange(size), rng.randrange(8))
    elif what == "overwrite":
        with open(path, "r+b") as file:
            file.seek(rng.randrange(size))
            file.write(rng.randbytes(min(4096, size)))
    elif what == "truncate":
        os.truncate(path, rng.randrange(size))
    else:
        os.unlink(path)
    return f"{what} {os.path.basename(path)}"


def other_version(folder):
    """The version is the first field behind the magic; whatever else guards the superblock, a
    file of another version is refused, named, and left as it is."""
    with kvt.Agent(folder) as agent:
        fill(agent)
        with open(agent.store, "r+b") as file:
            file.seek(8)
            (version,) = struct.unpack("<I", file.read(4))
            kvt.check(version == 3, f"version {version} of the superblock is not where it was")
            file.seek(8)
            file.write(struct.pack("<I", version - 1))
        with open(agent.store, "rb") as file:
            before = file.read(2 * kvt.MIB)
        status, text = agent.start_refused()
        kvt.check(status > 0 and agent.store in text, f"exit status {status}:\n{text}")
        with open(agent.store, "rb") as file:
            kvt.check(file.read(2 * kvt.MIB) == before, "the refused file was changed")
        agent.set(nvme__required="false")
        agent.start()
        with kvt.Client(agent, chunks=1024, model="damage") as client:
            client.connect()
            kvt.check(client.store(0, 8) == "O" * 8, "host memory alone")
            kvt.check(client.load(0, 8) == "O" * 8, "host memory alone")
            kvt.check(client.stats()["nvme_degraded"] == 1, "degraded, and does not say so")
        agent.stop()


def locked_store(folder):
    with kvt.Agent(folder) as agent, kvt.Agent(folder) as second:
        fill(agent)
        agent.start()
        second.sets["socket.path"] = os.path.join(folder, "second.sock")
        second.log = os.path.join(folder, "second.log")
        status, text = second.start_refused()
        kvt.check(status > 0 and second.store in text, f"exit status {status}:\n{text}")
        letters, _ = load_all(agent)
        kvt.check(letters == "O" * N, letters)
        agent.stop()


kvt.run(flipped_data, flipped_header, swapped_slots, zeroed_slots, stale_slots, truncated_store,
        deleted_metadata, deleted_store, metadata_of_another_store, damaged_metadata,
        other_version, locked_store)
