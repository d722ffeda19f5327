/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading the config again while the agent serves. A thread reads, parses and checks it, because a
 * file may be slow; the reactor takes over what differs and can change, and says what cannot. Any
 * fault leaves everything as it was.
 */
#ifndef KVT_DAEMON_RELOAD_H
#define KVT_DAEMON_RELOAD_H

#include <pthread.h>
#include <stdbool.h>

#include "daemon_config.h"

struct reload {
    int event_fd; /* readable: the thread is done; -1: not made yet */
    bool busy;    /* the thread runs, or its result was not taken yet */
    bool again;   /* asked for meanwhile */
    pthread_t thread;
    struct reload_job *job;
};

struct agent;

/* Makes event_fd. @return KVT_OK, KVT_ERR_NOMEM. */
enum kvt_status reload_open(struct reload *reload) KVT_MUST_CHECK;
void reload_close(struct reload *reload);

/* SIGHUP: start, or once more when the present one is done. */
void reload_start(struct agent *agent);
/* event_fd is readable: take over the result. */
void reload_finish(struct agent *agent);

#endif
