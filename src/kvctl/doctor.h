/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kvctl doctor: what an agent on this machine would suffer from, each finding with a verdict and a
 * remedy. It changes nothing and needs no agent; where one runs, its own limits and its own config
 * are looked at.
 */
#ifndef KVT_KVCTL_DOCTOR_H
#define KVT_KVCTL_DOCTOR_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct kvctl;

enum doctor_verdict {
    DOCTOR_OK,
    DOCTOR_NOTE, /* nothing to do, but to know */
    DOCTOR_WARN, /* works, and costs speed, room or safety */
    DOCTOR_FAIL, /* an agent will not start, or will not serve */
};

struct doctor {
    const char *root; /* where /proc and /sys are: "" for the real ones, a folder for tests */
    struct kvctl *k;  /* whose sockets are looked at; NULL in tests of the machine */
    const char *config_file; /* NULL: none */
    pid_t pid;               /* of the agent; 0: none was found */
    json_t *config;          /* key -> text; NULL: not to be had */
    const char *check;       /* that is running */
    json_t *findings;
    unsigned n[4]; /* by verdict */
};

struct doctor_check {
    const char *name;
    void (*run)(struct doctor *d);
};
/* Each ends with an empty entry. Those of the agent come first: they find its process and config.
 */
extern const struct doctor_check doctor_agent_checks[];
extern const struct doctor_check doctor_machine_checks[];
extern const struct doctor_check doctor_disk_checks[];

void doctor_run(struct doctor *d, const struct doctor_check *checks);

/** Add a finding to the check that runs. remedy: what to do about it, "" for nothing. */
void doctor_add(struct doctor *d, enum doctor_verdict verdict, const char *remedy,
                const char *format, ...) __attribute__((format(printf, 4, 5)));

/* A value of the config; "" or 0: unknown. */
const char *doctor_config_text(const struct doctor *d, const char *key);
uint64_t doctor_config_bytes(const struct doctor *d, const char *key);

/* --- what checks read with -------------------------------------------------------------------- */

#define DOCTOR_LINE_BYTES 1024
/** First line of a file under the root; false: cannot be read. */
bool doctor_line(const struct doctor *d, const char *path, char line[DOCTOR_LINE_BYTES]);
bool doctor_number(const struct doctor *d, const char *path, uint64_t *value_p);
/** The rest of the line that begins with name, blanks skipped; as in /proc/meminfo. */
bool doctor_entry(const struct doctor *d, const char *path, const char *name,
                  char rest[DOCTOR_LINE_BYTES]);
/** Whether this user may write a file under the root. */
bool doctor_writable(const struct doctor *d, const char *path);
/** Path of a file of the agent's process, or of this one where there is no agent. */
void doctor_proc_path(const struct doctor *d, const char *name, char *path, size_t bytes);

#endif
