/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What operators do: pins, jobs, lists. The model knows what a job may touch, so that nothing else
 * may be missing, and what it must have removed, so that none of it may come back.
 */
#include <string.h>

#include "sim.h"

static const char *const owners[] = {"a", "b", "", "somebody with a longer name"};

/* --- what a job may do, and has to -------------------------------------------------------------
 */

static bool names_key(const struct sim *sim, const struct sim_job *job, int key)
{
    for (; key >= 0; key = sim->keys[key].parent) {
        for (unsigned i = 0; i < job->request.n_keys; i++)
            if (job->keys[i] == key)
                return true;
        if ((job->request.flags & KVT_JOB_SUBTREE) == 0)
            return false;
    }
    return false;
}

static bool changes(const struct sim_job *job, enum kvt_job_type type)
{
    return job->id != 0 && job->request.type == type && (job->request.flags & KVT_JOB_DRY_RUN) == 0;
}

static bool may_delete(const struct sim *sim, const struct sim_job *job, unsigned ns, int key)
{
    return changes(job, KVT_JOB_DELETE) && (job->ns < 0 || job->ns == (int)ns) &&
           (job->request.n_keys == 0 || names_key(sim, job, key));
}

/* Nothing but a later commit excuses a chunk that is still there after such a job. */
static bool must_delete(const struct sim *sim, const struct sim_job *job, unsigned ns, int key)
{
    const struct kvt_job_request *request = &job->request;
    if (!may_delete(sim, job, ns, key) || request->tiers != 0 || request->filter.flags != 0 ||
        request->filter.tiers != 0 || (request->flags & KVT_JOB_FORCE) == 0 ||
        sim->entries[ns][key].commit_seq > job->seq)
        return false;
    if ((request->flags & KVT_JOB_SUBTREE) == 0)
        return true;
    for (unsigned i = 0; i < request->n_keys; i++)
        if (job->keys[i] == key)
            return true; /* what is behind it may not be linked to it */
    return false;
}

static void forget_lease_of(struct sim *sim, unsigned ns, int key)
{
    for (unsigned c = 0; c < sim->n_clients; c++) {
        struct sim_client *client = &sim->clients[c];
        for (unsigned l = 0; l < SIM_LEASES_MAX; l++)
            for (unsigned i = 0; client->leases[l].ns == ns && i < client->leases[l].n; i++)
                if (client->leases[l].keys[i] == key)
                    client->leases[l].n = 0; /* its pin was on the last: all before it may go */
        for (unsigned o = 0; o < SIM_OPS_MAX; o++)
            if (client->ops[o].ns == ns)
                client->ops[o].leased = false;
    }
}

static void forget_pinned(struct sim *sim, unsigned ns, int key)
{
    for (unsigned p = 0; p < SIM_PINS_MAX; p++)
        for (unsigned i = 0; sim->pins[p].ns == ns && i < sim->pins[p].n; i++)
            if (sim->pins[p].keys[i] == key)
                sim->pins[p].keys[i] = -1;
}

/* From here on nobody may count on what an open job may take away. */
static void apply_job(struct sim *sim, const struct sim_job *job)
{
    uint64_t seq = ++sim->seq;
    bool forced = (job->request.flags & KVT_JOB_FORCE) != 0;
    for (unsigned ns = 0; ns < sim->n_ns; ns++)
        for (int key = 0; key < (int)sim->n_keys; key++) {
            int parent = sim->keys[key].parent;
            if (parent >= 0 && may_delete(sim, job, ns, parent))
                sim->entries[ns][key].linked = false;
            if (!may_delete(sim, job, ns, key))
                continue;
            struct sim_entry *entry = &sim->entries[ns][key];
            entry->must = entry->durable = entry->linked = false;
            entry->delete_seq = seq;
            forget_lease_of(sim, ns, key);
            if (forced)
                forget_pinned(sim, ns, key);
        }
    /* A pinned chunk may lose one of two copies. */
    for (unsigned p = 0; p < SIM_PINS_MAX && forced && changes(job, KVT_JOB_DEMOTE); p++)
        memset(sim->pins[p].where, 0, sizeof(sim->pins[p].where));
}

