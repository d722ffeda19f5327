/* SPDX-License-Identifier: Apache-2.0 */
/* The table of jobs: their beginning, their end, and what is told of them. */
#include <string.h>

#include "core_internal.h"

bool core_jobs_init(struct kvt_core *core)
{
    struct jobs *jobs = &core->jobs;
    jobs->jobs = kvt_big_calloc(KVT_ADMIN_JOBS_MAX * sizeof(*jobs->jobs));
    jobs->keys = kvt_big_calloc(KVT_ADMIN_JOBS_MAX * KVT_BATCH_MAX * sizeof(*jobs->keys));
    jobs->next_ns = UINT64_MAX;
    return jobs->jobs != NULL && jobs->keys != NULL;
}

void core_jobs_fini(struct kvt_core *core)
{
    struct jobs *jobs = &core->jobs;
    kvt_big_free(jobs->jobs, KVT_ADMIN_JOBS_MAX * sizeof(*jobs->jobs));
    kvt_big_free(jobs->keys, KVT_ADMIN_JOBS_MAX * KVT_BATCH_MAX * sizeof(*jobs->keys));
}

static bool is_open(const struct job *job)
{
    return job->info.state == KVT_JOB_PENDING || job->info.state == KVT_JOB_RUNNING;
}

/* The end that is longest ago makes room. */
static struct job *job_place(struct jobs *jobs)
{
    struct job *best = NULL;
    for (unsigned j = 0; j < KVT_ADMIN_JOBS_MAX; j++) {
        struct job *job = &jobs->jobs[j];
        if (job->info.id == 0)
            return job;
        /* Transfers of a canceled job still name its place. */
        if (is_open(job) || job->tell || job->n_moving > 0)
            continue;
        if (best == NULL || job->info.id < best->info.id)
            best = job;
    }
    return best;
}

static enum kvt_status request_check(const struct kvt_core *core,
                                     const struct kvt_job_request *request, struct kvt_error *err)
{
    const struct kvt_admin_filter *filter = &request->filter;
    const uint32_t tiers = KVT_WHERE_HOST | KVT_WHERE_NVME;
    const struct {
        bool bad;
        const char *what;
    } rules[] = {
        {request->type < KVT_JOB_DELETE || request->type > KVT_JOB_VERIFY, "type is unknown"},
        {(request->flags & ~7u) != 0, "flags has an unknown bit"},
        {(request->tiers & ~tiers) != 0 || (filter->tiers & ~tiers) != 0, "tier is unknown"},
        {(filter->flags & ~7u) != 0, "filter has an unknown flag"},
        {filter->n_key_prefix_bytes > KVT_KEY_BYTES, "key prefix is longer than a key"},
        {filter->ns != KVT_ADMIN_NS_ANY && (filter->ns >= core->n_ns || !core->ns[filter->ns].used),
         "namespace is unknown; list them"},
        {request->keys != NULL && (request->n_keys == 0 || request->n_keys > KVT_BATCH_MAX),
         "keys are none, or more than 1024"},
        {request->keys != NULL && filter->ns == KVT_ADMIN_NS_ANY, "keys need a namespace"},
        {request->keys == NULL && (request->flags & KVT_JOB_SUBTREE) != 0,
         "a subtree needs the keys it begins with"},
    };
    for (size_t i = 0; i < KVT_ARRAY_LEN(rules); i++)
        if (rules[i].bad)
            return kvt_error_set(err, KVT_ERR_INVAL, "job: %s", rules[i].what);
    if (request->type != KVT_JOB_DELETE && core->config.n_nvme_slabs == 0)
        return kvt_error_set(err, KVT_ERR_NOTSUP,
                             "job: this agent has no NVMe tier; set nvme.path and nvme.bytes");
    return KVT_OK;
}

