/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Least hit density, aware of chains (after Beckmann et al., NSDI 2018). A chunk is worth the
 * chance that it is used again, divided by the time it would hold its slot until then; of some
 * random candidates the one worth least goes. Worth is learnt: for each class of chunks (how often
 * used, how it came to be stored), how likely a use is at each age.
 */
#include "kvt/policy.h"

#include <stdlib.h>
#include <string.h>

#include "kvt/util.h"

#define N_SAMPLES 64  /* candidates compared for one victim */
#define N_TRIES   256 /* draws, vetoed ones included */

/* Ages are in accesses, in units of 16; buckets are a quarter of a doubling wide. */
#define UNIT_SHIFT 4
#define N_BUCKETS  112
#define N_CLASSES  8

#define RING_MAX   (UINT32_C(1) << 18)
#define SWEEP_STEP 16

struct lhd_chunk {
    uint32_t used;  /* when, in units */
    uint32_t print; /* of its key */
    uint32_t place; /* in its candidate list, + 1; 0: not a candidate */
    uint8_t size_class;
    uint8_t class;
    uint16_t pad;
};

struct lhd_list {
    uint32_t *chunks;
    uint32_t n;
    uint32_t n_peak;
};

struct ghost {
    uint32_t print;
    uint32_t used;
    uint8_t class;
    bool live;
};

struct lhd {
    struct kvt_policy base;
    uint32_t n_chunks_max;
    uint32_t n_chunks_peak;
    uint64_t random;
    struct lhd_chunk *chunks;
    struct lhd_list lists[KVT_CLASSES_MAX];

    struct ghost *ring;
    uint32_t *table;
    uint64_t n_written;
    uint32_t sample_mask;

    uint64_t sweep_at;
    float hits[N_CLASSES][N_BUCKETS];
    float ends[N_CLASSES][N_BUCKETS];
    uint32_t waiting[N_CLASSES][N_BUCKETS];
    float worth[N_CLASSES][N_BUCKETS];
};

#define P_decay 0.98
#define P_k     20.0
#define P_k0    4.0
#define P_prior 0.035
#define P_cont  3u

static unsigned bucket_of(uint32_t age)
{
    if (age < 4)
        return age;
    unsigned e = 31 - (unsigned)__builtin_clz(age);
    unsigned b = 4 * (e - 1) + (age >> (e - 2) & 3);
    return b;
}
static double bucket_start(unsigned b)
{
    if (b < 4)
        return b;
    unsigned e = b / 4 + 1;
    return (double)(4 + b % 4) * (double)(UINT64_C(1) << (e - 2));
}

static void build(struct lhd *lhd)
{
    double all_hits[N_BUCKETS] = {0}, all_reached[N_BUCKETS] = {0}, prior[N_BUCKETS];
    double reached[N_CLASSES][N_BUCKETS];
    for (unsigned c = 0; c < N_CLASSES; c++) {
        double r = 0;
        for (unsigned b = N_BUCKETS; b-- > 0;) {
            r += lhd->hits[c][b] + (lhd->ends[c][b] + lhd->waiting[c][b]) * 1.0;
            reached[c][b] = r;
            all_hits[b] += lhd->hits[c][b];
            all_reached[b] += r;
        }
    }
    for (unsigned b = 0; b < N_BUCKETS; b++)
        prior[b] = (all_hits[b] + P_k0 * P_prior) / (all_reached[b] + P_k0);
    for (unsigned c = 0; c < N_CLASSES; c++) {
        double t[N_BUCKETS + 1], h[N_BUCKETS + 1];
        double s = 1;
        t[0] = h[0] = 0;
        for (unsigned b = 0; b < N_BUCKETS; b++) {
            double hz = (lhd->hits[c][b] + P_k * prior[b]) / (reached[c][b] + P_k);
            if (hz > 0.99)
                hz = 0.99;
            double w = bucket_start(b + 1) - bucket_start(b);
            h[b + 1] = h[b] + s * hz;
            t[b + 1] = t[b] + s * (1 - hz / 2) * w;
            s *= 1 - hz;
        }
        unsigned stack[N_BUCKETS + 1], n = 0;
        stack[n++] = N_BUCKETS;
        for (unsigned b = N_BUCKETS; b-- > 0;) {
#define SLOPE(i, j) ((h[j] - h[i]) / (t[j] - t[i]))
            while (n > 1 && SLOPE(b, stack[n - 1]) < SLOPE(stack[n - 1], stack[n - 2]))
                n--;
            lhd->worth[c][b] = (float)SLOPE(b, stack[n - 1]);
            stack[n++] = b;
        }
    }
    for (unsigned c = 0; c < N_CLASSES; c++)
        for (unsigned b = 0; b < N_BUCKETS; b++) {
            lhd->hits[c][b] *= (float)P_decay;
            lhd->ends[c][b] *= (float)P_decay;
            lhd->waiting[c][b] = 0;
        }
}

