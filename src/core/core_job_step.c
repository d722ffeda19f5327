/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How jobs go on: a bounded step now and then, in turns. A job walks over the chunks it is about
 * and does to each what it is for; where that is a transfer, it has a share of what the tiers may
 * have in flight, and none while a load waits for its turn.
 */
#include <string.h>

#include "core_internal.h"

#define STEP_NS      UINT64_C(1000000)  /* between steps that have more to do */
#define RETRY_NS     UINT64_C(10000000) /* before asking again for room, or for another's chunk */
#define STEP_LOOKS   2048               /* records of one step */
#define STEP_ACTS    128                /* of them changed */
#define MOVING_MAX   16                 /* chunks that one job writes at once */
#define IO_SHARE     4                  /* one in so many transfers of the tiers is for jobs */
#define LATER_MAX    100                /* times that chunks are asked for again without success */
#define RESTARTS_MAX 64
#define PURGE_PASSES 4

/* What became of a chunk that a job looked at. */
enum verdict {
    NEXT,  /* on to the next one */
    LATER, /* ask again in a while */
    WAIT,  /* something that is under way has to end first */
};

struct budget {
    unsigned n_looks, n_acts;
};

/* --- transfers ---------------------------------------------------------------------------------
 */

static struct job *job_of(struct kvt_core *core, const struct chunk *chunk)
{
    return &core->jobs.jobs[chunk->job - 1];
}

static bool reads(const struct job *job)
{
    return job->info.type == KVT_JOB_PREFETCH || job->info.type == KVT_JOB_VERIFY;
}

static void moving_add(struct kvt_core *core, struct job *job, uint32_t c)
{
    core->chunks[c].job = (uint8_t)(job - core->jobs.jobs + 1);
    job->n_moving++;
    if (!reads(job))
        return;
    core->jobs.n_reads++;
    core->jobs.read_bytes += chunk_ns(core, c)->slot_bytes;
}

static void changed(struct kvt_core *core, struct job *job, uint32_t c)
{
    job->info.n_changed++;
    job->info.bytes += chunk_ns(core, c)->desc.chunk_bytes;
}

static bool is_protected(const struct job *job, const struct chunk *chunk)
{
    return chunk->admin_pins > 0 && !(job->info.flags & KVT_JOB_FORCE);
}

/* By leases, loads, or a transfer. */
static bool in_use(const struct chunk *chunk)
{
    return chunk->pins > chunk->admin_pins;
}

/* Out of host memory; NVMe has it. False: in use, or pinned. */
static bool drop_host(struct kvt_core *core, const struct job *job, uint32_t c)
{
    const struct chunk *chunk = &core->chunks[c];
    if (is_protected(job, chunk) || in_use(chunk) || !core_at_rest(chunk) ||
        chunk->host_state != HOST_VALID)
        return false;
    core_forget_host(core, c, EVICT_NOT);
    STAT(core, REMOVED_HOST_CHUNKS)++;
    return true;
}

void core_job_moved(struct kvt_core *core, uint32_t c, enum kvt_job_type type,
                    enum kvt_status status)
{
    struct chunk *chunk = &core->chunks[c];
    if (chunk->job == 0 || job_of(core, chunk)->info.type != type)
        return;
    struct job *job = job_of(core, chunk);
    chunk->job = 0;
    job->n_moving--;
    if (reads(job)) {
        core->jobs.n_reads--;
        core->jobs.read_bytes -= chunk_ns(core, c)->slot_bytes;
    }
    core_jobs_wake(core);
    if (job->phase == JOB_ENDED)
        return;
    bool bad = status != KVT_OK;
    bool skipped = (chunk->flags & CHUNK_UNHASHED) != 0 ||
                   (type == KVT_JOB_DEMOTE && (bad || !drop_host(core, job, c)));
    if (skipped) {
        job->info.n_skipped++;
        return;
    }
    job->info.n_bad += bad;
    if (!bad || type == KVT_JOB_VERIFY) /* a bad one was verified all the same */
        changed(core, job, c);
}

static bool may_read(const struct kvt_core *core, uint64_t slot_bytes)
{
    const struct jobs *jobs = &core->jobs;
    if (core->loads.n > 0 || !core_can_read(core))
        return false;
    return jobs->n_reads == 0 ||
           (jobs->n_reads < core->config.n_ios_max / IO_SHARE &&
            jobs->read_bytes + slot_bytes <= core->config.read_bytes_max / IO_SHARE);
}

/* --- what is done to a chunk -------------------------------------------------------------------
 */

