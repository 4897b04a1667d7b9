"""Change the import lines of a source, and nothing else: what the documentation tells users."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

__all__ = ["copy", "translate"]

#: Modules whose writers are ours, and the tools whose module is.
TENSORBOARD = {"torch.utils.tensorboard", "torch.utils.tensorboard.writer", "tensorboardX"}
WRITERS = {"SummaryWriter", "GlobalSummaryWriter"}
MODULES = {"mlflow": "zmqtrack.writers.mlflow", "wandb": "zmqtrack.writers.wandb"}


def translate(source: str) -> str:
    """``source`` with the imports of the three tools changed.

    ``from tensorboardX import SummaryWriter, x2num`` imports the writer from here and the rest as
    before; ``import mlflow.sklearn`` stays, as it would where only the one line is changed.
    """
    lines = source.splitlines(keepends=True)
    for node in reversed([n for n in ast.walk(ast.parse(source)) if _changed(n)]):
        first, last = node.lineno - 1, node.end_lineno - 1
        # Columns count bytes.
        before = lines[first].encode()[: node.col_offset].decode()
        after = lines[last].encode()[node.end_col_offset :].decode()
        lines[first : last + 1] = [f"{before}{_changed(node)}{after}"]
    return "".join(lines)


def copy(source: Path, folder: Path, here: bool) -> Path:
    """Copy a file or a tree into ``folder``, with changed imports if ``here``; returns the copy."""
    target = folder / source.name
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(".git", "__pycache__"))
    else:
        shutil.copy(source, target)
    if here:
        sources = target.rglob("*.py") if target.is_dir() else [target][: target.suffix == ".py"]
        for path in sorted(sources):
            text = path.read_text()
            changed = translate(text)
            if changed != text:
                path.write_text(changed)
    return target


def _changed(node: ast.AST) -> str:
    """What stands in this statement's place; empty where it is to stay."""
    if isinstance(node, ast.Import):
        if not any(alias.name in MODULES or alias.name == "tensorboardX" for alias in node.names):
            return ""
        return "; ".join(_import(alias) for alias in node.names)
    if isinstance(node, ast.ImportFrom) and not node.level:
        if node.module in MODULES:
            return f"from {MODULES[node.module]} import {_names(node.names)}"
        ours = [alias for alias in node.names if alias.name in WRITERS]
        if node.module in TENSORBOARD and ours:
            rest = [alias for alias in node.names if alias not in ours]
            kept = f"; from {node.module} import {_names(rest)}" if rest else ""
            return f"from zmqtrack.writers.tensorboard import {_names(ours)}{kept}"
    return ""


def _import(alias: ast.alias) -> str:
    ours = {**MODULES, "tensorboardX": "zmqtrack.writers.tensorboard"}.get(alias.name)
    if ours:
        return f"import {ours} as {alias.asname or alias.name}"
    return f"import {alias.name}" + (f" as {alias.asname}" if alias.asname else "")


def _names(aliases: list[ast.alias]) -> str:
    return ", ".join(a.name + (f" as {a.asname}" if a.asname else "") for a in aliases)
