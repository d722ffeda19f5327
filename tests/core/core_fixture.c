/* SPDX-License-Identifier: Apache-2.0 */
#include "core_fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <xxhash.h>

#define ARENA_BASE (UINT64_C(1) << 20)

struct kvt_core_config fixture_config(void)
{
    return (struct kvt_core_config){
        .n_chunks_max = 256,
        .n_host_slabs = 4,
        .host_slab_bytes = 4 * KVT_PAGE_BYTES,
        .n_nvme_slabs = 4,
        .nvme_slab_bytes = 4 * KVT_PAGE_BYTES,
        .group_bytes = 16 * KVT_MIB,
        .host_policy = &kvt_policy_lru,
        .nvme_policy = &kvt_policy_lru,
        .admission = KVT_ADMIT_NONE,
        .n_ios_max = 16,
        .read_bytes_max = KVT_MIB,
        .write_bytes_max = KVT_MIB,
        .n_ns_max = 64,
        .n_ns_session_max = 32,
        .n_sessions_max = 4,
        .n_ops_max = 16,
        .n_ops_session_max = 8,
        .n_leases_max = 16,
        .n_leases_session_max = 8,
        .lease_ttl_ns = 100 * MS,
        .lease_ttl_max_ns = 10000 * MS,
        .seed = 1,
    };
}

static void on_io(void *arg, struct kvt_io *io)
{
    struct fixture *f = arg;
    ck_assert_uint_lt(f->n_ios, KVT_ARRAY_LEN(f->ios));
    f->ios[f->n_ios++] = io;
    f->n_reads += io->type == KVT_IO_READ;
    f->n_writes += io->type == KVT_IO_WRITE;
}

static void meta_add(struct fixture *f, char what, uint64_t token)
{
    ck_assert_uint_lt(f->n_metas, RECORDS_MAX);
    f->metas[f->n_metas].what = what;
    f->metas[f->n_metas].token = token;
    f->n_metas++;
}

static void on_put(void *arg, const struct kvt_meta_record *record, uint64_t token)
{
    struct fixture *f = arg;
    meta_add(f, 'p', token);
    f->metas[f->n_metas - 1].record = *record;
}

static void on_del(void *arg, uint32_t slot, uint64_t token)
{
    struct fixture *f = arg;
    meta_add(f, 'd', token);
    f->metas[f->n_metas - 1].record.slot = slot;
}

static void on_slab(void *arg, uint32_t slab, uint64_t slot_bytes, uint64_t token)
{
    struct fixture *f = arg;
    meta_add(f, 's', token);
    f->metas[f->n_metas - 1].number = slab;
    f->metas[f->n_metas - 1].slot_bytes = slot_bytes;
}

static void on_ns(void *arg, uint32_t ns, uint64_t since, const struct kvt_ns_desc *desc,
                  uint64_t token)
{
    struct fixture *f = arg;
    meta_add(f, 'n', token);
    f->metas[f->n_metas - 1].number = ns;
    f->metas[f->n_metas - 1].since = since;
    f->metas[f->n_metas - 1].desc = *desc;
}

static void answer(struct fixture *f, char what, uint32_t session, uint64_t op,
                   enum kvt_status status, const struct kvt_wire_item *items, unsigned n,
                   unsigned n_open)
{
    for (unsigned i = 0; i < n; i++) {
        ck_assert_uint_lt(f->n_answers, ANSWERS_MAX);
        f->answers[f->n_answers++] = (struct answer){what, session, op, status, n_open, items[i]};
    }
}

static void on_reserved(void *arg, uint32_t session, uint64_t op, enum kvt_status status,
                        const struct kvt_wire_item *items, unsigned n, unsigned n_open)
{
    answer(arg, 'r', session, op, status, items, n, n_open);
}

static void on_loaded(void *arg, uint32_t session, uint64_t op, enum kvt_status status,
                      const struct kvt_wire_item *items, unsigned n, unsigned n_open)
{
    answer(arg, 'l', session, op, status, items, n, n_open);
}

