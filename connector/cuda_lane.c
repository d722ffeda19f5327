/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda_lane.h"

#include <string.h>

#include "kvt/util.h"

/* Memory of the host beside a plan's pieces: the arena, or the bounce buffer. */
struct host_side {
    char *addr;
    uint64_t offset; /* in the arena */
    bool is_arena;   /* registered in slices, which no copy may cross */
};

static enum kvt_status lane_check(struct kvt_lane *lane, unsigned result, const char *what)
{
    struct kvt_error err;
    if (result == KVT_CU_OK)
        return KVT_OK;
    enum kvt_status status = kvt_cuda_error(&lane->device->api, result, what, &err);
    if (!lane->failed)
        lane->error = err;
    lane->failed = true;
    return status;
}

static uint64_t host_reach(const struct kvt_lane *lane, const struct host_side *host, uint64_t at)
{
    return host->is_arena ? kvt_pin_reach(lane->pin, host->offset + at) : UINT64_MAX;
}

/* --- copy engines --------------------------------------------------------------------------- */

static bool has_batch(const struct kvt_lane *lane)
{
    const struct kvt_cuda_api *api = &lane->device->api;
    return (api->batch_v2 != NULL || api->batch != NULL) &&
           !atomic_load_explicit(&lane->device->batch_refused, memory_order_relaxed);
}

static enum kvt_status single_queue(struct kvt_lane *lane, char *host, uint64_t page,
                                    uint64_t bytes)
{
    const struct kvt_cuda_api *api = &lane->device->api;
    unsigned result = lane->is_load ? api->copy_in(page, host, bytes, lane->stream)
                                    : api->copy_out(host, page, bytes, lane->stream);
    return lane_check(lane, result, "cannot queue a copy");
}

/* One call per piece from here on. What the driver took before it refused is copied twice. */
static enum kvt_status batch_refused(struct kvt_lane *lane, size_t n)
{
    enum kvt_status status = KVT_OK;
    atomic_store_explicit(&lane->device->batch_refused, true, memory_order_relaxed);
    for (size_t i = 0; i < n && status == KVT_OK; i++) {
        kvt_cu_ptr host = lane->is_load ? lane->srcs[i] : lane->dsts[i];
        status = single_queue(lane, (char *)(uintptr_t)host, /* NOLINT: it was a pointer */
                              lane->is_load ? lane->dsts[i] : lane->srcs[i], lane->sizes[i]);
    }
    return status;
}

static enum kvt_status batch_flush(struct kvt_lane *lane)
{
    const struct kvt_cuda_api *api = &lane->device->api;
    struct kvt_cu_copy_attributes attributes = {.order = KVT_CU_COPY_ORDER_STREAM,
                                                .flags = KVT_CU_COPY_OVERLAP};
    size_t first = 0, fail_index;
    unsigned result;
    size_t n = lane->n_batch;

    lane->n_batch = 0;
    if (n == 0)
        return KVT_OK;
    if (api->batch_v2 != NULL)
        result = api->batch_v2(lane->dsts, lane->srcs, lane->sizes, n, &attributes, &first, 1,
                               lane->stream);
    else
        result = api->batch(lane->dsts, lane->srcs, lane->sizes, n, &attributes, &first, 1,
                            &fail_index, lane->stream);
    if (result == KVT_CU_NOT_SUPPORTED || result == KVT_CU_INVALID_VALUE)
        return batch_refused(lane, n);
    return lane_check(lane, result, "cannot queue a batch of copies");
}

static enum kvt_status piece_queue(struct kvt_lane *lane, char *host, uint64_t page, uint64_t bytes)
{
    if (!has_batch(lane))
        return single_queue(lane, host, page, bytes);
    lane->dsts[lane->n_batch] = lane->is_load ? page : (uintptr_t)host;
    lane->srcs[lane->n_batch] = lane->is_load ? (uintptr_t)host : page;
    lane->sizes[lane->n_batch] = bytes;
    return ++lane->n_batch == KVT_LANE_PIECES ? batch_flush(lane) : KVT_OK;
}

