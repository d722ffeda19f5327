# SPDX-License-Identifier: Apache-2.0
"""What must be equal for bytes to be interchangeable."""

from __future__ import annotations

import ctypes
import dataclasses

from . import _lib
from .errors import InvalidError


@dataclasses.dataclass(frozen=True)
class Namespace:
    """Everything that must be equal for the bytes of two chunks to be interchangeable.

    Two engines share chunks if and only if all fields are equal. Texts are UTF-8: model at most
    127 bytes, dtype 15, hash_algo 31, the others 63; what is too long is refused, never cut.
    A size of 0 (tp_size, pp_size) means that the axis is not used.
    """
    model: str                 # model id, required
    chunk_bytes: int           # of one chunk of one shard: 1 to 256 MiB
    revision: str = ""         # of the model, or a digest of its weights
    layout: str = ""           # order of the bytes in a segment
    salt: str = ""             # isolation domain: tenant, adapter, cache salt
    hash_algo: str = ""        # what makes the keys, and its root
    dtype: str = ""
    n_layers: int = 0
    n_kv_heads: int = 0
    head_dim: int = 0
    tokens_per_chunk: int = 0
    tp_rank: int = 0
    tp_size: int = 0
    pp_rank: int = 0
    pp_size: int = 0
    kv_group: int = 0
    n_segments: int = 1        # pieces with a checksum each; divides chunk_bytes

    def struct(self) -> _lib.NamespaceStruct:
        """As the library takes it. Raises InvalidError."""
        values = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, str):
                value = value.encode()
                if b"\0" in value:
                    raise InvalidError(f"namespace: {field.name} has a NUL character in it")
            elif not 0 <= value < (1 << 64 if field.name == "chunk_bytes" else 1 << 32):
                raise InvalidError(f"namespace: {field.name} is {value}, out of range")
            values[field.name] = value
        return _lib.NamespaceStruct(ctypes.sizeof(_lib.NamespaceStruct), **values)
