"""The daemon's side of the control socket: one method for each ``op``."""

from __future__ import annotations

import math
import os
import re
import reprlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgpack

from zmqtrack import __version__, wire
from zmqtrack.config import AdapterConfig
from zmqtrack.errors import ControlError, FrameError
from zmqtrack.keyring import Client
from zmqtrack.records import MAX_INT, NOT_CARRIED, RunKey, check_name, check_type

from .auth import ADAPTERS
from .intake import QUARANTINE
from .journal import Cursor, DeadLetter, Run, Stream
from .sites import Beat, Who

if TYPE_CHECKING:
    from .broker import Broker

__all__ = ["Control"]

#: What one subscriber may leave behind here: cursors, and to each data types and counters, whose
#: names have so many bytes together.
MAX_CURSORS, MAX_TYPES, MAX_COUNTERS, MAX_COUNTER_BYTES = 20, 100, 200, 4096
#: Most bytes in one page of a replay.
PAGE_BYTES = 8 << 20
#: Longest that a tracker is tried, in seconds.
MAX_PROBE = 60
#: Marks of its family that a writer may have, and how the name of its machine looks.
MAX_MARKS = 16
_HOST = re.compile(r"[A-Za-z0-9._-]{1,255}")
#: Streams, and runs, that a status tells of.
STATUS_STREAMS = STATUS_RUNS = 1000
#: Bytes that streams, runs, losses, what is not carried, and the sums of further ones of these two
#: may take of the one message that an answer is. The rest of it is for adapters.
STREAM_BYTES, LOSS_BYTES, NOT_CARRIED_BYTES, REST_BYTES = 250_000, 80_000, 40_000, 15_000
#: The site under which a status tells of losses that had no room.
OTHERS = "(others)"


