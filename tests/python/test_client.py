# SPDX-License-Identifier: Apache-2.0
"""kvtier.Client against a real agent."""

import array
import copy
import gc
import os
import pickle
import select
import signal
import threading
import time
import unittest
import warnings
from unittest import mock

import numpy as np

import kvtier
from fixture import CHUNK, WAIT_S, TestCase, key, keys, namespace, pattern
from kvtier import Status


class Calls(TestCase):
    def test_store_lookup_load(self):
        client = self.client()
        ns = client.namespace(namespace())
        self.assertEqual(client.namespace(namespace()), ns)
        self.assertEqual(client.lookup(ns, keys(range(8))).n_ok, 0)
        self.store(client, ns, range(8))
        found = client.lookup(ns, keys(range(12)), where=True)
        self.assertEqual((found.status, found.n_ok, found.n_items), (0, 8, 12))
        self.assertTrue(all(found.where[:8]) and not any(found.where[8:]))
        self.load(client, ns, range(8))
        again = client.store(ns, keys(range(8)), [pattern(n) for n in range(8)])
        self.assertEqual((again.n_ok, set(again.statuses)), (8, {Status.EXISTS}))
        back = np.zeros((3, CHUNK), np.uint8)
        done = client.load(ns, keys([6, 7, 8]), back)
        self.assertEqual(list(done.statuses), [0, 0, Status.MISS])
        self.assertEqual((done.n_ok, done.n_prefix, done.done), (2, 2, True))

    def test_another_namespace_has_nothing(self):
        client = self.client()
        self.store(client, client.namespace(namespace()), [1])
        for field, value in (("salt", "x"), ("tp_rank", 0), ("dtype", "bf16"), ("layout", "a")):
            extra = {"tp_size": 2} if field == "tp_rank" else {}
            other = client.namespace(namespace(**{field: value}, **extra))
            self.assertEqual(client.lookup(other, key(1)).n_ok, 0, field)

    def test_parent_and_prefetch(self):
        client = self.client()
        ns = client.namespace(namespace())
        self.store(client, ns, [0])
        done = client.store(ns, keys([1, 2]), [pattern(1), pattern(2)], parent=key(0))
        self.assertEqual((done.n_items, list(done.statuses)), (2, [0, 0]))
        done = client.prefetch(ns, keys([1, 2, 3]), parent=key(0))
        self.assertEqual(list(done.statuses), [0, 0, Status.MISS])
        self.load(client, ns, [0, 1, 2])

    def test_lease(self):
        client = self.client()
        ns = client.namespace(namespace())
        self.store(client, ns, range(4))
        found = client.lookup(ns, keys(range(4)), lease_ms=60000)
        self.assertGreater(found.lease, 0)
        self.assertGreater(found.lease_deadline_ns, time.monotonic_ns() + 30 * 10**9)
        self.assertEqual(client.stats()["leases"], 1)
        self.assertTrue(client.release(found.lease, WAIT_S))
        self.assertEqual(client.stats()["leases"], 0)
        self.assertTrue(client.ping())

    def test_kinds_of_keys(self):
        client = self.client()
        ns = client.namespace(namespace())
        self.store(client, ns, range(3))
        raw = keys(range(3))
        for given in (raw, bytearray(raw), memoryview(raw), np.frombuffer(raw, np.uint8),
                      np.frombuffer(raw, np.uint8).reshape(3, 32), [key(n) for n in range(3)],
                      array.array("Q", np.frombuffer(raw, np.uint64))):
            self.assertEqual(client.lookup(ns, given).n_ok, 3, type(given))
        for given in (b"", raw[:-1], [b"short"], bytes(32 * 1025), memoryview(raw)[::2], "text"):
            with self.assertRaises((kvtier.InvalidError, TypeError), msg=type(given)):
                client.lookup(ns, given)

    def test_errors_name_their_cause(self):
        client = self.client()
        for bad, word in (({"model": ""}, "model"), ({"n_segments": 7}, "n_segments"),
                          ({"dtype": "x" * 16}, "too long"), ({"salt": "a\0b"}, "salt"),
                          ({"tp_rank": -1}, "tp_rank")):
            with self.assertRaisesRegex(kvtier.InvalidError, word):
                client.namespace(namespace(**bad))
        ns = client.namespace(namespace())
        with self.assertRaisesRegex(kvtier.InvalidError, "chunk_bytes"):
            client.store(ns, key(1), [b"few"])
        with self.assertRaisesRegex(kvtier.InvalidError, "2 chunks"):
            client.store(ns, key(1), [pattern(1), pattern(2)])
        with self.assertRaisesRegex(kvtier.InvalidError, "read only"):
            client.load(ns, key(1), [bytes(CHUNK)])
        with self.assertRaisesRegex(kvtier.InvalidError, "share"):
            shared = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (CHUNK,), (0,))
            client.load(ns, key(1), [shared])
        for memory, word in (([None], "NoneType.*buffer protocol"), ([[1, 2]], "list"),
                             ([np.array([None])], "Python objects"),
                             (bytearray(CHUNK), "one for each chunk"),
                             (np.zeros(CHUNK, np.uint8), "one for each chunk")):
            with self.assertRaisesRegex(kvtier.InvalidError, word):
                client.store(ns, key(1), memory)
        with self.assertRaisesRegex(kvtier.InvalidError, "namespace"):
            client.lookup(ns + 1, key(1))
        with self.assertRaisesRegex(kvtier.InvalidError, "int32"):
            client.load(ns, key(1), [np.zeros(CHUNK, np.uint8)], statuses=np.zeros(1, np.int64))
        self.assertIsInstance(kvtier.InvalidError("x"), ValueError)

    def test_pickling(self):
        client = self.client()
        for spoil in (pickle.dumps, copy.copy, copy.deepcopy):
            with self.assertRaisesRegex(TypeError, "open one where it is needed"):
                spoil(client)
        for err in (kvtier.InvalidError("keys: none"), kvtier.UnreachableError("gone"),
                    kvtier.KVTierError("cuda", Status.NOTSUP)):
            back = pickle.loads(pickle.dumps(err))
            self.assertEqual((type(back), str(back), back.status), (type(err), str(err),
                                                                    err.status))
        ns = namespace(salt="x")
        self.assertEqual(pickle.loads(pickle.dumps(ns)), ns)

    def test_given_statuses(self):
        client = self.client()
        ns = client.namespace(namespace())
        self.store(client, ns, [0, 1])
        mine = np.full(4, 99, np.int32)
        back = np.zeros((3, CHUNK), np.uint8)
        done = client.load(ns, keys([0, 1, 2]), back, statuses=mine)
        self.assertIs(done.statuses, mine)
        self.assertEqual(list(mine), [0, 0, Status.MISS, 99])


