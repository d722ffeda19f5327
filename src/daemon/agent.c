/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From config to a serving agent. The metadata says what the store files hold only if both name the
 * same store; where they do not agree, or the metadata is gone, the store starts empty: what its
 * slots hold can no longer be told apart from garbage cheaply, and a miss is always allowed.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent.h"
#include "kvt/log.h"
#include "kvt/util.h"
#include "touch.h"

#define STORE_ID_BYTES 16
#define OPS_MAX        16384 /* of all sessions: an op may take 16 KiB */
#define LEASES_MAX     65536
#define CHUNKS_WAITING 65536 /* in no slot yet */
#define DAMAGED_MAX    1000
#define RECORDS_MANY   1000000
#define IOS_PER_DEPTH  3 /* transfers at the disk, being verified, and ready to be next */
#define GROUP_BYTES    (UINT64_C(16) << 20) /* of slots: a few of a disk's largest requests */
#define BYTES_AHEAD    2 /* with the tier, of those at the disk: the others wait or are verified */
#define IOS_MAX        65536

#define NAMESPACES_MAX         65536
#define NAMESPACES_SESSION_MAX 1024 /* libkvtier registers no more with one */

static uint32_t nvme_slabs(const struct daemon_config *config)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < config->n_disks; i++)
        n += daemon_disk_slabs(config, &config->disks[i]);
    return (uint32_t)n;
}

static uint32_t n_ops_max(const struct daemon_config *config)
{
    return KVT_MIN(config->sessions_max * config->sessions_ops_max, OPS_MAX);
}

static uint64_t n_slots_max(uint64_t n_slabs, uint64_t slab_bytes, uint64_t slot_bytes)
{
    return n_slabs * KVT_MIN(slab_bytes / slot_bytes, UINT64_C(1) << KVT_SLOT_INDEX_BITS);
}

/* The index's table is as large as it may ever have to be, so no larger than the tiers: of the
 * smallest chunks that they have room for, and those that wait for room. */
static uint32_t n_chunks_max(const struct agent *agent, uint32_t n_nvme_slabs)
{
    uint64_t n =
        n_slots_max(agent->host_info.n_slabs, agent->host_info.slab_bytes, KVT_PAGE_BYTES) +
        n_slots_max(n_nvme_slabs, agent->config.nvme_slab_bytes,
                    KVT_PAGE_BYTES + KVT_SLOT_HEADER_BYTES);
    return (uint32_t)KVT_MIN(n + CHUNKS_WAITING, agent->config.index_chunks_max);
}

static struct kvt_nvme_limits nvme_limits(const struct daemon_config *config)
{
    return (struct kvt_nvme_limits){.read_bytes_max = config->nvme_read_inflight_bytes,
                                    .write_bytes_max = config->nvme_write_inflight_bytes};
}

/* What is read has its place in memory: a small arena is not to be full of it. */
static uint64_t read_bytes_ahead(const struct daemon_config *config)
{
    return KVT_MIN(BYTES_AHEAD * config->nvme_read_inflight_bytes, config->host_bytes / 2);
}

static enum kvt_status core_open(struct agent *agent, uint32_t n_nvme_slabs, struct kvt_error *err)
{
    const struct daemon_config *c = &agent->config;
    struct kvt_core_actions actions = agent_actions;
    struct kvt_core_config core = {
        .n_chunks_max = n_chunks_max(agent, n_nvme_slabs),
        .n_host_slabs = agent->host_info.n_slabs,
        .host_slab_bytes = agent->host_info.slab_bytes,
        .n_nvme_slabs = n_nvme_slabs,
        .nvme_slab_bytes = n_nvme_slabs > 0 ? c->nvme_slab_bytes : 0,
        .group_bytes = GROUP_BYTES,
        .host_policy = daemon_policy(c->host_policy),
        .nvme_policy = daemon_policy(c->nvme_policy),
        .admission = (enum kvt_admission)c->nvme_admission,
        .n_ios_max = KVT_MIN(c->nvme_queue_depth * IOS_PER_DEPTH, IOS_MAX),
        .read_bytes_max = read_bytes_ahead(c),
        .write_bytes_max = BYTES_AHEAD * c->nvme_write_inflight_bytes,
        .n_ns_max = NAMESPACES_MAX,
        .n_ns_session_max = NAMESPACES_SESSION_MAX,
        .n_sessions_max = c->sessions_max,
        .n_ops_max = n_ops_max(c),
        .n_ops_session_max = c->sessions_ops_max,
        .n_leases_max = LEASES_MAX,
        .n_leases_session_max = KVT_MAX(LEASES_MAX / c->sessions_max, 64),
        .lease_ttl_ns = c->lease_ttl_ns,
        .lease_ttl_max_ns = c->lease_ttl_max_ns,
        .scrub_bytes_per_s = c->nvme_scrub_bytes_per_s,
    };
    core.seed = c->index_seed;
    if (core.seed == 0 && getrandom(&core.seed, sizeof(core.seed), 0) != (ssize_t)sizeof(core.seed))
        core.seed = kvt_now_ns();
    actions.arg = agent;
    if (!actions_init(agent, &core))
        return kvt_error_set(err, KVT_ERR_NOMEM, "kvtierd: out of memory at start");
    return kvt_core_create(&core, &actions, &agent->core, err);
}

