/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the connector's copies reach beside raw copies of registered memory, in one run: loads,
 * stores and both at once, for the KV of real models in blocks of 16 tokens that lie anywhere, in
 * chunks of 256 tokens; and from which piece size on the copy engines beat the kernels.
 *
 * Usage: bandwidth [--library DRIVER] [--seconds S per figure] [--small 1]   (prints JSON)
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda_lane.h"
#include "kvt/util.h"
#include "parts.h"

#define ARENA_BASE  KVT_GIB
#define SLAB_BYTES  (64 * KVT_MIB)
#define LANES       4u /* for each direction, as sessions have by default */
#define PAGES       16u
#define RAW_BYTES   (32 * KVT_MIB)
#define IN_FLIGHT   2u /* chunks per lane between two waits */
#define KERNEL_ONLY UINT32_MAX
#define ENGINE_ONLY 1u
#define BY_DEFAULT  0u

struct geometry {
    const char *name;
    uint32_t n_layers, page_bytes; /* of one layer and block */
    uint32_t n_blocks;
    bool block_major; /* all layers of a block together */
};

static const char *library;
static double seconds = 0.4;
static bool is_small; /* a try of the program itself, with the fake driver */

static void must(bool ok, const char *what)
{
    if (ok)
        return;
    fprintf(stderr, "bandwidth: %s\n", what);
    exit(1);
}

static void must_status(enum kvt_status status, const struct kvt_error *err)
{
    must(status == KVT_OK, err->msg);
}

static void gpu_open(struct parts_gpu *gpu, uint32_t kernel_below_bytes, bool is_pinned)
{
    parts_gpu_open(gpu, &(struct parts_gpu_options){
                            .library = library,
                            .kernel_below_bytes = kernel_below_bytes,
                            .arena_base = ARENA_BASE,
                            .arena_bytes = is_small ? 64 * KVT_MIB : KVT_GIB,
                            .cache_bytes = is_small ? 64 * KVT_MIB : KVT_GIB,
                            .slab_bytes = is_pinned ? SLAB_BYTES : 0,
                        });
}

/* --- threads that copy until a time is over -------------------------------------------------- */

struct mover {
    struct parts_gpu *gpu;
    const struct geometry *geometry; /* NULL: raw */
    pthread_t thread;
    bool is_load;
    uint32_t index; /* among those of its direction */
    /* Passed when all lanes are there and before the first goes: making them is not measured. */
    pthread_barrier_t *barrier;
    uint64_t bytes;
};

static uint64_t end_from_now(const struct mover *m)
{
    (void)pthread_barrier_wait(m->barrier);
    return kvt_now_ns() + (uint64_t)(seconds * 1e9);
}

static uint64_t chunk_bytes(const struct geometry *g)
{
    return (uint64_t)g->n_layers * PAGES * g->page_bytes;
}

/* Blocks that lie anywhere, but each once per chunk, as a pool in use hands them out. */
static void extents_draw(const struct mover *m, uint64_t *seed, kvtier_extent *extents)
{
    const struct geometry *g = m->geometry;
    uint32_t pages[PAGES];
    for (uint32_t p = 0; p < PAGES; p++) {
        *seed = *seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        uint32_t share = g->n_blocks / PAGES;
        pages[p] = p * share + (uint32_t)(*seed >> 33) % share;
    }
    for (uint32_t i = 0; i < g->n_layers * PAGES; i++) {
        uint32_t layer = g->block_major ? i % g->n_layers : i / PAGES;
        uint32_t page = pages[g->block_major ? i / g->n_layers : i % PAGES];
        uint64_t place = g->block_major ? (uint64_t)page * g->n_layers + layer
                                        : (uint64_t)layer * g->n_blocks + page;
        extents[i].addr = (char *)(uintptr_t)m->gpu->cache + place * g->page_bytes; /* NOLINT */
        extents[i].bytes = g->page_bytes;
    }
}

static uint64_t slot_of(const struct mover *m, uint64_t bytes, uint32_t i)
{
    uint32_t n = (m->is_load ? LANES : 0) + m->index;
    uint64_t slots = m->gpu->arena.maps[0].bytes / bytes;
    return ARENA_BASE + ((uint64_t)n * IN_FLIGHT + i) % slots * bytes;
}

