# SPDX-License-Identifier: Apache-2.0
"""Every verb of kvctl against an agent under kvbench's load: what it says and does, beside what
clients know.

Usage: live_test.py KVCTL KVTIERD KVBENCH ROBUST_CLIENT [TEST...]
"""

import datetime
import hashlib
import json
import os
import re
import signal
import struct
import subprocess
import time
import unittest

import live_fixture  # finds the next one
import agent_test
import metrics_test
import program_test
import prompt_engine
from live_fixture import CHAIN, KIB, MIB, TestCase
from program_test import BAD, FAILED, KEY, LATE, NOT_FOUND, OK, UNREACHABLE, USAGE

# Of each kind the field that names it, and how to tell a row of a test's own from one of the load.
KINDS = {"tiers": ("name", lambda row, space, pid: True),
         "namespaces": ("id", lambda row, space, pid: row["id"] == space),
         "sessions": ("id", lambda row, space, pid: row["pid"] == pid),
         "chunks": ("key", lambda row, space, pid: row["namespace_id"] == space),
         "leases": ("id", lambda row, space, pid: row["namespace_id"] == space),
         "pins": ("id", lambda row, space, pid: row["namespace_id"] == space),
         "jobs": ("id", lambda row, space, pid: row["namespace_id"] == space)}


def still(row):
    """A row without what changes while one looks: ages, and what leases of the load pin."""
    return {name: value for name, value in row.items()
            if not name.endswith("_ms") and name != "pinned_bytes"}


def yaml_rows(text):
    """The list under a name that kvctl's YAML is, for rows without maps in them."""
    rows, field = [], None
    for line in text.splitlines()[1:]:
        match = re.fullmatch(r"(- |  )([a-z_]+):(?: (.*))?", line)
        if match is None:  # of a list in a row
            rows[-1][field] = rows[-1][field] or []
            rows[-1][field].append(yaml_scalar(line.strip()[2:]))
            continue
        if match[1] == "- ":
            rows.append({})
        field = match[2]
        rows[-1][field] = yaml_scalar(match[3])
    return rows


def yaml_scalar(text):
    if text is None or text == "null":
        return None
    if text == "[]":
        return []
    if text[0] == '"':
        return json.loads(text)
    if text in ("true", "false"):
        return text == "true"
    return int(text) if re.fullmatch(r"-?\d+", text) else text


