/* SPDX-License-Identifier: Apache-2.0 */
#include "arena.h"

#include <stdalign.h>
#include <stdlib.h>
#include <string.h>

#include "kvt/util.h"

/* A message of 4 MiB becomes several times that when it is unpacked into many small fields. */
#define ARENA_BYTES_MAX (48 * KVT_MIB)
#define BLOCK_BYTES     (64 * KVT_KIB)

struct arena_block {
    struct arena_block *next;
    size_t used, room;
    alignas(max_align_t) unsigned char bytes[];
};

static void *proto_alloc(void *arg, size_t bytes)
{
    return arena_alloc(arg, bytes);
}

static void proto_free(void *arg, void *ptr)
{
    (void)arg;
    (void)ptr;
}

void arena_init(struct arena *arena)
{
    *arena = (struct arena){
        .allocator = {.alloc = proto_alloc, .free = proto_free, .allocator_data = arena}};
}

void arena_fini(struct arena *arena)
{
    struct arena_block *next;
    for (struct arena_block *block = arena->blocks; block != NULL; block = next) {
        next = block->next;
        free(block);
    }
    arena->blocks = NULL;
    arena->n_bytes = 0;
}

void *arena_alloc(struct arena *arena, size_t bytes)
{
    struct arena_block *block = arena->blocks;
    if (bytes > ARENA_BYTES_MAX) {
        arena->refused = true;
        return NULL;
    }
    bytes = kvt_align_up(KVT_MAX(bytes, 1), alignof(max_align_t));
    if (block == NULL || block->room - block->used < bytes) {
        size_t room = KVT_MAX(bytes, BLOCK_BYTES);
        if (arena->n_bytes + room > ARENA_BYTES_MAX ||
            (block = calloc(1, sizeof(*block) + room)) == NULL) {
            arena->refused = true;
            return NULL;
        }
        block->room = room;
        block->next = arena->blocks;
        arena->blocks = block;
        arena->n_bytes += room;
    }
    void *ptr = block->bytes + block->used;
    block->used += bytes;
    return ptr;
}
