/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Namespaces: found by their id, made for sessions, counted by what refers to them. One that
 * nothing refers to stays, for its client may come back, until its number is needed for another.
 */
#include <stdlib.h>
#include <string.h>

#include "core_internal.h"

static uint32_t table_entries(const struct kvt_core *core)
{
    return 2 * core->config.n_ns_max;
}

static uint64_t session_words(const struct kvt_core *core)
{
    return (core->config.n_ns_max + 63) / 64;
}

bool core_ns_init(struct kvt_core *core)
{
    const struct kvt_core_config *c = &core->config;
    core->ns = kvt_big_calloc(c->n_ns_max * sizeof(*core->ns));
    core->ns_table = kvt_big_calloc(table_entries(core) * sizeof(*core->ns_table));
    core->ns_sessions = calloc(c->n_sessions_max * session_words(core), sizeof(uint64_t));
    core->ns_unused_head = core->ns_unused_tail = NONE;
    return core->ns != NULL && core->ns_table != NULL && core->ns_sessions != NULL;
}

void core_ns_fini(struct kvt_core *core)
{
    const struct kvt_core_config *c = &core->config;
    kvt_big_free(core->ns, c->n_ns_max * sizeof(*core->ns));
    kvt_big_free(core->ns_table, table_entries(core) * sizeof(*core->ns_table));
    free(core->ns_sessions);
}

/* --- classes -----------------------------------------------------------------------------------
 */

/* No slab has it, and nothing waits for one. */
static bool class_is_idle(const struct kvt_core *core, unsigned c)
{
    return core->pool[HOST].classes[c].n_slabs == 0 && core->pool[NVME].classes[c].n_slabs == 0 &&
           core->reserves.of_class[c].head == NONE && core->loads.of_class[c].head == NONE;
}

/* The class of a shape, made or taken from another shape if need be; KVT_CLASSES_MAX: none is left.
 */
static unsigned class_take(struct kvt_core *core, uint64_t slot_bytes, uint32_t n_segments)
{
    unsigned c = 0;
    while (c < core->n_classes &&
           (core->class_bytes[c] != slot_bytes || core->class_segments[c] != n_segments))
        c++;
    if (c < core->n_classes)
        return c;
    if (c == KVT_CLASSES_MAX) {
        for (c = 0; c < KVT_CLASSES_MAX && !class_is_idle(core, c);)
            c++;
        if (c == KVT_CLASSES_MAX)
            return c;
        for (uint32_t i = 0; i < core->n_ns; i++)
            core->ns[i].has_class = core->ns[i].has_class && core->ns[i].size_class != c;
    } else {
        core->n_classes++;
    }
    core->class_bytes[c] = slot_bytes;
    core->class_segments[c] = n_segments;
    return c;
}

bool core_ns_class(struct kvt_core *core, uint32_t n)
{
    struct ns *ns = &core->ns[n];
    if (ns->has_class)
        return true;
    unsigned c = class_take(core, ns->slot_bytes, ns->desc.n_segments);
    if (c == KVT_CLASSES_MAX)
        return false;
    ns->size_class = (uint8_t)c;
    ns->has_class = true;
    return true;
}

/* --- references --------------------------------------------------------------------------------
 */

static void unused_add(struct kvt_core *core, uint32_t n)
{
    core->ns[n].next = NONE;
    core->ns[n].prev = core->ns_unused_tail;
    if (core->ns_unused_tail != NONE)
        core->ns[core->ns_unused_tail].next = n;
    else
        core->ns_unused_head = n;
    core->ns_unused_tail = n;
}

static void unused_remove(struct kvt_core *core, uint32_t n)
{
    const struct ns *ns = &core->ns[n];
    if (ns->prev != NONE)
        core->ns[ns->prev].next = ns->next;
    else
        core->ns_unused_head = ns->next;
    if (ns->next != NONE)
        core->ns[ns->next].prev = ns->prev;
    else
        core->ns_unused_tail = ns->prev;
}

