/* SPDX-License-Identifier: Apache-2.0 */
#include "trace.h"

#include <errno.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvt/util.h"

/* Open addressing over dense block numbers; at most half full. */
struct kvt_trace_table {
    uint32_t *slots; /* block number + 1; 0: free */
    uint64_t mask;
    uint64_t seed;    /* so that nobody can prepare ids that collide */
    uint32_t *before; /* by block: the block before it where it was first seen, + 1 */
    size_t *last_in;  /* by block: number of the last request that holds it, + 1 */
    uint32_t n_blocks_cap;
    size_t n_requests_cap;
    uint64_t n_repeats_cap; /* of trace->blocks */
};

static uint64_t mix(uint64_t x)
{
    x ^= x >> 30;
    x *= UINT64_C(0xbf58476d1ce4e5b9);
    x ^= x >> 27;
    x *= UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

static uint64_t table_home(const struct kvt_trace_table *table, uint64_t hash_id)
{
    return mix(mix(hash_id + table->seed) ^ table->seed) & table->mask;
}

struct kvt_trace *kvt_trace_create(void)
{
    struct kvt_trace *trace = calloc(1, sizeof(*trace));
    if (trace == NULL)
        return NULL;
    trace->table = calloc(1, sizeof(*trace->table));
    if (trace->table == NULL)
        goto fail;
    trace->table->mask = 1023;
    trace->table->seed = kvt_now_ns();
    trace->table->slots = calloc(trace->table->mask + 1, sizeof(*trace->table->slots));
    if (trace->table->slots == NULL)
        goto fail;
    return trace;
fail:
    kvt_trace_destroy(trace);
    return NULL;
}

void kvt_trace_destroy(struct kvt_trace *trace)
{
    if (trace == NULL)
        return;
    if (trace->table != NULL) {
        free(trace->table->slots);
        free(trace->table->before);
        free(trace->table->last_in);
        free(trace->table);
    }
    free(trace->requests);
    free(trace->blocks);
    free(trace->hash_ids);
    free(trace);
}

/* Grow *ptr to n elements or more, doubling. */
static bool array_grow(void *ptr, size_t elem_bytes, uint64_t n)
{
    void **array = ptr;
    void *grown = realloc(*array, n * elem_bytes);
    if (grown == NULL)
        return false;
    *array = grown;
    return true;
}

static bool table_rehash(struct kvt_trace *trace)
{
    struct kvt_trace_table *table = trace->table;
    uint64_t n_slots = (table->mask + 1) * 2;
    uint32_t *slots = calloc(n_slots, sizeof(*slots));
    if (slots == NULL)
        return false;
    free(table->slots);
    table->slots = slots;
    table->mask = n_slots - 1;
    for (uint32_t b = 0; b < trace->n_distinct; b++) {
        uint64_t at = table_home(table, trace->hash_ids[b]);
        while (slots[at] != 0)
            at = (at + 1) & table->mask;
        slots[at] = b + 1;
    }
    return true;
}

/* Room for n more blocks, of which all may be new; no array stays NULL, even if n is 0. */
static bool trace_room(struct kvt_trace *trace, size_t n)
{
    struct kvt_trace_table *table = trace->table;
    if (trace->n_requests == table->n_requests_cap) {
        size_t cap = table->n_requests_cap == 0 ? 1024 : table->n_requests_cap * 2;
        if (!array_grow(&trace->requests, sizeof(*trace->requests), cap))
            return false;
        table->n_requests_cap = cap;
    }
    if (trace->n_blocks + n >= table->n_repeats_cap) {
        uint64_t cap = KVT_MAX(table->n_repeats_cap * 2, trace->n_blocks + n + 1);
        if (!array_grow(&trace->blocks, sizeof(*trace->blocks), cap))
            return false;
        table->n_repeats_cap = cap;
    }
    if (trace->n_distinct + n >= table->n_blocks_cap) {
        uint64_t cap = KVT_MAX((uint64_t)table->n_blocks_cap * 2, trace->n_distinct + n + 1);
        if (!array_grow(&trace->hash_ids, sizeof(*trace->hash_ids), cap) ||
            !array_grow(&table->before, sizeof(*table->before), cap) ||
            !array_grow(&table->last_in, sizeof(*table->last_in), cap))
            return false;
        table->n_blocks_cap = (uint32_t)cap;
    }
    while ((trace->n_distinct + n) * 2 > table->mask + 1)
        if (!table_rehash(trace))
            return false;
    return true;
}

/* The block of an id, made if it is new (then follows `before`). */
static uint32_t trace_block(struct kvt_trace *trace, uint64_t hash_id, uint32_t before)
{
    struct kvt_trace_table *table = trace->table;
    uint64_t at = table_home(table, hash_id);
    for (; table->slots[at] != 0; at = (at + 1) & table->mask)
        if (trace->hash_ids[table->slots[at] - 1] == hash_id)
            return table->slots[at] - 1;
    uint32_t block = trace->n_distinct++;
    table->slots[at] = block + 1;
    trace->hash_ids[block] = hash_id;
    table->before[block] = before;
    table->last_in[block] = 0;
    return block;
}

enum kvt_status kvt_trace_add(struct kvt_trace *trace, uint64_t timestamp_ms, uint32_t input_length,
                              uint32_t output_length, const uint64_t *hash_ids, size_t n_blocks,
                              struct kvt_error *err)
{
    if (trace->n_requests >= KVT_TRACE_REQUESTS_MAX)
        return kvt_error_set(err, KVT_ERR_INVAL, "more than %u requests", KVT_TRACE_REQUESTS_MAX);
    if (n_blocks > KVT_TRACE_REQUEST_BLOCKS_MAX)
        return kvt_error_set(err, KVT_ERR_INVAL, "a prompt of %zu blocks; at most %u", n_blocks,
                             KVT_TRACE_REQUEST_BLOCKS_MAX);
    if (trace->n_blocks + n_blocks > KVT_TRACE_BLOCKS_MAX)
        return kvt_error_set(err, KVT_ERR_INVAL, "more than %u blocks in all",
                             KVT_TRACE_BLOCKS_MAX);
    if (input_length > KVT_TRACE_LENGTH_MAX || output_length > KVT_TRACE_LENGTH_MAX)
        return kvt_error_set(err, KVT_ERR_INVAL, "a length of more than %u tokens",
                             KVT_TRACE_LENGTH_MAX);
    if (timestamp_ms > KVT_TRACE_TIMESTAMP_MAX_MS)
        return kvt_error_set(err, KVT_ERR_INVAL, "timestamp %llu is too large",
                             (unsigned long long)timestamp_ms);
    if (trace->n_requests > 0 && timestamp_ms < trace->requests[trace->n_requests - 1].timestamp_ms)
        return kvt_error_set(err, KVT_ERR_INVAL, "timestamp %llu is before the request above it",
                             (unsigned long long)timestamp_ms);
    if (!trace_room(trace, n_blocks))
        return kvt_error_set(err, KVT_ERR_NOMEM, "out of memory");

    uint32_t before = 0;
    bool rechained = false;
    for (size_t i = 0; i < n_blocks; i++) {
        uint32_t block = trace_block(trace, hash_ids[i], before);
        if (trace->table->last_in[block] == trace->n_requests + 1)
            return kvt_error_set(err, KVT_ERR_INVAL, "hash id %llu appears twice in a prompt",
                                 (unsigned long long)hash_ids[i]);
        trace->table->last_in[block] = trace->n_requests + 1;
        rechained |= trace->table->before[block] != before;
        trace->blocks[trace->n_blocks + i] = block;
        before = block + 1;
    }
    trace->n_rechained += rechained;
    trace->requests[trace->n_requests++] = (struct kvt_trace_request){
        .timestamp_ms = timestamp_ms,
        .first_block = trace->n_blocks,
        .n_blocks = (uint32_t)n_blocks,
        .input_length = input_length,
        .output_length = output_length,
    };
    trace->n_blocks += n_blocks;
    return KVT_OK;
}

/* --- reading -------------------------------------------------------------------------------- */

struct reader {
    struct kvt_trace *trace;
    uint64_t *ids; /* KVT_TRACE_REQUEST_BLOCKS_MAX */
    const char *name;
    uint64_t n_lines;
    size_t max_requests;
    struct kvt_error *err;
};

static enum kvt_status reader_fault(struct reader *r, enum kvt_status status, const char *what)
{
    return kvt_error_set(r->err, status, "trace %s: line %llu: %s", r->name,
                         (unsigned long long)r->n_lines, what);
}

static enum kvt_status field_get(struct reader *r, const json_t *object, const char *key,
                                 uint64_t max, uint64_t *value_p)
{
    char what[128];
    const json_t *value = json_object_get(object, key);
    if (!json_is_integer(value)) {
        snprintf(what, sizeof(what), "%s \"%s\"; want an integer",
                 value == NULL ? "there is no" : "not an integer:", key);
        return reader_fault(r, KVT_ERR_INVAL, what);
    }
    json_int_t number = json_integer_value(value);
    if (number < 0 || (uint64_t)number > max) {
        snprintf(what, sizeof(what), "\"%s\" is %lld; want 0 to %llu", key, (long long)number,
                 (unsigned long long)max);
        return reader_fault(r, KVT_ERR_INVAL, what);
    }
    *value_p = (uint64_t)number;
    return KVT_OK;
}

static enum kvt_status request_add(struct reader *r, const json_t *object)
{
    if (!json_is_object(object))
        return reader_fault(r, KVT_ERR_INVAL, "not a JSON object");
    uint64_t timestamp_ms = 0;
    uint64_t input_length = 0;
    uint64_t output_length = 0;
    enum kvt_status status =
        field_get(r, object, "timestamp", KVT_TRACE_TIMESTAMP_MAX_MS, &timestamp_ms);
    if (status == KVT_OK)
        status = field_get(r, object, "input_length", KVT_TRACE_LENGTH_MAX, &input_length);
    if (status == KVT_OK)
        status = field_get(r, object, "output_length", KVT_TRACE_LENGTH_MAX, &output_length);
    if (status != KVT_OK)
        return status;

    const json_t *ids = json_object_get(object, "hash_ids");
    if (!json_is_array(ids))
        return reader_fault(r, KVT_ERR_INVAL, "\"hash_ids\" is not an array");
    size_t n = json_array_size(ids);
    if (n > KVT_TRACE_REQUEST_BLOCKS_MAX)
        return reader_fault(r, KVT_ERR_INVAL, "\"hash_ids\" is too long");
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_array_get(ids, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0)
            return reader_fault(r, KVT_ERR_INVAL,
                                "\"hash_ids\" holds something else than integers from 0");
        r->ids[i] = (uint64_t)json_integer_value(id);
    }
    struct kvt_error why = {0};
    status = kvt_trace_add(r->trace, timestamp_ms, (uint32_t)input_length, (uint32_t)output_length,
                           r->ids, n, &why);
    return status == KVT_OK ? KVT_OK : reader_fault(r, status, why.msg);
}

