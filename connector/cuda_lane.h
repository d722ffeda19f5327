/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A lane: one thread's stream to or from the GPU, with what it needs to fill it. Copies between an
 * engine's pages and the arena go one of these ways:
 *
 *   pieces long, arena registered   pages <-> arena, by copy engine
 *   pieces short, arena registered  pages <-> stage (kernel) <-> arena (copy engine)
 *   arena not registered yet        as above, with bounce memory for the arena, and a memcpy
 *
 * Stage (on the GPU) and bounce (on the host) are KVT_LANE_STAGE_BYTES each. A lane is used by one
 * thread at a time; several per direction keep the link busy while others wait or are filled.
 */
#ifndef KVT_CONNECTOR_CUDA_LANE_H
#define KVT_CONNECTOR_CUDA_LANE_H

#include "copy.h"
#include "cuda_pin.h"
#include "kvt/gather.h"

#define KVT_LANE_STAGE_BYTES (8u * 1024 * 1024)
#define KVT_LANE_PIECES      4096u /* planned at once */

struct kvt_lane {
    struct kvt_cuda_device *device;
    struct kvt_pin *pin;
    const struct kvt_arena *arena;
    bool is_load; /* to the GPU */
    bool failed;  /* since the last kvt_lane_begin() */
    struct CUstream_st *stream;
    struct CUevent_st *event;
    kvt_cu_ptr stage;        /* 0: none, so no kernels */
    char *bounce;            /* registered */
    struct kvt_piece *table; /* registered: the kernels read it from there */
    uint32_t n_table, n_table_used;
    struct kvt_error error; /* of the first call that failed since begin */
    struct kvt_plan plan;
    struct kvt_piece pieces[KVT_LANE_PIECES];                /* of the plan */
    kvt_cu_ptr dsts[KVT_LANE_PIECES], srcs[KVT_LANE_PIECES]; /* a batch */
    size_t sizes[KVT_LANE_PIECES];
    uint32_t n_batch;
};

/** A thread that calls these has gone through kvt_cuda_thread_init(). */
enum kvt_status kvt_lane_init(struct kvt_lane *lane, struct kvt_cuda_device *device,
                              struct kvt_pin *pin, const struct kvt_arena *arena, bool is_load,
                              struct kvt_error *err) KVT_MUST_CHECK;
void kvt_lane_fini(struct kvt_lane *lane);

/** What follows comes after `after`, an event that was recorded on the caller's stream; or NULL. */
void kvt_lane_begin(struct kvt_lane *lane, struct CUevent_st *after);
/**
 * Queue the copy of one chunk between the caller's pieces and [offset, offset + bytes) of the
 * arena. It may wait for copies before it.
 * @return KVT_OK: it is done when kvt_lane_end() said so. KVT_ERR_CANCELED: stopped half-way.
 *         KVT_ERR_IO, NOMEM: CUDA refused; lane->error says what.
 */
enum kvt_status kvt_lane_copy(struct kvt_lane *lane, const kvtier_layout *layout, uint64_t offset,
                              uint64_t bytes, const struct kvt_copy_stop *stop) KVT_MUST_CHECK;
/**
 * Wait until nothing of the lane touches any memory any more; to be called after every begin.
 * @return KVT_OK: everything queued was copied.
 */
enum kvt_status kvt_lane_end(struct kvt_lane *lane) KVT_MUST_CHECK;

#endif
