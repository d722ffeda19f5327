/* SPDX-License-Identifier: Apache-2.0 */
#include "disk.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kvt/util.h"
#include "scratch.h"

#define FILL_BYTES  (UINT64_C(8) << 20)
#define STORE_START (UINT64_C(1) << 20) /* of a store file's slabs */

struct kvt_disk {
    int fd;
    uint64_t start, bytes; /* of what is used of the file */
    uint64_t n_runs;
    struct kvt_disk_way way;
    struct kvt_scratch *scratch; /* NULL: not prepared */
    bool is_registered;          /* its memory, with the ring */
    char *copy;                  /* NULL: nobody copies */
    sem_t ready;                 /* objects to copy */
    struct io_uring ring;
};

static enum kvt_status disk_error(struct kvt_error *err, const char *what, int number)
{
    return kvt_error_set(err, kvt_status_from_errno(number), "disk reference: %s: %s", what,
                         strerror(number));
}

static enum kvt_status file_open(struct kvt_disk *d, const char *store, const char *dir,
                                 uint64_t bytes, struct kvt_error *err)
{
    d->start = store != NULL ? STORE_START : 0;
    d->bytes = bytes;
    d->fd = store != NULL ? open(store, O_RDWR | O_DIRECT | O_CLOEXEC)
                          : open(dir, O_TMPFILE | O_RDWR | O_DIRECT | O_CLOEXEC, 0600);
    if (d->fd < 0)
        return disk_error(err, store != NULL ? store : dir, errno);
    int failed = store != NULL ? 0 : posix_fallocate(d->fd, 0, (off_t)bytes);
    return failed == 0 ? KVT_OK : disk_error(err, "allocate a file", failed);
}

enum kvt_status kvt_disk_open(const char *store, const char *dir, uint64_t bytes,
                              struct kvt_disk **disk_p, struct kvt_error *err)
{
    struct kvt_disk *d = calloc(1, sizeof(*d));
    if (d == NULL)
        return kvt_error_set(err, KVT_ERR_NOMEM, "disk reference: out of memory");
    enum kvt_status status = file_open(d, store, dir, bytes, err);
    /* Blocks that were never written read as zeros without the disk. */
    const struct kvt_disk_way way = {.object_bytes = FILL_BYTES, .n = 16, .depth = 4, .huge = true};
    if (status == KVT_OK)
        status = kvt_disk_prepare(d, &way, err);
    uint64_t ns;
    for (uint64_t done = 0; status == KVT_OK && done < bytes; done += way.n * way.object_bytes)
        status = kvt_disk_run(d, true, NULL, &ns, err);
    if (status != KVT_OK) {
        kvt_disk_close(d);
        return status;
    }
    *disk_p = d;
    return KVT_OK;
}

static void disk_unprepare(struct kvt_disk *d)
{
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
    if (d->fd >= 0)
        close(d->fd);
    free(d);
}

enum kvt_status kvt_disk_prepare(struct kvt_disk *d, const struct kvt_disk_way *way,
                                 struct kvt_error *err)
{
    disk_unprepare(d);
    struct kvt_scratch *scratch;
    enum kvt_status status = kvt_scratch_open(way->n * way->object_bytes, way->huge, &scratch, err);
    if (status != KVT_OK)
        return status;
    int failed = -io_uring_queue_init(way->depth, &d->ring, 0);
    if (failed != 0) {
        kvt_scratch_close(scratch);
        return kvt_error_set(err, KVT_ERR_NOTSUP, "disk reference: io_uring: %s", strerror(failed));
    }
    d->scratch = scratch;
    d->way = *way;
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

/* Offset of transfer i of a run. */
static uint64_t disk_offset(const struct kvt_disk *d, uint32_t i)
{
    const struct kvt_disk_way *way = &d->way;
    uint64_t n_row = kvt_spread_row(way->object_bytes);
    uint64_t row = kvt_spread(i / n_row, (way->n + n_row - 1) / n_row, d->n_runs,
                              d->bytes / (n_row * way->object_bytes));
    return d->start + (row * n_row + i % n_row) * way->object_bytes;
}

static void disk_queue(struct kvt_disk *d, bool write, uint32_t i)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&d->ring); /* as many as are in flight */
    uint64_t offset = disk_offset(d, i);
    uint8_t *memory = d->scratch->memory + i * d->way.object_bytes;
    unsigned bytes = (unsigned)d->way.object_bytes;
    if (d->is_registered && write)
        io_uring_prep_write_fixed(sqe, 0, memory, bytes, offset, 0);
    else if (d->is_registered)
        io_uring_prep_read_fixed(sqe, 0, memory, bytes, offset, 0);
    else if (write)
        io_uring_prep_write(sqe, 0, memory, bytes, offset);
    else
        io_uring_prep_read(sqe, 0, memory, bytes, offset);
    sqe->flags |= IOSQE_FIXED_FILE;
    if (d->copy != NULL && write)
        sem_post(&d->ready);
}

/* All transfers of a run. */
static enum kvt_status disk_transfer(struct kvt_disk *d, bool write, struct kvt_error *err)
{
    uint32_t n_queued = 0, n_done = 0, n = d->way.n;
    enum kvt_status status = KVT_OK;
    for (; n_queued < KVT_MIN(n, d->way.depth); n_queued++)
        disk_queue(d, write, n_queued);
    while (n_done < n_queued) {
        int submitted = io_uring_submit_and_wait(&d->ring, 1);
        if (submitted < 0 && submitted != -EINTR)
            return disk_error(err, "submit", -submitted);
        struct io_uring_cqe *cqe;
        while (io_uring_peek_cqe(&d->ring, &cqe) == 0) {
            int moved = cqe->res;
            io_uring_cqe_seen(&d->ring, cqe);
            n_done++;
            if (d->copy != NULL && !write)
                sem_post(&d->ready);
            if (moved < 0 || (uint64_t)moved != d->way.object_bytes) {
                status = disk_error(err, write ? "write" : "read", moved < 0 ? -moved : EIO);
                n = n_queued; /* what is in flight still comes */
            }
            if (n_queued < n)
                disk_queue(d, write, n_queued++);
        }
    }
    return status;
}

static void *copy_main(void *arg)
{
    struct kvt_disk *d = arg;
    uint64_t bytes = d->way.object_bytes;
    for (uint32_t i = 0; i < d->way.n; i++) {
        while (sem_wait(&d->ready) != 0)
            ;
        memcpy(d->copy + i * bytes, d->scratch->memory + i * bytes, bytes);
    }
    return NULL;
}

enum kvt_status kvt_disk_run(struct kvt_disk *d, bool write, void *copy, uint64_t *ns_p,
                             struct kvt_error *err)
{
    pthread_t thread = 0;
    enum kvt_status status = write ? disk_transfer(d, false, err) : KVT_OK;
    d->copy = status == KVT_OK ? copy : NULL;
    if (d->copy != NULL) {
        sem_init(&d->ready, 0, 0);
        int failed = pthread_create(&thread, NULL, copy_main, d);
        if (failed != 0) {
            d->copy = NULL;
            status = disk_error(err, "start a thread", failed);
        }
    }
    uint64_t start_ns = kvt_now_ns();
    if (status == KVT_OK)
        status = disk_transfer(d, write, err);
    *ns_p = kvt_now_ns() - start_ns;
    d->n_runs++;
    if (d->copy != NULL) {
        for (uint32_t i = 0; i < d->way.n; i++)
            sem_post(&d->ready); /* for what failed: it ends in any case */
        pthread_join(thread, NULL);
        sem_destroy(&d->ready);
        d->copy = NULL;
    }
    return status;
}
