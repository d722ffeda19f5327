# SPDX-License-Identifier: Apache-2.0
"""What each file of bad_config/ must be told, to the word and all of it at once.

Usage: bad_config_test.py PATH_OF_KVTIERD
"""

import os
import re
import subprocess
import sys
import unittest

KVTIERD = ""
FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "bad_config")

# File: its lines, with @ for the file's name and <size> for what depends on the machine.
SAYS = {
    "alias": [
        "@:3: aliases are not taken; write the value",
    ],
    "bytes_without_disk": [
        "@:2: nvme.bytes: given without nvme.path; name a file or block device",
    ],
    "device_without_meta": [
        "@:2: nvme.meta_path: missing; a device has no folder beside it",
    ],
    "disk_in_both_forms": [
        "@:2: nvme.path: given together with nvme.disks; keep one of them",
    ],
    "disk_too_small": [
        "@:4: nvme.disks.0.bytes: has no room for data; give at least 2MiB",
    ],
    "disk_twice": [
        "@:4: nvme.disks.1.path: store is named twice",
    ],
    "disk_unknown_key": [
        "@:4: nvme.disks.0.size: unknown key; the nearest known one is nvme.disks.0.path",
        "@:3: nvme.disks.0.bytes: missing; say how much of store to use",
    ],
    "disk_without_bytes": [
        "@:2: nvme.bytes: missing; say how much of store to use",
    ],
    "disks_not_a_list": [
        "@:3: nvme.disks: takes a list",
    ],
    "empty_path": [
        "@:2: socket.path: is empty; name where the socket is to be",
    ],
    "given_twice": [
        "@:3: host.bytes: given twice",
    ],
    "just_text": [
        "@:1: a config file holds KEY: VALUE lines",
    ],
    "key_in_wrong_section": [
        "@:2: nvme.huge_pages: unknown key; the nearest known one is host.huge_pages",
    ],
    "key_without_section": [
        "@:1: bytes: unknown key; the nearest known one is host.bytes",
    ],
    "lease_above_its_limit": [
        "@:3: lease.ttl: 1m is longer than the 10s of lease.ttl_max; lower it, or raise that",
    ],
    "listen_bad_port": [
        '@:2: metrics.listen: "127.0.0.1:99999" is no address; give one like 127.0.0.1:9455 '
        'or [::1]:9455, or "" for none',
    ],
    "listen_not_an_address": [
        '@:2: metrics.listen: "localhost" is no address; give one like 127.0.0.1:9455 or '
        '[::1]:9455, or "" for none',
    ],
    "many_at_once": [
        '@:3: host.bytes: "10GB" is not understood; give a whole number with B, KiB, MiB, '
        'GiB or TiB (default auto)',
        '@:4: host.policy: "best" is not one of lhd|lru|s3fifo (default lhd)',
        "@:6: nvme.queue_dept: unknown key; the nearest known one is nvme.queue_depth",
        '@:7: nvme.scrub_bytes_per_s: "fast" is not understood; give a whole number with B, '
        'KiB, MiB, GiB or TiB (default 16MiB)',
        "@:12: logs: unknown key; the nearest known one is log",
        "@:9: lease.ttl: 1h is longer than the 1m of lease.ttl_max; lower it, or raise that",
    ],
    "not_a_choice": [
        '@:2: host.policy: "mru" is not one of lhd|lru|s3fifo (default lhd)',
    ],
    "not_a_flag": [
        '@:2: nvme.required: "perhaps" is not understood; give true or false',
    ],
    "not_a_mode": [
        '@:2: socket.mode: "rw-rw----" is not understood; give octal permissions like 0660 '
        '(default 0660)',
    ],
    "not_yaml": [
        "@:2: host.bytes: takes one value",
        "@:3: not YAML: did not find expected ',' or ']' while parsing a flow sequence",
    ],
    "number_not_whole": [
        '@:2: sessions.max: "12.5" is not understood; give a whole number (default 256)',
    ],
    "number_out_of_range": [
        "@:2: sessions.max: 0 is out of range; give 1 to 16384 (default 256)",
        "@:3: sessions.ops_max: 5000 is out of range; give 1 to 4096 (default 256)",
    ],
    "nvme_slab_not_aligned": [
        "@:2: nvme.slab_bytes: must be a multiple of 4KiB",
    ],
    "path_too_long": [
        "@:2: socket.path: longer than 107 bytes",
    ],
    "second_document": [
        "@:3: holds a second document; keep one",
        "@:5: log.level: given twice",
    ],
    "size_above_disk": [
        "@:3: nvme.disks.0.bytes: 900TiB is more than the <size> of the file system of "
        "store; lower it",
    ],
    "size_above_machine": [
        "@:2: host.bytes: 60TiB is more than the <size> that the machine or its cgroup has; "
        "leave some to others",
    ],
    "size_above_range": [
        "@:2: host.slab_bytes: 5GiB is out of range; give 2MiB to 4GiB (default 64MiB)",
    ],
    "size_below_range": [
        "@:2: host.bytes: 1MiB is out of range; give 2MiB to 64TiB (default auto)",
    ],
    "size_fraction_of_byte": [
        '@:2: host.bytes: "4.5.1GiB" is not understood; give a whole number with B, KiB, '
        'MiB, GiB or TiB (default auto)',
    ],
    "size_negative": [
        '@:2: host.bytes: "-1GiB" is not understood; give a whole number with B, KiB, MiB, '
        'GiB or TiB (default auto)',
    ],
    "size_overflow": [
        '@:2: host.bytes: "99999999999999999999TiB" is not understood; give a whole number '
        'with B, KiB, MiB, GiB or TiB (default auto)',
    ],
    "slab_not_aligned": [
        "@:2: host.slab_bytes: 3MiB is not a multiple of 2MiB",
    ],
    "tab_for_indent": [
        "@:2: not YAML: found character that cannot start any token while scanning for the "
        "next token",
    ],
    "unit_missing_case": [
        '@:3: nvme.bytes: "10gib" is not understood; give a whole number with B, KiB, MiB, '
        'GiB or TiB (default 0)',
    ],
    "unit_of_size": [
        '@:2: host.bytes: "4GB" is not understood; give a whole number with B, KiB, MiB, GiB '
        'or TiB (default auto)',
    ],
    "unit_of_time": [
        '@:2: lease.ttl: "30" is not understood; give a whole number with ns, us, ms, s, m '
        'or h (default 30s)',
    ],
    "unit_of_time_unknown": [
        '@:2: shutdown.drain_timeout: "2 days" is not understood; give a whole number with '
        'ns, us, ms, s, m or h (default 20s)',
    ],
    "unknown_key": [
        "@:2: host.byts: unknown key; the nearest known one is host.bytes",
    ],
    "unknown_section": [
        "@:2: hots: unknown key; the nearest known one is host",
    ],
    "value_missing": [
        "@:2: log.level: has no value; give one or remove the key",
    ],
}


