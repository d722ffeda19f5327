/* SPDX-License-Identifier: Apache-2.0 */
/* Stores and loads of a GPU's memory: what a session adds to its lanes. */
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "cuda_lane.h"
#include "session.h"

/* Copies at once in each direction: enough to keep the link busy, few enough to end in turn. */
#define LANES 4u
enum { DIR_LOAD, DIR_STORE, DIR_N };

/* Lanes of one direction that nobody uses, for the threads that copy that way. */
struct lanes {
    pthread_mutex_t lock;
    pthread_cond_t cond;
    uint32_t n_free;
    struct kvt_lane *free[LANES];
    uint32_t n;
    struct kvt_lane all[LANES];
};

struct kvt_cuda {
    struct kvt_cuda_device device;
    struct kvt_pin pin;
    bool usable; /* has threads for both directions */
    uint32_t n_threads[DIR_N];
    struct lanes lanes[DIR_N];
};

/* --- submit --------------------------------------------------------------------------------- */

#define RANGES_MAX 256u

/* Allocations that pieces of one op were found in. Pieces go through them in order, as a rule. */
struct ranges {
    struct kvt_cuda_device *device;
    uint32_t n, at;
    struct {
        uint64_t start, bytes;
    } found[RANGES_MAX];
};

static bool range_has(const struct ranges *r, uint32_t i, uint64_t addr, uint64_t bytes)
{
    return i < r->n && addr >= r->found[i].start && bytes <= r->found[i].bytes &&
           addr - r->found[i].start <= r->found[i].bytes - bytes;
}

static bool ranges_check(struct ranges *r, const void *ptr, uint64_t bytes)
{
    uint64_t addr = (uintptr_t)ptr;
    if (range_has(r, r->at, addr, bytes))
        return true;
    uint32_t next = r->at + 1 < r->n ? r->at + 1 : 0;
    for (uint32_t i = 0; i < r->n; i++) {
        uint32_t index = next + i < r->n ? next + i : next + i - r->n;
        if (range_has(r, index, addr, bytes)) {
            r->at = index;
            return true;
        }
    }
    r->at = r->n < RANGES_MAX ? r->n++ : RANGES_MAX - 1;
    r->found[r->at].start = r->found[r->at].bytes = 0;
    return kvt_cuda_range(r->device, ptr, &r->found[r->at].start, &r->found[r->at].bytes) &&
           range_has(r, r->at, addr, bytes);
}

/* Offsets are linear: pieces between corners that are in one allocation are in it as well. */
static bool corners_check(struct ranges *r, const kvtier_layout *layout)
{
    uint32_t range = UINT32_MAX;
    for (unsigned corner = 0; corner < 4; corner++) {
        int64_t outer = (corner & 1) ? layout->n_outer - 1 : 0;
        int64_t inner = (corner & 2) ? layout->n_inner - 1 : 0;
        const char *addr = (const char *)layout->base + outer * layout->outer_stride +
                           inner * layout->inner_stride;
        if (!ranges_check(r, addr, layout->bytes) || (corner > 0 && r->at != range))
            return false;
        range = r->at;
    }
    return true;
}

static bool layout_on_gpu(struct ranges *r, const kvtier_layout *layout, uint64_t chunk_bytes)
{
    struct kvt_runs runs;
    if (layout->extents == NULL && corners_check(r, layout))
        return true;
    kvt_runs_init(&runs, layout);
    while (chunk_bytes > 0) {
        char *addr;
        uint64_t n = kvt_runs_next(&runs, chunk_bytes, &addr);
        if (!ranges_check(r, addr, n))
            return false;
        chunk_bytes -= n;
    }
    return true;
}

static int prepare_failed(struct kvt_session *s, enum kvt_status status, const char *message)
{
    pthread_mutex_lock(&s->lock);
    kvt_session_error_locked(s, status, "%s", message);
    pthread_mutex_unlock(&s->lock);
    return status;
}