/* One line, without its newline. */
static enum kvt_status reader_line(struct reader *r, const char *line, size_t bytes)
{
    r->n_lines++;
    if (bytes > KVT_TRACE_LINE_MAX)
        return reader_fault(r, KVT_ERR_INVAL, "longer than 4 MiB; is this a trace?");
    while (bytes > 0 && strchr(" \t\r", line[bytes - 1]) != NULL && line[bytes - 1] != '\0')
        bytes--;
    if (bytes == 0)
        return KVT_OK;
    json_error_t json_err;
    json_t *object = json_loadb(line, bytes, JSON_REJECT_DUPLICATES, &json_err);
    if (object == NULL) {
        char what[sizeof(json_err.text) + 32];
        snprintf(what, sizeof(what), "column %d: %s", json_err.column, json_err.text);
        return reader_fault(r, KVT_ERR_INVAL, what);
    }
    enum kvt_status status = request_add(r, object);
    json_decref(object);
    return status;
}

static bool reader_full(const struct reader *r)
{
    return r->max_requests != 0 && r->trace->n_requests >= r->max_requests;
}

static enum kvt_status reader_init(struct reader *r, const char *name, size_t max_requests,
                                   struct kvt_error *err)
{
    *r = (struct reader){.name = name, .max_requests = max_requests, .err = err};
    r->trace = kvt_trace_create();
    r->ids = malloc(KVT_TRACE_REQUEST_BLOCKS_MAX * sizeof(*r->ids));
    if (r->trace == NULL || r->ids == NULL)
        return reader_fault(r, KVT_ERR_NOMEM, "out of memory");
    return KVT_OK;
}

