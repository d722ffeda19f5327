/* SPDX-License-Identifier: Apache-2.0 */
/* The truth: what bytes each chunk has, what must be held, and what may not be. */
#include <string.h>
#include <xxhash.h>

#include "sim.h"

static const uint32_t segment_choices[] = {100, 512, 1365, 2048, 3000, 4096};

static void model_ns(struct sim *sim, unsigned i)
{
    struct sim_ns *ns = &sim->ns[i];
    struct kvt_ns_desc *desc = &ns->desc;
    /* 1 to 3 segments of 100 to 4096 bytes: slots of 4, 8 and 12 KiB, so that classes differ and
     * namespaces of one class may differ in segments. */
    uint32_t n_segments = 1 + sim_below(&sim->rng, 3);
    ns->segment_bytes =
        segment_choices[sim_below(&sim->rng, (unsigned)KVT_ARRAY_LEN(segment_choices))];
    snprintf(desc->model, sizeof(desc->model), "model-%u", i);
    snprintf(desc->dtype, sizeof(desc->dtype), "bf16");
    desc->n_layers = n_segments;
    desc->n_kv_heads = 1;
    desc->head_dim = 64;
    desc->tokens_per_chunk = 16;
    desc->tp_size = 1;
    desc->pp_size = 1;
    desc->n_segments = n_segments;
    desc->chunk_bytes = (uint64_t)n_segments * ns->segment_bytes;
    kvt_ns_id(desc, ns->id);
    ns->slot_bytes = kvt_align_up(desc->chunk_bytes, KVT_PAGE_BYTES);
}

void sim_model_init(struct sim *sim)
{
    sim->n_ns = 1 + sim_below(&sim->rng, SIM_NS_MAX);
    for (unsigned i = 0; i < sim->n_ns; i++)
        model_ns(sim, i);
    sim->n_keys = (unsigned)sim_range(&sim->rng, 8, SIM_KEYS_MAX);
    unsigned content_permille = sim_below(&sim->rng, 400);
    unsigned branch = 1 + sim_below(&sim->rng, 6);
    for (unsigned i = 0; i < sim->n_keys; i++) {
        struct sim_key *key = &sim->keys[i];
        for (unsigned b = 0; b < KVT_KEY_BYTES; b += 8) {
            uint64_t word = sim_u64(&sim->rng);
            memcpy(key->key.bytes + b, &word, 8);
        }
        key->parent = -1;
        if (i > 0 && !sim_chance(&sim->rng, content_permille)) {
            /* Mostly long chains with some branches: near ancestors are likelier. */
            unsigned back = sim_below(&sim->rng, KVT_MIN(i, branch)) + 1;
            key->parent = (int)(i - back);
        }
        key->depth = key->parent < 0 ? 0 : sim->keys[key->parent].depth + 1;
    }
}

/* The same key has other bytes in another namespace. */
void sim_model_bytes(const struct sim *sim, unsigned ns, int key, uint8_t *bytes)
{
    uint64_t n = sim->ns[ns].desc.chunk_bytes;
    struct sim_rng rng = {sim_mix(sim->seed ^ (uint64_t)ns << 32 ^ (uint64_t)(key + 1))};
    for (uint64_t i = 0; i < n; i += 8) {
        uint64_t word = sim_u64(&rng);
        memcpy(bytes + i, &word, (size_t)KVT_MIN(n - i, 8u));
    }
}

void sim_model_sums(const struct sim *sim, unsigned ns, int key, uint64_t *sums)
{
    uint8_t bytes[SIM_CHUNK_MAX];
    sim_model_bytes(sim, ns, key, bytes);
    for (uint32_t i = 0; i < sim->ns[ns].desc.n_segments; i++)
        sums[i] =
            XXH3_64bits(bytes + (size_t)i * sim->ns[ns].segment_bytes, sim->ns[ns].segment_bytes);
}

int sim_model_find_key(const struct sim *sim, const struct kvt_key *key)
{
    for (unsigned i = 0; i < sim->n_keys; i++)
        if (memcmp(key, &sim->keys[i].key, sizeof(*key)) == 0)
            return (int)i;
    return -1;
}

uint32_t sim_model_handle(const struct sim *sim, unsigned ns)
{
    return kvt_core_ns_find(sim->core, sim->ns[ns].id);
}

int sim_model_find_ns_id(const struct sim *sim, const uint8_t *ns_id)
{
    for (unsigned i = 0; i < sim->n_ns; i++)
        if (memcmp(ns_id, sim->ns[i].id, KVT_NS_ID_BYTES) == 0)
            return (int)i;
    return -1;
}

