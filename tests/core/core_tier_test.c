/* SPDX-License-Identifier: Apache-2.0 */
/* What core.h promises about the NVMe tier: write-behind, durability, promotion, faults and slabs,
 * one rule at a time. */
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

static void again_with(const struct kvt_core_config *config)
{
    fixture_fini(&f);
    fixture_start(&f, config, &s, &ns);
}

static void load(uint32_t session, uint64_t op, unsigned first, unsigned n, uint32_t flags)
{
    fixture_load(&f, session, ns, op, first, n, flags);
}

static uint8_t where(unsigned key)
{
    return fixture_where(&f, s, ns, key);
}

/* Durable, and on NVMe alone: as after a restart. */
static void store_cold(unsigned first, unsigned n)
{
    fixture_store(&f, s, ns, 900, first, n, KVT_STORE_DURABLE);
    fixture_settle(&f);
    f.n_answers = 0;
    fixture_start_again(&f, 0, &s, &ns);
    ck_assert_uint_eq(where(first), KVT_WHERE_NVME);
}

/* --- writing ---------------------------------------------------------------------------------- */

START_TEST(durable_is_answered_when_data_and_metadata_are_there)
{
    fixture_store(&f, s, ns, 1, 0, 1, KVT_STORE_DURABLE);
    ck_assert_uint_eq(f.n_ios, 1);
    ck_assert_uint_eq(f.n_answers, 0);
    ck_assert_uint_eq(where(0), KVT_WHERE_HOST); /* visible all the same */
    fixture_io(&f, KVT_OK);
    fixture_flush(&f);
    ck_assert_uint_eq(f.n_answers, 0);
    while (f.n_metas_done < f.n_metas)
        fixture_meta(&f, KVT_OK);
    fixture_flush(&f);
    ck_assert_int_eq(fixture_take(&f, 'c', 1, 0).item.status, KVT_OK);
    ck_assert_uint_eq(where(0), KVT_WHERE_HOST | KVT_WHERE_NVME);
    ck_assert(kvt_core_quiescent(f.core));
}
END_TEST

START_TEST(durable_tells_of_a_write_that_failed)
{
    fixture_store(&f, s, ns, 1, 0, 1, KVT_STORE_DURABLE);
    fixture_io(&f, KVT_ERR_IO);
    fixture_flush(&f);
    ck_assert_int_eq(fixture_take(&f, 'c', 1, 0).item.status, KVT_ERR_IO);
    ck_assert_uint_eq(where(0), KVT_WHERE_HOST);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_NVME_WRITE_ERRORS), 1);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_QUARANTINED_SLOTS), 1);
    fixture_settle(&f);
}
END_TEST

START_TEST(durable_tells_of_metadata_that_failed)
{
    fixture_store(&f, s, ns, 1, 0, 1, KVT_STORE_DURABLE);
    fixture_io(&f, KVT_OK);
    while (f.n_metas_done < f.n_metas)
        fixture_meta(&f, f.metas[f.n_metas_done].what == 'p' ? KVT_ERR_IO : KVT_OK);
    fixture_flush(&f);
    ck_assert_int_eq(fixture_take(&f, 'c', 1, 0).item.status, KVT_ERR_IO);
    fixture_settle(&f);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_NVME_USED_BYTES), 0);
}
END_TEST

/* Records mean nothing to a restart that does not know the slot size of their slab. */
START_TEST(durable_tells_of_a_slab_that_is_not_in_the_metadata)
{
    fixture_store(&f, s, ns, 1, 0, 1, KVT_STORE_DURABLE);
    fixture_io(&f, KVT_OK);
    while (f.n_metas_done < f.n_metas)
        fixture_meta(&f, f.metas[f.n_metas_done].what == 's' ? KVT_ERR_IO : KVT_OK);
    fixture_flush(&f);
    ck_assert_int_eq(fixture_take(&f, 'c', 1, 0).item.status, KVT_ERR_IO);
    fixture_store(&f, s, ns, 2, 1, 1, KVT_STORE_DURABLE); /* the next one names it again */
    fixture_settle(&f);
    ck_assert_int_eq(fixture_take(&f, 'c', 2, 0).item.status, KVT_OK);
    fixture_start_again(&f, 0, &s, &ns);
    ck_assert_uint_eq(where(1), KVT_WHERE_NVME);
}
END_TEST

