/* SPDX-License-Identifier: Apache-2.0 */
/* Who waits for room, until when, and who does not wait for whom. */
#include "core_fixture.h"

#define N_SLOTS 16 /* of 4 KiB, in 4 slabs */

static struct fixture f;
static uint32_t s, small, large;

static void begin(const struct kvt_core_config *config)
{
    fixture_init(&f, config);
    s = fixture_session(&f);
    small = fixture_ns(&f, "small", 4096, 1);
    large = fixture_ns(&f, "large", 8192, 1);
    fixture_settle(&f);
}

static void setup(void)
{
    struct kvt_core_config config = fixture_config();
    begin(&config);
}

static void teardown(void)
{
    fixture_fini(&f);
}

static void reserve(uint32_t session, uint32_t ns, uint64_t op, unsigned first, unsigned n,
                    uint64_t wait_ns)
{
    struct kvt_key keys[64];
    fixture_keys(keys, first, n);
    ck_assert_int_eq(kvt_core_reserve(f.core, session, op, ns, keys, n, 0,
                                      wait_ns > 0 ? f.now_ns + wait_ns : 0, f.now_ns),
                     KVT_OK);
}

static void load(uint32_t session, uint32_t ns, uint64_t op, unsigned first)
{
    struct kvt_key key = fixture_key(first);
    ck_assert_int_eq(
        kvt_core_load(f.core, session, op, ns, &key, 1, 0, f.now_ns + 1000 * MS, f.now_ns), KVT_OK);
}

static uint64_t lease(uint32_t session, uint32_t ns, unsigned first, unsigned n)
{
    struct kvt_key keys[64];
    uint8_t where[64];
    struct kvt_wire_lookup_r reply = {0};
    fixture_keys(keys, first, n);
    kvt_core_lookup(f.core, session, ns, keys, n, KVT_LOOKUP_LEASE, 10000, f.now_ns, &reply, where);
    ck_assert_uint_eq(reply.n_hit, n);
    ck_assert_uint_ne(reply.lease, 0);
    return reply.lease;
}

/* Small chunks without a parent in all slots, and a lease on one of each slab. */
static void fill_and_lease(uint64_t leases[4])
{
    for (unsigned i = 0; i < N_SLOTS; i++)
        fixture_store(&f, s, small, 100 + i, i, 1, 0);
    for (unsigned i = 0; i < 4; i++)
        leases[i] = lease(s, small, 4 * i, 1);
}

START_TEST(a_store_waits_for_leases)
{
    fixture_store(&f, s, small, 1, 0, N_SLOTS / 2, 0);
    fixture_store(&f, s, small, 1, N_SLOTS / 2, N_SLOTS / 2, 0);
    uint64_t held = lease(s, small, 0, N_SLOTS);
    reserve(s, large, 2, 100, 1, 10 * MS);
    fixture_flush(&f);
    ck_assert_uint_eq(f.n_answers, 0);
    f.now_ns += 10 * MS;
    fixture_flush(&f);
    ck_assert_int_eq(fixture_take(&f, 'r', 2, 0).item.status, KVT_ERR_NOSPACE);

    reserve(s, large, 3, 100, 1, 10 * MS);
    fixture_flush(&f);
    ck_assert_uint_eq(f.n_answers, 0);
    f.now_ns += 5 * MS;
    ck_assert_int_eq(kvt_core_release(f.core, s, held), KVT_OK);
    fixture_flush(&f);
    ck_assert_int_eq(fixture_take(&f, 'r', 3, 0).item.status, KVT_OK);
}
END_TEST

START_TEST(a_store_waits_for_nobody_in_vain)
{
    fixture_store(&f, s, small, 1, 0, 4, 0);
    reserve(s, small, 2, 100, N_SLOTS, 10 * MS); /* more than a session may own, all its own */
    fixture_flush(&f);
    ck_assert_int_eq(fixture_take(&f, 'r', 2, N_SLOTS - 1).item.status, KVT_ERR_NOSPACE);
}
END_TEST

