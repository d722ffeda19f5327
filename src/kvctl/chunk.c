/* SPDX-License-Identifier: Apache-2.0 */
/*
 * put, get-chunk, exist, rm: single chunks for smoke tests, over libkvtier as an engine would.
 *
 * Their namespaces are of the model "kvctl", one for each of four sizes: however many files of
 * whatever sizes a script puts, the agent sees no more. A chunk of theirs is the file, zeros, and a
 * trailer with the file's size. With -n they read, look up and delete in any other namespace; there
 * a chunk is its bytes as they are.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "job.h"
#include "kvt/units.h"
#include "kvt/util.h"
#include "kvtier.h"
#include "message.h"

#define MODEL         KVCTL_NAME
#define CHUNK_MIN     (4 * KVT_KIB)
#define CHUNK_MAX     (16 * KVT_MIB)
#define CHUNK_FACTOR  16 /* from one size to the next */
#define N_SIZES       4
#define RETRY_MS      10
#define TRAILER_MAGIC UINT64_C(0x31656c69666c766b) /* "kvlfile1" */

struct trailer { /* the last bytes of a chunk */
    uint64_t magic;
    uint64_t file_bytes;
};

static kvtier_namespace own_namespace(uint64_t chunk_bytes)
{
    return (kvtier_namespace){
        .size = sizeof(kvtier_namespace),
        .model = MODEL,
        .layout = "file",
        .tokens_per_chunk = 1,
        .n_segments = 1,
        .chunk_bytes = chunk_bytes,
    };
}

/* --- session --------------------------------------------------------------------------------- */

static int timeout_ms(const struct kvctl *k)
{
    return (int)(k->timeout_ns / KVT_NS_PER_MS);
}

static enum kvctl_exit session_open(const struct kvctl *k, kvt_session **session_p)
{
    char why[256];
    kvtier_options options = {
        .size = sizeof(options), .socket_path = k->socket_path, .client_name = KVCTL_NAME};
    int err = kvctl_socket_probe(k->socket_path, SOCK_SEQPACKET, NULL);
    if (err != 0)
        return kvctl_socket_fail(k->socket_path, "--socket", err);
    if (kvt_open(&options, session_p) != KVTIER_OK)
        return kvctl_fail(KVCTL_FAILED, "out of memory");
    int rc = kvt_connect_wait(*session_p, timeout_ms(k));
    if (rc == KVTIER_OK)
        return KVCTL_OK;
    kvt_last_error(*session_p, why, sizeof(why));
    kvt_close(*session_p);
    *session_p = NULL;
    return kvctl_fail(rc == KVTIER_ERR_TIMEOUT ? KVCTL_LATE : KVCTL_UNREACHABLE,
                      "%s opens no session: %s; is this an agent's session socket?", k->socket_path,
                      why[0] != '\0' ? why : kvt_strerror(rc));
}

/* What a status that is not OK means to a person. */
static enum kvctl_exit status_fail(const char *what, const char *key, int status)
{
    switch (status) {
    case KVTIER_ERR_MISS:
        return kvctl_fail(KVCTL_NOT_FOUND, "%s: %s is not held", what, key);
    case KVTIER_ERR_UNREACH:
        return kvctl_fail(KVCTL_UNREACHABLE, "%s: the agent went away; try again", what);
    case KVTIER_ERR_TIMEOUT:
    case KVTIER_ERR_CANCELED:
        return kvctl_fail(KVCTL_LATE,
                          "%s: no answer within --timeout; give it longer, or look at "
                          "'kvctl stat'",
                          what);
    case KVTIER_ERR_CORRUPT:
        return kvctl_fail(KVCTL_BAD,
                          "%s: the bytes of %s failed their checksum and were dropped; "
                          "see 'kvctl verify'",
                          what, key);
    case KVTIER_ERR_EXISTS:
        return kvctl_fail(KVCTL_FAILED, "%s: %s is held already; 'kvctl rm %s' first", what, key,
                          key);
    case KVTIER_ERR_INVAL:
        return kvctl_fail(KVCTL_FAILED,
                          "%s: the agent takes no chunk of this size; it must fit host.slab_bytes "
                          "and nvme.slab_bytes, see 'kvctl config get'",
                          what);
    case KVTIER_ERR_NOSPACE:
        return kvctl_fail(KVCTL_FAILED,
                          "%s: no room in host memory; see 'kvctl get tiers' and "
                          "'kvctl get leases'",
                          what);
    default:
        return kvctl_fail(KVCTL_FAILED, "%s: %s", what, kvt_strerror(status));
    }
}

