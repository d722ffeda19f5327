/* SPDX-License-Identifier: Apache-2.0 */
/* GetNode, ListTiers, GetStats, Lookup, GetConfig, SetLogLevel. */
#include <string.h>
#include <unistd.h>

#include "agent.h"
#include "kvt/key_chain.h"
#include "kvt/log.h"
#include "kvt/units.h"
#include "kvt/util.h"
#include "request.h"

#define LOOKUP_KEYS_MAX 65536

/* --- node ------------------------------------------------------------------------------------- */

static Kvtier__V1__Node__State state_message(const struct agent *agent)
{
    switch ((enum service_state)atomic_load(&agent->calls.state)) {
    case SERVICE_READY:
        return KVTIER__V1__NODE__STATE__STATE_READY;
    case SERVICE_DRAINING:
        return KVTIER__V1__NODE__STATE__STATE_DRAINING;
    default:
        return KVTIER__V1__NODE__STATE__STATE_STARTING;
    }
}

static void get_node(struct request *r)
{
    const struct control_env *env = r->env;
    Kvtier__V1__Node *out = request_alloc(r, 1, sizeof(*out));
    if (out == NULL)
        return;
    kvtier__v1__node__init(out);
    out->version = (char *)KVT_VERSION;
    out->incarnation = env->agent->incarnation;
    out->hostname = request_text(r, env->hostname, sizeof(env->hostname));
    out->pid = (uint32_t)getpid();
    out->started_unix_ms = env->started_unix_ms;
    out->uptime_ms = ms_between(env->agent->start_ns, kvt_now_ns());
    out->state = state_message(env->agent);
    /* Neither changes while the agent runs. */
    out->socket_path =
        request_text(r, env->agent->config.socket_path, sizeof(env->agent->config.socket_path));
    out->control_path = request_text(r, env->control_path, sizeof(env->control_path));
    out->wire_version = KVT_WIRE_VERSION;
    out->n_chain_max = KVT_BATCH_MAX;
    out->n_lookup_max = LOOKUP_KEYS_MAX;
    while (kvt_key_algos[out->n_hash_algos] != NULL)
        out->n_hash_algos++;
    out->hash_algos = (char **)kvt_key_algos;
    r->out = &out->base;
}

/* --- tiers ------------------------------------------------------------------------------------ */

struct tiers_call {
    unsigned n;
    struct kvt_admin_tier tiers[2];
    struct kvt_tier_info infos[2];
    struct daemon_config config;
    bool nvme_missing; /* wanted, and not to be opened */
};

static void tiers_run(struct agent *agent, void *arg)
{
    struct tiers_call *call = arg;
    call->n = kvt_core_tiers(agent->core, call->tiers);
    agent->host->ops->info(agent->host, &call->infos[0]);
    if (agent->nvme != NULL)
        agent->nvme->ops->info(agent->nvme, &call->infos[1]);
    call->config = agent->config;
    call->nvme_missing = agent->nvme == NULL && agent->config.n_disks > 0;
}

static bool classes_message(struct request *r, const struct kvt_admin_tier *tier,
                            Kvtier__V1__TierInfo *out)
{
    out->classes = request_alloc(r, tier->n_classes, sizeof(Kvtier__V1__SlotClass *));
    if (out->classes == NULL)
        return false;
    for (unsigned i = 0; i < tier->n_classes; i++) {
        Kvtier__V1__SlotClass *class = request_alloc(r, 1, sizeof(*class));
        if (class == NULL)
            return false;
        kvtier__v1__slot_class__init(class);
        class->slot_bytes = tier->classes[i].slot_bytes;
        class->n_segments = tier->classes[i].n_segments;
        class->n_slabs = tier->classes[i].n_slabs;
        out->classes[out->n_classes++] = class;
    }
    return true;
}

static bool paths_message(struct request *r, const struct daemon_config *config,
                          Kvtier__V1__TierInfo *out)
{
    out->paths = request_alloc(r, config->n_disks, sizeof(*out->paths));
    for (uint32_t i = 0; i < config->n_disks && out->paths != NULL; i++)
        out->paths[out->n_paths++] =
            request_text(r, config->disks[i].path, sizeof(config->disks[i].path));
    return out->paths != NULL;
}

