/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the reactor counts beside the core. All of it is plain memory of the reactor: no lock, no
 * atomic, no system call but the clock. Other threads see a copy of one moment, which the reactor
 * makes when it is asked to (struct metrics_pull): never more often than every 10 ms, whoever asks.
 */
#ifndef KVT_DAEMON_METRICS_H
#define KVT_DAEMON_METRICS_H

#include <stdbool.h>
#include <stddef.h>

#include "ideal.h"
#include "kvt/tier.h"
#include "kvt/wire.h"

enum metrics_tier { METRICS_HOST, METRICS_NVME, METRICS_TIERS };

/* Upper ends of the buckets: 1, 2 and 5 times each power of ten from 1 us to 10 s; then the rest.
 */
#define METRICS_BOUNDS 22
extern const uint64_t metrics_bounds_ns[METRICS_BOUNDS];

struct histogram {
    uint64_t counts[METRICS_BOUNDS + 1];
    uint64_t sum_ns;
};

/* What is timed, from the turn in which the message was read to the last of its answers. */
#define METRICS_TIMED_MAP(X)                                                                       \
    X(LOOKUP, "lookup", "")                                                                        \
    X(RESERVE, "reserve", "")                                                                      \
    X(COMMIT, "commit", "")                                                                        \
    X(COMMIT_DURABLE, "commit", "nvme") /* answered later: it waited for the disk */               \
    X(LOAD_HOST, "load", "host")                                                                   \
    X(LOAD_NVME, "load", "nvme") /* answered later: some of it was read from NVMe */               \
    X(PREFETCH, "prefetch", "")                                                                    \
    X(RELEASE, "release", "")                                                                      \
    X(CANCEL, "cancel", "")                                                                        \
    X(NS_OPEN, "namespace", "")

enum metrics_timed {
#define METRICS_TIMED_ENUM(upper, operation, tier) TIMED_##upper,
    METRICS_TIMED_MAP(METRICS_TIMED_ENUM)
#undef METRICS_TIMED_ENUM
        TIMED_N
};

/* Why the agent ended a session. */
#define METRICS_END_MAP(X)                                                                         \
    X(MALFORMED, "malformed_message")                                                              \
    X(ORDER, "message_out_of_order")                                                               \
    X(UNREAD, "answers_not_read")                                                                  \
    X(SEND, "cannot_send")

enum session_end_cause {
#define METRICS_END_ENUM(upper, label) END_##upper,
    METRICS_END_MAP(METRICS_END_ENUM)
#undef METRICS_END_ENUM
        END_N
};

struct metrics_counters {
    struct histogram timed[TIMED_N];
    struct histogram io[2];        /* by enum kvt_io_type */
    uint64_t io_inflight_bytes[2]; /* likewise; a gauge */
    uint64_t lookup_tokens;        /* asked for */
    uint64_t hit_chunks[METRICS_TIERS], hit_tokens[METRICS_TIERS], hit_bytes[METRICS_TIERS];
    uint64_t load_bytes; /* answered */
    uint64_t sessions_opened, sessions_refused;
    uint64_t ended[END_N];
    uint64_t hello_timeouts;
    uint64_t refused[32];    /* requests, by minus their status */
    uint64_t avoidable_keys; /* of the snapshot alone, see ideal.h */
};

/* A copy of one moment. */
struct metrics_snapshot {
    uint64_t stats[KVT_STAT_N];
    struct metrics_counters counters;
    uint64_t made_ns;
};

struct timed_op; /* an op whose answer is awaited */

struct metrics {
    struct metrics_counters counters;
    struct ideal *ideal;
    struct timed_op *ops; /* n_ops of them, by chains of free, of a bucket and of a session */
    uint32_t *buckets;
    uint32_t *sessions;
    uint32_t n_ops, n_ops_used, n_buckets, n_sessions, free_op;
    uint64_t turn; /* of the reactor */
};

/* For as many ops as may be open in n_sessions. False: no memory. */
bool metrics_init(struct metrics *metrics, uint32_t n_sessions, uint32_t n_ops);
void metrics_fini(struct metrics *metrics);

void histogram_add(struct histogram *histogram, uint64_t ns);

const char *metrics_timed_name(enum metrics_timed what);

/* The request that was read at start_ns is answered. */
void metrics_timed(struct metrics *metrics, enum metrics_timed what, uint64_t start_ns);

/* A lookup was answered; call it then and not before: it may take a microsecond. */
void metrics_lookup(struct metrics *metrics, const struct kvt_ns_desc *desc, uint64_t ns_mark,
                    const struct kvt_wire_lookup *msg, const struct kvt_key *keys,
                    const uint8_t *where, unsigned n_hit);

/* An op was accepted: RESERVE, COMMIT, LOAD_HOST (or _NVME: it shows) or PREFETCH. n: items that
 * will be answered. */
void metrics_op_begin(struct metrics *metrics, uint32_t session, uint64_t op,
                      enum metrics_timed what, unsigned n, uint64_t chunk_bytes, uint64_t start_ns);
/* n of its items were answered, n_ok of them with KVT_OK. */
void metrics_op_answer(struct metrics *metrics, uint32_t session, uint64_t op,
                       enum metrics_timed what, unsigned n, unsigned n_ok);
/* No answer is awaited any more: canceled, refused; of the session: it is over. */
void metrics_op_drop(struct metrics *metrics, uint32_t session, uint64_t op);
void metrics_session_drop(struct metrics *metrics, uint32_t session);

void metrics_io_begin(struct metrics *metrics, struct kvt_io *io, uint64_t now_ns);
void metrics_io_end(struct metrics *metrics, const struct kvt_io *io, uint64_t now_ns);

/** The snapshot as text in Prometheus' exposition format; to be freed. NULL: no memory. */
char *metrics_text(const struct metrics_snapshot *snapshot, bool is_ready, size_t *bytes_p);

#endif
