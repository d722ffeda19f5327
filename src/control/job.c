/* SPDX-License-Identifier: Apache-2.0 */
/* Prefetch, Demote, Delete, Clear, Verify, and the jobs that they start. */
#include <inttypes.h>
#include <string.h>

#include "agent.h"
#include "kvt/log.h"
#include "kvt/units.h"
#include "kvt/util.h"
#include "list.h"

#define WATCH_MS     200
#define WATCH_MS_MIN 50
#define WATCH_MS_MAX 60000

static Kvtier__V1__Job__Type type_message(enum kvt_job_type type)
{
    switch (type) {
    case KVT_JOB_DELETE:
        return KVTIER__V1__JOB__TYPE__TYPE_DELETE;
    case KVT_JOB_DEMOTE:
        return KVTIER__V1__JOB__TYPE__TYPE_DEMOTE;
    case KVT_JOB_PREFETCH:
        return KVTIER__V1__JOB__TYPE__TYPE_PREFETCH;
    case KVT_JOB_VERIFY:
        return KVTIER__V1__JOB__TYPE__TYPE_VERIFY;
    }
    return KVTIER__V1__JOB__TYPE__TYPE_UNSPECIFIED;
}

static Kvtier__V1__Job__State state_message(enum kvt_job_state state)
{
    switch (state) {
    case KVT_JOB_PENDING:
        return KVTIER__V1__JOB__STATE__STATE_PENDING;
    case KVT_JOB_RUNNING:
        return KVTIER__V1__JOB__STATE__STATE_RUNNING;
    case KVT_JOB_DONE:
        return KVTIER__V1__JOB__STATE__STATE_DONE;
    case KVT_JOB_CANCELED:
        return KVTIER__V1__JOB__STATE__STATE_CANCELED;
    case KVT_JOB_FAILED:
        return KVTIER__V1__JOB__STATE__STATE_FAILED;
    }
    return KVTIER__V1__JOB__STATE__STATE_UNSPECIFIED;
}

static bool is_over(enum kvt_job_state state)
{
    return state != KVT_JOB_PENDING && state != KVT_JOB_RUNNING;
}

static ProtobufCMessage *job_message(struct request *r, const struct kvt_job_info *info)
{
    Kvtier__V1__Job *out = request_alloc(r, 1, sizeof(*out));
    if (out == NULL)
        return NULL;
    kvtier__v1__job__init(out);
    out->id = info->id;
    out->type = type_message(info->type);
    out->state = state_message(info->state);
    if (info->state == KVT_JOB_FAILED) {
        const char *cause = kvt_status_str(info->status);
        out->error = request_text(r, cause, strlen(cause));
    }
    out->dry_run = (info->flags & KVT_JOB_DRY_RUN) != 0;
    if (info->has_ns)
        out->namespace_id = request_bytes(r, info->ns_id, KVT_NS_ID_BYTES);
    out->n_total = info->n_total;
    out->n_looked = info->n_looked;
    out->n_matched = info->n_matched;
    out->n_changed = info->n_changed;
    out->n_skipped = info->n_skipped;
    out->n_bad = info->n_bad;
    out->bytes = info->bytes;
    out->age_ms = ms_between(info->made_ns, kvt_now_ns());
    if (is_over(info->state)) /* if its end was not told yet, it is now */
        out->took_ms =
            info->ended_ns != 0 ? ms_between(info->made_ns, info->ended_ns) : out->age_ms;
    return &out->base;
}

/* --- starting --------------------------------------------------------------------------------- */

struct job_call {
    const struct kvt_job_request *request; /* NULL: nothing is started */
    uint64_t id;
    bool cancel;
    enum kvt_status status;
    struct kvt_error err;
    struct kvt_job_info info;
};

static void job_run(struct agent *agent, void *arg)
{
    struct job_call *call = arg;
    call->status = KVT_OK;
    if (call->request != NULL)
        call->status =
            kvt_core_job_start(agent->core, call->request, agent->now_ns, &call->id, &call->err);
    else if (call->cancel)
        call->status = kvt_core_job_cancel(agent->core, call->id);
    if (call->status != KVT_OK)
        return;
    call->status = kvt_core_job(agent->core, call->id, &call->info);
}

static void job_start(struct request *r, const struct kvt_job_request *request, const char *what)
{
    struct job_call call = {.request = request};
    if (!request_ask(r, job_run, &call))
        return;
    if (call.status != KVT_OK) {
        request_fail_status(r, call.status,
                            call.err.msg[0] != '\0' ? call.err.msg : kvt_status_str(call.status));
        return;
    }
    kvt_log(KVT_LOG_INFO, "job started job=%" PRIu64 " type=%s keys=%u dry_run=%d force=%d",
            call.id, what, request->n_keys, (request->flags & KVT_JOB_DRY_RUN) != 0,
            (request->flags & KVT_JOB_FORCE) != 0);
    r->out = job_message(r, &call.info);
}

