/* SPDX-License-Identifier: Apache-2.0 */
#include "ideal.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "kvt/util.h"

#define PLACES   32768u /* of the table; at most half are taken */
#define KEYS_MAX (PLACES / 2)

struct ideal {
    uint64_t *table; /* hashes, 0: free */
    uint64_t *spare; /* all free: the next table */
    unsigned shift;  /* a key in 2^shift is in the sample */
    unsigned n;
    uint64_t n_avoidable;
};

struct ideal *ideal_create(void)
{
    struct ideal *ideal = calloc(1, sizeof(*ideal));
    if (ideal == NULL)
        return NULL;
    ideal->table = calloc(PLACES, sizeof(uint64_t));
    ideal->spare = calloc(PLACES, sizeof(uint64_t));
    if (ideal->table != NULL && ideal->spare != NULL)
        return ideal;
    ideal_destroy(ideal);
    return NULL;
}

void ideal_destroy(struct ideal *ideal)
{
    if (ideal == NULL)
        return;
    free(ideal->table);
    free(ideal->spare);
    free(ideal);
}

static uint64_t rotate(uint64_t value, unsigned by)
{
    return value << by | value >> (64 - by);
}

/* The multiplication spreads keys that are no hashes (small numbers) over the high bits, by which
 * the sample is chosen; the shift brings them down to those that choose the place. */
static uint64_t key_hash(uint64_t ns, const struct kvt_key *key)
{
    uint64_t w[4];
    _Static_assert(sizeof(w) == sizeof(*key), "all of the key");
    memcpy(w, key, sizeof(w));
    uint64_t h = w[0] ^ rotate(w[1], 17) ^ rotate(w[2], 31) ^ rotate(w[3], 47) ^ rotate(ns, 55);
    h *= UINT64_C(0x9e3779b97f4a7c15);
    h ^= h >> 32;
    return h != 0 ? h : 1;
}

static bool in_sample(const struct ideal *ideal, uint64_t hash)
{
    return hash <= UINT64_MAX >> ideal->shift;
}

/* The place of the hash, or the free one where it would go. */
static uint64_t *place_find(uint64_t *table, uint64_t hash)
{
    uint32_t i = (uint32_t)hash & (PLACES - 1);
    while (table[i] != 0 && table[i] != hash)
        i = (i + 1) & (PLACES - 1);
    return &table[i];
}

static void halve(struct ideal *ideal)
{
    uint64_t *old = ideal->table;
    ideal->shift++;
    ideal->n = 0;
    for (unsigned i = 0; i < PLACES; i++) {
        if (old[i] != 0 && in_sample(ideal, old[i])) {
            *place_find(ideal->spare, old[i]) = old[i];
            ideal->n++;
        }
    }
    memset(old, 0, PLACES * sizeof(*old));
    ideal->table = ideal->spare;
    ideal->spare = old;
}

void ideal_stored(struct ideal *ideal, uint64_t ns, const struct kvt_key *keys, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        uint64_t hash = key_hash(ns, &keys[i]);
        if (!in_sample(ideal, hash))
            continue;
        uint64_t *place = place_find(ideal->table, hash);
        if (*place == hash)
            continue;
        *place = hash;
        if (++ideal->n == KEYS_MAX)
            halve(ideal);
    }
}

void ideal_missed(struct ideal *ideal, uint64_t ns, const struct kvt_key *keys, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        uint64_t hash = key_hash(ns, &keys[i]);
        if (in_sample(ideal, hash) && *place_find(ideal->table, hash) == hash)
            ideal->n_avoidable += UINT64_C(1) << ideal->shift;
    }
}

uint64_t ideal_avoidable(const struct ideal *ideal)
{
    return ideal->n_avoidable;
}
