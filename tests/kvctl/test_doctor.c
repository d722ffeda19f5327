/* SPDX-License-Identifier: Apache-2.0 */
/* What doctor says about machines other than this one: their /proc and /sys in a folder. */
#include "doctor.h"

#include <check.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define FILES_MAX 3

static char root[64];
static struct doctor doctor;

static const char limits[] =
    "Limit                     Soft Limit           Hard Limit     Units\n"
    "Max open files            1024                 4096           files\n"
    "Max locked memory         8388608              8388608        bytes\n";
static const char meminfo[] = "MemTotal:       16384000 kB\nHugePages_Total:     600\n"
                              "HugePages_Free:      600\nHugePages_Rsvd:        0\n"
                              "HugePages_Surp:        0\nHugepagesize:       2048 kB\n";

/* A machine, what is asked about it, and what must be said. Of the config host.bytes is 1 GiB. */
static const struct machine {
    const char *check;
    struct {
        const char *path, *text;
    } files[FILES_MAX];
    const char *key, *value;                /* of the config; NULL: nothing more */
    const char *verdict, *finding, *remedy; /* parts of them */
} machines[] = {
    {.check = "huge-pages",
     .files = {{"/proc/meminfo", meminfo}},
     .verdict = "ok",
     .finding = "1.17 GiB to be had"},
    {.check = "huge-pages",
     .files = {{"/proc/meminfo", "HugePages_Free: 600\nHugePages_Rsvd: 300\n"
                                 "HugePages_Surp: 0\nHugepagesize: 2048 kB\n"}},
     .verdict = "warn",
     .finding = "600 MiB to be had in pages of 2 MiB, host.bytes wants 1.00 GiB",
     .remedy = "vm.nr_hugepages=512"},
    {.check = "huge-pages",
     .files = {{"/proc/meminfo", "Hugepagesize: 1048576 kB\n"}},
     .key = "host.huge_pages",
     .value = "require",
     .verdict = "FAIL",
     .finding = "not of 2 MiB",
     .remedy = "default_hugepagesz=2M"},
    {.check = "huge-pages",
     .key = "host.huge_pages",
     .value = "off",
     .verdict = "note",
     .finding = "host.huge_pages is off"},
    {.check = "overcommit",
     .files = {{"/proc/sys/vm/overcommit_memory", "2\n"}},
     .verdict = "FAIL",
     .finding = "vm.overcommit_memory is 2",
     .remedy = "vm.overcommit_memory=0"},
    {.check = "overcommit",
     .files = {{"/proc/sys/vm/overcommit_memory", "1\n"}},
     .verdict = "ok",
     .finding = "is 1"},
    {.check = "memlock",
     .files = {{"/proc/self/limits", limits}},
     .verdict = "warn",
     .finding = "may lock 8.00 MiB of the 1.00 GiB",
     .remedy = "LimitMEMLOCK=infinity"},
    {.check = "memlock",
     .files = {{"/proc/self/status", "Name: x\nCapEff:\t0000000000004000\n"},
               {"/proc/self/limits", limits}},
     .verdict = "ok",
     .finding = "CAP_IPC_LOCK"},
    {.check = "memlock",
     .files = {{"/proc/self/limits", "Max locked memory         unlimited  unlimited bytes\n"}},
     .verdict = "ok",
     .finding = "any amount"},
    {.check = "memlock", .verdict = "note", .finding = "cannot be read"},
    {.check = "memory",
     .files = {{"/proc/self/cgroup", "0::/\n"},
               {"/proc/self/mountinfo", "32 25 0:28 / /cg rw - cgroup2 cgroup2 rw\n"},
               {"/cg/memory.max", "536870912\n"}},
     .verdict = "FAIL",
     .finding = "host.bytes is 1.00 GiB and the cgroup may use 512 MiB",
     .remedy = "memory.max"},
    {.check = "memory",
     .files = {{"/proc/self/cgroup", "0::/\n"},
               {"/proc/self/mountinfo", "32 25 0:28 / /cg rw - cgroup2 cgroup2 rw\n"},
               {"/cg/memory.max", "1100000000\n"}},
     .verdict = "warn",
     .finding = "host.bytes is 1.00 GiB of the 1.02 GiB",
     .remedy = "leave a tenth"},
    {.check = "cpu",
     .files = {{"/proc/self/cgroup", "0::/\n"},
               {"/proc/self/mountinfo", "32 25 0:28 / /cg rw - cgroup2 cgroup2 rw\n"},
               {"/cg/cpu.max", "50000 100000\n"}},
     .verdict = "warn",
     .finding = "one CPU to use (a quota of the cgroup)",
     .remedy = "give it two"},
    {.check = "numa",
     .files = {{"/sys/devices/system/node/online", "0-1\n"}},
     .verdict = "warn",
     .finding = "NUMA nodes 0-1",
     .remedy = "NUMAPolicy=bind"},
    {.check = "numa",
     .files = {{"/sys/devices/system/node/online", "0\n"}},
     .verdict = "ok",
     .finding = "one NUMA node"},
    {.check = "files",
     .files = {{"/proc/self/limits", limits}},
     .verdict = "ok",
     .finding = "4096 open files"},
    {.check = "files",
     .files = {{"/proc/self/limits", limits}},
     .key = "sessions.max",
     .value = "4096",
     .verdict = "warn",
     .finding = "4096 open files allowed, sessions.max may want 8448",
     .remedy = "LimitNOFILE"},
};