/* One piece; several copies where it crosses from one registration into the next. */
static enum kvt_status piece_copy(struct kvt_lane *lane, const struct host_side *host,
                                  const struct kvt_piece *piece)
{
    for (uint64_t done = 0; done < piece->bytes;) {
        uint64_t at = piece->offset + done;
        uint64_t n = KVT_MIN(piece->bytes - done, host_reach(lane, host, at));
        enum kvt_status status = piece_queue(lane, host->addr + at, piece->page + done, n);
        if (status != KVT_OK)
            return status;
        done += n;
    }
    return KVT_OK;
}

static enum kvt_status rows_copy(struct kvt_lane *lane, const struct host_side *host,
                                 const struct kvt_piece *first, const struct kvt_rows *rows)
{
    struct kvt_cu_copy_2d copy = {.width = first->bytes, .height = rows->n_rows};
    if (lane->is_load) {
        copy.src_type = KVT_CU_MEMORY_HOST;
        copy.src_host = host->addr + first->offset;
        copy.src_pitch = rows->chunk_pitch;
        copy.dst_type = KVT_CU_MEMORY_DEVICE;
        copy.dst_device = first->page;
        copy.dst_pitch = rows->page_pitch;
    } else {
        copy.src_type = KVT_CU_MEMORY_DEVICE;
        copy.src_device = first->page;
        copy.src_pitch = rows->page_pitch;
        copy.dst_type = KVT_CU_MEMORY_HOST;
        copy.dst_host = host->addr + first->offset;
        copy.dst_pitch = rows->chunk_pitch;
    }
    return lane_check(lane, lane->device->api.copy_2d(&copy, lane->stream),
                      "cannot queue a copy of rows");
}

/* Without the batch call each copy is a call of its own: rows at one distance go together. */
static enum kvt_status pieces_copy(struct kvt_lane *lane, const struct host_side *host)
{
    const struct kvt_plan *plan = &lane->plan;
    bool by_row = !has_batch(lane);
    enum kvt_status status = KVT_OK;

    for (uint32_t i = 0; i < plan->n && status == KVT_OK;) {
        const struct kvt_piece *piece = &plan->pieces[i];
        struct kvt_rows rows = {.n_rows = 1};
        if (by_row)
            rows = kvt_plan_rows(plan, i, lane->device->pitch_max);
        uint64_t span = (rows.n_rows - 1) * rows.chunk_pitch + piece->bytes;
        if (rows.n_rows > 1 && host_reach(lane, host, piece->offset) >= span) {
            status = rows_copy(lane, host, piece, &rows);
            i += rows.n_rows;
        } else {
            status = piece_copy(lane, host, piece);
            i++;
        }
    }
    if (status == KVT_OK)
        status = batch_flush(lane);
    lane->n_batch = 0;
    atomic_fetch_add_explicit(&lane->device->n_engine_bytes, plan->bytes, memory_order_relaxed);
    return status;
}

/* --- kernels -------------------------------------------------------------------------------- */

static enum kvt_status lane_wait(struct kvt_lane *lane)
{
    const struct kvt_cuda_api *api = &lane->device->api;
    enum kvt_status status =
        lane_check(lane, api->event_record(lane->event, lane->stream), "cannot record an event");
    if (status == KVT_OK)
        status = lane_check(lane, api->event_sync(lane->event), "copies failed");
    lane->n_table_used = 0;
    return status;
}

static enum kvt_status kernel_launch(struct kvt_lane *lane, const struct kvt_piece *table,
                                     uint32_t n)
{
    kvt_cu_ptr chunk = lane->stage, pieces = (uintptr_t)table;
    void *parameters[] = {&chunk, &pieces, &n};
    unsigned n_blocks =
        KVT_MIN((n * 32 + KVT_GATHER_THREADS - 1) / KVT_GATHER_THREADS, KVT_GATHER_BLOCKS);
    struct CUfunc_st *f = lane->is_load ? lane->device->scatter : lane->device->gather;
    return lane_check(lane,
                      lane->device->api.launch(f, n_blocks, 1, 1, KVT_GATHER_THREADS, 1, 1, 0,
                                               lane->stream, parameters, NULL),
                      "cannot launch a kernel");
}

