"""What the spool and the journal need to find damage in their SQLite files, and to save the rest.

SQLite notices a damaged page, but not a changed byte inside a value (so each batch has a
checksum), and from the first damaged frame of a write-ahead log on it drops all in silence. So
the log is read before SQLite opens the file, and where SQLite did not take all of it, it is given
sums that agree: the commits behind the damage are then taken too, and what does not agree with
its own checksum shows itself.

::

    write-ahead log: header of 32 bytes, then frames

    header ┌───────┬─────────┬───────────┬────────┬───────┬──────┐
           │ magic │ version │ page size │ number │ salts │ sums │
           │   4   │    4    │     4     │   4    │  4+4  │ 4+4  │
           └───────┴─────────┴───────────┴────────┴───────┴──────┘
    frame  ┌─────────┬─────────────────┬───────┬──────┬──────────┐
           │ page no │ size of file, 0 │ salts │ sums │ the page │
           │    4    │ unless a commit │  4+4  │ 4+4  │          │
           └─────────┴─────────────────┴───────┴──────┴──────────┘

A frame belongs to the log if its salts are the header's; the sums go on from those before.
"""

from __future__ import annotations

import collections
import sqlite3
import struct
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = [
    "WriteAheadLog",
    "checksum",
    "connect",
    "is_sound",
    "readable_rows",
    "set_aside",
]

#: How many rows are stepped over in search of the other side of a damaged place.
SKIPS = 5000


def checksum(data_type: str, header: bytes, body: bytes) -> int:
    """Of a batch; its seq and offset stand in the header."""
    return zlib.crc32(body, zlib.crc32(header, zlib.crc32(data_type.encode())))


class _Connection(sqlite3.Connection):
    """SQLite quotes a damaged schema in its message, and Python may fail to decode that."""

    def execute(self, *args: Any) -> sqlite3.Cursor:
        try:
            return super().execute(*args)
        except UnicodeDecodeError as error:
            raise sqlite3.DatabaseError(f"malformed, {error.object!r:.200}") from None


def connect(path: Path) -> sqlite3.Connection:
    """A connection for one thread at a time, which reads damaged text too."""
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, factory=_Connection)
    db.text_factory = lambda text: text.decode(errors="replace")
    return db


def is_sound(db: sqlite3.Connection, schema: str) -> bool:
    """Whether SQLite finds its structures whole, and our tables are what ``schema`` makes.

    Reads all of the file.
    """
    tables = "SELECT name, sql FROM sqlite_schema ORDER BY name"
    ours = sqlite3.connect(":memory:")
    try:
        ours.executescript(schema)
        return bool(
            db.execute(tables).fetchall() == ours.execute(tables).fetchall()
            and db.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
        )
    except sqlite3.DatabaseError:
        return False
    finally:
        ours.close()


