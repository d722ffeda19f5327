/* SPDX-License-Identifier: Apache-2.0 */
#include "replay.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "fill.h"
#include "kvt/interrupt.h"
#include "kvt/util.h"
#include "kvt/progress.h"
#include "samples.h"

#define BATCH_BYTES     (UINT64_C(16) << 20) /* of a batch's memory, one chunk at least */
#define DEPTH_MAX       16
#define CONNECT_MS      10000
#define ANSWER_MS       60000 /* past the longest deadline: an answer this late never comes */
#define CANCEL_MS       5000
#define LEASE_MS        60000
#define LOOKUPS_MAX     (KVT_TRACE_REQUEST_BLOCKS_MAX / KVTIER_BATCH_MAX + 1)
#define LOAD_TIMEOUT_NS UINT64_C(30000000000)

struct replay {
    const struct kvt_replay_config *config;
    uint32_t n_batch_chunks;
    size_t n_keys_max; /* of a prompt */
    uint64_t start_ns;
    float *lookup_us, *load_us; /* per request; load -1: none */
    atomic_size_t next;         /* request to be dealt */
    atomic_size_t n_done;
    atomic_uint_fast64_t n_blocks, n_hits, bytes_loaded, bytes_stored; /* for the progress line */
    pthread_mutex_t lock; /* guards what follows; taken under no other */
    pthread_cond_t ended; /* n_running fell */
    unsigned n_running;
    struct kvt_replay_result total;
};

/* Chunks on their way in or out, with the memory they go to or come from. */
struct batch {
    uint64_t op;
    uint32_t first, n; /* chunks of the prompt */
    bool busy;
    uint8_t *memory; /* layer-major, as an engine's paged KV memory is */
    int32_t *statuses;
};

struct client {
    struct replay *replay;
    pthread_t thread;
    kvt_session *session;
    int ns;
    uint8_t *keys;  /* of the present prompt */
    uint8_t *where; /* likewise */
    int32_t *item_statuses;
    kvtier_layout *layouts;
    struct batch batches[DEPTH_MAX];
    struct kvt_replay_result result;
    bool lost; /* an op could not be ended: the session is not usable any more */
};

void kvt_geometry_complete(struct kvt_geometry *g)
{
    if (g->n_layers == 0) {
        /* A layer of less than a page would only measure the loop around memcpy. */
        g->n_layers = 32;
        while (g->n_layers > 1 &&
               (g->chunk_bytes % g->n_layers != 0 || g->chunk_bytes / g->n_layers < KVT_PAGE_BYTES))
            g->n_layers /= 2;
    }
    if (g->n_kv_heads == 0)
        g->n_kv_heads = 1;
    if (g->dtype_bytes == 0)
        g->dtype_bytes = 1;
    if (g->tokens_per_chunk == 0)
        g->tokens_per_chunk = 512;
    if (g->head_dim == 0)
        g->head_dim = 1;
}

int kvt_geometry_open(const struct kvt_geometry *g, kvt_session *session)
{
    char dtype[16];
    snprintf(dtype, sizeof(dtype), "u%u", g->dtype_bytes * 8);
    kvtier_namespace ns = {
        .size = sizeof(ns),
        .model = "kvbench",
        .layout = "layer-major",
        .hash_algo = "xxh3",
        .dtype = dtype,
        .n_layers = g->n_layers,
        .n_kv_heads = g->n_kv_heads,
        .head_dim = g->head_dim,
        .tokens_per_chunk = g->tokens_per_chunk,
        .tp_size = 1,
        .pp_size = 1,
        .n_segments = g->n_layers,
        .chunk_bytes = g->chunk_bytes,
    };
    return kvt_namespace(session, &ns);
}

/* --- one client ------------------------------------------------------------------------------ */

static void client_error(struct client *client, uint64_t n, const char *what, int status)
{
    if (client->result.n_errors == 0) {
        char last[128] = "";
        kvt_last_error(client->session, last, sizeof(last));
        snprintf(client->result.first_error, sizeof(client->result.first_error), "%s: %s%s%s", what,
                 kvt_strerror(status), last[0] != '\0' ? "; " : "", last);
    }
    client->result.n_errors += n;
}

