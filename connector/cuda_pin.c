/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda_pin.h"

#include <stdlib.h>

#include "kvt/util.h"

enum slice_state { SLICE_IDLE, SLICE_WANTED, SLICE_READY, SLICE_REFUSED };

struct slice { /* where a slice is in its map */
    uint64_t at, bytes;
};

/* Slices are cut from slabs, so that none reaches into memory that is not there yet. */
static struct slice slice_of(const struct kvt_pin *pin, const struct kvt_pin_map *map,
                             uint64_t index)
{
    uint64_t in_slab = index % pin->slices_per_slab * KVT_PIN_SLICE_BYTES;
    uint64_t at = index / pin->slices_per_slab * pin->slab_bytes + in_slab;
    uint64_t bytes = KVT_MIN(KVT_PIN_SLICE_BYTES, pin->slab_bytes - in_slab);
    return (struct slice){at, KVT_MIN(bytes, map->bytes - at)};
}

static uint64_t slice_index(const struct kvt_pin *pin, uint64_t at)
{
    return at / pin->slab_bytes * pin->slices_per_slab + at % pin->slab_bytes / KVT_PIN_SLICE_BYTES;
}

static const struct kvt_pin_map *map_of(const struct kvt_pin *pin, uint64_t offset)
{
    for (uint32_t i = 0; i < pin->n_maps; i++) {
        const struct kvt_pin_map *map = &pin->maps[i];
        if (offset >= map->base && offset - map->base < map->bytes)
            return map;
    }
    return NULL;
}

static void error_keep_locked(struct kvt_pin *pin, const struct kvt_error *err)
{
    if (pin->error.status != KVT_OK)
        return; /* the first says most; the others follow from it */
    pin->error = *err;
    atomic_store_explicit(&pin->has_error, true, memory_order_relaxed);
}

static void slice_register(struct kvt_pin *pin, struct kvt_pin_map *map, uint64_t index)
{
    struct slice slice = slice_of(pin, map, index);
    struct kvt_error err = {.status = KVT_OK};
    pthread_mutex_unlock(&pin->lock);
    unsigned result =
        pin->device->api.host_register(map->addr + slice.at, slice.bytes, KVT_CU_HOST_PORTABLE);
    if (result != KVT_CU_OK)
        (void)kvt_cuda_error(&pin->device->api, result, "cannot register memory of the arena",
                             &err);
    else
        atomic_fetch_add_explicit(&pin->n_bytes, slice.bytes, memory_order_relaxed);
    pthread_mutex_lock(&pin->lock);
    if (result != KVT_CU_OK)
        error_keep_locked(pin, &err);
    /* Pairs with the acquire in kvt_pin_ready(): who sees it ready may copy. */
    atomic_store_explicit(&map->slices[index], result == KVT_CU_OK ? SLICE_READY : SLICE_REFUSED,
                          memory_order_release);
    pin->n_wanted--;
}

/* One wanted slice, if there is any. */
static void wanted_register(struct kvt_pin *pin)
{
    for (uint32_t m = 0; m < pin->n_maps; m++) {
        struct kvt_pin_map *map = &pin->maps[m];
        for (uint64_t i = 0; i < map->n_slices; i++) {
            if (atomic_load_explicit(&map->slices[i], memory_order_relaxed) == SLICE_WANTED) {
                slice_register(pin, map, i);
                return;
            }
        }
    }
}

static void maps_release_locked(struct kvt_pin *pin)
{
    for (uint32_t m = 0; m < pin->n_maps; m++) {
        struct kvt_pin_map *map = &pin->maps[m];
        for (uint64_t i = 0; i < map->n_slices; i++) {
            if (atomic_load_explicit(&map->slices[i], memory_order_relaxed) == SLICE_READY)
                (void)pin->device->api.host_unregister(map->addr + slice_of(pin, map, i).at);
        }
        free((void *)map->slices);
    }
    pin->n_maps = 0;
    pin->n_wanted = 0;
    atomic_store_explicit(&pin->n_bytes, 0, memory_order_relaxed);
    pin->stopping = false;
    pthread_cond_broadcast(&pin->cond);
}

static void *pin_main(void *arg)
{
    struct kvt_pin *pin = arg;
    struct kvt_error err;
    bool usable = kvt_cuda_thread_init(pin->device, &err) == KVT_OK;

    pthread_mutex_lock(&pin->lock);
    if (!usable)
        error_keep_locked(pin, &err);
    while (!pin->closing) {
        if (pin->stopping)
            maps_release_locked(pin);
        else if (usable && pin->n_wanted > 0)
            wanted_register(pin);
        else
            pthread_cond_wait(&pin->cond, &pin->lock);
    }
    pthread_mutex_unlock(&pin->lock);
    return NULL;
}

