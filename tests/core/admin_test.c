/* SPDX-License-Identifier: Apache-2.0 */
/* What core_admin.h promises about lists and pins, one rule at a time. */
#include "core_fixture.h"

#define N_MANY 5000u /* more records than one call looks at */

static struct fixture f;
static uint32_t s, ns;
static struct kvt_admin_chunk chunks[N_MANY];

static const struct kvt_admin_filter all = {.ns = KVT_ADMIN_NS_ANY};

/* 32 host slots of 4 KiB, and as many on NVMe. */
static struct kvt_core_config config_32(void)
{
    struct kvt_core_config config = fixture_config();
    config.host_slab_bytes = 8 * KVT_PAGE_BYTES;
    config.nvme_slab_bytes = 16 * KVT_PAGE_BYTES;
    return config;
}

static void setup(void)
{
    struct kvt_core_config config = config_32();
    fixture_start(&f, &config, &s, &ns);
}

static void teardown(void)
{
    fixture_fini(&f);
}

static void again_with(const struct kvt_core_config *config)
{
    fixture_fini(&f);
    fixture_start(&f, config, &s, &ns);
}

/* All pages of a listing. */
static unsigned list(const struct kvt_admin_filter *filter, unsigned page, unsigned *n_pages_p)
{
    uint64_t cursor = 0;
    unsigned n = 0;
    *n_pages_p = 0;
    do {
        ck_assert_uint_le(n + page, N_MANY);
        unsigned n_more = kvt_core_chunks(f.core, filter, &cursor, chunks + n, page);
        ck_assert_uint_le(n_more, page);
        n += n_more;
        ++*n_pages_p;
    } while (cursor != 0);
    return n;
}

static unsigned count(const struct kvt_admin_filter *filter)
{
    unsigned n_pages = 0;
    return list(filter, 7, &n_pages);
}

static bool listed(unsigned n, uint32_t of, unsigned key)
{
    struct kvt_key k = fixture_key(key);
    unsigned n_times = 0;
    for (unsigned i = 0; i < n; i++)
        n_times += chunks[i].ns == of && memcmp(&chunks[i].key, &k, sizeof(k)) == 0;
    ck_assert_uint_le(n_times, 1);
    return n_times == 1;
}

static struct kvt_admin_chunk chunk_of(unsigned key)
{
    struct kvt_key k = fixture_key(key);
    struct kvt_admin_chunk chunk = {0};
    ck_assert_int_eq(kvt_core_chunk(f.core, ns, &k, &chunk), KVT_OK);
    ck_assert_mem_eq(&chunk.key, &k, sizeof(k));
    return chunk;
}

static void lookup(unsigned first, unsigned n, uint32_t flags, struct kvt_wire_lookup_r *reply)
{
    struct kvt_key keys[64];
    uint8_t where[64];
    fixture_keys(keys, first, n);
    kvt_core_lookup(f.core, s, ns, keys, n, flags, 0, f.now_ns, reply, where);
    ck_assert_int_eq(reply->status, KVT_OK);
}

static enum kvt_status pin_as(const char *owner, unsigned first, unsigned n, uint64_t ttl_ns,
                              uint64_t *pin_p, unsigned *n_found_p, struct kvt_error *err)
{
    struct kvt_key keys[64];
    fixture_keys(keys, first, n);
    return kvt_core_pin(f.core, ns, keys, n, owner, ttl_ns, f.now_ns, pin_p, n_found_p, err);
}

static uint64_t pin(unsigned first, unsigned n)
{
    uint64_t id = 0;
    unsigned n_found = 0;
    struct kvt_error err = {.msg = ""};
    ck_assert_msg(pin_as("me", first, n, 0, &id, &n_found, &err) == KVT_OK, "%s", err.msg);
    ck_assert_uint_ne(id, 0);
    ck_assert_uint_eq(n_found, n);
    return id;
}

static void job(enum kvt_job_type type, uint32_t tiers, uint32_t flags, unsigned first, unsigned n)
{
    struct kvt_key keys[64];
    fixture_keys(keys, first, n);
    const struct kvt_job_request request = {
        .type = type,
        .tiers = tiers,
        .flags = flags,
        .keys = keys,
        .n_keys = n,
        .filter = {.ns = ns},
    };
    struct kvt_error err = {.msg = ""};
    uint64_t id = 0;
    ck_assert_msg(kvt_core_job_start(f.core, &request, f.now_ns, &id, &err) == KVT_OK, "%s",
                  err.msg);
    fixture_jobs(&f);
}

/* Fill the host tier with chunks that belong together with nothing. */
static void crowd(void)
{
    for (unsigned i = 0; i < 40; i++)
        fixture_store(&f, s, ns, 1000 + i, 1000 + i, 1, 0);
}

/* --- chunks ----------------------------------------------------------------------------------- */

