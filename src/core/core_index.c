/* SPDX-License-Identifier: Apache-2.0 */
/* Key to chunk: records, hash table, the prefix tree, and who may be evicted. */
#include <string.h>

#include "core_internal.h"

#define FIND_BLOCK_MIN 4
#define FIND_BLOCK_MAX 64 /* keys whose memory accesses overlap */
#define CHAIN_AHEAD    12 /* records to ask for before they are needed */

#define ORPHANS_AT_ONCE  8 /* children that a chunk leaves behind at once, or in a step */
#define ORPHANS_PER_STEP 256

static uint64_t table_entries(const struct kvt_core *core)
{
    return core->table_mask + 1;
}

bool core_index_init(struct kvt_core *core)
{
    uint64_t need = (uint64_t)core->config.n_chunks_max * 4 / 3 + 16;
    uint64_t entries = 1024;
    while (entries < need)
        entries *= 2;
    core->table_mask = entries - 1;
    core->table = kvt_big_calloc(entries * sizeof(*core->table));
    if (core->table != NULL)
        kvt_big_populate(core->table, entries * sizeof(*core->table));
    core->chunks = kvt_big_calloc((uint64_t)core->config.n_chunks_max * sizeof(*core->chunks));
    core->free_chunk = NONE;
    core->orphans = NONE;
    /* splitmix64: four odd multipliers nobody outside can guess, so that keys cannot be chosen to
     * collide. */
    uint64_t x = core->config.seed;
    for (unsigned i = 0; i < KVT_ARRAY_LEN(core->hash_seed); i++) {
        x += UINT64_C(0x9e3779b97f4a7c15);
        uint64_t z = x;
        z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
        z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
        core->hash_seed[i] = (z ^ (z >> 31)) | 1;
    }
    return core->table != NULL && core->chunks != NULL;
}

void core_index_fini(struct kvt_core *core)
{
    kvt_big_free(core->table, table_entries(core) * sizeof(*core->table));
    kvt_big_free(core->chunks, (uint64_t)core->config.n_chunks_max * sizeof(*core->chunks));
}

uint64_t core_hash(const struct kvt_core *core, const struct kvt_key *key, uint32_t ns)
{
    uint64_t w[4];
    memcpy(w, key->bytes, sizeof(w));
    uint64_t h = (w[0] ^ ns) * core->hash_seed[0];
    h = (h ^ (h >> 32) ^ w[1]) * core->hash_seed[1];
    h = (h ^ (h >> 29) ^ w[2]) * core->hash_seed[2];
    h = (h ^ (h >> 31) ^ w[3]) * core->hash_seed[3];
    return h ^ (h >> 32);
}

static bool chunk_is(const struct kvt_core *core, uint32_t c, const struct kvt_key *key,
                     uint32_t ns)
{
    const struct chunk *chunk = &core->chunks[c];
    return chunk->ns == ns && memcmp(&chunk->key, key, sizeof(*key)) == 0;
}

uint32_t core_find_hashed(const struct kvt_core *core, const struct kvt_key *key, uint32_t ns,
                          uint64_t hash)
{
    for (uint64_t at = hash & core->table_mask; core->table[at] != 0;
         at = (at + 1) & core->table_mask) {
        uint64_t entry = core->table[at];
        uint32_t c = (uint32_t)entry - 1;
        if (entry >> 32 == hash >> 32 && chunk_is(core, c, key, ns))
            return c;
    }
    return NONE;
}

static void prefetch_chunk(const struct kvt_core *core, uint32_t c)
{
    const char *record = (const char *)&core->chunks[c];
    __builtin_prefetch(record);
    __builtin_prefetch(record + 63);
}

/* Chunks of keys[start..end) by the table, into core->found. A large or cold index misses the
 * cache on every entry and every record: asking for all before using the first overlaps them. */
