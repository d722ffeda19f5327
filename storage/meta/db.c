/* SPDX-License-Identifier: Apache-2.0 */
#include "db.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "kvt/util.h"

#define WRITE_BUFFER_BYTES (16 * KVT_MIB)
#define COMPACTION_BYTES   KVT_GIB /* about what one compaction reads, however large the database */

/*
 * The table is written all the time, a record at a time, and read once, from end to end, at start.
 * So: no compression, no filter, no cache, large blocks; and little memory, for it is the engines'.
 */
rocksdb_options_t *meta_db_options(void)
{
    rocksdb_options_t *options = rocksdb_options_create();
    rocksdb_block_based_table_options_t *table = rocksdb_block_based_options_create();
    rocksdb_block_based_options_set_no_block_cache(table, 1);
    rocksdb_block_based_options_set_block_size(table, 64 * KVT_KIB);
    rocksdb_block_based_options_set_block_restart_interval(table, 64);
    rocksdb_block_based_options_set_format_version(table, 5);
    rocksdb_options_set_block_based_table_factory(options, table);
    rocksdb_block_based_options_destroy(table);

    rocksdb_options_set_create_if_missing(options, 1);
    rocksdb_options_set_paranoid_checks(options, 1);
    rocksdb_options_set_compression(options, rocksdb_no_compression);
    rocksdb_options_set_write_buffer_size(options, WRITE_BUFFER_BYTES);
    rocksdb_options_set_max_write_buffer_number(options, 3);
    rocksdb_options_set_max_total_wal_size(options, 64 * KVT_MIB);
    rocksdb_options_set_max_background_jobs(options, 2);
    rocksdb_options_set_max_manifest_file_size(options, 4 * KVT_MIB);
    rocksdb_options_set_skip_stats_update_on_db_open(options, 1);
    rocksdb_options_set_disable_auto_compactions(options, 1); /* until the start is over */
    /* What a crash of the machine cut off from the end of the log is not held; all before it is. */
    rocksdb_options_set_wal_recovery_mode(options, rocksdb_point_in_time_recovery);
    rocksdb_options_set_stats_dump_period_sec(options, 0);
    rocksdb_options_set_stats_persist_period_sec(options, 0);
    rocksdb_options_set_info_log_level(options, 2); /* warnings */
    rocksdb_options_set_keep_log_file_num(options, 2);
    rocksdb_options_set_max_log_file_size(options, KVT_MIB);
    return options;
}

bool meta_db_has_room(const char *dir, rocksdb_t *db)
{
    /* A log, the table made of it, and what a compaction writes before it deletes what it read. */
    uint64_t wanted = 2 * WRITE_BUFFER_BYTES;
    uint64_t in_files = 0;
    struct statvfs fs;
    if (statvfs(dir, &fs) != 0)
        return true; /* the database will say what is wrong with it */
    if (db != NULL && rocksdb_property_int(db, "rocksdb.total-sst-files-size", &in_files) == 0)
        wanted += KVT_MIN(in_files, COMPACTION_BYTES);
    return (uint64_t)fs.f_bavail * fs.f_frsize >= wanted;
}

rocksdb_readoptions_t *meta_db_scan_options(void)
{
    rocksdb_readoptions_t *options = rocksdb_readoptions_create();
    rocksdb_readoptions_set_verify_checksums(options, 1);
    rocksdb_readoptions_set_fill_cache(options, 0);
    rocksdb_readoptions_set_readahead_size(options, 4 * KVT_MIB);
    return options;
}

enum kvt_status meta_db_open(const char *dir, const rocksdb_options_t *options, rocksdb_t **db_p,
                             struct kvt_error *err)
{
    char *message = NULL;
    if (mkdir(dir, 0700) != 0 && errno != EEXIST)
        return kvt_error_set(err, KVT_ERR_IO,
                             "metadata: cannot make %s: %s; check the path and its permissions",
                             dir, strerror(errno));
    if (!meta_db_has_room(dir, NULL))
        return kvt_error_set(err, KVT_ERR_NOSPACE,
                             "metadata: no space left for %s; free some, or choose another "
                             "nvme.meta_path",
                             dir);
    rocksdb_t *db = rocksdb_open(options, dir, &message);
    if (db == NULL)
        return meta_db_error(err, dir, message);
    *db_p = db;
    return KVT_OK;
}

enum kvt_status meta_db_settle(rocksdb_t *db, const char *dir, struct kvt_error *err)
{
    const char *const keys[] = {"disable_auto_compactions"};
    const char *const values[] = {"false"};
    char *message = NULL;
    rocksdb_set_options(db, 1, keys, values, &message);
    return message == NULL ? KVT_OK : meta_db_error(err, dir, message);
}

enum kvt_status meta_db_error(struct kvt_error *err, const char *dir, char *message)
{
    enum kvt_status status = KVT_ERR_IO;
    const char *next = "check the disk";
    if (strstr(message, "While lock file") != NULL || strstr(message, "lock hold by") != NULL) {
        status = KVT_ERR_BUSY;
        next = "stop the other agent that uses it";
    } else if (strstr(message, "No space left") != NULL) {
        status = KVT_ERR_NOSPACE;
        next = "free space";
    } else if (strstr(message, "Corruption") != NULL || strstr(message, "No such file") != NULL ||
               strstr(message, "Invalid argument") != NULL ||
               strstr(message, "Not implemented") != NULL) {
        /* Files that are missing, too short or unknown: the directory is not whole. */
        status = KVT_ERR_CORRUPT;
        next = "move the directory away to start empty";
    }
    kvt_error_set(err, status, "metadata: %s: %.120s; %s", dir, message, next);
    rocksdb_free(message);
    return status;
}
