/* SPDX-License-Identifier: Apache-2.0 */
#include "metrics.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "kvt/util.h"

/* --- histograms ------------------------------------------------------------------------------- */

START_TEST(values_fall_into_their_buckets)
{
    struct histogram h = {0};
    histogram_add(&h, 0);
    histogram_add(&h, 1000); /* ends belong to their bucket */
    histogram_add(&h, 1001);
    histogram_add(&h, UINT64_C(10000000000));
    histogram_add(&h, UINT64_C(10000000001));
    ck_assert_uint_eq(h.counts[0], 2);
    ck_assert_uint_eq(h.counts[1], 1);
    ck_assert_uint_eq(h.counts[METRICS_BOUNDS - 1], 1);
    ck_assert_uint_eq(h.counts[METRICS_BOUNDS], 1);
    ck_assert_uint_eq(h.sum_ns, UINT64_C(20000002002));
    for (unsigned i = 1; i < METRICS_BOUNDS; i++)
        ck_assert_uint_lt(metrics_bounds_ns[i - 1], metrics_bounds_ns[i]);
}
END_TEST

/* --- ops -------------------------------------------------------------------------------------- */

enum { SESSIONS = 4, OPS = 64 };

static struct metrics metrics;

static void setup(void)
{
    ck_assert(metrics_init(&metrics, SESSIONS, OPS));
}

static void teardown(void)
{
    metrics_fini(&metrics);
}

static uint64_t n_timed(enum metrics_timed what)
{
    uint64_t n = 0;
    for (unsigned i = 0; i <= METRICS_BOUNDS; i++)
        n += metrics.counters.timed[what].counts[i];
    return n;
}

START_TEST(an_op_is_timed_once_when_all_is_answered)
{
    metrics_op_begin(&metrics, 1, 7, TIMED_LOAD_HOST, 3, 100, 0);
    metrics_op_answer(&metrics, 2, 7, TIMED_LOAD_HOST, 3, 3); /* another session's */
    metrics_op_answer(&metrics, 1, 7, TIMED_RESERVE, 3, 3);   /* another kind */
    ck_assert_uint_eq(n_timed(TIMED_LOAD_HOST), 0);
    metrics_op_answer(&metrics, 1, 7, TIMED_LOAD_HOST, 2, 1);
    ck_assert_uint_eq(n_timed(TIMED_LOAD_HOST), 0);
    metrics_op_answer(&metrics, 1, 7, TIMED_LOAD_HOST, 1, 1);
    metrics_op_answer(&metrics, 1, 7, TIMED_LOAD_HOST, 1, 1); /* over */
    ck_assert_uint_eq(n_timed(TIMED_LOAD_HOST), 1);
    ck_assert_uint_eq(metrics.counters.load_bytes, 200);
}
END_TEST

START_TEST(what_is_answered_in_a_later_turn_waited_for_the_disk)
{
    metrics_op_begin(&metrics, 0, 1, TIMED_LOAD_HOST, 1, 1, 0);
    metrics_op_begin(&metrics, 0, 2, TIMED_COMMIT, 1, 0, 0);
    metrics_op_begin(&metrics, 0, 2, TIMED_RESERVE, 1, 0, 0);
    metrics_op_begin(&metrics, 0, 3, TIMED_PREFETCH, 1, 0, 0);
    metrics.turn++;
    metrics_op_answer(&metrics, 0, 1, TIMED_LOAD_HOST, 1, 1);
    metrics_op_answer(&metrics, 0, 2, TIMED_COMMIT, 1, 1);
    metrics_op_answer(&metrics, 0, 2, TIMED_RESERVE, 1, 1);
    metrics_op_answer(&metrics, 0, 3, TIMED_LOAD_HOST, 1, 1);
    ck_assert_uint_eq(n_timed(TIMED_LOAD_NVME), 1);
    ck_assert_uint_eq(n_timed(TIMED_COMMIT_DURABLE), 1);
    ck_assert_uint_eq(n_timed(TIMED_RESERVE), 1);
    ck_assert_uint_eq(n_timed(TIMED_PREFETCH), 1);
    ck_assert_uint_eq(n_timed(TIMED_LOAD_HOST) + n_timed(TIMED_COMMIT), 0);
}
END_TEST

START_TEST(a_session_takes_its_ops_along)
{
    for (int round = 0; round < 100; round++) { /* far more than there is room for at once */
        for (uint64_t op = 0; op < OPS; op++)
            metrics_op_begin(&metrics, (uint32_t)op % SESSIONS, op / SESSIONS, TIMED_RESERVE, 1, 0,
                             0);
        metrics_op_begin(&metrics, 0, 1000, TIMED_RESERVE, 1, 0, 0); /* not timed, no harm */
        metrics_op_drop(&metrics, 1, 3);
        metrics_op_drop(&metrics, 1, 3);
        metrics_op_answer(&metrics, 1, 3, TIMED_RESERVE, 1, 1);
        for (uint32_t s = 0; s < SESSIONS; s++)
            metrics_session_drop(&metrics, s);
        metrics_op_answer(&metrics, 2, 3, TIMED_RESERVE, 1, 1);
    }
    ck_assert_uint_eq(n_timed(TIMED_RESERVE), 0);
}
END_TEST

