/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A slab of the arena is registered with the NVMe tier before the core may use it. Registration
 * pins every page, which takes milliseconds: a thread does it, so that no lookup waits for it.
 */
#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "agent.h"
#include "kvt/log.h"
#include "kvt/util.h"

#define SLABS_BATCH 16

/* Register what arrived and pass it on. Returns how many slabs that were. */
static unsigned feed_pass(struct agent *agent)
{
    struct slab_feed *feed = &agent->feed;
    uint32_t n_done = atomic_load_explicit(&feed->n_done, memory_order_relaxed);
    unsigned room = KVT_MIN(SLABS_BATCH, agent->host_info.n_slabs - n_done);
    unsigned n =
        agent->host->ops->ready(agent->host, feed->slabs + n_done, feed->offsets + n_done, room);
    for (unsigned i = 0; i < n; i++, n_done++) {
        if (agent->nvme != NULL &&
            !kvt_nvme_tier_register(agent->nvme, feed->slabs[n_done], feed->offsets[n_done],
                                    agent->host_info.slab_bytes))
            kvt_log(KVT_LOG_DEBUG, "slab not registered, its transfers are slower slab=%u",
                    feed->slabs[n_done]);
        /* The reactor's acquire sees the entry. */
        atomic_store_explicit(&feed->n_done, n_done + 1, memory_order_release);
        (void)eventfd_write(feed->event_fd, 1);
    }
    return n;
}

static void *feed_thread(void *arg)
{
    struct agent *agent = arg;
    struct slab_feed *feed = &agent->feed;
    struct kvt_tier_info info;
    struct pollfd fds[] = {
        {.fd = agent->host->ops->event_fd(agent->host), .events = POLLIN},
        {.fd = feed->stop_fd, .events = POLLIN},
    };
    for (;;) {
        if (poll(fds, KVT_ARRAY_LEN(fds), -1) < 0 && errno != EINTR)
            break;
        if (fds[1].revents != 0)
            break;
        unsigned n = feed_pass(agent);
        uint32_t n_done = atomic_load_explicit(&feed->n_done, memory_order_relaxed);
        if (n > 0 && n_done < agent->host_info.n_slabs)
            continue;
        agent->host->ops->info(agent->host, &info);
        if (n_done == agent->host_info.n_slabs || info.degraded)
            kvt_log(info.degraded ? KVT_LOG_WARN : KVT_LOG_INFO, "host tier: %s", info.note);
        if (n_done == agent->host_info.n_slabs)
            break;
        if (n_done == 0 && info.degraded) { /* nothing came, nothing comes */
            atomic_store_explicit(&feed->failed, true, memory_order_release);
            (void)eventfd_write(feed->event_fd, 1);
            break;
        }
    }
    return NULL;
}

enum kvt_status slabs_start(struct agent *agent, struct kvt_error *err)
{
    struct slab_feed *feed = &agent->feed;
    feed->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    feed->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    feed->slabs = calloc(agent->host_info.n_slabs, sizeof(*feed->slabs));
    feed->offsets = calloc(agent->host_info.n_slabs, sizeof(*feed->offsets));
    if (feed->stop_fd < 0 || feed->event_fd < 0 || feed->slabs == NULL || feed->offsets == NULL)
        return kvt_error_set(err, KVT_ERR_NOMEM, "kvtierd: cannot follow the arena: %s",
                             strerror(errno));
    enum kvt_status status = kvt_host_tier_start(agent->host, err);
    if (status != KVT_OK)
        return status;
    int rc = kvt_thread_start(&feed->thread, feed_thread, agent);
    if (rc != 0)
        return kvt_error_set(err, KVT_ERR_NOMEM,
                             "kvtierd: cannot start a thread: %s; check ulimit -u", strerror(rc));
    feed->started = true;
    return reactor_watch(agent, feed->event_fd, WATCH_SLABS);
}

void slabs_stop(struct agent *agent)
{
    struct slab_feed *feed = &agent->feed;
    if (feed->started) {
        (void)eventfd_write(feed->stop_fd, 1);
        pthread_join(feed->thread, NULL);
        feed->started = false;
    }
    if (feed->stop_fd >= 0)
        close(feed->stop_fd);
    if (feed->event_fd >= 0)
        close(feed->event_fd);
    feed->stop_fd = feed->event_fd = -1;
    free(feed->slabs);
    free(feed->offsets);
    feed->slabs = NULL;
    feed->offsets = NULL;
}

void slabs_collect(struct agent *agent)
{
    struct slab_feed *feed = &agent->feed;
    eventfd_t ignored;
    (void)eventfd_read(feed->event_fd, &ignored);
    uint32_t n_done = atomic_load_explicit(&feed->n_done, memory_order_acquire);
    for (; feed->n_taken < n_done; feed->n_taken++)
        kvt_core_host_slab(agent->core, feed->slabs[feed->n_taken], feed->offsets[feed->n_taken]);
    if (atomic_load_explicit(&feed->failed, memory_order_acquire)) {
        kvt_log(KVT_LOG_ERROR, "host: no memory for a single slab; lower host.bytes");
        agent->failed = agent->stop = true;
    }
}
