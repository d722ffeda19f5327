/* SPDX-License-Identifier: Apache-2.0 */
#include "copy.h"

const struct kvt_copy_ops *kvt_copy_best(void)
{
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx2"))
        return &kvt_copy_avx2;
#endif
    return &kvt_copy_plain;
}
