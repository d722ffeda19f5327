#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The shared library shows exactly the calls of the map. Arguments: the library, the map.
set -eu
shown=$(nm -D --defined-only "$1" | awk '$2 != "A" { sub(/@.*/, "", $3); print $3 }' | sort)
wanted=$(sed -n 's/^ *\(kvt_[a-z_]*\);$/\1/p' "$2" | sort)
if [ "$shown" != "$wanted" ]; then
    echo "libkvtier.so shows:" "$shown"
    echo "the map wants:" "$wanted"
    exit 1
fi
