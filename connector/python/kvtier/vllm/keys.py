# SPDX-License-Identifier: Apache-2.0
"""Names of chunks and of namespaces. Pure functions; golden vectors in the tests.

A chunk's key is the engine's own hash of the last block in it: the chain covers every token
before. That chain knows an adapter by its name alone, and adapter and salt shared a domain in some
releases, so requests with either get keys derived from the chain's hash *and* from both, each with
its length. No cross-tenant or cross-adapter hit rests on the chain alone.
"""

import hashlib
import os

from kvtier import KEY_BYTES
from kvtier.identity import WEIGHTS, field, folder_digest


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
                                    for e in entries if e.name.endswith(WEIGHTS)))
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
    digest.update(field(cache_salt or ""))
    digest.update(field(lora_name or ""))
    digest.update(field(lora_path or ""))
    digest.update(field(adapters.digest(lora_path) if lora_path else b""))
    return digest.digest()


def domain_of(request, adapters):
    """request_domain() of an engine's request."""
    lora = getattr(request, "lora_request", None)
    return request_domain(getattr(request, "cache_salt", None), lora.lora_name if lora else None,
                          lora.lora_path if lora else None, adapters)


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
