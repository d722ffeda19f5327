/* SPDX-License-Identifier: Apache-2.0 */
#include "output.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <time.h>

#include "kvt/units.h"
#include "kvt/util.h"
#include "walk.h"

const char *kvctl_color(const struct kvctl_style *style, enum kvctl_color color)
{
    static const char *const codes[] = {"\033[0m", "\033[1m", "\033[32m", "\033[33m", "\033[31m"};
    return style->color ? codes[color] : "";
}

const json_t *kvctl_field(const json_t *object, const char *path)
{
    while (object != NULL) {
        char name[64];
        size_t length = strcspn(path, ".");
        snprintf(name, sizeof(name), "%.*s", (int)KVT_MIN(length, sizeof(name) - 1), path);
        object = json_object_get(object, name);
        if (path[length] == '\0')
            break;
        path += length + 1;
    }
    return object;
}

/* --- values as text -------------------------------------------------------------------------- */

void kvctl_bytes_text(double bytes, char text[KVCTL_TEXT_BYTES])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    unsigned i = 0;
    while (bytes >= 999.5 && i + 1 < KVT_ARRAY_LEN(units)) {
        bytes /= 1024.0;
        i++;
    }
    int decimals = i == 0 || bytes >= 99.95 ? 0 : bytes >= 9.995 ? 1 : 2;
    snprintf(text, KVCTL_TEXT_BYTES, "%.*f %s", decimals, bytes, units[i]);
}

static void duration_text(double ns, char text[KVCTL_TEXT_BYTES])
{
    static const struct {
        double ns;
        const char *name;
    } units[] = {{86400e9, "d"}, {3600e9, "h"}, {60e9, "m"}, {1e9, "s"}, {1e6, "ms"}, {1e3, "us"}};
    for (unsigned i = 0; i < KVT_ARRAY_LEN(units); i++) {
        if (ns >= units[i].ns) {
            double value = ns / units[i].ns;
            snprintf(text, KVCTL_TEXT_BYTES, "%.*f%s", value < 9.95 ? 1 : 0, value, units[i].name);
            return;
        }
    }
    snprintf(text, KVCTL_TEXT_BYTES, ns > 0 ? "%.0fns" : "0s", ns);
}

static void date_text(double unix_ms, char text[KVCTL_TEXT_BYTES])
{
    time_t seconds = (time_t)(unix_ms / 1e3);
    struct tm utc;
    if (gmtime_r(&seconds, &utc) == NULL ||
        strftime(text, KVCTL_TEXT_BYTES, "%Y-%m-%dT%H:%M:%SZ", &utc) == 0)
        snprintf(text, KVCTL_TEXT_BYTES, "-");
}

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

/* A list of scalars, separated by commas; of anything else its length. */
static void list_text(const json_t *list, char text[KVCTL_TEXT_BYTES])
{
    size_t used = 0, i;
    const json_t *item;
    text[0] = '\0';
    json_array_foreach((json_t *)list, i, item)
    {
        if (json_is_string(item) && used < KVCTL_TEXT_BYTES)
            used += (size_t)snprintf(text + used, KVCTL_TEXT_BYTES - used, "%s%s", i > 0 ? "," : "",
                                     json_string_value(item));
        else if (json_is_object(item))
            snprintf(text, KVCTL_TEXT_BYTES, "%zu", json_array_size(list));
    }
    if (json_array_size(list) == 0)
        snprintf(text, KVCTL_TEXT_BYTES, "-");
}

void kvctl_string_text(const char *string, char text[KVCTL_TEXT_BYTES])
{
    snprintf(text, KVCTL_TEXT_BYTES, "%s", string[0] != '\0' ? string : "-");
    for (char *c = text; *c != '\0'; c++) {
        if ((unsigned char)*c < ' ' || *c == 0x7f)
            *c = '?';
    }
}

