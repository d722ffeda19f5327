/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon_config.h"

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

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
    KVT_FIELD(STR, CONFIG, control_path, "control.path", KVT_CONFIG_AUTO, 0, 0,
              "unix socket of the control API; auto: beside socket.path; empty: none"),
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
    KVT_FIELD(U32, CONFIG, nvme_queue_depth, "nvme.queue_depth", "256", 1, 4096,
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
    KVT_FIELD(
        U32, CONFIG, index_chunks_max, "index.chunks_max", "16777216", 1024, UINT32_C(1) << 30,
        "most chunks held in all tiers; memory: 11 to 21 bytes of each that they have room for at "
        "the start, the rest as they come"),
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
    KVT_FIELD(STR, CONFIG, metrics_listen, "metrics.listen", "127.0.0.1:9455", 0, 0,
              "address and port of /metrics, /healthz and /readyz over HTTP; empty: none"),
    {0},
};

/* What a running agent can take over; agent_tune() hands it on. */
static const char *const reloadable[] = {
    "nvme.admission",
    "nvme.read_inflight_bytes",
    "nvme.write_inflight_bytes",
    "nvme.scrub_bytes_per_s",
    "lease.ttl",
    "lease.ttl_max",
    "cpu.spin",
    "shutdown.drain_timeout",
    "log.level",
    "log.format",
};

bool daemon_config_reloadable(const struct kvt_config_field *field)
{
    for (unsigned i = 0; i < KVT_ARRAY_LEN(reloadable); i++) {
        if (strcmp(field->key, reloadable[i]) == 0)
            return true;
    }
    return false;
}

struct checks {
    const struct kvt_config_sources *sources;
    kvt_config_error_fn error;
    void *arg;
    unsigned n_errors;
};

/* Report a fault of the key, with the place where it was given; if it was not, where `near` was. */
__attribute__((format(printf, 4, 5))) static void refuse(struct checks *checks, const char *key,
                                                         const char *near, const char *format, ...)
{
    char msg[1024];
    char source[KVT_CONFIG_SOURCE_TEXT];
    va_list ap;
    if (kvt_config_source_refused(daemon_config_fields, checks->sources, key))
        return; /* it was told already */
    kvt_config_source_text(daemon_config_fields, checks->sources, key, source);
    if (strcmp(source, "default") == 0 && near != NULL)
        kvt_config_source_text(daemon_config_fields, checks->sources, near, source);
    bool given = strcmp(source, "default") != 0;
    int n = snprintf(msg, sizeof(msg), "%s%s%s: ", given ? source : "", given ? ": " : "", key);
    if (n < 0 || (size_t)n >= sizeof(msg))
        n = 0;
    va_start(ap, format);
    vsnprintf(msg + n, sizeof(msg) - (size_t)n, format, ap);
    va_end(ap);
    checks->n_errors++;
    checks->error(checks->arg, msg);
}

bool daemon_address_parse(const char *text, struct sockaddr_storage *address_p)
{
    struct sockaddr_in *v4 = (struct sockaddr_in *)(void *)address_p;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)(void *)address_p;
    char host[64];
    uint64_t port;
    const char *colon = strrchr(text, ':');
    if (colon == NULL || (size_t)(colon - text) >= sizeof(host) ||
        !kvt_number_parse(colon + 1, &port) || port > UINT16_MAX)
        return false;
    bool bracketed = *text == '[' && colon[-1] == ']';
    snprintf(host, sizeof(host), "%.*s", (int)(colon - text) - (bracketed ? 2 : 0),
             text + (bracketed ? 1 : 0));
    memset(address_p, 0, sizeof(*address_p));
    if (bracketed && inet_pton(AF_INET6, host, &v6->sin6_addr) == 1) {
        v6->sin6_family = AF_INET6;
        v6->sin6_port = htons((uint16_t)port);
        return true;
    }
    if (bracketed || inet_pton(AF_INET, host, &v4->sin_addr) != 1)
        return false;
    v4->sin_family = AF_INET;
    v4->sin_port = htons((uint16_t)port);
    return true;
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
        refuse(checks, "host.slab_bytes", NULL, "%s is not a multiple of 2MiB", was);
        return;
    }
    if (!by_user)
        config->host_bytes = KVT_MAX(kvt_memory_usable(limits) / 4, HUGE_BYTES);
    kvt_bytes_format(config->host_bytes, was);
    if (config->host_bytes > kvt_memory_usable(limits)) {
        kvt_bytes_format(kvt_memory_usable(limits) & ~(KVT_MIB - 1), now);
        refuse(checks, "host.bytes", NULL,
               "%s is more than the %s that the machine or its cgroup has; leave some to others",
               was, now);
        return;
    }
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
        refuse(checks, "host.slab_bytes", NULL, "%s make more than %u slabs; raise it", was,
               SLABS_MAX);
}

