/* SPDX-License-Identifier: Apache-2.0 */
/* Pin, Unpin, ListPins. */
#include <inttypes.h>
#include <string.h>

#include "agent.h"
#include "kvt/log.h"
#include "kvt/units.h"
#include "kvt/util.h"
#include "list.h"

#define TTL_MAX_MS (UINT64_C(366) * 86400 * 1000)

static Kvtier__V1__PinInfo *pin_message(struct request *r, const struct kvt_admin_pin *pin,
                                        const uint8_t ns_id[KVT_NS_ID_BYTES], uint64_t now_ns)
{
    Kvtier__V1__PinInfo *out = request_alloc(r, 1, sizeof(*out));
    if (out == NULL)
        return NULL;
    kvtier__v1__pin_info__init(out);
    out->id = pin->id;
    out->owner = request_text(r, pin->owner, sizeof(pin->owner));
    out->namespace_id = request_bytes(r, ns_id, KVT_NS_ID_BYTES);
    out->last_key = request_bytes(r, pin->last.bytes, KVT_KEY_BYTES);
    out->n_chunks = pin->n_chunks;
    out->n_lost = pin->n_lost;
    out->bytes = pin->bytes;
    out->age_ms = ms_between(pin->made_ns, now_ns);
    out->expires = pin->deadline_ns != UINT64_MAX;
    out->expires_in_ms = out->expires ? ms_between(now_ns, pin->deadline_ns) : 0;
    return out;
}

static void pins_run(struct agent *agent, void *arg)
{
    struct list_call *call = arg;
    const struct kvt_admin_pin *pins = call->items;
    call->n = kvt_core_pins(agent->core, &call->cursor, call->items, call->n_max);
    for (unsigned i = 0; i < call->n; i++)
        memcpy(call->ns_ids[i], kvt_core_ns_id(agent->core, pins[i].ns), KVT_NS_ID_BYTES);
}

static ProtobufCMessage *pin_listed(struct request *r, const struct list_call *call, unsigned i)
{
    const struct kvt_admin_pin *pin = (const struct kvt_admin_pin *)call->items + i;
    const char *owner = call->arg;
    if (owner[0] != '\0' && strcmp(owner, pin->owner) != 0)
        return NULL;
    return (ProtobufCMessage *)pin_message(r, pin, call->ns_ids[i], call->now_ns);
}

static void list_pins(struct request *r)
{
    static const struct list_kind kind = {sizeof(struct kvt_admin_pin), pins_run, pin_listed};
    const Kvtier__V1__ListPinsRequest *in = (const void *)r->in;
    Kvtier__V1__ListPinsResponse *out = request_alloc(r, 1, sizeof(*out));
    struct list_call call = {.kind = &kind, .arg = in->owner};
    if (out == NULL || !list_page(r, in->page_size, in->page_token, &call))
        return;
    kvtier__v1__list_pins_response__init(out);
    out->pins = (void *)call.out;
    out->n_pins = call.n_out;
    out->next_page_token = call.next_token;
    r->out = &out->base;
}

struct pin_call {
    const struct chain *chain;
    const char *owner;
    uint64_t ttl_ns;
    unsigned n_found;
    enum kvt_status status;
    struct kvt_error err;
    struct kvt_admin_pin pin;
    uint8_t ns_id[KVT_NS_ID_BYTES];
};

static void pin_run(struct agent *agent, void *arg)
{
    struct pin_call *call = arg;
    uint64_t id;
    call->status =
        kvt_core_pin(agent->core, call->chain->ns, call->chain->keys, call->chain->n_keys,
                     call->owner, call->ttl_ns, agent->now_ns, &id, &call->n_found, &call->err);
    if (call->status == KVT_OK && !kvt_core_pin_info(agent->core, id, &call->pin))
        call->status = kvt_error_set(&call->err, KVT_ERR_INTERNAL, "pin: is gone at once");
    if (call->status == KVT_OK)
        memcpy(call->ns_id, kvt_core_ns_id(agent->core, call->pin.ns), sizeof(call->ns_id));
}

