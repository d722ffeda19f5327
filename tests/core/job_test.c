/* SPDX-License-Identifier: Apache-2.0 */
/* What core_admin.h promises about jobs, one rule at a time. */
#include "core_fixture.h"

static struct fixture f;
static uint32_t s, ns;

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

static void restart(void)
{
    fixture_start_again(&f, 0, &s, &ns);
    f.n_ended = 0;
}

static uint8_t where(unsigned key)
{
    struct kvt_key k = fixture_key(key);
    struct kvt_admin_chunk chunk = {0};
    return kvt_core_chunk(f.core, ns, &k, &chunk) == KVT_OK ? chunk.where : 0;
}

static uint8_t where_all(unsigned first, unsigned n)
{
    uint8_t w = where(first);
    for (unsigned i = 1; i < n; i++)
        ck_assert_uint_eq(where(first + i), w);
    return w;
}

/* On both tiers. */
static void store_both(unsigned first, unsigned n)
{
    for (unsigned i = 0; i < n; i += 5) { /* a session may reserve a part of the tier at once */
        fixture_store(&f, s, ns, 900, first + i, KVT_MIN(n - i, 5u), KVT_STORE_DURABLE);
        fixture_settle(&f);
    }
    f.n_answers = 0;
    ck_assert_uint_eq(where_all(first, n), KVT_WHERE_HOST | KVT_WHERE_NVME);
}

/* On NVMe alone: as after a restart. */
static void store_cold(unsigned first, unsigned n)
{
    store_both(first, n);
    restart();
    ck_assert_uint_eq(where_all(first, n), KVT_WHERE_NVME);
}

static void pin(unsigned first, unsigned n)
{
    struct kvt_key keys[64];
    struct kvt_error err = {.msg = ""};
    uint64_t id = 0;
    unsigned n_found = 0;
    fixture_keys(keys, first, n);
    ck_assert_msg(kvt_core_pin(f.core, ns, keys, n, "me", 0, f.now_ns, &id, &n_found, &err) ==
                      KVT_OK,
                  "%s", err.msg);
}

static uint64_t begin(struct kvt_job_request request)
{
    struct kvt_error err = {.msg = ""};
    uint64_t id = 0;
    ck_assert_msg(kvt_core_job_start(f.core, &request, f.now_ns, &id, &err) == KVT_OK, "%s",
                  err.msg);
    ck_assert_uint_ne(id, 0);
    return id;
}

static uint64_t begin_keys(enum kvt_job_type type, uint32_t flags, unsigned first, unsigned n)
{
    struct kvt_key keys[64];
    fixture_keys(keys, first, n);
    return begin((struct kvt_job_request){
        .type = type, .flags = flags, .keys = keys, .n_keys = n, .filter = {.ns = ns}});
}

static struct kvt_job_info info_of(uint64_t id)
{
    struct kvt_job_info info = {0};
    ck_assert_int_eq(kvt_core_job(f.core, id, &info), KVT_OK);
    ck_assert_uint_eq(info.id, id);
    return info;
}

/* To its end, which is told once. */
static struct kvt_job_info done(uint64_t id)
{
    fixture_jobs(&f);
    struct kvt_job_info info = info_of(id);
    ck_assert_msg(info.state == KVT_JOB_DONE, "job ended in state %d: %s", (int)info.state,
                  kvt_status_str(info.status));
    ck_assert_uint_eq(info.n_looked, info.n_total);
    ck_assert_uint_ge(info.ended_ns, info.made_ns);
    unsigned n_told = 0;
    for (unsigned i = 0; i < f.n_ended; i++)
        n_told += f.ended[i] == id;
    ck_assert_uint_eq(n_told, 1);
    return info;
}

static struct kvt_job_info run_keys(enum kvt_job_type type, uint32_t flags, unsigned first,
                                    unsigned n)
{
    return done(begin_keys(type, flags, first, n));
}

static void counts(const struct kvt_job_info *info, uint64_t n_matched, uint64_t n_changed,
                   uint64_t n_skipped, uint64_t n_bad)
{
    ck_assert_uint_eq(info->n_matched, n_matched);
    ck_assert_uint_eq(info->n_changed, n_changed);
    ck_assert_uint_eq(info->n_skipped, n_skipped);
    ck_assert_uint_eq(info->n_bad, n_bad);
}

/* --- what may be asked for -------------------------------------------------------------------- */

