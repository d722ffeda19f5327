/* SPDX-License-Identifier: Apache-2.0 */
/* A bar on stderr where that is a terminal, else a plain line every few seconds. */
#ifndef KVT_PROGRESS_H
#define KVT_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

struct kvt_progress {
    const char *what; /* borrowed */
    uint64_t total;
    uint64_t start_ns, shown_ns;
    bool terminal;
};

void kvt_progress_start(struct kvt_progress *progress, const char *what, uint64_t total);
/** Show that done of total is reached, with a detail behind it; cheap when it is too early to. */
void kvt_progress_show(struct kvt_progress *progress, uint64_t done, const char *detail);
void kvt_progress_end(struct kvt_progress *progress, uint64_t done, const char *detail);

#endif
