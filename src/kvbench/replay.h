/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Replays a trace against an agent as engines would: look up the prompt, load the prefix that is
 * held, compare every byte of it, store what is missing.
 */
#ifndef KVT_KVBENCH_REPLAY_H
#define KVT_KVBENCH_REPLAY_H

#include "kvtier.h"
#include "trace.h"

struct kvt_geometry {
    uint64_t chunk_bytes; /* n_layers pieces of equal size */
    uint32_t n_layers, n_kv_heads, head_dim, dtype_bytes, tokens_per_chunk;
};

struct kvt_replay_config {
    const char *socket;
    const struct kvt_trace *trace;
    struct kvt_geometry geometry;
    uint64_t seed;      /* of keys, and so of bytes */
    unsigned n_clients; /* threads with a session each; requests are dealt in trace order */
    unsigned depth;     /* batches in flight per client; 1 makes one client's run repeatable */
    unsigned n_copy_threads;
    double time_scale;      /* 0: as fast as possible; else trace seconds per second */
    uint64_t store_wait_ns; /* how long a store may wait for room before it is dropped */
};

struct kvt_replay_result {
    uint64_t n_requests; /* done */
    uint64_t n_blocks;   /* of their prompts */
    uint64_t n_hits_host, n_hits_nvme;
    uint64_t bytes_loaded, bytes_verified, bytes_wrong;
    uint64_t n_stored, n_exists, n_dropped; /* chunks */
    uint64_t n_errors;
    char first_error[200]; /* what the first of them was */
    double seconds;
    double lookup_p50_us, lookup_p99_us; /* of a request's lookups */
    double load_p50_us, load_p99_us;     /* from the first submit to the last byte there; requests
                                            that hit */
};

/** Fill what an n_layers etc. of 0 leaves open, from chunk_bytes. */
void kvt_geometry_complete(struct kvt_geometry *geometry);

/** Register the geometry's namespace with a session. @return the handle, or KVTIER_ERR_*. */
int kvt_geometry_open(const struct kvt_geometry *geometry, kvt_session *session);

/**
 * @return KVT_OK, also when there were errors (result tells) or it was interrupted; else nothing
 *         was measured and err says why.
 */
enum kvt_status kvt_replay_run(const struct kvt_replay_config *config,
                               struct kvt_replay_result *result_p,
                               struct kvt_error *err) KVT_MUST_CHECK;

#endif
