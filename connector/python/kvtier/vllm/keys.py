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
from kvtier.identity import adapter_digest, adapter_files, field, local_folder


class Adapters:
    """Which weights an engine's LoRA adapters have. A worker takes an adapter's files once for each
    number (lora_int_id), and the engine's hashes know little more of it than its name. So a number
    whose files are not known or have changed is not trusted any more: what its requests compute
    belongs under no key. And a name with which more than one kind of weights came is mixed: the
    engine's own cache may have the KV of either under it."""

    N_MAX = 65536
    N_FILES_MAX = 1024

    def __init__(self, hash_name):
        """hash_name(lora): what the engine's hashes know of an adapter."""
        self._hash_name = hash_name
        self._files = {}    # path -> (signature, digest)
        self._numbers = {}  # lora_int_id -> [digest or None, its names]
        self._names = {}    # name -> digest; None: mixed

    @staticmethod
    def _signature(path):
        stats = [(name, os.stat(name)) for name in adapter_files(path)]
        return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]

    def _digest(self, lora):
        try:
            path = local_folder(os.path.expanduser(lora.lora_path))
            signature = self._signature(path)
        except Exception:  # whatever the hub's client raises where nothing was loaded yet
            return None
        known = self._files.get(path)
        if known is None or known[0] != signature:
            if len(self._files) >= self.N_FILES_MAX:
                self._files.clear()
            known = self._files[path] = signature, adapter_digest(path)
        return known[1]

    def seen(self, lora):
        """To be called with each request's adapter. @return a digest of its weights, or None: not
        to be trusted."""
        digest, name = self._digest(lora), self._hash_name(lora)
        if lora.lora_int_id not in self._numbers and len(self._numbers) >= self.N_MAX:
            digest = None
        elif digest is not None:
            number = self._numbers.setdefault(lora.lora_int_id, [digest, set()])
            number[1].add(name)
            if number[0] != digest:  # older requests of this number may compute with either
                number[0] = digest = None
                self._names.update(dict.fromkeys(number[1]))
        if name in self._names:
            if self._names[name] != digest:
                self._names[name] = None
        elif len(self._names) < self.N_MAX:
            self._names[name] = digest
        return digest

    def trusted(self, lora):
        """Whether what is computed with it belongs under its digest."""
        return self._numbers.get(lora.lora_int_id, (None,))[0] is not None

    def mixed(self, lora):
        """Whether the engine's own cache may have others' KV for it."""
        return self._names.get(self._hash_name(lora)) is None


def request_domain(cache_salt, lora_name, lora_path, weights):
    """Bytes that part requests from each other; None for those with neither adapter nor salt.
    weights: digest of the adapter's."""
    if not cache_salt and not lora_name:
        return None
    digest = hashlib.sha256(b"kvtier request domain 1\0")
    digest.update(field(cache_salt or ""))
    digest.update(field(lora_name or ""))
    digest.update(field(lora_path or ""))
    digest.update(field(weights))
    return digest.digest()


def domain_of(request, adapters):
    """request_domain() of an engine's request, and whether its KV may be kept under it."""
    lora, salt = getattr(request, "lora_request", None), getattr(request, "cache_salt", None)
    if lora is None:
        return request_domain(salt, "", "", b""), True
    weights = adapters.seen(lora)
    return request_domain(salt, lora.lora_name, lora.lora_path, weights or b""), \
        weights is not None


def in_epoch(epoch, domain):
    """A request's domain after a reset, where nothing from before is found. epoch: drawn by the
    reset; empty before the first."""
    if not epoch:
        return domain
    return hashlib.sha256(b"kvtier epoch 1\0" + field(epoch) + (domain or b"")).digest()


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
