/* SPDX-License-Identifier: Apache-2.0 */
/* What the core tells the clients, checked as it comes: once per item, legal, and true. */
#include <string.h>

#include "sim.h"

static struct sim_op *answer_op(struct sim *sim, uint32_t session, uint64_t id, const char *what,
                                unsigned *client_p)
{
    SIM_CHECK(sim, sim->in_flush, "%s outside of a flush", what);
    for (unsigned c = 0; c < sim->n_clients; c++) {
        struct sim_client *client = &sim->clients[c];
        if (!client->open || client->session != session)
            continue;
        for (unsigned o = 0; o < SIM_OPS_MAX; o++) {
            struct sim_op *op = &client->ops[o];
            if (op->kind == SIM_OP_NONE || op->id != id)
                continue;
            SIM_CHECK(sim, !op->over, "%s for client %u op %llu, which is over", what, c,
                      (unsigned long long)id);
            *client_p = c;
            return op;
        }
    }
    sim_fail(sim, "%s for session %u op %llu, which nobody has", what, session,
             (unsigned long long)id);
}

/* Each status but OK that an item may be answered with. */
static bool legal(const struct sim *sim, const struct sim_op *op, bool commit,
                  enum kvt_status status)
{
    bool disk = (sim->faults & (SIM_DISK_FAULTS | SIM_META_FAULTS)) != 0;
    bool durable = op->kind == SIM_STORE && (op->flags & KVT_STORE_DURABLE) != 0;
    switch (status) {
    case KVT_ERR_EXISTS:
    case KVT_ERR_BUSY:
        return op->kind == SIM_STORE && !commit;
    case KVT_ERR_NOSPACE:
        return !commit || durable;
    case KVT_ERR_CANCELED: /* deleted, or found damaged, before it was durable */
        return durable && (sim->n_deletes > 0 || disk || sim->n_lives > 1);
    case KVT_ERR_MISS:
        return op->kind != SIM_STORE;
    case KVT_ERR_TIMEOUT: /* a store's: of what exists and is not durable yet */
        return op->kind != SIM_STORE ||
               (durable && !commit && sim->now_ns >= op->began_ns + 2000 * SIM_MS &&
                sim->now_ns >= op->deadline_ns);
    case KVT_ERR_CORRUPT:
        return op->kind != SIM_STORE && (disk || sim->n_lives > 1);
    case KVT_ERR_IO: /* a store's: also of what was durable until its copy was lost or removed */
        return (disk && (op->kind != SIM_STORE || durable)) ||
               (durable && !commit && (sim->n_deletes > 0 || sim->n_lives > 1));
    case KVT_ERR_NOTSUP:
        return sim->config.n_nvme_slabs == 0 && durable;
    default:
        return false;
    }
}

static unsigned count_open(const struct sim_op *op)
{
    unsigned n = 0;
    for (unsigned i = 0; i < op->n; i++)
        n += op->kind == SIM_STORE
                 ? op->items[i].state == SIM_ITEM_OPEN || op->items[i].state == SIM_ITEM_COMMITTING
                 : op->items[i].state == SIM_ITEM_WAIT;
    return n;
}

static struct sim_item *answer_item(struct sim *sim, struct sim_op *op,
                                    const struct kvt_wire_item *item, enum sim_item_state expected,
                                    const char *what)
{
    SIM_CHECK(sim, item->index < op->n, "%s: item %u of %u", what, item->index, op->n);
    struct sim_item *own = &op->items[item->index];
    SIM_CHECK(sim, own->state == expected, "%s: op %llu item %u answered twice or unasked (%d)",
              what, (unsigned long long)op->id, item->index, own->state);
    own->status = (enum kvt_status)item->status;
    sim_log(sim, "%s op %llu item %u key %d: %s", what, (unsigned long long)op->id, item->index,
            own->key, kvt_status_str(own->status));
    sim_trace(sim, op->id << 32 ^ item->index << 8 ^ (uint8_t)item->status);
    sim_trace(sim, item->offset);
    SIM_CHECK(sim,
              own->status == KVT_OK || legal(sim, op, expected == SIM_ITEM_COMMITTING, own->status),
              "%s: op %llu item %u is answered with \"%s\"", what, (unsigned long long)op->id,
              item->index, kvt_status_str(own->status));
    return own;
}

