/* SPDX-License-Identifier: Apache-2.0 */
#include "api.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "kvt/options.h"
#include "kvt/util.h"
#include "message.h"

#define TOKENS_MAX (UINT32_C(1) << 20) /* 4 MiB, what a message may have */

/* --- lists ----------------------------------------------------------------------------------- */

/* A string field of a message; NULL: it has none of the name. */
static char **string_field(ProtobufCMessage *message, const char *name)
{
    const ProtobufCFieldDescriptor *field =
        protobuf_c_message_descriptor_get_field_by_name(message->descriptor, name);
    return field == NULL ? NULL : (char **)(void *)((char *)message + field->offset);
}

/* Hand out the items of one page: the only repeated field of a list's answer. False: enough. */
static bool page_items(const ProtobufCMessage *page, kvctl_item_fn item, void *arg)
{
    const ProtobufCMessageDescriptor *type = page->descriptor;
    const char *base = (const char *)page;
    for (unsigned i = 0; i < type->n_fields; i++) {
        const ProtobufCFieldDescriptor *field = &type->fields[i];
        if (field->label != PROTOBUF_C_LABEL_REPEATED)
            continue;
        size_t n = *(const size_t *)(const void *)(base + field->quantifier_offset);
        ProtobufCMessage *const *items =
            *(ProtobufCMessage *const *const *)(const void *)(base + field->offset);
        for (size_t j = 0; j < n; j++) {
            if (!item(arg, items[j]))
                return false;
        }
    }
    return true;
}

enum kvctl_exit kvctl_list(struct kvctl *k, const char *method, ProtobufCMessage *request,
                           kvctl_item_fn item, void *arg)
{
    char **token_p = string_field(request, "page_token");
    ProtobufCMessage *page = NULL;
    for (;;) {
        ProtobufCMessage *next = NULL;
        enum kvctl_exit code = kvctl_call(k, method, request, &next);
        if (page != NULL)
            protobuf_c_message_free_unpacked(page, NULL); /* had the token of this request */
        page = next;
        if (code != KVCTL_OK)
            return code;
        char **next_p = string_field(page, "next_page_token");
        bool more = page_items(page, item, arg) && token_p != NULL && next_p != NULL &&
                    (*next_p)[0] != '\0';
        if (!more)
            break;
        *token_p = *next_p;
    }
    protobuf_c_message_free_unpacked(page, NULL);
    return KVCTL_OK;
}

/* --- namespaces ------------------------------------------------------------------------------ */

struct ns_search {
    const char *text; /* NULL: the only one there is */
    unsigned n_found;
    char first[KVCTL_KEY_DIGITS + 1], second[KVCTL_KEY_DIGITS + 1];
    Kvtier__V1__Namespace *message; /* of the first */
};

static Kvtier__V1__Namespace *ns_copy(const Kvtier__V1__Namespace *ns)
{
    size_t bytes = kvtier__v1__namespace__get_packed_size(ns);
    uint8_t *packed = malloc(bytes + 1);
    if (packed == NULL)
        return NULL;
    kvtier__v1__namespace__pack(ns, packed);
    Kvtier__V1__Namespace *copy = kvtier__v1__namespace__unpack(NULL, bytes, packed);
    free(packed);
    return copy;
}

static bool ns_match(void *arg, const ProtobufCMessage *item)
{
    struct ns_search *search = arg;
    const Kvtier__V1__Namespace *ns = KVCTL_AS(Kvtier__V1__Namespace, item);
    char id[KVCTL_KEY_DIGITS + 1];
    if (ns->id.len != KVCTL_KEY_BYTES)
        return true;
    kvctl_hex(ns->id.data, ns->id.len, id);
    if (search->text != NULL && strncasecmp(id, search->text, strlen(search->text)) != 0 &&
        strcmp(ns->model, search->text) != 0)
        return true;
    memcpy(search->n_found == 0 ? search->first : search->second, id, sizeof(id));
    if (search->n_found++ == 0)
        search->message = ns_copy(ns);
    return true;
}

