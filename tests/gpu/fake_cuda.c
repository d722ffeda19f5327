/* SPDX-License-Identifier: Apache-2.0 */
/*
 * FAKE_BATCH: which batch call there is. 0: none (before CUDA 12.8), 1: that of 12.8, 2: of 13.0,
 * 3: the same, but it is refused.
 */
#include "fake_cuda.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "cuda_api.h"
#include "kvt/gather.h"
#include "kvt/util.h"

#define CALL __attribute__((visibility("default"))) unsigned

enum {
    NO_MEMORY = 2,
    NO_CONTEXT = 201,
    BAD_DEVICE = 101,
    ALREADY_REGISTERED = 712,
    NOT_REGISTERED = 713,
    CAPTURE_UNSUPPORTED = 900,
};

enum range_kind { RANGE_DEVICE, RANGE_HOST, RANGE_REGISTERED };

struct range {
    struct range *next;
    enum range_kind kind;
    uintptr_t start;
    size_t bytes;
    char *alias; /* RANGE_DEVICE */
};

struct CUevent_st {
    uint64_t n_recorded, n_completed;
};

enum task_type { TASK_COPY, TASK_GATHER, TASK_SCATTER, TASK_RECORD, TASK_WAIT, TASK_RUN };

struct task {
    struct task *next;
    enum task_type type;
    uintptr_t dst, src;
    size_t bytes, rows, dst_pitch, src_pitch;
    uint32_t n_pieces;
    struct CUevent_st *event;
    uint64_t turn; /* of the event */
    unsigned delay_us;
    void (*fn)(void *arg);
    void *arg;
};