START_TEST(each_chunk_is_listed_once_whatever_the_page)
{
    uint32_t other = fixture_ns(&f, "b", 8192, 1);
    fixture_store(&f, s, ns, 1, 0, 9, 0);
    fixture_store(&f, s, other, 2, 0, 4, 0);
    for (unsigned page = 1; page < 16; page++) {
        unsigned n_pages = 0;
        unsigned n = list(&all, page, &n_pages);
        ck_assert_uint_eq(n, 13);
        ck_assert_uint_ge(n_pages, (13 + page - 1) / page);
        for (unsigned i = 0; i < 9; i++)
            ck_assert(listed(n, ns, i));
        for (unsigned i = 0; i < 4; i++)
            ck_assert(listed(n, other, i));
    }
}
END_TEST

START_TEST(an_empty_index_is_one_empty_page)
{
    unsigned n_pages = 0;
    ck_assert_uint_eq(list(&all, 10, &n_pages), 0);
    ck_assert_uint_eq(n_pages, 1);
}
END_TEST

START_TEST(a_cursor_from_nowhere_is_the_end)
{
    fixture_store(&f, s, ns, 1, 0, 2, 0);
    static const uint64_t cursors[] = {2, 1000, UINT32_MAX, UINT64_MAX - 1, UINT64_MAX};
    for (unsigned i = 0; i < KVT_ARRAY_LEN(cursors); i++) {
        uint64_t cursor = cursors[i];
        struct kvt_admin_ns spaces[1];
        struct kvt_admin_session sessions[1];
        struct kvt_admin_lease leases[1];
        struct kvt_admin_pin pins[1];
        struct kvt_job_info jobs[1];
        ck_assert_uint_eq(kvt_core_chunks(f.core, &all, &cursor, chunks, 10), 0);
        ck_assert_uint_eq(cursor, 0);
        cursor = cursors[i];
        ck_assert_uint_eq(kvt_core_namespaces(f.core, &cursor, spaces, 1), 0);
        cursor = cursors[i];
        ck_assert_uint_eq(kvt_core_sessions(f.core, &cursor, sessions, 1), 0);
        cursor = cursors[i];
        ck_assert_uint_eq(kvt_core_leases(f.core, &cursor, leases, 1), 0);
        cursor = cursors[i];
        ck_assert_uint_eq(kvt_core_pins(f.core, &cursor, pins, 1), 0);
        cursor = cursors[i];
        ck_assert_uint_eq(kvt_core_jobs(f.core, &cursor, jobs, 1), 0);
    }
}
END_TEST

START_TEST(one_call_looks_at_a_bounded_number_of_records)
{
    struct kvt_core_config config = fixture_config();
    config.n_chunks_max = N_MANY;
    config.n_host_slabs = 5;
    config.host_slab_bytes = 1024 * KVT_PAGE_BYTES;
    config.n_nvme_slabs = 0;
    again_with(&config);
    for (unsigned i = 0; i < N_MANY; i += 50)
        fixture_store(&f, s, ns, 1 + i, i, 50, 0);
    uint32_t other = fixture_ns(&f, "b", 4096, 2);
    job(KVT_JOB_DELETE, 0, 0, N_MANY - 50, 1);
    fixture_store(&f, s, other, 7, 0, 1, 0);

    uint64_t cursor = 0;
    struct kvt_admin_filter filter = {.ns = other};
    ck_assert_uint_eq(kvt_core_chunks(f.core, &filter, &cursor, chunks, 10), 0);
    ck_assert_uint_eq(cursor, KVT_ADMIN_SCAN_MAX); /* an empty page, and more follows */
    ck_assert_uint_eq(kvt_core_chunks(f.core, &filter, &cursor, chunks, 10), 1);
    unsigned n_pages = 0;
    ck_assert_uint_eq(list(&all, 1000, &n_pages), N_MANY);
    ck_assert_uint_eq(n_pages, N_MANY / 1000);
}
END_TEST

START_TEST(what_a_chunk_is_told_as)
{
    fixture_store(&f, s, ns, 1, 0, 3, 0);
    struct kvt_admin_chunk chunk = chunk_of(1);
    struct kvt_key parent = fixture_key(0);
    ck_assert(chunk.has_parent);
    ck_assert_mem_eq(&chunk.parent, &parent, sizeof(parent));
    ck_assert(!chunk.reused && !chunk.write_waiting);
    ck_assert_uint_eq(chunk.where, KVT_WHERE_HOST);
    ck_assert_int_eq(chunk.host, KVT_COPY_VALID);
    ck_assert_int_eq(chunk.nvme, KVT_COPY_NONE);
    ck_assert_uint_eq(chunk.ns, ns);
    ck_assert_uint_eq(chunk.bytes, 4096);
    ck_assert_uint_eq(chunk.slot_bytes, 4096);
    ck_assert_uint_eq(chunk.n_children_host, 1);
    ck_assert_uint_eq(chunk.n_children_nvme, 0);
    ck_assert_uint_eq(chunk.n_pins + chunk.n_admin_pins, 0);
    ck_assert_uint_eq(chunk.digest, 0);
    ck_assert(fixture_filled(&f, ns, chunk.host_offset, 1));
    ck_assert(!chunk_of(0).has_parent);
    ck_assert_uint_eq(chunk_of(2).n_children_host, 0);
}
END_TEST

