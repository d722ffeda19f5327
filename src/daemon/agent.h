/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kvtierd: the core, the tiers and the sessions, owned by one thread, the reactor. Two kinds of
 * other threads exist: those of the tiers, and one that registers arena slabs (slabs.c).
 */
#ifndef KVT_DAEMON_AGENT_H
#define KVT_DAEMON_AGENT_H

#include <pthread.h>
#include <string.h>
#include <sys/types.h>

#include "control_call.h"
#include "daemon_config.h"
#include "http.h"
#include "kvt/core_admin.h"
#include "kvt/wire_check.h"
#include "listen.h"
#include "metrics.h"
#include "notify.h"
#include "reload.h"

#define IO_BATCH      64
#define GREETINGS_MAX 64 /* connections that have not said HELLO */

enum conn_state {
    CONN_FREE,
    CONN_GREETING, /* no HELLO yet */
    CONN_OPEN,
    CONN_ENDING, /* told to go; its slots are its own until its socket is gone */
};

struct conn {
    int fd;
    enum conn_state state;
    uint32_t session; /* of the core; OPEN and ENDING */
    uint32_t events;  /* asked of epoll */
    uint64_t hello_deadline_ns;
    struct conn *next, *prev; /* GREETING: in order of arrival; FREE: next only */
    pid_t pid;
    char client[48];
    /* Messages that the socket had no room for, each behind its length in 8 bytes. */
    uint8_t *out;
    size_t out_head, out_tail, out_room;
    size_t out_last; /* where the last message's length is; valid while there is one */
};

struct io_queue { /* transfers that the tier had no room for, through kvt_io.next */
    struct kvt_io *head, *tail;
};

struct meta_change {
    enum { META_PUT, META_DEL, META_SLAB, META_NS } type;
    uint32_t slot; /* or slab, or namespace */
    uint64_t slot_bytes;
    uint64_t token;
    struct kvt_meta_record record; /* of a namespace the generation alone */
};

struct meta_queue { /* changes that the metadata's ring had no room for */
    struct meta_change *ring;
    uint32_t mask, head, n;
};

struct slab_feed { /* arena slabs on their way from the tier to the core, by a thread */
    pthread_t thread;
    bool started;
    int stop_fd;
    int event_fd; /* readable: n_done grew */
    uint32_t *slabs;
    uint64_t *offsets;
    _Atomic uint32_t n_done; /* release in the thread, acquire in the reactor */
    _Atomic bool failed;     /* not one slab found memory */
    uint32_t n_taken;
};

struct spinner {
    uint64_t ns;
    unsigned credit;    /* spent by spins in vain, earned by others */
    unsigned n_skipped; /* spins not tried for want of credit */
};

struct agent {
    struct daemon_config config;
    struct kvt_config_sources config_sources;
    struct daemon_config_input config_input; /* to read it again */
    uint64_t incarnation;
    uint64_t now_ns;

    struct kvt_core *core;
    struct kvt_tier *host;
    struct kvt_tier *nvme; /* NULL: host memory alone */
    struct kvt_meta *meta; /* with nvme */
    struct kvt_tier_info host_info;
    struct io_queue ios;
    struct meta_queue changes;
    struct slab_feed feed;
    struct metrics metrics;
    struct http http;
    struct notify notify;
    struct reload reload;
    struct control_calls calls; /* of other threads */

    int epoll_fd, timer_fd, signal_fd;
    struct listener listener;
    uint64_t timer_ns; /* armed for; UINT64_MAX: not */
    struct spinner spin;
    struct conn *hot;  /* sent the last message, and may send the next soon */
    uint64_t heard_ns; /* a client's message was read last */
    bool listening;    /* listener.fd is watched */
    uint64_t accept_again_ns;
    bool draining, stop;
    bool failed; /* stopping because it cannot serve */
    uint64_t drain_deadline_ns;
    int ready_fd;
    bool is_ready;
    uint64_t start_ns;

    struct conn *conns;
    uint32_t n_conns;
    struct conn *free_conns;
    struct conn *greet_head, *greet_tail;
    unsigned n_greeting;
    struct conn **by_session;

