# SPDX-License-Identifier: Apache-2.0
"""The connector under vLLM's real scheduler, without a model; see rig.py.

Usage: rig_test.py KVTIERD MODEL_FOLDER [unittest arguments]
environment: KVT_SCHEDULES  random schedules (default 40); KVT_SEED  of the first one (default 1);
             KVT_SECONDS  none begins after so many; KVT_GPU  real: KV is on this machine's GPU
"""

import collections
import faulthandler
import os
import random
import signal
import sys
import time
import types
import unittest
from unittest import mock

from agent import Agent
from fake_gpu import FakeGpu
from real_gpu import RealGpu
from rig import LAYOUTS, KVCacheLayout, Rig

import kvtier
from kvtier.vllm import compat, layout, port, worker

KVTIERD = MODEL = ""
GPU = RealGpu() if os.environ.get("KVT_GPU") == "real" else None
CASE_S = 280
SCHEDULE_S = 60
HYBRID = compat.TransferResults is not None
TOKENS = [i * 37 % 900 + 5 for i in range(320)]


def family(seed, n):
    source = random.Random(seed)
    return [source.randrange(5, 900) for _ in range(n)]


def adapter(folder, weights, number=1, name="x"):
    """A LoRA adapter in folder, with these weights; the rig's KV depends on them."""
    weights, _, config = weights.partition(" but with ")
    for file, content in (("adapter.safetensors", weights), ("adapter_config.json", config)):
        with open(os.path.join(folder, file), "w", encoding="ascii") as out:
            out.write(content)
    return types.SimpleNamespace(lora_name=name, lora_path=folder, lora_int_id=number,
                                 adapter_id=number, weights=weights + config)


class EngineCase(unittest.TestCase):
    def setUp(self):
        signal.alarm(CASE_S)  # a hang ends with a trace of where
        self.agent = Agent(KVTIERD, host_bytes="64MiB")
        self.addCleanup(self.agent.close)

    def rig(self, **settings):
        extra = {"max_pinned_share": 1.0, **settings.pop("extra", {})}
        rig = Rig(MODEL, self.agent.socket, extra=extra, **settings)
        self.addCleanup(rig.close)
        return rig

    def cold(self, tokens=TOKENS, **settings):
        """Another engine computes tokens and stores them."""
        rig = self.rig(**settings)
        rig.add(tokens, max_tokens=1)
        rig.run()
        self.assertEqual(rig.leaks(), 0)
        return rig


class LayoutsTest(EngineCase):
    def check(self, name, **settings):
        with self.subTest(layout=name, **settings):
            self.cold(layout=name, **settings)
            rig = self.rig(layout=name, **settings)
            rig.add(TOKENS[:80])
            rig.run()
            rig.add(TOKENS)
            before = rig.n_computed
            rig.run()
            self.assertEqual(rig.n_computed - before, 4)  # one of the prompt, and three new ones
            self.assertEqual(rig.stats["loaded_tokens"], rig.stats["hit_tokens"])
            self.assertEqual(rig.leaks(), 0)

    def test_every_layout(self):
        for name in LAYOUTS:
            self.check(name)

    @unittest.skipUnless(HYBRID, "one KV group only in this release")
    def test_every_layout_with_two_groups_over_the_same_bytes(self):
        for name in LAYOUTS:
            self.check(name, window=64, max_len=600)

    @unittest.skipUnless(KVCacheLayout, "in this release a backend makes this shape")
    def test_every_layout_of_mla(self):
        for name in LAYOUTS:
            self.check(name, mla=True)

    def test_chunks_of_several_blocks_and_a_local_prefix_inside_of_one(self):
        for name in LAYOUTS:
            with self.subTest(layout=name):
                self.cold(layout=name, extra={"chunk_tokens": 64})
                rig = self.rig(layout=name, extra={"chunk_tokens": 64})
                rig.add(TOKENS[:80] + [3] * 20, max_tokens=1)  # 64 loaded, 80 then local
                rig.run()
                rig.add(TOKENS, max_tokens=1)
                rig.run()
                self.assertEqual(rig.stats["loaded_tokens"], 64 + 240)
                self.assertEqual(rig.leaks(), 0)

    @unittest.skipUnless(KVCacheLayout, "the layout has no name in this release")
    def test_another_layout_shares_nothing(self):
        self.cold(layout="LBHNC")
        rig = self.cold(layout="BLHNC")
        self.assertNotIn("hit_tokens", rig.stats)

    def test_unknown_layouts_are_refused(self):
        rig = self.rig()
        group = rig.kvc.kv_cache_groups[0]
        name = group.layer_names[0]
        for change in (lambda t: t[:, :, :, :-1], lambda t: t[:-1], lambda t: t.expand(2, *t.shape),
                       lambda t: t[:1].expand(t.shape)):
            half = rig.worker._half
            with self.assertRaises(layout.LayoutError) as caught:
                worker.WorkerHalf.register_kv_caches(half, {**rig.kv, name: change(rig.kv[name])})
            self.assertIn(name, str(caught.exception))


