/* SPDX-License-Identifier: Apache-2.0 */
/* A config file from anybody: faults are told, and what is accepted prints as what it was. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon_config.h"
#include "fuzz.h"
#include "kvt/util.h"

static void ignore(void *arg, const char *msg)
{
    (void)arg;
    KVT_ASSERT(msg[0] != '\0');
}

static char *print(const struct daemon_config *config, size_t *bytes_p)
{
    char *text = NULL;
    FILE *out = open_memstream(&text, bytes_p);
    KVT_ASSERT(out != NULL);
    kvt_config_print(daemon_config_fields, config, out);
    fclose(out);
    return text;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static struct daemon_config config;
    static struct daemon_config again;
    size_t n_text;
    size_t n_text_again;
    char *copy = malloc(KVT_MAX(bytes, 1)); /* no NUL behind it to lean on */
    if (copy == NULL)
        return 0;
    memcpy(copy, data, bytes);
    memset(&config, 0, sizeof(config));
    kvt_config_defaults(daemon_config_fields, &config);
    unsigned n =
        kvt_config_yaml(daemon_config_fields, &config, copy, bytes, "fuzz", NULL, ignore, NULL);
    free(copy);
    if (n > 0)
        return 0;
    char *text = print(&config, &n_text);
    memset(&again, 0, sizeof(again));
    kvt_config_defaults(daemon_config_fields, &again);
    n = kvt_config_yaml(daemon_config_fields, &again, text, n_text, "printed", NULL, ignore, NULL);
    KVT_ASSERT(n == 0);
    char *text_again = print(&again, &n_text_again);
    KVT_ASSERT(n_text == n_text_again && memcmp(text, text_again, n_text) == 0);
    free(text);
    free(text_again);
    return 0;
}
