/* SPDX-License-Identifier: Apache-2.0 */
/* Built without CUDA: nothing can be attached, so what follows from it is never called. */
#include "session.h"

static int refuse(struct kvt_session *s)
{
    pthread_mutex_lock(&s->lock);
    kvt_session_error_locked(s, KVT_ERR_NOTSUP,
                             "cuda: this libkvtier was built without; build with -Dcuda=auto");
    pthread_mutex_unlock(&s->lock);
    return KVTIER_ERR_NOTSUP;
}

int kvt_cuda_attach(kvt_session *s, const kvtier_cuda *options)
{
    if (s == NULL || options == NULL)
        return KVTIER_ERR_INVAL;
    return *s->is_parent != 0 ? refuse(s) : KVTIER_ERR_UNREACH;
}

int kvt_cuda_stats(kvt_session *s, kvtier_cuda_stats *stats)
{
    return s == NULL || stats == NULL ? KVTIER_ERR_INVAL : KVTIER_ERR_NOTSUP;
}

int kvt_cuda_prepare(struct kvt_session *s, struct kvt_client_op *op, void *stream)
{
    return refuse(s);
}

void kvt_cuda_job(struct kvt_worker *w, uint64_t *sums)
{
}

void kvt_cuda_mapped_locked(struct kvt_session *s)
{
}

void kvt_cuda_unmap(struct kvt_session *s)
{
}

void kvt_cuda_free(struct kvt_session *s, bool is_child)
{
}