class GpuTest(EngineCase):
    """KV in the memory of a GPU: a real one, or a stand-in for the driver; see fake_gpu.py."""

    def setUp(self):
        super().setUp()
        if GPU is not None:
            self.gpu = GPU
            return
        self.gpu = FakeGpu(self.agent.folder)
        for owner, name, made in (
                (compat, "byte_buffer", self.gpu.byte_buffer),
                (compat, "current_stream", lambda device: 0),
                (port.Port, "cuda_attach", lambda half, device: half._client.cuda_attach(
                    device, library=self.gpu.library))):
            self.addCleanup(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, made)

    def test_cold_and_warm_in_every_layout(self):
        for name in LAYOUTS:
            for chunk in (16, 64):
                with self.subTest(layout=name, chunk=chunk):
                    extra = {"chunk_tokens": chunk}
                    self.cold(layout=name, gpu=self.gpu, extra=extra)
                    rig = self.rig(layout=name, gpu=self.gpu, extra=extra)
                    rig.add(TOKENS[:80] + [3] * 20, max_tokens=1)
                    rig.run()
                    rig.add(TOKENS, max_tokens=1)
                    rig.run()
                    moved = rig.worker._half._port._client.cuda_stats()
                    self.assertGreater(moved["engine_bytes"] + moved["kernel_bytes"], 0)
                    self.assertEqual(rig.stats["loaded_tokens"], rig.stats["hit_tokens"])
                    self.assertGreaterEqual(rig.stats["loaded_tokens"], 64 + 240)
                    self.assertEqual(rig.leaks(), 0)

    def test_agent_gone_between_lookup_and_load(self):
        self.cold(gpu=self.gpu)
        rig = self.rig(gpu=self.gpu)
        rig.tick = lambda r: self.agent.kill() if r.scheduler.connector._half._loading else None
        rig.add(TOKENS, max_tokens=2)
        rig.run()
        self.assertEqual(rig.stats["failed_loads"], 1)
        self.assertEqual(rig.leaks(), 0)

    @unittest.skipIf(GPU, "a real driver does not refuse on demand")
    def test_cuda_refuses_a_call(self):
        """Of a store or a load: it is as if there were no agent for that one."""
        fail = self.gpu.driver.fake_fail
        for call in (b"cuEventRecord", b"cuMemcpyBatchAsync_v2", b"cuEventSynchronize"):
            with self.subTest(call=call):
                rig = self.rig(gpu=self.gpu, extra={"tenant": call.decode()})
                fail(call, 0, 700)
                rig.add(TOKENS, max_tokens=1)
                rig.run()
                self.assertEqual(rig.leaks(), 0)
                self.assertGreater(rig.stats["unstored_chunks"], 0)


