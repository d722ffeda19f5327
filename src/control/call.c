/* SPDX-License-Identifier: Apache-2.0 */
#include "call.h"

#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/slice.h>
#include <grpc/support/time.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "kvt/log.h"
#include "kvt/units.h"
#include "kvt/util.h"

#define ARMED_MAX        8   /* calls that wait for a client */
#define OPEN_MAX         320 /* others wait in gRPC until one of these ends */
#define STREAMS_MAX      256 /* of them; so that they leave room for others */
#define UNSENT_BYTES_MAX (32 * KVT_MIB)
#define CALL_TIME_NS     (10 * KVT_NS_PER_S) /* the longest that a call may take */
#define STALL_NS         (10 * KVT_NS_PER_S) /* a client that sends or reads nothing for so long */

enum call_state {
    CALL_ARMED,
    CALL_RECEIVING,
    CALL_RUNNING, /* somebody is in its handler or about to start what comes next */
    CALL_SENDING,
    CALL_WAITING, /* a watch, until due_ns */
    CALL_ENDING,  /* the status is on its way */
    CALL_OVER,
};

enum tag_kind { TAG_NEXT, TAG_CLOSE };

struct tag {
    struct call *call;
    enum tag_kind kind;
};

struct call {
    struct call_table *table;
    struct call *next, *prev; /* open */
    grpc_call *call;
    grpc_call_details details;
    grpc_metadata_array metadata;
    const struct method *method;
    struct request request;
    struct stream_state stream;
    struct tag tag_next, tag_close;
    grpc_byte_buffer *in, *out;
    size_t out_bytes;
    grpc_slice status_text;
    int canceled;   /* written by gRPC before the close event */
    bool has_begun; /* the initial metadata is sent */
    bool is_stream; /* counted in n_streams */
    /* With the table's lock: */
    enum call_state state;
    bool closed; /* the close event came */
    uint64_t due_ns;
    uint64_t stall_ns; /* 0: may take its time */
    uint64_t n_news;   /* seen */
};

static const struct method *const tables[] = {node_methods, list_methods,   pin_methods,
                                              job_methods,  health_methods, reflection_methods};

static const struct method *method_find(grpc_slice path)
{
    for (unsigned t = 0; t < KVT_ARRAY_LEN(tables); t++) {
        for (const struct method *m = tables[t]; m->path != NULL; m++) {
            if (grpc_slice_str_cmp(path, m->path) == 0)
                return m;
        }
    }
    return NULL;
}

/* --- life ------------------------------------------------------------------------------------- */

static struct call *call_create(struct call_table *table)
{
    struct call *call = calloc(1, sizeof(*call));
    if (call == NULL)
        return NULL;
    call->table = table;
    call->tag_next = (struct tag){call, TAG_NEXT};
    call->tag_close = (struct tag){call, TAG_CLOSE};
    call->status_text = grpc_empty_slice();
    call->request.env = table->env;
    arena_init(&call->request.arena);
    grpc_call_details_init(&call->details);
    grpc_metadata_array_init(&call->metadata);
    return call;
}

static void out_drop(struct call *call)
{
    if (call->out != NULL)
        grpc_byte_buffer_destroy(call->out);
    atomic_fetch_sub(&call->table->unsent_bytes, call->out_bytes);
    call->out = NULL;
    call->out_bytes = 0;
}

static void in_drop(struct call *call)
{
    if (call->in != NULL)
        grpc_byte_buffer_destroy(call->in);
    call->in = NULL;
}

static void call_destroy(struct call *call)
{
    out_drop(call);
    in_drop(call);
    arena_fini(&call->request.arena);
    grpc_slice_unref(call->status_text);
    grpc_call_details_destroy(&call->details);
    grpc_metadata_array_destroy(&call->metadata);
    if (call->call != NULL)
        grpc_call_unref(call->call);
    free(call);
}

static void wake(struct call_table *table)
{
    (void)eventfd_write(table->wake_fd, 1);
}

