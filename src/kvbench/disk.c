/* SPDX-License-Identifier: Apache-2.0 */
#include "disk.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kvt/util.h"
#include "scratch.h"

#define FILL_BYTES (UINT64_C(8) << 20)

struct kvt_disk {
    int fd;
    uint64_t bytes;
    uint64_t next; /* offset of the next transfer */
    struct kvt_disk_way way;
    uint64_t n_buffers, next_buffer;
    bool *is_used;               /* of each buffer: a transfer is under way */
    struct kvt_scratch *scratch; /* NULL: not prepared */
    bool is_registered;          /* its memory, with the ring */
    struct io_uring ring;
};

static enum kvt_status disk_error(struct kvt_error *err, const char *what, int number)
{
    return kvt_error_set(err, kvt_status_from_errno(number), "disk reference: %s: %s", what,
                         strerror(number));
}

enum kvt_status kvt_disk_open(const char *dir, uint64_t bytes, struct kvt_disk **disk_p,
                              struct kvt_error *err)
{
    struct kvt_disk *d = calloc(1, sizeof(*d));
    if (d == NULL)
        return kvt_error_set(err, KVT_ERR_NOMEM, "disk reference: out of memory");
    d->bytes = bytes;
    d->fd = open(dir, O_TMPFILE | O_RDWR | O_DIRECT | O_CLOEXEC, 0600);
    enum kvt_status status = KVT_OK;
    if (d->fd < 0) {
        status = disk_error(err, dir, errno);
        free(d);
        return status;
    }
    int failed = posix_fallocate(d->fd, 0, (off_t)bytes);
    if (failed != 0) {
        status = disk_error(err, "allocate a file", failed);
        goto err_close;
    }
    /* Blocks that were never written read as zeros without the disk. */
    struct kvt_disk_way way = {
        .object_bytes = FILL_BYTES, .memory_bytes = 8 * FILL_BYTES, .depth = 4, .huge = true};
    status = kvt_disk_prepare(d, &way, err);
    uint64_t ns;
    if (status == KVT_OK)
        status = kvt_disk_run(d, true, (uint32_t)(bytes / FILL_BYTES), &ns, err);
    if (status != KVT_OK)
        goto err_close;
    *disk_p = d;
    return KVT_OK;
err_close:
    kvt_disk_close(d);
    return status;
}

static void disk_unprepare(struct kvt_disk *d)
{
    free(d->is_used);
    d->is_used = NULL;
    if (d->scratch == NULL)
        return;
    io_uring_queue_exit(&d->ring);
    kvt_scratch_close(d->scratch);
    d->scratch = NULL;
}

void kvt_disk_close(struct kvt_disk *d)
{
    if (d == NULL)
        return;
    disk_unprepare(d);
    close(d->fd);
    free(d);
}

enum kvt_status kvt_disk_prepare(struct kvt_disk *d, const struct kvt_disk_way *way,
                                 struct kvt_error *err)
{
    disk_unprepare(d);
    struct kvt_scratch *scratch;
    d->n_buffers = way->memory_bytes / way->object_bytes;
    d->is_used = calloc(d->n_buffers, sizeof(*d->is_used));
    if (d->is_used == NULL)
        return kvt_error_set(err, KVT_ERR_NOMEM, "disk reference: out of memory");
    enum kvt_status status = kvt_scratch_open(way->memory_bytes, way->huge, &scratch, err);
    if (status != KVT_OK)
        return status;
    int failed = -io_uring_queue_init(way->depth, &d->ring, 0);
    if (failed != 0) {
        kvt_scratch_close(scratch);
        return kvt_error_set(err, KVT_ERR_NOTSUP, "disk reference: io_uring: %s", strerror(failed));
    }
    d->scratch = scratch;
    d->way = *way;
    d->next = d->next_buffer = 0;
    struct iovec buffer = {.iov_base = scratch->memory, .iov_len = scratch->bytes};
    /* Refused beyond RLIMIT_MEMLOCK, to the agent as well: then this is what the disk can do here.
     */
    d->is_registered = io_uring_register_buffers(&d->ring, &buffer, 1) == 0;
    failed = -io_uring_register_files(&d->ring, &d->fd, 1);
    if (failed != 0) {
        disk_unprepare(d);
        return disk_error(err, "register files", failed);
    }
    return KVT_OK;
}

bool kvt_disk_is_registered(const struct kvt_disk *d)
{
    return d->is_registered;
}

static void disk_queue(struct kvt_disk *d, bool write)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&d->ring); /* as many as are in flight */
    while (d->is_used[d->next_buffer])
        d->next_buffer = (d->next_buffer + 1) % d->n_buffers;
    uint64_t buffer = d->next_buffer;
    d->is_used[buffer] = true;
    d->next_buffer = (buffer + 1) % d->n_buffers;
    uint8_t *memory = d->scratch->memory + buffer * d->way.object_bytes;
    if (d->next + d->way.object_bytes > d->bytes)
        d->next = 0;
    unsigned bytes = (unsigned)d->way.object_bytes;
    if (d->is_registered && write)
        io_uring_prep_write_fixed(sqe, 0, memory, bytes, d->next, 0);
    else if (d->is_registered)
        io_uring_prep_read_fixed(sqe, 0, memory, bytes, d->next, 0);
    else if (write)
        io_uring_prep_write(sqe, 0, memory, bytes, d->next);
    else
        io_uring_prep_read(sqe, 0, memory, bytes, d->next);
    sqe->flags |= IOSQE_FIXED_FILE;
    io_uring_sqe_set_data64(sqe, buffer);
    d->next += d->way.object_bytes;
}

enum kvt_status kvt_disk_run(struct kvt_disk *d, bool write, uint32_t n, uint64_t *ns_p,
                             struct kvt_error *err)
{
    uint64_t start_ns = kvt_now_ns();
    uint32_t n_queued = 0, n_done = 0;
    enum kvt_status status = KVT_OK;
    for (; n_queued < KVT_MIN(n, d->way.depth); n_queued++)
        disk_queue(d, write);
    while (n_done < n_queued) {
        int submitted = io_uring_submit_and_wait(&d->ring, 1);
        if (submitted < 0 && submitted != -EINTR)
            return disk_error(err, "submit", -submitted);
        struct io_uring_cqe *cqe;
        while (io_uring_peek_cqe(&d->ring, &cqe) == 0) {
            int moved = cqe->res;
            d->is_used[cqe->user_data] = false;
            io_uring_cqe_seen(&d->ring, cqe);
            n_done++;
            if (moved < 0 || (uint64_t)moved != d->way.object_bytes) {
                status = disk_error(err, write ? "write" : "read", moved < 0 ? -moved : EIO);
                n = n_queued; /* what is in flight still comes */
            }
            if (n_queued < n) {
                disk_queue(d, write);
                n_queued++;
            }
        }
    }
    *ns_p = kvt_now_ns() - start_ns;
    return status;
}