/* The next completion, or false: none comes any more and every op was ended. */
static bool client_wait(struct client *client, kvtier_completion *completion)
{
    uint64_t end_ns = kvt_now_ns() + ANSWER_MS * UINT64_C(1000000);
    while (!kvt_interrupted() && kvt_now_ns() < end_ns)
        if (kvt_wait(client->session, completion, 1, 200) == 1)
            return true;
    client->lost = true;
    return false;
}

/* After a lost wait: nothing may touch our memory when it is freed. */
static void client_cancel_all(struct client *client)
{
    for (unsigned i = 0; i < client->replay->config->depth; i++)
        if (client->batches[i].busy)
            kvt_cancel(client->session, client->batches[i].op);
}

static void batch_layouts(struct client *client, struct batch *batch)
{
    const struct kvt_geometry *g = &client->replay->config->geometry;
    uint64_t layer_bytes = g->chunk_bytes / g->n_layers;
    uint64_t layer_stride = layer_bytes * client->replay->n_batch_chunks;
    for (uint32_t i = 0; i < batch->n; i++)
        client->layouts[i] = (kvtier_layout){.base = batch->memory + i * layer_bytes,
                                             .n_outer = g->n_layers,
                                             .n_inner = 1,
                                             .outer_stride = (int64_t)layer_stride,
                                             .bytes = layer_bytes};
}

static void batch_fill(struct client *client, struct batch *batch)
{
    const struct kvt_geometry *g = &client->replay->config->geometry;
    uint64_t layer_bytes = g->chunk_bytes / g->n_layers;
    for (uint32_t i = 0; i < batch->n; i++) {
        struct kvt_fill fill;
        kvt_fill_init(&fill, client->keys + (size_t)(batch->first + i) * KVTIER_KEY_BYTES);
        for (uint32_t layer = 0; layer < g->n_layers; layer++)
            kvt_fill_write(&fill, layer * layer_bytes,
                           batch->memory +
                               ((uint64_t)layer * client->replay->n_batch_chunks + i) * layer_bytes,
                           layer_bytes);
    }
}

static void batch_check(struct client *client, struct batch *batch)
{
    const struct kvt_geometry *g = &client->replay->config->geometry;
    uint64_t layer_bytes = g->chunk_bytes / g->n_layers;
    for (uint32_t i = 0; i < batch->n; i++) {
        if (batch->statuses[i] != KVTIER_OK)
            continue;
        struct kvt_fill fill;
        kvt_fill_init(&fill, client->keys + (size_t)(batch->first + i) * KVTIER_KEY_BYTES);
        for (uint32_t layer = 0; layer < g->n_layers; layer++)
            client->result.bytes_wrong += kvt_fill_check(
                &fill, layer * layer_bytes,
                batch->memory +
                    ((uint64_t)layer * client->replay->n_batch_chunks + i) * layer_bytes,
                layer_bytes);
        client->result.bytes_loaded += g->chunk_bytes;
        client->result.bytes_verified += g->chunk_bytes;
    }
}

static int batch_submit(struct client *client, struct batch *batch, int type)
{
    const struct kvt_replay_config *config = client->replay->config;
    batch_layouts(client, batch);
    const uint8_t *keys = client->keys + (size_t)batch->first * KVTIER_KEY_BYTES;
    if (type == KVTIER_LOAD)
        return kvt_load(client->session, client->ns, keys, batch->n, client->layouts, 0,
                        kvt_now_ns() + LOAD_TIMEOUT_NS, batch->statuses, batch, &batch->op);
    batch_fill(client, batch);
    uint64_t deadline_ns = config->store_wait_ns > 0 ? kvt_now_ns() + config->store_wait_ns : 0;
    /* The chunk before the batch is its parent. */
    bool parent = batch->first > 0;
    return kvt_store(client->session, client->ns, keys - (parent ? KVTIER_KEY_BYTES : 0),
                     batch->n + parent, client->layouts, parent ? KVTIER_PARENT : 0, deadline_ns,
                     batch->statuses, batch, &batch->op);
}

