/* SPDX-License-Identifier: Apache-2.0 */
/* What every eviction policy must keep to, whatever it prefers. */
#include "kvt/policy.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "kvt/util.h"

#define N_CHUNKS  4000
#define N_CLASSES 3
#define N_STEPS   200000
#define LOOK_MAX  1024 /* of usable() per victim: "about a thousand" */

/* ck_assert() writes a record each time; this one may stand in a loop. */
#define MUST(e)                                                                                    \
    do {                                                                                           \
        if (!(e))                                                                                  \
            ck_abort_msg("%s", #e);                                                                \
    } while (0)

static const struct kvt_policy_ops *const policies[] = {&kvt_policy_lhd, &kvt_policy_lru,
                                                        &kvt_policy_s3fifo};

static uint64_t draw(uint64_t *state)
{
    *state += UINT64_C(0x9e3779b97f4a7c15);
    uint64_t z = *state;
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

/* A forest of chunks, kept as the core keeps it, with the policy told of every change. */
struct model {
    struct kvt_policy *policy;
    uint64_t random;
    uint64_t tick;
    bool held[N_CHUNKS];
    bool candidate[N_CHUNKS];
    uint32_t parent[N_CHUNKS];
    uint32_t n_children[N_CHUNKS];
    unsigned size_class[N_CHUNKS];
    uint64_t used[N_CHUNKS]; /* tick of the last use */
    uint32_t n_held;
    unsigned veto_share; /* one in so many is usable; 1: all */
    uint64_t veto_seed;
    unsigned n_looks;
    uint64_t digest; /* of all victims */
};

static struct model *model_create(const struct kvt_policy_ops *ops, uint64_t seed)
{
    struct model *m = calloc(1, sizeof(*m));
    ck_assert_ptr_nonnull(m);
    const struct kvt_policy_config config = {.n_chunks_max = N_CHUNKS, .seed = seed};
    m->policy = ops->create(&config);
    ck_assert_ptr_nonnull(m->policy);
    ck_assert_ptr_eq(m->policy->ops, ops);
    m->random = 42;
    m->veto_share = 1;
    return m;
}

static void model_destroy(struct model *m)
{
    m->policy->ops->destroy(m->policy);
    free(m);
}

static void candidate_set(struct model *m, uint32_t c, bool is)
{
    if (m->candidate[c] == is)
        return;
    m->candidate[c] = is;
    m->policy->ops->candidate(m->policy, c, is);
}

static void chunk_insert(struct model *m, uint32_t c, uint32_t parent, unsigned size_class,
                         uint64_t key_hash)
{
    m->held[c] = true;
    m->n_held++;
    m->parent[c] = parent;
    m->n_children[c] = 0;
    m->size_class[c] = size_class;
    m->used[c] = ++m->tick;
    m->policy->ops->insert(m->policy, c, size_class, key_hash, parent, m->tick);
    candidate_set(m, c, true);
    if (parent != KVT_CHUNK_NONE) {
        m->n_children[parent]++;
        candidate_set(m, parent, false);
    }
}

static void chunk_remove(struct model *m, uint32_t c, bool evicted)
{
    MUST(m->held[c] && m->n_children[c] == 0);
    m->held[c] = false;
    m->n_held--;
    /* The core withdraws a candidate that it deletes, and leaves it in for a victim: both do. */
    if (!evicted)
        candidate_set(m, c, false);
    m->candidate[c] = false;
    m->policy->ops->remove(m->policy, c, evicted, m->tick);
    uint32_t parent = m->parent[c];
    if (parent != KVT_CHUNK_NONE && --m->n_children[parent] == 0)
        candidate_set(m, parent, true);
}

static bool is_usable(const struct model *m, uint32_t c)
{
    uint64_t state = m->veto_seed + c;
    return m->veto_share == 1 || draw(&state) % m->veto_share == 0;
}

static bool usable(void *arg, uint32_t c)
{
    struct model *m = arg;
    MUST(c < N_CHUNKS);
    m->n_looks++;
    if (!is_usable(m, c))
        m->used[c] = m->tick; /* who is in use when a victim is looked for was just used */
    return is_usable(m, c);
}

static uint32_t victim_checked(struct model *m, unsigned size_class)
{
    m->n_looks = 0;
    uint32_t c = m->policy->ops->victim(m->policy, size_class, usable, m, m->tick);
    MUST(m->n_looks <= LOOK_MAX);
    m->digest = (m->digest ^ c) * UINT64_C(0x100000001b3);
    if (c != KVT_CHUNK_NONE) {
        MUST(c < N_CHUNKS);
        MUST(m->held[c] && m->candidate[c]);
        MUST(m->size_class[c] == size_class);
        MUST(is_usable(m, c));
    } else if (m->veto_share == 1) {
        for (uint32_t i = 0; i < N_CHUNKS; i++)
            MUST(!m->candidate[i] || m->size_class[i] != size_class);
    }
    return c;
}

static void chunk_hit(struct model *m, uint32_t c)
{
    m->used[c] = ++m->tick;
    m->policy->ops->hit(m->policy, c, m->tick);
}

static void step(struct model *m)
{
    uint32_t c = (uint32_t)(draw(&m->random) % N_CHUNKS);
    unsigned what = (unsigned)(draw(&m->random) % 16);
    if (!m->held[c]) {
        uint32_t parent = (uint32_t)(draw(&m->random) % N_CHUNKS);
        bool root = what < 4 || !m->held[parent];
        chunk_insert(m, c, root ? KVT_CHUNK_NONE : parent,
                     root ? what % N_CLASSES : m->size_class[parent], draw(&m->random) % 10000);
    } else if (what < 9) {
        for (; c != KVT_CHUNK_NONE; c = m->parent[c]) /* tail first */
            chunk_hit(m, c);
    } else if (what == 9 && m->n_children[c] == 0) {
        chunk_remove(m, c, false);
    } else if (what == 10 && m->n_children[c] == 0) {
        candidate_set(m, c, !m->candidate[c]); /* a transfer began or ended */
    } else {
        m->veto_share = what == 11 ? 1 : what == 12 ? 2 : what == 13 ? 100 : 1;
        m->veto_seed = draw(&m->random);
        uint32_t victim = victim_checked(m, (unsigned)(draw(&m->random) % N_CLASSES));
        if (victim != KVT_CHUNK_NONE)
            chunk_remove(m, victim, true);
    }
}

/* Evict, then delete, until nothing is left. */
static void drain(struct model *m)
{
    m->veto_share = 1;
    for (uint32_t c = 0; c < N_CHUNKS; c++)
        if (m->held[c] && m->n_children[c] == 0)
            candidate_set(m, c, true);
    for (unsigned class = 0; class < N_CLASSES; class ++)
        for (uint32_t c; (c = victim_checked(m, class)) != KVT_CHUNK_NONE;)
            chunk_remove(m, c, true);
    ck_assert_uint_eq(m->n_held, 0);
}

START_TEST(victims_are_usable_candidates_of_the_class)
{
    struct model *m = model_create(policies[_i], 1);
    for (unsigned round = 0; round < 3; round++) {
        for (unsigned i = 0; i < N_STEPS / 3; i++)
            step(m);
        drain(m);
    }
    model_destroy(m);
}
END_TEST

START_TEST(the_seed_decides_everything)
{
    uint64_t digests[2];
    for (unsigned run = 0; run < 2; run++) {
        struct model *m = model_create(policies[_i], 7);
        for (unsigned i = 0; i < N_STEPS / 4; i++)
            step(m);
        digests[run] = m->digest;
        model_destroy(m);
    }
    ck_assert_uint_eq(digests[0], digests[1]);
}
END_TEST

START_TEST(nothing_is_found_where_there_is_nothing)
{
    struct model *m = model_create(policies[_i], 1);
    for (unsigned class = 0; class < KVT_CLASSES_MAX; class ++)
        ck_assert_uint_eq(victim_checked(m, class), KVT_CHUNK_NONE);
    chunk_insert(m, 0, KVT_CHUNK_NONE, KVT_CLASSES_MAX - 1, 1);
    ck_assert_uint_eq(victim_checked(m, 0), KVT_CHUNK_NONE);
    ck_assert_uint_eq(victim_checked(m, KVT_CLASSES_MAX - 1), 0);
    /* The choice stays until it is removed. */
    ck_assert_uint_eq(victim_checked(m, KVT_CLASSES_MAX - 1), 0);
    chunk_remove(m, 0, true);
    ck_assert_uint_eq(victim_checked(m, KVT_CLASSES_MAX - 1), KVT_CHUNK_NONE);
    model_destroy(m);
}
END_TEST

START_TEST(one_usable_among_a_hundred_is_found)
{
    struct model *m = model_create(policies[_i], 1);
    for (uint32_t c = 0; c < 100; c++)
        chunk_insert(m, c, KVT_CHUNK_NONE, 0, c);
    for (m->veto_seed = 1, m->veto_share = 100; m->veto_seed < 50; m->veto_seed++) {
        unsigned n_usable = 0;
        for (uint32_t c = 0; c < 100; c++)
            n_usable += is_usable(m, c);
        ck_assert_int_eq(victim_checked(m, 0) != KVT_CHUNK_NONE, n_usable > 0);
    }
    model_destroy(m);
}
END_TEST

START_TEST(memory_stays_within_its_bound)
{
    const uint32_t n = 500000;
    const struct kvt_policy_config config = {.n_chunks_max = 1u << 24, .seed = 1};
    struct kvt_policy *policy = policies[_i]->create(&config);
    ck_assert_ptr_nonnull(policy);
    uint64_t random = 1;
    for (unsigned round = 0; round < 2; round++) {
        for (uint32_t c = 0; c < n; c++) {
            policy->ops->insert(policy, c, 0, draw(&random), KVT_CHUNK_NONE,
                                (uint64_t)round * n + c);
            policy->ops->candidate(policy, c, true);
        }
        ck_assert_uint_le(policy->ops->memory_bytes(policy), UINT64_C(20) * n + 8 * KVT_MIB);
        for (uint32_t c = 0; c < n; c++)
            policy->ops->remove(policy, c, true, (uint64_t)(round + 1) * n);
    }
    policies[_i]->destroy(policy);
}
END_TEST

START_TEST(lru_takes_the_oldest_use_among_candidates)
{
    struct model *m = model_create(&kvt_policy_lru, 1);
    for (unsigned i = 0; i < N_STEPS / 4; i++) {
        step(m);
        if (i % 16 != 0)
            continue;
        m->veto_share = 1;
        uint32_t victim = victim_checked(m, 1);
        for (uint32_t c = 0; c < N_CHUNKS && victim != KVT_CHUNK_NONE; c++)
            MUST(!m->candidate[c] || m->size_class[c] != 1 || m->used[c] >= m->used[victim]);
    }
    model_destroy(m);
}
END_TEST

START_TEST(who_may_go_too_is_worth_little)
{
    struct model *m = model_create(&kvt_policy_lhd, 1);
    for (uint32_t c = 0; c < N_CHUNKS; c++) {
        chunk_insert(m, c, KVT_CHUNK_NONE, 0, c);
        m->tick += 1000; /* so that no two are of one age */
    }
    uint64_t n_too = 0, n_young = 0;
    const unsigned n_times = 100;
    for (unsigned i = 0; i < n_times; i++) {
        uint32_t victim = victim_checked(m, 0);
        MUST(m->policy->ops->may_go_too(m->policy, victim, m->tick));
        for (uint32_t c = 0; c < N_CHUNKS; c++)
            if (m->policy->ops->may_go_too(m->policy, c, m->tick)) {
                n_too++;
                n_young += c >= N_CHUNKS / 4;
            }
    }
    /* An eighth of a sample of 128 is not an eighth of all, but near it. */
    ck_assert_uint_gt(n_too, n_times * N_CHUNKS / 12);
    ck_assert_uint_lt(n_too, n_times * N_CHUNKS / 6);
    ck_assert_uint_lt(n_young, n_too / 100);
    model_destroy(m);
}
END_TEST

START_TEST(used_chunks_outlive_a_scan)
{
    /* 200 chunks that are used again and again, and a flood of others in room for 1000. */
    struct model *m = model_create(policies[_i], 1);
    const uint32_t n_hot = 200;
    uint64_t n_lost = 0;
    uint64_t next_key = 1000000;
    uint64_t n_hits = 0;
    for (uint32_t c = 0; c < n_hot; c++)
        chunk_insert(m, c, KVT_CHUNK_NONE, 0, c + 1);
    for (unsigned i = 0; i < 200000; i++) {
        uint32_t hot = (uint32_t)(draw(&m->random) % n_hot);
        uint32_t c = i % 4 == 0 ? hot : n_hot;
        if (c == hot && m->held[c]) {
            chunk_hit(m, c);
            n_hits++;
            continue;
        }
        n_lost += c == hot;
        if (m->n_held >= 1000)
            chunk_remove(m, victim_checked(m, 0), true);
        while (m->held[c])
            c++;
        chunk_insert(m, c, KVT_CHUNK_NONE, 0, c < n_hot ? c + 1 : next_key++);
    }
    /* LRU keeps each for some 800 inserts, and loses those unlucky for as long. */
    ck_assert_uint_gt(n_hits, (policies[_i] == &kvt_policy_lru ? 1 : 50) * n_lost);
    model_destroy(m);
}
END_TEST

START_TEST(names_find_their_policies)
{
    for (size_t i = 0; i < KVT_ARRAY_LEN(policies); i++) {
        ck_assert_ptr_eq(kvt_policy_find(policies[i]->name), policies[i]);
        ck_assert_ptr_nonnull(strstr(kvt_policy_names(), policies[i]->name));
    }
    ck_assert_ptr_null(kvt_policy_find("fifo"));
    ck_assert_ptr_null(kvt_policy_find(""));
}
END_TEST

int main(void)
{
    const int n = (int)KVT_ARRAY_LEN(policies);
    Suite *suite = suite_create("policy");
    TCase *tcase = tcase_create("every");
    tcase_set_timeout(tcase, 100);
    tcase_add_loop_test(tcase, victims_are_usable_candidates_of_the_class, 0, n);
    tcase_add_loop_test(tcase, the_seed_decides_everything, 0, n);
    tcase_add_loop_test(tcase, nothing_is_found_where_there_is_nothing, 0, n);
    tcase_add_loop_test(tcase, one_usable_among_a_hundred_is_found, 0, n);
    tcase_add_loop_test(tcase, memory_stays_within_its_bound, 0, n);
    tcase_add_loop_test(tcase, used_chunks_outlive_a_scan, 0, n);
    tcase_add_test(tcase, who_may_go_too_is_worth_little);
    tcase_add_test(tcase, lru_takes_the_oldest_use_among_candidates);
    tcase_add_test(tcase, names_find_their_policies);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_tap(runner, "-");
    srunner_run_all(runner, CK_SILENT);
    int n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
