/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The arena. Every slab has an address in each of two regions: one of 2 MiB pages, one of 4 KiB
 * pages. It is backed in one of them by fallocate, so that lack of memory is an error code of a
 * call and never a SIGBUS, and it is announced only then. The other address stays a hole.
 */
#include "kvt/host_tier.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/memfd.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "memory_room.h"

#include "kvt/util.h"

/* Between two pieces the thread looks whether it should stop: closing waits for one at most. */
#define PIECE_BYTES (UINT64_C(32) << 20)

enum backing { BACKED_HUGE, BACKED_SMALL, BACKED_NONE };

struct host_tier {
    struct kvt_tier base;
    uint64_t slab_bytes;
    uint64_t bytes; /* of one region */
    uint32_t n_slabs;
    enum kvt_huge_pages huge_pages;
    char *addr; /* of the whole range */
    uint64_t addr_bytes;
    unsigned n_regions;
    struct kvt_tier_region regions[2];
    int fd_huge;  /* -1: no pages of 2 MiB here */
    int fd_small; /* -1: no pages of 4 KiB wanted */
    uint64_t base_small;
    int event_fd;

    pthread_t thread;
    bool is_started;
    _Atomic bool stop;
    /* Filled by the thread up to n_backed, read by ready() up to there. */
    uint32_t *slabs;
    uint64_t *offsets;
    _Atomic uint32_t
        n_backed;     /* release in the thread, acquire in ready(): entries below are set */
    uint32_t n_taken; /* ready()'s own */
    _Atomic uint32_t n_huge;
    _Atomic bool is_done;
    _Atomic int last_errno; /* why the last slab in 2 MiB pages was not had; 0: no room left */
};

static struct host_tier *host_of(struct kvt_tier *tier)
{
    return kvt_container_of(tier, struct host_tier, base);
}

static int fallocate_piece(int fd, int mode, uint64_t offset, uint64_t bytes)
{
    while (fallocate(fd, mode, (off_t)offset, (off_t)bytes) != 0) {
        if (errno != EINTR)
            return errno;
    }
    return 0;
}

/* Undo what part of a slab was backed: a failed fallocate of huge pages keeps what it got. */
static void slab_unback(int fd, uint64_t offset, uint64_t bytes)
{
    (void)fallocate_piece(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, bytes);
}

/* Bytes of surplus pages or of small ones that may be taken now. */
static uint64_t host_room(struct host_tier *host)
{
    uint64_t n_huge = atomic_load_explicit(&host->n_huge, memory_order_relaxed);
    return kvt_memory_room(n_huge * host->slab_bytes);
}

static int slab_back_small(struct host_tier *host, uint64_t offset)
{
    if (host_room(host) < host->slab_bytes)
        return ENOMEM; /* seen before half of it is taken */
    for (uint64_t at = 0; at < host->slab_bytes; at += PIECE_BYTES) {
        uint64_t bytes = KVT_MIN(PIECE_BYTES, host->slab_bytes - at);
        int err = ENOMEM;
        if (atomic_load_explicit(&host->stop, memory_order_relaxed))
            err = ECANCELED;
        else if (host_room(host) >= bytes)
            err = fallocate_piece(host->fd_small, 0, offset + at, bytes);
        if (err != 0) {
            slab_unback(host->fd_small, offset, at + bytes);
            return err;
        }
    }
    return 0;
}

static int huge_piece(struct host_tier *host, uint64_t offset, uint64_t bytes)
{
    uint64_t n_pages = bytes / KVT_HUGE_BYTES;
    int err = ENOMEM;
    /* Others may take pages between our look and our claim; they do not do so forever. */
    for (unsigned n_tries = 0; n_tries < 4; n_tries++) {
        uint64_t n_free = KVT_MIN(kvt_huge_pages_free(), n_pages);
        uint64_t n_new = n_pages - n_free;
        if (n_new > 0 && host_room(host) < n_new * KVT_HUGE_BYTES)
            return ENOMEM;
        if (n_new > 0 && !kvt_huge_pages_allow(n_new))
            return EPERM;
        err = fallocate_piece(host->fd_huge, 0, offset, bytes);
        if (err != ENOSPC)
            break;
    }
    return err;
}

