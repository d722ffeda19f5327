# SPDX-License-Identifier: Apache-2.0
"""What the control API shows, compared with what was stored through libkvtier."""

import hashlib
import os
import random
import threading
import time

import cbor2
import kvtier

import fixture
from rig import CHUNK, WAIT_S, TestCase, key, keys, pb, plain_chain, until


class Node(TestCase):
    def test_node(self):
        before = time.time() * 1000
        node = self.call("GetNode")
        self.assertEqual((node.pid, node.socket_path, node.control_path, node.state),
                         (self.agent.process.pid, self.agent.socket, self.path,
                          pb.Node.STATE_READY))
        self.assertEqual((node.hostname, node.n_chain_max, node.n_lookup_max, node.wire_version),
                         (os.uname().nodename, 1024, 65536, 1))
        self.assertEqual(list(node.hash_algos), ["kvtier_sha256", "sha256_cbor"])
        self.assertLess(abs(node.started_unix_ms + node.uptime_ms - before), 5000)
        self.assertEqual(node.version, kvtier.__version__)
        self.agent.kill()
        self.agent.start()
        again = self.call("GetNode", stub=self.stub())
        self.assertNotEqual(again.incarnation, node.incarnation)
        self.assertEqual(again.pid, self.agent.process.pid)

    def test_tiers(self):
        self.fill(20)
        # An agent is ready before all of its arena is backed.
        host, nvme = until(lambda: (tiers := self.call("ListTiers").tiers) and
                           tiers[0].capacity_bytes == 64 << 20 and tiers, "the arena")
        self.assertEqual((host.tier, host.name, host.capacity_bytes, host.n_chunks),
                         (pb.TIER_HOST, "host", 64 << 20, 20))
        self.assertEqual((nvme.tier, nvme.name, nvme.n_chunks, list(nvme.paths)),
                         (pb.TIER_NVME, "nvme", 20, [os.path.join(self.folder, "store")]))
        self.assertEqual(host.used_bytes, 20 * CHUNK)
        self.assertEqual(nvme.used_bytes, 20 * (CHUNK + 4096))
        for tier in (host, nvme):
            self.assertEqual(tier.used_bytes + tier.free_bytes, tier.capacity_bytes)
            self.assertEqual(tier.capacity_bytes, tier.n_slabs * tier.slab_bytes)
            self.assertEqual((tier.policy, tier.degraded, tier.n_quarantined), ("lhd", False, 0))
            self.assertEqual([(c.slot_bytes, c.n_segments, c.n_slabs) for c in tier.classes],
                             [(CHUNK, 4, 1)])
            self.assertEqual(tier.n_slabs_free, tier.n_slabs - 1)

    def test_stats_are_those_of_the_data_path(self):
        client, ns, _ = self.fill(8)
        client.lookup(ns, keys(range(12)))
        self.load(client, ns, range(8))
        shown, told = self.stats(), client.stats()
        self.assertEqual(set(shown), set(told))
        for name in ("stored_chunks", "loaded_chunks", "chunks", "host_used_bytes",
                     "nvme_used_bytes", "lookups", "lookup_keys", "lookup_hits", "sessions"):
            if name in told:
                self.assertEqual(shown[name], told[name], name)
        self.assertEqual(shown["stored_chunks"], 8)
        answer = self.call("GetStats")
        kinds = {stat.name: stat.kind for stat in answer.stats}
        self.assertEqual((kinds["stored_chunks"], kinds["sessions"]),
                         (pb.Stat.KIND_COUNTER, pb.Stat.KIND_GAUGE))
        self.assertTrue(all(stat.help for stat in answer.stats))
        self.assertGreater(answer.uptime_ms, 0)

    def test_config(self):
        config = self.call("GetConfig")
        options = {option.key: option for option in config.options}
        self.assertEqual((options["host.bytes"].value, options["host.bytes"].source,
                          options["host.bytes"].reloadable), ("64MiB", "--set", False))
        self.assertEqual((options["lease.ttl"].value, options["lease.ttl"].source,
                          options["lease.ttl"].reloadable), ("30s", "default", True))
        self.assertEqual(options["nvme.disks.0.path"].value, os.path.join(self.folder, "store"))
        self.assertEqual(config.file, "")

    def test_log_level(self):
        self.assertEqual(self.call("SetLogLevel", level=pb.LOG_LEVEL_DEBUG).previous,
                         pb.LOG_LEVEL_INFO)
        before = len(self.log_text())
        self.client()
        until(lambda: " debug " in self.log_text()[before:], "debug lines")
        option = next(o for o in self.call("GetConfig").options if o.key == "log.level")
        self.assertEqual((option.value, option.source), ("debug", "runtime"))
        for _ in range(300):  # more often than there is room for sources
            self.call("SetLogLevel", level=pb.LOG_LEVEL_ERROR)
        self.assertEqual(self.call("SetLogLevel", level=pb.LOG_LEVEL_INFO).previous,
                         pb.LOG_LEVEL_ERROR)
        option = next(o for o in self.call("GetConfig").options if o.key == "log.level")
        self.assertEqual((option.value, option.source), ("info", "runtime"))
        for level in (0, 6, -1, 1 << 30):
            self.refused("INVALID_ARGUMENT", "level: .*LOG_LEVEL_TRACE", "SetLogLevel", level=level)


