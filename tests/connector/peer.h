/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A scripted agent for tests of the connector: a thread that speaks the session protocol from a
 * table in memory, and misbehaves where it is told to.
 */
#ifndef KVT_TEST_PEER_H
#define KVT_TEST_PEER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "kvt/wire.h"

#define PEER_SLOTS      256
#define PEER_SLOT_BYTES (1u << 20)
#define PEER_SLAB_BYTES (24u << 20) /* a CUDA registration is shorter, and does not divide it */
#define PEER_CONNS      64
#define PEER_ANY        (-1) /* as the type of a fault: at every request */

enum peer_fault {
    PEER_HONEST,
    PEER_SILENT,     /* never answers that type */
    PEER_CLOSE,      /* closes instead of answering it */
    PEER_GARBAGE,    /* answers with noise */
    PEER_VERSION,    /* WELCOME: another version */
    PEER_NO_FDS,     /* WELCOME: without its descriptors */
    PEER_SHORT_FILE, /* WELCOME: a region larger than its file */
    PEER_BAD_OFFSET, /* RESERVE_R, LOAD_R: outside of the arena */
    PEER_BAD_INDEX,  /* RESERVE_R, LOAD_R, COMMIT_R: an item that was not asked for */
    PEER_TWICE,      /* LOAD_R: an item twice */
    PEER_LATE_LEASE, /* LOAD_R: the lease is over already */
    PEER_LONG_HIT,   /* LOOKUP_R: more than was asked for */
    PEER_REFUSE,     /* whole op refused with ERR_AGAIN */
};

struct peer {
    char path[64];
    int listen_fd, arena_fd, stop_fd;
    unsigned char *arena;
    pthread_t thread;
    /* What goes wrong, and at which request; changed by the test while the peer runs. */
    _Atomic int fault;
    _Atomic int fault_type;
    _Atomic bool deaf; /* reads nothing at all */
    _Atomic unsigned n_hello, n_cancel, n_load_done, n_commit_items, n_release;
    int fds[PEER_CONNS];
    struct kvt_key keys[PEER_SLOTS];
    bool held[PEER_SLOTS];
    uint64_t reserved_op[PEER_SLOTS];
    uint32_t reserved_index[PEER_SLOTS];
};

void peer_start(struct peer *p, const char *path);
void peer_stop(struct peer *p);

#endif
