/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KVT_NVME_TIER_H
#define KVT_NVME_TIER_H

#include "kvt/tier.h"

#define KVT_DISKS_MAX 16

enum kvt_io_engine { KVT_IO_AUTO, KVT_IO_URING, KVT_IO_THREADS };

struct kvt_disk_config {
    char path[256];          /* a file (made and preallocated) or a raw block device */
    uint64_t capacity_bytes; /* hard cap, superblock included; rounded down to whole slabs */
};

/* Bytes at the disks at once; reached, no further piece is asked for. For io_uring alone. */
struct kvt_nvme_limits {
    uint64_t read_bytes_max;
    uint64_t write_bytes_max;
};

struct kvt_nvme_config {
    struct kvt_disk_config disks[KVT_DISKS_MAX];
    unsigned n_disks;
    uint64_t slab_bytes; /* of slots with their headers; multiple of 4096 */
    enum kvt_io_engine engine;
    /* At the disks at once. submit() takes twice as many transfers: what waits is there when the
     * disks end what they have, before anybody was asked for more. */
    unsigned queue_depth;
    struct kvt_nvme_limits limits;
    unsigned n_workers; /* threads that verify (and transfer, without io_uring) */
    void *header_pool;  /* the core's header pages, registered once */
    uint64_t header_pool_bytes;
};

/**
 * Open the store files: O_DIRECT, exclusively locked, a superblock at offset 0 (magic, version,
 * store id, disk number, slab size), slabs from 1 MiB on. Files that do not exist are made with a
 * new store id. Slabs are numbered through all disks in order.
 *
 * Registration of arena memory is the caller's: kvt_nvme_tier_register() per host slab, from any
 * one thread; what is not registered is transferred all the same, slower.
 *
 * @param store_id  In: the id that the metadata names, or all zero when there is none.
 *                  Out: the id of the files. When they differ, the caller must not use old
 * metadata.
 * @return KVT_OK; KVT_ERR_VERSION (file of another version or slab size), KVT_ERR_CORRUPT (bad
 *         superblock), KVT_ERR_NOSPACE (cannot preallocate), KVT_ERR_BUSY (locked by another
 *         agent), KVT_ERR_IO, KVT_ERR_NOMEM; err names the file, the cause and the next step.
 *         A file that is refused is left as it is.
 */
enum kvt_status kvt_nvme_tier_open(const struct kvt_nvme_config *config, struct kvt_tier *host,
                                   uint8_t store_id[16], struct kvt_tier **tier_p,
                                   struct kvt_error *err) KVT_MUST_CHECK;

/** Register a slab of the host tier as a fixed buffer; false: could not, goes on unregistered. */
bool kvt_nvme_tier_register(struct kvt_tier *tier, uint32_t arena_slab, uint64_t arena_offset,
                            uint64_t slab_bytes);
/** From the next piece on. The thread that submits and polls. */
void kvt_nvme_tier_limit(struct kvt_tier *tier, const struct kvt_nvme_limits *limits);

#endif
