/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Completion. The scripts of the shells only ask: "kvctl __complete WORD..." prints what the last
 * word may become, a candidate a line with its description behind a tab, or a line ":file" where
 * the shell shall complete file names. So there is one table for all shells.
 */
#include <stdio.h>
#include <string.h>

#include "kvctl.h"

static void candidate_print(const char *prefix, const char *candidate, const char *text)
{
    if (strncmp(candidate, prefix, strlen(prefix)) == 0)
        printf("%s\t%s\n", candidate, text);
}

/* "one two", or what begins with @. before: stands before each candidate ("--output="). */
static void words_complete(const char *words, const char *before, const char *prefix)
{
    if (strcmp(words, "@file") == 0) {
        puts(":file");
        return;
    }
    if (strcmp(words, "@verb") == 0) {
        for (const struct kvctl_verb *v = kvctl_verbs; v->name != NULL; v++)
            candidate_print(prefix, v->name, v->summary);
        return;
    }
    while (*words != '\0') {
        int n = (int)strcspn(words, " ");
        if (strncmp(words, prefix, strlen(prefix)) == 0 && (size_t)n >= strlen(prefix))
            printf("%s%.*s\t\n", before, n, words);
        words += n + (words[n] == ' ');
    }
}

/* The option that a word names; NULL: none. *value_p: what is behind its "=", or NULL. */
static const struct kvctl_option_def *option_of(const char *word, const char **value_p)
{
    *value_p = NULL;
    for (int i = 0; i < KVCTL_OPT_N; i++) {
        const struct kvctl_option_def *o = &kvctl_options[i];
        size_t n = strlen(o->name);
        if (strncmp(word, "--", 2) == 0 && strncmp(word + 2, o->name, n) == 0 &&
            (word[2 + n] == '\0' || word[2 + n] == '=')) {
            *value_p = word[2 + n] == '=' ? word + 3 + n : NULL;
            return o;
        }
        if (o->letter != '\0' && word[0] == '-' && word[1] == o->letter && word[2] == '\0')
            return o;
    }
    return NULL;
}

static void options_complete(const struct kvctl_verb *verb, const char *prefix)
{
    uint64_t options = KVCTL_COMMON_OPTIONS;
    options |= verb != NULL ? verb->options : KVCTL_BIT(VERSION);
    for (int i = 0; i < KVCTL_OPT_N; i++) {
        char name[64];
        snprintf(name, sizeof(name), "--%s", kvctl_options[i].name);
        if ((options >> i & 1) != 0)
            candidate_print(prefix, name, kvctl_options[i].help);
    }
}

int kvctl_complete(int n_words, char **words)
{
    const struct kvctl_verb *verb = NULL;
    const struct kvctl_option_def *pending = NULL; /* waits for its value */
    const char *value;
    int n_arguments = 0;
    if (n_words == 0)
        return KVCTL_OK;
    for (int i = 0; i < n_words - 1; i++) {
        if (pending != NULL) {
            pending = NULL;
        } else if (words[i][0] == '-') {
            pending = option_of(words[i], &value);
            if (pending != NULL && (pending->argument == NULL || value != NULL))
                pending = NULL;
        } else if (verb == NULL) {
            verb = kvctl_verb_find(words[i]);
            if (verb == NULL)
                return KVCTL_OK;
        } else {
            n_arguments++;
        }
    }
    const char *last = words[n_words - 1];
    const struct kvctl_option_def *option = last[0] == '-' ? option_of(last, &value) : NULL;
    if (pending != NULL) {
        words_complete(pending->completes, "", last);
    } else if (option != NULL && value != NULL) {
        char before[64];
        snprintf(before, sizeof(before), "--%s=", option->name);
        words_complete(option->completes, before, value);
    } else if (last[0] == '-') {
        options_complete(verb, last);
    } else if (verb == NULL) {
        words_complete("@verb", "", last);
    } else if (n_arguments == 0) {
        words_complete(verb->completes, "", last);
    } else if (n_arguments == 1 && strcmp(verb->arguments, "KEY FILE") == 0) {
        puts(":file");
    }
    return KVCTL_OK;
}