/* Of some keys, as a lookup that counts for nothing. */
static unsigned held_prefix(struct sim *sim, unsigned ns, const struct kvt_key *keys, unsigned n,
                            uint8_t *where)
{
    uint32_t handle = sim_model_handle(sim, ns);
    unsigned n_hit = 0;
    if (handle == KVT_ADMIN_NS_ANY)
        return 0;
    enum kvt_status status = kvt_core_admin_lookup(sim->core, handle, keys, n, &n_hit, where);
    SIM_CHECK(sim, status == KVT_OK && n_hit <= n, "a lookup of %u keys: status %d, n_hit %u", n,
              status, n_hit);
    return n_hit;
}

bool sim_model_held(struct sim *sim, unsigned ns, int key, uint8_t *where_p)
{
    uint8_t where = 0;
    bool held = held_prefix(sim, ns, &sim->keys[key].key, 1, &where) == 1;
    if (held)
        SIM_CHECK(sim,
                  sim->entries[ns][key].maybe && !sim->entries[ns][key].gone && where != 0 &&
                      where < 4,
                  "ns %u key %d is held (where %u) and was never committed%s", ns, key, where,
                  sim->entries[ns][key].gone ? " since it was deleted" : "");
    if (where_p != NULL)
        *where_p = held ? where : 0;
    return held;
}

static void check_durable(struct sim *sim, unsigned ns, int key)
{
    const struct kvt_meta_record *record = sim_meta_find(sim, ns, key);
    SIM_CHECK(sim, record != NULL || sim->meta_damaged,
              "ns %u key %d is said to be durable, and no metadata are", ns, key);
    if (record == NULL)
        return;
    bool holds = sim_disk_holds(sim, record, ns);
    SIM_CHECK(sim, holds || sim->meta_damaged || (sim->faults & SIM_DISK_FAULTS) != 0,
              "ns %u key %d is said to be durable, and slot %u does not hold it", ns, key,
              record->slot);
    sim->entries[ns][key].durable = holds && !sim_meta_doomed(sim, record);
}

void sim_model_fresh(struct sim *sim, bool lost)
{
    for (unsigned i = 0; i < sim->n_fresh; i++) {
        unsigned ns = sim->fresh[i].ns;
        int key = sim->fresh[i].key;
        uint8_t where = 0;
        SIM_CHECK(sim, sim_model_held(sim, ns, key, &where) || lost,
                  "ns %u key %d: its commit was answered OK and a lookup does not find it", ns,
                  key);
        SIM_CHECK(sim, !sim->fresh[i].durable || (where & KVT_WHERE_NVME) != 0 || lost,
                  "ns %u key %d was answered as durable, and is not on NVMe", ns, key);
        if (sim->fresh[i].durable && (where & KVT_WHERE_NVME) != 0)
            check_durable(sim, ns, key);
    }
    sim->n_fresh = 0;
}

/* Whether only clients and kills disturb this run. */
static bool media_are_sound(const struct sim *sim)
{
    return (sim->faults & (SIM_DISK_FAULTS | SIM_META_FAULTS)) == 0 && !sim->unsound;
}

void sim_model_lost(struct sim *sim, const struct kvt_key *key, const uint8_t *ns_id)
{
    int k = sim_model_find_key(sim, key), ns = sim_model_find_ns_id(sim, ns_id);
    if (ns >= 0 && k >= 0)
        sim->entries[ns][k].must = sim->entries[ns][k].durable = false;
}

static void check_lease(struct sim *sim, struct sim_lease *lease)
{
    struct kvt_key keys[SIM_ITEMS_MAX];
    uint8_t where[SIM_ITEMS_MAX];
    if (lease->n == 0)
        return;
    for (unsigned i = 0; i < lease->n; i++)
        keys[i] = sim->keys[lease->keys[i]].key;
    unsigned n_hit = held_prefix(sim, lease->ns, keys, lease->n, where);
    SIM_CHECK(sim, n_hit == lease->n,
              "lease %llx holds %u chunks of ns %u (first key %d), a lookup finds %u",
              (unsigned long long)lease->id, lease->n, lease->ns, lease->keys[0], n_hit);
}

void sim_model_leases(struct sim *sim)
{
    if (!media_are_sound(sim))
        return;
    for (unsigned c = 0; c < sim->n_clients; c++)
        for (unsigned l = 0; l < SIM_LEASES_MAX; l++) {
            struct sim_lease *lease = &sim->clients[c].leases[l];
            if (sim->clients[c].open && lease->id != 0 && sim->now_ns < lease->deadline_ns)
                check_lease(sim, lease);
        }
}

