/* SPDX-License-Identifier: Apache-2.0 */
/* Values as people read them, and YAML that reads back as what it was. */
#include "output.h"

#include <check.h>
#include <string.h>
#include <unistd.h>
#include <yaml.h>

static const struct {
    const char *name;
    double value;
    bool real;
    const char *text;
} values[] = {
    {"used_bytes", 0, false, "0 B"},
    {"used_bytes", 999, false, "999 B"},
    {"used_bytes", 1000, false, "0.98 KiB"},
    {"used_bytes", 1536 * 1024, false, "1.50 MiB"},
    {"used_bytes", 68719476736.0, false, "64.0 GiB"},
    {"read_bytes_per_s", 3.5e9, true, "3.26 GiB/s"},
    {"took_ms", 0, false, "0s"},
    {"took_ms", 1, false, "1.0ms"},
    {"took_ms", 90000, false, "1.5m"},
    {"took_ms", 86400000.0 * 30, false, "30d"},
    {"wait_ns", 12, false, "12ns"},
    {"hit_ratio", 0.5, true, "50.0 %"},
    {"n_chunks", 1234567, false, "1234567"},
    {"lookups_per_s", 12.25, true, "12.2"},
};

START_TEST(units)
{
    char text[KVCTL_TEXT_BYTES];
    json_t *value =
        values[_i].real ? json_real(values[_i].value) : json_integer((json_int_t)values[_i].value);
    kvctl_text(values[_i].name, value, text);
    ck_assert_str_eq(text, values[_i].text);
    json_decref(value);
}
END_TEST

static void text_expect(json_t *value, const char *expected)
{
    char text[KVCTL_TEXT_BYTES];
    kvctl_text("name", value, text);
    ck_assert_str_eq(text, expected);
    json_decref(value);
}

START_TEST(other_values)
{
    text_expect(NULL, "-");
    text_expect(json_null(), "-");
    text_expect(json_true(), "yes");
    text_expect(json_string(""), "-");
    /* What a client calls itself must not steer a terminal. */
    text_expect(json_string("a\033[2Jb\nc\x7f"), "a?[2Jb?c?");
    text_expect(json_pack("[s, s]", "host", "nvme"), "host,nvme");
    text_expect(json_array(), "-");
    text_expect(json_pack("[{}, {}]"), "2");
}
END_TEST

/* Strings that a careless writer of YAML makes into something else. */
START_TEST(yaml_reads_back)
{
    static const char *const strings[] = {"",     "true", "null", "12",    "0x10", "1e3", " a ",
                                          "a: b", "- a",  "#c",   "~",     "\"",   "'",   "a\nb",
                                          "\t",   "%x",   "@y",   "*z",    "&a",   "[",   "key ",
                                          "No",   ".5",   "-",    "plain", "a/b c"};
    enum { N = sizeof(strings) / sizeof(strings[0]) };
    FILE *file = tmpfile();
    yaml_parser_t parser;
    yaml_document_t document;
    ck_assert_ptr_nonnull(file);
    int saved = dup(STDOUT_FILENO);
    fflush(stdout);
    ck_assert_int_ge(dup2(fileno(file), STDOUT_FILENO), 0);
    struct kvctl_yaml *yaml = kvctl_yaml_begin("strings");
    ck_assert_ptr_nonnull(yaml);
    for (int i = 0; i < N; i++) {
        json_t *row = json_pack("{s:s}", "s", strings[i]);
        kvctl_yaml_add(yaml, row);
        json_decref(row);
    }
    kvctl_yaml_end(yaml);
    fflush(stdout);
    dup2(saved, STDOUT_FILENO);
    close(saved);
    rewind(file);
    ck_assert_int_eq(yaml_parser_initialize(&parser), 1);
    yaml_parser_set_input_file(&parser, file);
    ck_assert_int_eq(yaml_parser_load(&parser, &document), 1);
    const yaml_node_t *top = yaml_document_get_root_node(&document);
    const yaml_node_t *list =
        yaml_document_get_node(&document, top->data.mapping.pairs.start->value);
    ck_assert_int_eq(list->data.sequence.items.top - list->data.sequence.items.start, N);
    for (int i = 0; i < N; i++) {
        const yaml_node_t *row =
            yaml_document_get_node(&document, list->data.sequence.items.start[i]);
        const yaml_node_t *s =
            yaml_document_get_node(&document, row->data.mapping.pairs.start->value);
        ck_assert_str_eq((const char *)s->data.scalar.value, strings[i]);
        if (strcmp(strings[i], "plain") != 0 && strcmp(strings[i], "a/b c") != 0)
            ck_assert_int_ne(s->data.scalar.style, YAML_PLAIN_SCALAR_STYLE);
    }
    yaml_document_delete(&document);
    yaml_parser_delete(&parser);
    fclose(file);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("output");
    TCase *tcase = tcase_create("output");
    tcase_add_loop_test(tcase, units, 0, (int)(sizeof(values) / sizeof(values[0])));
    tcase_add_test(tcase, other_values);
    tcase_add_test(tcase, yaml_reads_back);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_tap(runner, "-");
    srunner_run_all(runner, CK_SILENT);
    int n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_failed == 0 ? 0 : 1;
}
