/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The session protocol between libkvtier and kvtierd: fixed little-endian structs, one per message,
 * over a SOCK_SEQPACKET unix socket. A message is a kvt_wire_header, its fixed part, then arrays.
 * Every request of a client carries an op id of its own choosing (unique among its open ops of this
 * connection, not zero); answers repeat it. The agent checks each length against header.bytes and
 * what recv returned, answers KVT_ERR_INVAL for what it can name, and for what it cannot
 * (short header, unknown type, lengths that disagree) it ends the session: see below.
 *
 * Who may write where: the slots of a RESERVE belong to the client from RESERVE_R until it sent
 * COMMIT (or abort) for the item or its socket is gone. They are never reused on time alone, so a
 * stopped and continued client cannot write into somebody else's chunk. When the agent ends a
 * session it shuts down its sending side only; the client stops its copies and closes; then slots
 * go back. Slots of a LOAD stay as they are until LOAD_DONE, CANCEL_R, the end of the session, or
 * the item's lease_deadline_ns: a client compares the clock after its copy and takes what ran late
 * for a miss.
 */
#ifndef KVT_WIRE_H
#define KVT_WIRE_H

#include "kvt/namespace.h"

#define KVT_WIRE_MAGIC     0x3154564bu /* "KVT1" */
#define KVT_WIRE_VERSION   1
#define KVT_BATCH_MAX      1024          /* keys of one message */
#define KVT_WIRE_BYTES_MAX (128u * 1024) /* of one message */
#define KVT_REGIONS_MAX    2

enum kvt_wire_type {
    KVT_WIRE_HELLO = 1, /* -> WELCOME with the regions' file descriptors (SCM_RIGHTS) */
    KVT_WIRE_WELCOME,
    KVT_WIRE_PING, /* header alone -> PONG, header alone */
    KVT_WIRE_PONG,
    KVT_WIRE_NS_OPEN, /* descriptor -> NS_OPEN_R */
    KVT_WIRE_NS_OPEN_R,
    KVT_WIRE_LOOKUP, /* keys -> LOOKUP_R: length of the prefix held, with a lease */
    KVT_WIRE_LOOKUP_R,
    KVT_WIRE_RELEASE, /* lease id -> RELEASE_R; the lease is gone when it is answered */
    KVT_WIRE_RELEASE_R,
    KVT_WIRE_RESERVE, /* keys -> RESERVE_R: a slot per chunk not held */
    KVT_WIRE_RESERVE_R,
    KVT_WIRE_COMMIT, /* items of an open RESERVE -> COMMIT_R; visible when answered */
    KVT_WIRE_COMMIT_R,
    KVT_WIRE_LOAD, /* keys -> one or more LOAD_R, each item once */
    KVT_WIRE_LOAD_R,
    KVT_WIRE_LOAD_DONE, /* the client has copied all it wants of this op; no answer */
    KVT_WIRE_CANCEL,    /* an open RESERVE or LOAD -> CANCEL_R; nothing of the op comes after */
    KVT_WIRE_CANCEL_R,
    KVT_WIRE_STATS, /* -> STATS_R: counters of enum kvt_stat, in order */
    KVT_WIRE_STATS_R,
};

struct kvt_wire_header {
    uint16_t type;
    uint16_t reserved; /* zero */
    uint32_t bytes;    /* of the whole message, header included */
    uint64_t op;
};
_Static_assert(sizeof(struct kvt_wire_header) == 16, "wire");

struct kvt_wire_hello {
    struct kvt_wire_header h;
    uint32_t magic;
    uint32_t version;
    char client[48]; /* who asks, for logs; NUL terminated */
};
_Static_assert(sizeof(struct kvt_wire_hello) == 72, "wire");

struct kvt_wire_region {
    uint64_t base;       /* first arena offset of the region */
    uint64_t bytes;      /* to map; not all of it need be backed yet */
    uint64_t page_bytes; /* 2 MiB or 4 KiB */
};

struct kvt_wire_welcome { /* one fd per region, in order */
    struct kvt_wire_header h;
    int32_t status; /* ERR_VERSION: version says what the agent speaks; no fds then */
    uint32_t version;
    uint64_t incarnation; /* differs after each start of the agent */
    uint32_t n_regions;
    uint32_t n_ops_max; /* open RESERVE and LOAD ops of one session */
    uint64_t lease_ttl_max_ns;
    struct kvt_wire_region regions[KVT_REGIONS_MAX];
    uint64_t slab_bytes; /* memory is there by whole slabs, counted from the start of a region:
                            where a slot is, all of its slab is backed */
};
_Static_assert(sizeof(struct kvt_wire_welcome) == 104, "wire");

