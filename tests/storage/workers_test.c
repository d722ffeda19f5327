/* SPDX-License-Identifier: Apache-2.0 */
#include <check.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "kvt/ring.h"
#include "kvt/util.h"
#include "kvt/workers.h"

#define N_JOBS 4u
#define ROUNDS 20000u

struct item {
    struct kvt_job job;
    struct kvt_ring *back;
    unsigned n_runs;
};

static void item_run(struct kvt_job *job)
{
    struct item *item = kvt_container_of(job, struct item, job);
    item->n_runs++;
    ck_assert(kvt_ring_push(item->back, item));
}

/* As many jobs as the rings have places go round and round over more threads than there are cores:
 * a thread stopped in the middle of taking one must not make a ring with room look full. */
START_TEST(a_ring_with_room_takes_what_it_is_given)
{
    struct item items[N_JOBS];
    struct kvt_workers *workers = NULL;
    struct kvt_ring *back = kvt_ring_create(N_JOBS);
    ck_assert_int_eq(kvt_workers_create(8, N_JOBS, &workers, NULL), KVT_OK);
    for (unsigned i = 0; i < N_JOBS; i++) {
        items[i] = (struct item){.job.run = item_run, .back = back};
        ck_assert(kvt_workers_submit(workers, &items[i].job));
    }
    for (unsigned n = 0; n < N_JOBS * ROUNDS;) {
        struct item *item = kvt_ring_pop(back);
        if (item == NULL)
            continue;
        n++;
        if (item->n_runs < ROUNDS)
            ck_assert(kvt_workers_submit(workers, &item->job));
    }
    kvt_workers_destroy(workers);
    for (unsigned i = 0; i < N_JOBS; i++)
        ck_assert_uint_eq(items[i].n_runs, ROUNDS);
    kvt_ring_destroy(back);
}
END_TEST

/* Each batch is submitted when the one before is done: whoever sleeps although there is work is
 * woken by nobody else, and the test hangs. */
START_TEST(no_wake_is_lost)
{
    struct item items[3];
    for (unsigned n_threads = 1; n_threads <= 3; n_threads++) {
        struct kvt_workers *workers = NULL;
        struct kvt_ring *back = kvt_ring_create(4);
        ck_assert_int_eq(kvt_workers_create(n_threads, 4, &workers, NULL), KVT_OK);
        for (unsigned round = 0; round < ROUNDS / 2; round++) {
            unsigned n = 1 + round % 3;
            for (unsigned i = 0; i < n; i++) {
                items[i] = (struct item){.job.run = item_run, .back = back};
                ck_assert(kvt_workers_submit(workers, &items[i].job));
            }
            while (n > 0)
                n -= kvt_ring_pop(back) != NULL;
        }
        kvt_workers_destroy(workers);
        kvt_ring_destroy(back);
    }
}
END_TEST

START_TEST(a_full_ring_says_so)
{
    int things[5];
    struct kvt_ring *ring = kvt_ring_create(4);
    ck_assert_ptr_null(kvt_ring_pop(ring));
    for (unsigned round = 0; round < 3; round++) {
        for (unsigned i = 0; i < 4; i++)
            ck_assert(kvt_ring_push(ring, &things[i]));
        ck_assert(!kvt_ring_push(ring, &things[4]));
        for (unsigned i = 0; i < 4; i++)
            ck_assert_ptr_eq(kvt_ring_pop(ring), &things[i]);
        ck_assert_ptr_null(kvt_ring_pop(ring));
    }
    kvt_ring_destroy(ring);
}
END_TEST

START_TEST(destroying_runs_what_was_submitted)
{
    static struct item items[64];
    struct kvt_workers *workers = NULL;
    struct kvt_ring *back = kvt_ring_create(64);
    ck_assert_int_eq(kvt_workers_create(2, 64, &workers, NULL), KVT_OK);
    for (unsigned i = 0; i < 64; i++) {
        items[i] = (struct item){.job.run = item_run, .back = back};
        ck_assert(kvt_workers_submit(workers, &items[i].job));
    }
    kvt_workers_destroy(workers);
    for (unsigned i = 0; i < 64; i++)
        ck_assert_uint_eq(items[i].n_runs, 1);
    kvt_ring_destroy(back);
    ck_assert_int_eq(kvt_workers_create(0, 4, &workers, NULL), KVT_ERR_INVAL);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("workers");
    TCase *tcase = tcase_create("rings");
    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, a_ring_with_room_takes_what_it_is_given);
    tcase_add_test(tcase, no_wake_is_lost);
    tcase_add_test(tcase, a_full_ring_says_so);
    tcase_add_test(tcase, destroying_runs_what_was_submitted);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_tap(runner, "-");
    srunner_run_all(runner, CK_SILENT);
    int n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
