/* SPDX-License-Identifier: Apache-2.0 */
/* What each message does. Bytes of a client: checked before anything is done with them. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/socket.h>

#include "agent.h"
#include "kvt/log.h"
#include "kvt/util.h"

static void refused_count(struct agent *agent, const struct conn *conn, uint16_t type, uint64_t op,
                          enum kvt_status status)
{
    struct metrics_counters *c = &agent->metrics.counters;
    if (status == KVT_OK)
        return;
    c->refused[KVT_MIN((unsigned)-status, KVT_ARRAY_LEN(c->refused) - 1)]++;
    kvt_log(KVT_LOG_DEBUG, "request refused: %s type=%u session=%u op=%" PRIu64 " client=%s",
            kvt_status_str(status), type, conn->session, op, conn->client);
}

static void send_status(struct agent *agent, struct conn *conn, uint16_t type, uint64_t op,
                        enum kvt_status status)
{
    refused_count(agent, conn, type, op, status);
    struct kvt_wire_status msg = {.h = {.type = type, .bytes = sizeof(msg), .op = op},
                                  .status = status};
    session_send(agent, conn, &msg, sizeof(msg));
}

/* The answer to an op that was refused as a whole. */
static void send_refused(struct agent *agent, struct conn *conn, uint16_t type, uint64_t op,
                         enum kvt_status status)
{
    struct kvt_wire_items msg = {.h = {.type = type, .bytes = sizeof(msg), .op = op},
                                 .status = status};
    refused_count(agent, conn, type, op, status);
    session_send(agent, conn, &msg, sizeof(msg));
}

/* --- HELLO ------------------------------------------------------------------------------------ */

/* One send with the regions' descriptors; the socket is new, so it has room. */
static bool welcome_send(struct agent *agent, struct conn *conn, struct kvt_wire_welcome *msg)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int) * KVT_REGIONS_MAX)];
    } control = {0};
    struct iovec iov = {.iov_base = msg, .iov_len = sizeof(*msg)};
    struct msghdr mh = {.msg_iov = &iov, .msg_iovlen = 1};
    int fds[KVT_REGIONS_MAX];

    if (msg->n_regions > 0) {
        mh.msg_control = control.bytes;
        mh.msg_controllen = CMSG_SPACE(sizeof(int) * msg->n_regions);
        struct cmsghdr *cmsg = CMSG_FIRSTHDR(&mh);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(sizeof(int) * msg->n_regions);
        for (uint32_t i = 0; i < msg->n_regions; i++)
            fds[i] = agent->host_info.regions[i].fd;
        memcpy(CMSG_DATA(cmsg), fds, sizeof(int) * msg->n_regions);
    }
    if (sendmsg(conn->fd, &mh, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)sizeof(*msg))
        return true;
    kvt_log(KVT_LOG_WARN, "cannot welcome a client: %s pid=%d", strerror(errno), (int)conn->pid);
    return false;
}

static void client_name(struct conn *conn, const char *name)
{
    size_t i = 0;
    for (; i + 1 < sizeof(conn->client) && name[i] != '\0'; i++) {
        char c = name[i];
        conn->client[i] = c > ' ' && c < 0x7f && c != '=' ? c : '_'; /* for logs: one word */
    }
    conn->client[i] = '\0';
}

