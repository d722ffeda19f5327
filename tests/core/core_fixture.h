/* SPDX-License-Identifier: Apache-2.0 */
/* A core with edges that do only what a test says: time, disk and metadata stand still until then.
 */
#ifndef KVT_CORE_FIXTURE_H
#define KVT_CORE_FIXTURE_H

#include <check.h>
#include <string.h>

#include "kvt/core_admin.h"
#include "kvt/util.h"

#define MS          UINT64_C(1000000)
#define SLOTS_MAX   256
#define RECORDS_MAX 16384
#define ANSWERS_MAX 256

struct answer {
    char what; /* 'r'eserved, 'l'oaded, 'c'ommitted */
    uint32_t session;
    uint64_t op;
    enum kvt_status op_status;
    unsigned n_open;
    struct kvt_wire_item item;
};

struct fixture {
    struct kvt_core_config config;
    struct kvt_core *core;
    uint64_t now_ns;
    uint8_t *arena;
    struct kvt_io *ios[64]; /* submitted, oldest first */
    unsigned n_ios;
    struct {
        uint64_t token;
        char what; /* 'p'ut, 'd'el, 's'lab, 'n's */
        struct kvt_meta_record record;
        uint32_t number;
        uint64_t slot_bytes, since;
        struct kvt_ns_desc desc;
    } metas[RECORDS_MAX];
    unsigned n_metas; /* ever emitted */
    unsigned n_metas_done;
    struct answer answers[ANSWERS_MAX];
    unsigned n_answers;
    struct { /* what is on the disk, by slab and slot */
        struct kvt_slot_header header;
        uint8_t *bytes;
        uint64_t n_bytes;
    } disk[8][SLOTS_MAX];
    unsigned n_reads, n_writes;
    struct kvt_ns_desc descs[32]; /* of fixture_ns() */
    unsigned n_descs;
    uint64_t ended[2 * KVT_ADMIN_JOBS_MAX]; /* jobs whose end was told, in that order */
    unsigned n_ended;
};

/* 4 host slabs and 4 NVMe slabs with room for 4 and 2 slots of 4 KiB, and everything else ample. */
struct kvt_core_config fixture_config(void);
void fixture_init(struct fixture *f, const struct kvt_core_config *config);
void fixture_fini(struct fixture *f);
/* The agent dies; a new core starts from what the answered metadata say. Slabs of the host come
 * too. Returns what restore_end said. */
uint64_t fixture_restart(struct fixture *f);
void fixture_create(struct fixture *f, unsigned n_host_slabs);
/* fixture_init(), a session and the namespace "a" of chunks of 4 KiB in two segments. */
void fixture_start(struct fixture *f, const struct kvt_core_config *config, uint32_t *s_p,
                   uint32_t *ns_p);
/* fixture_restart(), which is to say n_bad, and a session and that namespace again. */
void fixture_start_again(struct fixture *f, uint64_t n_bad, uint32_t *s_p, uint32_t *ns_p);

void fixture_flush(struct fixture *f);
/* Complete the oldest transfer with a status; reads bring what was written, if status is OK. */
void fixture_io(struct fixture *f, enum kvt_status status);
void fixture_meta(struct fixture *f, enum kvt_status status); /* answer the oldest change */
void fixture_settle(struct fixture *f);                       /* everything, well, until rest */

/* The same, and time goes by, until no job is open. */
void fixture_jobs(struct fixture *f);

struct kvt_ns_desc fixture_desc(const char *model, uint64_t chunk_bytes, uint32_t n_segments);
/* For all sessions, those of fixture_session() that come later included. */
uint32_t fixture_ns(struct fixture *f, const char *model, uint64_t chunk_bytes,
                    uint32_t n_segments);
struct kvt_key fixture_key(unsigned n);
void fixture_keys(struct kvt_key *keys, unsigned first, unsigned n);
uint32_t fixture_session(struct fixture *f);
uint64_t fixture_stat(const struct fixture *f, enum kvt_stat stat);
/* Length of the prefix of n keys from `first` that is held; no lease. */
unsigned fixture_held(struct fixture *f, uint32_t s, uint32_t ns, unsigned first, unsigned n);
/* KVT_WHERE_*: the tiers that have a chunk, as a lookup without a lease says; 0: none. */
uint8_t fixture_where(struct fixture *f, uint32_t s, uint32_t ns, unsigned key);

/* The only answer for an item of an op, and it is taken; fails the test when there is none. */
struct answer fixture_take(struct fixture *f, char what, uint64_t op, uint32_t index);

/* reserve, write, commit and flush keys first..first+n-1; each must be granted. */
void fixture_store(struct fixture *f, uint32_t s, uint32_t ns, uint64_t op, unsigned first,
                   unsigned n, uint32_t flags);
/* A load that has 50 ms, and a flush. */
void fixture_load(struct fixture *f, uint32_t s, uint32_t ns, uint64_t op, unsigned first,
                  unsigned n, uint32_t flags);
void fixture_fill(struct fixture *f, uint32_t ns, uint64_t offset, unsigned key);
bool fixture_filled(struct fixture *f, uint32_t ns, uint64_t offset, unsigned key);
void fixture_sums(struct fixture *f, uint32_t ns, unsigned key, uint64_t *sums);

#endif