static int slab_back_huge(struct host_tier *host, uint64_t offset)
{
    if (host_room(host) + kvt_huge_pages_free() * KVT_HUGE_BYTES < host->slab_bytes)
        return ENOMEM;
    for (uint64_t at = 0; at < host->slab_bytes; at += PIECE_BYTES) {
        uint64_t bytes = KVT_MIN(PIECE_BYTES, host->slab_bytes - at);
        int err = ECANCELED;
        if (!atomic_load_explicit(&host->stop, memory_order_relaxed))
            err = huge_piece(host, offset + at, bytes);
        if (err != 0) {
            slab_unback(host->fd_huge, offset, at + bytes);
            return err;
        }
    }
    return 0;
}

static void slab_announce(struct host_tier *host, uint32_t slab, uint64_t offset)
{
    uint32_t n = atomic_load_explicit(&host->n_backed, memory_order_relaxed);
    host->slabs[n] = slab;
    host->offsets[n] = offset;
    /* The agent is charged for its page tables now, not at somebody's first transfer. */
    (void)madvise(host->addr + offset, host->slab_bytes, MADV_POPULATE_WRITE);
    atomic_store_explicit(&host->n_backed, n + 1, memory_order_release);
    (void)eventfd_write(host->event_fd, 1);
}

/* In which pages the slab came; *huge_p: whether to try 2 MiB pages, cleared when they ran out. */
static enum backing slab_back(struct host_tier *host, uint32_t slab, bool *huge_p)
{
    uint64_t offset = slab * host->slab_bytes;
    if (*huge_p) {
        int err = slab_back_huge(host, offset);
        if (err == 0) {
            atomic_fetch_add_explicit(&host->n_huge, 1, memory_order_relaxed);
            slab_announce(host, slab, offset);
            return BACKED_HUGE;
        }
        *huge_p = false;
        atomic_store_explicit(&host->last_errno, err, memory_order_relaxed);
    }
    if (host->fd_small < 0 || slab_back_small(host, offset) != 0)
        return BACKED_NONE;
    slab_announce(host, slab, host->base_small + offset);
    return BACKED_SMALL;
}

static void *host_thread(void *arg)
{
    struct host_tier *host = arg;
    bool huge = host->fd_huge >= 0;
    for (uint32_t slab = atomic_load_explicit(&host->n_backed, memory_order_relaxed);
         slab < host->n_slabs; slab++) {
        if (slab_back(host, slab, &huge) == BACKED_NONE)
            break;
    }
    atomic_store_explicit(&host->is_done, true, memory_order_relaxed);
    (void)eventfd_write(host->event_fd, 1); /* also when nothing more comes: info() says why */
    return NULL;
}

static void host_close(struct kvt_tier *tier)
{
    struct host_tier *host = host_of(tier);
    if (host->is_started) {
        atomic_store_explicit(&host->stop, true, memory_order_relaxed);
        pthread_join(host->thread, NULL);
    }
    if (host->addr != NULL)
        munmap(host->addr, host->addr_bytes);
    if (host->fd_huge >= 0)
        close(host->fd_huge);
    if (host->fd_small >= 0)
        close(host->fd_small);
    if (host->event_fd >= 0)
        close(host->event_fd);
    free(host->slabs);
    free(host->offsets);
    free(host);
}

static void host_note(struct host_tier *host, struct kvt_tier_info *info)
{
    uint32_t n_backed = atomic_load_explicit(&host->n_backed, memory_order_acquire);
    uint32_t n_huge = atomic_load_explicit(&host->n_huge, memory_order_relaxed);
    uint32_t n_small = n_backed - KVT_MIN(n_backed, n_huge);
    bool is_done = atomic_load_explicit(&host->is_done, memory_order_relaxed);
    int n = snprintf(info->note, sizeof(info->note),
                     "%" PRIu32 " of %" PRIu32 " slabs of %" PRIu64 " MiB %s: %" PRIu32
                     " in 2 MiB pages, %" PRIu32 " in 4 KiB pages",
                     n_backed, host->n_slabs, host->slab_bytes / KVT_MIB,
                     is_done ? "backed" : "backed so far", n_huge, n_small);
    size_t at = KVT_MIN((size_t)n, sizeof(info->note) - 1);
    if (n_small > 0 && host->huge_pages != KVT_HUGE_OFF) {
        int err = atomic_load_explicit(&host->last_errno, memory_order_relaxed);
        n = snprintf(
            info->note + at, sizeof(info->note) - at, " (about half the disk bandwidth); %s",
            err == EPERM ? "set vm.nr_overcommit_hugepages" : "memory ran out or is split");
        at = KVT_MIN(at + (size_t)n, sizeof(info->note) - 1);
    }
    if (is_done && n_backed < host->n_slabs)
        snprintf(info->note + at, sizeof(info->note) - at, "; the rest found no memory");
    info->degraded =
        (is_done && n_backed < host->n_slabs) || (n_small > 0 && host->huge_pages != KVT_HUGE_OFF);
}