START_TEST(a_bad_request_names_its_field)
{
    static struct kvt_key keys[1];
    const struct kvt_admin_filter any = {.ns = KVT_ADMIN_NS_ANY}, own = {.ns = ns};
    const struct {
        struct kvt_job_request request;
        const char *says;
    } cases[] = {
        {{.type = (enum kvt_job_type)0, .filter = any}, "type"},
        {{.type = (enum kvt_job_type)5, .filter = any}, "type"},
        {{.type = KVT_JOB_DELETE, .flags = 8, .filter = any}, "flags"},
        {{.type = KVT_JOB_DELETE, .tiers = 4, .filter = any}, "tier"},
        {{.type = KVT_JOB_DELETE, .filter = {.ns = KVT_ADMIN_NS_ANY, .tiers = 4}}, "tier"},
        {{.type = KVT_JOB_DELETE, .filter = {.ns = KVT_ADMIN_NS_ANY, .flags = 8}}, "filter"},
        {{.type = KVT_JOB_DELETE,
          .filter = {.ns = KVT_ADMIN_NS_ANY, .n_key_prefix_bytes = KVT_KEY_BYTES + 1}},
         "prefix"},
        {{.type = KVT_JOB_DELETE, .filter = {.ns = 77}}, "namespace"},
        {{.type = KVT_JOB_DELETE, .keys = keys, .n_keys = 0, .filter = own}, "keys"},
        {{.type = KVT_JOB_DELETE, .keys = keys, .n_keys = KVT_BATCH_MAX + 1, .filter = own},
         "keys"},
        {{.type = KVT_JOB_DELETE, .keys = keys, .n_keys = 1, .filter = any}, "namespace"},
        {{.type = KVT_JOB_DELETE, .flags = KVT_JOB_SUBTREE, .filter = own}, "subtree"},
    };
    for (size_t i = 0; i < KVT_ARRAY_LEN(cases); i++) {
        struct kvt_error err = {.msg = ""};
        uint64_t id = 0;
        ck_assert_int_eq(kvt_core_job_start(f.core, &cases[i].request, f.now_ns, &id, &err),
                         KVT_ERR_INVAL);
        ck_assert_msg(strstr(err.msg, cases[i].says) != NULL, "%zu: %s", i, err.msg);
    }
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_JOBS), 0);
}
END_TEST

START_TEST(without_nvme_chunks_can_be_deleted_alone)
{
    struct kvt_core_config config = config_32();
    config.n_nvme_slabs = 0;
    again_with(&config);
    fixture_store(&f, s, ns, 1, 0, 3, 0);
    for (unsigned type = KVT_JOB_DEMOTE; type <= KVT_JOB_VERIFY; type++) {
        const struct kvt_job_request request = {.type = (enum kvt_job_type)type,
                                                .filter = {.ns = ns}};
        struct kvt_error err = {.msg = ""};
        uint64_t id = 0;
        ck_assert_int_eq(kvt_core_job_start(f.core, &request, f.now_ns, &id, &err), KVT_ERR_NOTSUP);
        ck_assert_ptr_nonnull(strstr(err.msg, "nvme.path"));
    }
    struct kvt_job_info info = run_keys(KVT_JOB_DELETE, 0, 0, 3);
    counts(&info, 3, 3, 0, 0);
    ck_assert_uint_eq(where_all(0, 3), 0);
}
END_TEST

START_TEST(an_agent_that_ends_takes_no_jobs)
{
    store_cold(0, 4);
    uint64_t id = begin_keys(KVT_JOB_PREFETCH, 0, 0, 4);
    fixture_flush(&f);
    kvt_core_drain(f.core);
    ck_assert_int_eq(info_of(id).state, KVT_JOB_CANCELED);
    const struct kvt_job_request request = {.type = KVT_JOB_DELETE, .filter = {.ns = ns}};
    struct kvt_error err = {.msg = ""};
    uint64_t other = 0;
    ck_assert_int_eq(kvt_core_job_start(f.core, &request, f.now_ns, &other, &err), KVT_ERR_AGAIN);
    fixture_settle(&f);
    ck_assert_uint_eq(f.n_ended, 1);
    ck_assert(kvt_core_quiescent(f.core));
}
END_TEST

START_TEST(unknown_jobs_are_missed)
{
    struct kvt_job_info info;
    ck_assert_int_eq(kvt_core_job(f.core, 0, &info), KVT_ERR_MISS);
    ck_assert_int_eq(kvt_core_job(f.core, 1, &info), KVT_ERR_MISS);
    ck_assert_int_eq(kvt_core_job_cancel(f.core, 0), KVT_ERR_MISS);
    ck_assert_int_eq(kvt_core_job_cancel(f.core, 1), KVT_ERR_MISS);
}
END_TEST

/* --- delete ----------------------------------------------------------------------------------- */

START_TEST(what_is_deleted_by_key_is_gone_at_once)
{
    store_both(0, 5);
    struct kvt_key keys[4];
    fixture_keys(keys, 1, 2);
    fixture_keys(keys + 2, 700, 2); /* not held */
    uint64_t id = begin((struct kvt_job_request){
        .type = KVT_JOB_DELETE, .keys = keys, .n_keys = 4, .filter = {.ns = ns}});
    ck_assert_uint_eq(where_all(1, 2), 0);                /* before any flush */
    ck_assert_int_eq(info_of(id).state, KVT_JOB_RUNNING); /* the metadata still know them */
    struct kvt_job_info info = done(id);
    counts(&info, 2, 2, 0, 0);
    ck_assert_uint_eq(info.n_total, 4);
    ck_assert_uint_eq(info.bytes, 2 * 4096);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_DELETED_CHUNKS), 2);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_DELETED_BYTES), 2 * 4096);
    struct kvt_key behind = fixture_key(3);
    struct kvt_admin_chunk chunk;
    ck_assert_int_eq(kvt_core_chunk(f.core, ns, &behind, &chunk), KVT_OK);
    ck_assert(!chunk.has_parent);
    restart();
    ck_assert_uint_eq(where_all(1, 2), 0);
    ck_assert_uint_eq(where(0), KVT_WHERE_NVME);
    ck_assert_uint_eq(where_all(3, 2), KVT_WHERE_NVME);
}
END_TEST

