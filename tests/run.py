# SPDX-License-Identifier: Apache-2.0
"""Builds every variant of KVTier and runs every test; called by tests/run.

Prints one line per step, the log of what fails, and at the end `N passed, N failed, N skipped`.
"""

import argparse
import concurrent.futures
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LOG_TAIL_LINES = 60
THREADED_SUITES = ("base", "storage", "connector", "daemon", "gpu")

# Suites that need the real programs and minutes rather than seconds: the gcc build runs them.
WHOLE_PROGRAM_SUITES = ("robust",)

# Which seeds a test drew, how many runs it made of them, and what was skipped: shown also where
# everything passed.
SHOWN_LINE = re.compile(r"^(?:# )?(.*\bKVT_SEED=\d+|seeds from \d+|\d+ runs, .*|ok\b.*# ?SKIP.*"
                        r"|.* \.\.\. skipped .*)$", re.M | re.I)


class Report:
    """Counts test cases and shows what happens while it happens."""

    def __init__(self):
        self.n_passed = self.n_failed = self.n_skipped = 0
        self.failures = []
        self.start = time.monotonic()

    def line(self, text):
        print(f"[{time.monotonic() - self.start:6.1f}s] {text}", flush=True)

    def log(self, text):
        lines = text.rstrip().splitlines()
        if len(lines) > LOG_TAIL_LINES:
            print(f"    | ... {len(lines) - LOG_TAIL_LINES} lines before")
        for line in lines[-LOG_TAIL_LINES:]:
            print(f"    | {line}")
        sys.stdout.flush()

    def add(self, name, passed, failed, skipped, log=""):
        self.n_passed += passed
        self.n_failed += failed
        self.n_skipped += skipped
        if failed:
            self.failures.append(name)
        word = "FAIL" if failed else "skip" if skipped and not passed else "ok"
        counts = f"{passed} passed"
        if failed:
            counts += f", {failed} failed"
        if skipped:
            counts += f", {skipped} skipped"
        self.line(f"{word:4} {name}: {counts}")
        if failed or (skipped and not passed):
            self.log(log)


def command(args, env=None, timeout_s=1800, cwd=ROOT):
    """Runs to the end; returns (exit status, output)."""
    try:
        done = subprocess.run(args, cwd=cwd, env={**os.environ, **(env or {})},
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, errors="replace",
                              timeout=timeout_s, check=False)
        return done.returncode, done.stdout
    except subprocess.TimeoutExpired as late:
        text = late.stdout or b""
        if isinstance(text, bytes):
            text = text.decode(errors="replace")
        return 124, text + f"\n(stopped after {timeout_s} s: {shlex.join(args)})"
    except OSError as err:
        return 127, f"{shlex.join(args)}: {err}"


def tracked(*suffixes):
    """Source files of the repository, with those not yet added."""
    status, out = command(["git", "ls-files", "-co", "--exclude-standard"])
    if status != 0:  # an unpacked archive
        out = "\n".join(os.path.relpath(os.path.join(folder, name), ROOT)
                        for folder, folders, names in os.walk(ROOT)
                        if not folders.sort() for name in names)
        out = "\n".join(p for p in out.splitlines() if not p.startswith((".", "build")))
    return sorted({p for p in out.splitlines()
                   if p.endswith(suffixes) and os.path.exists(os.path.join(ROOT, p))})


def tool(name):
    """Debian installs LLVM's tools with and without their version."""
    for candidate in (name + "-14", name):
        if shutil.which(candidate):
            return candidate
    return name


