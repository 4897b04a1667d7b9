"""Tries the adapters' trackers when an operator asks, by a process beside the daemon's loop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

from zmqtrack.config import AdapterConfig

from .inquiry import Inquiry

__all__ = ["Prober", "try_trackers"]

log = logging.getLogger("zmqtrack.daemon")

#: Seconds that its process may be silent beside the time-out of a tracker.
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
        self._inquiry = Inquiry()
        self._found: Findings = []

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
            try_trackers(adapters, timeout, self._found.append, self._inquiry)
        except OSError as error:  # no process to be had just now
            log.warning("the trackers cannot be tried: %s", error)

    def close(self) -> None:
        """Leave no process behind."""
        self._inquiry.close()
        if self._looking is not None:
            self._looking.join()


def try_trackers(
    adapters: Sequence[AdapterConfig],
    timeout: float,
    tell: Callable[[dict[str, Any]], None],
    inquiry: Inquiry | None = None,
) -> None:
    """Tell of each tracker whether it can be used: ``adapter``, ``ok``, ``code`` and so on.

    See ``adapters/probe.py``. An external adapter's is tried where that runs, not here.
    ``inquiry`` can end it from another thread.

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
    missing = dict(enumerate(own))

    def tell_whose(found: dict[str, Any]) -> None:
        found["index"] = missing.pop(found["index"])
        tell(found)

    why = (inquiry or Inquiry()).ask(
        ["--connect", "--timeout", str(timeout)],
        [adapters[index] for index in own],
        timeout + MARGIN,
        tell_whose,
    )
    for index in missing.values():
        tell(
            _finding(index, adapters[index], "probe_died", f"its tracker could not be tried: {why}")
        )


def _finding(index: int, adapter: AdapterConfig, code: str, detail: str) -> dict[str, Any]:
    found = {"index": index, "adapter": adapter.name, "ok": not code, "code": code}
    return {**found, "detail": detail, "advice": ""}
