/* SPDX-License-Identifier: Apache-2.0 */
/* The tables behind parser, help, man page and completion. */
#include <string.h>

#include "kvctl.h"

const struct kvctl_option_def kvctl_options[KVCTL_OPT_N] = {
#define KVCTL_OPTION_DEF(id, letter, name, argument, completes, help)                              \
    {letter, name, argument, completes, help},
    KVCTL_OPTION_MAP(KVCTL_OPTION_DEF)
#undef KVCTL_OPTION_DEF
};

const struct kvctl_exit_text kvctl_exit_texts[] = {
    {KVCTL_OK, "done; what was asked for is there"},
    {KVCTL_NOT_FOUND, "it is not there: no such chunk, namespace, pin, job, key or counter"},
    {KVCTL_USAGE, "wrong usage; nothing was tried"},
    {KVCTL_UNREACHABLE, "no agent answers, it may not be asked, or it is stopping"},
    {KVCTL_FAILED, "the agent refused, a file or stdout failed, or a job did not end well"},
    {KVCTL_LATE, "no answer within --timeout"},
    {KVCTL_BAD, "damage was found: verify, get-chunk; doctor: a finding is FAIL"},
    {KVCTL_INTERRUPTED, "interrupted; a job that was waited for is cancelled"},
    {KVCTL_OK, NULL},
};

#define KINDS     "tiers namespaces sessions chunks leases pins jobs"
#define ONE_KINDS "tier namespace session chunk lease pin job"
#define CHAIN     (KVCTL_BIT(NAMESPACE) | KVCTL_BIT(TOKENS) | KVCTL_BIT(PARENT))
#define CHOICE                                                                                     \
    (KVCTL_BIT(TIER) | KVCTL_BIT(KEY_PREFIX) | KVCTL_BIT(MIN_BYTES) | KVCTL_BIT(MAX_BYTES) |       \
     KVCTL_BIT(PINNED) | KVCTL_BIT(LEASED))
#define SELECTION (CHAIN | CHOICE | KVCTL_BIT(SUBTREE) | KVCTL_BIT(ALL) | KVCTL_BIT(NO_WAIT))
#define KEYS_MAX  1024

#define CHAIN_TEXT                                                                                 \
    "Chunks are named by their keys in prompt order, 64 hexadecimal digits each, or\n"             \
    "by the token ids of the prompt in a file. Without -n the agent must have one\n"               \
    "namespace only."
#define SMOKE_TEXT                                                                                 \
    "put, get-chunk, exist and rm are for smoke tests: without -n they work in\n"                  \
    "namespaces of the model \"kvctl\" and touch no chunk of an engine."
#define JOB_TEXT                                                                                   \
    "It runs as a job in the agent. Progress goes to stderr; an interrupt cancels it,\n"           \
    "what was done stays done."

