/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections: who may come in, how they are read and written, how they end.
 *
 * A client that does not read its answers is no longer read: its answers wait here, up to a cap,
 * and nobody else notices. A client that breaks the protocol is told to go, but its slots stay its
 * own until its socket is gone, because until then it may still write into them.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent.h"
#include "kvt/log.h"
#include "kvt/units.h"
#include "kvt/util.h"

#define MESSAGES_PER_TURN 8 /* of one session: a batch may take 100 us, and others wait */
#define ACCEPTS_PER_TURN  16
#define SENDS_PER_TURN    64
#define HELLO_TIMEOUT_NS  (5 * KVT_NS_PER_S)
#define ACCEPT_PAUSE_NS   (100 * KVT_NS_PER_MS) /* after accept failed for want of descriptors */
#define SOCKET_BUF_BYTES  (1024 * 1024)
#define OUT_ROOM_MIN      (64 * 1024)
/* All answers to the most a client may have open, and a margin; who lets more pile up is gone. */
#define OUT_ROOM_MAX (8 * 1024 * 1024)
#define LENGTH_BYTES 8 /* before each queued message; keeps messages aligned */

bool sessions_init(struct agent *agent)
{
    agent->n_conns = agent->config.sessions_max + GREETINGS_MAX;
    agent->conns = calloc(agent->n_conns, sizeof(*agent->conns));
    agent->by_session = calloc(agent->config.sessions_max, sizeof(struct conn *));
    if (agent->conns == NULL || agent->by_session == NULL)
        return false;
    for (uint32_t i = agent->n_conns; i-- > 0;) {
        agent->conns[i].fd = -1;
        agent->conns[i].next = agent->free_conns;
        agent->free_conns = &agent->conns[i];
    }
    return true;
}

void sessions_fini(struct agent *agent)
{
    for (uint32_t i = 0; agent->conns != NULL && i < agent->n_conns; i++) {
        if (agent->conns[i].fd >= 0)
            close(agent->conns[i].fd);
        free(agent->conns[i].out);
    }
    free(agent->conns);
    free(agent->by_session);
    agent->conns = NULL;
    agent->by_session = NULL;
}

/* --- the list of those who have not said HELLO ------------------------------------------------ */

static void greeting_add(struct agent *agent, struct conn *conn)
{
    conn->next = NULL;
    conn->prev = agent->greet_tail;
    if (agent->greet_tail != NULL)
        agent->greet_tail->next = conn;
    else
        agent->greet_head = conn;
    agent->greet_tail = conn;
    agent->n_greeting++;
}

static void greeting_remove(struct agent *agent, struct conn *conn)
{
    if (conn->prev != NULL)
        conn->prev->next = conn->next;
    else
        agent->greet_head = conn->next;
    if (conn->next != NULL)
        conn->next->prev = conn->prev;
    else
        agent->greet_tail = conn->prev;
    agent->n_greeting--;
}

uint64_t sessions_expire(struct agent *agent)
{
    struct conn *next;
    for (struct conn *conn = agent->greet_head; conn != NULL; conn = next) {
        KVT_ASSERT(conn->state == CONN_GREETING);
        if (conn->hello_deadline_ns > agent->now_ns)
            return conn->hello_deadline_ns;
        next = conn->next;
        agent->metrics.counters.hello_timeouts++;
        kvt_log(KVT_LOG_WARN, "connection closed: no hello in time pid=%d", (int)conn->pid);
        session_close(agent, conn);
    }
    return UINT64_MAX;
}

/* --- coming and going ------------------------------------------------------------------------- */

static void conn_ask(struct agent *agent, struct conn *conn, uint32_t events)
{
    struct epoll_event event = {.events = events | EPOLLRDHUP,
                                .data.u64 = WATCH_CONN + (uint64_t)(conn - agent->conns)};
    if (conn->events == events)
        return;
    conn->events = events;
    /* The descriptor is watched already, so no memory is needed that could be refused. */
    KVT_ASSERT(epoll_ctl(agent->epoll_fd, EPOLL_CTL_MOD, conn->fd, &event) == 0);
}

static void out_drop(struct conn *conn)
{
    free(conn->out);
    conn->out = NULL;
    conn->out_head = conn->out_tail = conn->out_room = 0;
}

static void conn_free(struct agent *agent, struct conn *conn)
{
    close(conn->fd);
    if (agent->hot == conn)
        agent->hot = NULL;
    *conn = (struct conn){.fd = -1, .next = agent->free_conns};
    agent->free_conns = conn;
}

void session_close(struct agent *agent, struct conn *conn)
{
    if (conn->state == CONN_GREETING) {
        greeting_remove(agent, conn); /* nothing was queued for it */
    } else {
        kvt_log(KVT_LOG_DEBUG, "session closed session=%u pid=%d client=%s", conn->session,
                (int)conn->pid, conn->client);
        agent->by_session[conn->session] = NULL;
        metrics_session_drop(&agent->metrics, conn->session);
        kvt_core_session_close(agent->core, conn->session, agent->now_ns);
        out_drop(conn);
    }
    conn_free(agent, conn);
}

