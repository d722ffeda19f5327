/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The deterministic heart of an agent: index, namespaces, leases, slabs and slots, ops, eviction,
 * write-behind, promotion. It reads no clock, makes no system call after creation, starts no
 * thread and takes no lock. Events come in as function calls with the present time; what is to
 * happen goes out through struct kvt_core_actions. The same core runs in kvtierd and in the
 * simulator.
 *
 * Rules for the caller (the reactor, or the simulator):
 * - One thread at a time. No call into the core from inside an action.
 * - After each batch of events call kvt_core_flush(): it starts what has become possible and emits
 *   the answers that piled up. Nothing is emitted outside flush, except as documented.
 * - An action that the core asked for is always answered: each io by kvt_core_io_done(), each
 *   metadata token by kvt_core_meta_done(), also after an error.
 * - `now_ns` never goes back.
 *
 * Answers promise what they say: after a commit's OK a lookup finds the chunk (until evicted, with
 * no lease); after release or cancel returned, the lease or op holds nothing.
 */
#ifndef KVT_CORE_H
#define KVT_CORE_H

#include <stddef.h>

#include "kvt/meta.h"
#include "kvt/policy.h"
#include "kvt/tier.h"
#include "kvt/wire.h"

struct kvt_core;

enum kvt_admission {
    KVT_ADMIT_ALL,    /* every committed chunk is written to NVMe */
    KVT_ADMIT_REUSED, /* only once it was used again, or its prefix had been (unless durable) */
    KVT_ADMIT_NONE,   /* only stores that ask for durability */
};

struct kvt_core_config {
    uint32_t n_chunks_max; /* of the index; memory is touched as chunks come */
    uint32_t n_host_slabs; /* the most that kvt_core_host_slab() may add */
    uint64_t host_slab_bytes;
    uint32_t n_nvme_slabs;    /* 0: no NVMe tier */
    uint64_t nvme_slab_bytes; /* slots and their headers */
    uint64_t group_bytes;     /* of neighbouring slots that are filled one after the other and, on
                                 NVMe and where the policy agrees, emptied together; at most */
    const struct kvt_policy_ops *host_policy;
    const struct kvt_policy_ops *nvme_policy;
    enum kvt_admission admission;
    uint32_t n_ios_max;        /* transfers in flight, each with a header page */
    uint64_t read_bytes_max;   /* a transfer begins while less than this is in flight */
    uint64_t write_bytes_max;  /* likewise */
    uint32_t n_ns_max;         /* namespaces; at most 65536 */
    uint32_t n_ns_session_max; /* that one session may have negotiated */
    uint32_t n_sessions_max;
    uint32_t n_ops_max;         /* open RESERVE and LOAD ops of all sessions */
    uint32_t n_ops_session_max; /* of one session */
    uint32_t n_leases_max;      /* of all sessions */
    uint32_t n_leases_session_max;
    uint64_t lease_ttl_ns; /* default for lookups; also how long a loaded item stays put */
    uint64_t lease_ttl_max_ns;
    uint64_t scrub_bytes_per_s; /* 0: no scrub */
    uint64_t seed;
};

struct kvt_core_actions {
    void *arg;
    /* Start a transfer; answered by kvt_core_io_done(). Called in flush. */
    void (*io)(void *arg, struct kvt_io *io);
    /* Metadata changes, to take effect in this order; each answered by kvt_core_meta_done(). The
     * most in flight at once: n_ios_max puts, 2 * n_ios_max dels, n_nvme_slabs slabs, n_ns_max ns.
     * A namespace takes the place of the one that had its number before; it is not taken from it,
     * and its descriptor stays where it is, until this is answered. */
    void (*meta_put)(void *arg, const struct kvt_meta_record *record, uint64_t token);
    void (*meta_del)(void *arg, uint32_t slot, uint64_t token);
    void (*meta_slab)(void *arg, uint32_t slab, uint64_t slot_bytes, uint64_t token);
    void (*meta_ns)(void *arg, uint32_t ns, uint64_t since, const struct kvt_ns_desc *desc,
                    uint64_t token);
    /*
     * Answers to RESERVE (all items at once), LOAD (each item once, over one or more calls) and
     * COMMIT (each item once). status not OK: the op is refused and over, n is 0. n_open: items of
     * the op not answered (or committed) yet. A load whose items are all answered stays open, its
     * items pinned, until kvt_core_load_done(); a prefetch, or a load without any OK item, is over.
     * A reserve is over when its last OK item was committed, aborted or canceled.
     */
    void (*reserved)(void *arg, uint32_t session, uint64_t op, enum kvt_status status,
                     const struct kvt_wire_item *items, unsigned n, unsigned n_open);
    void (*loaded)(void *arg, uint32_t session, uint64_t op, enum kvt_status status,
                   const struct kvt_wire_item *items, unsigned n, unsigned n_open);
    void (*committed)(void *arg, uint32_t session, uint64_t op, enum kvt_status status,
                      const struct kvt_wire_item *items, unsigned n, unsigned n_open);
    /* A job of core_admin.h has ended. NULL: nobody wants to know. */
    void (*job_done)(void *arg, uint64_t job);
};