static void batch_done(struct client *client, struct batch *batch, int type, int status)
{
    for (uint32_t i = 0; status != KVTIER_OK && i < batch->n; i++)
        batch->statuses[i] = status;
    memcpy(client->item_statuses + batch->first, batch->statuses,
           batch->n * sizeof(*batch->statuses));
    if (type == KVTIER_LOAD) {
        batch_check(client, batch);
        atomic_fetch_add_explicit(&client->replay->bytes_loaded,
                                  batch->n * client->replay->config->geometry.chunk_bytes,
                                  memory_order_relaxed);
    }
    for (uint32_t i = 0; i < batch->n; i++) {
        int s = batch->statuses[i];
        if (type == KVTIER_LOAD) {
            if (s != KVTIER_OK) /* it was leased: nothing may have happened to it */
                client_error(client, 1, "load", s);
            continue;
        }
        switch (s) {
        case KVTIER_OK:
            client->result.n_stored++;
            break;
        case KVTIER_ERR_EXISTS:
            client->result.n_exists++;
            break;
        case KVTIER_ERR_BUSY:
        case KVTIER_ERR_NOSPACE:
        case KVTIER_ERR_AGAIN:
            client->result.n_dropped++;
            break;
        default:
            client_error(client, 1, "store", s);
        }
    }
}

/* Moves chunks [from, to) of the prompt, depth batches at a time. */
static void client_move(struct client *client, int type, uint32_t from, uint32_t to)
{
    struct replay *replay = client->replay;
    uint32_t next = from;
    unsigned n_busy = 0;
    for (;;) {
        for (unsigned i = 0; i < replay->config->depth && next < to; i++) {
            struct batch *batch = &client->batches[i];
            if (batch->busy)
                continue;
            batch->first = next;
            batch->n = KVT_MIN(to - next, replay->n_batch_chunks);
            next += batch->n;
            int status = batch_submit(client, batch, type);
            if (status == KVTIER_OK) {
                batch->busy = true;
                n_busy++;
            } else {
                batch_done(client, batch, type, status);
            }
        }
        if (n_busy == 0)
            return;
        kvtier_completion completion;
        if (!client_wait(client, &completion)) {
            client_cancel_all(client);
            if (!kvt_interrupted())
                client_error(client, 1, "answer", KVTIER_ERR_TIMEOUT);
            return;
        }
        struct batch *batch = completion.user;
        batch->busy = false;
        n_busy--;
        batch_done(client, batch, type, completion.status);
    }
}

/* Length of the prefix that is held, with leases on it. */
static uint32_t client_lookup(struct client *client, uint32_t n, uint64_t *leases,
                              unsigned *n_leases_p)
{
    uint32_t n_hit = 0;
    *n_leases_p = 0;
    while (n_hit < n) {
        uint32_t n_ask = KVT_MIN(n - n_hit, (uint32_t)KVTIER_BATCH_MAX);
        uint64_t op;
        kvtier_completion completion;
        int status =
            kvt_lookup(client->session, client->ns, client->keys + (size_t)n_hit * KVTIER_KEY_BYTES,
                       n_ask, KVTIER_LEASE, LEASE_MS, client->where + n_hit, NULL, &op);
        if (status == KVTIER_OK && !client_wait(client, &completion)) {
            kvt_cancel(client->session, op);
            if (!kvt_interrupted())
                client_error(client, 1, "lookup", KVTIER_ERR_TIMEOUT);
            return n_hit;
        }
        if (status == KVTIER_OK)
            status = completion.status;
        if (status != KVTIER_OK) {
            client_error(client, 1, "lookup", status);
            return n_hit;
        }
        if (completion.lease != 0)
            leases[(*n_leases_p)++] = completion.lease;
        n_hit += completion.n_ok;
        if (completion.n_ok < n_ask)
            break;
    }
    return n_hit;
}

