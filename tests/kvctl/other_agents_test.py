# SPDX-License-Identifier: Apache-2.0
"""kvctl and agents that are not of its version, do not answer, or list without end.

Usage: other_agents_test.py KVCTL OTHER_AGENT [TEST...]
"""

import json
import os
import re
import subprocess
import sys
import time
import unittest

import program_test
from program_test import FAILED, KEY, LATE, UNREACHABLE, USAGE

OTHER_AGENT = ""
WAIT_S = 60
N_CHUNKS = int(os.environ.get("KVT_LIST_CHUNKS", "100000"))
CALLS = (["info"], ["get", "tiers"], ["get", "namespaces"], ["get", "sessions"], ["get", "chunks"],
         ["get", "leases"], ["get", "pins"], ["get", "jobs"], ["describe", "tier", "host"],
         ["describe", "namespace", "x"], ["describe", "chunk", KEY], ["stat"], ["stat", "-w"], ["top"],
         ["lookup", KEY, "-n", KEY], ["exist", KEY], ["rm", KEY], ["pin", KEY, "-n", KEY],
         ["unpin", "1"], ["prefetch", KEY, "-n", KEY], ["demote", KEY, "-n", KEY],
         ["clear", "--all"], ["clear", KEY, "-n", KEY], ["verify"], ["cancel", "1"], ["config", "get"],
         ["log-level", "info"])


