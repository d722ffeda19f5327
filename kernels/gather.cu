/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Gather and scatter on the GPU; gather.c has the twins in C. A warp moves a piece: pieces are a
 * few KiB, and a warp of 16-byte accesses, four in flight per thread, moves 2 KiB at a time. The
 * data is read once and written once, so neither side should push the engine's out of the cache.
 */
#include "kvt/gather.h"

#define WARP      32u
#define IN_FLIGHT 4u

template <typename T>
static __device__ void words_copy(char *dst, const char *src, uint64_t n_words, unsigned lane)
{
    T *to = reinterpret_cast<T *>(dst);
    const T *from = reinterpret_cast<const T *>(src);
    uint64_t i = lane;
    for (; i + (IN_FLIGHT - 1) * WARP < n_words; i += IN_FLIGHT * WARP) {
        T word[IN_FLIGHT];
#pragma unroll
        for (unsigned k = 0; k < IN_FLIGHT; k++)
            word[k] = __ldcs(from + i + k * WARP);
#pragma unroll
        for (unsigned k = 0; k < IN_FLIGHT; k++)
            __stcs(to + i + k * WARP, word[k]);
    }
    for (; i < n_words; i += WARP)
        __stcs(to + i, __ldcs(from + i));
}

static __device__ void bytes_copy(char *dst, const char *src, uint64_t n, unsigned lane)
{
    for (uint64_t i = lane; i < n; i += WARP)
        dst[i] = src[i];
}

/* What can be moved in words of T: all but the ends that are not aligned, which go bytewise. */
template <typename T>
static __device__ void aligned_copy(char *dst, const char *src, uint64_t n, unsigned lane)
{
    uint64_t head = (0 - reinterpret_cast<uint64_t>(src)) & (sizeof(T) - 1);
    if (head > n)
        head = n;
    uint64_t body = (n - head) / sizeof(T) * sizeof(T);
    bytes_copy(dst, src, head, lane);
    words_copy<T>(dst + head, src + head, body / sizeof(T), lane);
    bytes_copy(dst + head + body, src + head + body, n - head - body, lane);
}

/* The widest word for which source and destination are aligned alike. */
static __device__ void piece_copy(char *dst, const char *src, uint64_t n, unsigned lane)
{
    uint64_t apart = reinterpret_cast<uint64_t>(dst) ^ reinterpret_cast<uint64_t>(src);
    if (apart % 16 == 0)
        aligned_copy<uint4>(dst, src, n, lane);
    else if (apart % 8 == 0)
        aligned_copy<uint2>(dst, src, n, lane);
    else if (apart % 4 == 0)
        aligned_copy<unsigned>(dst, src, n, lane);
    else
        bytes_copy(dst, src, n, lane);
}

extern "C" __global__ void __launch_bounds__(KVT_GATHER_THREADS)
    kvt_gather(char *chunk, const struct kvt_piece *pieces, uint32_t n_pieces)
{
    unsigned warp = (blockIdx.x * blockDim.x + threadIdx.x) / WARP;
    unsigned n_warps = gridDim.x * blockDim.x / WARP;
    for (unsigned i = warp; i < n_pieces; i += n_warps) {
        struct kvt_piece piece = pieces[i];
        piece_copy(chunk + piece.offset, reinterpret_cast<const char *>(piece.page), piece.bytes,
                   threadIdx.x % WARP);
    }
}

extern "C" __global__ void __launch_bounds__(KVT_GATHER_THREADS)
    kvt_scatter(const char *chunk, const struct kvt_piece *pieces, uint32_t n_pieces)
{
    unsigned warp = (blockIdx.x * blockDim.x + threadIdx.x) / WARP;
    unsigned n_warps = gridDim.x * blockDim.x / WARP;
    for (unsigned i = warp; i < n_pieces; i += n_warps) {
        struct kvt_piece piece = pieces[i];
        piece_copy(reinterpret_cast<char *>(piece.page), chunk + piece.offset, piece.bytes,
                   threadIdx.x % WARP);
    }
}