static void core_close(struct agent *agent)
{
    if (agent->core != NULL)
        kvt_core_destroy(agent->core);
    agent->core = NULL;
    actions_fini(agent);
}

/* --- metadata --------------------------------------------------------------------------------- */

struct replay {
    struct kvt_core *core;
    struct ideal *ideal;
    uint64_t n_records;
};

static void replay_ns(void *arg, uint32_t ns, uint64_t since, const struct kvt_ns_desc *desc)
{
    kvt_core_restore_ns(((struct replay *)arg)->core, ns, since, desc);
}

static void replay_slab(void *arg, uint32_t slab, uint64_t slot_bytes)
{
    kvt_core_restore_slab(((struct replay *)arg)->core, slab, slot_bytes);
}

static void replay_records(void *arg, const struct kvt_meta_record *records, unsigned n)
{
    struct replay *replay = arg;
    replay->n_records += n;
    kvt_core_restore_records(replay->core, records, n);
    for (unsigned i = 0; i < n; i++)
        if (kvt_core_ns_desc(replay->core, records[i].ns) != NULL)
            ideal_stored(replay->ideal, agent_ns_mark(replay->core, records[i].ns), &records[i].key,
                         1);
}

/* Move a directory that RocksDB refuses out of the way; it is kept for whoever wants to look. */
static enum kvt_status meta_set_aside(const char *dir, struct kvt_error *err)
{
    char aside[sizeof(((struct daemon_config *)0)->nvme_meta_path) + 32];
    struct stat st;
    for (unsigned n = 1; n <= DAMAGED_MAX; n++) {
        snprintf(aside, sizeof(aside), "%s.damaged-%u", dir, n);
        if (lstat(aside, &st) == 0)
            continue;
        if (rename(dir, aside) != 0)
            break;
        kvt_log(KVT_LOG_WARN, "metadata damaged, starting empty; moved_to=%s", aside);
        return KVT_OK;
    }
    return kvt_error_set(err, KVT_ERR_IO, "meta: cannot move damaged %s aside: %s; remove it", dir,
                         strerror(errno));
}

/* Open the metadata into a fresh core; n_records_p: what it named. */
static enum kvt_status meta_open(struct agent *agent, uint32_t n_slabs,
                                 uint8_t store_id[STORE_ID_BYTES], uint64_t *n_records_p,
                                 struct kvt_error *err)
{
    const char *dir = agent->config.nvme_meta_path;
    for (unsigned attempt = 0;; attempt++) {
        uint64_t n_bad = 0;
        struct kvt_error cause = {.msg = ""};
        enum kvt_status status = core_open(agent, n_slabs, err);
        if (status != KVT_OK)
            return status;
        struct replay replay = {.core = agent->core, .ideal = agent->metrics.ideal};
        const struct kvt_meta_visitor visitor = {
            .arg = &replay, .ns = replay_ns, .slab = replay_slab, .records = replay_records};
        struct touch touch = {.is_running = false};
        void *memory;
        uint64_t bytes;
        kvt_core_restore_memory(agent->core, kvt_meta_records_about(dir), &memory, &bytes);
        touch_start(&touch, memory, bytes);
        memset(store_id, 0, STORE_ID_BYTES);
        status = kvt_meta_open(dir, store_id, &visitor, &agent->meta, &n_bad, &cause);
        touch_stop(&touch);
        if (status == KVT_OK) {
            if (n_bad > 0)
                kvt_log(KVT_LOG_WARN, "metadata entries skipped, their chunks are lost n=%" PRIu64,
                        n_bad);
            *n_records_p = replay.n_records;
            return KVT_OK;
        }
        agent->meta = NULL;
        core_close(agent);
        if (status != KVT_ERR_CORRUPT || attempt > 0) {
            if (err != NULL)
                *err = cause;
            return status;
        }
        kvt_log(KVT_LOG_ERROR, "%s", cause.msg);
        status = meta_set_aside(dir, err);
        if (status != KVT_OK)
            return status;
    }
}

