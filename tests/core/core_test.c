/* SPDX-License-Identifier: Apache-2.0 */
/* What core.h and wire.h promise about namespaces, lookups, leases, stores and loads from host
 * memory, one rule at a time. Tiers and restarts: core_tier_test.c. */
#include "core_fixture.h"

static struct fixture f;
static uint32_t s, ns;

static void setup(void)
{
    struct kvt_core_config config = fixture_config();
    fixture_init(&f, &config);
    s = fixture_session(&f);
    ns = fixture_ns(&f, "a", 4096, 2);
    fixture_settle(&f);
}

static void teardown(void)
{
    fixture_fini(&f);
}

static enum kvt_status reserve(uint64_t op, unsigned first, unsigned n, uint32_t flags,
                               uint64_t deadline_ns)
{
    struct kvt_key keys[64];
    fixture_keys(keys, first, n);
    return kvt_core_reserve(f.core, s, op, ns, keys, n, flags, deadline_ns, f.now_ns);
}

static enum kvt_status load(uint64_t op, unsigned first, unsigned n, uint32_t flags)
{
    struct kvt_key keys[64];
    fixture_keys(keys, first, n);
    return kvt_core_load(f.core, s, op, ns, keys, n, flags, f.now_ns + 50 * MS, f.now_ns);
}

static enum kvt_status commit(uint64_t op, unsigned first, uint32_t a, uint32_t b, unsigned n)
{
    uint32_t indexes[2] = {a, b};
    uint64_t sums[4];
    fixture_sums(&f, ns, first + a, sums);
    fixture_sums(&f, ns, first + b, sums + 2);
    return kvt_core_commit(f.core, s, op, indexes, n, 0, sums, f.now_ns);
}

static struct kvt_wire_lookup_r leased(unsigned first, unsigned n, uint32_t ttl_ms)
{
    struct kvt_key keys[64];
    uint8_t where[64];
    struct kvt_wire_lookup_r reply = {0};
    fixture_keys(keys, first, n);
    kvt_core_lookup(f.core, s, ns, keys, n, KVT_LOOKUP_LEASE, ttl_ms, f.now_ns, &reply, where);
    return reply;
}

/* --- configuration, sessions, namespaces ------------------------------------------------------ */

START_TEST(bad_config_is_named)
{
    struct kvt_core_config config = fixture_config();
    struct kvt_core_actions actions = {0};
    struct kvt_core *core = NULL;
    struct kvt_error err = {.msg = ""};
    config.n_ios_max = 0;
    ck_assert_int_eq(kvt_core_create(&config, &actions, &core, &err), KVT_ERR_INVAL);
    ck_assert_ptr_nonnull(strstr(err.msg, "n_ios_max"));
    config = fixture_config();
    config.host_policy = NULL;
    ck_assert_int_eq(kvt_core_create(&config, &actions, &core, &err), KVT_ERR_INVAL);
    ck_assert_ptr_nonnull(strstr(err.msg, "policy"));
    ck_assert_ptr_null(core);
}
END_TEST

START_TEST(sessions_are_bounded)
{
    uint32_t other = UINT32_MAX;
    for (unsigned i = 1; i < f.config.n_sessions_max; i++)
        (void)fixture_session(&f);
    ck_assert_int_eq(kvt_core_session_open(f.core, &other), KVT_ERR_AGAIN);
    kvt_core_session_close(f.core, s, f.now_ns);
    ck_assert_int_eq(kvt_core_session_open(f.core, &other), KVT_OK);
}
END_TEST

START_TEST(namespace_is_found_again)
{
    ck_assert_uint_eq(fixture_ns(&f, "a", 4096, 2), ns);
    ck_assert_uint_ne(fixture_ns(&f, "b", 4096, 2), ns);
    ck_assert_str_eq(kvt_core_ns_desc(f.core, ns)->model, "a");
    ck_assert_ptr_null(kvt_core_ns_desc(f.core, 77));
}
END_TEST

static enum kvt_status tenant_open(unsigned number, uint32_t *ns_p)
{
    struct kvt_ns_desc desc = fixture_desc("a", 4096, 2);
    uint64_t slot_bytes;
    for (unsigned i = 0; i < 4; i++) /* a string: no zero in it */
        desc.salt[i] = (char)('a' + (number >> (5 * i) & 31));
    return kvt_core_ns_open(f.core, s, &desc, ns_p, &slot_bytes, NULL);
}

/* As many as there may be, at a start and when they are named again: going through all of them for
 * each takes half a minute. */
