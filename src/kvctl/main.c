/* SPDX-License-Identifier: Apache-2.0 */
/* Arguments: which verb, with which options; the rest is the verb's. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client.h"
#include "kvctl.h"
#include "kvt/units.h"
#include "kvt/util.h"

#define SOCKET_DEFAULT "/run/kvtier/kvtierd.sock"
#define TIMEOUT_NS     (5 * KVT_NS_PER_S)
#define TIMEOUT_MAX_NS (3600 * KVT_NS_PER_S)
#define OPTION_BASE    256 /* what getopt returns for option 0 */

/* --- sockets --------------------------------------------------------------------------------- */

static bool path_copy(char *to, size_t bytes, const char *from, const char *option)
{
    if (from[0] != '\0' && strlen(from) < bytes) {
        memcpy(to, from, strlen(from) + 1);
        return true;
    }
    (void)kvctl_fail(KVCTL_USAGE,
                     "%s: \"%s\" is not a path of 1 to %zu bytes, which is what a "
                     "socket may have",
                     option, from, bytes - 1);
    return false;
}

/* What option, environment or else derivation say; see the man page. */
static bool sockets_resolve(struct kvctl *k)
{
    static const char suffix[] = ".sock", control_suffix[] = ".control.sock";
    const char *session = k->values[KVCTL_OPT_SOCKET];
    const char *control = k->values[KVCTL_OPT_CONTROL];
    if (session == NULL)
        session = getenv("KVTIER_SOCKET");
    if (session == NULL || session[0] == '\0')
        session = SOCKET_DEFAULT;
    if (!path_copy(k->socket_path, sizeof(k->socket_path), session, "--socket"))
        return false;
    if (control == NULL && k->values[KVCTL_OPT_SOCKET] == NULL)
        control = getenv("KVTIER_CONTROL");
    if (control != NULL && control[0] != '\0')
        return path_copy(k->control_path, sizeof(k->control_path), control, "--control");
    size_t stem = strlen(session);
    if (stem >= strlen(suffix) && strcmp(session + stem - strlen(suffix), suffix) == 0)
        stem -= strlen(suffix);
    char derived[sizeof(k->control_path) + sizeof(control_suffix)];
    snprintf(derived, sizeof(derived), "%.*s%s", (int)stem, session, control_suffix);
    return path_copy(k->control_path, sizeof(k->control_path), derived, "--control");
}

/* --- options --------------------------------------------------------------------------------- */

static bool style_resolve(struct kvctl *k)
{
    static const char *const formats[] = {"table", "wide", "json", "yaml"};
    const char *format = k->values[KVCTL_OPT_OUTPUT];
    const char *color = k->values[KVCTL_OPT_COLOR];
    const char *no_color = getenv("NO_COLOR");
    const char *term = getenv("TERM");
    unsigned i = 0;
    while (format != NULL && i < KVT_ARRAY_LEN(formats) && strcmp(format, formats[i]) != 0)
        i++;
    if (i == KVT_ARRAY_LEN(formats)) {
        (void)kvctl_fail(KVCTL_USAGE, "--output: \"%s\" is none of table, wide, json, yaml",
                         format);
        return false;
    }
    k->style.format = (enum kvctl_format)i;
    if (color == NULL || strcmp(color, "auto") == 0)
        k->style.color = isatty(STDOUT_FILENO) == 1 && (no_color == NULL || no_color[0] == '\0') &&
                         (term == NULL || strcmp(term, "dumb") != 0);
    else if (strcmp(color, "always") == 0)
        k->style.color = true;
    else if (strcmp(color, "never") != 0) {
        (void)kvctl_fail(KVCTL_USAGE, "--color: \"%s\" is none of auto, always, never", color);
        return false;
    }
    return true;
}

static bool timeout_resolve(struct kvctl *k)
{
    const char *text = k->values[KVCTL_OPT_TIMEOUT];
    k->timeout_ns = TIMEOUT_NS;
    if (text == NULL || (kvt_time_parse(text, &k->timeout_ns) && k->timeout_ns >= KVT_NS_PER_MS &&
                         k->timeout_ns <= TIMEOUT_MAX_NS))
        return true;
    (void)kvctl_fail(KVCTL_USAGE, "--timeout: \"%s\" is not a time from 1ms to 1h (units: %s)",
                     text, KVT_TIME_UNITS);
    return false;
}

