"""Tries the adapters' trackers when an operator asks, by a process beside the daemon's loop."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import Any

from zmqtrack.config import AdapterConfig

from .supervisor import COMMAND

__all__ = ["Prober", "try_trackers"]

log = logging.getLogger("zmqtrack.daemon")

#: Seconds that its process may take for each tracker beside the time-out.
MARGIN = 40.0
#: Who asks while one is under way waits for the next; no more than so many do.
MAX_WAITING = 100

Findings = list[dict[str, Any]]


class Prober:
    """``adapters`` says which are in force. One look at a time; :meth:`step` never waits."""

    def __init__(self, adapters: Callable[[], Sequence[AdapterConfig]]) -> None:
        self._adapters = adapters
        self._waiting: list[tuple[float, Callable[[Findings], None]]] = []
        self._looking: threading.Thread | None = None
        self._answer: Callable[[Findings], None] = lambda found: None
        self._process: subprocess.Popen[str] | None = None
        self._found: Findings = []
        self._closed = False

    def ask(self, timeout: float, answer: Callable[[Findings], None]) -> None:
        """Have each tracker tried for ``timeout`` seconds, and tell ``answer`` what was found."""
        self._waiting = [*self._waiting, (timeout, answer)][-MAX_WAITING:]

    def step(self) -> None:
        """To be called from the daemon's loop."""
        if self._looking is not None:
            if self._looking.is_alive():
                return
            self._looking = None
            self._answer(self._found)
        if self._waiting:
            (timeout, self._answer), *self._waiting = self._waiting
            self._found = []
            self._looking = threading.Thread(
                target=self._look, args=(self._adapters(), timeout), name="probe", daemon=True
            )
            self._looking.start()

    def _look(self, adapters: Sequence[AdapterConfig], timeout: float) -> None:
        try:
            try_trackers(adapters, timeout, self._found.append, self._note)
        except OSError as error:  # no process to be had just now
            log.warning("the trackers cannot be tried: %s", error)

    def _note(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        if self._closed:
            _kill(process)

    def close(self) -> None:
        """Leave no process behind."""
        self._closed = True
        if self._process is not None:
            _kill(self._process)
        if self._looking is not None:
            self._looking.join()


def try_trackers(
    adapters: Sequence[AdapterConfig],
    timeout: float,
    tell: Callable[[dict[str, Any]], None],
    started: Callable[[subprocess.Popen[str]], None] = lambda process: None,
) -> None:
    """Tell of each tracker whether it can be used: ``adapter``, ``ok``, ``code`` and so on.

    See ``adapters/probe.py``. An external adapter's is tried where that runs, not here.

    Raises:
        OSError: the process cannot be started.
    """
    own = []
    for index, adapter in enumerate(adapters):
        if adapter.external:
            tell(_finding(index, adapter, "", "external: to be tried where it runs"))
        else:
            own.append(index)
    if not own:
        return
    process = subprocess.Popen(
        [*COMMAND, "--connect", "--timeout", str(timeout)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that all of it can be ended
    )
    started(process)
    watch = threading.Timer((timeout + MARGIN) * len(own), _kill, [process])
    watch.daemon = True
    watch.start()
    missing = dict(enumerate(own))
    try:
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps([adapters[i].model_dump(mode="json") for i in own]))
            process.stdin.close()
        except BrokenPipeError:
            pass  # it died at once
        for line in process.stdout:
            found = json.loads(line)
            found["index"] = missing.pop(found["index"])
            tell(found)
    finally:
        watch.cancel()
        _kill(process)
        process.wait()
    for index in missing.values():
        tell(_finding(index, adapters[index], "probe_died", "its tracker could not be tried"))


def _finding(index: int, adapter: AdapterConfig, code: str, detail: str) -> dict[str, Any]:
    found = {"index": index, "adapter": adapter.name, "ok": not code, "code": code}
    return {**found, "detail": detail, "advice": ""}


def _kill(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
