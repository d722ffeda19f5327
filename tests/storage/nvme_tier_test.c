/* SPDX-License-Identifier: Apache-2.0 */
/* What the block tier promises, over each engine, page size and way of registration. */
#include <check.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "nvme_fixture.h"

#define N_VARIANTS 8

static bool is_registered(int variant)
{
    return (variant & 4) == 0;
}

START_TEST(what_was_written_is_read)
{
    static const uint64_t sizes[] = {4096,           100,     64 << 10, 300004, 1536 << 10,
                                     (5 << 20) + 12, 14 << 20};
    static struct kvt_io ios[64];
    struct fixture fix;
    fixture_init(&fix, _i);
    fixture_must_open(&fix, is_registered(_i));
    for (unsigned s = 0; s < KVT_ARRAY_LEN(sizes); s++) {
        uint64_t chunk_bytes = sizes[s];
        uint64_t stride = kvt_align_up(chunk_bytes, 4096) + KVT_SLOT_HEADER_BYTES;
        uint64_t lane_bytes = 16 << 20;
        while (lane_bytes / 2 >= kvt_align_up(chunk_bytes, 4096) && lane_bytes > (512 << 10))
            lane_bytes /= 2;
        unsigned n_lanes = (unsigned)KVT_MIN(FIX_ARENA_SLABS * FIX_SLAB_BYTES / lane_bytes, 48u);
        uint32_t per_slab = (uint32_t)(FIX_SLAB_BYTES / stride);
        unsigned n = (unsigned)KVT_MIN((uint64_t)n_lanes, (uint64_t)per_slab * 2 * FIX_DISK_SLABS);
        for (int pass = 0; pass < 3; pass++) {
            for (unsigned i = 0; i < n;
                 i++) /* spread over all slabs of both disks, last slots too */
                fixture_io(&fix, &ios[i], pass == 0 ? KVT_IO_WRITE : KVT_IO_READ,
                           pass == 0 ? i : n - 1 - i, lane_bytes, i % (2 * FIX_DISK_SLABS),
                           per_slab - 1 - i / (2 * FIX_DISK_SLABS), chunk_bytes, i + 1000 * s);
            for (unsigned i = 0; pass > 0 && i < n; i++)
                ios[i].chunk_only = (i + pass) % 2 == 0;
            fixture_run(&fix, ios, n);
            for (unsigned i = 0; i < n; i++) {
                ck_assert_msg(ios[i].status == KVT_OK, "size %lu io %u: %s",
                              (unsigned long)chunk_bytes, i, kvt_status_str(ios[i].status));
                ck_assert(fixture_matches(&fix, &ios[i], i + 1000 * s));
            }
        }
    }
    fixture_fini(&fix);
}
END_TEST

START_TEST(a_store_is_found_again)
{
    struct fixture fix;
    uint8_t id[16];
    fixture_init(&fix, _i);
    fixture_must_open(&fix, true);
    memcpy(id, fix.store_id, sizeof(id));
    ck_assert_int_eq(fixture_write(&fix, 3, 77), KVT_OK);
    fixture_close(&fix);
    memset(fix.store_id, 0, sizeof(id));
    fixture_must_open(&fix, true);
    ck_assert_mem_eq(fix.store_id, id, sizeof(id));
    ck_assert_int_eq(fixture_read(&fix, 3, 77), KVT_OK);
    /* Its metadata has the same right to be wrong as its bytes. */
    ck_assert_int_eq(fixture_read(&fix, 3, 78), KVT_ERR_CORRUPT);
    ck_assert_int_eq(fixture_read(&fix, 4, 77), KVT_ERR_CORRUPT);
    fixture_fini(&fix);
}
END_TEST

