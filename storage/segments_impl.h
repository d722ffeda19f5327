/* SPDX-License-Identifier: Apache-2.0 */
/* The check of segments, compiled once per instruction set by the files that include this. */
#ifndef KVT_SEGMENTS_IMPL_H
#define KVT_SEGMENTS_IMPL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* n segments that lie one after the other. */
bool kvt_segments_agree_base(const void *segments, size_t segment_bytes, const uint64_t *sums,
                             uint32_t n);
bool kvt_segments_agree_avx2(const void *segments, size_t segment_bytes, const uint64_t *sums,
                             uint32_t n);

#ifdef KVT_SEGMENTS_AGREE

#define XXH_INLINE_ALL
#include <xxhash.h>

bool KVT_SEGMENTS_AGREE(const void *segments, size_t segment_bytes, const uint64_t *sums,
                        uint32_t n)
{
    const char *segment = segments;
    for (uint32_t i = 0; i < n; i++, segment += segment_bytes) {
        if (XXH3_64bits(segment, segment_bytes) != sums[i])
            return false;
    }
    return true;
}

#endif
#endif
