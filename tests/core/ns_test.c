/* SPDX-License-Identifier: Apache-2.0 */
/* Namespaces that nothing refers to make way, and nobody takes the next one for them. */
#include <stdio.h>

#include "core_fixture.h"

static struct fixture f;

static void begin(unsigned n_ns_max)
{
    struct kvt_core_config config = fixture_config();
    config.n_ns_max = config.n_ns_session_max = n_ns_max;
    fixture_init(&f, &config);
}

static void setup(void)
{
    begin(2);
}

static void teardown(void)
{
    fixture_fini(&f);
}

static uint32_t session(void)
{
    uint32_t s = UINT32_MAX;
    ck_assert_int_eq(kvt_core_session_open(f.core, &s), KVT_OK);
    return s;
}

static void end(uint32_t s)
{
    kvt_core_session_close(f.core, s, f.now_ns);
}

static enum kvt_status try_open(uint32_t s, const char *model, uint32_t *ns_p,
                                struct kvt_error *err)
{
    struct kvt_ns_desc desc = fixture_desc(model, 4096, 2);
    uint64_t slot_bytes;
    return kvt_core_ns_open(f.core, s, &desc, ns_p, &slot_bytes, err);
}

static uint32_t must_open(uint32_t s, const char *model)
{
    struct kvt_error err = {.msg = ""};
    uint32_t ns = UINT32_MAX;
    ck_assert_msg(try_open(s, model, &ns, &err) == KVT_OK, "%s", err.msg);
    ck_assert_str_eq(kvt_core_ns_desc(f.core, ns)->model, model);
    return ns;
}

/* By a session that goes at once. */
static uint32_t visit(const char *model)
{
    uint32_t s = session(), ns = must_open(s, model);
    end(s);
    return ns;
}

static bool known(const char *model)
{
    struct kvt_ns_desc desc = fixture_desc(model, 4096, 2);
    uint8_t id[KVT_NS_ID_BYTES];
    kvt_ns_id(&desc, id);
    return kvt_core_ns_find(f.core, id) != KVT_ADMIN_NS_ANY;
}

/* The other place is taken by "z", which a session has. */
static void expect_held(const char *model, const char *by)
{
    struct kvt_error err = {.msg = ""};
    uint32_t s = session(), ns;
    ck_assert_msg(try_open(s, "new", &ns, &err) == KVT_ERR_NOSPACE, "%s does not hold it", by);
    ck_assert_ptr_nonnull(strstr(err.msg, "all 2 are in use"));
    ck_assert(known(model) && !known("new"));
    end(s);
}

static void expect_free(const char *model, uint32_t ns)
{
    uint32_t s = session();
    ck_assert(known(model));
    ck_assert_uint_eq(must_open(s, "new"), ns);
    ck_assert(!known(model) && known("new"));
    end(s);
}

START_TEST(the_longest_unused_makes_way)
{
    uint32_t a = visit("a"), b = visit("b");
    fixture_settle(&f);
    ck_assert_uint_ne(a, b);
    ck_assert_uint_eq(visit("a"), a); /* it comes back as what it was, and b is the longest now */
    ck_assert_uint_eq(visit("c"), b);
    fixture_settle(&f);
    ck_assert(known("a") && known("c") && !known("b"));
    ck_assert_uint_eq(visit("b"), a);
    fixture_settle(&f);
    ck_assert(!known("a") && known("c") && known("b"));
}
END_TEST

/* Many in few places: the table of ids has to close its gaps. */
START_TEST(they_come_and_go)
{
    char model[16];
    teardown();
    begin(7);
    for (unsigned i = 0; i < 5000; i++) {
        char msg[256];
        snprintf(model, sizeof(model), "m%u", i * 7919 % 31);
        (void)visit(model);
        fixture_settle(&f);
        f.n_metas = f.n_metas_done = 0;
        ck_assert_msg(i % 50 != 0 || kvt_core_check(f.core, msg, sizeof(msg)), "%s", msg);
    }
}
END_TEST

/* Their ids begin alike, as whoever makes many can have it: to find one, and to let one go, takes
 * as long as ever. */
