/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The body of copy_plain.c and copy_avx2.c, which are this text compiled for different processors.
 * Both define KVT_COPY_OPS (the name of their table) and KVT_COPY_NAME first.
 */
#include "copy.h"

#include <sched.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "kvt/util.h"

#if defined(__AVX2__)
#include <immintrin.h>
#define STREAM_ALIGN 32u
#elif defined(__SSE2__)
#include <emmintrin.h>
#define STREAM_ALIGN 16u
#endif

/* Read by the hash, still in the first-level cache when the copy reads it again. */
#define FUSE_BYTES 2048u
/* Below this a run is gathered first and hashed from the destination, in larger pieces. */
#define RUN_BYTES_MIN 256u
#define GATHER_BYTES  (64u * 1024)
#define STREAM_UNIT   128u

static inline void copy_fence(void)
{
#ifdef STREAM_ALIGN
    _mm_sfence(); /* streaming stores are weakly ordered: before others are told of them */
#endif
}

/* Copy past the caches: nobody reads the destination soon, and it need not be fetched first. */
static inline void copy_stream(char *dst, const char *src, size_t n)
{
#ifdef STREAM_ALIGN
    if (n >= RUN_BYTES_MIN) {
        size_t head = (size_t)(-(uintptr_t)dst & (STREAM_ALIGN - 1));
        if (head > 0) {
            memcpy(dst, src, head);
            dst += head;
            src += head;
            n -= head;
        }
        for (; n >= STREAM_UNIT; n -= STREAM_UNIT, dst += STREAM_UNIT, src += STREAM_UNIT) {
            for (unsigned i = 0; i < STREAM_UNIT; i += STREAM_ALIGN) {
#if STREAM_ALIGN == 32
                __m256i v = _mm256_loadu_si256((const __m256i *)(const void *)(src + i));
                _mm256_stream_si256((__m256i *)(void *)(dst + i), v);
#else
                __m128i v = _mm_loadu_si128((const __m128i *)(const void *)(src + i));
                _mm_stream_si128((__m128i *)(void *)(dst + i), v);
#endif
            }
        }
    }
#endif
    memcpy(dst, src, n);
}

/* Runs lie apart, so that the processor does not guess where the next one begins. */
static inline void copy_prefetch(const struct kvt_runs *runs)
{
    uint64_t n = KVT_MIN(runs->left, FUSE_BYTES);
    for (uint64_t at = 0; at < n; at += 64)
        __builtin_prefetch(runs->addr + at, 0, 3);
}

/*
 * Asked before every block. Between two of them a copy that has gone on for a while also gives way
 * to the engine's threads and to the agent: with few cores they would wait for it up to the
 * scheduler's next tick, some milliseconds. With nobody waiting that is one short call for 256 KiB.
 */
static inline bool copy_stopped(const struct kvt_copy_stop *stop, bool is_first)
{
    if (!is_first && kvt_now_ns() >= stop->yield_ns)
        sched_yield();
    return atomic_load_explicit(stop->flag, memory_order_relaxed) != 0 ||
           (stop->deadline_ns != UINT64_MAX && kvt_now_ns() > stop->deadline_ns);
}

/* Copy and hash one block of a segment. */
static void block_store(char *dst, struct kvt_runs *src, uint64_t bytes, XXH3_state_t *state)
{
    while (bytes > 0) {
        char *run;
        uint64_t n = kvt_runs_next(src, KVT_MIN(bytes, FUSE_BYTES), &run);
        if (n >= RUN_BYTES_MIN) {
            copy_prefetch(src);
            XXH3_64bits_update(state, run, n);
            copy_stream(dst, run, n);
        } else {
            uint64_t max = KVT_MIN(bytes, GATHER_BYTES);
            memcpy(dst, run, n);
            while (n < max) {
                uint64_t more = kvt_runs_next(src, max - n, &run);
                memcpy(dst + n, run, more);
                n += more;
            }
            XXH3_64bits_update(state, dst, n);
        }
        dst += n;
        bytes -= n;
    }
}

static bool copy_store(void *dst, const kvtier_layout *src, uint32_t n_segments,
                       uint64_t segment_bytes, uint64_t *sums, const struct kvt_copy_stop *stop)
{
    struct kvt_runs runs;
    char *to = dst;
    uint64_t unchecked = KVT_COPY_BLOCK_BYTES; /* look at the flag before the first byte, too */
    XXH3_state_t state;

    XXH3_INITSTATE(&state);
    kvt_runs_init(&runs, src);
    for (uint32_t i = 0; i < n_segments; i++) {
        XXH3_64bits_reset(&state);
        for (uint64_t left = segment_bytes; left > 0;) {
            if (unchecked >= KVT_COPY_BLOCK_BYTES) {
                if (copy_stopped(stop, to == dst)) {
                    copy_fence();
                    return false;
                }
                unchecked = 0;
            }
            uint64_t n = KVT_MIN(left, KVT_COPY_BLOCK_BYTES - unchecked);
            block_store(to, &runs, n, &state);
            to += n;
            left -= n;
            unchecked += n;
        }
        sums[i] = XXH3_64bits_digest(&state);
    }
    copy_fence();
    return true;
}

static bool copy_hash(const void *src, uint32_t n_segments, uint64_t segment_bytes, uint64_t *sums,
                      const struct kvt_copy_stop *stop)
{
    const char *at = src;
    uint64_t unchecked = KVT_COPY_BLOCK_BYTES;
    for (uint32_t i = 0; i < n_segments; i++) {
        if (unchecked >= KVT_COPY_BLOCK_BYTES && copy_stopped(stop, at == src))
            return false;
        unchecked = unchecked >= KVT_COPY_BLOCK_BYTES ? segment_bytes : unchecked + segment_bytes;
        sums[i] = XXH3_64bits(at, segment_bytes);
        at += segment_bytes;
    }
    return true;
}

static bool copy_load(const kvtier_layout *dst, const void *src, uint64_t bytes,
                      const struct kvt_copy_stop *stop)
{
    struct kvt_runs runs;
    const char *from = src;
    bool whole = true;

    kvt_runs_init(&runs, dst);
    while (bytes > 0) {
        if (copy_stopped(stop, from == src)) {
            whole = false;
            break;
        }
        uint64_t left = KVT_MIN(bytes, KVT_COPY_BLOCK_BYTES);
        bytes -= left;
        while (left > 0) {
            char *run;
            uint64_t n = kvt_runs_next(&runs, left, &run);
            copy_stream(run, from, n);
            from += n;
            left -= n;
        }
    }
    copy_fence();
    return whole;
}

const struct kvt_copy_ops KVT_COPY_OPS = {
    .name = KVT_COPY_NAME,
    .store = copy_store,
    .hash = copy_hash,
    .load = copy_load,
};
