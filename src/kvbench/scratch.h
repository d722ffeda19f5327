/* SPDX-License-Identifier: Apache-2.0 */
/* Shared memory made as the agent makes its arena: what references copy and read into. */
#ifndef KVT_KVBENCH_SCRATCH_H
#define KVT_KVBENCH_SCRATCH_H

#include <stdbool.h>
#include <stdint.h>

#include "kvt/status.h"

struct kvt_tier;

struct kvt_scratch {
    uint8_t *memory;
    uint64_t bytes;
    uint64_t page_bytes;
    struct kvt_tier *tier;
};

/** huge: pages of 2 MiB where they can be had. Backed and touched when it returns. */
enum kvt_status kvt_scratch_open(uint64_t bytes, bool huge, struct kvt_scratch **scratch_p,
                                 struct kvt_error *err) KVT_MUST_CHECK;
void kvt_scratch_close(struct kvt_scratch *scratch); /* NULL is allowed */

#endif
