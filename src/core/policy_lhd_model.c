/* SPDX-License-Identifier: Apache-2.0 */
#include "policy_lhd_model.h"

#include <stdlib.h>

#include "kvt/util.h"

/* The last accesses, oldest overwritten first; an access of the same key voids the one before. */
#define RING_MAX   (UINT32_C(1) << 18)
#define TABLE_BITS 19
#define TABLE_MASK ((UINT32_C(1) << TABLE_BITS) - 1)
#define SWEEP_STEP 16                  /* ring entries counted per access */
#define SWEEP_MIN  (UINT32_C(1) << 15) /* so that tables are made every 2048 accesses at most */
#define MAKE_STEP  8 /* kinds whose tables are made per access; divides their number */
#define HELD_SHARE 4 /* follow so few keys that those held fill at most this part of the ring */

/*
 * The tables forget a part at each making (half in 70), and lean on what is known of all kinds
 * together until a kind has been seen some hundred times; with nothing known at all, the chance of
 * a use is the same in every bucket, which is a preference for the recently used.
 */
#define KEEP         0.99f
#define LEAN_KIND    20.0
#define LEAN_ALL     40.0
#define CHANCE_BLANK 0.015
#define CHANCE_MAX   0.99

struct access {
    uint32_t print;
    uint32_t used;
    uint8_t kind;
    bool live; /* the last access of its key */
    struct lhd_past past;
};

struct lhd_model {
    struct access *ring;
    uint32_t *table; /* print to ring place + 1; 0: free */
    uint64_t n_accesses;
    uint32_t sweep;  /* next ring place to count */
    unsigned making; /* next kind to make the table of; LHD_KINDS: none, counting goes on */
    double all[LHD_BUCKETS];
    unsigned sample_shift;
    /* By kind and age: used at that age; followed no longer than to that age; waiting at it. */
    float used[LHD_KINDS][LHD_BUCKETS];
    float lost[LHD_KINDS][LHD_BUCKETS];
    uint32_t waiting[LHD_KINDS][LHD_BUCKETS];
    float worth[LHD_KINDS][LHD_BUCKETS];
};

static unsigned bucket_of(uint32_t age)
{
    if (age < 4)
        return age;
    unsigned log2 = 31 - (unsigned)__builtin_clz(age);
    return 4 * (log2 - 1) + (age >> (log2 - 2) & 3);
}

static double bucket_start(unsigned bucket)
{
    if (bucket < 4)
        return bucket;
    return (double)(UINT64_C(4) + bucket % 4) * (double)(UINT64_C(1) << (bucket / 4 - 1));
}

_Static_assert(LHD_KINDS % MAKE_STEP == 0, "whole steps");

/* --- making the tables -------------------------------------------------------------------------
 */

/* A place in the plane of time spent against uses had, summed over ages. */
struct point {
    double time;
    double uses;
};

static double slope(struct point a, struct point b)
{
    return (b.uses - a.uses) / (b.time - a.time);
}

/*
 * Worth at each age: the best ratio of uses to time over all ages at which one could give up
 * later, which is the slope of the upper hull of the points.
 */
static void worth_make(const double chance[LHD_BUCKETS], float worth[LHD_BUCKETS])
{
    struct point points[LHD_BUCKETS + 1] = {{0, 0}};
    double alive = 1;
    for (unsigned b = 0; b < LHD_BUCKETS; b++) {
        double width = bucket_start(b + 1) - bucket_start(b);
        points[b + 1].uses = points[b].uses + alive * chance[b];
        points[b + 1].time = points[b].time + alive * (1 - chance[b] / 2) * width;
        alive *= 1 - chance[b];
    }
    unsigned hull[LHD_BUCKETS + 1];
    unsigned n = 0;
    hull[n++] = LHD_BUCKETS;
    for (unsigned b = LHD_BUCKETS; b-- > 0;) {
        while (n > 1 && slope(points[b], points[hull[n - 1]]) <
                            slope(points[hull[n - 1]], points[hull[n - 2]]))
            n--;
        worth[b] = (float)slope(points[b], points[hull[n - 1]]);
        hull[n++] = b;
    }
}

/* Chances of all kinds together, from which each kind's are made. */
static void making_begin(struct lhd_model *m)
{
    double used[LHD_BUCKETS] = {0};
    double reached[LHD_BUCKETS] = {0};
    for (unsigned k = 0; k < LHD_KINDS; k++) {
        double n = 0;
        for (unsigned b = LHD_BUCKETS; b-- > 0;) {
            n += m->used[k][b] + m->lost[k][b] + m->waiting[k][b];
            reached[b] += n;
            used[b] += m->used[k][b];
        }
    }
    for (unsigned b = 0; b < LHD_BUCKETS; b++)
        m->all[b] = (used[b] + LEAN_ALL * CHANCE_BLANK) / (reached[b] + LEAN_ALL);
    m->making = 0;
}

static void making_step(struct lhd_model *m)
{
    unsigned k = m->making++;
    double chance[LHD_BUCKETS];
    double n = 0;
    for (unsigned b = LHD_BUCKETS; b-- > 0;) {
        n += m->used[k][b] + m->lost[k][b] + m->waiting[k][b];
        double c = (m->used[k][b] + LEAN_KIND * m->all[b]) / (n + LEAN_KIND);
        chance[b] = KVT_MIN(c, CHANCE_MAX);
    }
    worth_make(chance, m->worth[k]);
    for (unsigned b = 0; b < LHD_BUCKETS; b++) {
        m->used[k][b] *= KEEP;
        m->lost[k][b] *= KEEP;
        m->waiting[k][b] = 0;
    }
}

