/* SPDX-License-Identifier: Apache-2.0 */
#include "parts.h"

#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

bool parts_arena_init(struct kvt_arena *arena, uint64_t base, uint64_t bytes)
{
    struct kvt_map *map = &arena->maps[0];
    int fd = memfd_create("arena", MFD_CLOEXEC);
    if (fd < 0)
        return false;
    if (ftruncate(fd, (off_t)bytes) == 0)
        map->addr = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    else
        map->addr = MAP_FAILED;
    close(fd);
    if (map->addr == MAP_FAILED)
        return false;
    memset(map->addr, 0, bytes);
    map->base = base;
    map->bytes = bytes;
    arena->n_maps = 1;
    return true;
}

void parts_arena_fini(struct kvt_arena *arena)
{
    munmap(arena->maps[0].addr, arena->maps[0].bytes);
}

void parts_pin_all(struct kvt_pin *pin, const struct kvt_arena *arena)
{
    const struct timespec moment = {.tv_nsec = 1000000};
    while (!kvt_pin_ready(pin, arena->maps[0].base, arena->maps[0].bytes))
        nanosleep(&moment, NULL);
}
