/* SPDX-License-Identifier: Apache-2.0 */
#define KVT_COPY_OPS  kvt_copy_avx2
#define KVT_COPY_NAME "avx2"
#include "copy_impl.h"
