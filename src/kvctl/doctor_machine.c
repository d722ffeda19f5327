/* SPDX-License-Identifier: Apache-2.0 */
/* Memory, io_uring, processors and clocks. */
#include <errno.h>
#include <inttypes.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/timex.h>

#include "doctor.h"
#include "kvt/cgroup.h"
#include "kvt/units.h"
#include "kvt/util.h"
#include "output.h"

#define HUGE_BYTES       (2 * KVT_MIB)
#define CAP_IPC_LOCK_    14
#define OVERCOMMIT_PAGES "/proc/sys/vm/nr_overcommit_hugepages"
#define CLOCK_CALLS      1000
#define CLOCK_SLOW_NS    200

static uint64_t host_bytes(const struct doctor *d)
{
    uint64_t bytes = doctor_config_bytes(d, "host.bytes");
    struct kvt_cgroup_limits limits;
    if (bytes > 0)
        return bytes;
    kvt_cgroup_limits(d->root, &limits);
    return kvt_memory_usable(&limits) / 4; /* what "auto" takes */
}

static uint64_t meminfo(const struct doctor *d, const char *name)
{
    char rest[DOCTOR_LINE_BYTES];
    return doctor_entry(d, "/proc/meminfo", name, rest) ? strtoull(rest, NULL, 10) : 0;
}

static void check_huge_pages(struct doctor *d)
{
    char path[64], rest[DOCTOR_LINE_BYTES], want[KVCTL_TEXT_BYTES], have[KVCTL_TEXT_BYTES];
    char remedy[256];
    uint64_t n_overcommit = 0, n_surplus = meminfo(d, "HugePages_Surp:");
    uint64_t need = host_bytes(d);
    bool off = strcmp(doctor_config_text(d, "host.huge_pages"), "off") == 0;
    bool required = strcmp(doctor_config_text(d, "host.huge_pages"), "require") == 0;
    kvctl_bytes_text((double)need, want);
    snprintf(remedy, sizeof(remedy),
             "sysctl -w vm.nr_hugepages=%" PRIu64 " (and in /etc/sysctl.d), best right after boot",
             (need + HUGE_BYTES - 1) / HUGE_BYTES);
    if (off) {
        doctor_add(d, DOCTOR_NOTE, "set host.huge_pages: auto; they double what a disk delivers",
                   "not used: host.huge_pages is off");
        return;
    }
    doctor_proc_path(d, "status", path, sizeof(path));
    if (d->pid != 0 && doctor_entry(d, path, "HugetlbPages:", rest)) {
        uint64_t used = strtoull(rest, NULL, 10) * KVT_KIB;
        kvctl_bytes_text((double)used, have);
        doctor_add(d, used * 10 >= need * 9 ? DOCTOR_OK : DOCTOR_WARN,
                   used * 10 >= need * 9 ? "" : remedy,
                   "the agent has %s of its %s in pages of 2 MiB", have, want);
        return;
    }
    if (meminfo(d, "Hugepagesize:") != HUGE_BYTES / KVT_KIB) {
        doctor_add(d, required ? DOCTOR_FAIL : DOCTOR_WARN,
                   "boot with default_hugepagesz=2M, or use a kernel with hugetlb",
                   "this kernel's huge pages are not of 2 MiB");
        return;
    }
    (void)doctor_number(d, OVERCOMMIT_PAGES, &n_overcommit);
    uint64_t n_free =
        meminfo(d, "HugePages_Free:") + (n_overcommit > n_surplus ? n_overcommit - n_surplus : 0);
    uint64_t reserved = meminfo(d, "HugePages_Rsvd:");
    uint64_t free_bytes = (n_free > reserved ? n_free - reserved : 0) * HUGE_BYTES;
    kvctl_bytes_text((double)free_bytes, have);
    if (free_bytes >= need)
        doctor_add(d, DOCTOR_OK, "", "%s to be had in pages of 2 MiB, host.bytes wants %s", have,
                   want);
    else if (doctor_writable(d, OVERCOMMIT_PAGES))
        doctor_add(d, DOCTOR_OK, "",
                   "%s to be had of the %s that host.bytes wants; an agent of this user raises "
                   "vm.nr_overcommit_hugepages by itself",
                   have, want);
    else
        doctor_add(d, required ? DOCTOR_FAIL : DOCTOR_WARN, remedy,
                   "%s to be had in pages of 2 MiB, host.bytes wants %s", have, want);
}

