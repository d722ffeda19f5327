/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Clients that send anything, in any order, to the daemon's real sessions and a real core; a disk
 * and metadata that answer at once. The input is a row of steps: a byte that says which client and
 * what, then what that needs. In the end all clients are gone, and nothing may be held for them.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "agent.h"
#include "fuzz.h"
#include "fuzz_core.h"
#include "kvt/log.h"

enum { N_CLIENTS = 3, N_PENDING = 1024 };

/* What a step does. */
enum step { STEP_RAW, STEP_FRAMED, STEP_HELLO, STEP_NS, STEP_LEAVE, STEP_READ, STEP_TIME, N_STEPS };

static struct agent agent;
static int clients[N_CLIENTS];
static struct kvt_io *ios[N_PENDING];
static unsigned n_ios;
static uint64_t tokens[N_PENDING];
static unsigned n_tokens;

static void fake_io(void *arg, struct kvt_io *io)
{
    (void)arg;
    KVT_ASSERT(n_ios < N_PENDING);
    ios[n_ios++] = io;
}

static void token_add(uint64_t token)
{
    KVT_ASSERT(n_tokens < N_PENDING);
    tokens[n_tokens++] = token;
}

static void fake_put(void *arg, const struct kvt_meta_record *record, uint64_t token)
{
    (void)arg;
    (void)record;
    token_add(token);
}

static void fake_del(void *arg, uint32_t slot, uint64_t token)
{
    (void)arg;
    (void)slot;
    token_add(token);
}

static void fake_slab(void *arg, uint32_t slab, uint64_t slot_bytes, uint64_t token)
{
    (void)arg;
    (void)slab;
    (void)slot_bytes;
    token_add(token);
}

static void fake_ns(void *arg, uint32_t ns, uint64_t since, const struct kvt_ns_desc *desc,
                    uint64_t token)
{
    (void)arg;
    (void)ns;
    (void)since;
    (void)desc;
    token_add(token);
}

/* Every third read is damaged, so that chunks are lost under their users. */
static void edges_answer(void)
{
    static unsigned n_reads;
    unsigned n = n_ios;
    n_ios = 0;
    for (unsigned i = 0; i < n; i++) {
        bool damaged = ios[i]->type == KVT_IO_READ && ++n_reads % 3 == 0;
        ios[i]->status = damaged ? KVT_ERR_CORRUPT : KVT_OK;
        kvt_core_io_done(agent.core, ios[i], agent.now_ns);
    }
    n = n_tokens;
    n_tokens = 0;
    for (unsigned i = 0; i < n; i++)
        kvt_core_meta_done(agent.core, tokens[i], KVT_OK, agent.now_ns);
}

static void settle(void)
{
    struct epoll_event events[16];
    int n;
    do {
        n = epoll_wait(agent.epoll_fd, events, KVT_ARRAY_LEN(events), 0);
        for (int i = 0; i < n; i++) {
            if (events[i].data.u64 == WATCH_LISTEN)
                sessions_accept(&agent);
            else
                session_event(&agent, &agent.conns[events[i].data.u64 - WATCH_CONN],
                              events[i].events);
        }
        kvt_core_flush(agent.core, agent.now_ns);
        edges_answer();
        kvt_core_flush(agent.core, agent.now_ns);
    } while (n > 0);
}

static void listen_once(struct sockaddr_un *address)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = WATCH_LISTEN};
    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    snprintf(address->sun_path + 1, sizeof(address->sun_path) - 1, "kvt-fuzz-%d", (int)getpid());
    agent.listener.fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    agent.epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    KVT_ASSERT(agent.listener.fd >= 0 && agent.epoll_fd >= 0);
    KVT_ASSERT(bind(agent.listener.fd, (struct sockaddr *)address, sizeof(*address)) == 0);
    KVT_ASSERT(listen(agent.listener.fd, N_CLIENTS) == 0);
    KVT_ASSERT(epoll_ctl(agent.epoll_fd, EPOLL_CTL_ADD, agent.listener.fd, &event) == 0);
}

static int client_of(unsigned which)
{
    static struct sockaddr_un address;
    if (address.sun_family == 0)
        listen_once(&address);
    if (clients[which] < 0) {
        int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        KVT_ASSERT(fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0);
        clients[which] = fd;
    }
    return clients[which];
}

/* A client that leaves, or whom the agent told to: its socket goes. */
static void leave(unsigned which)
{
    if (clients[which] >= 0)
        close(clients[which]);
    clients[which] = -1;
}

