/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the core share. One object, one thread: nothing here locks. */
#ifndef KVT_CORE_INTERNAL_H
#define KVT_CORE_INTERNAL_H

#include "kvt/core.h"
#include "kvt/util.h"

#define NONE UINT32_MAX

enum tier { HOST, NVME, N_TIERS };

/* --- chunks ------------------------------------------------------------------------------------
 */

enum host_state {
    HOST_NONE,
    HOST_RESERVED, /* a writer owns the slot, or waits for one; not visible */
    HOST_READING,  /* being filled from NVMe */
    HOST_VALID,
};

enum nvme_state {
    NVME_NONE,
    NVME_WRITING, /* from a valid host slot */
    NVME_META,    /* bytes are there, the metadata is under way */
    NVME_VALID,
};

enum chunk_flags {
    CHUNK_CANDIDATE = 1,  /* << tier: the tier's policy knows it as one */
    CHUNK_WANT_WRITE = 4, /* in the write-behind queue or on its way to NVMe */
    CHUNK_UNHASHED = 8, /* lost its bytes while pinned: no longer found, freed with its last pin */
    CHUNK_SCRUB = 16,   /* the read under way only verifies */
    CHUNK_REUSED = 32,  /* was hit since it was stored */
};

/* 96 bytes. Key and the fields that a lookup needs never straddle a cache line each. */
struct chunk {
    struct kvt_key key;
    uint32_t parent; /* NONE, or of a free record: the next free one */
    uint32_t first_child, next_sibling, prev_sibling;
    uint32_t host_slot, nvme_slot;
    uint32_t pins; /* by leases and loads */
    uint16_t ns;
    uint8_t host_state, nvme_state;
    uint64_t digest;              /* of the slot header on NVMe */
    uint32_t n_children[N_TIERS]; /* children whose state in that tier is not NONE */
    uint32_t waiters;             /* items of ops that wait for this chunk's transfer */
    uint32_t write_next, write_prev;
    uint8_t flags;
    uint8_t reserved[3];
};
_Static_assert(sizeof(struct chunk) == 96, "index memory per chunk");

/* --- slabs -------------------------------------------------------------------------------------
 */

#define OWNER_FREE         0x80000000u /* | index of the next free slot of the slab */
#define OWNER_QUARANTINED  0x7fffffffu
#define KVT_SLOTS_PER_SLAB (1u << KVT_SLOT_INDEX_BITS)

struct slab {
    uint64_t base;            /* arena offset; host only */
    uint32_t *owner;          /* per slot: chunk, or OWNER_*; NULL while the slab has no class */
    uint64_t *sums;           /* host only: n_sums checksums per slot */
    uint32_t n_slots, n_used; /* used includes quarantined */
    uint32_t n_sums;
    uint32_t first_free;
    uint32_t next, prev;  /* in the list of slabs with room of its class, or of free slabs */
    uint32_t n_meta_busy; /* announcements of its slot size under way */
    uint8_t size_class;
    bool present, listed;
    bool meta_failed; /* the last of them: records of its slots would mean nothing */
};

struct slab_pool {
    enum tier tier;
    uint64_t slab_bytes;
    uint64_t slot_extra_bytes; /* header beside each chunk */
    struct slab *slabs;
    uint32_t n_slabs; /* table length */
    uint32_t n_present;
    uint32_t free_head; /* slabs without a class */
    uint32_t n_free;
    uint32_t room_head[KVT_CLASSES_MAX];
    uint32_t n_of_class[KVT_CLASSES_MAX];
    uint32_t reclaim_cursor;
    uint32_t demote_slab, demote_slot; /* where demote_one() looks next; host */
    uint32_t n_quarantined;
    uint64_t used_bytes;
    uint64_t table_bytes; /* memory of owner and sums arrays */
    struct kvt_policy *policy;
};

static inline uint32_t slot_make(uint32_t slab, uint32_t index)
{
    return slab << KVT_SLOT_INDEX_BITS | index;
}

static inline uint32_t slot_slab(uint32_t slot)
{
    return slot >> KVT_SLOT_INDEX_BITS;
}

static inline uint32_t slot_index(uint32_t slot)
{
    return slot & (KVT_SLOTS_PER_SLAB - 1);
}

/* --- namespaces, sessions, leases, ops ---------------------------------------------------------
 */

#define NS_MAX 65536u

struct ns {
    struct kvt_ns_desc desc;
    uint8_t id[KVT_NS_ID_BYTES];
    uint64_t slot_bytes;
    uint8_t size_class;
    bool used;
    bool meta_busy, meta_failed; /* its descriptor's way to the metadata */
};

struct session {
    bool open;
    uint32_t n_ops, n_leases;
    uint32_t ops, leases; /* list heads */
    uint64_t reserved_bytes;
};

#define LEASE_PINS 12

struct lease { /* a lease with many pins continues in `more` */
    uint64_t deadline_ns;
    uint32_t generation;
    uint32_t session;    /* NONE: free, or a continuation */
    uint32_t next, prev; /* in the session, or next free */
    uint32_t more;
    uint32_t n_pins;
    uint32_t pins[LEASE_PINS];
};

