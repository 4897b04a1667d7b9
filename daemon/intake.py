"""What writers send: who may send it, whether it is the next of its stream, and what it is told.

Go-back-N: a batch is journalled if it continues its stream. One that was there before is
acknowledged again, and where some are missing between, the writer is told from where to go on.
"""

from __future__ import annotations

import hashlib
import logging
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable

import msgpack
import zmq

from zmqtrack import peek, wire
from zmqtrack.config import DaemonConfig
from zmqtrack.errors import ControlError, FrameError
from zmqtrack.keyring import Client
from zmqtrack.records import RESERVED, UNCUT, Record, RunKey
from zmqtrack.wire import Header

from . import sockets
from .audit import Audit
from .auth import ANYBODY, Auth
from .journal import DeadLetter, Journal, Stream
from .limits import Exceeded, Limits
from .refusals import Refusals
from .room import Room
from .sites import Beat, Life, Sites

__all__ = ["QUARANTINE", "Intake"]

log = logging.getLogger("zmqtrack.daemon")

#: Where what comes second under a stream and seq is kept, in the place of an adapter's name.
QUARANTINE = "(quarantine)"
#: Bytes that one writer may have under way, at least and at most.
WINDOW_MIN, WINDOW_MAX = 256 << 10, 16 << 20
#: A writer is told to wait at most so often (seconds).
SLOW_AGAIN = 0.25
#: And waits so long (seconds) while there is no room.
HOLD = 1.0
#: Who was not heard of for so long (seconds) has nothing under way.
IDLE = 60.0
#: It is told where to go on at most so often (seconds), while it has not.
RESUME_AGAIN = 1.0
#: Streams of which is remembered when that was; and which writers are known.
REMEMBERED, ROUTES = 10_000, 100_000
#: The tag that tells of a run that went without a word what is known of its end.
END_TAG = "zmqtrack.end"
#: The log tells of writers that are mixed at most so often (seconds).
TELL_AGAIN = 1.0
#: What to do about them.
APART = (
    "Give each its own site (ZMQTRACK_SITE, or site=); if they are one job, the same ZMQTRACK_JOB"
)
APART_WITH_KEYS = (
    "Give each its own run (ZMQTRACK_RUN), or a site with a key of its own (zmqtrack keys new "
    "SITE); if they are one job, the same ZMQTRACK_JOB"
)