static void on_committed(void *arg, uint32_t session, uint64_t op, enum kvt_status status,
                         const struct kvt_wire_item *items, unsigned n, unsigned n_open)
{
    answer(arg, 'c', session, op, status, items, n, n_open);
}

static void on_job_done(void *arg, uint64_t job)
{
    struct fixture *f = arg;
    ck_assert_uint_lt(f->n_ended, KVT_ARRAY_LEN(f->ended));
    f->ended[f->n_ended++] = job;
}

void fixture_create(struct fixture *f, unsigned n_host_slabs)
{
    const struct kvt_core_actions actions = {
        .arg = f,
        .io = on_io,
        .meta_put = on_put,
        .meta_del = on_del,
        .meta_slab = on_slab,
        .meta_ns = on_ns,
        .reserved = on_reserved,
        .loaded = on_loaded,
        .committed = on_committed,
        .job_done = on_job_done,
    };
    struct kvt_error err = {.msg = ""};
    ck_assert_msg(kvt_core_create(&f->config, &actions, &f->core, &err) == KVT_OK, "%s", err.msg);
    for (unsigned i = 0; i < n_host_slabs; i++)
        kvt_core_host_slab(f->core, i, ARENA_BASE + i * f->config.host_slab_bytes);
}

void fixture_init(struct fixture *f, const struct kvt_core_config *config)
{
    memset(f, 0, sizeof(*f));
    f->config = *config;
    f->now_ns = 1000 * MS;
    f->arena = calloc(config->n_host_slabs, config->host_slab_bytes);
    ck_assert_ptr_nonnull(f->arena);
    fixture_create(f, config->n_host_slabs);
}

void fixture_fini(struct fixture *f)
{
    char msg[256];
    ck_assert_msg(kvt_core_check(f->core, msg, sizeof(msg)), "%s", msg);
    kvt_core_destroy(f->core);
    for (unsigned s = 0; s < 8; s++)
        for (unsigned i = 0; i < SLOTS_MAX; i++)
            free(f->disk[s][i].bytes);
    free(f->arena);
}

uint64_t fixture_restart(struct fixture *f)
{
    kvt_core_destroy(f->core);
    f->n_ios = f->n_answers = 0;
    fixture_create(f, 0);
    static const char order[] = "nsp";
    for (const char *kind = order; *kind != '\0'; kind++)
        for (unsigned i = 0; i < f->n_metas_done; i++) {
            bool replaced = f->metas[i].what != *kind;
            for (unsigned j = i + 1; j < f->n_metas_done; j++) {
                char later = f->metas[j].what;
                if (*kind == 'p')
                    replaced |= (later == 'p' || later == 'd') &&
                                f->metas[j].record.slot == f->metas[i].record.slot;
                else
                    replaced |= later == *kind && f->metas[j].number == f->metas[i].number;
            }
            if (replaced)
                continue;
            if (*kind == 'n')
                kvt_core_restore_ns(f->core, f->metas[i].number, f->metas[i].since,
                                    &f->metas[i].desc);
            else if (*kind == 's')
                kvt_core_restore_slab(f->core, f->metas[i].number, f->metas[i].slot_bytes);
            else
                kvt_core_restore_records(f->core, &f->metas[i].record, 1);
        }
    uint64_t n_bad = kvt_core_restore_end(f->core);
    f->n_metas = f->n_metas_done;
    for (unsigned i = 0; i < f->config.n_host_slabs; i++)
        kvt_core_host_slab(f->core, i, ARENA_BASE + i * f->config.host_slab_bytes);
    return n_bad;
}

void fixture_flush(struct fixture *f)
{
    kvt_core_flush(f->core, f->now_ns);
}

