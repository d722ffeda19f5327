/* SPDX-License-Identifier: Apache-2.0 */
/* kvbench replay TRACE, and the same with a built-in workload in the place of a file. */
#include <getopt.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent.h"
#include "counters.h"
#include "kvt/interrupt.h"
#include "kvt/policy.h"
#include "kvt/units.h"
#include "kvt/util.h"
#include "offline.h"
#include "commands.h"
#include "replay.h"
#include "workload.h"

#define SLAB_UNIT         (UINT64_C(2) << 20)
#define SHARE_PAGES_MAX   16 /* of a slot, in search of a capacity that fits */
#define WORKLOAD_REQUESTS 2000
#define DEFAULT_CHUNK     (UINT64_C(64) << 10)
#define CHUNK_BYTES_MAX   (UINT64_C(256) << 20)

struct command {
    const char *name;       /* of the command */
    const char *trace_path; /* NULL: workload */
    const struct kvt_workload *workload;
    const char *socket;
    const char *dir;
    const char *policy;
    struct kvt_geometry geometry;
    bool geometry_given;                          /* by layers, heads, ... */
    uint64_t arena_bytes, nvme_bytes, slab_bytes; /* slab 0: the agent's default */
    uint64_t max_requests, seed, n_clients, depth, n_copy_threads, store_wait_ns;
    double time_scale, capacity_share;
    bool json;
    struct kvt_agent_options agent;
};

static void help(const struct command *c)
{
    if (c->workload == NULL)
        puts("Usage: kvbench replay TRACE [OPTION]...\n"
             "Replay a request trace (Mooncake format: a JSON object a line with timestamp,\n"
             "input_length, output_length, hash_ids) against an agent: look up each prompt, load\n"
             "what is held, compare every byte, store what is missing.\n");
    else
        printf("Usage: kvbench %s [OPTION]...\nReplay a built-in workload: %s.\n\n", c->name,
               c->workload->help);
    puts("  --max-requests N       no more than this (built-in workloads: 2000)\n"
         "  --clients N            sessions at once, requests dealt in trace order (1)\n"
         "  --depth N              batches in flight per client (4; 1 with --capacity-share)\n"
         "  --copy-threads N       threads of each session that copy (1)\n"
         "  --time-scale F         trace seconds per second; 0: as fast as possible (0)\n"
         "  --store-wait TIME      how long a store waits for room before it is dropped (1s)\n"
         "  --seed N               of keys and bytes, and of a built-in workload (1)\n"
         "\n"
         "  --chunk-bytes SIZE     of a trace block (64KiB; 4KiB with --capacity-share), or from\n"
         "  --layers N --kv-heads N --head-dim N --dtype-bytes N --tokens-per-chunk N\n"
         "                         the geometry of a model (a block of the trace is one chunk)\n"
         "\n"
         "  --arena-bytes SIZE     host memory of the agent (1GiB)\n"
         "  --nvme-bytes SIZE      store file of the agent, 0: none (4GiB)\n"
         "  --policy NAME          eviction, of both tiers (the agent's default)\n"
         "  --capacity-share F     host memory for this share of the trace's distinct blocks, and\n"
         "                         no store file: to compare policies\n"
         "  --socket PATH          use the agent there instead of starting one\n"
         "  --dir DIR              where the agent's temporary folder is made (/var/tmp)\n"
         "  --set KEY=VALUE        more configuration for the agent that is started\n"
         "  --json                 one JSON object on stdout\n"
         "  --help                 this text\n"
         "\n"
         "Exit codes: 0 every byte was right and no call failed; 1 wrong bytes, errors, or it\n"
         "could not run; 2 usage; 130 interrupted.");
}

enum option_id {
    OPT_MAX_REQUESTS = 256,
    OPT_CLIENTS,
    OPT_DEPTH,
    OPT_COPY_THREADS,
    OPT_TIME_SCALE,
    OPT_STORE_WAIT,
    OPT_SEED,
    OPT_CHUNK_BYTES,
    OPT_LAYERS,
    OPT_KV_HEADS,
    OPT_HEAD_DIM,
    OPT_DTYPE_BYTES,
    OPT_TOKENS,
    OPT_ARENA_BYTES,
    OPT_NVME_BYTES,
    OPT_POLICY,
    OPT_SHARE,
    OPT_SOCKET,
    OPT_DIR,
    OPT_SET,
    OPT_JSON,
    OPT_HELP,
};