START_TEST(one_size_does_not_wait_for_another)
{
    uint64_t leases[4];
    uint32_t other = fixture_session(&f);
    fill_and_lease(leases);
    uint64_t began_ns = f.now_ns;
    reserve(s, large, 2, 100, 1, 5000 * MS); /* needs a slab without a lease */
    reserve(other, small, 3, 100, 1, 5000 * MS);
    reserve(other, small, 4, 101, 1, 0);
    fixture_flush(&f);
    ck_assert_int_eq(fixture_take(&f, 'r', 4, 0).item.status, KVT_OK);
    ck_assert_uint_eq(f.n_answers, 0); /* for a moment: see the next test */
    f.now_ns = kvt_core_next_deadline(f.core);
    ck_assert_uint_le(f.now_ns, began_ns + 100 * MS);
    fixture_flush(&f);
    ck_assert_int_eq(fixture_take(&f, 'r', 3, 0).item.status, KVT_OK);
    ck_assert_int_eq(kvt_core_cancel(f.core, other, 3, f.now_ns), KVT_OK);
    ck_assert_int_eq(kvt_core_cancel(f.core, other, 4, f.now_ns), KVT_OK);
    ck_assert_uint_eq(f.n_answers, 0);
    for (unsigned i = 0; i < 4; i++)
        ck_assert_int_eq(kvt_core_release(f.core, s, leases[i]), KVT_OK);
    fixture_flush(&f);
    ck_assert_int_eq(fixture_take(&f, 'r', 2, 0).item.status, KVT_OK);
}
END_TEST

/* A slab is never empty while its size goes on storing: there is always a chunk that is not on NVMe
 * yet. Who came later with another size gets one all the same. */
START_TEST(a_new_size_gets_room_from_one_that_goes_on_storing)
{
    struct kvt_core_config config = fixture_config();
    config.admission = KVT_ADMIT_ALL;
    config.host_slab_bytes = 8 * KVT_PAGE_BYTES;
    config.n_host_slabs = 2;
    config.n_nvme_slabs = 8;
    teardown();
    begin(&config);
    uint32_t other = fixture_session(&f);
    unsigned n_stored = 0;
    bool got = false;
    for (unsigned turn = 0; turn < 200 && !got; turn++) {
        if (turn == 40)
            reserve(s, large, 1, 5000, 1, 5000 * MS);
        for (unsigned op = 10 + 2 * turn; op < 12 + 2 * turn; op++) {
            struct kvt_key key = fixture_key(op);
            enum kvt_status status = kvt_core_reserve(f.core, other, op, small, &key, 1, 0,
                                                      f.now_ns + 1000 * MS, f.now_ns);
            ck_assert(status == KVT_OK || status == KVT_ERR_AGAIN); /* enough of them wait */
        }
        fixture_flush(&f);
        for (unsigned i = 0; i < f.n_answers; i++) {
            const struct answer *a = &f.answers[i];
            uint32_t index = 0;
            uint64_t sum;
            if (a->what != 'r' || a->item.status != KVT_OK)
                continue;
            got = got || a->session == s;
            if (a->session == s)
                continue;
            fixture_fill(&f, small, a->item.offset, (unsigned)a->op);
            fixture_sums(&f, small, (unsigned)a->op, &sum);
            ck_assert_int_eq(kvt_core_commit(f.core, other, a->op, &index, 1, 0, &sum, f.now_ns),
                             KVT_OK);
            n_stored++;
        }
        f.n_answers = 0;
        f.now_ns += MS;
        fixture_flush(&f);
        if (f.n_ios > 0) /* the disk takes one in a turn */
            fixture_io(&f, KVT_OK);
        while (f.n_metas_done < f.n_metas)
            fixture_meta(&f, KVT_OK);
    }
    ck_assert_uint_gt(n_stored, 40);
    ck_assert(got);
    fixture_settle(&f);
}
END_TEST

