/* SPDX-License-Identifier: Apache-2.0 */
/* ListNamespaces, ListSessions, ListLeases, ListChunks, GetChunk; and what all lists share. */
#include "list.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "agent.h"
#include "kvt/units.h"
#include "kvt/util.h"

#define TOKEN_DIGITS 32                    /* incarnation and cursor */
#define PAGE_TIME_NS (200 * KVT_NS_PER_MS) /* a page goes out then, however short */
#define ASK_ITEMS    64                    /* of the reactor at once */

/* --- pages ------------------------------------------------------------------------------------ */

static bool hex_parse(const char *text, unsigned n, uint64_t *value_p)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < n; i++) {
        const char *digits = "0123456789abcdef";
        const char *at = text[i] != '\0' ? strchr(digits, text[i]) : NULL;
        if (at == NULL)
            return false;
        value = value << 4 | (uint64_t)(at - digits);
    }
    *value_p = value;
    return true;
}

static bool token_read(struct request *r, const char *token, uint64_t *cursor_p)
{
    uint64_t incarnation;
    *cursor_p = 0;
    if (token[0] == '\0')
        return true;
    if (strlen(token) != TOKEN_DIGITS || !hex_parse(token, 16, &incarnation) ||
        !hex_parse(token + 16, 16, cursor_p)) {
        request_fail(r, GRPC_STATUS_INVALID_ARGUMENT,
                     "page_token: is none that this agent gave; hand back next_page_token as it "
                     "is, or begin with an empty one");
        return false;
    }
    if (incarnation == r->env->agent->incarnation)
        return true;
    request_fail(r, GRPC_STATUS_ABORTED,
                 "page_token: is from before the agent's restart; begin with an empty one");
    return false;
}

static char *token_make(struct request *r, uint64_t cursor)
{
    char text[TOKEN_DIGITS + 1] = "";
    if (cursor != 0)
        snprintf(text, sizeof(text), "%016" PRIx64 "%016" PRIx64, r->env->agent->incarnation,
                 cursor);
    return request_text(r, text, sizeof(text));
}

bool list_page(struct request *r, uint32_t page_size, const char *token, struct list_call *call)
{
    unsigned n_page = page_size == 0 ? LIST_ITEMS_MAX : KVT_MIN(page_size, LIST_ITEMS_MAX);
    uint64_t now_ns = kvt_now_ns();
    /* Under load a call of the reactor may take a while: the last one is not to be in vain. */
    uint64_t until_ns = now_ns + KVT_MIN(PAGE_TIME_NS, ns_between(now_ns, r->deadline_ns) / 2);
    call->items = request_alloc(r, ASK_ITEMS, call->kind->item_bytes);
    call->ns_ids = request_alloc(r, ASK_ITEMS, sizeof(*call->ns_ids));
    call->out = request_alloc(r, n_page, sizeof(*call->out));
    if (call->items == NULL || call->ns_ids == NULL || call->out == NULL ||
        !token_read(r, token, &call->cursor))
        return false;
    do {
        call->n_max = KVT_MIN(n_page - call->n_out, ASK_ITEMS);
        if (!request_ask(r, call->kind->run, call))
            return false;
        call->now_ns = kvt_now_ns();
        for (unsigned i = 0; i < call->n; i++) {
            call->out[call->n_out] = call->kind->message(r, call, i);
            if (r->code != GRPC_STATUS_OK)
                return false;
            call->n_out += call->out[call->n_out] != NULL;
        }
    } while (call->cursor != 0 && call->n_out < n_page && call->now_ns < until_ns);
    call->next_token = token_make(r, call->cursor);
    return r->code == GRPC_STATUS_OK;
}

/* --- namespaces ------------------------------------------------------------------------------- */

static void namespaces_run(struct agent *agent, void *arg)
{
    struct list_call *call = arg;
    call->n = kvt_core_namespaces(agent->core, &call->cursor, call->items, call->n_max);
}

