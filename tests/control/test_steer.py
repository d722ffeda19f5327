# SPDX-License-Identifier: Apache-2.0
"""What the control API does: pins and jobs, each compared with what the data path then has."""

import os
import time

import grpc
import numpy as np

import fixture
from rig import CHUNK, ENDED, WAIT_S, TestCase, key, keys, pb, until

HOST, NVME = pb.TIER_HOST, pb.TIER_NVME


class Pins(TestCase):
    sets = {"host__bytes": "16MiB", "host__slab_bytes": "4MiB"}

    def pins(self, **fields):
        return self.pages("ListPins", "pins", **fields)[0]

    def test_pinned_chunks_outlive_a_flood(self):
        client, ns, space = self.fill(64)
        answer = self.call("Pin", chain=self.chain(space, range(40)), owner="prompt \"ü\"",
                           ttl_ms=60000)
        pin = answer.pin
        self.assertEqual((answer.n_keys, answer.n_found, pin.owner, pin.namespace_id, pin.last_key,
                          pin.n_chunks, pin.n_lost, pin.bytes, pin.expires),
                         (40, 40, "prompt \"ü\"", space.id, key(39), 40, 0, 40 * CHUNK, True))
        self.assertTrue(50000 < pin.expires_in_ms <= 60000 and pin.age_ms < 5000)
        self.assertIn(f'pinned pin={pin.id} owner="prompt \\"ü\\"" chunks=40', self.log_text())
        other = client.namespace(fixture.namespace(model="flood"))
        for first in range(0, 1000, 100):  # four times the host tier
            numbers = range(first, first + 100)
            client.store(other, keys(numbers), [fixture.pattern(n) for n in numbers], timeout=5)
        self.assertLessEqual(set(range(40)),
                             self.listed(tiers=[HOST], namespace_id=space.id, pinned=True))
        self.assertTrue(self.listed(tiers=[HOST], namespace_id=space.id) < set(range(64)))
        self.load(client, ns, range(40))
        self.assertEqual(self.stats()["admin_pins"], 1)
        tier = self.call("ListTiers").tiers[0]
        self.assertGreaterEqual(tier.pinned_bytes, CHUNK)

    def test_pins_end(self):
        _, _, space = self.fill(20, nvme=False)
        chain = self.chain(space, range(20))

        def pin(owner, n=20, **fields):
            return self.call("Pin", chain=self.chain(space, range(n)), owner=owner, **fields).pin

        short = pin("a", ttl_ms=1000)
        mine = [pin("me", n) for n in (1, 5, 9)]
        yours = [pin("you"), pin("you")]
        self.assertEqual(len({p.id for p in [short, *mine, *yours]}), 6)
        self.assertFalse(mine[0].expires)
        self.assertEqual({p.id for p in self.pins(owner="me", page_size=1)}, {p.id for p in mine})
        self.assertEqual(len(self.pins(page_size=1)), 6)
        until(lambda: short.id not in {p.id for p in self.pins()}, "a pin to run out")
        self.refused("NOT_FOUND", f"pin {short.id}: is none, or has ended; see ListPins",
                     "Unpin", id=short.id)
        self.assertEqual(self.call("Unpin", id=mine[0].id).n_unpinned, 1)
        self.refused("NOT_FOUND", "see ListPins", "Unpin", id=mine[0].id)
        self.refused("NOT_FOUND", "see ListPins", "Unpin", id=0)
        self.assertEqual(self.call("Unpin", owner="me").n_unpinned, 2)
        self.assertEqual(self.call("Unpin", owner="me").n_unpinned, 0)
        self.assertEqual(self.call("Unpin", chain=self.chain(space, [3])).n_unpinned, 0)
        self.assertEqual(self.call("Unpin", chain=chain).n_unpinned, 2)
        self.assertEqual((self.pins(), self.listed(pinned=True)), ([], set()))

    def test_a_part_is_held_or_nothing(self):
        _, _, space = self.fill(10, nvme=False)
        answer = self.call("Pin", chain=self.chain(space, [2, 3, 100, 101]), owner="me")
        self.assertEqual((answer.n_keys, answer.n_found, answer.pin.n_chunks, answer.pin.last_key),
                         (4, 2, 4, key(3)))  # with what stands before them
        self.assertEqual(self.listed(pinned=True), {0, 1, 2, 3})
        self.refused("NOT_FOUND", "pin: none of the 2 chunks is held", "Pin", owner="me",
                     chain=self.chain(space, [100, 101]))

    def test_what_is_refused(self):
        _, _, space = self.fill(200)
        chain = self.chain(space, range(200))
        for owner in ("", "x" * 64, "a\nb", "\x7f", "\x1b[31m"):
            self.refused("INVALID_ARGUMENT", "owner: must be 1 to 63 bytes of UTF-8 without control",
                         "Pin", chain=chain, owner=owner)
        self.refused("INVALID_ARGUMENT", "owner: must be", "Unpin", owner="")
        self.refused("INVALID_ARGUMENT", "by: names no pins; set id, owner or chain", "Unpin")
        for ttl_ms in (366 * 86400 * 1000 + 1, (1 << 64) - 1):
            self.refused("INVALID_ARGUMENT", "ttl_ms: .* is more than 366 days; 0 pins until Unpin",
                         "Pin", chain=chain, owner="me", ttl_ms=ttl_ms)
        self.call("Pin", chain=self.chain(space, range(5)), owner="x" * 63,
                  ttl_ms=366 * 86400 * 1000)
        self.refused("RESOURCE_EXHAUSTED", r"pin: all pins together would hold more than 8388608 byt"
                     "es .half of host memory.*unpin some, or raise host.bytes", "Pin",
                     chain=chain, owner="me")
        self.assertEqual(len(self.pins()), 1)

    def test_the_table_has_an_end(self):
        _, _, space = self.fill(1, nvme=False)
        chain = self.chain(space, [0])
        calls = [self.api.Pin.future(pb.PinRequest(chain=chain, owner="me")) for _ in range(1100)]
        codes = [call.code() for call in calls]
        self.assertEqual(codes.count(grpc.StatusCode.OK), 1024)
        self.assertEqual(codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED), 76)
        self.refused("RESOURCE_EXHAUSTED", "pin: all 1024 pins are in use; unpin some", "Pin",
                     chain=chain, owner="me")
        self.assertEqual(len(self.pins(page_size=100)), 1024)
        self.assertEqual(self.call("Unpin", owner="me").n_unpinned, 1024)
        self.call("Pin", chain=chain, owner="me")

    def test_jobs_mind_pins(self):
        client, ns, space = self.fill(30)
        self.call("Pin", chain=self.chain(space, range(10)), owner="me")
        selection = {"chain": self.chain(space, range(30))}
        job = self.done(self.call("Demote", selection=selection))
        self.assertEqual((job.n_matched, job.n_changed, job.n_skipped), (30, 20, 10))
        self.assertEqual(self.listed(tiers=[HOST]), set(range(10)))
        job = self.done(self.call("Delete", selection=selection))
        self.assertEqual((job.n_matched, job.n_changed, job.n_skipped), (30, 20, 10))
        self.assertEqual(self.held(client, ns, range(30)), set(range(10)))
        job = self.done(self.call("Delete", selection=selection, force=True))
        self.assertEqual((job.n_changed, job.n_skipped), (10, 0))
        self.assertEqual(self.held(client, ns, range(30)), set())
        self.assertEqual(self.pins()[0].n_lost, 10)


