/* SPDX-License-Identifier: Apache-2.0 */
/* The data connection: what the agent answers, and the copies that follow from it. */
#include "session.h"

#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/socket.h>

#define RECEIVE_MAX 64

/* --- answers -------------------------------------------------------------------------------- */

/* The op that an answer belongs to, or NULL: it ended meanwhile, which is no fault. */
static struct kvt_client_op *answered_op_locked(struct kvt_session *s, uint64_t id)
{
    struct kvt_client_op *op = kvt_op_find_locked(s, id);
    if (op == NULL || op->state != KVT_OP_OPEN || op->type == KVTIER_LOOKUP ||
        atomic_load_explicit(&op->stop, memory_order_relaxed) != 0)
        return NULL;
    return op;
}

static const struct kvt_wire_item *items_of(const struct kvt_wire_items *r)
{
    return (const struct kvt_wire_item *)(const void *)(r + 1);
}

/* An item that has a slot now. */
static bool item_granted_locked(struct kvt_session *s, struct kvt_client_op *op,
                                const struct kvt_wire_item *wire)
{
    struct kvt_client_item *item = &op->items[wire->index];
    if (kvt_arena_addr(&s->arena, wire->offset, op->chunk_bytes) == NULL)
        return false;
    item->state = KVT_ITEM_HERE;
    item->offset = wire->offset;
    item->lease_deadline_ns = wire->lease_deadline_ns;
    op->n_granted++;
    op->work[op->work_tail++] = (uint16_t)wire->index;
    kvt_ready_push_locked(s, op);
    return true;
}

static void finish_if_over_locked(struct kvt_session *s, struct kvt_client_op *op)
{
    if (op->n_over == op->n_items && op->n_running == 0)
        kvt_op_finish_locked(s, op, KVT_OK);
}

/* RESERVE_R and LOAD_R: each item once, either refused or with a slot. */
static bool grants_locked(struct kvt_session *s, struct kvt_client_op *op,
                          const struct kvt_wire_items *r)
{
    bool store = op->type == KVTIER_STORE;
    if (store && (op->is_answered || (r->status == KVT_OK && r->n_items != op->n_items)))
        return false;
    op->is_answered = true;
    if (r->status != KVT_OK) {
        /* Refused as a whole: it is over at the agent. */
        if (op->n_over > 0 || op->n_granted > 0 || r->n_items != 0)
            return false;
        for (uint32_t i = 0; i < op->n_items; i++)
            kvt_op_item_over(op, i, r->status);
    }
    for (uint32_t i = 0; i < r->n_items; i++) {
        const struct kvt_wire_item *wire = &items_of(r)[i];
        if (wire->index >= op->n_items || op->items[wire->index].state != KVT_ITEM_WAIT ||
            wire->status > 0)
            return false;
        if (wire->status != KVT_OK || op->type == KVTIER_PREFETCH)
            kvt_op_item_over(op, wire->index, wire->status);
        else if (!item_granted_locked(s, op, wire))
            return false;
    }
    finish_if_over_locked(s, op);
    return true;
}

static bool commits_locked(struct kvt_session *s, struct kvt_client_op *op,
                           const struct kvt_wire_items *r)
{
    if (op->type != KVTIER_STORE)
        return false;
    if (r->status != KVT_OK) {
        /* The agent took the commit for wrong: give everything back that is not settled. */
        kvt_op_stop_locked(s, op, r->status);
        return true;
    }
    for (uint32_t i = 0; i < r->n_items; i++) {
        const struct kvt_wire_item *wire = &items_of(r)[i];
        if (wire->index >= op->n_items || op->items[wire->index].state != KVT_ITEM_SENT ||
            wire->status > 0)
            return false;
        op->n_settled++;
        kvt_op_item_over(op, wire->index, wire->status);
    }
    op->give_up_ns = kvt_now_ns() + KVT_COMMIT_ANSWER_NS;
    finish_if_over_locked(s, op);
    return true;
}

static bool items_message_locked(struct kvt_session *s, const struct kvt_wire_items *r)
{
    struct kvt_client_op *op;
    if (r->h.bytes < sizeof(*r) || r->status > 0 ||
        r->h.bytes - sizeof(*r) != (uint64_t)r->n_items * sizeof(struct kvt_wire_item))
        return false;
    op = answered_op_locked(s, r->h.op);
    if (op == NULL)
        return true;
    if (r->h.type == KVT_WIRE_COMMIT_R)
        return commits_locked(s, op, r);
    if ((r->h.type == KVT_WIRE_RESERVE_R) != (op->type == KVTIER_STORE))
        return false;
    return grants_locked(s, op, r);
}

