/* SPDX-License-Identifier: Apache-2.0 */
/* Making room: a free slot, else a victim of the same size class, else a slab of another class. */
#include "core_internal.h"

#define RECLAIM_TRIES 8      /* slabs looked at per request */
#define DEMOTE_STEPS  4096   /* slots looked at per request */
#define RECLAIM_STEPS 100000 /* chunks looked at per slab, descendants included */

_Static_assert(KVT_STAT_EVICT_HOST_SLAB == KVT_STAT_EVICT_HOST_ROOM + EVICT_SLAB &&
                   KVT_STAT_EVICT_HOST_INDEX == KVT_STAT_EVICT_HOST_ROOM + EVICT_INDEX &&
                   KVT_STAT_EVICT_NVME_SLAB == KVT_STAT_EVICT_NVME_ROOM + EVICT_SLAB &&
                   KVT_STAT_EVICT_NVME_INDEX == KVT_STAT_EVICT_NVME_ROOM + EVICT_INDEX,
               "a counter per reason");

void core_forget_host(struct kvt_core *core, uint32_t c, enum evict_reason why)
{
    struct chunk *chunk = &core->chunks[c];
    struct slab_pool *pool = &core->pool[HOST];
    bool was_valid = chunk->host_state == HOST_VALID;
    KVT_ASSERT(!(chunk->flags & CHUNK_WANT_WRITE));
    core_set_host(core, c, HOST_NONE);
    if (was_valid)
        pool->policy->ops->remove(pool->policy, c, why != EVICT_NOT, core->tick);
    if (chunk->host_slot != KVT_SLOT_NONE)
        core_slot_free(core, pool, chunk->host_slot);
    chunk->host_slot = KVT_SLOT_NONE;
    if (why != EVICT_NOT) {
        core->stats[KVT_STAT_EVICT_HOST_ROOM + why]++;
        STAT(core, EVICT_HOST_CHUNKS)++;
        STAT(core, EVICT_HOST_BYTES) += chunk_ns(core, c)->desc.chunk_bytes;
    }
}

void core_forget_nvme(struct kvt_core *core, uint32_t c, enum evict_reason why)
{
    struct chunk *chunk = &core->chunks[c];
    struct slab_pool *pool = &core->pool[NVME];
    KVT_ASSERT(chunk->nvme_state == NVME_VALID && chunk->host_state != HOST_READING);
    core_set_nvme(core, c, NVME_NONE);
    pool->policy->ops->remove(pool->policy, c, why != EVICT_NOT, core->tick);
    (void)core_slot_stale(pool, chunk->nvme_slot); /* has its bits since the slab has a class */
    core_slot_free(core, pool, chunk->nvme_slot);
    chunk->nvme_slot = KVT_SLOT_NONE;
    if (why != EVICT_NOT) {
        core->stats[KVT_STAT_EVICT_NVME_ROOM + why]++;
        STAT(core, EVICT_NVME_CHUNKS)++;
        STAT(core, EVICT_NVME_BYTES) += chunk_ns(core, c)->desc.chunk_bytes;
    }
}

void core_delete(struct kvt_core *core, uint32_t c)
{
    struct chunk *chunk = &core->chunks[c];
    KVT_ASSERT(chunk_held(chunk) && !(chunk->flags & CHUNK_UNHASHED));
    STAT(core, DELETED_CHUNKS)++;
    STAT(core, DELETED_BYTES) += chunk_ns(core, c)->desc.chunk_bytes;
    if (chunk->flags & CHUNK_WANT_WRITE)
        core_cancel_write(core, c, KVT_ERR_CANCELED);
    core_wake(core, c, KVT_ERR_MISS); /* loads that wait for its read */
    core_chunk_drop(core, c);
}

static void forget(struct kvt_core *core, enum tier tier, uint32_t c, enum evict_reason why)
{
    if (tier == HOST)
        core_forget_host(core, c, why);
    else
        core_forget_nvme(core, c, why);
    if (core->chunks[c].host_state == HOST_NONE && core->chunks[c].nvme_state == NVME_NONE)
        core_chunk_drop(core, c);
}