static void find_block(struct kvt_core *core, const struct kvt_key *keys, unsigned start,
                       unsigned end, uint32_t ns)
{
    uint64_t hashes[FIND_BLOCK_MAX];
    for (unsigned i = start; i < end; i++) {
        hashes[i - start] = core_hash(core, &keys[i], ns);
        __builtin_prefetch(&core->table[hashes[i - start] & core->table_mask]);
    }
    for (unsigned i = start; i < end; i++) {
        uint64_t hash = hashes[i - start], at = hash & core->table_mask;
        while (core->table[at] != 0 && core->table[at] >> 32 != hash >> 32)
            at = (at + 1) & core->table_mask;
        core->found[i] = core->table[at] == 0 ? NONE : (uint32_t)core->table[at] - 1;
        if (core->found[i] != NONE)
            prefetch_chunk(core, core->found[i]);
    }
    for (unsigned i = start; i < end; i++)
        if (core->found[i] != NONE && !chunk_is(core, core->found[i], &keys[i], ns))
            core->found[i] = core_find_hashed(core, &keys[i], ns, hashes[i - start]);
}

/* Chunks of keys[i..n) as long as each is the first child of the one before it: no table. */
static unsigned find_chain(struct kvt_core *core, const struct kvt_key *keys, unsigned i,
                           unsigned n, uint32_t ns)
{
    uint32_t prev = core->found[i - 1];
    for (; i < n && prev != NONE; i++) {
        uint32_t c = core->chunks[prev].first_child;
        if (c == NONE || !chunk_is(core, c, &keys[i], ns))
            break;
        /* The records of a prompt were mostly taken one after the other. */
        prefetch_chunk(core, KVT_MIN(c + CHAIN_AHEAD, core->config.n_chunks_max - 1));
        core->found[i] = prev = c;
    }
    return i;
}

unsigned core_find_batch(struct kvt_core *core, const struct kvt_key *keys, unsigned n, uint32_t ns,
                         bool prefix_only)
{
    unsigned block = FIND_BLOCK_MIN, checked = 0;
    for (unsigned i = 0; i < n;) {
        unsigned end = KVT_MIN(i + block, n);
        find_block(core, keys, i, end, ns);
        i = find_chain(core, keys, end, n, ns);
        block = i > end + FIND_BLOCK_MIN ? FIND_BLOCK_MIN : KVT_MIN(4 * block, FIND_BLOCK_MAX);
        for (; prefix_only && checked < i; checked++)
            if (core->found[checked] == NONE || !chunk_held(&core->chunks[core->found[checked]]))
                return checked;
    }
    return n;
}

static void table_insert(struct kvt_core *core, uint32_t c, uint64_t hash)
{
    uint64_t at = hash & core->table_mask;
    while (core->table[at] != 0)
        at = (at + 1) & core->table_mask;
    core->table[at] = (hash >> 32 << 32) | ((uint64_t)c + 1);
}

static void table_remove(struct kvt_core *core, uint32_t c)
{
    uint64_t at = core_hash(core, &core->chunks[c].key, core->chunks[c].ns) & core->table_mask;
    while ((uint32_t)core->table[at] != c + 1) {
        KVT_ASSERT(core->table[at] != 0);
        at = (at + 1) & core->table_mask;
    }
    /* Close the gap, so that probes may stop at the first empty entry. */
    uint64_t hole = at;
    for (uint64_t i = (hole + 1) & core->table_mask; core->table[i] != 0;
         i = (i + 1) & core->table_mask) {
        const struct chunk *moved = &core->chunks[(uint32_t)core->table[i] - 1];
        uint64_t home = core_hash(core, &moved->key, moved->ns) & core->table_mask;
        if (((i - home) & core->table_mask) >= ((i - hole) & core->table_mask)) {
            core->table[hole] = core->table[i];
            hole = i;
        }
    }
    core->table[hole] = 0;
}

