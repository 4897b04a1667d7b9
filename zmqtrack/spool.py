"""The writer's durable outbox: one SQLite file for each stream.

A batch is committed here before it is pushed, and leaves when the daemon has acknowledged
it. The file's name is the stream's UUID; a lock file beside it keeps a second process out.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from .errors import SpoolError
from .records import RunKey

__all__ = ["Outgoing", "Spool", "default_directory", "orphans"]

SUFFIX = ".spool"

#: Shed last, and only when nothing else is left: they are few, and metrics mean little
#: without them.
PRECIOUS = ("run", "param", "tag")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batch (
    seq INTEGER PRIMARY KEY, type TEXT NOT NULL, records INTEGER NOT NULL,
    header BLOB NOT NULL, body BLOB NOT NULL);
"""


class Outgoing(NamedTuple):
    """A batch on its way out: the frames, and what is needed to account for it."""

    seq: int
    type: str
    records: int
    header: bytes
    body: bytes


def default_directory() -> Path:
    """``ZMQTRACK_SPOOL_DIR``, or a folder among the user's state files.

    Where the home is not writable (containers), a folder of the user's in the place for
    temporary files.
    """
    if named := os.environ.get("ZMQTRACK_SPOOL_DIR"):
        return Path(named).absolute()
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    directory = Path(state) / "zmqtrack" / "spool"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if os.access(directory, os.W_OK):
            return directory
    except OSError:
        pass  # no home, or a read-only one: fall through to the temporary folder
    return Path(tempfile.gettempdir()) / f"zmqtrack-spool-{os.getuid()}"


