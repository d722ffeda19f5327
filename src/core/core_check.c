/* SPDX-License-Identifier: Apache-2.0 */
/* The books against each other. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "core_internal.h"

struct checker {
    const struct kvt_core *core;
    char *msg;
    size_t msg_bytes;
    bool ok;
};

static bool __attribute__((format(printf, 3, 4)))
expect(struct checker *k, bool condition, const char *format, ...)
{
    if (!condition && k->ok) {
        va_list ap;
        va_start(ap, format);
        vsnprintf(k->msg, k->msg_bytes, format, ap);
        va_end(ap);
        k->ok = false;
    }
    return condition;
}

/* The lists of groups, and that together they name each free slot once. */
static void check_groups(struct checker *k, const struct slab_pool *pool, unsigned size_class)
{
    const struct pool_class *class = &pool->classes[size_class];
    const char *name = pool->tier == HOST ? "host" : "nvme";
    uint32_t n_listed = 0, n_free = 0, n_slots = 0, n_slabs = 0;
    if (class->filling != NONE) {
        const struct slab *slab = &pool->slabs[slot_slab(class->filling)];
        expect(k, slab->owner != NULL && slab->size_class == size_class,
               "%s class %u fills group %x of a slab that is not of it", name, size_class,
               class->filling);
    }
    for (unsigned n = 1; n <= GROUP_SLOTS_MAX; n++) {
        uint32_t prev = NONE;
        expect(k, (class->groups[n - 1] != NONE) == (class->has_groups >> (n - 1) & 1),
               "%s class %u: the bit of groups with %u free slots is wrong", name, size_class, n);
        for (uint32_t first = class->groups[n - 1]; first != NONE;) {
            const struct slab *slab = &pool->slabs[slot_slab(first)];
            const struct slot_group *group =
                slab->owner == NULL ? NULL : &slab->groups[slot_index(first) / slab->group_slots];
            if (group == NULL || slab->size_class != size_class || group->n_free != n ||
                group->prev != prev) {
                expect(k, false, "%s class %u: group %x is listed wrongly", name, size_class,
                       first);
                return;
            }
            n_listed += n;
            prev = first;
            first = group->next;
        }
    }
    for (uint32_t s = 0; s < pool->n_slabs; s++) {
        const struct slab *slab = &pool->slabs[s];
        if (slab->owner == NULL || slab->size_class != size_class)
            continue;
        n_slabs++;
        n_slots += slab->n_slots;
        n_free += slab->n_slots - slab->n_used;
        for (uint32_t i = 0, n = 0; i < slab->n_slots; i++) {
            n += (slab->owner[i] & OWNER_FREE) != 0;
            if (i + 1 < slab->n_slots && (i + 1) % slab->group_slots != 0)
                continue;
            expect(k, n == slab->groups[i / slab->group_slots].n_free,
                   "%s slab %u: group of slot %u has %u free slots, counts %u", name, s, i, n,
                   slab->groups[i / slab->group_slots].n_free);
            n = 0;
        }
    }
    expect(k,
           n_listed == n_free && n_free == class->n_slots_free && n_slots == class->n_slots &&
               n_slabs == class->n_slabs,
           "%s class %u: %u slots free, %u listed, counts %u of %u", name, size_class, n_free,
           n_listed, class->n_slots_free, n_slots);
}

static void check_pool(struct checker *k, const struct slab_pool *pool)
{
    const struct kvt_core *core = k->core;
    const char *name = pool->tier == HOST ? "host" : "nvme";
    uint64_t used_bytes = 0;
    uint32_t n_free = 0, n_present = 0, n_quarantined = 0, n_scratch = 0;
    for (uint32_t s = 0; s < pool->n_slabs; s++) {
        const struct slab *slab = &pool->slabs[s];
        n_present += slab->present;
        n_free += slab->present && slab->owner == NULL;
        uint32_t n_used = 0, n_stale = 0;
        for (uint32_t w = 0; w < slab->n_stale_words; w++)
            n_stale += (uint32_t)__builtin_popcountll(slab->stale[w]);
        expect(k, n_stale == slab->n_stale, "%s slab %u has %u stale slots, counts %u", name, s,
               n_stale, slab->n_stale);
        for (uint32_t i = 0; slab->owner != NULL && i < slab->n_slots; i++) {
            uint32_t c = slab->owner[i];
            if (c & OWNER_FREE)
                continue;
            n_used++;
            n_quarantined += c == OWNER_QUARANTINED;
            n_scratch += c == OWNER_SCRATCH;
            if (owner_is_none(c))
                continue;
            const struct chunk *chunk = &core->chunks[c];
            uint32_t slot = pool->tier == HOST ? chunk->host_slot : chunk->nvme_slot;
            expect(k, slot == slot_make(s, i), "%s slot %u.%u names chunk %u, which has slot %x",
                   name, s, i, c, slot);
        }
        if (slab->owner == NULL)
            continue;
        expect(k, n_used == slab->n_used && n_used > 0, "%s slab %u has %u slots used, counts %u",
               name, s, n_used, slab->n_used);
        used_bytes += n_used * (core->class_bytes[slab->size_class] + pool->slot_extra_bytes);
    }
    for (unsigned i = 0; i < core->n_classes; i++)
        check_groups(k, pool, i);
    expect(k, used_bytes == pool->used_bytes, "%s: %llu bytes used, counts %llu", name,
           (unsigned long long)used_bytes, (unsigned long long)pool->used_bytes);
    expect(k, n_free == pool->n_free && n_present == pool->n_present, "%s: slab counts differ",
           name);
    expect(k, n_quarantined == pool->n_quarantined && n_scratch == pool->n_scratch,
           "%s: quarantine or scratch count differs", name);
}

