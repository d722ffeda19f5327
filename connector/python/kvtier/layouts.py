# SPDX-License-Identifier: Apache-2.0
"""Where the bytes of chunks are in the caller's memory. Nothing here copies them.

A `Layouts` describes the memory of the chunks of one call, one struct kvtier_layout each, kept in
one array so that a batch costs no Python per chunk. It can be used for any number of calls.
"""

from __future__ import annotations

import ctypes
from array import array as Array
from typing import Any, Iterable, Sequence, Union

import numpy as np

from . import _lib
from .errors import InvalidError

#: struct kvtier_extent
EXTENT = np.dtype([("addr", "<u8"), ("bytes", "<u8")])
#: struct kvtier_layout
LAYOUT = np.dtype([("extents", "<u8"), ("n_extents", "<u4"), ("n_outer", "<u4"),
                   ("n_inner", "<u4"), ("reserved", "<u4"), ("base", "<u8"),
                   ("outer_stride", "<i8"), ("inner_stride", "<i8"), ("bytes", "<u8")])
#: struct kvtier_piece
PIECE = np.dtype([("base", "<u8"), ("stride", "<i8"), ("bytes", "<u8")])
assert LAYOUT.itemsize == 56 and EXTENT.itemsize == 16 and PIECE.itemsize == 24


def address_of(array: np.ndarray) -> int:
    """Of an array's first byte. Not by __array_interface__, which describes a struct's fields."""
    return array.ctypes.data


class Layouts:
    """Memory of n chunks. Addresses are taken as they are: what they name must stay mapped, and
    for a load writable, until the op was polled or canceled. `keep` is what owns that memory; ops
    hold it until they are over. on_gpu: known to be memory of a GPU, which transfers take with
    their stream argument only; where it is not known (addresses) the stream argument decides."""

    __slots__ = ("address", "keep", "readonly", "on_gpu", "_n", "_arrays")

    def __init__(self, array: np.ndarray, keep: Any = None, readonly: bool = False,
                 extents: np.ndarray | None = None, on_gpu: bool | None = None) -> None:
        """array: C-contiguous, of dtype LAYOUT. extents: what `array` points to, if anything."""
        if array.dtype != LAYOUT or array.ndim != 1 or not array.flags.c_contiguous:
            raise InvalidError("layouts: not a contiguous one-dimensional array of LAYOUT")
        self._set(address_of(array), len(array), (array, extents), keep, readonly, on_gpu)

    def _set(self, address: int, n: int, arrays: Any, keep: Any, readonly: bool,
             on_gpu: bool | None) -> None:
        self.address, self._n, self._arrays = address, n, arrays
        self.keep, self.readonly, self.on_gpu = keep, readonly, on_gpu

    def __len__(self) -> int:
        return self._n

    @classmethod
    def of_extents(cls, addresses: Any, lengths: Any, n_chunks: int, *, keep: Any = None,
                   readonly: bool = False) -> Layouts:
        """Each chunk is the same number of extents, one after the other.

        addresses: integers, n_chunks * extents per chunk, in order; lengths: bytes of each, or one
        number (or anything that broadcasts to the shape of addresses).
        """
        at = np.asarray(addresses, np.uint64)
        shaped = np.empty(at.shape, EXTENT)
        shaped["addr"] = at
        shaped["bytes"] = lengths
        extents = shaped.reshape(-1)
        if n_chunks < 1 or len(extents) == 0 or len(extents) % n_chunks != 0:
            raise InvalidError(f"layouts: {len(extents)} extents do not make {n_chunks} chunks")
        per_chunk = len(extents) // n_chunks
        array = np.zeros(n_chunks, LAYOUT)
        array["extents"] = address_of(extents) + np.arange(
            0, extents.nbytes, per_chunk * EXTENT.itemsize, dtype=np.uint64)
        array["n_extents"] = per_chunk
        return cls(array, keep, readonly, extents)

    @classmethod
    def of_strides(cls, bases: Any, nbytes: int, *, n_outer: int = 1, outer_stride: int = 0,
                   n_inner: int = 1, inner_stride: int = 0, keep: Any = None,
                   readonly: bool = False) -> Layouts:
        """A chunk per address in bases: for each o in n_outer, for each i in n_inner, nbytes at
        base + o * outer_stride + i * inner_stride. Strides are in bytes."""
        at = np.atleast_1d(np.asarray(bases, np.uint64))
        array = np.zeros(at.size, LAYOUT)
        array["base"] = at.reshape(-1)
        array["bytes"] = nbytes
        array["n_outer"], array["outer_stride"] = n_outer, outer_stride
        array["n_inner"], array["inner_stride"] = n_inner, inner_stride
        return cls(array, keep, readonly)

    @classmethod
    def of_buffers(cls, buffers: Iterable[Any]) -> Layouts:
        """A chunk per object: NumPy array, tensor (all of the CPU, or all of one GPU), or anything
        with the buffer protocol.

        Any strides will do; a chunk's bytes are the elements in logical (C) order, so that views
        of one shape and element type hold the same chunk whatever their strides are.
        """
        owners = list(buffers)
        array = np.zeros(len(owners), LAYOUT)
        lists, readonly, devices = [], False, set()
        for i, owner in enumerate(owners):
            base, dims, item_bytes, fixed = _view(owner)
            readonly |= fixed or any(length > 1 and stride == 0 for length, stride in dims)
            devices.add(_device(owner))
            loops, run = _loops(dims, item_bytes)
            entry = array[i]
            if len(loops) > 2:
                lists.append((i, _offsets(loops) + base, run))
                continue
            entry["base"], entry["bytes"] = base, run
            (entry["n_outer"], entry["outer_stride"]), (entry["n_inner"], entry["inner_stride"]) = \
                ([(1, 0)] * 2 + loops)[-2:]
        if len(devices) > 1:
            raise InvalidError(f"layouts: memory of several devices ({', '.join(sorted(devices))})"
                               " in one call")
        return cls(array, owners, readonly, _extents_into(array, lists), "cpu" not in devices)


