/* SPDX-License-Identifier: Apache-2.0 */
/* One node: the core with its fake edges, from birth to a kill and to the next life. */
#include <stdlib.h>
#include <string.h>

#include "sim.h"

static uint64_t slots_bytes(const struct sim *sim, uint64_t extra, uint64_t slab_bytes)
{
    uint64_t n_slabs = 0;
    for (unsigned i = 0; i < sim->n_ns; i++) {
        uint64_t per_slab = slab_bytes / (sim->ns[i].slot_bytes + extra);
        n_slabs += (sim->n_keys + per_slab - 1) / per_slab;
    }
    return n_slabs;
}

static void draw_config(struct sim *sim)
{
    static const struct kvt_policy_ops *const policies[] = {&kvt_policy_lru, &kvt_policy_s3fifo,
                                                            &kvt_policy_lhd};
    struct sim_rng *rng = &sim->rng;
    struct kvt_core_config *c = &sim->config;
    c->host_slab_bytes = KVT_PAGE_BYTES * sim_range(rng, 3, 24);
    c->nvme_slab_bytes = KVT_PAGE_BYTES * sim_range(rng, 4, 24);
    c->group_bytes = KVT_PAGE_BYTES * sim_range(rng, 1, 24);
    c->n_host_slabs = (uint32_t)sim_range(rng, 2, 12);
    c->n_nvme_slabs = sim_chance(rng, 100) ? 0 : (uint32_t)sim_range(rng, 1, 24);
    c->n_chunks_max = (uint32_t)sim_range(rng, 8, 1000);
    sim->roomy = sim_chance(rng, 250);
    if (sim->roomy) {
        c->n_host_slabs = (uint32_t)slots_bytes(sim, 0, c->host_slab_bytes) * 2 + sim->n_ns;
        if (c->n_nvme_slabs > 0)
            c->n_nvme_slabs =
                (uint32_t)slots_bytes(sim, KVT_SLOT_HEADER_BYTES, c->nvme_slab_bytes) + sim->n_ns;
        c->n_chunks_max = sim->n_keys * sim->n_ns + 64;
    }
    c->host_policy = policies[sim_below(rng, 3)];
    c->nvme_policy = policies[sim_below(rng, 3)];
    c->admission = (enum kvt_admission)sim_below(rng, 3);
    c->n_ios_max = (uint32_t)sim_range(rng, 1, 16);
    c->read_bytes_max = sim_range(rng, 1, 128 * KVT_KIB);
    c->write_bytes_max = sim_range(rng, 1, 128 * KVT_KIB);
    /* Often fewer than there are: then who is not in use has to make way. */
    c->n_ns_max = sim_chance(rng, 500) ? SIM_NS_MAX : 1 + sim_below(rng, sim->n_ns);
    c->n_ns_session_max = sim_chance(rng, 800) ? c->n_ns_max : 1 + sim_below(rng, c->n_ns_max);
    c->n_sessions_max = (uint32_t)sim_range(rng, 1, sim->n_clients + 1);
    c->n_ops_max = (uint32_t)sim_range(rng, 1, SIM_OPS_MAX * 3);
    c->n_ops_session_max = (uint32_t)sim_range(rng, 1, SIM_OPS_MAX);
    c->n_leases_max = (uint32_t)sim_range(rng, 1, SIM_LEASES_MAX * 3);
    c->n_leases_session_max = (uint32_t)sim_range(rng, 1, SIM_LEASES_MAX);
    c->lease_ttl_ns = SIM_MS * sim_range(rng, 1, 100);
    c->lease_ttl_max_ns = c->lease_ttl_ns * sim_range(rng, 1, 8);
    c->scrub_bytes_per_s = sim_chance(rng, 300) ? sim_range(rng, 100000, 100000000) : 0;
    c->seed = sim_u64(rng);
}

void sim_node_init(struct sim *sim)
{
    draw_config(sim);
    KVT_ASSERT(sim->config.n_host_slabs > 0);
    sim->arena_bytes = sim->config.n_host_slabs * sim->config.host_slab_bytes;
    sim->arena_base = KVT_PAGE_BYTES * sim_below(&sim->rng, 1000);
    sim->arena = aligned_alloc(KVT_PAGE_BYTES, sim->arena_bytes);
    sim->writers = calloc(sim->arena_bytes / KVT_PAGE_BYTES, sizeof(*sim->writers));
    sim->slab_order = calloc(sim->config.n_host_slabs, sizeof(*sim->slab_order));
    KVT_ASSERT(sim->arena != NULL && sim->writers != NULL && sim->slab_order != NULL);
    sim_disk_init(sim);
    sim_meta_init(sim);
    sim_node_start(sim);
}