static void host_info(struct kvt_tier *tier, struct kvt_tier_info *info_p)
{
    struct host_tier *host = host_of(tier);
    memset(info_p, 0, sizeof(*info_p));
    info_p->n_slabs = host->n_slabs;
    info_p->slab_bytes = host->slab_bytes;
    info_p->n_regions = host->n_regions;
    memcpy(info_p->regions, host->regions, sizeof(info_p->regions));
    host_note(host, info_p);
}

static unsigned host_ready(struct kvt_tier *tier, uint32_t *slabs, uint64_t *arena_offsets,
                           unsigned n_max)
{
    struct host_tier *host = host_of(tier);
    eventfd_t ignored;
    (void)eventfd_read(host->event_fd, &ignored);
    uint32_t n_backed = atomic_load_explicit(&host->n_backed, memory_order_acquire);
    unsigned n = 0;
    for (; n < n_max && host->n_taken < n_backed; n++, host->n_taken++) {
        slabs[n] = host->slabs[host->n_taken];
        arena_offsets[n] = host->offsets[host->n_taken];
    }
    if (host->n_taken < n_backed)
        (void)eventfd_write(host->event_fd, 1);
    return n;
}

static unsigned host_submit(struct kvt_tier *tier, struct kvt_io *const ios[], unsigned n_ios)
{
    (void)tier, (void)ios, (void)n_ios;
    return 0;
}

static unsigned host_poll(struct kvt_tier *tier, struct kvt_io **ios, unsigned n_max)
{
    (void)tier, (void)ios, (void)n_max;
    return 0;
}

static int host_event_fd(struct kvt_tier *tier)
{
    return host_of(tier)->event_fd;
}

static const struct kvt_tier_ops host_ops = {
    .abi = KVT_TIER_ABI,
    .caps = KVT_TIER_MAPPED,
    .name = "host",
    .close = host_close,
    .info = host_info,
    .ready = host_ready,
    .submit = host_submit,
    .poll = host_poll,
    .event_fd = host_event_fd,
};

static int region_map(struct host_tier *host, unsigned flags, uint64_t page_bytes)
{
    uint64_t base = host->n_regions * host->bytes;
    int fd = memfd_create("kvtier-arena", MFD_CLOEXEC | MFD_ALLOW_SEALING | flags);
    if (fd < 0)
        return -1;
    /* NORESERVE: a shared mapping of huge pages would claim all of them at once, and fail if it
     * cannot; what is backed is decided slab by slab. */
    /* Sealed: a client that maps it must not be hit by SIGBUS because somebody cut the file. */
    if (ftruncate(fd, (off_t)host->bytes) != 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0 ||
        mmap(host->addr + base, host->bytes, PROT_READ | PROT_WRITE,
             MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fd, 0) == MAP_FAILED) {
        int saved = errno;
        close(fd);
        errno = saved;
        return -1;
    }
    host->regions[host->n_regions++] = (struct kvt_tier_region){
        .fd = fd,
        .addr = host->addr + base,
        .base = base,
        .bytes = host->bytes,
        .page_bytes = page_bytes,
    };
    return fd;
}