static Kvtier__V1__TierInfo *tier_message(struct request *r, const struct tiers_call *call,
                                          unsigned i)
{
    const struct kvt_admin_tier *tier = &call->tiers[i];
    const struct kvt_tier_info *info = &call->infos[tier->nvme];
    Kvtier__V1__TierInfo *out = request_alloc(r, 1, sizeof(*out));
    if (out == NULL)
        return NULL;
    kvtier__v1__tier_info__init(out);
    out->tier = tier->nvme ? KVTIER__V1__TIER__TIER_NVME : KVTIER__V1__TIER__TIER_HOST;
    out->name = (char *)(tier->nvme ? "nvme" : "host");
    out->capacity_bytes = tier->capacity_bytes;
    out->configured_bytes = tier->n_slabs_max * tier->slab_bytes;
    out->used_bytes = tier->used_bytes;
    out->pinned_bytes = tier->pinned_bytes;
    out->free_bytes = tier->free_bytes;
    out->slab_bytes = tier->slab_bytes;
    out->n_slabs = tier->n_slabs;
    out->n_slabs_free = tier->n_slabs_free;
    out->n_quarantined = tier->n_quarantined;
    out->n_chunks = tier->n_chunks;
    out->policy =
        (char *)daemon_policy(tier->nvme ? call->config.nvme_policy : call->config.host_policy)
            ->name;
    out->degraded = info->degraded;
    out->note = request_text(r, info->note, sizeof(info->note));
    bool good =
        classes_message(r, tier, out) && (!tier->nvme || paths_message(r, &call->config, out));
    return good ? out : NULL;
}

static void list_tiers(struct request *r)
{
    Kvtier__V1__ListTiersResponse *out = request_alloc(r, 1, sizeof(*out));
    struct tiers_call *call = request_alloc(r, 1, sizeof(*call));
    Kvtier__V1__TierInfo **tiers = request_alloc(r, 2, sizeof(void *));
    if (out == NULL || call == NULL || tiers == NULL || !request_ask(r, tiers_run, call))
        return;
    kvtier__v1__list_tiers_response__init(out);
    for (unsigned i = 0; i < call->n; i++) {
        tiers[i] = tier_message(r, call, i);
        if (tiers[i] == NULL)
            return;
    }
    out->tiers = tiers;
    out->n_tiers = call->n;
    if (call->nvme_missing && call->n == 1) {
        tiers[0]->degraded = true;
        tiers[0]->note = (char *)"the NVMe tier of the config could not be opened; see the log";
    }
    r->out = &out->base;
}

/* --- stats ------------------------------------------------------------------------------------ */

static bool is_gauge(enum kvt_stat stat)
{
    static const enum kvt_stat gauges[] = {
        KVT_STAT_CHUNKS,
        KVT_STAT_INDEX_BYTES,
        KVT_STAT_HOST_CAPACITY_BYTES,
        KVT_STAT_HOST_USED_BYTES,
        KVT_STAT_NVME_CAPACITY_BYTES,
        KVT_STAT_NVME_USED_BYTES,
        KVT_STAT_SESSIONS,
        KVT_STAT_LEASES,
        KVT_STAT_PINS,
        KVT_STAT_OPS,
        KVT_STAT_RESERVED_BYTES,
        KVT_STAT_QUARANTINED_SLOTS,
        KVT_STAT_NVME_DEGRADED,
        KVT_STAT_HOST_PINNED_BYTES,
        KVT_STAT_NVME_PINNED_BYTES,
        KVT_STAT_READING_BYTES,
        KVT_STAT_WRITING_BYTES,
        KVT_STAT_WRITE_QUEUE_CHUNKS,
        KVT_STAT_ADMIN_PINS,
        KVT_STAT_ADMIN_PINNED_CHUNKS,
        KVT_STAT_JOBS,
    };
    for (unsigned i = 0; i < KVT_ARRAY_LEN(gauges); i++) {
        if (gauges[i] == stat)
            return true;
    }
    return false;
}

struct stats_call {
    uint64_t stats[KVT_STAT_N];
    uint64_t now_ns;
};

static void stats_run(struct agent *agent, void *arg)
{
    struct stats_call *call = arg;
    agent_stats(agent, call->stats);
    call->now_ns = agent->now_ns;
}

static void get_stats(struct request *r)
{
    static const struct {
        const char *name, *help;
    } names[] = {
#define STAT_NAME(upper, lower, text) {#lower, text},
        KVT_STAT_MAP(STAT_NAME)
#undef STAT_NAME
    };
    Kvtier__V1__Stats *out = request_alloc(r, 1, sizeof(*out));
    Kvtier__V1__Stat **all = request_alloc(r, KVT_STAT_N, sizeof(void *));
    Kvtier__V1__Stat *stats = request_alloc(r, KVT_STAT_N, sizeof(*stats));
    struct stats_call call;
    if (out == NULL || all == NULL || stats == NULL || !request_ask(r, stats_run, &call))
        return;
    kvtier__v1__stats__init(out);
    for (unsigned i = 0; i < KVT_STAT_N; i++) {
        kvtier__v1__stat__init(&stats[i]);
        stats[i].name = (char *)names[i].name;
        stats[i].help = (char *)names[i].help;
        stats[i].value = call.stats[i];
        stats[i].kind = is_gauge((enum kvt_stat)i) ? KVTIER__V1__STAT__KIND__KIND_GAUGE
                                                   : KVTIER__V1__STAT__KIND__KIND_COUNTER;
        all[i] = &stats[i];
    }
    out->uptime_ms = ms_between(r->env->agent->start_ns, call.now_ns);
    out->stats = all;
    out->n_stats = KVT_STAT_N;
    r->out = &out->base;
}

