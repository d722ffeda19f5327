/* SPDX-License-Identifier: Apache-2.0 */
/* What server reflection tells of the served .proto files; made by the build. */
#ifndef KVT_REFLECTION_TABLES_H
#define KVT_REFLECTION_TABLES_H

#include <stddef.h>

struct kvt_reflection_file {
    const char *name;           /* "kvtier/v1/control.proto"; NULL ends the table */
    const unsigned char *bytes; /* serialized FileDescriptorProto, which imports no other file */
    size_t n_bytes;
    const char *const *services; /* full names, NULL at the end */
    const char *const *symbols;  /* full names of services, methods, messages and enums, likewise */
};

extern const struct kvt_reflection_file kvt_reflection_files[];

#endif
