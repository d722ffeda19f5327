/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Transfers by io_uring. Chunks of a slab stand one after the other on disk, and so do their header
 * pages behind them. Requests of the same kind are put into the ring next to each other, so that
 * the block layer merges those of a batch whose slots are neighbours; header pages that are go as
 * one request, or small chunks would take two each. A chunk is cut into pieces, which the disk
 * works on at the same time.
 */
#include <errno.h>
#include <liburing.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "nvme_internal.h"

#define RETRIES_MAX 16 /* of one transfer, when the kernel says not now */

/*
 * The kernel takes several microseconds to take a request, and more for a large one in small pages.
 * It is told of so much at once, the block layer's largest request or more, and again while the
 * time has not passed after which clients are to hear from the reactor.
 */
#define ENTER_REQUESTS 32
#define ENTER_BYTES    (UINT64_C(4) << 20)
#define PUMP_NS        UINT64_C(25000)     /* of the reactor, in which clients wait */
#define REAP_FIRST     16                  /* requests that ended make room for some that begin */
#define RUN_MAX        64u                 /* header pages of one request */
#define READS_MIN      (UINT64_C(4) << 20) /* keep a disk busy, whatever else is wanted */

struct nvme_uring {
    struct io_uring ring;
    unsigned n_entries;
    unsigned n_inflight; /* parts in the ring or with the kernel; at most n_entries */
    unsigned n_requests; /* they are; fewer, where headers go together */
    bool has_fixed_files;
    bool has_buffers;
    bool has_fixed_headers;
    /* Transfers with parts not yet in the ring: reads, writes. Somebody waits for a read: they go
     * first. */
    struct nvme_list waiting[2];
    struct nvme_list headers; /* of transfers whose pieces are in the ring; by place on disk */
    struct iovec *iovecs;     /* n_xfers: of runs of headers that the kernel was not told of yet */
    unsigned n_iovecs;
    /* Parts of them ended in this poll; nothing was done with them yet. First come, first served.
     */
    struct nvme_xfer *landed, **landed_tail;
    unsigned n_at_disk;    /* transfers with parts in flight */
    unsigned n_enter;      /* what may still be told at once */
    uint64_t enter_bytes;  /* likewise */
    uint64_t bytes[2];     /* in flight: reads, writes */
    uint64_t reads_wanted; /* bytes in flight or waiting */
    /* Set by the registering thread (release) once the kernel took it; read (acquire) at a start.
     */
    _Atomic bool *is_registered;
};

/* What a completion tells: which transfer, which part, how many pages of it were there before. */
static uint64_t tag_make(uint64_t xfer, uint64_t part, uint64_t n_pages_done)
{
    return xfer << 48 | part << 32 | n_pages_done;
}

static bool is_header(const struct nvme_xfer *xfer, unsigned part)
{
    return part == xfer->n_pieces_all;
}

static unsigned direction_of(const struct nvme_xfer *xfer)
{
    return xfer->io->type == KVT_IO_READ ? 0 : 1;
}

static uint64_t part_bytes(const struct nvme_xfer *xfer, unsigned part)
{
    if (is_header(xfer, part))
        return KVT_SLOT_HEADER_BYTES;
    return KVT_MIN(NVME_PIECE_BYTES, xfer->io->slot_bytes - part * NVME_PIECE_BYTES);
}

/* Complete a request of the ring: of n parts, bytes in all. */
static void request_add(struct nvme_tier *tier, struct io_uring_sqe *sqe, struct nvme_xfer *xfer,
                        uint64_t tag, unsigned n, uint64_t bytes)
{
    struct nvme_uring *uring = tier->uring;
    if (uring->has_fixed_files)
        io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
    io_uring_sqe_set_data64(sqe, tag);
    uring->n_inflight += n;
    uring->n_requests++;
    uring->n_enter -= KVT_MIN(uring->n_enter, 1u);
    uring->enter_bytes -= KVT_MIN(uring->enter_bytes, bytes);
    uring->bytes[direction_of(xfer)] += bytes;
}

static int disk_fd(const struct nvme_tier *tier, const struct nvme_xfer *xfer)
{
    return tier->uring->has_fixed_files ? (int)xfer->disk : tier->files.fds[xfer->disk];
}

