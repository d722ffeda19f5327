# SPDX-License-Identifier: Apache-2.0
"""Writes a C table of file descriptors for server reflection.

reflection_tables.py OUTPUT.c DESCRIPTOR_SET...

Each descriptor set is what protoc writes with --descriptor_set_out; its files need no others. The
table has each file's serialized FileDescriptorProto, its services and its symbols.
"""

import sys


def fields(data):
    """Yields (number, value) of a serialized message: ints, or bytes of what has a length."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while at < len(data):
        tag = varint()
        kind = tag & 7
        if kind == 0:
            yield tag >> 3, varint()
        elif kind == 2:
            length = varint()
            yield tag >> 3, data[at:at + length]
            at += length
        else:
            raise ValueError(f"wire type {kind} in a descriptor")


def texts(message, number):
    return [value.decode() for found, value in fields(message) if found == number]


def messages(message, number):
    return [value for found, value in fields(message) if found == number]


# Field numbers of google/protobuf/descriptor.proto.
FILE_NAME, FILE_PACKAGE, FILE_DEPENDENCY, FILE_MESSAGE, FILE_ENUM, FILE_SERVICE = 1, 2, 3, 4, 5, 6
NAME = 1
MESSAGE_NESTED, MESSAGE_ENUM = 3, 4
SERVICE_METHOD = 2


def message_symbols(prefix, message):
    name = prefix + texts(message, NAME)[0]
    yield name
    for enum in messages(message, MESSAGE_ENUM):
        yield f"{name}.{texts(enum, NAME)[0]}"
    for nested in messages(message, MESSAGE_NESTED):
        yield from message_symbols(name + ".", nested)


def describe(file):
    """(name, services, symbols) of a serialized FileDescriptorProto."""
    prefix = texts(file, FILE_PACKAGE)[0] + "."
    if messages(file, FILE_DEPENDENCY):
        raise ValueError("a file that imports others")
    symbols, services = [], []
    for message in messages(file, FILE_MESSAGE):
        symbols.extend(message_symbols(prefix, message))
    symbols.extend(prefix + texts(enum, NAME)[0] for enum in messages(file, FILE_ENUM))
    for service in messages(file, FILE_SERVICE):
        services.append(prefix + texts(service, NAME)[0])
        symbols.append(services[-1])
        symbols.extend(f"{services[-1]}.{texts(method, NAME)[0]}"
                       for method in messages(service, SERVICE_METHOD))
    return texts(file, FILE_NAME)[0], services, symbols


def c_strings(name, values):
    lines = "".join(f'    "{value}",\n' for value in values)
    return f"static const char *const {name}[] = {{\n{lines}    NULL,\n}};\n"


def main():
    output, *sets = sys.argv[1:]
    parts = ["/* Made by reflection_tables.py. */\n#include <stddef.h>\n\n"
             '#include "kvt/reflection_tables.h"\n\n']
    rows = []
    for path in sets:
        with open(path, "rb") as stream:
            files = messages(stream.read(), 1)
        for file in files:
            name, services, symbols = describe(file)
            n = len(rows)
            data = "\n".join("    " + " ".join(f"0x{b:02x}," for b in file[i:i + 16])
                             for i in range(0, len(file), 16))
            parts.append(f"static const unsigned char bytes_{n}[] = {{\n{data}\n}};\n")
            parts.append(c_strings(f"services_{n}", services))
            parts.append(c_strings(f"symbols_{n}", symbols))
            rows.append(f'    {{"{name}", bytes_{n}, sizeof(bytes_{n}), services_{n}, '
                        f"symbols_{n}}},\n")
    parts.append("const struct kvt_reflection_file kvt_reflection_files[] = {\n"
                 + "".join(rows) + "    {0},\n};\n")
    with open(output, "w", encoding="utf-8") as stream:
        stream.write("\n".join(parts))


if __name__ == "__main__":
    main()
