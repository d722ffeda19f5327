# SPDX-License-Identifier: Apache-2.0
"""Names of chunks and of namespaces. Pure functions; golden vectors in the tests.

A chunk's key is the engine's own hash of the last block in it: the chain covers every token
before. That chain knows an adapter by its name alone, and adapter and salt shared a domain in some
releases, so requests with either get keys derived from the chain's hash *and* from both, each with
its length. No cross-tenant or cross-adapter hit rests on the chain alone.
"""

import hashlib
import json
import os

from kvtier import KEY_BYTES

_SAMPLES = 16
_SAMPLE_BYTES = 4096
_WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")


def _field(text):
    raw = text if isinstance(text, bytes) else str(text).encode()
    return len(raw).to_bytes(4, "little") + raw


def file_digest(path):
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


def folder_digest(folder):
    """Of the weights in a folder; None when it is no folder or has none."""
    try:
        names = sorted(n for n in os.listdir(folder) if n.endswith(_WEIGHTS))
        if not names:
            return None
        digest = hashlib.sha256()
        for name in names:
            digest.update(_field(name) + file_digest(os.path.join(folder, name)))
        return digest.digest()
    except OSError:
        return None


def model_revision(path, revision, config, settings):
    """At most 63 bytes for all that changes a model's KV but its name."""
    weights = folder_digest(path)
    digest = hashlib.sha256(_field(revision or "") + _field(weights or b""))
    kept = {k: v for k, v in config.items() if k not in ("transformers_version", "_name_or_path")}
    digest.update(_field(json.dumps(kept, sort_keys=True, default=str)))
    digest.update(_field(json.dumps(settings, sort_keys=True, default=str)))
    return digest.hexdigest()[:48]


def short(text, limit):
    """text, or its start and a digest when it has more than limit bytes."""
    raw = text.encode()
    if len(raw) <= limit and "\0" not in text:
        return text
    tail = "~" + hashlib.sha256(raw).hexdigest()[:24]
    return raw[:limit - len(tail)].decode(errors="ignore").replace("\0", "") + tail


class Adapters:
    """Digests of LoRA adapters, by path; read again when the files change."""

    N_MAX = 1024

    def __init__(self):
        self._known = {}

    @staticmethod
    def _signature(path):
        try:
            with os.scandir(path) as entries:
                return tuple(sorted((e.name, e.stat().st_size, e.stat().st_mtime_ns)
                                    for e in entries if e.name.endswith(_WEIGHTS)))
        except OSError:
            return ()

    def digest(self, path):
        signature = self._signature(path)
        known = self._known.get(path)
        if known is None or known[0] != signature:
            if len(self._known) >= self.N_MAX:
                self._known.clear()
            known = self._known[path] = signature, folder_digest(path) or b""
        return known[1]


def request_domain(cache_salt, lora_name, lora_path, adapters):
    """Bytes that part requests from each other; None for those with neither adapter nor salt."""
    if not cache_salt and not lora_name:
        return None
    digest = hashlib.sha256(b"kvtier request domain 1\0")
    digest.update(_field(cache_salt or ""))
    digest.update(_field(lora_name or ""))
    digest.update(_field(lora_path or ""))
    digest.update(_field(adapters.digest(lora_path) if lora_path else b""))
    return digest.digest()


def chunk_key(domain, block_hash):
    """32 bytes. A hash of another length than a key (xxhash) is stretched, never cut."""
    if domain is None and len(block_hash) == KEY_BYTES:
        return bytes(block_hash)
    return hashlib.sha256(b"kvtier chunk 1\0" + (domain or b"") + block_hash).digest()


def hash_domain(algorithm, root, python):
    """At most 31 bytes: the algorithm, what its serialization depends on, and the chain's root.
    sha256 and xxhash run over pickled tuples, which Python's version may change."""
    if not algorithm.endswith("_cbor"):
        algorithm += f"-py{python[0]}{python[1]}"
    return f"{algorithm[:18]}:{hashlib.sha256(root).hexdigest()[:12]}"
