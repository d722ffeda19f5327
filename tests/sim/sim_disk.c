/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fake disk: real bytes, moved sector by sector at moments of the scheduler's choosing, so that
 * whoever touches a slot that is in transfer shows as wrong bytes, and a kill leaves torn slots.
 */
#include <stdlib.h>
#include <string.h>

#include "sim.h"

#define SECTOR 512u

void sim_disk_init(struct sim *sim)
{
    struct sim_disk *disk = &sim->disk;
    disk->n_bytes = sim->config.n_nvme_slabs * sim->config.nvme_slab_bytes;
    disk->bytes = calloc(disk->n_bytes + 1, 1);
    disk->tainted = calloc(disk->n_bytes / KVT_PAGE_BYTES + 1, sizeof(*disk->tainted));
    disk->n_ops_max = sim->config.n_ios_max;
    disk->ops = calloc(disk->n_ops_max, sizeof(*disk->ops));
    KVT_ASSERT(disk->bytes != NULL && disk->tainted != NULL && disk->ops != NULL);
}

void sim_disk_fini(struct sim *sim)
{
    free(sim->disk.bytes);
    free(sim->disk.tainted);
    free(sim->disk.ops);
}

static uint64_t io_bytes(const struct kvt_io *io)
{
    return KVT_SLOT_HEADER_BYTES + io->slot_bytes;
}

static uint64_t slot_offset(const struct sim *sim, uint32_t slab, uint32_t slot,
                            uint64_t slot_bytes)
{
    return slab * sim->config.nvme_slab_bytes + slot * (slot_bytes + KVT_SLOT_HEADER_BYTES);
}

static void taint(struct sim *sim, uint64_t offset, uint64_t bytes, bool tainted)
{
    for (uint64_t p = offset / KVT_PAGE_BYTES; p < (offset + bytes) / KVT_PAGE_BYTES; p++)
        sim->disk.tainted[p] = tainted;
}

static bool faults_on(const struct sim *sim)
{
    return sim->n_writes_before == 0;
}

/* A core that reuses what is still in transfer would corrupt something sooner or later: say so at
 * once, where the cause is near. */
static void check_submit(struct sim *sim, const struct kvt_io *io, uint64_t offset)
{
    void *pool = NULL;
    uint64_t pool_bytes = 0;
    kvt_core_header_pool(sim->core, &pool, &pool_bytes);
    uint64_t header_at = (uint64_t)((const uint8_t *)io->header - (const uint8_t *)pool);
    SIM_CHECK(sim, io->type == KVT_IO_READ || io->type == KVT_IO_WRITE, "io of type %d", io->type);
    SIM_CHECK(sim,
              io->slab < sim->config.n_nvme_slabs && io->chunk_bytes > 0 &&
                  io->slot_bytes == kvt_align_up(io->chunk_bytes, KVT_PAGE_BYTES) &&
                  (io->slot + 1) * io_bytes(io) <= sim->config.nvme_slab_bytes,
              "io outside its slab: slab %u slot %u slot_bytes %llu", io->slab, io->slot,
              (unsigned long long)io->slot_bytes);
    SIM_CHECK(sim, header_at < pool_bytes && header_at % KVT_SLOT_HEADER_BYTES == 0,
              "io's header is not a page of the pool");
    uint64_t first = (io->arena_offset - sim->arena_base) / KVT_PAGE_BYTES;
    SIM_CHECK(sim, io->arena_offset % KVT_PAGE_BYTES == 0, "io's arena offset is not aligned");
    (void)sim_node_addr(sim, io->arena_offset, io->slot_bytes);
    SIM_CHECK(sim,
              io->arena_slab < sim->config.n_host_slabs &&
                  io->arena_offset - sim->arena_base -
                          io->arena_slab * sim->config.host_slab_bytes <
                      sim->config.host_slab_bytes,
              "io's arena slab %u does not have its offset", io->arena_slab);
    for (uint64_t p = first; p < first + io->slot_bytes / KVT_PAGE_BYTES; p++)
        SIM_CHECK(sim, sim->writers[p] == 0, "io %s a slot that client %u owns",
                  io->type == KVT_IO_READ ? "into" : "from", (sim->writers[p] >> 16) - 1);
    for (unsigned i = 0; i < sim->disk.n_ops_max; i++) {
        const struct sim_disk_op *other = &sim->disk.ops[i];
        if (other->io == NULL)
            continue;
        bool same_disk =
            offset < other->asked + io_bytes(other->io) && other->asked < offset + io_bytes(io);
        bool same_arena = io->arena_offset < other->io->arena_offset + other->io->slot_bytes &&
                          other->io->arena_offset < io->arena_offset + io->slot_bytes;
        SIM_CHECK(sim, other->io != io && other->io->header != io->header,
                  "io or its header is in transfer already");
        SIM_CHECK(sim, !same_disk || (io->type == KVT_IO_READ && other->io->type == KVT_IO_READ),
                  "slab %u slot %u is in transfer already", io->slab, io->slot);
        SIM_CHECK(sim, !same_arena || (io->type == KVT_IO_WRITE && other->io->type == KVT_IO_WRITE),
                  "arena offset %llu is in transfer already", (unsigned long long)io->arena_offset);
    }
}

