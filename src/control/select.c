/* SPDX-License-Identifier: Apache-2.0 */
/* Namespaces, chains of chunks, filters and tiers, as requests name them. */
#include <string.h>

#include "agent.h"
#include "kvt/key_chain.h"
#include "kvt/util.h"
#include "request.h"

struct find_call {
    const uint8_t *id;
    uint32_t ns;
    struct kvt_ns_desc desc;
};

static void find_run(struct agent *agent, void *arg)
{
    struct find_call *call = arg;
    call->ns = kvt_core_ns_find(agent->core, call->id);
    if (call->ns != KVT_ADMIN_NS_ANY)
        call->desc = *kvt_core_ns_desc(agent->core, call->ns);
}

bool request_ns_find(struct request *r, const ProtobufCBinaryData *id, uint32_t *ns_p,
                     struct kvt_ns_desc *desc_p)
{
    struct find_call call = {.id = id->data};
    if (id->len != KVT_NS_ID_BYTES) {
        request_fail(r, GRPC_STATUS_INVALID_ARGUMENT,
                     "namespace_id: has %zu bytes, not %d; take it from ListNamespaces", id->len,
                     KVT_NS_ID_BYTES);
        return false;
    }
    KVT_ASSERT(!r->has_ns);
    if (!request_ask(r, find_run, &call))
        return false;
    if (call.ns == KVT_ADMIN_NS_ANY) {
        request_fail_ns(r, id->data);
        return false;
    }
    r->has_ns = true;
    memcpy(r->ns_id, id->data, sizeof(r->ns_id));
    *ns_p = r->ns = call.ns;
    if (desc_p != NULL)
        *desc_p = call.desc;
    return true;
}

/* --- chains ----------------------------------------------------------------------------------- */

static bool chain_room(struct request *r, size_t n, unsigned n_max)
{
    if (n > 0 && n <= n_max)
        return true;
    if (n == 0)
        request_fail(r, GRPC_STATUS_INVALID_ARGUMENT,
                     "chain: has no keys, or tokens for less than a chunk; name at least one");
    else
        request_fail(r, GRPC_STATUS_INVALID_ARGUMENT,
                     "chain: has %zu chunks; ask for at most %u at once", n, n_max);
    return false;
}

static bool chain_keys(struct request *r, const Kvtier__V1__Chain *in, unsigned n_max,
                       struct chain *chain)
{
    if (!chain_room(r, in->n_keys, n_max))
        return false;
    struct kvt_key *keys = request_alloc(r, in->n_keys, sizeof(*keys));
    if (keys == NULL)
        return false;
    for (size_t i = 0; i < in->n_keys; i++) {
        if (in->keys[i].len != KVT_KEY_BYTES) {
            request_fail(r, GRPC_STATUS_INVALID_ARGUMENT,
                         "chain.keys[%zu]: has %zu bytes; a key has %d", i, in->keys[i].len,
                         KVT_KEY_BYTES);
            return false;
        }
        memcpy(keys[i].bytes, in->keys[i].data, KVT_KEY_BYTES);
    }
    chain->keys = keys;
    chain->n_keys = (unsigned)in->n_keys;
    return true;
}

/* What stands before the first token; NULL: the start of a prompt. */
static const struct kvt_key *tokens_parent(const Kvtier__V1__Tokens *tokens, struct kvt_key *parent)
{
    if (tokens->parent_key.len == 0)
        return NULL;
    memset(parent, 0, sizeof(*parent));
    memcpy(parent->bytes, tokens->parent_key.data, tokens->parent_key.len);
    return parent;
}

static bool chain_tokens(struct request *r, const Kvtier__V1__Tokens *in,
                         const struct kvt_ns_desc *desc, unsigned n_max, struct chain *chain)
{
    struct kvt_key parent;
    uint32_t per_chunk = KVT_MAX(desc->tokens_per_chunk, 1);
    size_t n = in->n_ids / per_chunk;
    if (in->parent_key.len > KVT_KEY_BYTES) {
        request_fail(r, GRPC_STATUS_INVALID_ARGUMENT,
                     "chain.tokens.parent_key: has %zu bytes; a key has %d", in->parent_key.len,
                     KVT_KEY_BYTES);
        return false;
    }
    if (!chain_room(r, n, n_max))
        return false;
    struct kvt_key *keys = request_alloc(r, n, sizeof(*keys));
    if (keys == NULL)
        return false;
    enum kvt_status status = kvt_key_chain(desc->hash_algo, tokens_parent(in, &parent), in->ids,
                                           desc->tokens_per_chunk, n, keys);
    if (status == KVT_ERR_NOTSUP || status == KVT_ERR_INVAL) {
        request_fail(r, GRPC_STATUS_FAILED_PRECONDITION,
                     "chain.tokens: the keys of this namespace cannot be derived from tokens "
                     "(hash_algo \"%.32s\", %u tokens per chunk); name keys, see Node.hash_algos",
                     desc->hash_algo, desc->tokens_per_chunk);
        return false;
    }
    if (status != KVT_OK) {
        request_fail_status(r, status, "chain.tokens: cannot be hashed; ask again");
        return false;
    }
    chain->keys = keys;
    chain->n_keys = (unsigned)n;
    return true;
}