static ProtobufCMessage *namespace_listed(struct request *r, const struct list_call *call,
                                          unsigned i)
{
    const struct kvt_admin_ns *ns = (const struct kvt_admin_ns *)call->items + i;
    const struct kvt_ns_desc *desc = &ns->desc;
    Kvtier__V1__Namespace *out = request_alloc(r, 1, sizeof(*out));
    if (out == NULL)
        return NULL;
    kvtier__v1__namespace__init(out);
    out->id = request_bytes(r, ns->id, sizeof(ns->id));
    out->model = request_text(r, desc->model, sizeof(desc->model));
    out->revision = request_text(r, desc->revision, sizeof(desc->revision));
    out->layout = request_text(r, desc->layout, sizeof(desc->layout));
    out->salt = request_text(r, desc->salt, sizeof(desc->salt));
    out->hash_algo = request_text(r, desc->hash_algo, sizeof(desc->hash_algo));
    out->dtype = request_text(r, desc->dtype, sizeof(desc->dtype));
    out->n_layers = desc->n_layers;
    out->n_kv_heads = desc->n_kv_heads;
    out->head_dim = desc->head_dim;
    out->tokens_per_chunk = desc->tokens_per_chunk;
    out->tp_rank = desc->tp_rank;
    out->tp_size = desc->tp_size;
    out->pp_rank = desc->pp_rank;
    out->pp_size = desc->pp_size;
    out->kv_group = desc->kv_group;
    out->n_segments = desc->n_segments;
    out->chunk_bytes = desc->chunk_bytes;
    out->slot_bytes = ns->slot_bytes;
    out->n_chunks = ns->n_chunks;
    out->n_host_chunks = ns->n_host;
    out->n_nvme_chunks = ns->n_nvme;
    out->host_bytes = ns->host_bytes;
    out->nvme_bytes = ns->nvme_bytes;
    return &out->base;
}

static void list_namespaces(struct request *r)
{
    static const struct list_kind kind = {sizeof(struct kvt_admin_ns), namespaces_run,
                                          namespace_listed};
    const Kvtier__V1__ListNamespacesRequest *in = (const void *)r->in;
    Kvtier__V1__ListNamespacesResponse *out = request_alloc(r, 1, sizeof(*out));
    struct list_call call = {.kind = &kind};
    if (out == NULL || !list_page(r, in->page_size, in->page_token, &call))
        return;
    kvtier__v1__list_namespaces_response__init(out);
    out->namespaces = (void *)call.out;
    out->n_namespaces = call.n_out;
    out->next_page_token = call.next_token;
    r->out = &out->base;
}

/* --- sessions and leases ---------------------------------------------------------------------- */

struct session_item {
    struct kvt_admin_session core;
    pid_t pid;
    char client[sizeof(((struct conn *)0)->client)];
};

static void sessions_run(struct agent *agent, void *arg)
{
    struct list_call *call = arg;
    struct session_item *items = call->items;
    struct kvt_admin_session sessions[ASK_ITEMS];
    call->n = kvt_core_sessions(agent->core, &call->cursor, sessions, call->n_max);
    for (unsigned i = 0; i < call->n; i++) {
        const struct conn *conn = agent->by_session[sessions[i].session];
        items[i] = (struct session_item){.core = sessions[i]};
        if (conn == NULL)
            continue;
        items[i].pid = conn->pid;
        memcpy(items[i].client, conn->client, sizeof(items[i].client));
    }
}

static ProtobufCMessage *session_listed(struct request *r, const struct list_call *call, unsigned i)
{
    const struct session_item *session = (const struct session_item *)call->items + i;
    Kvtier__V1__Session *out = request_alloc(r, 1, sizeof(*out));
    if (out == NULL)
        return NULL;
    kvtier__v1__session__init(out);
    out->id = session->core.session;
    out->client = request_text(r, session->client, sizeof(session->client));
    out->pid = (uint32_t)session->pid;
    out->n_ops = session->core.n_ops;
    out->n_leases = session->core.n_leases;
    out->reserved_bytes = session->core.reserved_bytes;
    return &out->base;
}

static void list_sessions(struct request *r)
{
    static const struct list_kind kind = {sizeof(struct session_item), sessions_run,
                                          session_listed};
    const Kvtier__V1__ListSessionsRequest *in = (const void *)r->in;
    Kvtier__V1__ListSessionsResponse *out = request_alloc(r, 1, sizeof(*out));
    struct list_call call = {.kind = &kind};
    if (out == NULL || !list_page(r, in->page_size, in->page_token, &call))
        return;
    kvtier__v1__list_sessions_response__init(out);
    out->sessions = (void *)call.out;
    out->n_sessions = call.n_out;
    out->next_page_token = call.next_token;
    r->out = &out->base;
}

