/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libkvtier: how an engine stores KV chunks in the node's agent and gets them back. The only stable
 * ABI of the project: symbols kvt_*, structs only ever grow at their end (a size field says which
 * version the caller was built against).
 *
 * The library never blocks in a submit call, never aborts the host process and installs no signal
 * handler. When the agent is away, slow, restarted or of another version, lookups miss, stores are
 * dropped and loads report KVT_ERR_UNREACH, at once; the library reconnects with back-off.
 */
#ifndef KVTIER_H
#define KVTIER_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define KVT_API __attribute__((visibility("default")))

#define KVTIER_VERSION_MAJOR 0
#define KVTIER_VERSION_MINOR 1

/* Statuses as plain integers: the enum of the agent may grow. 0 is success, negative an error. */
#define KVTIER_OK           0
#define KVTIER_ERR_NOMEM    -1
#define KVTIER_ERR_AGAIN    -2 /* queue full or stores stopped: nothing was started, retry later */
#define KVTIER_ERR_CORRUPT  -3
#define KVTIER_ERR_UNREACH  -4 /* agent away; for a store: dropped */
#define KVTIER_ERR_INVAL    -5
#define KVTIER_ERR_MISS     -6 /* load: not held */
#define KVTIER_ERR_EXISTS   -7 /* store: already held; the bytes are there, as wanted */
#define KVTIER_ERR_BUSY     -8 /* store: another writer is storing the same key just now */
#define KVTIER_ERR_NOSPACE  -9 /* store: dropped, no room by the deadline */
#define KVTIER_ERR_IO       -10
#define KVTIER_ERR_TIMEOUT  -11
#define KVTIER_ERR_CANCELED -12
#define KVTIER_ERR_PROTO    -13
#define KVTIER_ERR_VERSION  -14
#define KVTIER_ERR_NOTSUP   -15
#define KVTIER_ERR_EXPIRED  -16
#define KVTIER_ERR_INTERNAL -17

#define KVTIER_KEY_BYTES 32
#define KVTIER_BATCH_MAX 1024 /* chunks of one op */

typedef struct kvt_session kvt_session;

typedef struct kvtier_options {
    size_t size;             /* sizeof(kvtier_options) */
    const char *socket_path; /* NULL: $KVTIER_SOCKET, else /run/kvtier/kvtierd.sock */
    const char *client_name; /* for the agent's logs; NULL: the program's name */
    uint32_t queue_depth;    /* ops submitted and not polled yet; 0: 256 */
    uint32_t n_copy_threads; /* 0: 1 */
    uint32_t spin_us;        /* the longest that a wait for an answer spins before it sleeps, while
                                calls follow each other closely and it pays; UINT32_MAX: 50 */
    uint32_t *n_done; /* NULL, or a word of the caller's that the library keeps until kvt_close:
                         how many completions wait to be polled, to look at instead of a call.
                         Answers to lookups count once kvt_poll or kvt_wait received them */
} kvtier_options;

/* Everything that must be equal for bytes to be interchangeable; see docs/architecture.md. */
typedef struct kvtier_namespace {
    size_t size;          /* sizeof(kvtier_namespace) */
    const char *model;    /* required; at most 127 bytes, the others 63 (hash_algo 31, dtype 15) */
    const char *revision; /* strings may be NULL for empty */
    const char *layout;
    const char *salt;
    const char *hash_algo;
    const char *dtype;
    uint32_t n_layers, n_kv_heads, head_dim, tokens_per_chunk;
    uint32_t tp_rank, tp_size, pp_rank, pp_size, kv_group;
    uint32_t
        n_segments; /* checksummed pieces of a chunk, usually its layers; divides chunk_bytes */
    uint64_t chunk_bytes;
} kvtier_namespace;

/* One piece of the caller's memory. */
typedef struct kvtier_extent {
    void *addr;
    uint64_t bytes;
} kvtier_extent;

