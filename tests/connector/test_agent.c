/* SPDX-License-Identifier: Apache-2.0 */
/* The library and a real kvtierd, with faults from outside: kills, stops, cancels. */
#include <check.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kvt/util.h"
#include "kvtier.h"

#define CHUNK_BYTES (384u * 1024)
#define N_SEGMENTS  12u
#define BATCH       16u

static const char *kvtierd;
static char dir[64], socket_path[96];
static pid_t agent;

/* --- the agent ------------------------------------------------------------------------------ */

static pid_t agent_start(bool with_nvme, const char *host_bytes)
{
    char set[6][160];
    const char *argv[20] = {kvtierd};
    int ready[2], n = 1;
    char text[8];

    snprintf(set[0], sizeof(set[0]), "socket.path=%s", socket_path);
    snprintf(set[1], sizeof(set[1]), "host.bytes=%s", host_bytes);
    snprintf(set[2], sizeof(set[2]), "host.slab_bytes=16MiB");
    snprintf(set[3], sizeof(set[3]), "metrics.listen=");
    snprintf(set[4], sizeof(set[4]), "nvme.path=%s/store", dir);
    snprintf(set[5], sizeof(set[5]), "nvme.bytes=512MiB");
    for (int i = 0; i < (with_nvme ? 6 : 4); i++) {
        argv[n++] = "--set";
        argv[n++] = set[i];
    }
    ck_assert_int_eq(pipe(ready), 0);
    pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        snprintf(text, sizeof(text), "%d", ready[1]);
        argv[n++] = "--ready-fd";
        argv[n++] = text;
        close(ready[0]);
        execv(kvtierd, (char *const *)(void *)argv);
        _exit(127);
    }
    close(ready[1]);
    ck_assert_msg(read(ready[0], text, 1) == 1, "kvtierd did not become ready");
    close(ready[0]);
    return pid;
}

static void agent_kill(void)
{
    kill(agent, SIGKILL);
    waitpid(agent, NULL, 0);
}

