# SPDX-License-Identifier: Apache-2.0
"""The secondary tier under vLLM's own scheduler, OffloadingConnector and tiering manager, with its
primary tier in real shared memory; see rig.py and cpu_tiering.py.

Usage: tier_test.py KVTIERD MODEL_FOLDER [unittest arguments]
environment: KVT_SCHEDULES  random schedules (default 40); KVT_SEED  of the first one (default 1)
"""

import faulthandler
import itertools
import os
import random
import signal
import sys
import time
import types
import unittest

from agent import Agent
from rig import KVCacheLayout, LAYOUTS, Rig
from rig_test import TOKENS, adapter, drive, family

import kvtier
from kvtier.vllm import tier as tier_module
from kvtier.vllm.layout import LayoutError

KVTIERD = MODEL = ""
CASE_S = 280
ROW = 8192  # bytes of a block of 16 tokens


class TierCase(unittest.TestCase):
    def setUp(self):
        signal.alarm(CASE_S)  # a hang ends with a trace of where
        self.agent = Agent(KVTIERD, host_bytes="64MiB")
        self.addCleanup(self.agent.close)
        self.addCleanup(setattr, tier_module, "LATE_NS", tier_module.LATE_NS)

    def rig(self, tier=None, rows=64, connected=True, **settings):
        """tier: its settings; rows: of vLLM's own CPU cache, in blocks of 16 tokens."""
        extra = {"spec_name": "CpuTieringSpec", "spec_module_path": "cpu_tiering",
                 "cpu_bytes_to_use": rows * ROW,
                 "secondary_tiers": [{"type": "kvtier", "socket": self.agent.socket,
                                      **(tier or {})}], **settings.pop("extra", {})}
        rig = Rig(MODEL, None, connector="KVTierOffloadingConnector", extra=extra, **settings)
        self.addCleanup(rig.close)
        rig.tier, = rig.scheduler.connector._tiers
        rig.manager = rig.scheduler.connector.connector_scheduler.manager
        if connected:
            rig.tier._port.wait_connected(5)
        return rig

    def run_rig(self, rig, tokens=TOKENS, max_tokens=1, **request):
        """@return tokens computed."""
        before = rig.n_computed
        rig.add(tokens, max_tokens=max_tokens, **request)
        rig.run()
        self.assert_idle(rig)
        return rig.n_computed - before

    def cold(self, tokens=TOKENS, **settings):
        """Another engine computes tokens and stores them."""
        rig = self.rig(**settings)
        self.run_rig(rig, tokens)
        return rig

    def assert_idle(self, rig):
        """Nothing is left of requests, neither here nor in vLLM's tables."""
        tier = rig.tier
        end = time.monotonic() + 5
        while tier._lookups and time.monotonic() < end:  # of an agent that is slow
            tier._poll()
        self.assertFalse(tier._requests or tier._lookups or tier._jobs or tier._ops or
                         tier._finished)
        self.assertFalse(rig.manager._jobs or rig.manager._req_state)
        self.assertFalse(rig.manager.has_pending_work())
        primary = rig.manager.primary_tier
        chunks = getattr(primary, "_num_chunks", None) or primary._num_blocks
        allocated = chunks - (primary._get_num_free_chunks() if hasattr(
            primary, "_get_num_free_chunks") else primary._get_num_free_blocks())
        evictable = primary._num_evictable_cache_chunks if hasattr(
            primary, "_num_evictable_cache_chunks") else primary._num_evictable_cache_blocks
        self.assertEqual(allocated, evictable)  # no row is pinned or half written
        self.assertEqual(rig.leaks(), 0)


