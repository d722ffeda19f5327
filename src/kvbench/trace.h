/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A request trace in memory: what each prompt consists of, as ids of prefix blocks. Read from a
 * file in the Mooncake format (one JSON object a line, with timestamp in ms, input_length,
 * output_length and hash_ids), or made request by request by a workload generator.
 *
 * Files come from strangers: everything is checked and bounded, and a fault is reported with the
 * number of its line.
 */
#ifndef KVT_KVBENCH_TRACE_H
#define KVT_KVBENCH_TRACE_H

#include <stddef.h>
#include <stdint.h>

#include "kvt/status.h"

#define KVT_TRACE_LINE_MAX           (4u << 20)   /* bytes, without the newline */
#define KVT_TRACE_REQUESTS_MAX       (16u << 20)  /* of a trace */
#define KVT_TRACE_REQUEST_BLOCKS_MAX (64u << 10)  /* of a request */
#define KVT_TRACE_BLOCKS_MAX         (256u << 20) /* of a trace, repeats counted */
#define KVT_TRACE_TIMESTAMP_MAX_MS   (UINT64_C(1) << 53)
#define KVT_TRACE_LENGTH_MAX         (1u << 30) /* tokens, of a prompt or an answer */

struct kvt_trace_request {
    uint64_t timestamp_ms; /* never less than the one before */
    uint64_t first_block;  /* its blocks are trace->blocks[first_block .. first_block + n_blocks) */
    uint32_t n_blocks;     /* may be 0 */
    uint32_t input_length; /* tokens of the prompt */
    uint32_t output_length;
};

struct kvt_trace {
    struct kvt_trace_request *requests;
    size_t n_requests;
    uint32_t *blocks;   /* of all requests: dense block numbers, by first appearance */
    uint64_t n_blocks;  /* repeats counted */
    uint64_t *hash_ids; /* by dense block number: the id that the trace gave */
    uint32_t n_distinct;
    /*
     * Requests in which a block follows another one than where it was first seen. Zero in a
     * sound trace: an id stands for a block *and* all before it.
     */
    uint64_t n_rechained;
    struct kvt_trace_table *table; /* hash id to block number; private */
};

/** An empty trace, to be filled by kvt_trace_add(). NULL: no memory. */
struct kvt_trace *kvt_trace_create(void);
void kvt_trace_destroy(struct kvt_trace *trace); /* NULL is allowed */

/**
 * Append a request. Not after an error.
 *
 * @param hash_ids  n_blocks ids in prompt order; copied.
 * @return KVT_OK; KVT_ERR_INVAL (err: a bound was passed, time went back, or a block is named
 *         twice in the prompt); KVT_ERR_NOMEM.
 */
enum kvt_status kvt_trace_add(struct kvt_trace *trace, uint64_t timestamp_ms, uint32_t input_length,
                              uint32_t output_length, const uint64_t *hash_ids, size_t n_blocks,
                              struct kvt_error *err) KVT_MUST_CHECK;

/**
 * Read a trace file. Empty lines are allowed, unknown fields are ignored.
 *
 * @param max_requests  read no further than this many requests; 0: all.
 * @param trace_p       written on success; free with kvt_trace_destroy().
 * @return KVT_OK; else err names file, line and what is wrong: KVT_ERR_INVAL (a fault in the file,
 *         or no request in it), KVT_ERR_NOMEM, or the status of the system's error.
 */
enum kvt_status kvt_trace_read(const char *path, size_t max_requests, struct kvt_trace **trace_p,
                               struct kvt_error *err) KVT_MUST_CHECK;

/** The same from text in memory; name stands for the path in messages. */
enum kvt_status kvt_trace_parse(const char *text, size_t bytes, const char *name,
                                size_t max_requests, struct kvt_trace **trace_p,
                                struct kvt_error *err) KVT_MUST_CHECK;

#endif
