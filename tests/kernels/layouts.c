/* SPDX-License-Identifier: Apache-2.0 */
#include "layouts.h"

#include <string.h>

const struct kv_layout kv_layouts[KV_LAYOUTS] = {
    /* vLLM's KVCacheLayout */
    {"LBHNC", "LBHN", .is_packed = true},
    {"LBNHC", "LBNH", .is_packed = true},
    {"LHBNC", "LHBN", .is_packed = true},
    {"BLHNC", "BLHN", .is_packed = true},
    {"BLNHC", "BLNH", .is_packed = true},
    {"BHLNC", "BHLN", .is_packed = true},
    {"MLA", "LBN", .is_mla = true, .is_packed = true},
    /* vLLM before: K and V apart */
    {"per layer, K and V, token-major", "LKBNH"},
    {"per layer, K and V, head-major", "LKBHN"},
    {"per layer, block, K and V", "LBKNH"},
    /* SGLang's host pools */
    {"layer_first", "KLBNH"},
    {"page_first", "KBNLH"},
    {"page_first_direct", "KBLNH"},
    {"page_head", "KBHNL"},
};

static unsigned dim_of(char letter)
{
    return (unsigned)(strchr("LKBHN", letter) - "LKBHN");
}

struct kv_map kv_map_make(const struct kv_layout *layout, struct kv_shape shape)
{
    struct kv_map map = {.shape = shape};
    unsigned n_named = (unsigned)strlen(layout->order), at = 0;
    bool named[KV_DIMS] = {false};
    if (layout->is_packed)
        shape.n_planes = 1;
    if (layout->is_mla)
        shape.n_heads = 1;
    map.shape = shape;
    map.n[KV_L] = shape.n_layers;
    map.n[KV_K] = shape.n_planes;
    map.n[KV_B] = shape.n_blocks;
    map.n[KV_H] = shape.n_heads;
    map.n[KV_N] = shape.n_tokens;
    for (unsigned i = 0; i < n_named; i++)
        named[dim_of(layout->order[i])] = true;
    for (unsigned dim = 0; dim < KV_DIMS; dim++) {
        if (!named[dim])
            map.order[at++] = dim; /* of one step: where it stands does not matter */
    }
    for (unsigned i = 0; i < n_named; i++)
        map.order[at++] = dim_of(layout->order[i]);
    map.bytes = shape.content_bytes;
    for (unsigned i = KV_DIMS; i-- > 0;) {
        unsigned dim = map.order[i];
        if (dim == KV_B)
            map.bytes += shape.block_pad_bytes;
        map.stride[dim] = map.bytes;
        map.bytes *= map.n[dim];
    }
    return map;
}

uint64_t kv_chunk_bytes(const struct kv_map *map, uint32_t n_pages)
{
    return (uint64_t)map->n[KV_L] * map->n[KV_K] * n_pages * map->n[KV_H] * map->n[KV_N] *
           map->shape.content_bytes;
}

void kv_cells(const struct kv_map *map, const uint32_t *pages, uint32_t n_pages, kv_cell_fn cell,
              void *arg)
{
    unsigned order[KV_DIMS] = {KV_L, KV_K, KV_B};
    unsigned n_order = 3;
    uint32_t at[KV_DIMS] = {0}, n[KV_DIMS];
    uint64_t chunk_offset = 0;

    for (unsigned i = 0; i < KV_DIMS; i++) {
        if (map->order[i] == KV_H || map->order[i] == KV_N)
            order[n_order++] = map->order[i];
    }
    memcpy(n, map->n, sizeof(n));
    n[KV_B] = n_pages;
    for (;;) {
        uint64_t offset = 0;
        for (unsigned dim = 0; dim < KV_DIMS; dim++)
            offset += map->stride[dim] * (dim == KV_B ? pages[at[dim]] : at[dim]);
        cell(arg, offset, chunk_offset, map->shape.content_bytes);
        chunk_offset += map->shape.content_bytes;
        unsigned i = KV_DIMS;
        while (i > 0 && ++at[order[i - 1]] == n[order[i - 1]])
            at[order[--i]] = 0;
        if (i == 0)
            return;
    }
}