struct kvt_wire_ns_open {
    struct kvt_wire_header h;
    struct kvt_ns_desc desc;
};
_Static_assert(sizeof(struct kvt_wire_ns_open) == 528, "wire");

struct kvt_wire_ns_open_r {
    struct kvt_wire_header h;
    int32_t status;
    uint32_t ns; /* handle, valid in this session as long as it lasts */
    uint64_t slot_bytes;
    char msg[128]; /* cause and next step when status is not OK */
};
_Static_assert(sizeof(struct kvt_wire_ns_open_r) == 160, "wire");

enum { KVT_LOOKUP_LEASE = 1 }; /* flags: pin what was found until release or expiry */

struct kvt_wire_lookup { /* then n_keys keys in prefix order */
    struct kvt_wire_header h;
    uint32_t ns;
    uint32_t n_keys;
    uint32_t flags;
    uint32_t lease_ttl_ms; /* 0: the agent's default; clipped to its maximum */
};
_Static_assert(sizeof(struct kvt_wire_lookup) == 32, "wire");

enum { KVT_WHERE_HOST = 1, KVT_WHERE_NVME = 2 };

struct kvt_wire_lookup_r { /* then n_hit bytes of KVT_WHERE_* bits */
    struct kvt_wire_header h;
    int32_t status;
    uint32_t n_hit;
    uint64_t lease; /* 0: none was asked for, n_hit is 0, or the lease table is full */
    uint64_t lease_deadline_ns;
};
_Static_assert(sizeof(struct kvt_wire_lookup_r) == 40, "wire");

struct kvt_wire_release {
    struct kvt_wire_header h;
    uint64_t lease;
};
_Static_assert(sizeof(struct kvt_wire_release) == 24, "wire");

struct kvt_wire_status { /* RELEASE_R, CANCEL_R */
    struct kvt_wire_header h;
    int32_t status;
    uint32_t reserved;
};
_Static_assert(sizeof(struct kvt_wire_status) == 24, "wire");

enum {
    KVT_STORE_PARENT = 1,  /* the first of the keys is the parent of the rest, not an item itself */
    KVT_STORE_DURABLE = 2, /* COMMIT_R waits until the chunk is on NVMe */
    KVT_LOAD_PARENT = 1,
    KVT_LOAD_PREFETCH = 4, /* bring to host memory; items are answered, nothing stays pinned */
};

struct kvt_wire_reserve { /* then n_keys keys in prefix order: keys[i - 1] is keys[i]'s parent */
    struct kvt_wire_header h;
    uint32_t ns;
    uint32_t n_keys;
    uint32_t flags; /* KVT_STORE_* */
    uint32_t reserved;
    uint64_t deadline_ns; /* how long to wait for room; 0: not at all */
};
_Static_assert(sizeof(struct kvt_wire_reserve) == 40, "wire");

struct kvt_wire_item {
    uint32_t index; /* of the item in its op */
    int32_t status;
    uint64_t offset;            /* in the arena, of the chunk's first byte; OK items only */
    uint64_t lease_deadline_ns; /* LOAD_R: the bytes stay put until then */
};
_Static_assert(sizeof(struct kvt_wire_item) == 24, "wire");

struct kvt_wire_items { /* RESERVE_R (all items at once), LOAD_R, COMMIT_R; then n_items items */
    struct kvt_wire_header h;
    int32_t status; /* not OK: the whole op is refused and over, n_items is 0 */
    uint32_t n_items;
    uint32_t n_open; /* items of the op still to be answered (LOAD_R) or committed (COMMIT_R) */
    uint32_t reserved;
};
_Static_assert(sizeof(struct kvt_wire_items) == 32, "wire");

/*
 * Some or all OK items of an open RESERVE; its op id in h.op. Then n_items uint32_t indexes padded
 * to 8 bytes, then for a commit n_items * n_segments uint64_t checksums (XXH3-64, seed 0, of each
 * segment). Items of an aborted commit go back unseen; an abort is not answered.
 */
