/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A kvtierd of one's own for the length of an experiment: started in a new folder, stopped and its
 * folder removed at the end. It dies with this process, however that ends.
 */
#ifndef KVT_KVBENCH_AGENT_H
#define KVT_KVBENCH_AGENT_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "kvt/status.h"

#define KVT_AGENT_SETS_MAX 32
#define KVT_AGENT_SET_MAX  320 /* bytes of a KEY=VALUE */

struct kvt_agent_options {
    const char *dir;     /* where the folder is made; NULL: /var/tmp (O_DIRECT wants a disk) */
    const char *program; /* of kvtierd; NULL: beside this executable, else in PATH */
    uint64_t nvme_bytes; /* of a store file in the folder; 0: none */
    char sets[KVT_AGENT_SETS_MAX][KVT_AGENT_SET_MAX]; /* KEY=VALUE for --set */
    unsigned n_sets;
};

struct kvt_agent;

/** Add KEY=VALUE, printf style. False: too many, or too long. */
bool kvt_agent_set(struct kvt_agent_options *options, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/**
 * Start an agent and wait until it is ready (30 s at most). Call from the main thread: the agent is
 * tied to the thread that started it.
 *
 * @return KVT_OK; else err tells cause and next step, with the last words of the agent's log.
 */
enum kvt_status kvt_agent_start(const struct kvt_agent_options *options, struct kvt_agent **agent_p,
                                struct kvt_error *err) KVT_MUST_CHECK;
/** Ask it to end, kill it after 10 s, remove the folder. NULL is allowed. */
void kvt_agent_stop(struct kvt_agent *agent);

const char *kvt_agent_socket(const struct kvt_agent *agent);
const char *kvt_agent_dir(const struct kvt_agent *agent);
/** Its store file. NULL: it has none, or --set put it elsewhere. */
const char *kvt_agent_store(const struct kvt_agent *agent);
/** From start to ready. */
uint64_t kvt_agent_ready_ns(const struct kvt_agent *agent);
/** CPU time of all its threads since it started. */
uint64_t kvt_agent_cpu_ns(const struct kvt_agent *agent);
/** End it now, without a drain: for agents whose content no longer matters. */
void kvt_agent_kill(struct kvt_agent *agent);

#endif
