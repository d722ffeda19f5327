# SPDX-License-Identifier: Apache-2.0
"""A disk that is full, errs, lies or may not be used as wished: fewer hits, said aloud, and never
a wrong byte."""

import contextlib
import os
import shutil
import subprocess

import kvt

N, CHUNK_BYTES = 64, 256 << 10


def client_of(agent, **options):
    return kvt.Client(agent, chunks=1024, chunk_bytes=CHUNK_BYTES, model="faults", **options)


@contextlib.contextmanager
def faulty_disk(folder):
    """A mounted faultfs: yields (mount point, function that sets the fault)."""
    if not os.path.exists("/dev/fuse") or not shutil.which("fusermount3"):
        raise kvt.Skip("no FUSE here")
    backing, mount = os.path.join(folder, "backing"), os.path.join(folder, "mount")
    os.mkdir(backing)
    os.mkdir(mount)
    process = subprocess.Popen([os.environ["KVT_FAULTFS"], backing, mount],
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True)

    def mounted():
        if process.poll() is not None:
            raise kvt.Skip("FUSE cannot be used: " + process.stdout.read().strip())
        return None if os.path.ismount(mount) else "not mounted"

    def fault(text):
        temporary = os.path.join(folder, "faults.new")
        with open(temporary, "w", encoding="ascii") as file:
            file.write(text + "\n")
        os.replace(temporary, os.path.join(backing, "faults"))

    try:
        kvt.until(mounted, 10, "faultfs")
        yield mount, fault
    finally:
        subprocess.run(["fusermount3", "-u", "-z", mount], check=False, capture_output=True)
        process.terminate()
        process.wait(10)


def on_faulty_disk(folder, mount, **sets):
    agent = kvt.Agent(folder, **sets)
    agent.store = os.path.join(mount, "store")
    agent.set(nvme__path=agent.store, nvme__meta_path=agent.meta)
    return agent


ALL = f"0 {1 << 60}"
DATA = f"{kvt.MIB} {1 << 60}"  # behind the superblock


def read_errors(folder):
    for engine in ("auto", "threads"):
        sub = os.path.join(folder, engine)
        os.mkdir(sub)
        with faulty_disk(sub) as (mount, fault), \
                on_faulty_disk(sub, mount, nvme__engine=engine) as agent:
            agent.start()
            with client_of(agent) as client:
                client.connect()
                kvt.check(client.store(0, N, durable=True) == "O" * N, "store")
            agent.stop()
            agent.start()
            with client_of(agent) as client:
                client.connect()
                fault("read-eio " + DATA)
                letters = client.load(0, 16)
                kvt.check(set(letters) <= set("MI"), f"{engine}, all reads fail: {letters}")
                kvt.check(client.stats()["nvme_read_errors"] > 0, "not counted")
                kvt.check(' cause="input or output error"' in agent.log_tail(), agent.log_tail())
                fault("none 0 0")
                letters = client.load(16, N - 16)
                kvt.check(letters == "O" * (N - 16), f"{engine}, the disk is well: {letters}")
                fault("read-flip " + DATA)
            agent.stop()
            agent.start()
            with client_of(agent) as client:
                client.connect()
                letters = client.load(16, N - 16)
                kvt.check("O" not in letters, f"{engine}, reads lie: {letters}")
                kvt.check(client.stats()["corrupt_chunks"] > 0, "not counted")
            agent.stop()


def write_errors(folder):
    for kind in ("write-eio", "write-enospc"):
        sub = os.path.join(folder, kind)
        os.mkdir(sub)
        with faulty_disk(sub) as (mount, fault), on_faulty_disk(sub, mount) as agent:
            agent.start()
            with client_of(agent) as client:
                client.connect()
                fault(kind + " " + DATA)
                letters = client.store(0, 32, durable=True)
                kvt.check("O" not in letters, f"{kind}: durable, it said: {letters}")
                kvt.check(client.stats()["nvme_write_errors"] > 0, "not counted")
                letters = client.store(32, 32)
                kvt.check(letters == "O" * 32, f"{kind}, host memory is well: {letters}")
                kvt.check(client.load(32, 32) == "O" * 32, "load from host memory")
                fault("none 0 0")

                tried = []

                def durable_again():
                    tried.append(128 + 8 * len(tried) % 896)
                    letters = client.store(tried[-1], 8, durable=True)
                    return None if letters == "O" * 8 else letters

                kvt.until(durable_again, 30, f"{kind}: the disk is well, stores still fail")
            agent.kill()
            agent.start()
            with client_of(agent) as client:
                client.connect()
                kvt.check(client.load(tried[-1], 8) == "O" * 8, "durable chunks after a restart")
                client.load(0, 128)
            agent.stop()


