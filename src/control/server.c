/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The server's threads. One tends to calls that wait; a few handle what gRPC has done. All run at
 * low priority, and the gate's and gRPC's own threads with them, because they are made by these.
 */
#include <errno.h>
#include <grpc/grpc.h>
#include <grpc/grpc_posix.h>
#include <grpc/grpc_security.h>
#include <grpc/support/log.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"
#include "call.h"
#include "control.h"
#include "gate.h"
#include "kvt/log.h"
#include "kvt/units.h"
#include "kvt/util.h"

#define WORKERS           3
#define NICE              10
#define STREAMS_MAX       100   /* of one connection at once; more wait at the client */
#define IDLE_MS           10000 /* a connection without calls; clients make another unasked */
#define KEEPALIVE_MS      10000 /* one with calls must answer a ping in that time, so often */
#define MESSAGE_BYTES_MAX (4 * (int)KVT_MIB)
#define METADATA_MAX      8192
#define LOOKAHEAD_BYTES   65536 /* of a stream that nobody reads yet */
#define QUOTA_BYTES       (96 * KVT_MIB)

struct control {
    struct agent *agent;
    struct control_env env;
    struct listener listener;
    struct call_table calls;
    pthread_t thread, workers[WORKERS];
    unsigned n_workers;
    _Atomic bool stopping;
};

/* --- gRPC ------------------------------------------------------------------------------------- */

/* What goes wrong with a call is told by its status. */
static void grpc_log(gpr_log_func_args *args)
{
    kvt_log(KVT_LOG_DEBUG, "control: grpc: %s", args->message);
}

static grpc_server *server_create(grpc_completion_queue *queue)
{
    grpc_resource_quota *quota = grpc_resource_quota_create("control");
    grpc_resource_quota_resize(quota, QUOTA_BYTES);
#define INTEGER(name, number)                                                                      \
    {.type = GRPC_ARG_INTEGER, .key = (char *)(name), .value.integer = (number)}
    grpc_arg args[] = {
        INTEGER(GRPC_ARG_MAX_CONCURRENT_STREAMS, STREAMS_MAX),
        INTEGER(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, MESSAGE_BYTES_MAX),
        INTEGER(GRPC_ARG_MAX_METADATA_SIZE, METADATA_MAX),
        INTEGER(GRPC_ARG_MAX_CONNECTION_IDLE_MS, IDLE_MS),
        INTEGER(GRPC_ARG_KEEPALIVE_TIME_MS, KEEPALIVE_MS),
        INTEGER(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, KEEPALIVE_MS),
        INTEGER(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, LOOKAHEAD_BYTES),
        INTEGER(GRPC_ARG_HTTP2_BDP_PROBE, 0),
        INTEGER(GRPC_ARG_ENABLE_PER_MESSAGE_COMPRESSION, 0),
        INTEGER(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0), /* bounds what one may unpack to */
        {.type = GRPC_ARG_POINTER,
         .key = (char *)GRPC_ARG_RESOURCE_QUOTA,
         .value.pointer = {quota, grpc_resource_quota_arg_vtable()}},
    };
#undef INTEGER
    const grpc_channel_args all = {.num_args = KVT_ARRAY_LEN(args), .args = args};
    grpc_server *server = grpc_server_create(&all, NULL);
    grpc_resource_quota_unref(quota);
    grpc_server_register_completion_queue(server, queue, NULL);
    grpc_server_start(server);
    return server;
}

/* Take over a connection from the gate. */
static void connection_add(void *arg, int fd)
{
    struct control *control = arg;
    grpc_server_credentials *credentials = grpc_insecure_server_credentials_create();
    grpc_server_add_channel_from_fd(control->calls.server, fd, credentials);
    grpc_server_credentials_release(credentials);
}

static void *worker_main(void *arg)
{
    struct control *control = arg;
    calls_work(&control->calls);
    return NULL;
}

static void workers_start(struct control *control)
{
    for (unsigned i = 0; i < WORKERS; i++) {
        int error = pthread_create(&control->workers[i], NULL, worker_main, control);
        if (error != 0) {
            kvt_log(KVT_LOG_ERROR, "control: cannot start a thread: %s; check ulimit -u",
                    strerror(error));
            return;
        }
        control->n_workers++;
    }
}

/* Wait for events, at most until due_ns. *news_p: some concern watches. */
static void events_wait(struct control *control, uint64_t due_ns, bool *news_p)
{
    struct pollfd fds[] = {{.fd = control->calls.wake_fd, .events = POLLIN},
                           {.fd = control->agent->calls.news_fd, .events = POLLIN}};
    eventfd_t ignored;
    int timeout_ms = -1;
    uint64_t now = kvt_now_ns();
    if (due_ns != UINT64_MAX)
        timeout_ms =
            due_ns <= now ? 0 : (int)KVT_MIN((due_ns - now) / KVT_NS_PER_MS + 1, INT32_MAX);
    *news_p = false;
    if (poll(fds, KVT_ARRAY_LEN(fds), timeout_ms) <= 0)
        return;
    if (fds[0].revents != 0)
        (void)eventfd_read(control->calls.wake_fd, &ignored);
    *news_p = fds[1].revents != 0 && eventfd_read(control->agent->calls.news_fd, &ignored) == 0;
}