/* Have calls_tend() called by that time. With the lock. */
static void tend_by(struct call_table *table, uint64_t ns)
{
    if (ns >= table->tend_ns)
        return;
    table->tend_ns = ns;
    wake(table);
}

/* Have gRPC fetch calls, as many as there is room for. */
static void calls_arm(struct call_table *table)
{
    for (;;) {
        pthread_mutex_lock(&table->lock);
        bool more = !table->closing && table->n_armed < ARMED_MAX &&
                    table->n_open + table->n_armed < OPEN_MAX;
        table->n_armed += more;
        pthread_mutex_unlock(&table->lock);
        if (!more)
            return;
        struct call *call = call_create(table);
        if (call != NULL) {
            atomic_fetch_add(&table->turn, 1);
            if (grpc_server_request_call(table->server, &call->call, &call->details,
                                         &call->metadata, table->queue, table->queue,
                                         &call->tag_next) == GRPC_CALL_OK)
                continue;
            call_destroy(call);
        }
        pthread_mutex_lock(&table->lock);
        table->n_armed--;
        pthread_mutex_unlock(&table->lock);
        kvt_log(KVT_LOG_ERROR, "control: cannot take a call: out of memory");
        return;
    }
}

/* Forget a call of which nothing is outstanding any more. */
static void call_forget(struct call *call)
{
    struct call_table *table = call->table;
    pthread_mutex_lock(&table->lock);
    if (call->next != NULL)
        call->next->prev = call->prev;
    if (call->prev != NULL)
        call->prev->next = call->next;
    else
        table->open = call->next;
    table->n_streams -= call->is_stream;
    pthread_mutex_unlock(&table->lock);
    call_destroy(call);
    pthread_mutex_lock(&table->lock);
    table->n_open--; /* last: calls_gone() says that gRPC may be left */
    bool gone = table->closing && table->n_open + table->n_armed == 0;
    if (gone)
        wake(table);
    pthread_mutex_unlock(&table->lock);
    calls_arm(table);
}

/* The call does nothing more by itself. */
static void call_over(struct call *call)
{
    pthread_mutex_lock(&call->table->lock);
    call->state = CALL_OVER;
    call->stall_ns = 0;
    bool closed = call->closed;
    pthread_mutex_unlock(&call->table->lock);
    if (closed)
        call_forget(call);
}

/* Start what comes next. From here on another thread may own the call. */
static void call_start(struct call *call, enum call_state state, const grpc_op *ops, size_t n)
{
    struct call_table *table = call->table;
    grpc_call *started = call->call;
    /* A reader of single requests may take its time with them. */
    bool patient = state == CALL_RECEIVING && call->has_begun;
    pthread_mutex_lock(&table->lock);
    call->state = state;
    call->stall_ns = patient ? 0 : kvt_now_ns() + STALL_NS;
    if (!patient)
        tend_by(table, call->stall_ns);
    pthread_mutex_unlock(&table->lock);
    atomic_fetch_add(&table->turn, 1);
    if (grpc_call_start_batch(started, ops, n, &call->tag_next, NULL) == GRPC_CALL_OK)
        return;
    kvt_log(KVT_LOG_ERROR, "control: gRPC refuses an operation; the call is given up");
    (void)grpc_call_cancel(call->call, NULL);
    call_over(call);
}

/* --- sending ---------------------------------------------------------------------------------- */

/* Pack the answer, and give back what it was made of. */
static void answer_pack(struct call *call)
{
    struct request *r = &call->request;
    if (r->out != NULL && r->code == GRPC_STATUS_OK) {
        size_t bytes = protobuf_c_message_get_packed_size(r->out);
        size_t before = atomic_fetch_add(&call->table->unsent_bytes, bytes);
        call->out_bytes = bytes;
        if (before + bytes > UNSENT_BYTES_MAX) {
            out_drop(call);
            request_fail(r, GRPC_STATUS_RESOURCE_EXHAUSTED,
                         "control: clients have not read %zu MiB of answers; read them, or ask for "
                         "less at once",
                         before >> 20);
        } else {
            grpc_slice slice = grpc_slice_malloc(bytes);
            (void)protobuf_c_message_pack(r->out, GRPC_SLICE_START_PTR(slice));
            call->out = grpc_raw_byte_buffer_create(&slice, 1);
            grpc_slice_unref(slice);
        }
    }
    r->in = NULL;
    r->out = NULL;
    arena_fini(&r->arena);
    in_drop(call);
}

