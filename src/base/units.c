/* SPDX-License-Identifier: Apache-2.0 */
#include "kvt/units.h"
#include "kvt/util.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

struct unit { /* ascending */
    const char *name;
    uint64_t factor;
};

static const struct unit bytes_units[] = {
    {"B", 1}, {"KiB", KVT_KIB}, {"MiB", KVT_MIB}, {"GiB", KVT_GIB}, {"TiB", KVT_TIB},
};

static const struct unit time_units[] = {
    {"ns", 1},           {"us", KVT_NS_PER_US},    {"ms", KVT_NS_PER_MS},
    {"s", KVT_NS_PER_S}, {"m", 60 * KVT_NS_PER_S}, {"h", 3600 * KVT_NS_PER_S},
};

/* The digits at the start of text; the rest is *end_p. */
static bool digits_parse(const char *text, uint64_t *value_p, const char **end_p)
{
    uint64_t value = 0;
    const char *p = text;
    for (; *p >= '0' && *p <= '9'; p++) {
        if (__builtin_mul_overflow(value, 10, &value) ||
            __builtin_add_overflow(value, (uint64_t)(*p - '0'), &value))
            return false;
    }
    *value_p = value;
    *end_p = p;
    return p != text;
}

static bool unit_parse(const struct unit *units, size_t n_units, bool bare, const char *text,
                       uint64_t *value_p)
{
    uint64_t value;
    const char *name;
    if (!digits_parse(text, &value, &name))
        return false;
    while (*name == ' ')
        name++;
    if (*name == '\0') {
        if (!bare && value != 0)
            return false;
        *value_p = value;
        return true;
    }
    for (size_t i = 0; i < n_units; i++) {
        if (strcmp(name, units[i].name) == 0) {
            if (__builtin_mul_overflow(value, units[i].factor, &value))
                return false;
            *value_p = value;
            return true;
        }
    }
    return false;
}

static void unit_format(const struct unit *units, size_t n_units, uint64_t value, char *text)
{
    size_t i = n_units - 1;
    while (i > 0 && (value == 0 || value % units[i].factor != 0))
        i--;
    snprintf(text, KVT_UNITS_TEXT_BYTES, "%" PRIu64 "%s", value / units[i].factor, units[i].name);
}

bool kvt_bytes_parse(const char *text, uint64_t *bytes_p)
{
    return unit_parse(bytes_units, KVT_ARRAY_LEN(bytes_units), true, text, bytes_p);
}

bool kvt_time_parse(const char *text, uint64_t *ns_p)
{
    return unit_parse(time_units, KVT_ARRAY_LEN(time_units), false, text, ns_p);
}

bool kvt_number_parse(const char *text, uint64_t *value_p)
{
    uint64_t value;
    const char *end;
    if (!digits_parse(text, &value, &end) || *end != '\0')
        return false;
    *value_p = value;
    return true;
}

void kvt_bytes_format(uint64_t bytes, char text[KVT_UNITS_TEXT_BYTES])
{
    unit_format(bytes_units, KVT_ARRAY_LEN(bytes_units), bytes, text);
}

void kvt_time_format(uint64_t ns, char text[KVT_UNITS_TEXT_BYTES])
{
    unit_format(time_units, KVT_ARRAY_LEN(time_units), ns, text);
}
