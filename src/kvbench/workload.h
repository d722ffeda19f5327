/* SPDX-License-Identifier: Apache-2.0 */
/* Traces made from a seed, for when no file is at hand: the shapes that engines see most. */
#ifndef KVT_KVBENCH_WORKLOAD_H
#define KVT_KVBENCH_WORKLOAD_H

#include "trace.h"

struct kvt_workload {
    const char *name;
    const char *help;
    enum kvt_status (*make)(struct kvt_trace *trace, size_t n_requests, uint64_t seed,
                            struct kvt_error *err);
};

/** By name; NULL when there is none. */
const struct kvt_workload *kvt_workload_find(const char *name);
/** All of them; ends with a NULL name. */
extern const struct kvt_workload kvt_workloads[];

#endif