START_TEST(durable_tells_of_a_namespace_that_is_not_in_the_metadata)
{
    uint32_t other = fixture_ns(&f, "b", 4096, 2);
    fixture_meta(&f, KVT_ERR_IO);
    fixture_store(&f, s, other, 1, 0, 1, KVT_STORE_DURABLE);
    fixture_settle(&f);
    ck_assert_int_eq(fixture_take(&f, 'c', 1, 0).item.status, KVT_OK); /* it was named again */
    fixture_start_again(&f, 0, &s, &ns);
    ck_assert_uint_eq(fixture_ns(&f, "b", 4096, 2), other);
    ck_assert_uint_eq(fixture_held(&f, s, other, 0, 1), 1);
}
END_TEST

START_TEST(without_nvme_nothing_is_durable)
{
    struct kvt_core_config config = fixture_config();
    config.n_nvme_slabs = 0;
    again_with(&config);
    fixture_store(&f, s, ns, 1, 0, 1, KVT_STORE_DURABLE);
    ck_assert_int_eq(fixture_take(&f, 'c', 1, 0).item.status, KVT_ERR_NOTSUP);
    ck_assert_uint_eq(where(0), KVT_WHERE_HOST);
    ck_assert_uint_eq(f.n_metas, 0);
}
END_TEST

START_TEST(cancel_of_a_durable_store_in_flight)
{
    fixture_store(&f, s, ns, 1, 0, 1, KVT_STORE_DURABLE);
    ck_assert_int_eq(kvt_core_cancel(f.core, s, 1, f.now_ns), KVT_OK);
    fixture_settle(&f);
    ck_assert_uint_eq(f.n_answers, 0);
    ck_assert_uint_eq(where(0), KVT_WHERE_HOST | KVT_WHERE_NVME);
}
END_TEST

START_TEST(admission_all_writes_everything)
{
    struct kvt_core_config config = fixture_config();
    config.admission = KVT_ADMIT_ALL;
    again_with(&config);
    fixture_store(&f, s, ns, 1, 0, 2, 0);
    fixture_settle(&f);
    ck_assert_uint_eq(f.n_writes, 2);
}
END_TEST

START_TEST(admission_none_writes_what_must_last)
{
    fixture_store(&f, s, ns, 1, 0, 2, 0);
    fixture_settle(&f);
    ck_assert_uint_eq(f.n_writes, 0);
    fixture_store(&f, s, ns, 2, 10, 1, KVT_STORE_DURABLE);
    fixture_settle(&f);
    ck_assert_uint_eq(f.n_writes, 1);
}
END_TEST

START_TEST(admission_reused_waits_for_a_use)
{
    struct kvt_core_config config = fixture_config();
    config.admission = KVT_ADMIT_REUSED;
    again_with(&config);
    fixture_store(&f, s, ns, 1, 0, 1, 0);
    fixture_settle(&f);
    ck_assert_uint_eq(f.n_writes, 0);
    load(s, 2, 0, 1, 0);
    fixture_settle(&f);
    ck_assert_uint_eq(f.n_writes, 1);
    fixture_store(&f, s, ns, 3, 0, 2, KVT_STORE_PARENT); /* continues what was held */
    fixture_settle(&f);
    ck_assert_uint_eq(f.n_writes, 2);
}
END_TEST

