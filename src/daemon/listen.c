/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The sockets that clients connect to. A lock file beside each tells a socket file that an agent
 * left behind from one that serves: only the holder of the lock may replace it.
 */
#include "listen.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "agent.h"
#include "kvt/log.h"
#include "kvt/util.h"

#define BACKLOG 128

static enum kvt_status lock_take(struct listener *listener, const struct listener_config *config,
                                 struct kvt_error *err)
{
    char path[sizeof(listener->path) + 8];
    snprintf(path, sizeof(path), "%s.lock", config->path);
    listener->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (listener->lock_fd < 0)
        return kvt_error_set(err, kvt_status_from_errno(errno),
                             "socket: cannot open %s: %s; check %s", path, strerror(errno),
                             config->key);
    if (flock(listener->lock_fd, LOCK_EX | LOCK_NB) != 0)
        return kvt_error_set(err, KVT_ERR_BUSY,
                             "socket: %s serves another agent; stop it or change %s", config->path,
                             config->key);
    return KVT_OK;
}

/* Remove a socket that nobody listens on. What is no socket stays. */
static enum kvt_status stale_remove(const struct sockaddr_un *addr,
                                    const struct listener_config *config, struct kvt_error *err)
{
    struct stat st;
    if (lstat(addr->sun_path, &st) != 0)
        return KVT_OK;
    if (!S_ISSOCK(st.st_mode))
        return kvt_error_set(err, KVT_ERR_EXISTS, "socket: %s is no socket; remove it or change %s",
                             addr->sun_path, config->key);
    int fd = socket(AF_UNIX, config->type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return kvt_error_set(err, kvt_status_from_errno(errno), "socket: %s", strerror(errno));
    int rc = connect(fd, (const struct sockaddr *)addr, sizeof(*addr));
    int cause = errno;
    close(fd);
    if (rc == 0 || cause == EAGAIN || cause == EPROTOTYPE)
        return kvt_error_set(err, KVT_ERR_BUSY,
                             "socket: somebody listens on %s; stop it or change %s", addr->sun_path,
                             config->key);
    if (unlink(addr->sun_path) != 0 && errno != ENOENT)
        return kvt_error_set(err, kvt_status_from_errno(errno),
                             "socket: cannot replace %s: %s; check the folder's permissions",
                             addr->sun_path, strerror(errno));
    kvt_log(KVT_LOG_INFO, "replaced a socket that nobody listened on path=%s", addr->sun_path);
    return KVT_OK;
}

static void folder_make(const char *path)
{
    char folder[sizeof(((struct sockaddr_un *)0)->sun_path)];
    snprintf(folder, sizeof(folder), "%s", path);
    char *slash = strrchr(folder, '/');
    if (slash == NULL || slash == folder)
        return;
    *slash = '\0';
    (void)mkdir(folder, 0755); /* what fails here is told by the lock's open */
}

enum kvt_status listener_open(struct listener *listener, const struct listener_config *config,
                              struct kvt_error *err)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    _Static_assert(sizeof(addr.sun_path) == sizeof(listener->path), "fits");
    listener->fd = listener->lock_fd = -1;
    snprintf(listener->path, sizeof(listener->path), "%s", config->path);
    memcpy(addr.sun_path, listener->path, sizeof(addr.sun_path));
    folder_make(listener->path);
    enum kvt_status status = lock_take(listener, config, err);
    if (status == KVT_OK)
        status = stale_remove(&addr, config, err);
    if (status != KVT_OK) {
        listener_close(listener);
        return status;
    }
    int fd = socket(AF_UNIX, config->type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    bool bound = fd >= 0 && bind(fd, (const struct sockaddr *)&addr, sizeof(addr)) == 0;
    /* Nobody can connect before listen(), so permissions are right from the first moment. */
    if (!bound || chmod(listener->path, config->mode) != 0 || listen(fd, BACKLOG) != 0) {
        status = kvt_error_set(err, kvt_status_from_errno(errno),
                               "socket: cannot listen on %s: %s; check %s", listener->path,
                               strerror(errno), config->key);
        if (bound)
            (void)unlink(listener->path);
        if (fd >= 0)
            close(fd);
        listener_close(listener);
        return status;
    }
    listener->fd = fd;
    return KVT_OK;
}

void listener_close(struct listener *listener)
{
    if (listener->fd >= 0) {
        (void)unlink(listener->path);
        close(listener->fd);
    }
    if (listener->lock_fd >= 0)
        close(listener->lock_fd); /* the file stays: removing it would race with the next agent */
    listener->fd = listener->lock_fd = -1;
}

enum kvt_status listen_open(struct agent *agent, struct kvt_error *err)
{
    const struct listener_config config = {
        .path = agent->config.socket_path,
        .mode = agent->config.socket_mode,
        .type = SOCK_SEQPACKET,
        .key = "socket.path",
    };
    enum kvt_status status = listener_open(&agent->listener, &config, err);
    if (status != KVT_OK)
        return status;
    status = reactor_watch(agent, agent->listener.fd, WATCH_LISTEN);
    agent->listening = status == KVT_OK;
    return status == KVT_OK ? KVT_OK : kvt_error_set(err, status, "socket: cannot be watched");
}