bool request_chain(struct request *r, const Kvtier__V1__Chain *in, unsigned n_max,
                   struct chain *chain)
{
    struct kvt_ns_desc desc;
    memset(chain, 0, sizeof(*chain));
    if (in == NULL || (in->tokens == NULL) == (in->n_keys == 0)) {
        request_fail(r, GRPC_STATUS_INVALID_ARGUMENT,
                     "chain: names no chunks, or has keys and tokens; set exactly one of keys and "
                     "tokens");
        return false;
    }
    if (!request_ns_find(r, &in->namespace_id, &chain->ns, &desc))
        return false;
    chain->tokens_per_chunk = desc.tokens_per_chunk;
    return in->tokens != NULL ? chain_tokens(r, in->tokens, &desc, n_max, chain)
                              : chain_keys(r, in, n_max, chain);
}

/* --- filters ---------------------------------------------------------------------------------- */

bool request_tiers(struct request *r, const Kvtier__V1__Tier *tiers, size_t n, uint32_t *where_p)
{
    *where_p = 0;
    for (size_t i = 0; i < n; i++) {
        switch (tiers[i]) {
        case KVTIER__V1__TIER__TIER_HOST:
            *where_p |= KVT_WHERE_HOST;
            break;
        case KVTIER__V1__TIER__TIER_NVME:
            *where_p |= KVT_WHERE_NVME;
            break;
        default:
            request_fail(r, GRPC_STATUS_INVALID_ARGUMENT,
                         "tiers[%zu]: there is no tier %d; name TIER_HOST or TIER_NVME", i,
                         (int)tiers[i]);
            return false;
        }
    }
    return true;
}

bool request_filter(struct request *r, const Kvtier__V1__ChunkFilter *in,
                    struct kvt_admin_filter *filter)
{
    *filter = (struct kvt_admin_filter){.ns = KVT_ADMIN_NS_ANY};
    if (in == NULL)
        return true;
    if (in->pinned && in->unpinned) {
        request_fail(r, GRPC_STATUS_INVALID_ARGUMENT,
                     "filter: asks for pinned and for unpinned chunks; set at most one");
        return false;
    }
    if (in->key_prefix.len > KVT_KEY_BYTES) {
        request_fail(r, GRPC_STATUS_INVALID_ARGUMENT,
                     "filter.key_prefix: has %zu bytes; a key has %d", in->key_prefix.len,
                     KVT_KEY_BYTES);
        return false;
    }
    if (in->max_bytes != 0 && in->min_bytes > in->max_bytes) {
        request_fail(r, GRPC_STATUS_INVALID_ARGUMENT,
                     "filter: min_bytes is above max_bytes; no chunk is of such a size");
        return false;
    }
    filter->flags = (in->pinned ? KVT_FILTER_PINNED : 0U) | (in->leased ? KVT_FILTER_LEASED : 0U) |
                    (in->unpinned ? KVT_FILTER_UNPINNED : 0U);
    filter->n_key_prefix_bytes = (uint32_t)in->key_prefix.len;
    if (in->key_prefix.len > 0)
        memcpy(filter->key_prefix, in->key_prefix.data, in->key_prefix.len);
    filter->min_bytes = in->min_bytes;
    filter->max_bytes = in->max_bytes;
    return request_tiers(r, in->tiers, in->n_tiers, &filter->tiers) &&
           (in->namespace_id.len == 0 || request_ns_find(r, &in->namespace_id, &filter->ns, NULL));
}

bool request_owner(struct request *r, const char *owner)
{
    size_t n = strlen(owner);
    bool good = n > 0 && n < KVT_ADMIN_OWNER_MAX;
    for (size_t i = 0; i < n && good; i++)
        good = (unsigned char)owner[i] >= ' ' && owner[i] != 0x7f;
    if (good && strcmp(request_text(r, owner, n), owner) == 0)
        return true;
    if (r->code == GRPC_STATUS_OK)
        request_fail(r, GRPC_STATUS_INVALID_ARGUMENT,
                     "owner: must be 1 to %d bytes of UTF-8 without control characters; say who "
                     "may be asked about this pin",
                     KVT_ADMIN_OWNER_MAX - 1);
    return false;
}
