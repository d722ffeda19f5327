/* SPDX-License-Identifier: Apache-2.0 */
/* Reading traces: what is right, what is refused and with which words; the yardsticks on traces
 * small enough to be judged by a plain count. */
#include "trace.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kvt/util.h"
#include "offline.h"

#define LINE(t, ids)                                                                               \
    "{\"timestamp\": " t ", \"input_length\": 9, \"output_length\": 2, \"hash_ids\": " ids "}\n"

static enum kvt_status parse(const char *text, size_t max, struct kvt_trace **trace_p,
                             struct kvt_error *err)
{
    return kvt_trace_parse(text, strlen(text), "t", max, trace_p, err);
}

START_TEST(fields_and_blocks_arrive)
{
    struct kvt_trace *trace = NULL;
    struct kvt_error err = {0};
    const char *text = LINE("5", "[7, 9]") "\n \r\n" LINE(
        "5", "[7, 9, 4000000000000]") "{\"timestamp\": 8, \"input_length\": 1, \"output_length\": "
                                      "0, \"hash_ids\": [], \"x\": {}}";
    ck_assert_msg(parse(text, 0, &trace, &err) == KVT_OK, "%s", err.msg);
    ck_assert_uint_eq(trace->n_requests, 3);
    ck_assert_uint_eq(trace->n_blocks, 5);
    ck_assert_uint_eq(trace->n_distinct, 3);
    ck_assert_uint_eq(trace->hash_ids[2], UINT64_C(4000000000000));
    ck_assert_uint_eq(trace->requests[1].timestamp_ms, 5);
    ck_assert_uint_eq(trace->requests[1].first_block, 2);
    ck_assert_uint_eq(trace->requests[1].n_blocks, 3);
    ck_assert_uint_eq(trace->requests[2].n_blocks, 0);
    ck_assert_uint_eq(trace->requests[0].input_length, 9);
    ck_assert_uint_eq(trace->requests[0].output_length, 2);
    ck_assert_uint_eq(trace->blocks[2], 0);
    ck_assert_uint_eq(trace->blocks[4], 2);
    ck_assert_uint_eq(trace->n_rechained, 0);
    ck_assert_uint_eq(kvt_offline_ideal_hits(trace), 2);
    kvt_trace_destroy(trace);

    ck_assert(parse(text, 1, &trace, &err) == KVT_OK);
    ck_assert_uint_eq(trace->n_requests, 1);
    kvt_trace_destroy(trace);
}
END_TEST

START_TEST(a_block_behind_another_one_is_noticed)
{
    struct kvt_trace *trace = NULL;
    struct kvt_error err = {0};
    ck_assert(parse(LINE("0", "[1, 2]") LINE("0", "[3, 2]") LINE("0", "[2]"), 0, &trace, &err) ==
              KVT_OK);
    ck_assert_uint_eq(trace->n_rechained, 2);
    kvt_trace_destroy(trace);
}
END_TEST

static const struct {
    const char *text;
    const char *words; /* of the message */
} faults[] = {
    {"", "no request"},
    {"\n\n", "no request"},
    {LINE("0", "[1]") "{", "line 2: column"},
    {LINE("0", "[1]") LINE("0", "[1]") "garbage", "line 3"},
    {"[]", "line 1: not a JSON object"},
    {"{}", "line 1: there is no \"timestamp\""},
    {LINE("\"0\"", "[1]"), "not an integer: \"timestamp\""},
    {LINE("-1", "[1]"), "\"timestamp\" is -1"},
    {LINE("1e3", "[1]"), "not an integer"},
    {LINE("9223372036854775807", "[1]"), "\"timestamp\" is"},
    {LINE("99999999999999999999999", "[1]"), "line 1"},
    {LINE("0", "7"), "\"hash_ids\" is not an array"},
    {LINE("0", "[1, \"2\"]"), "integers from 0"},
    {LINE("0", "[-1]"), "integers from 0"},
    {LINE("0", "[1.5]"), "integers from 0"},
    {LINE("0", "[1, 2, 1]"), "hash id 1 appears twice"},
    {LINE("5", "[1]") LINE("4", "[1]"), "line 2: timestamp 4 is before"},
    {LINE("0", "[1]") LINE("0", "[1]") "{\"timestamp\": 0, \"timestamp\": 0}", "line 3"},
    {"{\"timestamp\": 0, \"input_length\": 2000000000, \"output_length\": 2, \"hash_ids\": []}",
     "\"input_length\" is 2000000000"},
    {"{\"timestamp\": 0, \"input_length\": 2, \"hash_ids\": []}", "no \"output_length\""},
};

