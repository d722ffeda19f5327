/* SPDX-License-Identifier: Apache-2.0 */
/* Changes of metadata by the million: what meta_bench and meta_fill have in common. */
#ifndef META_CHANGES_H
#define META_CHANGES_H

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvt/meta.h"
#include "kvt/util.h"

/** Wait until some changes are kept and count them. A write that failed ends the program. */
static inline void bench_meta_poll(struct kvt_meta *meta, uint64_t *n_done_p)
{
    static struct kvt_meta_done done[1024];
    struct pollfd fd = {.fd = kvt_meta_event_fd(meta), .events = POLLIN};
    (void)poll(&fd, 1, -1);
    unsigned n = kvt_meta_poll(meta, done, KVT_ARRAY_LEN(done));
    for (unsigned i = 0; i < n; i++) {
        if (done[i].status != KVT_OK) {
            fprintf(stderr, "a write of metadata failed\n");
            exit(1);
        }
    }
    *n_done_p += n;
}

/** A key of its own for each i. */
static inline void bench_meta_key(uint64_t i, struct kvt_key *key)
{
    for (unsigned k = 0; k < KVT_KEY_BYTES; k += 8) {
        uint64_t word = (i + k + 1) * UINT64_C(0x9e3779b97f4a7c15);
        memcpy(key->bytes + k, &word, 8);
    }
}

#endif
