/* SPDX-License-Identifier: Apache-2.0 */
/* The policies and the yardsticks on a real trace, and on a made one of another shape. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>

#include "kvt/util.h"
#include "offline.h"
#include "replay.h"

static const double shares[] = {0.01, 0.02, 0.05, 0.10, 0.20};
#define N_SHARES KVT_ARRAY_LEN(shares)

static const char *data_path;

static struct kvt_trace *conversation_read(void)
{
    char path[4096];
    snprintf(path, sizeof(path), "%s/conversation_trace.jsonl", data_path);
    struct kvt_trace *trace = NULL;
    struct kvt_error err = {0};
    ck_assert_msg(kvt_trace_read(path, 0, &trace, &err) == KVT_OK, "%s", err.msg);
    return trace;
}

static uint32_t capacity_of(const struct kvt_trace *trace, size_t i)
{
    return (uint32_t)(shares[i] * trace->n_distinct);
}

static double lru_ratio(const struct kvt_trace *trace, size_t i)
{
    uint64_t n_hits = 0;
    ck_assert(kvt_offline_lru_hits(trace, capacity_of(trace, i), &n_hits) == KVT_OK);
    return kvt_offline_ratio(trace, n_hits);
}

static double policy_ratio(const struct kvt_trace *trace, const struct kvt_policy_ops *ops,
                           size_t i, uint64_t seed)
{
    uint64_t n_hits = replay_hits(trace, ops, capacity_of(trace, i), seed);
    ck_assert_uint_ne(n_hits, UINT64_MAX);
    double ratio = kvt_offline_ratio(trace, n_hits);
    printf("# %s at %.2f: %.4f (lru %.4f)\n", ops->name, shares[i], ratio, lru_ratio(trace, i));
    return ratio;
}

START_TEST(yardsticks_of_the_conversation_trace)
{
    /* Blocks hit; of 288,500. */
    static const uint64_t lru[N_SHARES] = {15136, 22865, 56479, 80466, 99632};
    static const uint64_t optimum[N_SHARES] = {71078, 90658, 105710, 105710, 105710};
    struct kvt_trace *trace = conversation_read();
    ck_assert_uint_eq(trace->n_requests, 12031);
    ck_assert_uint_eq(trace->n_distinct, 182790);
    ck_assert_uint_eq(trace->n_blocks, 288500);
    ck_assert_uint_eq(trace->n_rechained, 0);
    ck_assert_uint_eq(kvt_offline_ideal_hits(trace), 105710);
    for (size_t i = 0; i < N_SHARES; i++) {
        uint64_t n_hits = 0;
        ck_assert(kvt_offline_lru_hits(trace, capacity_of(trace, i), &n_hits) == KVT_OK);
        ck_assert_uint_eq(n_hits, lru[i]);
        ck_assert(kvt_offline_optimum_hits(trace, capacity_of(trace, i), &n_hits) == KVT_OK);
        ck_assert_uint_eq(n_hits, optimum[i]);
    }
    kvt_trace_destroy(trace);
}
END_TEST

START_TEST(lhd_beats_lru_on_the_conversation_trace)
{
    static const double least[N_SHARES] = {0.10, 0.14, 0.22, 0.29, 0.345};
    struct kvt_trace *trace = conversation_read();
    for (size_t i = 0; i < N_SHARES; i++) {
        double ratio = policy_ratio(trace, &kvt_policy_lhd, i, (uint64_t)_i);
        ck_assert_double_ge(ratio, least[i]);
        ck_assert_double_ge(ratio, lru_ratio(trace, i));
    }
    kvt_trace_destroy(trace);
}
END_TEST

START_TEST(lru_is_what_it_says)
{
    struct kvt_trace *trace = conversation_read();
    for (size_t i = 0; i < N_SHARES; i++)
        ck_assert_double_eq_tol(policy_ratio(trace, &kvt_policy_lru, i, 1), lru_ratio(trace, i),
                                0.0005);
    kvt_trace_destroy(trace);
}
END_TEST

START_TEST(s3fifo_is_better_than_lru_where_room_is_short)
{
    struct kvt_trace *trace = conversation_read();
    for (size_t i = 0; i < 2; i++)
        ck_assert_double_ge(policy_ratio(trace, &kvt_policy_s3fifo, i, 1), lru_ratio(trace, i));
    kvt_trace_destroy(trace);
}
END_TEST

