"""The core loop: receive, check, journal, acknowledge, publish."""

from __future__ import annotations

import logging
import math
import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Any

import zmq

from zmqtrack.config import AdapterConfig, DaemonConfig
from zmqtrack.keyring import Client, KeyRing
from zmqtrack.keys import Key

from . import sockets
from .audit import Audit
from .auth import Auth
from .control import Control
from .intake import Intake
from .journal import Journal
from .publisher import Publisher
from .refusals import Refusals
from .room import Room

__all__ = ["Broker"]

log = logging.getLogger("zmqtrack.daemon")

#: Most batches that share one commit.
COMMIT_BATCHES = 500
#: When the loop did not turn for so long (seconds), what was sent meanwhile is still to be read.
HELD_UP = 1.0
#: Between two looks for what can be trimmed, in seconds.
HOUSEKEEPING = 1.0


class Broker:
    """Binds the three sockets; :meth:`step` is the loop's body.

    ``adapters`` are those that are configured: a drain waits for them.

    Raises:
        ZMQTrackError: an address cannot be bound.
    """

    def __init__(
        self, config: DaemonConfig, journal: Journal, adapters: Sequence[AdapterConfig] = ()
    ) -> None:
        assert config.publish is not None
        self.config = config
        self.journal = journal
        self.started = time.time()
        #: How often each adapter's process had to be started again.
        self.restarts: Callable[[], dict[str, int]] = dict
        #: Has the configuration read again, and the outcome told; None: there is no file.
        self.on_reload: Callable[[Callable[[Any], None]], None] | None = None
        #: Has each tracker tried for so many seconds, and the findings told; None: nobody does.
        self.on_probe: Callable[[float, Callable[[Any], None]], None] | None = None
        self.audit = Audit(config.state_dir)
        self.refusals = Refusals()
        self.room = Room(journal, config.max_bytes)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 16_000)
        self._auth = auth = Auth(
            self._context, KeyRing(config.keys) if config.keys else None, self.audit
        )
        self._router, self.control_address = sockets.bind(
            self._context, auth, zmq.ROUTER, config.control
        )
        self.intake = Intake(
            self._context, auth, config, journal, self.audit, self.refusals, self.room,
            self._router.send_multipart,
        )  # fmt: skip
        self.publisher = Publisher(self._context, auth, config.publish, self.audit, self.refusals)
        auth.prove(
            [
                (zmq.DEALER, self.control_address),
                (zmq.PUSH, self.intake.address),
                (zmq.SUB, self.publisher.address),
            ]
        )
        self._control = Control(self, adapters)
        self._poller = zmq.Poller()
        for socket in (self._router, self.intake.socket, self.publisher.socket, auth.handler):
            if socket is not None:
                self._poller.register(socket, zmq.POLLIN)
        self._accepting = True
        self._replies: list[list[bytes]] = []  # control answers that wait for the commit
        self._commit_due = 0.0  # 0: nothing waits for one
        self._housekeeping_due = 0.0
        self._turned = time.monotonic()

    def step(self, timeout: float = 0.1) -> None:
        """Wait for something to do (at most ``timeout`` seconds), and do it."""
        ready = dict(self._poller.poll(math.ceil(1000 * self._patience(timeout))))
        before, self._turned = self._turned, time.monotonic()
        if (held_up := self._turned - before) > HELD_UP:
            self.intake.sites.excuse(held_up)
        try:
            self._turn(ready)
        except sqlite3.OperationalError as error:
            self._on_disk_error(error)

    def _turn(self, ready: dict[Any, int]) -> None:
        self._auth.step()
        if self._auth.shrunk:
            self._publish_anew()
        if self.intake.socket in ready:
            self._ingest()
        if self._router in ready:
            self._control.serve()
        if self.publisher.socket in ready:
            self.publisher.serve()
        if self._is_due():
            self._commit()
        if time.monotonic() >= self._housekeeping_due:
            self._keep_house()
        self.publisher.beat(self.journal.head)

    def _ingest(self) -> None:
        """Take what has come in, up to one commit's worth."""
        self.intake.serve(COMMIT_BATCHES - self.journal.pending)

    def _patience(self, timeout: float) -> float:
        now = time.monotonic()
        if self._commit_due:
            timeout = min(timeout, max(0.0, self._commit_due - now))
        return min(timeout, max(0.0, self._housekeeping_due - now))

    # --- commit -------------------------------------------------------------------------------

    def _is_due(self) -> bool:
        """Whatever waits for a commit does so for the commit interval at most."""
        if not self._commit_due and (self.journal.dirty or self._replies or self.intake.owes):
            self._commit_due = time.monotonic() + self.config.commit_interval
        if self.journal.pending >= COMMIT_BATCHES:
            return True
        return bool(self._commit_due) and time.monotonic() >= self._commit_due

    def _commit(self) -> None:
        """Make it durable; only then acknowledge, and publish."""
        self._commit_due = 0.0
        entries = self.journal.commit()
        for reply in self._replies:
            self._router.send_multipart(reply)
        self._replies.clear()
        self.intake.acknowledge()
        self.publisher.publish(entries, self.journal.head)

    def _on_disk_error(self, error: sqlite3.OperationalError) -> None:
        """Nothing was committed, so nothing is acknowledged: writers will send it again."""
        self.journal.rollback()
        self.intake.roll_back()
        self._replies.clear()
        self._commit_due = 0.0
        if "full" not in str(error):
            raise error  # a failed write or fsync: what the disk holds is unknown
        self.refusals.note("disk_full", f"{self.journal.path}: {error}; writers keep their records")
        self.room.note_disk_full()

    # --- now and then -------------------------------------------------------------------------

    def _keep_house(self) -> None:
        """Trim what all have and nobody needs; end the runs that are silent for too long."""
        self._housekeeping_due = time.monotonic() + HOUSEKEEPING
        config = self.config
        gone = self.journal.trim(
            self._control.delivered(), time.time() - config.retain_time, config.retain_bytes
        )
        if gone:
            self._housekeeping_due = 0.0  # there may be more
        self.room.look()
        if config.lease and not self.room.none:
            self.intake.end_the_silent(config.lease)

    def _publish_anew(self) -> None:
        self._auth.shrunk = False
        self._poller.unregister(self.publisher.socket)
        self.publisher.bind_anew()
        self._poller.register(self.publisher.socket, zmq.POLLIN)

    def stop_accepting(self) -> None:
        """Take in what has arrived, commit it, and accept no more: writers keep the rest."""
        socket, room = self.intake.socket, self.room
        socket.unbind(self.intake.address)
        while not room.journal_full and socket.poll(50) and not room.disk_refused:
            try:
                self._ingest()
                self._commit()
            except sqlite3.OperationalError as error:
                self._on_disk_error(error)
        self._poller.unregister(socket)
        self._accepting = False

    def close(self) -> None:
        try:
            self._commit()
        except sqlite3.OperationalError as error:
            self._on_disk_error(error)
        # Lingers: the last acknowledgements are on their way out.
        self._context.destroy(linger=500)
        self.audit.close()

    # --- for those beside it ------------------------------------------------------------------

    def configure(self, config: DaemonConfig, adapters: Sequence[AdapterConfig]) -> None:
        """Another configuration is in force; its addresses, keys and state_dir are the same."""
        self.config = config
        self.room.max_bytes = config.max_bytes
        self.intake.configure(config)
        self._control.require(adapters)

    def note_end(self, name: str, detail: str) -> None:
        """An adapter's process has ended by itself."""
        self._control.note_end(name, detail)

    def note_gone(self, name: str) -> None:
        """An adapter that was taken out of the configuration has ended."""
        self._control.note_gone(name)

    def adapters_key(self) -> Key | None:
        """What our own adapters come in with."""
        return self._auth.adapters_key(self.control_address)

    def receive_control(self) -> tuple[list[bytes], Client | None] | None:
        """The next request, and whose it is; None: there is none."""
        try:
            return self._auth.receive(self._router)
        except zmq.Again:
            return None

    def reply(self, frames: list[bytes], *, after_commit: bool = False) -> None:
        """Answer a client; where the answer promises durability, after the commit."""
        if after_commit:
            self._replies.append(frames)
        else:
            self._router.send_multipart(frames)

    def facts(self) -> dict[str, Any]:
        """What a status tells."""
        return self._control.facts()

    def status(self) -> dict[str, Any]:
        """Facts about the loop, for the status."""
        return {
            "started": self.started,
            "accepting": self._accepting and not self.room.none,
            "journal_full": self.room.journal_full,
            "disk_full": self.room.disk_full,
            "received_batches": self.intake.received,
            "duplicate_batches": self.intake.duplicates,
            "refused": dict(self.refusals.counts),
            "keys": self._auth.admitted if self._auth.ring is not None else None,
            "insecure": self.config.insecure and self._auth.ring is None,
        }
