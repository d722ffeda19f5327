/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The block tier beside raw io_uring of the same size and depth, in the same run: O_DIRECT,
 * registered file and buffers, 2 MiB pages where there are any. The raw side moves the bytes alone;
 * the tier's reads are verified. Sides take turns and the best of the rounds counts for each.
 *
 *     nvme_tier_bench DIR [STORE_MIB [ROUNDS [DEPTH [CHUNK_BYTES]]]]
 */
#include <fcntl.h>
#include <inttypes.h>
#include <liburing.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "kvt/host_tier.h"
#include "kvt/nvme_tier.h"
#include "kvt/util.h"

#define SLAB_BYTES (UINT64_C(256) << 20)
#define N_SEGMENTS 32u
#define DEPTH_MAX  64u

struct bench {
    struct kvt_tier *host;
    struct kvt_tier *nvme;
    char *arena;
    uint64_t arena_offset;
    struct kvt_slot_header *headers; /* one per slot of the store */
    struct kvt_slot_header *pool;
    struct io_uring ring;
    uint64_t store_bytes;
    unsigned depth;
};

static void die(const char *what)
{
    fprintf(stderr, "nvme_tier_bench: %s\n", what);
    exit(1);
}

static double now_s(void)
{
    return (double)kvt_now_ns() * 1e-9;
}

/* Which buffer of the arena a slot in flight uses: its own of `depth`. */
static uint64_t buffer_of(const struct bench *bench, uint64_t chunk_bytes, unsigned lane)
{
    uint64_t offset = lane * chunk_bytes;
    if (offset + chunk_bytes > SLAB_BYTES)
        die("the depth does not fit into a slab");
    return bench->arena_offset + offset;
}

static double raw_run(struct bench *bench, uint64_t chunk_bytes, uint64_t n, bool write)
{
    uint64_t n_started = 0;
    uint64_t n_ended = 0;
    double start = now_s();
    unsigned lanes[DEPTH_MAX];
    unsigned n_lanes = bench->depth;
    for (unsigned i = 0; i < n_lanes; i++)
        lanes[i] = i;
    while (n_ended < n) {
        struct io_uring_cqe *cqe;
        unsigned head;
        unsigned n_seen = 0;
        while (n_started < n && n_lanes > 0) {
            unsigned lane = lanes[--n_lanes];
            char *addr = bench->arena + lane * chunk_bytes;
            uint64_t offset = n_started++ * (chunk_bytes + 4096) + (1 << 20);
            struct io_uring_sqe *sqe = io_uring_get_sqe(&bench->ring);
            if (write)
                io_uring_prep_write_fixed(sqe, 0, addr, (unsigned)chunk_bytes, offset, 0);
            else
                io_uring_prep_read_fixed(sqe, 0, addr, (unsigned)chunk_bytes, offset, 0);
            io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
            io_uring_sqe_set_data64(sqe, lane);
        }
        if (io_uring_submit_and_wait(&bench->ring, 1) < 0)
            die("raw submit failed");
        io_uring_for_each_cqe(&bench->ring, head, cqe)
        {
            if (cqe->res != (int)chunk_bytes)
                die("raw transfer failed");
            lanes[n_lanes++] = (unsigned)io_uring_cqe_get_data64(cqe);
            n_seen++;
        }
        io_uring_cq_advance(&bench->ring, n_seen);
        n_ended += n_seen;
    }
    return (double)(n * chunk_bytes) / (now_s() - start);
}

