/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What clients do, one small step at a time: so that anything may happen between any two of them.
 * They keep to the protocol; sim_abuse.c does not.
 */
#include <string.h>

#include "sim.h"

/* --- who writes where --------------------------------------------------------------------------
 */

static uint32_t writer_id(const struct sim *sim, const struct sim_client *client,
                          const struct sim_op *op)
{
    return (uint32_t)(client - sim->clients + 1) << 16 | (uint32_t)(op - client->ops + 1);
}

void sim_writer_set(struct sim *sim, struct sim_client *client, struct sim_op *op,
                    struct sim_item *item)
{
    uint64_t first = (item->offset - sim->arena_base) / KVT_PAGE_BYTES;
    for (uint64_t p = first; p < first + sim->ns[op->ns].slot_bytes / KVT_PAGE_BYTES; p++) {
        SIM_CHECK(sim, sim->writers[p] == 0, "a slot is reserved for clients %u and %u",
                  (sim->writers[p] >> 16) - 1, (unsigned)(client - sim->clients));
        sim->writers[p] = writer_id(sim, client, op);
    }
}

void sim_writer_clear(struct sim *sim, struct sim_op *op, struct sim_item *item)
{
    uint64_t first = (item->offset - sim->arena_base) / KVT_PAGE_BYTES;
    for (uint64_t p = first; p < first + sim->ns[op->ns].slot_bytes / KVT_PAGE_BYTES; p++)
        sim->writers[p] = 0;
}

/* The client touches nothing of the op from here on. */
void sim_client_end_op(struct sim *sim, struct sim_client *client, struct sim_op *op)
{
    (void)client;
    if (op->kind == SIM_STORE)
        for (unsigned i = 0; i < op->n; i++)
            if (op->items[i].state == SIM_ITEM_OPEN)
                sim_writer_clear(sim, op, &op->items[i]);
    op->kind = SIM_OP_NONE;
}

/* --- sessions ----------------------------------------------------------------------------------
 */

void sim_client_open(struct sim *sim, struct sim_client *client)
{
    unsigned n_open = 0;
    uint64_t next_id = client->next_id;
    for (unsigned i = 0; i < sim->n_clients; i++)
        n_open += sim->clients[i].open;
    uint32_t session = UINT32_MAX;
    enum kvt_status status = kvt_core_session_open(sim->core, &session);
    SIM_CHECK(sim, status == (n_open >= sim->config.n_sessions_max ? KVT_ERR_AGAIN : KVT_OK),
              "session open with %u of %u open: %s", n_open, sim->config.n_sessions_max,
              kvt_status_str(status));
    if (status != KVT_OK)
        return;
    *client = (struct sim_client){.open = true, .session = session, .next_id = next_id + 1};
    sim_log(sim, "client %u opens session %u", (unsigned)(client - sim->clients), session);
}

void sim_client_lost(struct sim *sim, struct sim_client *client)
{
    for (unsigned i = 0; i < SIM_OPS_MAX; i++)
        if (client->ops[i].kind != SIM_OP_NONE)
            sim_client_end_op(sim, client, &client->ops[i]);
    memset(client->leases, 0, sizeof(client->leases));
    memset(client->has_ns, 0, sizeof(client->has_ns));
    client->open = false;
    client->stalled_until_ns = 0;
}

void sim_client_close(struct sim *sim, struct sim_client *client)
{
    sim_log(sim, "client %u is gone", (unsigned)(client - sim->clients));
    uint32_t session = client->session;
    sim_client_lost(sim, client);
    kvt_core_session_close(sim->core, session, sim->now_ns);
}

/* Whom a namespace took the place of had nothing, and nobody may want it. */
static void check_made_way(struct sim *sim, unsigned ns)
{
    sim_log(sim, "namespace %u made way", ns);
    for (unsigned c = 0; c < sim->n_clients; c++)
        SIM_CHECK(sim, !sim->clients[c].has_ns[ns], "namespace %u made way, client %u has it", ns,
                  c);
    for (unsigned p = 0; p < SIM_PINS_MAX; p++)
        SIM_CHECK(sim, sim->pins[p].id == 0 || sim->pins[p].ns != ns,
                  "namespace %u made way, a pin holds chunks of it", ns);
    for (unsigned j = 0; j < SIM_JOBS_MAX; j++) {
        struct kvt_job_info info;
        SIM_CHECK(sim,
                  sim->jobs[j].id == 0 || sim->jobs[j].ns != (int)ns ||
                      (kvt_core_job(sim->core, sim->jobs[j].id, &info) == KVT_OK &&
                       info.state >= KVT_JOB_DONE),
                  "namespace %u made way, a job works on it", ns);
    }
    for (unsigned key = 0; key < sim->n_keys; key++) {
        SIM_CHECK(sim, !sim->entries[ns][key].must, "namespace %u made way, and had key %u", ns,
                  key);
        sim->entries[ns][key].durable = sim->entries[ns][key].linked = false;
    }
}

