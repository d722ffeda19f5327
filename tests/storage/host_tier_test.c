/* SPDX-License-Identifier: Apache-2.0 */
#include <check.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kvt/host_tier.h"
#include "kvt/util.h"

#define SLAB_BYTES (UINT64_C(8) << 20)
#define N_SLABS    12u

static struct kvt_tier *host_open(enum kvt_huge_pages huge_pages, uint64_t bytes)
{
    struct kvt_host_config config = {
        .bytes = bytes, .slab_bytes = SLAB_BYTES, .huge_pages = huge_pages};
    struct kvt_tier *tier = NULL;
    struct kvt_error err = {0};
    enum kvt_status status = kvt_host_tier_open(&config, &tier, &err);
    if (status == KVT_OK)
        status = kvt_host_tier_start(tier, &err);
    ck_assert_msg(status == KVT_OK, "%s", err.msg);
    return tier;
}

static unsigned all_slabs(struct kvt_tier *tier, uint32_t *slabs, uint64_t *offsets)
{
    unsigned n = 0;
    while (n < N_SLABS) {
        struct pollfd fd = {.fd = tier->ops->event_fd(tier), .events = POLLIN};
        ck_assert_int_eq(poll(&fd, 1, 20000), 1);
        /* Two at a time: what did not fit must keep the descriptor readable. */
        n += tier->ops->ready(tier, slabs + n, offsets + n, KVT_MIN(2u, N_SLABS - n));
    }
    return n;
}

static void check_arena(enum kvt_huge_pages huge_pages)
{
    struct kvt_tier *tier = host_open(huge_pages, N_SLABS * SLAB_BYTES + 4096);
    uint32_t slabs[N_SLABS];
    uint64_t offsets[N_SLABS];
    bool seen[N_SLABS] = {false};
    struct kvt_tier_info info;
    ck_assert_uint_eq(all_slabs(tier, slabs, offsets), N_SLABS);
    tier->ops->info(tier, &info);
    ck_assert_uint_eq(info.n_slabs, N_SLABS);
    ck_assert_uint_eq(info.n_regions, huge_pages == KVT_HUGE_AUTO ? 2 : 1);
    for (unsigned i = 0; i < N_SLABS; i++) {
        ck_assert_uint_lt(slabs[i], N_SLABS);
        ck_assert(!seen[slabs[i]]);
        seen[slabs[i]] = true;
        /* The region says where else to map it: the same bytes through its descriptor. */
        const struct kvt_tier_region *region = &info.regions[offsets[i] / (N_SLABS * SLAB_BYTES)];
        ck_assert_uint_eq(offsets[i] - region->base, slabs[i] * SLAB_BYTES);
        unsigned char *addr = kvt_host_tier_addr(tier, offsets[i]);
        ck_assert_ptr_eq(addr, (char *)region->addr + (offsets[i] - region->base));
        ck_assert(addr[0] == 0 && memcmp(addr, addr + 1, SLAB_BYTES - 1) == 0);
        memset(addr, (int)i + 1, SLAB_BYTES);
    }
    for (unsigned i = 0; i < N_SLABS; i++) {
        const struct kvt_tier_region *region = &info.regions[offsets[i] / (N_SLABS * SLAB_BYTES)];
        unsigned char *view = mmap(NULL, SLAB_BYTES, PROT_READ, MAP_SHARED | MAP_NORESERVE,
                                   region->fd, (off_t)(slabs[i] * SLAB_BYTES));
        ck_assert_ptr_ne(view, MAP_FAILED);
        for (uint64_t at = 0; at < SLAB_BYTES; at += 509)
            ck_assert_uint_eq(view[at], i + 1);
        munmap(view, SLAB_BYTES);
    }
    ck_assert_uint_eq(tier->ops->ready(tier, slabs, offsets, N_SLABS), 0);
    ck_assert_uint_eq(tier->ops->submit(tier, NULL, 0), 0);
    tier->ops->close(tier);
}

START_TEST(slabs_arrive_zeroed_and_apart)
{
    check_arena(_i == 0 ? KVT_HUGE_AUTO : KVT_HUGE_OFF);
}
END_TEST

START_TEST(nothing_is_backed_before_the_start)
{
    struct kvt_host_config config = {.bytes = N_SLABS * SLAB_BYTES, .slab_bytes = SLAB_BYTES};
    struct kvt_error err = {0};
    struct kvt_tier *tier = NULL;
    struct kvt_tier_info info;
    uint32_t slabs[N_SLABS];
    uint64_t offsets[N_SLABS];
    ck_assert_int_eq(kvt_host_tier_open(&config, &tier, &err), KVT_OK);
    ck_assert_uint_eq(tier->ops->ready(tier, slabs, offsets, N_SLABS), 0);
    tier->ops->info(tier, &info);
    for (unsigned i = 0; i < info.n_regions; i++) {
        struct stat st;
        ck_assert_int_eq(fstat(info.regions[i].fd, &st), 0);
        ck_assert_int_eq(st.st_blocks, 0);
    }
    ck_assert_int_eq(kvt_host_tier_start(tier, &err), KVT_OK);
    ck_assert_uint_eq(all_slabs(tier, slabs, offsets), N_SLABS);
    tier->ops->close(tier);
    /* And closed without having been started. */
    ck_assert_int_eq(kvt_host_tier_open(&config, &tier, &err), KVT_OK);
    tier->ops->close(tier);
}
END_TEST

