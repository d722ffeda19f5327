/* SPDX-License-Identifier: Apache-2.0 */
#include <check.h>
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <rocksdb/c.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <xxhash.h>

#include "kvt/meta.h"
#include "kvt/util.h"

#define N_MAX 20000u

static char dir[64];

struct seen {
    unsigned n_ns, n_slabs, n_records, n_batches;
    int phase; /* kinds come in order */
    struct kvt_meta_record records[N_MAX];
    uint64_t slot_bytes[64];
    struct kvt_ns_desc desc;
    uint64_t since;
};
static struct seen seen;

static void on_ns(void *arg, uint32_t ns, uint64_t since, const struct kvt_ns_desc *desc)
{
    struct seen *s = arg;
    ck_assert_int_eq(s->phase, 0);
    ck_assert_uint_lt(ns, 1000);
    s->desc = *desc;
    s->since = since;
    s->n_ns++;
}

static void on_slab(void *arg, uint32_t slab, uint64_t slot_bytes)
{
    struct seen *s = arg;
    ck_assert_int_le(s->phase, 1);
    s->phase = 1;
    ck_assert_uint_lt(slab, 64);
    s->slot_bytes[slab] = slot_bytes;
    s->n_slabs++;
}

static void on_records(void *arg, const struct kvt_meta_record *records, unsigned n)
{
    struct seen *s = arg;
    s->phase = 2;
    ck_assert_uint_ge(n, 1);
    ck_assert_uint_le(n, 256);
    s->n_batches++;
    for (unsigned i = 0; i < n; i++) {
        ck_assert_uint_lt(records[i].slot, N_MAX);
        s->records[records[i].slot] = records[i];
        s->n_records++;
    }
}

static const struct kvt_meta_visitor visitor = {
    .arg = &seen, .ns = on_ns, .slab = on_slab, .records = on_records};

static enum kvt_status try_open(struct kvt_meta **meta_p, uint8_t id[16], uint64_t *n_bad_p,
                                struct kvt_error *err)
{
    memset(&seen, 0, sizeof(seen));
    return kvt_meta_open(dir, id, &visitor, meta_p, n_bad_p, err);
}

static struct kvt_meta *must_open(uint8_t id[16])
{
    struct kvt_meta *meta = NULL;
    struct kvt_error err = {0};
    uint64_t n_bad = 99;
    enum kvt_status status = try_open(&meta, id, &n_bad, &err);
    ck_assert_msg(status == KVT_OK, "%s", err.msg);
    ck_assert_uint_eq(n_bad, 0);
    return meta;
}

static struct kvt_meta_record record_make(uint32_t slot, uint64_t generation)
{
    struct kvt_meta_record record;
    memset(&record, 0, sizeof(record));
    record.slot = slot;
    record.ns = slot % 7;
    record.digest = slot * UINT64_C(0x9e3779b97f4a7c15);
    record.generation = generation;
    record.parent_slot = slot == 0 ? KVT_SLOT_NONE : slot - 1;
    record.parent_tag = slot ^ 0x55aa;
    for (unsigned i = 0; i < KVT_KEY_BYTES; i++)
        record.key.bytes[i] = (uint8_t)(slot >> (i % 4) * 8) ^ (uint8_t)i;
    return record;
}

static void wait_done(struct kvt_meta *meta, uint64_t *next_token_p, uint64_t until)
{
    while (*next_token_p < until) {
        struct kvt_meta_done done[100];
        struct pollfd fd = {.fd = kvt_meta_event_fd(meta), .events = POLLIN};
        ck_assert_int_eq(poll(&fd, 1, 20000), 1);
        unsigned n = kvt_meta_poll(meta, done, 100);
        for (unsigned i = 0; i < n; i++, (*next_token_p)++) {
            ck_assert_uint_eq(done[i].token, *next_token_p); /* in order, each once */
            ck_assert_int_eq(done[i].status, KVT_OK);
        }
    }
}

