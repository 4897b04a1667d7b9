"""The daemon's own handling of what comes in, driven by bytes: ``fuzz_wire.py control``.

A real broker, control and journal (in a folder of its own) with stand-ins for the sockets alone.
An input is up to :data:`MESSAGES` messages, each a byte for its kind, two for a length, and the
frame: a control request with canned further frames, or the header and the body of a batch. After
each input the daemon is what it was before the first, so that an input does the same each time.

What must hold: nothing is raised; each request is answered, or waits as a drain; each batch is
taken, answered or counted as refused; and a client can decode every answer.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import logging
import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import msgpack
import zmq
from zmqtrack.daemon.broker import Broker
from zmqtrack.daemon.control import Control
from zmqtrack.daemon.journal import Cursor, Journal
from zmqtrack.daemon.limits import Limits

from zmqtrack import wire
from zmqtrack.config import AdapterConfig, DaemonConfig
from zmqtrack.errors import FrameError
from zmqtrack.records import Record, RunKey

#: Most messages in one input.
MESSAGES = 4

RUN = RunKey("e", "r", "s")
STREAM = b"s" * 16
BODY = wire.encode_body([Record("k", 1.0, 1, 2.0)])
BEAT: dict[str, Any] = {
    "op": "beat", "run": list(RUN), "waiting": 1, "time": 3.0,
    "host": "h", "pid": 1, "family": [b"f" * 8],
}  # fmt: skip
HEADER = wire.encode_header(wire.Header(STREAM, 1, RUN, 1, 0, 1, b"e" * 16))
#: What follows a control request, as far as its kind says: a note, then dead letters.
FRAMES = [b"note", b"reason", HEADER, BODY, b"\xff", b"not a header", b"not a body"]
TOPICS = [b"metric/", b"lost/", b"text/", b"image/", b"artifact/", b"own/", b"head/", b"pulse/"]
#: Everything that the journal keeps.
TABLES = ("meta", "batch", "stream", "cursor", "dead_letter", "counter", "run")

#: What came of the inputs until now; the last one's is the reason, or the op of its last answer.
outcomes: Counter[str] = Counter()


class _Socket:
    """Stands in for a bound socket: ``inbox`` is what came in, ``outbox`` what was sent."""

    def __init__(self) -> None:
        self.inbox: collections.deque[list[bytes]] = collections.deque()
        self.outbox: list[list[bytes]] = []

    def recv_multipart(self, flags: int = 0, **options: Any) -> list[bytes]:
        if not self.inbox:
            raise zmq.Again
        return self.inbox.popleft()

    def send_multipart(self, frames: list[bytes], flags: int = 0, **options: Any) -> None:
        assert all(isinstance(frame, bytes) for frame in frames)
        self.outbox.append(frames)


ADAPTERS = [AdapterConfig(type="tensorboard", name="tb")]


def _bind(context: Any, auth: Any, kind: int, address: str) -> Any:
    return _Socket(), address


class Daemon:
    """The one place that knows how a daemon is put together."""

    def __init__(self, folder: Path) -> None:
        config = DaemonConfig.model_validate(
            {"control": "tcp://127.0.0.1:1", "ingest": "tcp://127.0.0.1:2",
             "publish": "tcp://127.0.0.1:3", "state_dir": folder}
        )  # fmt: skip
        self.journal = Journal(folder)
        self._db = self.journal._db
        self._db.execute("PRAGMA synchronous=OFF")
        for seq in (1, 2, 3):
            self.journal.append("metric", wire.Header(STREAM, seq, RUN, 1), BODY, 1.0)
        self.journal.set_cursor("tb", Cursor(1, 1, b"note", {"delivered": 1}, 1.0, b"i" * 8))
        self.journal.bury("tb", "metric", HEADER, BODY, "reason", 1.0)
        self.journal.commit()
        self._known = self.journal.head, self.journal.batches, self.journal.bytes
        self._db.execute("ATTACH ':memory:' AS before")
        for table in TABLES:
            self._db.execute(f"CREATE TABLE before.{table} AS SELECT * FROM main.{table}")
        self._changes = self._db.total_changes
        with mock.patch("zmqtrack.daemon.sockets.bind", _bind):
            self.broker = Broker(config, self.journal, ADAPTERS)
        self.router: Any = self.broker._router
        self.pull: Any = self.broker.intake.socket
        self.sockets: list[Any] = [self.router, self.pull, self.broker.publisher.socket]

    def reset(self) -> None:
        broker, journal = self.broker, self.journal
        if self._db.total_changes != self._changes or self._db.in_transaction:
            journal.rollback()
            self._db.execute("BEGIN")
            self._db.execute("DELETE FROM main.sqlite_sequence")  # ids begin anew
            for table in TABLES:
                self._db.execute(f"DELETE FROM main.{table}")
                self._db.execute(f"INSERT INTO main.{table} SELECT * FROM before.{table}")
            self._db.execute("COMMIT")
            self._changes = self._db.total_changes
        journal._streams.clear()
        journal._changed.clear()
        journal._appended.clear()
        journal.head, journal.batches, journal.bytes = self._known
        intake = broker.intake
        for state in (
            intake._routes, intake._answers, intake._promised, intake._resumed, intake._slowed,
            broker._replies, broker.refusals.counts,
        ):  # fmt: skip
            state.clear()
        broker._commit_due, broker.room.journal_full, broker.room._paused_until = 0.0, False, 0.0
        intake.received = intake.duplicates = 0
        intake.limits = Limits(broker.config.limits, ())
        broker._control = Control(broker, ADAPTERS)
        for socket in self.sockets:
            socket.inbox.clear()
            socket.outbox.clear()

    def close(self) -> None:
        self.reset()
        self._db.execute("DETACH before")
        self.journal.close()
        self.broker._context.destroy(linger=0)

    def feed(self, data: bytes) -> str:
        """All messages of an input; returns what came of the last."""
        requests, beats, batches = self._fill(data)
        broker = self.broker
        broker._turn({self.pull: zmq.POLLIN, self.router: zmq.POLLIN})
        broker._commit()
        refusals = broker.refusals.counts
        refused = sum(refusals.values())
        answers = [wire.decode_control(frames[1]) for frames in self.router.outbox]
        waiting = len(broker._control._drains)
        to_requests = sum("stream" not in answer or "id" in answer for answer in answers)
        assert len(answers) + waiting >= requests - beats, (requests, answers)
        assert to_requests <= requests
        assert broker.intake.received + refused >= batches
        if not batches:  # a request is at fault itself, or nothing is
            assert refusals.keys() <= {"bad_control", "bad_version"}, refusals
        if refusals:
            return next(reversed(refusals))
        return str(answers[-1]["op"]) if answers else "unanswered"

    def _fill(self, data: bytes) -> tuple[int, int, int]:
        """How many requests, how many of them beats, which need no answer, and how many batches."""
        requests = beats = batches = 0
        for _ in range(MESSAGES):
            if len(data) < 3:
                break
            kind, (frame, data) = data[0], _cut(data[1:])
            if kind & 1:
                body, data = _cut(data)
                self.pull.inbox.append([TOPICS[(kind >> 1) % len(TOPICS)], frame, body])
                batches += 1
            else:
                # Of a client each: one that repeats itself is answered once.
                client = b"client %d" % requests
                self.router.inbox.append([client, frame, *FRAMES[: kind >> 1 & 7]])
                requests += 1
                with contextlib.suppress(FrameError):
                    beats += wire.decode_control(frame)["op"] == "beat"
        return requests, beats, batches


def _cut(data: bytes) -> tuple[bytes, bytes]:
    """What a length of two bytes stands before, and the rest."""
    size = int.from_bytes(data[:2], "big")
    return data[2 : 2 + size], data[2 + size :]


_daemons: list[tuple[Daemon, Path]] = []


def run(data: bytes) -> str:
    """One input; returns what came of it, and counts that."""
    if not _daemons:
        logging.getLogger("zmqtrack.daemon").setLevel(logging.CRITICAL)
        folder = Path(tempfile.mkdtemp(prefix="zmqtrack-fuzz-"))
        _daemons.append((Daemon(folder), folder))
    daemon = _daemons[0][0]
    daemon.reset()
    outcome = daemon.feed(data)
    outcomes[outcome] += 1
    return outcome


@atexit.register
def close() -> None:
    """End the daemon, if there is one, and remove its folder."""
    while _daemons:
        daemon, folder = _daemons.pop()
        daemon.close()
        shutil.rmtree(folder, ignore_errors=True)
        logging.getLogger("zmqtrack.daemon").setLevel(logging.NOTSET)


# --- what to begin with ------------------------------------------------------------------


def request(further: int = 0, **fields: Any) -> bytes:
    """A control request with so many of :data:`FRAMES` behind it."""
    frame: bytes = msgpack.packb({"v": wire.VERSION, "id": 1, **fields})
    return bytes([further << 1]) + len(frame).to_bytes(2, "big") + frame


def batch(data_type: str, seq: int, body: bytes = BODY, stream: bytes = STREAM) -> bytes:
    frames = wire.encode_header(wire.Header(stream, seq, RUN, 1)), body
    kind = TOPICS.index(wire.topic(data_type)) << 1 | 1
    return bytes([kind]) + b"".join(len(f).to_bytes(2, "big") + f for f in frames)


def hostile() -> Iterator[bytes]:
    """Requests of which each once ended the daemon, or left behind what did harm later."""
    greeting: dict[str, Any] = {"op": "hello", "role": "writer", "run": list(RUN), "acked": 0}
    commit = {"op": "commit", "name": "tb", "session": 1, "offset": 2, "counters": {}, "dead": []}
    beat = BEAT | {"stream": STREAM}
    inf, huge = math.inf, "9" * 30
    for odd in (inf, math.nan, huge, -1, [1], {"a": 1}, None, 2**63 - 1):
        yield request(**greeting | {"acked": odd}, stream=b"t" * 16, last=3)
        yield request(**greeting, stream=STREAM, last=odd)
        yield request(op="replay", after=odd)
        yield request(op="replay", after=0, max_bytes=odd)
        yield request(op="replay", after=0, types=odd)
        yield request(op="replay", after=0, types=[odd])
        yield request(op="subscribe", name="tb", types=odd) + request(op="status")
        yield request(op="subscribe", name=odd)
        yield request(op="dlq", name=odd)
        yield request(op="dlq_fetch", ids=odd)
        for op in ("dlq_fetch", "dlq_retry", "dlq_drop"):
            yield request(op=op, ids=[odd])
        yield request(1, **commit | {"counters": odd})
        yield request(1, **commit | {"counters": {"a": odd}})
        yield request(1, **commit | {"offset": odd})
        yield request(1, **commit | {"session": odd})
        yield request(1, **commit, retried=odd)
        yield request(1, **commit, retried=[odd])
        for part in ("time", "waiting", "host", "pid", "family", "run", "stream"):
            yield request(**beat | {part: odd}) + request(op="status")
        yield request(op="forget", name=odd)
        yield request(op="report", name="tb", session=1, retries=odd) + request(op="status")
        yield request(4, **commit | {"dead": odd})
        yield request(4, **commit | {"dead": [["metric", odd]]}) + request(op="dlq")
        yield request(4, **commit | {"dead": [[odd, 7]]}) + request(op="dlq")
    letters = commit | {"dead": [["metric", 0], ["metric", 1]]}  # the second is no batch
    yield request(7, **letters) + request(op="dlq") + request(op="dlq_drop", ids=[1, 2, 3])
    deep: Any = 1
    for _ in range(31):
        deep = [deep]
    for op in ("unknown", "status", "hello", "drain"):
        yield request(op=op, id=deep)
    yield request(op="subscribe", name="tb", types=deep) + request(op="status")
    yield request(op="dlq_fetch", ids=["9" * 5000]) + request(op="x" * 5000)
    lost = wire.encode_body([Record("a", 2**48, None, 1.0)])
    yield batch("lost", 4, lost) + batch("lost", 2**63 - 1, lost) + request(op="status")


def seeds() -> Iterator[bytes]:
    """Each request as it should be, and batches that are and are not the next; and the hostile."""
    yield from hostile()
    greeting: dict[str, Any] = {"op": "hello", "role": "writer", "run": list(RUN)}
    of: dict[str, Any] = {"name": "tb", "session": 1, "state": "running", "detail": ""}
    commit = of | {"op": "commit", "offset": 2, "counters": {"delivered": 2}}
    yield request(op="hello")
    yield request(**greeting, stream=STREAM, acked=0, last=3)
    yield request(**greeting, stream=b"t" * 16, acked=5, last=7)
    yield request(op="subscribe", name="tb", type="jsonl", types=["metric"], start="now")
    yield request(op="subscribe", name="new", type="jsonl", types=None, start="beginning")
    yield request(op="replay", after=0, types=["metric"], max_bytes=1000)
    yield request(1, **commit, dead=[])
    yield request(4, **commit, dead=[["metric", 0]], retried=[1])
    yield request(**of, op="report")
    for stream in (STREAM, b"t" * 16):
        yield request(**greeting, stream=stream, acked=0, last=3) + request(**BEAT, stream=stream)
        yield request(**BEAT, stream=stream) + request(op="status")
    yield request(op="forget", name="tb") + request(op="forget", name="gone")
    for op in ("status", "drain", "dlq", "unknown"):
        yield request(op=op)
    yield request(op="dlq", name="tb")
    for op in ("dlq_fetch", "dlq_retry", "dlq_drop"):
        yield request(op=op, ids=[1])
    yield request(op="drain") + request(1, **commit | {"offset": 3}, dead=[])
    lost = wire.encode_body([Record("spool_full", 3, 4, 2.0)])
    yield request(**greeting, stream=STREAM, acked=0, last=3) + batch("metric", 4)
    yield batch("metric", 4) + batch("metric", 4) + batch("metric", 9)
    yield batch("lost", 4, lost) + batch("own", 5, b"\xc1") + batch("text", 5, b"\xc1")
    text = wire.encode_body([Record("k", "text", 1, 2.0)])
    yield batch("text", 1, text, b"t" * 16) + batch("head", 1)
    piece = wire.encode_body([Record("k", [0, 2, b"ab"], 1, 2.0)])
    yield batch("artifact", 4, piece) + batch(
        "image", 5, wire.encode_body([Record("k", b"", 1, 2)])
    )
