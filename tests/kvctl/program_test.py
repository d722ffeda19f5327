# SPDX-License-Identifier: Apache-2.0
"""kvctl where no agent is needed: usage, exit codes, shells, man pages, doctor.

Usage: program_test.py KVCTL KVTIERD [MANPAGE...]
"""

import json
import os
import pty
import re
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import unittest

KVCTL = KVTIERD = ""
PAGES = []
WAIT_S = 30
KEY = "ab" * 32
VERBS = ("info get describe stat top lookup put get-chunk exist rm pin unpin prefetch demote clear "
         "verify cancel config log-level doctor completion").split()
OK, NOT_FOUND, USAGE, UNREACHABLE, FAILED, LATE, BAD = range(7)


class TestCase(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="kvt-kvctl-")
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.socket = os.path.join(self.folder, "s.sock")

    def path(self, name):
        return os.path.join(self.folder, name)

    def kvctl(self, *args, code=OK, env=None, **how):
        """(stdout, stderr) of a run that must exit with code."""
        clean = {n: v for n, v in os.environ.items() if not n.startswith("KVTIER")}
        done = subprocess.run([KVCTL, *args], capture_output=True, text=True, timeout=WAIT_S,
                              env={**clean, "KVTIER_SOCKET": self.socket, **(env or {})},
                              check=False, **how)
        self.assertEqual(done.returncode, code, (args, done.stdout[-2000:], done.stderr))
        return done.stdout, done.stderr


