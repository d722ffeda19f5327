/* SPDX-License-Identifier: Apache-2.0 */
#include "codec.h"

#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "values are stored as they lie here");

void meta_key_encode(enum meta_kind kind, uint32_t number, char key[META_KEY_BYTES])
{
    uint32_t big = __builtin_bswap32(number);
    key[0] = (char)kind;
    memcpy(key + 1, &big, sizeof(big));
}

bool meta_key_decode(const char *key, size_t bytes, enum meta_kind kind, uint32_t *number_p)
{
    uint32_t big;
    if (bytes != META_KEY_BYTES || key[0] != (char)kind)
        return false;
    memcpy(&big, key + 1, sizeof(big));
    *number_p = __builtin_bswap32(big);
    return true;
}

static uint32_t checksum_of(uint32_t number, const char *value, size_t bytes)
{
    return (uint32_t)XXH3_64bits_withSeed(value, bytes, number);
}

static size_t seal(uint32_t number, char *value, size_t bytes)
{
    uint32_t sum = checksum_of(number, value, bytes);
    memcpy(value + bytes, &sum, sizeof(sum));
    return bytes + sizeof(sum);
}

static bool is_sealed(uint32_t number, const char *value, size_t bytes, size_t want)
{
    uint32_t sum;
    if (bytes != want)
        return false;
    memcpy(&sum, value + bytes - sizeof(sum), sizeof(sum));
    return sum == checksum_of(number, value, bytes - sizeof(sum));
}

/* The version comes first and unsealed, so that another format can be named. */
size_t meta_id_encode(const uint8_t store_id[16], char *value)
{
    uint32_t version = META_FORMAT_VERSION;
    memcpy(value, &version, sizeof(version));
    memcpy(value + sizeof(version), store_id, 16);
    return META_ID_BYTES;
}

bool meta_id_decode(const char *value, size_t bytes, uint8_t store_id[16], uint32_t *version_p)
{
    if (bytes < sizeof(*version_p))
        return false;
    memcpy(version_p, value, sizeof(*version_p));
    if (bytes != META_ID_BYTES)
        return false;
    memcpy(store_id, value + sizeof(*version_p), 16);
    return true;
}

size_t meta_slab_encode(uint32_t slab, uint64_t slot_bytes, char *value)
{
    memcpy(value, &slot_bytes, sizeof(slot_bytes));
    return seal(slab, value, sizeof(slot_bytes));
}

bool meta_slab_decode(uint32_t slab, const char *value, size_t bytes, uint64_t *slot_bytes_p)
{
    if (!is_sealed(slab, value, bytes, META_SLAB_BYTES))
        return false;
    memcpy(slot_bytes_p, value, sizeof(*slot_bytes_p));
    return true;
}

size_t meta_ns_encode(uint32_t ns, uint64_t since, const struct kvt_ns_desc *desc, char *value)
{
    memcpy(value, desc, sizeof(*desc));
    memcpy(value + sizeof(*desc), &since, sizeof(since));
    return seal(ns, value, sizeof(*desc) + sizeof(since));
}

bool meta_ns_decode(uint32_t ns, const char *value, size_t bytes, uint64_t *since_p,
                    struct kvt_ns_desc *desc)
{
    bool old = bytes == META_NS_OLD_BYTES;
    if (!is_sealed(ns, value, bytes, old ? META_NS_OLD_BYTES : META_NS_BYTES))
        return false;
    memcpy(desc, value, sizeof(*desc));
    *since_p = 0;
    if (!old)
        memcpy(since_p, value + sizeof(*desc), sizeof(*since_p));
    return true;
}

size_t meta_record_encode(const struct kvt_meta_record *record, char *value)
{
    memcpy(value, &record->ns, 4);
    memcpy(value + 4, &record->digest, 8);
    memcpy(value + 12, &record->generation, 8);
    memcpy(value + 20, &record->parent_slot, 4);
    memcpy(value + 24, &record->parent_tag, 4);
    memcpy(value + 28, &record->key, KVT_KEY_BYTES);
    return seal(record->slot, value, META_RECORD_BYTES - 4);
}

bool meta_record_decode(uint32_t slot, const char *value, size_t bytes,
                        struct kvt_meta_record *record)
{
    if (!is_sealed(slot, value, bytes, META_RECORD_BYTES))
        return false;
    record->slot = slot;
    memcpy(&record->ns, value, 4);
    memcpy(&record->digest, value + 4, 8);
    memcpy(&record->generation, value + 12, 8);
    memcpy(&record->parent_slot, value + 20, 4);
    memcpy(&record->parent_tag, value + 24, 4);
    memcpy(&record->key, value + 28, KVT_KEY_BYTES);
    return true;
}
