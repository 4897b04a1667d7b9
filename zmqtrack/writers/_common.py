"""What the writers share: which run a tool's names mean, and what is done with the rest.

**Names.** Each tool has names of its own for a run. They are taken in this order:

1. zmqtrack's own keyword arguments ``experiment=``, ``run=``, ``site=``;
2. the environment: ``ZMQTRACK_EXPERIMENT``, ``ZMQTRACK_RUN``, ``ZMQTRACK_SITE``;
3. the tool's own arguments, then the tool's own environment variables;
4. the defaults of :func:`zmqtrack.init`.

The environment comes before the tool's arguments because it is the launcher's: in a federation
all sites run the same script, so what the script says cannot tell the sites apart, and sites that
log in different tools' syntax meet in one run only under the launcher's names. A tool's name that
did not get its place is logged as a tag.

**Several runs in one process.** Where the tool would begin another run and its names lead to a
run that this process has begun already, the new one is called ``RUN.NAME``, with the tool's name
for it or else a number: runs that the tool keeps apart are not mixed.
"""

from __future__ import annotations

import collections
import functools
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from ..records import RunKey
from ..rows import Rows
from ..run import Run, init

__all__ = ["also_called", "begin", "disabled_run", "join", "joined", "leave", "lose", "note"]

log = logging.getLogger("zmqtrack")

F = TypeVar("F", bound=Callable[..., Any])

#: Names that this process has begun, and what the tool knows each by.
_begun: dict[tuple[str | None, str, str | None], object] = {}
_said: set[str] = set()
#: Runs that a SummaryWriter without names of its own logs into; the last one counts.
_joined: list[Run] = []


def begin(
    own: Mapping[str, str | None],
    tools: Mapping[str, str | None],
    *,
    tags: Mapping[str, str],
    identity: object = None,
    label: str | None = None,
    exact: bool = False,
    address: str | None = None,
) -> Run:
    """A :class:`Run` for what a tool calls a run; see the module for how it is named.

    Args:
        own: zmqtrack's arguments ``experiment``, ``run``, ``site``, None where not given.
        tools: the same three as the tool's names would have them.
        tags: under which tag a tool's name is logged if it is not used.
        identity: equal for what the tool takes for the same run; None: always another one.
        label: the tool's name for a second run of the same names.
        exact: the run's name is meant as it is, also where this process has begun it already.
    """
    names = {
        part: own.get(part) or os.environ.get(f"ZMQTRACK_{part.upper()}") or tools.get(part) or None
        for part in RunKey._fields
    }
    experiment, name, site = (names[part] for part in RunKey._fields)
    if name is not None and not exact:
        base, number = name, 1
        while (key := (experiment, name, site)) in _begun and (
            identity is None or _begun[key] != identity
        ):
            number += 1
            suffix = label if number == 2 and label and label != base else number
            name = f"{base}.{suffix}"
    new = init(experiment, name, site, address)
    _begun[(experiment, new.key.run, site)] = identity
    for part, tag in tags.items():
        value = tools.get(part)
        if value and value != getattr(new.key, part):
            new.set_tag(tag, value)
    return new


def join(run: Run) -> None:
    """Let each SummaryWriter that is made from now on, without names of zmqtrack, log into it."""
    _joined.append(run)


def joined() -> Run | None:
    """The run that such a SummaryWriter is to log into."""
    return next((run for run in reversed(_joined) if not run.finished), None)


def leave(run: Run) -> None:
    """``run`` ends: nobody joins it any more."""
    if run in _joined:
        _joined.remove(run)


class _Disabled(Run):
    """Checks what it is given as any run does, and keeps nothing."""

    def __init__(self, key: RunKey) -> None:
        self.key = key
        self.address = ""
        self._keys = set()
        self._buffer = collections.deque(maxlen=0)
        self._append = self._buffer.append
        self._large = 0
        self._owner = os.getpid()
        self.rows = Rows()

    def _stall(self) -> None:
        self._large = 0

    def flush(self, timeout: float | None = 10.0) -> bool:
        return True

    def finish(self, status: str = "finished", timeout: float | None = None) -> None:
        """There is nothing to deliver."""


def disabled_run() -> Run:
    """A run for a writer that has been told to log nothing."""
    return _Disabled(RunKey("disabled", "disabled", "disabled"))


def note(what: str, text: str) -> None:
    """Say something once in this process; nothing is lost by it."""
    if what not in _said:
        _said.add(what)
        log.warning("zmqtrack: %s: %s", what, text)


def lose(run: Run, what: str, text: str = "no tracker-neutral form of it exists") -> None:
    """Count a call that could not be carried; say so once for each ``what``.

    The daemon shows the count among its losses, as ``unsupported_WHAT``.
    """
    run.lose(f"unsupported_{what}")
    note(what, f"not logged: {text}; such calls are counted as 'unsupported_{what}'")


def also_called(**names: str) -> Callable[[F], F]:
    """Let keyword arguments be given under another tool's names too: ``new="ours"``."""

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            for name in names.keys() & kwargs.keys():
                kwargs[names[name]] = kwargs.pop(name)
            return function(*args, **kwargs)

        return cast(F, call)

    return decorate