/* Another place of the disk for as many bytes, on a slot boundary of some class. */
static uint64_t elsewhere(struct sim *sim, const struct kvt_io *io)
{
    uint64_t per_slab = sim->config.nvme_slab_bytes / io_bytes(io);
    return slot_offset(sim, sim_below(&sim->rng, sim->config.n_nvme_slabs),
                       sim_below(&sim->rng, (unsigned)per_slab), io->slot_bytes);
}

static void draw_write_faults(struct sim *sim, struct sim_disk_op *op)
{
    uint64_t bytes = io_bytes(op->io);
    if (sim_fault(sim, SIM_WRITE_EIO)) {
        op->status = KVT_ERR_IO;
        op->n_torn = sim_below(&sim->rng, op->n_sectors);
        taint(sim, op->asked, bytes, true);
    } else if (sim_fault(sim, SIM_NOSPACE)) {
        op->status = KVT_ERR_NOSPACE;
        op->lost = true;
    } else if (sim_fault(sim, SIM_TORN)) {
        op->n_torn = 1 + sim_below(&sim->rng, op->n_sectors);
        taint(sim, op->asked, bytes, true);
    } else if (sim_fault(sim, SIM_LOST)) {
        op->lost = true;
        taint(sim, op->asked, bytes, true);
    } else if (sim_fault(sim, SIM_MISDIRECT)) {
        op->offset = elsewhere(sim, op->io);
        taint(sim, op->asked, bytes, true);
        taint(sim, op->offset, bytes, true);
    }
}

void sim_disk_submit(struct sim *sim, struct kvt_io *io)
{
    struct sim_disk *disk = &sim->disk;
    struct sim_disk_op *op = NULL;
    for (unsigned i = 0; i < disk->n_ops_max && op == NULL; i++)
        if (disk->ops[i].io == NULL)
            op = &disk->ops[i];
    SIM_CHECK(sim, op != NULL, "more than n_ios_max transfers");
    uint64_t offset = slot_offset(sim, io->slab, io->slot, io->slot_bytes);
    check_submit(sim, io, offset);
    *op = (struct sim_disk_op){
        .io = io,
        .n_sectors = (unsigned)(io_bytes(io) / SECTOR),
        .offset = offset,
        .asked = offset,
    };
    op->start = sim_below(&sim->rng, op->n_sectors);
    /* Sectors are 16, 24 or 32: with these strides all of them are reached. */
    op->stride = sim_chance(&sim->rng, 500) ? 1 : sim_chance(&sim->rng, 500) ? 7 : 11;
    disk->n_busy++;
    sim_log(sim, "disk %s slab %u slot %u key %d arena %llu",
            io->type == KVT_IO_READ ? "read" : "write", io->slab, io->slot,
            sim_model_find_key(sim, &io->key), (unsigned long long)io->arena_offset);
    sim_trace(sim, offset ^ (uint64_t)io->type << 60);
    if (io->type == KVT_IO_WRITE) {
        if (sim->n_writes_before > 0)
            sim->n_writes_before--;
        taint(sim, offset, io_bytes(io), false);
        sim_meta_overwritten(sim, io->slab << KVT_SLOT_INDEX_BITS | io->slot);
        if (faults_on(sim))
            draw_write_faults(sim, op);
    } else if (faults_on(sim) && sim_fault(sim, SIM_READ_EIO)) {
        op->status = KVT_ERR_IO;
    } else if (faults_on(sim) && sim_fault(sim, SIM_MISREAD)) {
        op->offset = elsewhere(sim, io);
    }
}

static void move_sector(struct sim *sim, struct sim_disk_op *op)
{
    unsigned sector = (op->start + op->n_moved++ * op->stride) % op->n_sectors;
    uint64_t at = (uint64_t)sector * SECTOR;
    if (op->io->chunk_only && at < KVT_SLOT_HEADER_BYTES)
        return;
    uint8_t *disk = sim->disk.bytes + op->offset + at;
    uint8_t *memory =
        at < KVT_SLOT_HEADER_BYTES
            ? (uint8_t *)op->io->header + at
            : sim->arena + (op->io->arena_offset - sim->arena_base) + at - KVT_SLOT_HEADER_BYTES;
    if (op->io->type == KVT_IO_READ) {
        memcpy(memory, disk, SECTOR);
    } else if (!op->lost && op->n_moved <= op->n_sectors - op->n_torn) {
        memcpy(disk, memory, SECTOR);
        if (op->offset != op->asked) /* what was written there since it began is damaged as well */
            taint(sim, op->offset, io_bytes(op->io), true);
    }
}

