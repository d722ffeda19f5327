/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an operator may ask of the core: see into it, keep chunks, remove them, move them between
 * tiers, verify them. The rules of core.h hold: one thread, no call from inside an action, no
 * clock, and bounded work per call. What takes long is a *job*, which goes on in small steps in
 * kvt_core_flush(), behind what clients wait for.
 *
 * Lists are read page by page. A cursor is a number to hand back; 0 begins, and 0 in *cursor_p says
 * that the list is at its end. What exists all the while is listed exactly once, what comes or goes
 * in between at most once; a key that is deleted and stored again is two such. A call looks at no
 * more than KVT_ADMIN_SCAN_MAX records, so a page may be short or empty although more follows.
 */
#ifndef KVT_CORE_ADMIN_H
#define KVT_CORE_ADMIN_H

#include "kvt/core.h"

#define KVT_ADMIN_SCAN_MAX   4096 /* records that one call looks at */
#define KVT_ADMIN_PINS_MAX   1024
#define KVT_ADMIN_PINNED_MAX 65535 /* chunks of all pins, ancestors included */
#define KVT_ADMIN_OWNER_MAX  64    /* with its NUL */
#define KVT_ADMIN_JOBS_MAX   64    /* open ones, and those that ended last */
#define KVT_ADMIN_NS_ANY     UINT32_MAX

/* --- chunks ------------------------------------------------------------------------------------
 */

enum {                          /* of a filter */
       KVT_FILTER_PINNED = 1,   /* only chunks of admin pins */
       KVT_FILTER_LEASED = 2,   /* only chunks that a lease or a load holds by itself, not through a
                                   descendant */
       KVT_FILTER_UNPINNED = 4, /* only chunks that no admin pin holds */
};

/* What must all be true of a chunk. A zeroed filter with ns = KVT_ADMIN_NS_ANY takes every one. */
struct kvt_admin_filter {
    uint32_t ns;                 /* or KVT_ADMIN_NS_ANY */
    uint32_t tiers;              /* KVT_WHERE_*: held in at least one of these; 0: in any */
    uint32_t flags;              /* KVT_FILTER_* */
    uint32_t n_key_prefix_bytes; /* 0..KVT_KEY_BYTES: the key begins with that much of key_prefix */
    uint8_t key_prefix[KVT_KEY_BYTES];
    uint64_t min_bytes; /* of the chunk */
    uint64_t max_bytes; /* 0: no limit */
};

enum kvt_admin_copy { /* a chunk's state in one tier */
                      KVT_COPY_NONE,
                      KVT_COPY_COMING, /* being read or written, not usable yet */
                      KVT_COPY_VALID,
};

struct kvt_admin_chunk {
    struct kvt_key key;
    struct kvt_key parent; /* zero unless has_parent */
    bool has_parent;
    bool reused;        /* was asked for since it was stored, or since the agent started */
    bool write_waiting; /* in the queue for NVMe, or on its way */
    uint8_t where;      /* KVT_WHERE_* of the valid copies */
    uint8_t host, nvme; /* enum kvt_admin_copy */
    uint32_t ns;
    uint64_t bytes;      /* of the chunk */
    uint64_t slot_bytes; /* of the host slot; on NVMe a header page more */
    uint32_t n_children_host, n_children_nvme;
    uint32_t n_pins; /* by leases and loads */
    uint32_t n_admin_pins;
    uint64_t host_offset;          /* in the arena, if host is not NONE */
    uint32_t nvme_slab, nvme_slot; /* if nvme is not NONE */
    uint64_t digest;               /* of the slot header, if nvme is VALID */
};

/** Next page of the chunks that are held and match, at most n_max. @return how many. */
unsigned kvt_core_chunks(const struct kvt_core *core, const struct kvt_admin_filter *filter,
                         uint64_t *cursor_p, struct kvt_admin_chunk *chunks, unsigned n_max);

/** One chunk. @return KVT_OK, KVT_ERR_MISS (not held), KVT_ERR_INVAL (no such namespace). */
enum kvt_status kvt_core_chunk(const struct kvt_core *core, uint32_t ns, const struct kvt_key *key,
                               struct kvt_admin_chunk *chunk_p) KVT_MUST_CHECK;

/** Like kvt_core_lookup() without a lease, for up to KVT_BATCH_MAX keys; counts in no statistics.
 * where: n bytes, of which *n_hit_p are written. @return KVT_OK, KVT_ERR_INVAL. */
enum kvt_status kvt_core_admin_lookup(struct kvt_core *core, uint32_t ns,
                                      const struct kvt_key *keys, unsigned n, unsigned *n_hit_p,
                                      uint8_t *where) KVT_MUST_CHECK;

/* --- namespaces, tiers, sessions, leases -------------------------------------------------------
 */

