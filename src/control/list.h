/* SPDX-License-Identifier: Apache-2.0 */
/* Lists, page by page. A token names the agent's incarnation and the cursor of the core. */
#ifndef KVT_CONTROL_LIST_H
#define KVT_CONTROL_LIST_H

#include "request.h"

#define LIST_ITEMS_MAX 1000 /* of a page */

struct list_call;

struct list_kind {
    size_t item_bytes;   /* of what the core tells of one */
    control_call_fn run; /* arg: struct list_call. Fills items and their ns_ids */
    /* The message of items[i]. NULL: not listed, or the request has failed. */
    ProtobufCMessage *(*message)(struct request *r, const struct list_call *call, unsigned i);
};

struct list_call {
    const struct list_kind *kind;
    const void *arg; /* of the kind: what is asked for */
    /* Asked of the reactor: */
    uint64_t cursor;
    unsigned n_max, n;
    void *items;
    uint8_t (*ns_ids)[KVT_NS_ID_BYTES];
    uint64_t now_ns;
    /* The page: */
    void **out;
    unsigned n_out;
    char *next_token;
};

/** One page of messages. False: the request has failed. */
bool list_page(struct request *r, uint32_t page_size, const char *token, struct list_call *call);

#endif
