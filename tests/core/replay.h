/* SPDX-License-Identifier: Apache-2.0 */
/* Replay of a trace through an eviction policy, in the order of calls that the core uses. */
#ifndef KVT_TESTS_CORE_REPLAY_H
#define KVT_TESTS_CORE_REPLAY_H

#include "kvt/policy.h"
#include "trace.h"

/** Prefix hits with a tier of capacity blocks. UINT64_MAX: no memory, or no victim was found. */
uint64_t replay_hits(const struct kvt_trace *trace, const struct kvt_policy_ops *ops,
                     uint32_t capacity, uint64_t seed);

#endif
