/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Durable stores, and loads of what is on NVMe alone, beside the same disk under io_uring with
 * O_DIRECT, the same object size and as many in flight.
 */
#include <stdio.h>

#include "counters.h"
#include "disk.h"
#include "kvt/util.h"
#include "micro.h"
#include "mover.h"

#define ROUND_BYTES   (UINT64_C(1) << 30) /* at most */
#define ROUND_SHARE   4                   /* or the store by this, if that is less */
#define ROUND_OBJECTS 12 /* at least: filling and emptying the pipeline is not the measurement */
#define FLIGHT_BYTES  (UINT64_C(64) << 20) /* the agent's own default of bytes in flight */
#define OP_BYTES      (UINT64_C(4) << 20)  /* small objects come many to an op, as a prompt does */
#define OPS_MIN       4
#define DEPTH_MIN     2
#define DEPTH_MAX     16
#define ROUNDS_MIN    12
#define N_WAYS        8 /* four depths, pages of 2 MiB and of 4 KiB */
#define TRIALS        2

struct nvme_case {
    struct kvt_micro *micro;
    struct kvt_mover *mover;
    struct kvt_disk *disk;
    uint64_t object_bytes;
    uint32_t n;            /* objects of a round */
    uint32_t depth;        /* of the disk, at least */
    uint32_t batch, n_ops; /* objects of an op, ops in flight */
    uint64_t next_id;
    uint64_t n_ids; /* stored for reading */
    char reference[128];
};

/* Which way the disk is fastest: that is the reference. */
static enum kvt_status choose_reference(struct nvme_case *c, bool write, struct kvt_error *err)
{
    uint64_t best_ns = UINT64_MAX;
    struct kvt_disk_way best = {0};
    for (unsigned i = 0; i < N_WAYS; i++) {
        struct kvt_disk_way way = {.object_bytes = c->object_bytes,
                                   .n = c->n,
                                   .depth = c->depth << i / 2,
                                   .huge = i % 2 == 0};
        if (i >= 4 && 4 * way.depth > way.n)
            break;
        enum kvt_status status = kvt_disk_prepare(c->disk, &way, err);
        if (status != KVT_OK)
            return status;
        for (unsigned trial = 0; trial < TRIALS; trial++) {
            uint64_t ns;
            status = kvt_disk_run(c->disk, write, NULL, &ns, err);
            if (status != KVT_OK)
                return status;
            if (ns < best_ns) {
                best_ns = ns;
                best = way;
            }
        }
    }
    enum kvt_status status = kvt_disk_prepare(c->disk, &best, err);
    snprintf(c->reference, sizeof(c->reference),
             "io_uring O_DIRECT, %s buffers in pages of %s, %u in flight",
             kvt_disk_is_registered(c->disk) ? "registered" : "unregistered",
             best.huge ? "2 MiB" : "4 KiB", best.depth);
    return status;
}

/* The disk alone and beside a thread that copies, for the round to come; the one that comes first
 * changes. */
static enum kvt_status reference_round(struct nvme_case *c, bool write, struct kvt_rounds *rounds,
                                       struct kvt_error *err)
{
    enum kvt_status status = KVT_OK;
    for (unsigned i = 0; i < 2 && status == KVT_OK; i++) {
        uint64_t ns;
        bool copying = (rounds->n + i) % 2 == 1;
        status = kvt_disk_run(c->disk, write, copying ? kvt_mover_layer(c->mover, 0, 0) : NULL, &ns,
                              err);
        (copying ? rounds->copying_seconds : rounds->reference_seconds)[rounds->n] =
            (float)ns / 1e9f;
    }
    return status;
}

static enum kvt_status write_round(struct nvme_case *c, uint64_t *ns_p, struct kvt_error *err)
{
    for (uint32_t slot = 0; slot < c->n; slot++)
        kvt_mover_assign(c->mover, slot, c->next_id++, true);
    return kvt_mover_run(c->mover, KVTIER_STORE, KVTIER_DURABLE, c->n, c->batch, c->n_ops, ns_p,
                         err);
}

static enum kvt_status measure_write(struct nvme_case *c, struct kvt_error *err)
{
    struct kvt_rounds rounds = {.n = 0};
    enum kvt_status status = choose_reference(c, true, err);
    if (status != KVT_OK)
        return status;
    /* The store must have been full once: from then on every write goes to used blocks. */
    uint64_t n_fill = c->micro->nvme_bytes / (c->n * c->object_bytes) + 1;
    uint64_t end_ns = 0;
    for (uint64_t r = 0; rounds.n < KVT_ROUNDS_MAX; r++) {
        uint64_t ns;
        if (r == n_fill)
            end_ns = kvt_now_ns() + (uint64_t)(c->micro->seconds * 1e9);
        if (r > n_fill && rounds.n >= ROUNDS_MIN && kvt_now_ns() > end_ns)
            break;
        status = write_round(c, &ns, err);
        if (status != KVT_OK)
            return status;
        if (r < n_fill)
            continue;
        status = reference_round(c, true, &rounds, err);
        if (status != KVT_OK)
            return status;
        rounds.seconds[rounds.n++] = (float)ns / 1e9f;
    }
    kvt_rounds_report(&rounds, c->micro, "nvme_write", c->object_bytes, c->n * c->object_bytes,
                      c->reference);
    return KVT_OK;
}

/* The object that is read as the i-th of all rounds: spread over the store as the reference is. */
static uint64_t spread_id(const struct nvme_case *c, uint64_t i)
{
    uint64_t n_row = kvt_spread_row(c->object_bytes), n_rows = (c->n + n_row - 1) / n_row;
    uint64_t row = i / n_row;
    return kvt_spread(row % n_rows, n_rows, row / n_rows, c->n_ids / n_row) * n_row + i % n_row;
}

