/* SPDX-License-Identifier: Apache-2.0 */
#include "kvt/gate.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kvt/util.h"

/*
 * One word holds all three, so that a thread that is counted as inside has seen the wakes that were
 * counted before it, and none of those after. A thread inside is marked as woken by whoever bumps
 * the wakes; since every key handed out before is old then, it will leave and look again, and does
 * not have to be woken another time.
 */
#define WAKES(state)  ((uint32_t)(state))
#define INSIDE(state) ((uint32_t)((state) >> 32 & 0xffff))
#define WOKEN(state)  ((uint32_t)((state) >> 48))
#define ONE_INSIDE    (UINT64_C(1) << 32)
#define ONE_WOKEN     (UINT64_C(1) << 48)

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the futex is the wakes");

static long futex(struct kvt_gate *gate, int op, uint32_t value)
{
    return syscall(SYS_futex, &gate->state, op, value, NULL, NULL, 0);
}

uint32_t kvt_gate_enter(struct kvt_gate *gate)
{
    /* Sequentially consistent, as is all here: either the waker sees us inside, or we see its work
     * when we look once more. */
    return WAKES(atomic_fetch_add(&gate->state, ONE_INSIDE));
}

void kvt_gate_leave(struct kvt_gate *gate)
{
    uint64_t state = atomic_load(&gate->state);
    uint64_t left;
    do {
        left = state - ONE_INSIDE - (WOKEN(state) > 0 ? ONE_WOKEN : 0);
    } while (!atomic_compare_exchange_weak(&gate->state, &state, left));
}

void kvt_gate_wait(struct kvt_gate *gate, uint32_t key)
{
    /* Its errors (a signal, a wake that came first) all mean: look again. */
    (void)futex(gate, FUTEX_WAIT_PRIVATE, key);
    kvt_gate_leave(gate);
}

void kvt_gate_wake(struct kvt_gate *gate, uint32_t n_threads)
{
    uint32_t n;
    uint64_t woken;
    uint64_t state = atomic_fetch_add(&gate->state, 0); /* a look that comes after the work */
    do {
        n = KVT_MIN(n_threads, INSIDE(state) - WOKEN(state));
        if (n == 0)
            return;
        woken = (state & ~(uint64_t)UINT32_MAX) | (uint32_t)(WAKES(state) + 1);
        woken += n * ONE_WOKEN;
    } while (!atomic_compare_exchange_weak(&gate->state, &state, woken));
    (void)futex(gate, FUTEX_WAKE_PRIVATE, n);
}
