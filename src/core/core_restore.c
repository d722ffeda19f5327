/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Start from what the metadata remembers. It may be stale or damaged: an evicted chunk's record
 * stays until its slot is used again, so two records can name one key, of which the later write
 * counts; whatever contradicts itself is left out. Bytes are verified when they are read.
 */
#include <stdlib.h>
#include <string.h>

#include "core_internal.h"

/* While restoring, fields of a chunk that have no use yet carry what its record said. */
static void stash(struct chunk *chunk, const struct kvt_meta_record *record)
{
    chunk->write_next = record->parent_slot;
    chunk->write_prev = record->parent_tag;
    chunk->first_child = (uint32_t)record->generation;
    chunk->next_sibling = (uint32_t)(record->generation >> 32);
}

static uint64_t stashed_generation(const struct chunk *chunk)
{
    return (uint64_t)chunk->next_sibling << 32 | chunk->first_child;
}

void kvt_core_restore_ns(struct kvt_core *core, uint32_t n, uint64_t since,
                         const struct kvt_ns_desc *desc)
{
    uint8_t id[KVT_NS_ID_BYTES];
    kvt_ns_id(desc, id);
    /* Under two numbers after the one that took the first could not be written: the later counts.
     */
    uint32_t other = core_ns_find(core, id);
    bool bad = n >= core->config.n_ns_max || core->ns[n].used ||
               kvt_ns_desc_check(desc, NULL) != KVT_OK ||
               (other != NONE && core->ns[other].since >= since);
    if (!bad && other != NONE)
        core_ns_forget(core, other);
    if (bad || !core_ns_add(core, n, since, desc, id))
        core->restore_bad++;
    core->generation = KVT_MAX(core->generation, since);
}

/* A class of that slot size; n_classes: no namespace has it. */
static unsigned class_of_size(struct kvt_core *core, uint64_t slot_bytes)
{
    unsigned c = 0;
    while (c < core->n_classes && core->class_bytes[c] != slot_bytes)
        c++;
    for (uint32_t n = 0; c == core->n_classes && n < core->n_ns; n++)
        if (core->ns[n].used && core->ns[n].slot_bytes == slot_bytes && core_ns_class(core, n))
            return core->ns[n].size_class;
    return c;
}

void kvt_core_restore_slab(struct kvt_core *core, uint32_t s, uint64_t slot_bytes)
{
    struct slab_pool *pool = &core->pool[NVME];
    unsigned c = class_of_size(core, slot_bytes);
    if (s >= pool->n_slabs || pool->slabs[s].owner != NULL || c == core->n_classes ||
        !core_slab_assign(core, pool, s, c))
        core->restore_bad++;
}

/* The record of a slot is not believed: whoever is deleted later must not come back by it. */
static void slot_distrust(struct kvt_core *core, uint32_t slot)
{
    struct slab_pool *pool = &core->pool[NVME];
    if (slot_slab(slot) < pool->n_slabs && !core_slot_stale(pool, slot))
        core->restore_bad++;
}

static void slot_disown(struct kvt_core *core, uint32_t slot)
{
    struct slab *slab = &core->pool[NVME].slabs[slot_slab(slot)];
    slab->owner[slot_index(slot)] = OWNER_FREE;
    slab->n_used--;
    slot_distrust(core, slot);
}

/* Records may be more than the index holds, since those of evicted chunks are among them: the
 * newest stay. */
static bool restore_room(struct kvt_core *core, uint64_t generation)
{
    struct slab_pool *pool = &core->pool[NVME];
    if (core->free_chunk != NONE || core->n_chunks_used < core->config.n_chunks_max)
        return true;
    if (core->restore_heap == NULL) {
        struct heap *heap = calloc(1, sizeof(*heap));
        if (heap == NULL)
            return false;
        core->restore_heap = heap;
        if (!heap_init(heap, core->config.n_chunks_max))
            return false;
        for (uint32_t c = 0; c < core->n_chunks_used; c++)
            heap_set(heap, c, stashed_generation(&core->chunks[c]));
    }
    if (core->restore_heap->n == 0 || heap_first(core->restore_heap) >= generation)
        return false;
    uint32_t c = core->restore_heap->ids[0];
    struct chunk *chunk = &core->chunks[c];
    heap_remove(core->restore_heap, c);
    slot_disown(core, chunk->nvme_slot);
    pool->policy->ops->remove(pool->policy, c, false, core->tick);
    core_count_copies(core, c, false);
    chunk->nvme_state = NVME_NONE;
    chunk->nvme_slot = KVT_SLOT_NONE;
    chunk->first_child = chunk->next_sibling = chunk->write_next = chunk->write_prev = NONE;
    core_chunk_drop(core, c);
    core->restore_bad++;
    return true;
}

