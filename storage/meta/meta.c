/* SPDX-License-Identifier: Apache-2.0 */
#include "kvt/meta.h"

#include <dirent.h>
#include <pthread.h>
#include <rocksdb/c.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "codec.h"
#include "db.h"

#include "kvt/gate.h"
#include "kvt/log.h"
#include "kvt/util.h"

/* Changes queued or written and not yet polled: a change that is accepted has a place in both
 * rings. Namespaces are big and rare, so their descriptors have a ring of their own. */
#define RING_N      8192u
#define NS_RING_N   64u
#define BATCH_MAX   1024u /* changes of one write batch: bounds how long one waits for another */
#define REPLAY_MAX  256u
#define ENTRY_BYTES (META_KEY_BYTES + META_RECORD_BYTES + 8) /* of a table, for each record */

struct change {
    enum meta_kind kind;
    bool is_delete;
    uint64_t token;
    uint64_t slot_bytes;           /* META_SLAB */
    struct kvt_meta_record record; /* its slot is also the number of a slab, a namespace, a delete;
                                      its generation a namespace's `since` */
};

struct kvt_meta {
    char *dir;
    rocksdb_options_t *options;
    rocksdb_t *db; /* the writer thread's while it runs; NULL: lost in a reset that failed */
    rocksdb_writeoptions_t *write_options;
    rocksdb_writebatch_t *batch;
    int event_fd;
    pthread_t thread;
    bool is_running;
    struct kvt_gate gate;
    _Atomic bool stop;
    struct change *changes;
    struct kvt_ns_desc *descs;
    struct kvt_meta_done *done;
    /* Counters never wrap back. Each is stored with release by its one writer and loaded with
     * acquire by the other side, which then sees the entries below it. */
    _Atomic uint64_t n_queued;
    _Atomic uint64_t n_written; /* = n of done */
    _Atomic uint64_t n_descs_written;
    uint64_t n_descs_queued; /* queueing thread's */
    uint64_t n_polled;       /* queueing thread's */
};

/* --- the writer ------------------------------------------------------------------------------ */

static void change_apply(struct kvt_meta *meta, const struct change *change, uint64_t *n_descs_p)
{
    char key[META_KEY_BYTES];
    char value[META_VALUE_MAX];
    uint32_t number = change->record.slot;
    size_t bytes = 0;
    meta_key_encode(change->kind, number, key);
    if (change->is_delete) {
        rocksdb_writebatch_delete(meta->batch, key, sizeof(key));
        return;
    }
    if (change->kind == META_NS)
        bytes = meta_ns_encode(number, change->record.generation,
                               &meta->descs[(*n_descs_p)++ % NS_RING_N], value);
    else if (change->kind == META_SLAB)
        bytes = meta_slab_encode(number, change->slot_bytes, value);
    else
        bytes = meta_record_encode(&change->record, value);
    rocksdb_writebatch_put(meta->batch, key, sizeof(key), value, bytes);
}

static enum kvt_status batch_write(struct kvt_meta *meta)
{
    char *message = NULL;
    if (meta->db == NULL)
        return KVT_ERR_IO;
    if (!meta_db_has_room(meta->dir, meta->db)) {
        kvt_log(KVT_LOG_ERROR, "metadata cannot be written, no space left; free some dir=%s",
                meta->dir);
        return KVT_ERR_NOSPACE;
    }
    rocksdb_write(meta->db, meta->write_options, meta->batch, &message);
    if (message == NULL)
        return KVT_OK;
    kvt_log(KVT_LOG_ERROR, "metadata cannot be written; check the disk dir=%s cause=%s", meta->dir,
            message);
    rocksdb_free(message);
    return KVT_ERR_IO;
}