static void setup_host(void)
{
    strcpy(dir, "/tmp/kvtier-agent-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(socket_path, sizeof(socket_path), "%s/socket", dir);
    agent = agent_start(false, "128MiB");
}

static void setup_nvme(void)
{
    strcpy(dir, "/tmp/kvtier-agent-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(socket_path, sizeof(socket_path), "%s/socket", dir);
    agent = agent_start(true, "128MiB");
}

static void teardown(void)
{
    char command[128];
    agent_kill();
    snprintf(command, sizeof(command), "rm -rf %s", dir);
    ck_assert_int_eq(system(command), 0);
}

/* --- a client: chunks whose bytes follow from their keys ------------------------------------ */

struct client {
    kvt_session *session;
    int ns;
    unsigned char *memory; /* BATCH chunks, spread over strided or scattered pieces */
    kvtier_extent extents[BATCH][64];
    kvtier_layout layouts[BATCH];
    unsigned char keys[BATCH][32];
    int32_t statuses[BATCH];
};

static void key_make(unsigned char key[32], uint64_t chain, uint64_t index)
{
    memset(key, 0x5a, 32);
    memcpy(key, &chain, sizeof(chain));
    memcpy(key + 8, &index, sizeof(index));
}

static uint64_t word_at(const unsigned char *key, uint64_t at)
{
    uint64_t chain, index;
    memcpy(&chain, key, sizeof(chain));
    memcpy(&index, key + 8, sizeof(index));
    uint64_t x = (chain * 1000003 + index) * UINT64_C(0x9e3779b97f4a7c15) + at;
    x ^= x >> 29;
    x *= UINT64_C(0xbf58476d1ce4e5b9);
    return x ^ (x >> 32);
}

enum shape { FLAT, SCATTERED, STRIDED, N_SHAPES };

static void layout_set(struct client *c, uint32_t i, enum shape shape)
{
    unsigned char *m = c->memory + (size_t)i * 2 * CHUNK_BYTES;
    if (shape == STRIDED) {
        /* 2 x 24 pages of 8 KiB, each followed by a gap as long. */
        c->layouts[i] = (kvtier_layout){.n_outer = 2,
                                        .n_inner = 24,
                                        .base = m,
                                        .bytes = 8192,
                                        .inner_stride = 16384,
                                        .outer_stride = CHUNK_BYTES};
        return;
    }
    uint32_t n = shape == FLAT ? 1 : 64, done = 0;
    for (uint32_t e = 0; e < n; e++) {
        uint32_t bytes = e == n - 1 ? CHUNK_BYTES - done : CHUNK_BYTES / n + (e % 2 ? 24 : -24);
        c->extents[i][e] = (kvtier_extent){m + done + (n > 1 ? e * 1000 : 0), bytes};
        done += bytes;
    }
    c->layouts[i] = (kvtier_layout){.extents = c->extents[i], .n_extents = n};
}

/* Walk a chunk's words in its layout. Pieces are multiples of 8 bytes. */
static bool chunk_walk(struct client *c, uint32_t i, bool write)
{
    const kvtier_layout *l = &c->layouts[i];
    uint64_t at = 0;
    uint32_t n = l->extents != NULL ? l->n_extents : l->n_outer * l->n_inner;
    for (uint32_t p = 0; p < n; p++) {
        unsigned char *addr = l->extents != NULL ? l->extents[p].addr
                                                 : (unsigned char *)l->base +
                                                       (int64_t)(p / l->n_inner) * l->outer_stride +
                                                       (int64_t)(p % l->n_inner) * l->inner_stride;
        uint64_t bytes = l->extents != NULL ? l->extents[p].bytes : l->bytes;
        for (uint64_t b = 0; b < bytes; b += 8, at++) {
            uint64_t want = word_at(c->keys[i], at), have;
            if (write)
                memcpy(addr + b, &want, 8);
            memcpy(&have, addr + b, 8);
            if (have != want)
                return false;
        }
    }
    return true;
}

static void client_open(struct client *c, enum shape shape)
{
    kvtier_options options = {.size = sizeof(options),
                              .socket_path = socket_path,
                              .n_copy_threads = shape == SCATTERED ? 3 : 1,
                              .spin_us = UINT32_MAX};
    kvtier_namespace ns = {
        .size = sizeof(ns), .model = "test", .n_segments = N_SEGMENTS, .chunk_bytes = CHUNK_BYTES};
    memset(c, 0, sizeof(*c));
    c->memory = malloc((size_t)BATCH * 2 * CHUNK_BYTES);
    ck_assert_ptr_nonnull(c->memory);
    memset(c->memory, 0, (size_t)BATCH * 2 * CHUNK_BYTES);
    for (uint32_t i = 0; i < BATCH; i++)
        layout_set(c, i, shape);
    ck_assert_int_eq(kvt_open(&options, &c->session), KVTIER_OK);
    ck_assert_int_eq(kvt_connect_wait(c->session, 10000), KVTIER_OK);
    c->ns = kvt_namespace(c->session, &ns);
    ck_assert_int_eq(c->ns, 0);
}

static void client_close(struct client *c)
{
    kvt_close(c->session);
    free(c->memory);
}

static void chain_set(struct client *c, uint64_t chain)
{
    for (uint32_t i = 0; i < BATCH; i++)
        key_make(c->keys[i], chain, i);
}

static kvtier_completion done(struct client *c)
{
    kvtier_completion completion;
    ck_assert_msg(kvt_wait(c->session, &completion, 1, 60000) == 1, "no completion in a minute");
    return completion;
}

static uint64_t store_submit(struct client *c, uint64_t chain, uint32_t flags)
{
    uint64_t op;
    chain_set(c, chain);
    for (uint32_t i = 0; i < BATCH; i++)
        chunk_walk(c, i, true);
    ck_assert_int_eq(
        kvt_store(c->session, c->ns, c->keys, BATCH, c->layouts, flags, 0, c->statuses, NULL, &op),
        KVTIER_OK);
    return op;
}

static uint64_t load_submit(struct client *c, uint64_t chain, uint64_t deadline_ns)
{
    uint64_t op;
    chain_set(c, chain);
    memset(c->memory, 0, (size_t)BATCH * 2 * CHUNK_BYTES);
    ck_assert_int_eq(kvt_load(c->session, c->ns, c->keys, BATCH, c->layouts, 0, deadline_ns,
                              c->statuses, NULL, &op),
                     KVTIER_OK);
    return op;
}

/* What a load says is there must be there. @return how many. */
static uint32_t load_check(struct client *c, const kvtier_completion *completion)
{
    uint32_t n_ok = 0;
    for (uint32_t i = 0; i < BATCH; i++) {
        if (c->statuses[i] != KVTIER_OK)
            continue;
        ck_assert_msg(chunk_walk(c, i, false), "wrong bytes in item %u", i);
        n_ok++;
    }
    ck_assert_uint_eq(completion->n_ok, n_ok);
    return n_ok;
}

static uint32_t store(struct client *c, uint64_t chain, uint32_t flags)
{
    store_submit(c, chain, flags);
    return done(c).n_ok;
}

static uint32_t load(struct client *c, uint64_t chain)
{
    load_submit(c, chain, 0);
    kvtier_completion completion = done(c);
    return load_check(c, &completion);
}

static uint32_t lookup(struct client *c, uint64_t chain)
{
    chain_set(c, chain);
    ck_assert_int_eq(kvt_lookup(c->session, c->ns, c->keys, BATCH, 0, 0, NULL, NULL, NULL),
                     KVTIER_OK);
    return done(c).n_ok;
}

static uint64_t stat_get(struct client *c, const char *name)
{
    uint64_t values[64];
    uint32_t n = 64;
    ck_assert_int_eq(kvt_stats(c->session, values, &n, 10000), KVTIER_OK);
    for (uint32_t i = 0; i < n && i < 64; i++) {
        if (strcmp(kvt_stat_name(i), name) == 0)
            return values[i];
    }
    ck_abort_msg("no counter %s", name);
}

/* --- tests ---------------------------------------------------------------------------------- */

START_TEST(every_layout_comes_back)
{
    struct client a, b;
    for (int from = 0; from < N_SHAPES; from++) {
        client_open(&a, (enum shape)from);
        ck_assert_uint_eq(lookup(&a, (uint64_t)from), 0);
        ck_assert_uint_eq(load(&a, (uint64_t)from), 0);
        ck_assert_int_eq(a.statuses[0], KVTIER_ERR_MISS);
        ck_assert_uint_eq(store(&a, (uint64_t)from, 0), BATCH);
        ck_assert_uint_eq(lookup(&a, (uint64_t)from), BATCH);
        for (int to = 0; to < N_SHAPES; to++) {
            client_open(&b, (enum shape)to);
            ck_assert_uint_eq(load(&b, (uint64_t)from), BATCH);
            client_close(&b);
        }
        ck_assert_uint_eq(store(&a, (uint64_t)from, 0), BATCH);
        ck_assert_int_eq(a.statuses[3], KVTIER_ERR_EXISTS);
        client_close(&a);
    }
}
END_TEST

START_TEST(leases_are_held_and_given_back)
{
    struct client c;
    client_open(&c, FLAT);
    ck_assert_uint_eq(store(&c, 1, 0), BATCH);
    ck_assert_int_eq(
        kvt_lookup(c.session, c.ns, c.keys, BATCH, KVTIER_LEASE, 30000, NULL, NULL, NULL),
        KVTIER_OK);
    kvtier_completion completion = done(&c);
    ck_assert_uint_ne(completion.lease, 0);
    ck_assert_uint_eq(stat_get(&c, "leases"), 1);
    ck_assert_int_eq(kvt_release(c.session, completion.lease, 10000), KVTIER_OK);
    ck_assert_uint_eq(stat_get(&c, "leases"), 0);
    ck_assert_uint_eq(load(&c, 1), BATCH);
    /* LOAD_DONE is on its way on the other connection. */
    for (int i = 0; i < 1000 && stat_get(&c, "pins") > 0; i++)
        usleep(1000);
    ck_assert_uint_eq(stat_get(&c, "pins"), 0);
    client_close(&c);
}
END_TEST

static void process_run(uint64_t seed, int n_rounds)
{
    struct client c;
    client_open(&c, (enum shape)(seed % N_SHAPES));
    for (int i = 0; i < n_rounds; i++) {
        uint64_t chain = (seed * 31 + (uint64_t)i * 7) % 40;
        if (i % 2)
            store(&c, chain, 0);
        else
            load(&c, chain);
    }
    client_close(&c);
}

START_TEST(many_processes_share_few_chunks)
{
    /* 40 chains of 6 MiB in 128 MiB: what is stored by one is evicted by another. */
    pid_t pids[4];
    for (int i = 0; i < 4; i++) {
        pids[i] = fork();
        if (pids[i] == 0) {
            process_run((uint64_t)i, 60);
            _exit(0);
        }
    }
    for (int i = 0; i < 4; i++) {
        int status;
        waitpid(pids[i], &status, 0);
        ck_assert_int_eq(status, 0);
    }
    struct client c;
    client_open(&c, FLAT);
    for (int i = 0; i < 1000 && stat_get(&c, "sessions") > 2; i++)
        usleep(1000);
    ck_assert_uint_eq(stat_get(&c, "sessions"), 2);
    ck_assert_uint_eq(stat_get(&c, "ops"), 0);
    ck_assert_uint_eq(stat_get(&c, "pins"), 0);
    ck_assert_uint_eq(stat_get(&c, "reserved_bytes"), 0);
    client_close(&c);
}
END_TEST

START_TEST(cancel_at_any_moment)
{
    struct client c;
    client_open(&c, SCATTERED);
    srand(1);
    for (uint64_t i = 0; i < 150; i++) {
        bool is_store = i % 2 == 0;
        uint64_t op = is_store ? store_submit(&c, i % 10, 0) : load_submit(&c, i % 10, 0);
        if (rand() % 4 != 0)
            usleep((unsigned)rand() % 3000);
        ck_assert_int_eq(kvt_cancel(c.session, op), KVTIER_OK);
        /* Ours again: whatever is written now must stay. */
        memset(c.memory, (int)i, (size_t)BATCH * 2 * CHUNK_BYTES);
        kvtier_completion completion = done(&c);
        ck_assert_uint_eq(completion.op, op);
        for (size_t b = 0; b < (size_t)BATCH * 2 * CHUNK_BYTES; b += 64) {
            if (c.memory[b] != (unsigned char)i)
                ck_abort_msg("memory was written after the cancel");
        }
    }
    for (uint64_t chain = 0; chain < 10; chain++) {
        load(&c, chain);
        ck_assert_uint_eq(store(&c, chain, 0), BATCH);
        ck_assert_uint_eq(load(&c, chain), BATCH);
    }
    for (int i = 0; i < 1000 && stat_get(&c, "ops") > 0; i++)
        usleep(1000);
    ck_assert_uint_eq(stat_get(&c, "ops"), 0);
    ck_assert_uint_eq(stat_get(&c, "reserved_bytes"), 0);
    client_close(&c);
}
END_TEST

struct killer {
    pthread_t thread;
    unsigned after_us;
};

static void *killer_main(void *arg)
{
    usleep(((struct killer *)arg)->after_us);
    kill(agent, SIGKILL);
    return NULL;
}

START_TEST(agent_killed_and_restarted)
{
    struct client c;
    srand(2);
    client_open(&c, SCATTERED);
    ck_assert_uint_eq(store(&c, 1000, KVTIER_DURABLE), BATCH);
    for (uint64_t round = 0; round < 12; round++) {
        struct killer killer = {.after_us = (unsigned)rand() % 40000};
        ck_assert_int_eq(pthread_create(&killer.thread, NULL, killer_main, &killer), 0);
        for (uint64_t i = 0; i < 1000; i++) {
            if (i % 2 == 0)
                store(&c, i % 8, 0);
            else
                load(&c, i % 3 ? i % 8 : 1000);
            if (!kvt_connected(c.session))
                break;
        }
        pthread_join(killer.thread, NULL);
        waitpid(agent, NULL, 0);
        /* Away: everything is answered at once. */
        uint64_t start_ns = kvt_now_ns();
        ck_assert_uint_eq(lookup(&c, 1000), 0);
        load(&c, 1000);
        ck_assert_uint_lt(kvt_now_ns() - start_ns, UINT64_C(2000000000));
        agent = agent_start(true, "128MiB");
        ck_assert_int_eq(kvt_connect_wait(c.session, 10000), KVTIER_OK);
        /* The connection that was cut may still look whole for a moment. */
        for (int i = 0; i < 2000 && lookup(&c, 1000) != BATCH; i++)
            usleep(1000);
        uint32_t n_ok = 0;
        for (int i = 0; i < 2000 && n_ok != BATCH; i++)
            n_ok = load(&c, 1000);
        ck_assert_uint_eq(n_ok, BATCH);
    }
    client_close(&c);
}
END_TEST

START_TEST(stopped_agent_stalls_nobody)
{
    struct client c;
    client_open(&c, FLAT);
    ck_assert_uint_eq(store(&c, 1, 0), BATCH);
    kill(agent, SIGSTOP);
    uint64_t start_ns = kvt_now_ns();
    ck_assert_uint_eq(lookup(&c, 1), 0); /* after a second */
    load_submit(&c, 1, kvt_now_ns() + UINT64_C(100000000));
    kvtier_completion completion = done(&c);
    ck_assert_uint_eq(load_check(&c, &completion), 0);
    ck_assert_int_eq(c.statuses[0], KVTIER_ERR_TIMEOUT);
    for (int i = 0; i < 100; i++)
        ck_assert_uint_eq(lookup(&c, 1), 0);
    ck_assert_int_eq(kvt_ping(c.session, 50), KVTIER_ERR_TIMEOUT);
    ck_assert_uint_lt(kvt_now_ns() - start_ns, UINT64_C(3000000000));
    kill(agent, SIGCONT);
    for (int i = 0; i < 5000 && lookup(&c, 1) != BATCH; i++)
        usleep(1000);
    ck_assert_uint_eq(lookup(&c, 1), BATCH);
    ck_assert_uint_eq(load(&c, 1), BATCH);
    client_close(&c);
}
END_TEST

/* A client that is stopped in mid-load while others evict what it reads; and one that is stopped
 * in mid-store: what it goes on writing must not land in chunks of others. */
START_TEST(stopped_client_harms_nobody)
{
    struct client c;
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        process_run(5, 4000);
        _exit(0);
    }
    srand(3);
    client_open(&c, FLAT);
    for (uint64_t i = 0; i < 12; i++) {
        usleep(1000 + (unsigned)rand() % 30000);
        kill(pid, SIGSTOP);
        for (uint64_t k = 0; k < 40; k++) {
            store(&c, 100 + (i * 40 + k) % 60, 0);
            load(&c, 100 + (uint64_t)rand() % 60);
        }
        kill(pid, SIGCONT);
        load(&c, 100 + (uint64_t)rand() % 60);
    }
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
    ck_assert_msg(WIFSIGNALED(status) || status == 0, "the stopped client saw wrong bytes");
    for (uint64_t k = 0; k < 60; k++)
        load(&c, 100 + k);
    client_close(&c);
}
END_TEST

START_TEST(killed_clients_leave_nothing)
{
    struct client c;
    client_open(&c, FLAT);
    for (int i = 0; i < 10; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            process_run((uint64_t)i, 100000);
            _exit(0);
        }
        usleep(20000 + (unsigned)rand() % 30000);
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
    }
    uint64_t start_ns = kvt_now_ns();
    while (stat_get(&c, "sessions") > 2 || stat_get(&c, "ops") > 0 || stat_get(&c, "pins") > 0 ||
           stat_get(&c, "reserved_bytes") > 0) {
        ck_assert_uint_lt(kvt_now_ns() - start_ns, UINT64_C(1000000000));
        usleep(1000);
    }
    client_close(&c);
}
END_TEST