/* The context is current. */
static int after_record(struct kvt_session *s, struct kvt_client_op *op, struct CUstream_st *stream)
{
    const struct kvt_cuda_api *api = &s->cuda->device.api;
    struct kvt_error err;
    unsigned capture = KVT_CU_CAPTURE_NONE;
    unsigned result = api->stream_capturing(stream, &capture);
    /* The event would become part of the graph, and our streams with it. */
    if (result == KVT_CU_OK && capture != KVT_CU_CAPTURE_NONE)
        return prepare_failed(s, KVT_ERR_INVAL,
                              "cuda: the stream captures a graph; store and load outside of it");
    if (result == KVT_CU_OK && op->after == NULL)
        result = api->event_create(&op->after, KVT_CU_EVENT_DISABLE_TIMING);
    if (result == KVT_CU_OK)
        result = api->event_record(op->after, stream);
    if (result == KVT_CU_OK)
        return KVTIER_OK;
    return prepare_failed(s, kvt_cuda_error(api, result, "cannot follow the stream", &err),
                          err.msg);
}

int kvt_cuda_prepare(struct kvt_session *s, struct kvt_client_op *op, void *stream)
{
    struct CUctx_st *context;
    struct ranges ranges;
    struct kvt_error err;
    pthread_mutex_lock(&s->lock);
    struct kvt_cuda *cuda = s->cuda;
    pthread_mutex_unlock(&s->lock);
    if (cuda == NULL || !cuda->usable)
        return prepare_failed(s, KVT_ERR_NOTSUP,
                              "cuda: not attached; call kvt_cuda_attach() first");
    unsigned result = cuda->device.api.context_push(cuda->device.context);
    if (result != KVT_CU_OK)
        return prepare_failed(
            s, kvt_cuda_error(&cuda->device.api, result, "cannot enter the context", &err),
            err.msg);
    int status = KVTIER_OK;
    ranges.device = &cuda->device;
    ranges.n = ranges.at = 0;
    for (uint32_t i = 0; i < op->n_items && status == KVTIER_OK; i++) {
        if (!layout_on_gpu(&ranges, &op->layouts[i], op->chunk_bytes))
            status = prepare_failed(s, KVT_ERR_INVAL,
                                    "layout: not all of it is memory of the attached GPU");
    }
    if (status == KVTIER_OK)
        status = after_record(s, op, stream);
    (void)cuda->device.api.context_pop(&context);
    return status;
}

/* --- jobs ----------------------------------------------------------------------------------- */

static struct kvt_lane *lane_take(struct lanes *lanes)
{
    pthread_mutex_lock(&lanes->lock);
    while (lanes->n_free == 0)
        pthread_cond_wait(&lanes->cond, &lanes->lock);
    struct kvt_lane *lane = lanes->free[--lanes->n_free];
    pthread_mutex_unlock(&lanes->lock);
    return lane;
}

static void lane_give(struct lanes *lanes, struct kvt_lane *lane)
{
    pthread_mutex_lock(&lanes->lock);
    lanes->free[lanes->n_free++] = lane;
    pthread_cond_signal(&lanes->cond);
    pthread_mutex_unlock(&lanes->lock);
}

static int32_t item_queue(struct kvt_worker *w, struct kvt_lane *lane,
                          const struct kvt_copy_stop *stop, uint32_t index)
{
    struct kvt_session *s = w->session;
    struct kvt_client_op *op = w->op;
    const struct kvt_client_item *item = &op->items[index];
    if (!kvt_arena_populate(&s->arena, item->offset, op->chunk_bytes))
        return KVT_ERR_IO;
    enum kvt_status status =
        kvt_lane_copy(lane, &op->layouts[index], item->offset, op->chunk_bytes, stop);
    if (status != KVT_ERR_CANCELED)
        return status;
    return atomic_load_explicit(&op->stop, memory_order_relaxed) != 0 ? KVT_ITEM_CUT
                                                                      : KVT_ERR_TIMEOUT;
}

