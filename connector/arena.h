/* SPDX-License-Identifier: Apache-2.0 */
/* The agent's arena as mapped by this process. Offsets come from outside and are checked here. */
#ifndef KVT_CONNECTOR_ARENA_H
#define KVT_CONNECTOR_ARENA_H

#include <stdbool.h>

#include "kvt/wire.h"

struct kvt_map {
    uint64_t base; /* arena offset of addr */
    uint64_t bytes;
    char *addr;
    _Atomic uint8_t *units; /* 1: this 2 MiB unit was populated */
};

struct kvt_arena {
    uint32_t n_maps;
    struct kvt_map maps[KVT_REGIONS_MAX];
};

/**
 * Map the regions of a WELCOME. The fds stay the caller's.
 * @return KVT_OK, KVT_ERR_PROTO (they contradict each other or their files), KVT_ERR_NOMEM.
 */
enum kvt_status kvt_arena_map(struct kvt_arena *arena, const struct kvt_wire_welcome *welcome,
                              const int *fds, struct kvt_error *err) KVT_MUST_CHECK;
/** No copy may be under way. An arena of zeroes is an empty one. */
void kvt_arena_unmap(struct kvt_arena *arena);

/** Address of [offset, offset + bytes), or NULL when that is not inside one region. */
char *kvt_arena_addr(const struct kvt_arena *arena, uint64_t offset, uint64_t bytes);

/**
 * Make the pages of a range present before they are touched: one call for 2 MiB instead of a fault
 * for each page, and a page that cannot be had is an error here, where a touch would be a SIGBUS.
 */
bool kvt_arena_populate(struct kvt_arena *arena, uint64_t offset, uint64_t bytes);

#endif