class Usage(TestCase):
    def test_help(self):
        text, errors = self.kvctl("--help")
        self.assertEqual(errors, "")
        for verb in VERBS:
            self.assertRegex(text, rf"(?m)^  {verb}\b")
            own, errors = self.kvctl(verb, "--help")
            self.assertEqual(errors, "")
            self.assertTrue(own.startswith(f"Usage: kvctl {verb}"), own)
            for line in own.splitlines():
                self.assertLessEqual(len(line), 80, line)
        for code in (0, 1, 2, 3, 4, 5, 6, 130):
            self.assertRegex(text, rf"(?m)^  {code} ")
        self.assertRegex(self.kvctl("--version")[0], r"^kvctl \d+\.\d+")

    def test_wrong_arguments(self):
        """Exit status 2, one line about what is wrong, nothing on stdout; no agent is asked."""
        for args, says in (
                ([], "no verb"), (["nonsense"], "no such verb: nonsense"), (["--nonsense"], "--nonsense"),
                (["get"], "usage: kvctl get KIND"), (["get", "cars"], "cars"),
                (["get", "tiers", "more"], "usage"), (["get", "tiers", "--owner", "x"], "--owner"),
                (["get", "sessions", "--tier", "host"], "--tier"), (["get", "chunks", "--limit", "0"], "--limit"),
                (["get", "chunks", "--tier", "tape"], "tape"),
                (["get", "chunks", "--key-prefix", "abc"], "--key-prefix"),
                (["get", "chunks", "--key-prefix", "zz"], "--key-prefix"),
                (["get", "chunks", "--min-bytes", "big"], "--min-bytes"),
                (["get", "tiers", "-o", "xml"], "xml"), (["get", "tiers", "--color", "red"], "red"),
                (["get", "tiers", "--timeout", "5"], "--timeout"), (["get", "tiers", "--timeout", "0s"], "0s"),
                (["get", "tiers", "--timeout"], "value is missing"), (["get", "tiers", "--force"], "--force"),
                (["get", "tiers", "--socket", "x" * 200], "--socket"),
                (["describe", "tier"], "usage"), (["describe", "car", "x"], "car"),
                (["describe", "tier", "host", "-n", "x"], "--namespace"),
                (["stat", "--interval", "1s"], "--watch"), (["stat", "-w", "name"], "--watch"),
                (["stat", "-w", "--interval", "1ms"], "--interval"), (["top", "--count", "-1"], "--count"),
                (["top", "-o", "json"], "kvctl stat -w -o json"),
                (["lookup"], "--tokens"), (["lookup", "--tokens", "-", KEY], "--tokens"),
                (["lookup", KEY, "--parent", KEY], "--parent"),
                (["put", KEY], "usage"), (["put", KEY[1:], "/dev/null"], "not a key"),
                (["put", "g" * 64, "/dev/null"], "not a key"), (["get-chunk", "1", "-"], "not a key"),
                (["exist", KEY + "00"], "not a key"), (["rm", ""], "not a key"),
                (["pin", KEY, "--ttl", "forever"], "--ttl"), (["unpin"], "name one of"),
                (["unpin", "12", "--owner", "x"], "name one of"), (["unpin", "xyz"], "xyz"),
                (["prefetch"], "prefetch what?"), (["demote"], "demote what?"), (["clear"], "clear what?"),
                (["clear", "--subtree"], "--subtree"), (["clear", "--all", "--key-prefix", "ab"], "--all"),
                (["verify", "--all"], "--all"), (["cancel"], "usage"), (["cancel", "1f"], "not the id"),
                (["config"], "usage"), (["config", "set"], "SIGHUP"), (["log-level", "loud"], "loud"),
                (["doctor", "x"], "usage"), (["completion", "tcsh"], "tcsh")):
            out, errors = self.kvctl(*args, code=USAGE)
            self.assertEqual(out, "", args)
            self.assertRegex(errors, r"^kvctl: [^\n]*\n$", args)
            self.assertIn(says, errors, args)

    def test_no_agent(self):
        """Exit status 3, the socket, and what to do."""
        empty = self.path("empty")
        with open(empty, "wb"):
            pass
        for args in (["info"], ["get", "tiers"], ["get", "chunks", "-o", "json"], ["describe", "tier", "host"],
                     ["stat"], ["stat", "-w"], ["top"], ["lookup", KEY], ["put", KEY, empty],
                     ["get-chunk", KEY, "-"], ["exist", KEY], ["rm", KEY], ["pin", KEY], ["unpin", "1"],
                     ["prefetch", KEY], ["demote", KEY], ["clear", "--all"], ["verify"], ["cancel", "1"],
                     ["config", "get"], ["log-level"], ["log-level", "info"]):
            began = time.monotonic()
            out, errors = self.kvctl(*args, code=UNREACHABLE)
            self.assertLess(time.monotonic() - began, 5, args)
            self.assertEqual(out, "", args)
            self.assertRegex(errors, r"^kvctl: [^\n]*\n$")
            for part in (self.folder, "No such file or directory", "start kvtierd"):
                self.assertIn(part, errors, args)

    def test_sockets(self):
        """Options before environment; the control socket is derived."""
        control = self.path("s.control.sock")
        self.assertIn(control, self.kvctl("info", code=UNREACHABLE)[1])
        other = self.path("other")
        errors = self.kvctl("info", "--socket", other, code=UNREACHABLE,
                            env={"KVTIER_CONTROL": "/nowhere/c"})[1]
        self.assertIn(other + ".control.sock", errors)
        errors = self.kvctl("info", code=UNREACHABLE, env={"KVTIER_CONTROL": "/nowhere/c"})[1]
        self.assertIn("/nowhere/c", errors)
        errors = self.kvctl("info", "--control", "/nowhere/d", code=UNREACHABLE)[1]
        self.assertIn("/nowhere/d", errors)

    def test_sockets_of_others(self):
        """A killed agent's socket, one that says nothing, and one that hangs up."""
        control = self.path("s.control.sock")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(control)
            errors = self.kvctl("info", code=UNREACHABLE)[1]
            self.assertIn("Connection refused", errors)
            listener.listen()
            began = time.monotonic()
            errors = self.kvctl("info", "--timeout", "300ms", code=LATE)[1]
            self.assertLess(time.monotonic() - began, 10)
            self.assertIn("--timeout", errors)
        os.unlink(control)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(control)
            listener.listen()
            self.assertIn("another kind", self.kvctl("info", code=UNREACHABLE)[1])

    def test_output_that_cannot_be_written(self):
        with open("/dev/full", "w", encoding="ascii") as full:
            done = subprocess.run([KVCTL, "doctor", "-o", "json"], stdout=full, stderr=subprocess.PIPE,
                                  text=True, timeout=WAIT_S, check=False)
        self.assertEqual(done.returncode, FAILED, done.stderr)
        self.assertIn("No space left", done.stderr)


