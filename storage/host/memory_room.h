/* SPDX-License-Identifier: Apache-2.0 */
/* How much memory an agent may still take without eating the machine's or its cgroup's last. */
#ifndef KVT_MEMORY_ROOM_H
#define KVT_MEMORY_ROOM_H

#include <stdbool.h>
#include <stdint.h>

#define KVT_HUGE_BYTES (UINT64_C(2) << 20)

/** First number in a small file such as one in /proc or /sys; false: cannot be read. */
bool kvt_read_number(const char *path, uint64_t *value_p);

/**
 * Bytes that can be taken now so that 5 % of the machine's memory (at least 512 MiB) stay
 * available, and 5 % of a memory cgroup's limit unused.
 *
 * @param uncharged_bytes  What this process took that no memory cgroup accounts (2 MiB pages): the
 *                         limit is meant to hold for it as well.
 */
uint64_t kvt_memory_room(uint64_t uncharged_bytes);

/** 2 MiB pages that lie reserved and unclaimed: taking these takes memory from nobody. */
uint64_t kvt_huge_pages_free(void);

/**
 * Let the kernel make n_pages 2 MiB pages on demand beside those that are in use, others' share
 * kept. Such surplus pages go back when their file is gone, however the process ended.
 *
 * @return false: not permitted, or there is no such page size.
 */
bool kvt_huge_pages_allow(uint64_t n_pages);

#endif
