/* SPDX-License-Identifier: Apache-2.0 */
/* Making room: a free slot, else victims of the same size class, else a slab of another class. */
#include "core_internal.h"

#define RECLAIM_TRIES 8      /* slabs looked at per request */
#define DEMOTE_STEPS  4096   /* slots looked at per request */
#define RECLAIM_STEPS 100000 /* chunks looked at per slab, descendants included */
#define SPARE_SHARE   64     /* one slot in so many on NVMe stays free, until its group is */
#define ALONE         7      /* victims that go alone after one whose neighbours mostly stayed */

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

/* Next of a walk over c's descendants in pre-order; NONE after the last. */
static uint32_t next_below(const struct kvt_core *core, uint32_t root, uint32_t c)
{
    if (core->chunks[c].first_child != NONE)
        return core->chunks[c].first_child;
    while (c != root && core->chunks[c].next_sibling == NONE)
        c = core->chunks[c].parent;
    return c == root ? NONE : core->chunks[c].next_sibling;
}

/* Whether a chunk's copy on NVMe may go with the last victim, once those below it are gone. */
static bool may_go_too(const struct kvt_core *core, uint32_t c, unsigned size_class)
{
    const struct chunk *chunk = &core->chunks[c];
    const struct kvt_policy *policy = core->pool[NVME].policy;
    return chunk->pins == 0 && core_may_leave_nvme(chunk) &&
           core->ns[chunk->ns].size_class == size_class &&
           policy->ops->may_go_too(policy, c, core->tick);
}

/* A chunk's copy on NVMe and those below it, or none of them. */
static bool evict_with_below(struct kvt_core *core, uint32_t root, unsigned size_class,
                             unsigned *n_looks)
{
    uint32_t gone[2 * GROUP_SLOTS_MAX];
    unsigned n = 0;
    for (uint32_t c = root; c != NONE; c = next_below(core, root, c)) {
        if (*n_looks == 0)
            return false;
        (*n_looks)--;
        if (core->chunks[c].nvme_state == NVME_NONE)
            continue;
        if (!may_go_too(core, c, size_class))
            return false;
        gone[n++] = c;
    }
    while (n > 0)
        forget(core, NVME, gone[--n], EVICT_ROOM);
    return true;
}

/*
 * The neighbours of a victim go with it where the policy minds little. What is written next then
 * finds a whole group of free slots: one large request for the disk instead of a small one for each
 * chunk and each header, and so it is when the chunks are read. One victim after the other, with
 * the neighbours of the last one preferred, ends with nearly every slot a place of its own: a
 * chain's chunks that were apart stay apart, and each time some more are.
 */
static void evict_neighbours(struct kvt_core *core, uint32_t first, unsigned size_class)
{
    struct slab_pool *pool = &core->pool[NVME];
    const struct slab *slab = &pool->slabs[slot_slab(first)];
    unsigned group_slots = slab->group_slots, n_looks = 2 * group_slots, n_gone = 0;
    if (pool->n_alone > 0) {
        pool->n_alone--;
        return;
    }
    /* Ends of chains mostly come last. The slab has no class any more when its last chunk goes. */
    for (uint32_t i = slot_index(first) + core_group_size(slab, first);
         i-- > slot_index(first) && slab->owner != NULL && n_looks > 0;)
        if (!owner_is_none(slab->owner[i]))
            n_gone += evict_with_below(core, slab->owner[i], size_class, &n_looks);
    if (n_gone < (2 * group_slots - n_looks) / 8) /* not worth the looks */
        pool->n_alone = ALONE;
}

static bool evict(struct kvt_core *core, enum tier tier, unsigned size_class)
{
    struct slab_pool *pool = &core->pool[tier];
    const struct kvt_policy_ops *ops = pool->policy->ops;
    uint32_t c = ops->victim(pool->policy, size_class, usable, core, core->tick);
    if (c == KVT_CHUNK_NONE)
        return false;
    KVT_ASSERT(core->chunks[c].flags & (CHUNK_CANDIDATE << tier));
    uint32_t slot = tier == HOST ? core->chunks[c].host_slot : core->chunks[c].nvme_slot;
    uint32_t first = core_slot_group(pool, slot);
    const struct slab *slab = &pool->slabs[slot_slab(slot)];
    forget(core, tier, c, EVICT_ROOM);
    /* After a restart a slab can hold chunks of another class than its own, of the same slot size.
     */
    if (slab->owner == NULL || slab->size_class != size_class)
        return true;
    if (tier == NVME && ops->may_go_too != NULL)
        evict_neighbours(core, first, size_class);
    if (slab->owner != NULL)
        pool->classes[size_class].filling = first;
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
        if (i != for_class && pool->classes[i].n_slabs > min_slabs &&
            (from == KVT_CLASSES_MAX || pool->classes[i].n_slabs > pool->classes[from].n_slabs))
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
    uint32_t n_active = 1;
    for (unsigned i = 0; i < core->n_classes; i++)
        n_active += i != size_class && pool->classes[i].n_slabs > 0;
    return pool->n_present / n_active;
}

bool core_lacks_slabs(const struct kvt_core *core, unsigned size_class)
{
    const struct slab_pool *pool = &core->pool[HOST];
    return pool->classes[size_class].n_slabs < share_of(core, pool, size_class);
}

uint32_t core_room(struct kvt_core *core, enum tier tier, uint32_t c)
{
    struct slab_pool *pool = &core->pool[tier];
    unsigned size_class = chunk_ns(core, c)->size_class;
    bool has_spare = tier == NVME && pool->policy->ops->may_go_too != NULL;
    uint32_t n_spare = has_spare ? pool->classes[size_class].n_slots / SPARE_SHARE : 0;
    uint32_t slot = core_slot_take(core, pool, size_class, c, n_spare);
    if (slot != KVT_SLOT_NONE || pool->n_present == 0)
        return slot;
    uint32_t share = share_of(core, pool, size_class);
    bool found = false;
    if (pool->classes[size_class].n_slabs < share)
        found = reclaim_slab(core, pool, size_class, share);
    if (!found)
        found = evict(core, tier, size_class);
    if (!found && tier == HOST)
        found = demote_one(core, size_class);
    if (!found && pool->classes[size_class].n_slabs == 0)
        found = reclaim_slab(core, pool, size_class, 0);
    if (found)
        slot = core_slot_take(core, pool, size_class, c, n_spare);
    return slot != KVT_SLOT_NONE ? slot : core_slot_take(core, pool, size_class, c, 0);
}

/* An evicted chunk's record goes when its slot is written again. Where the index is what is full,
 * that may be long after, and a restart would have more records than room: it goes at once. */
static bool evict_indexed(struct kvt_core *core, enum tier tier, unsigned size_class)
{
    struct kvt_policy *policy = core->pool[tier].policy;
    uint32_t c = policy->ops->victim(policy, size_class, usable, core, core->tick);
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
