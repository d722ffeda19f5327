/* SPDX-License-Identifier: Apache-2.0 */
/* Layouts, and the fused copies against byte-wise twins over random pieces. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "copy.h"
#include "kvt/util.h"

static const struct kvt_copy_ops *variants[2];
static int n_variants;
static _Atomic int go_on;
static const struct kvt_copy_stop no_stop = {&go_on, UINT64_MAX, 0};

static uint64_t rng_state;

static uint64_t rng(uint64_t below)
{
    rng_state ^= rng_state << 13;
    rng_state ^= rng_state >> 7;
    rng_state ^= rng_state << 17;
    return rng_state % below;
}

static void rng_seed(void)
{
    const char *given = getenv("KVTIER_TEST_SEED");
    rng_state = given != NULL ? strtoull(given, NULL, 0) : (uint64_t)time(NULL) * 2654435761u;
    printf("KVTIER_TEST_SEED=%llu\n", (unsigned long long)rng_state);
    fflush(stdout);
    rng_state |= 1;
}

static void fill(unsigned char *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        p[i] = (unsigned char)rng(256);
}

/* A random layout of chunk_bytes inside memory[2 * chunk_bytes + 4096]. */
static kvtier_layout layout_make(unsigned char *memory, uint64_t chunk_bytes,
                                 kvtier_extent *extents)
{
    if (rng(3) == 0) {
        /* Strided: split by two divisors, with gaps. */
        uint32_t outer = 1, inner = 1;
        for (uint32_t f = 8; f > 1; f--) {
            if (chunk_bytes % f == 0 && outer == 1)
                outer = f;
            else if (chunk_bytes / outer % f == 0 && inner == 1)
                inner = f;
        }
        uint64_t bytes = chunk_bytes / outer / inner;
        uint64_t gap = rng(bytes + 1);
        bool swap = rng(2) == 0; /* inner pieces far apart, outer ones close, as K and V may be */
        int64_t close_stride = (int64_t)(bytes + gap);
        return (kvtier_layout){
            .n_outer = outer,
            .n_inner = inner,
            .base = memory,
            .bytes = bytes,
            .inner_stride = swap ? close_stride * outer : close_stride,
            .outer_stride = swap ? close_stride : close_stride * inner,
        };
    }
    uint32_t n = 0;
    uint64_t at = rng(100), left = chunk_bytes;
    while (left > 0) {
        uint64_t piece = 1 + rng(rng(4) == 0 ? 8000 : 700000);
        if (piece > left || n == 1000)
            piece = left;
        extents[n++] = (kvtier_extent){memory + at, piece};
        at += piece + (n < 1000 && at < chunk_bytes / 2 ? rng(64) : 0);
        left -= piece;
    }
    return (kvtier_layout){.extents = extents, .n_extents = n};
}

START_TEST(copies_equal_their_twin)
{
    const struct kvt_copy_ops *copy = variants[_i];
    rng_seed();
    for (int round = 0; round < 60; round++) {
        uint32_t n_segments = 1 + (uint32_t)rng(round % 3 == 0 ? 300 : 5);
        uint64_t segment_bytes = 1 + rng(round % 2 == 0 ? 3000 : 400000);
        uint64_t bytes = n_segments * segment_bytes;
        uint64_t room = 3 * bytes + 131072;
        unsigned char *memory = malloc(room), *slot = malloc(bytes + 64), *flat = malloc(bytes);
        kvtier_extent *extents = malloc(1001 * sizeof(*extents));
        uint64_t sums[300];
        const char *why = "";
        fill(memory, room);
        kvtier_layout layout = layout_make(memory, bytes, extents);
        ck_assert_msg(kvt_layout_check(&layout, bytes, &why), "%s", why);

        struct kvt_runs runs;
        kvt_runs_init(&runs, &layout);
        for (uint64_t at = 0; at < bytes;) {
            char *run;
            uint64_t n = kvt_runs_next(&runs, bytes - at, &run);
            ck_assert_uint_gt(n, 0);
            memcpy(flat + at, run, n);
            at += n;
        }
        unsigned char *to = slot + rng(64);
        ck_assert(copy->store(to, &layout, n_segments, segment_bytes, sums, &no_stop));
        ck_assert_mem_eq(to, flat, bytes);
        for (uint32_t i = 0; i < n_segments; i++)
            ck_assert_uint_eq(sums[i], XXH3_64bits(flat + i * segment_bytes, segment_bytes));

        /* Back: the pieces get the bytes, the gaps keep theirs. */
        unsigned char *want = malloc(room);
        fill(memory, room);
        memcpy(want, memory, room);
        kvt_runs_init(&runs, &layout);
        for (uint64_t at = 0; at < bytes;) {
            char *run;
            uint64_t n = kvt_runs_next(&runs, bytes - at, &run);
            ck_assert_uint_gt(n, 0);
            memcpy(want + (run - (char *)memory), flat + at, n);
            at += n;
        }
        ck_assert(copy->load(&layout, to, bytes, &no_stop));
        ck_assert_mem_eq(memory, want, room);
        free(want);
        free(extents);
        free(flat);
        free(slot);
        free(memory);
    }
}
END_TEST

