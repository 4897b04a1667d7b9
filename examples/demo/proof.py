"""What was logged beside what the trackers have of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from .plan import EXPERIMENT, RUN, SERVER, SITES
from .tally import KINDS, Tally
from .trackers import READERS

__all__ = ["compare"]


def compare(out: Path, console: Console) -> bool:
    """Print the table; whether every tracker has all that was logged, and nothing else."""
    found = {name: read(out, EXPERIMENT, RUN) for name, read in READERS.items()}
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True)
    for column in ("site", "type", "logged", *found, ""):
        justify: Any = "left" if column in ("site", "type") else "right"
        table.add_column(column, justify=justify, no_wrap=True)
    good = True
    for site in (*SITES, SERVER):
        logged = Tally.load(out / "logged" / f"{site}.json")
        there = [tallies.get(site, Tally()) for tallies in found.values()]
        label = site
        for kind in KINDS:
            if not any(tally[kind] for tally in (logged, *there)):
                continue  # the syntax of this site does not know such a thing
            same = all(tally[kind] == logged[kind] for tally in there)
            good = good and same
            cells = [_cell(tally, logged, kind) for tally in there]
            verdict = "[green]OK[/]" if same else "[bold red]MISMATCH[/]"
            table.add_row(label, kind, logged.show(kind), *cells, verdict)
            label = ""
        table.add_section()
    console.print(table)
    strangers = {site for tallies in found.values() for site in tallies} - {*SITES, SERVER}
    if strangers:
        console.print(f"[bold red]MISMATCH[/] unknown sites: {', '.join(sorted(strangers))}")
    elif good:
        console.print(
            "[bold green]OK[/] Every tracker has everything, once; metrics, params and tags with "
            "the same keys, steps and values.",
            soft_wrap=True,
        )
    else:
        console.print(
            f"[bold red]MISMATCH[/] Not every tracker has what was logged; see {out / 'logs'}",
            soft_wrap=True,
        )
    return good and not strangers


def _cell(there: Tally, logged: Tally, kind: str) -> str:
    if there[kind] == logged[kind]:
        return f"[green]{there.show(kind)}[/]"
    return f"[bold red]≠ {there.show(kind)}[/]"  # also where only values differ
