/* SPDX-License-Identifier: Apache-2.0 */
#include "layout.h"

#include "kvt/util.h"

static bool range_wraps(const void *addr, uint64_t bytes)
{
    uintptr_t end;
    return __builtin_add_overflow((uintptr_t)addr, bytes, &end);
}

static bool extents_check(const kvtier_layout *layout, uint64_t chunk_bytes, const char **why_p)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < layout->n_extents; i++) {
        const kvtier_extent *extent = &layout->extents[i];
        if (extent->addr == NULL || extent->bytes == 0 ||
            range_wraps(extent->addr, extent->bytes)) {
            *why_p = "an extent is NULL, empty or wraps around";
            return false;
        }
        if (__builtin_add_overflow(sum, extent->bytes, &sum)) {
            *why_p = "the extents' bytes overflow";
            return false;
        }
    }
    if (sum != chunk_bytes) {
        *why_p = "the extents do not add up to chunk_bytes";
        return false;
    }
    return true;
}

/* Offset of a strided piece; false: outside of what 64 bits can address. */
static bool strided_offset(const kvtier_layout *layout, uint32_t outer, uint32_t inner,
                           int64_t *offset_p)
{
    int64_t a, b;
    return !__builtin_mul_overflow(layout->outer_stride, (int64_t)outer, &a) &&
           !__builtin_mul_overflow(layout->inner_stride, (int64_t)inner, &b) &&
           !__builtin_add_overflow(a, b, offset_p);
}

/* Offsets are linear in both indexes, so a piece that wraps shows at one of the four corners. */
static bool strided_wraps(const kvtier_layout *layout)
{
    for (unsigned corner = 0; corner < 4; corner++) {
        int64_t offset;
        uintptr_t addr = (uintptr_t)layout->base;
        if (!strided_offset(layout, (corner & 1) ? layout->n_outer - 1 : 0,
                            (corner & 2) ? layout->n_inner - 1 : 0, &offset))
            return true;
        if (offset < 0 ? addr < (uintptr_t)0 - (uintptr_t)offset
                       : __builtin_add_overflow(addr, (uintptr_t)offset, &addr))
            return true;
        if (offset < 0)
            addr += (uintptr_t)offset;
        if (range_wraps((const void *)addr, layout->bytes))
            return true;
    }
    return false;
}

static bool strided_check(const kvtier_layout *layout, uint64_t chunk_bytes, const char **why_p)
{
    uint64_t sum;
    if (layout->base == NULL || layout->n_outer == 0 || layout->n_inner == 0 ||
        layout->bytes == 0) {
        *why_p = "a strided layout needs base, n_outer, n_inner and bytes";
        return false;
    }
    if (__builtin_mul_overflow((uint64_t)layout->n_outer * layout->n_inner, layout->bytes, &sum) ||
        sum != chunk_bytes) {
        *why_p = "n_outer * n_inner * bytes is not chunk_bytes";
        return false;
    }
    if (strided_wraps(layout)) {
        *why_p = "the strides leave the address space";
        return false;
    }
    return true;
}

bool kvt_layout_check(const kvtier_layout *layout, uint64_t chunk_bytes, const char **why_p)
{
    if (layout->reserved != 0) {
        *why_p = "reserved is not zero";
        return false;
    }
    if (layout->extents != NULL)
        return extents_check(layout, chunk_bytes, why_p);
    return strided_check(layout, chunk_bytes, why_p);
}
