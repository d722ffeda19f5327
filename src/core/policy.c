/* SPDX-License-Identifier: Apache-2.0 */
#include "kvt/policy.h"

#include <stddef.h>
#include <string.h>

#include "kvt/util.h"

static const struct kvt_policy_ops *const policies[] = {
    &kvt_policy_lhd,
    &kvt_policy_lru,
    &kvt_policy_s3fifo,
};

const struct kvt_policy_ops *kvt_policy_find(const char *name)
{
    for (size_t i = 0; i < KVT_ARRAY_LEN(policies); i++)
        if (strcmp(policies[i]->name, name) == 0)
            return policies[i];
    return NULL;
}

const char *kvt_policy_names(void)
{
    return "lhd, lru, s3fifo";
}
