# SPDX-License-Identifier: Apache-2.0
"""Names of chunks and of namespaces. Pure functions; golden vectors in the tests.

A chunk's key is the engine's own hash of the last block in it: the chain covers every token
before. That chain knows an adapter by its name alone, and adapter and salt shared a domain in some
releases, so requests with either get keys derived from the chain's hash *and* from both, each with
its length. No cross-tenant or cross-adapter hit rests on the chain alone.
"""

import hashlib
import os
import queue
import threading

from kvtier import KEY_BYTES
from kvtier.identity import adapter_digest, adapter_files, field, local_folder


class _Weights:
    """Of one adapter's files as they were once."""
    __slots__ = ("path", "signature", "digest", "is_read")

    def __init__(self, path, signature):
        self.path, self.signature = path, signature
        self.digest, self.is_read = None, False

    def read(self):
        digest = adapter_digest(self.path)
        try:
            same = signature_of(self.path) == self.signature
        except OSError:
            same = False
        self.digest = digest if same else None
        self.is_read = True

    def are(self, other):
        """Whether both are the same for sure."""
        return self is other or (self.digest is not None and self.digest == other.digest)


def signature_of(path):
    """What changes with an adapter's files, by their names and sizes. Raises OSError."""
    stats = [(name, os.stat(name)) for name in adapter_files(path)]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


class Adapters:
    """Which weights an engine's LoRA adapters have. A worker takes an adapter's files once for each
    number (lora_int_id), and the engine's hashes know little more of it than its name. So a number
    whose files are not known or have changed is not trusted any more: what its requests compute
    belongs under no key. And a name with which more than one kind of weights came is mixed: the
    engine's own cache may have the KV of either under it.

    Large adapters are read in a thread, since the engine waits for calls of this; until that is
    done their requests are not trusted."""

    N_MAX = 65536
    AT_ONCE_BYTES = 4 << 20

    def __init__(self, hash_name):
        """hash_name(lora): what the engine's hashes know of an adapter."""
        self._hash_name = hash_name
        self._files = {}    # path -> _Weights
        self._numbers = {}  # lora_int_id -> [_Weights or None, its names]
        self._names = {}    # name -> _Weights; None: mixed
        self._to_read = None

    def _weights(self, lora):
        try:
            path = local_folder(os.path.expanduser(lora.lora_path))
            signature = signature_of(path)
        except Exception:  # whatever the hub's client raises where nothing was loaded yet
            return None
        known = self._files.get(path)
        if known is None or known.signature != signature:
            if known is None and len(self._files) >= self.N_MAX:
                return None
            known = self._files[path] = _Weights(path, signature)
            if sum(n_bytes for _, n_bytes, _ in signature) <= self.AT_ONCE_BYTES:
                known.read()
            else:
                self._read_later(known)
        return None if known.is_read and known.digest is None else known

    def _read_later(self, weights):
        if self._to_read is None:
            self._to_read = queue.SimpleQueue()
            threading.Thread(target=self._read_all, name="kvtier-adapters", daemon=True).start()
        self._to_read.put(weights)

    def _read_all(self):
        while True:
            self._to_read.get().read()

    def seen(self, lora):
        """To be called with each request's adapter. @return a digest of its weights, or None: not
        to be trusted."""
        weights, name = self._weights(lora), self._hash_name(lora)
        if lora.lora_int_id not in self._numbers and len(self._numbers) >= self.N_MAX:
            weights = None
        elif weights is not None:
            number = self._numbers.setdefault(lora.lora_int_id, [weights, set()])
            number[1].add(name)
            if number[0] is None or not number[0].are(weights):
                # Older requests of this number may compute with either.
                number[0] = weights = None
                self._names.update(dict.fromkeys(number[1]))
        if name in self._names:
            known = self._names[name]
            if known is None or weights is None or not known.are(weights):
                self._names[name] = None
        elif len(self._names) < self.N_MAX:
            self._names[name] = weights
        return weights.digest if weights is not None else None

    def _of(self, lora):
        return self._numbers.get(lora.lora_int_id, (None,))[0]

    def trusted(self, lora):
        """Whether what is computed with it belongs under its digest."""
        weights = self._of(lora)
        return weights is not None and weights.digest is not None

    def being_read(self, lora):
        """Whether it may be trusted soon."""
        weights = self._of(lora)
        return weights is not None and not weights.is_read

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