/* Between stage and host: long copies, cut where registrations end. */
static enum kvt_status stage_copy(struct kvt_lane *lane, const struct host_side *host)
{
    const struct kvt_piece piece = {lane->stage, 0, lane->plan.bytes};
    enum kvt_status status = piece_copy(lane, host, &piece);
    return status == KVT_OK ? batch_flush(lane) : status;
}

/* The stage is free again when the next pass comes to it: both are on one stream. */
static enum kvt_status pieces_kernel(struct kvt_lane *lane, const struct host_side *host)
{
    enum kvt_status status = KVT_OK;
    uint64_t n_max = kvt_plan_cut_max(lane->plan.n, lane->plan.bytes);
    if (n_max > lane->n_table - lane->n_table_used)
        status = lane_wait(lane); /* kernels still read what stands there */
    if (status != KVT_OK)
        return status;
    struct kvt_piece *table = lane->table + lane->n_table_used;
    uint32_t n = kvt_plan_cut(&lane->plan, table);
    lane->n_table_used += n;
    if (lane->is_load) {
        status = stage_copy(lane, host);
        if (status == KVT_OK)
            status = kernel_launch(lane, table, n);
    } else {
        status = kernel_launch(lane, table, n);
        if (status == KVT_OK)
            status = stage_copy(lane, host);
    }
    lane->n_batch = 0;
    atomic_fetch_add_explicit(&lane->device->n_kernel_bytes, lane->plan.bytes,
                              memory_order_relaxed);
    return status;
}

/* --- a chunk -------------------------------------------------------------------------------- */

/* Plan the next runs, up to max_bytes of them. */
static void plan_fill(struct kvt_lane *lane, struct kvt_runs *runs, uint64_t max_bytes)
{
    kvt_plan_reset(&lane->plan);
    while (lane->plan.bytes < max_bytes) {
        struct kvt_runs before = *runs;
        char *addr;
        uint64_t n = kvt_runs_next(runs, max_bytes - lane->plan.bytes, &addr);
        if (!kvt_plan_add(&lane->plan, (uintptr_t)addr, lane->plan.bytes, n)) {
            *runs = before;
            return;
        }
    }
}

/* Copy what is planned. The chunk's side is the arena, or bounce memory and then the arena. */
static enum kvt_status pass_run(struct kvt_lane *lane, uint64_t offset, bool is_pinned,
                                bool by_kernel)
{
    char *slot = kvt_arena_addr(lane->arena, offset, lane->plan.bytes);
    struct host_side host = {
        .addr = is_pinned ? slot : lane->bounce, .offset = offset, .is_arena = is_pinned};
    enum kvt_status status;

    if (!is_pinned && lane->is_load)
        memcpy(lane->bounce, slot, lane->plan.bytes);
    status = by_kernel ? pieces_kernel(lane, &host) : pieces_copy(lane, &host);
    if (is_pinned)
        return status;
    atomic_fetch_add_explicit(&lane->device->n_staged_bytes, lane->plan.bytes,
                              memory_order_relaxed);
    /* The bounce memory is used again by the next pass, and for a store now. */
    if (status == KVT_OK)
        status = lane_wait(lane);
    if (status == KVT_OK && !lane->is_load)
        memcpy(slot, lane->bounce, lane->plan.bytes);
    return status;
}

static bool lane_stopped(const struct kvt_copy_stop *stop)
{
    return atomic_load_explicit(stop->flag, memory_order_relaxed) != 0 ||
           (stop->deadline_ns != UINT64_MAX && kvt_now_ns() > stop->deadline_ns);
}

