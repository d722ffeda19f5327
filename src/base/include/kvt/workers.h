/* SPDX-License-Identifier: Apache-2.0 */
/* Threads for what blocks or burns CPU, so that the reactor does neither. */
#ifndef KVT_WORKERS_H
#define KVT_WORKERS_H

#include <stdbool.h>

#include "kvt/status.h"

struct kvt_workers;

struct kvt_job { /* embedded in the caller's request; lent until run() returns */
    void (*run)(struct kvt_job *job);
};

/**
 * @param n_jobs_max  Jobs that can wait at once, at least.
 * @return KVT_OK, KVT_ERR_INVAL (no threads asked for), KVT_ERR_NOMEM; err may be NULL.
 */
enum kvt_status kvt_workers_create(unsigned n_threads, unsigned n_jobs_max,
                                   struct kvt_workers **workers_p,
                                   struct kvt_error *err) KVT_MUST_CHECK;

/** Runs what was submitted, then ends the threads. NULL is fine. */
void kvt_workers_destroy(struct kvt_workers *workers);

/** Any thread. False: too many are waiting. */
bool kvt_workers_submit(struct kvt_workers *workers, struct kvt_job *job);

#endif
