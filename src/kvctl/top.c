/* SPDX-License-Identifier: Apache-2.0 */
/* kvctl top: a screen that is drawn anew at every interval; frames one after the other where
 * stdout is no terminal. */
#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include "kvt/interrupt.h"
#include "kvt/units.h"
#include "kvt/util.h"
#include "message.h"
#include "rates.h"

#define BAR_WIDTH      24
#define NAMESPACES_MAX 8 /* shown */
#define FRAME_BYTES    16384

struct frame { /* drawn at once, so that it does not flicker */
    char text[FRAME_BYTES];
    size_t n;
    unsigned lines, lines_max;
};

struct screen {
    struct kvctl *k;
    bool terminal, keys;  /* of stdout; of stdin */
    struct termios saved; /* with keys */
    struct kvctl_sample before, now;
    struct frame frame;
};

__attribute__((format(printf, 2, 3))) static void line(struct frame *frame, const char *format, ...)
{
    va_list ap;
    if (frame->lines >= frame->lines_max)
        return;
    va_start(ap, format);
    int n = vsnprintf(frame->text + frame->n, FRAME_BYTES - frame->n, format, ap);
    va_end(ap);
    if (n > 0 && (size_t)n + 8 < FRAME_BYTES - frame->n) {
        frame->n += (size_t)n;
        frame->n += (size_t)snprintf(frame->text + frame->n, FRAME_BYTES - frame->n, "\n");
        frame->lines++;
    } else {
        frame->text[frame->n] = '\0';
    }
}

static void rates_draw(struct screen *s, const json_t *rates)
{
    static const struct {
        const char *title, *path;
    } cells[] = {
        {"lookups/s", "lookups_per_s"},
        {"keys/s", "lookup_keys_per_s"},
        {"hit ratio", "hit_ratio"},
        {"host loads/s", "load_host_per_s"},
        {"nvme loads/s", "load_nvme_per_s"},
        {"misses/s", "load_miss_per_s"},
        {"stored/s", "stored_per_s"},
        {"stored", "stored_bytes_per_s"},
        {"refused/s", "refused_per_s"},
        {"nvme read", "nvme_read_bytes_per_s"},
        {"nvme write", "nvme_write_bytes_per_s"},
        {"corrupt/s", "corrupt_per_s"},
        {"evicted host/s", "evict_host_per_s"},
        {"evicted nvme/s", "evict_nvme_per_s"},
        {"sessions", "sessions"},
    };
    char row[256];
    size_t n = 0;
    for (size_t i = 0; i < KVT_ARRAY_LEN(cells); i++) {
        char text[KVCTL_TEXT_BYTES];
        kvctl_text(cells[i].path, kvctl_field(rates, cells[i].path), text);
        n += (size_t)snprintf(row + n, sizeof(row) - n, "%-15s %-11.11s", cells[i].title, text);
        if (i % 3 == 2) {
            while (n > 0 && row[n - 1] == ' ')
                row[--n] = '\0';
            line(&s->frame, "  %s", row);
            n = 0;
        }
    }
}

static bool tier_draw(void *arg, const ProtobufCMessage *item)
{
    struct screen *s = arg;
    const Kvtier__V1__TierInfo *tier = KVCTL_AS(Kvtier__V1__TierInfo, item);
    char used[KVCTL_TEXT_BYTES], room[KVCTL_TEXT_BYTES], bar[BAR_WIDTH + 1];
    char name[KVCTL_TEXT_BYTES], note[KVCTL_TEXT_BYTES];
    double share =
        tier->capacity_bytes > 0 ? (double)tier->used_bytes / (double)tier->capacity_bytes : 0.0;
    unsigned n = (unsigned)(KVT_MIN(share, 1.0) * BAR_WIDTH);
    memset(bar, '.', BAR_WIDTH);
    memset(bar, '#', n);
    bar[BAR_WIDTH] = '\0';
    kvctl_string_text(tier->name, name);
    kvctl_string_text(tier->note, note);
    kvctl_bytes_text((double)tier->used_bytes, used);
    kvctl_bytes_text((double)tier->capacity_bytes, room);
    line(&s->frame, "  %-5s [%s] %3.0f %%  %s of %s, %" PRIu64 " chunks%s%s", name, bar,
         100.0 * share, used, room, tier->n_chunks, tier->degraded ? "  DEGRADED: " : "",
         tier->degraded ? note : "");
    return true;
}

