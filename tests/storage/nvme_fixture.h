/* SPDX-License-Identifier: Apache-2.0 */
/* A host tier, a block tier over files in a temporary folder, and transfers between them. */
#ifndef KVT_NVME_FIXTURE_H
#define KVT_NVME_FIXTURE_H

#include "kvt/host_tier.h"
#include "kvt/nvme_tier.h"
#include "kvt/util.h"

#define FIX_SLAB_BYTES  (UINT64_C(16) << 20)
#define FIX_ARENA_SLABS 2u
#define FIX_DISK_SLABS  2u
#define FIX_POOL_PAGES  64u
#define FIX_DATA_OFFSET (UINT64_C(1) << 20)

struct fixture {
    enum kvt_io_engine engine;
    char dir[64];
    struct kvt_nvme_config config;
    struct kvt_tier *host;
    struct kvt_tier *nvme;
    uint64_t arena_offset[FIX_ARENA_SLABS];
    struct kvt_slot_header *pool; /* of FIX_POOL_PAGES */
    uint8_t store_id[16];
};

/** Two disks, not opened yet. variant: engine in bit 0, small pages in bit 1, unregistered in 2. */
void fixture_init(struct fixture *fix, int variant);
void fixture_fini(struct fixture *fix);
enum kvt_status fixture_open(struct fixture *fix, struct kvt_error *err);
void fixture_must_open(struct fixture *fix, bool registered);
void fixture_close(struct fixture *fix);

/** A transfer of the chunk whose bytes follow from seed; its header is in page `lane` of the pool,
 * its chunk at the lane's place in the arena. For a write, both are filled in. */
void fixture_io(struct fixture *fix, struct kvt_io *io, enum kvt_io_type type, unsigned lane,
                uint64_t lane_bytes, uint32_t slab, uint32_t slot, uint64_t chunk_bytes,
                uint64_t seed);
void *fixture_chunk(struct fixture *fix, const struct kvt_io *io);
/** Whether the chunk of io holds what seed makes. */
bool fixture_matches(struct fixture *fix, const struct kvt_io *io, uint64_t seed);

/** Submit, wait until all are back. */
void fixture_run(struct fixture *fix, struct kvt_io *ios, unsigned n);
/** One chunk of 64 KiB through slab 0. */
enum kvt_status fixture_write(struct fixture *fix, uint32_t slot, uint64_t seed);
enum kvt_status fixture_read_whole(struct fixture *fix, uint32_t slot, uint64_t seed);
enum kvt_status fixture_read(struct fixture *fix, uint32_t slot, uint64_t seed);

#define FIX_CHUNK_BYTES (UINT64_C(64) << 10)
/** Offsets in the first store file of such a slot's chunk and header. */
uint64_t fixture_chunk_offset(uint32_t slot);
uint64_t fixture_header_offset(uint32_t slot);
/** Change or move bytes of a store file behind the tier's back. */
void fixture_flip(struct fixture *fix, uint64_t offset);
void fixture_swap(struct fixture *fix, uint64_t a, uint64_t b, uint64_t bytes);

#endif