static enum verdict skip(struct job *job)
{
    job->info.n_skipped++;
    return NEXT;
}

static enum verdict act_delete(struct kvt_core *core, struct job *job, uint32_t c)
{
    struct chunk *chunk = &core->chunks[c];
    if (is_protected(job, chunk))
        return skip(job);
    if ((chunk_where(chunk) & ~job->tiers) == 0) {
        /* The host copy alone goes: what is being written would be a second one. */
        if (!(job->tiers & KVT_WHERE_NVME) && chunk->nvme_state != NVME_NONE)
            return LATER;
        changed(core, job, c);
        core_delete(core, c);
        return NEXT;
    }
    if ((chunk_where(chunk) & job->tiers) == 0) /* nothing there; the filter names another tier */
        return NEXT;
    if (job->tiers == KVT_WHERE_HOST && !drop_host(core, job, c))
        return skip(job);
    if (job->tiers == KVT_WHERE_NVME) {
        if (chunk->flags & CHUNK_VERIFY)
            return LATER;
        core_forget_nvme(core, c, EVICT_NOT);
        STAT(core, REMOVED_NVME_CHUNKS)++;
    }
    changed(core, job, c);
    return NEXT;
}

static enum verdict act_demote(struct kvt_core *core, struct job *job, uint32_t c)
{
    struct chunk *chunk = &core->chunks[c];
    if (is_protected(job, chunk) || in_use(chunk))
        return skip(job);
    if (chunk->nvme_state == NVME_VALID) {
        if (!drop_host(core, job, c))
            return skip(job);
        changed(core, job, c);
        return NEXT;
    }
    if (chunk->job != 0)
        return LATER;
    if (job->n_moving >= MOVING_MAX)
        return WAIT;
    core_want_write(core, c);
    if (!(chunk->flags & CHUNK_WANT_WRITE))
        return skip(job);
    moving_add(core, job, c);
    return NEXT;
}

static enum verdict act_prefetch(struct kvt_core *core, struct job *job, uint32_t c)
{
    struct chunk *chunk = &core->chunks[c];
    uint64_t bytes = chunk_ns(core, c)->slot_bytes;
    uint64_t room = core->pool[HOST].n_present * core->pool[HOST].slab_bytes;
    if (chunk->host_state != HOST_NONE) /* there, or coming */
        return NEXT;
    if (job->info.bytes + (job->n_moving + 1) * bytes > room)
        return skip(job); /* it would push out what it has brought in */
    if (chunk->job != 0)
        return LATER;
    if (!may_read(core, bytes))
        return job->n_moving > 0 ? WAIT : LATER;
    core_pin(core, c); /* making room must not choose the chunk itself */
    uint32_t slot = core_room(core, HOST, c);
    core_unpin(core, c);
    if (slot == KVT_SLOT_NONE)
        return core_room_may_come(core, 0) ? LATER : skip(job);
    chunk->host_slot = slot;
    moving_add(core, job, c);
    core_start_read(core, c);
    return NEXT;
}

static enum verdict act_verify(struct kvt_core *core, struct job *job, uint32_t c)
{
    const struct chunk *chunk = &core->chunks[c];
    if (chunk->job != 0 || (chunk->flags & CHUNK_VERIFY))
        return LATER;
    if (!may_read(core, chunk_ns(core, c)->slot_bytes))
        return job->n_moving > 0 ? WAIT : LATER;
    if (!core_start_verify(core, c))
        return core_room_may_come(core, 0) ? LATER : skip(job);
    moving_add(core, job, c);
    return NEXT;
}

/* The tier where a chunk must be for the job to be about it. */
static uint8_t tiers_of(const struct job *job)
{
    static const uint8_t tiers[] = {
        [KVT_JOB_DELETE] = KVT_WHERE_HOST | KVT_WHERE_NVME,
        [KVT_JOB_DEMOTE] = KVT_WHERE_HOST,
        [KVT_JOB_PREFETCH] = KVT_WHERE_NVME,
        [KVT_JOB_VERIFY] = KVT_WHERE_NVME,
    };
    uint8_t own = tiers[job->info.type];
    return job->info.type == KVT_JOB_DELETE ? (uint8_t)(own & job->tiers) : own;
}

