"""What a fork does: it waits until no lock of the process is held, and the child begins anew.

SQLite, ZeroMQ and the allocator behind them take locks of the whole process. Were one of our
threads cut off while it holds such a lock, then nobody in the child would ever release it.
So our threads do that under a lock of ours, which the thread that forks takes before.
"""

from __future__ import annotations

import _thread
import os
import signal
import threading
import time

from . import ending, sender

__all__: list[str] = []

#: Longest that a fork waits, in seconds, for a disk that hangs.
PATIENCE = 2.0

#: Signals that wait until all has been arranged: an exception that their handler raises in the
#: midst of it would be lost, and the rest not be done.
_WAITING = {signal.SIGINT, signal.SIGTERM}


class _Fork(threading.local):
    """What the thread that forks has changed until it is done."""

    def __init__(self) -> None:
        self.locks: list[threading.RLock] = []
        self.mask: set[int] = set()


_fork = _Fork()


def _before() -> None:
    import ctypes  # noqa: F401 -- for Spool.abandon: to import it in the child would take long

    _fork.mask = set(signal.pthread_sigmask(signal.SIG_BLOCK, _WAITING))
    deadline = time.monotonic() + PATIENCE
    for lock in (sender.starting(), *(each.turn for each in list(sender.running))):
        if lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            _fork.locks.append(lock)


def _after_in_parent() -> None:
    while _fork.locks:
        _fork.locks.pop().release()
    _let_signals_come()


def _after_in_child() -> None:
    _fork.locks.clear()
    sender.after_fork()
    ending.after_fork()
    _let_signals_come()


def _let_signals_come() -> None:
    waiting = signal.sigpending() & _WAITING
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, _fork.mask)
    except BaseException:  # noqa: BLE001 -- a handler's own, which would be lost here
        _thread.start_new_thread(_send_again, (waiting,))


def _send_again(signals: set[int]) -> None:
    time.sleep(0.01)  # until the fork is over
    for number in signals:
        os.kill(os.getpid(), number)


os.register_at_fork(
    before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
)
