/* SPDX-License-Identifier: Apache-2.0 */
/* lookup, pin, unpin, prefetch, demote, clear, verify, cancel. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "job.h"
#include "kvt/units.h"
#include "message.h"

#define OWNER_DEFAULT KVCTL_NAME
#define TTL_MAX_NS    (UINT64_C(366) * 86400 * KVT_NS_PER_S)

static bool message_print(struct kvctl *k, ProtobufCMessage *message)
{
    json_t *json = kvctl_message_json(message);
    protobuf_c_message_free_unpacked(message, NULL);
    bool printed = kvctl_object_print(&k->style, json);
    json_decref(json);
    return printed;
}

enum kvctl_exit kvctl_run_lookup(struct kvctl *k, int argc, char **argv)
{
    static const struct kvctl_column columns[] = {{"KEY", "key"}, {"TIERS", "tiers"}, {NULL}};
    Kvtier__V1__LookupRequest request = KVTIER__V1__LOOKUP_REQUEST__INIT;
    struct kvctl_chain chain;
    struct kvctl_rows rows;
    ProtobufCMessage *reply = NULL;
    enum kvctl_exit code = kvctl_chain_make(k, argc, argv, &chain);
    request.chain = &chain.chain;
    if (code == KVCTL_OK)
        code = kvctl_call(k, "Lookup", &request.base, &reply);
    kvctl_chain_free(&chain);
    if (code != KVCTL_OK)
        return code;
    const Kvtier__V1__LookupResponse *found = KVCTL_AS(Kvtier__V1__LookupResponse, reply);
    fprintf(stderr, KVCTL_NAME ": %" PRIu32 " of %" PRIu32 " chunks are held, %" PRIu64 " tokens\n",
            found->n_found, found->n_keys, found->n_tokens_found);
    kvctl_rows_begin(&rows, &k->style, "locations", columns);
    for (size_t i = 0; i < found->n_locations; i++)
        kvctl_rows_add(&rows, kvctl_message_json(&found->locations[i]->base));
    if (!kvctl_rows_end(&rows))
        code = KVCTL_FAILED;
    else if (found->n_found == 0)
        code = KVCTL_NOT_FOUND;
    protobuf_c_message_free_unpacked(reply, NULL);
    return code;
}

/* --- pins ------------------------------------------------------------------------------------ */

enum kvctl_exit kvctl_run_pin(struct kvctl *k, int argc, char **argv)
{
    Kvtier__V1__PinRequest request = KVTIER__V1__PIN_REQUEST__INIT;
    const char *ttl = k->values[KVCTL_OPT_TTL], *owner = k->values[KVCTL_OPT_OWNER];
    struct kvctl_chain chain;
    ProtobufCMessage *reply = NULL;
    uint64_t ttl_ns = 0;
    if (ttl != NULL &&
        (!kvt_time_parse(ttl, &ttl_ns) || ttl_ns < KVT_NS_PER_MS || ttl_ns > TTL_MAX_NS))
        return kvctl_fail(KVCTL_USAGE, "--ttl: \"%s\" is not a time from 1ms to 8784h (units: %s)",
                          ttl, KVT_TIME_UNITS);
    request.owner = (char *)(owner != NULL ? owner : OWNER_DEFAULT);
    request.ttl_ms = ttl_ns / KVT_NS_PER_MS;
    enum kvctl_exit code = kvctl_chain_make(k, argc, argv, &chain);
    request.chain = &chain.chain;
    if (code == KVCTL_OK)
        code = kvctl_call(k, "Pin", &request.base, &reply);
    kvctl_chain_free(&chain);
    if (code != KVCTL_OK)
        return code;
    const Kvtier__V1__PinResponse *made = KVCTL_AS(Kvtier__V1__PinResponse, reply);
    if (made->n_found < made->n_keys)
        fprintf(stderr,
                KVCTL_NAME ": %" PRIu32 " of %" PRIu32 " chunks are not held, and not "
                           "pinned\n",
                made->n_keys - made->n_found, made->n_keys);
    return message_print(k, reply) ? KVCTL_OK : KVCTL_FAILED;
}

