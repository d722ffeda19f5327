/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The block tier is one object with one of two engines under it. Transfers live in a fixed table;
 * one is on its way from submit() until poll() hands its io out. An engine moves the bytes, then
 * calls nvme_moved(); from there on the two do the same.
 */
#ifndef KVT_NVME_INTERNAL_H
#define KVT_NVME_INTERNAL_H

#include <stdatomic.h>

#include "store_file.h"

#include "kvt/ring.h"
#include "kvt/util.h"
#include "kvt/workers.h"

/* io_uring moves a chunk in pieces of this size, which the disk works on at the same time. */
#define NVME_PIECE_BYTES (UINT64_C(2) << 20)

struct nvme_tier;

struct nvme_xfer {
    struct kvt_job job;
    struct nvme_tier *tier;
    struct kvt_io *io;
    struct nvme_xfer *next; /* in the free, waiting or done list; else in its run */
    unsigned disk;
    uint64_t chunk_offset, header_offset; /* in the store file */
    void *chunk;
    enum kvt_status status;
    /* io_uring alone: parts are the pieces of the chunk and, but for reads of the chunk alone, the
     * header page as the last. */
    unsigned n_pieces_all;
    unsigned n_parts;
    unsigned next_part;
    unsigned n_inflight;
    unsigned n_retries;
    unsigned n_run; /* headers that went as one request with this one's, by next; 1 else */
    struct nvme_xfer *next_landed; /* in the list of those of which parts ended in this poll */
    bool has_landed;
    /* Which pieces of a read are here, how far they are here without a gap, and how much of that
     * the worker was told: the reactor's. */
    uint64_t pieces[2];
    unsigned n_pieces;
    unsigned n_published;
    bool has_header;
    /* How far that is, for the worker that has it, and whether one has: see verify.c. */
    _Atomic uint64_t arrived;
    uint32_t n_checked; /* segments; the worker's */
    bool is_bad;        /* likewise */
};

struct nvme_list { /* first in, first out */
    struct nvme_xfer *head;
    struct nvme_xfer **tail;
};

static inline void nvme_list_init(struct nvme_list *list)
{
    list->head = NULL;
    list->tail = &list->head;
}

static inline void nvme_list_push(struct nvme_list *list, struct nvme_xfer *xfer)
{
    xfer->next = NULL;
    *list->tail = xfer;
    list->tail = &xfer->next;
}

static inline struct nvme_xfer *nvme_list_pop(struct nvme_list *list)
{
    struct nvme_xfer *xfer = list->head;
    if (xfer != NULL && (list->head = xfer->next) == NULL)
        list->tail = &list->head;
    return xfer;
}

struct nvme_engine {
    void (*close)(struct nvme_tier *tier); /* waits for what is in flight */
    void (*start)(struct nvme_tier *tier, struct nvme_xfer *xfer);
    void (*flush)(struct nvme_tier *tier); /* after a batch of start() */
    void (*reap)(struct nvme_tier *tier);  /* look for ends, on the reactor's thread */
    bool (*register_slab)(struct nvme_tier *tier, uint32_t slab, void *addr, uint64_t bytes);
};

struct nvme_uring;

struct nvme_tier {
    struct kvt_tier base;
    const struct nvme_engine *engine;
    struct store_files files;
    uint64_t slab_bytes;
    unsigned n_arena_regions;
    struct kvt_tier_region arena_regions[2];
    uint32_t n_arena_slabs;
    void *header_pool;
    uint64_t header_pool_bytes;
    int event_fd;
    unsigned queue_depth;
    struct kvt_nvme_limits limits;
    unsigned n_xfers;
    struct nvme_xfer *xfers;
    struct nvme_xfer *free;
    uint64_t inline_bytes;    /* what this poll may still verify by itself */
    struct nvme_list done;    /* to be handed out; reactor's thread alone */
    struct kvt_ring *checked; /* the same, from the workers */
    struct kvt_workers *workers;
    struct nvme_uring *uring;
    char note[160];
};

extern const struct nvme_engine nvme_engine_threads;
extern const struct nvme_engine nvme_engine_uring;

/** Ready nvme_engine_uring. An errno value, and nothing is left, when the kernel refuses. */
int nvme_uring_open(struct nvme_tier *tier);

/** Reactor's thread, at a start. */
void nvme_verify_init(struct nvme_xfer *xfer);
/** Reactor's thread: a piece, or as part n_pieces_all the header, is where it should be. Optional.
 */
void nvme_part_arrived(struct nvme_xfer *xfer, unsigned part);
/** Reactor's thread, after that: what has arrived may be checked; more is to come. */
void nvme_parts_check(struct nvme_xfer *xfer);
/** Reactor's thread: all bytes are where they should be, or xfer->status says why not. */
void nvme_moved(struct nvme_xfer *xfer);

/** Any thread: what a read brought is what was asked for. */
enum kvt_status nvme_verify(const struct nvme_xfer *xfer);
/** Any thread: to be handed out by poll(). */
void nvme_checked(struct nvme_xfer *xfer);

#endif