START_TEST(a_chunk_on_its_way_to_nvme_and_back)
{
    fixture_store(&f, s, ns, 1, 0, 1, KVT_STORE_DURABLE);
    struct kvt_admin_chunk chunk = chunk_of(0);
    ck_assert(chunk.write_waiting);
    ck_assert_int_eq(chunk.nvme, KVT_COPY_COMING);
    ck_assert_uint_eq(chunk.where, KVT_WHERE_HOST);
    fixture_io(&f, KVT_OK);
    ck_assert_int_eq(chunk_of(0).nvme, KVT_COPY_COMING); /* its metadata are still to be written */
    fixture_settle(&f);
    chunk = chunk_of(0);
    ck_assert(!chunk.write_waiting);
    ck_assert_uint_eq(chunk.where, KVT_WHERE_HOST | KVT_WHERE_NVME);
    ck_assert_uint_ne(chunk.digest, 0);
    ck_assert_uint_gt(f.disk[chunk.nvme_slab][chunk.nvme_slot].n_bytes, 0);

    job(KVT_JOB_DEMOTE, 0, 0, 0, 1);
    ck_assert_uint_eq(chunk_of(0).where, KVT_WHERE_NVME);
    ck_assert_uint_eq(chunk_of(0).host_offset, 0);
    struct kvt_key key = fixture_key(0);
    ck_assert_int_eq(kvt_core_load(f.core, s, 2, ns, &key, 1, 0, f.now_ns + 50 * MS, f.now_ns),
                     KVT_OK);
    fixture_flush(&f);
    chunk = chunk_of(0);
    ck_assert_int_eq(chunk.host, KVT_COPY_COMING);
    ck_assert_uint_eq(chunk.where, KVT_WHERE_NVME);
    fixture_settle(&f);
    chunk = chunk_of(0);
    ck_assert_int_eq(chunk.host, KVT_COPY_VALID);
    ck_assert_uint_eq(chunk.n_pins, 1); /* by the load */
    ck_assert(chunk.reused);
    kvt_core_load_done(f.core, s, 2, f.now_ns);
    ck_assert_uint_eq(chunk_of(0).n_pins, 0);
}
END_TEST

START_TEST(a_reservation_is_no_chunk_yet)
{
    struct kvt_key key = fixture_key(0);
    struct kvt_admin_chunk chunk;
    ck_assert_int_eq(kvt_core_reserve(f.core, s, 1, ns, &key, 1, 0, f.now_ns + 50 * MS, f.now_ns),
                     KVT_OK);
    fixture_flush(&f);
    ck_assert_uint_eq(count(&all), 0);
    ck_assert_int_eq(kvt_core_chunk(f.core, ns, &key, &chunk), KVT_ERR_MISS);
    ck_assert_int_eq(kvt_core_chunk(f.core, ns + 1, &key, &chunk), KVT_ERR_INVAL);
    ck_assert_int_eq(kvt_core_chunk(f.core, KVT_ADMIN_NS_ANY, &key, &chunk), KVT_ERR_INVAL);
}
END_TEST

START_TEST(filters_must_all_be_true)
{
    uint32_t other = fixture_ns(&f, "b", 8192, 1);
    fixture_store(&f, s, ns, 1, 0, 4, KVT_STORE_DURABLE); /* both tiers */
    fixture_store(&f, s, other, 2, 0, 3, 0);
    fixture_settle(&f);
    job(KVT_JOB_DEMOTE, 0, 0, 3, 1); /* on NVMe alone */
    struct kvt_wire_lookup_r leased = {0};
    lookup(0, 2, KVT_LOOKUP_LEASE, &leased);
    pin(0, 1);

    struct kvt_admin_filter filter = all;
    ck_assert_uint_eq(count(&filter), 7);
    filter.ns = ns;
    ck_assert_uint_eq(count(&filter), 4);
    filter.tiers = KVT_WHERE_HOST;
    ck_assert_uint_eq(count(&filter), 3);
    filter.tiers = KVT_WHERE_HOST | KVT_WHERE_NVME;
    ck_assert_uint_eq(count(&filter), 4);
    filter.flags = KVT_FILTER_PINNED;
    ck_assert_uint_eq(count(&filter), 1);
    filter.flags = KVT_FILTER_UNPINNED;
    ck_assert_uint_eq(count(&filter), 3);
    filter.flags = KVT_FILTER_LEASED; /* the lease holds the last of its prefix */
    ck_assert_uint_eq(count(&filter), 1);
    ck_assert(listed(1, ns, 1));
    filter.flags = KVT_FILTER_PINNED | KVT_FILTER_UNPINNED;
    ck_assert_uint_eq(count(&filter), 0);

    filter = (struct kvt_admin_filter){.ns = KVT_ADMIN_NS_ANY, .tiers = KVT_WHERE_NVME};
    ck_assert_uint_eq(count(&filter), 4);
    filter = (struct kvt_admin_filter){.ns = KVT_ADMIN_NS_ANY, .min_bytes = 4097};
    ck_assert_uint_eq(count(&filter), 3);
    filter = (struct kvt_admin_filter){.ns = KVT_ADMIN_NS_ANY, .min_bytes = 1, .max_bytes = 8191};
    ck_assert_uint_eq(count(&filter), 4);
    filter = (struct kvt_admin_filter){.ns = KVT_ADMIN_NS_ANY, .n_key_prefix_bytes = 1};
    filter.key_prefix[0] = fixture_key(2).bytes[0];
    ck_assert_uint_eq(count(&filter), 2); /* one of each namespace */
    struct kvt_key whole = fixture_key(2);
    memcpy(filter.key_prefix, whole.bytes, sizeof(whole.bytes));
    filter.n_key_prefix_bytes = KVT_KEY_BYTES;
    ck_assert_uint_eq(count(&filter), 2);
    filter.key_prefix[KVT_KEY_BYTES - 1] ^= 1;
    ck_assert_uint_eq(count(&filter), 0);
    ck_assert_int_eq(kvt_core_release(f.core, s, leased.lease), KVT_OK);
}
END_TEST

