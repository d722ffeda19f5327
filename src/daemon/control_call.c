/* SPDX-License-Identifier: Apache-2.0 */
#include "control_call.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"
#include "kvt/units.h"
#include "kvt/util.h"

#define CALLS_PER_TURN 4

/*
 * Of 1000 lookups, at most SHARE_ACTIVE find the reactor in a call, so that even their 99th
 * percentile does not show whether somebody lists a million chunks. A short command pays nothing:
 * its calls are covered by the credit of a quiet time. Without clients there is nobody to disturb
 * but who comes next.
 */
#define SHARE_ACTIVE  4 /* per mille of the time */
#define SHARE_IDLE    500
#define PER_MILLE     1000
#define CREDIT_MAX_NS ((int64_t)(KVT_NS_PER_MS / 2))
#define CALL_COST_NS  1000 /* of waking up, beside what is measured */
/* What takes longer than this had no CPU meanwhile: it is no reason to let the next call wait for
 * seconds. With clients it waits for a quarter of one at most. */
#define DEBT_MAX_NS ((int64_t)KVT_NS_PER_MS)

enum call_state {
    CALL_IDLE,
    CALL_WAITING,
    CALL_RUNNING,
    CALL_DONE,
    CALL_REFUSED,
    CALL_LEFT, /* the caller no longer waits: the reactor gives the slot back */
};

static void event_tell(int fd)
{
    uint64_t one = 1;
    (void)!write(fd, &one, sizeof(one)); /* fails only when it is readable anyway */
}

enum kvt_status control_calls_open(struct control_calls *calls)
{
    memset(calls, 0, sizeof(*calls));
    calls->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    calls->news_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    for (unsigned i = 0; i < CONTROL_CALLS_MAX; i++)
        KVT_ASSERT(sem_init(&calls->calls[i].done, 0, 0) == 0);
    atomic_store(&calls->free, UINT64_MAX);
    calls->credit_ns = CREDIT_MAX_NS;
    calls->counted_ns = kvt_now_ns();
    if (calls->event_fd >= 0 && calls->news_fd >= 0)
        return KVT_OK;
    enum kvt_status status = kvt_status_from_errno(errno);
    control_calls_close(calls);
    return status;
}

void control_calls_close(struct control_calls *calls)
{
    if (calls->counted_ns == 0)
        return; /* never opened */
    if (calls->event_fd >= 0)
        close(calls->event_fd);
    if (calls->news_fd >= 0)
        close(calls->news_fd);
    for (unsigned i = 0; i < CONTROL_CALLS_MAX; i++)
        (void)sem_destroy(&calls->calls[i].done);
    memset(calls, 0, sizeof(*calls));
}

/* --- callers ---------------------------------------------------------------------------------- */

static int slot_take(struct control_calls *calls)
{
    uint64_t free = atomic_load_explicit(&calls->free, memory_order_relaxed);
    while (free != 0) {
        /* Acquire: who gave it back is done with it. */
        if (atomic_compare_exchange_weak_explicit(&calls->free, &free, free & (free - 1),
                                                  memory_order_acquire, memory_order_relaxed))
            return __builtin_ctzll(free);
    }
    return -1;
}

static void slot_give(struct control_calls *calls, unsigned slot)
{
    atomic_store_explicit(&calls->calls[slot].state, CALL_IDLE, memory_order_relaxed);
    atomic_fetch_or_explicit(&calls->free, UINT64_C(1) << slot, memory_order_release);
}

/* Wait until the reactor has dealt with the call. False: deadline. */
static bool done_wait(struct control_call *call, uint64_t deadline_ns)
{
    struct timespec until = {.tv_sec = (time_t)(deadline_ns / KVT_NS_PER_S),
                             .tv_nsec = (long)(deadline_ns % KVT_NS_PER_S)};
    while (sem_clockwait(&call->done, CLOCK_MONOTONIC, &until) != 0) {
        if (errno != EINTR)
            return false;
    }
    return true;
}

/* Stop waiting, unless the reactor has begun: then it is about to be done. True: given up. */
static bool call_leave(struct control_call *call)
{
    uint32_t expected = CALL_WAITING;
    if (atomic_compare_exchange_strong(&call->state, &expected, CALL_LEFT))
        return true;
    while (sem_wait(&call->done) != 0)
        KVT_ASSERT(errno == EINTR);
    return false;
}