/* Slots 0..n-1, twice each, every third deleted, then one slab and one namespace. */
static void fill(struct kvt_meta *meta, unsigned n)
{
    struct kvt_ns_desc desc;
    uint64_t token = 0;
    uint64_t n_done = 0;
    memset(&desc, 0x41, sizeof(desc));
    for (uint64_t generation = 1; generation <= 2; generation++) {
        for (uint32_t slot = 0; slot < n; slot++, token++) {
            struct kvt_meta_record record = record_make(slot, generation);
            while (!kvt_meta_put(meta, &record, token))
                wait_done(meta, &n_done, n_done + 1);
        }
    }
    for (uint32_t slot = 0; slot < n; slot += 3, token++) {
        while (!kvt_meta_del(meta, slot, token))
            wait_done(meta, &n_done, n_done + 1);
    }
    wait_done(meta, &n_done, token);
    ck_assert(kvt_meta_put_slab(meta, 5, 4096, token++));
    ck_assert(kvt_meta_put_slab(meta, 5, 8192, token++));
    desc.salt[0] = 'B';
    ck_assert(kvt_meta_put_ns(meta, 3, 7, &desc, token++));
    desc.salt[0] = 'A';
    ck_assert(kvt_meta_put_ns(meta, 3, 8, &desc, token++)); /* in its place */
    wait_done(meta, &n_done, token);
}

static void check_filled(unsigned n)
{
    struct kvt_ns_desc desc;
    memset(&desc, 0x41, sizeof(desc));
    ck_assert_uint_eq(seen.n_records, n - (n + 2) / 3);
    ck_assert_uint_le(seen.n_batches, seen.n_records / 256 + 1);
    for (uint32_t slot = 0; slot < n; slot++) {
        struct kvt_meta_record want = record_make(slot, 2);
        if (slot % 3 == 0)
            memset(&want, 0, sizeof(want));
        ck_assert_mem_eq(&seen.records[slot], &want, sizeof(want));
    }
    ck_assert_uint_eq(seen.n_slabs, 1);
    ck_assert_uint_eq(seen.slot_bytes[5], 8192);
    ck_assert_uint_eq(seen.n_ns, 1);
    ck_assert_mem_eq(&seen.desc, &desc, sizeof(desc));
    ck_assert_uint_eq(seen.since, 8);
}

