/* SPDX-License-Identifier: Apache-2.0 */
/* The agent: its sockets, who may use them, its config. What is found here the other checks use. */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <yaml.h>

#include "api.h"
#include "doctor.h"
#include "kvt/program.h"
#include "kvt/util.h"
#include "walk.h"

#define CONFIG_DEFAULT "/etc/kvtier/kvtierd.yaml"
#define OUTPUT_BYTES   (256 * 1024) /* of the program's */

extern char **environ;

/* --- sockets --------------------------------------------------------------------------------- */

static void owner_text(const struct stat *st, char *text, size_t bytes)
{
    const struct passwd *user = getpwuid(st->st_uid);
    char user_name[64], group_name[64];
    snprintf(user_name, sizeof(user_name), "%s", user != NULL ? user->pw_name : "?");
    const struct group *group = getgrgid(st->st_gid);
    snprintf(group_name, sizeof(group_name), "%s", group != NULL ? group->gr_name : "?");
    snprintf(text, bytes, "%s:%s, mode %04o", user_name, group_name,
             (unsigned)(st->st_mode & 07777));
}

/* The folder where an agent of this user would make the socket. */
static void folder_check(struct doctor *d, const char *path)
{
    char folder[256];
    snprintf(folder, sizeof(folder), "%s", path);
    char *slash = strrchr(folder, '/');
    if (slash == NULL)
        return;
    slash[slash == folder] = '\0';
    if (access(folder, W_OK) == 0)
        return;
    int err = errno;
    doctor_add(d, err == ENOENT ? DOCTOR_NOTE : DOCTOR_WARN,
               err == ENOENT ? "the agent makes it where it may (RuntimeDirectory=kvtier in a unit)"
                             : "start the agent as a user that may write there, or change "
                               "socket.path",
               "%s, where the socket is to be: %s", folder, strerror(err));
}

/* Returns the errno of connecting. */
static int socket_check(struct doctor *d, const char *path, int type, const char *what, int *pid_p)
{
    struct stat st;
    char owner[160];
    int err = kvctl_socket_probe(path, type, pid_p);
    bool there = stat(path, &st) == 0;
    if (there)
        owner_text(&st, owner, sizeof(owner));
    if (err == 0 && (st.st_mode & S_IWOTH) != 0)
        doctor_add(d, DOCTOR_WARN, "set socket.mode: 0660, and the engines into the agent's group",
                   "%s %s answers, and everybody on this machine may use it (%s)", what, path,
                   owner);
    else if (err == 0)
        doctor_add(d, DOCTOR_OK, "", "%s %s answers (%s)", what, path, owner);
    else if (err == EACCES || err == EPERM)
        doctor_add(d, DOCTOR_FAIL,
                   type == SOCK_STREAM
                       ? "run kvctl as root or as the agent's user: nobody else may steer it"
                       : "run kvctl and the engines as the agent's user or in its group, or set "
                         "socket.mode",
                   "%s %s: this user may not connect (%s)", what, path,
                   there ? owner : "its folder is closed to us");
    else if (err == ENOENT)
        doctor_add(d, DOCTOR_NOTE, "start kvtierd, or name its socket with --socket",
                   "%s %s is not there: no agent runs", what, path);
    else if (err == ECONNREFUSED)
        doctor_add(d, DOCTOR_WARN, "start kvtierd: it replaces what a killed agent left behind",
                   "%s %s is there and nobody listens on it (%s)", what, path, owner);
    else
        doctor_add(d, DOCTOR_FAIL, "name the agent's socket with --socket", "%s %s: %s", what, path,
                   strerror(err));
    return err;
}

static void check_socket(struct doctor *d)
{
    int pid = 0;
    int err = socket_check(d, d->k->socket_path, SOCK_SEQPACKET, "socket", &pid);
    if (err == 0)
        d->pid = pid;
    else if (err != EACCES && err != EPERM) /* else an agent has it already */
        folder_check(d, d->k->socket_path);
}

