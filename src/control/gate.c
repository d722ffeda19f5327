/* SPDX-License-Identifier: Apache-2.0 */
#include "gate.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "kvt/log.h"
#include "kvt/units.h"
#include "kvt/util.h"

#define CONNECTIONS_MAX 32
#define PIPE_BYTES      16384 /* on their way, in one direction of a connection */
#define READ_BYTES      2048  /* of a client at once: at most so many over its number of frames */
#define FRAMES_PER_S    4000  /* of all clients; a call is two, and about as many for its answer */
#define FRAMES_AT_ONCE  1000  /* of each after a pause */
#define PAUSE_NS        (2 * KVT_NS_PER_MS)  /* before who sent too many is read again */
#define ACCEPT_NS       KVT_NS_PER_MS        /* of each connection */
#define DELIVER_NS      (10 * KVT_NS_PER_MS) /* of each for gRPC, which it costs 150 us of CPU */
#define AT_ONCE         100                  /* of each after a pause */
#define ACCEPT_RETRY_NS (100 * KVT_NS_PER_MS)
#define UNHEARD_NS      (10 * KVT_NS_PER_S)   /* for a client to say something */
#define UNREAD_NS       (10 * KVT_NS_PER_S)   /* for it to read something of what waits */
#define FLUSH_NS        (200 * KVT_NS_PER_MS) /* the same, and for all of it, at the end */
#define SHUT_NS         (2 * KVT_NS_PER_S)    /* from shut to the end of the last connection */

#define PREFACE_BYTES      24
#define FRAME_HEADER_BYTES 9

enum gate_state { GATE_OPEN, GATE_SHUT, GATE_CLOSING };

struct pipe {
    size_t head, tail; /* bytes[head..tail) wait */
    uint8_t bytes[PIPE_BYTES];
};

struct connection {
    int client, inner; /* -1: free, and not delivered; gRPC has the other end of inner */
    struct pipe in, out;
    int64_t frames;      /* that may be passed; negative: passed in advance */
    uint32_t n_skip;     /* bytes before the next frame's header: of the preface or a frame */
    unsigned n_header;   /* of its bytes were seen */
    uint32_t n_payload;  /* as far as the header says yet */
    uint64_t moved_ns;   /* when the client last took something, out was empty, or it came */
    bool deaf;           /* gRPC takes no more; what it has said is still on its way */
    short client_events; /* of the last poll */
    short inner_events;
};

struct gate {
    int listen_fd;
    gate_deliver_fn deliver;
    void *arg;
    int wake_fd;
    _Atomic int state;    /* enum gate_state */
    pthread_mutex_t lock; /* while a connection is delivered, and to shut: then none is any more */
    pthread_t thread;
    uint64_t accept_ns, deliver_ns; /* the next one, not before */
    uint64_t shut_ns;               /* when it was seen to be shut; 0: open */
    uint64_t now_ns, counted_ns;
    unsigned n;
    struct connection connections[CONNECTIONS_MAX];
};

/* --- connections ------------------------------------------------------------------------------ */

static void connection_end(struct gate *gate, struct connection *c)
{
    close(c->client);
    if (c->inner >= 0)
        close(c->inner);
    c->client = c->inner = -1;
    gate->n--;
}

static void connection_begin(struct gate *gate, int fd)
{
    struct connection *c = gate->connections;
    while (c < gate->connections + CONNECTIONS_MAX && c->client >= 0)
        c++;
    if (c == gate->connections + CONNECTIONS_MAX) {
        kvt_log(KVT_LOG_WARN, "control: connection refused, as there are %d; close some",
                CONNECTIONS_MAX);
        close(fd);
        return;
    }
    *c = (struct connection){.client = fd,
                             .inner = -1,
                             .frames = FRAMES_AT_ONCE,
                             .n_skip = PREFACE_BYTES,
                             .moved_ns = gate->now_ns};
    gate->n++;
}

/* When the next one may come: each takes its time, of which a pause saves up. */
static uint64_t next_ns(const struct gate *gate, uint64_t due_ns, uint64_t each_ns)
{
    uint64_t saved_ns = AT_ONCE * each_ns;
    return KVT_MAX(due_ns + saved_ns, gate->now_ns) - saved_ns + each_ns;
}