class Pages:
    """Memory in pages, as engines keep KV: block b is, one after the other, each piece's bytes at
    base + b * stride; a chunk is so many blocks anywhere. Describes chunks without NumPy's or
    Python's work per piece, for who does that between two steps of an engine."""

    def __init__(self, bases: Any, strides: Any, sizes: Any, n_blocks: int, *,
                 blocks_per_chunk: int = 1, sink: int = 0, keep: Any = None) -> None:
        """bases, strides, sizes: of the pieces, as integers. sink: address of as many bytes as a
        block has, which block -1 stands for; 0: there is no such block."""
        self._pieces = np.empty(len(bases), PIECE)
        self._pieces["base"], self._pieces["stride"] = bases, strides
        self._pieces["bytes"] = sizes
        self.blocks_per_chunk, self.keep = blocks_per_chunk, keep
        self._pages = _lib.Pages(ctypes.sizeof(_lib.Pages), address_of(self._pieces),
                                 len(self._pieces), blocks_per_chunk, n_blocks, sink or None)
        self._pages_p = ctypes.byref(self._pages)
        self._reserve(1)

    def _reserve(self, n: int) -> None:
        layouts = np.zeros(n, LAYOUT)
        extents = np.zeros(n * self.blocks_per_chunk * len(self._pieces), EXTENT)
        self._room, self._arrays = n, (layouts, extents)
        self._places = address_of(layouts), address_of(extents)

    def layouts(self, blocks: Array[int]) -> Layouts:
        """Of the chunks that these blocks (typecode q) make up, blocks_per_chunk for each. Good for
        calls until the next one of this method, which uses the same memory."""
        address, n_blocks = blocks.buffer_info()
        n, rest = divmod(n_blocks, self.blocks_per_chunk)
        if rest or not n or blocks.typecode != "q":
            raise InvalidError(f"pages: {n_blocks} blocks of type {blocks.typecode}; wanted q, and "
                               f"{self.blocks_per_chunk} for each chunk")
        if n > self._room:
            self._reserve(n)
        layouts, extents = self._places
        if _lib.lib.kvt_layouts_of_pages(self._pages_p, address, n, layouts, extents):
            raise InvalidError(f"pages: a block outside of 0 to {self._pages.n_blocks - 1}, or -1 "
                               "without a sink")
        out = Layouts.__new__(Layouts)
        out._set(layouts, n, self._arrays, self.keep, False, None)
        return out


