/* SPDX-License-Identifier: Apache-2.0 */
/* Pins of operators: chunks, and all before them in their prompt, that no tier evicts. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core_internal.h"

/* A block of each pin may be partly empty. */
#define N_BLOCKS (KVT_ADMIN_PINNED_MAX / PIN_BLOCK_CHUNKS + KVT_ADMIN_PINS_MAX)

bool core_pins_init(struct kvt_core *core)
{
    struct admin_pins *pins = &core->pins;
    pins->pins = kvt_big_calloc(KVT_ADMIN_PINS_MAX * sizeof(*pins->pins));
    pins->blocks = kvt_big_calloc(N_BLOCKS * sizeof(*pins->blocks));
    pins->free_block = NONE;
    return pins->pins != NULL && pins->blocks != NULL && heap_init(&pins->heap, KVT_ADMIN_PINS_MAX);
}

void core_pins_fini(struct kvt_core *core)
{
    kvt_big_free(core->pins.pins, KVT_ADMIN_PINS_MAX * sizeof(*core->pins.pins));
    kvt_big_free(core->pins.blocks, N_BLOCKS * sizeof(*core->pins.blocks));
    heap_fini(&core->pins.heap);
}

/* --- what a pin holds --------------------------------------------------------------------------
 */

static uint32_t block_new(struct admin_pins *pins, uint32_t next)
{
    uint32_t b = pins->free_block;
    if (b != NONE)
        pins->free_block = pins->blocks[b].next;
    else
        b = pins->n_blocks_used++;
    KVT_ASSERT(b < N_BLOCKS);
    pins->blocks[b] = (struct pin_block){.next = next};
    return b;
}

static uint64_t host_bytes_max(const struct kvt_core *core)
{
    return core->config.n_host_slabs * core->config.host_slab_bytes / 2;
}

static bool hold(struct kvt_core *core, struct admin_pin *pin, uint32_t c)
{
    struct admin_pins *pins = &core->pins;
    uint64_t bytes = chunk_ns(core, c)->slot_bytes;
    uint64_t more = core->chunks[c].admin_pins == 0 ? bytes : 0; /* else another pin holds it */
    if (pins->n_refs == KVT_ADMIN_PINNED_MAX || pins->bytes + more > host_bytes_max(core))
        return false;
    if (pin->blocks == NONE || pins->blocks[pin->blocks].n == PIN_BLOCK_CHUNKS)
        pin->blocks = block_new(pins, pin->blocks);
    struct pin_block *block = &pins->blocks[pin->blocks];
    block->chunks[block->n++] = c;
    core->chunks[c].admin_pins++;
    core_pin(core, c);
    pins->n_refs++;
    pins->bytes += more;
    pin->info.n_chunks++;
    pin->info.bytes += bytes;
    return true;
}

static void let_go(struct kvt_core *core, struct admin_pin *pin)
{
    struct admin_pins *pins = &core->pins;
    while (pin->blocks != NONE) {
        uint32_t b = pin->blocks;
        struct pin_block *block = &pins->blocks[b];
        for (uint32_t i = 0; i < block->n; i++) {
            uint32_t c = block->chunks[i];
            if (--core->chunks[c].admin_pins == 0)
                pins->bytes -= chunk_ns(core, c)->slot_bytes;
            core_unpin(core, c);
        }
        pin->blocks = block->next;
        block->next = pins->free_block;
        pins->free_block = b;
    }
    pins->n_refs -= pin->info.n_chunks;
}

/* The chunk and those before it, up to one that this pin holds already. */
static bool hold_chain(struct kvt_core *core, struct admin_pin *pin, uint32_t c, uint32_t held)
{
    for (; c != NONE && c != held && !(core->chunks[c].flags & CHUNK_UNHASHED);
         c = core->chunks[c].parent)
        if (!hold(core, pin, c))
            return false;
    return true;
}

/* --- calls -------------------------------------------------------------------------------------
 */

static void pin_end(struct kvt_core *core, uint32_t p)
{
    struct admin_pins *pins = &core->pins;
    let_go(core, &pins->pins[p]);
    heap_remove(&pins->heap, p);
    pins->pins[p].id = 0;
    pins->n_pins--;
}

void core_pins_expire(struct kvt_core *core, uint64_t now_ns)
{
    while (heap_first(&core->pins.heap) <= now_ns)
        pin_end(core, core->pins.heap.ids[0]);
}

static uint32_t pin_find(const struct kvt_core *core, uint64_t id)
{
    uint32_t p = (uint32_t)(id % KVT_ADMIN_PINS_MAX);
    return id != 0 && core->pins.pins[p].id == id ? p : NONE;
}

/* The number of a pin names its place in the table. */
static uint64_t id_next(struct admin_pins *pins)
{
    uint64_t id = pins->last_id;
    do
        id++;
    while (id == 0 || pins->pins[id % KVT_ADMIN_PINS_MAX].id != 0);
    pins->last_id = id;
    return id;
}