static void negotiate(struct sim *sim, struct sim_client *client, unsigned ns)
{
    const struct sim_ns *n = &sim->ns[ns];
    struct kvt_error err = {.msg = ""};
    struct kvt_admin_ns listed[SIM_NS_MAX];
    bool was_known[SIM_NS_MAX] = {false};
    unsigned n_has = 0;
    uint64_t slot_bytes = 0, cursor = 0;
    for (unsigned i = 0; i < sim->n_ns; i++) {
        was_known[i] = sim_model_handle(sim, i) != KVT_ADMIN_NS_ANY;
        n_has += client->has_ns[i];
    }
    unsigned n_listed = kvt_core_namespaces(sim->core, &cursor, listed, SIM_NS_MAX);
    uint32_t handle = UINT32_MAX;
    enum kvt_status status =
        kvt_core_ns_open(sim->core, client->session, &n->desc, &handle, &slot_bytes, &err);
    sim_log(sim, "client %u namespace %u: %s, %u", (unsigned)(client - sim->clients), ns,
            kvt_status_str(status), handle);
    bool full = n_has >= sim->config.n_ns_session_max;
    bool room = was_known[ns] || n_listed < sim->config.n_ns_max;
    SIM_CHECK(sim,
              full   ? status == KVT_ERR_NOSPACE
              : room ? status == KVT_OK
                     : status == KVT_OK || status == KVT_ERR_NOSPACE,
              "namespace %u, %u of %u known, the session has %u: %s", ns, n_listed,
              sim->config.n_ns_max, n_has, err.msg);
    if (status != KVT_OK) {
        if (sim_chance(&sim->rng, 200))
            sim_client_close(sim, client);
        return;
    }
    SIM_CHECK(sim, slot_bytes == n->slot_bytes, "namespace %u: slots of %llu", ns,
              (unsigned long long)slot_bytes);
    client->has_ns[ns] = true;
    client->handles[ns] = handle;
    for (unsigned i = 0; i < sim->n_ns; i++) {
        bool is_known = sim_model_handle(sim, i) != KVT_ADMIN_NS_ANY;
        for (unsigned c = 0; c < sim->n_clients; c++)
            SIM_CHECK(sim,
                      !sim->clients[c].has_ns[i] ||
                          (sim->clients[c].handles[i] == handle) == (i == ns),
                      "namespaces %u and %u have one handle, or one has two", i, ns);
        if (was_known[i] && !is_known)
            check_made_way(sim, i);
        if (!was_known[i] && is_known && i == ns)
            for (int key = 0; key < (int)sim->n_keys; key++)
                SIM_CHECK(sim, !sim_model_held(sim, ns, key, NULL),
                          "namespace %u is new and has key %d", ns, key);
    }
}

/* --- new ops -----------------------------------------------------------------------------------
 */

static struct sim_op *op_free(struct sim_client *client)
{
    for (unsigned i = 0; i < SIM_OPS_MAX; i++)
        if (client->ops[i].kind == SIM_OP_NONE)
            return &client->ops[i];
    return NULL;
}

/* Keys of a prompt, or of a part of one, into path; returns how many. */
static unsigned draw_path(struct sim *sim, bool from_root, int *path)
{
    int reversed[SIM_KEYS_MAX];
    unsigned depth = 0, n = 0;
    unsigned most = sim->n_keys;
    if (sim_chance(&sim->rng, 500))
        most = sim_below(&sim->rng, most) + 1; /* some keys are wanted more often */
    for (int key = (int)sim_below(&sim->rng, most); key >= 0; key = sim->keys[key].parent)
        reversed[depth++] = key;
    unsigned skip = from_root ? 0 : sim_below(&sim->rng, depth);
    unsigned want = (unsigned)sim_range(&sim->rng, 1, SIM_ITEMS_MAX - 1);
    while (n < want && skip + n < depth) {
        path[n] = reversed[depth - 1 - skip - n];
        n++;
    }
    return n;
}

