"""Compile splitserve/codec/rans.c while a wheel or an editable install is made.

Without a C compiler the install goes through all the same: rans.py holds the same loops in Python.
"""

import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = "splitserve/codec/rans.c"
LIBRARY = "splitserve/codec/_rans.so"
FLAGS = ("-O2", "-fPIC", "-shared")


class CustomBuildHook(BuildHookInterface[Any]):
    """Adds the compiled loops to a wheel, and the platform to its name."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Compile into the source tree, where an editable install finds it."""
        if self.target_name != "wheel":
            return
        root = Path(self.root)
        library = root / LIBRARY
        library.unlink(missing_ok=True)
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            self.app.display_warning("no C compiler: the codec will use its slower Python loops")
            return
        command = [compiler, *FLAGS, "-o", str(library), str(root / SOURCE)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            self.app.display_warning(f"{SOURCE} does not compile: {done.stderr}")
            library.unlink(missing_ok=True)
            return
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["artifacts"].append(LIBRARY)
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"