bool sim_admin_deletes(const struct sim *sim)
{
    for (unsigned j = 0; j < SIM_JOBS_MAX; j++)
        if (changes(&sim->jobs[j], KVT_JOB_DELETE))
            return true;
    return false;
}

/* --- jobs --------------------------------------------------------------------------------------
 */

static void check_deleted(struct sim *sim, const struct sim_job *job, bool for_good)
{
    for (unsigned ns = 0; ns < sim->n_ns; ns++)
        for (int key = 0; key < (int)sim->n_keys; key++) {
            struct sim_entry *entry = &sim->entries[ns][key];
            if (!must_delete(sim, job, ns, key))
                continue;
            entry->gone = true;
            (void)sim_model_held(sim, ns, key, NULL); /* checks that it is not */
            SIM_CHECK(sim, !for_good || sim->meta_damaged || !sim_meta_promises(sim, ns, key),
                      "ns %u key %d was deleted by job %llu, and the metadata still name it", ns,
                      key, (unsigned long long)job->id);
        }
}

static void check_ended(struct sim *sim, struct sim_job *job)
{
    struct kvt_job_info info;
    SIM_CHECK(sim, kvt_core_job(sim->core, job->id, &info) == KVT_OK,
              "job %llu has ended and is not known", (unsigned long long)job->id);
    bool dry = (job->request.flags & KVT_JOB_DRY_RUN) != 0;
    bool faults = (sim->faults & (SIM_DISK_FAULTS | SIM_META_FAULTS)) != 0;
    bool subtree = (job->request.flags & KVT_JOB_SUBTREE) != 0;
    SIM_CHECK(sim, info.type == job->request.type && info.ended_ns == sim->now_ns,
              "job %llu ended at %llu", (unsigned long long)job->id,
              (unsigned long long)info.ended_ns);
    SIM_CHECK(sim,
              info.state == KVT_JOB_DONE || info.state == KVT_JOB_CANCELED ||
                  (info.state == KVT_JOB_FAILED && ((faults && info.status == KVT_ERR_IO) ||
                                                    (subtree && info.status == KVT_ERR_AGAIN))),
              "job %llu ended in state %d: %s", (unsigned long long)job->id, info.state,
              kvt_status_str(info.status));
    SIM_CHECK(sim, info.state != KVT_JOB_DONE || info.n_looked == info.n_total,
              "job %llu looked at %llu of %llu", (unsigned long long)job->id,
              (unsigned long long)info.n_looked, (unsigned long long)info.n_total);
    SIM_CHECK(sim,
              info.n_changed + info.n_skipped <= info.n_matched && (!dry || info.n_changed == 0),
              "job %llu: %llu matched, %llu changed, %llu skipped", (unsigned long long)job->id,
              (unsigned long long)info.n_matched, (unsigned long long)info.n_changed,
              (unsigned long long)info.n_skipped);
    SIM_CHECK(sim, info.n_bad == 0 || faults || sim->n_lives > 1, "job %llu found %llu bad chunks",
              (unsigned long long)job->id, (unsigned long long)info.n_bad);
    sim_log(sim, "job %llu ended in state %d: %llu matched, %llu changed, %llu skipped",
            (unsigned long long)job->id, info.state, (unsigned long long)info.n_matched,
            (unsigned long long)info.n_changed, (unsigned long long)info.n_skipped);
    sim_trace(sim, job->id << 32 ^ info.n_changed << 8 ^ info.state);
    if (info.state == KVT_JOB_DONE && info.n_skipped == 0)
        check_deleted(sim, job, true);
    job->id = 0;
}

void sim_admin_job_done(void *arg, uint64_t job)
{
    struct sim *sim = arg;
    SIM_CHECK(sim, sim->in_flush && sim->n_ended < KVT_ARRAY_LEN(sim->ended),
              "job %llu ends outside of a flush, or more than there are", (unsigned long long)job);
    sim->ended[sim->n_ended++] = job;
}