/* Clients make this so, unless it is refused as a whole. */
static void check_whole(struct sim *sim, const struct sim_op *op, enum kvt_status status,
                        const char *what)
{
    SIM_CHECK(sim, status == KVT_OK, "%s: op %llu is refused with \"%s\" after it was accepted",
              what, (unsigned long long)op->id, kvt_status_str(status));
}

static void check_slot_idle(struct sim *sim, uint64_t offset, uint64_t bytes, const char *what)
{
    for (unsigned i = 0; i < sim->disk.n_ops_max; i++) {
        const struct kvt_io *io = sim->disk.ops[i].io;
        SIM_CHECK(sim,
                  io == NULL || io->arena_offset >= offset + bytes ||
                      offset >= io->arena_offset + io->slot_bytes,
                  "%s: slot at %llu is in transfer", what, (unsigned long long)offset);
    }
}

static void fresh_add(struct sim *sim, unsigned ns, int key, bool durable)
{
    if (sim->n_fresh == KVT_ARRAY_LEN(sim->fresh))
        return;
    sim->fresh[sim->n_fresh].ns = ns;
    sim->fresh[sim->n_fresh].durable = durable;
    sim->fresh[sim->n_fresh++].key = key;
}

static void on_reserved(void *arg, uint32_t session, uint64_t id, enum kvt_status status,
                        const struct kvt_wire_item *items, unsigned n, unsigned n_open)
{
    struct sim *sim = arg;
    unsigned c = 0;
    struct sim_op *op = answer_op(sim, session, id, "reserved", &c);
    SIM_CHECK(sim, op->kind == SIM_STORE && !op->answered, "reserved: op %llu was answered before",
              (unsigned long long)id);
    check_whole(sim, op, status, "reserved");
    SIM_CHECK(sim, n == op->n, "reserved: %u of %u items", n, op->n);
    op->answered = true;
    for (unsigned i = 0; i < n; i++) {
        struct sim_item *item = answer_item(sim, op, &items[i], SIM_ITEM_WAIT, "reserved");
        struct sim_entry *entry = &sim->entries[op->ns][item->key];
        item->state = item->status == KVT_OK ? SIM_ITEM_OPEN : SIM_ITEM_REFUSED;
        SIM_CHECK(sim, item->status != KVT_ERR_EXISTS || entry->maybe,
                  "reserved: key %d exists and was never committed", item->key);
        bool durable = (op->flags & KVT_STORE_DURABLE) != 0;
        /* A kill may leave the record of a chunk whose slot was being overwritten: then only a read
         * tells. */
        if (item->status == KVT_ERR_EXISTS && durable && sim->n_lives == 1)
            fresh_add(sim, op->ns, item->key, true);
        /* Of what exists and is to be durable, the disk may say so. */
        SIM_CHECK(sim,
                  item->status != KVT_ERR_NOSPACE || !sim->roomy || sim->unsound ||
                      (durable && (sim->faults & SIM_DISK_FAULTS) != 0),
                  "reserved: no space for key %d where there is room for all", item->key);
        if (item->status != KVT_OK)
            continue;
        entry->linked = false; /* it is a new chunk */
        item->offset = items[i].offset;
        (void)sim_node_addr(sim, item->offset, sim->ns[op->ns].slot_bytes);
        check_slot_idle(sim, item->offset, sim->ns[op->ns].slot_bytes, "reserved");
        sim_writer_set(sim, &sim->clients[c], op, item);
    }
    SIM_CHECK(sim, n_open == count_open(op), "reserved: op %llu has %u open, says %u",
              (unsigned long long)id, count_open(op), n_open);
    op->over = n_open == 0;
}

static void check_loaded_bytes(struct sim *sim, const struct sim_op *op,
                               const struct sim_item *item)
{
    uint8_t bytes[SIM_CHUNK_MAX];
    const struct sim_ns *ns = &sim->ns[op->ns];
    const uint8_t *got = sim_node_addr(sim, item->offset, ns->slot_bytes);
    uint64_t first = (item->offset - sim->arena_base) / KVT_PAGE_BYTES;
    sim_model_bytes(sim, op->ns, item->key, bytes);
    SIM_CHECK(sim, memcmp(got, bytes, ns->desc.chunk_bytes) == 0,
              "loaded: op %llu ns %u key %d has wrong bytes", (unsigned long long)op->id, op->ns,
              item->key);
    for (uint64_t p = 0; p < ns->slot_bytes / KVT_PAGE_BYTES; p++)
        SIM_CHECK(sim, sim->writers[first + p] == 0, "loaded: op %llu key %d from a writer's slot",
                  (unsigned long long)op->id, item->key);
}