const struct kvctl_verb kvctl_verbs[] = {
    {"info", "", 0, 0, "", "The agent: version, state, uptime, process, sockets", "", 0,
     kvctl_run_info},
    {"get", "KIND", 1, 1, KINDS, "List tiers, namespaces, sessions, chunks, leases, pins or jobs",
     "Lists of any length pass through: the memory of one page is used. -o wide has\n"
     "more columns, -o json and -o yaml every field. Choices like --tier are for\n"
     "chunks, --owner is for pins.",
     KVCTL_BIT(NAMESPACE) | CHOICE | KVCTL_BIT(LIMIT) | KVCTL_BIT(OWNER), kvctl_run_get},
    {"describe", "KIND NAME", 2, 2, ONE_KINDS, "Every field of one thing that get lists",
     "NAME is what the first column of get shows; a chunk's is its key.", KVCTL_BIT(NAMESPACE),
     kvctl_run_describe},
    {"stat", "[NAME]...", 0, 64, "", "Counters of the agent, or their rates with -w",
     "With -w a line of rates per second is printed for every interval, until\n"
     "interrupted; -o json makes each an object on a line of its own.",
     KVCTL_BIT(WATCH) | KVCTL_BIT(INTERVAL) | KVCTL_BIT(COUNT), kvctl_run_stat},
    {"top", "", 0, 0, "", "A live screen of rates, hit ratio, tiers and namespaces",
     "q leaves. Where stdout is no terminal, frames follow each other.",
     KVCTL_BIT(INTERVAL) | KVCTL_BIT(COUNT), kvctl_run_top},
    {"lookup", "[KEY]...", 0, KEYS_MAX, "", "How much of a prompt is held, and where",
     CHAIN_TEXT "\nExits with 1 when not even the first chunk is held.", CHAIN, kvctl_run_lookup},
    {"put", "KEY FILE", 2, 2, "", "Store a file as a chunk ('-': standard input)",
     SMOKE_TEXT "\nA key that is held already is refused: a chunk never changes.", 0,
     kvctl_run_put},
    {"get-chunk", "KEY FILE", 2, 2, "", "Load a chunk into a file ('-': standard output)",
     SMOKE_TEXT "\nWith -n the bytes of any namespace's chunk are written as they are.",
     KVCTL_BIT(NAMESPACE), kvctl_run_get_chunk},
    {"exist", "KEY", 1, 1, "", "Whether a chunk is held: exit status 0 or 1", SMOKE_TEXT,
     KVCTL_BIT(NAMESPACE), kvctl_run_exist},
    {"rm", "KEY", 1, 1, "", "Delete a chunk; exit status 1 when it is not there", SMOKE_TEXT,
     KVCTL_BIT(NAMESPACE) | KVCTL_BIT(FORCE), kvctl_run_rm},
    {"pin", "[KEY]...", 0, KEYS_MAX, "", "Keep chunks, and all before them, from being evicted",
     CHAIN_TEXT "\nPins end with unpin, --ttl, or the agent.",
     CHAIN | KVCTL_BIT(TTL) | KVCTL_BIT(OWNER), kvctl_run_pin},
    {"unpin", "[PIN|KEY]...", 0, KEYS_MAX, "", "End a pin, by its id, its owner or its chunks", "",
     CHAIN | KVCTL_BIT(OWNER), kvctl_run_unpin},
    {"prefetch", "[KEY]...", 0, KEYS_MAX, "", "Bring chunks from NVMe to host memory",
     CHAIN_TEXT "\n" JOB_TEXT, SELECTION, kvctl_run_prefetch},
    {"demote", "[KEY]...", 0, KEYS_MAX, "", "Free host memory of chunks, after they are on NVMe",
     CHAIN_TEXT "\n" JOB_TEXT, SELECTION | KVCTL_BIT(FORCE) | KVCTL_BIT(DRY_RUN), kvctl_run_demote},
    {"clear", "[KEY]...", 0, KEYS_MAX, "", "Delete chunks: by key, subtree, namespace, tier, size",
     CHAIN_TEXT "\nWith --tier the copies in that tier go, and other copies stay. Pinned chunks\n"
                "are skipped unless --force is given. " JOB_TEXT,
     SELECTION | KVCTL_BIT(FORCE) | KVCTL_BIT(DRY_RUN), kvctl_run_clear},
    {"verify", "[KEY]...", 0, KEYS_MAX, "", "Read chunks on NVMe and check their checksums",
     "Without a choice everything on NVMe is verified. Damaged chunks are dropped; any\n"
     "makes the exit status 6. " JOB_TEXT,
     SELECTION & ~(KVCTL_BIT(ALL) | KVCTL_BIT(TIER)), kvctl_run_verify},
    {"cancel", "JOB", 1, 1, "", "Stop a job", "", 0, kvctl_run_cancel},
    {"config", "get [KEY]", 1, 2, "get", "The agent's effective config, and where it comes from",
     "KEY may be a section: 'kvctl config get host'.", 0, kvctl_run_config},
    {"log-level", "[LEVEL]", 0, 1, "error warn info debug trace", "Show or set what is logged",
     "It holds until the next change, reload or restart.", 0, kvctl_run_log_level},
    {"doctor", "", 0, 0, "", "What the agent suffers from on this machine, with remedies",
     "Sockets and who may use them, config, huge pages, memlock, io_uring, memory,\n"
     "CPUs, NUMA, files, clock, disks. Works without an agent too, then by --config;\n"
     "where one runs, that file is checked for its next start. Changes nothing. Run\n"
     "it as the agent's user. Exit status 6 when a finding is FAIL.",
     KVCTL_BIT(CONFIG), kvctl_run_doctor},
    {"completion", "SHELL", 1, 1, "bash zsh fish", "Print the completion script of a shell",
     "bash: source <(kvctl completion bash); zsh: the same with zsh;\n"
     "fish: kvctl completion fish | source.",
     0, kvctl_run_completion},
    {NULL},
};

const struct kvctl_verb *kvctl_verb_find(const char *name)
{
    for (const struct kvctl_verb *verb = kvctl_verbs; verb->name != NULL; verb++) {
        if (strcmp(verb->name, name) == 0)
            return verb;
    }
    return NULL;
}
