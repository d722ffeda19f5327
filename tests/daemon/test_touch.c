/* SPDX-License-Identifier: Apache-2.0 */
#include <check.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kvt/util.h"
#include "touch.h"

#define BYTES (96 * KVT_MIB + 5 * KVT_KIB)

/* How many bytes of the memory have pages. */
static uint64_t present(void *memory)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), n = (BYTES + page - 1) / page, found = 0;
    unsigned char *in = malloc(n);
    ck_assert_ptr_nonnull(in);
    ck_assert_int_eq(mincore(memory, BYTES, in), 0);
    for (uint64_t i = 0; i < n; i++)
        found += in[i] & 1;
    free(in);
    return found * page;
}

START_TEST(all_of_it_gets_its_pages)
{
    struct touch touch = {.is_running = false};
    char *memory = kvt_big_calloc(BYTES);
    ck_assert_ptr_nonnull(memory);
    if (madvise(memory, KVT_PAGE_BYTES, MADV_POPULATE_WRITE) != 0) { /* before Linux 5.14 */
        kvt_big_free(memory, BYTES);
        return;
    }
    ck_assert_uint_lt(present(memory), BYTES);
    touch_start(&touch, memory, BYTES);
    ck_assert(touch.is_running);
    uint64_t end_ns = kvt_now_ns() + UINT64_C(60000000000);
    while (present(memory) < BYTES && kvt_now_ns() < end_ns)
        usleep(1000);
    touch_stop(&touch);
    ck_assert_uint_ge(present(memory), BYTES);
    ck_assert(!touch.is_running);
    kvt_big_free(memory, BYTES);
}
END_TEST

START_TEST(what_is_written_meanwhile_stays)
{
    struct touch touch = {.is_running = false};
    char *memory = kvt_big_calloc(BYTES);
    ck_assert_ptr_nonnull(memory);
    touch_start(&touch, memory, BYTES);
    for (uint64_t i = 0; i < BYTES; i += 509)
        memory[i] = (char)(i % 251 + 1);
    touch_stop(&touch);
    uint64_t n_wrong = 0;
    for (uint64_t i = 0; i < BYTES; i++)
        n_wrong += memory[i] != (i % 509 == 0 ? (char)(i % 251 + 1) : 0);
    ck_assert_uint_eq(n_wrong, 0);
    kvt_big_free(memory, BYTES);
}
END_TEST

START_TEST(little_is_not_worth_a_thread)
{
    struct touch touch = {.is_running = false};
    char memory[KVT_PAGE_BYTES];
    touch_start(&touch, memory, sizeof(memory));
    ck_assert(!touch.is_running);
    touch_stop(&touch);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("touch");
    TCase *tcase = tcase_create("touch");
    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, all_of_it_gets_its_pages);
    tcase_add_test(tcase, what_is_written_meanwhile_stays);
    tcase_add_test(tcase, little_is_not_worth_a_thread);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_tap(runner, "-");
    srunner_run_all(runner, CK_SILENT);
    int n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_failed == 0 ? 0 : 1;
}