START_TEST(many_namespaces_are_found_at_once)
{
    struct kvt_core_config config = fixture_config();
    uint32_t found;
    config.n_nvme_slabs = 0;
    config.n_ns_max = config.n_ns_session_max = 65536;
    fixture_fini(&f);
    fixture_init(&f, &config);
    s = fixture_session(&f);
    for (unsigned i = 0; i < 65536; i++) {
        ck_assert_int_eq(tenant_open(i, &found), KVT_OK);
        ck_assert_uint_eq(found, i);
    }
    ck_assert_int_eq(tenant_open(65536, &found), KVT_ERR_NOSPACE);
    struct kvt_core *first = f.core;
    fixture_create(&f, config.n_host_slabs);
    for (unsigned i = 0; i < 65536; i++)
        kvt_core_restore_ns(f.core, i, i, kvt_core_ns_desc(first, i));
    kvt_core_restore_ns(f.core, 7, 7, kvt_core_ns_desc(first, 7)); /* twice */
    kvt_core_destroy(first);
    ck_assert_uint_eq(kvt_core_restore_end(f.core), 1);
    s = fixture_session(&f);
    for (unsigned i = 0; i < 65536; i++) {
        ck_assert_int_eq(tenant_open(i, &found), KVT_OK);
        ck_assert_uint_eq(found, i);
    }
}
END_TEST

START_TEST(namespace_that_fits_no_slab_is_refused)
{
    struct kvt_ns_desc desc = fixture_desc("big", 5 * KVT_PAGE_BYTES, 1);
    struct kvt_error err = {.msg = ""};
    uint32_t n = 0;
    uint64_t slot_bytes = 0;
    ck_assert_int_eq(kvt_core_ns_open(f.core, s, &desc, &n, &slot_bytes, &err), KVT_ERR_INVAL);
    ck_assert_uint_gt(strlen(err.msg), 20);
}
END_TEST

/* Of 20 shapes: sizes of 1 to 5 pages, in 1, 2, 4 or 8 pieces. */
static enum kvt_status shape_open(unsigned number, uint32_t *ns_p)
{
    struct kvt_ns_desc desc =
        fixture_desc("shapes", 4096 * (1 + number / 4), UINT32_C(1) << number % 4);
    uint64_t slot_bytes;
    return kvt_core_ns_open(f.core, s, &desc, ns_p, &slot_bytes, NULL);
}

static void shapes_begin(void)
{
    struct kvt_core_config config = fixture_config();
    config.n_host_slabs = 20;
    config.host_slab_bytes = config.nvme_slab_bytes = 8 * KVT_PAGE_BYTES;
    config.n_nvme_slabs = 8;
    fixture_fini(&f);
    fixture_init(&f, &config);
    s = fixture_session(&f);
}

START_TEST(shapes_that_hold_nothing_make_way)
{
    uint32_t all[20];
    shapes_begin();
    for (unsigned i = 0; i < 20; i++)
        ck_assert_int_eq(shape_open(i, &all[i]), KVT_OK);
    fixture_settle(&f);
    for (unsigned i = 0; i < 16; i++) { /* who lost its place to another takes it back */
        fixture_store(&f, s, all[i], 1 + i, i, 1, 0);
        ck_assert_uint_eq(fixture_held(&f, s, all[i], i, 1), 1);
    }
    /* All places hold something now: said when a namespace is opened, and to who has one open. */
    uint32_t ns_late;
    struct kvt_key key = fixture_key(90);
    ck_assert_int_eq(shape_open(19, &ns_late), KVT_ERR_NOSPACE);
    ck_assert_int_eq(kvt_core_reserve(f.core, s, 50, all[19], &key, 1, 0, 0, f.now_ns),
                     KVT_ERR_NOSPACE);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_STORE_REFUSED_CHUNKS), 1);
    ck_assert_uint_eq(fixture_held(&f, s, all[15], 15, 1), 1);
}
END_TEST

START_TEST(more_shapes_than_places_are_restored)
{
    uint32_t all[20], again;
    shapes_begin();
    for (unsigned i = 0; i < 20; i++)
        ck_assert_int_eq(shape_open(i, &all[i]), KVT_OK);
    fixture_settle(&f);
    for (unsigned i = 15; i < 20; i++)
        fixture_store(&f, s, all[i], 1 + i, i, 1, KVT_STORE_DURABLE);
    fixture_settle(&f);
    ck_assert_uint_eq(fixture_restart(&f), 0);
    s = fixture_session(&f);
    for (unsigned i = 15; i < 20; i++) {
        ck_assert_int_eq(shape_open(i, &again), KVT_OK);
        ck_assert_uint_eq(again, all[i]);
        ck_assert_uint_eq(fixture_held(&f, s, again, i, 1), 1);
    }
}
END_TEST