static void client_send(unsigned which, const void *msg, size_t bytes)
{
    (void)send(client_of(which), msg, bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void send_hello(unsigned which)
{
    const struct kvt_wire_hello hello = {
        .h = {.type = KVT_WIRE_HELLO, .bytes = sizeof(hello), .op = 1},
        .magic = KVT_WIRE_MAGIC,
        .version = KVT_WIRE_VERSION,
        .client = "fuzz"};
    client_send(which, &hello, sizeof(hello));
}

static void send_ns(unsigned which, unsigned kind)
{
    struct kvt_wire_ns_open open = {
        .h = {.type = KVT_WIRE_NS_OPEN, .bytes = sizeof(open), .op = 2},
        .desc = {.model = "fuzz", .n_layers = 1, .n_kv_heads = 1, .head_dim = 64}};
    open.desc.tokens_per_chunk = 16;
    open.desc.tp_size = 1;
    open.desc.pp_size = 1;
    open.desc.n_segments = 1 + kind % 2;
    open.desc.chunk_bytes = 4096 << kind % 3;
    client_send(which, &open, sizeof(open));
}

/* Bytes of the input as a message whose frame is right: type and length as they should be. */
static void send_framed(unsigned which, const uint8_t *data, size_t bytes)
{
    union {
        struct kvt_wire_header header;
        uint8_t bytes[512];
    } msg = {.bytes = {0}};
    bytes = KVT_MIN(bytes, sizeof(msg));
    memcpy(msg.bytes, data, bytes);
    bytes = KVT_MAX(bytes, sizeof(msg.header));
    msg.header.type = (uint16_t)(1 + msg.header.type % KVT_WIRE_STATS_R);
    msg.header.reserved = 0;
    msg.header.bytes = (uint32_t)bytes;
    msg.header.op %= 16;
    client_send(which, msg.bytes, bytes);
}

static void client_read(unsigned which)
{
    static uint8_t answer[KVT_WIRE_BYTES_MAX];
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int) * KVT_REGIONS_MAX)];
    } control;
    struct iovec iov = {.iov_base = answer, .iov_len = sizeof(answer)};
    for (unsigned n = 0; n < 64; n++) {
        struct msghdr mh = {.msg_iov = &iov,
                            .msg_iovlen = 1,
                            .msg_control = control.bytes,
                            .msg_controllen = sizeof(control.bytes)};
        ssize_t bytes = recvmsg(client_of(which), &mh, MSG_DONTWAIT);
        if (bytes < 0)
            return;
        if (bytes == 0) {
            leave(which);
            return;
        }
        struct kvt_wire_header header;
        KVT_ASSERT((size_t)bytes >= sizeof(header));
        memcpy(&header, answer, sizeof(header));
        KVT_ASSERT(header.bytes == (size_t)bytes && header.type <= KVT_WIRE_STATS_R);
    }
}

static size_t step_run(const uint8_t *data, size_t bytes)
{
    unsigned which = data[0] / N_STEPS % N_CLIENTS;
    size_t taken = 1;
    size_t n = 0;
    switch ((enum step)(data[0] % N_STEPS)) {
    case STEP_RAW:
    case STEP_FRAMED:
        if (bytes < 3)
            return bytes;
        n = KVT_MIN((size_t)data[1] | (size_t)data[2] << 8, bytes - 3);
        taken += 2 + n;
        if (data[0] % N_STEPS == STEP_RAW)
            client_send(which, data + 3, n);
        else
            send_framed(which, data + 3, n);
        break;
    case STEP_HELLO:
        send_hello(which);
        break;
    case STEP_NS:
        send_ns(which, data[0] / N_STEPS / N_CLIENTS);
        break;
    case STEP_LEAVE:
        leave(which);
        break;
    case STEP_READ:
        client_read(which);
        break;
    case STEP_TIME:
    case N_STEPS:
        agent.now_ns += UINT64_C(400000000);
        break;
    }
    settle();
    return taken;
}

static void expect_nothing_held(void)
{
    uint64_t stats[KVT_STAT_N];
    kvt_core_stats(agent.core, stats);
    KVT_ASSERT(stats[KVT_STAT_SESSIONS] == 0 && stats[KVT_STAT_LEASES] == 0);
    KVT_ASSERT(stats[KVT_STAT_PINS] == 0 && stats[KVT_STAT_OPS] == 0);
    KVT_ASSERT(stats[KVT_STAT_RESERVED_BYTES] == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct kvt_core_actions actions = agent_actions;
    actions.arg = &agent;
    actions.io = fake_io;
    actions.meta_put = fake_put;
    actions.meta_del = fake_del;
    actions.meta_slab = fake_slab;
    actions.meta_ns = fake_ns;

    kvt_log_setup(KVT_LOG_ERROR, KVT_LOG_TEXT);
    agent.now_ns = 1;
    agent.config.sessions_max = FUZZ_SESSIONS;
    agent.config.sessions_ops_max = 8;
    agent.core = fuzz_core_create(&actions);
    KVT_ASSERT(kvt_core_restore_end(agent.core) == 0 && sessions_init(&agent));
    KVT_ASSERT(metrics_init(&agent.metrics, FUZZ_SESSIONS, 2 * 8 * FUZZ_SESSIONS));
    for (uint32_t slab = 0; slab < FUZZ_HOST_SLABS; slab++)
        kvt_core_host_slab(agent.core, slab, slab * 64 * KVT_KIB);
    for (unsigned which = 0; which < N_CLIENTS; which++)
        clients[which] = -1;
    while (bytes > 0) {
        size_t taken = step_run(data, bytes);
        data += taken;
        bytes -= taken;
    }
    fuzz_core_expect(agent.core);
    for (unsigned which = 0; which < N_CLIENTS; which++)
        leave(which);
    settle();
    while (n_ios > 0 || n_tokens > 0)
        settle();
    expect_nothing_held();
    fuzz_core_expect(agent.core);
    sessions_fini(&agent);
    metrics_fini(&agent.metrics);
    agent.greet_head = agent.greet_tail = agent.free_conns = agent.hot = NULL;
    agent.n_greeting = 0;
    kvt_core_destroy(agent.core);
    return 0;
}
