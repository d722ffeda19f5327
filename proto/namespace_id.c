/* SPDX-License-Identifier: Apache-2.0 */
/* Apart from namespace.c, because the connector has no use for ids nor for libcrypto. */
#include "kvt/namespace.h"

#include <openssl/sha.h>
#include <string.h>

#define NS_ID_VERSION 1

void kvt_ns_id(const struct kvt_ns_desc *desc, uint8_t id[KVT_NS_ID_BYTES])
{
    uint8_t canonical[1 + sizeof(*desc)];
    canonical[0] = NS_ID_VERSION;
    memcpy(canonical + 1, desc, sizeof(*desc));
    SHA256(canonical, sizeof(canonical), id);
}