START_TEST(damage_is_never_served)
{
    struct fixture fix;
    fixture_init(&fix, _i);
    fixture_must_open(&fix, is_registered(_i));
    for (uint32_t slot = 0; slot < 8; slot++)
        ck_assert_int_eq(fixture_write(&fix, slot, slot), KVT_OK);
    /* A bit of the data, first and last byte; a bit of the header; a bit of a checksum. */
    const uint64_t chunk = fixture_chunk_offset(1), header = fixture_header_offset(1);
    const uint64_t places[] = {
        chunk,        chunk + FIX_CHUNK_BYTES - 1, header, header + 20, header + 130, header + 1024,
        header + 4095};
    for (unsigned i = 0; i < KVT_ARRAY_LEN(places); i++) {
        fixture_flip(&fix, places[i]);
        if (i < 2)
            ck_assert_int_eq(fixture_read(&fix, 1, 1), KVT_ERR_CORRUPT);
        else /* the chunk itself is right */
            ck_assert_int_eq(fixture_read_whole(&fix, 1, 1), KVT_ERR_CORRUPT);
        fixture_flip(&fix, places[i]);
        ck_assert_int_eq(fixture_read(&fix, 1, 1), KVT_OK);
    }
    /* Swapped whole slots, swapped chunks under their headers. */
    fixture_swap(&fix, fixture_chunk_offset(2), fixture_chunk_offset(3), FIX_CHUNK_BYTES);
    fixture_swap(&fix, fixture_header_offset(2), fixture_header_offset(3), 4096);
    ck_assert_int_eq(fixture_read(&fix, 2, 2), KVT_ERR_CORRUPT);
    ck_assert_int_eq(fixture_read(&fix, 3, 3), KVT_ERR_CORRUPT);
    fixture_swap(&fix, fixture_chunk_offset(4), fixture_chunk_offset(5), FIX_CHUNK_BYTES);
    ck_assert_int_eq(fixture_read(&fix, 4, 4), KVT_ERR_CORRUPT);
    ck_assert_int_eq(fixture_read(&fix, 5, 5), KVT_ERR_CORRUPT);
    /* A stale slot: rewritten since. And the write before it, torn in the middle. */
    ck_assert_int_eq(fixture_write(&fix, 6, 600), KVT_OK);
    ck_assert_int_eq(fixture_read(&fix, 6, 6), KVT_ERR_CORRUPT);
    ck_assert_int_eq(fixture_read(&fix, 6, 600), KVT_OK);
    fixture_swap(&fix, fixture_chunk_offset(6) + FIX_CHUNK_BYTES / 2,
                 fixture_chunk_offset(0) + FIX_CHUNK_BYTES / 2, FIX_CHUNK_BYTES / 2);
    ck_assert_int_eq(fixture_read(&fix, 6, 600), KVT_ERR_CORRUPT);
    ck_assert_int_eq(fixture_read(&fix, 7, 7), KVT_OK);
    fixture_fini(&fix);
}
END_TEST

static enum kvt_status read_large(struct fixture *fix, uint64_t bytes, uint64_t seed,
                                  bool chunk_only)
{
    struct kvt_io io;
    fixture_io(fix, &io, KVT_IO_READ, 1, 8 << 20, 0, 0, bytes, seed);
    io.chunk_only = chunk_only;
    fixture_run(fix, &io, 1);
    ck_assert(io.status != KVT_OK || fixture_matches(fix, &io, seed));
    return io.status;
}

/* One that comes in pieces and is checked while it comes: damage in any of them. */
START_TEST(damage_of_a_large_chunk_is_never_served)
{
    static const uint64_t bytes = (6 << 20) + 8192, header = 2 * bytes; /* two slots in a slab */
    static const uint64_t places[] = {0,      (2 << 20) - 1, 2 << 20,      3 << 20,
                                      header, header + 1024, bytes - 4096, bytes - 1};
    struct fixture fix;
    struct kvt_io io;
    fixture_init(&fix, _i);
    fixture_must_open(&fix, is_registered(_i));
    fixture_io(&fix, &io, KVT_IO_WRITE, 0, 8 << 20, 0, 0, bytes, 9);
    fixture_run(&fix, &io, 1);
    ck_assert_int_eq(io.status, KVT_OK);
    for (unsigned i = 0; i < KVT_ARRAY_LEN(places); i++) {
        fixture_flip(&fix, FIX_DATA_OFFSET + places[i]);
        ck_assert_int_eq(read_large(&fix, bytes, 9, false), KVT_ERR_CORRUPT);
        if (places[i] < bytes)
            ck_assert_int_eq(read_large(&fix, bytes, 9, true), KVT_ERR_CORRUPT);
        fixture_flip(&fix, FIX_DATA_OFFSET + places[i]);
        ck_assert_int_eq(read_large(&fix, bytes, 9, false), KVT_OK);
        ck_assert_int_eq(read_large(&fix, bytes, 9, true), KVT_OK);
    }
    fixture_fini(&fix);
}
END_TEST

