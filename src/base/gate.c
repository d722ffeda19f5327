/* SPDX-License-Identifier: Apache-2.0 */
#include "kvt/gate.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

uint32_t kvt_gate_enter(struct kvt_gate *gate)
{
    /* All of these are sequentially consistent: either the waker sees us inside, or we see its
     * work when we look once more. */
    atomic_fetch_add(&gate->n_inside, 1);
    return atomic_load(&gate->n_wakes);
}

void kvt_gate_leave(struct kvt_gate *gate)
{
    atomic_fetch_sub(&gate->n_inside, 1);
}

void kvt_gate_wait(struct kvt_gate *gate, uint32_t key)
{
    /* Its errors (a signal, a wake that came first) all mean: look again. */
    (void)syscall(SYS_futex, &gate->n_wakes, FUTEX_WAIT_PRIVATE, key, NULL, NULL, 0);
    kvt_gate_leave(gate);
}

void kvt_gate_wake(struct kvt_gate *gate, uint32_t n_threads)
{
    atomic_fetch_add(&gate->n_wakes, 1);
    if (atomic_load(&gate->n_inside) > 0)
        (void)syscall(SYS_futex, &gate->n_wakes, FUTEX_WAKE_PRIVATE, n_threads, NULL, NULL, 0);
}