static void *lane_main(void *arg)
{
    static _Atomic int go_on;
    const struct kvt_copy_stop stop = {&go_on, UINT64_MAX, 0};
    struct mover *m = arg;
    struct kvt_lane lane;
    struct kvt_error err;
    uint64_t seed = m->index + 1, bytes = chunk_bytes(m->geometry);
    kvtier_extent *extents = calloc((size_t)m->geometry->n_layers * PAGES, sizeof(*extents));
    must(extents != NULL, "no memory");
    must_status(kvt_cuda_thread_init(&m->gpu->device, &err), &err);
    must_status(
        kvt_lane_init(&lane, &m->gpu->device, &m->gpu->pin, &m->gpu->arena, m->is_load, &err),
        &err);
    uint64_t end_ns = end_from_now(m);
    do {
        kvt_lane_begin(&lane, NULL);
        for (uint32_t i = 0; i < IN_FLIGHT; i++) {
            extents_draw(m, &seed, extents);
            const kvtier_layout layout = {.extents = extents,
                                          .n_extents = m->geometry->n_layers * PAGES};
            must(kvt_lane_copy(&lane, &layout, slot_of(m, bytes, i), bytes, &stop) == KVT_OK,
                 lane.error.msg);
        }
        must(kvt_lane_end(&lane) == KVT_OK, lane.error.msg);
        m->bytes += IN_FLIGHT * bytes;
    } while (kvt_now_ns() < end_ns);
    (void)pthread_barrier_wait(m->barrier);
    kvt_lane_fini(&lane);
    free(extents);
    return NULL;
}

static void *raw_main(void *arg)
{
    struct mover *m = arg;
    const struct kvt_cuda_api *api = &m->gpu->device.api;
    uint64_t bytes = is_small ? KVT_MIB : RAW_BYTES;
    kvt_cu_ptr page = m->gpu->cache + (m->is_load ? m->gpu->cache_bytes / 2 : 0);
    struct CUstream_st *stream;
    struct kvt_error err;
    must_status(kvt_cuda_thread_init(&m->gpu->device, &err), &err);
    must(api->stream_create(&stream, KVT_CU_STREAM_NON_BLOCKING, 0) == KVT_CU_OK, "no stream");
    uint64_t end_ns = end_from_now(m);
    do {
        for (uint32_t i = 0; i < 8; i++) {
            uint64_t at = (m->is_load ? 8 + i : i) * bytes % m->gpu->arena.maps[0].bytes;
            uint64_t n = KVT_MIN(bytes, kvt_pin_reach(&m->gpu->pin, ARENA_BASE + at));
            char *host = m->gpu->arena.maps[0].addr + at;
            unsigned result = m->is_load ? api->copy_in(page + i * bytes, host, n, stream)
                                         : api->copy_out(host, page + i * bytes, n, stream);
            must(result == KVT_CU_OK, "a raw copy failed");
            m->bytes += n;
        }
        must(api->stream_sync(stream) == KVT_CU_OK, "a raw copy failed");
    } while (kvt_now_ns() < end_ns);
    (void)pthread_barrier_wait(m->barrier);
    (void)api->stream_destroy(stream);
    return NULL;
}

struct figures {
    double load, store; /* GB/s */
};

static struct figures movers_run(struct parts_gpu *g, const struct geometry *geometry,
                                 uint32_t n_load, uint32_t n_store)
{
    struct mover movers[2 * LANES];
    struct figures made = {0, 0};
    pthread_barrier_t barrier;
    must(pthread_barrier_init(&barrier, NULL, n_load + n_store + 1) == 0, "no barrier");
    for (uint32_t i = 0; i < n_load + n_store; i++) {
        movers[i] = (struct mover){.gpu = g,
                                   .geometry = geometry,
                                   .is_load = i < n_load,
                                   .index = i < n_load ? i : i - n_load,
                                   .barrier = &barrier};
        must(pthread_create(&movers[i].thread, NULL, geometry != NULL ? lane_main : raw_main,
                            &movers[i]) == 0,
             "no thread");
    }
    (void)pthread_barrier_wait(&barrier);
    uint64_t begin = kvt_now_ns();
    (void)pthread_barrier_wait(&barrier);
    double took = (double)(kvt_now_ns() - begin);
    for (uint32_t i = 0; i < n_load + n_store; i++)
        pthread_join(movers[i].thread, NULL);
    (void)pthread_barrier_destroy(&barrier);
    for (uint32_t i = 0; i < n_load + n_store; i++)
        *(movers[i].is_load ? &made.load : &made.store) += (double)movers[i].bytes / took;
    return made;
}

/* --- what is printed ------------------------------------------------------------------------- */

struct row {
    double load, store, both_load, both_store;
};

