/* SPDX-License-Identifier: Apache-2.0 */
#include "client.h"

#include <ctype.h>
#include <errno.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/support/alloc.h>
#include <grpc/support/log.h>
#include <grpc/support/time.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "kvt/util.h"
#include "control.pb-c.h"

#define SERVICE (&kvtier__v1__control__descriptor)

struct kvctl_client {
    grpc_channel *channel;
    grpc_completion_queue *queue;
};

/* What comes back of a call, owned by it. */
struct answer {
    grpc_metadata_array initial, trailing;
    grpc_byte_buffer *message;
    grpc_status_code code;
    grpc_slice details;
};

struct kvctl_stream {
    struct kvctl *k;
    const ProtobufCMethodDescriptor *method;
    grpc_call *call;
    struct answer answer;
    bool receiving; /* a receive is under way */
    bool over;      /* the status was asked for and is here */
};

/* --- sockets --------------------------------------------------------------------------------- */

int kvctl_socket_probe(const char *path, int type, int *pid_p)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    struct ucred cred;
    socklen_t bytes = sizeof(cred);
    snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path);
    int fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return errno;
    int err = connect(fd, (const struct sockaddr *)&addr, sizeof(addr)) == 0 ? 0 : errno;
    if (err == 0 && pid_p != NULL && getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &bytes) == 0)
        *pid_p = cred.pid;
    close(fd);
    return err;
}

enum kvctl_exit kvctl_socket_fail(const char *path, const char *option, int err)
{
    const char *next = "check the path";
    switch (err) {
    case ENOENT:
        next = "start kvtierd, or name its socket with ";
        break;
    case ECONNREFUSED:
        next = "the agent that made it is gone: start kvtierd, or name another socket with ";
        break;
    case EACCES:
    case EPERM:
        next = "run kvctl as root or as the agent's user (put and get-chunk: or in its group); "
               "other sockets: ";
        break;
    case EAGAIN:
        next = "too many clients wait there: try again, or name another socket with ";
        break;
    case EPROTOTYPE:
        next = "this is a socket of another kind: name the right one with ";
        break;
    default:
        next = "name another socket with ";
        break;
    }
    return kvctl_fail(KVCTL_UNREACHABLE, "no agent answers at %s: %s; %s%s, or run 'kvctl doctor'",
                      path, strerror(err), next, option);
}

/* --- connection ------------------------------------------------------------------------------ */

/* What gRPC would log is told by the status of the call. */
static void log_nothing(gpr_log_func_args *args)
{
    (void)args;
}

static bool client_open(struct kvctl *k)
{
    char target[sizeof(k->control_path) + 8];
    if (k->client != NULL)
        return true;
    struct kvctl_client *client = calloc(1, sizeof(*client));
    if (client == NULL)
        return false;
    gpr_set_log_function(log_nothing);
    grpc_init();
    grpc_arg no_proxy = {
        .type = GRPC_ARG_INTEGER, .key = (char *)GRPC_ARG_ENABLE_HTTP_PROXY, .value.integer = 0};
    grpc_channel_args args = {.num_args = 1, .args = &no_proxy};
    snprintf(target, sizeof(target), "unix:%s", k->control_path);
    grpc_channel_credentials *credentials = grpc_insecure_credentials_create();
    client->channel = grpc_channel_create(target, credentials, &args);
    grpc_channel_credentials_release(credentials);
    client->queue = grpc_completion_queue_create_for_pluck(NULL);
    k->client = client;
    return true;
}

void kvctl_client_close(struct kvctl *k)
{
    if (k->client == NULL)
        return;
    grpc_channel_destroy(k->client->channel);
    grpc_completion_queue_shutdown(k->client->queue);
    grpc_completion_queue_destroy(k->client->queue);
    grpc_shutdown_blocking();
    free(k->client);
    k->client = NULL;
}

static const ProtobufCMethodDescriptor *method_find(const char *name)
{
    const ProtobufCMethodDescriptor *method =
        protobuf_c_service_descriptor_get_method_by_name(SERVICE, name);
    KVT_ASSERT(method != NULL);
    return method;
}

static gpr_timespec after_ns(uint64_t ns)
{
    return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                        gpr_time_from_nanos((int64_t)ns, GPR_TIMESPAN));
}

