/* SPDX-License-Identifier: Apache-2.0 */
/* Where a chunk's bytes are in the caller's memory, as a sequence of runs. */
#ifndef KVT_CONNECTOR_LAYOUT_H
#define KVT_CONNECTOR_LAYOUT_H

#include <stdbool.h>

#include "kvtier.h"

/** @return true when the pieces are sane and add up to chunk_bytes; else why says what is wrong. */
bool kvt_layout_check(const kvtier_layout *layout, uint64_t chunk_bytes, const char **why_p);

/* A position in a layout. Borrows the layout. */
struct kvt_runs {
    const kvtier_layout *layout;
    uint32_t outer; /* extent, or outer index of a strided layout */
    uint32_t inner;
    uint64_t done; /* bytes already taken of the present piece */
};

void kvt_runs_init(struct kvt_runs *runs, const kvtier_layout *layout);

/** Take the next run of at most max_bytes (> 0). The caller never takes more than chunk_bytes. */
uint64_t kvt_runs_next(struct kvt_runs *runs, uint64_t max_bytes, char **addr_p);

#endif
