"""Fail-points: a process with this folder in its PYTHONPATH dies where a test wants it to.

Python imports this module by itself at the start of every process. It does nothing unless
``FAILPOINTS`` or ``MUTATIONS`` is in the environment, and patches only what a process loads: the
product knows nothing of it.

``FAILPOINTS``: comma-separated ``OWNER/POINT:WHEN:N``. ``OWNER`` is ``daemon``, ``writer`` or the
name of an adapter; ``POINT`` is one of those in ``points.py``; ``WHEN`` is ``before``, ``after`` or
``inside``; ``N`` says at which call that counts. The points of one owner come one after another:
the process that reaches the first kills itself with SIGKILL, the next one waits for the second.
``FAILPOINTS_DIR`` is a folder in which a file for each point that was reached keeps it from being
reached again. With ``!NAME`` at the end of a point the victim is not the process itself but the
process group whose number is in ``FAILPOINTS_DIR/NAME.pid``.

``MUTATIONS``: comma-separated names of faults in ``mutations.py`` that are put into the product, to
see that the tests notice.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


class PatchingFinder(importlib.abc.MetaPathFinder):
    """Finds modules as everybody else does, and patches those that are named once they ran."""

    def __init__(self, patches: dict[str, list[Callable[[ModuleType], None]]]) -> None:
        self._patches = patches

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name not in self._patches:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                self._wrap(spec)
                return spec
        return None

    def _wrap(self, spec: importlib.machinery.ModuleSpec) -> None:
        loader: Any = spec.loader
        run = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            for patch in self._patches[spec.name]:
                patch(module)

        loader.exec_module = exec_module


def _begin() -> None:
    patches: dict[str, list[Callable[[ModuleType], None]]] = {}
    if os.environ.get("MUTATIONS"):  # first: a fail-point may stand around a mutation
        import mutations

        for name in os.environ["MUTATIONS"].split(","):
            module, patch = mutations.MUTATIONS[name]
            patches.setdefault(module, []).append(patch)
    if os.environ.get("FAILPOINTS"):
        import points

        for module, patch in points.PATCHES:
            patches.setdefault(module, []).append(patch)
    if patches:
        sys.meta_path.insert(0, PatchingFinder(patches))


_begin()
