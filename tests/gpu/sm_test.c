/* SPDX-License-Identifier: Apache-2.0 */
/*
 * That the copy engines' way takes no time of the GPU's multiprocessors: chunks are stored and
 * loaded while every place for a thread is taken by blocks that stay until they are told to leave.
 * The kernels' way, which does need a place, has to wait for them: so the trial can tell.
 *
 * Usage: sm_test OCCUPY_FATBIN     (needs a GPU)
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cuda_lane.h"
#include "kvt/units.h"
#include "kvt/util.h"
#include "parts.h"

#define ARENA_BYTES (256 * KVT_MIB)
#define ARENA_BASE  KVT_GIB
#define SLAB_BYTES  (64 * KVT_MIB)
#define CACHE_BYTES (256 * KVT_MIB)
#define CHUNKS      4u
#define PIECES      512u
#define PIECE_BYTES 65536u
#define BLOCK       1024u /* threads of one, in occupy.cu */
#define N_COUNTERS  3u

enum { SM_COUNT = 16, SM_THREADS = 39 }; /* CU_DEVICE_ATTRIBUTE_... */

#define CHECK(e) ((e) ? (void)0 : (fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #e), exit(1)))

static void *file_read(const char *path)
{
    FILE *file = fopen(path, "rb");
    CHECK(file != NULL && fseek(file, 0, SEEK_END) == 0);
    long bytes = ftell(file);
    void *data = malloc((size_t)bytes);
    CHECK(data != NULL && fseek(file, 0, SEEK_SET) == 0);
    CHECK(fread(data, 1, (size_t)bytes, file) == (size_t)bytes);
    (void)fclose(file);
    return data;
}

struct occupier {
    struct CUmod_st *module;
    struct CUfunc_st *function;
    struct CUstream_st *stream;
    volatile unsigned *counters;
    unsigned n_blocks;
};

static void occupier_init(struct occupier *o, const struct parts_gpu *gpu, const char *path)
{
    const struct kvt_cuda_api *api = &gpu->device.api;
    int n_sms = 0, n_threads = 0;
    void *image = file_read(path);
    CHECK(api->module_load(&o->module, image) == KVT_CU_OK);
    free(image);
    CHECK(api->module_function(&o->function, o->module, "kvt_occupy") == KVT_CU_OK);
    CHECK(api->stream_create(&o->stream, KVT_CU_STREAM_NON_BLOCKING, 0) == KVT_CU_OK);
    CHECK(api->host_alloc((void **)&o->counters, N_COUNTERS * sizeof(unsigned), 0) == KVT_CU_OK);
    CHECK(api->device_attribute(&n_sms, SM_COUNT, gpu->device.device) == KVT_CU_OK);
    CHECK(api->device_attribute(&n_threads, SM_THREADS, gpu->device.device) == KVT_CU_OK);
    o->n_blocks = (unsigned)n_sms * ((unsigned)n_threads / BLOCK);
}

static void occupier_start(struct occupier *o, const struct kvt_cuda_api *api, uint64_t limit_ns)
{
    const struct timespec moment = {.tv_nsec = 1000000};
    kvt_cu_ptr counters = (uintptr_t)o->counters;
    void *parameters[] = {&counters, &limit_ns};
    for (unsigned i = 0; i < N_COUNTERS; i++)
        o->counters[i] = 0;
    CHECK(api->launch(o->function, o->n_blocks, 1, 1, BLOCK, 1, 1, 0, o->stream, parameters,
                      NULL) == KVT_CU_OK);
    for (unsigned i = 0; i < 2000 && o->counters[1] < o->n_blocks; i++)
        nanosleep(&moment, NULL);
    CHECK(o->counters[1] == o->n_blocks);
}

static void occupier_stop(struct occupier *o, const struct kvt_cuda_api *api)
{
    o->counters[0] = 1;
    CHECK(api->stream_sync(o->stream) == KVT_CU_OK && o->counters[2] == o->n_blocks);
}

/* @return seconds it took. */
static double chunks_move(const struct parts_gpu *gpu, struct kvt_lane *lane, uint32_t piece_bytes)
{
    static _Atomic int go_on;
    static kvtier_extent extents[PIECES];
    const struct kvt_copy_stop stop = {&go_on, UINT64_MAX, 0};
    const kvtier_layout layout = {.extents = extents, .n_extents = PIECES};
    uint64_t begin = kvt_now_ns(), bytes = (uint64_t)PIECES * piece_bytes;
    for (uint32_t i = 0; i < PIECES; i++) { /* two apart, so that they are not one run */
        extents[i].addr = (char *)(uintptr_t)gpu->cache + 2ull * i * piece_bytes; /* NOLINT */
        extents[i].bytes = piece_bytes;
    }
    kvt_lane_begin(lane, NULL);
    for (uint32_t i = 0; i < CHUNKS; i++)
        CHECK(kvt_lane_copy(lane, &layout, ARENA_BASE + i * bytes, bytes, &stop) == KVT_OK);
    CHECK(kvt_lane_end(lane) == KVT_OK);
    return (double)(kvt_now_ns() - begin) * 1e-9;
}

static void try_way(const char *path, bool by_kernel)
{
    struct parts_gpu gpu;
    struct occupier occupier = {0};
    struct kvt_error err;
    struct kvt_lane lanes[2];
    uint32_t piece_bytes = by_kernel ? PIECE_BYTES / 16 : PIECE_BYTES;
    parts_gpu_open(&gpu, &(struct parts_gpu_options){.arena_base = ARENA_BASE,
                                                     .arena_bytes = ARENA_BYTES,
                                                     .cache_bytes = CACHE_BYTES,
                                                     .slab_bytes = SLAB_BYTES});
    const struct kvt_cuda_api *api = &gpu.device.api;
    occupier_init(&occupier, &gpu, path);
    for (unsigned load = 0; load < 2; load++) {
        CHECK(kvt_lane_init(&lanes[load], &gpu.device, &gpu.pin, &gpu.arena, load == 1, &err) ==
              KVT_OK);
        double free_s = chunks_move(&gpu, &lanes[load], piece_bytes); /* kernels loaded, too */
        uint64_t kernel_bytes = gpu.device.n_kernel_bytes;
        occupier_start(&occupier, api, by_kernel ? 300 * KVT_NS_PER_MS : 5000 * KVT_NS_PER_MS);
        double taken_s = chunks_move(&gpu, &lanes[load], piece_bytes);
        bool was_free = occupier.counters[2] > 0; /* some block had left */
        occupier_stop(&occupier, api);
        printf("%-12s %-5s %6.2f ms; all %u places of blocks taken: %7.2f ms, %s\n",
               by_kernel ? "kernel" : "copy engine", load == 1 ? "load" : "store", free_s * 1e3,
               occupier.n_blocks, taken_s * 1e3, was_free ? "after they left" : "beside them");
        CHECK((gpu.device.n_kernel_bytes > kernel_bytes) == by_kernel);
        CHECK(was_free == by_kernel);
        kvt_lane_fini(&lanes[load]);
    }
    (void)api->host_free((void *)occupier.counters);
    (void)api->stream_destroy(occupier.stream);
    (void)api->module_unload(occupier.module);
    parts_gpu_close(&gpu);
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    try_way(argv[1], true);
    try_way(argv[1], false);
    return 0;
}
