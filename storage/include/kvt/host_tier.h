/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KVT_HOST_TIER_H
#define KVT_HOST_TIER_H

#include "kvt/tier.h"

enum kvt_huge_pages { KVT_HUGE_AUTO, KVT_HUGE_REQUIRE, KVT_HUGE_OFF };

struct kvt_host_config {
    uint64_t bytes;      /* of the arena; rounded down to whole slabs, at least one */
    uint64_t slab_bytes; /* multiple of 2 MiB */
    enum kvt_huge_pages huge_pages;
};

/**
 * Create the arena: one address range, of which nothing is backed yet, or one slab where huge pages
 * are required.
 *
 * @return KVT_OK; KVT_ERR_INVAL, KVT_ERR_NOMEM, KVT_ERR_NOTSUP (huge pages required, none to be
 *         had), with err telling object, cause and next step.
 */
enum kvt_status kvt_host_tier_open(const struct kvt_host_config *config, struct kvt_tier **tier_p,
                                   struct kvt_error *err) KVT_MUST_CHECK;

/**
 * Back the arena slab by slab with a background thread, first from a memfd of 2 MiB pages (reserved
 * ones, or surplus ones when this process may raise vm.nr_overcommit_hugepages; those return to the
 * kernel with the process, however it ends), and where these run out from a memfd of 4 KiB pages.
 * Returns at once: slabs arrive through ops->ready(). Slabs are zero-filled and never move. Nothing
 * where it was called before. Not to be called before what the start has to wait for: some machines
 * (a virtual one that had given its memory back) take as long to give two threads memory as to give
 * it to one after the other.
 *
 * @return KVT_OK; KVT_ERR_NOMEM: no thread.
 */
enum kvt_status kvt_host_tier_start(struct kvt_tier *tier, struct kvt_error *err) KVT_MUST_CHECK;

/** Address of an arena offset in this process. */
void *kvt_host_tier_addr(struct kvt_tier *tier, uint64_t arena_offset);

#endif
