/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon_config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "kvt/cgroup.h"
#include "kvt/log.h"
#include "kvt/units.h"
#include "kvt/util.h"

#define HUGE_BYTES       (2 * KVT_MIB)
#define SUPERBLOCK_BYTES KVT_MIB /* of a store file, before its first slab */
#define SLABS_MAX        (UINT32_C(1) << (31 - KVT_SLOT_INDEX_BITS))
#define WORKERS_AUTO_MAX 8
#define FILE_BYTES_MAX   (2 * KVT_MIB) /* more than the parser takes, so that it can say so */

#define POLICIES "lhd|lru|s3fifo"
static const char *const policy_names[] = {"lhd", "lru", "s3fifo"};

static const struct kvt_config_field disk_fields[] = {
    KVT_FIELD(STR, struct kvt_disk_config, path, "path", "", 0, 0, "store file or block device"),
    KVT_FIELD(BYTES, struct kvt_disk_config, capacity_bytes, "bytes", "0", 0, 1024 * KVT_TIB,
              "most bytes to use on it"),
    {0},
};

#define CONFIG struct daemon_config
const struct kvt_config_field daemon_config_fields[] = {
    KVT_FIELD(STR, CONFIG, socket_path, "socket.path", "/run/kvtier/kvtierd.sock", 0, 0,
              "unix socket that engines connect to"),
    KVT_FIELD(MODE, CONFIG, socket_mode, "socket.mode", "0660", 0, 0777,
              "permissions of the socket: who may write may connect"),
    KVT_FIELD(BYTES, CONFIG, host_bytes, "host.bytes", KVT_CONFIG_AUTO, HUGE_BYTES, 64 * KVT_TIB,
              "host memory for chunks; auto: a quarter of what the machine or cgroup has"),
    KVT_FIELD(BYTES, CONFIG, host_slab_bytes, "host.slab_bytes", "64MiB", HUGE_BYTES, 4 * KVT_GIB,
              "unit of host memory that one chunk size owns; multiple of 2MiB"),
    KVT_FIELD_ENUM(CONFIG, host_huge_pages, "host.huge_pages", "auto", "auto|require|off",
                   "2 MiB pages: where to be had, required, or not used"),
    KVT_FIELD_ENUM(CONFIG, host_policy, "host.policy", "lhd", POLICIES,
                   "who is evicted from host memory"),
    KVT_FIELD_LIST(CONFIG, disks, n_disks, "nvme.disks", disk_fields, "store files or devices"),
    KVT_FIELD(STR, CONFIG, nvme_path, "nvme.path", "", 0, 0, "short for a list of one disk"),
    KVT_FIELD(BYTES, CONFIG, nvme_bytes, "nvme.bytes", "0", 0, 1024 * KVT_TIB,
              "most bytes to use at nvme.path"),
    KVT_FIELD(BYTES, CONFIG, nvme_slab_bytes, "nvme.slab_bytes", "65792KiB", 2 * KVT_PAGE_BYTES,
              4 * KVT_GIB, "unit of disk space that one chunk size owns, slot headers included"),
    KVT_FIELD_ENUM(CONFIG, nvme_engine, "nvme.engine", "auto", "auto|io_uring|threads",
                   "how to do disk I/O"),
    KVT_FIELD(U32, CONFIG, nvme_queue_depth, "nvme.queue_depth", "128", 1, 4096,
              "transfers in flight"),
    KVT_FIELD_ENUM(CONFIG, nvme_policy, "nvme.policy", "lhd", POLICIES, "who is evicted from NVMe"),
    KVT_FIELD_ENUM(CONFIG, nvme_admission, "nvme.admission", "all", "all|reused|none",
                   "which chunks are written to NVMe"),
    KVT_FIELD(STR, CONFIG, nvme_meta_path, "nvme.meta_path", "", 0, 0,
              "folder of the metadata; empty: beside the first disk, which must be a file"),
    KVT_FIELD(BYTES, CONFIG, nvme_read_inflight_bytes, "nvme.read_inflight_bytes", "64MiB", KVT_MIB,
              64 * KVT_GIB, "bytes being read at once"),
    KVT_FIELD(BYTES, CONFIG, nvme_write_inflight_bytes, "nvme.write_inflight_bytes", "64MiB",
              KVT_MIB, 64 * KVT_GIB, "bytes being written at once"),
    KVT_FIELD(BYTES, CONFIG, nvme_scrub_bytes_per_s, "nvme.scrub_bytes_per_s", "16MiB", 0, KVT_TIB,
              "background verification, bytes per second; 0: none"),
    KVT_FIELD(BOOL, CONFIG, nvme_required, "nvme.required", "true", 0, 0,
              "false: go on with host memory alone when NVMe cannot be opened"),
    KVT_FIELD(U32, CONFIG, index_chunks_max, "index.chunks_max", "16777216", 1024,
              UINT32_C(1) << 30, "most chunks held in all tiers; memory is used as they come"),
    KVT_FIELD(U32, CONFIG, index_seed, "index.seed", KVT_CONFIG_AUTO, 1, UINT32_MAX,
              "of hashes and random choices, to repeat an experiment; auto: a new one each start"),
    KVT_FIELD(TIME, CONFIG, lease_ttl_ns, "lease.ttl", "30s", KVT_NS_PER_MS, 86400 * KVT_NS_PER_S,
              "how long a lookup's lease and a loaded chunk's place last by default"),
    KVT_FIELD(TIME, CONFIG, lease_ttl_max_ns, "lease.ttl_max", "10m", KVT_NS_PER_MS,
              86400 * KVT_NS_PER_S, "the longest lease that a client may ask for"),
    KVT_FIELD(U32, CONFIG, sessions_max, "sessions.max", "256", 1, 16384, "connected clients"),
    KVT_FIELD(U32, CONFIG, sessions_ops_max, "sessions.ops_max", "256", 1, 4096,
              "open stores and loads of one client"),
    KVT_FIELD(U32, CONFIG, workers, "cpu.workers", KVT_CONFIG_AUTO, 1, 256,
              "threads that verify checksums; auto: by CPU quota and affinity, at most 8"),
    KVT_FIELD(TIME, CONFIG, spin_ns, "cpu.spin", "30us", 0, KVT_NS_PER_MS,
              "how long to look for the next message before sleeping, while that pays off"),
    KVT_FIELD(TIME, CONFIG, drain_timeout_ns, "shutdown.drain_timeout", "20s", 0,
              3600 * KVT_NS_PER_S, "how long SIGTERM lets writes to NVMe finish"),
    KVT_FIELD_ENUM(CONFIG, log_level, "log.level", "info", "error|warn|info|debug|trace",
                   "what is logged"),
    KVT_FIELD_ENUM(CONFIG, log_format, "log.format", "text", "text|json", "how"),
    {0},
};

