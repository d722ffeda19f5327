/* SPDX-License-Identifier: Apache-2.0 */
#include "peer.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "kvt/util.h"

#define ARENA_BYTES ((uint64_t)PEER_SLOTS * PEER_SLOT_BYTES)

static void reply(int fd, void *msg, size_t bytes)
{
    struct kvt_wire_header *h = msg;
    h->bytes = (uint32_t)bytes;
    ssize_t n = send(fd, msg, bytes, MSG_NOSIGNAL);
    (void)n; /* a client that is gone */
}

static void welcome_send(struct peer *p, int fd, uint64_t op, int fault)
{
    struct kvt_wire_welcome w = {
        .h = {.type = KVT_WIRE_WELCOME, .bytes = sizeof(w), .op = op},
        .version = fault == PEER_VERSION ? 99 : KVT_WIRE_VERSION,
        .status = fault == PEER_VERSION ? KVT_ERR_VERSION : KVT_OK,
        .incarnation = 7,
        .n_regions = fault == PEER_VERSION ? 0 : 1,
        .n_ops_max = 16,
        .lease_ttl_max_ns = UINT64_C(1000000000),
        .slab_bytes = PEER_SLAB_BYTES,
        .regions = {{0, fault == PEER_SHORT_FILE ? 2 * ARENA_BYTES : ARENA_BYTES, 4096}},
    };
    struct iovec iov = {&w, sizeof(w)};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    if (fault != PEER_NO_FDS && fault != PEER_VERSION) {
        msg.msg_control = &control;
        msg.msg_controllen = sizeof(control);
        struct cmsghdr *cm = CMSG_FIRSTHDR(&msg);
        cm->cmsg_level = SOL_SOCKET;
        cm->cmsg_type = SCM_RIGHTS;
        cm->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(cm), &p->arena_fd, sizeof(int));
    }
    ssize_t n = sendmsg(fd, &msg, MSG_NOSIGNAL);
    (void)n;
}

static int slot_of(const struct peer *p, const struct kvt_key *key)
{
    for (int i = 0; i < PEER_SLOTS; i++) {
        if (p->held[i] && memcmp(&p->keys[i], key, sizeof(*key)) == 0)
            return i;
    }
    return -1;
}

struct items {
    struct kvt_wire_items r;
    struct kvt_wire_item items[KVT_BATCH_MAX + 1];
};

static void items_send(int fd, struct items *m, uint32_t n, int fault)
{
    if (fault == PEER_BAD_INDEX && n > 0)
        m->items[n - 1].index = 5000;
    if (fault == PEER_BAD_OFFSET && n > 0)
        m->items[n - 1].offset = ARENA_BYTES - 1;
    if (fault == PEER_LATE_LEASE && n > 0)
        m->items[n - 1].lease_deadline_ns = kvt_now_ns() - 1;
    if (fault == PEER_TWICE && n > 0) {
        m->items[n] = m->items[n - 1];
        n++;
    }
    if (fault == PEER_REFUSE) {
        m->r.status = KVT_ERR_AGAIN;
        n = 0;
    }
    m->r.n_items = n;
    reply(fd, m, sizeof(m->r) + n * sizeof(m->items[0]));
}

static void on_lookup(struct peer *p, int fd, const struct kvt_wire_lookup *q, int fault)
{
    struct {
        struct kvt_wire_lookup_r r;
        uint8_t where[KVT_BATCH_MAX + 1];
    } m = {.r = {.h = {.type = KVT_WIRE_LOOKUP_R, .op = q->h.op}}};
    const struct kvt_key *keys = (const void *)(q + 1);
    while (m.r.n_hit < q->n_keys && slot_of(p, &keys[m.r.n_hit]) >= 0)
        m.where[m.r.n_hit++] = KVT_WHERE_HOST;
    if ((q->flags & KVT_LOOKUP_LEASE) && m.r.n_hit > 0) {
        m.r.lease = 42;
        m.r.lease_deadline_ns = kvt_now_ns() + UINT64_C(1000000000);
    }
    if (fault == PEER_LONG_HIT)
        m.r.n_hit = q->n_keys + 1;
    reply(fd, &m, sizeof(m.r) + m.r.n_hit);
}

