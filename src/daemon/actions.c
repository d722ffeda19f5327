/* SPDX-License-Identifier: Apache-2.0 */
/* From the core to the tiers, the metadata and the clients, and back. */
#include <string.h>

#include "agent.h"
#include "kvt/log.h"
#include "kvt/util.h"

#define META_BATCH 256

bool actions_init(struct agent *agent, const struct kvt_core_config *config)
{
    /* What the core may have in flight, see kvt_core_actions. */
    uint64_t most = 3 * (uint64_t)config->n_ios_max + config->n_nvme_slabs + config->n_ns_max;
    uint64_t room = 1;
    while (room < most)
        room *= 2;
    agent->ios = (struct io_queue){0};
    agent->changes = (struct meta_queue){.ring = kvt_big_calloc(room * sizeof(struct meta_change)),
                                         .mask = (uint32_t)room - 1};
    return agent->changes.ring != NULL;
}

void actions_fini(struct agent *agent)
{
    kvt_big_free(agent->changes.ring,
                 ((uint64_t)agent->changes.mask + 1) * sizeof(struct meta_change));
    agent->changes = (struct meta_queue){0};
}

/* --- transfers -------------------------------------------------------------------------------- */

static void action_io(void *arg, struct kvt_io *io)
{
    struct agent *agent = arg;
    metrics_io_begin(&agent->metrics, io, agent->now_ns);
    io->next = NULL;
    if (agent->ios.tail != NULL)
        agent->ios.tail->next = io;
    else
        agent->ios.head = io;
    agent->ios.tail = io;
}

static void ios_push(struct agent *agent)
{
    struct kvt_io *batch[IO_BATCH];
    while (agent->ios.head != NULL) {
        struct kvt_io *io = agent->ios.head;
        unsigned n = 0;
        for (; io != NULL && n < IO_BATCH; io = io->next)
            batch[n++] = io;
        /* `next` of what is accepted belongs to the tier from here on. */
        unsigned n_taken = agent->nvme->ops->submit(agent->nvme, batch, n);
        agent->ios.head = n_taken < n ? batch[n_taken] : io;
        if (agent->ios.head == NULL)
            agent->ios.tail = NULL;
        if (n_taken < n)
            return; /* back-pressure: the next completion comes here again */
    }
}

/* Collecting takes one batch: more makes the event readable again, and sessions get their turn. */
void actions_collect_io(struct agent *agent)
{
    struct kvt_io *done[IO_BATCH];
    unsigned n = agent->nvme->ops->poll(agent->nvme, done, IO_BATCH);
    for (unsigned i = 0; i < n; i++) {
        metrics_io_end(&agent->metrics, done[i], agent->now_ns);
        kvt_core_io_done(agent->core, done[i], agent->now_ns);
    }
}

/* --- metadata --------------------------------------------------------------------------------- */

static struct meta_change *change_add(struct agent *agent)
{
    struct meta_queue *q = &agent->changes;
    KVT_ASSERT(q->n <= q->mask);
    return &q->ring[(q->head + q->n++) & q->mask];
}

static void action_meta_put(void *arg, const struct kvt_meta_record *record, uint64_t token)
{
    *change_add(arg) = (struct meta_change){.type = META_PUT, .token = token, .record = *record};
}

static void action_meta_del(void *arg, uint32_t slot, uint64_t token)
{
    *change_add(arg) = (struct meta_change){.type = META_DEL, .slot = slot, .token = token};
}

static void action_meta_slab(void *arg, uint32_t slab, uint64_t slot_bytes, uint64_t token)
{
    *change_add(arg) = (struct meta_change){
        .type = META_SLAB, .slot = slab, .slot_bytes = slot_bytes, .token = token};
}

static void action_meta_ns(void *arg, uint32_t ns, uint64_t since, const struct kvt_ns_desc *desc,
                           uint64_t token)
{
    (void)desc; /* the core keeps it: see change_push() */
    *change_add(arg) = (struct meta_change){
        .type = META_NS, .slot = ns, .token = token, .record.generation = since};
}