/** @return KVT_OK, KVT_ERR_INVAL (err names the field), KVT_ERR_NOMEM. */
enum kvt_status kvt_core_create(const struct kvt_core_config *config,
                                const struct kvt_core_actions *actions, struct kvt_core **core_p,
                                struct kvt_error *err) KVT_MUST_CHECK;
/** Frees all, whatever is open. No action is called. */
void kvt_core_destroy(struct kvt_core *core);

/** The pages that kvt_io.header points into: contiguous, 4096-aligned, owned by the core. */
void kvt_core_header_pool(struct kvt_core *core, void **pool_p, uint64_t *bytes_p);

/* --- start: what the metadata remembers, before any other event ------------------------------ */

/* Bad input (unknown namespace, slot outside its slab, slot or key named twice, ...) is skipped and
 * counted; restore_end links parents and returns that count. */
void kvt_core_restore_ns(struct kvt_core *core, uint32_t ns, uint64_t since,
                         const struct kvt_ns_desc *desc);
void kvt_core_restore_slab(struct kvt_core *core, uint32_t slab, uint64_t slot_bytes);
void kvt_core_restore_records(struct kvt_core *core, const struct kvt_meta_record *records,
                              unsigned n);
uint64_t kvt_core_restore_end(struct kvt_core *core);

/** Where the first n_chunks records put what they say, from the first on: zeroed memory, of which
 * another thread may touch the pages but not the contents while records are restored. */
void kvt_core_restore_memory(struct kvt_core *core, uint64_t n_chunks, void **memory_p,
                             uint64_t *bytes_p);

/* --- the host tier grew ---------------------------------------------------------------------- */
void kvt_core_host_slab(struct kvt_core *core, uint32_t slab, uint64_t arena_offset);

/* --- sessions ----------------------------------------------------------------------------------
 */

/** @return KVT_OK, KVT_ERR_AGAIN (n_sessions_max are open). */
enum kvt_status kvt_core_session_open(struct kvt_core *core, uint32_t *session_p) KVT_MUST_CHECK;
/** The client is gone and cannot write any more: its ops, reservations and leases end here. */
void kvt_core_session_close(struct kvt_core *core, uint32_t session, uint64_t now_ns);

/**
 * Find or make the namespace, for this session: its handle is good in calls of this session, until
 * that is closed. Where all places are taken, the namespace that nothing refers to (no session, no
 * chunk, no pin, no open job) for longest makes way.
 *
 * @return KVT_OK; KVT_ERR_INVAL; KVT_ERR_NOSPACE: too many namespaces are referred to, or this
 *         session has too many, or chunks of too many shapes are held. err tells.
 */
enum kvt_status kvt_core_ns_open(struct kvt_core *core, uint32_t session,
                                 const struct kvt_ns_desc *desc, uint32_t *ns_p,
                                 uint64_t *slot_bytes_p, struct kvt_error *err) KVT_MUST_CHECK;
/** Descriptor of a namespace, or NULL. Borrowed, valid as long as something refers to it. */
const struct kvt_ns_desc *kvt_core_ns_desc(const struct kvt_core *core, uint32_t ns);

/**
 * Length of the prefix of keys that is held, and where (KVT_WHERE_* bits per chunk in where[n]).
 * With KVT_LOOKUP_LEASE, what was found cannot be evicted until release, expiry or close; reply's
 * lease is 0 when no lease could be given. Fills reply's fields except its header.
 */
void kvt_core_lookup(struct kvt_core *core, uint32_t session, uint32_t ns,
                     const struct kvt_key *keys, unsigned n, uint32_t flags, uint32_t ttl_ms,
                     uint64_t now_ns, struct kvt_wire_lookup_r *reply, uint8_t *where);
/** @return KVT_OK, KVT_ERR_EXPIRED (no such lease of this session: it ran out, or never was). */
enum kvt_status kvt_core_release(struct kvt_core *core, uint32_t session, uint64_t lease);

