/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the core share. One object, one thread: nothing here locks. */
#ifndef KVT_CORE_INTERNAL_H
#define KVT_CORE_INTERNAL_H

#include "kvt/core_admin.h"
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
    CHUNK_UNHASHED = 8,   /* out of the index; what it holds is freed when nothing uses it */
    CHUNK_VERIFY = 16,    /* its NVMe slot is being read into a scratch slot; pinned for it */
    CHUNK_REUSED = 32,    /* was hit since it was stored */
    CHUNK_ORPHANS = 64,   /* in the list of those whose children are still to be unlinked */
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
    uint8_t job;         /* one job moves or verifies it: its place + 1; 0: none */
    uint16_t admin_pins; /* among the pins */
};
_Static_assert(sizeof(struct chunk) == 96, "index memory per chunk");

/* --- slabs -------------------------------------------------------------------------------------
 */

#define OWNER_FREE         0x80000000u
#define OWNER_QUARANTINED  0x7fffffffu
#define OWNER_SCRATCH      0x7ffffffeu /* host only: a read that verifies fills it */
#define KVT_SLOTS_PER_SLAB (1u << KVT_SLOT_INDEX_BITS)
#define GROUP_SLOTS_MAX    64u

/* Neighbouring slots of a slab. Named by the first of them. */
struct slot_group {
    uint32_t next, prev; /* of the class's groups with as many free slots */
    uint8_t n_free;      /* 0: in no list */
};

struct slab {
    uint64_t base;            /* arena offset; host only */
    uint32_t *owner;          /* per slot: chunk, or OWNER_*; NULL while the slab has no class */
    uint64_t *sums;           /* host only: n_sums checksums per slot */
    uint32_t n_slots, n_used; /* used includes quarantined */
    uint32_t n_sums;
    struct slot_group *groups;      /* beside owner */
    uint32_t n_groups, group_slots; /* how many, and of how many slots; the last may have fewer */
    uint32_t next, prev;            /* of the slabs without a class */
    uint32_t n_meta_busy;           /* announcements of its slot size under way */
    uint8_t size_class;
    bool present;
    bool meta_failed; /* the last of them: records of its slots would mean nothing */
    /* NVMe only, a bit per slot: the metadata may name a chunk there that is no longer in it. Kept
     * while the slab has no class, or another. */
    uint64_t *stale;
    uint32_t n_stale, n_stale_words;
};

/* Not a chunk's: free, quarantined or scratch. */
static inline bool owner_is_none(uint32_t owner)
{
    return (owner & OWNER_FREE) != 0 || owner >= OWNER_SCRATCH;
}

struct slab_pool {
    enum tier tier;
    uint64_t slab_bytes;
    uint64_t slot_extra_bytes; /* header beside each chunk */
    struct slab *slabs;
    uint32_t n_slabs; /* table length */
    uint32_t n_present;
    uint32_t free_head; /* slabs without a class */
    uint32_t n_free;
    struct pool_class {
        uint32_t n_slabs, n_slots, n_slots_free;
        uint32_t filling;                 /* the group that is; NONE */
        uint32_t groups[GROUP_SLOTS_MAX]; /* lists, by free slots - 1 */
        uint64_t has_groups;              /* a bit per list */
    } classes[KVT_CLASSES_MAX];
    uint32_t reclaim_cursor;
    uint32_t demote_slab, demote_slot; /* where demote_one() looks next; host */
    uint32_t n_alone;                  /* victims yet whose neighbours are not looked at; NVMe */
    uint32_t n_quarantined;
    uint32_t n_scratch;
    uint32_t n_valid; /* copies that can be used */
    uint64_t used_bytes;
    uint64_t pinned_bytes; /* of those whose chunk has pins */
    uint64_t table_bytes;  /* memory of the slabs' arrays */
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

#define NS_MAX 65536u /* a chunk names one in 16 bits */

struct ns {
    struct kvt_ns_desc desc;
    uint8_t id[KVT_NS_ID_BYTES];
    uint64_t slot_bytes;
    uint8_t size_class; /* if it has one: see core_ns_class() */
    bool has_class;
    bool used;
    bool meta_busy, meta_failed; /* its descriptor's way to the metadata */
    uint32_t n_chunks;           /* held in any tier */
    uint32_t n_of[N_TIERS];
    /* Its records have later generations: an earlier one means who had this number before. */
    uint64_t since;
    uint32_t n_refs;     /* of sessions, chunk records, open jobs, its way to the metadata */
    uint32_t next, prev; /* without: in the list of those, the longest so first */
};

struct session {
    bool open;
    uint32_t n_ns;
    uint32_t n_ops, n_leases;
    uint32_t ops, leases; /* list heads */
    uint64_t reserved_bytes;
    uint64_t over_share; /* the pump in which a store of it was found to be over its share */
};

#define LEASE_PINS              12
#define LEASE_ID(l, generation) ((uint64_t)(generation) << 32 | ((l) + 1))

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
    uint32_t prev; /* likewise, of waiters */
    int16_t status;
    uint8_t state;
    uint8_t pinned : 1;
    uint8_t from_nvme : 1; /* load: it was not in host memory when asked for */
};