START_TEST(transfers_are_bounded_in_bytes)
{
    struct kvt_core_config config = fixture_config();
    config.write_bytes_max = 2 * 4096;
    config.admission = KVT_ADMIT_ALL;
    again_with(&config);
    fixture_store(&f, s, ns, 1, 0, 4, 0);
    ck_assert_uint_eq(f.n_ios, 2);
    fixture_io(&f, KVT_OK);
    fixture_flush(&f);
    ck_assert_uint_eq(f.n_ios, 2);
    fixture_settle(&f);
    ck_assert_uint_eq(f.n_writes, 4);
    config.write_bytes_max = 1; /* less than one: one at a time all the same */
    again_with(&config);
    fixture_store(&f, s, ns, 1, 0, 2, 0);
    ck_assert_uint_eq(f.n_ios, 1);
    fixture_settle(&f);
    ck_assert_uint_eq(f.n_writes, 2);
    config.write_bytes_max = 4097; /* a second one begins: the disk is not to wait for the bound */
    again_with(&config);
    fixture_store(&f, s, ns, 1, 0, 4, 0);
    ck_assert_uint_eq(f.n_ios, 2);
    fixture_settle(&f);
    ck_assert_uint_eq(f.n_writes, 4);
}
END_TEST

/* A slow metadata store must not be handed more than its queue holds. */
START_TEST(metadata_changes_are_bounded)
{
    struct kvt_core_config config = fixture_config();
    config.n_ios_max = 2;
    config.admission = KVT_ADMIT_ALL;
    again_with(&config);
    fixture_store(&f, s, ns, 1, 0, 6, 0);
    for (unsigned i = 0; i < 20; i++) {
        if (f.n_ios > 0)
            fixture_io(&f, KVT_OK);
        fixture_flush(&f);
        unsigned n_puts = 0, n_slabs = 0;
        for (unsigned m = f.n_metas_done; m < f.n_metas; m++) {
            n_puts += f.metas[m].what == 'p';
            n_slabs += f.metas[m].what == 's';
        }
        ck_assert_uint_le(n_puts, config.n_ios_max);
        ck_assert_uint_le(n_slabs, config.n_nvme_slabs);
    }
    ck_assert_uint_lt(f.n_writes, 6);
    fixture_settle(&f);
    ck_assert_uint_eq(f.n_writes, 6);
}
END_TEST

START_TEST(nvme_pauses_after_many_failures_and_comes_back)
{
    struct kvt_core_config config = fixture_config();
    config.admission = KVT_ADMIT_ALL;
    again_with(&config);
    for (unsigned i = 0; i < 8; i++) {
        fixture_store(&f, s, ns, 1 + i, 10 * i, 1, 0);
        ck_assert_uint_eq(f.n_ios, 1);
        fixture_io(&f, KVT_ERR_NOSPACE);
        while (f.n_metas_done < f.n_metas)
            fixture_meta(&f, KVT_OK);
        fixture_flush(&f);
    }
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_NVME_DEGRADED), 1);
    fixture_store(&f, s, ns, 20, 200, 1, KVT_STORE_DURABLE);
    ck_assert_uint_eq(f.n_ios, 0);
    ck_assert_int_eq(fixture_take(&f, 'c', 20, 0).item.status, KVT_ERR_IO);
    f.now_ns += 10000 * MS;
    fixture_store(&f, s, ns, 21, 201, 1, KVT_STORE_DURABLE);
    fixture_settle(&f);
    ck_assert_int_eq(fixture_take(&f, 'c', 21, 0).item.status, KVT_OK);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_NVME_DEGRADED), 0);
}
END_TEST

START_TEST(drain_lets_write_behind_finish)
{
    struct kvt_core_config config = fixture_config();
    config.admission = KVT_ADMIT_ALL;
    again_with(&config);
    fixture_store(&f, s, ns, 1, 0, 3, 0);
    kvt_core_drain(f.core);
    ck_assert(!kvt_core_quiescent(f.core));
    fixture_settle(&f);
    ck_assert(kvt_core_quiescent(f.core));
    fixture_start_again(&f, 0, &s, &ns);
    ck_assert_uint_eq(fixture_held(&f, s, ns, 0, 3), 3);
}
END_TEST