struct checks {
    kvt_config_error_fn error;
    void *arg;
    unsigned n_errors;
};

__attribute__((format(printf, 2, 3))) static void refuse(struct checks *checks, const char *format,
                                                         ...)
{
    char msg[512];
    va_list ap;
    va_start(ap, format);
    vsnprintf(msg, sizeof(msg), format, ap);
    va_end(ap);
    checks->n_errors++;
    checks->error(checks->arg, msg);
}

const struct kvt_policy_ops *daemon_policy(uint32_t choice)
{
    KVT_ASSERT(choice < KVT_ARRAY_LEN(policy_names));
    return kvt_policy_find(policy_names[choice]);
}

uint64_t daemon_disk_slabs(const struct daemon_config *config, const struct kvt_disk_config *disk)
{
    if (disk->capacity_bytes < SUPERBLOCK_BYTES)
        return 0;
    return (disk->capacity_bytes - SUPERBLOCK_BYTES) / config->nvme_slab_bytes;
}

static void host_resolve(struct daemon_config *config, const struct kvt_cgroup_limits *limits,
                         struct checks *checks)
{
    char was[KVT_UNITS_TEXT_BYTES];
    char now[KVT_UNITS_TEXT_BYTES];
    bool by_user = config->host_bytes != 0;

    if (config->host_slab_bytes % HUGE_BYTES != 0) {
        kvt_bytes_format(config->host_slab_bytes, was);
        refuse(checks, "host.slab_bytes: %s is not a multiple of 2MiB", was);
        return;
    }
    if (!by_user)
        config->host_bytes = KVT_MAX(kvt_memory_usable(limits) / 4, HUGE_BYTES);
    kvt_bytes_format(config->host_bytes, was);
    if (config->host_bytes < config->host_slab_bytes) {
        config->host_slab_bytes = config->host_bytes / HUGE_BYTES * HUGE_BYTES;
        kvt_bytes_format(config->host_slab_bytes, now);
        kvt_log(KVT_LOG_INFO, "slabs made smaller to fit host.bytes host.bytes=%s slab_bytes=%s",
                was, now);
    }
    if (config->host_bytes % config->host_slab_bytes != 0) {
        config->host_bytes -= config->host_bytes % config->host_slab_bytes;
        kvt_bytes_format(config->host_bytes, now);
        if (by_user)
            kvt_log(KVT_LOG_INFO, "host.bytes rounded down to whole slabs from=%s to=%s", was, now);
    }
    if (config->host_bytes / config->host_slab_bytes > SLABS_MAX)
        refuse(checks, "host.slab_bytes: %s make more than %u slabs; raise it", was, SLABS_MAX);
}

