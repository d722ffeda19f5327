/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Verifying what reads bring. A small chunk is checked at once by the reactor, within a budget. A
 * chunk of one piece goes to a worker when it is there. A chunk of several pieces is checked while
 * it arrives, segment after segment, so that the end of a long transfer is not followed by a long
 * check with the disk idle.
 */
#include <sys/eventfd.h>

#include "nvme_internal.h"

/* Of nvme_xfer.arrived, above how many bytes are here without a gap. */
#define ARRIVED_ALL      (UINT64_C(1) << 63) /* nothing more comes: all is there, or it failed */
#define ARRIVED_CHECKING (UINT64_C(1) << 62) /* a worker has the transfer, or soon will */
#define ARRIVED_BYTES    (ARRIVED_CHECKING - 1)

_Static_assert(KVT_CHUNK_BYTES_MAX / NVME_PIECE_BYTES <=
                   8 * sizeof(((struct nvme_xfer *)0)->pieces),
               "a bit per piece");

/* The checksums in the header page are what was read, or with chunk_only what was computed. */
static enum kvt_status header_check(const struct kvt_io *io)
{
    if (io->chunk_only)
        return kvt_chunk_check(&io->key, io->ns_id, io->digest, io->chunk_bytes, io->header->sums,
                               io->n_segments);
    /* A header of another version was not written by this store's present life: not ours either. */
    return kvt_slot_header_check(io->header, &io->key, io->ns_id, io->digest, io->chunk_bytes,
                                 io->n_segments) == KVT_OK
               ? KVT_OK
               : KVT_ERR_CORRUPT;
}

static bool segments_valid(const struct kvt_io *io)
{
    return io->n_segments > 0 && io->n_segments <= KVT_SEGMENTS_MAX &&
           io->chunk_bytes % io->n_segments == 0;
}

enum kvt_status nvme_verify(const struct nvme_xfer *xfer)
{
    const struct kvt_io *io = xfer->io;
    if (!segments_valid(io))
        return KVT_ERR_CORRUPT;
    if (io->chunk_only)
        kvt_segments_sum(xfer->chunk, io->chunk_bytes, io->n_segments, io->header->sums);
    if (header_check(io) != KVT_OK)
        return KVT_ERR_CORRUPT;
    return io->chunk_only
               ? KVT_OK
               : kvt_segments_check(xfer->chunk, io->chunk_bytes, io->header->sums, io->n_segments);
}

void nvme_checked(struct nvme_xfer *xfer)
{
    struct nvme_tier *tier = xfer->tier;
    bool pushed = kvt_ring_push(tier->checked, xfer);
    KVT_ASSERT(pushed); /* it has room for all */
    (void)eventfd_write(tier->event_fd, 1);
}

static void whole_run(struct kvt_job *job)
{
    struct nvme_xfer *xfer = kvt_container_of(job, struct nvme_xfer, job);
    xfer->status = nvme_verify(xfer);
    nvme_checked(xfer);
}

/* Check the segments that lie within the first n_bytes and were not checked yet. The checksums are
 * those of a header that nobody vouched for so far; it is checked itself at the end. Or they are
 * what is made here. */
static void segments_advance(struct nvme_xfer *xfer, uint64_t n_bytes)
{
    const struct kvt_io *io = xfer->io;
    if (!segments_valid(io))
        xfer->is_bad = true;
    if (xfer->is_bad)
        return;
    uint64_t segment_bytes = io->chunk_bytes / io->n_segments;
    uint32_t end = (uint32_t)(KVT_MIN(n_bytes, io->chunk_bytes) / segment_bytes);
    uint32_t n = end - xfer->n_checked;
    const char *first = (char *)xfer->chunk + xfer->n_checked * segment_bytes;
    uint64_t *sums = io->header->sums + xfer->n_checked;
    if (n > 0 && io->chunk_only)
        kvt_segments_sum(first, n * segment_bytes, n, sums);
    else if (n > 0 && kvt_segments_check(first, n * segment_bytes, sums, n) != KVT_OK)
        xfer->is_bad = true;
    xfer->n_checked = end;
}

