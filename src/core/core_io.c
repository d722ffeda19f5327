/* SPDX-License-Identifier: Apache-2.0 */
/* Transfers between the arena and NVMe: write-behind, promotion, scrub, and their metadata. */
#include <stdlib.h>
#include <string.h>

#include "core_internal.h"

#define WRITE_FAILURES_MAX   8                             /* in a row, then a pause */
#define WRITE_PAUSE_NS       (UINT64_C(5) * 1000000000)    /* before NVMe is tried again */
#define SCRUB_PASS_NS        (UINT64_C(3600) * 1000000000) /* between two passes */
#define SCRUB_SLOTS_PER_STEP 4096                          /* empty ones looked at per flush */

#define TOKEN(kind, number) ((uint64_t)(kind) << 32 | (number))

bool core_io_init(struct kvt_core *core)
{
    uint32_t n = core->config.n_ios_max;
    core->ios = calloc(n, sizeof(*core->ios));
    core->headers = kvt_big_calloc((uint64_t)n * KVT_SLOT_HEADER_BYTES);
    if (core->ios == NULL || core->headers == NULL)
        return false;
    for (uint32_t i = 0; i < n; i++) {
        void *page = core->headers + (size_t)i * KVT_SLOT_HEADER_BYTES;
        core->ios[i].header = page;
        core->ios[i].next = i + 1 < n ? &core->ios[i + 1] : NULL;
    }
    core->free_ios = core->ios;
    core->free_ios_tail = &core->ios[n - 1].next;
    core->write_head = core->write_tail = NONE;
    return true;
}

void core_io_fini(struct kvt_core *core)
{
    free(core->ios);
    kvt_big_free(core->headers, (uint64_t)core->config.n_ios_max * KVT_SLOT_HEADER_BYTES);
}

void kvt_core_header_pool(struct kvt_core *core, void **pool_p, uint64_t *bytes_p)
{
    *pool_p = core->headers;
    *bytes_p = (uint64_t)core->config.n_ios_max * KVT_SLOT_HEADER_BYTES;
}

static struct kvt_io *io_new(struct kvt_core *core, enum kvt_io_type type, uint32_t c,
                             uint32_t host_slot)
{
    const struct chunk *chunk = &core->chunks[c];
    const struct ns *ns = chunk_ns(core, c);
    struct kvt_io *io = core->free_ios;
    struct kvt_slot_header *header = io->header;
    core->free_ios = io->next;
    if (core->free_ios == NULL)
        core->free_ios_tail = &core->free_ios;
    core->n_ios_busy++;
    *io = (struct kvt_io){
        .type = type,
        .slab = slot_slab(chunk->nvme_slot),
        .slot = slot_index(chunk->nvme_slot),
        .slot_bytes = ns->slot_bytes,
        .chunk_bytes = ns->desc.chunk_bytes,
        .n_segments = ns->desc.n_segments,
        .arena_slab = slot_slab(host_slot),
        .arena_offset = core_slot_offset(core, host_slot),
        .header = header,
        .key = chunk->key,
        .digest = chunk->digest,
        .core_id = c,
    };
    memcpy(io->ns_id, ns->id, sizeof(io->ns_id));
    return io;
}

static void io_free(struct kvt_core *core, struct kvt_io *io)
{
    /* The one that was free for longest comes next, so that neighbours in a slab mostly have
     * neighbouring header pages, which a disk takes for one piece. */
    io->next = NULL;
    *core->free_ios_tail = io;
    core->free_ios_tail = &io->next;
    core->n_ios_busy--;
}

/* --- write-behind ------------------------------------------------------------------------------
 */

void core_want_write(struct kvt_core *core, uint32_t c)
{
    struct chunk *chunk = &core->chunks[c];
    if (core->pool[NVME].n_slabs == 0 || (chunk->flags & CHUNK_WANT_WRITE) ||
        chunk->nvme_state != NVME_NONE || chunk->host_state != HOST_VALID)
        return;
    chunk->flags |= CHUNK_WANT_WRITE;
    chunk->write_next = NONE;
    chunk->write_prev = core->write_tail;
    if (core->write_tail != NONE)
        core->chunks[core->write_tail].write_next = c;
    else
        core->write_head = c;
    core->write_tail = c;
    core->n_write_queue++;
    core_update_candidate(core, c);
}

