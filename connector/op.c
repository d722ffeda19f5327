/* SPDX-License-Identifier: Apache-2.0 */
#include "session.h"

#include <string.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

void kvt_list_push(struct kvt_op_list *list, struct kvt_client_op *op)
{
    op->next = NULL;
    if (list->tail != NULL)
        list->tail->next = op;
    else
        list->head = op;
    list->tail = op;
}

void kvt_list_remove(struct kvt_op_list *list, struct kvt_client_op *op)
{
    struct kvt_client_op *prev = NULL;
    struct kvt_client_op *at = list->head;
    while (at != NULL && at != op) {
        prev = at;
        at = at->next;
    }
    KVT_ASSERT(at == op);
    if (prev != NULL)
        prev->next = op->next;
    else
        list->head = op->next;
    if (list->tail == op)
        list->tail = prev;
    op->next = NULL;
}

void kvt_ready_push_locked(struct kvt_session *s, struct kvt_client_op *op)
{
    struct kvt_work *work = &s->work[op->kind];
    if (op->is_ready)
        return;
    op->is_ready = true;
    op->next_ready = NULL;
    if (work->tail != NULL)
        work->tail->next_ready = op;
    else
        work->head = op;
    work->tail = op;
    pthread_cond_signal(&work->cond);
}

static void ready_remove_locked(struct kvt_session *s, struct kvt_client_op *op)
{
    struct kvt_work *work = &s->work[op->kind];
    struct kvt_client_op *prev = NULL;
    if (!op->is_ready)
        return;
    for (struct kvt_client_op *at = work->head; at != op; at = at->next_ready)
        prev = at;
    if (prev != NULL)
        prev->next_ready = op->next_ready;
    else
        work->head = op->next_ready;
    if (work->tail == op)
        work->tail = prev;
    op->is_ready = false;
}

/* --- slots ---------------------------------------------------------------------------------- */

struct kvt_client_op *kvt_op_get_locked(struct kvt_session *s)
{
    struct kvt_client_op *op = s->free;
    if (op == NULL)
        return NULL;
    s->free = op->next;
    op->next = NULL;
    op->id += KVT_QUEUE_DEPTH_MAX; /* the index stays, the generation above it makes the id new */
    op->is_answered = false;
    op->n_over = op->n_granted = op->n_settled = 0;
    op->work_head = op->work_tail = 0;
    op->lease_ttl_ms = 0;
    op->kind = KVT_WORK_HOST;
    op->statuses = NULL;
    op->where = NULL;
    atomic_store_explicit(&op->stop, 0, memory_order_relaxed);
    memset(&op->completion, 0, sizeof(op->completion));
    return op;
}

void kvt_op_put_locked(struct kvt_session *s, struct kvt_client_op *op)
{
    op->state = KVT_OP_FREE;
    op->next = s->free;
    s->free = op;
}

struct kvt_client_op *kvt_op_find_locked(struct kvt_session *s, uint64_t id)
{
    uint64_t index = id % KVT_QUEUE_DEPTH_MAX;
    if (index >= s->n_slots || s->slots[index].id != id)
        return NULL;
    return &s->slots[index];
}

/* --- completions ---------------------------------------------------------------------------- */

/* Make event_fd say whether `done` holds something. */
void kvt_event_sync_locked(struct kvt_session *s)
{
    uint64_t one = 1;
    bool want = s->done.head != NULL;
    if (want == s->event_is_set || s->event_deferred)
        return;
    /* Neither can fail: the counter is 0 or 1, and the descriptor does not block. */
    if (want ? write(s->event_fd, &one, sizeof(one)) == (ssize_t)sizeof(one)
             : read(s->event_fd, &one, sizeof(one)) == (ssize_t)sizeof(one))
        s->event_is_set = want;
}

static void done_push_locked(struct kvt_session *s, struct kvt_client_op *op)
{
    op->state = KVT_OP_DONE;
    kvt_list_push(&s->done, op);
    atomic_fetch_add_explicit(s->n_done, 1, memory_order_relaxed);
    kvt_event_sync_locked(s);
    pthread_cond_broadcast(&s->cond);
}

uint32_t kvt_done_take_locked(struct kvt_session *s, kvtier_completion *out, uint32_t n_max)
{
    uint32_t n = 0;
    while (n < n_max && s->done.head != NULL) {
        struct kvt_client_op *op = s->done.head;
        kvt_list_remove(&s->done, op);
        out[n++] = op->completion;
        if (op->end_pending)
            op->state = KVT_OP_ENDING;
        else
            kvt_op_put_locked(s, op);
    }
    atomic_fetch_sub_explicit(s->n_done, n, memory_order_relaxed);
    return n;
}

