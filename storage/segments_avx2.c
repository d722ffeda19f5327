/* SPDX-License-Identifier: Apache-2.0 */
#define KVT_SEGMENTS_SUM kvt_segments_sum_avx2
#include "segments_impl.h"
