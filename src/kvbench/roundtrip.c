/* SPDX-License-Identifier: Apache-2.0 */
#include "roundtrip.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kvt/util.h"

#define MESSAGE_BYTES 16 /* a header of the session protocol */

struct kvt_roundtrip {
    pid_t pid;
    int fd;
};

static _Noreturn void echo(int fd)
{
    char message[MESSAGE_BYTES];
    for (;;) {
        ssize_t n = recv(fd, message, sizeof(message), 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0 || send(fd, message, (size_t)n, MSG_NOSIGNAL) != n)
            _exit(0);
    }
}

enum kvt_status kvt_roundtrip_open(struct kvt_roundtrip **roundtrip_p, struct kvt_error *err)
{
    int fds[2];
    struct kvt_roundtrip *r = calloc(1, sizeof(*r));
    if (r == NULL)
        return kvt_error_set(err, KVT_ERR_NOMEM, "round trip: out of memory");
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) != 0) {
        enum kvt_status status = kvt_error_set(err, kvt_status_from_errno(errno),
                                               "round trip: socketpair: %s", strerror(errno));
        free(r);
        return status;
    }
    r->pid = fork();
    if (r->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        signal(SIGINT, SIG_IGN); /* the parent ends it by closing its side */
        close(fds[0]);
        echo(fds[1]);
    }
    close(fds[1]);
    r->fd = fds[0];
    if (r->pid < 0) {
        enum kvt_status status = kvt_error_set(err, kvt_status_from_errno(errno),
                                               "round trip: fork: %s", strerror(errno));
        close(r->fd);
        free(r);
        return status;
    }
    *roundtrip_p = r;
    return KVT_OK;
}

void kvt_roundtrip_close(struct kvt_roundtrip *r)
{
    if (r == NULL)
        return;
    close(r->fd);
    kill(r->pid, SIGKILL);
    waitpid(r->pid, NULL, 0);
    free(r);
}

uint64_t kvt_roundtrip_ns(struct kvt_roundtrip *r)
{
    char message[MESSAGE_BYTES] = {0};
    uint64_t start_ns = kvt_now_ns();
    if (send(r->fd, message, sizeof(message), MSG_NOSIGNAL) != sizeof(message))
        return 0;
    while (recv(r->fd, message, sizeof(message), 0) != sizeof(message))
        if (errno != EINTR)
            return 0;
    return kvt_now_ns() - start_ns;
}