class Control:
    """Serves requests; knows the adapters that have introduced themselves."""

    def __init__(self, broker: Broker, adapters: Sequence[AdapterConfig]) -> None:
        self._configured: dict[str, AdapterConfig] = {}
        self._leaving: set[str] = set()  # no longer configured, and still delivering
        self.require(adapters)
        self._drains: list[tuple[int, bytes, dict[str, Any]]] = []  # (offset, who asks, request)
        self._broker = broker
        self._journal = broker.journal
        #: What each adapter last said of itself.
        self._adapters: dict[str, dict[str, Any]] = {}
        #: How often each has tried in vain: it may be long until it commits that.
        self._retries: dict[str, int] = {}
        #: What may be asked for, and the role that it takes.
        self._handlers: dict[str, tuple[str, Callable[[bytes, dict[str, Any]], None]]] = {
            "hello": ("", self._hello),
            "beat": ("writer", self._beat),
            "subscribe": ("subscriber", self._subscribe),
            "replay": ("subscriber", self._replay),
            "commit": ("subscriber", self._commit),
            "report": ("subscriber", self._report),
            "status": ("operator", self._status),
            "drain": ("operator", self._drain),
            "dlq": ("operator", self._dlq),
            "dlq_fetch": ("", self._dlq_fetch),
            "dlq_retry": ("operator", self._dlq_retry),
            "dlq_drop": ("operator", self._dlq_drop),
            "reload": ("operator", self._reload),
            "forget": ("operator", self._forget),
            "probe": ("operator", self._probe),
        }

    def require(self, adapters: Sequence[AdapterConfig]) -> None:
        """Nothing is trimmed, and no drain answered, before these have delivered it."""
        before, self._configured = self._configured, {str(each.name): each for each in adapters}
        self._leaving = (self._leaving | set(before)) - set(self._configured)

    def serve(self, limit: int = 200) -> None:
        """Answer up to ``limit`` requests that have come in."""
        for _ in range(limit):
            received = self._broker.receive_control()
            if received is None:
                return
            frames, client = received
            request: dict[str, Any] = {}
            try:
                if len(frames) < 2:
                    raise FrameError("bad_control", "an empty request")
                request = wire.decode_control(frames[1])
                request["frames"] = frames[2:]
                request["client"] = client
                self._handle(frames[0], request)
            except FrameError as error:
                self._broker.refusals.note(error.reason, error.detail)
                self._refuse(frames[0], request, error.reason, error.detail)

    def _handle(self, identity: bytes, request: dict[str, Any]) -> None:
        role, handler = self._handlers.get(request["op"], ("", None))
        try:
            if handler is None:
                raise ControlError("unknown_op", f"no such request: {request['op']!r:.60}")
            self._check_role(request, role)
            handler(identity, request)
        except ControlError as error:
            self._refuse(identity, request, error.reason, str(error))
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise FrameError("bad_control", f"{request['op']:.60}: {error!r:.200}") from None

    def _check_role(self, request: dict[str, Any], role: str) -> None:
        """Whether who asks may ask for that.

        Raises:
            ControlError: ``revoked``, ``not_allowed``.
        """
        client: Client | None = request["client"]
        if client is None or client.revoked:
            reason, detail = "revoked", "this key has been revoked"
        elif role and role not in client.roles:
            reason = "not_allowed"
            detail = f"{request['op']!r} takes the role {role}, which {client.name!r} has not"
        else:
            return
        name = client.name if client else ""
        self._broker.audit.write("rejected", name, reason, detail=request["op"][:60])
        raise ControlError(reason, detail)

    # --- writers ------------------------------------------------------------------------------

    def _hello(self, identity: bytes, request: dict[str, Any]) -> None:
        """Who we are, where batches go, and for a writer the last seq that we hold."""
        seq = check = None
        stream = request.get("stream")
        if stream is not None:
            seq = self._greet_writer(identity, stream, request)
            common = min(seq, _number(request["last"]))
            check = [common, self._journal.check(stream, common)]
        self._answer(
            identity,
            request,
            "welcome",
            # The seq counts batches that the next commit makes durable: not before it.
            after_commit=stream is not None,
            stream=stream,
            seq=seq,
            check=check,
            version=__version__,
            epoch=self._journal.epoch,
            ingest=self._broker.config.advertise_ingest or self._broker.intake.address,
            publish=self._publish_address(),
            max_body=self._broker.config.max_body,
            max_records=self._broker.intake.limits.config.records,
            window=self._broker.intake.window,
            beat=self._broker.config.stale_after / 3,
            you={"name": request["client"].name, "roles": sorted(request["client"].roles)},
            sizes={
                name: getattr(self._broker.intake.limits.config, name)
                for name in ("text", "image", "artifact", "value")
            },
        )

    def _greet_writer(self, identity: bytes, stream: Any, request: dict[str, Any]) -> int:
        if not isinstance(stream, bytes) or len(stream) != 16:
            raise ValueError("the stream is no UUID of 16 bytes")
        experiment, run, site = request["run"]
        for what, name in (("experiment", experiment), ("run", run), ("site", site)):
            check_name(what, name)
        if "writer" not in request["client"].roles:
            self._check_role(request, "writer")
        probing = request.get("role") == "probe"
        key = RunKey(experiment, run, site)
        self._broker.intake.check_writer(request["client"], stream, key, probing=probing)
        if self._broker.room.none:
            # A welcome would have it send again, each time, what waits in our memory already.
            raise ControlError("busy", "the daemon has no room; records are kept here until then")
        self._broker.intake.set_route(stream, identity)
        if probing:
            return 0
        known = self._journal.stream(stream)
        seq, acked = known.seq if known else 0, _number(request.get("acked", 0))
        if acked > seq:
            # Another journal had acknowledged these: the writer no longer has them.
            self._journal.adopt(stream, acked, (experiment, run, site), time.time())
            self._journal.count("journal_lost_batches", site, acked - seq)
            seq = acked
        return seq

    def _beat(self, identity: bytes, request: dict[str, Any]) -> None:
        """A writer lives, and says how it is. The answer tells it that the way is open."""
        clock = request["time"]
        if type(clock) is not float or not math.isfinite(clock):
            raise ValueError("the time is no number")
        self._broker.intake.note_beat(
            request["client"],
            identity,
            request["stream"],
            RunKey(*(check_name("name", name) for name in request["run"])),
            Beat(_number(request["waiting"]), clock, _who(request)),
        )
        self._answer(identity, request, "heard")

    # --- adapters -----------------------------------------------------------------------------

    def _subscribe(self, identity: bytes, request: dict[str, Any]) -> None:
        """An adapter introduces itself: its cursor, under a session that outdates older ones."""
        name = self._cursor_name(request)
        types = _types(request)
        self._check_grant(request)
        cursor = self._journal.cursor(name)
        if cursor is None:
            self._check_number_of_cursors(name)
            offset = self._journal.head if request.get("start") == "now" else 0
            cursor = Cursor(offset, 0, b"", {}, time.time(), os.urandom(8))
        cursor = cursor._replace(session=cursor.session + 1)
        self._journal.set_cursor(name, cursor)
        self._adapters[name] = {
            "type": str(request.get("type", ""))[:200],
            "types": types,
            "state": "starting",
            "detail": "",
            "seen": time.time(),
        }
        self._answer(
            identity,
            request,
            "subscribed",
            after_commit=True,
            session=cursor.session,
            cursor=cursor.ident,
            offset=cursor.offset,
            frames=[cursor.note],
            counters=cursor.counters,
            epoch=self._journal.epoch,
            head=self._journal.head,
            publish=self._publish_address(),
        )

    def _check_number_of_cursors(self, name: str) -> None:
        owner, colon, _ = name.rpartition(":")
        names = [known for known, _ in self._journal.cursors()]
        if colon and sum(known.startswith(f"{owner}:") for known in names) >= MAX_CURSORS:
            raise ControlError("too_many_cursors", f"{owner!r} has {MAX_CURSORS} cursors already")

    def _check_grant(self, request: dict[str, Any]) -> None:
        client: Client = request["client"]
        wanted = request.get("types")
        if client.topics is None or wanted is None:
            return  # it is shown what it may see
        if strange := sorted(set(map(check_type, wanted)) - client.topics):
            detail = f"{client.name!r} may not see {', '.join(strange)}"
            self._broker.audit.write("rejected", client.name, "not_granted", detail=detail)
            raise ControlError("not_granted", detail)

    def _publish_address(self) -> str:
        return self._broker.config.advertise_publish or self._broker.publisher.address

    def _replay(self, identity: bytes, request: dict[str, Any]) -> None:
        """A page of the journal: what follows ``after``, of the wanted data types."""
        types = _types(request)
        max_bytes = min(_number(request.get("max_bytes", PAGE_BYTES)), PAGE_BYTES)
        client: Client = request["client"]
        if client.topics is not None:
            types = [name for name in types or client.topics if name in client.topics]
        page, upto = self._journal.read(_number(request["after"]), types, max_bytes, client.sites)
        self._answer(
            identity,
            request,
            "page",
            frames=[part for entry in page for part in (entry.header, entry.body)],
            types=[entry.type for entry in page],
            upto=upto,
            head=self._journal.head,
        )

    def _commit(self, identity: bytes, request: dict[str, Any]) -> None:
        """The tracker has confirmed all up to ``offset``: keep that, durably, then answer."""
        name = self._cursor_name(request)
        cursor = self._current(name, request["session"])
        self._check_room(request)
        now = time.time()
        # All of it is read before any of it is kept: a cursor never moves without its letters.
        counters = {
            check_name("counter", k): _number(v, -MAX_INT)
            for k, v in dict(request["counters"]).items()
        }
        if len(counters) > MAX_COUNTERS:
            raise ValueError(f"{len(counters)} counters; at most {MAX_COUNTERS}")
        size = sum(len(counter.encode()) for counter in counters)
        if ":" in name and size > MAX_COUNTER_BYTES:  # a subscriber's
            raise ValueError(f"counters' names of {size} bytes; at most {MAX_COUNTER_BYTES}")
        note, *letters = request["frames"]
        offset = _number(request["offset"])
        retried = _ids(request.get("retried") or ())
        dead = [
            (check_type(data_type), _number(place), *parts)
            for (data_type, place), *parts in zip(
                request["dead"], letters[::3], letters[1::3], letters[2::3], strict=True
            )
        ]
        _check_letters(dead)
        if not cursor.offset <= offset <= self._journal.head:
            raise ControlError(
                "bad_offset", f"{offset} is not from {cursor.offset} to {self._journal.head}"
            )
        new = cursor._replace(offset=offset, note=note, counters=counters, time=now)
        self._journal.set_cursor(name, new)
        # The same commit may come again, when our answer was late: none of it counts twice.
        if retried:
            self._journal.unbury(retried, name)
        for data_type, place, reason, header, body in dead:
            text = reason.decode(errors="replace")
            self._journal.bury(name, data_type, header, body, text, now, place)
        self._note_state(name, request)
        self._answer(
            identity,
            request,
            "committed",
            after_commit=True,
            head=self._journal.head,
            retry=self._journal.to_retry(name),
        )
        self._answer_drains()

    def _check_room(self, request: dict[str, Any]) -> None:
        """Dead letters have a limit too.

        Raises:
            ControlError: ``dead_letters_full``. The adapter waits, and nothing is given up.
        """
        most = self._broker.config.dead_letter_bytes
        more = sum(map(len, request["frames"][1:]))
        if more and self._journal.dead_letter_bytes() + more > most:
            raise ControlError(
                "dead_letters_full",
                f"dead letters have reached dead_letter_bytes ({most}): look at them with "
                "`zmqtrack dlq list`, then retry or drop some",
            )

    def _report(self, identity: bytes, request: dict[str, Any]) -> None:
        name = self._cursor_name(request)
        self._current(name, request["session"])
        self._note_state(name, request)
        self._retries[name] = _number(request.get("retries", 0))
        self._answer(identity, request, "reported", head=self._journal.head)

    def _cursor_name(self, request: dict[str, Any]) -> str:
        """The name under which a cursor is kept: no subscriber can touch another's, nor ours.

        Those of our own adapters, of operators, and of the one that a key is named after, if it
        is configured as external, are as they say.
        """
        name = check_name("name", request["name"])
        client: Client = request["client"]
        if client is ADAPTERS or "operator" in client.roles:
            return name
        if self._is_external(name, client):
            return name
        if ":" in name:
            raise ControlError(
                "bad_name", f"{name!r} has a ':', which parts it from your key's name"
            )
        return f"{client.name}:{name}"

    def _is_external(self, name: str, client: Client) -> bool:
        """Whether ``name`` is an adapter that runs elsewhere, and comes in with this key."""
        config = self._configured.get(name)
        return name == client.name and config is not None and config.external

    def _is_own(self, name: str, client: Client) -> bool:
        """Whether the cursor ``name`` is that of a subscriber."""
        return name.startswith(f"{client.name}:") or self._is_external(name, client)

    def _current(self, name: str, session: int) -> Cursor:
        cursor = self._journal.cursor(name)
        if cursor is None or cursor.session != session:
            raise ControlError("superseded", f"another process has taken over adapter {name!r}")
        return cursor

    def note_end(self, name: str, detail: str) -> None:
        """An adapter's process has ended by itself."""
        known = self._adapters.setdefault(name, {"type": "", "types": None, "seen": 0.0})
        known.update(state="ended", detail=detail)

    def note_gone(self, name: str) -> None:
        """An adapter that was taken out of the configuration has delivered, and ended."""
        self._leaving.discard(name)
        if name not in self._configured:
            self._adapters.pop(name, None)
            self._retries.pop(name, None)
        self._answer_drains()

    def _note_state(self, name: str, request: dict[str, Any]) -> None:
        known = self._adapters.setdefault(name, {"type": "", "types": None})
        known.update(
            state=str(request.get("state", ""))[:20],
            detail=str(request.get("detail", ""))[:1000],
            seen=time.time(),
        )

    # --- operators ----------------------------------------------------------------------------

    def _status(self, identity: bytes, request: dict[str, Any]) -> None:
        facts = self.facts(STREAM_BYTES)
        facts["losses"] = _that_fit(facts["losses"], LOSS_BYTES, "other")
        facts["not_carried"] = _that_fit(
            facts["not_carried"], NOT_CARRIED_BYTES, f"{NOT_CARRIED}other"
        )
        self._answer(identity, request, "status", **facts)

    def facts(self, stream_bytes: int | None = None) -> dict[str, Any]:
        """All that there is to tell; a few milliseconds' work.

        Of streams, and of runs, what fits into ``stream_bytes``, each: those seen last.
        """
        head = self._journal.head
        streams, total = self._journal.streams(STATUS_STREAMS)
        runs, runs_total = self._journal.runs(STATUS_RUNS)
        sites = [self._site_facts(RunKey(*run), facts) for run, facts in runs]
        if stream_bytes is not None:
            last_first = sorted(streams, key=lambda item: -item[1].last_seen)
            n = _how_many(map(_stream_facts, last_first), stream_bytes)
            streams = sorted(last_first[:n], key=lambda item: item[1].first_seen)
            sites = sites[: _how_many(sites, stream_bytes)]
        counts = [
            {"reason": reason, "site": site, "n": n} for reason, site, n in self._journal.counters()
        ]
        dead = self._journal.count_dead_letters()
        cursors = {name: Cursor(0, 0, b"", {}, 0.0) for name in self._configured}
        cursors |= dict(self._journal.cursors())
        restarts = self._broker.restarts()
        adapters = {}
        for name, cursor in sorted(cursors.items()):
            config = self._configured.get(name)
            away = "away" if config or ":" in name else "removed"
            retries = max(self._retries.get(name, 0), cursor.counters.get("retries", 0))
            adapters[name] = {
                **self._adapters.get(name, {"type": "", "types": None, "state": away}),
                "external": bool(config and config.external),
                "cursor": cursor.offset,
                "lag": head - cursor.offset,
                "dead_letters": dead.get(name, 0),
                "restarts": restarts.get(name, 0),
                "counters": cursor.counters | ({"retries": retries} if retries else {}),
            }
        return {
            "version": __version__,
            "now": time.time(),
            "control": self._broker.control_address,
            "ingest": self._broker.intake.address,
            "publish": self._broker.publisher.address,
            "daemon": self._broker.status(),
            "journal": {
                "epoch": self._journal.epoch.hex(),
                "head": head,
                "batches": self._journal.batches,
                "bytes": self._journal.bytes,
                "max_bytes": self._broker.config.max_bytes,
                "file_bytes": self._journal.file_size(),
            },
            "quarantined": dead.get(QUARANTINE, 0),
            "adapters": adapters,
            "sites": sites[::-1],  # those that were seen last come last
            "runs_total": runs_total,
            "streams": list(map(_stream_facts, streams)),
            "streams_total": total,
            "losses": [each for each in counts if not _is_not_carried(each)],
            "not_carried": list(filter(_is_not_carried, counts)),
        }

    def _site_facts(self, run: RunKey, known: Run) -> dict[str, Any]:
        """How a run of a site is. ``writers``: those of several jobs that wrote at once."""
        facts = run._asdict() | {
            "state": known.state or "ended",
            "records": known.records,
            "step": known.step,
            "streams": known.streams,
            "waiting": None,
            "last_seen": known.last_seen,
            "writers": msgpack.unpackb(known.writers) if known.writers else [],
        }
        if life := self._broker.intake.sites.life(run):
            stale = time.monotonic() - self._broker.config.stale_after
            facts["state"] = "stale" if life.heard < stale else "active"
            heard = time.time() - (time.monotonic() - life.heard)
            facts["last_seen"] = max(known.last_seen, heard)
            facts["waiting"] = life.waiting(stale)
        return facts

    def _forget(self, identity: bytes, request: dict[str, Any]) -> None:
        """An adapter that is no longer configured will not come back: drop its cursor."""
        name = check_name("name", request["name"])
        if name in self._configured or name in self._leaving:
            raise ControlError(
                "in_use", f"adapter {name!r} is in use: take it out of the YAML, and reload"
            )
        if self._journal.cursor(name) is None:
            raise ControlError("unknown_adapter", f"nothing is known of an adapter {name!r}")
        if letters := self._journal.count_dead_letters().get(name):
            raise ControlError(
                "dead_letters",
                f"{letters} dead letters of adapter {name!r} are kept: see `zmqtrack dlq list "
                f"--adapter {name}`, and drop them first",
            )
        self._journal.drop_cursor(name)
        self._adapters.pop(name, None)
        self._retries.pop(name, None)
        self._answer(identity, request, "done", after_commit=True)

    def _reload(self, identity: bytes, request: dict[str, Any]) -> None:
        """Answers when the configuration has been read again; that takes a second or so."""
        if self._broker.on_reload is None:
            raise ControlError("no_configuration", "this daemon has no file to read again")
        self._broker.on_reload(
            lambda outcome: self._answer(identity, request, "reloaded", **outcome._asdict())
        )

    def _probe(self, identity: bytes, request: dict[str, Any]) -> None:
        """Answers when each tracker has been tried; that takes as long as the slowest of them."""
        if self._broker.on_probe is None:
            raise ControlError("no_configuration", "this daemon has no adapters of its own")
        self._broker.on_probe(
            float(_number(request["seconds"], 1, MAX_PROBE)),
            lambda found: self._answer(identity, request, "probed", trackers=found),
        )

    def _drain(self, identity: bytes, request: dict[str, Any]) -> None:
        """Answers once every adapter has committed all that is journalled at this moment.

        A client repeats itself while it waits: what counts is when it asked first.
        """
        head, ident = self._journal.head, request.get("id")
        for offset, who, first in self._drains:
            if ident is not None and (who, first.get("id")) == (identity, ident):
                head = offset
        self._drains.append((head, identity, request))
        self._drains = self._drains[-100:]  # who asks again has given the older one up
        self._answer_drains()

    def _answer_drains(self) -> None:
        if not self._drains:
            return
        slowest = self.delivered()
        for drain in [drain for drain in self._drains if drain[0] <= slowest]:
            self._drains.remove(drain)
            self._answer(drain[1], drain[2], "drained", after_commit=True, head=drain[0])

    def delivered(self) -> int:
        """The offset up to which every adapter that shall have it has committed."""
        offsets = {name: cursor.offset for name, cursor in self._journal.cursors()}
        required = self._leaving | set(self._configured)
        return min((offsets.get(name, 0) for name in required), default=self._journal.head)

    def _dlq(self, identity: bytes, request: dict[str, Any]) -> None:
        """Which dead letters there are, without their content; at most 1000."""
        name = request.get("name")
        if name is not None:
            check_name("name", name)
        facts = []
        for letter in self._journal.dead_letters(adapter=name, brief=True):
            header = wire.decode_header(letter.header)
            facts.append(
                {
                    "id": letter.id,
                    "adapter": letter.adapter,
                    "type": letter.type,
                    "run": header.run,
                    "records": header.count,
                    "reason": letter.reason,
                    "time": letter.time,
                    "retrying": bool(letter.retry),
                }
            )
        dead = self._journal.count_dead_letters()
        total = sum(dead.values()) if name is None else dead.get(name, 0)
        self._answer(identity, request, "dlq", letters=facts, total=total)

    def _dlq_fetch(self, identity: bytes, request: dict[str, Any]) -> None:
        """Dead letters whole: two frames (header, body) each; the first ones, if they are large."""
        letters: list[DeadLetter] = []
        client: Client = request["client"]
        for ident in sorted(_ids(request["ids"])):
            found = self._journal.dead_letters(ids=[ident])
            if "operator" not in client.roles and client is not ADAPTERS:
                found = [each for each in found if self._is_own(each.adapter, client)]
            letters += found
            if sum(len(letter.body) for letter in letters) >= PAGE_BYTES:
                break
        self._answer(
            identity,
            request,
            "letters",
            frames=[frame for letter in letters for frame in (letter.header, letter.body)],
            letters=[
                [letter.id, letter.adapter, letter.type, letter.reason, letter.place]
                for letter in letters
            ],
        )

    def _dlq_retry(self, identity: bytes, request: dict[str, Any]) -> None:
        """Adapters try them again; what is in quarantine was never delivered, and goes to all."""
        ids = _ids(request["ids"])
        letters = self._journal.dead_letters(ids=ids)
        held = [letter for letter in letters if letter.adapter == QUARANTINE]
        for letter in held:
            self._broker.intake.release(letter)
        n = self._journal.unbury([letter.id for letter in held]) + self._journal.retry(ids)
        self._answer(identity, request, "done", after_commit=True, n=n)

    def _dlq_drop(self, identity: bytes, request: dict[str, Any]) -> None:
        """Give dead letters up for good: they are counted as lost."""
        ids = _ids(request["ids"])
        for letter in self._journal.dead_letters(ids=ids):
            header = wire.decode_header(letter.header)
            self._journal.count("dead_letter_dropped", header.run.site, header.count)
        n = self._journal.unbury(ids)
        self._answer(identity, request, "done", after_commit=True, n=n)

    # --- answers ------------------------------------------------------------------------------

    def _answer(
        self,
        identity: bytes,
        request: dict[str, Any],
        op: str,
        *,
        after_commit: bool = False,
        frames: Sequence[bytes] = (),
        **fields: Any,
    ) -> None:
        message = wire.encode_control(op, id=request.get("id"), **fields)
        self._broker.reply([identity, message, *frames], after_commit=after_commit)

    def _refuse(self, identity: bytes, request: dict[str, Any], reason: str, detail: str) -> None:
        self._answer(
            identity,
            request,
            "refused",
            stream=request.get("stream"),
            reason=reason,
            detail=detail,
        )