START_TEST(small_pages_when_huge_ones_are_off)
{
    struct kvt_tier *tier = host_open(KVT_HUGE_OFF, N_SLABS * SLAB_BYTES);
    struct kvt_tier_info info;
    uint32_t slabs[N_SLABS];
    uint64_t offsets[N_SLABS];
    ck_assert_uint_eq(all_slabs(tier, slabs, offsets), N_SLABS);
    tier->ops->info(tier, &info);
    ck_assert_uint_eq(info.regions[0].page_bytes, 4096);
    ck_assert_ptr_nonnull(strstr(info.note, "12 in 4 KiB pages"));
    ck_assert(!info.degraded);
    tier->ops->close(tier);
}
END_TEST

START_TEST(huge_pages_go_back_at_close)
{
    struct kvt_host_config config = {
        .bytes = N_SLABS * SLAB_BYTES, .slab_bytes = SLAB_BYTES, .huge_pages = KVT_HUGE_REQUIRE};
    struct kvt_error err = {0};
    for (int i = 0; i < 3; i++) {
        struct kvt_tier *tier = NULL;
        enum kvt_status status = kvt_host_tier_open(&config, &tier, &err);
        if (status == KVT_ERR_NOTSUP) { /* none to be had here: the refusal tells the way out */
            ck_assert_ptr_nonnull(strstr(err.msg, "vm.nr_overcommit_hugepages"));
            return;
        }
        if (status == KVT_OK)
            status = kvt_host_tier_start(tier, &err);
        ck_assert_msg(status == KVT_OK, "%s", err.msg);
        uint32_t slabs[N_SLABS];
        uint64_t offsets[N_SLABS];
        ck_assert_uint_eq(all_slabs(tier, slabs, offsets), N_SLABS);
        tier->ops->close(tier);
    }
}
END_TEST

START_TEST(more_than_there_is_of_huge_pages_is_refused)
{
    /* One slab of sixteen tebibytes: no machine has that, and trying must not eat the memory. */
    struct kvt_host_config config = {
        .bytes = KVT_TIB * 16, .slab_bytes = KVT_TIB * 16, .huge_pages = KVT_HUGE_REQUIRE};
    struct kvt_error err = {0};
    struct kvt_tier *tier = NULL;
    config.slab_bytes = config.bytes;
    enum kvt_status status = kvt_host_tier_open(&config, &tier, &err);
    ck_assert_int_ne(status, KVT_OK);
    ck_assert_ptr_null(tier);
    ck_assert_uint_gt(strlen(err.msg), 20);
}
END_TEST

START_TEST(bad_sizes_are_refused)
{
    static const struct kvt_host_config bad[] = {
        {.bytes = SLAB_BYTES, .slab_bytes = 0},
        {.bytes = SLAB_BYTES, .slab_bytes = 4096},
        {.bytes = SLAB_BYTES - 1, .slab_bytes = SLAB_BYTES},
        {.bytes = UINT64_MAX, .slab_bytes = SLAB_BYTES},
    };
    for (unsigned i = 0; i < KVT_ARRAY_LEN(bad); i++) {
        struct kvt_tier *tier = NULL;
        struct kvt_error err = {0};
        ck_assert_int_eq(kvt_host_tier_open(&bad[i], &tier, &err), KVT_ERR_INVAL);
        ck_assert_ptr_nonnull(strstr(err.msg, "host."));
    }
}
END_TEST

START_TEST(opening_and_closing_do_not_wait_for_the_arena)
{
    uint64_t start_ns = kvt_now_ns();
    struct kvt_tier *tier = host_open(KVT_HUGE_AUTO, UINT64_C(2) << 30);
    tier->ops->close(tier);
    ck_assert_uint_lt(kvt_now_ns() - start_ns, UINT64_C(1000000000));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("host_tier");
    TCase *tcase = tcase_create("arena");
    tcase_set_timeout(tcase, 60);
    tcase_add_loop_test(tcase, slabs_arrive_zeroed_and_apart, 0, 2);
    tcase_add_test(tcase, nothing_is_backed_before_the_start);
    tcase_add_test(tcase, small_pages_when_huge_ones_are_off);
    tcase_add_test(tcase, huge_pages_go_back_at_close);
    tcase_add_test(tcase, more_than_there_is_of_huge_pages_is_refused);
    tcase_add_test(tcase, bad_sizes_are_refused);
    tcase_add_test(tcase, opening_and_closing_do_not_wait_for_the_arena);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_tap(runner, "-");
    srunner_run_all(runner, CK_SILENT);
    int n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
