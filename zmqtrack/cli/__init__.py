"""The operator's commands. They talk to the daemon over control and import none of it."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import TextIO

__all__ = ["main"]

#: Ctrl-C, as shells count it.
EX_INTERRUPTED = 130


def main() -> int:
    """Run a command. What a person or the system did wrong is said in a line."""
    try:
        return _finish(_command())
    except KeyboardInterrupt:
        return EX_INTERRUPTED
    except BrokenPipeError:  # as of `| head -1`: who read has seen enough
        code = 1
    except OSError as error:
        name = f"{error.filename}: " if error.filename is not None else ""
        with contextlib.suppress(OSError):
            print(f"{name}{error.strerror or error}", file=sys.stderr)
        code = 1
    _give_up(sys.stdout)
    return code


def _command() -> int:
    try:
        from .app import app
    except ImportError as error:
        hint = f"zmqtrack's commands need {error.name}: pip install 'zmqtrack[daemon]'"
        print(hint, file=sys.stderr)
        return 1
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names come from anywhere
            stream.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="zmqtrack")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


def _finish(code: int) -> int:
    """``code``, after all that was printed has been taken; what was said, if it can be."""
    try:
        print(end="", file=sys.stderr, flush=True)
    except OSError:
        _give_up(sys.stderr)
    print(end="", flush=True)
    return code


def _give_up(stream: TextIO) -> None:
    """Python would try again at its end to write what nobody takes."""
    with contextlib.suppress(OSError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
