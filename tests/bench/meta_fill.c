/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Add records to the metadata of a store, as if its disks held so many chunks more: of the
 * namespace that it has, in the slabs behind those it uses. Their slots hold nothing, so that they
 * can be looked up and never be loaded. For big_index_bench.py.
 *
 *     meta_fill DIR N_CHUNKS SLAB_BYTES CHUNK_BYTES
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "kvt/util.h"
#include "meta_changes.h"

struct seen {
    bool has_ns;
    uint32_t ns, n_slabs;
};

static void on_ns(void *arg, uint32_t ns, uint64_t since, const struct kvt_ns_desc *desc)
{
    (void)desc;
    *(struct seen *)arg = (struct seen){.has_ns = true, .ns = ns};
}

static void on_slab(void *arg, uint32_t slab, uint64_t slot_bytes)
{
    struct seen *seen = arg;
    (void)slot_bytes;
    seen->n_slabs = KVT_MAX(seen->n_slabs, slab + 1);
}

static void on_records(void *arg, const struct kvt_meta_record *records, unsigned n)
{
    (void)arg, (void)records, (void)n;
}

int main(int argc, char **argv)
{
    if (argc != 5) {
        fprintf(stderr, "usage: meta_fill DIR N_CHUNKS SLAB_BYTES CHUNK_BYTES\n");
        return 2;
    }
    struct seen seen = {.n_slabs = 0};
    const struct kvt_meta_visitor visitor = {&seen, on_ns, on_slab, on_records};
    struct kvt_meta *meta = NULL;
    struct kvt_error err = {0};
    uint8_t id[16];
    uint64_t n_bad, n = strtoull(argv[2], NULL, 10), slab_bytes = strtoull(argv[3], NULL, 10);
    uint64_t slot_bytes = kvt_align_up(strtoull(argv[4], NULL, 10), KVT_PAGE_BYTES);
    if (kvt_meta_open(argv[1], id, &visitor, &meta, &n_bad, &err) != KVT_OK) {
        fprintf(stderr, "meta_fill: %s\n", err.msg);
        return 1;
    }
    if (!seen.has_ns) {
        fprintf(stderr, "meta_fill: %s has no namespace: connect a client first\n", argv[1]);
        return 1;
    }
    uint64_t per_slab =
        KVT_MIN(slab_bytes / (slot_bytes + KVT_PAGE_BYTES), UINT64_C(1) << KVT_SLOT_INDEX_BITS);
    uint64_t n_done = 0, n_changes = 0;
    for (uint64_t i = 0; i < n; i++) {
        uint32_t slab = seen.n_slabs + (uint32_t)(i / per_slab);
        if (i % per_slab == 0) {
            while (!kvt_meta_put_slab(meta, slab, slot_bytes, n_changes))
                bench_meta_poll(meta, &n_done);
            n_changes++;
        }
        struct kvt_meta_record record = {.slot =
                                             slab << KVT_SLOT_INDEX_BITS | (uint32_t)(i % per_slab),
                                         .ns = seen.ns,
                                         .digest = i,
                                         .generation = i + 1,
                                         .parent_slot = KVT_SLOT_NONE};
        bench_meta_key(i, &record.key);
        while (!kvt_meta_put(meta, &record, n_changes))
            bench_meta_poll(meta, &n_done);
        n_changes++;
    }
    while (n_done < n_changes)
        bench_meta_poll(meta, &n_done);
    kvt_meta_close(meta);
    printf("%" PRIu64 " records of namespace %u in slabs from %u\n", n, seen.ns, seen.n_slabs);
    return 0;
}