START_TEST(a_dry_run_changes_nothing)
{
    store_both(0, 5);
    pin(4, 1); /* and so all of them */
    for (unsigned type = KVT_JOB_DELETE; type <= KVT_JOB_VERIFY; type++) {
        unsigned n_ios = f.n_reads + f.n_writes, n_metas = f.n_metas;
        struct kvt_job_info info = run_keys((enum kvt_job_type)type, KVT_JOB_DRY_RUN, 0, 5);
        counts(&info, 5, 0, 0, 0);
        ck_assert_uint_eq(info.bytes, 5 * 4096);
        ck_assert_uint_eq(f.n_reads + f.n_writes, n_ios);
        ck_assert_uint_eq(f.n_metas, n_metas);
    }
    ck_assert_uint_eq(where_all(0, 5), KVT_WHERE_HOST | KVT_WHERE_NVME);
}
END_TEST

START_TEST(what_is_pinned_is_deleted_by_force_alone)
{
    store_both(0, 3);
    pin(1, 1);
    struct kvt_job_info info = run_keys(KVT_JOB_DELETE, 0, 0, 3);
    counts(&info, 3, 1, 2, 0); /* 0 and 1 are pinned */
    ck_assert_uint_eq(where_all(0, 2), KVT_WHERE_HOST | KVT_WHERE_NVME);
    ck_assert_uint_eq(where(2), 0);
    info = run_keys(KVT_JOB_DELETE, KVT_JOB_FORCE, 0, 3);
    counts(&info, 2, 2, 0, 0);
    ck_assert_uint_eq(where_all(0, 2), 0);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_ADMIN_PINS), 1); /* of chunks that are lost */
}
END_TEST

static struct kvt_job_info delete_tiers(uint32_t tiers, uint32_t flags, unsigned first, unsigned n)
{
    struct kvt_key keys[64];
    fixture_keys(keys, first, n);
    return done(begin((struct kvt_job_request){.type = KVT_JOB_DELETE,
                                               .tiers = tiers,
                                               .flags = flags,
                                               .keys = keys,
                                               .n_keys = n,
                                               .filter = {.ns = ns}}));
}

START_TEST(a_tier_alone_can_be_cleared)
{
    store_both(0, 4);
    fixture_store(&f, s, ns, 2, 50, 1, 0);
    struct kvt_job_info info = delete_tiers(KVT_WHERE_HOST, 0, 0, 2);
    counts(&info, 2, 2, 0, 0);
    ck_assert_uint_eq(where_all(0, 2), KVT_WHERE_NVME);
    info = delete_tiers(KVT_WHERE_NVME, 0, 2, 2);
    counts(&info, 2, 2, 0, 0);
    ck_assert_uint_eq(where_all(2, 2), KVT_WHERE_HOST);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_REMOVED_HOST_CHUNKS), 2);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_REMOVED_NVME_CHUNKS), 2);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_DELETED_CHUNKS), 0);
    info = delete_tiers(KVT_WHERE_NVME, 0, 50, 1); /* it is not there */
    counts(&info, 0, 0, 0, 0);
    info = delete_tiers(KVT_WHERE_HOST, 0, 50, 1); /* its only copy */
    counts(&info, 1, 1, 0, 0);
    ck_assert_uint_eq(where(50), 0);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_DELETED_CHUNKS), 1);
    restart();
    ck_assert_uint_eq(where_all(0, 2), KVT_WHERE_NVME);
    ck_assert_uint_eq(where_all(2, 2), 0); /* what was cleared does not come back */
}
END_TEST

START_TEST(a_copy_that_is_pinned_goes_by_force)
{
    store_both(0, 2);
    pin(0, 2);
    struct kvt_job_info info = delete_tiers(KVT_WHERE_HOST, 0, 0, 2);
    counts(&info, 2, 0, 2, 0);
    info = delete_tiers(KVT_WHERE_HOST, KVT_JOB_FORCE, 0, 1);
    counts(&info, 1, 1, 0, 0);
    ck_assert_uint_eq(where(0), KVT_WHERE_NVME);
    info = delete_tiers(KVT_WHERE_NVME, KVT_JOB_FORCE, 1, 1);
    counts(&info, 1, 1, 0, 0);
    ck_assert_uint_eq(where(1), KVT_WHERE_HOST);
    ck_assert_uint_eq(kvt_core_unpin_owner(f.core, "me"), 1);
}
END_TEST