/* All items of the job; the lane is somebody else's while their checksums are made. */
static enum kvt_status items_copy(struct kvt_worker *w, const struct kvt_copy_stop *stop,
                                  struct kvt_error *err)
{
    struct kvt_cuda *cuda = w->session->cuda;
    struct lanes *lanes = &cuda->lanes[w->kind == KVT_WORK_CUDA_LOAD ? DIR_LOAD : DIR_STORE];
    struct kvt_lane *lane = lane_take(lanes);
    kvt_lane_begin(lane, w->op->after);
    for (uint32_t i = 0; i < w->n; i++)
        w->results[i] = item_queue(w, lane, stop, w->items[i]);
    enum kvt_status status = kvt_lane_end(lane);
    *err = lane->error;
    lane_give(lanes, lane);
    return status;
}

/* Its bytes are in place. */
static int32_t item_finish(struct kvt_worker *w, const struct kvt_copy_stop *stop, uint32_t index,
                           uint64_t *sums)
{
    struct kvt_session *s = w->session;
    struct kvt_client_op *op = w->op;
    const struct kvt_client_item *item = &op->items[index];
    /* Later than this the slot may have held something else while it was copied. */
    if (op->type == KVTIER_LOAD)
        return kvt_now_ns() < item->lease_deadline_ns ? KVT_OK : KVT_ERR_EXPIRED;
    return s->copy->hash(kvt_arena_addr(&s->arena, item->offset, op->chunk_bytes), op->n_segments,
                         op->chunk_bytes / op->n_segments, sums, stop)
               ? KVT_OK
               : KVT_ITEM_CUT;
}

void kvt_cuda_job(struct kvt_worker *w, uint64_t *sums)
{
    struct kvt_session *s = w->session;
    struct kvt_client_op *op = w->op;
    struct kvt_copy_stop stop = {&op->stop, op->type == KVTIER_LOAD ? op->deadline_ns : UINT64_MAX,
                                 w->yield_ns};
    struct kvt_error err;
    enum kvt_status status = items_copy(w, &stop, &err);
    for (uint32_t i = 0; i < w->n; i++) {
        if (w->results[i] == KVT_OK)
            w->results[i] = status != KVT_OK ? (int32_t)KVT_ERR_IO
                                             : item_finish(w, &stop, w->items[i],
                                                           sums + (size_t)i * op->n_segments);
    }
    if (status != KVT_OK || kvt_pin_error_take(&s->cuda->pin, &err)) {
        pthread_mutex_lock(&s->lock);
        s->error = err;
        pthread_mutex_unlock(&s->lock);
    }
}

/* --- life ----------------------------------------------------------------------------------- */

void kvt_cuda_mapped_locked(struct kvt_session *s)
{
    kvt_pin_start(&s->cuda->pin, &s->arena, s->slab_bytes);
}

void kvt_cuda_unmap(struct kvt_session *s)
{
    kvt_pin_stop(&s->cuda->pin);
}

static void *copier_main(void *arg)
{
    struct kvt_worker *w = arg;
    struct kvt_error err;
    /* A thread without context has its calls refused, and its items end with that error. */
    if (kvt_cuda_thread_init(&w->session->cuda->device, &err) != KVT_OK) {
        pthread_mutex_lock(&w->session->lock);
        w->session->error = err;
        pthread_mutex_unlock(&w->session->lock);
    }
    kvt_copier_loop(w);
    return NULL;
}

static void lanes_fini(struct kvt_cuda *cuda)
{
    struct CUctx_st *context;
    /* Where the driver is gone, its memory is too. */
    bool has_driver = cuda->device.api.context_push(cuda->device.context) == KVT_CU_OK;
    for (unsigned dir = 0; dir < DIR_N; dir++) {
        struct lanes *lanes = &cuda->lanes[dir];
        for (uint32_t i = 0; has_driver && i < lanes->n; i++)
            kvt_lane_fini(&lanes->all[i]);
        pthread_cond_destroy(&lanes->cond);
        pthread_mutex_destroy(&lanes->lock);
    }
    if (has_driver)
        (void)cuda->device.api.context_pop(&context);
}

