/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keys of chunks from the tokens that make them, as a namespace's hash_algo says. Each key covers
 * all tokens before it, because it is the hash of the key before and the chunk's own tokens.
 *
 * "kvtier_sha256": SHA-256 of the parent's 32 bytes and the chunk's token ids, each as 4 bytes,
 * little-endian. The parent of the first chunk is 32 zero bytes.
 *
 * "sha256_cbor": vLLM's prefix caching hash of that name, for blocks without extra keys (no
 * adapter, no image, no salt): SHA-256 of the CBOR array [parent as bytes, [token ids], null], all
 * lengths in their shortest form. The parent of the first block is the SHA-256 of the CBOR text
 * "vllm-none-hash", unless the engine was given a seed: then it is that of the seed's text.
 */
#ifndef KVT_KEY_CHAIN_H
#define KVT_KEY_CHAIN_H

#include <stddef.h>

#include "kvt/namespace.h"

/** Names of what kvt_key_chain() can derive, NULL at the end. */
extern const char *const kvt_key_algos[];

/**
 * Derive the keys of n_chunks full chunks.
 *
 * @param parent  What stands before the first chunk; NULL: the start of a prompt.
 * @param tokens  n_chunks * tokens_per_chunk ids.
 * @return KVT_OK; KVT_ERR_NOTSUP (no algorithm of that name); KVT_ERR_INVAL (tokens_per_chunk is
 *         0); KVT_ERR_NOMEM.
 */
enum kvt_status kvt_key_chain(const char *hash_algo, const struct kvt_key *parent,
                              const uint32_t *tokens, uint32_t tokens_per_chunk, size_t n_chunks,
                              struct kvt_key *keys) KVT_MUST_CHECK;

#endif