void fixture_io(struct fixture *f, enum kvt_status status)
{
    ck_assert_uint_gt(f->n_ios, 0);
    struct kvt_io *io = f->ios[0];
    f->n_ios--;
    for (unsigned i = 0; i < f->n_ios; i++)
        f->ios[i] = f->ios[i + 1];
    uint8_t *memory = f->arena + (io->arena_offset - ARENA_BASE);
    ck_assert(io->slab < 8 && io->slot < SLOTS_MAX);
    io->status = status;
    if (io->type == KVT_IO_WRITE && status == KVT_OK) {
        free(f->disk[io->slab][io->slot].bytes);
        f->disk[io->slab][io->slot].bytes = malloc(io->slot_bytes);
        f->disk[io->slab][io->slot].n_bytes = io->slot_bytes;
        memcpy(f->disk[io->slab][io->slot].bytes, memory, io->slot_bytes);
        f->disk[io->slab][io->slot].header = *io->header;
    } else if (io->type == KVT_IO_READ && status == KVT_OK) {
        ck_assert_uint_eq(f->disk[io->slab][io->slot].n_bytes, io->slot_bytes);
        memcpy(memory, f->disk[io->slab][io->slot].bytes, io->slot_bytes);
        *io->header = f->disk[io->slab][io->slot].header;
        if (io->chunk_only)
            memset(io->header, 0xee, sizeof(*io->header)); /* only the checksums are promised */
        else
            io->status = kvt_slot_header_check(io->header, &io->key, io->ns_id, io->digest,
                                               io->chunk_bytes, io->n_segments);
        if (io->status == KVT_OK) {
            kvt_segments_sum(memory, io->chunk_bytes, io->n_segments, io->header->sums);
            io->status = kvt_chunk_check(&io->key, io->ns_id, io->digest, io->chunk_bytes,
                                         io->header->sums, io->n_segments);
        }
    }
    kvt_core_io_done(f->core, io, f->now_ns);
}

void fixture_meta(struct fixture *f, enum kvt_status status)
{
    ck_assert_uint_lt(f->n_metas_done, f->n_metas);
    uint64_t token = f->metas[f->n_metas_done].token;
    if (status != KVT_OK)
        f->metas[f->n_metas_done].what = 'x'; /* as if it had never been */
    f->n_metas_done++;
    kvt_core_meta_done(f->core, token, status, f->now_ns);
}

void fixture_settle(struct fixture *f)
{
    do {
        while (f->n_ios > 0)
            fixture_io(f, KVT_OK);
        while (f->n_metas_done < f->n_metas)
            fixture_meta(f, KVT_OK);
        fixture_flush(f);
    } while (f->n_ios > 0 || f->n_metas_done < f->n_metas);
}

void fixture_jobs(struct fixture *f)
{
    fixture_settle(f);
    for (unsigned n = 0; fixture_stat(f, KVT_STAT_JOBS) > 0; n++) {
        ck_assert_uint_lt(n, 10000);
        f->now_ns += MS;
        fixture_settle(f);
    }
}

struct kvt_ns_desc fixture_desc(const char *model, uint64_t chunk_bytes, uint32_t n_segments)
{
    struct kvt_ns_desc desc = {
        .dtype = "bf16",
        .n_layers = n_segments,
        .n_kv_heads = 1,
        .head_dim = 64,
        .tokens_per_chunk = 16,
        .tp_size = 1,
        .pp_size = 1,
        .n_segments = n_segments,
        .chunk_bytes = chunk_bytes,
    };
    ck_assert_int_lt(snprintf(desc.model, sizeof(desc.model), "%s", model),
                     (int)sizeof(desc.model));
    return desc;
}

static uint32_t ns_open(struct fixture *f, uint32_t s, const struct kvt_ns_desc *desc)
{
    struct kvt_error err = {.msg = ""};
    uint32_t ns = UINT32_MAX;
    uint64_t slot_bytes = 0;
    ck_assert_msg(kvt_core_ns_open(f->core, s, desc, &ns, &slot_bytes, &err) == KVT_OK, "%s",
                  err.msg);
    ck_assert_uint_eq(slot_bytes, kvt_align_up(desc->chunk_bytes, KVT_PAGE_BYTES));
    return ns;
}

