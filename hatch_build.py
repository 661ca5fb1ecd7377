"""Compile the kernels when the package is built or installed (docs/compact-training.md)."""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = Path("fedgmr_hpc", "training", "kernels")


class KernelHook(BuildHookInterface):
    """Puts the library of compiled kernels into wheels and, for editable installs, into the tree.

    An install never fails for want of a compiler: torch's sparse kernels take over.
    """

    def dependencies(self) -> list[str]:
        """Ask for a compiler from the package index where there is none."""
        return [] if self._builder().find_compiler() else ["ziglang"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build in place; what loads the library is ctypes, so any Python of this platform fits."""
        builder = self._builder()
        if not builder.is_built():  # installers call this twice, for the metadata and the wheel
            self.app.display_info(builder.try_build())
        if builder.is_built():
            build_data["artifacts"].append(str(KERNELS / builder.LIBRARY.name))
            build_data["pure_python"] = False
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{platform}"

    def _builder(self) -> ModuleType:
        """Load build.py by its path: its package imports torch."""
        path = Path(self.root, KERNELS, "build.py")
        spec = importlib.util.spec_from_file_location("build_kernels", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