/* Wait for the one op; the status of its item, or of the op where that failed. */
static int op_wait(const struct kvctl *k, kvt_session *session, uint64_t op, int32_t *item,
                   kvtier_completion *done)
{
    if (kvt_wait(session, done, 1, timeout_ms(k)) == 0) {
        (void)kvt_cancel(session, op);
        return KVTIER_ERR_TIMEOUT;
    }
    return done->status != KVTIER_OK || item == NULL ? done->status : *item;
}

/*
 * The size of the own namespace that holds the key; 0: none does. An agent whose slabs are too
 * small for a size refuses its namespace, and with it the session: then it is another one
 * afterwards.
 */
static int own_find(const struct kvctl *k, kvt_session **session_p, const uint8_t *key,
                    uint64_t *chunk_bytes_p)
{
    kvtier_completion done;
    uint64_t op;
    *chunk_bytes_p = 0;
    for (uint64_t bytes = CHUNK_MIN; bytes <= CHUNK_MAX; bytes *= CHUNK_FACTOR) {
        kvtier_namespace desc = own_namespace(bytes);
        int ns = kvt_namespace(*session_p, &desc);
        int rc = ns < 0 ? ns : kvt_lookup(*session_p, ns, key, 1, 0, 0, NULL, NULL, &op);
        if (rc == KVTIER_OK)
            rc = op_wait(k, *session_p, op, NULL, &done);
        if (rc == KVTIER_ERR_INVAL && bytes > CHUNK_MIN) {
            kvt_close(*session_p);
            *session_p = NULL;
            return session_open(k, session_p) == KVCTL_OK ? KVTIER_OK : KVTIER_ERR_UNREACH;
        }
        if (rc != KVTIER_OK)
            return rc;
        if (done.n_ok == 1) {
            *chunk_bytes_p = bytes;
            break;
        }
    }
    return KVTIER_OK;
}

/* --- put ------------------------------------------------------------------------------------- */

/* A file of any kind, whole. */
static enum kvctl_exit file_read(const char *path, uint8_t **data_p, uint64_t *bytes_p)
{
    int fd = strcmp(path, "-") == 0 ? dup(STDIN_FILENO) : open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return kvctl_fail(KVCTL_FAILED, "put: cannot open %s: %s", path, strerror(errno));
    uint64_t most = CHUNK_MAX - sizeof(struct trailer), room = CHUNK_MIN, n = 0;
    uint8_t *data = malloc(room);
    ssize_t got = 1;
    while (data != NULL && got > 0 && n <= most) {
        if (n == room) {
            uint8_t *larger = realloc(data, 2 * room);
            if (larger == NULL)
                break;
            data = larger;
            room *= 2;
        }
        got = read(fd, data + n, room - n);
        n += got > 0 ? (uint64_t)got : 0;
    }
    int err = errno;
    close(fd);
    if (got == 0 && n <= most) {
        *data_p = data;
        *bytes_p = n;
        return KVCTL_OK;
    }
    free(data);
    if (got < 0)
        return kvctl_fail(KVCTL_FAILED, "put: cannot read %s: %s", path, strerror(err));
    if (n > most)
        return kvctl_fail(KVCTL_FAILED,
                          "put: %s has more than the %" PRIu64 " bytes that a chunk "
                          "may have",
                          path, most);
    return kvctl_fail(KVCTL_FAILED, "out of memory");
}

static int own_store(const struct kvctl *k, kvt_session *session, const uint8_t *key,
                     const uint8_t *data, uint64_t bytes, uint64_t *chunk_bytes_p)
{
    struct trailer trailer = {.magic = TRAILER_MAGIC, .file_bytes = bytes};
    uint64_t chunk_bytes = CHUNK_MIN, op;
    int32_t status = KVTIER_OK;
    kvtier_completion done;
    while (chunk_bytes < bytes + sizeof(trailer))
        chunk_bytes *= CHUNK_FACTOR;
    uint64_t n_zeros = chunk_bytes - bytes - sizeof(trailer);
    uint8_t *zeros = calloc(1, n_zeros + 1);
    if (zeros == NULL)
        return KVTIER_ERR_NOMEM;
    kvtier_extent extents[3];
    uint32_t n = 0;
    if (bytes > 0)
        extents[n++] = (kvtier_extent){.addr = (void *)data, .bytes = bytes};
    if (n_zeros > 0)
        extents[n++] = (kvtier_extent){.addr = zeros, .bytes = n_zeros};
    extents[n++] = (kvtier_extent){.addr = &trailer, .bytes = sizeof(trailer)};
    kvtier_layout layout = {.extents = extents, .n_extents = n};
    kvtier_namespace desc = own_namespace(chunk_bytes);
    int ns = kvt_namespace(session, &desc);
    uint64_t deadline_ns = kvt_now_ns() + k->timeout_ns;
    int rc = ns;
    /* A slab of another size may be what it takes, and be in use for a moment. */
    do {
        if (rc == KVTIER_ERR_NOSPACE)
            (void)poll(NULL, 0, RETRY_MS);
        if (ns >= 0)
            rc = kvt_store(session, ns, key, 1, &layout, 0, deadline_ns, &status, NULL, &op);
        if (rc == KVTIER_OK)
            rc = op_wait(k, session, op, &status, &done);
    } while (rc == KVTIER_ERR_NOSPACE && kvt_now_ns() < deadline_ns);
    free(zeros);
    *chunk_bytes_p = chunk_bytes;
    return rc;
}

