/* SPDX-License-Identifier: Apache-2.0 */
#include "offline.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "kvt/util.h"

#define NONE  UINT32_MAX
#define NEVER UINT32_MAX /* no later use; above every request number */

/* How many blocks from the start of the prompt are held. */
static uint32_t prefix_hits(const uint32_t *blocks, uint32_t n, const bool *held)
{
    uint32_t hits = 0;
    while (hits < n && held[blocks[hits]])
        hits++;
    return hits;
}

uint64_t kvt_offline_ideal_hits(const struct kvt_trace *trace)
{
    /* Dense numbers count up by first appearance: known is what lies below the highest seen. */
    uint64_t n_hits = 0;
    uint32_t n_seen = 0;
    for (size_t i = 0; i < trace->n_requests; i++) {
        const struct kvt_trace_request *req = &trace->requests[i];
        const uint32_t *blocks = trace->blocks + req->first_block;
        uint32_t before = n_seen;
        bool held = true;
        for (uint32_t k = 0; k < req->n_blocks; k++) {
            held = held && blocks[k] < before;
            n_hits += held;
            n_seen = KVT_MAX(n_seen, blocks[k] + 1);
        }
    }
    return n_hits;
}

/* --- least recently used ---------------------------------------------------------------------- */

struct lru {
    uint32_t *older; /* by block; the list runs from newest to oldest */
    uint32_t *newer;
    bool *held;
    uint32_t newest;
    uint32_t oldest;
    uint64_t n_held;
};

static void lru_unlink(struct lru *lru, uint32_t b)
{
    if (lru->newer[b] == NONE)
        lru->newest = lru->older[b];
    else
        lru->older[lru->newer[b]] = lru->older[b];
    if (lru->older[b] == NONE)
        lru->oldest = lru->newer[b];
    else
        lru->newer[lru->older[b]] = lru->newer[b];
    lru->held[b] = false;
    lru->n_held--;
}

static void lru_push(struct lru *lru, uint32_t b)
{
    lru->newer[b] = NONE;
    lru->older[b] = lru->newest;
    if (lru->newest == NONE)
        lru->oldest = b;
    else
        lru->newer[lru->newest] = b;
    lru->newest = b;
    lru->held[b] = true;
    lru->n_held++;
}

enum kvt_status kvt_offline_lru_hits(const struct kvt_trace *trace, uint64_t capacity_blocks,
                                     uint64_t *n_hits_p)
{
    if (capacity_blocks == 0)
        return KVT_ERR_INVAL;
    size_t n = (size_t)trace->n_distinct + 1;
    struct lru lru = {.newest = NONE, .oldest = NONE};
    lru.older = malloc(n * sizeof(*lru.older));
    lru.newer = malloc(n * sizeof(*lru.newer));
    lru.held = calloc(n, sizeof(*lru.held));
    enum kvt_status status = KVT_ERR_NOMEM;
    if (lru.older == NULL || lru.newer == NULL || lru.held == NULL)
        goto out;

    uint64_t n_hits = 0;
    for (size_t i = 0; i < trace->n_requests; i++) {
        const struct kvt_trace_request *req = &trace->requests[i];
        const uint32_t *blocks = trace->blocks + req->first_block;
        n_hits += prefix_hits(blocks, req->n_blocks, lru.held);
        for (uint32_t k = req->n_blocks; k-- > 0;) {
            if (lru.held[blocks[k]])
                lru_unlink(&lru, blocks[k]);
            lru_push(&lru, blocks[k]);
        }
        while (lru.n_held > capacity_blocks)
            lru_unlink(&lru, lru.oldest);
    }
    *n_hits_p = n_hits;
    status = KVT_OK;
out:
    free(lru.held);
    free(lru.newer);
    free(lru.older);
    return status;
}

/* --- the optimum ------------------------------------------------------------------------------ */

/* A heap of uses to come: the furthest first, then the deepest. A block whose use has moved on
 * leaves its old entry behind, which is skipped when it comes up. */
struct use {
    uint32_t next;  /* request that needs it again, or NEVER */
    uint32_t depth; /* in its prompt */
    uint32_t block;
};

static bool use_above(const struct use *a, const struct use *b)
{
    return a->next != b->next ? a->next > b->next : a->depth > b->depth;
}

static void heap_push(struct use *heap, size_t *n, struct use use)
{
    size_t at = (*n)++;
    for (; at > 0 && use_above(&use, &heap[(at - 1) / 2]); at = (at - 1) / 2)
        heap[at] = heap[(at - 1) / 2];
    heap[at] = use;
}

static struct use heap_pop(struct use *heap, size_t *n)
{
    struct use top = heap[0];
    struct use last = heap[--*n];
    size_t at = 0;
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= *n)
            break;
        if (child + 1 < *n && use_above(&heap[child + 1], &heap[child]))
            child++;
        if (!use_above(&heap[child], &last))
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = last;
    return top;
}

enum kvt_status kvt_offline_optimum_hits(const struct kvt_trace *trace, uint64_t capacity_blocks,
                                         uint64_t *n_hits_p)
{
    if (capacity_blocks == 0)
        return KVT_ERR_INVAL;
    size_t n = (size_t)trace->n_distinct + 1;
    uint32_t *next = malloc((trace->n_blocks + 1) * sizeof(*next)); /* by place in trace->blocks */
    uint32_t *due = malloc(n * sizeof(*due));                       /* by block: its next use */
    struct use *heap = malloc((trace->n_blocks + 1) * sizeof(*heap));
    bool *held = calloc(n, sizeof(*held));
    enum kvt_status status = KVT_ERR_NOMEM;
    if (next == NULL || due == NULL || heap == NULL || held == NULL)
        goto out;

    for (uint32_t b = 0; b < trace->n_distinct; b++)
        due[b] = NEVER;
    for (size_t i = trace->n_requests; i-- > 0;) {
        const struct kvt_trace_request *req = &trace->requests[i];
        for (uint64_t at = req->first_block; at < req->first_block + req->n_blocks; at++) {
            next[at] = due[trace->blocks[at]];
            due[trace->blocks[at]] = (uint32_t)i;
        }
    }

    uint64_t n_hits = 0;
    uint64_t n_held = 0;
    size_t n_heap = 0;
    for (size_t i = 0; i < trace->n_requests; i++) {
        const struct kvt_trace_request *req = &trace->requests[i];
        const uint32_t *blocks = trace->blocks + req->first_block;
        n_hits += prefix_hits(blocks, req->n_blocks, held);
        for (uint32_t k = 0; k < req->n_blocks; k++) {
            n_held += !held[blocks[k]];
            held[blocks[k]] = true;
            due[blocks[k]] = next[req->first_block + k];
            heap_push(heap, &n_heap, (struct use){due[blocks[k]], k, blocks[k]});
        }
        while (n_held > capacity_blocks) {
            struct use use = heap_pop(heap, &n_heap);
            if (held[use.block] && due[use.block] == use.next) {
                held[use.block] = false;
                n_held--;
            }
        }
    }
    *n_hits_p = n_hits;
    status = KVT_OK;
out:
    free(held);
    free(heap);
    free(due);
    free(next);
    return status;
}

double kvt_offline_ratio(const struct kvt_trace *trace, uint64_t n_hits)
{
    return trace->n_blocks == 0 ? 0.0 : (double)n_hits / (double)trace->n_blocks;
}