struct ranking {
    json_t *items; /* NAMESPACES_MAX at most, most bytes first */
};

static bool namespace_rank(void *arg, const ProtobufCMessage *item)
{
    struct ranking *ranking = arg;
    const Kvtier__V1__Namespace *ns = KVCTL_AS(Kvtier__V1__Namespace, item);
    json_int_t bytes = (json_int_t)ns->host_bytes + (json_int_t)ns->nvme_bytes;
    size_t at = 0;
    while (at < json_array_size(ranking->items) &&
           json_integer_value(kvctl_field(json_array_get(ranking->items, at), "all_bytes")) >=
               bytes)
        at++;
    if (at == NAMESPACES_MAX)
        return true;
    json_t *json = kvctl_message_json(item);
    (void)json_object_set_new(json, "all_bytes", json_integer(bytes));
    (void)json_array_insert_new(ranking->items, at, json);
    if (json_array_size(ranking->items) > NAMESPACES_MAX)
        (void)json_array_remove(ranking->items, NAMESPACES_MAX);
    return true;
}

static void namespaces_draw(struct screen *s, const json_t *items)
{
    size_t i;
    json_t *ns;
    line(&s->frame, "%s  %-12s %10s %10s %10s  %s%s", kvctl_color(&s->k->style, KVCTL_BOLD),
         "NAMESPACE", "CHUNKS", "HOST", "NVME", "MODEL", kvctl_color(&s->k->style, KVCTL_PLAIN));
    json_array_foreach((json_t *)items, i, ns)
    {
        char id[KVCTL_TEXT_BYTES], chunks[KVCTL_TEXT_BYTES], host[KVCTL_TEXT_BYTES];
        char nvme[KVCTL_TEXT_BYTES], model[KVCTL_TEXT_BYTES];
        kvctl_text("id", kvctl_field(ns, "id"), id);
        kvctl_text("n_chunks", kvctl_field(ns, "n_chunks"), chunks);
        kvctl_text("host_bytes", kvctl_field(ns, "host_bytes"), host);
        kvctl_text("nvme_bytes", kvctl_field(ns, "nvme_bytes"), nvme);
        kvctl_text("model", kvctl_field(ns, "model"), model);
        line(&s->frame, "  %-12.12s %10s %10s %10s  %.40s", id, chunks, host, nvme, model);
    }
}

static enum kvctl_exit frame_draw(struct screen *s)
{
    Kvtier__V1__GetNodeRequest node_request = KVTIER__V1__GET_NODE_REQUEST__INIT;
    Kvtier__V1__ListTiersRequest tiers = KVTIER__V1__LIST_TIERS_REQUEST__INIT;
    Kvtier__V1__ListNamespacesRequest namespaces = KVTIER__V1__LIST_NAMESPACES_REQUEST__INIT;
    struct ranking ranking = {.items = json_array()};
    struct winsize size = {.ws_row = 0};
    ProtobufCMessage *reply = NULL;
    char state[KVCTL_TEXT_BYTES], uptime[KVCTL_TEXT_BYTES];
    char version[KVCTL_TEXT_BYTES], hostname[KVCTL_TEXT_BYTES];
    s->frame.n = s->frame.lines = 0;
    s->frame.lines_max =
        s->terminal && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_row > 1
            ? size.ws_row - 1U
            : UINT32_MAX;
    enum kvctl_exit code = kvctl_call(s->k, "GetNode", &node_request.base, &reply);
    if (code == KVCTL_OK) {
        json_t *node = kvctl_message_json(reply);
        protobuf_c_message_free_unpacked(reply, NULL);
        kvctl_text("state", kvctl_field(node, "state"), state);
        kvctl_text("uptime_ms", kvctl_field(node, "uptime_ms"), uptime);
        kvctl_text("version", kvctl_field(node, "version"), version);
        kvctl_text("hostname", kvctl_field(node, "hostname"), hostname);
        line(&s->frame, "%skvtierd %s%s on %s: %s, up %s%s", kvctl_color(&s->k->style, KVCTL_BOLD),
             version, kvctl_color(&s->k->style, KVCTL_PLAIN), hostname, state, uptime,
             s->keys ? "    (q: quit)" : "");
        json_decref(node);
        code = kvctl_sample_take(s->k, &s->now);
    }
    if (code == KVCTL_OK) {
        json_t *rates = kvctl_rates(&s->before, &s->now);
        rates_draw(s, rates);
        json_decref(rates);
        code = kvctl_list(s->k, "ListTiers", &tiers.base, tier_draw, s);
    }
    if (code == KVCTL_OK)
        code = kvctl_list(s->k, "ListNamespaces", &namespaces.base, namespace_rank, &ranking);
    if (code == KVCTL_OK) {
        namespaces_draw(s, ranking.items);
        printf("%s%s%s", s->terminal ? "\033[H\033[J" : "", s->frame.text, s->terminal ? "" : "\n");
        (void)fflush(stdout);
    }
    json_decref(ranking.items);
    kvctl_sample_free(&s->before);
    s->before = s->now;
    s->now.stats = NULL;
    return code;
}