class Jobs(TestCase):
    sets = {"host__bytes": "32MiB"}

    def check_tiers(self, host, nvme):
        self.assertEqual((self.listed(tiers=[HOST]), self.listed(tiers=[NVME])),
                         (set(host), set(nvme)))

    def test_demote_and_prefetch(self):
        client, ns, space = self.fill(100)
        whole = {"chain": self.chain(space, range(100))}
        job = self.done(self.call("Demote", selection=whole, dry_run=True))
        self.assertEqual((job.type, job.dry_run, job.n_matched, job.n_changed, job.bytes,
                          job.namespace_id),
                         (pb.Job.TYPE_DEMOTE, True, 100, 0, 100 * CHUNK, space.id))
        self.check_tiers(range(100), range(100))
        job = self.done(self.call("Demote", selection=whole))
        self.assertEqual((job.n_total, job.n_looked, job.n_matched, job.n_changed, job.n_skipped,
                          job.bytes), (100, 100, 100, 100, 0, 100 * CHUNK))
        self.check_tiers([], range(100))
        some = {"filter": {"namespace_id": space.id, "key_prefix": b"\x10"}}
        self.assertEqual(self.done(self.call("Prefetch", selection=some)).n_changed, 1)
        self.check_tiers([16], range(100))
        job = self.done(self.call("Prefetch", selection=whole))
        self.assertEqual((job.type, job.n_changed, job.n_skipped, job.n_bad),
                         (pb.Job.TYPE_PREFETCH, 99, 0, 0))
        self.check_tiers(range(100), range(100))
        self.load(client, ns, range(100))

    def test_demote_writes_what_nvme_has_not(self):
        self.agent.kill()
        self.agent.sets["nvme.admission"] = "none"
        self.agent.start()
        self.api = self.stub()
        client, ns, space = self.fill(50, nvme=False)
        self.check_tiers(range(50), [])
        job = self.done(self.call("Demote", selection={"chain": self.chain(space, range(50))}))
        self.assertEqual((job.n_changed, job.n_skipped), (50, 0))
        self.check_tiers([], range(50))
        self.load(client, ns, range(50))

    def test_delete_by_keys(self):
        client, ns, space = self.fill(60)
        part = {"chain": self.chain(space, range(50, 60))}
        job = self.done(self.call("Delete", selection=part, dry_run=True))
        self.assertEqual((job.n_matched, job.n_changed, job.bytes), (10, 0, 10 * CHUNK))
        self.assertEqual(self.held(client, ns, range(60)), set(range(60)))
        job = self.call("Delete", selection=part)
        self.assertEqual(self.held(client, ns, range(60)), set(range(50)))  # when it answers
        job = self.done(job)
        self.assertEqual((job.type, job.n_changed, job.bytes),
                         (pb.Job.TYPE_DELETE, 10, 10 * CHUNK))
        job = self.done(self.call("Delete", selection={**part}))
        self.assertEqual((job.n_matched, job.n_changed), (0, 0))
        # A chunk without what stands before it is not found from the start of the prompt.
        self.done(self.call("Delete", selection={"chain": self.chain(space, [20])}))
        self.assertEqual(client.lookup(ns, keys(range(60))).n_ok, 20)
        self.assertEqual(self.held(client, ns, range(60)), set(range(50)) - {20})
        job = self.done(self.call("Delete", selection={"chain": self.chain(space, [30]),
                                                       "subtree": True}))
        self.assertEqual(job.n_changed, 20)
        self.assertEqual(self.held(client, ns, range(60)), set(range(30)) - {20})
        self.restart_without(client, set(range(30)) - {20})

    def restart_without(self, client, left):
        """What was deleted does not come back."""
        client.close()
        self.agent.signal(15)
        self.assertEqual(self.agent.process.wait(WAIT_S), 0)
        self.agent.start()
        self.api = self.stub()
        self.assertEqual(self.listed(), left)
        client = self.client()
        ns = client.namespace(fixture.namespace())
        self.assertEqual(self.held(client, ns, range(100)), left)
        if left:
            self.load(client, ns, sorted(left))

    def test_delete_from_one_tier(self):
        client, ns, space = self.fill(20)

        def delete(numbers, *tiers, **fields):
            return self.done(self.call("Delete", tiers=tiers, **fields,
                                       selection={"chain": self.chain(space, numbers)}))

        self.assertEqual(delete(range(5), HOST).n_changed, 5)
        self.check_tiers(range(5, 20), range(20))
        self.assertEqual(delete(range(10, 15), NVME).n_changed, 5)
        self.check_tiers(range(5, 20), [*range(10), *range(15, 20)])
        self.load(client, ns, range(20))
        self.assertEqual(delete(range(10, 12), HOST).n_changed, 2)  # the only copy: gone
        self.assertEqual(self.held(client, ns, range(20)), set(range(20)) - {10, 11})
        for tier in (0, 3):
            self.refused("INVALID_ARGUMENT", "there is no tier", "Delete", tiers=[tier],
                         selection={"chain": self.chain(space, [1])})

    def test_clear(self):
        client, ns, space = self.fill(50)
        other = client.namespace(fixture.namespace(model="other"))
        self.store(client, other, range(100, 120))
        second = self.space("other")
        here = {"filter": {"namespace_id": space.id}}
        job = self.done(self.call("Clear", dry_run=True, **here))
        self.assertEqual((job.n_matched, job.n_changed, job.bytes, job.namespace_id),
                         (50, 0, 50 * CHUNK, space.id))
        job = self.done(self.call("Clear", filter={"namespace_id": space.id,
                                                   "key_prefix": b"\x07"}))
        self.assertEqual((job.n_changed, self.held(client, ns, range(50))),
                         (1, set(range(50)) - {7}))
        job = self.done(self.call("Clear", tiers=[HOST], **here))
        self.assertEqual(job.n_changed, 49)
        self.assertEqual(self.listed(tiers=[HOST], namespace_id=space.id), set())
        self.assertEqual(self.held(client, ns, range(50)), set(range(50)) - {7})
        self.assertEqual(self.done(self.call("Clear", **here)).n_changed, 49)
        self.assertEqual(self.held(client, ns, range(50)), set())
        self.assertEqual(self.held(client, other, range(100, 120)), set(range(100, 120)))
        job = self.done(self.call("Clear", all_namespaces=True))
        self.assertEqual((job.n_changed, job.namespace_id), (20, b""))
        self.assertEqual(self.listed(), set())
        for tier in self.call("ListTiers").tiers:
            self.assertEqual((tier.used_bytes, tier.n_chunks), (0, 0))
        self.assertEqual(self.space("other").id, second.id)
        self.restart_without(client, set())

    def test_what_names_nothing_is_refused(self):
        _, _, space = self.fill(1)
        chain = self.chain(space, [0])
        for method, text, fields in (
                ("Prefetch", "selection: names nothing; set a chain or a filter", {}),
                ("Prefetch", "selection: names nothing", {"selection": {}}),
                ("Demote", "selection: names nothing", {"selection": {}}),
                ("Delete", "selection.chain: is not set; name keys or tokens, or use Clear", {}),
                ("Delete", "selection.chain: is not set", {"selection": {"filter": {}}}),
                ("Demote", "selection.subtree: goes with a chain",
                 {"selection": {"filter": {}, "subtree": True}}),
                ("Delete", "selection.filter.namespace_id: the chain has one already",
                 {"selection": {"chain": chain, "filter": {"namespace_id": space.id}}}),
                ("Clear", "filter.namespace_id: .*; set exactly one of them", {}),
                ("Clear", "set exactly one", {"filter": {"namespace_id": space.id},
                                           "all_namespaces": True}),
                ("Clear", "set exactly one", {"filter": {"key_prefix": b"1"}}),
                ("Clear", "there is no tier", {"all_namespaces": True, "tiers": [9]}),
                ("Verify", "key_prefix: has 33", {"selection": {"filter": {
                    "key_prefix": bytes(33)}}})):
            self.refused("INVALID_ARGUMENT", text, method, **fields)
        self.refused("NOT_FOUND", "namespace 01010101", "Clear",
                     filter={"namespace_id": b"\x01" * 32})
        self.assertEqual(self.listed(), {0})
        self.assertEqual(self.pages("ListJobs", "jobs")[0], [])

    def chunk_offset(self, chunk):
        return (1 << 20) + chunk.nvme_slab * (8 << 20) + chunk.nvme_slot * CHUNK

    def test_verify_finds_what_was_damaged(self):
        client, ns, space = self.fill(80)
        job = self.done(self.call("Verify"))
        self.assertEqual((job.type, job.n_matched, job.n_changed, job.n_bad, job.bytes),
                         (pb.Job.TYPE_VERIFY, 80, 80, 0, 80 * CHUNK))
        damaged = [3, 17, 79]
        with open(os.path.join(self.folder, "store"), "r+b") as store:
            for n in damaged:
                chunk = self.call("GetChunk", key=key(n), namespace_id=space.id)
                store.seek(self.chunk_offset(chunk) + 800 * n)
                store.write(b"\xa5")
            store.flush()
            os.fsync(store.fileno())
        part = {"filter": {"namespace_id": space.id, "key_prefix": b"\x11"}}
        job = self.done(self.call("Verify", selection=part))
        self.assertEqual((job.n_matched, job.n_changed, job.n_bad), (1, 1, 1))
        job = self.done(self.call("Verify", selection={"chain": self.chain(space, range(80))}))
        self.assertEqual(job.n_bad, 2)
        self.assertEqual(self.stats()["corrupt_chunks"], 3)
        self.load(client, ns, range(80))
        # Host memory has them still, and NVMe gets them from there.
        until(lambda: self.listed(tiers=[NVME]) == set(range(80)), "them to be written again")
        self.assertEqual(self.done(self.call("Verify")).n_bad, 0)

    def test_a_damaged_chunk_is_not_prefetched(self):
        client, ns, space = self.fill(10)
        chain = {"chain": self.chain(space, range(10))}
        self.done(self.call("Demote", selection=chain))
        chunk = self.call("GetChunk", key=key(4), namespace_id=space.id)
        with open(os.path.join(self.folder, "store"), "r+b") as store:
            store.seek(self.chunk_offset(chunk))
            store.write(bytes(100))
            store.flush()
            os.fsync(store.fileno())
        job = self.done(self.call("Prefetch", selection=chain))
        self.assertEqual((job.n_changed, job.n_bad), (9, 1))
        self.assertEqual(self.held(client, ns, range(10)), set(range(10)) - {4})
        back = np.zeros((10, CHUNK), np.uint8)
        client.load(ns, keys(range(10)), back, timeout=WAIT_S)
        for n in (0, 1, 2, 3, 5, 9):
            self.assertTrue(np.array_equal(back[n], fixture.pattern(n)))


