/* SPDX-License-Identifier: Apache-2.0 */
/* A connection to the agent: how it comes up and goes down, and what is sent over it. */
#include "session.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define ENDS_WAITING_MAX 4 /* so that the agent has its slots back in time */

/* Room for some batches of keys, so that requests seldom wait for the agent to read. */
#define SOCKET_BYTES (1 << 20)

void kvt_session_error_locked(struct kvt_session *s, enum kvt_status status, const char *format,
                              ...)
{
    va_list ap;
    s->error.status = status;
    va_start(ap, format);
    vsnprintf(s->error.msg, sizeof(s->error.msg), format, ap);
    va_end(ap);
}

void kvt_session_wake(struct kvt_session *s)
{
    uint64_t one = 1;
    /* It fails only when the counter is at its maximum, and then the thread is awake. */
    ssize_t n = write(s->wake_fd, &one, sizeof(one));
    (void)n;
}

/* --- up ------------------------------------------------------------------------------------- */

static void conn_retry_later(struct kvt_conn *c)
{
    c->state = KVT_CONN_DOWN;
    c->retry_ns = kvt_now_ns() + c->backoff_ns;
    c->backoff_ns = KVT_MIN(c->backoff_ns * 2, KVT_BACKOFF_MAX_NS);
}

static enum kvt_status hello_send(struct kvt_session *s, struct kvt_conn *c)
{
    struct kvt_wire_hello hello = {
        .h = {.type = KVT_WIRE_HELLO, .bytes = sizeof(hello), .op = 1},
        .magic = KVT_WIRE_MAGIC,
        .version = KVT_WIRE_VERSION,
    };
    memcpy(hello.client, s->client_name, sizeof(hello.client));
    ssize_t n = send(c->fd, &hello, sizeof(hello), MSG_DONTWAIT | MSG_NOSIGNAL);
    return n == (ssize_t)sizeof(hello) ? KVT_OK : KVT_ERR_UNREACH;
}

void kvt_conn_start_locked(struct kvt_session *s, struct kvt_conn *c)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int bytes = SOCKET_BYTES;

    memcpy(addr.sun_path, s->socket_path, sizeof(addr.sun_path));
    c->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (c->fd < 0) {
        kvt_session_error_locked(s, KVT_ERR_IO, "%s: cannot make a socket: %s; check ulimit -n",
                                 c->name, strerror(errno));
        goto err_later;
    }
    /* More than the system's limit is cut to it; what there is then does, too. */
    (void)setsockopt(c->fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
    if (connect(c->fd, (const struct sockaddr *)&addr, sizeof(addr)) != 0) {
        kvt_session_error_locked(s, KVT_ERR_UNREACH, "%s: cannot connect to %s: %s; is kvtierd up?",
                                 c->name, s->socket_path, strerror(errno));
        goto err_close_fd;
    }
    /* Every call says itself whether it may wait; the one that may, waits for so long. */
    struct timeval wait = {.tv_usec = KVT_RECEIVE_WAIT_NS / 1000};
    if (fcntl(c->fd, F_SETFL, 0) != 0 ||
        setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait)) != 0 ||
        hello_send(s, c) != KVT_OK) {
        kvt_session_error_locked(s, KVT_ERR_UNREACH,
                                 "%s: %s does not take a greeting; is kvtierd up?", c->name,
                                 s->socket_path);
        goto err_close_fd;
    }
    c->state = KVT_CONN_HELLO;
    c->hello_deadline_ns = kvt_now_ns() + KVT_HELLO_ANSWER_NS;
    return;
err_close_fd:
    close(c->fd);
    c->fd = -1;
err_later:
    conn_retry_later(c);
}

static bool welcome_check_locked(struct kvt_session *s, struct kvt_conn *c,
                                 const struct kvt_wire_welcome *w, size_t bytes, unsigned n_fds)
{
    if (bytes != sizeof(*w) || w->h.type != KVT_WIRE_WELCOME || w->h.bytes != bytes) {
        kvt_conn_break_locked(s, c, KVT_ERR_PROTO, "the answer to the greeting is no welcome");
        return false;
    }
    if (w->status == KVT_ERR_VERSION || (w->status == KVT_OK && w->version != KVT_WIRE_VERSION)) {
        kvt_conn_break_locked(s, c, KVT_ERR_VERSION,
                              "the agent speaks another version; "
                              "update libkvtier or kvtierd");
        s->version_refused = true;
        return false;
    }
    if (w->status != KVT_OK) {
        kvt_conn_break_locked(s, c, KVT_ERR_UNREACH, "the agent refuses the session");
        return false;
    }
    if (w->n_regions > KVT_REGIONS_MAX || n_fds != w->n_regions) {
        kvt_conn_break_locked(s, c, KVT_ERR_PROTO, "the welcome's regions and descriptors differ");
        return false;
    }
    return true;
}

