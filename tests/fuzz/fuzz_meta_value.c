/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Metadata read back from files that anything may have happened to. The input is a row of entries:
 * a byte for the kind, 4 for the number, then as much as a value of that kind has. Values get a
 * sound checksum unless the kind's byte says otherwise, so that what is behind it is reached: a
 * core that is restored from them, and whose books must balance.
 */
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "codec.h"
#include "fuzz.h"
#include "fuzz_core.h"

#define UNSEALED 0x80

static uint32_t number_of(const uint8_t *data)
{
    uint32_t number;
    memcpy(&number, data, sizeof(number));
    return number;
}

/* What parsed is what would be written for it. */
static void expect_same(const char *value, size_t bytes, const char *again, size_t bytes_again)
{
    KVT_ASSERT(bytes == bytes_again && memcmp(value, again, bytes) == 0);
}

static void value_restore(struct kvt_core *core, enum meta_kind kind, uint32_t number,
                          const char *value, size_t bytes)
{
    char again[META_VALUE_MAX];
    struct kvt_meta_record record;
    struct kvt_ns_desc desc;
    uint8_t store_id[16];
    uint64_t slot_bytes, since;
    uint32_t version;
    if (kind == META_NS && meta_ns_decode(number, value, bytes, &since, &desc)) {
        if (bytes != META_NS_OLD_BYTES)
            expect_same(value, bytes, again, meta_ns_encode(number, since, &desc, again));
        kvt_core_restore_ns(core, number, since, &desc);
    } else if (kind == META_SLAB && meta_slab_decode(number, value, bytes, &slot_bytes)) {
        expect_same(value, bytes, again, meta_slab_encode(number, slot_bytes, again));
        kvt_core_restore_slab(core, number, slot_bytes);
    } else if (kind == META_RECORD && meta_record_decode(number, value, bytes, &record)) {
        expect_same(value, bytes, again, meta_record_encode(&record, again));
        kvt_core_restore_records(core, &record, 1);
    } else if (kind == META_ID) {
        (void)meta_id_decode(value, bytes, store_id, &version);
    }
}

/* The core's order: namespaces, slabs, records. */
static void pass(struct kvt_core *core, enum meta_kind wanted, const uint8_t *data, size_t bytes)
{
    static const struct {
        enum meta_kind kind;
        size_t bytes;
    } kinds[] = {{META_NS, META_NS_BYTES},
                 {META_SLAB, META_SLAB_BYTES},
                 {META_RECORD, META_RECORD_BYTES},
                 {META_ID, META_ID_BYTES}};
    while (bytes > 5) {
        char value[META_VALUE_MAX] = "";
        unsigned which = data[0] % KVT_ARRAY_LEN(kinds);
        bool sealed = (data[0] & UNSEALED) == 0;
        uint32_t number = number_of(data + 1);
        data += 5;
        bytes -= 5;
        size_t taken = KVT_MIN(bytes, kinds[which].bytes);
        memcpy(value, data, taken);
        data += taken;
        bytes -= taken;
        if (kinds[which].kind != wanted)
            continue;
        if (sealed) {
            size_t n = kinds[which].bytes - sizeof(uint32_t);
            uint32_t sum = (uint32_t)XXH3_64bits_withSeed(value, n, number);
            memcpy(value + n, &sum, sizeof(sum));
        }
        value_restore(core, wanted, number, value, sealed ? kinds[which].bytes : taken);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static const struct kvt_core_actions none;
    struct kvt_core *core = fuzz_core_create(&none);
    pass(core, META_ID, data, bytes);
    pass(core, META_NS, data, bytes);
    pass(core, META_SLAB, data, bytes);
    pass(core, META_RECORD, data, bytes);
    (void)kvt_core_restore_end(core);
    fuzz_core_expect(core);
    kvt_core_destroy(core);
    return 0;
}
