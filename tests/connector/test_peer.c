/* SPDX-License-Identifier: Apache-2.0 */
/* The library without an agent, with a sane one, and with ones that misbehave. */
#include <check.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kvt/util.h"
#include "kvtier.h"
#include "peer.h"

#define CHUNK_BYTES 300000u
#define N           36u /* more than one commit */

static struct peer peer;
static char path[64];
static kvt_session *session;
static int ns;
static unsigned char keys[N][32];
static unsigned char *memory;
static kvtier_extent extents[N][2];
static kvtier_layout layouts[N];
static int32_t statuses[N];

static unsigned char byte_at(uint32_t chunk, uint32_t at)
{
    return (unsigned char)((chunk + 1) * 131 + at * 7 + (at >> 9));
}

static void memory_fill(void)
{
    for (uint32_t i = 0; i < N; i++) {
        for (uint32_t j = 0; j < CHUNK_BYTES; j++)
            memory[(size_t)i * CHUNK_BYTES + j] = byte_at(i, j);
    }
}

static void memory_check(uint32_t chunk)
{
    uint32_t at = 0;
    while (at < CHUNK_BYTES && memory[(size_t)chunk * CHUNK_BYTES + at] == byte_at(chunk, at))
        at++;
    ck_assert_msg(at == CHUNK_BYTES, "chunk %u is wrong at byte %u", chunk, at);
}

static void session_open(uint32_t queue_depth, uint32_t n_copy_threads)
{
    kvtier_options options = {.size = sizeof(options),
                              .socket_path = path,
                              .queue_depth = queue_depth,
                              .n_copy_threads = n_copy_threads,
                              .spin_us = UINT32_MAX};
    kvtier_namespace desc = {
        .size = sizeof(desc), .model = "m", .n_segments = 3, .chunk_bytes = CHUNK_BYTES};
    ck_assert_int_eq(kvt_open(&options, &session), KVTIER_OK);
    ns = kvt_namespace(session, &desc);
    ck_assert_int_ge(ns, 0);
}

static void setup(void)
{
    snprintf(path, sizeof(path), "/tmp/kvtier-peer-%d.sock", (int)getpid());
    memory = malloc((size_t)N * CHUNK_BYTES);
    for (uint32_t i = 0; i < N; i++) {
        memset(keys[i], (int)i + 1, 32);
        extents[i][0] = (kvtier_extent){memory + (size_t)i * CHUNK_BYTES, 100001};
        extents[i][1] =
            (kvtier_extent){memory + (size_t)i * CHUNK_BYTES + 100001, CHUNK_BYTES - 100001};
        layouts[i] = (kvtier_layout){.extents = extents[i], .n_extents = 2};
    }
    memory_fill();
}

static void setup_peer(void)
{
    setup();
    peer_start(&peer, path);
    session_open(0, 0);
    ck_assert_int_eq(kvt_connect_wait(session, 5000), KVTIER_OK);
}

static void teardown_peer(void)
{
    kvt_close(session);
    peer_stop(&peer);
    free(memory);
}

static void fault(enum peer_fault what, int type)
{
    atomic_store(&peer.fault_type, type);
    atomic_store(&peer.fault, what);
}

static kvtier_completion one_done(int timeout_ms)
{
    kvtier_completion c = {0};
    ck_assert_msg(kvt_wait(session, &c, 1, timeout_ms) == 1, "no completion in %d ms", timeout_ms);
    return c;
}

static kvtier_completion store_all(void)
{
    uint64_t op;
    ck_assert_int_eq(kvt_store(session, ns, keys, N, layouts, 0, 0, statuses, &session, &op),
                     KVTIER_OK);
    kvtier_completion c = one_done(20000);
    ck_assert_uint_eq(c.op, op);
    ck_assert_ptr_eq(c.user, &session);
    ck_assert_int_eq(c.type, KVTIER_STORE);
    return c;
}

static kvtier_completion load_all(uint64_t deadline_ns)
{
    ck_assert_int_eq(kvt_load(session, ns, keys, N, layouts, 0, deadline_ns, statuses, NULL, NULL),
                     KVTIER_OK);
    return one_done(40000);
}

static kvtier_completion lookup_all(uint32_t flags, uint8_t *where)
{
    ck_assert_int_eq(kvt_lookup(session, ns, keys, N, flags, 0, where, NULL, NULL), KVTIER_OK);
    return one_done(5000);
}