START_TEST(a_lookup_of_an_operator_counts_nowhere)
{
    fixture_store(&f, s, ns, 1, 0, 3, KVT_STORE_DURABLE);
    fixture_settle(&f);
    job(KVT_JOB_DEMOTE, 0, 0, 2, 1);
    uint64_t before[KVT_STAT_N], after[KVT_STAT_N];
    kvt_core_stats(f.core, before);
    struct kvt_key keys[5];
    uint8_t where[5];
    unsigned n_hit = 99;
    fixture_keys(keys, 0, 5);
    ck_assert_int_eq(kvt_core_admin_lookup(f.core, ns, keys, 5, &n_hit, where), KVT_OK);
    ck_assert_uint_eq(n_hit, 3);
    ck_assert_uint_eq(where[0], KVT_WHERE_HOST | KVT_WHERE_NVME);
    ck_assert_uint_eq(where[2], KVT_WHERE_NVME);
    ck_assert_int_eq(kvt_core_admin_lookup(f.core, ns, keys + 3, 2, &n_hit, where), KVT_OK);
    ck_assert_uint_eq(n_hit, 0);
    ck_assert_int_eq(kvt_core_admin_lookup(f.core, ns, keys, 0, &n_hit, where), KVT_ERR_INVAL);
    ck_assert_int_eq(kvt_core_admin_lookup(f.core, ns, keys, KVT_BATCH_MAX + 1, &n_hit, where),
                     KVT_ERR_INVAL);
    ck_assert_int_eq(kvt_core_admin_lookup(f.core, ns + 1, keys, 1, &n_hit, where), KVT_ERR_INVAL);
    kvt_core_stats(f.core, after);
    ck_assert_mem_eq(before, after, sizeof(before));
    ck_assert(!chunk_of(0).reused);
}
END_TEST

/* --- namespaces, tiers, sessions, leases ------------------------------------------------------ */

START_TEST(namespaces_and_what_they_hold)
{
    uint32_t other = fixture_ns(&f, "b", 5000, 1);
    fixture_store(&f, s, ns, 1, 0, 3, KVT_STORE_DURABLE);
    fixture_store(&f, s, other, 2, 0, 2, 0);
    fixture_settle(&f);
    job(KVT_JOB_DEMOTE, 0, 0, 2, 1);

    struct kvt_admin_ns spaces[2];
    uint64_t cursor = 0;
    ck_assert_uint_eq(kvt_core_namespaces(f.core, &cursor, spaces, 1), 1);
    ck_assert_uint_ne(cursor, 0);
    ck_assert_uint_eq(kvt_core_namespaces(f.core, &cursor, spaces + 1, 1), 1);
    ck_assert_uint_eq(cursor, 0);
    ck_assert_uint_eq(spaces[0].ns, ns);
    ck_assert_str_eq(spaces[0].desc.model, "a");
    ck_assert_uint_eq(spaces[0].n_chunks, 3);
    ck_assert_uint_eq(spaces[0].n_host, 2);
    ck_assert_uint_eq(spaces[0].n_nvme, 3);
    ck_assert_uint_eq(spaces[0].host_bytes, 2 * 4096);
    ck_assert_uint_eq(spaces[0].nvme_bytes, 3 * 8192);
    ck_assert_uint_eq(spaces[1].ns, other);
    ck_assert_uint_eq(spaces[1].slot_bytes, 8192);
    ck_assert_uint_eq(spaces[1].n_chunks, 2);
    ck_assert_uint_eq(spaces[1].nvme_bytes, 0);

    ck_assert_uint_eq(kvt_core_ns_find(f.core, spaces[1].id), other);
    spaces[1].id[KVT_NS_ID_BYTES - 1] ^= 1;
    ck_assert_uint_eq(kvt_core_ns_find(f.core, spaces[1].id), KVT_ADMIN_NS_ANY);
}
END_TEST