/* A handle means its namespace as long as something refers to that: a session that has negotiated
 * it, a chunk, a pin, an open job. Later it may be another's: who keeps one keeps the id with it.
 */
struct kvt_admin_ns {
    uint32_t ns; /* handle */
    uint8_t id[KVT_NS_ID_BYTES];
    struct kvt_ns_desc desc;
    uint64_t slot_bytes;
    uint64_t n_chunks; /* held in any tier */
    uint64_t n_host, n_nvme;
    uint64_t host_bytes, nvme_bytes; /* of their slots */
};

unsigned kvt_core_namespaces(const struct kvt_core *core, uint64_t *cursor_p,
                             struct kvt_admin_ns *namespaces, unsigned n_max);
/** Handle of a namespace by its id; KVT_ADMIN_NS_ANY: none is open or was restored. */
uint32_t kvt_core_ns_find(const struct kvt_core *core, const uint8_t id[KVT_NS_ID_BYTES]);
/** Id of the namespace with that handle, which is one that a list gave just now; KVT_NS_ID_BYTES.
 */
const uint8_t *kvt_core_ns_id(const struct kvt_core *core, uint32_t ns);

struct kvt_admin_class { /* slots of one size */
    uint64_t slot_bytes; /* without the header page */
    uint32_t n_segments;
    uint32_t n_slabs;
};

struct kvt_admin_tier {
    bool nvme; /* else host */
    uint64_t slab_bytes;
    uint32_t n_slabs_max, n_slabs, n_slabs_free; /* configured, there, without a class */
    uint64_t capacity_bytes;
    uint64_t used_bytes;   /* slots that hold or receive a chunk, or are quarantined */
    uint64_t pinned_bytes; /* chunks held by pins, leases and loads themselves */
    uint64_t free_bytes;
    uint32_t n_quarantined;
    uint64_t n_chunks; /* valid copies */
    unsigned n_classes;
    struct kvt_admin_class classes[KVT_CLASSES_MAX];
};

/** Both tiers, host first; of an agent without NVMe one. @return how many. */
unsigned kvt_core_tiers(const struct kvt_core *core, struct kvt_admin_tier tiers[2]);

struct kvt_admin_session {
    uint32_t session;
    uint32_t n_ops, n_leases;
    uint64_t reserved_bytes; /* arena bytes that its writers own */
};

unsigned kvt_core_sessions(const struct kvt_core *core, uint64_t *cursor_p,
                           struct kvt_admin_session *sessions, unsigned n_max);

struct kvt_admin_lease {
    uint64_t lease;
    uint32_t session;
    uint32_t ns;
    uint32_t n_pins;     /* chunks held by themselves; those before them are held through them */
    struct kvt_key last; /* of the prefix */
    uint64_t deadline_ns;
};

unsigned kvt_core_leases(const struct kvt_core *core, uint64_t *cursor_p,
                         struct kvt_admin_lease *leases, unsigned n_max);

/* --- pins --------------------------------------------------------------------------------------
 * A pin keeps chunks and all before them in their prompt: no copy of theirs is evicted from the
 * tier where it is. It belongs to no session and ends with unpin, its time, or the agent: pins are
 * not remembered over a restart. A chunk that is found damaged is dropped all the same; when it is
 * stored again it is a new chunk, which the pin does not hold.
 */

struct kvt_admin_pin {
    uint64_t id; /* never 0 */
    uint32_t ns;
    uint32_t n_chunks; /* ancestors included */
    uint32_t n_lost;   /* of them: damaged or deleted since */
    char owner[KVT_ADMIN_OWNER_MAX];
    struct kvt_key last; /* of the keys that were found */
    uint64_t bytes;
    uint64_t made_ns, deadline_ns; /* UINT64_MAX: until unpin */
};

/**
 * Pin those of the keys that are held, and their ancestors, for ttl_ns (0: until unpin).
 * *n_found_p: how many of the keys.
 *
 * @return KVT_OK; KVT_ERR_MISS (none is held); KVT_ERR_INVAL (namespace, number of keys, owner);
 *         KVT_ERR_NOSPACE (table full, or the chunks of all pins would take more than half of the
 * host tier). err names the cause.
 */
enum kvt_status kvt_core_pin(struct kvt_core *core, uint32_t ns, const struct kvt_key *keys,
                             unsigned n, const char *owner, uint64_t ttl_ns, uint64_t now_ns,
                             uint64_t *pin_p, unsigned *n_found_p,
                             struct kvt_error *err) KVT_MUST_CHECK;
/** @return KVT_OK, KVT_ERR_MISS (no such pin: ended, ran out, or never was). */
enum kvt_status kvt_core_unpin(struct kvt_core *core, uint64_t pin) KVT_MUST_CHECK;
/** End all pins of an owner. @return how many. */
unsigned kvt_core_unpin_owner(struct kvt_core *core, const char *owner);
/** End all pins whose last chunk is one of these, so also the pin that was made with these keys.
 * @return how many. */