static unsigned open_ops(const struct sim *sim, const struct sim_client *only)
{
    unsigned n = 0;
    for (unsigned c = 0; c < sim->n_clients; c++)
        for (unsigned o = 0; o < SIM_OPS_MAX; o++) {
            const struct sim_client *client = &sim->clients[c];
            n += client->open && (only == NULL || only == client) &&
                 client->ops[o].kind != SIM_OP_NONE && !client->ops[o].over;
        }
    return n;
}

static void check_accepted(struct sim *sim, const struct sim_client *client, enum kvt_status status,
                           bool store)
{
    bool full = open_ops(sim, client) >= sim->config.n_ops_session_max ||
                open_ops(sim, NULL) >= sim->config.n_ops_max || (store && sim->drained);
    SIM_CHECK(sim, status == (full ? KVT_ERR_AGAIN : KVT_OK),
              "an op is answered with \"%s\" (%u of %u ops of the session, %u of %u in all)",
              kvt_status_str(status), open_ops(sim, client), sim->config.n_ops_session_max,
              open_ops(sim, NULL), sim->config.n_ops_max);
}

static uint64_t draw_deadline(struct sim *sim)
{
    switch (sim_below(&sim->rng, 8)) {
    case 0:
        return 0;
    case 1:
        return sim->now_ns - sim_below(&sim->rng, 2);
    case 2:
        return sim->now_ns + sim_range(&sim->rng, 1, 1000 * SIM_MS);
    default:
        return sim->now_ns + sim_range(&sim->rng, 1, 30 * SIM_MS);
    }
}

/* Whether one live lease of the client holds all these keys. */
static bool leased(const struct sim *sim, const struct sim_client *client, unsigned ns,
                   const int *path, unsigned n)
{
    for (unsigned l = 0; l < SIM_LEASES_MAX; l++) {
        const struct sim_lease *lease = &client->leases[l];
        unsigned found = 0;
        for (unsigned i = 0; i < n; i++)
            for (unsigned k = 0; k < lease->n; k++)
                found += lease->keys[k] == path[i];
        if (lease->id != 0 && lease->ns == ns && sim->now_ns < lease->deadline_ns && found >= n)
            return true;
    }
    return false;
}

static void start_store(struct sim *sim, struct sim_client *client, unsigned ns)
{
    int path[SIM_ITEMS_MAX];
    struct kvt_key keys[SIM_ITEMS_MAX];
    struct sim_op *op = op_free(client);
    unsigned n = draw_path(sim, sim_chance(&sim->rng, 600), path), first = 0;
    if (op == NULL)
        return;
    struct sim_op draft = {.kind = SIM_STORE,
                           .id = client->next_id++,
                           .ns = ns,
                           .began_ns = sim->now_ns,
                           .seq = sim->seq};
    if (n > 1 && sim_chance(&sim->rng, 400)) {
        draft.flags |= KVT_STORE_PARENT;
        first = 1;
    }
    if (sim_chance(&sim->rng, 300))
        draft.flags |= KVT_STORE_DURABLE;
    draft.deadline_ns = draw_deadline(sim);
    draft.n = n - first;
    for (unsigned i = 0; i < n; i++) {
        keys[i] = sim->keys[path[i]].key;
        if (i < first)
            continue;
        draft.items[i - first].key = path[i];
        draft.items[i - first].held_parent = i > 0 && sim_model_held(sim, ns, path[i - 1], NULL);
    }
    enum kvt_status status =
        kvt_core_reserve(sim->core, client->session, draft.id, client->handles[ns], keys, n,
                         draft.flags, draft.deadline_ns, sim->now_ns);
    sim_log(sim, "client %u op %llu store ns %u keys %d..%d (%u) flags %u: %s",
            (unsigned)(client - sim->clients), (unsigned long long)draft.id, ns, path[0],
            path[n - 1], n, draft.flags, kvt_status_str(status));
    check_accepted(sim, client, status, true);
    /* What made room for the first items may have been the parent of a later one. */
    for (unsigned i = 1; i < n; i++)
        if (i >= first && draft.items[i - first].held_parent)
            draft.items[i - first].held_parent = sim_model_held(sim, ns, path[i - 1], NULL);
    if (status == KVT_OK)
        *op = draft;
}

