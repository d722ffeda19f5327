/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Candidates in the order of a key, least first: a set of 4-ary heaps over chunks, each chunk in
 * one of them at most. A list would not do: a chunk that becomes a candidate when its last child
 * goes belongs somewhere in the middle.
 */
#ifndef KVT_CORE_POLICY_ORDER_H
#define KVT_CORE_POLICY_ORDER_H

#include <stdbool.h>
#include <stdint.h>

#define POLICY_HEAPS_MAX 32
#define POLICY_LOOK_MAX  256 /* candidates looked at for one victim */

struct policy_heap {
    uint32_t *chunks; /* address space for n_chunks_max */
    uint32_t n;
    uint32_t n_peak;
};

struct policy_order {
    uint64_t *keys;  /* by chunk; written by the owner, only to grow while the chunk is in a heap */
    uint32_t *place; /* by chunk: its place in its heap, + 1; 0: in none */
    uint32_t n_chunks_max;
    uint32_t n_chunks_peak; /* highest chunk that was in use, + 1; kept by the owner */
    unsigned n_heaps;
    struct policy_heap heaps[POLICY_HEAPS_MAX];
};

bool policy_order_init(struct policy_order *order, uint32_t n_chunks_max, unsigned n_heaps);
void policy_order_fini(struct policy_order *order); /* also after a failed init */

static inline bool policy_order_holds(const struct policy_order *order, uint32_t chunk)
{
    return order->place[chunk] != 0;
}

void policy_order_push(struct policy_order *order, unsigned heap, uint32_t chunk);
void policy_order_remove(struct policy_order *order, unsigned heap, uint32_t chunk);
/** Its key has grown. */
void policy_order_grown(struct policy_order *order, unsigned heap, uint32_t chunk);
/** The least chunk that is usable; KVT_CHUNK_NONE: none among those looked at. *n_look_p: how many
 * may be looked at, up to POLICY_LOOK_MAX; lessened by those that were. */
uint32_t policy_order_least(struct policy_order *order, unsigned heap,
                            bool (*usable)(void *arg, uint32_t chunk), void *arg,
                            unsigned *n_look_p);
uint64_t policy_order_memory_bytes(const struct policy_order *order);

#endif