/*
 * Where a chunk's bytes are in the caller's memory: pieces that, in order, make up chunk_bytes.
 * Either n_extents pieces, or (extents == NULL) strided pages: for each of n_outer, for each of
 * n_inner: bytes at base + o * outer_stride + i * inner_stride.
 */
typedef struct kvtier_layout {
    const kvtier_extent *extents;
    uint32_t n_extents;
    uint32_t n_outer, n_inner;
    uint32_t reserved;
    void *base;
    int64_t outer_stride, inner_stride;
    uint64_t bytes;
} kvtier_layout;

/* Pages of the caller's memory, as engines keep KV: block b is, one after the other, each piece's
 * bytes at base + b * stride. */
typedef struct kvtier_piece {
    void *base;
    int64_t stride;
    uint64_t bytes;
} kvtier_piece;

typedef struct kvtier_pages {
    size_t size; /* sizeof(kvtier_pages) */
    const kvtier_piece *pieces;
    uint32_t n_pieces;
    uint32_t blocks_per_chunk;
    uint64_t n_blocks;
    void *sink; /* as large as a block, what stands for block -1; NULL: there is no such block */
} kvtier_pages;

enum kvtier_op_type { KVTIER_LOOKUP, KVTIER_STORE, KVTIER_LOAD, KVTIER_PREFETCH };

/* What kvt_poll hands back, one per op, exactly once. */
typedef struct kvtier_completion {
    uint64_t op;
    void *user;     /* as given to the submit call */
    int32_t type;   /* enum kvtier_op_type */
    int32_t status; /* of the op as a whole. OK: it ran its course, every item has its own status
                       (late ones ERR_TIMEOUT); else ERR_CANCELED, ERR_UNREACH, or why it ended.
                       A lookup with another status than OK found nothing */
    uint32_t n_items;
    uint32_t n_ok;     /* lookup: length of the prefix held; else items with status OK (store:
                          or EXISTS); load: see n_prefix too */
    uint32_t n_prefix; /* items OK without a gap from the first */
    uint32_t reserved;
    uint64_t lease;             /* lookup: to be given to kvt_release; 0: none */
    uint64_t lease_deadline_ns; /* CLOCK_MONOTONIC */
} kvtier_completion;

enum {
    KVTIER_LEASE = 1,   /* lookup: hold what was found */
    KVTIER_DURABLE = 2, /* store: complete when the chunks are on NVMe */
    KVTIER_PARENT = 4,  /* keys[0] is the parent of the first item and no item itself; n counts it,
                           layouts  and statuses do not */
};

/**
 * Open a session. Returns at once, also when no agent is there: the session then answers misses
 * and connects when it can. Never fails but for memory or a bad argument.
 *
 * Any thread may call any function on a session, but kvt_close. A child of fork() must not use it:
 * calls there return KVTIER_ERR_UNREACH, and kvt_close frees the child's copy and nothing else. A
 * child that lives on without exec keeps the sockets open; kvt_close in the parent ends them for
 * both.
 */
KVT_API int kvt_open(const kvtier_options *options, kvt_session **session_p);

/** Cancel what is open, wait until nothing touches the caller's memory any more, free. */
KVT_API void kvt_close(kvt_session *session);

/** 1: connected to an agent; 0: not now. */
KVT_API int kvt_connected(kvt_session *session);
/** Wait until connected, at most timeout_ms (-1: for ever). @return OK, ERR_TIMEOUT, ERR_VERSION.
 */
KVT_API int kvt_connect_wait(kvt_session *session, int timeout_ms);

/**
 * Register a namespace with the session; it is negotiated with the agent at once or at the next
 * connection. @return a handle >= 0, or KVTIER_ERR_INVAL / NOMEM. kvt_last_error() tells why.
 */
KVT_API int kvt_namespace(kvt_session *session, const kvtier_namespace *ns);