class Build:
    """One configured build folder."""

    def __init__(self, report, name, options=(), env=None):
        self.report, self.name, self.env = report, name, env or {}
        self.dir = os.path.join(args.build_dir, name)
        self.options = list(options)
        self.ok = False

    def make(self, *targets):
        stamp = os.path.join(self.dir, "options.json")
        wanted = json.dumps([self.options, self.env], sort_keys=True)
        present = ""
        if os.path.exists(stamp):
            with open(stamp, encoding="utf-8") as file:
                present = file.read()
        if present != wanted:
            shutil.rmtree(self.dir, ignore_errors=True)
            status, out = command(["meson", "setup", self.dir, ROOT, *self.options], self.env)
            if status != 0:
                self.report.add(f"{self.name} configure", 0, 1, 0, out)
                return False
            with open(stamp, "w", encoding="utf-8") as file:
                file.write(wanted)
        status, out = command(["ninja", "-C", self.dir, *targets], self.env)
        self.ok = status == 0
        self.report.add(f"{self.name} build", int(self.ok), int(not self.ok), 0, out)
        return self.ok

    def tests(self):
        """Names and suites of the registered tests."""
        status, out = command(["meson", "introspect", "--tests", self.dir])
        if status != 0:
            self.report.add(f"{self.name} introspect", 0, 1, 0, out)
            return []
        return [(t["name"], [s.split(":")[-1] for s in t["suite"]]) for t in json.loads(out)]

    def test(self, only=None, skip=(), env=None, multiple=1):
        """Runs the suites in `only` (all when None) but those in `skip`."""
        suites = {s for _, test_suites in self.tests() for s in test_suites}
        chosen = sorted(s for s in suites if s not in skip and (only is None or s in only))
        for suite in chosen:
            self.test_suite(suite, env, multiple)

    def test_suite(self, suite, env, multiple):
        logbase = f"log-{suite}"
        log = os.path.join(self.dir, "meson-logs", logbase + ".json")
        if os.path.exists(log):
            os.unlink(log)
        cmd = ["meson", "test", "-C", self.dir, "--no-rebuild", "--suite", suite,
               "--logbase", logbase, "--timeout-multiplier", str(multiple)]
        if fixed_addresses():
            cmd = ["setarch", "-R", *cmd]
        began = time.monotonic()
        status, out = command(cmd, env)
        took = time.monotonic() - began
        passed = failed = skipped = 0
        logs, shown = [], []
        if os.path.exists(log):
            with open(log, encoding="utf-8") as file:
                for line in file:
                    entry = json.loads(line)
                    result = count(entry)
                    passed, failed = passed + result[0], failed + result[1]
                    skipped += result[2]
                    logs += result[3]
                    shown += SHOWN_LINE.findall(entry.get("stdout", ""))
                    shown += SHOWN_LINE.findall(entry.get("stderr", ""))
        if status != 0 and failed == 0:
            failed = 1
            logs.append(out)
        name = f"{self.name} {suite} ({took:.1f}s)"
        self.report.add(name, passed, failed, skipped, "\n".join(logs))
        if shown:
            self.report.log("\n".join(shown))


def fixed_addresses():
    """Sanitizers of this age do not cope with every address layout; some containers refuse this."""
    if not hasattr(fixed_addresses, "value"):
        fixed_addresses.value = command(["setarch", "-R", "true"])[0] == 0
    return fixed_addresses.value


def count(entry):
    """(passed, failed, skipped, logs) of one line of meson's test log."""
    result, text = entry["result"], entry.get("stdout", "")
    errors = entry.get("stderr", "")
    passed = failed = skipped = 0
    for line in text.splitlines():
        if re.match(r"ok\b.*#\s*skip", line, re.I):
            skipped += 1
        elif re.match(r"ok\b", line):
            passed += 1
        elif re.match(r"not ok\b", line):
            failed += 1
        else:
            checks = re.match(r"\d+%: Checks: (\d+), Failures: (\d+), Errors: (\d+)", line)
            if checks:
                bad = int(checks[2]) + int(checks[3])
                passed += int(checks[1]) - bad
                failed += bad
    good = result in ("OK", "EXPECTEDFAIL")
    if result == "SKIP":
        passed, failed, skipped = 0, 0, max(skipped, 1)
    elif not good and failed == 0:
        failed = 1
    elif good and passed + skipped == 0:
        passed = 1
    logs = []
    if failed or result == "SKIP":
        shown = (text + ("\n" + errors if errors else "")).rstrip()
        logs = [f"== {entry['name']}: {result.lower()} after {entry['duration']:.1f} s",
                *shown.splitlines()[-LOG_TAIL_LINES:]]
    return passed, failed, skipped, logs


