/* SPDX-License-Identifier: Apache-2.0 */
#include "mover.h"

#include <stdlib.h>
#include <string.h>

#include "fill.h"
#include "kvt/interrupt.h"
#include "kvt/util.h"

#define CONNECT_MS 10000
#define ANSWER_MS  60000
#define WAIT_NS    UINT64_C(30000000000) /* for room, and for loads */

enum kvt_status kvt_mover_open(const char *socket, uint64_t object_bytes, uint32_t n_slots,
                               uint64_t seed, struct kvt_mover **mover_p, struct kvt_error *err)
{
    enum kvt_status status = KVT_ERR_NOMEM;
    struct kvt_mover *m = calloc(1, sizeof(*m));
    if (m == NULL)
        return kvt_error_set(err, status, "micro: out of memory");
    m->geometry.chunk_bytes = object_bytes;
    kvt_geometry_complete(&m->geometry);
    m->layer_bytes = object_bytes / m->geometry.n_layers;
    m->n_slots = n_slots;
    m->seed = seed;
    m->memory_bytes = object_bytes * n_slots;
    m->memory = kvt_big_calloc(m->memory_bytes);
    m->keys = calloc(n_slots, KVTIER_KEY_BYTES);
    m->layouts = calloc(n_slots, sizeof(*m->layouts));
    m->statuses = calloc(n_slots, sizeof(*m->statuses));
    m->where = calloc(n_slots, 1);
    if (m->memory == NULL || m->keys == NULL || m->layouts == NULL || m->statuses == NULL ||
        m->where == NULL) {
        kvt_error_set(err, status, "micro: out of memory");
        goto err_close;
    }
    memset(m->memory, 0x5a, m->memory_bytes);
    for (uint32_t i = 0; i < n_slots; i++)
        m->layouts[i] = (kvtier_layout){.base = kvt_mover_layer(m, i, 0),
                                        .n_outer = m->geometry.n_layers,
                                        .n_inner = 1,
                                        .outer_stride = (int64_t)(m->layer_bytes * n_slots),
                                        .bytes = m->layer_bytes};
    kvtier_options options = {.size = sizeof(options),
                              .socket_path = socket,
                              .client_name = "kvbench",
                              .spin_us = UINT32_MAX};
    if (kvt_open(&options, &m->session) != KVTIER_OK) {
        kvt_error_set(err, status, "micro: out of memory");
        goto err_close;
    }
    m->ns = kvt_geometry_open(&m->geometry, m->session);
    int connected = m->ns < 0 ? m->ns : kvt_connect_wait(m->session, CONNECT_MS);
    if (connected != KVTIER_OK) {
        char last[160] = "";
        kvt_last_error(m->session, last, sizeof(last));
        status = kvt_error_set(err, KVT_ERR_UNREACH, "micro: cannot use the agent at %.60s: %s; %s",
                               socket, kvt_strerror(connected), last);
        goto err_close;
    }
    *mover_p = m;
    return KVT_OK;
err_close:
    kvt_mover_close(m);
    return status;
}

void kvt_mover_close(struct kvt_mover *m)
{
    if (m == NULL)
        return;
    if (m->session != NULL)
        kvt_close(m->session);
    if (m->memory != NULL)
        kvt_big_free(m->memory, m->memory_bytes);
    free(m->where);
    free(m->statuses);
    free(m->layouts);
    free(m->keys);
    free(m);
}

void *kvt_mover_layer(const struct kvt_mover *m, uint32_t slot, uint32_t layer)
{
    return m->memory + ((uint64_t)layer * m->n_slots + slot) * m->layer_bytes;
}

void kvt_mover_assign(struct kvt_mover *m, uint32_t slot, uint64_t id, bool fill)
{
    uint8_t *key = m->keys + (size_t)slot * KVTIER_KEY_BYTES;
    kvt_fill_key(id, m->seed, key);
    if (!fill)
        return;
    struct kvt_fill bytes;
    kvt_fill_init(&bytes, key);
    for (uint32_t layer = 0; layer < m->geometry.n_layers; layer++)
        kvt_fill_write(&bytes, layer * m->layer_bytes, kvt_mover_layer(m, slot, layer),
                       m->layer_bytes);
}

