"""Starts the adapters' processes and restarts them, with back-off, when they die."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from zmqtrack.config import AdapterConfig
from zmqtrack.keys import Key

__all__ = ["Supervisor"]

log = logging.getLogger("zmqtrack.daemon")

#: Waits before a restart, in seconds: the first, and the longest.
BACKOFF_FIRST = 0.5
BACKOFF_MAX = 30.0
#: A process that lived so long (seconds) is restarted without an extra wait.
STEADY = 10.0
EX_CONFIG = 78

#: As ``python -m zmqtrack.adapters`` does, but nothing is imported from the folder in which the
#: daemon happens to be started: an adapter's class is installed, or in PYTHONPATH. (``python -P``
#: would do; it came with Python 3.11.)
_START = (
    "import sys; '' in sys.path[:1] and sys.path.pop(0); "
    "from zmqtrack.adapters.__main__ import main; sys.exit(main())"
)
COMMAND = [sys.executable, "-c", _START]


class Child:
    """One adapter's process, or the wait for the next."""

    def __init__(self, name: str, spec: str, on_end: Callable[[str, str], None]) -> None:
        self.name = name
        self._on_end = on_end
        self._spec = spec
        self._process: subprocess.Popen[str] | None = None
        self._started = 0.0
        self._backoff = BACKOFF_FIRST
        self._due = 0.0
        self._given_up = False
        self._stopping = False
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def running(self) -> bool:
        return self._process is not None

    def step(self) -> None:
        """Reap it if it has ended; start it if it is due."""
        if self._process is not None:
            code = self._process.poll()
            if code is not None:
                self._reap(code)
        elif not (self._given_up or self._stopping) and time.monotonic() >= self._due:
            self._start()

    def _start(self) -> None:
        # SIGTERM waits until the process has a handler for it: a stop must not end it halfway
        # through its imports, with nothing delivered.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            self._process = subprocess.Popen(
                COMMAND,
                stdin=subprocess.PIPE,
                text=True,
                # Ctrl-C at a terminal is the daemon's: it ends its adapters in order.
                start_new_session=True,
            )
        except OSError as error:  # no process or no file to be had just now
            log.error("adapter %s cannot be started: %s; trying again", self.name, error)
            self._due = time.monotonic() + BACKOFF_MAX
            return
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._started = time.monotonic()
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(self._spec + "\n")
            self._process.stdin.flush()  # and stays open: its end tells that we have died
        except BrokenPipeError:
            pass  # it died at once: the next step reaps it
        log.info("adapter %s runs as process %d", self.name, self._process.pid)

    def _reap(self, code: int) -> None:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # what was still buffered has nobody to read it
        self._process = None
        if self._stopping:
            log.info("adapter %s has stopped", self.name)
            return
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if code == EX_CONFIG:
            self._given_up = True
            log.error("adapter %s cannot run as configured; it is not started again", self.name)
            self._on_end(self.name, "cannot run as configured; not started again")
            return
        if time.monotonic() - self._started > STEADY:
            self._backoff = BACKOFF_FIRST
        self._due = time.monotonic() + self._backoff
        log.warning("adapter %s ended (%s); next start in %g s", self.name, how, self._backoff)
        self._on_end(self.name, f"{how}; next start in {self._backoff:g} s")
        self._backoff = min(2 * self._backoff, BACKOFF_MAX)
        self.restarts += 1

    def stop(self) -> None:
        self._stopping = True
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        if self._process is not None:
            log.error(
                "adapter %s did not stop in time; what it has not delivered is kept in the "
                "journal and goes out after the next start",
                self.name,
            )
            os.killpg(self._process.pid, signal.SIGKILL)
            self._reap(self._process.wait())


class Supervisor:
    """All adapters of one daemon; :meth:`step` is called from the daemon's loop.

    ``on_end`` is told the name of an adapter whose process ended unasked, and how.
    """

    def __init__(
        self,
        adapters: list[AdapterConfig],
        address: str,
        state_dir: Path,
        log_level: str,
        on_end: Callable[[str, str], None],
        key: Key | None = None,
    ) -> None:
        self.children = [
            Child(
                str(adapter.name),
                json.dumps(
                    {
                        "address": address,
                        "key": key.fields() if key else None,
                        "state_dir": str(state_dir.absolute()),
                        "log_level": log_level,
                        "adapter": adapter.model_dump(mode="json"),
                    }
                ),
                on_end,
            )
            for adapter in adapters
        ]

    def step(self) -> None:
        for child in self.children:
            child.step()

    @property
    def running(self) -> bool:
        return any(child.running for child in self.children)

    def stop(self) -> None:
        """Ask all to deliver what is journalled, and to end."""
        for child in self.children:
            child.stop()

    def kill(self) -> None:
        """End those that have not ended by themselves."""
        for child in self.children:
            child.kill()


def check(adapters: list[AdapterConfig]) -> list[tuple[int, list[str | int], str]]:
    """What is wrong with each adapter's type and options: (index, path to the key, message).

    The classes are loaded in a process of their own: the daemon imports no adapter.
    """
    if not adapters:
        return []
    done = subprocess.run(
        [*COMMAND, "--check"],
        input=json.dumps([adapter.model_dump(mode="json") for adapter in adapters]),
        text=True,
        stdout=subprocess.PIPE,
        check=True,
    )
    return [(index, path, message) for index, path, message in json.loads(done.stdout)]
