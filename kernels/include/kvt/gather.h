/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Gather and scatter between an engine's paged KV and contiguous chunk memory. Where a chunk's
 * bytes are in pages of whatever layout is a plan: a list of pieces, each contiguous on both
 * sides. The kernels and their C twins take the same pieces and do the same; this header is read by
 * both compilers and needs neither CUDA's headers nor its libraries.
 */
#ifndef KVT_GATHER_H
#define KVT_GATHER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct kvt_piece {
    uint64_t page;   /* address in paged memory */
    uint64_t offset; /* in chunk memory */
    uint64_t bytes;
};

/* A kernel gives a piece to a warp, so long ones are cut to keep all of them busy. */
#define KVT_GATHER_CUT_BYTES 16384u
/* Enough thread blocks to outrun any link to the host, few enough to leave the GPU to its engine.
 */
#define KVT_GATHER_BLOCKS  16u
#define KVT_GATHER_THREADS 256u
/* Names of the kernels in their image. Parameters: chunk, pieces, n_pieces, as the twins have. */
#define KVT_GATHER_KERNEL  "kvt_gather"
#define KVT_SCATTER_KERNEL "kvt_scatter"

/** Copy each piece from its page to chunk + offset. Pieces do not overlap on the chunk's side. */
void kvt_gather_c(void *chunk, const struct kvt_piece *pieces, uint32_t n_pieces);
/** Copy each piece from chunk + offset to its page. Pieces do not overlap on the pages' side. */
void kvt_scatter_c(const void *chunk, const struct kvt_piece *pieces, uint32_t n_pieces);

/** The kernels compiled (a fat binary for cuModuleLoadData), or NULL when built without nvcc. */
const void *kvt_gather_image(void);

struct kvt_plan {
    struct kvt_piece *pieces; /* the owner's array of n_max */
    uint32_t n, n_max;
    uint64_t bytes; /* in all pieces */
};

static inline void kvt_plan_reset(struct kvt_plan *plan)
{
    plan->n = 0;
    plan->bytes = 0;
}

/**
 * Add a run, merged with the last piece where it goes on from there on both sides.
 * @return false: no room, nothing was added.
 */
static inline bool kvt_plan_add(struct kvt_plan *plan, uint64_t page, uint64_t offset,
                                uint64_t bytes)
{
    if (plan->n > 0) {
        struct kvt_piece *last = &plan->pieces[plan->n - 1];
        if (last->page + last->bytes == page && last->offset + last->bytes == offset) {
            last->bytes += bytes;
            plan->bytes += bytes;
            return true;
        }
    }
    if (plan->n == plan->n_max)
        return false;
    plan->pieces[plan->n++] = (struct kvt_piece){page, offset, bytes};
    plan->bytes += bytes;
    return true;
}

/** Whether the pieces are, on average, shorter than limit_bytes: too short for a copy engine. */
static inline bool kvt_plan_is_short(const struct kvt_plan *plan, uint64_t limit_bytes)
{
    return plan->bytes < (uint64_t)plan->n * limit_bytes;
}

/** The most pieces that kvt_plan_cut() makes of a plan. */
static inline uint64_t kvt_plan_cut_max(uint32_t n_pieces, uint64_t bytes)
{
    return n_pieces + bytes / KVT_GATHER_CUT_BYTES;
}

/**
 * Write the plan's pieces for a kernel, long ones cut. The room at `to` must hold
 * kvt_plan_cut_max() pieces; it is written in order and never read. @return how many.
 */
uint32_t kvt_plan_cut(const struct kvt_plan *plan, struct kvt_piece *to);

/*
 * Rows of one piece size at constant distances on both sides, which one two-dimensional copy can
 * move: n_rows pieces from plan->pieces[first] on.
 */
struct kvt_rows {
    uint32_t n_rows;
    uint64_t page_pitch, chunk_pitch; /* 0 with one row */
};

/** The longest such rows from `first` on, pitches at most pitch_max. */
struct kvt_rows kvt_plan_rows(const struct kvt_plan *plan, uint32_t first, uint64_t pitch_max);

#endif