void sim_admin_flushed(struct sim *sim)
{
    for (unsigned j = 0; j < SIM_JOBS_MAX; j++)
        if (sim->jobs[j].id != 0)
            apply_job(sim, &sim->jobs[j]);
    for (unsigned i = 0; i < sim->n_ended; i++) {
        struct sim_job *job = NULL;
        for (unsigned j = 0; j < SIM_JOBS_MAX; j++)
            if (sim->jobs[j].id == sim->ended[i])
                job = &sim->jobs[j];
        SIM_CHECK(sim, job != NULL, "job %llu has ended, and nobody has it or it had ended before",
                  (unsigned long long)sim->ended[i]);
        check_ended(sim, job);
    }
    sim->n_ended = 0;
    for (unsigned p = 0; p < SIM_PINS_MAX; p++)
        if (sim->pins[p].deadline_ns <= sim->now_ns)
            sim->pins[p].id = 0;
}

static unsigned draw_keys(struct sim *sim, int *keys)
{
    unsigned n = 1 + sim_below(&sim->rng, sim_chance(&sim->rng, 700) ? 3 : SIM_ITEMS_MAX);
    for (unsigned i = 0; i < n; i++)
        keys[i] = (int)sim_below(&sim->rng, sim->n_keys);
    return n;
}

static void draw_request(struct sim *sim, struct sim_job *job, struct kvt_key *keys)
{
    struct kvt_job_request *request = &job->request;
    struct sim_rng *rng = &sim->rng;
    request->type = (enum kvt_job_type)(KVT_JOB_DELETE + sim_below(rng, 4));
    request->flags =
        (sim_chance(rng, 150) ? KVT_JOB_DRY_RUN : 0) | (sim_chance(rng, 600) ? KVT_JOB_FORCE : 0);
    if (request->type == KVT_JOB_DELETE && sim_chance(rng, 300))
        request->tiers = 1 + sim_below(rng, 3);
    if (sim_chance(rng, 200))
        request->filter.flags = 1u << sim_below(rng, 3);
    if (sim_chance(rng, 100))
        request->filter.tiers = 1 + sim_below(rng, 2);
    /* Seldom everything: else there is never much to lose. */
    job->ns = (int)sim_below(rng, sim->n_ns);
    bool makes_way = sim->config.n_ns_max < sim->n_ns;
    bool all = sim_chance(rng, request->type == KVT_JOB_DELETE && !makes_way ? 150 : 500);
    if (!all) {
        request->n_keys = draw_keys(sim, job->keys);
        for (unsigned i = 0; i < request->n_keys; i++)
            keys[i] = sim->keys[job->keys[i]].key;
        request->keys = keys;
        request->flags |= sim_chance(rng, 400) ? KVT_JOB_SUBTREE : 0;
    } else if (sim_chance(rng, 300)) {
        job->ns = -1;
    }
    request->filter.ns = job->ns < 0 ? KVT_ADMIN_NS_ANY : sim_model_handle(sim, (unsigned)job->ns);
}

static void start_job(struct sim *sim)
{
    struct sim_job *place = NULL, job = {0};
    struct kvt_key keys[SIM_ITEMS_MAX] = {0};
    struct kvt_error err = {.msg = ""};
    for (unsigned j = 0; j < SIM_JOBS_MAX && place == NULL; j++)
        if (sim->jobs[j].id == 0)
            place = &sim->jobs[j];
    draw_request(sim, &job, keys);
    if (place == NULL || (job.ns >= 0 && job.request.filter.ns == KVT_ADMIN_NS_ANY))
        return;
    enum kvt_status status =
        kvt_core_job_start(sim->core, &job.request, sim->now_ns, &job.id, &err);
    enum kvt_status expected = job.request.type != KVT_JOB_DELETE && sim->config.n_nvme_slabs == 0
                                   ? KVT_ERR_NOTSUP
                               : sim->drained ? KVT_ERR_AGAIN
                                              : KVT_OK;
    SIM_CHECK(sim, status == expected, "a job is answered with \"%s\": %s", kvt_status_str(status),
              err.msg);
    if (status != KVT_OK)
        return;
    sim_log(sim, "job %llu of type %d flags %x tiers %u: ns %d, %u keys from %d",
            (unsigned long long)job.id, job.request.type, job.request.flags, job.request.tiers,
            job.ns, job.request.n_keys, job.keys[0]);
    job.request.keys = NULL; /* it has its own */
    job.seq = ++sim->seq;
    *place = job;
    if (changes(&job, KVT_JOB_DELETE))
        sim->n_deletes++;
    apply_job(sim, &job);
    if (job.request.n_keys > 0 && (job.request.flags & KVT_JOB_SUBTREE) == 0)
        check_deleted(sim, &job, false);
}

