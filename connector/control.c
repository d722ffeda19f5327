/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control connection: lookups and small calls. One thread at a time is the leader: it receives,
 * without the lock, for itself and all others, which wait on the condition variable meanwhile. The
 * leader sleeps on the epoll descriptor, so completions of the data connection wake it, too.
 */
#include "session.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

/* Calls follow each other closely: the agent still looks for the next one. */
#define SPIN_NEAR_NS UINT64_C(200000)
/* A spin that ends with an answer earns three that do not; without credit one in 32 is tried. */
#define SPIN_CREDIT_MAX 24
#define SPIN_EARNS      3
#define SPIN_PROBE      32
/* Messages of one go, so that a flood does not keep a poll from returning. */
#define RECEIVE_MAX 64

static inline void cpu_relax(void)
{
#ifdef __x86_64__
    __builtin_ia32_pause();
#endif
}

/* --- answers -------------------------------------------------------------------------------- */

static void lease_drop_locked(struct kvt_session *s, uint64_t lease)
{
    struct kvt_wire_release release = {
        .h = {.type = KVT_WIRE_RELEASE, .bytes = sizeof(release), .op = UINT64_MAX},
        .lease = lease,
    };
    struct iovec iov = {&release, sizeof(release)};
    /* If it cannot be sent the lease runs out by itself. */
    enum kvt_status status = kvt_conn_send_locked(s, &s->control, &iov, 1);
    (void)status;
}

static bool lookup_r_locked(struct kvt_session *s, const struct kvt_wire_lookup_r *r)
{
    struct kvt_client_op *op = kvt_op_find_locked(s, r->h.op);
    if (r->h.bytes < sizeof(*r) || r->n_hit > r->h.bytes - sizeof(*r))
        return false;
    if (op == NULL || op->state != KVT_OP_OPEN || op->type != KVTIER_LOOKUP) {
        if (r->status == KVT_OK && r->lease != 0)
            lease_drop_locked(s, r->lease); /* late: nobody will release it */
        return true;
    }
    if (r->n_hit > op->n_items || r->status > 0)
        return false;
    if (r->status == KVT_OK) {
        op->completion.n_ok = op->completion.n_prefix = r->n_hit;
        op->completion.lease = r->lease;
        op->completion.lease_deadline_ns = r->lease_deadline_ns;
        if (op->where != NULL)
            memcpy(op->where, r + 1, r->n_hit);
    }
    kvt_op_finish_locked(s, op, r->status);
    return true;
}

static bool waiter_locked(struct kvt_session *s, const struct kvt_wire_header *h)
{
    struct kvt_waiter *w = s->waiters;
    while (w != NULL && w->id != h->op)
        w = w->next;
    if (w == NULL)
        return true; /* nobody waits any more */
    w->status = KVT_OK;
    if (h->type == KVT_WIRE_RELEASE_R) {
        const struct kvt_wire_status *r = (const void *)h;
        if (h->bytes != sizeof(*r) || r->status > 0)
            return false;
        w->status = r->status;
    } else if (h->type == KVT_WIRE_STATS_R) {
        const struct kvt_wire_stats_r *r = (const void *)h;
        if (h->bytes < sizeof(*r) || r->n > (h->bytes - sizeof(*r)) / sizeof(uint64_t))
            return false;
        if (w->values != NULL)
            memcpy(w->values, r + 1, KVT_MIN(r->n, w->n_values) * sizeof(uint64_t));
        w->n_values = r->n;
    }
    w->is_done = true;
    pthread_cond_broadcast(&s->cond);
    return true;
}

static bool message_locked(struct kvt_session *s, const void *msg, size_t bytes)
{
    const struct kvt_wire_header *h = msg;
    if (bytes < sizeof(*h) || h->bytes != bytes)
        return false;
    switch (h->type) {
    case KVT_WIRE_LOOKUP_R:
        return lookup_r_locked(s, msg);
    case KVT_WIRE_RELEASE_R:
    case KVT_WIRE_PONG:
    case KVT_WIRE_STATS_R:
        return waiter_locked(s, msg);
    case KVT_WIRE_NS_OPEN_R:
        return kvt_conn_ns_open_r_locked(s, &s->control, msg);
    default:
        return false;
    }
}

