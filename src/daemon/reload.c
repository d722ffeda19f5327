/* SPDX-License-Identifier: Apache-2.0 */
#include "reload.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "agent.h"
#include "kvt/log.h"
#include "kvt/units.h"
#include "kvt/util.h"

struct reload_job {
    int event_fd;
    struct daemon_config_input input;
    struct daemon_config config;
    struct kvt_config_sources sources;
    unsigned n_errors;
};

enum kvt_status reload_open(struct reload *reload)
{
    reload->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return reload->event_fd >= 0 ? KVT_OK : KVT_ERR_NOMEM;
}

void reload_close(struct reload *reload)
{
    if (reload->busy) {
        pthread_join(reload->thread, NULL);
        free(reload->job);
        reload->job = NULL;
        reload->busy = false;
    }
    if (reload->event_fd >= 0)
        close(reload->event_fd);
    reload->event_fd = -1;
}

static void fault_log(void *arg, const char *msg)
{
    (void)arg;
    kvt_log_all(KVT_LOG_ERROR, "config not reloaded: %s", msg);
}

static void *reload_thread(void *arg)
{
    struct reload_job *job = arg;
    job->n_errors = daemon_config_read(&job->config, &job->sources, &job->input, fault_log, NULL);
    job->n_errors += daemon_config_resolve(&job->config, &job->sources, "", fault_log, NULL);
    (void)eventfd_write(job->event_fd, 1);
    return NULL;
}

void reload_start(struct agent *agent)
{
    struct reload *reload = &agent->reload;
    if (reload->busy) {
        reload->again = true;
        return;
    }
    notify_send(&agent->notify, "RELOADING=1\nMONOTONIC_USEC=%llu\nSTATUS=reading the config again",
                (unsigned long long)(kvt_now_ns() / KVT_NS_PER_US));
    reload->job = calloc(1, sizeof(*reload->job));
    int rc = ENOMEM;
    if (reload->job != NULL) {
        reload->job->event_fd = reload->event_fd;
        reload->job->input = agent->config_input;
        rc = pthread_create(&reload->thread, NULL, reload_thread, reload->job);
    }
    reload->busy = rc == 0;
    if (rc == 0)
        return;
    free(reload->job);
    reload->job = NULL;
    kvt_log(KVT_LOG_ERROR, "config not reloaded: cannot start a thread: %s", strerror(rc));
    agent_status_tell(agent);
}

/* Keep the value that runs where the new one needs a restart. @return whether it is reloadable. */
static bool change_take(struct agent *agent, struct reload_job *job,
                        const struct kvt_config_field *field)
{
    char from[KVT_CONFIG_VALUE_TEXT];
    char to[KVT_CONFIG_VALUE_TEXT];
    char source[KVT_CONFIG_SOURCE_TEXT];
    bool can = daemon_config_reloadable(field);
    kvt_config_value_text(field, &agent->config, from);
    kvt_config_value_text(field, &job->config, to);
    kvt_config_source_text(daemon_config_fields, &job->sources, field->key, source);
    if (can) {
        kvt_log_all(KVT_LOG_INFO, "config changed key=%s from=%s to=%s source=%s", field->key, from,
                    to, source);
        kvt_config_copy(field, &job->config, &agent->config);
    } else {
        kvt_log_all(KVT_LOG_WARN,
                    "config change waits for a restart key=%s running=%s wanted=%s source=%s",
                    field->key, from, to, source);
        kvt_config_source_keep(&job->sources, &agent->config_sources, field);
    }
    return can;
}

static void job_apply(struct agent *agent, struct reload_job *job)
{
    unsigned n_changed = 0;
    unsigned n_waiting = 0;
    for (const struct kvt_config_field *f = daemon_config_fields; f->type != KVT_CONFIG_END; f++) {
        if (kvt_config_same(f, &agent->config, &job->config))
            continue;
        if (change_take(agent, job, f))
            n_changed++;
        else
            n_waiting++;
    }
    agent->config_sources = job->sources;
    agent_tune(agent);
    kvt_log_all(KVT_LOG_INFO, "config reloaded changed=%u waiting_for_restart=%u", n_changed,
                n_waiting);
}

void reload_finish(struct agent *agent)
{
    struct reload *reload = &agent->reload;
    eventfd_t ignored;
    (void)eventfd_read(reload->event_fd, &ignored);
    if (!reload->busy)
        return;
    pthread_join(reload->thread, NULL); /* it has nothing left to do */
    struct reload_job *job = reload->job;
    reload->job = NULL;
    reload->busy = false;
    if (job->n_errors == 0)
        job_apply(agent, job);
    else
        kvt_log(KVT_LOG_ERROR, "config not reloaded, the old one stays in effect faults=%u",
                job->n_errors);
    free(job);
    agent_status_tell(agent);
    if (reload->again) {
        reload->again = false;
        reload_start(agent);
    }
}
