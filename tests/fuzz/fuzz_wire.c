/* SPDX-License-Identifier: Apache-2.0 */
/* Bytes that a client sent: what the checks let through must be inside the message. */
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"
#include "kvt/util.h"
#include "kvt/wire_check.h"

/* Read every byte of an array, so that the sanitizer sees one that reaches past the message. */
static void touch(const void *data, size_t bytes)
{
    const unsigned char *p = data;
    static volatile unsigned char sink;
    for (size_t i = 0; i < bytes; i++)
        sink = p[i];
    (void)sink;
}

static void request_read(const void *msg)
{
    const struct kvt_wire_header *header = msg;
    switch (header->type) {
    case KVT_WIRE_LOOKUP: {
        const struct kvt_wire_lookup *lookup = msg;
        touch(kvt_wire_lookup_keys(lookup), lookup->n_keys * sizeof(struct kvt_key));
        break;
    }
    case KVT_WIRE_RESERVE: {
        const struct kvt_wire_reserve *reserve = msg;
        touch(kvt_wire_reserve_keys(reserve), reserve->n_keys * sizeof(struct kvt_key));
        break;
    }
    case KVT_WIRE_LOAD: {
        const struct kvt_wire_load *load = msg;
        touch(kvt_wire_load_keys(load), load->n_keys * sizeof(struct kvt_key));
        break;
    }
    case KVT_WIRE_COMMIT: {
        const struct kvt_wire_commit *commit = msg;
        touch(kvt_wire_commit_indexes(commit), commit->n_items * sizeof(uint32_t));
        for (uint32_t n_segments = 1; n_segments <= KVT_SEGMENTS_MAX; n_segments *= 3) {
            if (kvt_wire_commit_check(commit, n_segments) == KVT_OK &&
                (commit->flags & KVT_COMMIT_ABORT) == 0)
                touch(kvt_wire_commit_sums(commit),
                      (size_t)commit->n_items * n_segments * sizeof(uint64_t));
        }
        break;
    }
    case KVT_WIRE_NS_OPEN: {
        const struct kvt_wire_ns_open *open = msg;
        struct kvt_error err;
        if (kvt_ns_desc_check(&open->desc, &err) == KVT_OK) {
            KVT_ASSERT(memchr(open->desc.model, '\0', sizeof(open->desc.model)) != NULL);
            KVT_ASSERT(open->desc.chunk_bytes % open->desc.n_segments == 0);
        }
        break;
    }
    default:
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    if (bytes > KVT_WIRE_BYTES_MAX)
        return 0;
    /* A heap block of exactly this size: reading one byte past the message is seen. */
    void *msg = malloc(bytes);
    if (msg == NULL)
        return 0;
    memcpy(msg, data, bytes);
    if (kvt_wire_request_check(msg, bytes) == KVT_OK)
        request_read(msg);
    free(msg);
    return 0;
}