/* --- the end of an op ----------------------------------------------------------------------- */

void kvt_op_item_over(struct kvt_client_op *op, uint32_t index, int32_t status)
{
    struct kvt_client_item *item = &op->items[index];
    KVT_ASSERT(item->state != KVT_ITEM_OVER);
    item->state = KVT_ITEM_OVER;
    item->status = status;
    op->n_over++;
}

static void completion_fill(struct kvt_client_op *op, int status)
{
    kvtier_completion *c = &op->completion;
    bool gap = false;

    c->op = op->id;
    c->user = op->user;
    c->type = op->type;
    c->status = status;
    c->n_items = op->n_items;
    if (op->type == KVTIER_LOOKUP)
        return; /* its answer filled the rest */
    for (uint32_t i = 0; i < op->n_items; i++) {
        int32_t item = op->items[i].status;
        bool ok = item == KVT_OK || (op->type == KVTIER_STORE && item == KVT_ERR_EXISTS);
        gap = gap || !ok;
        c->n_ok += ok;
        c->n_prefix += !gap;
        if (op->statuses != NULL)
            op->statuses[i] = item;
    }
}

/* What the agent must be told so that it lets go of an op; 0: it has already. */
static uint16_t end_type(const struct kvt_client_op *op, uint32_t n_waiting)
{
    if (op->type == KVTIER_STORE)
        return !op->is_answered || op->n_settled < op->n_granted ? KVT_WIRE_CANCEL : 0;
    if (n_waiting > 0)
        return KVT_WIRE_CANCEL;
    return op->type == KVTIER_LOAD && op->n_granted > 0 ? KVT_WIRE_LOAD_DONE : 0;
}

void kvt_op_end_send_locked(struct kvt_session *s, struct kvt_client_op *op)
{
    struct kvt_wire_header h = {.type = op->end_type, .bytes = sizeof(h), .op = op->id};
    struct iovec iov = {&h, sizeof(h)};
    bool was_pending = op->end_pending;
    bool waits = op->end_type == KVT_WIRE_LOAD_DONE && !was_pending && kvt_ends_wait_locked(s);
    enum kvt_status status = KVT_ERR_AGAIN;
    if (!s->data.tx_blocked && !waits)
        status = kvt_conn_send_locked(s, &s->data, &iov, 1);
    /* On a broken connection the agent lets go of everything anyway. */
    op->end_pending = status == KVT_ERR_AGAIN;
    if (op->end_pending != was_pending)
        s->data.n_ends_pending += was_pending ? UINT32_MAX : 1u;
    if (op->end_pending)
        return;
    s->data.n_open--;
    if (op->state == KVT_OP_ENDING)
        kvt_op_put_locked(s, op);
}

void kvt_op_finish_locked(struct kvt_session *s, struct kvt_client_op *op, int status)
{
    uint32_t n_waiting = 0;
    bool was_open = op->state == KVT_OP_OPEN;
    struct kvt_conn *c = op->type == KVTIER_LOOKUP ? &s->control : &s->data;

    KVT_ASSERT(op->n_running == 0);
    if (op->state == KVT_OP_QUEUED)
        kvt_list_remove(&c->queue, op);
    ready_remove_locked(s, op);
    for (uint32_t i = 0; i < s->n_workers; i++) {
        struct kvt_worker *w = &s->workers[i];
        if (w->tx_pending && w->op == op)
            w->tx_pending = false;
    }
    for (uint32_t i = 0; op->type != KVTIER_LOOKUP && i < op->n_items; i++) {
        n_waiting += op->items[i].state == KVT_ITEM_WAIT;
        if (op->items[i].state != KVT_ITEM_OVER)
            kvt_op_item_over(op, i, status);
    }
    /* Late items have their own status; the op itself went its way. */
    completion_fill(op, status == KVT_ERR_TIMEOUT && op->type != KVTIER_LOOKUP ? KVT_OK : status);
    op->end_pending = false;
    if (op->type != KVTIER_LOOKUP && was_open && c->state == KVT_CONN_READY) {
        op->end_type = end_type(op, n_waiting);
        if (op->end_type != 0)
            kvt_op_end_send_locked(s, op);
        else
            c->n_open--;
    }
    done_push_locked(s, op);
    if (c->state == KVT_CONN_READY && c->queue.head != NULL)
        kvt_session_wake(s); /* there may be room for the next at the agent */
}