def parallel(jobs):
    """Runs (name, function) pairs, as many at once as there are CPUs; yields (name, result)."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        futures = {pool.submit(function): name for name, function in jobs}
        for future in concurrent.futures.as_completed(futures):
            yield futures[future], future.result()


# ---- parts -----------------------------------------------------------------------------------

def part_format(report):
    files = tracked(".c", ".h")
    status, out = command([tool("clang-format"), "--dry-run", "-Werror", *files])
    report.add(f"format of {len(files)} files", int(status == 0), int(status != 0), 0, out)


def gcc_build(report):
    if not hasattr(gcc_build, "build"):
        gcc_build.build = Build(report, "gcc", ["-Dcuda=auto", "-Dwerror=true"], {"CC": "gcc"})
        gcc_build.build.make()
    return gcc_build.build


def clang_build(report):
    if not hasattr(clang_build, "build"):
        clang_build.build = Build(report, "clang", ["-Dcuda=auto", "-Dwerror=true"],
                                  {"CC": tool("clang")})
        clang_build.build.make()
    return clang_build.build


def noagent_build(report):
    """Also without CUDA: all that an engine's machine needs is a C compiler and xxHash."""
    if not hasattr(noagent_build, "build"):
        noagent_build.build = Build(report, "noagent", ["-Dagent=disabled", "-Dcuda=disabled",
                                                        "-Dwerror=true"], {"CC": "gcc"})
        noagent_build.build.make()
    return noagent_build.build


def part_unit(report):
    build = gcc_build(report)
    if build.ok:
        build.test(skip=WHOLE_PROGRAM_SUITES)


def part_robust(report):
    build = gcc_build(report)
    if build.ok:
        build.test(only=WHOLE_PROGRAM_SUITES)


def part_clang(report):
    build = clang_build(report)
    if build.ok:
        build.test(skip=WHOLE_PROGRAM_SUITES)


def part_noagent(report):
    build = noagent_build(report)
    if build.ok:
        build.test()


def suppressions(name):
    return os.path.join(ROOT, "tests", "sanitizers", name)


def part_asan(report):
    build = Build(report, "asan", ["-Dcuda=auto", "-Db_sanitize=address,undefined"],
                  {"CC": tool("clang")})
    if build.make():
        build.test(skip=WHOLE_PROGRAM_SUITES, multiple=4, env={
            "ASAN_OPTIONS": "abort_on_error=1:detect_leaks=1:strict_string_checks=1",
            "LSAN_OPTIONS": f"print_suppressions=0:suppressions={suppressions('lsan.supp')}",
            "UBSAN_OPTIONS": "halt_on_error=1:abort_on_error=1:print_stacktrace=1"})


def part_tsan(report):
    build = Build(report, "tsan", ["-Dcuda=auto", "-Db_sanitize=thread"],
                  {"CC": tool("clang")})
    if build.make():
        build.test(only=THREADED_SUITES, multiple=8, env={
            "TSAN_OPTIONS": "halt_on_error=1:abort_on_error=1:second_deadlock_stack=1:"
                            f"suppressions={suppressions('tsan.supp')}"})


def part_tidy(report):
    """Every file of the repository that some build compiles, once, as that build compiles it."""
    build_of = {}
    for build in (clang_build(report), noagent_build(report)):
        if not build.ok:
            report.line(f"left out: the files of the {build.name} build, which failed")
            continue
        with open(os.path.join(build.dir, "compile_commands.json"), encoding="utf-8") as file:
            for entry in json.load(file):
                path = os.path.realpath(os.path.join(entry["directory"], entry["file"]))
                build_of.setdefault(path, build.dir)
    sources = {os.path.realpath(os.path.join(ROOT, f)) for f in tracked(".c")}
    files = sorted(sources & build_of.keys())
    began = time.monotonic()
    n_bad, logs = 0, []
    jobs = [(f, lambda f=f: command([tool("clang-tidy"), "--quiet", "-p", build_of[f], f],
                                    timeout_s=600)) for f in files]
    for _, (status, out) in parallel(jobs):
        if status != 0 or "warning:" in out:
            n_bad += 1
            logs += [line for line in out.splitlines() if re.search(r"(error|warning): ", line)]
    report.add(f"clang-tidy of {len(files)} files ({time.monotonic() - began:.1f}s)",
               len(files) - n_bad, n_bad, 0, "\n".join(dict.fromkeys(logs)))


