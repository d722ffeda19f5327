/* SPDX-License-Identifier: Apache-2.0 */
/* The core as a whole: creation, sessions, flush, statistics. */
#include <stdlib.h>
#include <string.h>

#include "core_internal.h"

static enum kvt_status config_check(const struct kvt_core_config *c, struct kvt_error *err)
{
    const struct {
        const char *name;
        uint64_t value, min, max;
    } fields[] = {
        {"n_chunks_max", c->n_chunks_max, 1, UINT32_C(1) << 30},
        {"n_host_slabs", c->n_host_slabs, 1, UINT32_C(1) << (31 - KVT_SLOT_INDEX_BITS)},
        {"host_slab_bytes", c->host_slab_bytes, KVT_PAGE_BYTES, KVT_TIB},
        {"n_nvme_slabs", c->n_nvme_slabs, 0, UINT32_C(1) << (31 - KVT_SLOT_INDEX_BITS)},
        {"nvme_slab_bytes", c->nvme_slab_bytes, c->n_nvme_slabs > 0 ? 2 * KVT_PAGE_BYTES : 0,
         KVT_TIB},
        {"group_bytes", c->group_bytes, 1, KVT_TIB},
        {"n_ios_max", c->n_ios_max, 1, 65536},
        {"n_ns_max", c->n_ns_max, 1, NS_MAX},
        {"n_ns_session_max", c->n_ns_session_max, 1, c->n_ns_max},
        {"n_sessions_max", c->n_sessions_max, 1, 65536},
        {"n_ops_max", c->n_ops_max, 1, UINT32_C(1) << 20},
        {"n_ops_session_max", c->n_ops_session_max, 1, UINT32_C(1) << 20},
        {"n_leases_max", c->n_leases_max, 1, UINT32_C(1) << 24},
        {"n_leases_session_max", c->n_leases_session_max, 1, UINT32_C(1) << 24},
        {"lease_ttl_ns", c->lease_ttl_ns, 1, c->lease_ttl_max_ns},
    };
    for (size_t i = 0; i < KVT_ARRAY_LEN(fields); i++)
        if (fields[i].value < fields[i].min || fields[i].value > fields[i].max)
            return kvt_error_set(err, KVT_ERR_INVAL, "core: %s is %llu; allowed are %llu to %llu",
                                 fields[i].name, (unsigned long long)fields[i].value,
                                 (unsigned long long)fields[i].min,
                                 (unsigned long long)fields[i].max);
    if (c->host_policy == NULL || c->nvme_policy == NULL)
        return kvt_error_set(err, KVT_ERR_INVAL, "core: no eviction policy; known are %s",
                             kvt_policy_names());
    return KVT_OK;
}

static bool pools_init(struct kvt_core *core)
{
    const struct kvt_core_config *c = &core->config;
    const struct kvt_policy_ops *ops[N_TIERS] = {c->host_policy, c->nvme_policy};
    bool host = core_pool_init(&core->pool[HOST], HOST, c->n_host_slabs, c->host_slab_bytes, 0);
    bool nvme = core_pool_init(&core->pool[NVME], NVME, c->n_nvme_slabs, c->nvme_slab_bytes,
                               KVT_SLOT_HEADER_BYTES);
    bool ok = host && nvme;
    for (enum tier tier = HOST; ok && tier < N_TIERS; tier++) {
        const struct kvt_policy_config policy = {.n_chunks_max = c->n_chunks_max,
                                                 .seed = c->seed + tier};
        core->pool[tier].policy = ops[tier]->create(&policy);
        ok = core->pool[tier].policy != NULL;
    }
    for (uint32_t s = 0; ok && s < c->n_nvme_slabs; s++)
        core_pool_add(&core->pool[NVME], c->n_nvme_slabs - 1 - s, 0); /* lowest is taken first */
    return ok;
}

enum kvt_status kvt_core_create(const struct kvt_core_config *config,
                                const struct kvt_core_actions *actions, struct kvt_core **core_p,
                                struct kvt_error *err)
{
    enum kvt_status status = config_check(config, err);
    if (status != KVT_OK)
        return status;
    struct kvt_core *core = calloc(1, sizeof(*core));
    if (core == NULL)
        return kvt_error_set(err, KVT_ERR_NOMEM, "core: out of memory");
    core->config = *config;
    core->actions = *actions;
    core->sessions = calloc(config->n_sessions_max, sizeof(*core->sessions));
    /* Each of these leaves what it made where destroy finds it, also when it fails. */
    bool index = core_index_init(core), pools = pools_init(core), io = core_io_init(core);
    bool ops = core_ops_init(core), leases = core_leases_init(core);
    bool pins = core_pins_init(core), jobs = core_jobs_init(core), spaces = core_ns_init(core);
    if (!index || !pools || !io || !ops || !leases || !pins || !jobs || !spaces ||
        core->sessions == NULL) {
        kvt_core_destroy(core);
        return kvt_error_set(err, KVT_ERR_NOMEM,
                             "core: out of memory for %u chunks; lower index.chunks_max",
                             config->n_chunks_max);
    }
    *core_p = core;
    return KVT_OK;
}

void kvt_core_destroy(struct kvt_core *core)
{
    core_jobs_fini(core);
    core_pins_fini(core);
    core_leases_fini(core);
    core_ops_fini(core);
    core_io_fini(core);
    for (enum tier tier = HOST; tier < N_TIERS; tier++) {
        if (core->pool[tier].policy != NULL)
            core->pool[tier].policy->ops->destroy(core->pool[tier].policy);
        core_pool_fini(&core->pool[tier]);
    }
    core_index_fini(core);
    core_ns_fini(core);
    free(core->sessions);
    free(core);
}

