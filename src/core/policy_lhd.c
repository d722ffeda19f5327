/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Least hit density, aware of prefix chains (after Beckmann et al., NSDI 2018). A chunk is worth
 * the chance that it is used again, divided by the time that it would hold its slot until then; of
 * a random sample of candidates the one worth least goes. The tables of worth are learnt by
 * policy_lhd_model.c: for each kind of chunk, by its age.
 *
 * The kind of a chunk is what a conversation shows of itself: how often it has gone on so far, at
 * this chunk and before it was stored; whether the chunk was ever followed by another; whether much
 * was new in its prompt. A chunk behind one with several children begins a conversation: what they
 * share is a common prompt, and says nothing about this one.
 */
#include "kvt/policy.h"

#include <stdlib.h>

#include "kvt/util.h"
#include "policy_lhd_model.h"

#define N_SAMPLES 128 /* candidates compared for one victim */
#define N_TRIES   384 /* draws, vetoed ones included */
#define DRAW_STEP 16  /* draws fetched at once */
#define TOO_SHARE 8   /* another goes too if at most one of so many of the sample is worth less */

#define TURN_MAX   7 /* what the small fields of a chunk can hold */
#define USES_MAX   7
#define KIDS_MAX   3
#define RUN_MAX    15
#define RUN_LONG   8 /* new chunks in a row that are more than another question and answer */
#define KIDS_SHARE 3 /* children that make a chunk a common prompt */

struct lhd_chunk {
    uint32_t used;  /* when, in units of the model */
    uint32_t print; /* of its key */
    uint32_t place; /* in its class's list of candidates, + 1; 0: not a candidate */
    unsigned size_class : 4;
    unsigned turn : 3; /* of the conversation, when it was stored */
    unsigned uses : 3; /* since */
    unsigned kids : 2; /* that were stored behind it */
    unsigned run : 4;  /* new chunks before it in its prompt */
};

_Static_assert(sizeof(struct lhd_chunk) == 16, "bytes per chunk");
_Static_assert(KVT_CLASSES_MAX <= 16, "a class fits its bits");
_Static_assert((TURN_MAX + 1) * 8 == LHD_KINDS, "kinds of kind_of()");

struct lhd_list {
    uint32_t *chunks; /* candidates in no order; address space for n_chunks_max */
    uint32_t n;
    uint32_t n_peak;
};

/* What makes one go before another. */
struct lhd_rank {
    float worth;
    uint32_t age;
};

struct lhd {
    struct kvt_policy base;
    struct lhd_rank too; /* of those that go with the last victim, the last */
    uint32_t n_chunks_max;
    uint32_t n_chunks_peak; /* highest chunk seen, + 1 */
    uint32_t n_held;
    uint64_t random;
    struct lhd_chunk *chunks;
    struct lhd_list lists[KVT_CLASSES_MAX];
    struct lhd_model *model;
};

static struct lhd *lhd_of(struct kvt_policy *policy)
{
    return kvt_container_of(policy, struct lhd, base);
}

static uint32_t unit_of(uint64_t tick)
{
    return (uint32_t)(tick >> LHD_UNIT_SHIFT);
}

static unsigned kind_of(const struct lhd_chunk *c)
{
    unsigned turn = KVT_MIN(c->turn + c->uses, (unsigned)TURN_MAX);
    return turn * 8 + (c->uses > 0) * 4u + (c->kids > 0) * 2u + (c->run >= RUN_LONG);
}

static void lhd_destroy(struct kvt_policy *policy)
{
    struct lhd *lhd = lhd_of(policy);
    uint64_t n = lhd->n_chunks_max;
    kvt_big_free(lhd->chunks, n * sizeof(*lhd->chunks));
    for (unsigned c = 0; c < KVT_CLASSES_MAX; c++)
        kvt_big_free(lhd->lists[c].chunks, n * sizeof(*lhd->lists[c].chunks));
    lhd_model_destroy(lhd->model);
    free(lhd);
}

static struct kvt_policy *lhd_create(const struct kvt_policy_config *config)
{
    struct lhd *lhd = calloc(1, sizeof(*lhd));
    if (lhd == NULL)
        return NULL;
    uint64_t n = config->n_chunks_max;
    lhd->base.ops = &kvt_policy_lhd;
    lhd->n_chunks_max = config->n_chunks_max;
    lhd->random = config->seed * 2 + 1; /* xorshift never leaves 0 */
    lhd->chunks = kvt_big_calloc(n * sizeof(*lhd->chunks));
    lhd->model = lhd_model_create();
    bool ok = lhd->chunks != NULL && lhd->model != NULL;
    for (unsigned c = 0; c < KVT_CLASSES_MAX; c++) {
        lhd->lists[c].chunks = kvt_big_calloc(n * sizeof(*lhd->lists[c].chunks));
        ok = ok && lhd->lists[c].chunks != NULL;
    }
    if (ok)
        return &lhd->base;
    lhd_destroy(&lhd->base);
    return NULL;
}

