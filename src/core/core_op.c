/* SPDX-License-Identifier: Apache-2.0 */
/* The op machine: RESERVE with its COMMITs, LOAD, and how they wait, answer and end. */
#include <string.h>

#include "core_internal.h"

#define PREFIX_HITS_MAX 8 /* beyond this a prompt is a continued one, however long */
/* For chunks of others to become durable, whatever the deadline for room. */
#define EXISTING_WAIT_NS (UINT64_C(2) * 1000000000)

static uint32_t item_ref(uint32_t o, uint32_t i)
{
    return o * KVT_BATCH_MAX + i;
}

static struct item *item_at(struct kvt_core *core, uint32_t ref)
{
    return &core->ops[ref / KVT_BATCH_MAX].items[ref % KVT_BATCH_MAX];
}

bool core_ops_init(struct kvt_core *core)
{
    core->ops = kvt_big_calloc((uint64_t)core->config.n_ops_max * sizeof(*core->ops));
    core->free_op = NONE;
    core->ready_ops = NONE;
    core_queues_init(core);
    return core->ops != NULL && heap_init(&core->op_heap, core->config.n_ops_max);
}

void core_ops_fini(struct kvt_core *core)
{
    kvt_big_free(core->ops, (uint64_t)core->config.n_ops_max * sizeof(*core->ops));
    heap_fini(&core->op_heap);
}

/* --- lists -------------------------------------------------------------------------------------
 */

static void ready_add(struct kvt_core *core, uint32_t o)
{
    struct op *op = &core->ops[o];
    if (op->ready)
        return;
    op->ready = true;
    op->ready_next = core->ready_ops;
    core->ready_ops = o;
}

static void ready_remove(struct kvt_core *core, uint32_t o)
{
    uint32_t *link = &core->ready_ops;
    if (!core->ops[o].ready)
        return;
    while (*link != o)
        link = &core->ops[*link].ready_next;
    *link = core->ops[o].ready_next;
    core->ops[o].ready = false;
}

static void waiters_add(struct kvt_core *core, uint32_t ref, enum item_state state)
{
    struct item *item = item_at(core, ref);
    struct chunk *chunk = &core->chunks[item->chunk];
    item->state = (uint8_t)state;
    item->prev = NONE;
    item->next = chunk->waiters;
    if (chunk->waiters != NONE)
        item_at(core, chunk->waiters)->prev = ref;
    chunk->waiters = ref;
}

static void waiters_remove(struct kvt_core *core, uint32_t ref)
{
    struct item *item = item_at(core, ref);
    if (item->prev != NONE)
        item_at(core, item->prev)->next = item->next;
    else
        core->chunks[item->chunk].waiters = item->next;
    if (item->next != NONE)
        item_at(core, item->next)->prev = item->prev;
}

static void answer(struct kvt_core *core, uint32_t o, uint32_t i, enum kvt_status status)
{
    struct op *op = &core->ops[o];
    struct item *item = &op->items[i];
    item->state = ITEM_ANSWER;
    item->status = (int16_t)status;
    item->next = NONE;
    if (op->answers_tail != NONE)
        op->items[op->answers_tail].next = i;
    else
        op->answers_head = i;
    op->answers_tail = i;
    ready_add(core, o);
}

/* --- begin and end -----------------------------------------------------------------------------
 */

static uint32_t op_find(const struct kvt_core *core, uint32_t s, uint64_t id)
{
    if (s >= core->config.n_sessions_max || !core->sessions[s].open)
        return NONE;
    uint32_t o = core->sessions[s].ops;
    while (o != NONE && core->ops[o].id != id)
        o = core->ops[o].next;
    return o;
}