uint32_t core_chunk_new(struct kvt_core *core, const struct kvt_key *key, uint32_t ns)
{
    uint32_t c = core->free_chunk;
    if (c != NONE)
        core->free_chunk = core->chunks[c].parent;
    else if (core->n_chunks_used < core->config.n_chunks_max)
        c = core->n_chunks_used++;
    else
        return NONE;
    core->chunks[c] = (struct chunk){
        .key = *key,
        .parent = NONE,
        .first_child = NONE,
        .next_sibling = NONE,
        .prev_sibling = NONE,
        .host_slot = KVT_SLOT_NONE,
        .nvme_slot = KVT_SLOT_NONE,
        .ns = (uint16_t)ns,
        .waiters = NONE,
        .write_next = NONE,
        .write_prev = NONE,
    };
    core_ns_get(core, ns);
    table_insert(core, c, core_hash(core, key, ns));
    core->n_chunks++;
    return c;
}

static void chunk_free(struct kvt_core *core, uint32_t c)
{
    core_ns_put(core, core->chunks[c].ns);
    core->chunks[c].parent = core->free_chunk;
    core->chunks[c].flags = 0;
    core->free_chunk = c;
}

static void count_pinned(struct kvt_core *core, const struct chunk *chunk, bool in)
{
    uint64_t bytes = core->ns[chunk->ns].slot_bytes;
    const bool valid[N_TIERS] = {chunk->host_state == HOST_VALID, chunk->nvme_state == NVME_VALID};
    for (enum tier tier = HOST; tier < N_TIERS; tier++) {
        uint64_t slot_bytes = bytes + core->pool[tier].slot_extra_bytes;
        if (valid[tier])
            core->pool[tier].pinned_bytes += in ? slot_bytes : -slot_bytes;
    }
}

void core_count_copies(struct kvt_core *core, uint32_t c, bool in)
{
    const struct chunk *chunk = &core->chunks[c];
    struct ns *ns = &core->ns[chunk->ns];
    const bool valid[N_TIERS] = {chunk->host_state == HOST_VALID, chunk->nvme_state == NVME_VALID};
    uint32_t one = in ? 1 : UINT32_MAX;
    if (chunk->flags & CHUNK_UNHASHED)
        return;
    ns->n_chunks += valid[HOST] || valid[NVME] ? one : 0;
    for (enum tier tier = HOST; tier < N_TIERS; tier++) {
        ns->n_of[tier] += valid[tier] ? one : 0;
        core->pool[tier].n_valid += valid[tier] ? one : 0;
    }
    if (chunk->pins > 0)
        count_pinned(core, chunk, in);
}

static void count_child(struct kvt_core *core, uint32_t parent, enum tier tier, int delta)
{
    if (parent == NONE)
        return;
    core->chunks[parent].n_children[tier] += (uint32_t)delta;
    core_update_candidate(core, parent);
}

static void unlink_parent(struct kvt_core *core, uint32_t c)
{
    struct chunk *chunk = &core->chunks[c];
    uint32_t parent = chunk->parent;
    if (parent == NONE)
        return;
    if (chunk->prev_sibling != NONE)
        core->chunks[chunk->prev_sibling].next_sibling = chunk->next_sibling;
    else
        core->chunks[parent].first_child = chunk->next_sibling;
    if (chunk->next_sibling != NONE)
        core->chunks[chunk->next_sibling].prev_sibling = chunk->prev_sibling;
    chunk->parent = chunk->next_sibling = chunk->prev_sibling = NONE;
    if (chunk->host_state != HOST_NONE)
        count_child(core, parent, HOST, -1);
    if (chunk->nvme_state != NVME_NONE)
        count_child(core, parent, NVME, -1);
}

