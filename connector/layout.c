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

int kvt_layouts_of_pages(const kvtier_pages *pages, const int64_t *blocks, uint32_t n,
                         kvtier_layout *layouts, kvtier_extent *extents)
{
    if (pages == NULL || pages->size < sizeof(*pages) || pages->pieces == NULL ||
        pages->n_pieces == 0 || pages->blocks_per_chunk == 0 || blocks == NULL || layouts == NULL ||
        extents == NULL || pages->n_pieces > UINT32_MAX / pages->blocks_per_chunk)
        return KVTIER_ERR_INVAL;
    uint32_t n_extents = pages->n_pieces * pages->blocks_per_chunk;
    for (uint32_t i = 0; i < n; i++) {
        layouts[i] = (kvtier_layout){.extents = extents, .n_extents = n_extents};
        for (uint32_t k = 0; k < pages->blocks_per_chunk; k++) {
            int64_t block = *blocks++;
            char *sink = block == -1 ? pages->sink : NULL;
            if (sink == NULL && (block < 0 || (uint64_t)block >= pages->n_blocks))
                return KVTIER_ERR_INVAL;
            for (uint32_t p = 0; p < pages->n_pieces; p++) {
                const kvtier_piece *piece = &pages->pieces[p];
                extents->addr = sink != NULL ? sink : (char *)piece->base + block * piece->stride;
                extents->bytes = piece->bytes;
                extents++;
                if (sink != NULL)
                    sink += piece->bytes;
            }
        }
    }
    return KVTIER_OK;
}