START_TEST(a_subtree_goes_with_its_root)
{
    struct kvt_key keys[2];
    fixture_store(&f, s, ns, 1, 0, 4, 0); /* 0 1 2 3 */
    keys[0] = fixture_key(1);
    for (unsigned i = 0; i < 3; i++) { /* 1 also before 20, 21 and 22 */
        keys[1] = fixture_key(20 + i);
        uint64_t sums[4];
        uint32_t index = 0;
        ck_assert_int_eq(kvt_core_reserve(f.core, s, 2, ns, keys, 2, KVT_STORE_PARENT,
                                          f.now_ns + 50 * MS, f.now_ns),
                         KVT_OK);
        fixture_flush(&f);
        fixture_fill(&f, ns, fixture_take(&f, 'r', 2, 0).item.offset, 20 + i);
        fixture_sums(&f, ns, 20 + i, sums);
        ck_assert_int_eq(kvt_core_commit(f.core, s, 2, &index, 1, 0, sums, f.now_ns), KVT_OK);
        fixture_flush(&f);
        ck_assert_int_eq(fixture_take(&f, 'c', 2, 0).item.status, KVT_OK);
    }
    struct kvt_job_info info = run_keys(KVT_JOB_DELETE, KVT_JOB_SUBTREE | KVT_JOB_DRY_RUN, 1, 1);
    counts(&info, 6, 0, 0, 0);
    info = run_keys(KVT_JOB_DELETE, KVT_JOB_SUBTREE, 1, 1);
    counts(&info, 6, 6, 0, 0);
    ck_assert_uint_eq(where(0), KVT_WHERE_HOST);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_CHUNKS), 1);
}
END_TEST

START_TEST(a_filter_clears_what_it_takes)
{
    uint32_t other = fixture_ns(&f, "b", 4096, 2);
    fixture_store(&f, s, ns, 1, 0, 6, 0);
    fixture_store(&f, s, other, 2, 0, 6, 0);
    struct kvt_job_request request = {.type = KVT_JOB_DELETE,
                                      .filter = {.ns = ns, .n_key_prefix_bytes = 1}};
    request.filter.key_prefix[0] = fixture_key(4).bytes[0];
    struct kvt_job_info info = done(begin(request));
    counts(&info, 1, 1, 0, 0);
    ck_assert_uint_eq(info.n_total, 12); /* records */
    ck_assert_uint_eq(where(4), 0);
    request.filter.n_key_prefix_bytes = 0;
    info = done(begin(request));
    counts(&info, 5, 5, 0, 0);
    request.filter.ns = KVT_ADMIN_NS_ANY;
    info = done(begin(request));
    counts(&info, 6, 6, 0, 0);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_CHUNKS), 0);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_HOST_USED_BYTES), 0);
}
END_TEST

START_TEST(bytes_that_are_being_copied_stay_until_that_is_over)
{
    fixture_store(&f, s, ns, 1, 0, 1, 0);
    struct kvt_key key = fixture_key(0);
    ck_assert_int_eq(kvt_core_load(f.core, s, 2, ns, &key, 1, 0, f.now_ns + 50 * MS, f.now_ns),
                     KVT_OK);
    fixture_flush(&f);
    struct answer a = fixture_take(&f, 'l', 2, 0);
    ck_assert_int_eq(a.item.status, KVT_OK);
    struct kvt_job_info info = run_keys(KVT_JOB_DELETE, 0, 0, 1);
    counts(&info, 1, 1, 0, 0);
    ck_assert_uint_eq(where(0), 0);
    fixture_store(&f, s, ns, 3, 0, 1, 0); /* the same again, elsewhere */
    ck_assert(fixture_filled(&f, ns, a.item.offset, 0));
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_HOST_USED_BYTES), 2 * 4096);
    kvt_core_load_done(f.core, s, 2, f.now_ns);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_HOST_USED_BYTES), 4096);
}
END_TEST

START_TEST(a_delete_overtakes_writes_and_reads)
{
    fixture_store(&f, s, ns, 1, 0, 1, KVT_STORE_DURABLE); /* on its way to NVMe */
    ck_assert_uint_eq(f.n_ios, 1);
    uint64_t id = begin_keys(KVT_JOB_DELETE, 0, 0, 1);
    fixture_flush(&f);
    ck_assert_int_eq(fixture_take(&f, 'c', 1, 0).item.status, KVT_ERR_CANCELED);
    struct kvt_job_info info = done(id);
    counts(&info, 1, 1, 0, 0);
    restart();
    ck_assert_uint_eq(where(0), 0);

    store_cold(1, 1);
    struct kvt_key key = fixture_key(1);
    ck_assert_int_eq(kvt_core_load(f.core, s, 2, ns, &key, 1, 0, f.now_ns + 50 * MS, f.now_ns),
                     KVT_OK);
    fixture_flush(&f);
    ck_assert_uint_eq(f.n_ios, 1);
    id = begin_keys(KVT_JOB_DELETE, 0, 1, 1);
    fixture_flush(&f);
    ck_assert_int_eq(fixture_take(&f, 'l', 2, 0).item.status, KVT_ERR_MISS);
    info = done(id);
    counts(&info, 1, 1, 0, 0);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_HOST_USED_BYTES), 0);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_NVME_USED_BYTES), 0);
}
END_TEST