def told(name, *args):
    """(exit status, lines) of kvtierd for a file of the folder."""
    done = subprocess.run([KVTIERD, "--config", name + ".yaml", *args], cwd=FOLDER, text=True,
                          capture_output=True, timeout=30, check=False)
    lines = [line.removeprefix("kvtierd: ").replace(name + ".yaml:", "@:", 1)
             for line in done.stderr.splitlines()]
    return done.returncode, [re.sub(r"(more than the )\d+[KMGT]iB", r"\1<size>", line)
                             for line in lines]


class BadConfig(unittest.TestCase):
    def test_every_file_is_in_the_table(self):
        files = {name.removesuffix(".yaml") for name in os.listdir(FOLDER)}
        self.assertEqual(files, set(SAYS))
        self.assertGreaterEqual(len(files), 30)

    def test_each_is_told_what_is_wrong(self):
        for name, wanted in SAYS.items():
            with self.subTest(name):
                self.assertEqual(told(name, "--check-config"), (2, wanted))

    def test_none_of_them_starts(self):
        for name in SAYS:
            with self.subTest(name):
                self.assertEqual(told(name)[0], 2)


if __name__ == "__main__":
    KVTIERD = os.path.abspath(sys.argv[1])
    unittest.main(argv=sys.argv[:1] + sys.argv[2:], verbosity=2)
