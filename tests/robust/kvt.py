# SPDX-License-Identifier: Apache-2.0
"""What the robustness tests share: agents, clients, raw sessions, TAP output.

Programs are named by the environment: KVT_KVTIERD, KVT_CLIENT, KVT_FAULTFS, KVT_NO_URING,
KVT_WIRE_H.
"""

import array
import contextlib
import os
import random
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import traceback

MIB = 1 << 20
READY_S = 20
STOP_S = 30
ANSWER_S = 180


class Skip(Exception):
    """This machine lacks what the test needs; the text says what."""


class Wrong(AssertionError):
    """What a test found."""


def check(condition, text):
    if not condition:
        raise Wrong(text)


def note(text):
    print("# " + str(text).replace("\n", "\n# "), flush=True)


def wait_until(condition, what, within_s=30):
    end = time.monotonic() + within_s
    while not condition():
        check(time.monotonic() < end, f"waited {within_s} s for {what}")
        time.sleep(0.05)


def run(*tests):
    """Runs the functions given, prints TAP; with arguments, those whose names are given."""
    wanted = sys.argv[1:]
    chosen = [t for t in tests if not wanted or t.__name__ in wanted]
    print(f"1..{len(chosen)}", flush=True)
    failed = 0
    for number, test in enumerate(chosen, 1):
        name = test.__name__
        try:
            began = time.monotonic()
            with tempfile.TemporaryDirectory(prefix="kvt-robust-", dir=big_folder()) as folder:
                test(folder)
            print(f"ok {number} {name} # {time.monotonic() - began:.1f} s", flush=True)
        except Skip as why:
            print(f"ok {number} {name} # SKIP {why}", flush=True)
        except Exception as err:  # pylint: disable=broad-except
            failed += 1
            note(traceback.format_exc())
            print(f"not ok {number} {name}", flush=True)
    sys.exit(1 if failed else 0)


def big_folder():
    """Store files need a disk with O_DIRECT: not /dev/shm."""
    return os.environ.get("KVT_TEST_DIR") or tempfile.gettempdir()