/* --- the table of prints: open addressing, half full at most ---------------------------------- */

static uint32_t table_home(uint32_t print)
{
    return print * UINT32_C(2654435769) >> (32 - TABLE_BITS);
}

/* Where the print is, or the free place where it belongs. */
static uint32_t table_find(const struct lhd_model *m, uint32_t print)
{
    uint32_t at = table_home(print);
    while (m->table[at] != 0 && m->ring[m->table[at] - 1].print != print)
        at = (at + 1) & TABLE_MASK;
    return at;
}

/* Close the gap, so that no search ends early. */
static void table_free(struct lhd_model *m, uint32_t gap)
{
    for (uint32_t at = (gap + 1) & TABLE_MASK; m->table[at] != 0; at = (at + 1) & TABLE_MASK) {
        uint32_t home = table_home(m->ring[m->table[at] - 1].print);
        if (((at - home) & TABLE_MASK) < ((at - gap) & TABLE_MASK))
            continue;
        m->table[gap] = m->table[at];
        gap = at;
    }
    m->table[gap] = 0;
}

/* --- accesses -------------------------------------------------------------------------------- */

struct lhd_model *lhd_model_create(void)
{
    struct lhd_model *m = calloc(1, sizeof(*m));
    if (m == NULL)
        return NULL;
    m->ring = kvt_big_calloc(RING_MAX * sizeof(*m->ring));
    m->table = kvt_big_calloc((TABLE_MASK + UINT64_C(1)) * sizeof(*m->table));
    if (m->ring == NULL || m->table == NULL) {
        lhd_model_destroy(m);
        return NULL;
    }
    making_begin(m);
    while (m->making < LHD_KINDS)
        making_step(m);
    return m;
}

void lhd_model_destroy(struct lhd_model *m)
{
    if (m == NULL)
        return;
    kvt_big_free(m->ring, RING_MAX * sizeof(*m->ring));
    kvt_big_free(m->table, (TABLE_MASK + UINT64_C(1)) * sizeof(*m->table));
    free(m);
}

/* The table hashes a print by its high bits after multiplying, so its low bits are free for this.
 */
static bool followed(const struct lhd_model *m, uint32_t print)
{
    return (print & ((UINT32_C(1) << m->sample_shift) - 1)) == 0;
}

/* Count some of those that wait; when all are counted make the tables, some kinds per access. */
static void sweep(struct lhd_model *m, uint32_t now)
{
    if (m->making < LHD_KINDS) {
        for (unsigned i = 0; i < MAKE_STEP; i++)
            making_step(m);
        return;
    }
    for (unsigned i = 0; i < SWEEP_STEP; i++) {
        struct access *a = &m->ring[m->sweep++];
        if (a->live && !followed(m, a->print)) {
            table_free(m, table_find(m, a->print));
            a->live = false;
        }
        if (a->live)
            m->waiting[a->kind][bucket_of(now - a->used)]++;
    }
    if (m->sweep >= RING_MAX || (m->sweep >= SWEEP_MIN && m->sweep >= m->n_accesses)) {
        making_begin(m);
        m->sweep = 0;
    }
}

void lhd_model_access(struct lhd_model *m, uint32_t print, unsigned kind, struct lhd_past past,
                      uint32_t now, uint32_t n_held)
{
    while (n_held >> m->sample_shift > RING_MAX / HELD_SHARE)
        m->sample_shift++;
    if (!followed(m, print))
        return;
    uint32_t at = table_find(m, print);
    if (m->table[at] != 0) {
        struct access *last = &m->ring[m->table[at] - 1];
        m->used[last->kind][bucket_of(now - last->used)]++;
        last->live = false;
        table_free(m, at);
    }
    uint32_t place = (uint32_t)(m->n_accesses++ % RING_MAX);
    struct access *a = &m->ring[place];
    if (a->live) {
        m->lost[a->kind][bucket_of(now - a->used)]++;
        table_free(m, table_find(m, a->print));
    }
    *a = (struct access){print, now, (uint8_t)kind, true, past};
    m->table[table_find(m, print)] = place + 1;
    sweep(m, now);
}

void lhd_model_rekind(struct lhd_model *m, uint32_t print, unsigned kind)
{
    uint32_t place = m->table[table_find(m, print)];
    if (place != 0)
        m->ring[place - 1].kind = (uint8_t)kind;
}

bool lhd_model_past(const struct lhd_model *m, uint32_t print, struct lhd_past *past_p)
{
    if (m->sample_shift > 0)
        return false;
    uint32_t place = m->table[table_find(m, print)];
    if (place == 0)
        return false;
    *past_p = m->ring[place - 1].past;
    return true;
}

float lhd_model_worth(const struct lhd_model *m, unsigned kind, uint32_t age)
{
    return m->worth[kind][bucket_of(age)];
}

uint64_t lhd_model_memory_bytes(const struct lhd_model *m)
{
    uint64_t n = KVT_MIN(m->n_accesses, (uint64_t)RING_MAX);
    return sizeof(*m) + n * sizeof(*m->ring) + (TABLE_MASK + UINT64_C(1)) * sizeof(*m->table);
}
