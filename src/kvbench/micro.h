/* SPDX-License-Identifier: Apache-2.0 */
/* kvbench micro: what each of its files measures. */
#ifndef KVT_KVBENCH_MICRO_H
#define KVT_KVBENCH_MICRO_H

#include <jansson.h>
#include <stdbool.h>

#include "agent.h"

struct kvt_micro {
    const char *socket;
    struct kvt_agent *agent; /* NULL: not ours */
    const char *dir;         /* for reference files: the file system of the store */
    uint64_t arena_bytes;
    uint64_t nvme_bytes;
    uint64_t seed;
    double seconds; /* to spend on a case */
    json_t *results;
    uint64_t bytes_wrong;
    uint64_t n_lookup_ids; /* used up to fill the index of the present agent */
};

/* Each appends its results. KVT_ERR_NOTSUP: cannot be measured here, err says why. */
enum kvt_status kvt_micro_host(struct kvt_micro *micro, bool store, bool load,
                               uint64_t object_bytes, struct kvt_error *err) KVT_MUST_CHECK;
enum kvt_status kvt_micro_nvme(struct kvt_micro *micro, bool write, bool read,
                               uint64_t object_bytes, struct kvt_error *err) KVT_MUST_CHECK;
enum kvt_status kvt_micro_lookup(struct kvt_micro *micro, uint64_t n_chunks_in_index,
                                 struct kvt_error *err) KVT_MUST_CHECK;
/** Needs an agent with a store file. */
enum kvt_status kvt_micro_lookup_under_load(struct kvt_micro *micro,
                                            struct kvt_error *err) KVT_MUST_CHECK;
enum kvt_status kvt_micro_idle_cpu(struct kvt_micro *micro, struct kvt_error *err) KVT_MUST_CHECK;
/** Starts an agent of its own. */
enum kvt_status kvt_micro_ready(struct kvt_micro *micro, uint64_t arena_bytes,
                                struct kvt_error *err) KVT_MUST_CHECK;

/* Rounds of one case: ours and the reference, one after the other, so that drift meets both. */
#define KVT_ROUNDS_MAX 256
struct kvt_rounds {
    float seconds[KVT_ROUNDS_MAX], reference_seconds[KVT_ROUNDS_MAX];
    float copying_seconds[KVT_ROUNDS_MAX]; /* reference beside a thread that copies; 0: none */
    unsigned n;
};
/** Append {name, object_bytes, bytes_per_s, reference, reference_bytes_per_s, ratio, rounds}, and
 * {reference_copying_bytes_per_s, ratio_copying} if that was measured. */
void kvt_rounds_report(const struct kvt_rounds *rounds, struct kvt_micro *micro, const char *name,
                       uint64_t object_bytes, uint64_t round_bytes, const char *reference);

#endif
