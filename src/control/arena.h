/* SPDX-License-Identifier: Apache-2.0 */
/* Memory of one request: taken piece by piece, up to a limit, and given back as a whole. */
#ifndef KVT_CONTROL_ARENA_H
#define KVT_CONTROL_ARENA_H

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stddef.h>

struct arena_block;

struct arena {
    struct arena_block *blocks;
    size_t n_bytes; /* of all blocks */
    bool refused;   /* more than the limit was asked for, or there was none */
    ProtobufCAllocator allocator;
};

/** arena->allocator takes from it, for messages that protobuf-c unpacks. */
void arena_init(struct arena *arena);
void arena_fini(struct arena *arena);
/** Zeroed, aligned for anything. NULL: refused. */
void *arena_alloc(struct arena *arena, size_t bytes);

#endif
