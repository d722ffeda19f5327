/* SPDX-License-Identifier: Apache-2.0 */
#include "kvt/log.h"
#include "kvt/util.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LINES_PER_WINDOW 10
#define WINDOW_NS        UINT64_C(1000000000)
#define TEXT_BYTES       1024
#define LINE_BYTES       (TEXT_BYTES * 6 + 256) /* every byte of the text escaped, and the frame */

static atomic_int log_level = KVT_LOG_INFO;
static atomic_int log_format = KVT_LOG_TEXT;

static const char *const level_names[] = {"error", "warn", "info", "debug", "trace"};
static const char *const format_names[] = {"text", "json"};

void kvt_log_setup(enum kvt_log_level level, enum kvt_log_format format)
{
    atomic_store_explicit(&log_level, (int)level, memory_order_relaxed);
    atomic_store_explicit(&log_format, (int)format, memory_order_relaxed);
}

bool kvt_log_enabled(enum kvt_log_level level)
{
    return (int)level <= atomic_load_explicit(&log_level, memory_order_relaxed);
}

bool kvt_log_level_parse(const char *text, enum kvt_log_level *level_p)
{
    for (unsigned i = 0; i < KVT_ARRAY_LEN(level_names); i++) {
        if (strcmp(text, level_names[i]) == 0) {
            *level_p = (enum kvt_log_level)i;
            return true;
        }
    }
    return false;
}

bool kvt_log_format_parse(const char *text, enum kvt_log_format *format_p)
{
    for (unsigned i = 0; i < KVT_ARRAY_LEN(format_names); i++) {
        if (strcmp(text, format_names[i]) == 0) {
            *format_p = (enum kvt_log_format)i;
            return true;
        }
    }
    return false;
}

/* Whether this line may go out; *n_suppressed_p is what it should report of those that did not. */
static bool site_pass(struct kvt_log_site *site, unsigned *n_suppressed_p)
{
    unsigned long long now = kvt_now_ns();
    unsigned long long window = atomic_load_explicit(&site->window_ns, memory_order_relaxed);
    if (now - window >= WINDOW_NS &&
        atomic_compare_exchange_strong_explicit(&site->window_ns, &window, now,
                                                memory_order_relaxed, memory_order_relaxed))
        atomic_store_explicit(&site->n_in_window, 0, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&site->n_in_window, 1, memory_order_relaxed) >=
        LINES_PER_WINDOW) {
        atomic_fetch_add_explicit(&site->n_suppressed, 1, memory_order_relaxed);
        return false;
    }
    *n_suppressed_p = atomic_exchange_explicit(&site->n_suppressed, 0, memory_order_relaxed);
    return true;
}

struct line {
    size_t len;
    char text[LINE_BYTES];
};

static void line_char(struct line *line, char c)
{
    if (line->len < sizeof(line->text) - 1)
        line->text[line->len++] = c;
}

static void line_str(struct line *line, const char *text)
{
    while (*text != '\0')
        line_char(line, *text++);
}

/* A JSON string; bytes that are not printable ASCII become escapes, so the line is always valid. */
static void line_json(struct line *line, const char *text, size_t len)
{
    static const char hex[] = "0123456789abcdef";
    line_char(line, '"');
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c == '"' || c == '\\') {
            line_char(line, '\\');
            line_char(line, (char)c);
        } else if (c < 0x20 || c >= 0x7f) {
            line_str(line, "\\u00");
            line_char(line, hex[c >> 4]);
            line_char(line, hex[c & 15]);
        } else {
            line_char(line, (char)c);
        }
    }
    line_char(line, '"');
}

/* Start of the next " key=" at or after text, or its end. */
static const char *pair_find(const char *text)
{
    for (const char *p = text; (p = strchr(p, ' ')) != NULL; p++) {
        const char *key = p + 1;
        size_t n = 0;
        while (islower((unsigned char)key[n]) || (n > 0 && isdigit((unsigned char)key[n])) ||
               (n > 0 && key[n] == '_'))
            n++;
        if (n > 0 && key[n] == '=')
            return p;
    }
    return text + strlen(text);
}

static void format_json(struct line *line, const char *time, enum kvt_log_level level,
                        const char *text)
{
    const char *end = pair_find(text);
    line_str(line, "{\"time\":\"");
    line_str(line, time);
    line_str(line, "\",\"level\":\"");
    line_str(line, level_names[level]);
    line_str(line, "\",\"msg\":");
    line_json(line, text, (size_t)(end - text));
    while (*end != '\0') {
        const char *key = end + 1;
        const char *value = strchr(key, '=') + 1;
        end = pair_find(value);
        line_char(line, ',');
        line_json(line, key, (size_t)(value - key - 1));
        line_char(line, ':');
        line_json(line, value, (size_t)(end - value));
    }
    line_char(line, '}');
}

static void format_text(struct line *line, const char *time, enum kvt_log_level level,
                        const char *text)
{
    line_str(line, time);
    line_char(line, ' ');
    line_str(line, level_names[level]);
    line_str(line, &"      "[strlen(level_names[level])]);
    /* Text may hold what a client called itself: no control byte reaches the terminal. */
    for (; *text != '\0'; text++)
        line_char(line, (unsigned char)*text < 0x20 || *text == 0x7f ? '?' : *text);
}

void kvt_log_write(struct kvt_log_site *site, enum kvt_log_level level, const char *format, ...)
{
    char text[TEXT_BYTES];
    char date[32];
    char time[48];
    struct timespec now;
    struct tm tm;
    struct line line = {0};
    unsigned n_suppressed;
    va_list ap;

    if (!site_pass(site, &n_suppressed))
        return;
    va_start(ap, format);
    int n = vsnprintf(text, sizeof(text), format, ap);
    va_end(ap);
    if (n > 0 && n_suppressed > 0 && (size_t)n < sizeof(text))
        snprintf(text + n, sizeof(text) - (size_t)n, " suppressed=%u", n_suppressed);
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &tm);
    strftime(date, sizeof(date), "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(time, sizeof(time), "%s.%03ldZ", date, now.tv_nsec / 1000000);
    if (atomic_load_explicit(&log_format, memory_order_relaxed) == KVT_LOG_JSON)
        format_json(&line, time, level, text);
    else
        format_text(&line, time, level, text);
    line.text[line.len++] = '\n'; /* line_char() keeps one byte free */
    /* One write per line, so that lines of threads do not mix; a full pipe may cost the line. */
    if (write(STDERR_FILENO, line.text, line.len) < 0)
        return;
}