START_TEST(round_trip)
{
    uint8_t where[N] = {0};
    kvtier_completion c = lookup_all(KVTIER_LEASE, where);
    ck_assert_int_eq(c.status, KVTIER_OK);
    ck_assert_uint_eq(c.n_ok, 0);
    c = store_all();
    ck_assert_int_eq(c.status, KVTIER_OK);
    ck_assert_uint_eq(c.n_ok, N);
    ck_assert_uint_eq(c.n_prefix, N);
    c = lookup_all(KVTIER_LEASE, where);
    ck_assert_uint_eq(c.n_ok, N);
    ck_assert_uint_eq(c.lease, 42);
    ck_assert_uint_eq(where[N - 1], KVT_WHERE_HOST);
    ck_assert_int_eq(kvt_release(session, c.lease, 5000), KVTIER_OK);
    ck_assert_int_eq(kvt_ping(session, 5000), KVTIER_OK);
    memset(memory, 0, (size_t)N * CHUNK_BYTES);
    c = load_all(0);
    ck_assert_int_eq(c.status, KVTIER_OK);
    ck_assert_uint_eq(c.n_prefix, N);
    for (uint32_t i = 0; i < N; i++)
        memory_check(i);
    c = store_all();
    ck_assert_uint_eq(c.n_ok, N);
    for (uint32_t i = 0; i < N; i++)
        ck_assert_int_eq(statuses[i], KVTIER_ERR_EXISTS);
    uint64_t values[2];
    uint32_t n = 2;
    ck_assert_int_eq(kvt_stats(session, values, &n, 5000), KVTIER_OK);
    ck_assert_uint_eq(n, 3);
    ck_assert_uint_eq(values[1], 6);
}
END_TEST

START_TEST(parent_is_no_item)
{
    ck_assert_int_eq(
        kvt_store(session, ns, keys, 3, layouts, KVTIER_PARENT, 0, statuses, NULL, NULL),
        KVTIER_OK);
    kvtier_completion c = one_done(5000);
    ck_assert_uint_eq(c.n_items, 2);
    ck_assert_uint_eq(c.n_ok, 2);
    ck_assert_int_eq(
        kvt_load(session, ns, keys, 3, layouts, KVTIER_PARENT, 0, statuses, NULL, NULL), KVTIER_OK);
    c = one_done(5000);
    ck_assert_uint_eq(c.n_ok, 2);
    ck_assert_int_eq(kvt_prefetch(session, ns, keys, 3, KVTIER_PARENT, 0, statuses, NULL, NULL),
                     KVTIER_OK);
    c = one_done(5000);
    ck_assert_int_eq(c.type, KVTIER_PREFETCH);
    ck_assert_uint_eq(c.n_ok, 2);
}
END_TEST

START_TEST(event_fd_tells_of_both_kinds)
{
    kvtier_completion c;
    struct pollfd pfd = {kvt_event_fd(session), POLLIN, 0};
    ck_assert_int_eq(kvt_lookup(session, ns, keys, N, 0, 0, NULL, NULL, NULL), KVTIER_OK);
    uint32_t n = 0;
    while (n == 0) {
        ck_assert_int_eq(poll(&pfd, 1, 5000), 1);
        n = kvt_poll(session, &c, 1);
    }
    ck_assert_int_eq(kvt_store(session, ns, keys, N, layouts, 0, 0, statuses, NULL, NULL),
                     KVTIER_OK);
    for (n = 0; n == 0;) {
        ck_assert_int_eq(poll(&pfd, 1, 5000), 1);
        n = kvt_poll(session, &c, 1);
    }
    ck_assert_int_eq(c.type, KVTIER_STORE);
    ck_assert_int_eq(poll(&pfd, 1, 0), 0);
}
END_TEST