#: What calls take as the memory of their chunks.
Memory = Union[Layouts, np.ndarray, Sequence[Any]]


def layouts_of(memory: Memory) -> Layouts:
    """A Layouts as it is; a LAYOUT array without an owner; a sequence of buffers."""
    if isinstance(memory, Layouts):
        return memory
    if isinstance(memory, np.ndarray) and memory.dtype == LAYOUT:
        return Layouts(memory, memory)
    if isinstance(memory, (bytes, bytearray, memoryview)) or getattr(memory, "ndim", 2) < 2:
        raise InvalidError("memory: one buffer; wanted a sequence with one for each chunk")
    return Layouts.of_buffers(memory)


def _device(owner: Any) -> str:
    device = getattr(owner, "device", None) if hasattr(owner, "data_ptr") else None
    if device is None or device.type == "cpu":
        return "cpu"
    if device.type != "cuda":
        raise InvalidError(f"layouts: a tensor on {device}; only memory of the host and of CUDA "
                           "devices can be named")
    return str(device)


def _view(owner: Any) -> tuple[int, list[tuple[int, int]], int, bool]:
    """(address, [(length, stride in bytes)], bytes of an element, read only)"""
    if hasattr(owner, "data_ptr") and hasattr(owner, "element_size"):
        item = owner.element_size()
        return (owner.data_ptr(), [(n, s * item) for n, s in zip(owner.shape, owner.stride())],
                item, False)
    try:
        array = owner if isinstance(owner, np.ndarray) else np.asarray(memoryview(owner))
    except (TypeError, ValueError) as err:
        raise InvalidError(f"layouts: {type(owner).__name__}: {err}; wanted NumPy arrays, tensors "
                           "or objects with the buffer protocol") from err
    if array.dtype.hasobject:
        raise InvalidError("layouts: an array of Python objects has no bytes to store")
    return (address_of(array), list(zip(array.shape, array.strides)), array.itemsize,
            not array.flags.writeable)


def _loops(dims: list[tuple[int, int]], run: int) -> tuple[list[tuple[int, int]], int]:
    """The loops (length, stride), outermost first, around contiguous runs of bytes."""
    loops: list[tuple[int, int]] = []
    for length, stride in reversed(dims):
        if length == 0:
            return [], 0
        if length == 1:
            continue
        if not loops and stride == run:
            run *= length
        elif loops and stride == loops[0][0] * loops[0][1]:
            loops[0] = (loops[0][0] * length, loops[0][1])
        else:
            loops.insert(0, (length, stride))
    return loops, run


def _offsets(loops: list[tuple[int, int]]) -> np.ndarray:
    offsets = np.zeros(1, np.int64)
    for length, stride in loops:
        steps = np.arange(length, dtype=np.int64) * stride
        offsets = (offsets[:, None] + steps[None, :]).reshape(-1)
    return offsets


def _extents_into(array: np.ndarray, lists: list[tuple[int, np.ndarray, int]]) \
        -> np.ndarray | None:
    """Makes chunks that need more than two loops lists of extents."""
    if not lists:
        return None
    extents = np.empty(sum(len(at) for _, at, _ in lists), EXTENT)
    first = 0
    for i, addresses, run in lists:
        part = extents[first:first + len(addresses)]
        part["addr"], part["bytes"] = addresses, run
        array[i]["extents"] = address_of(extents) + first * EXTENT.itemsize
        array[i]["n_extents"] = len(addresses)
        first += len(addresses)
    return extents