START_TEST(of_one_size_who_came_first_is_served_first)
{
    uint32_t second = fixture_session(&f), third = fixture_session(&f);
    reserve(s, small, 1, 0, 8, 0);
    reserve(second, small, 1, 20, 8, 0);
    fixture_flush(&f);
    f.n_answers = 0;
    reserve(third, small, 2, 40, 1, 1000 * MS);
    fixture_flush(&f);
    ck_assert_uint_eq(f.n_answers, 0);
    /* Room for one, and in the same turn somebody who would not wait for it. */
    struct kvt_key key = fixture_key(0);
    uint32_t index = 0;
    ck_assert_int_eq(kvt_core_commit(f.core, s, 1, &index, 1, KVT_COMMIT_ABORT, NULL, f.now_ns),
                     KVT_OK);
    ck_assert_int_eq(kvt_core_reserve(f.core, third, 3, small, &key, 1, 0, 0, f.now_ns), KVT_OK);
    fixture_flush(&f);
    ck_assert_int_eq(fixture_take(&f, 'r', 2, 0).item.status, KVT_OK);
    ck_assert_int_eq(fixture_take(&f, 'r', 3, 0).item.status, KVT_ERR_NOSPACE);
}
END_TEST

START_TEST(who_owns_its_share_is_passed_over)
{
    uint32_t other = fixture_session(&f);
    reserve(s, small, 1, 0, 8, 0); /* half of the arena */
    fixture_flush(&f);
    f.n_answers = 0;
    reserve(s, small, 2, 20, 1, 5000 * MS);
    reserve(s, small, 3, 30, 1, 5000 * MS);
    reserve(other, small, 4, 40, 1, 5000 * MS);
    fixture_flush(&f);
    ck_assert_int_eq(fixture_take(&f, 'r', 4, 0).item.status, KVT_OK);
    ck_assert_uint_eq(f.n_answers, 0);
    uint32_t index = 0;
    ck_assert_int_eq(kvt_core_commit(f.core, s, 1, &index, 1, KVT_COMMIT_ABORT, NULL, f.now_ns),
                     KVT_OK);
    fixture_flush(&f);
    ck_assert_int_eq(fixture_take(&f, 'r', 2, 0).item.status, KVT_OK);
    ck_assert_uint_eq(f.n_answers, 0);
}
END_TEST

START_TEST(loads_of_one_size_do_not_wait_for_another)
{
    struct kvt_core_config config = fixture_config();
    config.lease_ttl_ns = 5000 * MS;
    teardown();
    begin(&config);
    uint64_t leases[4];
    fixture_store(&f, s, small, 1, 50, 1, KVT_STORE_DURABLE);
    fixture_store(&f, s, large, 2, 60, 1, KVT_STORE_DURABLE);
    fixture_settle(&f);
    fixture_restart(&f); /* now they are on NVMe alone */
    s = fixture_session(&f);
    uint32_t other = fixture_session(&f);
    fill_and_lease(leases);
    load(s, small, 3, 0);
    fixture_flush(&f);
    ck_assert_int_eq(fixture_take(&f, 'l', 3, 0).item.status, KVT_OK); /* and is being copied */
    uint64_t began_ns = f.now_ns;
    load(s, large, 4, 60);
    load(other, small, 5, 50);
    fixture_flush(&f);
    f.now_ns = kvt_core_next_deadline(f.core);
    ck_assert_uint_le(f.now_ns, began_ns + 100 * MS);
    fixture_flush(&f);
    ck_assert_uint_eq(f.n_ios, 1);
    fixture_settle(&f);
    ck_assert_int_eq(fixture_take(&f, 'l', 5, 0).item.status, KVT_OK);
    ck_assert_uint_eq(f.n_answers, 0);
    for (unsigned i = 0; i < 4; i++)
        ck_assert_int_eq(kvt_core_release(f.core, s, leases[i]), KVT_OK);
    kvt_core_load_done(f.core, s, 3, f.now_ns);
    kvt_core_load_done(f.core, other, 5, f.now_ns);
    fixture_settle(&f);
    ck_assert_int_eq(fixture_take(&f, 'l', 4, 0).item.status, KVT_OK);
}
END_TEST

