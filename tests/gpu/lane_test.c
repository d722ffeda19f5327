/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The copy paths of the connector between a GPU's pages and arena memory, over every layout and
 * every way, against the layouts' own addresses. With a real driver or, for machines without a
 * GPU, with the fake one (--library). Needs no test library, so that it builds on a machine that
 * has a compiler and the CUDA toolkit and nothing else.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cuda_lane.h"
#include "kvt/util.h"
#include "layouts.h"
#include "parts.h"

#define ARENA_BYTES (96 * KVT_MIB)
#define ARENA_BASE  KVT_GIB
#define SLAB_BYTES  (24 * KVT_MIB) /* slices of 16 and 8 MiB */
#define N_BLOCKS    40u
#define N_PAGES     16u

#define CHECK(e)                                                                                   \
    ((e) ? (void)0                                                                                 \
         : (fprintf(stderr, "%s:%d: %s\n  seed %llu, %s\n", __FILE__, __LINE__, #e, seed_given,    \
                    now_testing),                                                                  \
            exit(1)))

static unsigned long long seed_given;
static char now_testing[128] = "start";
static uint64_t rng_state;
static unsigned n_passed;

static uint32_t rng(uint32_t below)
{
    rng_state = rng_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(rng_state >> 33) % below;
}

static void fill(unsigned char *p, uint64_t n)
{
    uint64_t x = rng_state | 1;
    for (uint64_t i = 0; i < n; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        p[i] = (unsigned char)(x >> 24);
    }
    rng_state += x;
}

struct bench {            /* a GPU and an arena */
    struct parts_gpu gpu; /* without a cache: each trial has its own */
    struct kvt_lane store, load;
    struct CUstream_st *stream; /* the "engine's" */
    struct CUevent_st *after;
    char *bounce; /* registered, for fills and comparisons */
    uint64_t bounce_bytes;
};

static void must(enum kvt_status status, const struct kvt_error *err)
{
    if (status != KVT_OK) {
        fprintf(stderr, "lane_test: %s (%s)\n", err->msg, now_testing);
        exit(1);
    }
}

static void bench_init(struct bench *b, const char *library, uint32_t kernel_below_bytes,
                       bool is_pinned)
{
    struct kvt_error err;
    memset(b, 0, sizeof(*b));
    parts_gpu_open(&b->gpu, &(struct parts_gpu_options){
                                .library = library,
                                .kernel_below_bytes = kernel_below_bytes,
                                .arena_base = ARENA_BASE,
                                .arena_bytes = ARENA_BYTES,
                                .slab_bytes = is_pinned ? SLAB_BYTES : 0,
                            });
    must(kvt_lane_init(&b->store, &b->gpu.device, &b->gpu.pin, &b->gpu.arena, false, &err), &err);
    must(kvt_lane_init(&b->load, &b->gpu.device, &b->gpu.pin, &b->gpu.arena, true, &err), &err);
    CHECK(b->gpu.device.api.stream_create(&b->stream, KVT_CU_STREAM_NON_BLOCKING, 0) == 0);
    CHECK(b->gpu.device.api.event_create(&b->after, KVT_CU_EVENT_DISABLE_TIMING) == 0);
    b->bounce_bytes = 64 * KVT_MIB;
    CHECK(b->gpu.device.api.host_alloc((void **)&b->bounce, b->bounce_bytes, 0) == 0);
}

static void bench_fini(struct bench *b)
{
    kvt_lane_fini(&b->store);
    kvt_lane_fini(&b->load);
    (void)b->gpu.device.api.event_destroy(b->after);
    (void)b->gpu.device.api.stream_destroy(b->stream);
    (void)b->gpu.device.api.host_free(b->bounce);
    parts_gpu_close(&b->gpu);
}

static void gpu_write(struct bench *b, kvt_cu_ptr dst, const unsigned char *src, uint64_t bytes)
{
    CHECK(bytes <= b->bounce_bytes);
    memcpy(b->bounce, src, bytes);
    CHECK(b->gpu.device.api.copy_in(dst, b->bounce, bytes, b->stream) == 0);
    CHECK(b->gpu.device.api.stream_sync(b->stream) == 0);
}