static void accept_next(struct gate *gate)
{
    int fd = accept4(gate->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0) {
        gate->accept_ns = next_ns(gate, gate->accept_ns, ACCEPT_NS);
        connection_begin(gate, fd);
    } else if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) {
        kvt_log(KVT_LOG_WARN, "control: cannot accept a connection: %s; check ulimit -n",
                strerror(errno));
        gate->accept_ns = gate->now_ns + ACCEPT_RETRY_NS;
    }
}

/* Whoever came first of those who have said something. */
static struct connection *deliver_find(struct gate *gate)
{
    struct connection *first = NULL;
    for (struct connection *c = gate->connections; c < gate->connections + CONNECTIONS_MAX; c++)
        if (c->client >= 0 && c->inner < 0 && (c->client_events & POLLIN) != 0 &&
            (first == NULL || c->moved_ns < first->moved_ns))
            first = c;
    return first;
}

static void deliver_next(struct gate *gate)
{
    struct connection *c = deliver_find(gate);
    int pair[2];
    if (c == NULL || gate->now_ns < gate->deliver_ns)
        return;
    gate->deliver_ns = next_ns(gate, gate->deliver_ns, DELIVER_NS);
    pthread_mutex_lock(&gate->lock);
    if (atomic_load(&gate->state) != GATE_OPEN) {
        connection_end(gate, c);
    } else if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) != 0) {
        kvt_log(KVT_LOG_WARN, "control: connection refused: %s; check ulimit -n", strerror(errno));
        connection_end(gate, c);
    } else {
        c->inner = pair[0];
        gate->deliver(gate->arg, pair[1]);
    }
    pthread_mutex_unlock(&gate->lock);
}

/* --- bytes ------------------------------------------------------------------------------------ */

static bool pipe_empty(const struct pipe *pipe)
{
    return pipe->head == pipe->tail;
}

/* Into an empty pipe. False: there is no more, or an error. */
static bool pipe_read(struct pipe *pipe, int fd, size_t n_max)
{
    ssize_t n = recv(fd, pipe->bytes, n_max, 0);
    pipe->head = 0;
    pipe->tail = n > 0 ? (size_t)n : 0;
    return n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR));
}

static bool pipe_write(struct pipe *pipe, int fd)
{
    if (pipe_empty(pipe))
        return true;
    ssize_t n = send(fd, pipe->bytes + pipe->head, pipe->tail - pipe->head, MSG_NOSIGNAL);
    if (n > 0)
        pipe->head += (size_t)n;
    return n >= 0 || errno == EAGAIN || errno == EINTR;
}

/* How many frames begin in what was just read. Whether they are any is for gRPC to say. */
static unsigned frames_count(struct connection *c)
{
    unsigned n = 0;
    for (size_t at = c->in.head; at < c->in.tail;) {
        if (c->n_skip > 0) {
            size_t skip = KVT_MIN(c->n_skip, c->in.tail - at);
            c->n_skip -= (uint32_t)skip;
            at += skip;
            continue;
        }
        if (c->n_header < 3)
            c->n_payload = c->n_payload << 8 | c->in.bytes[at];
        at++;
        if (++c->n_header == FRAME_HEADER_BYTES) {
            c->n_skip = c->n_payload;
            c->n_header = 0;
            c->n_payload = 0;
            n++;
        }
    }
    return n;
}

/* False: the connection is over. */
static bool connection_pass(struct connection *c, uint64_t now_ns)
{
    if ((c->client_events & (POLLERR | POLLHUP | POLLNVAL)) != 0)
        return false; /* nobody is there to be answered */
    if (c->inner < 0)
        return true;
    if ((c->client_events & POLLIN) != 0 && pipe_empty(&c->in)) {
        if (!pipe_read(&c->in, c->client, READ_BYTES))
            return false;
        c->frames -= frames_count(c);
    }
    if ((c->inner_events & (POLLIN | POLLHUP)) != 0 && pipe_empty(&c->out) &&
        !pipe_read(&c->out, c->inner, sizeof(c->out.bytes)))
        return false;
    /* Not asked for whether there is room: as a rule there is. */
    if (!pipe_write(&c->in, c->inner)) {
        c->in.head = c->in.tail;
        c->deaf = true;
    }
    size_t head = c->out.head;
    bool open = pipe_write(&c->out, c->client);
    if (pipe_empty(&c->out) || c->out.head > head)
        c->moved_ns = now_ns;
    return open;
}