class HitsTest(TierCase):
    def test_cold_and_warm(self):
        first = self.cold()
        self.assertEqual(first.tier.counts["stored"], 20)
        rig = self.rig()
        self.assertEqual(self.run_rig(rig, max_tokens=4), 4)  # one of the prompt, three new ones
        self.assertEqual((rig.tier.counts["hit"], rig.tier.counts["loaded"]), (20, 20))
        self.assertEqual(rig.tier.counts["unloaded"], 0)

    def test_rows_come_back_byte_for_byte(self):
        def rows(rig):
            keys = list(rig.keys)
            context = types.SimpleNamespace(req_id="t", get_offload_key_position=lambda key: None,
                                            get_state=lambda cls: None, set_state=lambda v: None)
            spec = rig.manager.primary_tier.prepare_read(keys, context)
            view = rig.manager.primary_tier.get_kv_memoryview()
            found = {key: view.obj[row].tobytes() for key, row in zip(keys, spec.block_ids)}
            rig.manager.primary_tier.complete_read(keys, context)
            return found
        found = []
        for _ in range(2):
            rig = self.rig()
            rig.keys, begin = [], rig.tier._begin
            rig.tier._begin = lambda job, ms, begin=begin, rig=rig: (
                rig.keys.extend(job.keys), begin(job, ms))
            self.run_rig(rig)
            found.append(rows(rig))
        self.assertEqual(len(found[0]), 20)
        self.assertEqual(found[0], found[1])
        self.assertEqual(len(set(found[0].values())), 20)

    def test_the_tier_is_there_without_being_named(self):
        os.environ["KVTIER_SOCKET"] = self.agent.socket
        self.addCleanup(os.environ.pop, "KVTIER_SOCKET")
        self.cold(extra={"secondary_tiers": []})
        self.assertEqual(self.run_rig(self.rig()), 1)

    def test_a_cpu_cache_smaller_than_a_prompt(self):
        self.cold(rows=8)
        rig = self.rig(rows=8)
        self.run_rig(rig)
        self.run_rig(rig, TOKENS[:100])

    def test_chunks_of_several_blocks(self):
        for per in (2, 4):
            with self.subTest(blocks=per):
                extra = {"blocks_per_chunk": per}
                self.cold(extra=extra)
                rig = self.rig(extra=extra)
                self.run_rig(rig, TOKENS[:80] + [3] * 20)
                self.assertEqual(self.run_rig(rig), 1)

    def test_windows_and_chunks_of_several_blocks_and_a_full_cpu_cache(self):
        for per in (2, 4):
            with self.subTest(blocks=per):
                settings = {"window": 64, "max_len": 600, "rows": 4 * per,
                            "extra": {"blocks_per_chunk": per}}
                self.cold(**settings)
                rig = self.rig(**settings)
                for tokens in (TOKENS[:100], TOKENS, family(per, 200), TOKENS):
                    self.run_rig(rig, tokens, max_tokens=20)

    def test_two_groups_over_the_same_bytes(self):
        self.cold(window=64, max_len=600)
        rig = self.rig(window=64, max_len=600)
        self.assertLess(self.run_rig(rig), 64)
        self.assertGreater(rig.tier.counts["loaded"], 20)

    def test_layouts_are_right_or_refused(self):
        seen = set()
        for name in LAYOUTS:
            with self.subTest(layout=name):
                try:
                    self.cold(layout=name)
                except LayoutError as err:
                    self.assertIn("KVTierConnector", str(err))
                    seen.add("refused")
                    continue
                self.assertEqual(self.run_rig(self.rig(layout=name)), 1)
                seen.add(name)
        self.assertLessEqual({"refused", "LBHNC" if KVCacheLayout else "packed"}, seen)

    def test_a_prefix_in_each_place(self):
        """Blocks of the engine, rows of its CPU cache and chunks of the agent make one prompt."""
        self.cold()
        rig = self.rig()
        self.run_rig(rig, TOKENS[:160])
        rig.scheduler.kv_cache_manager.reset_prefix_cache()
        self.run_rig(rig, TOKENS[:80])
        self.assertEqual(self.run_rig(rig), 1)
        self.assertEqual(rig.tier.counts["loaded"], 20)  # each once

    def test_an_agent_that_was_restarted(self):
        self.agent.close()
        self.agent = Agent(KVTIERD, host_bytes="64MiB", nvme_bytes="256MiB", nvme__engine="threads")
        self.addCleanup(self.agent.close)
        self.cold()
        self.agent.stop()
        self.agent.start()
        self.assertEqual(self.run_rig(self.rig()), 1)

    def test_stores_are_chained_in_prompt_order(self):
        rig = self.rig()
        chains = []
        store = rig.tier._port.store
        rig.tier._port.store = lambda ns, names, memory, parent, end: (
            chains.append((parent, names)), store(ns, names, memory, parent, end))[1]
        self.run_rig(rig)
        self.assertGreater(len(chains), 1)  # more than one step's worth
        last = None
        for parent, names in chains:
            self.assertEqual(parent, last)
            last = names[-32:]
        hashes = rig.requests["r1"].block_hashes
        self.assertEqual(b"".join(names for _, names in chains), b"".join(hashes))