uint32_t fixture_ns(struct fixture *f, const char *model, uint64_t chunk_bytes, uint32_t n_segments)
{
    struct kvt_ns_desc desc = fixture_desc(model, chunk_bytes, n_segments);
    struct kvt_admin_session sessions[8];
    uint64_t cursor = 0;
    uint32_t ns = UINT32_MAX, s;
    unsigned n = kvt_core_sessions(f->core, &cursor, sessions, KVT_ARRAY_LEN(sessions)), known = 0;
    while (known < f->n_descs && memcmp(&f->descs[known], &desc, sizeof(desc)) != 0)
        known++;
    ck_assert(cursor == 0 && known < KVT_ARRAY_LEN(f->descs));
    f->descs[known] = desc;
    f->n_descs = KVT_MAX(f->n_descs, known + 1);
    for (unsigned i = 0; i < n; i++)
        ns = ns_open(f, sessions[i].session, &desc);
    if (n > 0)
        return ns;
    ck_assert_int_eq(kvt_core_session_open(f->core, &s), KVT_OK);
    ns = ns_open(f, s, &desc);
    kvt_core_session_close(f->core, s, f->now_ns);
    return ns;
}

struct kvt_key fixture_key(unsigned n)
{
    struct kvt_key key = {.bytes = {1}};
    key.bytes[8] = (uint8_t)n;
    key.bytes[9] = (uint8_t)(n >> 8);
    key.bytes[0] = (uint8_t)(n * 37 + 11);
    return key;
}

void fixture_keys(struct kvt_key *keys, unsigned first, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        keys[i] = fixture_key(first + i);
}

uint32_t fixture_session(struct fixture *f)
{
    uint32_t s = UINT32_MAX;
    ck_assert_int_eq(kvt_core_session_open(f->core, &s), KVT_OK);
    for (unsigned i = 0; i < f->n_descs; i++)
        (void)ns_open(f, s, &f->descs[i]);
    return s;
}

uint64_t fixture_stat(const struct fixture *f, enum kvt_stat stat)
{
    uint64_t stats[KVT_STAT_N];
    kvt_core_stats(f->core, stats);
    return stats[stat];
}

unsigned fixture_held(struct fixture *f, uint32_t s, uint32_t ns, unsigned first, unsigned n)
{
    struct kvt_key keys[64];
    uint8_t where[64];
    struct kvt_wire_lookup_r reply = {0};
    fixture_keys(keys, first, n);
    kvt_core_lookup(f->core, s, ns, keys, n, 0, 0, f->now_ns, &reply, where);
    ck_assert_int_eq(reply.status, KVT_OK);
    ck_assert_uint_eq(reply.lease, 0);
    return reply.n_hit;
}

void fixture_start(struct fixture *f, const struct kvt_core_config *config, uint32_t *s_p,
                   uint32_t *ns_p)
{
    fixture_init(f, config);
    *s_p = fixture_session(f);
    *ns_p = fixture_ns(f, "a", 4096, 2);
    fixture_settle(f);
}

void fixture_start_again(struct fixture *f, uint64_t n_bad, uint32_t *s_p, uint32_t *ns_p)
{
    ck_assert_uint_eq(fixture_restart(f), n_bad);
    *s_p = fixture_session(f);
    *ns_p = fixture_ns(f, "a", 4096, 2);
}

uint8_t fixture_where(struct fixture *f, uint32_t s, uint32_t ns, unsigned key)
{
    struct kvt_key k = fixture_key(key);
    struct kvt_wire_lookup_r reply = {0};
    uint8_t where = 0;
    kvt_core_lookup(f->core, s, ns, &k, 1, 0, 0, f->now_ns, &reply, &where);
    return reply.n_hit == 1 ? where : 0;
}

