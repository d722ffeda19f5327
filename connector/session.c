/* SPDX-License-Identifier: Apache-2.0 */
/* How a session is made and goes. */
#include "session.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define QUEUE_DEPTH_DEFAULT 256u
#define SPIN_US_DEFAULT     50u
#define SOCKET_DEFAULT      "/run/kvtier/kvtierd.sock"

static int options_take(struct kvt_session *s, const kvtier_options *given)
{
    kvtier_options o = {.spin_us = UINT32_MAX};
    _Static_assert(sizeof(*s->n_done) == sizeof(*o.n_done), "one word, whoever owns it");
    if (given != NULL) {
        if (given->size < offsetof(kvtier_options, n_done)) /* what there was at first */
            return KVTIER_ERR_INVAL;
        memcpy(&o, given, KVT_MIN(given->size, sizeof(o)));
    }
    if (o.socket_path == NULL)
        o.socket_path = getenv("KVTIER_SOCKET");
    if (o.socket_path == NULL)
        o.socket_path = SOCKET_DEFAULT;
    if (o.client_name == NULL)
        o.client_name = program_invocation_short_name;
    if (strlen(o.socket_path) >= sizeof(s->socket_path) || o.queue_depth > KVT_QUEUE_DEPTH_MAX ||
        o.n_copy_threads > KVT_COPY_THREADS_MAX)
        return KVTIER_ERR_INVAL;
    memcpy(s->socket_path, o.socket_path, strlen(o.socket_path));
    memcpy(s->client_name, o.client_name,
           KVT_MIN(strlen(o.client_name), sizeof(s->client_name) - 1));
    s->spin_us = o.spin_us == UINT32_MAX ? SPIN_US_DEFAULT : o.spin_us;
    s->n_slots = o.queue_depth != 0 ? o.queue_depth : QUEUE_DEPTH_DEFAULT;
    s->n_workers = KVT_MAX(o.n_copy_threads, 1u);
    s->n_done = o.n_done != NULL ? (_Atomic uint32_t *)o.n_done : &s->own_n_done;
    atomic_store_explicit(s->n_done, 0, memory_order_relaxed);
    return KVTIER_OK;
}

static void conn_init(struct kvt_conn *c, const char *name)
{
    c->name = name;
    c->fd = -1;
    c->backoff_ns = KVT_BACKOFF_MIN_NS;
}

/* Each array of all slots is one piece, of which only what is used becomes memory. */
static bool slots_alloc(struct kvt_session *s)
{
    size_t n = (size_t)s->n_slots * KVT_BATCH_MAX;
    s->slots = calloc(s->n_slots, sizeof(*s->slots));
    if (s->slots == NULL)
        return false;
    struct kvt_client_op *first = &s->slots[0];
    first->kept_keys = calloc(n, sizeof(*first->kept_keys));
    first->items = calloc(n, sizeof(*first->items));
    first->work = calloc(n, sizeof(*first->work));
    first->layouts = calloc(n, sizeof(*first->layouts));
    if (first->kept_keys == NULL || first->items == NULL || first->work == NULL ||
        first->layouts == NULL)
        return false;
    for (uint32_t i = s->n_slots; i-- > 0;) {
        struct kvt_client_op *op = &s->slots[i];
        size_t at = (size_t)i * KVT_BATCH_MAX;
        op->id = i;
        op->kept_keys = first->kept_keys + at;
        op->items = first->items + at;
        op->work = first->work + at;
        op->layouts = first->layouts + at;
        kvt_op_put_locked(s, op);
    }
    return true;
}

static void slots_free(struct kvt_session *s)
{
    if (s->slots == NULL)
        return;
    for (uint32_t i = 0; i < s->n_slots; i++)
        free(s->slots[i].extents);
    free(s->slots[0].kept_keys);
    free(s->slots[0].items);
    free(s->slots[0].work);
    free(s->slots[0].layouts);
    free(s->slots);
}