enum kvt_status kvt_pin_init(struct kvt_pin *pin, struct kvt_cuda_device *device,
                             struct kvt_error *err)
{
    *pin = (struct kvt_pin){.device = device};
    pthread_mutex_init(&pin->lock, NULL);
    pthread_cond_init(&pin->cond, NULL);
    if (kvt_thread_start(&pin->thread, pin_main, pin) != 0) {
        pthread_cond_destroy(&pin->cond);
        pthread_mutex_destroy(&pin->lock);
        return kvt_error_set(err, KVT_ERR_NOMEM, "cuda: cannot start a thread; check ulimit -u");
    }
    (void)pthread_setname_np(pin->thread, "kvtier-pin");
    return KVT_OK;
}

void kvt_pin_fini(struct kvt_pin *pin)
{
    pthread_mutex_lock(&pin->lock);
    pin->closing = true;
    pthread_cond_broadcast(&pin->cond);
    pthread_mutex_unlock(&pin->lock);
    pthread_join(pin->thread, NULL);
    pthread_cond_destroy(&pin->cond);
    pthread_mutex_destroy(&pin->lock);
}

void kvt_pin_start(struct kvt_pin *pin, const struct kvt_arena *arena, uint64_t slab_bytes)
{
    if (slab_bytes == 0)
        return;
    pthread_mutex_lock(&pin->lock);
    pin->slab_bytes = slab_bytes;
    pin->slices_per_slab = (slab_bytes + KVT_PIN_SLICE_BYTES - 1) / KVT_PIN_SLICE_BYTES;
    for (uint32_t i = 0; i < arena->n_maps; i++) {
        const struct kvt_map *from = &arena->maps[i];
        struct kvt_pin_map map = {.addr = from->addr, .base = from->base, .bytes = from->bytes};
        map.n_slices = slice_index(pin, from->bytes - 1) + 1;
        map.slices = calloc(map.n_slices, sizeof(*map.slices));
        if (map.slices != NULL) /* else this region is staged */
            pin->maps[pin->n_maps++] = map;
    }
    pthread_mutex_unlock(&pin->lock);
}

void kvt_pin_stop(struct kvt_pin *pin)
{
    pthread_mutex_lock(&pin->lock);
    pin->stopping = true;
    pthread_cond_broadcast(&pin->cond);
    while (pin->stopping)
        pthread_cond_wait(&pin->cond, &pin->lock);
    pthread_mutex_unlock(&pin->lock);
}

/* Want all of the slabs that a slot is in. */
static void slabs_want(struct kvt_pin *pin, const struct kvt_pin_map *map, uint64_t first,
                       uint64_t last)
{
    first -= first % pin->slices_per_slab;
    last += pin->slices_per_slab - 1 - last % pin->slices_per_slab;
    pthread_mutex_lock(&pin->lock);
    for (uint64_t i = first; i <= KVT_MIN(last, map->n_slices - 1); i++) {
        if (atomic_load_explicit(&map->slices[i], memory_order_relaxed) == SLICE_IDLE) {
            atomic_store_explicit(&map->slices[i], SLICE_WANTED, memory_order_relaxed);
            pin->n_wanted++;
        }
    }
    pthread_cond_broadcast(&pin->cond);
    pthread_mutex_unlock(&pin->lock);
}

bool kvt_pin_ready(struct kvt_pin *pin, uint64_t offset, uint64_t bytes)
{
    const struct kvt_pin_map *map = map_of(pin, offset);
    bool ready = true, idle = false;
    if (map == NULL)
        return false;
    uint64_t first = slice_index(pin, offset - map->base);
    uint64_t last = slice_index(pin, offset - map->base + bytes - 1);
    for (uint64_t i = first; i <= last; i++) {
        uint8_t state = atomic_load_explicit(&map->slices[i], memory_order_acquire);
        ready = ready && state == SLICE_READY;
        idle = idle || state == SLICE_IDLE;
    }
    if (idle)
        slabs_want(pin, map, first, last);
    return ready;
}

uint64_t kvt_pin_reach(const struct kvt_pin *pin, uint64_t offset)
{
    const struct kvt_pin_map *map = map_of(pin, offset);
    if (map == NULL)
        return 0;
    uint64_t at = offset - map->base;
    struct slice slice = slice_of(pin, map, slice_index(pin, at));
    return slice.at + slice.bytes - at;
}

bool kvt_pin_error_take(struct kvt_pin *pin, struct kvt_error *err)
{
    if (!atomic_exchange_explicit(&pin->has_error, false, memory_order_relaxed))
        return false;
    pthread_mutex_lock(&pin->lock);
    *err = pin->error;
    pthread_mutex_unlock(&pin->lock);
    return true;
}