static void restore_record(struct kvt_core *core, const struct kvt_meta_record *record,
                           uint64_t hash)
{
    struct slab_pool *pool = &core->pool[NVME];
    uint32_t s = slot_slab(record->slot), i = slot_index(record->slot);
    /* Also of one left out: it stays, and its namespace's number may be given to another. */
    core->generation = KVT_MAX(core->generation, record->generation);
    if (record->ns >= core->n_ns || !core->ns[record->ns].used || s >= pool->n_slabs ||
        pool->slabs[s].owner == NULL || i >= pool->slabs[s].n_slots ||
        !(pool->slabs[s].owner[i] & OWNER_FREE) ||
        core->class_bytes[pool->slabs[s].size_class] != core->ns[record->ns].slot_bytes ||
        !core_ns_class(core, record->ns)) {
        core->restore_bad++;
        slot_distrust(core, record->slot);
        return;
    }
    if (record->generation < core->ns[record->ns].since) { /* of who had the number before */
        slot_distrust(core, record->slot);
        return;
    }
    uint32_t c = core_find_hashed(core, &record->key, record->ns, hash);
    if (c != NONE) {
        if (stashed_generation(&core->chunks[c]) >= record->generation) {
            slot_distrust(core, record->slot);
            return;
        }
        slot_disown(core, core->chunks[c].nvme_slot);
    } else {
        if (!restore_room(core, record->generation)) {
            core->restore_bad++;
            slot_distrust(core, record->slot);
            return;
        }
        c = core_chunk_new(core, &record->key, record->ns);
        core->tick++;
        pool->policy->ops->insert(pool->policy, c, core->ns[record->ns].size_class, hash,
                                  KVT_CHUNK_NONE, core->tick);
    }
    /* Shapes of one slot size that differ in their segments are classes of their own; the metadata
     * names the slot size alone. */
    if (pool->slabs[s].n_used == 0)
        core_slab_reclass(pool, s, core->ns[record->ns].size_class);
    struct chunk *chunk = &core->chunks[c];
    chunk->nvme_slot = record->slot;
    core_count_copies(core, c, false); /* if it was restored before, from an older record */
    chunk->nvme_state = NVME_VALID;
    core_count_copies(core, c, true);
    chunk->digest = record->digest;
    stash(chunk, record);
    if (core->restore_heap != NULL)
        heap_set(core->restore_heap, c, record->generation);
    pool->slabs[s].owner[i] = c;
    pool->slabs[s].n_used++;
}

void kvt_core_restore_records(struct kvt_core *core, const struct kvt_meta_record *records,
                              unsigned n)
{
    for (unsigned start = 0; start < n; start += KVT_BATCH_MAX) {
        unsigned count = KVT_MIN(n - start, (unsigned)KVT_BATCH_MAX);
        for (unsigned i = 0; i < count; i++) {
            core->hashes[i] = core_hash(core, &records[start + i].key, records[start + i].ns);
            __builtin_prefetch(&core->table[core->hashes[i] & core->table_mask], 1);
        }
        for (unsigned i = 0; i < count; i++)
            restore_record(core, &records[start + i], core->hashes[i]);
    }
}

void kvt_core_restore_memory(struct kvt_core *core, uint64_t n_chunks, void **memory_p,
                             uint64_t *bytes_p)
{
    *memory_p = core->chunks;
    *bytes_p = KVT_MIN(n_chunks, (uint64_t)core->config.n_chunks_max) * sizeof(*core->chunks);
}

static uint32_t parent_of(const struct kvt_core *core, const struct chunk *chunk)
{
    const struct slab_pool *pool = &core->pool[NVME];
    uint32_t slot = chunk->write_next, tag;
    if (slot == KVT_SLOT_NONE || slot_slab(slot) >= pool->n_slabs)
        return NONE;
    const struct slab *slab = &pool->slabs[slot_slab(slot)];
    if (slab->owner == NULL || slot_index(slot) >= slab->n_slots)
        return NONE;
    uint32_t c = slab->owner[slot_index(slot)];
    if (c & OWNER_FREE)
        return NONE;
    memcpy(&tag, core->chunks[c].key.bytes, sizeof(tag));
    return tag == chunk->write_prev ? c : NONE;
}

uint64_t kvt_core_restore_end(struct kvt_core *core)
{
    struct slab_pool *pool = &core->pool[NVME];
    if (core->restore_heap != NULL) {
        heap_fini(core->restore_heap);
        free(core->restore_heap);
        core->restore_heap = NULL;
    }
    for (uint32_t c = 0; c < core->n_chunks_used; c++) {
        struct chunk *chunk = &core->chunks[c];
        chunk->prev_sibling = parent_of(core, chunk);
        chunk->first_child = chunk->next_sibling = NONE;
    }
    for (uint32_t c = 0; c < core->n_chunks_used; c++) {
        struct chunk *chunk = &core->chunks[c];
        uint32_t parent = chunk->prev_sibling;
        chunk->prev_sibling = chunk->write_next = chunk->write_prev = NONE;
        core_link(core, c, parent);
    }
    for (uint32_t c = 0; c < core->n_chunks_used; c++)
        core_update_candidate(core, c);
    for (uint32_t s = 0; s < pool->n_slabs; s++) {
        struct slab *slab = &pool->slabs[s];
        if (slab->owner == NULL)
            continue;
        pool->used_bytes +=
            slab->n_used * (core->class_bytes[slab->size_class] + pool->slot_extra_bytes);
        core_slab_restored(pool, s);
    }
    /* Writes and namespaces that were under way when the agent ended may have used numbers beyond
     * the last one remembered. */
    core->generation += (uint64_t)core->config.n_ios_max + core->config.n_ns_max + 1;
    return core->restore_bad;
}
