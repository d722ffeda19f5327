/* SPDX-License-Identifier: Apache-2.0 */
/* config get, log-level: how the agent is set. */
#include <stdio.h>
#include <string.h>

#include "api.h"
#include "message.h"

/* "host" takes host.bytes too. */
static bool key_wanted(const char *key, const char *wanted)
{
    size_t n = wanted != NULL ? strlen(wanted) : 0;
    return wanted == NULL || (strncmp(key, wanted, n) == 0 && (key[n] == '\0' || key[n] == '.'));
}

static enum kvctl_exit options_print(struct kvctl *k, const char *wanted)
{
    static const struct kvctl_column columns[] = {
        {"KEY", "key"},
        {"VALUE", "value"},
        {"SOURCE", "source"},
        {"RELOADABLE", "reloadable", .wide = true},
        {NULL},
    };
    Kvtier__V1__GetConfigRequest request = KVTIER__V1__GET_CONFIG_REQUEST__INIT;
    struct kvctl_rows rows;
    ProtobufCMessage *reply = NULL;
    enum kvctl_exit code = kvctl_call(k, "GetConfig", &request.base, &reply);
    if (code != KVCTL_OK)
        return code;
    const Kvtier__V1__Config *config = KVCTL_AS(Kvtier__V1__Config, reply);
    kvctl_rows_begin(&rows, &k->style, "options", columns);
    for (size_t i = 0; i < config->n_options; i++) {
        if (key_wanted(config->options[i]->key, wanted))
            kvctl_rows_add(&rows, kvctl_message_json(&config->options[i]->base));
    }
    if (rows.n == 0 && wanted != NULL) {
        kvctl_rows_drop(&rows);
        code = kvctl_fail(KVCTL_NOT_FOUND,
                          "there is no config key \"%s\"; 'kvctl config get' lists "
                          "all",
                          wanted);
    } else if (!kvctl_rows_end(&rows)) {
        code = KVCTL_FAILED;
    }
    protobuf_c_message_free_unpacked(reply, NULL);
    return code;
}

enum kvctl_exit kvctl_run_config(struct kvctl *k, int argc, char **argv)
{
    if (strcmp(argv[0], "get") != 0)
        return kvctl_fail(KVCTL_USAGE,
                          "config: \"%s\" is not get; to change a key, edit the file "
                          "and send SIGHUP",
                          argv[0]);
    return options_print(k, argc > 1 ? argv[1] : NULL);
}

enum kvctl_exit kvctl_run_log_level(struct kvctl *k, int argc, char **argv)
{
    Kvtier__V1__SetLogLevelRequest request = KVTIER__V1__SET_LOG_LEVEL_REQUEST__INIT;
    static const char *const names[] = {"error", "warn", "info", "debug", "trace"};
    ProtobufCMessage *reply = NULL;
    unsigned i = 0;
    if (argc == 0)
        return options_print(k, "log.level");
    while (i < sizeof(names) / sizeof(names[0]) && strcmp(argv[0], names[i]) != 0)
        i++;
    if (i == sizeof(names) / sizeof(names[0]))
        return kvctl_fail(KVCTL_USAGE,
                          "log-level: \"%s\" is none of error, warn, info, debug, "
                          "trace",
                          argv[0]);
    request.level = (Kvtier__V1__LogLevel)(KVTIER__V1__LOG_LEVEL__LOG_LEVEL_ERROR + (int)i);
    enum kvctl_exit code = kvctl_call(k, "SetLogLevel", &request.base, &reply);
    if (code != KVCTL_OK)
        return code;
    json_t *json = kvctl_message_json(reply);
    (void)json_object_set_new(json, "level", json_string(names[i]));
    protobuf_c_message_free_unpacked(reply, NULL);
    if (!kvctl_object_print(&k->style, json))
        code = KVCTL_FAILED;
    json_decref(json);
    return code;
}