class Memory(TestCase):
    """Where chunks may be."""

    def round_trip(self, source, target, count=1):
        """What was stored from source is loaded into target; both as given to Client."""
        client = self.client()
        ns = client.namespace(namespace())
        self.assertEqual(client.store(ns, keys(range(count)), source).n_ok, count)
        self.assertEqual(client.load(ns, keys(range(count)), target).n_ok, count)

    def test_buffer_protocol(self):
        back = bytearray(CHUNK)
        self.round_trip([pattern(0).tobytes()], [back])
        self.assertEqual(bytes(back), pattern(0).tobytes())

    def test_array_module_and_memoryview(self):
        back = array.array("d", bytes(CHUNK))
        self.round_trip([memoryview(pattern(0))], [back])
        self.assertEqual(back.tobytes(), pattern(0).tobytes())

    def test_strides_of_every_kind(self):
        rng = np.random.default_rng(5)
        for shape in ((CHUNK,), (4, CHUNK // 4), (2, 8, CHUNK // 16), (4, 2, 8, CHUNK // 64),
                      (2, 2, 2, 2, CHUNK // 16)):
            for trial in range(6):
                views = []
                for _ in range(2):  # a view whose axes are in another order, with gaps between
                    order = rng.permutation(len(shape))
                    whole = np.zeros([shape[i] + int(rng.integers(0, 3)) for i in order], np.uint8)
                    part = whole[tuple(slice(0, shape[i]) for i in order)]
                    views.append(part.transpose(np.argsort(order)))
                source, target = views
                source[...] = pattern(trial).reshape(shape)
                client = self.client()
                ns = client.namespace(namespace(layout=f"{shape}{trial}"))
                self.assertEqual(client.store(ns, key(0), [source]).n_ok, 1)
                self.assertEqual(client.load(ns, key(0), [target]).n_ok, 1)
                self.assertTrue(np.array_equal(source, target), (shape, trial))
                client.close()

    def test_negative_strides(self):
        back = np.zeros(CHUNK, np.uint8)
        source = pattern(0).reshape(16, -1)
        self.round_trip([source[::-1]], [back])
        self.assertTrue(np.array_equal(back.reshape(16, -1), source[::-1]))

    def test_raw_extents(self):
        source = np.stack([pattern(n) for n in range(3)]).reshape(3, 4, -1)
        back = np.zeros_like(source)
        at = [kvtier.layouts.address_of(part) for chunk in source for part in chunk]
        to = [kvtier.layouts.address_of(part) for chunk in back for part in chunk]
        make = kvtier.Layouts.of_extents
        self.round_trip(make(at, CHUNK // 4, 3, keep=source), make(to, CHUNK // 4, 3, keep=back), 3)
        self.assertTrue(np.array_equal(source, back))

    def test_strided_pages(self):
        """Two pools (K, V) of pages; a chunk is one page of each of 4 layers in both."""
        page = CHUNK // 8
        pool = np.random.default_rng(1).integers(0, 256, (2, 4, 10, page), np.uint8)
        back = np.zeros_like(pool)
        blocks = np.array([7, 2, 5], np.uint64)

        def layouts(of):
            return kvtier.Layouts.of_strides(
                kvtier.layouts.address_of(of) + blocks * np.uint64(page), page, n_outer=2,
                outer_stride=of.strides[0], n_inner=4, inner_stride=of.strides[1], keep=of)

        self.round_trip(layouts(pool), layouts(back), 3)
        chosen = blocks.astype(int)
        self.assertTrue(np.array_equal(pool[:, :, chosen], back[:, :, chosen]))
        self.assertEqual(np.count_nonzero(np.delete(back, chosen, axis=2)), 0)

    def test_blocks_of_pages(self):
        """Two pools, of which a block is a page each; a chunk is two blocks, one of them nowhere."""
        page = CHUNK // 4
        pool = np.random.default_rng(1).integers(0, 256, (2, 10, page), np.uint8)
        back, sink = np.zeros_like(pool), np.zeros((2, page), np.uint8)

        def pages(of, **options):
            base = kvtier.layouts.address_of(of)
            return kvtier.Pages([base, base + of.strides[0]], [page] * 2, [page] * 2, 10, keep=of,
                                blocks_per_chunk=2, **options)

        to = pages(back, sink=kvtier.layouts.address_of(sink))
        one = to.layouts(array.array("q", [0, 1]))  # its memory makes way for that of three chunks
        self.assertEqual((len(one), one.keep is back), (1, True))
        self.round_trip(pages(pool).layouts(array.array("q", [7, 2, 5, 9, 3, 0])),
                        to.layouts(array.array("q", [7, 2, -1, 9, 3, 0])), 3)
        chosen = [7, 2, 9, 3, 0]
        self.assertTrue(np.array_equal(pool[:, chosen], back[:, chosen]))
        self.assertTrue(np.array_equal(pool[:, 5], sink))
        self.assertEqual(np.count_nonzero(np.delete(back, chosen, axis=1)), 0)
        for blocks in ("q", [0, 10]), ("q", [0, -2]), ("q", [0]), ("q", []), ("l", [0, 1]):
            with self.assertRaises(kvtier.InvalidError):
                to.layouts(array.array(*blocks))
        with self.assertRaises(kvtier.InvalidError):  # no sink
            pages(pool).layouts(array.array("q", [0, -1]))

    def test_tensors_by_their_methods(self):
        """torch itself is tested with the engines; this has what a CPU tensor has."""
        class Tensor:
            def __init__(self, whole, device="cpu"):
                self.whole, self.shape = whole, whole.shape
                self.device = type("device", (), {"type": device,
                                                  "__str__": lambda self: self.type})()

            def data_ptr(self):
                return kvtier.layouts.address_of(self.whole)

            def stride(self):
                return tuple(s // self.whole.itemsize for s in self.whole.strides)

            def element_size(self):
                return self.whole.itemsize

        source = pattern(0).view(np.uint16).reshape(8, 2, -1).transpose(1, 0, 2)
        back = np.zeros(source.shape, np.uint16)
        self.round_trip([Tensor(source)], [Tensor(back)])
        self.assertTrue(np.array_equal(source, back))
        with self.assertRaisesRegex(kvtier.InvalidError, "only memory of the host and"):
            kvtier.Layouts.of_buffers([Tensor(back, "xpu")])
        with self.assertRaisesRegex(kvtier.InvalidError, "several devices"):
            kvtier.Layouts.of_buffers([Tensor(back, "cuda"), Tensor(back)])
        client = self.client()
        ns = client.namespace(namespace())
        with self.assertRaisesRegex(kvtier.InvalidError, "stream"):
            client.load(ns, key(0), [Tensor(back, "cuda")])
        with self.assertRaisesRegex(kvtier.InvalidError, "memory of the host"):
            client.load(ns, key(0), [Tensor(back)], stream=0)
        for call in (client.cuda_stats, lambda: client.load(ns, key(0), [Tensor(back, "cuda")],
                                                            stream=0)):
            with self.assertRaises(kvtier.KVTierError) as caught:  # not attached
                call()
            self.assertEqual(caught.exception.status, Status.NOTSUP)
        with self.assertRaises(kvtier.KVTierError) as caught:
            client.cuda_attach(library="no-such-driver.so")
        self.assertEqual(caught.exception.status, Status.NOTSUP)

    def test_memory_is_held_until_the_op_is_over(self):
        client = self.client()
        ns = client.namespace(namespace())
        gone = []

        class Owner(np.ndarray):
            def __del__(self):
                gone.append(True)

        source = pattern(0).view(Owner)
        op = client.submit_store(ns, key(0), [source])
        del source
        gc.collect()
        self.assertEqual(gone, [])
        while not op.done:
            client.wait(WAIT_S)
        gc.collect()
        self.assertEqual(gone, [True])


class Asynchronous(TestCase):
    def test_poll_hands_out_each_op_once(self):
        client = self.client()
        ns = client.namespace(namespace())
        room_ns = time.monotonic_ns() + WAIT_S * 10**9  # the arena may not be backed yet
        ops = [client.submit_store(ns, key(n), [pattern(n)], deadline_ns=room_ns, context=n)
               for n in range(50)]
        seen = []
        while len(seen) < len(ops):
            got = client.wait(WAIT_S)
            self.assertTrue(got)
            seen += got
        self.assertEqual(sorted(op.context for op in seen), list(range(50)))
        self.assertTrue(all(op.n_ok == 1 for op in seen))
        self.assertEqual((client.poll(), client.wait(WAIT_S)), ([], []))

    def test_poll_without_a_call(self):
        """Who sends no lookups polls a word in memory until something is over."""
        client = self.client()
        ns = client.namespace(namespace())
        self.agent.signal(signal.SIGSTOP)
        ops = [client.submit_store(ns, key(n), [pattern(n)]) for n in range(3)]
        with mock.patch("kvtier.client.lib") as lib:
            self.assertEqual(client.poll(), [])
        lib.kvt_poll.assert_not_called()
        self.agent.signal(signal.SIGCONT)
        end, seen = time.monotonic() + WAIT_S, []
        while len(seen) < len(ops) and time.monotonic() < end:
            seen += client.poll()
        self.assertEqual(set(seen), set(ops))
        self.agent.kill()
        gone = client.submit_store(ns, key(9), [pattern(9)])
        while not (got := client.poll()) and time.monotonic() < end:
            pass
        self.assertEqual((got, gone.status), ([gone], Status.UNREACH))

    def test_descriptor_for_event_loops(self):
        client = self.client()
        ns = client.namespace(namespace())
        self.store(client, ns, range(4))
        fd = client.fileno()
        self.assertEqual(client.fileno(), fd)
        for _ in range(50):
            op = client.submit_lookup(ns, keys(range(4)))
            got = []
            while not got:
                self.assertTrue(select.select([fd], [], [], WAIT_S)[0])
                got = client.poll()
            self.assertEqual(got, [op])
        self.assertFalse(select.select([fd], [], [], 0)[0])

    def test_descriptor_tells_of_what_another_thread_took(self):
        client = self.client()
        ns = client.namespace(namespace())
        self.store(client, ns, range(4))
        fd, stop = client.fileno(), threading.Event()

        def blocking():
            while not stop.is_set():
                self.assertEqual(client.lookup(ns, keys(range(4))).n_ok, 4)

        others = [threading.Thread(target=blocking) for _ in range(3)]
        for other in others:
            other.start()
        try:
            for _ in range(200):
                op, got = client.submit_lookup(ns, keys(range(4))), []
                while not got:
                    self.assertTrue(select.select([fd], [], [], WAIT_S)[0])
                    got = client.poll()
                self.assertEqual(got, [op])
        finally:
            stop.set()
            for other in others:
                other.join()

    def test_queue_full(self):
        client = self.client(queue_depth=2)
        ns = client.namespace(namespace())
        self.agent.signal(signal.SIGSTOP)
        ops = [client.submit_lookup(ns, key(n)) for n in range(2)]
        with self.assertRaises(kvtier.AgainError):
            client.submit_lookup(ns, key(3))
        self.agent.signal(signal.SIGCONT)
        done = []
        while len(done) < 2:
            done += client.wait(WAIT_S)
        self.assertEqual(set(done), set(ops))
        self.assertEqual(client.lookup(ns, key(3)).n_ok, 0)

    def test_wait_for(self):
        client = self.client()
        ns = client.namespace(namespace())
        op = client.submit_lookup(ns, key(1))
        self.assertTrue(client.wait_for(op, WAIT_S))
        self.assertEqual(client.poll(), [op])
        self.agent.signal(signal.SIGSTOP)
        op = client.submit_load(ns, key(1), [bytearray(CHUNK)])
        began = time.monotonic()
        self.assertFalse(client.wait_for(op, 0.2))
        self.assertLess(time.monotonic() - began, 5)
        self.agent.signal(signal.SIGCONT)
        self.assertTrue(client.wait_for(op, WAIT_S))


class Threads(TestCase):
    def test_many_threads(self):
        client = self.client()
        ns = client.namespace(namespace())
        errors = []

        def work(which):
            try:
                for turn in range(15):
                    numbers = [which * 1000 + turn * 4 + i for i in range(4)]
                    self.store(client, ns, numbers)
                    self.assertEqual(client.lookup(ns, keys(numbers)).n_ok, 4)
                    self.load(client, ns, numbers)
            except BaseException as err:  # pylint: disable=broad-except
                errors.append(err)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(errors, [])
        self.assertEqual(client.stats()["ops"], 0)

    def test_other_threads_run_while_one_waits(self):
        client = self.client()
        ns = client.namespace(namespace())
        self.agent.signal(signal.SIGSTOP)
        done = []
        waiting = threading.Thread(
            target=lambda: done.append(client.load(ns, key(1), [bytearray(CHUNK)], timeout=0.5)))
        waiting.start()
        turns, until = 0, time.monotonic() + 0.3
        while time.monotonic() < until:
            turns += 1
        waiting.join()
        self.agent.signal(signal.SIGCONT)
        self.assertGreater(turns, 10000)
        self.assertEqual(list(done[0].statuses), [Status.TIMEOUT])

    def test_close_ends_what_others_wait_for(self):
        client = self.client()
        ns = client.namespace(namespace())
        self.agent.signal(signal.SIGSTOP)
        got, started = [], threading.Barrier(9)

        def wait():
            started.wait()
            try:
                got.append(client.load(ns, key(1), [bytearray(CHUNK)]).status)
            except kvtier.ClosedError:
                got.append(Status.CANCELED)

        threads = [threading.Thread(target=wait) for _ in range(8)]
        for thread in threads:
            thread.start()
        started.wait()
        began = time.monotonic()
        client.close()
        for thread in threads:
            thread.join(WAIT_S)
        self.assertLess(time.monotonic() - began, 10)
        self.assertEqual(got, [Status.CANCELED] * 8)
        for call in (lambda: client.lookup(ns, key(1)), client.ping, client.fileno,
                     lambda: client.namespace(namespace())):
            self.assertRaises(kvtier.ClosedError, call)
        self.assertEqual((client.poll(), client.wait(0), client.connected), ([], [], False))
        client.close()


class Faults(TestCase):
    sets = {"host__bytes": "32MiB"}

    def test_no_agent(self):
        self.agent.kill()
        client = self.client(connect=False)
        self.assertFalse(client.connected)
        self.assertFalse(client.connect_wait(0.1))
        ns = client.namespace(namespace())
        began = time.monotonic()
        found = client.lookup(ns, keys(range(3)))
        self.assertEqual((found.n_ok, found.status), (0, Status.UNREACH))
        done = client.load(ns, key(1), [bytearray(CHUNK)])
        self.assertEqual(list(done.statuses), [Status.UNREACH])
        done = client.store(ns, key(1), [pattern(1)])
        self.assertEqual((done.n_ok, list(done.statuses)), (0, [Status.UNREACH]))
        self.assertLess(time.monotonic() - began, 1)
        self.assertFalse(client.ping())
        with self.assertRaises(kvtier.UnreachableError):
            client.stats()

    def test_killed_and_started_again(self):
        client = self.client()
        ns = client.namespace(namespace())
        for turn in range(3):
            ops = [client.submit_store(ns, key(1000 * turn + n), [pattern(n)]) for n in range(64)]
            self.agent.kill()
            done = []
            while len(done) < 64:
                got = client.wait(WAIT_S)
                self.assertTrue(got, f"{len(done)} of 64")
                done += got
            self.assertEqual(set(done), set(ops))
            self.assertEqual(client.lookup(ns, key(1)).n_ok, 0)
            self.agent.start()
            self.assertTrue(client.connect_wait(WAIT_S))
            self.store(client, ns, range(8))
            self.load(client, ns, range(8))

    def test_nothing_is_written_after_cancel(self):
        client = self.client()
        ns = client.namespace(namespace(chunk_bytes=1 << 20))
        n = 16
        self.assertEqual(client.store(ns, keys(range(n)), [pattern(i, 1 << 20) for i in range(n)],
                                      timeout=WAIT_S).n_ok, n)
        n_canceled = 0
        for turn in range(60):
            back = np.zeros((n, 1 << 20), np.uint8)
            op = client.submit_load(ns, keys(range(n)), back)
            if turn % 3:
                time.sleep(turn * 2e-5)
            client.cancel(op)
            back[...] = 171
            self.assertTrue(client.wait_for(op, WAIT_S))
            n_canceled += op.status == Status.CANCELED
            self.assertTrue((back == 171).all(), turn)
            client.poll()
        self.assertGreater(n_canceled, 0)
        self.assertFalse(client.cancel(op))

    def test_stopped_agent_stalls_nobody(self):
        client = self.client()
        ns = client.namespace(namespace())
        self.agent.signal(signal.SIGSTOP)
        began = time.monotonic()
        self.assertEqual(client.lookup(ns, key(1)).n_ok, 0)
        self.assertLess(time.monotonic() - began, 5)
        done = client.load(ns, key(1), [bytearray(CHUNK)], timeout=0.2)
        self.assertEqual(list(done.statuses), [Status.TIMEOUT])
        self.agent.signal(signal.SIGCONT)

    def test_ctrl_c_in_a_load(self):
        client = self.client()
        ns = client.namespace(namespace())
        # Started from a shell's background, a process ignores SIGINT, and Python leaves it so.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.addCleanup(signal.signal, signal.SIGINT, before)
        self.agent.signal(signal.SIGSTOP)
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        began = time.monotonic()
        with self.assertRaises(KeyboardInterrupt):
            client.load(ns, key(1), [bytearray(CHUNK)])
        self.assertLess(time.monotonic() - began, 5)
        self.agent.signal(signal.SIGCONT)
        self.assertTrue(client.ping(WAIT_S))
        self.store(client, ns, [1])

    def test_not_closed(self):
        client = kvtier.Client(self.agent.socket)
        self.assertTrue(client.connect_wait(WAIT_S))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del client
            gc.collect()
        self.assertEqual([w.category for w in caught], [ResourceWarning])


class Fork(TestCase):
    def test_child_of_a_busy_parent(self):
        client = self.client()
        ns = client.namespace(namespace())
        self.store(client, ns, range(4))
        stop = threading.Event()

        def busy():
            while not stop.is_set():
                client.lookup(ns, keys(range(4)))

        threads = [threading.Thread(target=busy) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(10):
                child = os.fork()
                if child == 0:
                    os._exit(self.in_child(client, ns))
                deadline = time.monotonic() + WAIT_S
                done = (0, 0)
                while done[0] == 0 and time.monotonic() < deadline:
                    done = os.waitpid(child, os.WNOHANG)
                    time.sleep(0.01)
                if done[0] == 0:
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                self.assertEqual(done, (child, 0))
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        self.load(client, ns, range(4))

    def in_child(self, client, ns):
        """Exit status: 0, or the number of what was wrong."""
        try:
            client.lookup(ns, key(0))
            return 1
        except kvtier.UnreachableError:
            pass
        if client.poll() or client.wait(0.1) or client.connected:
            return 2
        client.close()
        with kvtier.Client(self.agent.socket) as own:
            if not own.connect_wait(WAIT_S):
                return 3
            if own.lookup(own.namespace(namespace()), keys(range(4))).n_ok != 4:
                return 4
        return 0

    def test_op_that_is_open_in_a_child(self):
        client = self.client()
        ns = client.namespace(namespace())
        self.agent.signal(signal.SIGSTOP)
        op = client.submit_load(ns, key(1), [bytearray(CHUNK)])
        child = os.fork()
        if child == 0:
            os._exit(0 if op.status == Status.UNREACH and client.wait_for(op, 1) else 1)
        self.assertEqual(os.waitpid(child, 0), (child, 0))
        self.assertIsNone(op.status)
        self.agent.signal(signal.SIGCONT)
        self.assertTrue(client.wait_for(op, WAIT_S))


class Cost(TestCase):
    def test_step_of_a_scheduler(self):
        """64 lookups sent and read are a step in which 64 requests are new; most steps have none
        of them new and cost one poll."""
        client = self.client()
        ns = client.namespace(namespace())
        batch = [keys(range(i, i + 16)) for i in range(64)]
        took = []
        for _ in range(50):
            began = time.perf_counter()
            for one in batch:
                client.submit_lookup(ns, one)
            client.poll()
            took.append((time.perf_counter() - began) / 64)
            while client.wait():
                pass
        idle = []
        self.agent.signal(signal.SIGSTOP)
        op = client.submit_load(ns, key(0), [bytearray(CHUNK)])
        for _ in range(2000):
            began = time.perf_counter()
            client.poll()
            idle.append(time.perf_counter() - began)
        self.agent.signal(signal.SIGCONT)
        self.assertTrue(client.wait_for(op, WAIT_S))
        submit, poll = sorted(took)[25] * 1e6, sorted(idle)[1000] * 1e6
        print(f"# submit_lookup {submit:.1f} us, poll {poll:.2f} us")
        # Far above what it takes on a quiet machine, far below what would be felt.
        self.assertLess(poll, 50)
        self.assertLess(submit, 500)


if __name__ == "__main__":
    unittest.main()