/* The ops that an answer begins with; returns how many. */
static size_t ops_begin(struct call *call, grpc_op *ops)
{
    size_t n = 0;
    memset(ops, 0, 3 * sizeof(*ops));
    if (!call->has_begun)
        ops[n++].op = GRPC_OP_SEND_INITIAL_METADATA;
    call->has_begun = true;
    if (call->out != NULL) {
        ops[n].op = GRPC_OP_SEND_MESSAGE;
        ops[n++].data.send_message.send_message = call->out;
    }
    return n;
}

static void call_send(struct call *call)
{
    grpc_op ops[3];
    size_t n = ops_begin(call, ops);
    call_start(call, CALL_SENDING, ops, n);
}

static void call_end(struct call *call)
{
    struct request *r = &call->request;
    grpc_op ops[3];
    size_t n = ops_begin(call, ops);
    grpc_slice_unref(call->status_text);
    call->status_text = grpc_slice_from_copied_string(r->msg);
    ops[n].op = GRPC_OP_SEND_STATUS_FROM_SERVER;
    ops[n].data.send_status_from_server.status = r->code;
    ops[n++].data.send_status_from_server.status_details = &call->status_text;
    call_start(call, CALL_ENDING, ops, n);
}

static void call_receive(struct call *call)
{
    const grpc_op op = {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &call->in};
    call_start(call, CALL_RECEIVING, &op, 1);
}

/* --- running ---------------------------------------------------------------------------------- */

/* Wait until due_ns or news, unless there was some since the handler looked, or nobody listens. */
static void call_wait(struct call *call)
{
    struct call_table *table = call->table;
    pthread_mutex_lock(&table->lock);
    bool leave = call->closed || table->closing;
    if (!leave) {
        call->due_ns = call->n_news == table->n_news ? call->request.again_ns : kvt_now_ns();
        call->state = CALL_WAITING;
        call->stall_ns = 0;
        tend_by(table, call->due_ns);
    }
    pthread_mutex_unlock(&table->lock);
    if (!leave)
        return;
    request_fail(&call->request, GRPC_STATUS_UNAVAILABLE,
                 "control: the agent is stopping; ask again when it has started");
    call_end(call);
}

static void call_run(struct call *call)
{
    struct request *r = &call->request;
    pthread_mutex_lock(&call->table->lock);
    call->n_news = call->table->n_news;
    pthread_mutex_unlock(&call->table->lock);
    r->again_ns = 0;
    if (call->method->kind != METHOD_UNARY)
        r->deadline_ns = kvt_now_ns() + CALL_TIME_NS; /* of this one look */
    call->method->handle(r);
    answer_pack(call);
    if (r->code != GRPC_STATUS_OK || (call->method->kind != METHOD_BIDI && r->again_ns == 0))
        call_end(call);
    else if (call->out != NULL)
        call_send(call);
    else
        call_wait(call);
}

static bool message_unpack(struct call *call)
{
    struct request *r = &call->request;
    grpc_byte_buffer_reader reader;
    if (call->in->data.raw.compression != GRPC_COMPRESS_NONE) {
        request_fail(r, GRPC_STATUS_UNIMPLEMENTED,
                     "request: is compressed, which this agent does not take; send it as it is");
        return false;
    }
    if (grpc_byte_buffer_length(call->in) > 0 && grpc_byte_buffer_reader_init(&reader, call->in)) {
        grpc_slice slice = grpc_byte_buffer_reader_readall(&reader);
        r->in = protobuf_c_message_unpack(call->method->input, &r->arena.allocator,
                                          GRPC_SLICE_LENGTH(slice), GRPC_SLICE_START_PTR(slice));
        grpc_slice_unref(slice);
        grpc_byte_buffer_reader_destroy(&reader);
    } else {
        r->in = protobuf_c_message_unpack(call->method->input, &r->arena.allocator, 0, NULL);
    }
    if (r->in != NULL)
        return true;
    if (r->arena.refused)
        request_fail(r, GRPC_STATUS_RESOURCE_EXHAUSTED,
                     "request: has too many parts; ask for less at once");
    else
        request_fail(r, GRPC_STATUS_INVALID_ARGUMENT,
                     "request: is no %s; make it with kvtier/v1/control.proto of this version",
                     call->method->input->name);
    return false;
}

