"""Files that only grow, and can be cut back to what was confirmed.

An adapter that owns its files gives a :class:`Ledger` all the bytes of one delivery at
once: they are appended everywhere, durably, or nowhere. Before the first byte is written,
an undo log in the adapter's state folder holds, for each file, how long it is and how long
it will be. The note that goes with the cursor is only the number of the delivery, so it
stays small however many files there are. After a crash, what the undo log knows beyond the
noted delivery is in doubt, and is cut; no other file, and no other byte, is touched.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from .base import Blocked, Unavailable

__all__ = ["Ledger", "disk", "make_file", "make_folder", "replace_file"]

#: Confirmed deliveries that can be undone all the same, should the cursor go back a little.
KEPT = 64

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
#: ELOOP: a symbolic link stands where one of our files should be; it is not followed.
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP})


class Ledger:
    """Appends to many files at once, all or nothing, with one file open at a time."""

    def __init__(self, state_dir: Path, log: logging.Logger) -> None:
        self._path = state_dir / "undo.sqlite"
        self._log = log
        self._db: sqlite3.Connection | None = None
        self._delivery = 0
        self._noted = self._confirmed = 0  # the last note given out, and the one before it
        self._torn = False  # a failed delivery's bytes may still be there

    def open(self, note: bytes) -> None:
        """Cut what was written after ``note``."""
        noted = self._noted = self._confirmed = int(note or b"0")
        with disk(self._path):
            self._db = self._db or sqlite3.connect(
                self._path, isolation_level=None, check_same_thread=False
            )
            for statement in (
                "PRAGMA journal_mode = WAL",
                "PRAGMA synchronous = FULL",
                "CREATE TABLE IF NOT EXISTS undo (delivery INTEGER, path BLOB, before, after)",
                "CREATE INDEX IF NOT EXISTS by_delivery ON undo (delivery)",
            ):
                self._db.execute(statement)
            first, last = self._db.execute(
                "SELECT min(delivery), max(delivery) FROM undo"
            ).fetchone()
            self._delivery = noted
            if last is not None and noted < first - 1:
                # Confirmed deliveries are not cut: their records may be nowhere else.
                self._log.warning(
                    "the cursor went back further than can be undone (delivery %d, undo log "
                    "from %d): what is delivered again will be there twice", noted, first
                )  # fmt: skip
                self._delivery = last
            elif (last or 0) < noted:
                self._log.warning("%s is missing or old: an unfinished delivery stays", self._path)
            else:
                self._undo(noted)

    def append(self, pieces: Mapping[Path, bytes | bytearray]) -> None:
        """Append to each file its piece; on return all is on disk.

        Raises:
            Unavailable, Blocked: the disk refuses; nothing was appended.
        """
        assert self._db is not None, "open() comes first"
        with disk(self._path):
            if self._torn:
                self._undo(self._delivery)
            delivery = self._delivery + 1
            sizes = {path: _size(path) for path in pieces}
            with self._db:
                self._db.execute("BEGIN")
                forgotten = min(delivery - KEPT, self._confirmed)
                self._db.execute("DELETE FROM undo WHERE delivery <= ?", (forgotten,))
                self._db.executemany(
                    "INSERT INTO undo VALUES (?, ?, ?, ?)",
                    [
                        (delivery, os.fsencode(path), size, size + len(pieces[path]))
                        for path, size in sizes.items()
                    ],
                )
        self._torn = True
        try:
            for path, piece in pieces.items():
                with disk(path):
                    _append(path, piece, new=not sizes[path])
        except BaseException:
            with disk(self._path):
                self._undo(self._delivery)
            raise
        self._torn = False
        self._delivery = delivery

    def note(self) -> bytes:
        if self._noted != self._delivery:
            # The host asks for the next only when the last one has been committed.
            self._noted, self._confirmed = self._delivery, self._noted
        return b"%d" % self._delivery

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def _undo(self, noted: int) -> None:
        """Cut what was written after delivery ``noted``, the newest first."""
        assert self._db is not None
        for path, before, after in self._db.execute(
            "SELECT path, before, after FROM undo WHERE delivery > ? ORDER BY delivery DESC",
            (noted,),
        ).fetchall():
            _cut(Path(os.fsdecode(path)), before, after, self._log)
        self._db.execute("DELETE FROM undo WHERE delivery > ?", (noted,))
        self._torn = False


def replace_file(path: Path, pieces: Iterable[bytes], part: Path) -> None:
    """Write ``path`` whole, by way of ``part``: a reader, or a crash, never sees half of it."""
    make_folder(path.parent)
    part.unlink(missing_ok=True)
    with part.open("xb") as file:  # never through a link that somebody put there
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    _sync_folder(path.parent)


def make_folder(path: Path) -> None:
    """Make a folder and its parents, so that they outlive a power cut."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        _sync_folder(path.parent)


def make_file(path: Path) -> None:
    """Make an empty file, if there is none."""
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666))


@contextmanager
def disk(path: Path) -> Iterator[None]:
    """Translate what the operating system refuses into what the host understands."""
    try:
        yield
    except sqlite3.Error as error:
        raise Unavailable(f"cannot write {path}: {error}") from error
    except OSError as error:
        reason = f"{error.filename or path}: {error.strerror or error}"
        if error.errno in _FULL:
            raise Unavailable(f"the disk is full, nothing was written: {reason}") from error
        if error.errno in _FORBIDDEN:
            raise Blocked(f"writing is not permitted: {reason}") from error
        raise Unavailable(f"cannot write {reason}") from error


def _append(path: Path, piece: bytes | bytearray, new: bool) -> None:
    make_folder(path.parent)
    with open(path, "ab", opener=_no_link) as file:
        file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    if new:
        _sync_folder(path.parent)


def _cut(path: Path, before: int, after: int, log: logging.Logger) -> None:
    size = _size(path)
    if size > after:
        log.warning("%s is longer than we made it: somebody else writes to it; left alone", path)
    elif size > before or (size == before == 0 and path.exists()):
        if not before:
            path.unlink()
            _sync_folder(path.parent)
            return
        with open(path, "r+b", opener=_no_link) as file:
            file.truncate(before)
            os.fsync(file.fileno())


def _no_link(path: str, flags: int) -> int:
    """Opens only what is a file itself: a link that somebody put there leads elsewhere."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return 0


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