enum kvctl_exit kvctl_run_unpin(struct kvctl *k, int argc, char **argv)
{
    Kvtier__V1__UnpinRequest request = KVTIER__V1__UNPIN_REQUEST__INIT;
    struct kvctl_chain chain = {.ns.message = NULL};
    const char *owner = k->values[KVCTL_OPT_OWNER];
    ProtobufCMessage *reply = NULL;
    enum kvctl_exit code = KVCTL_OK;
    bool by_id = argc == 1 && strlen(argv[0]) <= 16;
    if (by_id + (owner != NULL) + (!by_id && kvctl_chain_given(k, argc)) != 1)
        return kvctl_fail(KVCTL_USAGE, "name one of: the id of a pin, --owner NAME, the keys or "
                                       "--tokens that were pinned");
    if (by_id) {
        request.by_case = KVTIER__V1__UNPIN_REQUEST__BY_ID;
        if (!kvctl_id_parse("pin", argv[0], &request.id))
            return KVCTL_USAGE;
    } else if (owner != NULL) {
        request.by_case = KVTIER__V1__UNPIN_REQUEST__BY_OWNER;
        request.owner = (char *)owner;
    } else {
        request.by_case = KVTIER__V1__UNPIN_REQUEST__BY_CHAIN;
        code = kvctl_chain_make(k, argc, argv, &chain);
        request.chain = &chain.chain;
    }
    if (code == KVCTL_OK)
        code = kvctl_call(k, "Unpin", &request.base, &reply);
    kvctl_chain_free(&chain);
    if (code != KVCTL_OK)
        return code;
    bool none = KVCTL_AS(Kvtier__V1__UnpinResponse, reply)->n_unpinned == 0;
    if (!message_print(k, reply))
        return KVCTL_FAILED;
    return none ? KVCTL_NOT_FOUND : KVCTL_OK;
}

/* --- jobs ------------------------------------------------------------------------------------ */

/* What a job works on, from arguments and options. */
struct selection {
    Kvtier__V1__Selection message;
    struct kvctl_chain chain;
    struct kvctl_filter filter;
    bool any; /* something was named */
};

static bool filter_given(const struct kvctl *k)
{
    static const enum kvctl_option options[] = {
        KVCTL_OPT_NAMESPACE, KVCTL_OPT_KEY_PREFIX, KVCTL_OPT_MIN_BYTES,
        KVCTL_OPT_MAX_BYTES, KVCTL_OPT_PINNED,     KVCTL_OPT_LEASED,
    };
    for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++) {
        if (kvctl_given(k, options[i]))
            return true;
    }
    return false;
}

static enum kvctl_exit selection_make(struct kvctl *k, int argc, char **argv,
                                      struct selection *selection)
{
    *selection = (struct selection){.message = KVTIER__V1__SELECTION__INIT};
    enum kvctl_exit code = kvctl_filter_make(k, &selection->filter);
    selection->message.filter = &selection->filter.filter;
    selection->any = filter_given(k) || kvctl_chain_given(k, argc);
    if (code == KVCTL_OK && kvctl_chain_given(k, argc)) {
        code = kvctl_chain_make(k, argc, argv, &selection->chain);
        selection->message.chain = &selection->chain.chain;
        selection->message.subtree = kvctl_given(k, KVCTL_OPT_SUBTREE);
        selection->filter.filter.namespace_id.len = 0; /* the chain has it */
    } else if (code == KVCTL_OK && kvctl_given(k, KVCTL_OPT_SUBTREE)) {
        return kvctl_fail(KVCTL_USAGE, "--subtree goes with keys or --tokens");
    }
    if (code == KVCTL_OK && selection->any && kvctl_given(k, KVCTL_OPT_ALL))
        return kvctl_fail(KVCTL_USAGE, "--all goes with no key, no --tokens and no other choice of "
                                       "chunks than --tier");
    return code;
}

static void selection_free(struct selection *selection)
{
    kvctl_chain_free(&selection->chain);
    kvctl_filter_free(&selection->filter);
}

/* For verbs that will not work on everything unless told so. */
static enum kvctl_exit selection_check(const struct kvctl *k, const struct selection *selection,
                                       const char *verb)
{
    if (selection->any || kvctl_given(k, KVCTL_OPT_ALL))
        return KVCTL_OK;
    return kvctl_fail(KVCTL_USAGE,
                      "%s what? name keys, --tokens, -n, --key-prefix or sizes; --all for every "
                      "chunk of every namespace",
                      verb);
}

/* What a job that is done has left as it was, and why. */
static enum kvctl_exit skipped_tell(const Kvtier__V1__Job *job)
{
    bool may_force = job->type == KVTIER__V1__JOB__TYPE__TYPE_DELETE ||
                     job->type == KVTIER__V1__JOB__TYPE__TYPE_DEMOTE;
    if (job->n_skipped == 0)
        return KVCTL_OK;
    return kvctl_fail(job->n_skipped == job->n_matched ? KVCTL_FAILED : KVCTL_OK,
                      "%" PRIu64 " of %" PRIu64 " chunks were skipped: %s", job->n_skipped,
                      job->n_matched,
                      may_force ? "pinned, in use, or without room; 'kvctl get pins' lists pins, "
                                  "--force takes what they hold too"
                                : "in use, or without room; try again later");
}