/* --- reading ---------------------------------------------------------------------------------- */

START_TEST(a_read_promotes)
{
    store_cold(0, 2);
    load(s, 1, 0, 2, 0);
    ck_assert_uint_eq(f.n_ios, 2);
    ck_assert_uint_eq(f.n_answers, 0);
    fixture_io(&f, KVT_OK);
    fixture_flush(&f);
    ck_assert_uint_eq(fixture_take(&f, 'l', 1, 0).n_open, 1); /* each as it comes */
    fixture_io(&f, KVT_OK);
    fixture_flush(&f);
    struct answer a = fixture_take(&f, 'l', 1, 1);
    ck_assert_uint_eq(a.n_open, 0);
    ck_assert(fixture_filled(&f, ns, a.item.offset, 1));
    ck_assert_uint_eq(where(0), KVT_WHERE_HOST | KVT_WHERE_NVME);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_LOAD_NVME_CHUNKS), 2);
    load(s, 2, 0, 2, 0);
    ck_assert_uint_eq(f.n_ios, 0);
    ck_assert_int_eq(fixture_take(&f, 'l', 2, 0).item.status, KVT_OK);
}
END_TEST

/* Only its end may be evicted, and that is in use: the rest gives way, since it stays on NVMe. */
START_TEST(a_chain_that_fills_memory_gives_way)
{
    struct kvt_core_config config = fixture_config();
    config.n_host_slabs = 1;
    again_with(&config);
    store_cold(0, 2);
    store_cold(2, 2);
    store_cold(4, 1);
    load(s, 1, 0, 4, 0); /* which makes one chain of them */
    fixture_settle(&f);
    kvt_core_load_done(f.core, s, 1, f.now_ns);
    load(s, 2, 3, 1, 0); /* and holds it */
    f.n_answers = 0;
    load(s, 3, 4, 1, 0);
    ck_assert_uint_eq(f.n_ios, 1);
    fixture_settle(&f);
    ck_assert_int_eq(fixture_take(&f, 'l', 3, 0).item.status, KVT_OK);
    unsigned n_in_memory = 0;
    for (unsigned key = 0; key < 5; key++) {
        ck_assert(where(key) & KVT_WHERE_NVME);
        n_in_memory += (where(key) & KVT_WHERE_HOST) != 0;
    }
    ck_assert_uint_eq(n_in_memory, 4);
    ck_assert_uint_eq(where(3), KVT_WHERE_HOST | KVT_WHERE_NVME);
}
END_TEST

START_TEST(loads_of_one_chunk_share_a_read)
{
    store_cold(0, 1);
    uint32_t other = fixture_session(&f);
    load(s, 1, 0, 1, 0);
    load(other, 7, 0, 1, 0);
    ck_assert_uint_eq(f.n_ios, 1);
    fixture_io(&f, KVT_OK);
    fixture_flush(&f);
    ck_assert_int_eq(fixture_take(&f, 'l', 1, 0).item.status, KVT_OK);
    ck_assert_int_eq(fixture_take(&f, 'l', 7, 0).item.status, KVT_OK);
}
END_TEST

START_TEST(prefetch_pins_nothing)
{
    store_cold(0, 1);
    load(s, 1, 0, 1, KVT_LOAD_PREFETCH);
    fixture_io(&f, KVT_OK);
    fixture_flush(&f);
    struct answer a = fixture_take(&f, 'l', 1, 0);
    ck_assert_int_eq(a.item.status, KVT_OK);
    ck_assert_uint_eq(a.n_open, 0);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_PINS), 0);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_OPS), 0);
    ck_assert_uint_eq(where(0), KVT_WHERE_HOST | KVT_WHERE_NVME);
}
END_TEST

