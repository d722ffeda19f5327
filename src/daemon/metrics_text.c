/* SPDX-License-Identifier: Apache-2.0 */
/* The exposition format of Prometheus, version 0.0.4: a family of samples at a time. */
#include "metrics.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include "kvt/units.h"
#include "kvt/util.h"

#define LABELS_BYTES 160

static const char *const tier_names[METRICS_TIERS] = {"host", "nvme"};

/* Families whose samples are counters and gauges of the core as they are. */
struct stat_sample {
    const char *family; /* NULL: of the one before */
    const char *type;
    const char *help;
    const char *labels; /* without braces; "" none */
    enum kvt_stat stat;
};

static const struct stat_sample stat_samples[] = {
    {"kvtier_chunks", "gauge", "Chunks held in any tier.", "", KVT_STAT_CHUNKS},
    {"kvtier_index_bytes", "gauge", "Memory of index and policies in use.", "",
     KVT_STAT_INDEX_BYTES},
    {"kvtier_tier_capacity_bytes", "gauge", "Bytes of a tier that are ready for use.",
     "tier=\"host\"", KVT_STAT_HOST_CAPACITY_BYTES},
    {NULL, NULL, NULL, "tier=\"nvme\"", KVT_STAT_NVME_CAPACITY_BYTES},
    {"kvtier_tier_used_bytes", "gauge", "Bytes of a tier in slots that hold or receive a chunk.",
     "tier=\"host\"", KVT_STAT_HOST_USED_BYTES},
    {NULL, NULL, NULL, "tier=\"nvme\"", KVT_STAT_NVME_USED_BYTES},
    {"kvtier_tier_pinned_bytes", "gauge", "Bytes of a tier in slots of chunks that are pinned.",
     "tier=\"host\"", KVT_STAT_HOST_PINNED_BYTES},
    {NULL, NULL, NULL, "tier=\"nvme\"", KVT_STAT_NVME_PINNED_BYTES},
    {"kvtier_reserved_bytes", "gauge", "Host memory that belongs to clients that write into it.",
     "", KVT_STAT_RESERVED_BYTES},
    {"kvtier_sessions", "gauge", "Open sessions.", "", KVT_STAT_SESSIONS},
    {"kvtier_leases", "gauge", "Open leases.", "", KVT_STAT_LEASES},
    {"kvtier_pins", "gauge", "Pins held by leases and ops.", "", KVT_STAT_PINS},
    {"kvtier_operator_pins", "gauge", "Pins made by operators.", "", KVT_STAT_ADMIN_PINS},
    {"kvtier_jobs", "gauge", "Open jobs of operators.", "", KVT_STAT_JOBS},
    {"kvtier_write_queue_chunks", "gauge", "Chunks that wait to be written to NVMe.", "",
     KVT_STAT_WRITE_QUEUE_CHUNKS},
    {"kvtier_ops", "gauge", "Open stores and loads.", "", KVT_STAT_OPS},
    {"kvtier_leases_expired_total", "counter", "Leases that ran out.", "", KVT_STAT_LEASES_EXPIRED},
    {"kvtier_lookups_total", "counter", "Lookup calls.", "", KVT_STAT_LOOKUPS},
    {"kvtier_lookup_keys_total", "counter", "Chunks asked for by lookups.", "",
     KVT_STAT_LOOKUP_KEYS},
    {"kvtier_load_chunks_total", "counter", "Chunks of loads, by the tier they were in.",
     "tier=\"host\"", KVT_STAT_LOAD_HOST_CHUNKS},
    {NULL, NULL, NULL, "tier=\"nvme\"", KVT_STAT_LOAD_NVME_CHUNKS},
    {"kvtier_load_missed_chunks_total", "counter", "Chunks of loads that were not held.", "",
     KVT_STAT_LOAD_MISS_CHUNKS},
    {"kvtier_stored_chunks_total", "counter", "Chunks committed.", "", KVT_STAT_STORED_CHUNKS},
    {"kvtier_stored_bytes_total", "counter", "Bytes of chunks committed.", "",
     KVT_STAT_STORED_BYTES},
    {"kvtier_store_skipped_chunks_total", "counter", "Chunks of stores that were not stored.",
     "reason=\"exists\"", KVT_STAT_STORE_EXISTS_CHUNKS},
    {NULL, NULL, NULL, "reason=\"busy\"", KVT_STAT_STORE_BUSY_CHUNKS},
    {NULL, NULL, NULL, "reason=\"no_room\"", KVT_STAT_STORE_REFUSED_CHUNKS},
    {NULL, NULL, NULL, "reason=\"aborted\"", KVT_STAT_STORE_ABORTED_CHUNKS},
    {"kvtier_evicted_chunks_total", "counter",
     "Chunks evicted from a tier, by what needed the room: a chunk of that size, a slab of another "
     "size, the index.",
     "tier=\"host\",reason=\"room\"", KVT_STAT_EVICT_HOST_ROOM},
    {NULL, NULL, NULL, "tier=\"host\",reason=\"slab\"", KVT_STAT_EVICT_HOST_SLAB},
    {NULL, NULL, NULL, "tier=\"host\",reason=\"index\"", KVT_STAT_EVICT_HOST_INDEX},
    {NULL, NULL, NULL, "tier=\"nvme\",reason=\"room\"", KVT_STAT_EVICT_NVME_ROOM},
    {NULL, NULL, NULL, "tier=\"nvme\",reason=\"slab\"", KVT_STAT_EVICT_NVME_SLAB},
    {NULL, NULL, NULL, "tier=\"nvme\",reason=\"index\"", KVT_STAT_EVICT_NVME_INDEX},
    {"kvtier_evicted_bytes_total", "counter", "Bytes of the chunks evicted from a tier.",
     "tier=\"host\"", KVT_STAT_EVICT_HOST_BYTES},
    {NULL, NULL, NULL, "tier=\"nvme\"", KVT_STAT_EVICT_NVME_BYTES},
    {"kvtier_deleted_chunks_total", "counter", "Chunks deleted by an operator.", "",
     KVT_STAT_DELETED_CHUNKS},
    {"kvtier_deleted_bytes_total", "counter", "Bytes of the chunks deleted by an operator.", "",
     KVT_STAT_DELETED_BYTES},
    {"kvtier_removed_copies_total", "counter",
     "Copies removed from one tier by an operator while the other keeps the chunk.",
     "tier=\"host\"", KVT_STAT_REMOVED_HOST_CHUNKS},
    {NULL, NULL, NULL, "tier=\"nvme\"", KVT_STAT_REMOVED_NVME_CHUNKS},
    {"kvtier_tier_read_bytes_total", "counter", "Bytes read from a tier's disks.", "tier=\"nvme\"",
     KVT_STAT_NVME_READ_BYTES},
    {"kvtier_tier_written_bytes_total", "counter", "Bytes written to a tier's disks.",
     "tier=\"nvme\"", KVT_STAT_NVME_WRITE_BYTES},
    {"kvtier_write_skipped_chunks_total", "counter",
     "Chunks not written to NVMe: not admitted, or no room.", "", KVT_STAT_WRITE_SKIPPED_CHUNKS},
    {"kvtier_scrubbed_chunks_total", "counter", "Chunks verified in the background.", "",
     KVT_STAT_SCRUBBED_CHUNKS},
    {"kvtier_quarantined_slots", "gauge", "NVMe slots no longer used after a fault.", "",
     KVT_STAT_QUARANTINED_SLOTS},
    {"kvtier_nvme_degraded", "gauge",
     "1: the NVMe tier is away, refuses writes or does without io_uring.", "",
     KVT_STAT_NVME_DEGRADED},
};

