/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stores into and loads from host memory, beside a memcpy of the same pieces between the same
 * engine memory and shared memory of the same kind and size as the arena.
 */
#include <string.h>

#include "kvt/util.h"
#include "micro.h"
#include "mover.h"
#include "scratch.h"

#define ROUND_BYTES (UINT64_C(256) << 20) /* so that the first wake-up is not the measurement */
#define ROUND_SHARE 4                     /* or the arena by this, if that is less */
#define OP_BYTES    (UINT64_C(8) << 20)
#define DEPTH       4
#define WARM_ROUNDS 2
#define ROUNDS_MIN  5

struct host_case {
    struct kvt_mover *mover;
    struct kvt_scratch *scratch; /* stands for the arena in the reference */
    uint64_t object_bytes;
    uint32_t n; /* objects of a round */
    uint32_t batch;
    uint64_t n_places; /* objects that scratch has room for */
    uint64_t next_place;
};

/* What the library does, without the library: the same pieces in the same order. */
static uint64_t reference_round(struct host_case *c, bool store)
{
    uint64_t start_ns = kvt_now_ns();
    for (uint32_t slot = 0; slot < c->n; slot++) {
        uint8_t *place = c->scratch->memory + c->next_place * c->object_bytes;
        c->next_place = (c->next_place + 1) % c->n_places;
        for (uint32_t layer = 0; layer < c->mover->geometry.n_layers; layer++) {
            void *engine = kvt_mover_layer(c->mover, slot, layer);
            uint8_t *shared = place + layer * c->mover->layer_bytes;
            if (store)
                memcpy(shared, engine, c->mover->layer_bytes);
            else
                memcpy(engine, shared, c->mover->layer_bytes);
        }
    }
    return kvt_now_ns() - start_ns;
}

static enum kvt_status measure_store(struct kvt_micro *micro, struct host_case *c,
                                     struct kvt_error *err)
{
    struct kvt_rounds rounds = {.n = 0};
    uint64_t end_ns = kvt_now_ns() + (uint64_t)(micro->seconds * 1e9);
    uint64_t id = UINT64_C(1) << 40;
    /* The arena must have been full once: a store then pays for its eviction, as it always will. */
    uint64_t n_fill = micro->arena_bytes / (c->n * c->object_bytes) + 1;
    for (uint64_t r = 0; rounds.n < ROUNDS_MIN || kvt_now_ns() < end_ns; r++) {
        uint64_t ns;
        if (rounds.n == KVT_ROUNDS_MAX)
            break;
        for (uint32_t slot = 0; slot < c->n; slot++)
            kvt_mover_assign(c->mover, slot, id++, false);
        enum kvt_status status =
            kvt_mover_run(c->mover, KVTIER_STORE, 0, c->n, c->batch, DEPTH, &ns, err);
        if (status != KVT_OK)
            return status;
        uint64_t reference_ns = reference_round(c, true);
        if (r < n_fill)
            end_ns = kvt_now_ns() + (uint64_t)(micro->seconds * 1e9);
        if (r < n_fill + WARM_ROUNDS)
            continue;
        rounds.seconds[rounds.n] = (float)ns / 1e9f;
        rounds.reference_seconds[rounds.n++] = (float)reference_ns / 1e9f;
    }
    kvt_rounds_report(&rounds, micro, "host_store", c->object_bytes, c->n * c->object_bytes,
                      "memcpy of the same pieces, one thread");
    return KVT_OK;
}

static enum kvt_status measure_load(struct kvt_micro *micro, struct host_case *c,
                                    struct kvt_error *err)
{
    struct kvt_rounds rounds = {.n = 0};
    /* A quarter stays free: eviction must not take what is to be loaded. */
    uint64_t n_sets = KVT_MAX(micro->arena_bytes / 4 * 3 / (c->n * c->object_bytes), UINT64_C(1));
    uint64_t ns;
    enum kvt_status status;
    for (uint64_t set = 0; set < n_sets; set++) {
        for (uint32_t slot = 0; slot < c->n; slot++)
            kvt_mover_assign(c->mover, slot, set * c->n + slot, true);
        status = kvt_mover_run(c->mover, KVTIER_STORE, 0, c->n, c->batch, DEPTH, &ns, err);
        if (status != KVT_OK)
            return status;
    }
    uint64_t end_ns = kvt_now_ns() + (uint64_t)(micro->seconds * 1e9);
    for (uint64_t r = 0; rounds.n < KVT_ROUNDS_MAX; r++) {
        if (rounds.n >= ROUNDS_MIN && kvt_now_ns() > end_ns)
            break;
        for (uint32_t slot = 0; slot < c->n; slot++)
            kvt_mover_assign(c->mover, slot, r % n_sets * c->n + slot, false);
        uint64_t reference_ns = reference_round(c, false);
        status = kvt_mover_run(c->mover, KVTIER_LOAD, 0, c->n, c->batch, DEPTH, &ns, err);
        if (status != KVT_OK)
            return status;
        micro->bytes_wrong += kvt_mover_check(c->mover, c->n);
        if (r < WARM_ROUNDS)
            continue;
        rounds.seconds[rounds.n] = (float)ns / 1e9f;
        rounds.reference_seconds[rounds.n++] = (float)reference_ns / 1e9f;
    }
    kvt_rounds_report(&rounds, micro, "host_load", c->object_bytes, c->n * c->object_bytes,
                      "memcpy of the same pieces, one thread");
    return KVT_OK;
}

enum kvt_status kvt_micro_host(struct kvt_micro *micro, bool store, bool load,
                               uint64_t object_bytes, struct kvt_error *err)
{
    struct host_case c = {.object_bytes = object_bytes};
    uint64_t round_bytes = KVT_MIN(ROUND_BYTES, micro->arena_bytes / ROUND_SHARE);
    c.n = (uint32_t)KVT_MAX(round_bytes / object_bytes, UINT64_C(4));
    c.batch = (uint32_t)KVT_MAX(OP_BYTES / object_bytes, UINT64_C(1));
    enum kvt_status status =
        kvt_mover_open(micro->socket, object_bytes, c.n, micro->seed, &c.mover, err);
    if (status != KVT_OK)
        return status;
    status = kvt_scratch_open(micro->arena_bytes, true, &c.scratch, err);
    if (status != KVT_OK)
        goto out_mover;
    c.n_places = c.scratch->bytes / object_bytes;
    if (c.n_places == 0) {
        status = kvt_error_set(err, KVT_ERR_NOTSUP, "object larger than the arena");
        goto out_scratch;
    }
    /* Loads first: their set has the arena to itself. */
    if (load)
        status = measure_load(micro, &c, err);
    if (status == KVT_OK && store)
        status = measure_store(micro, &c, err);
out_scratch:
    kvt_scratch_close(c.scratch);
out_mover:
    kvt_mover_close(c.mover);
    return status;
}
