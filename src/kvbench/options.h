/* SPDX-License-Identifier: Apache-2.0 */
/* What the commands share: exit codes, and options read with a message that names the option. */
#ifndef KVT_KVBENCH_OPTIONS_H
#define KVT_KVBENCH_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

enum kvt_exit {
    KVT_EXIT_OK = 0,
    KVT_EXIT_FAILED = 1, /* wrong bytes, errors, or it could not run */
    KVT_EXIT_USAGE = 2,
    KVT_EXIT_INTERRUPTED = 130,
};

/* Each prints what is wrong on stderr and returns false when text is not what is wanted. */
bool kvt_option_bytes(const char *option, const char *text, uint64_t min, uint64_t max,
                      uint64_t *value_p); /* also "1.5MiB" */
bool kvt_option_number(const char *option, const char *text, uint64_t min, uint64_t max,
                       uint64_t *value_p);
bool kvt_option_real(const char *option, const char *text, double min, double max, double *value_p);

#define KVT_OPTION_LIST_MAX 32
/* Sizes separated by commas. */
bool kvt_option_bytes_list(const char *option, const char *text, uint64_t min, uint64_t max,
                           uint64_t values[KVT_OPTION_LIST_MAX], unsigned *n_p);

/* The commands: argv[0] is the command's name. */
int kvt_command_replay(int argc, char **argv);
int kvt_command_micro(int argc, char **argv);

#endif
