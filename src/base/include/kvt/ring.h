/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A bounded ring of pointers for any number of producers and consumers. A full or empty ring says
 * so; a ring with room never says that it is full. Each cell carries a ticket that tells whose turn
 * it is, so that a producer and a consumer meet only in the cell they share.
 */
#ifndef KVT_RING_H
#define KVT_RING_H

#include <stdbool.h>
#include <stdint.h>

#include "kvt/status.h"

struct kvt_ring;

/** @return NULL: out of memory. capacity is rounded up to a power of two. */
struct kvt_ring *kvt_ring_create(uint32_t capacity);
void kvt_ring_destroy(struct kvt_ring *ring);

/** False: full. What was written before a push is seen by who pops the item. */
bool kvt_ring_push(struct kvt_ring *ring, void *item);
/** NULL: empty. */
void *kvt_ring_pop(struct kvt_ring *ring);

#endif
