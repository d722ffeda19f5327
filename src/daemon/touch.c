/* SPDX-License-Identifier: Apache-2.0 */
#include "touch.h"

#include <signal.h>

#include "kvt/util.h"

#define BYTES_MIN   (UINT64_C(64) << 20)
#define PIECE_BYTES (UINT64_C(2) << 20)

static void *touch_thread(void *arg)
{
    struct touch *touch = arg;
    for (uint64_t end = touch->bytes;
         end > 0 && !atomic_load_explicit(&touch->stop, memory_order_relaxed);) {
        uint64_t start = (end - 1) / PIECE_BYTES * PIECE_BYTES;
        kvt_big_populate(touch->memory + start, end - start);
        end = start;
    }
    return NULL;
}

void touch_start(struct touch *touch, void *memory, uint64_t bytes)
{
    sigset_t all;
    sigset_t old;
    if (bytes < BYTES_MIN)
        return;
    touch->memory = memory;
    touch->bytes = bytes;
    atomic_init(&touch->stop, false);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    touch->is_running = pthread_create(&touch->thread, NULL, touch_thread, touch) == 0;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

void touch_stop(struct touch *touch)
{
    if (!touch->is_running)
        return;
    atomic_store_explicit(&touch->stop, true, memory_order_relaxed);
    pthread_join(touch->thread, NULL);
    touch->is_running = false;
}