static enum kvt_status op_new(struct kvt_core *core, enum op_type type, uint32_t s, uint64_t id,
                              uint32_t ns, unsigned n_items, uint32_t flags, uint64_t deadline_ns,
                              uint64_t now_ns, uint32_t *o_p)
{
    struct session *session = &core->sessions[s];
    uint32_t o = core->free_op;
    if (id == 0 || op_find(core, s, id) != NONE)
        return KVT_ERR_INVAL;
    if (session->n_ops >= core->config.n_ops_session_max)
        return KVT_ERR_AGAIN;
    if (o != NONE)
        core->free_op = core->ops[o].next;
    else if (core->n_ops_used < core->config.n_ops_max)
        o = core->n_ops_used++;
    else
        return KVT_ERR_AGAIN;
    struct op *op = &core->ops[o];
    memset(op, 0, offsetof(struct op, items));
    op->id = id;
    op->type = (uint8_t)type;
    op->session = s;
    op->ns = (uint16_t)ns;
    op->n_items = n_items;
    op->n_open = n_items;
    op->flags = flags;
    op->deadline_ns = KVT_MIN(deadline_ns, now_ns + core->config.lease_ttl_max_ns);
    op->answers_head = op->answers_tail = NONE;
    op->prev = NONE;
    op->next = session->ops;
    if (session->ops != NONE)
        core->ops[session->ops].prev = o;
    session->ops = o;
    session->n_ops++;
    core->n_loads += type == OP_LOAD;
    STAT(core, OPS)++;
    *o_p = o;
    return KVT_OK;
}

static void reserved_bytes(struct kvt_core *core, const struct op *op, bool more)
{
    uint64_t bytes = core->ns[op->ns].slot_bytes;
    uint64_t delta = more ? bytes : -bytes;
    core->sessions[op->session].reserved_bytes += delta;
    STAT(core, RESERVED_BYTES) += delta;
}

/* Take back a chunk that was never committed. */
static void reserve_undo(struct kvt_core *core, struct op *op, struct item *item)
{
    if (item->state == ITEM_GRANTED)
        reserved_bytes(core, op, false);
    else
        op->n_waiting--;
    core_forget_host(core, item->chunk, EVICT_NOT);
    core_chunk_drop(core, item->chunk);
    item->state = ITEM_DONE;
}

static void item_unpin(struct kvt_core *core, struct item *item)
{
    if (item->pinned)
        core_unpin(core, item->chunk);
    item->pinned = 0;
}

void core_op_end(struct kvt_core *core, uint32_t o)
{
    struct op *op = &core->ops[o];
    struct session *session = &core->sessions[op->session];
    for (uint32_t i = 0; i < op->n_items; i++) {
        struct item *item = &op->items[i];
        if (item->state == ITEM_WAIT_READ || item->state == ITEM_WAIT_DURABLE)
            waiters_remove(core, item_ref(o, i));
        else if (op->type == OP_RESERVE &&
                 (item->state == ITEM_GRANTED || item->state == ITEM_WAIT_SLOT)) {
            STAT(core, STORE_ABORTED_CHUNKS)++;
            reserve_undo(core, op, item);
        }
        item_unpin(core, item);
    }
    core_queue_remove(core, o);
    ready_remove(core, o);
    heap_remove(&core->op_heap, o);
    if (op->prev != NONE)
        core->ops[op->prev].next = op->next;
    else
        session->ops = op->next;
    if (op->next != NONE)
        core->ops[op->next].prev = op->prev;
    session->n_ops--;
    core->n_loads -= op->type == OP_LOAD;
    core->n_holding -= op->holding;
    STAT(core, OPS)--;
    op->id = 0;
    op->next = core->free_op;
    core->free_op = o;
}

/* --- use of a chunk ----------------------------------------------------------------------------
 */

static void touch(struct kvt_core *core, uint32_t c)
{
    struct chunk *chunk = &core->chunks[c];
    struct slab_pool *pool = core->pool;
    core->tick++;
    chunk->flags |= CHUNK_REUSED;
    if (chunk->host_state == HOST_VALID)
        pool[HOST].policy->ops->hit(pool[HOST].policy, c, core->tick);
    if (chunk->nvme_state == NVME_VALID)
        pool[NVME].policy->ops->hit(pool[NVME].policy, c, core->tick);
    if (core->config.admission == KVT_ADMIT_REUSED && !core->draining)
        core_want_write(core, c);
}

