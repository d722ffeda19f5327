/* SPDX-License-Identifier: Apache-2.0 */
#include "kvt/cgroup.h"
#include "kvt/util.h"

#include <inttypes.h>
#include <limits.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define LINE_BYTES 4096

/* v1 writes "no limit" as the largest multiple of a page; nothing real is that large. */
#define MEMORY_UNLIMITED (UINT64_C(1) << 60)

struct mount {
    char root[PATH_MAX];  /* the group that is mounted */
    char point[PATH_MAX]; /* where */
};

static bool line_read(const char *path, char line[LINE_BYTES])
{
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return false;
    bool ok = fgets(line, LINE_BYTES, file) != NULL;
    fclose(file);
    return ok;
}

static bool number_read(const char *dir, const char *name, long long *value_p)
{
    char path[PATH_MAX + 64];
    char line[LINE_BYTES];
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    return line_read(path, line) && sscanf(line, "%lld", value_p) == 1;
}

/* Whether a comma-separated list has the word. */
static bool list_has(const char *list, const char *word)
{
    size_t n = strlen(word);
    for (const char *p = list; *p != '\0';) {
        size_t len = strcspn(p, ",");
        if (len == n && strncmp(p, word, n) == 0)
            return true;
        p += len + (p[len] == ',');
    }
    return false;
}

/* Find the mount of a v1 controller, or of v2 when controller is NULL. */
static bool mount_find(const char *root, const char *controller, struct mount *mount_p)
{
    char path[PATH_MAX];
    char line[LINE_BYTES];
    char fstype[64];
    char options[512];
    bool found = false;
    snprintf(path, sizeof(path), "%s/proc/self/mountinfo", root);
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return false;
    while (!found && fgets(line, sizeof(line), file) != NULL) {
        const char *tail = strstr(line, " - ");
        if (tail == NULL || sscanf(tail, " - %63s %*s %511s", fstype, options) != 2 ||
            sscanf(line, "%*s %*s %*s %4095s %4095s", mount_p->root, mount_p->point) != 2)
            continue;
        found = controller == NULL ? strcmp(fstype, "cgroup2") == 0
                                   : strcmp(fstype, "cgroup") == 0 && list_has(options, controller);
    }
    fclose(file);
    return found;
}

/* This process's group in the hierarchy of a v1 controller, or of v2 when controller is NULL. */
static bool group_find(const char *root, const char *controller, char group[PATH_MAX])
{
    char path[PATH_MAX];
    char line[LINE_BYTES];
    bool found = false;
    snprintf(path, sizeof(path), "%s/proc/self/cgroup", root);
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return false;
    while (!found && fgets(line, sizeof(line), file) != NULL) {
        char *controllers = strchr(line, ':');
        char *name = controllers != NULL ? strchr(controllers + 1, ':') : NULL;
        if (name == NULL)
            continue;
        *controllers++ = '\0';
        *name++ = '\0';
        name[strcspn(name, "\n")] = '\0';
        found = controller == NULL ? strcmp(line, "0") == 0 && *controllers == '\0'
                                   : list_has(controllers, controller);
        if (found)
            snprintf(group, PATH_MAX, "%s", name);
    }
    fclose(file);
    return found;
}

typedef void (*group_fn)(const char *dir, struct kvt_cgroup_limits *limits);

/* Call visit for the process's group and each above it, as far as the mount shows them. */
static void groups_visit(const char *root, const char *controller, group_fn visit,
                         struct kvt_cgroup_limits *limits)
{
    struct mount mount;
    char group[PATH_MAX];
    char dir[3 * PATH_MAX];
    if (!mount_find(root, controller, &mount) || !group_find(root, controller, group))
        return;
    const char *below = ""; /* a namespace hides where it is: the mount itself is the group */
    size_t n_root = strcmp(mount.root, "/") == 0 ? 0 : strlen(mount.root);
    if (strncmp(group, mount.root, n_root) == 0 && (group[n_root] == '/' || group[n_root] == '\0'))
        below = group + n_root;
    size_t n_point = (size_t)snprintf(dir, sizeof(dir), "%s%s", root, mount.point);
    size_t len = n_point + (size_t)snprintf(dir + n_point, sizeof(dir) - n_point, "%s", below);
    for (;;) {
        visit(dir, limits);
        while (len > n_point && dir[len - 1] != '/')
            len--;
        if (len <= n_point)
            break;
        dir[--len] = '\0';
    }
}

static void cpu_limit(struct kvt_cgroup_limits *limits, long long quota, long long period)
{
    if (quota > 0 && period > 0)
        limits->cpu_milli = KVT_MIN(limits->cpu_milli, (uint64_t)quota * 1000 / (uint64_t)period);
}

static void memory_limit(struct kvt_cgroup_limits *limits, long long bytes)
{
    if (bytes > 0 && (uint64_t)bytes < MEMORY_UNLIMITED)
        limits->memory_bytes = KVT_MIN(limits->memory_bytes, (uint64_t)bytes);
}

static void cpu_v1(const char *dir, struct kvt_cgroup_limits *limits)
{
    long long quota;
    long long period;
    if (number_read(dir, "cpu.cfs_quota_us", &quota) &&
        number_read(dir, "cpu.cfs_period_us", &period))
        cpu_limit(limits, quota, period);
}

static void memory_v1(const char *dir, struct kvt_cgroup_limits *limits)
{
    long long bytes;
    if (number_read(dir, "memory.limit_in_bytes", &bytes))
        memory_limit(limits, bytes);
}

static void both_v2(const char *dir, struct kvt_cgroup_limits *limits)
{
    char path[3 * PATH_MAX + 16];
    char line[LINE_BYTES];
    long long quota;
    long long period;
    long long bytes;
    snprintf(path, sizeof(path), "%s/cpu.max", dir);
    if (line_read(path, line) && sscanf(line, "%lld %lld", &quota, &period) == 2)
        cpu_limit(limits, quota, period);
    if (number_read(dir, "memory.max", &bytes)) /* "max" is no number */
        memory_limit(limits, bytes);
}

void kvt_cgroup_limits(const char *root, struct kvt_cgroup_limits *limits_p)
{
    limits_p->cpu_milli = KVT_CGROUP_NO_LIMIT;
    limits_p->memory_bytes = KVT_CGROUP_NO_LIMIT;
    groups_visit(root, "cpu", cpu_v1, limits_p);
    groups_visit(root, "memory", memory_v1, limits_p);
    groups_visit(root, NULL, both_v2, limits_p);
}

unsigned kvt_cpus_usable(const struct kvt_cgroup_limits *limits)
{
    cpu_set_t set;
    uint64_t n = 1;
    if (sched_getaffinity(0, sizeof(set), &set) == 0)
        n = (uint64_t)CPU_COUNT(&set);
    else if (sysconf(_SC_NPROCESSORS_ONLN) > 0) /* more CPUs than the set has room for */
        n = (uint64_t)sysconf(_SC_NPROCESSORS_ONLN);
    if (limits->cpu_milli != KVT_CGROUP_NO_LIMIT)
        n = KVT_MIN(n, (limits->cpu_milli + 999) / 1000);
    return (unsigned)KVT_MAX(n, 1);
}

uint64_t kvt_memory_usable(const struct kvt_cgroup_limits *limits)
{
    long n_pages = sysconf(_SC_PHYS_PAGES);
    uint64_t bytes = n_pages > 0 ? (uint64_t)n_pages * (uint64_t)sysconf(_SC_PAGESIZE) : KVT_GIB;
    return KVT_MIN(bytes, limits->memory_bytes);
}
