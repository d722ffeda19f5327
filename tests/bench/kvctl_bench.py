# SPDX-License-Identifier: Apache-2.0
"""How long kvctl takes from its start to its end, for verbs that ask an agent that runs; --version
asks nobody, and is what it costs to load the program.

Usage: kvctl_bench.py KVCTL SESSION_SOCKET [RUNS [VERB [ARGUMENT]...]]
"""

import subprocess
import sys
import time

VERBS = (["--version"], ["info"], ["get", "tiers"], ["get", "namespaces"], ["get", "sessions"], ["get", "leases"],
         ["get", "pins"], ["get", "jobs"], ["get", "chunks", "--limit", "100"],
         ["describe", "tier", "host"], ["stat"], ["exist", "ab" * 32], ["config", "get"])


def main():
    kvctl, socket = sys.argv[1:3]
    runs = int(sys.argv[3]) if len(sys.argv) > 3 else 200
    print(f"{'verb':26} {'median ms':>9} {'p99 ms':>9}")
    for verb in [sys.argv[4:]] if len(sys.argv) > 4 else VERBS:
        took = []
        for _ in range(runs):
            began = time.perf_counter()
            done = subprocess.run([kvctl, *verb, "--socket", socket], capture_output=True, check=False)
            took.append(1e3 * (time.perf_counter() - began))
            if done.returncode not in (0, 1):
                sys.exit(done.stderr.decode())
        took.sort()
        print(f"{' '.join(verb)[:26]:26} {took[runs // 2]:9.1f} {took[runs * 99 // 100]:9.1f}")


if __name__ == "__main__":
    main()
