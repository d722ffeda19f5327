/* SPDX-License-Identifier: Apache-2.0 */
/* The checksums of segments, compiled once per instruction set by the files that include this. */
#ifndef KVT_SEGMENTS_IMPL_H
#define KVT_SEGMENTS_IMPL_H

#include <stddef.h>
#include <stdint.h>

/* n segments that lie one after the other. */
void kvt_segments_sum_base(const void *segments, size_t segment_bytes, uint64_t *sums, uint32_t n);
void kvt_segments_sum_avx2(const void *segments, size_t segment_bytes, uint64_t *sums, uint32_t n);

#ifdef KVT_SEGMENTS_SUM

#define XXH_INLINE_ALL
#include <xxhash.h>

void KVT_SEGMENTS_SUM(const void *segments, size_t segment_bytes, uint64_t *sums, uint32_t n)
{
    const char *segment = segments;
    for (uint32_t i = 0; i < n; i++, segment += segment_bytes)
        sums[i] = XXH3_64bits(segment, segment_bytes);
}

#endif
#endif
