/* SPDX-License-Identifier: Apache-2.0 */
#include "kvt/config.h"
#include "kvt/units.h"
#include "kvt/util.h"

#include <check.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

struct disk {
    char path[32];
    uint64_t bytes;
};

struct sample {
    char name[16];
    uint64_t size;
    uint64_t wait_ns;
    uint64_t budget;
    uint32_t depth;
    uint32_t mode;
    uint32_t color;
    bool strict;
    struct disk disks[2];
    uint32_t n_disks;
};

static const struct kvt_config_field disk_fields[] = {
    KVT_FIELD(STR, struct disk, path, "path", "", 0, 0, "where"),
    KVT_FIELD(BYTES, struct disk, bytes, "bytes", "1GiB", 4096, KVT_TIB, "how much"),
    {0},
};

static const struct kvt_config_field fields[] = {
    KVT_FIELD(STR, struct sample, name, "name", "none", 0, 0, "a name"),
    KVT_FIELD(BYTES, struct sample, size, "host.size", "64MiB", KVT_MIB, KVT_TIB, "a size"),
    KVT_FIELD(TIME, struct sample, wait_ns, "host.wait", "250ms", 0, 60 * KVT_NS_PER_S, "a time"),
    KVT_FIELD(BYTES, struct sample, budget, "host.budget", "auto", KVT_MIB, KVT_TIB, "a budget"),
    KVT_FIELD(U32, struct sample, depth, "nvme.depth", "8", 1, 64, "a number"),
    KVT_FIELD(MODE, struct sample, mode, "nvme.mode", "0660", 0, 0777, "permissions"),
    KVT_FIELD_ENUM(struct sample, color, "nvme.color", "green", "red|green|blue", "a choice"),
    KVT_FIELD(BOOL, struct sample, strict, "nvme.strict", "true", 0, 0, "a flag"),
    KVT_FIELD_LIST(struct sample, disks, n_disks, "nvme.disks", disk_fields, "disks"),
    {0},
};

struct messages {
    char text[16384];
};

static void collect(void *arg, const char *msg)
{
    struct messages *messages = arg;
    size_t n = strlen(messages->text);
    snprintf(messages->text + n, sizeof(messages->text) - n, "%s\n", msg);
}

static unsigned read_yaml(struct sample *sample, const char *text, struct messages *messages)
{
    messages->text[0] = '\0';
    kvt_config_defaults(fields, sample);
    return kvt_config_yaml(fields, sample, text, strlen(text), "f.yaml", NULL, collect, messages);
}

START_TEST(good_file_is_read)
{
    struct sample s;
    struct messages m;
    unsigned n = read_yaml(&s,
                           "name: \"x y\"\nhost:\n  size: 3GiB\n  wait: 2 s\n  budget: auto\n"
                           "nvme: {depth: 64, mode: 0600, color: blue, strict: off,\n"
                           "  disks: [{path: /a}, {path: /b, bytes: 2 MiB}]}\n",
                           &m);
    ck_assert_msg(n == 0, "%s", m.text);
    ck_assert_str_eq(s.name, "x y");
    ck_assert_uint_eq(s.size, 3 * KVT_GIB);
    ck_assert_uint_eq(s.wait_ns, 2 * KVT_NS_PER_S);
    ck_assert_uint_eq(s.budget, 0);
    ck_assert_uint_eq(s.depth, 64);
    ck_assert_uint_eq(s.mode, 0600);
    ck_assert_uint_eq(s.color, 2);
    ck_assert(!s.strict);
    ck_assert_uint_eq(s.n_disks, 2);
    ck_assert_str_eq(s.disks[0].path, "/a");
    ck_assert_uint_eq(s.disks[0].bytes, KVT_GIB);
    ck_assert_uint_eq(s.disks[1].bytes, 2 * KVT_MIB);
}
END_TEST

START_TEST(empty_file_is_the_defaults)
{
    static const char *const texts[] = {"", "# nothing\n", "---\n", "host:\nnvme:\n", "{}"};
    struct sample s;
    struct messages m;
    unsigned n = read_yaml(&s, texts[_i], &m);
    ck_assert_msg(n == 0, "%s", m.text);
    ck_assert_uint_eq(s.size, 64 * KVT_MIB);
    ck_assert_uint_eq(s.n_disks, 0);
}
END_TEST

