/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KVT_NAMESPACE_H
#define KVT_NAMESPACE_H

#include <stdint.h>

#include "kvt/status.h"

#define KVT_KEY_BYTES       32
#define KVT_NS_ID_BYTES     32
#define KVT_SEGMENTS_MAX    384 /* what a 4 KiB slot header has room for */
#define KVT_CHUNK_BYTES_MAX (UINT64_C(256) << 20)

struct kvt_key {
    uint8_t bytes[KVT_KEY_BYTES];
};

/**
 * Everything that must be equal for the bytes of two chunks to be interchangeable. Strings are NUL
 * terminated and NUL padded to their full width; integers little-endian. These 512 bytes are the
 * canonical form: the namespace id is the SHA-256 of a version byte (1) and them.
 */
struct kvt_ns_desc {
    char model[128];   /* model id, not empty */
    char revision[64]; /* model revision or weights digest */
    char layout[64];   /* layout id of the bytes inside a segment, engine page included */
    char salt[64];     /* isolation domain: tenant, LoRA adapter, cache salt */
    char hash_algo[32];
    char dtype[16];
    uint32_t n_layers;
    uint32_t n_kv_heads;
    uint32_t head_dim;
    uint32_t tokens_per_chunk;
    uint32_t tp_rank, tp_size;
    uint32_t pp_rank, pp_size;
    uint32_t kv_group;
    uint32_t n_segments;  /* checksummed pieces of a chunk (layers): 1..KVT_SEGMENTS_MAX, dividing
                             chunk_bytes */
    uint64_t chunk_bytes; /* 1..KVT_CHUNK_BYTES_MAX */
    uint8_t reserved[96]; /* zero */
};
_Static_assert(sizeof(struct kvt_ns_desc) == 512, "canonical form");

/** Check a descriptor that came from outside. err names the field and what is wrong with it. */
enum kvt_status kvt_ns_desc_check(const struct kvt_ns_desc *desc,
                                  struct kvt_error *err) KVT_MUST_CHECK;

/** The id: SHA-256 over a version byte and the canonical form. */
void kvt_ns_id(const struct kvt_ns_desc *desc, uint8_t id[KVT_NS_ID_BYTES]);

#endif