static void family(FILE *out, const char *name, const char *type, const char *help)
{
    fprintf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void sample(FILE *out, const char *name, const char *labels, uint64_t value)
{
    if (*labels != '\0')
        fprintf(out, "%s{%s} %" PRIu64 "\n", name, labels, value);
    else
        fprintf(out, "%s %" PRIu64 "\n", name, value);
}

static void stats_write(FILE *out, const struct metrics_snapshot *s)
{
    const char *name = "";
    for (unsigned i = 0; i < KVT_ARRAY_LEN(stat_samples); i++) {
        const struct stat_sample *x = &stat_samples[i];
        if (x->family != NULL) {
            name = x->family;
            family(out, name, x->type, x->help);
        }
        sample(out, name, x->labels, s->stats[x->stat]);
    }
}

static void by_tier_write(FILE *out, const char *name, const char *help,
                          const uint64_t values[METRICS_TIERS])
{
    char labels[LABELS_BYTES];
    family(out, name, "counter", help);
    for (unsigned tier = 0; tier < METRICS_TIERS; tier++) {
        snprintf(labels, sizeof(labels), "tier=\"%s\"", tier_names[tier]);
        sample(out, name, labels, values[tier]);
    }
}

static double ratio(uint64_t part, uint64_t whole)
{
    return whole == 0 ? 0 : (double)part / (double)whole;
}

static void lookups_write(FILE *out, const struct metrics_snapshot *s)
{
    const struct metrics_counters *c = &s->counters;
    uint64_t n_hits = s->stats[KVT_STAT_LOOKUP_HITS];
    uint64_t n_keys = s->stats[KVT_STAT_LOOKUP_KEYS];
    by_tier_write(out, "kvtier_lookup_hit_chunks_total",
                  "Chunks found by lookups, by the fastest tier that has them.", c->hit_chunks);
    by_tier_write(out, "kvtier_lookup_hit_tokens_total", "Tokens of the chunks found by lookups.",
                  c->hit_tokens);
    by_tier_write(out, "kvtier_lookup_hit_bytes_total", "Bytes of the chunks found by lookups.",
                  c->hit_bytes);
    family(out, "kvtier_lookup_tokens_total", "counter", "Tokens of the chunks asked for.");
    sample(out, "kvtier_lookup_tokens_total", "", c->lookup_tokens);
    family(out, "kvtier_lookup_avoidable_miss_keys_total", "counter",
           "Estimate of the missed chunks that an unlimited cache would have had.");
    sample(out, "kvtier_lookup_avoidable_miss_keys_total", "", c->avoidable_keys);
    family(out, "kvtier_lookup_hit_ratio", "gauge", "Share of chunks found, since the start.");
    fprintf(out, "kvtier_lookup_hit_ratio %.6f\n", ratio(n_hits, n_keys));
    family(out, "kvtier_lookup_ideal_hit_ratio", "gauge",
           "Estimate of that share for an unlimited cache.");
    fprintf(out, "kvtier_lookup_ideal_hit_ratio %.6f\n",
            ratio(KVT_MIN(n_hits + c->avoidable_keys, n_keys), n_keys));
    family(out, "kvtier_load_bytes_total", "counter", "Bytes of chunks handed to loads.");
    sample(out, "kvtier_load_bytes_total", "", c->load_bytes);
}

static void histogram_write(FILE *out, const char *name, const char *labels,
                            const struct histogram *h)
{
    uint64_t n = 0;
    for (unsigned i = 0; i < METRICS_BOUNDS; i++) {
        n += h->counts[i];
        fprintf(out, "%s_bucket{%s,le=\"%g\"} %" PRIu64 "\n", name, labels,
                (double)metrics_bounds_ns[i] / 1e9, n);
    }
    n += h->counts[METRICS_BOUNDS];
    fprintf(out, "%s_bucket{%s,le=\"+Inf\"} %" PRIu64 "\n", name, labels, n);
    fprintf(out, "%s_sum{%s} %.9f\n", name, labels, (double)h->sum_ns / 1e9);
    fprintf(out, "%s_count{%s} %" PRIu64 "\n", name, labels, n);
}

static void histograms_write(FILE *out, const struct metrics_counters *c)
{
    static const struct {
        const char *operation, *tier;
    } timed[] = {
#define TIMED_LABELS(upper, operation, tier) {operation, tier},
        METRICS_TIMED_MAP(TIMED_LABELS)
#undef TIMED_LABELS
    };
    static const char *const io_names[] = {[KVT_IO_READ] = "read", [KVT_IO_WRITE] = "write"};
    char labels[LABELS_BYTES];
    const char *name = "kvtier_request_duration_seconds";
    family(
        out, name, "histogram",
        "From the turn that read a request to its last answer; tier: the slowest it waited for.");
    for (unsigned i = 0; i < TIMED_N; i++) {
        snprintf(labels, sizeof(labels), "operation=\"%s\",tier=\"%s\"", timed[i].operation,
                 timed[i].tier);
        histogram_write(out, name, labels, &c->timed[i]);
    }
    name = "kvtier_tier_io_duration_seconds";
    family(out, name, "histogram", "Of transfers, from being asked for to being verified.");
    for (unsigned i = 0; i < KVT_ARRAY_LEN(io_names); i++) {
        snprintf(labels, sizeof(labels), "tier=\"nvme\",operation=\"%s\"", io_names[i]);
        histogram_write(out, name, labels, &c->io[i]);
    }
    name = "kvtier_tier_inflight_bytes";
    family(out, name, "gauge", "Bytes of transfers under way.");
    for (unsigned i = 0; i < KVT_ARRAY_LEN(io_names); i++) {
        snprintf(labels, sizeof(labels), "tier=\"nvme\",operation=\"%s\"", io_names[i]);
        sample(out, name, labels, c->io_inflight_bytes[i]);
    }
}

static void errors_write(FILE *out, const struct metrics_snapshot *s)
{
    static const char *const end_names[] = {
#define END_NAME(upper, label) label,
        METRICS_END_MAP(END_NAME)
#undef END_NAME
    };
    static const struct {
        const char *cause;
        enum kvt_stat stat;
    } causes[] = {
        {"nvme_read", KVT_STAT_NVME_READ_ERRORS},   {"nvme_write", KVT_STAT_NVME_WRITE_ERRORS},
        {"corrupt_chunk", KVT_STAT_CORRUPT_CHUNKS}, {"load_late", KVT_STAT_LOAD_LATE_CHUNKS},
        {"metadata", KVT_STAT_META_ERRORS},
    };
    const struct metrics_counters *c = &s->counters;
    char labels[LABELS_BYTES];
    const char *name = "kvtier_errors_total";
    family(out, name, "counter", "Faults, by cause; of chunks for corrupt_chunk and load_late.");
    for (unsigned i = 0; i < KVT_ARRAY_LEN(causes); i++) {
        snprintf(labels, sizeof(labels), "cause=\"%s\"", causes[i].cause);
        sample(out, name, labels, s->stats[causes[i].stat]);
    }
    for (unsigned i = 0; i < END_N; i++) {
        snprintf(labels, sizeof(labels), "cause=\"session_%s\"", end_names[i]);
        sample(out, name, labels, c->ended[i]);
    }
    sample(out, name, "cause=\"no_hello\"", c->hello_timeouts);
    sample(out, name, "cause=\"client_refused\"", c->sessions_refused);
    name = "kvtier_requests_refused_total";
    family(out, name, "counter", "Requests that were answered with an error as a whole.");
#define REFUSED(upper, value, text)                                                                \
    if ((value) < 0)                                                                               \
        sample(out, name, "status=\"" #upper "\"", c->refused[-(value)]);
    KVT_STATUS_MAP(REFUSED)
#undef REFUSED
    family(out, "kvtier_sessions_opened_total", "counter", "Sessions opened.");
    sample(out, "kvtier_sessions_opened_total", "", c->sessions_opened);
}

/* What a client library of Prometheus would say of the process. */
static void process_write(FILE *out)
{
    struct rusage usage;
    unsigned long n_pages = 0;
    FILE *statm = fopen("/proc/self/statm", "re");
    if (statm != NULL) {
        if (fscanf(statm, "%*u %lu", &n_pages) != 1)
            n_pages = 0;
        fclose(statm);
    }
    family(out, "process_resident_memory_bytes", "gauge", "Resident memory, the arena included.");
    sample(out, "process_resident_memory_bytes", "",
           (uint64_t)n_pages * (uint64_t)sysconf(_SC_PAGESIZE));
    if (getrusage(RUSAGE_SELF, &usage) != 0)
        return;
    family(out, "process_cpu_seconds_total", "counter", "CPU time of all threads.");
    fprintf(out, "process_cpu_seconds_total %.6f\n",
            (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6);
}

char *metrics_text(const struct metrics_snapshot *snapshot, bool is_ready, size_t *bytes_p)
{
    char *text = NULL;
    FILE *out = open_memstream(&text, bytes_p);
    if (out == NULL)
        return NULL;
    family(out, "kvtier_build_info", "gauge", "1, with the version that runs.");
    sample(out, "kvtier_build_info", "version=\"" KVT_VERSION "\"", 1);
    family(out, "kvtier_ready", "gauge", "1 while stores and loads are served, else 0.");
    sample(out, "kvtier_ready", "", is_ready);
    stats_write(out, snapshot);
    lookups_write(out, snapshot);
    histograms_write(out, &snapshot->counters);
    errors_write(out, snapshot);
    process_write(out);
    if (fclose(out) == 0)
        return text;
    free(text);
    return NULL;
}