void sim_node_fini(struct sim *sim)
{
    if (sim->core != NULL)
        kvt_core_destroy(sim->core);
    free(sim->arena);
    free(sim->writers);
    free(sim->slab_order);
    sim_disk_fini(sim);
    sim_meta_fini(sim);
}

static void submit(void *arg, struct kvt_io *io)
{
    struct sim *sim = arg;
    SIM_CHECK(sim, sim->in_flush, "a transfer is started outside of a flush");
    sim_disk_submit(sim, io);
}

static void check_handles(struct sim *sim)
{
    if (sim->meta_damaged || (sim->faults & SIM_BIT(META_ERR)) != 0)
        return;
    for (unsigned i = 0; i < sim->meta.n_ns; i++) {
        uint8_t id[KVT_NS_ID_BYTES];
        kvt_ns_id(&sim->meta.ns[i].desc, id);
        int ns = sim_model_find_ns_id(sim, id);
        SIM_CHECK(sim, ns >= 0 && sim_model_handle(sim, (unsigned)ns) == sim->meta.ns[i].number,
                  "namespace %d was %u before the restart", ns, sim->meta.ns[i].number);
    }
}

void sim_node_start(struct sim *sim)
{
    struct kvt_core_actions actions = {.io = submit};
    struct kvt_error err = {.msg = ""};
    sim_meta_actions(sim, &actions);
    sim_answer_actions(sim, &actions);
    enum kvt_status status = kvt_core_create(&sim->config, &actions, &sim->core, &err);
    SIM_CHECK(sim, status == KVT_OK, "create: %s", err.msg);
    sim->n_lives++;
    sim->unsound = false;
    sim->drained = false;
    sim->n_fresh = 0;
    sim->n_losses = sim->n_deletes = 0;
    /* What was in memory is gone; whatever is there now must not matter. */
    memset(sim->arena, 0xa5, sim->arena_bytes);
    memset(sim->writers, 0, sim->arena_bytes / KVT_PAGE_BYTES * sizeof(*sim->writers));
    sim_meta_restore(sim);
    check_handles(sim);
    sim->n_grown = 0;
    for (unsigned i = 0; i < sim->config.n_host_slabs; i++)
        sim->slab_order[i] = i;
    for (unsigned i = sim->config.n_host_slabs; i > 1; i--) {
        unsigned j = sim_below(&sim->rng, i);
        uint32_t slab = sim->slab_order[i - 1];
        sim->slab_order[i - 1] = sim->slab_order[j];
        sim->slab_order[j] = slab;
    }
    unsigned n =
        sim->roomy ? sim->config.n_host_slabs : sim_below(&sim->rng, sim->config.n_host_slabs + 1);
    while (n-- > 0)
        sim_node_grow(sim);
}

void sim_node_grow(struct sim *sim)
{
    if (sim->n_grown == sim->config.n_host_slabs)
        return;
    uint32_t slab = sim->slab_order[sim->n_grown++];
    kvt_core_host_slab(sim->core, slab, sim->arena_base + slab * sim->config.host_slab_bytes);
}

void *sim_node_addr(struct sim *sim, uint64_t offset, uint64_t bytes)
{
    uint64_t at = offset - sim->arena_base;
    SIM_CHECK(
        sim,
        offset >= sim->arena_base && at % KVT_PAGE_BYTES == 0 && at + bytes <= sim->arena_bytes &&
            at / sim->config.host_slab_bytes == (at + bytes - 1) / sim->config.host_slab_bytes,
        "arena offset %llu is not a slot's", (unsigned long long)offset);
    for (unsigned i = 0; i < sim->n_grown; i++)
        if (sim->slab_order[i] == at / sim->config.host_slab_bytes)
            return sim->arena + at;
    sim_fail(sim, "arena offset %llu is in a slab that is not there yet",
             (unsigned long long)offset);
}

void sim_node_kill(struct sim *sim)
{
    sim_log(sim, "--- killed in life %u", sim->n_lives);
    sim_model_before_kill(sim);
    kvt_core_destroy(sim->core);
    sim->core = NULL;
    sim_disk_kill(sim);
    sim_meta_kill(sim);
    for (unsigned c = 0; c < sim->n_clients; c++)
        sim_client_lost(sim, &sim->clients[c]);
    sim_admin_killed(sim);
    sim_model_killed(sim);
    sim_meta_damage(sim);
    if (sim->meta_damaged)
        sim_model_killed(sim);
    sim->now_ns += sim_range(&sim->rng, 0, 1000 * SIM_MS);
    sim_node_start(sim);
    sim_model_restart(sim);
}

