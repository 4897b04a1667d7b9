"""What a service tells systemd (sd_notify): ready, alive, reloading, stopping, how it goes.

A datagram of ``NAME=value`` lines to the socket that ``$NOTIFY_SOCKET`` names. Without one nothing
is said. Whatever goes wrong with it is logged at most, and never in the daemon's way.
"""

from __future__ import annotations

import logging
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from zmqtrack.errors import ZMQTrackError

__all__ = ["Notifier", "summary"]

log = logging.getLogger("zmqtrack.daemon")

#: Between two looks at how it goes, in seconds.
STATUS_INTERVAL = 5.0
#: What is asked for, in seconds, and how often, while a start or a stop takes long.
EXTENSION, EXTEND_INTERVAL = 30.0, 5.0
#: Longest wait (seconds) for room in the socket, for what systemd waits for.
SEND_TIMEOUT = 2.0
#: Adapters that one status names.
NAMED = 8

_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Notifier:
    """Takes its variables out of ``environ``: the processes that we start are not the service."""

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        address, usec, pid = (environ.pop(name, "") for name in _VARIABLES)
        self._socket = _connect(address)
        self._status = ""
        self._status_due = self._alive_due = self._extend_due = 0.0
        #: Seconds between two signs of life; 0 where nobody waits for them.
        self.watchdog = _seconds(usec) / 2 if pid in ("", str(os.getpid())) else 0.0

    def ready(self) -> None:
        """All is open; or: the reload is done."""
        self._say("READY=1", wait=True)

    def reloading(self) -> None:
        """A reload begins; :meth:`ready` ends it, however it went."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._say("RELOADING=1", f"MONOTONIC_USEC={now}", wait=True)

    def on_reload(self, begins: bool) -> None:
        if begins:
            self.reloading()
        else:
            self.ready()

    def stopping(self, status: str = "") -> None:
        self._say("STOPPING=1", *self._with(status), wait=True)

    def turned(self, status: Callable[[], str] | None = None) -> None:
        """The loop that commits has turned: say that we live, and now and then how it goes."""
        now = time.monotonic()
        if self.watchdog and now >= self._alive_due:
            self._alive_due = now + self.watchdog
            self._say("WATCHDOG=1")
        if status is not None and self._socket is not None and now >= self._status_due:
            self._status_due = now + STATUS_INTERVAL
            try:
                text = status()
            except (sqlite3.Error, ZMQTrackError) as error:
                text = f"how it goes cannot be told: {error}"
            self._say(*self._with(text))

    def extend(self) -> None:
        """The start or the stop goes on, and takes longer; called again and again."""
        if time.monotonic() >= self._extend_due:
            self._extend_due = time.monotonic() + EXTEND_INTERVAL
            self._say(f"EXTEND_TIMEOUT_USEC={EXTENSION * 1e6:.0f}")

    @contextmanager
    def extending(self, status: str = "") -> Iterator[None]:
        """Extend for as long as what is inside takes, which does not return in between."""
        if self._socket is None:
            yield
            return
        self._say(*self._with(status))
        self._extend_due = 0.0  # what was asked for before may have been for something else
        done = threading.Event()
        thread = threading.Thread(target=self._extend_until, args=(done,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _extend_until(self, done: threading.Event) -> None:
        while not done.is_set():
            self.extend()
            done.wait(EXTEND_INTERVAL)

    def _with(self, status: str) -> list[str]:
        """The line for a status that is new, in one line."""
        if not status or status == self._status:
            return []
        self._status = status
        return ["STATUS=" + " ".join(status.split())]

    def _say(self, *lines: str, wait: bool = False) -> None:
        """Send; with ``wait`` a socket that is full is tried again for a while."""
        if self._socket is None or not lines:
            return
        message = "\n".join(lines).encode(errors="replace")
        deadline = time.monotonic() + (SEND_TIMEOUT if wait else 0)
        while True:
            try:
                self._socket.send(message, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                return
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    log.debug("systemd does not read %s", lines[0])
                    return
                time.sleep(0.01)
            except OSError as error:
                log.debug("systemd is not told %s: %s", lines[0], error)
                return


def summary(facts: dict[str, Any]) -> str:
    """Sites and lag, for ``systemctl status``, of what ``zmqtrack status`` is answered."""
    active, stale = (
        {run["site"] for run in facts["sites"] if run["state"] == state}
        for state in ("active", "stale")
    )
    text = f"{len(active)} site{'s' * (len(active) != 1)} active"
    if stale - active:
        text += f", {len(stale - active)} stale"
    adapters: dict[str, dict[str, Any]] = facts["adapters"]
    named = sorted(adapters, key=lambda name: -adapters[name]["lag"])[:NAMED]
    if named:
        text += "; " + ", ".join(
            f"{name} {adapters[name]['state']}, lag {adapters[name]['lag']}" for name in named
        )
    if len(adapters) > len(named):
        text += f" and {len(adapters) - len(named)} more"
    if not facts["daemon"]["accepting"]:
        text += "; no room: writers keep their records"
    return text


def _connect(address: str) -> socket.socket | None:
    if not address.startswith(("/", "@")):
        return None
    try:
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        connected.connect(f"\0{address[1:]}" if address.startswith("@") else address)
    except (OSError, ValueError) as error:
        log.warning("systemd is not told how it goes: %s: %s", address, error)
        return None
    return connected


def _seconds(microseconds: str) -> float:
    return int(microseconds) / 1e6 if microseconds.isdecimal() else 0.0