static void start_load(struct sim *sim, struct sim_client *client, unsigned ns)
{
    int path[SIM_ITEMS_MAX];
    struct kvt_key keys[SIM_ITEMS_MAX];
    struct sim_op *op = op_free(client);
    unsigned n = draw_path(sim, sim_chance(&sim->rng, 600), path), first = 0;
    if (op == NULL)
        return;
    struct sim_op draft = {.kind = SIM_LOAD, .id = client->next_id++, .ns = ns};
    for (unsigned l = 0; l < SIM_LEASES_MAX; l++) {
        const struct sim_lease *lease = &client->leases[l];
        if (lease->id == 0 || lease->n == 0 || !sim_chance(&sim->rng, 400))
            continue;
        draft.ns = ns = lease->ns; /* as engines do: load what was looked up */
        n = KVT_MIN(lease->n, SIM_ITEMS_MAX - 1u);
        memcpy(path, lease->keys, n * sizeof(*path));
    }
    if (n > 1 && sim_chance(&sim->rng, 300)) {
        draft.flags |= KVT_LOAD_PARENT;
        first = 1;
    }
    if (sim_chance(&sim->rng, 200)) {
        draft.kind = SIM_PREFETCH;
        draft.flags |= KVT_LOAD_PREFETCH;
    }
    draft.deadline_ns = draw_deadline(sim);
    draft.n = n - first;
    draft.leased = leased(sim, client, ns, path, n) && !sim_admin_deletes(sim);
    for (unsigned i = 0; i < n; i++) {
        keys[i] = sim->keys[path[i]].key;
        if (i >= first)
            draft.items[i - first].key = path[i];
    }
    enum kvt_status status =
        kvt_core_load(sim->core, client->session, draft.id, client->handles[ns], keys, n,
                      draft.flags, draft.deadline_ns, sim->now_ns);
    sim_log(sim, "client %u op %llu %s ns %u keys %d..%d (%u): %s",
            (unsigned)(client - sim->clients), (unsigned long long)draft.id,
            draft.kind == SIM_LOAD ? "load" : "prefetch", ns, path[0], path[n - 1], n,
            kvt_status_str(status));
    check_accepted(sim, client, status, false);
    if (status == KVT_OK)
        *op = draft;
}

static unsigned open_leases(const struct sim *sim)
{
    unsigned n = 0;
    for (unsigned c = 0; c < sim->n_clients; c++)
        for (unsigned l = 0; l < SIM_LEASES_MAX; l++)
            n += sim->clients[c].leases[l].id != 0;
    return n;
}

