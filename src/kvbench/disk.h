/* SPDX-License-Identifier: Apache-2.0 */
/* The disk as it is: O_DIRECT through io_uring on a file beside the store, nothing else. */
#ifndef KVT_KVBENCH_DISK_H
#define KVT_KVBENCH_DISK_H

#include <stdbool.h>
#include <stdint.h>

#include "kvt/status.h"

struct kvt_disk;

/** Makes a file of `bytes` in dir, all of it written once. Removed by close (it has no name). */
enum kvt_status kvt_disk_open(const char *dir, uint64_t bytes, struct kvt_disk **disk_p,
                              struct kvt_error *err) KVT_MUST_CHECK;
void kvt_disk_close(struct kvt_disk *disk); /* NULL is allowed */

/**
 * How a reference is taken; the best of several stands for the disk. Each transfer has other memory
 * than the ones before it, until all of it was used: a cache keeps what it reads, and a few buffers
 * used over and over stay in the CPU's cache, which made virtual disks up to a tenth faster.
 */
struct kvt_disk_way {
    uint64_t object_bytes;
    uint64_t memory_bytes; /* of the buffers; holds more objects than are in flight */
    uint32_t depth;
    bool huge; /* buffers in pages of 2 MiB */
};

/** Prepare for transfers of this kind. KVT_ERR_NOTSUP: no such pages here, or no io_uring. */
enum kvt_status kvt_disk_prepare(struct kvt_disk *disk, const struct kvt_disk_way *way,
                                 struct kvt_error *err) KVT_MUST_CHECK;
/** Whether the buffers of the last prepare are registered: beyond RLIMIT_MEMLOCK they are not. */
bool kvt_disk_is_registered(const struct kvt_disk *disk);
/** Transfer n objects, going on where the last call stopped. */
enum kvt_status kvt_disk_run(struct kvt_disk *disk, bool write, uint32_t n, uint64_t *ns_p,
                             struct kvt_error *err) KVT_MUST_CHECK;

#endif
