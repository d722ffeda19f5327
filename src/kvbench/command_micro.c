/* SPDX-License-Identifier: Apache-2.0 */
/* kvbench micro: each part of the data path beside its physical limit, in one run. */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "counters.h"
#include "kvt/interrupt.h"
#include "kvt/units.h"
#include "kvt/util.h"
#include "micro.h"
#include "commands.h"
#include "kvt/progress.h"
#include "samples.h"

#define READY_ARENA_BYTES (UINT64_C(16) << 30)

enum case_id {
    HOST_STORE,
    HOST_LOAD,
    LOOKUP,
    IDLE_CPU,
    NVME_WRITE,
    NVME_READ,
    LOOKUP_UNDER_LOAD,
    READY,
    N_CASES,
};

static const char *const case_names[N_CASES] = {
    "host_store", "host_load",         "lookup",      "idle_cpu", "nvme_write",
    "nvme_read",  "lookup_under_load", "ready_16gib",
};

struct command {
    bool cases[N_CASES];
    uint64_t objects[KVT_OPTION_LIST_MAX];
    unsigned n_objects;
    uint64_t n_chunks[KVT_OPTION_LIST_MAX];
    unsigned n_n_chunks;
    const char *socket, *dir;
    uint64_t arena_bytes, nvme_arena_bytes, nvme_bytes;
    double seconds;
    bool json;
    struct kvt_agent_options agent;
    struct kvt_micro micro;
    struct kvt_progress progress;
    unsigned n_steps_done;
    unsigned n_failed;
};

static void help(void)
{
    puts(
        "Usage: kvbench micro [OPTION]...\n"
        "Measure each part of the data path beside its physical limit, in one run: ours and the\n"
        "reference take turns in short rounds; the ratio is the median of the rounds' ratios.\n"
        "\n"
        "  host_store, host_load    beside memcpy of the same pieces by one thread\n"
        "  nvme_write, nvme_read    durable stores, loads of what is on NVMe alone, beside raw\n"
        "                           io_uring O_DIRECT of the same size on the same blocks, and\n"
        "                           beside that while another thread copies as many bytes\n"
        "  lookup                   of a 512-chunk prefix, beside an empty message and its answer\n"
        "  lookup_under_load        while loads keep the disk busy\n"
        "  idle_cpu                 per cent of a core that an idle agent takes\n"
        "  ready_16gib              seconds until an agent with a 16 GiB arena is ready\n"
        "\n"
        "  --only NAME[,NAME]...    these cases alone\n"
        "  --object-bytes SIZE,...  of host and NVMe cases (256KiB,1536KiB,6MiB,32MiB)\n"
        "  --chunks-in-index N,...  of lookup (10000,100000)\n"
        "  --seconds F              to spend on each case and size, at least (1)\n"
        "  --arena-bytes SIZE       host memory of the agent (1GiB; 512MiB for NVMe cases)\n"
        "  --nvme-bytes SIZE        store file of the agent for NVMe cases (4GiB)\n"
        "  --socket PATH            use the agent there instead of starting one\n"
        "  --dir DIR                where temporary files are made (/var/tmp)\n"
        "  --set KEY=VALUE          more configuration for the agents that are started\n"
        "  --json                   one JSON object on stdout\n"
        "  --help                   this text\n"
        "\n"
        "Exit codes: 0 measured; 1 wrong bytes, or a case failed; 2 usage; 130 interrupted.");
}

enum option_id {
    OPT_ONLY = 256,
    OPT_OBJECTS,
    OPT_CHUNKS,
    OPT_SECONDS,
    OPT_ARENA,
    OPT_NVME,
    OPT_SOCKET,
    OPT_DIR,
    OPT_SET,
    OPT_JSON,
    OPT_HELP,
};

static const struct option options[] = {
    {"only", required_argument, NULL, OPT_ONLY},
    {"object-bytes", required_argument, NULL, OPT_OBJECTS},
    {"chunks-in-index", required_argument, NULL, OPT_CHUNKS},
    {"seconds", required_argument, NULL, OPT_SECONDS},
    {"arena-bytes", required_argument, NULL, OPT_ARENA},
    {"nvme-bytes", required_argument, NULL, OPT_NVME},
    {"socket", required_argument, NULL, OPT_SOCKET},
    {"dir", required_argument, NULL, OPT_DIR},
    {"set", required_argument, NULL, OPT_SET},
    {"json", no_argument, NULL, OPT_JSON},
    {"help", no_argument, NULL, OPT_HELP},
    {NULL, 0, NULL, 0},
};