static bool bad_request(const struct kvt_core *core, uint32_t s, uint32_t ns, unsigned n,
                        uint32_t flags, uint32_t flags_known)
{
    return s >= core->config.n_sessions_max || !core->sessions[s].open ||
           !core_ns_of_session(core, s, ns) || n > KVT_BATCH_MAX || (flags & ~flags_known) != 0 ||
           n <= (flags & KVT_STORE_PARENT ? 1u : 0u);
}
_Static_assert(KVT_STORE_PARENT == KVT_LOAD_PARENT, "one check for both");

/* --- reserve -----------------------------------------------------------------------------------
 */

static uint32_t held_above(const struct kvt_core *core, uint32_t c)
{
    uint32_t n = 0;
    for (; c != NONE && n < PREFIX_HITS_MAX && chunk_held(&core->chunks[c]);
         c = core->chunks[c].parent)
        n++;
    return n;
}

/* Make the chunk of an item that nobody has. prev is its parent, if it has one. */
static void reserve_item(struct kvt_core *core, struct op *op, struct item *item,
                         const struct kvt_key *key, uint32_t prev)
{
    uint32_t c = NONE;
    if (prev != NONE)
        core_pin(core, prev); /* making room must not take the parent */
    if (core_room_index(core))
        c = core_chunk_new(core, key, op->ns);
    if (c != NONE) {
        core_link(core, c, prev);
        core_set_host(core, c, HOST_RESERVED);
        item->state = ITEM_WAIT_SLOT;
        op->n_waiting++;
    } else {
        item->status = KVT_ERR_NOSPACE;
        STAT(core, STORE_REFUSED_CHUNKS)++;
    }
    item->chunk = c;
    if (prev != NONE)
        core_unpin(core, prev);
}

static void reserve_known(struct kvt_core *core, uint32_t o, uint32_t i, uint32_t prev)
{
    struct op *op = &core->ops[o];
    struct item *item = &op->items[i];
    struct chunk *chunk = &core->chunks[item->chunk];
    if (!chunk_held(chunk)) {
        item->status = KVT_ERR_BUSY;
        STAT(core, STORE_BUSY_CHUNKS)++;
        return;
    }
    item->status = KVT_ERR_EXISTS;
    STAT(core, STORE_EXISTS_CHUNKS)++;
    core_link(core, item->chunk, prev);
    if (!(op->flags & KVT_STORE_DURABLE))
        return;
    /* Who wants it durable is told that it exists when that is so, and still is. */
    core_pin(core, item->chunk);
    item->pinned = 1;
    if (chunk->nvme_state == NVME_VALID)
        return;
    core_want_write(core, item->chunk);
    if (!(chunk->flags & CHUNK_WANT_WRITE)) {
        item->status = KVT_ERR_NOTSUP;
        return;
    }
    waiters_add(core, item_ref(o, i), ITEM_WAIT_DURABLE);
    op->n_existing++;
}

static bool reserve_waits(const struct op *op)
{
    return op->n_waiting > 0 || op->n_existing > 0;
}

static void reserve_ready(struct kvt_core *core, uint32_t o)
{
    if (reserve_waits(&core->ops[o]))
        return;
    heap_remove(&core->op_heap, o);
    ready_add(core, o);
}

/* An item whose chunk somebody else has stored: it is durable now, or it is not to be. */
static void existing_answer(struct kvt_core *core, uint32_t o, uint32_t i, enum kvt_status status)
{
    struct op *op = &core->ops[o];
    op->items[i].state = ITEM_DONE;
    op->items[i].status = (int16_t)(status == KVT_OK ? KVT_ERR_EXISTS : status);
    op->n_existing--;
    reserve_ready(core, o);
}

