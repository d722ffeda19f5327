/* SPDX-License-Identifier: Apache-2.0 */
/* What a handler of one RPC sees: a message in, a message or an error out, and the reactor. */
#ifndef KVT_CONTROL_REQUEST_H
#define KVT_CONTROL_REQUEST_H

#include <grpc/status.h>
#include <protobuf-c/protobuf-c.h>

#include "arena.h"
#include "control.pb-c.h"
#include "control_call.h"
#include "kvt/core_admin.h"
#include "listen.h"

/* What is the same for all requests, and for as long as the server runs. */
struct control_env {
    struct agent *agent; /* only what never changes may be read directly */
    char hostname[256];
    char control_path[sizeof(((struct listener *)0)->path)];
    uint64_t started_unix_ms;
};

/* What a stream remembers from one call of its handler to the next. */
struct stream_state {
    bool begun;
    bool is_unknown; /* health: the service */
    uint32_t status; /* health: sent last */
    uint64_t job, interval_ns, sent_ns;
    struct kvt_job_info info; /* as it was sent last */
};

struct request {
    const struct control_env *env;
    struct arena arena; /* what `in` and `out` are made of; ends when `out` is packed */
    uint64_t deadline_ns;
    bool has_ns; /* of request_ns_find(): the handle is used as long as it means this id */
    uint32_t ns;
    uint8_t ns_id[KVT_NS_ID_BYTES];
    struct stream_state *stream; /* NULL: not a stream */
    const ProtobufCMessage *in;  /* NULL: a stream's handler is called again */
    ProtobufCMessage *out;       /* NULL: no message */
    grpc_status_code code;       /* not OK: the call ends with it */
    char msg[512];
    uint64_t again_ns; /* METHOD_WATCH goes on: call again at this time, or when something happened
                          (UINT64_MAX: only then); 0: it is over */
};

typedef void (*request_fn)(struct request *r);

/* How a call goes on after its first message. */
enum method_kind {
    METHOD_UNARY,
    METHOD_WATCH, /* one message in, many out */
    METHOD_BIDI,  /* many in, one out for each */
};

struct method {
    const char *path; /* "/package.Service/Method" */
    enum method_kind kind;
    const ProtobufCMessageDescriptor *input;
    request_fn handle;
};

/* Tables end with a NULL path. */
extern const struct method node_methods[];
extern const struct method list_methods[];
extern const struct method pin_methods[];
extern const struct method job_methods[];
extern const struct method health_methods[];
extern const struct method reflection_methods[];

#define CONTROL_SERVICE      "kvtier.v1.Control"
#define CONTROL_METHOD(name) "/" CONTROL_SERVICE "/" name

/** End with an error: object, cause, next step. */
void request_fail(struct request *r, grpc_status_code code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/** A fault that the core named. */
void request_fail_status(struct request *r, enum kvt_status status, const char *msg);
void request_fail_ns(struct request *r, const uint8_t ns_id[KVT_NS_ID_BYTES]); /* is none */
/** Zeroed memory of the request. NULL: too much, and the request has failed. */
void *request_alloc(struct request *r, size_t n, size_t bytes);
/** Text as protobuf wants it: what is no UTF-8 becomes '?'. "" when there is no memory. */
char *request_text(struct request *r, const char *text, size_t n_max);
/** Bytes for a message, copied. */
ProtobufCBinaryData request_bytes(struct request *r, const void *bytes, size_t n);

/** Have the reactor run a function. False: it did not, and the request has failed; so it has when
 * the namespace that the request names is gone, and its handle may be another's. */
bool request_ask(struct request *r, control_call_fn run, void *arg);

/* --- names and selections, as the proto has them --- */

/** The handle of the namespace with that id, one for a request; desc_p may be NULL. False: the
 * request has failed. */
bool request_ns_find(struct request *r, const ProtobufCBinaryData *id, uint32_t *ns_p,
                     struct kvt_ns_desc *desc_p);

struct chain {
    uint32_t ns;
    unsigned n_keys;
    const struct kvt_key *keys;
    uint32_t tokens_per_chunk; /* of the namespace */
};
/** False: the request has failed. n_max: keys that the RPC takes. */
bool request_chain(struct request *r, const Kvtier__V1__Chain *in, unsigned n_max,
                   struct chain *chain);
/** in may be NULL: takes every chunk. */
bool request_filter(struct request *r, const Kvtier__V1__ChunkFilter *in,
                    struct kvt_admin_filter *filter);
/** KVT_WHERE_* of a list of tiers; none: 0. */
bool request_tiers(struct request *r, const Kvtier__V1__Tier *tiers, size_t n, uint32_t *where_p);
/** An owner of pins. */
bool request_owner(struct request *r, const char *owner);

static inline uint64_t ns_between(uint64_t from_ns, uint64_t to_ns)
{
    return to_ns > from_ns ? to_ns - from_ns : 0;
}

static inline uint64_t ms_between(uint64_t from_ns, uint64_t to_ns)
{
    return ns_between(from_ns, to_ns) / 1000000;
}

#endif