/* Bytes that could be had at path if everything else there went away; UINT64_MAX: unknown. */
static uint64_t disk_room(const char *path)
{
    char folder[sizeof(((struct kvt_disk_config *)0)->path)];
    struct statvfs fs;
    struct stat st;
    snprintf(folder, sizeof(folder), "%s", path);
    char *slash = strrchr(folder, '/');
    if (slash != NULL)
        slash[slash == folder] = '\0';
    bool is_device = stat(path, &st) == 0 && S_ISBLK(st.st_mode);
    if (is_device || statvfs(slash != NULL ? folder : ".", &fs) != 0 || fs.f_blocks == 0)
        return UINT64_MAX; /* what opens it will say */
    return (uint64_t)fs.f_blocks * fs.f_frsize;
}

static void disk_check(const struct daemon_config *config, uint32_t i, struct checks *checks)
{
    const struct kvt_disk_config *disk = &config->disks[i];
    char path_key[64];
    char bytes_key[64];
    char wanted[KVT_UNITS_TEXT_BYTES];
    char room[KVT_UNITS_TEXT_BYTES];
    snprintf(path_key, sizeof(path_key), "nvme.disks.%u.path", i);
    snprintf(bytes_key, sizeof(bytes_key), "nvme.disks.%u.bytes", i);
    if (disk->path[0] == '\0')
        refuse(checks, path_key, bytes_key, "missing; name a file or block device");
    if (disk->capacity_bytes == 0)
        refuse(checks, bytes_key, path_key, "missing; say how much of %s to use",
               disk->path[0] != '\0' ? disk->path : "it");
    else if (disk->capacity_bytes < SUPERBLOCK_BYTES + 2 * KVT_PAGE_BYTES)
        refuse(checks, bytes_key, NULL, "has no room for data; give at least 2MiB");
    else if (disk->path[0] != '\0' && disk->capacity_bytes > disk_room(disk->path)) {
        kvt_bytes_format(disk->capacity_bytes, wanted);
        kvt_bytes_format(disk_room(disk->path) & ~(KVT_MIB - 1), room);
        refuse(checks, bytes_key, NULL, "%s is more than the %s of the file system of %s; lower it",
               wanted, room, disk->path);
    }
    for (uint32_t j = 0; j < i && disk->path[0] != '\0'; j++) {
        if (strcmp(config->disks[j].path, disk->path) == 0)
            refuse(checks, path_key, NULL, "%s is named twice", disk->path);
    }
}

static void disks_resolve(struct daemon_config *config, struct checks *checks)
{
    uint64_t least = UINT64_MAX;
    uint64_t n_slabs = 0;
    char text[KVT_UNITS_TEXT_BYTES];
    unsigned n_before = checks->n_errors;
    for (uint32_t i = 0; i < config->n_disks; i++) {
        disk_check(config, i, checks);
        least = KVT_MIN(least, config->disks[i].capacity_bytes);
    }
    if (checks->n_errors > n_before)
        return;
    if (least - SUPERBLOCK_BYTES < config->nvme_slab_bytes) {
        config->nvme_slab_bytes = (least - SUPERBLOCK_BYTES) & ~(KVT_PAGE_BYTES - 1);
        kvt_bytes_format(config->nvme_slab_bytes, text);
        kvt_log(KVT_LOG_INFO, "NVMe slabs made smaller to fit the disk slab_bytes=%s", text);
    }
    for (uint32_t i = 0; i < config->n_disks; i++)
        n_slabs += daemon_disk_slabs(config, &config->disks[i]);
    if (n_slabs > SLABS_MAX)
        refuse(checks, "nvme.slab_bytes", NULL, "the disks make more than %u slabs; raise it",
               SLABS_MAX);
}

