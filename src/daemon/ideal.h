/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How many misses an unlimited cache would not have had: lookups of keys that were stored before
 * and are held no more. Remembering every key would be a cache of its own, so a sample is kept,
 * chosen by the key's hash: a key is in it for ever or never, whoever asks and how often, and the
 * sample thins itself out by halves as keys come ("spatially hashed sampling", fixed size:
 * Waldspurger, Park, Garthwaite, Ahmad, "Efficient MRC Construction with SHARDS", USENIX FAST 2015,
 * section 3).
 *
 * Hits are counted exactly and only misses are estimated, so the estimate is never below the real
 * hits, and equal where nothing is evicted. Between 8192 and 16384 keys are remembered, in 512 KiB:
 * a ratio taken from n independent keys has a standard error of at most 0.5 / sqrt(n), 0.006 here.
 *
 * One thread at a time.
 */
#ifndef KVT_DAEMON_IDEAL_H
#define KVT_DAEMON_IDEAL_H

#include "kvt/namespace.h"

struct ideal;

/** @return NULL: no memory. */
struct ideal *ideal_create(void);
void ideal_destroy(struct ideal *ideal);

/* ns: what tells the namespaces apart, for as long as they are remembered: not their handles. */

/** These keys were offered for storing (or were found at start): an unlimited cache has them now.
 * Once in a long while, when the sample is halved, this takes up to 100 us. */
void ideal_stored(struct ideal *ideal, uint64_t ns, const struct kvt_key *keys, unsigned n);

/** These keys were asked for and not found. */
void ideal_missed(struct ideal *ideal, uint64_t ns, const struct kvt_key *keys, unsigned n);

/** Estimate of the missed keys, since the start, that an unlimited cache would have had. */
uint64_t ideal_avoidable(const struct ideal *ideal);

#endif
