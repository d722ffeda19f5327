/* SPDX-License-Identifier: Apache-2.0 */
/* YAML events to dotted paths. No tree is built, and what nests too deep is refused. */
#include "config_private.h"
#include "kvt/util.h"

#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#define DEPTH_MAX  8
#define SKIP_MAX   32 /* deeper is hostile: the parser's work grows with the square of the depth */
#define SEEN_MAX   512
#define TEXT_BYTES KVT_MIB /* of a config file: far past any honest one */

struct frame {
    bool is_list;
    bool want_value;    /* in a map: the key was read */
    size_t path_len;    /* of the path of this map or list */
    unsigned long next; /* index of the next element */
};

struct walk {
    const struct kvt_config_field *fields;
    void *object;
    struct config_sink sink;
    struct frame frames[DEPTH_MAX];
    unsigned depth;
    unsigned n_skip; /* depth inside a refused map or list; 0: none */
    bool skip_value; /* the key was refused, so its value is not looked at */
    unsigned n_documents;
    char path[CONFIG_PATH_BYTES];
    unsigned n_seen;
    struct {
        const struct kvt_config_field *field;
        unsigned long index;
    } seen[SEEN_MAX];
};

static unsigned long event_line(const yaml_event_t *event)
{
    return (unsigned long)event->start_mark.line + 1;
}

/* Add a component to the path of the innermost frame. False: it does not fit. */
static bool path_push(struct walk *walk, const char *name)
{
    size_t len = walk->frames[walk->depth - 1].path_len;
    int n = snprintf(walk->path + len, sizeof(walk->path) - len, "%s%s", len > 0 ? "." : "", name);
    if (n >= 0 && (size_t)n < sizeof(walk->path) - len)
        return true;
    walk->path[len] = '\0';
    return false;
}

/* Called when a value starts: make its path in a list, note in a map that it came. */
static void value_starts(struct walk *walk)
{
    char index[24];
    if (walk->depth == 0)
        return;
    struct frame *frame = &walk->frames[walk->depth - 1];
    if (frame->is_list) {
        snprintf(index, sizeof(index), "%lu", frame->next++);
        walk->skip_value = !path_push(walk, index);
    }
    frame->want_value = false;
}

static bool seen_before(struct walk *walk, const struct config_target *target)
{
    for (unsigned i = 0; i < walk->n_seen; i++) {
        if (walk->seen[i].field == target->field && walk->seen[i].index == target->index)
            return true;
    }
    if (walk->n_seen < SEEN_MAX) {
        walk->seen[walk->n_seen].field = target->field;
        walk->seen[walk->n_seen++].index = target->index;
    }
    return false;
}

static void key_read(struct walk *walk, const yaml_event_t *event)
{
    const char *key = (const char *)event->data.scalar.value;
    walk->frames[walk->depth - 1].want_value = true;
    walk->skip_value = false;
    if (strlen(key) != event->data.scalar.length || *key == '\0' || !path_push(walk, key)) {
        config_error(&walk->sink, event_line(event), "%.64s: not a key", key);
        walk->skip_value = true;
    }
}

static bool scalar_is_null(const yaml_event_t *event)
{
    const char *text = (const char *)event->data.scalar.value;
    return event->data.scalar.style == YAML_PLAIN_SCALAR_STYLE &&
           (*text == '\0' || strcmp(text, "~") == 0 || strcmp(text, "null") == 0);
}

static void scalar_read(struct walk *walk, const yaml_event_t *event)
{
    const char *text = (const char *)event->data.scalar.value;
    unsigned long line = event_line(event);
    bool null = scalar_is_null(event);

    if (walk->depth == 0) {
        if (!null)
            config_error(&walk->sink, line, "a config file holds KEY: VALUE lines");
        return;
    }
    struct frame *frame = &walk->frames[walk->depth - 1];
    if (!frame->is_list && !frame->want_value) {
        key_read(walk, event);
        return;
    }
    value_starts(walk);
    if (walk->skip_value)
        return;
    struct config_target target = config_find(walk->fields, walk->path);
    switch (target.kind) {
    case CONFIG_UNKNOWN:
        config_unknown(walk->fields, walk->path, &walk->sink, line);
        break;
    case CONFIG_VALUE:
        if (null || strlen(text) != event->data.scalar.length)
            config_error(&walk->sink, line, "%s: has no value; give one or remove the key",
                         walk->path);
        else if (seen_before(walk, &target))
            config_error(&walk->sink, line, "%s: given twice", walk->path);
        else
            config_assign(walk->object, &target, walk->path, text, &walk->sink, line);
        break;
    case CONFIG_ELEMENT:
        config_error(&walk->sink, line, "%s: each element of %s is a group of keys", walk->path,
                     target.field->key);
        break;
    default: /* an empty section is none */
        if (!null)
            config_error(&walk->sink, line, "%s: holds %s, not a value", walk->path,
                         target.kind == CONFIG_LIST ? "a list" : "keys");
        break;
    }
}