/* Wait for the next frame. False: a person wants to leave. */
static bool frame_wait(struct screen *s, uint64_t interval_ns)
{
    struct pollfd fd = {.fd = s->keys ? STDIN_FILENO : -1, .events = POLLIN};
    uint64_t end_ns = kvt_now_ns() + interval_ns;
    for (uint64_t now_ns = kvt_now_ns(); now_ns < end_ns; now_ns = kvt_now_ns()) {
        char key;
        int n = poll(&fd, 1, (int)((end_ns - now_ns) / KVT_NS_PER_MS) + 1);
        if (kvt_interrupted())
            return false;
        if (n > 0 && (read(STDIN_FILENO, &key, 1) != 1 || key == 'q' || key == 'Q'))
            return false;
    }
    return true;
}

static void screen_open(struct screen *s)
{
    s->terminal = isatty(STDOUT_FILENO) == 1;
    s->keys = s->terminal && tcgetattr(STDIN_FILENO, &s->saved) == 0;
    if (s->keys) {
        struct termios raw = s->saved;
        raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
        s->keys = tcsetattr(STDIN_FILENO, TCSANOW, &raw) == 0;
    }
    if (s->terminal)
        printf("\033[?1049h\033[?25l"); /* another screen, no cursor */
}

static void screen_close(struct screen *s)
{
    if (s->terminal)
        printf("\033[?25h\033[?1049l");
    (void)fflush(stdout);
    if (s->keys)
        (void)tcsetattr(STDIN_FILENO, TCSANOW, &s->saved);
}

enum kvctl_exit kvctl_run_top(struct kvctl *k, int argc, char **argv)
{
    uint64_t interval_ns, count;
    (void)argc;
    (void)argv;
    if (k->style.format == KVCTL_JSON || k->style.format == KVCTL_YAML)
        return kvctl_fail(KVCTL_USAGE, "top: is for people; 'kvctl stat -w -o %s' has its rates",
                          k->values[KVCTL_OPT_OUTPUT]);
    enum kvctl_exit code = kvctl_interval(k, &interval_ns, &count);
    if (code != KVCTL_OK)
        return code;
    struct screen *s = calloc(1, sizeof(*s));
    if (s == NULL)
        return kvctl_fail(KVCTL_FAILED, "out of memory");
    s->k = k;
    code = kvctl_sample_take(k, &s->before); /* an error belongs on the screen that stays */
    if (code == KVCTL_OK) {
        kvt_interrupt_setup();
        screen_open(s);
        for (uint64_t n = 0; code == KVCTL_OK && (count == 0 || n < count); n++) {
            if (!frame_wait(s, interval_ns))
                break;
            code = frame_draw(s);
        }
        screen_close(s);
    }
    kvctl_sample_free(&s->before);
    kvctl_sample_free(&s->now);
    free(s);
    return code;
}