static enum verdict act(struct kvt_core *core, struct job *job, uint32_t c, struct budget *budget)
{
    static enum verdict (*const acts[])(struct kvt_core *, struct job *, uint32_t) = {
        [KVT_JOB_DELETE] = act_delete,
        [KVT_JOB_DEMOTE] = act_demote,
        [KVT_JOB_PREFETCH] = act_prefetch,
        [KVT_JOB_VERIFY] = act_verify,
    };
    if (!core_filter_takes(core, &job->filter, c) ||
        (chunk_where(&core->chunks[c]) & tiers_of(job)) == 0)
        return NEXT;
    enum verdict verdict = NEXT;
    if (job->info.flags & KVT_JOB_DRY_RUN)
        job->info.bytes += chunk_ns(core, c)->desc.chunk_bytes;
    else
        verdict = acts[job->info.type](core, job, c);
    if (verdict == LATER && ++job->n_later > LATER_MAX)
        verdict = skip(job);
    else if (verdict == NEXT)
        job->n_later = 0;
    job->info.n_matched += verdict == NEXT;
    budget->n_acts -= budget->n_acts > 0;
    return verdict;
}

/* --- the walk ----------------------------------------------------------------------------------
 */

static void at_set(struct kvt_core *core, struct job *job, uint32_t at, bool up)
{
    if (at != NONE)
        core_pin(core, at);
    if (job->at != NONE)
        core_unpin(core, job->at);
    job->at = at;
    job->up = up;
    job->epoch = core->tree_epoch;
}

/* One move in the tree below root: a job that deletes looks at a chunk after all behind it, others
 * before. */
static enum verdict tree_move(struct kvt_core *core, struct job *job, struct budget *budget)
{
    const struct chunk *chunk = &core->chunks[job->at];
    bool deletes = job->info.type == KVT_JOB_DELETE;
    uint32_t at = job->at;
    enum verdict verdict = NEXT;
    if (!job->up) {
        core_unpin(core, at); /* what is done to it minds the pins of others alone */
        if (!deletes)
            verdict = act(core, job, at, budget);
        core_pin(core, at);
        if (verdict != NEXT)
            return verdict;
        if (chunk->first_child != NONE)
            at_set(core, job, chunk->first_child, false);
        else
            job->up = true;
        return NEXT;
    }
    uint32_t next = at == job->root               ? NONE
                    : chunk->next_sibling != NONE ? chunk->next_sibling
                                                  : chunk->parent;
    bool up = at != job->root && chunk->next_sibling == NONE;
    core_unpin(core, at);
    if (deletes)
        verdict = act(core, job, at, budget);
    if (verdict != NEXT) {
        core_pin(core, at);
        return verdict;
    }
    job->at = NONE;
    if (next == NONE) {
        job->root = NONE;
        job->key_at++;
        return NEXT;
    }
    at_set(core, job, next, up);
    return NEXT;
}

static uint32_t key_find(const struct kvt_core *core, const struct job *job)
{
    const struct kvt_key *key =
        &core->jobs.keys[(size_t)(job - core->jobs.jobs) * KVT_BATCH_MAX + job->key_at];
    return core_find_hashed(core, key, job->filter.ns, core_hash(core, key, job->filter.ns));
}

static enum verdict subtree_step(struct kvt_core *core, struct job *job, struct budget *budget)
{
    if (job->at == NONE) {
        uint32_t c = key_find(core, job);
        if (c == NONE) {
            job->key_at++;
            return NEXT;
        }
        job->root = c;
        at_set(core, job, c, false);
    } else if (job->epoch != core->tree_epoch ||
               (core->chunks[job->at].flags & CHUNK_UNHASHED) != 0) {
        /* The way from here to the root may be another one: from the root again. */
        at_set(core, job, NONE, false);
        job->root = NONE;
        if (++job->n_restarts <= RESTARTS_MAX)
            return NEXT;
        core_job_end(core, job, KVT_JOB_FAILED, KVT_ERR_AGAIN);
        return WAIT;
    }
    return tree_move(core, job, budget);
}

static enum verdict walk_step(struct kvt_core *core, struct job *job, struct budget *budget)
{
    uint32_t c = NONE;
    if (job->n_keys > 0 && (job->info.flags & KVT_JOB_SUBTREE))
        return subtree_step(core, job, budget);
    c = job->n_keys > 0 ? key_find(core, job) : job->scan_at;
    enum verdict verdict = c == NONE ? NEXT : act(core, job, c, budget);
    if (verdict != NEXT)
        return verdict;
    if (job->n_keys > 0)
        job->key_at++;
    else
        job->scan_at++;
    return NEXT;
}

static bool walk_over(const struct job *job)
{
    return job->n_keys > 0 ? job->key_at == job->n_keys : job->scan_at >= job->scan_end;
}