def _who(request: dict[str, Any]) -> Who | None:
    """The process that a beat comes from, if it says."""
    marks = request.get("family")
    if not marks:
        return None
    if type(marks) is not list or len(marks) > MAX_MARKS:
        raise ValueError(f"the family is no array of 1 to {MAX_MARKS} marks")
    if any(type(mark) is not bytes or len(mark) != 8 for mark in marks):
        raise ValueError("a mark of the family has not 8 bytes")
    host = request["host"]
    if type(host) is not str or not _HOST.fullmatch(host):
        raise ValueError(f"{reprlib.repr(host)} is no host's name")
    return Who(host, _number(request["pid"]), frozenset(marks))


def _ids(numbers: Sequence[Any]) -> list[int]:
    """Numbers of dead letters, no more than a statement of the database takes."""
    if len(numbers) > 1000:
        raise ControlError("too_many", "at most 1000 dead letters at a time")
    return [_number(ident) for ident in numbers]


def _number(value: object, least: int = 0, most: int = MAX_INT) -> int:
    """An integer that a database takes; what comes from outside may be anything."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{reprlib.repr(value)} is not an integer from {least} to {most}")
    return value


def _check_letters(letters: list[tuple[Any, ...]]) -> None:
    """What is kept must be told of later: `dlq` decodes the header of each."""
    for _, _, _, header, _ in letters:
        try:
            wire.decode_header(header)
        except FrameError as error:
            raise ValueError(str(error)) from None


def _stream_facts(item: tuple[bytes, Stream]) -> dict[str, Any]:
    return {"stream": item[0].hex(), **item[1]._asdict()}


def _how_many(facts: Iterable[Any], room: int) -> int:
    """How many of the first of them fit into so many bytes."""
    n = 0
    for each in facts:
        room -= len(msgpack.packb(each))
        if room < 0:
            break
        n += 1
    return n


def _is_not_carried(count: dict[str, Any]) -> bool:
    """It counts what a syntax cannot carry: nothing that was logged is lost."""
    return bool(count["reason"].startswith(NOT_CARRIED))


def _that_fit(losses: list[dict[str, Any]], room: int, other: str) -> list[dict[str, Any]]:
    """The largest, and of each reason the sum of the others: all together they are as many."""
    ordered = sorted(losses, key=lambda loss: -loss["n"])
    told = ordered[: _how_many(ordered, room)]
    sums: Counter[str] = Counter()
    for loss in ordered[len(told) :]:
        sums[loss["reason"]] += loss["n"]
    rest: list[dict[str, Any]] = [
        {"reason": reason, "site": OTHERS, "n": n} for reason, n in sums.most_common()
    ]
    n = _how_many(rest, REST_BYTES)
    if n < len(rest):  # reasons may be writers' own words
        rest[n:] = [{"reason": other, "site": OTHERS, "n": sum(loss["n"] for loss in rest[n:])}]
    return sorted(told, key=lambda loss: (loss["reason"], loss["site"])) + rest


def _types(request: dict[str, Any]) -> list[str] | None:
    types = request.get("types")
    if types is not None and len(types) > MAX_TYPES:
        raise ValueError(f"{len(types)} data types; at most {MAX_TYPES}")
    return None if types is None else [check_type(name) for name in types]