static void check_overcommit(struct doctor *d)
{
    uint64_t mode = 0;
    (void)doctor_number(d, "/proc/sys/vm/overcommit_memory", &mode);
    if (mode == 2)
        doctor_add(d, DOCTOR_FAIL, "sysctl -w vm.overcommit_memory=0",
                   "vm.overcommit_memory is 2: address space for the index is refused");
    else
        doctor_add(d, DOCTOR_OK, "", "vm.overcommit_memory is %" PRIu64, mode);
}

static void check_memlock(struct doctor *d)
{
    char path[64], rest[DOCTOR_LINE_BYTES], have[KVCTL_TEXT_BYTES], want[KVCTL_TEXT_BYTES];
    const char *whose = d->pid != 0 ? "the agent" : "this user";
    doctor_proc_path(d, "status", path, sizeof(path));
    uint64_t caps = doctor_entry(d, path, "CapEff:", rest) ? strtoull(rest, NULL, 16) : 0;
    if ((caps >> CAP_IPC_LOCK_ & 1) != 0) {
        doctor_add(d, DOCTOR_OK, "", "no limit on locked memory: %s has CAP_IPC_LOCK", whose);
        return;
    }
    doctor_proc_path(d, "limits", path, sizeof(path));
    if (!doctor_entry(d, path, "Max locked memory", rest)) {
        doctor_add(d, DOCTOR_NOTE, "look as the user that the agent runs as",
                   "the limit on locked memory cannot be read");
        return;
    }
    uint64_t limit = strncmp(rest, "unlimited", 9) == 0 ? UINT64_MAX : strtoull(rest, NULL, 10);
    uint64_t need = host_bytes(d);
    kvctl_bytes_text((double)limit, have);
    kvctl_bytes_text((double)need, want);
    if (limit >= need)
        doctor_add(d, DOCTOR_OK, "", "%s may lock %s", whose,
                   limit == UINT64_MAX ? "any amount of memory" : have);
    else
        doctor_add(d, DOCTOR_WARN,
                   "LimitMEMLOCK=infinity in the unit, or 'ulimit -l unlimited' before the start",
                   "%s may lock %s of the %s of host.bytes: disk I/O maps its buffers each time",
                   whose, have, want);
}

static void check_io_uring(struct doctor *d)
{
    struct io_uring ring;
    uint64_t disabled = 0;
    bool required = strcmp(doctor_config_text(d, "nvme.engine"), "io_uring") == 0;
    int rc = io_uring_queue_init(4, &ring, 0);
    if (rc == 0) {
        bool sparse = io_uring_register_buffers_sparse(&ring, 1) == 0;
        io_uring_queue_exit(&ring);
        if (sparse)
            doctor_add(d, DOCTOR_OK, "", "io_uring works, with registered buffers");
        else
            doctor_add(d, DOCTOR_WARN, "use a kernel from 5.19 on",
                       "io_uring works, but takes no sparse table of buffers");
        return;
    }
    (void)doctor_number(d, "/proc/sys/kernel/io_uring_disabled", &disabled);
    const char *remedy =
        rc == -ENOSYS ? "use a kernel from 5.19 on that has io_uring"
        : disabled > 0
            ? "sysctl -w kernel.io_uring_disabled=0"
            : "allow io_uring_setup, io_uring_enter and io_uring_register in the seccomp profile";
    doctor_add(d, required ? DOCTOR_FAIL : DOCTOR_WARN, remedy,
               "io_uring is refused (%s): the agent uses threads for disk I/O, at a lower rate",
               strerror(-rc));
}

static void check_numa(struct doctor *d)
{
    char online[DOCTOR_LINE_BYTES];
    if (!doctor_line(d, "/sys/devices/system/node/online", online) || strcmp(online, "0") == 0)
        doctor_add(d, DOCTOR_OK, "", "one NUMA node");
    else
        doctor_add(
            d, DOCTOR_WARN,
            "bind the agent to the node of its disk and GPUs: NUMAPolicy=bind, NUMAMask= and "
            "CPUAffinity=numa in the unit, or numactl",
            "NUMA nodes %s: copies and DMA across them are slower", online);
}

