/* SPDX-License-Identifier: Apache-2.0 */
/* Lists of what the core holds, page by page. A cursor is the number of the next record. */
#include <string.h>

#include "core_internal.h"

/* --- chunks ------------------------------------------------------------------------------------
 */

bool core_filter_takes(const struct kvt_core *core, const struct kvt_admin_filter *filter,
                       uint32_t c)
{
    const struct chunk *chunk = &core->chunks[c];
    if ((chunk->flags & CHUNK_UNHASHED) || !chunk_held(chunk))
        return false;
    if (filter->ns != KVT_ADMIN_NS_ANY && filter->ns != chunk->ns)
        return false;
    if (filter->tiers != 0 && (filter->tiers & chunk_where(chunk)) == 0)
        return false;
    if (((filter->flags & KVT_FILTER_PINNED) && chunk->admin_pins == 0) ||
        ((filter->flags & KVT_FILTER_UNPINNED) && chunk->admin_pins > 0) ||
        ((filter->flags & KVT_FILTER_LEASED) && chunk->pins == chunk->admin_pins))
        return false;
    uint64_t bytes = core->ns[chunk->ns].desc.chunk_bytes;
    if (bytes < filter->min_bytes || (filter->max_bytes != 0 && bytes > filter->max_bytes))
        return false;
    return memcmp(chunk->key.bytes, filter->key_prefix, filter->n_key_prefix_bytes) == 0;
}

static void describe(const struct kvt_core *core, uint32_t c, struct kvt_admin_chunk *out)
{
    const struct chunk *chunk = &core->chunks[c];
    const struct ns *ns = &core->ns[chunk->ns];
    *out = (struct kvt_admin_chunk){
        .key = chunk->key,
        .has_parent =
            chunk->parent != NONE && !(core->chunks[chunk->parent].flags & CHUNK_UNHASHED),
        .reused = chunk->flags & CHUNK_REUSED,
        .write_waiting = chunk->flags & CHUNK_WANT_WRITE,
        .where = chunk_where(chunk),
        .host = chunk->host_state == HOST_VALID  ? KVT_COPY_VALID
                : chunk->host_state == HOST_NONE ? KVT_COPY_NONE
                                                 : KVT_COPY_COMING,
        .nvme = chunk->nvme_state == NVME_VALID  ? KVT_COPY_VALID
                : chunk->nvme_state == NVME_NONE ? KVT_COPY_NONE
                                                 : KVT_COPY_COMING,
        .ns = chunk->ns,
        .bytes = ns->desc.chunk_bytes,
        .slot_bytes = ns->slot_bytes,
        .n_children_host = chunk->n_children[HOST],
        .n_children_nvme = chunk->n_children[NVME],
        .n_pins = chunk->pins - chunk->admin_pins,
        .n_admin_pins = chunk->admin_pins,
    };
    if (out->has_parent)
        out->parent = core->chunks[chunk->parent].key;
    if (chunk->host_slot != KVT_SLOT_NONE)
        out->host_offset = core_slot_offset(core, chunk->host_slot);
    if (chunk->nvme_slot != KVT_SLOT_NONE) {
        out->nvme_slab = slot_slab(chunk->nvme_slot);
        out->nvme_slot = slot_index(chunk->nvme_slot);
        out->digest = chunk->nvme_state == NVME_VALID ? chunk->digest : 0;
    }
}

unsigned kvt_core_chunks(const struct kvt_core *core, const struct kvt_admin_filter *filter,
                         uint64_t *cursor_p, struct kvt_admin_chunk *chunks, unsigned n_max)
{
    unsigned n = 0;
    uint64_t c = *cursor_p, end = KVT_MIN(c + KVT_ADMIN_SCAN_MAX, (uint64_t)core->n_chunks_used);
    for (; c < end && n < n_max; c++)
        if (core_filter_takes(core, filter, (uint32_t)c))
            describe(core, (uint32_t)c, &chunks[n++]);
    *cursor_p = c < core->n_chunks_used ? c : 0;
    return n;
}

static bool ns_known(const struct kvt_core *core, uint32_t ns)
{
    return ns < core->n_ns && core->ns[ns].used;
}

enum kvt_status kvt_core_chunk(const struct kvt_core *core, uint32_t ns, const struct kvt_key *key,
                               struct kvt_admin_chunk *chunk_p)
{
    if (!ns_known(core, ns))
        return KVT_ERR_INVAL;
    uint32_t c = core_find_hashed(core, key, ns, core_hash(core, key, ns));
    if (c == NONE || !chunk_held(&core->chunks[c]))
        return KVT_ERR_MISS;
    describe(core, c, chunk_p);
    return KVT_OK;
}

enum kvt_status kvt_core_admin_lookup(struct kvt_core *core, uint32_t ns,
                                      const struct kvt_key *keys, unsigned n, unsigned *n_hit_p,
                                      uint8_t *where)
{
    if (!ns_known(core, ns) || n == 0 || n > KVT_BATCH_MAX)
        return KVT_ERR_INVAL;
    unsigned n_hit = core_find_batch(core, keys, n, ns, true);
    for (unsigned i = 0; i < n_hit; i++)
        where[i] = chunk_where(&core->chunks[core->found[i]]);
    *n_hit_p = n_hit;
    return KVT_OK;
}