static void look_up(struct sim *sim, struct sim_client *client, unsigned ns)
{
    int path[SIM_ITEMS_MAX];
    struct kvt_key keys[SIM_ITEMS_MAX];
    uint8_t where[SIM_ITEMS_MAX] = {0};
    struct kvt_wire_lookup_r reply = {0};
    struct sim_lease *lease = NULL;
    unsigned n = draw_path(sim, sim_chance(&sim->rng, 800), path);
    uint32_t ttl_ms = sim_chance(&sim->rng, 500) ? 0 : sim_below(&sim->rng, 400);
    for (unsigned l = 0; l < SIM_LEASES_MAX && lease == NULL; l++)
        if (client->leases[l].id == 0 && sim_chance(&sim->rng, 700))
            lease = &client->leases[l];
    for (unsigned i = 0; i < n; i++)
        keys[i] = sim->keys[path[i]].key;
    kvt_core_lookup(sim->core, client->session, client->handles[ns], keys, n,
                    lease != NULL ? KVT_LOOKUP_LEASE : 0, ttl_ms, sim->now_ns, &reply, where);
    sim_log(sim, "client %u lookup ns %u keys %d..%d (%u): %u, lease %llx",
            (unsigned)(client - sim->clients), ns, path[0], path[n - 1], n, reply.n_hit,
            (unsigned long long)reply.lease);
    sim_trace(sim, reply.n_hit ^ reply.lease << 8);
    SIM_CHECK(sim, reply.status == KVT_OK && reply.n_hit <= n, "lookup of %u keys: status %d, %u",
              n, reply.status, reply.n_hit);
    for (unsigned i = 0; i < reply.n_hit; i++)
        SIM_CHECK(sim,
                  sim->entries[ns][path[i]].maybe && where[i] != 0 &&
                      (where[i] & ~(KVT_WHERE_HOST | KVT_WHERE_NVME)) == 0,
                  "lookup: ns %u key %d is held (where %u) and was never committed", ns, path[i],
                  where[i]);
    SIM_CHECK(sim, reply.lease == 0 || (lease != NULL && reply.n_hit > 0),
              "lookup: a lease of nothing, or that nobody asked for");
    if (lease == NULL || reply.n_hit == 0)
        return;
    SIM_CHECK(sim, reply.lease != 0 || open_leases(sim) > 0 || sim->config.n_leases_max < 2,
              "lookup: no lease given and none is open");
    if (reply.lease == 0)
        return;
    uint64_t ttl_ns = ttl_ms == 0 ? sim->config.lease_ttl_ns : ttl_ms * SIM_MS;
    SIM_CHECK(
        sim, reply.lease_deadline_ns == sim->now_ns + KVT_MIN(ttl_ns, sim->config.lease_ttl_max_ns),
        "lookup: a lease until %llu, asked for %u ms at %llu",
        (unsigned long long)reply.lease_deadline_ns, ttl_ms, (unsigned long long)sim->now_ns);
    *lease = (struct sim_lease){
        .id = reply.lease, .ns = ns, .n = reply.n_hit, .deadline_ns = reply.lease_deadline_ns};
    memcpy(lease->keys, path, sizeof(lease->keys));
}

static void release(struct sim *sim, struct sim_client *client)
{
    struct sim_lease *lease = &client->leases[sim_below(&sim->rng, SIM_LEASES_MAX)];
    if (lease->id == 0)
        return;
    enum kvt_status status = kvt_core_release(sim->core, client->session, lease->id);
    SIM_CHECK(sim,
              status == KVT_OK || (status == KVT_ERR_EXPIRED && sim->now_ns >= lease->deadline_ns),
              "release of a lease of this client: %s", kvt_status_str(status));
    sim_log(sim, "client %u releases %llx", (unsigned)(client - sim->clients),
            (unsigned long long)lease->id);
    client->last_lease = lease->id;
    lease->id = 0;
}

/* --- steps of ops ------------------------------------------------------------------------------
 */

static void cancel(struct sim *sim, struct sim_client *client, struct sim_op *op)
{
    enum kvt_status status = kvt_core_cancel(sim->core, client->session, op->id, sim->now_ns);
    SIM_CHECK(sim, status == (op->over ? KVT_ERR_INVAL : KVT_OK), "cancel of op %llu (%s): %s",
              (unsigned long long)op->id, op->over ? "over" : "open", kvt_status_str(status));
    sim_log(sim, "client %u op %llu canceled", (unsigned)(client - sim->clients),
            (unsigned long long)op->id);
    op->over = true;
    sim_client_end_op(sim, client, op);
}

static void write_some(struct sim *sim, struct sim_op *op, struct sim_item *item)
{
    uint8_t bytes[SIM_CHUNK_MAX];
    const struct sim_ns *ns = &sim->ns[op->ns];
    uint8_t *slot = sim_node_addr(sim, item->offset, ns->slot_bytes);
    uint32_t left = (uint32_t)ns->desc.chunk_bytes - item->progress;
    if (sim_chance(&sim->rng, 100)) /* what a slot holds before it is written is anybody's guess */
        memset(slot + item->progress, (int)sim_below(&sim->rng, 256), left);
    uint32_t n = sim_chance(&sim->rng, 500) ? left : 1 + sim_below(&sim->rng, left);
    sim_model_bytes(sim, op->ns, item->key, bytes);
    memcpy(slot + item->progress, bytes + item->progress, n);
    item->progress += n;
}

