/* SPDX-License-Identifier: Apache-2.0 */
/*
 * /metrics, /healthz and /readyz over HTTP, in a thread of its own with bounded connections. It
 * shares nothing with the reactor but the snapshot that it asks for and gets within a second, or
 * not: whoever asks slowly, or much, or never reads, waits alone.
 */
#ifndef KVT_DAEMON_HTTP_H
#define KVT_DAEMON_HTTP_H

#include <stdatomic.h>

#include "metrics.h"

enum service_state { SERVICE_STARTING, SERVICE_READY, SERVICE_DRAINING };

/* A snapshot on its way: the asker counts `asked` up, the reactor fills the snapshot and sets
 * `answered` to it. One asker at a time, which waits until both are equal before it asks again. */
struct metrics_pull {
    int ask_fd, answer_fd; /* eventfds */
    _Atomic uint32_t asked;
    _Atomic uint32_t answered; /* release in the reactor: the snapshot is filled */
    _Atomic bool closing;
    struct metrics_snapshot snapshot;
};

struct http {
    void *daemon; /* of the library; NULL: there is none */
    struct metrics_pull pull;
    _Atomic uint32_t state; /* enum service_state */
    _Atomic bool looping;   /* the reactor runs: it can be asked */
};

/**
 * Listen and serve. That nothing can listen there is told in the log and no error: engines can do
 * without metrics, and not without the agent.
 *
 * @param listen  Address and port, checked; empty: nothing is done.
 * @return KVT_OK or KVT_ERR_NOMEM (err).
 */
enum kvt_status http_start(struct http *http, const char *listen,
                           struct kvt_error *err) KVT_MUST_CHECK;
/* May be called without start; waits for the thread. */
void http_stop(struct http *http);

/* In the reactor, when pull.ask_fd is readable. fill makes the snapshot. */
typedef void (*metrics_fill_fn)(void *arg, struct metrics_snapshot *snapshot);
void http_answer(struct http *http, metrics_fill_fn fill, void *arg);

#endif
