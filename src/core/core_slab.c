/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Slabs and slots, alike for both tiers. A slab has one slot size while any of its slots is used.
 *
 * Slots are given out by groups of neighbours, lowest first, and of all groups the one with the
 * most free slots comes next. What is written one after the other thus lies side by side, however
 * scattered the slots were that became free: few large requests for a disk, not many small ones.
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
    };
    for (unsigned i = 0; i < KVT_CLASSES_MAX; i++) {
        pool->classes[i].filling = NONE;
        for (unsigned n = 0; n < GROUP_SLOTS_MAX; n++)
            pool->classes[i].groups[n] = NONE;
    }
    pool->slabs = calloc(KVT_MAX(n_slabs, 1u), sizeof(*pool->slabs));
    return pool->slabs != NULL;
}

void core_pool_fini(struct slab_pool *pool)
{
    for (uint32_t i = 0; pool->slabs != NULL && i < pool->n_slabs; i++) {
        free(pool->slabs[i].owner);
        free(pool->slabs[i].groups);
        free(pool->slabs[i].sums);
        free(pool->slabs[i].stale);
    }
    free(pool->slabs);
}

static void free_list_add(struct slab_pool *pool, uint32_t s)
{
    struct slab *slab = &pool->slabs[s];
    slab->prev = NONE;
    slab->next = pool->free_head;
    if (slab->next != NONE)
        pool->slabs[slab->next].prev = s;
    pool->free_head = s;
    pool->n_free++;
}

static void free_list_remove(struct slab_pool *pool, uint32_t s)
{
    const struct slab *slab = &pool->slabs[s];
    if (slab->prev != NONE)
        pool->slabs[slab->prev].next = slab->next;
    else
        pool->free_head = slab->next;
    if (slab->next != NONE)
        pool->slabs[slab->next].prev = slab->prev;
    pool->n_free--;
}

static struct slot_group *group_at(const struct slab_pool *pool, uint32_t first)
{
    const struct slab *slab = &pool->slabs[slot_slab(first)];
    return &slab->groups[slot_index(first) / slab->group_slots];
}

uint32_t core_group_size(const struct slab *slab, uint32_t first)
{
    return KVT_MIN(slab->group_slots, slab->n_slots - slot_index(first));
}

uint32_t core_slot_group(const struct slab_pool *pool, uint32_t slot)
{
    return slot - slot_index(slot) % pool->slabs[slot_slab(slot)].group_slots;
}

/* The group has n_free free slots from now on. */
static void group_set(struct slab_pool *pool, uint32_t first, unsigned n_free)
{
    struct pool_class *class = &pool->classes[pool->slabs[slot_slab(first)].size_class];
    struct slot_group *group = group_at(pool, first);
    if (group->n_free > 0) {
        uint32_t *head = &class->groups[group->n_free - 1];
        if (group->prev != NONE)
            group_at(pool, group->prev)->next = group->next;
        else
            *head = group->next;
        if (group->next != NONE)
            group_at(pool, group->next)->prev = group->prev;
        if (*head == NONE)
            class->has_groups &= ~(UINT64_C(1) << (group->n_free - 1));
    }
    class->n_slots_free = class->n_slots_free + n_free - group->n_free;
    group->n_free = (uint8_t)n_free;
    if (n_free == 0)
        return;
    uint32_t *head = &class->groups[n_free - 1];
    group->prev = NONE;
    group->next = *head;
    if (*head != NONE)
        group_at(pool, *head)->prev = first;
    *head = first;
    class->has_groups |= UINT64_C(1) << (n_free - 1);
}

/* All groups of a slab: as free as they are, or, for a slab that leaves its class, not to be had.
 */
static void groups_set(struct slab_pool *pool, uint32_t s, bool can_be_had)
{
    const struct slab *slab = &pool->slabs[s];
    for (uint32_t first = 0; first < slab->n_slots; first += slab->group_slots) {
        unsigned n_free = 0;
        for (uint32_t i = 0; can_be_had && i < core_group_size(slab, first); i++)
            n_free += (slab->owner[first + i] & OWNER_FREE) != 0;
        group_set(pool, slot_make(s, first), n_free);
    }
}

void core_pool_add(struct slab_pool *pool, uint32_t s, uint64_t base)
{
    struct slab *slab = &pool->slabs[s];
    KVT_ASSERT(s < pool->n_slabs && !slab->present);
    slab->present = true;
    slab->base = base;
    pool->n_present++;
    free_list_add(pool, s);
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
    /* All groups of about one size: in one of a slot or two little lies together. */
    uint64_t n_most =
        KVT_MIN(KVT_MAX(core->config.group_bytes / stride, UINT64_C(1)), (uint64_t)GROUP_SLOTS_MAX);
    uint32_t n_groups = (uint32_t)((n_slots + n_most - 1) / n_most);
    uint32_t n_group = (n_slots + n_groups - 1) / n_groups;
    uint32_t *owner = calloc(n_slots, sizeof(*owner));
    struct slot_group *groups = calloc(n_groups, sizeof(*groups));
    uint64_t *sums = NULL;
    uint64_t sums_bytes = 0;
    if (pool->tier == HOST) {
        slab->n_sums = core->class_segments[size_class];
        sums_bytes = (uint64_t)n_slots * slab->n_sums * sizeof(*sums);
        sums = malloc(KVT_MAX(sums_bytes, 1u));
    }
    if (owner == NULL || groups == NULL || (pool->tier == HOST && sums == NULL) ||
        !stale_room(pool, s, n_slots)) {
        free(owner);
        free(groups);
        free(sums);
        return false;
    }
    free_list_remove(pool, s);
    slab->owner = owner;
    slab->groups = groups;
    slab->n_groups = n_groups;
    slab->group_slots = n_group;
    slab->sums = sums;
    slab->size_class = (uint8_t)size_class;
    slab->n_slots = n_slots;
    slab->n_used = 0;
    for (uint32_t i = 0; i < n_slots; i++)
        owner[i] = OWNER_FREE;
    pool->classes[size_class].n_slabs++;
    pool->classes[size_class].n_slots += n_slots;
    pool->table_bytes += n_slots * sizeof(*owner) + n_groups * sizeof(*groups) + sums_bytes;
    groups_set(pool, s, true);
    return true;
}

