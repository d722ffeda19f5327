/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KVT_DAEMON_CONFIG_H
#define KVT_DAEMON_CONFIG_H

#include <stdbool.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "kvt/config.h"
#include "kvt/core.h"
#include "kvt/host_tier.h"
#include "kvt/nvme_tier.h"

struct daemon_config {
    char socket_path[sizeof(((struct sockaddr_un *)0)->sun_path)];
    uint32_t socket_mode;
    char control_path[sizeof(((struct sockaddr_un *)0)->sun_path)]; /* empty: none */
    uint64_t host_bytes; /* 0 until resolved: a share of what there is */
    uint64_t host_slab_bytes;
    uint32_t host_huge_pages; /* enum kvt_huge_pages */
    uint32_t host_policy;     /* index into the names of the field */
    struct kvt_disk_config disks[KVT_DISKS_MAX];
    uint32_t n_disks;                                            /* 0: no NVMe tier */
    char nvme_path[sizeof(((struct kvt_disk_config *)0)->path)]; /* shorthand for one disk */
    uint64_t nvme_bytes;
    uint64_t nvme_slab_bytes;
    uint32_t nvme_engine; /* enum kvt_io_engine */
    uint32_t nvme_queue_depth;
    uint32_t nvme_policy;
    uint32_t nvme_admission; /* enum kvt_admission */
    char nvme_meta_path[sizeof(((struct kvt_disk_config *)0)->path) + 8];
    uint64_t nvme_read_inflight_bytes;
    uint64_t nvme_write_inflight_bytes;
    uint64_t nvme_scrub_bytes_per_s;
    bool nvme_required;
    uint32_t index_chunks_max;
    uint32_t index_seed; /* 0: another at every start */
    uint64_t lease_ttl_ns;
    uint64_t lease_ttl_max_ns;
    uint32_t sessions_max;
    uint32_t sessions_ops_max;
    uint32_t workers; /* 0 until resolved: by CPU quota */
    uint64_t spin_ns;
    uint64_t drain_timeout_ns;
    uint32_t log_level;  /* enum kvt_log_level */
    uint32_t log_format; /* enum kvt_log_format */
    char metrics_listen[64];
};

#define DAEMON_ENVIRONMENT "KVTIER_" /* before the keys in names of the environment */

extern const struct kvt_config_field daemon_config_fields[];

/* What a config is made from, in rising order of weight. Borrowed. */
struct daemon_config_input {
    const char *file;               /* NULL: none */
    const char *const *environment; /* "NAME=VALUE", NULL at the end; NULL: none */
    const char *const *sets;        /* "key=value" */
    unsigned n_sets;
};

/** Defaults, then the file, the environment and the assignments. Every fault is reported.
 * @return the number of faults. */
unsigned daemon_config_read(struct daemon_config *config, struct kvt_config_sources *sources,
                            const struct daemon_config_input *input, kvt_config_error_fn error,
                            void *arg);

/* Log the variables of the environment that look like keys and are none. */
void daemon_environment_check(const char *const *variables);

/**
 * The checks across keys, against the machine too; what is left to the agent ("auto") becomes a
 * number. Every fault is reported, with the place where the key was given.
 *
 * @param root  See kvt_cgroup_limits().
 * @return the number of faults; 0: config is complete.
 */
unsigned daemon_config_resolve(struct daemon_config *config, struct kvt_config_sources *sources,
                               const char *root, kvt_config_error_fn error, void *arg);

/* Whether a changed value can take effect while the agent runs. */
bool daemon_config_reloadable(const struct kvt_config_field *field);

/** "127.0.0.1:9455", "[::1]:9455"; port 0: any. False: neither. */
bool daemon_address_parse(const char *text, struct sockaddr_storage *address_p);

/* Whole slabs that a disk has room for. */
uint64_t daemon_disk_slabs(const struct daemon_config *config, const struct kvt_disk_config *disk);

const struct kvt_policy_ops *daemon_policy(uint32_t choice);

#endif
