/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The CUDA driver as this library uses it: found with dlopen() when a session is attached to a
 * GPU, so that one build serves machines with and without. The few types are our own, with the tags
 * and layouts of cuda.h, so that building needs no toolkit; tests/gpu/cuda_abi.c compares
 * them with cuda.h where there is one.
 */
#ifndef KVT_CONNECTOR_CUDA_API_H
#define KVT_CONNECTOR_CUDA_API_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kvt/status.h"

struct CUctx_st;
struct CUstream_st;
struct CUevent_st;
struct CUmod_st;
struct CUfunc_st;
struct CUarray_st;

typedef unsigned long long kvt_cu_ptr; /* CUdeviceptr */

enum {
    KVT_CU_OK = 0,
    KVT_CU_INVALID_VALUE = 1,
    KVT_CU_NOT_SUPPORTED = 801,
    KVT_CU_STREAM_NON_BLOCKING = 1,
    KVT_CU_EVENT_BLOCKING_SYNC = 1,
    KVT_CU_EVENT_DISABLE_TIMING = 2,
    KVT_CU_HOST_PORTABLE = 1, /* CU_MEMHOSTALLOC_ and CU_MEMHOSTREGISTER_PORTABLE */
    KVT_CU_CAPTURE_MODE_RELAXED = 2,
    KVT_CU_CAPTURE_NONE = 0,
    KVT_CU_MEMORY_HOST = 1,
    KVT_CU_MEMORY_DEVICE = 2,
    KVT_CU_POINTER_MEMORY_TYPE = 2,
    KVT_CU_POINTER_DEVICE = 9,
    KVT_CU_POINTER_RANGE_START = 11,
    KVT_CU_POINTER_RANGE_BYTES = 12,
    KVT_CU_DEVICE_MAX_PITCH = 11,
    KVT_CU_COPY_ORDER_STREAM = 1,
    KVT_CU_COPY_OVERLAP = 1, /* prefer copies that overlap with compute work */
};

struct kvt_cu_location {
    unsigned type;
    int id;
};

struct kvt_cu_copy_attributes { /* CUmemcpyAttributes */
    unsigned order;
    struct kvt_cu_location src_hint, dst_hint;
    unsigned flags;
};

struct kvt_cu_copy_2d { /* CUDA_MEMCPY2D */
    size_t src_x, src_y;
    unsigned src_type;
    const void *src_host;
    kvt_cu_ptr src_device;
    struct CUarray_st *src_array;
    size_t src_pitch;
    size_t dst_x, dst_y;
    unsigned dst_type;
    void *dst_host;
    kvt_cu_ptr dst_device;
    struct CUarray_st *dst_array;
    size_t dst_pitch;
    size_t width, height;
};

