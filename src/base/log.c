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

/* Bytes of the UTF-8 character at text, or 0: it is none (of at least two bytes). */
static size_t utf8_length(const unsigned char *text, size_t len)
{
    size_t n = text[0] >= 0xc2 && text[0] <= 0xdf   ? 2
               : (text[0] & 0xf0) == 0xe0           ? 3
               : text[0] >= 0xf0 && text[0] <= 0xf4 ? 4
                                                    : 0;
    if (n == 0 || n > len)
        return 0;
    for (size_t i = 1; i < n; i++) {
        if ((text[i] & 0xc0) != 0x80)
            return 0;
    }
    /* Longer than need be, halves of pairs, and past the last character. */
    if ((text[0] == 0xe0 && text[1] < 0xa0) || (text[0] == 0xed && text[1] > 0x9f) ||
        (text[0] == 0xf0 && text[1] < 0x90) || (text[0] == 0xf4 && text[1] > 0x8f))
        return 0;
    return n;
}

/* A JSON string. Characters pass, control bytes and what is no character become escapes. */
static void line_json(struct line *line, const char *text, size_t len)
{
    static const char hex[] = "0123456789abcdef";
    line_char(line, '"');
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)text[i];
        size_t n = utf8_length((const unsigned char *)text + i, len - i);
        if (n > 0) {
            for (size_t k = 0; k < n; k++)
                line_char(line, text[i + k]);
            i += n - 1;
        } else if (c == '"' || c == '\\') {
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

/*
 * Pairs are found in the format, never in what it is filled with: a value may hold anything, also
 * " key=". MARK takes the place of the space before each key.
 */
#define MARK '\x01'

/* Length of the "key=" at text, or 0. */
static size_t key_length(const char *text)
{
    size_t n = 0;
    while (islower((unsigned char)text[n]) ||
           (n > 0 && (isdigit((unsigned char)text[n]) || text[n] == '_' || text[n] == '.')))
        n++;
    return n > 0 && text[n] == '=' ? n + 1 : 0;
}

/* Copy format with its pairs marked; how many that are. Too long: none. */
static unsigned pairs_mark(const char *format, char marked[TEXT_BYTES])
{
    unsigned n = 0;
    size_t i = 0;
    for (; format[i] != '\0' && i < TEXT_BYTES - 1; i++) {
        bool pair = format[i] == ' ' && key_length(format + i + 1) > 0;
        marked[i] = pair ? MARK : format[i];
        n += pair;
    }
    marked[i] = '\0';
    return format[i] == '\0' ? n : 0;
}

static unsigned marks_count(const char *text)
{
    unsigned n = 0;
    for (; (text = strchr(text, MARK)) != NULL; text++)
        n++;
    return n;
}

/* The sentence ends, and each pair, at a mark or at the end. */
static size_t part_length(const char *text)
{
    return strcspn(text, "\x01");
}

static void format_json(struct line *line, const char *time, enum kvt_log_level level,
                        const char *text)
{
    size_t n = part_length(text);
    line_str(line, "{\"time\":\"");
    line_str(line, time);
    line_str(line, "\",\"level\":\"");
    line_str(line, level_names[level]);
    line_str(line, "\",\"msg\":");
    line_json(line, text, n);
    for (text += n; *text == MARK; text += n) {
        text++;
        n = part_length(text);
        size_t n_key = key_length(text);
        if (n_key == 0 || n_key > n) /* cut */
            break;
        line_char(line, ',');
        line_json(line, text, n_key - 1);
        line_char(line, ':');
        line_json(line, text + n_key, n - n_key);
    }
    line_char(line, '}');
}

/* Text may hold what a client called itself: no control byte reaches the terminal. */
static void line_plain(struct line *line, const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++)
        line_char(line, (unsigned char)text[i] < 0x20 || text[i] == 0x7f ? '?' : text[i]);
}

/* A value that would not be seen as one is quoted. */
static void line_value(struct line *line, const char *text, size_t len)
{
    bool quote = len == 0;
    for (size_t i = 0; i < len; i++)
        quote = quote || text[i] == ' ' || text[i] == '"' || text[i] == '=';
    if (!quote) {
        line_plain(line, text, len);
        return;
    }
    line_char(line, '"');
    for (size_t i = 0; i < len; i++) {
        if (text[i] == '"' || text[i] == '\\')
            line_char(line, '\\');
        line_plain(line, text + i, 1);
    }
    line_char(line, '"');
}

static void format_text(struct line *line, const char *time, enum kvt_log_level level,
                        const char *text)
{
    size_t n = part_length(text);
    line_str(line, time);
    line_char(line, ' ');
    line_str(line, level_names[level]);
    line_str(line, &"      "[strlen(level_names[level])]);
    line_plain(line, text, n);
    for (text += n; *text == MARK; text += n) {
        text++;
        n = part_length(text);
        size_t n_key = KVT_MIN(key_length(text), n);
        line_char(line, ' ');
        line_plain(line, text, n_key);
        line_value(line, text + n_key, n - n_key);
    }
}

void kvt_log_write(struct kvt_log_site *site, enum kvt_log_level level, const char *format, ...)
{
    char marked[TEXT_BYTES];
    char text[TEXT_BYTES];
    char date[32];
    char time[48];
    struct timespec now;
    struct tm tm;
    struct line line = {0};
    unsigned n_suppressed = 0;
    va_list ap;

    if (site != NULL && !site_pass(site, &n_suppressed))
        return;
    unsigned n_pairs = pairs_mark(format, marked);
    va_start(ap, format);
    int n = vsnprintf(text, sizeof(text), n_pairs > 0 ? marked : format, ap);
    va_end(ap);
    if (marks_count(text) > n_pairs) { /* somebody put them there: tell no pairs then */
        for (char *mark = text; (mark = strchr(mark, MARK)) != NULL;)
            *mark = ' ';
    }
    if (n > 0 && n_suppressed > 0 && (size_t)n < sizeof(text))
        snprintf(text + n, sizeof(text) - (size_t)n, "\x01suppressed=%u", n_suppressed);
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
