/* SPDX-License-Identifier: Apache-2.0 */
/* A trace file; what is accepted is consistent, and the yardsticks can be taken from it. */
#include "fuzz.h"
#include "kvt/util.h"
#include "offline.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct kvt_trace *trace = NULL;
    struct kvt_error err = {0};
    if (kvt_trace_parse((const char *)data, bytes, "fuzz", 0, &trace, &err) != KVT_OK) {
        KVT_ASSERT(trace == NULL && err.msg[0] != '\0');
        return 0;
    }
    uint64_t n_blocks = 0;
    for (size_t i = 0; i < trace->n_requests; i++) {
        const struct kvt_trace_request *req = &trace->requests[i];
        KVT_ASSERT(req->first_block == n_blocks);
        KVT_ASSERT(i == 0 || req->timestamp_ms >= req[-1].timestamp_ms);
        n_blocks += req->n_blocks;
    }
    KVT_ASSERT(trace->n_requests > 0 && n_blocks == trace->n_blocks);
    for (uint64_t i = 0; i < n_blocks; i++)
        KVT_ASSERT(trace->blocks[i] < trace->n_distinct);
    uint64_t ideal = kvt_offline_ideal_hits(trace);
    uint64_t n_hits = 0;
    if (kvt_offline_lru_hits(trace, 3, &n_hits) == KVT_OK)
        KVT_ASSERT(n_hits <= ideal);
    if (kvt_offline_optimum_hits(trace, 3, &n_hits) == KVT_OK)
        KVT_ASSERT(n_hits <= ideal);
    kvt_trace_destroy(trace);
    return 0;
}
