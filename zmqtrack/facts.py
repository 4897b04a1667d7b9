"""What is known of a process that logs: where it runs, who started it, which program it is.

Trackers show it beside a run. The site's egress policy decides whether it leaves (data type
``run``).
"""

from __future__ import annotations

import getpass
import os
import re
import socket
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

__all__ = ["about_process", "git_commit"]

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def about_process() -> dict[str, Any]:
    """Facts for the beginning of a run.

    ``host``, ``pid`` and ``python`` always; ``user``, ``script`` (as it was called), ``source``
    (``LOCAL`` or ``NOTEBOOK``) and ``commit`` (of the git repository that the script is in)
    where they are known.
    """
    facts = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "python": sys.version.split()[0],
        **_about_program(sys.argv[0] if sys.argv else "", _folder()),
    }
    return {name: fact for name, fact in facts.items() if fact}


def _folder() -> str:
    try:
        return str(Path.cwd())
    except OSError:
        return ""  # it was removed


@lru_cache(maxsize=8)  # a sweep begins many runs in one process
def _about_program(script: str, folder: str) -> dict[str, str | None]:
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # the system has no name for this user
        user = None
    notebook = "ipykernel" in sys.modules
    near = Path(folder, script)
    if notebook or not near.is_file():
        near = Path(folder, "here")
    return {
        "user": user,
        "script": (None if notebook else script) or "<console>",
        "source": "NOTEBOOK" if notebook else "LOCAL",
        "commit": git_commit(near.parent) if folder else None,
    }


def git_commit(folder: Path) -> str | None:
    """The commit that is checked out in the repository around ``folder``; no process is started."""
    try:
        folder = folder.resolve()
        for parent in (folder, *folder.parents):
            if (parent / ".git").exists():
                return _head(parent / ".git")
    except (OSError, ValueError, RuntimeError):
        pass  # not ours to read, or no path
    return None


def _head(git: Path) -> str | None:
    if git.is_file():  # of a worktree or a submodule: it names its folder
        git = git.parent / git.read_text().removeprefix("gitdir:").strip()
    head = (git / "HEAD").read_text().strip()
    if head.startswith("ref:"):
        head = _reference(git, head.removeprefix("ref:").strip())
    return head if _COMMIT.fullmatch(head) else None


def _reference(git: Path, name: str) -> str:
    common = git / "commondir"
    folders = [git, git / common.read_text().strip()] if common.is_file() else [git]
    for folder in folders:
        if (folder / name).is_file():
            return (folder / name).read_text().strip()
    packed = folders[-1] / "packed-refs"
    if packed.is_file():
        with packed.open() as lines:
            for line in lines:
                if line.rstrip("\n").endswith(f" {name}"):
                    return line.split(" ")[0]
    return ""
