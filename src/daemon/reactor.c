/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The one thread that owns the core. It sleeps in one wait for all its edges. After a client's
 * message it looks for the next one a little before it sleeps, because waking costs more than
 * answering; it stops doing so where that was in vain.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "agent.h"
#include "kvt/log.h"
#include "kvt/units.h"
#include "kvt/util.h"

#define EVENTS_PER_TURN 64
#define LATE_RETRY_NS   KVT_NS_PER_MS /* for what is due, but must wait for something else */
#define ACTIVE_NS       KVT_NS_PER_S  /* clients heard less long ago are active */

/* A spin that finds something earns three that do not; without credit one in 32 is tried. */
#define SPIN_CREDIT_MAX 24
#define SPIN_EARNS      3
#define SPIN_PROBE      32
#define SPIN_LOOKS      4 /* at the hot session for each at all the rest */

enum kvt_status reactor_watch(struct agent *agent, int fd, uint32_t kind)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = kind};
    if (epoll_ctl(agent->epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0)
        return kvt_status_from_errno(errno);
    return KVT_OK;
}

enum kvt_status reactor_open(struct agent *agent, struct kvt_error *err)
{
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGHUP);
    /* Before any thread is made, so that all of them inherit it. */
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
    agent->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    agent->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    agent->signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
    agent->timer_ns = UINT64_MAX;
    agent->spin = (struct spinner){.ns = agent->config.spin_ns, .credit = SPIN_CREDIT_MAX / 2};
    if (agent->epoll_fd < 0 || agent->timer_fd < 0 || agent->signal_fd < 0 ||
        control_calls_open(&agent->calls) != KVT_OK ||
        reactor_watch(agent, agent->calls.event_fd, WATCH_CALLS) != KVT_OK ||
        reactor_watch(agent, agent->timer_fd, WATCH_TIMER) != KVT_OK ||
        reactor_watch(agent, agent->signal_fd, WATCH_SIGNAL) != KVT_OK)
        return kvt_error_set(err, kvt_status_from_errno(errno),
                             "kvtierd: cannot make an event loop: %s; check ulimit -n",
                             strerror(errno));
    return KVT_OK;
}

void reactor_close(struct agent *agent)
{
    int *const fds[] = {&agent->signal_fd, &agent->timer_fd, &agent->epoll_fd};
    for (unsigned i = 0; i < KVT_ARRAY_LEN(fds); i++) {
        if (*fds[i] >= 0)
            close(*fds[i]);
        *fds[i] = -1;
    }
    control_calls_close(&agent->calls);
}

/* --- start and stop --------------------------------------------------------------------------- */

static void drain_start(struct agent *agent)
{
    kvt_log(KVT_LOG_INFO, "draining timeout_ms=%llu",
            (unsigned long long)(agent->config.drain_timeout_ns / KVT_NS_PER_MS));
    agent->draining = true;
    agent_state_set(agent, SERVICE_DRAINING);
    agent->drain_deadline_ns = agent->now_ns + agent->config.drain_timeout_ns;
    listener_close(&agent->listener);
    agent->listening = false;
    kvt_core_drain(agent->core);
}

static void drain_check(struct agent *agent)
{
    bool quiet = kvt_core_quiescent(agent->core) && agent->changes.n == 0;
    if (!quiet && agent->now_ns < agent->drain_deadline_ns)
        return;
    if (!quiet)
        kvt_log(KVT_LOG_WARN, "not all writes to NVMe finished in time, what was not written is "
                              "lost; raise shutdown.drain_timeout");
    agent->stop = true;
}