class HostOnly(TestCase):
    def agent_sets(self):
        return {"metrics__listen": ""}

    def test_what_needs_nvme_says_so(self):
        self.fill(4, nvme=False)
        self.assertEqual([tier.name for tier in self.call("ListTiers").tiers], ["host"])
        everything = pb.Selection(filter=pb.ChunkFilter())
        for method in ("Prefetch", "Demote", "Verify"):
            self.refused("FAILED_PRECONDITION", "no NVMe tier; set nvme.path", method,
                         selection=everything)
        self.assertEqual(self.done(self.call("Clear", all_namespaces=True)).n_changed, 4)
        self.assertEqual(self.listed(), set())


class NotThere(TestCase):
    sets = {"control__path": ""}

    def test_no_api_is_wanted(self):
        self.assertFalse(os.path.exists(self.path))
        self.refused("UNAVAILABLE", "", "GetNode", timeout=2)


class Lists(TestCase):
    def test_namespaces(self):
        client = self.client()
        wanted = {}
        for i in range(7):
            fields = {"model": f"m{i}", "revision": "r", "layout": "l", "salt": "ü" * i,
                      "hash_algo": "h", "dtype": "bf16", "n_layers": 8, "n_kv_heads": 2,
                      "head_dim": 64, "tokens_per_chunk": 16, "tp_rank": 1, "tp_size": 2,
                      "pp_rank": 0, "pp_size": 1, "kv_group": 0, "n_segments": 4,
                      "chunk_bytes": CHUNK}
            ns = client.namespace(kvtier.Namespace(**fields))
            client.lookup(ns, key(0))  # the agent learns of it
            if i:
                self.store(client, ns, range(i))
            wanted[f"m{i}"] = (fields, i)
        found, n_pages = self.pages("ListNamespaces", "namespaces", page_size=2)
        self.assertEqual((len(found), n_pages), (7, 4))
        self.assertEqual(len({space.id for space in found}), 7)
        for space in found:
            fields, n = wanted.pop(space.model)
            for name, value in fields.items():
                self.assertEqual(getattr(space, name), value, name)
            self.assertEqual((len(space.id), space.n_chunks, space.n_host_chunks,
                              space.host_bytes, space.slot_bytes), (32, n, n, n * CHUNK, CHUNK))
        self.agent.kill()
        self.agent.start()
        self.api = self.stub()
        ids = {space.id for space in found}
        kept = {space.id for space in self.pages("ListNamespaces", "namespaces")[0]}
        self.assertLessEqual(kept, ids)  # the same after a restart
        self.assertTrue(kept)

    def test_sessions_and_leases(self):
        client, ns, space = self.fill(8)
        with kvtier.Client(self.agent.socket, name="second") as second:
            self.assertTrue(second.connect_wait(WAIT_S))
            sessions = self.pages("ListSessions", "sessions", page_size=1)[0]
            self.assertEqual(sorted(s.client for s in sessions), ["second"] * 2 + ["test"] * 2)
            self.assertEqual({s.pid for s in sessions}, {os.getpid()})
            first = client.lookup(ns, keys(range(5)), lease_ms=5000).lease
            other = client.lookup(ns, keys(range(8)), lease_ms=60000).lease
            leases = self.pages("ListLeases", "leases", page_size=1)[0]
            holder = next(s for s in self.pages("ListSessions", "sessions")[0] if s.n_leases)
            self.assertEqual((holder.client, holder.n_leases), ("test", 2))
            self.assertEqual({(x.session_id, x.namespace_id, x.last_key) for x in leases},
                             {(holder.id, space.id, key(4)), (holder.id, space.id, key(7))})
            times = sorted(x.expires_in_ms for x in leases)
            self.assertTrue(0 < times[0] <= 5000 < 50000 < times[1] <= 60000, times)
            self.assertEqual(self.listed(leased=True), {4, 7})  # the rest is held through these
            for lease in (first, other):
                self.assertTrue(client.release(lease, WAIT_S))
        self.assertEqual(self.pages("ListLeases", "leases")[0], [])
        until(lambda: {s.client for s in self.pages("ListSessions", "sessions")[0]} == {"test"},
              "the second to be gone")

    def test_chunks_and_their_pages(self):
        n = 300
        client, ns, space = self.fill(n)
        other = client.namespace(fixture.namespace(model="small", chunk_bytes=4096))
        self.assertEqual(client.store(other, keys(range(1000, 1010)),
                                      [fixture.pattern(i, 4096) for i in range(1000, 1010)],
                                      durable=True, timeout=WAIT_S).n_ok, 10)
        small = self.space("small")
        for size, least in ((0, 1), (1, 310), (7, 45), (1 << 31, 1)):
            found, n_pages = self.pages("ListChunks", "chunks", page_size=size)
            self.assertEqual(len({(c.namespace_id, c.key) for c in found}), n + 10, size)
            self.assertEqual(len(found), n + 10)
            self.assertGreaterEqual(n_pages, least)
            self.assertTrue(size in (0, 1 << 31) or n_pages <= least + 1, n_pages)
        by_key = {c.key: c for c in found if c.namespace_id == space.id}
        self.assertEqual(set(by_key), {key(i) for i in range(n)})
        for i in range(n):
            chunk = by_key[key(i)]
            self.assertEqual((chunk.parent_key, chunk.chunk_bytes, chunk.slot_bytes, chunk.host,
                              chunk.nvme, chunk.n_children_host, chunk.write_waiting),
                             (key(i - 1) if i else b"", CHUNK, CHUNK, pb.Chunk.COPY_VALID,
                              pb.Chunk.COPY_VALID, int(i < n - 1), False))
        self.assertEqual(len({c.host_offset_bytes for c in by_key.values()}), n)
        self.assertEqual(len({(c.nvme_slab, c.nvme_slot) for c in by_key.values()}), n)
        one = self.call("GetChunk", key=key(5))
        self.assertEqual(one, by_key[key(5)])
        self.assertEqual(self.call("GetChunk", key=key(5), namespace_id=space.id), one)
        self.refused("NOT_FOUND", "chunk 0500.*: is not held; it may have been evicted",
                     "GetChunk", key=key(5), namespace_id=small.id)
        self.refused("NOT_FOUND", "is not held", "GetChunk", key=key(5000))
        self.check_filters(client, ns, space, small)

    def check_filters(self, client, ns, space, small):
        everything = set(range(300)) | set(range(1000, 1010))
        self.assertEqual(self.listed(), everything)
        self.assertEqual(self.listed(namespace_id=small.id), set(range(1000, 1010)))
        self.assertEqual(self.listed(max_bytes=4096), set(range(1000, 1010)))
        self.assertEqual(self.listed(min_bytes=4097), set(range(300)))
        self.assertEqual(self.listed(min_bytes=CHUNK + 1), set())
        self.assertEqual(self.listed(key_prefix=b"\x05"), {5, 5 + 256})
        self.assertEqual(self.listed(key_prefix=key(7)), {7})
        self.assertEqual(self.listed(key_prefix=b"\xff" * 32), set())
        self.done(self.call("Demote", selection={"chain": self.chain(space, range(100, 300))}))
        self.assertEqual(self.listed(tiers=[pb.TIER_HOST]), everything - set(range(100, 300)))
        self.assertEqual(self.listed(tiers=[pb.TIER_NVME]), everything)
        self.assertEqual(self.listed(tiers=[pb.TIER_HOST, pb.TIER_NVME]), everything)
        self.call("Pin", chain=self.chain(space, range(3)), owner="me")
        self.assertEqual(self.listed(pinned=True), {0, 1, 2})
        self.assertEqual(self.listed(unpinned=True), everything - {0, 1, 2})
        self.assertEqual(self.listed(unpinned=True, namespace_id=space.id, key_prefix=b"\x01",
                                     tiers=[pb.TIER_NVME]), {1 + 256})
        self.assertEqual(client.lookup(ns, keys(range(300))).n_ok, 300)

    def test_what_stays_is_listed_once_while_others_come_and_go(self):
        client, ns, _ = self.fill(200, nvme=False)
        stays = {key(n) for n in range(200)}
        with kvtier.Client(self.agent.socket, name="changer") as changer:
            other = changer.namespace(fixture.namespace(model="changing"))
            stop = threading.Event()

            def change():
                stub = self.stub()
                space = None
                for turn in range(100000):
                    first = 10000 + turn % 50 * 10
                    numbers = range(first, first + 10)
                    changer.store(other, keys(numbers), [fixture.pattern(n) for n in numbers])
                    space = space or self.space("changing")
                    if turn % 3 == 2:
                        self.call("Delete", stub=stub,
                                  selection={"chain": self.chain(space, numbers)})
                    if stop.is_set():
                        return

            thread = threading.Thread(target=change)
            thread.start()
            try:
                for _ in range(20):
                    found = [c.key for c in self.pages("ListChunks", "chunks", page_size=17)[0]]
                    # What was deleted and stored again meanwhile may rightly be there twice.
                    self.assertEqual(sorted(k for k in found if k in stays), sorted(stays))
            finally:
                stop.set()
                thread.join()
        self.assertEqual(self.held(client, ns, range(200)), set(range(200)))

    def test_tokens(self):
        self.fill(10)
        for token in ("x", "0" * 31, "g" * 32, "0" * 33):
            self.refused("INVALID_ARGUMENT", "page_token: is none that this agent gave", "ListChunks",
                         page_token=token)
        token = self.call("ListChunks", page_size=3).next_page_token
        self.assertEqual(len(self.call("ListChunks", page_size=100, page_token=token).chunks), 7)
        for method in ("ListNamespaces", "ListSessions", "ListLeases", "ListPins", "ListJobs",
                       "ListChunks"):  # a cursor from nowhere ends the list, whichever it is
            made_up = token[:16] + "f" * 16
            self.assertEqual(self.call(method, page_token=made_up).next_page_token, "")
        self.agent.kill()
        self.agent.start()
        self.refused("ABORTED", "page_token: is from before the agent's restart", "ListChunks",
                     page_token=token, stub=self.stub())


