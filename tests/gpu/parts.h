/* SPDX-License-Identifier: Apache-2.0 */
/* What the programs of this folder share: an arena without an agent, and a GPU with a cache. */
#ifndef KVT_TEST_GPU_PARTS_H
#define KVT_TEST_GPU_PARTS_H

#include <stdbool.h>

#include "cuda_pin.h"

struct parts_gpu_options {
    const char *library; /* NULL: the real driver */
    uint32_t kernel_below_bytes;
    uint64_t arena_base, arena_bytes;
    uint64_t cache_bytes; /* 0: none */
    uint64_t slab_bytes;  /* 0: the arena stays unregistered */
};

struct parts_gpu {
    struct kvt_cuda_device device;
    struct kvt_pin pin;
    struct kvt_arena arena;
    kvt_cu_ptr cache; /* the engine's, as it were */
    uint64_t cache_bytes;
};

/** The calling thread is in the context until close. Ends the program where something fails. */
void parts_gpu_open(struct parts_gpu *gpu, const struct parts_gpu_options *options);
void parts_gpu_close(struct parts_gpu *gpu);

#endif
