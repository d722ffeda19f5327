/* SPDX-License-Identifier: Apache-2.0 */
#include "walk.h"

#include <stdbool.h>

struct frame {
    const json_t *container;
    const char *key; /* of the container */
    void *iter;      /* of an object: what comes next */
    size_t index;    /* of an array: likewise */
};

/* The next value of a container; false: there is none. jansson's iterators want non-const. */
static bool frame_next(struct frame *frame, const char **key_p, const json_t **value_p)
{
    json_t *container = (json_t *)frame->container;
    if (json_is_array(container)) {
        *key_p = NULL;
        *value_p = json_array_get(container, frame->index++);
        return *value_p != NULL;
    }
    if (frame->iter == NULL)
        return false;
    *key_p = json_object_iter_key(frame->iter);
    *value_p = json_object_iter_value(frame->iter);
    frame->iter = json_object_iter_next(container, frame->iter);
    return true;
}

void kvctl_walk(const json_t *value, kvctl_walk_fn fn, void *arg)
{
    struct frame stack[KVCTL_DEPTH_MAX];
    unsigned depth = 0;
    const char *key = NULL;
    for (;;) {
        if (!json_is_object(value) && !json_is_array(value)) {
            fn(arg, KVCTL_WALK_SCALAR, key, value, depth);
        } else if (depth < KVCTL_DEPTH_MAX) {
            fn(arg, KVCTL_WALK_BEGIN, key, value, depth);
            stack[depth++] = (struct frame){
                .container = value, .key = key, .iter = json_object_iter((json_t *)value)};
        }
        while (depth > 0 && !frame_next(&stack[depth - 1], &key, &value)) {
            depth--;
            fn(arg, KVCTL_WALK_END, stack[depth].key, stack[depth].container, depth);
        }
        if (depth == 0)
            return;
    }
}
