/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KVT_CONFIG_PRIVATE_H
#define KVT_CONFIG_PRIVATE_H

#include "kvt/config.h"
#include "kvt/units.h"

#include <stdbool.h>

#define CONFIG_PATH_BYTES KVT_CONFIG_PATH_BYTES
#define CONFIG_ERRORS_MAX 100

struct config_sink {
    const char *name; /* of the file, or "--set" */
    kvt_config_error_fn error;
    void *arg;
    unsigned n_errors;
    enum kvt_config_origin origin;
    struct kvt_config_sources *sources; /* may be NULL */
};

/* line 0: none to name. */
void config_error(struct config_sink *sink, unsigned long line, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

enum config_kind { CONFIG_UNKNOWN, CONFIG_SECTION, CONFIG_LIST, CONFIG_ELEMENT, CONFIG_VALUE };

struct config_target {
    enum config_kind kind;
    const struct kvt_config_field *field; /* LIST, ELEMENT: of the list; VALUE: of the value */
    const struct kvt_config_field *list;  /* VALUE inside a list, else NULL */
    unsigned long index;                  /* of the element */
};

/* What a dotted path names; "" is the outermost section. */
struct config_target config_find(const struct kvt_config_field *fields, const char *path);

/* Report an unknown key with the nearest known one. */
void config_unknown(const struct kvt_config_field *fields, const char *path,
                    struct config_sink *sink, unsigned long line);

/* Parse text into the target, a VALUE, and note where it came from. */
void config_assign(void *object, const struct config_target *target, const char *path,
                   const char *text, struct config_sink *sink, unsigned long line);

/* A dotted path is given a value by somebody: config_assign(), or why not. */
void config_path_assign(const struct kvt_config_field *fields, void *object, const char *path,
                        const char *value, struct config_sink *sink);

/* A number of the field's type as text. */
void config_number_format(const struct kvt_config_field *field, uint64_t value,
                          char text[KVT_UNITS_TEXT_BYTES]);

/* config_source.c: note where target's value came from. */
void config_note(struct config_sink *sink, const struct config_target *target, unsigned long line,
                 bool refused);

#endif
