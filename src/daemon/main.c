/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "agent.h"
#ifdef KVT_CONTROL
#include "control.h"
#endif
#include "kvt/log.h"
#include "kvt/units.h"
#include "kvt/util.h"

enum { EXIT_OK = 0, EXIT_RUNTIME = 1, EXIT_USAGE = 2 };

#define SETS_MAX 256

struct options {
    const char *config;
    const char *sets[SETS_MAX];
    unsigned n_sets;
    bool check, print;
    int ready_fd;
};

static const char usage[] =
    "Usage: kvtierd [OPTION]...\n"
    "The agent of a node: keeps KV chunks in host memory and on NVMe for the engines on it.\n"
    "\n"
    "  --config FILE      read the YAML config FILE (without: defaults)\n"
    "  --set KEY=VALUE    set one key, over the file; may be repeated\n"
    "  --check-config     check the config, say what is wrong with it, and exit\n"
    "  --print-config     print the config in effect as YAML, and exit\n"
    "  --keys             list every key with its default, range and meaning, and exit\n"
    "  --ready-fd N       write \"ready\" to file descriptor N once stores and loads are served\n"
    "  --help             print this, and exit\n"
    "  --version          print the version, and exit\n"
    "\n"
    "An option's value is taken from --set, else from the environment (KVTIER_ and the key in "
    "upper\n"
    "case with _ for ., like KVTIER_HOST_BYTES), else from the file, else it is the default.\n"
    "\n"
    "SIGHUP reads the config again and takes over what can change; the log says what that is.\n"
    "SIGTERM and SIGINT let writes to NVMe finish (shutdown.drain_timeout), a second one does "
    "not.\n"
    "\n"
    "Exit status: 0 success; 1 a tier, the socket or the machine failed; 2 wrong usage or "
    "config.\n";

static void config_error_print(void *arg, const char *msg)
{
    (void)arg;
    fprintf(stderr, "kvtierd: %s\n", msg);
}

static void key_print(const struct kvt_config_field *field, const char *prefix)
{
    char low[KVT_UNITS_TEXT_BYTES] = "";
    char high[KVT_UNITS_TEXT_BYTES] = "";
    printf("%s%s\n    %s", prefix, field->key, field->help);
    switch (field->type) {
    case KVT_CONFIG_ENUM:
        printf("\n    one of %s, default %s\n", field->names, field->text);
        return;
    case KVT_CONFIG_BYTES:
        kvt_bytes_format(field->min, low);
        kvt_bytes_format(field->max, high);
        break;
    case KVT_CONFIG_TIME:
        kvt_time_format(field->min, low);
        kvt_time_format(field->max, high);
        break;
    case KVT_CONFIG_U32:
        snprintf(low, sizeof(low), "%llu", (unsigned long long)field->min);
        snprintf(high, sizeof(high), "%llu", (unsigned long long)field->max);
        break;
    default:
        break;
    }
    if (high[0] != '\0')
        printf("\n    %s to %s, default %s\n", low, high, field->text);
    else
        printf("\n    default %s\n", field->text[0] != '\0' ? field->text : "empty");
}

static void keys_print(void)
{
    char prefix[64];
    for (const struct kvt_config_field *f = daemon_config_fields; f->type != KVT_CONFIG_END; f++) {
        key_print(f, "");
        if (f->type != KVT_CONFIG_LIST)
            continue;
        snprintf(prefix, sizeof(prefix), "%s.N.", f->key);
        for (const struct kvt_config_field *e = f->fields; e->type != KVT_CONFIG_END; e++)
            key_print(e, prefix);
    }
}

static int usage_error(const char *msg, const char *what)
{
    fprintf(stderr, "kvtierd: %s%s; see kvtierd --help\n", msg, what);
    return EXIT_USAGE;
}

/* Parse arguments. -1: go on; else exit with that. */
static int options_parse(int argc, char **argv, struct options *options)
{
    enum { CONFIG = 256, SET, CHECK, PRINT, KEYS, READY_FD, HELP, VERSION };
    static const struct option longs[] = {
        {"config", required_argument, NULL, CONFIG},
        {"set", required_argument, NULL, SET},
        {"check-config", no_argument, NULL, CHECK},
        {"print-config", no_argument, NULL, PRINT},
        {"keys", no_argument, NULL, KEYS},
        {"ready-fd", required_argument, NULL, READY_FD},
        {"help", no_argument, NULL, HELP},
        {"version", no_argument, NULL, VERSION},
        {0},
    };
    uint64_t number;
    int c;
    opterr = 0; /* said below, under the name that all messages bear */
    while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
        switch (c) {
        case CONFIG:
            options->config = optarg;
            break;
        case SET:
            if (options->n_sets == SETS_MAX)
                return usage_error("too many --set", "");
            options->sets[options->n_sets++] = optarg;
            break;
        case CHECK:
            options->check = true;
            break;
        case PRINT:
            options->print = true;
            break;
        case KEYS:
            keys_print();
            return EXIT_OK;
        case READY_FD:
            if (!kvt_number_parse(optarg, &number) || number > INT32_MAX ||
                fcntl((int)number, F_GETFD) < 0)
                return usage_error("--ready-fd: no open file descriptor ", optarg);
            options->ready_fd = (int)number;
            (void)fcntl((int)number, F_SETFD, FD_CLOEXEC);
            break;
        case HELP:
            fputs(usage, stdout);
            return EXIT_OK;
        case VERSION:
            printf("kvtierd %s\n", KVT_VERSION);
            return EXIT_OK;
        default:
            return usage_error("unknown option or missing value: ", argv[optind - 1]);
        }
    }
    if (optind < argc)
        return usage_error("unexpected argument ", argv[optind]);
    return -1;
}

