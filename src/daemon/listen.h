/* SPDX-License-Identifier: Apache-2.0 */
/* A unix socket that listens, with its place in the file system. */
#ifndef KVT_DAEMON_LISTEN_H
#define KVT_DAEMON_LISTEN_H

#include <sys/socket.h>
#include <sys/types.h>
#include <sys/un.h>

#include "kvt/status.h"

struct listener {
    int fd, lock_fd; /* -1: none */
    char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
};

struct listener_config {
    const char *path; /* fits into a sockaddr_un */
    mode_t mode;      /* who may write may connect */
    int type;         /* SOCK_SEQPACKET, SOCK_STREAM */
    const char *key;  /* of the config, for messages */
};

/** Listen at a path that no other agent serves; makes its folder, and replaces a socket that nobody
 * listens on. The descriptor does not block. @return KVT_OK, or why not, in err. */
enum kvt_status listener_open(struct listener *listener, const struct listener_config *config,
                              struct kvt_error *err) KVT_MUST_CHECK;
/** Nobody can connect any more, and another agent may take the place. Fine when closed already. */
void listener_close(struct listener *listener);

#endif