enum kvt_status kvt_core_reserve(struct kvt_core *core, uint32_t s, uint64_t id, uint32_t ns,
                                 const struct kvt_key *keys, unsigned n, uint32_t flags,
                                 uint64_t deadline_ns, uint64_t now_ns)
{
    uint32_t o;
    if (bad_request(core, s, ns, n, flags, KVT_STORE_PARENT | KVT_STORE_DURABLE))
        return KVT_ERR_INVAL;
    if (core->draining)
        return KVT_ERR_AGAIN;
    unsigned first = flags & KVT_STORE_PARENT ? 1 : 0;
    if (!core_ns_class(core, ns)) {
        STAT(core, STORE_REFUSED_CHUNKS) += n - first;
        return KVT_ERR_NOSPACE;
    }
    enum kvt_status status =
        op_new(core, OP_RESERVE, s, id, ns, n - first, flags, deadline_ns, now_ns, &o);
    if (status != KVT_OK)
        return status;
    struct op *op = &core->ops[o];
    op->hold_until_ns = now_ns + EXISTING_WAIT_NS;
    core_find_batch(core, keys, n, ns, false);
    for (unsigned i = n; i-- > first;)
        if (core->found[i] != NONE && chunk_held(&core->chunks[core->found[i]]))
            touch(core, core->found[i]);
    /* From here on chunks may be evicted and made: each key is looked up anew, now in cache. */
    uint32_t prev = NONE;
    bool counted = false;
    for (unsigned i = 0; i < n; i++) {
        uint32_t c = core_find_hashed(core, &keys[i], ns, core_hash(core, &keys[i], ns));
        if (i >= first) {
            struct item *item = &op->items[i - first];
            *item = (struct item){.chunk = c, .next = NONE, .state = ITEM_DONE};
            if (c == NONE && !counted) {
                op->n_prefix_hits = held_above(core, prev);
                counted = true;
            }
            if (c == NONE)
                reserve_item(core, op, item, &keys[i], prev);
            else
                reserve_known(core, o, i - first, prev);
            c = item->chunk;
        }
        prev = c;
    }
    if (op->n_waiting > 0)
        core_queue_add(core, o);
    heap_set(&core->op_heap, o, op->deadline_ns);
    reserve_ready(core, o);
    return KVT_OK;
}

static void reserve_refuse_rest(struct kvt_core *core, uint32_t o, enum kvt_status status)
{
    struct op *op = &core->ops[o];
    for (uint32_t i = op->first_waiting; op->n_waiting > 0; i++) {
        struct item *item = &op->items[i];
        if (item->state != ITEM_WAIT_SLOT)
            continue;
        reserve_undo(core, op, item);
        item->status = (int16_t)status;
        STAT(core, STORE_REFUSED_CHUNKS)++;
    }
    core_queue_remove(core, o);
    reserve_ready(core, o);
}

/* No more waiting for chunks of others to become durable. */
static void reserve_existing_late(struct kvt_core *core, uint32_t o)
{
    struct op *op = &core->ops[o];
    for (uint32_t i = 0; op->n_existing > 0; i++) {
        if (op->items[i].state != ITEM_WAIT_DURABLE)
            continue;
        waiters_remove(core, item_ref(o, i));
        existing_answer(core, o, i, KVT_ERR_TIMEOUT);
    }
}

void core_reserves_refuse(struct kvt_core *core)
{
    for (unsigned c = 0; c < KVT_CLASSES_MAX; c++)
        while (core->reserves.of_class[c].head != NONE)
            reserve_refuse_rest(core, core->reserves.of_class[c].head, KVT_ERR_AGAIN);
}

/* Whether room may come in time: somebody else holds some, by whatever title. */
static bool reserve_may_wait(const struct kvt_core *core, uint64_t own_bytes)
{
    return core_room_may_come(core, own_bytes) || core->n_loads > 0 || STAT(core, LEASES) > 0 ||
           core->pins.n_refs > 0;
}

