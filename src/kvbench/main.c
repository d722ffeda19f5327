/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "kvt/interrupt.h"
#include "kvtier.h"
#include "commands.h"
#include "workload.h"

static void help(void)
{
    puts("Usage: kvbench COMMAND [OPTION]...\n"
         "Load generator for KVTier. Starts an agent of its own in a temporary folder and removes\n"
         "it at the end, unless --socket names one.\n"
         "\n"
         "Commands:\n"
         "  replay TRACE   replay a request trace, compare every byte loaded");
    for (const struct kvt_workload *w = kvt_workloads; w->name != NULL; w++)
        printf("  %-14s replay a built-in workload: %s\n", w->name, w->help);
    puts("  micro          each part of the data path beside its physical limit\n"
         "\n"
         "  --help         this text; 'kvbench COMMAND --help' has the options\n"
         "  --version      the version of kvbench\n"
         "\n"
         "Results go to stdout, progress to stderr.\n"
         "Exit codes: 0 ok; 1 wrong bytes, errors, or it could not run; 2 usage; 130 interrupted.");
}

int main(int argc, char **argv)
{
    const char *command = argc > 1 ? argv[1] : "";
    if (strcmp(command, "--help") == 0 || strcmp(command, "-h") == 0) {
        help();
        return KVT_EXIT_OK;
    }
    if (strcmp(command, "--version") == 0) {
        printf("kvbench %s\n", kvt_version());
        return KVT_EXIT_OK;
    }
    kvt_interrupt_setup();
    if (strcmp(command, "replay") == 0 || kvt_workload_find(command) != NULL)
        return kvt_command_replay(argc - 1, argv + 1);
    if (strcmp(command, "micro") == 0)
        return kvt_command_micro(argc - 1, argv + 1);
    fprintf(stderr, "kvbench: %s%s; try 'kvbench --help'\n",
            command[0] != '\0' ? "no command of the name " : "no command given", command);
    return KVT_EXIT_USAGE;
}
