"""Go-back-N from one spool to the daemon: push within a window, drop what is acknowledged."""

from __future__ import annotations

import logging
import time
from typing import Any

import zmq

from . import family, wire
from .control import Connection, resolve
from .errors import FrameError
from .keys import Key
from .spool import Outgoing, Spool

__all__ = ["Link"]

log = logging.getLogger("zmqtrack")

#: Most that is pushed and not yet acknowledged.
WINDOW_BATCHES = 256
WINDOW_BYTES = 16 << 20

#: Without progress for so long (seconds, doubled up to the maximum) the daemon is greeted
#: anew, and its answer says from where to go on.
PATIENCE = 1.0
PATIENCE_MAX = 8.0
#: Refusals of a greeting that pass by themselves.
PASSING = frozenset({"busy", "over_rate"})
#: And those that pass when another run or writer of the site has ended.
CROWDED = frozenset({"too_many_runs", "too_many_streams"})
#: Longest that a daemon can make us wait for its rate limit, in seconds, before it is asked anew.
SLOW_MAX = 60.0


class Link:
    """The sockets and the sending state of one spool. Touches no lock and starts no thread."""

    def __init__(self, spool: Spool, address: str, key: Key | None = None) -> None:
        self.spool = spool
        self.address = address
        self._key = key
        self._connection = Connection(zmq.DEALER, address, key)
        self._shut_out = ""  # why the daemon does not let us in
        self._ingest: Connection | None = None
        self._epoch = b""
        self._welcome = False
        #: Somebody is there, whatever the answer was.
        self.answered = False
        self._window: list[tuple[int, int]] = []  # (seq, bytes), pushed and unacknowledged
        self._next: list[Outgoing] = []  # read from the spool, not yet pushed
        self._pushed = 0  # highest seq that was ever pushed: no answer can be for more
        self._patience = PATIENCE
        self._refused: str | None = None  # why the last greeting was
        self._due = 0.0  # when to greet the daemon (anew)
        self._window_bytes = WINDOW_BYTES  # the daemon may allow less
        self._slow_until = 0.0  # it asked us to wait so long
        self._probing = False  # and then to try with one batch
        #: Say now and then that the writer lives, with the time of what it logged last.
        self.beats = False
        self.clock = 0.0
        self._beat_every = self._beat_due = 0.0
        self._beat_final = False
        #: Largest values that the daemon takes, by data type.
        self.sizes: dict[str, int] = {}
        #: Records that the daemon refused for good, by reason.
        self.rejected: dict[str, int] = {}

    @property
    def done(self) -> bool:
        """All that is in the spool has been acknowledged."""
        return self.spool.acked >= self.spool.last

    @property
    def refused(self) -> bool:
        """The daemon does not take this stream, at least while others of its site are open."""
        return self._refused is not None and self._refused not in PASSING

    @property
    def crowded(self) -> bool:
        """It does once others of its site have ended."""
        return self._refused in CROWDED

    @property
    def control(self) -> zmq.Socket[bytes]:
        """To be polled; another one after a refusal."""
        return self._connection.socket

    def pump(self) -> None:
        """Do all that can be done now without waiting."""
        if (refusal := self._connection.refusal()) and refusal != self._shut_out:
            self._shut_out, self.answered = refusal, True
            log.warning("zmqtrack: %s; records are kept here", refusal)
        if self._connection.renew_if_silent() and self._ingest is not None:
            self._ingest.renew()  # it goes the same way
        if self._ingest is not None:
            self._ingest.refusal()  # which makes it anew, now and then
        while self.control.poll(0):
            self._connection.heard()
            try:
                self._on_message(wire.decode_control(self.control.recv()))
            except FrameError as error:
                log.warning("ignoring an answer of %s: %s", self.address, error)
        if not self._welcome or (self._window and time.monotonic() >= self._due):
            self._greet()
        if self._welcome:
            self._push()
            if self.beats and self._beat_every and time.monotonic() >= self._beat_due:
                self._beat()

    # --- what the daemon says --------------------------------------------------------------

    def _on_message(self, message: dict[str, Any]) -> None:
        self.answered = True
        handler = {
            "welcome": self._on_welcome,
            "ack": self._on_ack,
            "resume": self._on_resume,
            "slow": self._on_slow,
            "reject": self._on_reject,
            "notice": self._on_notice,
            "refused": self._on_refused,
        }.get(message["op"])
        if handler and message.get("stream") == self.spool.stream:
            handler(message)

    def _on_welcome(self, message: dict[str, Any]) -> None:
        if self._epoch and message["epoch"] != self._epoch:
            log.warning(
                "zmqtrack: the daemon at %s has a new journal; what it had acknowledged "
                "before is no longer there to be replayed",
                self.address,
            )
        self._epoch, self._refused = message["epoch"], None
        ingest = resolve(message["ingest"], self.address)
        if self._ingest is None or ingest != self._ingest.address:
            if self._ingest is not None:
                self._ingest.close()
            self._ingest = Connection(zmq.PUSH, ingest, self._key, hwm=WINDOW_BATCHES)
        self._welcome = True
        self._window_bytes = min(WINDOW_BYTES, int(message.get("window", WINDOW_BYTES)))
        self.sizes = dict(message.get("sizes") or {})
        self._beat_every = float(message.get("beat") or 0.0)
        if self._is_same(message):
            self._acknowledge(message["seq"])
        # It answers, but what we push does not arrive: the ingest connection leads nowhere.
        self._ingest.renew_if_silent()
        self._go_back()

    def _is_same(self, message: dict[str, Any]) -> bool:
        """Whether what the daemon holds of this stream came from this spool, not from a copy.

        If not, all is pushed, and the daemon compares it batch by batch.
        """
        seq, checksum = message["check"]
        own = self.spool.check(seq)
        if checksum is None or own is None or own == checksum:
            return True
        log.error(
            "zmqtrack: the daemon at %s has other records under the stream of %s: was the machine "
            "or the spool copied while in use? They are sent, and kept apart there",
            self.address,
            self.spool.path,
        )
        return False

    def _on_ack(self, message: dict[str, Any]) -> None:
        self._acknowledge(min(message["seq"], self._pushed))

    def _on_resume(self, message: dict[str, Any]) -> None:
        self._acknowledge(min(message["seq"], self._pushed))
        self._go_back()

    def _on_slow(self, message: dict[str, Any]) -> None:
        """We are over our site's rate: what is under way was not taken, and is kept here."""
        wait = min(max(0.0, float(message["wait"])), SLOW_MAX)
        self._slow_until = time.monotonic() + wait
        if self._ingest is not None:
            self._ingest.heard()
        self._due = max(self._due, self._slow_until + self._patience)
        self._probing = True
        self._go_back()

    def _on_reject(self, message: dict[str, Any]) -> None:
        reason, records = str(message.get("reason")), int(message.get("records", 0))
        if reason not in self.rejected:
            log.warning(
                "zmqtrack: the daemon refuses what run %s logged: %s: %s",
                self.spool.run.run,
                reason,
                message.get("detail"),
            )
        self.rejected[reason] = self.rejected.get(reason, 0) + records
        self._acknowledge(message["seq"])

    def _on_refused(self, message: dict[str, Any]) -> None:
        if message.get("reason") != self._refused:  # once, not each time that we greet
            self._refused = message.get("reason")
            log.warning("zmqtrack: %s: %s", self.address, message.get("detail"))
        self._patience = PATIENCE_MAX

    def _on_notice(self, message: dict[str, Any]) -> None:
        """The daemon has seen something that a person should know, and that is no refusal."""
        log.warning("zmqtrack: %s", str(message.get("detail"))[:2000])

    # --- what we say -----------------------------------------------------------------------

    def _greet(self) -> None:
        now = time.monotonic()
        if now < self._due:
            return
        hello = wire.encode_control(
            "hello",
            role="writer",
            stream=self.spool.stream,
            run=list(self.spool.run),
            acked=self.spool.acked,
            last=self.spool.last,
        )
        try:
            self.control.send(hello, zmq.NOBLOCK)
        except zmq.Again:
            return  # nobody there yet: the next pump tries again, ZeroMQ reconnects by itself
        self._connection.expect()
        self._due = now + self._patience
        self._patience = min(2 * self._patience, PATIENCE_MAX)

    def beat_last(self) -> None:
        """Say at the next turn how the writer is, and then no more: its run ends."""
        self._beat_due, self._beat_final = 0.0, True

    def _beat(self) -> None:
        """Tell the daemon that the writer lives; where that gets lost, the next one tells it."""
        self._beat_due = time.monotonic() + self._beat_every
        self.beats = not self._beat_final
        beat = wire.encode_control(
            "beat",
            stream=self.spool.stream,
            run=list(self.spool.run),
            waiting=self.spool.pending(),
            time=self.clock,
            **family.who(),
        )
        try:
            self.control.send(beat, zmq.NOBLOCK)
        except zmq.Again:
            return
        self._connection.expect()

    def _push(self) -> None:
        """Push batches until the window is full, the spool is empty or ZeroMQ says later."""
        assert self._ingest is not None
        if time.monotonic() < self._slow_until:
            return
        in_flight = sum(size for _, size in self._window)
        while len(self._window) < (1 if self._probing else WINDOW_BATCHES):
            if not self._next:
                sent = self._window[-1][0] if self._window else self.spool.acked
                self._next = self.spool.after(sent, limit=32)
                if not self._next:
                    return
            batch = self._next[0]
            if self._window and in_flight + len(batch.body) > self._window_bytes:
                return
            frames = [wire.topic(batch.type), batch.header, batch.body]
            try:
                self._ingest.socket.send_multipart(frames, zmq.NOBLOCK)
            except zmq.Again:
                if not self._window:  # nothing is on its way that could time out
                    self._due = min(self._due, time.monotonic() + self._patience)
                return
            if not self._window:
                self._due = time.monotonic() + self._patience
            self._ingest.expect()  # an acknowledgement, by way of control
            del self._next[0]
            self._window.append((batch.seq, len(batch.body)))
            self._pushed = max(self._pushed, batch.seq)
            in_flight += len(batch.body)

    def _acknowledge(self, seq: int) -> None:
        if seq > self.spool.acked:
            self.spool.acknowledge(seq)
            self._window = [entry for entry in self._window if entry[0] > seq]
            self._patience = PATIENCE
            self._probing = False
            if self._ingest is not None:
                self._ingest.heard()
            self._due = time.monotonic() + self._patience

    def _go_back(self) -> None:
        self._window, self._next = [], []

    def close(self) -> None:
        self._connection.close()
        if self._ingest is not None:
            self._ingest.close()
