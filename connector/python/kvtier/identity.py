# SPDX-License-Identifier: Apache-2.0
"""What tells models apart, for namespaces. Pure functions of files and texts."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

_SAMPLES = 16
_SAMPLE_BYTES = 4096
_READ_BYTES = 1 << 20
WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")
ADAPTER_CONFIG = "adapter_config.json"


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


def adapter_files(path: str) -> list[str]:
    """What a LoRA adapter's effect depends on. Raises OSError."""
    if os.path.isfile(path):
        return [path]
    return [os.path.join(path, n) for n in sorted(os.listdir(path))
            if n.endswith(WEIGHTS) or n == ADAPTER_CONFIG]


def adapter_digest(path: str) -> bytes | None:
    """Of all of an adapter's weights and of its configuration; None when there are none. Adapters
    are small, and may differ in few places."""
    try:
        files = adapter_files(path)
        if not any(name.endswith(WEIGHTS) for name in files):
            return None
        digest = hashlib.sha256()
        for name in files:
            content = hashlib.sha256()
            with open(name, "rb") as file:
                while part := file.read(_READ_BYTES):
                    content.update(part)
            digest.update(field(os.path.basename(name)) + content.digest())
        return digest.digest()
    except OSError:
        return None


def local_folder(path: str, revision: str | None = None) -> str:
    """Where the files of a model or adapter are: the path, or what was loaded from the hub to a
    folder of this machine. Raises what the hub's client raises where nothing was."""
    if os.path.exists(path):
        return path
    from huggingface_hub import snapshot_download
    return snapshot_download(path, revision=revision, local_files_only=True)


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
