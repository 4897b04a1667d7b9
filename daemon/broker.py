"""The core loop: receive, check, journal, acknowledge, publish."""

from __future__ import annotations

import collections
import hashlib
import logging
import math
import sqlite3
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import zmq

from zmqtrack import peek, wire
from zmqtrack.config import AdapterConfig, DaemonConfig
from zmqtrack.errors import ControlError, FrameError, ZMQTrackError
from zmqtrack.keyring import Client, KeyRing
from zmqtrack.keys import Key
from zmqtrack.records import RESERVED, Record, RunKey
from zmqtrack.wire import Header

from .audit import Audit
from .auth import ANYBODY, Auth, grants
from .control import Control
from .journal import Entry, Journal, Stream
from .limits import Exceeded, Limits
from .sites import Life, Sites

__all__ = ["Broker"]

log = logging.getLogger("zmqtrack.daemon")

#: Most batches that share one commit.
COMMIT_BATCHES = 500
#: The head is published at least so often (seconds), so that subscribers notice a lost tail.
HEARTBEAT = 0.5
#: Between two looks for what can be trimmed, in seconds.
HOUSEKEEPING = 1.0
#: Wait after the disk refused a commit, in seconds.
DISK_PAUSE = 1.0
#: It is shown as full for so long: meanwhile every writer has tried again.
DISK_SHOWN = 30.0
#: Messages that wait for one slow subscriber before it misses some and has to replay.
PUBLISH_HWM = 1000
#: Batches of one writer that wait in memory. ZeroMQ counts messages, not bytes: so few of them.
INGEST_HWM = 64
#: Largest frame by socket. ZeroMQ cuts the connection of who sends more, and with it what was sent
#: before: so it is larger than what we take, and what is too large is refused by itself.
MAX_FRAME: dict[int, int] = {
    zmq.PULL: 4 * wire.MAX_BODY,
    zmq.ROUTER: 2 * wire.MAX_BODY,
    zmq.XPUB: 16 << 10,
}
#: Bytes that one writer may have under way, at least and at most.
WINDOW_MIN, WINDOW_MAX = 256 << 10, 16 << 20
#: What each socket is called when somebody wants to come in.
DOMAINS: dict[int, str] = {zmq.PULL: "ingest", zmq.XPUB: "publish", zmq.ROUTER: "control"}
#: Longest that the publish socket may take to be bound again, in seconds.
REBIND = 5.0
#: A connection that has not said who it is in so long (ms) is ended.
HANDSHAKE_MS = 10_000
#: A writer is told to wait at most so often (seconds).
SLOW_AGAIN = 0.25
#: And waits so long (seconds) while there is no room.
HOLD = 1.0
#: A refusal is logged once and then at most so often (seconds), with the count since.
LOG_INTERVAL = 10.0

#: What a writer says of itself: records in its spool, step and time of what it logged last.
Beat = tuple[int, "int | None", float]