START_TEST(a_delete_that_the_metadata_refuse_has_failed)
{
    store_both(0, 2);
    uint64_t id = begin_keys(KVT_JOB_DELETE, 0, 0, 2);
    ck_assert_uint_eq(where_all(0, 2), 0);
    for (unsigned n = 0; n < 1000 && fixture_stat(&f, KVT_STAT_JOBS) > 0; n++) {
        f.now_ns += MS;
        fixture_flush(&f);
        while (f.n_metas_done < f.n_metas)
            fixture_meta(&f, KVT_ERR_IO);
    }
    fixture_flush(&f);
    ck_assert_int_eq(info_of(id).state, KVT_JOB_FAILED);
    ck_assert_int_eq(info_of(id).status, KVT_ERR_IO);
    ck_assert_uint_eq(f.n_ended, 1);
    struct kvt_job_info info = run_keys(KVT_JOB_DELETE, 0, 0, 2); /* again, when that works */
    counts(&info, 0, 0, 0, 0);
    restart();
    ck_assert_uint_eq(where_all(0, 2), 0);
}
END_TEST

/* --- demote ----------------------------------------------------------------------------------- */

START_TEST(demoted_chunks_are_on_nvme_alone)
{
    store_both(0, 2);
    fixture_store(&f, s, ns, 2, 50, 2, 0);
    unsigned n_writes = f.n_writes;
    struct kvt_job_info info =
        done(begin((struct kvt_job_request){.type = KVT_JOB_DEMOTE, .filter = {.ns = ns}}));
    counts(&info, 4, 4, 0, 0);
    ck_assert_uint_eq(info.bytes, 4 * 4096);
    ck_assert_uint_eq(f.n_writes, n_writes + 2);
    ck_assert_uint_eq(where_all(0, 2), KVT_WHERE_NVME);
    ck_assert_uint_eq(where_all(50, 2), KVT_WHERE_NVME);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_HOST_USED_BYTES), 0);
    info = done(begin((struct kvt_job_request){.type = KVT_JOB_DEMOTE, .filter = {.ns = ns}}));
    counts(&info, 0, 0, 0, 0);
}
END_TEST

START_TEST(what_is_in_use_is_not_demoted)
{
    store_both(0, 3);
    struct kvt_key keys[3];
    uint8_t bits[3];
    struct kvt_wire_lookup_r reply = {0};
    fixture_keys(keys, 0, 3);
    kvt_core_lookup(f.core, s, ns, keys, 3, KVT_LOOKUP_LEASE, 10000, f.now_ns, &reply, bits);
    struct kvt_job_info info = run_keys(KVT_JOB_DEMOTE, KVT_JOB_FORCE, 2, 1);
    counts(&info, 1, 0, 1, 0);
    ck_assert_int_eq(kvt_core_release(f.core, s, reply.lease), KVT_OK);
    info = run_keys(KVT_JOB_DEMOTE, 0, 2, 1);
    counts(&info, 1, 1, 0, 0);
}
END_TEST

START_TEST(what_is_pinned_is_demoted_by_force_alone)
{
    store_both(0, 2);
    fixture_store(&f, s, ns, 2, 50, 1, 0);
    pin(1, 1);
    pin(50, 1);
    struct kvt_job_info info = run_keys(KVT_JOB_DEMOTE, 0, 0, 2);
    counts(&info, 2, 0, 2, 0);
    info = run_keys(KVT_JOB_DEMOTE, KVT_JOB_FORCE, 0, 2);
    counts(&info, 2, 2, 0, 0);
    ck_assert_uint_eq(where_all(0, 2), KVT_WHERE_NVME);
    info = run_keys(KVT_JOB_DEMOTE, KVT_JOB_FORCE, 50, 1); /* it is written first */
    counts(&info, 1, 1, 0, 0);
    ck_assert_uint_eq(where(50), KVT_WHERE_NVME);
}
END_TEST

START_TEST(a_pin_that_comes_while_a_chunk_is_written_keeps_it_in_memory)
{
    fixture_store(&f, s, ns, 1, 0, 1, 0);
    uint64_t id = begin_keys(KVT_JOB_DEMOTE, 0, 0, 1);
    fixture_flush(&f);
    ck_assert_uint_eq(f.n_ios, 1);
    pin(0, 1);
    struct kvt_job_info info = done(id);
    counts(&info, 1, 0, 1, 0);
    ck_assert_uint_eq(where(0), KVT_WHERE_HOST | KVT_WHERE_NVME);
}
END_TEST

