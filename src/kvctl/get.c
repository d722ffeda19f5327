/* SPDX-License-Identifier: Apache-2.0 */
/* kvctl get, describe, info: what there is, as lists and one by one. */
#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "kvt/options.h"
#include "message.h"

#define NS_DIGITS 12 /* of a namespace's id in a table */

static const struct kvctl_column tier_columns[] = {
    {"TIER", "name"},
    {"CAPACITY", "capacity_bytes"},
    {"USED", "used_bytes"},
    {"FREE", "free_bytes"},
    {"PINNED", "pinned_bytes"},
    {"CHUNKS", "n_chunks"},
    {"POLICY", "policy"},
    {"DEGRADED", "degraded"},
    {"CONFIGURED", "configured_bytes", .wide = true},
    {"SLABS", "n_slabs", .wide = true},
    {"SLABS-FREE", "n_slabs_free", .wide = true},
    {"QUARANTINED", "n_quarantined", .wide = true},
    {"PATHS", "paths", .wide = true},
    {"NOTE", "note"},
    {NULL},
};

static const struct kvctl_column namespace_columns[] = {
    {"NAMESPACE", "id", .digits = NS_DIGITS},
    {"MODEL", "model"},
    {"CHUNKS", "n_chunks"},
    {"HOST", "host_bytes"},
    {"NVME", "nvme_bytes"},
    {"CHUNK", "chunk_bytes"},
    {"TOKENS", "tokens_per_chunk"},
    {"TP-RANK", "tp_rank"},
    {"REVISION", "revision", .wide = true},
    {"DTYPE", "dtype", .wide = true},
    {"LAYERS", "n_layers", .wide = true},
    {"KV-HEADS", "n_kv_heads", .wide = true},
    {"HEAD-DIM", "head_dim", .wide = true},
    {"TP", "tp_size", .wide = true},
    {"PP", "pp_size", .wide = true},
    {"HASH", "hash_algo", .wide = true},
    {"LAYOUT", "layout", .wide = true},
    {"SALT", "salt", .wide = true},
    {NULL},
};

static const struct kvctl_column session_columns[] = {
    {"SESSION", "id"},      {"CLIENT", "client"},           {"PID", "pid"}, {"OPS", "n_ops"},
    {"LEASES", "n_leases"}, {"RESERVED", "reserved_bytes"}, {NULL},
};

static const struct kvctl_column chunk_columns[] = {
    {"KEY", "key"},
    {"NAMESPACE", "namespace_id", .digits = NS_DIGITS},
    {"BYTES", "chunk_bytes"},
    {"HOST", "host"},
    {"NVME", "nvme"},
    {"HOLDS", "n_holds"},
    {"PINS", "n_pins"},
    {"REUSED", "reused"},
    {"WAITS", "write_waiting", .wide = true},
    {"CHILDREN", "n_children_host", .wide = true},
    {"PARENT", "parent_key", .wide = true},
    {"SLOT", "slot_bytes", .wide = true},
    {NULL},
};

static const struct kvctl_column lease_columns[] = {
    {"LEASE", "id"},
    {"SESSION", "session_id"},
    {"NAMESPACE", "namespace_id", .digits = NS_DIGITS},
    {"EXPIRES", "expires_in_ms"},
    {"LAST-KEY", "last_key"},
    {NULL},
};

static const struct kvctl_column pin_columns[] = {
    {"PIN", "id"},
    {"OWNER", "owner"},
    {"NAMESPACE", "namespace_id", .digits = NS_DIGITS},
    {"CHUNKS", "n_chunks"},
    {"LOST", "n_lost"},
    {"BYTES", "bytes"},
    {"AGE", "age_ms"},
    {"EXPIRES", "expires_in_ms"},
    {"LAST-KEY", "last_key", .wide = true},
    {NULL},
};

static const struct kvctl_column job_columns[] = {
    {"JOB", "id"},
    {"TYPE", "type"},
    {"STATE", "state"},
    {"LOOKED", "n_looked"},
    {"TOTAL", "n_total"},
    {"MATCHED", "n_matched"},
    {"CHANGED", "n_changed"},
    {"SKIPPED", "n_skipped"},
    {"BAD", "n_bad"},
    {"BYTES", "bytes"},
    {"AGE", "age_ms"},
    {"TOOK", "took_ms", .wide = true},
    {"DRY-RUN", "dry_run", .wide = true},
    {"NAMESPACE", "namespace_id", .digits = NS_DIGITS, .wide = true},
    {"ERROR", "error", .wide = true},
    {NULL},
};