enum kvctl_exit kvctl_ns_find(struct kvctl *k, const char *text, bool describe, struct kvctl_ns *ns)
{
    Kvtier__V1__ListNamespacesRequest request = KVTIER__V1__LIST_NAMESPACES_REQUEST__INIT;
    struct ns_search search = {.text = text};
    ns->message = NULL;
    if (!describe && text != NULL && kvctl_unhex(text, ns->id, KVCTL_KEY_BYTES))
        return KVCTL_OK;
    enum kvctl_exit code = kvctl_list(k, "ListNamespaces", &request.base, ns_match, &search);
    ns->message = search.message;
    if (code != KVCTL_OK)
        return code;
    if (search.n_found == 0)
        return kvctl_fail(KVCTL_NOT_FOUND,
                          text != NULL ? "no namespace has the id or model \"%s\"; "
                                         "'kvctl get namespaces' lists them"
                                       : "the agent has no namespace yet%s",
                          text != NULL ? text : "");
    if (search.n_found > 1)
        return kvctl_fail(KVCTL_USAGE,
                          "%u namespaces %s%s, among them %.16s and %.16s; name one with "
                          "-n ID, 'kvctl get namespaces' lists them",
                          search.n_found, text != NULL ? "match " : "are there",
                          text != NULL ? text : "", search.first, search.second);
    return kvctl_unhex(search.first, ns->id, KVCTL_KEY_BYTES) && search.message != NULL
               ? KVCTL_OK
               : kvctl_fail(KVCTL_FAILED, "out of memory");
}

void kvctl_ns_free(struct kvctl_ns *ns)
{
    if (ns->message != NULL)
        kvtier__v1__namespace__free_unpacked(ns->message, NULL);
    ns->message = NULL;
}

/* --- keys and ids ---------------------------------------------------------------------------- */

bool kvctl_key_parse(const char *text, uint8_t key[KVCTL_KEY_BYTES])
{
    if (kvctl_unhex(text, key, KVCTL_KEY_BYTES))
        return true;
    (void)kvctl_fail(KVCTL_USAGE, "\"%s\" is not a key: that is 64 hexadecimal digits", text);
    return false;
}

bool kvctl_id_parse(const char *what, const char *text, uint64_t *id_p)
{
    size_t n = strspn(text, "0123456789");
    errno = 0;
    uint64_t id = strtoull(text, NULL, 10);
    if (n > 0 && text[n] == '\0' && errno == 0) {
        *id_p = id;
        return true;
    }
    (void)kvctl_fail(KVCTL_USAGE,
                     "\"%s\" is not the id of a %s: that is a number; see 'kvctl get %ss'", text,
                     what, what);
    return false;
}

/* --- chains ---------------------------------------------------------------------------------- */

/* Whole numbers, whatever stands between them. */
static enum kvctl_exit tokens_read(const char *path, Kvtier__V1__Tokens *tokens)
{
    FILE *file = strcmp(path, "-") == 0 ? stdin : fopen(path, "re");
    if (file == NULL)
        return kvctl_fail(KVCTL_FAILED, "--tokens: cannot open %s: %s", path, strerror(errno));
    uint64_t number = 0;
    bool inside = false, fits = true;
    tokens->ids = malloc(TOKENS_MAX * sizeof(*tokens->ids));
    for (int c = 0; c != EOF && fits && tokens->ids != NULL;) {
        c = getc(file);
        if (c >= '0' && c <= '9') {
            number = 10 * number + (uint64_t)(c - '0');
            inside = true;
            fits = number <= UINT32_MAX;
        } else if (inside) {
            fits = tokens->n_ids < TOKENS_MAX;
            if (fits)
                tokens->ids[tokens->n_ids++] = (uint32_t)number;
            number = 0;
            inside = false;
        }
    }
    bool failed = ferror(file) != 0;
    if (file != stdin)
        fclose(file);
    if (tokens->ids == NULL)
        return kvctl_fail(KVCTL_FAILED, "out of memory");
    if (failed)
        return kvctl_fail(KVCTL_FAILED, "--tokens: cannot read %s", path);
    if (!fits || tokens->n_ids == 0)
        return kvctl_fail(KVCTL_USAGE,
                          "--tokens: %s must have 1 to %" PRIu32 " numbers of at most %" PRIu32,
                          path, TOKENS_MAX, UINT32_MAX);
    return KVCTL_OK;
}

bool kvctl_chain_given(const struct kvctl *k, int argc)
{
    return argc > 0 || kvctl_given(k, KVCTL_OPT_TOKENS);
}