START_TEST(namespaces_do_not_mix)
{
    uint32_t other = fixture_ns(&f, "b", 4096, 2);
    fixture_store(&f, s, ns, 1, 0, 2, 0);
    ck_assert_uint_eq(fixture_held(&f, s, ns, 0, 2), 2);
    ck_assert_uint_eq(fixture_held(&f, s, other, 0, 2), 0);
}
END_TEST

/* --- lookups and leases ----------------------------------------------------------------------- */

START_TEST(lookup_finds_the_prefix)
{
    fixture_store(&f, s, ns, 1, 0, 2, 0);
    fixture_store(&f, s, ns, 2, 3, 1, 0); /* a gap at key 2 */
    ck_assert_uint_eq(fixture_held(&f, s, ns, 0, 4), 2);
    ck_assert_uint_eq(fixture_held(&f, s, ns, 3, 1), 1);
    ck_assert_uint_eq(fixture_held(&f, s, ns, 2, 2), 0);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_LOOKUPS), 3);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_LOOKUP_KEYS), 7);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_LOOKUP_HITS), 3);
}
END_TEST

START_TEST(lookup_refuses_bad_arguments)
{
    struct kvt_key key = fixture_key(0);
    struct kvt_wire_lookup_r reply = {0};
    uint8_t where[1];
    kvt_core_lookup(f.core, s, 99, &key, 1, 0, 0, f.now_ns, &reply, where);
    ck_assert_int_eq(reply.status, KVT_ERR_INVAL);
    kvt_core_lookup(f.core, s, ns, &key, 0, 0, 0, f.now_ns, &reply, where);
    ck_assert_int_eq(reply.status, KVT_ERR_INVAL);
    kvt_core_lookup(f.core, s, ns, &key, 1, 64, 0, f.now_ns, &reply, where);
    ck_assert_int_eq(reply.status, KVT_ERR_INVAL);
}
END_TEST

START_TEST(lease_is_gone_when_released)
{
    fixture_store(&f, s, ns, 1, 0, 3, 0);
    struct kvt_wire_lookup_r reply = leased(0, 3, 0);
    ck_assert_uint_ne(reply.lease, 0);
    ck_assert_uint_eq(reply.lease_deadline_ns, f.now_ns + f.config.lease_ttl_ns);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_LEASES), 1);
    ck_assert_uint_gt(fixture_stat(&f, KVT_STAT_PINS), 0);
    ck_assert_int_eq(kvt_core_release(f.core, s, reply.lease), KVT_OK);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_LEASES), 0);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_PINS), 0);
    ck_assert_int_eq(kvt_core_release(f.core, s, reply.lease), KVT_ERR_EXPIRED);
}
END_TEST

START_TEST(lease_runs_out)
{
    fixture_store(&f, s, ns, 1, 0, 1, 0);
    struct kvt_wire_lookup_r reply = leased(0, 1, 20);
    ck_assert_uint_eq(reply.lease_deadline_ns, f.now_ns + 20 * MS);
    ck_assert_uint_eq(kvt_core_next_deadline(f.core), reply.lease_deadline_ns);
    f.now_ns = reply.lease_deadline_ns;
    fixture_flush(&f);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_LEASES), 0);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_LEASES_EXPIRED), 1);
    ck_assert_int_eq(kvt_core_release(f.core, s, reply.lease), KVT_ERR_EXPIRED);
}
END_TEST

START_TEST(lease_is_clipped_and_bounded)
{
    fixture_store(&f, s, ns, 1, 0, 1, 0);
    ck_assert_uint_eq(leased(0, 1, UINT32_MAX).lease_deadline_ns,
                      f.now_ns + f.config.lease_ttl_max_ns);
    for (unsigned i = 1; i < f.config.n_leases_session_max; i++)
        ck_assert_uint_ne(leased(0, 1, 0).lease, 0);
    struct kvt_wire_lookup_r reply = leased(0, 1, 0);
    ck_assert_uint_eq(reply.n_hit, 1); /* an answer all the same, without a lease */
    ck_assert_uint_eq(reply.lease, 0);
    kvt_core_session_close(f.core, s, f.now_ns);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_LEASES), 0);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_PINS), 0);
}
END_TEST