/* The connection leaves the list of those who said nothing, whatever comes of it. */
static void handle_hello(struct agent *agent, struct conn *conn)
{
    const struct kvt_wire_hello *hello = (const struct kvt_wire_hello *)(void *)agent->rx;
    struct kvt_wire_welcome msg = {
        .h = {.type = KVT_WIRE_WELCOME, .bytes = sizeof(msg), .op = hello->h.op},
        .version = KVT_WIRE_VERSION,
        .incarnation = agent->incarnation,
    };
    uint32_t session = 0;

    client_name(conn, hello->client);
    if (hello->version != KVT_WIRE_VERSION)
        msg.status = KVT_ERR_VERSION;
    else if (agent->draining)
        msg.status = KVT_ERR_AGAIN;
    else
        msg.status = kvt_core_session_open(agent->core, &session);
    if (msg.status != KVT_OK) {
        kvt_log(KVT_LOG_WARN, "client refused: %s pid=%d client=%s version=%u",
                kvt_status_str((enum kvt_status)msg.status), (int)conn->pid, conn->client,
                hello->version);
        agent->metrics.counters.sessions_refused++;
        (void)welcome_send(agent, conn, &msg);
        session_close(agent, conn);
        return;
    }
    msg.n_ops_max = agent->config.sessions_ops_max;
    msg.lease_ttl_max_ns = agent->config.lease_ttl_max_ns;
    msg.n_regions = agent->host_info.n_regions;
    msg.slab_bytes = agent->host_info.slab_bytes;
    for (uint32_t i = 0; i < msg.n_regions; i++) {
        const struct kvt_tier_region *region = &agent->host_info.regions[i];
        msg.regions[i] = (struct kvt_wire_region){
            .base = region->base, .bytes = region->bytes, .page_bytes = region->page_bytes};
    }
    if (!welcome_send(agent, conn, &msg)) {
        kvt_core_session_close(agent->core, session, agent->now_ns);
        session_close(agent, conn);
        return;
    }
    session_opened(agent, conn, session);
    kvt_log(KVT_LOG_DEBUG, "session opened session=%u pid=%d client=%s", session, (int)conn->pid,
            conn->client);
}

/* --- requests --------------------------------------------------------------------------------- */

static void handle_lookup(struct agent *agent, struct conn *conn, enum kvt_status status)
{
    const struct kvt_wire_lookup *msg = (const struct kvt_wire_lookup *)(void *)agent->rx;
    struct kvt_wire_lookup_r *reply = (struct kvt_wire_lookup_r *)(void *)agent->tx;
    *reply = (struct kvt_wire_lookup_r){.status = status};
    if (status == KVT_OK)
        kvt_core_lookup(agent->core, conn->session, msg->ns, kvt_wire_lookup_keys(msg), msg->n_keys,
                        msg->flags, msg->lease_ttl_ms, agent->now_ns, reply,
                        (uint8_t *)(reply + 1));
    reply->h = (struct kvt_wire_header){.type = KVT_WIRE_LOOKUP_R,
                                        .bytes = (uint32_t)sizeof(*reply) + reply->n_hit,
                                        .op = msg->h.op};
    /* Sending may end the session, but what was asked and answered stays where it is. */
    session_send(agent, conn, reply, reply->h.bytes);
    metrics_timed(&agent->metrics, TIMED_LOOKUP, agent->now_ns);
    if (reply->status != KVT_OK) {
        refused_count(agent, conn, KVT_WIRE_LOOKUP_R, msg->h.op, (enum kvt_status)reply->status);
        return;
    }
    metrics_lookup(&agent->metrics, kvt_core_ns_desc(agent->core, msg->ns),
                   agent_ns_mark(agent->core, msg->ns), msg, kvt_wire_lookup_keys(msg),
                   (const uint8_t *)(reply + 1), reply->n_hit);
    kvt_log(KVT_LOG_TRACE, "lookup keys=%u hits=%u session=%u op=%" PRIu64, msg->n_keys,
            reply->n_hit, conn->session, msg->h.op);
}