enum kvctl_exit kvctl_run_put(struct kvctl *k, int argc, char **argv)
{
    uint8_t key[KVCTL_KEY_BYTES];
    uint8_t *data = NULL;
    uint64_t bytes = 0, held_bytes = 0;
    kvt_session *session = NULL;
    (void)argc;
    if (!kvctl_key_parse(argv[0], key))
        return KVCTL_USAGE;
    enum kvctl_exit code = file_read(argv[1], &data, &bytes);
    if (code == KVCTL_OK)
        code = session_open(k, &session);
    if (code != KVCTL_OK) {
        free(data);
        return code;
    }
    int rc = own_find(k, &session, key, &held_bytes);
    if (rc == KVTIER_OK && held_bytes > 0)
        rc = KVTIER_ERR_EXISTS;
    if (rc == KVTIER_OK)
        rc = own_store(k, session, key, data, bytes, &held_bytes);
    kvt_close(session);
    free(data);
    if (rc != KVTIER_OK)
        return status_fail("put", argv[0], rc);
    json_t *json = json_pack("{s:s, s:I, s:I}", "key", argv[0], "file_bytes", (json_int_t)bytes,
                             "chunk_bytes", (json_int_t)held_bytes);
    if (!kvctl_object_print(&k->style, json))
        code = KVCTL_FAILED;
    json_decref(json);
    return code;
}

/* --- get-chunk ------------------------------------------------------------------------------- */

static enum kvctl_exit file_write(const char *path, const uint8_t *data, uint64_t bytes)
{
    int fd = strcmp(path, "-") == 0 ? dup(STDOUT_FILENO)
                                    : open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    uint64_t n = 0;
    ssize_t wrote = 1;
    if (fd < 0)
        return kvctl_fail(KVCTL_FAILED, "get-chunk: cannot open %s: %s", path, strerror(errno));
    while (n < bytes && wrote > 0) {
        wrote = write(fd, data + n, bytes - n);
        n += wrote > 0 ? (uint64_t)wrote : 0;
    }
    int err = errno;
    bool ok = n == bytes;
    if (close(fd) != 0) {
        ok = false;
        err = errno;
    }
    return ok ? KVCTL_OK
              : kvctl_fail(KVCTL_FAILED, "get-chunk: cannot write %s: %s", path, strerror(err));
}

static kvtier_namespace described_namespace(const Kvtier__V1__Namespace *ns)
{
    return (kvtier_namespace){
        .size = sizeof(kvtier_namespace),
        .model = ns->model,
        .revision = ns->revision,
        .layout = ns->layout,
        .salt = ns->salt,
        .hash_algo = ns->hash_algo,
        .dtype = ns->dtype,
        .n_layers = ns->n_layers,
        .n_kv_heads = ns->n_kv_heads,
        .head_dim = ns->head_dim,
        .tokens_per_chunk = ns->tokens_per_chunk,
        .tp_rank = ns->tp_rank,
        .tp_size = ns->tp_size,
        .pp_rank = ns->pp_rank,
        .pp_size = ns->pp_size,
        .kv_group = ns->kv_group,
        .n_segments = ns->n_segments,
        .chunk_bytes = ns->chunk_bytes,
    };
}