START_TEST(lease_belongs_to_its_session)
{
    uint32_t other = fixture_session(&f);
    fixture_store(&f, s, ns, 1, 0, 1, 0);
    struct kvt_wire_lookup_r reply = leased(0, 1, 0);
    ck_assert_int_eq(kvt_core_release(f.core, other, reply.lease), KVT_ERR_EXPIRED);
    ck_assert_int_eq(kvt_core_release(f.core, s, reply.lease + 1), KVT_ERR_EXPIRED);
    ck_assert_int_eq(kvt_core_release(f.core, s, 0), KVT_ERR_EXPIRED);
    ck_assert_int_eq(kvt_core_release(f.core, s, reply.lease), KVT_OK);
}
END_TEST

START_TEST(leased_chunks_are_not_evicted)
{
    fixture_store(&f, s, ns, 1, 0, 8, 0);
    ck_assert_uint_eq(leased(0, 8, 1000).n_hit, 8);
    for (unsigned i = 0; i < 5; i++) /* more than the other half has room for */
        fixture_store(&f, s, ns, 2 + i, 100 + 8 * i, 8, 0);
    ck_assert_uint_eq(fixture_held(&f, s, ns, 0, 8), 8);
    ck_assert_uint_gt(fixture_stat(&f, KVT_STAT_EVICT_HOST_CHUNKS), 0);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_EVICT_HOST_ROOM),
                      fixture_stat(&f, KVT_STAT_EVICT_HOST_CHUNKS));
}
END_TEST

/* --- stores ----------------------------------------------------------------------------------- */

START_TEST(nothing_is_visible_before_its_commit)
{
    ck_assert_int_eq(reserve(1, 0, 2, 0, 0), KVT_OK);
    ck_assert_uint_eq(f.n_answers, 0); /* nothing is emitted outside of flush */
    fixture_flush(&f);
    ck_assert_uint_eq(fixture_take(&f, 'r', 1, 0).n_open, 2);
    ck_assert_int_eq(fixture_take(&f, 'r', 1, 1).item.status, KVT_OK);
    ck_assert_uint_eq(fixture_held(&f, s, ns, 0, 2), 0);
    ck_assert_int_eq(load(2, 0, 2, 0), KVT_OK);
    fixture_flush(&f);
    ck_assert_int_eq(fixture_take(&f, 'l', 2, 0).item.status, KVT_ERR_MISS);
    ck_assert_int_eq(commit(1, 0, 0, 0, 1), KVT_OK);
    fixture_flush(&f);
    ck_assert_uint_eq(fixture_take(&f, 'c', 1, 0).n_open, 1);
    ck_assert_uint_eq(fixture_held(&f, s, ns, 0, 2), 1);
}
END_TEST

START_TEST(held_and_reserved_keys_are_not_stored_again)
{
    uint32_t other = fixture_session(&f);
    struct kvt_key keys[3];
    fixture_store(&f, s, ns, 1, 0, 1, 0);
    ck_assert_int_eq(reserve(2, 1, 1, 0, 0), KVT_OK);
    fixture_keys(keys, 0, 3);
    ck_assert_int_eq(kvt_core_reserve(f.core, other, 1, ns, keys, 3, 0, 0, f.now_ns), KVT_OK);
    fixture_flush(&f);
    ck_assert_int_eq(fixture_take(&f, 'r', 2, 0).item.status, KVT_OK);
    ck_assert_int_eq(fixture_take(&f, 'r', 1, 0).item.status, KVT_ERR_EXISTS);
    ck_assert_int_eq(fixture_take(&f, 'r', 1, 1).item.status, KVT_ERR_BUSY);
    struct answer a = fixture_take(&f, 'r', 1, 2);
    ck_assert_int_eq(a.item.status, KVT_OK);
    ck_assert_uint_eq(a.n_open, 1);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_STORE_EXISTS_CHUNKS), 1);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_STORE_BUSY_CHUNKS), 1);
}
END_TEST

START_TEST(one_key_twice_in_a_store)
{
    struct kvt_key keys[2] = {fixture_key(0), fixture_key(0)};
    ck_assert_int_eq(kvt_core_reserve(f.core, s, 1, ns, keys, 2, 0, 0, f.now_ns), KVT_OK);
    fixture_flush(&f);
    ck_assert_int_eq(fixture_take(&f, 'r', 1, 0).item.status, KVT_OK);
    ck_assert_int_eq(fixture_take(&f, 'r', 1, 1).item.status, KVT_ERR_BUSY);
}
END_TEST