enum op_type { OP_RESERVE = 1, OP_LOAD };

struct op {
    uint64_t id;
    uint64_t deadline_ns;
    uint64_t hold_until_ns; /* load: last lease_deadline given out; reserve: of n_existing */
    uint64_t queue_order;
    uint32_t session;
    uint32_t next, prev; /* in the session, or next free */
    uint32_t queue_next, queue_prev;
    uint32_t ready_next;
    uint32_t n_items;
    uint32_t n_waiting;     /* items in WAIT_SLOT */
    uint32_t n_existing;    /* reserve: items in WAIT_DURABLE before it was announced */
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

/* Ops that wait for room, or for their turn at the disk: see core_queue.c. */
struct op_queues {
    struct op_queue of_class[KVT_CLASSES_MAX];
    uint32_t n;
    uint32_t full;                      /* classes that the last pump found no room for, as bits */
    uint64_t hold_end_ns, hold_next_ns; /* of who may hold up the others */
    uint64_t resume_ns;                 /* somebody is held up until then; UINT64_MAX: nobody */
};

/* META_DROP: a deletion of what was evicted or deleted; META_DEL: after a transfer that failed. */
enum meta_token { META_NS, META_SLAB, META_PUT, META_DEL, META_DROP, N_META };

/* --- pins and jobs of an operator --------------------------------------------------------------
 */

#define PIN_BLOCK_CHUNKS 14

struct pin_block { /* 64 bytes */
    uint32_t next, n;
    uint32_t chunks[PIN_BLOCK_CHUNKS];
};

struct admin_pin {
    uint64_t id; /* 0: free */
    struct kvt_admin_pin info;
    uint32_t blocks; /* list; the newest first */
    uint32_t last;   /* chunk */
};

struct admin_pins {
    struct admin_pin *pins; /* KVT_ADMIN_PINS_MAX */
    struct pin_block *blocks;
    uint32_t n_blocks_used, free_block;
    uint32_t n_pins, n_refs; /* refs: chunks, counted once per pin */
    uint64_t bytes;          /* of slots, counted once for all pins */
    uint64_t last_id;
    struct heap heap;
};

enum job_phase { JOB_WALK, JOB_TRANSFERS, JOB_PURGE, JOB_META, JOB_ENDED };

struct job {
    struct kvt_job_info info; /* id 0: free */
    struct kvt_admin_filter filter;
    uint32_t tiers;
    uint8_t phase;
    bool tell;               /* its end was not told yet */
    uint32_t n_keys, key_at; /* n_keys 0: all records from scan_at on */
    uint32_t scan_at, scan_end;
    uint32_t root, at; /* of the subtree being walked; NONE: none. `at` is pinned. */
    bool up;           /* what is behind `at` was seen */
    unsigned n_restarts, n_later;
    uint64_t epoch;    /* of the tree, when `at` was set */
    uint32_t n_moving; /* chunks with a transfer of this job */
    uint32_t purge_slab, purge_slot;
    unsigned n_passes;
    uint64_t meta_until, n_meta_failed; /* see core_purge() */
};

struct jobs {
    struct job *jobs;     /* KVT_ADMIN_JOBS_MAX */
    struct kvt_key *keys; /* KVT_BATCH_MAX of each */
    unsigned n_open, n_tell;
    unsigned turn; /* whose it is */
    uint64_t last_id;
    uint64_t next_ns; /* of the next step; UINT64_MAX: when something has ended */
    uint64_t step_ns; /* not before, whatever ends */
    uint32_t n_reads;
    uint64_t read_bytes;
};

struct kvt_core {
    struct kvt_core_config config;
    struct kvt_core_actions actions;