static const struct option options[] = {
    {"max-requests", required_argument, NULL, OPT_MAX_REQUESTS},
    {"clients", required_argument, NULL, OPT_CLIENTS},
    {"depth", required_argument, NULL, OPT_DEPTH},
    {"copy-threads", required_argument, NULL, OPT_COPY_THREADS},
    {"time-scale", required_argument, NULL, OPT_TIME_SCALE},
    {"store-wait", required_argument, NULL, OPT_STORE_WAIT},
    {"seed", required_argument, NULL, OPT_SEED},
    {"chunk-bytes", required_argument, NULL, OPT_CHUNK_BYTES},
    {"layers", required_argument, NULL, OPT_LAYERS},
    {"kv-heads", required_argument, NULL, OPT_KV_HEADS},
    {"head-dim", required_argument, NULL, OPT_HEAD_DIM},
    {"dtype-bytes", required_argument, NULL, OPT_DTYPE_BYTES},
    {"tokens-per-chunk", required_argument, NULL, OPT_TOKENS},
    {"arena-bytes", required_argument, NULL, OPT_ARENA_BYTES},
    {"nvme-bytes", required_argument, NULL, OPT_NVME_BYTES},
    {"policy", required_argument, NULL, OPT_POLICY},
    {"capacity-share", required_argument, NULL, OPT_SHARE},
    {"socket", required_argument, NULL, OPT_SOCKET},
    {"dir", required_argument, NULL, OPT_DIR},
    {"set", required_argument, NULL, OPT_SET},
    {"json", no_argument, NULL, OPT_JSON},
    {"help", no_argument, NULL, OPT_HELP},
    {NULL, 0, NULL, 0},
};

static bool parse_u32(const char *option, const char *text, uint32_t max, uint32_t *value_p)
{
    uint64_t value;
    if (!kvt_option_number(option, text, 1, max, &value))
        return false;
    *value_p = (uint32_t)value;
    return true;
}

static bool parse_policy(struct command *c, const char *text)
{
    if (kvt_policy_find(text) == NULL) {
        fprintf(stderr, "kvbench: --policy: \"%s\" is none of %s\n", text, kvt_policy_names());
        return false;
    }
    c->policy = text;
    return true;
}

