"""Texts that the wandb adapter makes W&B's own values of."""

from __future__ import annotations

import html
import json
import re
from typing import Any

__all__ = ["as_logged", "page"]

_WORDS = {"True": True, "False": False, "None": None}


def page(key: str, value: str) -> Any:
    """A text as W&B's ``Html``: as it is where the key ends in ``.html``, else escaped."""
    import wandb

    if not key.endswith(".html"):
        value = f"<pre>{html.escape(value, quote=False)}</pre>"
    return wandb.Html(value, inject=False, data_is_not_path=True)


def as_logged(key: str, value: str) -> tuple[str, Any]:
    """Key and value as a tool that logs in rows was given them; the key's ending says the form."""
    base, _, ending = key.rpartition(".")
    if base and ending == "html":
        return base, page(key, value)
    if base and ending == "json":
        try:
            return base, json.loads(value)
        except ValueError:
            return key, value
    if base and ending == "md":
        found = _table(value)
        return (key, page(key, value)) if found is None else (base, found)
    return key, value


def _table(text: str) -> Any:
    """W&B's ``Table`` of a Markdown table; None if it is none, or not whole."""
    import wandb

    lines = text.split("\n")
    rows = [_cells(line) for line in lines]
    if len(rows) < 2 or not all(re.fullmatch("---:?", rule) for rule in rows[1]):
        return None
    columns, rules, *data = rows
    if not all(len(row) == len(columns) for row in rows):
        return None
    typed = [
        [_number(cell) if rule == "---:" else cell for cell, rule in zip(row, rules, strict=True)]
        for row in data
    ]
    return wandb.Table(columns=columns, data=typed, allow_mixed_types=True)


def _cells(line: str) -> list[str]:
    if not (line.startswith("| ") and line.endswith(" |")):
        return []
    cells = line[2:-2].split(" | ")
    return [cell.replace("\\|", "|").replace("<br>", "\n") for cell in cells]


def _number(cell: str) -> Any:
    if cell in _WORDS:
        return _WORDS[cell]
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell
