/* SPDX-License-Identifier: Apache-2.0 */
#include "scratch.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "kvt/host_tier.h"
#include "kvt/util.h"

#define BACK_MS 30000

enum kvt_status kvt_scratch_open(uint64_t bytes, bool huge, struct kvt_scratch **scratch_p,
                                 struct kvt_error *err)
{
    struct kvt_scratch *s = calloc(1, sizeof(*s));
    if (s == NULL)
        return kvt_error_set(err, KVT_ERR_NOMEM, "micro: out of memory");
    /* One slab: all of it in pages of one size. */
    uint64_t rounded = kvt_align_up(bytes, UINT64_C(2) << 20);
    struct kvt_host_config config = {
        .bytes = rounded, .slab_bytes = rounded, .huge_pages = huge ? KVT_HUGE_AUTO : KVT_HUGE_OFF};
    enum kvt_status status = kvt_host_tier_open(&config, &s->tier, err);
    if (status != KVT_OK) {
        free(s);
        return status;
    }
    status = kvt_host_tier_start(s->tier, err);
    if (status != KVT_OK) {
        kvt_scratch_close(s);
        return status;
    }
    uint32_t slab;
    uint64_t offset;
    uint64_t end_ns = kvt_now_ns() + BACK_MS * UINT64_C(1000000);
    while (s->tier->ops->ready(s->tier, &slab, &offset, 1) == 0) {
        struct pollfd p = {.fd = s->tier->ops->event_fd(s->tier), .events = POLLIN};
        if (kvt_now_ns() > end_ns || (poll(&p, 1, 1000) < 0 && errno != EINTR)) {
            kvt_scratch_close(s);
            return kvt_error_set(err, KVT_ERR_NOMEM,
                                 "micro: no memory for a reference of %llu bytes",
                                 (unsigned long long)bytes);
        }
    }
    struct kvt_tier_info info;
    s->tier->ops->info(s->tier, &info);
    for (unsigned i = 0; i < info.n_regions; i++)
        if (offset >= info.regions[i].base && offset < info.regions[i].base + info.regions[i].bytes)
            s->page_bytes = info.regions[i].page_bytes;
    s->memory = kvt_host_tier_addr(s->tier, offset);
    s->bytes = rounded;
    memset(s->memory, 0x5a, s->bytes);
    *scratch_p = s;
    return KVT_OK;
}

void kvt_scratch_close(struct kvt_scratch *s)
{
    if (s == NULL)
        return;
    s->tier->ops->close(s->tier);
    free(s);
}