enum kvt_status kvt_lane_copy(struct kvt_lane *lane, const kvtier_layout *layout, uint64_t offset,
                              uint64_t bytes, const struct kvt_copy_stop *stop)
{
    struct kvt_runs runs, from;
    bool is_pinned = kvt_pin_ready(lane->pin, offset, bytes);
    uint64_t max_bytes = is_pinned ? bytes : KVT_LANE_STAGE_BYTES;
    bool by_kernel;

    if (lane->failed)
        return KVT_ERR_IO;
    kvt_runs_init(&runs, layout);
    from = runs;
    plan_fill(lane, &runs, KVT_MIN(max_bytes, bytes));
    by_kernel = lane->stage != 0 && lane->plan.n > 1 &&
                kvt_plan_is_short(&lane->plan, lane->device->short_bytes);
    if (by_kernel) {
        max_bytes = KVT_LANE_STAGE_BYTES;
        runs = from;
        plan_fill(lane, &runs, KVT_MIN(max_bytes, bytes));
    }
    for (uint64_t done = 0;;) {
        if (lane_stopped(stop))
            return KVT_ERR_CANCELED;
        enum kvt_status status = pass_run(lane, offset + done, is_pinned, by_kernel);
        done += lane->plan.bytes;
        if (status != KVT_OK || done == bytes)
            return status;
        plan_fill(lane, &runs, KVT_MIN(max_bytes, bytes - done));
    }
}

void kvt_lane_begin(struct kvt_lane *lane, struct CUevent_st *after)
{
    lane->failed = false;
    lane->n_table_used = 0;
    if (after != NULL)
        (void)lane_check(lane, lane->device->api.stream_wait(lane->stream, after, 0),
                         "cannot wait for the engine's stream");
}

enum kvt_status kvt_lane_end(struct kvt_lane *lane)
{
    enum kvt_status status = lane_wait(lane);
    /* What went in before the call that failed may run still. */
    if (status != KVT_OK)
        (void)lane->device->api.stream_sync(lane->stream);
    return lane->failed ? lane->error.status : KVT_OK;
}

/* --- life ----------------------------------------------------------------------------------- */

enum kvt_status kvt_lane_init(struct kvt_lane *lane, struct kvt_cuda_device *device,
                              struct kvt_pin *pin, const struct kvt_arena *arena, bool is_load,
                              struct kvt_error *err)
{
    const struct kvt_cuda_api *api = &device->api;
    memset(lane, 0, sizeof(*lane));
    lane->device = device;
    lane->pin = pin;
    lane->arena = arena;
    lane->is_load = is_load;
    lane->n_table = (uint32_t)kvt_plan_cut_max(KVT_LANE_PIECES, KVT_LANE_STAGE_BYTES);
    lane->plan.n_max = KVT_LANE_PIECES;
    lane->plan.pieces = lane->pieces;
    unsigned result =
        api->stream_create(&lane->stream, KVT_CU_STREAM_NON_BLOCKING, device->priority);
    if (result == KVT_CU_OK)
        result = api->event_create(&lane->event,
                                   KVT_CU_EVENT_BLOCKING_SYNC | KVT_CU_EVENT_DISABLE_TIMING);
    if (result == KVT_CU_OK)
        result =
            api->host_alloc((void **)&lane->bounce, KVT_LANE_STAGE_BYTES, KVT_CU_HOST_PORTABLE);
    if (result == KVT_CU_OK)
        result = api->host_alloc((void **)&lane->table, lane->n_table * sizeof(*lane->table),
                                 KVT_CU_HOST_PORTABLE);
    if (result != KVT_CU_OK) {
        kvt_lane_fini(lane);
        return kvt_cuda_error(api, result, "cannot make a stream and its staging memory", err);
    }
    /* A GPU without room for the stage does without kernels. */
    if (device->gather != NULL && api->mem_alloc(&lane->stage, KVT_LANE_STAGE_BYTES) != KVT_CU_OK)
        lane->stage = 0;
    return KVT_OK;
}

void kvt_lane_fini(struct kvt_lane *lane)
{
    const struct kvt_cuda_api *api = &lane->device->api;
    if (lane->stage != 0)
        (void)api->mem_free(lane->stage);
    if (lane->table != NULL)
        (void)api->host_free(lane->table);
    if (lane->bounce != NULL)
        (void)api->host_free(lane->bounce);
    if (lane->event != NULL)
        (void)api->event_destroy(lane->event);
    if (lane->stream != NULL)
        (void)api->stream_destroy(lane->stream);
}