START_TEST(hits_are_counted_by_the_fastest_tier)
{
    const struct kvt_ns_desc desc = {.tokens_per_chunk = 16, .chunk_bytes = 1000};
    uint8_t where[100];
    static struct kvt_key keys[128];
    const struct kvt_wire_lookup msg = {.n_keys = 128};
    for (unsigned i = 0; i < sizeof(where); i++)
        where[i] = (uint8_t)(1 + i % 3); /* host, nvme, both */
    metrics_lookup(&metrics, &desc, 1, &msg, keys, where, sizeof(where));
    ck_assert_uint_eq(metrics.counters.hit_chunks[METRICS_HOST], 67);
    ck_assert_uint_eq(metrics.counters.hit_chunks[METRICS_NVME], 33);
    ck_assert_uint_eq(metrics.counters.hit_tokens[METRICS_HOST], 67 * 16);
    ck_assert_uint_eq(metrics.counters.hit_bytes[METRICS_NVME], 33000);
    ck_assert_uint_eq(metrics.counters.lookup_tokens, 128 * 16);
}
END_TEST

/* --- the ideal hit ratio ---------------------------------------------------------------------- */

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* Keys as clients make them: digests, and plain numbers. */
static struct kvt_key key_make(uint64_t n, bool digest)
{
    struct kvt_key key = {{0}};
    uint64_t state = n * 0x9e3779b97f4a7c15u + 1;
    for (size_t i = 0; i < sizeof(key); i += sizeof(state)) {
        uint64_t word = digest ? next_random(&state) : i == 0 ? n : 0;
        memcpy(key.bytes + i, &word, sizeof(word));
    }
    return key;
}

START_TEST(few_keys_are_counted_exactly)
{
    struct ideal *ideal = ideal_create();
    for (uint64_t n = 0; n < 10000; n++) {
        struct kvt_key key = key_make(n, _i == 0);
        ideal_missed(ideal, 1, &key, 1);
        ideal_stored(ideal, 1, &key, 1);
    }
    ck_assert_uint_eq(ideal_avoidable(ideal), 0);
    for (uint64_t n = 5000; n < 15000; n++) {
        struct kvt_key key = key_make(n, _i == 0);
        ideal_missed(ideal, 1, &key, 1);
        ideal_missed(ideal, 2, &key, 1); /* the same key elsewhere is another */
    }
    ck_assert_uint_eq(ideal_avoidable(ideal), 5000);
    ideal_destroy(ideal);
}
END_TEST

START_TEST(many_keys_are_estimated)
{
    /* Misses of which a third, a half, ... were stored long before. */
    enum { KEYS = 3000000 };
    struct ideal *ideal = ideal_create();
    uint64_t state = 12345;
    uint64_t n_avoidable = 0;
    uint64_t n_asked = 0;
    for (uint64_t n = 0; n < KEYS; n++) {
        struct kvt_key key = key_make(n, _i == 0);
        ideal_stored(ideal, 1, &key, 1);
        uint64_t other = next_random(&state) % (2 * KEYS);
        key = key_make(other, _i == 0);
        ideal_missed(ideal, 1, &key, 1);
        n_avoidable += other <= n;
        n_asked++;
    }
    double error = ((double)ideal_avoidable(ideal) - (double)n_avoidable) / (double)n_asked;
    ck_assert_msg(error < 0.01 && error > -0.01, "off by %.4f of all misses", error);
    ideal_destroy(ideal);
}
END_TEST

/* --- text ------------------------------------------------------------------------------------- */

START_TEST(text_is_complete_lines)
{
    static struct metrics_snapshot snapshot;
    size_t bytes = 0;
    memset(&snapshot, 0xff, sizeof(snapshot)); /* the longest numbers */
    char *text = metrics_text(&snapshot, true, &bytes);
    ck_assert_ptr_nonnull(text);
    ck_assert_uint_eq(strlen(text), bytes);
    ck_assert(bytes > 0 && text[bytes - 1] == '\n');
    ck_assert_ptr_nonnull(strstr(text, "kvtier_ready 1\n"));
    ck_assert_ptr_nonnull(strstr(text, "kvtier_chunks 18446744073709551615\n"));
    free(text);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("metrics");
    TCase *tcase = tcase_create("metrics");
    tcase_set_timeout(tcase, 60);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, values_fall_into_their_buckets);
    tcase_add_test(tcase, an_op_is_timed_once_when_all_is_answered);
    tcase_add_test(tcase, what_is_answered_in_a_later_turn_waited_for_the_disk);
    tcase_add_test(tcase, a_session_takes_its_ops_along);
    tcase_add_test(tcase, hits_are_counted_by_the_fastest_tier);
    tcase_add_loop_test(tcase, few_keys_are_counted_exactly, 0, 2);
    tcase_add_loop_test(tcase, many_keys_are_estimated, 0, 2);
    tcase_add_test(tcase, text_is_complete_lines);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_tap(runner, "-");
    srunner_run_all(runner, CK_SILENT);
    int n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_failed == 0 ? 0 : 1;
}