static void file_put(const char *path, const char *text)
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

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    return remove(path);
}

static void setup(void)
{
    strcpy(root, "/tmp/kvt-doctor-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(root));
    doctor = (struct doctor){.root = root, .findings = json_array(), .config = json_object()};
    (void)json_object_set_new(doctor.config, "host.bytes", json_string("1GiB"));
}

static void teardown(void)
{
    json_decref(doctor.findings);
    json_decref(doctor.config);
    nftw(root, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static void check_run(const struct doctor_check *checks, const char *name)
{
    struct doctor_check one[2] = {{NULL, NULL}, {NULL, NULL}};
    for (; checks->name != NULL; checks++) {
        if (strcmp(checks->name, name) == 0)
            one[0] = *checks;
    }
    ck_assert_msg(one[0].name != NULL, "no check %s", name);
    doctor_run(&doctor, one);
}

/* Some finding says all that is expected. */
static void finding_expect(const char *verdict, const char *finding, const char *remedy)
{
    char *all = json_dumps(doctor.findings, 0);
    bool found = false;
    size_t i;
    json_t *item;
    json_array_foreach(doctor.findings, i, item)
    {
        found |= strcmp(json_string_value(json_object_get(item, "verdict")), verdict) == 0 &&
                 strstr(json_string_value(json_object_get(item, "finding")), finding) != NULL &&
                 strstr(json_string_value(json_object_get(item, "remedy")), remedy) != NULL;
    }
    ck_assert_msg(found, "no \"%s: %s -> %s\" in %s", verdict, finding, remedy, all);
    free(all);
}

START_TEST(a_machine)
{
    const struct machine *m = &machines[_i];
    for (int i = 0; i < FILES_MAX && m->files[i].path != NULL; i++)
        file_put(m->files[i].path, m->files[i].text);
    if (m->key != NULL)
        (void)json_object_set_new(doctor.config, m->key, json_string(m->value));
    check_run(doctor_machine_checks, m->check);
    finding_expect(m->verdict, m->finding, m->remedy != NULL ? m->remedy : "");
}
END_TEST

/* Every finding that is not fine says what to do. */
START_TEST(nothing_bad_without_a_remedy)
{
    size_t i;
    json_t *item;
    doctor_run(&doctor, doctor_machine_checks);
    doctor_run(&doctor, doctor_disk_checks);
    ck_assert_uint_gt(json_array_size(doctor.findings), 8);
    json_array_foreach(doctor.findings, i, item)
    {
        const char *remedy = json_string_value(json_object_get(item, "remedy"));
        if (strcmp(json_string_value(json_object_get(item, "verdict")), "ok") != 0)
            ck_assert_msg(remedy[0] != '\0', "%s",
                          json_string_value(json_object_get(item, "finding")));
    }
}
END_TEST

static void disk(const char *path, const char *bytes)
{
    (void)json_object_set_new(doctor.config, "nvme.disks.0.path", json_string(path));
    (void)json_object_set_new(doctor.config, "nvme.disks.0.bytes", json_string(bytes));
    doctor.root = "";
    check_run(doctor_disk_checks, "disk");
}

START_TEST(disks)
{
    char path[128];
    snprintf(path, sizeof(path), "%s/nowhere/store", root);
    disk(path, "1GiB");
    finding_expect("FAIL", "No such file or directory", "make the folder");
    disk(root, "1GiB");
    finding_expect("FAIL", "neither a file nor a block device", "name a file in it");
    snprintf(path, sizeof(path), "%s/store", root);
    disk(path, "1000TiB");
    finding_expect("FAIL", "needs 0.98 PiB", "lower nvme.bytes");
    disk("/dev/shm/kvt-doctor-store", "4KiB");
    finding_expect("warn", "is on tmpfs", "name a disk");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("doctor");
    TCase *tcase = tcase_create("doctor");
    tcase_set_timeout(tcase, 60);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_loop_test(tcase, a_machine, 0, (int)(sizeof(machines) / sizeof(machines[0])));
    tcase_add_test(tcase, nothing_bad_without_a_remedy);
    tcase_add_test(tcase, disks);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_tap(runner, "-");
    srunner_run_all(runner, CK_SILENT);
    int n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_failed == 0 ? 0 : 1;
}