/* What a job works on. may_be_all: nothing named means everything. */
static bool selection_read(struct request *r, const Kvtier__V1__Selection *in, bool may_be_all,
                           struct kvt_job_request *job)
{
    struct chain chain;
    const Kvtier__V1__ChunkFilter *filter = in != NULL ? in->filter : NULL;
    bool has_chain = in != NULL && in->chain != NULL;
    if (!has_chain && filter == NULL && !may_be_all) {
        request_fail(r, GRPC_STATUS_INVALID_ARGUMENT,
                     "selection: names nothing; set a chain or a filter");
        return false;
    }
    if (!has_chain && in != NULL && in->subtree) {
        request_fail(r, GRPC_STATUS_INVALID_ARGUMENT,
                     "selection.subtree: goes with a chain; name one");
        return false;
    }
    if (has_chain && filter != NULL && filter->namespace_id.len > 0) {
        request_fail(r, GRPC_STATUS_INVALID_ARGUMENT,
                     "selection.filter.namespace_id: the chain has one already; leave it empty");
        return false;
    }
    if (!request_filter(r, filter, &job->filter))
        return false;
    if (!has_chain)
        return true;
    if (!request_chain(r, in->chain, KVT_BATCH_MAX, &chain))
        return false;
    job->keys = chain.keys;
    job->n_keys = chain.n_keys;
    job->filter.ns = chain.ns;
    job->flags |= in->subtree ? KVT_JOB_SUBTREE : 0U;
    return true;
}

static uint32_t job_flags(bool dry_run, bool force)
{
    return (dry_run ? KVT_JOB_DRY_RUN : 0U) | (force ? KVT_JOB_FORCE : 0U);
}

static void prefetch(struct request *r)
{
    const Kvtier__V1__PrefetchRequest *in = (const void *)r->in;
    struct kvt_job_request job = {.type = KVT_JOB_PREFETCH};
    if (selection_read(r, in->selection, false, &job))
        job_start(r, &job, "prefetch");
}

static void demote(struct request *r)
{
    const Kvtier__V1__DemoteRequest *in = (const void *)r->in;
    struct kvt_job_request job = {.type = KVT_JOB_DEMOTE,
                                  .flags = job_flags(in->dry_run, in->force)};
    if (selection_read(r, in->selection, false, &job))
        job_start(r, &job, "demote");
}

static void delete_chunks(struct request *r)
{
    const Kvtier__V1__DeleteRequest *in = (const void *)r->in;
    struct kvt_job_request job = {.type = KVT_JOB_DELETE,
                                  .flags = job_flags(in->dry_run, in->force)};
    if (in->selection == NULL || in->selection->chain == NULL) {
        request_fail(r, GRPC_STATUS_INVALID_ARGUMENT,
                     "selection.chain: is not set; name keys or tokens, or use Clear");
        return;
    }
    if (request_tiers(r, in->tiers, in->n_tiers, &job.tiers) &&
        selection_read(r, in->selection, false, &job))
        job_start(r, &job, "delete");
}

static void clear(struct request *r)
{
    const Kvtier__V1__ClearRequest *in = (const void *)r->in;
    struct kvt_job_request job = {.type = KVT_JOB_DELETE,
                                  .flags = job_flags(in->dry_run, in->force)};
    bool has_ns = in->filter != NULL && in->filter->namespace_id.len > 0;
    if (has_ns == (in->all_namespaces != 0)) {
        request_fail(
            r, GRPC_STATUS_INVALID_ARGUMENT,
            "filter.namespace_id: is not set, nor is all_namespaces, or both are; set exactly "
            "one of them");
        return;
    }
    if (request_tiers(r, in->tiers, in->n_tiers, &job.tiers) &&
        request_filter(r, in->filter, &job.filter))
        job_start(r, &job, "clear");
}

static void verify(struct request *r)
{
    const Kvtier__V1__VerifyRequest *in = (const void *)r->in;
    struct kvt_job_request job = {.type = KVT_JOB_VERIFY};
    if (selection_read(r, in->selection, true, &job))
        job_start(r, &job, "verify");
}

/* --- following -------------------------------------------------------------------------------- */

/* Ask for a job. False: the request has failed. */
static bool job_ask(struct request *r, struct job_call *call)
{
    if (!request_ask(r, job_run, call))
        return false;
    if (call->status == KVT_OK)
        return true;
    if (call->status == KVT_ERR_MISS)
        request_fail(r, GRPC_STATUS_NOT_FOUND,
                     "job %" PRIu64 ": is none, or ended long ago; see ListJobs", call->id);
    else
        request_fail(r, GRPC_STATUS_FAILED_PRECONDITION,
                     "job %" PRIu64 ": is over; see GetJob for how it ended", call->id);
    return false;
}