START_TEST(what_cannot_be_written_stays_in_memory)
{
    fixture_store(&f, s, ns, 1, 0, 1, 0);
    uint64_t id = begin_keys(KVT_JOB_DEMOTE, 0, 0, 1);
    fixture_flush(&f);
    fixture_io(&f, KVT_ERR_IO);
    struct kvt_job_info info = done(id);
    counts(&info, 1, 0, 1, 0);
    ck_assert_uint_eq(where(0), KVT_WHERE_HOST);
}
END_TEST

/* --- prefetch --------------------------------------------------------------------------------- */

START_TEST(prefetched_chunks_are_in_memory_too)
{
    store_cold(0, 4);
    struct kvt_job_info info = run_keys(KVT_JOB_PREFETCH, 0, 0, 2);
    counts(&info, 2, 2, 0, 0);
    ck_assert_uint_eq(info.bytes, 2 * 4096);
    ck_assert_uint_eq(where_all(0, 2), KVT_WHERE_HOST | KVT_WHERE_NVME);
    info = run_keys(KVT_JOB_PREFETCH, KVT_JOB_SUBTREE, 0, 1);
    counts(&info, 4, 2, 0, 0); /* two were there */
    ck_assert_uint_eq(where_all(0, 4), KVT_WHERE_HOST | KVT_WHERE_NVME);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_PINS), 0);
}
END_TEST

START_TEST(a_prefetch_drops_what_is_damaged)
{
    store_cold(0, 3);
    struct kvt_key key = fixture_key(2);
    struct kvt_admin_chunk chunk;
    ck_assert_int_eq(kvt_core_chunk(f.core, ns, &key, &chunk), KVT_OK);
    f.disk[chunk.nvme_slab][chunk.nvme_slot].bytes[100] ^= 1;
    struct kvt_job_info info = run_keys(KVT_JOB_PREFETCH, 0, 0, 3);
    counts(&info, 3, 2, 0, 1);
    ck_assert_uint_eq(where(2), 0);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_CORRUPT_CHUNKS), 1);
}
END_TEST

START_TEST(a_prefetch_brings_no_more_than_fits)
{
    struct kvt_core_config config = config_32();
    config.n_host_slabs = 1; /* 8 slots */
    again_with(&config);
    for (unsigned i = 0; i < 3; i++) {
        store_both(10 * i, 4);
        run_keys(KVT_JOB_DEMOTE, 0, 10 * i, 4);
    }
    struct kvt_job_info info =
        done(begin((struct kvt_job_request){.type = KVT_JOB_PREFETCH, .filter = {.ns = ns}}));
    counts(&info, 12, 8, 4, 0);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_HOST_USED_BYTES), 8 * 4096);
}
END_TEST

START_TEST(a_prefetch_waits_behind_loads)
{
    store_cold(0, 20);
    uint64_t id = begin_keys(KVT_JOB_PREFETCH, 0, 0, 20);
    fixture_flush(&f);
    ck_assert_uint_le(f.n_ios, f.config.n_ios_max / 4);
    ck_assert_uint_gt(f.n_ios, 0);
    struct kvt_job_info info = done(id);
    counts(&info, 20, 20, 0, 0);
}
END_TEST

/* --- verify ----------------------------------------------------------------------------------- */

START_TEST(verify_reads_what_is_on_nvme)
{
    store_cold(0, 5);
    unsigned n_reads = f.n_reads;
    struct kvt_job_info info =
        done(begin((struct kvt_job_request){.type = KVT_JOB_VERIFY, .filter = {.ns = ns}}));
    counts(&info, 5, 5, 0, 0);
    ck_assert_uint_eq(f.n_reads, n_reads + 5);
    ck_assert_uint_eq(where_all(0, 5), KVT_WHERE_NVME); /* nothing was brought in */
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_HOST_USED_BYTES), 0);
}
END_TEST

START_TEST(verify_drops_what_is_bad)
{
    store_cold(0, 5);
    struct kvt_admin_chunk chunk;
    struct kvt_key key = fixture_key(1);
    ck_assert_int_eq(kvt_core_chunk(f.core, ns, &key, &chunk), KVT_OK);
    f.disk[chunk.nvme_slab][chunk.nvme_slot].bytes[0] ^= 0x80;
    key = fixture_key(3);
    ck_assert_int_eq(kvt_core_chunk(f.core, ns, &key, &chunk), KVT_OK);
    f.disk[chunk.nvme_slab][chunk.nvme_slot].header.generation ^= 1;
    struct kvt_job_info info =
        done(begin((struct kvt_job_request){.type = KVT_JOB_VERIFY, .filter = {.ns = ns}}));
    counts(&info, 5, 5, 0, 2);
    ck_assert_uint_eq(where(1), 0);
    ck_assert_uint_eq(where(3), 0);
    ck_assert_uint_eq(where(4), KVT_WHERE_NVME);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_CORRUPT_CHUNKS), 2);
    restart();
    ck_assert_uint_eq(where(1), 0);
}
END_TEST

