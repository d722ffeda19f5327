/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Configuration from tables: each module lists its options as fields of a struct, with defaults in
 * the text that a user would write. YAML files and KEY=VALUE arguments take the same way in.
 */
#ifndef KVT_CONFIG_H
#define KVT_CONFIG_H

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

/** Fill object with the defaults. A default that does not parse is our bug and asserts. */
void kvt_config_defaults(const struct kvt_config_field *fields, void *object);

/**
 * Read YAML text over what object holds. Every fault is reported (up to 100); object is then partly
 * filled and not to be used.
 *
 * @param name  Of the file, for messages.
 * @return the number of faults.
 */
unsigned kvt_config_yaml(const struct kvt_config_field *fields, void *object, const char *text,
                         size_t bytes, const char *name, kvt_config_error_fn error, void *arg);

/** The same for one "key=value"; elements of a list are "key.0.name". */
unsigned kvt_config_set(const struct kvt_config_field *fields, void *object, const char *assignment,
                        kvt_config_error_fn error, void *arg);

/** Write object as YAML that reads back to the same object. */
void kvt_config_print(const struct kvt_config_field *fields, const void *object, FILE *out);

#endif
