/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KVT_KVCTL_WALK_H
#define KVT_KVCTL_WALK_H

#include <jansson.h>

#define KVCTL_DEPTH_MAX 16 /* what is nested deeper is left out */

enum kvctl_walk_event { KVCTL_WALK_SCALAR, KVCTL_WALK_BEGIN, KVCTL_WALK_END };

/* key: NULL in a list, and of the outermost value. depth: 0 for that. */
typedef void (*kvctl_walk_fn)(void *arg, enum kvctl_walk_event event, const char *key,
                              const json_t *value, unsigned depth);

/** Every value in order; a container as BEGIN, what is in it, END. */
void kvctl_walk(const json_t *value, kvctl_walk_fn fn, void *arg);

#endif