static void cancel_job(struct sim *sim)
{
    struct sim_job *job = &sim->jobs[sim_below(&sim->rng, SIM_JOBS_MAX)];
    if (job->id == 0) {
        SIM_CHECK(sim, kvt_core_job_cancel(sim->core, UINT64_MAX) == KVT_ERR_MISS,
                  "a job that never was is canceled");
        return;
    }
    struct kvt_job_info info;
    bool ended = kvt_core_job(sim->core, job->id, &info) == KVT_OK && info.state >= KVT_JOB_DONE;
    enum kvt_status status = kvt_core_job_cancel(sim->core, job->id);
    /* It may have ended and not told so: that comes with the next flush. */
    SIM_CHECK(sim, status == (ended ? KVT_ERR_INVAL : KVT_OK), "cancel of open job %llu: %s",
              (unsigned long long)job->id, kvt_status_str(status));
    SIM_CHECK(sim, kvt_core_job_cancel(sim->core, job->id) == KVT_ERR_INVAL,
              "job %llu is canceled twice", (unsigned long long)job->id);
    sim_log(sim, "job %llu is canceled", (unsigned long long)job->id);
}

/* --- pins --------------------------------------------------------------------------------------
 */

static void pin(struct sim *sim)
{
    struct sim_pin *pin = &sim->pins[sim_below(&sim->rng, SIM_PINS_MAX)], draft = {0};
    int keys[SIM_ITEMS_MAX];
    struct kvt_key wire[SIM_ITEMS_MAX] = {0};
    struct kvt_error err = {.msg = ""};
    unsigned n = draw_keys(sim, keys), n_found = 0, n_held = 0;
    uint64_t ttl_ns = sim_chance(&sim->rng, 300) ? 0 : sim_range(&sim->rng, 1, 200 * SIM_MS);
    draft.ns = sim_below(&sim->rng, sim->n_ns);
    draft.owner = sim_below(&sim->rng, (unsigned)KVT_ARRAY_LEN(owners));
    draft.deadline_ns = ttl_ns == 0 ? UINT64_MAX : sim->now_ns + ttl_ns;
    uint32_t handle = sim_model_handle(sim, draft.ns);
    if (pin->id != 0 || handle == KVT_ADMIN_NS_ANY)
        return;
    for (unsigned i = 0; i < n; i++) {
        uint8_t where = 0;
        wire[i] = sim->keys[keys[i]].key;
        if (!sim_model_held(sim, draft.ns, keys[i], &where))
            continue;
        draft.keys[n_held] = keys[i];
        draft.where[n_held++] = where;
    }
    draft.n = n_held;
    enum kvt_status status = kvt_core_pin(sim->core, handle, wire, n, owners[draft.owner], ttl_ns,
                                          sim->now_ns, &draft.id, &n_found, &err);
    /* Half of the host tier: so much only ancestors bring together. */
    SIM_CHECK(sim,
              n_held == 0 ? status == KVT_ERR_MISS
                          : status == KVT_ERR_NOSPACE || (status == KVT_OK && n_found == n_held),
              "pin of %u chunks, %u held: %s (%u found)", n, n_held, kvt_status_str(status),
              n_found);
    sim_log(sim, "pin %llu of ns %u key %d (%u of %u): %s", (unsigned long long)draft.id, draft.ns,
            keys[0], n_found, n, kvt_status_str(status));
    if (status != KVT_OK)
        return;
    *pin = draft;
    for (unsigned j = 0; j < SIM_JOBS_MAX; j++) /* these may already be on their way to it */
        if (sim->jobs[j].id != 0)
            apply_job(sim, &sim->jobs[j]);
}

