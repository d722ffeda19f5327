/* SPDX-License-Identifier: Apache-2.0 */
/* Jobs of the agent: start, watch with a progress bar, cancel. */
#include "job.h"

#include <inttypes.h>
#include <string.h>

#include "kvt/interrupt.h"
#include "kvt/progress.h"
#include "kvt/util.h"
#include "message.h"

#define WATCH_INTERVAL_MS 100
#define WAIT_MS           100 /* how soon an interrupt is seen */
#define DETAIL_BYTES      128

struct watch {
    struct kvctl *k;
    struct kvctl_stream *stream;
    struct kvt_progress progress;
    uint64_t heard_ns; /* when the agent last answered anything */
    bool canceling, quiet;
    Kvtier__V1__Job *job; /* as last heard */
};

static bool ended(const Kvtier__V1__Job *job)
{
    return job->state == KVTIER__V1__JOB__STATE__STATE_DONE ||
           job->state == KVTIER__V1__JOB__STATE__STATE_CANCELED ||
           job->state == KVTIER__V1__JOB__STATE__STATE_FAILED;
}

struct job_words {
    const char *name, *done;
};

static struct job_words job_words(const Kvtier__V1__Job *job)
{
    switch (job->type) {
    case KVTIER__V1__JOB__TYPE__TYPE_DELETE:
        return (struct job_words){"delete", "deleted"};
    case KVTIER__V1__JOB__TYPE__TYPE_DEMOTE:
        return (struct job_words){"demote", "demoted"};
    case KVTIER__V1__JOB__TYPE__TYPE_PREFETCH:
        return (struct job_words){"prefetch", "brought in"};
    case KVTIER__V1__JOB__TYPE__TYPE_VERIFY:
        return (struct job_words){"verify", "verified"};
    default:
        return (struct job_words){"job", "done"};
    }
}

static void detail(const Kvtier__V1__Job *job, char text[DETAIL_BYTES])
{
    if (job->dry_run) {
        snprintf(text, DETAIL_BYTES, "%" PRIu64 " chunks would be %s", job->n_matched,
                 job_words(job).done);
        return;
    }
    int n = snprintf(text, DETAIL_BYTES, "%" PRIu64 " of %" PRIu64 " chunks %s", job->n_changed,
                     job->n_matched, job_words(job).done);
    if (job->n_skipped > 0)
        n += snprintf(text + n, DETAIL_BYTES - (size_t)n, ", %" PRIu64 " skipped", job->n_skipped);
    if (job->n_bad > 0 || job->type == KVTIER__V1__JOB__TYPE__TYPE_VERIFY)
        snprintf(text + n, DETAIL_BYTES - (size_t)n, ", %" PRIu64 " bad", job->n_bad);
}

/* One round trip by which a job is cancelled, or a silent agent shows that it lives. */
static enum kvctl_exit ask(struct watch *watch, const char *method)
{
    Kvtier__V1__GetJobRequest get = KVTIER__V1__GET_JOB_REQUEST__INIT;
    Kvtier__V1__CancelJobRequest cancel = KVTIER__V1__CANCEL_JOB_REQUEST__INIT;
    ProtobufCMessage *reply = NULL;
    bool is_get = strcmp(method, "GetJob") == 0;
    get.id = cancel.id = watch->job->id;
    enum kvctl_exit code =
        is_get ? kvctl_call(watch->k, method, &get.base, &reply)
               /* Of a job that has just ended it is refused: its end comes anyway. */
               : kvctl_call_quiet(watch->k, method, &cancel.base, &reply);
    if (reply != NULL)
        protobuf_c_message_free_unpacked(reply, NULL);
    watch->heard_ns = kvt_now_ns();
    return is_get ? code : KVCTL_OK;
}

