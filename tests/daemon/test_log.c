/* SPDX-License-Identifier: Apache-2.0 */
#include "kvt/log.h"

#include <check.h>
#include <jansson.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static FILE *captured;

/* Each test runs in a process of its own, so stderr need not be put back. */
static void setup(void)
{
    captured = tmpfile();
    ck_assert_ptr_nonnull(captured);
    ck_assert_int_ge(dup2(fileno(captured), STDERR_FILENO), 0);
}

static void teardown(void)
{
    fclose(captured);
}

static char *line_read(void)
{
    static char line[16384];
    return fgets(line, sizeof(line), captured);
}

START_TEST(text_is_one_clean_line)
{
    rewind(captured);
    kvt_log_setup(KVT_LOG_INFO, KVT_LOG_TEXT);
    kvt_log(KVT_LOG_DEBUG, "not seen");
    kvt_log(KVT_LOG_WARN, "a sentence name=%s", "x\n\x1b[31my");
    rewind(captured);
    char *line = line_read();
    ck_assert_ptr_nonnull(line);
    ck_assert_ptr_nonnull(strstr(line, "Z warn  a sentence name=x??[31my\n"));
    ck_assert_ptr_null(line_read());
}
END_TEST

static const char *member(const json_t *object, const char *key)
{
    const char *value = json_string_value(json_object_get(object, key));
    ck_assert_msg(value != NULL, "no %s", key);
    return value;
}

START_TEST(json_is_an_object_with_the_pairs)
{
    kvt_log_setup(KVT_LOG_TRACE, KVT_LOG_JSON);
    kvt_log(KVT_LOG_ERROR, "it is \"so\" = bad path=%s n=%d cause=%s", "/a b", 7, "no\xffhow\n");
    rewind(captured);
    char *line = line_read();
    ck_assert_ptr_nonnull(line);
    json_t *object = json_loads(line, 0, NULL);
    ck_assert_msg(object != NULL, "%s", line);
    ck_assert_str_eq(member(object, "level"), "error");
    ck_assert_str_eq(member(object, "msg"), "it is \"so\" = bad");
    ck_assert_str_eq(member(object, "path"), "/a b");
    ck_assert_str_eq(member(object, "n"), "7");
    ck_assert_str_eq(member(object, "cause"), "no\u00ffhow\n");
    json_decref(object);
}
END_TEST

START_TEST(long_text_is_cut)
{
    static char text[100000];
    memset(text, '"', sizeof(text) - 1);
    kvt_log_setup(KVT_LOG_INFO, KVT_LOG_JSON);
    kvt_log(KVT_LOG_INFO, "%s", text);
    rewind(captured);
    json_t *object = json_loads(line_read(), 0, NULL);
    ck_assert_ptr_nonnull(object);
    ck_assert_uint_eq(strlen(member(object, "msg")), 1023);
    json_decref(object);
}
END_TEST

START_TEST(a_site_that_floods_is_limited)
{
    unsigned n_lines = 0;
    kvt_log_setup(KVT_LOG_INFO, KVT_LOG_TEXT);
    for (int i = 0; i < 1000; i++)
        kvt_log(KVT_LOG_INFO, "flood i=%d", i);
    kvt_log(KVT_LOG_INFO, "another site");
    rewind(captured);
    char *line = NULL;
    for (char *next = line_read(); next != NULL; next = line_read(), n_lines++)
        line = next;
    ck_assert_uint_ge(n_lines, 11);
    ck_assert_uint_le(n_lines, 100);
    ck_assert_ptr_nonnull(strstr(line, "another site"));
}
END_TEST

START_TEST(what_was_suppressed_is_counted)
{
    static struct kvt_log_site site;
    unsigned n_lines = 0, n_suppressed = 0;
    kvt_log_setup(KVT_LOG_INFO, KVT_LOG_TEXT);
    for (int i = 0; i < 1000; i++)
        kvt_log_write(&site, KVT_LOG_INFO, "flood i=%d", i);
    atomic_store(&site.window_ns, 0); /* a second later */
    kvt_log_write(&site, KVT_LOG_INFO, "after the flood");
    rewind(captured);
    for (char *line = line_read(); line != NULL; line = line_read(), n_lines++) {
        const char *count = strstr(line, "suppressed=");
        if (count != NULL)
            n_suppressed += (unsigned)strtoul(count + strlen("suppressed="), NULL, 10);
    }
    ck_assert_uint_gt(n_suppressed, 0);
    ck_assert_uint_eq(n_lines + n_suppressed, 1001);
}
END_TEST

START_TEST(names_are_parsed)
{
    enum kvt_log_level level = KVT_LOG_INFO;
    enum kvt_log_format format = KVT_LOG_TEXT;
    ck_assert(kvt_log_level_parse("trace", &level));
    ck_assert_int_eq(level, KVT_LOG_TRACE);
    ck_assert(!kvt_log_level_parse("loud", &level));
    ck_assert(kvt_log_format_parse("json", &format));
    ck_assert_int_eq(format, KVT_LOG_JSON);
    ck_assert(!kvt_log_format_parse("", &format));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("log");
    TCase *tcase = tcase_create("log");
    tcase_set_timeout(tcase, 60);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, text_is_one_clean_line);
    tcase_add_test(tcase, json_is_an_object_with_the_pairs);
    tcase_add_test(tcase, long_text_is_cut);
    tcase_add_test(tcase, a_site_that_floods_is_limited);
    tcase_add_test(tcase, what_was_suppressed_is_counted);
    tcase_add_test(tcase, names_are_parsed);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_tap(runner, "-");
    srunner_run_all(runner, CK_SILENT);
    int n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_failed == 0 ? 0 : 1;
}
