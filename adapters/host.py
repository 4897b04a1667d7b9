"""One adapter's process: subscribe, fill gaps, deliver, commit.

The publish socket is the fast path only. After each journal commit the daemon publishes the
batches, then a ``head`` message that names the offsets of that commit and their data types;
it repeats an empty one as a heartbeat. The host knows therefore what it should have, and asks
the control socket for the pages between when it has not: after a start, after a drop, and
when it has been slow.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import zmq

from zmqtrack import wire
from zmqtrack.config import AdapterConfig
from zmqtrack.control import Connection, ControlClient, resolve
from zmqtrack.errors import ControlError, FrameError
from zmqtrack.keys import Key
from zmqtrack.records import Record, wire_key
from zmqtrack.wire import Batch

from . import loader
from .artifacts import Assembler, load
from .base import Adapter, Blocked, Context, Refused, Unavailable
from .secrets import mask

__all__ = ["Host", "Superseded"]

#: Most that is gathered for one delivery.
GATHER_BATCHES = 256
GATHER_BYTES = 16 << 20

#: First wait before another attempt, in seconds, and the first while blocked. They double up
#: to the configured ``retry_max``.
RETRY_FIRST = 0.5
BLOCKED_FIRST = 5.0
#: A trouble that only words itself anew is logged at most so often (seconds).
SAY_AGAIN = 60.0

#: Longest wait for something to come, in seconds: then it looks whether it shall stop.
IDLE = 0.2
#: The cursor is reported at least so often (seconds), so that the daemon sees us alive.
REPORT = 5.0
#: Dead letters that are tried again between two commits.
RETRIED = 32
#: Bytes of large values that are held at a time, and one more.
LOADED_BYTES = 64 << 20
#: What was refused and had come in pieces is kept among the dead letters in pieces of this size.
PIECE = 4 << 20


class Superseded(Exception):
    """Another process has subscribed under this adapter's name: this one must end."""


class _Letter(NamedTuple):
    """A record that was refused, on its way to the dead letters with the cursor."""

    offset: int
    type: str
    place: int  # of the first record, in its batch
    reason: str
    header: bytes
    body: bytes