/* Hand over the trace, or drop it. */
static enum kvt_status reader_fini(struct reader *r, enum kvt_status status,
                                   struct kvt_trace **trace_p)
{
    if (status == KVT_OK && r->trace->n_requests == 0)
        status = kvt_error_set(r->err, KVT_ERR_INVAL, "trace %s: no request in it; is it a trace?",
                               r->name);
    if (status == KVT_OK)
        *trace_p = r->trace;
    else
        kvt_trace_destroy(r->trace);
    free(r->ids);
    return status;
}

enum kvt_status kvt_trace_parse(const char *text, size_t bytes, const char *name,
                                size_t max_requests, struct kvt_trace **trace_p,
                                struct kvt_error *err)
{
    struct reader r;
    enum kvt_status status = reader_init(&r, name, max_requests, err);
    for (size_t at = 0; status == KVT_OK && at < bytes && !reader_full(&r);) {
        const char *end = memchr(text + at, '\n', bytes - at);
        size_t line_bytes = end == NULL ? bytes - at : (size_t)(end - (text + at));
        status = reader_line(&r, text + at, line_bytes);
        at += line_bytes + 1;
    }
    return reader_fini(&r, status, trace_p);
}

static enum kvt_status file_read(struct reader *r, FILE *file)
{
    const size_t buffer_bytes = (size_t)KVT_TRACE_LINE_MAX + 2; /* a longest line, one more, \n */
    char *buffer = malloc(buffer_bytes);
    if (buffer == NULL)
        return reader_fault(r, KVT_ERR_NOMEM, "out of memory");
    enum kvt_status status = KVT_OK;
    size_t held = 0;
    bool more = true;
    while (status == KVT_OK && !reader_full(r) && (more || held > 0)) {
        size_t at = 0;
        if (more) {
            size_t n = fread(buffer + held, 1, buffer_bytes - held, file);
            if (ferror(file)) {
                int code = errno;
                status = kvt_error_set(r->err, kvt_status_from_errno(code),
                                       "trace %s: cannot read: %s", r->name, strerror(code));
                break;
            }
            held += n;
            more = !feof(file);
        }
        while (status == KVT_OK && at < held && !reader_full(r)) {
            const char *end = memchr(buffer + at, '\n', held - at);
            if (end == NULL && more && (at > 0 || held < buffer_bytes))
                break; /* the rest of this line is still to be read */
            size_t line_bytes = end == NULL ? held - at : (size_t)(end - (buffer + at));
            status = reader_line(r, buffer + at, line_bytes);
            at += KVT_MIN(line_bytes + 1, held - at);
        }
        held -= at;
        memmove(buffer, buffer + at, held);
    }
    free(buffer);
    return status;
}

enum kvt_status kvt_trace_read(const char *path, size_t max_requests, struct kvt_trace **trace_p,
                               struct kvt_error *err)
{
    FILE *file = fopen(path, "rbe");
    if (file == NULL) {
        int code = errno;
        return kvt_error_set(err, kvt_status_from_errno(code),
                             "trace %s: cannot open: %s; check the path", path, strerror(code));
    }
    struct reader r;
    enum kvt_status status = reader_init(&r, path, max_requests, err);
    if (status == KVT_OK)
        status = file_read(&r, file);
    fclose(file);
    return reader_fini(&r, status, trace_p);
}
