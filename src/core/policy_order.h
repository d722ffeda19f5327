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
/* Candidates looked at for one victim. Those that are in use are not looked at again soon: they go
 * behind the others, as if just used, or a few hundred of them would keep the rest from ever being
 * seen. */
#define POLICY_LOOK_MAX 1024

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
/** The least chunk; KVT_CHUNK_NONE: there is none. */
uint32_t policy_order_least(const struct policy_order *order, unsigned heap);
uint64_t policy_order_memory_bytes(const struct policy_order *order);

#endif