static bool parse_option(struct command *c, int id, const char *text)
{
    struct kvt_geometry *g = &c->geometry;
    switch (id) {
    case OPT_MAX_REQUESTS:
        return kvt_option_number("--max-requests", text, 1, KVT_TRACE_REQUESTS_MAX,
                                 &c->max_requests);
    case OPT_CLIENTS:
        return kvt_option_number("--clients", text, 1, 256, &c->n_clients);
    case OPT_DEPTH:
        return kvt_option_number("--depth", text, 1, 16, &c->depth);
    case OPT_COPY_THREADS:
        return kvt_option_number("--copy-threads", text, 1, 64, &c->n_copy_threads);
    case OPT_TIME_SCALE:
        return kvt_option_real("--time-scale", text, 0, 1e9, &c->time_scale);
    case OPT_STORE_WAIT:
        if (kvt_time_parse(text, &c->store_wait_ns) && c->store_wait_ns <= 30 * KVT_NS_PER_S)
            return true;
        fprintf(stderr, "kvbench: --store-wait: \"%s\" is not a time up to 30s (units: %s)\n", text,
                KVT_TIME_UNITS);
        return false;
    case OPT_SEED:
        return kvt_option_number("--seed", text, 0, UINT64_MAX, &c->seed);
    case OPT_CHUNK_BYTES:
        return kvt_option_bytes("--chunk-bytes", text, 64, CHUNK_BYTES_MAX, &g->chunk_bytes);
    case OPT_ARENA_BYTES:
        return kvt_option_bytes("--arena-bytes", text, SLAB_UNIT, UINT64_C(16) << 40,
                                &c->arena_bytes);
    case OPT_NVME_BYTES:
        return kvt_option_bytes("--nvme-bytes", text, 0, UINT64_C(1) << 50, &c->nvme_bytes);
    case OPT_POLICY:
        return parse_policy(c, text);
    case OPT_SHARE:
        return kvt_option_real("--capacity-share", text, 1e-6, 1.0, &c->capacity_share);
    case OPT_SOCKET:
        c->socket = text;
        return true;
    case OPT_DIR:
        c->dir = text;
        return true;
    case OPT_SET:
        if (strchr(text, '=') != NULL && kvt_agent_set(&c->agent, "%s", text))
            return true;
        fprintf(stderr, "kvbench: --set: \"%s\" is not KEY=VALUE, or one too many\n", text);
        return false;
    case OPT_JSON:
        c->json = true;
        return true;
    default:
        break;
    }
    c->geometry_given = true;
    switch (id) {
    case OPT_LAYERS:
        return parse_u32("--layers", text, 384, &g->n_layers);
    case OPT_KV_HEADS:
        return parse_u32("--kv-heads", text, 1024, &g->n_kv_heads);
    case OPT_HEAD_DIM:
        return parse_u32("--head-dim", text, 4096, &g->head_dim);
    case OPT_DTYPE_BYTES:
        return parse_u32("--dtype-bytes", text, 8, &g->dtype_bytes);
    case OPT_TOKENS:
        return parse_u32("--tokens-per-chunk", text, 65536, &g->tokens_per_chunk);
    default: /* getopt has said what is wrong */
        fprintf(stderr, "Try 'kvbench %s --help'.\n", c->name);
        return false;
    }
}

/* The chunk that the options describe. */
static bool settle_geometry(struct command *c)
{
    struct kvt_geometry *g = &c->geometry;
    if (c->geometry_given && g->chunk_bytes != 0) {
        fprintf(stderr, "kvbench: --chunk-bytes and a model geometry: give one of them\n");
        return false;
    }
    if (c->geometry_given) {
        /* What is not said is as in Llama 3 8B. */
        g->n_layers = g->n_layers != 0 ? g->n_layers : 32;
        g->n_kv_heads = g->n_kv_heads != 0 ? g->n_kv_heads : 8;
        g->head_dim = g->head_dim != 0 ? g->head_dim : 128;
        g->dtype_bytes = g->dtype_bytes != 0 ? g->dtype_bytes : 2;
        g->tokens_per_chunk = g->tokens_per_chunk != 0 ? g->tokens_per_chunk : 512;
        double bytes =
            2.0 * g->n_layers * g->n_kv_heads * g->head_dim * g->dtype_bytes * g->tokens_per_chunk;
        if (bytes > (double)CHUNK_BYTES_MAX) {
            fprintf(stderr,
                    "kvbench: a chunk of this geometry has %.0f MiB; 256 MiB is the most: lower "
                    "--tokens-per-chunk\n",
                    bytes / (double)KVT_MIB);
            return false;
        }
        g->chunk_bytes = (uint64_t)bytes;
    }
    return true;
}

/*
 * Host memory for as nearly n_blocks slots as whole slabs allow: by the slab's size, and where the
 * chunk's size is free, by a slot of a few pages.
 */
