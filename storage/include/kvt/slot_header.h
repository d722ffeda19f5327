/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KVT_SLOT_HEADER_H
#define KVT_SLOT_HEADER_H

#include "kvt/namespace.h"

#define KVT_SLOT_MAGIC        UINT64_C(0x31544f4c5354564b) /* "KVTSLOT1" */
#define KVT_SLOT_VERSION      2
#define KVT_SLOT_HEADER_BYTES 4096

/*
 * The page before every chunk in a store file: whose bytes follow, and their checksums. The store
 * describes itself by it; a scrub checks it. A load does not need it: see kvt_chunk_check().
 * Little-endian.
 */
struct kvt_slot_header {
    uint64_t magic;
    uint32_t version; /* KVT_SLOT_VERSION */
    uint32_t n_segments;
    uint64_t chunk_bytes;
    uint64_t generation; /* counts the writes of this store: no two headers of a store are equal */
    struct kvt_key key;
    struct kvt_key parent; /* zero: none known */
    uint8_t ns_id[KVT_NS_ID_BYTES];
    uint64_t digest;   /* of the chunk: see kvt_slot_header_seal() */
    uint64_t page_sum; /* XXH3-64, seed 0, of this page with page_sum itself zero */
    uint8_t reserved[880];
    uint64_t sums[KVT_SEGMENTS_MAX]; /* XXH3-64, seed 0, per segment; zero past n_segments */
};
_Static_assert(sizeof(struct kvt_slot_header) == KVT_SLOT_HEADER_BYTES, "one page");

/**
 * Set digest and page_sum of a header that is complete otherwise. The digest identifies a chunk by
 * its key, namespace, size and checksums: XXH3-64, seed 0, of the page with generation, parent,
 * digest and page_sum zero, which is a page that can be made from the chunk and its name alone.
 */
void kvt_slot_header_seal(struct kvt_slot_header *header);

/**
 * Whether a page read from disk is the header that was asked for, whole and unchanged. The page is
 * outside data: nothing in it is trusted before this says KVT_OK.
 *
 * @return KVT_OK, KVT_ERR_VERSION or KVT_ERR_CORRUPT.
 */
enum kvt_status kvt_slot_header_check(const struct kvt_slot_header *header,
                                      const struct kvt_key *key, const uint8_t *ns_id,
                                      uint64_t digest, uint64_t chunk_bytes,
                                      uint32_t n_segments) KVT_MUST_CHECK;

/** The checksums of n_segments (at least 1) segments that make up a chunk, whole multiples. */
void kvt_segments_sum(const void *chunk, uint64_t chunk_bytes, uint32_t n_segments, uint64_t *sums);

/**
 * Whether checksums are those of the chunk that a digest was made of. With kvt_segments_sum() of
 * bytes that were read this verifies them without their header page.
 *
 * @param ns_id  KVT_NS_ID_BYTES.
 * @return KVT_OK or KVT_ERR_CORRUPT.
 */
enum kvt_status kvt_chunk_check(const struct kvt_key *key, const uint8_t *ns_id, uint64_t digest,
                                uint64_t chunk_bytes, const uint64_t *sums,
                                uint32_t n_segments) KVT_MUST_CHECK;

/** Verify chunk bytes against n_segments checksums. @return KVT_OK or KVT_ERR_CORRUPT. */
enum kvt_status kvt_segments_check(const void *chunk, uint64_t chunk_bytes, const uint64_t *sums,
                                   uint32_t n_segments) KVT_MUST_CHECK;

#endif
