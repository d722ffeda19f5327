/* SPDX-License-Identifier: Apache-2.0 */
/* Lookup, and the leases that keep what a lookup found. */
#include <stdlib.h>
#include <string.h>

#include "core_internal.h"

bool core_leases_init(struct kvt_core *core)
{
    core->leases = kvt_big_calloc((uint64_t)core->config.n_leases_max * sizeof(*core->leases));
    core->free_lease = NONE;
    return core->leases != NULL && heap_init(&core->lease_heap, core->config.n_leases_max);
}

void core_leases_fini(struct kvt_core *core)
{
    kvt_big_free(core->leases, (uint64_t)core->config.n_leases_max * sizeof(*core->leases));
    heap_fini(&core->lease_heap);
}

static uint32_t record_new(struct kvt_core *core)
{
    uint32_t l = core->free_lease;
    if (l != NONE)
        core->free_lease = core->leases[l].next;
    else if (core->n_leases_used < core->config.n_leases_max)
        l = core->n_leases_used++;
    else
        return NONE;
    struct lease *lease = &core->leases[l];
    lease->generation++;
    lease->session = NONE;
    lease->more = NONE;
    lease->n_pins = 0;
    return l;
}

static void record_free(struct kvt_core *core, uint32_t l)
{
    core->leases[l].session = NONE;
    core->leases[l].next = core->free_lease;
    core->free_lease = l;
}

/* Unpin and free a lease record and its continuations, of a lease that is in no list any more. */
static void records_drop(struct kvt_core *core, uint32_t l)
{
    while (l != NONE) {
        struct lease *lease = &core->leases[l];
        uint32_t more = lease->more;
        for (uint32_t i = 0; i < lease->n_pins; i++)
            core_unpin(core, lease->pins[i]);
        record_free(core, l);
        l = more;
    }
}

void core_lease_end(struct kvt_core *core, uint32_t l)
{
    struct lease *lease = &core->leases[l];
    struct session *session = &core->sessions[lease->session];
    if (lease->prev != NONE)
        core->leases[lease->prev].next = lease->next;
    else
        session->leases = lease->next;
    if (lease->next != NONE)
        core->leases[lease->next].prev = lease->prev;
    session->n_leases--;
    STAT(core, LEASES)--;
    heap_remove(&core->lease_heap, l);
    records_drop(core, l);
}

void core_leases_expire(struct kvt_core *core, uint64_t now_ns)
{
    while (heap_first(&core->lease_heap) <= now_ns) {
        STAT(core, LEASES_EXPIRED)++;
        core_lease_end(core, core->lease_heap.ids[0]);
    }
}

/*
 * Pin the chunks of a prefix. A chunk whose child is held cannot be evicted, so of a linked chain
 * it is enough to pin the last; where the chain is broken (its links came apart, or these are
 * content keys) each end is pinned.
 */
static uint32_t lease_new(struct kvt_core *core, uint32_t session, unsigned n)
{
    struct session *owner = &core->sessions[session];
    if (owner->n_leases >= core->config.n_leases_session_max)
        return NONE;
    uint32_t first = record_new(core), l = first;
    for (unsigned i = n; l != NONE && i-- > 0;) {
        uint32_t c = core->found[i];
        if (i + 1 < n && core->chunks[core->found[i + 1]].parent == c)
            continue;
        if (core->leases[l].n_pins == LEASE_PINS)
            l = core->leases[l].more = record_new(core);
        if (l == NONE)
            break;
        core->leases[l].pins[core->leases[l].n_pins++] = c;
        core_pin(core, c);
    }
    if (l == NONE) {
        records_drop(core, first);
        return NONE;
    }
    struct lease *lease = &core->leases[first];
    lease->session = session;
    lease->prev = NONE;
    lease->next = owner->leases;
    if (owner->leases != NONE)
        core->leases[owner->leases].prev = first;
    owner->leases = first;
    owner->n_leases++;
    STAT(core, LEASES)++;
    return first;
}

static void count_lookup(struct kvt_core *core, const struct kvt_ns_desc *desc, uint64_t n_keys,
                         uint64_t n_host, uint64_t n_nvme)
{
    STAT(core, LOOKUPS)++;
    STAT(core, LOOKUP_KEYS) += n_keys;
    STAT(core, LOOKUP_TOKENS) += n_keys * desc->tokens_per_chunk;
    STAT(core, LOOKUP_HITS) += n_host + n_nvme;
    STAT(core, HIT_HOST_CHUNKS) += n_host;
    STAT(core, HIT_HOST_TOKENS) += n_host * desc->tokens_per_chunk;
    STAT(core, HIT_HOST_BYTES) += n_host * desc->chunk_bytes;
    STAT(core, HIT_NVME_CHUNKS) += n_nvme;
    STAT(core, HIT_NVME_TOKENS) += n_nvme * desc->tokens_per_chunk;
    STAT(core, HIT_NVME_BYTES) += n_nvme * desc->chunk_bytes;
}

void kvt_core_lookup(struct kvt_core *core, uint32_t session, uint32_t ns,
                     const struct kvt_key *keys, unsigned n, uint32_t flags, uint32_t ttl_ms,
                     uint64_t now_ns, struct kvt_wire_lookup_r *reply, uint8_t *where)
{
    reply->n_hit = 0;
    reply->lease = 0;
    reply->lease_deadline_ns = 0;
    reply->status = KVT_ERR_INVAL;
    if (n == 0 || n > KVT_BATCH_MAX || !core_ns_of_session(core, session, ns) ||
        (flags & ~(uint32_t)KVT_LOOKUP_LEASE) != 0)
        return;
    reply->status = KVT_OK;
    unsigned n_host = 0;
    unsigned n_hit = core_find_batch(core, keys, n, ns, true);
    for (unsigned i = 0; i < n_hit; i++) {
        where[i] = chunk_where(&core->chunks[core->found[i]]);
        n_host += where[i] & KVT_WHERE_HOST;
    }
    reply->n_hit = n_hit;
    count_lookup(core, &core->ns[ns].desc, n, n_host, n_hit - n_host);
    if (!(flags & KVT_LOOKUP_LEASE) || n_hit == 0)
        return;
    uint32_t l = lease_new(core, session, n_hit);
    if (l == NONE)
        return;
    uint64_t ttl_ns = ttl_ms == 0 ? core->config.lease_ttl_ns : ttl_ms * UINT64_C(1000000);
    reply->lease_deadline_ns = now_ns + KVT_MIN(ttl_ns, core->config.lease_ttl_max_ns);
    core->leases[l].deadline_ns = reply->lease_deadline_ns;
    heap_set(&core->lease_heap, l, reply->lease_deadline_ns);
    reply->lease = LEASE_ID(l, core->leases[l].generation);
}

enum kvt_status kvt_core_release(struct kvt_core *core, uint32_t session, uint64_t id)
{
    uint32_t l = (uint32_t)id - 1;
    if ((uint32_t)id == 0 || l >= core->n_leases_used || core->leases[l].session != session ||
        core->leases[l].generation != (uint32_t)(id >> 32))
        return KVT_ERR_EXPIRED;
    core_lease_end(core, l);
    return KVT_OK;
}
