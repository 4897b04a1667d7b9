"""Starts the adapters' processes and restarts them, with back-off, when they die."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from zmqtrack.config import AdapterConfig, DaemonConfig
from zmqtrack.keys import Key

from . import descriptors

__all__ = ["Changes", "Supervisor", "how_it_ended"]

log = logging.getLogger("zmqtrack.daemon")

#: Waits before a restart, in seconds: the first, and the longest.
BACKOFF_FIRST = 0.5
BACKOFF_MAX = 30.0
#: A process that lived so long (seconds) is restarted without an extra wait.
STEADY = 10.0
EX_CONFIG = 78

#: As ``python -m zmqtrack.adapters`` does, but nothing is imported from the folder in which the
#: daemon happens to be started: an adapter's class is installed, or in PYTHONPATH. (``python -P``
#: would do; it came with Python 3.11.) Ctrl-C ends it without a traceback.
_START = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "import sys; '' in sys.path[:1] and sys.path.pop(0); "
    "from zmqtrack.adapters.__main__ import main; sys.exit(main())"
)
COMMAND = [sys.executable, "-c", _START]


class Child:
    """One adapter's process, or the wait for the next."""

    def __init__(self, name: str, spec: str, on_end: Callable[[str, str], None]) -> None:
        self.name = name
        self.spec = spec
        self._on_end = on_end
        self._process: subprocess.Popen[str] | None = None
        self._started = 0.0
        self._backoff = BACKOFF_FIRST
        self._due = 0.0
        self._given_up = False
        self._wanted = True  # to run, now or after the end of the process that is there
        self._stop_by: float | None = None  # the process has been asked to end
        self.restarts = 0

    @property
    def running(self) -> bool:
        return self._process is not None

    @property
    def gone(self) -> bool:
        """It has ended, and is not to come back."""
        return not (self._wanted or self.running)

    def step(self) -> None:
        """Reap it if it has ended; start it if it is due; end it if it takes too long to."""
        if self._process is not None:
            code = self._process.poll()
            if code is not None:
                self._reap(code)
            elif self._stop_by is not None and time.monotonic() >= self._stop_by:
                self.kill()
        elif self._wanted and not self._given_up and time.monotonic() >= self._due:
            self._start()

    def _start(self) -> None:
        # SIGTERM waits until the process has a handler for it: a stop must not end it halfway
        # through its imports, with nothing delivered.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            with descriptors.spare():
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
            self._process.stdin.write(self.spec + "\n")
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
        if self._stop_by is not None:
            self._stop_by = None
            log.info("adapter %s has stopped", self.name)
            return
        how = how_it_ended(code)
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

    def stop(self, timeout: float) -> None:
        """Have it deliver what is journalled and end, within ``timeout`` seconds."""
        self._wanted = False
        self._terminate(timeout)

    def restart(self, spec: str, timeout: float) -> None:
        """The same, and then start it with ``spec``; one that waits or has given up, at once."""
        self.spec, self._wanted, self._given_up = spec, True, False
        self._due, self._backoff = 0.0, BACKOFF_FIRST
        self._terminate(timeout)

    def try_again(self) -> None:
        """Start it now if it waits, or could not run: what it lacked may be there."""
        self._given_up, self._due = False, 0.0

    def _terminate(self, timeout: float) -> None:
        if self._process is not None and self._stop_by is None:
            self._stop_by = time.monotonic() + timeout
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


class Changes(NamedTuple):
    """Names of adapters that an update added, changed and removed."""

    added: list[str]
    changed: list[str]
    removed: list[str]


class Supervisor:
    """All adapters of one daemon; :meth:`step` is called from the daemon's loop.

    ``on_end`` is told the name of an adapter whose process ended unasked, and how;
    ``on_gone`` that of one that was removed, and has ended.
    """

    def __init__(
        self,
        config: DaemonConfig,
        address: str,
        on_end: Callable[[str, str], None],
        on_gone: Callable[[str], None],
        key: Key | None = None,
    ) -> None:
        self._config = config
        self._address = address
        self._on_end, self._on_gone = on_end, on_gone
        self._key = key
        self._children: dict[str, Child] = {}
        self._in_force: dict[str, _Version] = {}

    def update(self, adapters: Sequence[AdapterConfig], config: DaemonConfig) -> Changes:
        """Put ``adapters`` in force: what is the same goes on undisturbed."""
        self._config = config
        before, now = self._in_force, {str(each.name): _version(each) for each in adapters}
        self._in_force = now
        for adapter in adapters:
            name = str(adapter.name)
            child = self._children.get(name)
            if adapter.external:
                self._stop(name)
            elif child is None:
                self._children[name] = Child(name, self._spec(adapter), self._on_end)
            elif before.get(name) == now[name]:
                child.try_again()
            else:  # it has changed, or was about to be removed
                child.restart(self._spec(adapter), config.stop_timeout)
        removed = [name for name in before if name not in now]
        for name in removed:
            if name in self._children:
                self._stop(name)
            else:
                self._on_gone(name)
        changed = [name for name in now if name in before and before[name] != now[name]]
        return Changes([name for name in now if name not in before], changed, removed)

    def _spec(self, adapter: AdapterConfig) -> str:
        """What its process is told on its stdin."""
        return json.dumps(
            {
                "address": self._address,
                "key": self._key.fields() if self._key else None,
                "state_dir": str(self._config.state_dir.absolute()),
                "log_level": self._config.log_level,
                "log_format": self._config.log_format,
                "adapter": adapter.model_dump(mode="json"),
            }
        )

    def _stop(self, name: str) -> None:
        if child := self._children.get(name):
            child.stop(self._config.stop_timeout)

    def step(self) -> None:
        for child in list(self._children.values()):
            child.step()
            if child.gone:
                del self._children[child.name]
                if child.name not in self._in_force:
                    self._on_gone(child.name)

    @property
    def running(self) -> bool:
        return any(child.running for child in self._children.values())

    @property
    def adapters(self) -> list[AdapterConfig]:
        """Those that are in force."""
        return [adapter for adapter, _ in self._in_force.values()]

    def restarts(self) -> dict[str, int]:
        """How often each had to be started again since it was added."""
        return {name: child.restarts for name, child in self._children.items()}

    def stop(self) -> None:
        """Ask all to deliver what is journalled, and to end; after ``stop_timeout`` they are."""
        for name in self._children:
            self._stop(name)

    def kill(self) -> None:
        """End those that have not ended by themselves."""
        for child in self._children.values():
            child.kill()


def how_it_ended(code: int) -> str:
    """How a process ended that left this code."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:  # most real-time signals have no name
        return f"signal {-code}"


#: An adapter's configuration, and of each file with a secret of it when it was changed last.
_Version = tuple[AdapterConfig, list[tuple[str, int]]]


def _version(adapter: AdapterConfig) -> _Version:
    files = []
    for secret in adapter.secrets.values():
        if secret.file is not None:
            try:
                files.append((str(secret.file), secret.file.stat().st_mtime_ns))
            except OSError:
                pass  # its process says so
    return adapter, files
