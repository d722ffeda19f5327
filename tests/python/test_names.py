# SPDX-License-Identifier: Apache-2.0
"""Names of chunks, word by word: engines of other releases must find what is stored under them.

A value that differs means that everything stored so far is lost at the next upgrade. No engine is
needed for this.
"""

import hashlib
import os
import tempfile
import unittest

from kvtier import identity
from kvtier.vllm import keys, layout

HASH = bytes(range(32))
DOMAIN = "d79da7144659cc8a6638f6bc1feb59840089ee6f25e93fd38925b1b47da949b6"


def sha256(*parts):
    return hashlib.sha256(b"".join(parts)).hexdigest()


class Names(unittest.TestCase):
    def test_chunks(self):
        self.assertEqual(keys.chunk_key(None, HASH), HASH)
        domain = keys.request_domain("salt", "name", "/path", b"weights")
        self.assertEqual(domain.hex(), DOMAIN)
        self.assertEqual(domain.hex(), sha256(
            b"kvtier request domain 1\0", b"\4\0\0\0salt", b"\4\0\0\0name", b"\5\0\0\0/path",
            b"\7\0\0\0weights"))
        for of, block_hash, wanted in (
                (None, HASH[:16],
                 "0dc963a197f797f4725f93ce8c626f143a358106c95b93052b37f9dd0537680b"),
                (domain, HASH, "e4da2e9d01fa739fb7b86a01129a513f38916526811312488ad69598a1141b02"),
                (keys.in_epoch(b"e" * 16, None), HASH,
                 sha256(b"kvtier chunk 1\0", bytes.fromhex(
                     "8c726c2733b2c482b6251e98906ed3da1ca01b3f7bbeba261836648288b42249"), HASH))):
            self.assertEqual(keys.chunk_key(of, block_hash).hex(), wanted)
        self.assertEqual(keys.in_epoch(b"e" * 16, domain).hex(),
                         "d089b5e55e408149f9aa26a4aa47e7695807015d1a14b61b6a2e212041f39bce")
        self.assertEqual(keys.in_epoch(b"", domain), domain)

    def test_hashes(self):
        self.assertEqual(keys.hash_domain("sha256", b"root", (3, 12)), "sha256-py312:4813494d137e")
        self.assertEqual(keys.hash_domain("sha256_cbor", b"root", (3, 12)),
                         "sha256_cbor:4813494d137e")

    def test_layouts(self):
        page = layout.LayerPages(0, 4096, (0, 8192), 2048, "c2b16d64")
        self.assertEqual(
            layout.layout_id("std", "LBHNC", [page], ["l.0"], "bfloat16", "CPU:avx2"),
            "1/LBHNC/std/" + sha256(b"std\0LBHNC\0bfloat16\0CPU:avx2\0l.0\0c2b16d64:2048:2\0")[:24])

    def test_models(self):
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "model.safetensors"), "wb") as file:
                file.write(b"weights")
            weights = hashlib.sha256(bytes([17, 0, 0, 0]) + b"model.safetensors" + hashlib.sha256(
                bytes([7, 0, 0, 0, 0, 0, 0, 0]) + b"weights").digest()).digest()
            self.assertEqual(identity.folder_digest(folder), weights)
            self.assertEqual(
                identity.model_revision(folder, "r", {"rope": 1, "_name_or_path": "x"}, {"b": 2}),
                sha256(b"\1\0\0\0r", b"\x20\0\0\0", weights, b'\x0b\0\0\0{"rope": 1}',
                       b'\x08\0\0\0{"b": 2}')[:48])
        self.assertEqual(identity.short("x" * 64, 63),
                         "x" * 38 + "~" + sha256(b"x" * 64)[:24])


if __name__ == "__main__":
    unittest.main()
