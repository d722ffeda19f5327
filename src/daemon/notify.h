/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a service manager is told (sd_notify(3)): readiness, a line of status, reloads, and signs of
 * life. The signs come from the reactor's own loop and nowhere else, so that a stuck reactor is
 * noticed. Datagrams that would block are dropped. Without NOTIFY_SOCKET all of it does nothing.
 */
#ifndef KVT_DAEMON_NOTIFY_H
#define KVT_DAEMON_NOTIFY_H

#include <stdint.h>

struct notify {
    int fd;               /* connected; -1: nobody is to be told */
    uint64_t watchdog_ns; /* between signs of life; 0: none are wanted */
    uint64_t next_ns;     /* of the next sign; UINT64_MAX: none */
};

/* Reads NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID. */
void notify_open(struct notify *notify);
void notify_close(struct notify *notify);

/* printf style: one or more lines of VARIABLE=VALUE. */
void notify_send(struct notify *notify, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Called in every turn of the reactor. */
static inline int notify_due(const struct notify *notify, uint64_t now_ns)
{
    return now_ns >= notify->next_ns;
}
void notify_alive(struct notify *notify, uint64_t now_ns);

#endif
