/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>

#include "core_internal.h"

bool heap_init(struct heap *heap, uint32_t n_max)
{
    heap->when = calloc(n_max, sizeof(*heap->when));
    heap->ids = calloc(n_max, sizeof(*heap->ids));
    heap->pos = malloc((size_t)n_max * sizeof(*heap->pos));
    heap->n = 0;
    if (heap->when == NULL || heap->ids == NULL || heap->pos == NULL)
        return false; /* the caller's fini frees what is there */
    for (uint32_t i = 0; i < n_max; i++)
        heap->pos[i] = NONE;
    return true;
}

void heap_fini(struct heap *heap)
{
    free(heap->when);
    free(heap->ids);
    free(heap->pos);
}

static void heap_place(struct heap *heap, uint32_t at, uint32_t id)
{
    heap->ids[at] = id;
    heap->pos[id] = at;
}

static void heap_sift(struct heap *heap, uint32_t at)
{
    uint32_t id = heap->ids[at];
    uint64_t when = heap->when[id];
    while (at > 0) {
        uint32_t up = (at - 1) / 2;
        if (heap->when[heap->ids[up]] <= when)
            break;
        heap_place(heap, at, heap->ids[up]);
        at = up;
    }
    for (;;) {
        uint32_t down = 2 * at + 1;
        if (down >= heap->n)
            break;
        if (down + 1 < heap->n && heap->when[heap->ids[down + 1]] < heap->when[heap->ids[down]])
            down++;
        if (heap->when[heap->ids[down]] >= when)
            break;
        heap_place(heap, at, heap->ids[down]);
        at = down;
    }
    heap_place(heap, at, id);
}

void heap_set(struct heap *heap, uint32_t id, uint64_t when)
{
    heap->when[id] = when;
    if (heap->pos[id] == NONE)
        heap_place(heap, heap->n++, id);
    heap_sift(heap, heap->pos[id]);
}

void heap_remove(struct heap *heap, uint32_t id)
{
    uint32_t at = heap->pos[id];
    if (at == NONE)
        return;
    heap->pos[id] = NONE;
    uint32_t last = heap->ids[--heap->n];
    if (last != id) {
        heap_place(heap, at, last);
        heap_sift(heap, at);
    }
}