START_TEST(store_of_held_keys_is_over_at_once)
{
    fixture_store(&f, s, ns, 1, 0, 2, 0);
    ck_assert_int_eq(reserve(2, 0, 2, 0, 0), KVT_OK);
    fixture_flush(&f);
    ck_assert_uint_eq(fixture_take(&f, 'r', 2, 0).n_open, 0);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_OPS), 0);
    ck_assert_int_eq(kvt_core_cancel(f.core, s, 2, f.now_ns), KVT_ERR_INVAL);
}
END_TEST

START_TEST(commit_refuses_what_is_not_reserved)
{
    uint64_t sums[8] = {0};
    uint32_t twice[2] = {0, 0}, far[2] = {0, 2};
    ck_assert_int_eq(commit(1, 0, 0, 1, 2), KVT_ERR_INVAL);
    ck_assert_int_eq(reserve(1, 0, 2, 0, 0), KVT_OK);
    ck_assert_int_eq(commit(1, 0, 0, 1, 2), KVT_ERR_INVAL); /* not answered yet */
    fixture_flush(&f);
    ck_assert_int_eq(kvt_core_commit(f.core, s, 1, twice, 2, 0, sums, f.now_ns), KVT_ERR_INVAL);
    ck_assert_int_eq(kvt_core_commit(f.core, s, 1, far, 2, 0, sums, f.now_ns), KVT_ERR_INVAL);
    ck_assert_int_eq(kvt_core_commit(f.core, s, 1, far, 0, 0, sums, f.now_ns), KVT_ERR_INVAL);
    ck_assert_uint_eq(fixture_held(&f, s, ns, 0, 1), 0); /* nothing of them was committed */
    ck_assert_int_eq(commit(1, 0, 1, 0, 1), KVT_OK);
    ck_assert_int_eq(commit(1, 0, 1, 0, 1), KVT_ERR_INVAL); /* a second time */
    ck_assert_uint_eq(kvt_core_op_segments(f.core, s, 1), 2);
    ck_assert_int_eq(commit(1, 0, 0, 0, 1), KVT_OK);
    fixture_flush(&f);
    ck_assert_uint_eq(kvt_core_op_segments(f.core, s, 1), 0);
    ck_assert_uint_eq(fixture_held(&f, s, ns, 0, 2), 2);
}
END_TEST

START_TEST(aborted_items_go_back_unseen)
{
    uint32_t indexes[2] = {0, 1};
    ck_assert_int_eq(reserve(1, 0, 3, 0, 0), KVT_OK);
    fixture_flush(&f);
    f.n_answers = 0;
    ck_assert_int_eq(kvt_core_commit(f.core, s, 1, indexes, 2, KVT_COMMIT_ABORT, NULL, f.now_ns),
                     KVT_OK);
    ck_assert_int_eq(commit(1, 0, 2, 0, 1), KVT_OK);
    fixture_flush(&f);
    ck_assert_uint_eq(f.n_answers, 1); /* an abort is not answered */
    ck_assert_uint_eq(fixture_take(&f, 'c', 1, 2).n_open, 0);
    ck_assert_uint_eq(fixture_held(&f, s, ns, 0, 1), 0);
    ck_assert_uint_eq(fixture_held(&f, s, ns, 2, 1), 1);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_RESERVED_BYTES), 0);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_HOST_USED_BYTES), 4096);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_STORE_ABORTED_CHUNKS), 2);
}
END_TEST

START_TEST(cancel_takes_reservations_back)
{
    ck_assert_int_eq(reserve(1, 0, 3, 0, 0), KVT_OK);
    ck_assert_int_eq(kvt_core_cancel(f.core, s, 1, f.now_ns), KVT_OK);
    fixture_flush(&f);
    ck_assert_uint_eq(f.n_answers, 0); /* not even the answer to the reserve */
    ck_assert_int_eq(reserve(1, 0, 3, 0, 0), KVT_OK);
    fixture_flush(&f);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_RESERVED_BYTES), 3 * 4096);
    ck_assert_int_eq(commit(1, 0, 0, 0, 1), KVT_OK);
    ck_assert_int_eq(kvt_core_cancel(f.core, s, 1, f.now_ns), KVT_OK);
    f.n_answers = 0;
    fixture_flush(&f);
    ck_assert_uint_eq(f.n_answers, 0);
    ck_assert_uint_eq(fixture_held(&f, s, ns, 0, 3), 1); /* what was committed stays */
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_RESERVED_BYTES), 0);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_OPS), 0);
}
END_TEST

