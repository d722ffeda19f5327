/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The arena registered with CUDA, so that copy engines reach it without a detour. Registering
 * locks pages and takes its time, so a thread of its own does it, slice by slice, beginning with
 * the slabs that are in use; until a slice is done, copies go through staging memory. A slab is
 * never registered before the agent gave us a slot in it: it has memory behind it only then.
 */
#ifndef KVT_CONNECTOR_CUDA_PIN_H
#define KVT_CONNECTOR_CUDA_PIN_H

#include <pthread.h>

#include "arena.h"
#include "cuda_device.h"

/* Short enough that calls of the engine which meet a registration in the driver hardly wait. */
#define KVT_PIN_SLICE_BYTES (16 * UINT64_C(1048576))

struct kvt_pin_map {
    char *addr;
    uint64_t base, bytes;
    uint64_t n_slices;
    _Atomic uint8_t *slices; /* enum slice_state in cuda_pin.c */
};

struct kvt_pin {
    struct kvt_cuda_device *device;
    pthread_mutex_t lock;
    pthread_cond_t cond; /* something is wanted, or stopping is over */
    pthread_t thread;
    bool closing, stopping;
    uint64_t n_wanted;
    uint64_t slab_bytes, slices_per_slab;
    uint32_t n_maps; /* 0 between arenas */
    struct kvt_pin_map maps[KVT_REGIONS_MAX];
    _Atomic uint64_t n_bytes; /* registered */
    _Atomic bool has_error;   /* error is there, and nobody took it yet */
    struct kvt_error error;   /* of a registration that failed; under lock */
};

enum kvt_status kvt_pin_init(struct kvt_pin *pin, struct kvt_cuda_device *device,
                             struct kvt_error *err) KVT_MUST_CHECK;
void kvt_pin_fini(struct kvt_pin *pin); /* after kvt_pin_stop() */

/**
 * Take over a fresh mapping. Never fails: what cannot be registered is staged.
 * @param slab_bytes  Multiple of 2 MiB; an agent gives memory to whole slabs. 0: register nothing.
 */
void kvt_pin_start(struct kvt_pin *pin, const struct kvt_arena *arena, uint64_t slab_bytes);
/** Unregister everything, before the arena is unmapped. No copy may be under way. */
void kvt_pin_stop(struct kvt_pin *pin);

/**
 * Whether [offset, offset + bytes) of the arena, a slot, is registered as a whole. Where it is not,
 * its slab will be, later. Any thread, between start and stop.
 */
bool kvt_pin_ready(struct kvt_pin *pin, uint64_t offset, uint64_t bytes);
/** Bytes from a registered offset on that are of one registration: no copy may go further. */
uint64_t kvt_pin_reach(const struct kvt_pin *pin, uint64_t offset);

/** Why memory could not be registered, told once. @return false: nothing new. */
bool kvt_pin_error_take(struct kvt_pin *pin, struct kvt_error *err);

#endif