static struct row row_measure(struct parts_gpu *g, const struct geometry *geometry, uint32_t n)
{
    (void)movers_run(g, geometry, n, n); /* streams and clocks warm */
    struct figures both = movers_run(g, geometry, n, n);
    return (struct row){movers_run(g, geometry, n, 0).load, movers_run(g, geometry, 0, n).store,
                        both.load, both.store};
}

static void row_print(const struct row *r)
{
    printf("\"load\": %.2f, \"store\": %.2f, \"both_load\": %.2f, \"both_store\": %.2f", r->load,
           r->store, r->both_load, r->both_store);
}

static const struct {
    const char *name;
    uint32_t kernel_below_bytes;
    bool is_pinned;
} ways[] = {{"engine", ENGINE_ONLY, true},
            {"kernel", KERNEL_ONLY, true},
            {"default", BY_DEFAULT, true},
            {"default, arena not registered", BY_DEFAULT, false}};

static void geometries_measure(void)
{
    struct geometry geometries[] = {
        {"Llama-8B", 32, 65536, 256, false},
        {"Llama-8B, block-major", 32, 65536, 256, true},
        {"Llama-70B/TP8", 80, 8192, 1024, false},
        {"Llama-70B/TP8, block-major", 80, 8192, 1024, true},
    };
    const char *comma = "";
    for (unsigned w = 0; w < KVT_ARRAY_LEN(ways); w++) {
        struct parts_gpu gpu;
        gpu_open(&gpu, ways[w].kernel_below_bytes, ways[w].is_pinned);
        for (unsigned i = 0; i < KVT_ARRAY_LEN(geometries); i++) {
            struct geometry *g = &geometries[i];
            if (is_small)
                g->n_layers = 2;
            g->n_blocks = KVT_MIN(
                g->n_blocks, (uint32_t)(gpu.cache_bytes / ((uint64_t)g->n_layers * g->page_bytes)));
            uint64_t kernel = gpu.device.n_kernel_bytes, engine = gpu.device.n_engine_bytes;
            struct row row = row_measure(&gpu, g, LANES);
            kernel = gpu.device.n_kernel_bytes - kernel;
            engine = gpu.device.n_engine_bytes - engine;
            printf("%s\n  {\"geometry\": \"%s\", \"way\": \"%s\", \"lanes\": %u, "
                   "\"chunk_bytes\": %llu, \"kernel_share\": %.3f, ",
                   comma, g->name, ways[w].name, LANES, (unsigned long long)chunk_bytes(g),
                   (double)kernel / (double)(kernel + engine));
            row_print(&row);
            printf("}");
            comma = ",";
        }
        parts_gpu_close(&gpu);
    }
}

/* Chunks of one size in pieces of growing size: where the two ways meet is the threshold. */
static void pieces_measure(bool by_kernel)
{
    struct parts_gpu gpu;
    const char *comma = "";
    gpu_open(&gpu, by_kernel ? KERNEL_ONLY : ENGINE_ONLY, true);
    for (uint32_t bytes = 2048; bytes <= (is_small ? 4096u : 262144u); bytes *= 2) {
        const struct geometry g = {
            .n_layers = (is_small ? 65536 : 4194304) / bytes, .page_bytes = bytes, .n_blocks = 64};
        struct figures load = movers_run(&gpu, &g, LANES, 0);
        struct figures store = movers_run(&gpu, &g, 0, LANES);
        printf("%s\n  {\"piece_bytes\": %u, \"load\": %.2f, \"store\": %.2f}", comma, bytes,
               load.load, store.store);
        comma = ",";
    }
    parts_gpu_close(&gpu);
}

int main(int argc, char **argv)
{
    struct parts_gpu gpu;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--library") == 0)
            library = argv[i + 1];
        else if (strcmp(argv[i], "--seconds") == 0)
            seconds = strtod(argv[i + 1], NULL);
        else
            is_small = is_small || strcmp(argv[i], "--small") == 0;
    }
    gpu_open(&gpu, ENGINE_ONLY, true);
    struct row raw = row_measure(&gpu, NULL, 1);
    printf("{\"unit\": \"GB/s\", \"batch_call\": %s, \"kernels\": %s,\n \"raw\": {",
           gpu.device.api.batch_v2 != NULL || gpu.device.api.batch != NULL ? "true" : "false",
           kvt_gather_image() != NULL ? "true" : "false");
    parts_gpu_close(&gpu);
    row_print(&raw);
    printf("},\n \"copies\": [");
    geometries_measure();
    printf("],\n \"pieces_by_engine\": [");
    pieces_measure(false);
    printf("],\n \"pieces_by_kernel\": [");
    pieces_measure(true);
    printf("]}\n");
    return 0;
}