struct CUstream_st {
    pthread_t thread;
    struct task *head, *tail;
    bool busy, closing, capturing;
    unsigned seed;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static struct range *ranges;
static struct fake_census census;
static unsigned delay_us;
static const char *fail_symbol;
static unsigned fail_skip, fail_result;
static struct CUstream_st *default_stream; /* the NULL stream */
static __thread unsigned n_contexts;       /* current in this thread */

/* --- the rules ------------------------------------------------------------------------------ */

static struct range *range_find_locked(uintptr_t at, size_t bytes)
{
    for (struct range *r = ranges; r != NULL; r = r->next) {
        if (at >= r->start && bytes <= r->bytes && at - r->start <= r->bytes - bytes)
            return r;
    }
    return NULL;
}

static bool fails_locked(const char *symbol, unsigned *result_p)
{
    if (fail_symbol == NULL || strcmp(fail_symbol, symbol) != 0)
        return false;
    if (fail_skip > 0) {
        fail_skip--;
        return false;
    }
    fail_symbol = NULL;
    *result_p = fail_result;
    return true;
}

/* What every call does first. */
static unsigned call_begin_locked(const char *symbol)
{
    unsigned result = KVT_CU_OK;
    if (n_contexts == 0)
        return NO_CONTEXT;
    (void)fails_locked(symbol, &result);
    return result;
}

static char *readable_locked(uintptr_t at)
{
    struct range *r = range_find_locked(at, 1);
    return r != NULL && r->kind == RANGE_DEVICE ? r->alias + (at - r->start) : (char *)at;
}

/* --- streams -------------------------------------------------------------------------------- */

static void nap(unsigned us)
{
    struct timespec t = {.tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000L};
    if (us > 0)
        nanosleep(&t, NULL);
}

static void pieces_move(const struct task *task, char *chunk)
{
    const struct kvt_piece *pieces = (const void *)task->src;
    for (uint32_t i = 0; i < task->n_pieces; i++) {
        struct kvt_piece piece = pieces[i];
        pthread_mutex_lock(&lock);
        piece.page = (uintptr_t)readable_locked(piece.page);
        pthread_mutex_unlock(&lock);
        if (task->type == TASK_GATHER)
            kvt_gather_c(chunk, &piece, 1);
        else
            kvt_scatter_c(chunk, &piece, 1);
    }
}

static void task_run(const struct task *task)
{
    pthread_mutex_lock(&lock);
    char *dst = readable_locked(task->dst);
    const char *src = readable_locked(task->src);
    while (task->type == TASK_WAIT && task->event->n_completed < task->turn)
        pthread_cond_wait(&cond, &lock);
    if (task->type == TASK_RECORD) {
        task->event->n_completed = task->turn;
        pthread_cond_broadcast(&cond);
    }
    pthread_mutex_unlock(&lock);
    for (size_t row = 0; task->type == TASK_COPY && row < task->rows; row++)
        memcpy(dst + row * task->dst_pitch, src + row * task->src_pitch, task->bytes);
    if (task->type == TASK_GATHER || task->type == TASK_SCATTER)
        pieces_move(task, dst);
    if (task->type == TASK_RUN)
        task->fn(task->arg);
}

static void *stream_main(void *arg)
{
    struct CUstream_st *s = arg;
    pthread_mutex_lock(&lock);
    for (;;) {
        while (s->head == NULL && !s->closing)
            pthread_cond_wait(&cond, &lock);
        struct task *task = s->head;
        if (task == NULL)
            break;
        s->head = task->next;
        if (s->head == NULL)
            s->tail = NULL;
        s->busy = true;
        unsigned late_us =
            delay_us > 0 && rand_r(&s->seed) % 4 == 0 ? (unsigned)rand_r(&s->seed) % delay_us : 0;
        pthread_mutex_unlock(&lock);
        nap(task->delay_us + late_us);
        task_run(task);
        free(task);
        pthread_mutex_lock(&lock);
        s->busy = false;
        pthread_cond_broadcast(&cond);
    }
    pthread_mutex_unlock(&lock);
    return NULL;
}

static struct CUstream_st *stream_new_locked(void)
{
    static unsigned n_made;
    struct CUstream_st *s = calloc(1, sizeof(*s));
    s->seed = ++n_made;
    if (pthread_create(&s->thread, NULL, stream_main, s) != 0)
        abort();
    return s;
}

static struct CUstream_st *stream_of_locked(struct CUstream_st *s)
{
    if (s == NULL && default_stream == NULL)
        default_stream = stream_new_locked();
    return s != NULL ? s : default_stream;
}

static void task_push_locked(struct CUstream_st *stream, struct task task)
{
    struct CUstream_st *s = stream_of_locked(stream);
    struct task *t = malloc(sizeof(*t));
    *t = task;
    t->next = NULL;
    if (s->tail != NULL)
        s->tail->next = t;
    else
        s->head = t;
    s->tail = t;
    pthread_cond_broadcast(&cond);
}

/* --- calls ---------------------------------------------------------------------------------- */

CALL cuInit(unsigned flags);
CALL cuInit(unsigned flags)
{
    return flags == 0 ? KVT_CU_OK : KVT_CU_INVALID_VALUE;
}

CALL cuGetErrorName(unsigned result, const char **name_p);
CALL cuGetErrorName(unsigned result, const char **name_p)
{
    *name_p = result == NO_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_OF_THE_FAKE";
    return KVT_CU_OK;
}

CALL cuDeviceGet(int *device_p, int ordinal);
CALL cuDeviceGet(int *device_p, int ordinal)
{
    *device_p = ordinal;
    return ordinal == 0 ? KVT_CU_OK : BAD_DEVICE;
}

CALL cuDeviceGetAttribute(int *value_p, unsigned attribute, int device);
CALL cuDeviceGetAttribute(int *value_p, unsigned attribute, int device)
{
    *value_p = attribute == KVT_CU_DEVICE_MAX_PITCH ? 1 << 20 : 0;
    return KVT_CU_OK;
}

CALL cuDevicePrimaryCtxRetain(struct CUctx_st **context_p, int device);
CALL cuDevicePrimaryCtxRetain(struct CUctx_st **context_p, int device)
{
    static char context;
    *context_p = (struct CUctx_st *)(void *)&context;
    pthread_mutex_lock(&lock);
    census.n_contexts++;
    pthread_mutex_unlock(&lock);
    return KVT_CU_OK;
}

CALL cuDevicePrimaryCtxRelease_v2(int device);
CALL cuDevicePrimaryCtxRelease_v2(int device)
{
    pthread_mutex_lock(&lock);
    census.n_contexts--;
    pthread_mutex_unlock(&lock);
    return KVT_CU_OK;
}

CALL cuCtxPushCurrent_v2(struct CUctx_st *context);
CALL cuCtxPushCurrent_v2(struct CUctx_st *context)
{
    n_contexts++;
    return KVT_CU_OK;
}

CALL cuCtxPopCurrent_v2(struct CUctx_st **context_p);
CALL cuCtxPopCurrent_v2(struct CUctx_st **context_p)
{
    *context_p = NULL;
    if (n_contexts == 0)
        return NO_CONTEXT;
    n_contexts--;
    return KVT_CU_OK;
}

CALL cuCtxGetStreamPriorityRange(int *least_p, int *greatest_p);
CALL cuCtxGetStreamPriorityRange(int *least_p, int *greatest_p)
{
    *least_p = 0;
    *greatest_p = -5;
    return n_contexts > 0 ? KVT_CU_OK : NO_CONTEXT;
}

CALL cuThreadExchangeStreamCaptureMode(unsigned *mode_p);
CALL cuThreadExchangeStreamCaptureMode(unsigned *mode_p)
{
    static __thread unsigned mode;
    unsigned before = mode;
    mode = *mode_p;
    *mode_p = before;
    return KVT_CU_OK;
}

CALL cuStreamCreateWithPriority(struct CUstream_st **stream_p, unsigned flags, int priority);
CALL cuStreamCreateWithPriority(struct CUstream_st **stream_p, unsigned flags, int priority)
{
    pthread_mutex_lock(&lock);
    unsigned result = call_begin_locked("cuStreamCreateWithPriority");
    if (result == KVT_CU_OK) {
        *stream_p = stream_new_locked();
        census.n_streams++;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

CALL cuStreamDestroy_v2(struct CUstream_st *stream);
CALL cuStreamDestroy_v2(struct CUstream_st *stream)
{
    pthread_mutex_lock(&lock);
    stream->closing = true;
    census.n_streams--;
    pthread_cond_broadcast(&cond);
    pthread_mutex_unlock(&lock);
    pthread_join(stream->thread, NULL);
    free(stream);
    return KVT_CU_OK;
}

CALL cuStreamWaitEvent(struct CUstream_st *stream, struct CUevent_st *event, unsigned flags);
CALL cuStreamWaitEvent(struct CUstream_st *stream, struct CUevent_st *event, unsigned flags)
{
    pthread_mutex_lock(&lock);
    unsigned result = call_begin_locked("cuStreamWaitEvent");
    if (result == KVT_CU_OK)
        task_push_locked(
            stream, (struct task){.type = TASK_WAIT, .event = event, .turn = event->n_recorded});
    pthread_mutex_unlock(&lock);
    return result;
}

CALL cuStreamSynchronize(struct CUstream_st *stream);
CALL cuStreamSynchronize(struct CUstream_st *stream)
{
    pthread_mutex_lock(&lock);
    unsigned result = call_begin_locked("cuStreamSynchronize");
    struct CUstream_st *s = stream_of_locked(stream);
    while (s->head != NULL || s->busy)
        pthread_cond_wait(&cond, &lock);
    pthread_mutex_unlock(&lock);
    return result;
}

CALL cuStreamIsCapturing(struct CUstream_st *stream, unsigned *status_p);
CALL cuStreamIsCapturing(struct CUstream_st *stream, unsigned *status_p)
{
    pthread_mutex_lock(&lock);
    unsigned result = call_begin_locked("cuStreamIsCapturing");
    *status_p = stream_of_locked(stream)->capturing ? 1 : 0;
    pthread_mutex_unlock(&lock);
    return result;
}

CALL cuEventCreate(struct CUevent_st **event_p, unsigned flags);
CALL cuEventCreate(struct CUevent_st **event_p, unsigned flags)
{
    pthread_mutex_lock(&lock);
    unsigned result = call_begin_locked("cuEventCreate");
    if (result == KVT_CU_OK) {
        *event_p = calloc(1, sizeof(**event_p));
        census.n_events++;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

CALL cuEventDestroy_v2(struct CUevent_st *event);
CALL cuEventDestroy_v2(struct CUevent_st *event)
{
    pthread_mutex_lock(&lock);
    census.n_events--;
    while (event->n_completed < event->n_recorded)
        pthread_cond_wait(&cond, &lock);
    pthread_mutex_unlock(&lock);
    free(event);
    return KVT_CU_OK;
}

CALL cuEventRecord(struct CUevent_st *event, struct CUstream_st *stream);
CALL cuEventRecord(struct CUevent_st *event, struct CUstream_st *stream)
{
    pthread_mutex_lock(&lock);
    unsigned result = call_begin_locked("cuEventRecord");
    if (result == KVT_CU_OK && stream_of_locked(stream)->capturing)
        result = CAPTURE_UNSUPPORTED;
    if (result == KVT_CU_OK)
        task_push_locked(
            stream,
            (struct task){.type = TASK_RECORD, .event = event, .turn = ++event->n_recorded});
    pthread_mutex_unlock(&lock);
    return result;
}

CALL cuEventSynchronize(struct CUevent_st *event);
CALL cuEventSynchronize(struct CUevent_st *event)
{
    pthread_mutex_lock(&lock);
    unsigned result = call_begin_locked("cuEventSynchronize");
    uint64_t turn = event->n_recorded;
    while (result == KVT_CU_OK && event->n_completed < turn)
        pthread_cond_wait(&cond, &lock);
    pthread_mutex_unlock(&lock);
    return result;
}

static void range_add_locked(enum range_kind kind, void *start, size_t bytes, char *alias)
{
    struct range *r = malloc(sizeof(*r));
    *r = (struct range){ranges, kind, (uintptr_t)start, bytes, alias};
    ranges = r;
}

static bool range_remove_locked(enum range_kind kind, uintptr_t start, struct range *was)
{
    for (struct range **at = &ranges; *at != NULL; at = &(*at)->next) {
        struct range *r = *at;
        if (r->kind == kind && r->start == start) {
            *was = *r;
            *at = r->next;
            free(r);
            return true;
        }
    }
    return false;
}

CALL cuMemAlloc_v2(kvt_cu_ptr *ptr_p, size_t bytes);
CALL cuMemAlloc_v2(kvt_cu_ptr *ptr_p, size_t bytes)
{
    pthread_mutex_lock(&lock);
    unsigned result = call_begin_locked("cuMemAlloc_v2");
    if (result == KVT_CU_OK) {
        int fd = memfd_create("fake-gpu", MFD_CLOEXEC);
        if (fd < 0 || ftruncate(fd, (off_t)bytes) != 0)
            abort();
        void *ptr = mmap(NULL, bytes, PROT_NONE, MAP_SHARED, fd, 0);
        char *alias = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (ptr == MAP_FAILED || alias == MAP_FAILED)
            abort();
        close(fd);
        range_add_locked(RANGE_DEVICE, ptr, bytes, alias);
        *ptr_p = (uintptr_t)ptr;
        census.n_allocations++;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

CALL cuMemFree_v2(kvt_cu_ptr ptr);
CALL cuMemFree_v2(kvt_cu_ptr ptr)
{
    struct range was;
    pthread_mutex_lock(&lock);
    bool known = range_remove_locked(RANGE_DEVICE, (uintptr_t)ptr, &was);
    if (known) {
        munmap((void *)was.start, was.bytes);
        munmap(was.alias, was.bytes);
        census.n_allocations--;
    }
    pthread_mutex_unlock(&lock);
    return known ? KVT_CU_OK : KVT_CU_INVALID_VALUE;
}

CALL cuMemHostAlloc(void **ptr_p, size_t bytes, unsigned flags);
CALL cuMemHostAlloc(void **ptr_p, size_t bytes, unsigned flags)
{
    pthread_mutex_lock(&lock);
    unsigned result = call_begin_locked("cuMemHostAlloc");
    if (result == KVT_CU_OK) {
        *ptr_p = malloc(bytes);
        range_add_locked(RANGE_HOST, *ptr_p, bytes, NULL);
        census.n_host_allocations++;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

CALL cuMemFreeHost(void *ptr);
CALL cuMemFreeHost(void *ptr)
{
    struct range was;
    pthread_mutex_lock(&lock);
    bool known = range_remove_locked(RANGE_HOST, (uintptr_t)ptr, &was);
    census.n_host_allocations -= known;
    pthread_mutex_unlock(&lock);
    if (known)
        free(ptr);
    return known ? KVT_CU_OK : KVT_CU_INVALID_VALUE;
}

CALL cuMemHostRegister_v2(void *ptr, size_t bytes, unsigned flags);
CALL cuMemHostRegister_v2(void *ptr, size_t bytes, unsigned flags)
{
    uintptr_t start = (uintptr_t)ptr;
    pthread_mutex_lock(&lock);
    unsigned result = call_begin_locked("cuMemHostRegister_v2");
    unsigned late_us = delay_us;
    for (struct range *r = ranges; r != NULL && result == KVT_CU_OK; r = r->next) {
        if (start < r->start + r->bytes && r->start < start + bytes)
            result = ALREADY_REGISTERED;
    }
    pthread_mutex_unlock(&lock);
    if (result != KVT_CU_OK)
        return result;
    nap(late_us);
    /* Locking pages touches them: memory that is not there would be made. */
    for (size_t at = 0; at < bytes; at += 4096)
        (void)*(volatile char *)((char *)ptr + at);
    pthread_mutex_lock(&lock);
    range_add_locked(RANGE_REGISTERED, ptr, bytes, NULL);
    census.n_registered++;
    pthread_mutex_unlock(&lock);
    return KVT_CU_OK;
}

CALL cuMemHostUnregister(void *ptr);
CALL cuMemHostUnregister(void *ptr)
{
    struct range was;
    pthread_mutex_lock(&lock);
    unsigned result = call_begin_locked("cuMemHostUnregister");
    if (result == KVT_CU_OK && !range_remove_locked(RANGE_REGISTERED, (uintptr_t)ptr, &was))
        result = NOT_REGISTERED;
    census.n_registered -= result == KVT_CU_OK;
    pthread_mutex_unlock(&lock);
    return result;
}

CALL cuPointerGetAttribute(void *value_p, unsigned attribute, kvt_cu_ptr ptr);
CALL cuPointerGetAttribute(void *value_p, unsigned attribute, kvt_cu_ptr ptr)
{
    pthread_mutex_lock(&lock);
    unsigned result = call_begin_locked("cuPointerGetAttribute");
    struct range *r = range_find_locked((uintptr_t)ptr, 1);
    if (result == KVT_CU_OK && r == NULL)
        result = KVT_CU_INVALID_VALUE;
    if (result == KVT_CU_OK && attribute == KVT_CU_POINTER_MEMORY_TYPE)
        *(unsigned *)value_p = r->kind == RANGE_DEVICE ? KVT_CU_MEMORY_DEVICE : KVT_CU_MEMORY_HOST;
    else if (result == KVT_CU_OK && attribute == KVT_CU_POINTER_DEVICE)
        *(int *)value_p = 0;
    else if (result == KVT_CU_OK && attribute == KVT_CU_POINTER_RANGE_START)
        *(kvt_cu_ptr *)value_p = r->start;
    else if (result == KVT_CU_OK && attribute == KVT_CU_POINTER_RANGE_BYTES)
        *(size_t *)value_p = r->bytes;
    pthread_mutex_unlock(&lock);
    return result;
}

/* A copy is of one allocation on each side, and its host side is one registration. */
static unsigned copy_push_locked(struct CUstream_st *stream, uintptr_t dst, uintptr_t src,
                                 size_t bytes, bool to_device)
{
    struct range *to = range_find_locked(dst, bytes), *from = range_find_locked(src, bytes);
    if (stream == NULL || to == NULL || from == NULL || bytes == 0 ||
        (to->kind == RANGE_DEVICE) != to_device || (from->kind == RANGE_DEVICE) == to_device)
        return KVT_CU_INVALID_VALUE;
    task_push_locked(
        stream,
        (struct task){.type = TASK_COPY, .dst = dst, .src = src, .bytes = bytes, .rows = 1});
    return KVT_CU_OK;
}

CALL cuMemcpyHtoDAsync_v2(kvt_cu_ptr dst, const void *src, size_t bytes,
                          struct CUstream_st *stream);
CALL cuMemcpyHtoDAsync_v2(kvt_cu_ptr dst, const void *src, size_t bytes, struct CUstream_st *stream)
{
    pthread_mutex_lock(&lock);
    unsigned result = call_begin_locked("cuMemcpyHtoDAsync_v2");
    if (result == KVT_CU_OK)
        result = copy_push_locked(stream, (uintptr_t)dst, (uintptr_t)src, bytes, true);
    census.n_calls_single++;
    pthread_mutex_unlock(&lock);
    return result;
}

CALL cuMemcpyDtoHAsync_v2(void *dst, kvt_cu_ptr src, size_t bytes, struct CUstream_st *stream);
CALL cuMemcpyDtoHAsync_v2(void *dst, kvt_cu_ptr src, size_t bytes, struct CUstream_st *stream)
{
    pthread_mutex_lock(&lock);
    unsigned result = call_begin_locked("cuMemcpyDtoHAsync_v2");
    if (result == KVT_CU_OK)
        result = copy_push_locked(stream, (uintptr_t)dst, (uintptr_t)src, bytes, false);
    census.n_calls_single++;
    pthread_mutex_unlock(&lock);
    return result;
}

CALL cuMemcpy2DAsync_v2(const struct kvt_cu_copy_2d *copy, struct CUstream_st *stream);
CALL cuMemcpy2DAsync_v2(const struct kvt_cu_copy_2d *copy, struct CUstream_st *stream)
{
    bool to_device = copy->dst_type == KVT_CU_MEMORY_DEVICE;
    uintptr_t dst = to_device ? (uintptr_t)copy->dst_device : (uintptr_t)copy->dst_host;
    uintptr_t src = to_device ? (uintptr_t)copy->src_host : (uintptr_t)copy->src_device;
    size_t dst_span = (copy->height - 1) * copy->dst_pitch + copy->width;
    size_t src_span = (copy->height - 1) * copy->src_pitch + copy->width;
    pthread_mutex_lock(&lock);
    unsigned result = call_begin_locked("cuMemcpy2DAsync_v2");
    struct range *to = range_find_locked(dst, dst_span), *from = range_find_locked(src, src_span);
    if (result == KVT_CU_OK &&
        (to == NULL || from == NULL || (to->kind == RANGE_DEVICE) != to_device ||
         (from->kind == RANGE_DEVICE) == to_device || copy->dst_pitch < copy->width ||
         copy->src_pitch < copy->width || copy->dst_pitch > 1 << 20 || copy->src_pitch > 1 << 20))
        result = KVT_CU_INVALID_VALUE;
    if (result == KVT_CU_OK)
        task_push_locked(stream, (struct task){.type = TASK_COPY,
                                               .dst = dst,
                                               .src = src,
                                               .bytes = copy->width,
                                               .rows = copy->height,
                                               .dst_pitch = copy->dst_pitch,
                                               .src_pitch = copy->src_pitch});
    census.n_calls_2d++;
    pthread_mutex_unlock(&lock);
    return result;
}

#if FAKE_BATCH > 0
static unsigned batch_push(const char *symbol, const kvt_cu_ptr *dsts, const kvt_cu_ptr *srcs,
                           const size_t *sizes, size_t n, const struct kvt_cu_copy_attributes *a,
                           const size_t *first, size_t n_attributes, struct CUstream_st *stream)
{
    pthread_mutex_lock(&lock);
    unsigned result = call_begin_locked(symbol);
    if (result == KVT_CU_OK && FAKE_BATCH == 3)
        result = KVT_CU_NOT_SUPPORTED;
    if (result == KVT_CU_OK &&
        (n == 0 || n_attributes != 1 || *first != 0 || a->order != KVT_CU_COPY_ORDER_STREAM))
        result = KVT_CU_INVALID_VALUE;
    for (size_t i = 0; i < n && result == KVT_CU_OK; i++) {
        struct range *to = range_find_locked((uintptr_t)dsts[i], sizes[i]);
        result = copy_push_locked(stream, (uintptr_t)dsts[i], (uintptr_t)srcs[i], sizes[i],
                                  to != NULL && to->kind == RANGE_DEVICE);
    }
    census.n_calls_batch++;
    pthread_mutex_unlock(&lock);
    return result;
}
#endif

#if FAKE_BATCH == 1
CALL cuMemcpyBatchAsync(kvt_cu_ptr *dsts, kvt_cu_ptr *srcs, size_t *sizes, size_t n,
                        struct kvt_cu_copy_attributes *a, size_t *first, size_t n_attributes,
                        size_t *fail_index_p, struct CUstream_st *stream);
CALL cuMemcpyBatchAsync(kvt_cu_ptr *dsts, kvt_cu_ptr *srcs, size_t *sizes, size_t n,
                        struct kvt_cu_copy_attributes *a, size_t *first, size_t n_attributes,
                        size_t *fail_index_p, struct CUstream_st *stream)
{
    *fail_index_p = SIZE_MAX;
    return batch_push("cuMemcpyBatchAsync", dsts, srcs, sizes, n, a, first, n_attributes, stream);
}
#elif FAKE_BATCH >= 2
CALL cuMemcpyBatchAsync_v2(kvt_cu_ptr *dsts, kvt_cu_ptr *srcs, size_t *sizes, size_t n,
                           struct kvt_cu_copy_attributes *a, size_t *first, size_t n_attributes,
                           struct CUstream_st *stream);
CALL cuMemcpyBatchAsync_v2(kvt_cu_ptr *dsts, kvt_cu_ptr *srcs, size_t *sizes, size_t n,
                           struct kvt_cu_copy_attributes *a, size_t *first, size_t n_attributes,
                           struct CUstream_st *stream)
{
    return batch_push("cuMemcpyBatchAsync_v2", dsts, srcs, sizes, n, a, first, n_attributes,
                      stream);
}
#endif

/* --- kernels -------------------------------------------------------------------------------- */

static const char kernels[2]; /* [0] gather, [1] scatter */

CALL cuModuleLoadData(struct CUmod_st **module_p, const void *image);
CALL cuModuleLoadData(struct CUmod_st **module_p, const void *image)
{
    pthread_mutex_lock(&lock);
    unsigned result = call_begin_locked("cuModuleLoadData");
    *module_p = (struct CUmod_st *)(uintptr_t)kernels;
    census.n_modules += result == KVT_CU_OK;
    pthread_mutex_unlock(&lock);
    return result;
}

CALL cuModuleUnload(struct CUmod_st *module);
CALL cuModuleUnload(struct CUmod_st *module)
{
    pthread_mutex_lock(&lock);
    unsigned result = call_begin_locked("cuModuleUnload");
    census.n_modules--;
    pthread_mutex_unlock(&lock);
    return result;
}

CALL cuModuleGetFunction(struct CUfunc_st **function_p, struct CUmod_st *module, const char *name);
CALL cuModuleGetFunction(struct CUfunc_st **function_p, struct CUmod_st *module, const char *name)
{
    if (strcmp(name, KVT_GATHER_KERNEL) != 0 && strcmp(name, KVT_SCATTER_KERNEL) != 0)
        return 500; /* not found */
    *function_p =
        (struct CUfunc_st *)(uintptr_t)&kernels[strcmp(name, KVT_GATHER_KERNEL) == 0 ? 0 : 1];
    return KVT_CU_OK;
}

CALL cuLaunchKernel(struct CUfunc_st *function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                    unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                    struct CUstream_st *stream, void **parameters, void **extra);
CALL cuLaunchKernel(struct CUfunc_st *function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                    unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                    struct CUstream_st *stream, void **parameters, void **extra)
{
    uintptr_t chunk = (uintptr_t) * (kvt_cu_ptr *)parameters[0];
    uintptr_t pieces = (uintptr_t) * (kvt_cu_ptr *)parameters[1];
    uint32_t n = *(uint32_t *)parameters[2];
    bool gather = (const char *)(void *)function == &kernels[0];
    pthread_mutex_lock(&lock);
    unsigned result = call_begin_locked("cuLaunchKernel");
    struct range *stage = range_find_locked(chunk, 1);
    struct range *table = range_find_locked(pieces, n * sizeof(struct kvt_piece));
    if (result == KVT_CU_OK &&
        (grid_x == 0 || grid_x > KVT_GATHER_BLOCKS || block_x != KVT_GATHER_THREADS ||
         stage == NULL || stage->kind != RANGE_DEVICE || table == NULL ||
         table->kind == RANGE_DEVICE || n == 0))
        result = KVT_CU_INVALID_VALUE;
    if (result == KVT_CU_OK)
        task_push_locked(stream, (struct task){.type = gather ? TASK_GATHER : TASK_SCATTER,
                                               .dst = chunk,
                                               .src = pieces,
                                               .n_pieces = n});
    census.n_launches++;
    pthread_mutex_unlock(&lock);
    return result;
}

/* --- for tests ------------------------------------------------------------------------------ */

#define HOOK __attribute__((visibility("default")))

HOOK void fake_run(struct CUstream_st *stream, unsigned us, void (*fn)(void *arg), void *arg);
HOOK void fake_run(struct CUstream_st *stream, unsigned us, void (*fn)(void *arg), void *arg)
{
    pthread_mutex_lock(&lock);
    task_push_locked(stream, (struct task){.type = TASK_RUN, .delay_us = us, .fn = fn, .arg = arg});
    pthread_mutex_unlock(&lock);
}

HOOK void *fake_alias(uint64_t ptr);
HOOK void *fake_alias(uint64_t ptr)
{
    pthread_mutex_lock(&lock);
    char *alias = readable_locked((uintptr_t)ptr);
    pthread_mutex_unlock(&lock);
    return alias;
}

HOOK void fake_fail(const char *symbol, unsigned skip, unsigned result);
HOOK void fake_fail(const char *symbol, unsigned skip, unsigned result)
{
    pthread_mutex_lock(&lock);
    fail_symbol = symbol;
    fail_skip = skip;
    fail_result = result;
    pthread_mutex_unlock(&lock);
}

HOOK void fake_delay(unsigned us);
HOOK void fake_delay(unsigned us)
{
    pthread_mutex_lock(&lock);
    delay_us = us;
    pthread_mutex_unlock(&lock);
}

HOOK void fake_capture(struct CUstream_st *stream, int on);
HOOK void fake_capture(struct CUstream_st *stream, int on)
{
    pthread_mutex_lock(&lock);
    stream_of_locked(stream)->capturing = on != 0;
    pthread_mutex_unlock(&lock);
}

HOOK struct fake_census fake_census(void);
HOOK struct fake_census fake_census(void)
{
    pthread_mutex_lock(&lock);
    struct fake_census now = census;
    pthread_mutex_unlock(&lock);
    return now;
}
