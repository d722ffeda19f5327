/* SPDX-License-Identifier: Apache-2.0 */
/* Sizes and times as people write them: one syntax for config, --set and command lines. */
#ifndef KVT_UNITS_H
#define KVT_UNITS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KVT_NS_PER_US UINT64_C(1000)
#define KVT_NS_PER_MS UINT64_C(1000000)
#define KVT_NS_PER_S  UINT64_C(1000000000)

#define KVT_BYTES_UNITS "B, KiB, MiB, GiB or TiB"
#define KVT_TIME_UNITS  "ns, us, ms, s, m or h"

/* "64GiB", "64 GiB", "4096" (bytes). False: no number, an unknown unit, or past 64 bits. */
bool kvt_bytes_parse(const char *text, uint64_t *bytes_p);
/* "250ms", "2 s". A unit is required, but for 0. */
bool kvt_time_parse(const char *text, uint64_t *ns_p);
/* A whole number in decimal, nothing else. */
bool kvt_number_parse(const char *text, uint64_t *value_p);

/* Written exactly, in the largest unit that divides it; what the parser reads back. */
#define KVT_UNITS_TEXT_BYTES 32
void kvt_bytes_format(uint64_t bytes, char text[KVT_UNITS_TEXT_BYTES]);
void kvt_time_format(uint64_t ns, char text[KVT_UNITS_TEXT_BYTES]);

#endif
