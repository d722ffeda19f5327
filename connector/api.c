/* SPDX-License-Identifier: Apache-2.0 */
/* The submit calls and what is around them. */
#include "session.h"

#include <stdlib.h>
#include <string.h>

#define SAME_STATUS(name) _Static_assert((int)KVTIER_##name == (int)KVT_##name, "ABI")
SAME_STATUS(OK);
SAME_STATUS(ERR_NOMEM);
SAME_STATUS(ERR_AGAIN);
SAME_STATUS(ERR_CORRUPT);
SAME_STATUS(ERR_UNREACH);
SAME_STATUS(ERR_INVAL);
SAME_STATUS(ERR_MISS);
SAME_STATUS(ERR_EXISTS);
SAME_STATUS(ERR_BUSY);
SAME_STATUS(ERR_NOSPACE);
SAME_STATUS(ERR_IO);
SAME_STATUS(ERR_TIMEOUT);
SAME_STATUS(ERR_CANCELED);
SAME_STATUS(ERR_PROTO);
SAME_STATUS(ERR_VERSION);
SAME_STATUS(ERR_NOTSUP);
SAME_STATUS(ERR_EXPIRED);
SAME_STATUS(ERR_INTERNAL);
_Static_assert(KVTIER_BATCH_MAX == KVT_BATCH_MAX && KVTIER_KEY_BYTES == KVT_KEY_BYTES, "ABI");
_Static_assert((int)KVTIER_WHERE_HOST == (int)KVT_WHERE_HOST &&
                   (int)KVTIER_WHERE_NVME == (int)KVT_WHERE_NVME,
               "ABI");

/* --- namespaces ----------------------------------------------------------------------------- */

static bool text_copy(char *to, size_t bytes, const char *from)
{
    size_t n = from != NULL ? strlen(from) : 0;
    if (n >= bytes)
        return false;
    memcpy(to, n > 0 ? from : "", n);
    return true;
}

static enum kvt_status desc_fill(struct kvt_ns_desc *desc, const kvtier_namespace *ns,
                                 struct kvt_error *err)
{
    *desc = (struct kvt_ns_desc){
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
    if (!text_copy(desc->model, sizeof(desc->model), ns->model) ||
        !text_copy(desc->revision, sizeof(desc->revision), ns->revision) ||
        !text_copy(desc->layout, sizeof(desc->layout), ns->layout) ||
        !text_copy(desc->salt, sizeof(desc->salt), ns->salt) ||
        !text_copy(desc->hash_algo, sizeof(desc->hash_algo), ns->hash_algo) ||
        !text_copy(desc->dtype, sizeof(desc->dtype), ns->dtype))
        return kvt_error_set(err, KVT_ERR_INVAL,
                             "namespace: a string is too long; kvtier.h has "
                             "the limits");
    return kvt_ns_desc_check(desc, err);
}

static int namespace_add_locked(struct kvt_session *s, const struct kvt_ns_desc *desc)
{
    for (uint32_t i = 0; i < s->n_ns; i++) {
        if (memcmp(&s->ns_descs[i], desc, sizeof(*desc)) == 0)
            return (int)i;
    }
    if (s->n_ns == KVT_CLIENT_NS_MAX) {
        kvt_session_error_locked(s, KVT_ERR_NOMEM,
                                 "namespace: %d are registered, more do not fit; open another "
                                 "session",
                                 KVT_CLIENT_NS_MAX);
        return KVTIER_ERR_NOMEM;
    }
    s->ns_descs[s->n_ns++] = *desc;
    s->control.n_ns_unsent++;
    s->data.n_ns_unsent++;
    kvt_conn_pump_locked(s, &s->control);
    kvt_conn_pump_locked(s, &s->data);
    return (int)s->n_ns - 1;
}

int kvt_namespace(kvt_session *s, const kvtier_namespace *ns)
{
    struct kvt_ns_desc desc;
    struct kvt_error err = {.status = KVT_OK};
    int result;

    if (s == NULL || ns == NULL || ns->size < sizeof(*ns))
        return KVTIER_ERR_INVAL;
    if (*s->is_parent == 0)
        return KVTIER_ERR_UNREACH;
    enum kvt_status status = desc_fill(&desc, ns, &err);
    pthread_mutex_lock(&s->lock);
    if (status == KVT_OK) {
        result = namespace_add_locked(s, &desc);
    } else {
        s->error = err;
        result = status;
    }
    pthread_mutex_unlock(&s->lock);
    return result;
}

/* --- submit --------------------------------------------------------------------------------- */

static int refuse(struct kvt_session *s, const char *what, const char *why)
{
    pthread_mutex_lock(&s->lock);
    kvt_session_error_locked(s, KVT_ERR_INVAL, "%s: %s", what, why);
    pthread_mutex_unlock(&s->lock);
    return KVTIER_ERR_INVAL;
}

/* Check what all calls share and take a slot, with the keys in it. */
static int op_begin(struct kvt_session *s, enum kvtier_op_type type, int ns, const void *keys,
                    uint32_t n, uint32_t flags, uint32_t flags_known, void *user,
                    struct kvt_client_op **op_p)
{
    static const char *const names[] = {"lookup", "store", "load", "prefetch"};
    uint32_t n_parents = (flags & KVTIER_PARENT) ? 1 : 0;