/* --- NVMe ------------------------------------------------------------------------------------- */

static enum kvt_status tier_open(struct agent *agent, uint8_t store_id[STORE_ID_BYTES],
                                 uint32_t n_slabs, struct kvt_error *err)
{
    const struct daemon_config *c = &agent->config;
    struct kvt_tier_info info;
    struct kvt_nvme_config nvme = {
        .n_disks = c->n_disks,
        .slab_bytes = c->nvme_slab_bytes,
        .engine = (enum kvt_io_engine)c->nvme_engine,
        .queue_depth = c->nvme_queue_depth,
        .limits = nvme_limits(c),
        .n_workers = c->workers,
    };
    memcpy(nvme.disks, c->disks, sizeof(nvme.disks));
    kvt_core_header_pool(agent->core, &nvme.header_pool, &nvme.header_pool_bytes);
    enum kvt_status status = kvt_nvme_tier_open(&nvme, agent->host, store_id, &agent->nvme, err);
    if (status != KVT_OK)
        return status;
    agent->nvme->ops->info(agent->nvme, &info);
    if (info.note[0] != '\0')
        kvt_log(info.degraded ? KVT_LOG_WARN : KVT_LOG_INFO, "NVMe tier: %s", info.note);
    if (info.n_slabs >= n_slabs)
        return KVT_OK;
    return kvt_error_set(err, KVT_ERR_NOSPACE,
                         "nvme: the disks have room for %u slabs, not for the %u of the config; "
                         "lower nvme.disks.*.bytes",
                         info.n_slabs, n_slabs);
}

static void nvme_close(struct agent *agent)
{
    if (agent->nvme != NULL)
        agent->nvme->ops->close(agent->nvme);
    agent->nvme = NULL;
    if (agent->meta != NULL)
        kvt_meta_close(agent->meta);
    agent->meta = NULL;
}

/* The metadata names another store than the files are: forget it, keep the files. */
static enum kvt_status store_start_empty(struct agent *agent, uint8_t store_id[STORE_ID_BYTES],
                                         uint32_t n_slabs, struct kvt_error *err)
{
    agent->nvme->ops->close(agent->nvme); /* it holds the old core's header pages */
    agent->nvme = NULL;
    core_close(agent);
    enum kvt_status status = kvt_meta_reset(agent->meta, store_id);
    if (status != KVT_OK)
        return kvt_error_set(err, status, "meta: cannot empty %s: %s; remove it",
                             agent->config.nvme_meta_path, kvt_status_str(status));
    status = core_open(agent, n_slabs, err);
    if (status == KVT_OK)
        status = tier_open(agent, store_id, n_slabs, err);
    return status;
}

static enum kvt_status nvme_open(struct agent *agent, struct kvt_error *err)
{
    uint8_t wanted[STORE_ID_BYTES];
    uint8_t found[STORE_ID_BYTES];
    static const uint8_t none[STORE_ID_BYTES];
    uint32_t n_slabs = nvme_slabs(&agent->config);
    uint64_t n_records = 0;
    bool old_files = access(agent->config.disks[0].path, F_OK) == 0;