static void collection_read(struct walk *walk, const yaml_event_t *event, bool is_list)
{
    unsigned long line = event_line(event);
    bool as_key = walk->depth > 0 && !walk->frames[walk->depth - 1].is_list &&
                  !walk->frames[walk->depth - 1].want_value;
    if (as_key) {
        config_error(&walk->sink, line, "a key must be plain text");
        walk->frames[walk->depth - 1].want_value = true;
        walk->skip_value = true;
        walk->n_skip = 1;
        return;
    }
    value_starts(walk);
    walk->n_skip = 1; /* unless it is found good */
    if (walk->skip_value)
        return;
    struct config_target target = config_find(walk->fields, walk->path);
    bool wants_list = target.kind == CONFIG_LIST;
    if (target.kind == CONFIG_UNKNOWN)
        config_unknown(walk->fields, walk->path, &walk->sink, line);
    else if (target.kind == CONFIG_VALUE)
        config_error(&walk->sink, line, "%s: takes one value", walk->path);
    else if (wants_list != is_list)
        config_error(&walk->sink, line, "%s: takes %s", walk->path,
                     wants_list ? "a list" : "keys with values");
    else if (walk->depth == DEPTH_MAX)
        config_error(&walk->sink, line, "%s: nested too deep", walk->path);
    else {
        walk->n_skip = 0;
        walk->frames[walk->depth++] =
            (struct frame){.is_list = is_list, .path_len = strlen(walk->path)};
    }
}

static void collection_end(struct walk *walk)
{
    KVT_ASSERT(walk->depth > 0);
    walk->depth--;
    if (walk->depth > 0)
        walk->path[walk->frames[walk->depth - 1].path_len] = '\0';
}

/* After a value or a skipped collection: back to the path of the map or list around it. */
static void value_ends(struct walk *walk)
{
    if (walk->depth > 0 && !walk->frames[walk->depth - 1].want_value)
        walk->path[walk->frames[walk->depth - 1].path_len] = '\0';
}

static void event_skip(struct walk *walk, const yaml_event_t *event)
{
    if (event->type == YAML_MAPPING_START_EVENT || event->type == YAML_SEQUENCE_START_EVENT)
        walk->n_skip++;
    else if (event->type == YAML_MAPPING_END_EVENT || event->type == YAML_SEQUENCE_END_EVENT)
        walk->n_skip--;
    if (walk->n_skip == 0)
        value_ends(walk);
}

static void event_read(struct walk *walk, const yaml_event_t *event)
{
    if (walk->n_skip > 0) {
        event_skip(walk, event);
        return;
    }
    switch (event->type) {
    case YAML_DOCUMENT_START_EVENT:
        if (walk->n_documents++ > 0)
            config_error(&walk->sink, event_line(event), "holds a second document; keep one");
        break;
    case YAML_ALIAS_EVENT:
        config_error(&walk->sink, event_line(event), "aliases are not taken; write the value");
        if (walk->depth > 0 && !walk->frames[walk->depth - 1].is_list &&
            !walk->frames[walk->depth - 1].want_value) {
            walk->frames[walk->depth - 1].want_value = true;
            walk->skip_value = true;
        } else {
            value_starts(walk);
            value_ends(walk);
        }
        break;
    case YAML_SCALAR_EVENT:
        scalar_read(walk, event);
        value_ends(walk);
        break;
    case YAML_MAPPING_START_EVENT:
    case YAML_SEQUENCE_START_EVENT:
        collection_read(walk, event, event->type == YAML_SEQUENCE_START_EVENT);
        break;
    case YAML_MAPPING_END_EVENT:
    case YAML_SEQUENCE_END_EVENT:
        collection_end(walk);
        break;
    default:
        break;
    }
}

unsigned kvt_config_yaml(const struct kvt_config_field *fields, void *object, const char *text,
                         size_t bytes, const char *name, struct kvt_config_sources *sources,
                         kvt_config_error_fn error, void *arg)
{
    struct walk walk = {
        .fields = fields,
        .object = object,
        .sink = {.name = name,
                 .error = error,
                 .arg = arg,
                 .origin = KVT_CONFIG_FILE,
                 .sources = sources},
    };
    yaml_parser_t parser;
    yaml_event_t event;
    bool more = true;

    if (sources != NULL)
        sources->file = name;
    if (bytes > TEXT_BYTES) {
        config_error(&walk.sink, 0, "larger than 1 MiB; this is no config file");
        return walk.sink.n_errors;
    }
    if (!yaml_parser_initialize(&parser)) {
        config_error(&walk.sink, 0, "out of memory");
        return walk.sink.n_errors;
    }
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, bytes);
    while (more) {
        if (!yaml_parser_parse(&parser, &event)) {
            config_error(&walk.sink, (unsigned long)parser.problem_mark.line + 1,
                         "not YAML: %s%s%s", parser.problem != NULL ? parser.problem : "unreadable",
                         parser.context != NULL ? " " : "",
                         parser.context != NULL ? parser.context : "");
            break;
        }
        more = event.type != YAML_STREAM_END_EVENT;
        event_read(&walk, &event);
        if (walk.n_skip > SKIP_MAX)
            config_error(&walk.sink, event_line(&event), "nested too deep");
        more = more && walk.n_skip <= SKIP_MAX && walk.sink.n_errors < CONFIG_ERRORS_MAX;
        yaml_event_delete(&event);
    }
    yaml_parser_delete(&parser);
    return walk.sink.n_errors;
}