void kvt_op_stop_locked(struct kvt_session *s, struct kvt_client_op *op, int status)
{
    int none = 0;
    /* The first reason stays. */
    atomic_compare_exchange_strong_explicit(&op->stop, &none, status, memory_order_relaxed,
                                            memory_order_relaxed);
    if (op->n_running == 0)
        kvt_op_finish_locked(s, op, atomic_load_explicit(&op->stop, memory_order_relaxed));
}

/* --- the start of an op --------------------------------------------------------------------- */

static uint64_t give_up_ns(const struct kvt_client_op *op, uint64_t now_ns)
{
    switch (op->type) {
    case KVTIER_LOOKUP:
        return now_ns + KVT_LOOKUP_ANSWER_NS;
    case KVTIER_STORE:
        return KVT_MAX(op->deadline_ns, now_ns) + KVT_RESERVE_ANSWER_NS;
    default:
        return op->deadline_ns;
    }
}

void kvt_op_submit_locked(struct kvt_session *s, struct kvt_client_op *op)
{
    struct kvt_conn *c = op->type == KVTIER_LOOKUP ? &s->control : &s->data;
    const struct kvt_client_ns *ns = &c->ns[op->ns];

    if (c->state != KVT_CONN_READY || c->is_stalled || ns->state == KVT_NS_REFUSED) {
        /* Nothing was sent, so nothing is open at the agent: end it as one that was queued. */
        op->state = KVT_OP_QUEUED;
        kvt_list_push(&c->queue, op);
        kvt_op_finish_locked(s, op,
                             c->state != KVT_CONN_READY ? KVT_ERR_UNREACH
                             : c->is_stalled            ? KVT_ERR_TIMEOUT
                                                        : ns->status);
        return;
    }
    op->state = KVT_OP_QUEUED;
    op->give_up_ns = give_up_ns(op, kvt_now_ns());
    kvt_timer_arm_locked(s, op->give_up_ns);
    kvt_list_push(&c->queue, op);
    kvt_conn_pump_locked(s, c);
    if (op->state == KVT_OP_QUEUED) {
        memcpy(op->kept_keys, op->keys, op->n_keys * sizeof(struct kvt_key));
        op->keys = op->kept_keys;
    }
}

/* --- time ----------------------------------------------------------------------------------- */

void kvt_timer_arm_locked(struct kvt_session *s, uint64_t when_ns)
{
    struct itimerspec it = {.it_value = {.tv_sec = (time_t)(when_ns / UINT64_C(1000000000)),
                                         .tv_nsec = (long)(when_ns % UINT64_C(1000000000))}};
    if (when_ns >= s->timer_ns)
        return;
    if (when_ns == 0)
        it.it_value.tv_nsec = 1; /* 0 would disarm */
    if (timerfd_settime(s->timer_fd, TFD_TIMER_ABSTIME, &it, NULL) == 0)
        s->timer_ns = when_ns;
}

/* Lookups miss at once until the agent says something: ask it to. */
static void control_stalled_locked(struct kvt_session *s)
{
    struct kvt_wire_header ping = {.type = KVT_WIRE_PING, .bytes = sizeof(ping), .op = UINT64_MAX};
    struct iovec iov = {&ping, sizeof(ping)};
    if (s->control.is_stalled)
        return;
    s->control.is_stalled = true;
    /* Without room for it there are requests on their way, whose answers do as well. */
    enum kvt_status status = kvt_conn_send_locked(s, &s->control, &iov, 1);
    (void)status;
}

void kvt_ops_expire_locked(struct kvt_session *s)
{
    uint64_t now_ns = kvt_now_ns();
    s->timer_ns = UINT64_MAX;
    for (uint32_t i = 0; i < s->n_slots; i++) {
        struct kvt_client_op *op = &s->slots[i];
        if (op->state != KVT_OP_QUEUED && op->state != KVT_OP_OPEN)
            continue;
        /* A store that is copied still is not waiting for the agent. */
        if (op->type == KVTIER_STORE && (op->n_running > 0 || op->is_ready))
            op->give_up_ns = KVT_MAX(op->give_up_ns, now_ns + KVT_RESERVE_ANSWER_NS);
        if (op->give_up_ns > now_ns) {
            kvt_timer_arm_locked(s, op->give_up_ns);
            continue;
        }
        /* A load may be late because of a disk; these are answered from memory. */
        if (op->type == KVTIER_LOOKUP)
            control_stalled_locked(s);
        else if (op->type == KVTIER_STORE && !op->is_answered)
            s->data.is_stalled = true; /* until the CANCEL that goes out now is answered */
        kvt_op_stop_locked(s, op, KVT_ERR_TIMEOUT);
    }
}