/* A message was received, or the client will send none. */
static void call_received(struct call *call, bool ok)
{
    struct request *r = &call->request;
    if (ok && call->in != NULL) {
        if (message_unpack(call))
            call_run(call);
        else
            call_end(call);
        return;
    }
    if (call->method->kind != METHOD_BIDI)
        request_fail(r, GRPC_STATUS_INVALID_ARGUMENT, "request: there is none; send a %s",
                     call->method->input->name);
    call_end(call);
}

static void call_sent(struct call *call, bool ok)
{
    out_drop(call);
    if (!ok)
        call_over(call); /* nobody reads */
    else if (call->method->kind == METHOD_BIDI)
        call_receive(call);
    else
        call_wait(call);
}

/* The deadline that the client gave, if that is sooner than ours. */
static uint64_t deadline(const struct call *call)
{
    uint64_t now = kvt_now_ns();
    gpr_timespec left =
        gpr_time_sub(call->details.deadline, gpr_now(call->details.deadline.clock_type));
    int32_t ms = gpr_time_to_millis(left);
    return now + KVT_MIN((uint64_t)KVT_MAX(ms, 0) * KVT_NS_PER_MS, CALL_TIME_NS);
}

static void call_begin(struct call *call, bool ok)
{
    struct call_table *table = call->table;
    struct request *r = &call->request;
    if (!ok) { /* the server shuts down */
        call_destroy(call);
        pthread_mutex_lock(&table->lock);
        table->n_armed--;
        wake(table);
        pthread_mutex_unlock(&table->lock);
        return;
    }
    call->method = method_find(call->details.method);
    bool streams = call->method != NULL && call->method->kind != METHOD_UNARY;
    pthread_mutex_lock(&table->lock);
    table->n_armed--;
    table->n_open++;
    call->next = table->open;
    if (call->next != NULL)
        call->next->prev = call;
    table->open = call;
    call->is_stream = streams && table->n_streams < STREAMS_MAX;
    table->n_streams += call->is_stream;
    call->state = CALL_RUNNING;
    pthread_mutex_unlock(&table->lock);
    calls_arm(table);

    const grpc_op close = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER,
                           .data.recv_close_on_server.cancelled = &call->canceled};
    atomic_fetch_add(&table->turn, 1);
    grpc_call_error error = grpc_call_start_batch(call->call, &close, 1, &call->tag_close, NULL);
    if (error != GRPC_CALL_OK) { /* no event will come */
        kvt_log(KVT_LOG_ERROR, "control: gRPC refuses a call; it is given up");
        (void)grpc_call_cancel(call->call, NULL);
        call_forget(call);
        return;
    }
    if (call->method == NULL) {
        request_fail(r, GRPC_STATUS_UNIMPLEMENTED,
                     "method %.*s: this agent has none of that name; see its reflection, or "
                     "kvtier/v1/control.proto",
                     (int)KVT_MIN(GRPC_SLICE_LENGTH(call->details.method), 200),
                     (const char *)GRPC_SLICE_START_PTR(call->details.method));
        call_end(call);
    } else if (streams && !call->is_stream) {
        request_fail(r, GRPC_STATUS_RESOURCE_EXHAUSTED,
                     "%s: %d streams are open; end one, or ask again later", call->method->path,
                     STREAMS_MAX);
        call_end(call);
    } else {
        r->deadline_ns = deadline(call);
        if (streams)
            r->stream = &call->stream;
        call_receive(call);
    }
}

