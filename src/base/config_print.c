/* SPDX-License-Identifier: Apache-2.0 */
/* Values in effect as text: a YAML file that reads back, or one call per option. */
#include "config_private.h"
#include "kvt/util.h"

#include <string.h>

static void quoted_print(const char *text, FILE *out)
{
    fputc('"', out);
    for (; *text != '\0'; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\')
            fprintf(out, "\\%c", c);
        else if (c < 0x20 || c == 0x7f)
            fprintf(out, "\\x%02x", c);
        else
            fputc(c, out);
    }
    fputc('"', out);
}

/* As a user would write it, strings without quotes. */
static void member_text(const struct kvt_config_field *field, const char *member,
                        char text[KVT_CONFIG_VALUE_TEXT])
{
    uint32_t small = 0;
    uint64_t value = 0;
    bool flag = false;
    const char *name = field->names;

    switch (field->type) {
    case KVT_CONFIG_BOOL:
        memcpy(&flag, member, sizeof(flag));
        snprintf(text, KVT_CONFIG_VALUE_TEXT, "%s", flag ? "true" : "false");
        break;
    case KVT_CONFIG_STR:
        snprintf(text, KVT_CONFIG_VALUE_TEXT, "%s", member);
        break;
    case KVT_CONFIG_ENUM:
        memcpy(&small, member, sizeof(small));
        for (; small > 0; small--)
            name += strcspn(name, "|") + 1;
        snprintf(text, KVT_CONFIG_VALUE_TEXT, "%.*s", (int)strcspn(name, "|"), name);
        break;
    default:
        if (field->bytes == sizeof(small)) {
            memcpy(&small, member, sizeof(small));
            value = small;
        } else {
            memcpy(&value, member, sizeof(value));
        }
        config_number_format(field, value, text);
        break;
    }
}

static void member_print(const struct kvt_config_field *field, const char *member, FILE *out)
{
    char text[KVT_CONFIG_VALUE_TEXT];
    member_text(field, member, text);
    if (field->type == KVT_CONFIG_STR)
        quoted_print(text, out);
    else
        fputs(text, out);
    fputc('\n', out);
}

static uint32_t list_count(const struct kvt_config_field *list, const char *object)
{
    uint32_t n;
    memcpy(&n, object + list->count_offset, sizeof(n));
    return n;
}

static void list_print(const struct kvt_config_field *list, const char *object, FILE *out)
{
    uint32_t n = list_count(list, object);
    fputs(n == 0 ? "[]\n" : "\n", out);
    for (uint32_t i = 0; i < n; i++) {
        const char *element = object + list->offset + i * list->bytes;
        for (const struct kvt_config_field *f = list->fields; f->type != KVT_CONFIG_END; f++) {
            fprintf(out, "    %s %s: ", f == list->fields ? "-" : " ", f->key);
            member_print(f, element + f->offset, out);
        }
    }
}

void kvt_config_print(const struct kvt_config_field *fields, const void *object, FILE *out)
{
    const char *section = "";
    size_t n_section = 0;
    for (const struct kvt_config_field *f = fields; f->type != KVT_CONFIG_END; f++) {
        const char *dot = strchr(f->key, '.');
        size_t n = dot == NULL ? 0 : (size_t)(dot - f->key);
        if (n > 0 && (n != n_section || strncmp(section, f->key, n) != 0))
            fprintf(out, "%.*s:\n", (int)n, f->key);
        section = f->key;
        n_section = n;
        fprintf(out, "%s%s: ", n > 0 ? "  " : "", dot == NULL ? f->key : dot + 1);
        if (f->type == KVT_CONFIG_LIST)
            list_print(f, object, out);
        else
            member_print(f, (const char *)object + f->offset, out);
    }
}

struct visitor {
    const struct kvt_config_field *fields;
    const struct kvt_config_sources *sources;
    kvt_config_visit_fn visit;
    void *arg;
};

static void member_visit(const struct visitor *v, const struct kvt_config_field *field,
                         const char *member, const char *path)
{
    char text[KVT_CONFIG_VALUE_TEXT];
    char source[KVT_CONFIG_SOURCE_TEXT];
    member_text(field, member, text);
    kvt_config_source_text(v->fields, v->sources, path, source);
    v->visit(v->arg, path, text, source);
}

void kvt_config_each(const struct kvt_config_field *fields, const void *object,
                     const struct kvt_config_sources *sources, kvt_config_visit_fn visit, void *arg)
{
    const struct visitor v = {.fields = fields, .sources = sources, .visit = visit, .arg = arg};
    char path[CONFIG_PATH_BYTES];
    for (const struct kvt_config_field *f = fields; f->type != KVT_CONFIG_END; f++) {
        if (f->type != KVT_CONFIG_LIST) {
            member_visit(&v, f, (const char *)object + f->offset, f->key);
            continue;
        }
        for (uint32_t i = 0; i < list_count(f, object); i++) {
            const char *element = (const char *)object + f->offset + i * f->bytes;
            for (const struct kvt_config_field *e = f->fields; e->type != KVT_CONFIG_END; e++) {
                snprintf(path, sizeof(path), "%s.%u.%s", f->key, i, e->key);
                member_visit(&v, e, element + e->offset, path);
            }
        }
    }
}

static bool member_same(const struct kvt_config_field *field, const char *a, const char *b)
{
    char text_a[KVT_CONFIG_VALUE_TEXT];
    char text_b[KVT_CONFIG_VALUE_TEXT];
    member_text(field, a, text_a);
    member_text(field, b, text_b);
    return strcmp(text_a, text_b) == 0;
}

bool kvt_config_same(const struct kvt_config_field *field, const void *a, const void *b)
{
    if (field->type != KVT_CONFIG_LIST)
        return member_same(field, (const char *)a + field->offset, (const char *)b + field->offset);
    uint32_t n = list_count(field, a);
    if (n != list_count(field, b))
        return false;
    for (uint32_t i = 0; i < n; i++) {
        size_t at = field->offset + i * field->bytes;
        for (const struct kvt_config_field *e = field->fields; e->type != KVT_CONFIG_END; e++) {
            if (!member_same(e, (const char *)a + at + e->offset, (const char *)b + at + e->offset))
                return false;
        }
    }
    return true;
}

void kvt_config_value_text(const struct kvt_config_field *field, const void *object,
                           char text[KVT_CONFIG_VALUE_TEXT])
{
    if (field->type == KVT_CONFIG_LIST)
        snprintf(text, KVT_CONFIG_VALUE_TEXT, "%u elements", list_count(field, object));
    else
        member_text(field, (const char *)object + field->offset, text);
}

void kvt_config_copy(const struct kvt_config_field *field, const void *from, void *to)
{
    KVT_ASSERT(field->type != KVT_CONFIG_LIST);
    memcpy((char *)to + field->offset, (const char *)from + field->offset, field->bytes);
}
