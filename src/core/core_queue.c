/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ops that wait for room. Stores and loads each wait in a queue per size class: within one, first
 * come, first served, since what one cannot have the next cannot either; but who waits for room of
 * one size does not hold up who needs another. Three exceptions keep that fair:
 * - What waits for its turn at the disk does so across all classes, in the order of coming, or
 *   small chunks would always slip in before large ones.
 * - A size that lacks slabs needs one that others have emptied, which does not happen while they go
 *   on using all of theirs. So it holds up what came later, but for HOLD_NS of each HOLD_EVERY_NS:
 *   what it waits for may be somebody's lease as well.
 * - A store of a session that owns as much as it may is passed over, with the session's later ones:
 *   it waits for nobody but itself. Two sessions at most can be in that state at once.
 */
#include "core_internal.h"

#define HOLD_NS       (UINT64_C(100) * 1000000)
#define HOLD_EVERY_NS (UINT64_C(1000) * 1000000)

static struct op_queues *queues_of(struct kvt_core *core, const struct op *op)
{
    return op->type == OP_RESERVE ? &core->reserves : &core->loads;
}

static struct op_queue *queue_of(struct kvt_core *core, const struct op *op)
{
    return &queues_of(core, op)->of_class[core->ns[op->ns].size_class];
}

void core_queues_init(struct kvt_core *core)
{
    for (unsigned c = 0; c < KVT_CLASSES_MAX; c++)
        core->reserves.of_class[c] = core->loads.of_class[c] = (struct op_queue){NONE, NONE};
    core->reserves.resume_ns = core->loads.resume_ns = UINT64_MAX;
}

void core_queue_add(struct kvt_core *core, uint32_t o)
{
    struct op *op = &core->ops[o];
    struct op_queue *queue = queue_of(core, op);
    op->queued = true;
    op->queue_order = core->n_queued++;
    op->queue_next = NONE;
    op->queue_prev = queue->tail;
    if (queue->tail != NONE)
        core->ops[queue->tail].queue_next = o;
    else
        queue->head = o;
    queue->tail = o;
    queues_of(core, op)->n++;
}

void core_queue_remove(struct kvt_core *core, uint32_t o)
{
    struct op *op = &core->ops[o];
    struct op_queue *queue = queue_of(core, op);
    if (!op->queued)
        return;
    op->queued = false;
    if (op->queue_prev != NONE)
        core->ops[op->queue_prev].queue_next = op->queue_next;
    else
        queue->head = op->queue_next;
    if (op->queue_next != NONE)
        core->ops[op->queue_next].queue_prev = op->queue_prev;
    else
        queue->tail = op->queue_prev;
    queues_of(core, op)->n--;
}

/* The class whose next op came first; KVT_CLASSES_MAX: none is left. */
static unsigned oldest(const struct kvt_core *core, const uint32_t next[KVT_CLASSES_MAX])
{
    unsigned found = KVT_CLASSES_MAX;
    for (unsigned c = 0; c < core->n_classes; c++)
        if (next[c] != NONE && (found == KVT_CLASSES_MAX || core->ops[next[c]].queue_order <
                                                                core->ops[next[found]].queue_order))
            found = c;
    return found;
}

static enum core_fill op_fill(struct kvt_core *core, uint32_t o, uint64_t now_ns)
{
    struct op *op = &core->ops[o];
    if (op->type == OP_LOAD)
        return core_load_fill(core, o, now_ns);
    struct session *session = &core->sessions[op->session];
    if (session->over_share == core->n_pumps)
        return FILL_OVER_SHARE;
    enum core_fill fill = core_reserve_fill(core, o, now_ns);
    if (fill == FILL_OVER_SHARE)
        session->over_share = core->n_pumps;
    return fill;
}

/* Whether who waits for room of a size may hold up the others now. */
static bool holds_up(const struct kvt_core *core, struct op_queues *queues, unsigned size_class,
                     uint64_t now_ns)
{
    if (!core_lacks_slabs(core, size_class))
        return false;
    if (now_ns >= queues->hold_next_ns) {
        queues->hold_end_ns = now_ns + HOLD_NS;
        queues->hold_next_ns = now_ns + HOLD_EVERY_NS;
    }
    return now_ns < queues->hold_end_ns;
}

static void queues_pump(struct kvt_core *core, struct op_queues *queues, uint64_t now_ns)
{
    uint32_t next[KVT_CLASSES_MAX];
    unsigned c;
    core->n_pumps++;
    queues->full = 0;
    queues->resume_ns = UINT64_MAX;
    for (c = 0; c < KVT_CLASSES_MAX; c++)
        next[c] = queues->of_class[c].head;
    while (queues->n > 0 && (c = oldest(core, next)) < KVT_CLASSES_MAX) {
        uint32_t o = next[c];
        next[c] = core->ops[o].queue_next;
        enum core_fill fill = op_fill(core, o, now_ns);
        if (fill == FILL_NO_READ)
            return;
        if (fill != FILL_NO_ROOM)
            continue;
        next[c] = NONE;
        queues->full |= 1u << c;
        if (holds_up(core, queues, c, now_ns)) {
            queues->resume_ns = queues->hold_end_ns;
            return;
        }
    }
}

void core_ops_pump(struct kvt_core *core, uint64_t now_ns)
{
    queues_pump(core, &core->loads, now_ns);
    queues_pump(core, &core->reserves, now_ns);
}
