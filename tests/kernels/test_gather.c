/* SPDX-License-Identifier: Apache-2.0 */
/* Plans and the C twins of the kernels, over every layout of the engines, against byte loops. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kvt/gather.h"
#include "layouts.h"

#define N_BLOCKS 37u
#define N_PAGES  5u
#define N_PIECES 8192u

static uint64_t rng_state;

static uint32_t rng(uint32_t below)
{
    rng_state = rng_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(rng_state >> 33) % below;
}

struct bed { /* one layout with memory on both sides */
    struct kv_map map;
    uint32_t pages[N_PAGES];
    unsigned char *cache, *want_cache, *chunk, *want_chunk;
    uint64_t chunk_bytes;
    struct kvt_plan plan;
    uint64_t max_bytes; /* to be planned */
};

static void fill(unsigned char *p, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        p[i] = (unsigned char)rng(256);
}

static void bed_init(struct bed *b, const struct kv_layout *layout, uint32_t content_bytes,
                     uint32_t pad_bytes)
{
    memset(b, 0, sizeof(*b));
    b->map = kv_map_make(layout, (struct kv_shape){.n_layers = 1 + rng(6),
                                                   .n_planes = 2,
                                                   .n_blocks = N_BLOCKS,
                                                   .n_heads = 1 + rng(4),
                                                   .n_tokens = 1 + rng(16),
                                                   .content_bytes = content_bytes,
                                                   .block_pad_bytes = pad_bytes});
    b->chunk_bytes = kv_chunk_bytes(&b->map, N_PAGES);
    b->cache = malloc(b->map.bytes);
    b->want_cache = malloc(b->map.bytes);
    b->chunk = malloc(b->chunk_bytes);
    b->want_chunk = malloc(b->chunk_bytes);
    b->plan.pieces = malloc(N_PIECES * sizeof(*b->plan.pieces));
    b->plan.n_max = N_PIECES;
    fill(b->cache, b->map.bytes);
    fill(b->chunk, b->chunk_bytes);
    memcpy(b->want_cache, b->cache, b->map.bytes);
    for (uint32_t i = 0; i < N_PAGES; i++) {
        bool fresh = false;
        while (!fresh) {
            b->pages[i] = rng(N_BLOCKS);
            fresh = true;
            for (uint32_t j = 0; j < i; j++)
                fresh = fresh && b->pages[j] != b->pages[i];
        }
    }
}

static void bed_fini(struct bed *b)
{
    free(b->cache);
    free(b->want_cache);
    free(b->chunk);
    free(b->want_chunk);
    free(b->plan.pieces);
}

static void cell_plan(void *arg, uint64_t cache_offset, uint64_t chunk_offset, uint32_t bytes)
{
    struct bed *b = arg;
    ck_assert(kvt_plan_add(&b->plan, (uintptr_t)b->cache + cache_offset, chunk_offset, bytes));
}

static void cell_gather(void *arg, uint64_t cache_offset, uint64_t chunk_offset, uint32_t bytes)
{
    struct bed *b = arg;
    for (uint32_t i = 0; i < bytes; i++)
        b->want_chunk[chunk_offset + i] = b->cache[cache_offset + i];
}

static void cell_scatter(void *arg, uint64_t cache_offset, uint64_t chunk_offset, uint32_t bytes)
{
    struct bed *b = arg;
    for (uint32_t i = 0; i < bytes; i++)
        b->want_cache[cache_offset + i] = b->chunk[chunk_offset + i];
}

/* Adjacent pages may happen to merge further; pages far from each other show the layout. */
static uint32_t pieces_expected(const struct bed *b, const struct kv_layout *layout)
{
    uint32_t rows = b->map.n[KV_L] * b->map.n[KV_K] * N_PAGES;
    if (strcmp(layout->order, "LHBN") == 0 || strcmp(layout->order, "BHLN") == 0)
        return b->map.n[KV_H] == 1 ? rows : rows * b->map.n[KV_H];
    if (strcmp(layout->order, "KBNLH") == 0)
        return b->map.n[KV_L] == 1 ? rows : rows * b->map.n[KV_N];
    if (strcmp(layout->order, "KBHNL") == 0)
        return b->map.n[KV_L] == 1 ? rows : rows * b->map.n[KV_H] * b->map.n[KV_N];
    return rows;
}