START_TEST(a_client_that_never_polls)
{
    struct client c, other;
    client_open(&c, FLAT);
    client_open(&other, STRIDED);
    store_submit(&c, 1, 0);
    unsigned n_taken = 1;
    for (unsigned i = 0; i < 3000; i++)
        n_taken += kvt_lookup(c.session, c.ns, c.keys, BATCH, KVTIER_LEASE, 0, NULL, NULL, NULL) ==
                   KVTIER_OK;
    ck_assert_uint_eq(n_taken, 256);
    ck_assert_uint_eq(store(&other, 2, 0), BATCH);
    ck_assert_uint_eq(load(&other, 2), BATCH);
    client_close(&other);
    client_close(&c);
}
END_TEST

static void held_expect(struct client *c, uint8_t where)
{
    uint8_t found[BATCH] = {0};
    ck_assert_int_eq(kvt_lookup(c->session, c->ns, c->keys, BATCH, 0, 0, found, NULL, NULL),
                     KVTIER_OK);
    ck_assert_uint_eq(done(c).n_ok, BATCH);
    for (unsigned i = 0; i < BATCH; i++)
        ck_assert_uint_eq(found[i], where);
}

START_TEST(durable_chunks_outlive_the_agent)
{
    struct client c;
    client_open(&c, STRIDED);
    ck_assert_uint_eq(store(&c, 1, KVTIER_DURABLE), BATCH);
    client_close(&c);
    agent_kill();
    agent = agent_start(true, "128MiB");
    client_open(&c, SCATTERED);
    ck_assert_uint_eq(lookup(&c, 1), BATCH);
    held_expect(&c, KVTIER_WHERE_NVME);
    ck_assert_int_eq(kvt_prefetch(c.session, c.ns, c.keys, BATCH, 0, 0, c.statuses, NULL, NULL),
                     KVTIER_OK);
    ck_assert_uint_eq(done(&c).n_ok, BATCH);
    held_expect(&c, KVTIER_WHERE_HOST | KVTIER_WHERE_NVME);
    ck_assert_uint_eq(load(&c, 1), BATCH);
    client_close(&c);
}
END_TEST

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "Usage: connector-agent KVTIERD\n");
        return 2;
    }
    kvtierd = argv[1];
    Suite *suite = suite_create("agent");
    TCase *tc = tcase_create("host");
    tcase_set_timeout(tc, 120);
    tcase_add_checked_fixture(tc, setup_host, teardown);
    tcase_add_test(tc, every_layout_comes_back);
    tcase_add_test(tc, leases_are_held_and_given_back);
    tcase_add_test(tc, many_processes_share_few_chunks);
    tcase_add_test(tc, cancel_at_any_moment);
    tcase_add_test(tc, stopped_agent_stalls_nobody);
    tcase_add_test(tc, stopped_client_harms_nobody);
    tcase_add_test(tc, killed_clients_leave_nothing);
    tcase_add_test(tc, a_client_that_never_polls);
    suite_add_tcase(suite, tc);
    tc = tcase_create("nvme");
    tcase_set_timeout(tc, 120);
    tcase_add_checked_fixture(tc, setup_nvme, teardown);
    tcase_add_test(tc, durable_chunks_outlive_the_agent);
    tcase_add_test(tc, agent_killed_and_restarted);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_failed == 0 ? 0 : 1;
}