static const char bash_script[] =
    "# bash completion of kvctl\n"
    "_kvctl()\n"
    "{\n"
    "    local line current=${COMP_WORDS[COMP_CWORD]} words=(\"${COMP_WORDS[@]:1:COMP_CWORD}\")\n"
    "    # bash splits words at \"=\"; --option=value is one\n"
    "    if [[ $COMP_CWORD -ge 2 && $current == \"=\" ]]; then\n"
    "        words=(\"${words[@]:0:COMP_CWORD-2}\" \"${COMP_WORDS[COMP_CWORD-1]}=\") current=\n"
    "    elif [[ $COMP_CWORD -ge 3 && ${COMP_WORDS[COMP_CWORD-1]} == \"=\" ]]; then\n"
    "        words=(\"${words[@]:0:COMP_CWORD-3}\" \"${COMP_WORDS[COMP_CWORD-2]}=$current\")\n"
    "    fi\n"
    "    COMPREPLY=()\n"
    "    while IFS= read -r line; do\n"
    "        if [[ $line == :file ]]; then\n"
    "            compopt -o filenames 2>/dev/null\n"
    "            mapfile -t COMPREPLY < <(compgen -f -- \"$current\")\n"
    "            return\n"
    "        fi\n"
    "        line=${line%%$'\\t'*}\n"
    "        [[ ${words[-1]} == *=* ]] && line=${line#*=}\n"
    "        COMPREPLY+=(\"$line\")\n"
    "    done < <(\"${COMP_WORDS[0]}\" __complete \"${words[@]}\" 2>/dev/null)\n"
    "}\n"
    "complete -F _kvctl kvctl\n";

static const char zsh_script[] =
    "#compdef kvctl\n"
    "# zsh completion of kvctl\n"
    "_kvctl()\n"
    "{\n"
    "    local line\n"
    "    local -a found\n"
    "    for line in ${(f)\"$(${(Q)words[1]} __complete \"${(@Q)words[2,CURRENT]}\" "
    "2>/dev/null)\"}; "
    "do\n"
    "        if [[ $line == :file ]]; then\n"
    "            [[ ${words[CURRENT]} == --*=* ]] && compset -P '*='\n"
    "            _files\n"
    "            return\n"
    "        fi\n"
    "        found+=(\"${${line%%$'\\t'*}//:/\\\\:}:${line#*$'\\t'}\")\n"
    "    done\n"
    "    _describe kvctl found\n"
    "}\n"
    "if [[ ${funcstack[1]} == _kvctl ]]; then\n"
    "    _kvctl \"$@\"\n"
    "else\n"
    "    compdef _kvctl kvctl\n"
    "fi\n";

static const char fish_script[] =
    "# fish completion of kvctl\n"
    "function __kvctl_complete\n"
    "    set -l words (commandline -opc) (commandline -ct)\n"
    "    set -l found ($words[1] __complete $words[2..-1] 2>/dev/null)\n"
    "    if test \"$found[1]\" = :file\n"
    "        __fish_complete_path (string replace -r '^--[a-z-]+=' '' -- $words[-1])\n"
    "    else\n"
    "        string join \\n -- $found\n"
    "    end\n"
    "end\n"
    "complete -c kvctl -f -a '(__kvctl_complete)'\n";

enum kvctl_exit kvctl_run_completion(struct kvctl *k, int argc, char **argv)
{
    static const struct {
        const char *shell, *script;
    } scripts[] = {{"bash", bash_script}, {"zsh", zsh_script}, {"fish", fish_script}};
    (void)k;
    (void)argc;
    for (size_t i = 0; i < sizeof(scripts) / sizeof(scripts[0]); i++) {
        if (strcmp(argv[0], scripts[i].shell) == 0) {
            fputs(scripts[i].script, stdout);
            return KVCTL_OK;
        }
    }
    return kvctl_fail(KVCTL_USAGE, "completion: \"%s\" is none of bash, zsh, fish", argv[0]);
}