static void settle_capacity(struct command *c, uint64_t n_blocks)
{
    uint64_t given = c->geometry.chunk_bytes;
    uint64_t best_off = UINT64_MAX;
    uint64_t pages_from = given != 0 ? (given + KVT_PAGE_BYTES - 1) / KVT_PAGE_BYTES : 1;
    uint64_t pages_to = given != 0 ? pages_from : SHARE_PAGES_MAX;
    for (uint64_t pages = pages_from; pages <= pages_to; pages++) {
        /* A slab holds a slot at least; slabs much larger than that only make steps coarser. */
        uint64_t units_from = (pages * KVT_PAGE_BYTES + SLAB_UNIT - 1) / SLAB_UNIT;
        for (uint64_t units = units_from; units < units_from + 16; units++) {
            uint64_t n_slots = units * SLAB_UNIT / (pages * KVT_PAGE_BYTES);
            uint64_t n_slabs = KVT_MAX((n_blocks + n_slots / 2) / n_slots, UINT64_C(1));
            uint64_t n_got = n_slabs * n_slots;
            uint64_t off = n_got > n_blocks ? n_got - n_blocks : n_blocks - n_got;
            if (off >= best_off)
                continue;
            best_off = off;
            c->slab_bytes = units * SLAB_UNIT;
            c->arena_bytes = n_slabs * c->slab_bytes;
            if (given == 0)
                c->geometry.chunk_bytes = pages * KVT_PAGE_BYTES;
        }
        if (best_off * 400 <= n_blocks) /* within 0.25 %: more pages would only cost time */
            break;
    }
    c->nvme_bytes = 0;
}

/* Blocks that all tiers together have room for: the capacity of the yardsticks. */
static uint64_t capacity_blocks(const struct command *c, uint64_t arena_bytes, uint64_t nvme_bytes)
{
    uint64_t slot = kvt_align_up(c->geometry.chunk_bytes, KVT_PAGE_BYTES);
    uint64_t n_host = arena_bytes / slot;
    if (c->slab_bytes != 0)
        n_host = arena_bytes / c->slab_bytes * (c->slab_bytes / slot);
    return n_host + nvme_bytes / (slot + KVT_PAGE_BYTES);
}

static enum kvt_status load_trace(const struct command *c, struct kvt_trace **trace_p,
                                  struct kvt_error *err)
{
    if (c->trace_path != NULL)
        return kvt_trace_read(c->trace_path, c->max_requests, trace_p, err);
    struct kvt_trace *trace = kvt_trace_create();
    if (trace == NULL) {
        kvt_error_set(err, KVT_ERR_NOMEM, "%s: out of memory", c->name);
        return KVT_ERR_NOMEM;
    }
    size_t n = c->max_requests != 0 ? c->max_requests : WORKLOAD_REQUESTS;
    enum kvt_status status = c->workload->make(trace, n, c->seed, err);
    if (status != KVT_OK) {
        kvt_trace_destroy(trace);
        return status;
    }
    *trace_p = trace;
    return KVT_OK;
}

static enum kvt_status start_agent(struct command *c, struct kvt_agent **agent_p,
                                   struct kvt_error *err)
{
    struct kvt_agent_options *o = &c->agent;
    o->dir = c->dir;
    o->nvme_bytes = c->nvme_bytes;
    /* One seed for all: the same command makes the same choices again. */
    bool fits = kvt_agent_set(o, "host.bytes=%" PRIu64, c->arena_bytes) &&
                kvt_agent_set(o, "index.seed=%" PRIu64, c->seed % UINT32_MAX + 1);
    if (c->slab_bytes != 0)
        fits = fits && kvt_agent_set(o, "host.slab_bytes=%" PRIu64, c->slab_bytes);
    if (c->policy != NULL)
        fits = fits && kvt_agent_set(o, "host.policy=%s", c->policy) &&
               kvt_agent_set(o, "nvme.policy=%s", c->policy);
    if (!fits)
        return kvt_error_set(err, KVT_ERR_INVAL, "agent: too many settings");
    return kvt_agent_start(o, agent_p, err);
}

struct yardsticks {
    double ideal, optimum, lru;
};

static enum kvt_status measure_yardsticks(const struct kvt_trace *trace, uint64_t n_blocks,
                                          struct yardsticks *y, struct kvt_error *err)
{
    uint64_t n_optimum = 0, n_lru = 0;
    enum kvt_status status = KVT_OK;
    if (n_blocks > 0)
        status = kvt_offline_optimum_hits(trace, n_blocks, &n_optimum);
    if (status == KVT_OK && n_blocks > 0)
        status = kvt_offline_lru_hits(trace, n_blocks, &n_lru);
    if (status != KVT_OK)
        return kvt_error_set(err, status, "yardsticks: %s", kvt_status_str(status));
    y->ideal = kvt_offline_ratio(trace, kvt_offline_ideal_hits(trace));
    y->optimum = kvt_offline_ratio(trace, n_optimum);
    y->lru = kvt_offline_ratio(trace, n_lru);
    return KVT_OK;
}