static void client_request(struct client *client, size_t index)
{
    struct replay *replay = client->replay;
    const struct kvt_trace *trace = replay->config->trace;
    const struct kvt_trace_request *request = &trace->requests[index];
    uint64_t leases[LOOKUPS_MAX];
    unsigned n_leases;
    for (uint32_t i = 0; i < request->n_blocks; i++)
        kvt_fill_key(trace->hash_ids[trace->blocks[request->first_block + i]], replay->config->seed,
                     client->keys + (size_t)i * KVTIER_KEY_BYTES);

    uint64_t start_ns = kvt_now_ns();
    uint32_t n_held = client_lookup(client, request->n_blocks, leases, &n_leases);
    uint64_t looked_ns = kvt_now_ns();
    uint32_t n_hit = 0;
    if (!client->lost)
        client_move(client, KVTIER_LOAD, 0, n_held);
    uint64_t loaded_ns = kvt_now_ns();
    if (client->lost)
        return;
    while (n_hit < n_held && client->item_statuses[n_hit] == KVTIER_OK) {
        if (client->where[n_hit] & 1)
            client->result.n_hits_host++;
        else
            client->result.n_hits_nvme++;
        n_hit++;
    }
    for (unsigned i = 0; i < n_leases; i++) {
        int status = kvt_release(client->session, leases[i], CANCEL_MS);
        if (status != KVTIER_OK)
            client_error(client, 1, "release", status);
    }
    client_move(client, KVTIER_STORE, n_hit, request->n_blocks);
    if (client->lost)
        return;
    client->result.n_requests++;
    client->result.n_blocks += request->n_blocks;
    replay->lookup_us[index] = (float)(looked_ns - start_ns) / 1e3f;
    replay->load_us[index] = n_hit > 0 ? (float)(loaded_ns - looked_ns) / 1e3f : -1.0f;
    atomic_fetch_add_explicit(&replay->n_blocks, request->n_blocks, memory_order_relaxed);
    atomic_fetch_add_explicit(&replay->n_hits, n_hit, memory_order_relaxed);
    atomic_fetch_add_explicit(&replay->n_done, 1, memory_order_relaxed);
}

/* Sleeps until a request is due; an interrupt ends it early. */
static void wait_due(const struct replay *replay, size_t index)
{
    const struct kvt_trace_request *requests = replay->config->trace->requests;
    double trace_ms = (double)(requests[index].timestamp_ms - requests[0].timestamp_ms);
    uint64_t due_ns = replay->start_ns + (uint64_t)(trace_ms * 1e6 / replay->config->time_scale);
    for (uint64_t now_ns = kvt_now_ns(); now_ns < due_ns && !kvt_interrupted();
         now_ns = kvt_now_ns()) {
        uint64_t left_ns = KVT_MIN(due_ns - now_ns, UINT64_C(100000000));
        nanosleep(&(struct timespec){.tv_nsec = (long)left_ns}, NULL);
    }
}

static void *client_main(void *arg)
{
    struct client *client = arg;
    struct replay *replay = client->replay;
    while (!client->lost && !kvt_interrupted()) {
        size_t index = atomic_fetch_add(&replay->next, 1);
        if (index >= replay->config->trace->n_requests)
            break;
        if (replay->config->time_scale > 0)
            wait_due(replay, index);
        client_request(client, index);
    }
    pthread_mutex_lock(&replay->lock);
    replay->n_running--;
    pthread_cond_signal(&replay->ended);
    pthread_mutex_unlock(&replay->lock);
    return NULL;
}

static uint64_t batch_memory_bytes(const struct replay *replay)
{
    return replay->n_batch_chunks * replay->config->geometry.chunk_bytes;
}