/*
 * Submit calls: return at once. @return KVTIER_OK and *op_p set: exactly one completion will come.
 * KVTIER_ERR_AGAIN: queue full. KVTIER_ERR_INVAL. When the agent is away the op is accepted and
 * completes at once (lookup: 0 held; store, load: every item ERR_UNREACH).
 *
 * keys: n * 32 bytes in prefix order, copied. statuses: n int32, owned by the caller, written
 * before the completion is handed out and not after; may be NULL. Memory named by layouts is
 * borrowed until the completion was polled or kvt_cancel returned; the layout structs and extent
 * arrays are copied. deadline_ns: CLOCK_MONOTONIC, 0 for the default (load: 30 s; store: no
 * waiting for room). A load's bytes are undefined where the item's status is not OK. where: n bytes
 * like statuses, or NULL; of each chunk of the prefix that is held, KVTIER_WHERE_* bits.
 */
enum { KVTIER_WHERE_HOST = 1, KVTIER_WHERE_NVME = 2 };

KVT_API int kvt_lookup(kvt_session *session, int ns, const void *keys, uint32_t n, uint32_t flags,
                       uint32_t lease_ttl_ms, uint8_t *where, void *user, uint64_t *op_p);
KVT_API int kvt_store(kvt_session *session, int ns, const void *keys, uint32_t n,
                      const kvtier_layout *src, uint32_t flags, uint64_t deadline_ns,
                      int32_t *statuses, void *user, uint64_t *op_p);
KVT_API int kvt_load(kvt_session *session, int ns, const void *keys, uint32_t n,
                     const kvtier_layout *dst, uint32_t flags, uint64_t deadline_ns,
                     int32_t *statuses, void *user, uint64_t *op_p);
KVT_API int kvt_prefetch(kvt_session *session, int ns, const void *keys, uint32_t n, uint32_t flags,
                         uint64_t deadline_ns, int32_t *statuses, void *user, uint64_t *op_p);

/* How a session uses a GPU; for kvt_cuda_attach(). */
typedef struct kvtier_cuda {
    size_t size;                 /* sizeof(kvtier_cuda) */
    const char *library;         /* the driver; NULL: libcuda.so.1 */
    int32_t device;              /* ordinal, as the driver counts in this process */
    uint32_t n_threads;          /* for each direction, at most 16; 0: 4 for loads, and for stores,
                                    which make checksums, three for every four CPUs more */
    uint32_t kernel_below_bytes; /* chunks whose contiguous pieces average less are gathered and
                                    scattered by a kernel; 0: the default, 1: never */
    uint32_t reserved;           /* 0 */
} kvtier_cuda;

/* What became of the bytes, since kvt_cuda_attach(). */
typedef struct kvtier_cuda_stats {
    size_t size;           /* sizeof(kvtier_cuda_stats) */
    uint64_t engine_bytes; /* moved by copy engines straight from or to the pages */
    uint64_t kernel_bytes; /* gathered or scattered by a kernel */
    uint64_t staged_bytes; /* of both, those that went through staging memory of the host */
    uint64_t pinned_bytes; /* of the arena, registered with CUDA now */
} kvtier_cuda_stats;

/**
 * Let a session move memory of a GPU, with streams and threads of its own in the context that the
 * engine uses; once per session, when the engine has its memory. It takes milliseconds, and of the
 * GPU 8 MiB for each copy at once, of which there are four per direction at most; the arena is
 * registered with CUDA later, in the background.
 * @return KVTIER_OK; KVTIER_ERR_NOTSUP: no driver, no such device, or built without CUDA;
 *         KVTIER_ERR_INVAL: attached already, or a bad argument; KVTIER_ERR_NOMEM, ERR_IO.
 *         kvt_last_error() tells why. After an error the session is as it was.
 */
KVT_API int kvt_cuda_attach(kvt_session *session, const kvtier_cuda *cuda);

