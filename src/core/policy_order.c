/* SPDX-License-Identifier: Apache-2.0 */
#include "policy_order.h"

#include "kvt/policy.h"
#include "kvt/util.h"

#define ARITY 4

bool policy_order_init(struct policy_order *order, uint32_t n_chunks_max, unsigned n_heaps)
{
    KVT_ASSERT(n_heaps <= POLICY_HEAPS_MAX);
    uint64_t n = n_chunks_max;
    *order = (struct policy_order){.n_chunks_max = n_chunks_max, .n_heaps = n_heaps};
    order->keys = kvt_big_calloc(n * sizeof(*order->keys));
    order->place = kvt_big_calloc(n * sizeof(*order->place));
    bool ok = order->keys != NULL && order->place != NULL;
    for (unsigned h = 0; h < n_heaps; h++) {
        order->heaps[h].chunks = kvt_big_calloc(n * sizeof(*order->heaps[h].chunks));
        ok = ok && order->heaps[h].chunks != NULL;
    }
    return ok;
}

void policy_order_fini(struct policy_order *order)
{
    uint64_t n = order->n_chunks_max;
    kvt_big_free(order->keys, n * sizeof(*order->keys));
    kvt_big_free(order->place, n * sizeof(*order->place));
    for (unsigned h = 0; h < order->n_heaps; h++)
        kvt_big_free(order->heaps[h].chunks, n * sizeof(*order->heaps[h].chunks));
}

static void heap_set(struct policy_order *order, struct policy_heap *heap, uint32_t at,
                     uint32_t chunk)
{
    heap->chunks[at] = chunk;
    order->place[chunk] = at + 1;
}

static void heap_up(struct policy_order *order, struct policy_heap *heap, uint32_t at,
                    uint32_t chunk)
{
    while (at > 0) {
        uint32_t above = (at - 1) / ARITY;
        if (order->keys[heap->chunks[above]] <= order->keys[chunk])
            break;
        heap_set(order, heap, at, heap->chunks[above]);
        at = above;
    }
    heap_set(order, heap, at, chunk);
}

static void heap_down(struct policy_order *order, struct policy_heap *heap, uint32_t at,
                      uint32_t chunk)
{
    for (;;) {
        uint64_t first = (uint64_t)at * ARITY + 1;
        uint64_t end = KVT_MIN(first + ARITY, (uint64_t)heap->n);
        if (first >= end)
            break;
        uint64_t least = first;
        for (uint64_t c = first + 1; c < end; c++)
            if (order->keys[heap->chunks[c]] < order->keys[heap->chunks[least]])
                least = c;
        if (order->keys[heap->chunks[least]] >= order->keys[chunk])
            break;
        heap_set(order, heap, at, heap->chunks[least]);
        at = (uint32_t)least;
    }
    heap_set(order, heap, at, chunk);
}

void policy_order_push(struct policy_order *order, unsigned heap_number, uint32_t chunk)
{
    struct policy_heap *heap = &order->heaps[heap_number];
    heap_up(order, heap, heap->n++, chunk);
    heap->n_peak = KVT_MAX(heap->n_peak, heap->n);
}

void policy_order_remove(struct policy_order *order, unsigned heap_number, uint32_t chunk)
{
    struct policy_heap *heap = &order->heaps[heap_number];
    uint32_t at = order->place[chunk] - 1;
    KVT_ASSERT(at < heap->n && heap->chunks[at] == chunk);
    uint32_t last = heap->chunks[--heap->n];
    order->place[chunk] = 0;
    if (last == chunk)
        return;
    if (at > 0 && order->keys[heap->chunks[(at - 1) / ARITY]] > order->keys[last])
        heap_up(order, heap, at, last);
    else
        heap_down(order, heap, at, last);
}

void policy_order_grown(struct policy_order *order, unsigned heap, uint32_t chunk)
{
    heap_down(order, &order->heaps[heap], order->place[chunk] - 1, chunk);
}

uint32_t policy_order_least(const struct policy_order *order, unsigned heap)
{
    return order->heaps[heap].n > 0 ? order->heaps[heap].chunks[0] : KVT_CHUNK_NONE;
}

uint64_t policy_order_memory_bytes(const struct policy_order *order)
{
    uint64_t bytes = order->n_chunks_peak * (sizeof(*order->keys) + sizeof(*order->place));
    for (unsigned h = 0; h < order->n_heaps; h++)
        bytes += order->heaps[h].n_peak * sizeof(*order->heaps[h].chunks);
    return bytes;
}