static enum kvt_status client_open(struct client *client, struct replay *replay,
                                   struct kvt_error *err)
{
    const struct kvt_replay_config *config = replay->config;
    client->replay = replay;
    client->keys = calloc(replay->n_keys_max + 1, KVTIER_KEY_BYTES);
    client->where = calloc(replay->n_keys_max + 1, 1);
    client->item_statuses = calloc(replay->n_keys_max + 1, sizeof(*client->item_statuses));
    client->layouts = calloc(replay->n_batch_chunks, sizeof(*client->layouts));
    bool memory = client->keys != NULL && client->where != NULL && client->item_statuses != NULL &&
                  client->layouts != NULL;
    for (unsigned i = 0; memory && i < config->depth; i++) {
        client->batches[i].memory = kvt_big_calloc(batch_memory_bytes(replay));
        client->batches[i].statuses =
            calloc(replay->n_batch_chunks, sizeof(*client->batches[i].statuses));
        memory = client->batches[i].memory != NULL && client->batches[i].statuses != NULL;
    }
    kvtier_options options = {.size = sizeof(options),
                              .socket_path = config->socket,
                              .client_name = "kvbench",
                              .n_copy_threads = config->n_copy_threads,
                              .spin_us = UINT32_MAX};
    if (!memory || kvt_open(&options, &client->session) != KVTIER_OK)
        return kvt_error_set(err, KVT_ERR_NOMEM, "replay: out of memory for a client");
    client->ns = kvt_geometry_open(&config->geometry, client->session);
    int status = client->ns < 0 ? client->ns : kvt_connect_wait(client->session, CONNECT_MS);
    if (status != KVTIER_OK) {
        char last[160] = "";
        kvt_last_error(client->session, last, sizeof(last));
        return kvt_error_set(err, KVT_ERR_UNREACH, "replay: cannot use the agent at %.60s: %s; %s",
                             config->socket, kvt_strerror(status), last);
    }
    return KVT_OK;
}

static void client_close(struct client *client)
{
    if (client->session != NULL)
        kvt_close(client->session);
    for (unsigned i = 0; i < DEPTH_MAX; i++) {
        if (client->batches[i].memory != NULL)
            kvt_big_free(client->batches[i].memory, batch_memory_bytes(client->replay));
        free(client->batches[i].statuses);
    }
    free(client->layouts);
    free(client->item_statuses);
    free(client->where);
    free(client->keys);
}

/* --- all clients ----------------------------------------------------------------------------- */

static void result_add(struct kvt_replay_result *total, const struct kvt_replay_result *r)
{
    if (total->n_errors == 0 && r->n_errors > 0)
        memcpy(total->first_error, r->first_error, sizeof(total->first_error));
    total->n_requests += r->n_requests;
    total->n_blocks += r->n_blocks;
    total->n_hits_host += r->n_hits_host;
    total->n_hits_nvme += r->n_hits_nvme;
    total->bytes_loaded += r->bytes_loaded;
    total->bytes_verified += r->bytes_verified;
    total->bytes_wrong += r->bytes_wrong;
    total->n_stored += r->n_stored;
    total->n_exists += r->n_exists;
    total->n_dropped += r->n_dropped;
    total->n_errors += r->n_errors;
}

static void progress_detail(struct replay *replay, char *text, size_t bytes)
{
    double seconds = (double)(kvt_now_ns() - replay->start_ns) / 1e9;
    uint64_t n_blocks = atomic_load(&replay->n_blocks);
    snprintf(text, bytes, "%.0f requests/s, hit ratio %.3f, %.2f GB/s loaded",
             (double)atomic_load(&replay->n_done) / seconds,
             n_blocks > 0 ? (double)atomic_load(&replay->n_hits) / (double)n_blocks : 0.0,
             (double)atomic_load(&replay->bytes_loaded) / seconds / 1e9);
}

/* Until the last client has ended, showing how far they are. */
static void watch(struct replay *replay)
{
    struct kvt_progress progress;
    char detail[128];
    kvt_progress_start(&progress, "replay", replay->config->trace->n_requests);
    pthread_mutex_lock(&replay->lock);
    while (replay->n_running > 0) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += 100000000;
        if (until.tv_nsec >= 1000000000) {
            until.tv_nsec -= 1000000000;
            until.tv_sec++;
        }
        pthread_cond_timedwait(&replay->ended, &replay->lock, &until);
        progress_detail(replay, detail, sizeof(detail));
        kvt_progress_show(&progress, atomic_load(&replay->n_done), detail);
    }
    pthread_mutex_unlock(&replay->lock);
    progress_detail(replay, detail, sizeof(detail));
    kvt_progress_end(&progress, atomic_load(&replay->n_done), detail);
}