static bool change_push(struct agent *agent, const struct meta_change *change)
{
    struct kvt_meta *meta = agent->meta;
    if (meta == NULL) { /* nothing to remember without a durable tier */
        kvt_core_meta_done(agent->core, change->token, KVT_OK, agent->now_ns);
        return true;
    }
    switch (change->type) {
    case META_PUT:
        return kvt_meta_put(meta, &change->record, change->token);
    case META_DEL:
        return kvt_meta_del(meta, change->slot, change->token);
    case META_SLAB:
        return kvt_meta_put_slab(meta, change->slot, change->slot_bytes, change->token);
    case META_NS:
        return kvt_meta_put_ns(meta, change->slot, change->record.generation,
                               kvt_core_ns_desc(agent->core, change->slot), change->token);
    }
    return true;
}

void actions_push(struct agent *agent)
{
    struct meta_queue *q = &agent->changes;
    if (agent->nvme != NULL)
        ios_push(agent);
    while (q->n > 0 && change_push(agent, &q->ring[q->head & q->mask])) {
        q->head++;
        q->n--;
    }
}

void actions_collect_meta(struct agent *agent)
{
    struct kvt_meta_done done[META_BATCH];
    unsigned n = kvt_meta_poll(agent->meta, done, META_BATCH);
    for (unsigned i = 0; i < n; i++)
        kvt_core_meta_done(agent->core, done[i].token, done[i].status, agent->now_ns);
}

/* --- answers ---------------------------------------------------------------------------------- */

static void answered(struct agent *agent, enum metrics_timed what, uint32_t session, uint64_t op,
                     enum kvt_status status, const struct kvt_wire_item *items, unsigned n)
{
    unsigned n_ok = 0;
    for (unsigned i = 0; i < n; i++)
        n_ok += items[i].status == KVT_OK;
    if (status != KVT_OK)
        metrics_op_drop(&agent->metrics, session, op);
    else
        metrics_op_answer(&agent->metrics, session, op, what, n, n_ok);
    kvt_log(KVT_LOG_TRACE, "op answered operation=%s items=%u ok=%u session=%u op=%llu",
            metrics_timed_name(what), n, n_ok, session, (unsigned long long)op);
}

static void answer(struct agent *agent, uint16_t type, uint32_t session, uint64_t op,
                   enum kvt_status status, const struct kvt_wire_item *items, unsigned n,
                   unsigned n_open)
{
    struct conn *conn = agent->by_session[session];
    struct kvt_wire_items *msg = (struct kvt_wire_items *)(void *)agent->tx;
    size_t bytes = sizeof(*msg) + n * sizeof(*items);
    KVT_ASSERT(conn != NULL && bytes <= sizeof(agent->tx));
    if (conn->state != CONN_OPEN)
        return; /* it no longer listens */
    *msg = (struct kvt_wire_items){
        .h = {.type = type, .bytes = (uint32_t)bytes, .op = op},
        .status = status,
        .n_items = n,
        .n_open = n_open,
    };
    memcpy(msg + 1, items, n * sizeof(*items));
    if (!session_append(conn, msg))
        session_send(agent, conn, msg, bytes);
}

static void action_reserved(void *arg, uint32_t session, uint64_t op, enum kvt_status status,
                            const struct kvt_wire_item *items, unsigned n, unsigned n_open)
{
    answered(arg, TIMED_RESERVE, session, op, status, items, n);
    answer(arg, KVT_WIRE_RESERVE_R, session, op, status, items, n, n_open);
}

static void action_loaded(void *arg, uint32_t session, uint64_t op, enum kvt_status status,
                          const struct kvt_wire_item *items, unsigned n, unsigned n_open)
{
    answered(arg, TIMED_LOAD_HOST, session, op, status, items, n);
    answer(arg, KVT_WIRE_LOAD_R, session, op, status, items, n, n_open);
}

static void action_committed(void *arg, uint32_t session, uint64_t op, enum kvt_status status,
                             const struct kvt_wire_item *items, unsigned n, unsigned n_open)
{
    answered(arg, TIMED_COMMIT, session, op, status, items, n);
    answer(arg, KVT_WIRE_COMMIT_R, session, op, status, items, n, n_open);
}

static void action_job_done(void *arg, uint64_t job)
{
    (void)job;
    control_job_ended(&((struct agent *)arg)->calls);
}

const struct kvt_core_actions agent_actions = {
    .io = action_io,
    .meta_put = action_meta_put,
    .meta_del = action_meta_del,
    .meta_slab = action_meta_slab,
    .meta_ns = action_meta_ns,
    .reserved = action_reserved,
    .loaded = action_loaded,
    .committed = action_committed,
    .job_done = action_job_done,
};