void core_link(struct kvt_core *core, uint32_t c, uint32_t parent)
{
    struct chunk *chunk = &core->chunks[c];
    if (c == parent || chunk->parent != NONE || parent == NONE ||
        core->chunks[parent].ns != chunk->ns)
        return;
    if (chunk->first_child != NONE) {
        /* Links come from callers. A cycle would make its members unevictable for ever, so a chunk
         * that has children is linked only if the walk up ends, within reason. */
        unsigned steps = 0;
        for (uint32_t p = parent; p != NONE; p = core->chunks[p].parent)
            if (p == c || ++steps > 4096)
                return;
    }
    chunk->parent = parent;
    chunk->next_sibling = core->chunks[parent].first_child;
    if (chunk->next_sibling != NONE)
        core->chunks[chunk->next_sibling].prev_sibling = c;
    core->chunks[parent].first_child = c;
    if (chunk->host_state != HOST_NONE)
        count_child(core, parent, HOST, 1);
    if (chunk->nvme_state != NVME_NONE)
        count_child(core, parent, NVME, 1);
}

void core_chunk_drop(struct kvt_core *core, uint32_t c)
{
    struct chunk *chunk = &core->chunks[c];
    struct slab_pool *pool = core->pool;
    KVT_ASSERT(chunk->waiters == NONE && !(chunk->flags & CHUNK_WANT_WRITE));
    core_count_copies(core, c, false);
    chunk->flags |= CHUNK_UNHASHED;
    core_update_candidate(core, c);
    if (chunk->host_state == HOST_VALID)
        pool[HOST].policy->ops->remove(pool[HOST].policy, c, false, core->tick);
    if (chunk->nvme_state == NVME_VALID)
        pool[NVME].policy->ops->remove(pool[NVME].policy, c, false, core->tick);
    if (chunk->nvme_state == NVME_VALID || chunk->nvme_state == NVME_META)
        (void)core_slot_stale(&pool[NVME], chunk->nvme_slot);
    unlink_parent(core, c);
    table_remove(core, c);
    core->n_chunks--;
    core_chunk_reap(core, c);
}

static bool unlink_children(struct kvt_core *core, uint32_t c, unsigned n_max)
{
    for (; core->chunks[c].first_child != NONE && n_max > 0; n_max--) {
        unlink_parent(core, core->chunks[c].first_child);
        core->tree_epoch++;
    }
    return core->chunks[c].first_child == NONE;
}

void core_chunk_reap(struct kvt_core *core, uint32_t c)
{
    struct chunk *chunk = &core->chunks[c];
    if (!(chunk->flags & CHUNK_UNHASHED) || (chunk->flags & CHUNK_ORPHANS))
        return;
    if (chunk->host_state == HOST_VALID && chunk->pins == 0 && chunk->nvme_state != NVME_WRITING) {
        core_slot_free(core, &core->pool[HOST], chunk->host_slot);
        chunk->host_slot = KVT_SLOT_NONE;
        chunk->host_state = HOST_NONE;
    }
    if (chunk->nvme_state == NVME_VALID && chunk->host_state != HOST_READING &&
        !(chunk->flags & CHUNK_VERIFY)) {
        core_slot_free(core, &core->pool[NVME], chunk->nvme_slot);
        chunk->nvme_slot = KVT_SLOT_NONE;
        chunk->nvme_state = NVME_NONE;
    }
    if (!unlink_children(core, c, ORPHANS_AT_ONCE)) {
        chunk->flags |= CHUNK_ORPHANS;
        chunk->write_next = core->orphans;
        core->orphans = c;
        core->jobs.next_ns = 0;
    } else if (chunk->host_state == HOST_NONE && chunk->nvme_state == NVME_NONE &&
               chunk->pins == 0) {
        chunk_free(core, c);
    }
}

/* A prompt that many share has as many children: not all of them in one call. */
void core_orphans(struct kvt_core *core)
{
    uint32_t c = core->orphans;
    if (c == NONE || !unlink_children(core, c, ORPHANS_PER_STEP))
        return;
    core->orphans = core->chunks[c].write_next;
    core->chunks[c].flags &= (uint8_t)~CHUNK_ORPHANS;
    core_chunk_reap(core, c);
}