static void handle_ns_open(struct agent *agent, struct conn *conn)
{
    const struct kvt_wire_ns_open *msg = (const struct kvt_wire_ns_open *)(void *)agent->rx;
    struct kvt_wire_ns_open_r reply = {
        .h = {.type = KVT_WIRE_NS_OPEN_R, .bytes = sizeof(reply), .op = msg->h.op}};
    struct kvt_error err = {.msg = ""};
    enum kvt_status status = kvt_ns_desc_check(&msg->desc, &err);
    if (status == KVT_OK)
        status = kvt_core_ns_open(agent->core, conn->session, &msg->desc, &reply.ns,
                                  &reply.slot_bytes, &err);
    reply.status = status;
    if (status != KVT_OK) {
        size_t n = strnlen(err.msg, sizeof(reply.msg) - 1);
        memcpy(reply.msg, err.msg, n);
        refused_count(agent, conn, KVT_WIRE_NS_OPEN_R, msg->h.op, status);
        kvt_log(KVT_LOG_WARN, "namespace refused: %s session=%u op=%" PRIu64 " client=%s", err.msg,
                conn->session, msg->h.op, conn->client);
    }
    session_send(agent, conn, &reply, sizeof(reply));
    metrics_timed(&agent->metrics, TIMED_NS_OPEN, agent->now_ns);
}

/* The core has taken an op; its answers come later (actions.c). */
static void op_accepted(struct agent *agent, const struct conn *conn, enum metrics_timed what,
                        uint64_t op, uint32_t ns, unsigned n_items)
{
    const struct kvt_ns_desc *desc = ns != UINT32_MAX ? kvt_core_ns_desc(agent->core, ns) : NULL;
    metrics_op_begin(&agent->metrics, conn->session, op, what, n_items,
                     desc != NULL ? desc->chunk_bytes : 0, agent->now_ns);
    kvt_log(KVT_LOG_TRACE, "op accepted operation=%s items=%u session=%u op=%" PRIu64,
            metrics_timed_name(what), n_items, conn->session, op);
}

static void handle_reserve(struct agent *agent, struct conn *conn, enum kvt_status status)
{
    const struct kvt_wire_reserve *msg = (const struct kvt_wire_reserve *)(void *)agent->rx;
    if (status == KVT_OK)
        status = kvt_core_reserve(agent->core, conn->session, msg->h.op, msg->ns,
                                  kvt_wire_reserve_keys(msg), msg->n_keys, msg->flags,
                                  msg->deadline_ns, agent->now_ns);
    if (status != KVT_OK) {
        send_refused(agent, conn, KVT_WIRE_RESERVE_R, msg->h.op, status);
        return;
    }
    op_accepted(agent, conn, TIMED_RESERVE, msg->h.op, msg->ns,
                msg->n_keys - ((msg->flags & KVT_STORE_PARENT) != 0));
    ideal_stored(agent->metrics.ideal, agent_ns_mark(agent->core, msg->ns),
                 kvt_wire_reserve_keys(msg), msg->n_keys);
}

static void handle_commit(struct agent *agent, struct conn *conn, enum kvt_status status)
{
    const struct kvt_wire_commit *msg = (const struct kvt_wire_commit *)(void *)agent->rx;
    uint32_t n_segments = 0;
    if (status == KVT_OK) {
        n_segments = kvt_core_op_segments(agent->core, conn->session, msg->h.op);
        if (n_segments == 0)
            status = KVT_ERR_INVAL; /* no such op: how long the message should be is unknown */
        else if (kvt_wire_commit_check(msg, n_segments) != KVT_OK) {
            session_end(agent, conn, END_MALFORMED, "commit of a wrong size");
            return;
        }
    }
    if (status == KVT_OK)
        status =
            kvt_core_commit(agent->core, conn->session, msg->h.op, kvt_wire_commit_indexes(msg),
                            msg->n_items, msg->flags, kvt_wire_commit_sums(msg), agent->now_ns);
    if ((msg->flags & KVT_COMMIT_ABORT) != 0)
        return; /* nobody waits for the answer */
    if (status != KVT_OK)
        send_refused(agent, conn, KVT_WIRE_COMMIT_R, msg->h.op, status);
    else
        op_accepted(agent, conn, TIMED_COMMIT, msg->h.op, UINT32_MAX, msg->n_items);
}

