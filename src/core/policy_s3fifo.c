/* SPDX-License-Identifier: Apache-2.0 */
/*
 * S3-FIFO (Yang et al., SOSP 2023): new chunks pass through a small queue, and only those used
 * there reach the main one; keys that left the small queue unused are remembered for a while, and
 * enter the main queue when they come back. Only candidates stand in the queues, each at the place
 * that its time of entry gives it.
 */
#include "kvt/policy.h"

#include <stdlib.h>

#include "kvt/util.h"
#include "policy_order.h"

#define SMALL_SHARE 10 /* the small queue's part of the chunks: one in so many */
#define FREQ_MAX    3  /* uses that count */
#define GHOSTS_MAX  (UINT32_C(1) << 19)

/* A key: number of the entry into the queue, then these. */
#define CLASS_BITS  4
#define CLASS_MASK  (UINT64_C(0xf))
#define MAIN_BIT    (UINT64_C(1) << CLASS_BITS)
#define ENTRY_SHIFT (CLASS_BITS + 1)

_Static_assert(KVT_CLASSES_MAX <= 1 << CLASS_BITS, "a class fits its bits");
_Static_assert(KVT_CLASSES_MAX * 2 <= POLICY_HEAPS_MAX, "two queues per class");

enum queue { QUEUE_SMALL, QUEUE_MAIN, QUEUES };

struct s3_ghost {
    uint32_t print;
    uint32_t n_gone; /* number of the eviction, of its class; 0: free */
};

struct s3 {
    struct kvt_policy base;
    struct policy_order order; /* heap of a class and queue: class * QUEUES + queue */
    uint32_t *prints;          /* by chunk: fingerprint of its key; the low bits hold the uses */
    struct s3_ghost *ghosts;
    uint32_t ghost_mask;
    uint64_t n_entries;                          /* into any queue */
    uint32_t n_gone[KVT_CLASSES_MAX];            /* evictions from the small queue; wraps */
    uint32_t n_members[KVT_CLASSES_MAX][QUEUES]; /* candidates or not */
};

static struct s3 *s3_of(struct kvt_policy *policy)
{
    return kvt_container_of(policy, struct s3, base);
}

static unsigned class_of(const struct s3 *s3, uint32_t chunk)
{
    return (unsigned)(s3->order.keys[chunk] & CLASS_MASK);
}

static enum queue queue_of(const struct s3 *s3, uint32_t chunk)
{
    return s3->order.keys[chunk] & MAIN_BIT ? QUEUE_MAIN : QUEUE_SMALL;
}

static unsigned heap_of(const struct s3 *s3, uint32_t chunk)
{
    return class_of(s3, chunk) * QUEUES + queue_of(s3, chunk);
}

static uint32_t print_of(uint64_t key_hash)
{
    return (uint32_t)(key_hash ^ key_hash >> 32) & ~(uint32_t)FREQ_MAX;
}

static struct s3_ghost *ghost_of(struct s3 *s3, uint32_t print)
{
    return &s3->ghosts[(print * UINT32_C(2654435769) >> 8) & s3->ghost_mask];
}

static unsigned freq_of(const struct s3 *s3, uint32_t chunk)
{
    return s3->prints[chunk] & FREQ_MAX;
}

static void enter(struct s3 *s3, uint32_t chunk, unsigned size_class, enum queue queue)
{
    uint64_t entry = ++s3->n_entries;
    s3->order.keys[chunk] =
        entry << ENTRY_SHIFT | (queue == QUEUE_MAIN ? MAIN_BIT : 0) | size_class;
    s3->n_members[size_class][queue]++;
}

static void s3_destroy(struct kvt_policy *policy)
{
    struct s3 *s3 = s3_of(policy);
    kvt_big_free(s3->prints, s3->order.n_chunks_max * sizeof(*s3->prints));
    kvt_big_free(s3->ghosts, ((uint64_t)s3->ghost_mask + 1) * sizeof(*s3->ghosts));
    policy_order_fini(&s3->order);
    free(s3);
}

static struct kvt_policy *s3_create(const struct kvt_policy_config *config)
{
    struct s3 *s3 = calloc(1, sizeof(*s3));
    if (s3 == NULL)
        return NULL;
    s3->base.ops = &kvt_policy_s3fifo;
    s3->ghost_mask = 1023;
    while (s3->ghost_mask < config->n_chunks_max && s3->ghost_mask < GHOSTS_MAX - 1)
        s3->ghost_mask = s3->ghost_mask * 2 + 1;
    bool ok = policy_order_init(&s3->order, config->n_chunks_max, KVT_CLASSES_MAX * QUEUES);
    s3->prints = kvt_big_calloc(config->n_chunks_max * sizeof(*s3->prints));
    s3->ghosts = kvt_big_calloc(((uint64_t)s3->ghost_mask + 1) * sizeof(*s3->ghosts));
    if (ok && s3->prints != NULL && s3->ghosts != NULL)
        return &s3->base;
    s3_destroy(&s3->base);
    return NULL;
}