/* --- results --------------------------------------------------------------------------------- */

struct report {
    const struct command *c;
    struct kvt_trace *trace; /* owned */
    struct kvt_replay_result r;
    struct yardsticks y;
    struct kvt_counters counters; /* of the agent, at the end */
    uint64_t capacity;
};

static double ratio(uint64_t part, uint64_t whole)
{
    return whole > 0 ? (double)part / (double)whole : 0.0;
}

static double per_second(uint64_t n, double seconds)
{
    return seconds > 0 ? (double)n / seconds : 0.0;
}

static bool print_json(const struct report *p)
{
    const struct kvt_replay_result *r = &p->r;
    uint64_t chunk = p->c->geometry.chunk_bytes;
    json_t *o = json_pack("{s:s, s:I, s:f, s:f, s:f, s:f, s:I, s:I, s:I, s:I}", "command",
                          p->c->name, "requests", (json_int_t)r->n_requests, "hit_ratio",
                          ratio(r->n_hits_host + r->n_hits_nvme, r->n_blocks), "ideal_hit_ratio",
                          p->y.ideal, "optimum_hit_ratio", p->y.optimum, "lru_hit_ratio", p->y.lru,
                          "bytes_loaded", (json_int_t)r->bytes_loaded, "bytes_verified",
                          (json_int_t)r->bytes_verified, "bytes_wrong", (json_int_t)r->bytes_wrong,
                          "errors", (json_int_t)r->n_errors);
    json_t *more = json_pack(
        "{s:f, s:f, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:f, "
        "s:f, s:I, s:I}",
        "hit_ratio_host", ratio(r->n_hits_host, r->n_blocks), "hit_ratio_nvme",
        ratio(r->n_hits_nvme, r->n_blocks), "hits_host", (json_int_t)r->n_hits_host, "hits_nvme",
        (json_int_t)r->n_hits_nvme, "blocks", (json_int_t)r->n_blocks, "distinct_blocks",
        (json_int_t)p->trace->n_distinct, "capacity_blocks", (json_int_t)p->capacity,
        "stored_chunks", (json_int_t)r->n_stored, "existing_chunks", (json_int_t)r->n_exists,
        "dropped_chunks", (json_int_t)r->n_dropped, "seconds", r->seconds, "requests_per_s",
        per_second(r->n_requests, r->seconds), "load_bytes_per_s",
        per_second(r->bytes_loaded, r->seconds), "store_bytes_per_s",
        per_second(r->n_stored * chunk, r->seconds), "lookup_p50_us", r->lookup_p50_us,
        "lookup_p99_us", r->lookup_p99_us, "load_p50_us", r->load_p50_us, "load_p99_us",
        r->load_p99_us, "chunk_bytes", (json_int_t)chunk, "clients", (json_int_t)p->c->n_clients);
    bool ok = o != NULL && more != NULL && json_object_update(o, more) == 0;
    if (ok) {
        json_object_set_new(o, "policy",
                            json_string(p->c->policy != NULL ? p->c->policy : "default"));
        json_t *agent = json_object();
        for (uint32_t i = 0; i < p->counters.n && kvt_stat_name(i) != NULL; i++)
            json_object_set_new(agent, kvt_stat_name(i),
                                json_integer((json_int_t)p->counters.values[i]));
        json_object_set_new(o, "agent", agent);
        ok = json_dumpf(o, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(6)) == 0;
        putchar('\n');
    }
    json_decref(more);
    json_decref(o);
    return ok;
}

