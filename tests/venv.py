# SPDX-License-Identifier: Apache-2.0
"""Virtual environments of the tests: one per requirements file, kept while that stays the same.

Usage: venv.py FOLDER REQUIREMENTS    (prints the environment's Python)
"""

import hashlib
import os
import shutil
import subprocess
import sys


def make(folder, requirements):
    """Path of the Python of an environment in folder with exactly what the file names.
    Raises subprocess.CalledProcessError, whose output says why."""
    with open(requirements, "rb") as file:
        wanted = hashlib.sha256(file.read() + sys.version.encode()).hexdigest()
    python = os.path.join(folder, "bin", "python")
    stamp = os.path.join(folder, "made-from")
    if os.path.exists(stamp):
        with open(stamp, encoding="ascii") as file:
            if file.read() == wanted:
                return python
    shutil.rmtree(folder, ignore_errors=True)
    for args in ([sys.executable, "-m", "venv", folder],
                 # The file names everything, so nothing is resolved and nothing else gets in.
                 [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
                  "--no-deps", "--requirement", requirements]):
        subprocess.run(args, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                       stderr=subprocess.STDOUT, text=True)
    with open(stamp, "w", encoding="ascii") as file:
        file.write(wanted)
    return python


if __name__ == "__main__":
    try:
        print(make(os.path.abspath(sys.argv[1]), sys.argv[2]))
    except subprocess.CalledProcessError as err:
        sys.exit(f"{err}\n{err.stdout}")
