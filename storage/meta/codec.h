/* SPDX-License-Identifier: Apache-2.0 */
/* Keys and values of the metadata as bytes. What is read is outside data until it parsed. */
#ifndef KVT_META_CODEC_H
#define KVT_META_CODEC_H

#include <stdbool.h>
#include <stddef.h>

#include "kvt/meta.h"

#define META_FORMAT_VERSION 1

/* The first byte of a key says its kind; a big-endian number follows, so that order is order. */
enum meta_kind { META_ID = 'i', META_NS = 'n', META_SLAB = 's', META_RECORD = 'r' };

#define META_KEY_BYTES  5
#define META_ID_BYTES   20
#define META_SLAB_BYTES 12
#define META_NS_BYTES   (sizeof(struct kvt_ns_desc) + 12)
#define META_NS_OLD_BYTES                                                                          \
    (sizeof(struct kvt_ns_desc) + 4) /* of one that was there from the start */
#define META_RECORD_BYTES 64
#define META_VALUE_MAX    META_NS_BYTES

void meta_key_encode(enum meta_kind kind, uint32_t number, char key[META_KEY_BYTES]);
bool meta_key_decode(const char *key, size_t bytes, enum meta_kind kind, uint32_t *number_p);

/* Values end with a checksum that covers their number too: a value under a wrong key is refused.
 * The encoders return the length. */
size_t meta_id_encode(const uint8_t store_id[16], char *value);
size_t meta_slab_encode(uint32_t slab, uint64_t slot_bytes, char *value);
size_t meta_ns_encode(uint32_t ns, uint64_t since, const struct kvt_ns_desc *desc, char *value);
size_t meta_record_encode(const struct kvt_meta_record *record, char *value);

/* *version_p is set whenever there is one to be read. */
bool meta_id_decode(const char *value, size_t bytes, uint8_t store_id[16], uint32_t *version_p);
bool meta_slab_decode(uint32_t slab, const char *value, size_t bytes, uint64_t *slot_bytes_p);
bool meta_ns_decode(uint32_t ns, const char *value, size_t bytes, uint64_t *since_p,
                    struct kvt_ns_desc *desc);
bool meta_record_decode(uint32_t slot, const char *value, size_t bytes,
                        struct kvt_meta_record *record);

#endif