/* What the parent says about a chunk that is stored behind it. */
static void inherit(struct lhd *lhd, struct lhd_chunk *c, struct lhd_chunk *parent)
{
    if (parent->kids == 0 && parent->uses == 0) { /* new in the same prompt */
        c->turn = parent->turn;
        c->run = KVT_MIN(parent->run + 1u, (unsigned)RUN_MAX);
    } else if (parent->kids < KIDS_SHARE) {
        c->turn = KVT_MIN(parent->turn + (unsigned)parent->uses, (unsigned)TURN_MAX);
    }
    if (parent->kids < KIDS_MAX)
        parent->kids++;
    if (parent->kids == 1)
        lhd_model_rekind(lhd->model, parent->print, kind_of(parent));
}

static void lhd_insert(struct kvt_policy *policy, uint32_t chunk, unsigned size_class,
                       uint64_t key_hash, uint32_t parent, uint64_t tick)
{
    struct lhd *lhd = lhd_of(policy);
    KVT_ASSERT(chunk < lhd->n_chunks_max && size_class < KVT_CLASSES_MAX);
    struct lhd_chunk *c = &lhd->chunks[chunk];
    *c = (struct lhd_chunk){
        .used = unit_of(tick),
        .print = (uint32_t)(key_hash ^ key_hash >> 32),
        .size_class = size_class & 15,
    };
    if (parent != KVT_CHUNK_NONE)
        inherit(lhd, c, &lhd->chunks[parent]);
    struct lhd_past past;
    if (lhd_model_past(lhd->model, c->print, &past)) { /* it was here before: this is a use */
        c->turn = past.turn & TURN_MAX;
        c->uses = KVT_MIN(past.uses + 1u, (unsigned)USES_MAX);
    }
    lhd->n_chunks_peak = KVT_MAX(lhd->n_chunks_peak, chunk + 1);
    lhd->n_held++;
    past = (struct lhd_past){.turn = c->turn, .uses = c->uses};
    lhd_model_access(lhd->model, c->print, kind_of(c), past, c->used, lhd->n_held);
}

static void lhd_hit(struct kvt_policy *policy, uint32_t chunk, uint64_t tick)
{
    struct lhd *lhd = lhd_of(policy);
    struct lhd_chunk *c = &lhd->chunks[chunk];
    uint32_t now = unit_of(tick);
    /* The load that brought it into this tier, or another at the same moment: still one use. */
    if (now == c->used && c->uses > 0)
        return;
    c->used = now;
    if (c->uses < USES_MAX)
        c->uses++;
    struct lhd_past past = {.turn = c->turn, .uses = c->uses};
    lhd_model_access(lhd->model, c->print, kind_of(c), past, now, lhd->n_held);
}

static void lhd_candidate(struct kvt_policy *policy, uint32_t chunk, bool is_candidate)
{
    struct lhd *lhd = lhd_of(policy);
    struct lhd_chunk *c = &lhd->chunks[chunk];
    struct lhd_list *list = &lhd->lists[c->size_class];
    KVT_ASSERT((c->place != 0) != is_candidate);
    if (is_candidate) {
        list->chunks[list->n++] = chunk;
        list->n_peak = KVT_MAX(list->n_peak, list->n);
        c->place = list->n;
    } else {
        uint32_t last = list->chunks[--list->n];
        list->chunks[c->place - 1] = last;
        lhd->chunks[last].place = c->place;
        c->place = 0;
    }
}

static void lhd_remove(struct kvt_policy *policy, uint32_t chunk, bool evicted, uint64_t tick)
{
    struct lhd *lhd = lhd_of(policy);
    (void)evicted; /* the model remembers it either way: a deleted one will not come back */
    (void)tick;
    if (lhd->chunks[chunk].place != 0)
        lhd_candidate(policy, chunk, false);
    lhd->n_held--;
}

static uint32_t random_below(struct lhd *lhd, uint32_t n)
{
    lhd->random ^= lhd->random << 13;
    lhd->random ^= lhd->random >> 7;
    lhd->random ^= lhd->random << 17;
    return (uint32_t)((lhd->random >> 32) * n >> 32);
}

