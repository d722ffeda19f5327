/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KVT_LOG_H
#define KVT_LOG_H

#include <stdbool.h>

enum kvt_log_level { KVT_LOG_ERROR, KVT_LOG_WARN, KVT_LOG_INFO, KVT_LOG_DEBUG, KVT_LOG_TRACE };
enum kvt_log_format { KVT_LOG_TEXT, KVT_LOG_JSON };

/* The only mutable globals of the project, set once at start and by reload. */
void kvt_log_setup(enum kvt_log_level level, enum kvt_log_format format);
bool kvt_log_enabled(enum kvt_log_level level);
bool kvt_log_level_parse(const char *text, enum kvt_log_level *level_p);
bool kvt_log_format_parse(const char *text, enum kvt_log_format *format_p);

/**
 * One line on stderr: time, level, a lower-case sentence, then key=value pairs as the caller wrote
 * them ("%s key=%d"). Thread-safe. Each call site is limited to 10 lines a second; what was
 * suppressed is counted on the next line that passes (suppressed=N).
 */
#define kvt_log(level, ...)                                                                        \
    do {                                                                                           \
        static struct kvt_log_site kvt_site_;                                                      \
        if (kvt_log_enabled(level))                                                                \
            kvt_log_write(&kvt_site_, level, __VA_ARGS__);                                         \
    } while (0)

/* The same without a limit: for lists of known length, as at start. */
#define kvt_log_all(level, ...)                                                                    \
    do {                                                                                           \
        if (kvt_log_enabled(level))                                                                \
            kvt_log_write(NULL, level, __VA_ARGS__);                                               \
    } while (0)

struct kvt_log_site {
    _Atomic unsigned long long window_ns; /* start of the present second */
    _Atomic unsigned n_in_window;
    _Atomic unsigned n_suppressed;
};

void kvt_log_write(struct kvt_log_site *site, enum kvt_log_level level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