/* The next objects that are on NVMe and not in memory. *n_p less than a round: there are none. */
static enum kvt_status choose_cold(struct nvme_case *c, uint64_t first_id, uint64_t *next_p,
                                   uint32_t *n_p, struct kvt_error *err)
{
    uint32_t n = 0;
    for (uint64_t seen = 0; n < c->n && seen < c->n_ids; seen++) {
        uint64_t id = first_id + spread_id(c, (*next_p)++);
        uint8_t where = 0;
        enum kvt_status status = kvt_mover_where(c->mover, id, &where, err);
        if (status != KVT_OK)
            return status;
        if (where == 2) /* KVT_WHERE_NVME alone */
            kvt_mover_assign(c->mover, n++, id, false);
    }
    *n_p = n;
    return KVT_OK;
}

static enum kvt_status measure_read(struct nvme_case *c, struct kvt_error *err)
{
    struct kvt_rounds rounds = {.n = 0};
    enum kvt_status status = choose_reference(c, false, err);
    uint64_t first_id = c->next_id, next = 0, ns;
    /* Several times the arena, and less than the store holds. */
    uint64_t n_sets = c->micro->nvme_bytes / 8 * 6 / (c->n * c->object_bytes);
    for (uint64_t set = 0; status == KVT_OK && set < n_sets; set++)
        status = write_round(c, &ns, err);
    c->n_ids = c->next_id - first_id;
    if (status == KVT_OK && n_sets == 0)
        status = kvt_error_set(err, KVT_ERR_NOTSUP, "the store file is too small");
    if (status != KVT_OK)
        return status;
    uint64_t end_ns = kvt_now_ns() + (uint64_t)(c->micro->seconds * 2e9);
    for (unsigned r = 0; rounds.n < KVT_ROUNDS_MAX; r++) {
        if (kvt_now_ns() > end_ns && (rounds.n >= ROUNDS_MIN || r > 8 * ROUNDS_MIN))
            break;
        uint32_t n;
        struct kvt_counters before, after;
        status = choose_cold(c, first_id, &next, &n, err);
        if (status != KVT_OK)
            return status;
        if (n < c->n)
            continue;
        status = reference_round(c, false, &rounds, err);
        if (status != KVT_OK)
            return status;
        bool counted = kvt_counters_read(c->mover->session, &before);
        status = kvt_mover_run(c->mover, KVTIER_LOAD, 0, c->n, c->batch, c->n_ops, &ns, err);
        if (status != KVT_OK)
            return status;
        counted = counted && kvt_counters_read(c->mover->session, &after);
        c->micro->bytes_wrong += kvt_mover_check(c->mover, c->n);
        /* Read from disk, by the agent's own count; anything else is not this measurement. */
        if (!counted || kvt_counters_get(&after, "load_nvme_chunks") -
                                kvt_counters_get(&before, "load_nvme_chunks") !=
                            c->n)
            continue;
        rounds.seconds[rounds.n++] = (float)ns / 1e9f;
    }
    if (rounds.n < ROUNDS_MIN)
        return kvt_error_set(err, KVT_ERR_NOTSUP,
                             "only %u rounds came from disk alone: use a larger --nvme-bytes or a "
                             "smaller --arena-bytes",
                             rounds.n);
    kvt_rounds_report(&rounds, c->micro, "nvme_read", c->object_bytes, c->n * c->object_bytes,
                      c->reference);
    return KVT_OK;
}

enum kvt_status kvt_micro_nvme(struct kvt_micro *micro, bool write, bool read,
                               uint64_t object_bytes, struct kvt_error *err)
{
    struct nvme_case c = {.micro = micro, .object_bytes = object_bytes};
    if (micro->nvme_bytes < object_bytes)
        return kvt_error_set(err, KVT_ERR_NOTSUP, "the store file is too small");
    uint64_t round_bytes = KVT_MIN(ROUND_BYTES, micro->nvme_bytes / ROUND_SHARE);
    c.n = (uint32_t)KVT_MAX(round_bytes / object_bytes, (uint64_t)ROUND_OBJECTS);
    c.depth = (uint32_t)KVT_MIN(KVT_MAX(FLIGHT_BYTES / object_bytes, (uint64_t)DEPTH_MIN),
                                (uint64_t)DEPTH_MAX);
    c.batch = (uint32_t)KVT_MAX(OP_BYTES / object_bytes, UINT64_C(1));
    /* More than the agent lets onto the disk at once: as with a disk's own queue, the next one is
     * there when a transfer ends, and nobody has to be woken for it first. */
    c.n_ops = (uint32_t)KVT_MAX(2 * FLIGHT_BYTES / (c.batch * object_bytes), (uint64_t)OPS_MIN);
    enum kvt_status status =
        kvt_mover_open(micro->socket, object_bytes, c.n, micro->seed, &c.mover, err);
    if (status != KVT_OK)
        return status;
    status = kvt_disk_open(micro->agent != NULL ? kvt_agent_store(micro->agent) : NULL, micro->dir,
                           micro->nvme_bytes, &c.disk, err);
    /* Reads first, from a store that is not full yet: a full one may evict what is to be read. */
    if (status == KVT_OK && read)
        status = measure_read(&c, err);
    if (status == KVT_OK && write)
        status = measure_write(&c, err);
    kvt_disk_close(c.disk);
    kvt_mover_close(c.mover);
    return status;
}
