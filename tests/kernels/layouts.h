/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The KV layouts of the engines, as tests see them: an order of dimensions from the outermost to
 * the innermost, from which all strides follow. L layer, K plane (K and V where they lie apart), B
 * block (page), H head, N token, C the bytes of one head and token.
 *
 * A chunk is layer-major and holds, per layer and plane, its pages' bytes in the order they have
 * in memory.
 */
#ifndef KVT_TEST_LAYOUTS_H
#define KVT_TEST_LAYOUTS_H

#include <stdbool.h>
#include <stdint.h>

struct kv_shape {
    uint32_t n_layers, n_planes, n_blocks, n_heads, n_tokens;
    uint32_t content_bytes;
    uint32_t block_pad_bytes; /* behind each step of the block dimension */
};

struct kv_layout {
    const char *name;
    const char *order;
    bool is_mla;    /* one head */
    bool is_packed; /* K and V in one piece of content, so one plane */
};

#define KV_LAYOUTS 14
extern const struct kv_layout kv_layouts[KV_LAYOUTS];

enum { KV_L, KV_K, KV_B, KV_H, KV_N, KV_DIMS };

/* A layout of a shape, ready for addresses. */
struct kv_map {
    struct kv_shape shape;
    unsigned order[KV_DIMS]; /* KV_*, outermost first, those of one step included */
    uint64_t stride[KV_DIMS];
    uint32_t n[KV_DIMS];
    uint64_t bytes; /* of the whole cache */
};

struct kv_map kv_map_make(const struct kv_layout *layout, struct kv_shape shape);

/** Bytes of a chunk of n_pages pages. */
uint64_t kv_chunk_bytes(const struct kv_map *map, uint32_t n_pages);

typedef void (*kv_cell_fn)(void *arg, uint64_t cache_offset, uint64_t chunk_offset, uint32_t bytes);

/** Call for each cell (the content of one head and token) of a chunk, in chunk order. */
void kv_cells(const struct kv_map *map, const uint32_t *pages, uint32_t n_pages, kv_cell_fn cell,
              void *arg);

#endif
