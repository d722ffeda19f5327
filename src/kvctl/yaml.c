/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "output.h"
#include "walk.h"

struct kvctl_yaml {
    yaml_emitter_t emitter;
    bool named;
};

/* An event that could not be made or written shows as an error of stdout at the end. */
static void emit(struct kvctl_yaml *yaml, int made, yaml_event_t *event)
{
    if (made == 0 || yaml_emitter_emit(&yaml->emitter, event) == 0)
        yaml->emitter.error = YAML_WRITER_ERROR;
}

static int stdout_write(void *arg, unsigned char *buffer, size_t size)
{
    (void)arg;
    return fwrite(buffer, 1, size, stdout) == size;
}

/* quoted: it is a string although a reader of plain text would take it for something else. */
static void emit_text(struct kvctl_yaml *yaml, const char *text, bool quoted)
{
    yaml_event_t event;
    int made = yaml_scalar_event_initialize(
        &event, NULL, NULL, (const yaml_char_t *)text, (int)strlen(text), !quoted, 1,
        quoted ? YAML_DOUBLE_QUOTED_SCALAR_STYLE : YAML_PLAIN_SCALAR_STYLE);
    emit(yaml, made, &event);
}

/* Whether plain text would be read back as this string: a word that begins with a letter, has
 * nothing that YAML gives a meaning, and is no name of a value. */
static bool plain(const char *text)
{
    static const char *const taken[] = {"true", "false", "null", "yes", "no",
                                        "on",   "off",   "y",    "n"};
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    static const char others[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
                                 "_-./ ";
    size_t length = strlen(text);
    if (length == 0 || strspn(text, letters) == 0 || strspn(text, others) != length ||
        text[length - 1] == ' ')
        return false;
    for (size_t i = 0; i < sizeof(taken) / sizeof(taken[0]); i++) {
        if (strcasecmp(text, taken[i]) == 0)
            return false;
    }
    return true;
}

static void emit_scalar(struct kvctl_yaml *yaml, const json_t *value)
{
    char number[64];
    switch (json_typeof(value)) {
    case JSON_STRING:
        emit_text(yaml, json_string_value(value), !plain(json_string_value(value)));
        return;
    case JSON_INTEGER:
        snprintf(number, sizeof(number), "%" JSON_INTEGER_FORMAT, json_integer_value(value));
        break;
    case JSON_REAL:
        snprintf(number, sizeof(number), "%.6g", json_real_value(value));
        /* 1e+06 without a point is text to YAML 1.1. */
        if (strchr(number, '.') == NULL)
            snprintf(number, sizeof(number), "%.1f", json_real_value(value));
        break;
    default:
        snprintf(number, sizeof(number), "%s",
                 json_is_true(value)    ? "true"
                 : json_is_false(value) ? "false"
                                        : "null");
        break;
    }
    emit_text(yaml, number, false);
}

static void container_begin(struct kvctl_yaml *yaml, bool object, bool empty)
{
    yaml_event_t event;
    int made = object ? yaml_mapping_start_event_initialize(&event, NULL, NULL, 1,
                                                            empty ? YAML_FLOW_MAPPING_STYLE
                                                                  : YAML_BLOCK_MAPPING_STYLE)
                      : yaml_sequence_start_event_initialize(&event, NULL, NULL, 1,
                                                             empty ? YAML_FLOW_SEQUENCE_STYLE
                                                                   : YAML_BLOCK_SEQUENCE_STYLE);
    emit(yaml, made, &event);
}

static void container_end(struct kvctl_yaml *yaml, bool object)
{
    yaml_event_t event;
    int made = object ? yaml_mapping_end_event_initialize(&event)
                      : yaml_sequence_end_event_initialize(&event);
    emit(yaml, made, &event);
}

static void walk(void *arg, enum kvctl_walk_event event, const char *key, const json_t *value,
                 unsigned depth)
{
    struct kvctl_yaml *yaml = arg;
    (void)depth;
    if (event == KVCTL_WALK_END) {
        container_end(yaml, json_is_object(value));
        return;
    }
    if (key != NULL)
        emit_text(yaml, key, !plain(key));
    if (event == KVCTL_WALK_BEGIN)
        container_begin(yaml, json_is_object(value),
                        json_object_size(value) + json_array_size(value) == 0);
    else
        emit_scalar(yaml, value);
}

struct kvctl_yaml *kvctl_yaml_begin(const char *name)
{
    yaml_event_t event;
    struct kvctl_yaml *yaml = calloc(1, sizeof(*yaml));
    if (yaml == NULL || yaml_emitter_initialize(&yaml->emitter) == 0) {
        free(yaml);
        return NULL;
    }
    yaml->named = name != NULL;
    yaml_emitter_set_output(&yaml->emitter, stdout_write, NULL);
    yaml_emitter_set_width(&yaml->emitter, -1);
    emit(yaml, yaml_stream_start_event_initialize(&event, YAML_UTF8_ENCODING), &event);
    emit(yaml, yaml_document_start_event_initialize(&event, NULL, NULL, NULL, 1), &event);
    if (name != NULL) {
        container_begin(yaml, true, false);
        emit_text(yaml, name, false);
        container_begin(yaml, false, false);
    }
    return yaml;
}

void kvctl_yaml_add(struct kvctl_yaml *yaml, const json_t *value)
{
    kvctl_walk(value, walk, yaml);
}

void kvctl_yaml_end(struct kvctl_yaml *yaml)
{
    yaml_event_t event;
    if (yaml->named) {
        container_end(yaml, false);
        container_end(yaml, true);
    }
    emit(yaml, yaml_document_end_event_initialize(&event, 1), &event);
    emit(yaml, yaml_stream_end_event_initialize(&event), &event);
    yaml_emitter_delete(&yaml->emitter);
    free(yaml);
}