START_TEST(every_layout_is_moved)
{
    const struct kv_layout *layout = &kv_layouts[_i];
    for (unsigned round = 0; round < 30; round++) {
        struct bed b;
        uint32_t content = round % 3 == 0 ? 1 + rng(40) : 16 * (1 + rng(20));
        bed_init(&b, layout, content, round % 2 == 0 ? 0 : 16 * rng(5));
        kv_cells(&b.map, b.pages, N_PAGES, cell_plan, &b);
        ck_assert_uint_eq(b.plan.bytes, b.chunk_bytes);
        ck_assert_uint_le(b.plan.n, pieces_expected(&b, layout));

        kv_cells(&b.map, b.pages, N_PAGES, cell_gather, &b);
        kvt_gather_c(b.chunk, b.plan.pieces, b.plan.n);
        ck_assert_mem_eq(b.chunk, b.want_chunk, b.chunk_bytes);
        ck_assert_mem_eq(b.cache, b.want_cache, b.map.bytes);

        fill(b.chunk, b.chunk_bytes);
        kv_cells(&b.map, b.pages, N_PAGES, cell_scatter, &b);
        kvt_scatter_c(b.chunk, b.plan.pieces, b.plan.n);
        ck_assert_mem_eq(b.cache, b.want_cache, b.map.bytes);

        /* The same pieces, cut for a kernel. */
        uint64_t n_max = kvt_plan_cut_max(b.plan.n, b.plan.bytes);
        struct kvt_piece *cut = malloc(n_max * sizeof(*cut));
        uint32_t n = kvt_plan_cut(&b.plan, cut);
        ck_assert_uint_le(n, n_max);
        memset(b.chunk, 0, b.chunk_bytes);
        kv_cells(&b.map, b.pages, N_PAGES, cell_gather, &b);
        kvt_gather_c(b.chunk, cut, n);
        ck_assert_mem_eq(b.chunk, b.want_chunk, b.chunk_bytes);
        free(cut);
        bed_fini(&b);
    }
}
END_TEST

START_TEST(runs_merge_on_both_sides_or_not_at_all)
{
    struct kvt_piece pieces[3];
    struct kvt_plan plan = {.pieces = pieces, .n_max = 3};
    ck_assert(kvt_plan_add(&plan, 1000, 0, 100));
    ck_assert(kvt_plan_add(&plan, 1100, 100, 50));
    ck_assert_uint_eq(plan.n, 1);
    ck_assert(kvt_plan_add(&plan, 1150, 160, 10)); /* a gap in the chunk */
    ck_assert(kvt_plan_add(&plan, 1170, 170, 10)); /* a gap in the pages */
    ck_assert_uint_eq(plan.n, 3);
    ck_assert(!kvt_plan_add(&plan, 5000, 500, 10));
    ck_assert_uint_eq(plan.bytes, 170);
    ck_assert(kvt_plan_add(&plan, 1180, 180, 20)); /* merges, so it needs no room */
    ck_assert_uint_eq(plan.bytes, 190);
    ck_assert(kvt_plan_is_short(&plan, 64));
    ck_assert(!kvt_plan_is_short(&plan, 63));
    kvt_plan_reset(&plan);
    ck_assert_uint_eq(plan.n, 0);
}
END_TEST

START_TEST(long_pieces_are_cut)
{
    struct kvt_piece in[2] = {{1 << 20, 7, 3 * KVT_GATHER_CUT_BYTES}, {9 << 20, 1 << 19, 5}};
    struct kvt_piece out[8];
    struct kvt_plan plan = {.pieces = in, .n = 2, .n_max = 2, .bytes = in[0].bytes + 5};
    ck_assert_uint_eq(kvt_plan_cut(&plan, out), 4);
    ck_assert_uint_eq(kvt_plan_cut_max(2, plan.bytes), 5);
    for (unsigned i = 0; i < 3; i++) {
        ck_assert_uint_eq(out[i].page, (1 << 20) + i * KVT_GATHER_CUT_BYTES);
        ck_assert_uint_eq(out[i].offset, 7 + i * KVT_GATHER_CUT_BYTES);
        ck_assert_uint_eq(out[i].bytes, KVT_GATHER_CUT_BYTES);
    }
    ck_assert_uint_eq(out[3].bytes, 5);
}
END_TEST

START_TEST(rows_are_found)
{
    struct kvt_piece p[6] = {{1000, 0, 10},  {1100, 20, 10}, {1200, 40, 10},
                             {1300, 60, 10}, {1401, 80, 10}, {1000, 90, 10}};
    struct kvt_plan plan = {.pieces = p, .n = 6, .n_max = 6};
    struct kvt_rows rows = kvt_plan_rows(&plan, 0, 1000);
    ck_assert_uint_eq(rows.n_rows, 4);
    ck_assert_uint_eq(rows.page_pitch, 100);
    ck_assert_uint_eq(rows.chunk_pitch, 20);
    ck_assert_uint_eq(kvt_plan_rows(&plan, 0, 99).n_rows, 1);   /* pitch too long */
    ck_assert_uint_eq(kvt_plan_rows(&plan, 4, 1000).n_rows, 1); /* backwards */
    ck_assert_uint_eq(kvt_plan_rows(&plan, 5, 1000).n_rows, 1); /* the last */
    p[1].bytes = 9;
    ck_assert_uint_eq(kvt_plan_rows(&plan, 0, 1000).n_rows, 1);
}
END_TEST

int main(void)
{
    const char *given = getenv("KVTIER_TEST_SEED");
    rng_state = given != NULL ? strtoull(given, NULL, 0) : (uint64_t)time(NULL);
    printf("KVTIER_TEST_SEED=%llu\n", (unsigned long long)rng_state);
    fflush(stdout);
    Suite *suite = suite_create("gather");
    TCase *t = tcase_create("gather");
    tcase_set_timeout(t, 120);
    tcase_add_loop_test(t, every_layout_is_moved, 0, KV_LAYOUTS);
    tcase_add_test(t, runs_merge_on_both_sides_or_not_at_all);
    tcase_add_test(t, long_pieces_are_cut);
    tcase_add_test(t, rows_are_found);
    suite_add_tcase(suite, t);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_failed == 0 ? 0 : 1;
}
