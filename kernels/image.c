/* SPDX-License-Identifier: Apache-2.0 */
#include "kvt/gather.h"

#ifdef KVT_HAVE_KERNELS
extern const unsigned char kvt_gather_fatbin[]; /* made by embed.py */

const void *kvt_gather_image(void)
{
    return kvt_gather_fatbin;
}
#else
const void *kvt_gather_image(void)
{
    return NULL;
}
#endif
