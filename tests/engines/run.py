# SPDX-License-Identifier: Apache-2.0
"""Tests with vLLM itself: makes their environment, runs them, prints what they counted.

Usage: run.py KVTIERD [--dir FOLDER] [--versions 0.32.0,0.28.0] [--long]
           [--only rig|isolation|tier|llm[:CLASS[.TEST]]]

Without --long: what the gate runs. With it: every engine run, and a thousand random schedules per
version; about an hour. The last line is `N passed, N failed, N skipped`.
"""

import argparse
import os
import re
import subprocess
import sys
import time

from make_env import FOLDER, VERSIONS, Env

HERE = os.path.dirname(os.path.abspath(__file__))
LIMIT_S = {False: 400, True: 3600}
SCHEDULES = {False: "25", True: "1000"}


def arguments(name, version, args):
    """Which tests of a file."""
    if args.only and ":" in args.only:
        return [args.only.split(":")[1]]
    if name != "llm" or args.long:
        return []
    # Engines of several processes take long to start; the newest release has to do.
    return ["ShortTest", "ShortApartTest"] if version == args.versions[0] else ["ShortTest"]


def run_file(env, version, name, args):
    """(passed, failed, skipped) of one test file."""
    first = [env.folder, version] if name == "llm" else [env.model("tiny")]
    began = time.monotonic()
    log = os.path.join(env.folder, f"{name}-{version}.log")
    environment = {
        "VLLM_NO_USAGE_STATS": "1", "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": os.pathsep.join((env.engine(version), HERE)),
        "KVT_SCHEDULES": os.environ.get("KVT_SCHEDULES", SCHEDULES[args.long])}
    with open(log, "w", encoding="utf-8") as out:
        try:
            status = subprocess.run(
                [env.python, os.path.join(HERE, name + "_test.py"), args.kvtierd, *first,
                 *arguments(name, version, args), "-v"], stdin=subprocess.DEVNULL, stdout=out,
                stderr=out, check=False, timeout=LIMIT_S[args.long],
                env={**os.environ, **environment}).returncode
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
    for line in re.findall(r"^(?:.* \.\.\. skipped .*|.*\bKVT_SEED=\d+.*)$", text, re.M):
        print("    " + line)
    if failed:
        print("\n".join(text.splitlines()[-80:]), flush=True)
    return passed, failed, skipped


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kvtierd")
    parser.add_argument("--dir", default=FOLDER)
    parser.add_argument("--versions", default=",".join(VERSIONS))
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--only", help="rig, isolation, tier or llm, or llm:CLASS[.TEST]")
    args = parser.parse_args()
    args.versions = args.versions.split(",")
    args.kvtierd = os.path.abspath(args.kvtierd)
    env = Env(args.dir)
    try:
        env.make(args.versions, ("tiny", "mla", "hybrid") if args.long else ("tiny",))
        env.install()
    except subprocess.CalledProcessError as err:
        print(f"{err}\n{err.stdout or ''}")
        # Not every index has torch's CPU build; all else there must be.
        optional = "No matching distribution found for torch" in (err.stdout or "")
        print(f"0 passed, {int(not optional)} failed, {int(optional)} skipped")
        sys.exit(int(not optional))
    totals = [0, 0, 0]
    for version in args.versions:
        for name in ("rig", "isolation", "tier", "llm"):
            if args.only and name != args.only.split(":")[0]:
                continue
            totals = [a + b for a, b in zip(totals, run_file(env, version, name, args))]
    print(f"{totals[0]} passed, {totals[1]} failed, {totals[2]} skipped")
    sys.exit(1 if totals[1] else 0)


if __name__ == "__main__":
    main()