/* --- receiving ------------------------------------------------------------------------------ */

static bool lead_locked(struct kvt_session *s)
{
    if (s->has_leader || s->control.state == KVT_CONN_BROKEN)
        return false;
    s->has_leader = true;
    s->leads_socket = s->control.state == KVT_CONN_READY;
    return true;
}

static void unlead_locked(struct kvt_session *s)
{
    s->has_leader = s->leads_socket = false;
    pthread_cond_broadcast(&s->cond);
}

/*
 * One message or none, as leader. flags: 0 to wait up to KVT_RECEIVE_WAIT_NS. 0: nothing there.
 * Else to be given to leader_take_locked().
 */
static ssize_t leader_recv(struct kvt_session *s, int fd, int flags)
{
    ssize_t n = recv(fd, s->control_rx, sizeof(s->control_rx), flags | MSG_TRUNC);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    return n > 0 ? n : -1;
}

static void leader_take_locked(struct kvt_session *s, ssize_t n)
{
    if (n < 0) {
        kvt_conn_break_locked(s, &s->control, KVT_ERR_UNREACH, "the agent closed the connection");
        return;
    }
    s->control.is_stalled = false;
    s->event_deferred = true;
    if ((size_t)n > sizeof(s->control_rx) || !message_locked(s, s->control_rx, (size_t)n))
        kvt_conn_break_locked(s, &s->control, KVT_ERR_PROTO, "the agent sent nonsense");
    s->event_deferred = false;
}

/* Take what is there; never waits. Another thread that leads does it as well. */
static void receive_locked(struct kvt_session *s)
{
    if (!lead_locked(s))
        return;
    for (unsigned i = 0; i < RECEIVE_MAX && s->control.state == KVT_CONN_READY; i++) {
        ssize_t n = leader_recv(s, s->control.fd, MSG_DONTWAIT);
        if (n == 0)
            break;
        leader_take_locked(s, n);
    }
    unlead_locked(s);
}

void kvt_control_receive(struct kvt_session *s)
{
    pthread_mutex_lock(&s->lock);
    receive_locked(s);
    kvt_event_sync_locked(s);
    pthread_mutex_unlock(&s->lock);
}

/* --- waiting -------------------------------------------------------------------------------- */

typedef bool (*ready_fn)(struct kvt_session *s, const void *arg);

static bool done_ready(struct kvt_session *s, const void *arg)
{
    return s->done.head != NULL;
}

static bool waiter_ready(struct kvt_session *s, const void *arg)
{
    return ((const struct kvt_waiter *)arg)->is_done;
}

/* What a leader waits for, and how. */
struct wait_plan {
    int fd;         /* the control socket, or -1: not connected */
    bool want_done; /* a completion of the data connection ends the wait, too */
    bool only_here; /* but none can come: nothing is under way there */
    uint64_t spin_ns;
    uint64_t deadline_ns;
};

/* Look for a message without sleeping. As leader_recv(). *done_p: there is a completion. */
static ssize_t leader_spin(struct kvt_session *s, const struct wait_plan *plan, bool *done_p)
{
    uint64_t until_ns = KVT_MIN(kvt_now_ns() + plan->spin_ns, plan->deadline_ns);
    do {
        ssize_t n = leader_recv(s, plan->fd, MSG_DONTWAIT);
        *done_p = plan->want_done && atomic_load_explicit(s->n_done, memory_order_relaxed) > 0;
        if (n != 0 || *done_p)
            return n;
        cpu_relax();
    } while (kvt_now_ns() < until_ns);
    return 0;
}