static void leases_run(struct agent *agent, void *arg)
{
    struct list_call *call = arg;
    const struct kvt_admin_lease *leases = call->items;
    call->n = kvt_core_leases(agent->core, &call->cursor, call->items, call->n_max);
    for (unsigned i = 0; i < call->n; i++)
        memcpy(call->ns_ids[i], kvt_core_ns_id(agent->core, leases[i].ns), KVT_NS_ID_BYTES);
}

static ProtobufCMessage *lease_listed(struct request *r, const struct list_call *call, unsigned i)
{
    const struct kvt_admin_lease *lease = (const struct kvt_admin_lease *)call->items + i;
    Kvtier__V1__Lease *out = request_alloc(r, 1, sizeof(*out));
    if (out == NULL)
        return NULL;
    kvtier__v1__lease__init(out);
    out->id = lease->lease;
    out->session_id = lease->session;
    out->namespace_id = request_bytes(r, call->ns_ids[i], KVT_NS_ID_BYTES);
    out->last_key = request_bytes(r, lease->last.bytes, KVT_KEY_BYTES);
    out->expires_in_ms = ms_between(call->now_ns, lease->deadline_ns);
    return &out->base;
}

static void list_leases(struct request *r)
{
    static const struct list_kind kind = {sizeof(struct kvt_admin_lease), leases_run, lease_listed};
    const Kvtier__V1__ListLeasesRequest *in = (const void *)r->in;
    Kvtier__V1__ListLeasesResponse *out = request_alloc(r, 1, sizeof(*out));
    struct list_call call = {.kind = &kind};
    if (out == NULL || !list_page(r, in->page_size, in->page_token, &call))
        return;
    kvtier__v1__list_leases_response__init(out);
    out->leases = (void *)call.out;
    out->n_leases = call.n_out;
    out->next_page_token = call.next_token;
    r->out = &out->base;
}

/* --- chunks ----------------------------------------------------------------------------------- */

static Kvtier__V1__Chunk__Copy copy_message(uint8_t copy)
{
    switch ((enum kvt_admin_copy)copy) {
    case KVT_COPY_COMING:
        return KVTIER__V1__CHUNK__COPY__COPY_COMING;
    case KVT_COPY_VALID:
        return KVTIER__V1__CHUNK__COPY__COPY_VALID;
    default:
        return KVTIER__V1__CHUNK__COPY__COPY_NONE;
    }
}

static Kvtier__V1__Chunk *chunk_message(struct request *r, const struct kvt_admin_chunk *chunk,
                                        const uint8_t ns_id[KVT_NS_ID_BYTES])
{
    Kvtier__V1__Chunk *out = request_alloc(r, 1, sizeof(*out));
    if (out == NULL)
        return NULL;
    kvtier__v1__chunk__init(out);
    out->namespace_id = request_bytes(r, ns_id, KVT_NS_ID_BYTES);
    out->key = request_bytes(r, chunk->key.bytes, KVT_KEY_BYTES);
    if (chunk->has_parent)
        out->parent_key = request_bytes(r, chunk->parent.bytes, KVT_KEY_BYTES);
    out->chunk_bytes = chunk->bytes;
    out->slot_bytes = chunk->slot_bytes;
    out->host = copy_message(chunk->host);
    out->nvme = copy_message(chunk->nvme);
    out->reused = chunk->reused;
    out->write_waiting = chunk->write_waiting;
    out->n_children_host = chunk->n_children_host;
    out->n_children_nvme = chunk->n_children_nvme;
    out->n_holds = chunk->n_pins;
    out->n_pins = chunk->n_admin_pins;
    out->host_offset_bytes = chunk->host_offset;
    out->nvme_slab = chunk->nvme_slab;
    out->nvme_slot = chunk->nvme_slot;
    out->digest = chunk->digest;
    return out;
}

static void chunks_run(struct agent *agent, void *arg)
{
    struct list_call *call = arg;
    const struct kvt_admin_chunk *chunks = call->items;
    call->n = kvt_core_chunks(agent->core, call->arg, &call->cursor, call->items, call->n_max);
    for (unsigned i = 0; i < call->n; i++)
        memcpy(call->ns_ids[i], kvt_core_ns_id(agent->core, chunks[i].ns), KVT_NS_ID_BYTES);
}