static void write_unqueue(struct kvt_core *core, uint32_t c)
{
    struct chunk *chunk = &core->chunks[c];
    if (chunk->write_prev != NONE)
        core->chunks[chunk->write_prev].write_next = chunk->write_next;
    else
        core->write_head = chunk->write_next;
    if (chunk->write_next != NONE)
        core->chunks[chunk->write_next].write_prev = chunk->write_prev;
    else
        core->write_tail = chunk->write_prev;
    chunk->write_next = chunk->write_prev = NONE;
    core->n_write_queue--;
}

static void write_over(struct kvt_core *core, uint32_t c, enum kvt_status status)
{
    core->chunks[c].flags &= (uint8_t)~CHUNK_WANT_WRITE;
    core_update_candidate(core, c);
    core_wake(core, c, status);
    core_job_moved(core, c, KVT_JOB_DEMOTE, status);
}

void core_cancel_write(struct kvt_core *core, uint32_t c, enum kvt_status status)
{
    if (core->chunks[c].nvme_state == NVME_NONE)
        write_unqueue(core, c);
    write_over(core, c, status);
}

static void write_start(struct kvt_core *core, uint32_t c)
{
    struct chunk *chunk = &core->chunks[c];
    const struct ns *ns = chunk_ns(core, c);
    if (ns->meta_failed)
        core_meta_ns(core, chunk->ns);
    core_set_nvme(core, c, NVME_WRITING);
    struct kvt_io *io = io_new(core, KVT_IO_WRITE, c, chunk->host_slot);
    struct kvt_slot_header *header = io->header;
    memset(header, 0, sizeof(*header));
    header->magic = KVT_SLOT_MAGIC;
    header->version = KVT_SLOT_VERSION;
    header->n_segments = ns->desc.n_segments;
    header->chunk_bytes = ns->desc.chunk_bytes;
    header->generation = ++core->generation;
    header->key = chunk->key;
    if (chunk->parent != NONE)
        header->parent = core->chunks[chunk->parent].key;
    memcpy(header->ns_id, ns->id, sizeof(header->ns_id));
    memcpy(header->sums, core_slot_sums(&core->pool[HOST], chunk->host_slot),
           ns->desc.n_segments * sizeof(header->sums[0]));
    kvt_slot_header_seal(header);
    chunk->digest = io->digest = header->digest;
    core->write_bytes += ns->slot_bytes;
    core->n_writes_busy++;
    core->actions.io(core->actions.arg, io);
}

void core_start_writes(struct kvt_core *core, uint64_t now_ns)
{
    /* Half of the transfers stay for reads, which somebody waits for. */
    uint32_t n_max = KVT_MAX(core->config.n_ios_max / 2, 1u);
    /* A write makes at most one slab change and one put, or a deletion; none may outrun the
     * metadata store. */
    while (core->write_head != NONE && core->free_ios != NULL && core->n_writes_busy < n_max &&
           core->n_writes_busy + core->n_meta_kind_busy[META_PUT] < core->config.n_ios_max &&
           core->n_ios_busy + core->n_meta_kind_busy[META_DEL] < core->config.n_ios_max &&
           core->n_meta_kind_busy[META_SLAB] < core->config.n_nvme_slabs) {
        uint32_t c = core->write_head;
        if (core->write_bytes >= core->config.write_bytes_max)
            return;
        write_unqueue(core, c);
        uint32_t parent = core->chunks[c].parent;
        uint32_t slot = KVT_SLOT_NONE;
        if (parent != NONE)
            core_pin(core, parent); /* the child's room must not cost its parent's copy */
        if (now_ns >= core->write_retry_ns)
            slot = core_room(core, NVME, c);
        if (parent != NONE)
            core_unpin(core, parent);
        if (slot == KVT_SLOT_NONE) {
            STAT(core, WRITE_SKIPPED_CHUNKS)++;
            write_over(core, c, now_ns < core->write_retry_ns ? KVT_ERR_IO : KVT_ERR_NOSPACE);
            continue;
        }
        core->chunks[c].nvme_slot = slot;
        write_start(core, c);
    }
}