static void commit(struct sim *sim, struct sim_client *client, struct sim_op *op, bool abort)
{
    uint32_t indexes[SIM_ITEMS_MAX];
    uint64_t sums[SIM_ITEMS_MAX * 3];
    unsigned n = 0, skip = sim_chance(&sim->rng, 700) ? 0 : 400;
    const struct sim_ns *ns = &sim->ns[op->ns];
    for (unsigned i = 0; i < op->n; i++) {
        struct sim_item *item = &op->items[i];
        if (item->state != SIM_ITEM_OPEN || sim_chance(&sim->rng, skip) ||
            (!abort && item->progress < ns->desc.chunk_bytes))
            continue;
        sim_model_sums(sim, op->ns, item->key, sums + (size_t)n * ns->desc.n_segments);
        indexes[n++] = i;
    }
    if (n == 0)
        return;
    for (unsigned i = n; i > 1; i--) { /* any order will do; sums follow their index */
        unsigned j = sim_below(&sim->rng, i);
        uint32_t index = indexes[i - 1];
        indexes[i - 1] = indexes[j];
        indexes[j] = index;
    }
    for (unsigned i = 0; i < n; i++) {
        struct sim_item *item = &op->items[indexes[i]];
        sim_model_sums(sim, op->ns, item->key, sums + (size_t)i * ns->desc.n_segments);
        sim_writer_clear(sim, op, item);
        item->state = abort ? SIM_ITEM_DONE : SIM_ITEM_COMMITTING;
        if (abort)
            continue;
        struct sim_entry *entry = &sim->entries[op->ns][item->key];
        entry->maybe = true;
        entry->gone = false;
        entry->commit_seq = ++sim->seq;
    }
    for (unsigned i = 1; i < op->n && !abort; i++)
        if (op->items[i].state == SIM_ITEM_COMMITTING && op->items[i - 1].status == KVT_OK &&
            (op->items[i - 1].state == SIM_ITEM_COMMITTING ||
             op->items[i - 1].state == SIM_ITEM_DONE) &&
            !op->items[i - 1].aborted)
            op->items[i].held_parent = true;
    enum kvt_status status =
        kvt_core_commit(sim->core, client->session, op->id, indexes, n,
                        abort ? KVT_COMMIT_ABORT : 0, abort ? NULL : sums, sim->now_ns);
    sim_log(sim, "client %u op %llu %s %u items", (unsigned)(client - sim->clients),
            (unsigned long long)op->id, abort ? "aborts" : "commits", n);
    SIM_CHECK(sim, status == KVT_OK, "commit of %u items of op %llu: %s", n,
              (unsigned long long)op->id, kvt_status_str(status));
    bool any = false;
    for (unsigned i = 0; i < op->n; i++)
        any =
            any || op->items[i].state == SIM_ITEM_OPEN || op->items[i].state == SIM_ITEM_COMMITTING;
    for (unsigned i = 0; i < n && abort; i++)
        op->items[indexes[i]].aborted = true;
    if (!any)
        op->over = true; /* all that was left was aborted */
}

static void store_step(struct sim *sim, struct sim_client *client, struct sim_op *op)
{
    unsigned pick = sim_below(&sim->rng, op->n);
    if (sim_chance(&sim->rng, 15)) {
        cancel(sim, client, op);
        return;
    }
    if (!op->answered)
        return;
    if (op->over) {
        sim_client_end_op(sim, client, op);
        return;
    }
    for (unsigned i = 0; i < op->n; i++) {
        struct sim_item *item = &op->items[(pick + i) % op->n];
        if (item->state != SIM_ITEM_OPEN || item->progress == sim->ns[op->ns].desc.chunk_bytes)
            continue;
        if (sim_chance(&sim->rng, 100))
            break;
        write_some(sim, op, item);
        return;
    }
    commit(sim, client, op, sim_chance(&sim->rng, 60));
}

static void load_end(struct sim *sim, struct sim_client *client, struct sim_op *op)
{
    kvt_core_load_done(sim->core, client->session, op->id, sim->now_ns);
    sim_log(sim, "client %u op %llu load done", (unsigned)(client - sim->clients),
            (unsigned long long)op->id);
    op->over = true;
    sim_client_end_op(sim, client, op);
}