static void part_queue(struct nvme_tier *tier, struct nvme_xfer *xfer, unsigned part,
                       uint64_t n_pages_done)
{
    struct nvme_uring *uring = tier->uring;
    const struct kvt_io *io = xfer->io;
    uint64_t skip = n_pages_done * KVT_PAGE_BYTES;
    bool header = is_header(xfer, part);
    uint64_t at = part * NVME_PIECE_BYTES;
    uint64_t bytes = part_bytes(xfer, part);
    char *addr = header ? (char *)io->header : (char *)xfer->chunk + at;
    uint64_t offset = (header ? xfer->header_offset : xfer->chunk_offset + at) + skip;
    int fd = disk_fd(tier, xfer);
    bool is_fixed = header ? uring->has_fixed_headers
                           : io->arena_slab < tier->n_arena_slabs &&
                                 atomic_load_explicit(&uring->is_registered[io->arena_slab],
                                                      memory_order_acquire);
    int buffer = (int)(header ? tier->n_arena_slabs : io->arena_slab);
    struct io_uring_sqe *sqe = io_uring_get_sqe(&uring->ring);
    KVT_ASSERT(sqe != NULL); /* never more in flight than the ring has entries */
    addr += skip;
    unsigned len = (unsigned)(bytes - skip);
    if (io->type == KVT_IO_READ) {
        if (is_fixed)
            io_uring_prep_read_fixed(sqe, fd, addr, len, offset, buffer);
        else
            io_uring_prep_read(sqe, fd, addr, len, offset);
    } else {
        if (is_fixed)
            io_uring_prep_write_fixed(sqe, fd, addr, len, offset, buffer);
        else
            io_uring_prep_write(sqe, fd, addr, len, offset);
    }
    uint64_t tag = tag_make((uint64_t)(xfer - tier->xfers), part, n_pages_done);
    if (header)
        xfer->n_run = 1;
    xfer->n_inflight++;
    request_add(tier, sqe, xfer, tag, 1, len);
}

/*
 * Virtual disks end all they were given together. So the last of what is wanted comes in ever
 * smaller lots, or the disk would have nothing to do while a large one is verified and copied.
 */
static uint64_t reads_max(const struct nvme_tier *tier)
{
    uint64_t share = KVT_MAX(tier->uring->reads_wanted / 3 * 2, READS_MIN);
    return KVT_MIN(share, tier->limits.read_bytes_max);
}

static bool disk_has_room(const struct nvme_tier *tier, const struct nvme_xfer *xfer)
{
    const struct nvme_uring *uring = tier->uring;
    /* Headers that wait find a place as well, however many chunks there are. */
    if (uring->n_inflight + (uring->headers.head != NULL ? uring->n_entries / 8 : 0) >=
        uring->n_entries)
        return false;
    if (xfer->next_part == 0 && uring->n_at_disk == tier->queue_depth)
        return false;
    return uring->bytes[direction_of(xfer)] <
           (xfer->io->type == KVT_IO_READ ? reads_max(tier) : tier->limits.write_bytes_max);
}

static bool header_is_before(const struct nvme_xfer *a, const struct nvme_xfer *b)
{
    return a->disk != b->disk ? a->disk < b->disk : a->header_offset < b->header_offset;
}

/* Slots of a slab are given out in order, so that most belong at the end. */
static void header_wait(struct nvme_uring *uring, struct nvme_xfer *xfer)
{
    struct nvme_list *list = &uring->headers;
    struct nvme_xfer **at = &list->head;
    if (*at == NULL ||
        header_is_before(kvt_container_of(list->tail, struct nvme_xfer, next), xfer)) {
        nvme_list_push(list, xfer);
        return;
    }
    while (header_is_before(*at, xfer)) /* ends: the last one is not before it */
        at = &(*at)->next;
    xfer->next = *at;
    *at = xfer;
}

/* False: more could go. */
static bool waiting_pump(struct nvme_tier *tier, struct nvme_list *waiting)
{
    while (waiting->head != NULL && disk_has_room(tier, waiting->head)) {
        if (tier->uring->n_enter == 0 || tier->uring->enter_bytes == 0)
            return false;
        struct nvme_xfer *xfer = waiting->head;
        if (xfer->next_part == 0)
            tier->uring->n_at_disk++;
        part_queue(tier, xfer, xfer->next_part++, 0);
        if (xfer->next_part < xfer->n_pieces_all)
            continue;
        (void)nvme_list_pop(waiting);
        if (xfer->next_part < xfer->n_parts)
            header_wait(tier->uring, xfer);
    }
    return true;
}

