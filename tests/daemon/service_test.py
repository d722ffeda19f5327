# SPDX-License-Identifier: Apache-2.0
"""kvtierd as a service: where its options come from, reloads, and what a service manager is told.

Usage: service_test.py PATH_OF_KVTIERD [TEST...]
"""

import json
import os
import re
import signal
import socket
import sys
import time
import unittest

import agent_test
from agent_test import MIB, WAIT_S


class TestCase(agent_test.TestCase):
    """With environments, config files and logs that are waited for."""

    def setUp(self):
        super().setUp()
        self.environment = {}
        self.config = os.path.join(self.folder, "kvtierd.yaml")

    def agent(self, *sets, **how):
        """Started with self.environment; with self.config if it was written."""
        before = dict(os.environ)
        os.environ.update(self.environment)
        try:
            if os.path.exists(self.config):
                how.setdefault("args", ["--config", self.config])
            return super().agent(*sets, **how)
        finally:
            os.environ.clear()
            os.environ.update(before)

    def write(self, text):
        with open(self.config + ".new", "w", encoding="utf-8") as file:
            file.write(text)
        os.rename(self.config + ".new", self.config)

    def wait_log(self, agent, text, start=0):
        """The first line that the pattern is found in, at or after position start of the log."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            for line in agent.log()[start:].splitlines(True):
                if re.search(text, line):
                    return line.rstrip("\n")
            time.sleep(0.02)
        raise AssertionError(f"no {text!r} in:\n{agent.log()[start:]}")

    def reload(self, agent):
        """The log lines of one reload."""
        start = len(agent.log())
        agent.process.send_signal(signal.SIGHUP)
        self.wait_log(agent, r"config reloaded changed=|stays in effect faults=\d+\n", start)
        return agent.log()[start:]


class Sources(TestCase):
    def test_each_option_with_its_source(self):
        self.write("# comment\nlease:\n  ttl: 5s\n  ttl_max: 1m\nsessions:\n  max: 7\n")
        self.environment = {"KVTIER_LEASE_TTL_MAX": "2m", "KVTIER_SESSIONS_MAX": "8",
                            "KVTIER_NVME_DISKS_0_PATH": f"{self.folder}/store",
                            "KVTIER_NVME_DISKS_0_BYTES": "16MiB", "KVTIER_LEASE_TLT": "1s",
                            "KVTIER_SOCKET": "/nowhere", "KVTIER_NVME_DISKS_99_PATH": "/x"}
        agent = self.agent("sessions.max=9")
        log = agent.log()
        for line in (f"key=lease.ttl value=5s source={self.config}:3",
                     'key=lease.ttl_max value=2m source="environment KVTIER_LEASE_TTL_MAX"',
                     "key=sessions.max value=9 source=--set",
                     f"key=nvme.disks.0.path value={self.folder}/store "
                     'source="environment KVTIER_NVME_DISKS_0_PATH"',
                     "key=sessions.ops_max value=256 source=default"):
            self.assertIn("config " + line + "\n", log)
        self.assertIn("names no key; see kvtierd --keys name=KVTIER_LEASE_TLT\n", log)
        self.assertIn("name=KVTIER_NVME_DISKS_99_PATH\n", log)
        self.assertNotIn("name=KVTIER_SOCKET", log)

    def test_faults_of_the_environment_name_the_variable(self):
        os.environ["KVTIER_HOST_BYTES"] = "4GB"
        try:
            done = self.run_once("--check-config")
        finally:
            del os.environ["KVTIER_HOST_BYTES"]
        self.assertEqual(done.returncode, 2)
        self.assertTrue(done.stderr.startswith(
            'kvtierd: environment KVTIER_HOST_BYTES: host.bytes: "4GB" is not understood'),
            done.stderr)


class Logs(TestCase):
    def test_json_lines_with_ids(self):
        agent = self.agent("log.format=json", "log.level=trace")
        client = self.client(agent)
        ns = client.open()
        client.store(ns, range(3), op=77)
        client.lookup(ns, range(4))
        self.assertEqual(agent.stop(), 0)
        lines = [json.loads(line) for line in agent.log().splitlines()]
        for line in lines:
            self.assertEqual(set(line) & {"time", "level", "msg"}, {"time", "level", "msg"})
        accepted = [line for line in lines if line["msg"] == "op accepted"]
        self.assertIn(("0", "77", "3", "reserve"),
                      [(x["session"], x["op"], x["items"], x["operation"]) for x in accepted])
        lookups = [line for line in lines if line["msg"] == "lookup"]
        self.assertEqual([(x["keys"], x["hits"]) for x in lookups], [("4", "3")])

    def test_a_client_cannot_forge_a_line(self):
        agent = self.agent("log.level=debug")
        client = self.client(agent)
        client.greet(name=b'x\n2026 error y=1 "')
        self.wait_log(agent, "session opened")
        self.assertEqual(agent.stop(), 0)
        line = self.wait_log(agent, "session opened")
        self.assertRegex(line, r"client=\"?x_2026_error_y_1_.{0,2}\"?$")


class Reload(TestCase):
    def test_what_can_change_does_and_the_rest_waits(self):
        self.write("log:\n  level: info\n")
        agent = self.agent()
        self.write("log:\n  level: debug\nlease:\n  ttl: 1s\nsessions:\n  max: 12\n"
                   "nvme:\n  scrub_bytes_per_s: 1MiB\n")
        log = self.reload(agent)
        self.assertIn(f"config changed key=log.level from=info to=debug source={self.config}:2\n",
                      log)
        self.assertIn("config changed key=lease.ttl from=30s to=1s", log)
        self.assertIn("config changed key=nvme.scrub_bytes_per_s from=16MiB to=1MiB", log)
        self.assertIn("config change waits for a restart key=sessions.max running=256 wanted=12",
                      log)
        self.assertIn("config reloaded changed=3 waiting_for_restart=1", log)
        start = len(agent.log())
        self.client(agent).greet()
        self.wait_log(agent, "debug session opened", start)
        self.assertIn("changed=0 waiting_for_restart=1", self.reload(agent))  # said again
        self.write("")
        self.assertIn("config changed key=log.level from=debug to=info source=default",
                      self.reload(agent))

    def test_a_lease_gets_the_new_time(self):
        self.write("lease:\n  ttl: 10m\n")
        agent = self.agent()
        client = self.client(agent)
        ns = client.open()
        client.store(ns, range(1))
        self.write("lease:\n  ttl: 50ms\n")
        self.assertIn("changed=1", self.reload(agent))
        client.lookup(ns, range(1), flags=1)
        deadline = time.monotonic() + WAIT_S
        while client.stats()[agent_test.STAT_LEASES] > 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        self.assertEqual(client.stats()[agent_test.STAT_LEASES], 0)

    def test_any_fault_keeps_the_old_one(self):
        self.write("log:\n  level: info\n")
        agent = self.agent()
        self.write("log:\n  level: debug\n  formt: json\nhost:\n  bytes: 1XB\n")
        log = self.reload(agent)
        self.assertIn(f"config not reloaded: {self.config}:3: log.formt: unknown key; the nearest "
                      "known one is log.format", log)
        self.assertIn(f"config not reloaded: {self.config}:5: host.bytes:", log)
        self.assertIn("the old one stays in effect faults=2", log)
        os.unlink(self.config)
        self.assertIn("cannot be read", self.reload(agent))
        self.write("log:\n  level: info\n")
        self.assertIn("changed=0 waiting_for_restart=0", self.reload(agent))

    def test_many_hangups_at_once(self):
        self.write("log:\n  level: info\n")
        agent = self.agent()
        for _ in range(200):
            agent.process.send_signal(signal.SIGHUP)
        self.wait_log(agent, "config reloaded")
        client = self.client(agent)
        self.assertEqual(client.lookup(client.open(), range(1)), (0, 0))
        self.assertEqual(agent.stop(), 0)


class Manager(TestCase):
    """The socket of a service manager."""

    def listen(self, name):
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.manager.close)
        self.manager.bind(name.replace("@", "\0", 1))
        self.manager.settimeout(WAIT_S)
        self.environment["NOTIFY_SOCKET"] = name

    def until(self, text):
        """All messages up to the first with that line."""
        messages = []
        while not messages or text not in messages[-1].split("\n"):
            messages.append(self.manager.recv(4096).decode())
        return messages

    def test_life_of_a_service(self):
        self.listen(f"{self.folder}/notify")
        agent = self.agent(nvme_bytes=16 * MIB)
        self.assertEqual(self.until("READY=1")[0], "STATUS=starting")
        self.assertIn(f"STATUS=serving on {agent.path}", self.until(f"STATUS=serving on {agent.path}"
                                                                    )[-1])
        agent.process.send_signal(signal.SIGHUP)
        reloading = self.until("RELOADING=1")[-1]
        self.assertRegex(reloading, r"MONOTONIC_USEC=\d+")
        self.until("READY=1")
        self.assertEqual(agent.stop(), 0)
        self.until("STOPPING=1")

    def test_signs_of_life_at_half_the_time(self):
        self.listen(f"@kvtier-test-{os.getpid()}")
        self.environment["WATCHDOG_USEC"] = "200000"
        agent = self.agent()
        self.until("READY=1")
        self.until("WATCHDOG=1")
        began = time.monotonic()
        for _ in range(10):
            self.until("WATCHDOG=1")
        took = time.monotonic() - began
        self.assertGreater(took, 0.9)  # idle: from the timer, and not more often than asked for
        self.assertLess(took, 10 * 0.2)
        # A process that does not run says nothing.
        agent.process.send_signal(signal.SIGSTOP)
        self.manager.settimeout(0.5)
        with self.assertRaises(TimeoutError):
            while True:
                self.manager.recv(4096)
        agent.process.send_signal(signal.SIGCONT)
        self.manager.settimeout(WAIT_S)
        self.until("WATCHDOG=1")

    def test_not_meant_for_us(self):
        self.listen(f"{self.folder}/notify")
        self.environment.update(WATCHDOG_USEC="1000", WATCHDOG_PID="1")
        agent = self.agent()
        self.until(f"STATUS=serving on {agent.path}")
        self.manager.settimeout(0.2)
        with self.assertRaises(TimeoutError):
            self.manager.recv(4096)

    def test_a_manager_that_does_not_read_or_is_gone(self):
        self.listen(f"{self.folder}/notify")
        self.environment["WATCHDOG_USEC"] = "2000"
        agent = self.agent()
        client = self.client(agent)
        ns = client.open()
        for n in range(200):
            client.store(ns, [n], op=n + 1)
            time.sleep(0.002)
        self.manager.close()
        self.assertEqual(client.lookup(ns, range(200)), (0, 200))
        self.assertEqual(agent.stop(), 0)
        for value in ("/nowhere/notify", "nonsense", "/" + "x" * 200):
            self.environment["NOTIFY_SOCKET"] = value
            agent = self.agent()
            self.assertEqual(agent.stop(), 0)


if __name__ == "__main__":
    agent_test.KVTIERD = sys.argv[1]
    unittest.main(argv=sys.argv[:1] + sys.argv[2:], verbosity=2)
