# SPDX-License-Identifier: Apache-2.0
"""Metrics and probes over HTTP: what they say, that it is true, and who cannot disturb whom.

Usage: metrics_test.py KVTIERD KVBENCH TRACE DEPLOY [TEST...]
"""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import unittest
import urllib.parse

import agent_test
from agent_test import MIB, WAIT_S

KVBENCH = TRACE = DEPLOY = ""
SAMPLE = re.compile(r'^([a-z_]+)(?:\{(.*)\})? (\S+)$')


def total(samples, name, labels):
    """The sum of what has these labels, as PromQL's sum(name{labels})."""
    found = [value for (n, has), value in samples.items() if n == name and set(labels) <= set(has)]
    if not found:
        raise KeyError((name, labels))
    return sum(found)


def parse(text):
    """{(name, ((label, value), ...)): number} of the exposition format."""
    samples = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        name, labels, value = SAMPLE.match(line).groups()
        pairs = re.findall(r'([a-z_]+)="([^"]*)"', labels or "")
        samples[name, tuple(sorted((k, v) for k, v in pairs if v))] = float(value)
    return samples


class TestCase(agent_test.TestCase):
    def agent(self, *sets, **how):
        agent = super().agent("metrics.listen=127.0.0.1:0", *sets, **how)
        agent.port = int(re.findall(r"metrics served .*port=(\d+)", agent.log())[-1])
        return agent

    def get(self, agent, path, method="GET", body=None):
        """(status, text)"""
        connection = http.client.HTTPConnection("127.0.0.1", agent.port, timeout=WAIT_S)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def metrics(self, agent):
        status, text = self.get(agent, "/metrics")
        self.assertEqual(status, 200, text)
        samples = parse(text)
        return lambda name, **labels: total(samples, name, labels.items())

    def replay(self, agent, *args):
        """What kvbench counted."""
        done = subprocess.run([KVBENCH, "replay", TRACE, "--socket", agent.path, "--json", *args],
                              capture_output=True, text=True, timeout=240, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    @staticmethod
    def truth(r):
        """[(metric, labels, value)] of an agent that saw nothing but this replay."""
        chunk = r["chunk_bytes"]
        return [
            ("kvtier_lookup_keys_total", {}, r["blocks"]),
            ("kvtier_lookup_hit_chunks_total", {"tier": "host"}, r["hits_host"]),
            ("kvtier_lookup_hit_chunks_total", {"tier": "nvme"}, r["hits_nvme"]),
            ("kvtier_lookup_hit_bytes_total", {"tier": "host"}, r["hits_host"] * chunk),
            ("kvtier_lookup_hit_bytes_total", {"tier": "nvme"}, r["hits_nvme"] * chunk),
            ("kvtier_load_bytes_total", {}, r["bytes_loaded"]),
            ("kvtier_stored_chunks_total", {}, r["stored_chunks"]),
            ("kvtier_stored_bytes_total", {}, r["stored_chunks"] * chunk),
            ("kvtier_store_skipped_chunks_total", {"reason": "exists"}, r["existing_chunks"]),
            ("kvtier_evicted_chunks_total", {"tier": "host"}, r["agent"]["evict_host_chunks"]),
            ("kvtier_evicted_bytes_total", {"tier": "host"},
             r["agent"]["evict_host_chunks"] * chunk),
            ("kvtier_evicted_chunks_total", {"tier": "nvme"}, r["agent"]["evict_nvme_chunks"]),
            ("kvtier_evicted_bytes_total", {"tier": "nvme"},
             r["agent"]["evict_nvme_chunks"] * chunk)]


class Probes(TestCase):
    def test_paths_and_methods(self):
        agent = self.agent()
        self.assertEqual(self.get(agent, "/healthz"), (200, "ok\n"))
        self.assertEqual(self.get(agent, "/readyz"), (200, "ready\n"))
        self.assertEqual(self.get(agent, "/metrics", "HEAD"), (200, ""))
        self.assertEqual(self.get(agent, "/")[0], 404)
        self.assertEqual(self.get(agent, "/metrics", "POST", b"x" * 100000)[0], 405)
        self.assertEqual(self.get(agent, "/metrics", "DELETE")[0], 405)

    def test_ready_until_draining(self):
        agent = self.agent(nvme_bytes=64 * MIB)
        client = self.client(agent)
        client.store(client.open(), range(64))
        self.assertEqual(self.get(agent, "/readyz"), (200, "ready\n"))
        agent.process.send_signal(signal.SIGTERM)
        was_ready = True
        while True:  # how long a drain takes is for the disk to say
            try:
                status, text = self.get(agent, "/readyz")
            except OSError:
                break
            self.assertIn((status, text), [(503, "draining\n")] + [(200, "ready\n")] * was_ready)
            was_ready = status == 200
        self.assertEqual(agent.process.wait(WAIT_S), 0)

    def test_off_and_taken(self):
        agent = agent_test.TestCase.agent(self, "metrics.listen=")
        self.assertNotIn("metrics served", agent.log())
        self.assertEqual(agent.stop(), 0)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            agent = agent_test.TestCase.agent(self, f"metrics.listen=127.0.0.1:{port}")
        self.assertIn("going on without, check metrics.listen", agent.log())
        client = self.client(agent)
        self.assertEqual(client.lookup(client.open(), range(1)), (0, 0))

    def test_ipv6(self):
        if not socket.has_ipv6 or not os.path.exists("/proc/net/if_inet6"):
            self.skipTest("no IPv6 here")
        agent = agent_test.TestCase.agent(self, "metrics.listen=[::1]:0")
        port = int(re.search(r"metrics served .*port=(\d+)", agent.log())[1])
        with socket.create_connection(("::1", port), timeout=WAIT_S) as connection:
            connection.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            self.assertIn(b"200 OK", connection.recv(4096))


class Hostile(TestCase):
    """Nothing that happens over HTTP is noticed by engines."""

    def lookups(self, agent, seconds):
        """Times of lookups, sorted."""
        client = self.client(agent)
        ns = client.open()
        client.store(ns, range(100))
        times = []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            began = time.perf_counter()
            self.assertEqual(client.lookup(ns, range(100)), (0, 100))
            times.append(time.perf_counter() - began)
        return sorted(times)

    def test_many_who_never_read(self):
        agent = self.agent()
        sockets = []
        for n in range(100):
            s = socket.socket()
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            s.settimeout(WAIT_S)
            s.connect(("127.0.0.1", agent.port))
            s.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 50 if n % 2 else b"GET /met")
            sockets.append(s)
        self.lookups(agent, 0.5)
        self.assertLess(len(os.listdir(f"/proc/{agent.process.pid}/fd")), 120)
        for s in sockets:
            s.close()
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            try:
                if self.get(agent, "/healthz")[0] == 200:
                    break
            except OSError:
                time.sleep(0.05)
        self.assertEqual(self.get(agent, "/metrics")[0], 200)
        self.assertEqual(agent.stop(), 0)

    def test_garbage(self):
        agent = self.agent()
        for text in (b"\0" * 1000, b"GET /" + b"a" * 100000 + b" HTTP/1.1\r\n\r\n",
                     b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 10000 + b"\r\n", b"\r\n\r\n\r\n",
                     b"POST /metrics HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
                     b"GET /metrics HTTP/9.9\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", agent.port), timeout=WAIT_S) as s:
                try:
                    s.sendall(text)
                    s.shutdown(socket.SHUT_WR)
                    while s.recv(65536):
                        pass
                except OSError:
                    pass
            self.assertEqual(self.get(agent, "/healthz")[0], 200)

    def test_a_flood_of_scrapes(self):
        """Lookups go on; the reactor makes at most a hundred copies a second."""
        agent = self.agent()
        stop = threading.Event()
        counts = [0] * 4

        def scrape(i):
            connection = http.client.HTTPConnection("127.0.0.1", agent.port, timeout=WAIT_S)
            while not stop.is_set():
                connection.request("GET", "/metrics")
                connection.getresponse().read()
                counts[i] += 1
            connection.close()

        threads = [threading.Thread(target=scrape, args=(i,)) for i in range(len(counts))]
        for thread in threads:
            thread.start()
        times = self.lookups(agent, 1)
        stop.set()
        for thread in threads:
            thread.join()
        self.assertGreater(sum(counts), 50)
        self.assertGreater(len(times), 100)

    def test_a_stopped_process_is_not_alive(self):
        agent = self.agent()
        agent.process.send_signal(signal.SIGSTOP)
        try:
            connection = http.client.HTTPConnection("127.0.0.1", agent.port, timeout=0.5)
            connection.request("GET", "/healthz")
            with self.assertRaises(TimeoutError):
                connection.getresponse()
            connection.close()
        finally:
            agent.process.send_signal(signal.SIGCONT)
        self.assertEqual(self.get(agent, "/healthz")[0], 200)


