"""A file of lines that several processes share: what was held back stands there."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from pathlib import Path

__all__ = ["AuditFile"]

#: It is set aside at so many bytes, and so many of those that were are kept.
BYTES = 10 << 20
KEPT = 3
#: How long another process may keep us from it, in seconds.
PATIENCE = 1.0


class AuditFile:
    """Whole lines at the end of a file that several processes share and set aside in turn."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1

    def append(self, lines: bytes) -> None:
        """On return they are on disk.

        Raises:
            OSError: none of them is there.
        """
        deadline = time.monotonic() + PATIENCE
        while not self._append_once(lines):
            if time.monotonic() >= deadline:
                raise BlockingIOError(errno.EAGAIN, "another process keeps it locked")
            time.sleep(0.005)

    def _append_once(self, lines: bytes) -> bool:
        """False if another process has it, or has just set it aside."""
        self._fd = os.open(
            self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600
        )
        try:
            found = os.fstat(self._fd)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            try:
                if not self._is_current():
                    return False
                size = os.fstat(self._fd).st_size
                if size and size + len(lines) > BYTES:
                    self._set_aside()
                    return False
                self._write(lines, size)
            finally:
                # Not left to `close`: a child that was forked just now holds the lock too.
                fcntl.flock(self._fd, fcntl.LOCK_UN)
            return True
        finally:
            self.abandon()

    def _is_current(self) -> bool:
        """Whether what we locked still has the name."""
        try:
            return os.path.samestat(os.fstat(self._fd), self.path.stat())
        except FileNotFoundError:
            return False

    def _set_aside(self) -> None:
        """FILE → FILE.1 → FILE.2 …; the last is overwritten. Others wait for our lock."""
        names = [self.path, *(Path(f"{self.path}.{n}") for n in range(1, KEPT + 1))]
        for older, newer in zip(reversed(names), reversed(names[:-1]), strict=False):
            try:
                newer.replace(older)
            except FileNotFoundError:
                pass  # so many have not come together yet

    def _write(self, lines: bytes, size: int) -> None:
        if size and os.pread(self._fd, 1, size - 1) != b"\n":
            lines = b"\n" + lines  # a process was killed while it wrote
        try:
            if os.write(self._fd, lines) != len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._fd)
        except OSError:
            os.ftruncate(self._fd, size)  # they will be written again, and must not be there twice
            raise

    def abandon(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