    _Alignas(64) uint8_t rx[KVT_WIRE_BYTES_MAX];
    _Alignas(64)
        uint8_t tx[sizeof(struct kvt_wire_items) + KVT_BATCH_MAX * sizeof(struct kvt_wire_item)];
};

/* A namespace in the estimate of avoidable misses, which outlives its handle: part of its id. */
static inline uint64_t agent_ns_mark(const struct kvt_core *core, uint32_t ns)
{
    uint64_t mark;
    memcpy(&mark, kvt_core_ns_id(core, ns), sizeof(mark));
    return mark;
}

/* agent.c: tiers, metadata and core, in the order that a crash-safe start needs. */
enum kvt_status agent_open(struct agent *agent, struct kvt_error *err) KVT_MUST_CHECK;
void agent_close(struct agent *agent);
/* Hand on what of the config can change while the agent runs. */
void agent_tune(struct agent *agent);
/* Counters of core and tiers; agent_snapshot(): all that metrics show (arg: the agent). */
void agent_stats(const struct agent *agent, uint64_t stats[KVT_STAT_N]);
void agent_snapshot(void *arg, struct metrics_snapshot *snapshot);
/* The agent starts, serves or drains: tell who may want to know. */
void agent_state_set(struct agent *agent, enum service_state state);
void agent_status_tell(struct agent *agent);

/* actions.c: what the core asks for. */
extern const struct kvt_core_actions agent_actions;
bool actions_init(struct agent *agent, const struct kvt_core_config *config);
void actions_fini(struct agent *agent);
/* Hand what waits to the tiers; collect some of what they have done. */
void actions_push(struct agent *agent);
void actions_collect_io(struct agent *agent);
void actions_collect_meta(struct agent *agent);

/* slabs.c */
enum kvt_status slabs_start(struct agent *agent, struct kvt_error *err) KVT_MUST_CHECK;
void slabs_stop(struct agent *agent);
void slabs_collect(struct agent *agent);

/* listen.c */
enum kvt_status listen_open(struct agent *agent, struct kvt_error *err) KVT_MUST_CHECK;

/* session.c */
bool sessions_init(struct agent *agent);
void sessions_fini(struct agent *agent);
void sessions_accept(struct agent *agent);
/* Close who did not say HELLO in time; the next such moment, or UINT64_MAX. */
uint64_t sessions_expire(struct agent *agent);
void session_event(struct agent *agent, struct conn *conn, uint32_t events);
/* HELLO was answered: the connection is session `session` of the core from here on. */
void session_opened(struct agent *agent, struct conn *conn, uint32_t session);
/* Read and handle what is there, a bounded number of messages. True: there was one. */
bool session_read(struct agent *agent, struct conn *conn);
/* Send now, or queue. conn may be ENDING afterwards. */
void session_send(struct agent *agent, struct conn *conn, const void *msg, size_t bytes);
/* Add items to the last queued message if that is the same answer. False: it is not. */
bool session_append(struct conn *conn, const struct kvt_wire_items *msg);
/* End a session that broke the protocol: wire.h says how. detail: for the log. */
void session_end(struct agent *agent, struct conn *conn, enum session_end_cause cause,
                 const char *detail);
void session_close(struct agent *agent, struct conn *conn);

/* handler.c: one checked or unchecked message of a client. */
void handle_message(struct agent *agent, struct conn *conn, size_t bytes);

/* reactor.c */
enum kvt_status reactor_open(struct agent *agent, struct kvt_error *err) KVT_MUST_CHECK;
void reactor_close(struct agent *agent);
void reactor_run(struct agent *agent);
enum kvt_status reactor_watch(struct agent *agent, int fd, uint32_t kind) KVT_MUST_CHECK;

/* What epoll says with an event: one of these, or WATCH_CONN + index of the connection. */
enum watch {
    WATCH_TIMER,
    WATCH_SIGNAL,
    WATCH_LISTEN,
    WATCH_SLABS,
    WATCH_NVME,
    WATCH_META,
    WATCH_METRICS,
    WATCH_RELOAD,
    WATCH_CALLS,
    WATCH_CONN
};

#endif