class Numbers(TestCase):
    def test_requests_and_errors(self):
        agent = self.agent("sessions.ops_max=2")
        client = self.client(agent)
        ns = client.open()
        client.store(ns, range(5))
        client.lookup(ns, range(7))
        body = struct.pack("<IIIIQ", ns, 5, 0, 0, 2**63) + agent_test.keys(range(5))
        self.assertEqual(client.call(agent_test.LOAD, body, op=5)[0], agent_test.LOAD_R)
        client.send(agent_test.message(agent_test.LOAD_DONE, op=5))
        for op in (10, 11, 12):  # one too many
            client.reserve(ns, [op], op=op)
        bad = self.client(agent)
        bad.greet()
        bad.send(agent_test.message(agent_test.HELLO))
        self.assertIsNone(bad.receive())
        m = self.metrics(agent)
        for (name, labels), value in {
                ("kvtier_lookups_total", ()): 1,
                ("kvtier_lookup_keys_total", ()): 7,
                ("kvtier_lookup_hit_chunks_total", ("tier", "host")): 5,
                ("kvtier_lookup_hit_tokens_total", ("tier", "host")): 5,
                ("kvtier_lookup_hit_bytes_total", ("tier", "host")): 5 * 4096,
                ("kvtier_load_chunks_total", ("tier", "host")): 5,
                ("kvtier_load_bytes_total", ()): 5 * 4096,
                ("kvtier_stored_chunks_total", ()): 5,
                ("kvtier_reserved_bytes", ()): 2 * 4096,
                ("kvtier_ops", ()): 2,
                ("kvtier_requests_refused_total", ("status", "ERR_AGAIN")): 1,
                ("kvtier_errors_total", ("cause", "session_malformed_message")): 1,
                ("kvtier_sessions", ()): 2,
                ("kvtier_sessions_opened_total", ()): 2,
        }.items():
            labels = dict([labels]) if labels else {}
            self.assertEqual(m(name, **labels), value, (name, labels))
        for labels in ({"operation": "load", "tier": "host"}, {"operation": "lookup"},
                       {"operation": "commit"}, {"operation": "namespace"}):
            self.assertEqual(m("kvtier_request_duration_seconds_count", **labels), 1, labels)
            self.assertEqual(m("kvtier_request_duration_seconds_bucket", le="+Inf", **labels), 1)
            self.assertGreater(m("kvtier_request_duration_seconds_sum", **labels), 0)
        self.assertEqual(m("kvtier_request_duration_seconds_count", operation="reserve"), 3)

    def test_the_reference_lists_what_there_is(self):
        """docs/metrics.md has a row for each family: name, type, labels, help."""
        _, text = self.get(self.agent(nvme_bytes=16 * MIB), "/metrics")
        helps = dict(re.findall(r"^# HELP (\S+) (.*)$", text, re.M))
        types = dict(re.findall(r"^# TYPE (\S+) (.*)$", text, re.M))
        labels = {name: set() for name in helps}
        for name, pairs in parse(text):
            family = re.sub("_(bucket|sum|count)$", "", name)
            family = name if name in helps else family
            labels[family] |= {label for label, _ in pairs} - {"le"}
        wanted = {(name, types[name], " ".join(sorted(labels[name])), helps[name])
                  for name in helps}
        with open(f"{DEPLOY}/../docs/metrics.md", encoding="utf-8") as file:
            rows = re.findall(r"^\| `(\S+)` \| (\S+) \| (.*?) ?\| (.*) \|$", file.read(), re.M)
        self.assertEqual(wanted ^ set(rows), set())

    def test_promtool_accepts_it(self):
        promtool = shutil.which("promtool")
        if promtool is None:
            self.skipTest("promtool is not installed")
        agent = self.agent(nvme_bytes=16 * MIB)
        _, text = self.get(agent, "/metrics")
        done = subprocess.run([promtool, "check", "metrics"], input=text, text=True, check=False,
                              capture_output=True, timeout=WAIT_S)
        self.assertEqual((done.returncode, done.stdout + done.stderr), (0, ""))
        done = subprocess.run([promtool, "check", "rules", f"{DEPLOY}/prometheus-rules.yaml"],
                              capture_output=True, text=True, timeout=WAIT_S, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        # Every metric that the rules name is there.
        with open(f"{DEPLOY}/prometheus-rules.yaml", encoding="utf-8") as file:
            for name in set(re.findall(r"\bkvtier_[a-z_]+", file.read())):
                self.assertIn("\n" + name, text)

    def compare(self, agent, r):
        """The metrics of an agent that saw nothing but this replay."""
        m = self.metrics(agent)
        for name, labels, value in self.truth(r):
            self.assertEqual(m(name, **labels), value, (name, labels))
        self.assertAlmostEqual(m("kvtier_lookup_hit_ratio"), r["hit_ratio"], places=5)
        self.assertAlmostEqual(m("kvtier_lookup_ideal_hit_ratio"), r["ideal_hit_ratio"], delta=0.01)
        self.assertEqual(m("kvtier_reserved_bytes") + m("kvtier_ops") + m("kvtier_leases"), 0)
        return m

    def test_host_memory_alone(self):
        agent = self.agent("host.policy=lru")
        r = self.replay(agent, "--max-requests", "3000", "--chunk-bytes", "4KiB")
        m = self.compare(agent, r)
        # What was stored and is not held any more was evicted.
        evicted = r["stored_chunks"] - m("kvtier_chunks")
        self.assertGreater(evicted, 0)
        self.assertEqual(m("kvtier_evicted_chunks_total", tier="host"), evicted)
        self.assertGreater(r["ideal_hit_ratio"] - r["hit_ratio"], 0.05)

    def test_both_tiers(self):
        agent = self.agent(nvme_bytes=64 * MIB)
        r = self.replay(agent, "--max-requests", "1000", "--chunk-bytes", "4KiB")
        m = self.compare(agent, r)
        self.assertGreater(r["hits_nvme"], 0)
        self.assertGreater(m("kvtier_tier_written_bytes_total", tier="nvme"),
                           m("kvtier_tier_used_bytes", tier="nvme") / 2)
        self.assertGreater(m("kvtier_request_duration_seconds_count", operation="load",
                             tier="nvme"), 0)
        self.assertGreater(m("kvtier_tier_io_duration_seconds_count", operation="read",
                             tier="nvme"), 0)


class Prometheus(TestCase):
    """A real server scrapes the agent and answers queries."""

    def start(self, agent):
        program = shutil.which("prometheus")
        if program is None:
            self.skipTest("prometheus is not installed")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        config = os.path.join(self.folder, "prometheus.yml")
        with open(config, "w", encoding="utf-8") as file:
            file.write("global: {scrape_interval: 250ms, evaluation_interval: 250ms}\n"
                       f"rule_files: ['{DEPLOY}/prometheus-rules.yaml']\n"
                       "scrape_configs:\n  - job_name: kvtier\n    static_configs:\n"
                       f"      - targets: ['127.0.0.1:{agent.port}']\n")
        with open(os.path.join(self.folder, "prometheus.log"), "wb") as log:
            process = subprocess.Popen(
                [program, f"--config.file={config}", f"--web.listen-address=127.0.0.1:{port}",
                 f"--storage.tsdb.path={self.folder}/tsdb", "--log.level=warn"],
                stdout=log, stderr=log)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return port

    def query(self, port, expression):
        """The value of the only sample, or None."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
        try:
            connection.request("GET", "/api/v1/query?query=" + urllib.parse.quote(expression))
            result = json.loads(connection.getresponse().read())["data"]["result"]
            return float(result[0]["value"][1]) if len(result) == 1 else None
        except (OSError, ValueError):
            return None  # not up yet
        finally:
            connection.close()

    def wait_for(self, port, expression, wanted):
        deadline = time.monotonic() + 2 * WAIT_S
        value = None
        while time.monotonic() < deadline:
            value = self.query(port, expression)
            if value == wanted:
                return
            time.sleep(0.1)
        with open(os.path.join(self.folder, "prometheus.log"), encoding="utf-8") as log:
            raise AssertionError(f"{expression} is {value}, not {wanted}\n{log.read()}")

    def test_scrapes_what_is_true(self):
        agent = self.agent()
        port = self.start(agent)
        self.wait_for(port, 'up{job="kvtier"}', 1)
        self.wait_for(port, "kvtier_stored_chunks_total", 0)
        client = self.client(agent)
        ns = client.open()
        client.store(ns, range(40))
        for _ in range(3):
            client.lookup(ns, range(50))
        self.wait_for(port, "kvtier_stored_chunks_total", 40)
        self.wait_for(port, 'kvtier_lookup_hit_chunks_total{tier="host"}', 120)
        self.wait_for(port, "kvtier_lookup_hit_ratio", 0.8)
        self.wait_for(port, 'kvtier_request_duration_seconds_count{operation="lookup"}', 3)
        self.wait_for(port, 'kvtier_build_info * on (instance) kvtier_ready', 1)
        self.wait_for(port, 'count(kvtier:lookup_hit_ratio:rate5m > 0)', 1)
        self.wait_for(port, 'count(ALERTS{alertname=~"KVTier.*"}) or vector(0)', 0)
        self.assertEqual(agent.stop(), 0)
        self.wait_for(port, 'up{job="kvtier"}', 0)


    def test_a_replay(self):
        """What the server has scraped after a replay is what kvbench counted."""
        agent = self.agent(nvme_bytes=24 * MIB)
        port = self.start(agent)
        self.wait_for(port, "kvtier_ready", 1)
        r = self.replay(agent, "--max-requests", "1500", "--chunk-bytes", "4KiB")
        self.assertTrue(r["hits_host"] and r["hits_nvme"], r)
        self.assertTrue(r["agent"]["evict_host_chunks"] and r["agent"]["evict_nvme_chunks"], r)
        for name, labels, value in self.truth(r):
            pairs = ",".join(f'{k}="{v}"' for k, v in labels.items())
            self.wait_for(port, f"sum({name}{{{pairs}}})", value)
        hits = r["hits_host"] + r["hits_nvme"]
        self.wait_for(port, 'sum(kvtier_lookup_hit_chunks_total)', hits)
        self.wait_for(port, 'sum(kvtier_lookup_hit_chunks_total) / sum(kvtier_lookup_keys_total)',
                      hits / r["blocks"])


if __name__ == "__main__":
    agent_test.KVTIERD, KVBENCH, TRACE, DEPLOY = map(os.path.abspath, sys.argv[1:5])
    unittest.main(argv=sys.argv[:1] + sys.argv[5:], verbosity=2)