class TestCase(program_test.TestCase):
    def agent(self, *args):
        agent = subprocess.Popen([OTHER_AGENT, self.path("s.control.sock"), *args],
                                 stdout=subprocess.PIPE, text=True)
        self.addCleanup(agent.stdout.close)
        self.addCleanup(agent.wait)
        self.addCleanup(agent.kill)
        self.assertEqual(agent.stdout.readline(), "ready\n")
        return agent

    def start(self, *args):
        """A run of kvctl that goes on, as (process); its stdout is a pipe."""
        run = subprocess.Popen([program_test.KVCTL, *args, "--socket", self.socket],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(run.stderr.close)
        self.addCleanup(run.wait)
        self.addCleanup(run.kill)
        return run


    def terminal(self, *args, **env):
        terminal = program_test.Terminal(program_test.KVCTL, *args, "--socket", self.socket, **env)
        self.addCleanup(terminal.close)
        return terminal


class Versions(TestCase):
    def test_old(self):
        self.agent("old")
        for args in CALLS:
            out, errors = self.kvctl(*args, code=FAILED)
            self.assertEqual(out, "", args)
            self.assertRegex(errors, r"^kvctl: the agent at .* knows no \w+; it is of another version", args)

    def test_new(self):
        """Unknown fields are left out, unknown numbers of an enum are shown as numbers."""
        self.agent("new")
        node = json.loads(self.kvctl("info", "-o", "json")[0])
        self.assertEqual((node["version"], node["state"]), ("99.0.0", "77"))
        self.assertNotIn("\033", self.kvctl("info")[0])  # what an agent says steers no terminal
        for kind in ("tiers", "sessions", "chunks", "leases", "pins", "jobs", "namespaces"):
            self.assertEqual(json.loads(self.kvctl("get", kind, "-o", "json")[0]), {kind: []})
            self.assertEqual(len(self.kvctl("get", kind)[0].splitlines()), 1)

    def test_empty_answers(self):
        """Messages without a field that kvctl knows: each verb says something, and none crashes."""
        self.agent("new")
        codes = {"describe": {0, 1}, "lookup": {1}, "exist": {1}, "rm": {1}, "unpin": {1},
                 "prefetch": {4}, "demote": {4}, "clear": {4}, "verify": {4}}
        for args in CALLS:
            once = ["--count", "1", "--interval", "50ms"] if args[0] == "top" or "-w" in args else []
            for output in ("table", "json", "yaml"):
                done = self.start(*args, *once, "-o", output)
                out = done.stdout.read()
                done.stdout.close()
                allowed = {USAGE} if args[0] == "top" and output != "table" else codes.get(args[0], {0})
                self.assertIn(done.wait(WAIT_S), allowed, (args, output))
                self.assertTrue(out or done.stderr.read(), (args, output))

    def test_nonsense(self):
        self.agent("nonsense")
        for args in CALLS:
            out, errors = self.kvctl(*args, code=FAILED)
            self.assertEqual(out, "", args)
            self.assertIn("another version than kvctl", errors, args)

    def test_silent(self):
        self.agent("silent")
        for args in CALLS:
            began = time.monotonic()
            out, errors = self.kvctl(*args, "--timeout", "100ms", code=LATE)
            self.assertLess(time.monotonic() - began, 5, args)
            self.assertEqual(out, "", args)
            self.assertIn("within --timeout", errors, args)


class Lists(TestCase):
    def test_formats(self):
        self.agent("many", "1500")
        table = self.kvctl("get", "chunks")[0].splitlines()
        self.assertEqual(len(table), 1501)
        self.assertTrue(all(line == line.rstrip() for line in table))
        self.assertTrue(table[0].startswith("KEY "))
        chunks = json.loads(self.kvctl("get", "chunks", "-o", "json")[0])["chunks"]
        self.assertEqual([c["chunk_bytes"] for c in chunks], list(range(1500)))
        self.assertEqual(chunks[5]["key"], "05" + 31 * "00")
        yaml = self.kvctl("get", "chunks", "-o", "yaml")[0]
        self.assertEqual(len(re.findall(r"(?m)^ *- key: |^ *- namespace_id: ", yaml)), 1500)
        wide = self.kvctl("get", "chunks", "-o", "wide")[0].splitlines()
        self.assertIn("PARENT", wide[0])
        self.assertIn("ee" + 31 * "00", wide[1])
        self.assertEqual(len(self.kvctl("get", "chunks", "--limit", "1200")[0].splitlines()), 1201)

    def test_a_list_that_breaks_off(self):
        """Exit status 4 and JSON that does not parse: nobody takes the first page for all."""
        self.agent("broken")
        out, errors = self.kvctl("get", "chunks", "-o", "json", code=FAILED)
        self.assertIn("list from the start", errors)
        with self.assertRaises(ValueError):
            json.loads(out)

    def test_reader_that_stops(self):
        """kvctl get chunks | head -1"""
        self.agent("many", "1000000")
        run = self.start("get", "chunks")
        self.assertTrue(run.stdout.readline().startswith(b"KEY"))
        run.stdout.close()
        began = time.monotonic()
        self.assertNotEqual(run.wait(WAIT_S), 0)
        self.assertLess(time.monotonic() - began, 10)

    def peak_kib(self, n, *args):
        """Peak memory of a listing of n chunks, all of which must come, near its end."""
        agent = self.agent("many", str(n))
        run = self.start("get", "chunks", *args)
        lines = peak = 0
        for _ in run.stdout:
            lines += 1
            if lines % (n // 10) == 0:
                with open(f"/proc/{run.pid}/status", encoding="ascii") as status:
                    found = re.search(r"VmHWM:\s+(\d+) kB", status.read())
                peak = int(found[1]) if found else peak  # it may have ended, the pipe holds the rest
        run.stdout.close()
        self.assertEqual(run.wait(WAIT_S), 0)
        self.assertGreaterEqual(lines, n)
        agent.kill()
        agent.wait()
        return peak

    @unittest.skipIf("ASAN_OPTIONS" in os.environ, "the sanitizer keeps what is freed")
    def test_memory_does_not_grow_with_the_list(self):
        for output in ("table", "json", "yaml"):
            few = self.peak_kib(N_CHUNKS // 10, "-o", output)
            many = self.peak_kib(N_CHUNKS, "-o", output)
            print(f"peak memory of -o {output}: {few} KiB for {N_CHUNKS // 10} chunks, "
                  f"{many} KiB for {N_CHUNKS}")
            self.assertLess(many, few + 2048)


class Screen(TestCase):
    def test_colours_on_a_terminal_alone(self):
        self.agent("many", "3")
        self.assertNotIn("\033", self.kvctl("get", "chunks")[0])
        self.assertIn("\033[1m", self.kvctl("get", "chunks", "--color", "always")[0])
        for env, colours in (({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)):
            terminal = self.terminal("get", "chunks", **env)
            terminal.until("020{10}")
            self.assertEqual("\033[1m" in terminal.seen, colours, env)

    def test_top(self):
        """Draws on a screen of its own, leaves at q and gives the old screen back."""
        self.agent("new")
        terminal = self.terminal("top", "--interval", "50ms")
        shown = terminal.until(r"kvtierd 99\.0\.0[\s\S]*q: quit[\s\S]*hit ratio[\s\S]*NAMESPACE")
        self.assertIn("lookups/s", shown)
        terminal.send("q")
        _, status = os.waitpid(terminal.pid, 0)
        terminal.pid = None
        self.assertEqual(os.waitstatus_to_exitcode(status), 0)
        self.assertIn("\033[?1049h", terminal.seen)

    def test_top_without_a_terminal(self):
        self.agent("new")
        out, _ = self.kvctl("top", "--interval", "50ms", "--count", "3")
        self.assertEqual(out.count("hit ratio"), 3)
        self.assertNotIn("\033", out)


class Restart(TestCase):
    def test_what_a_killed_agent_leaves(self):
        agent = self.agent("many")
        self.kvctl("get", "chunks")
        agent.kill()
        agent.wait()
        self.assertIn("Connection refused", self.kvctl("get", "chunks", code=UNREACHABLE)[1])


if __name__ == "__main__":
    program_test.KVCTL, OTHER_AGENT = map(os.path.abspath, (sys.argv.pop(1), sys.argv.pop(1)))
    unittest.main(verbosity=2)
