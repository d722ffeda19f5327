# SPDX-License-Identifier: Apache-2.0
"""Engine tests: makes their environment, runs them, prints what they counted.

Usage: run.py KVTIERD LIBKVTIER [--dir FOLDER] [--versions 0.32.0,0.28.0] [--long] [--only NAME,...]

Without --long: what CI runs, about five minutes. The last line is `N passed, N failed, N skipped`.
"""

import argparse
import os
import re
import subprocess
import sys
import time

from make_env import FOLDER, SKIPPED, VERSIONS, Env

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
SHORT = {"rig": [], "tier": [], "llm": ["ShortTest"]}
LONG = {"rig": [], "tier": [], "llm": []}
LIMIT_S = {False: 420, True: 3600}


def unit(env, version, name, arguments, args):
    """(passed, failed, skipped) of one test file."""
    first = {"llm": [env.folder, version]}.get(name, [env.model("tiny")])
    began = time.monotonic()
    log = os.path.join(env.folder, f"{name}-{version}.log")
    with open(log, "w", encoding="utf-8") as out:
        try:
            status = subprocess.run(
                [env.python, os.path.join(HERE, name + "_test.py"), args.kvtierd, *first,
                 *arguments, "-v"], stdin=subprocess.DEVNULL, stdout=out, stderr=out, check=False,
                timeout=LIMIT_S[args.long],
                env={**os.environ, "KVTIER_LIBRARY": args.library, "VLLM_NO_USAGE_STATS": "1",
                     "PYTHONPATH": os.pathsep.join((
                         env.engine(version), os.path.join(ROOT, "connector", "python"), HERE)),
                     "KVT_SCHEDULES": os.environ.get("KVT_SCHEDULES",
                                                     "1000" if args.long else "25")}).returncode
        except subprocess.TimeoutExpired:
            status = 124
    with open(log, encoding="utf-8", errors="replace") as file:
        text = file.read()
    ran = re.search(r"^Ran (\d+) tests?", text, re.M)
    end = re.search(r"^(OK|FAILED)(?: \((.*)\))?$", text, re.M)
    counts = dict(re.findall(r"(\w+)=(\d+)", end[2] or "")) if end else {}
    skipped = int(counts.get("skipped", 0))
    failed = int(counts.get("failures", 0)) + int(counts.get("errors", 0))
    if status != 0 and failed == 0:
        failed = 1
    passed = max(0, int(ran[1]) - skipped - failed) if ran else 0
    word = "FAIL" if failed else "ok"
    print(f"{word:4} {name} with vLLM {version} ({time.monotonic() - began:.0f}s): {passed} passed,"
          f" {failed} failed, {skipped} skipped", flush=True)
    if failed:
        print("\n".join(text.splitlines()[-80:]), flush=True)
    return passed, failed, skipped


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kvtierd")
    parser.add_argument("library")
    parser.add_argument("--dir", default=FOLDER)
    parser.add_argument("--versions", default=",".join(VERSIONS))
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--only", help="rig, tier, llm")
    args = parser.parse_args()
    versions = args.versions.split(",")
    env = Env(args.dir)
    try:
        env.make(versions)
    except SystemExit as end:
        if end.code != SKIPPED:
            raise
        print("0 passed, 0 failed, 1 skipped")
        sys.exit(SKIPPED)
    totals = [0, 0, 0]
    for version in versions:
        for name, arguments in (LONG if args.long else SHORT).items():
            if args.only and name not in args.only.split(","):
                continue
            totals = [a + b for a, b in zip(totals, unit(env, version, name, arguments, args))]
    print(f"{totals[0]} passed, {totals[1]} failed, {totals[2]} skipped")
    sys.exit(1 if totals[1] else 0)


if __name__ == "__main__":
    main()