static bool parse_only(struct command *c, const char *text)
{
    memset(c->cases, 0, sizeof(c->cases));
    for (;;) {
        size_t length = strcspn(text, ",");
        unsigned i = 0;
        while (i < N_CASES &&
               (strlen(case_names[i]) != length || strncmp(text, case_names[i], length) != 0))
            i++;
        if (i == N_CASES) {
            fprintf(stderr, "kvbench: --only: no case of the name \"%.*s\"\n", (int)length, text);
            return false;
        }
        c->cases[i] = true;
        if (text[length] == '\0')
            return true;
        text += length + 1;
    }
}

static bool parse_option(struct command *c, int id, const char *text)
{
    switch (id) {
    case OPT_ONLY:
        return parse_only(c, text);
    case OPT_OBJECTS:
        return kvt_option_bytes_list("--object-bytes", text, KVT_PAGE_BYTES, UINT64_C(256) << 20,
                                     c->objects, &c->n_objects);
    case OPT_CHUNKS:
        return kvt_option_bytes_list("--chunks-in-index", text, 1, UINT64_C(1) << 30, c->n_chunks,
                                     &c->n_n_chunks);
    case OPT_SECONDS:
        return kvt_option_real("--seconds", text, 0.01, 3600, &c->seconds);
    case OPT_ARENA:
        if (!kvt_option_bytes("--arena-bytes", text, UINT64_C(128) << 20, UINT64_C(16) << 40,
                              &c->arena_bytes))
            return false;
        c->nvme_arena_bytes = c->arena_bytes;
        return true;
    case OPT_NVME:
        return kvt_option_bytes("--nvme-bytes", text, UINT64_C(256) << 20, UINT64_C(1) << 50,
                                &c->nvme_bytes);
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
    default: /* getopt has said what is wrong */
        fputs("Try 'kvbench micro --help'.\n", stderr);
        return false;
    }
}

void kvt_rounds_report(const struct kvt_rounds *rounds, struct kvt_micro *micro, const char *name,
                       uint64_t object_bytes, uint64_t round_bytes, const char *reference)
{
    float ours[KVT_ROUNDS_MAX], theirs[KVT_ROUNDS_MAX], ratios[KVT_ROUNDS_MAX];
    float copying[KVT_ROUNDS_MAX], ratios_copying[KVT_ROUNDS_MAX];
    bool has_copying = rounds->n > 0 && rounds->copying_seconds[0] > 0;
    for (unsigned i = 0; i < rounds->n; i++) {
        ours[i] = (float)round_bytes / rounds->seconds[i];
        theirs[i] = (float)round_bytes / rounds->reference_seconds[i];
        ratios[i] = ours[i] / theirs[i];
        if (has_copying) {
            copying[i] = (float)round_bytes / rounds->copying_seconds[i];
            ratios_copying[i] = ours[i] / copying[i];
        }
    }
    json_t *result =
        json_pack("{s:s, s:I, s:f, s:s, s:f, s:f, s:f, s:f, s:i}", "name", name, "object_bytes",
                  (json_int_t)object_bytes, "bytes_per_s",
                  kvt_samples_quantile(ours, rounds->n, 0.5), "reference", reference,
                  "reference_bytes_per_s", kvt_samples_quantile(theirs, rounds->n, 0.5), "ratio",
                  kvt_samples_quantile(ratios, rounds->n, 0.5), "ratio_p10",
                  kvt_samples_quantile(ratios, rounds->n, 0.1), "ratio_p90",
                  kvt_samples_quantile(ratios, rounds->n, 0.9), "rounds", (int)rounds->n);
    if (has_copying) {
        json_object_set_new(result, "reference_copying_bytes_per_s",
                            json_real(kvt_samples_quantile(copying, rounds->n, 0.5)));
        json_object_set_new(result, "ratio_copying",
                            json_real(kvt_samples_quantile(ratios_copying, rounds->n, 0.5)));
    }
    json_array_append_new(micro->results, result);
}

/* --- running --------------------------------------------------------------------------------- */

/* After each step: what came of it, and how far we are. */
static void step_done(struct command *c, const char *name, enum kvt_status status,
                      const struct kvt_error *err)
{
    c->n_steps_done++;
    kvt_progress_show(&c->progress, c->n_steps_done, name);
    if (status == KVT_OK || kvt_interrupted())
        return;
    fprintf(stderr, "%skvbench: %s: %s%s\n", c->progress.terminal ? "\r\033[K" : "", name, err->msg,
            status == KVT_ERR_NOTSUP ? " (left out)" : "");
    if (status != KVT_ERR_NOTSUP)
        c->n_failed++;
}

