/* SPDX-License-Identifier: Apache-2.0 */
#include "request.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent.h"
#include "kvt/util.h"

/* --- errors and memory ------------------------------------------------------------------------ */

void request_fail(struct request *r, grpc_status_code code, const char *format, ...)
{
    va_list ap;
    va_start(ap, format);
    vsnprintf(r->msg, sizeof(r->msg), format, ap);
    va_end(ap);
    r->code = code;
}

void request_fail_status(struct request *r, enum kvt_status status, const char *msg)
{
    grpc_status_code code = GRPC_STATUS_INTERNAL;
    switch (status) {
    case KVT_ERR_INVAL:
        code = GRPC_STATUS_INVALID_ARGUMENT;
        break;
    case KVT_ERR_MISS:
        code = GRPC_STATUS_NOT_FOUND;
        break;
    case KVT_ERR_NOTSUP:
        code = GRPC_STATUS_FAILED_PRECONDITION;
        break;
    case KVT_ERR_NOSPACE:
    case KVT_ERR_NOMEM:
        code = GRPC_STATUS_RESOURCE_EXHAUSTED;
        break;
    case KVT_ERR_AGAIN:
    case KVT_ERR_CANCELED:
        code = GRPC_STATUS_UNAVAILABLE;
        break;
    case KVT_ERR_TIMEOUT:
        code = GRPC_STATUS_DEADLINE_EXCEEDED;
        break;
    default:
        break;
    }
    request_fail(r, code, "%s", msg);
}

void request_fail_ns(struct request *r, const uint8_t ns_id[KVT_NS_ID_BYTES])
{
    request_fail(r, GRPC_STATUS_NOT_FOUND,
                 "namespace %02x%02x%02x%02x...: this agent has none of that id; see "
                 "ListNamespaces",
                 ns_id[0], ns_id[1], ns_id[2], ns_id[3]);
}

void *request_alloc(struct request *r, size_t n, size_t bytes)
{
    void *ptr = NULL;
    size_t all;
    if (__builtin_mul_overflow(n, bytes, &all) || (ptr = arena_alloc(&r->arena, all)) == NULL)
        request_fail(r, GRPC_STATUS_RESOURCE_EXHAUSTED,
                     "control: the answer needs too much memory; ask for less at once");
    return ptr;
}

/* Bytes of the UTF-8 character at text, of which n are there; 0: it is none. */
static size_t utf8_bytes(const unsigned char *text, size_t n)
{
    size_t length = text[0] < 0x80                       ? 1
                    : text[0] >= 0xc2 && text[0] <= 0xdf ? 2
                    : (text[0] & 0xf0) == 0xe0           ? 3
                    : text[0] >= 0xf0 && text[0] <= 0xf4 ? 4
                                                         : 0;
    if (length == 0 || length > n)
        return 0;
    for (size_t i = 1; i < length; i++) {
        if ((text[i] & 0xc0) != 0x80)
            return 0;
    }
    /* Longer than needed, a surrogate, or above U+10FFFF. */
    if ((text[0] == 0xe0 && text[1] < 0xa0) || (text[0] == 0xed && text[1] > 0x9f) ||
        (text[0] == 0xf0 && text[1] < 0x90) || (text[0] == 0xf4 && text[1] > 0x8f))
        return 0;
    return length;
}

char *request_text(struct request *r, const char *text, size_t n_max)
{
    static char empty[1] = "";
    size_t n = strnlen(text, n_max);
    char *copy = request_alloc(r, n + 1, 1);
    if (copy == NULL)
        return empty;
    for (size_t i = 0; i < n;) {
        size_t length = utf8_bytes((const unsigned char *)text + i, n - i);
        if (length == 0) {
            copy[i++] = '?';
            continue;
        }
        memcpy(copy + i, text + i, length);
        i += length;
    }
    return copy;
}

ProtobufCBinaryData request_bytes(struct request *r, const void *bytes, size_t n)
{
    ProtobufCBinaryData copy = {.data = request_alloc(r, n, 1)};
    if (copy.data != NULL) {
        memcpy(copy.data, bytes, n);
        copy.len = n;
    }
    return copy;
}

/* --- the reactor ------------------------------------------------------------------------------ */

struct ask {
    const struct request *r;
    control_call_fn run;
    void *arg;
    bool gone;
};

/* Between two calls of a request nothing refers to its namespace, so that may have made way. */
static void ask_run(struct agent *agent, void *arg)
{
    struct ask *ask = arg;
    ask->gone = ask->r->has_ns && kvt_core_ns_find(agent->core, ask->r->ns_id) != ask->r->ns;
    if (!ask->gone)
        ask->run(agent, ask->arg);
}

bool request_ask(struct request *r, control_call_fn run, void *arg)
{
    struct ask ask = {.r = r, .run = run, .arg = arg};
    switch (control_call(&r->env->agent->calls, ask_run, &ask, r->deadline_ns)) {
    case KVT_OK:
        if (ask.gone)
            request_fail_ns(r, r->ns_id);
        return !ask.gone;
    case KVT_ERR_AGAIN:
        request_fail(r, GRPC_STATUS_RESOURCE_EXHAUSTED,
                     "control: too many requests at once; ask again");
        return false;
    case KVT_ERR_TIMEOUT:
        request_fail(r, GRPC_STATUS_DEADLINE_EXCEEDED,
                     "control: the agent had no time for this request before its deadline; ask for "
                     "less at once, or allow more time");
        return false;
    default:
        request_fail(r, GRPC_STATUS_UNAVAILABLE,
                     "control: the agent is stopping; ask again when it has started");
        return false;
    }
}
