/* SPDX-License-Identifier: Apache-2.0 */
/* Slabs and slots, alike for both tiers. A slab has one slot size while any of its slots is used.
 */
#include <stdlib.h>
#include <string.h>

#include "core_internal.h"

bool core_pool_init(struct slab_pool *pool, enum tier tier, uint32_t n_slabs, uint64_t slab_bytes,
                    uint64_t slot_extra_bytes)
{
    *pool = (struct slab_pool){
        .tier = tier,
        .slab_bytes = slab_bytes,
        .slot_extra_bytes = slot_extra_bytes,
        .n_slabs = n_slabs,
        .free_head = NONE,
        .last_freed = KVT_SLOT_NONE,
        .last_parent_slot = KVT_SLOT_NONE,
    };
    for (unsigned i = 0; i < KVT_CLASSES_MAX; i++)
        pool->room_head[i] = NONE;
    pool->slabs = calloc(KVT_MAX(n_slabs, 1u), sizeof(*pool->slabs));
    return pool->slabs != NULL;
}

void core_pool_fini(struct slab_pool *pool)
{
    for (uint32_t i = 0; pool->slabs != NULL && i < pool->n_slabs; i++) {
        free(pool->slabs[i].owner);
        free(pool->slabs[i].sums);
        free(pool->slabs[i].stale);
    }
    free(pool->slabs);
}

/* Slabs with room are kept in a list per class, slabs without a class in the free list. */
static uint32_t *list_of(struct slab_pool *pool, const struct slab *slab)
{
    return slab->owner == NULL ? &pool->free_head : &pool->room_head[slab->size_class];
}

static void list_add(struct slab_pool *pool, uint32_t s)
{
    struct slab *slab = &pool->slabs[s];
    uint32_t *head = list_of(pool, slab);
    KVT_ASSERT(!slab->listed);
    slab->listed = true;
    slab->prev = NONE;
    slab->next = *head;
    if (*head != NONE)
        pool->slabs[*head].prev = s;
    *head = s;
}

static void list_remove(struct slab_pool *pool, uint32_t s)
{
    struct slab *slab = &pool->slabs[s];
    if (!slab->listed)
        return;
    slab->listed = false;
    if (slab->prev != NONE)
        pool->slabs[slab->prev].next = slab->next;
    else
        *list_of(pool, slab) = slab->next;
    if (slab->next != NONE)
        pool->slabs[slab->next].prev = slab->prev;
}

void core_pool_add(struct slab_pool *pool, uint32_t s, uint64_t base)
{
    struct slab *slab = &pool->slabs[s];
    KVT_ASSERT(s < pool->n_slabs && !slab->present);
    slab->present = true;
    slab->base = base;
    pool->n_present++;
    pool->n_free++;
    list_add(pool, s);
}

/* So many bits; they only become more, since what a class before left behind still counts. */
static bool stale_room(struct slab_pool *pool, uint32_t s, uint32_t n_slots)
{
    struct slab *slab = &pool->slabs[s];
    uint32_t n_words = (n_slots + 63) / 64;
    if (pool->tier == HOST || n_words <= slab->n_stale_words)
        return true;
    uint64_t *stale = realloc(slab->stale, n_words * sizeof(*stale));
    if (stale == NULL)
        return false;
    memset(stale + slab->n_stale_words, 0, (n_words - slab->n_stale_words) * sizeof(*stale));
    pool->table_bytes += (n_words - slab->n_stale_words) * sizeof(*stale);
    slab->stale = stale;
    slab->n_stale_words = n_words;
    return true;
}

bool core_slot_stale(struct slab_pool *pool, uint32_t slot)
{
    uint32_t s = slot_slab(slot), i = slot_index(slot);
    struct slab *slab = &pool->slabs[s];
    if (!stale_room(pool, s, i + 1))
        return false;
    uint64_t bit = UINT64_C(1) << (i % 64);
    slab->n_stale += (slab->stale[i / 64] & bit) == 0;
    slab->stale[i / 64] |= bit;
    return true;
}

void core_slot_clean(struct slab_pool *pool, uint32_t slot)
{
    uint32_t i = slot_index(slot);
    struct slab *slab = &pool->slabs[slot_slab(slot)];
    uint64_t bit = UINT64_C(1) << (i % 64);
    if (i / 64 >= slab->n_stale_words || (slab->stale[i / 64] & bit) == 0)
        return;
    slab->n_stale--;
    slab->stale[i / 64] &= ~bit;
}

bool core_slab_assign(struct kvt_core *core, struct slab_pool *pool, uint32_t s,
                      unsigned size_class)
{
    struct slab *slab = &pool->slabs[s];
    uint64_t stride = core->class_bytes[size_class] + pool->slot_extra_bytes;
    uint32_t n_slots = (uint32_t)KVT_MIN(pool->slab_bytes / stride, KVT_SLOTS_PER_SLAB);
    KVT_ASSERT(slab->owner == NULL);
    if (n_slots == 0)
        return false;
    uint32_t *owner = calloc(n_slots, sizeof(*owner));
    uint64_t *sums = NULL;
    uint64_t sums_bytes = 0;
    if (pool->tier == HOST) {
        slab->n_sums = core->class_segments[size_class];
        sums_bytes = (uint64_t)n_slots * slab->n_sums * sizeof(*sums);
        sums = malloc(KVT_MAX(sums_bytes, 1u));
    }
    if (owner == NULL || (pool->tier == HOST && sums == NULL) || !stale_room(pool, s, n_slots)) {
        free(owner);
        free(sums);
        return false;
    }
    list_remove(pool, s);
    pool->n_free--;
    slab->owner = owner;
    slab->sums = sums;
    slab->size_class = (uint8_t)size_class;
    slab->n_slots = n_slots;
    slab->n_used = 0;
    for (uint32_t i = 0; i < n_slots; i++)
        owner[i] = OWNER_FREE | (i + 1 < n_slots ? i + 1 : KVT_SLOTS_PER_SLAB);
    slab->first_free = 0;
    pool->n_of_class[size_class]++;
    pool->table_bytes += n_slots * sizeof(*owner) + sums_bytes;
    list_add(pool, s);
    return true;
}

