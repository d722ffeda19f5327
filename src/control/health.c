/* SPDX-License-Identifier: Apache-2.0 */
/* grpc.health.v1.Health: whether stores and loads are served. */
#include <string.h>

#include "agent.h"
#include "health.pb-c.h"
#include "request.h"

typedef Grpc__Health__V1__HealthCheckResponse__ServingStatus serving_status;

static serving_status status_now(const struct request *r)
{
    return atomic_load(&r->env->agent->calls.state) == SERVICE_READY
               ? GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING
               : GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__NOT_SERVING;
}

static bool service_known(const char *name)
{
    return name[0] == '\0' || strcmp(name, CONTROL_SERVICE) == 0;
}

static void answer(struct request *r, serving_status status)
{
    Grpc__Health__V1__HealthCheckResponse *out = request_alloc(r, 1, sizeof(*out));
    if (out == NULL)
        return;
    grpc__health__v1__health_check_response__init(out);
    out->status = status;
    r->out = &out->base;
}

static void check(struct request *r)
{
    const Grpc__Health__V1__HealthCheckRequest *in = (const void *)r->in;
    if (service_known(in->service))
        answer(r, status_now(r));
    else
        request_fail(r, GRPC_STATUS_NOT_FOUND,
                     "service \"%.64s\": is not served here; ask for \"\" or \"" CONTROL_SERVICE
                     "\"",
                     in->service);
}

static void watch(struct request *r)
{
    struct stream_state *stream = r->stream;
    if (r->in != NULL) {
        const Grpc__Health__V1__HealthCheckRequest *in = (const void *)r->in;
        stream->is_unknown = !service_known(in->service);
    }
    serving_status status =
        stream->is_unknown
            ? GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVICE_UNKNOWN
            : status_now(r);
    if (!stream->begun || (uint32_t)status != stream->status)
        answer(r, status);
    stream->begun = true;
    stream->status = (uint32_t)status;
    r->again_ns = UINT64_MAX;
}

const struct method health_methods[] = {
    {"/grpc.health.v1.Health/Check", METHOD_UNARY,
     &grpc__health__v1__health_check_request__descriptor, check},
    {"/grpc.health.v1.Health/Watch", METHOD_WATCH,
     &grpc__health__v1__health_check_request__descriptor, watch},
    {0},
};
