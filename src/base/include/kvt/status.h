/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KVT_STATUS_H
#define KVT_STATUS_H

#include <stdint.h>

/* One list makes enum kvt_status and its strings. Values are ABI: append, never renumber. */
#define KVT_STATUS_MAP(X)                                                                          \
    X(OK, 0, "success")                                                                            \
    X(ERR_NOMEM, -1, "out of memory")                                                              \
    X(ERR_AGAIN, -2, "no room now, retry after a poll")                                            \
    X(ERR_CORRUPT, -3, "stored data failed its checksum")                                          \
    X(ERR_UNREACH, -4, "agent or peer unreachable")                                                \
    X(ERR_INVAL, -5, "invalid argument")                                                           \
    X(ERR_MISS, -6, "not held")                                                                    \
    X(ERR_EXISTS, -7, "already held")                                                              \
    X(ERR_BUSY, -8, "being stored by another writer")                                              \
    X(ERR_NOSPACE, -9, "no space in the tier")                                                     \
    X(ERR_IO, -10, "input or output error")                                                        \
    X(ERR_TIMEOUT, -11, "deadline passed")                                                         \
    X(ERR_CANCELED, -12, "canceled")                                                               \
    X(ERR_PROTO, -13, "protocol violation")                                                        \
    X(ERR_VERSION, -14, "version not supported")                                                   \
    X(ERR_NOTSUP, -15, "not supported here")                                                       \
    X(ERR_EXPIRED, -16, "lease or reservation expired")                                            \
    X(ERR_INTERNAL, -17, "internal error")

enum kvt_status {
#define KVT_STATUS_ENUM(name, value, text) KVT_##name = value,
    KVT_STATUS_MAP(KVT_STATUS_ENUM)
#undef KVT_STATUS_ENUM
};

/** Text of a status; never NULL, also for a value outside the list. Static storage. */
const char *kvt_status_str(enum kvt_status status);

/** The status that stands for an errno value; KVT_ERR_IO for those without a closer one. */
enum kvt_status kvt_status_from_errno(int err);

/* Filled where a person will read it: object, cause and next step, without a newline. */
struct kvt_error {
    enum kvt_status status;
    char msg[256];
};

/** Fill err (which may be NULL) and return status, so that a caller can write `return set(...)`. */
enum kvt_status kvt_error_set(struct kvt_error *err, enum kvt_status status, const char *format,
                              ...) __attribute__((format(printf, 3, 4)));

#define KVT_MUST_CHECK __attribute__((warn_unused_result))

#endif
