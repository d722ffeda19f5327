/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kvctl, the operator's command line: what its verbs share. Results go to stdout, progress and
 * errors to stderr; who finds a fault prints it and returns the exit code that stands for it.
 */
#ifndef KVT_KVCTL_H
#define KVT_KVCTL_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/un.h>

#include "output.h"

#define KVCTL_NAME "kvctl"

/* Part of the interface: scripts rely on them. Each has a line in kvctl_exit_texts. */
enum kvctl_exit {
    KVCTL_OK = 0,
    KVCTL_NOT_FOUND = 1,
    KVCTL_USAGE = 2,
    KVCTL_UNREACHABLE = 3,
    KVCTL_FAILED = 4,
    KVCTL_LATE = 5,
    KVCTL_BAD = 6,
    KVCTL_INTERRUPTED = 130,
};

/* Options: one list makes the parser, the help, the completion. X(ID, letter, name, argument, what
 * completes it, help) */
#define KVCTL_OPTION_MAP(X)                                                                        \
    X(OUTPUT, 'o', "output", "FORMAT", "table wide json yaml",                                     \
      "table (default), wide, json, yaml")                                                         \
    X(SOCKET, 0, "socket", "PATH", "@file", "the agent's session socket (KVTIER_SOCKET)")          \
    X(CONTROL, 0, "control", "PATH", "@file",                                                      \
      "the agent's control socket (KVTIER_CONTROL; derived from --socket)")                        \
    X(TIMEOUT, 0, "timeout", "TIME", "", "how long to wait for an answer (5s)")                    \
    X(COLOR, 0, "color", "WHEN", "auto always never",                                              \
      "auto (default: on a terminal, unless NO_COLOR is set), always, never")                      \
    X(HELP, 'h', "help", NULL, "", "this text")                                                    \
    X(VERSION, 0, "version", NULL, "", "the version of kvctl")                                     \
    X(NAMESPACE, 'n', "namespace", "ID", "",                                                       \
      "a namespace by its id, or the first digits of it, or its model if only one has it")         \
    X(TIER, 0, "tier", "TIER", "host nvme", "host or nvme")                                        \
    X(KEY_PREFIX, 0, "key-prefix", "HEX", "", "only keys that begin with these digits")            \
    X(MIN_BYTES, 0, "min-bytes", "SIZE", "", "only chunks of at least this size")                  \
    X(MAX_BYTES, 0, "max-bytes", "SIZE", "", "only chunks of at most this size")                   \
    X(PINNED, 0, "pinned", NULL, "", "only chunks that a pin holds")                               \
    X(LEASED, 0, "leased", NULL, "", "only chunks that a lease or a load holds")                   \
    X(LIMIT, 0, "limit", "N", "", "at most N rows")                                                \
    X(TOKENS, 0, "tokens", "FILE", "@file",                                                        \
      "token ids of the prompt in FILE ('-': standard input) instead of keys")                     \
    X(PARENT, 0, "parent", "KEY", "", "with --tokens: the key of the chunk before the first")      \
    X(TTL, 0, "ttl", "TIME", "", "end the pin after this time (default: it lasts until unpin)")    \
    X(OWNER, 0, "owner", "NAME", "", "whose pin it is (default: kvctl)")                           \
    X(SUBTREE, 0, "subtree", NULL, "", "also every chunk behind the keys in their prompts")        \
    X(ALL, 0, "all", NULL, "", "every chunk of every namespace")                                   \
    X(FORCE, 0, "force", NULL, "", "also what pins hold")                                          \
    X(DRY_RUN, 0, "dry-run", NULL, "", "count what would be done, change nothing")                 \
    X(NO_WAIT, 0, "no-wait", NULL, "", "print the job and return; 'kvctl get jobs' has its end")   \
    X(WATCH, 'w', "watch", NULL, "", "go on: a line of rates per interval")                        \
    X(INTERVAL, 0, "interval", "TIME", "", "between two samples (1s)")                             \
    X(COUNT, 0, "count", "N", "", "end after N samples (default: go on)")                          \
    X(CONFIG, 0, "config", "FILE", "@file",                                                        \
      "the agent's config: its faults, and where no agent runs what else is looked at "            \
      "(/etc/kvtier/kvtierd.yaml)")

enum kvctl_option {
#define KVCTL_OPTION_ENUM(id, letter, name, argument, completes, help) KVCTL_OPT_##id,
    KVCTL_OPTION_MAP(KVCTL_OPTION_ENUM)
#undef KVCTL_OPTION_ENUM
        KVCTL_OPT_N
};
#define KVCTL_BIT(id) (UINT64_C(1) << KVCTL_OPT_##id)

