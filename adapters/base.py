"""The contract between an adapter and its host.

An adapter is a class that delivers batches to one tracker. The host (``host.py``)
subscribes, fills gaps, decodes, bounds, retries and keeps the cursor; the adapter only
translates. It may assume: batches come in journal order; a stream's batches come in seq
order; after a failed or interrupted :meth:`Adapter.deliver` the same batches come again.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict

from zmqtrack.errors import ZMQTrackError
from zmqtrack.records import VOCABULARY
from zmqtrack.wire import Batch

from .secrets import mask

__all__ = [
    "Adapter",
    "Blocked",
    "Context",
    "Options",
    "Refused",
    "TrackerError",
    "Unavailable",
    "leads_elsewhere",
    "own_entry",
    "safe_name",
]


class TrackerError(ZMQTrackError):
    """Base of what an adapter may raise from ``open``, ``deliver`` and ``probe``.

    For a person who looks for what is wrong, ``code`` may be a word of its own for it, and
    ``advice`` what to do: the command to run, or the key of the YAML to set.
    """

    code = "tracker_error"

    def __init__(self, message: str, *, code: str = "", advice: str = "") -> None:
        super().__init__(message)
        self.code = code or self.code
        self.advice = advice


class Unavailable(TrackerError):
    """The tracker cannot be reached or is overloaded: the host tries again, for ever.

    ``retry_after`` is the wait that the tracker asked for, in seconds.
    """

    code = "tracker_unavailable"

    def __init__(
        self, message: str, retry_after: float | None = None, *, code: str = "", advice: str = ""
    ) -> None:
        super().__init__(message, code=code, advice=advice)
        self.retry_after = retry_after


class Blocked(TrackerError):
    """The tracker refuses us (credentials, permissions, quota) until a person acts.

    Nothing is discarded; the host shows the state and tries again now and then.
    """

    code = "tracker_blocked"


class Refused(TrackerError):
    """The tracker refuses the content for good.

    The host halves what it delivered until the single records are found that are refused,
    and puts those, and only those, among the dead letters. ``deliver`` must therefore be
    idempotent for what it had applied before it raised this.
    """

    code = "tracker_refused"


class Options(BaseModel):
    """Base of an adapter's ``options`` in the YAML; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Context:
    """What the host hands to an adapter.

    ``name`` is the adapter's name in the YAML; ``state_dir`` an existing folder of its own
    that outlives restarts, and is emptied when the cursor is lost; ``count`` adds to a named
    counter (shown by ``zmqtrack status``) for what the tracker can hold only in part or not at all.
    """

    name: str
    state_dir: Path
    log: logging.Logger
    counters: dict[str, int]

    def count(self, reason: str, n: int = 1) -> None:
        reason = mask(reason)
        if reason not in self.counters:
            self.log.warning("%s (counted from here on, said once)", reason)
        self.counters[reason] = self.counters.get(reason, 0) + n


class Adapter(ABC):
    """One tracker. Subclasses are made by the host, in a process of their own."""

    #: Data types that this tracker can hold; ``None``: any, the user's own included.
    types: ClassVar[frozenset[str] | None] = VOCABULARY
    #: Modules that must be importable, and the extra of zmqtrack that brings them.
    requires: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str | None] = None
    #: Schema of ``options``.
    Options: ClassVar[type[BaseModel]] = Options

    def __init__(self, options: BaseModel, context: Context) -> None:
        self.options = options
        self.context = context

    def open(self, note: bytes) -> None:  # noqa: B027 -- optional hook
        """Connect, and reconcile what was in doubt when the last process ended.

        ``note`` is what :meth:`note` returned with the last committed cursor (``b""`` at
        first): whatever the tracker holds beyond it was delivered but not committed, and
        will be delivered again.

        Raises:
            Unavailable, Blocked: the host waits and calls again.
        """

    @abstractmethod
    def deliver(self, batches: Sequence[Batch]) -> None:
        """Write the batches; on return the tracker has confirmed all of them, durably.

        Batches of many runs and data types come together, in order. Empty never.

        Raises:
            Unavailable, Blocked, Refused: see there. Any other exception is taken as
                :class:`Unavailable` and logged with its traceback.
        """

    def probe(self, timeout: float) -> str:
        """Try the tracker, changing nothing in it; say in a few words what was found.

        For ``zmqtrack check --connect`` and ``zmqtrack doctor``, in a process of its own, which
        calls neither :meth:`open` nor :meth:`deliver`, while another may be delivering. It
        should take no longer than ``timeout`` seconds; much later the process is ended.

        Raises:
            Unavailable, Blocked, Refused: as ``deliver`` does, with ``advice`` where there is any.
        """
        return "not tried: its class has no probe()"

    def note(self) -> bytes:
        """What to store with the cursor, atomically; asked for after each ``deliver``."""
        return b""

    def close(self) -> None:  # noqa: B027 -- optional hook
        """Release the tracker. All that was delivered has been committed."""