static grpc_call *call_create(struct kvctl *k, const ProtobufCMethodDescriptor *method,
                              gpr_timespec deadline)
{
    char path[128];
    snprintf(path, sizeof(path), "/%s/%s", SERVICE->name, method->name);
    grpc_slice slice = grpc_slice_from_copied_string(path);
    grpc_call *call = grpc_channel_create_call(k->client->channel, NULL, GRPC_PROPAGATE_DEFAULTS,
                                               k->client->queue, slice, NULL, deadline, NULL);
    grpc_slice_unref(slice);
    return call;
}

static grpc_byte_buffer *packed(const ProtobufCMessage *message)
{
    grpc_slice slice = grpc_slice_malloc(protobuf_c_message_get_packed_size(message));
    protobuf_c_message_pack(message, GRPC_SLICE_START_PTR(slice));
    grpc_byte_buffer *buffer = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    return buffer;
}

/* NULL: no message of that type. */
static ProtobufCMessage *unpacked(grpc_byte_buffer *buffer, const ProtobufCMessageDescriptor *type)
{
    grpc_byte_buffer_reader reader;
    if (buffer == NULL || grpc_byte_buffer_reader_init(&reader, buffer) == 0)
        return NULL;
    grpc_slice slice = grpc_byte_buffer_reader_readall(&reader);
    ProtobufCMessage *message = protobuf_c_message_unpack(type, NULL, GRPC_SLICE_LENGTH(slice),
                                                          GRPC_SLICE_START_PTR(slice));
    grpc_slice_unref(slice);
    grpc_byte_buffer_reader_destroy(&reader);
    return message;
}

static void answer_init(struct answer *answer)
{
    *answer = (struct answer){.details = grpc_empty_slice()};
    grpc_metadata_array_init(&answer->initial);
    grpc_metadata_array_init(&answer->trailing);
}

static void answer_fini(struct answer *answer)
{
    grpc_metadata_array_destroy(&answer->initial);
    grpc_metadata_array_destroy(&answer->trailing);
    grpc_byte_buffer_destroy(answer->message);
    grpc_slice_unref(answer->details);
}

/* --- what a status means --------------------------------------------------------------------- */

static enum kvctl_exit status_code(grpc_status_code code)
{
    switch (code) {
    case GRPC_STATUS_OK:
        return KVCTL_OK;
    case GRPC_STATUS_NOT_FOUND:
        return KVCTL_NOT_FOUND;
    case GRPC_STATUS_UNAVAILABLE:
        return KVCTL_UNREACHABLE;
    case GRPC_STATUS_DEADLINE_EXCEEDED:
        return KVCTL_LATE;
    default:
        return KVCTL_FAILED;
    }
}

/* What the agent says of a failure may hold names that a client chose. */
static void details_text(grpc_slice details, char *text, size_t bytes)
{
    size_t n = KVT_MIN(GRPC_SLICE_LENGTH(details), bytes - 1);
    memcpy(text, GRPC_SLICE_START_PTR(details), n);
    text[n] = '\0';
    for (char *c = text; *c != '\0'; c++) {
        if ((unsigned char)*c < ' ' || *c == 0x7f)
            *c = '?';
    }
}

/* The agent tells users of the API where to look on, by the names of methods; an operator has
 * verbs: "see ListJobs" becomes "see 'kvctl get jobs'", and GetJob 'kvctl describe job'. */
static void verbs_name(const char *text, char *named, size_t bytes)
{
    static const struct {
        const char *method, *verb;
    } begins[] = {{"List", "get"}, {"Get", "describe"}};
    size_t n = 0;
    for (bool word_begins = true; *text != '\0' && n + 1 < bytes;) {
        for (size_t i = 0; word_begins && i < KVT_ARRAY_LEN(begins); i++) {
            size_t length = strlen(begins[i].method);
            if (strncmp(text, begins[i].method, length) != 0 ||
                !isupper((unsigned char)text[length]))
                continue;
            text += length;
            length = strcspn(text, " ,;.");
            n += (size_t)snprintf(named + n, bytes - n, "'kvctl %s %c%.*s'", begins[i].verb,
                                  tolower((unsigned char)*text), (int)length - 1, text + 1);
            n = KVT_MIN(n, bytes - 1);
            text += length;
        }
        word_begins = *text == ' ';
        if (*text != '\0' && n + 1 < bytes)
            named[n++] = *text++;
    }
    named[n] = '\0';
}

