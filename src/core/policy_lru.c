/* SPDX-License-Identifier: Apache-2.0 */
/* Least recently used, exactly: the candidate with the oldest use goes. Who is in use when a victim
 * is looked for counts as used then. */
#include "kvt/policy.h"

#include <stdlib.h>

#include "kvt/util.h"
#include "policy_order.h"

#define CLASS_BITS 4 /* of a key; above them the number of the last use */

_Static_assert(KVT_CLASSES_MAX <= 1 << CLASS_BITS, "a class fits its bits");

struct lru {
    struct kvt_policy base;
    struct policy_order order; /* a heap per size class */
    uint64_t n_uses;
};

static struct lru *lru_of(struct kvt_policy *policy)
{
    return kvt_container_of(policy, struct lru, base);
}

static unsigned class_of(const struct lru *lru, uint32_t chunk)
{
    return (unsigned)(lru->order.keys[chunk] & ((1u << CLASS_BITS) - 1));
}

static void lru_destroy(struct kvt_policy *policy)
{
    policy_order_fini(&lru_of(policy)->order);
    free(lru_of(policy));
}

static struct kvt_policy *lru_create(const struct kvt_policy_config *config)
{
    struct lru *lru = calloc(1, sizeof(*lru));
    if (lru == NULL)
        return NULL;
    lru->base.ops = &kvt_policy_lru;
    if (policy_order_init(&lru->order, config->n_chunks_max, KVT_CLASSES_MAX))
        return &lru->base;
    lru_destroy(&lru->base);
    return NULL;
}

static void lru_insert(struct kvt_policy *policy, uint32_t chunk, unsigned size_class,
                       uint64_t key_hash, uint32_t parent, uint64_t tick)
{
    struct lru *lru = lru_of(policy);
    struct policy_order *order = &lru->order;
    (void)key_hash;
    (void)parent;
    (void)tick;
    KVT_ASSERT(chunk < order->n_chunks_max && size_class < KVT_CLASSES_MAX);
    order->keys[chunk] = ++lru->n_uses << CLASS_BITS | size_class;
    order->n_chunks_peak = KVT_MAX(order->n_chunks_peak, chunk + 1);
}

static void lru_hit(struct kvt_policy *policy, uint32_t chunk, uint64_t tick)
{
    struct lru *lru = lru_of(policy);
    unsigned size_class = class_of(lru, chunk);
    (void)tick;
    lru->order.keys[chunk] = ++lru->n_uses << CLASS_BITS | size_class;
    if (policy_order_holds(&lru->order, chunk))
        policy_order_grown(&lru->order, size_class, chunk);
}

static void lru_candidate(struct kvt_policy *policy, uint32_t chunk, bool is_candidate)
{
    struct lru *lru = lru_of(policy);
    KVT_ASSERT(policy_order_holds(&lru->order, chunk) != is_candidate);
    if (is_candidate)
        policy_order_push(&lru->order, class_of(lru, chunk), chunk);
    else
        policy_order_remove(&lru->order, class_of(lru, chunk), chunk);
}

static void lru_remove(struct kvt_policy *policy, uint32_t chunk, bool evicted, uint64_t tick)
{
    struct lru *lru = lru_of(policy);
    (void)evicted;
    (void)tick;
    if (policy_order_holds(&lru->order, chunk))
        policy_order_remove(&lru->order, class_of(lru, chunk), chunk);
}

static uint32_t lru_victim(struct kvt_policy *policy, unsigned size_class,
                           bool (*usable)(void *arg, uint32_t chunk), void *arg, uint64_t tick)
{
    for (unsigned n_look = 0; n_look < POLICY_LOOK_MAX; n_look++) {
        uint32_t chunk = policy_order_least(&lru_of(policy)->order, size_class);
        if (chunk == KVT_CHUNK_NONE || usable(arg, chunk))
            return chunk;
        lru_hit(policy, chunk, tick);
    }
    return KVT_CHUNK_NONE;
}

static uint64_t lru_memory_bytes(const struct kvt_policy *policy)
{
    const struct lru *lru = kvt_container_of(policy, const struct lru, base);
    return sizeof(*lru) + policy_order_memory_bytes(&lru->order);
}

const struct kvt_policy_ops kvt_policy_lru = {
    .name = "lru",
    .create = lru_create,
    .destroy = lru_destroy,
    .insert = lru_insert,
    .hit = lru_hit,
    .remove = lru_remove,
    .candidate = lru_candidate,
    .victim = lru_victim,
    .memory_bytes = lru_memory_bytes,
};