/* --- a made workload -------------------------------------------------------------------------- */

static double uniform(uint64_t *state)
{
    *state += UINT64_C(0x9e3779b97f4a7c15);
    uint64_t z = *state;
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return (double)(z >> 11) / (double)(UINT64_C(1) << 53);
}

struct talk {
    uint64_t due_ms; /* of its next turn */
    uint64_t first_id;
    uint32_t n_blocks;
    uint32_t prompt; /* the common prompt it begins with */
    bool open;
};

/*
 * Conversations of another kind: ten times the rate, four common prompts of unlike length, every
 * turn adds full blocks alone, pauses have no gap at their beginning, and talks end early or late.
 */
static struct kvt_trace *talks_make(uint64_t seed, double go_on, double pause_ms)
{
    enum { N_TALKS = 400, N_REQUESTS = 15000 };
    static const uint32_t prompt_blocks[] = {1, 2, 5, 12};
    struct talk talks[N_TALKS] = {0};
    struct kvt_trace *trace = kvt_trace_create();
    ck_assert_ptr_nonnull(trace);
    uint64_t next_id = 1000;
    uint64_t ids[4096];
    for (size_t i = 0; i < N_TALKS; i++)
        talks[i].due_ms = (uint64_t)(uniform(&seed) * pause_ms);
    for (unsigned r = 0; r < N_REQUESTS; r++) {
        struct talk *t = &talks[0];
        for (size_t i = 1; i < N_TALKS; i++)
            if (talks[i].due_ms < t->due_ms)
                t = &talks[i];
        if (!t->open) {
            t->open = true;
            t->prompt = (uint32_t)(uniform(&seed) * 4);
            t->first_id = next_id;
            t->n_blocks = 1 + (uint32_t)(uniform(&seed) * 12);
            next_id += 2000;
        } else {
            t->n_blocks = KVT_MIN(t->n_blocks + 1 + (uint32_t)(uniform(&seed) * 4), 1900);
        }
        uint32_t n = 0;
        for (uint32_t k = 0; k < prompt_blocks[t->prompt]; k++)
            ids[n++] = t->prompt * 100 + k;
        for (uint32_t k = 0; k < t->n_blocks; k++)
            ids[n++] = t->first_id + k;
        struct kvt_error err = {0};
        if (kvt_trace_add(trace, t->due_ms, n * 256, 100, ids, n, &err) != KVT_OK)
            ck_abort_msg("%s", err.msg);
        t->open = uniform(&seed) < go_on;
        double u = uniform(&seed);
        t->due_ms += 1 + (uint64_t)(pause_ms * (u < 0.9 ? u : (u - 0.9) * 100));
    }
    return trace;
}

START_TEST(lhd_does_not_lose_to_lru_on_other_conversations)
{
    static const double go_on[] = {0.5, 0.8, 0.95};
    struct kvt_trace *trace = talks_make(3, go_on[_i], 20000);
    printf("# made: goes on %.2f, ideal %.4f\n", go_on[_i],
           kvt_offline_ratio(trace, kvt_offline_ideal_hits(trace)));
    for (size_t i = 0; i < N_SHARES; i++)
        ck_assert_double_ge(policy_ratio(trace, &kvt_policy_lhd, i, 1),
                            lru_ratio(trace, i) - 0.002);
    kvt_trace_destroy(trace);
}
END_TEST

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s FOLDER-OF-TEST-DATA\n", argv[0]);
        return EXIT_FAILURE;
    }
    data_path = argv[1];
    Suite *suite = suite_create("policy_trace");
    TCase *tcase = tcase_create("trace");
    tcase_set_timeout(tcase, 250);
    tcase_add_test(tcase, yardsticks_of_the_conversation_trace);
    tcase_add_loop_test(tcase, lhd_beats_lru_on_the_conversation_trace, 1, 3);
    tcase_add_test(tcase, lru_is_what_it_says);
    tcase_add_test(tcase, s3fifo_is_better_than_lru_where_room_is_short);
    tcase_add_loop_test(tcase, lhd_does_not_lose_to_lru_on_other_conversations, 0, 3);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_tap(runner, "-");
    srunner_run_all(runner, CK_SILENT);
    int n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
