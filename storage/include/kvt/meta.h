/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a store holds, in RocksDB: per slot a fixed record, per namespace its descriptor, per slab
 * its slot size. Keyed by slot, so a reused slot overwrites its own record and opening is one
 * sequential read. One writer thread of its own turns whatever is queued into one write batch.
 */
#ifndef KVT_META_H
#define KVT_META_H

#include <stdbool.h>

#include "kvt/namespace.h"

#define KVT_SLOT_NONE UINT32_MAX

/* A slot of a block tier: slab << KVT_SLOT_INDEX_BITS | index in the slab. */
#define KVT_SLOT_INDEX_BITS 14

struct kvt_meta_record {
    uint32_t slot;
    uint32_t ns;     /* number given by kvt_meta_put_ns, whose `since` was not after generation */
    uint64_t digest; /* of the slot header */
    uint64_t generation;
    uint32_t parent_slot; /* KVT_SLOT_NONE: no parent on this tier */
    uint32_t parent_tag;  /* first 4 bytes of the parent's key, to tell a slot reused since */
    struct kvt_key key;
};

struct kvt_meta;

struct kvt_meta_visitor { /* called during open, in this order of kinds: ns, slab, record */
    void *arg;
    void (*ns)(void *arg, uint32_t ns, uint64_t since, const struct kvt_ns_desc *desc);
    void (*slab)(void *arg, uint32_t slab, uint64_t slot_bytes);
    /* Batches of up to 256. Records are well-formed but otherwise not to be trusted. */
    void (*records)(void *arg, const struct kvt_meta_record *records, unsigned n);
};

/** About how many records the database in dir has; 0: few, or there is none. */
uint64_t kvt_meta_records_about(const char *dir);

/**
 * Open or create the database in dir and replay it into the visitor. Values that do not parse are
 * skipped and counted in *n_bad_p.
 *
 * @param store_id  Out: the id of the store this metadata belongs to; all zero when new.
 * @return KVT_OK; KVT_ERR_CORRUPT: RocksDB refuses the directory (err says how to start afresh);
 *         KVT_ERR_VERSION: written by another format version; KVT_ERR_IO; KVT_ERR_NOMEM.
 */
enum kvt_status kvt_meta_open(const char *dir, uint8_t store_id[16],
                              const struct kvt_meta_visitor *visitor, struct kvt_meta **meta_p,
                              uint64_t *n_bad_p, struct kvt_error *err) KVT_MUST_CHECK;

/** Write what is queued, sync, close. Not to be called while another thread queues. */
void kvt_meta_close(struct kvt_meta *meta);

/** Remove everything, then remember store_id: for metadata that belongs to other files. Blocks. */
enum kvt_status kvt_meta_reset(struct kvt_meta *meta, const uint8_t store_id[16]) KVT_MUST_CHECK;

/*
 * Queue a change; one thread queues, in the order the changes must take effect. False: the ring is
 * full, nothing was queued, retry after kvt_meta_poll(). token comes back once from
 * kvt_meta_poll() when the change survives a crash of this process (of the machine: when `sync`).
 */
bool kvt_meta_put(struct kvt_meta *meta, const struct kvt_meta_record *record, uint64_t token);
bool kvt_meta_del(struct kvt_meta *meta, uint32_t slot, uint64_t token);
bool kvt_meta_put_slab(struct kvt_meta *meta, uint32_t slab, uint64_t slot_bytes, uint64_t token);
/* In the place of who had the number before, whose records have generations before `since`. */
bool kvt_meta_put_ns(struct kvt_meta *meta, uint32_t ns, uint64_t since,
                     const struct kvt_ns_desc *desc, uint64_t token);

struct kvt_meta_done {
    uint64_t token;
    enum kvt_status status;
};
unsigned kvt_meta_poll(struct kvt_meta *meta, struct kvt_meta_done *done, unsigned n_max);
int kvt_meta_event_fd(struct kvt_meta *meta); /* readable when poll has something */

#endif