class WriteAheadLog:
    """The log of the database at ``path`` as it is now; made before SQLite opens that."""

    def __init__(self, path: Path) -> None:
        self._path = Path(f"{path}-wal")
        self._content = self._path.read_bytes() if self._path.exists() else b""
        page = struct.unpack_from(">I", self._content, 8)[0] if len(self._content) >= 32 else 0
        self._page = page if page in (1 << bits for bits in range(9, 17)) else 4096
        self._salts = self._usual_salts()

    def _frames(self) -> range:
        """Where each frame begins."""
        return range(32, len(self._content) - 24 - self._page + 1, 24 + self._page)

    def _usual_salts(self) -> bytes:
        """The header's; where that is damaged, what most frames have.

        A sound header with other salts than all frames is no damage: the log has begun anew.
        """
        if len(self._content) < 32:
            return b""
        stored = struct.unpack_from(">II", self._content, 24)
        counts = collections.Counter(self._content[at + 8 : at + 16] for at in self._frames())
        if counts and _sums(self._content[:24], (0, 0)) != stored:
            return counts.most_common(1)[0][0]
        return self._content[16:24]

    def _own(self) -> list[int]:
        """Where the frames of this log begin, but for the last: a killed process may have torn it.

        SQLite writes a frame's head and its page one after the other. What is torn is no damage,
        and must not be mended: its page is what stood there before.
        """
        own = [at for at in self._frames() if self._content[at + 8 : at + 16] == self._salts]
        return own if len(own) > 1 and self._agrees(own[-1]) else own[:-1]

    def _agrees(self, at: int) -> bool:
        """Whether a frame's sums go on from those of the frame before it."""
        before = struct.unpack_from(">II", self._content, at - self._page - 8)
        sums = _sums(self._content[at : at + 8], before)
        sums = _sums(self._content[at + 24 : at + 24 + self._page], sums)
        return sums == struct.unpack_from(">II", self._content, at + 16)

    def dropped_commits(self, db: sqlite3.Connection) -> int:
        """How many commits in the log were not taken by ``db``, which has been opened since.

        A process that was killed leaves frames behind the last commit; a commit behind what was
        taken means that a frame before it is damaged.
        """
        if not self._frames():
            return 0
        taken = max(0, db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1])
        first = 32 + taken * (24 + self._page)
        return sum(
            1 for at in self._own() if at >= first and self._content[at + 4 : at + 8] != b"\0" * 4
        )

    def mend(self) -> None:
        """Write the log back with sums that agree, for SQLite to take all of it at the next open.

        No connection may be open.
        """
        log = bytearray(self._content)
        last = max(self._own(), default=0)
        del log[last + 24 + self._page :]
        little = sys.byteorder == "little"
        struct.pack_into(">III", log, 0, 0x377F0682 + (not little), 3007000, self._page)
        log[16:24] = self._salts
        sums = _sums(bytes(log[:24]), (0, 0))
        struct.pack_into(">II", log, 24, *sums)
        for at in self._frames():
            if at > last:
                break
            log[at + 8 : at + 16] = self._salts
            sums = _sums(bytes(log[at : at + 8]), sums)
            sums = _sums(bytes(log[at + 24 : at + 24 + self._page]), sums)
            struct.pack_into(">II", log, at + 16, *sums)
        Path(f"{self._path}.mended").write_bytes(log)
        Path(f"{self._path}.mended").replace(self._path)
        Path(str(self._path).removesuffix("-wal") + "-shm").unlink(missing_ok=True)


def _sums(data: bytes, sums: tuple[int, int]) -> tuple[int, int]:
    """SQLite's checksum of a log, over 32-bit words in the machine's own order."""
    one, two = sums
    words = iter(struct.unpack(f"={len(data) // 4}I", data))
    for first, second in zip(words, words, strict=True):
        one = (one + first + two) & 0xFFFFFFFF
        two = (two + second + one) & 0xFFFFFFFF
    return one, two


def readable_rows(db: sqlite3.Connection, table: str, key: str) -> Iterator[tuple[Any, ...]]:
    """All rows that can still be read, by ``key``: up from the first, then down from the last.

    Between two damaged places, too, where the key is an integer.
    """
    seen: set[Any] = set()
    for sign, order in ((">", "ASC"), ("<", "DESC")):
        start: Any = None
        for _ in range(SKIPS):
            where = "" if start is None else f"WHERE {key} {sign} ?"
            sql = f"SELECT {key}, * FROM {table} {where} ORDER BY {key} {order}"
            try:
                for found, *row in db.execute(sql, () if start is None else (start,)):
                    if found in seen:
                        return
                    start = found
                    seen.add(found)
                    yield tuple(row)
                return
            except sqlite3.DatabaseError:  # the damage: step over it, or come from the other end
                if type(start) is not int:
                    break
                start += 1 if order == "ASC" else -1


def set_aside(path: Path) -> Path:
    """Rename a damaged file, with its log, so that a person can look at it; returns where."""
    stem = f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}"
    aside, number = path.with_name(stem), 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{stem}-{number}")
    for end in ("-wal", ""):
        source = Path(f"{path}{end}")
        if source.exists():
            source.rename(f"{aside}{end}")
    Path(f"{path}-shm").unlink(missing_ok=True)
    _fill_up(aside)
    return aside


def _fill_up(path: Path) -> None:
    """Give a file that was cut short its size again: SQLite then reads the pages that are left."""
    with path.open("r+b") as file:
        head = file.read(100)
        if len(head) == 100:
            page, pages = (
                struct.unpack_from(">H", head, 16)[0],
                struct.unpack_from(">I", head, 28)[0],
            )
            size = file.seek(0, 2)
            if page in (1 << bits for bits in range(9, 16)) and size < page * pages < size + (
                1 << 36
            ):
                file.truncate(page * pages)
