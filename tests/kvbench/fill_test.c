/* SPDX-License-Identifier: Apache-2.0 */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "fill.h"
#include "samples.h"
#include "workload.h"

#define BYTES (64 * 1024 + 24)

static void fill_of(uint64_t id, struct kvt_fill *fill)
{
    uint8_t key[KVTIER_KEY_BYTES];
    kvt_fill_key(id, 1, key);
    kvt_fill_init(fill, key);
}

START_TEST(any_piece_is_a_piece_of_the_whole)
{
    static uint8_t whole[BYTES], piece[BYTES];
    static const size_t pieces[][2] = {{0, BYTES},  {0, 1},       {4095, 2},   {4096, 4096},
                                       {1, 12288},  {8191, 8194}, {60000, 24}, {BYTES - 1, 1},
                                       {100, 4096}, {0, 0}};
    struct kvt_fill fill;
    fill_of(7, &fill);
    kvt_fill_write(&fill, 0, whole, BYTES);
    for (size_t i = 0; i < sizeof(pieces) / sizeof(pieces[0]); i++) {
        size_t offset = pieces[i][0], n = pieces[i][1];
        kvt_fill_write(&fill, offset, piece, n);
        ck_assert_int_eq(memcmp(piece, whole + offset, n), 0);
        ck_assert_uint_eq(kvt_fill_check(&fill, offset, whole + offset, n), 0);
    }
}
END_TEST

START_TEST(every_wrong_byte_is_counted)
{
    static uint8_t whole[BYTES];
    struct kvt_fill fill;
    fill_of(7, &fill);
    kvt_fill_write(&fill, 0, whole, BYTES);
    for (size_t i = 0; i < BYTES; i += 997) {
        whole[i] ^= 0x10;
        ck_assert_uint_eq(kvt_fill_check(&fill, 0, whole, BYTES), 1);
        whole[i] ^= 0x10;
    }
    for (size_t i = 5000; i < 5100; i++)
        whole[i] = (uint8_t)~whole[i];
    ck_assert_uint_eq(kvt_fill_check(&fill, 0, whole, BYTES), 100);
}
END_TEST

START_TEST(another_key_and_another_place_are_seen)
{
    static uint8_t whole[BYTES];
    struct kvt_fill fill, other;
    fill_of(7, &fill);
    fill_of(8, &other);
    kvt_fill_write(&fill, 0, whole, BYTES);
    /* Nearly all bytes differ: one in 256 agrees by chance. */
    ck_assert_uint_gt(kvt_fill_check(&other, 0, whole, BYTES), BYTES / 100 * 99);
    ck_assert_uint_gt(kvt_fill_check(&fill, 4096, whole, BYTES - 4096), BYTES / 100 * 90);
    ck_assert_uint_gt(kvt_fill_check(&fill, 8, whole, BYTES - 8), BYTES / 100 * 99);
    memset(whole, 0, BYTES);
    ck_assert_uint_gt(kvt_fill_check(&fill, 0, whole, BYTES), BYTES / 100 * 99);
}
END_TEST

START_TEST(quantiles)
{
    float samples[] = {5, 1, 4, 2, 3};
    ck_assert(kvt_samples_quantile(samples, 5, 0.5) == 3.0);
    ck_assert(kvt_samples_quantile(samples, 5, 0.0) == 1.0);
    ck_assert(kvt_samples_quantile(samples, 5, 1.0) == 5.0);
    ck_assert(kvt_samples_quantile(samples, 0, 0.5) == 0.0);
}
END_TEST

START_TEST(workloads_repeat_themselves_and_chain)
{
    for (const struct kvt_workload *w = kvt_workloads; w->name != NULL; w++) {
        struct kvt_trace *a = kvt_trace_create(), *b = kvt_trace_create();
        struct kvt_error err;
        ck_assert_ptr_eq(kvt_workload_find(w->name), w);
        ck_assert_int_eq(w->make(a, 500, 3, &err), KVT_OK);
        ck_assert_int_eq(w->make(b, 500, 3, &err), KVT_OK);
        ck_assert_uint_eq(a->n_requests, 500);
        ck_assert_uint_eq(a->n_rechained, 0);
        ck_assert_uint_eq(a->n_blocks, b->n_blocks);
        ck_assert_int_eq(memcmp(a->blocks, b->blocks, a->n_blocks * sizeof(*a->blocks)), 0);
        ck_assert_uint_lt(a->n_distinct, a->n_blocks);
        kvt_trace_destroy(a);
        kvt_trace_destroy(b);
    }
    ck_assert_ptr_null(kvt_workload_find("nothing"));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("kvbench");
    TCase *tcase = tcase_create("parts");
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, any_piece_is_a_piece_of_the_whole);
    tcase_add_test(tcase, every_wrong_byte_is_counted);
    tcase_add_test(tcase, another_key_and_another_place_are_seen);
    tcase_add_test(tcase, quantiles);
    tcase_add_test(tcase, workloads_repeat_themselves_and_chain);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
