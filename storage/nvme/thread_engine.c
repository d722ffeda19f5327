/* SPDX-License-Identifier: Apache-2.0 */
/* Where io_uring is refused: each transfer is a job of a worker, from the first byte to the check.
 */
#include <errno.h>
#include <unistd.h>

#include "nvme_internal.h"

#define RETRIES_MAX 16 /* of a transfer that is interrupted or refused for now */

static enum kvt_status bytes_move(const struct nvme_xfer *xfer, void *memory, uint64_t bytes,
                                  uint64_t offset)
{
    int fd = xfer->tier->files.fds[xfer->disk];
    uint64_t at = 0;
    for (unsigned n_retries = 0; at < bytes;) {
        char *addr = (char *)memory + at;
        off_t from = (off_t)(offset + at);
        ssize_t n = xfer->io->type == KVT_IO_READ ? pread(fd, addr, bytes - at, from)
                                                  : pwrite(fd, addr, bytes - at, from);
        if (n < 0) {
            if ((errno == EINTR || errno == EAGAIN) && n_retries++ < RETRIES_MAX)
                continue;
            return errno == ENOSPC ? KVT_ERR_NOSPACE : KVT_ERR_IO;
        }
        /* O_DIRECT goes on at whole pages only; no progress is the end of the file. */
        if ((n & ~(ssize_t)(KVT_PAGE_BYTES - 1)) == 0)
            return KVT_ERR_IO;
        at += (uint64_t)n & ~(KVT_PAGE_BYTES - 1);
    }
    return KVT_OK;
}

static enum kvt_status xfer_move(struct nvme_xfer *xfer)
{
    const struct kvt_io *io = xfer->io;
    enum kvt_status status = bytes_move(xfer, xfer->chunk, io->slot_bytes, xfer->chunk_offset);
    if (status != KVT_OK || io->chunk_only)
        return status;
    return bytes_move(xfer, io->header, KVT_SLOT_HEADER_BYTES, xfer->header_offset);
}

static void transfer_run(struct kvt_job *job)
{
    struct nvme_xfer *xfer = kvt_container_of(job, struct nvme_xfer, job);
    xfer->status = xfer_move(xfer);
    if (xfer->status == KVT_OK && xfer->io->type == KVT_IO_READ)
        xfer->status = nvme_verify(xfer);
    nvme_checked(xfer);
}

static void threads_start(struct nvme_tier *tier, struct nvme_xfer *xfer)
{
    xfer->job.run = transfer_run;
    bool queued = kvt_workers_submit(tier->workers, &xfer->job);
    KVT_ASSERT(queued);
}

static void threads_nothing(struct nvme_tier *tier)
{
    (void)tier; /* workers start at once, end by themselves, and are waited for when destroyed */
}

static bool threads_register(struct nvme_tier *tier, uint32_t slab, void *addr, uint64_t bytes)
{
    (void)tier, (void)slab, (void)addr, (void)bytes;
    return false;
}

const struct nvme_engine nvme_engine_threads = {
    .close = threads_nothing,
    .start = threads_start,
    .flush = threads_nothing,
    .reap = threads_nothing,
    .register_slab = threads_register,
};