/*
 * kvt_store and kvt_load for memory of the GPU: the same, but that layouts name device addresses.
 * stream is a CUstream (cudaStream_t) of the engine, NULL its default stream: the copy comes after
 * all work that was queued there before this call. Work that is queued on any stream after the
 * completion was polled comes after the copy. The calling thread waits for neither. kvt_cancel
 * waits for copies that are queued, and so for what they come after.
 * @return as kvt_store; KVTIER_ERR_INVAL also when memory is not the GPU's or stream captures a
 *         graph; KVTIER_ERR_NOTSUP: not attached; KVTIER_ERR_IO: CUDA refused.
 */
KVT_API int kvt_store_cuda(kvt_session *session, int ns, const void *keys, uint32_t n,
                           const kvtier_layout *src, uint32_t flags, uint64_t deadline_ns,
                           int32_t *statuses, void *user, void *stream, uint64_t *op_p);
KVT_API int kvt_load_cuda(kvt_session *session, int ns, const void *keys, uint32_t n,
                          const kvtier_layout *dst, uint32_t flags, uint64_t deadline_ns,
                          int32_t *statuses, void *user, void *stream, uint64_t *op_p);

/** @return KVTIER_OK; KVTIER_ERR_NOTSUP: not attached. */
KVT_API int kvt_cuda_stats(kvt_session *session, kvtier_cuda_stats *stats);

/**
 * Describe chunks of paged memory. blocks: n * pages->blocks_per_chunk, from 0 to n_blocks - 1, or
 * -1. Written are n layouts and, for them to refer to, pages->n_pieces extents per block.
 * @return KVTIER_OK; KVTIER_ERR_INVAL: there is no such block; nothing is to be used then.
 */
KVT_API int kvt_layouts_of_pages(const kvtier_pages *pages, const int64_t *blocks, uint32_t n,
                                 kvtier_layout *layouts, kvtier_extent *extents);

/** Completions that are there; never waits. @return how many were written. */
KVT_API uint32_t kvt_poll(kvt_session *session, kvtier_completion *completions, uint32_t n_max);
/** Like kvt_poll, but waits for at least one; 0: timeout_ms passed. */
KVT_API uint32_t kvt_wait(kvt_session *session, kvtier_completion *completions, uint32_t n_max,
                          int timeout_ms);
/** Readable when kvt_poll may have something. Owned by the session. */
KVT_API int kvt_event_fd(kvt_session *session);

/**
 * End an op. When this returns nothing writes to or reads from the caller's memory for it any more.
 * Its completion still comes (KVTIER_ERR_CANCELED unless it was already over).
 * @return KVTIER_OK, or KVTIER_ERR_INVAL: no such op, or its completion was already polled.
 */
KVT_API int kvt_cancel(kvt_session *session, uint64_t op);

/**
 * Give a lookup's lease back. One round trip, waits at most timeout_ms for the answer; KVTIER_OK:
 * the agent holds nothing for it any more. timeout_ms 0: send and do not wait.
 */
KVT_API int kvt_release(kvt_session *session, uint64_t lease, int timeout_ms);

/** Empty message and answer. @return KVTIER_OK, ERR_UNREACH, ERR_TIMEOUT. */
KVT_API int kvt_ping(kvt_session *session, int timeout_ms);

/** Counters of the agent in the order of kvt_stat_name(); *n_p in: room, out: how many there are.
 */
KVT_API int kvt_stats(kvt_session *session, uint64_t *values, uint32_t *n_p, int timeout_ms);
KVT_API const char *kvt_stat_name(uint32_t index); /* NULL past the last */

KVT_API const char *kvt_strerror(int status);
/** What went wrong last on this session, for a log: object, cause, next step. Copied into buf. */
KVT_API void kvt_last_error(kvt_session *session, char *buf, size_t bytes);
KVT_API const char *kvt_version(void);

#ifdef __cplusplus
}
#endif

#endif
