/* SPDX-License-Identifier: Apache-2.0 */
/* The agent's counters by name, so that a newer agent's order does not matter. */
#ifndef KVT_KVBENCH_COUNTERS_H
#define KVT_KVBENCH_COUNTERS_H

#include <stdbool.h>

#include "kvtier.h"

#define KVT_COUNTERS_MAX 256

struct kvt_counters {
    uint64_t values[KVT_COUNTERS_MAX];
    uint32_t n;
};

/** False: the agent did not answer. */
bool kvt_counters_read(kvt_session *session, struct kvt_counters *counters);
/** 0 when the agent has none of that name. */
uint64_t kvt_counters_get(const struct kvt_counters *counters, const char *name);
/** Read them when nothing waits to be written to NVMe any more, or after 10 s. False: no answer. */
bool kvt_counters_read_settled(kvt_session *session, struct kvt_counters *counters);
/** Wait until the agent's arena has been backed up to at least bytes. False: not within 60 s. */
bool kvt_counters_wait_arena(kvt_session *session, uint64_t bytes);

#endif