/* X(member, symbol, parameters); all return a CUresult, which is 0 for success. */
#define KVT_CUDA_REQUIRED(X)                                                                       \
    X(init, cuInit, (unsigned flags))                                                              \
    X(error_name, cuGetErrorName, (unsigned result, const char **name_p))                          \
    X(device_get, cuDeviceGet, (int *device_p, int ordinal))                                       \
    X(device_attribute, cuDeviceGetAttribute, (int *value_p, unsigned attribute, int device))      \
    X(context_retain, cuDevicePrimaryCtxRetain, (struct CUctx_st * *context_p, int device))        \
    X(context_release, cuDevicePrimaryCtxRelease_v2, (int device))                                 \
    X(context_push, cuCtxPushCurrent_v2, (struct CUctx_st * context))                              \
    X(context_pop, cuCtxPopCurrent_v2, (struct CUctx_st * *context_p))                             \
    X(priority_range, cuCtxGetStreamPriorityRange, (int *least_p, int *greatest_p))                \
    X(capture_mode, cuThreadExchangeStreamCaptureMode, (unsigned *mode_p))                         \
    X(stream_create, cuStreamCreateWithPriority,                                                   \
      (struct CUstream_st * *stream_p, unsigned flags, int priority))                              \
    X(stream_destroy, cuStreamDestroy_v2, (struct CUstream_st * stream))                           \
    X(stream_wait, cuStreamWaitEvent,                                                              \
      (struct CUstream_st * stream, struct CUevent_st * event, unsigned flags))                    \
    X(stream_sync, cuStreamSynchronize, (struct CUstream_st * stream))                             \
    X(stream_capturing, cuStreamIsCapturing, (struct CUstream_st * stream, unsigned *status_p))    \
    X(event_create, cuEventCreate, (struct CUevent_st * *event_p, unsigned flags))                 \
    X(event_destroy, cuEventDestroy_v2, (struct CUevent_st * event))                               \
    X(event_record, cuEventRecord, (struct CUevent_st * event, struct CUstream_st * stream))       \
    X(event_sync, cuEventSynchronize, (struct CUevent_st * event))                                 \
    X(mem_alloc, cuMemAlloc_v2, (kvt_cu_ptr * ptr_p, size_t bytes))                                \
    X(mem_free, cuMemFree_v2, (kvt_cu_ptr ptr))                                                    \
    X(host_alloc, cuMemHostAlloc, (void **ptr_p, size_t bytes, unsigned flags))                    \
    X(host_free, cuMemFreeHost, (void *ptr))                                                       \
    X(host_register, cuMemHostRegister_v2, (void *ptr, size_t bytes, unsigned flags))              \
    X(host_unregister, cuMemHostUnregister, (void *ptr))                                           \
    X(pointer_attribute, cuPointerGetAttribute,                                                    \
      (void *value_p, unsigned attribute, kvt_cu_ptr ptr))                                         \
    X(copy_in, cuMemcpyHtoDAsync_v2,                                                               \
      (kvt_cu_ptr dst, const void *src, size_t bytes, struct CUstream_st *stream))                 \
    X(copy_out, cuMemcpyDtoHAsync_v2,                                                              \
      (void *dst, kvt_cu_ptr src, size_t bytes, struct CUstream_st *stream))                       \
    X(copy_2d, cuMemcpy2DAsync_v2,                                                                 \
      (const struct kvt_cu_copy_2d *copy, struct CUstream_st *stream))                             \
    X(module_load, cuModuleLoadData, (struct CUmod_st * *module_p, const void *image))             \
    X(module_unload, cuModuleUnload, (struct CUmod_st * module))                                   \
    X(module_function, cuModuleGetFunction,                                                        \
      (struct CUfunc_st * *function_p, struct CUmod_st * module, const char *name))                \
    X(launch, cuLaunchKernel,                                                                      \
      (struct CUfunc_st * function, unsigned grid_x, unsigned grid_y, unsigned grid_z,             \
       unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,                \
       struct CUstream_st *stream, void **parameters, void **extra))

/* NULL where the driver is older than CUDA 12.8 (batch) or 13.0 (batch_v2). */
#define KVT_CUDA_OPTIONAL(X)                                                                       \
    X(batch, cuMemcpyBatchAsync,                                                                   \
      (kvt_cu_ptr * dsts, kvt_cu_ptr * srcs, size_t * sizes, size_t n,                             \
       struct kvt_cu_copy_attributes * attributes, size_t * attribute_indexes,                     \
       size_t n_attributes, size_t * fail_index_p, struct CUstream_st * stream))                   \
    X(batch_v2, cuMemcpyBatchAsync_v2,                                                             \
      (kvt_cu_ptr * dsts, kvt_cu_ptr * srcs, size_t * sizes, size_t n,                             \
       struct kvt_cu_copy_attributes * attributes, size_t * attribute_indexes,                     \
       size_t n_attributes, struct CUstream_st * stream))

struct kvt_cuda_api {
#define KVT_CUDA_MEMBER(member, symbol, parameters) unsigned(*member) parameters;
    KVT_CUDA_REQUIRED(KVT_CUDA_MEMBER)
    KVT_CUDA_OPTIONAL(KVT_CUDA_MEMBER)
#undef KVT_CUDA_MEMBER
};

/**
 * Load the driver and look up its calls; it stays loaded for good.
 * @param library  Its name or path; NULL: libcuda.so.1.
 * @return KVT_OK; KVT_ERR_NOTSUP: there is none, or it is too old; err names it.
 */
enum kvt_status kvt_cuda_api_load(struct kvt_cuda_api *api, const char *library,
                                  struct kvt_error *err) KVT_MUST_CHECK;

/** A failed call as our status: KVT_ERR_NOMEM or KVT_ERR_IO; err names call, cause, next step. */
enum kvt_status kvt_cuda_error(const struct kvt_cuda_api *api, unsigned result, const char *what,
                               struct kvt_error *err);

#endif
