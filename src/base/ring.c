/* SPDX-License-Identifier: Apache-2.0 */
#include "kvt/ring.h"

#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "kvt/util.h"

struct cell {
    _Atomic uint64_t ticket; /* n: free for push n; n + 1: holds the item of push n */
    void *item;
};

struct kvt_ring {
    struct cell *cells;
    uint64_t mask;
    char pad0[48]; /* producers and consumers each have a cache line of their own */
    _Atomic uint64_t n_pushed;
    char pad1[56];
    _Atomic uint64_t n_popped;
    char pad2[56];
};

struct kvt_ring *kvt_ring_create(uint32_t capacity)
{
    uint64_t n = 2;
    while (n < capacity)
        n *= 2;
    struct kvt_ring *ring = calloc(1, sizeof(*ring));
    if (ring == NULL)
        return NULL;
    ring->cells = calloc(n, sizeof(*ring->cells));
    if (ring->cells == NULL) {
        free(ring);
        return NULL;
    }
    ring->mask = n - 1;
    for (uint64_t i = 0; i < n; i++)
        atomic_init(&ring->cells[i].ticket, i);
    return ring;
}

void kvt_ring_destroy(struct kvt_ring *ring)
{
    if (ring == NULL)
        return;
    free(ring->cells);
    free(ring);
}

bool kvt_ring_push(struct kvt_ring *ring, void *item)
{
    uint64_t at = atomic_load_explicit(&ring->n_pushed, memory_order_relaxed);
    for (;;) {
        struct cell *cell = &ring->cells[at & ring->mask];
        /* Pairs with the release of the pop that freed the cell. */
        uint64_t ticket = atomic_load_explicit(&cell->ticket, memory_order_acquire);
        if (ticket == at) {
            if (!atomic_compare_exchange_weak_explicit(&ring->n_pushed, &at, at + 1,
                                                       memory_order_relaxed, memory_order_relaxed))
                continue;
            cell->item = item;
            /* Pairs with the acquire in pop: the item and what it points to are seen there. */
            atomic_store_explicit(&cell->ticket, at + 1, memory_order_release);
            return true;
        }
        if (ticket < at) { /* still holds what was pushed a round ago */
            uint64_t n_popped = atomic_load_explicit(&ring->n_popped, memory_order_acquire);
            if (at - KVT_MIN(n_popped, at) > ring->mask)
                return false;
            /* Its consumer took it and was stopped before it could say so: not full, so wait. */
            sched_yield();
        }
        at = atomic_load_explicit(&ring->n_pushed, memory_order_relaxed);
    }
}

void *kvt_ring_pop(struct kvt_ring *ring)
{
    uint64_t at = atomic_load_explicit(&ring->n_popped, memory_order_relaxed);
    for (;;) {
        struct cell *cell = &ring->cells[at & ring->mask];
        uint64_t ticket = atomic_load_explicit(&cell->ticket, memory_order_acquire);
        if (ticket == at + 1) {
            if (!atomic_compare_exchange_weak_explicit(&ring->n_popped, &at, at + 1,
                                                       memory_order_relaxed, memory_order_relaxed))
                continue;
            void *item = cell->item;
            atomic_store_explicit(&cell->ticket, at + ring->mask + 1, memory_order_release);
            return item;
        }
        if (ticket < at + 1)
            return NULL;
        at = atomic_load_explicit(&ring->n_popped, memory_order_relaxed);
    }
}
