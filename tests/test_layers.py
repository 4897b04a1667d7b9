"""Arrows run one way: daemon → zmqtrack ← adapters; a training process imports little."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

#: What each room may import of the project, as seen from outside.
ALLOWED = {
    "zmqtrack": ("zmqtrack",),
    "daemon": ("zmqtrack", "zmqtrack.daemon"),
    "adapters": ("zmqtrack", "zmqtrack.adapters"),
}
FORBIDDEN = {
    "zmqtrack": ("zmqtrack.daemon", "zmqtrack.adapters"),
    "daemon": ("zmqtrack.adapters", "zmqtrack.cli"),
    "adapters": ("zmqtrack.daemon", "zmqtrack.cli"),
}
#: In the core only these need more than pyzmq and msgpack: daemon, adapters and CLI use them.
SERVER_SIDE = {"config.py"}


def _imports(path: Path, package: str) -> Iterator[str]:
    """Absolute names of all modules that a file imports, wherever the import stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = parts[: len(parts) - node.level + 1] if node.level else []
            yield ".".join([*base, node.module or ""]).rstrip(".")


def _files(room: str) -> Iterator[tuple[Path, str]]:
    installed = {"zmqtrack": "zmqtrack", "daemon": "zmqtrack.daemon"}.get(room, "zmqtrack.adapters")
    for path in sorted((ROOT / room).rglob("*.py")):
        below = path.relative_to(ROOT / room).parent.parts
        yield path, ".".join((installed, *below))


@pytest.mark.parametrize("room", FORBIDDEN)
def test_arrows_run_one_way(room: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path, package in _files(room)
        for name in _imports(path, package)
        for bad in FORBIDDEN[room]
        if name == bad or name.startswith(f"{bad}.")
    ]
    assert not wrong


@pytest.mark.parametrize("room", ["daemon", "adapters"])
def test_imports_inside_a_folder_are_relative(room: str) -> None:
    wrong = []
    for path, _ in _files(room):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            own = (f"zmqtrack.{room}", room)
            wrong += [
                f"{path.name}: {name}"
                for name in names
                if any(name == o or name.startswith(f"{o}.") for o in own)
            ]
    assert not wrong


def test_the_core_imports_nothing_but_pyzmq_msgpack_and_the_standard_library_at_import() -> None:
    allowed = {"zmq", "msgpack", "zmqtrack"} | set(sys.stdlib_module_names)
    wrong = []
    for path, package in _files("zmqtrack"):
        if path.name in SERVER_SIDE or "cli" in path.parts:
            continue
        tree = ast.parse(path.read_text())
        for node in tree.body:  # module level only: optional things are imported where used
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                module = ast.Module(body=[node], type_ignores=[])
                for name in _imports_of(module, package):
                    if name.split(".")[0] not in allowed:
                        wrong.append(f"{path.name}: {name}")
    assert not wrong


def _imports_of(tree: ast.Module, package: str) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield package if node.level else (node.module or "")


def test_importing_zmqtrack_loads_no_heavy_module() -> None:
    heavy = "numpy torch pydantic yaml tensorboardX mlflow wandb PIL matplotlib typer rich"
    code = (
        "import sys, zmqtrack, zmqtrack.writers.mlflow, zmqtrack.writers.wandb\n"
        "from zmqtrack import SummaryWriter, MLflowWriter, WandBWriter\n"
        f"print([name for name in '{heavy}'.split() if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