static double tier_run(struct bench *bench, uint64_t chunk_bytes, uint64_t n, bool write)
{
    static struct kvt_io ios[DEPTH_MAX];
    struct kvt_io *idle[DEPTH_MAX];
    struct kvt_io *done[DEPTH_MAX];
    unsigned n_idle = bench->depth;
    uint64_t n_started = 0;
    uint64_t n_ended = 0;
    uint64_t per_slab = SLAB_BYTES / (chunk_bytes + KVT_SLOT_HEADER_BYTES);
    struct pollfd fd = {.fd = bench->nvme->ops->event_fd(bench->nvme), .events = POLLIN};
    for (unsigned i = 0; i < n_idle; i++)
        idle[i] = &ios[i];
    double start = now_s();
    while (n_ended < n) {
        struct kvt_io *batch[DEPTH_MAX];
        unsigned n_batch = 0;
        for (; n_started < n && n_idle > 0; n_started++) {
            struct kvt_io *io = idle[--n_idle];
            unsigned lane = (unsigned)(io - ios);
            const struct kvt_slot_header *header = &bench->headers[n_started];
            *io = (struct kvt_io){.type = write ? KVT_IO_WRITE : KVT_IO_READ,
                                  .chunk_only = !write,
                                  .slab = (uint32_t)(n_started / per_slab),
                                  .slot = (uint32_t)(n_started % per_slab),
                                  .slot_bytes = chunk_bytes,
                                  .chunk_bytes = chunk_bytes,
                                  .n_segments = N_SEGMENTS,
                                  .arena_slab = 0,
                                  .arena_offset = buffer_of(bench, chunk_bytes, lane),
                                  .header = &bench->pool[lane],
                                  .key = header->key,
                                  .digest = header->digest};
            if (write)
                bench->pool[lane] = *header;
            batch[n_batch++] = io;
        }
        if (n_batch > 0 && bench->nvme->ops->submit(bench->nvme, batch, n_batch) != n_batch)
            die("the tier took less than its depth");
        if (poll(&fd, 1, -1) < 0)
            continue;
        unsigned n_done = bench->nvme->ops->poll(bench->nvme, done, DEPTH_MAX);
        for (unsigned i = 0; i < n_done; i++) {
            if (done[i]->status != KVT_OK)
                die(kvt_status_str(done[i]->status));
            idle[n_idle++] = done[i];
        }
        n_ended += n_done;
    }
    return (double)(n * chunk_bytes) / (now_s() - start);
}

static void size_run(struct bench *bench, uint64_t chunk_bytes, unsigned n_rounds)
{
    uint64_t per_slab = SLAB_BYTES / (chunk_bytes + KVT_SLOT_HEADER_BYTES);
    uint64_t n = per_slab * (bench->store_bytes / SLAB_BYTES);
    double best[4] = {0};
    bench->headers = aligned_alloc(4096, n * sizeof(*bench->headers));
    if (bench->headers == NULL)
        die("out of memory");
    /* All lanes hold the same bytes, so that any of them fits any header. */
    for (uint64_t i = 0; i < bench->depth * chunk_bytes; i += 8) {
        uint64_t word = i % chunk_bytes * UINT64_C(0x9e3779b97f4a7c15);
        memcpy(bench->arena + i, &word, 8);
    }
    uint64_t segment_bytes = chunk_bytes / N_SEGMENTS;
    for (uint64_t i = 0; i < n; i++) {
        struct kvt_slot_header *header = &bench->headers[i];
        memset(header, 0, sizeof(*header));
        header->magic = KVT_SLOT_MAGIC;
        header->version = KVT_SLOT_VERSION;
        header->n_segments = N_SEGMENTS;
        header->chunk_bytes = chunk_bytes;
        header->generation = i;
        for (unsigned s = 0; s < N_SEGMENTS; s++)
            header->sums[s] = i > 0 ? bench->headers[0].sums[s]
                                    : XXH3_64bits(bench->arena + s * segment_bytes, segment_bytes);
        kvt_slot_header_seal(header);
    }
    (void)tier_run(bench, chunk_bytes, n,
                   true); /* the first pass turns preallocated extents real */
    (void)raw_run(bench, chunk_bytes, n, true);
    for (unsigned round = 0; round < n_rounds; round++) {
        double now[4];
        now[0] = raw_run(bench, chunk_bytes, n, true);
        now[1] = tier_run(bench, chunk_bytes, n, true);
        now[2] = raw_run(bench, chunk_bytes, n, false);
        now[3] = tier_run(bench, chunk_bytes, n, false);
        for (unsigned i = 0; i < 4; i++)
            best[i] = KVT_MAX(best[i], now[i]);
    }
    printf("%9" PRIu64 " bytes depth %u  write raw %.2f tier %.2f GB/s ratio %.3f   "
           "read raw %.2f tier %.2f GB/s ratio %.3f\n",
           chunk_bytes, bench->depth, best[0] * 1e-9, best[1] * 1e-9, best[1] / best[0],
           best[2] * 1e-9, best[3] * 1e-9, best[3] / best[2]);
    fflush(stdout);
    free(bench->headers);
}