static bool usable(void *arg, uint32_t c)
{
    const struct kvt_core *core = arg;
    return core->chunks[c].pins == 0;
}

/* Who is in the slot, if it is of the class and may go; or KVT_CHUNK_NONE. */
static uint32_t candidate_at(const struct kvt_core *core, uint32_t s, uint32_t i,
                             unsigned size_class)
{
    const struct slab *slab = &core->pool[NVME].slabs[s];
    if (slab->owner == NULL || slab->size_class != size_class || i >= slab->n_slots ||
        owner_is_none(slab->owner[i]))
        return KVT_CHUNK_NONE;
    const struct chunk *chunk = &core->chunks[slab->owner[i]];
    bool ok = chunk->pins == 0 && (chunk->flags & (CHUNK_CANDIDATE << NVME)) != 0;
    return ok ? slab->owner[i] : KVT_CHUNK_NONE;
}

/*
 * Who lies beside the last victim. What is written next goes to freed slots: where these are
 * neighbours, the disk gets one large request instead of a small one for each chunk and each
 * header, and so it does when the chunks are read. Where the neighbours stay it is the last
 * victim's parent, since a chain was written in runs.
 */
static uint32_t beside_last(const struct kvt_core *core, unsigned size_class)
{
    const struct slab_pool *pool = &core->pool[NVME];
    uint32_t last = pool->last_freed, parent = pool->last_parent_slot;
    if (last == KVT_SLOT_NONE)
        return KVT_CHUNK_NONE;
    uint32_t c = candidate_at(core, slot_slab(last), slot_index(last) - 1, size_class);
    if (c == KVT_CHUNK_NONE)
        c = candidate_at(core, slot_slab(last), slot_index(last) + 1, size_class);
    if (c == KVT_CHUNK_NONE && parent != KVT_SLOT_NONE)
        c = candidate_at(core, slot_slab(parent), slot_index(parent), size_class);
    return c;
}

static bool evict_one(struct kvt_core *core, enum tier tier, unsigned size_class)
{
    struct slab_pool *pool = &core->pool[tier];
    uint32_t near = tier == NVME ? beside_last(core, size_class) : KVT_CHUNK_NONE;
    uint32_t c =
        pool->policy->ops->victim(pool->policy, size_class, usable, core, near, core->tick);
    if (c == KVT_CHUNK_NONE)
        return false;
    KVT_ASSERT(core->chunks[c].flags & (CHUNK_CANDIDATE << tier));
    if (tier == NVME) {
        uint32_t parent = core->chunks[c].parent;
        pool->last_freed = core->chunks[c].nvme_slot;
        pool->last_parent_slot = parent != NONE ? core->chunks[parent].nvme_slot : KVT_SLOT_NONE;
    }
    forget(core, tier, c, EVICT_ROOM);
    return true;
}

/*
 * A prefix chain that fills the tier has one end, and while that is in use the policy may choose
 * nothing. The rest of the chain is not stranded by what leaves memory and stays on NVMe: the next
 * such copy goes, in the order of the slots.
 */
static bool demote_one(struct kvt_core *core, unsigned size_class)
{
    struct slab_pool *pool = &core->pool[HOST];
    for (unsigned step = 0; step < DEMOTE_STEPS; step++) {
        const struct slab *slab = &pool->slabs[pool->demote_slab];
        if (slab->owner == NULL || slab->size_class != size_class ||
            pool->demote_slot >= slab->n_slots) {
            pool->demote_slab = (pool->demote_slab + 1) % pool->n_slabs;
            pool->demote_slot = 0;
            continue;
        }
        uint32_t c = slab->owner[pool->demote_slot++];
        if (owner_is_none(c))
            continue;
        const struct chunk *chunk = &core->chunks[c];
        if (core_removable(chunk) && chunk->host_state == HOST_VALID &&
            chunk->nvme_state == NVME_VALID) {
            forget(core, HOST, c, EVICT_ROOM);
            return true;
        }
    }
    return false;
}