class Spool:
    """Made by :meth:`create` or :meth:`open`; used by one thread at a time."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            # Exclusive: we are the only one, so SQLite needs no shared-memory file.
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
            meta = dict(self._db.execute("SELECT key, value FROM meta"))
            self.bytes, self.records = self._db.execute(
                "SELECT coalesce(sum(length(body)), 0), coalesce(sum(records), 0) FROM batch"
            ).fetchone()
        except sqlite3.Error as error:
            os.close(lock)
            raise SpoolError(f"{path}: cannot be used as a spool: {error}") from error
        self.stream = bytes.fromhex(path.stem)
        self.acked = int(meta.get("acked", 0))
        self.last: int = max(
            self.acked, self._db.execute("SELECT coalesce(max(seq), 0) FROM batch").fetchone()[0]
        )
        self.address = str(meta.get("address", ""))
        self.run = RunKey(*(str(meta.get(part, "?")) for part in RunKey._fields))

    @classmethod
    def create(cls, directory: Path, run: RunKey, address: str) -> Spool:
        """A new stream with an outbox of its own.

        Raises:
            SpoolError: the folder cannot be written.
        """
        path = directory / f"{uuid.uuid4().hex}{SUFFIX}"
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = _lock(path)
        except OSError as error:
            raise SpoolError(
                f"{directory}: cannot hold the spool: {error.strerror}. Name a folder that can "
                "be written in ZMQTRACK_SPOOL_DIR"
            ) from error
        spool = cls(path, lock)
        spool.address, spool.run = address, run
        spool._db.executemany(
            "INSERT INTO meta VALUES (?, ?)", [("address", address), *run._asdict().items()]
        )
        return spool

    @classmethod
    def open(cls, path: Path) -> Spool:
        """The outbox that an earlier process left at ``path``.

        Raises:
            SpoolError: it is in use (names the process), or damaged.
        """
        try:
            lock = _lock(path)
        except BlockingIOError:
            holder = _lock_path(path).read_text().strip() or "unknown"
            raise SpoolError(f"{path} is in use by process {holder}") from None
        except OSError as error:
            raise SpoolError(f"{path}: {error.strerror}") from error
        if not path.exists():  # its owner delivered it while we waited for the lock
            _lock_path(path).unlink(missing_ok=True)
            os.close(lock)
            raise SpoolError(f"{path} is gone: all of it has been delivered")
        return cls(path, lock)

    def append(self, batches: Iterable[Outgoing]) -> None:
        """Commit batches, whose seqs continue :attr:`last`; on return they are on disk.

        Raises:
            sqlite3.Error: nothing was stored; the same batches may be tried again.
        """
        batches = list(batches)
        with self._transaction():
            self._db.executemany("INSERT INTO batch VALUES (?, ?, ?, ?, ?)", batches)
            self._forget()
        self.last = batches[-1].seq
        self.bytes += sum(len(batch.body) for batch in batches)
        self.records += sum(batch.records for batch in batches)

    def after(self, seq: int, limit: int) -> list[Outgoing]:
        """Up to ``limit`` batches that follow ``seq``, in order."""
        rows = self._db.execute(
            "SELECT seq, type, records, header, body FROM batch WHERE seq > ? ORDER BY seq LIMIT ?",
            (max(seq, self.acked), limit),
        )
        return [Outgoing(*row) for row in rows]

    def acknowledge(self, seq: int) -> None:
        """All up to ``seq`` is the daemon's now; the rows go with the next commit."""
        self.acked = max(self.acked, min(seq, self.last))

    def _forget(self) -> None:
        gone = self._db.execute(
            "SELECT coalesce(sum(length(body)), 0), coalesce(sum(records), 0) "
            "FROM batch WHERE seq <= ?",
            (self.acked,),
        ).fetchone()
        if gone[1]:
            self._db.execute("DELETE FROM batch WHERE seq <= ?", (self.acked,))
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('acked', ?)", (self.acked,))
            self.bytes -= gone[0]
            self.records -= gone[1]

    def forget(self) -> None:
        """Remove acknowledged rows now rather than with the next append."""
        with self._transaction():
            self._forget()

    def pending(self) -> int:
        """How many records wait for their acknowledgement."""
        count: int = self._db.execute(
            "SELECT coalesce(sum(records), 0) FROM batch WHERE seq > ?", (self.acked,)
        ).fetchone()[0]
        return count

    def replace(self, batches: Iterable[Outgoing]) -> None:
        """Put other content under seqs that are there already (what was shed)."""
        with self._transaction():
            self._db.executemany("INSERT OR REPLACE INTO batch VALUES (?, ?, ?, ?, ?)", batches)
            self.bytes, self.records = self._db.execute(
                "SELECT coalesce(sum(length(body)), 0), coalesce(sum(records), 0) FROM batch"
            ).fetchone()

    def sheddable(self, after: int) -> Iterator[Outgoing]:
        """What may be shed to make room: oldest first, the precious last, none twice."""
        marks = ",".join("?" * len(PRECIOUS))
        return (
            Outgoing(*row)
            for row in self._db.execute(
                "SELECT seq, type, records, header, body FROM batch WHERE seq > ? "
                f"AND type != 'lost' ORDER BY type IN ({marks}), seq",
                (after, *PRECIOUS),
            )
        )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        # The counters are put right by the caller only after the commit.
        before = self.bytes, self.records
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self.bytes, self.records = before
            raise

    def close(self) -> None:
        """Release it; when all of it has been delivered the files go too."""
        empty = self.pending() == 0
        self._db.close()
        if empty:
            for path in (self.path, *(Path(f"{self.path}{end}") for end in ("-wal", "-shm"))):
                path.unlink(missing_ok=True)
            _lock_path(self.path).unlink(missing_ok=True)
        os.close(self._lock)

    def abandon(self) -> None:
        """In a forked child: let go of the parent's outbox without touching it."""
        import ctypes

        # Closing the connection, even by garbage collection, could write to a file that is
        # the parent's. So it is never collected in this process.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._db))
        os.close(self._lock)


def orphans(directory: Path) -> list[Path]:
    """Outboxes in ``directory``, oldest first; whether one is in use shows on opening it."""
    found = []
    for path in directory.glob(f"*{SUFFIX}"):
        try:
            found.append((path.stat().st_mtime, path))
        except FileNotFoundError:
            continue  # delivered and removed by its owner just now
    return [path for _, path in sorted(found)]


def _lock_path(path: Path) -> Path:
    return path.with_suffix(".lock")


def _lock(path: Path) -> int:
    """Lock ``path`` for this process, or raise BlockingIOError."""
    lock = os.open(_lock_path(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    os.truncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    return lock