static enum kvctl_exit answer_report(struct kvctl *k, const struct answer *answer,
                                     const char *method)
{
    enum kvctl_exit code = status_code(answer->code);
    char details[1024], text[sizeof(details) + 64];
    details_text(answer->details, details, sizeof(details));
    verbs_name(details, text, sizeof(text));
    int err =
        code == KVCTL_UNREACHABLE ? kvctl_socket_probe(k->control_path, SOCK_STREAM, NULL) : 0;
    if (code == KVCTL_OK)
        return code;
    if (err != 0)
        return kvctl_socket_fail(k->control_path, "--socket or --control", err);
    if (code == KVCTL_LATE)
        return kvctl_fail(code,
                          "no answer from %s to %s within --timeout; look at the agent's log, "
                          "or give it longer",
                          k->control_path, method);
    if (answer->code == GRPC_STATUS_UNIMPLEMENTED)
        return kvctl_fail(code, "the agent at %s knows no %s; it is of another version than kvctl",
                          k->control_path, method);
    if (code == KVCTL_UNREACHABLE)
        return kvctl_fail(code, "%s: %s", k->control_path, text);
    return kvctl_fail(code, "%s", text);
}

/* --- one answer ------------------------------------------------------------------------------ */

static enum kvctl_exit call_run(struct kvctl *k, const ProtobufCMethodDescriptor *method,
                                const ProtobufCMessage *request, struct answer *answer)
{
    gpr_timespec deadline = after_ns(k->timeout_ns);
    grpc_call *call = call_create(k, method, deadline);
    grpc_byte_buffer *message = packed(request);
    grpc_op ops[] = {
        {.op = GRPC_OP_SEND_INITIAL_METADATA},
        {.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = message},
        {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT},
        {.op = GRPC_OP_RECV_INITIAL_METADATA,
         .data.recv_initial_metadata.recv_initial_metadata = &answer->initial},
        {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &answer->message},
        {.op = GRPC_OP_RECV_STATUS_ON_CLIENT,
         .data.recv_status_on_client = {.trailing_metadata = &answer->trailing,
                                        .status = &answer->code,
                                        .status_details = &answer->details}},
    };
    grpc_call_error started = grpc_call_start_batch(call, ops, KVT_ARRAY_LEN(ops), call, NULL);
    KVT_ASSERT(started == GRPC_CALL_OK);
    /* The call's deadline ends this wait. */
    (void)grpc_completion_queue_pluck(k->client->queue, call, gpr_inf_future(GPR_CLOCK_MONOTONIC),
                                      NULL);
    grpc_byte_buffer_destroy(message);
    grpc_call_unref(call);
    return status_code(answer->code);
}

static enum kvctl_exit call(struct kvctl *k, const char *name, const ProtobufCMessage *request,
                            bool quiet, ProtobufCMessage **reply_p)
{
    const ProtobufCMethodDescriptor *method = method_find(name);
    struct answer answer;
    if (!client_open(k))
        return kvctl_fail(KVCTL_FAILED, "out of memory");
    answer_init(&answer);
    enum kvctl_exit code = call_run(k, method, request, &answer);
    if (code != KVCTL_OK && !quiet)
        code = answer_report(k, &answer, name);
    if (code == KVCTL_OK) {
        *reply_p = unpacked(answer.message, method->output);
        if (*reply_p == NULL)
            code = kvctl_fail(KVCTL_FAILED,
                              "the agent's answer to %s cannot be read; it is of "
                              "another version than kvctl",
                              name);
    }
    answer_fini(&answer);
    return code;
}

enum kvctl_exit kvctl_call(struct kvctl *k, const char *method, const ProtobufCMessage *request,
                           ProtobufCMessage **reply_p)
{
    return call(k, method, request, false, reply_p);
}

enum kvctl_exit kvctl_call_quiet(struct kvctl *k, const char *method,
                                 const ProtobufCMessage *request, ProtobufCMessage **reply_p)
{
    return call(k, method, request, true, reply_p);
}

/* --- many answers ---------------------------------------------------------------------------- */

