# SPDX-License-Identifier: Apache-2.0
"""libkvtier as ctypes sees it. ctypes.CDLL lets go of the GIL in every call."""

from __future__ import annotations

import ctypes
import os
import pathlib
import struct

from ._version import __version__
from .errors import VersionError

SONAME = "libkvtier.so.0"
KEY_BYTES = 32
BATCH_MAX = 1024

# enum kvtier_op_type
LOOKUP, STORE, LOAD, PREFETCH = range(4)
# flags
LEASE, DURABLE, PARENT = 1, 2, 4

# struct kvtier_completion: op, user, type, status, n_items, n_ok, n_prefix, reserved, lease,
# lease_deadline_ns
COMPLETION = struct.Struct("=QQiiIIIIQQ")


class Options(ctypes.Structure):
    """struct kvtier_options"""
    _fields_ = [("size", ctypes.c_size_t), ("socket_path", ctypes.c_char_p),
                ("client_name", ctypes.c_char_p), ("queue_depth", ctypes.c_uint32),
                ("n_copy_threads", ctypes.c_uint32), ("spin_us", ctypes.c_uint32),
                ("n_done", ctypes.c_void_p)]


class NamespaceStruct(ctypes.Structure):
    """struct kvtier_namespace"""
    _fields_ = ([("size", ctypes.c_size_t)] +
                [(n, ctypes.c_char_p) for n in ("model", "revision", "layout", "salt",
                                                "hash_algo", "dtype")] +
                [(n, ctypes.c_uint32) for n in ("n_layers", "n_kv_heads", "head_dim",
                                                "tokens_per_chunk", "tp_rank", "tp_size",
                                                "pp_rank", "pp_size", "kv_group", "n_segments")] +
                [("chunk_bytes", ctypes.c_uint64)])


class Cuda(ctypes.Structure):
    """struct kvtier_cuda"""
    _fields_ = [("size", ctypes.c_size_t), ("library", ctypes.c_char_p),
                ("device", ctypes.c_int32), ("n_threads", ctypes.c_uint32),
                ("kernel_below_bytes", ctypes.c_uint32), ("reserved", ctypes.c_uint32)]


class CudaStats(ctypes.Structure):
    """struct kvtier_cuda_stats"""
    _fields_ = [("size", ctypes.c_size_t)] + [
        (n, ctypes.c_uint64) for n in ("engine_bytes", "kernel_bytes", "staged_bytes",
                                       "pinned_bytes")]


class Pages(ctypes.Structure):
    """struct kvtier_pages"""
    _fields_ = [("size", ctypes.c_size_t), ("pieces", ctypes.c_void_p),
                ("n_pieces", ctypes.c_uint32), ("blocks_per_chunk", ctypes.c_uint32),
                ("n_blocks", ctypes.c_uint64), ("sink", ctypes.c_void_p)]


def _path() -> str:
    named = os.environ.get("KVTIER_LIBRARY")
    if named:
        return named
    beside = pathlib.Path(__file__).with_name(SONAME)
    return str(beside) if beside.exists() else SONAME


def _prototypes(lib: ctypes.CDLL) -> None:
    c_int, u32, u64, void = ctypes.c_int, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p
    u64_p = ctypes.POINTER(u64)
    transfer = [void, c_int, void, u32, void, u32, u64, void, void, u64_p]
    transfer_cuda = [*transfer[:-1], void, u64_p]
    for name, result, args in (
            ("kvt_open", c_int, [ctypes.POINTER(Options), ctypes.POINTER(void)]),
            ("kvt_close", None, [void]),
            ("kvt_connected", c_int, [void]),
            ("kvt_connect_wait", c_int, [void, c_int]),
            ("kvt_namespace", c_int, [void, ctypes.POINTER(NamespaceStruct)]),
            ("kvt_lookup", c_int, [void, c_int, void, u32, u32, u32, void, void, u64_p]),
            ("kvt_store", c_int, transfer),
            ("kvt_load", c_int, transfer),
            ("kvt_prefetch", c_int, [void, c_int, void, u32, u32, u64, void, void, u64_p]),
            ("kvt_cuda_attach", c_int, [void, ctypes.POINTER(Cuda)]),
            ("kvt_store_cuda", c_int, transfer_cuda),
            ("kvt_load_cuda", c_int, transfer_cuda),
            ("kvt_cuda_stats", c_int, [void, ctypes.POINTER(CudaStats)]),
            ("kvt_layouts_of_pages", c_int, [void, void, u32, void, void]),
            ("kvt_poll", u32, [void, void, u32]),
            ("kvt_wait", u32, [void, void, u32, c_int]),
            ("kvt_event_fd", c_int, [void]),
            ("kvt_cancel", c_int, [void, u64]),
            ("kvt_release", c_int, [void, u64, c_int]),
            ("kvt_ping", c_int, [void, c_int]),
            ("kvt_stats", c_int, [void, u64_p, ctypes.POINTER(u32), c_int]),
            ("kvt_stat_name", ctypes.c_char_p, [u32]),
            ("kvt_strerror", ctypes.c_char_p, [c_int]),
            ("kvt_last_error", None, [void, ctypes.c_char_p, ctypes.c_size_t]),
            ("kvt_version", ctypes.c_char_p, [])):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, args


def _open() -> ctypes.CDLL:
    path = _path()
    try:
        lib = ctypes.CDLL(path)
    except OSError as err:
        raise ImportError(
            f"kvtier: cannot load {path}: {err}; install the package with its library "
            "(pip install connector/python), or name one with KVTIER_LIBRARY") from err
    _prototypes(lib)
    version = lib.kvt_version().decode()
    if version.split(".")[:2] != __version__.split(".")[:2]:
        raise VersionError(f"kvtier: {path} is version {version}, this package {__version__}; "
                           "install both from one source")
    return lib


lib = _open()
STAT_NAMES: list[str] = []
while (_name := lib.kvt_stat_name(len(STAT_NAMES))) is not None:
    STAT_NAMES.append(_name.decode())
