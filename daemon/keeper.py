"""``zmqtrackd``: runs the daemon, and starts it again when something kills it.

What libzmq finds impossible ends the whole process, and so does the kernel when memory is short.
Nothing is lost by it, but somebody has to start the daemon again. Under systemd that is systemd,
and no keeper runs. ``python -m zmqtrack.daemon`` is the daemon alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

__all__ = ["keep", "main"]

#: Signals that are handed on to the daemon.
HANDED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
#: Waits before a daemon that was killed is started again, in seconds: doubled from the first to
#: the longest, and the first again after it had run for HEALTHY seconds.
FIRST, LONGEST, HEALTHY = 0.5, 30.0, 60.0
_PR_SET_PDEATHSIG = 1


def main() -> int:
    """The daemon itself where systemd keeps it, or nothing is to be kept; else :func:`keep`."""
    command = [sys.executable, "-P", "-m", "zmqtrack.daemon", *sys.argv[1:]]
    if sys.version_info < (3, 11):
        command.remove("-P")
    serves = any(each.partition("=")[0] == "--config" for each in sys.argv)
    if "NOTIFY_SOCKET" in os.environ or "--check" in sys.argv or not serves:
        os.execv(sys.executable, command)
    return keep(command)


def keep(command: Sequence[str]) -> int:
    """Run ``command`` until it ends by itself; returns its exit code.

    It ends in order when this process gets a signal that is handed on, and dies with it.
    """
    told: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def hand_on(number: int, frame: object) -> None:
        if number != signal.SIGHUP:
            told.append(number)
        if process is not None:
            process.send_signal(number)

    wait = FIRST
    own = os.getpid()
    for number in HANDED_ON:
        signal.signal(number, hand_on)
    while True:
        started = time.monotonic()
        process = subprocess.Popen(command, preexec_fn=lambda: _die_with(own))
        for early in told:  # before there was a process
            process.send_signal(early)
        code = process.wait()
        if code >= 0 or told:
            return code if code >= 0 else 128 - code
        name = signal.Signals(-code).name
        wait = FIRST if time.monotonic() - started > HEALTHY else wait
        with contextlib.suppress(OSError):  # where stderr is gone, it is started all the same
            print(
                f"ERROR [zmqtrackd] the daemon was ended by {name}: nothing that was acknowledged "
                f"is lost; it starts again in {wait:g} s",
                file=sys.stderr,
                flush=True,
            )
        process = None
        time.sleep(wait)
        if told:
            return 128 - code
        wait = min(2 * wait, LONGEST)


def _die_with(keeper: int) -> None:
    """In the daemon's process: end at once when the keeper does, as if it had been the daemon."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != keeper:
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