static void unpin(struct sim *sim, struct sim_pin *pin)
{
    if (pin->id == 0) {
        SIM_CHECK(sim, kvt_core_unpin(sim->core, UINT64_MAX) == KVT_ERR_MISS,
                  "a pin that never was is ended");
        return;
    }
    if (sim_chance(&sim->rng, 700)) {
        enum kvt_status status = kvt_core_unpin(sim->core, pin->id);
        SIM_CHECK(sim,
                  status == KVT_OK || (status == KVT_ERR_MISS && pin->deadline_ns <= sim->now_ns),
                  "unpin: %s", kvt_status_str(status));
        pin->id = 0;
        return;
    }
    unsigned n = 0, owner = pin->owner;
    for (unsigned p = 0; p < SIM_PINS_MAX; p++)
        if (sim->pins[p].id != 0 && sim->pins[p].owner == owner) {
            n++;
            sim->pins[p].id = 0;
        }
    unsigned n_ended = kvt_core_unpin_owner(sim->core, owners[owner]);
    SIM_CHECK(sim, n_ended == n, "unpin of an owner ended %u of %u", n_ended, n);
}

/* What is pinned is held, where it was. */
static void check_pins(struct sim *sim)
{
    struct kvt_admin_pin list[SIM_PINS_MAX];
    uint64_t cursor = 0;
    unsigned n = 0, n_pins = 0;
    do
        n += kvt_core_pins(sim->core, &cursor, list + n, SIM_PINS_MAX - n);
    while (cursor != 0 && n < SIM_PINS_MAX);
    bool sound = (sim->faults & (SIM_DISK_FAULTS | SIM_META_FAULTS)) == 0 && !sim->unsound;
    for (unsigned p = 0; p < SIM_PINS_MAX; p++) {
        const struct sim_pin *pin = &sim->pins[p];
        bool listed = false;
        if (pin->id == 0)
            continue;
        n_pins++;
        for (unsigned i = 0; i < n; i++)
            listed = listed || (list[i].id == pin->id && list[i].n_chunks > 0 &&
                                strcmp(list[i].owner, owners[pin->owner]) == 0);
        SIM_CHECK(sim, listed, "pin %llu is not listed as it is", (unsigned long long)pin->id);
        for (unsigned i = 0; i < pin->n && sound; i++) {
            uint8_t where = 0;
            if (pin->keys[i] < 0)
                continue;
            SIM_CHECK(sim, sim_model_held(sim, pin->ns, pin->keys[i], &where),
                      "pin %llu: ns %u key %d is not held", (unsigned long long)pin->id, pin->ns,
                      pin->keys[i]);
            SIM_CHECK(sim, (where & pin->where[i]) == pin->where[i],
                      "pin %llu: ns %u key %d was in %u and is in %u", (unsigned long long)pin->id,
                      pin->ns, pin->keys[i], pin->where[i], where);
        }
    }
    SIM_CHECK(sim, n == n_pins, "%u pins are listed, %u are open", n, n_pins);
}

/* --- lists -------------------------------------------------------------------------------------
 */