static void on_reserve(struct peer *p, int fd, const struct kvt_wire_reserve *q, int fault)
{
    static _Thread_local struct items m;
    const struct kvt_key *keys = (const void *)(q + 1);
    uint32_t parent = (q->flags & KVT_STORE_PARENT) ? 1 : 0;
    memset(&m.r, 0, sizeof(m.r));
    m.r.h = (struct kvt_wire_header){.type = KVT_WIRE_RESERVE_R, .op = q->h.op};
    for (uint32_t i = 0; i < q->n_keys - parent; i++) {
        int slot = 0;
        while (slot < PEER_SLOTS && (p->held[slot] || p->reserved_op[slot] != 0))
            slot++;
        m.items[i] = (struct kvt_wire_item){.index = i, .status = KVT_ERR_NOSPACE};
        if (slot_of(p, &keys[i + parent]) >= 0) {
            m.items[i].status = KVT_ERR_EXISTS;
        } else if (slot < PEER_SLOTS) {
            m.items[i].status = KVT_OK;
            m.items[i].offset = (uint64_t)slot * PEER_SLOT_BYTES;
            p->keys[slot] = keys[i + parent];
            p->reserved_op[slot] = q->h.op;
            p->reserved_index[slot] = i;
        }
    }
    items_send(fd, &m, q->n_keys - parent, fault);
}

static void on_commit(struct peer *p, int fd, const struct kvt_wire_commit *q, int fault)
{
    static _Thread_local struct items m;
    const uint32_t *indexes = (const void *)(q + 1);
    memset(&m.r, 0, sizeof(m.r));
    m.r.h = (struct kvt_wire_header){.type = KVT_WIRE_COMMIT_R, .op = q->h.op};
    for (uint32_t i = 0; i < q->n_items; i++) {
        m.items[i] = (struct kvt_wire_item){.index = indexes[i]};
        for (int slot = 0; slot < PEER_SLOTS; slot++) {
            if (p->reserved_op[slot] == q->h.op && p->reserved_index[slot] == indexes[i]) {
                p->reserved_op[slot] = 0;
                p->held[slot] = true;
            }
        }
    }
    atomic_fetch_add(&p->n_commit_items, q->n_items);
    items_send(fd, &m, q->n_items, fault);
}

static void on_load(struct peer *p, int fd, const struct kvt_wire_load *q, int fault)
{
    static _Thread_local struct items m;
    const struct kvt_key *keys = (const void *)(q + 1);
    uint32_t parent = (q->flags & KVT_LOAD_PARENT) ? 1 : 0;
    memset(&m.r, 0, sizeof(m.r));
    m.r.h = (struct kvt_wire_header){.type = KVT_WIRE_LOAD_R, .op = q->h.op};
    for (uint32_t i = 0; i < q->n_keys - parent; i++) {
        int slot = slot_of(p, &keys[i + parent]);
        m.items[i] = (struct kvt_wire_item){.index = i, .status = KVT_ERR_MISS};
        if (slot >= 0) {
            m.items[i].status = KVT_OK;
            m.items[i].offset = (uint64_t)slot * PEER_SLOT_BYTES;
            m.items[i].lease_deadline_ns = kvt_now_ns() + UINT64_C(10000000000);
        }
    }
    items_send(fd, &m, q->n_keys - parent, fault);
}

static void on_cancel(struct peer *p, int fd, const struct kvt_wire_header *q)
{
    struct kvt_wire_status r = {.h = {.type = KVT_WIRE_CANCEL_R, .op = q->op}};
    for (int slot = 0; slot < PEER_SLOTS; slot++) {
        if (p->reserved_op[slot] == q->op)
            p->reserved_op[slot] = 0;
    }
    atomic_fetch_add(&p->n_cancel, 1);
    reply(fd, &r, sizeof(r));
}

static void on_small(struct peer *p, int fd, const struct kvt_wire_header *q)
{
    if (q->type == KVT_WIRE_PING) {
        struct kvt_wire_header r = {.type = KVT_WIRE_PONG, .op = q->op};
        reply(fd, &r, sizeof(r));
    } else if (q->type == KVT_WIRE_NS_OPEN) {
        struct kvt_wire_ns_open_r r = {.h = {.type = KVT_WIRE_NS_OPEN_R, .op = q->op}, .ns = 3};
        reply(fd, &r, sizeof(r));
    } else if (q->type == KVT_WIRE_RELEASE) {
        struct kvt_wire_status r = {.h = {.type = KVT_WIRE_RELEASE_R, .op = q->op}};
        atomic_fetch_add(&p->n_release, 1);
        reply(fd, &r, sizeof(r));
    } else if (q->type == KVT_WIRE_STATS) {
        struct {
            struct kvt_wire_stats_r r;
            uint64_t values[3];
        } m = {.r = {.h = {.type = KVT_WIRE_STATS_R, .op = q->op}, .n = 3}, .values = {5, 6, 7}};
        reply(fd, &m, sizeof(m));
    } else if (q->type == KVT_WIRE_LOAD_DONE) {
        atomic_fetch_add(&p->n_load_done, 1);
    }
}