static void record_del(struct kvt_core *core, uint32_t slot)
{
    core_slot_clean(&core->pool[NVME], slot);
    core->actions.meta_del(core->actions.arg, slot, core_meta_token(core, META_DEL, slot));
}

/* What the slot held before may still be named, and part of it be overwritten. */
static void written_in_vain(struct kvt_core *core, uint32_t c, bool quarantine)
{
    struct chunk *chunk = &core->chunks[c];
    uint32_t slot = chunk->nvme_slot;
    core_set_nvme(core, c, NVME_NONE);
    record_del(core, slot);
    if (quarantine)
        core_slot_quarantine(core, &core->pool[NVME], slot);
    else
        core_slot_free(core, &core->pool[NVME], slot);
    chunk->nvme_slot = KVT_SLOT_NONE;
}

static void write_done(struct kvt_core *core, struct kvt_io *io, uint64_t now_ns)
{
    uint32_t c = io->core_id;
    struct chunk *chunk = &core->chunks[c];
    core->write_bytes -= io->slot_bytes;
    core->n_writes_busy--;
    if (chunk->flags & CHUNK_UNHASHED) { /* deleted on the way */
        written_in_vain(core, c, io->status == KVT_ERR_IO);
        core_chunk_reap(core, c);
        return;
    }
    if (io->status == KVT_OK) {
        uint32_t parent = chunk->parent;
        bool parent_there = parent != NONE && core->chunks[parent].nvme_state != NVME_NONE;
        struct kvt_meta_record record = {
            .slot = chunk->nvme_slot,
            .ns = chunk->ns,
            .digest = chunk->digest,
            .generation = io->header->generation,
            .parent_slot = parent_there ? core->chunks[parent].nvme_slot : KVT_SLOT_NONE,
            .key = chunk->key,
        };
        if (parent_there)
            memcpy(&record.parent_tag, core->chunks[parent].key.bytes, sizeof(record.parent_tag));
        core->n_write_failures = 0;
        STAT(core, NVME_DEGRADED) = 0;
        STAT(core, NVME_WRITE_BYTES) += io->slot_bytes + KVT_SLOT_HEADER_BYTES;
        core_set_nvme(core, c, NVME_META);
        core->actions.meta_put(core->actions.arg, &record, core_meta_token(core, META_PUT, c));
        return;
    }
    STAT(core, NVME_WRITE_ERRORS)++;
    written_in_vain(core, c, io->status == KVT_ERR_IO);
    if (++core->n_write_failures >= WRITE_FAILURES_MAX) {
        core->write_retry_ns = now_ns + WRITE_PAUSE_NS;
        STAT(core, NVME_DEGRADED) = 1;
    }
    write_over(core, c, io->status);
}

uint64_t core_meta_token(struct kvt_core *core, enum meta_token kind, uint32_t number)
{
    core->n_meta_busy++;
    core->n_meta_sent++;
    core->n_meta_kind_busy[kind]++;
    return TOKEN(kind, number);
}

bool core_meta_drop(struct kvt_core *core, uint32_t slot)
{
    if (core->n_meta_kind_busy[META_DROP] >= core->config.n_ios_max)
        return false;
    core_slot_clean(&core->pool[NVME], slot);
    core->actions.meta_del(core->actions.arg, slot, core_meta_token(core, META_DROP, slot));
    return true;
}

void core_meta_ns(struct kvt_core *core, uint32_t n)
{
    struct ns *ns = &core->ns[n];
    if (core->config.n_nvme_slabs == 0 || ns->meta_busy)
        return;
    core_ns_get(core, n);
    ns->meta_busy = true;
    ns->meta_failed = false;
    core->actions.meta_ns(core->actions.arg, n, ns->since, &ns->desc,
                          core_meta_token(core, META_NS, n));
}