class Doctor(TestCase):
    CHECKS = {"socket", "config", "huge-pages", "overcommit", "memlock", "io_uring", "memory", "cpu",
              "numa", "files", "clock", "disk"}

    def findings(self, *args, code=OK):
        out, _ = self.kvctl("doctor", "-o", "json", *args, code=code)
        return json.loads(out)["findings"]

    def doctor(self, text, code=OK):
        config = self.path("kvtierd.yaml")
        with open(config, "w", encoding="utf-8") as file:
            file.write(text)
        return self.findings("--config", config, code=code)

    def find(self, findings, check, verdict, text):
        for finding in findings:
            if (finding["check"], finding["verdict"]) == (check, verdict) and text in finding["finding"]:
                return finding
        raise AssertionError(f"no {verdict} of {check} with {text!r} in {json.dumps(findings, indent=1)}")

    def test_config(self):
        os.mkdir(self.path("disk"))
        found = self.doctor("host: {bytes: 64MiB, huge_pages: 'off'}\n"
                            f"nvme: {{path: {self.folder}/disk/store, bytes: 64MiB}}\n")
        self.assertTrue({f["check"] for f in found} >= self.CHECKS, found)
        for finding in found:
            self.assertEqual(set(finding), {"check", "verdict", "finding", "remedy"})
            if finding["verdict"] != "ok":
                self.assertTrue(finding["remedy"], finding)
        self.find(found, "socket", "note", "no agent runs")
        self.find(found, "config", "ok", "kvtierd.yaml is good")
        self.find(found, "huge-pages", "note", "host.huge_pages is off")
        self.find(found, "disk", "ok", "O_DIRECT in units of 4 KiB")

    def test_bad_config_is_told_as_the_agent_tells_it(self):
        found = self.doctor("host: {byts: 1GiB}\nnvme: {path: /x}\n", code=BAD)
        self.find(found, "config", "FAIL", "host.byts")
        self.find(found, "config", "FAIL", "nvme")

    def test_impossible(self):
        found = self.doctor("host: {bytes: 60TiB, slab_bytes: 4GiB}\n", code=BAD)
        self.find(found, "config", "FAIL", "host.bytes")
        found = self.doctor(f"nvme: {{path: {self.folder}/no/store, bytes: 64MiB}}\n", code=BAD)
        self.find(found, "disk", "FAIL", "No such file or directory")

    def test_socket_without_agent(self):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(self.socket)
        self.find(self.findings(), "socket", "warn", "nobody listens")

    def test_table(self):
        out, _ = self.kvctl("doctor")
        self.assertRegex(out.splitlines()[-1], r"^\d+ ok, \d+ notes, \d+ warnings, 0 failures$")
        self.assertNotIn("\033", out)
        self.assertIn("\033[32mok", self.kvctl("doctor", "--color", "always")[0])
        self.assertIn("findings:\n", self.kvctl("doctor", "-o", "yaml")[0])


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, *args, **env):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execvpe(args[0], args, {**os.environ, "TERM": "xterm", **env})
        self.text = self.seen = ""  # not yet returned by until(); all

    def send(self, text):
        os.write(self.fd, text.encode())

    def until(self, pattern):
        """All that came until pattern is in it, without what steers the terminal."""
        end = time.monotonic() + WAIT_S
        while not re.search(pattern, self.plain()):
            if not select.select([self.fd], [], [], max(end - time.monotonic(), 0))[0]:
                raise AssertionError(f"no {pattern!r} in {self.text!r}")
            try:
                data = os.read(self.fd, 65536)
            except OSError:  # it ended
                data = b""
            if not data:
                raise AssertionError(f"ended without {pattern!r}: {self.text!r}")
            self.text += data.decode(errors="replace")
            self.seen += data.decode(errors="replace")
        found = self.plain()
        self.text = ""
        return found

    def plain(self):
        return re.sub(r"\033(\[[0-9;?>=]*[A-Za-z]|[=>]|\][^\007]*\007)", "", self.text)

    def close(self):
        os.close(self.fd)
        if self.pid is not None:
            os.waitpid(self.pid, 0)