void core_ns_get(struct kvt_core *core, uint32_t n)
{
    if (core->ns[n].n_refs++ == 0)
        unused_remove(core, n);
}

void core_ns_put(struct kvt_core *core, uint32_t n)
{
    KVT_ASSERT(core->ns[n].n_refs > 0);
    if (--core->ns[n].n_refs == 0)
        unused_add(core, n);
}

static uint64_t *session_word(const struct kvt_core *core, uint32_t s, uint32_t n)
{
    return &core->ns_sessions[s * session_words(core) + n / 64];
}

bool core_ns_of_session(const struct kvt_core *core, uint32_t s, uint32_t n)
{
    return n < core->n_ns && (*session_word(core, s, n) >> n % 64 & 1) != 0;
}

static void session_get(struct kvt_core *core, uint32_t s, uint32_t n)
{
    *session_word(core, s, n) |= UINT64_C(1) << n % 64;
    core->sessions[s].n_ns++;
    core_ns_get(core, n);
}

void core_ns_session_end(struct kvt_core *core, uint32_t s)
{
    for (uint32_t first = 0; core->sessions[s].n_ns > 0; first += 64) {
        uint64_t *word = session_word(core, s, first);
        for (; *word != 0; *word &= *word - 1) {
            core_ns_put(core, first + (uint32_t)__builtin_ctzll(*word));
            core->sessions[s].n_ns--;
        }
    }
}

/* --- the table ---------------------------------------------------------------------------------
 */

/* Where the table has the namespace of an id, or an empty place for it. */
static uint32_t *ns_place(const struct kvt_core *core, const uint8_t id[KVT_NS_ID_BYTES])
{
    uint32_t n = table_entries(core);
    uint64_t at;
    memcpy(&at, id, sizeof(at));
    /* Clients make ids, and may have them begin alike: where they land is not to be foreseen. */
    at = (at ^ core->hash_seed[0]) * core->hash_seed[1];
    for (at = (at >> 32) * n >> 32; core->ns_table[at] != 0; at = (at + 1) % n)
        if (memcmp(core->ns[core->ns_table[at] - 1].id, id, KVT_NS_ID_BYTES) == 0)
            break;
    return &core->ns_table[at];
}

uint32_t core_ns_find(const struct kvt_core *core, const uint8_t id[KVT_NS_ID_BYTES])
{
    return *ns_place(core, id) - 1; /* 0 - 1 is NONE */
}

static enum kvt_status shapes_refuse(struct kvt_error *err)
{
    return kvt_error_set(err, KVT_ERR_NOSPACE,
                         "namespace: chunks of %d shapes (size, checksummed pieces) are held, more "
                         "cannot be; clear namespaces no longer used, or use another agent",
                         KVT_CLASSES_MAX);
}

/* Whether a chunk fits into the slabs. */
static bool ns_fits(const struct kvt_core *core, const struct kvt_ns_desc *desc,
                    struct kvt_error *err)
{
    uint64_t room = core->config.host_slab_bytes;
    if (core->config.n_nvme_slabs > 0)
        room = KVT_MIN(room, core->config.nvme_slab_bytes - KVT_SLOT_HEADER_BYTES);
    if (kvt_align_up(desc->chunk_bytes, KVT_PAGE_BYTES) <= room)
        return true;
    kvt_error_set(err, KVT_ERR_INVAL,
                  "namespace: chunk_bytes %llu does not fit a slab of %llu; raise "
                  "host.slab_bytes and nvme.slab_bytes",
                  (unsigned long long)desc->chunk_bytes, (unsigned long long)room);
    return false;
}

bool core_ns_add(struct kvt_core *core, uint32_t n, uint64_t since, const struct kvt_ns_desc *desc,
                 const uint8_t id[KVT_NS_ID_BYTES])
{
    if (!ns_fits(core, desc, NULL))
        return false;
    core->ns[n] = (struct ns){
        .desc = *desc,
        .slot_bytes = kvt_align_up(desc->chunk_bytes, KVT_PAGE_BYTES),
        .used = true,
        .since = since,
    };
    memcpy(core->ns[n].id, id, sizeof(core->ns[n].id));
    *ns_place(core, id) = n + 1;
    unused_add(core, n);
    core->n_ns = KVT_MAX(core->n_ns, n + 1);
    return true;
}

