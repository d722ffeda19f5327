/* SPDX-License-Identifier: Apache-2.0 */
#include "metrics.h"

#include <string.h>

#include "kvt/units.h"
#include "kvt/util.h"

#define NONE UINT32_MAX

const uint64_t metrics_bounds_ns[METRICS_BOUNDS] = {
    1000,      2000,      5000,       10000,      20000,      50000,       100000,   200000,
    500000,    1000000,   2000000,    5000000,    10000000,   20000000,    50000000, 100000000,
    200000000, 500000000, 1000000000, 2000000000, 5000000000, 10000000000,
};

struct timed_op {
    uint64_t op;
    uint64_t start_ns;
    uint64_t turn;
    uint64_t chunk_bytes;
    uint32_t session;
    uint32_t n_open; /* items without an answer */
    uint32_t next;   /* in the bucket, or free */
    uint32_t session_next, session_prev;
    enum metrics_timed what;
};

const char *metrics_timed_name(enum metrics_timed what)
{
    static const char *const names[] = {
#define TIMED_NAME(upper, operation, tier) operation,
        METRICS_TIMED_MAP(TIMED_NAME)
#undef TIMED_NAME
    };
    return names[what];
}

bool metrics_init(struct metrics *metrics, uint32_t n_sessions, uint32_t n_ops)
{
    *metrics = (struct metrics){.n_ops = n_ops, .n_sessions = n_sessions, .n_buckets = 1};
    while (metrics->n_buckets < n_ops)
        metrics->n_buckets *= 2;
    metrics->ideal = ideal_create();
    metrics->ops = kvt_big_calloc(n_ops * sizeof(*metrics->ops));
    metrics->buckets = kvt_big_calloc(metrics->n_buckets * sizeof(uint32_t));
    metrics->sessions = kvt_big_calloc(n_sessions * sizeof(uint32_t));
    if (metrics->ideal == NULL || metrics->ops == NULL || metrics->buckets == NULL ||
        metrics->sessions == NULL)
        return false;
    memset(metrics->buckets, 0xff, metrics->n_buckets * sizeof(uint32_t));
    memset(metrics->sessions, 0xff, n_sessions * sizeof(uint32_t));
    metrics->free_op = NONE;
    return true;
}

void metrics_fini(struct metrics *metrics)
{
    ideal_destroy(metrics->ideal);
    kvt_big_free(metrics->ops, metrics->n_ops * sizeof(*metrics->ops));
    kvt_big_free(metrics->buckets, metrics->n_buckets * sizeof(uint32_t));
    kvt_big_free(metrics->sessions, metrics->n_sessions * sizeof(uint32_t));
    *metrics = (struct metrics){0};
}

void histogram_add(struct histogram *histogram, uint64_t ns)
{
    unsigned i = 0;
    while (i < METRICS_BOUNDS && ns > metrics_bounds_ns[i])
        i++;
    histogram->counts[i]++;
    histogram->sum_ns += ns;
}

void metrics_timed(struct metrics *metrics, enum metrics_timed what, uint64_t start_ns)
{
    uint64_t now = kvt_now_ns();
    histogram_add(&metrics->counters.timed[what], now > start_ns ? now - start_ns : 0);
}

/* How many of the n have the host's bit. */
static unsigned host_count(const uint8_t *where, unsigned n)
{
    _Static_assert(KVT_WHERE_HOST == 1, "the lowest bit of each byte");
    unsigned n_host = 0;
    unsigned i = 0;
    for (uint64_t word; i + sizeof(word) <= n; i += sizeof(word)) {
        memcpy(&word, where + i, sizeof(word));
        n_host += (unsigned)__builtin_popcountll(word & UINT64_C(0x0101010101010101));
    }
    for (; i < n; i++)
        n_host += where[i] & 1;
    return n_host;
}

void metrics_lookup(struct metrics *metrics, const struct kvt_ns_desc *desc, uint64_t ns_mark,
                    const struct kvt_wire_lookup *msg, const struct kvt_key *keys,
                    const uint8_t *where, unsigned n_hit)
{
    struct metrics_counters *c = &metrics->counters;
    unsigned n[METRICS_TIERS];
    n[METRICS_HOST] = host_count(where, n_hit);
    n[METRICS_NVME] = n_hit - n[METRICS_HOST];
    for (unsigned tier = 0; tier < METRICS_TIERS; tier++) {
        c->hit_chunks[tier] += n[tier];
        c->hit_tokens[tier] += (uint64_t)n[tier] * desc->tokens_per_chunk;
        c->hit_bytes[tier] += n[tier] * desc->chunk_bytes;
    }
    c->lookup_tokens += (uint64_t)msg->n_keys * desc->tokens_per_chunk;
    ideal_missed(metrics->ideal, ns_mark, keys + n_hit, msg->n_keys - n_hit);
}

/* --- ops that are answered later -------------------------------------------------------------- */

static uint32_t *bucket_of(struct metrics *metrics, uint32_t session, uint64_t op)
{
    uint64_t hash = (op ^ (uint64_t)session << 40) * UINT64_C(0x9e3779b97f4a7c15);
    return &metrics->buckets[(hash >> 32) & (metrics->n_buckets - 1)];
}

