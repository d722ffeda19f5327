/* SPDX-License-Identifier: Apache-2.0 */
/* What verbs have in common when they talk to the control API: names, selections, lists. */
#ifndef KVT_KVCTL_API_H
#define KVT_KVCTL_API_H

#include "client.h"
#include "control.pb-c.h"

#define KVCTL_KEY_BYTES  32
#define KVCTL_KEY_DIGITS (2 * KVCTL_KEY_BYTES)

/* One item of a list, lent for the call. False: enough. */
typedef bool (*kvctl_item_fn)(void *arg, const ProtobufCMessage *item);

/**
 * Every item of a List method, page by page.
 *
 * @param request  Of the method's input type, with its filter; its paging is done here.
 */
enum kvctl_exit kvctl_list(struct kvctl *k, const char *method, ProtobufCMessage *request,
                           kvctl_item_fn item, void *arg);

struct kvctl_ns {
    uint8_t id[KVCTL_KEY_BYTES];
    Kvtier__V1__Namespace *message; /* NULL: an id of 64 digits, taken as it is */
};

/**
 * The namespace of -n: an id, the beginning of one, or a model. With describe, the message is
 * fetched for an id of 64 digits too.
 */
enum kvctl_exit kvctl_ns_find(struct kvctl *k, const char *text, bool describe,
                              struct kvctl_ns *ns);
void kvctl_ns_free(struct kvctl_ns *ns);

/** A key of 64 digits; else a message and false. */
bool kvctl_key_parse(const char *text, uint8_t key[KVCTL_KEY_BYTES]);
/** An id as kvctl shows it, in hexadecimal. */
bool kvctl_id_parse(const char *what, const char *text, uint64_t *id_p);

/* Chunks of one prompt: keys as arguments, or --tokens FILE, of the namespace -n. */
struct kvctl_chain {
    Kvtier__V1__Chain chain;
    Kvtier__V1__Tokens tokens;
    struct kvctl_ns ns;
    uint8_t (*keys)[KVCTL_KEY_BYTES];
    ProtobufCBinaryData *key_data;
    uint8_t parent[KVCTL_KEY_BYTES];
};
/** Whether arguments or --tokens name chunks at all. */
bool kvctl_chain_given(const struct kvctl *k, int argc);
/** chain points into itself: it must not move. Free it in any case. */
enum kvctl_exit kvctl_chain_make(struct kvctl *k, int argc, char **argv, struct kvctl_chain *chain);
void kvctl_chain_free(struct kvctl_chain *chain);

/* What --namespace, --tier, --key-prefix, --min-bytes, --max-bytes, --pinned, --leased say. */
struct kvctl_filter {
    Kvtier__V1__ChunkFilter filter;
    struct kvctl_ns ns;
    Kvtier__V1__Tier tiers[1];
    uint8_t prefix[KVCTL_KEY_BYTES];
};
/** Like a chain: points into itself, free it in any case. */
enum kvctl_exit kvctl_filter_make(struct kvctl *k, struct kvctl_filter *filter);
void kvctl_filter_free(struct kvctl_filter *filter);

/** Value of --tier; n_p: 0 where there is none. */
enum kvctl_exit kvctl_tier_option(const struct kvctl *k, Kvtier__V1__Tier *tier_p, size_t *n_p);

#define KVCTL_AS(type, message) ((const type *)(const void *)(message))

#endif
