/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A tier keeps chunks in slots. A tier is cut into slabs of equal size; which slab has which slot
 * size is the core's business. A *mapped* tier is memory that others can address (the host arena);
 * a *block* tier moves slots between itself and the arena by asynchronous batches.
 */
#ifndef KVT_TIER_H
#define KVT_TIER_H

#include <stdbool.h>

#include "kvt/slot_header.h"

#define KVT_TIER_ABI 1

enum kvt_tier_caps {
    KVT_TIER_MAPPED = 1,  /* has regions, grow() */
    KVT_TIER_BLOCK = 2,   /* has submit(), poll() */
    KVT_TIER_DURABLE = 4, /* what it holds is found again after a restart */
};

enum kvt_io_type { KVT_IO_READ, KVT_IO_WRITE };

/*
 * One slot's transfer. Owned by the core, which fills it; lent to the tier from submit until
 * poll() hands it back with status set.
 *
 * A write stores *header (sealed) and the chunk. A read fetches both, and is KVT_OK only if the
 * header is the expected one (key, ns_id, digest) and every segment's checksum agrees; with
 * chunk_only it fetches the chunk, and is KVT_OK only if its checksums, key and ns_id make the
 * digest. The tier verifies, off the reactor's thread but for a little per poll (waking a worker
 * costs more than checking a small chunk). The header page then holds the checksums.
 */
struct kvt_io {
    enum kvt_io_type type;
    bool chunk_only;        /* of a read */
    enum kvt_status status; /* set by the tier: OK, ERR_IO, ERR_CORRUPT, ERR_NOSPACE */
    uint32_t slab;          /* of the block tier */
    uint32_t slot;          /* in the slab, which holds slot_bytes and a header page for each */
    uint64_t slot_bytes;    /* chunk_bytes rounded up to 4096 */
    uint64_t chunk_bytes;
    uint32_t n_segments;
    uint32_t arena_slab;            /* registered buffer index of the host slab */
    uint64_t arena_offset;          /* of the chunk; 4096-aligned */
    struct kvt_slot_header *header; /* a page of the core's header pool, 4096-aligned */
    struct kvt_key key;
    uint8_t ns_id[KVT_NS_ID_BYTES];
    uint64_t digest;
    uint32_t core_id;    /* private to the core */
    uint64_t begun_ns;   /* when it was asked for; private to the core's caller */
    void *tier_private;  /* private to the tier */
    struct kvt_io *next; /* private to whoever holds it */
};

struct kvt_tier;

/* Of a mapped tier; see kvt_wire_region. Map with MAP_NORESERVE: without it, a shared mapping of
 * huge pages claims all of them at once, backed or not. */
struct kvt_tier_region {
    int fd;
    void *addr;
    uint64_t base;
    uint64_t bytes;
    uint64_t page_bytes;
};

struct kvt_tier_info {
    uint32_t n_slabs;
    uint64_t slab_bytes; /* room for slots; for a block tier their headers included */
    unsigned n_regions;
    struct kvt_tier_region regions[2];
    char note[256]; /* what an operator should know: page size got, fallback taken; may be empty */
    bool degraded;
};

struct kvt_tier_ops {
    uint32_t abi; /* KVT_TIER_ABI */
    uint32_t caps;
    const char *name;
    void (*close)(struct kvt_tier *tier); /* block tiers: waits for what is in flight */
    void (*info)(struct kvt_tier *tier, struct kvt_tier_info *info_p);

    /* Mapped: slabs that became usable since the last call, at most n_max; -1 in event_fd: none. */
    unsigned (*ready)(struct kvt_tier *tier, uint32_t *slabs, uint64_t *arena_offsets,
                      unsigned n_max);

    /* Block: takes the accepted prefix and returns its length; fewer than n_ios is back-pressure.
     */
    unsigned (*submit)(struct kvt_tier *tier, struct kvt_io *const ios[], unsigned n_ios);
    /* Block: done transfers, each handed out once; at most n_max. Never waits. */
    unsigned (*poll)(struct kvt_tier *tier, struct kvt_io **ios, unsigned n_max);

    /* Readable when ready() or poll() has something; both clear it. Owned by the tier. */
    int (*event_fd)(struct kvt_tier *tier);
};

struct kvt_tier {
    const struct kvt_tier_ops *ops; /* no NULL entries: a missing verb is a stub that refuses */
};

#endif