uint64_t kvt_mover_check(const struct kvt_mover *m, uint32_t n)
{
    uint64_t n_wrong = 0;
    for (uint32_t slot = 0; slot < n; slot++) {
        struct kvt_fill bytes;
        kvt_fill_init(&bytes, m->keys + (size_t)slot * KVTIER_KEY_BYTES);
        for (uint32_t layer = 0; layer < m->geometry.n_layers; layer++)
            n_wrong += kvt_fill_check(&bytes, layer * m->layer_bytes,
                                      kvt_mover_layer(m, slot, layer), m->layer_bytes);
    }
    return n_wrong;
}

static enum kvt_status wait_one(struct kvt_mover *m, kvtier_completion *completion,
                                struct kvt_error *err)
{
    uint64_t end_ns = kvt_now_ns() + ANSWER_MS * UINT64_C(1000000);
    while (kvt_now_ns() < end_ns) {
        if (kvt_wait(m->session, completion, 1, 200) == 1)
            return KVT_OK;
        if (kvt_interrupted())
            return kvt_error_set(err, KVT_ERR_CANCELED, "interrupted");
    }
    return kvt_error_set(err, KVT_ERR_TIMEOUT, "micro: no answer from the agent within %d s",
                         ANSWER_MS / 1000);
}

static enum kvt_status check_statuses(struct kvt_mover *m, int type, uint32_t n,
                                      struct kvt_error *err)
{
    for (uint32_t i = 0; i < n; i++) {
        if (m->statuses[i] == KVTIER_OK)
            continue;
        char last[120] = "";
        kvt_last_error(m->session, last, sizeof(last));
        return kvt_error_set(err, KVT_ERR_IO, "micro: %s of object %u of %u: %s %s",
                             type == KVTIER_LOAD ? "load" : "store", i + 1, n,
                             kvt_strerror(m->statuses[i]), last);
    }
    return KVT_OK;
}

enum kvt_status kvt_mover_run(struct kvt_mover *m, int type, uint32_t flags, uint32_t n,
                              uint32_t batch, uint32_t depth, uint64_t *ns_p, struct kvt_error *err)
{
    uint32_t next = 0, n_open = 0;
    uint64_t start_ns = kvt_now_ns(), op;
    enum kvt_status status = KVT_OK;
    while (next < n || n_open > 0) {
        while (next < n && n_open < depth) {
            uint32_t n_now = KVT_MIN(batch, n - next);
            const uint8_t *keys = m->keys + (size_t)next * KVTIER_KEY_BYTES;
            uint64_t deadline_ns = kvt_now_ns() + WAIT_NS;
            int submitted = type == KVTIER_LOAD
                                ? kvt_load(m->session, m->ns, keys, n_now, m->layouts + next, flags,
                                           deadline_ns, m->statuses + next, NULL, &op)
                                : kvt_store(m->session, m->ns, keys, n_now, m->layouts + next,
                                            flags, deadline_ns, m->statuses + next, NULL, &op);
            if (submitted != KVTIER_OK) {
                status =
                    kvt_error_set(err, KVT_ERR_IO, "micro: submit: %s", kvt_strerror(submitted));
                next = n;
                break;
            }
            next += n_now;
            n_open++;
        }
        if (n_open == 0)
            break;
        kvtier_completion completion = {0};
        enum kvt_status waited = wait_one(m, &completion, err);
        if (waited != KVT_OK)
            return waited; /* close() ends what is open */
        n_open--;
        if (completion.status != KVTIER_OK && status == KVT_OK) {
            status =
                kvt_error_set(err, KVT_ERR_IO, "micro: op: %s", kvt_strerror(completion.status));
            next = n;
        }
    }
    *ns_p = kvt_now_ns() - start_ns;
    return status != KVT_OK ? status : check_statuses(m, type, n, err);
}

enum kvt_status kvt_mover_where(struct kvt_mover *m, uint64_t id, uint8_t *where_p,
                                struct kvt_error *err)
{
    uint8_t key[KVTIER_KEY_BYTES];
    uint64_t op;
    kvtier_completion completion = {0};
    kvt_fill_key(id, m->seed, key);
    int submitted = kvt_lookup(m->session, m->ns, key, 1, 0, 0, m->where, NULL, &op);
    if (submitted != KVTIER_OK)
        return kvt_error_set(err, KVT_ERR_IO, "micro: lookup: %s", kvt_strerror(submitted));
    enum kvt_status status = wait_one(m, &completion, err);
    if (status == KVT_OK)
        *where_p = completion.n_ok == 1 ? m->where[0] : 0;
    return status;
}