/* Write what is queued, at most BATCH_MAX changes. False: nothing was. */
static bool changes_write(struct kvt_meta *meta)
{
    uint64_t from = atomic_load_explicit(&meta->n_written, memory_order_relaxed);
    uint64_t n_descs = atomic_load_explicit(&meta->n_descs_written, memory_order_relaxed);
    uint64_t to = atomic_load_explicit(&meta->n_queued, memory_order_acquire);
    if (from == to)
        return false;
    to = KVT_MIN(to, from + BATCH_MAX);
    rocksdb_writebatch_clear(meta->batch);
    for (uint64_t i = from; i < to; i++)
        change_apply(meta, &meta->changes[i % RING_N], &n_descs);
    enum kvt_status status = batch_write(meta);
    for (uint64_t i = from; i < to; i++)
        meta->done[i % RING_N] =
            (struct kvt_meta_done){.token = meta->changes[i % RING_N].token, .status = status};
    atomic_store_explicit(&meta->n_descs_written, n_descs, memory_order_release);
    atomic_store_explicit(&meta->n_written, to, memory_order_release);
    (void)eventfd_write(meta->event_fd, 1);
    return true;
}

static void *writer_thread(void *arg)
{
    struct kvt_meta *meta = arg;
    for (;;) {
        while (changes_write(meta)) {
        }
        uint32_t key = kvt_gate_enter(&meta->gate);
        bool stop = atomic_load(&meta->stop); /* before the last look: nothing is left behind */
        if (changes_write(meta)) {
            kvt_gate_leave(&meta->gate);
        } else if (stop) {
            kvt_gate_leave(&meta->gate);
            return NULL;
        } else {
            kvt_gate_wait(&meta->gate, key);
        }
    }
}

static int writer_start(struct kvt_meta *meta)
{
    atomic_store(&meta->stop, false);
    int rc = kvt_thread_start(&meta->thread, writer_thread, meta);
    meta->is_running = rc == 0;
    return rc;
}

/* Writes what is queued first. */
static void writer_stop(struct kvt_meta *meta)
{
    if (!meta->is_running)
        return;
    atomic_store(&meta->stop, true);
    kvt_gate_wake(&meta->gate, 1);
    pthread_join(meta->thread, NULL);
    meta->is_running = false;
}

/* --- replay ---------------------------------------------------------------------------------- */

struct replay {
    const struct kvt_meta_visitor *visitor;
    uint64_t n_bad;
    unsigned n;
    struct kvt_meta_record records[REPLAY_MAX];
};

static void replay_flush(struct replay *replay)
{
    if (replay->n > 0)
        replay->visitor->records(replay->visitor->arg, replay->records, replay->n);
    replay->n = 0;
}

static void replay_one(struct replay *replay, enum meta_kind kind, uint32_t number,
                       const char *value, size_t bytes)
{
    struct kvt_ns_desc desc;
    uint64_t slot_bytes, since;
    if (kind == META_RECORD &&
        meta_record_decode(number, value, bytes, &replay->records[replay->n])) {
        if (++replay->n == REPLAY_MAX)
            replay_flush(replay);
    } else if (kind == META_NS && meta_ns_decode(number, value, bytes, &since, &desc)) {
        replay->visitor->ns(replay->visitor->arg, number, since, &desc);
    } else if (kind == META_SLAB && meta_slab_decode(number, value, bytes, &slot_bytes)) {
        replay->visitor->slab(replay->visitor->arg, number, slot_bytes);
    } else {
        replay->n_bad++;
    }
}