bool core_at_rest(const struct chunk *chunk)
{
    return !(chunk->flags & CHUNK_UNHASHED) && !(chunk->flags & CHUNK_WANT_WRITE) &&
           chunk->waiters == NONE &&
           (chunk->host_state == HOST_NONE || chunk->host_state == HOST_VALID) &&
           (chunk->nvme_state == NVME_NONE || chunk->nvme_state == NVME_VALID);
}

bool core_removable(const struct chunk *chunk)
{
    return chunk->pins == 0 && core_at_rest(chunk);
}

/* Next of a walk over c's descendants in pre-order; NONE after the last. */
static uint32_t next_below(const struct kvt_core *core, uint32_t root, uint32_t c)
{
    if (core->chunks[c].first_child != NONE)
        return core->chunks[c].first_child;
    while (c != root && core->chunks[c].next_sibling == NONE)
        c = core->chunks[c].parent;
    return c == root ? NONE : core->chunks[c].next_sibling;
}

static uint32_t deepest(const struct kvt_core *core, uint32_t c)
{
    while (core->chunks[c].first_child != NONE)
        c = core->chunks[c].first_child;
    return c;
}

static bool has_other_copy(const struct chunk *chunk, enum tier tier)
{
    return tier == HOST ? chunk->nvme_state == NVME_VALID : chunk->host_state == HOST_VALID;
}

static bool slab_can_go(const struct kvt_core *core, const struct slab_pool *pool, uint32_t s)
{
    const struct slab *slab = &pool->slabs[s];
    unsigned steps = 0;
    for (uint32_t i = 0; i < slab->n_slots; i++) {
        uint32_t root = slab->owner[i];
        if (root & OWNER_FREE)
            continue;
        if (owner_is_none(root) || !core_removable(&core->chunks[root]))
            return false;
        if (has_other_copy(&core->chunks[root], pool->tier))
            continue;
        /* The last copy: what hangs below it goes first. */
        for (uint32_t c = next_below(core, root, root); c != NONE; c = next_below(core, root, c))
            if (++steps > RECLAIM_STEPS || !core_removable(&core->chunks[c]))
                return false;
    }
    return true;
}

static void remove_whole(struct kvt_core *core, uint32_t c)
{
    if (core->chunks[c].host_state == HOST_VALID)
        core_forget_host(core, c, EVICT_SLAB);
    if (core->chunks[c].nvme_state == NVME_VALID)
        core_forget_nvme(core, c, EVICT_SLAB);
    core_chunk_drop(core, c);
}

static void slab_empty(struct kvt_core *core, struct slab_pool *pool, uint32_t s)
{
    struct slab *slab = &pool->slabs[s];
    for (uint32_t i = 0; slab->owner != NULL && i < slab->n_slots; i++) {
        uint32_t root = slab->owner[i];
        if (root & OWNER_FREE)
            continue;
        if (has_other_copy(&core->chunks[root], pool->tier)) {
            forget(core, pool->tier, root, EVICT_SLAB);
            continue;
        }
        for (uint32_t c = deepest(core, root); c != root;) {
            uint32_t parent = core->chunks[c].parent;
            remove_whole(core, c);
            c = deepest(core, parent);
        }
        remove_whole(core, root);
    }
}

/* Empty a slab of the class that has the most, if that class has more than min_slabs. */
static bool reclaim_slab(struct kvt_core *core, struct slab_pool *pool, unsigned for_class,
                         uint32_t min_slabs)
{
    unsigned from = KVT_CLASSES_MAX;
    for (unsigned i = 0; i < core->n_classes; i++)
        if (i != for_class && pool->n_of_class[i] > min_slabs &&
            (from == KVT_CLASSES_MAX || pool->n_of_class[i] > pool->n_of_class[from]))
            from = i;
    if (from == KVT_CLASSES_MAX)
        return false;
    unsigned tries = 0;
    for (uint32_t n = 0; n < pool->n_slabs && tries < RECLAIM_TRIES; n++) {
        uint32_t s = pool->reclaim_cursor;
        pool->reclaim_cursor = (s + 1) % pool->n_slabs;
        if (pool->slabs[s].owner == NULL || pool->slabs[s].size_class != from)
            continue;
        tries++;
        if (slab_can_go(core, pool, s)) {
            slab_empty(core, pool, s);
            return true;
        }
    }
    return false;
}