class FailuresTest(TierCase):
    def doomed(self, fate, is_load, **settings):
        """A warm run whose agent meets its fate when a job is under way that cannot have ended:
        the agent was stopped before it was told."""
        if is_load:
            self.cold()
        rig = self.rig(**settings)
        begin = rig.tier._begin

        def begun(job, timeout_ms):
            if job.is_promotion == is_load and not hit:
                hit.append(job)
                self.agent.pause()
                begin(job, timeout_ms)
                self.assertIn(job.job_id, rig.tier._jobs)
                fate()
            else:
                begin(job, timeout_ms)
        hit = []
        rig.tier._begin = begun
        began = time.monotonic()
        computed = self.run_rig(rig)
        self.assertEqual(len(hit), 1)
        return rig, computed, time.monotonic() - began

    def test_killed_in_mid_load(self):
        rig, computed, took = self.doomed(self.agent.kill, True)
        self.assertEqual(computed, 320)
        self.assertEqual(rig.tier.counts["unloaded"], 20)
        self.assertLess(took, 4)
        self.agent.start()
        rig.tier._port.wait_connected(5)
        rig.scheduler.kv_cache_manager.reset_prefix_cache()
        self.run_rig(rig)

    def test_killed_in_mid_store(self):
        rig, computed, took = self.doomed(self.agent.kill, False)
        self.assertEqual(computed, 320)
        self.assertGreater(rig.tier.counts["unstored"], 0)
        self.assertLess(took, 4)

    def check_stopped(self, is_load):
        _, computed, took = self.doomed(lambda: None, is_load,
                                        tier={"load_timeout_ms": 300, "save_timeout_ms": 300})
        self.assertEqual(computed, 320)
        self.assertLess(took, 4)

    def test_stopped_in_mid_load(self):
        self.check_stopped(True)

    def test_stopped_in_mid_store(self):
        self.check_stopped(False)

    def test_continued_in_mid_load(self):
        rig, computed, _ = self.doomed(self.agent.resume, True)
        self.assertEqual(computed, 1)

    def test_no_agent_at_all(self):
        self.agent.kill()
        rig = self.rig(connected=False)
        began = time.monotonic()
        self.run_rig(rig)
        self.assertLess(time.monotonic() - began, 2)
        self.assertEqual(rig.tier.counts["stored"], 0)

    def test_a_stopped_agent_costs_a_few_time_outs_and_then_nothing(self):
        rig = self.rig(tier={"lookup_timeout_ms": 50, "save_timeout_ms": 100})
        self.run_rig(rig)
        self.agent.pause()
        began = time.monotonic()
        for i in range(8):
            rig.add(family(i, 100), max_tokens=1)
            while rig.scheduler.has_unfinished_requests():
                rig.step()
        self.assertLess(time.monotonic() - began, 2)
        self.assertIn(rig.tier.counts["lookup_timeouts"], range(1, 5))
        self.agent.resume()
        rig.run()
        self.assert_idle(rig)

    def test_a_full_agent(self):
        with kvtier.Client(self.agent.socket) as other:  # what it holds is leased
            self.assertTrue(other.connect_wait(5))
            ns = other.namespace(kvtier.Namespace(model="other", chunk_bytes=1 << 20))
            chunk = bytearray(1 << 20)
            n = 0
            for n in range(64):
                key = n.to_bytes(32, "little")
                if other.store(ns, key, [chunk], timeout=1).n_ok == 0:
                    break
                self.assertNotEqual(other.lookup(ns, key, lease_ms=60000).lease, 0)
            self.assertGreater(n, 10)
            rig = self.rig(tier={"save_timeout_ms": 50})
            self.assertEqual(self.run_rig(rig), 320)
            self.assertEqual(rig.tier.counts["stored"], 0)
            self.assertEqual(rig.tier.counts["unstored"], 20)
        self.assertEqual(self.run_rig(self.rig()), 320)

    def test_corrupted_chunks(self):
        self.agent.close()
        self.agent = Agent(KVTIERD, host_bytes="64MiB", nvme_bytes="256MiB", nvme__engine="threads",
                           nvme__scrub_bytes_per_s=0)
        self.addCleanup(self.agent.close)
        self.cold(block=128, blocks=16)  # rows of 64 KiB: each of them is hit
        self.agent.stop()
        self.agent.corrupt()
        self.agent.start()
        rig = self.rig(block=128, blocks=16)
        self.assertEqual(self.run_rig(rig), 320)
        self.assertGreater(rig.tier.counts["unloaded"], 0)
        self.assertEqual(rig.tier.counts["loaded"], 0)

    def test_one_chunk_of_many_is_gone(self):
        """What came is used; what did not is not asked for again and again."""
        self.cold()
        rig = self.rig()
        load = rig.tier._port.load

        def lossy(ns, names, memory, parent, end):
            return load(ns, names[:32 * 7] + bytes(32) + names[32 * 8:], memory, parent, end)
        rig.tier._port.load = lossy
        self.assertEqual(self.run_rig(rig), 320 - 7 * 16)
        self.assertEqual((rig.tier.counts["loaded"], rig.tier.counts["unloaded"]), (19, 1))

    def test_a_lost_completion_ends_by_the_deadline(self):
        self.cold()
        tier_module.LATE_NS = 50_000_000
        rig = self.rig(tier={"load_timeout_ms": 100, "save_timeout_ms": 100})
        poll = rig.tier._port.poll
        rig.tier._port.poll = lambda: [op for op in poll() if op.kind == "lookup"]
        self.assertEqual(self.run_rig(rig), 320)
        self.assertEqual(rig.tier.counts["loaded"], 0)

    def test_a_completion_that_comes_twice_is_reported_once(self):
        self.cold()
        rig = self.rig()
        poll = rig.tier._port.poll
        rig.tier._port.poll = lambda: [op for op in poll() for _ in range(2)]
        self.assertEqual(self.run_rig(rig), 1)

    def test_a_completion_that_makes_no_sense_takes_no_other_with_it(self):
        self.cold()
        tier_module.LATE_NS = 50_000_000
        rig = self.rig(tier={"load_timeout_ms": 100, "save_timeout_ms": 100})
        poll, broken = rig.tier._port.poll, []

        def polled():
            ops = poll()
            for op in ops:
                if op.kind == "load" and not broken:
                    broken.append(op)
                    op.statuses = None
            return broken[:1] + ops if ops else ops
        rig.tier._port.poll = polled
        with self.assertLogs("vllm.kvtier", "ERROR"):
            self.run_rig(rig)
        self.assertEqual(len(broken), 1)
        self.assertEqual(rig.tier.counts["unloaded"], 20)
        self.assertEqual(rig.tier.counts["stored"], 20)

    def test_a_late_lookup_holds_no_lease(self):
        self.cold()
        rig = self.rig(tier={"lookup_timeout_ms": 50, "lease_ms": 60_000})
        rig.add(TOKENS, max_tokens=1)
        self.agent.pause()
        while rig.tier.counts["lookup_timeouts"] == 0:
            rig.step()
        self.agent.resume()
        self.agent.until(leases=0)  # the request goes on, and has none
        rig.run()

    def test_a_full_queue_of_the_library(self):
        self.cold()
        for name in ("lookup", "load", "store"):
            with self.subTest(call=name):
                rig = self.rig()
                setattr(rig.tier._port, name, lambda *a: None)
                self.assertEqual(self.run_rig(rig), 1 if name == "store" else 320)

    def test_nothing_raises_into_the_engine(self):
        def broken(*args):
            raise RuntimeError("as if")
        self.cold()
        for n, name in enumerate(("lookup", "load", "store", "poll", "namespace")):
            with self.subTest(call=name), self.assertLogs("vllm.kvtier", "ERROR") as logs:
                tier_module.LATE_NS = 50_000_000
                rig = self.rig(tier={"load_timeout_ms": 100, "save_timeout_ms": 100,
                                     "lookup_timeout_ms": 50})
                rig.tier._said_ns = -tier_module.LOG_NS
                calls = itertools.chain([broken] * 20,
                                        itertools.repeat(getattr(rig.tier._port, name)))
                setattr(rig.tier._port, name, lambda *a, calls=calls: next(calls)(*a))
                rig.add(TOKENS + family(n, 80), max_tokens=1)
                rig.run()
                self.assertIn("as if", logs.output[0])
                self.assertEqual(rig.leaks(), 0)

    def test_abort_while_looking_up_and_loading(self):
        self.cold()
        for waiting in ("_lookups", "_jobs"):
            with self.subTest(waiting=waiting):
                rig = self.rig()
                poll, rig.tier._port.poll = rig.tier._port.poll, lambda: []
                if waiting == "_jobs":
                    rig.tier._port.poll = lambda poll=poll: [op for op in poll()
                                                             if op.kind == "lookup"]
                rid = rig.add(TOKENS)
                for _ in range(1000):
                    rig.step()
                    if getattr(rig.tier, waiting):
                        break
                rig.abort(rid)
                rig.step()
                rig.tier._port.poll = poll
                rig.run()
                self.assert_idle(rig)
                self.assertEqual(self.run_rig(rig), 1)

    def test_reset_waits_for_jobs_and_forgets_all(self):
        self.cold()
        rig = self.rig(tier={"load_timeout_ms": 200, "save_timeout_ms": 200})
        rid = rig.add(TOKENS)
        self.agent.pause()
        for _ in range(3):
            rig.step()
        rig.abort(rid)
        rig.step()
        rig.scheduler.connector.reset_cache()
        self.assertFalse(rig.tier._jobs)
        self.agent.resume()
        rig.run()
        rig.scheduler.kv_cache_manager.reset_prefix_cache()
        self.assertEqual(self.run_rig(rig), 320)
        rig.scheduler.kv_cache_manager.reset_prefix_cache()
        rig.manager.reset_cache()  # of vLLM's CPU cache alone
        self.assertEqual(self.run_rig(rig), 1)  # its own, stored after the reset

    def test_any_number_of_resets(self):
        rig = self.cold()
        for _ in range(1100):
            rig.scheduler.connector.reset_cache()
            rig.tier._ready()
        for computed in (320, 1):
            rig.scheduler.kv_cache_manager.reset_prefix_cache()
            rig.manager.reset_cache()
            self.assertEqual(self.run_rig(rig), computed)

    def test_what_ran_while_all_was_reset_is_not_stored(self):
        rig = self.rig()
        rig.add(TOKENS, max_tokens=1)
        rig.step()
        rig.scheduler.connector.reset_cache()
        stored = rig.tier.counts["stored"]
        rig.run()
        self.assertEqual(rig.tier.counts["stored"], stored)