void kvctl_text(const char *name, const json_t *value, char text[KVCTL_TEXT_BYTES])
{
    double number = json_number_value(value);
    if (value == NULL || json_is_null(value))
        snprintf(text, KVCTL_TEXT_BYTES, "-");
    else if (json_is_string(value))
        kvctl_string_text(json_string_value(value), text);
    else if (json_is_boolean(value))
        snprintf(text, KVCTL_TEXT_BYTES, "%s", json_is_true(value) ? "yes" : "no");
    else if (json_is_array(value))
        list_text(value, text);
    else if (json_is_object(value))
        snprintf(text, KVCTL_TEXT_BYTES, "...");
    else if (ends_with(name, "bytes"))
        kvctl_bytes_text(number, text);
    else if (ends_with(name, "bytes_per_s")) {
        kvctl_bytes_text(number, text);
        strncat(text, "/s", KVCTL_TEXT_BYTES - strlen(text) - 1);
    } else if (ends_with(name, "_ns"))
        duration_text(number, text);
    else if (ends_with(name, "_unix_ms"))
        date_text(number, text);
    else if (ends_with(name, "_ms"))
        duration_text(number * 1e6, text);
    else if (ends_with(name, "_ratio"))
        snprintf(text, KVCTL_TEXT_BYTES, "%.1f %%", 100.0 * number);
    else if (json_is_real(value))
        snprintf(text, KVCTL_TEXT_BYTES, "%.1f", number);
    else
        snprintf(text, KVCTL_TEXT_BYTES, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
}

/* --- rows ------------------------------------------------------------------------------------ */

static bool shown(const struct kvctl_rows *rows, const struct kvctl_column *column)
{
    return !column->wide || rows->style.format == KVCTL_WIDE;
}

static void cell_text(const struct kvctl_rows *rows, const struct kvctl_column *column,
                      const json_t *row, char text[KVCTL_TEXT_BYTES])
{
    kvctl_text(column->path, kvctl_field(row, column->path), text);
    if (column->digits > 0 && rows->style.format != KVCTL_WIDE && strlen(text) > column->digits)
        text[column->digits] = '\0';
}

/* The last column is not padded, so that lines do not end in spaces. */
static void line_print(const struct kvctl_rows *rows, const json_t *row)
{
    char text[KVCTL_TEXT_BYTES];
    int pad = 0;
    for (unsigned i = 0; rows->columns[i].title != NULL; i++) {
        if (!shown(rows, &rows->columns[i]))
            continue;
        if (row != NULL)
            cell_text(rows, &rows->columns[i], row, text);
        else
            snprintf(text, sizeof(text), "%s", rows->columns[i].title);
        printf("%*s%s", pad, "", text);
        pad = (int)KVT_MAX(rows->widths[i], strlen(text)) - (int)strlen(text) + 2;
    }
    putchar('\n');
}

static void table_shape(struct kvctl_rows *rows)
{
    char text[KVCTL_TEXT_BYTES];
    size_t i;
    json_t *row;
    for (unsigned c = 0; rows->columns[c].title != NULL; c++) {
        rows->widths[c] = (unsigned)strlen(rows->columns[c].title);
        json_array_foreach(rows->held, i, row)
        {
            cell_text(rows, &rows->columns[c], row, text);
            rows->widths[c] = KVT_MAX(rows->widths[c], (unsigned)strlen(text));
        }
    }
    rows->shaped = true;
    fputs(kvctl_color(&rows->style, KVCTL_BOLD), stdout);
    line_print(rows, NULL);
    fputs(kvctl_color(&rows->style, KVCTL_PLAIN), stdout);
    json_array_foreach(rows->held, i, row)
    {
        line_print(rows, row);
    }
    json_array_clear(rows->held);
}

void kvctl_rows_begin(struct kvctl_rows *rows, const struct kvctl_style *style, const char *name,
                      const struct kvctl_column *columns)
{
    *rows = (struct kvctl_rows){
        .style = *style, .name = name, .columns = columns, .held = json_array()};
}

void kvctl_rows_add(struct kvctl_rows *rows, json_t *row)
{
    switch (rows->style.format) {
    case KVCTL_JSON:
        if (rows->n == 0)
            printf("{\"%s\": [\n", rows->name);
        else
            fputs(",\n", stdout);
        (void)json_dumpf(row, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9));
        break;
    case KVCTL_YAML:
        if (rows->n == 0)
            rows->yaml = kvctl_yaml_begin(rows->name);
        if (rows->yaml != NULL)
            kvctl_yaml_add(rows->yaml, row);
        break;
    default:
        if (rows->shaped) {
            line_print(rows, row);
            break;
        }
        (void)json_array_append(rows->held, row);
        if (json_array_size(rows->held) >= KVCTL_HELD_MAX)
            table_shape(rows);
        break;
    }
    rows->n++;
    json_decref(row);
}

