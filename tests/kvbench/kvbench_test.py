# SPDX-License-Identifier: Apache-2.0
"""kvbench as its users see it: exit codes, JSON, folders, agents that end with it.

Usage: kvbench_test.py KVBENCH KVTIERD TRACE
"""
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest

KVBENCH, KVTIERD, TRACE = sys.argv[1:4]
SMALL = ["--arena-bytes", "128MiB", "--nvme-bytes", "256MiB"]


def kvbench(*args, code=0):
    run = subprocess.run([KVBENCH, *args], capture_output=True, text=True, timeout=120)
    if run.returncode != code:
        raise AssertionError(f"{args}: exit code {run.returncode}, not {code}\n{run.stderr}")
    return run


def replay(*args):
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        run = kvbench(*args, "--json", "--dir", folder)
        if os.listdir(folder):
            raise AssertionError(f"left behind: {os.listdir(folder)}")
    return json.loads(run.stdout)


class Usage(unittest.TestCase):
    def test_help_and_version(self):
        self.assertIn("Exit codes", kvbench("--help").stdout)
        self.assertRegex(kvbench("--version").stdout, r"^kvbench \d+\.\d+")
        for command in ("replay", "micro", "multiturn", "rag", "longdoc"):
            self.assertIn("--json", kvbench(command, "--help").stdout)

    def test_bad_usage_is_2_and_says_why(self):
        for args in ([], ["nothing"], ["replay"], ["replay", TRACE, TRACE], ["micro", "x"],
                     ["rag", "x"], ["replay", TRACE, "--clients", "0"],
                     ["replay", TRACE, "--chunk-bytes", "1XB"], ["replay", TRACE, "--unknown"],
                     ["replay", TRACE, "--policy", "best"],
                     ["replay", TRACE, "--capacity-share", "2"],
                     ["replay", TRACE, "--capacity-share", "nan"],
                     ["replay", TRACE, "--time-scale", "-1"],
                     ["replay", TRACE, "--store-wait", "1"],
                     ["replay", TRACE, "--set", "nothing"],
                     ["replay", TRACE, "--layers", "2", "--chunk-bytes", "4KiB"],
                     ["replay", TRACE, "--tokens-per-chunk", "65536"],
                     ["replay", TRACE, "--socket", "/x", "--capacity-share", "0.1"],
                     ["micro", "--only", "host_store,nothing"], ["micro", "--object-bytes", "1"],
                     ["micro", "--object-bytes", ""], ["micro", "--seconds", "x"]):
            run = kvbench(*args, code=2)
            self.assertTrue(run.stderr.strip(), args)
            self.assertEqual(run.stdout, "", args)

    def test_what_cannot_run_is_1_and_says_why(self):
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
            file.write('{"timestamp": 0}\n')
            file.flush()
            self.assertIn(file.name, kvbench("replay", file.name, code=1).stderr)
        self.assertIn("/nowhere", kvbench("replay", "/nowhere", code=1).stderr)
        self.assertIn("/nowhere", kvbench("rag", "--dir", "/nowhere", code=1).stderr)
        # The agent's own words about a setting that it refuses.
        self.assertIn("host.nothing", kvbench("rag", "--set", "host.nothing=1", code=1).stderr)


class Replay(unittest.TestCase):
    KEYS = {"requests": int, "hit_ratio": float, "ideal_hit_ratio": float,
            "optimum_hit_ratio": float, "lru_hit_ratio": float, "bytes_loaded": int,
            "bytes_verified": int, "bytes_wrong": int, "errors": int}

    def check(self, result):
        for key, kind in self.KEYS.items():
            self.assertIs(type(result[key]), kind, key)
        self.assertEqual(result["bytes_wrong"], 0)
        self.assertEqual(result["errors"], 0)
        self.assertEqual(result["bytes_loaded"], result["bytes_verified"])
        # Nobody hits more than was there.
        self.assertLessEqual(result["hit_ratio"], result["ideal_hit_ratio"] + 1e-9)
        self.assertLessEqual(result["lru_hit_ratio"], result["optimum_hit_ratio"])
        agent = result["agent"]
        for gauge in ("leases", "pins", "ops", "reserved_bytes"):
            self.assertEqual(agent[gauge], 0, gauge)

    def test_a_small_run_finds_all_that_could_be_found(self):
        result = replay("replay", TRACE, "--max-requests", "400", "--chunk-bytes", "4KiB", *SMALL)
        self.check(result)
        self.assertEqual(result["requests"], 400)
        self.assertGreater(result["hit_ratio"], 0)
        self.assertAlmostEqual(result["hit_ratio"], result["ideal_hit_ratio"], places=6)

    def test_several_clients_over_both_tiers(self):
        result = replay("replay", TRACE, "--max-requests", "800", "--chunk-bytes", "32KiB",
                        "--clients", "3", *SMALL)
        self.check(result)
        self.assertGreater(result["bytes_loaded"], 0)

    def test_model_geometry(self):
        result = replay("replay", TRACE, "--max-requests", "10", "--layers", "3", "--kv-heads", "1",
                        "--head-dim", "72", "--dtype-bytes", "2", "--tokens-per-chunk", "33", *SMALL)
        self.check(result)
        self.assertEqual(result["chunk_bytes"], 3 * 2 * 72 * 2 * 33)

    def test_capacity_share_repeats_exactly(self):
        # Compare results and not times.
        args = ["replay", TRACE, "--max-requests", "3000", "--capacity-share", "0.05"]
        first, second = replay(*args), replay(*args)
        for result in (first, second):
            self.check(result)
            self.assertEqual(result["hit_ratio_nvme"], 0)
            wanted = 0.05 * result["distinct_blocks"]
            self.assertLess(abs(result["capacity_blocks"] - wanted), 0.01 * wanted)
        for key in ("hit_ratio", "bytes_loaded", "stored_chunks", "dropped_chunks"):
            self.assertEqual(first[key], second[key], key)

    def test_lru_is_the_offline_lru(self):
        result = replay("replay", TRACE, "--max-requests", "3000", "--capacity-share", "0.1",
                        "--policy", "lru")
        self.check(result)
        self.assertAlmostEqual(result["hit_ratio"], result["lru_hit_ratio"], delta=0.002)

    def test_built_in_workloads(self):
        for name in ("multiturn", "rag", "longdoc"):
            result = replay(name, "--max-requests", "200", "--chunk-bytes", "4KiB", *SMALL)
            self.check(result)
            self.assertGreater(result["hit_ratio"], 0.1, name)

    def test_table_and_progress(self):
        run = kvbench("rag", "--max-requests", "50", "--chunk-bytes", "4KiB", *SMALL)
        self.assertIn("hit ratio", run.stdout)
        self.assertIn("replay: 100 %", run.stderr)