START_TEST(a_session_that_ends_gives_all_back)
{
    uint32_t other = fixture_session(&f);
    ck_assert_int_eq(reserve(1, 0, 3, 0, 0), KVT_OK);
    fixture_flush(&f);
    fixture_store(&f, s, ns, 2, 10, 2, 0);
    ck_assert_int_eq(load(3, 10, 2, 0), KVT_OK);
    fixture_flush(&f);
    f.n_answers = 0;
    kvt_core_session_close(f.core, s, f.now_ns);
    fixture_flush(&f);
    ck_assert_uint_eq(f.n_answers, 0);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_OPS), 0);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_PINS), 0);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_RESERVED_BYTES), 0);
    ck_assert_uint_eq(fixture_held(&f, other, ns, 10, 2), 2);
}
END_TEST

START_TEST(reservations_do_not_end_by_time)
{
    ck_assert_int_eq(reserve(1, 0, 1, 0, f.now_ns + 5 * MS), KVT_OK);
    fixture_flush(&f);
    f.now_ns += UINT64_C(1000000) * MS;
    fixture_flush(&f);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_RESERVED_BYTES), 4096);
    ck_assert_int_eq(commit(1, 0, 0, 0, 1), KVT_OK);
}
END_TEST

START_TEST(a_session_cannot_reserve_the_whole_arena)
{
    unsigned n_ok = 0;
    ck_assert_int_eq(reserve(1, 0, 16, 0, 0), KVT_OK);
    fixture_flush(&f);
    for (unsigned i = 0; i < 16; i++) {
        struct answer a = fixture_take(&f, 'r', 1, i);
        ck_assert(a.item.status == KVT_OK || a.item.status == KVT_ERR_NOSPACE);
        n_ok += a.item.status == KVT_OK;
    }
    ck_assert_uint_gt(n_ok, 0);
    ck_assert_uint_lt(n_ok, 16);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_STORE_REFUSED_CHUNKS), 16 - n_ok);
}
END_TEST

START_TEST(a_store_waits_for_room_until_its_deadline)
{
    uint32_t other = fixture_session(&f);
    struct kvt_key keys[16];
    fixture_keys(keys, 100, 16);
    ck_assert_int_eq(reserve(1, 0, 8, 0, 0), KVT_OK);
    ck_assert_int_eq(kvt_core_reserve(f.core, other, 1, ns, keys, 8, 0, 0, f.now_ns), KVT_OK);
    fixture_flush(&f);
    f.n_answers = 0;
    uint64_t deadline_ns = f.now_ns + 10 * MS;
    uint32_t third = fixture_session(&f);
    ck_assert_int_eq(kvt_core_reserve(f.core, third, 9, ns, keys + 8, 1, 0, deadline_ns, f.now_ns),
                     KVT_OK);
    fixture_flush(&f);
    ck_assert_uint_eq(f.n_answers, 0);
    ck_assert_uint_eq(kvt_core_next_deadline(f.core), deadline_ns);
    f.now_ns = deadline_ns;
    fixture_flush(&f);
    ck_assert_int_eq(fixture_take(&f, 'r', 9, 0).item.status, KVT_ERR_NOSPACE);

    deadline_ns = f.now_ns + 10 * MS;
    ck_assert_int_eq(kvt_core_reserve(f.core, third, 9, ns, keys + 8, 1, 0, deadline_ns, f.now_ns),
                     KVT_OK);
    fixture_flush(&f);
    ck_assert_uint_eq(f.n_answers, 0);
    ck_assert_int_eq(kvt_core_cancel(f.core, s, 1, f.now_ns), KVT_OK); /* room */
    fixture_flush(&f);
    ck_assert_int_eq(fixture_take(&f, 'r', 9, 0).item.status, KVT_OK);
}
END_TEST

START_TEST(ops_are_bounded)
{
    for (unsigned i = 0; i < f.config.n_ops_session_max; i++)
        ck_assert_int_eq(reserve(1 + i, i, 1, 0, 0), KVT_OK);
    ck_assert_int_eq(reserve(50, 50, 1, 0, 0), KVT_ERR_AGAIN);
    ck_assert_int_eq(load(51, 0, 1, 0), KVT_ERR_AGAIN);
    ck_assert_int_eq(kvt_core_cancel(f.core, s, 1, f.now_ns), KVT_OK);
    ck_assert_int_eq(load(51, 0, 1, 0), KVT_OK);
}
END_TEST