def short_and_torn_writes(folder):
    """A short write is carried on; a torn one that claims to be whole is found when read."""
    for kind in ("write-short", "write-torn"):
        sub = os.path.join(folder, kind)
        os.mkdir(sub)
        with faulty_disk(sub) as (mount, fault), on_faulty_disk(sub, mount) as agent:
            agent.start()
            with client_of(agent) as client:
                client.connect()
                fault(kind + " " + DATA)
                letters = client.store(0, N, durable=True)
                fault("none 0 0")
            agent.stop()
            agent.start()
            with client_of(agent) as client:
                client.connect()
                loaded = client.load(0, N)
                if kind == "write-short":
                    for number, (stored, found) in enumerate(zip(letters, loaded)):
                        kvt.check(stored != "O" or found == "O", f"chunk {number} lost: {loaded}")
                else:
                    kvt.check(client.stats()["corrupt_chunks"] > 0, f"not counted: {loaded}")
            agent.stop()


@contextlib.contextmanager
def small_file_system(folder, size_mib):
    image, mount = os.path.join(folder, "image"), os.path.join(folder, "small")
    os.mkdir(mount)
    with open(image, "wb") as file:
        file.truncate(size_mib << 20)
    for command in (["mkfs.ext4", "-q", "-m", "0", image], ["mount", "-o", "loop", image, mount]):
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            raise kvt.Skip(f"no loop devices here: {' '.join(command)}: {done.stderr.strip()}")
    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", mount], check=False, capture_output=True)


def a_device_and_a_file(folder):
    """A store on a raw block device and a file together; what is somebody else's is left alone."""
    file_bytes = 24 * kvt.MIB
    with kvt.block_device(folder, 32) as device, kvt.Agent(folder) as agent:
        agent.set(nvme__path=None, nvme__bytes=None, nvme__meta_path=agent.meta,
                  nvme__disks__0__path=device, nvme__disks__0__bytes="32MiB",
                  nvme__disks__1__path=agent.store, nvme__disks__1__bytes=str(file_bytes))
        subprocess.run(["mkfs.ext4", "-q", device], check=True, capture_output=True)
        status, text = agent.start_refused()
        kvt.check(status > 0 and device in text and "not a KVTier store" in text,
                  f"a file system is no store: exit status {status}:\n{text}")
        with open(device, "r+b") as file:
            file.write(bytes(kvt.MIB))
        n = 128  # 32 MiB of chunks: more than either of the two has room for
        agent.start()
        with client_of(agent) as client:
            client.connect()
            kvt.check(client.store(0, n, durable=True) == "O" * n, agent.log_tail())
        agent.kill()
        agent.start()
        with client_of(agent) as client:
            client.connect()
            kvt.check(client.load(0, n) == "O" * n, "after a kill")
            kvt.check(client.stats()["load_nvme_chunks"] == n, "not from the disks")
        agent.stop()
        kvt.check(os.path.getsize(agent.store) <= file_bytes, "the file outgrew its cap")
        agent.set(nvme__disks__0__bytes="48MiB")
        status, text = agent.start_refused()
        kvt.check(status > 0 and device in text and "nvme.disks.0.bytes" in text,
                  f"larger than the device: exit status {status}:\n{text}")


