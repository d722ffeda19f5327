/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls of the agent's control API (kvtier/v1/control.proto) over its unix socket. What goes wrong
 * is printed here; the exit code says what it was.
 */
#ifndef KVT_KVCTL_CLIENT_H
#define KVT_KVCTL_CLIENT_H

#include <protobuf-c/protobuf-c.h>

#include "kvctl.h"

/**
 * One call with one answer, within --timeout. The connection is made at the first one and kept.
 *
 * @param method  As in the service: "ListTiers".
 * @param reply_p Its answer; free with protobuf_c_message_free_unpacked(reply, NULL).
 * @return KVCTL_OK; KVCTL_NOT_FOUND, KVCTL_UNREACHABLE, KVCTL_FAILED, KVCTL_LATE.
 */
enum kvctl_exit kvctl_call(struct kvctl *k, const char *method, const ProtobufCMessage *request,
                           ProtobufCMessage **reply_p);
/** The same without a word about failures: for who can do without. */
enum kvctl_exit kvctl_call_quiet(struct kvctl *k, const char *method,
                                 const ProtobufCMessage *request, ProtobufCMessage **reply_p);

/* A call with many answers. */
struct kvctl_stream;

enum kvctl_exit kvctl_stream_open(struct kvctl *k, const char *method,
                                  const ProtobufCMessage *request, struct kvctl_stream **stream_p);
/**
 * The next answer; waits at most wait_ms. KVCTL_OK with *reply_p NULL: none so far, or, with
 * *end_p, there are no more.
 */
enum kvctl_exit kvctl_stream_next(struct kvctl_stream *stream, int wait_ms,
                                  ProtobufCMessage **reply_p, bool *end_p);
/** NULL is fine. */
void kvctl_stream_close(struct kvctl_stream *stream);

void kvctl_client_close(struct kvctl *k);

/** Whether a socket lets this process connect, within the timeout; else errno. type: SOCK_STREAM
 * or SOCK_SEQPACKET. *pid_p: of who listens, where the kernel tells. */
int kvctl_socket_probe(const char *path, int type, int *pid_p);
/** "no agent listens at PATH: ...; start one or ...": for what the probe found. */
enum kvctl_exit kvctl_socket_fail(const char *path, const char *option, int err);

#endif