static int chunk_load(const struct kvctl *k, kvt_session *session, const kvtier_namespace *desc,
                      const uint8_t *key, uint8_t *data)
{
    kvtier_layout layout = {.base = data, .n_outer = 1, .n_inner = 1, .bytes = desc->chunk_bytes};
    kvtier_completion done;
    int32_t status = KVTIER_ERR_INTERNAL;
    uint64_t op;
    int ns = kvt_namespace(session, desc);
    int rc = ns < 0 ? ns
                    : kvt_load(session, ns, key, 1, &layout, 0, kvt_now_ns() + k->timeout_ns,
                               &status, NULL, &op);
    return rc != KVTIER_OK ? rc : op_wait(k, session, op, &status, &done);
}

/* The file in a chunk of ours; false: it is none. */
static bool file_bytes(const uint8_t *data, uint64_t chunk_bytes, uint64_t *bytes_p)
{
    struct trailer trailer;
    memcpy(&trailer, data + chunk_bytes - sizeof(trailer), sizeof(trailer));
    *bytes_p = trailer.file_bytes;
    return trailer.magic == TRAILER_MAGIC && trailer.file_bytes <= chunk_bytes - sizeof(trailer);
}

static enum kvctl_exit chunk_get(struct kvctl *k, kvt_session **session_p,
                                 const struct kvctl_ns *ns, const uint8_t *key, char **argv)
{
    uint64_t chunk_bytes = 0, bytes;
    int rc = KVTIER_OK;
    bool own = ns->message == NULL;
    if (own)
        rc = own_find(k, session_p, key, &chunk_bytes);
    if (own && rc == KVTIER_OK && chunk_bytes == 0)
        rc = KVTIER_ERR_MISS;
    if (rc != KVTIER_OK)
        return status_fail("get-chunk", argv[0], rc);
    kvtier_namespace desc = own ? own_namespace(chunk_bytes) : described_namespace(ns->message);
    uint8_t *data = calloc(1, desc.chunk_bytes);
    if (data == NULL)
        return kvctl_fail(KVCTL_FAILED, "out of memory");
    rc = chunk_load(k, *session_p, &desc, key, data);
    bytes = desc.chunk_bytes;
    enum kvctl_exit code;
    if (rc != KVTIER_OK)
        code = status_fail("get-chunk", argv[0], rc);
    else if (own && !file_bytes(data, chunk_bytes, &bytes))
        code = kvctl_fail(KVCTL_BAD, "get-chunk: %s was not put by kvctl", argv[0]);
    else
        code = file_write(argv[1], data, bytes);
    free(data);
    return code;
}

enum kvctl_exit kvctl_run_get_chunk(struct kvctl *k, int argc, char **argv)
{
    const char *ns_text = k->values[KVCTL_OPT_NAMESPACE];
    uint8_t key[KVCTL_KEY_BYTES];
    struct kvctl_ns ns = {.message = NULL};
    enum kvctl_exit code = KVCTL_OK;
    kvt_session *session = NULL;
    (void)argc;
    if (!kvctl_key_parse(argv[0], key))
        return KVCTL_USAGE;
    if (ns_text != NULL)
        code = kvctl_ns_find(k, ns_text, true, &ns);
    if (code == KVCTL_OK)
        code = session_open(k, &session);
    if (code == KVCTL_OK) {
        code = chunk_get(k, &session, &ns, key, argv);
        kvt_close(session);
    }
    kvctl_ns_free(&ns);
    return code;
}

/* --- exist, rm ------------------------------------------------------------------------------- */

/* The namespaces that a key without -n may be in. */
struct own_ids {
    uint8_t ids[N_SIZES][KVCTL_KEY_BYTES];
    unsigned n;
};

static bool own_add(void *arg, const ProtobufCMessage *item)
{
    struct own_ids *own = arg;
    const Kvtier__V1__Namespace *ns = KVCTL_AS(Kvtier__V1__Namespace, item);
    if (strcmp(ns->model, MODEL) == 0 && ns->id.len == KVCTL_KEY_BYTES && own->n < N_SIZES)
        memcpy(own->ids[own->n++], ns->id.data, KVCTL_KEY_BYTES);
    return true;
}

static enum kvctl_exit scope_find(struct kvctl *k, struct own_ids *own)
{
    Kvtier__V1__ListNamespacesRequest request = KVTIER__V1__LIST_NAMESPACES_REQUEST__INIT;
    const char *text = k->values[KVCTL_OPT_NAMESPACE];
    struct kvctl_ns ns;
    own->n = 0;
    if (text == NULL)
        return kvctl_list(k, "ListNamespaces", &request.base, own_add, own);
    enum kvctl_exit code = kvctl_ns_find(k, text, false, &ns);
    memcpy(own->ids[own->n++], ns.id, KVCTL_KEY_BYTES);
    kvctl_ns_free(&ns);
    return code;
}