START_TEST(a_late_read_is_a_timeout)
{
    store_cold(0, 1);
    load(s, 1, 0, 1, 0);
    uint64_t deadline_ns = kvt_core_next_deadline(f.core);
    ck_assert_uint_eq(deadline_ns, f.now_ns + 50 * MS);
    f.now_ns = deadline_ns;
    fixture_flush(&f);
    ck_assert_int_eq(fixture_take(&f, 'l', 1, 0).item.status, KVT_ERR_TIMEOUT);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_OPS), 0);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_LOAD_LATE_CHUNKS), 1);
    fixture_settle(&f); /* what was read is there for the next one */
    ck_assert_uint_eq(f.n_answers, 0);
    ck_assert_uint_eq(where(0), KVT_WHERE_HOST | KVT_WHERE_NVME);
}
END_TEST

START_TEST(cancel_of_a_load_in_flight)
{
    store_cold(0, 2);
    load(s, 1, 0, 2, 0);
    ck_assert_int_eq(kvt_core_cancel(f.core, s, 1, f.now_ns), KVT_OK);
    fixture_settle(&f);
    ck_assert_uint_eq(f.n_answers, 0);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_PINS), 0);
}
END_TEST

START_TEST(a_corrupt_chunk_is_dropped)
{
    store_cold(0, 2);
    load(s, 1, 0, 1, 0);
    fixture_io(&f, KVT_ERR_CORRUPT);
    fixture_flush(&f);
    ck_assert_int_eq(fixture_take(&f, 'l', 1, 0).item.status, KVT_ERR_CORRUPT);
    ck_assert_uint_eq(where(0), 0);
    ck_assert_uint_eq(where(1), KVT_WHERE_NVME);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_CORRUPT_CHUNKS), 1);
    fixture_settle(&f);
    fixture_start_again(&f, 0, &s, &ns); /* and its record is gone */
    ck_assert_uint_eq(where(0), 0);
    ck_assert_uint_eq(where(1), KVT_WHERE_NVME);
}
END_TEST

START_TEST(a_corrupt_chunk_under_a_lease)
{
    struct kvt_key key = fixture_key(0);
    struct kvt_wire_lookup_r reply = {0};
    uint8_t w;
    store_cold(0, 1);
    kvt_core_lookup(f.core, s, ns, &key, 1, KVT_LOOKUP_LEASE, 0, f.now_ns, &reply, &w);
    ck_assert_uint_ne(reply.lease, 0);
    load(s, 1, 0, 1, 0);
    fixture_io(&f, KVT_ERR_CORRUPT);
    fixture_flush(&f);
    ck_assert_int_eq(fixture_take(&f, 'l', 1, 0).item.status, KVT_ERR_CORRUPT);
    fixture_settle(&f);
    fixture_store(&f, s, ns, 2, 0, 1, 0); /* it may be stored again meanwhile */
    ck_assert_int_eq(kvt_core_release(f.core, s, reply.lease), KVT_OK);
    ck_assert_uint_eq(where(0), KVT_WHERE_HOST);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_PINS), 0);
}
END_TEST

START_TEST(an_unreadable_slot_is_quarantined)
{
    store_cold(0, 1);
    load(s, 1, 0, 1, 0);
    fixture_io(&f, KVT_ERR_IO);
    fixture_flush(&f);
    ck_assert_int_eq(fixture_take(&f, 'l', 1, 0).item.status, KVT_ERR_IO);
    ck_assert_uint_eq(where(0), 0);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_NVME_READ_ERRORS), 1);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_QUARANTINED_SLOTS), 1);
    fixture_settle(&f);
}
END_TEST

