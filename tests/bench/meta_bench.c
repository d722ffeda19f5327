/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How fast the metadata takes records and how fast it gives them back at the next start.
 *
 *     meta_bench DIR [N_RECORDS]
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>

#include "kvt/util.h"
#include "meta_changes.h"

#define SLOTS_PER_SLAB 1000u

static void on_ns(void *arg, uint32_t ns, uint64_t since, const struct kvt_ns_desc *desc)
{
    (void)arg, (void)ns, (void)desc;
}

static void on_slab(void *arg, uint32_t slab, uint64_t slot_bytes)
{
    (void)arg, (void)slab, (void)slot_bytes;
}

static void on_records(void *arg, const struct kvt_meta_record *records, unsigned n)
{
    (void)records;
    *(uint64_t *)arg += n;
}

static struct kvt_meta *must_open(const char *dir, uint64_t *n_seen_p)
{
    const struct kvt_meta_visitor visitor = {n_seen_p, on_ns, on_slab, on_records};
    struct kvt_meta *meta = NULL;
    struct kvt_error err = {0};
    uint8_t id[16];
    uint64_t n_bad;
    *n_seen_p = 0;
    if (kvt_meta_open(dir, id, &visitor, &meta, &n_bad, &err) != KVT_OK) {
        fprintf(stderr, "meta_bench: %s\n", err.msg);
        exit(1);
    }
    return meta;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: meta_bench DIR [N_RECORDS]\n");
        return 2;
    }
    uint64_t n = argc > 2 ? strtoull(argv[2], NULL, 10) : 10000000;
    uint64_t n_seen;
    uint64_t n_done = 0;
    struct kvt_meta *meta = must_open(argv[1], &n_seen);
    uint64_t start_ns = kvt_now_ns();
    for (uint64_t i = 0; i < n; i++) {
        /* In an order that is not that of the slots, as evictions make it. */
        uint64_t at = i * UINT64_C(7368787) % n;
        struct kvt_meta_record record = {.slot = (uint32_t)(at / SLOTS_PER_SLAB)
                                                     << KVT_SLOT_INDEX_BITS |
                                                 (uint32_t)(at % SLOTS_PER_SLAB),
                                         .digest = at,
                                         .generation = i,
                                         .parent_slot = KVT_SLOT_NONE};
        bench_meta_key(at, &record.key);
        while (!kvt_meta_put(meta, &record, i))
            bench_meta_poll(meta, &n_done);
    }
    while (n_done < n)
        bench_meta_poll(meta, &n_done);
    double put_s = (double)(kvt_now_ns() - start_ns) * 1e-9;
    start_ns = kvt_now_ns();
    kvt_meta_close(meta);
    double close_s = (double)(kvt_now_ns() - start_ns) * 1e-9;
    start_ns = kvt_now_ns();
    meta = must_open(argv[1], &n_seen);
    double open_s = (double)(kvt_now_ns() - start_ns) * 1e-9;
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf("%" PRIu64 " records: put %.2f s, close %.2f s, open %.2f s with %" PRIu64
           " seen, peak memory %ld MiB\n",
           n, put_s, close_s, open_s, n_seen, usage.ru_maxrss / 1024);
    kvt_meta_close(meta);
    return 0;
}
