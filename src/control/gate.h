/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What stands between clients and gRPC: it accepts a bounded number of connections and passes bytes
 * on, both ways, no faster than both sides take them. Of a client it passes a bounded number of
 * HTTP/2 frames a second: a frame costs who sends it next to nothing, and gRPC reads on however
 * much of what it has read is not handled yet.
 */
#ifndef KVT_CONTROL_GATE_H
#define KVT_CONTROL_GATE_H

#include <stdint.h>

#include "kvt/status.h"

struct gate;

/** Takes over a connected stream socket, on the gate's thread. */
typedef void (*gate_deliver_fn)(void *arg, int fd);

/**
 * Accept connections of a listening socket, and hand each to deliver(arg, fd). One thread, of the
 * priority of the calling one.
 *
 * @param listen_fd  Borrowed; not blocking.
 */
enum kvt_status gate_open(int listen_fd, gate_deliver_fn deliver, void *arg, struct gate **gate_p,
                          struct kvt_error *err) KVT_MUST_CHECK;
/** Accept no more; when it returns none is delivered any more. Connections end within 2 s. */
void gate_shut(struct gate *gate);
/** Who got the sockets has closed all of them: clients get what is on its way to them, if they
 * take it within a moment. NULL is fine. */
void gate_close(struct gate *gate);

#endif
