/* SPDX-License-Identifier: Apache-2.0 */
#include "kvt/nvme_tier.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "kvt/log.h"
#include "nvme_internal.h"

static struct nvme_tier *nvme_of(struct kvt_tier *tier)
{
    return kvt_container_of(tier, struct nvme_tier, base);
}

static void *arena_addr(const struct nvme_tier *tier, uint64_t offset, uint64_t bytes)
{
    for (unsigned i = 0; i < tier->n_arena_regions; i++) {
        const struct kvt_tier_region *region = &tier->arena_regions[i];
        if (offset >= region->base && offset - region->base < region->bytes &&
            bytes <= region->bytes - (offset - region->base))
            return (char *)region->addr + (offset - region->base);
    }
    return NULL;
}

/*
 * Waking a worker and being woken by it costs more than checking a small chunk, so a little is
 * checked by the reactor. The budget bounds what one poll may take of it: well under 0.1 ms.
 */
#define INLINE_BYTES (UINT64_C(512) << 10)

/* Where the slot lies; false: the io names a place that does not exist, and xfer->chunk is NULL. */
static bool xfer_place(struct nvme_tier *tier, struct nvme_xfer *xfer, const struct kvt_io *io)
{
    uint64_t stride = io->slot_bytes + KVT_SLOT_HEADER_BYTES;
    unsigned disk = 0;
    xfer->chunk = NULL;
    if (io->slab >= tier->files.n_slabs_all || io->slot_bytes % KVT_PAGE_BYTES != 0 ||
        io->chunk_bytes > io->slot_bytes || io->slot_bytes > KVT_CHUNK_BYTES_MAX ||
        io->slot_bytes == 0 || io->slot >= tier->slab_bytes / stride ||
        io->arena_offset % KVT_PAGE_BYTES != 0)
        return false;
    while (io->slab - tier->files.first_slab[disk] >= tier->files.n_slabs[disk])
        disk++;
    xfer->disk = disk;
    uint64_t slab_offset =
        STORE_DATA_OFFSET + (io->slab - tier->files.first_slab[disk]) * tier->slab_bytes;
    xfer->chunk_offset = slab_offset + io->slot * io->slot_bytes;
    xfer->header_offset = slab_offset + tier->slab_bytes / stride * io->slot_bytes +
                          (uint64_t)io->slot * KVT_SLOT_HEADER_BYTES;
    xfer->chunk = arena_addr(tier, io->arena_offset, io->slot_bytes);
    return xfer->chunk != NULL;
}

static unsigned nvme_submit(struct kvt_tier *base, struct kvt_io *const ios[], unsigned n_ios)
{
    struct nvme_tier *tier = nvme_of(base);
    unsigned n = 0;
    bool is_bad = false;
    for (; n < n_ios && tier->free != NULL; n++) {
        struct nvme_xfer *xfer = tier->free;
        tier->free = xfer->next;
        xfer->io = ios[n];
        xfer->status = KVT_OK;
        nvme_verify_init(xfer);
        ios[n]->tier_private = xfer;
        if (xfer_place(tier, xfer, ios[n])) {
            tier->engine->start(tier, xfer);
        } else {
            xfer->status = KVT_ERR_IO;
            nvme_list_push(&tier->done, xfer);
            is_bad = true;
        }
    }
    tier->engine->flush(tier);
    if (is_bad)
        (void)eventfd_write(tier->event_fd, 1);
    return n;
}

