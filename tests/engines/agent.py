# SPDX-License-Identifier: Apache-2.0
"""A real agent in a folder of its own, for as long as a test wants it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time

START_S = 30
SETTLE_S = 30


class Agent:
    def __init__(self, kvtierd, host_bytes="256MiB", nvme_bytes="", **settings):
        self.folder = tempfile.mkdtemp(prefix="kvtier-engine-")
        self.socket = os.path.join(self.folder, "kvtierd.sock")
        self._command = [kvtierd, "--set", f"socket.path={self.socket}",
                         "--set", f"host.bytes={host_bytes}"]
        if nvme_bytes:
            self._command += ["--set", f"nvme.path={self.folder}/store",
                              "--set", f"nvme.bytes={nvme_bytes}"]
        for key, value in settings.items():
            self._command += ["--set", f"{key.replace('__', '.')}={value}"]
        self._process = None
        self.start()

    def start(self):
        self._log = open(os.path.join(self.folder, "log"), "ab")
        self._process = subprocess.Popen(self._command, stdout=self._log, stderr=self._log)
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
                try:
                    probe.connect(self.socket)
                    return
                except OSError:
                    if self._process.poll() is not None:
                        break
                    time.sleep(0.01)
        with open(os.path.join(self.folder, "log"), encoding="utf-8") as log:
            raise RuntimeError("no agent: " + log.read())

    def _end(self, how):
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(START_S)
            self._process = None
            self._log.close()

    def kill(self):
        self._end(signal.SIGKILL)

    def stop(self):
        """An orderly end: what is in the host tier may still reach the disk."""
        self._end(signal.SIGTERM)

    @property
    def pid(self):
        return self._process.pid

    def pause(self):
        self._process.send_signal(signal.SIGSTOP)

    def resume(self):
        self._process.send_signal(signal.SIGCONT)

    def stats(self):
        """The agent's counters by name."""
        kvctl = os.path.join(os.path.dirname(os.path.dirname(self._command[0])), "kvctl", "kvctl")
        out = subprocess.run([kvctl, "stat", "--socket", self.socket, "-o", "json"], check=True,
                             stdin=subprocess.DEVNULL, capture_output=True, timeout=START_S)
        return {stat["name"]: int(stat["value"]) for stat in json.loads(out.stdout)["stats"]}

    def until(self, **wanted):
        """Waits until counters have the values wanted; raises AssertionError if they do not get
        them."""
        end = time.monotonic() + SETTLE_S
        while True:
            stats = self.stats()
            found = {name: stats[name] for name in wanted}
            if found == wanted:
                return
            if time.monotonic() > end:
                raise AssertionError(f"agent: {found} instead of {wanted}")
            time.sleep(0.02)

    def corrupt(self):
        """Flips a byte in every 64 KiB of the store, but for its superblock; of a stopped agent."""
        store = os.path.join(self.folder, "store")
        with open(store, "r+b") as file:
            for at in range((1 << 20) + 5000, os.path.getsize(store), 1 << 16):
                file.seek(at)
                byte = file.read(1)[0]
                file.seek(at)
                file.write(bytes([byte ^ 1]))

    def close(self):
        if self._process is not None:
            self.resume()
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()
