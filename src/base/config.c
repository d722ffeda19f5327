/* SPDX-License-Identifier: Apache-2.0 */
#include "config_private.h"
#include "kvt/units.h"
#include "kvt/util.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

void config_error(struct config_sink *sink, unsigned long line, const char *format, ...)
{
    char msg[768];
    int n;
    va_list ap;
    if (sink->n_errors++ >= CONFIG_ERRORS_MAX)
        return;
    if (line > 0)
        n = snprintf(msg, sizeof(msg), "%s:%lu: ", sink->name, line);
    else
        n = snprintf(msg, sizeof(msg), "%s: ", sink->name);
    if (n < 0 || (size_t)n >= sizeof(msg))
        n = 0;
    va_start(ap, format);
    vsnprintf(msg + n, sizeof(msg) - (size_t)n, format, ap);
    va_end(ap);
    sink->error(sink->arg, msg);
    if (sink->n_errors == CONFIG_ERRORS_MAX)
        sink->error(sink->arg, "more faults follow; mend these first");
}

/* Whether path is key, or key and more behind a dot (then *rest_p). */
static bool path_starts(const char *path, const char *key, const char **rest_p)
{
    size_t n = strlen(key);
    if (strncmp(path, key, n) != 0 || path[n] != '.')
        return false;
    *rest_p = path + n + 1;
    return true;
}

static struct config_target element_find(const struct kvt_config_field *list, const char *rest)
{
    struct config_target target = {.kind = CONFIG_UNKNOWN};
    char *end;
    if (*rest < '0' || *rest > '9')
        return target;
    unsigned long index = strtoul(rest, &end, 10);
    if (*end == '\0') {
        target = (struct config_target){.kind = CONFIG_ELEMENT, .field = list, .index = index};
    } else if (*end == '.') {
        for (const struct kvt_config_field *f = list->fields; f->type != KVT_CONFIG_END; f++) {
            if (strcmp(f->key, end + 1) == 0)
                return (struct config_target){
                    .kind = CONFIG_VALUE, .field = f, .list = list, .index = index};
        }
    }
    return target;
}

struct config_target config_find(const struct kvt_config_field *fields, const char *path)
{
    struct config_target target = {.kind = CONFIG_UNKNOWN};
    const char *rest;
    if (*path == '\0')
        target.kind = CONFIG_SECTION;
    for (const struct kvt_config_field *f = fields; f->type != KVT_CONFIG_END; f++) {
        if (strcmp(f->key, path) == 0) {
            target.kind = f->type == KVT_CONFIG_LIST ? CONFIG_LIST : CONFIG_VALUE;
            target.field = f;
            return target;
        }
        if (f->type == KVT_CONFIG_LIST && path_starts(path, f->key, &rest))
            return element_find(f, rest);
        if (path_starts(f->key, path, &rest))
            target.kind = CONFIG_SECTION;
    }
    return target;
}

/* Levenshtein distance; longer texts than a path can be are cut. */
static unsigned text_distance(const char *a, const char *b)
{
    unsigned row[CONFIG_PATH_BYTES + 1];
    size_t n_b = strnlen(b, CONFIG_PATH_BYTES);
    for (size_t j = 0; j <= n_b; j++)
        row[j] = (unsigned)j;
    for (size_t i = 0; i < CONFIG_PATH_BYTES && a[i] != '\0'; i++) {
        unsigned diagonal = row[0];
        row[0] = (unsigned)i + 1;
        for (size_t j = 0; j < n_b; j++) {
            unsigned above = row[j + 1];
            unsigned best = KVT_MIN(KVT_MIN(above, row[j]) + 1, diagonal + (a[i] != b[j]));
            diagonal = above;
            row[j + 1] = best;
        }
    }
    return row[n_b];
}

static void nearest_try(const char *path, const char *candidate, unsigned *best_p, char *nearest)
{
    unsigned distance = text_distance(path, candidate);
    /* A key given without its section is meant all the same. */
    const char *last = strrchr(candidate, '.');
    if (last != NULL)
        distance = KVT_MIN(distance, text_distance(path, last + 1) + 1);
    if (distance < *best_p) {
        *best_p = distance;
        snprintf(nearest, CONFIG_PATH_BYTES, "%s", candidate);
    }
}

