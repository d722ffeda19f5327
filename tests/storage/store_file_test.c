/* SPDX-License-Identifier: Apache-2.0 */
/* Which files are taken for a store, which are refused, and that the refused stay as they are. */
#include <check.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <xxhash.h>

#include "nvme_fixture.h"

static struct fixture fix;

static void setup(void)
{
    fixture_init(&fix, 0);
}

static void teardown(void)
{
    fixture_fini(&fix);
}

static void refused(enum kvt_status want, const char *word)
{
    struct kvt_error err = {0};
    enum kvt_status status = fixture_open(&fix, &err);
    ck_assert_msg(status == want, "%d: %s", status, err.msg);
    ck_assert_msg(strstr(err.msg, word) != NULL, "%s", err.msg);
    ck_assert_ptr_null(fix.nvme);
}

static void page_get(unsigned disk, unsigned char page[4096])
{
    int fd = open(fix.config.disks[disk].path, O_RDONLY | O_CLOEXEC);
    ck_assert_int_eq(pread(fd, page, 4096, 0), 4096);
    close(fd);
}

static void page_put(unsigned disk, const unsigned char page[4096])
{
    int fd = open(fix.config.disks[disk].path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    ck_assert_int_eq(pwrite(fd, page, 4096, 0), 4096);
    fsync(fd);
    close(fd);
}

/* Change bytes of the superblock; `sealed`: with a checksum that agrees. */
static void superblock_change(size_t at, unsigned char value, bool sealed)
{
    unsigned char page[4096];
    page_get(0, page);
    page[at] = value;
    if (sealed) {
        uint64_t sum = XXH3_64bits(page, 4088);
        memcpy(page + 4088, &sum, 8);
    }
    page_put(0, page);
}

static void check_refused_as_it_was(enum kvt_status want, const char *word)
{
    unsigned char before[4096];
    unsigned char after[4096];
    struct stat st_before;
    struct stat st_after;
    page_get(0, before);
    ck_assert_int_eq(stat(fix.config.disks[0].path, &st_before), 0);
    refused(want, word);
    page_get(0, after);
    ck_assert_int_eq(stat(fix.config.disks[0].path, &st_after), 0);
    ck_assert_mem_eq(before, after, 4096);
    ck_assert_int_eq(st_before.st_size, st_after.st_size);
    ck_assert_int_eq(st_before.st_mtim.tv_nsec, st_after.st_mtim.tv_nsec);
}

START_TEST(another_version_is_refused)
{
    fixture_must_open(&fix, false);
    fixture_close(&fix);
    superblock_change(8, 2, true);
    check_refused_as_it_was(KVT_ERR_VERSION, "format 2");
    superblock_change(8, 2, false);
    check_refused_as_it_was(KVT_ERR_VERSION, "format 2");
}
END_TEST

START_TEST(another_slab_size_is_refused)
{
    fixture_must_open(&fix, false);
    fixture_close(&fix);
    fix.config.slab_bytes = FIX_SLAB_BYTES / 2;
    check_refused_as_it_was(KVT_ERR_VERSION, "slab_bytes");
}
END_TEST

START_TEST(a_damaged_superblock_is_refused)
{
    fixture_must_open(&fix, false);
    fixture_close(&fix);
    superblock_change(20, 0x99, false); /* in the store id */
    check_refused_as_it_was(KVT_ERR_CORRUPT, "damaged");
    superblock_change(0, 'X', false);
    check_refused_as_it_was(KVT_ERR_CORRUPT, "not a KVTier store");
}
END_TEST

START_TEST(somebody_elses_file_is_refused)
{
    unsigned char page[4096];
    memset(page, 'a', sizeof(page));
    page_put(0, page);
    check_refused_as_it_was(KVT_ERR_CORRUPT, "not a KVTier store");
    /* The second disk had not been made yet, and is not left behind. */
    ck_assert_int_ne(access(fix.config.disks[1].path, F_OK), 0);
}
END_TEST

START_TEST(a_label_further_in_counts_as_well)
{
    int fd = open(fix.config.disks[0].path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    ck_assert_int_eq(ftruncate(fd, 1 << 21), 0);
    ck_assert_int_eq(pwrite(fd, "label", 5, 65536 + 64), 5); /* where some file systems have it */
    fsync(fd);
    close(fd);
    check_refused_as_it_was(KVT_ERR_CORRUPT, "not a KVTier store");
}
END_TEST

START_TEST(a_start_that_was_cut_off_is_begun_again)
{
    int fd = open(fix.config.disks[0].path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    ck_assert_int_eq(ftruncate(fd, 3 << 20), 0);
    close(fd);
    fixture_must_open(&fix, false);
    ck_assert_int_eq(fixture_write(&fix, 0, 1), KVT_OK);
    ck_assert_int_eq(fixture_read(&fix, 0, 1), KVT_OK);
}
END_TEST

START_TEST(a_second_agent_is_refused)
{
    fixture_must_open(&fix, false);
    int pid = fork();
    if (pid == 0) {
        struct kvt_tier *other = NULL;
        struct kvt_error err = {0};
        uint8_t id[16] = {0};
        enum kvt_status status = kvt_nvme_tier_open(&fix.config, fix.host, id, &other, &err);
        _exit(status == KVT_ERR_BUSY && strstr(err.msg, "another agent") != NULL ? 0 : 1);
    }
    int wstatus;
    ck_assert_int_eq(waitpid(pid, &wstatus, 0), pid);
    ck_assert_int_eq(wstatus, 0);
    ck_assert_int_eq(fixture_write(&fix, 0, 1), KVT_OK);
}
END_TEST

START_TEST(a_disk_too_small_is_refused_before_it_is_full)
{
    fix.config.disks[1].capacity_bytes = UINT64_C(1) << 50;
    refused(KVT_ERR_NOSPACE, "nvme.disks.*.bytes");
    /* Nothing is left of what this call made. */
    ck_assert_int_ne(access(fix.config.disks[0].path, F_OK), 0);
    ck_assert_int_ne(access(fix.config.disks[1].path, F_OK), 0);
    /* A store that existed keeps its size. */
    fix.config.disks[1].capacity_bytes = fix.config.disks[0].capacity_bytes;
    fixture_must_open(&fix, false);
    fixture_close(&fix);
    fix.config.disks[0].capacity_bytes = UINT64_C(1) << 50;
    check_refused_as_it_was(KVT_ERR_NOSPACE, "nvme.disks.*.bytes");
}
END_TEST

START_TEST(capacity_is_reserved_and_a_hard_cap)
{
    struct stat st;
    fixture_must_open(&fix, false);
    ck_assert_int_eq(stat(fix.config.disks[0].path, &st), 0);
    ck_assert_uint_eq((uint64_t)st.st_size, FIX_DATA_OFFSET + FIX_DISK_SLABS * FIX_SLAB_BYTES);
    ck_assert_uint_ge((uint64_t)st.st_blocks * 512, (uint64_t)st.st_size);
    ck_assert_uint_le((uint64_t)st.st_size, fix.config.disks[0].capacity_bytes);
    fixture_close(&fix);
    /* Shrunk at the end, the store is the same one. */
    uint8_t id[16];
    memcpy(id, fix.store_id, 16);
    fix.config.disks[1].capacity_bytes = FIX_DATA_OFFSET + FIX_SLAB_BYTES;
    fixture_must_open(&fix, false);
    ck_assert_mem_eq(id, fix.store_id, 16);
    ck_assert_int_eq(stat(fix.config.disks[1].path, &st), 0);
    ck_assert_uint_eq((uint64_t)st.st_size, FIX_DATA_OFFSET + FIX_SLAB_BYTES);
    fixture_close(&fix);
    /* In the middle, slabs would get other numbers: it is another store, old metadata is void. */
    fix.config.disks[0].capacity_bytes = FIX_DATA_OFFSET + FIX_SLAB_BYTES;
    fixture_must_open(&fix, false);
    ck_assert_mem_ne(id, fix.store_id, 16);
}
END_TEST

START_TEST(disks_of_different_stores_do_not_mix)
{
    fixture_must_open(&fix, false);
    fixture_close(&fix);
    /* In the wrong order. */
    struct kvt_disk_config first = fix.config.disks[0];
    fix.config.disks[0] = fix.config.disks[1];
    fix.config.disks[1] = first;
    refused(KVT_ERR_CORRUPT, "order");
    fix.config.disks[1] = fix.config.disks[0];
    fix.config.disks[0] = first;
    /* One of them lost: replaced, it joins the store that is there. */
    uint8_t id[16];
    memcpy(id, fix.store_id, 16);
    unlink(fix.config.disks[1].path);
    fixture_must_open(&fix, false);
    ck_assert_mem_eq(id, fix.store_id, 16);
    fixture_close(&fix);
    /* One of another store. */
    superblock_change(20, 0x99, true);
    check_refused_as_it_was(KVT_ERR_CORRUPT, "different stores");
}
END_TEST

START_TEST(bad_settings_are_refused)
{
    struct kvt_nvme_config good = fix.config;
    fix.config.n_disks = 0;
    refused(KVT_ERR_INVAL, "disks");
    fix.config = good;
    fix.config.slab_bytes = 1000;
    refused(KVT_ERR_INVAL, "slab_bytes");
    fix.config = good;
    fix.config.queue_depth = 0;
    refused(KVT_ERR_INVAL, "queue depth");
    fix.config = good;
    fix.config.disks[0].capacity_bytes = FIX_SLAB_BYTES;
    refused(KVT_ERR_INVAL, "nvme.disks.*.bytes");
    fix.config = good;
    snprintf(fix.config.disks[0].path, sizeof(fix.config.disks[0].path), "/proc/none/store");
    refused(KVT_ERR_IO, "/proc/none/store");
    snprintf(fix.config.disks[0].path, sizeof(fix.config.disks[0].path), "/dev/null");
    refused(KVT_ERR_INVAL, "/dev/null");
    fix.config = good;
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("store_file");
    TCase *tcase = tcase_create("files");
    tcase_set_timeout(tcase, 60);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, another_version_is_refused);
    tcase_add_test(tcase, another_slab_size_is_refused);
    tcase_add_test(tcase, a_damaged_superblock_is_refused);
    tcase_add_test(tcase, somebody_elses_file_is_refused);
    tcase_add_test(tcase, a_label_further_in_counts_as_well);
    tcase_add_test(tcase, a_start_that_was_cut_off_is_begun_again);
    tcase_add_test(tcase, a_second_agent_is_refused);
    tcase_add_test(tcase, a_disk_too_small_is_refused_before_it_is_full);
    tcase_add_test(tcase, capacity_is_reserved_and_a_hard_cap);
    tcase_add_test(tcase, disks_of_different_stores_do_not_mix);
    tcase_add_test(tcase, bad_settings_are_refused);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_tap(runner, "-");
    srunner_run_all(runner, CK_SILENT);
    int n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
