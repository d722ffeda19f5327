/* SPDX-License-Identifier: Apache-2.0 */
/* A small core for fuzz targets. */
#ifndef KVT_FUZZ_CORE_H
#define KVT_FUZZ_CORE_H

#include "kvt/core.h"
#include "kvt/util.h"

enum { FUZZ_HOST_SLABS = 4, FUZZ_NVME_SLABS = 4, FUZZ_SESSIONS = 4 };

static inline struct kvt_core *fuzz_core_create(const struct kvt_core_actions *actions)
{
    struct kvt_core *core = NULL;
    struct kvt_error err = {.msg = ""};
    const struct kvt_core_config config = {
        .n_chunks_max = 256,
        .n_host_slabs = FUZZ_HOST_SLABS,
        .host_slab_bytes = 64 * KVT_KIB,
        .n_nvme_slabs = FUZZ_NVME_SLABS,
        .nvme_slab_bytes = 128 * KVT_KIB,
        .group_bytes = 32 * KVT_KIB,
        .host_policy = &kvt_policy_lru,
        .nvme_policy = &kvt_policy_lru,
        .admission = KVT_ADMIT_ALL,
        .n_ios_max = 8,
        .read_bytes_max = KVT_MIB,
        .write_bytes_max = KVT_MIB,
        .n_ns_max = 4,
        .n_ns_session_max = 3,
        .n_sessions_max = FUZZ_SESSIONS,
        .n_ops_max = 16,
        .n_ops_session_max = 8,
        .n_leases_max = 16,
        .n_leases_session_max = 8,
        .lease_ttl_ns = 1000000000,
        .lease_ttl_max_ns = 2000000000,
        .scrub_bytes_per_s = 64 * KVT_KIB,
        .seed = 1,
    };
    KVT_ASSERT(kvt_core_create(&config, actions, &core, &err) == KVT_OK);
    return core;
}

/* The books must balance, whatever came in. */
static inline void fuzz_core_expect(const struct kvt_core *core)
{
    char msg[256] = "";
    if (!kvt_core_check(core, msg, sizeof(msg)))
        kvt_assert_fail(msg, __FILE__, __LINE__);
}

#endif