START_TEST(bad_arguments_are_refused)
{
    uint64_t op;
    kvtier_namespace bad = {.size = sizeof(bad), .model = "m", .n_segments = 7, .chunk_bytes = 10};
    char text[300];
    ck_assert_int_eq(kvt_namespace(session, &bad), KVTIER_ERR_INVAL);
    kvt_last_error(session, text, sizeof(text));
    ck_assert_ptr_nonnull(strstr(text, "n_segments"));
    ck_assert_int_eq(kvt_lookup(session, 99, keys, 1, 0, 0, NULL, NULL, &op), KVTIER_ERR_INVAL);
    ck_assert_int_eq(kvt_lookup(session, ns, keys, 0, 0, 0, NULL, NULL, &op), KVTIER_ERR_INVAL);
    ck_assert_int_eq(kvt_lookup(session, ns, keys, 1025, 0, 0, NULL, NULL, &op), KVTIER_ERR_INVAL);
    ck_assert_int_eq(kvt_lookup(session, ns, keys, 1, 64, 0, NULL, NULL, &op), KVTIER_ERR_INVAL);
    ck_assert_int_eq(kvt_store(session, ns, keys, 1, layouts, KVTIER_PARENT, 0, NULL, NULL, &op),
                     KVTIER_ERR_INVAL);
    layouts[1].n_extents = 1;
    ck_assert_int_eq(kvt_store(session, ns, keys, 2, layouts, 0, 0, NULL, NULL, &op),
                     KVTIER_ERR_INVAL);
    ck_assert_int_eq(kvt_cancel(session, 12345), KVTIER_ERR_INVAL);
}
END_TEST

/* What each fault must look like from outside: no wrong byte, an answer, and work again after. */
static const struct {
    enum peer_fault fault;
    int type;
} faults[] = {
    {PEER_CLOSE, KVT_WIRE_RESERVE},      {PEER_GARBAGE, KVT_WIRE_RESERVE},
    {PEER_BAD_OFFSET, KVT_WIRE_RESERVE}, {PEER_BAD_INDEX, KVT_WIRE_RESERVE},
    {PEER_TWICE, KVT_WIRE_RESERVE},      {PEER_REFUSE, KVT_WIRE_RESERVE},
    {PEER_CLOSE, KVT_WIRE_COMMIT},       {PEER_GARBAGE, KVT_WIRE_COMMIT},
    {PEER_BAD_INDEX, KVT_WIRE_COMMIT},   {PEER_TWICE, KVT_WIRE_COMMIT},
    {PEER_REFUSE, KVT_WIRE_COMMIT},      {PEER_CLOSE, KVT_WIRE_LOAD},
    {PEER_GARBAGE, KVT_WIRE_LOAD},       {PEER_BAD_OFFSET, KVT_WIRE_LOAD},
    {PEER_BAD_INDEX, KVT_WIRE_LOAD},     {PEER_TWICE, KVT_WIRE_LOAD},
    {PEER_LATE_LEASE, KVT_WIRE_LOAD},    {PEER_REFUSE, KVT_WIRE_LOAD},
    {PEER_CLOSE, KVT_WIRE_LOOKUP},       {PEER_GARBAGE, KVT_WIRE_LOOKUP},
    {PEER_LONG_HIT, KVT_WIRE_LOOKUP},    {PEER_SILENT, KVT_WIRE_LOOKUP},
    {PEER_CLOSE, KVT_WIRE_HELLO},        {PEER_GARBAGE, KVT_WIRE_HELLO},
    {PEER_NO_FDS, KVT_WIRE_HELLO},       {PEER_SHORT_FILE, KVT_WIRE_HELLO},
    {PEER_SILENT, KVT_WIRE_HELLO},       {PEER_CLOSE, KVT_WIRE_NS_OPEN},
    {PEER_GARBAGE, KVT_WIRE_NS_OPEN},
};

