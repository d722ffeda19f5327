/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How the time of a 512-chunk lookup, the memory per chunk and the time to restore grow with the
 * number of chunks held. The core alone, without a process in between:
 *
 *     core_lookup_bench [N...]        (default: 10000 100000 1000000 10000000)
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "kvt/core.h"
#include "kvt/util.h"

#define PROMPT_CHUNKS 512
#define N_LOOKUPS     4000
#define CHUNK_BYTES   4096
#define SLAB_SLOTS    8192
#define BATCH         256

static struct kvt_key key_of(uint64_t i)
{
    struct kvt_key key;
    for (unsigned half = 0; half < 2; half++) {
        XXH128_hash_t hash = XXH3_128bits_withSeed(&i, sizeof(i), half);
        memcpy(key.bytes + half * sizeof(hash), &hash, sizeof(hash));
    }
    return key;
}

static uint32_t slot_of(uint64_t i)
{
    return (uint32_t)(i / SLAB_SLOTS << KVT_SLOT_INDEX_BITS | i % SLAB_SLOTS);
}

/* Nothing is stored or loaded here: the core has nothing to ask for but metadata of nothing. */
static void no_io(void *arg, struct kvt_io *io)
{
    KVT_ASSERT(false);
}
static void no_put(void *arg, const struct kvt_meta_record *record, uint64_t token)
{
    KVT_ASSERT(false);
}
static void no_del(void *arg, uint32_t slot, uint64_t token)
{
    KVT_ASSERT(false);
}
static void no_slab(void *arg, uint32_t slab, uint64_t slot_bytes, uint64_t token)
{
    KVT_ASSERT(false);
}
static void no_ns(void *arg, uint32_t ns, uint64_t since, const struct kvt_ns_desc *desc,
                  uint64_t token)
{
    KVT_ASSERT(false);
}
static void no_answer(void *arg, uint32_t session, uint64_t op, enum kvt_status status,
                      const struct kvt_wire_item *items, unsigned n, unsigned n_open)
{
    KVT_ASSERT(false);
}

static const struct kvt_core_actions actions = {
    .io = no_io,
    .meta_put = no_put,
    .meta_del = no_del,
    .meta_slab = no_slab,
    .meta_ns = no_ns,
    .reserved = no_answer,
    .loaded = no_answer,
    .committed = no_answer,
};

