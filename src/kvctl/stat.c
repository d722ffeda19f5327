/* SPDX-License-Identifier: Apache-2.0 */
/* kvctl stat: counters, and with -w their rates. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <time.h>

#include "kvt/interrupt.h"
#include "kvt/units.h"
#include "kvt/util.h"
#include "message.h"
#include "rates.h"

#define HEADER_EVERY 20 /* lines */

static const struct kvctl_column rate_columns[] = {
    {"LOOKUPS/s", "lookups_per_s"},
    {"HIT", "hit_ratio"},
    {"HOST/s", "load_host_per_s"},
    {"NVME/s", "load_nvme_per_s"},
    {"MISS/s", "load_miss_per_s"},
    {"STORED", "stored_bytes_per_s"},
    {"READ", "nvme_read_bytes_per_s"},
    {"WRITTEN", "nvme_write_bytes_per_s"},
    {"EVICT-H/s", "evict_host_per_s"},
    {"EVICT-N/s", "evict_nvme_per_s"},
    {"SESSIONS", "sessions"},
    {"LEASES", "leases", .wide = true},
    {"OPS", "ops", .wide = true},
    {"REFUSED/s", "refused_per_s", .wide = true},
    {NULL},
};

/* A line per sample, right away: who pipes this wants it now. */
static bool rates_print(struct kvctl *k, const json_t *rates, uint64_t n)
{
    struct kvctl_yaml *yaml;
    char text[KVCTL_TEXT_BYTES];
    switch (k->style.format) {
    case KVCTL_JSON:
        (void)json_dumpf(rates, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9));
        putchar('\n');
        break;
    case KVCTL_YAML:
        puts("---");
        yaml = kvctl_yaml_begin(NULL);
        if (yaml != NULL) {
            kvctl_yaml_add(yaml, rates);
            kvctl_yaml_end(yaml);
        }
        break;
    default:
        for (int header = n % HEADER_EVERY == 0; header >= 0; header--) {
            for (const struct kvctl_column *c = rate_columns; c->title != NULL; c++) {
                if (c->wide && k->style.format != KVCTL_WIDE)
                    continue;
                kvctl_text(c->path, kvctl_field(rates, c->path), text);
                printf("%s%11s%s", header ? kvctl_color(&k->style, KVCTL_BOLD) : "",
                       header ? c->title : text, header ? kvctl_color(&k->style, KVCTL_PLAIN) : "");
            }
            putchar('\n');
        }
        break;
    }
    return fflush(stdout) == 0;
}

static enum kvctl_exit stat_watch(struct kvctl *k)
{
    struct kvctl_sample before = {.stats = NULL}, now = {.stats = NULL};
    uint64_t interval_ns, count;
    enum kvctl_exit code = kvctl_interval(k, &interval_ns, &count);
    if (code != KVCTL_OK)
        return code;
    kvt_interrupt_setup();
    code = kvctl_sample_take(k, &before);
    for (uint64_t n = 0; code == KVCTL_OK && (count == 0 || n < count); n++) {
        struct timespec wait = {.tv_sec = (time_t)(interval_ns / KVT_NS_PER_S),
                                .tv_nsec = (long)(interval_ns % KVT_NS_PER_S)};
        if (nanosleep(&wait, NULL) != 0 || kvt_interrupted())
            break; /* an interrupt is how a watch ends */
        code = kvctl_sample_take(k, &now);
        if (code != KVCTL_OK)
            break;
        json_t *rates = kvctl_rates(&before, &now);
        if (!rates_print(k, rates, n))
            code = kvctl_fail(KVCTL_FAILED, "cannot write the results: %s", strerror(errno));
        json_decref(rates);
        kvctl_sample_free(&before);
        before = now;
        now.stats = NULL;
    }
    kvctl_sample_free(&before);
    return code;
}

static bool stat_wanted(const char *name, int argc, char **argv)
{
    for (int i = 0; i < argc; i++) {
        if (strcmp(name, argv[i]) == 0)
            return true;
    }
    return argc == 0;
}

static bool stat_known(const struct kvctl_sample *sample, const char *name)
{
    for (size_t i = 0; i < sample->stats->n_stats; i++) {
        if (strcmp(sample->stats->stats[i]->name, name) == 0)
            return true;
    }
    return false;
}

enum kvctl_exit kvctl_run_stat(struct kvctl *k, int argc, char **argv)
{
    static const struct kvctl_column columns[] = {
        {"NAME", "name"}, {"VALUE", "value"}, {"KIND", "kind", .wide = true}, {"MEANING", "help"},
        {NULL},
    };
    struct kvctl_sample sample = {.stats = NULL};
    struct kvctl_rows rows;
    if (kvctl_given(k, KVCTL_OPT_WATCH))
        return argc == 0 ? stat_watch(k)
                         : kvctl_fail(KVCTL_USAGE, "stat: names go without --watch");
    if (kvctl_given(k, KVCTL_OPT_INTERVAL) || kvctl_given(k, KVCTL_OPT_COUNT))
        return kvctl_fail(KVCTL_USAGE, "stat: --interval and --count go with --watch");
    enum kvctl_exit code = kvctl_sample_take(k, &sample);
    if (code != KVCTL_OK)
        return code;
    for (int i = 0; i < argc; i++) {
        if (!stat_known(&sample, argv[i])) {
            kvctl_sample_free(&sample);
            return kvctl_fail(KVCTL_NOT_FOUND, "there is no counter \"%s\"; 'kvctl stat' lists all",
                              argv[i]);
        }
    }
    kvctl_rows_begin(&rows, &k->style, "stats", columns);
    for (size_t i = 0; i < sample.stats->n_stats; i++) {
        if (stat_wanted(sample.stats->stats[i]->name, argc, argv))
            kvctl_rows_add(&rows, kvctl_message_json(&sample.stats->stats[i]->base));
    }
    if (!kvctl_rows_end(&rows))
        code = KVCTL_FAILED;
    kvctl_sample_free(&sample);
    return code;
}