START_TEST(faults_end_as_misses)
{
    setup();
    peer_start(&peer, path);
    fault(faults[_i].fault, faults[_i].type);
    session_open(0, 2);
    bool at_hello = faults[_i].type == KVT_WIRE_HELLO;
    bool at_open = at_hello || faults[_i].type == KVT_WIRE_NS_OPEN;
    ck_assert_int_eq(kvt_connect_wait(session, at_hello ? 300 : 5000),
                     at_hello ? KVTIER_ERR_TIMEOUT : KVTIER_OK);
    uint64_t start_ns = kvt_now_ns();
    kvtier_completion c = store_all();
    bool stored = c.n_ok == N;
    ck_assert(at_open || faults[_i].type == KVT_WIRE_LOAD || !stored ||
              faults[_i].type == KVT_WIRE_LOOKUP);
    c = lookup_all(0, NULL);
    ck_assert(c.n_ok <= N);
    if (faults[_i].type == KVT_WIRE_LOOKUP) {
        ck_assert_int_lt(c.status, 0);
        ck_assert_uint_eq(c.n_ok, 0);
    }
    memset(memory, 0, (size_t)N * CHUNK_BYTES);
    c = load_all(0);
    ck_assert(faults[_i].type != KVT_WIRE_LOAD || c.n_ok < N);
    for (uint32_t i = 0; i < N; i++) {
        if (statuses[i] == KVTIER_OK)
            memory_check(i);
    }
    ck_assert_uint_lt(kvt_now_ns() - start_ns, UINT64_C(5000000000));

    fault(PEER_HONEST, 0);
    ck_assert_int_eq(kvt_connect_wait(session, 10000), KVTIER_OK);
    memory_fill();
    /* The back-off lets the two connections come at their own times; a fault may be noticed late.
     */
    for (unsigned n_ok = 0; n_ok != N;) {
        ck_assert_uint_lt(kvt_now_ns() - start_ns, UINT64_C(15000000000));
        ck_assert_int_ne(kvt_connect_wait(session, 10000), KVTIER_ERR_TIMEOUT);
        n_ok = store_all().n_ok;
    }
    while (lookup_all(0, NULL).n_ok != N) {
        ck_assert_uint_lt(kvt_now_ns() - start_ns, UINT64_C(15000000000));
        usleep(1000);
    }
    memset(memory, 0, (size_t)N * CHUNK_BYTES);
    c = load_all(0);
    ck_assert_uint_eq(c.n_ok, N);
    for (uint32_t i = 0; i < N; i++)
        memory_check(i);
    ck_assert_int_eq(kvt_ping(session, 5000), KVTIER_OK);
    teardown_peer();
}
END_TEST

START_TEST(another_version_is_told)
{
    char text[300];
    setup();
    peer_start(&peer, path);
    fault(PEER_VERSION, KVT_WIRE_HELLO);
    session_open(0, 0);
    ck_assert_int_eq(kvt_connect_wait(session, 5000), KVTIER_ERR_VERSION);
    kvt_last_error(session, text, sizeof(text));
    ck_assert_ptr_nonnull(strstr(text, "version"));
    ck_assert_int_eq(lookup_all(0, NULL).status, KVTIER_ERR_UNREACH);
    teardown_peer();
}
END_TEST

START_TEST(no_agent_means_misses_at_once)
{
    setup();
    session_open(0, 0);
    uint64_t start_ns = kvt_now_ns();
    ck_assert_int_eq(kvt_connected(session), 0);
    for (unsigned i = 0; i < 100; i++) {
        ck_assert_uint_eq(lookup_all(0, NULL).n_ok, 0);
        ck_assert_uint_eq(store_all().n_ok, 0);
        ck_assert_int_eq(statuses[0], KVTIER_ERR_UNREACH);
        ck_assert_uint_eq(load_all(0).n_ok, 0);
    }
    ck_assert_int_eq(kvt_ping(session, 5000), KVTIER_ERR_UNREACH);
    ck_assert_uint_lt(kvt_now_ns() - start_ns, UINT64_C(2000000000));
    /* It connects by itself once there is one. */
    peer_start(&peer, path);
    ck_assert_int_eq(kvt_connect_wait(session, 5000), KVTIER_OK);
    ck_assert_uint_eq(store_all().n_ok, N);
    teardown_peer();
}
END_TEST

START_TEST(a_deaf_agent_stalls_nobody)
{
    kvtier_completion c;
    uint64_t longest_ns = 0;
    unsigned n_taken = 0, n_refused = 0, n_done = 0;
    atomic_store(&peer.deaf, true);
    usleep(50000); /* it looks every 20 ms */
    uint64_t start_ns = kvt_now_ns();
    for (unsigned i = 0; i < 3000; i++) {
        uint64_t before_ns = kvt_now_ns();
        int status = i % 2 ? kvt_lookup(session, ns, keys, N, 0, 0, NULL, NULL, NULL)
                           : kvt_load(session, ns, keys, N, layouts, 0,
                                      start_ns + UINT64_C(500000000), NULL, NULL, NULL);
        longest_ns = KVT_MAX(longest_ns, kvt_now_ns() - before_ns);
        n_taken += status == KVTIER_OK;
        n_refused += status == KVTIER_ERR_AGAIN;
    }
    ck_assert_uint_eq(n_taken + n_refused, 3000);
    ck_assert_uint_gt(n_refused, 0);
    while (n_done < n_taken) {
        c = one_done(5000);
        ck_assert_uint_eq(c.n_ok, 0);
        n_done++;
    }
    ck_assert_uint_lt(kvt_now_ns() - start_ns, UINT64_C(4000000000));
    ck_assert_uint_lt(longest_ns, UINT64_C(100000000));
    /* Known to be stalled now: lookups miss at once. */
    start_ns = kvt_now_ns();
    ck_assert_int_eq(lookup_all(0, NULL).status, KVTIER_ERR_TIMEOUT);
    ck_assert_uint_lt(kvt_now_ns() - start_ns, UINT64_C(500000000));
    atomic_store(&peer.deaf, false);
    /* Its late answers say that it is back. */
    start_ns = kvt_now_ns();
    while (lookup_all(0, NULL).status != KVTIER_OK) {
        ck_assert_uint_lt(kvt_now_ns() - start_ns, UINT64_C(5000000000));
        usleep(1000);
    }
    ck_assert_uint_eq(store_all().n_ok, N);
    ck_assert_uint_eq(load_all(0).n_ok, N);
}
END_TEST