/*
 * Ops. A call that returns other than KVT_OK has no effect and no answer comes. keys[0] is the
 * parent of the first item with KVT_STORE_PARENT or KVT_LOAD_PARENT (then n counts it too).
 * ERR_AGAIN: too many ops open, or a store while draining. ERR_NOSPACE: chunks of too many shapes
 * are held already. ERR_INVAL: bad argument, or the op id is in use.
 *
 * A reserve waits for room until its deadline as long as anything holds some that may be given
 * back: leases, loads, other stores, transfers. What needs room of the same size is served in the
 * order of coming, and does not wait for what needs another for more than a tenth of a second, nor
 * for a session that owns half of the arena.
 *
 * A reserve with KVT_STORE_DURABLE is answered when the chunks among its keys that exist are
 * durable, at the latest two seconds after it or by its deadline. Those items say ERR_EXISTS only
 * if they are, else ERR_TIMEOUT or what went wrong with the write, or ERR_IO where the copy on NVMe
 * was lost or removed since. ERR_CANCELED, of such an item or of a durable commit: the chunk was
 * deleted, or found damaged, before.
 */
enum kvt_status kvt_core_reserve(struct kvt_core *core, uint32_t session, uint64_t op, uint32_t ns,
                                 const struct kvt_key *keys, unsigned n, uint32_t flags,
                                 uint64_t deadline_ns, uint64_t now_ns) KVT_MUST_CHECK;
/** sums: n * n_segments of the op's namespace; unused with KVT_COMMIT_ABORT, which is not answered
 * by committed(). ERR_INVAL: no such op, or an index twice or not reserved: nothing is committed.
 */
enum kvt_status kvt_core_commit(struct kvt_core *core, uint32_t session, uint64_t op,
                                const uint32_t *indexes, unsigned n, uint32_t flags,
                                const uint64_t *sums, uint64_t now_ns) KVT_MUST_CHECK;
/** n_segments of an open reserve's namespace; 0: no such op. To size a commit's message. */
uint32_t kvt_core_op_segments(const struct kvt_core *core, uint32_t session, uint64_t op);
enum kvt_status kvt_core_load(struct kvt_core *core, uint32_t session, uint64_t op, uint32_t ns,
                              const struct kvt_key *keys, unsigned n, uint32_t flags,
                              uint64_t deadline_ns, uint64_t now_ns) KVT_MUST_CHECK;
/** The client has copied what it wanted; unpins, and cancels what is not there yet. No op of that
 * id: no effect (it may just have ended). */
void kvt_core_load_done(struct kvt_core *core, uint32_t session, uint64_t op, uint64_t now_ns);
/** End an op of either kind now: no answer of it is emitted after this returned. The client no
 * longer writes into its slots. @return KVT_OK or KVT_ERR_INVAL (no such op: it is over). */
enum kvt_status kvt_core_cancel(struct kvt_core *core, uint32_t session, uint64_t op,
                                uint64_t now_ns) KVT_MUST_CHECK;

/* --- completions and time ----------------------------------------------------------------------
 */
void kvt_core_io_done(struct kvt_core *core, struct kvt_io *io, uint64_t now_ns);
void kvt_core_meta_done(struct kvt_core *core, uint64_t token, enum kvt_status status,
                        uint64_t now_ns);
/** When kvt_core_flush() has something to do without another event; UINT64_MAX: never. */
uint64_t kvt_core_next_deadline(const struct kvt_core *core);
/** Expire what is due, start what is possible, emit answers. */
void kvt_core_flush(struct kvt_core *core, uint64_t now_ns);

/** What of the config may change while the core runs, from its next decision on. */
struct kvt_core_tuning { /* the members of struct kvt_core_config */
    enum kvt_admission admission;
    uint64_t read_bytes_max;
    uint64_t write_bytes_max;
    uint64_t lease_ttl_ns; /* leases that are open keep their time */
    uint64_t lease_ttl_max_ns;
    uint64_t scrub_bytes_per_s;
};
void kvt_core_tune(struct kvt_core *core, const struct kvt_core_tuning *tuning);

/** Stop taking stores (refused with ERR_AGAIN, also those that wait for room), cancel jobs, let
 * write-behind finish. Loads are served, but nothing waits for them and no write follows from them.
 */
void kvt_core_drain(struct kvt_core *core);
/** No transfer (while draining: no write), metadata change, write-behind or job is under way or
 * waiting. */
bool kvt_core_quiescent(const struct kvt_core *core);

void kvt_core_stats(const struct kvt_core *core, uint64_t stats[KVT_STAT_N]);

/** Walk everything and compare the books: slots, links, pins, counts. For tests; slow.
 * @return true, or false with the first contradiction in msg. */
bool kvt_core_check(const struct kvt_core *core, char *msg, size_t msg_bytes);

#endif