START_TEST(a_file_cut_short_is_an_error)
{
    struct fixture fix;
    struct kvt_io io;
    fixture_init(&fix, _i);
    fixture_must_open(&fix, is_registered(_i));
    uint64_t big = 6 << 20;
    fixture_io(&fix, &io, KVT_IO_WRITE, 0, 8 << 20, 0, 0, big, 9);
    fixture_run(&fix, &io, 1);
    ck_assert_int_eq(io.status, KVT_OK);
    /* In the middle of a page, of a piece, after a page, before the chunk. */
    static const uint64_t ends[] = {(6 << 20) - 100, 3 << 20, 5000, 4096, 0};
    for (unsigned i = 0; i < KVT_ARRAY_LEN(ends); i++) {
        ck_assert_int_eq(truncate(fix.config.disks[0].path, (off_t)(FIX_DATA_OFFSET + ends[i])), 0);
        for (int chunk_only = 0; chunk_only < 2; chunk_only++) {
            fixture_io(&fix, &io, KVT_IO_READ, 0, 8 << 20, 0, 0, big, 9);
            io.chunk_only = chunk_only;
            fixture_run(&fix, &io, 1);
            ck_assert_int_ne(io.status, KVT_OK);
        }
    }
    /* The other disk goes on. */
    fixture_io(&fix, &io, KVT_IO_WRITE, 0, 8 << 20, FIX_DISK_SLABS, 0, big, 9);
    fixture_run(&fix, &io, 1);
    ck_assert_int_eq(io.status, KVT_OK);
    fixture_close(&fix);
    /* Next time the file is whole again, what was lost reads as lost. */
    fixture_must_open(&fix, true);
    fixture_io(&fix, &io, KVT_IO_READ, 0, 8 << 20, 0, 0, big, 9);
    fixture_run(&fix, &io, 1);
    ck_assert_int_eq(io.status, KVT_ERR_CORRUPT);
    fixture_fini(&fix);
}
END_TEST

/* Headers next to each other go as one request: what happens to one does not happen to others. */
START_TEST(a_header_that_is_lost_takes_no_other_with_it)
{
    static const uint32_t order[] = {7, 2, 0, 11, 3, 1, 12, 5, 4, 9, 6, 14}; /* 8, 10, 13 apart */
    static const uint32_t cuts[] = {5, 0, 12, 14};
    struct kvt_io ios[KVT_ARRAY_LEN(order)];
    struct fixture fix;
    fixture_init(&fix, _i);
    fixture_must_open(&fix, is_registered(_i));
    for (unsigned cut = 0; cut < KVT_ARRAY_LEN(cuts); cut++) {
        for (unsigned i = 0; i < KVT_ARRAY_LEN(order); i++)
            fixture_io(&fix, &ios[i], KVT_IO_WRITE, i, FIX_CHUNK_BYTES, 0, order[i],
                       FIX_CHUNK_BYTES, order[i] + 100 * cut);
        fixture_run(&fix, ios, KVT_ARRAY_LEN(order));
        for (unsigned i = 0; i < KVT_ARRAY_LEN(order); i++)
            ck_assert_int_eq(ios[i].status, KVT_OK);
        /* In the middle of a header, and the next time at its start. */
        off_t end = (off_t)fixture_header_offset(cuts[cut]) + (cut % 2 == 0 ? 1000 : 0);
        ck_assert_int_eq(truncate(fix.config.disks[0].path, end), 0);
        for (unsigned i = 0; i < KVT_ARRAY_LEN(order); i++)
            fixture_io(&fix, &ios[i], KVT_IO_READ, i, FIX_CHUNK_BYTES, 0, order[i], FIX_CHUNK_BYTES,
                       order[i] + 100 * cut);
        fixture_run(&fix, ios, KVT_ARRAY_LEN(order));
        for (unsigned i = 0; i < KVT_ARRAY_LEN(order); i++) {
            ck_assert_msg((ios[i].status == KVT_OK) == (order[i] < cuts[cut]),
                          "cut at %u, slot %u: %s", cuts[cut], order[i],
                          kvt_status_str(ios[i].status));
            ck_assert(ios[i].status != KVT_OK ||
                      fixture_matches(&fix, &ios[i], order[i] + 100 * cut));
        }
    }
    fixture_fini(&fix);
}
END_TEST

