/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A CUDA driver without a GPU, for tests of order, cancel and failure: the entry points that the
 * connector uses, as a shared library that it loads in place of libcuda. Streams are threads that
 * work late and at random moments, memory of the "GPU" is real and may not be touched by the
 * processor, and rules that the driver enforces are enforced. It says nothing about speed, and
 * nothing about what a real driver does beyond its documented rules.
 *
 * What tests ask of it beside CUDA's calls; they find these with dlsym().
 */
#ifndef KVT_TEST_FAKE_CUDA_H
#define KVT_TEST_FAKE_CUDA_H

#include <stddef.h>
#include <stdint.h>

struct CUstream_st;

/** Run fn(arg) in the order of a stream, delay_us later than it could: an engine's kernel. */
typedef void (*fake_run_fn)(struct CUstream_st *stream, unsigned delay_us, void (*fn)(void *arg),
                            void *arg);
/** Where the processor may touch memory of the GPU. */
typedef void *(*fake_alias_fn)(uint64_t ptr);
/** Let the call named `symbol` fail with `result`, once, after `skip` good ones; NULL: none. */
typedef void (*fake_fail_fn)(const char *symbol, unsigned skip, unsigned result);
/** Each operation of a stream starts up to so much late, at random. */
typedef void (*fake_delay_fn)(unsigned delay_us);
typedef void (*fake_capture_fn)(struct CUstream_st *stream, int on);

/* What exists now. */
struct fake_census {
    unsigned n_streams, n_events, n_allocations, n_host_allocations, n_registered, n_contexts;
    unsigned n_modules;
    uint64_t n_calls_2d, n_calls_batch, n_calls_single, n_launches;
};
typedef struct fake_census (*fake_census_fn)(void);

#endif