void kvt_core_host_slab(struct kvt_core *core, uint32_t slab, uint64_t arena_offset)
{
    core_pool_add(&core->pool[HOST], slab, arena_offset);
}

/* --- sessions ----------------------------------------------------------------------------------
 */

enum kvt_status kvt_core_session_open(struct kvt_core *core, uint32_t *session_p)
{
    for (uint32_t s = 0; s < core->config.n_sessions_max; s++) {
        if (core->sessions[s].open)
            continue;
        core->sessions[s] = (struct session){.open = true, .ops = NONE, .leases = NONE};
        STAT(core, SESSIONS)++;
        *session_p = s;
        return KVT_OK;
    }
    return KVT_ERR_AGAIN;
}

void kvt_core_session_close(struct kvt_core *core, uint32_t s, uint64_t now_ns)
{
    (void)now_ns;
    struct session *session = &core->sessions[s];
    KVT_ASSERT(s < core->config.n_sessions_max && session->open);
    while (session->ops != NONE)
        core_op_end(core, session->ops);
    while (session->leases != NONE)
        core_lease_end(core, session->leases);
    core_ns_session_end(core, s);
    KVT_ASSERT(session->reserved_bytes == 0);
    session->open = false;
    STAT(core, SESSIONS)--;
}

/* --- time --------------------------------------------------------------------------------------
 */

uint64_t kvt_core_next_deadline(const struct kvt_core *core)
{
    uint64_t next = KVT_MIN(heap_first(&core->op_heap), heap_first(&core->lease_heap));
    if (core->config.scrub_bytes_per_s > 0 && !core->scrub_busy && core->pool[NVME].used_bytes > 0)
        next = KVT_MIN(next, core->scrub_next_ns);
    next = KVT_MIN(next, heap_first(&core->pins.heap));
    next = KVT_MIN(next, KVT_MIN(core->reserves.resume_ns, core->loads.resume_ns));
    return KVT_MIN(next, core->jobs.next_ns);
}

void kvt_core_flush(struct kvt_core *core, uint64_t now_ns)
{
    core_leases_expire(core, now_ns);
    core_pins_expire(core, now_ns);
    core_ops_pump(core, now_ns); /* before what did not get room in time is refused */
    core_ops_expire(core, now_ns);
    core_jobs_step(core, now_ns); /* before the writes: those that it asks for start now */
    core_start_writes(core, now_ns);
    core_scrub(core, now_ns);
    core_ops_pump(core, now_ns); /* a write that was skipped may have made room */
    core_ops_emit(core, now_ns);
}

void kvt_core_tune(struct kvt_core *core, const struct kvt_core_tuning *tuning)
{
    core->config.admission = tuning->admission;
    core->config.read_bytes_max = tuning->read_bytes_max;
    core->config.write_bytes_max = tuning->write_bytes_max;
    core->config.lease_ttl_ns = tuning->lease_ttl_ns;
    core->config.lease_ttl_max_ns = tuning->lease_ttl_max_ns;
    core->config.scrub_bytes_per_s = tuning->scrub_bytes_per_s;
}

void kvt_core_drain(struct kvt_core *core)
{
    core->draining = true;
    core_reserves_refuse(core);
    core_jobs_cancel(core);
}

bool kvt_core_quiescent(const struct kvt_core *core)
{
    /* Clients that go on loading do not put off the end. */
    bool loads = core->n_ios_busy > core->n_writes_busy || core->loads.n > 0;
    return core->n_writes_busy == 0 && (!loads || core->draining) && core->n_meta_busy == 0 &&
           core->n_write_queue == 0 && core->ready_ops == NONE && core->reserves.n == 0 &&
           core->orphans == NONE && core->jobs.n_open == 0 && core->jobs.n_tell == 0;
}

void kvt_core_stats(const struct kvt_core *core, uint64_t stats[KVT_STAT_N])
{
    const struct slab_pool *host = &core->pool[HOST], *nvme = &core->pool[NVME];
    memcpy(stats, core->stats, sizeof(core->stats));
    stats[KVT_STAT_CHUNKS] = core->n_chunks;
    stats[KVT_STAT_INDEX_BYTES] =
        core->n_chunks_used * sizeof(struct chunk) + (core->table_mask + 1) * sizeof(*core->table) +
        host->table_bytes + nvme->table_bytes + host->policy->ops->memory_bytes(host->policy) +
        nvme->policy->ops->memory_bytes(nvme->policy);
    stats[KVT_STAT_HOST_CAPACITY_BYTES] = (uint64_t)host->n_present * host->slab_bytes;
    stats[KVT_STAT_HOST_USED_BYTES] = host->used_bytes;
    stats[KVT_STAT_NVME_CAPACITY_BYTES] = (uint64_t)nvme->n_present * nvme->slab_bytes;
    stats[KVT_STAT_NVME_USED_BYTES] = nvme->used_bytes;
    stats[KVT_STAT_HOST_PINNED_BYTES] = host->pinned_bytes;
    stats[KVT_STAT_NVME_PINNED_BYTES] = nvme->pinned_bytes;
    stats[KVT_STAT_READING_BYTES] = core->read_bytes;
    stats[KVT_STAT_WRITING_BYTES] = core->write_bytes;
    stats[KVT_STAT_WRITE_QUEUE_CHUNKS] = core->n_write_queue;
    stats[KVT_STAT_ADMIN_PINS] = core->pins.n_pins;
    stats[KVT_STAT_ADMIN_PINNED_CHUNKS] = core->pins.n_refs;
    stats[KVT_STAT_JOBS] = core->jobs.n_open;
}
