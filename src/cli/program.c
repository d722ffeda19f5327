/* SPDX-License-Identifier: Apache-2.0 */
#include "kvt/program.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "kvt/util.h"

void kvt_kvtierd_find(char program[PATH_MAX])
{
    /* Installed: the same folder. In a build tree: the folder of the daemon. */
    static const char *const places[] = {"", "../daemon/"};
    char self[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
    self[KVT_MAX(n, 0)] = '\0';
    char *slash = strrchr(self, '/');
    for (unsigned i = 0; slash != NULL && i < KVT_ARRAY_LEN(places); i++) {
        int length =
            snprintf(program, PATH_MAX, "%.*s/%skvtierd", (int)(slash - self), self, places[i]);
        if (length > 0 && length < PATH_MAX && access(program, X_OK) == 0)
            return;
    }
    snprintf(program, PATH_MAX, "kvtierd");
}