/* Values of the options; argv is left with the verb and its arguments from optind on. */
static bool options_parse(struct kvctl *k, int argc, char **argv)
{
    struct option longs[KVCTL_OPT_N + 1] = {{0}};
    char letters[2 * KVCTL_OPT_N + 2] = ":"; /* as getopt wants them */
    size_t n_letters = 1;
    for (int i = 0; i < KVCTL_OPT_N; i++) {
        const struct kvctl_option_def *def = &kvctl_options[i];
        longs[i] =
            (struct option){.name = def->name,
                            .has_arg = def->argument != NULL ? required_argument : no_argument,
                            .val = OPTION_BASE + i};
        if (def->letter != '\0')
            letters[n_letters++] = def->letter;
        if (def->letter != '\0' && def->argument != NULL)
            letters[n_letters++] = ':';
    }
    int id;
    opterr = 0; /* said below, under the name that all messages bear */
    while ((id = getopt_long(argc, argv, letters, longs, NULL)) != -1) {
        int option = id - OPTION_BASE;
        for (int i = 0; id < OPTION_BASE && i < KVCTL_OPT_N; i++) {
            if (kvctl_options[i].letter == id && id != '\0')
                option = i;
        }
        if (id == '?' || id == ':' || option < 0) {
            (void)kvctl_fail(
                KVCTL_USAGE, "%s %s; try 'kvctl --help'",
                id == ':' ? "a value is missing after" : "no such option:", argv[optind - 1]);
            return false;
        }
        k->values[option] = optarg != NULL ? optarg : "";
    }
    return true;
}

static enum kvctl_exit verb_run(struct kvctl *k, const struct kvctl_verb *verb, int argc,
                                char **argv)
{
    for (int i = 0; i < KVCTL_OPT_N; i++) {
        if (k->values[i] != NULL && ((verb->options | KVCTL_COMMON_OPTIONS) >> i & 1) == 0)
            return kvctl_fail(KVCTL_USAGE, "%s takes no --%s; try 'kvctl %s --help'", verb->name,
                              kvctl_options[i].name, verb->name);
    }
    if (argc < verb->n_min || argc > verb->n_max)
        return kvctl_fail(KVCTL_USAGE, "usage: kvctl %s%s%s; try 'kvctl %s --help'", verb->name,
                          verb->arguments[0] != '\0' ? " " : "", verb->arguments, verb->name);
    if (!sockets_resolve(k) || !style_resolve(k) || !timeout_resolve(k))
        return KVCTL_USAGE;
    enum kvctl_exit code = verb->run(k, argc, argv);
    kvctl_client_close(k);
    return code;
}

int main(int argc, char **argv)
{
    struct kvctl k = {0};
    if (argc > 1 && strcmp(argv[1], KVCTL_COMPLETE_VERB) == 0)
        return kvctl_complete(argc - 2, argv + 2);
    if (!options_parse(&k, argc, argv))
        return KVCTL_USAGE;
    if (kvctl_given(&k, KVCTL_OPT_VERSION)) {
        printf(KVCTL_NAME " %s\n", KVT_VERSION);
        return KVCTL_OK;
    }
    const char *name = optind < argc ? argv[optind] : "";
    const struct kvctl_verb *verb = kvctl_verb_find(name);
    if (verb == NULL && kvctl_given(&k, KVCTL_OPT_HELP) && name[0] == '\0') {
        kvctl_help_print();
        return KVCTL_OK;
    }
    if (verb == NULL)
        return kvctl_fail(KVCTL_USAGE, "%s%s; try 'kvctl --help'",
                          name[0] != '\0' ? "no such verb: " : "no verb given", name);
    if (kvctl_given(&k, KVCTL_OPT_HELP)) {
        kvctl_verb_help_print(verb);
        return KVCTL_OK;
    }
    return verb_run(&k, verb, argc - optind - 1, argv + optind + 1);
}
