/* SPDX-License-Identifier: Apache-2.0 */
/* Help from the tables; the man page is made from what this prints. */
#include <stdio.h>
#include <string.h>

#include "kvctl.h"
#include "kvt/util.h"

#define OPTION_COLUMN 24
#define LINE_MAX_     80

/* Words of a text, however it is broken into lines, in a column that begins where the cursor is. */
static void words_print(const char *text, int column)
{
    int at = column;
    while (*text != '\0') {
        int n = (int)strcspn(text, " \n");
        if (at > column && at + 1 + n > LINE_MAX_) {
            printf("\n%*s", column, "");
            at = column;
        }
        at += printf("%s%.*s", at > column ? " " : "", n, text);
        text += n + (text[n] != '\0');
    }
    putchar('\n');
}

static void option_print(const struct kvctl_option_def *option)
{
    char name[64];
    char letter[8] = "";
    if (option->letter != '\0')
        snprintf(letter, sizeof(letter), "-%c, ", option->letter);
    int n = snprintf(name, sizeof(name), "  %s--%s%s%s", letter, option->name,
                     option->argument != NULL ? " " : "",
                     option->argument != NULL ? option->argument : "");
    printf("%s%*s", name, KVT_MAX(OPTION_COLUMN - n, 2), "");
    words_print(option->help, KVT_MAX(OPTION_COLUMN, n + 2));
}

static void options_print(uint64_t options)
{
    for (int i = 0; i < KVCTL_OPT_N; i++) {
        if ((options >> i & 1) != 0)
            option_print(&kvctl_options[i]);
    }
}

void kvctl_help_print(void)
{
    puts("Usage: kvctl VERB [ARGUMENT]... [OPTION]...\n"
         "See into the KVTier agent of this machine, and steer it.\n"
         "\n"
         "Verbs ('kvctl VERB --help' has more):");
    for (const struct kvctl_verb *v = kvctl_verbs; v->name != NULL; v++) {
        char usage[64];
        int n = snprintf(usage, sizeof(usage), "  %s%s%s", v->name,
                         v->arguments[0] != '\0' ? " " : "", v->arguments);
        printf("%s", usage);
        if (n > OPTION_COLUMN - 2) {
            putchar('\n');
            n = 0;
        }
        printf("%*s", OPTION_COLUMN - n, "");
        words_print(v->summary, OPTION_COLUMN);
    }
    puts("\nOptions of every verb:");
    options_print(KVCTL_COMMON_OPTIONS | KVCTL_BIT(VERSION));
    puts("\nResults go to stdout, progress and errors to stderr.\n\nExit status:");
    for (const struct kvctl_exit_text *e = kvctl_exit_texts; e->text != NULL; e++) {
        printf("  %-6d", e->code);
        words_print(e->text, 8);
    }
}

void kvctl_verb_help_print(const struct kvctl_verb *verb)
{
    printf("Usage: kvctl %s%s%s [OPTION]...\n", verb->name, verb->arguments[0] != '\0' ? " " : "",
           verb->arguments);
    printf("%s.\n", verb->summary);
    if (verb->text[0] != '\0') {
        putchar('\n');
        words_print(verb->text, 0);
    }
    puts("\nOptions:");
    options_print(verb->options | KVCTL_COMMON_OPTIONS);
}
