/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lookups of a long prefix: between idle processes, beside an empty message; one right after the
 * other; and while loads keep the disk busy.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "counters.h"
#include "fill.h"
#include "kvt/interrupt.h"
#include "kvt/util.h"
#include "micro.h"
#include "mover.h"
#include "roundtrip.h"
#include "samples.h"

#define N_CHUNKS     512
#define CHUNK_BYTES  4096
#define PAUSE_NS     1500000 /* time enough for everybody to fall asleep */
#define IDLE_CALLS   1000
#define CLOSE_CALLS  20000
#define FIRST_PROMPT (UINT64_C(1) << 48) /* ids of the prefixes that are looked up */
#define N_PROMPTS    16

#define LOAD_OBJECT_BYTES (UINT64_C(1536) << 10)
#define LOAD_ROUND        64
#define LOAD_DEPTH        32

static void pause_idle(void)
{
    nanosleep(&(struct timespec){.tv_nsec = PAUSE_NS}, NULL);
}

/* Keys of a prompt: one prefix of N_CHUNKS. */
static uint8_t *prompt_keys(uint64_t seed)
{
    uint8_t *keys = malloc((size_t)N_PROMPTS * N_CHUNKS * KVTIER_KEY_BYTES);
    for (uint64_t i = 0; keys != NULL && i < (uint64_t)N_PROMPTS * N_CHUNKS; i++)
        kvt_fill_key(FIRST_PROMPT + i, seed, keys + i * KVTIER_KEY_BYTES);
    return keys;
}

static enum kvt_status store_chunks(struct kvt_mover *m, uint64_t first_id, uint64_t n,
                                    struct kvt_error *err)
{
    for (uint64_t done = 0; done < n && !kvt_interrupted();) {
        uint32_t now = (uint32_t)KVT_MIN(n - done, (uint64_t)m->n_slots);
        uint64_t ns;
        for (uint32_t slot = 0; slot < now; slot++)
            kvt_mover_assign(m, slot, first_id + done + slot, false);
        enum kvt_status status = kvt_mover_run(m, KVTIER_STORE, 0, now, now, 1, &ns, err);
        if (status != KVT_OK)
            return status;
        done += now;
    }
    return KVT_OK;
}

/* One lookup; all of the prefix must be there. */
static enum kvt_status lookup_once(struct kvt_mover *m, const uint8_t *keys, uint32_t flags,
                                   uint64_t *ns_p, struct kvt_error *err)
{
    uint64_t op, start_ns = kvt_now_ns();
    kvtier_completion c;
    int status = kvt_lookup(m->session, m->ns, keys, N_CHUNKS, flags, 0, NULL, NULL, &op);
    if (status == KVTIER_OK)
        status = kvt_wait(m->session, &c, 1, 5000) == 1 ? c.status : KVTIER_ERR_TIMEOUT;
    *ns_p = kvt_now_ns() - start_ns;
    if (status != KVTIER_OK)
        return kvt_error_set(err, KVT_ERR_IO, "micro: lookup: %s", kvt_strerror(status));
    if (c.n_ok != N_CHUNKS)
        return kvt_error_set(err, KVT_ERR_MISS, "micro: lookup found %u of %u chunks", c.n_ok,
                             (unsigned)N_CHUNKS);
    if (c.lease != 0 && kvt_release(m->session, c.lease, 1000) != KVTIER_OK)
        return kvt_error_set(err, KVT_ERR_IO, "micro: release failed");
    return KVT_OK;
}

enum what { LOOKUP, LEASED, PING, RAW, N_WHAT };

struct latencies {
    float *us[N_WHAT];
    size_t n;
};

static bool latencies_init(struct latencies *l, size_t n)
{
    bool ok = true;
    for (unsigned i = 0; i < N_WHAT; i++) {
        l->us[i] = calloc(n, sizeof(*l->us[i]));
        ok = ok && l->us[i] != NULL;
    }
    l->n = 0;
    return ok;
}

