/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda_device.h"

#include <string.h>

#include "kvt/gather.h"
#include "kvt/util.h"

/* Shorter pieces keep a copy engine from reaching the link's speed. tests/gpu/run measures where
 * the two meet: between 16 and 32 KiB on an H200 (docs/measurements.md). */
#define SHORT_BYTES_DEFAULT (32 * KVT_KIB)

/* Without kernels everything goes by copy engine, which is slower where pieces are short. */
static void kernels_load(struct kvt_cuda_device *d)
{
    const void *image = kvt_gather_image();
    if (image == NULL || d->short_bytes == 0)
        return;
    if (d->api.module_load(&d->module, image) != KVT_CU_OK) {
        d->module = NULL;
        return;
    }
    if (d->api.module_function(&d->gather, d->module, KVT_GATHER_KERNEL) != KVT_CU_OK ||
        d->api.module_function(&d->scatter, d->module, KVT_SCATTER_KERNEL) != KVT_CU_OK)
        d->gather = d->scatter = NULL;
}

static void limits_get(struct kvt_cuda_device *d)
{
    int pitch_max = 0, least = 0, greatest = 0;
    if (d->api.device_attribute(&pitch_max, KVT_CU_DEVICE_MAX_PITCH, d->device) == KVT_CU_OK &&
        pitch_max > 0)
        d->pitch_max = (uint64_t)pitch_max;
    if (d->api.priority_range(&least, &greatest) == KVT_CU_OK)
        d->priority = greatest;
}

enum kvt_status kvt_cuda_device_open(struct kvt_cuda_device *d, const kvtier_cuda *options,
                                     struct kvt_error *err)
{
    struct CUctx_st *context;
    memset(d, 0, sizeof(*d));
    d->ordinal = options->device;
    d->short_bytes =
        options->kernel_below_bytes != 0 ? options->kernel_below_bytes : SHORT_BYTES_DEFAULT;
    if (options->kernel_below_bytes == 1)
        d->short_bytes = 0;
    enum kvt_status status = kvt_cuda_api_load(&d->api, options->library, err);
    if (status != KVT_OK)
        return status;
    const struct kvt_cuda_api *api = &d->api;
    unsigned result = api->init(0);
    if (result == KVT_CU_OK)
        result = api->device_get(&d->device, d->ordinal);
    /* The context that the engine works in. It is there already, so this takes no memory. */
    if (result == KVT_CU_OK)
        result = api->context_retain(&d->context, d->device);
    if (result != KVT_CU_OK)
        return kvt_cuda_error(api, result, "cannot use the device", err);
    result = api->context_push(d->context);
    if (result != KVT_CU_OK) {
        (void)api->context_release(d->device);
        return kvt_cuda_error(api, result, "cannot enter the context", err);
    }
    limits_get(d);
    kernels_load(d);
    (void)api->context_pop(&context);
    return KVT_OK;
}

void kvt_cuda_device_close(struct kvt_cuda_device *d)
{
    struct CUctx_st *context;
    if (d->module != NULL && d->api.context_push(d->context) == KVT_CU_OK) {
        (void)d->api.module_unload(d->module);
        (void)d->api.context_pop(&context);
    }
    (void)d->api.context_release(d->device);
}

enum kvt_status kvt_cuda_thread_init(struct kvt_cuda_device *d, struct kvt_error *err)
{
    /* While the engine captures a graph, calls of other threads would break its capture but for
     * those of threads that say they have nothing to do with it. */
    unsigned mode = KVT_CU_CAPTURE_MODE_RELAXED;
    unsigned result = d->api.context_push(d->context);
    if (result == KVT_CU_OK)
        result = d->api.capture_mode(&mode);
    return result == KVT_CU_OK ? KVT_OK
                               : kvt_cuda_error(&d->api, result, "cannot enter the context", err);
}

bool kvt_cuda_range(struct kvt_cuda_device *d, const void *addr, uint64_t *start_p,
                    uint64_t *bytes_p)
{
    kvt_cu_ptr at = (uintptr_t)addr, start = 0;
    size_t bytes = 0;
    unsigned type = 0;
    int ordinal = -1;
    if (d->api.pointer_attribute(&type, KVT_CU_POINTER_MEMORY_TYPE, at) != KVT_CU_OK ||
        type != KVT_CU_MEMORY_DEVICE ||
        d->api.pointer_attribute(&ordinal, KVT_CU_POINTER_DEVICE, at) != KVT_CU_OK ||
        ordinal != d->ordinal ||
        d->api.pointer_attribute(&start, KVT_CU_POINTER_RANGE_START, at) != KVT_CU_OK ||
        d->api.pointer_attribute(&bytes, KVT_CU_POINTER_RANGE_BYTES, at) != KVT_CU_OK)
        return false;
    *start_p = start;
    *bytes_p = bytes;
    return true;
}
