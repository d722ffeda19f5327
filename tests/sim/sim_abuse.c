/* SPDX-License-Identifier: Apache-2.0 */
/* Calls that break the contract: each must be refused, and change nothing. */
#include <string.h>

#include "sim.h"

struct books {
    uint64_t stats[KVT_STAT_N];
};

static void expect(struct sim *sim, const struct books *before, const char *what,
                   enum kvt_status expected, enum kvt_status status)
{
    static const enum kvt_stat same[] = {
        KVT_STAT_OPS,    KVT_STAT_LEASES,          KVT_STAT_RESERVED_BYTES, KVT_STAT_PINS,
        KVT_STAT_CHUNKS, KVT_STAT_HOST_USED_BYTES, KVT_STAT_SESSIONS};
    uint64_t stats[KVT_STAT_N];
    SIM_CHECK(sim, status == expected, "%s is answered with \"%s\"", what, kvt_status_str(status));
    kvt_core_stats(sim->core, stats);
    for (unsigned i = 0; i < KVT_ARRAY_LEN(same); i++)
        SIM_CHECK(sim, stats[same[i]] == before->stats[same[i]], "%s was refused and changed %u",
                  what, same[i]);
}

static void bad_request(struct sim *sim, struct sim_client *client, const struct books *before)
{
    static const struct kvt_key many[KVT_BATCH_MAX + 2];
    const struct sim_client *other = &sim->clients[sim_below(&sim->rng, sim->n_clients)];
    uint32_t ns = client->handles[0], session = client->session;
    uint64_t id = client->next_id, now_ns = sim->now_ns;
    unsigned n = 1;
    uint32_t flags = 0;
    const char *what = "";
    if (!client->has_ns[0])
        return;
    switch (sim_below(&sim->rng, 7)) {
    case 6:
        what = "an op in a namespace of another session";
        for (unsigned i = 1; i < sim->n_ns; i++)
            if (other->has_ns[i] && !client->has_ns[i])
                ns = other->handles[i];
        if (ns == client->handles[0])
            return;
        break;
    case 0:
        what = "an op in an unknown namespace";
        ns = sim_chance(&sim->rng, 500) ? (uint32_t)sim_range(&sim->rng, 70000, UINT32_MAX) : 999;
        break;
    case 1:
        what = "an op without keys";
        n = 0;
        break;
    case 2:
        what = "an op with a parent and no item";
        flags = KVT_STORE_PARENT;
        break;
    case 3:
        what = "an op of too many keys";
        n = KVT_BATCH_MAX + 1;
        break;
    case 4:
        what = "an op with unknown flags";
        flags = 0x100;
        break;
    default:
        what = "an op of number 0";
        id = 0;
        break;
    }
    if (sim_chance(&sim->rng, 500))
        expect(sim, before, what, KVT_ERR_INVAL,
               kvt_core_reserve(sim->core, session, id, ns, many, n, flags, now_ns, now_ns));
    else
        expect(sim, before, what, KVT_ERR_INVAL,
               kvt_core_load(sim->core, session, id, ns, many, n, flags, now_ns, now_ns));
}

static void bad_lookup(struct sim *sim, struct sim_client *client, const struct books *before)
{
    static const struct kvt_key many[KVT_BATCH_MAX + 1];
    uint8_t where[KVT_BATCH_MAX + 1];
    struct kvt_wire_lookup_r reply = {0};
    bool bad_ns = !client->has_ns[0] || sim_chance(&sim->rng, 500);
    kvt_core_lookup(sim->core, client->session, bad_ns ? 999 : client->handles[0], many,
                    bad_ns ? 1 : KVT_BATCH_MAX + 1, KVT_LOOKUP_LEASE, 0, sim->now_ns, &reply,
                    where);
    expect(sim, before, "a lookup with bad arguments", KVT_ERR_INVAL,
           (enum kvt_status)reply.status);
    SIM_CHECK(sim, reply.n_hit == 0 && reply.lease == 0, "a refused lookup found something");
}