/* Slots for the items of a reserve, in order. */
enum core_fill core_reserve_fill(struct kvt_core *core, uint32_t o, uint64_t now_ns)
{
    struct op *op = &core->ops[o];
    struct session *session = &core->sessions[op->session];
    uint64_t bytes = core->ns[op->ns].slot_bytes;
    /* One session may not sit on the whole arena with slots that it never commits. */
    uint64_t most = (uint64_t)core->pool[HOST].n_present * core->pool[HOST].slab_bytes / 2;
    uint64_t own = 0;
    for (uint32_t i = 0; i < op->n_items; i++)
        own += op->items[i].state == ITEM_GRANTED ? bytes : 0;
    for (; op->n_waiting > 0; op->first_waiting++) {
        struct item *item = &op->items[op->first_waiting];
        if (item->state != ITEM_WAIT_SLOT)
            continue;
        uint32_t slot = KVT_SLOT_NONE;
        bool allowed = session->reserved_bytes == 0 || session->reserved_bytes + bytes <= most;
        if (allowed)
            slot = core_room(core, HOST, item->chunk);
        if (slot == KVT_SLOT_NONE) {
            bool may_wait = allowed ? reserve_may_wait(core, own)
                                    : session->reserved_bytes > own || core_arena_grows(core);
            if (may_wait && now_ns < op->deadline_ns)
                return allowed ? FILL_NO_ROOM : FILL_OVER_SHARE;
            reserve_refuse_rest(core, o, KVT_ERR_NOSPACE);
            return FILL_OVER;
        }
        core->chunks[item->chunk].host_slot = slot;
        item->state = ITEM_GRANTED;
        op->n_waiting--;
        own += bytes;
        reserved_bytes(core, op, true);
    }
    core_queue_remove(core, o);
    reserve_ready(core, o);
    return FILL_OVER;
}

static void commit_item(struct kvt_core *core, uint32_t o, uint32_t i, const uint64_t *sums)
{
    struct op *op = &core->ops[o];
    uint32_t c = op->items[i].chunk;
    struct chunk *chunk = &core->chunks[c];
    const struct ns *ns = &core->ns[op->ns];
    struct slab_pool *host = &core->pool[HOST];
    memcpy(core_slot_sums(host, chunk->host_slot), sums, ns->desc.n_segments * sizeof(*sums));
    reserved_bytes(core, op, false);
    core->tick++;
    host->policy->ops->insert(host->policy, c, ns->size_class,
                              core_hash(core, &chunk->key, chunk->ns),
                              core_parent_in(core, c, HOST), core->tick);
    core_set_host(core, c, HOST_VALID);
    STAT(core, STORED_CHUNKS)++;
    STAT(core, STORED_BYTES) += ns->desc.chunk_bytes;
    bool durable = op->flags & KVT_STORE_DURABLE;
    if (core->config.admission == KVT_ADMIT_ALL || durable ||
        (core->config.admission == KVT_ADMIT_REUSED && op->n_prefix_hits > 0))
        core_want_write(core, c);
    if (durable && (chunk->flags & CHUNK_WANT_WRITE))
        waiters_add(core, item_ref(o, i), ITEM_WAIT_DURABLE);
    else
        answer(core, o, i, durable ? KVT_ERR_NOTSUP : KVT_OK);
}

enum kvt_status kvt_core_commit(struct kvt_core *core, uint32_t s, uint64_t id,
                                const uint32_t *indexes, unsigned n, uint32_t flags,
                                const uint64_t *sums, uint64_t now_ns)
{
    (void)now_ns;
    uint32_t o = op_find(core, s, id);
    if (o == NONE || core->ops[o].type != OP_RESERVE || !core->ops[o].announced || n == 0 ||
        n > KVT_BATCH_MAX || (flags & ~(uint32_t)KVT_COMMIT_ABORT) != 0)
        return KVT_ERR_INVAL;
    struct op *op = &core->ops[o];
    unsigned n_good = 0;
    for (; n_good < n; n_good++) {
        if (indexes[n_good] >= op->n_items || op->items[indexes[n_good]].state != ITEM_GRANTED)
            break;
        op->items[indexes[n_good]].state = ITEM_ANSWER; /* marks it, to find it named twice */
    }
    for (unsigned k = 0; k < n_good; k++)
        op->items[indexes[k]].state = ITEM_GRANTED;
    if (n_good < n)
        return KVT_ERR_INVAL;
    uint32_t n_segments = core->ns[op->ns].desc.n_segments;
    for (unsigned k = 0; k < n; k++) {
        if (!(flags & KVT_COMMIT_ABORT)) {
            commit_item(core, o, indexes[k], sums + (size_t)k * n_segments);
            continue;
        }
        STAT(core, STORE_ABORTED_CHUNKS)++;
        reserve_undo(core, op, &op->items[indexes[k]]);
        op->n_open--;
    }
    if (op->n_open == 0)
        core_op_end(core, o);
    return KVT_OK;
}