class Broker:
    """Binds the three sockets; :meth:`step` is the loop's body.

    ``adapters`` are those that are configured: a drain waits for them.

    Raises:
        ZMQTrackError: an address cannot be bound.
    """

    def __init__(
        self, config: DaemonConfig, journal: Journal, adapters: Sequence[AdapterConfig] = ()
    ) -> None:
        assert config.ingest is not None and config.publish is not None
        self.config = config
        self.journal = journal
        self.audit = Audit(config.state_dir)
        self.limits = Limits(config.limits, journal.runs_of)
        self.sites = Sites(RunKey(*run) for run in journal.open_runs())
        self.started = time.time()
        #: What was refused since the start, by reason, in frames or batches.
        self.refused: collections.Counter[str] = collections.Counter()
        self.received = self.duplicates = 0
        #: How often each adapter's process had to be started again.
        self.restarts: Callable[[], dict[str, int]] = dict
        #: Has the configuration read again, and the outcome told; None: there is no file.
        self.on_reload: Callable[[Callable[[Any], None]], None] | None = None
        #: Has each tracker tried for so many seconds, and the findings told; None: nobody does.
        self.on_probe: Callable[[float, Callable[[Any], None]], None] | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 16_000)
        ring = KeyRing(config.keys) if config.keys else None
        self._auth = Auth(self._context, ring, self.audit)
        self._router, self.control_address = self._bind(zmq.ROUTER, config.control)
        self._pull, self.ingest_address = self._bind(zmq.PULL, config.ingest)
        self._xpub, self.publish_address = self._bind(zmq.XPUB, config.publish)
        self._auth.prove(
            [
                (zmq.DEALER, self.control_address),
                (zmq.PUSH, self.ingest_address),
                (zmq.SUB, self.publish_address),
            ]
        )
        self._control = Control(self, adapters)
        self._poller = zmq.Poller()
        for socket in (self._router, self._pull, self._xpub, self._auth.handler):
            if socket is not None:
                self._poller.register(socket, zmq.POLLIN)
        self._accepting = True
        self._pending = 0  # batches since the last commit
        self._commit_due = 0.0
        self._paused_until = -math.inf  # the disk is full: no ingest before then
        self._full = False  # the journal has reached its limit: no ingest either
        self._housekeeping_due = 0.0
        self._head_published = 0.0
        self._routes: collections.OrderedDict[bytes, bytes] = collections.OrderedDict()
        self._answer: dict[bytes, str] = {}  # streams to be told their seq after the commit
        self._resumed: dict[bytes, tuple[int, float]] = {}
        self._slowed: dict[bytes, float] = {}  # streams that were told to wait, and when
        self._replies: list[list[bytes]] = []  # control answers that wait for the commit
        self._logged: dict[str, float] = {}

    def step(self, timeout: float = 0.1) -> None:
        """Wait for something to do (at most ``timeout`` seconds), and do it."""
        ready = dict(self._poller.poll(math.ceil(1000 * self._patience(timeout))))
        try:
            self._turn(ready)
        except sqlite3.OperationalError as error:
            self._on_disk_error(error)

    def _turn(self, ready: dict[Any, int]) -> None:
        self._auth.step()
        if self._auth.shrunk:
            self._publish_anew()
        if self._pull in ready:
            self._ingest()
        if self._router in ready:
            self._control.serve()
        if self._xpub in ready:
            self._subscriptions()
        if self._pending >= COMMIT_BATCHES or self._is_due():
            self._commit()
        if self.journal.dirty:
            self._mark_dirty()
        if time.monotonic() >= self._housekeeping_due:
            self._keep_house()
        if time.monotonic() - self._head_published > HEARTBEAT:
            self._publish_head(self.journal.head + 1, [])

    def _keep_house(self) -> None:
        """Trim what all have and nobody needs; hold the writers back when there is no room."""
        self._housekeeping_due = time.monotonic() + HOUSEKEEPING
        config, journal = self.config, self.journal
        gone = journal.trim(
            self._control.delivered(), time.time() - config.retain_time, config.retain_bytes
        )
        if gone:
            self._housekeeping_due = 0.0  # there may be more
        full = journal.bytes >= config.max_bytes
        if full and not self._full:
            log.warning(
                "the journal holds %d bytes that not every adapter has (max_bytes %d): writers "
                "keep their records until there is room",
                journal.bytes,
                config.max_bytes,
            )
        self._full = full
        if config.lease and not self.holding:
            for run, life in self.sites.silent(config.lease):
                self._end_for_silence(run, life)

    def _end_for_silence(self, run: RunKey, life: Life) -> None:
        """Let the trackers know: as a batch of a stream that is ours, one for each run key.

        It ends at its writer's own time, so that what that logs later lies behind the end.
        """
        log.warning(
            "run %s was silent for %g s: it ends as killed, until it is back",
            "/".join(run),
            self.config.lease,
        )
        name = "\0".join(run).encode() + self.journal.epoch
        stream = hashlib.sha256(name).digest()[:16]
        known = self.journal.stream(stream)
        now = time.time()
        header = Header(stream, (known.seq if known else 0) + 1, run, 1)
        body = wire.encode_body([Record("end", "killed", None, life.clock or now)])
        self.journal.append("run", header, body, now)
        self.journal.set_run(run, "killed")
        self.sites.end(run)
        self._pending += 1
        self._mark_dirty()

    def _note_life(self, data_type: str, header: Header, body: bytes) -> None:
        """A batch was taken: its run is open, or has ended with it."""
        if data_type == "run" and "end" in _keys(header, body):
            self.sites.end(header.run)
            self.journal.set_run(header.run, "ended")
        elif self.sites.hear(header.run):
            self.journal.set_run(header.run, "open")

    def note_beat(self, client: Client, stream: bytes, run: RunKey, facts: Beat) -> None:
        """A writer says that it lives. That opens no run, as its batches do, but one that was
        killed for its silence.

        Raises:
            FrameError: it may not speak for that run.
        """
        known = self.journal.stream(stream)
        self._check_owner(client, stream, run, known)
        if stream not in self._routes or (known and known.run != run):
            return
        if self.limits.wait(run.site, 0):
            return
        is_open = self.sites.life(run) is not None
        if not is_open and not self.holding and self.journal.run_state(run) == "killed":
            self.journal.set_run(run, "open")
            is_open = True
        if is_open:
            self.sites.hear(run)
        self.sites.beat(run, stream, *facts)

    @property
    def holding(self) -> bool:
        """There is no room for what comes in: writers are told to wait, and keep it."""
        full = self._full or self.journal.bytes >= self.config.max_bytes
        return full or time.monotonic() < self._paused_until

    def stop_accepting(self) -> None:
        """Take in what has arrived, commit it, and accept no more: writers keep the rest."""
        self._pull.unbind(self.ingest_address)
        while not self._full and self._pull.poll(50) and time.monotonic() >= self._paused_until:
            try:
                self._ingest()
                self._commit()
            except sqlite3.OperationalError as error:
                self._on_disk_error(error)
        self._poller.unregister(self._pull)
        self._accepting = False

    def close(self) -> None:
        try:
            self._commit()
        except sqlite3.OperationalError as error:
            self._on_disk_error(error)
        # Lingers: the last acknowledgements are on their way out.
        self._context.destroy(linger=500)
        self.audit.close()

    # --- ingest -------------------------------------------------------------------------------

    def _ingest(self) -> None:
        """Take what has come in, up to one commit's worth."""
        for _ in range(COMMIT_BATCHES):
            if self._pending >= COMMIT_BATCHES:
                return
            try:
                frames, client = self._receive(self._pull)
            except zmq.Again:
                return
            try:
                if client is None or "writer" not in client.roles or client.revoked:
                    name = client.name if client else ""
                    self.audit.write("refused", name, "revoked", socket="ingest")
                    raise FrameError("revoked", f"a batch of {name or 'a key that is unknown'}")
                self._accept(frames, client)
            except FrameError as error:
                self._refuse(error.reason, error.detail)

    def _receive(self, socket: zmq.Socket[bytes]) -> tuple[list[bytes], Client | None]:
        """A message, and who sent it.

        Raises:
            zmq.Again: there is none.
        """
        if self._auth.ring is None:
            return socket.recv_multipart(zmq.NOBLOCK), ANYBODY
        frames = socket.recv_multipart(zmq.NOBLOCK, copy=False)
        return [frame.bytes for frame in frames], self._auth.client(frames[0])

    def _accept(self, frames: list[bytes], client: Client = ANYBODY) -> None:
        """Journal one batch, if it is the next of its stream.

        Raises:
            FrameError: it is no batch, or not one that ``client`` may send.
        """
        if len(frames) != 3:
            raise FrameError("bad_frames", f"{len(frames)} frames; a batch has 3")
        data_type = wire.decode_topic(frames[0])
        if data_type in RESERVED - {"lost", "probe"}:
            raise FrameError("bad_type", f"{data_type!r} is the daemon's own word")
        header = wire.decode_header(frames[1])
        self.received += 1
        known = self.journal.stream(header.stream)
        last = known.seq if known else 0
        self._check_owner(client, header.stream, header.run, known)
        if data_type == "probe":
            self._answer_probe(header, known)
            return
        if known is None and not self._may_begin(header):
            return
        if self.holding:
            # Taken off the socket and dropped: there it would wait in our memory.
            self._refuse(
                "no_room", f"site {header.run.site} is told to wait, and keeps its records"
            )
            self._slow_down(header, HOLD)
        elif wait := self.limits.wait(header.run.site, len(frames[2])):
            self.audit.write("limit", header.run.site, "rate")
            self._refuse("over_rate", f"site {header.run.site} is told to wait")
            self._slow_down(header, wait)
        elif data_type == "lost":
            self._account(header, last, frames[2])
        elif header.seq <= last:  # sent again: its acknowledgement was lost
            self.duplicates += 1
            held = self.journal.check(header.stream, header.seq)
            if held is not None and held != zlib.crc32(frames[2]):
                self._quarantine(data_type, header, frames)
            self._answer.setdefault(header.stream, "ack")
            self._mark_dirty()
        elif header.seq > last + 1:
            self._ask_to_resume(header, last)
        elif known and known.run != header.run:
            self._reject(data_type, header, "run_key_changed", f"the stream began as {known.run}")
        elif len(frames[2]) > self.config.max_body:
            detail = f"{len(frames[2])} bytes; at most {self.config.max_body}"
            self._reject(data_type, header, "too_large", detail)
        elif excess := self._excess(data_type, header, frames[2]):
            self._reject(data_type, header, excess.reason, str(excess))
        else:
            self.journal.append(data_type, header, frames[2], time.time())
            self._note_life(data_type, header, frames[2])
            self._answer[header.stream] = "ack"
            self._pending += 1
            self._mark_dirty()

    def _answer_probe(self, header: Header, known: Stream | None) -> None:
        """Somebody looks whether a batch arrives, and is acknowledged. Nothing of it is kept.

        Raises:
            FrameError: it is under a stream that has batches.
        """
        if known is not None:
            raise FrameError("bad_type", f"a probe under stream {header.stream.hex()}, in use")
        wait = self.limits.wait(header.run.site, 0)
        if wait or self.holding:
            self._slow_down(header, wait or HOLD)
        elif route := self._routes.pop(header.stream, None):
            message = wire.encode_control("ack", stream=header.stream, seq=header.seq)
            self.reply([route, message], after_commit=True)

    def _may_begin(self, header: Header) -> bool:
        """A stream that is new, and may not have been greeted: its site may have too many.

        Nothing is kept of it then, and it is not acknowledged: a greeting will say why.
        """
        try:
            self.limits.open_stream(header.stream, header.run)
        except Exceeded as error:
            self.audit.write("limit", header.run.site, error.reason, detail=str(error)[:300])
            self._refuse(error.reason, str(error))
            return False
        return True

    def _excess(self, data_type: str, header: Header, body: bytes) -> Exceeded | None:
        """Why a batch is more than its site may send, if it is."""
        try:
            self.limits.check(data_type, header, body)
        except Exceeded as error:
            self.audit.write("limit", header.run.site, error.reason, detail=str(error)[:300])
            return error
        except FrameError:
            pass  # adapters put it among the dead letters, for a person to look at
        return None

    def _check_owner(
        self, client: Client, stream: bytes, run: RunKey, known: Stream | None
    ) -> None:
        """A site is its key's, and a stream is the site's that began it.

        Raises:
            FrameError: ``wrong_site``, ``foreign_stream``. The stream is left as it was.
        """
        if client is ANYBODY:
            return
        if run.site != client.name:
            reason = "wrong_site"
            detail = f"the key of {client.name} says that it is site {run.site}"
        elif known and known.run[2] != client.name:
            reason = "foreign_stream"
            detail = f"the key of {client.name} uses stream {stream.hex()}, which is another's"
        else:
            return
        self.audit.write("rejected", client.name, reason, detail=detail)
        raise FrameError(reason, detail)

    def _slow_down(self, header: Header, wait: float) -> None:
        """It is not taken: its records stay with the writer, for so long at least."""
        now = time.monotonic()
        if now - self._slowed.get(header.stream, -SLOW_AGAIN) < SLOW_AGAIN:
            return
        if len(self._slowed) > 10_000:
            self._slowed.clear()
        self._slowed[header.stream] = now
        if route := self._routes.get(header.stream):
            message = wire.encode_control("slow", stream=header.stream, wait=wait)
            self._router.send_multipart([route, message])

    def _ask_to_resume(self, header: Header, last: int) -> None:
        """Go-back-N: name the seq that we hold; once, not for each batch that is behind it."""
        seq, when = self._resumed.get(header.stream, (-1, 0.0))
        if seq != last or time.monotonic() - when > 1.0:
            if len(self._resumed) > 10_000:
                self._resumed.clear()
            self._resumed[header.stream] = (last, time.monotonic())
            self._answer[header.stream] = "resume"
            self._mark_dirty()

    def _reject(self, data_type: str, header: Header, reason: str, detail: str) -> None:
        """Refuse a batch for good: count it, tell its writer, and go on with the next."""
        self._refuse(reason, f"{data_type} batch of {'/'.join(header.run)}: {detail}")
        self.journal.skip(header, time.time())
        self.journal.count(reason, header.run.site, header.count)
        self._answer[header.stream] = "ack"
        self._mark_dirty()
        if route := self._routes.get(header.stream):
            self._replies.append(
                [
                    route,
                    wire.encode_control(
                        "reject",
                        stream=header.stream,
                        seq=header.seq,
                        records=header.count,
                        reason=reason,
                        detail=detail,
                    ),
                ]
            )

    def _quarantine(self, data_type: str, header: Header, frames: list[bytes]) -> None:
        """Two writers under one stream, as when a machine or a spool was copied while in use.

        What comes second is kept among the dead letters: it may be new, or from a stranger.
        """
        self._refuse(
            "stream_conflict",
            f"stream {header.stream.hex()} of {'/'.join(header.run)} "
            f"has two writers: was its machine or spool copied? Its seq {header.seq} is "
            "kept among the dead letters",
        )
        if self.journal.dead_letter_bytes() + len(frames[2]) > self.config.dead_letter_bytes:
            self.journal.count("quarantine_full", header.run.site, header.count)
            return
        self.journal.bury(
            "(quarantine)", data_type, frames[1], frames[2], "stream_conflict", time.time()
        )

    def _account(self, header: Header, last: int, body: bytes) -> None:
        """A writer tells what it had to give up: addressed to us, not to subscribers.

        One such batch may stand for many: a record's step is then the seq in whose place it is.

        Raises:
            FrameError: it does not say what it should.
        """
        losses = wire.decode_body("lost", header, body)
        if header.seq <= last:
            self.duplicates += 1
            self._answer.setdefault(header.stream, "ack")
        elif min(loss.step or header.seq for loss in losses) > last + 1:
            self._ask_to_resume(header, last)
        else:
            self.journal.skip(header, time.time())
            for loss in losses:
                if (loss.step or header.seq) > last:  # or it had arrived before it was given up
                    self.journal.count(loss.key[:64], header.run.site, max(0, loss.value))
            self._answer[header.stream] = "ack"
        self._mark_dirty()

    def _refuse(self, reason: str, detail: str) -> None:
        """Count, and log without flooding."""
        self.refused[reason] += 1
        now = time.monotonic()
        if now - self._logged.get(reason, -LOG_INTERVAL) >= LOG_INTERVAL:
            self._logged[reason] = now
            log.warning("refused (%s, %d so far): %s", reason, self.refused[reason], detail)

    # --- commit -------------------------------------------------------------------------------

    def _mark_dirty(self) -> None:
        """Something waits for a commit: from now on it is due within the commit interval."""
        if not self._commit_due:
            self._commit_due = time.monotonic() + self.config.commit_interval

    def _is_due(self) -> bool:
        return bool(self._commit_due) and time.monotonic() >= self._commit_due

    def _patience(self, timeout: float) -> float:
        now = time.monotonic()
        if self._commit_due:
            timeout = min(timeout, max(0.0, self._commit_due - now))
        return min(timeout, max(0.0, self._housekeeping_due - now))

    def _commit(self) -> None:
        """Make it durable; only then acknowledge, and publish."""
        self._commit_due, self._pending = 0.0, 0
        entries = self.journal.commit()
        for reply in self._replies:
            self._router.send_multipart(reply)
        self._replies.clear()
        self._acknowledge()
        self._publish(entries)

    def _on_disk_error(self, error: sqlite3.OperationalError) -> None:
        """Nothing was committed, so nothing is acknowledged: writers will send it again."""
        self.journal.rollback()
        self.sites = Sites(RunKey(*run) for run in self.journal.open_runs())
        self._answer.clear()
        self._replies.clear()
        self._commit_due, self._pending = 0.0, 0
        if "full" not in str(error):
            raise error  # a failed write or fsync: what the disk holds is unknown
        self._refuse("disk_full", f"{self.journal.path}: {error}; writers keep their records")
        self._paused_until = time.monotonic() + DISK_PAUSE

    def _acknowledge(self) -> None:
        """Once for each stream, cumulatively, to its own writer."""
        for stream, op in self._answer.items():
            if route := self._routes.get(stream):
                known = self.journal.stream(stream)
                seq = known.seq if known else 0
                self._router.send_multipart(
                    [route, wire.encode_control(op, stream=stream, seq=seq)]
                )
        self._answer.clear()

    def _publish(self, entries: list[Entry]) -> None:
        for entry in entries:
            topic = wire.topic(entry.type, entry.site)
            self._xpub.send_multipart([topic, entry.header, entry.body], copy=False)
        if entries:
            self._publish_head(entries[0].offset, [entry.type for entry in entries])

    def _publish_head(self, first: int, types: list[str]) -> None:
        """Which offsets the last commit had, so that subscribers see what they missed."""
        self._head_published = time.monotonic()
        self._xpub.send_multipart(
            [wire.topic("head"), wire.encode_control("head", first=first, types=types)]
        )
        if self._auth.ring is not None:  # for those who may not see all
            pulse = wire.encode_control("pulse", head=self.journal.head)
            self._xpub.send_multipart([wire.topic("pulse"), pulse])

    def _subscriptions(self) -> None:
        """Who wants what; with keys on, nobody gets more than it is granted."""
        for _ in range(200):
            try:
                (message, *_), client = self._receive(self._xpub)
            except zmq.Again:
                return
            if self._auth.ring is None:
                continue  # ZeroMQ has acted on it
            if client is None and message[:1] != b"\1":
                continue  # what ZeroMQ itself says when a connection ends
            if client is None or client.revoked or "subscriber" not in client.roles:
                name = client.name if client else ""
                self.audit.write("refused", name, "no_subscriber", socket="publish")
                continue
            action = {0: zmq.UNSUBSCRIBE, 1: zmq.SUBSCRIBE}.get(message[0] if message else -1)
            if action is None:
                self._refuse("bad_subscription", f"{client.name!r} sends what is none")
                continue
            for topic in grants(client, message[1:]):
                self._xpub.setsockopt(action, topic)

    def _publish_anew(self) -> None:
        """End all subscribers' connections, as somebody may see less from now on.

        ZeroMQ cannot end one alone. The others come back, and ask for what they missed.
        """
        self._auth.shrunk = False
        log.info("a subscriber's rights became less: all of them have to connect anew")
        self._poller.unregister(self._xpub)
        self._xpub.close(linger=0)
        deadline = time.monotonic() + REBIND
        while True:
            try:
                self._xpub, _ = self._bind(zmq.XPUB, self.publish_address)
            except ZMQTrackError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.005)
            else:
                break
        self._poller.register(self._xpub, zmq.POLLIN)

    # --- for those beside it ------------------------------------------------------------------

    def configure(self, config: DaemonConfig, adapters: Sequence[AdapterConfig]) -> None:
        """Another configuration is in force; its addresses, keys and state_dir are the same."""
        self.config = config
        self.limits.configure(config.limits)
        self._control.require(adapters)

    def note_end(self, name: str, detail: str) -> None:
        """An adapter's process has ended by itself."""
        self._control.note_end(name, detail)

    def note_gone(self, name: str) -> None:
        """An adapter that was taken out of the configuration has ended."""
        self._control.note_gone(name)

    def facts(self) -> dict[str, Any]:
        """What a status tells."""
        return self._control.facts()

    def receive_control(self) -> tuple[list[bytes], Client | None] | None:
        try:
            return self._receive(self._router)
        except zmq.Again:
            return None

    def adapters_key(self) -> Key | None:
        """What our own adapters come in with."""
        return self._auth.adapters_key(self.control_address)

    def check_writer(
        self, client: Client, stream: bytes, run: RunKey, *, probing: bool = False
    ) -> None:
        """A writer greets: may it be who it says, and may there be one more?

        One that only looks whether it could write is none more.

        Raises:
            ControlError: no. Its records stay with it.
        """
        try:
            self._check_owner(client, stream, run, self.journal.stream(stream))
            if self.limits.wait(run.site, 0):
                raise ControlError("over_rate", f"site {run.site} asks and sends too often")
            if not probing:
                self.limits.open_stream(stream, run)
        except FrameError as error:
            raise ControlError(error.reason, error.detail) from None
        except Exceeded as error:
            self.audit.write("limit", run.site, error.reason, detail=str(error))
            self._refuse(error.reason, str(error))
            raise ControlError(error.reason, str(error)) from None

    def reply(self, frames: list[bytes], *, after_commit: bool = False) -> None:
        """Answer a client; where the answer promises durability, after the commit."""
        if after_commit:
            self._replies.append(frames)
            self._mark_dirty()
        else:
            self._router.send_multipart(frames)

    def window(self) -> int:
        """Bytes that one writer may have under way: all of them together must fit into memory."""
        writers = len(self._routes)
        return max(WINDOW_MIN, min(WINDOW_MAX, self.config.memory // max(1, writers)))

    def refuse_control(self, error: FrameError) -> None:
        self._refuse(error.reason, error.detail)

    def set_route(self, stream: bytes, identity: bytes) -> None:
        """Acknowledgements of a stream go to whom greeted us for it last."""
        self._routes[stream] = identity
        self._routes.move_to_end(stream)
        if len(self._routes) > 100_000:
            self._routes.popitem(last=False)

    def _bind(self, kind: int, address: str) -> tuple[zmq.Socket[bytes], str]:
        socket = self._context.socket(kind)
        socket.linger = 0
        socket.set(zmq.HEARTBEAT_IVL, 2_000)
        socket.set(zmq.HEARTBEAT_TIMEOUT, 8_000)
        socket.set(zmq.TCP_MAXRT, 8_000)
        socket.set(zmq.BACKLOG, 1024)
        socket.set(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        socket.set(zmq.MAXMSGSIZE, MAX_FRAME[kind])
        if kind == zmq.PULL:
            socket.set(zmq.RCVHWM, INGEST_HWM)
        elif kind == zmq.XPUB:
            socket.set(zmq.SNDHWM, PUBLISH_HWM)
            socket.set(zmq.XPUB_MANUAL, self._auth.ring is not None)
        self._auth.secure(socket, DOMAINS[kind])
        try:
            # "*" is ZeroMQ's word for a free port.
            socket.bind(f"{address[:-2]}:*" if address.endswith(":0") else address)
        except zmq.ZMQError as error:
            raise ZMQTrackError(
                f"cannot listen at {address}: {zmq.strerror(error.errno or 0)}. Is another daemon "
                "running, or the port in use? Set another address in the configuration"
            ) from None
        return socket, socket.get_string(zmq.LAST_ENDPOINT)

    def status(self) -> dict[str, Any]:
        """Facts about the loop, for the status."""
        return {
            "started": self.started,
            "accepting": self._accepting and not self.holding,
            "journal_full": self._full,
            "disk_full": time.monotonic() < self._paused_until + DISK_SHOWN,
            "received_batches": self.received,
            "duplicate_batches": self.duplicates,
            "refused": dict(self.refused),
            "keys": self._auth.admitted if self._auth.ring is not None else None,
            "insecure": self.config.insecure and self._auth.ring is None,
        }


def _keys(header: Header, body: bytes) -> list[str]:
    """The keys in a body; none where it cannot be read, which adapters will say."""
    try:
        return peek.keys(header.codec, body)
    except FrameError:
        return []