/* All entries of one kind. An error message to be freed with rocksdb_free, or NULL. */
static char *replay_kind(struct kvt_meta *meta, struct replay *replay, enum meta_kind kind)
{
    const char from = (char)kind;
    const char to = (char)(kind + 1);
    char *message = NULL;
    rocksdb_readoptions_t *read_options = meta_db_scan_options();
    rocksdb_readoptions_set_iterate_upper_bound(read_options, &to, 1);
    rocksdb_iterator_t *iter = rocksdb_create_iterator(meta->db, read_options);
    for (rocksdb_iter_seek(iter, &from, 1); rocksdb_iter_valid(iter); rocksdb_iter_next(iter)) {
        size_t key_bytes;
        size_t bytes;
        uint32_t number;
        const char *key = rocksdb_iter_key(iter, &key_bytes);
        const char *value = rocksdb_iter_value(iter, &bytes);
        if (meta_key_decode(key, key_bytes, kind, &number))
            replay_one(replay, kind, number, value, bytes);
        else
            replay->n_bad++;
    }
    rocksdb_iter_get_error(iter, &message);
    rocksdb_iter_destroy(iter);
    rocksdb_readoptions_destroy(read_options);
    if (message == NULL)
        replay_flush(replay);
    return message;
}

static enum kvt_status meta_replay(struct kvt_meta *meta, const struct kvt_meta_visitor *visitor,
                                   uint64_t *n_bad_p, struct kvt_error *err)
{
    static const enum meta_kind kinds[] = {META_NS, META_SLAB, META_RECORD};
    enum kvt_status status = KVT_OK;
    struct replay *replay = calloc(1, sizeof(*replay));
    if (replay == NULL)
        return kvt_error_set(err, KVT_ERR_NOMEM, "metadata: out of memory at start; free some");
    replay->visitor = visitor;
    for (unsigned i = 0; status == KVT_OK && i < KVT_ARRAY_LEN(kinds); i++) {
        char *message = replay_kind(meta, replay, kinds[i]);
        if (message != NULL)
            status = meta_db_error(err, meta->dir, message);
    }
    if (status == KVT_OK)
        *n_bad_p = replay->n_bad;
    free(replay);
    return status;
}

/* --- open, reset, close ---------------------------------------------------------------------- */

static enum kvt_status id_write(struct kvt_meta *meta, const uint8_t store_id[16],
                                struct kvt_error *err)
{
    char key[META_KEY_BYTES];
    char value[META_ID_BYTES];
    char *message = NULL;
    meta_key_encode(META_ID, 0, key);
    size_t bytes = meta_id_encode(store_id, value);
    rocksdb_put(meta->db, meta->write_options, key, sizeof(key), value, bytes, &message);
    return message == NULL ? KVT_OK : meta_db_error(err, meta->dir, message);
}

static enum kvt_status id_read(struct kvt_meta *meta, uint8_t store_id[16], struct kvt_error *err)
{
    char key[META_KEY_BYTES];
    char *message = NULL;
    size_t bytes = 0;
    uint32_t version = META_FORMAT_VERSION;
    rocksdb_readoptions_t *read_options = rocksdb_readoptions_create();
    meta_key_encode(META_ID, 0, key);
    char *value = rocksdb_get(meta->db, read_options, key, sizeof(key), &bytes, &message);
    rocksdb_readoptions_destroy(read_options);
    if (message != NULL)
        return meta_db_error(err, meta->dir, message);
    if (value == NULL) {
        memset(store_id, 0, 16);
        return id_write(meta, store_id, err);
    }
    bool ok = meta_id_decode(value, bytes, store_id, &version);
    rocksdb_free(value);
    if (version != META_FORMAT_VERSION)
        return kvt_error_set(err, KVT_ERR_VERSION,
                             "metadata: %s was written by format %u, this is %d; move it away to "
                             "start empty",
                             meta->dir, version, META_FORMAT_VERSION);
    if (!ok)
        return kvt_error_set(err, KVT_ERR_CORRUPT,
                             "metadata: %s has a damaged store id; move it away to start empty",
                             meta->dir);
    return KVT_OK;
}

static void meta_free(struct kvt_meta *meta)
{
    if (meta->db != NULL)
        rocksdb_close(meta->db);
    if (meta->batch != NULL)
        rocksdb_writebatch_destroy(meta->batch);
    if (meta->write_options != NULL)
        rocksdb_writeoptions_destroy(meta->write_options);
    if (meta->options != NULL)
        rocksdb_options_destroy(meta->options);
    if (meta->event_fd >= 0)
        close(meta->event_fd);
    free(meta->changes);
    free(meta->descs);
    free(meta->done);
    free(meta->dir);
    free(meta);
}