class Shells(TestCase):
    """What the shells make of `kvctl ...<TAB>`."""

    def candidates(self, *words):
        return [line.split("\t")[0] for line in self.kvctl("__complete", *words)[0].splitlines()]

    def test_candidates(self):
        self.assertEqual(self.candidates(""), VERBS)
        self.assertEqual(self.candidates("get", "s"), ["sessions"])
        self.assertEqual(self.candidates("-o", ""), ["table", "wide", "json", "yaml"])
        self.assertEqual(self.candidates("get", "tiers", "--output=j"), ["--output=json"])
        self.assertEqual(self.candidates("clear", "--dry"), ["--dry-run"])
        self.assertEqual(self.candidates("get", "--dry"), [])
        self.assertEqual(self.candidates("put", KEY, ""), [":file"])
        self.assertEqual(self.candidates("--socket", "/tmp/x", "log-level", "d"), ["debug"])
        self.assertEqual(self.candidates("nonsense", ""), [])

    def env(self):
        bin_folder = self.path("bin")
        os.mkdir(bin_folder)
        os.symlink(KVCTL, os.path.join(bin_folder, "kvctl"))
        return {"PATH": bin_folder + ":" + os.environ["PATH"], "HOME": self.folder}

    def terminal(self, *args):
        if not shutil.which(args[0]):
            self.skipTest(f"there is no {args[0]}")
        shell = Terminal(*args, **self.env(), PS1="> ")
        self.addCleanup(shell.close)
        return shell

    def completes(self, shell):
        with open(self.path("a-file"), "wb"):
            pass
        shell.send("kvctl get \t\t")
        found = shell.until(r"namespaces[\s\S]*sessions")
        self.assertIn("tiers", found)
        # What was not completed would be wrong usage, exit status 2, or a file that is not there, 4.
        shell.send("\025kvctl get sess\t-o js\t; echo $?end\n")
        shell.until(r"no agent answers[\s\S]*3end")
        shell.send(f"cd {self.folder}; echo the''re\n")
        shell.until("there")
        shell.send(f"kvctl put {KEY} a-f\t; echo $?end\n")
        shell.until(r"no agent answers[\s\S]*3end")

    def test_bash(self):
        shell = self.terminal("bash", "--norc", "--noprofile", "-i")
        shell.send("bind 'set enable-bracketed-paste off'; source <(kvctl completion bash); echo rea''dy\n")
        shell.until("ready")
        self.completes(shell)

    def test_zsh(self):
        shell = self.terminal("zsh", "-f", "-i")
        shell.send("autoload -U compinit; compinit -u -D; source <(kvctl completion zsh); echo rea''dy\n")
        shell.until("ready")
        self.completes(shell)

    def test_zsh_finds_the_installed_file(self):
        """As _kvctl in a folder of $fpath, where packages put it."""
        shell = self.terminal("zsh", "-f", "-i")
        functions = self.path("functions")
        os.mkdir(functions)
        with open(os.path.join(functions, "_kvctl"), "w", encoding="ascii") as file:
            file.write(self.kvctl("completion", "zsh")[0])
        shell.send(f"fpath+={functions}; autoload -U compinit; compinit -u -D; echo rea''dy\n")
        shell.until("ready")
        self.completes(shell)

    def test_fish(self):
        if not shutil.which("fish"):
            self.skipTest("there is no fish")
        script = ("kvctl completion fish | source; complete -C 'kvctl get '; "
                  "complete -C 'kvctl get tiers --output=j'; complete -C 'kvctl doctor --config /etc/host'")
        done = subprocess.run(["fish", "--no-config", "-c", script], env={**os.environ, **self.env()},
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=WAIT_S,
                              check=True)
        found = [line.split("\t")[0] for line in done.stdout.splitlines()]
        for word in ("tiers", "namespaces", "jobs", "--output=json", "/etc/hosts"):
            self.assertIn(word, found)


class ManPages(TestCase):
    def setUp(self):
        super().setUp()
        if not PAGES:
            self.skipTest("built without man pages")

    def test_lint(self):
        if not shutil.which("mandoc"):
            self.skipTest("there is no mandoc")
        for page in PAGES:
            done = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", page], capture_output=True,
                                  text=True, timeout=WAIT_S, check=False)
            # Empty paragraphs are how scdoc writes its lists.
            faults = [line for line in done.stdout.splitlines() if "skipping paragraph macro" not in line]
            self.assertEqual((faults, done.stderr), ([], ""))

    def text(self, name):
        page = next(p for p in PAGES if os.path.basename(p) == name)
        done = subprocess.run(["mandoc", "-T", "ascii", "-O", "width=200", page], capture_output=True,
                              text=True, timeout=WAIT_S, check=True)
        return re.sub(".\b", "", done.stdout)  # bold and underlined

    def test_nothing_is_missing(self):
        """Each verb, option, exit status and config key that the programs know."""
        if not shutil.which("mandoc"):
            self.skipTest("there is no mandoc")
        page = self.text("kvctl.1")
        for verb in VERBS:
            self.assertTrue(f"kvctl {verb}" in page, verb)
            for option in re.findall(r"--[a-z-]+", self.kvctl(verb, "--help")[0]):
                self.assertTrue(option in page, option)
        page = self.text("kvtierd.yaml.5")
        keys = subprocess.run([KVTIERD, "--keys"], capture_output=True, text=True, timeout=WAIT_S,
                              check=True).stdout
        names = re.findall(r"(?m)^\S+", keys)
        self.assertGreater(len(names), 30)
        for name in names:
            self.assertRegex(page, rf"(?m)^ +{re.escape(name)}$")
        for option in ("--check-config", "--ready-fd"):
            self.assertIn(option, self.text("kvtierd.8"))
        for option in ("--capacity-share", "--object-bytes"):
            self.assertIn(option, self.text("kvbench.1"))


if __name__ == "__main__":
    KVCTL, KVTIERD = map(os.path.abspath, sys.argv[1:3])
    PAGES = sys.argv[3:]
    unittest.main(argv=sys.argv[:1], verbosity=2)
