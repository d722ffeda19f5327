/* SPDX-License-Identifier: Apache-2.0 */
#include "notify.h"

#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "kvt/log.h"
#include "kvt/units.h"
#include "kvt/util.h"

static int socket_connect(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t len = strlen(path);
    if ((*path != '/' && *path != '@') || len >= sizeof(address.sun_path)) {
        kvt_log(KVT_LOG_WARN, "NOTIFY_SOCKET is no path of a socket value=%s", path);
        return -1;
    }
    memcpy(address.sun_path, path, len);
    if (*path == '@')
        address.sun_path[0] = '\0'; /* a name that is no file */
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd >= 0 && connect(fd, (const struct sockaddr *)&address,
                           (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len)) == 0)
        return fd;
    kvt_log(KVT_LOG_WARN, "cannot reach the service manager: %s socket=%s", strerror(errno), path);
    if (fd >= 0)
        close(fd);
    return -1;
}

void notify_open(struct notify *notify)
{
    const char *path = getenv("NOTIFY_SOCKET");
    const char *usec = getenv("WATCHDOG_USEC");
    const char *pid = getenv("WATCHDOG_PID");
    uint64_t value = 0;
    *notify = (struct notify){.fd = -1, .next_ns = UINT64_MAX};
    if (path == NULL || *path == '\0')
        return;
    notify->fd = socket_connect(path);
    if (notify->fd < 0 || usec == NULL || !kvt_number_parse(usec, &value) || value == 0 ||
        value > UINT64_MAX / KVT_NS_PER_US)
        return;
    uint64_t us = value;
    if (pid != NULL && kvt_number_parse(pid, &value) && value != (uint64_t)getpid())
        return; /* meant for another process */
    notify->watchdog_ns = KVT_MAX(us * KVT_NS_PER_US / 2, KVT_NS_PER_MS);
    notify->next_ns = 0;
}

void notify_close(struct notify *notify)
{
    if (notify->fd >= 0)
        close(notify->fd);
    notify->fd = -1;
    notify->next_ns = UINT64_MAX;
}

void notify_send(struct notify *notify, const char *format, ...)
{
    char text[512];
    va_list ap;
    if (notify->fd < 0)
        return;
    va_start(ap, format);
    int n = vsnprintf(text, sizeof(text), format, ap);
    va_end(ap);
    if (n < 0 || (size_t)n >= sizeof(text) ||
        send(notify->fd, text, (size_t)n, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
        kvt_log(KVT_LOG_DEBUG, "service manager not told: %s", strerror(errno));
}

void notify_alive(struct notify *notify, uint64_t now_ns)
{
    notify_send(notify, "WATCHDOG=1");
    notify->next_ns = now_ns + notify->watchdog_ns;
}
