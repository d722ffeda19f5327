# SPDX-License-Identifier: Apache-2.0
"""Writes a binary file as a C array: embed.py INPUT OUTPUT NAME"""

import sys

source, target, name = sys.argv[1:]
with open(source, "rb") as file:
    data = file.read()
with open(target, "w", encoding="ascii") as file:
    file.write(f"extern const unsigned char {name}[];\n")
    file.write(f"const unsigned char {name}[] __attribute__((aligned(64))) = {{\n")
    for at in range(0, len(data), 32):
        file.write(",".join(map(str, data[at:at + 32])) + ",\n")
    file.write("};\n")
