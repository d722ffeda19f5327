/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KVT_CGROUP_H
#define KVT_CGROUP_H

#include <stdint.h>

#define KVT_CGROUP_NO_LIMIT UINT64_MAX

struct kvt_cgroup_limits {
    uint64_t cpu_milli;    /* thousandths of a CPU that the quota allows; or NO_LIMIT */
    uint64_t memory_bytes; /* or NO_LIMIT */
};

/**
 * The tightest CPU quota and memory limit on the way from this process's group up to the root that
 * it can see, for cgroup v1, v2 and both at once. What cannot be read sets no limit.
 *
 * @param root  Where /proc and /sys are: "" for the real ones, a folder for tests.
 */
void kvt_cgroup_limits(const char *root, struct kvt_cgroup_limits *limits_p);

/** CPUs this process can keep busy: its affinity, or its quota rounded up if that is less; >= 1. */
unsigned kvt_cpus_usable(const struct kvt_cgroup_limits *limits);

/** Memory of the machine, or the cgroup's limit if that is less. */
uint64_t kvt_memory_usable(const struct kvt_cgroup_limits *limits);

#endif