static const struct kind {
    const char *name, *one; /* of many, of one */
    const char *method;
    const struct kvctl_column *columns;
    const char *id; /* what describe compares its argument with */
} kinds[] = {
    {"tiers", "tier", "ListTiers", tier_columns, "name"},
    {"namespaces", "namespace", "ListNamespaces", namespace_columns, "id"},
    {"sessions", "session", "ListSessions", session_columns, "id"},
    {"chunks", "chunk", "ListChunks", chunk_columns, "key"},
    {"leases", "lease", "ListLeases", lease_columns, "id"},
    {"pins", "pin", "ListPins", pin_columns, "id"},
    {"jobs", "job", "ListJobs", job_columns, "id"},
    {NULL},
};

static const struct kind *kind_find(const char *name)
{
    for (const struct kind *kind = kinds; kind->name != NULL; kind++) {
        if (strcmp(kind->name, name) == 0 || strcmp(kind->one, name) == 0)
            return kind;
    }
    (void)kvctl_fail(KVCTL_USAGE,
                     "there are no \"%s\"; there are tiers, namespaces, sessions, "
                     "chunks, leases, pins, jobs",
                     name);
    return NULL;
}

/* What a pin that does not expire says of its end. */
static json_t *item_json(const ProtobufCMessage *item)
{
    json_t *json = kvctl_message_json(item);
    const json_t *expires = json_object_get(json, "expires");
    if (json_is_false(expires))
        (void)json_object_set_new(json, "expires_in_ms", json_null());
    return json;
}

/* --- get ------------------------------------------------------------------------------------- */

struct listing {
    struct kvctl_rows rows;
    uint64_t limit;
};

static bool row_add(void *arg, const ProtobufCMessage *item)
{
    struct listing *listing = arg;
    kvctl_rows_add(&listing->rows, item_json(item));
    return listing->rows.n < listing->limit && ferror(stdout) == 0;
}

/* Options of get that only one kind has. */
static enum kvctl_exit options_check(const struct kvctl *k, const struct kind *kind)
{
    static const enum kvctl_option of_chunks[] = {
        KVCTL_OPT_NAMESPACE, KVCTL_OPT_TIER,   KVCTL_OPT_KEY_PREFIX, KVCTL_OPT_MIN_BYTES,
        KVCTL_OPT_MAX_BYTES, KVCTL_OPT_PINNED, KVCTL_OPT_LEASED,
    };
    for (size_t i = 0; i < sizeof(of_chunks) / sizeof(of_chunks[0]); i++) {
        if (kvctl_given(k, of_chunks[i]) && strcmp(kind->name, "chunks") != 0)
            return kvctl_fail(KVCTL_USAGE, "get %s takes no --%s, which is for chunks", kind->name,
                              kvctl_options[of_chunks[i]].name);
    }
    if (kvctl_given(k, KVCTL_OPT_OWNER) && strcmp(kind->name, "pins") != 0)
        return kvctl_fail(KVCTL_USAGE, "get %s takes no --owner, which is for pins", kind->name);
    return KVCTL_OK;
}

static ProtobufCMessage *request_create(const struct kind *kind)
{
    const ProtobufCMethodDescriptor *method = protobuf_c_service_descriptor_get_method_by_name(
        &kvtier__v1__control__descriptor, kind->method);
    ProtobufCMessage *request = malloc(method->input->sizeof_message);
    if (request != NULL)
        protobuf_c_message_init(method->input, request);
    return request;
}

enum kvctl_exit kvctl_run_get(struct kvctl *k, int argc, char **argv)
{
    struct listing listing = {.limit = UINT64_MAX};
    struct kvctl_filter filter = {.ns.message = NULL};
    const char *limit = k->values[KVCTL_OPT_LIMIT], *owner = k->values[KVCTL_OPT_OWNER];
    const struct kind *kind = kind_find(argv[0]);
    (void)argc;
    if (kind == NULL ||
        (limit != NULL && !kvt_option_number("--limit", limit, 1, UINT32_MAX, &listing.limit)))
        return KVCTL_USAGE;
    enum kvctl_exit code = options_check(k, kind);
    if (code != KVCTL_OK)
        return code;
    ProtobufCMessage *request = request_create(kind);
    if (request == NULL)
        return kvctl_fail(KVCTL_FAILED, "out of memory");
    if (strcmp(kind->name, "chunks") == 0) {
        Kvtier__V1__ListChunksRequest *chunks = (void *)request;
        code = kvctl_filter_make(k, &filter);
        chunks->filter = &filter.filter;
        if (listing.limit < 1000)
            chunks->page_size = (uint32_t)listing.limit;
    }
    if (owner != NULL)
        ((Kvtier__V1__ListPinsRequest *)(void *)request)->owner = (char *)owner;
    if (code == KVCTL_OK) {
        kvctl_rows_begin(&listing.rows, &k->style, kind->name, kind->columns);
        code = kvctl_list(k, kind->method, request, row_add, &listing);
        if (code != KVCTL_OK)
            kvctl_rows_drop(&listing.rows);
        else if (!kvctl_rows_end(&listing.rows))
            code = KVCTL_FAILED;
    }
    kvctl_filter_free(&filter);
    free(request);
    return code;
}