/* The client has all, or has gone. A watch that waits ends here; what is under way ends by itself.
 */
static void call_closed(struct call *call)
{
    pthread_mutex_lock(&call->table->lock);
    call->closed = true;
    bool last = call->state == CALL_OVER || call->state == CALL_WAITING;
    call->state = last ? CALL_OVER : call->state;
    pthread_mutex_unlock(&call->table->lock);
    if (last)
        call_forget(call);
}

static void call_event(struct call *call, enum tag_kind kind, bool ok)
{
    if (kind == TAG_CLOSE) {
        call_closed(call);
        return;
    }
    pthread_mutex_lock(&call->table->lock);
    enum call_state state = call->state;
    call->state = state == CALL_ARMED ? CALL_ARMED : CALL_RUNNING;
    call->stall_ns = 0;
    pthread_mutex_unlock(&call->table->lock);
    switch (state) {
    case CALL_ARMED:
        call_begin(call, ok);
        break;
    case CALL_RECEIVING:
        call_received(call, ok);
        break;
    case CALL_SENDING:
        call_sent(call, ok);
        break;
    default: /* CALL_ENDING */
        call_over(call);
        break;
    }
}

/* --- the table -------------------------------------------------------------------------------- */

void calls_open(struct call_table *table)
{
    calls_arm(table);
}

void calls_work(struct call_table *table)
{
    for (;;) {
        grpc_event event =
            grpc_completion_queue_next(table->queue, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
        if (event.type == GRPC_QUEUE_SHUTDOWN)
            return;
        struct tag *tag = event.tag;
        atomic_fetch_add(&table->turn, 1);
        if (event.type == GRPC_OP_COMPLETE && tag != NULL)
            call_event(tag->call, tag->kind, event.success != 0);
    }
}

/* One watch that is due, which is the caller's from now on; NULL: none. *next_p: when one is. */
static struct call *due_take(struct call_table *table, uint64_t now, uint64_t *next_p)
{
    struct call *due = NULL;
    *next_p = UINT64_MAX;
    pthread_mutex_lock(&table->lock);
    for (struct call *call = table->open; call != NULL && due == NULL; call = call->next) {
        if (call->state == CALL_WAITING && call->due_ns <= now)
            due = call;
        else if (call->state == CALL_WAITING)
            *next_p = KVT_MIN(*next_p, call->due_ns);
        if (call->stall_ns == 0)
            continue;
        if (call->stall_ns > now) {
            *next_p = KVT_MIN(*next_p, call->stall_ns);
            continue;
        }
        call->stall_ns = 0;
        (void)grpc_call_cancel_with_status(
            call->call, GRPC_STATUS_DEADLINE_EXCEEDED,
            "control: the client has sent or read nothing for 10 s; ask again", NULL);
    }
    if (due != NULL)
        due->state = CALL_RUNNING;
    else
        table->tend_ns = *next_p;
    pthread_mutex_unlock(&table->lock);
    return due;
}

uint64_t calls_tend(struct call_table *table, bool news)
{
    struct call *call;
    uint64_t next;
    if (news) {
        pthread_mutex_lock(&table->lock);
        table->n_news++;
        for (call = table->open; call != NULL; call = call->next)
            call->due_ns = 0;
        pthread_mutex_unlock(&table->lock);
    }
    uint64_t now = kvt_now_ns();
    while ((call = due_take(table, now, &next)) != NULL)
        call_run(call);
    return next;
}

void calls_close(struct call_table *table)
{
    pthread_mutex_lock(&table->lock);
    table->closing = true;
    pthread_mutex_unlock(&table->lock);
    grpc_server_cancel_all_calls(table->server);
}

bool calls_gone(struct call_table *table)
{
    pthread_mutex_lock(&table->lock);
    bool gone = table->n_open + table->n_armed == 0;
    pthread_mutex_unlock(&table->lock);
    return gone;
}
