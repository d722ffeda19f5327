/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The simulator: one core on a fake clock, disk, metadata store and arena, driven by fake clients,
 * all of it from one seed and in one thread. A model of what must be true checks every answer.
 *
 * Nothing in here may depend on anything but the seed and the options: a run that failed is
 * replayed with them and must fail in the same place.
 */
#ifndef KVT_SIM_H
#define KVT_SIM_H

#include <setjmp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "kvt/core_admin.h"
#include "kvt/util.h"

#define SIM_NS_MAX      4
#define SIM_KEYS_MAX    160
#define SIM_CHUNK_MAX   12288
#define SIM_CLIENTS_MAX 6
#define SIM_OPS_MAX     10 /* of one client */
#define SIM_ITEMS_MAX   16 /* of one op */
#define SIM_LEASES_MAX  12 /* of one client */
#define SIM_MS          UINT64_C(1000000)
#define SIM_JOBS_MAX    6
#define SIM_PINS_MAX    8

/* --- randomness --------------------------------------------------------------------------------
 */

struct sim_rng {
    uint64_t state;
};

static inline uint64_t sim_mix(uint64_t x)
{
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

static inline uint64_t sim_u64(struct sim_rng *rng)
{
    rng->state += UINT64_C(0x9e3779b97f4a7c15);
    return sim_mix(rng->state);
}

/* In [0, n). */
static inline unsigned sim_below(struct sim_rng *rng, unsigned n)
{
    return n <= 1 ? 0 : (unsigned)(sim_u64(rng) % n);
}

/* In [low, high]. */
static inline uint64_t sim_range(struct sim_rng *rng, uint64_t low, uint64_t high)
{
    return low + sim_u64(rng) % (high - low + 1);
}

static inline bool sim_chance(struct sim_rng *rng, unsigned permille)
{
    return sim_below(rng, 1000) < permille;
}

/* --- what can go wrong -------------------------------------------------------------------------
 */

#define SIM_FAULT_MAP(X)                                                                           \
    X(READ_EIO, "read_eio")                                                                        \
    X(WRITE_EIO, "write_eio")                                                                      \
    X(NOSPACE, "nospace")                                                                          \
    X(TORN, "torn")           /* a write reported as done, of which only a part landed */          \
    X(LOST, "lost")           /* ... of which nothing landed */                                    \
    X(MISDIRECT, "misdirect") /* ... that landed in another slot */                                \
    X(MISREAD, "misread")     /* a read that brought another slot's bytes */                       \
    X(FLIP, "flip")           /* a bit of the store changes at rest */                             \
    X(META_ERR, "meta_err")   /* a metadata change fails; whether it was made is open */           \
    X(META_BAD, "meta_bad")   /* at a restart, records are flipped, swapped, doubled, stale */     \
    X(META_WIPE, "meta_wipe") /* at a restart, the metadata is gone */                             \
    X(KILL, "kill")                                                                                \
    X(VANISH, "vanish") /* clients that go away at any step */                                     \
    X(STALL, "stall")   /* clients that stop for longer than their leases */                       \
    X(ABUSE, "abuse")   /* calls with wrong ids and malformed arguments */

enum sim_fault {
#define SIM_FAULT_ENUM(upper, lower) SIM_##upper,
    SIM_FAULT_MAP(SIM_FAULT_ENUM)
#undef SIM_FAULT_ENUM
        SIM_FAULT_N
};

#define SIM_BIT(fault) (1u << SIM_##fault)
/* What changes the bytes or the fate of a slot. */
#define SIM_DISK_FAULTS                                                                            \
    (SIM_BIT(READ_EIO) | SIM_BIT(WRITE_EIO) | SIM_BIT(NOSPACE) | SIM_BIT(TORN) | SIM_BIT(LOST) |   \
     SIM_BIT(MISDIRECT) | SIM_BIT(MISREAD) | SIM_BIT(FLIP))
#define SIM_META_FAULTS (SIM_BIT(META_ERR) | SIM_BIT(META_BAD) | SIM_BIT(META_WIPE))

/* --- the world ---------------------------------------------------------------------------------
 */

struct sim;

struct sim_ns {
    struct kvt_ns_desc desc;
    uint8_t id[KVT_NS_ID_BYTES];
    uint64_t slot_bytes;
    uint32_t segment_bytes;
};

/* Keys form a tree: a path from a root is a prompt. Some roots never have children: content keys.
 */
struct sim_key {
    struct kvt_key key;
    int parent; /* -1: none */
    unsigned depth;
};

/* What the model knows of a key in a namespace. */
struct sim_entry {
    bool maybe;   /* may be held: it was committed, or the metadata names it */
    bool must;    /* committed, and nothing that happened since may have removed it */
    bool durable; /* was answered as durable, and its record was not removed since */
    bool linked;  /* its parent was held when it was committed; until either is found gone */
    bool gone;    /* an operator deleted it and it was not committed since */
    uint64_t commit_seq, delete_seq; /* of sim.seq, when that last happened, or might have */
};

struct sim_disk_op {
    struct kvt_io *io; /* NULL: free */
    unsigned n_sectors, n_moved;
    unsigned start, stride; /* sectors move in this order */
    uint64_t offset;        /* where its bytes really go to or come from */
    uint64_t asked;         /* and where they should */
    enum kvt_status status;
    bool lost;
    unsigned n_torn; /* sectors that never move; 0: all do */
};

struct sim_disk {
    uint8_t *bytes;
    uint64_t n_bytes;
    bool *tainted; /* per page: a fault touched it since it was last written whole */
    struct sim_disk_op *ops;
    unsigned n_ops_max, n_busy;
};

enum sim_change_type { SIM_PUT, SIM_DEL, SIM_SLAB, SIM_NS };

struct sim_change {
    enum sim_change_type type;
    uint64_t token;
    struct kvt_meta_record record; /* PUT; slot alone: DEL */
    uint32_t number;               /* of a slab or namespace */
    uint64_t slot_bytes, since;
    struct kvt_ns_desc desc;
};

struct sim_meta_ns {
    uint32_t number;
    uint64_t since;
    struct kvt_ns_desc desc;
};

struct sim_meta_slab {
    uint32_t number;
    uint64_t slot_bytes;
};

/* What survives a kill, and the changes on their way there. Lists, since damage may double things.
 */
struct sim_meta {
    struct sim_meta_ns *ns;
    unsigned n_ns;
    struct sim_meta_slab *slabs;
    unsigned n_slabs;
    struct kvt_meta_record *records;
    unsigned n_records;
    struct kvt_meta_record *old; /* replaced or deleted ones, to bring back as stale */
    unsigned n_old;
    struct sim_change *queue;
    unsigned n_queue, n_queue_max;
    unsigned n_puts, n_dels, n_slab_changes; /* queued */
};

enum sim_item_state {
    SIM_ITEM_WAIT,       /* not answered */
    SIM_ITEM_REFUSED,    /* answered, not OK */
    SIM_ITEM_OPEN,       /* reserved, or loaded: its slot may be touched */
    SIM_ITEM_COMMITTING, /* committed and not answered */
    SIM_ITEM_DONE,
};

struct sim_item {
    enum sim_item_state state;
    enum kvt_status status;
    bool aborted;
    bool wrong; /* load: what was copied so far is not the chunk */
    bool held_parent;
    int key;
    uint64_t offset;
    uint64_t deadline_ns;
    uint32_t progress; /* bytes written or copied */
};

enum sim_op_kind { SIM_OP_NONE, SIM_STORE, SIM_LOAD, SIM_PREFETCH };

struct sim_op {
    enum sim_op_kind kind;
    uint64_t id;
    unsigned ns;
    unsigned n;
    uint32_t flags;
    uint64_t began_ns, deadline_ns;
    uint64_t seq;  /* sim.seq when it began */
    bool answered; /* store: reserved() came */
    bool over;     /* the core holds nothing for it any more, and may emit nothing */
    bool leased;   /* load: a lease held all its items when it began */
    struct sim_item items[SIM_ITEMS_MAX];
};

struct sim_lease {
    uint64_t id; /* 0: free */
    unsigned ns;
    unsigned n;
    int keys[SIM_ITEMS_MAX];
    uint64_t deadline_ns;
};

struct sim_client {
    bool open;
    uint32_t session;
    uint64_t next_id;
    uint64_t stalled_until_ns;
    bool has_ns[SIM_NS_MAX]; /* negotiated */
    uint32_t handles[SIM_NS_MAX];
    uint64_t last_lease; /* given back or run out: for wrong releases */
    struct sim_op ops[SIM_OPS_MAX];
    struct sim_lease leases[SIM_LEASES_MAX];
};

/* An open job of an operator. */
struct sim_job {
    uint64_t id; /* 0: free */
    struct kvt_job_request request;
    int ns; /* -1: any */
    int keys[SIM_ITEMS_MAX];
    uint64_t seq;
};

struct sim_pin {
    uint64_t id; /* 0: free */
    unsigned ns, n;
    int keys[SIM_ITEMS_MAX]; /* that were held; -1: a job may have deleted it since */
    uint8_t where[SIM_ITEMS_MAX];
    unsigned owner;
    uint64_t deadline_ns;
};

enum sim_action {
    SIM_ACT_CLIENT,
    SIM_ACT_DISK,
    SIM_ACT_META,
    SIM_ACT_FLUSH,
    SIM_ACT_TIME,
    SIM_ACT_GROW,
    SIM_ACT_PROBE,
    SIM_ACT_FLIP,
    SIM_ACT_KILL,
    SIM_ACT_ADMIN,
    SIM_ACT_N
};

struct sim_options {
    uint64_t n_steps;
    uint32_t faults; /* allowed; each run takes a random part of them */
    bool verbose;
};

struct sim {
    struct sim_options options;
    uint64_t seed;
    struct sim_rng rng;
    uint64_t now_ns;
    uint64_t n_steps;
    uint64_t trace; /* hash of all that happened: two runs of a seed agree in it */
    uint32_t faults;
    unsigned fault_permille;
    bool roomy; /* every tier has room for every key: nothing is ever evicted */
    unsigned weights[SIM_ACT_N];
    unsigned batch_max; /* events between flushes */

    struct kvt_core_config config;
    struct kvt_core *core;
    bool in_flush;
    bool drained;
    bool unsound; /* a chunk of this life was found damaged: what it stranded is not told */
    unsigned n_lives;
    uint64_t n_writes_before; /* faults of this life start after that many writes */

    unsigned n_ns;
    struct sim_ns ns[SIM_NS_MAX];
    unsigned n_keys;
    struct sim_key keys[SIM_KEYS_MAX];
    struct sim_entry entries[SIM_NS_MAX][SIM_KEYS_MAX];
    bool meta_damaged; /* in this life or one before: slots may be named by nobody we know */

    uint8_t *arena;
    uint64_t arena_bytes;
    uint64_t arena_base; /* offset of the first slab, so that 0 is no valid offset */
    uint32_t *slab_order;
    unsigned n_grown;
    uint32_t *writers; /* per arena page: client << 16 | op slot + 1 of the writer; 0: none */

    struct sim_disk disk;
    struct sim_meta meta;
    unsigned n_clients;
    struct sim_client clients[SIM_CLIENTS_MAX];

    uint64_t seq;       /* counts commits and what operators begin */
    uint64_t n_deletes; /* of operators, in this life */
    struct sim_job jobs[SIM_JOBS_MAX];
    struct sim_pin pins[SIM_PINS_MAX];
    uint64_t ended[KVT_ADMIN_JOBS_MAX]; /* jobs whose end was told in this flush */
    unsigned n_ended;
    uint64_t n_losses; /* chunks evicted or lost in this life, as of the last flush */

    /* Commits answered in this flush, to be looked up right after it. */
    unsigned n_fresh;
    struct {
        unsigned ns;
        int key;
        bool durable;
    } fresh[256];

    jmp_buf failed;
    char failure[512];
};

/* --- sim_main.c --------------------------------------------------------------------------------
 */

/* The run ends here: something that must never be, is. */
_Noreturn void sim_fail(struct sim *sim, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
void sim_log_write(struct sim *sim, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define sim_log(sim, ...)                                                                          \
    do {                                                                                           \
        if ((sim)->options.verbose)                                                                \
            sim_log_write(sim, __VA_ARGS__);                                                       \
    } while (0)

#define SIM_CHECK(sim, e, ...)                                                                     \
    do {                                                                                           \
        if (!(e))                                                                                  \
            sim_fail(sim, __VA_ARGS__);                                                            \
    } while (0)

static inline void sim_trace(struct sim *sim, uint64_t what)
{
    sim->trace = sim_mix(sim->trace ^ what);
}

/* A fault that this run has, now and then. */
static inline bool sim_fault(struct sim *sim, enum sim_fault fault)
{
    return (sim->faults & (1u << fault)) != 0 && sim_chance(&sim->rng, sim->fault_permille);
}

/* --- sim_model.c: the truth, and what can be checked at any moment -----------------------------
 */
void sim_model_init(struct sim *sim);
void sim_model_bytes(const struct sim *sim, unsigned ns, int key, uint8_t *bytes);
void sim_model_sums(const struct sim *sim, unsigned ns, int key, uint64_t *sums);
int sim_model_find_key(const struct sim *sim, const struct kvt_key *key);
/* Its handle now, or KVT_ADMIN_NS_ANY: the node does not know it. */
uint32_t sim_model_handle(const struct sim *sim, unsigned ns);
int sim_model_find_ns_id(const struct sim *sim, const uint8_t *ns_id);
/* Whether a chunk is held, asked by a lookup of it alone; where_p may be NULL. */
bool sim_model_held(struct sim *sim, unsigned ns, int key, uint8_t *where_p);
/* After a flush. lost: something was evicted or found damaged since the one before. */
void sim_model_fresh(struct sim *sim, bool lost);
void sim_model_probe(struct sim *sim);       /* some random part of what must be true */
void sim_model_restart(struct sim *sim);     /* after a restart: what must have survived */
void sim_model_before_kill(struct sim *sim); /* what was evicted need not survive */
void sim_model_killed(struct sim *sim);      /* what may survive, from the metadata */
void sim_model_quiet(struct sim *sim);       /* at quiescence: nothing leaks, all adds up */
/* A chunk's bytes could not be read: it may be gone now. */
void sim_model_lost(struct sim *sim, const struct kvt_key *key, const uint8_t *ns_id);
void sim_model_leases(struct sim *sim);   /* what leases hold is held */
void sim_model_progress(struct sim *sim); /* what has a deadline was answered by it */

/* --- sim_node.c: the core, its life and its actions --------------------------------------------
 */
void sim_node_init(struct sim *sim);
void sim_node_fini(struct sim *sim);
void sim_node_start(struct sim *sim);
void sim_node_kill(struct sim *sim);
void sim_node_grow(struct sim *sim);
void sim_node_flush(struct sim *sim);
void sim_node_advance(struct sim *sim, uint64_t dt_ns);
void sim_node_settle(struct sim *sim); /* complete everything until the core rests */
void *sim_node_addr(struct sim *sim, uint64_t offset, uint64_t bytes);

/* --- sim_disk.c --------------------------------------------------------------------------------
 */
void sim_disk_init(struct sim *sim);
void sim_disk_fini(struct sim *sim);
void sim_disk_submit(struct sim *sim, struct kvt_io *io);
/* Move some bytes of some transfer, maybe complete it. all: complete one whatever it takes. */
bool sim_disk_step(struct sim *sim, bool all);
void sim_disk_flip(struct sim *sim);
void sim_disk_kill(struct sim *sim);
bool sim_disk_tainted(const struct sim *sim, uint32_t slot, uint64_t slot_bytes);
/* Whether the slot holds the chunk that the record says, whole and true. */
bool sim_disk_holds(const struct sim *sim, const struct kvt_meta_record *record, unsigned ns);

/* --- sim_meta.c --------------------------------------------------------------------------------
 */
void sim_meta_init(struct sim *sim);
void sim_meta_fini(struct sim *sim);
void sim_meta_actions(struct sim *sim, struct kvt_core_actions *actions);
bool sim_meta_step(struct sim *sim); /* answer the oldest change */
void sim_meta_kill(struct sim *sim);
/* The slot that a record may still name gets other bytes: its chunk was evicted. */
void sim_meta_overwritten(struct sim *sim, uint32_t slot);
/* Its slot is being given to another chunk. */
bool sim_meta_doomed(const struct sim *sim, const struct kvt_meta_record *record);
void sim_meta_damage(struct sim *sim);
void sim_meta_restore(struct sim *sim);
/* The record of a chunk among those that survive a kill, or NULL. */
const struct kvt_meta_record *sim_meta_find(const struct sim *sim, unsigned ns, int key);
/* Whether any record names the chunk, be it one that means nothing any more. */
bool sim_meta_names(const struct sim *sim, unsigned ns, int key);
/* Whether a record, or one on its way, would bring the chunk back at a restart. */
bool sim_meta_promises(const struct sim *sim, unsigned ns, int key);
const struct kvt_meta_record *sim_meta_at(const struct sim *sim, uint32_t slot);

/* --- sim_client.c: what clients do; sim_answer.c: what they are told ---------------------------
 */
void sim_client_step(struct sim *sim, struct sim_client *client);
void sim_client_open(struct sim *sim, struct sim_client *client);
/* Gone without a word; the agent notices. */
void sim_client_close(struct sim *sim, struct sim_client *client);
/* Bring everything it has open to an end, as a well-behaved client does at its end. */
void sim_client_finish(struct sim *sim, struct sim_client *client);
void sim_client_abuse(struct sim *sim, struct sim_client *client);
void sim_client_lost(struct sim *sim, struct sim_client *client); /* the agent is gone */
void sim_client_end_op(struct sim *sim, struct sim_client *client, struct sim_op *op);
void sim_writer_set(struct sim *sim, struct sim_client *client, struct sim_op *op,
                    struct sim_item *item);
void sim_writer_clear(struct sim *sim, struct sim_op *op, struct sim_item *item);

void sim_answer_actions(struct sim *sim, struct kvt_core_actions *actions);

/* --- sim_admin.c: what operators do ------------------------------------------------------------
 */
void sim_admin_step(struct sim *sim);
void sim_admin_job_done(void *arg, uint64_t job); /* an action */
void sim_admin_flushed(struct sim *sim);          /* after each flush: ends, and what they mean */
void sim_admin_lists(struct sim *sim);            /* what is listed is what lookups find */
void sim_admin_finish(struct sim *sim);           /* ends its pins; its jobs end by themselves */
void sim_admin_killed(struct sim *sim);
bool sim_admin_deletes(const struct sim *sim); /* a job that deletes is open */

#endif