START_TEST(requests_with_bad_arguments_are_refused)
{
    static struct kvt_key keys[KVT_BATCH_MAX + 1];
    fixture_store(&f, s, ns, 1, 0, 1, 0);
    ck_assert_int_eq(reserve(5, 100, 1, 0, 0), KVT_OK);
    ck_assert_int_eq(reserve(5, 110, 1, 0, 0), KVT_ERR_INVAL); /* number in use */
    ck_assert_int_eq(load(5, 0, 1, 0), KVT_ERR_INVAL);
    ck_assert_int_eq(reserve(0, 0, 1, 0, 0), KVT_ERR_INVAL);
    ck_assert_int_eq(reserve(6, 0, 0, 0, 0), KVT_ERR_INVAL);
    ck_assert_int_eq(reserve(6, 0, 1, KVT_STORE_PARENT, 0), KVT_ERR_INVAL);
    ck_assert_int_eq(reserve(6, 0, 1, 64, 0), KVT_ERR_INVAL);
    ck_assert_int_eq(load(6, 0, 1, KVT_LOAD_PARENT), KVT_ERR_INVAL);
    ck_assert_int_eq(load(6, 0, 1, 64), KVT_ERR_INVAL);
    ck_assert_int_eq(kvt_core_reserve(f.core, s, 6, ns, keys, KVT_BATCH_MAX + 1, 0, 0, f.now_ns),
                     KVT_ERR_INVAL);
    ck_assert_int_eq(kvt_core_reserve(f.core, s, 6, 99, keys, 1, 0, 0, f.now_ns), KVT_ERR_INVAL);
    ck_assert_int_eq(kvt_core_load(f.core, s, 6, 99, keys, 1, 0, 0, f.now_ns), KVT_ERR_INVAL);
    ck_assert_int_eq(kvt_core_cancel(f.core, s, 6, f.now_ns), KVT_ERR_INVAL);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_OPS), 1);
}
END_TEST

START_TEST(a_parent_is_not_evicted_before_its_child)
{
    fixture_store(&f, s, ns, 1, 0, 4, 0);
    fixture_store(&f, s, ns, 2, 3, 3, KVT_STORE_PARENT); /* keys 4 and 5 hang below 3 */
    for (unsigned round = 0; round < 12; round++) {
        fixture_store(&f, s, ns, 3 + round, 100 + round * 2, 2, 0);
        bool below = false;
        for (unsigned key = 6; key-- > 0;) {
            bool held = fixture_held(&f, s, ns, key, 1) == 1;
            ck_assert_msg(held || !below, "key %u went before its child", key);
            below = below || held;
        }
    }
    ck_assert_uint_eq(fixture_held(&f, s, ns, 5, 1), 0);
}
END_TEST

/* --- loads from host memory ------------------------------------------------------------------- */

START_TEST(load_brings_what_was_stored)
{
    fixture_store(&f, s, ns, 1, 0, 2, 0);
    ck_assert_int_eq(load(2, 0, 3, 0), KVT_OK);
    fixture_flush(&f);
    for (unsigned i = 0; i < 2; i++) {
        struct answer a = fixture_take(&f, 'l', 2, i);
        ck_assert_int_eq(a.item.status, KVT_OK);
        ck_assert(fixture_filled(&f, ns, a.item.offset, i));
        ck_assert_uint_eq(a.item.lease_deadline_ns, f.now_ns + f.config.lease_ttl_ns);
        ck_assert_uint_eq(a.n_open, 0);
    }
    ck_assert_int_eq(fixture_take(&f, 'l', 2, 2).item.status, KVT_ERR_MISS);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_PINS), 2);
    kvt_core_load_done(f.core, s, 2, f.now_ns);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_PINS), 0);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_OPS), 0);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_LOAD_HOST_CHUNKS), 2);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_LOAD_MISS_CHUNKS), 1);
    kvt_core_load_done(f.core, s, 2, f.now_ns); /* no such op: no effect */
}
END_TEST

START_TEST(load_counts_its_parent_as_no_item)
{
    fixture_store(&f, s, ns, 1, 0, 2, 0);
    ck_assert_int_eq(load(2, 0, 2, KVT_LOAD_PARENT), KVT_OK);
    fixture_flush(&f);
    ck_assert_uint_eq(f.n_answers, 1);
    struct answer a = fixture_take(&f, 'l', 2, 0);
    ck_assert(fixture_filled(&f, ns, a.item.offset, 1));
}
END_TEST