static void check_chunk(struct checker *k, uint32_t c, uint32_t *pins)
{
    const struct kvt_core *core = k->core;
    const struct chunk *chunk = &core->chunks[c];
    expect(k, chunk->pins == pins[c], "chunk %u has %u pins, holders count %u", c, chunk->pins,
           pins[c]);
    uint32_t n_children[N_TIERS] = {0, 0};
    uint32_t prev = NONE;
    for (uint32_t child = chunk->first_child; child != NONE;
         child = core->chunks[child].next_sibling) {
        if (!expect(k, core->chunks[child].parent == c && core->chunks[child].prev_sibling == prev,
                    "chunk %u: child %u is linked wrongly", c, child))
            return;
        n_children[HOST] += core->chunks[child].host_state != HOST_NONE;
        n_children[NVME] += core->chunks[child].nvme_state != NVME_NONE;
        prev = child;
    }
    for (enum tier tier = HOST; tier < N_TIERS; tier++)
        expect(k, n_children[tier] == chunk->n_children[tier],
               "chunk %u has %u children in tier %d, counts %u", c, n_children[tier], tier,
               chunk->n_children[tier]);
    expect(k, chunk->host_state != HOST_NONE || chunk->nvme_state != NVME_NONE,
           "chunk %u is in no tier", c);
    expect(k, (chunk->nvme_slot != KVT_SLOT_NONE) == (chunk->nvme_state != NVME_NONE),
           "chunk %u: NVMe slot and state disagree", c);
    expect(k,
           chunk->host_state == HOST_RESERVED ||
               (chunk->host_slot != KVT_SLOT_NONE) == (chunk->host_state != HOST_NONE),
           "chunk %u: host slot and state disagree", c);
}

static void pin_one(const struct kvt_core *core, uint32_t *pins, uint32_t c)
{
    if (c < core->n_chunks_used)
        pins[c]++;
}

/* Pins of operators, of jobs and of reads that verify. */
static void count_admin_pins(const struct kvt_core *core, uint32_t *pins)
{
    for (uint32_t p = 0; p < KVT_ADMIN_PINS_MAX; p++) {
        const struct admin_pin *pin = &core->pins.pins[p];
        for (uint32_t b = pin->id == 0 ? NONE : pin->blocks; b != NONE;
             b = core->pins.blocks[b].next)
            for (uint32_t i = 0; i < core->pins.blocks[b].n; i++)
                pin_one(core, pins, core->pins.blocks[b].chunks[i]);
    }
}

/* Pins by holder. */
static void count_pins(const struct kvt_core *core, uint32_t *pins)
{
    count_admin_pins(core, pins);
    for (unsigned j = 0; j < KVT_ADMIN_JOBS_MAX; j++)
        if (core->jobs.jobs[j].info.id != 0)
            pin_one(core, pins, core->jobs.jobs[j].at);
    for (uint32_t c = 0; c < core->n_chunks_used; c++)
        pins[c] += (core->chunks[c].flags & CHUNK_VERIFY) != 0;
    for (uint32_t s = 0; s < core->config.n_sessions_max; s++) {
        const struct session *session = &core->sessions[s];
        if (!session->open)
            continue;
        for (uint32_t l = session->leases; l != NONE; l = core->leases[l].next)
            for (uint32_t m = l; m != NONE; m = core->leases[m].more)
                for (uint32_t i = 0; i < core->leases[m].n_pins; i++)
                    pins[core->leases[m].pins[i]]++;
        for (uint32_t o = session->ops; o != NONE; o = core->ops[o].next)
            for (uint32_t i = 0; i < core->ops[o].n_items; i++)
                if (core->ops[o].items[i].pinned)
                    pins[core->ops[o].items[i].chunk]++;
    }
}

