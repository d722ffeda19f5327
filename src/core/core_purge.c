/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The record of an evicted chunk stays in the metadata until its slot is written again, so a chunk
 * that was deleted could come back at a restart by an old record of it, of whatever slot. Which
 * records are stale is known slot by slot, not by key: a deletion is done when all that were stale
 * at its beginning are gone.
 */
#include "core_internal.h"

/* False: the budget of deletions is used up. */
static bool purge_slot(struct kvt_core *core, uint32_t slot)
{
    struct slab_pool *pool = &core->pool[NVME];
    const struct slab *slab = &pool->slabs[slot_slab(slot)];
    uint32_t i = slot_index(slot);
    if ((slab->stale[i / 64] >> i % 64 & 1) == 0)
        return true;
    uint32_t c = slab->owner != NULL && i < slab->n_slots ? slab->owner[i] : OWNER_FREE;
    if (!owner_is_none(c) && !(core->chunks[c].flags & CHUNK_UNHASHED)) {
        /* Its own record follows the stale one, or is there already. */
        if (core->chunks[c].nvme_state == NVME_META)
            return true;
        if (core->chunks[c].nvme_state == NVME_VALID) {
            core_slot_clean(pool, slot);
            return true;
        }
    }
    return core_meta_drop(core, slot);
}

bool core_purge(struct kvt_core *core, struct job *job, unsigned *n_looks)
{
    struct slab_pool *pool = &core->pool[NVME];
    while (job->purge_slab < pool->n_slabs) {
        const struct slab *slab = &pool->slabs[job->purge_slab];
        uint32_t n_slots = slab->n_stale == 0 ? 0 : slab->n_stale_words * 64;
        for (; job->purge_slot < n_slots; job->purge_slot++) {
            if (*n_looks == 0 || !purge_slot(core, slot_make(job->purge_slab, job->purge_slot)))
                return false;
            --*n_looks;
        }
        if (*n_looks == 0)
            return false;
        job->purge_slot = 0;
        job->purge_slab++;
        --*n_looks;
    }
    job->meta_until = core->n_meta_sent;
    return true;
}
