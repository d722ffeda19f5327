/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which chunk goes when a tier needs a slot. The core says what is a *candidate* (in the tier, at
 * rest, no child in the tier, its loss strands nobody); the policy orders the candidates. One
 * policy object per tier; chunks are named by their index (dense, below n_chunks_max), and a slot
 * size class is a small number: a victim is asked for within a class, because only a slot of the
 * same size helps.
 *
 * Deterministic: no clock, no thread, randomness from the seed alone. Time is *logical*: the core
 * passes `tick`, the number of chunk accesses (hits and inserts) so far, so that decisions do not
 * depend on the speed at which a trace is replayed.
 */
#ifndef KVT_POLICY_H
#define KVT_POLICY_H

#include <stdbool.h>
#include <stdint.h>

#define KVT_CHUNK_NONE  UINT32_MAX
#define KVT_CLASSES_MAX 16

struct kvt_policy;

struct kvt_policy_config {
    uint32_t n_chunks_max;
    uint64_t seed;
};

struct kvt_policy_ops {
    const char *name;
    struct kvt_policy *(*create)(const struct kvt_policy_config *config); /* NULL: no memory */
    void (*destroy)(struct kvt_policy *policy);

    /*
     * A chunk entered the tier. key_hash identifies its content for ghosts. parent: the chunk
     * before it in its prompt, if that is in the tier, else KVT_CHUNK_NONE (also for what is
     * restored after a restart).
     */
    void (*insert)(struct kvt_policy *policy, uint32_t chunk, unsigned size_class,
                   uint64_t key_hash, uint32_t parent, uint64_t tick);
    /* It was used. The chunks of one prompt arrive tail first, so that a parent is never older. */
    void (*hit)(struct kvt_policy *policy, uint32_t chunk, uint64_t tick);
    /* It left the tier. evicted: by this policy's choice; else deleted or lost. */
    void (*remove)(struct kvt_policy *policy, uint32_t chunk, bool evicted, uint64_t tick);
    /* It became, or ceased to be, a candidate. Called only when that changes. */
    void (*candidate)(struct kvt_policy *policy, uint32_t chunk, bool is_candidate);

    /*
     * Choose a candidate of the class to evict. usable(arg, chunk) vetoes (pinned just now); at
     * most about a thousand candidates are looked at, and not the same ones each time.
     * KVT_CHUNK_NONE: none found. The choice stays in the policy until remove().
     */
    uint32_t (*victim)(struct kvt_policy *policy, unsigned size_class,
                       bool (*usable)(void *arg, uint32_t chunk), void *arg, uint64_t tick);
    /*
     * Whether a chunk of the tier and of the last victim's class is about as good a choice as that
     * one, and may go too, since its place lies beside the victim's. It is a candidate, or will be
     * when those below it are gone. NULL: the policy has an exact order.
     */
    bool (*may_go_too)(const struct kvt_policy *policy, uint32_t chunk, uint64_t tick);

    uint64_t (*memory_bytes)(const struct kvt_policy *policy); /* touched, not reserved */
};

struct kvt_policy {
    const struct kvt_policy_ops *ops;
};

extern const struct kvt_policy_ops kvt_policy_lru;
extern const struct kvt_policy_ops kvt_policy_s3fifo;
extern const struct kvt_policy_ops kvt_policy_lhd; /* chain-aware least hit density */

/** By name ("lhd", "lru", "s3fifo"); NULL when there is none of that name. */
const struct kvt_policy_ops *kvt_policy_find(const char *name);
/** Names separated by ", " for messages. Static storage. */
const char *kvt_policy_names(void);

#endif