/*
 * Who stores makes checksums when the copy is over, at a few GB/s per thread, so beside the threads
 * that wait for copies many more are at work. By what the process may run on, and not all of it.
 */
static uint32_t store_threads(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) != 0)
        return KVT_CUDA_THREADS_MAX; /* more CPUs than the set has room for */
    return KVT_MIN(LANES + (uint32_t)CPU_COUNT(&set) * 3 / 4, KVT_CUDA_THREADS_MAX);
}

static enum kvt_status lanes_init(struct kvt_session *s, struct kvt_cuda *cuda,
                                  struct kvt_error *err)
{
    struct CUctx_st *context;
    enum kvt_status status = KVT_OK;
    for (unsigned dir = 0; dir < DIR_N; dir++) {
        pthread_mutex_init(&cuda->lanes[dir].lock, NULL);
        pthread_cond_init(&cuda->lanes[dir].cond, NULL);
    }
    unsigned result = cuda->device.api.context_push(cuda->device.context);
    if (result != KVT_CU_OK)
        return kvt_cuda_error(&cuda->device.api, result, "cannot enter the context", err);
    for (unsigned dir = 0; dir < DIR_N; dir++) {
        struct lanes *lanes = &cuda->lanes[dir];
        uint32_t n = KVT_MIN(cuda->n_threads[dir], LANES);
        for (; lanes->n < n && status == KVT_OK; lanes->n += status == KVT_OK) {
            struct kvt_lane *lane = lanes->free[lanes->n] = &lanes->all[lanes->n];
            status =
                kvt_lane_init(lane, &cuda->device, &cuda->pin, &s->arena, dir == DIR_LOAD, err);
        }
        lanes->n_free = lanes->n;
    }
    (void)cuda->device.api.context_pop(&context);
    return status;
}

static enum kvt_status cuda_open(struct kvt_session *s, const kvtier_cuda *options,
                                 struct kvt_cuda **cuda_p, struct kvt_error *err)
{
    struct kvt_cuda *cuda = calloc(1, sizeof(*cuda));
    if (cuda == NULL) {
        kvt_error_set(err, KVT_ERR_NOMEM, "cuda: no memory");
        return KVT_ERR_NOMEM;
    }
    cuda->n_threads[DIR_LOAD] = options->n_threads != 0 ? options->n_threads : LANES;
    cuda->n_threads[DIR_STORE] = options->n_threads != 0 ? options->n_threads : store_threads();
    enum kvt_status status = kvt_cuda_device_open(&cuda->device, options, err);
    if (status != KVT_OK)
        goto err_free;
    status = kvt_pin_init(&cuda->pin, &cuda->device, err);
    if (status != KVT_OK)
        goto err_close_device;
    status = lanes_init(s, cuda, err);
    if (status != KVT_OK)
        goto err_fini_lanes;
    *cuda_p = cuda;
    return KVT_OK;
err_fini_lanes:
    lanes_fini(cuda);
    kvt_pin_fini(&cuda->pin);
err_close_device:
    kvt_cuda_device_close(&cuda->device);
err_free:
    free(cuda);
    return status;
}

static bool copier_start(struct kvt_session *s, enum kvt_work_kind kind)
{
    s->workers[s->n_workers].kind = kind;
    if (!kvt_worker_start(s, s->n_workers, copier_main, "kvtier-cuda"))
        return false;
    s->n_workers++;
    return true;
}