START_TEST(faults_are_named_with_their_line)
{
    struct kvt_trace *trace = NULL;
    struct kvt_error err = {0};
    ck_assert(parse(faults[_i].text, 0, &trace, &err) == KVT_ERR_INVAL);
    ck_assert_ptr_null(trace);
    ck_assert_msg(strstr(err.msg, faults[_i].words) != NULL, "\"%s\" lacks \"%s\"", err.msg,
                  faults[_i].words);
    ck_assert_ptr_eq(strstr(err.msg, "trace t: "), err.msg);
}
END_TEST

START_TEST(bounds_hold)
{
    struct kvt_trace *trace = NULL;
    struct kvt_error err = {0};
    size_t bytes = KVT_TRACE_LINE_MAX + 1;
    char *text = malloc(bytes);
    ck_assert_ptr_nonnull(text);
    memset(text, '[', bytes); /* deeper than any stack, if nothing stopped it */
    ck_assert(kvt_trace_parse(text, bytes, "t", 0, &trace, &err) == KVT_ERR_INVAL);
    ck_assert_ptr_nonnull(strstr(err.msg, "longer than 4 MiB"));
    ck_assert(kvt_trace_parse(text, bytes - 1, "t", 0, &trace, &err) == KVT_ERR_INVAL);
    memset(text, 0, bytes);
    ck_assert(kvt_trace_parse(text, 100, "t", 0, &trace, &err) == KVT_ERR_INVAL);

    size_t n = (size_t)sprintf(text, "{\"timestamp\": 0, \"input_length\": 1, "
                                     "\"output_length\": 1, \"hash_ids\": [0");
    for (unsigned i = 1; i <= KVT_TRACE_REQUEST_BLOCKS_MAX; i++)
        n += (size_t)sprintf(text + n, ",%u", i);
    n += (size_t)sprintf(text + n, "]}");
    ck_assert(kvt_trace_parse(text, n, "t", 0, &trace, &err) == KVT_ERR_INVAL);
    ck_assert_ptr_nonnull(strstr(err.msg, "too long"));
    free(text);
}
END_TEST

static char *file_write(const char *text, size_t bytes)
{
    static char path[] = "/tmp/kvt-trace-XXXXXX";
    memcpy(path + sizeof(path) - 7, "XXXXXX", 6);
    int fd = mkstemp(path);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(write(fd, text, bytes), (ssize_t)bytes);
    close(fd);
    return path;
}