struct answer fixture_take(struct fixture *f, char what, uint64_t op, uint32_t index)
{
    for (unsigned i = 0; i < f->n_answers; i++) {
        struct answer a = f->answers[i];
        if (a.what != what || a.op != op || a.item.index != index)
            continue;
        memmove(f->answers + i, f->answers + i + 1, (--f->n_answers - i) * sizeof(a));
        for (unsigned j = 0; j < f->n_answers; j++)
            ck_assert(f->answers[j].what != what || f->answers[j].op != op ||
                      f->answers[j].item.index != index);
        ck_assert_int_eq(a.op_status, KVT_OK);
        return a;
    }
    ck_abort_msg("no answer '%c' for item %u of op %llu", what, index, (unsigned long long)op);
    return (struct answer){0};
}

static uint8_t byte_of(unsigned key, uint64_t at)
{
    return (uint8_t)(key * 131 + at * 7 + (at >> 8));
}

void fixture_load(struct fixture *f, uint32_t s, uint32_t ns, uint64_t op, unsigned first,
                  unsigned n, uint32_t flags)
{
    struct kvt_key keys[64];
    fixture_keys(keys, first, n);
    ck_assert_int_eq(
        kvt_core_load(f->core, s, op, ns, keys, n, flags, f->now_ns + 50 * MS, f->now_ns), KVT_OK);
    fixture_flush(f);
}

void fixture_fill(struct fixture *f, uint32_t ns, uint64_t offset, unsigned key)
{
    for (uint64_t i = 0; i < kvt_core_ns_desc(f->core, ns)->chunk_bytes; i++)
        f->arena[offset - ARENA_BASE + i] = byte_of(key, i);
}

bool fixture_filled(struct fixture *f, uint32_t ns, uint64_t offset, unsigned key)
{
    for (uint64_t i = 0; i < kvt_core_ns_desc(f->core, ns)->chunk_bytes; i++)
        if (f->arena[offset - ARENA_BASE + i] != byte_of(key, i))
            return false;
    return true;
}

void fixture_sums(struct fixture *f, uint32_t ns, unsigned key, uint64_t *sums)
{
    const struct kvt_ns_desc *desc = kvt_core_ns_desc(f->core, ns);
    uint64_t segment_bytes = desc->chunk_bytes / desc->n_segments;
    uint8_t *bytes = malloc(desc->chunk_bytes);
    for (uint64_t i = 0; i < desc->chunk_bytes; i++)
        bytes[i] = byte_of(key, i);
    for (uint32_t i = 0; i < desc->n_segments; i++)
        sums[i] = XXH3_64bits(bytes + i * segment_bytes, segment_bytes);
    free(bytes);
}

void fixture_store(struct fixture *f, uint32_t s, uint32_t ns, uint64_t op, unsigned first,
                   unsigned n, uint32_t flags)
{
    struct kvt_key keys[64];
    uint64_t sums[64 * 4];
    uint32_t indexes[64], n_segments = kvt_core_ns_desc(f->core, ns)->n_segments;
    unsigned skip = flags & KVT_STORE_PARENT ? 1 : 0;
    fixture_keys(keys, first, n);
    ck_assert_int_eq(
        kvt_core_reserve(f->core, s, op, ns, keys, n, flags, f->now_ns + 1000 * MS, f->now_ns),
        KVT_OK);
    fixture_flush(f);
    for (unsigned i = 0; i < n - skip; i++) {
        struct answer a = fixture_take(f, 'r', op, i);
        ck_assert_int_eq(a.item.status, KVT_OK);
        fixture_fill(f, ns, a.item.offset, first + skip + i);
        fixture_sums(f, ns, first + skip + i, sums + i * n_segments);
        indexes[i] = i;
    }
    ck_assert_int_eq(kvt_core_commit(f->core, s, op, indexes, n - skip, 0, sums, f->now_ns),
                     KVT_OK);
    fixture_flush(f);
    for (unsigned i = 0; i < n - skip && (flags & KVT_STORE_DURABLE) == 0; i++)
        ck_assert_int_eq(fixture_take(f, 'c', op, i).item.status, KVT_OK);
}
