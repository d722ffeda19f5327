/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fake metadata store: an ordered log of changes. A change that was answered survives a kill;
 * of those that were not, the first few may.
 */
#include <stdlib.h>
#include <string.h>

#include "sim.h"

#define LIST_MAX 8192u

void sim_meta_init(struct sim *sim)
{
    struct sim_meta *meta = &sim->meta;
    meta->n_queue_max = 3 * sim->config.n_ios_max + sim->config.n_nvme_slabs + 64;
    meta->ns = calloc(64, sizeof(*meta->ns));
    meta->slabs = calloc(1024, sizeof(*meta->slabs));
    meta->records = calloc(LIST_MAX, sizeof(*meta->records));
    meta->old = calloc(256, sizeof(*meta->old));
    meta->queue = calloc(meta->n_queue_max, sizeof(*meta->queue));
    KVT_ASSERT(meta->ns != NULL && meta->slabs != NULL && meta->records != NULL &&
               meta->old != NULL && meta->queue != NULL);
}

void sim_meta_fini(struct sim *sim)
{
    free(sim->meta.ns);
    free(sim->meta.slabs);
    free(sim->meta.records);
    free(sim->meta.old);
    free(sim->meta.queue);
}

const struct kvt_meta_record *sim_meta_at(const struct sim *sim, uint32_t slot)
{
    for (unsigned i = 0; i < sim->meta.n_records; i++)
        if (sim->meta.records[i].slot == slot)
            return &sim->meta.records[i];
    return NULL;
}

/* Which of the model's namespaces a record means; -1: none. A number may have been another's
 * before, and one that is on its way takes it. */
static int meta_ns(const struct sim *sim, const struct kvt_meta_record *record)
{
    const struct sim_meta *meta = &sim->meta;
    const struct kvt_ns_desc *desc = NULL;
    for (unsigned i = 0; i < meta->n_ns; i++)
        if (meta->ns[i].number == record->ns && meta->ns[i].since <= record->generation)
            desc = &meta->ns[i].desc;
    for (unsigned i = 0; i < meta->n_queue; i++)
        if (meta->queue[i].type == SIM_NS && meta->queue[i].number == record->ns &&
            meta->queue[i].since <= record->generation)
            desc = &meta->queue[i].desc;
    for (unsigned ns = 0; desc != NULL && ns < sim->n_ns; ns++)
        if (memcmp(desc, &sim->ns[ns].desc, sizeof(*desc)) == 0)
            return (int)ns;
    return -1;
}

static uint64_t slab_slot_bytes(const struct sim *sim, uint32_t slab)
{
    for (unsigned i = 0; i < sim->meta.n_slabs; i++)
        if (sim->meta.slabs[i].number == slab)
            return sim->meta.slabs[i].slot_bytes;
    return 0;
}

bool sim_meta_names(const struct sim *sim, unsigned ns, int key)
{
    for (unsigned i = 0; i < sim->meta.n_records; i++)
        if (memcmp(&sim->meta.records[i].key, &sim->keys[key].key, sizeof(struct kvt_key)) == 0 &&
            meta_ns(sim, &sim->meta.records[i]) == (int)ns)
            return true;
    return false;
}

bool sim_meta_promises(const struct sim *sim, unsigned ns, int key)
{
    for (unsigned i = 0; i < sim->meta.n_queue; i++) {
        const struct sim_change *change = &sim->meta.queue[i];
        if (change->type == SIM_PUT &&
            memcmp(&change->record.key, &sim->keys[key].key, sizeof(struct kvt_key)) == 0 &&
            meta_ns(sim, &change->record) == (int)ns)
            return true;
    }
    return sim_meta_names(sim, ns, key);
}

/* The record of an evicted chunk stays until its slot is written again: of two the later counts. It
 * means nothing while its slab has another slot size. */
const struct kvt_meta_record *sim_meta_find(const struct sim *sim, unsigned ns, int key)
{
    const struct kvt_meta_record *found = NULL;
    for (unsigned i = 0; i < sim->meta.n_records; i++) {
        const struct kvt_meta_record *record = &sim->meta.records[i];
        if (memcmp(&record->key, &sim->keys[key].key, sizeof(record->key)) == 0 &&
            meta_ns(sim, record) == (int)ns &&
            slab_slot_bytes(sim, record->slot >> KVT_SLOT_INDEX_BITS) == sim->ns[ns].slot_bytes &&
            (found == NULL || record->generation > found->generation))
            found = record;
    }
    return found;
}

/* --- actions -----------------------------------------------------------------------------------
 */