static void print_table(const struct report *p)
{
    const struct kvt_replay_result *r = &p->r;
    uint64_t chunk = p->c->geometry.chunk_bytes;
    char text[KVT_UNITS_TEXT_BYTES];
    kvt_bytes_format(chunk, text);
    printf("requests            %12" PRIu64 "   (%.0f per second, %.1f s, %u clients)\n",
           r->n_requests, per_second(r->n_requests, r->seconds), r->seconds,
           (unsigned)p->c->n_clients);
    printf("prompt blocks       %12" PRIu64 "   (of %s; %" PRIu32 " distinct, room for %" PRIu64
           ")\n",
           r->n_blocks, text, p->trace->n_distinct, p->capacity);
    printf("hit ratio           %12.4f   (host %.4f, nvme %.4f)\n",
           ratio(r->n_hits_host + r->n_hits_nvme, r->n_blocks), ratio(r->n_hits_host, r->n_blocks),
           ratio(r->n_hits_nvme, r->n_blocks));
    printf("  ideal             %12.4f   (unlimited room)\n", p->y.ideal);
    printf("  offline optimum   %12.4f   (same room, knowing the future)\n", p->y.optimum);
    printf("  offline lru       %12.4f   (same room)\n", p->y.lru);
    printf("loaded              %12.3f   GB, %.2f GB/s\n", (double)r->bytes_loaded / 1e9,
           per_second(r->bytes_loaded, r->seconds) / 1e9);
    printf("stored              %12.3f   GB, %.2f GB/s\n", (double)(r->n_stored * chunk) / 1e9,
           per_second(r->n_stored * chunk, r->seconds) / 1e9);
    printf("dropped stores      %12" PRIu64 "   chunks\n", r->n_dropped);
    printf("lookup              %12.1f   us median, %.1f us p99\n", r->lookup_p50_us,
           r->lookup_p99_us);
    printf("load and compare    %12.1f   us median, %.1f us p99\n", r->load_p50_us, r->load_p99_us);
    printf("bytes compared      %12" PRIu64 "\n", r->bytes_verified);
    printf("bytes wrong         %12" PRIu64 "\n", r->bytes_wrong);
    printf("errors              %12" PRIu64 "\n", r->n_errors);
}

/* Counters before (with the arena in place) or after the run. */
static enum kvt_status ask_agent(const struct command *c, bool wait_arena,
                                 struct kvt_counters *counters, struct kvt_error *err)
{
    kvt_session *session;
    kvtier_options o = {.size = sizeof(o),
                        .socket_path = c->socket,
                        .client_name = "kvbench",
                        .spin_us = UINT32_MAX};
    if (kvt_open(&o, &session) != KVTIER_OK)
        return kvt_error_set(err, KVT_ERR_NOMEM, "replay: out of memory");
    enum kvt_status status = KVT_OK;
    char last[160] = "";
    int connected = kvt_connect_wait(session, 10000);
    kvt_last_error(session, last, sizeof(last));
    if (connected != KVTIER_OK)
        status = kvt_error_set(err, KVT_ERR_UNREACH, "replay: no agent: %s; %s",
                               kvt_strerror(connected), last);
    else if (wait_arena && !kvt_counters_wait_arena(session, c->arena_bytes))
        status = kvt_error_set(err, KVT_ERR_TIMEOUT,
                               "replay: the agent's arena did not reach %" PRIu64 " bytes",
                               c->arena_bytes);
    else if (!kvt_counters_read_settled(session, counters))
        status = kvt_error_set(err, KVT_ERR_UNREACH, "replay: the agent does not answer");
    kvt_close(session);
    return status;
}

static enum kvt_status run(struct command *c, struct report *report, struct kvt_error *err)
{
    struct kvt_trace *trace = NULL;
    enum kvt_status status = load_trace(c, &trace, err);
    if (status != KVT_OK)
        return status;
    report->trace = trace;
    if (trace->n_rechained > 0)
        fprintf(stderr,
                "kvbench: %" PRIu64 " requests name a block behind another one than before: hits "
                "are still checked byte by byte, but ratios mean less\n",
                trace->n_rechained);
    if (c->capacity_share > 0)
        settle_capacity(
            c, KVT_MAX((uint64_t)(c->capacity_share * trace->n_distinct + 0.5), UINT64_C(1)));
    if (c->geometry.chunk_bytes == 0)
        c->geometry.chunk_bytes = DEFAULT_CHUNK;
    kvt_geometry_complete(&c->geometry);