static struct kvt_core *core_with(uint64_t n_chunks, uint32_t *session_p, double *seconds_p)
{
    uint32_t n_slabs = (uint32_t)((n_chunks + SLAB_SLOTS - 1) / SLAB_SLOTS);
    struct kvt_core_config config = {
        .n_chunks_max = (uint32_t)n_chunks,
        .n_host_slabs = 1,
        .host_slab_bytes = UINT64_C(2) << 20,
        .n_nvme_slabs = n_slabs,
        .nvme_slab_bytes = SLAB_SLOTS * (CHUNK_BYTES + (uint64_t)KVT_SLOT_HEADER_BYTES),
        .group_bytes = 16 * KVT_MIB,
        .host_policy = &kvt_policy_lhd,
        .nvme_policy = &kvt_policy_lhd,
        .admission = KVT_ADMIT_ALL,
        .n_ios_max = 16,
        .read_bytes_max = KVT_MIB,
        .write_bytes_max = KVT_MIB,
        .n_ns_max = 1,
        .n_ns_session_max = 1,
        .n_sessions_max = 1,
        .n_ops_max = 4,
        .n_ops_session_max = 4,
        .n_leases_max = 16,
        .n_leases_session_max = 16,
        .lease_ttl_ns = 1000000000,
        .lease_ttl_max_ns = 1000000000,
        .seed = 1,
    };
    struct kvt_ns_desc desc = {.model = "bench",
                               .n_segments = 1,
                               .chunk_bytes = CHUNK_BYTES,
                               .tp_size = 1,
                               .pp_size = 1,
                               .n_layers = 1,
                               .n_kv_heads = 1,
                               .head_dim = 1,
                               .tokens_per_chunk = 1};
    struct kvt_core *core;
    struct kvt_error err;
    if (kvt_core_create(&config, &actions, &core, &err) != KVT_OK) {
        fprintf(stderr, "core_lookup_bench: %s\n", err.msg);
        exit(1);
    }
    uint64_t ns = 0;
    kvt_core_restore_ns(core, 0, 0, &desc);
    for (uint32_t slab = 0; slab < n_slabs; slab++)
        kvt_core_restore_slab(core, slab, CHUNK_BYTES);
    struct kvt_meta_record records[BATCH];
    for (uint64_t i = 0; i < n_chunks;) {
        unsigned n = 0;
        memset(records, 0, sizeof(records));
        for (; n < BATCH && i < n_chunks; n++, i++) {
            struct kvt_meta_record *r = &records[n];
            r->slot = slot_of(i);
            r->generation = i + 1;
            r->key = key_of(i);
            r->digest = i;
            r->parent_slot = KVT_SLOT_NONE;
            if (i % PROMPT_CHUNKS != 0) {
                struct kvt_key parent = key_of(i - 1);
                r->parent_slot = slot_of(i - 1);
                memcpy(&r->parent_tag, parent.bytes, sizeof(r->parent_tag));
            }
        }
        uint64_t start_ns = kvt_now_ns(); /* the core's part, not the making of keys */
        kvt_core_restore_records(core, records, n);
        ns += kvt_now_ns() - start_ns;
    }
    uint64_t start_ns = kvt_now_ns();
    uint64_t n_bad = kvt_core_restore_end(core);
    ns += kvt_now_ns() - start_ns;
    if (n_bad > 0) {
        fprintf(stderr, "core_lookup_bench: %" PRIu64 " records were refused\n", n_bad);
        exit(1);
    }
    *seconds_p = (double)ns / 1e9;
    uint32_t handle;
    uint64_t slot_bytes;
    if (kvt_core_session_open(core, session_p) != KVT_OK ||
        kvt_core_ns_open(core, *session_p, &desc, &handle, &slot_bytes, &err) != KVT_OK)
        exit(1);
    return core;
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void measure(uint64_t n_chunks)
{
    static struct kvt_key keys[PROMPT_CHUNKS];
    static uint8_t where[PROMPT_CHUNKS];
    static uint64_t took_ns[N_LOOKUPS];
    double restore_s;
    uint32_t session;
    struct kvt_core *core = core_with(n_chunks, &session, &restore_s);
    uint64_t random = 88172645463325252u;
    for (unsigned l = 0; l < N_LOOKUPS; l++) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        uint64_t first = random % (n_chunks / PROMPT_CHUNKS) * PROMPT_CHUNKS;
        for (unsigned i = 0; i < PROMPT_CHUNKS; i++)
            keys[i] = key_of(first + i);
        struct kvt_wire_lookup_r reply;
        uint64_t start_ns = kvt_now_ns();
        kvt_core_lookup(core, session, 0, keys, PROMPT_CHUNKS, 0, 0, start_ns, &reply, where);
        took_ns[l] = kvt_now_ns() - start_ns;
        if (reply.n_hit != PROMPT_CHUNKS) {
            fprintf(stderr, "core_lookup_bench: %u of %d chunks found\n", reply.n_hit,
                    PROMPT_CHUNKS);
            exit(1);
        }
    }
    qsort(took_ns, N_LOOKUPS, sizeof(took_ns[0]), compare);
    uint64_t p50_ns = took_ns[N_LOOKUPS / 2], p99_ns = took_ns[N_LOOKUPS * 99 / 100];
    uint64_t stats[KVT_STAT_N];
    kvt_core_stats(core, stats);
    printf("%10" PRIu64 " chunks: lookup of %d p50 %6.1f us p99 %6.1f us; index %5.1f bytes per "
           "chunk; restore %.2f s\n",
           n_chunks, PROMPT_CHUNKS, (double)p50_ns / 1e3, (double)p99_ns / 1e3,
           (double)stats[KVT_STAT_INDEX_BYTES] / (double)n_chunks, restore_s);
    fflush(stdout);
    kvt_core_destroy(core);
}

int main(int argc, char **argv)
{
    static const uint64_t defaults[] = {10000, 100000, 1000000, 10000000};
    if (argc < 2)
        for (unsigned i = 0; i < KVT_ARRAY_LEN(defaults); i++)
            measure(defaults[i]);
    for (int i = 1; i < argc; i++) {
        char *end;
        uint64_t n = strtoull(argv[i], &end, 10);
        if (*end != '\0' || n < PROMPT_CHUNKS || n > UINT64_C(1) << 30) {
            fprintf(stderr, "core_lookup_bench: \"%s\": a number of chunks from %d on\n", argv[i],
                    PROMPT_CHUNKS);
            return 2;
        }
        measure(n);
    }
    return 0;
}
