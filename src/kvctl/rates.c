/* SPDX-License-Identifier: Apache-2.0 */
#include "rates.h"

#include <string.h>

#include "kvt/options.h"
#include "kvt/units.h"
#include "kvt/util.h"

#define INTERVAL_MIN_NS (50 * KVT_NS_PER_MS)

void kvctl_sample_free(struct kvctl_sample *sample)
{
    if (sample->stats != NULL)
        kvtier__v1__stats__free_unpacked(sample->stats, NULL);
    sample->stats = NULL;
}

enum kvctl_exit kvctl_sample_take(struct kvctl *k, struct kvctl_sample *sample)
{
    Kvtier__V1__GetStatsRequest request = KVTIER__V1__GET_STATS_REQUEST__INIT;
    ProtobufCMessage *reply;
    enum kvctl_exit code = kvctl_call(k, "GetStats", &request.base, &reply);
    if (code != KVCTL_OK)
        return code;
    kvctl_sample_free(sample);
    sample->stats = (Kvtier__V1__Stats *)reply;
    return KVCTL_OK;
}

uint64_t kvctl_sample_value(const struct kvctl_sample *sample, const char *name)
{
    for (size_t i = 0; sample->stats != NULL && i < sample->stats->n_stats; i++) {
        if (strcmp(sample->stats->stats[i]->name, name) == 0)
            return sample->stats->stats[i]->value;
    }
    return 0;
}

json_t *kvctl_rates(const struct kvctl_sample *before, const struct kvctl_sample *now)
{
    static const struct {
        const char *name, *counter;
        bool gauge;
    } fields[] = {
        {"lookups_per_s", "lookups"},
        {"lookup_keys_per_s", "lookup_keys"},
        {"load_host_per_s", "load_host_chunks"},
        {"load_nvme_per_s", "load_nvme_chunks"},
        {"load_miss_per_s", "load_miss_chunks"},
        {"stored_per_s", "stored_chunks"},
        {"stored_bytes_per_s", "stored_bytes"},
        {"refused_per_s", "store_refused_chunks"},
        {"evict_host_per_s", "evict_host_chunks"},
        {"evict_nvme_per_s", "evict_nvme_chunks"},
        {"nvme_read_bytes_per_s", "nvme_read_bytes"},
        {"nvme_write_bytes_per_s", "nvme_write_bytes"},
        {"corrupt_per_s", "corrupt_chunks"},
        {"sessions", "sessions", .gauge = true},
        {"leases", "leases", .gauge = true},
        {"ops", "ops", .gauge = true},
    };
    static const struct kvctl_sample none = {.stats = NULL};
    if (before->stats != NULL && before->stats->uptime_ms >= now->stats->uptime_ms)
        before = &none; /* restarted in between */
    uint64_t since_ms = before->stats != NULL ? before->stats->uptime_ms : 0;
    double seconds = (double)(now->stats->uptime_ms - since_ms) / 1e3;
    json_t *rates = json_pack("{s:f}", "seconds", seconds);
    for (size_t i = 0; i < KVT_ARRAY_LEN(fields); i++) {
        uint64_t value = kvctl_sample_value(now, fields[i].counter);
        if (fields[i].gauge) {
            (void)json_object_set_new(rates, fields[i].name, json_integer((json_int_t)value));
            continue;
        }
        uint64_t change = value - kvctl_sample_value(before, fields[i].counter);
        (void)json_object_set_new(rates, fields[i].name,
                                  json_real(seconds > 0 ? (double)change / seconds : 0.0));
    }
    uint64_t keys =
        kvctl_sample_value(now, "lookup_keys") - kvctl_sample_value(before, "lookup_keys");
    uint64_t hits =
        kvctl_sample_value(now, "lookup_hits") - kvctl_sample_value(before, "lookup_hits");
    (void)json_object_set_new(rates, "hit_ratio",
                              keys > 0 ? json_real((double)hits / (double)keys) : json_null());
    return rates;
}

enum kvctl_exit kvctl_interval(const struct kvctl *k, uint64_t *interval_ns_p, uint64_t *count_p)
{
    const char *interval = k->values[KVCTL_OPT_INTERVAL], *count = k->values[KVCTL_OPT_COUNT];
    *interval_ns_p = KVT_NS_PER_S;
    *count_p = 0;
    if (interval != NULL &&
        (!kvt_time_parse(interval, interval_ns_p) || *interval_ns_p < INTERVAL_MIN_NS ||
         *interval_ns_p > 3600 * KVT_NS_PER_S))
        return kvctl_fail(KVCTL_USAGE,
                          "--interval: \"%s\" is not a time from 50ms to 1h (units: "
                          "%s)",
                          interval, KVT_TIME_UNITS);
    if (count != NULL && !kvt_option_number("--count", count, 1, UINT32_MAX, count_p))
        return KVCTL_USAGE;
    return KVCTL_OK;
}
