/* SPDX-License-Identifier: Apache-2.0 */
#include "kvt/workers.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "kvt/gate.h"
#include "kvt/ring.h"
#include "kvt/util.h"

struct kvt_workers {
    struct kvt_ring *jobs;
    struct kvt_gate gate;
    _Atomic bool stop;
    unsigned n_threads;
    pthread_t threads[];
};

/* NULL: told to stop, and nothing is left. */
static struct kvt_job *job_wait(struct kvt_workers *workers)
{
    for (;;) {
        struct kvt_job *job = kvt_ring_pop(workers->jobs);
        if (job != NULL)
            return job;
        uint32_t key = kvt_gate_enter(&workers->gate);
        /* Looked at before the ring: what was submitted before the stop is still run. */
        bool stop = atomic_load(&workers->stop);
        job = kvt_ring_pop(workers->jobs);
        if (job != NULL || stop) {
            kvt_gate_leave(&workers->gate);
            return job;
        }
        kvt_gate_wait(&workers->gate, key);
    }
}

static void *worker_thread(void *arg)
{
    struct kvt_workers *workers = arg;
    struct kvt_job *job;
    while ((job = job_wait(workers)) != NULL) {
        job->run(job);
        sched_yield(); /* who answers clients does not wait for the whole queue, or the next tick */
    }
    return NULL;
}

enum kvt_status kvt_workers_create(unsigned n_threads, unsigned n_jobs_max,
                                   struct kvt_workers **workers_p, struct kvt_error *err)
{
    if (n_threads == 0)
        return kvt_error_set(err, KVT_ERR_INVAL, "workers: none asked for; at least one is needed");
    struct kvt_workers *workers =
        calloc(1, sizeof(*workers) + n_threads * sizeof(workers->threads[0]));
    if (workers == NULL)
        return kvt_error_set(err, KVT_ERR_NOMEM, "workers: out of memory at start; free some");
    workers->jobs = kvt_ring_create(n_jobs_max);
    if (workers->jobs == NULL) {
        kvt_workers_destroy(workers);
        return kvt_error_set(err, KVT_ERR_NOMEM, "workers: out of memory at start; free some");
    }
    int rc = 0;
    while (rc == 0 && workers->n_threads < n_threads) {
        rc = kvt_thread_start(&workers->threads[workers->n_threads], worker_thread, workers);
        workers->n_threads += rc == 0;
    }
    if (rc != 0) {
        kvt_workers_destroy(workers);
        return kvt_error_set(err, KVT_ERR_NOMEM,
                             "workers: cannot start a thread: %s; check ulimit -u", strerror(rc));
    }
    *workers_p = workers;
    return KVT_OK;
}

void kvt_workers_destroy(struct kvt_workers *workers)
{
    if (workers == NULL)
        return;
    atomic_store(&workers->stop, true);
    kvt_gate_wake(&workers->gate, INT32_MAX);
    for (unsigned i = 0; i < workers->n_threads; i++)
        pthread_join(workers->threads[i], NULL);
    kvt_ring_destroy(workers->jobs);
    free(workers);
}

bool kvt_workers_submit(struct kvt_workers *workers, struct kvt_job *job)
{
    if (!kvt_ring_push(workers->jobs, job))
        return false;
    kvt_gate_wake(&workers->gate, 1);
    return true;
}