static void on_loaded(void *arg, uint32_t session, uint64_t id, enum kvt_status status,
                      const struct kvt_wire_item *items, unsigned n, unsigned n_open)
{
    struct sim *sim = arg;
    unsigned c = 0;
    bool any_ok = false;
    struct sim_op *op = answer_op(sim, session, id, "loaded", &c);
    SIM_CHECK(sim, op->kind == SIM_LOAD || op->kind == SIM_PREFETCH, "loaded: op %llu is a store",
              (unsigned long long)id);
    check_whole(sim, op, status, "loaded");
    SIM_CHECK(sim, n > 0 && n <= op->n, "loaded: %u of %u items", n, op->n);
    for (unsigned i = 0; i < n; i++) {
        struct sim_item *item = answer_item(sim, op, &items[i], SIM_ITEM_WAIT, "loaded");
        item->state = item->status == KVT_OK ? SIM_ITEM_OPEN : SIM_ITEM_REFUSED;
        SIM_CHECK(sim,
                  item->status != KVT_ERR_MISS || sim->unsound || !op->leased ||
                      (sim->faults & (SIM_DISK_FAULTS | SIM_META_FAULTS)) != 0,
                  "loaded: key %d missed while a lease held it", item->key);
        SIM_CHECK(sim, item->status != KVT_OK || sim->entries[op->ns][item->key].maybe,
                  "loaded: key %d was never committed", item->key);
        if (item->status != KVT_OK)
            continue;
        if (op->kind == SIM_PREFETCH) {
            item->state = SIM_ITEM_DONE;
            continue;
        }
        item->offset = items[i].offset;
        item->deadline_ns = items[i].lease_deadline_ns;
        SIM_CHECK(sim,
                  item->deadline_ns > sim->now_ns &&
                      item->deadline_ns <= sim->now_ns + sim->config.lease_ttl_max_ns,
                  "loaded: op %llu item %u stays put for %lld ns", (unsigned long long)id,
                  items[i].index, (long long)(item->deadline_ns - sim->now_ns));
        check_loaded_bytes(sim, op, item);
    }
    SIM_CHECK(sim, n_open == count_open(op), "loaded: op %llu has %u open, says %u",
              (unsigned long long)id, count_open(op), n_open);
    for (unsigned i = 0; i < op->n; i++)
        any_ok =
            any_ok || op->items[i].deadline_ns != 0; /* and be it that the client has it already */
    op->over = n_open == 0 && !any_ok;
}

static void on_committed(void *arg, uint32_t session, uint64_t id, enum kvt_status status,
                         const struct kvt_wire_item *items, unsigned n, unsigned n_open)
{
    struct sim *sim = arg;
    unsigned c = 0;
    struct sim_op *op = answer_op(sim, session, id, "committed", &c);
    SIM_CHECK(sim, op->kind == SIM_STORE && op->answered, "committed: op %llu is not reserved",
              (unsigned long long)id);
    check_whole(sim, op, status, "committed");
    SIM_CHECK(sim, n > 0 && n <= op->n, "committed: %u of %u items", n, op->n);
    for (unsigned i = 0; i < n; i++) {
        struct sim_item *item = answer_item(sim, op, &items[i], SIM_ITEM_COMMITTING, "committed");
        struct sim_entry *entry = &sim->entries[op->ns][item->key];
        item->state = SIM_ITEM_DONE;
        if (item->status != KVT_OK)
            continue;
        int parent = sim->keys[item->key].parent;
        bool deleted = entry->delete_seq > entry->commit_seq;
        bool stranded = parent >= 0 && sim->entries[op->ns][parent].delete_seq > op->seq;
        entry->must =
            !deleted && sim->roomy && (sim->faults & (SIM_DISK_FAULTS | SIM_META_FAULTS)) == 0;
        entry->linked = !deleted && !stranded && item->held_parent;
        fresh_add(sim, op->ns, item->key, (op->flags & KVT_STORE_DURABLE) != 0);
    }
    SIM_CHECK(sim, n_open == count_open(op), "committed: op %llu has %u open, says %u",
              (unsigned long long)id, count_open(op), n_open);
    op->over = n_open == 0;
}

void sim_answer_actions(struct sim *sim, struct kvt_core_actions *actions)
{
    actions->arg = sim;
    actions->reserved = on_reserved;
    actions->loaded = on_loaded;
    actions->committed = on_committed;
    actions->job_done = sim_admin_job_done;
}