enum item_state {
    ITEM_DONE,         /* nothing is held for it */
    ITEM_WAIT_SLOT,    /* needs a host slot */
    ITEM_WAIT_READ,    /* in the chunk's waiters */
    ITEM_WAIT_DURABLE, /* committed, in the chunk's waiters */
    ITEM_GRANTED,      /* reserve: the writer owns the slot */
    ITEM_ANSWER,       /* in the op's list of answers to emit */
    ITEM_HELD,         /* load: answered OK, pinned */
};

struct item {
    uint32_t chunk;
    uint32_t next; /* item reference: waiters of a chunk, or index: answers of an op */
    int16_t status;
    uint8_t state;
    uint8_t pinned;
};

enum op_type { OP_RESERVE = 1, OP_LOAD };

struct op {
    uint64_t id;
    uint64_t deadline_ns;
    uint64_t hold_until_ns; /* load: last lease_deadline given out */
    uint32_t session;
    uint32_t next, prev; /* in the session, or next free */
    uint32_t queue_next, queue_prev;
    uint32_t ready_next;
    uint32_t n_items;
    uint32_t n_waiting;     /* items in WAIT_SLOT */
    uint32_t n_open;        /* not answered (load), not committed and answered (reserve) */
    uint32_t first_waiting; /* no item before it is in WAIT_SLOT */
    uint32_t answers_head, answers_tail;
    uint32_t n_prefix_hits;
    uint32_t flags;
    uint16_t ns;
    uint8_t type;
    bool queued, ready;
    bool announced; /* reserve: reserved() was emitted */
    bool holding;   /* load: answered in full, its OK items are pinned for the client's copy */
    struct item items[KVT_BATCH_MAX];
};

/* Deadlines by object index; each object is in it at most once. */
struct heap {
    uint64_t *when;
    uint32_t *ids, *pos; /* pos[id] == NONE: not in it */
    uint32_t n;
};

struct op_queue {
    uint32_t head, tail;
};

/* META_DROP: a deletion to make room in the index; META_DEL: after a transfer that failed. */
enum meta_token { META_NS, META_SLAB, META_PUT, META_DEL, META_DROP, N_META };

struct kvt_core {
    struct kvt_core_config config;
    struct kvt_core_actions actions;

    struct chunk *chunks;
    uint32_t n_chunks_used; /* records ever touched */
    uint32_t free_chunk;
    uint32_t n_chunks; /* in the table and visible, reserved or reading */
    uint64_t *table;   /* tag << 32 | chunk + 1; 0: empty */
    uint64_t table_mask;
    uint64_t hash_seed[4];

    struct ns *ns;
    uint32_t n_ns;
    uint64_t class_bytes[KVT_CLASSES_MAX];
    unsigned n_classes;
    uint32_t class_segments[KVT_CLASSES_MAX]; /* most segments that its namespaces have */

    struct slab_pool pool[N_TIERS];
    uint64_t tick;

    struct session *sessions;
    struct lease *leases;
    uint32_t n_leases_used, free_lease;
    struct heap lease_heap;
    struct op *ops;
    uint32_t n_ops_used, free_op;
    struct heap op_heap;
    struct op_queue reserve_queue, load_queue;
    uint32_t ready_ops;
    uint32_t n_loads, n_holding; /* open loads; those of them that wait for load_done */

    struct kvt_io *ios;
    struct kvt_io *free_ios;
    uint32_t n_ios_busy, n_writes_busy;
    uint8_t *headers;
    uint32_t write_head, write_tail, n_write_queue;
    uint64_t read_bytes, write_bytes; /* in flight */
    uint32_t n_meta_busy, n_meta_kind_busy[N_META];
    uint64_t generation;
    unsigned n_write_failures; /* in a row */
    uint64_t write_retry_ns;   /* no writes before */
    uint64_t scrub_next_ns;
    uint32_t scrub_slab, scrub_slot;
    bool scrub_busy;
    bool draining;

    uint64_t restore_bad;
    struct heap *restore_heap; /* by generation, once the index is full */
    uint64_t stats[KVT_STAT_N];
    struct kvt_wire_item scratch[KVT_BATCH_MAX];
    uint64_t hashes[KVT_BATCH_MAX];
    uint32_t found[KVT_BATCH_MAX];
};

#define STAT(core, name) ((core)->stats[KVT_STAT_##name])

/* core.c */
/* Fill ns number n. False: its chunks do not fit (err). */
bool core_ns_add(struct kvt_core *core, uint32_t n, const struct kvt_ns_desc *desc,
                 struct kvt_error *err);

/* core_index.c */
bool core_index_init(struct kvt_core *core);
void core_index_fini(struct kvt_core *core);
uint64_t core_hash(const struct kvt_core *core, const struct kvt_key *key, uint32_t ns);
uint32_t core_find_hashed(const struct kvt_core *core, const struct kvt_key *key, uint32_t ns,
                          uint64_t hash);
/* Chunks of keys[0..n) or NONE each, in core->found; stops early after a NONE if prefix_only.
 * Returns how many entries are filled. */
unsigned core_find_batch(struct kvt_core *core, const struct kvt_key *keys, unsigned n, uint32_t ns,
                         bool prefix_only);