/* Reads 1 here and 0 in a child of fork(), where the session must not be used. */
static bool fork_page_alloc(struct kvt_session *s)
{
    char *page =
        mmap(NULL, KVT_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        return false;
    (void)madvise(page, KVT_PAGE_BYTES, MADV_WIPEONFORK); /* before 4.14 there is no such guard */
    *page = 1;
    s->is_parent = page;
    return true;
}

static bool fds_open(struct kvt_session *s)
{
    struct epoll_event ev = {.events = EPOLLIN};
    s->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    s->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    s->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    s->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    return s->event_fd >= 0 && s->wake_fd >= 0 && s->timer_fd >= 0 && s->epoll_fd >= 0 &&
           epoll_ctl(s->epoll_fd, EPOLL_CTL_ADD, s->event_fd, &ev) == 0;
}

static void locks_init(struct kvt_session *s)
{
    pthread_condattr_t attr;
    pthread_mutex_init(&s->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&s->cond, &attr);
    for (unsigned kind = 0; kind < KVT_WORK_KINDS; kind++)
        pthread_cond_init(&s->work[kind].cond, &attr);
    pthread_condattr_destroy(&attr);
}

static void session_free(struct kvt_session *s, bool is_child)
{
    const int fds[] = {s->event_fd, s->wake_fd,    s->timer_fd,
                       s->epoll_fd, s->control.fd, s->data.fd};
    for (size_t i = 0; i < KVT_ARRAY_LEN(fds); i++) {
        if (fds[i] >= 0)
            close(fds[i]);
    }
    if (s->is_parent != NULL)
        munmap((void *)s->is_parent, KVT_PAGE_BYTES);
    if (s->cuda != NULL)
        kvt_cuda_free(s, is_child);
    slots_free(s);
    free(s->ns_descs);
    free(s->workers);
    free(s);
}

static void threads_join(struct kvt_session *s, uint32_t n)
{
    pthread_mutex_lock(&s->lock);
    s->closing = true;
    for (unsigned kind = 0; kind < KVT_WORK_KINDS; kind++)
        pthread_cond_broadcast(&s->work[kind].cond);
    kvt_session_wake(s);
    pthread_mutex_unlock(&s->lock);
    for (uint32_t i = 0; i < n; i++)
        pthread_join(s->workers[i].thread, NULL);
}

bool kvt_worker_start(struct kvt_session *s, uint32_t index, void *(*run)(void *arg),
                      const char *name)
{
    struct kvt_worker *w = &s->workers[index];
    w->session = s;
    bool started = kvt_thread_start(&w->thread, run, w) == 0;
    if (started)
        (void)pthread_setname_np(w->thread, name);
    return started;
}

static bool threads_start(struct kvt_session *s)
{
    uint32_t n = 0;
    while (n < s->n_workers && kvt_worker_start(s, n, n == 0 ? kvt_library_main : kvt_copier_main,
                                                n == 0 ? "kvtier" : "kvtier-copy"))
        n++;
    if (n < s->n_workers)
        threads_join(s, n);
    return n == s->n_workers;
}

int kvt_open(const kvtier_options *options, kvt_session **session_p)
{
    int status;
    struct kvt_session *s;
    if (session_p == NULL)
        return KVTIER_ERR_INVAL;
    s = aligned_alloc(_Alignof(struct kvt_session), sizeof(*s));
    if (s == NULL)
        return KVTIER_ERR_NOMEM;
    memset(s, 0, sizeof(*s));
    s->event_fd = s->wake_fd = s->timer_fd = s->epoll_fd = -1;
    s->timer_ns = UINT64_MAX;
    conn_init(&s->control, "control connection");
    conn_init(&s->data, "data connection");
    status = options_take(s, options);
    if (status != KVTIER_OK)
        goto err_free;
    status = KVTIER_ERR_NOMEM;
    s->copy = kvt_copy_best();
    s->ns_descs = calloc(KVT_CLIENT_NS_MAX, sizeof(*s->ns_descs));
    s->workers = calloc(s->n_workers + 2 * KVT_CUDA_THREADS_MAX, sizeof(*s->workers));
    if (s->ns_descs == NULL || s->workers == NULL || !slots_alloc(s) || !fork_page_alloc(s) ||
        !fds_open(s))
        goto err_free;
    locks_init(s);
    if (!threads_start(s))
        goto err_free;
    *session_p = s;
    return KVTIER_OK;
err_free:
    session_free(s, false);
    return status;
}

void kvt_close(kvt_session *s)
{
    if (s == NULL)
        return;
    /* A child has no threads to end, and must not touch the parent's connections. */
    bool is_child = *s->is_parent == 0;
    if (!is_child) {
        threads_join(s, s->n_workers);
        for (unsigned kind = 0; kind < KVT_WORK_KINDS; kind++)
            pthread_cond_destroy(&s->work[kind].cond);
        pthread_cond_destroy(&s->cond);
        pthread_mutex_destroy(&s->lock);
    }
    session_free(s, is_child);
}