/* Of a record that is out of the index: something must still need it. */
static void check_dropped(struct checker *k, uint32_t c, const uint32_t *pins)
{
    const struct chunk *chunk = &k->core->chunks[c];
    bool moving = chunk->host_state == HOST_READING || chunk->nvme_state == NVME_WRITING ||
                  chunk->nvme_state == NVME_META || (chunk->flags & CHUNK_VERIFY) != 0;
    expect(k, pins[c] > 0 || moving || (chunk->flags & CHUNK_ORPHANS) != 0,
           "chunk %u is out of the index and stays (states %u and %u)", c, chunk->host_state,
           chunk->nvme_state);
    expect(k, chunk->parent == NONE && chunk->waiters == NONE,
           "chunk %u is out of the index and has a parent or waiters", c);
    expect(k, !(chunk->flags & (CHUNK_WANT_WRITE | CHUNK_CANDIDATE | CHUNK_CANDIDATE << NVME)),
           "chunk %u is out of the index and has flags %x", c, chunk->flags);
    expect(k, chunk->pins == pins[c], "chunk %u, dropped, has %u pins, holders count %u", c,
           chunk->pins, pins[c]);
}

/* What is counted per namespace, tier and job, from all records. */
static void check_counts(struct checker *k, const uint32_t *pins)
{
    const struct kvt_core *core = k->core;
    uint64_t n_valid[N_TIERS] = {0, 0}, pinned_bytes[N_TIERS] = {0, 0}, n_dropped = 0;
    uint64_t n_refs = 0, pin_bytes = 0, n_job_reads = 0;
    uint32_t n_moving[KVT_ADMIN_JOBS_MAX + 1] = {0};
    for (uint32_t c = 0; c < core->n_chunks_used; c++) {
        const struct chunk *chunk = &core->chunks[c];
        uint8_t where = chunk_where(chunk);
        n_moving[chunk->job]++;
        n_refs += chunk->admin_pins;
        pin_bytes += chunk->admin_pins > 0 ? core->ns[chunk->ns].slot_bytes : 0;
        if (chunk->flags & CHUNK_UNHASHED) {
            check_dropped(k, c, pins);
            n_dropped++;
            continue;
        }
        for (enum tier tier = HOST; tier < N_TIERS; tier++) {
            if ((where & (KVT_WHERE_HOST << tier)) == 0)
                continue;
            n_valid[tier]++;
            if (chunk->pins > 0)
                pinned_bytes[tier] +=
                    core->ns[chunk->ns].slot_bytes + core->pool[tier].slot_extra_bytes;
        }
    }
    for (enum tier tier = HOST; tier < N_TIERS; tier++) {
        uint64_t n_of_ns = 0;
        for (uint32_t i = 0; i < core->n_ns; i++)
            n_of_ns += core->ns[i].n_of[tier];
        expect(k, n_valid[tier] == core->pool[tier].n_valid && n_valid[tier] == n_of_ns,
               "tier %d has %llu chunks, counts %u and %llu by namespace", tier,
               (unsigned long long)n_valid[tier], core->pool[tier].n_valid,
               (unsigned long long)n_of_ns);
        expect(k, pinned_bytes[tier] == core->pool[tier].pinned_bytes,
               "tier %d has %llu pinned bytes, counts %llu", tier,
               (unsigned long long)pinned_bytes[tier],
               (unsigned long long)core->pool[tier].pinned_bytes);
    }
    for (unsigned j = 0; j < KVT_ADMIN_JOBS_MAX; j++) {
        const struct job *job = &core->jobs.jobs[j];
        expect(k, n_moving[j + 1] == job->n_moving, "job %llu moves %u chunks, counts %u",
               (unsigned long long)job->info.id, n_moving[j + 1], job->n_moving);
        if (job->info.type == KVT_JOB_PREFETCH || job->info.type == KVT_JOB_VERIFY)
            n_job_reads += job->n_moving;
    }
    expect(k, n_job_reads == core->jobs.n_reads, "jobs read %llu chunks, count %u",
           (unsigned long long)n_job_reads, core->jobs.n_reads);
    expect(k, n_refs == core->pins.n_refs, "%llu chunks pinned by operators, counts %u",
           (unsigned long long)n_refs, core->pins.n_refs);
    expect(k, pin_bytes == core->pins.bytes, "operators' pins hold %llu bytes, count %llu",
           (unsigned long long)pin_bytes, (unsigned long long)core->pins.bytes);
    uint64_t n_free = 0;
    for (uint32_t c = core->free_chunk; c != NONE && n_free <= core->n_chunks_used;
         c = core->chunks[c].parent)
        n_free++;
    expect(k, n_free + n_dropped + core->n_chunks == core->n_chunks_used,
           "%u records: %u in the index, %llu dropped, %llu free", core->n_chunks_used,
           core->n_chunks, (unsigned long long)n_dropped, (unsigned long long)n_free);
}