/* A record is worth something only with what explains it: answers come in order, so what is still
 * under way here was sent anew after a failure, and after the record. */
static bool record_explained(const struct kvt_core *core, uint32_t c)
{
    const struct ns *ns = &core->ns[core->chunks[c].ns];
    const struct slab *slab = &core->pool[NVME].slabs[slot_slab(core->chunks[c].nvme_slot)];
    return !ns->meta_busy && !ns->meta_failed && slab->n_meta_busy == 0 && !slab->meta_failed;
}

void kvt_core_meta_done(struct kvt_core *core, uint64_t token, enum kvt_status status,
                        uint64_t now_ns)
{
    (void)now_ns;
    uint32_t c = (uint32_t)token;
    struct chunk *chunk = &core->chunks[c];
    struct kvt_policy *policy = core->pool[NVME].policy;
    KVT_ASSERT(core->n_meta_busy > 0);
    core->n_meta_busy--;
    core->n_meta_answered++;
    core->n_meta_kind_busy[token >> 32]--;
    STAT(core, META_ERRORS) += status != KVT_OK;
    core_jobs_wake(core);
    switch ((enum meta_token)(token >> 32)) {
    case META_NS:
        core->ns[c].meta_busy = false;
        core->ns[c].meta_failed = status != KVT_OK;
        core_ns_put(core, c);
        return;
    case META_SLAB:
        core->pool[NVME].slabs[c].n_meta_busy--;
        core->pool[NVME].slabs[c].meta_failed = status != KVT_OK;
        return;
    case META_PUT:
        break;
    default:
        if (status != KVT_OK) { /* whether the record is gone is open */
            (void)core_slot_stale(&core->pool[NVME], c);
            core->n_meta_failed++;
        }
        return;
    }
    KVT_ASSERT(chunk->nvme_state == NVME_META);
    if (chunk->flags & CHUNK_UNHASHED) { /* its slot is marked stale, or was sent a deletion */
        chunk->nvme_state = NVME_NONE;
        core_slot_free(core, &core->pool[NVME], chunk->nvme_slot);
        chunk->nvme_slot = KVT_SLOT_NONE;
        core_chunk_reap(core, c);
        return;
    }
    if (status == KVT_OK && !record_explained(core, c))
        status = KVT_ERR_IO;
    if (status == KVT_OK) {
        core_slot_clean(&core->pool[NVME], chunk->nvme_slot);
        policy->ops->insert(policy, c, chunk_ns(core, c)->size_class,
                            core_hash(core, &chunk->key, chunk->ns), core_parent_in(core, c, NVME),
                            core->tick);
        core_set_nvme(core, c, NVME_VALID);
    } else {
        STAT(core, NVME_WRITE_ERRORS)++;
        core->n_meta_failed++;
        core_set_nvme(core, c, NVME_NONE);
        (void)core_slot_stale(&core->pool[NVME], chunk->nvme_slot);
        core_slot_free(core, &core->pool[NVME], chunk->nvme_slot);
        chunk->nvme_slot = KVT_SLOT_NONE;
    }
    write_over(core, c, status);
}

/* --- reads -------------------------------------------------------------------------------------
 */

bool core_can_read(const struct kvt_core *core)
{
    /* A transfer that fails deletes its record. */
    return core->free_ios != NULL &&
           core->n_ios_busy + core->n_meta_kind_busy[META_DEL] < core->config.n_ios_max &&
           core->read_bytes < core->config.read_bytes_max;
}

void core_start_read(struct kvt_core *core, uint32_t c)
{
    core_set_host(core, c, HOST_READING);
    core->read_bytes += chunk_ns(core, c)->slot_bytes;
    struct kvt_io *io = io_new(core, KVT_IO_READ, c, core->chunks[c].host_slot);
    io->chunk_only = true;
    core->actions.io(core->actions.arg, io);
}