# --- names that come from a site, as names of files ------------------------------------------

#: A name that the file system does not take, as Windows' do not take "con"; or something else
#: stands there, such as another adapter's file.
_NOT_TO_BE_HAD = frozenset({errno.EINVAL, errno.ENOENT, errno.EEXIST, errno.EISDIR, errno.ENOTDIR})

#: What a name that was cut looks like; one that is like it by itself is treated the same.
_CUT = re.compile(r".{160}~[0-9a-f]{32}")


def safe_name(name: str) -> str:
    """``name`` as one path component that stays in its folder; distinct names stay distinct.

    Letters, digits, space and ``_.-~+=@,()`` stay; all else, and a leading dot, becomes
    ``%XX``; longer than 200 bytes: cut, with a hash of the whole. All of it is ASCII, so that
    no file system composes or decomposes it; for one that folds case, see :func:`own_entry`.
    """
    safe = quote(name, safe=" _.-~+=@,()", errors="surrogatepass") or "%"
    if safe.startswith("."):
        safe = "%2E" + safe[1:]
    if len(safe) > 200 or _CUT.fullmatch(safe):
        safe = f"{safe[:160]}~{_hash(name)}"
    return safe


def other_name(name: str) -> str:
    """The name to use where ``safe_name(name)`` cannot be had: that of no other name."""
    # "%~" stands in no safe_name but where it was cut, and then the hash is another, or the length.
    return f"{safe_name(name)[:160]}%~{_hash(name)}"


def own_entry(
    folder: Path,
    name: str,
    make: Callable[[Path], object],
    suffix: str = "",
    spell: Callable[[str], str] = str,
) -> str:
    """``name`` as an entry of ``folder`` (and ``suffix`` behind it) that is no other name's.

    It is ``safe_name(name)``, except where the file system has that lead to the entry of another
    name: one that folds case, or drops a dot at the end. There the second name to come gets a
    hash behind it. The entry is made by ``make``, so that it is taken, also after a crash.
    ``spell`` may put ``%XX`` for more characters.

    Raises:
        OSError: of ``make``.
    """
    plain, other = spell(safe_name(name)), spell(other_name(name))
    known = [os.path.lexists(folder / (entry + suffix)) for entry in (plain, other)]
    if known == [False, True] or leads_elsewhere(folder, plain + suffix):
        plain = other
    try:
        make(folder / (plain + suffix))
    except OSError as error:
        if error.errno not in _NOT_TO_BE_HAD or plain == other or not folder.is_dir():
            raise
    else:
        if not leads_elsewhere(folder, plain + suffix):
            return plain
    make(folder / (other + suffix))
    return other


def leads_elsewhere(folder: Path, name: str) -> bool:
    """Whether the file system takes ``name`` for an entry that is spelled otherwise."""
    if not os.path.lexists(folder / name):
        return False
    swapped = name.swapcase()
    if swapped != name and not os.path.lexists(folder / swapped):
        return False  # it tells case apart; to read the whole folder would take long
    return all(entry.name != name for entry in folder.iterdir())


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:32]