START_TEST(cancel_ends_an_op)
{
    uint64_t op;
    int type = _i == 0 ? KVT_WIRE_RESERVE : _i == 1 ? KVT_WIRE_COMMIT : KVT_WIRE_LOAD;
    fault(PEER_SILENT, type);
    if (_i == 2)
        ck_assert_int_eq(kvt_load(session, ns, keys, N, layouts, 0, 0, statuses, NULL, &op),
                         KVTIER_OK);
    else
        ck_assert_int_eq(kvt_store(session, ns, keys, N, layouts, 0, 0, statuses, NULL, &op),
                         KVTIER_OK);
    usleep((unsigned)rand() % 20000);
    ck_assert_int_eq(kvt_cancel(session, op), KVTIER_OK);
    ck_assert_int_eq(kvt_cancel(session, op), KVTIER_OK);
    kvtier_completion c = one_done(0);
    ck_assert_uint_eq(c.op, op);
    ck_assert_int_eq(c.status, KVTIER_ERR_CANCELED);
    ck_assert_int_eq(statuses[0], KVTIER_ERR_CANCELED);
    ck_assert_int_eq(kvt_cancel(session, op), KVTIER_ERR_INVAL);
    fault(PEER_HONEST, 0);
    ck_assert_uint_eq(store_all().n_ok, N);
    ck_assert_uint_eq(atomic_load(&peer.n_cancel), 1);
}
END_TEST

static void *peer_end_soon(void *arg)
{
    usleep(300000);
    peer_stop(arg);
    return NULL;
}

/* As from an agent that dies slowly: one socket is closed long before the other, and greetings are
 * taken meanwhile and never answered. Who waits then must not keep the library from seeing it. */
START_TEST(who_waits_learns_of_the_end)
{
    pthread_t thread;
    kvtier_completion c;
    fault(PEER_SILENT, KVT_WIRE_LOAD);
    ck_assert_int_eq(kvt_load(session, ns, keys, N, layouts, 0, 0, statuses, NULL, NULL),
                     KVTIER_OK);
    usleep(50000);
    fault(PEER_CLOSE, PEER_ANY);
    ck_assert_int_eq(lookup_all(0, NULL).status, KVTIER_ERR_UNREACH);
    ck_assert_int_eq(pthread_create(&thread, NULL, peer_end_soon, &peer), 0);
    uint64_t start_ns = kvt_now_ns();
    ck_assert_uint_eq(kvt_wait(session, &c, 1, 5000), 1);
    ck_assert_uint_lt(kvt_now_ns() - start_ns, UINT64_C(2000000000));
    ck_assert_int_eq(c.type, KVTIER_LOAD);
    ck_assert_int_eq(c.status, KVTIER_ERR_UNREACH);
    ck_assert_int_eq(pthread_join(thread, NULL), 0);
    peer_start(&peer, path);
}
END_TEST

START_TEST(load_keeps_its_deadline)
{
    fault(PEER_SILENT, KVT_WIRE_LOAD);
    uint64_t start_ns = kvt_now_ns();
    kvtier_completion c = load_all(start_ns + UINT64_C(200000000));
    uint64_t took_ns = kvt_now_ns() - start_ns;
    ck_assert_int_eq(c.status, KVTIER_OK);
    ck_assert_uint_eq(c.n_ok, 0);
    ck_assert_int_eq(statuses[N - 1], KVTIER_ERR_TIMEOUT);
    ck_assert(took_ns > UINT64_C(190000000) && took_ns < UINT64_C(2000000000));
}
END_TEST

