"""What is run, and where its source comes from."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Case", "Skipped", "Sources", "command"]

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """Code of others in one tool's syntax, that is run with the tool and here.

    Attributes:
        name: of this case alone; it is the case's site, too.
        tool: ``"tensorboard"``, ``"mlflow"`` or ``"wandb"``.
        prepare: ``prepare(folder, here)`` puts the code into ``folder``, with the import changed
            if ``here`` is set, and returns the command to run in it. A command of several parts
            leaves ``outcomes.jsonl``: for each part a line with ``site``, ``outcome`` (``passed``,
            ``failed`` or ``skipped``) and ``error``.
        varies: patterns (as of ``fnmatch``) of keys whose values are another at each run: times,
            sizes. Their steps are compared.
        differs: what is known to differ and stands in the documentation. A pattern of ``"KIND
            KEY"`` for records, or of a site for a part that cannot pass here; → a sentence why.
        launched: the launcher names the site, by ``ZMQTRACK_SITE``. Otherwise the machine has that
            name, as where nobody names a site: W&B's page then has the run under its own name.
    """

    name: str
    tool: str
    prepare: Callable[[Path, bool], list[str]]
    varies: tuple[str, ...] = ()
    differs: Mapping[str, str] = field(default_factory=dict)
    launched: bool = True


@dataclass(frozen=True)
class Skipped:
    """A case that cannot be run, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Sources:
    """Where other people's code is; ``cache`` keeps what was fetched."""

    checkouts: Path | None
    cache: Path

    def checkout(self, name: str) -> Path | None:
        """The checkout of this name, if it is there."""
        path = self.checkouts / name if self.checkouts else None
        return path if path and path.is_dir() else None


def command(script: Path, *arguments: str, alias: str = "-") -> list[str]:
    """The command that runs ``script``, with the same random numbers each time.

    ``alias`` names a tool whose module is replaced before the script begins: for frameworks, which
    import the tool by themselves.
    """
    return [sys.executable, str(HERE / "start.py"), alias, str(script), *arguments]