static void check_memory(struct doctor *d)
{
    char limit_text[KVCTL_TEXT_BYTES], want[KVCTL_TEXT_BYTES];
    struct kvt_cgroup_limits limits;
    kvt_cgroup_limits(d->root, &limits);
    uint64_t usable = kvt_memory_usable(&limits);
    uint64_t need = host_bytes(d);
    kvctl_bytes_text((double)usable, limit_text);
    kvctl_bytes_text((double)need, want);
    const char *what =
        limits.memory_bytes == KVT_CGROUP_NO_LIMIT ? "the machine has" : "the cgroup may use";
    if (need > usable)
        doctor_add(d, DOCTOR_FAIL, "lower host.bytes, or raise memory.max of the cgroup",
                   "host.bytes is %s and %s %s", want, what, limit_text);
    else if (need > usable / 10 * 9)
        doctor_add(d, DOCTOR_WARN, "leave a tenth for the index, the metadata and the engines",
                   "host.bytes is %s of the %s that %s", want, limit_text, what);
    else
        doctor_add(d, DOCTOR_OK, "", "%s %s, host.bytes is %s", what, limit_text, want);
}

static void check_cpu(struct doctor *d)
{
    struct kvt_cgroup_limits limits;
    kvt_cgroup_limits(d->root, &limits);
    unsigned n = kvt_cpus_usable(&limits);
    const char *why = limits.cpu_milli == KVT_CGROUP_NO_LIMIT ? "" : " (a quota of the cgroup)";
    if (n < 2)
        doctor_add(d, DOCTOR_WARN, "give it two: spinning and checksums take turns on one",
                   "one CPU to use%s", why);
    else
        doctor_add(d, DOCTOR_OK, "", "%u CPUs to use%s", n, why);
}

static void check_files(struct doctor *d)
{
    char path[64], rest[DOCTOR_LINE_BYTES], soft[32] = "", hard[32] = "";
    uint64_t need = 2 * KVT_MAX(doctor_config_bytes(d, "sessions.max"), 256) + 256;
    doctor_proc_path(d, "limits", path, sizeof(path));
    if (!doctor_entry(d, path, "Max open files", rest) ||
        sscanf(rest, "%31s %31s", soft, hard) != 2)
        return;
    uint64_t limit = strcmp(hard, "unlimited") == 0 ? UINT64_MAX : strtoull(hard, NULL, 10);
    if (limit >= need)
        doctor_add(d, DOCTOR_OK, "", "%s open files allowed", hard);
    else
        doctor_add(d, DOCTOR_WARN, "LimitNOFILE=65536 in the unit",
                   "%s open files allowed, sessions.max may want %" PRIu64, hard, need);
}

static void check_clock(struct doctor *d)
{
    char source[DOCTOR_LINE_BYTES] = "unknown";
    (void)doctor_line(d, "/sys/devices/system/clocksource/clocksource0/current_clocksource",
                      source);
    uint64_t start = kvt_now_ns();
    for (int i = 0; i < CLOCK_CALLS; i++)
        (void)kvt_now_ns();
    uint64_t each = (kvt_now_ns() - start) / CLOCK_CALLS;
    if (each > CLOCK_SLOW_NS)
        doctor_add(d, DOCTOR_WARN,
                   "look into 'dmesg | grep -i tsc'; boot with clocksource=tsc if that is stable "
                   "here",
                   "the clock %s takes %" PRIu64 " ns to read, and each request reads it", source,
                   each);
    else
        doctor_add(d, DOCTOR_OK, "", "the clock %s takes %" PRIu64 " ns to read", source, each);
    struct timex timex = {.modes = 0};
    if (adjtimex(&timex) == TIME_ERROR || (timex.status & STA_UNSYNC) != 0)
        doctor_add(d, DOCTOR_NOTE, "run chrony or systemd-timesyncd",
                   "the wall clock is not synchronized: only times in logs depend on it");
}

const struct doctor_check doctor_machine_checks[] = {
    {"huge-pages", check_huge_pages},
    {"overcommit", check_overcommit},
    {"memlock", check_memlock},
    {"io_uring", check_io_uring},
    {"memory", check_memory},
    {"cpu", check_cpu},
    {"numa", check_numa},
    {"files", check_files},
    {"clock", check_clock},
    {NULL, NULL},
};