class Host:
    """Runs one adapter until :meth:`stop`; then delivers what is left and returns."""

    def __init__(
        self, config: AdapterConfig, address: str, state_dir: Path, key: Key | None = None
    ) -> None:
        assert config.name is not None
        cls = loader.load(config.type)
        self._config = config
        self._name = config.name
        self._address, self._key = address, key
        self._log = logging.getLogger(f"zmqtrack.adapters.{config.name}")
        state_dir.mkdir(parents=True, exist_ok=True)
        self._context = Context(config.name, state_dir, self._log, {})
        self._adapter: Adapter = cls(loader.options(config, cls), self._context)
        self._assembler = Assembler(self._context)
        self._types = self._wanted_types()
        self._stop = threading.Event()
        self._stop_by: float | None = None
        self._control = ControlClient(address, key)
        self._publish: Connection
        self._session = 0
        self._position = 0  # offset up to which all that we want has been gathered
        self._head = 0  # the journal's, as last heard
        self._live: dict[int, tuple[str, bytes, bytes]] = {}  # published, not yet confirmed whole
        self._gathered: list[tuple[str, bytes, bytes]] = []
        self._gathered_bytes = 0
        self._loaded = 0  # bytes of large values that are to be delivered
        self._dead: list[_Letter] = []
        self._retried: list[int] = []  # dead letters that need no longer be kept
        self._state, self._detail = "starting", ""
        self._reported = self._said = 0.0
        self._bugs: set[tuple[object, ...]] = set()  # exceptions whose traceback was logged

    def _wanted_types(self) -> frozenset[str] | None:
        """The data types to ask for; None: all."""
        if self._config.topics is not None:
            return frozenset(self._config.topics)
        return self._adapter.types

    def stop(self) -> None:
        """Ask :meth:`run` to deliver what is journalled by now, and to return."""
        self._stop.set()

    def run(self) -> None:
        """Deliver until stopped.

        Raises:
            Superseded: another process has taken over this adapter's name.
        """
        note = self._subscribe()
        if not self._attempt(lambda: self._open(note)):
            return
        self._state = "running"
        self._report()  # at once: the first delivery may take long
        self._log.info("delivering from offset %d", self._position + 1)
        stopping = False
        while True:
            if not stopping and self._stop.is_set():
                stopping = True
                self._report()  # the answer says what is journalled by now
            self._gather()
            if not self._deliver():
                break
            if stopping and self._position >= self._head:
                break
        self._adapter.close()
        self._log.info("stopped at offset %d", self._committed)
        self._state, self._detail = "away", "it was stopped"
        self._report()

    def _open(self, note: bytes) -> None:
        try:
            self._adapter.open(note)
        except Refused as error:  # not a record's fault: a person must act
            raise Blocked(str(error)) from error

    # --- receiving ----------------------------------------------------------------------------

    def _subscribe(self) -> bytes:
        """Introduce ourselves; returns the note that was committed with the cursor."""
        answer = self._ask(
            "subscribe",
            name=self._name,
            type=self._config.type,
            start=self._config.start,
            types=sorted(self._types) if self._types is not None else None,
        )
        self._session = answer["session"]
        self._position = self._committed = answer["offset"]
        self._head = answer["head"]
        self._context.counters.update(answer["counters"])
        self._own_state(answer["cursor"])
        publish = resolve(answer["publish"], self._address)
        self._publish = Connection(zmq.SUB, publish, self._key)
        self._ask_for_topics()
        return bytes(answer["frames"][0])

    def _ask_for_topics(self) -> None:
        self._sub = self._publish.socket
        for data_type in self._types if self._types is not None else [""]:
            self._sub.subscribe(wire.topic(data_type) if data_type else b"")
        for own in ("head", "pulse"):  # the second is for those who may not see all
            self._sub.subscribe(wire.topic(own))

    def _own_state(self, cursor: bytes) -> None:
        """The state folder lives and dies with the cursor: of a lost one nothing is in doubt."""
        mark = self._context.state_dir / "cursor"
        if mark.exists() and mark.read_bytes() == cursor:
            return
        for path in self._context.state_dir.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink()
        (self._context.state_dir / "incoming").mkdir(exist_ok=True)
        mark.write_bytes(cursor)

    def _gather(self) -> None:
        """Collect batches for one delivery: until the flush interval is over, or it is enough.

        While there are none the cursor is committed as often as a report is due.
        """
        deadline = time.monotonic() + self._config.flush_interval
        while not self._full():
            if self._report_due():
                if not self._gathered:
                    return
                self._report()
            if self._position < self._head:
                self._fetch()
                continue
            self._publish.refusal()
            if self._publish.socket is not self._sub:
                self._ask_for_topics()
            left = deadline - time.monotonic()
            if self._stop.is_set() or (self._gathered and left <= 0):
                return
            if self._sub.poll(int(1000 * min(left, IDLE)) if left > 0 else int(1000 * IDLE)):
                self._publish.heard()
                self._receive(self._sub.recv_multipart())
                continue
            self._publish.expect()  # a head at least: it is repeated
            self._publish.renew_if_silent()
            if left <= 0:
                return

    def _full(self) -> bool:
        return len(self._gathered) >= GATHER_BATCHES or self._gathered_bytes >= GATHER_BYTES

    def _receive(self, frames: list[bytes]) -> None:
        """One published message: a batch, or the head that says which batches there are."""
        data_type = wire.decode_topic(frames[0])
        if data_type == "pulse":  # who may not see all learns only how far the journal has come
            self._head = max(self._head, wire.decode_control(frames[1])["head"])
            return
        if data_type != "head":
            offset = wire.decode_header(frames[1]).offset
            if offset > self._position and len(self._live) < 4 * GATHER_BATCHES:
                self._live[offset] = (data_type, frames[1], frames[2])
            return
        head = wire.decode_control(frames[1])
        self._head = max(self._head, head["first"] + len(head["types"]) - 1)
        if head["first"] == self._position + 1:
            self._take(head["first"], head["types"])
        # What is still missing is fetched by _gather, which sees the position behind the head.
        for offset in [offset for offset in self._live if offset <= self._position]:
            del self._live[offset]

    def _take(self, first: int, types: Sequence[str]) -> None:
        """Take the batches of one commit, if all of them that we want are here."""
        wanted = [
            offset
            for offset, data_type in enumerate(types, first)
            if self._types is None or data_type in self._types
        ]
        if all(offset in self._live for offset in wanted):
            for offset in wanted:
                self._add(self._live.pop(offset))
            self._position = first + len(types) - 1

    def _fetch(self) -> None:
        """Ask for the next page that we have missed."""
        page = self._ask(
            "replay",
            after=self._position,
            types=sorted(self._types) if self._types is not None else None,
            max_bytes=GATHER_BYTES // 4,
        )
        frames = page["frames"]
        for data_type, header, body in zip(page["types"], frames[::2], frames[1::2], strict=True):
            self._add((data_type, header, body))
        self._position = page["upto"]
        self._head = max(self._head, page["head"])

    def _add(self, batch: tuple[str, bytes, bytes]) -> None:
        self._gathered.append(batch)
        self._gathered_bytes += len(batch[2])

    # --- delivering ---------------------------------------------------------------------------

    def _deliver(self) -> bool:
        """Deliver what was gathered and commit the cursor; False if stopped on the way."""
        if self._position == self._committed and not self._report_due():
            return True
        batches: list[Batch] = []
        self._loaded = 0
        for frames in self._gathered:
            batches += self._decode(*frames)
            if self._loaded > LOADED_BYTES and batches:
                if not self._deliver_all(batches):
                    return False
                batches, self._loaded = [], 0
        if batches and not self._deliver_all(batches):
            return False
        self._gathered, self._gathered_bytes = [], 0
        retry = self._commit()
        self._assembler.committed()
        while retry and not self._stop.is_set():
            retry = self._retry(retry)
        return True

    def _decode(self, data_type: str, header: bytes, body: bytes, place: int = 0) -> list[Batch]:
        """The batch with its values whole; none if there is nothing in it to be delivered."""
        if self._adapter.types is not None and data_type not in self._adapter.types:
            self._context.count(f"unsupported_type:{data_type}", wire.decode_header(header).count)
            return []
        decoded = wire.decode_header(header)
        try:
            batch = Batch(data_type, decoded, wire.decode_body(data_type, decoded, body), place)
        except FrameError as error:
            self._bury(data_type, decoded, body, place, str(error))
            return []
        if data_type == "artifact" or decoded.in_pieces:
            batch = self._assembler.assemble(batch)
        if decoded.in_pieces:
            batch = self._load(batch)
        return [batch] if len(batch) else []

    def _load(self, batch: Batch) -> Batch:
        """The batch with values in the place of the files that they were put together in."""
        loaded = []
        for record in batch:
            try:
                self._loaded += record.value.stat().st_size
                loaded.append(load(batch.type, record))
            except FrameError as error:
                self._bury_pieces(batch, record, _pieces(record.value), str(error))
        return replace(batch, records=loaded)

    def _deliver_all(self, batches: list[Batch]) -> bool:
        """Deliver, halving what is refused until the offending records stand alone."""
        try:
            if not self._attempt(lambda: self._adapter.deliver(batches)):
                return False
        except Refused as error:
            reason = str(error)
        else:
            self._context.counters["delivered"] = self._context.counters.get("delivered", 0) + sum(
                len(batch) for batch in batches
            )
            return True
        # Not within the `except`: there every error of a half would have this one as its context,
        # and an adapter that looks for the cause of an outage would find a refusal.
        if len(batches) > 1:
            middle = len(batches) // 2
            if not self._deliver_all(batches[:middle]):
                return False
            if self._dead:  # so that one commit never carries those of many batches
                self._commit(batches[middle - 1].header.offset)
            return self._deliver_all(batches[middle:])
        (batch,) = batches
        if len(batch) > 1:
            middle = len(batch) // 2
            halves = batch.part(0, middle), batch.part(middle, len(batch))
            return all(self._deliver_all([half]) for half in halves)
        self._bury_record(batch, reason)
        return True

    def _attempt(self, action: Any) -> bool:
        """Do it until it succeeds; False if we are asked to stop and it cannot be done.

        Raises:
            Refused: to be handled by the caller.
        """
        wait, longest = RETRY_FIRST, self._config.retry_max
        while True:
            try:
                action()
            except Refused:
                raise
            except Blocked as error:
                self._trouble("blocked", str(error), min(max(wait, BLOCKED_FIRST), longest))
            except Unavailable as error:
                asked = error.retry_after or 0.0
                self._trouble("retrying", str(error), max(asked, _jitter(min(wait, longest))))
            except Exception as error:  # noqa: BLE001 -- an adapter's bug must not lose records
                self._log_bug(error)
                detail = f"{type(error).__name__}: {error}"
                self._trouble("retrying", detail, _jitter(min(wait, longest)))
            else:
                if self._state in ("blocked", "retrying"):
                    self._log.info("the tracker takes records again")
                    self._state, self._detail = "running", ""
                return True
            wait = min(2 * wait, longest)
            if self._stop.is_set():
                return False

    def _log_bug(self, error: Exception) -> None:
        """The traceback, once for each place in the code that raises: it may do so for ever."""
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        place = (type(error), *((trace.tb_frame.f_code, trace.tb_lineno) if trace else ()))
        if place not in self._bugs:
            self._bugs.add(place)
            self._log.exception("the adapter failed; trying again (said once)")

    def _trouble(self, state: str, detail: str, wait: float) -> None:
        """Say so once, show it in the status, and wait."""
        now, detail = time.monotonic(), _sound(detail)
        if state != self._state or (detail != self._detail and now - self._said > SAY_AGAIN):
            self._said = now
            self._log.warning("%s: %s", state, detail)
        self._state, self._detail = state, detail
        self._context.counters["retries"] = self._context.counters.get("retries", 0) + 1
        self._report()
        while (left := now + wait - time.monotonic()) > 0 and not self._stop.is_set():
            if self._report_due():
                self._report()
            self._stop.wait(min(left, REPORT))

    # --- committing ---------------------------------------------------------------------------

    def _commit(self, offset: int | None = None) -> list[int]:
        """Move the cursor to ``offset``, else to all that was gathered; which letters to retry."""
        whole, offset = offset is None, self._position if offset is None else offset
        dead = [letter for letter in self._dead if whole or letter.offset <= offset]
        answer = self._ask_for_room(
            "commit",
            name=self._name,
            session=self._session,
            offset=offset,
            frames=[
                self._adapter.note(),
                *(part for each in dead for part in (each.reason.encode(), each[4], each[5])),
            ],
            counters=self._context.counters,
            dead=[[letter.type, letter.place] for letter in dead],
            retried=self._retried,
            state=self._state,
            detail=self._detail[:1000],
        )
        self._dead = [] if whole else [each for each in self._dead if each.offset > offset]
        self._retried = []
        self._committed = offset
        self._head = max(self._head, answer["head"])
        self._reported = time.monotonic()
        return list(answer["retry"])

    def _ask_for_room(self, op: str, **fields: Any) -> dict[str, Any]:
        """A request that is refused while there are too many dead letters: waits for a person."""
        state, detail = self._state, self._detail
        while True:
            try:
                answer = self._ask(op, **fields)
            except ControlError as error:
                if error.reason != "dead_letters_full" or self._stop.is_set():
                    raise
                self._trouble("blocked", str(error), BLOCKED_FIRST)
            else:
                self._state, self._detail = state, detail
                return answer

    def _retry(self, ids: list[int]) -> list[int]:
        """Deliver dead letters that a person wants tried again; what is refused is buried anew.

        Returns those that are to be tried next.
        """
        answer = self._ask("dlq_fetch", ids=ids[:RETRIED])
        frames = answer["frames"]
        for (ident, _, data_type, _, place), header, body in zip(
            answer["letters"], frames[::2], frames[1::2], strict=True
        ):
            self._count_dead(-wire.decode_header(header).count)
            batches = self._decode(data_type, header, body, place)
            if batches and not self._deliver_all(batches):
                break
            self._retried.append(ident)
        retry = self._commit()
        self._assembler.committed()
        return retry

    def _report(self) -> None:
        """Tell the daemon our state without moving the cursor."""
        self._reported = time.monotonic()
        try:
            answer = self._control.request(
                "report",
                timeout=1.0,
                name=self._name,
                session=self._session,
                state=self._state,
                detail=self._detail[:1000],
                retries=self._context.counters.get("retries", 0),
            )
        except ControlError as error:
            if error.reason == "superseded":
                raise Superseded(str(error)) from None
            self._log.debug("not reported: %s", error)
        else:
            self._head = max(self._head, answer["head"])

    def _report_due(self) -> bool:
        return time.monotonic() - self._reported > REPORT

    def _bury_record(self, batch: Batch, reason: str) -> None:
        """Put a record among the dead letters; what came in pieces, in pieces."""
        (record,) = batch.records
        if batch.type == "artifact":
            self._bury_pieces(batch, record, _pieces(record.value), reason)
        elif batch.header.in_pieces:
            packed = memoryview(wire.encode_value(record.value))
            self._bury_pieces(batch, record, _cut(packed), reason)
        else:
            self._bury_pieces(batch, record, iter([record.value]), reason)

    def _bury_pieces(
        self, batch: Batch, record: Record, values: Iterator[Any], reason: str
    ) -> None:
        header = batch.header
        codec, number = wire.CODEC_PLAIN, []
        if header.in_pieces:  # the seq tells it from others of its stream, and no number is below 0
            codec, number = wire.CODEC_PIECES, [-header.seq]
        header = header._replace(count=1, codec=codec)
        for value in values:
            value = [*value, *number] if number else value
            body = wire.encode_body([record._replace(key=wire_key(record.key), value=value)])
            self._bury(batch.type, header, body, batch.first, reason)

    def _bury(
        self, data_type: str, header: wire.Header, body: bytes, place: int, reason: str
    ) -> None:
        """Put it among the dead letters, which are stored together with the cursor."""
        self._count_dead(header.count)
        reason, packed = _sound(reason)[:2000], wire.encode_header(header)
        self._dead.append(_Letter(header.offset, data_type, place, reason, packed, body))

    def _count_dead(self, n: int) -> None:
        counters = self._context.counters
        counters["dead_letters"] = counters.get("dead_letters", 0) + n

    def _ask(self, op: str, frames: Sequence[bytes] = (), **fields: Any) -> dict[str, Any]:
        """A request that must succeed: waits for a daemon that is away.

        Raises:
            Superseded: see there.
            ControlError: any other refusal.
        """
        said = False
        while True:
            try:
                return self._control.request(op, timeout=2.0, frames=frames, **fields)
            except ControlError as error:
                if error.reason == "superseded":
                    raise Superseded(str(error)) from None
                if error.reason not in ("unreachable", "key_refused", "timeout", "busy"):
                    raise
                if not said:
                    self._log.warning("%s", error)
                    said = True
                if self._stop.is_set() and self._stop_by_passed():
                    raise
                self._stop.wait(0.2)

    def _stop_by_passed(self) -> bool:
        """After a stop the daemon gets ten more seconds to answer."""
        if self._stop_by is None:
            self._stop_by = time.monotonic() + 10.0
        return time.monotonic() > self._stop_by


def _sound(text: str) -> str:
    """``text`` without what cannot be encoded (a message may hold the bytes of a file name), and
    without secrets: it goes to the daemon, and is shown.
    """
    return mask(text.encode(errors="replace").decode())


def _jitter(wait: float) -> float:
    return wait * random.uniform(0.5, 1.0)


def _cut(packed: memoryview) -> Iterator[list[Any]]:
    for offset in range(0, len(packed), PIECE):
        yield [offset, len(packed), packed[offset : offset + PIECE]]


def _pieces(path: Path) -> Iterator[list[Any]]:
    """A file as the values of artifact records: [offset, size, bytes]."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        for offset in range(0, size or 1, PIECE):
            yield [offset, size, file.read(PIECE)]
