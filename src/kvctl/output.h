/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Results on stdout: rows that stream (a table of a million takes the memory of one page), or one
 * object. JSON and YAML have every field; tables have the columns named, formatted by the unit that
 * a field's name ends with: _bytes, _ns, _ms, _unix_ms, _ratio.
 */
#ifndef KVT_KVCTL_OUTPUT_H
#define KVT_KVCTL_OUTPUT_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum kvctl_format { KVCTL_TABLE, KVCTL_WIDE, KVCTL_JSON, KVCTL_YAML };

struct kvctl_style {
    enum kvctl_format format;
    bool color;
};

struct kvctl_column {
    const char *title; /* NULL: end of the columns */
    const char *path;  /* of the field in a row: "host.used_bytes" */
    bool wide;         /* only with -o wide */
    unsigned digits;   /* show no more than so many characters of it, but with -o wide; 0: all */
};

#define KVCTL_COLUMNS_MAX 24
#define KVCTL_HELD_MAX    256 /* rows whose widths shape a table */

struct kvctl_rows {
    struct kvctl_style style;
    const char *name; /* of the list: "chunks" */
    const struct kvctl_column *columns;
    json_t *held; /* rows until the widths are known */
    unsigned widths[KVCTL_COLUMNS_MAX];
    bool shaped;
    uint64_t n;
    struct kvctl_yaml *yaml;
};

void kvctl_rows_begin(struct kvctl_rows *rows, const struct kvctl_style *style, const char *name,
                      const struct kvctl_column *columns);
/** Takes the row over. */
void kvctl_rows_add(struct kvctl_rows *rows, json_t *row);
/** @return false: stdout did not take it (said on stderr). */
bool kvctl_rows_end(struct kvctl_rows *rows);
/** The list broke off: what came of it is shown, and JSON stays open, so that nobody takes it for
 * all. */
void kvctl_rows_drop(struct kvctl_rows *rows);

/** One object, which stays the caller's; as a table: a line per field. @return false: see above. */
bool kvctl_object_print(const struct kvctl_style *style, const json_t *object);

/** The field at a dotted path; NULL: there is none. */
const json_t *kvctl_field(const json_t *object, const char *path);

#define KVCTL_TEXT_BYTES 256
/** A value as a person reads it; name: of the field, for its unit. */
void kvctl_text(const char *name, const json_t *value, char text[KVCTL_TEXT_BYTES]);
/** A string without what would steer a terminal: names come from clients. "-" for "". */
void kvctl_string_text(const char *string, char text[KVCTL_TEXT_BYTES]);
/** "12.3 MiB", three digits. */
void kvctl_bytes_text(double bytes, char text[KVCTL_TEXT_BYTES]);

/* Colours: "" where there are none. */
enum kvctl_color { KVCTL_PLAIN, KVCTL_BOLD, KVCTL_GREEN, KVCTL_YELLOW, KVCTL_RED };
const char *kvctl_color(const struct kvctl_style *style, enum kvctl_color color);

/* --- yaml.c: one document on stdout ----------------------------------------------------------- */

struct kvctl_yaml;

/** The document is a list under a name, or (name NULL) what comes. NULL: out of memory. */
struct kvctl_yaml *kvctl_yaml_begin(const char *name);
void kvctl_yaml_add(struct kvctl_yaml *yaml, const json_t *value);
/** Frees it. */
void kvctl_yaml_end(struct kvctl_yaml *yaml);

#endif