static void s3_insert(struct kvt_policy *policy, uint32_t chunk, unsigned size_class,
                      uint64_t key_hash, uint32_t parent, uint64_t tick)
{
    struct s3 *s3 = s3_of(policy);
    (void)parent;
    (void)tick;
    KVT_ASSERT(chunk < s3->order.n_chunks_max && size_class < KVT_CLASSES_MAX);
    s3->prints[chunk] = print_of(key_hash);
    struct s3_ghost *ghost = ghost_of(s3, s3->prints[chunk]);
    /* A ghost lives for as many evictions as the main queue has chunks. */
    bool back = ghost->n_gone != 0 && ghost->print == s3->prints[chunk] &&
                s3->n_gone[size_class] - ghost->n_gone <= s3->n_members[size_class][QUEUE_MAIN];
    enter(s3, chunk, size_class, back ? QUEUE_MAIN : QUEUE_SMALL);
    s3->order.n_chunks_peak = KVT_MAX(s3->order.n_chunks_peak, chunk + 1);
}

static void s3_hit(struct kvt_policy *policy, uint32_t chunk, uint64_t tick)
{
    struct s3 *s3 = s3_of(policy);
    (void)tick;
    /* With a child it cannot come to the end of the small queue, where its use would be seen. */
    if (queue_of(s3, chunk) == QUEUE_SMALL && !policy_order_holds(&s3->order, chunk)) {
        unsigned size_class = class_of(s3, chunk);
        s3->n_members[size_class][QUEUE_SMALL]--;
        enter(s3, chunk, size_class, QUEUE_MAIN);
    } else if (freq_of(s3, chunk) < FREQ_MAX) {
        s3->prints[chunk]++;
    }
}

static void s3_candidate(struct kvt_policy *policy, uint32_t chunk, bool is_candidate)
{
    struct s3 *s3 = s3_of(policy);
    KVT_ASSERT(policy_order_holds(&s3->order, chunk) != is_candidate);
    if (is_candidate)
        policy_order_push(&s3->order, heap_of(s3, chunk), chunk);
    else
        policy_order_remove(&s3->order, heap_of(s3, chunk), chunk);
}

static void s3_remove(struct kvt_policy *policy, uint32_t chunk, bool evicted, uint64_t tick)
{
    struct s3 *s3 = s3_of(policy);
    (void)tick;
    unsigned size_class = class_of(s3, chunk);
    enum queue queue = queue_of(s3, chunk);
    if (policy_order_holds(&s3->order, chunk))
        policy_order_remove(&s3->order, heap_of(s3, chunk), chunk);
    s3->n_members[size_class][queue]--;
    if (!evicted || queue == QUEUE_MAIN)
        return;
    uint32_t print = s3->prints[chunk] & ~(uint32_t)FREQ_MAX;
    if (++s3->n_gone[size_class] == 0)
        s3->n_gone[size_class] = 1;
    *ghost_of(s3, print) = (struct s3_ghost){print, s3->n_gone[size_class]};
}

/* To the new end of the main queue, from either. */
static void move_to_main(struct s3 *s3, uint32_t chunk)
{
    unsigned size_class = class_of(s3, chunk);
    policy_order_remove(&s3->order, heap_of(s3, chunk), chunk);
    s3->n_members[size_class][queue_of(s3, chunk)]--;
    enter(s3, chunk, size_class, QUEUE_MAIN);
    policy_order_push(&s3->order, heap_of(s3, chunk), chunk);
}

static uint32_t s3_victim(struct kvt_policy *policy, unsigned size_class,
                          bool (*usable)(void *arg, uint32_t chunk), void *arg, uint64_t tick)
{
    struct s3 *s3 = s3_of(policy);
    const uint32_t *n = s3->n_members[size_class];
    (void)tick;
    for (unsigned n_left = POLICY_LOOK_MAX; n_left > 0; n_left--) {
        enum queue queue = n[QUEUE_SMALL] >= (n[QUEUE_SMALL] + n[QUEUE_MAIN]) / SMALL_SHARE
                               ? QUEUE_SMALL
                               : QUEUE_MAIN;
        uint32_t chunk = policy_order_least(&s3->order, size_class * QUEUES + queue);
        if (chunk == KVT_CHUNK_NONE) {
            queue = queue == QUEUE_SMALL ? QUEUE_MAIN : QUEUE_SMALL;
            chunk = policy_order_least(&s3->order, size_class * QUEUES + queue);
        }
        if (chunk == KVT_CHUNK_NONE)
            break;
        bool is_usable = usable(arg, chunk);
        /* When all that were looked at had been used, the last of them goes. */
        if (is_usable && (freq_of(s3, chunk) == 0 || n_left == 1))
            return chunk;
        /* Used: out of the small queue with a clean slate, round the main one with a use less. */
        if (is_usable)
            s3->prints[chunk] = queue == QUEUE_SMALL ? s3->prints[chunk] & ~(uint32_t)FREQ_MAX
                                                     : s3->prints[chunk] - 1;
        move_to_main(s3, chunk);
    }
    return KVT_CHUNK_NONE;
}

static uint64_t s3_memory_bytes(const struct kvt_policy *policy)
{
    const struct s3 *s3 = kvt_container_of(policy, const struct s3, base);
    return sizeof(*s3) + policy_order_memory_bytes(&s3->order) +
           s3->order.n_chunks_peak * sizeof(*s3->prints) +
           ((uint64_t)s3->ghost_mask + 1) * sizeof(*s3->ghosts);
}

const struct kvt_policy_ops kvt_policy_s3fifo = {
    .name = "s3fifo",
    .create = s3_create,
    .destroy = s3_destroy,
    .insert = s3_insert,
    .hit = s3_hit,
    .remove = s3_remove,
    .candidate = s3_candidate,
    .victim = s3_victim,
    .memory_bytes = s3_memory_bytes,
};