START_TEST(ids_may_be_alike)
{
    const unsigned n_places = 8192;
    uint64_t slot_bytes, start_ns = 0;
    uint32_t s = UINT32_MAX, ns;
    unsigned n = 0;
    teardown();
    begin(n_places);
    for (unsigned i = 0; n < n_places + 512; i++) {
        struct kvt_ns_desc desc = fixture_desc("alike", 4096, 2);
        uint8_t id[KVT_NS_ID_BYTES];
        uint16_t start;
        snprintf(desc.salt, sizeof(desc.salt), "%u", i);
        kvt_ns_id(&desc, id);
        memcpy(&start, id, sizeof(start));
        if (start % (2 * n_places) >= n_places / 16)
            continue;
        if (n == n_places)
            start_ns = kvt_now_ns();
        s = session();
        ck_assert_int_eq(kvt_core_ns_open(f.core, s, &desc, &ns, &slot_bytes, NULL), KVT_OK);
        end(s);
        fixture_settle(&f);
        f.n_metas = f.n_metas_done = 0;
        n++;
    }
    ck_assert_uint_lt(kvt_now_ns() - start_ns, 2000 * MS);
}
END_TEST

START_TEST(a_session_holds_what_it_has)
{
    uint32_t s = session(), a = must_open(s, "a"), z = session();
    (void)must_open(z, "z");
    (void)must_open(s, "a"); /* twice is once */
    fixture_settle(&f);
    expect_held("a", "a session");
    end(s);
    expect_free("a", a);
}
END_TEST

START_TEST(chunks_hold_it)
{
    uint32_t s = session(), a = must_open(s, "a"), z = session();
    struct kvt_key key = fixture_key(0);
    (void)must_open(z, "z");
    ck_assert_int_eq(kvt_core_reserve(f.core, s, 7, a, &key, 1, 0, UINT64_MAX, f.now_ns), KVT_OK);
    fixture_settle(&f);
    (void)fixture_take(&f, 'r', 7, 0);
    ck_assert_int_eq(kvt_core_cancel(f.core, s, 7, f.now_ns), KVT_OK);
    fixture_store(&f, s, a, 1, 0, 2, KVT_STORE_DURABLE);
    end(s);
    expect_held("a", "a write");
    while (f.n_ios > 0)
        fixture_io(&f, KVT_OK);
    expect_held("a", "a record on its way");
    fixture_settle(&f);
    expect_held("a", "a chunk");
    struct kvt_job_request job = {.type = KVT_JOB_DELETE, .filter = {.ns = a}, .tiers = 1};
    uint64_t id, pin;
    unsigned n;
    ck_assert_int_eq(kvt_core_job_start(f.core, &job, f.now_ns, &id, NULL), KVT_OK);
    fixture_jobs(&f);
    expect_held("a", "a chunk on NVMe");
    ck_assert_int_eq(kvt_core_pin(f.core, a, &key, 1, "me", 0, f.now_ns, &pin, &n, NULL), KVT_OK);
    job.tiers = 0;
    job.flags = KVT_JOB_FORCE;
    ck_assert_int_eq(kvt_core_job_start(f.core, &job, f.now_ns, &id, NULL), KVT_OK);
    expect_held("a", "a job");
    fixture_jobs(&f);
    expect_held("a", "a pin of what is gone");
    ck_assert_int_eq(kvt_core_unpin(f.core, pin), KVT_OK);
    expect_free("a", a);
    struct kvt_job_info info; /* it is told what it was about all the same */
    struct kvt_ns_desc desc = fixture_desc("a", 4096, 2);
    uint8_t ns_id[KVT_NS_ID_BYTES];
    kvt_ns_id(&desc, ns_id);
    ck_assert_int_eq(kvt_core_job(f.core, id, &info), KVT_OK);
    ck_assert(info.has_ns);
    ck_assert_mem_eq(info.ns_id, ns_id, sizeof(ns_id));
    fixture_settle(&f);
}
END_TEST

/* Its descriptor is still to be taken from the core. */
START_TEST(the_way_to_the_metadata_holds_it)
{
    uint32_t a = visit("a"), z = session();
    (void)must_open(z, "z");
    expect_held("a", "the metadata");
    fixture_settle(&f);
    expect_free("a", a);
    fixture_settle(&f);
}
END_TEST