static void check_chain(struct sim *sim, unsigned ns, int key)
{
    struct sim_entry *entry = &sim->entries[ns][key];
    int parent = sim->keys[key].parent;
    if (!entry->linked || parent < 0 || !media_are_sound(sim))
        return;
    if (!sim_model_held(sim, ns, key, NULL)) {
        entry->linked = false;
        return;
    }
    SIM_CHECK(sim, sim_model_held(sim, ns, parent, NULL),
              "ns %u: key %d is held, its parent %d was evicted before it", ns, key, parent);
}

static void check_must(struct sim *sim, unsigned ns, int key)
{
    if (sim->entries[ns][key].must)
        SIM_CHECK(sim, sim_model_held(sim, ns, key, NULL),
                  "ns %u key %d was stored, nothing was evicted, and it is not held", ns, key);
}

void sim_model_probe(struct sim *sim)
{
    unsigned ns = sim_below(&sim->rng, sim->n_ns);
    int key = (int)sim_below(&sim->rng, sim->n_keys);
    char msg[256];
    switch (sim_below(&sim->rng, 9)) {
    case 4:
        sim_admin_lists(sim);
        break;
    case 0:
        sim_model_leases(sim);
        break;
    case 1:
        for (key = 0; key < (int)sim->n_keys; key++)
            check_chain(sim, ns, key);
        break;
    case 2:
        SIM_CHECK(sim, kvt_core_check(sim->core, msg, sizeof(msg)), "the books: %s", msg);
        break;
    case 3:
        for (key = 0; key < (int)sim->n_keys; key++)
            check_must(sim, ns, key);
        break;
    default:
        check_must(sim, ns, key);
        check_chain(sim, ns, key);
        (void)sim_model_held(sim, ns, key, NULL);
        break;
    }
}

void sim_model_progress(struct sim *sim)
{
    for (unsigned c = 0; c < sim->n_clients; c++) {
        struct sim_client *client = &sim->clients[c];
        for (unsigned o = 0; client->open && o < SIM_OPS_MAX; o++) {
            struct sim_op *op = &client->ops[o];
            if (op->kind == SIM_OP_NONE || op->over || sim->now_ns <= op->deadline_ns)
                continue;
            if (op->kind == SIM_STORE && (op->flags & KVT_STORE_DURABLE) &&
                sim->now_ns <= op->began_ns + 2000 * SIM_MS)
                continue; /* others' chunks may be on their way to NVMe */
            if (op->kind == SIM_STORE) {
                SIM_CHECK(sim, op->answered,
                          "client %u op %llu: reserve not answered by its deadline", c,
                          (unsigned long long)op->id);
                continue;
            }
            for (unsigned i = 0; i < op->n; i++)
                SIM_CHECK(sim, op->items[i].state != SIM_ITEM_WAIT,
                          "client %u op %llu item %u: load not answered by its deadline", c,
                          (unsigned long long)op->id, i);
        }
    }
}

void sim_model_before_kill(struct sim *sim)
{
    for (unsigned ns = 0; ns < sim->n_ns; ns++)
        for (int key = 0; key < (int)sim->n_keys; key++)
            if (sim->entries[ns][key].durable && !sim_model_held(sim, ns, key, NULL)) {
                SIM_CHECK(sim, !sim->entries[ns][key].must,
                          "ns %u key %d was durable, nothing was evicted, and it is not held", ns,
                          key);
                sim->entries[ns][key].durable = false;
            }
}

void sim_model_killed(struct sim *sim)
{
    for (unsigned ns = 0; ns < sim->n_ns; ns++)
        for (unsigned key = 0; key < sim->n_keys; key++) {
            struct sim_entry *entry = &sim->entries[ns][key];
            const struct kvt_meta_record *record = sim_meta_find(sim, ns, (int)key);
            const struct kvt_meta_record *parent = NULL;
            SIM_CHECK(sim, sim->meta_damaged || !entry->durable || record != NULL,
                      "ns %u key %u was answered as durable, and the metadata do not name it", ns,
                      key);
            entry->maybe = sim_meta_names(sim, ns, (int)key);
            entry->must = entry->must && record != NULL;
            if (record != NULL && record->parent_slot != KVT_SLOT_NONE &&
                sim->keys[key].parent >= 0)
                parent = sim_meta_at(sim, record->parent_slot);
            /* The child names the slot of its parent, and that still holds it. */
            entry->linked = parent != NULL && parent->ns == record->ns &&
                            parent == sim_meta_find(sim, ns, sim->keys[key].parent);
        }
}