static void welcome_take_locked(struct kvt_session *s, struct kvt_conn *c,
                                const struct kvt_wire_welcome *w, const int *fds)
{
    struct kvt_error err = {.status = KVT_OK};
    if (c == &s->data && kvt_arena_map(&s->arena, w, fds, &err) != KVT_OK) {
        kvt_conn_break_locked(s, c, err.status, err.msg);
        return;
    }
    if (c == &s->data) {
        s->slab_bytes = w->slab_bytes;
        if (s->cuda != NULL)
            kvt_cuda_mapped_locked(s);
    }
    if (c == &s->control) {
        struct epoll_event ev = {.events = EPOLLIN};
        if (epoll_ctl(s->epoll_fd, EPOLL_CTL_ADD, c->fd, &ev) != 0) {
            kvt_conn_break_locked(s, c, KVT_ERR_NOMEM, "cannot watch the socket");
            return;
        }
    }
    c->state = KVT_CONN_READY;
    c->incarnation = w->incarnation;
    c->n_open_max = KVT_MAX(w->n_ops_max, 1);
    c->backoff_ns = KVT_BACKOFF_MIN_NS;
    c->n_ns_unsent = s->n_ns;
    s->version_refused = false;
    kvt_conn_pump_locked(s, c);
    pthread_cond_broadcast(&s->cond);
}