/* --- lookup ----------------------------------------------------------------------------------- */

struct lookup_call {
    uint32_t ns;
    const struct kvt_key *keys;
    unsigned n, n_hit;
    uint8_t *where;
    enum kvt_status status;
};

static void lookup_run(struct agent *agent, void *arg)
{
    struct lookup_call *call = arg;
    call->status = kvt_core_admin_lookup(agent->core, call->ns, call->keys, call->n, &call->n_hit,
                                         call->where);
}

/* How many of the chain are held, and where. False: the request has failed. */
static bool chain_lookup(struct request *r, const struct chain *chain, uint8_t *where,
                         unsigned *n_found_p)
{
    struct lookup_call call = {.ns = chain->ns};
    unsigned n_found = 0;
    do {
        call.keys = chain->keys + n_found;
        call.where = where + n_found;
        call.n = KVT_MIN(chain->n_keys - n_found, KVT_BATCH_MAX);
        if (!request_ask(r, lookup_run, &call))
            return false;
        if (call.status != KVT_OK) {
            request_fail_status(r, call.status, "lookup: the namespace is gone; list them");
            return false;
        }
        n_found += call.n_hit;
    } while (call.n_hit == call.n && n_found < chain->n_keys);
    *n_found_p = n_found;
    return true;
}

static void lookup(struct request *r)
{
    static Kvtier__V1__Tier tiers[] = {KVTIER__V1__TIER__TIER_HOST, KVTIER__V1__TIER__TIER_NVME};
    const Kvtier__V1__LookupRequest *in = (const void *)r->in;
    Kvtier__V1__LookupResponse *out = request_alloc(r, 1, sizeof(*out));
    struct chain chain;
    unsigned n_found = 0;
    if (out == NULL || !request_chain(r, in->chain, LOOKUP_KEYS_MAX, &chain))
        return;
    uint8_t *where = request_alloc(r, chain.n_keys, 1);
    if (where == NULL || !chain_lookup(r, &chain, where, &n_found))
        return;
    Kvtier__V1__LookupResponse__Location *found = request_alloc(r, n_found, sizeof(*found));
    Kvtier__V1__LookupResponse__Location **locations = request_alloc(r, n_found, sizeof(void *));
    if (found == NULL || locations == NULL)
        return;
    kvtier__v1__lookup_response__init(out);
    for (unsigned i = 0; i < n_found; i++) {
        kvtier__v1__lookup_response__location__init(&found[i]);
        found[i].key =
            (ProtobufCBinaryData){.len = KVT_KEY_BYTES, .data = (uint8_t *)chain.keys[i].bytes};
        found[i].tiers = (where[i] & KVT_WHERE_HOST) ? tiers : tiers + 1;
        found[i].n_tiers = where[i] == (KVT_WHERE_HOST | KVT_WHERE_NVME) ? 2 : where[i] != 0;
        locations[i] = &found[i];
    }
    out->n_keys = chain.n_keys;
    out->n_found = n_found;
    out->n_tokens_found = (uint64_t)n_found * chain.tokens_per_chunk;
    out->locations = locations;
    out->n_locations = n_found;
    if (n_found > 0)
        out->last_key = found[n_found - 1].key;
    r->out = &out->base;
}

/* --- config and log --------------------------------------------------------------------------- */

struct config_call {
    struct daemon_config config;
    struct kvt_config_sources sources;
};

static void config_run(struct agent *agent, void *arg)
{
    struct config_call *call = arg;
    call->config = agent->config;
    call->sources = agent->config_sources;
}

struct config_visit {
    struct request *r;
    Kvtier__V1__Config *out;
    size_t n_room; /* of out->options; 0: only count */
};

static bool path_reloadable(const char *path)
{
    for (const struct kvt_config_field *f = daemon_config_fields; f->type != KVT_CONFIG_END; f++) {
        if (strcmp(f->key, path) == 0)
            return daemon_config_reloadable(f);
    }
    return false; /* inside a list */
}

