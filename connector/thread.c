/* SPDX-License-Identifier: Apache-2.0 */
/* The library thread: connections up and down, the data connection, time, and copies. */
#include "session.h"

#include <poll.h>
#include <unistd.h>

enum { FD_WAKE, FD_TIMER, FD_CONTROL, FD_DATA, FD_N };

/* What is due for a connection. @return when to look again. */
static uint64_t conn_step_locked(struct kvt_session *s, struct kvt_conn *c)
{
    uint64_t now_ns = kvt_now_ns();
    if (c->state == KVT_CONN_HELLO && now_ns >= c->hello_deadline_ns)
        kvt_conn_break_locked(s, c, KVT_ERR_TIMEOUT,
                              "no answer to the greeting; is kvtierd stopped?");
    if (c->state == KVT_CONN_BROKEN)
        kvt_conn_close_locked(s, c);
    if (c->state == KVT_CONN_DOWN && now_ns >= c->retry_ns)
        kvt_conn_start_locked(s, c);
    if (c->state == KVT_CONN_DOWN)
        return c->retry_ns;
    return c->state == KVT_CONN_HELLO ? c->hello_deadline_ns : UINT64_MAX;
}

static void conn_pollfd(const struct kvt_session *s, const struct kvt_conn *c, struct pollfd *p)
{
    bool up = c->state == KVT_CONN_HELLO || c->state == KVT_CONN_READY;
    p->fd = up ? c->fd : -1;
    /* Answers on the control connection are for the calling threads, which may be slow to come. */
    p->events =
        c == &s->control && c->state == KVT_CONN_READY && !c->is_stalled ? POLLRDHUP : POLLIN;
    if (c->tx_blocked)
        p->events |= POLLOUT;
}

static void counter_clear(int fd)
{
    uint64_t value;
    ssize_t n = read(fd, &value, sizeof(value));
    (void)n; /* nothing there: somebody else's wake-up */
}

static void conn_event(struct kvt_session *s, struct kvt_conn *c, short revents)
{
    if (revents == 0)
        return;
    pthread_mutex_lock(&s->lock);
    enum kvt_conn_state state = c->state;
    if (revents & POLLOUT) {
        c->tx_blocked = false;
        kvt_conn_pump_locked(s, c);
    }
    pthread_mutex_unlock(&s->lock);
    if (state == KVT_CONN_HELLO)
        kvt_conn_welcome(s, c);
    else if (state == KVT_CONN_READY && c == &s->data)
        kvt_data_receive(s);
    else if (state == KVT_CONN_READY && (revents & ~POLLOUT))
        kvt_control_receive(s); /* reads up to the end of the stream, if that is what it is */
}

static int timeout_ms(uint64_t until_ns)
{
    uint64_t now_ns = kvt_now_ns();
    if (until_ns == UINT64_MAX)
        return -1;
    return until_ns <= now_ns ? 0 : (int)KVT_MIN((until_ns - now_ns + 999999) / 1000000, 1u << 30);
}

void *kvt_library_main(void *arg)
{
    struct kvt_worker *w = arg;
    struct kvt_session *s = w->session;
    struct pollfd fds[FD_N] = {[FD_WAKE] = {.fd = s->wake_fd, .events = POLLIN},
                               [FD_TIMER] = {.fd = s->timer_fd, .events = POLLIN}};

    pthread_mutex_lock(&s->lock);
    while (!s->closing) {
        uint64_t until_ns = conn_step_locked(s, &s->control);
        until_ns = KVT_MIN(until_ns, conn_step_locked(s, &s->data));
        kvt_conn_pump_locked(s, &s->control);
        kvt_conn_pump_locked(s, &s->data);
        bool has_job = kvt_job_take_locked(s, w);
        if (has_job) {
            pthread_mutex_unlock(&s->lock);
            kvt_job_run(w);
            pthread_mutex_lock(&s->lock);
            kvt_job_done_locked(s, w);
            until_ns = 0; /* look what came meanwhile, then go on */
        }
        conn_pollfd(s, &s->control, &fds[FD_CONTROL]);
        conn_pollfd(s, &s->data, &fds[FD_DATA]);
        pthread_mutex_unlock(&s->lock);
        (void)poll(fds, FD_N, timeout_ms(until_ns));
        if (fds[FD_WAKE].revents != 0)
            counter_clear(s->wake_fd);
        conn_event(s, &s->control, fds[FD_CONTROL].revents);
        conn_event(s, &s->data, fds[FD_DATA].revents);
        pthread_mutex_lock(&s->lock);
        if (fds[FD_TIMER].revents != 0) {
            counter_clear(s->timer_fd);
            kvt_ops_expire_locked(s);
        }
    }
    if (s->control.fd >= 0)
        kvt_conn_close_locked(s, &s->control);
    if (s->data.fd >= 0)
        kvt_conn_close_locked(s, &s->data);
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

void kvt_copier_loop(struct kvt_worker *w)
{
    struct kvt_session *s = w->session;

    pthread_mutex_lock(&s->lock);
    while (!s->closing) {
        if (!kvt_job_take_locked(s, w)) {
            pthread_cond_wait(&s->work[w->kind].cond, &s->lock);
            continue;
        }
        pthread_mutex_unlock(&s->lock);
        kvt_job_run(w);
        pthread_mutex_lock(&s->lock);
        kvt_job_done_locked(s, w);
    }
    pthread_mutex_unlock(&s->lock);
}

void *kvt_copier_main(void *arg)
{
    kvt_copier_loop(arg);
    return NULL;
}