unsigned kvt_core_unpin_keys(struct kvt_core *core, uint32_t ns, const struct kvt_key *keys,
                             unsigned n);
/** One pin. False: ended, or never was. */
bool kvt_core_pin_info(const struct kvt_core *core, uint64_t pin, struct kvt_admin_pin *info_p);
unsigned kvt_core_pins(const struct kvt_core *core, uint64_t *cursor_p, struct kvt_admin_pin *pins,
                       unsigned n_max);

/* --- jobs --------------------------------------------------------------------------------------
 */

enum kvt_job_type {
    KVT_JOB_DELETE = 1, /* from the tiers given; done when neither a lookup nor a restart brings it
                           back */
    KVT_JOB_DEMOTE,     /* written to NVMe if need be, then out of host memory */
    KVT_JOB_PREFETCH,   /* into host memory */
    KVT_JOB_VERIFY,     /* NVMe copies are read and verified; a bad one is dropped */
};

enum kvt_job_state {
    KVT_JOB_PENDING, /* no step yet */
    KVT_JOB_RUNNING,
    KVT_JOB_DONE,
    KVT_JOB_CANCELED, /* what it had done stays done */
    KVT_JOB_FAILED,   /* status tells why */
};

enum {                      /* of a job */
       KVT_JOB_DRY_RUN = 1, /* count what matches, change nothing */
       KVT_JOB_FORCE = 2,   /* DELETE, DEMOTE: also what admin pins hold */
       KVT_JOB_SUBTREE = 4, /* with keys: also everything behind each of them */
};

/*
 * DELETE takes chunks out of the index at the first look at them: from then on a lookup misses.
 * What a load is being copied from, or a transfer moves, returns to the tier when that is over. By
 * keys alone, up to KVT_BATCH_MAX, this has happened for all of them when kvt_core_job_start()
 * returns. Chunks behind a deleted one stay, without their link to it.
 */
struct kvt_job_request {
    enum kvt_job_type type;
    uint32_t flags; /* KVT_JOB_* */
    uint32_t tiers; /* DELETE: KVT_WHERE_* whose copies go; 0: all. A chunk without another copy is
                       gone. Copies in use are skipped unless all go. */
    const struct kvt_key *keys;     /* NULL: whatever the filter takes. Copied. */
    unsigned n_keys;                /* 1..KVT_BATCH_MAX with keys */
    struct kvt_admin_filter filter; /* holds for keys and subtrees too; with keys, ns is not ANY */
};

struct kvt_job_info {
    uint64_t id; /* never 0 */
    enum kvt_job_type type;
    enum kvt_job_state state;
    enum kvt_status status; /* FAILED: why */
    uint32_t flags;
    bool has_ns; /* the filter names one; it may be gone when the job has ended */
    uint8_t ns_id[KVT_NS_ID_BYTES];
    uint64_t n_total, n_looked; /* progress: keys or records to look at, and looked at so far */
    uint64_t n_matched;         /* chunks */
    uint64_t n_changed;         /* deleted, demoted, read in, verified */
    uint64_t n_skipped;         /* matched, but pinned, in use, or without room */
    uint64_t n_bad;             /* VERIFY, PREFETCH: failed verification, or could not be read */
    uint64_t bytes;             /* of what was changed; of what matched in a dry run */
    uint64_t made_ns, ended_ns; /* 0: its end was not told yet */
};

/**
 * Begin a job. Its end is told by the action job_done, and stays readable until
 * KVT_ADMIN_JOBS_MAX others have come after it.
 *
 * @return KVT_OK; KVT_ERR_AGAIN (too many open, or the agent drains); KVT_ERR_NOTSUP (no NVMe
 * tier); KVT_ERR_INVAL; err names the field.
 */
enum kvt_status kvt_core_job_start(struct kvt_core *core, const struct kvt_job_request *request,
                                   uint64_t now_ns, uint64_t *job_p,
                                   struct kvt_error *err) KVT_MUST_CHECK;
/** @return KVT_OK, KVT_ERR_MISS (no such job, or forgotten). */
enum kvt_status kvt_core_job(const struct kvt_core *core, uint64_t job,
                             struct kvt_job_info *info_p) KVT_MUST_CHECK;
unsigned kvt_core_jobs(const struct kvt_core *core, uint64_t *cursor_p, struct kvt_job_info *jobs,
                       unsigned n_max);
/** Stop it. What it started ends by itself. @return KVT_OK, KVT_ERR_MISS (no such job),
 * KVT_ERR_INVAL (it has ended). */
enum kvt_status kvt_core_job_cancel(struct kvt_core *core, uint64_t job) KVT_MUST_CHECK;

#endif