enum kvt_status kvt_core_pin(struct kvt_core *core, uint32_t ns, const struct kvt_key *keys,
                             unsigned n, const char *owner, uint64_t ttl_ns, uint64_t now_ns,
                             uint64_t *pin_p, unsigned *n_found_p, struct kvt_error *err)
{
    struct admin_pins *pins = &core->pins;
    if (ns >= core->n_ns || !core->ns[ns].used)
        return kvt_error_set(err, KVT_ERR_INVAL, "pin: no such namespace; list them");
    if (n == 0 || n > KVT_BATCH_MAX)
        return kvt_error_set(err, KVT_ERR_INVAL, "pin: %u keys; allowed are 1 to %d", n,
                             KVT_BATCH_MAX);
    if (owner == NULL || strlen(owner) >= KVT_ADMIN_OWNER_MAX)
        return kvt_error_set(err, KVT_ERR_INVAL, "pin: the owner's name is longer than %d bytes",
                             KVT_ADMIN_OWNER_MAX - 1);
    if (pins->n_pins == KVT_ADMIN_PINS_MAX)
        return kvt_error_set(err, KVT_ERR_NOSPACE, "pin: all %d pins are in use; unpin some",
                             KVT_ADMIN_PINS_MAX);
    uint64_t id = id_next(pins);
    struct admin_pin *pin = &pins->pins[id % KVT_ADMIN_PINS_MAX];
    uint64_t deadline_ns =
        ttl_ns == 0 || ttl_ns > UINT64_MAX - now_ns ? UINT64_MAX : now_ns + ttl_ns;
    *pin = (struct admin_pin){
        .blocks = NONE,
        .last = NONE,
        .info = {.id = id, .ns = ns, .made_ns = now_ns, .deadline_ns = deadline_ns},
    };
    snprintf(pin->info.owner, sizeof(pin->info.owner), "%s", owner);
    core_find_batch(core, keys, n, ns, false);
    unsigned n_found = 0;
    bool fits = true;
    for (unsigned i = 0; i < n && fits; i++) {
        uint32_t c = core->found[i];
        if (c == NONE || !chunk_held(&core->chunks[c]))
            continue;
        fits = hold_chain(core, pin, c, pin->last);
        pin->last = c;
        pin->info.last = keys[i];
        n_found++;
    }
    if (!fits) {
        let_go(core, pin);
        return kvt_error_set(err, KVT_ERR_NOSPACE,
                             "pin: all pins together would hold more than %llu bytes (half of host "
                             "memory) or %d chunks; unpin some, or raise host.bytes",
                             (unsigned long long)host_bytes_max(core), KVT_ADMIN_PINNED_MAX);
    }
    if (n_found == 0)
        return kvt_error_set(err, KVT_ERR_MISS,
                             "pin: none of the %u chunks is held; store them first", n);
    pin->id = id;
    pins->n_pins++;
    if (deadline_ns != UINT64_MAX)
        heap_set(&pins->heap, (uint32_t)(id % KVT_ADMIN_PINS_MAX), deadline_ns);
    *pin_p = id;
    *n_found_p = n_found;
    return KVT_OK;
}

enum kvt_status kvt_core_unpin(struct kvt_core *core, uint64_t id)
{
    uint32_t p = pin_find(core, id);
    if (p == NONE)
        return KVT_ERR_MISS;
    pin_end(core, p);
    return KVT_OK;
}

unsigned kvt_core_unpin_owner(struct kvt_core *core, const char *owner)
{
    unsigned n = 0;
    for (uint32_t p = 0; p < KVT_ADMIN_PINS_MAX; p++)
        if (core->pins.pins[p].id != 0 && strcmp(core->pins.pins[p].info.owner, owner) == 0) {
            pin_end(core, p);
            n++;
        }
    return n;
}

unsigned kvt_core_unpin_keys(struct kvt_core *core, uint32_t ns, const struct kvt_key *keys,
                             unsigned n)
{
    unsigned n_ended = 0;
    if (n > KVT_BATCH_MAX || ns >= core->n_ns || !core->ns[ns].used)
        return 0;
    core_find_batch(core, keys, n, ns, false);
    for (uint32_t p = 0; p < KVT_ADMIN_PINS_MAX; p++) {
        bool match = false;
        for (unsigned i = 0; core->pins.pins[p].id != 0 && i < n && !match; i++)
            match = core->found[i] != NONE && core->found[i] == core->pins.pins[p].last;
        if (match) {
            pin_end(core, p);
            n_ended++;
        }
    }
    return n_ended;
}

/* @return how many chunks were looked at. */
static unsigned pin_describe(const struct kvt_core *core, const struct admin_pin *pin,
                             struct kvt_admin_pin *out)
{
    const struct admin_pins *pins = &core->pins;
    unsigned n_looks = 0;
    *out = pin->info;
    for (uint32_t b = pin->blocks; b != NONE; b = pins->blocks[b].next)
        for (uint32_t i = 0; i < pins->blocks[b].n; i++, n_looks++)
            out->n_lost += (core->chunks[pins->blocks[b].chunks[i]].flags & CHUNK_UNHASHED) != 0;
    return n_looks;
}

bool kvt_core_pin_info(const struct kvt_core *core, uint64_t id, struct kvt_admin_pin *info_p)
{
    uint32_t p = pin_find(core, id);
    if (p != NONE)
        (void)pin_describe(core, &core->pins.pins[p], info_p);
    return p != NONE;
}

unsigned kvt_core_pins(const struct kvt_core *core, uint64_t *cursor_p, struct kvt_admin_pin *out,
                       unsigned n_max)
{
    const struct admin_pins *pins = &core->pins;
    unsigned n = 0, n_looks = 0;
    uint64_t p = *cursor_p;
    for (; p < KVT_ADMIN_PINS_MAX && n < n_max && n_looks < KVT_ADMIN_SCAN_MAX; p++)
        if (pins->pins[p].id != 0)
            n_looks += pin_describe(core, &pins->pins[p], &out[n++]);
    *cursor_p = p < KVT_ADMIN_PINS_MAX ? p : 0;
    return n;
}
