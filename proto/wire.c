/* SPDX-License-Identifier: Apache-2.0 */
#include "kvt/wire_check.h"

#include <stdbool.h>
#include <string.h>

/* What a type looks like; a fixed size of 0 is no request of a client. */
struct shape {
    size_t fixed_bytes;
    bool has_array;
};

static const struct shape shapes[] = {
    [KVT_WIRE_HELLO] = {sizeof(struct kvt_wire_hello), false},
    [KVT_WIRE_PING] = {sizeof(struct kvt_wire_header), false},
    [KVT_WIRE_NS_OPEN] = {sizeof(struct kvt_wire_ns_open), false},
    [KVT_WIRE_LOOKUP] = {sizeof(struct kvt_wire_lookup), true},
    [KVT_WIRE_RELEASE] = {sizeof(struct kvt_wire_release), false},
    [KVT_WIRE_RESERVE] = {sizeof(struct kvt_wire_reserve), true},
    [KVT_WIRE_COMMIT] = {sizeof(struct kvt_wire_commit), true},
    [KVT_WIRE_LOAD] = {sizeof(struct kvt_wire_load), true},
    [KVT_WIRE_LOAD_DONE] = {sizeof(struct kvt_wire_header), false},
    [KVT_WIRE_CANCEL] = {sizeof(struct kvt_wire_header), false},
    [KVT_WIRE_STATS] = {sizeof(struct kvt_wire_header), false},
};

/* Keys behind a fixed part: the length must agree, whatever the count; then the count is judged. */
static enum kvt_status keys_check(size_t fixed_bytes, size_t bytes, uint32_t n_keys)
{
    if (bytes != fixed_bytes + (uint64_t)n_keys * sizeof(struct kvt_key))
        return KVT_ERR_PROTO;
    return n_keys >= 1 && n_keys <= KVT_BATCH_MAX ? KVT_OK : KVT_ERR_INVAL;
}

static enum kvt_status hello_check(const struct kvt_wire_hello *hello)
{
    if (hello->magic != KVT_WIRE_MAGIC)
        return KVT_ERR_PROTO;
    /* The version is answered, so that a client of another one can say what it met. */
    return memchr(hello->client, '\0', sizeof(hello->client)) != NULL ? KVT_OK : KVT_ERR_PROTO;
}

static enum kvt_status lookup_check(const struct kvt_wire_lookup *lookup, size_t bytes)
{
    enum kvt_status status = keys_check(sizeof(*lookup), bytes, lookup->n_keys);
    if (status != KVT_OK)
        return status;
    return (lookup->flags & ~(uint32_t)KVT_LOOKUP_LEASE) == 0 ? KVT_OK : KVT_ERR_INVAL;
}

static enum kvt_status reserve_check(const struct kvt_wire_reserve *reserve, size_t bytes)
{
    enum kvt_status status = keys_check(sizeof(*reserve), bytes, reserve->n_keys);
    if (status != KVT_OK)
        return status;
    if ((reserve->flags & ~(uint32_t)(KVT_STORE_PARENT | KVT_STORE_DURABLE)) != 0)
        return KVT_ERR_INVAL;
    return reserve->reserved == 0 && reserve->h.op != 0 ? KVT_OK : KVT_ERR_INVAL;
}

static enum kvt_status load_check(const struct kvt_wire_load *load, size_t bytes)
{
    enum kvt_status status = keys_check(sizeof(*load), bytes, load->n_keys);
    if (status != KVT_OK)
        return status;
    if ((load->flags & ~(uint32_t)(KVT_LOAD_PARENT | KVT_LOAD_PREFETCH)) != 0)
        return KVT_ERR_INVAL;
    return load->reserved == 0 && load->h.op != 0 ? KVT_OK : KVT_ERR_INVAL;
}

static enum kvt_status commit_check(const struct kvt_wire_commit *commit, size_t bytes)
{
    if (commit->n_items > KVT_BATCH_MAX ||
        bytes < sizeof(*commit) + kvt_wire_indexes_bytes(commit->n_items))
        return KVT_ERR_PROTO;
    if (commit->n_items == 0 || (commit->flags & ~(uint32_t)KVT_COMMIT_ABORT) != 0)
        return KVT_ERR_INVAL;
    return KVT_OK;
}

enum kvt_status kvt_wire_request_check(const void *msg, size_t bytes)
{
    const struct kvt_wire_header *h = msg;
    if (bytes < sizeof(*h) || h->bytes != bytes || bytes > KVT_WIRE_BYTES_MAX || h->reserved != 0 ||
        h->type >= sizeof(shapes) / sizeof(shapes[0]))
        return KVT_ERR_PROTO;
    const struct shape *shape = &shapes[h->type];
    if (shape->fixed_bytes == 0 || bytes < shape->fixed_bytes ||
        (!shape->has_array && bytes != shape->fixed_bytes))
        return KVT_ERR_PROTO;
    switch (h->type) {
    case KVT_WIRE_HELLO:
        return hello_check(msg);
    case KVT_WIRE_LOOKUP:
        return lookup_check(msg, bytes);
    case KVT_WIRE_RESERVE:
        return reserve_check(msg, bytes);
    case KVT_WIRE_COMMIT:
        return commit_check(msg, bytes);
    case KVT_WIRE_LOAD:
        return load_check(msg, bytes);
    default:
        return KVT_OK;
    }
}

enum kvt_status kvt_wire_commit_check(const struct kvt_wire_commit *commit, uint32_t n_segments)
{
    uint64_t sums = (commit->flags & KVT_COMMIT_ABORT) != 0
                        ? 0
                        : (uint64_t)commit->n_items * n_segments * sizeof(uint64_t);
    uint64_t bytes = sizeof(*commit) + kvt_wire_indexes_bytes(commit->n_items) + sums;
    return commit->h.bytes == bytes ? KVT_OK : KVT_ERR_PROTO;
}