def store_larger_than_the_disk(folder):
    """Larger than the whole disk is refused by the configuration; larger than the room left on it
    by the store, which the agent may be told to do without."""
    with small_file_system(folder, 64) as mount, \
            kvt.Agent(folder, nvme__path=os.path.join(mount, "store")) as agent:
        store = os.path.join(mount, "store")

        def check_refused(*words):
            status, text = agent.start_refused()
            kvt.check(status > 0 and store in text and all(word in text for word in words),
                      f"exit status {status}:\n{text}")

        check_refused("nvme.disks.0.bytes", "lower it")
        with open(os.path.join(mount, "ballast"), "wb") as file:
            os.posix_fallocate(file.fileno(), 0, 30 * kvt.MIB)
        agent.set(nvme__bytes="40MiB")
        check_refused("space")
        agent.set(nvme__required="false")
        agent.start()
        with client_of(agent) as client:
            client.connect()
            kvt.check(client.store(0, 8) == "O" * 8, "host memory alone")
            letters = client.store(8, 8, durable=True)
            kvt.check("O" not in letters, f"durable without a disk: {letters}")
        agent.stop()


def metadata_on_a_full_disk(folder):
    """The metadata's disk fills up while the agent runs: durable stores fail, all else goes on,
    and what was called durable is there when there is room again."""
    n_chunks, chain = 4096, 64
    with small_file_system(folder, 128) as mount, \
            kvt.Agent(folder, nvme__meta_path=os.path.join(mount, "meta")) as agent:

        def client():
            return kvt.Client(agent, chunks=n_chunks, chain=chain, chunk_bytes=4096, segments=1,
                              model="full")

        ballast = os.path.join(mount, "ballast")

        def fill_up():
            with open(ballast, "ab", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(1 << 16))

        agent.start()
        with client() as user:
            user.connect()
            durable = user.store(0, 16 * chain, durable=True)
            kvt.check(durable == "O" * 16 * chain, f"store: {set(durable)}")
            fill_up()
            letters = user.store(len(durable), 4 * chain, durable=True)
            kvt.check("O" not in letters, f"durable on a full disk: {letters}")
            kvt.check(user.lookup(0, chain)[0] > 0, "lookups go on")
            letters = user.store(n_chunks - chain, chain)
            kvt.check(letters == "O" * chain, f"stores to host memory go on: {letters}")
            agent.check_alive()
        agent.kill()
        status, text = agent.start_refused()
        kvt.check(status > 0 and mount in text and "space" in text, f"exit status {status}: {text}")
        os.unlink(ballast)
        agent.start()
        with client() as user:
            user.connect()
            letters = user.load(0, len(durable))
            kvt.check(letters == durable, f"durable, it said, and lost: {letters}")
            letters = user.store(n_chunks - chain, chain, durable=True)
            kvt.check(letters == "O" * chain, f"store with room again: {letters}")
            fill_up()
        agent.stop()  # nothing is flushed, nothing aborts
        os.unlink(ballast)
        agent.start()
        with client() as user:
            user.connect()
            kvt.check(user.load(0, len(durable)) == durable, "after stopping on a full disk")
        agent.stop()


def without_io_uring(folder):
    """What containers do by default: threads instead, said in the log, everything else the same."""
    with kvt.Agent(folder) as agent:
        agent.wrapper = [os.environ["KVT_NO_URING"]]
        agent.start()
        kvt.check("io_uring" in agent.log_tail(), "says nothing of it:\n" + agent.log_tail())
        with client_of(agent) as client:
            client.connect()
            kvt.check(client.store(0, N, durable=True) == "O" * N, "store")
            kvt.check(client.stats()["nvme_degraded"] == 1, "degraded, and does not say so")
        agent.stop()
        agent.start()
        with client_of(agent) as client:
            client.connect()
            kvt.check(client.load(0, N) == "O" * N, "load")
            kvt.check(client.stats()["load_nvme_chunks"] == N, "not from the disk")
        agent.stop()
        agent.set(nvme__engine="io_uring")
        status, text = agent.start_refused()
        kvt.check(status > 0 and "io_uring" in text, f"exit status {status}:\n{text}")


kvt.run(read_errors, write_errors, short_and_torn_writes, a_device_and_a_file,
        store_larger_than_the_disk, metadata_on_a_full_disk, without_io_uring)