/* COMMIT and LOAD become another kind only once they are answered. */
static uint32_t *op_find(struct metrics *metrics, uint32_t session, uint64_t op,
                         enum metrics_timed what)
{
    uint32_t *at = bucket_of(metrics, session, op);
    for (; *at != NONE; at = &metrics->ops[*at].next) {
        const struct timed_op *t = &metrics->ops[*at];
        if (t->op == op && t->session == session && t->what == what)
            return at;
    }
    return NULL;
}

static void op_remove(struct metrics *metrics, uint32_t *at)
{
    uint32_t i = *at;
    struct timed_op *t = &metrics->ops[i];
    *at = t->next;
    if (t->session_prev != NONE)
        metrics->ops[t->session_prev].session_next = t->session_next;
    else
        metrics->sessions[t->session] = t->session_next;
    if (t->session_next != NONE)
        metrics->ops[t->session_next].session_prev = t->session_prev;
    t->next = metrics->free_op;
    metrics->free_op = i;
}

void metrics_op_begin(struct metrics *metrics, uint32_t session, uint64_t op,
                      enum metrics_timed what, unsigned n, uint64_t chunk_bytes, uint64_t start_ns)
{
    uint32_t *at = op_find(metrics, session, op, what);
    if (at != NULL) { /* another commit of the same op: timed from the first to the last answer */
        metrics->ops[*at].n_open += n;
        return;
    }
    uint32_t i = metrics->free_op;
    if (i == NONE && metrics->n_ops_used == metrics->n_ops)
        return; /* not timed; there is room for all that the core takes */
    if (i == NONE)
        i = metrics->n_ops_used++; /* memory is touched as ops come */
    else
        metrics->free_op = metrics->ops[i].next;
    struct timed_op *t = &metrics->ops[i];
    uint32_t *bucket = bucket_of(metrics, session, op);
    uint32_t first = metrics->sessions[session];
    *t = (struct timed_op){
        .op = op,
        .start_ns = start_ns,
        .turn = metrics->turn,
        .chunk_bytes = chunk_bytes,
        .session = session,
        .n_open = n,
        .next = *bucket,
        .session_next = first,
        .session_prev = NONE,
        .what = what,
    };
    *bucket = i;
    metrics->sessions[session] = i;
    if (first != NONE)
        metrics->ops[first].session_prev = i;
}

void metrics_op_answer(struct metrics *metrics, uint32_t session, uint64_t op,
                       enum metrics_timed what, unsigned n, unsigned n_ok)
{
    uint32_t *at = op_find(metrics, session, op, what);
    if (at == NULL && what == TIMED_LOAD_HOST) {
        what = TIMED_PREFETCH;
        at = op_find(metrics, session, op, what);
    }
    if (at == NULL)
        return;
    struct timed_op *t = &metrics->ops[*at];
    bool late = t->turn != metrics->turn;
    if (what == TIMED_LOAD_HOST)
        metrics->counters.load_bytes += n_ok * t->chunk_bytes;
    t->n_open -= KVT_MIN(n, t->n_open);
    if (t->n_open > 0)
        return;
    if (late && what == TIMED_LOAD_HOST)
        what = TIMED_LOAD_NVME;
    else if (late && what == TIMED_COMMIT)
        what = TIMED_COMMIT_DURABLE;
    metrics_timed(metrics, what, t->start_ns);
    op_remove(metrics, at);
}

void metrics_op_drop(struct metrics *metrics, uint32_t session, uint64_t op)
{
    static const enum metrics_timed kinds[] = {TIMED_RESERVE, TIMED_COMMIT, TIMED_LOAD_HOST,
                                               TIMED_PREFETCH};
    for (unsigned i = 0; i < KVT_ARRAY_LEN(kinds); i++) {
        uint32_t *at = op_find(metrics, session, op, kinds[i]);
        if (at != NULL)
            op_remove(metrics, at);
    }
}

void metrics_session_drop(struct metrics *metrics, uint32_t session)
{
    while (metrics->sessions[session] != NONE) {
        const struct timed_op *t = &metrics->ops[metrics->sessions[session]];
        op_remove(metrics, op_find(metrics, session, t->op, t->what));
    }
}

/* --- transfers -------------------------------------------------------------------------------- */

void metrics_io_begin(struct metrics *metrics, struct kvt_io *io, uint64_t now_ns)
{
    io->begun_ns = now_ns;
    metrics->counters.io_inflight_bytes[io->type] += io->slot_bytes + KVT_SLOT_HEADER_BYTES;
}

void metrics_io_end(struct metrics *metrics, const struct kvt_io *io, uint64_t now_ns)
{
    metrics->counters.io_inflight_bytes[io->type] -= io->slot_bytes + KVT_SLOT_HEADER_BYTES;
    histogram_add(&metrics->counters.io[io->type],
                  now_ns > io->begun_ns ? now_ns - io->begun_ns : 0);
}