START_TEST(what_memory_has_is_written_again)
{
    store_both(0, 1);
    struct kvt_admin_chunk chunk;
    struct kvt_key key = fixture_key(0);
    ck_assert_int_eq(kvt_core_chunk(f.core, ns, &key, &chunk), KVT_OK);
    f.disk[chunk.nvme_slab][chunk.nvme_slot].bytes[7] ^= 1;
    struct kvt_job_info info = run_keys(KVT_JOB_VERIFY, 0, 0, 1);
    counts(&info, 1, 1, 0, 1);
    fixture_settle(&f);
    ck_assert_uint_eq(where(0), KVT_WHERE_HOST | KVT_WHERE_NVME);
    info = run_keys(KVT_JOB_VERIFY, 0, 0, 1);
    counts(&info, 1, 1, 0, 0);
}
END_TEST

START_TEST(a_slot_that_cannot_be_read_is_used_no_more)
{
    store_cold(0, 1);
    uint64_t id = begin_keys(KVT_JOB_VERIFY, 0, 0, 1);
    fixture_flush(&f);
    fixture_io(&f, KVT_ERR_IO);
    struct kvt_job_info info = done(id);
    counts(&info, 1, 1, 0, 1);
    ck_assert_uint_eq(where(0), 0);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_QUARANTINED_SLOTS), 1);
}
END_TEST

/* --- progress, cancel, the table -------------------------------------------------------------- */

START_TEST(a_step_is_small_and_progress_is_told)
{
    struct kvt_core_config config = fixture_config();
    config.n_chunks_max = 4096;
    config.host_slab_bytes = 1024 * KVT_PAGE_BYTES;
    config.n_nvme_slabs = 0;
    again_with(&config);
    for (unsigned i = 0; i < 4000; i += 50)
        fixture_store(&f, s, ns, 1 + i, i, 50, 0);
    uint64_t id = begin((struct kvt_job_request){.type = KVT_JOB_DELETE, .filter = {.ns = ns}});
    ck_assert_int_eq(info_of(id).state, KVT_JOB_PENDING);
    ck_assert_uint_eq(info_of(id).n_total, 4000);
    ck_assert_uint_eq(info_of(id).ended_ns, 0);
    uint64_t n_looked = 0;
    unsigned n_steps = 0;
    while (fixture_stat(&f, KVT_STAT_JOBS) > 0) {
        fixture_flush(&f);
        struct kvt_job_info info = info_of(id);
        ck_assert_uint_le(info.n_changed, 128u * (n_steps + 1));
        ck_assert_uint_ge(info.n_looked, n_looked);
        ck_assert_uint_le(info.n_looked, info.n_total);
        n_looked = info.n_looked;
        n_steps++;
        if (fixture_stat(&f, KVT_STAT_JOBS) == 0)
            break;
        uint64_t next_ns = kvt_core_next_deadline(f.core); /* it asks for its own next step */
        ck_assert_uint_ne(next_ns, UINT64_MAX);
        f.now_ns = KVT_MAX(f.now_ns, next_ns);
    }
    ck_assert_uint_ge(n_steps, 4000 / 128);
    struct kvt_job_info info = done(id);
    counts(&info, 4000, 4000, 0, 0);
}
END_TEST

START_TEST(cancel_keeps_what_was_done)
{
    store_cold(0, 20);
    uint64_t id = begin_keys(KVT_JOB_PREFETCH, 0, 0, 20);
    fixture_flush(&f);
    unsigned n_started = f.n_ios;
    ck_assert_uint_gt(n_started, 0);
    ck_assert_int_eq(kvt_core_job_cancel(f.core, id), KVT_OK);
    ck_assert_int_eq(info_of(id).state, KVT_JOB_CANCELED);
    ck_assert_int_eq(kvt_core_job_cancel(f.core, id), KVT_ERR_INVAL);
    fixture_flush(&f);
    ck_assert_uint_eq(f.n_ended, 1);
    ck_assert_uint_eq(info_of(id).ended_ns, f.now_ns);
    fixture_settle(&f); /* what was under way ends by itself */
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_HOST_USED_BYTES), n_started * 4096);
    ck_assert_uint_eq(f.n_ended, 1);
    uint64_t next = begin_keys(KVT_JOB_PREFETCH, 0, 0, 20);
    ck_assert_int_eq(kvt_core_job_cancel(f.core, next), KVT_OK); /* before its first step */
    fixture_flush(&f);
    ck_assert_uint_eq(info_of(next).n_looked, 0);
    ck_assert_uint_eq(f.n_ended, 2);
}
END_TEST

