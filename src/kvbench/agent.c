/* SPDX-License-Identifier: Apache-2.0 */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "kvt/interrupt.h"
#include "kvt/program.h"
#include "kvt/util.h"

#define READY_TIMEOUT_MS 30000
#define STOP_TIMEOUT_MS  10000

struct kvt_agent {
    pid_t pid;  /* 0: not running */
    int pid_fd; /* readable when it has ended */
    uint64_t ready_ns;
    char dir[PATH_MAX];
    char socket[PATH_MAX];
    char store[PATH_MAX];
    char log[PATH_MAX];
};

bool kvt_agent_set(struct kvt_agent_options *options, const char *format, ...)
{
    if (options->n_sets == KVT_AGENT_SETS_MAX)
        return false;
    va_list args;
    va_start(args, format);
    int n = vsnprintf(options->sets[options->n_sets], KVT_AGENT_SET_MAX, format, args);
    va_end(args);
    if (n < 0 || n >= KVT_AGENT_SET_MAX)
        return false;
    options->n_sets++;
    return true;
}

/* The end of the log, one line, for an error message. */
static void log_tail(const char *path, char *text, size_t bytes)
{
    text[0] = '\0';
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    off_t end = lseek(fd, 0, SEEK_END);
    off_t from = end > (off_t)bytes - 1 ? end - (off_t)bytes + 1 : 0;
    ssize_t n = pread(fd, text, bytes - 1, from);
    close(fd);
    if (n < 0)
        n = 0;
    text[n] = '\0';
    while (n > 0 && text[n - 1] == '\n')
        text[--n] = '\0';
    char *last = strrchr(text, '\n');
    if (last != NULL)
        memmove(text, last + 1, strlen(last + 1) + 1);
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    remove(path); /* what stays is reported by the folder itself */
    return 0;
}

static void remove_dir(const char *dir)
{
    nftw(dir, remove_entry, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
    if (access(dir, F_OK) == 0)
        fprintf(stderr, "kvbench: cannot remove %s: remove it by hand\n", dir);
}

/* In the child. Only what is allowed between fork and exec. */
static _Noreturn void run_program(char *const argv[], int log_fd, int ready_fd, pid_t parent)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(127); /* the parent went before the line above */
    setpgid(0, 0);  /* Ctrl-C is for the parent, which ends the agent in order */
    dup2(log_fd, STDOUT_FILENO);
    dup2(log_fd, STDERR_FILENO);
    fcntl(ready_fd, F_SETFD, 0);
    execvp(argv[0], argv);
    _exit(127);
}

static enum kvt_status spawn(struct kvt_agent *agent, const struct kvt_agent_options *options,
                             char *program, int log_fd, int ready_fd, struct kvt_error *err)
{
    static char ready_option[] = "--ready-fd", set_option[] = "--set";
    static char no_metrics[] = "metrics.listen="; /* the port is for an agent that stays */
    struct kvt_agent_options all = *options;      /* exec wants strings it might change */
    bool fits = kvt_agent_set(&all, "socket.path=%s", agent->socket) &&
                /* What it holds dies with the folder: nothing to be saved at its end. */
                kvt_agent_set(&all, "shutdown.drain_timeout=0");
    if (options->nvme_bytes > 0)
        fits = fits && kvt_agent_set(&all, "nvme.path=%s", agent->store) &&
               kvt_agent_set(&all, "nvme.bytes=%" PRIu64, options->nvme_bytes);
    if (!fits)
        return kvt_error_set(err, KVT_ERR_INVAL, "agent: too many settings");
    char ready_text[16];
    snprintf(ready_text, sizeof(ready_text), "%d", ready_fd);
    char *argv[6 + 2 * KVT_AGENT_SETS_MAX];
    unsigned argc = 0;
    argv[argc++] = program;
    argv[argc++] = ready_option;
    argv[argc++] = ready_text;
    argv[argc++] = set_option;
    argv[argc++] = no_metrics; /* first, so that --set of the caller has the last word */
    for (unsigned i = 0; i < all.n_sets; i++) {
        argv[argc++] = set_option;
        argv[argc++] = all.sets[i];
    }
    argv[argc] = NULL;

    pid_t parent = getpid();
    pid_t pid = fork();
    if (pid == 0)
        run_program(argv, log_fd, ready_fd, parent);
    if (pid < 0)
        return kvt_error_set(err, kvt_status_from_errno(errno), "agent: cannot fork: %s",
                             strerror(errno));
    agent->pid = pid;
    agent->pid_fd = pidfd_open(pid, 0);
    return KVT_OK;
}

/* Waits until the agent wrote to the pipe. False: it ended, or not in time. */
static bool wait_ready(int fd, bool *late_p)
{
    uint64_t end_ns = kvt_now_ns() + READY_TIMEOUT_MS * UINT64_C(1000000);
    *late_p = false;
    while (!kvt_interrupted()) {
        uint64_t now_ns = kvt_now_ns();
        if (now_ns >= end_ns) {
            *late_p = true;
            return false;
        }
        struct pollfd p = {.fd = fd, .events = POLLIN};
        int n = poll(&p, 1, (int)((end_ns - now_ns) / 1000000 + 1));
        if (n < 0 && errno != EINTR)
            return false;
        if (n <= 0)
            continue;
        char byte;
        return read(fd, &byte, 1) > 0;
    }
    return false;
}