/* @return false: close the connection. */
static bool on_message(struct peer *p, int fd, const void *msg)
{
    const struct kvt_wire_header *h = msg;
    int type = atomic_load(&p->fault_type);
    int fault = type == h->type || type == PEER_ANY ? atomic_load(&p->fault) : PEER_HONEST;
    if (h->type == KVT_WIRE_HELLO)
        atomic_fetch_add(&p->n_hello, 1);
    if (fault == PEER_SILENT)
        return true;
    if (fault == PEER_CLOSE)
        return false;
    if (fault == PEER_GARBAGE) {
        unsigned char noise[333];
        for (size_t i = 0; i < sizeof(noise); i++)
            noise[i] = (unsigned char)rand();
        ssize_t n = send(fd, noise, sizeof(noise), MSG_NOSIGNAL);
        (void)n;
        return true;
    }
    switch (h->type) {
    case KVT_WIRE_HELLO:
        welcome_send(p, fd, h->op, fault);
        break;
    case KVT_WIRE_LOOKUP:
        on_lookup(p, fd, msg, fault);
        break;
    case KVT_WIRE_RESERVE:
        on_reserve(p, fd, msg, fault);
        break;
    case KVT_WIRE_COMMIT:
        on_commit(p, fd, msg, fault);
        break;
    case KVT_WIRE_LOAD:
        on_load(p, fd, msg, fault);
        break;
    case KVT_WIRE_CANCEL:
        on_cancel(p, fd, h);
        break;
    default:
        on_small(p, fd, h);
    }
    return true;
}

static void *peer_main(void *arg)
{
    struct peer *p = arg;
    _Alignas(8) static _Thread_local unsigned char buf[KVT_WIRE_BYTES_MAX];
    for (;;) {
        struct pollfd fds[PEER_CONNS + 2] = {{p->stop_fd, POLLIN, 0}, {p->listen_fd, POLLIN, 0}};
        for (int i = 0; i < PEER_CONNS; i++)
            fds[i + 2] = (struct pollfd){atomic_load(&p->deaf) ? -1 : p->fds[i], POLLIN, 0};
        poll(fds, PEER_CONNS + 2, 20); /* `deaf` changes without an event */
        if (fds[0].revents != 0)
            return NULL;
        for (int i = 0; i < PEER_CONNS; i++) {
            if (fds[i + 2].revents == 0)
                continue;
            ssize_t n = recv(p->fds[i], buf, sizeof(buf), MSG_DONTWAIT);
            if (n > 0 ? !on_message(p, p->fds[i], buf) : n == 0 || errno != EAGAIN) {
                close(p->fds[i]);
                p->fds[i] = -1;
            }
        }
        if (fds[1].revents != 0) {
            int fd = accept4(p->listen_fd, NULL, NULL, SOCK_CLOEXEC);
            int i = 0;
            while (i < PEER_CONNS && p->fds[i] >= 0)
                i++;
            if (i < PEER_CONNS)
                p->fds[i] = fd;
            else
                close(fd);
        }
    }
}

void peer_start(struct peer *p, const char *path)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    memset(p, 0, sizeof(*p));
    memset(p->fds, -1, sizeof(p->fds));
    ck_assert_int_lt(snprintf(p->path, sizeof(p->path), "%s", path), (int)sizeof(p->path));
    memcpy(addr.sun_path, p->path, sizeof(p->path));
    p->arena_fd = memfd_create("peer", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    ck_assert_int_eq(ftruncate(p->arena_fd, (off_t)ARENA_BYTES), 0);
    ck_assert_int_eq(fcntl(p->arena_fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
    p->arena = mmap(NULL, ARENA_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, p->arena_fd, 0);
    ck_assert_ptr_ne(p->arena, MAP_FAILED);
    p->stop_fd = eventfd(0, EFD_CLOEXEC);
    p->listen_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    unlink(path);
    ck_assert_int_eq(bind(p->listen_fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
    ck_assert_int_eq(listen(p->listen_fd, 16), 0);
    ck_assert_int_eq(pthread_create(&p->thread, NULL, peer_main, p), 0);
}

void peer_stop(struct peer *p)
{
    uint64_t one = 1;
    ck_assert_int_eq(write(p->stop_fd, &one, sizeof(one)), sizeof(one));
    pthread_join(p->thread, NULL);
    for (int i = 0; i < PEER_CONNS; i++) {
        if (p->fds[i] >= 0)
            close(p->fds[i]);
    }
    close(p->listen_fd);
    close(p->stop_fd);
    close(p->arena_fd);
    munmap(p->arena, ARENA_BYTES);
    unlink(p->path);
}