static const struct {
    const char *yaml;
    const char *says[3];
} bad[] = {
    {"hots:\n  size: 1MiB\n", {"f.yaml:2: hots: unknown key", "nearest known one is host"}},
    {"host:\n  sise: 1MiB\n",
     {"f.yaml:2: host.sise: unknown key; the nearest known one is "
      "host.size"}},
    {"depth: 3\n", {"f.yaml:1: depth: unknown key; the nearest known one is nvme.depth"}},
    {"host: {size: 64MB}\n", {"host.size: \"64MB\" is not understood", "KiB"}},
    {"host: {size: 1KiB}\n", {"host.size: 1KiB is out of range; give 1MiB to 1TiB"}},
    {"host: {wait: 5}\n", {"host.wait: \"5\" is not understood", "ms"}},
    {"host: {wait: 99999999999999999999s}\n", {"host.wait: "}},
    {"nvme: {depth: 65}\n", {"nvme.depth: 65 is out of range; give 1 to 64 (default 8)"}},
    {"nvme: {depth: 0x8}\n", {"not understood"}},
    {"nvme: {depth: auto}\n", {"not understood"}},
    {"nvme: {mode: 0999}\n", {"octal"}},
    {"nvme: {mode: 7777}\n", {"out of range; give 0 to 0777"}},
    {"nvme: {color: pink}\n", {"\"pink\" is not one of red|green|blue"}},
    {"nvme: {strict: maybe}\n", {"give true or false"}},
    {"name: 0123456789abcdef\n", {"name: longer than 15 bytes"}},
    {"name:\n", {"f.yaml:1: name: has no value"}},
    {"name: a\nname: b\n", {"f.yaml:2: name: given twice"}},
    {"name: [a]\n", {"name: takes one value"}},
    {"host: 5\n", {"host: holds keys, not a value"}},
    {"host: [5]\n", {"host: takes keys with values"}},
    {"nvme: {disks: {path: /a}}\n", {"nvme.disks: takes a list"}},
    {"nvme: {disks: [/a]}\n", {"nvme.disks.0: each element"}},
    {"nvme: {disks: [{path: a}, {path: b}, {path: c}]}\n", {"at most 2 elements"}},
    {"nvme: {disks: [{pth: a}]}\n", {"nvme.disks.0.pth: unknown key", "nvme.disks.0.path"}},
    {"- a\n", {"takes keys with values"}},
    {"just text\n", {"KEY: VALUE"}},
    {"a: [b\n", {"f.yaml:", "not YAML"}},
    {"name: &x a\nhost: *x\n", {"aliases"}},
    {"*x : a\n", {"aliases"}},
    {"? [a, b]\n: c\n", {"a key must be plain text"}},
    {"name: a\n---\nname: b\n", {"second document"}},
    {"x: 1\nhost: {size: 1}\nnvme: {depth: no}\n",
     {"f.yaml:1: x", "f.yaml:2: host.size", "f.yaml:3: nvme.depth"}},
};

START_TEST(bad_file_is_named)
{
    struct sample s;
    struct messages m;
    unsigned n = read_yaml(&s, bad[_i].yaml, &m);
    ck_assert_uint_gt(n, 0);
    for (unsigned i = 0; i < 3 && bad[_i].says[i] != NULL; i++)
        ck_assert_msg(strstr(m.text, bad[_i].says[i]) != NULL, "wanted \"%s\" in:\n%s",
                      bad[_i].says[i], m.text);
}
END_TEST

START_TEST(hostile_text_is_bounded)
{
    static char text[1 << 20];
    struct sample s;
    struct messages m;
    memset(text, '[', sizeof(text) - 1);
    ck_assert_uint_gt(read_yaml(&s, text, &m), 0);
    for (size_t i = 0; i + 5 < sizeof(text); i += 5)
        memcpy(text + i, "k: v\n", 5);
    ck_assert_uint_ge(read_yaml(&s, text, &m), 100);
    ck_assert_ptr_nonnull(strstr(m.text, "more faults follow"));
}
END_TEST

START_TEST(set_takes_the_same_parser)
{
    struct sample s;
    struct messages m = {.text = ""};
    kvt_config_defaults(fields, &s);
    ck_assert_uint_eq(
        kvt_config_set(fields, &s, "host.size=2MiB", KVT_CONFIG_ARGUMENT, NULL, collect, &m), 0);
    ck_assert_uint_eq(kvt_config_set(fields, &s, "nvme.disks.0.path=/x=y", KVT_CONFIG_ARGUMENT,
                                     NULL, collect, &m),
                      0);
    ck_assert_uint_eq(s.size, 2 * KVT_MIB);
    ck_assert_str_eq(s.disks[0].path, "/x=y");
    ck_assert_uint_eq(s.disks[0].bytes, KVT_GIB);
    static const char *const wrong[] = {
        "host.size",           "=1",  "host=1",       "hst.size=1MiB",
        "nvme.disks.2.path=x", "x=1", "nvme.disks=1", "host.size="};
    for (unsigned i = 0; i < KVT_ARRAY_LEN(wrong); i++)
        ck_assert_msg(
            kvt_config_set(fields, &s, wrong[i], KVT_CONFIG_ARGUMENT, NULL, collect, &m) == 1, "%s",
            wrong[i]);
}
END_TEST

START_TEST(what_is_printed_reads_back)
{
    struct sample a;
    struct sample b;
    struct messages m;
    char *text;
    size_t bytes;
    ck_assert_uint_eq(read_yaml(&a,
                                "name: \"q\\\"\\\\\\x01\"\nhost: {size: 1537KiB, wait: 50s}\n"
                                "nvme: {color: red, disks: [{path: 'a: b'}, {bytes: 8KiB}]}\n",
                                &m),
                      0);
    FILE *out = open_memstream(&text, &bytes);
    kvt_config_print(fields, &a, out);
    fclose(out);
    ck_assert_msg(read_yaml(&b, text, &m) == 0, "%s in\n%s", m.text, text);
    ck_assert_str_eq(a.name, b.name);
    ck_assert_uint_eq(a.size, b.size);
    ck_assert_uint_eq(a.wait_ns, b.wait_ns);
    ck_assert_uint_eq(a.color, b.color);
    ck_assert_uint_eq(b.n_disks, 2);
    ck_assert_str_eq(a.disks[0].path, b.disks[0].path);
    ck_assert_uint_eq(b.disks[1].bytes, 8192);
    free(text);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("config");
    TCase *tcase = tcase_create("config");
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, good_file_is_read);
    tcase_add_loop_test(tcase, empty_file_is_the_defaults, 0, 5);
    tcase_add_loop_test(tcase, bad_file_is_named, 0, (int)KVT_ARRAY_LEN(bad));
    tcase_add_test(tcase, hostile_text_is_bounded);
    tcase_add_test(tcase, set_takes_the_same_parser);
    tcase_add_test(tcase, what_is_printed_reads_back);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_tap(runner, "-");
    srunner_run_all(runner, CK_SILENT);
    int n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_failed == 0 ? 0 : 1;
}