static void disks_resolve(struct daemon_config *config, struct checks *checks)
{
    uint64_t least = UINT64_MAX;
    uint64_t n_slabs = 0;
    char text[KVT_UNITS_TEXT_BYTES];
    for (uint32_t i = 0; i < config->n_disks; i++) {
        const struct kvt_disk_config *disk = &config->disks[i];
        if (disk->path[0] == '\0')
            refuse(checks, "nvme.disks.%u.path: missing; name a file or block device", i);
        if (disk->capacity_bytes == 0)
            refuse(checks, "nvme.disks.%u.bytes: missing; say how much of %s to use", i,
                   disk->path[0] != '\0' ? disk->path : "it");
        else if (disk->capacity_bytes < SUPERBLOCK_BYTES + 2 * KVT_PAGE_BYTES)
            refuse(checks, "nvme.disks.%u.bytes: has no room for data; give at least 2MiB", i);
        for (uint32_t j = 0; j < i; j++) {
            if (strcmp(config->disks[j].path, disk->path) == 0)
                refuse(checks, "nvme.disks.%u.path: %s is named twice", i, disk->path);
        }
        least = KVT_MIN(least, disk->capacity_bytes);
    }
    if (checks->n_errors > 0)
        return;
    if (least - SUPERBLOCK_BYTES < config->nvme_slab_bytes) {
        config->nvme_slab_bytes = (least - SUPERBLOCK_BYTES) & ~(KVT_PAGE_BYTES - 1);
        kvt_bytes_format(config->nvme_slab_bytes, text);
        kvt_log(KVT_LOG_INFO, "NVMe slabs made smaller to fit the disk slab_bytes=%s", text);
    }
    for (uint32_t i = 0; i < config->n_disks; i++)
        n_slabs += daemon_disk_slabs(config, &config->disks[i]);
    if (n_slabs > SLABS_MAX)
        refuse(checks, "nvme.slab_bytes: the disks make more than %u slabs; raise it", SLABS_MAX);
}