static bool message_locked(struct kvt_session *s, const void *msg, size_t bytes)
{
    const struct kvt_wire_header *h = msg;
    if (bytes < sizeof(*h) || h->bytes != bytes)
        return false;
    switch (h->type) {
    case KVT_WIRE_RESERVE_R:
    case KVT_WIRE_LOAD_R:
    case KVT_WIRE_COMMIT_R:
        return items_message_locked(s, msg);
    case KVT_WIRE_CANCEL_R:
        return true;
    case KVT_WIRE_NS_OPEN_R:
        return kvt_conn_ns_open_r_locked(s, &s->data, msg);
    default:
        return false;
    }
}

void kvt_data_receive(struct kvt_session *s)
{
    bool up = true;
    for (unsigned i = 0; i < RECEIVE_MAX && up; i++) {
        ssize_t n = recv(s->data.fd, s->data_rx, sizeof(s->data_rx), MSG_DONTWAIT | MSG_TRUNC);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        pthread_mutex_lock(&s->lock);
        s->data.is_stalled = false;
        if (n <= 0)
            kvt_conn_break_locked(s, &s->data, KVT_ERR_UNREACH, "the agent closed the connection");
        else if ((size_t)n > sizeof(s->data_rx) || !message_locked(s, s->data_rx, (size_t)n))
            kvt_conn_break_locked(s, &s->data, KVT_ERR_PROTO, "the agent sent nonsense");
        up = s->data.state == KVT_CONN_READY;
        pthread_mutex_unlock(&s->lock);
    }
}

/* --- copies --------------------------------------------------------------------------------- */

/* The most items whose checksums one COMMIT has room for. */
static uint32_t commit_items_max(uint32_t n_segments)
{
    uint32_t room = KVT_WIRE_BYTES_MAX - (uint32_t)sizeof(struct kvt_wire_commit) - 8;
    return room / (uint32_t)(sizeof(uint32_t) + n_segments * sizeof(uint64_t));
}

bool kvt_job_take_locked(struct kvt_session *s, struct kvt_worker *w)
{
    struct kvt_work *work = &s->work[w->kind];
    struct kvt_client_op *op = work->head;
    uint64_t bytes = 0;
    uint32_t n_max = KVT_BATCH_MAX;

    if (op == NULL || w->tx_pending || s->data.state != KVT_CONN_READY)
        return false;
    if (op->type == KVTIER_STORE)
        n_max = KVT_MIN(n_max, commit_items_max(op->n_segments));
    w->op = op;
    w->n = 0;
    while (op->work_head < op->work_tail && w->n < n_max && bytes < KVT_JOB_BYTES) {
        w->items[w->n++] = op->work[op->work_head++];
        bytes += op->chunk_bytes;
    }
    op->n_running++;
    s->n_jobs++;
    work->head = op->next_ready;
    if (work->head == NULL)
        work->tail = NULL;
    op->is_ready = false;
    if (op->work_head < op->work_tail)
        kvt_ready_push_locked(s, op); /* behind the others: each gets its turn */
    return true;
}

static int32_t item_store(struct kvt_worker *w, uint32_t index, uint64_t *sums)
{
    struct kvt_session *s = w->session;
    struct kvt_client_op *op = w->op;
    const struct kvt_client_item *item = &op->items[index];
    struct kvt_copy_stop stop = {&op->stop, UINT64_MAX, w->yield_ns};

    if (!kvt_arena_populate(&s->arena, item->offset, op->chunk_bytes))
        return KVT_ERR_IO;
    return s->copy->store(kvt_arena_addr(&s->arena, item->offset, op->chunk_bytes),
                          &op->layouts[index], op->n_segments, op->chunk_bytes / op->n_segments,
                          sums, &stop)
               ? KVT_OK
               : KVT_ITEM_CUT;
}

static int32_t item_load(struct kvt_worker *w, uint32_t index)
{
    struct kvt_session *s = w->session;
    struct kvt_client_op *op = w->op;
    const struct kvt_client_item *item = &op->items[index];
    struct kvt_copy_stop stop = {&op->stop, op->deadline_ns, w->yield_ns};

    if (!kvt_arena_populate(&s->arena, item->offset, op->chunk_bytes))
        return KVT_ERR_IO;
    if (!s->copy->load(&op->layouts[index],
                       kvt_arena_addr(&s->arena, item->offset, op->chunk_bytes), op->chunk_bytes,
                       &stop))
        return atomic_load_explicit(&op->stop, memory_order_relaxed) != 0 ? KVT_ITEM_CUT
                                                                          : KVT_ERR_TIMEOUT;
    /* Later than this the slot may have held something else while it was copied. */
    return kvt_now_ns() < item->lease_deadline_ns ? KVT_OK : KVT_ERR_EXPIRED;
}