/* Each session is a descriptor. */
static void files_limit_raise(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static bool config_load(struct agent *agent, const struct options *options)
{
    agent->config_input = (struct daemon_config_input){
        .file = options->config,
        .environment = (const char *const *)environ,
        .sets = options->sets,
        .n_sets = options->n_sets,
    };
    unsigned n = daemon_config_read(&agent->config, &agent->config_sources, &agent->config_input,
                                    config_error_print, NULL);
    kvt_log_setup((enum kvt_log_level)agent->config.log_level,
                  (enum kvt_log_format)agent->config.log_format);
    daemon_environment_check(agent->config_input.environment);
    n +=
        daemon_config_resolve(&agent->config, &agent->config_sources, "", config_error_print, NULL);
    return n == 0;
}

static void option_log(void *arg, const char *path, const char *value, const char *source)
{
    (void)arg;
    kvt_log_all(KVT_LOG_INFO, "config key=%s value=%s source=%s", path, value, source);
}

#ifdef KVT_CONTROL
static enum kvt_status serve_controlled(struct agent *agent, struct kvt_error *err)
{
    struct control *control;
    enum kvt_status status = control_start(agent, &control, err);
    if (status == KVT_OK)
        reactor_run(agent);
    control_stop(control);
    return status;
}
#else
static enum kvt_status serve_controlled(struct agent *agent, struct kvt_error *err)
{
    (void)err;
    if (agent->config.control_path[0] != '\0')
        kvt_log(KVT_LOG_INFO, "control API not served: this kvtierd is built without gRPC");
    reactor_run(agent);
    return KVT_OK;
}
#endif

static int serve(struct agent *agent)
{
    struct kvt_error err = {.msg = ""};
    char host_bytes[KVT_UNITS_TEXT_BYTES];
    files_limit_raise();
    kvt_bytes_format(agent->config.host_bytes, host_bytes);
    kvt_log(KVT_LOG_INFO, "starting version=%s host_bytes=%s disks=%u workers=%u", KVT_VERSION,
            host_bytes, agent->config.n_disks, agent->config.workers);
    kvt_config_each(daemon_config_fields, &agent->config, &agent->config_sources, option_log, NULL);
    enum kvt_status status = agent_open(agent, &err);
    if (status == KVT_OK)
        status = serve_controlled(agent, &err);
    if (status != KVT_OK)
        kvt_log(KVT_LOG_ERROR, "%s", err.msg[0] != '\0' ? err.msg : kvt_status_str(status));
    agent_close(agent);
    if (status != KVT_OK || agent->failed)
        return EXIT_RUNTIME;
    kvt_log(KVT_LOG_INFO, "stopped");
    return EXIT_OK;
}

int main(int argc, char **argv)
{
    struct options options = {.ready_fd = -1};
    int code = options_parse(argc, argv, &options);
    if (code >= 0)
        return code;
    struct agent *agent = aligned_alloc(64, kvt_align_up(sizeof(*agent), 64));
    if (agent == NULL)
        return usage_error("out of memory", "");
    memset(agent, 0, sizeof(*agent));
    agent->epoll_fd = agent->timer_fd = agent->signal_fd = -1;
    agent->listener.fd = agent->listener.lock_fd = -1;
    agent->feed.stop_fd = agent->feed.event_fd = -1;
    agent->http.pull.ask_fd = agent->http.pull.answer_fd = -1;
    agent->reload.event_fd = agent->notify.fd = -1;
    agent->ready_fd = options.ready_fd;
    if (!config_load(agent, &options))
        code = EXIT_USAGE;
    else if (options.print)
        kvt_config_print(daemon_config_fields, &agent->config, stdout);
    else if (options.check)
        puts("config is good");
    else
        code = serve(agent);
    free(agent);
    return code < 0 ? EXIT_OK : code;
}