class IsolationTest(TierCase):
    def apart(self, **settings):
        """An engine with other settings finds nothing of the first one's, and its own again."""
        self.cold()
        self.assertEqual(self.run_rig(self.rig(**settings)), 320)
        self.assertEqual(self.run_rig(self.rig(**settings)), 1)

    def test_tenants_and_revisions(self):
        self.apart(tier={"tenant": "another"})
        self.apart(tier={"revision": "another"})

    def test_chunks_of_another_shape(self):
        self.apart(extra={"blocks_per_chunk": 2})
        self.apart(block=32)
        self.apart(layers=5)

    @unittest.skipUnless(KVCacheLayout, "the layout has no name in this release")
    def test_layouts(self):
        self.apart(layout="LBNHC")

    def test_the_other_door(self):
        """A connector's chunks are not a tier's, even where they have the same bytes."""
        rig = Rig(MODEL, self.agent.socket, extra={"max_pinned_share": 1.0})
        self.addCleanup(rig.close)
        rig.add(TOKENS, max_tokens=1)
        rig.run()
        self.assertEqual(rig.stats["stored_chunks"], 20)
        self.assertEqual(self.run_rig(self.rig()), 320)

    def test_another_hash_root(self):
        self.cold()
        os.environ["PYTHONHASHSEED"] = "7"
        self.addCleanup(os.environ.__setitem__, "PYTHONHASHSEED", "0")
        self.assertEqual([self.run_rig(self.rig()) for _ in range(2)], [320, 1])

    def test_salts_and_adapters(self):
        folder = self.agent.folder
        one = adapter(folder, "one")
        requests = ({"salt": "a"}, {"salt": "b"}, {"lora": one}, {})
        for wanted in (320, 1):
            for request in requests:
                self.assertEqual(self.run_lora(self.rig(), **request), wanted, request)
        for weights in ("two", "two but with another alpha"):
            self.assertEqual(self.run_lora(self.rig(), lora=adapter(folder, weights)), 320)

    def run_lora(self, rig, tokens=TOKENS, **request):
        rig.scheduler.lora_config = None
        return self.run_rig(rig, tokens, **request)

    def test_a_name_that_gets_other_weights_while_the_engine_runs(self):
        """vLLM's own caches have the KV of both under one name then."""
        folder = self.agent.folder
        engine = self.rig()
        engine.wrong_hits = True
        self.run_lora(engine, TOKENS[:160], lora=adapter(folder, "one"))
        self.assertEqual(engine.tier.counts["stored"], 10)
        two = adapter(folder, "two", number=2)
        self.run_lora(engine, lora=two)
        self.run_lora(engine, family(1, 160), lora=two)
        self.assertEqual(engine.tier.counts["stored"], 10)
        self.assertEqual(self.run_lora(self.rig(), lora=two), 320)
        self.assertEqual(self.run_lora(self.rig(), lora=two), 1)

    def test_a_number_that_gets_other_weights_in_mid_request(self):
        folder = self.agent.folder
        engine = self.rig(extra={"offload_prompt_only": False})
        engine.wrong_hits = True
        engine.scheduler.lora_config = None
        one = adapter(folder, "one")
        engine.add(TOKENS[:40], lora=one, max_tokens=60)
        for _ in range(4):
            engine.step()
        stored = engine.tier.counts["stored"]
        engine.add(TOKENS, lora=adapter(folder, "two"), max_tokens=1)
        engine.run()
        self.assert_idle(engine)
        self.assertLessEqual(engine.tier.counts["stored"], stored + 2)  # under way until then
        two = adapter(folder, "two", number=2)
        self.assertEqual(self.run_lora(self.rig(), lora=two), 320)

    def test_the_plain_connector_is_refused(self):
        with self.assertRaisesRegex(ValueError, "KVTierOffloadingConnector"):
            Rig(MODEL, None, connector="OffloadingConnector", module=None, extra={
                "spec_name": "CpuTieringSpec", "spec_module_path": "cpu_tiering",
                "cpu_bytes_to_use": 64 * ROW, "secondary_tiers": [{"type": "kvtier"}]})

    def test_another_group_of_another_layout(self):
        """Rows have the pages of all groups."""
        tier = self.rig(window=64, max_len=600).tier
        rows, = tier._workers
        seen = set()
        for layouts in (rows.layouts, (rows.layouts[0], "another"), ("another", rows.layouts[1])):
            tier.describe({(0, 0): types.SimpleNamespace(layouts=layouts, dtypes=rows.dtypes)})
            self.assertTrue(tier._ready())
            seen.update(tier._handles)
        self.assertEqual(len(seen), 3 * len(rows.layouts))

    def test_what_makes_no_tier_is_refused(self):
        for extra, words in (
                ({"spec_name": "CPUOffloadingSpec"}, "spec_name.*CPUOffloadingSpec.*leave"),
                ({"spec_name": 5}, "spec_name 5.*leave"),
                ({"secondary_tiers": {"type": "kvtier"}}, "secondary_tiers.*not a list.*write"),
                ({"secondary_tiers": ["kvtier"]}, "secondary_tiers.*not a list.*write"),
                ({"secondary_tiers": None}, "secondary_tiers.*not a list.*write")):
            with self.subTest(extra=extra), self.assertRaisesRegex(ValueError, words):
                self.rig(extra=extra)

    def test_mistakes_are_named(self):
        with self.assertRaises(ValueError) as caught:
            self.rig(tier={"tennant": "x", "lease_ms": "x", "copy_threads": 0})
        for name in ("tenant?", "lease_ms", "copy_threads", "secondary_tiers"):
            self.assertIn(name, str(caught.exception))

    def test_a_request_of_another_engine(self):
        """Other tiers may ask for others, whose adapters and salts are not known here."""
        self.cold()
        rig = self.rig()
        rig.scheduler.connector.on_new_request = lambda request: \
            rig.scheduler.connector.connector_scheduler.on_new_request(request)
        self.assertEqual(self.run_rig(rig), 320)
        self.assertEqual(rig.tier.counts["stored"], 0)


class RandomTest(TierCase):
    def test_random_schedules(self):
        first = int(os.environ.get("KVT_SEED", "1"))
        for seed in range(first, first + int(os.environ.get("KVT_SCHEDULES", "40"))):
            with self.subTest(seed=seed):
                self.schedule(random.Random(seed))

    def schedule(self, source):
        tier_module.LATE_NS = 50_000_000
        window = source.choice((0, 0, 64))
        rig = self.rig(
            window=window, tier={"tenant": f"{source.randrange(3)}", "load_timeout_ms": 300,
                  "lookup_timeout_ms": source.choice((5, 100)), "save_timeout_ms": 300},
            rows=source.choice((12, 40, 200)), max_len=320,
            blocks=source.choice((40, 64, 90)) + (window and 24), budget=source.choice((48, 128, 256)),
            seqs=source.choice((3, 8)), extra={"offload_prompt_only": source.random() < 0.5})
        drive(self, rig, source)
        self.assert_idle(rig)


def main():
    global KVTIERD, MODEL
    KVTIERD, MODEL = sys.argv[1:3]
    faulthandler.register(signal.SIGALRM, chain=True)
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])


if __name__ == "__main__":
    main()
