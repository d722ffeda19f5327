/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A page read from a store file. The first input byte chooses what is expected of it: other values
 * than the page names, or the page's own (then also with its digest mended, so that the checks
 * behind the digest are reached).
 */
#include <string.h>

#include "fuzz.h"
#include "kvt/slot_header.h"
#include "kvt/util.h"

enum { EXPECT_OTHER, EXPECT_OWN, EXPECT_OWN_MENDED, N_EXPECT };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static _Alignas(KVT_PAGE_BYTES) struct kvt_slot_header header;
    static const uint8_t chunk[64 * KVT_SEGMENTS_MAX];
    struct kvt_key key = {{1}};
    uint8_t ns_id[KVT_NS_ID_BYTES] = {2};
    uint64_t chunk_bytes = 1 << 20;
    uint32_t n_segments = 4;

    if (bytes == 0)
        return 0;
    unsigned expect = data[0] % N_EXPECT;
    memset(&header, 0, sizeof(header));
    memcpy(&header, data + 1, KVT_MIN(bytes - 1, sizeof(header)));
    if (expect == EXPECT_OWN_MENDED)
        kvt_slot_header_seal(&header);
    uint64_t digest = header.digest;
    if (expect != EXPECT_OTHER) {
        key = header.key;
        memcpy(ns_id, header.ns_id, sizeof(ns_id));
        chunk_bytes = header.chunk_bytes;
        n_segments = header.n_segments;
    }
    enum kvt_status status =
        kvt_slot_header_check(&header, &key, ns_id, digest, chunk_bytes, n_segments);
    if (status != KVT_OK)
        return 0;
    /* What passed is self-consistent, and sums can be read without another look. */
    KVT_ASSERT(header.magic == KVT_SLOT_MAGIC);
    KVT_ASSERT(memcmp(&header.key, &key, sizeof(key)) == 0);
    struct kvt_slot_header sealed = header;
    kvt_slot_header_seal(&sealed);
    KVT_ASSERT(memcmp(&sealed, &header, sizeof(header)) == 0);
    if (n_segments >= 1 && n_segments <= KVT_SEGMENTS_MAX &&
        kvt_segments_check(chunk, 64 * n_segments, header.sums, n_segments) == KVT_OK)
        KVT_ASSERT(header.sums[0] == header.sums[n_segments - 1]);
    return 0;
}
