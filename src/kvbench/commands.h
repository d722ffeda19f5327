/* SPDX-License-Identifier: Apache-2.0 */
/* The commands of kvbench, and how they end. */
#ifndef KVT_KVBENCH_COMMANDS_H
#define KVT_KVBENCH_COMMANDS_H

#include "kvt/options.h"

enum kvt_exit {
    KVT_EXIT_OK = 0,
    KVT_EXIT_FAILED = 1, /* wrong bytes, errors, or it could not run */
    KVT_EXIT_USAGE = 2,
    KVT_EXIT_INTERRUPTED = 130,
};

/* argv[0] is the command's name. */
int kvt_command_replay(int argc, char **argv);
int kvt_command_micro(int argc, char **argv);

#endif