struct kvctl_option_def {
    char letter; /* 0: none */
    const char *name;
    const char *argument;  /* NULL: takes none */
    const char *completes; /* words, or @file, @key for what the shell finds; "": nothing */
    const char *help;
};
extern const struct kvctl_option_def kvctl_options[KVCTL_OPT_N];

struct kvctl_client;

/* One run of kvctl. */
struct kvctl {
    const char *values[KVCTL_OPT_N]; /* as given; "" for an option without argument; else NULL */
    char socket_path[sizeof(((struct sockaddr_un *)0)->sun_path)];
    char control_path[sizeof(((struct sockaddr_un *)0)->sun_path)];
    uint64_t timeout_ns;
    struct kvctl_style style;
    struct kvctl_client *client; /* NULL until the first call */
};

static inline bool kvctl_given(const struct kvctl *k, enum kvctl_option option)
{
    return k->values[option] != NULL;
}

/* --- the verbs (verbs.c) --------------------------------------------------------------------- */

/* argv: what follows the verb and is no option, argc of them, within the verb's limits. */
typedef enum kvctl_exit (*kvctl_run_fn)(struct kvctl *k, int argc, char **argv);

struct kvctl_verb {
    const char *name;
    const char *arguments; /* as in the usage line */
    int n_min, n_max;      /* arguments */
    const char *completes; /* of the first argument: words, or @file, @key */
    const char *summary;   /* a line in the list of verbs */
    const char *text;      /* what else to know, or ""; its line ends are spaces */
    uint64_t options;      /* KVCTL_BIT()s besides the common ones */
    kvctl_run_fn run;
};
extern const struct kvctl_verb kvctl_verbs[]; /* ends with an empty entry */
#define KVCTL_COMMON_OPTIONS                                                                       \
    (KVCTL_BIT(OUTPUT) | KVCTL_BIT(SOCKET) | KVCTL_BIT(CONTROL) | KVCTL_BIT(TIMEOUT) |             \
     KVCTL_BIT(COLOR) | KVCTL_BIT(HELP))

const struct kvctl_verb *kvctl_verb_find(const char *name); /* NULL: none */

struct kvctl_exit_text {
    enum kvctl_exit code;
    const char *text;
};
extern const struct kvctl_exit_text kvctl_exit_texts[]; /* ends with an empty text */

enum kvctl_exit kvctl_run_get(struct kvctl *k, int argc, char **argv);
enum kvctl_exit kvctl_run_describe(struct kvctl *k, int argc, char **argv);
enum kvctl_exit kvctl_run_info(struct kvctl *k, int argc, char **argv);
enum kvctl_exit kvctl_run_stat(struct kvctl *k, int argc, char **argv);
enum kvctl_exit kvctl_run_top(struct kvctl *k, int argc, char **argv);
enum kvctl_exit kvctl_run_put(struct kvctl *k, int argc, char **argv);
enum kvctl_exit kvctl_run_get_chunk(struct kvctl *k, int argc, char **argv);
enum kvctl_exit kvctl_run_exist(struct kvctl *k, int argc, char **argv);
enum kvctl_exit kvctl_run_rm(struct kvctl *k, int argc, char **argv);
enum kvctl_exit kvctl_run_pin(struct kvctl *k, int argc, char **argv);
enum kvctl_exit kvctl_run_unpin(struct kvctl *k, int argc, char **argv);
enum kvctl_exit kvctl_run_prefetch(struct kvctl *k, int argc, char **argv);
enum kvctl_exit kvctl_run_demote(struct kvctl *k, int argc, char **argv);
enum kvctl_exit kvctl_run_clear(struct kvctl *k, int argc, char **argv);
enum kvctl_exit kvctl_run_verify(struct kvctl *k, int argc, char **argv);
enum kvctl_exit kvctl_run_lookup(struct kvctl *k, int argc, char **argv);
enum kvctl_exit kvctl_run_cancel(struct kvctl *k, int argc, char **argv);
enum kvctl_exit kvctl_run_config(struct kvctl *k, int argc, char **argv);
enum kvctl_exit kvctl_run_log_level(struct kvctl *k, int argc, char **argv);
enum kvctl_exit kvctl_run_doctor(struct kvctl *k, int argc, char **argv);
enum kvctl_exit kvctl_run_completion(struct kvctl *k, int argc, char **argv);

/* --- help.c, completion.c --------------------------------------------------------------------- */

/* kvctl __complete WORD...: what the last word may become, for the scripts of the shells. */
#define KVCTL_COMPLETE_VERB "__complete"
int kvctl_complete(int n_words, char **words);

void kvctl_help_print(void);
void kvctl_verb_help_print(const struct kvctl_verb *verb);

/* --- errors (fail.c) -------------------------------------------------------------------------- */

/** Print "kvctl: ..." on stderr. @return code, so that a caller can write `return fail(...)`. */
enum kvctl_exit kvctl_fail(enum kvctl_exit code, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#endif