START_TEST(a_drain_does_not_wait_for_room)
{
    uint64_t leases[4];
    fill_and_lease(leases);
    reserve(s, large, 2, 100, 1, 5000 * MS);
    fixture_flush(&f);
    ck_assert_uint_eq(f.n_answers, 0);
    kvt_core_drain(f.core);
    fixture_flush(&f);
    ck_assert_int_eq(fixture_take(&f, 'r', 2, 0).item.status, KVT_ERR_AGAIN);
    ck_assert(kvt_core_quiescent(f.core));
}
END_TEST

/* The oldest chunks are all in use: the others are found behind them, at once. */
START_TEST(many_that_are_in_use_do_not_hide_the_others)
{
    static const struct kvt_policy_ops *const policies[] = {&kvt_policy_lru, &kvt_policy_s3fifo,
                                                            &kvt_policy_lhd};
    struct kvt_core_config config = fixture_config();
    config.host_policy = policies[_i];
    config.host_slab_bytes = 256 * KVT_PAGE_BYTES;
    config.n_chunks_max = 2048;
    config.n_leases_max = config.n_leases_session_max = 1024;
    teardown();
    begin(&config);
    for (unsigned i = 0; i < 1024; i++) {
        fixture_store(&f, s, small, 1 + i, i, 1, 0);
        if (i < 600)
            (void)lease(s, small, i, 1);
    }
    for (unsigned i = 1024; i < 2024; i++)
        fixture_store(&f, s, small, 1 + i, i, 1, 0);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_STORE_REFUSED_CHUNKS), 0);
    for (unsigned i = 0; i < 600; i++)
        ck_assert_uint_eq(fixture_held(&f, s, small, i, 1), 1);
}
END_TEST

/* All of a client's loads may name one chunk, as often as they can: 512 times 1024 here. Going
 * through all of them for each that ends takes minutes. */
START_TEST(many_that_wait_for_one_chunk_end_at_once)
{
    static struct kvt_key keys[KVT_BATCH_MAX];
    struct kvt_core_config config = fixture_config();
    config.n_ops_max = config.n_ops_session_max = 512;
    teardown();
    begin(&config);
    fixture_store(&f, s, small, 1, 50, 1, KVT_STORE_DURABLE);
    fixture_settle(&f);
    fixture_restart(&f);
    s = fixture_session(&f);
    for (unsigned i = 0; i < KVT_BATCH_MAX; i++)
        keys[i] = fixture_key(50);
    for (unsigned op = 1; op <= config.n_ops_max; op++)
        ck_assert_int_eq(kvt_core_load(f.core, s, op, small, keys, KVT_BATCH_MAX, 0,
                                       f.now_ns + 1000 * MS, f.now_ns),
                         KVT_OK);
    fixture_flush(&f);
    ck_assert_uint_eq(f.n_ios, 1);
    for (unsigned op = 1; op <= config.n_ops_max; op++)
        ck_assert_int_eq(kvt_core_cancel(f.core, s, op, f.now_ns), KVT_OK);
    fixture_settle(&f);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_PINS), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("room");
    TCase *tcase = tcase_create("rules");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_set_timeout(tcase, 15);
    tcase_add_test(tcase, a_store_waits_for_leases);
    tcase_add_test(tcase, a_store_waits_for_nobody_in_vain);
    tcase_add_test(tcase, one_size_does_not_wait_for_another);
    tcase_add_test(tcase, a_new_size_gets_room_from_one_that_goes_on_storing);
    tcase_add_test(tcase, of_one_size_who_came_first_is_served_first);
    tcase_add_test(tcase, who_owns_its_share_is_passed_over);
    tcase_add_test(tcase, loads_of_one_size_do_not_wait_for_another);
    tcase_add_test(tcase, a_drain_does_not_wait_for_room);
    tcase_add_loop_test(tcase, many_that_are_in_use_do_not_hide_the_others, 0, 3);
    tcase_add_test(tcase, many_that_wait_for_one_chunk_end_at_once);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_tap(runner, "-");
    srunner_run_all(runner, CK_SILENT);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