    struct kvt_agent *agent = NULL;
    if (c->socket == NULL) {
        status = start_agent(c, &agent, err);
        if (status != KVT_OK)
            return status;
        c->socket = kvt_agent_socket(agent);
    }
    /* A measured capacity must be there from the start. */
    status = ask_agent(c, agent != NULL && c->capacity_share > 0, &report->counters, err);
    if (status == KVT_OK && agent == NULL) {
        c->slab_bytes = 0;
        report->capacity =
            capacity_blocks(c, kvt_counters_get(&report->counters, "host_capacity_bytes"),
                            kvt_counters_get(&report->counters, "nvme_capacity_bytes"));
    } else {
        report->capacity = capacity_blocks(c, c->arena_bytes, c->nvme_bytes);
    }
    if (status == KVT_OK)
        status = measure_yardsticks(trace, report->capacity, &report->y, err);
    if (status == KVT_OK) {
        struct kvt_replay_config config = {.socket = c->socket,
                                           .trace = trace,
                                           .geometry = c->geometry,
                                           .seed = c->seed,
                                           .n_clients = (unsigned)c->n_clients,
                                           .depth = (unsigned)c->depth,
                                           .n_copy_threads = (unsigned)c->n_copy_threads,
                                           .time_scale = c->time_scale,
                                           .store_wait_ns = c->store_wait_ns};
        status = kvt_replay_run(&config, &report->r, err);
    }
    if (status == KVT_OK && !kvt_interrupted() &&
        ask_agent(c, false, &report->counters, err) != KVT_OK)
        report->counters.n = 0; /* it went away: the run's errors say so */
    kvt_agent_stop(agent);
    return status;
}

int kvt_command_replay(int argc, char **argv)
{
    struct command c = {.name = argv[0],
                        .arena_bytes = UINT64_C(1) << 30,
                        .nvme_bytes = UINT64_C(4) << 30,
                        .seed = 1,
                        .n_clients = 1,
                        .n_copy_threads = 1,
                        .store_wait_ns = KVT_NS_PER_S,
                        .workload = kvt_workload_find(argv[0])};
    int id;
    optind = 1;
    while ((id = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (id == OPT_HELP) {
            help(&c);
            return KVT_EXIT_OK;
        }
        if (!parse_option(&c, id, optarg))
            return KVT_EXIT_USAGE;
    }
    if (c.workload == NULL && optind == argc - 1)
        c.trace_path = argv[optind++];
    if (optind != argc || (c.workload == NULL && c.trace_path == NULL)) {
        fprintf(stderr, "kvbench: %s takes %s. Try 'kvbench %s --help'.\n", c.name,
                c.workload == NULL ? "one trace file" : "options only", c.name);
        return KVT_EXIT_USAGE;
    }
    if (c.socket != NULL && (c.capacity_share > 0 || c.policy != NULL || c.agent.n_sets > 0)) {
        fprintf(stderr, "kvbench: --capacity-share, --policy and --set are for an agent that is "
                        "started here, not for --socket\n");
        return KVT_EXIT_USAGE;
    }
    if (!settle_geometry(&c))
        return KVT_EXIT_USAGE;
    if (c.depth == 0)
        c.depth = c.capacity_share > 0 ? 1 : 4;

    struct report report = {.c = &c};
    struct kvt_error err;
    enum kvt_status status = run(&c, &report, &err);
    int code = KVT_EXIT_OK;
    if (status != KVT_OK) {
        fprintf(stderr, "kvbench: %s\n", err.msg);
        code = kvt_interrupted() ? KVT_EXIT_INTERRUPTED : KVT_EXIT_FAILED;
    } else {
        if (c.json && !print_json(&report))
            code = KVT_EXIT_FAILED;
        if (!c.json)
            print_table(&report);
        if (report.r.n_errors > 0)
            fprintf(stderr, "kvbench: first error: %s\n", report.r.first_error);
        if (report.r.n_errors > 0 || report.r.bytes_wrong > 0)
            code = KVT_EXIT_FAILED;
        if (kvt_interrupted())
            code = KVT_EXIT_INTERRUPTED;
    }
    kvt_trace_destroy(report.trace);
    return code;
}
