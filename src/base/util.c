/* SPDX-License-Identifier: Apache-2.0 */
#include "kvt/util.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

void kvt_assert_fail(const char *expr, const char *file, int line)
{
    fprintf(stderr, "kvtier: assertion failed: %s at %s:%d; this is a bug, please report it\n",
            expr, file, line);
    abort();
}

int kvt_thread_start(pthread_t *thread, void *(*run)(void *arg), void *arg)
{
    sigset_t all;
    sigset_t old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int rc = pthread_create(thread, NULL, run, arg);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return rc;
}

uint64_t kvt_now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * UINT64_C(1000000000) + (uint64_t)ts.tv_nsec;
}

void *kvt_big_calloc(uint64_t bytes)
{
    void *ptr = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (ptr == MAP_FAILED)
        return NULL;
    /* Random access to a table of gigabytes misses the TLB on every probe with small pages. */
    (void)madvise(ptr, bytes, MADV_HUGEPAGE);
    return ptr;
}

void kvt_big_populate(void *ptr, uint64_t bytes)
{
    (void)madvise(ptr, bytes, MADV_POPULATE_WRITE);
}

void kvt_big_free(void *ptr, uint64_t bytes)
{
    if (ptr != NULL)
        munmap(ptr, bytes);
}