/* --- describe -------------------------------------------------------------------------------- */

struct search {
    const struct kind *kind;
    const char *name;
    json_t *found;
};

static bool search_item(void *arg, const ProtobufCMessage *item)
{
    struct search *search = arg;
    json_t *json = item_json(item);
    char text[KVCTL_TEXT_BYTES];
    kvctl_text("id", kvctl_field(json, search->kind->id), text);
    if (strcasecmp(text, search->name) == 0)
        search->found = json;
    else
        json_decref(json);
    return search->found == NULL;
}

static enum kvctl_exit chunk_get(struct kvctl *k, const char *name, json_t **json_p)
{
    Kvtier__V1__GetChunkRequest request = KVTIER__V1__GET_CHUNK_REQUEST__INIT;
    struct kvctl_ns ns = {.message = NULL};
    ProtobufCMessage *reply;
    uint8_t key[KVCTL_KEY_BYTES];
    enum kvctl_exit code = KVCTL_OK;
    if (!kvctl_key_parse(name, key))
        return KVCTL_USAGE;
    if (kvctl_given(k, KVCTL_OPT_NAMESPACE)) {
        code = kvctl_ns_find(k, k->values[KVCTL_OPT_NAMESPACE], false, &ns);
        request.namespace_id = (ProtobufCBinaryData){.len = KVCTL_KEY_BYTES, .data = ns.id};
    }
    request.key = (ProtobufCBinaryData){.len = KVCTL_KEY_BYTES, .data = key};
    if (code == KVCTL_OK)
        code = kvctl_call(k, "GetChunk", &request.base, &reply);
    kvctl_ns_free(&ns);
    if (code != KVCTL_OK)
        return code;
    *json_p = kvctl_message_json(reply);
    protobuf_c_message_free_unpacked(reply, NULL);
    return KVCTL_OK;
}

/* A namespace may be named as with -n. */
static enum kvctl_exit namespace_get(struct kvctl *k, const char *name, json_t **json_p)
{
    struct kvctl_ns ns;
    enum kvctl_exit code = kvctl_ns_find(k, name, true, &ns);
    if (code == KVCTL_OK)
        *json_p = kvctl_message_json(&ns.message->base);
    kvctl_ns_free(&ns);
    return code;
}

static enum kvctl_exit listed_get(struct kvctl *k, const struct kind *kind, const char *name,
                                  json_t **json_p)
{
    struct search search = {.kind = kind, .name = name};
    ProtobufCMessage *request = request_create(kind);
    if (request == NULL)
        return kvctl_fail(KVCTL_FAILED, "out of memory");
    enum kvctl_exit code = kvctl_list(k, kind->method, request, search_item, &search);
    free(request);
    if (code == KVCTL_OK && search.found == NULL)
        return kvctl_fail(KVCTL_NOT_FOUND, "there is no %s \"%s\"; 'kvctl get %s' lists them",
                          kind->one, name, kind->name);
    *json_p = search.found;
    return code;
}

enum kvctl_exit kvctl_run_describe(struct kvctl *k, int argc, char **argv)
{
    json_t *json = NULL;
    enum kvctl_exit code;
    const struct kind *kind = kind_find(argv[0]);
    (void)argc;
    if (kind == NULL)
        return KVCTL_USAGE;
    bool chunk = strcmp(kind->one, "chunk") == 0;
    if (kvctl_given(k, KVCTL_OPT_NAMESPACE) && !chunk)
        return kvctl_fail(KVCTL_USAGE, "describe %s takes no --namespace, which is for chunks",
                          kind->one);
    if (chunk)
        code = chunk_get(k, argv[1], &json);
    else if (strcmp(kind->one, "namespace") == 0)
        code = namespace_get(k, argv[1], &json);
    else
        code = listed_get(k, kind, argv[1], &json);
    if (code == KVCTL_OK && !kvctl_object_print(&k->style, json))
        code = KVCTL_FAILED;
    json_decref(json);
    return code;
}

enum kvctl_exit kvctl_run_info(struct kvctl *k, int argc, char **argv)
{
    Kvtier__V1__GetNodeRequest request = KVTIER__V1__GET_NODE_REQUEST__INIT;
    ProtobufCMessage *reply;
    (void)argc;
    (void)argv;
    enum kvctl_exit code = kvctl_call(k, "GetNode", &request.base, &reply);
    if (code != KVCTL_OK)
        return code;
    json_t *json = kvctl_message_json(reply);
    protobuf_c_message_free_unpacked(reply, NULL);
    if (!kvctl_object_print(&k->style, json))
        code = KVCTL_FAILED;
    json_decref(json);
    return code;
}