/* --- table: print -> ring place + 1 --- */
static uint32_t table_home(const struct lhd *lhd, uint32_t print)
{
    return (print * UINT32_C(2654435769)) >> 13;
}
#define TMASK (RING_MAX * 2 - 1)
static uint32_t table_find(const struct lhd *lhd, uint32_t print, uint32_t *at_p)
{
    uint32_t at = table_home(lhd, print);
    for (; lhd->table[at] != 0; at = (at + 1) & TMASK)
        if (lhd->ring[lhd->table[at] - 1].print == print)
            break;
    *at_p = at;
    return lhd->table[at];
}
static void table_del(struct lhd *lhd, uint32_t hole)
{
    for (uint32_t at = (hole + 1) & TMASK; lhd->table[at] != 0; at = (at + 1) & TMASK) {
        uint32_t home = table_home(lhd, lhd->ring[lhd->table[at] - 1].print);
        if (((at - home) & TMASK) >= ((at - hole) & TMASK)) {
            lhd->table[hole] = lhd->table[at];
            hole = at;
        }
    }
    lhd->table[hole] = 0;
}

static uint32_t age_of(uint32_t used, uint32_t now)
{
    return now - used;
}

static struct ghost *monitor_find(struct lhd *lhd, uint32_t print)
{
    uint32_t at;
    uint32_t p = table_find(lhd, print, &at);
    return p ? &lhd->ring[p - 1] : NULL;
}

/* an access: resolves the old entry and starts a new one */
static void monitor_access(struct lhd *lhd, uint32_t print, unsigned class, uint32_t now)
{
    uint32_t at;
    uint32_t p = table_find(lhd, print, &at);
    if (p) {
        struct ghost *g = &lhd->ring[p - 1];
        lhd->hits[g->class][bucket_of(age_of(g->used, now))] += 1;
        g->live = false;
        table_del(lhd, at);
    }
    uint32_t place = (uint32_t)(lhd->n_written++ % RING_MAX);
    struct ghost *g = &lhd->ring[place];
    if (g->live) {
        lhd->ends[g->class][bucket_of(age_of(g->used, now))] += 1;
        table_find(lhd, g->print, &at);
        table_del(lhd, at);
    }
    *g = (struct ghost){print, now, (uint8_t) class, true};
    table_find(lhd, print, &at);
    lhd->table[at] = place + 1;

    uint64_t n = KVT_MIN(lhd->n_written, RING_MAX);
    for (unsigned i = 0; i < SWEEP_STEP; i++) {
        if (lhd->sweep_at >= n) {
            build(lhd);
            lhd->sweep_at = 0;
            break;
        }
        g = &lhd->ring[lhd->sweep_at++];
        if (g->live)
            lhd->waiting[g->class][bucket_of(age_of(g->used, now))]++;
    }
}

static struct lhd *lhd_of(struct kvt_policy *policy)
{
    return kvt_container_of(policy, struct lhd, base);
}

static void lhd_destroy(struct kvt_policy *policy)
{
    struct lhd *lhd = lhd_of(policy);
    uint64_t n = lhd->n_chunks_max;
    kvt_big_free(lhd->chunks, n * sizeof(*lhd->chunks));
    for (unsigned c = 0; c < KVT_CLASSES_MAX; c++)
        kvt_big_free(lhd->lists[c].chunks, n * sizeof(*lhd->lists[c].chunks));
    kvt_big_free(lhd->ring, RING_MAX * sizeof(*lhd->ring));
    kvt_big_free(lhd->table, RING_MAX * 2 * sizeof(*lhd->table));
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
    lhd->random = config->seed * 2 + 1;
    lhd->chunks = kvt_big_calloc(n * sizeof(*lhd->chunks));
    bool ok = lhd->chunks != NULL;
    for (unsigned c = 0; c < KVT_CLASSES_MAX; c++) {
        lhd->lists[c].chunks = kvt_big_calloc(n * sizeof(*lhd->lists[c].chunks));
        ok = ok && lhd->lists[c].chunks != NULL;
    }
    lhd->ring = kvt_big_calloc(RING_MAX * sizeof(*lhd->ring));
    lhd->table = kvt_big_calloc(RING_MAX * 2 * sizeof(*lhd->table));
    build(lhd);
    if (ok && lhd->ring != NULL && lhd->table != NULL)
        return &lhd->base;
    lhd_destroy(&lhd->base);
    return NULL;
}