uint32_t kvt_core_op_segments(const struct kvt_core *core, uint32_t s, uint64_t id)
{
    uint32_t o = op_find(core, s, id);
    return o == NONE || core->ops[o].type != OP_RESERVE ? 0
                                                        : core->ns[core->ops[o].ns].desc.n_segments;
}

/* --- load --------------------------------------------------------------------------------------
 */

enum kvt_status kvt_core_load(struct kvt_core *core, uint32_t s, uint64_t id, uint32_t ns,
                              const struct kvt_key *keys, unsigned n, uint32_t flags,
                              uint64_t deadline_ns, uint64_t now_ns)
{
    uint32_t o;
    if (bad_request(core, s, ns, n, flags, KVT_LOAD_PARENT | KVT_LOAD_PREFETCH))
        return KVT_ERR_INVAL;
    unsigned first = flags & KVT_LOAD_PARENT ? 1 : 0;
    enum kvt_status status =
        op_new(core, OP_LOAD, s, id, ns, n - first, flags, deadline_ns, now_ns, &o);
    if (status != KVT_OK)
        return status;
    struct op *op = &core->ops[o];
    core_find_batch(core, keys, n, ns, false);
    for (unsigned i = 0; i < n; i++) {
        uint32_t c = core->found[i];
        if (c != NONE && !chunk_held(&core->chunks[c]))
            core->found[i] = c = NONE;
        if (i < first)
            continue;
        struct item *item = &op->items[i - first];
        *item = (struct item){.chunk = c, .next = NONE};
        if (c == NONE) {
            STAT(core, LOAD_MISS_CHUNKS)++;
            answer(core, o, i - first, KVT_ERR_MISS);
            continue;
        }
        if (i > 0)
            core_link(core, c, core->found[i - 1]);
        core_pin(core, c);
        item->pinned = 1;
        if (core->chunks[c].host_state == HOST_VALID) {
            STAT(core, LOAD_HOST_CHUNKS)++;
            answer(core, o, i - first, KVT_OK);
            continue;
        }
        STAT(core, LOAD_NVME_CHUNKS)++;
        item->from_nvme = 1;
        if (core->chunks[c].host_state == HOST_READING) {
            waiters_add(core, item_ref(o, i - first), ITEM_WAIT_READ);
        } else {
            item->state = ITEM_WAIT_SLOT;
            op->n_waiting++;
        }
    }
    for (unsigned i = n; i-- > first;)
        if (core->found[i] != NONE)
            touch(core, core->found[i]);
    if (op->n_waiting > 0)
        core_queue_add(core, o);
    heap_set(&core->op_heap, o, op->deadline_ns);
    return KVT_OK;
}

void core_wake(struct kvt_core *core, uint32_t c, enum kvt_status status)
{
    uint32_t ref = core->chunks[c].waiters;
    core->chunks[c].waiters = NONE;
    while (ref != NONE) {
        uint32_t next = item_at(core, ref)->next, o = ref / KVT_BATCH_MAX;
        const struct op *op = &core->ops[o];
        if (op->type == OP_RESERVE && !op->announced)
            existing_answer(core, o, ref % KVT_BATCH_MAX, status);
        else
            answer(core, o, ref % KVT_BATCH_MAX, status);
        ref = next;
    }
}

void kvt_core_load_done(struct kvt_core *core, uint32_t s, uint64_t id, uint64_t now_ns)
{
    (void)now_ns;
    uint32_t o = op_find(core, s, id);
    if (o != NONE && core->ops[o].type == OP_LOAD)
        core_op_end(core, o);
}

