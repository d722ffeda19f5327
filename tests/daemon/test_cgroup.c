/* SPDX-License-Identifier: Apache-2.0 */
#include "kvt/cgroup.h"
#include "kvt/util.h"

#include <check.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static char root[64];

/* Write a file below root, making its folders. */
static void put(const char *path, const char *text)
{
    char full[512];
    snprintf(full, sizeof(full), "%s%s", root, path);
    for (char *p = full + strlen(root) + 1; (p = strchr(p, '/')) != NULL; p++) {
        *p = '\0';
        mkdir(full, 0755);
        *p = '/';
    }
    FILE *file = fopen(full, "w");
    ck_assert_ptr_nonnull(file);
    fputs(text, file);
    fclose(file);
}

static void setup(void)
{
    strcpy(root, "/tmp/kvt-cgroup-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(root));
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    return remove(path);
}

static void teardown(void)
{
    nftw(root, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static void mountinfo(const char *v1_root, const char *v2_root)
{
    char text[1024];
    snprintf(text, sizeof(text), "21 1 0:19 / /proc rw - proc proc rw\n%s%s%s%s%s%s%s",
             v1_root != NULL ? "30 25 0:26 " : "", v1_root != NULL ? v1_root : "",
             v1_root != NULL ? " /cg/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
                               "31 25 0:27 / /cg/memory rw shared:9 - cgroup cgroup rw,memory\n"
                             : "",
             v2_root != NULL ? "32 25 0:28 " : "", v2_root != NULL ? v2_root : "",
             v2_root != NULL ? " /cg/unified rw - cgroup2 cgroup2 rw\n" : "", "");
    put("/proc/self/mountinfo", text);
}

static struct kvt_cgroup_limits limits(void)
{
    struct kvt_cgroup_limits l;
    kvt_cgroup_limits(root, &l);
    return l;
}

START_TEST(nothing_to_read_is_no_limit)
{
    ck_assert_uint_eq(limits().cpu_milli, KVT_CGROUP_NO_LIMIT);
    ck_assert_uint_eq(limits().memory_bytes, KVT_CGROUP_NO_LIMIT);
    put("/proc/self/mountinfo", "garbage\n - \n1 2 3 - cgroup2\n");
    put("/proc/self/cgroup", "garbage\n::\n:\n");
    ck_assert_uint_eq(limits().cpu_milli, KVT_CGROUP_NO_LIMIT);
}
END_TEST

START_TEST(v1_takes_the_tightest_on_the_way_up)
{
    mountinfo("/", NULL);
    put("/proc/self/cgroup", "4:memory:/a\n3:cpuacct,cpu:/a/b\n0::/\n");
    put("/cg/cpu,cpuacct/cpu.cfs_quota_us", "-1\n");
    put("/cg/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
    put("/cg/cpu,cpuacct/a/cpu.cfs_quota_us", "150000\n");
    put("/cg/cpu,cpuacct/a/cpu.cfs_period_us", "100000\n");
    put("/cg/cpu,cpuacct/a/b/cpu.cfs_quota_us", "400000\n");
    put("/cg/cpu,cpuacct/a/b/cpu.cfs_period_us", "100000\n");
    put("/cg/memory/memory.limit_in_bytes", "9223372036854771712\n");
    put("/cg/memory/a/memory.limit_in_bytes", "1073741824\n");
    ck_assert_uint_eq(limits().cpu_milli, 1500);
    ck_assert_uint_eq(limits().memory_bytes, KVT_GIB);
}
END_TEST

START_TEST(v1_inside_a_container)
{
    /* The mount shows only our own group, under its name outside. */
    mountinfo("/docker/123", NULL);
    put("/proc/self/cgroup", "3:cpuacct,cpu:/docker/123\n");
    put("/cg/cpu,cpuacct/cpu.cfs_quota_us", "50000\n");
    put("/cg/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
    ck_assert_uint_eq(limits().cpu_milli, 500);
    /* The path names what this mount does not show. */
    put("/proc/self/cgroup", "3:cpuacct,cpu:/elsewhere\n");
    ck_assert_uint_eq(limits().cpu_milli, 500);
}
END_TEST

START_TEST(v2)
{
    mountinfo(NULL, "/");
    put("/proc/self/cgroup", "0::/pod/c\n");
    put("/cg/unified/pod/cpu.max", "200000 100000\n");
    put("/cg/unified/pod/memory.max", "2147483648\n");
    put("/cg/unified/pod/c/cpu.max", "max 100000\n");
    put("/cg/unified/pod/c/memory.max", "max\n");
    ck_assert_uint_eq(limits().cpu_milli, 2000);
    ck_assert_uint_eq(limits().memory_bytes, 2 * KVT_GIB);
}
END_TEST

START_TEST(usable_is_at_least_one)
{
    struct kvt_cgroup_limits l = {.cpu_milli = 0, .memory_bytes = 4096};
    ck_assert_uint_eq(kvt_cpus_usable(&l), 1);
    ck_assert_uint_eq(kvt_memory_usable(&l), 4096);
    l.cpu_milli = KVT_CGROUP_NO_LIMIT;
    ck_assert_uint_ge(kvt_cpus_usable(&l), 1);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("cgroup");
    TCase *tcase = tcase_create("cgroup");
    tcase_set_timeout(tcase, 60);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, nothing_to_read_is_no_limit);
    tcase_add_test(tcase, v1_takes_the_tightest_on_the_way_up);
    tcase_add_test(tcase, v1_inside_a_container);
    tcase_add_test(tcase, v2);
    tcase_add_test(tcase, usable_is_at_least_one);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_tap(runner, "-");
    srunner_run_all(runner, CK_SILENT);
    int n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_failed == 0 ? 0 : 1;
}
