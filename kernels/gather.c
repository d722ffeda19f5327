/* SPDX-License-Identifier: Apache-2.0 */
/* The C twins of the kernels in gather.cu, and what plans need of both. */
#include "kvt/gather.h"

#include <string.h>

void kvt_gather_c(void *chunk, const struct kvt_piece *pieces, uint32_t n_pieces)
{
    for (uint32_t i = 0; i < n_pieces; i++)
        memcpy((char *)chunk + pieces[i].offset, (const void *)(uintptr_t)pieces[i].page,
               pieces[i].bytes);
}

void kvt_scatter_c(const void *chunk, const struct kvt_piece *pieces, uint32_t n_pieces)
{
    for (uint32_t i = 0; i < n_pieces; i++)
        memcpy((void *)(uintptr_t)pieces[i].page, (const char *)chunk + pieces[i].offset,
               pieces[i].bytes);
}

uint32_t kvt_plan_cut(const struct kvt_plan *plan, struct kvt_piece *to)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < plan->n; i++) {
        struct kvt_piece piece = plan->pieces[i];
        while (piece.bytes > KVT_GATHER_CUT_BYTES) {
            to[n++] = (struct kvt_piece){piece.page, piece.offset, KVT_GATHER_CUT_BYTES};
            piece.page += KVT_GATHER_CUT_BYTES;
            piece.offset += KVT_GATHER_CUT_BYTES;
            piece.bytes -= KVT_GATHER_CUT_BYTES;
        }
        to[n++] = piece;
    }
    return n;
}

struct kvt_rows kvt_plan_rows(const struct kvt_plan *plan, uint32_t first, uint64_t pitch_max)
{
    const struct kvt_piece *p = &plan->pieces[first];
    struct kvt_rows rows = {.n_rows = 1};
    if (first + 1 == plan->n || p[1].bytes != p[0].bytes || p[1].page < p[0].page + p[0].bytes ||
        p[1].offset < p[0].offset + p[0].bytes || p[1].page - p[0].page > pitch_max ||
        p[1].offset - p[0].offset > pitch_max)
        return rows;
    rows.page_pitch = p[1].page - p[0].page;
    rows.chunk_pitch = p[1].offset - p[0].offset;
    while (first + rows.n_rows < plan->n && p[rows.n_rows].bytes == p[0].bytes &&
           p[rows.n_rows].page - p[rows.n_rows - 1].page == rows.page_pitch &&
           p[rows.n_rows].offset - p[rows.n_rows - 1].offset == rows.chunk_pitch)
        rows.n_rows++;
    return rows;
}