/* Waits for what was started with tag. False: not yet. */
static bool pluck(struct kvctl_stream *stream, void *tag, gpr_timespec until)
{
    return grpc_completion_queue_pluck(stream->k->client->queue, tag, until, NULL).type ==
           GRPC_OP_COMPLETE;
}

static void receive_start(struct kvctl_stream *stream)
{
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE,
                  .data.recv_message.recv_message = &stream->answer.message};
    grpc_call_error started = grpc_call_start_batch(stream->call, &op, 1, &stream->receiving, NULL);
    KVT_ASSERT(started == GRPC_CALL_OK);
    stream->receiving = true;
}

static void status_receive(struct kvctl_stream *stream)
{
    grpc_op op = {.op = GRPC_OP_RECV_STATUS_ON_CLIENT,
                  .data.recv_status_on_client = {.trailing_metadata = &stream->answer.trailing,
                                                 .status = &stream->answer.code,
                                                 .status_details = &stream->answer.details}};
    grpc_call_error started = grpc_call_start_batch(stream->call, &op, 1, &stream->over, NULL);
    KVT_ASSERT(started == GRPC_CALL_OK);
    (void)pluck(stream, &stream->over, gpr_inf_future(GPR_CLOCK_MONOTONIC));
    stream->over = true;
}

enum kvctl_exit kvctl_stream_open(struct kvctl *k, const char *name,
                                  const ProtobufCMessage *request, struct kvctl_stream **stream_p)
{
    struct kvctl_stream *stream = calloc(1, sizeof(*stream));
    if (stream == NULL || !client_open(k)) {
        free(stream);
        return kvctl_fail(KVCTL_FAILED, "out of memory");
    }
    stream->k = k;
    stream->method = method_find(name);
    answer_init(&stream->answer);
    stream->call = call_create(k, stream->method, gpr_inf_future(GPR_CLOCK_MONOTONIC));
    grpc_byte_buffer *message = packed(request);
    grpc_op ops[] = {
        {.op = GRPC_OP_SEND_INITIAL_METADATA},
        {.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = message},
        {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT},
        {.op = GRPC_OP_RECV_INITIAL_METADATA,
         .data.recv_initial_metadata.recv_initial_metadata = &stream->answer.initial},
    };
    grpc_call_error started =
        grpc_call_start_batch(stream->call, ops, KVT_ARRAY_LEN(ops), stream, NULL);
    KVT_ASSERT(started == GRPC_CALL_OK);
    if (!pluck(stream, stream, after_ns(k->timeout_ns))) {
        grpc_call_cancel(stream->call, NULL);
        (void)pluck(stream, stream, gpr_inf_future(GPR_CLOCK_MONOTONIC));
    }
    grpc_byte_buffer_destroy(message);
    *stream_p = stream;
    return KVCTL_OK;
}

enum kvctl_exit kvctl_stream_next(struct kvctl_stream *stream, int wait_ms,
                                  ProtobufCMessage **reply_p, bool *end_p)
{
    *reply_p = NULL;
    *end_p = false;
    if (!stream->receiving)
        receive_start(stream);
    if (!pluck(stream, &stream->receiving, after_ns((uint64_t)wait_ms * 1000000)))
        return KVCTL_OK;
    stream->receiving = false;
    if (stream->answer.message == NULL) {
        status_receive(stream);
        *end_p = true;
        return answer_report(stream->k, &stream->answer, stream->method->name);
    }
    *reply_p = unpacked(stream->answer.message, stream->method->output);
    grpc_byte_buffer_destroy(stream->answer.message);
    stream->answer.message = NULL;
    if (*reply_p == NULL)
        return kvctl_fail(KVCTL_FAILED,
                          "an answer of the agent to %s cannot be read; it is of "
                          "another version than kvctl",
                          stream->method->name);
    return KVCTL_OK;
}

void kvctl_stream_close(struct kvctl_stream *stream)
{
    if (stream == NULL)
        return;
    if (!stream->over) {
        grpc_call_cancel(stream->call, NULL);
        if (stream->receiving)
            (void)pluck(stream, &stream->receiving, gpr_inf_future(GPR_CLOCK_MONOTONIC));
        status_receive(stream);
    }
    grpc_call_unref(stream->call);
    answer_fini(&stream->answer);
    free(stream);
}
