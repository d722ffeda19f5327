/* SPDX-License-Identifier: Apache-2.0 */
#include "kvt/status.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

const char *kvt_status_str(enum kvt_status status)
{
    switch (status) {
#define KVT_STATUS_CASE(name, value, text)                                                         \
    case KVT_##name:                                                                               \
        return text;
        KVT_STATUS_MAP(KVT_STATUS_CASE)
#undef KVT_STATUS_CASE
    }
    return "unknown status";
}

enum kvt_status kvt_status_from_errno(int err)
{
    switch (err) {
    case 0:
        return KVT_OK;
    case ENOMEM:
        return KVT_ERR_NOMEM;
    case EAGAIN:
        return KVT_ERR_AGAIN;
    case EINVAL:
        return KVT_ERR_INVAL;
    case ENOSPC:
    case EDQUOT:
        return KVT_ERR_NOSPACE;
    case EBUSY:
        return KVT_ERR_BUSY;
    case ETIMEDOUT:
        return KVT_ERR_TIMEOUT;
    case ECANCELED:
        return KVT_ERR_CANCELED;
    case ENOSYS:
    case EOPNOTSUPP:
        return KVT_ERR_NOTSUP;
    case ECONNREFUSED:
    case ECONNRESET:
    case ENOTCONN:
    case EPIPE:
        return KVT_ERR_UNREACH;
    default:
        return KVT_ERR_IO;
    }
}

enum kvt_status kvt_error_set(struct kvt_error *err, enum kvt_status status, const char *format,
                              ...)
{
    if (err != NULL) {
        va_list ap;
        err->status = status;
        va_start(ap, format);
        vsnprintf(err->msg, sizeof(err->msg), format, ap);
        va_end(ap);
    }
    return status;
}