/* The same for writes, of which the kernel takes no more than up to a limit. */
START_TEST(a_header_that_is_refused_takes_no_other_with_it)
{
    enum { N = 12, N_OK = 5 };
    struct kvt_io ios[N];
    struct fixture fix;
    struct rlimit whole, cut;
    fixture_init(&fix, _i);
    fixture_must_open(&fix, is_registered(_i));
    ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &whole), 0);
    cut = whole;
    cut.rlim_cur = fixture_header_offset(N_OK);
    signal(SIGXFSZ, SIG_IGN);
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &cut), 0);
    for (uint32_t slot = 0; slot < N; slot++)
        fixture_io(&fix, &ios[slot], KVT_IO_WRITE, slot, FIX_CHUNK_BYTES, 0, slot, FIX_CHUNK_BYTES,
                   slot);
    fixture_run(&fix, ios, N);
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &whole), 0);
    for (uint32_t slot = 0; slot < N; slot++) {
        ck_assert_int_eq(ios[slot].status, slot < N_OK ? KVT_OK : KVT_ERR_IO);
        ck_assert_int_eq(fixture_read_whole(&fix, slot, slot),
                         slot < N_OK ? KVT_OK : KVT_ERR_CORRUPT);
    }
    fixture_fini(&fix);
}
END_TEST

/* Memory that the kernel may not touch: with it a request of several header pages fails as a whole,
 * and then each of them is tried alone. */
START_TEST(a_run_that_fails_takes_none_with_it)
{
    enum { N = 12 };
    static const uint32_t bad[] = {0, 1, 5, N - 1};
    static const enum kvt_io_type types[] = {KVT_IO_WRITE, KVT_IO_READ};
    struct kvt_io ios[N];
    struct fixture fix;
    fixture_init(&fix, _i);
    fix.config.header_pool_bytes = 0; /* what is registered is reached by other means */
    fixture_must_open(&fix, is_registered(_i));
    for (unsigned b = 0; b < KVT_ARRAY_LEN(bad); b++)
        for (unsigned t = 0; t < KVT_ARRAY_LEN(types); t++) {
            for (uint32_t slot = 0; slot < N; slot++)
                fixture_io(&fix, &ios[slot], types[t], slot, FIX_CHUNK_BYTES, 0, slot,
                           FIX_CHUNK_BYTES, slot + 100 * b);
            struct kvt_slot_header *page = ios[bad[b]].header;
            ck_assert_int_eq(mprotect(page, sizeof(*page), PROT_NONE), 0);
            fixture_run(&fix, ios, N);
            ck_assert_int_eq(mprotect(page, sizeof(*page), PROT_READ | PROT_WRITE), 0);
            for (uint32_t slot = 0; slot < N; slot++) {
                bool good = slot != bad[b];
                ck_assert_msg(ios[slot].status == (good ? KVT_OK : KVT_ERR_IO),
                              "page %u is bad, slot %u: %s", bad[b], slot,
                              kvt_status_str(ios[slot].status));
                ck_assert(!good || fixture_matches(&fix, &ios[slot], slot + 100 * b));
            }
            for (uint32_t slot = 0; slot < N; slot++) {
                bool there = slot != bad[b] || types[t] == KVT_IO_READ;
                ck_assert_int_eq(fixture_read_whole(&fix, slot, slot + 100 * b),
                                 there ? KVT_OK : KVT_ERR_CORRUPT);
            }
            ck_assert_int_eq(fixture_write(&fix, bad[b], bad[b] + 100 * b), KVT_OK);
        }
    fixture_fini(&fix);
}
END_TEST

