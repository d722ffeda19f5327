/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KVT_PROGRAM_H
#define KVT_PROGRAM_H

#include <limits.h>

/** The kvtierd beside this executable: what was built or installed together belongs together. Else
 * its bare name, for a search in PATH. */
void kvt_kvtierd_find(char program[PATH_MAX]);

#endif
