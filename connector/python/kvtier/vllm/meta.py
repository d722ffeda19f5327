# SPDX-License-Identifier: Apache-2.0
"""What the two halves of the connector tell each other."""

import dataclasses
from array import array

from .compat import KVConnectorMetadata, KVConnectorWorkerMetadata


@dataclasses.dataclass
class Transfer:
    """Chunks of one KV group, in prompt order."""
    group: int
    keys: bytes            # 32 each
    parent: bytes          # key of the chunk before the first; empty: there is none
    blocks: array          # engine blocks (q), blocks_per_chunk each; -1: nothing is wanted there


@dataclasses.dataclass
class Meta(KVConnectorMetadata):
    """Scheduler -> workers, one per step."""
    hash_domain: str = ""  # see keys.hash_domain
    loads: list[tuple[str, list[Transfer]]] = dataclasses.field(default_factory=list)
    saves: list[tuple[int, list[Transfer]]] = dataclasses.field(default_factory=list)


NOTHING = Meta()  # to do in a step, as mostly


@dataclasses.dataclass(frozen=True)
class Shard:
    """One worker's part of a KV group: all of a namespace but the hashes."""
    model: str
    revision: str
    salt: str
    layout: str
    dtype: str
    n_layers: int
    n_kv_heads: int
    head_dim: int
    tp_rank: int
    tp_size: int
    pp_rank: int
    pp_size: int
    kv_group: int
    n_segments: int
    chunk_bytes: int
    tokens_per_chunk: int

    def namespace(self, hash_domain):
        """Fields of a kvtier.Namespace."""
        return {**dataclasses.asdict(self), "hash_algo": hash_domain}


@dataclasses.dataclass
class WorkerMeta(KVConnectorWorkerMetadata):
    """Workers -> scheduler. Everything adds up over workers."""
    shards: frozenset = frozenset()        # each worker tells once, with its first step
    n_described: int = 0                   # workers that told
    saved: dict[int, int] = dataclasses.field(default_factory=dict)     # save id -> workers
    stored: dict[int, int] = dataclasses.field(default_factory=dict)    # save id -> of them, whole
    failed: dict[str, int] = dataclasses.field(default_factory=dict)    # request -> tokens that came

    def aggregate(self, other):
        for name in ("saved", "stored"):
            mine = getattr(self, name)
            for key, n in getattr(other, name).items():
                mine[key] = mine.get(key, 0) + n
        for key, n in other.failed.items():
            self.failed[key] = min(n, self.failed.get(key, n))
        self.shards = self.shards | other.shards
        self.n_described += other.n_described
        return self
