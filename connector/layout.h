/* SPDX-License-Identifier: Apache-2.0 */
/* Where a chunk's bytes are in the caller's memory, as a sequence of runs. */
#ifndef KVT_CONNECTOR_LAYOUT_H
#define KVT_CONNECTOR_LAYOUT_H

#include <stdbool.h>

#include "kvtier.h"

/** @return true when the pieces are sane and add up to chunk_bytes; else why says what is wrong. */
bool kvt_layout_check(const kvtier_layout *layout, uint64_t chunk_bytes, const char **why_p);

/* A position in a layout, which it borrows. */
struct kvt_runs {
    const kvtier_layout *layout;
    char *addr;    /* of the next byte; of no use past the last one */
    uint64_t left; /* bytes of the present piece from there on; 0: past the last piece */
    uint32_t outer, inner;
};

static inline void kvt_runs_piece(struct kvt_runs *runs)
{
    const kvtier_layout *layout = runs->layout;
    if (layout->extents != NULL) {
        runs->left = runs->outer < layout->n_extents ? layout->extents[runs->outer].bytes : 0;
        runs->addr = runs->left > 0 ? (char *)layout->extents[runs->outer].addr : NULL;
    } else {
        runs->left = runs->outer < layout->n_outer ? layout->bytes : 0;
        runs->addr = runs->left > 0
                         ? (char *)layout->base + (int64_t)runs->outer * layout->outer_stride +
                               (int64_t)runs->inner * layout->inner_stride
                         : NULL;
    }
}

static inline void kvt_runs_init(struct kvt_runs *runs, const kvtier_layout *layout)
{
    *runs = (struct kvt_runs){.layout = layout};
    kvt_runs_piece(runs);
}

/** Take the next run of at most max_bytes (> 0). The caller never takes more than chunk_bytes. */
static inline uint64_t kvt_runs_next(struct kvt_runs *runs, uint64_t max_bytes, char **addr_p)
{
    uint64_t n = runs->left < max_bytes ? runs->left : max_bytes;
    *addr_p = runs->addr;
    runs->addr += n;
    runs->left -= n;
    if (runs->left == 0) {
        if (runs->layout->extents != NULL || ++runs->inner == runs->layout->n_inner) {
            runs->inner = 0;
            runs->outer++;
        }
        kvt_runs_piece(runs);
    }
    return n;
}

#endif