enum kvt_status kvt_core_job_start(struct kvt_core *core, const struct kvt_job_request *request,
                                   uint64_t now_ns, uint64_t *job_p, struct kvt_error *err)
{
    struct jobs *jobs = &core->jobs;
    enum kvt_status status = request_check(core, request, err);
    if (status != KVT_OK)
        return status;
    if (core->draining)
        return kvt_error_set(err, KVT_ERR_AGAIN,
                             "job: the agent is stopping; ask again when it has started");
    struct job *job = job_place(jobs);
    if (job == NULL)
        return kvt_error_set(err, KVT_ERR_AGAIN, "job: %d are open; wait for one, or cancel one",
                             KVT_ADMIN_JOBS_MAX);
    *job = (struct job){
        .filter = request->filter,
        .tiers = request->tiers != 0 ? request->tiers : KVT_WHERE_HOST | KVT_WHERE_NVME,
        .n_keys = request->keys != NULL ? request->n_keys : 0,
        .scan_end = core->n_chunks_used,
        .root = NONE,
        .at = NONE,
        .info = {.id = ++jobs->last_id,
                 .type = request->type,
                 .state = KVT_JOB_PENDING,
                 .flags = request->flags,
                 .has_ns = request->filter.ns != KVT_ADMIN_NS_ANY,
                 .made_ns = now_ns},
    };
    if (job->info.has_ns) {
        memcpy(job->info.ns_id, core->ns[job->filter.ns].id, sizeof(job->info.ns_id));
        core_ns_get(core, job->filter.ns);
    }
    job->info.n_total = job->n_keys > 0 ? job->n_keys : job->scan_end;
    if (request->keys != NULL)
        memcpy(jobs->keys + (size_t)(job - jobs->jobs) * KVT_BATCH_MAX, request->keys,
               job->n_keys * sizeof(*request->keys));
    jobs->n_open++;
    jobs->next_ns = 0;
    if (job->n_keys > 0 && job->info.type == KVT_JOB_DELETE &&
        (job->info.flags & KVT_JOB_SUBTREE) == 0)
        core_job_walk(core, job);
    *job_p = job->info.id;
    return KVT_OK;
}

void core_job_end(struct kvt_core *core, struct job *job, enum kvt_job_state state,
                  enum kvt_status status)
{
    struct jobs *jobs = &core->jobs;
    if (job->at != NONE)
        core_unpin(core, job->at);
    if (job->info.has_ns)
        core_ns_put(core, job->filter.ns);
    job->root = job->at = NONE;
    job->phase = JOB_ENDED;
    job->info.state = state;
    job->info.status = status;
    job->tell = true;
    jobs->n_tell++;
    jobs->n_open--;
    jobs->next_ns = 0;
}

/* In flush: who waits for a job learns of its end. */
void core_jobs_tell(struct kvt_core *core, uint64_t now_ns)
{
    for (unsigned j = 0; core->jobs.n_tell > 0 && j < KVT_ADMIN_JOBS_MAX; j++) {
        struct job *job = &core->jobs.jobs[j];
        if (!job->tell)
            continue;
        job->tell = false;
        core->jobs.n_tell--;
        job->info.ended_ns = now_ns;
        if (core->actions.job_done != NULL)
            core->actions.job_done(core->actions.arg, job->info.id);
    }
}

static struct job *job_find(const struct kvt_core *core, uint64_t id)
{
    for (unsigned j = 0; id != 0 && j < KVT_ADMIN_JOBS_MAX; j++)
        if (core->jobs.jobs[j].info.id == id)
            return &core->jobs.jobs[j];
    return NULL;
}

enum kvt_status kvt_core_job(const struct kvt_core *core, uint64_t id, struct kvt_job_info *info_p)
{
    const struct job *job = job_find(core, id);
    if (job == NULL)
        return KVT_ERR_MISS;
    *info_p = job->info;
    return KVT_OK;
}

unsigned kvt_core_jobs(const struct kvt_core *core, uint64_t *cursor_p, struct kvt_job_info *infos,
                       unsigned n_max)
{
    unsigned n = 0;
    uint64_t j = *cursor_p;
    for (; j < KVT_ADMIN_JOBS_MAX && n < n_max; j++)
        if (core->jobs.jobs[j].info.id != 0)
            infos[n++] = core->jobs.jobs[j].info;
    *cursor_p = j < KVT_ADMIN_JOBS_MAX ? j : 0;
    return n;
}

enum kvt_status kvt_core_job_cancel(struct kvt_core *core, uint64_t id)
{
    struct job *job = job_find(core, id);
    if (job == NULL)
        return KVT_ERR_MISS;
    if (!is_open(job))
        return KVT_ERR_INVAL;
    core_job_end(core, job, KVT_JOB_CANCELED, KVT_ERR_CANCELED);
    return KVT_OK;
}

void core_jobs_cancel(struct kvt_core *core)
{
    for (unsigned j = 0; j < KVT_ADMIN_JOBS_MAX; j++)
        if (core->jobs.jobs[j].info.id != 0 && is_open(&core->jobs.jobs[j]))
            core_job_end(core, &core->jobs.jobs[j], KVT_JOB_CANCELED, KVT_ERR_CANCELED);
}
