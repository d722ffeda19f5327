# SPDX-License-Identifier: Apache-2.0
"""Builds libkvtier with the project's own build files and puts it beside the package, with the
descriptor of the control API.

The library and its flags are described once, in the repository's meson.build; pip fetches meson,
ninja and protoc, so what the machine must have is a C compiler, pkg-config and xxHash's header.
"""

import atexit
import pathlib
import shutil
import subprocess
import sys
import tempfile

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SONAME = "libkvtier.so.0"
DESCRIPTOR = "control.pb"


def run(*command):
    try:
        subprocess.run([str(part) for part in command], check=True)
    except (OSError, subprocess.CalledProcessError) as err:
        raise SystemExit(
            f"kvtier: building libkvtier failed: {err}. It needs a C compiler, pkg-config and "
            "xxHash; on Debian: apt-get install gcc libc6-dev pkgconf libxxhash-dev") from err


def build_library(folder):
    """Returns the path of the library, built in folder."""
    if not (ROOT / "connector" / "include" / "kvtier.h").exists():
        raise SystemExit(f"kvtier: {ROOT} is not the KVTier repository; install from a checkout: "
                         "pip install connector/python")
    run("meson", "setup", folder, ROOT, "--buildtype=release", "-Dagent=disabled",
        "-Dtests=disabled", "-Dcuda=auto")
    run("meson", "compile", "-C", folder, "kvtier:shared_library")
    return folder / "connector" / SONAME


class BuildWithLibrary(build_py):
    def target(self, name):
        folder = HERE if self.editable_mode else pathlib.Path(self.build_lib)
        return folder / "kvtier" / name

    def run(self):
        super().run()
        folder = pathlib.Path(self.get_finalized_command("build").build_temp).resolve()
        library = build_library(folder / "libkvtier")
        target = self.target(SONAME)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(library.resolve(), target)
        target.chmod(0o755)
        run(sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}",
            f"--descriptor_set_out={self.target(DESCRIPTOR)}", "kvtier/v1/control.proto")

    def get_outputs(self, include_bytecode=True):
        return [*super().get_outputs(include_bytecode), str(self.target(SONAME)),
                str(self.target(DESCRIPTOR))]


class AnyPythonWheel(bdist_wheel):
    """The library belongs to a platform, but to no version of Python."""

    def get_tag(self):
        return ("py3", "none", super().get_tag()[2])


class PlatformDistribution(Distribution):
    def has_ext_modules(self):
        return True


# Nothing of an earlier build gets into a wheel, and no build folder stays in the source.
scratch = tempfile.mkdtemp(prefix="kvtier-build-")
atexit.register(shutil.rmtree, scratch, ignore_errors=True)
setup(distclass=PlatformDistribution, options={"build": {"build_base": scratch}},
      cmdclass={"build_py": BuildWithLibrary, "bdist_wheel": AnyPythonWheel})
