/* SPDX-License-Identifier: Apache-2.0 */
/* A GPU as the library uses it: the engine's own (primary) context, our kernels, a few limits. */
#ifndef KVT_CONNECTOR_CUDA_DEVICE_H
#define KVT_CONNECTOR_CUDA_DEVICE_H

#include <stdatomic.h>

#include "cuda_api.h"
#include "kvtier.h"

struct kvt_cuda_device {
    struct kvt_cuda_api api;
    int device, ordinal;
    int priority;         /* of our streams: what we queue is short and delays little */
    uint64_t pitch_max;   /* of two-dimensional copies */
    uint64_t short_bytes; /* copies whose pieces average less go by kernel; 0: none do */
    struct CUctx_st *context;
    struct CUmod_st *module;
    struct CUfunc_st *gather, *scatter; /* NULL: no kernels */
    atomic_bool batch_refused;          /* the driver has the call, and does not take ours */
    _Atomic uint64_t n_engine_bytes, n_kernel_bytes, n_staged_bytes;
};

/** @return KVT_OK, KVT_ERR_NOTSUP (no driver, no such device), NOMEM, IO. */
enum kvt_status kvt_cuda_device_open(struct kvt_cuda_device *device, const kvtier_cuda *options,
                                     struct kvt_error *err) KVT_MUST_CHECK;
void kvt_cuda_device_close(struct kvt_cuda_device *device);

/** Make a thread of the library ready for calls, for good. */
enum kvt_status kvt_cuda_thread_init(struct kvt_cuda_device *device,
                                     struct kvt_error *err) KVT_MUST_CHECK;

/** The allocation of this GPU that addr is in; false: it is in none. Needs the context. */
bool kvt_cuda_range(struct kvt_cuda_device *device, const void *addr, uint64_t *start_p,
                    uint64_t *bytes_p);

#endif
