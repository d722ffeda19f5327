/* SPDX-License-Identifier: Apache-2.0 */
#include "arena.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "kvt/util.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

#define UNIT_BYTES      (2 * KVT_MIB)
#define ARENA_BYTES_MAX (UINT64_C(1) << 46)

static enum kvt_status region_check(const struct kvt_wire_welcome *welcome, uint32_t index, int fd,
                                    struct kvt_error *err)
{
    const struct kvt_wire_region *r = &welcome->regions[index];
    struct stat st;

    if (r->bytes == 0 || r->bytes > ARENA_BYTES_MAX || r->base > ARENA_BYTES_MAX ||
        (r->page_bytes != KVT_PAGE_BYTES && r->page_bytes != 2 * KVT_MIB) ||
        r->base % r->page_bytes != 0 || r->bytes % r->page_bytes != 0)
        return kvt_error_set(err, KVT_ERR_PROTO,
                             "arena: region %u has no sane size; is this socket kvtierd's?", index);
    for (uint32_t i = 0; i < index; i++) {
        const struct kvt_wire_region *o = &welcome->regions[i];
        if (r->base < o->base + o->bytes && o->base < r->base + r->bytes)
            return kvt_error_set(err, KVT_ERR_PROTO, "arena: regions %u and %u overlap", i, index);
    }
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_size < 0 ||
        (uint64_t)st.st_size < r->bytes)
        return kvt_error_set(err, KVT_ERR_PROTO,
                             "arena: the file of region %u is smaller than the region", index);
    /* Whoever can shrink the file can make our next touch a SIGBUS. */
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & F_SEAL_SHRINK) == 0)
        return kvt_error_set(err, KVT_ERR_PROTO,
                             "arena: the file of region %u is not sealed against shrinking", index);
    return KVT_OK;
}

static enum kvt_status region_map(struct kvt_map *map, const struct kvt_wire_region *region, int fd,
                                  struct kvt_error *err)
{
    size_t n_units = 1 + (region->bytes - 1) / UNIT_BYTES; /* region_check(): never empty */
    void *addr;

    map->units = calloc(n_units, sizeof(*map->units));
    if (map->units == NULL)
        return kvt_error_set(err, KVT_ERR_NOMEM, "arena: no memory for its page table");
    addr = mmap(NULL, region->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (addr == MAP_FAILED) {
        free((void *)map->units);
        map->units = NULL;
        return kvt_error_set(err, KVT_ERR_NOMEM,
                             "arena: cannot map %llu bytes: %s; check ulimit -v",
                             (unsigned long long)region->bytes, strerror(errno));
    }
    /* A child must neither keep a dead agent's memory alive nor write to it. */
    (void)madvise(addr, region->bytes, MADV_DONTFORK);
    map->addr = addr;
    map->base = region->base;
    map->bytes = region->bytes;
    return KVT_OK;
}

enum kvt_status kvt_arena_map(struct kvt_arena *arena, const struct kvt_wire_welcome *welcome,
                              const int *fds, struct kvt_error *err)
{
    struct kvt_arena fresh = {0};
    for (uint32_t i = 0; i < welcome->n_regions; i++) {
        enum kvt_status status = region_check(welcome, i, fds[i], err);
        if (status == KVT_OK)
            status = region_map(&fresh.maps[i], &welcome->regions[i], fds[i], err);
        if (status != KVT_OK) {
            kvt_arena_unmap(&fresh);
            return status;
        }
        fresh.n_maps++;
    }
    *arena = fresh;
    return KVT_OK;
}

void kvt_arena_unmap(struct kvt_arena *arena)
{
    for (uint32_t i = 0; i < arena->n_maps; i++) {
        munmap(arena->maps[i].addr, arena->maps[i].bytes);
        free((void *)arena->maps[i].units);
    }
    *arena = (struct kvt_arena){0};
}

static const struct kvt_map *map_find(const struct kvt_arena *arena, uint64_t offset,
                                      uint64_t bytes)
{
    for (uint32_t i = 0; i < arena->n_maps; i++) {
        const struct kvt_map *map = &arena->maps[i];
        if (offset >= map->base && offset - map->base < map->bytes &&
            bytes <= map->bytes - (offset - map->base))
            return map;
    }
    return NULL;
}

char *kvt_arena_addr(const struct kvt_arena *arena, uint64_t offset, uint64_t bytes)
{
    const struct kvt_map *map = map_find(arena, offset, bytes);
    return map != NULL ? map->addr + (offset - map->base) : NULL;
}

bool kvt_arena_populate(struct kvt_arena *arena, uint64_t offset, uint64_t bytes)
{
    const struct kvt_map *map = map_find(arena, offset, bytes);
    if (map == NULL)
        return false;
    uint64_t first = (offset - map->base) / UNIT_BYTES;
    uint64_t last = (offset - map->base + bytes - 1) / UNIT_BYTES;
    for (uint64_t unit = first; unit <= last; unit++) {
        if (atomic_load_explicit(&map->units[unit], memory_order_relaxed) != 0)
            continue;
        uint64_t start = unit * UNIT_BYTES;
        uint64_t n = KVT_MIN(UNIT_BYTES, map->bytes - start);
        /* EINVAL: a kernel before 5.14; pages then come one by one. */
        if (madvise(map->addr + start, n, MADV_POPULATE_WRITE) != 0 && errno != EINVAL)
            return false;
        atomic_store_explicit(&map->units[unit], 1, memory_order_relaxed);
    }
    return true;
}
