/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KVT_KVBENCH_SAMPLES_H
#define KVT_KVBENCH_SAMPLES_H

#include <stddef.h>

/** The value that a share q (0..1) of the n samples does not exceed. Sorts them. 0 when n is 0. */
double kvt_samples_quantile(float *samples, size_t n, double q);

#endif
