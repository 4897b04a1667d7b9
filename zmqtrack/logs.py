"""How a service logs on stderr: text for people, JSON for machines, priorities for journald.

Names of sites and reasons of trackers come from anywhere. A record is one line, what would
begin another is escaped, and the lines of a traceback are indented: no text can pass for a
record of ours.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import datetime, timezone
from types import TracebackType
from typing import Any, TextIO

__all__ = ["complain", "configure", "on_journal"]

#: Syslog's priorities, which systemd reads in front of each line.
_PRIORITIES = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}
_COLOURS = {logging.DEBUG: 2, logging.WARNING: 33, logging.ERROR: 31, logging.CRITICAL: 31}

_log = logging.getLogger("zmqtrack.uncaught")


def configure(
    level: str, log_format: str, name: str, mask: Callable[[str], str] | None = None
) -> None:
    """Log on stderr as ``name``; may be called again with other settings.

    ``mask`` takes secrets out of a text before it is put into a form in which they are spelled
    in another way. Warnings and uncaught exceptions go the same way.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(log_format, name, mask or str, sys.stderr))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    warnings.showwarning = _warned
    sys.excepthook = _uncaught
    sys.unraisablehook = _unraisable
    threading.excepthook = _uncaught_in_thread


def on_journal(stream: TextIO) -> bool:
    """Whether journald reads what is written there."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):  # closed, or no file
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def complain(text: str) -> None:
    """Print what is wrong before the log is set up; journald learns that it is an error."""
    prefix = f"<{_PRIORITIES[logging.ERROR]}>" if on_journal(sys.stderr) else ""
    for line in text.splitlines():
        print(prefix + line, file=sys.stderr)


# --- formats -----------------------------------------------------------------------------


def _formatter(
    log_format: str, name: str, mask: Callable[[str], str], stream: TextIO
) -> logging.Formatter:
    if log_format == "auto":
        log_format = "journald" if on_journal(stream) else "text"
    if log_format == "json":
        return _JSON(name, mask)
    if log_format == "journald":
        return _Journald(name, mask)
    if stream.isatty():
        return _Terminal(name, mask)
    return _Text(name, mask)


class _Format(logging.Formatter):
    """What all have in common: a message and a traceback, without secrets."""

    def __init__(self, name: str, mask: Callable[[str], str]) -> None:
        super().__init__()
        self.name = name
        self.mask = mask

    def parts(self, record: logging.LogRecord) -> tuple[str, str]:
        """The message; then the traceback or stack, or an empty text."""
        behind = []
        if record.exc_info and record.exc_info[0] is not None:
            behind.append("".join(traceback.format_exception(*record.exc_info)).rstrip("\n"))
        if record.stack_info:
            behind.append(record.stack_info)
        return self.mask(record.getMessage()), self.mask("\n".join(behind))


class _Text(_Format):
    """``LEVEL [name] message``, and a traceback indented below it."""

    def prefix(self, record: logging.LogRecord) -> str:
        return f"{record.levelname} [{self.name}] "

    def format(self, record: logging.LogRecord) -> str:
        message, behind = self.parts(record)
        lines = [_plain(message), *("  " + _plain(line) for line in behind.splitlines())]
        lines[0] = self.prefix(record) + lines[0]
        return "\n".join(lines)


class _Terminal(_Text):
    """The same with the time, the level in its colour."""

    def prefix(self, record: logging.LogRecord) -> str:
        at = time.strftime("%H:%M:%S", time.localtime(record.created))
        level = record.levelname
        colour = _COLOURS.get(record.levelno)
        if colour and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb":
            level = f"\x1b[{colour}m{level}\x1b[0m"
        return f"{at} {level} [{self.name}] "


class _Journald(_Text):
    """No time, which journald adds itself; every line has its priority."""

    def prefix(self, record: logging.LogRecord) -> str:
        return f"[{self.name}] "

    def format(self, record: logging.LogRecord) -> str:
        priority = f"<{_PRIORITIES.get(record.levelno, 6)}>"
        return "\n".join(priority + line for line in super().format(record).split("\n"))


class _JSON(_Format):
    """One object a line."""

    def format(self, record: logging.LogRecord) -> str:
        message, behind = self.parts(record)
        at = datetime.fromtimestamp(record.created, timezone.utc)
        facts = {
            "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "name": self.name,
            "logger": record.name,
            "message": message,
        }
        if behind:
            facts["exception"] = behind
        return json.dumps(facts)


def _plain(text: str) -> str:
    """``text`` with escapes for line ends, control characters and what turns writing around."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode()
        for c in text
    )


# --- what nobody logs itself -------------------------------------------------------------


def _warned(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    logging.getLogger("py.warnings").warning(
        "%s: %s (%s:%d)", category.__name__, message, filename, lineno
    )


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):  # no fault of the program's
        _log.error("interrupted")
    else:
        _log.critical("ended by an error of its own", exc_info=(kind, error, trace))


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is SystemExit:
        return
    error = args.exc_value or args.exc_type()
    name = args.thread.name if args.thread else "?"
    _log.error(
        "thread %s ended by an error of its own",
        name,
        exc_info=(args.exc_type, error, args.exc_traceback),
    )


def _unraisable(args: Any) -> None:
    error = args.exc_value or args.exc_type()
    _log.error(
        "%s: %r",
        args.err_msg or "an error that nothing could catch, in",
        args.object,
        exc_info=(args.exc_type, error, args.exc_traceback),
    )