enum kvt_status kvt_agent_start(const struct kvt_agent_options *options, struct kvt_agent **agent_p,
                                struct kvt_error *err)
{
    enum kvt_status status = KVT_ERR_NOMEM;
    struct kvt_agent *agent = calloc(1, sizeof(*agent));
    if (agent == NULL)
        return kvt_error_set(err, status, "agent: out of memory");
    agent->pid_fd = -1;
    const char *base = options->dir != NULL ? options->dir : "/var/tmp";
    int length = snprintf(agent->dir, sizeof(agent->dir), "%s/kvbench-XXXXXX", base);
    /* A unix socket's path has 108 bytes. */
    if (length < 0 || length > 80) {
        status =
            kvt_error_set(err, KVT_ERR_INVAL,
                          "agent: %.64s...: path too long for a socket; use a shorter --dir", base);
        goto err_free;
    }
    if (mkdtemp(agent->dir) == NULL) {
        status = kvt_error_set(err, kvt_status_from_errno(errno),
                               "agent: cannot make a folder in %s: %s; choose another with --dir",
                               base, strerror(errno));
        goto err_free;
    }
    snprintf(agent->socket, sizeof(agent->socket), "%.80s/sock", agent->dir);
    snprintf(agent->store, sizeof(agent->store), "%.80s/store", agent->dir);
    snprintf(agent->log, sizeof(agent->log), "%.80s/kvtierd.log", agent->dir);

    char program[PATH_MAX];
    if (options->program != NULL)
        snprintf(program, sizeof(program), "%s", options->program);
    else
        kvt_kvtierd_find(program);

    int ready[2] = {-1, -1};
    int log_fd = open(agent->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log_fd < 0 || pipe2(ready, O_CLOEXEC) != 0) {
        status = kvt_error_set(err, kvt_status_from_errno(errno), "agent: cannot start: %s",
                               strerror(errno));
        goto err_close;
    }
    uint64_t start_ns = kvt_now_ns();
    status = spawn(agent, options, program, log_fd, ready[1], err);
    if (status != KVT_OK)
        goto err_close;
    close(ready[1]);
    ready[1] = -1;
    bool late;
    if (!wait_ready(ready[0], &late)) {
        char tail[160];
        kvt_agent_kill(agent);
        log_tail(agent->log, tail, sizeof(tail));
        status = kvt_interrupted()
                     ? kvt_error_set(err, KVT_ERR_CANCELED, "interrupted")
                     : kvt_error_set(err, KVT_ERR_UNREACH, "agent: %.64s %s: %s", program,
                                     late ? "was not ready in time" : "did not start",
                                     tail[0] != '\0' ? tail : "no log; is kvtierd installed?");
        goto err_close;
    }
    agent->ready_ns = kvt_now_ns() - start_ns;
    close(ready[0]);
    close(log_fd);
    *agent_p = agent;
    return KVT_OK;
err_close:
    for (unsigned i = 0; i < 2; i++)
        if (ready[i] >= 0)
            close(ready[i]);
    if (log_fd >= 0)
        close(log_fd);
    remove_dir(agent->dir);
err_free:
    free(agent);
    return status;
}

void kvt_agent_kill(struct kvt_agent *agent)
{
    if (agent->pid == 0)
        return;
    kill(agent->pid, SIGKILL);
    waitpid(agent->pid, NULL, 0);
    agent->pid = 0;
    if (agent->pid_fd >= 0)
        close(agent->pid_fd);
}

/* Whether the process ended by itself, within timeout_ms. */
static bool wait_gone(const struct kvt_agent *agent, uint64_t timeout_ms)
{
    uint64_t end_ns = kvt_now_ns() + timeout_ms * 1000000;
    for (;;) {
        uint64_t now_ns = kvt_now_ns();
        struct pollfd p = {.fd = agent->pid_fd, .events = POLLIN};
        int n = poll(&p, 1, now_ns < end_ns ? (int)((end_ns - now_ns) / 1000000 + 1) : 0);
        if (n > 0 || (n < 0 && errno != EINTR))
            return n > 0 && (p.revents & POLLIN) != 0;
        if (n == 0 && now_ns >= end_ns)
            return false;
    }
}

void kvt_agent_stop(struct kvt_agent *agent)
{
    if (agent == NULL)
        return;
    siginfo_t info = {.si_pid = 0};
    if (agent->pid != 0 &&
        waitid(P_PID, (id_t)agent->pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
        info.si_pid != 0) {
        char tail[200];
        log_tail(agent->log, tail, sizeof(tail));
        fprintf(stderr, "kvbench: the agent ended by itself (%s %d): %s\n",
                info.si_code == CLD_EXITED ? "exit code" : "signal", info.si_status, tail);
        kvt_agent_kill(agent);
    }
    if (agent->pid != 0) {
        kill(agent->pid, SIGTERM);
        if (!wait_gone(agent, STOP_TIMEOUT_MS))
            fprintf(stderr, "kvbench: the agent did not end within %d s and is killed\n",
                    STOP_TIMEOUT_MS / 1000);
        kvt_agent_kill(agent); /* reaps it; no effect on what has ended */
    }
    remove_dir(agent->dir);
    free(agent);
}

const char *kvt_agent_socket(const struct kvt_agent *agent)
{
    return agent->socket;
}

const char *kvt_agent_store(const struct kvt_agent *agent)
{
    return access(agent->store, F_OK) == 0 ? agent->store : NULL;
}

const char *kvt_agent_dir(const struct kvt_agent *agent)
{
    return agent->dir;
}

uint64_t kvt_agent_ready_ns(const struct kvt_agent *agent)
{
    return agent->ready_ns;
}

uint64_t kvt_agent_cpu_ns(const struct kvt_agent *agent)
{
    clockid_t clock;
    struct timespec ts;
    if (agent->pid == 0 || clock_getcpuclockid(agent->pid, &clock) != 0 ||
        clock_gettime(clock, &ts) != 0)
        return 0;
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}