/* --- namespaces and tiers ----------------------------------------------------------------------
 */

unsigned kvt_core_namespaces(const struct kvt_core *core, uint64_t *cursor_p,
                             struct kvt_admin_ns *namespaces, unsigned n_max)
{
    unsigned n = 0;
    uint64_t i = *cursor_p, end = KVT_MIN(i + KVT_ADMIN_SCAN_MAX, (uint64_t)core->n_ns);
    for (; i < end && n < n_max; i++) {
        const struct ns *ns = &core->ns[i];
        if (!ns->used)
            continue;
        struct kvt_admin_ns *out = &namespaces[n++];
        *out = (struct kvt_admin_ns){
            .ns = (uint32_t)i,
            .desc = ns->desc,
            .slot_bytes = ns->slot_bytes,
            .n_chunks = ns->n_chunks,
            .n_host = ns->n_of[HOST],
            .n_nvme = ns->n_of[NVME],
            .host_bytes = ns->n_of[HOST] * ns->slot_bytes,
            .nvme_bytes = ns->n_of[NVME] * (ns->slot_bytes + KVT_SLOT_HEADER_BYTES),
        };
        memcpy(out->id, ns->id, sizeof(out->id));
    }
    *cursor_p = i < core->n_ns ? i : 0;
    return n;
}

uint32_t kvt_core_ns_find(const struct kvt_core *core, const uint8_t id[KVT_NS_ID_BYTES])
{
    uint32_t n = core_ns_find(core, id);
    return n != NONE ? n : KVT_ADMIN_NS_ANY;
}

const uint8_t *kvt_core_ns_id(const struct kvt_core *core, uint32_t ns)
{
    KVT_ASSERT(ns_known(core, ns));
    return core->ns[ns].id;
}

unsigned kvt_core_tiers(const struct kvt_core *core, struct kvt_admin_tier tiers[2])
{
    unsigned n = 0;
    for (enum tier tier = HOST; tier < N_TIERS; tier++) {
        const struct slab_pool *pool = &core->pool[tier];
        if (pool->n_slabs == 0)
            continue;
        struct kvt_admin_tier *out = &tiers[n++];
        *out = (struct kvt_admin_tier){
            .nvme = tier == NVME,
            .slab_bytes = pool->slab_bytes,
            .n_slabs_max = pool->n_slabs,
            .n_slabs = pool->n_present,
            .n_slabs_free = pool->n_free,
            .capacity_bytes = pool->n_present * pool->slab_bytes,
            .used_bytes = pool->used_bytes,
            .pinned_bytes = pool->pinned_bytes,
            .free_bytes = pool->n_present * pool->slab_bytes - pool->used_bytes,
            .n_quarantined = pool->n_quarantined,
            .n_chunks = pool->n_valid,
            .n_classes = core->n_classes,
        };
        for (unsigned i = 0; i < core->n_classes; i++)
            out->classes[i] = (struct kvt_admin_class){
                core->class_bytes[i], core->class_segments[i], pool->classes[i].n_slabs};
    }
    return n;
}

/* --- sessions and leases -----------------------------------------------------------------------
 */

unsigned kvt_core_sessions(const struct kvt_core *core, uint64_t *cursor_p,
                           struct kvt_admin_session *sessions, unsigned n_max)
{
    unsigned n = 0;
    uint64_t i = *cursor_p, all = core->config.n_sessions_max;
    uint64_t end = KVT_MIN(i + KVT_ADMIN_SCAN_MAX, all);
    for (; i < end && n < n_max; i++) {
        const struct session *session = &core->sessions[i];
        if (session->open)
            sessions[n++] = (struct kvt_admin_session){
                .session = (uint32_t)i,
                .n_ops = session->n_ops,
                .n_leases = session->n_leases,
                .reserved_bytes = session->reserved_bytes,
            };
    }
    *cursor_p = i < all ? i : 0;
    return n;
}

unsigned kvt_core_leases(const struct kvt_core *core, uint64_t *cursor_p,
                         struct kvt_admin_lease *leases, unsigned n_max)
{
    unsigned n = 0;
    uint64_t i = *cursor_p, end = KVT_MIN(i + KVT_ADMIN_SCAN_MAX, (uint64_t)core->n_leases_used);
    for (; i < end && n < n_max; i++) {
        const struct lease *lease = &core->leases[i];
        if (lease->session == NONE)
            continue;
        const struct chunk *last = &core->chunks[lease->pins[0]];
        struct kvt_admin_lease *out = &leases[n++];
        *out = (struct kvt_admin_lease){
            .lease = LEASE_ID(i, lease->generation),
            .session = lease->session,
            .ns = last->ns,
            .last = last->key,
            .deadline_ns = lease->deadline_ns,
        };
        for (uint32_t l = (uint32_t)i; l != NONE; l = core->leases[l].more)
            out->n_pins += core->leases[l].n_pins;
    }
    *cursor_p = i < core->n_leases_used ? i : 0;
    return n;
}
