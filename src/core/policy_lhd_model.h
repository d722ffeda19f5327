/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a chunk of some kind and age is worth to a cache, learnt from the accesses to a sample of
 * keys, whether they are held or not: a cache that learnt from what it keeps would only confirm
 * itself. Memory is fixed; work per access is bounded.
 *
 * Time is in units of 16 accesses, modulo 2^32. Nothing else has a scale: ages are counted in
 * buckets of a quarter of a doubling.
 */
#ifndef KVT_CORE_POLICY_LHD_MODEL_H
#define KVT_CORE_POLICY_LHD_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#define LHD_UNIT_SHIFT 4
#define LHD_KINDS      64
#define LHD_BUCKETS    124

/* What is remembered of a key that is gone. */
struct lhd_past {
    uint8_t turn;
    uint8_t uses;
};

struct lhd_model;

struct lhd_model *lhd_model_create(void); /* NULL: no memory */
void lhd_model_destroy(struct lhd_model *model);

/**
 * A key was stored or used, and is of this kind from now on.
 *
 * @param n_held  chunks in the tier; the more, the smaller a part of the keys is followed.
 */
void lhd_model_access(struct lhd_model *model, uint32_t print, unsigned kind, struct lhd_past past,
                      uint32_t now, uint32_t n_held);
/** Its kind has changed without an access. */
void lhd_model_rekind(struct lhd_model *model, uint32_t print, unsigned kind);
/** False: unknown; always so when only a part of the keys is followed, as the tables would then
 * hold for that part alone. */
bool lhd_model_past(const struct lhd_model *model, uint32_t print, struct lhd_past *past_p);

/** Uses to be expected per unit of time in its slot. */
float lhd_model_worth(const struct lhd_model *model, unsigned kind, uint32_t age);

uint64_t lhd_model_memory_bytes(const struct lhd_model *model);

#endif