static struct sim_change *queue_add(struct sim *sim, enum sim_change_type type, uint64_t token)
{
    struct sim_meta *meta = &sim->meta;
    SIM_CHECK(sim, meta->n_queue < meta->n_queue_max, "too many metadata changes in flight");
    struct sim_change *change = &meta->queue[meta->n_queue++];
    *change = (struct sim_change){.type = type, .token = token};
    meta->n_puts += type == SIM_PUT;
    meta->n_dels += type == SIM_DEL;
    meta->n_slab_changes += type == SIM_SLAB;
    SIM_CHECK(sim,
              meta->n_puts <= sim->config.n_ios_max && meta->n_dels <= 2 * sim->config.n_ios_max &&
                  meta->n_slab_changes <= sim->config.n_nvme_slabs,
              "metadata changes in flight: %u puts, %u dels, %u slabs", meta->n_puts, meta->n_dels,
              meta->n_slab_changes);
    return change;
}

/* What a slot held is not durable any more once its record is to go or its bytes change. */
static void slot_evicted(struct sim *sim, const struct kvt_meta_record *record, bool overwritten)
{
    int ns = meta_ns(sim, record);
    int key = sim_model_find_key(sim, &record->key);
    if (ns < 0 || key < 0)
        return;
    const struct kvt_meta_record *latest = sim_meta_find(sim, (unsigned)ns, key);
    if (latest != NULL && latest->generation > record->generation)
        return; /* stored again since, elsewhere */
    struct sim_entry *entry = &sim->entries[ns][key];
    /* Deleted and stored again since, the record may still be that of the first. */
    bool is_first = sim->n_deletes > 0 && !entry->durable;
    SIM_CHECK(sim,
              !entry->must || !sim->roomy || is_first ||
                  (sim->faults & (SIM_DISK_FAULTS | SIM_META_FAULTS)),
              "ns %d key %d leaves slot %u (%s) though nothing needs room", ns, key, record->slot,
              overwritten ? "overwritten" : "deleted");
    entry->durable = false;
}

void sim_meta_overwritten(struct sim *sim, uint32_t slot)
{
    const struct kvt_meta_record *record = sim_meta_at(sim, slot);
    if (record != NULL)
        slot_evicted(sim, record, true);
    for (unsigned i = 0; i < sim->meta.n_queue; i++)
        if (sim->meta.queue[i].type == SIM_PUT && sim->meta.queue[i].record.slot == slot)
            slot_evicted(sim, &sim->meta.queue[i].record, true);
}

bool sim_meta_doomed(const struct sim *sim, const struct kvt_meta_record *record)
{
    uint32_t slab = record->slot >> KVT_SLOT_INDEX_BITS;
    for (unsigned i = 0; i < sim->meta.n_queue; i++)
        if ((sim->meta.queue[i].type == SIM_SLAB && sim->meta.queue[i].number == slab) ||
            (sim->meta.queue[i].type == SIM_DEL && sim->meta.queue[i].record.slot == record->slot))
            return true;
    for (unsigned i = 0; i < sim->disk.n_ops_max; i++) {
        const struct kvt_io *io = sim->disk.ops[i].io;
        if (io != NULL && io->type == KVT_IO_WRITE &&
            (io->slab << KVT_SLOT_INDEX_BITS | io->slot) == record->slot)
            return true;
    }
    return false;
}

static void meta_put(void *arg, const struct kvt_meta_record *record, uint64_t token)
{
    struct sim *sim = arg;
    queue_add(sim, SIM_PUT, token)->record = *record;
    sim_log(sim, "meta put slot %u ns %u key %d parent slot %d", record->slot, record->ns,
            sim_model_find_key(sim, &record->key), (int)record->parent_slot);
    sim_trace(sim, record->digest);
}

static void meta_del(void *arg, uint32_t slot, uint64_t token)
{
    struct sim *sim = arg;
    sim_meta_overwritten(sim, slot);
    queue_add(sim, SIM_DEL, token)->record.slot = slot;
    sim_log(sim, "meta del slot %u", slot);
    sim_trace(sim, slot);
}

static void meta_slab(void *arg, uint32_t slab, uint64_t slot_bytes, uint64_t token)
{
    struct sim *sim = arg;
    struct sim_change *change = queue_add(sim, SIM_SLAB, token);
    change->number = slab;
    change->slot_bytes = slot_bytes;
    for (unsigned i = 0; i < sim->meta.n_records; i++)
        if (sim->meta.records[i].slot >> KVT_SLOT_INDEX_BITS == slab)
            slot_evicted(sim, &sim->meta.records[i], true);
    sim_log(sim, "meta slab %u of %llu bytes", slab, (unsigned long long)slot_bytes);
    sim_trace(sim, slab + slot_bytes);
}