    enum kvt_status status = meta_open(agent, n_slabs, wanted, &n_records, err);
    if (status != KVT_OK)
        return status;
    memcpy(found, wanted, sizeof(found));
    status = tier_open(agent, found, n_slabs, err);
    if (status == KVT_OK && memcmp(found, wanted, sizeof(found)) != 0) {
        if (n_records > 0)
            kvt_log(KVT_LOG_WARN, "metadata belongs to another store, starting empty path=%s",
                    agent->config.nvme_meta_path);
        else if (old_files && memcmp(wanted, none, sizeof(none)) == 0)
            kvt_log(KVT_LOG_WARN, "no metadata for existing store files, starting empty path=%s",
                    agent->config.nvme_meta_path);
        n_records = 0;
        status = store_start_empty(agent, found, n_slabs, err);
    }
    if (status != KVT_OK)
        return status;
    uint64_t n_bad = kvt_core_restore_end(agent->core);
    kvt_log(KVT_LOG_INFO, "NVMe tier open disks=%u slabs=%u chunks=%" PRIu64 " skipped=%" PRIu64,
            agent->config.n_disks, n_slabs, n_records - KVT_MIN(n_records, n_bad), n_bad);
    return KVT_OK;
}

/* --- all of it -------------------------------------------------------------------------------- */

static enum kvt_status host_open(struct agent *agent, struct kvt_error *err)
{
    struct kvt_host_config host = {
        .bytes = agent->config.host_bytes,
        .slab_bytes = agent->config.host_slab_bytes,
        .huge_pages = (enum kvt_huge_pages)agent->config.host_huge_pages,
    };
    enum kvt_status status = kvt_host_tier_open(&host, &agent->host, err);
    if (status != KVT_OK)
        return status;
    agent->host->ops->info(agent->host, &agent->host_info);
    /* Reading many takes long enough for the arena to wait: slabs_start() has it backed then. */
    bool later = agent->config.n_disks > 0 &&
                 kvt_meta_records_about(agent->config.nvme_meta_path) >= RECORDS_MANY;
    return later ? KVT_OK : kvt_host_tier_start(agent->host, err);
}

static enum kvt_status stores_open(struct agent *agent, struct kvt_error *err)
{
    enum kvt_status status = KVT_OK;
    if (agent->config.n_disks > 0) {
        status = nvme_open(agent, err);
        if (status == KVT_OK || agent->config.nvme_required)
            return status;
        kvt_log(KVT_LOG_ERROR, "%s", err->msg);
        kvt_log(KVT_LOG_WARN, "going on with host memory alone, as nvme.required is false");
        nvme_close(agent);
        core_close(agent);
    }
    status = core_open(agent, 0, err);
    if (status == KVT_OK)
        (void)kvt_core_restore_end(agent->core);
    return status;
}

static enum kvt_status edges_watch(struct agent *agent, struct kvt_error *err)
{
    enum kvt_status status = reactor_watch(agent, agent->reload.event_fd, WATCH_RELOAD);
    if (status == KVT_OK && agent->http.daemon != NULL)
        status = reactor_watch(agent, agent->http.pull.ask_fd, WATCH_METRICS);
    if (status == KVT_OK && agent->nvme != NULL)
        status = reactor_watch(agent, agent->nvme->ops->event_fd(agent->nvme), WATCH_NVME);
    if (status == KVT_OK && agent->meta != NULL)
        status = reactor_watch(agent, kvt_meta_event_fd(agent->meta), WATCH_META);
    if (status != KVT_OK)
        return kvt_error_set(err, status, "kvtierd: cannot watch the tiers; check ulimit -n");
    return KVT_OK;
}

/* What others see of the agent: it answers from here on, with "starting" at first. */
static enum kvt_status service_open(struct agent *agent, struct kvt_error *err)
{
    const struct daemon_config *c = &agent->config;
    /* An op may have a store's or load's answer and a commit's outstanding. */
    if (!metrics_init(&agent->metrics, c->sessions_max, 2 * n_ops_max(c)) ||
        reload_open(&agent->reload) != KVT_OK)
        return kvt_error_set(err, KVT_ERR_NOMEM, "kvtierd: out of memory at start");
    notify_open(&agent->notify);
    agent_state_set(agent, SERVICE_STARTING);
    return http_start(&agent->http, c->metrics_listen, err);
}

static void service_close(struct agent *agent)
{
    http_stop(&agent->http);
    reload_close(&agent->reload);
    notify_close(&agent->notify);
    metrics_fini(&agent->metrics);
}

