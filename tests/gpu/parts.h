/* SPDX-License-Identifier: Apache-2.0 */
/* What the programs of this folder share: an arena without an agent. */
#ifndef KVT_TEST_GPU_PARTS_H
#define KVT_TEST_GPU_PARTS_H

#include <stdbool.h>

#include "cuda_pin.h"

/** One map of zeros at `base`; false: no memory. */
bool parts_arena_init(struct kvt_arena *arena, uint64_t base, uint64_t bytes);
void parts_arena_fini(struct kvt_arena *arena);

/** Wait until all of it is registered; only tests wait for it. */
void parts_pin_all(struct kvt_pin *pin, const struct kvt_arena *arena);

#endif