void session_opened(struct agent *agent, struct conn *conn, uint32_t session)
{
    KVT_ASSERT(session < agent->config.sessions_max && agent->by_session[session] == NULL);
    greeting_remove(agent, conn);
    conn->state = CONN_OPEN;
    conn->session = session;
    agent->by_session[session] = conn;
    agent->metrics.counters.sessions_opened++;
}

void session_end(struct agent *agent, struct conn *conn, enum session_end_cause cause,
                 const char *detail)
{
    if (conn->state == CONN_ENDING)
        return;
    agent->metrics.counters.ended[cause]++;
    kvt_log(KVT_LOG_WARN, "session ended by the agent cause=%s session=%u pid=%d client=%s", detail,
            conn->session, (int)conn->pid, conn->client);
    shutdown(conn->fd, SHUT_WR);
    out_drop(conn);
    if (conn->state == CONN_OPEN)
        conn->state = CONN_ENDING;
    conn_ask(agent, conn, EPOLLIN);
}

/* Whether recv's 0 was the end: an empty message looks the same. */
static bool peer_gone(int fd)
{
    struct pollfd pfd = {.fd = fd, .events = POLLRDHUP};
    return poll(&pfd, 1, 0) > 0 && (pfd.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

static void conn_admit(struct agent *agent, int fd)
{
    struct ucred cred = {0};
    socklen_t len = sizeof(cred);
    int bytes = SOCKET_BUF_BYTES;

    /* The oldest silent one goes: an honest client says HELLO at once, so it is never that. */
    if (agent->n_greeting == GREETINGS_MAX) {
        KVT_ASSERT(agent->greet_head->state == CONN_GREETING);
        session_close(agent, agent->greet_head);
    }
    struct conn *conn = agent->free_conns;
    KVT_ASSERT(conn != NULL);
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP,
                                .data.u64 = WATCH_CONN + (uint64_t)(conn - agent->conns)};
    if (epoll_ctl(agent->epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0) {
        kvt_log(KVT_LOG_WARN, "connection refused: %s", strerror(errno));
        close(fd);
        return;
    }
    (void)getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len);
    /* Larger than the default where it is allowed; the default carries a message too. */
    if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof(bytes)) != 0)
        (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
    agent->free_conns = conn->next;
    *conn = (struct conn){
        .fd = fd,
        .state = CONN_GREETING,
        .events = EPOLLIN,
        .hello_deadline_ns = agent->now_ns + HELLO_TIMEOUT_NS,
        .pid = cred.pid,
    };
    greeting_add(agent, conn);
}

void sessions_accept(struct agent *agent)
{
    for (unsigned n = 0; n < ACCEPTS_PER_TURN; n++) {
        int fd = accept4(agent->listener.fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd >= 0) {
            conn_admit(agent, fd);
            continue;
        }
        if (errno == EINTR || errno == ECONNABORTED)
            continue;
        if (errno != EAGAIN) {
            /* Who waits stays in the queue; asking again at once would only burn the CPU. */
            kvt_log(KVT_LOG_WARN, "cannot accept: %s; raise the limit of open files",
                    strerror(errno));
            agent->accept_again_ns = agent->now_ns + ACCEPT_PAUSE_NS;
        }
        return;
    }
}

/* --- sending ---------------------------------------------------------------------------------- */

static bool out_reserve(struct conn *conn, size_t bytes)
{
    size_t used = conn->out_tail - conn->out_head;
    if (conn->out_room - conn->out_tail >= bytes)
        return true;
    if (conn->out_head > 0) {
        memmove(conn->out, conn->out + conn->out_head, used);
        conn->out_last -= conn->out_head;
        conn->out_head = 0;
        conn->out_tail = used;
    }
    size_t room = KVT_MAX(conn->out_room, OUT_ROOM_MIN);
    while (room - used < bytes)
        room *= 2;
    if (room > OUT_ROOM_MAX)
        return false;
    uint8_t *out = room == conn->out_room ? conn->out : realloc(conn->out, room);
    if (out == NULL)
        return false;
    conn->out = out;
    conn->out_room = room;
    return true;
}

static void out_push(struct agent *agent, struct conn *conn, const void *msg, size_t bytes)
{
    uint64_t length = bytes;
    size_t padded = LENGTH_BYTES + kvt_align_up(bytes, LENGTH_BYTES);
    if (!out_reserve(conn, padded)) {
        session_end(agent, conn, END_UNREAD, "answers not read");
        return;
    }
    conn->out_last = conn->out_tail;
    memcpy(conn->out + conn->out_tail, &length, sizeof(length));
    memcpy(conn->out + conn->out_tail + LENGTH_BYTES, msg, bytes);
    conn->out_tail += padded;
    /* Not read again before its answers are out: a client cannot make the queue grow by asking. */
    conn_ask(agent, conn, EPOLLOUT);
}