/* What a flush at this time lets go, by the contract. */
static void forget_expired(struct sim *sim)
{
    for (unsigned c = 0; c < sim->n_clients; c++) {
        struct sim_client *client = &sim->clients[c];
        for (unsigned l = 0; l < SIM_LEASES_MAX; l++)
            if (client->leases[l].id != 0 && client->leases[l].deadline_ns <= sim->now_ns) {
                client->last_lease = client->leases[l].id;
                client->leases[l].id = 0;
            }
        for (unsigned o = 0; o < SIM_OPS_MAX; o++) {
            struct sim_op *op = &client->ops[o];
            uint64_t last_ns = 0;
            bool waiting = op->kind != SIM_LOAD || op->over;
            for (unsigned i = 0; i < op->n && !waiting; i++) {
                waiting = op->items[i].state == SIM_ITEM_WAIT;
                last_ns = KVT_MAX(last_ns, op->items[i].deadline_ns);
            }
            op->over = op->over || (!waiting && last_ns <= sim->now_ns);
        }
    }
}

void sim_node_flush(struct sim *sim)
{
    uint64_t stats[KVT_STAT_N];
    forget_expired(sim);
    sim->in_flush = true;
    kvt_core_flush(sim->core, sim->now_ns);
    sim->in_flush = false;
    kvt_core_stats(sim->core, stats);
    uint64_t n_losses = stats[KVT_STAT_EVICT_HOST_CHUNKS] + stats[KVT_STAT_EVICT_NVME_CHUNKS] +
                        stats[KVT_STAT_CORRUPT_CHUNKS] + stats[KVT_STAT_NVME_READ_ERRORS] +
                        stats[KVT_STAT_DELETED_CHUNKS] + stats[KVT_STAT_REMOVED_HOST_CHUNKS] +
                        stats[KVT_STAT_REMOVED_NVME_CHUNKS];
    SIM_CHECK(sim,
              stats[KVT_STAT_EVICT_HOST_CHUNKS] == stats[KVT_STAT_EVICT_HOST_ROOM] +
                                                       stats[KVT_STAT_EVICT_HOST_SLAB] +
                                                       stats[KVT_STAT_EVICT_HOST_INDEX] &&
                  stats[KVT_STAT_EVICT_NVME_CHUNKS] == stats[KVT_STAT_EVICT_NVME_ROOM] +
                                                           stats[KVT_STAT_EVICT_NVME_SLAB] +
                                                           stats[KVT_STAT_EVICT_NVME_INDEX],
              "every eviction has one reason");
    /* What was committed first may have made room for the rest. */
    sim_model_fresh(sim, n_losses != sim->n_losses);
    sim->n_losses = n_losses;
    sim_admin_flushed(sim);
    sim_model_progress(sim);
    SIM_CHECK(sim, stats[KVT_STAT_HOST_USED_BYTES] <= stats[KVT_STAT_HOST_CAPACITY_BYTES],
              "host: %llu bytes used of %llu", (unsigned long long)stats[KVT_STAT_HOST_USED_BYTES],
              (unsigned long long)stats[KVT_STAT_HOST_CAPACITY_BYTES]);
    SIM_CHECK(sim, stats[KVT_STAT_NVME_USED_BYTES] <= stats[KVT_STAT_NVME_CAPACITY_BYTES],
              "nvme: %llu bytes used of %llu", (unsigned long long)stats[KVT_STAT_NVME_USED_BYTES],
              (unsigned long long)stats[KVT_STAT_NVME_CAPACITY_BYTES]);
}

void sim_node_advance(struct sim *sim, uint64_t dt_ns)
{
    uint64_t target = sim->now_ns + dt_ns;
    unsigned n_same = 0;
    for (;;) {
        uint64_t next = kvt_core_next_deadline(sim->core);
        if (next > target)
            break;
        n_same = next > sim->now_ns ? 0 : n_same + 1;
        /* A deadline that stays due after it was served would make the reactor spin. */
        SIM_CHECK(sim, n_same < 4, "the next deadline stays %lld ns in the past",
                  (long long)(sim->now_ns - next));
        sim->now_ns = KVT_MAX(sim->now_ns, next);
        sim_node_flush(sim);
    }
    sim->now_ns = target;
}

void sim_node_settle(struct sim *sim)
{
    unsigned n_rounds = 0;
    for (;;) {
        SIM_CHECK(sim, ++n_rounds < 100000, "the core does not come to rest");
        sim_node_flush(sim);
        if (sim_disk_step(sim, true) || sim_meta_step(sim))
            continue;
        if (kvt_core_quiescent(sim->core))
            return;
        uint64_t next = kvt_core_next_deadline(sim->core);
        SIM_CHECK(sim, next != UINT64_MAX, "the core is not at rest and waits for nothing");
        sim->now_ns = KVT_MAX(sim->now_ns, next);
    }
}
