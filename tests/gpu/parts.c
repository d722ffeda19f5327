/* SPDX-License-Identifier: Apache-2.0 */
#include "parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

/* One map of zeros at `base`; false: no memory. */
static bool arena_init(struct kvt_arena *arena, uint64_t base, uint64_t bytes)
{
    struct kvt_map *map = &arena->maps[0];
    int fd = memfd_create("arena", MFD_CLOEXEC);
    if (fd < 0)
        return false;
    if (ftruncate(fd, (off_t)bytes) == 0)
        map->addr = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    else
        map->addr = MAP_FAILED;
    close(fd);
    if (map->addr == MAP_FAILED)
        return false;
    memset(map->addr, 0, bytes);
    map->base = base;
    map->bytes = bytes;
    arena->n_maps = 1;
    return true;
}

static void arena_fini(struct kvt_arena *arena)
{
    munmap(arena->maps[0].addr, arena->maps[0].bytes);
}

/* Wait until all of it is registered; only tests wait for it. */
static void pin_all(struct kvt_pin *pin, const struct kvt_arena *arena)
{
    const struct timespec moment = {.tv_nsec = 1000000};
    while (!kvt_pin_ready(pin, arena->maps[0].base, arena->maps[0].bytes))
        nanosleep(&moment, NULL);
}

static void must(enum kvt_status status, const struct kvt_error *err)
{
    if (status == KVT_OK)
        return;
    fprintf(stderr, "gpu: %s\n", err->msg);
    exit(1);
}

void parts_gpu_open(struct parts_gpu *gpu, const struct parts_gpu_options *options)
{
    const kvtier_cuda attach = {.size = sizeof(attach),
                                .library = options->library,
                                .kernel_below_bytes = options->kernel_below_bytes};
    struct kvt_error err = {.status = KVT_ERR_NOMEM, .msg = "no memory for an arena and a cache"};
    memset(gpu, 0, sizeof(*gpu));
    gpu->cache_bytes = options->cache_bytes;
    if (!arena_init(&gpu->arena, options->arena_base, options->arena_bytes))
        must(KVT_ERR_NOMEM, &err);
    must(kvt_cuda_device_open(&gpu->device, &attach, &err), &err);
    must(kvt_cuda_thread_init(&gpu->device, &err), &err);
    must(kvt_pin_init(&gpu->pin, &gpu->device, &err), &err);
    kvt_pin_start(&gpu->pin, &gpu->arena, options->slab_bytes);
    if (gpu->cache_bytes != 0) {
        unsigned result = gpu->device.api.mem_alloc(&gpu->cache, gpu->cache_bytes);
        if (result != KVT_CU_OK)
            must(kvt_cuda_error(&gpu->device.api, result, "cannot make a cache", &err), &err);
    }
    if (options->slab_bytes != 0)
        pin_all(&gpu->pin, &gpu->arena);
}

void parts_gpu_close(struct parts_gpu *gpu)
{
    struct CUctx_st *context;
    kvt_pin_stop(&gpu->pin);
    kvt_pin_fini(&gpu->pin);
    if (gpu->cache != 0)
        (void)gpu->device.api.mem_free(gpu->cache);
    (void)gpu->device.api.context_pop(&context);
    kvt_cuda_device_close(&gpu->device);
    arena_fini(&gpu->arena);
}
