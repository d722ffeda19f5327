/* SPDX-License-Identifier: Apache-2.0 */
#include "counters.h"

#include <string.h>
#include <time.h>

#include "kvt/interrupt.h"
#include "kvt/util.h"

#define ANSWER_MS 5000
#define ARENA_NS  UINT64_C(60000000000)
#define SETTLE_NS UINT64_C(10000000000)
#define ASK_NS    5000000 /* there is no event for it: agents are used meanwhile */

bool kvt_counters_read(kvt_session *session, struct kvt_counters *counters)
{
    counters->n = KVT_COUNTERS_MAX;
    if (kvt_stats(session, counters->values, &counters->n, ANSWER_MS) == KVTIER_OK)
        return true;
    counters->n = 0;
    return false;
}

uint64_t kvt_counters_get(const struct kvt_counters *counters, const char *name)
{
    for (uint32_t i = 0; i < counters->n; i++) {
        const char *known = kvt_stat_name(i);
        if (known == NULL)
            break;
        if (strcmp(known, name) == 0)
            return counters->values[i];
    }
    return 0;
}

static void pause_before_asking_again(void)
{
    nanosleep(&(struct timespec){.tv_nsec = ASK_NS}, NULL);
}

bool kvt_counters_read_settled(kvt_session *session, struct kvt_counters *counters)
{
    uint64_t end_ns = kvt_now_ns() + SETTLE_NS;
    for (;;) {
        if (!kvt_counters_read(session, counters))
            return false;
        if ((kvt_counters_get(counters, "write_queue_chunks") == 0 &&
             kvt_counters_get(counters, "writing_bytes") == 0) ||
            kvt_now_ns() > end_ns || kvt_interrupted())
            return true;
        pause_before_asking_again();
    }
}

bool kvt_counters_wait_arena(kvt_session *session, uint64_t bytes)
{
    uint64_t end_ns = kvt_now_ns() + ARENA_NS;
    struct kvt_counters counters;
    while (kvt_now_ns() < end_ns && !kvt_interrupted()) {
        if (!kvt_counters_read(session, &counters))
            return false;
        if (kvt_counters_get(&counters, "host_capacity_bytes") >= bytes)
            return true;
        pause_before_asking_again();
    }
    return false;
}