START_TEST(load_without_a_hit_is_over)
{
    ck_assert_int_eq(load(2, 0, 3, 0), KVT_OK);
    fixture_flush(&f);
    ck_assert_uint_eq(f.n_answers, 3);
    ck_assert_uint_eq(f.answers[0].n_open, 0);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_OPS), 0);
}
END_TEST

START_TEST(load_lets_go_at_its_lease_deadline)
{
    fixture_store(&f, s, ns, 1, 0, 1, 0);
    ck_assert_int_eq(load(2, 0, 1, 0), KVT_OK);
    fixture_flush(&f);
    uint64_t deadline_ns = fixture_take(&f, 'l', 2, 0).item.lease_deadline_ns;
    ck_assert_uint_eq(kvt_core_next_deadline(f.core), deadline_ns);
    f.now_ns = deadline_ns - 1;
    fixture_flush(&f);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_PINS), 1);
    f.now_ns = deadline_ns;
    fixture_flush(&f);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_PINS), 0);
    ck_assert_uint_eq(kvt_core_next_deadline(f.core), UINT64_MAX);
}
END_TEST

START_TEST(draining_refuses_stores_and_serves_loads)
{
    fixture_store(&f, s, ns, 1, 0, 1, 0);
    ck_assert_int_eq(reserve(2, 10, 1, 0, 0), KVT_OK);
    fixture_flush(&f);
    kvt_core_drain(f.core);
    ck_assert_int_eq(reserve(3, 20, 1, 0, 0), KVT_ERR_AGAIN);
    ck_assert_int_eq(commit(2, 10, 0, 0, 1), KVT_OK); /* what was begun may end */
    ck_assert_int_eq(load(4, 0, 1, 0), KVT_OK);
    fixture_flush(&f);
    ck_assert_int_eq(fixture_take(&f, 'l', 4, 0).item.status, KVT_OK);
    ck_assert_uint_eq(fixture_held(&f, s, ns, 10, 1), 1);
    ck_assert(kvt_core_quiescent(f.core));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("core");
    TCase *tcase = tcase_create("rules");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_set_timeout(tcase, 15);
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, bad_config_is_named);
    tcase_add_test(tcase, sessions_are_bounded);
    tcase_add_test(tcase, namespace_is_found_again);
    tcase_add_test(tcase, many_namespaces_are_found_at_once);
    tcase_add_test(tcase, namespace_that_fits_no_slab_is_refused);
    tcase_add_test(tcase, shapes_that_hold_nothing_make_way);
    tcase_add_test(tcase, more_shapes_than_places_are_restored);
    tcase_add_test(tcase, namespaces_do_not_mix);
    tcase_add_test(tcase, lookup_finds_the_prefix);
    tcase_add_test(tcase, lookup_refuses_bad_arguments);
    tcase_add_test(tcase, lease_is_gone_when_released);
    tcase_add_test(tcase, lease_runs_out);
    tcase_add_test(tcase, lease_is_clipped_and_bounded);
    tcase_add_test(tcase, lease_belongs_to_its_session);
    tcase_add_test(tcase, leased_chunks_are_not_evicted);
    tcase_add_test(tcase, nothing_is_visible_before_its_commit);
    tcase_add_test(tcase, held_and_reserved_keys_are_not_stored_again);
    tcase_add_test(tcase, one_key_twice_in_a_store);
    tcase_add_test(tcase, store_of_held_keys_is_over_at_once);
    tcase_add_test(tcase, commit_refuses_what_is_not_reserved);
    tcase_add_test(tcase, aborted_items_go_back_unseen);
    tcase_add_test(tcase, cancel_takes_reservations_back);
    tcase_add_test(tcase, a_session_that_ends_gives_all_back);
    tcase_add_test(tcase, reservations_do_not_end_by_time);
    tcase_add_test(tcase, a_session_cannot_reserve_the_whole_arena);
    tcase_add_test(tcase, a_store_waits_for_room_until_its_deadline);
    tcase_add_test(tcase, ops_are_bounded);
    tcase_add_test(tcase, requests_with_bad_arguments_are_refused);
    tcase_add_test(tcase, a_parent_is_not_evicted_before_its_child);
    tcase_add_test(tcase, load_brings_what_was_stored);
    tcase_add_test(tcase, load_counts_its_parent_as_no_item);
    tcase_add_test(tcase, load_without_a_hit_is_over);
    tcase_add_test(tcase, load_lets_go_at_its_lease_deadline);
    tcase_add_test(tcase, draining_refuses_stores_and_serves_loads);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_tap(runner, "-");
    srunner_run_all(runner, CK_SILENT);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