/* Whether b's header page stands behind a's and goes the same way. */
static bool header_follows(const struct nvme_xfer *a, const struct nvme_xfer *b)
{
    return b != NULL && b->disk == a->disk && b->io->type == a->io->type &&
           b->header_offset == a->header_offset + KVT_SLOT_HEADER_BYTES;
}

/* The next header that waits, with those behind it on disk. */
static void run_queue(struct nvme_tier *tier)
{
    struct nvme_uring *uring = tier->uring;
    struct nvme_xfer *first = nvme_list_pop(&uring->headers), *last = first;
    struct iovec *iovecs = uring->iovecs + uring->n_iovecs;
    unsigned n_max = KVT_MIN(KVT_MIN(RUN_MAX, tier->n_xfers - uring->n_iovecs),
                             uring->n_entries - uring->n_inflight);
    unsigned n = 1;
    for (; n < n_max && header_follows(last, uring->headers.head); n++)
        last = nvme_list_pop(&uring->headers); /* and still the next of the one before */
    if (n == 1) {
        part_queue(tier, first, first->next_part++, 0);
        return;
    }
    struct nvme_xfer *xfer = first;
    for (unsigned i = 0; i < n; i++, xfer = xfer->next) {
        iovecs[i] = (struct iovec){xfer->io->header, KVT_SLOT_HEADER_BYTES};
        xfer->next_part++;
        xfer->n_inflight++;
    }
    uring->n_iovecs += n;
    struct io_uring_sqe *sqe = io_uring_get_sqe(&uring->ring);
    KVT_ASSERT(sqe != NULL); /* as for parts */
    if (first->io->type == KVT_IO_READ)
        io_uring_prep_readv(sqe, disk_fd(tier, first), iovecs, n, first->header_offset);
    else
        io_uring_prep_writev(sqe, disk_fd(tier, first), iovecs, n, first->header_offset);
    first->n_run = n;
    uint64_t tag = tag_make((uint64_t)(first - tier->xfers), first->n_pieces_all, 0);
    request_add(tier, sqe, first, tag, n, n * KVT_SLOT_HEADER_BYTES);
}

/* False: more could go. */
static bool headers_pump(struct nvme_tier *tier)
{
    struct nvme_uring *uring = tier->uring;
    while (uring->headers.head != NULL && uring->n_inflight < uring->n_entries) {
        if (uring->n_enter == 0 || uring->enter_bytes == 0)
            return false;
        run_queue(tier);
    }
    return true;
}

/* Put parts of waiting transfers into the ring while it has room, and tell the kernel once. False:
 * more could go. */
static bool pump_once(struct nvme_tier *tier)
{
    struct nvme_uring *uring = tier->uring;
    bool all = true;
    uring->n_enter = ENTER_REQUESTS;
    uring->enter_bytes = ENTER_BYTES;
    for (unsigned i = 0; i < KVT_ARRAY_LEN(uring->waiting) && all; i++)
        all = waiting_pump(tier, &uring->waiting[i]);
    /* When no chunk can go for now: the more headers go together, the more become one request. */
    if (all)
        all = headers_pump(tier);
    if (io_uring_sq_ready(&uring->ring) == 0)
        return all;
    /* Refused for now (memory, a signal): what stays in the ring goes with the next call, which
     * comes at the next completion; without one on its way we ask for it ourselves. */
    int rc = io_uring_submit(&uring->ring);
    if (rc < 0 && io_uring_sq_ready(&uring->ring) == uring->n_requests)
        (void)eventfd_write(tier->event_fd, 1);
    if (io_uring_sq_ready(&uring->ring) == 0)
        uring->n_iovecs = 0; /* the kernel keeps what it was told of */
    return all;
}

/* What is too much for now goes when the reactor comes again, which the event sees to. */
static void uring_pump(struct nvme_tier *tier)
{
    uint64_t end_ns = kvt_now_ns() + PUMP_NS;
    while (!pump_once(tier)) {
        if (kvt_now_ns() < end_ns)
            continue;
        (void)eventfd_write(tier->event_fd, 1);
        return;
    }
}

static uint64_t all_bytes(const struct nvme_xfer *xfer)
{
    return xfer->io->slot_bytes + (xfer->io->chunk_only ? 0 : KVT_SLOT_HEADER_BYTES);
}

