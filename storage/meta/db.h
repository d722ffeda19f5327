/* SPDX-License-Identifier: Apache-2.0 */
/* How we want our RocksDB, and what its error strings mean to us. */
#ifndef KVT_META_DB_H
#define KVT_META_DB_H

#include <rocksdb/c.h>
#include <stdbool.h>

#include "kvt/status.h"

rocksdb_options_t *meta_db_options(void);

/**
 * Whether the disk has room for what the database may write without being asked: its log, flushes
 * and compactions. Asked before it is opened (db NULL), written and flushed, because a full disk is
 * more than RocksDB bears: builds with assertions abort in the write after a failed one.
 */
bool meta_db_has_room(const char *dir, rocksdb_t *db);

/** For one sequential pass over everything, checksums on. */
rocksdb_readoptions_t *meta_db_scan_options(void);

enum kvt_status meta_db_open(const char *dir, const rocksdb_options_t *options, rocksdb_t **db_p,
                             struct kvt_error *err) KVT_MUST_CHECK;

/** Let compactions begin: they would take disk and cores from whoever waits for the start. */
enum kvt_status meta_db_settle(rocksdb_t *db, const char *dir,
                               struct kvt_error *err) KVT_MUST_CHECK;

/** Turns a message of RocksDB, which it frees, into ours. */
enum kvt_status meta_db_error(struct kvt_error *err, const char *dir, char *message);

#endif