/* Take what has come, if anything. */
static enum kvctl_exit watch_step(struct watch *watch, bool *end_p)
{
    ProtobufCMessage *reply;
    char text[DETAIL_BYTES];
    enum kvctl_exit code = kvctl_stream_next(watch->stream, WAIT_MS, &reply, end_p);
    if (code != KVCTL_OK)
        return code;
    if (reply != NULL) {
        kvtier__v1__job__free_unpacked(watch->job, NULL);
        watch->job = (Kvtier__V1__Job *)reply;
        watch->heard_ns = kvt_now_ns();
        watch->progress.total = watch->job->n_total;
        detail(watch->job, text);
        if (!watch->quiet)
            kvt_progress_show(&watch->progress, watch->job->n_looked, text);
    }
    if (kvt_interrupted() && !watch->canceling) {
        watch->canceling = true;
        return ask(watch, "CancelJob");
    }
    if (!*end_p && kvt_now_ns() - watch->heard_ns > watch->k->timeout_ns)
        return ask(watch, "GetJob");
    return KVCTL_OK;
}

static enum kvctl_exit watch_run(struct watch *watch)
{
    Kvtier__V1__WatchJobRequest request = KVTIER__V1__WATCH_JOB_REQUEST__INIT;
    char text[DETAIL_BYTES];
    bool end = false;
    request.id = watch->job->id;
    request.interval_ms = WATCH_INTERVAL_MS;
    enum kvctl_exit code = kvctl_stream_open(watch->k, "WatchJob", &request.base, &watch->stream);
    watch->heard_ns = kvt_now_ns();
    kvt_progress_start(&watch->progress, job_words(watch->job).name, watch->job->n_total);
    while (code == KVCTL_OK && !end && !ended(watch->job))
        code = watch_step(watch, &end);
    kvctl_stream_close(watch->stream);
    detail(watch->job, text);
    if (!watch->quiet)
        kvt_progress_end(&watch->progress, watch->job->n_looked, text);
    if (code == KVCTL_OK && !ended(watch->job))
        code = kvctl_fail(KVCTL_FAILED,
                          "the agent stopped telling about job %" PRIu64 "; see 'kvctl get jobs'",
                          watch->job->id);
    return code;
}

enum kvctl_exit kvctl_job_run(struct kvctl *k, const char *method, const ProtobufCMessage *request,
                              bool quiet, Kvtier__V1__Job **job_p)
{
    ProtobufCMessage *reply;
    *job_p = NULL;
    enum kvctl_exit code = kvctl_call(k, method, request, &reply);
    if (code != KVCTL_OK)
        return code;
    *job_p = (Kvtier__V1__Job *)reply;
    if (kvctl_given(k, KVCTL_OPT_NO_WAIT))
        return KVCTL_OK;
    if (!ended(*job_p)) {
        struct watch watch = {.k = k, .job = *job_p, .quiet = quiet};
        kvt_interrupt_setup();
        code = watch_run(&watch);
        *job_p = watch.job;
    }
    if (code != KVCTL_OK)
        return code;
    if ((*job_p)->state == KVTIER__V1__JOB__STATE__STATE_FAILED)
        return kvctl_fail(KVCTL_FAILED, "job %" PRIu64 " failed: %s", (*job_p)->id,
                          (*job_p)->error);
    if ((*job_p)->state == KVTIER__V1__JOB__STATE__STATE_CANCELED)
        return kvt_interrupted()
                   ? KVCTL_INTERRUPTED
                   : kvctl_fail(KVCTL_FAILED, "job %" PRIu64 " was cancelled", (*job_p)->id);
    return (*job_p)->n_bad > 0 ? KVCTL_BAD : KVCTL_OK;
}

enum kvctl_exit kvctl_job_print(struct kvctl *k, Kvtier__V1__Job *job, enum kvctl_exit code)
{
    if (job == NULL)
        return code;
    json_t *json = kvctl_message_json(&job->base);
    bool printed = kvctl_object_print(&k->style, json);
    json_decref(json);
    kvtier__v1__job__free_unpacked(job, NULL);
    return code == KVCTL_OK && !printed ? KVCTL_FAILED : code;
}