START_TEST(jobs_go_on_side_by_side)
{
    store_cold(0, 20);
    uint64_t all = begin_keys(KVT_JOB_PREFETCH, 0, 0, 20);
    uint64_t same = begin_keys(KVT_JOB_VERIFY, 0, 0, 20);
    uint64_t some = begin_keys(KVT_JOB_DELETE, 0, 15, 5);
    struct kvt_job_info infos[3];
    uint64_t cursor = 0;
    ck_assert_uint_eq(kvt_core_jobs(f.core, &cursor, infos, 2), 2);
    ck_assert_uint_ne(cursor, 0);
    ck_assert_uint_eq(kvt_core_jobs(f.core, &cursor, infos + 2, 1), 1);
    ck_assert_uint_eq(infos[0].id, all);
    ck_assert_uint_eq(infos[1].id, same);
    ck_assert_uint_eq(infos[2].id, some);
    struct kvt_job_info info = done(all);
    counts(&info, 15, 15, 0, 0);
    info = done(same);
    ck_assert_uint_eq(info.n_changed + info.n_skipped, 15);
    ck_assert_uint_eq(info.n_bad, 0);
    info = done(some);
    counts(&info, 5, 5, 0, 0);
    ck_assert_uint_eq(where_all(0, 15), KVT_WHERE_HOST | KVT_WHERE_NVME);
}
END_TEST

START_TEST(the_table_of_jobs_has_an_end)
{
    uint64_t ids[KVT_ADMIN_JOBS_MAX], id = 0;
    const struct kvt_job_request request = {.type = KVT_JOB_VERIFY, .filter = {.ns = ns}};
    struct kvt_error err = {.msg = ""};
    for (unsigned i = 0; i < KVT_ADMIN_JOBS_MAX; i++)
        ids[i] = begin(request);
    ck_assert_int_eq(kvt_core_job_start(f.core, &request, f.now_ns, &id, &err), KVT_ERR_AGAIN);
    ck_assert_ptr_nonnull(strstr(err.msg, "64"));
    fixture_jobs(&f);
    ck_assert_uint_eq(f.n_ended, KVT_ADMIN_JOBS_MAX);
    for (unsigned i = 0; i < KVT_ADMIN_JOBS_MAX; i++)
        ck_assert_int_eq(info_of(ids[i]).state, KVT_JOB_DONE);
    done(begin(request)); /* the one that ended first makes room */
    struct kvt_job_info info;
    ck_assert_int_eq(kvt_core_job(f.core, ids[0], &info), KVT_ERR_MISS);
    ck_assert_int_eq(info_of(ids[1]).state, KVT_JOB_DONE);
    struct kvt_job_info infos[KVT_ADMIN_JOBS_MAX + 1];
    uint64_t cursor = 0;
    ck_assert_uint_eq(kvt_core_jobs(f.core, &cursor, infos, KVT_ADMIN_JOBS_MAX + 1),
                      KVT_ADMIN_JOBS_MAX);
    ck_assert_uint_eq(cursor, 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("job");
    TCase *tcase = tcase_create("rules");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, a_bad_request_names_its_field);
    tcase_add_test(tcase, without_nvme_chunks_can_be_deleted_alone);
    tcase_add_test(tcase, an_agent_that_ends_takes_no_jobs);
    tcase_add_test(tcase, unknown_jobs_are_missed);
    tcase_add_test(tcase, what_is_deleted_by_key_is_gone_at_once);
    tcase_add_test(tcase, a_dry_run_changes_nothing);
    tcase_add_test(tcase, what_is_pinned_is_deleted_by_force_alone);
    tcase_add_test(tcase, a_tier_alone_can_be_cleared);
    tcase_add_test(tcase, a_copy_that_is_pinned_goes_by_force);
    tcase_add_test(tcase, a_subtree_goes_with_its_root);
    tcase_add_test(tcase, a_filter_clears_what_it_takes);
    tcase_add_test(tcase, bytes_that_are_being_copied_stay_until_that_is_over);
    tcase_add_test(tcase, a_delete_overtakes_writes_and_reads);
    tcase_add_test(tcase, a_delete_that_the_metadata_refuse_has_failed);
    tcase_add_test(tcase, demoted_chunks_are_on_nvme_alone);
    tcase_add_test(tcase, what_is_in_use_is_not_demoted);
    tcase_add_test(tcase, what_is_pinned_is_demoted_by_force_alone);
    tcase_add_test(tcase, a_pin_that_comes_while_a_chunk_is_written_keeps_it_in_memory);
    tcase_add_test(tcase, what_cannot_be_written_stays_in_memory);
    tcase_add_test(tcase, prefetched_chunks_are_in_memory_too);
    tcase_add_test(tcase, a_prefetch_drops_what_is_damaged);
    tcase_add_test(tcase, a_prefetch_brings_no_more_than_fits);
    tcase_add_test(tcase, a_prefetch_waits_behind_loads);
    tcase_add_test(tcase, verify_reads_what_is_on_nvme);
    tcase_add_test(tcase, verify_drops_what_is_bad);
    tcase_add_test(tcase, what_memory_has_is_written_again);
    tcase_add_test(tcase, a_slot_that_cannot_be_read_is_used_no_more);
    tcase_add_test(tcase, a_step_is_small_and_progress_is_told);
    tcase_add_test(tcase, cancel_keeps_what_was_done);
    tcase_add_test(tcase, jobs_go_on_side_by_side);
    tcase_add_test(tcase, the_table_of_jobs_has_an_end);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_tap(runner, "-");
    srunner_run_all(runner, CK_SILENT);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