static void fault_log(const struct nvme_xfer *xfer)
{
    if (xfer->chunk == NULL)
        kvt_log(KVT_LOG_ERROR,
                "a transfer names no place of the store or of the arena and was not done; this is "
                "a fault of the agent, report it slab=%u slot=%u bytes=%" PRIu64,
                xfer->io->slab, xfer->io->slot, xfer->io->chunk_bytes);
    else if (xfer->status == KVT_ERR_CORRUPT)
        kvt_log(KVT_LOG_WARN,
                "chunk on NVMe failed its checksum and is dropped; 'kvctl verify' looks for more "
                "disk=nvme.disks.%u offset=%" PRIu64 " bytes=%" PRIu64,
                xfer->disk, xfer->chunk_offset, xfer->io->chunk_bytes);
    else
        kvt_log(KVT_LOG_WARN,
                "%s NVMe failed; the kernel's log has the disk's error disk=nvme.disks.%u "
                "offset=%" PRIu64 " bytes=%" PRIu64 " cause=%s",
                xfer->io->type == KVT_IO_READ ? "read from" : "write to", xfer->disk,
                xfer->chunk_offset, xfer->io->chunk_bytes, kvt_status_str(xfer->status));
}

static unsigned nvme_poll(struct kvt_tier *base, struct kvt_io **ios, unsigned n_max)
{
    struct nvme_tier *tier = nvme_of(base);
    struct nvme_xfer *xfer;
    eventfd_t ignored;
    unsigned n = 0;
    /* Cleared before looking: what ends after the look makes it readable again. */
    (void)eventfd_read(tier->event_fd, &ignored);
    tier->inline_bytes = INLINE_BYTES;
    tier->engine->reap(tier);
    while ((xfer = kvt_ring_pop(tier->checked)) != NULL)
        nvme_list_push(&tier->done, xfer);
    while (n < n_max && (xfer = nvme_list_pop(&tier->done)) != NULL) {
        xfer->io->status = xfer->status;
        if (xfer->status != KVT_OK)
            fault_log(xfer);
        ios[n++] = xfer->io;
        xfer->io = NULL;
        xfer->next = tier->free;
        tier->free = xfer;
    }
    if (tier->done.head != NULL)
        (void)eventfd_write(tier->event_fd, 1);
    return n;
}

static unsigned nvme_ready(struct kvt_tier *tier, uint32_t *slabs, uint64_t *arena_offsets,
                           unsigned n_max)
{
    (void)tier, (void)slabs, (void)arena_offsets, (void)n_max;
    return 0;
}

static int nvme_event_fd(struct kvt_tier *tier)
{
    return nvme_of(tier)->event_fd;
}

static void nvme_info(struct kvt_tier *base, struct kvt_tier_info *info_p)
{
    struct nvme_tier *tier = nvme_of(base);
    memset(info_p, 0, sizeof(*info_p));
    info_p->n_slabs = tier->files.n_slabs_all;
    info_p->slab_bytes = tier->slab_bytes;
    info_p->degraded = tier->note[0] != '\0';
    snprintf(info_p->note, sizeof(info_p->note), "%s", tier->note);
}

static void nvme_close(struct kvt_tier *base)
{
    struct nvme_tier *tier = nvme_of(base);
    if (tier->engine != NULL)
        tier->engine->close(tier);
    kvt_workers_destroy(tier->workers);
    kvt_ring_destroy(tier->checked);
    store_files_close(&tier->files);
    if (tier->event_fd >= 0)
        close(tier->event_fd);
    free(tier->xfers);
    free(tier);
}

static const struct kvt_tier_ops nvme_ops = {
    .abi = KVT_TIER_ABI,
    .caps = KVT_TIER_BLOCK | KVT_TIER_DURABLE,
    .name = "nvme",
    .close = nvme_close,
    .info = nvme_info,
    .ready = nvme_ready,
    .submit = nvme_submit,
    .poll = nvme_poll,
    .event_fd = nvme_event_fd,
};