bool core_start_verify(struct kvt_core *core, uint32_t c)
{
    struct slab_pool *host = &core->pool[HOST];
    core_pin(core, c); /* making room must not choose the chunk itself */
    uint32_t slot = core_room(core, HOST, c);
    if (slot == KVT_SLOT_NONE) {
        core_unpin(core, c);
        return false;
    }
    host->slabs[slot_slab(slot)].owner[slot_index(slot)] = OWNER_SCRATCH;
    host->n_scratch++;
    core->chunks[c].flags |= CHUNK_VERIFY;
    core->read_bytes += chunk_ns(core, c)->slot_bytes;
    core->actions.io(core->actions.arg, io_new(core, KVT_IO_READ, c, slot));
    return true;
}

/* The copy on NVMe is no good, and no other transfer has its slot. */
static void nvme_lost(struct kvt_core *core, uint32_t c, enum kvt_status status)
{
    struct chunk *chunk = &core->chunks[c];
    uint32_t slot = chunk->nvme_slot;
    struct slab_pool *pool = &core->pool[NVME];
    core_set_nvme(core, c, NVME_NONE);
    pool->policy->ops->remove(pool->policy, c, false, core->tick);
    chunk->nvme_slot = KVT_SLOT_NONE;
    record_del(core, slot);
    if (status == KVT_ERR_IO)
        core_slot_quarantine(core, pool, slot);
    else
        core_slot_free(core, pool, slot);
}

static void count_read(struct kvt_core *core, const struct kvt_io *io)
{
    core->read_bytes -= io->slot_bytes;
    if (io->status == KVT_OK)
        STAT(core, NVME_READ_BYTES) +=
            io->slot_bytes + (io->chunk_only ? 0 : KVT_SLOT_HEADER_BYTES);
    else if (io->status == KVT_ERR_IO)
        STAT(core, NVME_READ_ERRORS)++;
    else
        STAT(core, CORRUPT_CHUNKS)++;
}

/* The same, while another transfer has the slot: it is freed when that is over. */
static void nvme_lost_in_use(struct kvt_core *core, uint32_t c, enum kvt_status status)
{
    uint32_t slot = core->chunks[c].nvme_slot;
    core_wake(core, c, status);
    core_chunk_drop(core, c);
    record_del(core, slot);
}

static void read_failed(struct kvt_core *core, uint32_t c, enum kvt_status status)
{
    struct chunk *chunk = &core->chunks[c];
    core_forget_host(core, c, EVICT_NOT);
    if (chunk->flags & CHUNK_UNHASHED) {
        core_chunk_reap(core, c);
    } else if (chunk->flags & CHUNK_VERIFY) {
        nvme_lost_in_use(core, c, status);
    } else {
        nvme_lost(core, c, status);
        core_wake(core, c, status);
        core_chunk_drop(core, c);
    }
}

static void read_done(struct kvt_core *core, struct kvt_io *io)
{
    uint32_t c = io->core_id;
    struct chunk *chunk = &core->chunks[c];
    struct slab_pool *pool = &core->pool[HOST];
    core_job_moved(core, c, KVT_JOB_PREFETCH, io->status);
    if (io->status != KVT_OK || (chunk->flags & CHUNK_UNHASHED)) {
        read_failed(core, c, io->status);
        return;
    }
    memcpy(core_slot_sums(pool, chunk->host_slot), io->header->sums,
           io->n_segments * sizeof(io->header->sums[0]));
    pool->policy->ops->insert(pool->policy, c, chunk_ns(core, c)->size_class,
                              core_hash(core, &chunk->key, chunk->ns),
                              core_parent_in(core, c, HOST), core->tick);
    core_set_host(core, c, HOST_VALID);
    pool->policy->ops->hit(pool->policy, c, core->tick);
    core_wake(core, c, KVT_OK);
}

static void verify_failed(struct kvt_core *core, uint32_t c, enum kvt_status status)
{
    struct chunk *chunk = &core->chunks[c];
    if (chunk->host_state == HOST_READING) { /* the same bytes are under way to a load */
        nvme_lost_in_use(core, c, status);
        return;
    }
    nvme_lost(core, c, status);
    if (chunk->host_state == HOST_VALID)
        core_want_write(core, c); /* what memory has is as good as before */
    else
        core_chunk_drop(core, c);
}

