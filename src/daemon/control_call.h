/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The one way in which other threads touch what the reactor owns: they hand it a function, and wait
 * until it ran. Clients of the data path come first: a function does a bounded, small amount of
 * work, and all functions together get a small share of the reactor's time while clients are
 * active. The reactor takes no lock for this.
 */
#ifndef KVT_DAEMON_CONTROL_CALL_H
#define KVT_DAEMON_CONTROL_CALL_H

#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "http.h"
#include "kvt/status.h"

#define CONTROL_CALLS_MAX 64 /* waiting at once */

struct agent;

/* Runs on the reactor's thread; agent->now_ns is the present time. */
typedef void (*control_call_fn)(struct agent *agent, void *arg);

struct control_call {
    control_call_fn run;
    void *arg;
    _Atomic uint32_t state; /* enum call_state of control_call.c */
    sem_t done;
};

struct control_calls {
    int event_fd; /* readable: a call was posted; the reactor watches it */
    int news_fd;  /* readable: state or n_jobs_ended changed; the control API watches it */
    _Atomic uint32_t state; /* enum service_state */
    _Atomic uint64_t n_jobs_ended;
    _Atomic uint64_t free, posted; /* a bit per call */
    _Atomic bool closed;
    /* The reactor's alone: */
    unsigned last;       /* served last */
    int64_t credit_ns;   /* time that calls may use now; negative: used in advance */
    uint64_t counted_ns; /* credit was counted at */
    struct control_call calls[CONTROL_CALLS_MAX];
};

enum kvt_status control_calls_open(struct control_calls *calls) KVT_MUST_CHECK;
/** No thread is in control_call() any more. Of zeroed calls too. */
void control_calls_close(struct control_calls *calls);

/**
 * Have run(agent, arg) called by the reactor, and wait for that. Any thread but the reactor's.
 *
 * @param deadline_ns  CLOCK_MONOTONIC.
 * @return KVT_OK: it ran. Else it did not and never will: KVT_ERR_AGAIN (CONTROL_CALLS_MAX are
 *         waiting), KVT_ERR_TIMEOUT, KVT_ERR_CANCELED (the agent stops).
 */
enum kvt_status control_call(struct control_calls *calls, control_call_fn run, void *arg,
                             uint64_t deadline_ns) KVT_MUST_CHECK;

/* --- the reactor's side --- */

/** event_fd was readable. */
void control_calls_heard(struct control_calls *calls);
/** Run what waits, as far as the share of time goes. active: clients were heard just now. */
void control_calls_run(struct control_calls *calls, struct agent *agent, bool active);
/** When there is time again for what waits; UINT64_MAX: nothing waits for that. */
uint64_t control_calls_due(const struct control_calls *calls, uint64_t now_ns, bool active);
/** The reactor ends: all calls, those that wait too, return KVT_ERR_CANCELED. */
void control_calls_refuse(struct control_calls *calls);

void control_state_set(struct control_calls *calls, enum service_state state);
void control_job_ended(struct control_calls *calls);

#endif