/* It is told late where there is more to copy, but of each, and soon. */
START_TEST(the_agent_is_told_that_loads_are_over)
{
    enum { LOADS = N / 2 };
    setup();
    peer_start(&peer, path);
    session_open(0, 1u << _i);
    ck_assert_int_eq(kvt_connect_wait(session, 5000), KVTIER_OK);
    ck_assert_uint_eq(store_all().n_ok, N);
    for (unsigned i = 0; i < LOADS; i++)
        ck_assert_int_eq(
            kvt_load(session, ns, keys[2 * i], 2, &layouts[2 * i], 0, 0, NULL, NULL, NULL),
            KVTIER_OK);
    for (unsigned i = 0; i < LOADS; i++)
        ck_assert_int_eq(one_done(5000).status, KVTIER_OK);
    uint64_t end_ns = kvt_now_ns() + UINT64_C(1000000000);
    while (atomic_load(&peer.n_load_done) < LOADS && kvt_now_ns() < end_ns)
        usleep(1000);
    ck_assert_uint_eq(atomic_load(&peer.n_load_done), LOADS);
    teardown_peer();
}
END_TEST

START_TEST(a_late_lookup_gives_its_lease_back)
{
    ck_assert_uint_eq(store_all().n_ok, N);
    atomic_store(&peer.deaf, true);
    usleep(50000);
    ck_assert_int_eq(lookup_all(KVTIER_LEASE, NULL).status, KVTIER_ERR_TIMEOUT);
    atomic_store(&peer.deaf, false);
    for (unsigned i = 0; i < 5000 && atomic_load(&peer.n_release) == 0; i++)
        usleep(1000);
    ck_assert_uint_eq(atomic_load(&peer.n_release), 1);
}
END_TEST

START_TEST(completions_may_wait)
{
    kvtier_completion c[64];
    unsigned n_taken = 0, n = 0;
    for (unsigned i = 0; i < 1000; i++)
        n_taken += kvt_lookup(session, ns, keys, N, 0, 0, NULL, NULL, NULL) == KVTIER_OK;
    ck_assert_uint_eq(n_taken, 256);
    while (n < n_taken) {
        uint32_t got = kvt_wait(session, c, 64, 5000);
        ck_assert_uint_gt(got, 0);
        n += got;
    }
    ck_assert_uint_eq(kvt_wait(session, c, 64, 0), 0);
}
END_TEST

START_TEST(a_word_tells_how_many_wait)
{
    uint32_t word = 7;
    kvtier_options options = {.size = sizeof(options), .socket_path = path, .n_done = &word};
    kvtier_namespace desc = {
        .size = sizeof(desc), .model = "m", .n_segments = 3, .chunk_bytes = CHUNK_BYTES};
    kvt_session *mine;
    kvtier_completion c[2];

    ck_assert_int_eq(kvt_open(&options, &mine), KVTIER_OK);
    ck_assert_uint_eq(word, 0);
    int handle = kvt_namespace(mine, &desc);
    ck_assert_int_eq(kvt_connect_wait(mine, 5000), KVTIER_OK);
    for (unsigned i = 0; i < 2; i++)
        ck_assert_int_eq(kvt_store(mine, handle, keys, N, layouts, 0, 0, NULL, NULL, NULL),
                         KVTIER_OK);
    uint64_t end_ns = kvt_now_ns() + UINT64_C(20000000000);
    while (__atomic_load_n(&word, __ATOMIC_RELAXED) < 2 && kvt_now_ns() < end_ns)
        sched_yield();
    ck_assert_uint_eq(kvt_poll(mine, c, 1), 1);
    ck_assert_uint_eq(word, 1);
    ck_assert_uint_eq(kvt_poll(mine, c, 2), 1);
    ck_assert_uint_eq(word, 0);
    kvt_close(mine);

    options.size = offsetof(kvtier_options, n_done); /* built against the first release */
    options.n_done = (uint32_t *)1;
    ck_assert_int_eq(kvt_open(&options, &mine), KVTIER_OK);
    kvt_close(mine);
    options.size--;
    ck_assert_int_eq(kvt_open(&options, &mine), KVTIER_ERR_INVAL);
}
END_TEST