static void bad_release(struct sim *sim, struct sim_client *client, const struct books *before)
{
    const struct sim_client *other = &sim->clients[sim_below(&sim->rng, sim->n_clients)];
    uint64_t id = sim_chance(&sim->rng, 300) ? 0
                  : sim_chance(&sim->rng, 500)
                      ? client->last_lease
                      : other->leases[sim_below(&sim->rng, SIM_LEASES_MAX)].id;
    if (other == client || id == 0)
        id = sim_chance(&sim->rng, 500) ? 0 : UINT64_MAX - sim_below(&sim->rng, 100);
    expect(sim, before, "release of somebody else's lease, or of none", KVT_ERR_EXPIRED,
           kvt_core_release(sim->core, client->session, id));
}

static void bad_commit(struct sim *sim, struct sim_client *client, const struct books *before)
{
    uint32_t indexes[2] = {0, 0};
    uint64_t sums[8] = {0};
    struct sim_op *op = &client->ops[sim_below(&sim->rng, SIM_OPS_MAX)];
    uint64_t id = op->kind != SIM_OP_NONE && !op->over ? op->id : client->next_id;
    unsigned n = 1;
    uint32_t flags = sim_chance(&sim->rng, 300) ? KVT_COMMIT_ABORT : 0;
    if (op->kind != SIM_OP_NONE && sim_chance(&sim->rng, 300))
        n = 0;
    else if (sim_chance(&sim->rng, 300))
        n = 2; /* twice the same */
    else if (sim_chance(&sim->rng, 300))
        indexes[0] = op->n + sim_below(&sim->rng, 3);
    else if (sim_chance(&sim->rng, 300))
        flags = 6;
    else if (op->kind == SIM_STORE && !op->over && op->items[0].state == SIM_ITEM_OPEN)
        id = client->next_id;
    expect(sim, before, "a commit with bad arguments", KVT_ERR_INVAL,
           kvt_core_commit(sim->core, client->session, id, indexes, n, flags, sums, sim->now_ns));
}

void sim_client_abuse(struct sim *sim, struct sim_client *client)
{
    struct books before;
    struct sim_op *op = &client->ops[sim_below(&sim->rng, SIM_OPS_MAX)];
    struct kvt_ns_desc desc = sim->ns[0].desc;
    uint32_t ns = 0;
    unsigned n_has = 0;
    uint64_t slot_bytes = 0;
    kvt_core_stats(sim->core, before.stats);
    switch (sim_below(&sim->rng, 8)) {
    case 0:
        bad_request(sim, client, &before);
        break;
    case 1:
        bad_lookup(sim, client, &before);
        break;
    case 2:
        bad_release(sim, client, &before);
        break;
    case 3:
        bad_commit(sim, client, &before);
        break;
    case 4:
        expect(sim, &before, "cancel of an unknown op", KVT_ERR_INVAL,
               kvt_core_cancel(sim->core, client->session, client->next_id, sim->now_ns));
        break;
    case 5:
        kvt_core_load_done(sim->core, client->session, client->next_id, sim->now_ns);
        if (op->kind == SIM_STORE && !op->over)
            kvt_core_load_done(sim->core, client->session, op->id, sim->now_ns);
        expect(sim, &before, "load_done of an unknown op, or of a store", KVT_OK, KVT_OK);
        break;
    case 6:
        desc.chunk_bytes = sim_chance(&sim->rng, 500) ? 0 : KVT_CHUNK_BYTES_MAX;
        desc.n_segments = 1;
        for (unsigned i = 0; i < sim->n_ns; i++)
            n_has += client->has_ns[i];
        bool full = n_has >= sim->config.n_ns_session_max && desc.chunk_bytes > 0;
        expect(sim, &before, "a namespace that fits no slab",
               full ? KVT_ERR_NOSPACE : KVT_ERR_INVAL,
               kvt_core_ns_open(sim->core, client->session, &desc, &ns, &slot_bytes, NULL));
        break;
    default:
        if (op->kind == SIM_OP_NONE || op->over || !client->has_ns[0])
            break;
        expect(sim, &before, "an op whose number is in use", KVT_ERR_INVAL,
               kvt_core_load(sim->core, client->session, op->id, client->handles[0],
                             &sim->keys[0].key, 1, 0, sim->now_ns, sim->now_ns));
        break;
    }
    sim_log(sim, "client %u tried something that is not allowed",
            (unsigned)(client - sim->clients));
}
