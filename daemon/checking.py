"""``zmqtrackd --check``: says what is wrong with a configuration, and with its trackers."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from zmqtrack.config import Located
from zmqtrack.errors import ConfigError, KeyFileError
from zmqtrack.keyring import KeyRing

from . import configuration
from .prober import try_trackers

__all__ = ["check"]

EX_CONFIG = 78


def check(path: Path, *, connect: bool, timeout: float, as_json: bool) -> int:
    """Print what was found, and return the exit code: 78 bad, 1 a tracker cannot be used, 0 good.

    Trackers are tried only with ``connect``, each for ``timeout`` seconds.
    """
    problems: list[str] = []
    trackers: list[dict[str, Any]] = []
    try:
        located = configuration.read_located(path)
        daemon = located.config.daemon
        if daemon.keys is not None and not _withheld():
            KeyRing(daemon.keys).clients()
    except (ConfigError, KeyFileError) as error:
        problems = str(error).splitlines()
        if not as_json:
            print(error, file=sys.stderr)
    else:
        if not as_json:
            print(f"{path}: good, {len(located.config.adapters)} adapters", flush=True)
        if connect:
            trackers = _connect(located, timeout, as_json=as_json)
    if as_json:
        print(json.dumps({"file": str(path), "problems": problems, "trackers": trackers}, indent=2))
    return EX_CONFIG if problems else int(not all(found["ok"] for found in trackers))


def _withheld() -> bool:
    """systemd hands credentials to the service's main process, and not to its ``ExecReload``."""
    given = os.environ.get("CREDENTIALS_DIRECTORY")
    return given is not None and not os.access(given, os.X_OK)


def _connect(located: Located, timeout: float, *, as_json: bool) -> list[dict[str, Any]]:
    trackers: list[dict[str, Any]] = []

    def tell(found: dict[str, Any]) -> None:
        where = located.where(found.pop("index"))
        trackers.append({**found, "where": where.partition(": ")[0]})
        if as_json:
            return
        if found["ok"]:
            print(f"adapter {found['adapter']}: ok: {found['detail']}", flush=True)
        else:
            print(f"{where}: {found['detail']}", file=sys.stderr)
            if found["advice"]:
                print(f"     {found['advice']}.", file=sys.stderr)

    try_trackers(located.config.adapters, timeout, tell)
    return trackers
