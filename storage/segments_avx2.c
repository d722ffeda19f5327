/* SPDX-License-Identifier: Apache-2.0 */
#define KVT_SEGMENTS_AGREE kvt_segments_agree_avx2
#include "segments_impl.h"
