# SPDX-License-Identifier: Apache-2.0
"""What tells models apart, for namespaces. Pure functions of files and texts."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

_SAMPLES = 16
_SAMPLE_BYTES = 4096
WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")


def field(text: str | bytes) -> bytes:
    """A text with its length before it, so that joined texts stay apart."""
    raw = text if isinstance(text, bytes) else str(text).encode()
    return len(raw).to_bytes(4, "little") + raw


def file_digest(path: str) -> bytes:
    """Of a file's size and 16 samples spread over it. Weights that were trained on differ nearly
    everywhere, so this tells them apart without reading gigabytes, and it stays the same when
    the file is copied or touched."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(size.to_bytes(8, "little"))
        if size <= _SAMPLES * _SAMPLE_BYTES:
            digest.update(file.read())
        else:
            for i in range(_SAMPLES):
                file.seek((size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.digest()


def folder_digest(folder: str) -> bytes | None:
    """Of the weights in a folder, or of a file of weights; None when there are none."""
    try:
        if os.path.isfile(folder):
            return file_digest(folder)
        names = sorted(n for n in os.listdir(folder) if n.endswith(WEIGHTS))
        if not names:
            return None
        digest = hashlib.sha256()
        for name in names:
            digest.update(field(name) + file_digest(os.path.join(folder, name)))
        return digest.digest()
    except OSError:
        return None


def model_revision(path: str, revision: str | None, config: dict[str, Any],
                   settings: dict[str, Any]) -> str:
    """At most 63 bytes for all that changes a model's KV but its name."""
    weights = folder_digest(path)
    digest = hashlib.sha256(field(revision or "") + field(weights or b""))
    kept = {k: v for k, v in config.items() if k not in ("transformers_version", "_name_or_path")}
    digest.update(field(json.dumps(kept, sort_keys=True, default=str)))
    digest.update(field(json.dumps(settings, sort_keys=True, default=str)))
    return digest.hexdigest()[:48]


def short(text: str, limit: int) -> str:
    """text, or its start and a digest when it has more than limit bytes."""
    raw = text.encode()
    if len(raw) <= limit and "\0" not in text:
        return text
    tail = "~" + hashlib.sha256(raw).hexdigest()[:24]
    return raw[:limit - len(tail)].decode(errors="ignore").replace("\0", "") + tail