START_TEST(files_are_read_across_the_buffer)
{
    /* Ten lines of about a MiB: the 4 MiB buffer ends within some of them. */
    size_t cap = 12u << 20;
    char *text = malloc(cap);
    ck_assert_ptr_nonnull(text);
    size_t n = 0;
    for (unsigned line = 0; line < 10; line++) {
        size_t pad = 1000000 + line * 7919;
        n += (size_t)sprintf(text + n, "{\"pad\": \"");
        memset(text + n, 'x', pad);
        n += pad;
        n += (size_t)sprintf(text + n,
                             "\", \"timestamp\": %u, \"input_length\": 1, \"output_length\": 1, "
                             "\"hash_ids\": [1, %u]}%s",
                             line, line + 2, line == 9 ? "" : "\n");
    }
    char *path = file_write(text, n);
    struct kvt_trace *trace = NULL;
    struct kvt_error err = {0};
    ck_assert_msg(kvt_trace_read(path, 0, &trace, &err) == KVT_OK, "%s", err.msg);
    ck_assert_uint_eq(trace->n_requests, 10);
    ck_assert_uint_eq(trace->n_distinct, 11);
    kvt_trace_destroy(trace);
    unlink(path);

    memset(text, 'x', cap);
    path = file_write(text, cap);
    ck_assert(kvt_trace_read(path, 0, &trace, &err) == KVT_ERR_INVAL);
    ck_assert_ptr_nonnull(strstr(err.msg, "longer than 4 MiB"));
    unlink(path);
    free(text);
}
END_TEST

START_TEST(what_cannot_be_read_is_said)
{
    struct kvt_trace *trace = NULL;
    struct kvt_error err = {0};
    ck_assert(kvt_trace_read("/nonexistent/trace", 0, &trace, &err) != KVT_OK);
    ck_assert_ptr_nonnull(strstr(err.msg, "/nonexistent/trace: cannot open"));
    ck_assert(kvt_trace_read("/", 0, &trace, &err) != KVT_OK);
    ck_assert_ptr_nonnull(strstr(err.msg, "trace /: cannot"));
    ck_assert(kvt_trace_read("/dev/zero", 0, &trace, &err) == KVT_ERR_INVAL);
    ck_assert(kvt_trace_read("/dev/null", 0, &trace, &err) == KVT_ERR_INVAL);
}
END_TEST

/* --- yardsticks by plain count ---------------------------------------------------------------- */

/* A tree of prompts: block ids are paths, a digit per level. */
static struct kvt_trace *tree_trace(uint64_t seed, unsigned n_requests)
{
    struct kvt_trace *trace = kvt_trace_create();
    ck_assert_ptr_nonnull(trace);
    for (unsigned r = 0; r < n_requests; r++) {
        uint64_t ids[6];
        uint64_t id = 0;
        size_t n = 0;
        for (; n < 1 + (seed >> 33) % 6; n++) {
            seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
            ids[n] = id = id * 10 + 1 + (seed >> 40) % 3;
        }
        ck_assert(kvt_trace_add(trace, r, 1, 1, ids, n, NULL) == KVT_OK);
    }
    return trace;
}

/* By stamps and full scans. */
static uint64_t lru_slow(const struct kvt_trace *trace, uint32_t capacity)
{
    uint64_t *stamp = calloc(trace->n_distinct, sizeof(*stamp));
    ck_assert_ptr_nonnull(stamp);
    uint64_t now = 0;
    uint64_t n_hits = 0;
    for (size_t i = 0; i < trace->n_requests; i++) {
        const uint32_t *blocks = trace->blocks + trace->requests[i].first_block;
        uint32_t n = trace->requests[i].n_blocks;
        for (uint32_t k = 0; k < n && stamp[blocks[k]] != 0; k++)
            n_hits++;
        for (uint32_t k = n; k-- > 0;)
            stamp[blocks[k]] = ++now;
        for (;;) {
            uint32_t n_held = 0;
            uint32_t oldest = 0;
            for (uint32_t b = 0; b < trace->n_distinct; b++) {
                n_held += stamp[b] != 0;
                if (stamp[b] != 0 && (stamp[oldest] == 0 || stamp[b] < stamp[oldest]))
                    oldest = b;
            }
            if (n_held <= capacity)
                break;
            stamp[oldest] = 0;
        }
    }
    free(stamp);
    return n_hits;
}

