/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Configuration from tables: each module lists its options as fields of a struct, with defaults in
 * the text that a user would write. YAML files, the environment and KEY=VALUE arguments take the
 * same way in, and who said what is kept, so that a message can name the place.
 */
#ifndef KVT_CONFIG_H
#define KVT_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum kvt_config_type {
    KVT_CONFIG_END,
    KVT_CONFIG_BOOL,  /* bool: true, false, yes, no, on, off */
    KVT_CONFIG_U32,   /* uint32_t */
    KVT_CONFIG_BYTES, /* uint64_t, with or without a unit */
    KVT_CONFIG_TIME,  /* uint64_t nanoseconds, with a unit */
    KVT_CONFIG_MODE,  /* uint32_t, octal permissions */
    KVT_CONFIG_STR,   /* char[] */
    KVT_CONFIG_ENUM,  /* uint32_t index into names */
    KVT_CONFIG_LIST,  /* array of structs, each with fields of its own, and a uint32_t count */
};

/* A number whose default is "auto" takes that word from the user too; it is stored as 0. */
#define KVT_CONFIG_AUTO "auto"

struct kvt_config_field {
    const char *key; /* with its sections: "host.bytes"; inside a list: "path" */
    enum kvt_config_type type;
    size_t offset;
    size_t bytes;                          /* of the member; of a list: of one element */
    const char *text;                      /* the default */
    uint64_t min, max;                     /* of numbers; max of a list: its elements */
    const char *help;                      /* what it is */
    const char *names;                     /* ENUM: "one|two" */
    size_t count_offset;                   /* LIST */
    const struct kvt_config_field *fields; /* LIST */
};

/* clang-format off */
#define KVT_FIELD(kind, object, member, name, default_text, low, high, what)                       \
    {.key = (name), .type = KVT_CONFIG_##kind, .offset = offsetof(object, member),                 \
     .bytes = sizeof(((object *)0)->member), .text = (default_text), .min = (low), .max = (high),  \
     .help = (what)}
#define KVT_FIELD_ENUM(object, member, name, default_text, choices, what)                          \
    {.key = (name), .type = KVT_CONFIG_ENUM, .offset = offsetof(object, member),                   \
     .bytes = sizeof(((object *)0)->member), .text = (default_text), .names = (choices),           \
     .help = (what)}
#define KVT_FIELD_LIST(object, member, count, name, element_fields, what)                          \
    {.key = (name), .type = KVT_CONFIG_LIST, .offset = offsetof(object, member),                   \
     .bytes = sizeof(((object *)0)->member[0]), .text = "",                                        \
     .max = sizeof(((object *)0)->member) / sizeof(((object *)0)->member[0]),                      \
     .count_offset = offsetof(object, count), .fields = (element_fields), .help = (what)}
/* clang-format on */

/* One call per fault: where it is ("file:line"), the key, what is wrong, what would be right. */
typedef void (*kvt_config_error_fn)(void *arg, const char *msg);

enum kvt_config_origin {
    KVT_CONFIG_DEFAULT,
    KVT_CONFIG_FILE,
    KVT_CONFIG_ENVIRONMENT,
    KVT_CONFIG_ARGUMENT, /* --set */
    KVT_CONFIG_RUNTIME,  /* changed while the program ran */
};

#define KVT_CONFIG_SOURCES_MAX 256
#define KVT_CONFIG_PATH_BYTES  256
#define KVT_CONFIG_SOURCE_TEXT (KVT_CONFIG_PATH_BYTES + 64)

/* Who gave each value; all zero: every value is its default. Given more values than there is room
 * for, the rest count as defaults. */
struct kvt_config_sources {
    const char *file;   /* borrowed, as is the next: they outlive this */
    const char *prefix; /* of names in the environment */
    unsigned n;
    struct kvt_config_source {
        const struct kvt_config_field *field;
        uint32_t index; /* of the list's element */
        enum kvt_config_origin origin;
        unsigned long line; /* FILE */
        bool refused;       /* what was given was a fault: the value is still the one before */
    } entries[KVT_CONFIG_SOURCES_MAX];
};