/* named: by keys or tokens, not by a choice that may take nothing. */
static enum kvctl_exit job_finish(struct kvctl *k, const char *method,
                                  const ProtobufCMessage *request, bool named)
{
    Kvtier__V1__Job *job;
    enum kvctl_exit code = kvctl_job_run(k, method, request, false, &job);
    if (code == KVCTL_OK && job->state == KVTIER__V1__JOB__STATE__STATE_DONE) {
        code = skipped_tell(job);
        if (named && job->n_matched == 0)
            code = kvctl_fail(KVCTL_NOT_FOUND, "none of these chunks is held");
    }
    return kvctl_job_print(k, job, code);
}

enum kvctl_exit kvctl_run_prefetch(struct kvctl *k, int argc, char **argv)
{
    Kvtier__V1__PrefetchRequest request = KVTIER__V1__PREFETCH_REQUEST__INIT;
    struct selection selection;
    enum kvctl_exit code = selection_make(k, argc, argv, &selection);
    if (code == KVCTL_OK)
        code = selection_check(k, &selection, "prefetch");
    request.selection = &selection.message;
    if (code == KVCTL_OK)
        code = job_finish(k, "Prefetch", &request.base, kvctl_chain_given(k, argc));
    selection_free(&selection);
    return code;
}

enum kvctl_exit kvctl_run_demote(struct kvctl *k, int argc, char **argv)
{
    Kvtier__V1__DemoteRequest request = KVTIER__V1__DEMOTE_REQUEST__INIT;
    struct selection selection;
    enum kvctl_exit code = selection_make(k, argc, argv, &selection);
    if (code == KVCTL_OK)
        code = selection_check(k, &selection, "demote");
    request.selection = &selection.message;
    request.dry_run = kvctl_given(k, KVCTL_OPT_DRY_RUN);
    request.force = kvctl_given(k, KVCTL_OPT_FORCE);
    if (code == KVCTL_OK)
        code = job_finish(k, "Demote", &request.base, kvctl_chain_given(k, argc));
    selection_free(&selection);
    return code;
}

/* Keys and tokens are deleted, all else is cleared: two calls of the API, one wish of a person. A
 * --tier says whose copies go. */
enum kvctl_exit kvctl_run_clear(struct kvctl *k, int argc, char **argv)
{
    Kvtier__V1__DeleteRequest by_chain = KVTIER__V1__DELETE_REQUEST__INIT;
    Kvtier__V1__ClearRequest by_filter = KVTIER__V1__CLEAR_REQUEST__INIT;
    struct selection selection;
    enum kvctl_exit code = selection_make(k, argc, argv, &selection);
    if (code == KVCTL_OK)
        code = selection_check(k, &selection, "clear");
    by_chain.selection = &selection.message;
    by_filter.filter = &selection.filter.filter;
    by_chain.tiers = by_filter.tiers = selection.filter.tiers;
    by_chain.n_tiers = by_filter.n_tiers = selection.filter.filter.n_tiers;
    by_filter.all_namespaces = !kvctl_given(k, KVCTL_OPT_NAMESPACE);
    by_chain.dry_run = by_filter.dry_run = kvctl_given(k, KVCTL_OPT_DRY_RUN);
    by_chain.force = by_filter.force = kvctl_given(k, KVCTL_OPT_FORCE);
    if (code == KVCTL_OK)
        code = kvctl_chain_given(k, argc) ? job_finish(k, "Delete", &by_chain.base, true)
                                          : job_finish(k, "Clear", &by_filter.base, false);
    selection_free(&selection);
    return code;
}

enum kvctl_exit kvctl_run_verify(struct kvctl *k, int argc, char **argv)
{
    Kvtier__V1__VerifyRequest request = KVTIER__V1__VERIFY_REQUEST__INIT;
    struct selection selection;
    enum kvctl_exit code = selection_make(k, argc, argv, &selection);
    if (selection.any)
        request.selection = &selection.message;
    if (code == KVCTL_OK)
        code = job_finish(k, "Verify", &request.base, kvctl_chain_given(k, argc));
    selection_free(&selection);
    return code;
}

enum kvctl_exit kvctl_run_cancel(struct kvctl *k, int argc, char **argv)
{
    Kvtier__V1__CancelJobRequest request = KVTIER__V1__CANCEL_JOB_REQUEST__INIT;
    ProtobufCMessage *reply = NULL;
    (void)argc;
    if (!kvctl_id_parse("job", argv[0], &request.id))
        return KVCTL_USAGE;
    enum kvctl_exit code = kvctl_call(k, "CancelJob", &request.base, &reply);
    if (code != KVCTL_OK)
        return code;
    return message_print(k, reply) ? KVCTL_OK : KVCTL_FAILED;
}
