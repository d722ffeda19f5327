/* SPDX-License-Identifier: Apache-2.0 */
#include "http.h"

#include <arpa/inet.h>
#include <errno.h>
#include <microhttpd.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "daemon_config.h"
#include "kvt/log.h"
#include "kvt/units.h"
#include "kvt/util.h"

#define CONNECTIONS_MAX 32
#define TIMEOUT_S       10          /* of a connection without progress */
#define CONNECTION_BUF  (16 * 1024) /* of a request's headers */
#define BACKLOG         32
#define PULL_WAIT_NS    KVT_NS_PER_S
#define SNAPSHOT_AGE_NS (10 * KVT_NS_PER_MS) /* younger ones are used again */

/* --- the snapshot ----------------------------------------------------------------------------- */

void http_answer(struct http *http, metrics_fill_fn fill, void *arg)
{
    struct metrics_pull *pull = &http->pull;
    eventfd_t ignored;
    (void)eventfd_read(pull->ask_fd, &ignored);
    /* Pairs with the asker's release: it no longer looks at the snapshot. */
    uint32_t asked = atomic_load_explicit(&pull->asked, memory_order_acquire);
    if (asked == atomic_load_explicit(&pull->answered, memory_order_relaxed))
        return;
    fill(arg, &pull->snapshot);
    atomic_store_explicit(&pull->answered, asked, memory_order_release);
    (void)eventfd_write(pull->answer_fd, 1);
}

/* False: the reactor did not answer in time. */
static bool pull_wait(struct metrics_pull *pull, uint32_t asked)
{
    uint64_t deadline = kvt_now_ns() + PULL_WAIT_NS;
    struct pollfd pfd = {.fd = pull->answer_fd, .events = POLLIN};
    eventfd_t ignored;
    for (;;) {
        if (atomic_load_explicit(&pull->answered, memory_order_acquire) == asked)
            return true;
        uint64_t now = kvt_now_ns();
        if (now >= deadline || atomic_load_explicit(&pull->closing, memory_order_acquire))
            return false;
        (void)poll(&pfd, 1, (int)((deadline - now) / KVT_NS_PER_MS) + 1);
        (void)eventfd_read(pull->answer_fd, &ignored);
    }
}

/* The present snapshot, or NULL. Only the server's thread comes here. */
static const struct metrics_snapshot *pull_snapshot(struct http *http)
{
    struct metrics_pull *pull = &http->pull;
    uint32_t asked = atomic_load_explicit(&pull->asked, memory_order_relaxed);
    bool answered = atomic_load_explicit(&pull->answered, memory_order_acquire) == asked;
    if (!atomic_load_explicit(&http->looping, memory_order_acquire))
        return NULL;
    if (answered && asked > 0 && kvt_now_ns() - pull->snapshot.made_ns < SNAPSHOT_AGE_NS)
        return &pull->snapshot;
    if (answered) { /* else an answer is still to come, and will be as good */
        atomic_store_explicit(&pull->asked, ++asked, memory_order_release);
        (void)eventfd_write(pull->ask_fd, 1);
    }
    return pull_wait(pull, asked) ? &pull->snapshot : NULL;
}

/* --- requests --------------------------------------------------------------------------------- */

static enum MHD_Result respond(struct MHD_Connection *connection, unsigned status, char *text,
                               size_t bytes, enum MHD_ResponseMemoryMode mode, const char *type)
{
    struct MHD_Response *response = MHD_create_response_from_buffer(bytes, text, mode);
    if (response == NULL) {
        if (mode == MHD_RESPMEM_MUST_FREE)
            free(text);
        return MHD_NO;
    }
    (void)MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, type);
    if (status == MHD_HTTP_METHOD_NOT_ALLOWED)
        (void)MHD_add_response_header(response, MHD_HTTP_HEADER_ALLOW, "GET, HEAD");
    enum MHD_Result result = MHD_queue_response(connection, status, response);
    MHD_destroy_response(response);
    return result;
}

static enum MHD_Result say(struct MHD_Connection *connection, unsigned status, const char *text)
{
    return respond(connection, status, (char *)text, strlen(text), MHD_RESPMEM_PERSISTENT,
                   "text/plain; charset=utf-8");
}

static enum MHD_Result say_metrics(struct http *http, struct MHD_Connection *connection)
{
    size_t bytes = 0;
    const struct metrics_snapshot *snapshot = pull_snapshot(http);
    if (snapshot == NULL)
        return say(connection, MHD_HTTP_SERVICE_UNAVAILABLE,
                   "the agent is starting, stopping or stuck; see its log\n");
    bool is_ready = atomic_load_explicit(&http->state, memory_order_relaxed) == SERVICE_READY;
    char *text = metrics_text(snapshot, is_ready, &bytes);
    if (text == NULL)
        return say(connection, MHD_HTTP_INTERNAL_SERVER_ERROR, "out of memory\n");
    return respond(connection, MHD_HTTP_OK, text, bytes, MHD_RESPMEM_MUST_FREE,
                   "text/plain; version=0.0.4; charset=utf-8");
}

