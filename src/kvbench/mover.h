/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A session with memory for a number of objects, laid out as an engine's KV memory is (each layer
 * of all objects in a row), that stores and loads them with several ops in flight.
 */
#ifndef KVT_KVBENCH_MOVER_H
#define KVT_KVBENCH_MOVER_H

#include <stdbool.h>

#include "kvt/status.h"
#include "replay.h"

struct kvt_mover {
    kvt_session *session;
    int ns;
    struct kvt_geometry geometry;
    uint64_t layer_bytes;
    uint32_t n_slots;
    uint8_t *memory;
    uint64_t memory_bytes;
    uint8_t *keys; /* per slot */
    kvtier_layout *layouts;
    int32_t *statuses;
    uint8_t *where;
    uint64_t seed;
};

/** The memory is touched, so that no fault is measured. */
enum kvt_status kvt_mover_open(const char *socket, uint64_t object_bytes, uint32_t n_slots,
                               uint64_t seed, struct kvt_mover **mover_p,
                               struct kvt_error *err) KVT_MUST_CHECK;
void kvt_mover_close(struct kvt_mover *mover); /* NULL is allowed */

/** Slot `slot` stands for object `id` from now on; fill: with its bytes in memory. */
void kvt_mover_assign(struct kvt_mover *mover, uint32_t slot, uint64_t id, bool fill);
/** Address of a layer of a slot. */
void *kvt_mover_layer(const struct kvt_mover *mover, uint32_t slot, uint32_t layer);
/** Wrong bytes in the memory of slots [0, n). */
uint64_t kvt_mover_check(const struct kvt_mover *mover, uint32_t n);

/**
 * Store or load slots [0, n), batch objects an op, depth ops in flight. Each status must be OK.
 *
 * @param ns_p  Time from the first submit to the last completion.
 */
enum kvt_status kvt_mover_run(struct kvt_mover *mover, int type, uint32_t flags, uint32_t n,
                              uint32_t batch, uint32_t depth, uint64_t *ns_p,
                              struct kvt_error *err) KVT_MUST_CHECK;

/** Where an object is: KVT_WHERE_* bits, 0 when nowhere. */
enum kvt_status kvt_mover_where(struct kvt_mover *mover, uint64_t id, uint8_t *where_p,
                                struct kvt_error *err) KVT_MUST_CHECK;

#endif
