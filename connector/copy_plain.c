/* SPDX-License-Identifier: Apache-2.0 */
#define KVT_COPY_OPS  kvt_copy_plain
#define KVT_COPY_NAME "plain"
#include "copy_impl.h"