START_TEST(scrub_finds_rot)
{
    struct kvt_core_config config = fixture_config();
    config.scrub_bytes_per_s = 1000000;
    again_with(&config);
    store_cold(0, 2);
    fixture_flush(&f);
    for (unsigned i = 0; i < 2; i++) {
        while (f.n_ios == 0) {
            uint64_t next_ns = kvt_core_next_deadline(f.core);
            ck_assert_uint_ne(next_ns, UINT64_MAX);
            f.now_ns = KVT_MAX(f.now_ns, next_ns);
            fixture_flush(&f);
        }
        fixture_io(&f, i == 0 ? KVT_ERR_CORRUPT : KVT_OK);
        while (f.n_metas_done < f.n_metas)
            fixture_meta(&f, KVT_OK);
        fixture_flush(&f);
    }
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_SCRUBBED_CHUNKS), 2);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_CORRUPT_CHUNKS), 1);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_CHUNKS), 1);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_HOST_USED_BYTES), 0); /* it keeps nothing */
}
END_TEST

/* --- slabs ------------------------------------------------------------------------------------ */

START_TEST(a_scrub_that_has_to_wait_leaves_nothing_out)
{
    struct kvt_core_config config = fixture_config();
    config.scrub_bytes_per_s = 1000000;
    config.read_bytes_max = KVT_PAGE_BYTES; /* one read at a time */
    again_with(&config);
    store_cold(0, 3);
    load(s, 1, 2, 1, 0); /* first comes who is waited for */
    ck_assert_uint_eq(f.n_ios, 1);
    fixture_settle(&f);
    for (unsigned i = 0; i < 10; i++) {
        f.now_ns += 1000 * MS;
        fixture_settle(&f);
    }
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_SCRUBBED_CHUNKS), 2);
}
END_TEST

START_TEST(empty_slabs_go_back)
{
    uint32_t other = fixture_ns(&f, "big", 3 * 4096, 1);
    uint64_t sums[16] = {0};
    uint32_t indexes[8] = {0, 1, 2, 3, 4, 5, 6, 7};
    struct kvt_key keys[8];
    fixture_keys(keys, 0, 8);
    ck_assert_int_eq(kvt_core_reserve(f.core, s, 1, ns, keys, 8, 0, 0, f.now_ns), KVT_OK);
    fixture_flush(&f);
    ck_assert_int_eq(kvt_core_commit(f.core, s, 1, indexes, 8, KVT_COMMIT_ABORT, sums, f.now_ns),
                     KVT_OK);
    f.n_answers = 0;
    /* Two slots of a whole slab each, and no chunk had to go for them. */
    fixture_store(&f, s, other, 2, 100, 1, 0);
    fixture_store(&f, s, other, 3, 101, 1, 0);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_EVICT_HOST_CHUNKS), 0);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_HOST_USED_BYTES), 2 * 3 * 4096);
}
END_TEST

START_TEST(a_new_size_gets_slabs_of_another)
{
    for (unsigned i = 0; i < 8; i++) /* all four slabs */
        fixture_store(&f, s, ns, 1 + i, 10 * i, 2, 0);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_HOST_USED_BYTES),
                      fixture_stat(&f, KVT_STAT_HOST_CAPACITY_BYTES));
    uint32_t other = fixture_ns(&f, "big", 2 * 4096, 2);
    fixture_store(&f, s, other, 20, 500, 2, 0);
    ck_assert_uint_eq(fixture_held(&f, s, other, 500, 2), 2);
    ck_assert_uint_ge(fixture_stat(&f, KVT_STAT_EVICT_HOST_CHUNKS), 4);
    ck_assert_uint_eq(fixture_stat(&f, KVT_STAT_EVICT_HOST_SLAB),
                      fixture_stat(&f, KVT_STAT_EVICT_HOST_CHUNKS));
    ck_assert_uint_ge(fixture_stat(&f, KVT_STAT_CHUNKS), 8);
}
END_TEST