static void pin(struct request *r)
{
    const Kvtier__V1__PinRequest *in = (const void *)r->in;
    Kvtier__V1__PinResponse *out = request_alloc(r, 1, sizeof(*out));
    struct chain chain;
    struct pin_call call = {
        .chain = &chain, .owner = in->owner, .ttl_ns = in->ttl_ms * KVT_NS_PER_MS};
    if (out == NULL || !request_owner(r, in->owner))
        return;
    if (in->ttl_ms > TTL_MAX_MS) {
        request_fail(r, GRPC_STATUS_INVALID_ARGUMENT,
                     "ttl_ms: %" PRIu64 " is more than 366 days; 0 pins until Unpin", in->ttl_ms);
        return;
    }
    if (!request_chain(r, in->chain, KVT_BATCH_MAX, &chain) || !request_ask(r, pin_run, &call))
        return;
    if (call.status != KVT_OK) {
        request_fail_status(r, call.status, call.err.msg);
        return;
    }
    kvt_log(KVT_LOG_INFO, "pinned pin=%" PRIu64 " owner=%s chunks=%u ttl_ms=%" PRIu64, call.pin.id,
            in->owner, call.pin.n_chunks, in->ttl_ms);
    kvtier__v1__pin_response__init(out);
    out->pin = pin_message(r, &call.pin, call.ns_id, kvt_now_ns());
    out->n_keys = chain.n_keys;
    out->n_found = call.n_found;
    r->out = &out->base;
}

struct unpin_call {
    const Kvtier__V1__UnpinRequest *in;
    const struct chain *chain;
    unsigned n;
};

static void unpin_run(struct agent *agent, void *arg)
{
    struct unpin_call *call = arg;
    switch (call->in->by_case) {
    case KVTIER__V1__UNPIN_REQUEST__BY_ID:
        call->n = kvt_core_unpin(agent->core, call->in->id) == KVT_OK;
        break;
    case KVTIER__V1__UNPIN_REQUEST__BY_OWNER:
        call->n = kvt_core_unpin_owner(agent->core, call->in->owner);
        break;
    default:
        call->n = kvt_core_unpin_keys(agent->core, call->chain->ns, call->chain->keys,
                                      call->chain->n_keys);
        break;
    }
}

static void unpin(struct request *r)
{
    const Kvtier__V1__UnpinRequest *in = (const void *)r->in;
    Kvtier__V1__UnpinResponse *out = request_alloc(r, 1, sizeof(*out));
    struct chain chain;
    struct unpin_call call = {.in = in, .chain = &chain};
    if (out == NULL)
        return;
    switch (in->by_case) {
    case KVTIER__V1__UNPIN_REQUEST__BY_ID:
        break;
    case KVTIER__V1__UNPIN_REQUEST__BY_OWNER:
        if (!request_owner(r, in->owner))
            return;
        break;
    case KVTIER__V1__UNPIN_REQUEST__BY_CHAIN:
        if (!request_chain(r, in->chain, KVT_BATCH_MAX, &chain))
            return;
        break;
    default:
        request_fail(r, GRPC_STATUS_INVALID_ARGUMENT, "by: names no pins; set id, owner or chain");
        return;
    }
    if (!request_ask(r, unpin_run, &call))
        return;
    if (call.n == 0 && in->by_case == KVTIER__V1__UNPIN_REQUEST__BY_ID) {
        request_fail(r, GRPC_STATUS_NOT_FOUND,
                     "pin %" PRIu64 ": is none, or has ended; see ListPins", in->id);
        return;
    }
    kvt_log(KVT_LOG_INFO, "unpinned pins=%u", call.n);
    kvtier__v1__unpin_response__init(out);
    out->n_unpinned = call.n;
    r->out = &out->base;
}

const struct method pin_methods[] = {
    {CONTROL_METHOD("ListPins"), METHOD_UNARY, &kvtier__v1__list_pins_request__descriptor,
     list_pins},
    {CONTROL_METHOD("Pin"), METHOD_UNARY, &kvtier__v1__pin_request__descriptor, pin},
    {CONTROL_METHOD("Unpin"), METHOD_UNARY, &kvtier__v1__unpin_request__descriptor, unpin},
    {0},
};
