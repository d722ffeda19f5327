/* SPDX-License-Identifier: Apache-2.0 */
/* What a core is after a restart: what the metadata say, as far as it can be so. */
#include "core_fixture.h"

static struct fixture f;
static uint32_t s, ns;

static void setup(void)
{
    struct kvt_core_config config = fixture_config();
    fixture_start(&f, &config, &s, &ns);
}

static void teardown(void)
{
    fixture_fini(&f);
}

static uint8_t where(unsigned key)
{
    return fixture_where(&f, s, ns, key);
}

START_TEST(durable_chunks_survive)
{
    fixture_store(&f, s, ns, 1, 0, 3, KVT_STORE_DURABLE);
    fixture_store(&f, s, ns, 2, 10, 1, 0);
    fixture_settle(&f);
    f.n_answers = 0;
    fixture_start_again(&f, 0, &s, &ns);
    ck_assert_uint_eq(fixture_held(&f, s, ns, 0, 3), 3);
    ck_assert_uint_eq(where(10), 0);
    fixture_load(&f, s, ns, 1, 0, 3, 0);
    while (f.n_ios > 0)
        fixture_io(&f, KVT_OK);
    fixture_flush(&f);
    for (unsigned i = 0; i < 3; i++)
        ck_assert(fixture_filled(&f, ns, fixture_take(&f, 'l', 1, i).item.offset, i));
}
END_TEST

START_TEST(restored_chains_keep_their_order)
{
    fixture_store(&f, s, ns, 1, 0, 3, KVT_STORE_DURABLE);
    fixture_settle(&f);
    f.n_answers = 0;
    fixture_start_again(&f, 0, &s, &ns);
    for (unsigned round = 0; round < 12; round++) {
        fixture_store(&f, s, ns, 2 + round, 100 + round, 1, KVT_STORE_DURABLE);
        fixture_settle(&f);
        f.n_answers = 0;
        bool below = false;
        for (unsigned key = 3; key-- > 0;) {
            bool held = where(key) != 0;
            ck_assert_msg(held || !below, "key %u went before its child", key);
            below = below || held;
        }
    }
    ck_assert_uint_eq(where(0), 0);
}
END_TEST

START_TEST(damaged_metadata_are_skipped_and_counted)
{
    fixture_store(&f, s, ns, 1, 0, 3, KVT_STORE_DURABLE);
    fixture_settle(&f);
    f.n_answers = 0;
    struct kvt_ns_desc desc = f.metas[0].desc, bad_desc = desc;
    struct kvt_meta_record records[3], bad;
    uint32_t slabs[4];
    unsigned n = 0, n_slabs = 0;
    for (unsigned i = 0; i < f.n_metas_done; i++) {
        if (f.metas[i].what == 'p')
            records[n++] = f.metas[i].record;
        else if (f.metas[i].what == 's')
            slabs[n_slabs++] = f.metas[i].number;
    }
    ck_assert_uint_eq(n, 3);
    ck_assert_uint_gt(n_slabs, 0);
    bad_desc.n_segments = 0;
    kvt_core_destroy(f.core);
    f.n_metas = f.n_metas_done = 0;
    fixture_create(&f, f.config.n_host_slabs);
    kvt_core_restore_ns(f.core, 0, 0, &desc);
    kvt_core_restore_ns(f.core, 0, 0, &desc);          /* 1: twice */
    kvt_core_restore_ns(f.core, 5, 0, &bad_desc);      /* 2: no descriptor */
    kvt_core_restore_ns(f.core, UINT32_MAX, 0, &desc); /* 3: no number */
    kvt_core_restore_slab(f.core, slabs[0], 12345);    /* 4: a size that nobody has */
    kvt_core_restore_slab(f.core, UINT32_MAX, 4096);   /* 5: no slab */
    for (unsigned i = 0; i < n_slabs; i++)
        kvt_core_restore_slab(f.core, slabs[i], 4096);
    kvt_core_restore_slab(f.core, slabs[0], 4096); /* 6: twice */
    kvt_core_restore_records(f.core, records, 3);
    bad = records[0]; /* the same slot with another key */
    bad.key = fixture_key(77);
    kvt_core_restore_records(f.core, &bad, 1); /* 7 */
    bad.slot = KVT_SLOT_NONE;
    kvt_core_restore_records(f.core, &bad, 1); /* 8 */
    bad.slot = records[0].slot | 100;          /* past the slots of its slab */
    kvt_core_restore_records(f.core, &bad, 1); /* 9 */
    bad = records[0];
    bad.ns = 3;
    kvt_core_restore_records(f.core, &bad, 1); /* 10 */
    ck_assert_uint_eq(kvt_core_restore_end(f.core), 10);
    s = fixture_session(&f);
    ns = fixture_ns(&f, "a", 4096, 2);
    ck_assert_uint_eq(ns, 0);
    ck_assert_uint_eq(fixture_held(&f, s, ns, 0, 3), 3);
    ck_assert_uint_eq(where(77), 0);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_CHUNKS), 3);
}
END_TEST

