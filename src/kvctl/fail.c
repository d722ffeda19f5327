/* SPDX-License-Identifier: Apache-2.0 */
#include <stdarg.h>
#include <stdio.h>

#include "kvctl.h"

enum kvctl_exit kvctl_fail(enum kvctl_exit code, const char *format, ...)
{
    va_list ap;
    va_start(ap, format);
    fputs(KVCTL_NAME ": ", stderr);
    vfprintf(stderr, format, ap);
    fputc('\n', stderr);
    va_end(ap);
    return code;
}