/* One form from here on, so that what is printed reads back. */
static void short_form_resolve(struct daemon_config *config, struct kvt_config_sources *sources)
{
    memcpy(config->disks[0].path, config->nvme_path, sizeof(config->nvme_path));
    config->disks[0].capacity_bytes = config->nvme_bytes;
    config->n_disks = 1;
    config->nvme_path[0] = '\0';
    config->nvme_bytes = 0;
    kvt_config_source_move(daemon_config_fields, sources, "nvme.path", "nvme.disks.0.path");
    kvt_config_source_move(daemon_config_fields, sources, "nvme.bytes", "nvme.disks.0.bytes");
}

static void nvme_resolve(struct daemon_config *config, struct kvt_config_sources *sources,
                         struct checks *checks)
{
    bool short_form = config->nvme_path[0] != '\0';
    if (config->nvme_slab_bytes % KVT_PAGE_BYTES != 0) {
        refuse(checks, "nvme.slab_bytes", NULL, "must be a multiple of 4KiB");
        return;
    }
    if (short_form && config->n_disks > 0) {
        refuse(checks, "nvme.path", NULL, "given together with nvme.disks; keep one of them");
        return;
    }
    if (!short_form && config->nvme_bytes != 0)
        refuse(checks, "nvme.bytes", NULL, "given without nvme.path; name a file or block device");
    if (short_form && config->nvme_bytes == 0) {
        refuse(checks, "nvme.bytes", "nvme.path", "missing; say how much of %s to use",
               config->nvme_path);
        return;
    }
    if (short_form)
        short_form_resolve(config, sources);
    if (config->n_disks == 0)
        return;
    disks_resolve(config, checks);
    if (config->nvme_meta_path[0] != '\0')
        return;
    if (strncmp(config->disks[0].path, "/dev/", 5) == 0)
        refuse(checks, "nvme.meta_path", "nvme.disks.0.path",
               "missing; a device has no folder beside it");
    else
        snprintf(config->nvme_meta_path, sizeof(config->nvme_meta_path), "%s.meta",
                 config->disks[0].path);
}

/* Clients derive the control socket's place from that of the sessions' in the same way. */
static void control_resolve(struct daemon_config *config, struct checks *checks)
{
    static const char end[] = ".sock";
    if (strcmp(config->control_path, KVT_CONFIG_AUTO) == 0) {
        size_t n = strlen(config->socket_path);
        if (n >= sizeof(end) && strcmp(config->socket_path + n - strlen(end), end) == 0)
            n -= strlen(end);
        int wanted = snprintf(config->control_path, sizeof(config->control_path),
                              "%.*s.control.sock", (int)n, config->socket_path);
        if (wanted >= (int)sizeof(config->control_path))
            refuse(checks, "control.path", "socket.path",
                   "would be too long beside socket.path; name a shorter one, or \"\" for none");
    }
    if (config->control_path[0] != '\0' && strcmp(config->control_path, config->socket_path) == 0)
        refuse(checks, "control.path", NULL, "is the same as socket.path; name another");
}

static void lease_check(const struct daemon_config *config, struct checks *checks)
{
    char ttl[KVT_UNITS_TEXT_BYTES], max[KVT_UNITS_TEXT_BYTES];
    if (config->lease_ttl_ns <= config->lease_ttl_max_ns)
        return;
    kvt_time_format(config->lease_ttl_ns, ttl);
    kvt_time_format(config->lease_ttl_max_ns, max);
    refuse(checks, "lease.ttl", "lease.ttl_max",
           "%s is longer than the %s of lease.ttl_max; lower it, or raise that", ttl, max);
}