static struct kvt_meta *meta_alloc(const char *dir)
{
    struct kvt_meta *meta = calloc(1, sizeof(*meta));
    if (meta == NULL)
        return NULL;
    meta->dir = strdup(dir);
    meta->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    meta->changes = calloc(RING_N, sizeof(*meta->changes));
    meta->descs = calloc(NS_RING_N, sizeof(*meta->descs));
    meta->done = calloc(RING_N, sizeof(*meta->done));
    meta->options = meta_db_options();
    meta->write_options = rocksdb_writeoptions_create(); /* with the log, without fsync */
    meta->batch = rocksdb_writebatch_create();
    if (meta->dir == NULL || meta->event_fd < 0 || meta->changes == NULL || meta->descs == NULL ||
        meta->done == NULL) {
        meta_free(meta);
        return NULL;
    }
    return meta;
}

/* Nearly all of a table is records, of one size and not compressed. RocksDB's own count would need
 * the statistics of each table, which the start does not wait for. */
uint64_t kvt_meta_records_about(const char *dir)
{
    uint64_t bytes = 0;
    const struct dirent *entry;
    struct stat st;
    DIR *d = opendir(dir);
    if (d == NULL)
        return 0;
    while ((entry = readdir(d)) != NULL) {
        const char *dot = strrchr(entry->d_name, '.');
        if (dot != NULL && strcmp(dot, ".sst") == 0 &&
            fstatat(dirfd(d), entry->d_name, &st, 0) == 0)
            bytes += (uint64_t)st.st_size;
    }
    closedir(d);
    return bytes / ENTRY_BYTES;
}

enum kvt_status kvt_meta_open(const char *dir, uint8_t store_id[16],
                              const struct kvt_meta_visitor *visitor, struct kvt_meta **meta_p,
                              uint64_t *n_bad_p, struct kvt_error *err)
{
    uint8_t id[16];
    uint64_t n_bad = 0;
    struct kvt_meta *meta = meta_alloc(dir);
    if (meta == NULL)
        return kvt_error_set(err, KVT_ERR_NOMEM,
                             "metadata: no memory or file descriptor at start; check ulimit -n");
    enum kvt_status status = meta_db_open(dir, meta->options, &meta->db, err);
    if (status == KVT_OK)
        status = id_read(meta, id, err);
    if (status == KVT_OK)
        status = meta_replay(meta, visitor, &n_bad, err);
    if (status == KVT_OK)
        status = meta_db_settle(meta->db, dir, err);
    if (status == KVT_OK && writer_start(meta) != 0)
        status =
            kvt_error_set(err, KVT_ERR_NOMEM, "metadata: cannot start a thread; check ulimit -u");
    if (status != KVT_OK) {
        meta_free(meta);
        return status;
    }
    memcpy(store_id, id, sizeof(id));
    *n_bad_p = n_bad;
    *meta_p = meta;
    return KVT_OK;
}

void kvt_meta_close(struct kvt_meta *meta)
{
    char *message = NULL;
    writer_stop(meta);
    if (meta->db != NULL && meta_db_has_room(meta->dir, meta->db)) {
        /* A flushed store opens without replaying its log. */
        rocksdb_flushoptions_t *flush_options = rocksdb_flushoptions_create();
        rocksdb_flush(meta->db, flush_options, &message);
        rocksdb_flushoptions_destroy(flush_options);
    }
    if (message != NULL) {
        kvt_log(KVT_LOG_WARN, "metadata not flushed at close; its log has it dir=%s cause=%s",
                meta->dir, message);
        rocksdb_free(message);
    }
    meta_free(meta);
}