void core_slab_reclass(struct slab_pool *pool, uint32_t s, unsigned size_class)
{
    struct slab *slab = &pool->slabs[s];
    KVT_ASSERT(slab->n_used == 0 && pool->tier == NVME);
    list_remove(pool, s);
    pool->n_of_class[slab->size_class]--;
    slab->size_class = (uint8_t)size_class;
    pool->n_of_class[size_class]++;
    list_add(pool, s);
}

static void slab_unassign(struct slab_pool *pool, uint32_t s)
{
    struct slab *slab = &pool->slabs[s];
    list_remove(pool, s);
    pool->n_of_class[slab->size_class]--;
    pool->table_bytes -= slab->n_slots * sizeof(*slab->owner);
    if (slab->sums != NULL)
        pool->table_bytes -= (uint64_t)slab->n_slots * slab->n_sums * sizeof(*slab->sums);
    free(slab->owner);
    free(slab->sums);
    slab->owner = NULL;
    slab->sums = NULL;
    slab->n_slots = 0;
    pool->n_free++;
    list_add(pool, s);
}

void core_slab_thread(struct slab_pool *pool, uint32_t s)
{
    /* After a restore: chain the slots that nobody claimed, lowest first. */
    struct slab *slab = &pool->slabs[s];
    uint32_t next = KVT_SLOTS_PER_SLAB;
    list_remove(pool, s);
    slab->first_free = NONE;
    for (uint32_t i = slab->n_slots; i-- > 0;) {
        if (!(slab->owner[i] & OWNER_FREE))
            continue;
        slab->owner[i] = OWNER_FREE | next;
        slab->first_free = next = i;
    }
    if (slab->n_used == 0)
        slab_unassign(pool, s);
    else if (slab->first_free != NONE)
        list_add(pool, s);
}

static uint64_t slot_stride(const struct kvt_core *core, const struct slab_pool *pool,
                            const struct slab *slab)
{
    return core->class_bytes[slab->size_class] + pool->slot_extra_bytes;
}

uint32_t core_slot_take(struct kvt_core *core, struct slab_pool *pool, unsigned size_class,
                        uint32_t chunk)
{
    uint32_t s = pool->room_head[size_class];
    bool assigned = s == NONE;
    if (assigned) {
        s = pool->free_head;
        if (s == NONE || !core_slab_assign(core, pool, s, size_class))
            return KVT_SLOT_NONE;
    }
    struct slab *slab = &pool->slabs[s];
    if (pool->tier == NVME && (assigned || (slab->meta_failed && slab->n_meta_busy == 0))) {
        slab->meta_failed = false;
        slab->n_meta_busy++;
        core->actions.meta_slab(core->actions.arg, s, core->class_bytes[slab->size_class],
                                core_meta_token(core, META_SLAB, s));
    }
    uint32_t i = slab->first_free;
    uint32_t next = slab->owner[i] & ~OWNER_FREE;
    slab->owner[i] = chunk;
    slab->first_free = next == KVT_SLOTS_PER_SLAB ? NONE : next;
    slab->n_used++;
    pool->used_bytes += slot_stride(core, pool, slab);
    if (slab->first_free == NONE)
        list_remove(pool, s);
    return slot_make(s, i);
}

void core_slot_free(struct kvt_core *core, struct slab_pool *pool, uint32_t slot)
{
    uint32_t s = slot_slab(slot), i = slot_index(slot);
    struct slab *slab = &pool->slabs[s];
    KVT_ASSERT(slab->n_used > 0 && !(slab->owner[i] & OWNER_FREE));
    slab->owner[i] =
        OWNER_FREE | (slab->first_free == NONE ? KVT_SLOTS_PER_SLAB : slab->first_free);
    slab->first_free = i;
    slab->n_used--;
    pool->used_bytes -= slot_stride(core, pool, slab);
    if (!slab->listed)
        list_add(pool, s);
    if (slab->n_used == 0)
        slab_unassign(pool, s);
}

void core_slot_quarantine(struct kvt_core *core, struct slab_pool *pool, uint32_t slot)
{
    struct slab *slab = &pool->slabs[slot_slab(slot)];
    /* A medium that fails everywhere must not eat the tier: past a share the slot is tried again.
     */
    uint64_t limit = (uint64_t)pool->n_present * slab->n_slots / 64 + 1;
    if (pool->n_quarantined >= limit) {
        core_slot_free(core, pool, slot);
        return;
    }
    slab->owner[slot_index(slot)] = OWNER_QUARANTINED;
    pool->n_quarantined++;
    STAT(core, QUARANTINED_SLOTS)++;
}

uint64_t *core_slot_sums(struct slab_pool *pool, uint32_t slot)
{
    struct slab *slab = &pool->slabs[slot_slab(slot)];
    return slab->sums + (size_t)slot_index(slot) * slab->n_sums;
}

uint64_t core_slot_offset(const struct kvt_core *core, uint32_t host_slot)
{
    const struct slab *slab = &core->pool[HOST].slabs[slot_slab(host_slot)];
    return slab->base + slot_index(host_slot) * core->class_bytes[slab->size_class];
}
