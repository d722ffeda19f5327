/* SPDX-License-Identifier: Apache-2.0 */
/* The load: threads that store prompts of the window and load what was stored, judging each. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client.h"

static void step_store(struct worker *worker, uint32_t prompt, bool durable)
{
    struct client *client = worker->client;
    uint32_t chain = client->config.chain;
    uint32_t first = prompt * chain;
    int32_t statuses[CHAIN_MAX];
    int32_t status = worker_store(worker, first, chain, durable ? KVTIER_DURABLE : 0,
                                  UINT64_C(100000000), statuses);
    if (status != KVTIER_OK) {
        atomic_fetch_add(&client->n_failed, chain);
        return;
    }
    for (uint32_t i = 0; i < chain; i++) {
        if (statuses[i] != KVTIER_OK) {
            atomic_fetch_add(&client->n_failed, statuses[i] != KVTIER_ERR_EXISTS);
            continue;
        }
        atomic_fetch_add(&client->n_stored, 1);
        if (durable) {
            atomic_store(&client->durable[first + i], 1);
            atomic_fetch_add(&client->n_durable, 1);
        }
    }
}

static void step_load(struct worker *worker, uint32_t prompt)
{
    struct client *client = worker->client;
    uint32_t chain = client->config.chain;
    uint32_t first = prompt * chain;
    int32_t statuses[CHAIN_MAX];
    int32_t status = worker_load(worker, first, chain, statuses);
    for (uint32_t i = 0; i < chain; i++) {
        if (status != KVTIER_OK || statuses[i] != KVTIER_OK) {
            bool miss = status == KVTIER_OK && statuses[i] == KVTIER_ERR_MISS;
            atomic_fetch_add(miss ? &client->n_missed : &client->n_failed, 1);
            continue;
        }
        atomic_fetch_add(&client->n_loaded, 1);
        if (!chunk_matches(client, first + i, worker->buffer + client->config.chunk_bytes * i)) {
            fprintf(stderr, "robust-client: wrong bytes in chunk %u\n", first + i);
            atomic_fetch_add(&client->n_wrong, 1);
        }
    }
}

static void step_lease(struct worker *worker, uint32_t prompt)
{
    struct client *client = worker->client;
    uint32_t chain = client->config.chain;
    uint8_t keys[CHAIN_MAX][KVTIER_KEY_BYTES];
    kvtier_completion completion;
    uint64_t op;
    for (uint32_t i = 0; i < chain; i++)
        chunk_key(client, prompt * chain + i, keys[i]);
    if (kvt_lookup(worker->session, worker->ns, keys, chain, KVTIER_LEASE, 1000, NULL, NULL, &op) !=
            KVTIER_OK ||
        !worker_wait(worker, op, &completion))
        return;
    if (completion.n_ok > chain) {
        fprintf(stderr, "robust-client: lookup of %u found %u\n", chain, completion.n_ok);
        atomic_fetch_add(&client->n_untrue, 1);
    }
    if (completion.lease != 0) {
        atomic_fetch_add(&client->n_leases, 1);
        if (kvt_release(worker->session, completion.lease, 1000) == KVTIER_ERR_INVAL)
            atomic_fetch_add(&client->n_untrue, 1);
    }
}

/* A load that is given up at a random moment: after cancel returned, nothing may be written. */
static void step_cancel(struct worker *worker, uint32_t prompt)
{
    struct client *client = worker->client;
    uint32_t chain = client->config.chain;
    uint64_t bytes = client->config.chunk_bytes * chain;
    uint8_t keys[CHAIN_MAX][KVTIER_KEY_BYTES];
    int32_t statuses[CHAIN_MAX];
    kvtier_completion completion;
    uint64_t op;
    kvtier_layout layouts[CHAIN_MAX];
    for (uint32_t i = 0; i < chain; i++) {
        chunk_key(client, prompt * chain + i, keys[i]);
        layouts[i] = (kvtier_layout){.base = worker->buffer + client->config.chunk_bytes * i,
                                     .n_outer = 1,
                                     .n_inner = 1,
                                     .bytes = client->config.chunk_bytes};
    }
    if (kvt_load(worker->session, worker->ns, keys, chain, layouts, 0, 0, statuses, NULL, &op) !=
        KVTIER_OK)
        return;
    for (uint64_t n = worker_random(worker) % 20000; n > 0; n--)
        atomic_load(&client->stop);
    kvt_cancel(worker->session, op);
    memset(worker->buffer, 0xa5, bytes);
    if (!worker_wait(worker, op, &completion))
        return;
    if (worker->buffer[0] != 0xa5 || memcmp(worker->buffer, worker->buffer + 1, bytes - 1) != 0) {
        fprintf(stderr, "robust-client: memory written after cancel returned\n");
        atomic_fetch_add(&client->n_untrue, 1);
    }
}

static void *load_run(void *arg)
{
    struct worker *worker = arg;
    struct client *client = worker->client;
    while (!atomic_load(&client->stop)) {
        uint32_t first = atomic_load(&client->window_first);
        uint32_t end = atomic_load(&client->window_end);
        uint64_t dice = worker_random(worker) % 100;
        uint32_t fresh = first + (uint32_t)(worker_random(worker) % (end - first));
        uint32_t any = (uint32_t)(worker_random(worker) % end);
        if (dice < 55)
            step_store(worker, fresh, dice < 35);
        else if (dice < 90)
            step_load(worker, any);
        else if (dice < 95)
            step_lease(worker, any);
        else
            step_cancel(worker, any);
    }
    return NULL;
}

bool load_start(struct client *client)
{
    atomic_store(&client->stop, false);
    for (unsigned i = 0; i < client->config.n_threads; i++) {
        if (pthread_create(&client->load[i].thread, NULL, load_run, &client->load[i]) != 0) {
            fprintf(stderr, "robust-client: cannot start a thread\n");
            exit(1);
        }
    }
    client->running = true;
    return true;
}

void load_stop(struct client *client)
{
    if (!client->running)
        return;
    atomic_store(&client->stop, true);
    for (unsigned i = 0; i < client->config.n_threads; i++)
        pthread_join(client->load[i].thread, NULL);
    client->running = false;
}
