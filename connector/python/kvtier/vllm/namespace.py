# SPDX-License-Identifier: Apache-2.0
"""Which bytes are interchangeable, and how a group's tokens make up chunks."""

import dataclasses

from kvtier.identity import model_revision, short

from . import compat
from .layout import PageSpec, layer_pages, layout_id


def identity(vllm_config, settings):
    """model, revision and salt of a Shard. To be asked for in one process alone, and the others told:
    models write into their configuration while they are loaded."""
    name, path, revision, config, how = compat.model_identity(vllm_config)
    return {"model": short(settings.model or name, 127),
            "revision": short(settings.revision, 63) or model_revision(path, revision, config, how),
            "salt": short(settings.tenant, 63)}


def window_of(spec):
    """Tokens of a group's sliding window; None for full attention. Raises ValueError."""
    kind = compat.group_kind(spec)
    if isinstance(kind, str) and kind != "full":
        raise ValueError(f"KVTier: {kind} is not supported; run this model without the connector")
    return None if kind == "full" else kind


@dataclasses.dataclass(frozen=True)
class GroupPages:
    """One KV group in the memory of one worker."""
    names: tuple[str, ...]   # of its layers
    pages: tuple             # LayerPages of each
    spec: object             # of its first layer
    layout: str              # differs whenever the meaning of the bytes may
    dtype: str


def group_pages(vllm_config, kv_cache_config, kv_caches):
    """Of each group. Raises LayoutError, which keeps the engine from starting, where a layout is
    not known."""
    layout, first = compat.layout_name(vllm_config, kv_cache_config)
    made = []
    for group in kv_cache_config.kv_cache_groups:
        names = tuple(n for n in group.layer_names if n in kv_caches)
        specs = [compat.layer_spec(group.kv_cache_spec, name) for name in names]
        pages = tuple(
            layer_pages(name, kv_caches[name],
                        PageSpec(kv_cache_config.num_blocks, spec.page_size_bytes,
                                 compat.spec_is_padded(spec), first))
            for name, spec in zip(names, specs))
        dtype = compat.spec_dtype(specs[0])
        made.append(GroupPages(names, pages, specs[0], layout_id(
            compat.layout_family(), layout, pages, names, dtype,
            compat.backend_name(vllm_config, names[0])), dtype))
    return made


class Plan:
    """How a group's tokens make up chunks; the same in both halves."""

    def __init__(self, index, spec, hash_tokens, settings):
        self.index = index
        self.spec = spec
        self.window = window_of(spec)
        self.block_tokens = spec.block_size
        # Blocks before a window are gone by the time a longer chunk would be complete.
        self.blocks_per_chunk = 1 if self.window else -(-settings.chunk_tokens // spec.block_size)
        self.chunk_tokens = self.blocks_per_chunk * self.block_tokens
        if self.block_tokens % hash_tokens != 0:
            raise ValueError(f"KVTier: blocks of {self.block_tokens} tokens are not whole hash "
                             f"blocks of {hash_tokens}")
        self.hash_tokens = hash_tokens
        self.hashes_per_chunk = self.chunk_tokens // hash_tokens


def plans(vllm_config, kv_cache_config, settings):
    hash_tokens = compat.hash_block_tokens(vllm_config, kv_cache_config)
    groups = kv_cache_config.kv_cache_groups
    if len(groups) > 1 and compat.TransferResults is None:
        raise ValueError(
            f"KVTier: vLLM {compat.vllm_version()} cannot be told of a failed load when a model "
            "has several KV groups; use 0.30 or later, or --disable-hybrid-kv-cache-manager")
    return [Plan(i, g.kv_cache_spec, hash_tokens, settings) for i, g in enumerate(groups)]