static uint32_t host_slot_of(const struct kvt_core *core, const struct kvt_io *io)
{
    uint64_t base = core->pool[HOST].slabs[io->arena_slab].base;
    return slot_make(io->arena_slab, (uint32_t)((io->arena_offset - base) / io->slot_bytes));
}

static bool reads_to_scratch(const struct kvt_core *core, const struct kvt_io *io)
{
    const struct slab *slab = &core->pool[HOST].slabs[io->arena_slab];
    return slab->owner[slot_index(host_slot_of(core, io))] == OWNER_SCRATCH;
}

static void verify_done(struct kvt_core *core, struct kvt_io *io)
{
    uint32_t c = io->core_id;
    struct chunk *chunk = &core->chunks[c];
    struct slab_pool *host = &core->pool[HOST];
    host->n_scratch--;
    core_slot_free(core, host, host_slot_of(core, io));
    chunk->flags &= (uint8_t)~CHUNK_VERIFY;
    core_job_moved(core, c, KVT_JOB_VERIFY, io->status);
    core->scrub_busy = core->scrub_busy && core->scrub_chunk != c;
    STAT(core, SCRUBBED_CHUNKS)++;
    if (io->status != KVT_OK && !(chunk->flags & CHUNK_UNHASHED))
        verify_failed(core, c, io->status);
    core_unpin(core, c);
    core_chunk_reap(core, c);
}

void kvt_core_io_done(struct kvt_core *core, struct kvt_io *io, uint64_t now_ns)
{
    if (io->type == KVT_IO_WRITE)
        write_done(core, io, now_ns);
    else {
        count_read(core, io);
        if (reads_to_scratch(core, io))
            verify_done(core, io);
        else
            read_done(core, io);
    }
    io_free(core, io);
}

/* --- scrub -------------------------------------------------------------------------------------
 */

/* One chunk at a time, at the configured rate: whatever lies on NVMe unread is read and verified,
 * so that rot is found before it is asked for. */
void core_scrub(struct kvt_core *core, uint64_t now_ns)
{
    struct slab_pool *pool = &core->pool[NVME];
    if (core->config.scrub_bytes_per_s == 0 || core->scrub_busy || now_ns < core->scrub_next_ns ||
        pool->used_bytes == 0)
        return;
    for (unsigned n = 0; n < SCRUB_SLOTS_PER_STEP; n++) {
        struct slab *slab = &pool->slabs[core->scrub_slab];
        if (slab->owner == NULL || core->scrub_slot >= slab->n_slots) {
            core->scrub_slot = 0;
            if (++core->scrub_slab < pool->n_slabs)
                continue;
            core->scrub_slab = 0;
            core->scrub_next_ns = now_ns + SCRUB_PASS_NS;
            return;
        }
        uint32_t c = slab->owner[core->scrub_slot++];
        if (owner_is_none(c) || core->chunks[c].nvme_state != NVME_VALID ||
            core->chunks[c].host_state != HOST_NONE ||
            (core->chunks[c].flags & (CHUNK_UNHASHED | CHUNK_VERIFY)) != 0)
            continue;
        uint64_t bytes = chunk_ns(core, c)->slot_bytes;
        if (!core_can_read(core) || !core_start_verify(core, c)) {
            core->scrub_slot--; /* its turn comes again */
            break;
        }
        core->scrub_busy = true;
        core->scrub_chunk = c;
        core->scrub_next_ns = now_ns + bytes * 1000000000 / core->config.scrub_bytes_per_s;
        return;
    }
    core->scrub_next_ns = now_ns + 100000000; /* nothing found or no room: a little later */
}

bool core_arena_grows(const struct kvt_core *core)
{
    return core->pool[HOST].n_present < core->config.n_host_slabs;
}

bool core_room_may_come(const struct kvt_core *core, uint64_t own_bytes)
{
    return core->n_ios_busy > 0 || core->n_write_queue > 0 || core->n_meta_busy > 0 ||
           core->n_holding > 0 || core_arena_grows(core) || STAT(core, RESERVED_BYTES) > own_bytes;
}