/* An agent for the next cases, unless one was named. False: there is none. */
static bool agent_begin(struct command *c, const char *what, uint64_t arena_bytes,
                        uint64_t nvme_bytes)
{
    struct kvt_error err;
    enum kvt_status status = KVT_OK;
    struct kvt_agent_options o = c->agent;
    c->micro.arena_bytes = arena_bytes;
    c->micro.nvme_bytes = nvme_bytes;
    if (c->socket == NULL) {
        o.dir = c->dir;
        o.nvme_bytes = nvme_bytes;
        if (!kvt_agent_set(&o, "host.bytes=%" PRIu64, arena_bytes))
            status = kvt_error_set(&err, KVT_ERR_INVAL, "agent: too many settings");
        if (status == KVT_OK)
            status = kvt_agent_start(&o, &c->micro.agent, &err);
        if (status != KVT_OK) {
            step_done(c, what, status, &err);
            return false;
        }
    }
    c->micro.socket = c->socket != NULL ? c->socket : kvt_agent_socket(c->micro.agent);
    /* What the agent really has; and all of it, before anything is measured. */
    kvt_session *session;
    kvtier_options options_open = {.size = sizeof(options_open),
                                   .socket_path = c->micro.socket,
                                   .client_name = "kvbench",
                                   .spin_us = UINT32_MAX};
    struct kvt_counters counters;
    bool ok = kvt_open(&options_open, &session) == KVTIER_OK;
    if (!ok)
        return false;
    ok = kvt_connect_wait(session, 10000) == KVTIER_OK &&
         (c->socket != NULL || kvt_counters_wait_arena(session, arena_bytes)) &&
         kvt_counters_read(session, &counters);
    kvt_close(session);
    if (!ok) {
        status = kvt_error_set(&err, KVT_ERR_UNREACH, "no agent answers at %s", c->micro.socket);
        step_done(c, what, status, &err);
        return false;
    }
    c->micro.arena_bytes = kvt_counters_get(&counters, "host_capacity_bytes");
    c->micro.nvme_bytes = kvt_counters_get(&counters, "nvme_capacity_bytes");
    return true;
}

static void agent_end(struct command *c)
{
    kvt_agent_stop(c->micro.agent);
    c->micro.agent = NULL;
}

static void run_quiet_cases(struct command *c)
{
    struct kvt_error err;
    if (!c->cases[LOOKUP] && !c->cases[IDLE_CPU])
        return;
    if (agent_begin(c, "lookup", c->arena_bytes, 0)) {
        if (c->cases[IDLE_CPU])
            step_done(c, "idle_cpu", kvt_micro_idle_cpu(&c->micro, &err), &err);
        for (unsigned i = 0; c->cases[LOOKUP] && i < c->n_n_chunks && !kvt_interrupted(); i++)
            step_done(c, "lookup", kvt_micro_lookup(&c->micro, c->n_chunks[i], &err), &err);
    }
    agent_end(c);
}

/* Each size has an agent to itself: chunks of another size would hold a share of the room. */
static void run_host_cases(struct command *c)
{
    struct kvt_error err;
    if (!c->cases[HOST_STORE] && !c->cases[HOST_LOAD])
        return;
    for (unsigned i = 0; i < c->n_objects && !kvt_interrupted(); i++) {
        if (agent_begin(c, "host", c->arena_bytes, 0))
            step_done(c, "host",
                      kvt_micro_host(&c->micro, c->cases[HOST_STORE], c->cases[HOST_LOAD],
                                     c->objects[i], &err),
                      &err);
        agent_end(c);
    }
}

static void run_nvme_cases(struct command *c)
{
    struct kvt_error err;
    for (unsigned i = 0; i < c->n_objects && !kvt_interrupted(); i++) {
        if (!c->cases[NVME_WRITE] && !c->cases[NVME_READ])
            break;
        if (agent_begin(c, "nvme", c->nvme_arena_bytes, c->nvme_bytes))
            step_done(c, "nvme",
                      kvt_micro_nvme(&c->micro, c->cases[NVME_WRITE], c->cases[NVME_READ],
                                     c->objects[i], &err),
                      &err);
        agent_end(c);
    }
    if (c->cases[LOOKUP_UNDER_LOAD] && !kvt_interrupted()) {
        if (agent_begin(c, "lookup_under_load", c->nvme_arena_bytes, c->nvme_bytes))
            step_done(c, "lookup_under_load", kvt_micro_lookup_under_load(&c->micro, &err), &err);
        agent_end(c);
    }
}

/* --- output ---------------------------------------------------------------------------------- */