static void setup(void)
{
    snprintf(dir, sizeof(dir), "/tmp/kvt-meta-test-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
}

static void for_each_file(void (*fn)(const char *path))
{
    struct dirent *entry;
    DIR *d = opendir(dir);
    while (d != NULL && (entry = readdir(d)) != NULL) {
        char path[512];
        if (entry->d_name[0] == '.')
            continue;
        snprintf(path, sizeof(path), "%s/%s", dir, entry->d_name);
        fn(path);
    }
    if (d != NULL)
        closedir(d);
}

static void remove_one(const char *path)
{
    unlink(path);
}

static void teardown(void)
{
    for_each_file(remove_one);
    rmdir(dir);
}

START_TEST(replay_is_what_was_put)
{
    static const uint8_t zero[16];
    uint8_t id[16];
    uint8_t mine[16] = "0123456789abcde";
    ck_assert_uint_eq(kvt_meta_records_about(dir), 0);
    struct kvt_meta *meta = must_open(id);
    ck_assert_mem_eq(id, zero, 16);
    ck_assert_int_eq(kvt_meta_reset(meta, mine), KVT_OK);
    fill(meta, 10000);
    kvt_meta_close(meta);
    uint64_t n_about = kvt_meta_records_about(dir);
    meta = must_open(id);
    ck_assert_mem_eq(id, mine, 16);
    check_filled(10000);
    ck_assert_uint_ge(n_about, seen.n_records / 2); /* an estimate */
    ck_assert_uint_le(n_about, 3 * seen.n_records);
    ck_assert_int_eq(kvt_meta_reset(meta, zero), KVT_OK); /* all of it goes */
    kvt_meta_close(meta);
    meta = must_open(id);
    ck_assert_mem_eq(id, zero, 16);
    ck_assert_uint_eq(seen.n_records + seen.n_slabs + seen.n_ns, 0);
    kvt_meta_close(meta);
}
END_TEST

START_TEST(answered_changes_survive_a_kill)
{
    uint8_t id[16];
    int pipe_fds[2];
    ck_assert_int_eq(pipe(pipe_fds), 0);
    pid_t pid = fork();
    if (pid == 0) {
        struct kvt_meta *meta = must_open(id);
        fill(meta, 3000);
        ck_assert_int_eq(write(pipe_fds[1], "x", 1), 1);
        for (;;)
            pause();
    }
    char byte;
    ck_assert_int_eq(read(pipe_fds[0], &byte, 1), 1);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    struct kvt_meta *meta = must_open(id);
    check_filled(3000);
    kvt_meta_close(meta);
}
END_TEST

START_TEST(close_writes_what_is_queued)
{
    uint8_t id[16];
    struct kvt_meta *meta = must_open(id);
    for (uint32_t slot = 0; slot < 5000; slot++) {
        struct kvt_meta_record record = record_make(slot, 1);
        ck_assert(kvt_meta_put(meta, &record, slot));
    }
    kvt_meta_close(meta);
    meta = must_open(id);
    ck_assert_uint_eq(seen.n_records, 5000);
    kvt_meta_close(meta);
}
END_TEST

START_TEST(a_full_ring_says_so)
{
    uint8_t id[16];
    struct kvt_meta *meta = must_open(id);
    struct kvt_meta_record record = record_make(1, 1);
    struct kvt_ns_desc desc = {.model = "m"};
    uint64_t n = 0;
    /* Nothing is polled: what is written still counts until it was handed out. */
    while (kvt_meta_put(meta, &record, n))
        ck_assert_uint_lt(++n, 1000000);
    ck_assert_uint_ge(n, 1024);
    ck_assert(!kvt_meta_del(meta, 1, n));
    ck_assert(!kvt_meta_put_slab(meta, 1, 4096, n));
    ck_assert(!kvt_meta_put_ns(meta, 1, 0, &desc, n));
    uint64_t n_done = 0;
    wait_done(meta, &n_done, n);
    for (uint64_t i = 0; i < 500; i++, n++) {
        while (!kvt_meta_put_ns(meta, (uint32_t)i, 0, &desc, n))
            wait_done(meta, &n_done, n_done + 1);
    }
    wait_done(meta, &n_done, n);
    kvt_meta_close(meta);
    must_open(id);
    ck_assert_uint_eq(seen.n_ns, 500);
}
END_TEST

static void raw_put(const char *key, size_t key_bytes, const char *value, size_t bytes)
{
    char *message = NULL;
    rocksdb_options_t *options = rocksdb_options_create();
    rocksdb_writeoptions_t *write_options = rocksdb_writeoptions_create();
    rocksdb_t *db = rocksdb_open(options, dir, &message);
    ck_assert_msg(message == NULL, "%s", message);
    rocksdb_put(db, write_options, key, key_bytes, value, bytes, &message);
    ck_assert_ptr_null(message);
    rocksdb_close(db);
    rocksdb_writeoptions_destroy(write_options);
    rocksdb_options_destroy(options);
}

START_TEST(junk_is_skipped_and_counted)
{
    uint8_t id[16];
    char junk[600];
    struct kvt_error err;
    uint64_t n_bad = 0;
    struct kvt_meta *meta = must_open(id);
    struct kvt_meta_record record = record_make(9, 1);
    uint64_t n_done = 0;
    ck_assert(kvt_meta_put(meta, &record, 0));
    wait_done(meta, &n_done, 1);
    kvt_meta_close(meta);
    memset(junk, 0x77, sizeof(junk));
    raw_put("r\0\0\0\1", 5, junk, 64); /* right length */
    raw_put("r\0\0\0\2", 5, junk, 63); /* wrong length */
    raw_put("r\0\0\0\3", 5, junk, 0);  /* empty */
    raw_put("r\0\0\0", 4, junk, 64);   /* short key */
    raw_put("r", 1, junk, 64);         /* no number */
    raw_put("s\0\0\0\1", 5, junk, 12);
    raw_put("n\0\0\0\1", 5, junk, 516);
    raw_put("n\0\0\0\2", 5, junk, 524);
    raw_put("n\0\0\0\1\1", 6, junk, 516);
    raw_put("zebra", 5, junk, 10); /* not ours: not looked at */
    ck_assert_int_eq(try_open(&meta, id, &n_bad, &err), KVT_OK);
    ck_assert_uint_eq(n_bad, 9);
    ck_assert_uint_eq(seen.n_records, 1);
    ck_assert_uint_eq(seen.n_slabs + seen.n_ns, 0);
    kvt_meta_close(meta);
}
END_TEST

/* Of stores that were written before numbers were used again. */
START_TEST(namespaces_of_old_stores_are_read)
{
    uint8_t id[16];
    struct kvt_ns_desc desc;
    char value[sizeof(desc) + 4];
    kvt_meta_close(must_open(id));
    memset(&desc, 0x41, sizeof(desc));
    memcpy(value, &desc, sizeof(desc));
    uint32_t sum = (uint32_t)XXH3_64bits_withSeed(&desc, sizeof(desc), 2);
    memcpy(value + sizeof(desc), &sum, sizeof(sum));
    raw_put("n\0\0\0\2", 5, value, sizeof(value));
    seen.since = 99;
    kvt_meta_close(must_open(id));
    ck_assert_uint_eq(seen.n_ns, 1);
    ck_assert_mem_eq(&seen.desc, &desc, sizeof(desc));
    ck_assert_uint_eq(seen.since, 0);
}
END_TEST

START_TEST(another_format_is_refused)
{
    uint8_t id[16];
    struct kvt_error err;
    struct kvt_meta *meta = must_open(id);
    uint64_t n_bad;
    kvt_meta_close(meta);
    raw_put("i\0\0\0\0", 5, "\2\0\0\0................", 20);
    ck_assert_int_eq(try_open(&meta, id, &n_bad, &err), KVT_ERR_VERSION);
    ck_assert_ptr_nonnull(strstr(err.msg, "move it away"));
    raw_put("i\0\0\0\0", 5, "\1\0\0\0..", 6);
    ck_assert_int_eq(try_open(&meta, id, &n_bad, &err), KVT_ERR_CORRUPT);
}
END_TEST

START_TEST(a_second_opener_is_refused)
{
    uint8_t id[16];
    struct kvt_error err;
    uint64_t n_bad;
    struct kvt_meta *meta = must_open(id);
    struct kvt_meta *other = NULL;
    ck_assert_int_eq(try_open(&other, id, &n_bad, &err), KVT_ERR_BUSY);
    ck_assert_ptr_null(other);
    kvt_meta_close(meta);
}
END_TEST

static void damage_tables(const char *path)
{
    if (strstr(path, ".sst") == NULL)
        return;
    int fd = open(path, O_RDWR);
    ck_assert_int_eq(pwrite(fd, "rotten", 6, 2000), 6);
    close(fd);
}

static void remove_tables(const char *path)
{
    if (strstr(path, ".sst") != NULL)
        unlink(path);
}

static void cut_manifest(const char *path)
{
    if (strstr(path, "MANIFEST") != NULL)
        ck_assert_int_eq(truncate(path, 20), 0);
}

static void remove_manifest(const char *path)
{
    if (strstr(path, "MANIFEST") != NULL)
        unlink(path);
}

static void junk_current(const char *path)
{
    if (strstr(path, "CURRENT") != NULL) {
        int fd = open(path, O_RDWR | O_TRUNC);
        ck_assert_int_eq(write(fd, "\377\376", 2), 2);
        close(fd);
    }
}

static void (*const damages[])(const char *path) = {damage_tables, remove_tables, cut_manifest,
                                                    remove_manifest, junk_current};

START_TEST(a_damaged_directory_is_named)
{
    uint8_t id[16];
    struct kvt_error err = {0};
    uint64_t n_bad;
    struct kvt_meta *meta = must_open(id);
    fill(meta, 3000);
    kvt_meta_close(meta);
    for_each_file(damages[_i]);
    ck_assert_msg(try_open(&meta, id, &n_bad, &err) == KVT_ERR_CORRUPT, "%d %s", err.status,
                  err.msg);
    ck_assert_ptr_nonnull(strstr(err.msg, "move the directory away"));
    /* And moving it away is the way out. */
    for_each_file(remove_one);
    rmdir(dir);
    meta = must_open(id);
    ck_assert_uint_eq(seen.n_records, 0);
    kvt_meta_close(meta);
}
END_TEST

START_TEST(a_path_that_cannot_be_made_is_named)
{
    uint8_t id[16];
    struct kvt_error err = {0};
    struct kvt_meta *meta = NULL;
    uint64_t n_bad;
    ck_assert_int_eq(kvt_meta_open("/proc/none/meta", id, &visitor, &meta, &n_bad, &err),
                     KVT_ERR_IO);
    ck_assert_ptr_nonnull(strstr(err.msg, "/proc/none/meta"));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("meta");
    TCase *tcase = tcase_create("rocksdb");
    tcase_set_timeout(tcase, 60);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, replay_is_what_was_put);
    tcase_add_test(tcase, answered_changes_survive_a_kill);
    tcase_add_test(tcase, close_writes_what_is_queued);
    tcase_add_test(tcase, a_full_ring_says_so);
    tcase_add_test(tcase, junk_is_skipped_and_counted);
    tcase_add_test(tcase, namespaces_of_old_stores_are_read);
    tcase_add_test(tcase, another_format_is_refused);
    tcase_add_test(tcase, a_second_opener_is_refused);
    tcase_add_loop_test(tcase, a_damaged_directory_is_named, 0, (int)KVT_ARRAY_LEN(damages));
    tcase_add_test(tcase, a_path_that_cannot_be_made_is_named);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_tap(runner, "-");
    srunner_run_all(runner, CK_SILENT);
    int n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