enum kvt_status kvt_core_cancel(struct kvt_core *core, uint32_t s, uint64_t id, uint64_t now_ns)
{
    (void)now_ns;
    uint32_t o = op_find(core, s, id);
    if (o == NONE)
        return KVT_ERR_INVAL;
    core_op_end(core, o);
    return KVT_OK;
}

/* --- progress ----------------------------------------------------------------------------------
 */

static void load_expire(struct kvt_core *core, uint32_t o)
{
    struct op *op = &core->ops[o];
    for (uint32_t i = 0; i < op->n_items; i++) {
        struct item *item = &op->items[i];
        if (item->state != ITEM_WAIT_SLOT && item->state != ITEM_WAIT_READ)
            continue;
        if (item->state == ITEM_WAIT_READ)
            waiters_remove(core, item_ref(o, i));
        else
            op->n_waiting--;
        STAT(core, LOAD_LATE_CHUNKS)++;
        answer(core, o, i, KVT_ERR_TIMEOUT);
    }
    core_queue_remove(core, o);
}

/* Start the reads of a load, in order. */
enum core_fill core_load_fill(struct kvt_core *core, uint32_t o, uint64_t now_ns)
{
    struct op *op = &core->ops[o];
    if (now_ns >= op->deadline_ns) {
        load_expire(core, o);
        return FILL_OVER;
    }
    for (; op->n_waiting > 0; op->first_waiting++) {
        uint32_t i = op->first_waiting;
        struct item *item = &op->items[i];
        struct chunk *chunk = &core->chunks[item->chunk];
        if (item->state != ITEM_WAIT_SLOT)
            continue;
        if (chunk->flags & CHUNK_UNHASHED) {
            answer(core, o, i, KVT_ERR_MISS); /* lost since: another reader found it damaged */
        } else if (chunk->host_state == HOST_VALID) {
            answer(core, o, i, KVT_OK);
        } else if (chunk->host_state == HOST_READING) {
            waiters_add(core, item_ref(o, i), ITEM_WAIT_READ);
        } else {
            if (!core_can_read(core))
                return FILL_NO_READ;
            uint32_t slot = core_room(core, HOST, item->chunk);
            if (slot == KVT_SLOT_NONE) {
                if (core_room_may_come(core, 0))
                    return FILL_NO_ROOM;
                answer(core, o, i, KVT_ERR_NOSPACE);
            } else {
                chunk->host_slot = slot;
                waiters_add(core, item_ref(o, i), ITEM_WAIT_READ);
                core_start_read(core, item->chunk);
            }
        }
        op->n_waiting--;
    }
    core_queue_remove(core, o);
    return FILL_OVER;
}

void core_ops_expire(struct kvt_core *core, uint64_t now_ns)
{
    while (heap_first(&core->op_heap) <= now_ns) {
        uint32_t o = core->op_heap.ids[0];
        struct op *op = &core->ops[o];
        heap_remove(&core->op_heap, o);
        if (op->type == OP_RESERVE) {
            /* Who is only held up has a try before it is refused. */
            if (op->n_waiting > 0 && (core->reserves.full >> core->ns[op->ns].size_class & 1) == 0)
                (void)core_reserve_fill(core, o, now_ns);
            else if (op->n_waiting > 0)
                reserve_refuse_rest(core, o, KVT_ERR_NOSPACE);
            if (op->n_existing > 0 && now_ns < op->hold_until_ns)
                heap_set(&core->op_heap, o, op->hold_until_ns);
            else
                reserve_existing_late(core, o);
        } else if (op->n_open == 0) {
            core_op_end(core, o); /* every copy that ends from now on is late by the clock */
        } else {
            load_expire(core, o);
        }
    }
}

