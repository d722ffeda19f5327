/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Agents that kvctl must cope with and that kvtierd is not: older ones, newer ones, one that
 * answers nonsense, one that does not answer, one with a million chunks and no memory for them.
 *
 * Usage: other-agent CONTROL_SOCKET KIND [N_CHUNKS]     (prints "ready"; ends when killed)
 *   old      knows no method
 *   new      answers with fields, enum numbers and bytes that kvctl does not know
 *   nonsense answers what is no message
 *   silent   never answers
 *   many     lists N_CHUNKS chunks, 1000 to a page
 *   broken   breaks off after the first page
 */
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control.pb-c.h"
#include "kvt/util.h"

#define PAGE_ITEMS 1000
#define KEY_BYTES  32

struct server {
    grpc_server *server;
    grpc_completion_queue *queue;
    const char *kind;
    uint64_t n_chunks;
};

/* Every batch is waited for before the next one begins. */
static void wait_for(const struct server *s)
{
    (void)grpc_completion_queue_next(s->queue, gpr_inf_future(GPR_CLOCK_REALTIME), NULL);
}

static void batch(const struct server *s, grpc_call *call, const grpc_op *ops, size_t n)
{
    grpc_call_error started = grpc_call_start_batch(call, ops, n, call, NULL);
    KVT_ASSERT(started == GRPC_CALL_OK);
    wait_for(s);
}

static grpc_byte_buffer *buffer_of(const void *bytes, size_t n)
{
    grpc_slice slice = grpc_slice_from_copied_buffer(bytes, n);
    grpc_byte_buffer *buffer = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    return buffer;
}

static grpc_byte_buffer *packed(const ProtobufCMessage *message)
{
    size_t n = protobuf_c_message_get_packed_size(message);
    uint8_t *bytes = malloc(n + 1);
    KVT_ASSERT(bytes != NULL);
    protobuf_c_message_pack(message, bytes);
    grpc_byte_buffer *buffer = buffer_of(bytes, n);
    free(bytes);
    return buffer;
}

/* The first chunk that a page token stands for. */
static uint64_t token_read(grpc_byte_buffer *request)
{
    grpc_byte_buffer_reader reader;
    uint64_t first = 0;
    if (request == NULL || grpc_byte_buffer_reader_init(&reader, request) == 0)
        return 0;
    grpc_slice slice = grpc_byte_buffer_reader_readall(&reader);
    Kvtier__V1__ListChunksRequest *list = kvtier__v1__list_chunks_request__unpack(
        NULL, GRPC_SLICE_LENGTH(slice), GRPC_SLICE_START_PTR(slice));
    if (list != NULL) {
        first = strtoull(list->page_token, NULL, 10);
        kvtier__v1__list_chunks_request__free_unpacked(list, NULL);
    }
    grpc_slice_unref(slice);
    grpc_byte_buffer_reader_destroy(&reader);
    return first;
}

static grpc_byte_buffer *page(const struct server *s, grpc_byte_buffer *request)
{
    static Kvtier__V1__Chunk chunks[PAGE_ITEMS];
    static Kvtier__V1__Chunk *items[PAGE_ITEMS];
    static uint8_t keys[PAGE_ITEMS][KEY_BYTES];
    static uint8_t ns[KEY_BYTES] = {0xee};
    Kvtier__V1__ListChunksResponse answer = KVTIER__V1__LIST_CHUNKS_RESPONSE__INIT;
    char next[32] = "";
    uint64_t first = token_read(request);
    uint64_t n = s->n_chunks > first ? KVT_MIN(s->n_chunks - first, PAGE_ITEMS) : 0;
    for (uint64_t i = 0; i < n; i++) {
        uint64_t number = first + i;
        kvtier__v1__chunk__init(&chunks[i]);
        memcpy(keys[i], &number, sizeof(number));
        chunks[i].key = (ProtobufCBinaryData){.len = KEY_BYTES, .data = keys[i]};
        chunks[i].namespace_id = (ProtobufCBinaryData){.len = KEY_BYTES, .data = ns};
        chunks[i].chunk_bytes = number;
        chunks[i].host = KVTIER__V1__CHUNK__COPY__COPY_VALID;
        items[i] = &chunks[i];
    }
    answer.chunks = items;
    answer.n_chunks = n;
    if (first + n < s->n_chunks)
        snprintf(next, sizeof(next), "%" PRIu64, first + n);
    answer.next_page_token = next;
    return packed(&answer.base);
}