/* Threads that cannot be had leave fewer; without one for each direction ops would never end. */
static enum kvt_status cuda_publish(struct kvt_session *s, struct kvt_cuda *cuda,
                                    struct kvt_error *err)
{
    static const enum kvt_work_kind kinds[DIR_N] = {KVT_WORK_CUDA_LOAD, KVT_WORK_CUDA_STORE};
    uint32_t n[DIR_N] = {0};
    pthread_mutex_lock(&s->lock);
    /* Threads end with the session, so what they use stays as long. */
    s->cuda = cuda;
    for (uint32_t i = 0; i < KVT_CUDA_THREADS_MAX; i++) {
        for (unsigned dir = 0; dir < DIR_N; dir++)
            n[dir] += i < cuda->n_threads[dir] && copier_start(s, kinds[dir]);
    }
    cuda->usable = n[DIR_LOAD] > 0 && n[DIR_STORE] > 0;
    if (s->data.state == KVT_CONN_READY)
        kvt_cuda_mapped_locked(s);
    pthread_mutex_unlock(&s->lock);
    return cuda->usable
               ? KVT_OK
               : kvt_error_set(err, KVT_ERR_NOMEM, "cuda: cannot start threads; check ulimit -u");
}

int kvt_cuda_attach(kvt_session *s, const kvtier_cuda *options)
{
    struct kvt_cuda *cuda = NULL;
    struct kvt_error err = {.status = KVT_OK};
    if (s == NULL || options == NULL || options->size < sizeof(*options) ||
        options->reserved != 0 || options->n_threads > KVT_CUDA_THREADS_MAX || options->device < 0)
        return KVTIER_ERR_INVAL;
    if (*s->is_parent == 0)
        return KVTIER_ERR_UNREACH;
    pthread_mutex_lock(&s->lock);
    bool is_first = !s->cuda_begun;
    s->cuda_begun = true;
    pthread_mutex_unlock(&s->lock);
    if (!is_first)
        return prepare_failed(s, KVT_ERR_INVAL, "cuda: the session is attached already");
    enum kvt_status status = cuda_open(s, options, &cuda, &err);
    if (status == KVT_OK)
        status = cuda_publish(s, cuda, &err);
    if (status == KVT_OK)
        return KVTIER_OK;
    pthread_mutex_lock(&s->lock);
    s->cuda_begun = s->cuda != NULL;
    pthread_mutex_unlock(&s->lock);
    return prepare_failed(s, status, err.msg);
}

void kvt_cuda_free(struct kvt_session *s, bool is_child)
{
    struct kvt_cuda *cuda = s->cuda;
    struct CUctx_st *context;
    /* A child of fork() has no CUDA; its copy of what is ours is all that it can give back. */
    if (!is_child) {
        kvt_pin_fini(&cuda->pin);
        if (cuda->device.api.context_push(cuda->device.context) == KVT_CU_OK) {
            for (uint32_t i = 0; i < s->n_slots; i++) {
                if (s->slots[i].after != NULL)
                    (void)cuda->device.api.event_destroy(s->slots[i].after);
            }
            (void)cuda->device.api.context_pop(&context);
        }
        lanes_fini(cuda);
        kvt_cuda_device_close(&cuda->device);
    }
    free(cuda);
}

int kvt_cuda_stats(kvt_session *s, kvtier_cuda_stats *stats)
{
    if (s == NULL || stats == NULL || stats->size < sizeof(*stats))
        return KVTIER_ERR_INVAL;
    if (*s->is_parent == 0)
        return KVTIER_ERR_UNREACH;
    pthread_mutex_lock(&s->lock);
    struct kvt_cuda *cuda = s->cuda;
    pthread_mutex_unlock(&s->lock);
    if (cuda == NULL)
        return KVTIER_ERR_NOTSUP;
    stats->engine_bytes = atomic_load_explicit(&cuda->device.n_engine_bytes, memory_order_relaxed);
    stats->kernel_bytes = atomic_load_explicit(&cuda->device.n_kernel_bytes, memory_order_relaxed);
    stats->staged_bytes = atomic_load_explicit(&cuda->device.n_staged_bytes, memory_order_relaxed);
    stats->pinned_bytes = atomic_load_explicit(&cuda->pin.n_bytes, memory_order_relaxed);
    return KVTIER_OK;
}