void core_ns_forget(struct kvt_core *core, uint32_t n)
{
    uint32_t *hole = ns_place(core, core->ns[n].id);
    uint32_t n_entries = table_entries(core);
    KVT_ASSERT(core->ns[n].n_refs == 0 && *hole == n + 1);
    unused_remove(core, n);
    core->ns[n].used = false;
    *hole = 0;
    /* What came behind it may belong before it. */
    for (uint32_t at = (uint32_t)(hole - core->ns_table + 1) % n_entries; core->ns_table[at] != 0;
         at = (at + 1) % n_entries) {
        uint32_t entry = core->ns_table[at];
        core->ns_table[at] = 0;
        *ns_place(core, core->ns[entry - 1].id) = entry;
    }
}

/* --- opening -----------------------------------------------------------------------------------
 */

/* A number that nobody has, or whose namespace nothing refers to for longest; NONE. */
static uint32_t number_free(struct kvt_core *core)
{
    while (core->ns_free < core->config.n_ns_max && core->ns[core->ns_free].used)
        core->ns_free++;
    return core->ns_free < core->config.n_ns_max ? core->ns_free : core->ns_unused_head;
}

/* A namespace that is not there. */
static enum kvt_status ns_make(struct kvt_core *core, const struct kvt_ns_desc *desc,
                               const uint8_t id[KVT_NS_ID_BYTES], uint32_t *ns_p,
                               struct kvt_error *err)
{
    uint32_t n = number_free(core);
    if (!ns_fits(core, desc, err))
        return KVT_ERR_INVAL;
    if (n == NONE)
        return kvt_error_set(err, KVT_ERR_NOSPACE,
                             "namespace: all %u are in use; end clients no longer used, or clear "
                             "their namespaces",
                             core->config.n_ns_max);
    if (class_take(core, kvt_align_up(desc->chunk_bytes, KVT_PAGE_BYTES), desc->n_segments) ==
        KVT_CLASSES_MAX)
        return shapes_refuse(err);
    if (core->ns[n].used)
        core_ns_forget(core, n);
    bool added = core_ns_add(core, n, ++core->generation, desc, id);
    KVT_ASSERT(added); /* it fits */
    core_meta_ns(core, n);
    *ns_p = n;
    return KVT_OK;
}

enum kvt_status kvt_core_ns_open(struct kvt_core *core, uint32_t session,
                                 const struct kvt_ns_desc *desc, uint32_t *ns_p,
                                 uint64_t *slot_bytes_p, struct kvt_error *err)
{
    uint8_t id[KVT_NS_ID_BYTES];
    enum kvt_status status = kvt_ns_desc_check(desc, err);
    KVT_ASSERT(session < core->config.n_sessions_max && core->sessions[session].open);
    if (status != KVT_OK)
        return status;
    kvt_ns_id(desc, id);
    uint32_t n = core_ns_find(core, id);
    bool has = n != NONE && core_ns_of_session(core, session, n);
    if (!has && core->sessions[session].n_ns == core->config.n_ns_session_max)
        return kvt_error_set(err, KVT_ERR_NOSPACE,
                             "namespace: this session has %u, more it may not have; open another "
                             "session for others",
                             core->config.n_ns_session_max);
    if (n == NONE)
        status = ns_make(core, desc, id, &n, err);
    if (status == KVT_OK && !core_ns_class(core, n))
        status = shapes_refuse(err);
    if (status != KVT_OK)
        return status;
    if (!has)
        session_get(core, session, n);
    *ns_p = n;
    *slot_bytes_p = core->ns[n].slot_bytes;
    return KVT_OK;
}

const struct kvt_ns_desc *kvt_core_ns_desc(const struct kvt_core *core, uint32_t ns)
{
    return ns < core->n_ns && core->ns[ns].used ? &core->ns[ns].desc : NULL;
}