static enum kvt_status verify(struct sim *sim, const struct kvt_io *io)
{
    const uint8_t *chunk = sim->arena + (io->arena_offset - sim->arena_base);
    if (io->chunk_only) {
        kvt_segments_sum(chunk, io->chunk_bytes, io->n_segments, io->header->sums);
        return kvt_chunk_check(&io->key, io->ns_id, io->digest, io->chunk_bytes, io->header->sums,
                               io->n_segments);
    }
    enum kvt_status status = kvt_slot_header_check(io->header, &io->key, io->ns_id, io->digest,
                                                   io->chunk_bytes, io->n_segments);
    if (status != KVT_OK)
        return KVT_ERR_CORRUPT;
    return kvt_segments_check(chunk, io->chunk_bytes, io->header->sums, io->n_segments);
}

static void complete(struct sim *sim, struct sim_disk_op *op)
{
    struct kvt_io *io = op->io;
    while (op->n_moved < op->n_sectors)
        move_sector(sim, op);
    io->status = op->status;
    if (io->type == KVT_IO_READ && io->status == KVT_OK)
        io->status = verify(sim, io);
    if (io->type == KVT_IO_READ && io->status != KVT_OK) {
        /* A kill may leave the record of an evicted chunk whose slot was overwritten since. */
        SIM_CHECK(sim, sim->n_lives > 1 || (sim->faults & SIM_DISK_FAULTS) != 0,
                  "slab %u slot %u reads as corrupt without a fault or a kill", io->slab, io->slot);
        int ns = sim_model_find_ns_id(sim, io->ns_id), key = sim_model_find_key(sim, &io->key);
        SIM_CHECK(
            sim,
            ns < 0 || key < 0 || !sim->entries[ns][key].durable || sim->meta_damaged ||
                (sim->faults & SIM_BIT(META_ERR)) != 0 || io->status != KVT_ERR_CORRUPT ||
                op->offset != op->asked ||
                sim_disk_tainted(sim, io->slab << KVT_SLOT_INDEX_BITS | io->slot, io->slot_bytes),
            "ns %d key %d is durable and sound on the disk, and reads as corrupt", ns, key);
        sim->unsound = true;
        sim_model_lost(sim, &io->key, io->ns_id);
    }
    sim_log(sim, "disk %s slab %u slot %u done: %s", io->type == KVT_IO_READ ? "read" : "write",
            io->slab, io->slot, kvt_status_str(io->status));
    sim_trace(sim, (uint64_t)(uint32_t)io->status);
    op->io = NULL;
    sim->disk.n_busy--;
    kvt_core_io_done(sim->core, io, sim->now_ns);
}

bool sim_disk_step(struct sim *sim, bool all)
{
    struct sim_disk *disk = &sim->disk;
    if (disk->n_busy == 0)
        return false;
    unsigned skip = sim_below(&sim->rng, disk->n_busy);
    struct sim_disk_op *op = disk->ops;
    while (op->io == NULL || skip-- > 0)
        op++;
    unsigned n = all ? op->n_sectors : 1 + sim_below(&sim->rng, op->n_sectors);
    while (n-- > 0 && op->n_moved < op->n_sectors)
        move_sector(sim, op);
    if (all || (op->n_moved == op->n_sectors && sim_chance(&sim->rng, 700)))
        complete(sim, op);
    return true;
}

void sim_disk_flip(struct sim *sim)
{
    uint64_t at = sim_u64(&sim->rng) % sim->disk.n_bytes;
    sim->disk.bytes[at] ^= (uint8_t)(1u << sim_below(&sim->rng, 8));
    sim->disk.tainted[at / KVT_PAGE_BYTES] = true;
    sim_log(sim, "disk bit flips at %llu", (unsigned long long)at);
}

void sim_disk_kill(struct sim *sim)
{
    for (unsigned i = 0; i < sim->disk.n_ops_max; i++)
        sim->disk.ops[i].io = NULL;
    sim->disk.n_busy = 0;
}

bool sim_disk_tainted(const struct sim *sim, uint32_t slot, uint64_t slot_bytes)
{
    uint64_t offset = slot_offset(sim, slot >> KVT_SLOT_INDEX_BITS,
                                  slot & ((1u << KVT_SLOT_INDEX_BITS) - 1), slot_bytes);
    bool any = false;
    for (uint64_t at = offset; at < offset + slot_bytes + KVT_SLOT_HEADER_BYTES;
         at += KVT_PAGE_BYTES)
        any = any || sim->disk.tainted[at / KVT_PAGE_BYTES];
    return any;
}

bool sim_disk_holds(const struct sim *sim, const struct kvt_meta_record *record, unsigned ns)
{
    const struct sim_ns *n = &sim->ns[ns];
    const uint8_t *at =
        sim->disk.bytes + slot_offset(sim, record->slot >> KVT_SLOT_INDEX_BITS,
                                      record->slot & ((1u << KVT_SLOT_INDEX_BITS) - 1),
                                      n->slot_bytes);
    struct kvt_slot_header header;
    memcpy(&header, at, sizeof(header));
    return kvt_slot_header_check(&header, &record->key, n->id, record->digest, n->desc.chunk_bytes,
                                 n->desc.n_segments) == KVT_OK &&
           kvt_segments_check(at + KVT_SLOT_HEADER_BYTES, n->desc.chunk_bytes, header.sums,
                              n->desc.n_segments) == KVT_OK;
}