class Intake:
    """Binds the ingest socket, a PULL. What it has to tell writers goes to ``send``.

    Raises:
        ZMQTrackError: the address cannot be bound.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        auth: Auth,
        config: DaemonConfig,
        journal: Journal,
        audit: Audit,
        refusals: Refusals,
        room: Room,
        send: Callable[[list[bytes]], object],
    ) -> None:
        assert config.ingest is not None
        self.socket, self.address = sockets.bind(context, auth, zmq.PULL, config.ingest)
        open_runs = [RunKey(*run) for run in journal.open_runs()]
        self.limits, self.sites = Limits(config.limits, open_runs), Sites(open_runs)
        self.received = self.duplicates = 0
        self._auth = auth
        self._config = config
        self._journal = journal
        self._audit, self._refusals, self._room = audit, refusals, room
        self._send = send
        #: To whom what concerns a stream goes, and when it was heard of; the latest come last.
        self._routes: OrderedDict[bytes, tuple[bytes, float]] = OrderedDict()
        self._answers: dict[bytes, str] = {}  # streams to be told their seq after the commit
        self._promised: list[list[bytes]] = []  # whole messages that wait for it too
        self._resumed: dict[bytes, tuple[int, float]] = {}
        self._slowed: dict[bytes, float] = {}  # streams that were told to wait, and when
        self._told = -TELL_AGAIN  # when the log told last of writers that are mixed

    def configure(self, config: DaemonConfig) -> None:
        """Another configuration is in force."""
        self._config = config
        self.limits.configure(config.limits)

    def serve(self, limit: int) -> None:
        """Take up to ``limit`` batches that have come in. They count after the commit."""
        for _ in range(limit):
            try:
                frames, client = self._auth.receive(self.socket)
            except zmq.Again:
                return
            try:
                if client is None or "writer" not in client.roles or client.revoked:
                    name = client.name if client else ""
                    self._audit.write("refused", name, "revoked", socket="ingest")
                    raise FrameError("revoked", f"a batch of {name or 'a key that is unknown'}")
                self._accept(frames, client)
            except FrameError as error:
                self._refusals.note(error.reason, error.detail)

    def _accept(self, frames: list[bytes], client: Client = ANYBODY) -> None:
        """Journal one batch, if it is the next of its stream.

        Raises:
            FrameError: it is no batch, or not one that ``client`` may send.
        """
        if len(frames) != 3:
            raise FrameError("bad_frames", f"{len(frames)} frames; a batch has 3")
        data_type, body = wire.decode_topic(frames[0]), frames[2]
        if data_type in RESERVED - {"lost", "probe"}:
            raise FrameError("bad_type", f"{data_type!r} is the daemon's own word")
        header = wire.decode_header(frames[1])
        if header.in_pieces and data_type in UNCUT:
            raise FrameError("bad_type", f"a {data_type} in pieces")
        self.received += 1
        known = self._journal.stream(header.stream)
        last = known.seq if known else 0
        self._check_owner(client, header.stream, header.run, known)
        if data_type == "probe":
            self._answer_probe(header, known)
        elif known is None and not self._may_begin(header.stream, header.run):
            pass
        elif self._room.none:
            # Taken off the socket and dropped: there it would wait in our memory.
            told = f"site {header.run.site} is told to wait, and keeps its records"
            self._refusals.note("no_room", told)
            self._slow_down(header, HOLD)
        elif wait := self.limits.wait(header.run.site, len(body)):
            self._audit.write("limit", header.run.site, "rate")
            self._refusals.note("over_rate", f"site {header.run.site} is told to wait")
            self._slow_down(header, wait)
        elif data_type == "lost":
            self._account(header, last, body)
        elif header.seq <= last:  # sent again: its acknowledgement was lost
            self.duplicates += 1
            held = self._journal.check(header.stream, header.seq)
            if held is not None and held != zlib.crc32(body):
                self._quarantine(data_type, header, frames)
            self._answers.setdefault(header.stream, "ack")
        elif header.seq > last + 1:
            self._ask_to_resume(header, last)
        elif known and known.run != header.run:
            self._reject(data_type, header, "run_key_changed", f"the stream began as {known.run}")
        elif len(body) > self._config.max_body:
            detail = f"{len(body)} bytes; at most {self._config.max_body}"
            self._reject(data_type, header, "too_large", detail)
        elif excess := self._excess(data_type, header, body):
            self._reject(data_type, header, excess.reason, str(excess))
        else:
            self._journal.append(data_type, header, body, time.time())
            self._note_life(data_type, header, body)
            self._answers[header.stream] = "ack"

    # --- who may ------------------------------------------------------------------------------

    def check_writer(
        self, client: Client, stream: bytes, run: RunKey, *, probing: bool = False
    ) -> None:
        """A writer greets: may it be who it says, and may there be one more?

        One that only looks whether it could write is none more.

        Raises:
            ControlError: no. Its records stay with it.
        """
        try:
            self._check_owner(client, stream, run, self._journal.stream(stream))
            if self.limits.wait(run.site, 0):
                raise ControlError("over_rate", f"site {run.site} asks and sends too often")
            if not probing:
                self.limits.open_stream(stream, run)
        except FrameError as error:
            raise ControlError(error.reason, error.detail) from None
        except Exceeded as error:
            self._note_limit(run, error)
            self._refusals.note(error.reason, str(error))
            raise ControlError(error.reason, str(error)) from None

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
        self._audit.write("rejected", client.name, reason, detail=detail)
        raise FrameError(reason, detail)

    def _may_begin(self, stream: bytes, run: RunKey) -> bool:
        """A stream that is new to us, and has not greeted: its site may have too many.

        Nothing is kept of it then, and it is not acknowledged: a greeting will say why.
        """
        try:
            self.limits.open_stream(stream, run)
        except Exceeded as error:
            self._note_limit(run, error)
            self._refusals.note(error.reason, str(error))
            return False
        return True

    def _excess(self, data_type: str, header: Header, body: bytes) -> Exceeded | None:
        """Why a batch is more than its site may send, if it is."""
        try:
            self.limits.check(data_type, header, body)
        except Exceeded as error:
            self._note_limit(header.run, error)
            return error
        except FrameError:
            pass  # adapters put it among the dead letters, for a person to look at
        return None

    def _note_limit(self, run: RunKey, error: Exceeded) -> None:
        self._audit.write("limit", run.site, error.reason, detail=str(error)[:300])

    # --- what it is told ----------------------------------------------------------------------

    @property
    def window(self) -> int:
        """Bytes that one writer may have under way: all of them together must fit into memory."""
        before = time.monotonic() - max(IDLE, self._config.stale_after)
        while self._routes and next(iter(self._routes.values()))[1] < before:
            self._routes.popitem(last=False)  # should it come back, it greets
        writers = len(self._routes)
        return max(WINDOW_MIN, min(WINDOW_MAX, self._config.memory // max(1, writers)))

    def set_route(self, stream: bytes, identity: bytes) -> None:
        """Acknowledgements of a stream go to whom greeted us, or beat, for it last."""
        self._routes[stream] = identity, time.monotonic()
        self._routes.move_to_end(stream)
        if len(self._routes) > ROUTES:
            self._routes.popitem(last=False)

    def _tell(self, stream: bytes, message: bytes) -> None:
        if route := self._routes.get(stream):
            self.set_route(stream, route[0])
            self._send([route[0], message])

    @property
    def owes(self) -> bool:
        """Some writer waits for a word that only a commit makes true."""
        return bool(self._answers or self._promised)

    def acknowledge(self) -> None:
        """After a commit: once for each stream, cumulatively, to its own writer."""
        for message in self._promised:
            self._send(message)
        self._promised.clear()
        for stream, op in self._answers.items():
            known = self._journal.stream(stream)
            seq = known.seq if known else 0
            self._tell(stream, wire.encode_control(op, stream=stream, seq=seq))
        self._answers.clear()

    def roll_back(self) -> None:
        """Nothing was committed, so nothing is acknowledged: writers will send it again."""
        self.sites.agree(RunKey(*run) for run in self._journal.open_runs())
        self._answers.clear()
        self._promised.clear()

    def _slow_down(self, header: Header, wait: float) -> None:
        """It is not taken: its records stay with the writer, for so long at least."""
        now = time.monotonic()
        if now - self._slowed.get(header.stream, -SLOW_AGAIN) < SLOW_AGAIN:
            return
        if len(self._slowed) > REMEMBERED:
            self._slowed.clear()
        self._slowed[header.stream] = now
        self._tell(header.stream, wire.encode_control("slow", stream=header.stream, wait=wait))

    def _ask_to_resume(self, header: Header, last: int) -> None:
        """Name the seq that we hold; once, not for each batch that is behind it."""
        seq, when = self._resumed.get(header.stream, (-1, 0.0))
        if seq != last or time.monotonic() - when > RESUME_AGAIN:
            if len(self._resumed) > REMEMBERED:
                self._resumed.clear()
            self._resumed[header.stream] = (last, time.monotonic())
            self._answers[header.stream] = "resume"

    def _answer_probe(self, header: Header, known: Stream | None) -> None:
        """Somebody looks whether a batch arrives, and is acknowledged. Nothing of it is kept.

        Raises:
            FrameError: it is under a stream that has batches.
        """
        if known is not None:
            raise FrameError("bad_type", f"a probe under stream {header.stream.hex()}, in use")
        wait = self.limits.wait(header.run.site, 0)
        if wait or self._room.none:
            self._slow_down(header, wait or HOLD)
        elif route := self._routes.pop(header.stream, None):
            message = wire.encode_control("ack", stream=header.stream, seq=header.seq)
            self._promised.append([route[0], message])

    # --- what is not journalled ---------------------------------------------------------------

    def _reject(self, data_type: str, header: Header, reason: str, detail: str) -> None:
        """Refuse a batch for good: count it, tell its writer, and go on with the next."""
        self._refusals.note(reason, f"{data_type} batch of {'/'.join(header.run)}: {detail}")
        self._journal.skip(header, time.time())
        self._journal.count(reason, header.run.site, header.count)
        self._answers[header.stream] = "ack"
        if route := self._routes.get(header.stream):
            message = wire.encode_control(
                "reject",
                stream=header.stream,
                seq=header.seq,
                records=header.count,
                reason=reason,
                detail=detail,
            )
            self._promised.append([route[0], message])

    def _quarantine(self, data_type: str, header: Header, frames: list[bytes]) -> None:
        """Two writers under one stream, as when a machine or a spool was copied while in use.

        What comes second is kept among the dead letters: it may be new, or from a stranger.
        """
        self._refusals.note(
            "stream_conflict",
            f"stream {header.stream.hex()} of {'/'.join(header.run)} "
            f"has two writers: was its machine or spool copied? Its seq {header.seq} is "
            "kept among the dead letters",
        )
        if self._journal.dead_letter_bytes() + len(frames[2]) > self._config.dead_letter_bytes:
            self._journal.count("quarantine_full", header.run.site, header.count)
            return
        self._journal.bury(
            QUARANTINE, data_type, frames[1], frames[2], "stream_conflict", time.time()
        )

    def release(self, letter: DeadLetter) -> None:
        """A person has looked at a batch in quarantine, and wants it: all adapters get it."""
        header = wire.decode_header(letter.header)
        self._append_own(letter.type, header.stream + QUARANTINE.encode(), header, letter.body)

    def _account(self, header: Header, last: int, body: bytes) -> None:
        """A writer tells what it had to give up: addressed to us, not to subscribers.

        One such batch may stand for many: a record's step is then the seq in whose place it is.

        Raises:
            FrameError: it does not say what it should.
        """
        losses = wire.decode_body("lost", header, body)
        if header.seq <= last:
            self.duplicates += 1
            self._answers.setdefault(header.stream, "ack")
        elif min(loss.step or header.seq for loss in losses) > last + 1:
            self._ask_to_resume(header, last)
        else:
            self._journal.skip(header, time.time())
            for loss in losses:
                if (loss.step or header.seq) > last:  # or it had arrived before it was given up
                    self._journal.count(loss.key[:64], header.run.site, max(0, loss.value))
            self._answers[header.stream] = "ack"

    # --- who is alive -------------------------------------------------------------------------

    def _note_life(self, data_type: str, header: Header, body: bytes) -> None:
        """A batch was taken: its run is open, or has ended with it."""
        run = header.run
        if data_type == "run" and "end" in _keys(header, body):
            self.sites.end(run, header.stream)
            self.limits.end_run(run, header.stream)
            self._journal.set_run(run, "ended")
        elif self.sites.life(run) is None and self._comes_too_late(header):
            pass  # nobody would end that run again
        elif self.sites.hear(run):
            self._journal.set_run(run, "open")

    def _comes_too_late(self, header: Header) -> bool:
        """What a process that crashed has left may come after the end that another gave its run."""
        return self._journal.run_state(
            header.run
        ) == "ended" and not self.sites.beats_since_the_end(header.run, header.stream)

    def note_beat(
        self, client: Client, identity: bytes, stream: bytes, run: RunKey, beat: Beat
    ) -> None:
        """A writer says that it lives: its run is open, unless that very writer has ended it.

        A run that nothing was journalled of is not opened.

        Raises:
            FrameError: it may not speak for that run.
        """
        known = self._journal.stream(stream)
        self._check_owner(client, stream, run, known)
        if (known and known.run != run) or self.limits.wait(run.site, 0):
            return
        # Where it has greeted before we were started again, it has no reason to do so anew.
        if stream in self._routes:
            self.limits.hear(stream, run)
        elif known is None or not self._may_begin(stream, run):
            return
        self.set_route(stream, identity)
        if self.sites.life(run) is not None:
            self.sites.hear(run)
        elif not self._room.none and not self.sites.is_over_for(stream):
            self._open_again(run, clock=beat.clock)
        life = self.sites.beat(run, stream, beat)
        if life.told < len(life.mixed) and not self._room.none:
            self._tell_of_each_other(run, life)

    def _tell_of_each_other(self, run: RunKey, life: Life) -> None:
        """Writers of one run that do not belong together: somebody forgot to name a site."""
        mixed = life.mixed
        life.told = len(mixed)
        self._journal.set_writers(
            run, msgpack.packb([{"host": each.host, "pid": each.pid} for each in mixed])
        )
        names = [f"process {each.pid} on {each.host[:64]}" for each in mixed]
        detail = (
            f"{', '.join(names[:-1])} and {names[-1]} write at the same time to run "
            f"{'/'.join(run)}, and belong to different jobs: their points are mixed. "
            f"{APART_WITH_KEYS if self._config.keys else APART}"
        )
        if time.monotonic() - self._told >= TELL_AGAIN:  # status names all of them
            self._told = time.monotonic()
            log.warning("%s", detail)
        for family in mixed:
            message = wire.encode_control(
                "notice", stream=family.stream, reason="mixed_writers", detail=detail
            )
            self._tell(family.stream, message)

    def _open_again(self, run: RunKey, clock: float) -> None:
        """A run whose end was told turns out to have a writer that lives: trackers learn it too.

        By a start without facts, a moment after the end that we gave it.
        """
        state = self._journal.run_state(run)
        if state in ("killed", "left"):
            after = max(clock, self.sites.last_clock(run)) + 0.001
            self._say_of(run, "run", Record("start", {}, None, after))
            self._say_of(run, "tag", Record(END_TAG, "none: it is back", None, after))
        if state in ("killed", "left", "ended"):
            self._journal.set_run(run, "open")
            self.sites.hear(run)

    def end_the_silent(self, lease: float) -> None:
        """Runs that nothing was heard of for ``lease`` seconds end, until they are back.

        Trackers learn it by batches, of a stream that is ours, one for each run key. It ends at
        its writer's own time, so that what that logs later lies behind the end.
        """
        for run, life in self.sites.silent(lease):
            waiting = life.last_waiting
            state = "left" if waiting == 0 else "killed"
            log.warning(
                "run %s was silent for %g s: it ends as %s, until it is back; %s",
                "/".join(run), lease, state, _what_waits(waiting),
            )  # fmt: skip
            life.clock = life.clock or time.time()
            told = f"{state}: silent for {lease:g} s, without saying how it ended; "
            told += _what_waits(waiting)
            self._say_of(run, "tag", Record(END_TAG, told, None, life.clock))
            self._say_of(run, "run", Record("end", state, None, life.clock))
            self._journal.set_run(run, state)
            self.sites.end(run)
            self.limits.end_run(run)

    def _say_of(self, run: RunKey, data_type: str, record: Record) -> None:
        """Journal what we ourselves have to say of a run."""
        body = wire.encode_body([record])
        self._append_own(data_type, _name(run), Header(b"", 0, run, 1), body, own=True)

    def own_stream(self, run: RunKey) -> bytes:
        """That of what we ourselves say of a run."""
        return self._own_stream(_name(run))

    def _own_stream(self, name: bytes) -> bytes:
        return hashlib.sha256(name + self._journal.epoch).digest()[:16]

    def _append_own(
        self, data_type: str, name: bytes, header: Header, body: bytes, *, own: bool = False
    ) -> None:
        """Journal a batch that no writer sends, as the next of a stream that is ours."""
        stream = self._own_stream(name)
        known = self._journal.stream(stream)
        header = header._replace(stream=stream, seq=(known.seq if known else 0) + 1)
        self._journal.append(data_type, header, body, time.time(), own=own)


def _what_waits(records: int | None) -> str:
    """At the writers of a run that went without a word, as far as that is known."""
    if records is None:
        return "what it had not sent yet is not known"
    if records:
        return f"{records} records waited at it when it was last heard of"
    return "nothing waited at it when it was last heard of: it may have succeeded, or not"


def _name(run: RunKey) -> bytes:
    return "\0".join(run).encode()


def _keys(header: Header, body: bytes) -> list[str]:
    """The keys in a body; none where it cannot be read, which adapters will say."""
    try:
        return peek.keys(header.codec, body)
    except FrameError:
        return []