START_TEST(yardsticks_are_in_order)
{
    for (uint64_t seed = 1; seed <= 20; seed++) {
        struct kvt_trace *trace = tree_trace(seed, 200);
        uint64_t ideal = kvt_offline_ideal_hits(trace);
        uint64_t below = 0;
        for (uint32_t capacity = 1; capacity <= trace->n_distinct; capacity += 7) {
            uint64_t lru = 0;
            uint64_t optimum = 0;
            ck_assert(kvt_offline_lru_hits(trace, capacity, &lru) == KVT_OK);
            ck_assert(kvt_offline_optimum_hits(trace, capacity, &optimum) == KVT_OK);
            ck_assert_uint_eq(lru, lru_slow(trace, capacity));
            ck_assert_uint_le(lru, optimum);
            ck_assert_uint_le(below, optimum); /* more room is no worse */
            ck_assert_uint_le(optimum, ideal);
            below = optimum;
        }
        uint64_t all = 0;
        ck_assert(kvt_offline_optimum_hits(trace, trace->n_distinct, &all) == KVT_OK);
        ck_assert_uint_eq(all, ideal);
        ck_assert(kvt_offline_lru_hits(trace, trace->n_distinct, &all) == KVT_OK);
        ck_assert_uint_eq(all, ideal);
        ck_assert(kvt_offline_lru_hits(trace, 0, &all) == KVT_ERR_INVAL);
        ck_assert(kvt_offline_optimum_hits(trace, 0, &all) == KVT_ERR_INVAL);
        kvt_trace_destroy(trace);
    }
}
END_TEST

/* The most that any choice of what to keep can hit: all choices, one after the other. */
static uint64_t best_by_trial(const struct kvt_trace *trace, size_t from, uint32_t held,
                              uint32_t capacity)
{
    if (from == trace->n_requests)
        return 0;
    const uint32_t *blocks = trace->blocks + trace->requests[from].first_block;
    uint32_t n = trace->requests[from].n_blocks;
    uint64_t n_hits = 0;
    while (n_hits < n && (held >> blocks[n_hits] & 1) != 0)
        n_hits++;
    for (uint32_t k = 0; k < n; k++)
        held |= UINT32_C(1) << blocks[k];
    uint64_t best = 0;
    for (uint32_t keep = held;; keep = (keep - 1) & held) {
        uint32_t n_kept = (uint32_t)__builtin_popcount(keep);
        if (n_kept == KVT_MIN(capacity, (uint32_t)__builtin_popcount(held)))
            best = KVT_MAX(best, best_by_trial(trace, from + 1, keep, capacity));
        if (keep == 0)
            break;
    }
    return n_hits + best;
}

START_TEST(no_choice_beats_the_optimum)
{
    for (uint64_t seed = 1; seed <= 40; seed++) {
        struct kvt_trace *trace = tree_trace(seed * 77, 6);
        for (uint32_t capacity = 1; capacity <= 3; capacity++) {
            uint64_t optimum = 0;
            ck_assert(kvt_offline_optimum_hits(trace, capacity, &optimum) == KVT_OK);
            if (trace->n_distinct <= 16)
                ck_assert_uint_eq(optimum, best_by_trial(trace, 0, 0, capacity));
        }
        kvt_trace_destroy(trace);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("trace");
    TCase *tcase = tcase_create("trace");
    tcase_set_timeout(tcase, 100);
    tcase_add_test(tcase, fields_and_blocks_arrive);
    tcase_add_test(tcase, a_block_behind_another_one_is_noticed);
    tcase_add_loop_test(tcase, faults_are_named_with_their_line, 0, (int)KVT_ARRAY_LEN(faults));
    tcase_add_test(tcase, bounds_hold);
    tcase_add_test(tcase, files_are_read_across_the_buffer);
    tcase_add_test(tcase, what_cannot_be_read_is_said);
    tcase_add_test(tcase, yardsticks_are_in_order);
    tcase_add_test(tcase, no_choice_beats_the_optimum);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_tap(runner, "-");
    srunner_run_all(runner, CK_SILENT);
    int n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
