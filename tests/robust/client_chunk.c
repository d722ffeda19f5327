/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "client.h"

enum { COMPLETION_TIMEOUT_MS = 60000 };

uint64_t mix64(uint64_t x)
{
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

uint64_t worker_random(struct worker *worker)
{
    worker->random = mix64(worker->random);
    return worker->random;
}

void chunk_key(const struct client *client, uint32_t number, uint8_t key[KVTIER_KEY_BYTES])
{
    for (unsigned i = 0; i < KVTIER_KEY_BYTES / 8; i++) {
        uint64_t word = mix64(client->salt ^ mix64(((uint64_t)number << 8) | i));
        memcpy(key + 8 * (size_t)i, &word, 8);
    }
}

/* Word i of a chunk: cheap, and different for every chunk and place. */
static uint64_t chunk_word(uint64_t base, uint64_t i)
{
    uint64_t x = (base + i) * UINT64_C(0x9e3779b97f4a7c15);
    return x ^ (x >> 29);
}

static uint64_t chunk_base(const struct client *client, uint32_t number)
{
    return mix64(client->salt + 1) ^ mix64(number);
}

void chunk_fill(const struct client *client, uint32_t number, uint8_t *bytes)
{
    uint64_t base = chunk_base(client, number);
    for (uint64_t i = 0; i < client->config.chunk_bytes / 8; i++) {
        uint64_t word = chunk_word(base, i);
        memcpy(bytes + 8 * i, &word, 8);
    }
}

bool chunk_matches(const struct client *client, uint32_t number, const uint8_t *bytes)
{
    uint64_t base = chunk_base(client, number);
    uint64_t differ = 0;
    for (uint64_t i = 0; i < client->config.chunk_bytes / 8; i++) {
        uint64_t word;
        memcpy(&word, bytes + 8 * i, 8);
        differ |= word ^ chunk_word(base, i);
    }
    return differ == 0;
}

bool worker_init(struct worker *worker, struct client *client, uint64_t seed)
{
    const struct client_config *config = &client->config;
    kvtier_options options = {.size = sizeof(options),
                              .socket_path = config->socket,
                              .client_name = "robust-client",
                              .spin_us = UINT32_MAX};
    kvtier_namespace ns = {.size = sizeof(ns),
                           .model = config->model,
                           .dtype = "bf16",
                           .layout = "test",
                           .hash_algo = "number",
                           .n_layers = config->n_segments,
                           .n_kv_heads = 1,
                           .head_dim = 64,
                           .tokens_per_chunk = 256,
                           .tp_size = 1,
                           .pp_size = 1,
                           .n_segments = config->n_segments,
                           .chunk_bytes = config->chunk_bytes};
    *worker = (struct worker){.client = client, .random = mix64(seed)};
    worker->buffer = malloc(config->chunk_bytes * config->chain);
    if (worker->buffer == NULL || kvt_open(&options, &worker->session) != KVTIER_OK) {
        fprintf(stderr, "robust-client: out of memory\n");
        free(worker->buffer);
        return false;
    }
    worker->ns = kvt_namespace(worker->session, &ns);
    if (worker->ns < 0) {
        char why[256];
        kvt_last_error(worker->session, why, sizeof(why));
        fprintf(stderr, "robust-client: namespace refused: %s\n", why);
        worker_fini(worker);
        return false;
    }
    return true;
}

void worker_fini(struct worker *worker)
{
    kvt_close(worker->session);
    free(worker->buffer);
}

bool worker_wait(struct worker *worker, uint64_t op, kvtier_completion *completion)
{
    if (kvt_wait(worker->session, completion, 1, COMPLETION_TIMEOUT_MS) != 1) {
        fprintf(stderr, "robust-client: op %llu did not complete within a minute\n",
                (unsigned long long)op);
        atomic_fetch_add(&worker->client->n_untrue, 1);
        return false;
    }
    if (completion->op != op) {
        fprintf(stderr, "robust-client: op %llu completed where %llu was open\n",
                (unsigned long long)completion->op, (unsigned long long)op);
        atomic_fetch_add(&worker->client->n_untrue, 1);
        return false;
    }
    return true;
}

static void layouts_make(struct worker *worker, uint32_t n, kvtier_extent *extents,
                         kvtier_layout *layouts)
{
    uint64_t bytes = worker->client->config.chunk_bytes;
    for (uint32_t i = 0; i < n; i++) {
        extents[i] = (kvtier_extent){.addr = worker->buffer + bytes * i, .bytes = bytes};
        layouts[i] = (kvtier_layout){.extents = &extents[i], .n_extents = 1};
    }
}

static void keys_make(const struct worker *worker, uint32_t first, uint32_t n,
                      uint8_t keys[CHAIN_MAX][KVTIER_KEY_BYTES])
{
    for (uint32_t i = 0; i < n; i++)
        chunk_key(worker->client, first + i, keys[i]);
}

int32_t worker_store(struct worker *worker, uint32_t first, uint32_t n, uint32_t flags,
                     uint64_t wait_ns, int32_t *statuses)
{
    uint8_t keys[CHAIN_MAX][KVTIER_KEY_BYTES];
    kvtier_extent extents[CHAIN_MAX];
    kvtier_layout layouts[CHAIN_MAX];
    kvtier_completion completion;
    uint64_t op, deadline_ns = 0;
    keys_make(worker, first, n, keys);
    layouts_make(worker, n, extents, layouts);
    for (uint32_t i = 0; i < n; i++) {
        chunk_fill(worker->client, first + i,
                   worker->buffer + worker->client->config.chunk_bytes * i);
        statuses[i] = KVTIER_ERR_INTERNAL;
    }
    if (wait_ns > 0) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        deadline_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec + wait_ns;
    }
    int status = kvt_store(worker->session, worker->ns, keys, n, layouts, flags, deadline_ns,
                           statuses, NULL, &op);
    if (status != KVTIER_OK)
        return status;
    return worker_wait(worker, op, &completion) ? completion.status : KVTIER_ERR_INTERNAL;
}

int32_t worker_load(struct worker *worker, uint32_t first, uint32_t n, int32_t *statuses)
{
    uint8_t keys[CHAIN_MAX][KVTIER_KEY_BYTES];
    kvtier_extent extents[CHAIN_MAX];
    kvtier_layout layouts[CHAIN_MAX];
    kvtier_completion completion;
    uint64_t op;
    keys_make(worker, first, n, keys);
    layouts_make(worker, n, extents, layouts);
    for (uint32_t i = 0; i < n; i++)
        statuses[i] = KVTIER_ERR_INTERNAL;
    int status = kvt_load(worker->session, worker->ns, keys, n, layouts, 0, 0, statuses, NULL, &op);
    if (status != KVTIER_OK)
        return status;
    return worker_wait(worker, op, &completion) ? completion.status : KVTIER_ERR_INTERNAL;
}
