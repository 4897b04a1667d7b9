"""The daemon's status, asked for again and again, with what follows from two looks."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Any

from ..control import ControlClient
from ..errors import ControlError
from ..keys import Key
from ..records import RunKey
from .last import Last

__all__ = ["Watch"]

#: Rates are those of so many seconds, and of two looks at least: adapters commit in bursts.
WINDOW = 5.0
#: Longest wait for an answer, in seconds.
PATIENCE = 2.5


class Rates:
    """How fast counters grow. One that falls begins anew."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, ...], deque[tuple[float, int]]] = {}

    def of(self, name: tuple[str, ...], now: float, count: int) -> float | None:
        """A second; None until there are two looks."""
        looks = self._seen.setdefault(name, deque())
        if looks and count < looks[-1][1]:
            looks.clear()
        looks.append((now, count))
        while len(looks) > 2 and looks[1][0] <= now - WINDOW:
            looks.popleft()
        (first, before), (last, after) = looks[0], looks[-1]
        return (after - before) / (last - first) if last > first else None

    def forget(self, names: set[tuple[str, ...]]) -> None:
        """Keep only these."""
        self._seen = {name: looks for name, looks in self._seen.items() if name in names}


class Watch:
    """Looks at the daemon's status: when told to, or again and again in a thread of its own."""

    def __init__(
        self, address: str, key: Key | None, interval: float, last: Last | None = None
    ) -> None:
        #: Tells the last value of a metric, if one is wanted.
        self.last = last
        self._client = ControlClient(address, key)
        self._rates = Rates()
        self._stop = threading.Event()
        self.interval = interval
        #: What was answered last, with rates; and what is wrong since when (epoch seconds).
        self.facts: dict[str, Any] = {}
        self.trouble: ControlError | None = None
        self.since = 0.0
        #: Readable whenever there is something new.
        self.woken, self._wake = os.pipe()
        os.set_blocking(self._wake, False)

    def start(self) -> None:
        threading.Thread(target=self._run, daemon=True).start()

    def stop(self) -> None:
        """Returns at once: nobody waits for a daemon that does not answer."""
        self._stop.set()

    def wake(self) -> None:
        with suppress(BlockingIOError):  # enough waits already
            os.write(self._wake, b".")

    def _run(self) -> None:
        while not self._stop.wait(self.interval):
            self.look()
            self.wake()
        self._client.close()

    def look(self) -> None:
        asked = time.time()
        try:
            facts = self._client.request("status", timeout=PATIENCE)
        except ControlError as error:
            if self.trouble is None:
                self.since = asked
            self.trouble = error
            return
        self.facts = self._derive(facts, time.monotonic())
        self.trouble = None

    def _derive(self, facts: dict[str, Any], now: float) -> dict[str, Any]:
        """Facts with what follows from two looks."""
        for field in ("id", "op", "v", "frames"):
            facts.pop(field, None)
        names: set[tuple[str, ...]] = set()

        def rate(count: int, *name: str) -> float | None:
            names.add(name)
            return self._rates.of(name, now, count)

        rates = []
        for site in facts["sites"]:
            run = site["experiment"], site["run"], site["site"]
            rates.append(rate(site["records"], "site", *run))
            site["rate"] = rates[-1]
            if self.last is not None:
                site["metric"] = self.last.of(RunKey(*run))
        for name, adapter in facts["adapters"].items():
            adapter["rate"] = rate(adapter["counters"].get("delivered", 0), "adapter", name)
        self._rates.forget(names)
        known = [each for each in rates if each is not None]
        facts["rate"] = sum(known) if known or not rates else None
        return facts
