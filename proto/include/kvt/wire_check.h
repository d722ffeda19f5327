/* SPDX-License-Identifier: Apache-2.0 */
/* Checks of what a client sent: outside data, of which nothing is trusted before these said so. */
#ifndef KVT_WIRE_CHECK_H
#define KVT_WIRE_CHECK_H

#include <stddef.h>

#include "kvt/wire.h"

/**
 * Check a request of a client: type, its length against header.bytes, `bytes` and its arrays, the
 * flags and the reserved fields.
 *
 * @param msg    8-byte aligned.
 * @param bytes  What recv returned.
 * @return KVT_OK: every array of the message is inside it (a COMMIT's checksums: see
 *         kvt_wire_commit_check); KVT_ERR_INVAL: the header and the fixed part are whole and can be
 *         answered, but a count, flag or reserved field is wrong; KVT_ERR_PROTO: end the session.
 */
enum kvt_status kvt_wire_request_check(const void *msg, size_t bytes) KVT_MUST_CHECK;

/**
 * The rest of the check of a COMMIT, whose length depends on its op's namespace.
 * @return KVT_OK or KVT_ERR_PROTO.
 */
enum kvt_status kvt_wire_commit_check(const struct kvt_wire_commit *commit,
                                      uint32_t n_segments) KVT_MUST_CHECK;

/* Arrays of a message, right after its fixed part. */
static inline const struct kvt_key *kvt_wire_lookup_keys(const struct kvt_wire_lookup *msg)
{
    return (const struct kvt_key *)(const void *)(msg + 1);
}

static inline const struct kvt_key *kvt_wire_reserve_keys(const struct kvt_wire_reserve *msg)
{
    return (const struct kvt_key *)(const void *)(msg + 1);
}

static inline const struct kvt_key *kvt_wire_load_keys(const struct kvt_wire_load *msg)
{
    return (const struct kvt_key *)(const void *)(msg + 1);
}

static inline const uint32_t *kvt_wire_commit_indexes(const struct kvt_wire_commit *msg)
{
    return (const uint32_t *)(const void *)(msg + 1);
}

/* Bytes of a COMMIT's indexes with their padding. */
static inline size_t kvt_wire_indexes_bytes(uint32_t n_items)
{
    return ((size_t)n_items * sizeof(uint32_t) + 7) & ~(size_t)7;
}

static inline const uint64_t *kvt_wire_commit_sums(const struct kvt_wire_commit *msg)
{
    return (const uint64_t *)(const void *)((const char *)(msg + 1) +
                                            kvt_wire_indexes_bytes(msg->n_items));
}

#endif