static enum verdict walk(struct kvt_core *core, struct job *job, struct budget *budget)
{
    enum verdict verdict = NEXT;
    while (verdict == NEXT && !walk_over(job) && budget->n_looks > 0 && budget->n_acts > 0) {
        verdict = walk_step(core, job, budget);
        budget->n_looks--;
    }
    job->info.n_looked = job->n_keys > 0 ? job->key_at : job->scan_at;
    return verdict;
}

void core_job_walk(struct kvt_core *core, struct job *job)
{
    struct budget budget = {.n_looks = KVT_BATCH_MAX, .n_acts = KVT_BATCH_MAX};
    job->info.state = KVT_JOB_RUNNING;
    (void)walk(core, job, &budget);
}

/* --- phases ------------------------------------------------------------------------------------
 */

static void purge_begin(struct kvt_core *core, struct job *job)
{
    job->phase = JOB_PURGE;
    job->purge_slab = job->purge_slot = 0;
    job->n_passes++;
    job->n_meta_failed = core->n_meta_failed;
}

static void phase_next(struct kvt_core *core, struct job *job)
{
    bool gone_for_good = job->info.type == KVT_JOB_DELETE && core->config.n_nvme_slabs > 0 &&
                         !(job->info.flags & KVT_JOB_DRY_RUN);
    switch ((enum job_phase)job->phase) {
    case JOB_WALK:
        job->phase = JOB_TRANSFERS;
        break;
    case JOB_TRANSFERS:
        if (gone_for_good)
            purge_begin(core, job);
        else
            core_job_end(core, job, KVT_JOB_DONE, KVT_OK);
        break;
    case JOB_PURGE:
        job->phase = JOB_META;
        break;
    case JOB_META:
        if (job->n_meta_failed == core->n_meta_failed)
            core_job_end(core, job, KVT_JOB_DONE, KVT_OK);
        else if (job->n_passes < PURGE_PASSES)
            purge_begin(core, job);
        else
            core_job_end(core, job, KVT_JOB_FAILED, KVT_ERR_IO);
        break;
    case JOB_ENDED:
        break;
    }
}

/* NEXT: the step's budget is used up, or the job has ended. */
static enum verdict job_step(struct kvt_core *core, struct job *job, struct budget *budget)
{
    job->info.state = KVT_JOB_RUNNING;
    while (job->phase != JOB_ENDED) {
        bool over = false;
        if (job->phase == JOB_WALK) {
            enum verdict verdict = walk(core, job, budget);
            if (verdict != NEXT)
                return verdict;
            over = walk_over(job);
        } else if (job->phase == JOB_TRANSFERS) {
            over = job->n_moving == 0;
            if (!over)
                return WAIT;
        } else if (job->phase == JOB_PURGE) {
            over = core_purge(core, job, &budget->n_looks);
            if (!over && budget->n_looks > 0)
                return WAIT; /* for deletions that were sent */
        } else {
            over = core->n_meta_answered >= job->meta_until;
            if (!over)
                return WAIT;
        }
        if (!over)
            return NEXT;
        phase_next(core, job);
    }
    return NEXT;
}

void core_jobs_step(struct kvt_core *core, uint64_t now_ns)
{
    struct jobs *jobs = &core->jobs;
    struct budget budget = {.n_looks = STEP_LOOKS, .n_acts = STEP_ACTS};
    if (now_ns < jobs->next_ns)
        return;
    jobs->next_ns = UINT64_MAX;
    jobs->step_ns = now_ns + STEP_NS;
    uint64_t next_ns = UINT64_MAX;
    core_orphans(core);
    if (core->orphans != NONE)
        next_ns = now_ns + STEP_NS;
    /* Each in its turn, and the first turn is another's next time. */
    unsigned n_before = jobs->n_open;
    for (unsigned n = 0; n < KVT_ADMIN_JOBS_MAX && n_before > 0; n++) {
        struct job *job = &jobs->jobs[(jobs->turn + n) % KVT_ADMIN_JOBS_MAX];
        if (job->info.id == 0 || job->phase == JOB_ENDED)
            continue;
        n_before--;
        enum verdict verdict = job_step(core, job, &budget);
        if (job->phase == JOB_ENDED)
            continue;
        if (verdict == NEXT)
            next_ns = KVT_MIN(next_ns, now_ns + STEP_NS);
        else if (verdict == LATER)
            next_ns = KVT_MIN(next_ns, now_ns + RETRY_NS);
    }
    jobs->turn = (jobs->turn + 1) % KVT_ADMIN_JOBS_MAX;
    core_jobs_tell(core, now_ns);
    jobs->next_ns = KVT_MIN(jobs->next_ns, next_ns);
}
