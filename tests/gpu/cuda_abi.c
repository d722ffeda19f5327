/* SPDX-License-Identifier: Apache-2.0 */
/* The driver's types and calls as cuda_api.h has them, compared with cuda.h; built and not run. */
#include "cuda_api.h"

#include <cuda.h>

#define SAME(ours, theirs) _Static_assert((int)(ours) == (int)(theirs), #theirs)
#define PLACE(ours, member, theirs, their_member)                                                  \
    _Static_assert(offsetof(struct ours, member) == offsetof(theirs, their_member) &&              \
                       sizeof(((struct ours *)0)->member) == sizeof(((theirs *)0)->their_member),  \
                   #theirs "." #their_member)

SAME(KVT_CU_OK, CUDA_SUCCESS);
SAME(KVT_CU_INVALID_VALUE, CUDA_ERROR_INVALID_VALUE);
SAME(KVT_CU_NOT_SUPPORTED, CUDA_ERROR_NOT_SUPPORTED);
SAME(KVT_CU_STREAM_NON_BLOCKING, CU_STREAM_NON_BLOCKING);
SAME(KVT_CU_EVENT_BLOCKING_SYNC, CU_EVENT_BLOCKING_SYNC);
SAME(KVT_CU_EVENT_DISABLE_TIMING, CU_EVENT_DISABLE_TIMING);
SAME(KVT_CU_HOST_PORTABLE, CU_MEMHOSTALLOC_PORTABLE);
SAME(KVT_CU_HOST_PORTABLE, CU_MEMHOSTREGISTER_PORTABLE);
SAME(KVT_CU_CAPTURE_MODE_RELAXED, CU_STREAM_CAPTURE_MODE_RELAXED);
SAME(KVT_CU_CAPTURE_NONE, CU_STREAM_CAPTURE_STATUS_NONE);
SAME(KVT_CU_MEMORY_HOST, CU_MEMORYTYPE_HOST);
SAME(KVT_CU_MEMORY_DEVICE, CU_MEMORYTYPE_DEVICE);
SAME(KVT_CU_POINTER_MEMORY_TYPE, CU_POINTER_ATTRIBUTE_MEMORY_TYPE);
SAME(KVT_CU_POINTER_DEVICE, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL);
SAME(KVT_CU_POINTER_RANGE_START, CU_POINTER_ATTRIBUTE_RANGE_START_ADDR);
SAME(KVT_CU_POINTER_RANGE_BYTES, CU_POINTER_ATTRIBUTE_RANGE_SIZE);
SAME(KVT_CU_DEVICE_MAX_PITCH, CU_DEVICE_ATTRIBUTE_MAX_PITCH);
SAME(sizeof(kvt_cu_ptr), sizeof(CUdeviceptr));

PLACE(kvt_cu_copy_2d, src_x, CUDA_MEMCPY2D, srcXInBytes);
PLACE(kvt_cu_copy_2d, src_type, CUDA_MEMCPY2D, srcMemoryType);
PLACE(kvt_cu_copy_2d, src_host, CUDA_MEMCPY2D, srcHost);
PLACE(kvt_cu_copy_2d, src_device, CUDA_MEMCPY2D, srcDevice);
SAME(offsetof(struct kvt_cu_copy_2d, src_array), offsetof(CUDA_MEMCPY2D, srcArray));
PLACE(kvt_cu_copy_2d, src_pitch, CUDA_MEMCPY2D, srcPitch);
PLACE(kvt_cu_copy_2d, dst_x, CUDA_MEMCPY2D, dstXInBytes);
PLACE(kvt_cu_copy_2d, dst_type, CUDA_MEMCPY2D, dstMemoryType);
PLACE(kvt_cu_copy_2d, dst_host, CUDA_MEMCPY2D, dstHost);
PLACE(kvt_cu_copy_2d, dst_device, CUDA_MEMCPY2D, dstDevice);
PLACE(kvt_cu_copy_2d, dst_pitch, CUDA_MEMCPY2D, dstPitch);
PLACE(kvt_cu_copy_2d, width, CUDA_MEMCPY2D, WidthInBytes);
PLACE(kvt_cu_copy_2d, height, CUDA_MEMCPY2D, Height);
SAME(sizeof(struct kvt_cu_copy_2d), sizeof(CUDA_MEMCPY2D));

#if CUDA_VERSION >= 12080
SAME(KVT_CU_COPY_ORDER_STREAM, CU_MEMCPY_SRC_ACCESS_ORDER_STREAM);
SAME(KVT_CU_COPY_OVERLAP, CU_MEMCPY_FLAG_PREFER_OVERLAP_WITH_COMPUTE);
PLACE(kvt_cu_copy_attributes, order, CUmemcpyAttributes, srcAccessOrder);
PLACE(kvt_cu_copy_attributes, src_hint, CUmemcpyAttributes, srcLocHint);
PLACE(kvt_cu_copy_attributes, dst_hint, CUmemcpyAttributes, dstLocHint);
PLACE(kvt_cu_copy_attributes, flags, CUmemcpyAttributes, flags);
SAME(sizeof(struct kvt_cu_copy_attributes), sizeof(CUmemcpyAttributes));
#endif

/* Pointers to each call, of the type that we call it by. The tags of structs are the driver's, so
 * the types agree; but for two structs of our own, and a call that takes its own enum. */
#define cuMemcpy2DAsync_v2                                                                         \
    ((unsigned (*)(const struct kvt_cu_copy_2d *, CUstream))cuMemcpy2DAsync_v2)
#define COMPARE(member, symbol, parameters)                                                        \
    extern unsigned(*const abi_##member) parameters;                                               \
    unsigned(*const abi_##member) parameters = symbol;
KVT_CUDA_REQUIRED(COMPARE)