static bool stdout_good(void)
{
    if (fflush(stdout) == 0 && ferror(stdout) == 0)
        return true;
    fprintf(stderr, "kvctl: cannot write the results: %s; check where stdout goes\n",
            strerror(errno));
    return false;
}

bool kvctl_rows_end(struct kvctl_rows *rows)
{
    switch (rows->style.format) {
    case KVCTL_JSON:
        if (rows->n == 0)
            printf("{\"%s\": []}\n", rows->name);
        else
            fputs("\n]}\n", stdout);
        break;
    case KVCTL_YAML:
        if (rows->yaml != NULL)
            kvctl_yaml_end(rows->yaml);
        else
            printf("%s: []\n", rows->name);
        break;
    default:
        if (!rows->shaped)
            table_shape(rows);
        break;
    }
    json_decref(rows->held);
    return stdout_good();
}

void kvctl_rows_drop(struct kvctl_rows *rows)
{
    if (rows->yaml != NULL)
        kvctl_yaml_end(rows->yaml);
    if (json_array_size(rows->held) > 0)
        table_shape(rows);
    json_decref(rows->held);
    (void)fflush(stdout);
}

/* --- one object ------------------------------------------------------------------------------ */

static void object_line(void *arg, enum kvctl_walk_event event, const char *key,
                        const json_t *value, unsigned depth)
{
    const struct kvctl_style *style = arg;
    char text[KVCTL_TEXT_BYTES];
    if (event == KVCTL_WALK_END || depth == 0)
        return;
    int indent = (int)(2 * (depth - 1));
    if (key == NULL && event == KVCTL_WALK_BEGIN) {
        printf("%*s-\n", indent, "");
        return;
    }
    if (event == KVCTL_WALK_BEGIN) {
        if (json_object_size(value) + json_array_size(value) > 0)
            printf("%*s%s%s:%s\n", indent, "", kvctl_color(style, KVCTL_BOLD), key,
                   kvctl_color(style, KVCTL_PLAIN));
        return;
    }
    kvctl_text(key != NULL ? key : "", value, text);
    if (key == NULL)
        printf("%*s%s\n", indent, "", text);
    else
        printf("%*s%s%s%s:%*s%s\n", indent, "", kvctl_color(style, KVCTL_BOLD), key,
               kvctl_color(style, KVCTL_PLAIN), KVT_MAX(28 - (int)strlen(key) - indent, 1), "",
               text);
}

bool kvctl_object_print(const struct kvctl_style *style, const json_t *object)
{
    struct kvctl_yaml *yaml;
    switch (style->format) {
    case KVCTL_JSON:
        (void)json_dumpf(object, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
        putchar('\n');
        break;
    case KVCTL_YAML:
        yaml = kvctl_yaml_begin(NULL);
        if (yaml != NULL) {
            kvctl_yaml_add(yaml, object);
            kvctl_yaml_end(yaml);
        }
        break;
    default:
        kvctl_walk(object, object_line, (void *)style);
        break;
    }
    return stdout_good();
}