static void handle_load(struct agent *agent, struct conn *conn, enum kvt_status status)
{
    const struct kvt_wire_load *msg = (const struct kvt_wire_load *)(void *)agent->rx;
    if (status == KVT_OK)
        status =
            kvt_core_load(agent->core, conn->session, msg->h.op, msg->ns, kvt_wire_load_keys(msg),
                          msg->n_keys, msg->flags, msg->deadline_ns, agent->now_ns);
    if (status != KVT_OK)
        send_refused(agent, conn, KVT_WIRE_LOAD_R, msg->h.op, status);
    else
        op_accepted(agent, conn,
                    (msg->flags & KVT_LOAD_PREFETCH) != 0 ? TIMED_PREFETCH : TIMED_LOAD_HOST,
                    msg->h.op, msg->ns, msg->n_keys - ((msg->flags & KVT_LOAD_PARENT) != 0));
}

static void handle_stats(struct agent *agent, struct conn *conn, uint64_t op)
{
    struct {
        struct kvt_wire_stats_r r;
        uint64_t values[KVT_STAT_N];
    } msg = {
        .r = {.h = {.type = KVT_WIRE_STATS_R, .bytes = sizeof(msg), .op = op}, .n = KVT_STAT_N}};
    agent_stats(agent, msg.values);
    session_send(agent, conn, &msg, sizeof(msg));
}

static void handle_request(struct agent *agent, struct conn *conn, enum kvt_status status)
{
    const struct kvt_wire_header *h = (const struct kvt_wire_header *)(void *)agent->rx;
    struct kvt_wire_header pong = {.type = KVT_WIRE_PONG, .bytes = sizeof(pong), .op = h->op};
    switch (h->type) {
    case KVT_WIRE_PING:
        session_send(agent, conn, &pong, sizeof(pong));
        break;
    case KVT_WIRE_NS_OPEN:
        handle_ns_open(agent, conn);
        break;
    case KVT_WIRE_LOOKUP:
        handle_lookup(agent, conn, status);
        break;
    case KVT_WIRE_RELEASE:
        send_status(agent, conn, KVT_WIRE_RELEASE_R, h->op,
                    kvt_core_release(agent->core, conn->session,
                                     ((const struct kvt_wire_release *)(void *)agent->rx)->lease));
        metrics_timed(&agent->metrics, TIMED_RELEASE, agent->now_ns);
        break;
    case KVT_WIRE_RESERVE:
        handle_reserve(agent, conn, status);
        break;
    case KVT_WIRE_COMMIT:
        handle_commit(agent, conn, status);
        break;
    case KVT_WIRE_LOAD:
        handle_load(agent, conn, status);
        break;
    case KVT_WIRE_LOAD_DONE:
        metrics_op_drop(&agent->metrics, conn->session, h->op);
        kvt_core_load_done(agent->core, conn->session, h->op, agent->now_ns);
        break;
    case KVT_WIRE_CANCEL:
        metrics_op_drop(&agent->metrics, conn->session, h->op);
        send_status(agent, conn, KVT_WIRE_CANCEL_R, h->op,
                    kvt_core_cancel(agent->core, conn->session, h->op, agent->now_ns));
        metrics_timed(&agent->metrics, TIMED_CANCEL, agent->now_ns);
        break;
    case KVT_WIRE_STATS:
        handle_stats(agent, conn, h->op);
        break;
    default:
        session_end(agent, conn, END_ORDER, "message out of order");
        break;
    }
}

void handle_message(struct agent *agent, struct conn *conn, size_t bytes)
{
    const struct kvt_wire_header *h = (const struct kvt_wire_header *)(void *)agent->rx;
    enum kvt_status status = kvt_wire_request_check(agent->rx, bytes);
    if (conn->state == CONN_GREETING) {
        if (status == KVT_OK && h->type == KVT_WIRE_HELLO)
            handle_hello(agent, conn);
        else
            session_close(agent, conn); /* it holds nothing yet */
    } else if (status == KVT_ERR_PROTO) {
        session_end(agent, conn, END_MALFORMED, "malformed message");
    } else {
        handle_request(agent, conn, status);
    }
}