def seeded(name):
    """A random generator whose seed is printed and can be given: KVT_SEED."""
    seed = int(os.environ.get("KVT_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
    note(f"{name}: KVT_SEED={seed}")
    return random.Random(seed)


@contextlib.contextmanager
def block_device(folder, size_mib):
    """Of a file without blocks: yields the path of a loop device."""
    image = os.path.join(folder, "device")
    with open(image, "wb") as file:
        file.truncate(size_mib << 20)
    done = subprocess.run(["losetup", "--find", "--show", image], check=False, capture_output=True,
                          text=True)
    if done.returncode != 0:
        raise Skip(f"no loop devices here: {done.stderr.strip()}")
    device = done.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=False, capture_output=True)


class Agent:
    """A kvtierd of this test's own, in a folder."""

    def __init__(self, folder, **sets):
        self.folder = folder
        self.socket = os.path.join(folder, "kvtierd.sock")
        self.store = os.path.join(folder, "store")
        self.meta = self.store + ".meta"
        self.log = os.path.join(folder, "kvtierd.log")
        self.process = None
        self.wrapper = []
        self.sets = {"socket.path": self.socket, "host.bytes": "32MiB",
                     "host.slab_bytes": "4MiB", "nvme.path": self.store, "nvme.bytes": "256MiB",
                     "nvme.slab_bytes": str(SLAB), "nvme.scrub_bytes_per_s": "0",
                     "index.chunks_max": "65536", "metrics.listen": ""}
        self.set(**sets)

    def set(self, **sets):
        """Keys with __ for the dot; None removes one."""
        for key, value in sets.items():
            key = key.replace("__", ".")
            if value is None:
                self.sets.pop(key, None)
            else:
                self.sets[key] = str(value)

    def spawn(self):
        read_fd, write_fd = os.pipe()
        command = [*self.wrapper, os.environ["KVT_KVTIERD"], "--ready-fd", str(write_fd)]
        for key, value in self.sets.items():
            command += ["--set", f"{key}={value}"]
        with open(self.log, "ab") as log:
            log.write(f"---- start {time.monotonic():.3f}\n".encode())
            log.flush()
            self.log_from = log.tell()
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=log, pass_fds=[write_fd])
        os.close(write_fd)
        return read_fd

    def start(self):
        """Returns the seconds until it was ready; raises with its log when it was not."""
        began = time.monotonic()
        read_fd = self.spawn()
        try:
            ready = select.select([read_fd], [], [], READY_S)[0] and os.read(read_fd, 1)
        finally:
            os.close(read_fd)
        if not ready:
            self.kill()
            raise Wrong(f"kvtierd did not start; exit status {self.process.returncode}; "
                        f"its log:\n{self.log_tail()}")
        return time.monotonic() - began

    def start_refused(self):
        """For what must not start: returns (exit status, what it said)."""
        os.close(self.spawn())
        try:
            self.process.wait(READY_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Wrong(f"kvtierd started:\n{self.log_tail()}") from None
        return self.process.returncode, self.log_tail()

    def start_either(self):
        """True: it started. False: it refused, with an exit status that is not a signal's."""
        try:
            self.start()
            return True
        except Wrong as err:
            check(self.process.returncode > 0, f"not a clear error: {err}")
            return False

    def log_tail(self):
        """What this run of the agent logged."""
        with open(self.log, "rb") as log:
            log.seek(self.log_from)
            return log.read().decode(errors="replace")[-6000:]

    def kill(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def check_alive(self):
        check(self.process.poll() is None,
              f"kvtierd ended with {self.process.returncode}; its log:\n{self.log_tail()}")

    def stop(self):
        """SIGTERM; it must drain and end with status 0."""
        self.check_alive()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Wrong(f"SIGTERM did not end kvtierd in {STOP_S} s:\n{self.log_tail()}") from None
        check(self.process.returncode == 0,
              f"SIGTERM: exit status {self.process.returncode}:\n{self.log_tail()}")

    def rss_bytes(self):
        """Private memory: the arena is shared and counted elsewhere."""
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as status:
            return int(re.search(r"RssAnon:\s+(\d+) kB", status.read())[1]) * 1024

    def wipe(self):
        for path in (self.store, self.meta):
            if os.path.isdir(path):
                shutil.rmtree(path)
            elif os.path.exists(path):
                os.unlink(path)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process is not None:
            self.kill()


class Client:
    """A robust-client: see tests/robust/client.c."""

    def __init__(self, agent, **options):
        command = [os.environ["KVT_CLIENT"], "--socket", agent.socket]
        for key, value in options.items():
            command += ["--" + key.replace("_", "-"), str(value)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True, bufsize=1)
        os.set_blocking(self.process.stderr.fileno(), False)
        self.said = ""

    def send(self, text):
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def answer(self):
        if not select.select([self.process.stdout], [], [], ANSWER_S)[0]:
            raise Wrong(f"client gave no answer in {ANSWER_S} s: {self.complaints()}")
        line = self.process.stdout.readline()
        check(line != "", f"client died ({self.process.poll()}): {self.complaints()}")
        return line.rstrip("\n").rstrip()

    def complaints(self):
        """All it has said on stderr so far: texts of checks ask for it whether they fail or not."""
        with contextlib.suppress(OSError, TypeError):
            self.said += self.process.stderr.read() or ""
        return self.said

    def ask(self, text):
        self.send(text)
        return self.answer()

    def connect(self):
        answer = self.ask("connect 20000")
        check(answer == "ok", f"connect: {answer}: {self.complaints()}")

    def store(self, first, n, durable=False, now=False):
        return self.ask(f"store {first} {n}" + (" durable" if durable else "") +
                        (" now" if now else ""))

    def load(self, first, n):
        letters = self.ask(f"load {first} {n}")
        check("W" not in letters, f"WRONG BYTES served: {letters}")
        return letters

    def lookup(self, first, n, lease=False):
        words = self.ask(f"lookup {first} {n}" + (" lease" if lease else "")).split()
        check(words[0] == "found", f"lookup: {words}")
        return int(words[1]), int(words[3])

    def pairs(self, text):
        words = self.ask(text)
        try:
            return {k: int(v) for k, v in (w.split("=") for w in words.split())}
        except ValueError:
            raise Wrong(f"{text}: {words}: {self.complaints()}") from None

    def stats(self):
        return self.pairs("stats")

    def stop(self):
        counts = self.pairs("stop")
        check(counts["wrong"] == 0 and counts["untrue"] == 0, f"{counts}: {self.complaints()}")
        return counts

    def verify(self):
        words = self.ask("verify").split()
        check(words[0] == "lost", f"verify: {words}")
        return {words[i]: int(words[i + 1]) for i in (0, 2, 4)}

    def latency(self, n):
        words = self.ask(f"latency {n}").split()
        check(words[0] == "p50_us", f"latency: {words}")
        return {words[i]: int(words[i + 1]) for i in (0, 2, 4)}

    def kill(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            with contextlib.suppress(OSError):
                pipe.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()


def until(condition, timeout_s, text):
    """For states that no event announces. condition() returns None when met, else what is."""
    deadline = time.monotonic() + timeout_s
    while True:
        state = condition()
        if state is None:
            return
        check(time.monotonic() < deadline, f"{text}, after {timeout_s} s: {state}")
        time.sleep(0.01)


# ---- the session protocol, by hand: proto/include/kvt/wire.h ----------------------------------

MAGIC, VERSION = 0x3154564B, 1
HEADER = struct.Struct("<HHIQ")
TYPES = ("HELLO WELCOME PING PONG NS_OPEN NS_OPEN_R LOOKUP LOOKUP_R RELEASE RELEASE_R RESERVE "
         "RESERVE_R COMMIT COMMIT_R LOAD LOAD_R LOAD_DONE CANCEL CANCEL_R STATS STATS_R").split()
TYPE = {name: number for number, name in enumerate(TYPES, 1)}


def stat_names():
    with open(os.environ["KVT_WIRE_H"], encoding="ascii") as file:
        return re.findall(r"^    X\([A-Z_]+, ([a-z_]+), \"", file.read(), re.M)


def message(kind, op, body=b""):
    return HEADER.pack(TYPE[kind], 0, HEADER.size + len(body), op) + body


def key_bytes(number):
    return struct.pack("<QQQQ", number, 0x6B766B76, ~number & 0xFFFFFFFFFFFFFFFF, 7)


class Raw:
    """A session that says what the test wants, right or wrong."""

    def __init__(self, agent, hello=True):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(10)
        self.socket.connect(agent.socket)
        self.fds, self.op = [], 0
        if hello:
            self.send("HELLO", struct.pack("<II48s", MAGIC, VERSION, b"raw"))
            data, ancillary, _, _ = self.socket.recvmsg(256, 1024)
            for level, kind, fds in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    self.fds += array.array("i", fds[:len(fds) // 4 * 4])
            (self.status,) = struct.unpack_from("<i", data, HEADER.size)
            check(self.status == 0, f"hello: status {self.status}")

    def send(self, kind, body=b""):
        self.op += 1
        self.socket.send(message(kind, self.op, body))
        return self.op

    def ask(self, kind, body=b""):
        self.send(kind, body)
        return self.socket.recv(128 << 10)

    def namespace(self, model, chunk_bytes=64 << 10, segments=1):
        body = struct.pack("<128s64s64s64s32s16s10IQ96s", model.encode(), b"", b"test", b"",
                           b"number", b"bf16", segments, 1, 64, 256, 0, 1, 0, 1, 0, segments,
                           chunk_bytes, b"")
        answer = self.ask("NS_OPEN", body)
        status, ns, _ = struct.unpack_from("<iIQ", answer, HEADER.size)
        check(status == 0, f"ns_open: {status} {answer[32:]}")
        return ns

    def reserve(self, ns, numbers, flags=0):
        """Returns (op, [(status, arena offset)])."""
        answer = self.ask("RESERVE", struct.pack("<IIIIQ", ns, len(numbers), flags, 0, 0) +
                          b"".join(map(key_bytes, numbers)))
        status, n = struct.unpack_from("<iI", answer, HEADER.size)
        check(status == 0, f"reserve: {status}")
        items = [struct.unpack_from("<IiQQ", answer, 32 + 24 * i) for i in range(n)]
        return self.op, [(item[1], item[2]) for item in sorted(items)]

    def commit(self, op, indexes, sums):
        """Commits items of an open reserve with the checksums given, in one message."""
        body = struct.pack("<II", len(indexes), 0) + struct.pack(f"<{len(indexes)}I", *indexes)
        body += b"\0" * (-len(body) % 8) + struct.pack(f"<{len(sums)}Q", *sums)
        self.socket.send(message("COMMIT", op, body))
        return self.socket.recv(128 << 10)

    def stats(self):
        answer = self.ask("STATS")
        (n,) = struct.unpack_from("<I", answer, HEADER.size)
        return dict(zip(stat_names(), struct.unpack_from(f"<{n}Q", answer, 24)))

    def close(self):
        self.socket.close()
        for fd in self.fds:
            os.close(fd)
        self.fds = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def nothing_held(agent):
    """None when no session holds anything, else what is held; for until()."""
    with Raw(agent) as raw:
        stats = raw.stats()
    held = {k: stats[k] for k in ("leases", "pins", "ops", "reserved_bytes") if stats[k] != 0}
    if stats["sessions"] > 1:
        held["sessions"] = stats["sessions"]
    return held or None


# ---- store files ------------------------------------------------------------------------------

PAGE = 4096
SLOT_MAGIC = b"KVTSLOT1"
KEY_OFFSET = 32


SUPERBLOCK = MIB
SLAB = 8 * MIB


def slots(path, chunk_bytes):
    """Offsets (of the chunk, of its header) of all slots in a store file that has slots for such
    chunks alone. In a slab the headers stand behind the chunks."""
    found = []
    per_slab = SLAB // (chunk_bytes + PAGE)
    with open(path, "rb") as file:
        offset = 0
        while page := file.read(PAGE):
            if page.startswith(SLOT_MAGIC):
                slab, within = divmod(offset - SUPERBLOCK, SLAB)
                number = (within - per_slab * chunk_bytes) // PAGE
                found.append((SUPERBLOCK + slab * SLAB + number * chunk_bytes, offset))
            offset += PAGE
    return found


def flip(path, offset, bit):
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ (1 << bit)]))
