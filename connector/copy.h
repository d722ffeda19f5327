/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Copies between the caller's pieces and a slot of the arena. A store is hashed on the way: XXH3
 * reads 2 KiB into the first-level cache and streaming stores write them out from there, so the
 * hash costs nothing beside the memory traffic, and the destination is never read (which is what a
 * plain memcpy of this size does first). tests/bench/copy_bench.c has the figures; AVX-512 was
 * slower than AVX2 there and is left out.
 */
#ifndef KVT_CONNECTOR_COPY_H
#define KVT_CONNECTOR_COPY_H

#include <stdatomic.h>
#include <stdbool.h>

#include "layout.h"

/* A copy looks at its stop flag at least this often. */
#define KVT_COPY_BLOCK_BYTES (256u * 1024)

/* When to give up: the flag is not 0, or the clock (CLOCK_MONOTONIC) has passed deadline_ns. */
struct kvt_copy_stop {
    const _Atomic int *flag;
    uint64_t deadline_ns; /* UINT64_MAX: none */
    uint64_t yield_ns;    /* from then on the copy gives way between its blocks */
};

struct kvt_copy_ops {
    const char *name;
    /**
     * Gather n_segments * segment_bytes from src to dst; sums[i] becomes the XXH3-64 (seed 0) of
     * segment i. @return false: stopped half-way.
     */
    bool (*store)(void *dst, const kvtier_layout *src, uint32_t n_segments, uint64_t segment_bytes,
                  uint64_t *sums, const struct kvt_copy_stop *stop);
    /** The same sums of bytes in place; looks at stop between segments. @return false: stopped
     * half-way. */
    bool (*hash)(const void *src, uint32_t n_segments, uint64_t segment_bytes, uint64_t *sums,
                 const struct kvt_copy_stop *stop);
    /** Scatter bytes from src to dst. @return false: stopped half-way. */
    bool (*load)(const kvtier_layout *dst, const void *src, uint64_t bytes,
                 const struct kvt_copy_stop *stop);
};

extern const struct kvt_copy_ops kvt_copy_plain; /* what every processor of the target has */
extern const struct kvt_copy_ops kvt_copy_avx2;  /* x86-64 only */

/** The fastest one for this processor. */
const struct kvt_copy_ops *kvt_copy_best(void);

#endif
