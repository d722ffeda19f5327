/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where a thread sleeps until there may be work, without a lock and without losing a wake-up:
 *
 *     sleeper                               waker
 *     key = kvt_gate_enter(gate)            make the work visible
 *     if (work is there) kvt_gate_leave     kvt_gate_wake
 *     else kvt_gate_wait(gate, key)
 *
 * Waking costs a system call only when somebody sleeps who was not woken yet.
 */
#ifndef KVT_GATE_H
#define KVT_GATE_H

#include <stdatomic.h>
#include <stdint.h>

struct kvt_gate {
    _Atomic uint64_t state; /* wakes (32 bits), threads inside (16), those of them woken (16) */
};

uint32_t kvt_gate_enter(struct kvt_gate *gate);
void kvt_gate_leave(struct kvt_gate *gate);
/** Returns after a wake since enter, or for no reason; leaves the gate. */
void kvt_gate_wait(struct kvt_gate *gate, uint32_t key);
/** At most n_threads of those inside, of whom there are fewer than 65536. */
void kvt_gate_wake(struct kvt_gate *gate, uint32_t n_threads);

#endif