static void latencies_fini(struct latencies *l)
{
    for (unsigned i = 0; i < N_WHAT; i++)
        free(l->us[i]);
}

static double latencies_get(struct latencies *l, enum what what, double q)
{
    return kvt_samples_quantile(l->us[what], l->n, q);
}

/* n times each of the four calls, in turn; idle: each after everybody went to sleep. */
static enum kvt_status measure(struct kvt_mover *m, struct kvt_roundtrip *roundtrip,
                               const uint8_t *keys, size_t n, bool idle, struct latencies *l,
                               struct kvt_error *err)
{
    for (size_t i = 0; i < n && !kvt_interrupted(); i++) {
        const uint8_t *prompt = keys + i % N_PROMPTS * N_CHUNKS * KVTIER_KEY_BYTES;
        for (unsigned what = 0; what < N_WHAT; what++) {
            uint64_t ns = 0;
            enum kvt_status status = KVT_OK;
            if (idle)
                pause_idle();
            uint64_t start_ns = kvt_now_ns();
            if (what == LOOKUP || what == LEASED) {
                status = lookup_once(m, prompt, what == LEASED ? KVTIER_LEASE : 0, &ns, err);
            } else if (what == PING) {
                if (kvt_ping(m->session, 5000) != KVTIER_OK)
                    status = kvt_error_set(err, KVT_ERR_UNREACH, "micro: ping failed");
                ns = kvt_now_ns() - start_ns;
            } else {
                ns = kvt_roundtrip_ns(roundtrip);
            }
            if (status != KVT_OK)
                return status;
            l->us[what][i] = (float)ns / 1e3f;
        }
        l->n = i + 1;
    }
    return KVT_OK;
}

/* Lookups right after each other, nothing between them. */
static enum kvt_status measure_close(struct kvt_mover *m, const uint8_t *keys, struct latencies *l,
                                     struct kvt_error *err)
{
    for (unsigned what = LOOKUP; what <= PING; what += PING - LOOKUP) {
        for (size_t i = 0; i < CLOSE_CALLS && !kvt_interrupted(); i++) {
            uint64_t ns, start_ns = kvt_now_ns();
            enum kvt_status status = KVT_OK;
            if (what == LOOKUP) {
                status =
                    lookup_once(m, keys + i % N_PROMPTS * N_CHUNKS * KVTIER_KEY_BYTES, 0, &ns, err);
            } else {
                if (kvt_ping(m->session, 5000) != KVTIER_OK)
                    status = kvt_error_set(err, KVT_ERR_UNREACH, "micro: ping failed");
                ns = kvt_now_ns() - start_ns;
            }
            if (status != KVT_OK)
                return status;
            l->us[what][i] = (float)ns / 1e3f;
        }
        l->n = CLOSE_CALLS;
    }
    return kvt_interrupted() ? kvt_error_set(err, KVT_ERR_CANCELED, "interrupted") : KVT_OK;
}

static enum kvt_status chunks_count(struct kvt_mover *m, uint64_t *n_p, struct kvt_error *err)
{
    struct kvt_counters counters;
    if (!kvt_counters_read(m->session, &counters))
        return kvt_error_set(err, KVT_ERR_UNREACH, "micro: the agent does not answer");
    *n_p = kvt_counters_get(&counters, "chunks");
    return KVT_OK;
}

