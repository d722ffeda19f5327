/* SPDX-License-Identifier: Apache-2.0 */
/* What changed between two readings of the agent's counters. */
#ifndef KVT_KVCTL_RATES_H
#define KVT_KVCTL_RATES_H

#include "api.h"

struct kvctl_sample {
    Kvtier__V1__Stats *stats; /* NULL: none */
};

/** Read the counters over what was there. */
enum kvctl_exit kvctl_sample_take(struct kvctl *k, struct kvctl_sample *sample);
void kvctl_sample_free(struct kvctl_sample *sample);
uint64_t kvctl_sample_value(const struct kvctl_sample *sample, const char *name);

/**
 * Rates per second and gauges of now; before without stats: since the agent's start. An agent that
 * was restarted in between counts from its start.
 */
json_t *kvctl_rates(const struct kvctl_sample *before, const struct kvctl_sample *now);

/** --interval and --count. count 0: without end. */
enum kvctl_exit kvctl_interval(const struct kvctl *k, uint64_t *interval_ns_p, uint64_t *count_p);

#endif