/* --- config ---------------------------------------------------------------------------------- */

static bool option_add(struct doctor *d, const Kvtier__V1__Option *option)
{
    return json_object_set_new(d->config, option->key, json_string(option->value)) == 0;
}

static void check_control(struct doctor *d)
{
    Kvtier__V1__GetConfigRequest request = KVTIER__V1__GET_CONFIG_REQUEST__INIT;
    ProtobufCMessage *reply;
    if (d->pid == 0 && kvctl_socket_probe(d->k->control_path, SOCK_STREAM, NULL) == ENOENT)
        return; /* said of the other socket */
    if (d->pid != 0 && kvctl_socket_probe(d->k->control_path, SOCK_STREAM, NULL) == ENOENT) {
        doctor_add(d, DOCTOR_NOTE, "set control.path: auto, or name the socket with --control",
                   "control %s is not there: this agent cannot be asked or steered",
                   d->k->control_path);
        return;
    }
    if (socket_check(d, d->k->control_path, SOCK_STREAM, "control", NULL) != 0)
        return;
    enum kvctl_exit code = kvctl_call_quiet(d->k, "GetConfig", &request.base, &reply);
    if (code != KVCTL_OK) {
        doctor_add(d, DOCTOR_FAIL, "look at the agent's log; is this its control socket?",
                   "control %s: %s", d->k->control_path,
                   code == KVCTL_LATE ? "no answer in time" : "it does not speak the control API");
        return;
    }
    const Kvtier__V1__Config *config = KVCTL_AS(Kvtier__V1__Config, reply);
    d->config = json_object();
    for (size_t i = 0; i < config->n_options; i++)
        (void)option_add(d, config->options[i]);
    protobuf_c_message_free_unpacked(reply, NULL);
}

/* What kvtierd says to its arguments, on the stream fd of its own. NULL: it could not be run. */
static char *program_output(char *const argv[], int fd, int *exit_p)
{
    int pipe_fds[2], status;
    pid_t pid;
    posix_spawn_file_actions_t actions;
    char *text = calloc(1, OUTPUT_BYTES + 1);
    if (text == NULL || pipe2(pipe_fds, O_CLOEXEC) != 0) {
        free(text);
        return NULL;
    }
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, fd == STDOUT_FILENO ? STDERR_FILENO : STDOUT_FILENO,
                                     "/dev/null", O_WRONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, pipe_fds[1], fd);
    int rc = posix_spawnp(&pid, argv[0], &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(pipe_fds[1]);
    size_t n = 0;
    ssize_t got = rc == 0 ? 1 : 0;
    while (got > 0 && n < OUTPUT_BYTES) {
        got = read(pipe_fds[0], text + n, OUTPUT_BYTES - n);
        n += got > 0 ? (size_t)got : 0;
    }
    close(pipe_fds[0]);
    if (rc != 0 || waitpid(pid, &status, 0) != pid) {
        free(text);
        return NULL;
    }
    *exit_p = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    return text;
}

struct yaml_level {
    const yaml_node_t *node;
    size_t next;   /* item or pair of it */
    size_t length; /* of the key up to here */
};