/* Without the lock: the op cannot end while its n_running is not 0. */
void kvt_job_run(struct kvt_worker *w)
{
    struct kvt_client_op *op = w->op;
    struct kvt_wire_commit *commit = (void *)w->tx;
    uint32_t *indexes = (uint32_t *)(void *)(commit + 1);
    size_t indexes_bytes = ((size_t)w->n * sizeof(uint32_t) + 7) & ~(size_t)7;
    uint64_t *sums = (uint64_t *)(void *)((unsigned char *)indexes + indexes_bytes);

    uint64_t now_ns = kvt_now_ns();
    if (now_ns - w->rest_ns >= KVT_REST_NS)
        w->yield_ns = now_ns + KVT_BURST_NS;
    if (now_ns >= w->yield_ns)
        sched_yield(); /* as copies do between their blocks */
    for (uint32_t i = 0; i < w->n; i++) {
        indexes[i] = w->items[i];
        if (w->kind == KVT_WORK_HOST)
            w->results[i] = op->type == KVTIER_STORE
                                ? item_store(w, w->items[i], sums + (size_t)i * op->n_segments)
                                : item_load(w, w->items[i]);
    }
    if (w->kind != KVT_WORK_HOST)
        kvt_cuda_job(w, sums);
    if (w->n % 2 != 0)
        indexes[w->n] = 0;
    *commit = (struct kvt_wire_commit){
        .h = {.type = KVT_WIRE_COMMIT,
              .bytes = (uint32_t)(sizeof(*commit) + indexes_bytes +
                                  (size_t)w->n * op->n_segments * sizeof(uint64_t)),
              .op = op->id},
        .n_items = w->n,
    };
    w->rest_ns = kvt_now_ns();
}

static void commit_send_locked(struct kvt_session *s, struct kvt_worker *w)
{
    struct iovec iov = {w->tx, ((const struct kvt_wire_commit *)(const void *)w->tx)->h.bytes};
    enum kvt_status status = KVT_ERR_AGAIN;
    if (!s->data.tx_blocked)
        status = kvt_conn_send_locked(s, &s->data, &iov, 1);
    w->tx_pending = status == KVT_ERR_AGAIN;
}

void kvt_job_flush_locked(struct kvt_session *s)
{
    for (uint32_t i = 0; i < s->n_workers && !s->data.tx_blocked; i++) {
        if (s->workers[i].tx_pending)
            commit_send_locked(s, &s->workers[i]);
    }
    for (unsigned kind = 0; kind < KVT_WORK_KINDS; kind++) {
        if (s->work[kind].head != NULL)
            pthread_cond_broadcast(&s->work[kind].cond);
    }
}

static void store_done_locked(struct kvt_session *s, struct kvt_worker *w)
{
    struct kvt_client_op *op = w->op;
    for (uint32_t i = 0; i < w->n; i++) {
        if (w->results[i] != KVT_OK) {
            /* Memory of the arena that cannot be had: drop the op, its slots go back. */
            kvt_op_stop_locked(s, op, w->results[i]);
            return;
        }
    }
    for (uint32_t i = 0; i < w->n; i++)
        op->items[w->items[i]].state = KVT_ITEM_SENT;
    op->give_up_ns = kvt_now_ns() + KVT_COMMIT_ANSWER_NS;
    kvt_timer_arm_locked(s, op->give_up_ns);
    commit_send_locked(s, w);
}

void kvt_job_done_locked(struct kvt_session *s, struct kvt_worker *w)
{
    struct kvt_client_op *op = w->op;
    int stop = atomic_load_explicit(&op->stop, memory_order_relaxed);

    op->n_running--;
    s->n_jobs--;
    for (uint32_t i = 0; op->type != KVTIER_STORE && i < w->n; i++) {
        if (w->results[i] != KVT_ITEM_CUT)
            kvt_op_item_over(op, w->items[i], w->results[i]);
    }
    if (stop != 0)
        kvt_op_stop_locked(s, op, stop);
    else if (op->type == KVTIER_STORE)
        store_done_locked(s, w);
    else
        finish_if_over_locked(s, op);
    kvt_ends_send_locked(s);
    pthread_cond_broadcast(&s->cond);
}
