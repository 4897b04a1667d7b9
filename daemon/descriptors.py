"""Open files: as many as may be had, and some that connections cannot take.

libzmq accepts whoever connects until no file can be opened. What must work then (to read that a
key was revoked, to start an adapter) opens its files inside :func:`spare`.
"""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator

__all__ = ["raise_limit", "spare"]

#: Open files that we ask for: each writer has two connections, and the usual limit is 1024.
WANTED = 65_536
#: Of them, those that are kept back.
RESERVE = 64


def raise_limit() -> None:
    """Ask for as many as may be had, but for the reserve."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if most > 2 * RESERVE:
        most -= RESERVE
    if soft != most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


@contextlib.contextmanager
def spare() -> Iterator[None]:
    """Inside, the reserve may be used. What is opened there should be closed there, too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    more = soft + RESERVE if hard == resource.RLIM_INFINITY else min(hard, soft + RESERVE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
