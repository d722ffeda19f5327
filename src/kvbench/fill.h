/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes that follow from a chunk's key: what is stored under a key can be made again and compared
 * when it comes back, all of it, without remembering anything. Every 8 bytes depend on the key and
 * on their place, so that a chunk in another's slot, a swapped page or a stale line is seen. Made
 * and compared at the speed of memory, so that checking is not what a run measures.
 */
#ifndef KVT_KVBENCH_FILL_H
#define KVT_KVBENCH_FILL_H

#include <stddef.h>
#include <stdint.h>

#include "kvtier.h"

#define KVT_FILL_LANES 16

struct kvt_fill {
    uint64_t lanes[KVT_FILL_LANES];
    uint64_t start; /* of the first block */
};

/** The key that stands for a block id of a trace; seed keeps runs and namespaces apart. */
void kvt_fill_key(uint64_t id, uint64_t seed, uint8_t key[KVTIER_KEY_BYTES]);

void kvt_fill_init(struct kvt_fill *fill, const uint8_t key[KVTIER_KEY_BYTES]);

/** Write bytes [offset, offset + bytes) of the chunk to dst. */
void kvt_fill_write(const struct kvt_fill *fill, uint64_t offset, void *dst, size_t bytes);

/** How many of the bytes at src are not those of the chunk at offset. */
uint64_t kvt_fill_check(const struct kvt_fill *fill, uint64_t offset, const void *src,
                        size_t bytes);

#endif