uint32_t core_chunk_new(struct kvt_core *core, const struct kvt_key *key, uint32_t ns);
/* Out of the table and the tree; the record is freed now or with its last pin. */
void core_chunk_drop(struct kvt_core *core, uint32_t c);
void core_pin(struct kvt_core *core, uint32_t c);
void core_unpin(struct kvt_core *core, uint32_t c);
void core_link(struct kvt_core *core, uint32_t c, uint32_t parent);
void core_set_host(struct kvt_core *core, uint32_t c, enum host_state state);
void core_set_nvme(struct kvt_core *core, uint32_t c, enum nvme_state state);
void core_update_candidate(struct kvt_core *core, uint32_t c);
/* Its parent, if the tier's policy knows it; else KVT_CHUNK_NONE. */
uint32_t core_parent_in(const struct kvt_core *core, uint32_t c, enum tier tier);

static inline bool chunk_held(const struct chunk *c)
{
    return c->host_state == HOST_VALID || c->nvme_state == NVME_VALID;
}

static inline struct ns *chunk_ns(struct kvt_core *core, uint32_t c)
{
    return &core->ns[core->chunks[c].ns];
}

/* core_slab.c */
bool core_pool_init(struct slab_pool *pool, enum tier tier, uint32_t n_slabs, uint64_t slab_bytes,
                    uint64_t slot_extra_bytes);
void core_pool_fini(struct slab_pool *pool);
void core_pool_add(struct slab_pool *pool, uint32_t slab, uint64_t base);
/* Give a free slab a class. False: no memory for its tables. */
bool core_slab_assign(struct kvt_core *core, struct slab_pool *pool, uint32_t slab,
                      unsigned size_class);
/* Change the class of a slab without used slots, for one of the same slot size. */
void core_slab_reclass(struct slab_pool *pool, uint32_t slab, unsigned size_class);
uint32_t core_slot_take(struct kvt_core *core, struct slab_pool *pool, unsigned size_class,
                        uint32_t chunk);
void core_slot_free(struct kvt_core *core, struct slab_pool *pool, uint32_t slot);
void core_slot_quarantine(struct kvt_core *core, struct slab_pool *pool, uint32_t slot);
void core_slab_thread(struct slab_pool *pool, uint32_t slab);
uint64_t *core_slot_sums(struct slab_pool *pool, uint32_t slot);
uint64_t core_slot_offset(const struct kvt_core *core, uint32_t host_slot);

/* core_evict.c */
/* A slot for the chunk, evicting if need be; NONE: none to be had now. */
uint32_t core_room(struct kvt_core *core, enum tier tier, uint32_t chunk);
bool core_room_index(struct kvt_core *core); /* one free chunk record, evicting if need be */
void core_forget_host(struct kvt_core *core, uint32_t c, bool evicted);
void core_forget_nvme(struct kvt_core *core, uint32_t c, bool evicted);

/* core_io.c */
/* number: the chunk (put), slab or namespace it is about. */
uint64_t core_meta_token(struct kvt_core *core, enum meta_token kind, uint32_t number);
void core_meta_ns(struct kvt_core *core, uint32_t n);
bool core_io_init(struct kvt_core *core);
void core_io_fini(struct kvt_core *core);
void core_want_write(struct kvt_core *core, uint32_t c);
void core_start_writes(struct kvt_core *core, uint64_t now_ns);
bool core_can_read(const struct kvt_core *core, uint64_t slot_bytes);
void core_start_read(struct kvt_core *core, uint32_t c);
void core_scrub(struct kvt_core *core, uint64_t now_ns);
/* Slabs of the host tier are still to come. */
bool core_arena_grows(const struct kvt_core *core);
/* Whether room may appear by what is under way; own_bytes of reservations do not count. */
bool core_room_may_come(const struct kvt_core *core, uint64_t own_bytes);

/* core_op.c */
bool core_ops_init(struct kvt_core *core);
void core_ops_fini(struct kvt_core *core);
void core_op_end(struct kvt_core *core, uint32_t o);
void core_ops_expire(struct kvt_core *core, uint64_t now_ns);
void core_ops_pump(struct kvt_core *core, uint64_t now_ns);
void core_ops_emit(struct kvt_core *core, uint64_t now_ns);
/* The transfer that items of the chunk waited for, a read or a durable write, is over. */
void core_wake(struct kvt_core *core, uint32_t c, enum kvt_status status);

/* core_lease.c */
bool core_leases_init(struct kvt_core *core);
void core_leases_fini(struct kvt_core *core);
void core_lease_end(struct kvt_core *core, uint32_t l);
void core_leases_expire(struct kvt_core *core, uint64_t now_ns);

/* core_heap.c */
bool heap_init(struct heap *heap, uint32_t n_max);
void heap_fini(struct heap *heap);
void heap_set(struct heap *heap, uint32_t id, uint64_t when);
void heap_remove(struct heap *heap, uint32_t id);

static inline uint64_t heap_first(const struct heap *heap)
{
    return heap->n == 0 ? UINT64_MAX : heap->when[heap->ids[0]];
}

#endif
