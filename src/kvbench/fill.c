/* SPDX-License-Identifier: Apache-2.0 */
#include "fill.h"

#include <stdbool.h>
#include <string.h>
#include <xxhash.h>

#include "kvt/util.h"

/* A block starts from the key's lanes and its number, so any place of a chunk is reached at once.
 */
#define BLOCK_BYTES 4096
#define STEP_BYTES  (KVT_FILL_LANES * 8)

/* Eight lanes in one register where there is AVX-512; the compiler splits it where there is not. */
typedef uint64_t lanes8 __attribute__((vector_size(64)));

static uint64_t mix64(uint64_t x)
{
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

void kvt_fill_key(uint64_t id, uint64_t seed, uint8_t key[KVTIER_KEY_BYTES])
{
    for (unsigned half = 0; half < 2; half++) {
        XXH128_canonical_t canonical;
        XXH128_canonicalFromHash(&canonical, XXH3_128bits_withSeed(&id, sizeof(id), seed + half));
        memcpy(key + half * sizeof(canonical), &canonical, sizeof(canonical));
    }
}

void kvt_fill_init(struct kvt_fill *fill, const uint8_t key[KVTIER_KEY_BYTES])
{
    /* Two hashes: a lane and a start that came from one could cancel out, and zero stays zero. */
    uint64_t seed = XXH3_64bits_withSeed(key, KVTIER_KEY_BYTES, 1);
    for (unsigned i = 0; i < KVT_FILL_LANES; i++)
        fill->lanes[i] = mix64(seed + i);
    fill->start = XXH3_64bits_withSeed(key, KVTIER_KEY_BYTES, 2);
}

/*
 * The two loops over a block, made once per instruction set. xorshift64 in each lane: nothing but
 * shifts and xors, which every vector unit has.
 */
#define BLOCK_START(fill, block)                                                                   \
    lanes8 a, b;                                                                                   \
    memcpy(&a, (fill)->lanes, sizeof(a));                                                          \
    memcpy(&b, (fill)->lanes + 8, sizeof(b));                                                      \
    uint64_t start_ = mix64((fill)->start + (block));                                              \
    a ^= start_;                                                                                   \
    b ^= start_;
#define BLOCK_STEP()                                                                               \
    a ^= a << 13;                                                                                  \
    b ^= b << 13;                                                                                  \
    a ^= a >> 7;                                                                                   \
    b ^= b >> 7;                                                                                   \
    a ^= a << 17;                                                                                  \
    b ^= b << 17;

#define BLOCK_FUNCTIONS(suffix, attribute)                                                         \
    attribute static void block_write_##suffix(const struct kvt_fill *fill, uint64_t block,        \
                                               uint8_t *dst)                                       \
    {                                                                                              \
        BLOCK_START(fill, block)                                                                   \
        for (unsigned at = 0; at < BLOCK_BYTES; at += STEP_BYTES) {                                \
            BLOCK_STEP()                                                                           \
            memcpy(dst + at, &a, sizeof(a));                                                       \
            memcpy(dst + at + sizeof(a), &b, sizeof(b));                                           \
        }                                                                                          \
    }                                                                                              \
    attribute static bool block_equal_##suffix(const struct kvt_fill *fill, uint64_t block,        \
                                               const uint8_t *src)                                 \
    {                                                                                              \
        BLOCK_START(fill, block)                                                                   \
        lanes8 diff = {0};                                                                         \
        for (unsigned at = 0; at < BLOCK_BYTES; at += STEP_BYTES) {                                \
            lanes8 x, y;                                                                           \
            memcpy(&x, src + at, sizeof(x));                                                       \
            memcpy(&y, src + at + sizeof(x), sizeof(y));                                           \
            BLOCK_STEP()                                                                           \
            diff |= (x ^ a) | (y ^ b);                                                             \
        }                                                                                          \
        uint64_t any = 0;                                                                          \
        for (unsigned i = 0; i < 8; i++)                                                           \
            any |= diff[i];                                                                        \
        return any == 0;                                                                           \
    }

BLOCK_FUNCTIONS(plain, )
#if defined(__x86_64__)
BLOCK_FUNCTIONS(avx2, __attribute__((target("avx2"))))
BLOCK_FUNCTIONS(avx512, __attribute__((target("avx512f"))))
#endif

static void block_write(const struct kvt_fill *fill, uint64_t block, uint8_t *dst)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) {
        block_write_avx512(fill, block, dst);
        return;
    }
    if (__builtin_cpu_supports("avx2")) {
        block_write_avx2(fill, block, dst);
        return;
    }
#endif
    block_write_plain(fill, block, dst);
}

static bool block_equal(const struct kvt_fill *fill, uint64_t block, const uint8_t *src)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f"))
        return block_equal_avx512(fill, block, src);
    if (__builtin_cpu_supports("avx2"))
        return block_equal_avx2(fill, block, src);
#endif
    return block_equal_plain(fill, block, src);
}

void kvt_fill_write(const struct kvt_fill *fill, uint64_t offset, void *dst, size_t bytes)
{
    uint8_t *out = dst;
    while (bytes > 0) {
        uint64_t block = offset / BLOCK_BYTES;
        size_t in_block = offset % BLOCK_BYTES;
        size_t n = KVT_MIN(bytes, BLOCK_BYTES - in_block);
        if (n == BLOCK_BYTES) {
            block_write(fill, block, out);
        } else {
            uint8_t whole[BLOCK_BYTES];
            block_write(fill, block, whole);
            memcpy(out, whole + in_block, n);
        }
        out += n;
        offset += n;
        bytes -= n;
    }
}

/* The exact count, for a block that is known to differ or is not whole. */
static uint64_t block_count_wrong(const struct kvt_fill *fill, uint64_t block, size_t in_block,
                                  const uint8_t *src, size_t n)
{
    uint8_t whole[BLOCK_BYTES];
    uint64_t n_wrong = 0;
    block_write(fill, block, whole);
    for (size_t i = 0; i < n; i++)
        n_wrong += src[i] != whole[in_block + i];
    return n_wrong;
}

uint64_t kvt_fill_check(const struct kvt_fill *fill, uint64_t offset, const void *src, size_t bytes)
{
    const uint8_t *in = src;
    uint64_t n_wrong = 0;
    while (bytes > 0) {
        uint64_t block = offset / BLOCK_BYTES;
        size_t in_block = offset % BLOCK_BYTES;
        size_t n = KVT_MIN(bytes, BLOCK_BYTES - in_block);
        if (n < BLOCK_BYTES || !block_equal(fill, block, in))
            n_wrong += block_count_wrong(fill, block, in_block, in, n);
        in += n;
        offset += n;
        bytes -= n;
    }
    return n_wrong;
}
