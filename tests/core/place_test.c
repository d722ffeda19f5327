/* SPDX-License-Identifier: Apache-2.0 */
/* Which slots on NVMe are filled next, and who makes way for them. */
#include <stdlib.h>

#include "core_fixture.h"

static struct fixture f;
static uint32_t s, ns;

static void teardown(void)
{
    fixture_fini(&f);
}

static int by_generation(const void *a, const void *b)
{
    uint64_t x = f.disk[*(const uint16_t *)a / SLOTS_MAX][*(const uint16_t *)a % SLOTS_MAX]
                     .header.generation;
    uint64_t y = f.disk[*(const uint16_t *)b / SLOTS_MAX][*(const uint16_t *)b % SLOTS_MAX]
                     .header.generation;
    return (x > y) - (x < y);
}

START_TEST(what_is_written_lies_side_by_side)
{
    struct kvt_core_config config = fixture_config();
    const unsigned n_slots = 4 * 128, n_chain = 16;
    config.nvme_slab_bytes = UINT64_C(128) * 2 * 4096;
    config.nvme_policy = &kvt_policy_lhd;
    config.admission = KVT_ADMIT_ALL;
    config.n_chunks_max = 1024;
    fixture_start(&f, &config, &s, &ns);
    /* Prompts that come two at a time: their chunks have every other slot. Twelve times the tier.
     */
    for (unsigned first = 0; first < 12 * n_slots; first += 2 * n_chain)
        for (unsigned i = 0; i < 2 * n_chain; i++) {
            unsigned key = first + i % 2 * n_chain + i / 2;
            bool root = i < 2;
            fixture_store(&f, s, ns, 1, root ? key : key - 1, root ? 1 : 2,
                          root ? 0 : KVT_STORE_PARENT);
            fixture_settle(&f);
        }
    uint16_t slots[4 * 128];
    for (unsigned i = 0; i < n_slots; i++)
        slots[i] = (uint16_t)(i / 128 * SLOTS_MAX + i % 128);
    qsort(slots, n_slots, sizeof(*slots), by_generation);
    unsigned n_beside = 0;
    for (unsigned i = n_slots / 2 + 1; i < n_slots; i++)
        n_beside += slots[i] == slots[i - 1] + 1;
    ck_assert_uint_gt(n_beside, n_slots / 4); /* of half of all */
    /* Little is kept free for it. */
    ck_assert_uint_ge(fixture_stat(&f, KVT_STAT_NVME_USED_BYTES), (n_slots - 128) * 2 * 4096);
}
END_TEST

/* A shape takes the slab of another of its slot size, whose records stay in the metadata: after a
 * restart the slab is the other's and holds both. 0: the slab goes to a larger size, 1: all is
 * deleted. Neither leaves the shape a place there. */
START_TEST(a_slab_of_two_shapes)
{
    struct kvt_core_config config = fixture_config();
    config.n_nvme_slabs = 1;
    config.nvme_slab_bytes = UINT64_C(4) * 2 * 4096;
    config.nvme_policy = &kvt_policy_lhd;
    fixture_start(&f, &config, &s, &ns);
    uint32_t other = fixture_ns(&f, "many", 4096, 4), big = fixture_ns(&f, "big", 3 * 4096, 1);
    fixture_store(&f, s, ns, 1, 0, 4, KVT_STORE_DURABLE);
    fixture_settle(&f);
    f.n_answers = 0;
    fixture_store(&f, s, other, 2, 100, 1, KVT_STORE_DURABLE);
    fixture_settle(&f);
    fixture_restart(&f);
    f.n_answers = 0;
    s = fixture_session(&f);
    ck_assert_uint_eq(fixture_held(&f, s, ns, 1, 3), 3);
    ck_assert_uint_eq(fixture_held(&f, s, other, 100, 1), 1);
    fixture_store(&f, s, other, 3, 101, 1, KVT_STORE_DURABLE); /* evicts its own */
    fixture_settle(&f);
    ck_assert_uint_eq(fixture_held(&f, s, other, 100, 1), 0);
    if (_i == 0) {
        fixture_store(&f, s, big, 4, 200, 1, KVT_STORE_DURABLE);
        fixture_settle(&f);
        ck_assert_int_eq(fixture_take(&f, 'c', 4, 0).item.status, KVT_OK);
    } else {
        struct kvt_job_request request = {.type = KVT_JOB_DELETE,
                                          .filter = {.ns = KVT_ADMIN_NS_ANY}};
        struct kvt_error err;
        uint64_t id;
        ck_assert_int_eq(kvt_core_job_start(f.core, &request, f.now_ns, &id, &err), KVT_OK);
        fixture_jobs(&f);
    }
    char msg[256];
    ck_assert_msg(kvt_core_check(f.core, msg, sizeof(msg)), "%s", msg);
    fixture_store(&f, s, other, 5, 102, 1, KVT_STORE_DURABLE);
    fixture_settle(&f);
    ck_assert_msg(kvt_core_check(f.core, msg, sizeof(msg)), "%s", msg);
    ck_assert_uint_eq(fixture_held(&f, s, other, 102, 1), 1);
}
END_TEST