START_TEST(tiers_and_their_books)
{
    fixture_store(&f, s, ns, 1, 0, 3, KVT_STORE_DURABLE);
    fixture_settle(&f);
    job(KVT_JOB_DEMOTE, 0, 0, 2, 1);
    pin(0, 1);
    struct kvt_admin_tier tiers[2];
    ck_assert_uint_eq(kvt_core_tiers(f.core, tiers), 2);
    ck_assert(!tiers[0].nvme && tiers[1].nvme);
    ck_assert_uint_eq(tiers[0].slab_bytes, 8 * KVT_PAGE_BYTES);
    ck_assert_uint_eq(tiers[0].n_slabs, 4);
    ck_assert_uint_eq(tiers[0].n_slabs_free, 3);
    ck_assert_uint_eq(tiers[0].capacity_bytes, 32 * KVT_PAGE_BYTES);
    ck_assert_uint_eq(tiers[0].used_bytes, 2 * 4096);
    ck_assert_uint_eq(tiers[0].free_bytes, 30 * 4096);
    ck_assert_uint_eq(tiers[0].pinned_bytes, 4096);
    ck_assert_uint_eq(tiers[0].n_chunks, 2);
    ck_assert_uint_eq(tiers[0].n_classes, 1);
    ck_assert_uint_eq(tiers[0].classes[0].slot_bytes, 4096);
    ck_assert_uint_eq(tiers[0].classes[0].n_segments, 2);
    ck_assert_uint_eq(tiers[0].classes[0].n_slabs, 1);
    ck_assert_uint_eq(tiers[1].used_bytes, 3 * 8192);
    ck_assert_uint_eq(tiers[1].pinned_bytes, 8192);
    ck_assert_uint_eq(tiers[1].n_chunks, 3);

    struct kvt_core_config config = config_32();
    config.n_nvme_slabs = 0;
    again_with(&config);
    ck_assert_uint_eq(kvt_core_tiers(f.core, tiers), 1);
}
END_TEST

START_TEST(a_tier_that_is_still_growing)
{
    kvt_core_destroy(f.core);
    fixture_create(&f, 1);
    struct kvt_admin_tier tiers[2];
    ck_assert_uint_eq(kvt_core_tiers(f.core, tiers), 2);
    ck_assert_uint_eq(tiers[0].n_slabs_max, 4);
    ck_assert_uint_eq(tiers[0].n_slabs, 1);
    ck_assert_uint_eq(tiers[0].capacity_bytes, 8 * KVT_PAGE_BYTES);
}
END_TEST

START_TEST(sessions_and_leases)
{
    uint32_t second = fixture_session(&f);
    struct kvt_key key = fixture_key(50);
    ck_assert_int_eq(
        kvt_core_reserve(f.core, second, 9, ns, &key, 1, 0, f.now_ns + 50 * MS, f.now_ns), KVT_OK);
    fixture_store(&f, s, ns, 1, 0, 4, 0);
    struct kvt_wire_lookup_r first_lease = {0}, second_lease = {0};
    lookup(0, 4, KVT_LOOKUP_LEASE, &first_lease);
    lookup(0, 1, KVT_LOOKUP_LEASE, &second_lease);

    struct kvt_admin_session sessions[2];
    uint64_t cursor = 0;
    ck_assert_uint_eq(kvt_core_sessions(f.core, &cursor, sessions, 1), 1);
    ck_assert_uint_ne(cursor, 0);
    ck_assert_uint_eq(kvt_core_sessions(f.core, &cursor, sessions + 1, 1), 1);
    ck_assert_uint_eq(sessions[0].session, s);
    ck_assert_uint_eq(sessions[0].n_leases, 2);
    ck_assert_uint_eq(sessions[0].n_ops, 0);
    ck_assert_uint_eq(sessions[1].session, second);
    ck_assert_uint_eq(sessions[1].n_ops, 1);
    ck_assert_uint_eq(sessions[1].reserved_bytes, 4096);

    struct kvt_admin_lease leases[4];
    cursor = 0;
    ck_assert_uint_eq(kvt_core_leases(f.core, &cursor, leases, 1), 1);
    ck_assert_uint_ne(cursor, 0);
    ck_assert_uint_eq(kvt_core_leases(f.core, &cursor, leases + 1, 3), 1);
    ck_assert_uint_eq(cursor, 0);
    struct kvt_key last = fixture_key(3);
    ck_assert_uint_eq(leases[0].lease, first_lease.lease);
    ck_assert_uint_eq(leases[0].session, s);
    ck_assert_uint_eq(leases[0].ns, ns);
    ck_assert_mem_eq(&leases[0].last, &last, sizeof(last));
    ck_assert_uint_eq(leases[0].n_pins, 1); /* the others are held through it */
    ck_assert_uint_eq(leases[0].deadline_ns, f.now_ns + 100 * MS);
    ck_assert_uint_eq(leases[1].lease, second_lease.lease);

    kvt_core_session_close(f.core, second, f.now_ns);
    kvt_core_session_close(f.core, s, f.now_ns);
    cursor = 0;
    while (kvt_core_sessions(f.core, &cursor, sessions, 2) == 0 && cursor != 0)
        continue;
    ck_assert_uint_eq(cursor, 0);
    ck_assert_uint_eq(kvt_core_leases(f.core, &cursor, leases, 4), 0);
}
END_TEST

