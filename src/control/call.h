/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls of clients, from the moment they come in to their end. Three kinds of events move a call:
 * what gRPC has done for it, the close by its client, and the time at which a watch looks again.
 * Each call does one thing at a time; the table's lock guards who may do the next.
 */
#ifndef KVT_CONTROL_CALL_H
#define KVT_CONTROL_CALL_H

#include <grpc/grpc.h>
#include <pthread.h>
#include <stdatomic.h>

#include "request.h"

struct call;

struct call_table {
    const struct control_env *env;
    grpc_server *server;
    grpc_completion_queue *queue; /* events of all calls */
    int wake_fd;                  /* eventfd: due times have changed, or the last call is gone */
    pthread_mutex_t lock;
    /* With the lock: */
    struct call *open;
    unsigned n_open, n_armed, n_streams;
    bool closing;
    uint64_t n_news;
    uint64_t tend_ns;            /* calls_tend() will be called then */
    _Atomic size_t unsent_bytes; /* of answers */
    _Atomic unsigned turn;       /* what gRPC's locks order, told to a race detector */
};

/** Take calls as they come. The server has been started. */
void calls_open(struct call_table *calls);
/** A worker's life: handles events until the queue is shut down. */
void calls_work(struct call_table *calls);

/** Run the watches that are due, and all if there is news; end what has not got on for too long.
 * @return when to come again (CLOCK_MONOTONIC); UINT64_MAX: when wake_fd says so. */
uint64_t calls_tend(struct call_table *calls, bool news);

/** Take no more, end all that are open. The server is shutting down. */
void calls_close(struct call_table *calls);
/** Whether all are gone. */
bool calls_gone(struct call_table *calls);

#endif