def cbor_chain(tokens, size, parent=hashlib.sha256(cbor2.dumps("vllm-none-hash")).digest()):
    made = []
    for i in range(len(tokens) // size):
        item = (parent, tuple(tokens[size * i:size * (i + 1)]), None)
        parent = hashlib.sha256(cbor2.dumps(item, canonical=True)).digest()
        made.append(parent)
    return made


class Lookup(TestCase):
    def fill_keys(self, chain, n, **fields):
        """Stores the first n of these keys."""
        client = self.client()
        ns = client.namespace(fixture.namespace(**fields))
        data = [fixture.pattern(i) for i in range(n)]
        for i in range(0, n, 256):
            client.store(ns, b"".join(chain[i:min(i + 256, n)]), data[i:i + 256], durable=True,
                         parent=chain[i - 1] if i else None, timeout=WAIT_S)
        return client, ns, self.space(fields["model"])

    def test_keys(self):
        client, ns, space = self.fill(20)
        before = self.stats()
        found = self.call("Lookup", chain=self.chain(space, range(30)))
        self.assertEqual((found.n_keys, found.n_found, found.last_key), (30, 20, key(19)))
        self.assertEqual([x.key for x in found.locations], [key(n) for n in range(20)])
        self.assertEqual({tuple(x.tiers) for x in found.locations},
                         {(pb.TIER_HOST, pb.TIER_NVME)})
        self.done(self.call("Demote", selection={"chain": self.chain(space, range(10, 20))}))
        found = self.call("Lookup", chain=self.chain(space, range(20)))
        self.assertEqual([tuple(x.tiers) for x in found.locations],
                         [(pb.TIER_HOST, pb.TIER_NVME)] * 10 + [(pb.TIER_NVME,)] * 10)
        none = self.call("Lookup", chain=self.chain(space, range(100, 130)))
        self.assertEqual((none.n_found, none.last_key, len(none.locations)), (0, b"", 0))
        after = self.stats()
        for name in (n for n in before if "lookup" in n or n.startswith("hit")):
            self.assertEqual(after[name], before[name], name)
        self.assertEqual(client.lookup(ns, keys(range(30))).n_ok, 20)

    def test_tokens_as_this_project_hashes_them(self):
        self.check_tokens("kvtier_sha256", plain_chain)

    def test_tokens_as_vllm_hashes_them(self):
        self.check_tokens("sha256_cbor", cbor_chain)

    def check_tokens(self, algo, chain_of):
        rng = random.Random(algo)
        edges = [0, 23, 24, 255, 256, 65535, 65536, (1 << 32) - 1]
        tokens = edges + [rng.randrange(1 << rng.randrange(1, 33)) for _ in range(16 * 1500 + 11)]
        chain = chain_of(tokens, 16)
        _, _, space = self.fill_keys(chain, 700, model="t", tokens_per_chunk=16, hash_algo=algo)

        def lookup(tokens, **fields):
            return self.call("Lookup", chain={"namespace_id": space.id,
                                              "tokens": {"ids": tokens, **fields}})

        found = lookup(tokens)
        self.assertEqual((found.n_keys, found.n_found, found.n_tokens_found, found.last_key),
                         (len(tokens) // 16, 700, 700 * 16, chain[699]))
        self.assertEqual([x.key for x in found.locations], chain[:700])
        self.assertEqual(lookup([5] + tokens[1:]).n_found, 0)
        self.assertEqual(lookup(tokens[:16 * 3 + 15]).n_found, 3)
        later = lookup(tokens[16 * 10:], parent_key=chain[9])
        self.assertEqual((later.n_found, later.last_key), (690, chain[699]))
        self.assertEqual(lookup(tokens[16 * 10:], parent_key=chain[8]).n_found, 0)
        self.refused("INVALID_ARGUMENT", "tokens for less than a chunk", lookup, tokens[:15])
        self.refused("INVALID_ARGUMENT", "parent_key: has 33 bytes", lookup, tokens,
                     parent_key=bytes(33))
        pin = self.call("Pin", owner="prompt", chain={"namespace_id": space.id,
                                                      "tokens": {"ids": tokens[:16 * 100]}})
        self.assertEqual((pin.n_keys, pin.n_found, pin.pin.last_key), (100, 100, chain[99]))
        gone = self.done(self.call("Delete", selection={"chain": {
            "namespace_id": space.id, "tokens": {"ids": tokens[16 * 600:16 * 700],
                                                 "parent_key": chain[599]}}}))
        self.assertEqual(gone.n_changed, 100)
        self.assertEqual(lookup(tokens).n_found, 600)

    def test_seed_of_a_chain(self):
        seed = b"tenant-7"
        chain = plain_chain(range(64), 16, seed.ljust(32, b"\0"))
        _, _, space = self.fill_keys(chain, 4, model="t", tokens_per_chunk=16,
                                     hash_algo="kvtier_sha256")
        self.assertEqual(self.call("Lookup", chain={"namespace_id": space.id, "tokens": {
            "ids": range(64), "parent_key": seed}}).n_found, 4)

    def test_the_longest(self):
        """65536 keys, of which the data path would need 64 calls."""
        _, _, space = self.fill_keys(plain_chain(range(1100), 1), 1100, model="t",
                                     tokens_per_chunk=1, hash_algo="kvtier_sha256",
                                     chunk_bytes=CHUNK)
        found = self.call("Lookup", chain={"namespace_id": space.id,
                                           "tokens": {"ids": range(65536)}})
        self.assertEqual((found.n_keys, found.n_found), (65536, 1100))
        self.refused("INVALID_ARGUMENT", "chain: has 65537 chunks; ask for at most 65536",
                     "Lookup", chain={"namespace_id": space.id, "tokens": {"ids": range(65537)}})

    def test_what_is_wrong_with_a_chain(self):
        _, _, space = self.fill(2)
        _, _, other = self.fill(1, model="other", tokens_per_chunk=4, hash_algo="mine")
        for code, text, chain in (
                ("INVALID_ARGUMENT", "chain: names no chunks.*exactly one of keys and tokens", None),
                ("INVALID_ARGUMENT", "chain: names no chunks", {"namespace_id": space.id}),
                ("INVALID_ARGUMENT", "keys and tokens",
                 {"namespace_id": space.id, "keys": [key(1)], "tokens": {"ids": [1]}}),
                ("INVALID_ARGUMENT", "namespace_id: has 0 bytes, not 32; take it from ListNamesp",
                 {"keys": [key(1)]}),
                ("INVALID_ARGUMENT", "namespace_id: has 31", {"namespace_id": bytes(31),
                                                              "keys": [key(1)]}),
                ("NOT_FOUND", "namespace 00000000...: this agent has none of that id; see ListName",
                 {"namespace_id": bytes(32), "keys": [key(1)]}),
                ("INVALID_ARGUMENT", r"chain.keys\[1\]: has 31 bytes; a key has 32",
                 {"namespace_id": space.id, "keys": [key(1), key(1)[:31]]}),
                ("INVALID_ARGUMENT", r"chain.keys\[0\]: has 0 bytes",
                 {"namespace_id": space.id, "keys": [b""]}),
                ("FAILED_PRECONDITION", "cannot be derived from tokens .hash_algo \"mine\".*name key"
                 "s, see Node.hash_algos", {"namespace_id": other.id, "tokens": {"ids": range(8)}}),
                ("FAILED_PRECONDITION", "hash_algo \"\", 0 tokens per chunk",
                 {"namespace_id": space.id, "tokens": {"ids": range(8)}})):
            for method in ("Lookup", "Pin", "Unpin", "Delete"):
                fields = {"Lookup": {"chain": chain}, "Pin": {"chain": chain, "owner": "me"},
                          "Unpin": {"chain": chain}, "Delete": {"selection": {"chain": chain}}}
                if chain is None and method in ("Unpin", "Delete"):
                    text_now = "by: names no pins" if method == "Unpin" else "selection.chain: is no"
                    self.refused(code, text_now, method, **fields[method])
                else:
                    self.refused(code, text, method, **fields[method])
        too_many = self.chain(space, range(1025))
        for method, fields in (("Pin", {"chain": too_many, "owner": "me"}),
                               ("Unpin", {"chain": too_many}),
                               ("Delete", {"selection": {"chain": too_many}}),
                               ("Prefetch", {"selection": {"chain": too_many}})):
            self.refused("INVALID_ARGUMENT", "chain: has 1025 chunks; ask for at most 1024", method,
                         **fields)


class Restarts(TestCase):
    def test_a_list_goes_on_when_the_agent_is_stopped_for_a_moment(self):
        """Whoever waits for an agent that stands still gets its answer later, or its deadline."""
        self.call("GetNode")
        self.agent.signal(19)  # SIGSTOP
        try:
            self.refused("DEADLINE_EXCEEDED", "", "GetNode", timeout=0.5)
        finally:
            self.agent.signal(18)  # SIGCONT
        self.assertEqual(self.call("GetNode").pid, self.agent.process.pid)

    def test_nobody_there(self):
        self.agent.signal(15)
        self.assertEqual(self.agent.process.wait(WAIT_S), 0)
        self.refused("UNAVAILABLE", "", "GetNode", timeout=2)
        self.assertFalse(os.path.exists(self.path))


class Numbers(TestCase):
    def test_key_is_as_long_as_the_proto_says(self):
        for n in (0, 1, 31, 33, 1000):
            self.refused("INVALID_ARGUMENT", f"key: has {n} bytes; a key has 32", "GetChunk",
                         key=bytes(n))
            if n:
                self.refused("INVALID_ARGUMENT", "namespace_id: has", "GetChunk", key=key(1),
                             namespace_id=bytes(n))
        for n in (33, 1000):
            self.refused("INVALID_ARGUMENT", f"filter.key_prefix: has {n} bytes", "ListChunks",
                         filter={"key_prefix": bytes(n)})
        self.refused("INVALID_ARGUMENT", "filter: asks for pinned and for unpinned", "ListChunks",
                     filter={"pinned": True, "unpinned": True})
        self.refused("INVALID_ARGUMENT", "min_bytes is above max_bytes", "ListChunks",
                     filter={"min_bytes": 2, "max_bytes": 1})
        for tier in (0, 3, -1, (1 << 31) - 1):
            self.refused("INVALID_ARGUMENT", r"tiers\[1\]: there is no tier", "ListChunks",
                         filter={"tiers": [pb.TIER_HOST, tier]})

    def test_places(self):
        """Where the chunk is said to be in the store file, it is."""
        self.fill(3)
        with open(os.path.join(self.folder, "store"), "rb") as store:
            for number in range(3):
                chunk = self.call("GetChunk", key=key(number))
                store.seek((1 << 20) + chunk.nvme_slab * (8 << 20) + chunk.nvme_slot * CHUNK)
                self.assertEqual(store.read(CHUNK), fixture.pattern(number).tobytes())