static void count_loaded(struct kvt_core *core, const struct op *op, const struct item *item)
{
    const struct kvt_ns_desc *desc = &core->ns[op->ns].desc;
    if (item->from_nvme) {
        STAT(core, LOADED_NVME_CHUNKS)++;
        STAT(core, LOADED_NVME_TOKENS) += desc->tokens_per_chunk;
        STAT(core, LOADED_NVME_BYTES) += desc->chunk_bytes;
    } else {
        STAT(core, LOADED_HOST_CHUNKS)++;
        STAT(core, LOADED_HOST_TOKENS) += desc->tokens_per_chunk;
        STAT(core, LOADED_HOST_BYTES) += desc->chunk_bytes;
    }
}

static unsigned gather_answers(struct kvt_core *core, struct op *op, uint64_t now_ns)
{
    bool hold = op->type == OP_LOAD && !(op->flags & KVT_LOAD_PREFETCH);
    unsigned n = 0;
    for (uint32_t i = op->answers_head; i != NONE; i = op->items[i].next) {
        struct item *item = &op->items[i];
        struct kvt_wire_item *out = &core->scratch[n++];
        *out = (struct kvt_wire_item){.index = i, .status = item->status};
        item->state = ITEM_DONE;
        if (hold && item->status == KVT_OK) {
            out->offset = core_slot_offset(core, core->chunks[item->chunk].host_slot);
            out->lease_deadline_ns = op->hold_until_ns = now_ns + core->config.lease_ttl_ns;
            item->state = ITEM_HELD;
            count_loaded(core, op, item);
        } else {
            item_unpin(core, item);
        }
    }
    op->answers_head = op->answers_tail = NONE;
    op->n_open -= n;
    return n;
}

static unsigned gather_reserved(struct kvt_core *core, struct op *op)
{
    unsigned n_granted = 0;
    for (uint32_t i = 0; i < op->n_items; i++) {
        struct item *item = &op->items[i];
        if (item->pinned && (core->chunks[item->chunk].flags & CHUNK_UNHASHED) != 0)
            item->status = KVT_ERR_CANCELED;
        else if (item->pinned && item->status == KVT_ERR_EXISTS &&
                 core->chunks[item->chunk].nvme_state != NVME_VALID)
            item->status = KVT_ERR_IO; /* it was durable, and its copy was lost or removed */
        item_unpin(core, item);
        core->scratch[i] = (struct kvt_wire_item){.index = i, .status = item->status};
        if (item->state != ITEM_GRANTED)
            continue;
        core->scratch[i].status = KVT_OK;
        core->scratch[i].offset = core_slot_offset(core, core->chunks[item->chunk].host_slot);
        n_granted++;
    }
    op->announced = true;
    op->n_open = n_granted;
    return op->n_items;
}

static void emit(struct kvt_core *core, uint32_t o, uint64_t now_ns)
{
    struct op *op = &core->ops[o];
    const struct kvt_core_actions *out = &core->actions;
    uint32_t session = op->session;
    uint64_t id = op->id;
    bool held = false;
    if (op->type == OP_RESERVE && !op->announced) {
        unsigned n = gather_reserved(core, op);
        uint32_t n_open = op->n_open;
        if (n_open == 0)
            core_op_end(core, o);
        out->reserved(out->arg, session, id, KVT_OK, core->scratch, n, n_open);
        return;
    }
    unsigned n = gather_answers(core, op, now_ns);
    uint32_t n_open = op->n_open;
    bool reserve = op->type == OP_RESERVE;
    for (uint32_t i = 0; n_open == 0 && !held && i < op->n_items; i++)
        held = op->items[i].state == ITEM_HELD;
    if (held) {
        op->holding = true;
        core->n_holding++;
        heap_set(&core->op_heap, o, op->hold_until_ns);
    } else if (n_open == 0) {
        core_op_end(core, o);
    }
    (reserve ? out->committed : out->loaded)(out->arg, session, id, KVT_OK, core->scratch, n,
                                             n_open);
}

void core_ops_emit(struct kvt_core *core, uint64_t now_ns)
{
    while (core->ready_ops != NONE) {
        uint32_t o = core->ready_ops;
        core->ready_ops = core->ops[o].ready_next;
        core->ops[o].ready = false;
        emit(core, o, now_ns);
    }
}
