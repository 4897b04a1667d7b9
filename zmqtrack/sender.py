"""The thread between the training loop and the daemon: buffer → batch → spool → push."""

from __future__ import annotations

import collections
import itertools
import logging
import math
import os
import resource
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import zmq

from . import wire
from .errors import SpoolError
from .keys import Key
from .link import Link
from .records import CUT, Entry
from .rows import Rows
from .spool import Outgoing, Spool, orphans, send_command

if TYPE_CHECKING:
    from .egress import Gate

__all__ = ["Buffer", "Sender", "after_fork", "running", "starting"]

log = logging.getLogger("zmqtrack")

#: What a logging call appends to. A deque, because its append and popleft are atomic: nothing is
#: swapped under a caller's feet.
Buffer = collections.deque[Entry]

#: A batch is closed at so many records or (about) bytes.
BATCH_RECORDS = 4096
BATCH_BYTES = 1 << 20

#: When nothing has been logged for so many seconds, the next call is asked to wake us, and after
#: as long again we doze: an idle run costs next to nothing, and a process can have many.
QUIET = 0.5
#: Longest doze, in seconds: the tick for time-outs and new connections then.
DOZE = 1.0

#: Packed bytes that the disk refused, at which nothing more is taken out of the buffer.
UNSPOOLED_BYTES = 32 << 20

#: Files that a process may still open before a connection is made.
FILES = 24

#: Between two looks for outboxes that crashed processes left, in seconds.
ADOPT_INTERVAL = 30.0

#: Where nothing answers, that is said after so many seconds; and in this process not again.
SILENCE = 10.0
_silent: set[tuple[Path, str]] = set()

#: Where a run has waited in vain at its end, the next ones do not wait, for so many seconds.
VAIN = 60.0
_in_vain: dict[tuple[Path, str], float] = {}  # since when (monotonic)

#: Stands for an address that a person has to fill in.
ANY_ADDRESS = "tcp://HOST:PORT"

#: Who looks for them, in this process, by folder and address: one for all is enough, and a look
#: costs something for each outbox that is there.
_adopters: dict[tuple[Path, str], Sender] = {}

#: Those whose thread has not ended, and a lock for who makes one.
running: set[Sender] = set()
_starting = threading.RLock()


class _Packed(NamedTuple):
    """A batch that is not in the spool yet."""

    type: str
    records: int
    body: bytes
    step: int | None  # the highest in it
    rows: int  # how its rows end


