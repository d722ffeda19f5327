/* SPDX-License-Identifier: Apache-2.0 */
#include "kvt/options.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvt/units.h"
#include "kvt/util.h"

/* "1.5MiB": a fraction of a unit, which must come to whole bytes. */
static bool fraction_parse(const char *text, uint64_t *bytes_p)
{
    char *unit;
    double value = strtod(text, &unit);
    char one[16];
    uint64_t factor;
    if (text[0] < '0' || text[0] > '9' || !(value >= 0) || strlen(unit) + 2 > sizeof(one))
        return false;
    snprintf(one, sizeof(one), "1%s", unit);
    if (!kvt_bytes_parse(one, &factor))
        return false;
    double bytes = value * (double)factor;
    if (bytes >= 0x1p63 || bytes != (double)(uint64_t)bytes)
        return false;
    *bytes_p = (uint64_t)bytes;
    return true;
}

bool kvt_option_bytes(const char *option, const char *text, uint64_t min, uint64_t max,
                      uint64_t *value_p)
{
    uint64_t value;
    if ((kvt_bytes_parse(text, &value) || fraction_parse(text, &value)) && value >= min &&
        value <= max) {
        *value_p = value;
        return true;
    }
    char low[KVT_UNITS_TEXT_BYTES], high[KVT_UNITS_TEXT_BYTES];
    kvt_bytes_format(min, low);
    kvt_bytes_format(max, high);
    fprintf(stderr, "%s: %s: \"%s\" is not a size from %s to %s (units: %s)\n",
            program_invocation_short_name, option, text, low, high, KVT_BYTES_UNITS);
    return false;
}

bool kvt_option_number(const char *option, const char *text, uint64_t min, uint64_t max,
                       uint64_t *value_p)
{
    uint64_t value;
    if (kvt_number_parse(text, &value) && value >= min && value <= max) {
        *value_p = value;
        return true;
    }
    fprintf(stderr, "%s: %s: \"%s\" is not a whole number from %" PRIu64 " to %" PRIu64 "\n",
            program_invocation_short_name, option, text, min, max);
    return false;
}

bool kvt_option_real(const char *option, const char *text, double min, double max, double *value_p)
{
    char *end;
    errno = 0;
    double value = strtod(text, &end);
    if (end != text && *end == '\0' && errno == 0 && value >= min && value <= max) {
        *value_p = value;
        return true;
    }
    fprintf(stderr, "%s: %s: \"%s\" is not a number from %g to %g\n", program_invocation_short_name,
            option, text, min, max);
    return false;
}

bool kvt_option_bytes_list(const char *option, const char *text, uint64_t min, uint64_t max,
                           uint64_t values[KVT_OPTION_LIST_MAX], unsigned *n_p)
{
    unsigned n = 0;
    while (n < KVT_OPTION_LIST_MAX) {
        char one[64];
        size_t length = strcspn(text, ",");
        snprintf(one, sizeof(one), "%.*s", (int)KVT_MIN(length, sizeof(one) - 1), text);
        if (!kvt_option_bytes(option, one, min, max, &values[n++]))
            return false;
        if (text[length] == '\0') {
            *n_p = n;
            return true;
        }
        text += length + 1;
    }
    fprintf(stderr, "%s: %s: more than %d values\n", program_invocation_short_name, option,
            KVT_OPTION_LIST_MAX);
    return false;
}