void agent_state_set(struct agent *agent, enum service_state state)
{
    atomic_store_explicit(&agent->http.state, state, memory_order_relaxed);
    control_state_set(&agent->calls, state);
    if (state == SERVICE_READY)
        notify_send(&agent->notify, "READY=1");
    else if (state == SERVICE_DRAINING)
        notify_send(&agent->notify, "STOPPING=1");
    agent_status_tell(agent);
}

void agent_status_tell(struct agent *agent)
{
    switch ((enum service_state)atomic_load_explicit(&agent->http.state, memory_order_relaxed)) {
    case SERVICE_STARTING:
        notify_send(&agent->notify, "STATUS=starting");
        break;
    case SERVICE_READY:
        notify_send(&agent->notify, "READY=1\nSTATUS=serving on %s", agent->config.socket_path);
        break;
    case SERVICE_DRAINING:
        notify_send(&agent->notify, "STATUS=finishing writes to NVMe");
        break;
    }
}

void agent_stats(const struct agent *agent, uint64_t stats[KVT_STAT_N])
{
    struct kvt_tier_info info;
    kvt_core_stats(agent->core, stats);
    if (agent->nvme != NULL) {
        agent->nvme->ops->info(agent->nvme, &info);
        stats[KVT_STAT_NVME_DEGRADED] |= info.degraded;
    } else if (agent->config.n_disks > 0) {
        stats[KVT_STAT_NVME_DEGRADED] = 1; /* wanted, and not to be opened */
    }
}

void agent_snapshot(void *arg, struct metrics_snapshot *snapshot)
{
    const struct agent *agent = arg;
    agent_stats(agent, snapshot->stats);
    snapshot->counters = agent->metrics.counters;
    snapshot->counters.avoidable_keys = ideal_avoidable(agent->metrics.ideal);
    snapshot->made_ns = kvt_now_ns();
}

void agent_tune(struct agent *agent)
{
    const struct daemon_config *c = &agent->config;
    const struct kvt_core_tuning tuning = {
        .admission = (enum kvt_admission)c->nvme_admission,
        .read_bytes_max = read_bytes_ahead(c),
        .write_bytes_max = BYTES_AHEAD * c->nvme_write_inflight_bytes,
        .lease_ttl_ns = c->lease_ttl_ns,
        .lease_ttl_max_ns = c->lease_ttl_max_ns,
        .scrub_bytes_per_s = c->nvme_scrub_bytes_per_s,
    };
    const struct kvt_nvme_limits limits = nvme_limits(c);
    kvt_core_tune(agent->core, &tuning);
    if (agent->nvme != NULL)
        kvt_nvme_tier_limit(agent->nvme, &limits);
    agent->spin.ns = c->spin_ns;
    kvt_log_setup((enum kvt_log_level)c->log_level, (enum kvt_log_format)c->log_format);
}

enum kvt_status agent_open(struct agent *agent, struct kvt_error *err)
{
    agent->start_ns = kvt_now_ns();
    if (getrandom(&agent->incarnation, sizeof(agent->incarnation), 0) !=
        (ssize_t)sizeof(agent->incarnation))
        agent->incarnation = agent->start_ns;
    enum kvt_status status = reactor_open(agent, err);
    if (status == KVT_OK)
        status = service_open(agent, err);
    if (status == KVT_OK)
        status = host_open(agent, err);
    if (status == KVT_OK)
        status = stores_open(agent, err);
    if (status == KVT_OK)
        status = edges_watch(agent, err);
    if (status == KVT_OK && !sessions_init(agent))
        status = kvt_error_set(err, KVT_ERR_NOMEM, "kvtierd: out of memory for %u sessions",
                               agent->config.sessions_max);
    if (status == KVT_OK)
        status = slabs_start(agent, err);
    if (status == KVT_OK)
        status = listen_open(agent, err);
    return status;
}

void agent_close(struct agent *agent)
{
    service_close(agent);
    listener_close(&agent->listener);
    slabs_stop(agent);
    nvme_close(agent); /* waits for transfers: the core's pages and the arena are still there */
    sessions_fini(agent);
    core_close(agent);
    if (agent->host != NULL)
        agent->host->ops->close(agent->host);
    agent->host = NULL;
    reactor_close(agent);
}