static ProtobufCMessage *chunk_listed(struct request *r, const struct list_call *call, unsigned i)
{
    const struct kvt_admin_chunk *chunk = (const struct kvt_admin_chunk *)call->items + i;
    return (ProtobufCMessage *)chunk_message(r, chunk, call->ns_ids[i]);
}

static void list_chunks(struct request *r)
{
    static const struct list_kind kind = {sizeof(struct kvt_admin_chunk), chunks_run, chunk_listed};
    const Kvtier__V1__ListChunksRequest *in = (const void *)r->in;
    Kvtier__V1__ListChunksResponse *out = request_alloc(r, 1, sizeof(*out));
    struct kvt_admin_filter filter;
    struct list_call call = {.kind = &kind, .arg = &filter};
    if (out == NULL || !request_filter(r, in->filter, &filter) ||
        !list_page(r, in->page_size, in->page_token, &call))
        return;
    kvtier__v1__list_chunks_response__init(out);
    out->chunks = (void *)call.out;
    out->n_chunks = call.n_out;
    out->next_page_token = call.next_token;
    r->out = &out->base;
}

struct chunk_call {
    const struct kvt_key *key;
    uint32_t ns;     /* KVT_ADMIN_NS_ANY: the first that has it */
    uint64_t cursor; /* of namespaces */
    bool found;
    struct kvt_admin_chunk chunk;
    uint8_t ns_id[KVT_NS_ID_BYTES];
};

/* Looks in ASK_ITEMS namespaces. */
static void chunk_run(struct agent *agent, void *arg)
{
    struct chunk_call *call = arg;
    if (call->ns != KVT_ADMIN_NS_ANY) {
        call->found = kvt_core_chunk(agent->core, call->ns, call->key, &call->chunk) == KVT_OK;
    } else {
        for (unsigned i = 0; i < ASK_ITEMS && !call->found; i++) {
            struct kvt_admin_ns ns;
            if (kvt_core_namespaces(agent->core, &call->cursor, &ns, 1) == 1)
                call->found = kvt_core_chunk(agent->core, ns.ns, call->key, &call->chunk) == KVT_OK;
            if (call->cursor == 0)
                break;
        }
    }
    if (call->found)
        memcpy(call->ns_id, kvt_core_ns_id(agent->core, call->chunk.ns), sizeof(call->ns_id));
}

static void get_chunk(struct request *r)
{
    const Kvtier__V1__GetChunkRequest *in = (const void *)r->in;
    struct kvt_key key;
    struct chunk_call call = {.key = &key, .ns = KVT_ADMIN_NS_ANY};
    if (in->key.len != KVT_KEY_BYTES) {
        request_fail(r, GRPC_STATUS_INVALID_ARGUMENT, "key: has %zu bytes; a key has %d",
                     in->key.len, KVT_KEY_BYTES);
        return;
    }
    memcpy(key.bytes, in->key.data, sizeof(key.bytes));
    if (in->namespace_id.len > 0 && !request_ns_find(r, &in->namespace_id, &call.ns, NULL))
        return;
    do {
        if (!request_ask(r, chunk_run, &call))
            return;
    } while (!call.found && call.cursor != 0);
    if (call.found)
        r->out = (ProtobufCMessage *)chunk_message(r, &call.chunk, call.ns_id);
    else
        request_fail(r, GRPC_STATUS_NOT_FOUND,
                     "chunk %02x%02x%02x%02x...: is not held; it may have been evicted, see "
                     "ListChunks",
                     key.bytes[0], key.bytes[1], key.bytes[2], key.bytes[3]);
}

const struct method list_methods[] = {
    {CONTROL_METHOD("ListNamespaces"), METHOD_UNARY,
     &kvtier__v1__list_namespaces_request__descriptor, list_namespaces},
    {CONTROL_METHOD("ListSessions"), METHOD_UNARY, &kvtier__v1__list_sessions_request__descriptor,
     list_sessions},
    {CONTROL_METHOD("ListLeases"), METHOD_UNARY, &kvtier__v1__list_leases_request__descriptor,
     list_leases},
    {CONTROL_METHOD("ListChunks"), METHOD_UNARY, &kvtier__v1__list_chunks_request__descriptor,
     list_chunks},
    {CONTROL_METHOD("GetChunk"), METHOD_UNARY, &kvtier__v1__get_chunk_request__descriptor,
     get_chunk},
    {0},
};