int main(int argc, char **argv)
{
    static const uint64_t sizes[] = {256 * KVT_KIB, 1536 * KVT_KIB, 6 * KVT_MIB, 32 * KVT_MIB};
    struct bench bench = {.depth = 4};
    struct kvt_error err = {0};
    if (argc < 2)
        die("usage: nvme_tier_bench DIR [STORE_MIB [ROUNDS [DEPTH [CHUNK_BYTES]]]]");
    bench.store_bytes = (argc > 2 ? strtoull(argv[2], NULL, 10) : 1024) * KVT_MIB;
    unsigned n_rounds = argc > 3 ? (unsigned)atoi(argv[3]) : 3;
    if (argc > 4)
        bench.depth = (unsigned)atoi(argv[4]);
    if (bench.depth == 0 || bench.depth > DEPTH_MAX)
        die("depth is 1 to 64");

    struct kvt_host_config host_config = {.bytes = SLAB_BYTES, .slab_bytes = SLAB_BYTES};
    if (kvt_host_tier_open(&host_config, &bench.host, &err) != KVT_OK ||
        kvt_host_tier_start(bench.host, &err) != KVT_OK)
        die(err.msg);
    struct pollfd fd = {.fd = bench.host->ops->event_fd(bench.host), .events = POLLIN};
    uint32_t slab;
    poll(&fd, 1, -1);
    if (bench.host->ops->ready(bench.host, &slab, &bench.arena_offset, 1) != 1)
        die("no memory for the arena");
    bench.arena = kvt_host_tier_addr(bench.host, bench.arena_offset);
    struct kvt_tier_info info;
    bench.host->ops->info(bench.host, &info);
    printf("arena: %s\n", info.note);

    bench.pool = aligned_alloc(4096, DEPTH_MAX * sizeof(*bench.pool));
    struct kvt_nvme_config config = {.n_disks = 1,
                                     .slab_bytes = SLAB_BYTES,
                                     .queue_depth = DEPTH_MAX,
                                     .limits = {UINT64_MAX, UINT64_MAX},
                                     .n_workers = 2,
                                     .header_pool = bench.pool,
                                     .header_pool_bytes = DEPTH_MAX * sizeof(*bench.pool)};
    char raw_path[300];
    uint8_t id[16] = {0};
    snprintf(config.disks[0].path, sizeof(config.disks[0].path), "%s/bench.store", argv[1]);
    snprintf(raw_path, sizeof(raw_path), "%s/bench.raw", argv[1]);
    config.disks[0].capacity_bytes = bench.store_bytes + KVT_MIB;
    if (kvt_nvme_tier_open(&config, bench.host, id, &bench.nvme, &err) != KVT_OK)
        die(err.msg);
    bench.nvme->ops->info(bench.nvme, &info);
    printf("store: %s\n", info.note[0] != '\0' ? info.note : "io_uring");
    if (!kvt_nvme_tier_register(bench.nvme, 0, bench.arena_offset, SLAB_BYTES))
        printf("arena not registered\n");

    int raw_fd = open(raw_path, O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600);
    struct iovec iov = {bench.arena, SLAB_BYTES};
    if (raw_fd < 0 || fallocate(raw_fd, 0, 0, (off_t)(bench.store_bytes + KVT_MIB)) != 0 ||
        io_uring_queue_init(256, &bench.ring, 0) != 0 ||
        io_uring_register_files(&bench.ring, &raw_fd, 1) != 0 ||
        io_uring_register_buffers(&bench.ring, &iov, 1) != 0)
        die("no raw reference");
    uint64_t only = argc > 5 ? strtoull(argv[5], NULL, 10) : 0;
    for (unsigned i = 0; i < KVT_ARRAY_LEN(sizes); i++) {
        if (only == 0 || only == sizes[i])
            size_run(&bench, sizes[i], n_rounds);
    }

    bench.nvme->ops->close(bench.nvme);
    bench.host->ops->close(bench.host);
    io_uring_queue_exit(&bench.ring);
    close(raw_fd);
    unlink(raw_path);
    unlink(config.disks[0].path);
    free(bench.pool);
    return 0;
}