/* What refers to each namespace, from all that may. */
static void count_refs(const struct kvt_core *core, uint32_t *refs)
{
    for (uint32_t c = 0; c < core->n_chunks_used; c++)
        refs[core->chunks[c].ns]++;
    for (uint32_t c = core->free_chunk; c != NONE; c = core->chunks[c].parent)
        refs[core->chunks[c].ns]--;
    for (unsigned j = 0; j < KVT_ADMIN_JOBS_MAX; j++) {
        const struct job *job = &core->jobs.jobs[j];
        if (job->info.has_ns && job->phase != JOB_ENDED)
            refs[job->filter.ns]++;
    }
    for (uint32_t n = 0; n < core->n_ns; n++) {
        refs[n] += core->ns[n].meta_busy;
        for (uint32_t s = 0; s < core->config.n_sessions_max; s++)
            refs[n] += core_ns_of_session(core, s, n);
    }
}

static void check_namespaces(struct checker *k)
{
    const struct kvt_core *core = k->core;
    uint32_t *refs = calloc((size_t)core->n_ns + 1, sizeof(*refs));
    uint32_t n_unused = 0, n_listed = 0, prev = NONE;
    if (refs == NULL) {
        expect(k, false, "out of memory");
        return;
    }
    count_refs(core, refs);
    for (uint32_t n = 0; n < core->n_ns; n++) {
        const struct ns *ns = &core->ns[n];
        n_unused += ns->used && refs[n] == 0;
        expect(k, refs[n] == ns->n_refs && (ns->used || refs[n] == 0),
               "namespace %u (used %d) is referred to %u times, counts %u", n, ns->used, refs[n],
               ns->n_refs);
        expect(k, !ns->used || core_ns_find(core, ns->id) == n,
               "namespace %u is not found by its id", n);
    }
    free(refs);
    for (uint32_t n = core->ns_unused_head; n != NONE && n_listed <= core->n_ns;
         prev = n, n = core->ns[n].next, n_listed++)
        expect(k, core->ns[n].used && core->ns[n].n_refs == 0 && core->ns[n].prev == prev,
               "namespace %u is listed as unused and is not", n);
    expect(k, n_listed == n_unused && core->ns_unused_tail == prev,
           "%u namespaces are unused, %u are listed", n_unused, n_listed);
}

bool kvt_core_check(const struct kvt_core *core, char *msg, size_t msg_bytes)
{
    struct checker k = {.core = core, .msg = msg, .msg_bytes = msg_bytes, .ok = true};
    uint32_t *pins = calloc((size_t)core->n_chunks_used + 1, sizeof(*pins));
    _Static_assert(KVT_WHERE_NVME == KVT_WHERE_HOST << NVME, "a bit per tier");
    if (pins == NULL)
        return expect(&k, false, "out of memory");
    count_pins(core, pins);
    uint64_t n = 0, n_pins = 0;
    for (uint64_t at = 0; at <= core->table_mask; at++) {
        if (core->table[at] == 0)
            continue;
        check_chunk(&k, (uint32_t)core->table[at] - 1, pins);
        n++;
    }
    for (uint32_t c = 0; c < core->n_chunks_used; c++)
        n_pins += pins[c];
    expect(&k, n == core->n_chunks, "%llu chunks in the table, counts %u", (unsigned long long)n,
           core->n_chunks);
    expect(&k, n_pins == STAT(core, PINS), "%llu pins held, counts %llu",
           (unsigned long long)n_pins, (unsigned long long)STAT(core, PINS));
    check_counts(&k, pins);
    check_namespaces(&k);
    check_pool(&k, &core->pool[HOST]);
    check_pool(&k, &core->pool[NVME]);
    free(pins);
    return k.ok;
}
