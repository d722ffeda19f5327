# SPDX-License-Identifier: Apache-2.0
"""LMCache's server and KVTier's agent on one machine, in turns, on the same KV tensors.

Both keep the KV of a 4096-token prompt of an 8B model (32 layers, 8 heads of 128, bfloat16: 16
chunks of 32 MiB) in host memory for a client whose pages have 16 tokens. LMCache is driven call by
call through the client class of its own benchmark (`lmcache bench server`), without that
benchmark's pauses. Every byte that comes back is compared.

Run in the environment of requirements.txt with LMCache and kvtier in it; docs/measurements.md has
the commands and what came out.
"""

import argparse
import hashlib
import json
import os
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid

import numpy as np
import torch
from lmcache.cli.commands.bench.server_bench import helpers
from lmcache.cli.commands.bench.server_bench.client import ServerBenchClient
from lmcache.cli.commands.bench.server_bench.config import BenchConfig

import kvtier

LAYERS, HEADS, HEAD_DIM, BLOCK, N_BLOCKS, CHUNK = 32, 8, 128, 16, 512, 256
TOKENS = 4096
CHUNK_BYTES = LAYERS * 2 * CHUNK * HEADS * HEAD_DIM * 2
N_CHUNKS = TOKENS // CHUNK
POOL_GB = 3
WAIT_S = 60
# As LMCache's docs recommend for a server of one client: no growth while it is measured, two
# workers for two cores.
SERVER = ["--l1-size-gb", str(POOL_GB), "--no-l1-use-lazy", "--eviction-policy", "LRU",
          "--max-workers", "2", "--chunk-size", str(CHUNK)]
LMCACHE_MODES = ("lmcache_driven", "engine_driven")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def stop(process):
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(WAIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def timed(call, *args):
    """(seconds, result)"""
    began = time.perf_counter()
    result = call(*args)
    return time.perf_counter() - began, result


class LMCache:
    """A server in one transfer mode, and a client whose tensors are the pool."""

    def __init__(self, folder, mode):
        self.name = f"LMCache {mode}"
        port, http = free_port(), free_port()
        extra = ["--supported-transfer-mode", mode]
        if mode == "engine_driven":
            extra += ["--shm-name", "kvt-peers-" + uuid.uuid4().hex[:8]]
        program = os.path.join(os.path.dirname(sys.executable), "lmcache")
        with open(os.path.join(folder, mode + ".log"), "wb") as log:
            self.process = subprocess.Popen(
                [program, "server", "--port", str(port), "--http-port", str(http), *SERVER, *extra],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, "LMCACHE_TRACK_USAGE": "false"})
        deadline = time.monotonic() + WAIT_S
        while True:  # its one way to tell that it is there
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{http}/healthcheck", timeout=1):
                    break
            except (urllib.error.URLError, OSError) as err:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"lmcache server did not start; see {log.name}") from err
                time.sleep(0.1)
        self.client = ServerBenchClient(BenchConfig(
            rpc_url=f"tcp://localhost:{port}", http_url=f"http://127.0.0.1:{http}", mode="cpu",
            transfer_mode=mode, tp_size=1, use_mla=False, num_tokens=TOKENS - 1,
            kvcache_shape_spec=f"(2,{N_BLOCKS},{BLOCK},{HEADS},{HEAD_DIM}):bfloat16:{LAYERS}",
            num_blocks=N_BLOCKS, block_size=BLOCK), lambda text: None)
        self.client.start()
        self.rpc = self.client._req_client
        self.pool = list(self.client._workers[0].kv_caches.values())
        self.request = None
        self.n_names = 0

    def begin(self, number):
        """A prompt of its own, in an empty cache."""
        helpers._wait_for_result(self.rpc.clear(True))
        self.request = self.client.create_request(number, f"store-{number}", "cold")

    def lookup(self):
        """Chunks held; the hit stays locked until unlock()."""
        self.n_names += 1
        request = self.request
        self.key = helpers._make_key(request.token_ids, f"lookup-{self.n_names}", start=0,
                                     end=request.num_full_tokens)
        if not helpers._send_lookup(self.rpc, self.key):
            raise SystemExit("LMCache: no answer to a lookup")
        while True:
            n = helpers._wait_for_result(self.rpc.query_prefetch_status(self.key.request_id))
            if n is not None:
                return 0 if n is helpers._TIMEOUT else n

    def unlock(self):
        helpers._wait_for_result(self.rpc.free_lookup_locks(self.key, 1))
        helpers._send_end_session(self.rpc, self.key.request_id)

    def store(self):
        return self.client.store(self.request, 0, TOKENS).succeeded

    def load(self):
        """After a lookup, whose locks it gives back."""
        request = self.client.create_request(self.request.sequence_id, self.key.request_id, "warm")
        done = self.client.retrieve(request, 0, TOKENS).succeeded
        helpers._send_end_session(self.rpc, self.key.request_id)
        return done

    def close(self):
        self.client.close()
        stop(self.process)