START_TEST(a_session_uses_what_it_has_negotiated)
{
    uint32_t s = session(), a = must_open(s, "a"), other = session();
    struct kvt_key key = fixture_key(0);
    struct kvt_wire_lookup_r reply = {0};
    uint8_t where;
    fixture_store(&f, s, a, 1, 0, 1, 0);
    for (unsigned round = 0; round < 2; round++) {
        kvt_core_lookup(f.core, other, a, &key, 1, 0, 0, f.now_ns, &reply, &where);
        ck_assert_int_eq(reply.status, KVT_ERR_INVAL);
        ck_assert_int_eq(kvt_core_load(f.core, other, 1, a, &key, 1, 0, UINT64_MAX, f.now_ns),
                         KVT_ERR_INVAL);
        ck_assert_int_eq(kvt_core_reserve(f.core, other, 1, a, &key, 1, 0, UINT64_MAX, f.now_ns),
                         KVT_ERR_INVAL);
        end(s); /* who has its number next has not what it had */
        s = other;
        other = session();
    }
    (void)must_open(other, "a");
    ck_assert_uint_eq(fixture_held(&f, other, a, 0, 1), 1);
    fixture_settle(&f);
}
END_TEST

START_TEST(a_session_has_so_many)
{
    struct kvt_error err = {.msg = ""};
    uint32_t s, ns, a;
    teardown();
    begin(8);
    f.config.n_ns_session_max = 3;
    kvt_core_destroy(f.core);
    fixture_create(&f, 1);
    s = session();
    a = must_open(s, "a");
    (void)must_open(s, "b");
    (void)must_open(s, "c");
    ck_assert_int_eq(try_open(s, "d", &ns, &err), KVT_ERR_NOSPACE);
    ck_assert_ptr_nonnull(strstr(err.msg, "this session has 3"));
    ck_assert_uint_eq(must_open(s, "a"), a);
    (void)must_open(session(), "d");
    fixture_settle(&f);
}
END_TEST

START_TEST(the_next_one_has_its_own_chunks)
{
    uint32_t s = session(), a = must_open(s, "a"), z = session();
    (void)must_open(z, "z");
    fixture_store(&f, s, a, 1, 0, 3, KVT_STORE_DURABLE);
    fixture_settle(&f);
    struct kvt_job_request job = {.type = KVT_JOB_DELETE, .filter = {.ns = a}};
    uint64_t id;
    ck_assert_int_eq(kvt_core_job_start(f.core, &job, f.now_ns, &id, NULL), KVT_OK);
    end(s);
    fixture_jobs(&f);
    s = session();
    ck_assert_uint_eq(must_open(s, "b"), a);
    ck_assert_uint_eq(fixture_held(&f, s, a, 0, 3), 0);
    f.n_answers = 0;
    fixture_store(&f, s, a, 1, 2, 1, KVT_STORE_DURABLE);
    fixture_settle(&f);
    fixture_restart(&f);
    s = session();
    ck_assert_uint_eq(must_open(s, "b"), a);
    ck_assert_uint_eq(fixture_where(&f, s, a, 0), 0);
    ck_assert_uint_eq(fixture_where(&f, s, a, 2), KVT_WHERE_NVME);
}
END_TEST

/* As of an agent before: neither chunks nor sessions. */
START_TEST(those_of_a_life_before_make_way)
{
    (void)visit("a");
    (void)visit("b");
    fixture_settle(&f);
    fixture_restart(&f);
    ck_assert(known("a") && known("b"));
    uint32_t s = session();
    ck_assert_uint_ne(must_open(s, "c"), must_open(s, "d"));
    ck_assert(!known("a") && !known("b"));
    fixture_settle(&f);
    fixture_restart(&f);
    ck_assert(known("c") && known("d") && !known("a") && !known("b"));
}
END_TEST

/* The record of an evicted chunk stays until its slot is written again: it may still name the
 * number of a namespace that made way. */