static void gpu_read(struct bench *b, unsigned char *dst, kvt_cu_ptr src, uint64_t bytes)
{
    CHECK(bytes <= b->bounce_bytes);
    CHECK(b->gpu.device.api.copy_out(b->bounce, src, bytes, b->stream) == 0);
    CHECK(b->gpu.device.api.stream_sync(b->stream) == 0);
    memcpy(dst, b->bounce, bytes);
}

/* --- one chunk of one layout ----------------------------------------------------------------- */

struct trial {
    struct kv_map map;
    uint32_t pages[N_PAGES];
    kvt_cu_ptr cache;
    unsigned char *want_cache, *want_chunk; /* what either side must hold */
    kvtier_extent *extents;
    uint32_t n_extents;
    bool merged; /* extents as long as they can be */
};

static void cell_extent(void *arg, uint64_t cache_offset, uint64_t chunk_offset, uint32_t bytes)
{
    struct trial *t = arg;
    char *addr = (char *)(uintptr_t)t->cache + cache_offset; /* NOLINT: of the GPU */
    if (t->merged && t->n_extents > 0) {
        kvtier_extent *last = &t->extents[t->n_extents - 1];
        if ((char *)last->addr + last->bytes == addr) {
            last->bytes += bytes;
            return;
        }
    }
    t->extents[t->n_extents++] = (kvtier_extent){addr, bytes};
}

static void cell_gather(void *arg, uint64_t cache_offset, uint64_t chunk_offset, uint32_t bytes)
{
    struct trial *t = arg;
    memcpy(t->want_chunk + chunk_offset, t->want_cache + cache_offset, bytes);
}

static void cell_scatter(void *arg, uint64_t cache_offset, uint64_t chunk_offset, uint32_t bytes)
{
    struct trial *t = arg;
    memcpy(t->want_cache + cache_offset, t->want_chunk + chunk_offset, bytes);
}

static void pages_draw(struct trial *t, bool in_order)
{
    uint32_t first = rng(N_BLOCKS - N_PAGES);
    for (uint32_t i = 0; i < N_PAGES; i++) {
        bool fresh = in_order;
        t->pages[i] = first + i;
        while (!fresh) {
            t->pages[i] = rng(N_BLOCKS);
            fresh = true;
            for (uint32_t j = 0; j < i; j++)
                fresh = fresh && t->pages[j] != t->pages[i];
        }
    }
}

static void chunk_run(struct bench *b, struct kvt_lane *lane, const kvtier_layout *layout,
                      uint64_t offset, uint64_t bytes)
{
    static _Atomic int go_on;
    const struct kvt_copy_stop stop = {&go_on, UINT64_MAX, 0};
    CHECK(b->gpu.device.api.event_record(b->after, b->stream) == 0);
    kvt_lane_begin(lane, b->after);
    enum kvt_status status = kvt_lane_copy(lane, layout, offset, bytes, &stop);
    must(kvt_lane_end(lane), &lane->error);
    CHECK(status == KVT_OK);
}

static void trial_run(struct bench *b, const struct kv_layout *kind, struct kv_shape shape,
                      bool in_order)
{
    struct trial t = {.map = kv_map_make(kind, shape), .merged = rng(2) == 0};
    uint64_t bytes = kv_chunk_bytes(&t.map, N_PAGES);
    uint64_t n_cells = bytes / shape.content_bytes;
    unsigned char *seen = malloc(t.map.bytes);
    t.want_cache = malloc(t.map.bytes);
    t.want_chunk = malloc(bytes);
    t.extents = malloc(n_cells * sizeof(*t.extents));
    CHECK(seen != NULL && t.want_cache != NULL && t.want_chunk != NULL && t.extents != NULL);
    pages_draw(&t, in_order);
    fill(t.want_cache, t.map.bytes);
    CHECK(b->gpu.device.api.mem_alloc(&t.cache, t.map.bytes) == 0);
    gpu_write(b, t.cache, t.want_cache, t.map.bytes);
    kv_cells(&t.map, t.pages, N_PAGES, cell_extent, &t);
    kv_cells(&t.map, t.pages, N_PAGES, cell_gather, &t);

    /* Anywhere in the arena: across slices, and at odd addresses too. */
    uint64_t at = rng((uint32_t)(ARENA_BYTES - bytes - 128)) & ~(uint64_t)(rng(4) == 0 ? 0 : 63);
    const kvtier_layout layout = {.extents = t.extents, .n_extents = t.n_extents};
    unsigned char *slot = (unsigned char *)b->gpu.arena.maps[0].addr + at;
    memset(slot, 0x5a, bytes + 64);
    chunk_run(b, &b->store, &layout, ARENA_BASE + at, bytes);
    CHECK(memcmp(slot, t.want_chunk, bytes) == 0);
    for (unsigned i = 0; i < 64; i++)
        CHECK(slot[bytes + i] == 0x5a);

    fill(t.want_chunk, bytes);
    memcpy(slot, t.want_chunk, bytes);
    chunk_run(b, &b->load, &layout, ARENA_BASE + at, bytes);
    kv_cells(&t.map, t.pages, N_PAGES, cell_scatter, &t);
    gpu_read(b, seen, t.cache, t.map.bytes);
    CHECK(memcmp(seen, t.want_cache, t.map.bytes) == 0);

    CHECK(b->gpu.device.api.mem_free(t.cache) == 0);
    free(seen);
    free(t.want_cache);
    free(t.want_chunk);
    free(t.extents);
    n_passed++;
}