/* A store of 128 slots in two groups, full of chunks that nobody used. */
static void groups_fill(const struct kvt_policy_ops *policy)
{
    struct kvt_core_config config = fixture_config();
    config.n_nvme_slabs = 1;
    config.nvme_slab_bytes = UINT64_C(128) * 2 * 4096;
    config.nvme_policy = policy;
    config.admission = KVT_ADMIT_ALL;
    config.n_chunks_max = 1024;
    fixture_start(&f, &config, &s, &ns);
    for (unsigned i = 0; i < 128; i++) {
        fixture_store(&f, s, ns, 1, i, 1, 0);
        fixture_settle(&f);
    }
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_NVME_USED_BYTES), 128 * 2 * 4096);
}

START_TEST(what_is_in_use_stays_beside_a_victim)
{
    groups_fill(&kvt_policy_lhd);
    struct kvt_wire_lookup_r reply[2];
    struct kvt_key key;
    for (unsigned i = 0; i < 2; i++) { /* one in each group of 64 */
        uint8_t w = 0;
        key = fixture_key(10 + 64 * i);
        kvt_core_lookup(f.core, s, ns, &key, 1, KVT_LOOKUP_LEASE, 10000, f.now_ns, &reply[i], &w);
        ck_assert_uint_eq(reply[i].n_hit, 1);
    }
    for (unsigned i = 0; i < 120; i++) {
        fixture_store(&f, s, ns, 1, 1000 + i, 1, 0);
        fixture_settle(&f);
    }
    ck_assert_uint_gt(fixture_stat(&f, KVT_STAT_EVICT_NVME_CHUNKS), 0);
    ck_assert_uint_ne(fixture_where(&f, s, ns, 10) & KVT_WHERE_NVME, 0);
    ck_assert_uint_ne(fixture_where(&f, s, ns, 74) & KVT_WHERE_NVME, 0);
}
END_TEST

START_TEST(an_exact_policy_evicts_one_by_one)
{
    groups_fill(&kvt_policy_lru);
    for (unsigned i = 0; i < 5; i++) {
        fixture_store(&f, s, ns, 1, 1000 + i, 1, 0);
        fixture_settle(&f);
        ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_EVICT_NVME_CHUNKS), i + 1);
    }
    /* And what is free is used before anything is evicted, however little that is. */
    struct kvt_key key = fixture_key(100);
    struct kvt_job_request request = {
        .type = KVT_JOB_DELETE, .filter = {.ns = ns}, .keys = &key, .n_keys = 1};
    struct kvt_error err;
    uint64_t id;
    ck_assert_int_eq(kvt_core_job_start(f.core, &request, f.now_ns, &id, &err), KVT_OK);
    fixture_jobs(&f);
    fixture_store(&f, s, ns, 1, 1005, 1, 0);
    fixture_settle(&f);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_EVICT_NVME_CHUNKS), 5);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("core-place");
    TCase *tcase = tcase_create("rules");
    tcase_set_timeout(tcase, 60);
    tcase_add_checked_fixture(tcase, NULL, teardown);
    tcase_add_test(tcase, what_is_written_lies_side_by_side);
    tcase_add_loop_test(tcase, a_slab_of_two_shapes, 0, 2);
    tcase_add_test(tcase, what_is_in_use_stays_beside_a_victim);
    tcase_add_test(tcase, an_exact_policy_evicts_one_by_one);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_tap(runner, "-");
    srunner_run_all(runner, CK_SILENT);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
