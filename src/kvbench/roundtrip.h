/* SPDX-License-Identifier: Apache-2.0 */
/* What a call costs at least: an empty message and its answer between two sleeping processes. */
#ifndef KVT_KVBENCH_ROUNDTRIP_H
#define KVT_KVBENCH_ROUNDTRIP_H

#include <stdint.h>

#include "kvt/status.h"

struct kvt_roundtrip;

/** Starts the other process. It ends with this one. */
enum kvt_status kvt_roundtrip_open(struct kvt_roundtrip **roundtrip_p,
                                   struct kvt_error *err) KVT_MUST_CHECK;
void kvt_roundtrip_close(struct kvt_roundtrip *roundtrip);

/** One message there and back over a SOCK_SEQPACKET pair; both sides sleep in recv. 0: it failed.
 */
uint64_t kvt_roundtrip_ns(struct kvt_roundtrip *roundtrip);

#endif
