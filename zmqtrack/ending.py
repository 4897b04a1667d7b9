"""How a process, or a thread of it, ends: normally, by an exception, by a signal.

A signal's handler runs between two instructions of the main thread, which may hold any lock. So
it waits for nothing: it starts a thread that ends the runs, and then the process, by the same
signal. The main thread goes on meanwhile, up to its next logging call.

A framework may run a script in a thread, and end the process later in a way that Python is not
told. So a run that was begun in a thread ends with that thread, which waits for the delivery.
"""

from __future__ import annotations

import _thread
import atexit
import os
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

from .sender import running

if TYPE_CHECKING:
    from .run import Run

__all__ = [
    "after_fork",
    "await_death",
    "end_with_thread",
    "hook_end_of_child",
    "hook_exits",
    "live",
    "status_after",
    "tell_at_exit",
]

#: Runs to be finished at exit. Strong references: a run that the program forgot is still sent.
live: set[Run] = set()

#: Seconds beyond the runs' own time-outs after which a process that a signal ends is gone.
GRACE = 5.0

#: Records that runs left which ended without waiting, by the command that sends them.
_left: dict[str, list[int]] = {}

_status = "finished"
_hooked = False
_hooked_child = 0  # the child of multiprocessing that ends its runs, by process ID
_process = os.getpid()
_signal: int | None = None  # that which is ending this process
_gone_by = 0.0  # monotonic; when it has ended it at the latest
_here = threading.local()  # attribute `thread`: its _Thread


def status_after(error: BaseException | None) -> str:
    """How a run ends that ``error`` ends: as the program would, if nobody caught it."""
    if error is None or (isinstance(error, SystemExit) and not error.code):
        return "finished"
    return "killed" if isinstance(error, KeyboardInterrupt) else "failed"


class _Thread:
    """The runs that a thread has begun. The thread alone holds this: it goes when that ends."""

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.status = ""

    def __del__(self) -> None:
        # Waited for: whoever joins the thread may end the process at once.
        for run in [run for run in self.runs if run._rest(self.status or _status)]:
            run._wait_for_end()


def end_with_thread(run: Run) -> None:
    """Let ``run`` end with the thread that calls this, unless it is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        if not hasattr(_here, "thread"):
            _here.thread = _Thread()
        mine = _here.thread
        mine.runs = [*(each for each in mine.runs if each in live), run]


def await_death() -> None:
    """Where a signal is ending this process: let the training go no further. Else return.

    In the main thread alone: others may be needed to deliver what is left.
    """
    if _signal is not None and threading.current_thread() is threading.main_thread():
        time.sleep(max(0.0, _gone_by - time.monotonic()))


def _finish_all(status: str | None = None) -> None:
    # All at once: a process with many runs has no more time than one with a single run.
    begun = [run for run in list(live) if run._begin_to_end(status or _status)]
    for run in begun:
        run._wait_for_end()
    for sender in list(running):  # ended by others, who may never be able to wait for them
        sender.wait()


def tell_at_exit(command: str, records: int) -> None:
    """A run has ended without waiting, and left ``records`` that ``command`` sends."""
    _left.setdefault(command, []).append(records)


def _tell_left() -> None:
    for command, left in _left.items():
        print(
            f"zmqtrack: {sum(left)} records of {len(left)} more runs, which ended after one had "
            f"waited in vain, were kept too; `{command}` sends what is still there",
            file=sys.stderr,
        )
    _left.clear()


def _finish_at_exit() -> None:
    _finish_all()
    _tell_left()
    if _signal is not None:
        _die(_signal)  # else the process would end as if nothing had been


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    global _signal, _gone_by
    signal.signal(number, signal.SIG_DFL)  # the next one ends the process at once
    if os.getpid() == _process and (live or running):  # else forked just now: nothing is ours yet
        _gone_by = time.monotonic() + max((run.exit_timeout for run in live), default=0) + GRACE
        _signal = number
        try:
            _thread.start_new_thread(_end_by, (number,))  # threading's waits for its start
            return
        except RuntimeError:
            pass  # no more threads: then at once
    os.kill(os.getpid(), number)


def _end_by(number: int) -> None:
    try:
        _finish_all("killed")
        _tell_left()
    finally:
        _die(number)


def _die(number: int) -> None:
    """By the signal, so that the parent sees what ended us."""
    os.kill(os.getpid(), number)
    time.sleep(1.0)
    if signal.getsignal(number) is signal.SIG_DFL:
        os._exit(128 + number)  # a container's first process is not ended by a signal of its own


def hook_exits() -> None:
    """Notice how the program ends: by an exception, or by SIGTERM if nobody else handles it."""
    global _hooked
    if _hooked:
        return
    _hooked = True
    previous = sys.excepthook

    def excepthook(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        global _status
        _status = status_after(error)
        previous(kind, error, traceback)

    sys.excepthook = excepthook
    previous_of_threads = threading.excepthook

    def excepthook_of_threads(arguments: threading.ExceptHookArgs) -> None:
        if hasattr(_here, "thread"):
            _here.thread.status = status_after(arguments.exc_value)
        previous_of_threads(arguments)

    threading.excepthook = excepthook_of_threads
    if (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    ):
        signal.signal(signal.SIGTERM, _on_sigterm)


def hook_end_of_child() -> None:
    """Children of multiprocessing skip atexit, and tell of an exception in their own way."""
    global _hooked_child
    processes = sys.modules.get("multiprocessing.process")
    if processes is None or processes.parent_process() is None or _hooked_child == os.getpid():
        return
    from multiprocessing import util

    _hooked_child = os.getpid()
    util.Finalize(None, lambda: _finish_all(status_after(sys.exc_info()[1])), exitpriority=100)


def after_fork() -> None:
    """In a forked child: its runs are those of the parent, and begin when they are logged to."""
    global _process, _signal
    for run in live:
        run._after_fork()
    _left.clear()
    _process, _signal = os.getpid(), None


atexit.register(_finish_at_exit)