/* Alive: the process is, and its reactor answers once it runs. */
static enum MHD_Result say_health(struct http *http, struct MHD_Connection *connection)
{
    if (!atomic_load_explicit(&http->looping, memory_order_acquire) || pull_snapshot(http) != NULL)
        return say(connection, MHD_HTTP_OK, "ok\n");
    return say(connection, MHD_HTTP_SERVICE_UNAVAILABLE, "the reactor does not answer\n");
}

static enum MHD_Result say_ready(struct http *http, struct MHD_Connection *connection)
{
    switch (atomic_load_explicit(&http->state, memory_order_relaxed)) {
    case SERVICE_READY:
        return say(connection, MHD_HTTP_OK, "ready\n");
    case SERVICE_DRAINING:
        return say(connection, MHD_HTTP_SERVICE_UNAVAILABLE, "draining\n");
    default:
        return say(connection, MHD_HTTP_SERVICE_UNAVAILABLE, "starting\n");
    }
}

static enum MHD_Result handle(void *arg, struct MHD_Connection *connection, const char *url,
                              const char *method, const char *version, const char *upload,
                              size_t *upload_bytes, void **state)
{
    struct http *http = arg;
    (void)version;
    (void)upload;
    (void)upload_bytes;
    (void)state;
    kvt_log(KVT_LOG_TRACE, "http request method=%.16s url=%.64s", method, url);
    if (strcmp(method, MHD_HTTP_METHOD_GET) != 0 && strcmp(method, MHD_HTTP_METHOD_HEAD) != 0)
        return say(connection, MHD_HTTP_METHOD_NOT_ALLOWED, "only GET and HEAD\n");
    if (strcmp(url, "/metrics") == 0)
        return say_metrics(http, connection);
    if (strcmp(url, "/healthz") == 0)
        return say_health(http, connection);
    if (strcmp(url, "/readyz") == 0)
        return say_ready(http, connection);
    return say(connection, MHD_HTTP_NOT_FOUND, "there are /metrics, /healthz and /readyz\n");
}

/* --- start and stop --------------------------------------------------------------------------- */

static int socket_listen(const struct sockaddr_storage *address)
{
    int one = 1;
    socklen_t len =
        address->ss_family == AF_INET6 ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in);
    int fd = socket(address->ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -1;
    /* A port whose last connections linger is free to take. */
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (bind(fd, (const struct sockaddr *)address, len) == 0 && listen(fd, BACKLOG) == 0)
        return fd;
    int cause = errno;
    close(fd);
    errno = cause;
    return -1;
}

static uint16_t bound_port(int fd)
{
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } address = {0};
    socklen_t len = sizeof(address);
    if (getsockname(fd, &address.any, &len) != 0)
        return 0;
    return ntohs(address.any.sa_family == AF_INET6 ? address.v6.sin6_port : address.v4.sin_port);
}

enum kvt_status http_start(struct http *http, const char *listen, struct kvt_error *err)
{
    struct sockaddr_storage address;
    if (*listen == '\0')
        return KVT_OK;
    http->pull.ask_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    http->pull.answer_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (http->pull.ask_fd < 0 || http->pull.answer_fd < 0)
        return kvt_error_set(err, KVT_ERR_NOMEM, "metrics: %s; check ulimit -n", strerror(errno));
    KVT_ASSERT(daemon_address_parse(listen, &address));
    int fd = socket_listen(&address);
    if (fd < 0) {
        kvt_log(KVT_LOG_ERROR,
                "metrics: cannot listen on %s: %s; going on without, check metrics.listen", listen,
                strerror(errno));
        return KVT_OK;
    }
    uint16_t port = bound_port(fd);
    http->daemon = MHD_start_daemon(
        MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_EPOLL, 0, NULL, NULL, handle, http,
        MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_CONNECTION_LIMIT, (unsigned)CONNECTIONS_MAX,
        MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)TIMEOUT_S, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
        (size_t)CONNECTION_BUF, MHD_OPTION_END);
    if (http->daemon == NULL) {
        close(fd);
        return kvt_error_set(err, KVT_ERR_NOMEM, "metrics: cannot start a server; check ulimit -u");
    }
    kvt_log(KVT_LOG_INFO, "metrics served over HTTP listen=%s port=%u", listen, (unsigned)port);
    return KVT_OK;
}

void http_stop(struct http *http)
{
    struct metrics_pull *pull = &http->pull;
    if (http->daemon != NULL) {
        atomic_store_explicit(&pull->closing, true, memory_order_release); /* to pull_wait() */
        (void)eventfd_write(pull->answer_fd, 1);
        MHD_stop_daemon(http->daemon); /* closes the listening socket too */
        http->daemon = NULL;
    }
    if (pull->ask_fd >= 0)
        close(pull->ask_fd);
    if (pull->answer_fd >= 0)
        close(pull->answer_fd);
    pull->ask_fd = pull->answer_fd = -1;
}
