/* SPDX-License-Identifier: Apache-2.0 */
/* Options of command lines, read with a message on stderr that names program and option. */
#ifndef KVT_OPTIONS_H
#define KVT_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

/* Each prints what is wrong on stderr and returns false when text is not what is wanted. */
bool kvt_option_bytes(const char *option, const char *text, uint64_t min, uint64_t max,
                      uint64_t *value_p); /* also "1.5MiB" */
bool kvt_option_number(const char *option, const char *text, uint64_t min, uint64_t max,
                       uint64_t *value_p);
bool kvt_option_real(const char *option, const char *text, double min, double max, double *value_p);

#define KVT_OPTION_LIST_MAX 32
/* Sizes separated by commas. */
bool kvt_option_bytes_list(const char *option, const char *text, uint64_t min, uint64_t max,
                           uint64_t values[KVT_OPTION_LIST_MAX], unsigned *n_p);

#endif