static void serve(struct control *control)
{
    uint64_t due = UINT64_MAX;
    bool news;
    while (!atomic_load(&control->stopping)) {
        events_wait(control, due, &news);
        due = calls_tend(&control->calls, news);
    }
}

/* Ends what is open, and waits for that. */
static void drain(struct control *control)
{
    bool news;
    grpc_server_shutdown_and_notify(control->calls.server, control->calls.queue, NULL);
    calls_close(&control->calls);
    uint64_t due = calls_tend(&control->calls, true);
    while (!calls_gone(&control->calls)) {
        events_wait(control, due, &news);
        due = calls_tend(&control->calls, news);
    }
}

static void *control_main(void *arg)
{
    struct control *control = arg;
    struct gate *gate = NULL;
    struct kvt_error err = {.msg = ""};
    /* Of this thread and those made from here on; raising the number needs no permission. */
    (void)setpriority(PRIO_PROCESS, 0, NICE);
    gpr_set_log_function(grpc_log);
    grpc_init();
    control->calls.queue = grpc_completion_queue_create_for_next(NULL);
    control->calls.server = server_create(control->calls.queue);
    workers_start(control);
    if (control->n_workers > 0) {
        calls_open(&control->calls);
        if (gate_open(control->listener.fd, connection_add, control, &gate, &err) != KVT_OK)
            kvt_log(KVT_LOG_ERROR, "%s", err.msg);
        else
            kvt_log(KVT_LOG_INFO, "control API served socket=%s", control->env.control_path);
        serve(control);
        if (gate != NULL)
            gate_shut(gate);
        drain(control);
    }
    grpc_completion_queue_shutdown(control->calls.queue);
    for (unsigned i = 0; i < control->n_workers; i++)
        pthread_join(control->workers[i], NULL);
    grpc_server_destroy(control->calls.server);
    grpc_completion_queue_destroy(control->calls.queue);
    grpc_shutdown_blocking();
    gate_close(gate);
    return NULL;
}

/* --- start and stop --------------------------------------------------------------------------- */

static void control_destroy(struct control *control)
{
    listener_close(&control->listener);
    if (control->calls.wake_fd >= 0)
        close(control->calls.wake_fd);
    pthread_mutex_destroy(&control->calls.lock);
    free(control);
}

static void env_fill(struct control *control)
{
    struct control_env *env = &control->env;
    struct timespec now;
    env->agent = control->agent;
    if (gethostname(env->hostname, sizeof(env->hostname) - 1) != 0)
        env->hostname[0] = '\0';
    memcpy(env->control_path, control->listener.path, sizeof(env->control_path));
    clock_gettime(CLOCK_REALTIME, &now);
    env->started_unix_ms = (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / KVT_NS_PER_MS -
                           (kvt_now_ns() - control->agent->start_ns) / KVT_NS_PER_MS;
}

enum kvt_status control_start(struct agent *agent, struct control **control_p,
                              struct kvt_error *err)
{
    *control_p = NULL;
    if (agent->config.control_path[0] == '\0')
        return KVT_OK;
    const struct listener_config config = {
        .path = agent->config.control_path,
        .mode = 0600,
        .type = SOCK_STREAM,
        .key = "control.path",
    };
    struct control *control = calloc(1, sizeof(*control));
    if (control == NULL)
        return kvt_error_set(err, KVT_ERR_NOMEM, "control: out of memory at start");
    control->agent = agent;
    pthread_mutex_init(&control->calls.lock, NULL);
    control->calls.env = &control->env;
    control->calls.tend_ns = UINT64_MAX;
    control->calls.wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    enum kvt_status status = listener_open(&control->listener, &config, err);
    if (status == KVT_OK && control->calls.wake_fd < 0)
        status =
            kvt_error_set(err, KVT_ERR_NOMEM,
                          "control: cannot make an eventfd: %s; check ulimit -n", strerror(errno));
    env_fill(control);
    if (status == KVT_OK && pthread_create(&control->thread, NULL, control_main, control) != 0)
        status = kvt_error_set(err, KVT_ERR_NOMEM,
                               "control: cannot start a thread; check ulimit "
                               "-u");
    if (status == KVT_OK)
        *control_p = control;
    else
        control_destroy(control);
    return status;
}

void control_stop(struct control *control)
{
    if (control == NULL)
        return;
    atomic_store(&control->stopping, true);
    (void)eventfd_write(control->calls.wake_fd, 1);
    pthread_join(control->thread, NULL);
    control_destroy(control);
}