/* --- pins ------------------------------------------------------------------------------------- */

START_TEST(a_pin_keeps_its_prompt)
{
    fixture_store(&f, s, ns, 1, 0, 4, 0);
    fixture_store(&f, s, ns, 2, 100, 4, 0);
    uint64_t id = 0;
    unsigned n_found = 0;
    ck_assert_int_eq(pin_as("me", 3, 1, 0, &id, &n_found, NULL), KVT_OK); /* the last of them */
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_ADMIN_PINS), 1);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_ADMIN_PINNED_CHUNKS), 4);
    crowd();
    ck_assert_uint_eq(fixture_held(&f, s, ns, 0, 4), 4);
    ck_assert_uint_eq(fixture_held(&f, s, ns, 100, 4), 0);
    ck_assert_int_eq(kvt_core_unpin(f.core, id), KVT_OK);
    ck_assert_int_eq(kvt_core_unpin(f.core, id), KVT_ERR_MISS);
    crowd();
    for (unsigned i = 0; i < 40; i++)
        fixture_store(&f, s, ns, 2000 + i, 2000 + i, 1, 0);
    ck_assert_uint_eq(fixture_held(&f, s, ns, 0, 4), 0);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_PINS), 0);
}
END_TEST

START_TEST(a_pin_keeps_the_copy_on_nvme_too)
{
    fixture_store(&f, s, ns, 1, 0, 4, KVT_STORE_DURABLE);
    fixture_settle(&f);
    job(KVT_JOB_DEMOTE, 0, 0, 0, 4);
    pin(0, 4);
    for (unsigned i = 0; i < 64; i++) {
        fixture_store(&f, s, ns, 1000 + i, 1000 + i, 1, KVT_STORE_DURABLE);
        fixture_settle(&f);
        f.n_answers = 0;
        f.n_metas = f.n_metas_done = 0;
    }
    ck_assert_uint_gt(fixture_stat(&f, KVT_STAT_EVICT_NVME_CHUNKS), 0);
    ck_assert_uint_eq(fixture_held(&f, s, ns, 0, 4), 4);
}
END_TEST

START_TEST(a_pin_takes_what_is_there)
{
    fixture_store(&f, s, ns, 1, 0, 2, 0);
    uint64_t id = 0;
    unsigned n_found = 0;
    ck_assert_int_eq(pin_as("me", 0, 5, 0, &id, &n_found, NULL), KVT_OK);
    ck_assert_uint_eq(n_found, 2);
    struct kvt_admin_pin info;
    struct kvt_key last = fixture_key(1);
    uint64_t cursor = 0;
    ck_assert_uint_eq(kvt_core_pins(f.core, &cursor, &info, 1), 1);
    ck_assert_uint_eq(info.id, id);
    ck_assert_uint_eq(info.ns, ns);
    ck_assert_uint_eq(info.n_chunks, 2);
    ck_assert_uint_eq(info.n_lost, 0);
    ck_assert_uint_eq(info.bytes, 2 * 4096);
    ck_assert_str_eq(info.owner, "me");
    ck_assert_mem_eq(&info.last, &last, sizeof(last));
    ck_assert_uint_eq(info.made_ns, f.now_ns);
    ck_assert_uint_eq(info.deadline_ns, UINT64_MAX);
}
END_TEST

START_TEST(a_pin_ends_with_its_time)
{
    fixture_store(&f, s, ns, 1, 0, 2, 0);
    uint64_t id = 0;
    unsigned n_found = 0;
    ck_assert_int_eq(pin_as("me", 0, 2, 10 * MS, &id, &n_found, NULL), KVT_OK);
    ck_assert_uint_eq(kvt_core_next_deadline(f.core), f.now_ns + 10 * MS);
    f.now_ns += 10 * MS - 1;
    fixture_flush(&f);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_ADMIN_PINS), 1);
    f.now_ns += 1;
    fixture_flush(&f);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_ADMIN_PINS), 0);
    ck_assert_uint_eq(chunk_of(1).n_admin_pins, 0);
    ck_assert_int_eq(kvt_core_unpin(f.core, id), KVT_ERR_MISS);
    ck_assert_int_eq(pin_as("me", 0, 2, UINT64_MAX, &id, &n_found, NULL), KVT_OK); /* no overflow */
    fixture_flush(&f);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_ADMIN_PINS), 1);
}
END_TEST

