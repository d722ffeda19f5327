/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client for the robustness tests: chunks whose bytes follow from their number, so that every
 * loaded byte can be judged by a process that remembers nothing. Chunks are numbered; number n is
 * at place n % chain of prompt n / chain.
 */
#ifndef KVT_ROBUST_CLIENT_H
#define KVT_ROBUST_CLIENT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "kvtier.h"

enum { THREADS_MAX = 16, CHAIN_MAX = 64 };

struct client_config {
    const char *socket;
    const char *model; /* salts keys and bytes: two models never share a chunk */
    uint64_t chunk_bytes;
    uint32_t n_segments;
    uint32_t chain;    /* chunks of a prompt */
    uint32_t n_chunks; /* all numbers are below */
    unsigned n_threads;
    uint64_t seed;
};

/* One user of a session: a thread of the load, or the command loop. */
struct worker {
    struct client *client;
    kvt_session *session;
    int ns;
    uint8_t *buffer; /* a whole chain */
    uint64_t random;
    pthread_t thread;
};

struct client {
    struct client_config config;
    uint64_t salt;
    struct worker main;
    struct worker load[THREADS_MAX];
    bool running;
    atomic_bool stop;
    atomic_uint window_first, window_end; /* prompts that the load stores */
    _Atomic uint8_t *durable;             /* by number: a durable store was answered with OK */
    /* What the load saw. */
    atomic_ullong n_stored, n_durable, n_loaded, n_missed, n_failed, n_leases;
    atomic_ullong n_wrong;  /* OK items with other bytes than stored */
    atomic_ullong n_untrue; /* answers that cannot be: see the message on stderr */
};

uint64_t mix64(uint64_t x);
uint64_t worker_random(struct worker *worker);

bool worker_init(struct worker *worker, struct client *client, uint64_t seed);
void worker_fini(struct worker *worker);

void chunk_key(const struct client *client, uint32_t number, uint8_t key[KVTIER_KEY_BYTES]);
void chunk_fill(const struct client *client, uint32_t number, uint8_t *bytes);
bool chunk_matches(const struct client *client, uint32_t number, const uint8_t *bytes);

/* Numbers first .. first + n in one op, through worker->buffer; n <= chain. Answers per item. */
int32_t worker_store(struct worker *worker, uint32_t first, uint32_t n, uint32_t flags,
                     uint64_t wait_ns, int32_t *statuses);
int32_t worker_load(struct worker *worker, uint32_t first, uint32_t n, int32_t *statuses);

/* The one completion of op; false: it did not come within a minute, which is reported. */
bool worker_wait(struct worker *worker, uint64_t op, kvtier_completion *completion);

bool load_start(struct client *client);
void load_stop(struct client *client);

#endif