class Following(TestCase):
    """Jobs that take a while: a verify of much, from a disk that is read in small shares."""

    sets = {"nvme__read_inflight_bytes": "1MiB", "nvme__bytes": "512MiB"}

    def test_progress_cancel_and_result(self):
        self.fill(4000)
        job = self.call("Verify")
        self.assertIn(job.state, (pb.Job.STATE_PENDING, pb.Job.STATE_RUNNING))
        seen = []
        for step in self.api.WatchJob(pb.WatchJobRequest(id=job.id, interval_ms=1),
                                      timeout=WAIT_S):
            seen.append((step, time.monotonic()))
        last = seen[-1][0]
        self.assertEqual((last.state, last.n_changed, last.n_looked, last.n_bad),
                         (pb.Job.STATE_DONE, 4000, last.n_total, 0))
        self.assertTrue(0 < last.took_ms <= last.age_ms)
        self.assertEqual([s for s, _ in seen], sorted((s for s, _ in seen),
                                                      key=lambda s: (s.n_looked, s.n_changed)))
        self.assertTrue(all(s.state not in ENDED for s, _ in seen[:-1]))
        # At most every 50 ms, however soon was asked for, but the end at once.
        self.assertLessEqual(len(seen), last.took_ms / 50 + 3)
        again = list(self.api.WatchJob(pb.WatchJobRequest(id=job.id), timeout=WAIT_S))
        self.assertEqual([s.state for s in again], [pb.Job.STATE_DONE])
        self.refused("FAILED_PRECONDITION", f"job {job.id}: is over; see GetJob for how it ended",
                     "CancelJob", id=job.id)

        job = self.call("Verify")
        watch = self.api.WatchJob(pb.WatchJobRequest(id=job.id, interval_ms=60000), timeout=WAIT_S)
        self.assertNotIn(next(watch).state, ENDED)
        canceled = self.call("CancelJob", id=job.id)
        self.assertEqual(canceled.state, pb.Job.STATE_CANCELED)
        self.assertLessEqual(canceled.took_ms, canceled.age_ms)
        began = time.monotonic()
        self.assertEqual([s.state for s in watch], [pb.Job.STATE_CANCELED])
        self.assertLess(time.monotonic() - began, 5)  # and not after a minute
        done = self.call("GetJob", id=job.id)
        self.assertEqual((done.state, done.error), (pb.Job.STATE_CANCELED, ""))
        self.assertLess(done.n_changed, 4000)
        self.assertEqual([j.id for j in self.pages("ListJobs", "jobs", page_size=1)[0]], [1, 2])

    def test_none_of_that_number(self):
        for number in (0, 1, (1 << 64) - 1):
            for method in ("GetJob", "CancelJob"):
                self.refused("NOT_FOUND", f"job {number}: is none, or ended long ago; see ListJob",
                             method, id=number)
            self.refused("NOT_FOUND", "see ListJobs",
                         lambda n=number: list(self.api.WatchJob(pb.WatchJobRequest(id=n))))

    def test_a_flood_of_jobs(self):
        """More than there are places: the rest is told to come again, and all that began ends."""
        client, ns, space = self.fill(1000)
        request = pb.VerifyRequest(selection={"filter": {}})
        calls = [self.api.Verify.future(request, timeout=WAIT_S) for _ in range(500)]
        codes = [call.code() for call in calls]
        begun = [call.result() for call in calls if call.code() == grpc.StatusCode.OK]
        self.assertEqual(set(codes), {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE})
        refusal = next(c for c in calls if c.code() == grpc.StatusCode.UNAVAILABLE)
        self.assertRegex(refusal.details(), "job: 64 are open; wait for one, or cancel one")
        self.assertGreaterEqual(len(begun), 64)
        self.assertEqual(len({job.id for job in begun}), len(begun))
        for job in self.pages("ListJobs", "jobs")[0][::2]:
            try:
                self.call("CancelJob", id=job.id)
            except grpc.RpcError as err:
                self.assertEqual(err.code(), grpc.StatusCode.FAILED_PRECONDITION)
        until(lambda: all(j.state in ENDED for j in self.pages("ListJobs", "jobs")[0]),
              "the jobs to end")
        jobs = self.pages("ListJobs", "jobs")[0]
        self.assertEqual(len(jobs), 64)
        self.assertTrue(all(j.n_bad == 0 for j in jobs))
        self.assertEqual(self.held(client, ns, range(0, 1000, 50)), set(range(0, 1000, 50)))
