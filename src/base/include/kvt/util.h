/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KVT_UTIL_H
#define KVT_UTIL_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#define KVT_KIB        (UINT64_C(1) << 10)
#define KVT_MIB        (UINT64_C(1) << 20)
#define KVT_GIB        (UINT64_C(1) << 30)
#define KVT_TIB        (UINT64_C(1) << 40)
#define KVT_PAGE_BYTES UINT64_C(4096)

#define KVT_ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define KVT_MIN(a, b)    ((a) < (b) ? (a) : (b))
#define KVT_MAX(a, b)    ((a) > (b) ? (a) : (b))
#define KVT_LIKELY(x)    __builtin_expect(!!(x), 1)
#define KVT_UNLIKELY(x)  __builtin_expect(!!(x), 0)

#define kvt_container_of(ptr, type, member) ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

/* Powers of two only. */
static inline uint64_t kvt_align_up(uint64_t value, uint64_t to)
{
    return (value + to - 1) & ~(to - 1);
}

/** Print the failed expression and abort: an assert reports our own bug, never the world's. */
_Noreturn void kvt_assert_fail(const char *expr, const char *file, int line);

/* Stays on in release builds. */
#define KVT_ASSERT(e) ((e) ? (void)0 : kvt_assert_fail(#e, __FILE__, __LINE__))

/**
 * A thread to which no signal is delivered: those are the main thread's business, or in a library
 * the host process's.
 *
 * @return 0, or an error number as pthread_create() gives it.
 */
int kvt_thread_start(pthread_t *thread, void *(*run)(void *arg), void *arg);

/** CLOCK_MONOTONIC in nanoseconds: one clock for all processes of a host. */
uint64_t kvt_now_ns(void);

/**
 * Zeroed memory that costs address space until touched, in transparent huge pages where the
 * kernel gives them (madvise). For tables that are sized for the most they may ever hold.
 *
 * @return NULL when the address space is refused. Free with kvt_big_free() and the same size.
 */
void *kvt_big_calloc(uint64_t bytes);
void kvt_big_free(void *ptr, uint64_t bytes);

/**
 * Take the memory of a table now, where its places are used at random: else clearing its pages, up
 * to milliseconds each, falls to whoever is the first at each. What is refused comes then, as ever.
 */
void kvt_big_populate(void *ptr, uint64_t bytes);

#endif