START_TEST(a_child_does_not_use_it)
{
    ck_assert_uint_eq(store_all().n_ok, N);
    pid_t pid = fork();
    if (pid == 0) {
        kvtier_completion c;
        bool ok = kvt_lookup(session, ns, keys, N, 0, 0, NULL, NULL, NULL) == KVTIER_ERR_UNREACH &&
                  kvt_poll(session, &c, 1) == 0 && kvt_ping(session, 100) == KVTIER_ERR_UNREACH;
        kvt_close(session);
        _exit(ok ? 0 : 1);
    }
    int status;
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert_int_eq(status, 0);
    ck_assert_uint_eq(load_all(0).n_ok, N);
}
END_TEST

struct user {
    pthread_t thread;
    unsigned index;
    unsigned n_done;
};

static _Atomic unsigned n_completions;

static void *user_main(void *arg)
{
    struct user *user = arg;
    kvtier_completion c[4];
    for (unsigned i = 0; i < 300; i++) {
        unsigned kind = (user->index + i) % 4;
        int status;
        do {
            status = kind == 0   ? kvt_lookup(session, ns, keys, N, 0, 0, NULL, NULL, NULL)
                     : kind == 1 ? kvt_store(session, ns, keys, N, layouts, 0, 0, NULL, NULL, NULL)
                     : kind == 2 ? kvt_prefetch(session, ns, keys, N, 0, 0, NULL, NULL, NULL)
                                 : kvt_ping(session, 5000);
        } while (status == KVTIER_ERR_AGAIN);
        if (status != KVTIER_OK)
            return NULL;
        user->n_done += kind != 3;
        atomic_fetch_add(&n_completions, kvt_wait(session, c, 4, kind == 3 ? 0 : 50));
    }
    return NULL;
}

START_TEST(many_threads)
{
    struct user users[6] = {0};
    unsigned n = 0;
    kvtier_completion c;
    for (unsigned i = 0; i < 6; i++) {
        users[i].index = i;
        ck_assert_int_eq(pthread_create(&users[i].thread, NULL, user_main, &users[i]), 0);
    }
    for (unsigned i = 0; i < 6; i++) {
        pthread_join(users[i].thread, NULL);
        n += users[i].n_done;
    }
    ck_assert_uint_eq(n, 6 * 225);
    while (atomic_load(&n_completions) < n && kvt_wait(session, &c, 1, 10000) == 1)
        atomic_fetch_add(&n_completions, 1);
    ck_assert_uint_eq(atomic_load(&n_completions), n);
}
END_TEST

START_TEST(close_with_ops_open)
{
    fault(PEER_SILENT, _i == 0 ? KVT_WIRE_RESERVE : _i == 1 ? KVT_WIRE_COMMIT : KVT_WIRE_LOOKUP);
    for (unsigned i = 0; i < 20; i++) {
        ck_assert_int_eq(kvt_store(session, ns, keys, N, layouts, 0, 0, NULL, NULL, NULL),
                         KVTIER_OK);
        ck_assert_int_eq(kvt_lookup(session, ns, keys, N, 0, 0, NULL, NULL, NULL), KVTIER_OK);
    }
}
END_TEST

/* Memory whose last page is there when this says so: who copies from it waits until then. */
struct late {
    int fd;
    char *memory;
    uint64_t bytes, page;
};

static bool late_open(struct late *late)
{
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_THREAD_ID};
    late->page = (uint64_t)sysconf(_SC_PAGESIZE);
    late->bytes = (CHUNK_BYTES + late->page - 1) / late->page * late->page;
    late->fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
    if (late->fd < 0)
        return false;
    late->memory =
        mmap(NULL, late->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ck_assert_ptr_ne(late->memory, MAP_FAILED);
    memset(late->memory, 1, late->bytes - late->page);
    struct uffdio_register range = {
        .range = {(uintptr_t)late->memory + late->bytes - late->page, late->page},
        .mode = UFFDIO_REGISTER_MODE_MISSING};
    ck_assert_int_eq(ioctl(late->fd, UFFDIO_API, &api), 0);
    ck_assert_int_eq(ioctl(late->fd, UFFDIO_REGISTER, &range), 0);
    return true;
}

/* Wait until a thread waits for it. @return whether that is one which only copies. */
static bool late_wait(const struct late *late)
{
    struct pollfd p = {.fd = late->fd, .events = POLLIN};
    struct uffd_msg msg;
    char file[64], name[32] = "";
    ck_assert_int_eq(poll(&p, 1, 5000), 1);
    ck_assert_int_eq(read(late->fd, &msg, sizeof(msg)), sizeof(msg));
    snprintf(file, sizeof(file), "/proc/self/task/%u/comm", msg.arg.pagefault.feat.ptid);
    FILE *comm = fopen(file, "r");
    ck_assert_ptr_ne(comm, NULL);
    ck_assert_ptr_ne(fgets(name, sizeof(name), comm), NULL);
    fclose(comm);
    return strcmp(name, "kvtier-copy\n") == 0;
}