/* Where the key is, in one of the namespaces: quietly KVCTL_NOT_FOUND when in none. */
static enum kvctl_exit scope_search(struct kvctl *k, const uint8_t *key, ProtobufCMessage **chunk_p)
{
    Kvtier__V1__GetChunkRequest request = KVTIER__V1__GET_CHUNK_REQUEST__INIT;
    struct own_ids own;
    enum kvctl_exit code = scope_find(k, &own);
    if (code != KVCTL_OK)
        return code;
    request.key = (ProtobufCBinaryData){.len = KVCTL_KEY_BYTES, .data = (uint8_t *)key};
    for (unsigned i = 0; i < own.n; i++) {
        request.namespace_id = (ProtobufCBinaryData){.len = KVCTL_KEY_BYTES, .data = own.ids[i]};
        code = kvctl_call_quiet(k, "GetChunk", &request.base, chunk_p);
        if (code == KVCTL_OK)
            return code;
        if (code != KVCTL_NOT_FOUND) /* once more, to say what it is */
            return kvctl_call(k, "GetChunk", &request.base, chunk_p);
    }
    return KVCTL_NOT_FOUND;
}

enum kvctl_exit kvctl_run_exist(struct kvctl *k, int argc, char **argv)
{
    uint8_t key[KVCTL_KEY_BYTES];
    ProtobufCMessage *chunk = NULL;
    (void)argc;
    if (!kvctl_key_parse(argv[0], key))
        return KVCTL_USAGE;
    enum kvctl_exit code = scope_search(k, key, &chunk);
    if (code != KVCTL_OK && code != KVCTL_NOT_FOUND)
        return code;
    json_t *json =
        code == KVCTL_OK ? kvctl_message_json(chunk) : json_pack("{s:s}", "key", argv[0]);
    (void)json_object_set_new(json, "held", json_boolean(code == KVCTL_OK));
    if (k->style.format == KVCTL_TABLE)
        puts(code == KVCTL_OK ? "held" : "not held");
    else if (!kvctl_object_print(&k->style, json))
        code = KVCTL_FAILED;
    json_decref(json);
    if (chunk != NULL)
        protobuf_c_message_free_unpacked(chunk, NULL);
    return code;
}

enum kvctl_exit kvctl_run_rm(struct kvctl *k, int argc, char **argv)
{
    Kvtier__V1__DeleteRequest request = KVTIER__V1__DELETE_REQUEST__INIT;
    Kvtier__V1__Selection selection = KVTIER__V1__SELECTION__INIT;
    Kvtier__V1__Chain chain = KVTIER__V1__CHAIN__INIT;
    uint8_t key[KVCTL_KEY_BYTES];
    ProtobufCBinaryData key_data = {.len = KVCTL_KEY_BYTES, .data = key};
    ProtobufCMessage *chunk = NULL;
    Kvtier__V1__Job *job = NULL;
    (void)argc;
    if (!kvctl_key_parse(argv[0], key))
        return KVCTL_USAGE;
    enum kvctl_exit code = scope_search(k, key, &chunk);
    if (code == KVCTL_NOT_FOUND)
        return kvctl_fail(code, "rm: %s is not held%s", argv[0],
                          kvctl_given(k, KVCTL_OPT_NAMESPACE)
                              ? ""
                              : " in a namespace of kvctl; -n names another");
    if (code != KVCTL_OK)
        return code;
    chain.namespace_id = ((Kvtier__V1__Chunk *)(void *)chunk)->namespace_id;
    chain.keys = &key_data;
    chain.n_keys = 1;
    selection.chain = &chain;
    request.selection = &selection;
    request.force = kvctl_given(k, KVCTL_OPT_FORCE);
    code = kvctl_job_run(k, "Delete", &request.base, true, &job);
    protobuf_c_message_free_unpacked(chunk, NULL);
    if (code == KVCTL_OK && job->n_matched == 0)
        code = kvctl_fail(KVCTL_NOT_FOUND, "rm: %s is not held any more", argv[0]);
    else if (code == KVCTL_OK && job->n_changed == 0)
        code = kvctl_fail(KVCTL_FAILED,
                          "rm: %s is pinned and stays; --force removes it all the "
                          "same, 'kvctl get pins' says who holds it",
                          argv[0]);
    if (job != NULL)
        kvtier__v1__job__free_unpacked(job, NULL);
    return code;
}