/* Sleep until there is a message or, if wanted, a completion. As leader_recv(). */
static ssize_t leader_sleep(struct kvt_session *s, const struct wait_plan *plan)
{
    struct pollfd pfd = {.fd = plan->want_done ? s->epoll_fd : plan->fd, .events = POLLIN};
    uint64_t now_ns = kvt_now_ns();
    if (now_ns >= plan->deadline_ns)
        return plan->fd >= 0 ? leader_recv(s, plan->fd, MSG_DONTWAIT) : 0;
    /* One system call instead of three, and to be woken by one wait queue instead of two. */
    if (plan->fd >= 0 && plan->only_here && plan->deadline_ns - now_ns > KVT_RECEIVE_WAIT_NS)
        return leader_recv(s, plan->fd, 0);
    uint64_t ms = (plan->deadline_ns - now_ns + 999999) / 1000000;
    (void)poll(&pfd, 1, plan->deadline_ns == UINT64_MAX ? -1 : (int)KVT_MIN(ms, 1u << 30));
    return plan->fd >= 0 ? leader_recv(s, plan->fd, MSG_DONTWAIT) : 0;
}

static bool spin_wanted_locked(struct kvt_session *s)
{
    /* After a pause the agent sleeps, and the kernel wakes it sooner on the core that its caller
     * leaves. */
    if (s->spin_us == 0 || kvt_now_ns() - s->answered_ns >= SPIN_NEAR_NS)
        return false;
    return s->spin_credit > 0 || ++s->n_skipped % SPIN_PROBE == 0;
}

static void spin_account_locked(struct kvt_session *s, bool paid)
{
    if (paid)
        s->spin_credit = KVT_MIN(s->spin_credit + SPIN_EARNS, SPIN_CREDIT_MAX);
    else if (s->spin_credit > 0)
        s->spin_credit--;
}

static void cond_wait_until_locked(struct kvt_session *s, uint64_t deadline_ns)
{
    struct timespec ts = {.tv_sec = (time_t)(deadline_ns / UINT64_C(1000000000)),
                          .tv_nsec = (long)(deadline_ns % UINT64_C(1000000000))};
    if (deadline_ns == UINT64_MAX)
        pthread_cond_wait(&s->cond, &s->lock);
    else
        pthread_cond_timedwait(&s->cond, &s->lock, &ts);
}

static bool wait_locked(struct kvt_session *s, ready_fn ready, const void *arg,
                        uint64_t deadline_ns)
{
    bool want_done = ready == done_ready;
    while (!ready(s, arg)) {
        bool up = s->control.state == KVT_CONN_READY;
        /* Without a socket there is nothing to lead for a call: its end is announced. */
        if ((up || want_done) && lead_locked(s)) {
            struct wait_plan plan = {
                .fd = up ? s->control.fd : -1,
                .want_done = want_done,
                .only_here = !want_done || (s->data.n_open == 0 && s->data.queue.head == NULL),
                .spin_ns = (uint64_t)s->spin_us * 1000,
                .deadline_ns = deadline_ns,
            };
            bool spin = up && spin_wanted_locked(s), done = false;
            ssize_t n = 0;
            kvt_event_sync_locked(s); /* a stale event would end every sleep at once */
            pthread_mutex_unlock(&s->lock);
            if (spin)
                n = leader_spin(s, &plan, &done);
            bool paid = n != 0 || done;
            if (!paid)
                n = leader_sleep(s, &plan);
            pthread_mutex_lock(&s->lock);
            if (spin)
                spin_account_locked(s, paid);
            if (n != 0)
                leader_take_locked(s, n);
            s->answered_ns = kvt_now_ns();
            unlead_locked(s);
        } else if (kvt_now_ns() < deadline_ns) {
            cond_wait_until_locked(s, deadline_ns);
        }
        if (kvt_now_ns() >= deadline_ns)
            return ready(s, arg);
    }
    return true;
}

static uint64_t deadline_from_ms(int timeout_ms)
{
    return timeout_ms < 0 ? UINT64_MAX : kvt_now_ns() + (uint64_t)timeout_ms * 1000000;
}

uint32_t kvt_poll(kvt_session *s, kvtier_completion *completions, uint32_t n_max)
{
    if (s == NULL || completions == NULL || n_max == 0 || *s->is_parent == 0)
        return 0;
    pthread_mutex_lock(&s->lock);
    receive_locked(s);
    uint32_t n = kvt_done_take_locked(s, completions, n_max);
    kvt_event_sync_locked(s);
    pthread_mutex_unlock(&s->lock);
    return n;
}