enum kvt_status control_call(struct control_calls *calls, control_call_fn run, void *arg,
                             uint64_t deadline_ns)
{
    if (atomic_load(&calls->closed))
        return KVT_ERR_CANCELED;
    int slot = slot_take(calls);
    if (slot < 0)
        return KVT_ERR_AGAIN;
    struct control_call *call = &calls->calls[slot];
    call->run = run;
    call->arg = arg;
    atomic_store_explicit(&call->state, CALL_WAITING, memory_order_relaxed);
    atomic_fetch_or(&calls->posted, UINT64_C(1) << slot);
    event_tell(calls->event_fd);
    /* Either this sees that the reactor has ended, or the reactor's last look sees the call. */
    if (atomic_load(&calls->closed)) {
        if (call_leave(call))
            return KVT_ERR_CANCELED;
    } else if (!done_wait(call, deadline_ns) && call_leave(call)) {
        return KVT_ERR_TIMEOUT;
    }
    bool ran = atomic_load_explicit(&call->state, memory_order_acquire) == CALL_DONE;
    slot_give(calls, (unsigned)slot);
    return ran ? KVT_OK : KVT_ERR_CANCELED;
}

/* --- the reactor's side ----------------------------------------------------------------------- */

void control_calls_heard(struct control_calls *calls)
{
    uint64_t n;
    (void)!read(calls->event_fd, &n, sizeof(n));
}

/* The next call that waits, in turn, so that none waits for ever; NULL: none. */
static struct control_call *posted_take(struct control_calls *calls)
{
    uint64_t posted = atomic_load_explicit(&calls->posted, memory_order_acquire);
    if (posted == 0)
        return NULL;
    unsigned first = (calls->last + 1) % CONTROL_CALLS_MAX;
    uint64_t behind = posted & (UINT64_MAX << first);
    unsigned slot = (unsigned)__builtin_ctzll(behind != 0 ? behind : posted);
    atomic_fetch_and(&calls->posted, ~(UINT64_C(1) << slot));
    calls->last = slot;
    return &calls->calls[slot];
}

/* Claim a posted call; false: its caller has left, and the slot goes back. */
static bool call_claim(struct control_calls *calls, struct control_call *call, uint32_t state)
{
    uint32_t expected = CALL_WAITING;
    if (atomic_compare_exchange_strong(&call->state, &expected, state))
        return true;
    slot_give(calls, (unsigned)(call - calls->calls));
    return false;
}

static int64_t share(bool active)
{
    return active ? SHARE_ACTIVE : SHARE_IDLE;
}

void control_calls_run(struct control_calls *calls, struct agent *agent, bool active)
{
    struct control_call *call;
    if (atomic_load_explicit(&calls->posted, memory_order_relaxed) == 0)
        return;
    int64_t passed_ns = (int64_t)KVT_MIN(agent->now_ns - calls->counted_ns, KVT_NS_PER_S);
    calls->counted_ns = agent->now_ns;
    calls->credit_ns =
        KVT_MIN(calls->credit_ns + passed_ns * share(active) / PER_MILLE, CREDIT_MAX_NS);
    uint64_t begin_ns = kvt_now_ns();
    for (unsigned n = 0; n < CALLS_PER_TURN && calls->credit_ns > 0; n++) {
        call = posted_take(calls);
        if (call == NULL)
            return;
        if (!call_claim(calls, call, CALL_RUNNING))
            continue;
        call->run(agent, call->arg);
        atomic_store_explicit(&call->state, CALL_DONE, memory_order_release);
        (void)sem_post(&call->done);
        uint64_t end_ns = kvt_now_ns();
        calls->credit_ns -= (int64_t)(end_ns - begin_ns) + CALL_COST_NS;
        calls->credit_ns = KVT_MAX(calls->credit_ns, -DEBT_MAX_NS);
        begin_ns = end_ns;
    }
    if (calls->credit_ns > 0 && atomic_load_explicit(&calls->posted, memory_order_relaxed) != 0)
        event_tell(calls->event_fd); /* the rest in the next turn */
}

uint64_t control_calls_due(const struct control_calls *calls, uint64_t now_ns, bool active)
{
    if (atomic_load_explicit(&calls->posted, memory_order_relaxed) == 0)
        return UINT64_MAX;
    if (calls->credit_ns > 0)
        return UINT64_MAX; /* event_fd tells */
    return now_ns + (uint64_t)((1 - calls->credit_ns) * PER_MILLE / share(active)) + 1;
}

void control_calls_refuse(struct control_calls *calls)
{
    struct control_call *call;
    atomic_store(&calls->closed, true);
    while ((call = posted_take(calls)) != NULL) {
        if (call_claim(calls, call, CALL_REFUSED))
            (void)sem_post(&call->done);
    }
}

void control_state_set(struct control_calls *calls, enum service_state state)
{
    atomic_store(&calls->state, state);
    event_tell(calls->news_fd);
}

void control_job_ended(struct control_calls *calls)
{
    atomic_fetch_add(&calls->n_jobs_ended, 1);
    event_tell(calls->news_fd);
}
