/* SPDX-License-Identifier: Apache-2.0 */
#include "doctor.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client.h"
#include "kvt/units.h"
#include "kvt/util.h"

static const char *const verdict_names[] = {"ok", "note", "warn", "FAIL"};

void doctor_add(struct doctor *d, enum doctor_verdict verdict, const char *remedy,
                const char *format, ...)
{
    char text[512];
    va_list ap;
    va_start(ap, format);
    vsnprintf(text, sizeof(text), format, ap);
    va_end(ap);
    d->n[verdict]++;
    (void)json_array_append_new(d->findings, json_pack("{s:s, s:s, s:s, s:s}", "check", d->check,
                                                       "verdict", verdict_names[verdict], "finding",
                                                       text, "remedy", remedy));
}

void doctor_run(struct doctor *d, const struct doctor_check *checks)
{
    for (; checks->name != NULL; checks++) {
        d->check = checks->name;
        checks->run(d);
    }
}

/* --- what checks read with ------------------------------------------------------------------- */

const char *doctor_config_text(const struct doctor *d, const char *key)
{
    const char *text = json_string_value(json_object_get(d->config, key));
    return text != NULL ? text : "";
}

uint64_t doctor_config_bytes(const struct doctor *d, const char *key)
{
    uint64_t value;
    const char *text = doctor_config_text(d, key);
    return kvt_bytes_parse(text, &value) || kvt_number_parse(text, &value) ? value : 0;
}

bool doctor_writable(const struct doctor *d, const char *path)
{
    char full[512];
    snprintf(full, sizeof(full), "%s%s", d->root, path);
    return access(full, W_OK) == 0;
}

static FILE *file_open(const struct doctor *d, const char *path)
{
    char full[512];
    snprintf(full, sizeof(full), "%s%s", d->root, path);
    return fopen(full, "re");
}

static bool line_get(FILE *file, char line[DOCTOR_LINE_BYTES])
{
    if (fgets(line, DOCTOR_LINE_BYTES, file) == NULL)
        return false;
    line[strcspn(line, "\n")] = '\0';
    return true;
}

bool doctor_line(const struct doctor *d, const char *path, char line[DOCTOR_LINE_BYTES])
{
    FILE *file = file_open(d, path);
    if (file == NULL)
        return false;
    bool ok = line_get(file, line);
    fclose(file);
    return ok;
}

bool doctor_number(const struct doctor *d, const char *path, uint64_t *value_p)
{
    char line[DOCTOR_LINE_BYTES];
    char *end;
    if (!doctor_line(d, path, line) || line[0] < '0' || line[0] > '9')
        return false;
    *value_p = strtoull(line, &end, 10);
    return true;
}

bool doctor_entry(const struct doctor *d, const char *path, const char *name,
                  char rest[DOCTOR_LINE_BYTES])
{
    char line[DOCTOR_LINE_BYTES];
    bool found = false;
    FILE *file = file_open(d, path);
    while (file != NULL && !found && line_get(file, line)) {
        size_t n = strlen(name);
        found = strncmp(line, name, n) == 0;
        if (found) {
            n += strspn(line + n, " \t");
            memmove(rest, line + n, strlen(line + n) + 1);
        }
    }
    if (file != NULL)
        fclose(file);
    return found;
}

void doctor_proc_path(const struct doctor *d, const char *name, char *path, size_t bytes)
{
    if (d->pid != 0)
        snprintf(path, bytes, "/proc/%d/%s", (int)d->pid, name);
    else
        snprintf(path, bytes, "/proc/self/%s", name);
}

/* --- the verb -------------------------------------------------------------------------------- */

static enum kvctl_color verdict_color(const char *verdict)
{
    static const enum kvctl_color colors[] = {KVCTL_GREEN, KVCTL_PLAIN, KVCTL_YELLOW, KVCTL_RED};
    for (size_t i = 0; i < KVT_ARRAY_LEN(colors); i++) {
        if (strcmp(verdict, verdict_names[i]) == 0)
            return colors[i];
    }
    return KVCTL_PLAIN;
}

static void table_print(const struct doctor *d, const struct kvctl_style *style)
{
    size_t i;
    json_t *finding;
    json_array_foreach(d->findings, i, finding)
    {
        const char *verdict = json_string_value(json_object_get(finding, "verdict"));
        const char *remedy = json_string_value(json_object_get(finding, "remedy"));
        printf("%s%-4s%s  %-11s %s\n", kvctl_color(style, verdict_color(verdict)), verdict,
               kvctl_color(style, KVCTL_PLAIN),
               json_string_value(json_object_get(finding, "check")),
               json_string_value(json_object_get(finding, "finding")));
        if (remedy[0] != '\0')
            printf("%18s-> %s\n", "", remedy);
    }
    printf("%u ok, %u notes, %u warnings, %u failures\n", d->n[DOCTOR_OK], d->n[DOCTOR_NOTE],
           d->n[DOCTOR_WARN], d->n[DOCTOR_FAIL]);
}

static bool rows_print(const struct doctor *d, const struct kvctl_style *style)
{
    static const struct kvctl_column none[] = {{NULL}};
    struct kvctl_rows rows;
    size_t i;
    json_t *finding;
    kvctl_rows_begin(&rows, style, "findings", none);
    json_array_foreach(d->findings, i, finding)
    {
        kvctl_rows_add(&rows, json_incref(finding));
    }
    return kvctl_rows_end(&rows);
}

enum kvctl_exit kvctl_run_doctor(struct kvctl *k, int argc, char **argv)
{
    struct doctor d = {
        .root = "",
        .k = k,
        .config_file = k->values[KVCTL_OPT_CONFIG],
        .findings = json_array(),
    };
    bool printed = true;
    (void)argc;
    (void)argv;
    doctor_run(&d, doctor_agent_checks);
    doctor_run(&d, doctor_machine_checks);
    doctor_run(&d, doctor_disk_checks);
    if (k->style.format == KVCTL_JSON || k->style.format == KVCTL_YAML)
        printed = rows_print(&d, &k->style);
    else
        table_print(&d, &k->style);
    json_decref(d.findings);
    json_decref(d.config);
    if (!printed)
        return KVCTL_FAILED;
    return d.n[DOCTOR_FAIL] > 0 ? KVCTL_BAD : KVCTL_OK;
}