static void uring_start(struct nvme_tier *tier, struct nvme_xfer *xfer)
{
    xfer->n_pieces_all =
        (unsigned)((xfer->io->slot_bytes + NVME_PIECE_BYTES - 1) / NVME_PIECE_BYTES);
    xfer->n_parts = xfer->n_pieces_all + (xfer->io->chunk_only ? 0 : 1);
    xfer->next_part = 0;
    xfer->n_inflight = 0;
    xfer->n_retries = 0;
    xfer->has_landed = false;
    if (xfer->io->type == KVT_IO_READ)
        tier->uring->reads_wanted += all_bytes(xfer);
    nvme_list_push(&tier->uring->waiting[direction_of(xfer)], xfer);
}

/* One request ended with res; whether the rest of its part has to be asked for. */
static bool part_goes_on(struct nvme_tier *tier, struct nvme_xfer *xfer, unsigned part,
                         uint64_t n_pages_done, int res, uint64_t *n_pages_p)
{
    uint64_t n_all = part_bytes(xfer, part) / KVT_PAGE_BYTES;
    *n_pages_p = n_pages_done;
    if (xfer->status != KVT_OK)
        return false; /* another part failed: what this one brought does not matter */
    if (res == -EAGAIN || res == -EINTR) {
        if (xfer->n_retries++ < RETRIES_MAX)
            return true;
        xfer->status = KVT_ERR_IO;
        return false;
    }
    if (res < 0) {
        xfer->status = res == -ENOSPC ? KVT_ERR_NOSPACE : KVT_ERR_IO;
        return false;
    }
    *n_pages_p = n_pages_done + (unsigned)res / KVT_PAGE_BYTES;
    if (*n_pages_p >= n_all)
        return false;
    if (*n_pages_p > n_pages_done)
        return true;
    xfer->status = KVT_ERR_IO; /* no whole page more: the file ends here */
    return false;
}

/* All of it went to the disk and came back. */
static bool is_whole(const struct nvme_xfer *xfer)
{
    return xfer->n_inflight == 0 && xfer->next_part >= xfer->n_parts;
}

static void part_ended(struct nvme_tier *tier, struct nvme_xfer *xfer, unsigned part,
                       uint64_t n_pages_done, int res)
{
    uint64_t n_pages;
    tier->uring->n_inflight--;
    xfer->n_inflight--;
    tier->uring->bytes[direction_of(xfer)] -=
        part_bytes(xfer, part) - n_pages_done * KVT_PAGE_BYTES;
    if (part_goes_on(tier, xfer, part, n_pages_done, res, &n_pages)) {
        part_queue(tier, xfer, part, n_pages);
        return;
    }
    if (xfer->io->type == KVT_IO_READ)
        tier->uring->reads_wanted -= part_bytes(xfer, part);
    if (is_whole(xfer))
        tier->uring->n_at_disk--;
    else if (xfer->status == KVT_OK)
        nvme_part_arrived(xfer, part);
    if (!xfer->has_landed) {
        xfer->has_landed = true;
        *tier->uring->landed_tail = xfer;
        tier->uring->landed_tail = &xfer->next_landed;
    }
}

/* What went together ended. Where not all of it went well each of the rest goes again alone: what
 * is wrong with one page is not the others' fault. */
static void request_ended(struct nvme_tier *tier, uint64_t tag, int res)
{
    struct nvme_xfer *xfer = &tier->xfers[tag >> 48];
    unsigned part = tag >> 32 & 0xffff, n = xfer->n_run;
    tier->uring->n_requests--;
    if (n == 1 || !is_header(xfer, part)) {
        part_ended(tier, xfer, part, tag & UINT32_MAX, res);
        return;
    }
    for (unsigned i = 0; i < n; i++) {
        struct nvme_xfer *next = xfer->next;
        bool went = res >= (int)KVT_SLOT_HEADER_BYTES;
        if (went)
            res -= (int)KVT_SLOT_HEADER_BYTES;
        else if (xfer->n_retries > 0)
            xfer->n_retries--; /* not one of its own */
        part_ended(tier, xfer, xfer->n_pieces_all, 0, went ? (int)KVT_SLOT_HEADER_BYTES : -EAGAIN);
        xfer = next;
    }
}

/* What becomes of what ended. */
static void landed_handle(struct nvme_tier *tier)
{
    struct nvme_uring *uring = tier->uring;
    struct nvme_xfer *xfer;
    *uring->landed_tail = NULL;
    while ((xfer = uring->landed) != NULL) {
        uring->landed = xfer->next_landed;
        xfer->has_landed = false;
        if (is_whole(xfer))
            nvme_moved(xfer);
        else if (xfer->status == KVT_OK)
            nvme_parts_check(xfer);
    }
    uring->landed_tail = &uring->landed;
}