/* The prompts, and others until the index has so many, or more if it had them before. */
static enum kvt_status fill_index(struct kvt_micro *micro, struct kvt_mover *m, uint64_t n_chunks,
                                  uint64_t *n_chunks_p, struct kvt_error *err)
{
    uint64_t n_new = micro->n_lookup_ids == 0 ? (uint64_t)N_PROMPTS * N_CHUNKS : 0, n_held = 0;
    enum kvt_status status = chunks_count(m, &n_held, err);
    if (status != KVT_OK)
        return status;
    uint64_t n_more = n_chunks - KVT_MIN(n_chunks, n_held + n_new);
    uint64_t n_stored = n_new + n_more;
    if (n_stored * CHUNK_BYTES > micro->arena_bytes / 10 * 9)
        return kvt_error_set(err, KVT_ERR_NOTSUP,
                             "%llu chunks of 4KiB are more than 0.9 of the arena: use a larger "
                             "--arena-bytes",
                             (unsigned long long)n_stored);
    if (n_new > 0)
        status = store_chunks(m, FIRST_PROMPT, n_new, err);
    if (status == KVT_OK)
        status = store_chunks(m, micro->n_lookup_ids, n_more, err);
    micro->n_lookup_ids += n_more + 1;
    return status == KVT_OK ? chunks_count(m, n_chunks_p, err) : status;
}

enum kvt_status kvt_micro_lookup(struct kvt_micro *micro, uint64_t n_chunks_in_index,
                                 struct kvt_error *err)
{
    struct kvt_mover *m = NULL;
    struct kvt_roundtrip *roundtrip = NULL;
    struct latencies idle = {.n = 0}, close_calls = {.n = 0};
    uint8_t *keys = prompt_keys(micro->seed);
    enum kvt_status status = KVT_ERR_NOMEM;
    if (keys == NULL || !latencies_init(&idle, IDLE_CALLS) ||
        !latencies_init(&close_calls, CLOSE_CALLS)) {
        kvt_error_set(err, status, "micro: out of memory");
        goto out;
    }
    status = kvt_mover_open(micro->socket, CHUNK_BYTES, N_CHUNKS, micro->seed, &m, err);
    if (status == KVT_OK)
        status = kvt_roundtrip_open(&roundtrip, err);
    if (status == KVT_OK)
        status = fill_index(micro, m, n_chunks_in_index, &n_chunks_in_index, err);
    if (status == KVT_OK)
        status = measure(m, roundtrip, keys, IDLE_CALLS, true, &idle, err);
    if (status == KVT_OK)
        status = measure_close(m, keys, &close_calls, err);
    if (status == KVT_OK)
        json_array_append_new(
            micro->results,
            json_pack(
                "{s:s, s:i, s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "name", "lookup",
                "n_chunks", N_CHUNKS, "chunks_in_index", (json_int_t)n_chunks_in_index, "p50_us",
                latencies_get(&idle, LOOKUP, 0.5), "p99_us", latencies_get(&idle, LOOKUP, 0.99),
                "roundtrip_p50_us", latencies_get(&idle, RAW, 0.5), "leased_p50_us",
                latencies_get(&idle, LEASED, 0.5), "ping_p50_us", latencies_get(&idle, PING, 0.5),
                "close_p50_us", latencies_get(&close_calls, LOOKUP, 0.5), "close_p99_us",
                latencies_get(&close_calls, LOOKUP, 0.99), "close_ping_p50_us",
                latencies_get(&close_calls, PING, 0.5)));
out:
    kvt_roundtrip_close(roundtrip);
    kvt_mover_close(m);
    latencies_fini(&idle);
    latencies_fini(&close_calls);
    free(keys);
    return status;
}

/* --- under load ------------------------------------------------------------------------------ */

struct loader {
    struct kvt_mover *mover;
    uint64_t n_ids;
    atomic_bool stop;
    uint64_t bytes;
    enum kvt_status status;
    struct kvt_error err;
};

static void *loader_main(void *arg)
{
    struct loader *l = arg;
    uint64_t next = 0, ns;
    while (!atomic_load(&l->stop) && l->status == KVT_OK) {
        for (uint32_t slot = 0; slot < LOAD_ROUND; slot++)
            kvt_mover_assign(l->mover, slot, next++ % l->n_ids, false);
        l->status =
            kvt_mover_run(l->mover, KVTIER_LOAD, 0, LOAD_ROUND, 1, LOAD_DEPTH, &ns, &l->err);
        l->bytes += LOAD_ROUND * LOAD_OBJECT_BYTES;
    }
    return NULL;
}