void core_pin(struct kvt_core *core, uint32_t c)
{
    struct chunk *chunk = &core->chunks[c];
    if (chunk->pins++ == 0 && !(chunk->flags & CHUNK_UNHASHED))
        count_pinned(core, chunk, true);
    STAT(core, PINS)++;
}

void core_unpin(struct kvt_core *core, uint32_t c)
{
    struct chunk *chunk = &core->chunks[c];
    KVT_ASSERT(chunk->pins > 0);
    chunk->pins--;
    STAT(core, PINS)--;
    if (chunk->pins > 0)
        return;
    if (chunk->flags & CHUNK_UNHASHED)
        core_chunk_reap(core, c);
    else
        count_pinned(core, chunk, false);
}

void core_set_host(struct kvt_core *core, uint32_t c, enum host_state state)
{
    struct chunk *chunk = &core->chunks[c];
    bool was = chunk->host_state != HOST_NONE, is = state != HOST_NONE;
    core_count_copies(core, c, false);
    chunk->host_state = (uint8_t)state;
    core_count_copies(core, c, true);
    if (was != is)
        count_child(core, chunk->parent, HOST, is ? 1 : -1);
    core_update_candidate(core, c);
}

void core_set_nvme(struct kvt_core *core, uint32_t c, enum nvme_state state)
{
    struct chunk *chunk = &core->chunks[c];
    bool was = chunk->nvme_state != NVME_NONE, is = state != NVME_NONE;
    core_count_copies(core, c, false);
    chunk->nvme_state = (uint8_t)state;
    core_count_copies(core, c, true);
    if (was != is)
        count_child(core, chunk->parent, NVME, is ? 1 : -1);
    core_update_candidate(core, c);
}

bool core_may_leave_nvme(const struct chunk *chunk)
{
    return !(chunk->flags & CHUNK_UNHASHED) && chunk->nvme_state == NVME_VALID &&
           chunk->host_state != HOST_READING &&
           (chunk->host_state == HOST_VALID || chunk->n_children[HOST] == 0);
}

/*
 * A copy may go when no child in the same tier would be stranded behind it, and when, if it is the
 * last copy, no child is left in the other tier either. Pins are not looked at here, they change
 * too often: the victim is vetoed instead.
 */
static bool is_candidate(const struct chunk *chunk, enum tier tier)
{
    if (tier == NVME)
        return chunk->n_children[NVME] == 0 && core_may_leave_nvme(chunk);
    return !(chunk->flags & (CHUNK_UNHASHED | CHUNK_WANT_WRITE)) &&
           chunk->host_state == HOST_VALID && chunk->n_children[HOST] == 0 &&
           (chunk->nvme_state == NVME_VALID || chunk->n_children[NVME] == 0);
}

uint32_t core_parent_in(const struct kvt_core *core, uint32_t c, enum tier tier)
{
    uint32_t parent = core->chunks[c].parent;
    if (parent == NONE)
        return KVT_CHUNK_NONE;
    const struct chunk *chunk = &core->chunks[parent];
    bool held = tier == HOST ? chunk->host_state == HOST_VALID : chunk->nvme_state == NVME_VALID;
    return held ? parent : KVT_CHUNK_NONE;
}

void core_update_candidate(struct kvt_core *core, uint32_t c)
{
    struct chunk *chunk = &core->chunks[c];
    for (enum tier tier = HOST; tier < N_TIERS; tier++) {
        uint8_t bit = (uint8_t)(CHUNK_CANDIDATE << tier);
        bool is = is_candidate(chunk, tier);
        if (is == !!(chunk->flags & bit))
            continue;
        chunk->flags ^= bit;
        core->pool[tier].policy->ops->candidate(core->pool[tier].policy, c, is);
    }
}