static void uring_reap(struct nvme_tier *tier)
{
    struct nvme_uring *uring = tier->uring;
    struct io_uring_cqe *cqe;
    unsigned n = 0;
    /* peek also lets the kernel post what it holds back until we enter it. */
    while (io_uring_peek_cqe(&uring->ring, &cqe) == 0) {
        uint64_t tag = io_uring_cqe_get_data64(cqe);
        int res = cqe->res;
        io_uring_cqe_seen(&uring->ring, cqe);
        request_ended(tier, tag, res);
        /* The disk first: where all of its requests ended at once it has nothing to do, and each of
         * them takes us a little. */
        if (++n == REAP_FIRST)
            (void)pump_once(tier);
    }
    /* And again before what they brought, for which workers are to be woken. */
    uring_pump(tier);
    landed_handle(tier);
}

static void uring_free(struct nvme_uring *uring)
{
    free(uring->iovecs);
    free(uring->is_registered);
    free(uring);
}

static void uring_close(struct nvme_tier *tier)
{
    struct nvme_uring *uring = tier->uring;
    if (uring == NULL)
        return;
    /* The kernel writes into memory that is about to go: wait, however long the disk takes. */
    for (;;) {
        uring_reap(tier);
        if (uring->n_inflight == 0)
            break;
        (void)io_uring_submit_and_wait(&uring->ring, 1);
    }
    KVT_ASSERT(uring->reads_wanted == 0);
    io_uring_queue_exit(&uring->ring);
    uring_free(uring);
}

static bool buffer_register(struct nvme_uring *uring, unsigned index, void *addr, uint64_t bytes)
{
    struct iovec iov = {addr, bytes};
    __u64 tag = 0;
    return uring->has_buffers &&
           io_uring_register_buffers_update_tag(&uring->ring, index, &iov, &tag, 1) == 1;
}

static bool uring_register(struct nvme_tier *tier, uint32_t slab, void *addr, uint64_t bytes)
{
    struct nvme_uring *uring = tier->uring;
    if (!buffer_register(uring, slab, addr, bytes))
        return false;
    atomic_store_explicit(&uring->is_registered[slab], true, memory_order_release);
    return true;
}

const struct nvme_engine nvme_engine_uring = {
    .close = uring_close,
    .start = uring_start,
    .flush = uring_pump,
    .reap = uring_reap,
    .register_slab = uring_register,
};

int nvme_uring_open(struct nvme_tier *tier)
{
    struct nvme_uring *uring = calloc(1, sizeof(*uring));
    if (uring == NULL)
        return ENOMEM;
    for (unsigned i = 0; i < KVT_ARRAY_LEN(uring->waiting); i++)
        nvme_list_init(&uring->waiting[i]);
    nvme_list_init(&uring->headers);
    uring->landed_tail = &uring->landed;
    uring->is_registered = calloc(tier->n_arena_slabs, sizeof(*uring->is_registered));
    uring->iovecs = calloc(tier->n_xfers, sizeof(*uring->iovecs));
    uring->n_entries = 64;
    while (uring->n_entries < 4 * tier->queue_depth && uring->n_entries < 1024)
        uring->n_entries *= 2;
    int rc = uring->is_registered == NULL || uring->iovecs == NULL ? -ENOMEM : 0;
    if (rc == 0) {
        /* Completions wait for our next entry into the kernel instead of interrupting us. */
        rc = io_uring_queue_init(uring->n_entries, &uring->ring,
                                 IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG);
        if (rc == -EINVAL) /* before Linux 5.19 */
            rc = io_uring_queue_init(uring->n_entries, &uring->ring, 0);
    }
    if (rc != 0) {
        uring_free(uring);
        return -rc;
    }
    rc = io_uring_register_eventfd(&uring->ring, tier->event_fd);
    if (rc != 0) {
        io_uring_queue_exit(&uring->ring);
        uring_free(uring);
        return -rc;
    }
    /* Whatever is refused here goes without. */
    uring->has_fixed_files =
        io_uring_register_files(&uring->ring, tier->files.fds, tier->files.n_disks) == 0;
    uring->has_buffers =
        io_uring_register_buffers_sparse(&uring->ring, tier->n_arena_slabs + 1) == 0;
    uring->has_fixed_headers =
        tier->header_pool_bytes > 0 &&
        buffer_register(uring, tier->n_arena_slabs, tier->header_pool, tier->header_pool_bytes);
    tier->uring = uring;
    return 0;
}