START_TEST(of_two_records_of_a_key_the_later_counts)
{
    struct kvt_meta_record old, new;
    fixture_store(&f, s, ns, 1, 0, 2, KVT_STORE_DURABLE);
    fixture_settle(&f);
    f.n_answers = 0;
    unsigned n = 0;
    for (unsigned i = 0; i < f.n_metas_done; i++)
        if (f.metas[i].what == 'p')
            *(n++ == 0 ? &new : &old) = f.metas[i].record;
    ck_assert_uint_eq(n, 2);
    struct kvt_ns_desc desc = f.metas[0].desc;
    for (unsigned swap = 0; swap < 2; swap++) {
        struct kvt_meta_record pair[2] = {new, old};
        pair[1].key = new.key; /* a copy that was evicted before, with its own digest */
        pair[1].generation = 1;
        pair[0].generation = 2;
        pair[0].parent_slot = pair[1].parent_slot = KVT_SLOT_NONE;
        if (swap) {
            struct kvt_meta_record first = pair[0];
            pair[0] = pair[1];
            pair[1] = first;
        }
        kvt_core_destroy(f.core);
        f.n_metas = f.n_metas_done = f.n_ios = 0;
        fixture_create(&f, f.config.n_host_slabs);
        kvt_core_restore_ns(f.core, 0, 0, &desc);
        for (uint32_t slab = 0; slab < 4; slab++)
            kvt_core_restore_slab(f.core, slab, 4096);
        kvt_core_restore_records(f.core, pair, 2);
        ck_assert_uint_eq(kvt_core_restore_end(f.core), 0);
        s = fixture_session(&f);
        ns = fixture_ns(&f, "a", 4096, 2);
        fixture_load(&f, s, ns, 1, 0, 1, 0);
        ck_assert_uint_eq(f.n_ios, 1);
        ck_assert_uint_eq(f.ios[0]->digest, new.digest);
        fixture_settle(&f);
        f.n_answers = 0;
    }
}
END_TEST

/* Records of evicted chunks must not push durable ones out of an index that cannot hold them all.
 */
START_TEST(a_full_index_restores_the_newest)
{
    struct kvt_core_config config = fixture_config();
    fixture_store(&f, s, ns, 1, 0, 8, KVT_STORE_DURABLE);
    fixture_settle(&f);
    f.n_answers = 0;
    config.n_chunks_max = 3;
    f.config = config;
    fixture_start_again(&f, 5, &s, &ns);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_CHUNKS), 3);
    uint64_t newest = 0;
    for (unsigned i = 0; i < f.n_metas_done; i++)
        if (f.metas[i].what == 'p')
            newest = KVT_MAX(newest, f.metas[i].record.generation);
    for (unsigned i = 0; i < f.n_metas_done; i++)
        if (f.metas[i].what == 'p') {
            unsigned key = f.metas[i].record.key.bytes[8];
            ck_assert_uint_eq(where(key) != 0, f.metas[i].record.generation + 3 > newest);
        }
}
END_TEST

/* The index is full long before the slots are: what went for room in it must not come back and take
 * the place of older chunks that were kept. */
START_TEST(what_a_full_index_evicted_stays_gone)
{
    struct kvt_core_config config = fixture_config();
    config.n_chunks_max = 3;
    teardown();
    fixture_start(&f, &config, &s, &ns);
    for (unsigned i = 0; i < 5; i++) {
        fixture_store(&f, s, ns, 1 + i, 10 * i, 1, KVT_STORE_DURABLE);
        fixture_settle(&f);
        fixture_load(&f, s, ns, 100 + i, 0, 1, 0); /* the first stays in use */
        kvt_core_load_done(f.core, s, 100 + i, f.now_ns);
        f.n_answers = 0;
    }
    ck_assert_uint_ne(where(0) & KVT_WHERE_NVME, 0);
    ck_assert_uint_gt(fixture_stat(&f, KVT_STAT_EVICT_NVME_INDEX), 0);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_EVICT_NVME_INDEX),
                      fixture_stat(&f, KVT_STAT_EVICT_NVME_CHUNKS));
    uint64_t n_chunks = fixture_stat(&f, KVT_STAT_CHUNKS);
    fixture_start_again(&f, 0, &s, &ns);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_CHUNKS), n_chunks);
    ck_assert_uint_eq(where(0), KVT_WHERE_NVME);
    ck_assert_uint_eq(where(40), KVT_WHERE_NVME);
}
END_TEST

START_TEST(links_in_a_circle_are_cut)
{
    fixture_store(&f, s, ns, 1, 0, 2, KVT_STORE_DURABLE);
    fixture_settle(&f);
    f.n_answers = 0;
    struct kvt_meta_record *puts[2];
    unsigned n = 0;
    for (unsigned i = 0; i < f.n_metas_done; i++)
        if (f.metas[i].what == 'p')
            puts[n++] = &f.metas[i].record;
    ck_assert_uint_eq(n, 2);
    for (unsigned i = 0; i < 2; i++) {
        puts[i]->parent_slot = puts[1 - i]->slot;
        memcpy(&puts[i]->parent_tag, puts[1 - i]->key.bytes, sizeof(puts[i]->parent_tag));
    }
    fixture_start_again(&f, 0, &s, &ns);
    for (unsigned i = 0; i < 10; i++) { /* both can still be evicted */
        fixture_store(&f, s, ns, 2 + i, 100 + i, 1, KVT_STORE_DURABLE);
        fixture_settle(&f);
    }
    ck_assert_uint_eq(where(0) | where(1), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("core-restart");
    TCase *tcase = tcase_create("rules");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, durable_chunks_survive);
    tcase_add_test(tcase, restored_chains_keep_their_order);
    tcase_add_test(tcase, damaged_metadata_are_skipped_and_counted);
    tcase_add_test(tcase, of_two_records_of_a_key_the_later_counts);
    tcase_add_test(tcase, a_full_index_restores_the_newest);
    tcase_add_test(tcase, what_a_full_index_evicted_stays_gone);
    tcase_add_test(tcase, links_in_a_circle_are_cut);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_tap(runner, "-");
    srunner_run_all(runner, CK_SILENT);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