class Micro(unittest.TestCase):
    def test_json(self):
        with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
            run = kvbench("micro", "--json", "--only", "host_store,host_load,nvme_write,nvme_read",
                          "--object-bytes", "1.5MiB", "--seconds", "0.01", "--arena-bytes",
                          "128MiB", "--nvme-bytes", "768MiB", "--dir", folder)
            self.assertEqual(os.listdir(folder), [])
        results = {r["name"]: r for r in json.loads(run.stdout)["results"]}
        for name in ("host_store", "host_load", "nvme_write", "nvme_read"):
            self.assertIn(name, results, run.stderr)
            r = results[name]
            self.assertEqual(r["object_bytes"], 1536 * 1024)
            self.assertIs(type(r["reference"]), str)
            copying = ("reference_copying_bytes_per_s", "ratio_copying")
            for key in ("bytes_per_s", "reference_bytes_per_s", "ratio") + \
                    (copying if name.startswith("nvme") else ()):
                self.assertGreater(r[key], 0, (name, key))

    def test_lookup(self):
        run = kvbench("micro", "--json", "--only", "lookup,idle_cpu", "--chunks-in-index", "10000",
                      "--arena-bytes", "128MiB")
        lookup = [r for r in json.loads(run.stdout)["results"] if r["name"] == "lookup"][0]
        self.assertEqual(lookup["n_chunks"], 512)
        self.assertEqual(lookup["chunks_in_index"], 10000)
        for key in ("p50_us", "p99_us", "roundtrip_p50_us"):
            self.assertGreater(lookup[key], 0)


class Ends(unittest.TestCase):
    """However kvbench ends, its agent ends with it."""

    def start(self, folder):
        run = subprocess.Popen([KVBENCH, "longdoc", "--max-requests", "100000", "--chunk-bytes",
                                "64KiB", *SMALL, "--dir", folder], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
        end = time.monotonic() + 60
        agent = None
        while agent is None and time.monotonic() < end:
            time.sleep(0.05)
            agent = self.agent_of(run.pid)
        self.assertIsNotNone(agent)
        return run, agent

    @staticmethod
    def agent_of(parent):
        for pid in os.listdir("/proc"):
            try:
                with open(f"/proc/{pid}/stat", encoding="ascii") as file:
                    name, rest = file.read().split("(", 1)[1].rsplit(") ", 1)
                if name == "kvtierd" and int(rest.split()[1]) == parent:
                    return int(pid)
            except (OSError, ValueError, IndexError):
                continue
        return None

    def gone(self, pid):
        end = time.monotonic() + 30
        while time.monotonic() < end:
            try:
                with open(f"/proc/{pid}/stat", encoding="ascii") as file:
                    if file.read().rsplit(") ", 1)[1][0] in "ZX":
                        return True
            except OSError:
                return True
            time.sleep(0.05)
        return False

    def test_interrupted(self):
        with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
            run, agent = self.start(folder)
            run.send_signal(signal.SIGINT)
            self.assertEqual(run.wait(60), 130)
            self.assertTrue(self.gone(agent))
            self.assertEqual(os.listdir(folder), [])

    def test_killed(self):
        with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
            run, agent = self.start(folder)
            run.kill()
            run.wait(60)
            self.assertTrue(self.gone(agent))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