uint32_t kvt_wait(kvt_session *s, kvtier_completion *completions, uint32_t n_max, int timeout_ms)
{
    uint32_t n = 0;
    if (s == NULL || completions == NULL || n_max == 0 || *s->is_parent == 0)
        return 0;
    uint64_t deadline_ns = deadline_from_ms(timeout_ms);
    pthread_mutex_lock(&s->lock);
    if (wait_locked(s, done_ready, NULL, deadline_ns))
        n = kvt_done_take_locked(s, completions, n_max);
    kvt_event_sync_locked(s);
    pthread_mutex_unlock(&s->lock);
    return n;
}

int kvt_connect_wait(kvt_session *s, int timeout_ms)
{
    int status = KVTIER_OK;
    if (s == NULL)
        return KVTIER_ERR_INVAL;
    if (*s->is_parent == 0)
        return KVTIER_ERR_UNREACH;
    uint64_t deadline_ns = deadline_from_ms(timeout_ms);
    pthread_mutex_lock(&s->lock);
    while (s->control.state != KVT_CONN_READY || s->data.state != KVT_CONN_READY) {
        if (s->version_refused)
            status = KVTIER_ERR_VERSION;
        else if (kvt_now_ns() >= deadline_ns)
            status = KVTIER_ERR_TIMEOUT;
        if (status != KVTIER_OK)
            break;
        cond_wait_until_locked(s, deadline_ns);
    }
    pthread_mutex_unlock(&s->lock);
    return status;
}

/* --- calls that wait for their answer ------------------------------------------------------- */

static int call(struct kvt_session *s, void *msg, size_t bytes, struct kvt_waiter *w,
                int timeout_ms)
{
    struct kvt_wire_header *h = msg;
    struct iovec iov = {msg, bytes};
    int status = KVTIER_OK;

    if (*s->is_parent == 0)
        return KVTIER_ERR_UNREACH;
    h->bytes = (uint32_t)bytes;
    uint64_t deadline_ns = deadline_from_ms(timeout_ms);
    pthread_mutex_lock(&s->lock);
    w->id = h->op = (UINT64_C(1) << 63) + s->next_waiter_id++;
    enum kvt_status sent = kvt_conn_send_locked(s, &s->control, &iov, 1);
    if (sent != KVT_OK || timeout_ms == 0) {
        /* A full socket: the agent does not read. */
        status = sent == KVT_ERR_AGAIN ? KVTIER_ERR_TIMEOUT : (int)sent;
        receive_locked(s); /* answers that nobody waits for must not pile up */
        goto out_unlock;
    }
    w->next = s->waiters;
    s->waiters = w;
    bool answered = wait_locked(s, waiter_ready, w, deadline_ns);
    status = answered ? w->status : KVTIER_ERR_TIMEOUT;
    struct kvt_waiter **at = &s->waiters;
    while (*at != w)
        at = &(*at)->next;
    *at = w->next;
out_unlock:
    kvt_event_sync_locked(s);
    pthread_mutex_unlock(&s->lock);
    return status;
}

int kvt_release(kvt_session *s, uint64_t lease, int timeout_ms)
{
    struct kvt_wire_release release = {.h = {.type = KVT_WIRE_RELEASE}, .lease = lease};
    struct kvt_waiter w = {0};
    if (s == NULL || lease == 0)
        return KVTIER_ERR_INVAL;
    return call(s, &release, sizeof(release), &w, timeout_ms);
}

int kvt_ping(kvt_session *s, int timeout_ms)
{
    struct kvt_wire_header ping = {.type = KVT_WIRE_PING};
    struct kvt_waiter w = {0};
    if (s == NULL)
        return KVTIER_ERR_INVAL;
    return call(s, &ping, sizeof(ping), &w, timeout_ms);
}

int kvt_stats(kvt_session *s, uint64_t *values, uint32_t *n_p, int timeout_ms)
{
    struct kvt_wire_header stats = {.type = KVT_WIRE_STATS};
    if (s == NULL || values == NULL || n_p == NULL)
        return KVTIER_ERR_INVAL;
    struct kvt_waiter w = {.values = values, .n_values = *n_p};
    int status = call(s, &stats, sizeof(stats), &w, timeout_ms);
    if (status == KVTIER_OK)
        *n_p = timeout_ms == 0 ? 0 : w.n_values;
    return status;
}
