# SPDX-License-Identifier: Apache-2.0
"""Where the KV of an engine's blocks is in memory, from strides alone.

Knows nothing of vLLM's classes and imports no torch: a tensor is anything with shape, stride(),
data_ptr() and element_size(). What it does not understand it refuses (LayoutError); a guess would
read as wrong tokens and not as an error.

A chunk's bytes are, in this order: each engine block of the chunk; in it each layer of the group;
in it the block's page in the order of memory. The order of the axes in a page goes into the
layout id, and so into the namespace.
"""

import dataclasses
import hashlib
import math

import numpy as np

from kvtier import Pages

N_SEGMENTS_MAX = 384
CHUNK_BYTES_MAX = 256 << 20  # that an agent takes


class LayoutError(ValueError):
    """The memory is not laid out in a way that is known; nothing may be stored or loaded."""


@dataclasses.dataclass(frozen=True)
class PageSpec:
    """What the engine says about the layers of a group."""
    num_blocks: int          # blocks of the engine's block manager
    page_bytes: int          # of one block of one layer
    padded: bool = False     # page_bytes has padding that the tensor does not show
    block_axis_first: bool = True  # axis 0 is known to be the blocks (KVCacheLayout's views)


@dataclasses.dataclass(frozen=True)
class LayerPages:
    """One layer: block b has n pieces of piece_bytes at base + b * block_stride + offsets[i]."""
    base: int
    block_stride: int
    offsets: tuple[int, ...]
    piece_bytes: int
    axes: str                # order of the page's axes in memory, for the layout id

    @property
    def page_bytes(self):
        return self.piece_bytes * len(self.offsets)


def _block_axis(name, shape, spec, element_bytes):
    """(axis, kernel blocks per block). The axis whose length fits, if only one does."""
    total = math.prod(shape)
    found = []
    for axis in (0,) if spec.block_axis_first else (0, 1):
        if axis >= len(shape) or shape[axis] % spec.num_blocks != 0 or shape[axis] == 0:
            continue
        if axis == 1 and shape[0] != 2:  # the only thing that ever stood before the blocks: K, V
            continue
        split = shape[axis] // spec.num_blocks
        page = total // shape[axis] * element_bytes * split
        if page == spec.page_bytes or (spec.padded and page < spec.page_bytes):
            found.append((axis, split))
    if len(found) != 1:
        raise LayoutError(
            f"KV cache of layer {name}: shape {tuple(shape)} with {element_bytes}-byte elements "
            f"does not name its blocks ({spec.num_blocks} blocks of {spec.page_bytes} bytes "
            f"{'fit nowhere' if not found else 'fit twice'}); KVTier refuses layouts it does not "
            "know: use a vLLM release in the tested range or report this line")
    return found[0]


def layer_pages(name, tensor, spec):
    """Reads one layer's tensor. Raises LayoutError."""
    shape, strides = list(tensor.shape), list(tensor.stride())
    element = tensor.element_size()
    axis, split = _block_axis(name, shape, spec, element)
    block_stride = strides[axis] * split
    # (length, stride, letter) of what is inside a block; letters are logical axes.
    dims = [(n, s, chr(ord("a") + i)) for i, (n, s) in enumerate(zip(shape, strides))
            if i != axis and n != 1]
    if split > 1:
        dims.append((split, strides[axis], "k"))
    dims.sort(key=lambda d: d[1])
    below = 1
    for length, stride in sorted(((n, s) for n, s in zip(shape, strides) if n != 1),
                                 key=lambda d: d[1]):
        if stride < below:
            raise LayoutError(f"KV cache of layer {name}: strides {tuple(strides)} of shape "
                              f"{tuple(shape)} overlap; KVTier refuses to guess")
        below = stride * length
    run, loops = 1, []
    for length, stride, _ in dims:
        if not loops and stride == run:
            run *= length
        else:
            loops.append((length, stride))
    offsets = np.zeros(1, np.int64)
    for length, stride in reversed(loops):
        steps = np.arange(length, dtype=np.int64) * stride
        offsets = (offsets[:, None] + steps[None, :]).reshape(-1)
    axes = "".join(f"{letter}{length}" for length, _, letter in reversed(dims))
    return LayerPages(tensor.data_ptr(), block_stride * element,
                      tuple(int(o) * element for o in offsets), run * element, axes)


def n_segments(chunk_bytes, n_layers):
    """Pieces with a checksum of their own: one per layer where that divides the chunk."""
    wanted = min(n_layers, N_SEGMENTS_MAX)
    return next(n for n in range(wanted, 0, -1) if chunk_bytes % n == 0)


def block_bytes(layers):
    """Of one block, all layers."""
    return sum(layer.page_bytes for layer in layers)


class GroupMemory:
    """The layers of one KV group in one worker, and the memory of its chunks."""

    def __init__(self, layers, blocks_per_chunk, num_blocks, sink=None):
        """layers: LayerPages in the group's order. sink: a tensor of a block's bytes, whose
        contents do not matter."""
        if not layers:
            raise LayoutError("a KV group without layers")
        self.chunk_bytes = block_bytes(layers) * blocks_per_chunk
        self.n_segments = n_segments(self.chunk_bytes, len(layers))
        pages = Pages(*_pieces(layers), num_blocks, blocks_per_chunk=blocks_per_chunk,
                      sink=sink.data_ptr() if sink is not None else 0, keep=sink)
        #: Of consecutive chunks, for the client, from the ids of their blocks; see Pages.
        self.batch = pages.layouts


def _pieces(layers):
    """Of a block: address of each piece in block 0, its stride per block, its length."""
    base, stride, size = [], [], []
    for layer in layers:
        for offset in layer.offsets:
            address = layer.base + offset
            # BL layouts: the layers of a block lie one after the other.
            if base and base[-1] + size[-1] == address and stride[-1] == layer.block_stride:
                size[-1] += layer.piece_bytes
                continue
            base.append(address)
            stride.append(layer.block_stride)
            size.append(layer.piece_bytes)
    return base, stride, size


def layout_id(family, layout_name, layers, names, dtype, backend):
    """A text of at most 63 bytes that differs whenever the meaning of a chunk's bytes may."""
    digest = hashlib.sha256()
    for part in (family, layout_name, dtype, backend, *names,
                 *(f"{layer.axes}:{layer.piece_bytes}:{len(layer.offsets)}" for layer in layers)):
        digest.update(part.encode() + b"\0")
    return f"1/{layout_name}/{family}/{digest.hexdigest()[:24]}"[:63]