class Node(TestCase):
    def test_info(self):
        before = time.time()
        node = self.json("info")
        version = self.kvctl("--version")[0].split()[1]
        self.assertEqual(
            {n: node[n] for n in ("version", "pid", "state", "socket_path", "control_path")},
            {"version": version, "pid": self.agent.process.pid, "state": "ready",
             "socket_path": self.socket,
             "control_path": self.socket.removesuffix(".sock") + ".control.sock"})
        self.assertAlmostEqual(node["started_unix_ms"] / 1e3 + node["uptime_ms"] / 1e3, before,
                               delta=5)
        shown = re.search(r"started_unix_ms: +(\S+)", self.kvctl("info")[0])[1]
        started = datetime.datetime.strptime(shown, "%Y-%m-%dT%H:%M:%S%z")
        self.assertEqual(int(started.timestamp()), node["started_unix_ms"] // 1000)

    def test_sockets(self):
        """--socket and --control, KVTIER_SOCKET and KVTIER_CONTROL."""
        control = self.json("info")["control_path"]
        nowhere = {"KVTIER_SOCKET": "/nowhere"}
        pid = self.agent.process.pid
        for args, env in ((("--socket", self.socket), nowhere), (("--control", control), nowhere),
                          ((), {**nowhere, "KVTIER_CONTROL": control}), ((), {})):
            out, _ = self.kvctl("info", "-o", "json", *args, env=env)
            self.assertEqual(json.loads(out)["pid"], pid, (args, env))
        self.kvctl("info", env=nowhere, code=UNREACHABLE)

    def test_tiers(self):
        tiers = {t["name"]: t for t in self.get("tiers")}
        self.assertEqual(list(tiers), ["host", "nvme"])
        host, nvme = tiers["host"], tiers["nvme"]
        self.assertEqual((host["configured_bytes"], host["slab_bytes"]), (256 * MIB, 16 * MIB))
        self.assertEqual(nvme["paths"], [os.path.join(self.home, "store")])
        self.assertLessEqual(nvme["capacity_bytes"], 768 * MIB)
        # The load adds nothing after its first round, so other numbers stand still.
        metrics, tiers = self.metrics(), self.get("tiers")
        for tier in tiers:
            label = ("tier", tier["name"])
            self.assertEqual(tier["capacity_bytes"], metrics["kvtier_tier_capacity_bytes", (label,)])
            self.assertEqual(tier["used_bytes"] + tier["free_bytes"], tier["capacity_bytes"])
            self.assertFalse(tier["degraded"], tier)
            self.assertEqual(tier["n_chunks"], sum(
                n[f"n_{tier['name']}_chunks"] for n in self.get("namespaces")))
            self.assertEqual(self.json("describe", "tier", tier["name"])["slab_bytes"],
                             tier["slab_bytes"])
        table = self.kvctl("get", "tiers")[0].splitlines()
        self.assertEqual(table[0].split()[:3], ["TIER", "CAPACITY", "USED"])
        self.assertEqual(table[1].split()[:3], ["host", "256", "MiB"])

    def test_stat(self):
        """Counters lie between those of two scrapes."""
        counters = {"lookups": "kvtier_lookups_total", "lookup_keys": "kvtier_lookup_keys_total",
                    "stored_chunks": "kvtier_stored_chunks_total"}
        before, stats = self.metrics(), {s["name"]: s for s in self.json("stat")["stats"]}
        self.until(lambda: self.metrics()["kvtier_lookups_total", ()] > before[
            "kvtier_lookups_total", ()], "the load to go on")
        after = self.metrics()
        for name, metric in counters.items():
            self.assertLessEqual(before[metric, ()], stats[name]["value"])
            self.assertLessEqual(stats[name]["value"], after[metric, ()])
            self.assertEqual((stats[name]["kind"], bool(stats[name]["help"])), ("counter", True))
        self.assertEqual(stats["host_capacity_bytes"]["value"], 256 * MIB)
        self.assertEqual(stats["host_capacity_bytes"]["kind"], "gauge")
        some = self.json("stat", "sessions", "lookups")["stats"]
        self.assertEqual({s["name"] for s in some}, {"sessions", "lookups"})
        self.assertIn('no counter "nonsense"', self.kvctl("stat", "lookups", "nonsense",
                                                          code=NOT_FOUND)[1])

    def test_stat_watch(self):
        """Rates of the very counters, for as long as asked; an interrupt ends it well."""
        first = {s["name"]: s["value"] for s in self.json("stat")["stats"]}
        out, _ = self.kvctl("stat", "-w", "--interval", "200ms", "--count", "5", "-o", "json")
        last = {s["name"]: s["value"] for s in self.json("stat")["stats"]}
        rates = [json.loads(line) for line in out.splitlines()]
        self.assertEqual(len(rates), 5)
        lookups = sum(r["lookups_per_s"] * r["seconds"] for r in rates)
        self.assertGreater(lookups, 0)
        self.assertLessEqual(lookups, last["lookups"] - first["lookups"] + 1e-3)
        self.assertTrue(any(r["hit_ratio"] is not None for r in rates))
        table = self.kvctl("stat", "-w", "--interval", "50ms", "--count", "2")[0].splitlines()
        self.assertEqual((len(table), table[0].split()[0]), (3, "LOOKUPS/s"))
        run = self.start("stat", "-w", "--interval", "50ms")
        self.assertIn("LOOKUPS/s", run.stdout.readline())
        run.send_signal(signal.SIGINT)
        self.assertEqual(run.wait(program_test.WAIT_S), 0)

    def test_top(self):
        terminal = self.terminal("top", "--interval", "200ms")
        shown = terminal.until(r"NAMESPACE[^\n]*\r\n[^\n]*kvbench")
        self.assertRegex(shown, r"lookups/s +[1-9]")
        self.assertRegex(shown, r"host  \[[#.]{24}\] +\d+ %")
        terminal.send("q")
        _, status = os.waitpid(terminal.pid, 0)
        terminal.pid = None
        self.assertEqual(os.waitstatus_to_exitcode(status), 0)
        out, _ = self.kvctl("top", "--interval", "100ms", "--count", "2")
        self.assertEqual(out.count("hit ratio"), 2)
        self.assertFalse([line for line in out.splitlines() if line != line.rstrip()])

    def test_config(self):
        """Values and sources, a section, a key; what a reload changes."""
        options = {o["key"]: o for o in self.json("config", "get")["options"]}
        for key, value, source in (("host.bytes", "256MiB", "--set"),
                                   ("lease.ttl_max", "10m", "default"),
                                   ("socket.path", self.socket, "--set")):
            self.assertEqual((options[key]["value"], options[key]["source"]), (value, source))
        self.assertTrue(options["log.level"]["reloadable"])
        self.assertFalse(options["host.bytes"]["reloadable"])
        known = subprocess.run([agent_test.KVTIERD, "--keys"], capture_output=True, text=True,
                               check=True).stdout
        names = set(re.findall(r"(?m)^([a-z_.]+)", known)) - {"nvme.disks"}
        self.assertLessEqual({n for n in names if ".disks" not in n}, set(options))
        host = self.json("config", "get", "host")["options"]
        self.assertTrue(host and all(o["key"].startswith("host.") for o in host))
        self.assertIn('config key "hots"', self.kvctl("config", "get", "hots", code=NOT_FOUND)[1])

    def test_log_level(self):
        self.assertEqual(self.json("log-level", "debug"), {"previous": "info", "level": "debug"})
        shown = self.json("log-level")["options"][0]
        self.assertEqual((shown["value"], shown["source"]), ("debug", "runtime"))
        self.until(lambda: " debug " in self.agent.log(), "a line of the level")
        self.assertEqual(self.json("log-level", "info"), {"previous": "debug", "level": "info"})

    def test_doctor(self):
        found = [(f["check"], f["verdict"]) for f in self.json("doctor")["findings"]]
        self.assertIn(("socket", "ok"), found)
        self.assertIn(("control", "ok"), found)
        self.assertIn(("config", "ok"), found)
        self.assertIn("read from the running agent", self.kvctl("doctor")[0])
        # A file that is named is what the next start reads.
        config = os.path.join(self.folder, "kvtierd.yaml")
        for text, verdict, finding, code in (("host: {bytes: 64MiB}\n", "ok", "kvtierd.yaml is good", OK),
                                             ("host: {byts: 64MiB}\n", "FAIL", "host.byts: unknown key", BAD)):
            with open(config, "w", encoding="utf-8") as file:
                file.write(text)
            found = json.loads(self.kvctl("doctor", "--config", config, "-o", "json", code=code)[0])["findings"]
            found = [(f["verdict"], f["finding"]) for f in found if f["check"] == "config"]
            self.assertEqual((len(found), found[0]), (2, ("ok", "read from the running agent")), found)
            self.assertEqual(found[1][0], verdict)
            self.assertIn(finding, found[1][1])


class Lists(TestCase):
    def test_every_kind_in_every_format(self):
        """JSON, YAML, tables and describe agree."""
        engine = self.engine()
        engine.must_store(0, CHAIN)
        engine.lookup(0, CHAIN, lease=True)
        self.kvctl("pin", engine.key(3), "-n", self.model)
        self.kvctl("verify", "-n", self.model)
        space, pid = self.namespace(), engine.process.pid
        for kind, (name, is_mine) in KINDS.items():
            args = ("-n", self.model) if kind == "chunks" else ()
            rows = [row for row in self.get(kind, *args) if is_mine(row, space, pid)]
            self.assertGreater(len(rows), 0, kind)
            row, number = rows[-1], str(rows[-1][name])
            if kind != "tiers":  # whose rows have maps in them
                yaml = yaml_rows(self.kvctl("get", kind, *args, "-o", "yaml")[0])
                found = [other for other in yaml if other[name] == row[name]]
                self.assertEqual([still(other) for other in found], [still(row)], kind)
            for output, digits in (("table", 12), ("wide", 64)):
                lines = self.kvctl("get", kind, *args, "-o", output)[0].splitlines()
                self.assertFalse([line for line in lines if line != line.rstrip()])
                shown = number[:digits] if kind == "namespaces" else number
                self.assertEqual(sum(line.split()[0] == shown for line in lines), 1, kind)
            one = self.json("describe", kind, number, *args)
            self.assertEqual(still(one), still(row), kind)
            out, _ = self.kvctl("describe", kind, number, *args)
            self.assertRegex(out, rf"(?m)^{name}: +{number}$")

    def test_what_is_not_there(self):
        for kind in ("tier", "namespace", "session", "lease", "pin", "job"):
            out, errors = self.kvctl("describe", kind, "77777777", code=NOT_FOUND)
            self.assertEqual(out, "")
            self.assertIn(f"'kvctl get {kind}s'", errors)
        errors = self.kvctl("describe", "chunk", KEY, code=NOT_FOUND)[1]
        self.assertIn("is not held", errors)
        self.assertIn("'kvctl get chunks'", errors)
        self.assertIn("'kvctl get namespaces'", self.kvctl(
            "describe", "chunk", KEY, "-n", KEY, code=NOT_FOUND)[1])
        self.assertIn("not a key", self.kvctl("describe", "chunk", "abc", code=USAGE)[1])
        self.assertIn("'kvctl get namespaces'", self.kvctl("get", "chunks", "-n", "nobody's",
                                                           code=NOT_FOUND)[1])

    def test_namespaces(self):
        """A descriptor comes back as a client sent it; its id is the hash of its version and bytes."""
        text = (b"a model", b"r1", b"pages", b"salt and pepper", b"kvtier_sha256", b"bf16")
        numbers = (3, 2, 64, 16, 1, 4, 0, 2, 5, 3)
        sent = struct.pack("<128s64s64s64s32s16s10IQ96s", *text, *numbers, 12 * KIB, b"")
        client = agent_test.Client(self.socket)
        self.addCleanup(client.close)
        client.greet()
        self.assertEqual(struct.unpack_from("<i", client.call(agent_test.NS_OPEN, sent)[2]), (0,))
        names = ("model revision layout salt hash_algo dtype n_layers n_kv_heads head_dim "
                 "tokens_per_chunk tp_rank tp_size pp_rank pp_size kv_group n_segments "
                 "chunk_bytes").split()
        wanted = dict(zip(names, [*(t.decode() for t in text), *numbers, 12 * KIB]))
        ns = hashlib.sha256(b"\1" + sent).hexdigest()
        for name in (ns, ns[:12], ns[:9].upper(), "a model"):
            found = self.json("describe", "namespace", name)
            self.assertEqual(found["id"], ns)
            self.assertEqual({n: found[n] for n in names}, wanted)
            self.assertEqual((found["n_chunks"], found["slot_bytes"]), (0, 12 * KIB))
        engine = self.engine()
        engine.must_store(0, 2 * CHAIN)
        found = self.json("describe", "namespace", self.model)
        self.assertEqual([found[n] for n in ("n_chunks", "n_host_chunks", "n_nvme_chunks")],
                         3 * [2 * CHAIN])
        self.assertEqual(found["host_bytes"], 2 * CHAIN * 64 * KIB)

    def test_sessions(self):
        """Names, processes, open ops and leases of who is connected."""
        with self.load.lock:
            pid = self.load.process.pid
            self.until(lambda: [s for s in self.get("sessions") if s["client"] == "kvbench" and
                                s["pid"] == pid] or self.load.process.poll() is not None,
                       "kvbench's session")
        client = agent_test.Client(self.socket)
        self.addCleanup(client.close)
        client.greet(name=b"someone\x1b[2J")
        _, _, body = client.call(agent_test.NS_OPEN, agent_test.descriptor(model=self.model.encode()))
        _, ns, _ = struct.unpack_from("<iIQ", body)
        client.reserve(ns, range(3), op=5)
        mine = [s for s in self.get("sessions") if s["client"].startswith("someone")]
        self.assertEqual(len(mine), 1)
        self.assertEqual({n: mine[0][n] for n in ("pid", "n_ops", "n_leases", "reserved_bytes")},
                         {"pid": os.getpid(), "n_ops": 1, "n_leases": 0, "reserved_bytes": 3 * 4096})
        self.assertNotIn("\x1b", self.kvctl("get", "sessions")[0])
        client.close()
        self.until(lambda: not [s for s in self.get("sessions") if s["client"] == mine[0]["client"]],
                   "the session's end")

    def test_leases(self):
        engine = self.engine()
        engine.must_store(0, 2 * CHAIN)
        n_found, lease = engine.lookup(0, 5, lease=True)
        self.assertEqual(n_found, 5)
        mine = [x for x in self.get("leases") if x["namespace_id"] == self.namespace()]
        self.assertEqual(len(mine), 1)
        self.assertEqual(mine[0]["last_key"], engine.key(4))
        self.assertLessEqual(mine[0]["expires_in_ms"], 600000)
        self.assertGreater(mine[0]["expires_in_ms"], 500000)
        session = self.json("describe", "session", str(mine[0]["session_id"]))
        self.assertEqual((session["pid"], session["n_leases"]), (engine.process.pid, 1))
        leased = self.get("chunks", "-n", self.model, "--leased")
        self.assertIn(engine.key(4), [c["key"] for c in leased])
        self.assertEqual(engine.ask(f"release {lease}"), "ok")
        self.assertEqual(self.get("chunks", "-n", self.model, "--leased"), [])
        self.kvctl("describe", "lease", mine[0]["id"], code=NOT_FOUND)

    def test_chunks(self):
        """Exactly what was stored, with its place in the prompt; each choice takes what it says."""
        engine = self.engine()
        engine.must_store(0, 4 * CHAIN)
        found = {c["key"]: c for c in self.get("chunks", "-n", self.model)}
        self.assertEqual(set(found), set(engine.keys(range(4 * CHAIN))))
        for number in range(4 * CHAIN):
            chunk = found[engine.key(number)]
            self.assertEqual((chunk["parent_key"], chunk["chunk_bytes"], chunk["host"],
                              chunk["nvme"], chunk["n_holds"], chunk["n_pins"]),
                             (engine.parent(number), 64 * KIB, "valid", "valid", 0, 0))
            self.assertEqual(chunk["n_children_host"], int(number % CHAIN < CHAIN - 1))
        self.kvctl("demote", *engine.keys(range(CHAIN)), "-n", self.model)
        self.kvctl("pin", engine.key(2 * CHAIN + 1), "-n", self.model, "--owner", self.model)
        prefix = engine.key(9)[:4]
        for args, numbers in (
                (["--tier", "host"], range(CHAIN, 4 * CHAIN)),
                (["--tier", "nvme"], range(4 * CHAIN)),
                (["--pinned"], range(2 * CHAIN, 2 * CHAIN + 2)),
                (["--min-bytes", "64KiB", "--max-bytes", "64KiB"], range(4 * CHAIN)),
                (["--min-bytes", "65KiB"], []), (["--max-bytes", "63KiB"], []),
                (["--key-prefix", prefix],
                 [n for n in range(4 * CHAIN) if engine.key(n).startswith(prefix)])):
            keys = [c["key"] for c in self.get("chunks", "-n", self.model, *args)]
            self.assertEqual(sorted(keys), sorted(engine.keys(numbers)), args)
        self.assertEqual(len(self.get("chunks", "-n", self.model, "--limit", "5")), 5)
        self.kvctl("unpin", "--owner", self.model)
        # All pages of all there is, also of what the load stored.
        n = self.json("describe", "namespace", "kvbench")["n_chunks"]
        keys = [c["key"] for c in self.get("chunks", "-n", "kvbench")]
        self.assertGreater(n, 2000)
        self.assertEqual((len(keys), len(set(keys))), (n, n))


class Smoke(TestCase):
    def write(self, data):
        path = self.path("file")
        with open(path, "wb") as file:
            file.write(data)
        return path

    def test_put_get_exist_rm(self):
        key, data = hashlib.sha256(self.model.encode()).hexdigest(), os.urandom(100 * KIB)
        self.assertEqual(self.kvctl("exist", key, code=NOT_FOUND), ("not held\n", ""))
        self.assertIn("is not held", self.kvctl("rm", key, code=NOT_FOUND)[1])
        made = self.json("put", key, self.write(data))
        self.assertEqual((made["key"], made["file_bytes"], made["chunk_bytes"]),
                         (key, len(data), MIB))
        self.assertEqual(self.kvctl("exist", key), ("held\n", ""))
        back = self.path("back")
        self.kvctl("get-chunk", key, back)
        with open(back, "rb") as file:
            self.assertEqual(file.read(), data)
        chunk = self.json("describe", "chunk", key)
        self.assertEqual((chunk["chunk_bytes"], chunk["host"]), (MIB, "valid"))
        self.assertIn("held already", self.kvctl("put", key, back, code=FAILED)[1])
        self.assertEqual(self.kvctl("rm", key), ("", ""))
        self.assertEqual(self.kvctl("exist", key, code=NOT_FOUND), ("not held\n", ""))
        self.kvctl("get-chunk", key, back, code=NOT_FOUND)

    def test_of_an_engine(self):
        """With -n: the bytes as an engine stored them."""
        engine = self.engine()
        engine.must_store(0, 2)
        self.assertEqual(self.kvctl("exist", engine.key(1), code=NOT_FOUND)[0], "not held\n")
        self.assertEqual(self.kvctl("exist", engine.key(1), "-n", self.model)[0], "held\n")
        out = self.path("out")
        self.kvctl("get-chunk", engine.key(1), out, "-n", self.model)
        with open(out, "rb") as file:
            self.assertEqual(len(file.read()), 64 * KIB)
        self.assertEqual(engine.load(0, 2), "OO")
        self.kvctl("rm", engine.key(1), "-n", self.model)
        self.assertEqual(engine.load(0, 2), "OM")

    def test_pinned(self):
        engine = self.engine()
        engine.must_store(0, 2)
        self.kvctl("pin", engine.key(1), "-n", self.model)
        errors = self.kvctl("rm", engine.key(1), "-n", self.model, code=FAILED)[1]
        self.assertIn("is pinned", errors)
        self.assertEqual(engine.load(0, 2), "OO")
        self.kvctl("rm", engine.key(1), "-n", self.model, "--force")
        self.assertEqual(engine.load(0, 2), "OM")


class Steer(TestCase):
    def test_lookup(self):
        engine = self.engine()
        engine.must_store(0, CHAIN)
        self.kvctl("demote", engine.key(CHAIN - 1), "-n", self.model)
        out, errors = self.kvctl("lookup", *engine.keys(range(CHAIN)), KEY, "-n", self.model)
        self.assertIn(f"{CHAIN} of {CHAIN + 1} chunks are held, {256 * CHAIN} tokens", errors)
        self.assertEqual([line.split() for line in out.splitlines()[1:]],
                         [[engine.key(n), "host,nvme"] for n in range(CHAIN - 1)] +
                         [[engine.key(CHAIN - 1), "nvme"]])
        found = self.json("lookup", KEY, engine.key(0), "-n", self.model, code=NOT_FOUND)
        self.assertEqual(found, {"locations": []})
        # Many namespaces are there, and none was named.
        self.assertIn("-n ID", self.kvctl("lookup", engine.key(0), code=USAGE)[1])

    def test_pins(self):
        engine = self.engine()
        engine.must_store(0, 2 * CHAIN)
        made = self.json("pin", engine.key(2), engine.key(3), KEY, "-n", self.model, "--owner", "me",
                         "--ttl", "1h")
        self.assertEqual((made["n_keys"], made["n_found"]), (3, 2))
        pin = self.json("describe", "pin", made["pin"]["id"])
        self.assertEqual({n: pin[n] for n in ("owner", "namespace_id", "last_key", "n_chunks",
                                              "n_lost", "bytes", "expires")},
                         {"owner": "me", "namespace_id": self.namespace(), "expires": True,
                          "last_key": engine.key(3), "n_chunks": 4, "n_lost": 0,
                          "bytes": 4 * 64 * KIB})
        self.assertLessEqual(pin["expires_in_ms"], 3600000)
        forever = self.json("pin", engine.key(CHAIN), "-n", self.model, "--owner", "me")["pin"]
        self.assertFalse(forever["expires"])
        self.assertIn("me", self.kvctl("get", "pins", "--owner", "me")[0])
        self.assertEqual(len(self.get("pins", "--owner", "me")), 2)
        self.assertEqual(self.get("pins", "--owner", "nobody"), [])
        self.assertEqual(self.chunk(engine, 0)["n_pins"], 1)
        # By id, by owner, by what was pinned; what is not there is not found.
        self.assertEqual(self.json("unpin", made["pin"]["id"]), {"n_unpinned": 1})
        self.assertIn("'kvctl get pins'", self.kvctl("unpin", made["pin"]["id"], code=NOT_FOUND)[1])
        self.assertEqual(self.json("unpin", engine.key(CHAIN), "-n", self.model), {"n_unpinned": 1})
        self.kvctl("unpin", engine.key(CHAIN), "-n", self.model, code=NOT_FOUND)
        self.kvctl("pin", engine.key(0), "-n", self.model, "--owner", "me")
        self.assertEqual(self.json("unpin", "--owner", "me"), {"n_unpinned": 1})
        self.assertEqual(self.json("unpin", "--owner", "me", code=NOT_FOUND), {"n_unpinned": 0})
        self.kvctl("pin", engine.key(0), "-n", self.model, "--ttl", "100ms", "--owner", "short")
        self.until(lambda: not self.get("pins", "--owner", "short"), "the pin's end")
        self.assertIn("none of", self.kvctl("pin", KEY, "-n", self.model, code=NOT_FOUND)[1])

    def test_demote_and_prefetch(self):
        """Out of host memory and back, and all bytes are right."""
        engine = self.engine()
        engine.must_store(0, CHAIN)
        keys = engine.keys(range(CHAIN))
        job = self.json("demote", *keys, "-n", self.model, "--dry-run")
        self.assertEqual((job["dry_run"], job["n_matched"], job["n_changed"], job["bytes"]),
                         (True, CHAIN, 0, CHAIN * 64 * KIB))
        self.assertEqual(self.chunk(engine, 0)["host"], "valid")
        out, errors = self.kvctl("demote", *keys, "-n", self.model)
        self.assertIn(f"demote: 100 % ({CHAIN} of {CHAIN}) {CHAIN} of {CHAIN} chunks demoted\n",
                      errors)
        self.assertRegex(out, rf"state: +done\n(.*\n)*n_changed: +{CHAIN}\n")
        self.assertEqual([(c["host"], c["nvme"]) for c in self.get("chunks", "-n", self.model)],
                         CHAIN * [("none", "valid")])
        job = self.json("prefetch", *keys, "-n", self.model)
        self.assertEqual((job["type"], job["state"], job["n_changed"], job["bytes"]),
                         ("prefetch", "done", CHAIN, CHAIN * 64 * KIB))
        self.assertEqual([(c["host"], c["nvme"]) for c in self.get("chunks", "-n", self.model)],
                         CHAIN * [("valid", "valid")])
        self.kvctl("demote", "-n", self.model)  # all of it
        self.assertEqual(self.get("chunks", "-n", self.model, "--tier", "host"), [])
        self.assertEqual(engine.load(0, CHAIN), CHAIN * "O")

    def test_skipped(self):
        """Pinned: nothing is done, the exit status says so, and --force does it."""
        engine = self.engine()
        engine.must_store(0, 2)
        self.kvctl("pin", engine.key(1), "-n", self.model)
        for verb in ("demote", "clear"):
            out, errors = self.kvctl(verb, engine.key(0), "-n", self.model, "-o", "json", code=FAILED)
            self.assertEqual(json.loads(out)["n_skipped"], 1)
            self.assertIn("1 of 1 chunks were skipped: pinned", errors)
        self.assertEqual(self.chunk(engine, 0)["host"], "valid")
        self.assertEqual(self.json("demote", engine.key(0), "-n", self.model, "--force")["n_changed"], 1)
        self.assertEqual(self.json("clear", "-n", self.model, "--force")["n_changed"], 2)
        for verb in ("demote", "clear", "prefetch", "verify"):
            self.assertIn("none of these chunks is held", self.kvctl(
                verb, engine.key(0), "-n", self.model, code=NOT_FOUND)[1])

    def test_clear(self):
        engine = self.engine()
        engine.must_store(0, 6 * CHAIN)

        def held(first=0, n=6 * CHAIN):
            return engine.load(first, n).count("O")

        def clear(*args, **how):
            return self.json("clear", *args, **how)["n_changed"]

        # A dry run counts and changes nothing.
        out, errors = self.kvctl("clear", "-n", self.model, "--dry-run", "-o", "json")
        job = json.loads(out)
        self.assertEqual((job["n_matched"], job["n_changed"], job["bytes"]),
                         (6 * CHAIN, 0, 6 * CHAIN * 64 * KIB))
        self.assertIn(f"{6 * CHAIN} chunks would be deleted", errors)
        self.assertEqual(held(), 6 * CHAIN)
        # By key: that one, and with --subtree what is behind it.
        self.assertEqual(clear(engine.key(7), "-n", self.model), 1)
        self.assertEqual(clear(engine.key(CHAIN + 4), "-n", self.model, "--subtree"), 4)
        self.assertEqual((held(0, CHAIN), held(CHAIN, CHAIN)), (CHAIN - 1, 4))
        # One tier: the other copies stay.
        self.assertEqual(clear(*engine.keys(range(2 * CHAIN, 3 * CHAIN)), "-n", self.model, "--tier",
                               "host"), CHAIN)
        self.assertEqual(held(2 * CHAIN, CHAIN), CHAIN)
        self.kvctl("clear", *engine.keys(range(3 * CHAIN, 4 * CHAIN)), "-n", self.model, "--tier", "nvme")
        self.assertEqual(self.chunk(engine, 3 * CHAIN)["nvme"], "none")
        # By prefix of the keys, and whole.
        prefix = engine.key(4 * CHAIN + 7)[:6]
        self.assertEqual(clear("-n", self.model, "--key-prefix", prefix), 1)
        self.assertEqual(held(4 * CHAIN, CHAIN), CHAIN - 1)
        n = self.json("describe", "namespace", self.model)["n_chunks"]
        self.assertEqual(n, 6 * CHAIN - 1 - 4 - 1)
        self.assertEqual(clear("-n", self.model), n)
        self.assertEqual((held(), self.get("chunks", "-n", self.model)), (0, []))
        self.assertGreater(self.json("describe", "namespace", "kvbench")["n_chunks"], 0)

    def test_verify(self):
        """Counts what is on NVMe; the progress says how far it is."""
        engine = self.engine()
        engine.must_store(0, 2 * CHAIN)
        out, errors = self.kvctl("verify", "-n", self.model, "-o", "json")
        job = json.loads(out)
        self.assertEqual((job["state"], job["n_matched"], job["n_changed"], job["n_bad"]),
                         ("done", 2 * CHAIN, 2 * CHAIN, 0))
        self.assertRegex(errors, rf"verify: 100 % .* {2 * CHAIN} of {2 * CHAIN} chunks verified, 0 bad")
        everything = self.json("verify")
        self.assertGreaterEqual(everything["n_changed"],
                                self.json("describe", "namespace", "kvbench")["n_nvme_chunks"])
        terminal = self.terminal("verify")
        terminal.until(r"verify \[#{30}\] 100 % \d+ of \d+ chunks verified, 0 bad[\s\S]*n_bad")

    def test_verify_finds_damage(self):
        """A byte changed on the disk: exit status 6, the chunk is gone, the others are not."""
        key, other = (hashlib.sha256(name + self.model.encode()).hexdigest() for name in (b"a", b"b"))
        for name, data in ((key, b"the bytes to be damaged"), (other, b"other bytes")):
            path = self.path("file")
            with open(path, "wb") as file:
                file.write(data)
            self.kvctl("put", name, path)
            self.until(lambda name=name: self.json("describe", "chunk", name)["nvme"] == "valid",
                       "the write to NVMe")
        ns = self.json("describe", "chunk", key)["namespace_id"]
        with open(os.path.join(self.home, "store"), "r+b") as store:
            while (block := store.read(64 * MIB)):
                at = block.find(b"the bytes to be damaged")
                if at >= 0:
                    break
            self.assertTrue(block)
            place = store.tell() - len(block) + at
            store.seek(place)
            store.write(b"THE")
            store.flush()
            os.fsync(store.fileno())
        out, errors = self.kvctl("verify", "-n", ns, "-o", "json", code=BAD)
        job = json.loads(out)
        self.assertEqual((job["n_matched"], job["n_changed"], job["n_bad"]), (2, 2, 1))
        self.assertIn("2 of 2 chunks verified, 1 bad", errors)
        self.assertIn("chunk on NVMe failed its checksum and is dropped; 'kvctl verify' looks for more "
                      f"disk=nvme.disks.0 offset={place} bytes=4096\n", self.agent.log())
        self.assertEqual(self.json("describe", "chunk", other)["nvme"], "valid")
        self.assertEqual(self.kvctl("get-chunk", other, "-")[0], "other bytes")


class Jobs(TestCase):
    def test_list_and_cancel(self):
        """Jobs that wait for each other: one is cancelled before its turn, one by an interrupt."""
        ids = [self.json("verify", "--no-wait")["id"] for _ in range(25)]
        job = self.json("cancel", ids[-1])
        self.assertEqual((job["id"], job["type"], job["state"]), (ids[-1], "verify", "canceled"))
        self.assertIn("is over", self.kvctl("cancel", ids[-1], code=FAILED)[1])
        self.assertIn("'kvctl get jobs'", self.kvctl("cancel", "9999999", code=NOT_FOUND)[1])
        self.assertEqual(self.json("describe", "job", ids[-1])["state"], "canceled")
        waits = self.start("verify", "-o", "json")
        self.until(lambda: len({j["id"] for j in self.get("jobs")} - set(ids)) > 0, "the job")
        waits.send_signal(signal.SIGINT)
        out, _ = waits.communicate(timeout=program_test.WAIT_S)
        self.assertEqual((waits.returncode, json.loads(out)["state"]), (130, "canceled"))
        for job_id in ids:
            self.until(lambda job_id=job_id: self.json("describe", "job", job_id)["state"] in
                       ("done", "canceled"), "the jobs' end")
        listed = {j["id"]: j for j in self.get("jobs")}
        self.assertLessEqual(set(ids), set(listed))
        self.assertEqual(listed[ids[0]]["n_bad"], 0)


class Prompts(TestCase):
    """Chunks named by the tokens of a prompt. The agent is fresh: its memory is zero, as is what
    the client stores."""

    LOADED = False

    def test_tokens(self):
        tokens = list(range(1000, 1000 + 10 * 16 + 7))
        chain = prompt_engine.chain(tokens)
        client = agent_test.Client(self.socket)
        self.addCleanup(client.close)
        client.greet()
        prompt_engine.store(client, "prompts", chain[:8])
        path = self.path("tokens")
        with open(path, "w", encoding="ascii") as file:
            file.write(json.dumps(tokens))
        out, errors = self.kvctl("lookup", "--tokens", path)  # there is one namespace only
        self.assertIn("8 of 10 chunks are held, 128 tokens", errors)
        self.assertEqual([line.split()[0] for line in out.splitlines()[1:]],
                         [key.hex() for key in chain[:8]])
        rest = self.path("rest")
        with open(rest, "w", encoding="ascii") as file:
            file.write(" ".join(map(str, tokens[32:])))
        errors = self.kvctl("lookup", "--tokens", rest, "--parent", chain[1].hex())[1]
        self.assertIn("6 of 8 chunks are held", errors)
        self.assertEqual(self.json("pin", "--tokens", path)["n_found"], 8)
        self.assertEqual(self.json("unpin", "--tokens", path), {"n_unpinned": 1})
        self.assertEqual(self.json("clear", "--tokens", path)["n_changed"], 8)
        self.kvctl("lookup", "--tokens", path, code=NOT_FOUND)


class HostAlone(TestCase):
    """An agent without NVMe that holds nothing."""

    SETS = ("metrics.listen=127.0.0.1:0",)
    NVME_BYTES = 0
    LOADED = False

    def test_verbs(self):
        self.assertEqual([t["name"] for t in self.get("tiers")], ["host"])
        for verb in ("demote", "prefetch"):
            self.assertIn("has no NVMe tier; set nvme.path", self.kvctl(verb, "--all", code=FAILED)[1])
        self.assertIn("has no NVMe tier; set nvme.path", self.kvctl("verify", code=FAILED)[1])
        self.kvctl("describe", "tier", "nvme", code=NOT_FOUND)
        for kind in KINDS:
            if kind != "tiers":
                self.assertEqual(len(self.kvctl("get", kind)[0].splitlines()), 1, kind)
        for verb in ("pin", "lookup"):
            self.assertIn("no namespace yet", self.kvctl(verb, KEY, code=NOT_FOUND)[1])
        self.assertIn("delete: 100 % (0 of 0) 0 of 0 chunks deleted", self.kvctl("clear", "--all")[1])


class Replay(TestCase):
    """After a recorded hour: what the agent lists, what its metrics say and what kvbench counted."""

    SETS = ("host.bytes=32MiB", "host.slab_bytes=8MiB", "metrics.listen=127.0.0.1:0",
            "nvme.bytes=64MiB", "nvme.scrub_bytes_per_s=0")
    LOADED = False

    def test_evictions_are_what_is_missing(self):
        trace = os.path.join(live_fixture.HERE, "..", "data", "conversation_trace.jsonl")
        done = subprocess.run(
            [live_fixture.KVBENCH, "replay", trace, "--socket", self.socket, "--json",
             "--max-requests", "2000", "--chunk-bytes", "4KiB"],
            stdout=subprocess.PIPE, check=True, timeout=10 * program_test.WAIT_S)
        counted, metrics = json.loads(done.stdout), self.metrics()
        chunks = self.get("chunks")
        host, nvme = (sum(c[tier] == "valid" for c in chunks) for tier in ("host", "nvme"))
        read = metrics["kvtier_load_chunks_total", (("tier", "nvme"),)]
        self.assertEqual(read, counted["hits_nvme"])  # each is brought to host memory
        written = metrics["kvtier_tier_written_bytes_total", (("tier", "nvme"),)] / (2 * 4096)
        evicted = {tier: metrics_test.total(metrics, "kvtier_evicted_chunks_total",
                                            [("tier", tier)]) for tier in ("host", "nvme")}
        self.assertEqual(evicted, {"host": counted["stored_chunks"] + read - host,
                                   "nvme": written - nvme})
        self.assertTrue(all(evicted.values()), evicted)
        self.assertEqual(metrics["kvtier_chunks", ()], len(chunks))
        stats = {s["name"]: s["value"] for s in self.json("stat")["stats"]}
        for name, value in (("lookup_keys", counted["blocks"]),
                            ("lookup_hits", counted["hits_host"] + counted["hits_nvme"]),
                            ("stored_chunks", counted["stored_chunks"]),
                            ("stored_bytes", counted["stored_chunks"] * 4096)):
            self.assertEqual(stats[name], value, name)


class Gone(TestCase):
    """An agent that stands still, and one that is no more."""

    LOADED = False

    def test_stopped_and_ended(self):
        calls = (["info"], ["get", "chunks"], ["stat"], ["describe", "tier", "host"], ["exist", KEY],
                 ["verify"], ["top"], ["config", "get"])
        self.agent.process.send_signal(signal.SIGSTOP)
        try:
            for args in calls:
                out, errors = self.kvctl(*args, "--timeout", "200ms", code=LATE)
                self.assertEqual(out, "")
                self.assertIn("within --timeout", errors)
        finally:
            self.agent.process.send_signal(signal.SIGCONT)
        self.until(lambda: self.json("info")["state"] == "ready", "the agent")
        self.assertEqual(self.agent.stop(), 0)
        for args in calls:
            out, errors = self.kvctl(*args, code=UNREACHABLE)
            self.assertEqual(out, "")
            self.assertIn("start kvtierd", errors)


if __name__ == "__main__":
    live_fixture.main()
