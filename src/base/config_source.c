/* SPDX-License-Identifier: Apache-2.0 */
/* Who gave an option its value, and the environment, where keys have other names. */
#include "config_private.h"
#include "kvt/util.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

static const struct kvt_config_source *source_find(const struct kvt_config_sources *sources,
                                                   const struct config_target *target)
{
    for (unsigned i = 0; i < sources->n; i++) {
        const struct kvt_config_source *s = &sources->entries[i];
        if (s->field == target->field && s->index == target->index)
            return s;
    }
    return NULL;
}

void config_note(struct config_sink *sink, const struct config_target *target, unsigned long line,
                 bool refused)
{
    struct kvt_config_sources *sources = sink->sources;
    if (sources == NULL)
        return;
    const struct kvt_config_source *s = source_find(sources, target);
    if (s == NULL && sources->n == KVT_CONFIG_SOURCES_MAX)
        return;
    unsigned at = s != NULL ? (unsigned)(s - sources->entries) : sources->n++;
    sources->entries[at] = (struct kvt_config_source){.field = target->field,
                                                      .index = (uint32_t)target->index,
                                                      .origin = sink->origin,
                                                      .line = line,
                                                      .refused = refused};
}

/* host.bytes: HOST_BYTES behind the prefix. */
static void environment_name(const char *prefix, const char *path, char name[CONFIG_PATH_BYTES])
{
    int n = snprintf(name, CONFIG_PATH_BYTES, "%s%s", prefix, path);
    for (int i = (int)strlen(prefix); i < n && i < CONFIG_PATH_BYTES - 1; i++)
        name[i] = name[i] == '.' ? '_' : (char)toupper((unsigned char)name[i]);
}

void kvt_config_source_text(const struct kvt_config_field *fields,
                            const struct kvt_config_sources *sources, const char *path,
                            char text[KVT_CONFIG_SOURCE_TEXT])
{
    struct config_target target = config_find(fields, path);
    const struct kvt_config_source *s = NULL;
    char name[CONFIG_PATH_BYTES];
    if (sources != NULL && target.kind == CONFIG_VALUE)
        s = source_find(sources, &target);
    switch (s != NULL ? s->origin : KVT_CONFIG_DEFAULT) {
    case KVT_CONFIG_FILE:
        snprintf(text, KVT_CONFIG_SOURCE_TEXT, "%.256s:%lu", sources->file, s->line);
        break;
    case KVT_CONFIG_ENVIRONMENT:
        environment_name(sources->prefix, path, name);
        snprintf(text, KVT_CONFIG_SOURCE_TEXT, "environment %s", name);
        break;
    case KVT_CONFIG_ARGUMENT:
        snprintf(text, KVT_CONFIG_SOURCE_TEXT, "--set");
        break;
    case KVT_CONFIG_RUNTIME:
        snprintf(text, KVT_CONFIG_SOURCE_TEXT, "runtime");
        break;
    default:
        snprintf(text, KVT_CONFIG_SOURCE_TEXT, "default");
        break;
    }
}

/* Whether one is the other, or a field of the other's elements. */
static bool belongs_to(const struct kvt_config_field *one, const struct kvt_config_field *field)
{
    if (one == field)
        return true;
    if (field->type != KVT_CONFIG_LIST)
        return false;
    for (const struct kvt_config_field *e = field->fields; e->type != KVT_CONFIG_END; e++) {
        if (one == e)
            return true;
    }
    return false;
}

void kvt_config_source_move(const struct kvt_config_field *fields,
                            struct kvt_config_sources *sources, const char *from, const char *to)
{
    struct config_target old = config_find(fields, from);
    struct config_target new = config_find(fields, to);
    KVT_ASSERT(old.kind == CONFIG_VALUE && new.kind == CONFIG_VALUE);
    const struct kvt_config_source *s = sources != NULL ? source_find(sources, &old) : NULL;
    if (s == NULL)
        return;
    sources->entries[s - sources->entries].field = new.field;
    sources->entries[s - sources->entries].index = (uint32_t) new.index;
}

bool kvt_config_source_refused(const struct kvt_config_field *fields,
                               const struct kvt_config_sources *sources, const char *path)
{
    struct config_target target = config_find(fields, path);
    const struct kvt_config_source *s = source_find(sources, &target);
    return s != NULL && s->refused;
}

