/* SPDX-License-Identifier: Apache-2.0 */
#include "samples.h"

#include <stdlib.h>

static int compare(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

double kvt_samples_quantile(float *samples, size_t n, double q)
{
    if (n == 0)
        return 0.0;
    qsort(samples, n, sizeof(*samples), compare);
    size_t i = (size_t)(q * (double)(n - 1) + 0.5);
    return (double)samples[i < n ? i : n - 1];
}