static void late_arrive(struct late *late)
{
    struct uffdio_zeropage page = {
        .range = {(uintptr_t)late->memory + late->bytes - late->page, late->page}};
    ck_assert_int_eq(ioctl(late->fd, UFFDIO_ZEROPAGE, &page), 0);
}

static void late_close(struct late *late)
{
    close(late->fd);
    munmap(late->memory, late->bytes);
}

/*
 * The agent takes the end of the connection for word that nobody copies any more, and gives the
 * slots to others: it must not come before.
 */
START_TEST(a_connection_ends_after_its_copies)
{
    struct late late;
    bool by_copier = false;
    kvt_close(session);
    session_open(0, 2);
    ck_assert_int_eq(kvt_connect_wait(session, 5000), KVTIER_OK);
    for (unsigned i = 0; i < PEER_SLOTS / N && !by_copier; i++) {
        if (!late_open(&late))
            return; /* a kernel without, or a sandbox that refuses it */
        /* The last chunk is of a second job, of the other thread as a rule. */
        layouts[N - 1] =
            (kvtier_layout){.base = late.memory, .n_outer = 1, .n_inner = 1, .bytes = CHUNK_BYTES};
        for (unsigned k = 0; k < N; k++)
            keys[k][1] = (unsigned char)i;
        ck_assert_int_eq(kvt_store(session, ns, keys, N, layouts, 0, 0, NULL, NULL, NULL),
                         KVTIER_OK);
        by_copier = late_wait(&late); /* else the thread that ends connections waits itself */
        if (by_copier) {
            unsigned n_hello = atomic_load(&peer.n_hello);
            fault(PEER_CLOSE, KVT_WIRE_LOAD);
            ck_assert_int_eq(kvt_load(session, ns, keys[1], 1, &layouts[1], 0, 0, NULL, NULL, NULL),
                             KVTIER_OK);
            ck_assert_int_eq(one_done(5000).type, KVTIER_LOAD);
            usleep(300000); /* its next connection would be there */
            ck_assert_uint_eq(atomic_load(&peer.n_hello), n_hello);
        }
        late_arrive(&late);
        ck_assert_int_eq(one_done(5000).type, KVTIER_STORE);
        late_close(&late);
    }
    ck_assert(by_copier);
    fault(PEER_HONEST, 0);
    ck_assert_int_eq(kvt_connect_wait(session, 5000), KVTIER_OK);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("peer");
    TCase *tc = tcase_create("sane");
    tcase_set_timeout(tc, 60);
    tcase_add_checked_fixture(tc, setup_peer, teardown_peer);
    tcase_add_test(tc, round_trip);
    tcase_add_test(tc, parent_is_no_item);
    tcase_add_test(tc, event_fd_tells_of_both_kinds);
    tcase_add_test(tc, bad_arguments_are_refused);
    tcase_add_test(tc, a_deaf_agent_stalls_nobody);
    tcase_add_loop_test(tc, cancel_ends_an_op, 0, 3);
    tcase_add_test(tc, load_keeps_its_deadline);
    tcase_add_test(tc, who_waits_learns_of_the_end);
    tcase_add_test(tc, a_late_lookup_gives_its_lease_back);
    tcase_add_test(tc, completions_may_wait);
    tcase_add_test(tc, a_word_tells_how_many_wait);
    tcase_add_test(tc, a_child_does_not_use_it);
    tcase_add_test(tc, many_threads);
    tcase_add_test(tc, a_connection_ends_after_its_copies);
    tcase_add_loop_test(tc, close_with_ops_open, 0, 3);
    suite_add_tcase(suite, tc);
    tc = tcase_create("hostile");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, faults_end_as_misses, 0, (int)KVT_ARRAY_LEN(faults));
    tcase_add_test(tc, another_version_is_told);
    tcase_add_test(tc, no_agent_means_misses_at_once);
    tcase_add_loop_test(tc, the_agent_is_told_that_loads_are_over, 0, 3);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_failed == 0 ? 0 : 1;
}
