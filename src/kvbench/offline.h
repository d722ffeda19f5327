/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Yardsticks for a cache: how many blocks of a trace *could* be hit. A block counts as hit when it
 * and all blocks before it in its prompt are held (a prefix hit); ratios are over all blocks of
 * all prompts, repeats counted. One tier, blocks of one size, capacity in blocks.
 */
#ifndef KVT_KVBENCH_OFFLINE_H
#define KVT_KVBENCH_OFFLINE_H

#include "trace.h"

/** With unlimited memory. */
uint64_t kvt_offline_ideal_hits(const struct kvt_trace *trace);

/**
 * Least recently used block first; of one prompt the tail is touched first, so that it goes first.
 * @return KVT_OK, KVT_ERR_NOMEM, KVT_ERR_INVAL (capacity 0).
 */
enum kvt_status kvt_offline_lru_hits(const struct kvt_trace *trace, uint64_t capacity_blocks,
                                     uint64_t *n_hits_p) KVT_MUST_CHECK;

/**
 * Belady's rule, knowing the future: the block that is needed again last goes first, of several
 * the one deepest in its prompt. @return as kvt_offline_lru_hits().
 */
enum kvt_status kvt_offline_optimum_hits(const struct kvt_trace *trace, uint64_t capacity_blocks,
                                         uint64_t *n_hits_p) KVT_MUST_CHECK;

/** n_hits as a share of all blocks; 0 for a trace without blocks. */
double kvt_offline_ratio(const struct kvt_trace *trace, uint64_t n_hits);

#endif