void config_unknown(const struct kvt_config_field *fields, const char *path,
                    struct config_sink *sink, unsigned long line)
{
    char nearest[CONFIG_PATH_BYTES] = "";
    char candidate[CONFIG_PATH_BYTES];
    unsigned best = UINT32_MAX;
    for (const struct kvt_config_field *f = fields; f->type != KVT_CONFIG_END; f++) {
        const char *dot = strchr(f->key, '.');
        nearest_try(path, f->key, &best, nearest);
        if (dot != NULL) {
            snprintf(candidate, sizeof(candidate), "%.*s", (int)(dot - f->key), f->key);
            nearest_try(path, candidate, &best, nearest);
        }
        if (f->type != KVT_CONFIG_LIST)
            continue;
        for (const struct kvt_config_field *e = f->fields; e->type != KVT_CONFIG_END; e++) {
            snprintf(candidate, sizeof(candidate), "%s.0.%s", f->key, e->key);
            nearest_try(path, candidate, &best, nearest);
        }
    }
    config_error(sink, line, "%s: unknown key; the nearest known one is %s", path, nearest);
}

static bool bool_parse(const char *text, bool *value_p)
{
    static const char *const names[] = {"false", "true", "no", "yes", "off", "on"};
    for (unsigned i = 0; i < KVT_ARRAY_LEN(names); i++) {
        if (strcmp(text, names[i]) == 0) {
            *value_p = i % 2 == 1;
            return true;
        }
    }
    return false;
}

static bool mode_parse(const char *text, uint64_t *value_p)
{
    char *end;
    if (*text < '0' || *text > '7')
        return false;
    *value_p = strtoul(text, &end, 8);
    return *end == '\0';
}

static bool enum_parse(const char *names, const char *text, uint32_t *value_p)
{
    size_t len = strlen(text);
    uint32_t value = 0;
    for (const char *p = names;; value++) {
        size_t n = strcspn(p, "|");
        if (n == len && strncmp(p, text, n) == 0) {
            *value_p = value;
            return true;
        }
        if (p[n] == '\0')
            return false;
        p += n + 1;
    }
}

void config_number_format(const struct kvt_config_field *field, uint64_t value,
                          char text[KVT_UNITS_TEXT_BYTES])
{
    if (value == 0 && strcmp(field->text, KVT_CONFIG_AUTO) == 0)
        snprintf(text, KVT_UNITS_TEXT_BYTES, "%s", KVT_CONFIG_AUTO);
    else if (field->type == KVT_CONFIG_BYTES)
        kvt_bytes_format(value, text);
    else if (field->type == KVT_CONFIG_TIME)
        kvt_time_format(value, text);
    else if (field->type == KVT_CONFIG_MODE)
        snprintf(text, KVT_UNITS_TEXT_BYTES, "%04" PRIo64, value);
    else
        snprintf(text, KVT_UNITS_TEXT_BYTES, "%" PRIu64, value);
}

static void number_assign(void *member, const struct kvt_config_field *field, const char *path,
                          const char *text, struct config_sink *sink, unsigned long line)
{
    bool is_auto = strcmp(field->text, KVT_CONFIG_AUTO) == 0 && strcmp(text, KVT_CONFIG_AUTO) == 0;
    uint64_t value = 0;
    bool parsed = is_auto;
    const char *syntax = "a whole number";
    char low[KVT_UNITS_TEXT_BYTES];
    char high[KVT_UNITS_TEXT_BYTES];

    if (field->type == KVT_CONFIG_BYTES) {
        parsed = parsed || kvt_bytes_parse(text, &value);
        syntax = "a whole number with " KVT_BYTES_UNITS;
    } else if (field->type == KVT_CONFIG_TIME) {
        parsed = parsed || kvt_time_parse(text, &value);
        syntax = "a whole number with " KVT_TIME_UNITS;
    } else if (field->type == KVT_CONFIG_MODE) {
        parsed = parsed || mode_parse(text, &value);
        syntax = "octal permissions like 0660";
    } else {
        parsed = parsed || kvt_number_parse(text, &value);
    }
    if (!parsed) {
        config_error(sink, line, "%s: \"%.64s\" is not understood; give %s (default %s)", path,
                     text, syntax, field->text);
        return;
    }
    if (!is_auto && (value < field->min || value > field->max)) {
        config_number_format(field, field->min, low);
        config_number_format(field, field->max, high);
        config_error(sink, line, "%s: %.64s is out of range; give %s to %s (default %s)", path,
                     text, field->min == 0 ? "0" : low, high, field->text);
        return;
    }
    if (field->bytes == sizeof(uint32_t)) {
        uint32_t small = (uint32_t)value;
        KVT_ASSERT(small == value);
        memcpy(member, &small, sizeof(small));
    } else {
        memcpy(member, &value, sizeof(value));
    }
}