/*
 * When a connection is over at the latest. gRPC cannot end one whose client does not read: it waits
 * for its own write first, and so would its shutdown.
 */
static uint64_t connection_due(const struct gate *gate, const struct connection *c)
{
    uint64_t due = UINT64_MAX;
    if (c->inner < 0)
        due = c->moved_ns + UNHEARD_NS;
    else if (!pipe_empty(&c->out))
        due = c->moved_ns + (gate->shut_ns == 0 ? UNREAD_NS : FLUSH_NS);
    return gate->shut_ns == 0 ? due : KVT_MIN(due, gate->shut_ns + SHUT_NS);
}

/* --- the loop --------------------------------------------------------------------------------- */

static void frames_refill(struct gate *gate)
{
    uint64_t frame_ns = KVT_NS_PER_S / FRAMES_PER_S * KVT_MAX(gate->n, 1u);
    int64_t more =
        (int64_t)KVT_MIN((gate->now_ns - gate->counted_ns) / frame_ns, (uint64_t)FRAMES_AT_ONCE);
    if (more == 0)
        return;
    gate->counted_ns =
        more < FRAMES_AT_ONCE ? gate->counted_ns + (uint64_t)more * frame_ns : gate->now_ns;
    for (struct connection *c = gate->connections; c < gate->connections + CONNECTIONS_MAX; c++)
        c->frames = KVT_MIN(c->frames + more, FRAMES_AT_ONCE);
}

/* What to wait for; which connection each pair of entries is about is their order. */
static nfds_t wait_list(const struct gate *gate, struct pollfd *fds, int *timeout_ms_p)
{
    nfds_t n = 0;
    uint64_t due = UINT64_MAX;
    bool accept = atomic_load(&gate->state) == GATE_OPEN;
    if (accept && gate->accept_ns > gate->now_ns) {
        due = gate->accept_ns;
        accept = false;
    }
    fds[n++] = (struct pollfd){.fd = gate->wake_fd, .events = POLLIN};
    fds[n++] = (struct pollfd){.fd = accept ? gate->listen_fd : -1, .events = POLLIN};
    for (unsigned i = 0; i < CONNECTIONS_MAX; i++) {
        const struct connection *c = &gate->connections[i];
        if (c->client >= 0 && c->inner < 0) {
            bool early = gate->deliver_ns > gate->now_ns;
            fds[n++] = (struct pollfd){.fd = c->client, .events = early ? 0 : POLLIN};
            fds[n++] = (struct pollfd){.fd = -1};
            due = KVT_MIN(due, connection_due(gate, c));
            if (early)
                due = KVT_MIN(due, gate->deliver_ns);
            continue;
        }
        bool throttled = c->client >= 0 && c->frames <= 0;
        short client = (pipe_empty(&c->in) && !throttled && !c->deaf ? POLLIN : 0) |
                       (pipe_empty(&c->out) ? 0 : POLLOUT);
        short inner = (pipe_empty(&c->out) ? POLLIN : 0) | (pipe_empty(&c->in) ? 0 : POLLOUT);
        fds[n++] = (struct pollfd){.fd = c->client, .events = client};
        /* A hang-up is told even if nothing is asked for: look away until it may be dealt with. */
        fds[n++] = (struct pollfd){.fd = inner != 0 ? c->inner : -1, .events = inner};
        if (throttled)
            due = KVT_MIN(due, gate->now_ns + PAUSE_NS);
        if (c->client >= 0)
            due = KVT_MIN(due, connection_due(gate, c));
    }
    uint64_t wait_ns = due - KVT_MIN(due, gate->now_ns);
    *timeout_ms_p = due == UINT64_MAX
                        ? -1
                        : (int)((wait_ns + KVT_NS_PER_MS - 1) / KVT_NS_PER_MS); /* 10 s at most */
    return n;
}