START_TEST(places_that_do_not_exist_are_refused)
{
    struct fixture fix;
    struct kvt_io ios[6];
    fixture_init(&fix, _i);
    fixture_must_open(&fix, true);
    for (unsigned i = 0; i < KVT_ARRAY_LEN(ios); i++)
        fixture_io(&fix, &ios[i], KVT_IO_WRITE, i, FIX_CHUNK_BYTES, 0, i, FIX_CHUNK_BYTES, i);
    ios[0].slab = 2 * FIX_DISK_SLABS;
    ios[1].slot = (uint32_t)(FIX_SLAB_BYTES / (FIX_CHUNK_BYTES + 4096));
    ios[2].slot_bytes = FIX_CHUNK_BYTES - 4096;
    ios[3].arena_offset = UINT64_MAX - 4095;
    ios[4].arena_offset += 512;
    fixture_run(&fix, ios, KVT_ARRAY_LEN(ios));
    for (unsigned i = 0; i < 5; i++)
        ck_assert_int_eq(ios[i].status, KVT_ERR_IO);
    ck_assert_int_eq(ios[5].status, KVT_OK);
    fixture_fini(&fix);
}
END_TEST

START_TEST(more_than_the_depth_is_back_pressure)
{
    static struct kvt_io ios[40];
    struct kvt_io *batch[40];
    struct fixture fix;
    fixture_init(&fix, _i);
    fixture_must_open(&fix, true);
    for (unsigned i = 0; i < 40; i++) {
        fixture_io(&fix, &ios[i], KVT_IO_WRITE, i, FIX_CHUNK_BYTES, 0, i, FIX_CHUNK_BYTES, i);
        batch[i] = &ios[i];
    }
    ck_assert_uint_eq(fix.nvme->ops->submit(fix.nvme, batch, 40), 2 * fix.config.queue_depth);
    ck_assert_uint_eq(fix.nvme->ops->submit(fix.nvme, batch + 32, 8), 0);
    /* Closing with all of them on their way waits for them. */
    fixture_close(&fix);
    fixture_must_open(&fix, true);
    for (uint32_t slot = 0; slot < 2 * fix.config.queue_depth; slot++)
        ck_assert_int_eq(fixture_read(&fix, slot, slot), KVT_OK);
    fixture_fini(&fix);
}
END_TEST

START_TEST(what_it_says_of_itself)
{
    struct fixture fix;
    struct kvt_tier_info info;
    fixture_init(&fix, _i);
    fixture_must_open(&fix, true);
    fix.nvme->ops->info(fix.nvme, &info);
    ck_assert_uint_eq(info.n_slabs, 2 * FIX_DISK_SLABS);
    ck_assert_uint_eq(info.slab_bytes, FIX_SLAB_BYTES);
    if (fix.engine == KVT_IO_THREADS)
        ck_assert(info.degraded && strstr(info.note, "threads") != NULL);
    ck_assert_uint_eq(fix.nvme->ops->caps, KVT_TIER_BLOCK | KVT_TIER_DURABLE);
    ck_assert_uint_eq(fix.nvme->ops->ready(fix.nvme, NULL, NULL, 0), 0);
    ck_assert(!kvt_nvme_tier_register(fix.nvme, 0, UINT64_MAX / 2, FIX_SLAB_BYTES));
    ck_assert(!kvt_nvme_tier_register(fix.nvme, FIX_ARENA_SLABS, fix.arena_offset[0], 4096));
    fixture_fini(&fix);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("nvme_tier");
    TCase *tcase = tcase_create("contract");
    tcase_set_timeout(tcase, 120);
    tcase_add_loop_test(tcase, what_was_written_is_read, 0, N_VARIANTS);
    tcase_add_loop_test(tcase, a_store_is_found_again, 0, 2);
    tcase_add_loop_test(tcase, damage_is_never_served, 0, N_VARIANTS);
    tcase_add_loop_test(tcase, damage_of_a_large_chunk_is_never_served, 0, N_VARIANTS);
    tcase_add_loop_test(tcase, a_file_cut_short_is_an_error, 0, N_VARIANTS);
    tcase_add_loop_test(tcase, a_header_that_is_lost_takes_no_other_with_it, 0, N_VARIANTS);
    tcase_add_loop_test(tcase, a_header_that_is_refused_takes_no_other_with_it, 0, N_VARIANTS);
    tcase_add_loop_test(tcase, a_run_that_fails_takes_none_with_it, 0, N_VARIANTS);
    tcase_add_loop_test(tcase, places_that_do_not_exist_are_refused, 0, 2);
    tcase_add_loop_test(tcase, more_than_the_depth_is_back_pressure, 0, 2);
    tcase_add_loop_test(tcase, what_it_says_of_itself, 0, 2);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_tap(runner, "-");
    srunner_run_all(runner, CK_SILENT);
    int n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
