/* SPDX-License-Identifier: Apache-2.0 */
#include "memory_room.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "kvt/util.h"

#define HUGE_DIR "/sys/kernel/mm/hugepages/hugepages-2048kB/"

bool kvt_read_number(const char *path, uint64_t *value_p)
{
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return false;
    int n = fscanf(file, "%" SCNu64, value_p);
    fclose(file);
    return n == 1;
}

/* A line "name: value kB" or "name value" of a file in /proc or of a cgroup; 0 when not there. */
static uint64_t field_of(const char *path, const char *name)
{
    char line[256];
    uint64_t value = 0;
    size_t name_bytes = strlen(name);
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return 0;
    while (fgets(line, sizeof(line), file) != NULL) {
        if (strncmp(line, name, name_bytes) == 0 &&
            sscanf(line + name_bytes, " %" SCNu64, &value) == 1)
            break;
    }
    fclose(file);
    return value;
}

/* What one cgroup directory still allows; UINT64_MAX: no limit there. Clean file pages count as
 * free, the kernel drops them before it refuses anything. */
static uint64_t cgroup_room(const char *dir, bool v2, uint64_t uncharged_bytes)
{
    char path[640];
    uint64_t limit;
    uint64_t used;
    snprintf(path, sizeof(path), "%s/%s", dir, v2 ? "memory.max" : "memory.limit_in_bytes");
    if (!kvt_read_number(path, &limit) || limit >= (UINT64_C(1) << 60))
        return UINT64_MAX; /* "max" is no number; v1 writes a huge one */
    snprintf(path, sizeof(path), "%s/%s", dir, v2 ? "memory.current" : "memory.usage_in_bytes");
    if (!kvt_read_number(path, &used))
        return UINT64_MAX;
    snprintf(path, sizeof(path), "%s/memory.stat", dir);
    uint64_t clean = field_of(path, v2 ? "inactive_file " : "total_inactive_file ");
    used = used - KVT_MIN(used, clean) + uncharged_bytes + limit / 20;
    return limit - KVT_MIN(limit, used);
}

/* The tightest of a cgroup and those above it. */
static uint64_t cgroup_path_room(const char *root, char *path, bool v2, uint64_t uncharged_bytes)
{
    char dir[512];
    uint64_t room = UINT64_MAX;
    for (;;) {
        snprintf(dir, sizeof(dir), "%s%s", root, path);
        room = KVT_MIN(room, cgroup_room(dir, v2, uncharged_bytes));
        char *slash = strrchr(path, '/');
        if (slash == NULL)
            return room;
        *slash = '\0';
    }
}

uint64_t kvt_memory_room(uint64_t uncharged_bytes)
{
    char line[384];
    uint64_t total = field_of("/proc/meminfo", "MemTotal:") * KVT_KIB;
    uint64_t available = field_of("/proc/meminfo", "MemAvailable:") * KVT_KIB;
    uint64_t keep = KVT_MAX(total / 20, 512 * KVT_MIB);
    uint64_t room = available - KVT_MIN(available, keep);
    FILE *file = fopen("/proc/self/cgroup", "re");
    if (file == NULL)
        return room;
    while (fgets(line, sizeof(line), file) != NULL) { /* hierarchy:controllers:path */
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':');
        char *path = controllers == NULL ? NULL : strchr(controllers + 1, ':');
        if (path == NULL)
            continue;
        *path++ = '\0';
        uint64_t of_cgroup = UINT64_MAX;
        if (strcmp(controllers, ":") == 0)
            of_cgroup = cgroup_path_room("/sys/fs/cgroup", path, true, uncharged_bytes);
        else if (strstr(controllers, "memory") != NULL)
            of_cgroup = cgroup_path_room("/sys/fs/cgroup/memory", path, false, uncharged_bytes);
        room = KVT_MIN(room, of_cgroup);
    }
    fclose(file);
    return room;
}

uint64_t kvt_huge_pages_free(void)
{
    uint64_t n_free;
    uint64_t n_claimed;
    if (!kvt_read_number(HUGE_DIR "free_hugepages", &n_free) ||
        !kvt_read_number(HUGE_DIR "resv_hugepages", &n_claimed))
        return 0;
    return n_free - KVT_MIN(n_free, n_claimed);
}

bool kvt_huge_pages_allow(uint64_t n_pages)
{
    uint64_t n_surplus;
    uint64_t n_allowed;
    if (!kvt_read_number(HUGE_DIR "surplus_hugepages", &n_surplus) ||
        !kvt_read_number(HUGE_DIR "nr_overcommit_hugepages", &n_allowed))
        return false;
    if (n_allowed >= n_surplus + n_pages)
        return true;
    FILE *file = fopen(HUGE_DIR "nr_overcommit_hugepages", "we");
    if (file == NULL)
        return false;
    bool ok = fprintf(file, "%" PRIu64, n_surplus + n_pages) > 0;
    return fclose(file) == 0 && ok;
}
