"""Who came, who was refused and why: JSON lines in ``audit.jsonl``, rotated."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

__all__ = ["Audit"]

#: Size at which a file is put aside, and how many of those are kept.
BYTES = 10 << 20
KEPT = 5
#: The same from the same is written once and then at most so often (seconds), with a count.
INTERVAL = 10.0
#: Different events that are remembered for that.
REMEMBERED = 10_000


class _Handler(RotatingFileHandler):
    def _open(self) -> TextIOWrapper:
        file = os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        return os.fdopen(file, "a", encoding="utf-8", errors="backslashreplace")

    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk, or no file to be had: what was to be noted is not worth the daemon."""


class Audit:
    """The file in ``state_dir``; writing to it never raises."""

    def __init__(self, state_dir: Path) -> None:
        self._handler = _Handler(
            state_dir / "audit.jsonl", maxBytes=BYTES, backupCount=KEPT
        )  # fmt: skip
        self._seen: dict[tuple[Any, ...], list[float]] = {}

    def write(self, event: str, name: str, reason: str, **facts: Any) -> None:
        """``name`` is whom it is about, as far as that is known."""
        now = time.monotonic()
        what = (event, name, reason, facts.get("address"), facts.get("socket"))
        when, unsaid = self._seen.get(what, (-INTERVAL, 0))
        if now - when < INTERVAL:
            self._seen[what] = [when, unsaid + 1]
            return
        if len(self._seen) >= REMEMBERED:
            self._seen.clear()
        self._seen[what] = [now, 0]
        line = {"time": time.time(), "event": event, "name": name, "reason": reason, **facts}
        if unsaid:
            line["repeated"] = unsaid
        text = json.dumps({k: v for k, v in line.items() if v not in (None, "")})
        self._handler.handle(logging.makeLogRecord({"msg": text, "name": "audit"}))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._handler.close()
