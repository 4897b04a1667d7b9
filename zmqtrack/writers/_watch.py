"""A tool's real package in the same process: its modules are seen as they are imported.

``import TOOL.part`` behind ``import zmqtrack.writers.TOOL as TOOL`` binds the name to the real
package, and all that follows would go there without a word. So a writer has each module of it
handed over as it comes, and decides what of that is to be its own.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any

from ._common import note

__all__ = ["watch"]

Adopt = Callable[[ModuleType], None]


def watch(package: str, adopt: Adopt, missing: str) -> None:
    """Have each module of ``package`` adopted once it is imported, or where it is already.

    ``missing``: what an import says where there is no such package.
    """
    for finder in sys.meta_path:
        if isinstance(finder, _Watch) and finder.package == package:
            finder.adopt = adopt  # as when a test imports the writer anew
            return
    sys.meta_path.insert(0, _Watch(package, adopt, missing))
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        adopt(sys.modules[name])


class _Watch(MetaPathFinder):
    """Finds nothing itself: it sees modules of the package come, and says where there is none."""

    def __init__(self, package: str, adopt: Adopt, missing: str) -> None:
        self.package = package
        self.adopt = adopt
        self.missing = missing

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        package, _, inner = name.partition(".")
        if package != self.package or inner.count(".") > 1:
            return None
        spec = None
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(name, path, target)):
                break
        if spec is None and not inner and _is_statement():
            raise ModuleNotFoundError(self.missing, name=package)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            self._follow(spec)
        return spec

    def _follow(self, spec: importlib.machinery.ModuleSpec) -> None:
        """Have the module adopted when it has run."""
        loader: Any = spec.loader
        run = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            if module.__name__ == spec.name:
                loader.exec_module = run
                self.adopt(module)

        try:
            loader.exec_module = exec_module
        except AttributeError:
            note(
                f"{self.package} package",
                "it is loaded in a way that cannot be followed: its calls are its own",
            )


def _is_statement() -> bool:
    """Whether an import asks, and not somebody who wants to know if it could."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_code.co_name in ("_find_spec", "_call_with_frames_removed"):
        frame = frame.f_back  # type: ignore[assignment]
    return frame is not None and frame.f_code.co_name.startswith("_find_and_load")