static struct lhd_rank rank_of(const struct lhd *lhd, uint32_t chunk, uint32_t now)
{
    const struct lhd_chunk *c = &lhd->chunks[chunk];
    uint32_t age = now - c->used;
    return (struct lhd_rank){lhd_model_worth(lhd->model, kind_of(c), age), age};
}

static bool goes_before(struct lhd_rank a, struct lhd_rank b)
{
    return a.worth != b.worth ? a.worth < b.worth : a.age > b.age;
}

/* The lowest ranks of a sample, in their order. */
struct lowest {
    struct lhd_rank ranks[N_TRIES / TOO_SHARE + 1];
    unsigned n, n_max;
};

static void lowest_add(struct lowest *lowest, struct lhd_rank rank)
{
    unsigned i = lowest->n;
    if (i == lowest->n_max) {
        if (!goes_before(rank, lowest->ranks[i - 1]))
            return;
        i--;
    } else {
        lowest->n++;
    }
    for (; i > 0 && goes_before(rank, lowest->ranks[i - 1]); i--)
        lowest->ranks[i] = lowest->ranks[i - 1];
    lowest->ranks[i] = rank;
}

static uint32_t lhd_victim(struct kvt_policy *policy, unsigned size_class,
                           bool (*usable)(void *arg, uint32_t chunk), void *arg, uint64_t tick)
{
    struct lhd *lhd = lhd_of(policy);
    const struct lhd_list *list = &lhd->lists[size_class];
    uint32_t now = unit_of(tick);
    uint32_t victim = KVT_CHUNK_NONE;
    bool all = list->n <= N_TRIES; /* then a walk is no more than a draw, and misses none */
    unsigned n_tries = all ? list->n : N_TRIES, n_samples = all ? N_TRIES : N_SAMPLES;
    unsigned n_usable = 0;
    struct lowest lowest = {.n_max = n_samples / TOO_SHARE + 1};
    for (unsigned tried = 0; tried < n_tries && n_usable < n_samples;) {
        /* Each draw is a cache miss or two in a large tier: let some be under way together. */
        uint32_t drawn[DRAW_STEP];
        unsigned n_drawn = KVT_MIN(n_tries - tried, (unsigned)DRAW_STEP);
        for (unsigned i = 0; i < n_drawn; i++) {
            drawn[i] = all ? tried + i : random_below(lhd, list->n);
            __builtin_prefetch(&list->chunks[drawn[i]]);
        }
        for (unsigned i = 0; i < n_drawn; i++) {
            drawn[i] = list->chunks[drawn[i]];
            __builtin_prefetch(&lhd->chunks[drawn[i]]);
        }
        tried += n_drawn;
        for (unsigned i = 0; i < n_drawn; i++) {
            if (!usable(arg, drawn[i]))
                continue;
            struct lhd_rank rank = rank_of(lhd, drawn[i], now);
            if (lowest.n == 0 || goes_before(rank, lowest.ranks[0]))
                victim = drawn[i];
            lowest_add(&lowest, rank);
            n_usable++;
        }
    }
    if (lowest.n > 0)
        lhd->too = lowest.ranks[KVT_MIN(n_usable / TOO_SHARE, lowest.n - 1)];
    return victim;
}

static bool lhd_may_go_too(const struct kvt_policy *policy, uint32_t chunk, uint64_t tick)
{
    const struct lhd *lhd = kvt_container_of(policy, const struct lhd, base);
    return !goes_before(lhd->too, rank_of(lhd, chunk, unit_of(tick)));
}

static uint64_t lhd_memory_bytes(const struct kvt_policy *policy)
{
    const struct lhd *lhd = kvt_container_of(policy, const struct lhd, base);
    uint64_t bytes = sizeof(*lhd) + lhd->n_chunks_peak * sizeof(*lhd->chunks);
    for (unsigned c = 0; c < KVT_CLASSES_MAX; c++)
        bytes += lhd->lists[c].n_peak * sizeof(*lhd->lists[c].chunks);
    return bytes + lhd_model_memory_bytes(lhd->model);
}

const struct kvt_policy_ops kvt_policy_lhd = {
    .name = "lhd",
    .create = lhd_create,
    .destroy = lhd_destroy,
    .insert = lhd_insert,
    .hit = lhd_hit,
    .remove = lhd_remove,
    .candidate = lhd_candidate,
    .victim = lhd_victim,
    .may_go_too = lhd_may_go_too,
    .memory_bytes = lhd_memory_bytes,
};