enum kvctl_exit kvctl_chain_make(struct kvctl *k, int argc, char **argv, struct kvctl_chain *chain)
{
    const char *file = k->values[KVCTL_OPT_TOKENS], *parent = k->values[KVCTL_OPT_PARENT];
    *chain =
        (struct kvctl_chain){.chain = KVTIER__V1__CHAIN__INIT, .tokens = KVTIER__V1__TOKENS__INIT};
    if ((argc > 0) == (file != NULL))
        return kvctl_fail(KVCTL_USAGE, "name the chunks by their keys or by --tokens FILE, one of "
                                       "the two");
    if (parent != NULL && (file == NULL || !kvctl_key_parse(parent, chain->parent)))
        return file != NULL ? KVCTL_USAGE : kvctl_fail(KVCTL_USAGE, "--parent goes with --tokens");
    enum kvctl_exit code = kvctl_ns_find(k, k->values[KVCTL_OPT_NAMESPACE], false, &chain->ns);
    if (code != KVCTL_OK)
        return code;
    chain->chain.namespace_id = (ProtobufCBinaryData){.len = KVCTL_KEY_BYTES, .data = chain->ns.id};
    if (file != NULL) {
        chain->chain.tokens = &chain->tokens;
        if (parent != NULL)
            chain->tokens.parent_key =
                (ProtobufCBinaryData){.len = KVCTL_KEY_BYTES, .data = chain->parent};
        return tokens_read(file, &chain->tokens);
    }
    chain->keys = calloc((size_t)argc, sizeof(*chain->keys));
    chain->key_data = calloc((size_t)argc, sizeof(*chain->key_data));
    if (chain->keys == NULL || chain->key_data == NULL)
        return kvctl_fail(KVCTL_FAILED, "out of memory");
    for (int i = 0; i < argc; i++) {
        if (!kvctl_key_parse(argv[i], chain->keys[i]))
            return KVCTL_USAGE;
        chain->key_data[i] = (ProtobufCBinaryData){.len = KVCTL_KEY_BYTES, .data = chain->keys[i]};
    }
    chain->chain.keys = chain->key_data;
    chain->chain.n_keys = (size_t)argc;
    return KVCTL_OK;
}

void kvctl_chain_free(struct kvctl_chain *chain)
{
    free(chain->tokens.ids);
    free(chain->keys);
    free(chain->key_data);
    kvctl_ns_free(&chain->ns);
}

/* --- filters --------------------------------------------------------------------------------- */

enum kvctl_exit kvctl_tier_option(const struct kvctl *k, Kvtier__V1__Tier *tier_p, size_t *n_p)
{
    const char *text = k->values[KVCTL_OPT_TIER];
    *n_p = text != NULL;
    if (text == NULL)
        return KVCTL_OK;
    if (strcmp(text, "host") == 0)
        *tier_p = KVTIER__V1__TIER__TIER_HOST;
    else if (strcmp(text, "nvme") == 0)
        *tier_p = KVTIER__V1__TIER__TIER_NVME;
    else
        return kvctl_fail(KVCTL_USAGE, "--tier: \"%s\" is neither host nor nvme", text);
    return KVCTL_OK;
}

/* An odd digit would be half a byte, which the API cannot say. */
static bool prefix_parse(const char *text, uint8_t *bytes, size_t *n_p)
{
    size_t n = strlen(text) / 2;
    if (n > 0 && n <= KVCTL_KEY_BYTES && kvctl_unhex(text, bytes, n)) {
        *n_p = n;
        return true;
    }
    (void)kvctl_fail(KVCTL_USAGE,
                     "--key-prefix: \"%s\" is not an even number of up to 64 "
                     "hexadecimal digits",
                     text);
    return false;
}

enum kvctl_exit kvctl_filter_make(struct kvctl *k, struct kvctl_filter *f)
{
    const char *ns = k->values[KVCTL_OPT_NAMESPACE], *prefix = k->values[KVCTL_OPT_KEY_PREFIX];
    const char *min = k->values[KVCTL_OPT_MIN_BYTES], *max = k->values[KVCTL_OPT_MAX_BYTES];
    *f = (struct kvctl_filter){.filter = KVTIER__V1__CHUNK_FILTER__INIT};
    size_t n_prefix = 0;
    if ((prefix != NULL && !prefix_parse(prefix, f->prefix, &n_prefix)) ||
        (min != NULL &&
         !kvt_option_bytes("--min-bytes", min, 0, INT64_MAX, &f->filter.min_bytes)) ||
        (max != NULL && !kvt_option_bytes("--max-bytes", max, 1, INT64_MAX, &f->filter.max_bytes)))
        return KVCTL_USAGE;
    enum kvctl_exit code = kvctl_tier_option(k, f->tiers, &f->filter.n_tiers);
    if (code == KVCTL_OK && ns != NULL) {
        code = kvctl_ns_find(k, ns, false, &f->ns);
        f->filter.namespace_id = (ProtobufCBinaryData){.len = KVCTL_KEY_BYTES, .data = f->ns.id};
    }
    f->filter.tiers = f->tiers;
    f->filter.key_prefix = (ProtobufCBinaryData){.len = n_prefix, .data = f->prefix};
    f->filter.pinned = kvctl_given(k, KVCTL_OPT_PINNED);
    f->filter.leased = kvctl_given(k, KVCTL_OPT_LEASED);
    return code;
}

void kvctl_filter_free(struct kvctl_filter *f)
{
    kvctl_ns_free(&f->ns);
}
