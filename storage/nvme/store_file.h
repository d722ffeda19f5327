/* SPDX-License-Identifier: Apache-2.0 */
/* The files or devices that slots lie in: opened, locked, recognised, preallocated. */
#ifndef KVT_STORE_FILE_H
#define KVT_STORE_FILE_H

#include "kvt/nvme_tier.h"

#define STORE_DATA_OFFSET (UINT64_C(1) << 20) /* of the first slab */

struct store_files {
    unsigned n_disks;
    int fds[KVT_DISKS_MAX];             /* -1: not open */
    int lock_fds[KVT_DISKS_MAX];        /* likewise; hold the lock on the file */
    uint32_t first_slab[KVT_DISKS_MAX]; /* slabs are numbered through */
    uint32_t n_slabs[KVT_DISKS_MAX];
    uint32_t n_slabs_all;
};

/** As kvt_nvme_tier_open() says. On an error nothing is open. */
enum kvt_status store_files_open(const struct kvt_nvme_config *config, uint8_t store_id[16],
                                 struct store_files *files, struct kvt_error *err) KVT_MUST_CHECK;
void store_files_close(struct store_files *files);

#endif