enum kvt_status kvt_meta_reset(struct kvt_meta *meta, const uint8_t store_id[16])
{
    struct kvt_error err = {0};
    char *message = NULL;
    enum kvt_status status = KVT_OK;
    writer_stop(meta);
    if (meta->db != NULL)
        rocksdb_close(meta->db);
    meta->db = NULL;
    rocksdb_destroy_db(meta->options, meta->dir, &message);
    if (message != NULL)
        status = meta_db_error(&err, meta->dir, message);
    if (status == KVT_OK)
        status = meta_db_open(meta->dir, meta->options, &meta->db, &err);
    if (status == KVT_OK)
        status = id_write(meta, store_id, &err);
    if (status == KVT_OK)
        status = meta_db_settle(meta->db, meta->dir, &err);
    if (status != KVT_OK)
        kvt_log(KVT_LOG_ERROR, "metadata not reset dir=%s cause=%s", meta->dir, err.msg);
    if (writer_start(meta) != 0 && status == KVT_OK)
        status = KVT_ERR_NOMEM;
    return status;
}

/* --- the queueing side ----------------------------------------------------------------------- */

static struct change *change_next(struct kvt_meta *meta)
{
    uint64_t n = atomic_load_explicit(&meta->n_queued, memory_order_relaxed);
    if (n - meta->n_polled >= RING_N)
        return NULL;
    return &meta->changes[n % RING_N];
}

static bool change_queue(struct kvt_meta *meta)
{
    uint64_t n = atomic_load_explicit(&meta->n_queued, memory_order_relaxed);
    atomic_store_explicit(&meta->n_queued, n + 1, memory_order_release);
    kvt_gate_wake(&meta->gate, 1);
    return true;
}

bool kvt_meta_put(struct kvt_meta *meta, const struct kvt_meta_record *record, uint64_t token)
{
    struct change *change = change_next(meta);
    if (change == NULL)
        return false;
    *change = (struct change){.kind = META_RECORD, .token = token, .record = *record};
    return change_queue(meta);
}

bool kvt_meta_del(struct kvt_meta *meta, uint32_t slot, uint64_t token)
{
    struct change *change = change_next(meta);
    if (change == NULL)
        return false;
    *change = (struct change){
        .kind = META_RECORD, .is_delete = true, .token = token, .record.slot = slot};
    return change_queue(meta);
}

bool kvt_meta_put_slab(struct kvt_meta *meta, uint32_t slab, uint64_t slot_bytes, uint64_t token)
{
    struct change *change = change_next(meta);
    if (change == NULL)
        return false;
    *change = (struct change){
        .kind = META_SLAB, .token = token, .slot_bytes = slot_bytes, .record.slot = slab};
    return change_queue(meta);
}

bool kvt_meta_put_ns(struct kvt_meta *meta, uint32_t ns, uint64_t since,
                     const struct kvt_ns_desc *desc, uint64_t token)
{
    struct change *change = change_next(meta);
    uint64_t n_written = atomic_load_explicit(&meta->n_descs_written, memory_order_acquire);
    if (change == NULL || meta->n_descs_queued - n_written >= NS_RING_N)
        return false;
    meta->descs[meta->n_descs_queued++ % NS_RING_N] = *desc;
    *change = (struct change){
        .kind = META_NS, .token = token, .record.slot = ns, .record.generation = since};
    return change_queue(meta);
}

unsigned kvt_meta_poll(struct kvt_meta *meta, struct kvt_meta_done *done, unsigned n_max)
{
    eventfd_t ignored;
    unsigned n = 0;
    (void)eventfd_read(meta->event_fd, &ignored);
    uint64_t n_written = atomic_load_explicit(&meta->n_written, memory_order_acquire);
    for (; n < n_max && meta->n_polled < n_written; n++, meta->n_polled++)
        done[n] = meta->done[meta->n_polled % RING_N];
    if (meta->n_polled < n_written)
        (void)eventfd_write(meta->event_fd, 1);
    return n;
}

int kvt_meta_event_fd(struct kvt_meta *meta)
{
    return meta->event_fd;
}