def part_fuzz(report):
    build = Build(report, "fuzz", ["-Dcuda=disabled", "-Dfuzz=enabled",
                                   "-Db_sanitize=address,undefined"], {"CC": tool("clang")})
    if not build.make():
        return
    folder = os.path.join(build.dir, "tests", "fuzz")
    corpora = os.path.join(ROOT, "tests", "fuzz", "corpus")
    targets = sorted(n for n in os.listdir(folder)
                     if n.startswith("fuzz_") and os.access(os.path.join(folder, n), os.X_OK)
                     and os.path.isfile(os.path.join(folder, n)))

    def fuzz(name):
        with tempfile.TemporaryDirectory(prefix="kvt-fuzz-") as found:
            env = {"ASAN_OPTIONS": "abort_on_error=1",
                   "UBSAN_OPTIONS": "halt_on_error=1:abort_on_error=1:print_stacktrace=1"}
            seeds = os.path.join(corpora, name[len("fuzz_"):])
            artifact = os.path.join(build.dir, "crash-" + name + "-")
            return command([os.path.join(folder, name), f"-max_total_time={args.fuzz_seconds}",
                            "-timeout=10", "-rss_limit_mb=2048", f"-artifact_prefix={artifact}",
                            "-print_final_stats=1", found, seeds], env,
                           timeout_s=args.fuzz_seconds * 3 + 120)

    for name, (status, out) in parallel([(t, lambda t=t: fuzz(t)) for t in targets]):
        runs = re.search(r"number_of_executed_units: (\d+)", out)
        report.add(f"{name} ({runs[1] if runs else '?'} inputs)", int(status == 0),
                   int(status != 0), 0, out)


def python_environment(report, name, requirements):
    """Python of a virtual environment with the package installed in it, or None."""
    folder = os.path.join(args.build_dir, "venv-" + name)
    status, python = command([sys.executable, os.path.join(ROOT, "tests", "venv.py"), folder,
                              os.path.join(ROOT, "tests", requirements)])
    if status != 0:
        # Not every index has torch's CPU build; all else there must be.
        optional = "No matching distribution found for torch" in python
        report.add(f"{name} environment", 0, int(not optional), int(optional), python)
        return None
    python = python.strip()
    status, out = command([python, "-m", "pip", "install", "--disable-pip-version-check",
                           "--force-reinstall", "--no-deps",
                           os.path.join(ROOT, "connector", "python")])
    report.add(f"{name} install", int(status == 0), int(status != 0), 0, out)
    return python if status == 0 else None