struct kvt_wire_commit {
    struct kvt_wire_header h;
    uint32_t n_items;
    uint32_t flags; /* KVT_COMMIT_ABORT */
};
_Static_assert(sizeof(struct kvt_wire_commit) == 24, "wire");
enum { KVT_COMMIT_ABORT = 1 };

struct kvt_wire_load { /* then n_keys keys in prefix order */
    struct kvt_wire_header h;
    uint32_t ns;
    uint32_t n_keys;
    uint32_t flags; /* KVT_LOAD_* */
    uint32_t reserved;
    uint64_t deadline_ns; /* items not ready by then are answered ERR_TIMEOUT */
};
_Static_assert(sizeof(struct kvt_wire_load) == 40, "wire");

/* Counters since start and gauges, in STATS_R as uint64_t in this order. Append only. */
#define KVT_STAT_MAP(X)                                                                            \
    X(CHUNKS, chunks, "chunks held in any tier")                                                   \
    X(INDEX_BYTES, index_bytes, "memory of index, policies and ghosts in use")                     \
    X(HOST_CAPACITY_BYTES, host_capacity_bytes, "arena bytes ready for use")                       \
    X(HOST_USED_BYTES, host_used_bytes, "arena bytes in slots that hold or receive a chunk")       \
    X(NVME_CAPACITY_BYTES, nvme_capacity_bytes, "store bytes ready for use")                       \
    X(NVME_USED_BYTES, nvme_used_bytes, "store bytes in slots that hold or receive a chunk")       \
    X(SESSIONS, sessions, "open sessions")                                                         \
    X(LEASES, leases, "open leases")                                                               \
    X(PINS, pins, "pins held by leases and ops")                                                   \
    X(OPS, ops, "open ops")                                                                        \
    X(RESERVED_BYTES, reserved_bytes, "arena bytes owned by writers")                              \
    X(LOOKUPS, lookups, "lookup calls")                                                            \
    X(LOOKUP_KEYS, lookup_keys, "keys asked for by lookups")                                       \
    X(LOOKUP_HITS, lookup_hits, "keys found by lookups")                                           \
    X(LOAD_HOST_CHUNKS, load_host_chunks, "chunks loaded that were in host memory")                \
    X(LOAD_NVME_CHUNKS, load_nvme_chunks, "chunks loaded that were read from NVMe")                \
    X(LOAD_MISS_CHUNKS, load_miss_chunks, "chunks asked for by loads and not held")                \
    X(LOAD_LATE_CHUNKS, load_late_chunks, "chunks of loads past their deadline")                   \
    X(STORED_CHUNKS, stored_chunks, "chunks committed")                                            \
    X(STORED_BYTES, stored_bytes, "chunk bytes committed")                                         \
    X(STORE_EXISTS_CHUNKS, store_exists_chunks, "chunks not stored: already held")                 \
    X(STORE_BUSY_CHUNKS, store_busy_chunks, "chunks not stored: another writer has them")          \
    X(STORE_REFUSED_CHUNKS, store_refused_chunks, "chunks not stored: no room")                    \
    X(STORE_ABORTED_CHUNKS, store_aborted_chunks, "reservations that were never committed")        \
    X(EVICT_HOST_CHUNKS, evict_host_chunks, "chunks evicted from host memory")                     \
    X(EVICT_NVME_CHUNKS, evict_nvme_chunks, "chunks evicted from NVMe")                            \
    X(NVME_READ_BYTES, nvme_read_bytes, "bytes read from NVMe")                                    \
    X(NVME_WRITE_BYTES, nvme_write_bytes, "bytes written to NVMe")                                 \
    X(NVME_READ_ERRORS, nvme_read_errors, "reads from NVMe that failed")                           \
    X(NVME_WRITE_ERRORS, nvme_write_errors, "writes to NVMe that failed")                          \
    X(CORRUPT_CHUNKS, corrupt_chunks, "chunks dropped because their bytes failed verification")    \
    X(WRITE_SKIPPED_CHUNKS, write_skipped_chunks, "chunks not written to NVMe: admission or room") \
    X(SCRUBBED_CHUNKS, scrubbed_chunks, "chunks verified in the background")                       \
    X(QUARANTINED_SLOTS, quarantined_slots, "NVMe slots no longer used after a fault")             \
    X(LEASES_EXPIRED, leases_expired, "leases that ran out")                                       \
    X(NVME_DEGRADED, nvme_degraded, "1: the NVMe tier refuses writes or io_uring is not in use")   \
    X(LOOKUP_TOKENS, lookup_tokens, "tokens of the keys asked for by lookups")                     \
    X(HIT_HOST_CHUNKS, hit_host_chunks, "chunks found by lookups, in host memory")                 \
    X(HIT_HOST_TOKENS, hit_host_tokens, "tokens of these")                                         \
    X(HIT_HOST_BYTES, hit_host_bytes, "bytes of these")                                            \
    X(HIT_NVME_CHUNKS, hit_nvme_chunks, "chunks found by lookups, on NVMe alone")                  \
    X(HIT_NVME_TOKENS, hit_nvme_tokens, "tokens of these")                                         \
    X(HIT_NVME_BYTES, hit_nvme_bytes, "bytes of these")                                            \
    X(LOADED_HOST_CHUNKS, loaded_host_chunks, "chunks handed to loads, from host memory")          \
    X(LOADED_HOST_TOKENS, loaded_host_tokens, "tokens of these")                                   \
    X(LOADED_HOST_BYTES, loaded_host_bytes, "bytes of these")                                      \
    X(LOADED_NVME_CHUNKS, loaded_nvme_chunks, "chunks handed to loads, read from NVMe for it")     \
    X(LOADED_NVME_TOKENS, loaded_nvme_tokens, "tokens of these")                                   \
    X(LOADED_NVME_BYTES, loaded_nvme_bytes, "bytes of these")                                      \
    X(EVICT_HOST_BYTES, evict_host_bytes, "bytes of the chunks evicted from host memory")          \
    X(EVICT_NVME_BYTES, evict_nvme_bytes, "bytes of the chunks evicted from NVMe")                 \
    X(EVICT_INDEX_COPIES, evict_index_copies, "evictions, of either tier, for room in the index")  \
    X(DELETED_CHUNKS, deleted_chunks, "chunks deleted by an operator")                             \
    X(DELETED_BYTES, deleted_bytes, "bytes of these")                                              \
    X(REMOVED_HOST_CHUNKS, removed_host_chunks, "host copies removed by an operator, NVMe's kept") \
    X(REMOVED_NVME_CHUNKS, removed_nvme_chunks, "NVMe copies removed by an operator, host's kept") \
    X(HOST_PINNED_BYTES, host_pinned_bytes, "arena bytes in slots of pinned chunks")               \
    X(NVME_PINNED_BYTES, nvme_pinned_bytes, "store bytes in slots of pinned chunks")               \
    X(READING_BYTES, reading_bytes, "bytes on their way from NVMe")                                \
    X(WRITING_BYTES, writing_bytes, "bytes on their way to NVMe")                                  \
    X(WRITE_QUEUE_CHUNKS, write_queue_chunks, "chunks that wait to be written to NVMe")            \
    X(META_ERRORS, meta_errors, "changes of the metadata that failed")                             \
    X(ADMIN_PINS, admin_pins, "pins of operators")                                                 \
    X(ADMIN_PINNED_CHUNKS, admin_pinned_chunks, "chunks that they hold")                           \
    X(JOBS, jobs, "open jobs of operators")                                                        \
    X(EVICT_HOST_ROOM, evict_host_room, "evictions from host memory for a chunk of that size")     \
    X(EVICT_HOST_SLAB, evict_host_slab, "evictions from host memory for a slab of another size")   \
    X(EVICT_HOST_INDEX, evict_host_index, "evictions from host memory for room in the index")      \
    X(EVICT_NVME_ROOM, evict_nvme_room, "evictions from NVMe for a chunk of that size")            \
    X(EVICT_NVME_SLAB, evict_nvme_slab, "evictions from NVMe for a slab of another size")          \
    X(EVICT_NVME_INDEX, evict_nvme_index, "evictions from NVMe for room in the index")

enum kvt_stat {
#define KVT_STAT_ENUM(upper, lower, help) KVT_STAT_##upper,
    KVT_STAT_MAP(KVT_STAT_ENUM)
#undef KVT_STAT_ENUM
        KVT_STAT_N
};

struct kvt_wire_stats_r { /* then n uint64_t */
    struct kvt_wire_header h;
    uint32_t n;
    uint32_t reserved;
};
_Static_assert(sizeof(struct kvt_wire_stats_r) == 24, "wire");

#endif