static void pieces_run(struct kvt_job *job)
{
    struct nvme_xfer *xfer = kvt_container_of(job, struct nvme_xfer, job);
    for (;;) {
        uint64_t arrived = atomic_load_explicit(&xfer->arrived, memory_order_acquire);
        bool all = (arrived & ARRIVED_ALL) != 0; /* only then the reactor is done with the status */
        if (!all || xfer->status == KVT_OK)
            segments_advance(xfer, arrived & ARRIVED_BYTES);
        if (all) {
            if (xfer->status == KVT_OK && (xfer->is_bad || header_check(xfer->io) != KVT_OK))
                xfer->status = KVT_ERR_CORRUPT;
            nvme_checked(xfer);
            return;
        }
        /* Let go of it only if nothing came since: once let go it may be another transfer. */
        if (atomic_compare_exchange_strong_explicit(&xfer->arrived, &arrived,
                                                    arrived & ~ARRIVED_CHECKING,
                                                    memory_order_acq_rel, memory_order_relaxed))
            return;
    }
}

static void job_submit(struct nvme_xfer *xfer, void (*run)(struct kvt_job *job))
{
    xfer->job.run = run;
    bool queued = kvt_workers_submit(xfer->tier->workers, &xfer->job);
    KVT_ASSERT(queued); /* room for all: a transfer is queued once at a time */
}

static void publish(struct nvme_xfer *xfer, uint64_t arrived)
{
    uint64_t before =
        atomic_exchange_explicit(&xfer->arrived, arrived | ARRIVED_CHECKING, memory_order_acq_rel);
    if ((before & ARRIVED_CHECKING) == 0)
        job_submit(xfer, pieces_run);
}

void nvme_verify_init(struct nvme_xfer *xfer)
{
    xfer->pieces[0] = xfer->pieces[1] = 0;
    xfer->n_pieces = xfer->n_published = 0;
    xfer->has_header = xfer->io->chunk_only;
    xfer->n_checked = 0;
    xfer->is_bad = false;
    atomic_store_explicit(&xfer->arrived, 0, memory_order_relaxed);
}

static bool is_in_pieces(const struct kvt_io *io)
{
    return io->type == KVT_IO_READ && io->slot_bytes > NVME_PIECE_BYTES;
}

void nvme_part_arrived(struct nvme_xfer *xfer, unsigned part)
{
    if (!is_in_pieces(xfer->io))
        return;
    if (part == xfer->n_pieces_all)
        xfer->has_header = true;
    else
        xfer->pieces[part / 64] |= UINT64_C(1) << part % 64;
    while (xfer->n_pieces < 128 &&
           (xfer->pieces[xfer->n_pieces / 64] >> xfer->n_pieces % 64 & 1) != 0)
        xfer->n_pieces++;
}

void nvme_parts_check(struct nvme_xfer *xfer)
{
    /* What comes last is published by nvme_moved(). */
    if (!xfer->has_header || xfer->n_pieces == xfer->n_published ||
        xfer->n_pieces >= xfer->n_pieces_all)
        return;
    xfer->n_published = xfer->n_pieces;
    publish(xfer, xfer->n_pieces * NVME_PIECE_BYTES);
}

void nvme_moved(struct nvme_xfer *xfer)
{
    struct nvme_tier *tier = xfer->tier;
    if (is_in_pieces(xfer->io)) {
        publish(xfer, xfer->io->chunk_bytes | ARRIVED_ALL);
        return;
    }
    if (xfer->status == KVT_OK && xfer->io->type == KVT_IO_READ) {
        if (xfer->io->chunk_bytes > tier->inline_bytes) {
            job_submit(xfer, whole_run);
            return;
        }
        tier->inline_bytes -= xfer->io->chunk_bytes;
        xfer->status = nvme_verify(xfer);
    }
    nvme_list_push(&tier->done, xfer);
}