static enum kvt_status load_setup(struct kvt_micro *micro, struct loader *l, struct kvt_error *err)
{
    enum kvt_status status =
        kvt_mover_open(micro->socket, LOAD_OBJECT_BYTES, LOAD_ROUND, micro->seed, &l->mover, err);
    if (status != KVT_OK)
        return status;
    uint64_t n_rounds = micro->nvme_bytes / 8 * 6 / (LOAD_ROUND * LOAD_OBJECT_BYTES);
    for (uint64_t r = 0; r < n_rounds && status == KVT_OK; r++) {
        uint64_t ns;
        for (uint32_t slot = 0; slot < LOAD_ROUND; slot++)
            kvt_mover_assign(l->mover, slot, r * LOAD_ROUND + slot, true);
        status = kvt_mover_run(l->mover, KVTIER_STORE, KVTIER_DURABLE, LOAD_ROUND, 1, LOAD_DEPTH,
                               &ns, err);
    }
    l->n_ids = n_rounds * LOAD_ROUND;
    if (status == KVT_OK && n_rounds == 0)
        status = kvt_error_set(err, KVT_ERR_NOTSUP, "the store file is too small");
    return status;
}

enum kvt_status kvt_micro_lookup_under_load(struct kvt_micro *micro, struct kvt_error *err)
{
    struct loader loader = {.mover = NULL};
    struct kvt_mover *m = NULL;
    uint8_t *keys = prompt_keys(micro->seed);
    float *us = calloc(IDLE_CALLS, sizeof(*us));
    enum kvt_status status = KVT_ERR_NOMEM;
    if (keys == NULL || us == NULL) {
        kvt_error_set(err, status, "micro: out of memory");
        goto out;
    }
    status = load_setup(micro, &loader, err);
    if (status == KVT_OK)
        status = kvt_mover_open(micro->socket, CHUNK_BYTES, N_CHUNKS, micro->seed, &m, err);
    if (status == KVT_OK)
        status = store_chunks(m, FIRST_PROMPT, (uint64_t)N_PROMPTS * N_CHUNKS, err);
    pthread_t thread;
    if (status == KVT_OK && pthread_create(&thread, NULL, loader_main, &loader) != 0)
        status = kvt_error_set(err, KVT_ERR_NOMEM, "micro: cannot start a thread");
    if (status != KVT_OK)
        goto out;
    uint64_t start_ns = kvt_now_ns();
    size_t n = 0;
    for (; n < IDLE_CALLS && !kvt_interrupted() && status == KVT_OK; n++) {
        uint64_t ns;
        pause_idle();
        status = lookup_once(m, keys + n % N_PROMPTS * N_CHUNKS * KVTIER_KEY_BYTES, 0, &ns, err);
        if (status == KVT_ERR_MISS)
            status = KVT_OK; /* a shorter prefix is an answer as well */
        us[n] = (float)ns / 1e3f;
    }
    uint64_t took_ns = kvt_now_ns() - start_ns;
    atomic_store(&loader.stop, true);
    pthread_join(thread, NULL);
    if (status == KVT_OK && loader.status != KVT_OK) {
        *err = loader.err;
        status = loader.status;
    }
    if (status == KVT_OK)
        json_array_append_new(micro->results,
                              json_pack("{s:s, s:i, s:I, s:f, s:f, s:f}", "name",
                                        "lookup_under_load", "n_chunks", N_CHUNKS, "object_bytes",
                                        (json_int_t)LOAD_OBJECT_BYTES, "load_bytes_per_s",
                                        (double)loader.bytes * 1e9 / (double)took_ns, "p50_us",
                                        kvt_samples_quantile(us, n, 0.5), "p99_us",
                                        kvt_samples_quantile(us, n, 0.99)));
out:
    kvt_mover_close(m);
    kvt_mover_close(loader.mover);
    free(us);
    free(keys);
    return status;
}
