/* SPDX-License-Identifier: Apache-2.0 */
#include "touch.h"

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
    if (bytes < BYTES_MIN)
        return;
    touch->memory = memory;
    touch->bytes = bytes;
    atomic_init(&touch->stop, false);
    touch->is_running = kvt_thread_start(&touch->thread, touch_thread, touch) == 0;
}

void touch_stop(struct touch *touch)
{
    if (!touch->is_running)
        return;
    atomic_store_explicit(&touch->stop, true, memory_order_relaxed);
    pthread_join(touch->thread, NULL);
    touch->is_running = false;
}