void kvt_conn_welcome(struct kvt_session *s, struct kvt_conn *c)
{
    struct kvt_wire_welcome w;
    struct iovec iov = {&w, sizeof(w)};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int) * KVT_REGIONS_MAX)];
    } control;
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = &control,
                         .msg_controllen = sizeof(control)};
    int fds[KVT_REGIONS_MAX];
    unsigned n_fds = 0;
    ssize_t n = recvmsg(c->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    for (struct cmsghdr *cm = n > 0 ? CMSG_FIRSTHDR(&msg) : NULL; cm != NULL;
         cm = CMSG_NXTHDR(&msg, cm)) {
        if (cm->cmsg_level != SOL_SOCKET || cm->cmsg_type != SCM_RIGHTS)
            continue;
        n_fds = (unsigned)((cm->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        memcpy(fds, CMSG_DATA(cm), n_fds * sizeof(int)); /* the kernel wrote no more than fits */
    }
    pthread_mutex_lock(&s->lock);
    if (n <= 0)
        kvt_conn_break_locked(s, c, KVT_ERR_UNREACH, "the agent closed the connection at once");
    else if (welcome_check_locked(
                 s, c, &w, (msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) ? 0 : (size_t)n, n_fds))
        welcome_take_locked(s, c, &w, fds);
    pthread_mutex_unlock(&s->lock);
    for (unsigned i = 0; i < n_fds; i++)
        close(fds[i]);
}

/* --- down ----------------------------------------------------------------------------------- */

void kvt_conn_break_locked(struct kvt_session *s, struct kvt_conn *c, enum kvt_status status,
                           const char *what)
{
    if (c->state != KVT_CONN_HELLO && c->state != KVT_CONN_READY)
        return;
    c->state = KVT_CONN_BROKEN;
    kvt_session_error_locked(s, status, "%s: %s: %s", c->name, s->socket_path, what);
    kvt_session_wake(s);
}

static void ops_end_locked(struct kvt_session *s, struct kvt_conn *c)
{
    for (uint32_t i = 0; i < s->n_slots; i++) {
        struct kvt_client_op *op = &s->slots[i];
        /* Before it is queued the rest of it is the submitting thread's alone. */
        if (op->state != KVT_OP_QUEUED && op->state != KVT_OP_OPEN)
            continue;
        if (c == (op->type == KVTIER_LOOKUP ? &s->control : &s->data))
            kvt_op_stop_locked(s, op, s->closing ? KVT_ERR_CANCELED : KVT_ERR_UNREACH);
    }
}

/* Library thread. The agent reuses a writer's slots when the socket is closed, so no copy of ours
 * may be under way by then. */
void kvt_conn_close_locked(struct kvt_session *s, struct kvt_conn *c)
{
    c->state = KVT_CONN_BROKEN;
    /* A forked child may hold the socket, too: end the session for it as well. */
    (void)shutdown(c->fd, SHUT_RDWR);
    ops_end_locked(s, c);
    if (c == &s->control) {
        /* Who leads without this socket cannot be woken by its end, and might wait for an op of the
         * data connection, whose end only this thread can see. */
        while (s->leads_socket)
            pthread_cond_wait(&s->cond, &s->lock);
        for (struct kvt_waiter *w = s->waiters; w != NULL; w = w->next) {
            w->status = w->is_done ? w->status : KVT_ERR_UNREACH;
            w->is_done = true;
        }
        (void)epoll_ctl(s->epoll_fd, EPOLL_CTL_DEL, c->fd, NULL);
    } else {
        while (s->n_jobs > 0)
            pthread_cond_wait(&s->cond, &s->lock);
        for (uint32_t i = 0; i < s->n_slots; i++) {
            struct kvt_client_op *op = &s->slots[i];
            if (op->end_pending && op->state == KVT_OP_ENDING)
                kvt_op_put_locked(s, op);
            op->end_pending = false;
        }
        c->n_ends_pending = 0;
        /* Only this thread maps, and nobody copies; to unmap what was touched takes its time. */
        bool has_cuda = s->cuda != NULL;
        pthread_mutex_unlock(&s->lock);
        if (has_cuda)
            kvt_cuda_unmap(s);
        kvt_arena_unmap(&s->arena);
        pthread_mutex_lock(&s->lock);
    }
    close(c->fd);
    c->fd = -1;
    c->n_open = 0;
    c->tx_blocked = c->is_stalled = false;
    memset(c->ns, 0, s->n_ns * sizeof(c->ns[0]));
    conn_retry_later(c);
    pthread_cond_broadcast(&s->cond);
}

/* --- sending -------------------------------------------------------------------------------- */

enum kvt_status kvt_conn_send_locked(struct kvt_session *s, struct kvt_conn *c,
                                     const struct iovec *iov, int n_iov)
{
    struct msghdr msg = {.msg_iov = (struct iovec *)iov, .msg_iovlen = (size_t)n_iov};
    if (c->state != KVT_CONN_READY)
        return KVT_ERR_UNREACH;
    if (sendmsg(c->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
        return KVT_OK;
    if (errno == EAGAIN || errno == EINTR) {
        c->tx_blocked = true;
        kvt_session_wake(s);
        return KVT_ERR_AGAIN;
    }
    kvt_conn_break_locked(s, c, KVT_ERR_UNREACH, strerror(errno));
    return KVT_ERR_UNREACH;
}

static enum kvt_status ns_send_locked(struct kvt_session *s, struct kvt_conn *c, uint32_t index)
{
    struct kvt_wire_header h = {.type = KVT_WIRE_NS_OPEN,
                                .bytes = sizeof(struct kvt_wire_ns_open),
                                .op = (UINT64_C(1) << 62) + index};
    struct iovec iov[2] = {{&h, sizeof(h)}, {&s->ns_descs[index], sizeof(s->ns_descs[index])}};
    return kvt_conn_send_locked(s, c, iov, 2);
}

static enum kvt_status op_send_locked(struct kvt_session *s, struct kvt_conn *c,
                                      struct kvt_client_op *op)
{
    union {
        struct kvt_wire_header h;
        struct kvt_wire_lookup lookup;
        struct kvt_wire_reserve reserve;
        struct kvt_wire_load load;
    } m = {.h = {.op = op->id}};
    size_t keys_bytes = op->n_keys * sizeof(struct kvt_key);
    struct iovec iov[2] = {{&m, 0}, {(void *)op->keys, keys_bytes}};
    uint32_t ns = c->ns[op->ns].handle;

    switch (op->type) {
    case KVTIER_LOOKUP:
        m.h.type = KVT_WIRE_LOOKUP;
        m.lookup.ns = ns;
        m.lookup.n_keys = op->n_keys;
        m.lookup.flags = (op->flags & KVTIER_LEASE) ? KVT_LOOKUP_LEASE : 0;
        m.lookup.lease_ttl_ms = op->lease_ttl_ms;
        iov[0].iov_len = sizeof(m.lookup);
        break;
    case KVTIER_STORE:
        m.h.type = KVT_WIRE_RESERVE;
        m.reserve.ns = ns;
        m.reserve.n_keys = op->n_keys;
        m.reserve.flags = ((op->flags & KVTIER_PARENT) ? KVT_STORE_PARENT : 0) |
                          ((op->flags & KVTIER_DURABLE) ? KVT_STORE_DURABLE : 0);
        m.reserve.deadline_ns = op->deadline_ns;
        iov[0].iov_len = sizeof(m.reserve);
        break;
    default:
        m.h.type = KVT_WIRE_LOAD;
        m.load.ns = ns;
        m.load.n_keys = op->n_keys;
        m.load.flags = ((op->flags & KVTIER_PARENT) ? KVT_LOAD_PARENT : 0) |
                       (op->type == KVTIER_PREFETCH ? KVT_LOAD_PREFETCH : 0);
        m.load.deadline_ns = op->deadline_ns;
        iov[0].iov_len = sizeof(m.load);
        break;
    }
    m.h.bytes = (uint32_t)(iov[0].iov_len + keys_bytes);
    return kvt_conn_send_locked(s, c, iov, 2);
}

bool kvt_ends_wait_locked(const struct kvt_session *s)
{
    return s->work[KVT_WORK_HOST].head != NULL && s->data.n_ends_pending < ENDS_WAITING_MAX;
}

void kvt_ends_send_locked(struct kvt_session *s)
{
    if (kvt_ends_wait_locked(s))
        return;
    for (uint32_t i = 0; i < s->n_slots && s->data.n_ends_pending > 0 && !s->data.tx_blocked; i++) {
        if (s->slots[i].end_pending)
            kvt_op_end_send_locked(s, &s->slots[i]);
    }
}

static void ns_pump_locked(struct kvt_session *s, struct kvt_conn *c)
{
    for (uint32_t i = 0; i < s->n_ns && c->n_ns_unsent > 0; i++) {
        if (c->ns[i].state != KVT_NS_UNSENT)
            continue;
        if (ns_send_locked(s, c, i) != KVT_OK)
            return;
        c->ns[i].state = KVT_NS_SENT;
        c->n_ns_unsent--;
    }
}

/* Send what waits and may go: the queue keeps its order but for ops of namespaces still unknown. */
static void queue_pump_locked(struct kvt_session *s, struct kvt_conn *c)
{
    struct kvt_client_op *op = c->queue.head;
    while (op != NULL && (c == &s->control || c->n_open < c->n_open_max)) {
        struct kvt_client_op *next = op->next;
        const struct kvt_client_ns *ns = &c->ns[op->ns];
        if (ns->state == KVT_NS_REFUSED) {
            kvt_op_finish_locked(s, op, ns->status);
        } else if (ns->state == KVT_NS_OPEN) {
            if (op_send_locked(s, c, op) != KVT_OK)
                return;
            kvt_list_remove(&c->queue, op);
            op->state = KVT_OP_OPEN;
            c->n_open++;
        }
        op = next;
    }
}

void kvt_conn_pump_locked(struct kvt_session *s, struct kvt_conn *c)
{
    if (c->state != KVT_CONN_READY || c->tx_blocked)
        return;
    if (c == &s->data) {
        kvt_job_flush_locked(s);
        kvt_ends_send_locked(s);
    }
    if (!c->tx_blocked)
        ns_pump_locked(s, c);
    if (!c->tx_blocked)
        queue_pump_locked(s, c);
}

bool kvt_conn_ns_open_r_locked(struct kvt_session *s, struct kvt_conn *c, const void *msg)
{
    const struct kvt_wire_ns_open_r *r = msg;
    uint64_t index = r->h.op - (UINT64_C(1) << 62);
    if (r->h.bytes != sizeof(*r) || index >= s->n_ns || c->ns[index].state != KVT_NS_SENT)
        return false;
    struct kvt_client_ns *ns = &c->ns[index];
    if (r->status == KVT_OK) {
        ns->state = KVT_NS_OPEN;
        ns->handle = r->ns;
    } else {
        ns->state = KVT_NS_REFUSED;
        ns->status = r->status < 0 ? r->status : KVT_ERR_PROTO;
        kvt_session_error_locked(s, ns->status, "%s: namespace %u refused: %.127s", c->name,
                                 (unsigned)index, r->msg);
    }
    kvt_conn_pump_locked(s, c);
    return true;
}