static void gate_turn(struct gate *gate)
{
    struct pollfd fds[2 + 2 * CONNECTIONS_MAX];
    eventfd_t ignored;
    int timeout_ms;
    nfds_t n = wait_list(gate, fds, &timeout_ms);
    if (atomic_load(&gate->state) == GATE_CLOSING)
        timeout_ms = PAUSE_NS / KVT_NS_PER_MS;
    (void)poll(fds, n, timeout_ms);
    gate->now_ns = kvt_now_ns();
    if (gate->shut_ns == 0 && atomic_load(&gate->state) != GATE_OPEN)
        gate->shut_ns = gate->now_ns;
    frames_refill(gate);
    if (fds[0].revents != 0)
        (void)eventfd_read(gate->wake_fd, &ignored);
    for (unsigned i = 0; i < CONNECTIONS_MAX; i++) {
        struct connection *c = &gate->connections[i];
        c->client_events = fds[2 + 2 * i].revents;
        c->inner_events = fds[3 + 2 * i].revents;
        if (c->client < 0)
            continue;
        bool open = (c->client_events | c->inner_events) == 0 || connection_pass(c, gate->now_ns);
        if (!open || gate->now_ns >= connection_due(gate, c))
            connection_end(gate, c);
    }
    deliver_next(gate);
    if (fds[1].revents != 0)
        accept_next(gate);
}

static void *gate_main(void *arg)
{
    struct gate *gate = arg;
    gate->now_ns = gate->counted_ns = kvt_now_ns();
    while (atomic_load(&gate->state) != GATE_CLOSING)
        gate_turn(gate);
    uint64_t until = gate->now_ns + FLUSH_NS;
    while (gate->n > 0 && gate->now_ns < until)
        gate_turn(gate);
    for (struct connection *c = gate->connections; c < gate->connections + CONNECTIONS_MAX; c++) {
        if (c->client >= 0)
            connection_end(gate, c);
    }
    return NULL;
}

/* --- open and close --------------------------------------------------------------------------- */

enum kvt_status gate_open(int listen_fd, gate_deliver_fn deliver, void *arg, struct gate **gate_p,
                          struct kvt_error *err)
{
    struct gate *gate = calloc(1, sizeof(*gate));
    if (gate == NULL)
        return kvt_error_set(err, KVT_ERR_NOMEM, "control: out of memory at start");
    gate->listen_fd = listen_fd;
    gate->deliver = deliver;
    gate->arg = arg;
    for (unsigned i = 0; i < CONNECTIONS_MAX; i++)
        gate->connections[i].client = gate->connections[i].inner = -1;
    pthread_mutex_init(&gate->lock, NULL);
    gate->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int error = gate->wake_fd < 0 ? errno : pthread_create(&gate->thread, NULL, gate_main, gate);
    if (error != 0) {
        if (gate->wake_fd >= 0)
            close(gate->wake_fd);
        pthread_mutex_destroy(&gate->lock);
        free(gate);
        return kvt_error_set(err, KVT_ERR_NOMEM,
                             "control: cannot start a thread: %s; check ulimit -n and -u",
                             strerror(error));
    }
    *gate_p = gate;
    return KVT_OK;
}

static void state_set(struct gate *gate, enum gate_state state)
{
    pthread_mutex_lock(&gate->lock);
    atomic_store(&gate->state, (int)state);
    pthread_mutex_unlock(&gate->lock);
    (void)eventfd_write(gate->wake_fd, 1);
}

void gate_shut(struct gate *gate)
{
    state_set(gate, GATE_SHUT);
}

void gate_close(struct gate *gate)
{
    if (gate == NULL)
        return;
    state_set(gate, GATE_CLOSING);
    pthread_join(gate->thread, NULL);
    close(gate->wake_fd);
    pthread_mutex_destroy(&gate->lock);
    free(gate);
}