static void get_job(struct request *r)
{
    const Kvtier__V1__GetJobRequest *in = (const void *)r->in;
    struct job_call call = {.id = in->id};
    if (job_ask(r, &call))
        r->out = job_message(r, &call.info);
}

static void cancel_job(struct request *r)
{
    const Kvtier__V1__CancelJobRequest *in = (const void *)r->in;
    struct job_call call = {.id = in->id, .cancel = true};
    if (!job_ask(r, &call))
        return;
    kvt_log(KVT_LOG_INFO, "job canceled job=%" PRIu64, in->id);
    r->out = job_message(r, &call.info);
}

/* Whether a watcher has something to see. */
static bool job_differs(const struct kvt_job_info *a, const struct kvt_job_info *b)
{
    return a->state != b->state || a->n_total != b->n_total || a->n_looked != b->n_looked ||
           a->n_changed != b->n_changed || a->n_skipped != b->n_skipped || a->n_bad != b->n_bad;
}

static void watch_job(struct request *r)
{
    struct stream_state *stream = r->stream;
    if (r->in != NULL) {
        const Kvtier__V1__WatchJobRequest *in = (const void *)r->in;
        uint32_t ms = in->interval_ms == 0 ? WATCH_MS : in->interval_ms;
        stream->job = in->id;
        stream->interval_ns = KVT_MIN(KVT_MAX(ms, WATCH_MS_MIN), WATCH_MS_MAX) * KVT_NS_PER_MS;
    }
    struct job_call call = {.id = stream->job};
    if (!job_ask(r, &call))
        return;
    bool over = is_over(call.info.state);
    uint64_t now = kvt_now_ns();
    bool early = stream->begun && now < stream->sent_ns + stream->interval_ns;
    if (over || !stream->begun || (!early && job_differs(&call.info, &stream->info))) {
        r->out = job_message(r, &call.info);
        stream->begun = true;
        stream->info = call.info;
        stream->sent_ns = now;
    }
    uint64_t next = stream->sent_ns + stream->interval_ns;
    if (!over)
        r->again_ns = next > now ? next : now + stream->interval_ns;
}

static void jobs_run(struct agent *agent, void *arg)
{
    struct list_call *call = arg;
    call->n = kvt_core_jobs(agent->core, &call->cursor, call->items, call->n_max);
}

static ProtobufCMessage *job_listed(struct request *r, const struct list_call *call, unsigned i)
{
    return job_message(r, (const struct kvt_job_info *)call->items + i);
}

static void list_jobs(struct request *r)
{
    static const struct list_kind kind = {sizeof(struct kvt_job_info), jobs_run, job_listed};
    const Kvtier__V1__ListJobsRequest *in = (const void *)r->in;
    Kvtier__V1__ListJobsResponse *out = request_alloc(r, 1, sizeof(*out));
    struct list_call call = {.kind = &kind};
    if (out == NULL || !list_page(r, in->page_size, in->page_token, &call))
        return;
    kvtier__v1__list_jobs_response__init(out);
    out->jobs = (void *)call.out;
    out->n_jobs = call.n_out;
    out->next_page_token = call.next_token;
    r->out = &out->base;
}

const struct method job_methods[] = {
    {CONTROL_METHOD("Prefetch"), METHOD_UNARY, &kvtier__v1__prefetch_request__descriptor, prefetch},
    {CONTROL_METHOD("Demote"), METHOD_UNARY, &kvtier__v1__demote_request__descriptor, demote},
    {CONTROL_METHOD("Delete"), METHOD_UNARY, &kvtier__v1__delete_request__descriptor,
     delete_chunks},
    {CONTROL_METHOD("Clear"), METHOD_UNARY, &kvtier__v1__clear_request__descriptor, clear},
    {CONTROL_METHOD("Verify"), METHOD_UNARY, &kvtier__v1__verify_request__descriptor, verify},
    {CONTROL_METHOD("ListJobs"), METHOD_UNARY, &kvtier__v1__list_jobs_request__descriptor,
     list_jobs},
    {CONTROL_METHOD("GetJob"), METHOD_UNARY, &kvtier__v1__get_job_request__descriptor, get_job},
    {CONTROL_METHOD("CancelJob"), METHOD_UNARY, &kvtier__v1__cancel_job_request__descriptor,
     cancel_job},
    {CONTROL_METHOD("WatchJob"), METHOD_WATCH, &kvtier__v1__watch_job_request__descriptor,
     watch_job},
    {0},
};