static void quantiles(struct replay *replay)
{
    size_t n_lookups = 0, n_loads = 0;
    for (size_t i = 0; i < replay->config->trace->n_requests; i++) {
        if (replay->lookup_us[i] > 0)
            replay->lookup_us[n_lookups++] = replay->lookup_us[i];
        if (replay->load_us[i] > 0)
            replay->load_us[n_loads++] = replay->load_us[i];
    }
    replay->total.lookup_p50_us = kvt_samples_quantile(replay->lookup_us, n_lookups, 0.5);
    replay->total.lookup_p99_us = kvt_samples_quantile(replay->lookup_us, n_lookups, 0.99);
    replay->total.load_p50_us = kvt_samples_quantile(replay->load_us, n_loads, 0.5);
    replay->total.load_p99_us = kvt_samples_quantile(replay->load_us, n_loads, 0.99);
}

enum kvt_status kvt_replay_run(const struct kvt_replay_config *config,
                               struct kvt_replay_result *result_p, struct kvt_error *err)
{
    enum kvt_status status = KVT_ERR_NOMEM;
    if (config->depth < 1 || config->depth > DEPTH_MAX || config->n_clients < 1 ||
        config->trace->n_requests == 0) {
        kvt_error_set(err, KVT_ERR_INVAL,
                      "replay: takes a request, a client, 1 to %d batches in flight", DEPTH_MAX);
        return KVT_ERR_INVAL;
    }
    struct replay replay = {.config = config};
    pthread_mutex_init(&replay.lock, NULL);
    pthread_cond_init(&replay.ended, NULL);
    replay.n_batch_chunks =
        (uint32_t)KVT_MAX(UINT64_C(1), KVT_MIN(BATCH_BYTES / config->geometry.chunk_bytes,
                                               (uint64_t)KVTIER_BATCH_MAX - 1));
    for (size_t i = 0; i < config->trace->n_requests; i++)
        replay.n_keys_max = KVT_MAX(replay.n_keys_max, (size_t)config->trace->requests[i].n_blocks);
    replay.lookup_us = calloc(config->trace->n_requests + 1, sizeof(*replay.lookup_us));
    replay.load_us = calloc(config->trace->n_requests + 1, sizeof(*replay.load_us));
    struct client *clients = calloc(config->n_clients, sizeof(*clients));
    if (replay.lookup_us == NULL || replay.load_us == NULL || clients == NULL) {
        kvt_error_set(err, status, "replay: out of memory");
        goto out_free;
    }
    unsigned n_open = 0, n_started = 0;
    status = KVT_OK;
    while (n_open < config->n_clients && status == KVT_OK)
        status = client_open(&clients[n_open++], &replay, err);
    if (status != KVT_OK)
        goto out_close;

    replay.start_ns = kvt_now_ns();
    replay.n_running = config->n_clients;
    for (; n_started < config->n_clients; n_started++)
        if (pthread_create(&clients[n_started].thread, NULL, client_main, &clients[n_started]) != 0)
            break;
    if (n_started < config->n_clients) {
        pthread_mutex_lock(&replay.lock);
        replay.n_running -= config->n_clients - n_started;
        pthread_mutex_unlock(&replay.lock);
        atomic_store(&replay.next, config->trace->n_requests); /* those that run end soon */
        status =
            kvt_error_set(err, KVT_ERR_NOMEM, "replay: cannot start %u clients", config->n_clients);
    }
    watch(&replay);
    replay.total.seconds = (double)(kvt_now_ns() - replay.start_ns) / 1e9;
    for (unsigned i = 0; i < n_started; i++) {
        pthread_join(clients[i].thread, NULL);
        result_add(&replay.total, &clients[i].result);
    }
    quantiles(&replay);
    *result_p = replay.total;
out_close:
    for (unsigned i = 0; i < n_open; i++)
        client_close(&clients[i]);
out_free:
    free(clients);
    free(replay.load_us);
    free(replay.lookup_us);
    pthread_cond_destroy(&replay.ended);
    pthread_mutex_destroy(&replay.lock);
    return status;
}
