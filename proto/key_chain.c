/* SPDX-License-Identifier: Apache-2.0 */
#include "kvt/key_chain.h"

#include <openssl/evp.h>
#include <stdbool.h>
#include <string.h>

#define ROOT_SEED  "vllm-none-hash"
#define FEED_BYTES 4096 /* hashed at once */

struct hasher {
    EVP_MD_CTX *ctx;
    bool failed;
    size_t n;
    uint8_t bytes[FEED_BYTES];
};

static void hasher_flush(struct hasher *hasher)
{
    if (EVP_DigestUpdate(hasher->ctx, hasher->bytes, hasher->n) != 1)
        hasher->failed = true;
    hasher->n = 0;
}

static void hasher_begin(struct hasher *hasher)
{
    hasher->n = 0;
    if (EVP_DigestInit_ex(hasher->ctx, EVP_sha256(), NULL) != 1)
        hasher->failed = true;
}

static void feed(struct hasher *hasher, const void *bytes, size_t n)
{
    if (sizeof(hasher->bytes) - hasher->n < n)
        hasher_flush(hasher);
    memcpy(hasher->bytes + hasher->n, bytes, n); /* n is always small */
    hasher->n += n;
}

static void hasher_end(struct hasher *hasher, struct kvt_key *key)
{
    hasher_flush(hasher);
    if (EVP_DigestFinal_ex(hasher->ctx, key->bytes, NULL) != 1)
        hasher->failed = true;
}

/* --- kvtier_sha256 ---------------------------------------------------------------------------- */

static void plain_root(struct hasher *hasher, struct kvt_key *root)
{
    (void)hasher;
    memset(root, 0, sizeof(*root));
}

static void plain_chunk(struct hasher *hasher, const struct kvt_key *parent, const uint32_t *tokens,
                        uint32_t n, struct kvt_key *key)
{
    hasher_begin(hasher);
    feed(hasher, parent, sizeof(*parent));
    for (uint32_t i = 0; i < n; i++)
        feed(hasher,
             (const uint8_t[]){(uint8_t)tokens[i], (uint8_t)(tokens[i] >> 8),
                               (uint8_t)(tokens[i] >> 16), (uint8_t)(tokens[i] >> 24)},
             4);
    hasher_end(hasher, key);
}

/* --- sha256_cbor ------------------------------------------------------------------------------ */

enum { CBOR_UINT = 0x00, CBOR_BYTES = 0x40, CBOR_TEXT = 0x60, CBOR_ARRAY = 0x80, CBOR_NULL = 0xf6 };

/* The head of an item: its type and its value or length, in the fewest bytes. */
static void feed_cbor(struct hasher *hasher, uint8_t type, uint32_t value)
{
    uint8_t head[5] = {0};
    size_t n_value = value < 24 ? 0 : value <= UINT8_MAX ? 1 : value <= UINT16_MAX ? 2 : 4;
    head[0] = (uint8_t)(type | (n_value == 0 ? value : n_value == 1 ? 24 : n_value == 2 ? 25 : 26));
    for (size_t i = 0; i < n_value; i++)
        head[1 + i] = (uint8_t)(value >> (8 * (n_value - 1 - i)));
    feed(hasher, head, 1 + n_value);
}

static void cbor_root(struct hasher *hasher, struct kvt_key *root)
{
    hasher_begin(hasher);
    feed_cbor(hasher, CBOR_TEXT, sizeof(ROOT_SEED) - 1);
    feed(hasher, ROOT_SEED, sizeof(ROOT_SEED) - 1);
    hasher_end(hasher, root);
}

static void cbor_chunk(struct hasher *hasher, const struct kvt_key *parent, const uint32_t *tokens,
                       uint32_t n, struct kvt_key *key)
{
    const uint8_t null = CBOR_NULL;
    hasher_begin(hasher);
    feed_cbor(hasher, CBOR_ARRAY, 3);
    feed_cbor(hasher, CBOR_BYTES, sizeof(*parent));
    feed(hasher, parent, sizeof(*parent));
    feed_cbor(hasher, CBOR_ARRAY, n);
    for (uint32_t i = 0; i < n; i++)
        feed_cbor(hasher, CBOR_UINT, tokens[i]);
    feed(hasher, &null, sizeof(null));
    hasher_end(hasher, key);
}

/* ---------------------------------------------------------------------------------------------- */

static const struct algo {
    void (*root)(struct hasher *hasher, struct kvt_key *root);
    void (*chunk)(struct hasher *hasher, const struct kvt_key *parent, const uint32_t *tokens,
                  uint32_t n, struct kvt_key *key);
} algos[] = {{plain_root, plain_chunk}, {cbor_root, cbor_chunk}};

const char *const kvt_key_algos[] = {"kvtier_sha256", "sha256_cbor", NULL};

enum kvt_status kvt_key_chain(const char *hash_algo, const struct kvt_key *parent,
                              const uint32_t *tokens, uint32_t tokens_per_chunk, size_t n_chunks,
                              struct kvt_key *keys)
{
    const struct algo *algo = NULL;
    struct hasher hasher = {.failed = false};
    struct kvt_key root;
    for (unsigned i = 0; kvt_key_algos[i] != NULL; i++) {
        if (strcmp(kvt_key_algos[i], hash_algo) == 0)
            algo = &algos[i];
    }
    if (algo == NULL)
        return KVT_ERR_NOTSUP;
    if (tokens_per_chunk == 0)
        return KVT_ERR_INVAL;
    hasher.ctx = EVP_MD_CTX_new();
    if (hasher.ctx == NULL)
        return KVT_ERR_NOMEM;
    if (parent == NULL) {
        algo->root(&hasher, &root);
        parent = &root;
    }
    for (size_t i = 0; i < n_chunks; i++) {
        algo->chunk(&hasher, parent, tokens + i * tokens_per_chunk, tokens_per_chunk, &keys[i]);
        parent = &keys[i];
    }
    EVP_MD_CTX_free(hasher.ctx);
    return hasher.failed ? KVT_ERR_NOMEM : KVT_OK; /* libcrypto fails for want of memory alone */
}