/* "a: {b: [x]}" as "a.b.0" -> "x". */
static json_t *yaml_flatten(const char *text)
{
    yaml_parser_t parser;
    yaml_document_t document;
    struct yaml_level stack[KVCTL_DEPTH_MAX];
    char key[256] = "";
    json_t *flat = json_object();
    if (yaml_parser_initialize(&parser) == 0)
        return flat;
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, strlen(text));
    if (yaml_parser_load(&parser, &document) == 0) {
        yaml_parser_delete(&parser);
        return flat;
    }
    unsigned depth = 0;
    yaml_node_t *node = yaml_document_get_root_node(&document);
    for (;;) {
        if (node != NULL && node->type == YAML_SCALAR_NODE)
            (void)json_object_set_new(flat, key,
                                      json_string((const char *)node->data.scalar.value));
        else if (node != NULL && depth < KVCTL_DEPTH_MAX)
            stack[depth++] = (struct yaml_level){.node = node, .length = strlen(key)};
        while (depth > 0) {
            struct yaml_level *level = &stack[depth - 1];
            const yaml_node_t *n = level->node;
            size_t at = level->length;
            const char *dot = at > 0 ? "." : "";
            size_t i = level->next++;
            if (n->type == YAML_MAPPING_NODE &&
                n->data.mapping.pairs.start + i < n->data.mapping.pairs.top) {
                const yaml_node_pair_t *pair = n->data.mapping.pairs.start + i;
                const yaml_node_t *name = yaml_document_get_node(&document, pair->key);
                snprintf(key + at, sizeof(key) - at, "%s%s", dot,
                         (const char *)name->data.scalar.value);
                node = yaml_document_get_node(&document, pair->value);
                break;
            }
            if (n->type == YAML_SEQUENCE_NODE &&
                n->data.sequence.items.start + i < n->data.sequence.items.top) {
                snprintf(key + at, sizeof(key) - at, "%s%zu", dot, i);
                node = yaml_document_get_node(&document, n->data.sequence.items.start[i]);
                break;
            }
            depth--;
        }
        if (depth == 0)
            break;
    }
    yaml_document_delete(&document);
    yaml_parser_delete(&parser);
    return flat;
}

/* What kvtierd makes of its config: there is one reader of configs. False: why not was told. */
static bool config_check(struct doctor *d, char *const argv[])
{
    int code = 0;
    char *text = program_output(argv, STDERR_FILENO, &code);
    bool ran = text != NULL && code != 127;
    if (!ran)
        doctor_add(d, DOCTOR_WARN, "install kvtierd, or add its folder to PATH",
                   "%s cannot be run: %s", argv[0],
                   d->config != NULL ? "the file is not checked" : "checks go by its defaults");
    else if (code != 0) {
        for (char *line = strtok(text, "\n"); line != NULL; line = strtok(NULL, "\n"))
            doctor_add(d, DOCTOR_FAIL, "kvtierd --check-config shows the same", "%s", line);
    }
    free(text);
    return ran && code == 0;
}

static void check_config(struct doctor *d)
{
    char program[PATH_MAX], *text;
    char print[] = "--print-config", check[] = "--check-config", config[] = "--config";
    char file[4096];
    int code = 0;
    if (d->config != NULL)
        doctor_add(d, DOCTOR_OK, "", "read from the running agent");
    if (d->config != NULL && d->config_file == NULL)
        return;
    snprintf(file, sizeof(file), "%s", d->config_file != NULL ? d->config_file : CONFIG_DEFAULT);
    bool have_file = d->config_file != NULL || access(file, F_OK) == 0;
    kvt_kvtierd_find(program);
    char *argv[] = {program, check, have_file ? config : NULL, file, NULL};
    if (!config_check(d, argv))
        return;
    if (d->pid != 0 && d->config == NULL)
        doctor_add(d, DOCTOR_NOTE, "name the agent's config with --config",
                   "the running agent cannot be asked for its config; what follows goes by %s",
                   have_file ? file : "the defaults");
    else
        doctor_add(d, DOCTOR_OK, "", "%s%s", have_file ? file : "the defaults",
                   have_file ? " is good"
                             : " (there is no " CONFIG_DEFAULT ", --config names another)");
    if (d->config != NULL)
        return;
    argv[1] = print;
    text = program_output(argv, STDOUT_FILENO, &code);
    if (text != NULL)
        d->config = yaml_flatten(text);
    free(text);
}

const struct doctor_check doctor_agent_checks[] = {
    {"socket", check_socket},
    {"control", check_control},
    {"config", check_config},
    {NULL, NULL},
};