START_TEST(pins_belong_to_owners_and_not_to_sessions)
{
    fixture_store(&f, s, ns, 1, 0, 4, 0);
    unsigned n_found = 0;
    uint64_t id = 0;
    static const char *const owners[] = {"ann", "bob", "ann", "ann2"};
    for (unsigned i = 0; i < KVT_ARRAY_LEN(owners); i++)
        ck_assert_int_eq(pin_as(owners[i], i, 1, 0, &id, &n_found, NULL), KVT_OK);
    kvt_core_session_close(f.core, s, f.now_ns);
    s = fixture_session(&f);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_ADMIN_PINS), 4);
    ck_assert_uint_eq(kvt_core_unpin_owner(f.core, "nobody"), 0);
    ck_assert_uint_eq(kvt_core_unpin_owner(f.core, "ann"), 2);
    struct kvt_admin_pin pins[4];
    uint64_t cursor = 0;
    ck_assert_uint_eq(kvt_core_pins(f.core, &cursor, pins, 1), 1);
    ck_assert_uint_ne(cursor, 0);
    ck_assert_uint_eq(kvt_core_pins(f.core, &cursor, pins + 1, 3), 1);
    ck_assert_str_eq(pins[0].owner, "bob");
    ck_assert_str_eq(pins[1].owner, "ann2");
    ck_assert_uint_eq(chunk_of(3).n_admin_pins, 1);
    ck_assert_uint_eq(chunk_of(1).n_admin_pins, 2);
}
END_TEST

START_TEST(unpin_by_the_keys_of_a_pin)
{
    fixture_store(&f, s, ns, 1, 0, 4, 0);
    pin(0, 2);
    pin(1, 1); /* ends at the same chunk */
    pin(3, 1);
    struct kvt_key keys[2];
    fixture_keys(keys, 0, 2);
    ck_assert_uint_eq(kvt_core_unpin_keys(f.core, ns + 1, keys, 2), 0);
    ck_assert_uint_eq(kvt_core_unpin_keys(f.core, ns, keys, 1), 0); /* the last of no pin */
    ck_assert_uint_eq(kvt_core_unpin_keys(f.core, ns, keys, 2), 2);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_ADMIN_PINS), 1);
}
END_TEST

START_TEST(a_pin_tells_what_it_lost)
{
    fixture_store(&f, s, ns, 1, 0, 3, 0);
    uint64_t id = pin(0, 3);
    job(KVT_JOB_DELETE, 0, KVT_JOB_FORCE, 1, 1);
    struct kvt_admin_pin info;
    uint64_t cursor = 0;
    ck_assert_uint_eq(kvt_core_pins(f.core, &cursor, &info, 1), 1);
    ck_assert_uint_eq(info.n_chunks, 3);
    ck_assert_uint_eq(info.n_lost, 1);
    fixture_store(&f, s, ns, 2, 1, 1, 0); /* a new chunk, which the pin does not hold */
    ck_assert_uint_eq(chunk_of(1).n_admin_pins, 0);
    ck_assert_int_eq(kvt_core_unpin(f.core, id), KVT_OK);
    ck_assert_uint_eq(chunk_of(1).n_admin_pins, 0);
}
END_TEST

START_TEST(what_cannot_be_pinned_says_why)
{
    fixture_store(&f, s, ns, 1, 0, 3, 0);
    struct kvt_key keys[3];
    fixture_keys(keys, 0, 3);
    char owner[KVT_ADMIN_OWNER_MAX + 1];
    memset(owner, 'x', sizeof(owner));
    owner[KVT_ADMIN_OWNER_MAX] = '\0';
    struct kvt_error err = {.msg = ""};
    uint64_t id = 0;
    unsigned n = 0;
    ck_assert_int_eq(kvt_core_pin(f.core, ns + 1, keys, 3, "me", 0, f.now_ns, &id, &n, &err),
                     KVT_ERR_INVAL);
    ck_assert_ptr_nonnull(strstr(err.msg, "namespace"));
    ck_assert_int_eq(kvt_core_pin(f.core, ns, keys, 0, "me", 0, f.now_ns, &id, &n, &err),
                     KVT_ERR_INVAL);
    ck_assert_ptr_nonnull(strstr(err.msg, "keys"));
    ck_assert_int_eq(
        kvt_core_pin(f.core, ns, keys, KVT_BATCH_MAX + 1, "me", 0, f.now_ns, &id, &n, &err),
        KVT_ERR_INVAL);
    ck_assert_int_eq(kvt_core_pin(f.core, ns, keys, 3, owner, 0, f.now_ns, &id, &n, &err),
                     KVT_ERR_INVAL);
    ck_assert_ptr_nonnull(strstr(err.msg, "owner"));
    owner[KVT_ADMIN_OWNER_MAX - 1] = '\0'; /* the longest that is allowed */
    ck_assert_int_eq(kvt_core_pin(f.core, ns, keys, 3, owner, 0, f.now_ns, &id, &n, &err), KVT_OK);
    ck_assert_int_eq(pin_as("me", 500, 3, 0, &id, &n, &err), KVT_ERR_MISS);
    ck_assert_ptr_nonnull(strstr(err.msg, "held"));
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_ADMIN_PINS), 1);
}
END_TEST

