/* SPDX-License-Identifier: Apache-2.0 */
#include "kvt/progress.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "kvt/util.h"

#define BAR_WIDTH        30
#define SHOW_TERMINAL_NS UINT64_C(100000000)
#define SHOW_PLAIN_NS    UINT64_C(5000000000)

static void line(const struct kvt_progress *progress, uint64_t done, const char *detail)
{
    /* Nothing to do is all done. */
    double share = progress->total > 0 ? (double)done / (double)progress->total : 1.0;
    if (!progress->terminal) {
        fprintf(stderr, "%s: %3.0f %% (%" PRIu64 " of %" PRIu64 ") %s\n", progress->what,
                100.0 * share, done, progress->total, detail);
        return;
    }
    char bar[BAR_WIDTH + 1];
    unsigned n = (unsigned)(share * BAR_WIDTH);
    memset(bar, '.', BAR_WIDTH);
    memset(bar, '#', KVT_MIN(n, (unsigned)BAR_WIDTH));
    bar[BAR_WIDTH] = '\0';
    fprintf(stderr, "\r\033[K%s [%s] %3.0f %% %s", progress->what, bar, 100.0 * share, detail);
}

void kvt_progress_start(struct kvt_progress *progress, const char *what, uint64_t total)
{
    *progress = (struct kvt_progress){.what = what,
                                      .total = total,
                                      .start_ns = kvt_now_ns(),
                                      .terminal = isatty(STDERR_FILENO) == 1};
    progress->shown_ns = progress->start_ns;
}

void kvt_progress_show(struct kvt_progress *progress, uint64_t done, const char *detail)
{
    uint64_t now_ns = kvt_now_ns();
    if (now_ns - progress->shown_ns < (progress->terminal ? SHOW_TERMINAL_NS : SHOW_PLAIN_NS))
        return;
    progress->shown_ns = now_ns;
    line(progress, done, detail);
}

void kvt_progress_end(struct kvt_progress *progress, uint64_t done, const char *detail)
{
    line(progress, done, detail);
    if (progress->terminal)
        fputc('\n', stderr);
}