static void member_assign(void *member, const struct kvt_config_field *field, const char *path,
                          const char *text, struct config_sink *sink, unsigned long line)
{
    bool flag;
    uint32_t choice;
    size_t len = strlen(text);

    switch (field->type) {
    case KVT_CONFIG_BOOL:
        if (bool_parse(text, &flag))
            memcpy(member, &flag, sizeof(flag));
        else
            config_error(sink, line, "%s: \"%.64s\" is not understood; give true or false", path,
                         text);
        break;
    case KVT_CONFIG_ENUM:
        if (enum_parse(field->names, text, &choice))
            memcpy(member, &choice, sizeof(choice));
        else
            config_error(sink, line, "%s: \"%.64s\" is not one of %s (default %s)", path, text,
                         field->names, field->text);
        break;
    case KVT_CONFIG_STR:
        if (len >= field->bytes)
            config_error(sink, line, "%s: longer than %zu bytes", path, field->bytes - 1);
        else
            memcpy(member, text, len + 1);
        break;
    default:
        number_assign(member, field, path, text, sink, line);
        break;
    }
}

static void never_called(void *arg, const char *msg)
{
    (void)arg;
    kvt_assert_fail(msg, __FILE__, __LINE__);
}

static void defaults_assign(const struct kvt_config_field *fields, void *object)
{
    struct config_sink sink = {.name = "default", .error = never_called};
    for (const struct kvt_config_field *f = fields; f->type != KVT_CONFIG_END; f++) {
        if (f->type == KVT_CONFIG_LIST)
            memset((char *)object + f->count_offset, 0, sizeof(uint32_t));
        else
            member_assign((char *)object + f->offset, f, f->key, f->text, &sink, 0);
    }
}

void kvt_config_defaults(const struct kvt_config_field *fields, void *object)
{
    defaults_assign(fields, object);
}

void config_assign(void *object, const struct config_target *target, const char *path,
                   const char *text, struct config_sink *sink, unsigned long line)
{
    char *base = object;
    if (target->list != NULL) {
        const struct kvt_config_field *list = target->list;
        uint32_t n;
        memcpy(&n, base + list->count_offset, sizeof(n));
        if (target->index >= list->max) {
            config_error(sink, line, "%s: %s takes at most %" PRIu64 " elements", path, list->key,
                         list->max);
            return;
        }
        if (target->index > n) {
            config_error(sink, line, "%s: %s has %u elements; the next one is %s.%u", path,
                         list->key, n, list->key, n);
            return;
        }
        base += list->offset + target->index * list->bytes;
        if (target->index == n) {
            defaults_assign(list->fields, base);
            n++;
            memcpy((char *)object + list->count_offset, &n, sizeof(n));
        }
    }
    unsigned n_before = sink->n_errors;
    member_assign(base + target->field->offset, target->field, path, text, sink, line);
    config_note(sink, target, line, sink->n_errors > n_before);
}

void config_path_assign(const struct kvt_config_field *fields, void *object, const char *path,
                        const char *value, struct config_sink *sink)
{
    struct config_target target = config_find(fields, path);
    if (target.kind == CONFIG_VALUE)
        config_assign(object, &target, path, value, sink, 0);
    else if (target.kind == CONFIG_UNKNOWN)
        config_unknown(fields, path, sink, 0);
    else
        config_error(sink, 0, "%s: names a group of keys; give one of them a value", path);
}

unsigned kvt_config_set(const struct kvt_config_field *fields, void *object, const char *assignment,
                        enum kvt_config_origin origin, struct kvt_config_sources *sources,
                        kvt_config_error_fn error, void *arg)
{
    struct config_sink sink = {
        .name = "--set", .error = error, .arg = arg, .origin = origin, .sources = sources};
    char path[CONFIG_PATH_BYTES];
    const char *equals = strchr(assignment, '=');
    if (equals == NULL || equals == assignment || (size_t)(equals - assignment) >= sizeof(path)) {
        config_error(&sink, 0, "\"%.64s\" is not KEY=VALUE", assignment);
        return sink.n_errors;
    }
    snprintf(path, sizeof(path), "%.*s", (int)(equals - assignment), assignment);
    config_path_assign(fields, object, path, equals + 1, &sink);
    return sink.n_errors;
}
