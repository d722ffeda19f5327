# SPDX-License-Identifier: Apache-2.0
"""What an engine does with a prompt: stores the chunks of its tokens, keys and all, and ends.

Usage: prompt_engine.py SESSION_SOCKET MODEL TOKENS_FILE

Its chunks are zeros, as a fresh arena has them: for agents that held nothing before.
"""

import hashlib
import json
import os
import struct
import sys

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "daemon"))

import agent_test

TOKENS_PER_CHUNK = 16


def chain(tokens):
    """Keys of a prompt's full chunks, by the rule of "kvtier_sha256" (kvt/key_chain.h)."""
    keys, parent = [], bytes(32)
    for i in range(0, len(tokens) - TOKENS_PER_CHUNK + 1, TOKENS_PER_CHUNK):
        text = struct.pack(f"<{TOKENS_PER_CHUNK}I", *tokens[i:i + TOKENS_PER_CHUNK])
        parent = hashlib.sha256(parent + text).digest()
        keys.append(parent)
    return keys


def descriptor(model):
    return (struct.pack("<128s64s64s64s32s16s", model.encode(), b"", b"", b"", b"kvtier_sha256",
                        b"bf16") +
            struct.pack("<10IQ", 1, 1, 1, TOKENS_PER_CHUNK, 0, 1, 0, 1, 0, 1,
                        agent_test.CHUNK_BYTES) + bytes(96))


def store(client, model, keys):
    """By a client that said hello."""
    _, _, body = client.call(agent_test.NS_OPEN, descriptor(model))
    status, ns, _ = struct.unpack_from("<iIQ", body)
    assert status == 0, status
    n = len(keys)
    kind, _, _ = client.call(agent_test.RESERVE, struct.pack("<IIIIQ", ns, n, 0, 0, 0) +
                             b"".join(keys))
    assert kind == agent_test.RESERVE_R, kind
    kind, _, body = client.call(
        agent_test.COMMIT, struct.pack(f"<II{n}I", n, 0, *range(n)) + bytes(4 * (n % 2)) +
        struct.pack("<Q", agent_test.CHUNK_SUM) * n)
    assert (kind, struct.unpack_from("<i", body)) == (agent_test.COMMIT_R, (0,)), body


def main():
    client = agent_test.Client(sys.argv[1])
    client.greet(name=b"engine")
    with open(sys.argv[3], encoding="ascii") as file:
        store(client, sys.argv[2], chain(json.load(file)))
    client.close()


if __name__ == "__main__":
    main()
