#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""KV of a GPU through the library and an agent, end to end, beside raw copies in the same process.

Usage: gpu_client_bench.py KVTIERD [ROUNDS]      (needs a GPU, torch, and the package kvtier)

Batches of chunks of 256 tokens, in blocks of 16 tokens that lie anywhere: stored (copied from the
GPU, hashed, committed) and loaded to other blocks, which are compared. Raw: torch's copies between
the GPU and registered memory, 32 MiB each. Prints a table in GB/s, medians of rounds in turns.
"""

import collections
import os
import statistics
import sys
import time

import numpy as np
import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "engines"))
from agent import Agent  # noqa: E402
from kvtier import Client, Layouts, Namespace, Status  # noqa: E402

PAGES, BATCH_BYTES, RAW_BYTES, ARENA_BYTES = 16, 2 << 30, 32 << 20, 8 << 30
DEADLINE_NS = 30 * 10 ** 9
GEOMETRIES = {  # layers, bytes of a block of a layer, block-major
    "Llama-8B": (32, 65536, False),
    "Llama-8B, block-major": (32, 65536, True),
    "Llama-70B/TP8": (80, 8192, False),
    "Llama-70B/TP8, block-major": (80, 8192, True),
}


def raw(gpu, host, to_gpu):
    began, n = time.perf_counter(), gpu.nbytes // RAW_BYTES
    for i in range(n):
        part = slice(i * RAW_BYTES, (i + 1) * RAW_BYTES)
        if to_gpu:
            gpu[part].copy_(host[part], non_blocking=True)
        else:
            host[part].copy_(gpu[part], non_blocking=True)
    torch.cuda.synchronize()
    return n * RAW_BYTES / (time.perf_counter() - began) / 1e9


class Incomplete(Exception):
    """Not every chunk was stored or loaded."""


class Trial:
    """A geometry: blocks to store from, and as many to load to."""

    def __init__(self, client, cache, name):
        self.client, self.cache = client, cache
        self.n_layers, self.page_bytes, self.block_major = GEOMETRIES[name]
        self.chunk_bytes = self.n_layers * PAGES * self.page_bytes
        self.n_chunks = BATCH_BYTES // self.chunk_bytes
        self.n_blocks = cache.nbytes // (self.n_layers * self.page_bytes)
        self.ns = client.namespace(Namespace(
            model=name, layout="bench", chunk_bytes=self.chunk_bytes, n_layers=self.n_layers,
            tokens_per_chunk=PAGES * 16, n_segments=self.n_layers))
        self.order = np.random.default_rng(1).permutation(self.n_blocks // 2)

    def pages(self, half):
        """(chunks, pieces of a chunk) addresses of pages, in blocks of one half of the cache."""
        blocks = (self.order[:self.n_chunks * PAGES] + half * (self.n_blocks // 2)).reshape(
            self.n_chunks, PAGES, 1)
        layers = np.arange(self.n_layers).reshape(1, 1, -1)
        if self.block_major:
            places = blocks * self.n_layers + layers
        else:
            places = (layers * self.n_blocks + blocks).transpose(0, 2, 1)
        return (places * self.page_bytes).reshape(self.n_chunks, -1)

    def move(self, submit, keys, half):
        """GB/s of all chunks, in ops of eight. Raises Incomplete."""
        at = self.pages(half) + self.cache.data_ptr()
        stream = torch.cuda.current_stream().cuda_stream
        groups = [slice(i, i + 8) for i in range(0, self.n_chunks, 8)]
        layouts = [Layouts.of_extents(at[g], self.page_bytes, len(at[g])) for g in groups]
        torch.cuda.synchronize()
        began = time.perf_counter()
        ops = [submit(self.ns, keys[32 * g.start:32 * g.stop], memory, stream=stream,
                      deadline_ns=time.monotonic_ns() + DEADLINE_NS, queued=False)
               for g, memory in zip(groups, layouts)]
        for op in ops:
            self.client.wait_for(op)
        took = time.perf_counter() - began
        statuses = collections.Counter(Status(s).name for op in ops for s in op.statuses)
        if set(statuses) != {"OK"}:
            raise Incomplete(f"{submit.__name__}: after {took:.1f} s {dict(statuses)}")
        return self.n_chunks * self.chunk_bytes / took / 1e9

    def compare(self):
        words = self.page_bytes // 8
        pages = self.cache.view(torch.int64).view(-1, words)
        one, other = (torch.from_numpy(self.pages(half).reshape(-1) // self.page_bytes).cuda()
                      for half in (0, 1))
        if not torch.equal(pages[one], pages[other]):
            sys.exit("wrong bytes")

    def round(self):
        self.cache.view(torch.int64).random_()
        keys = os.urandom(32 * self.n_chunks)
        stored = self.move(self.client.submit_store, keys, 0)
        loaded = self.move(self.client.submit_load, keys, 1)
        self.compare()
        return loaded, stored


def warm_up(client, trial):
    """Until all of the arena is there and registered, and twice more: bytes come straight then."""
    left = 2
    for _ in range(60):
        try:
            trial.round()
            left -= client.cuda_stats()["pinned_bytes"] >= ARENA_BYTES
        except Incomplete:
            pass  # chunks are found when the agent has the memory for them
        if left <= 0:
            return
    sys.exit(f"only {client.cuda_stats()} of the arena registered")


def main():
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    cache = torch.empty(6 << 30, dtype=torch.uint8, device="cuda")
    pinned = torch.empty(1 << 30, dtype=torch.uint8, pin_memory=True)
    with Agent(os.path.abspath(sys.argv[1]), host_bytes=str(ARENA_BYTES)) as agent, \
            Client(agent.socket) as client:
        client.connect_wait(10)
        client.cuda_attach(0)
        print(f"{'GB/s, of raw':28}{'load':>14}{'store':>14}{'raw load':>11}{'raw store':>11}")
        for name in GEOMETRIES:
            trial = Trial(client, cache, name)
            warm_up(client, trial)
            rows = [(*trial.round(), raw(cache[:1 << 30], pinned, True),
                     raw(cache[:1 << 30], pinned, False)) for _ in range(rounds)]
            load, store, raw_load, raw_store = map(statistics.median, zip(*rows))
            shares = [statistics.median(r[i] / r[i + 2] for r in rows) for i in (0, 1)]
            print(f"{name:28}{load:8.2f} {shares[0]:4.0%} {store:8.2f} {shares[1]:4.0%} "
                  f"{raw_load:10.2f} {raw_store:10.2f}", flush=True)
        print(client.cuda_stats())


if __name__ == "__main__":
    main()