bool session_append(struct conn *conn, const struct kvt_wire_items *msg)
{
    struct kvt_wire_items *last;
    size_t bytes = msg->n_items * sizeof(struct kvt_wire_item);
    if (conn->out_head == conn->out_tail || msg->status != KVT_OK)
        return false;
    last = (struct kvt_wire_items *)(void *)(conn->out + conn->out_last + LENGTH_BYTES);
    if (last->h.type != msg->h.type || last->h.op != msg->h.op || last->status != KVT_OK ||
        (msg->h.type != KVT_WIRE_LOAD_R && msg->h.type != KVT_WIRE_COMMIT_R) ||
        last->n_items + msg->n_items > KVT_BATCH_MAX || conn->out_room - conn->out_tail < bytes)
        return false;
    memcpy(conn->out + conn->out_tail, msg + 1, bytes); /* both sizes are multiples of 8 */
    last->n_items += msg->n_items;
    last->n_open = msg->n_open;
    last->h.bytes += (uint32_t)bytes;
    uint64_t length = last->h.bytes;
    memcpy(conn->out + conn->out_last, &length, sizeof(length));
    conn->out_tail += bytes;
    return true;
}

void session_send(struct agent *agent, struct conn *conn, const void *msg, size_t bytes)
{
    if (conn->state == CONN_ENDING)
        return;
    if (conn->out_head != conn->out_tail) {
        out_push(agent, conn, msg, bytes);
        return;
    }
    ssize_t n;
    do {
        n = send(conn->fd, msg, bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
    } while (n < 0 && errno == EINTR);
    if (n >= 0)
        return;
    if (errno == EAGAIN || errno == ENOBUFS || errno == ENOMEM)
        out_push(agent, conn, msg, bytes);
    else /* mostly EPIPE: it is about to be seen as gone */
        session_end(agent, conn, END_SEND, "cannot send");
}

static void out_flush(struct agent *agent, struct conn *conn)
{
    for (unsigned n = 0; n < SENDS_PER_TURN && conn->out_head != conn->out_tail; n++) {
        uint64_t length;
        memcpy(&length, conn->out + conn->out_head, sizeof(length));
        ssize_t sent = send(conn->fd, conn->out + conn->out_head + LENGTH_BYTES, length,
                            MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno != EAGAIN && errno != EINTR && errno != ENOBUFS && errno != ENOMEM)
                session_end(agent, conn, END_SEND, "cannot send");
            return;
        }
        conn->out_head += LENGTH_BYTES + kvt_align_up(length, LENGTH_BYTES);
    }
    if (conn->out_head == conn->out_tail) {
        out_drop(conn);
        conn_ask(agent, conn, EPOLLIN);
    }
}

/* --- reading ---------------------------------------------------------------------------------- */

bool session_read(struct agent *agent, struct conn *conn)
{
    bool any = false;
    for (unsigned n = 0; n < MESSAGES_PER_TURN; n++) {
        ssize_t bytes = recv(conn->fd, agent->rx, sizeof(agent->rx), MSG_DONTWAIT | MSG_TRUNC);
        if (bytes < 0 && errno == EINTR)
            continue;
        if (bytes < 0 && errno == EAGAIN)
            break;
        if (bytes < 0 || (bytes == 0 && peer_gone(conn->fd))) {
            session_close(agent, conn);
            return true;
        }
        any = true;
        agent->heard_ns = agent->now_ns;
        if (conn->state == CONN_ENDING)
            continue; /* discarded */
        if (bytes == 0 || (size_t)bytes > sizeof(agent->rx)) {
            if (conn->state == CONN_GREETING) {
                session_close(agent, conn);
                return true;
            }
            session_end(agent, conn, END_MALFORMED, "message of a wrong size");
            continue;
        }
        handle_message(agent, conn, (size_t)bytes);
        if (conn->state == CONN_FREE || conn->out_head != conn->out_tail)
            break;
    }
    return any;
}

void session_event(struct agent *agent, struct conn *conn, uint32_t events)
{
    if (conn->state == CONN_FREE)
        return; /* closed by an earlier event of this turn */
    if ((events & EPOLLOUT) != 0 && conn->out_head != conn->out_tail)
        out_flush(agent, conn);
    if (conn->out_head != conn->out_tail) {
        /* Not read now, so its end must be noticed here. */
        if ((events & (EPOLLHUP | EPOLLRDHUP | EPOLLERR)) != 0)
            session_close(agent, conn);
        return;
    }
    if ((events & (EPOLLIN | EPOLLHUP | EPOLLRDHUP | EPOLLERR)) == 0)
        return;
    if (session_read(agent, conn) && conn->state == CONN_OPEN)
        agent->hot = conn;
}