class Sender(threading.Thread):
    """Empties ``buffer`` every ``flush_interval`` seconds into ``spool`` and on to the daemon.

    It also adopts the outboxes that earlier processes left in the same folder for the same
    address, and sends them. ``on_quiet(True)`` asks that from now on each call wakes it;
    ``on_quiet(False)`` that none does.
    """

    def __init__(
        self,
        spool: Spool,
        buffer: Buffer,
        flush_interval: float,
        *,
        codec: int = wire.CODEC_PLAIN,
        key: Key | None = None,
        key_file: Path | None = None,
        egress: Gate | None = None,
        rows: Rows | None = None,
        on_quiet: Callable[[bool], None],
    ) -> None:
        super().__init__(name=f"zmqtrack-{spool.run.run}", daemon=True)
        #: Held in a turn. A fork waits for it: SQLite and ZeroMQ take locks of the process, which
        #: in the child nobody would release.
        self.turn = threading.RLock()
        #: The disk refuses what has been packed.
        self.stuck = False
        #: One reason for each record that had to be given up before it was packed.
        self.lost: collections.deque[str] = collections.deque()
        self._spool = spool
        self._buffer = buffer
        self._interval = flush_interval
        self._codec = codec
        self._key, self._key_file = key, key_file
        self._egress = egress
        self._rows = rows or Rows()
        self._unspooled: list[_Packed] = []  # the disk refused it
        self._flushes: collections.deque[threading.Event] = collections.deque()
        self._deadline: float | None = None
        self._patient = False  # at the end, with the daemon
        self._last: Entry | None = None
        self._on_quiet = on_quiet
        self._quiet = False  # each call wakes us
        self._busy = time.monotonic()  # when something was logged, or quiet began
        self._silence_due = self._busy + SILENCE
        self._adopt_due = 0.0
        self._place = spool.path.parent, spool.address
        self._said: set[str] = set()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._own: Link | None = None  # once it could be made
        self._clock = 0.0  # of what was logged last
        self._links: list[Link] = []  # it, and that of an adopted outbox
        self._unwanted: set[Path] = set()  # outboxes that the daemon has refused
        self._later: set[Path] = set()  # those that it takes when others have ended
        self._given_up: set[tuple[Any, ...]] = set()  # too large, and pieces of it are to come
        self._losses: collections.Counter[str] = collections.Counter()  # taken out of `lost`

    # --- called from other threads ----------------------------------------------------------

    def start(self) -> None:
        running.add(self)
        super().start()

    @property
    def at_work(self) -> bool:
        """It has not ended."""
        return self in running

    def wake(self) -> None:
        """Do not wait for the flush interval to pass."""
        try:
            os.write(self._wake_write, b"\0")
        except OSError:
            pass  # it is awake already, or has ended

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all that was logged before is on disk; False if it took too long."""
        done = threading.Event()
        self._flushes.append(done)
        self.wake()
        if not self.at_work:
            return done.is_set()
        return done.wait(timeout)

    def stop(self, deadline: float, last: Entry | None = None) -> None:
        """Ask it to deliver what is left, then ``last``, and to end.

        ``deadline`` (monotonic) is when it ends at the latest; what is left then is on disk.
        """
        self._last = last
        self._deadline = deadline
        self.wake()

    def patience(self, most: float) -> float:
        """Seconds to wait at the end: none where a run has just waited ``most`` for nobody.

        A program that opens and closes many would stand still for each of them.
        """
        just_now = time.monotonic() - _in_vain.get(self._place, -math.inf) < VAIN
        self._patient = most > 0 and (self._answered or not just_now)
        return most if self._patient else 0.0

    def wait(self) -> int:
        """Until it has ended after :meth:`stop`; returns the records that remain."""
        if self._deadline is not None:
            # A hung disk must not hold up the exit either.
            self.join(max(0.0, self._deadline - time.monotonic()) + 2.0)
        return self._remaining

    # --- the thread -------------------------------------------------------------------------

    _remaining = 0

    def run(self) -> None:
        try:
            while True:
                deadline = self._deadline  # read first: nothing is logged after it is set
                if self._last is not None and self._own:
                    self._own.beat_last()
                try:
                    self._wait()
                    with self.turn:
                        self._turn()
                except Exception:
                    log.exception("zmqtrack: a turn of the sender failed; going on")
                    time.sleep(1.0)
                if deadline is not None and self._last is not None:
                    # All others have been taken out: it is a batch of its own, behind them.
                    self._buffer.append(self._last)
                    self._last = None
                    self.wake()
                    continue
                if deadline is not None and (self._has_sent_all() or time.monotonic() >= deadline):
                    break
        finally:
            with self.turn:
                try:
                    self._end()
                finally:
                    running.discard(self)
            if not self._unspooled and not self._buffer:
                for event in list(self._flushes):
                    event.set()

    def _end(self) -> None:
        """Release all that the thread had, and note what remains."""
        if _adopters.get(self._place) is self:
            del _adopters[self._place]
        self._remaining = self._spool.pending() + len(self._buffer)
        self._remaining += sum(each.records for each in self._unspooled)
        if self._answered:
            _in_vain.pop(self._place, None)
        elif self._remaining and self._patient:
            _in_vain[self._place] = time.monotonic()
        if self._egress and self._egress.pending:
            log.error(
                "zmqtrack: %s could not be written to the end: of run %s, what had waited for "
                "it in memory is lost",
                self._egress.audit_path,
                self._spool.run.run,
            )
        for link in self._links:
            link.close()
            link.spool.close()
        self._links = []
        if self._own is None:
            self._spool.close()
        write, self._wake_write = self._wake_write, -1
        os.close(self._wake_read)
        os.close(write)

    def _has_sent_all(self) -> bool:
        """Also what earlier processes left: short runs would never get to it otherwise."""
        adopts = _adopters.get(self._place) is self
        busy = adopts and (len(self._links) > 1 or self._adopt_due == 0.0)
        waiting = self._unspooled or self._buffer or (self._egress and self._egress.pending)
        return self._spool.acked >= self._spool.last and not waiting and not busy

    def _turn(self) -> None:
        """Buffer → batches → spool → push; the loop's body."""
        self._note(len(self._buffer))
        self._losses.update(self.lost.popleft() for _ in range(len(self.lost)))
        flushes = [self._flushes.popleft() for _ in range(len(self._flushes))]
        room = sum(len(each.body) for each in self._unspooled) < UNSPOOLED_BYTES
        room = room and not (self._egress and self._egress.pending)
        if room:
            self._pack()  # else the disk refuses what we have: the rest stays in the buffer
        if self._store() and room:
            for event in flushes:
                event.set()
        else:
            self._flushes.extendleft(reversed(flushes))
        if self._own is None:
            self._connect()
        elif not self._is_late:
            self._adopt()
        if self._own:
            self._own.clock = self._clock
            if not self._answered and time.monotonic() > self._silence_due:
                self._tell_silence()
        for link in self._links:
            link.pump()
        self._release()

    def _wait(self) -> None:
        """Until an answer comes, somebody wakes us, or the flush interval has passed."""
        poller = zmq.Poller()
        poller.register(self._wake_read, zmq.POLLIN)
        for link in self._links:
            poller.register(link.control, zmq.POLLIN)
        # Without a flush interval callers wake us; the tick is for time-outs then.
        dozing = self._quiet and time.monotonic() - self._busy > QUIET and self._deadline is None
        interval = DOZE if dozing else self._interval or 0.05
        if self._last is not None or self._is_late:
            interval = 0  # it ends
        ready = dict(poller.poll(int(1000 * interval)))
        if self._wake_read in ready:
            os.read(self._wake_read, 4096)

    def _note(self, records: int) -> None:
        """Notice whether anything is being logged, and arrange how we learn of the next record."""
        now = time.monotonic()
        if records:
            self._busy = now
        if self._quiet if records else not self._quiet and now - self._busy > QUIET:
            self._quiet, self._busy = not self._quiet, now
            # A call that was under way just now may not wake us: QUIET is left for it.
            self._on_quiet(self._quiet)

    def _pack(self) -> None:
        """Take all records out of the buffer and pack them, by data type."""
        self._rows.before_taking()
        take = self._buffer.popleft
        entries = [take() for _ in range(len(self._buffer))]
        self._note(len(entries))
        if self._egress:
            entries = self._egress.sift(entries)
        if entries:
            self._clock = entries[-1][3]
        types = {entry[4] for entry in entries}
        groups: dict[str, list[Entry]] = {}
        if len(types) == 1 and "metric" in types:  # the usual case
            groups["metric"] = entries
        else:
            cut = {name: name.partition("/")[0] for name in types}
            for entry in entries:
                groups.setdefault(cut[entry[4]], []).append(entry)
            self._keep_within_limits(groups)
        if self._losses:
            # What could not be kept is told in its place, so that the daemon can count it.
            groups.setdefault("lost", []).extend(
                (reason, n, None, time.time(), "lost") for reason, n in self._losses.items()
            )
            self._losses.clear()
        batches = list(_in_order(groups))
        if "run" in groups and groups["run"][-1][0] == "end":
            # After all others, also where `finish` had no time to wait for them first.
            batches.append(("run", [groups["run"].pop()]))
        packed = [
            each
            for name, records in batches
            for cut in self._cut(name, records)
            for each in self._bodies(name, cut)
        ]
        ends = self._rows.ends([(name.partition("/")[0], part) for name, part, *_ in packed])
        self._unspooled += [
            _Packed(name, len(part), body, step, rows)
            for (name, part, body, step), rows in zip(packed, ends, strict=True)
        ]

    def _cut(self, name: str, records: list[Entry]) -> Iterator[list[Entry]]:
        """One batch's worth at a time; of pieces, two would be too large."""
        if name.endswith(CUT):
            return ([record] for record in records)
        return self._rows.cut(records, BATCH_RECORDS)

    def _keep_within_limits(self, groups: dict[str, list[Entry]]) -> None:
        """Give up what the daemon has said that it will refuse: too large texts, images, files."""
        sizes = self._own.sizes if self._own else {}
        for data_type in groups.keys() - {"metric"}:
            name = data_type if data_type in sizes else "value"
            if limit := sizes.get(name):
                kept = [e for e in groups[data_type] if not self._is_given_up(e, name, limit)]
                groups[data_type] = kept
                if not kept:
                    del groups[data_type]

    def _is_given_up(self, entry: Entry, name: str, limit: int) -> bool:
        """Whether it is too large; of a piece, what its first met with holds for all."""
        if not (entry[4] == "artifact" or entry[4].endswith(CUT)):
            # Of what is neither text nor image the size is known where it is large, and cut.
            too_large = name != "value" and _size(entry[1]) > limit
            if too_large:
                self._give_up(entry, name, limit)
            return too_large
        offset, size, piece, *number = entry[1]
        ident = (entry[0], entry[3], size, *number)
        if offset == 0 and (wire.length(entry[1]) if number else size) > limit:
            self._give_up(entry, name, limit)
            self._given_up.add(ident)
        found = ident in self._given_up
        if offset + len(piece) >= size:
            self._given_up.discard(ident)
        return found

    def _give_up(self, entry: Entry, name: str, limit: int) -> None:
        reason = f"{name}_too_large"
        self._losses[reason] += 1
        self._say_once(
            reason,
            f"{entry[4].partition('/')[0]} {entry[0]!r:.80} is not sent: the daemon takes {limit} "
            f"bytes at most (limits.{name}). All such are counted as {reason}",
        )

    def _bodies(
        self, name: str, records: list[Entry]
    ) -> Iterator[tuple[str, list[Entry], bytes, int | None]]:
        """Pack records into as few bodies as the size limits allow."""
        try:
            body, step = wire.pack(records, self._codec)
        except (TypeError, ValueError, OverflowError) as error:
            # Each call has checked its value; this is the net below: one record must not take
            # its neighbours along.
            if len(records) == 1:
                self._say_once("unencodable", f"record {records[0][0]!r:.80} is lost: {error}")
                self.lost.append("unencodable")
                return
            body, step = b"", None
        if len(records) > 1 and (not body or len(body) > BATCH_BYTES):
            middle = len(records) // 2
            yield from self._bodies(name, records[:middle])
            yield from self._bodies(name, records[middle:])
        else:
            yield name, records, body, step

    def _store(self) -> bool:
        """Commit what is packed to the spool; False (and kept) if the disk refuses it."""
        if not self._audit():
            return False
        if not self._unspooled:
            return True
        run = self._spool.run
        batches = []
        for seq, packed in enumerate(self._unspooled, self._spool.last + 1):
            name, count, body, step, rows = packed
            data_type, _, cut = name.partition("/")
            codec = self._codec | (wire.CODEC_PIECES if cut else 0)
            header = wire.Header(self._spool.stream, seq, run, count, codec, step=step, rows=rows)
            batches.append(Outgoing(seq, data_type, count, wire.encode_header(header), body))
        try:
            shed = self._spool.append(batches)
        except sqlite3.Error as error:
            self.stuck = True
            self._say_once("spool", f"cannot write {self._spool.path}: {error}; trying again")
            return False
        if shed:
            self._say_once(
                "full",
                f"{self._spool.path} is full ({self._spool.limit} bytes): records are given up and "
                f"counted, the {self._spool.keep} are kept",
            )
        self._said.discard("spool")
        self._unspooled = []
        self.stuck = False
        return True

    def _audit(self) -> bool:
        """Write down what the policy held back; until that is done, nothing else may leave."""
        if self._egress and self._egress.pending:
            try:
                self._egress.audit()
            except OSError as error:
                self.stuck = True
                self._say_once(
                    "audit",
                    f"cannot write {self._egress.audit_path}: {error.strerror}; nothing is sent "
                    "until it can be; trying again",
                )
                return False
            self._said.discard("audit")
            self.stuck = bool(self._unspooled)
        return True

    def _connect(self) -> None:
        """What is logged is on disk already, and stays there while this cannot be done."""
        if not _has_files_left():
            self._say_once("files", "too few files may be opened: records are kept here until then")
            return
        try:
            self._own = Link(self._spool, self._spool.address, self._key)
        except zmq.ZMQError as error:
            self._say_once("connect", f"cannot connect to {self._spool.address}: {error}; trying")
            return
        self._own.beats = True
        self._links.insert(0, self._own)

    def _adopt(self) -> None:
        """Take over one outbox that an earlier process left, if there is one."""
        if time.monotonic() < self._adopt_due or len(self._links) > 1 or not _has_files_left():
            return
        if _adopters.setdefault(self._place, self) is not self:
            return
        self._adopt_due = time.monotonic() + ADOPT_INTERVAL
        for path in orphans(self._spool.path.parent):
            if path == self._spool.path or path in self._unwanted or path in self._later:
                continue
            try:
                spool = Spool.open(path)
            except SpoolError as error:
                if "damaged" in str(error):
                    log.error("zmqtrack: %s", error)
                    self.lost.append("spool_unreadable")
                continue
            if spool.address and spool.address != self._spool.address:
                spool.close()
                continue
            if self._key and spool.run.site != self._key.name:
                spool.close()  # with our key it would be refused: it waits for its own
                continue
            self._links.append(Link(spool, self._spool.address, self._key))
            return
        self._later.clear()

    @property
    def how_to_send(self) -> str:
        """The command that sends what is left when this process has ended."""
        folder, address = self._place
        return send_command(folder, address if self._answered else ANY_ADDRESS, self._key_file)

    @property
    def _is_late(self) -> bool:
        """It is to have ended by now."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    @property
    def _answered(self) -> bool:
        return self._own is not None and self._own.answered

    def _tell_silence(self) -> None:
        self._silence_due = math.inf
        if self._place in _silent:
            return
        _silent.add(self._place)
        folder, address = self._place
        log.warning(
            "zmqtrack: no daemon has answered at %s yet. What run %r (site %r) logs is kept in %s "
            "and is sent as soon as one does. If that address is wrong, give the right one "
            "(ZMQTRACK_ADDRESS); when this process has ended, `%s` sends what it left",
            address,
            self._spool.run.run,
            self._spool.run.site,
            folder,
            self.how_to_send,
        )

    def _release(self) -> None:
        """Let go of adopted outboxes that are empty, or refused, and look for the next one."""
        adopted = [link for link in self._links if link is not self._own]
        for link in [link for link in adopted if link.done or link.refused]:
            if not link.done:
                # The others must not wait behind it.
                (self._later if link.crowded else self._unwanted).add(link.spool.path)
            link.close()
            link.spool.close()
            self._links.remove(link)
            self._adopt_due = 0.0

    def _say_once(self, topic: str, message: str) -> None:
        if topic not in self._said:
            self._said.add(topic)
            log.warning("zmqtrack: %s", message)

    def abandon(self) -> None:
        """In a forked child, where this thread does not exist: leave the parent's things alone."""
        for spool in {self._spool, *(link.spool for link in self._links)}:
            spool.abandon()
        if self._egress:
            self._egress.abandon()
        write, self._wake_write = self._wake_write, -1
        os.close(self._wake_read)
        os.close(write)


def starting() -> threading.RLock:
    """The lock to hold while a spool and its sender are made."""
    return _starting


def after_fork() -> None:
    """In a forked child: no sender is at work, and what they had is the parent's."""
    global _starting
    _starting = threading.RLock()
    _adopters.clear()
    _in_vain.clear()
    while running:
        running.pop().abandon()


def _has_files_left() -> bool:
    """Whether ZeroMQ can open what it needs: where it cannot, it ends the process."""
    try:
        opened = sum(1 for _ in Path("/dev/fd").iterdir())
        return opened + FILES <= resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    except OSError:
        return False


def _in_order(groups: dict[str, list[Entry]]) -> Iterator[tuple[str, list[Entry]]]:
    """Batches to be, by data type; what is in pieces stands among what is not as it was logged."""
    for records in groups.values():
        if len({entry[4] for entry in records}) == 1:
            yield records[0][4], records
        else:
            for name, some in itertools.groupby(records, key=lambda entry: entry[4]):
                yield name, list(some)


def _size(value: Any) -> int:
    """Bytes of a text or image."""
    return len(value.encode(errors="replace")) if isinstance(value, str) else len(value)