static void slab_leave_class(struct slab_pool *pool, uint32_t s)
{
    const struct slab *slab = &pool->slabs[s];
    struct pool_class *class = &pool->classes[slab->size_class];
    groups_set(pool, s, false);
    class->n_slabs--;
    class->n_slots -= slab->n_slots;
    if (class->filling != NONE && slot_slab(class->filling) == s)
        class->filling = NONE;
}

void core_slab_reclass(struct slab_pool *pool, uint32_t s, unsigned size_class)
{
    struct slab *slab = &pool->slabs[s];
    KVT_ASSERT(slab->n_used == 0 && pool->tier == NVME);
    slab_leave_class(pool, s);
    slab->size_class = (uint8_t)size_class;
    pool->classes[size_class].n_slabs++;
    pool->classes[size_class].n_slots += slab->n_slots;
    groups_set(pool, s, true);
}

static void slab_unassign(struct slab_pool *pool, uint32_t s)
{
    struct slab *slab = &pool->slabs[s];
    slab_leave_class(pool, s);
    pool->table_bytes -=
        slab->n_slots * sizeof(*slab->owner) + slab->n_groups * sizeof(*slab->groups);
    if (slab->sums != NULL)
        pool->table_bytes -= (uint64_t)slab->n_slots * slab->n_sums * sizeof(*slab->sums);
    free(slab->owner);
    free(slab->groups);
    free(slab->sums);
    slab->owner = NULL;
    slab->groups = NULL;
    slab->sums = NULL;
    slab->n_slots = 0;
    free_list_add(pool, s);
}

void core_slab_restored(struct slab_pool *pool, uint32_t s)
{
    if (pool->slabs[s].n_used == 0)
        slab_unassign(pool, s);
    else
        groups_set(pool, s, true);
}

static uint64_t slot_stride(const struct kvt_core *core, const struct slab_pool *pool,
                            const struct slab *slab)
{
    return core->class_bytes[slab->size_class] + pool->slot_extra_bytes;
}

/* The group to fill next; NONE. A slab that had no class is assigned to this one. */
static uint32_t group_next(struct kvt_core *core, struct slab_pool *pool, unsigned size_class,
                           uint32_t n_spare, bool *assigned_p)
{
    const struct pool_class *class = &pool->classes[size_class];
    if (class->has_groups != 0) {
        unsigned n_free = 64 - (unsigned)__builtin_clzll(class->has_groups);
        uint32_t first = class->groups[n_free - 1];
        if (class->n_slots_free > n_spare ||
            n_free == core_group_size(&pool->slabs[slot_slab(first)], first))
            return first;
    }
    uint32_t s = pool->free_head;
    *assigned_p = s != NONE && core_slab_assign(core, pool, s, size_class);
    return *assigned_p ? slot_make(s, 0) : NONE;
}

uint32_t core_slot_take(struct kvt_core *core, struct slab_pool *pool, unsigned size_class,
                        uint32_t chunk, uint32_t n_spare)
{
    struct pool_class *class = &pool->classes[size_class];
    bool assigned = false;
    if (class->filling == NONE || group_at(pool, class->filling)->n_free == 0)
        class->filling = group_next(core, pool, size_class, n_spare, &assigned);
    uint32_t first = class->filling;
    if (first == NONE)
        return KVT_SLOT_NONE;
    uint32_t s = slot_slab(first), i = slot_index(first);
    struct slab *slab = &pool->slabs[s];
    if (pool->tier == NVME && (assigned || (slab->meta_failed && slab->n_meta_busy == 0))) {
        slab->meta_failed = false;
        slab->n_meta_busy++;
        core->actions.meta_slab(core->actions.arg, s, core->class_bytes[slab->size_class],
                                core_meta_token(core, META_SLAB, s));
    }
    while (!(slab->owner[i] & OWNER_FREE)) /* one is: n_free > 0 */
        i++;
    slab->owner[i] = chunk;
    slab->n_used++;
    group_set(pool, first, group_at(pool, first)->n_free - 1u);
    pool->used_bytes += slot_stride(core, pool, slab);
    return slot_make(s, i);
}

void core_slot_free(struct kvt_core *core, struct slab_pool *pool, uint32_t slot)
{
    uint32_t s = slot_slab(slot), i = slot_index(slot), first = core_slot_group(pool, slot);
    struct slab *slab = &pool->slabs[s];
    KVT_ASSERT(slab->n_used > 0 && !(slab->owner[i] & OWNER_FREE));
    slab->owner[i] = OWNER_FREE;
    slab->n_used--;
    group_set(pool, first, group_at(pool, first)->n_free + 1u);
    pool->used_bytes -= slot_stride(core, pool, slab);
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