/* One range for all regions, aligned for 2 MiB pages. */
static char *range_reserve(uint64_t bytes)
{
    char *ptr = mmap(NULL, bytes + KVT_HUGE_BYTES, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (ptr == MAP_FAILED)
        return NULL;
    uint64_t skip = kvt_align_up((uintptr_t)ptr, KVT_HUGE_BYTES) - (uintptr_t)ptr;
    if (skip > 0)
        munmap(ptr, skip);
    munmap(ptr + skip + bytes, KVT_HUGE_BYTES - skip);
    return ptr + skip;
}

static enum kvt_status host_map(struct host_tier *host, struct kvt_error *err)
{
    unsigned n_regions = host->huge_pages == KVT_HUGE_AUTO ? 2 : 1;
    host->addr_bytes = n_regions * host->bytes;
    host->addr = range_reserve(host->addr_bytes);
    if (host->addr == NULL)
        return kvt_error_set(err, KVT_ERR_NOMEM,
                             "host: cannot reserve %" PRIu64
                             " bytes of address space: %s; lower host.bytes or ulimit -v",
                             host->addr_bytes, strerror(errno));
    if (host->huge_pages != KVT_HUGE_OFF) {
        host->fd_huge = region_map(host, MFD_HUGETLB | MFD_HUGE_2MB, KVT_HUGE_BYTES);
        if (host->fd_huge < 0)
            atomic_store_explicit(&host->last_errno, errno, memory_order_relaxed);
    }
    if (host->huge_pages != KVT_HUGE_REQUIRE) {
        host->base_small = host->n_regions * host->bytes;
        host->fd_small = region_map(host, 0, KVT_PAGE_BYTES);
        if (host->fd_small < 0)
            return kvt_error_set(err, kvt_status_from_errno(errno),
                                 "host: cannot map the arena: %s; lower host.bytes",
                                 strerror(errno));
    }
    return KVT_OK;
}

/* Who requires huge pages wants to hear at once that there are none. */
static enum kvt_status host_require(struct host_tier *host, struct kvt_error *err)
{
    bool huge = host->fd_huge >= 0;
    if (host->huge_pages != KVT_HUGE_REQUIRE || slab_back(host, 0, &huge) == BACKED_HUGE)
        return KVT_OK;
    int cause = atomic_load_explicit(&host->last_errno, memory_order_relaxed);
    return kvt_error_set(err, KVT_ERR_NOTSUP,
                         "host: no 2 MiB pages for a slab of %" PRIu64
                         " MiB: %s; raise vm.nr_hugepages or vm.nr_overcommit_hugepages, or "
                         "set host.huge_pages to auto",
                         host->slab_bytes / KVT_MIB, strerror(cause));
}

enum kvt_status kvt_host_tier_open(const struct kvt_host_config *config, struct kvt_tier **tier_p,
                                   struct kvt_error *err)
{
    enum kvt_status status;
    if (config->slab_bytes == 0 || config->slab_bytes % KVT_HUGE_BYTES != 0)
        return kvt_error_set(err, KVT_ERR_INVAL,
                             "host: slab size %" PRIu64 " is not a multiple of 2 MiB; check "
                             "host.slab_bytes",
                             config->slab_bytes);
    if (config->bytes < config->slab_bytes || config->bytes / config->slab_bytes > UINT32_MAX / 2 ||
        config->bytes > INT64_MAX / 4)
        return kvt_error_set(err, KVT_ERR_INVAL,
                             "host: %" PRIu64 " bytes do not make a number of slabs of %" PRIu64
                             "; check host.bytes",
                             config->bytes, config->slab_bytes);
    struct host_tier *host = calloc(1, sizeof(*host));
    if (host == NULL)
        return kvt_error_set(err, KVT_ERR_NOMEM, "host: out of memory at start; free some");
    host->base.ops = &host_ops;
    host->slab_bytes = config->slab_bytes;
    host->n_slabs = (uint32_t)(config->bytes / config->slab_bytes);
    host->bytes = host->n_slabs * config->slab_bytes;
    host->huge_pages = config->huge_pages;
    host->fd_huge = host->fd_small = -1;
    host->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    host->slabs = calloc(host->n_slabs, sizeof(*host->slabs));
    host->offsets = calloc(host->n_slabs, sizeof(*host->offsets));
    if (host->event_fd < 0 || host->slabs == NULL || host->offsets == NULL)
        status = kvt_error_set(err, KVT_ERR_NOMEM,
                               "host: no memory or file descriptor at start; check ulimit -n");
    else
        status = host_map(host, err);
    if (status == KVT_OK)
        status = host_require(host, err);
    if (status != KVT_OK) {
        host_close(&host->base);
        return status;
    }
    *tier_p = &host->base;
    return KVT_OK;
}

enum kvt_status kvt_host_tier_start(struct kvt_tier *tier, struct kvt_error *err)
{
    struct host_tier *host = host_of(tier);
    if (host->is_started)
        return KVT_OK;
    int rc = kvt_thread_start(&host->thread, host_thread, host);
    if (rc != 0)
        return kvt_error_set(err, KVT_ERR_NOMEM, "host: cannot start a thread: %s; check ulimit -u",
                             strerror(rc));
    host->is_started = true;
    return KVT_OK;
}

void *kvt_host_tier_addr(struct kvt_tier *tier, uint64_t arena_offset)
{
    struct host_tier *host = host_of(tier);
    KVT_ASSERT(arena_offset < host->n_regions * host->bytes);
    return host->addr + arena_offset;
}