/** Fill object with the defaults. A default that does not parse is our bug and asserts. */
void kvt_config_defaults(const struct kvt_config_field *fields, void *object);

/**
 * Read YAML text over what object holds. Every fault is reported (up to 100); object is then partly
 * filled and not to be used.
 *
 * @param name     Of the file, for messages and sources (borrowed).
 * @param sources  Gets a note per value; may be NULL, as in all functions here.
 * @return the number of faults.
 */
unsigned kvt_config_yaml(const struct kvt_config_field *fields, void *object, const char *text,
                         size_t bytes, const char *name, struct kvt_config_sources *sources,
                         kvt_config_error_fn error, void *arg);

/** The same for one "key=value"; elements of a list are "key.0.name". */
unsigned kvt_config_set(const struct kvt_config_field *fields, void *object, const char *assignment,
                        enum kvt_config_origin origin, struct kvt_config_sources *sources,
                        kvt_config_error_fn error, void *arg);

/**
 * The same for every variable PREFIX<KEY> of the environment: the key in upper case with '_' for
 * '.' (host.bytes: PREFIXHOST_BYTES).
 *
 * @param variables  "NAME=VALUE", NULL at the end.
 */
unsigned kvt_config_environment(const struct kvt_config_field *fields, void *object,
                                const char *prefix, const char *const *variables,
                                struct kvt_config_sources *sources, kvt_config_error_fn error,
                                void *arg);

/** Call unknown with each variable of that prefix that names no key. They are no faults: others may
 * set such (a service manager, a container's links). */
void kvt_config_environment_unknown(const struct kvt_config_field *fields, const char *prefix,
                                    const char *const *variables, kvt_config_error_fn unknown,
                                    void *arg);

/** Where the value at path came from: "default", "FILE:LINE", "environment NAME", "--set" or
 * "runtime". */
void kvt_config_source_text(const struct kvt_config_field *fields,
                            const struct kvt_config_sources *sources, const char *path,
                            char text[KVT_CONFIG_SOURCE_TEXT]);

/** Whether a value was given at path and refused. */
bool kvt_config_source_refused(const struct kvt_config_field *fields,
                               const struct kvt_config_sources *sources, const char *path);

/** The value at `to` was taken from `from`: so is its source, and `from` is a default again. */
void kvt_config_source_move(const struct kvt_config_field *fields,
                            struct kvt_config_sources *sources, const char *from, const char *to);

/** Call visit for every option in effect, elements of lists too, in the order of the table; value
 * as a user would write it, source as kvt_config_source_text() has it. */
typedef void (*kvt_config_visit_fn)(void *arg, const char *path, const char *value,
                                    const char *source);
void kvt_config_each(const struct kvt_config_field *fields, const void *object,
                     const struct kvt_config_sources *sources, kvt_config_visit_fn visit,
                     void *arg);

/** Whether the value is the same in both; of a list: all of its elements. */
bool kvt_config_same(const struct kvt_config_field *field, const void *a, const void *b);

/** A value as a user would write it; of a list: how many elements it has. */
#define KVT_CONFIG_VALUE_TEXT 512
void kvt_config_value_text(const struct kvt_config_field *field, const void *object,
                           char text[KVT_CONFIG_VALUE_TEXT]);

/** In `sources`, the field (and what is in its elements) comes from where `old` says. */
void kvt_config_source_keep(struct kvt_config_sources *sources,
                            const struct kvt_config_sources *old,
                            const struct kvt_config_field *field);

/** Copy the value of a field outside of lists from one object to another. */
void kvt_config_copy(const struct kvt_config_field *field, const void *from, void *to);

/** Write object as YAML that reads back to the same object. */
void kvt_config_print(const struct kvt_config_field *fields, const void *object, FILE *out);

#endif