static void print_table(const json_t *results)
{
    size_t i;
    json_t *r;
    json_array_foreach(results, i, r)
    {
        const char *name = json_string_value(json_object_get(r, "name"));
        if (json_object_get(r, "ratio") != NULL) {
            char size[KVT_UNITS_TEXT_BYTES];
            kvt_bytes_format((uint64_t)json_integer_value(json_object_get(r, "object_bytes")),
                             size);
            printf("%-12s %8s  %7.2f GB/s  of %7.2f  ratio %.3f", name, size,
                   json_real_value(json_object_get(r, "bytes_per_s")) / 1e9,
                   json_real_value(json_object_get(r, "reference_bytes_per_s")) / 1e9,
                   json_real_value(json_object_get(r, "ratio")));
            const json_t *copying = json_object_get(r, "ratio_copying");
            if (copying != NULL)
                printf(", %.3f beside a copy", json_real_value(copying));
            printf("  (%s)\n", json_string_value(json_object_get(r, "reference")));
            continue;
        }
        printf("%s", name);
        const char *key;
        json_t *value;
        json_object_foreach(r, key, value)
        {
            if (json_is_integer(value))
                printf("  %s %" JSON_INTEGER_FORMAT, key, json_integer_value(value));
            else if (json_is_real(value))
                printf("  %s %.3g", key, json_real_value(value));
        }
        putchar('\n');
    }
}

int kvt_command_micro(int argc, char **argv)
{
    struct command c = {
        .objects = {UINT64_C(256) << 10, UINT64_C(1536) << 10, UINT64_C(6) << 20,
                    UINT64_C(32) << 20},
        .n_objects = 4,
        .n_chunks = {10000, 100000},
        .n_n_chunks = 2,
        .arena_bytes = UINT64_C(1) << 30,
        .nvme_arena_bytes = UINT64_C(512) << 20,
        .nvme_bytes =
            UINT64_C(4) << 30, /* many times what is being written: as with a real store */
        .dir = "/var/tmp",
        .seconds = 1.0,
    };
    for (unsigned i = 0; i < N_CASES; i++)
        c.cases[i] = true;
    int id;
    optind = 1;
    while ((id = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (id == OPT_HELP) {
            help();
            return KVT_EXIT_OK;
        }
        if (!parse_option(&c, id, optarg))
            return KVT_EXIT_USAGE;
    }
    if (optind != argc) {
        fputs("kvbench: micro takes options only. Try 'kvbench micro --help'.\n", stderr);
        return KVT_EXIT_USAGE;
    }
    c.micro.dir = c.dir;
    c.micro.seconds = c.seconds;
    c.micro.seed =
        kvt_now_ns() ^ (uint64_t)getpid(); /* an agent may hold an earlier run's chunks */
    c.micro.results = json_array();
    unsigned n_steps = c.cases[IDLE_CPU] + c.cases[READY] + c.cases[LOOKUP_UNDER_LOAD] +
                       (c.cases[LOOKUP] ? c.n_n_chunks : 0) +
                       (c.cases[HOST_STORE] || c.cases[HOST_LOAD] ? c.n_objects : 0) +
                       (c.cases[NVME_WRITE] || c.cases[NVME_READ] ? c.n_objects : 0);
    kvt_progress_start(&c.progress, "micro", n_steps);
    run_quiet_cases(&c);
    if (!kvt_interrupted())
        run_host_cases(&c);
    if (!kvt_interrupted())
        run_nvme_cases(&c);
    if (c.cases[READY] && !kvt_interrupted()) {
        struct kvt_error err;
        step_done(&c, "ready_16gib", kvt_micro_ready(&c.micro, READY_ARENA_BYTES, &err), &err);
    }
    kvt_progress_end(&c.progress, c.n_steps_done, "");
    if (c.json) {
        json_t *o =
            json_pack("{s:s, s:O, s:I, s:i}", "command", "micro", "results", c.micro.results,
                      "bytes_wrong", (json_int_t)c.micro.bytes_wrong, "failed", (int)c.n_failed);
        if (o == NULL || json_dumpf(o, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(6)) != 0)
            c.n_failed++;
        putchar('\n');
        json_decref(o);
    } else {
        print_table(c.micro.results);
    }
    json_decref(c.micro.results);
    if (c.micro.bytes_wrong > 0)
        fprintf(stderr, "kvbench: %" PRIu64 " bytes were wrong\n", c.micro.bytes_wrong);
    if (kvt_interrupted())
        return KVT_EXIT_INTERRUPTED;
    return c.n_failed > 0 || c.micro.bytes_wrong > 0 ? KVT_EXIT_FAILED : KVT_EXIT_OK;
}