static void meta_ns_put(void *arg, uint32_t ns, uint64_t since, const struct kvt_ns_desc *desc,
                        uint64_t token)
{
    struct sim *sim = arg;
    struct sim_change *change = queue_add(sim, SIM_NS, token);
    change->number = ns;
    change->since = since;
    change->desc = *desc;
    sim_log(sim, "meta ns %u is %s", ns, desc->model);
    sim_trace(sim, ns);
}

void sim_meta_actions(struct sim *sim, struct kvt_core_actions *actions)
{
    actions->meta_put = meta_put;
    actions->meta_del = meta_del;
    actions->meta_slab = meta_slab;
    actions->meta_ns = meta_ns_put;
}

/* --- taking effect -----------------------------------------------------------------------------
 */

static void keep_old(struct sim *sim, const struct kvt_meta_record *record)
{
    struct sim_meta *meta = &sim->meta;
    unsigned at = meta->n_old < 256 ? meta->n_old++ : sim_below(&sim->rng, 256);
    meta->old[at] = *record;
}

static void record_remove(struct sim *sim, uint32_t slot)
{
    struct sim_meta *meta = &sim->meta;
    for (unsigned i = meta->n_records; i-- > 0;)
        if (meta->records[i].slot == slot) {
            keep_old(sim, &meta->records[i]);
            meta->records[i] = meta->records[--meta->n_records];
        }
}

static void apply(struct sim *sim, const struct sim_change *change)
{
    struct sim_meta *meta = &sim->meta;
    unsigned i;
    switch (change->type) {
    case SIM_PUT:
        record_remove(sim, change->record.slot);
        KVT_ASSERT(meta->n_records < LIST_MAX);
        meta->records[meta->n_records++] = change->record;
        break;
    case SIM_DEL:
        record_remove(sim, change->record.slot);
        break;
    case SIM_SLAB:
        for (i = 0; i < meta->n_slabs && meta->slabs[i].number != change->number; i++)
            ;
        KVT_ASSERT(i < 1024);
        meta->n_slabs = KVT_MAX(meta->n_slabs, i + 1);
        meta->slabs[i] = (struct sim_meta_slab){change->number, change->slot_bytes};
        break;
    case SIM_NS:
        for (i = 0; i < meta->n_ns && meta->ns[i].number != change->number; i++)
            ;
        KVT_ASSERT(i < 64);
        meta->n_ns = KVT_MAX(meta->n_ns, i + 1);
        meta->ns[i] = (struct sim_meta_ns){change->number, change->since, change->desc};
        break;
    }
}

bool sim_meta_step(struct sim *sim)
{
    struct sim_meta *meta = &sim->meta;
    if (meta->n_queue == 0)
        return false;
    struct sim_change change = meta->queue[0];
    memmove(meta->queue, meta->queue + 1, --meta->n_queue * sizeof(*meta->queue));
    meta->n_puts -= change.type == SIM_PUT;
    meta->n_dels -= change.type == SIM_DEL;
    meta->n_slab_changes -= change.type == SIM_SLAB;
    enum kvt_status status = KVT_OK;
    if (sim->n_writes_before == 0 && sim_fault(sim, SIM_META_ERR))
        status = KVT_ERR_IO;
    if (status == KVT_OK || sim_chance(&sim->rng, 500))
        apply(sim, &change);
    sim_log(sim, "meta change of type %d (slot or number %u) done: %s", change.type,
            change.type == SIM_PUT || change.type == SIM_DEL ? change.record.slot : change.number,
            kvt_status_str(status));
    kvt_core_meta_done(sim->core, change.token, status, sim->now_ns);
    return true;
}

void sim_meta_kill(struct sim *sim)
{
    struct sim_meta *meta = &sim->meta;
    unsigned n = sim_below(&sim->rng, meta->n_queue + 1);
    for (unsigned i = 0; i < n; i++)
        apply(sim, &meta->queue[i]);
    sim_log(sim, "meta: %u of %u unanswered changes survive", n, meta->n_queue);
    meta->n_queue = meta->n_puts = meta->n_dels = meta->n_slab_changes = 0;
}

/* --- damage ------------------------------------------------------------------------------------
 */

static struct kvt_meta_record *any_record(struct sim *sim)
{
    return &sim->meta.records[sim_below(&sim->rng, sim->meta.n_records)];
}

static void flip(struct sim *sim, void *bytes, size_t n)
{
    ((uint8_t *)bytes)[sim_below(&sim->rng, (unsigned)n)] ^=
        (uint8_t)(1u << sim_below(&sim->rng, 8));
}