START_TEST(records_of_the_one_before_are_not_believed)
{
    struct kvt_ns_desc desc = fixture_desc("b", 4096, 2);
    struct kvt_meta_record records[2] = {
        {.slot = 0, .generation = 5, .parent_slot = KVT_SLOT_NONE, .key = fixture_key(0)},
        {.slot = 1, .generation = 11, .parent_slot = KVT_SLOT_NONE, .key = fixture_key(1)}};
    kvt_core_restore_ns(f.core, 0, 10, &desc);
    kvt_core_restore_slab(f.core, 0, 4096);
    kvt_core_restore_records(f.core, records, 2);
    ck_assert_uint_eq(kvt_core_restore_end(f.core), 0);
    uint32_t s = session(), ns = must_open(s, "b");
    ck_assert_uint_eq(fixture_where(&f, s, ns, 0), 0);
    ck_assert_uint_eq(fixture_where(&f, s, ns, 1), KVT_WHERE_NVME);
    fixture_settle(&f);
}
END_TEST

/* The descriptor is lost, the record is not; whoever has the number next begins after it. */
START_TEST(records_without_a_descriptor_stay_without)
{
    struct kvt_ns_desc desc = fixture_desc("b", 4096, 2);
    struct kvt_meta_record record = {
        .slot = 0, .generation = 10000000, .parent_slot = KVT_SLOT_NONE, .key = fixture_key(0)};
    kvt_core_restore_slab(f.core, 0, 4096);
    kvt_core_restore_records(f.core, &record, 1);
    ck_assert_uint_eq(kvt_core_restore_end(f.core), 2);
    ck_assert_uint_eq(visit("b"), 0);
    uint64_t since = f.metas[0].since;
    fixture_settle(&f);
    kvt_core_destroy(f.core);
    fixture_create(&f, f.config.n_host_slabs);
    kvt_core_restore_ns(f.core, 0, since, &desc);
    kvt_core_restore_slab(f.core, 0, 4096);
    kvt_core_restore_records(f.core, &record, 1);
    ck_assert_uint_eq(kvt_core_restore_end(f.core), 0);
    uint32_t s = session();
    ck_assert_uint_eq(must_open(s, "b"), 0);
    ck_assert_uint_eq(fixture_where(&f, s, 0, 0), 0);
}
END_TEST

/* Its descriptor could not be written, so that of the one before is still there; and that one has
 * come back under another number. */
START_TEST(of_two_numbers_of_a_namespace_the_later_counts)
{
    uint32_t s = session(), a = must_open(s, "a"), b = visit("b");
    end(s);
    fixture_settle(&f);
    (void)visit("b");
    uint32_t z = session();
    ck_assert_uint_eq(must_open(z, "c"), a);
    ck_assert_uint_eq(f.n_metas, f.n_metas_done + 1);
    fixture_meta(&f, KVT_ERR_IO);
    s = session();
    ck_assert_uint_eq(must_open(s, "a"), b);
    fixture_store(&f, s, b, 1, 0, 2, KVT_STORE_DURABLE);
    fixture_settle(&f);
    ck_assert_int_eq(fixture_take(&f, 'c', 1, 0).item.status, KVT_OK);
    ck_assert_uint_eq(fixture_restart(&f), 0);
    s = session();
    ck_assert_uint_eq(must_open(s, "a"), b);
    ck_assert_uint_eq(fixture_where(&f, s, b, 0), KVT_WHERE_NVME);
    ck_assert_uint_eq(fixture_where(&f, s, b, 1), KVT_WHERE_NVME);
    ck_assert_uint_eq(must_open(session(), "d"), a);
    fixture_settle(&f);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("core-ns");
    TCase *tcase = tcase_create("rules");
    tcase_set_timeout(tcase, 60);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, the_longest_unused_makes_way);
    tcase_add_test(tcase, they_come_and_go);
    tcase_add_test(tcase, ids_may_be_alike);
    tcase_add_test(tcase, a_session_holds_what_it_has);
    tcase_add_test(tcase, chunks_hold_it);
    tcase_add_test(tcase, the_way_to_the_metadata_holds_it);
    tcase_add_test(tcase, a_session_uses_what_it_has_negotiated);
    tcase_add_test(tcase, a_session_has_so_many);
    tcase_add_test(tcase, the_next_one_has_its_own_chunks);
    tcase_add_test(tcase, those_of_a_life_before_make_way);
    tcase_add_test(tcase, records_of_the_one_before_are_not_believed);
    tcase_add_test(tcase, records_without_a_descriptor_stay_without);
    tcase_add_test(tcase, of_two_numbers_of_a_namespace_the_later_counts);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_tap(runner, "-");
    srunner_run_all(runner, CK_SILENT);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