START_TEST(a_stopped_copy_writes_nothing)
{
    _Atomic int flag = 1;
    struct kvt_copy_stop stop = {&flag, UINT64_MAX, 0};
    struct kvt_copy_stop late = {&go_on, kvt_now_ns() - 1, 0};
    unsigned char from[4096], to[4096] = {0}, zero[4096] = {0};
    uint64_t sum;
    kvtier_extent extent = {from, sizeof(from)};
    kvtier_layout layout = {.extents = &extent, .n_extents = 1};
    memset(from, 1, sizeof(from));
    ck_assert(!variants[_i]->store(to, &layout, 1, sizeof(from), &sum, &stop));
    extent.addr = to;
    ck_assert(!variants[_i]->load(&layout, from, sizeof(from), &stop));
    ck_assert(!variants[_i]->load(&layout, from, sizeof(from), &late));
    ck_assert_mem_eq(to, zero, sizeof(to));
}
END_TEST

START_TEST(bad_layouts_are_refused)
{
    char m[64];
    const char *why = NULL;
    kvtier_extent two[2] = {{m, 32}, {m + 32, 32}};
    kvtier_extent null[1] = {{NULL, 64}};
    kvtier_extent empty[2] = {{m, 64}, {m, 0}};
    kvtier_extent huge[2] = {{m, 64}, {m, UINT64_MAX}};
    kvtier_layout good = {.extents = two, .n_extents = 2};
    ck_assert(kvt_layout_check(&good, 64, &why));
    ck_assert(!kvt_layout_check(&good, 65, &why));
    ck_assert_ptr_nonnull(why);
    const kvtier_layout bad[] = {
        {.extents = two, .n_extents = 1},
        {.extents = two, .n_extents = 0},
        {.extents = null, .n_extents = 1},
        {.extents = empty, .n_extents = 2},
        {.extents = huge, .n_extents = 2},
        {.extents = two, .n_extents = 2, .reserved = 1},
        {.base = NULL, .n_outer = 1, .n_inner = 1, .bytes = 64},
        {.base = m, .n_outer = 0, .n_inner = 1, .bytes = 64},
        {.base = m, .n_outer = 1, .n_inner = 2, .bytes = 64},
        {.base = m, .n_outer = UINT32_MAX, .n_inner = UINT32_MAX, .bytes = UINT64_MAX},
        {.base = m, .n_outer = 2, .n_inner = 1, .bytes = 32, .outer_stride = INT64_MIN},
        {.base = m, .n_outer = 2, .n_inner = 1, .bytes = 32, .outer_stride = -(intptr_t)m - 1},
        {.base = m, .n_outer = 4, .n_inner = 1, .bytes = 16, .outer_stride = INT64_MAX / 2},
    };
    for (size_t i = 0; i < KVT_ARRAY_LEN(bad); i++)
        ck_assert_msg(!kvt_layout_check(&bad[i], 64, &why), "layout %zu passed", i);
    kvtier_layout down = {
        .base = m + 48, .n_outer = 4, .n_inner = 1, .bytes = 16, .outer_stride = -16};
    ck_assert(kvt_layout_check(&down, 64, &why));
}
END_TEST