void sim_model_restart(struct sim *sim)
{
    for (unsigned ns = 0; ns < sim->n_ns; ns++)
        for (int key = 0; key < (int)sim->n_keys; key++) {
            bool held = sim_model_held(sim, ns, key, NULL);
            int parent = sim->keys[key].parent;
            if (sim->entries[ns][key].linked) /* an index that is too small keeps but a part */
                sim->entries[ns][key].linked = held && sim_model_held(sim, ns, parent, NULL);
            if (sim->meta_damaged || (sim->faults & SIM_BIT(META_ERR)) != 0)
                continue;
            SIM_CHECK(sim, held || !sim->entries[ns][key].durable,
                      "ns %u key %d was durable and was not restored", ns, key);
            SIM_CHECK(sim,
                      held || sim_meta_find(sim, ns, key) == NULL ||
                          sim->meta.n_records > sim->config.n_chunks_max,
                      "ns %u key %d is in the metadata and was not restored", ns, key);
        }
}

static uint64_t stat(const uint64_t *stats, enum kvt_stat which)
{
    return stats[which];
}

void sim_model_quiet(struct sim *sim)
{
    uint64_t stats[KVT_STAT_N], host_bytes = 0, nvme_bytes = 0, n_chunks = 0;
    char msg[256];
    SIM_CHECK(sim, kvt_core_check(sim->core, msg, sizeof(msg)), "the books at rest: %s", msg);
    SIM_CHECK(sim, kvt_core_quiescent(sim->core), "everything is done and the core is not at rest");
    sim_admin_lists(sim);
    kvt_core_stats(sim->core, stats);
    SIM_CHECK(sim, stat(stats, KVT_STAT_JOBS) == 0, "%llu jobs are left at rest",
              (unsigned long long)stat(stats, KVT_STAT_JOBS));
    SIM_CHECK(sim, stat(stats, KVT_STAT_PINS) == 0, "%llu pins are left at rest",
              (unsigned long long)stat(stats, KVT_STAT_PINS));
    SIM_CHECK(sim, stat(stats, KVT_STAT_OPS) == 0, "%llu ops are left at rest",
              (unsigned long long)stat(stats, KVT_STAT_OPS));
    SIM_CHECK(sim, stat(stats, KVT_STAT_LEASES) == 0, "%llu leases are left at rest",
              (unsigned long long)stat(stats, KVT_STAT_LEASES));
    SIM_CHECK(sim, stat(stats, KVT_STAT_RESERVED_BYTES) == 0, "%llu bytes stay reserved at rest",
              (unsigned long long)stat(stats, KVT_STAT_RESERVED_BYTES));
    for (unsigned ns = 0; ns < sim->n_ns; ns++)
        for (int key = 0; key < (int)sim->n_keys; key++) {
            uint8_t where = 0;
            check_must(sim, ns, key);
            check_chain(sim, ns, key);
            if (!sim_model_held(sim, ns, key, &where))
                continue;
            n_chunks++;
            if ((where & KVT_WHERE_HOST) != 0)
                host_bytes += sim->ns[ns].slot_bytes;
            if ((where & KVT_WHERE_NVME) != 0)
                nvme_bytes += sim->ns[ns].slot_bytes + KVT_SLOT_HEADER_BYTES;
        }
    SIM_CHECK(sim, stat(stats, KVT_STAT_HOST_USED_BYTES) == host_bytes,
              "host: %llu bytes used, chunks have %llu",
              (unsigned long long)stat(stats, KVT_STAT_HOST_USED_BYTES),
              (unsigned long long)host_bytes);
    if (!media_are_sound(sim))
        return; /* quarantined slots, records that name keys of nobody */
    SIM_CHECK(sim, stat(stats, KVT_STAT_NVME_USED_BYTES) == nvme_bytes,
              "nvme: %llu bytes used, chunks have %llu",
              (unsigned long long)stat(stats, KVT_STAT_NVME_USED_BYTES),
              (unsigned long long)nvme_bytes);
    SIM_CHECK(sim, stat(stats, KVT_STAT_CHUNKS) == n_chunks, "%llu chunks counted, %llu found",
              (unsigned long long)stat(stats, KVT_STAT_CHUNKS), (unsigned long long)n_chunks);
}
