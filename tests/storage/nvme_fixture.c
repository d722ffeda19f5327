/* SPDX-License-Identifier: Apache-2.0 */
#include "nvme_fixture.h"

#include <check.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#define N_SEGMENTS 4u

void fixture_init(struct fixture *fix, int variant)
{
    struct kvt_host_config host_config = {.bytes = FIX_ARENA_SLABS * FIX_SLAB_BYTES,
                                          .slab_bytes = FIX_SLAB_BYTES,
                                          .huge_pages = variant & 2 ? KVT_HUGE_OFF : KVT_HUGE_AUTO};
    struct kvt_error err = {0};
    memset(fix, 0, sizeof(*fix));
    fix->engine = variant & 1 ? KVT_IO_THREADS : KVT_IO_AUTO;
    snprintf(fix->dir, sizeof(fix->dir), "/tmp/kvt-nvme-test-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(fix->dir));
    ck_assert_msg(kvt_host_tier_open(&host_config, &fix->host, &err) == KVT_OK &&
                      kvt_host_tier_start(fix->host, &err) == KVT_OK,
                  "%s", err.msg);
    for (unsigned n = 0; n < FIX_ARENA_SLABS;) {
        struct pollfd fd = {.fd = fix->host->ops->event_fd(fix->host), .events = POLLIN};
        uint32_t slab;
        uint64_t offset;
        ck_assert_int_eq(poll(&fd, 1, 20000), 1);
        if (fix->host->ops->ready(fix->host, &slab, &offset, 1) == 1) {
            fix->arena_offset[slab] = offset;
            n++;
        }
    }
    fix->pool = aligned_alloc(4096, FIX_POOL_PAGES * sizeof(*fix->pool));
    ck_assert_ptr_nonnull(fix->pool);
    memset(fix->pool, 0, FIX_POOL_PAGES * sizeof(*fix->pool));
    fix->config =
        (struct kvt_nvme_config){.n_disks = 2,
                                 .slab_bytes = FIX_SLAB_BYTES,
                                 .engine = fix->engine,
                                 .queue_depth = 16,
                                 .limits = {8 * FIX_CHUNK_BYTES, 8 * FIX_CHUNK_BYTES},
                                 .n_workers = 2,
                                 .header_pool = fix->pool,
                                 .header_pool_bytes = FIX_POOL_PAGES * sizeof(*fix->pool)};
    for (unsigned i = 0; i < 2; i++) {
        snprintf(fix->config.disks[i].path, sizeof(fix->config.disks[i].path), "%s/disk%u",
                 fix->dir, i);
        fix->config.disks[i].capacity_bytes =
            FIX_DATA_OFFSET + FIX_DISK_SLABS * FIX_SLAB_BYTES + 4096;
    }
}

void fixture_fini(struct fixture *fix)
{
    fixture_close(fix);
    fix->host->ops->close(fix->host);
    for (unsigned i = 0; i < KVT_DISKS_MAX; i++) {
        if (fix->config.disks[i].path[0] != '\0')
            unlink(fix->config.disks[i].path);
    }
    rmdir(fix->dir);
    free(fix->pool);
}

enum kvt_status fixture_open(struct fixture *fix, struct kvt_error *err)
{
    return kvt_nvme_tier_open(&fix->config, fix->host, fix->store_id, &fix->nvme, err);
}

void fixture_must_open(struct fixture *fix, bool registered)
{
    struct kvt_error err = {0};
    enum kvt_status status = fixture_open(fix, &err);
    ck_assert_msg(status == KVT_OK, "%s", err.msg);
    for (uint32_t slab = 0; registered && slab < FIX_ARENA_SLABS; slab++) {
        bool ok = kvt_nvme_tier_register(fix->nvme, slab, fix->arena_offset[slab], FIX_SLAB_BYTES);
        ck_assert(!ok || fix->engine != KVT_IO_THREADS);
    }
}

void fixture_close(struct fixture *fix)
{
    if (fix->nvme != NULL)
        fix->nvme->ops->close(fix->nvme);
    fix->nvme = NULL;
}

void *fixture_chunk(struct fixture *fix, const struct kvt_io *io)
{
    return kvt_host_tier_addr(fix->host, io->arena_offset);
}

static uint64_t word_of(uint64_t seed, uint64_t at)
{
    return (seed + 1) * UINT64_C(0x9e3779b97f4a7c15) ^ at * UINT64_C(0xd1342543de82ef95);
}

bool fixture_matches(struct fixture *fix, const struct kvt_io *io, uint64_t seed)
{
    const char *chunk = fixture_chunk(fix, io);
    for (uint64_t at = 0; at < io->chunk_bytes; at += 8) {
        uint64_t word = word_of(seed, at);
        if (memcmp(chunk + at, &word, KVT_MIN(8u, io->chunk_bytes - at)) != 0)
            return false;
    }
    return true;
}

/* The header is a function of the arguments: a read knows what to expect without the write. */
static void header_fill(struct kvt_slot_header *header, const char *chunk, uint64_t chunk_bytes,
                        uint64_t seed)
{
    uint64_t segment_bytes = chunk_bytes / N_SEGMENTS;
    memset(header, 0, sizeof(*header));
    header->magic = KVT_SLOT_MAGIC;
    header->version = KVT_SLOT_VERSION;
    header->n_segments = N_SEGMENTS;
    header->chunk_bytes = chunk_bytes;
    header->generation = seed;
    memset(&header->key, (int)(seed & 0xff), sizeof(header->key));
    memset(header->ns_id, 0x33, sizeof(header->ns_id));
    for (unsigned i = 0; i < N_SEGMENTS; i++)
        header->sums[i] = XXH3_64bits(chunk + i * segment_bytes, segment_bytes);
    kvt_slot_header_seal(header);
}

void fixture_io(struct fixture *fix, struct kvt_io *io, enum kvt_io_type type, unsigned lane,
                uint64_t lane_bytes, uint32_t slab, uint32_t slot, uint64_t chunk_bytes,
                uint64_t seed)
{
    uint64_t at = lane * lane_bytes;
    uint32_t arena_slab = (uint32_t)(at / FIX_SLAB_BYTES);
    memset(io, 0, sizeof(*io));
    ck_assert_uint_lt(arena_slab, FIX_ARENA_SLABS);
    ck_assert_uint_le(at % FIX_SLAB_BYTES + chunk_bytes, FIX_SLAB_BYTES);
    io->type = type;
    io->slab = slab;
    io->slot = slot;
    io->chunk_bytes = chunk_bytes;
    io->slot_bytes = kvt_align_up(chunk_bytes, 4096);
    io->n_segments = N_SEGMENTS;
    io->arena_slab = arena_slab;
    io->arena_offset = fix->arena_offset[arena_slab] + at % FIX_SLAB_BYTES;
    io->header = &fix->pool[lane];
    char *chunk = fixture_chunk(fix, io);
    for (uint64_t i = 0; i < chunk_bytes; i += 8) {
        uint64_t word = word_of(seed, i);
        memcpy(chunk + i, &word, KVT_MIN(8u, chunk_bytes - i));
    }
    header_fill(io->header, chunk, chunk_bytes, seed);
    io->key = io->header->key;
    memcpy(io->ns_id, io->header->ns_id, sizeof(io->ns_id));
    io->digest = io->header->digest;
    if (type == KVT_IO_READ) {
        memset(chunk, 0xee, io->slot_bytes);
        memset(io->header, 0xee, sizeof(*io->header));
    }
}

void fixture_run(struct fixture *fix, struct kvt_io *ios, unsigned n)
{
    struct kvt_tier *nvme = fix->nvme;
    unsigned n_sent = 0;
    unsigned n_back = 0;
    while (n_back < n) {
        struct kvt_io *batch[16];
        struct kvt_io *done[5]; /* fewer than may be there: the rest must stay readable */
        unsigned n_batch = 0;
        while (n_sent + n_batch < n && n_batch < KVT_ARRAY_LEN(batch)) {
            batch[n_batch] = &ios[n_sent + n_batch];
            batch[n_batch++]->status = KVT_ERR_INTERNAL;
        }
        n_sent += nvme->ops->submit(nvme, batch, n_batch);
        struct pollfd fd = {.fd = nvme->ops->event_fd(nvme), .events = POLLIN};
        ck_assert_int_eq(poll(&fd, 1, 20000), 1);
        unsigned n_done = nvme->ops->poll(nvme, done, KVT_ARRAY_LEN(done));
        for (unsigned i = 0; i < n_done; i++)
            ck_assert_int_ne(done[i]->status, KVT_ERR_INTERNAL);
        n_back += n_done;
    }
    struct kvt_io *none;
    ck_assert_uint_eq(nvme->ops->poll(nvme, &none, 1), 0);
}

enum kvt_status fixture_write(struct fixture *fix, uint32_t slot, uint64_t seed)
{
    struct kvt_io io;
    fixture_io(fix, &io, KVT_IO_WRITE, 0, FIX_CHUNK_BYTES, 0, slot, FIX_CHUNK_BYTES, seed);
    fixture_run(fix, &io, 1);
    return io.status;
}

static enum kvt_status read_as(struct fixture *fix, uint32_t slot, uint64_t seed, bool chunk_only)
{
    struct kvt_io io;
    fixture_io(fix, &io, KVT_IO_READ, 1, FIX_CHUNK_BYTES, 0, slot, FIX_CHUNK_BYTES, seed);
    io.chunk_only = chunk_only;
    fixture_run(fix, &io, 1);
    ck_assert(io.status != KVT_OK || fixture_matches(fix, &io, seed));
    return io.status;
}

enum kvt_status fixture_read(struct fixture *fix, uint32_t slot, uint64_t seed)
{
    enum kvt_status status = read_as(fix, slot, seed, false);
    ck_assert_int_eq(read_as(fix, slot, seed, true), status);
    return status;
}

enum kvt_status fixture_read_whole(struct fixture *fix, uint32_t slot, uint64_t seed)
{
    return read_as(fix, slot, seed, false);
}

uint64_t fixture_chunk_offset(uint32_t slot)
{
    return FIX_DATA_OFFSET + slot * FIX_CHUNK_BYTES;
}

uint64_t fixture_header_offset(uint32_t slot)
{
    uint64_t n_slots = FIX_SLAB_BYTES / (FIX_CHUNK_BYTES + KVT_SLOT_HEADER_BYTES);
    return FIX_DATA_OFFSET + n_slots * FIX_CHUNK_BYTES + slot * (uint64_t)KVT_SLOT_HEADER_BYTES;
}

void fixture_flip(struct fixture *fix, uint64_t offset)
{
    unsigned char byte;
    int fd = open(fix->config.disks[0].path, O_RDWR | O_CLOEXEC);
    ck_assert_int_eq(pread(fd, &byte, 1, (off_t)offset), 1);
    byte ^= 0x10;
    ck_assert_int_eq(pwrite(fd, &byte, 1, (off_t)offset), 1);
    fsync(fd);
    close(fd);
}

void fixture_swap(struct fixture *fix, uint64_t a, uint64_t b, uint64_t bytes)
{
    char *at_a = malloc(bytes);
    char *at_b = malloc(bytes);
    int fd = open(fix->config.disks[0].path, O_RDWR | O_CLOEXEC);
    ck_assert(at_a != NULL && at_b != NULL && fd >= 0);
    ck_assert_int_eq(pread(fd, at_a, bytes, (off_t)a), (ssize_t)bytes);
    ck_assert_int_eq(pread(fd, at_b, bytes, (off_t)b), (ssize_t)bytes);
    ck_assert_int_eq(pwrite(fd, at_a, bytes, (off_t)b), (ssize_t)bytes);
    ck_assert_int_eq(pwrite(fd, at_b, bytes, (off_t)a), (ssize_t)bytes);
    fsync(fd);
    close(fd);
    free(at_a);
    free(at_b);
}