START_TEST(pages_are_the_blocks_pieces_in_order)
{
    enum { PIECES = 3, PER_CHUNK = 2, CHUNKS = 3, BLOCKS = 5 };
    static char pools[PIECES][BLOCKS * 100], sink[10 + 20 + 30];
    const kvtier_piece pieces[PIECES] = {
        {pools[0], 100, 10}, {pools[1] + 7, 90, 20}, {pools[2] + 400, -100, 30}};
    const char *const first[PIECES] = {pools[0], pools[1] + 7, pools[2] + 400};
    kvtier_pages pages = {.size = sizeof(pages),
                          .pieces = pieces,
                          .n_pieces = PIECES,
                          .blocks_per_chunk = PER_CHUNK,
                          .n_blocks = BLOCKS,
                          .sink = sink};
    int64_t blocks[CHUNKS * PER_CHUNK] = {4, 0, -1, 3, 2, -1};
    kvtier_layout layouts[CHUNKS];
    kvtier_extent extents[CHUNKS * PER_CHUNK * PIECES];
    const char *why = "";

    ck_assert_int_eq(kvt_layouts_of_pages(&pages, blocks, CHUNKS, layouts, extents), KVTIER_OK);
    for (unsigned i = 0; i < CHUNKS * PER_CHUNK; i++) {
        ck_assert_msg(kvt_layout_check(&layouts[i / PER_CHUNK], 2 * sizeof(sink), &why), "%s", why);
        const char *in_sink = sink;
        for (unsigned p = 0; p < PIECES; p++) {
            const kvtier_extent *e =
                &layouts[i / PER_CHUNK].extents[(size_t)(i % PER_CHUNK) * PIECES + p];
            ck_assert_uint_eq(e->bytes, pieces[p].bytes);
            ck_assert_ptr_eq(e->addr,
                             blocks[i] < 0 ? in_sink : first[p] + blocks[i] * pieces[p].stride);
            in_sink += e->bytes;
        }
    }
    const int64_t wrong[] = {BLOCKS, -2, INT64_MAX, INT64_MIN};
    for (size_t i = 0; i < KVT_ARRAY_LEN(wrong); i++) {
        blocks[3] = wrong[i];
        ck_assert_int_eq(kvt_layouts_of_pages(&pages, blocks, CHUNKS, layouts, extents),
                         KVTIER_ERR_INVAL);
    }
    blocks[3] = 3;
    pages.sink = NULL;
    ck_assert_int_eq(kvt_layouts_of_pages(&pages, blocks, CHUNKS, layouts, extents),
                     KVTIER_ERR_INVAL);
    pages.n_pieces = UINT32_MAX;
    ck_assert_int_eq(kvt_layouts_of_pages(&pages, blocks, 1, layouts, extents), KVTIER_ERR_INVAL);
    pages.size = 8;
    ck_assert_int_eq(kvt_layouts_of_pages(&pages, blocks, 1, layouts, extents), KVTIER_ERR_INVAL);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("copy");
    TCase *tc = tcase_create("copy");
    variants[n_variants++] = &kvt_copy_plain;
    if (kvt_copy_best() != &kvt_copy_plain)
        variants[n_variants++] = kvt_copy_best();
    tcase_set_timeout(tc, 100);
    tcase_add_loop_test(tc, copies_equal_their_twin, 0, n_variants);
    tcase_add_loop_test(tc, a_stopped_copy_writes_nothing, 0, n_variants);
    tcase_add_test(tc, bad_layouts_are_refused);
    tcase_add_test(tc, pages_are_the_blocks_pieces_in_order);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_failed == 0 ? 0 : 1;
}
