/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The connector's copies beside memcpy of the same pieces: ratios by object and piece size. Each
 * round runs both, in turn; the figures are medians over the rounds. Run by hand on a quiet
 * machine.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "copy.h"
#include "kvt/util.h"

#define ARENA_BYTES (512 * KVT_MIB)
#define ROUNDS      9
#define N_LAYERS    32u

static _Atomic int go_on;
static const struct kvt_copy_stop no_stop = {&go_on, UINT64_MAX, 0};

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values)
{
    qsort(values, ROUNDS, sizeof(*values), compare);
    return values[ROUNDS / 2];
}

static char *memory_get(void)
{
    char *p = kvt_big_calloc(ARENA_BYTES);
    if (p == NULL) {
        fprintf(stderr, "copy_bench: no memory\n");
        exit(1);
    }
    memset(p, 1, ARENA_BYTES);
    return p;
}

/* Pieces of piece_bytes, laid out as in an engine: page after page, objects between each other. */
static kvtier_layout layout_of(char *engine, uint64_t n_objects, uint64_t object,
                               uint64_t object_bytes, uint64_t piece_bytes)
{
    return (kvtier_layout){.base = engine + object * piece_bytes,
                           .n_outer = (uint32_t)(object_bytes / piece_bytes),
                           .n_inner = 1,
                           .outer_stride = (int64_t)(piece_bytes * n_objects),
                           .bytes = piece_bytes};
}

enum what { MEMCPY_STORE, STORE, MEMCPY_LOAD, LOAD, N_WHAT };

static void plain_copy(char *arena, const kvtier_layout *layout, bool store)
{
    for (uint32_t i = 0; i < layout->n_outer; i++) {
        char *piece = (char *)layout->base + (int64_t)i * layout->outer_stride;
        if (store)
            memcpy(arena + i * layout->bytes, piece, layout->bytes);
        else
            memcpy(piece, arena + i * layout->bytes, layout->bytes);
    }
}

static double round_run(const struct kvt_copy_ops *copy, enum what what, char *arena, char *engine,
                        uint64_t object_bytes, uint64_t piece_bytes)
{
    uint64_t n = ARENA_BYTES / object_bytes, sums[N_LAYERS];
    uint64_t start_ns = kvt_now_ns();
    for (uint64_t i = 0; i < n; i++) {
        kvtier_layout layout = layout_of(engine, n, i, object_bytes, piece_bytes);
        char *slot = arena + i * object_bytes;
        if (what == STORE)
            copy->store(slot, &layout, N_LAYERS, object_bytes / N_LAYERS, sums, &no_stop);
        else if (what == LOAD)
            copy->load(&layout, slot, object_bytes, &no_stop);
        else
            plain_copy(slot, &layout, what == MEMCPY_STORE);
    }
    return (double)(n * object_bytes) / (double)(kvt_now_ns() - start_ns);
}

int main(void)
{
    const uint64_t objects[] = {256 * KVT_KIB, 1536 * KVT_KIB, 6 * KVT_MIB, 32 * KVT_MIB};
    const uint64_t pieces[] = {256, 2 * KVT_KIB, 8 * KVT_KIB, 64 * KVT_KIB, 256 * KVT_KIB};
    const struct kvt_copy_ops *variants[] = {&kvt_copy_plain, kvt_copy_best()};
    char *arena = memory_get(), *engine = memory_get();

    printf("%-6s %9s %9s | %8s %8s %6s | %8s %8s %6s   (GB/s)\n", "code", "object", "piece",
           "memcpy", "store", "ratio", "memcpy", "load", "ratio");
    for (unsigned v = 0; v < KVT_ARRAY_LEN(variants); v++) {
        for (unsigned o = 0; o < KVT_ARRAY_LEN(objects); o++) {
            for (unsigned p = 0; p < KVT_ARRAY_LEN(pieces); p++) {
                double rates[N_WHAT][ROUNDS];
                double ratios[2][ROUNDS];
                for (int r = 0; r < ROUNDS; r++) {
                    for (int w = 0; w < N_WHAT; w++)
                        rates[w][r] = round_run(variants[v], (enum what)w, arena, engine,
                                                objects[o], pieces[p]);
                    ratios[0][r] = rates[STORE][r] / rates[MEMCPY_STORE][r];
                    ratios[1][r] = rates[LOAD][r] / rates[MEMCPY_LOAD][r];
                }
                printf("%-6s %9llu %9llu | %8.2f %8.2f %6.2f | %8.2f %8.2f %6.2f\n",
                       variants[v]->name, (unsigned long long)objects[o],
                       (unsigned long long)pieces[p], median(rates[MEMCPY_STORE]),
                       median(rates[STORE]), median(ratios[0]), median(rates[MEMCPY_LOAD]),
                       median(rates[LOAD]), median(ratios[1]));
                fflush(stdout);
            }
        }
    }
    kvt_big_free(arena, ARENA_BYTES);
    kvt_big_free(engine, ARENA_BYTES);
    return 0;
}