static void option_count(void *arg, const char *path, const char *value, const char *source)
{
    struct config_visit *visit = arg;
    (void)path;
    (void)value;
    (void)source;
    visit->n_room++;
}

static void option_add(void *arg, const char *path, const char *value, const char *source)
{
    struct config_visit *visit = arg;
    Kvtier__V1__Option *option = request_alloc(visit->r, 1, sizeof(*option));
    if (option == NULL || visit->out->n_options == visit->n_room)
        return;
    kvtier__v1__option__init(option);
    option->key = request_text(visit->r, path, strlen(path));
    option->value = request_text(visit->r, value, strlen(value));
    option->source = request_text(visit->r, source, strlen(source));
    option->reloadable = path_reloadable(path);
    visit->out->options[visit->out->n_options++] = option;
}

static void get_config(struct request *r)
{
    Kvtier__V1__Config *out = request_alloc(r, 1, sizeof(*out));
    struct config_call *call = request_alloc(r, 1, sizeof(*call));
    struct config_visit visit = {.r = r, .out = out};
    if (out == NULL || call == NULL || !request_ask(r, config_run, call))
        return;
    kvtier__v1__config__init(out);
    kvt_config_each(daemon_config_fields, &call->config, &call->sources, option_count, &visit);
    out->options = request_alloc(r, visit.n_room, sizeof(Kvtier__V1__Option *));
    if (out->options == NULL)
        return;
    kvt_config_each(daemon_config_fields, &call->config, &call->sources, option_add, &visit);
    const char *file = r->env->agent->config_input.file;
    if (file != NULL)
        out->file = request_text(r, file, strlen(file));
    r->out = &out->base;
}

struct level_call {
    enum kvt_log_level level, previous;
};

static void level_fault(void *arg, const char *msg)
{
    (void)arg;
    kvt_log(KVT_LOG_ERROR, "log level not set: %s", msg);
}

static void level_run(struct agent *agent, void *arg)
{
    static const char *const assignments[] = {"log.level=error", "log.level=warn", "log.level=info",
                                              "log.level=debug", "log.level=trace"};
    struct level_call *call = arg;
    call->previous = (enum kvt_log_level)agent->config.log_level;
    (void)kvt_config_set(daemon_config_fields, &agent->config, assignments[call->level],
                         KVT_CONFIG_RUNTIME, &agent->config_sources, level_fault, NULL);
    kvt_log_setup((enum kvt_log_level)agent->config.log_level,
                  (enum kvt_log_format)agent->config.log_format);
}

static void set_log_level(struct request *r)
{
    const Kvtier__V1__SetLogLevelRequest *in = (const void *)r->in;
    Kvtier__V1__SetLogLevelResponse *out = request_alloc(r, 1, sizeof(*out));
    if (out == NULL)
        return;
    if (in->level < KVTIER__V1__LOG_LEVEL__LOG_LEVEL_ERROR ||
        in->level > KVTIER__V1__LOG_LEVEL__LOG_LEVEL_TRACE) {
        request_fail(r, GRPC_STATUS_INVALID_ARGUMENT,
                     "level: there is none of number %d; set one from LOG_LEVEL_ERROR to "
                     "LOG_LEVEL_TRACE",
                     (int)in->level);
        return;
    }
    struct level_call call = {
        .level = (enum kvt_log_level)(in->level - KVTIER__V1__LOG_LEVEL__LOG_LEVEL_ERROR)};
    if (!request_ask(r, level_run, &call))
        return;
    kvtier__v1__set_log_level_response__init(out);
    out->previous =
        (Kvtier__V1__LogLevel)((unsigned)call.previous + KVTIER__V1__LOG_LEVEL__LOG_LEVEL_ERROR);
    r->out = &out->base;
}

const struct method node_methods[] = {
    {CONTROL_METHOD("GetNode"), METHOD_UNARY, &kvtier__v1__get_node_request__descriptor, get_node},
    {CONTROL_METHOD("ListTiers"), METHOD_UNARY, &kvtier__v1__list_tiers_request__descriptor,
     list_tiers},
    {CONTROL_METHOD("GetStats"), METHOD_UNARY, &kvtier__v1__get_stats_request__descriptor,
     get_stats},
    {CONTROL_METHOD("Lookup"), METHOD_UNARY, &kvtier__v1__lookup_request__descriptor, lookup},
    {CONTROL_METHOD("GetConfig"), METHOD_UNARY, &kvtier__v1__get_config_request__descriptor,
     get_config},
    {CONTROL_METHOD("SetLogLevel"), METHOD_UNARY, &kvtier__v1__set_log_level_request__descriptor,
     set_log_level},
    {0},
};