static enum kvt_status engine_open(struct nvme_tier *tier, const struct kvt_nvme_config *config,
                                   struct kvt_error *err)
{
    unsigned n_threads = config->n_workers;
    if (config->engine != KVT_IO_THREADS) {
        int rc = nvme_uring_open(tier);
        if (rc == 0)
            tier->engine = &nvme_engine_uring;
        else if (config->engine == KVT_IO_URING)
            return kvt_error_set(err, KVT_ERR_NOTSUP,
                                 "nvme: io_uring is refused: %s; allow it (seccomp profile, "
                                 "kernel.io_uring_disabled) or set nvme.engine to auto",
                                 strerror(rc));
        else
            snprintf(tier->note, sizeof(tier->note),
                     "io_uring is refused (%s): threads do the transfers, slower; allow io_uring "
                     "in the seccomp profile",
                     strerror(rc));
    }
    if (tier->engine == NULL) {
        /* A thread has one transfer in flight: as many of them as keep a disk busy. */
        tier->engine = &nvme_engine_threads;
        n_threads = KVT_MAX(n_threads, KVT_MIN(config->queue_depth, 16u));
        if (config->engine == KVT_IO_THREADS)
            snprintf(tier->note, sizeof(tier->note),
                     "threads do the transfers, as configured; io_uring is faster");
    }
    return kvt_workers_create(n_threads, tier->n_xfers, &tier->workers, err);
}

enum kvt_status kvt_nvme_tier_open(const struct kvt_nvme_config *config, struct kvt_tier *host,
                                   uint8_t store_id[16], struct kvt_tier **tier_p,
                                   struct kvt_error *err)
{
    struct kvt_tier_info info;
    uint8_t id[16];
    if (config->queue_depth == 0 || config->queue_depth > 4096 || config->n_workers == 0)
        return kvt_error_set(err, KVT_ERR_INVAL,
                             "nvme: queue depth %u (1 to 4096), %u workers (at least 1); check "
                             "nvme.disks",
                             config->queue_depth, config->n_workers);
    struct nvme_tier *tier = calloc(1, sizeof(*tier));
    if (tier == NULL)
        return kvt_error_set(err, KVT_ERR_NOMEM, "nvme: out of memory at start; free some");
    tier->base.ops = &nvme_ops;
    tier->slab_bytes = config->slab_bytes;
    tier->header_pool = config->header_pool;
    tier->header_pool_bytes = config->header_pool_bytes;
    host->ops->info(host, &info);
    tier->n_arena_regions = info.n_regions;
    memcpy(tier->arena_regions, info.regions, sizeof(tier->arena_regions));
    tier->n_arena_slabs = info.n_slabs;
    nvme_list_init(&tier->done);
    tier->queue_depth = config->queue_depth;
    tier->limits = config->limits;
    tier->n_xfers = 2 * config->queue_depth;
    tier->xfers = calloc(tier->n_xfers, sizeof(*tier->xfers));
    tier->checked = kvt_ring_create(tier->n_xfers);
    tier->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (tier->xfers == NULL || tier->checked == NULL || tier->event_fd < 0) {
        nvme_close(&tier->base);
        return kvt_error_set(err, KVT_ERR_NOMEM,
                             "nvme: no memory or file descriptor at start; check ulimit -n");
    }
    for (unsigned i = tier->n_xfers; i-- > 0;) {
        tier->xfers[i].tier = tier;
        tier->xfers[i].next = tier->free;
        tier->free = &tier->xfers[i];
    }
    enum kvt_status status = store_files_open(config, id, &tier->files, err);
    if (status == KVT_OK)
        status = engine_open(tier, config, err);
    if (status != KVT_OK) {
        nvme_close(&tier->base);
        return status;
    }
    memcpy(store_id, id, sizeof(id));
    *tier_p = &tier->base;
    return KVT_OK;
}

bool kvt_nvme_tier_register(struct kvt_tier *base, uint32_t arena_slab, uint64_t arena_offset,
                            uint64_t slab_bytes)
{
    struct nvme_tier *tier = nvme_of(base);
    void *addr = arena_addr(tier, arena_offset, slab_bytes);
    if (addr == NULL || arena_slab >= tier->n_arena_slabs)
        return false;
    return tier->engine->register_slab(tier, arena_slab, addr, slab_bytes);
}

void kvt_nvme_tier_limit(struct kvt_tier *tier, const struct kvt_nvme_limits *limits)
{
    nvme_of(tier)->limits = *limits;
}