static void layouts_run(struct bench *b, const char *way)
{
    static const struct kv_shape shapes[] = {
        {.n_layers = 3, .n_planes = 2, .n_heads = 2, .n_tokens = 16, .content_bytes = 128},
        {.n_layers = 2, .n_planes = 2, .n_heads = 8, .n_tokens = 16, .content_bytes = 256},
        {.n_layers = 4, .n_planes = 2, .n_heads = 1, .n_tokens = 8, .content_bytes = 72},
        {.n_layers = 2, .n_planes = 2, .n_heads = 3, .n_tokens = 5, .content_bytes = 7},
        {.n_layers = 6, .n_planes = 2, .n_heads = 8, .n_tokens = 16, .content_bytes = 512},
    };
    for (unsigned l = 0; l < KV_LAYOUTS; l++) {
        for (unsigned i = 0; i < KVT_ARRAY_LEN(shapes); i++) {
            struct kv_shape shape = shapes[i];
            shape.n_blocks = N_BLOCKS;
            shape.block_pad_bytes = rng(2) * 64;
            snprintf(now_testing, sizeof(now_testing), "%s, %s, shape %u", way, kv_layouts[l].name,
                     i);
            trial_run(b, &kv_layouts[l], shape, rng(2) == 0);
        }
    }
}

/* A layout of strides, without extents: K and V planes of consecutive pages. */
static void strides_run(struct bench *b, const char *way)
{
    const uint64_t row = 4096, n_rows = 24, n_planes = 2, pitch = 3 * row;
    uint64_t cache_bytes = n_planes * n_rows * pitch, bytes = n_planes * n_rows * row;
    unsigned char *cache = malloc(cache_bytes), *seen = malloc(cache_bytes);
    kvt_cu_ptr ptr;
    snprintf(now_testing, sizeof(now_testing), "%s, strides", way);
    fill(cache, cache_bytes);
    CHECK(b->gpu.device.api.mem_alloc(&ptr, cache_bytes) == 0);
    gpu_write(b, ptr, cache, cache_bytes);
    const kvtier_layout layout = {.base = (void *)(uintptr_t)ptr, /* NOLINT: of the GPU */
                                  .n_outer = (uint32_t)n_planes,
                                  .n_inner = (uint32_t)n_rows,
                                  .outer_stride = (int64_t)(n_rows * pitch),
                                  .inner_stride = (int64_t)pitch,
                                  .bytes = row};
    uint64_t at = 16 * KVT_MIB - bytes / 2; /* across two slices */
    unsigned char *slot = (unsigned char *)b->gpu.arena.maps[0].addr + at;
    chunk_run(b, &b->store, &layout, ARENA_BASE + at, bytes);
    for (uint64_t i = 0; i < n_planes * n_rows; i++)
        CHECK(memcmp(slot + i * row, cache + i * pitch, row) == 0);
    fill(slot, bytes);
    chunk_run(b, &b->load, &layout, ARENA_BASE + at, bytes);
    for (uint64_t i = 0; i < n_planes * n_rows; i++)
        memcpy(cache + i * pitch, slot + i * row, row);
    gpu_read(b, seen, ptr, cache_bytes);
    CHECK(memcmp(seen, cache, cache_bytes) == 0);
    CHECK(b->gpu.device.api.mem_free(ptr) == 0);
    free(cache);
    free(seen);
    n_passed++;
}