static void check_chunk_list(struct sim *sim)
{
    struct kvt_admin_chunk page[7];
    struct kvt_admin_filter filter = {.ns = KVT_ADMIN_NS_ANY};
    unsigned n_max = 1 + sim_below(&sim->rng, (unsigned)KVT_ARRAY_LEN(page)), n_listed = 0, n = 0;
    bool seen[SIM_NS_MAX][SIM_KEYS_MAX] = {{false}};
    uint64_t cursor = 0;
    do {
        n = kvt_core_chunks(sim->core, &filter, &cursor, page, n_max);
        SIM_CHECK(sim, n <= n_max, "a page of %u has %u chunks", n_max, n);
        for (unsigned i = 0; i < n; i++) {
            int key = sim_model_find_key(sim, &page[i].key);
            int ns = sim_model_find_ns_id(sim, kvt_core_ns_id(sim->core, page[i].ns));
            uint8_t where = 0;
            if (key < 0 || ns < 0)
                continue; /* of damaged metadata */
            SIM_CHECK(sim, !seen[ns][key], "ns %d key %d is listed twice", ns, key);
            seen[ns][key] = true;
            n_listed++;
            SIM_CHECK(sim,
                      sim_model_held(sim, (unsigned)ns, key, &where) && where == page[i].where &&
                          page[i].bytes == sim->ns[ns].desc.chunk_bytes,
                      "ns %d key %d is listed in %u and is in %u", ns, key, page[i].where, where);
        }
    } while (cursor != 0);
    for (unsigned ns = 0; ns < sim->n_ns; ns++)
        for (int key = 0; key < (int)sim->n_keys; key++) {
            struct kvt_admin_chunk chunk;
            uint32_t handle = sim_model_handle(sim, ns);
            bool held = sim_model_held(sim, ns, key, NULL);
            SIM_CHECK(sim, held == seen[ns][key], "ns %u key %d is held and not listed", ns, key);
            SIM_CHECK(sim,
                      handle == KVT_ADMIN_NS_ANY ||
                          kvt_core_chunk(sim->core, handle, &sim->keys[key].key, &chunk) ==
                              (held ? KVT_OK : KVT_ERR_MISS),
                      "ns %u key %d is not told of as it is", ns, key);
        }
    sim_log(sim, "%u chunks are listed", n_listed);
}

static void check_tiers(struct sim *sim, const uint64_t *stats)
{
    struct kvt_admin_tier tiers[2];
    unsigned n = kvt_core_tiers(sim->core, tiers);
    SIM_CHECK(sim,
              n == (sim->config.n_nvme_slabs > 0 ? 2 : 1) && !tiers[0].nvme &&
                  tiers[0].used_bytes == stats[KVT_STAT_HOST_USED_BYTES] &&
                  tiers[0].free_bytes + tiers[0].used_bytes == tiers[0].capacity_bytes,
              "the tiers are not told of as they are");
}

void sim_admin_lists(struct sim *sim)
{
    uint64_t stats[KVT_STAT_N], cursor = 0, n_leases = 0, n_sessions = 0;
    struct kvt_admin_lease leases[4];
    struct kvt_admin_session sessions[2];
    kvt_core_stats(sim->core, stats);
    check_chunk_list(sim);
    check_pins(sim);
    check_tiers(sim, stats);
    do
        n_leases += kvt_core_leases(sim->core, &cursor, leases, 4);
    while (cursor != 0);
    do
        n_sessions += kvt_core_sessions(sim->core, &cursor, sessions, 2);
    while (cursor != 0);
    SIM_CHECK(sim, n_leases == stats[KVT_STAT_LEASES] && n_sessions == stats[KVT_STAT_SESSIONS],
              "%llu leases and %llu sessions are listed", (unsigned long long)n_leases,
              (unsigned long long)n_sessions);
}

/* --- steps -------------------------------------------------------------------------------------
 */

void sim_admin_step(struct sim *sim)
{
    switch (sim_below(&sim->rng, 8)) {
    case 0:
    case 1:
        start_job(sim);
        break;
    case 2:
    case 3:
    case 4:
        pin(sim);
        break;
    case 5:
        unpin(sim, &sim->pins[sim_below(&sim->rng, SIM_PINS_MAX)]);
        break;
    case 6:
        if (sim_chance(&sim->rng, 300))
            cancel_job(sim);
        break;
    default:
        check_pins(sim);
        break;
    }
}

void sim_admin_finish(struct sim *sim)
{
    for (unsigned p = 0; p < SIM_PINS_MAX; p++)
        if (sim->pins[p].id != 0)
            unpin(sim, &sim->pins[p]);
}

void sim_admin_killed(struct sim *sim)
{
    memset(sim->jobs, 0, sizeof(sim->jobs));
    memset(sim->pins, 0, sizeof(sim->pins));
    sim->n_ended = 0;
    for (unsigned ns = 0; ns < sim->n_ns; ns++)
        for (unsigned key = 0; key < sim->n_keys; key++)
            sim->entries[ns][key].gone = false; /* what the metadata still name may come back */
}
