/* SPDX-License-Identifier: Apache-2.0 */
/* What an agent costs when nobody asks it anything, and how soon a large one is there. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "kvt/interrupt.h"
#include "kvt/util.h"
#include "micro.h"

#define SETTLE_S  1
#define OBSERVE_S 5

static void sleep_s(unsigned seconds)
{
    uint64_t end_ns = kvt_now_ns() + seconds * UINT64_C(1000000000);
    while (!kvt_interrupted() && kvt_now_ns() < end_ns)
        nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
}

enum kvt_status kvt_micro_idle_cpu(struct kvt_micro *micro, struct kvt_error *err)
{
    if (micro->agent == NULL)
        return kvt_error_set(err, KVT_ERR_NOTSUP, "only for an agent that kvbench starts");
    sleep_s(SETTLE_S);
    uint64_t start_ns = kvt_now_ns(), cpu_ns = kvt_agent_cpu_ns(micro->agent);
    sleep_s(OBSERVE_S);
    uint64_t took_ns = kvt_now_ns() - start_ns;
    cpu_ns = kvt_agent_cpu_ns(micro->agent) - cpu_ns;
    json_array_append_new(micro->results,
                          json_pack("{s:s, s:f, s:f}", "name", "idle_cpu", "percent",
                                    100.0 * (double)cpu_ns / (double)took_ns, "seconds",
                                    (double)took_ns / 1e9));
    return KVT_OK;
}

/* Memory that could be had without pushing others out. 0: not to be found out. */
static uint64_t memory_available(void)
{
    FILE *file = fopen("/proc/meminfo", "re");
    char line[128];
    uint64_t kib = 0;
    while (file != NULL && fgets(line, sizeof(line), file) != NULL)
        if (sscanf(line, "MemAvailable: %" SCNu64, &kib) == 1)
            break;
    if (file != NULL)
        fclose(file);
    return kib * 1024;
}

enum kvt_status kvt_micro_ready(struct kvt_micro *micro, uint64_t arena_bytes,
                                struct kvt_error *err)
{
    if (memory_available() < arena_bytes + arena_bytes / 8)
        return kvt_error_set(err, KVT_ERR_NOTSUP, "not enough free memory");
    struct kvt_agent_options options = {.dir = micro->dir};
    struct kvt_agent *agent;
    if (!kvt_agent_set(&options, "host.bytes=%" PRIu64, arena_bytes))
        return kvt_error_set(err, KVT_ERR_INVAL, "micro: too many settings");
    enum kvt_status status = kvt_agent_start(&options, &agent, err);
    if (status != KVT_OK)
        return status;
    json_array_append_new(micro->results,
                          json_pack("{s:s, s:I, s:f}", "name", "ready_16gib", "arena_bytes",
                                    (json_int_t)arena_bytes, "seconds",
                                    (double)kvt_agent_ready_ns(agent) / 1e9));
    kvt_agent_kill(agent); /* its arena need not be filled to the end */
    kvt_agent_stop(agent);
    return KVT_OK;
}