def python_tests(report, name, requirements, *test_args):
    """Tests beside a requirements file, with the Python package as users install it, against the
    programs of the gcc build."""
    build = gcc_build(report)
    python = build.ok and python_environment(report, name, requirements)
    if not python:
        return
    began = time.monotonic()
    status, out = command([python, "-m", *test_args], {
        "KVT_KVTIERD": os.path.join(build.dir, "src", "daemon", "kvtierd"),
        "KVT_KVBENCH": os.path.join(build.dir, "src", "kvbench", "kvbench"),
        "PYTHONPATH": os.path.join(ROOT, "tests", "python"), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=os.path.join(ROOT, "tests", os.path.dirname(requirements)))
    ran = re.search(r"^Ran (\d+) test", out, re.M)
    bad = sum(int(n) for n in re.findall(r"(?:failures|errors)=(\d+)", out))
    skipped = re.search(r"skipped=(\d+)", out)
    skipped = int(skipped[1]) if skipped else 0
    passed = int(ran[1]) - bad - skipped if ran else 0
    report.add(f"{name} ({time.monotonic() - began:.1f}s)", max(passed, 0),
               max(bad, int(status != 0)), skipped, out)
    if status == 0 and skipped > 0:
        report.log("\n".join(SHOWN_LINE.findall(out)))


def part_python(report):
    python_tests(report, "python", "python/requirements.txt", "unittest", "-v", "test_client",
                 "test_control", "test_docs", "test_names")


def part_control(report):
    python_tests(report, "control", "control/requirements.txt", "unittest", "-v", "test_see",
                 "test_steer", "test_services", "test_hostile")


def part_sglang(report):
    python_tests(report, "sglang", "python/requirements-sglang.txt", "engine_sglang", "-v")


def part_vllm(report):
    """vLLM's scheduler and whole engines: the newest and the oldest release that is supported."""
    build = gcc_build(report)
    if not build.ok:
        return
    began = time.monotonic()
    status, out = command([sys.executable, os.path.join(ROOT, "tests", "engines", "run.py"),
                           os.path.join(build.dir, "src", "daemon", "kvtierd"),
                           "--dir", os.path.join(args.build_dir, "engines")])
    counts = re.search(r"^(\d+) passed, (\d+) failed, (\d+) skipped$", out, re.M)
    passed, failed, skipped = map(int, counts.groups()) if counts else (0, 1, 0)
    report.add(f"vllm ({time.monotonic() - began:.1f}s)", passed,
               max(failed, int(status != 0)), skipped, out)
    if status == 0 and passed:
        report.log("\n".join(line for line in out.splitlines() if re.match(r"ok |    ", line)))


def part_smoke(report):
    """The README's first command, cut short."""
    status, out = command([os.path.join(ROOT, "deploy", "quickstart"), "--max-requests", "300"],
                          {"KVT_BUILD_DIR": os.path.join(args.build_dir, "quickstart")},
                          timeout_s=900)
    report.add("quickstart", int(status == 0), int(status != 0), 0, out)


PARTS = {
    "format": (part_format, "clang-format over every .c and .h"),
    "unit": (part_unit, "gcc build; unit, contract, simulation and daemon tests"),
    "robust": (part_robust, "gcc build; kills, damage, hostile clients against real programs"),
    "clang": (part_clang, "clang build and its tests"),
    "noagent": (part_noagent, "the build without agent and CUDA, and its tests"),
    "asan": (part_asan, "address and undefined behaviour sanitizers"),
    "tsan": (part_tsan, "thread sanitizer over the threaded suites"),
    "tidy": (part_tidy, "clang-tidy over every compiled file"),
    "fuzz": (part_fuzz, "each fuzz target for a few seconds"),
    "python": (part_python, "the Python package, installed as users do it, against the agent"),
    "control": (part_control, "the control API, by a standard gRPC client, and its abuse under load"),
    "sglang": (part_sglang, "SGLang's cache controller on the Python package"),
    "vllm": (part_vllm, "vLLM's scheduler and engines on the Python package, two releases"),
    "smoke": (part_smoke, "the README's run command in a short form"),
}


def parse():
    parser = argparse.ArgumentParser(
        prog="tests/run", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Install what is missing, build every variant, run every test.",
        epilog="parts:\n" + "\n".join(f"  {n:8} {h}" for n, (_, h) in PARTS.items()) +
               "\n\nenvironment:\n  KVT_KILLS  kills of the agent in the kill test (default 40)\n"
               "\nexit status: 0 nothing failed, 1 something failed, 2 bad usage")
    parser.add_argument("--only", metavar="PART[,PART]", help="run these parts alone")
    parser.add_argument("--build-dir", default=os.path.join(ROOT, "build-tests"),
                        help="where the builds go (default: build-tests in the source)")
    parser.add_argument("--fuzz-seconds", type=int, default=10, help="per target (default: 10)")
    parsed = parser.parse_args()
    parsed.build_dir = os.path.abspath(parsed.build_dir)
    parsed.parts = parsed.only.split(",") if parsed.only else list(PARTS)
    unknown = [p for p in parsed.parts if p not in PARTS]
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    return parsed


def main():
    report = Report()
    for name in args.parts:
        report.line(f"---- {name}: {PARTS[name][1]}")
        PARTS[name][0](report)
    if report.failures:
        print("failed: " + "; ".join(report.failures))
    print(f"{report.n_passed} passed, {report.n_failed} failed, {report.n_skipped} skipped",
          flush=True)
    return 1 if report.n_failed else 0


if __name__ == "__main__":
    args = parse()
    sys.exit(main())