    struct chunk *chunks;
    uint32_t n_chunks_used; /* records ever touched */
    uint32_t free_chunk;
    uint32_t n_chunks;   /* in the table and visible, reserved or reading */
    uint32_t orphans;    /* chunks out of the index that still have children */
    uint64_t tree_epoch; /* counts chunks that lost their parent */
    uint64_t *table;     /* tag << 32 | chunk + 1; 0: empty */
    uint64_t table_mask;
    uint64_t hash_seed[4];

    struct ns *ns;
    uint32_t n_ns;
    uint32_t ns_free;   /* all before it are used */
    uint32_t *ns_table; /* by id: the number + 1; 0: empty */
    uint32_t ns_unused_head, ns_unused_tail;
    uint64_t *ns_sessions; /* per session a bit for each number: negotiated */
    uint64_t class_bytes[KVT_CLASSES_MAX];
    unsigned n_classes;
    uint32_t class_segments[KVT_CLASSES_MAX];

    struct slab_pool pool[N_TIERS];
    uint64_t tick;

    struct session *sessions;
    struct lease *leases;
    uint32_t n_leases_used, free_lease;
    struct heap lease_heap;
    struct op *ops;
    uint32_t n_ops_used, free_op;
    struct heap op_heap;
    struct op_queues reserves, loads; /* that wait */
    uint64_t n_queued, n_pumps;       /* ever */
    uint32_t ready_ops;
    uint32_t n_loads, n_holding; /* open loads; those of them that wait for load_done */

    struct kvt_io *ios;
    struct kvt_io *free_ios, **free_ios_tail;
    uint32_t n_ios_busy, n_writes_busy;
    uint8_t *headers;
    uint32_t write_head, write_tail, n_write_queue;
    uint64_t read_bytes, write_bytes; /* in flight */
    uint32_t n_meta_busy, n_meta_kind_busy[N_META];
    uint64_t n_meta_sent, n_meta_answered, n_meta_failed; /* ever; failed: puts and deletions */
    uint64_t generation;
    unsigned n_write_failures; /* in a row */
    uint64_t write_retry_ns;   /* no writes before */
    uint64_t scrub_next_ns;
    uint32_t scrub_slab, scrub_slot, scrub_chunk;
    bool scrub_busy;
    bool draining;