void kvt_config_source_keep(struct kvt_config_sources *sources,
                            const struct kvt_config_sources *old,
                            const struct kvt_config_field *field)
{
    unsigned n = 0;
    for (unsigned i = 0; i < sources->n; i++) {
        if (!belongs_to(sources->entries[i].field, field))
            sources->entries[n++] = sources->entries[i];
    }
    for (unsigned i = 0; i < old->n && n < KVT_CONFIG_SOURCES_MAX; i++) {
        if (belongs_to(old->entries[i].field, field))
            sources->entries[n++] = old->entries[i];
    }
    sources->n = n;
}

/* Value of the variable, or NULL. */
static const char *environment_find(const char *const *variables, const char *name)
{
    size_t n = strlen(name);
    for (; *variables != NULL; variables++) {
        if (strncmp(*variables, name, n) == 0 && (*variables)[n] == '=')
            return *variables + n + 1;
    }
    return NULL;
}

struct reader {
    const struct kvt_config_field *fields;
    void *object;
    const char *prefix;
    const char *const *variables;
    struct config_sink sink;
};

/* Assign what the environment has for the path. */
static void environment_read(struct reader *r, const char *path)
{
    char name[CONFIG_PATH_BYTES];
    char where[CONFIG_PATH_BYTES + 16];
    environment_name(r->prefix, path, name);
    const char *value = environment_find(r->variables, name);
    if (value == NULL)
        return;
    snprintf(where, sizeof(where), "environment %s", name);
    r->sink.name = where;
    config_path_assign(r->fields, r->object, path, value, &r->sink);
    r->sink.name = NULL;
}

/* Whether a variable, its prefix taken off, is the name of a key outside of lists. */
static bool name_known(const struct kvt_config_field *fields, const char *variable)
{
    char name[CONFIG_PATH_BYTES];
    size_t n = strcspn(variable, "=");
    for (const struct kvt_config_field *f = fields; f->type != KVT_CONFIG_END; f++) {
        environment_name("", f->key, name);
        if (f->type != KVT_CONFIG_LIST && strlen(name) == n && strncmp(variable, name, n) == 0)
            return true;
    }
    return false;
}

/* Likewise of a key in an element of the list: KEY_0_NAME. */
static bool element_known(const struct kvt_config_field *list, const char *variable)
{
    char name[CONFIG_PATH_BYTES];
    environment_name("", list->key, name);
    size_t n = strlen(name);
    if (strncmp(variable, name, n) != 0 || variable[n] != '_')
        return false;
    size_t n_digits = strspn(variable + n + 1, "0123456789");
    const char *rest = variable + n + 1 + n_digits;
    return n_digits > 0 && strtoul(variable + n + 1, NULL, 10) < list->max && *rest == '_' &&
           name_known(list->fields, rest + 1);
}

static bool variable_known(const struct kvt_config_field *fields, const char *variable)
{
    for (const struct kvt_config_field *f = fields; f->type != KVT_CONFIG_END; f++) {
        if (f->type == KVT_CONFIG_LIST && element_known(f, variable))
            return true;
    }
    return name_known(fields, variable);
}

unsigned kvt_config_environment(const struct kvt_config_field *fields, void *object,
                                const char *prefix, const char *const *variables,
                                struct kvt_config_sources *sources, kvt_config_error_fn error,
                                void *arg)
{
    struct reader r = {
        .fields = fields,
        .object = object,
        .prefix = prefix,
        .variables = variables,
        .sink = {.error = error, .arg = arg, .origin = KVT_CONFIG_ENVIRONMENT, .sources = sources},
    };
    char path[CONFIG_PATH_BYTES];
    if (sources != NULL)
        sources->prefix = prefix;
    for (const struct kvt_config_field *f = fields; f->type != KVT_CONFIG_END; f++) {
        if (f->type != KVT_CONFIG_LIST) {
            environment_read(&r, f->key);
            continue;
        }
        for (unsigned i = 0; i < f->max; i++) {
            for (const struct kvt_config_field *e = f->fields; e->type != KVT_CONFIG_END; e++) {
                snprintf(path, sizeof(path), "%s.%u.%s", f->key, i, e->key);
                environment_read(&r, path);
            }
        }
    }
    return r.sink.n_errors;
}

void kvt_config_environment_unknown(const struct kvt_config_field *fields, const char *prefix,
                                    const char *const *variables, kvt_config_error_fn unknown,
                                    void *arg)
{
    char name[CONFIG_PATH_BYTES];
    size_t n = strlen(prefix);
    for (; *variables != NULL; variables++) {
        if (strncmp(*variables, prefix, n) != 0 || variable_known(fields, *variables + n))
            continue;
        snprintf(name, sizeof(name), "%.*s", (int)strcspn(*variables, "="), *variables);
        unknown(arg, name);
    }
}
