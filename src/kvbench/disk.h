/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The disk as it is: O_DIRECT through io_uring and nothing else, on the blocks of a store file. On
 * virtual disks one file is a tenth faster than the next, for as long as it exists, so only the
 * same blocks compare. They keep their bytes: what is written is what was read there before.
 */
#ifndef KVT_KVBENCH_DISK_H
#define KVT_KVBENCH_DISK_H

#include <stdbool.h>
#include <stdint.h>

#include "kvt/status.h"
#include "kvt/util.h"

struct kvt_disk;

/**
 * @param store  Store file of an agent that holds nothing yet, and does nothing while a transfer of
 *               ours runs; all of it is written once. NULL: its blocks are not to be had, a file of
 *               the same size is made in dir, without a name, and removed by close.
 */
enum kvt_status kvt_disk_open(const char *store, const char *dir, uint64_t bytes,
                              struct kvt_disk **disk_p, struct kvt_error *err) KVT_MUST_CHECK;
void kvt_disk_close(struct kvt_disk *disk); /* NULL is allowed */

/**
 * How a reference is taken; the best of several stands for the disk. Each transfer of a run has
 * memory of its own: a cache keeps what it reads, and a few buffers used over and over stay in the
 * CPU's cache, which made virtual disks up to a tenth faster.
 */
struct kvt_disk_way {
    uint64_t object_bytes;
    uint32_t n;     /* transfers of a run */
    uint32_t depth; /* of these at the same time */
    bool huge;      /* buffers in pages of 2 MiB */
};

/** Prepare for transfers of this kind. KVT_ERR_NOTSUP: no such pages here, or no io_uring. */
enum kvt_status kvt_disk_prepare(struct kvt_disk *disk, const struct kvt_disk_way *way,
                                 struct kvt_error *err) KVT_MUST_CHECK;
/** Whether the buffers of the last prepare are registered: beyond RLIMIT_MEMLOCK they are not. */
bool kvt_disk_is_registered(const struct kvt_disk *disk);
/*
 * Where the objects of a run lie: in rows of neighbours that are spread over all there is, and in
 * another place in each run. Parts of a file differ as files do, and every run is to meet them all.
 */
static inline uint64_t kvt_spread_row(uint64_t object_bytes)
{
    return KVT_MAX((UINT64_C(16) << 20) / object_bytes, UINT64_C(1));
}

/** Row k of the n_rows of a run, of n_all that there are. */
static inline uint64_t kvt_spread(uint64_t k, uint64_t n_rows, uint64_t run, uint64_t n_all)
{
    return (k * n_all / n_rows + run) % n_all;
}

/**
 * One run; the next one goes elsewhere.
 *
 * @param copy  NULL, or memory of a run's size to which another thread copies its bytes meanwhile,
 *              each object when its write begins or when a read ended: what the disk does beside a
 *              core that uses memory, as a cache's client must.
 */
enum kvt_status kvt_disk_run(struct kvt_disk *disk, bool write, void *copy, uint64_t *ns_p,
                             struct kvt_error *err) KVT_MUST_CHECK;

#endif