    uint64_t restore_bad;
    struct heap *restore_heap; /* by generation, once the index is full */
    uint64_t stats[KVT_STAT_N];
    struct admin_pins pins;
    struct jobs jobs;
    struct kvt_wire_item scratch[KVT_BATCH_MAX];
    uint64_t hashes[KVT_BATCH_MAX];
    uint32_t found[KVT_BATCH_MAX];
};

#define STAT(core, name) ((core)->stats[KVT_STAT_##name])

/* core_ns.c */
bool core_ns_init(struct kvt_core *core);
void core_ns_fini(struct kvt_core *core);
/* Fill ns number n, of an id that is not there yet. It has no class by that, and nothing refers to
 * it. False: its chunks do not fit. */
bool core_ns_add(struct kvt_core *core, uint32_t n, uint64_t since, const struct kvt_ns_desc *desc,
                 const uint8_t id[KVT_NS_ID_BYTES]);
/* Nothing refers to it, and from here on nothing can. */
void core_ns_forget(struct kvt_core *core, uint32_t n);
uint32_t core_ns_find(const struct kvt_core *core, const uint8_t id[KVT_NS_ID_BYTES]); /* or NONE */
/* See that ns number n has a class. One whose chunks are all gone may lose it to another shape.
 * False: every class has slabs. */
bool core_ns_class(struct kvt_core *core, uint32_t n);
/* References. Without any a namespace stays as it is until its number is needed. */
void core_ns_get(struct kvt_core *core, uint32_t n);
void core_ns_put(struct kvt_core *core, uint32_t n);
/* Whether the session has negotiated it, by which it is there. */
bool core_ns_of_session(const struct kvt_core *core, uint32_t s, uint32_t n);
void core_ns_session_end(struct kvt_core *core, uint32_t s);

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
/* Out of the table, the tree and the policies. Nothing waits for it. What it holds is freed now, or
 * when no pin and no transfer uses it any more: each of their ends calls core_chunk_reap(). */
void core_chunk_drop(struct kvt_core *core, uint32_t c);
void core_chunk_reap(struct kvt_core *core, uint32_t c);
/* Unlink some children of chunks that were dropped. */
void core_orphans(struct kvt_core *core);
/* Count the copies that a chunk has now, when it gets them (in) or before it loses them. */
void core_count_copies(struct kvt_core *core, uint32_t c, bool in);
void core_pin(struct kvt_core *core, uint32_t c);
void core_unpin(struct kvt_core *core, uint32_t c);
void core_link(struct kvt_core *core, uint32_t c, uint32_t parent);
void core_set_host(struct kvt_core *core, uint32_t c, enum host_state state);
void core_set_nvme(struct kvt_core *core, uint32_t c, enum nvme_state state);
void core_update_candidate(struct kvt_core *core, uint32_t c);
/* Whether a chunk's copy on NVMe is a candidate, or will be when no child has one. */
bool core_may_leave_nvme(const struct chunk *chunk);
/* Its parent, if the tier's policy knows it; else KVT_CHUNK_NONE. */
uint32_t core_parent_in(const struct kvt_core *core, uint32_t c, enum tier tier);

static inline bool chunk_held(const struct chunk *c)
{
    return c->host_state == HOST_VALID || c->nvme_state == NVME_VALID;
}

static inline uint8_t chunk_where(const struct chunk *c)
{
    return (uint8_t)((c->host_state == HOST_VALID ? KVT_WHERE_HOST : 0) |
                     (c->nvme_state == NVME_VALID ? KVT_WHERE_NVME : 0));
}
_Static_assert(KVT_WHERE_HOST == 1, "counted as a bit");

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
/* After a restore: count the slots that nobody claimed, or give the slab back. */
void core_slab_restored(struct slab_pool *pool, uint32_t slab);
/* A free slot for the chunk; KVT_SLOT_NONE. The last n_spare of the class are left where they are,
 * alone between others, until their whole group is free. */
uint32_t core_slot_take(struct kvt_core *core, struct slab_pool *pool, unsigned size_class,
                        uint32_t chunk, uint32_t n_spare);
void core_slot_free(struct kvt_core *core, struct slab_pool *pool, uint32_t slot);
void core_slot_quarantine(struct kvt_core *core, struct slab_pool *pool, uint32_t slot);
/* The group of a slot of a slab that has a class, and how many slots a group has. */
uint32_t core_slot_group(const struct slab_pool *pool, uint32_t slot);
uint32_t core_group_size(const struct slab *slab, uint32_t first);
/* The metadata may name a chunk in the slot that is no longer there; or surely does not. Bits of
 * slots that are no slots of the slab's class are kept too. False: no memory. */
bool core_slot_stale(struct slab_pool *pool, uint32_t slot);
void core_slot_clean(struct slab_pool *pool, uint32_t slot);
uint64_t *core_slot_sums(struct slab_pool *pool, uint32_t slot);
uint64_t core_slot_offset(const struct kvt_core *core, uint32_t host_slot);

/* core_evict.c */
/* A slot for the chunk, evicting if need be; NONE: none to be had now. */
uint32_t core_room(struct kvt_core *core, enum tier tier, uint32_t chunk);
/* Whether a size has fewer slabs of host memory than its share, others having more. */
bool core_lacks_slabs(const struct kvt_core *core, unsigned size_class);
bool core_room_index(struct kvt_core *core); /* one free chunk record, evicting if need be */
/* Why a copy leaves its tier; in the order of the counters. */
enum evict_reason {
    EVICT_ROOM,  /* for a chunk of its size */
    EVICT_SLAB,  /* for a slab of another size */
    EVICT_INDEX, /* for a record */
    EVICT_NOT,   /* it was lost, or an operator wanted it so */
};
void core_forget_host(struct kvt_core *core, uint32_t c, enum evict_reason why);
void core_forget_nvme(struct kvt_core *core, uint32_t c, enum evict_reason why);
/* At rest and unpinned: may leave the index altogether. */
bool core_removable(const struct chunk *chunk);
bool core_at_rest(const struct chunk *chunk); /* the same, whoever pins it */
/* The chunk is gone for every lookup from now on, whatever moves or copies it. */
void core_delete(struct kvt_core *core, uint32_t c);

/* core_io.c */
/* number: the chunk (put), slab or namespace it is about. */
uint64_t core_meta_token(struct kvt_core *core, enum meta_token kind, uint32_t number);
void core_meta_ns(struct kvt_core *core, uint32_t n);
bool core_io_init(struct kvt_core *core);
void core_io_fini(struct kvt_core *core);
void core_want_write(struct kvt_core *core, uint32_t c);
void core_start_writes(struct kvt_core *core, uint64_t now_ns);
bool core_can_read(const struct kvt_core *core);
void core_start_read(struct kvt_core *core, uint32_t c);
/* Read the NVMe copy into a slot that is nobody's, to verify it. False: no slot to be had. */
bool core_start_verify(struct kvt_core *core, uint32_t c);
/* Take the chunk out of the queue for NVMe: what waits for it is answered with status. */
void core_cancel_write(struct kvt_core *core, uint32_t c, enum kvt_status status);
/* Delete the record of a slot. False: too many deletions are under way. */
bool core_meta_drop(struct kvt_core *core, uint32_t slot);
void core_scrub(struct kvt_core *core, uint64_t now_ns);
/* Slabs of the host tier are still to come. */
bool core_arena_grows(const struct kvt_core *core);
/* Whether room may appear by what is under way; own_bytes of reservations do not count. Leases and
 * pins do not either: they may last for long. */
bool core_room_may_come(const struct kvt_core *core, uint64_t own_bytes);

/* core_op.c */
bool core_ops_init(struct kvt_core *core);
void core_ops_fini(struct kvt_core *core);
void core_op_end(struct kvt_core *core, uint32_t o);
void core_ops_expire(struct kvt_core *core, uint64_t now_ns);
void core_ops_emit(struct kvt_core *core, uint64_t now_ns);
/* The transfer that items of the chunk waited for, a read or a durable write, is over. */
void core_wake(struct kvt_core *core, uint32_t c, enum kvt_status status);

enum core_fill {                  /* what came of trying to give a waiting op what it needs */
                 FILL_OVER,       /* it has left its queue */
                 FILL_NO_ROOM,    /* none for a chunk of this size */
                 FILL_NO_READ,    /* enough is being read */
                 FILL_OVER_SHARE, /* its session owns as much as it may */
};
enum core_fill core_reserve_fill(struct kvt_core *core, uint32_t o, uint64_t now_ns);
enum core_fill core_load_fill(struct kvt_core *core, uint32_t o, uint64_t now_ns);
void core_reserves_refuse(struct kvt_core *core); /* all that wait */

/* core_queue.c */
void core_queues_init(struct kvt_core *core);
void core_queue_add(struct kvt_core *core, uint32_t o);
void core_queue_remove(struct kvt_core *core, uint32_t o); /* no effect if it is in none */
void core_ops_pump(struct kvt_core *core, uint64_t now_ns);

/* core_lease.c */
bool core_leases_init(struct kvt_core *core);
void core_leases_fini(struct kvt_core *core);
void core_lease_end(struct kvt_core *core, uint32_t l);
void core_leases_expire(struct kvt_core *core, uint64_t now_ns);

/* core_pin.c */
bool core_pins_init(struct kvt_core *core);
void core_pins_fini(struct kvt_core *core);
void core_pins_expire(struct kvt_core *core, uint64_t now_ns);

/* core_job.c, core_job_step.c */
bool core_jobs_init(struct kvt_core *core);
void core_jobs_fini(struct kvt_core *core);
void core_jobs_step(struct kvt_core *core, uint64_t now_ns);
void core_jobs_tell(struct kvt_core *core, uint64_t now_ns);
void core_job_end(struct kvt_core *core, struct job *job, enum kvt_job_state state,
                  enum kvt_status status);
/* A first step, of a batch of keys whole. */
void core_job_walk(struct kvt_core *core, struct job *job);
void core_jobs_cancel(struct kvt_core *core);
/* A transfer of the chunk is over; if it was a job's, of this type, that is told. */
void core_job_moved(struct kvt_core *core, uint32_t c, enum kvt_job_type type,
                    enum kvt_status status);
/* Something ended that a job may wait for. */
static inline void core_jobs_wake(struct kvt_core *core)
{
    if (core->jobs.n_open > 0)
        core->jobs.next_ns = KVT_MIN(core->jobs.next_ns, core->jobs.step_ns);
}
/* Whether the filter takes a record, and it is held at all. */
bool core_filter_takes(const struct kvt_core *core, const struct kvt_admin_filter *filter,
                       uint32_t c);
/* core_purge.c */
/* Delete what records of the metadata name chunks that are gone, a step of a pass over all slabs.
 * True: the pass is at its end, and what it sent is answered when n_meta_answered has come to
 * job->meta_until. */
bool core_purge(struct kvt_core *core, struct job *job, unsigned *n_looks);

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
