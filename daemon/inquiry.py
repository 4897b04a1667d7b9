"""Asks the adapters' code, in a process of its own: it may hang, die, or leave others behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from zmqtrack.config import AdapterConfig

from .supervisor import COMMAND, how_it_ended

__all__ = ["Inquiry"]


class Inquiry:
    """Asks about one list of adapters after the other; another thread may :meth:`close` it."""

    def __init__(self) -> None:
        #: Somebody else killed the process that was asked last, as the kernel does when memory
        #: is short: that says nothing of what was asked.
        self.killed = False
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None  # not reaped yet
        self._closed = False

    def ask(
        self,
        arguments: Sequence[str],
        adapters: Sequence[AdapterConfig],
        patience: float,
        tell: Callable[[Any], None],
    ) -> str:
        """Tell each answer, a line of JSON for each adapter, as it comes.

        The process is ended, with all that it has started, after the last answer, or when nothing
        is heard of it for ``patience`` seconds. Returns why there are no more answers.

        Raises:
            OSError: it cannot be started.
        """
        process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that all of it can be ended
        )
        assert process.stdin is not None and process.stdout is not None
        self._process = process
        late = threading.Event()
        died = False
        watch = self._watch(process, patience, late)
        try:
            if self._closed:
                self._kill(process)
            with suppress(BrokenPipeError):  # it died at once
                process.stdin.write(json.dumps([each.model_dump(mode="json") for each in adapters]))
                process.stdin.write("\n")
                process.stdin.flush()  # and stays open: its end tells that we have died
            for _ in adapters:
                line = process.stdout.readline()
                if not line.endswith("\n"):  # it has ended, perhaps on the way
                    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
                    died = not self._closed
                    break
                watch.cancel()
                tell(json.loads(line))
                watch = self._watch(process, patience, late)
        finally:
            watch.cancel()
            self._kill(process)
            with self._lock:
                self._process = None
                code = process.wait()
            process.stdout.close()
            with suppress(BrokenPipeError):
                process.stdin.close()
        self.killed = code == -signal.SIGKILL and died and not late.is_set()
        if late.is_set():
            return f"nothing was heard of it within {patience:g} s"
        return f"its process ended ({how_it_ended(code)})"

    def _watch(
        self, process: subprocess.Popen[str], patience: float, late: threading.Event
    ) -> threading.Timer:
        def give_up() -> None:
            late.set()
            self._kill(process)

        timer = threading.Timer(patience, give_up)
        timer.daemon = True
        timer.start()
        return timer

    def _kill(self, process: subprocess.Popen[str] | None) -> None:
        with self._lock:
            if process is not None and self._process is process:  # until then its number is its own
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End the process that is asked, and any that would be."""
        self._closed = True
        self._kill(self._process)