    if (*s->is_parent == 0)
        return KVTIER_ERR_UNREACH;
    if (keys == NULL || n <= n_parents || n > KVTIER_BATCH_MAX)
        return refuse(s, names[type], "n is not 1..KVTIER_BATCH_MAX items, or keys is NULL");
    if ((flags & ~flags_known) != 0)
        return refuse(s, names[type], "a flag that this call does not have");
    pthread_mutex_lock(&s->lock);
    bool known = ns >= 0 && (uint32_t)ns < s->n_ns;
    struct kvt_client_op *op = known ? kvt_op_get_locked(s) : NULL;
    pthread_mutex_unlock(&s->lock);
    if (!known)
        return refuse(s, names[type], "no such namespace; kvt_namespace() gives the handle");
    if (op == NULL)
        return KVTIER_ERR_AGAIN;
    op->type = type;
    op->ns = ns;
    op->flags = flags;
    op->n_keys = n;
    op->n_items = n - n_parents;
    op->user = user;
    op->chunk_bytes = s->ns_descs[ns].chunk_bytes;
    op->n_segments = s->ns_descs[ns].n_segments;
    op->keys = keys;
    if (type != KVTIER_LOOKUP)
        memset(op->items, 0, op->n_items * sizeof(op->items[0]));
    *op_p = op;
    return KVTIER_OK;
}

static void op_drop(struct kvt_session *s, struct kvt_client_op *op)
{
    pthread_mutex_lock(&s->lock);
    kvt_op_put_locked(s, op);
    pthread_mutex_unlock(&s->lock);
}

static int op_submit(struct kvt_session *s, struct kvt_client_op *op, uint64_t *op_p)
{
    uint64_t id = op->id; /* another thread may have polled it before this one goes on */
    pthread_mutex_lock(&s->lock);
    kvt_op_submit_locked(s, op);
    pthread_mutex_unlock(&s->lock);
    if (op_p != NULL)
        *op_p = id;
    return KVTIER_OK;
}

/* Copy the layouts into the op, extents included. */
static int layouts_take(struct kvt_session *s, struct kvt_client_op *op,
                        const kvtier_layout *layouts)
{
    const char *why = "";
    size_t n_extents = 0;

    if (layouts == NULL)
        return refuse(s, "layout", "layouts is NULL");
    for (uint32_t i = 0; i < op->n_items; i++) {
        if (!kvt_layout_check(&layouts[i], op->chunk_bytes, &why))
            return refuse(s, "layout", why);
        op->layouts[i] = layouts[i];
        n_extents += layouts[i].extents != NULL ? layouts[i].n_extents : 0;
    }
    if (n_extents > op->n_extents_max) {
        kvtier_extent *more = realloc(op->extents, n_extents * sizeof(*more));
        if (more == NULL)
            return KVTIER_ERR_NOMEM;
        op->extents = more;
        op->n_extents_max = n_extents;
    }
    n_extents = 0;
    for (uint32_t i = 0; i < op->n_items; i++) {
        if (layouts[i].extents == NULL)
            continue;
        memcpy(op->extents + n_extents, layouts[i].extents,
               layouts[i].n_extents * sizeof(*op->extents));
        op->layouts[i].extents = op->extents + n_extents;
        n_extents += layouts[i].n_extents;
    }
    return KVTIER_OK;
}

int kvt_lookup(kvt_session *s, int ns, const void *keys, uint32_t n, uint32_t flags,
               uint32_t lease_ttl_ms, uint8_t *where, void *user, uint64_t *op_p)
{
    struct kvt_client_op *op;
    if (s == NULL)
        return KVTIER_ERR_INVAL;
    int status = op_begin(s, KVTIER_LOOKUP, ns, keys, n, flags, KVTIER_LEASE, user, &op);
    if (status != KVTIER_OK)
        return status;
    op->lease_ttl_ms = lease_ttl_ms;
    op->where = where;
    return op_submit(s, op, op_p);
}

/* What stores and loads have in common. */
struct transfer {
    enum kvtier_op_type type;
    int ns;
    const void *keys;
    uint32_t n, flags;
    const kvtier_layout *layouts;
    uint64_t deadline_ns;
    int32_t *statuses;
    void *user;
    bool on_gpu;
    void *stream;
};

static int transfer_submit(struct kvt_session *s, const struct transfer *t, uint64_t *op_p)
{
    struct kvt_client_op *op;
    bool is_store = t->type == KVTIER_STORE;
    if (s == NULL)
        return KVTIER_ERR_INVAL;
    int status = op_begin(s, t->type, t->ns, t->keys, t->n, t->flags,
                          KVTIER_PARENT | (is_store ? KVTIER_DURABLE : 0), t->user, &op);
    if (status != KVTIER_OK)
        return status;
    status = layouts_take(s, op, t->layouts);
    if (status == KVTIER_OK && t->on_gpu) {
        op->kind = is_store ? KVT_WORK_CUDA_STORE : KVT_WORK_CUDA_LOAD;
        status = kvt_cuda_prepare(s, op, t->stream);
    }
    if (status != KVTIER_OK) {
        op_drop(s, op);
        return status;
    }
    op->deadline_ns = t->deadline_ns;
    if (t->deadline_ns == 0 && !is_store)
        op->deadline_ns = kvt_now_ns() + KVT_LOAD_DEFAULT_NS;
    op->statuses = t->statuses;
    return op_submit(s, op, op_p);
}

int kvt_store(kvt_session *s, int ns, const void *keys, uint32_t n, const kvtier_layout *src,
              uint32_t flags, uint64_t deadline_ns, int32_t *statuses, void *user, uint64_t *op_p)
{
    const struct transfer t = {KVTIER_STORE, ns,       keys, n,     flags, src,
                               deadline_ns,  statuses, user, false, NULL};
    return transfer_submit(s, &t, op_p);
}

int kvt_load(kvt_session *s, int ns, const void *keys, uint32_t n, const kvtier_layout *dst,
             uint32_t flags, uint64_t deadline_ns, int32_t *statuses, void *user, uint64_t *op_p)
{
    const struct transfer t = {KVTIER_LOAD, ns,       keys, n,     flags, dst,
                               deadline_ns, statuses, user, false, NULL};
    return transfer_submit(s, &t, op_p);
}

int kvt_store_cuda(kvt_session *s, int ns, const void *keys, uint32_t n, const kvtier_layout *src,
                   uint32_t flags, uint64_t deadline_ns, int32_t *statuses, void *user,
                   void *stream, uint64_t *op_p)
{
    const struct transfer t = {KVTIER_STORE, ns,       keys, n,    flags, src,
                               deadline_ns,  statuses, user, true, stream};
    return transfer_submit(s, &t, op_p);
}

int kvt_load_cuda(kvt_session *s, int ns, const void *keys, uint32_t n, const kvtier_layout *dst,
                  uint32_t flags, uint64_t deadline_ns, int32_t *statuses, void *user, void *stream,
                  uint64_t *op_p)
{
    const struct transfer t = {KVTIER_LOAD, ns,       keys, n,    flags, dst,
                               deadline_ns, statuses, user, true, stream};
    return transfer_submit(s, &t, op_p);
}

int kvt_prefetch(kvt_session *s, int ns, const void *keys, uint32_t n, uint32_t flags,
                 uint64_t deadline_ns, int32_t *statuses, void *user, uint64_t *op_p)
{
    struct kvt_client_op *op;
    if (s == NULL)
        return KVTIER_ERR_INVAL;
    int status = op_begin(s, KVTIER_PREFETCH, ns, keys, n, flags, KVTIER_PARENT, user, &op);
    if (status != KVTIER_OK)
        return status;
    op->deadline_ns = deadline_ns != 0 ? deadline_ns : kvt_now_ns() + KVT_LOAD_DEFAULT_NS;
    op->statuses = statuses;
    return op_submit(s, op, op_p);
}

int kvt_cancel(kvt_session *s, uint64_t id)
{
    int status = KVTIER_OK;
    if (s == NULL)
        return KVTIER_ERR_INVAL;
    if (*s->is_parent == 0)
        return KVTIER_ERR_UNREACH;
    pthread_mutex_lock(&s->lock);
    struct kvt_client_op *op = kvt_op_find_locked(s, id);
    if (op == NULL || op->state == KVT_OP_FREE || op->state == KVT_OP_ENDING) {
        status = KVTIER_ERR_INVAL;
    } else if (op->state != KVT_OP_DONE) {
        kvt_op_stop_locked(s, op, KVT_ERR_CANCELED);
        /* Copies look at the flag every KVT_COPY_BLOCK_BYTES. */
        while (op->id == id && op->state == KVT_OP_OPEN)
            pthread_cond_wait(&s->cond, &s->lock);
    }
    pthread_mutex_unlock(&s->lock);
    return status;
}

/* --- small ones ----------------------------------------------------------------------------- */

int kvt_connected(kvt_session *s)
{
    if (s == NULL || *s->is_parent == 0)
        return 0;
    pthread_mutex_lock(&s->lock);
    int up = s->control.state == KVT_CONN_READY && s->data.state == KVT_CONN_READY;
    pthread_mutex_unlock(&s->lock);
    return up;
}

int kvt_event_fd(kvt_session *s)
{
    return s != NULL ? s->epoll_fd : -1;
}

const char *kvt_stat_name(uint32_t index)
{
    static const char *const names[] = {
#define STAT_NAME(upper, lower, help) #lower,
        KVT_STAT_MAP(STAT_NAME)
#undef STAT_NAME
    };
    return index < KVT_ARRAY_LEN(names) ? names[index] : NULL;
}

const char *kvt_strerror(int status)
{
    return kvt_status_str((enum kvt_status)status);
}

void kvt_last_error(kvt_session *s, char *buf, size_t bytes)
{
    if (s == NULL || buf == NULL || bytes == 0)
        return;
    buf[0] = '\0';
    if (*s->is_parent == 0)
        return;
    pthread_mutex_lock(&s->lock);
    size_t n = KVT_MIN(strlen(s->error.msg), bytes - 1);
    memcpy(buf, s->error.msg, n);
    buf[n] = '\0';
    pthread_mutex_unlock(&s->lock);
}

const char *kvt_version(void)
{
    return KVT_VERSION_STRING;
}