class KVTier:
    def __init__(self, folder, pool, copy_threads):
        self.name = f"KVTier, {copy_threads} copy thread{'s' * (copy_threads > 1)}"
        self.pool = pool
        path = os.path.join(folder, f"kvtierd-{copy_threads}.sock")
        read_fd, write_fd = os.pipe()
        with open(path + ".log", "wb") as log:
            self.process = subprocess.Popen(
                [os.environ["KVT_KVTIERD"], "--ready-fd", str(write_fd), "--set",
                 f"socket.path={path}", "--set", f"host.bytes={POOL_GB}GiB"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[write_fd])
        os.close(write_fd)
        with os.fdopen(read_fd, "rb", buffering=0) as ready:
            if not select.select([ready], [], [], WAIT_S)[0] or not ready.read(1):
                raise SystemExit(f"kvtierd did not start; see {log.name}")
        self.client = kvtier.Client(path, n_copy_threads=copy_threads)
        if not self.client.connect_wait(WAIT_S):
            raise SystemExit("no connection to kvtierd")
        self.ns = self.client.namespace(kvtier.Namespace(
            model="peers", dtype="bfloat16", tokens_per_chunk=CHUNK, n_layers=LAYERS,
            n_kv_heads=HEADS, head_dim=HEAD_DIM, chunk_bytes=CHUNK_BYTES, n_segments=LAYERS))
        deadline = time.monotonic() + WAIT_S
        while self.client.stats()["host_capacity_bytes"] < POOL_GB << 30:
            if time.monotonic() > deadline:
                raise SystemExit("kvtierd: its memory did not come")
            time.sleep(0.1)

    def begin(self, number):
        self.tokens = np.full(TOKENS, 9906, np.uint32)
        self.tokens[0] = number

    def keys(self):
        """Of the prompt's chunks, hashed anew as an engine does for each request."""
        keys, last = [], b""
        for part in self.tokens.reshape(N_CHUNKS, CHUNK):
            last = hashlib.sha256(last + part.tobytes()).digest()
            keys.append(last)
        return keys

    def lookup(self):
        self.found = self.client.lookup(self.ns, self.keys(), lease_ms=30000)
        return self.found.n_ok

    def unlock(self):
        self.client.release(self.found.lease, 1)

    def memory(self):
        """Page by page, as an engine's block table has it, whatever pages are neighbours."""
        stride = BLOCK * HEADS * HEAD_DIM * 2
        planes = [tensor.data_ptr() + k * N_BLOCKS * stride for tensor in self.pool
                  for k in range(2)]
        blocks = np.arange(TOKENS // BLOCK, dtype=np.uint64).reshape(N_CHUNKS, 1, -1) * stride
        at = np.array(planes, np.uint64).reshape(1, -1, 1) + blocks
        return kvtier.Layouts.of_extents(at, stride, N_CHUNKS, keep=self.pool)

    def store(self):
        return self.client.store(self.ns, self.keys(), self.memory(), timeout=5).n_ok == N_CHUNKS

    def load(self):
        done = self.client.load(self.ns, self.keys(), self.memory(), timeout=5)
        self.unlock()
        return done.n_ok == N_CHUNKS

    def close(self):
        self.client.close()
        stop(self.process)


def turn(peer, number, n_lookups):
    """One prompt through one peer."""
    used = [tensor[:, :TOKENS // BLOCK] for tensor in peer.pool]
    for layer, tensor in enumerate(used):
        tensor.view(torch.int16).random_(generator=torch.Generator().manual_seed(
            number * LAYERS + layer))
    wanted = [tensor.clone() for tensor in used]
    peer.begin(number)
    miss_s, n = timed(peer.lookup)
    assert n == 0, (peer.name, n)
    peer.unlock()
    store_s, stored = timed(peer.store)
    assert stored, peer.name
    began = time.perf_counter()
    while peer.lookup() < N_CHUNKS:
        peer.unlock()
        assert time.perf_counter() - began < WAIT_S, f"{peer.name}: the store is not found"
    visible_s = time.perf_counter() - began
    peer.unlock()
    hits_s = []
    for _ in range(n_lookups):
        hit_s, n = timed(peer.lookup)
        assert n == N_CHUNKS, (peer.name, n)
        hits_s.append(hit_s)
        peer.unlock()
    for tensor in used:
        tensor.zero_()
    assert peer.lookup() == N_CHUNKS
    load_s, loaded = timed(peer.load)
    assert loaded, peer.name
    for one, other in zip(wanted, used):
        assert torch.equal(one.view(torch.int16), other.view(torch.int16)), \
            f"{peer.name}: wrong bytes"
    return {"store_s": store_s, "load_s": load_s, "miss_s": miss_s, "visible_s": visible_s,
            "hits_s": hits_s}


def memcpy_s():
    source = np.ones(N_CHUNKS * CHUNK_BYTES, np.uint8)
    target = np.full_like(source, 2)  # pages that are there
    return timed(np.copyto, target, source)[0]


def spread(values, scale=1.0, digits=2):
    middle, least, most = (f"{call(values) * scale:.{digits}f}"
                           for call in (statistics.median, min, max))
    return f"{middle} [{least}-{most}]"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--lookups", type=int, default=100, help="hits per round (default: 100)")
    parser.add_argument("--json", metavar="FILE", help="write every figure there too")
    args = parser.parse_args()
    size = N_CHUNKS * CHUNK_BYTES
    folder = tempfile.mkdtemp(prefix="kvt-peers-")
    results, copies, peers = {}, [], []
    try:
        for mode in LMCACHE_MODES:  # a server at a time: two would not leave KVTier its memory
            peers = [LMCache(folder, mode)]
            peers += [KVTier(folder, peers[0].pool, n) for n in (1, 2)]
            for number in range(args.rounds + 1):
                copy_s = memcpy_s()
                order = peers[number % 3:] + peers[:number % 3]
                for peer in order:
                    figures = turn(peer, number + 1, args.lookups)
                    if number > 0:  # the first is for pages and buffers that nobody has touched
                        results.setdefault(peer.name, []).append(figures)
                        print(f"{peer.name} {number}: store {size / figures['store_s'] / 1e9:.2f} "
                              f"GB/s, load {size / figures['load_s'] / 1e9:.2f} GB/s, lookup "
                              f"{statistics.median(figures['hits_s']) * 1e6:.0f} us",
                              file=sys.stderr, flush=True)
                copies.append(copy_s)
            while peers:
                peers.pop().close()
    finally:
        while peers:
            peers.pop().close()
        shutil.rmtree(folder, ignore_errors=True)
    print(f"memcpy, one thread: {spread([size / s / 1e9 for s in copies], digits=1)} GB/s")
    print("| | Store GB/s | Load GB/s | Lookup hit p50 us | p99 us | Lookup miss us "
          "| Found after the store's answer, ms |\n| --- | --- | --- | --- | --- | --- | --- |")
    for name, rounds in results.items():
        hits = sorted(s for figures in rounds for s in figures["hits_s"])
        print(f"| {name} | {spread([size / f['store_s'] / 1e9 for f in rounds])} "
              f"| {spread([size / f['load_s'] / 1e9 for f in rounds])} "
              f"| {hits[len(hits) // 2] * 1e6:.0f} | {hits[len(hits) * 99 // 100] * 1e6:.0f} "
              f"| {spread([f['miss_s'] for f in rounds], 1e6, 0)} "
              f"| {spread([f['visible_s'] for f in rounds], 1e3, 1)} |")
    if args.json:
        with open(args.json, "w", encoding="ascii") as file:
            json.dump({"memcpy_s": copies, "peers": results}, file)


if __name__ == "__main__":
    main()