static void damage_record(struct sim *sim)
{
    struct sim_meta *meta = &sim->meta;
    struct kvt_meta_record *a = any_record(sim), *b = any_record(sim), saved = *a;
    switch (sim_below(&sim->rng, 7)) {
    case 0:
        flip(sim, a, sizeof(*a));
        break;
    case 1: /* the right record at the wrong slot */
        saved = *a;
        a->slot = b->slot;
        b->slot = saved.slot;
        break;
    case 2: /* links in circles */
        a->parent_slot = b->slot;
        memcpy(&a->parent_tag, b->key.bytes, sizeof(a->parent_tag));
        b->parent_slot = a->slot;
        memcpy(&b->parent_tag, a->key.bytes, sizeof(b->parent_tag));
        break;
    case 3: /* one slot or key named twice */
        if (meta->n_records < LIST_MAX) {
            saved.generation += sim_below(&sim->rng, 3);
            if (sim_chance(&sim->rng, 500))
                saved.slot = b->slot;
            else
                saved.key = b->key;
            meta->records[meta->n_records++] = saved;
        }
        break;
    case 4:
        if (meta->n_old > 0 && meta->n_records < LIST_MAX)
            meta->records[meta->n_records++] = meta->old[sim_below(&sim->rng, meta->n_old)];
        break;
    case 5:
        a->ns = sim_chance(&sim->rng, 500) ? (uint32_t)sim_u64(&sim->rng) : a->ns + 1;
        break;
    default:
        a->slot = sim_chance(&sim->rng, 500) ? (uint32_t)sim_u64(&sim->rng) : a->slot + 1;
        break;
    }
}

static void damage_slab(struct sim *sim)
{
    struct sim_meta *meta = &sim->meta;
    struct sim_meta_slab *slab = &meta->slabs[sim_below(&sim->rng, meta->n_slabs)];
    switch (sim_below(&sim->rng, 4)) {
    case 0:
        slab->number = (uint32_t)sim_u64(&sim->rng);
        break;
    case 1:
        slab->number = meta->slabs[sim_below(&sim->rng, meta->n_slabs)].number;
        break;
    case 2:
        slab->slot_bytes = sim_u64(&sim->rng);
        break;
    default:
        slab->slot_bytes = KVT_PAGE_BYTES * sim_below(&sim->rng, 5);
        break;
    }
}

void sim_meta_damage(struct sim *sim)
{
    struct sim_meta *meta = &sim->meta;
    if ((sim->faults & SIM_BIT(META_WIPE)) != 0 && sim_chance(&sim->rng, 200)) {
        sim_log(sim, "metadata are gone");
        meta->n_ns = meta->n_slabs = meta->n_records = 0;
        sim->meta_damaged = true;
        return;
    }
    if ((sim->faults & SIM_BIT(META_BAD)) == 0 || sim_chance(&sim->rng, 500))
        return;
    sim->meta_damaged = true;
    for (unsigned i = sim_below(&sim->rng, 8); i > 0 && meta->n_records > 0; i--)
        damage_record(sim);
    if (meta->n_slabs > 0 && sim_chance(&sim->rng, 250))
        damage_slab(sim);
    if (meta->n_ns > 0 && sim_chance(&sim->rng, 150)) {
        struct sim_meta_ns *ns = &meta->ns[sim_below(&sim->rng, meta->n_ns)];
        struct sim_meta_ns *other = &meta->ns[sim_below(&sim->rng, meta->n_ns)];
        uint32_t number = ns->number;
        switch (sim_below(&sim->rng, 5)) {
        case 0:
            flip(sim, &ns->since, sizeof(ns->since));
            break;
        case 1: /* of a time before, or after */
            ns->since += sim_range(&sim->rng, 0, 40) - 20;
            break;
        case 2:
            flip(sim, &ns->desc, sizeof(ns->desc));
            break;
        case 3:
            ns->number = other->number;
            other->number = number;
            break;
        default:
            ns->number = (uint32_t)sim_below(&sim->rng, 70000);
            break;
        }
    }
    sim_log(sim, "metadata are damaged");
}

void sim_meta_restore(struct sim *sim)
{
    struct sim_meta *meta = &sim->meta;
    unsigned at = 0;
    for (unsigned i = 0; i < meta->n_ns; i++)
        kvt_core_restore_ns(sim->core, meta->ns[i].number, meta->ns[i].since, &meta->ns[i].desc);
    for (unsigned i = 0; i < meta->n_slabs; i++)
        kvt_core_restore_slab(sim->core, meta->slabs[i].number, meta->slabs[i].slot_bytes);
    while (at < meta->n_records) {
        unsigned n = (unsigned)sim_range(&sim->rng, 1, 256);
        n = KVT_MIN(n, meta->n_records - at);
        kvt_core_restore_records(sim->core, meta->records + at, n);
        at += n;
    }
    uint64_t n_bad = kvt_core_restore_end(sim->core);
    sim_log(sim, "restored %u records of %u namespaces, %llu skipped", meta->n_records, meta->n_ns,
            (unsigned long long)n_bad);
}