static void signals_read(struct agent *agent)
{
    struct signalfd_siginfo info;
    while (read(agent->signal_fd, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
        if (info.ssi_signo == SIGHUP) {
            reload_start(agent);
        } else if (agent->draining) {
            kvt_log(KVT_LOG_WARN, "told twice to stop: not waiting for writes");
            _exit(EXIT_FAILURE); /* at once: the store is consistent at every moment */
        } else {
            drain_start(agent);
        }
    }
}

/* An arena with room is what a first store needs. */
static void ready_check(struct agent *agent)
{
    if (agent->is_ready || agent->feed.n_taken == 0)
        return;
    agent->is_ready = true;
    kvt_log(KVT_LOG_INFO, "ready socket=%s after_ms=%llu", agent->config.socket_path,
            (unsigned long long)((agent->now_ns - agent->start_ns) / KVT_NS_PER_MS));
    agent_state_set(agent, agent->draining ? SERVICE_DRAINING : SERVICE_READY);
    if (agent->ready_fd >= 0) {
        if (write(agent->ready_fd, "ready\n", 6) < 0)
            kvt_log(KVT_LOG_WARN, "cannot tell readiness: %s", strerror(errno));
        close(agent->ready_fd);
        agent->ready_fd = -1;
    }
}

/* --- the loop --------------------------------------------------------------------------------- */

static bool clients_active(const struct agent *agent)
{
    return agent->now_ns - agent->heard_ns < ACTIVE_NS;
}

static void timer_arm(struct agent *agent)
{
    uint64_t next = KVT_MIN(kvt_core_next_deadline(agent->core), sessions_expire(agent));
    if (agent->listener.fd >= 0 && !agent->listening)
        next = KVT_MIN(next, agent->accept_again_ns);
    if (agent->draining)
        next = KVT_MIN(next, agent->drain_deadline_ns);
    next = KVT_MIN(next, agent->notify.next_ns);
    next = KVT_MIN(next, control_calls_due(&agent->calls, agent->now_ns, clients_active(agent)));
    /* Later than armed: the timer fires once too often, which is cheaper than setting it again. */
    if (next >= agent->timer_ns)
        return;
    if (next <= agent->now_ns)
        next = agent->now_ns + LATE_RETRY_NS;
    struct itimerspec when = {.it_value = {.tv_sec = (time_t)(next / KVT_NS_PER_S),
                                           .tv_nsec = (long)(next % KVT_NS_PER_S)}};
    KVT_ASSERT(timerfd_settime(agent->timer_fd, TFD_TIMER_ABSTIME, &when, NULL) == 0);
    agent->timer_ns = next;
}

static void timer_fired(struct agent *agent)
{
    uint64_t n;
    (void)!read(agent->timer_fd, &n, sizeof(n));
    agent->timer_ns = UINT64_MAX;
}

/* Listen again after a pause, or pause: the socket stays readable while nobody can be accepted. */
static void accept_pause(struct agent *agent)
{
    if (agent->listener.fd < 0)
        return;
    bool want = agent->now_ns >= agent->accept_again_ns;
    if (want == agent->listening)
        return;
    struct epoll_event event = {.events = want ? EPOLLIN : 0, .data.u64 = WATCH_LISTEN};
    KVT_ASSERT(epoll_ctl(agent->epoll_fd, EPOLL_CTL_MOD, agent->listener.fd, &event) == 0);
    agent->listening = want;
}

static void event_handle(struct agent *agent, const struct epoll_event *event)
{
    uint64_t kind = event->data.u64;
    switch (kind) {
    case WATCH_TIMER:
        timer_fired(agent);
        break;
    case WATCH_SIGNAL:
        signals_read(agent);
        break;
    case WATCH_LISTEN:
        if (agent->listener.fd >= 0)
            sessions_accept(agent);
        break;
    case WATCH_SLABS:
        slabs_collect(agent);
        ready_check(agent);
        break;
    case WATCH_NVME:
        actions_collect_io(agent);
        break;
    case WATCH_META:
        actions_collect_meta(agent);
        break;
    case WATCH_METRICS:
        http_answer(&agent->http, agent_snapshot, agent);
        break;
    case WATCH_RELOAD:
        reload_finish(agent);
        break;
    case WATCH_CALLS:
        control_calls_heard(&agent->calls);
        break;
    default:
        session_event(agent, &agent->conns[kind - WATCH_CONN], event->events);
        break;
    }
}

static bool spin_wanted(struct agent *agent)
{
    struct spinner *spin = &agent->spin;
    if (agent->hot == NULL || spin->ns == 0)
        return false;
    if (spin->credit > 0)
        return true;
    return ++spin->n_skipped % SPIN_PROBE == 0;
}

static bool hot_readable(const struct agent *agent)
{
    return agent->hot != NULL && agent->hot->state == CONN_OPEN &&
           agent->hot->out_head == agent->hot->out_tail;
}

/*
 * Look for a next event for a little while. The session that was heard last is read directly,
 * which saves a call; all others are looked at in between. Returns the number of events, or -1:
 * none, sleep.  *read_p: the hot session was read, which is an event too.
 */
static int events_spin(struct agent *agent, struct epoll_event *events, bool *read_p)
{
    uint64_t until = agent->now_ns + agent->spin.ns;
    for (unsigned look = 1;; look++) {
        agent->now_ns = kvt_now_ns();
        if (hot_readable(agent) && session_read(agent, agent->hot)) {
            *read_p = true;
            return 0;
        }
        if (look % SPIN_LOOKS == 0) {
            int n = epoll_wait(agent->epoll_fd, events, EVENTS_PER_TURN, 0);
            if (n > 0)
                return n;
        }
        if (agent->now_ns >= until)
            return -1;
    }
}

static void spin_account(struct spinner *spin, bool paid)
{
    if (paid)
        spin->credit = KVT_MIN(spin->credit + SPIN_EARNS, SPIN_CREDIT_MAX);
    else if (spin->credit > 0)
        spin->credit--;
}

/* Wait for events. *read_p: a session was read on the way. */
static int events_wait(struct agent *agent, struct epoll_event *events, bool *read_p)
{
    int n = -1;
    *read_p = false;
    if (spin_wanted(agent)) {
        n = events_spin(agent, events, read_p);
        spin_account(&agent->spin, *read_p || n > 0);
        if (*read_p) {
            /* Others are not to wait for a client that never pauses. */
            n = epoll_wait(agent->epoll_fd, events, EVENTS_PER_TURN, 0);
            return KVT_MAX(n, 0);
        }
    }
    agent->hot = NULL;
    if (n < 0)
        n = epoll_wait(agent->epoll_fd, events, EVENTS_PER_TURN, -1);
    KVT_ASSERT(n >= 0 || errno == EINTR);
    return KVT_MAX(n, 0);
}

void reactor_run(struct agent *agent)
{
    struct epoll_event events[EVENTS_PER_TURN];
    bool was_read;
    agent->now_ns = kvt_now_ns();
    atomic_store_explicit(&agent->http.looping, true, memory_order_release);
    timer_arm(agent);
    while (!agent->stop) {
        int n = events_wait(agent, events, &was_read);
        agent->now_ns = kvt_now_ns();
        for (int i = 0; i < n; i++)
            event_handle(agent, &events[i]);
        control_calls_run(&agent->calls, agent, clients_active(agent));
        kvt_core_flush(agent->core, agent->now_ns);
        actions_push(agent);
        agent->metrics.turn++;
        if (notify_due(&agent->notify, agent->now_ns))
            notify_alive(&agent->notify, agent->now_ns);
        accept_pause(agent);
        timer_arm(agent);
        if (agent->draining)
            drain_check(agent);
    }
    atomic_store_explicit(&agent->http.looping, false, memory_order_release);
    control_calls_refuse(&agent->calls);
}