/* Sizes that came later get their share of the slabs; beyond it they evict their own. */
static uint32_t share_of(const struct kvt_core *core, const struct slab_pool *pool,
                         unsigned size_class)
{
    uint32_t n_active = pool->n_of_class[size_class] == 0;
    for (unsigned i = 0; i < core->n_classes; i++)
        n_active += pool->n_of_class[i] > 0;
    return pool->n_present / n_active;
}

bool core_lacks_slabs(const struct kvt_core *core, unsigned size_class)
{
    const struct slab_pool *pool = &core->pool[HOST];
    return pool->n_of_class[size_class] < share_of(core, pool, size_class);
}

uint32_t core_room(struct kvt_core *core, enum tier tier, uint32_t c)
{
    struct slab_pool *pool = &core->pool[tier];
    unsigned size_class = chunk_ns(core, c)->size_class;
    uint32_t slot = core_slot_take(core, pool, size_class, c);
    if (slot != KVT_SLOT_NONE || pool->n_present == 0)
        return slot;
    uint32_t share = share_of(core, pool, size_class);
    bool found = false;
    if (pool->n_of_class[size_class] < share)
        found = reclaim_slab(core, pool, size_class, share);
    if (!found)
        found = evict_one(core, tier, size_class);
    if (!found && tier == HOST)
        found = demote_one(core, size_class);
    if (!found && pool->n_of_class[size_class] == 0)
        found = reclaim_slab(core, pool, size_class, 0);
    return found ? core_slot_take(core, pool, size_class, c) : KVT_SLOT_NONE;
}

/* An evicted chunk's record goes when its slot is written again. Where the index is what is full,
 * that may be long after, and a restart would have more records than room: it goes at once. */
static bool evict_indexed(struct kvt_core *core, enum tier tier, unsigned size_class)
{
    struct kvt_policy *policy = core->pool[tier].policy;
    uint32_t c = policy->ops->victim(policy, size_class, usable, core, KVT_CHUNK_NONE, core->tick);
    if (c == KVT_CHUNK_NONE)
        return false;
    uint32_t slot = core->chunks[c].nvme_slot;
    forget(core, tier, c, EVICT_INDEX);
    STAT(core, EVICT_INDEX_COPIES)++;
    if (tier == HOST)
        return true;
    (void)core_meta_drop(core, slot); /* there is room for it: see core_room_index() */
    /* Its copy in memory goes too, or else one chunk after the other would lose only one of two. */
    if (core->chunks[c].host_state == HOST_VALID &&
        (core->chunks[c].flags & (CHUNK_CANDIDATE << HOST)) != 0) {
        forget(core, HOST, c, EVICT_INDEX);
        STAT(core, EVICT_INDEX_COPIES)++;
    }
    return true;
}

bool core_room_index(struct kvt_core *core)
{
    if (core->free_chunk != NONE || core->n_chunks_used < core->config.n_chunks_max)
        return true;
    /* Evict until a record is free: a victim's copy in memory may have to stay. */
    for (unsigned n = 0; n < 64; n++) {
        bool nvme = core->pool[NVME].n_present > 0, found = false;
        if (nvme && core->n_meta_kind_busy[META_DROP] >= core->config.n_ios_max)
            return false;
        for (unsigned i = 0; i < core->n_classes && nvme && !found; i++)
            found = evict_indexed(core, NVME, i);
        for (unsigned i = 0; i < core->n_classes && !found; i++)
            found = evict_indexed(core, HOST, i);
        if (!found || core->free_chunk != NONE)
            return found;
    }
    return false;
}