static void lhd_insert(struct kvt_policy *policy, uint32_t chunk, unsigned size_class,
                       uint64_t key_hash, uint32_t n_prefix_hits, uint64_t tick)
{
    struct lhd *lhd = lhd_of(policy);
    KVT_ASSERT(chunk < lhd->n_chunks_max && size_class < KVT_CLASSES_MAX);
    uint32_t print = (uint32_t)(key_hash ^ key_hash >> 32);
    uint32_t now = (uint32_t)(tick >> UNIT_SHIFT);
    struct ghost *g = monitor_find(lhd, print);
    unsigned class = n_prefix_hits > P_cont ? 1 : 0;
    if (g) {
        class = g->class < 2 ? 2 : KVT_MIN(g->class + 1u, N_CLASSES - 1u);
    }
    lhd->chunks[chunk] = (struct lhd_chunk){
        .used = now,
        .print = print,
        .size_class = (uint8_t)size_class,
        .class = (uint8_t) class,
    };
    lhd->n_chunks_peak = KVT_MAX(lhd->n_chunks_peak, chunk + 1);
    monitor_access(lhd, print, class, now);
}

static void lhd_hit(struct kvt_policy *policy, uint32_t chunk, uint64_t tick)
{
    struct lhd *lhd = lhd_of(policy);
    struct lhd_chunk *c = &lhd->chunks[chunk];
    c->used = (uint32_t)(tick >> UNIT_SHIFT);
    c->class = c->class < 2 ? 2 : KVT_MIN(c->class + 1u, N_CLASSES - 1u);
    monitor_access(lhd, c->print, c->class, c->used);
}

static void lhd_candidate(struct kvt_policy *policy, uint32_t chunk, bool is_candidate)
{
    struct lhd *lhd = lhd_of(policy);
    struct lhd_chunk *c = &lhd->chunks[chunk];
    struct lhd_list *list = &lhd->lists[c->size_class];
    KVT_ASSERT((c->place != 0) != is_candidate);
    if (is_candidate) {
        list->chunks[list->n++] = chunk;
        c->place = list->n;
        list->n_peak = KVT_MAX(list->n_peak, list->n);
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
    (void)evicted;
    (void)tick;
    if (lhd->chunks[chunk].place != 0)
        lhd_candidate(policy, chunk, false);
}

static uint64_t next_random(struct lhd *lhd)
{
    lhd->random ^= lhd->random << 13;
    lhd->random ^= lhd->random >> 7;
    lhd->random ^= lhd->random << 17;
    return lhd->random;
}

static uint32_t lhd_victim(struct kvt_policy *policy, unsigned size_class,
                           bool (*usable)(void *arg, uint32_t chunk), void *arg, uint64_t tick)
{
    struct lhd *lhd = lhd_of(policy);
    const struct lhd_list *list = &lhd->lists[size_class];
    uint32_t now = (uint32_t)(tick >> UNIT_SHIFT);
    uint32_t victim = KVT_CHUNK_NONE;
    float least = 0;
    uint32_t victim_age = 0;
    unsigned n = 0;
    bool all = list->n <= N_SAMPLES;
    for (unsigned i = 0; i < (all ? list->n : N_TRIES) && n < N_SAMPLES; i++) {
        uint32_t chunk =
            list->chunks[all ? i : (uint32_t)(((next_random(lhd) >> 32) * list->n) >> 32)];
        if (!usable(arg, chunk))
            continue;
        n++;
        const struct lhd_chunk *c = &lhd->chunks[chunk];
        uint32_t age = age_of(c->used, now);
        float worth = lhd->worth[c->class][bucket_of(age)];
        if (victim == KVT_CHUNK_NONE || worth < least || (worth == least && age > victim_age)) {
            victim = chunk;
            least = worth;
            victim_age = age;
        }
    }
    return victim;
}

static uint64_t lhd_memory_bytes(const struct kvt_policy *policy)
{
    const struct lhd *lhd = kvt_container_of(policy, const struct lhd, base);
    return sizeof(*lhd) + lhd->n_chunks_peak * sizeof(*lhd->chunks);
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
    .memory_bytes = lhd_memory_bytes,
};
