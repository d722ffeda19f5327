/* SPDX-License-Identifier: Apache-2.0 */
/*
 * robust-client: reads commands, one a line, and answers each with one line:
 *   connect MS                    wait for the agent: "ok" or a status
 *   store FIRST N [durable] [now] per chunk one letter, see status_letter(); now: with no time to
 *                                 wait for room
 *   load FIRST N                  likewise; W: OK but the bytes are wrong
 *   lookup FIRST N [lease]        "found N lease ID"
 *   release ID                    "ok" or a status
 *   stats                         name=value ...
 *   run FIRST N                   start the load with prompts FIRST .. FIRST + N to store
 *   stop                          end the load: counters
 *   verify                        load all durable chunks: "lost N wrong N ok N"
 *   forget                        nothing counts as durable any more
 *   latency N                     N lookups of a prompt: "p50_us X p99_us X max_us X"
 *   spam N                        N lookups submitted as quickly as the queue takes them: "ok"
 */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "client.h"

#define ROOM_TIMEOUT_NS UINT64_C(10000000000)

static char status_letter(int32_t status)
{
    switch (status) {
    case KVTIER_OK:
        return 'O';
    case KVTIER_ERR_MISS:
        return 'M';
    case KVTIER_ERR_EXISTS:
        return 'E';
    case KVTIER_ERR_BUSY:
        return 'B';
    case KVTIER_ERR_NOSPACE:
        return 'N';
    case KVTIER_ERR_CORRUPT:
        return 'C';
    case KVTIER_ERR_IO:
        return 'I';
    case KVTIER_ERR_UNREACH:
        return 'U';
    case KVTIER_ERR_TIMEOUT:
        return 'T';
    case KVTIER_ERR_AGAIN:
        return 'A';
    case KVTIER_ERR_EXPIRED:
        return 'X';
    default:
        return '?';
    }
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void answer_status(int status)
{
    if (status == KVTIER_OK)
        printf("ok\n");
    else
        printf("%s\n", kvt_strerror(status));
}

/* One op per prompt or part of one, so that prefixes are what they are in an engine. */
static void do_items(struct client *client, uint32_t first, uint32_t n, bool store, uint32_t flags,
                     uint64_t wait_ns)
{
    struct worker *worker = &client->main;
    uint32_t chain = client->config.chain;
    for (uint32_t done = 0; done < n;) {
        uint32_t number = first + done;
        uint32_t left = chain - number % chain;
        uint32_t part = left < n - done ? left : n - done;
        int32_t statuses[CHAIN_MAX];
        int32_t status = store ? worker_store(worker, number, part, flags, wait_ns, statuses)
                               : worker_load(worker, number, part, statuses);
        for (uint32_t i = 0; i < part; i++) {
            char letter = status_letter(status != KVTIER_OK ? status : statuses[i]);
            if (!store && letter == 'O' &&
                !chunk_matches(client, number + i, worker->buffer + client->config.chunk_bytes * i))
                letter = 'W';
            if (store && letter == 'O' && (flags & KVTIER_DURABLE) != 0)
                atomic_store(&client->durable[number + i], 1);
            putchar(letter);
        }
        done += part;
    }
    putchar('\n');
}

static bool lookup(struct worker *worker, uint32_t first, uint32_t n, uint32_t flags,
                   kvtier_completion *completion)
{
    static uint8_t keys[KVTIER_BATCH_MAX][KVTIER_KEY_BYTES];
    uint64_t op;
    for (uint32_t i = 0; i < n; i++)
        chunk_key(worker->client, first + i, keys[i]);
    return kvt_lookup(worker->session, worker->ns, keys, n, flags, 0, NULL, NULL, &op) ==
               KVTIER_OK &&
           worker_wait(worker, op, completion);
}

static void do_lookup(struct client *client, uint32_t first, uint32_t n, uint32_t flags)
{
    kvtier_completion completion;
    if (!lookup(&client->main, first, n, flags, &completion))
        printf("failed\n");
    else
        printf("found %u lease %" PRIu64 "\n", completion.n_ok, completion.lease);
}

static void do_stats(struct client *client)
{
    uint64_t values[256];
    uint32_t n = 256;
    int status = kvt_stats(client->main.session, values, &n, 5000);
    if (status != KVTIER_OK) {
        answer_status(status);
        return;
    }
    for (uint32_t i = 0; i < n && kvt_stat_name(i) != NULL; i++)
        printf("%s=%" PRIu64 " ", kvt_stat_name(i), values[i]);
    putchar('\n');
}

static void do_verify(struct client *client)
{
    uint32_t chain = client->config.chain;
    uint32_t n_ok = 0, n_lost = 0, n_wrong = 0;
    for (uint32_t first = 0; first < client->config.n_chunks; first += chain) {
        int32_t statuses[CHAIN_MAX];
        bool wanted = false;
        for (uint32_t i = 0; i < chain; i++)
            wanted = wanted || atomic_load(&client->durable[first + i]) != 0;
        if (!wanted)
            continue;
        int32_t status = worker_load(&client->main, first, chain, statuses);
        for (uint32_t i = 0; i < chain; i++) {
            bool held = status == KVTIER_OK && statuses[i] == KVTIER_OK;
            const uint8_t *bytes = client->main.buffer + client->config.chunk_bytes * i;
            if (held && !chunk_matches(client, first + i, bytes))
                n_wrong++;
            else if (held)
                n_ok++;
            else if (atomic_load(&client->durable[first + i]) != 0) {
                n_lost++;
                fprintf(stderr, "robust-client: durable chunk %u: %s, %s\n", first + i,
                        kvt_strerror(status), kvt_strerror(statuses[i]));
            }
        }
    }
    printf("lost %u wrong %u ok %u\n", n_lost, n_wrong, n_ok);
}

static void do_stop(struct client *client)
{
    load_stop(client);
    printf("stored=%llu durable=%llu loaded=%llu missed=%llu failed=%llu leases=%llu wrong=%llu "
           "untrue=%llu\n",
           atomic_load(&client->n_stored), atomic_load(&client->n_durable),
           atomic_load(&client->n_loaded), atomic_load(&client->n_missed),
           atomic_load(&client->n_failed), atomic_load(&client->n_leases),
           atomic_load(&client->n_wrong), atomic_load(&client->n_untrue));
}

static int compare_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void do_latency(struct client *client, uint32_t n)
{
    uint64_t *took = calloc((size_t)n + 1, sizeof(*took));
    kvtier_completion completion;
    if (took == NULL || n == 0) {
        free(took);
        printf("failed\n");
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        uint64_t start = now_ns();
        if (!lookup(&client->main, 0, client->config.chain, 0, &completion)) {
            free(took);
            printf("failed\n");
            return;
        }
        took[i] = now_ns() - start;
    }
    qsort(took, n, sizeof(*took), compare_u64);
    printf("p50_us %" PRIu64 " p99_us %" PRIu64 " max_us %" PRIu64 "\n", took[n / 2] / 1000,
           took[(uint64_t)n * 99 / 100] / 1000, took[n - 1] / 1000);
    free(took);
}

static void do_spam(struct client *client, uint32_t n)
{
    kvtier_completion completions[64];
    uint8_t key[KVTIER_KEY_BYTES];
    uint32_t n_sent = 0, n_done = 0;
    while (n_done < n) {
        uint64_t op;
        int status = KVTIER_ERR_AGAIN;
        if (n_sent < n) {
            chunk_key(client, n_sent % client->config.n_chunks, key);
            status =
                kvt_lookup(client->main.session, client->main.ns, key, 1, 0, 0, NULL, NULL, &op);
        }
        if (status == KVTIER_OK) {
            n_sent++;
            continue;
        }
        uint32_t got = kvt_wait(client->main.session, completions, 64, 60000);
        if (got == 0 || status != KVTIER_ERR_AGAIN) {
            printf("failed after %u of %u\n", n_done, n);
            return;
        }
        n_done += got;
    }
    printf("ok\n");
}

static bool range_ok(const struct client *client, uint32_t first, uint32_t n, uint32_t n_max)
{
    return n >= 1 && n <= n_max && first < n_max && n <= n_max - first &&
           n_max <= client->config.n_chunks;
}

static void do_command(struct client *client, char *line)
{
    char verb[16] = "", word[16] = "";
    uint32_t first = 0, n = 0;
    uint64_t id = 0;
    uint32_t n_chunks = client->config.n_chunks;
    sscanf(line, "%15s %" SCNu64, verb, &id);
    bool ranged = sscanf(line, "%*s %" SCNu32 " %" SCNu32 " %15s", &first, &n, word) >= 2;
    bool extra = word[0] != '\0';
    if (strcmp(verb, "connect") == 0)
        answer_status(kvt_connect_wait(client->main.session, (int)id));
    else if (strcmp(verb, "store") == 0 && ranged && range_ok(client, first, n, n_chunks))
        do_items(client, first, n, true, strstr(line, "durable") != NULL ? KVTIER_DURABLE : 0,
                 strstr(line, "now") != NULL ? 0 : ROOM_TIMEOUT_NS);
    else if (strcmp(verb, "load") == 0 && ranged && range_ok(client, first, n, n_chunks))
        do_items(client, first, n, false, 0, 0);
    else if (strcmp(verb, "lookup") == 0 && ranged && n <= KVTIER_BATCH_MAX &&
             range_ok(client, first, n, n_chunks))
        do_lookup(client, first, n, extra ? KVTIER_LEASE : 0);
    else if (strcmp(verb, "release") == 0)
        answer_status(kvt_release(client->main.session, id, 5000));
    else if (strcmp(verb, "stats") == 0)
        do_stats(client);
    else if (strcmp(verb, "run") == 0 && ranged && !client->running &&
             range_ok(client, first, n, n_chunks / client->config.chain)) {
        atomic_store(&client->window_first, first);
        atomic_store(&client->window_end, first + n);
        load_start(client);
        printf("ok\n");
    } else if (strcmp(verb, "stop") == 0)
        do_stop(client);
    else if (strcmp(verb, "verify") == 0)
        do_verify(client);
    else if (strcmp(verb, "forget") == 0) {
        for (uint32_t i = 0; i < n_chunks; i++)
            atomic_store(&client->durable[i], 0);
        printf("ok\n");
    } else if (strcmp(verb, "latency") == 0)
        do_latency(client, (uint32_t)id);
    else if (strcmp(verb, "spam") == 0)
        do_spam(client, (uint32_t)id);
    else
        printf("no such command, or numbers out of range: %s", line);
    fflush(stdout);
}

static bool options_parse(struct client_config *config, int argc, char **argv)
{
    static const struct option options[] = {{"socket", required_argument, NULL, 's'},
                                            {"model", required_argument, NULL, 'm'},
                                            {"chunk-bytes", required_argument, NULL, 'b'},
                                            {"segments", required_argument, NULL, 'g'},
                                            {"chain", required_argument, NULL, 'c'},
                                            {"chunks", required_argument, NULL, 'n'},
                                            {"threads", required_argument, NULL, 't'},
                                            {"seed", required_argument, NULL, 'r'},
                                            {NULL, 0, NULL, 0}};
    *config = (struct client_config){.model = "robust",
                                     .chunk_bytes = 256 << 10,
                                     .n_segments = 4,
                                     .chain = 8,
                                     .n_chunks = 1024,
                                     .n_threads = 2,
                                     .seed = 1};
    for (int c = getopt_long(argc, argv, "", options, NULL); c != -1;
         c = getopt_long(argc, argv, "", options, NULL)) {
        uint64_t number = optarg != NULL ? strtoull(optarg, NULL, 0) : 0;
        switch (c) {
        case 's':
            config->socket = optarg;
            break;
        case 'm':
            config->model = optarg;
            break;
        case 'b':
            config->chunk_bytes = number;
            break;
        case 'g':
            config->n_segments = (uint32_t)number;
            break;
        case 'c':
            config->chain = (uint32_t)number;
            break;
        case 'n':
            config->n_chunks = (uint32_t)number;
            break;
        case 't':
            config->n_threads = (unsigned)number;
            break;
        case 'r':
            config->seed = number;
            break;
        default:
            return false;
        }
    }
    return config->socket != NULL && config->chunk_bytes >= 8 && config->chunk_bytes % 8 == 0 &&
           config->chain >= 1 && config->chain <= CHAIN_MAX && config->n_chunks > 0 &&
           config->n_chunks % config->chain == 0 && config->n_threads <= THREADS_MAX;
}

int main(int argc, char **argv)
{
    static struct client client;
    char line[256];
    if (!options_parse(&client.config, argc, argv)) {
        fprintf(stderr, "usage: robust-client --socket PATH [--model NAME] [--chunk-bytes N] "
                        "[--segments N] [--chain N] [--chunks N] [--threads N] [--seed N]\n");
        return 2;
    }
    for (const char *c = client.config.model; *c != '\0'; c++)
        client.salt = mix64(client.salt + (unsigned char)*c);
    client.durable = calloc(client.config.n_chunks, sizeof(*client.durable));
    if (client.durable == NULL || !worker_init(&client.main, &client, client.config.seed))
        return 1;
    for (unsigned i = 0; i < client.config.n_threads; i++)
        if (!worker_init(&client.load[i], &client, client.config.seed + 1 + i))
            return 1;
    while (fgets(line, sizeof(line), stdin) != NULL)
        do_command(&client, line);
    load_stop(&client);
    for (unsigned i = 0; i < client.config.n_threads; i++)
        worker_fini(&client.load[i]);
    worker_fini(&client.main);
    free((void *)client.durable);
    return 0;
}