unsigned daemon_config_resolve(struct daemon_config *config, struct kvt_config_sources *sources,
                               const char *root, kvt_config_error_fn error, void *arg)
{
    struct checks checks = {.sources = sources, .error = error, .arg = arg};
    struct kvt_cgroup_limits limits;
    struct sockaddr_storage address;
    kvt_cgroup_limits(root, &limits);
    if (config->socket_path[0] == '\0')
        refuse(&checks, "socket.path", NULL, "is empty; name where the socket is to be");
    control_resolve(config, &checks);
    lease_check(config, &checks);
    if (config->metrics_listen[0] != '\0' &&
        !daemon_address_parse(config->metrics_listen, &address))
        refuse(&checks, "metrics.listen", NULL,
               "\"%s\" is no address; give one like 127.0.0.1:9455 or [::1]:9455, or \"\" for none",
               config->metrics_listen);
    host_resolve(config, &limits, &checks);
    nvme_resolve(config, sources, &checks);
    if (config->workers == 0)
        config->workers = KVT_MIN(kvt_cpus_usable(&limits), WORKERS_AUTO_MAX);
    /* Who spins on the only CPU keeps the client from running. */
    if (kvt_cpus_usable(&limits) < 2)
        config->spin_ns = 0;
    return checks.n_errors;
}

/* NULL: it cannot be read, which was reported. */
static char *file_read(const char *path, size_t *bytes_p, kvt_config_error_fn error, void *arg)
{
    char msg[512];
    FILE *file = fopen(path, "re");
    char *text = NULL;
    if (file != NULL)
        text = malloc(FILE_BYTES_MAX);
    if (text != NULL)
        *bytes_p = fread(text, 1, FILE_BYTES_MAX, file);
    if (text == NULL || ferror(file)) {
        snprintf(msg, sizeof(msg), "%.256s: cannot be read: %s; check --config", path,
                 strerror(errno));
        error(arg, msg);
        free(text);
        text = NULL;
    }
    if (file != NULL)
        fclose(file);
    return text;
}

unsigned daemon_config_read(struct daemon_config *config, struct kvt_config_sources *sources,
                            const struct daemon_config_input *input, kvt_config_error_fn error,
                            void *arg)
{
    unsigned n_errors = 0;
    memset(config, 0, sizeof(*config));
    memset(sources, 0, sizeof(*sources));
    kvt_config_defaults(daemon_config_fields, config);
    if (input->file != NULL) {
        size_t bytes = 0;
        char *text = file_read(input->file, &bytes, error, arg);
        if (text == NULL)
            n_errors++;
        else
            n_errors += kvt_config_yaml(daemon_config_fields, config, text, bytes, input->file,
                                        sources, error, arg);
        free(text);
    }
    if (input->environment != NULL)
        n_errors += kvt_config_environment(daemon_config_fields, config, DAEMON_ENVIRONMENT,
                                           input->environment, sources, error, arg);
    for (unsigned i = 0; i < input->n_sets; i++)
        n_errors += kvt_config_set(daemon_config_fields, config, input->sets[i],
                                   KVT_CONFIG_ARGUMENT, sources, error, arg);
    return n_errors;
}

static void variable_unknown(void *arg, const char *name)
{
    (void)arg;
    /* Clients read these, and share the prefix. */
    if (strcmp(name, "KVTIER_SOCKET") != 0 && strcmp(name, "KVTIER_CONTROL") != 0)
        kvt_log(KVT_LOG_WARN, "environment variable names no key; see kvtierd --keys name=%s",
                name);
}

void daemon_environment_check(const char *const *variables)
{
    kvt_config_environment_unknown(daemon_config_fields, DAEMON_ENVIRONMENT, variables,
                                   variable_unknown, NULL);
}