START_TEST(pins_may_hold_half_of_host_memory)
{
    for (unsigned i = 0; i < 5; i++)
        fixture_store(&f, s, ns, 1 + i, 100 * i, 6, 0);
    uint64_t first = pin(0, 6), id = 0;
    pin(100, 6);
    ck_assert_int_eq(kvt_core_unpin(f.core, pin(100, 6)), KVT_OK); /* the same chunks, no more */
    unsigned n = 0;
    struct kvt_error err = {.msg = ""};
    ck_assert_int_eq(pin_as("me", 200, 6, 0, &id, &n, &err), KVT_ERR_NOSPACE);
    ck_assert_ptr_nonnull(strstr(err.msg, "65536 bytes"));
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_ADMIN_PINNED_CHUNKS), 12); /* nothing stays */
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_PINS), 12);
    ck_assert_uint_eq(chunk_of(200).n_admin_pins, 0);
    ck_assert_int_eq(kvt_core_unpin(f.core, first), KVT_OK);
    pin(200, 6);
}
END_TEST

START_TEST(the_table_of_pins_has_an_end)
{
    struct kvt_core_config config = config_32();
    config.host_slab_bytes = 1024 * KVT_PAGE_BYTES;
    again_with(&config);
    fixture_store(&f, s, ns, 1, 0, 1, 0);
    uint64_t last = 0, id = 0, cursor = 0;
    unsigned n = 0, n_listed = 0;
    struct kvt_error err = {.msg = ""};
    for (unsigned i = 0; i < KVT_ADMIN_PINS_MAX; i++)
        last = pin(0, 1);
    ck_assert_int_eq(pin_as("me", 0, 1, 0, &id, &n, &err), KVT_ERR_NOSPACE);
    ck_assert_ptr_nonnull(strstr(err.msg, "1024"));
    do {
        struct kvt_admin_pin pins[100];
        n_listed += kvt_core_pins(f.core, &cursor, pins, 100);
    } while (cursor != 0);
    ck_assert_uint_eq(n_listed, KVT_ADMIN_PINS_MAX);
    ck_assert_int_eq(kvt_core_unpin(f.core, last), KVT_OK);
    ck_assert_uint_ne(pin(0, 1), last); /* numbers do not come again */
    ck_assert_uint_eq(kvt_core_unpin_owner(f.core, "me"), KVT_ADMIN_PINS_MAX);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_PINS), 0);
}
END_TEST

START_TEST(pins_are_not_remembered_over_a_restart)
{
    fixture_store(&f, s, ns, 1, 0, 2, KVT_STORE_DURABLE);
    fixture_settle(&f);
    uint64_t id = pin(0, 2);
    ck_assert_uint_eq(fixture_restart(&f), 0);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_CHUNKS), 2);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_ADMIN_PINS), 0);
    ck_assert_int_eq(kvt_core_unpin(f.core, id), KVT_ERR_MISS);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("admin");
    TCase *tcase = tcase_create("rules");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, each_chunk_is_listed_once_whatever_the_page);
    tcase_add_test(tcase, an_empty_index_is_one_empty_page);
    tcase_add_test(tcase, a_cursor_from_nowhere_is_the_end);
    tcase_add_test(tcase, one_call_looks_at_a_bounded_number_of_records);
    tcase_add_test(tcase, what_a_chunk_is_told_as);
    tcase_add_test(tcase, a_chunk_on_its_way_to_nvme_and_back);
    tcase_add_test(tcase, a_reservation_is_no_chunk_yet);
    tcase_add_test(tcase, filters_must_all_be_true);
    tcase_add_test(tcase, a_lookup_of_an_operator_counts_nowhere);
    tcase_add_test(tcase, namespaces_and_what_they_hold);
    tcase_add_test(tcase, tiers_and_their_books);
    tcase_add_test(tcase, a_tier_that_is_still_growing);
    tcase_add_test(tcase, sessions_and_leases);
    tcase_add_test(tcase, a_pin_keeps_its_prompt);
    tcase_add_test(tcase, a_pin_keeps_the_copy_on_nvme_too);
    tcase_add_test(tcase, a_pin_takes_what_is_there);
    tcase_add_test(tcase, a_pin_ends_with_its_time);
    tcase_add_test(tcase, pins_belong_to_owners_and_not_to_sessions);
    tcase_add_test(tcase, unpin_by_the_keys_of_a_pin);
    tcase_add_test(tcase, a_pin_tells_what_it_lost);
    tcase_add_test(tcase, what_cannot_be_pinned_says_why);
    tcase_add_test(tcase, pins_may_hold_half_of_host_memory);
    tcase_add_test(tcase, the_table_of_pins_has_an_end);
    tcase_add_test(tcase, pins_are_not_remembered_over_a_restart);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_tap(runner, "-");
    srunner_run_all(runner, CK_SILENT);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