static void nvme_resolve(struct daemon_config *config, struct checks *checks)
{
    bool short_form = config->nvme_path[0] != '\0';
    if (short_form && config->n_disks > 0) {
        refuse(checks, "nvme.path: given together with nvme.disks; keep one of them");
        return;
    }
    if (!short_form && config->nvme_bytes != 0)
        refuse(checks, "nvme.bytes: given without nvme.path; name a file or block device");
    if (short_form && config->nvme_bytes == 0) {
        refuse(checks, "nvme.bytes: missing; say how much of %s to use", config->nvme_path);
        return;
    }
    if (config->nvme_slab_bytes % KVT_PAGE_BYTES != 0)
        refuse(checks, "nvme.slab_bytes: must be a multiple of 4KiB");
    if (short_form) {
        memcpy(config->disks[0].path, config->nvme_path, sizeof(config->nvme_path));
        config->disks[0].capacity_bytes = config->nvme_bytes;
        config->n_disks = 1;
        /* One form from here on, so that what is printed reads back. */
        config->nvme_path[0] = '\0';
        config->nvme_bytes = 0;
    }
    if (config->n_disks == 0)
        return;
    disks_resolve(config, checks);
    if (config->nvme_meta_path[0] == '\0') {
        if (strncmp(config->disks[0].path, "/dev/", 5) == 0)
            refuse(checks, "nvme.meta_path: missing; a device has no folder beside it");
        else
            snprintf(config->nvme_meta_path, sizeof(config->nvme_meta_path), "%s.meta",
                     config->disks[0].path);
    }
}

unsigned daemon_config_resolve(struct daemon_config *config, const char *root,
                               kvt_config_error_fn error, void *arg)
{
    struct checks checks = {.error = error, .arg = arg};
    struct kvt_cgroup_limits limits;
    kvt_cgroup_limits(root, &limits);
    if (config->socket_path[0] == '\0')
        refuse(&checks, "socket.path: is empty; name where the socket is to be");
    if (config->lease_ttl_ns > config->lease_ttl_max_ns)
        refuse(&checks, "lease.ttl: is longer than lease.ttl_max");
    host_resolve(config, &limits, &checks);
    nvme_resolve(config, &checks);
    if (config->workers == 0)
        config->workers = KVT_MIN(kvt_cpus_usable(&limits), WORKERS_AUTO_MAX);
    /* Who spins on the only CPU keeps the client from running. */
    if (kvt_cpus_usable(&limits) < 2)
        config->spin_ns = 0;
    return checks.n_errors;
}

static char *file_read(const char *path, size_t *bytes_p, struct checks *checks)
{
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        refuse(checks, "%s: cannot open: %s; check --config", path, strerror(errno));
        return NULL;
    }
    char *text = malloc(FILE_BYTES_MAX);
    if (text != NULL)
        *bytes_p = fread(text, 1, FILE_BYTES_MAX, file);
    if (text == NULL || ferror(file)) {
        refuse(checks, "%s: cannot read: %s", path, strerror(errno));
        free(text);
        text = NULL;
    }
    fclose(file);
    return text;
}

unsigned daemon_config_load(struct daemon_config *config, const char *file,
                            const char *const *assignments, unsigned n_assignments,
                            kvt_config_error_fn error, void *arg)
{
    struct checks checks = {.error = error, .arg = arg};
    memset(config, 0, sizeof(*config));
    kvt_config_defaults(daemon_config_fields, config);
    if (file != NULL) {
        size_t bytes = 0;
        char *text = file_read(file, &bytes, &checks);
        if (text != NULL)
            checks.n_errors +=
                kvt_config_yaml(daemon_config_fields, config, text, bytes, file, error, arg);
        free(text);
    }
    for (unsigned i = 0; i < n_assignments; i++)
        checks.n_errors += kvt_config_set(daemon_config_fields, config, assignments[i], error, arg);
    kvt_log_setup((enum kvt_log_level)config->log_level, (enum kvt_log_format)config->log_format);
    return checks.n_errors + daemon_config_resolve(config, "", error, arg);
}