START_TEST(one_slot_size_with_more_segments)
{
    uint32_t other = fixture_ns(&f, "many", 4096, 4);
    fixture_store(&f, s, ns, 1, 0, 1, KVT_STORE_DURABLE);
    fixture_store(&f, s, other, 2, 0, 1, KVT_STORE_DURABLE);
    fixture_settle(&f);
    ck_assert_int_eq(fixture_take(&f, 'c', 1, 0).item.status, KVT_OK);
    ck_assert_int_eq(fixture_take(&f, 'c', 2, 0).item.status, KVT_OK);
    fixture_start_again(&f, 0, &s, &ns);
    ck_assert_uint_eq(fixture_held(&f, s, ns, 0, 1), 1);
    ck_assert_uint_eq(fixture_held(&f, s, fixture_ns(&f, "many", 4096, 4), 0, 1), 1);
}
END_TEST

START_TEST(host_memory_may_come_later)
{
    struct kvt_key keys[1] = {fixture_key(0)};
    fixture_start_again(&f, 0, &s, &ns);
    kvt_core_destroy(f.core);
    f.n_metas = f.n_metas_done = 0;
    fixture_create(&f, 0);
    s = fixture_session(&f);
    ns = fixture_ns(&f, "a", 4096, 2);
    ck_assert_int_eq(kvt_core_reserve(f.core, s, 1, ns, keys, 1, 0, 0, f.now_ns), KVT_OK);
    fixture_flush(&f);
    ck_assert_int_eq(fixture_take(&f, 'r', 1, 0).item.status, KVT_ERR_NOSPACE);
    kvt_core_host_slab(f.core, 3, (UINT64_C(1) << 20) + 3 * f.config.host_slab_bytes);
    fixture_store(&f, s, ns, 2, 0, 1, 0);
    fixture_settle(&f);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("core-tier");
    TCase *tcase = tcase_create("rules");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, durable_is_answered_when_data_and_metadata_are_there);
    tcase_add_test(tcase, durable_tells_of_a_write_that_failed);
    tcase_add_test(tcase, durable_tells_of_metadata_that_failed);
    tcase_add_test(tcase, durable_tells_of_a_slab_that_is_not_in_the_metadata);
    tcase_add_test(tcase, durable_tells_of_a_namespace_that_is_not_in_the_metadata);
    tcase_add_test(tcase, without_nvme_nothing_is_durable);
    tcase_add_test(tcase, cancel_of_a_durable_store_in_flight);
    tcase_add_test(tcase, admission_all_writes_everything);
    tcase_add_test(tcase, admission_none_writes_what_must_last);
    tcase_add_test(tcase, admission_reused_waits_for_a_use);
    tcase_add_test(tcase, transfers_are_bounded_in_bytes);
    tcase_add_test(tcase, metadata_changes_are_bounded);
    tcase_add_test(tcase, nvme_pauses_after_many_failures_and_comes_back);
    tcase_add_test(tcase, drain_lets_write_behind_finish);
    tcase_add_test(tcase, a_read_promotes);
    tcase_add_test(tcase, a_chain_that_fills_memory_gives_way);
    tcase_add_test(tcase, loads_of_one_chunk_share_a_read);
    tcase_add_test(tcase, prefetch_pins_nothing);
    tcase_add_test(tcase, a_late_read_is_a_timeout);
    tcase_add_test(tcase, cancel_of_a_load_in_flight);
    tcase_add_test(tcase, a_corrupt_chunk_is_dropped);
    tcase_add_test(tcase, a_corrupt_chunk_under_a_lease);
    tcase_add_test(tcase, an_unreadable_slot_is_quarantined);
    tcase_add_test(tcase, scrub_finds_rot);
    tcase_add_test(tcase, a_scrub_that_has_to_wait_leaves_nothing_out);
    tcase_add_test(tcase, empty_slabs_go_back);
    tcase_add_test(tcase, a_new_size_gets_slabs_of_another);
    tcase_add_test(tcase, one_slot_size_with_more_segments);
    tcase_add_test(tcase, host_memory_may_come_later);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_tap(runner, "-");
    srunner_run_all(runner, CK_SILENT);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