/* A chunk larger than the staging memory, in pieces more than are planned at once. */
static void large_run(struct bench *b, const char *way)
{
    const struct kv_shape shape = {.n_layers = 40,
                                   .n_planes = 2,
                                   .n_blocks = N_BLOCKS,
                                   .n_heads = 1,
                                   .n_tokens = 16,
                                   .content_bytes = 512};
    snprintf(now_testing, sizeof(now_testing), "%s, large", way);
    trial_run(b, &kv_layouts[0], shape, false);
    struct kv_shape rows = shape;
    rows.content_bytes = 256;
    rows.n_heads = 9; /* LHBNC: a piece per layer, page and head */
    snprintf(now_testing, sizeof(now_testing), "%s, many pieces", way);
    trial_run(b, &kv_layouts[2], rows, false);
}

static void stop_run(struct bench *b, const char *way)
{
    static _Atomic int halt = KVT_ERR_CANCELED, go_on = 0;
    unsigned char before[256];
    kvt_cu_ptr ptr;
    snprintf(now_testing, sizeof(now_testing), "%s, stop", way);
    CHECK(b->gpu.device.api.mem_alloc(&ptr, sizeof(before)) == 0);
    const kvtier_extent extent = {(void *)(uintptr_t)ptr, sizeof(before)}; /* NOLINT: of the GPU */
    const kvtier_layout layout = {.extents = &extent, .n_extents = 1};
    const struct kvt_copy_stop stops[] = {{&halt, UINT64_MAX, 0}, {&go_on, 1, 0}};
    memcpy(before, b->gpu.arena.maps[0].addr, sizeof(before));
    for (unsigned i = 0; i < KVT_ARRAY_LEN(stops); i++) {
        kvt_lane_begin(&b->store, NULL);
        CHECK(kvt_lane_copy(&b->store, &layout, ARENA_BASE, sizeof(before), &stops[i]) ==
              KVT_ERR_CANCELED);
        must(kvt_lane_end(&b->store), &b->store.error);
    }
    CHECK(memcmp(before, b->gpu.arena.maps[0].addr, sizeof(before)) == 0);
    CHECK(b->gpu.device.api.mem_free(ptr) == 0);
    n_passed++;
}

static void way_run(const char *library, const char *way, uint32_t kernel_below_bytes,
                    bool is_pinned, bool want_kernel)
{
    struct bench b;
    bench_init(&b, library, kernel_below_bytes, is_pinned);
    layouts_run(&b, way);
    strides_run(&b, way);
    large_run(&b, way);
    stop_run(&b, way);
    uint64_t n_engine = b.gpu.device.n_engine_bytes, n_kernel = b.gpu.device.n_kernel_bytes;
    uint64_t n_staged = b.gpu.device.n_staged_bytes;
    printf("%-24s %8.1f MiB by copy engine, %8.1f by kernel, %8.1f staged\n", way,
           (double)n_engine / (double)KVT_MIB, (double)n_kernel / (double)KVT_MIB,
           (double)n_staged / (double)KVT_MIB);
    bool has_kernels = b.gpu.device.gather != NULL;
    CHECK(is_pinned ? n_staged == 0 : n_staged == n_engine + n_kernel);
    CHECK(!want_kernel || !has_kernels || n_kernel > n_engine);
    CHECK(want_kernel || n_kernel == 0);
    bench_fini(&b);
}

int main(int argc, char **argv)
{
    const char *library = NULL, *seed = getenv("KVTIER_TEST_SEED");
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--library") == 0)
            library = argv[i + 1];
    }
    seed_given = seed != NULL ? strtoull(seed, NULL, 0) : (unsigned long long)time(NULL);
    rng_state = seed_given;
    printf("KVTIER_TEST_SEED=%llu\n", seed_given);
    way_run(library, "copy engine, registered", 1, true, false);
    way_run(library, "copy engine, staged", 1, false, false);
    way_run(library, "kernel, registered", UINT32_MAX, true, true);
    way_run(library, "kernel, staged", UINT32_MAX, false, true);
    printf("100%%: Checks: %u, Failures: 0, Errors: 0\n", n_passed);
    return 0;
}