/* GetNode, and to all else what has unknown fields only. */
static grpc_byte_buffer *of_the_future(const char *method)
{
    static const uint8_t unknown[] = {
        0xfa, 0x3f, 3,    'n', 'e', 'w', /* field 1023: bytes */
        0xf0, 0x3f, 0x2a,                /* field 1022: a number */
    };
    Kvtier__V1__Node node = KVTIER__V1__NODE__INIT;
    if (strstr(method, "/GetNode") == NULL)
        return buffer_of(unknown, sizeof(unknown));
    node.version = (char *)"99.0.0";
    node.hostname = (char *)"a\033[2Jhost"; /* would clear a terminal */
    node.state = (Kvtier__V1__Node__State)77;
    uint8_t bytes[512];
    size_t n = kvtier__v1__node__get_packed_size(&node);
    KVT_ASSERT(n + sizeof(unknown) <= sizeof(bytes));
    kvtier__v1__node__pack(&node, bytes);
    memcpy(bytes + n, unknown, sizeof(unknown));
    return buffer_of(bytes, n + sizeof(unknown));
}

static void call_answer(const struct server *s, grpc_call *call, const char *method)
{
    grpc_byte_buffer *request = NULL, *answer = NULL;
    grpc_slice details = grpc_slice_from_static_string("");
    grpc_status_code status = GRPC_STATUS_OK;
    int canceled = 0;
    const grpc_op receive = {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message = {&request}};
    const grpc_op closed = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER,
                            .data.recv_close_on_server = {&canceled}};
    batch(s, call, &receive, 1);
    if (strcmp(s->kind, "silent") == 0) {
        batch(s, call, &closed, 1); /* until the client gives up */
        grpc_byte_buffer_destroy(request);
        return;
    }
    if (strcmp(s->kind, "old") == 0)
        status = GRPC_STATUS_UNIMPLEMENTED;
    else if (strcmp(s->kind, "nonsense") == 0)
        answer = buffer_of("\377\377\377\377", 4);
    else if (strcmp(s->kind, "new") == 0)
        answer = of_the_future(method);
    else if (strcmp(s->kind, "broken") == 0 && token_read(request) > 0) {
        status = GRPC_STATUS_ABORTED;
        details = grpc_slice_from_static_string("page token: the agent was started again; list "
                                                "from the start");
    } else
        answer = page(s, request);
    grpc_op ops[] = {
        {.op = GRPC_OP_SEND_INITIAL_METADATA},
        {.op = GRPC_OP_SEND_STATUS_FROM_SERVER,
         .data.send_status_from_server = {.status = status, .status_details = &details}},
        closed,
        {.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = answer},
    };
    batch(s, call, ops, answer != NULL ? 4 : 3);
    grpc_byte_buffer_destroy(request);
    grpc_byte_buffer_destroy(answer);
}

static void call_serve(const struct server *s)
{
    grpc_call *call = NULL;
    grpc_call_details details;
    grpc_metadata_array metadata;
    char method[128];
    grpc_call_details_init(&details);
    grpc_metadata_array_init(&metadata);
    (void)grpc_server_request_call(s->server, &call, &details, &metadata, s->queue, s->queue, NULL);
    wait_for(s);
    snprintf(method, sizeof(method), "%.*s", (int)GRPC_SLICE_LENGTH(details.method),
             (const char *)GRPC_SLICE_START_PTR(details.method));
    call_answer(s, call, method);
    grpc_call_unref(call);
    grpc_call_details_destroy(&details);
    grpc_metadata_array_destroy(&metadata);
}

int main(int argc, char **argv)
{
    char address[256];
    if (argc < 3)
        return 2;
    grpc_init();
    struct server s = {.server = grpc_server_create(NULL, NULL),
                       .queue = grpc_completion_queue_create_for_next(NULL),
                       .kind = argv[2],
                       .n_chunks = argc > 3 ? strtoull(argv[3], NULL, 10) : 1500};
    snprintf(address, sizeof(address), "unix:%s", argv[1]);
    grpc_server_register_completion_queue(s.server, s.queue, NULL);
    grpc_server_credentials *credentials = grpc_insecure_server_credentials_create();
    int port = grpc_server_add_http2_port(s.server, address, credentials);
    grpc_server_credentials_release(credentials);
    if (port == 0)
        return 1;
    grpc_server_start(s.server);
    puts("ready");
    fflush(stdout);
    for (;;)
        call_serve(&s);
}