class FailuresTest(EngineCase):
    def test_agent_gone_between_lookup_and_load(self):
        self.cold()
        rig = self.rig()
        rig.tick = lambda r: self.agent.kill() if r.scheduler.connector._half._loading else None
        rig.add(TOKENS, max_tokens=2)
        rig.run()
        self.assertEqual(rig.stats["failed_loads"], 1)
        self.assertEqual(rig.leaks(), 0)
        self.agent.start()

    def test_no_agent_at_all(self):
        self.agent.kill()
        rig = self.rig()
        rig.add(TOKENS)
        rig.run(limit_s=5)
        self.assertEqual(rig.leaks(), 0)
        self.assertNotIn("stored_chunks", rig.stats)

    def test_a_stopped_agent_costs_the_time_out_and_then_nothing(self):
        rig = self.rig(extra={"lookup_timeout_ms": 50, "max_pinned_share": 0.25})
        rig.add(TOKENS)
        rig.run()
        self.agent.pause()
        rig.scheduler.kv_cache_manager.reset_prefix_cache()
        began = time.monotonic()
        for i in range(8):
            rig.add(TOKENS[i:], max_tokens=1)
            while rig.scheduler.has_unfinished_requests():
                rig.step()
        self.assertLess(time.monotonic() - began, 2)
        self.assertGreater(rig.stats["lookup_timeouts"], 0)
        self.agent.resume()
        rig.run()
        self.assertEqual(rig.leaks(), 0)

    def test_a_late_lookup_holds_no_lease(self):
        self.cold()
        rig = self.rig(extra={"lookup_timeout_ms": 50, "lease_ms": 60_000})
        self.agent.pause()
        rig.add(TOKENS, max_tokens=1)
        rig.run()
        self.assertEqual(rig.stats["lookup_timeouts"], 1)
        self.agent.resume()
        self.assertNotIn("hit_tokens", rig.stats)
        self.agent.until(leases=0)

    def test_a_lost_completion_ends_by_the_deadline(self):
        self.cold()
        worker.LATE_NS, before = 50_000_000, worker.LATE_NS
        self.addCleanup(setattr, worker, "LATE_NS", before)
        rig = self.rig(extra={"load_timeout_ms": 100, "save_timeout_ms": 100})
        port = rig.worker._half._port
        poll, port.poll = port.poll, lambda: []
        rig.add(TOKENS, max_tokens=2)
        rig.run(limit_s=10)
        self.assertEqual(rig.stats["load_timeouts"], 1)
        self.assertGreaterEqual(rig.stats["save_timeouts"], 0)
        self.assertEqual(rig.leaks(), 0)
        port.poll = poll  # what was canceled takes a place of the queue until it is handed out
        rig.worker._half.take_results(set())
        self.assertEqual(poll(), [])

    def test_a_completion_that_comes_twice_is_reported_once(self):
        self.cold()
        rig = self.rig()
        port = rig.worker._half._port
        port.poll = (lambda poll: lambda: [op for op in poll() for _ in range(2)])(port.poll)
        rig.add(TOKENS)
        rig.run()
        self.assertEqual(rig.stats["loaded_tokens"], 320)
        self.assertEqual(rig.leaks(), 0)

    def test_abort_while_loading(self):
        self.cold()
        rig = self.rig()
        port = rig.worker._half._port
        poll, port.poll = port.poll, lambda: []
        rid = rig.add(TOKENS)
        for _ in range(1000):
            rig.step()
            if rig.scheduler.connector._half._loading:
                break
        rig.abort(rid)
        port.poll = poll
        rig.run()
        self.assertEqual(rig.leaks(), 0)
        rig.add(TOKENS)
        rig.run()

    def test_whatever_the_library_refuses_ends_no_engine(self):
        self.cold()
        rig = self.rig()
        for name in ("submit_lookup", "submit_load", "submit_store"):
            with mock.patch.object(kvtier.Client, name, side_effect=kvtier.InvalidError("why")), \
                    self.assertLogs(compat.log, "ERROR"):
                rig.add(TOKENS + family(name, 16), max_tokens=1)
                rig.run()
            rig.scheduler.kv_cache_manager.reset_prefix_cache()
            for half in (rig.scheduler.connector._half, rig.worker._half):
                half._port._said_ns = -port.LOG_NS
        self.assertEqual(rig.leaks(), 0)
        self.assertEqual(rig.stats["failed_loads"], 1)

    def test_another_connector_loads_in_a_step_and_fails(self):
        """As under MultiConnector: nothing that stands on its garbage is stored."""
        rig = self.rig()
        rig.wrong_hits = True
        connector, bad = rig.scheduler.connector, []
        ask, commit = connector.get_num_new_matched_tokens, connector.update_state_after_alloc

        def asked(request, local):
            mine = ask(request, local)[0]
            return (None, False) if mine is None else (0 if bad else 160, False)

        def committed(request, blocks, n):
            bad.extend(blocks.get_block_ids()[0][:n // 16])
            commit(request, blocks, 0)

        def failed():
            taken, bad[:] = set(bad) - {-1}, [-1] if bad else []
            return taken

        connector.get_num_new_matched_tokens = asked
        connector.update_state_after_alloc = committed
        rig.worker.get_block_ids_with_load_errors = failed
        rig.add(TOKENS, max_tokens=4)
        rig.run()
        self.assertEqual(rig.leaks(), 0)
        self.assertEqual(rig.stats["stored_chunks"], 20)
        self.cold()

    def test_policy_fail(self):
        self.cold()
        rig = self.rig(policy="fail")
        rig.tick = lambda r: self.agent.kill() if r.scheduler.connector._half._loading else None
        rig.add(TOKENS)
        rig.run()
        self.assertEqual(rig.leaks(), 0)

    def test_a_full_queue_of_the_library(self):
        rig = self.rig()
        half = rig.worker._half
        half._port.store = half._port.load = lambda *a: None
        rig.add(TOKENS)
        rig.run()
        self.assertEqual(rig.stats["unstored_chunks"], 20)
        self.assertEqual(rig.leaks(), 0)


class SavesTest(EngineCase):
    def test_a_chunk_is_saved_in_the_step_that_completes_it(self):
        """Of requests of all lengths that take turns: the budget is smaller than their number."""
        for chunk, window in ((16, 0), (64, 0), *(((16, 64),) if HYBRID else ())):
            with self.subTest(chunk=chunk, window=window):
                rig = self.rig(window=window, blocks=128, extra={"chunk_tokens": chunk})
                rig.scheduler.max_num_scheduled_tokens = 5
                for i in range(8):
                    rig.add(family(i, 7 * i + 6), max_tokens=60 + 11 * i)
                states, skipped = rig.scheduler.connector._half._requests, 0
                while rig.busy():
                    scheduled = rig.step().num_scheduled_tokens
                    skipped += len(states) - len(scheduled)
                    for rid in set(states) & set(scheduled):
                        saved = rig.requests[rid].num_computed_tokens // chunk
                        self.assertEqual(states[rid].next_save, [saved] * (1 + bool(window)))
                self.assertGreater(skipped, 100)
                self.assertNotIn("dropped_chunks", rig.stats)
                self.assertEqual(rig.leaks(), 0)

    def test_a_request_that_was_left_out_comes_back(self):
        rig = self.rig(block=64)
        rig.add(family(0, 5), max_tokens=20)
        rig.step()  # the workers describe their memory
        rid = rig.add(family(1, 60), max_tokens=20)
        state = rig.scheduler.connector._half._requests[rid]
        for budget, n in ((256, 1), (1, 2), (256, 4)):
            rig.scheduler.max_num_scheduled_tokens = budget
            for _ in range(n):
                self.assertEqual(state.next_save, [0])
                rig.step()
        self.assertEqual(rig.requests[rid].num_computed_tokens, 64)
        self.assertEqual(state.next_save, [1])
        rig.run()

    def test_steps_that_complete_nothing_say_so_at_once(self):
        rig = self.rig(extra={"chunk_tokens": 128})
        half = rig.scheduler.connector._half
        looks, half._add_saves = [], mock.Mock(wraps=half._add_saves)
        for i in range(4):
            rig.add(family(i, 20), max_tokens=100)
        while rig.busy():
            rig.step()
            looks.append(half._add_saves.call_count)
        # With a prompt, with a block, the step after it, with a chunk, at an end: not with a token.
        self.assertLess(looks[-1], 30)
        self.assertGreater(len(looks), 90)


class EventsTest(EngineCase):
    def stored(self, rig, tokens):
        """What routers are told of the tier while tokens are computed."""
        batches = []
        rig.scheduler.kv_event_publisher.publish = batches.append
        rid = rig.add(tokens, max_tokens=1)
        request = rig.requests[rid]
        rig.run()
        return request, [event for batch in batches for event in batch.events
                         if getattr(event, "medium", None) == "KVTIER"]

    def test_what_is_held_is_told(self):
        rig = self.rig(events=True, budget=128, extra={"chunk_tokens": 32})
        request, events = self.stored(rig, TOKENS)
        hashes = [compat.event_hash(h) for h in request.block_hashes]
        self.assertEqual(len({e.block_hashes[0] for e in events}), len(events))
        events.sort(key=lambda e: hashes.index(e.block_hashes[0]))  # stores end in any order
        self.assertEqual([h for event in events for h in event.block_hashes], hashes)
        before = None
        for event in events:
            self.assertEqual((event.parent_block_hash, event.block_size, event.group_idx),
                             (before, 16, 0))
            before = event.block_hashes[-1]
        rig.scheduler.kv_cache_manager.reset_prefix_cache()
        self.assertEqual(self.stored(rig, TOKENS)[1], [])  # loaded: told already
        self.agent.kill()
        self.assertEqual(self.stored(rig, family(1, 160))[1], [])  # nobody holds it

    def test_nobody_asks(self):
        rig = self.rig()
        self.assertEqual(self.stored(rig, TOKENS)[1], [])


def drive(case, rig, source):
    """A random schedule to its end: prompts that share beginnings, aborts, and in every second one
    an agent that is killed, stopped and continued. @return counts of what was done."""
    faults, paused, did = source.random() < 0.5, False, collections.Counter()
    left, live, end = source.randrange(5, 25), [], time.monotonic() + 60
    try:
        while left or rig.busy():
            case.assertLess(time.monotonic(), end, "no end")
            if left and source.random() < 0.3:
                left -= 1
                tokens = family(source.randrange(4), source.randrange(1, 200))
                live.append(rig.add(tokens + family(source.random(), source.randrange(1, 60)),
                                    max_tokens=source.randrange(1, 50),
                                    salt=source.choice((None, None, "s"))))
            if live and source.random() < 0.02:
                rid = source.choice(live)
                if rid in rig.scheduler.requests and not rig.scheduler.requests[rid].is_finished():
                    rig.abort(rid)
                    did["aborts"] += 1
            if faults and source.random() < 0.005:
                did["kills"] += 1
                case.agent.kill()
                case.agent.start()
                paused = False
            if faults and source.random() < 0.02:
                (case.agent.resume if paused else case.agent.pause)()
                paused = not paused
            if not left and paused:
                case.agent.resume()
                paused = False
            if not rig.step().num_scheduled_tokens:
                time.sleep(0.0002)
        return did
    finally:
        if paused:
            case.agent.resume()


class RandomTest(EngineCase):
    def test_random_schedules(self):
        self.agent = Agent(KVTIERD, host_bytes="64MiB", nvme_bytes="128MiB")
        self.addCleanup(self.agent.close)
        first, n = int(os.environ.get("KVT_SEED", "1")), int(os.environ.get("KVT_SCHEDULES", "40"))
        signal.alarm(SCHEDULE_S * n)
        end = time.monotonic() + float(os.environ.get("KVT_SECONDS", "inf"))
        for seed in range(first, first + n):
            if time.monotonic() < end:
                with self.subTest(seed=seed):
                    self.schedule(random.Random(seed))
                    self.did["schedules"] += 1
        print(f"\nrandom schedules from KVT_SEED={first}: {dict(self.did)}", file=sys.stderr)

    did = collections.Counter()

    def schedule(self, source):
        window = source.choice((0, 0, 64)) if HYBRID else 0
        worker.LATE_NS = 50_000_000
        # Half of them without vLLM's own cache, which is refused otherwise: more is loaded.
        with mock.patch.object(compat, "check_prefix"):
            rig = Rig(MODEL, self.agent.socket, layout=source.choice(LAYOUTS), gpu=GPU,
                      blocks=(window and 24) + source.choice((30, 40, 64)), window=window,
                      caching=source.random() < 0.5, max_len=320, block=16,
                      budget=source.choice((48, 128, 256)), seqs=source.choice((3, 8)),
                      extra={"chunk_tokens": source.choice((16, 32)),
                             "max_pinned_share": source.choice((0.2, 1.0)),
                             "tenant": f"{source.randrange(2)}", "load_timeout_ms": 300,
                             "lookup_timeout_ms": source.choice((5, 100)), "save_timeout_ms": 300})
        if source.random() < 0.5:
            port = rig.worker._half._port
            port.poll = self.lossy(port.poll, source)
        try:
            self.did += drive(self, rig, source)
            self.assertEqual(rig.leaks(), 0)
            half = rig.scheduler.connector._half
            self.assertFalse(half._requests or half._pins or half._loading or half._n_pinned)
            half = rig.worker._half
            self.assertFalse(half._loads or half._saves)
            self.did["requests"] += len(rig.requests)
            self.did["preemptions"] += sum(r.num_preemptions for r in rig.requests.values())
            for name in ("loaded_tokens", "failed_loads", "lookup_timeouts", "load_timeouts",
                         "stored_chunks", "unstored_chunks"):
                self.did[name] += rig.stats.get(name, 0)
        finally:
            rig.close()

    def lossy(self, poll, source):
        """Some reports of the library never come, some come twice."""
        def polled():
            out = []
            for op in poll():
                n = source.choice((0, 2) + 30 * (1,))
                self.did["lost reports" if n == 0 else "reports" if n == 1 else "doubled"] += 1
                out += n * [op]
            return out
        return polled


def main():
    global KVTIERD, MODEL
    KVTIERD, MODEL = sys.argv[1:3]
    faulthandler.register(signal.SIGALRM, chain=True)
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])


if __name__ == "__main__":
    main()