static void copy_some(struct sim *sim, struct sim_op *op, struct sim_item *item)
{
    uint8_t bytes[SIM_CHUNK_MAX];
    const struct sim_ns *ns = &sim->ns[op->ns];
    const uint8_t *slot = sim_node_addr(sim, item->offset, ns->slot_bytes);
    uint32_t left = (uint32_t)ns->desc.chunk_bytes - item->progress;
    uint32_t n = sim_chance(&sim->rng, 500) ? left : 1 + sim_below(&sim->rng, left);
    sim_model_bytes(sim, op->ns, item->key, bytes);
    item->wrong = item->wrong || memcmp(slot + item->progress, bytes + item->progress, n) != 0;
    item->progress += n;
    if (item->progress < ns->desc.chunk_bytes)
        return;
    /* What a client does: copy, then look at the clock, then believe. */
    SIM_CHECK(sim, !item->wrong || sim->now_ns >= item->deadline_ns,
              "op %llu ns %u key %d: wrong bytes were copied, in time", (unsigned long long)op->id,
              op->ns, item->key);
    item->state = SIM_ITEM_DONE;
}

static void load_step(struct sim *sim, struct sim_client *client, struct sim_op *op)
{
    unsigned pick = sim_below(&sim->rng, op->n);
    bool waiting = false;
    if (sim_chance(&sim->rng, 15)) {
        cancel(sim, client, op);
        return;
    }
    if (sim_chance(&sim->rng, 15)) {
        load_end(sim, client, op);
        return;
    }
    for (unsigned i = 0; i < op->n; i++) {
        struct sim_item *item = &op->items[(pick + i) % op->n];
        waiting = waiting || item->state == SIM_ITEM_WAIT;
        if (item->state != SIM_ITEM_OPEN)
            continue;
        copy_some(sim, op, item);
        return;
    }
    if (waiting)
        return;
    if (op->over)
        sim_client_end_op(sim, client, op);
    else
        load_end(sim, client, op);
}

void sim_client_step(struct sim *sim, struct sim_client *client)
{
    if (!client->open) {
        if (sim_chance(&sim->rng, 200))
            sim_client_open(sim, client);
        return;
    }
    if (sim->now_ns < client->stalled_until_ns)
        return;
    if (sim_fault(sim, SIM_VANISH) && sim_chance(&sim->rng, 200)) {
        sim_client_close(sim, client);
        return;
    }
    if (sim_fault(sim, SIM_STALL) && sim_chance(&sim->rng, 200)) {
        client->stalled_until_ns =
            sim->now_ns + sim_range(&sim->rng, 0, 4 * sim->config.lease_ttl_max_ns);
        sim_log(sim, "client %u stalls", (unsigned)(client - sim->clients));
        return;
    }
    if (sim_fault(sim, SIM_ABUSE))
        sim_client_abuse(sim, client);
    unsigned ns = sim_below(&sim->rng, sim->n_ns);
    struct sim_op *op = &client->ops[sim_below(&sim->rng, SIM_OPS_MAX)];
    if (op->kind == SIM_STORE)
        store_step(sim, client, op);
    else if (op->kind != SIM_OP_NONE)
        load_step(sim, client, op);
    else if (!client->has_ns[ns])
        negotiate(sim, client, ns);
    else if (sim_chance(&sim->rng, 250))
        look_up(sim, client, ns);
    else if (sim_chance(&sim->rng, 100))
        release(sim, client);
    else if (sim_chance(&sim->rng, 500))
        start_store(sim, client, ns);
    else
        start_load(sim, client, ns);
}

void sim_client_finish(struct sim *sim, struct sim_client *client)
{
    if (!client->open)
        return;
    if (sim_chance(&sim->rng, 300)) {
        sim_client_close(sim, client);
        return;
    }
    client->stalled_until_ns = 0;
    for (unsigned o = 0; o < SIM_OPS_MAX; o++) {
        struct sim_op *op = &client->ops[o];
        if (op->kind == SIM_OP_NONE)
            continue;
        if (op->kind != SIM_STORE && sim_chance(&sim->rng, 500))
            load_end(sim, client, op);
        else
            cancel(sim, client, op);
    }
    for (unsigned l = 0; l < SIM_LEASES_MAX; l++)
        if (client->leases[l].id != 0)
            SIM_CHECK(sim,
                      kvt_core_release(sim->core, client->session, client->leases[l].id) ==
                              KVT_OK ||
                          sim->now_ns >= client->leases[l].deadline_ns,
                      "release of an open lease is refused");
    memset(client->leases, 0, sizeof(client->leases));
    sim_client_close(sim, client);
}
