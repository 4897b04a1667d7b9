"""``zmqtrackd --check``: says what is wrong with a configuration, and with its trackers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from zmqtrack.config import Located
from zmqtrack.errors import ConfigError, ZMQTrackError

from . import configuration
from .prober import try_trackers

__all__ = ["check"]

EX_CONFIG = 78


def check(path: Path, *, connect: bool, timeout: float, as_json: bool) -> int:
    """Print what was found, and return the exit code: 78 bad, 1 a tracker cannot be used, or
    nothing could be found out, 0 good.

    Trackers are tried only with ``connect``, each for ``timeout`` seconds.
    """
    problems: list[str] = []
    code = EX_CONFIG
    hints: list[str] = []
    trackers: list[dict[str, Any]] = []
    try:
        located = configuration.read_located(path)
        hints = located.hints()
    except ZMQTrackError as error:
        code = EX_CONFIG if isinstance(error, ConfigError) else 1
        problems = str(error).splitlines()
        if not as_json:
            print(error, file=sys.stderr)
    else:
        if not as_json:
            print(f"{path}: good, {len(located.config.adapters)} adapters", flush=True)
            for hint in hints:
                print(hint, file=sys.stderr)
        if connect:
            trackers = _connect(located, timeout, as_json=as_json)
    if as_json:
        found = {"file": str(path), "problems": problems, "hints": hints, "trackers": trackers}
        print(json.dumps(found, indent=2))
    return code if problems else int(not all(each["ok"] for each in trackers))


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
