/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A thread that has the kernel clear pages which another one is about to fill from the first on. It
 * begins with the last: they meet once, instead of doing each page twice. Where a page takes long
 * (15 ms for one of 2 MiB in a virtual machine that had given its memory back) the other thread
 * reads and decodes meanwhile.
 */
#ifndef KVT_DAEMON_TOUCH_H
#define KVT_DAEMON_TOUCH_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct touch {
    pthread_t thread;
    bool is_running;
    _Atomic bool stop;
    char *memory;
    uint64_t bytes;
};

/* Begins, if that is worth a thread. Without one the other thread has it all to do. */
void touch_start(struct touch *touch, void *memory, uint64_t bytes);

/* Ends it, also half way, after at most one page of 2 MiB. */
void touch_stop(struct touch *touch);

#endif
