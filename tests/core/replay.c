/* SPDX-License-Identifier: Apache-2.0 */
#include "replay.h"

#include <stdlib.h>

/* Chunk indexes are block numbers: dense, and a block keeps its own across evictions. */
struct replay {
    const struct kvt_trace *trace;
    struct kvt_policy *policy;
    uint32_t *parent;     /* of each block; KVT_CHUNK_NONE: it begins a prompt */
    uint32_t *n_children; /* in the tier */
    uint64_t *pinned;     /* by block: number of the request that uses it, + 1 */
    bool *held;
    uint32_t n_held;
    uint32_t capacity;
    uint64_t request; /* the present one, + 1 */
    uint64_t tick;
};

static bool usable(void *arg, uint32_t chunk)
{
    const struct replay *r = arg;
    return r->pinned[chunk] != r->request;
}

static bool evict(struct replay *r)
{
    const struct kvt_policy_ops *ops = r->policy->ops;
    uint32_t victim = ops->victim(r->policy, 0, usable, r, r->tick);
    if (victim == KVT_CHUNK_NONE)
        return false;
    ops->remove(r->policy, victim, true, r->tick);
    r->held[victim] = false;
    r->n_held--;
    uint32_t parent = r->parent[victim];
    if (parent != KVT_CHUNK_NONE && --r->n_children[parent] == 0)
        ops->candidate(r->policy, parent, true);
    return true;
}

/* Scattered, as the core's hashes of keys are. */
static uint64_t key_hash(uint64_t id)
{
    id += UINT64_C(0x9e3779b97f4a7c15);
    id = (id ^ id >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    id = (id ^ id >> 27) * UINT64_C(0x94d049bb133111eb);
    return id ^ id >> 31;
}

static void insert(struct replay *r, uint32_t block, uint32_t parent)
{
    const struct kvt_policy_ops *ops = r->policy->ops;
    r->parent[block] = parent;
    r->held[block] = true;
    r->n_held++;
    ops->insert(r->policy, block, 0, key_hash(r->trace->hash_ids[block]), parent, ++r->tick);
    if (r->n_children[block] == 0)
        ops->candidate(r->policy, block, true);
    if (parent != KVT_CHUNK_NONE && r->n_children[parent]++ == 0)
        ops->candidate(r->policy, parent, false);
}

static uint64_t request_replay(struct replay *r, const struct kvt_trace_request *req)
{
    const uint32_t *blocks = r->trace->blocks + req->first_block;
    uint32_t n_hits = 0;
    while (n_hits < req->n_blocks && r->held[blocks[n_hits]])
        n_hits++;
    r->request++;
    for (uint32_t k = 0; k < req->n_blocks; k++)
        r->pinned[blocks[k]] = r->request;
    for (uint32_t k = n_hits; k-- > 0;)
        r->policy->ops->hit(r->policy, blocks[k], ++r->tick);
    for (uint32_t k = n_hits; k < req->n_blocks; k++) {
        /* A prompt longer than the tier keeps its beginning. */
        if (r->n_held == r->capacity && !evict(r))
            break;
        insert(r, blocks[k], k == 0 ? KVT_CHUNK_NONE : blocks[k - 1]);
    }
    return n_hits;
}

uint64_t replay_hits(const struct kvt_trace *trace, const struct kvt_policy_ops *ops,
                     uint32_t capacity, uint64_t seed)
{
    const struct kvt_policy_config config = {.n_chunks_max = trace->n_distinct, .seed = seed};
    struct replay r = {.trace = trace, .capacity = capacity, .policy = ops->create(&config)};
    size_t n = trace->n_distinct;
    r.parent = calloc(n, sizeof(*r.parent));
    r.n_children = calloc(n, sizeof(*r.n_children));
    r.pinned = calloc(n, sizeof(*r.pinned));
    r.held = calloc(n, sizeof(*r.held));
    uint64_t n_hits = 0;
    if (r.policy == NULL || r.parent == NULL || r.n_children == NULL || r.pinned == NULL ||
        r.held == NULL)
        n_hits = UINT64_MAX;
    for (size_t i = 0; i < trace->n_requests && n_hits != UINT64_MAX; i++)
        n_hits += request_replay(&r, &trace->requests[i]);
    if (r.policy != NULL)
        ops->destroy(r.policy);
    free(r.parent);
    free(r.n_children);
    free(r.pinned);
    free(r.held);
    return n_hits;
}
