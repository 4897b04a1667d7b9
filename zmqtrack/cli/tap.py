"""``zmqtrack tap``: records, as they pass."""

from __future__ import annotations

import difflib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Protocol

import typer
import zmq

from .. import wire
from ..control import Connection, ControlClient, resolve
from ..errors import ControlError, FrameError
from ..keys import Key
from ..records import RESERVED, VOCABULARY, Record, check_type
from ..wire import Header
from .common import Address, AsJSON, daemon, fail, where
from .lines import as_json as json_line
from .lines import as_text as text_line

__all__ = ["Chosen", "Listener", "tap"]

#: The daemon is heard at least each half second; after so many it is said that it is not.
SILENCE = 1.5
#: Then it is asked again where it publishes, each so many seconds.
ASK_AGAIN = 1.0
#: Messages that are read before lines are written.
TURN = 200
#: After so many seconds without a word it was the daemon that was away, and not we too slow.
PAUSE = 1.0
#: What was missed is told at most so often (seconds).
SAY_MISSED = 1.0

TypeNames = Annotated[
    list[str] | None,
    typer.Argument(metavar="TYPE", help="Data types: metric, image, … Default: all."),
]
Sites = Annotated[
    list[str] | None, typer.Option("--site", "-s", help="Only this site; may stand several times.")
]
Globs = Annotated[
    list[str] | None,
    typer.Option("--key", help="Only keys like this, as 'train/*'; may stand several times."),
]
OwnKey = Annotated[
    Path | None,
    typer.Option(
        "--key-file",
        "-k",
        envvar="ZMQTRACK_KEY",
        readable=False,
        help="A key file, where the daemon asks for one.",
    ),
]


def tap(
    types: TypeNames = None,
    site: Sites = None,
    key: Globs = None,
    run: Annotated[str | None, typer.Option("--run", "-r", help="Only this run.")] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", min=1, help="End after so many records.")
    ] = None,
    address: Address = None,
    key_file: OwnKey = None,
    as_json: AsJSON = False,
) -> None:
    """Show records as they pass, one a line, from now on. Ctrl-C ends it.

    It slows nothing down: what is too fast for the terminal is left out, and it says how much. It
    goes on by itself when the daemon restarts. With keys it takes one with the role subscriber,
    and shows what that may see.

    Example:  zmqtrack tap metric --site site-1 --key 'train/*'

    Example:  zmqtrack tap --json --limit 100 | jq .value
    """
    chosen = Chosen(_checked(types or []), site or [], key or [], run)
    if stray := next((glob for glob in chosen.globs if Path(glob).is_file()), None):
        _say(f"--key {stray} chooses records by their key; the file of your own is --key-file")
    if sys.stdout is None:
        fail("stdout is closed: there is nowhere to show records")
    with daemon(address, key_file) as client:
        listener = Listener(client, *where(address, key_file), chosen)
        printer = _Printer(limit, as_json)
        try:
            with suppress(KeyboardInterrupt):
                listener.run(printer, sys.stdout.fileno())
        finally:
            listener.close()


def _checked(types: list[str]) -> list[str]:
    """The data types that are asked for; those that cannot come are a mistake of usage."""
    for name in types:
        try:
            check_type(name)
        except ValueError as error:
            fail(str(error), code=2)
        if name in RESERVED:
            fail(f"{name!r} is the protocol's own word: no records pass under it", code=2)
        if name not in VOCABULARY:
            near = difflib.get_close_matches(name, VOCABULARY, n=1)
            if near:
                _say(f"{name!r} is none of the built-in data types: did you mean {near[0]}?")
    return types


def _say(text: str) -> None:
    """On stderr: stdout is for records."""
    typer.echo(f"zmqtrack tap: {text}", err=True)


class Chosen:
    """Which records are wanted."""

    def __init__(
        self, types: Sequence[str], sites: Sequence[str], globs: Sequence[str], run: str | None
    ) -> None:
        self.types, self.globs = frozenset(types), globs
        self._sites, self._run = frozenset(sites), run
        #: Whether ZeroMQ leaves other sites out, so that nobody knows how much there was of ours.
        self.by_site = bool(types and sites)

    def topics(self) -> Iterator[bytes]:
        """What to subscribe to: as little as ZeroMQ can tell apart."""
        if not self.types:  # those of a user's own too, whatever they are called
            yield b""
        for data_type in self.types:
            for site in self._sites or [None]:
                yield wire.topic(data_type, site)
        for own in ("head", "pulse"):
            yield wire.topic(own)

    def batch(self, header: Header) -> bool:
        return (not self._sites or header.run.site in self._sites) and (
            self._run is None or header.run.run == self._run
        )

    def record(self, record: Record) -> bool:
        return not self.globs or any(fnmatchcase(record.key, glob) for glob in self.globs)


class Sink(Protocol):
    """Takes records, many at a time."""

    @property
    def full(self) -> bool:
        """It wants no more."""
        ...

    def add(self, data_type: str, header: Header, record: Record) -> None: ...

    def flush(self) -> None: ...


class _Printer:
    """Writes records to stdout, many at a time; knows whether anybody still reads."""

    def __init__(self, limit: int | None, as_json: bool) -> None:
        self._left, self._json = limit, as_json
        self._lines: list[str] = []
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # whatever it can show
        self._terminal = sys.stdout.isatty()
        self._colours = self._terminal and not as_json and "NO_COLOR" not in os.environ
        self._width: int | None = None

    @property
    def full(self) -> bool:
        """As many as were asked for have been written."""
        return self._left == 0

    def add(self, data_type: str, header: Header, record: Record) -> None:
        if self._left is not None:
            self._left -= 1
        if self._terminal and not self._lines:  # it may have been resized since the last ones
            with suppress(OSError):  # it is gone; flush will find that
                # Not of COLUMNS, which does not follow where somebody exports it.
                self._width = os.get_terminal_size(sys.stdout.fileno()).columns or None
        self._lines.append(
            json_line(data_type, header, record)
            if self._json
            else text_line(data_type, header, record, self._width, self._colours)
        )

    def flush(self) -> None:
        if self._lines:
            text = "".join(f"{line}\n" for line in self._lines)
            self._lines.clear()
            sys.stdout.write(text)
            sys.stdout.flush()


class Listener:
    """A subscription that nobody waits for; knows what it missed.

    Raises:
        ControlError: the daemon cannot be asked, or the key may not subscribe.
    """

    def __init__(
        self,
        client: ControlClient,
        control: str,
        key: Key | None,
        chosen: Chosen,
        say: Callable[[str], None] = _say,
    ) -> None:
        self._say = say
        self._client, self._control, self._key = client, control, key
        self._chosen = chosen
        self._position: int | None = None  # offset up to which we know what passed
        self._came = 0  # batches since the last head
        self._missed = 0
        self._said = 0.0  # when that was told
        self._heard = False  # ever
        self._away = False  # it is told that nothing is heard
        self._back = False  # something is heard again, and what was missed not told yet
        self._connect(self._ask(timeout=5.0))

    @property
    def address(self) -> str:
        return self._connection.address

    def _ask(self, timeout: float) -> str:
        """Where the daemon publishes."""
        welcome = self._client.request("hello", timeout=timeout)
        you = welcome["you"]
        if "subscriber" not in you["roles"]:
            raise ControlError(
                "not_allowed",
                f"the key of {you['name']} may not see records: that takes the role subscriber. On "
                f"the daemon's machine:  zmqtrack keys roles {you['name']} "
                f"{' '.join(sorted({*you['roles'], 'subscriber'}))}",
            )
        return resolve(welcome["publish"], self._control)

    def _connect(self, address: str) -> None:
        self._connection = Connection(zmq.SUB, address, self._key)
        self._subscribe()

    def _subscribe(self) -> None:
        self._socket = self._connection.socket
        for topic in self._chosen.topics():
            self._socket.subscribe(topic)

    def close(self) -> None:
        self._connection.close()

    def run(self, printer: Sink, reader: int | None = None) -> None:
        """Until the printer is full, or nobody reads what it writes to the descriptor ``reader``.

        Raises:
            BrokenPipeError: nobody does.
            ControlError: the key may not subscribe any more.
        """
        heard = asked = time.monotonic()
        while not printer.full:
            if self._connection.refusal() and self._connection.socket is not self._socket:
                self._subscribe()
            poller = zmq.Poller()
            poller.register(self._socket, zmq.POLLIN)
            if reader is not None:
                poller.register(reader, zmq.POLLERR)
            ready = dict(poller.poll(500))
            if reader in ready:  # who read has ended, as `head` does
                raise BrokenPipeError
            now = time.monotonic()
            if self._socket in ready:
                if not self._heard:
                    self._say(f"listening to {self.address}; Ctrl-C ends")
                elif self._away:
                    self._say("the daemon is heard again")
                self._heard = True
                self._back |= now - heard > PAUSE
                self._away = False
                self._receive(printer)
                heard = time.monotonic()  # the terminal may have kept us
            elif now - heard > SILENCE and now - asked > ASK_AGAIN:
                asked = now
                self._look_for_it(now - heard)
            self._say_missed()

    def _look_for_it(self, silence: float) -> None:
        if not self._away:
            self._away = True
            self._say(f"nothing is heard from {self.address} for {silence:.1f} s; trying")
        try:
            address = self._ask(timeout=ASK_AGAIN)
        except ControlError as error:
            if error.reason in ("unreachable", "timeout"):
                return
            raise
        if address != self.address:  # it was restarted at other ports
            self.close()
            self._connect(address)
        else:  # it answers: the connection leads nowhere
            self._connection.renew()
            self._subscribe()

    def _receive(self, printer: Sink) -> None:
        """What waits, up to a turn's worth; it is written at the end."""
        try:
            for _ in range(TURN):
                self._take(self._socket.recv_multipart(zmq.NOBLOCK), printer)
                if printer.full:
                    break
        except zmq.Again:
            pass
        finally:
            printer.flush()

    def _take(self, frames: list[bytes], printer: Sink) -> None:
        try:
            data_type = wire.decode_topic(frames[0])
            if data_type == "pulse":  # for those who may not see all: what they miss is not told
                return
            if data_type == "head":
                head = wire.decode_control(frames[1])
                self._account(head["first"], head["types"])
                return
            header = wire.decode_header(frames[1])
            self._came += 1
            if not self._chosen.batch(header):
                return
            records = wire.decode_body(data_type, header, frames[2])
        except FrameError as error:
            self._say(f"a batch cannot be read: {json.dumps(str(error))}")
            return
        for record in filter(self._chosen.record, records):
            printer.add(data_type, header, record)
            if printer.full:
                break

    def _account(self, first: int, types: list[str]) -> None:
        """A head says which batches there were; which of those did not come?"""
        before, self._position = self._position, first + len(types) - 1
        came, self._came = self._came, 0
        if before is None:
            return
        if first <= before:
            self._say("the daemon has a new journal")
            return
        wanted = sum(not self._chosen.types or name in self._chosen.types for name in types)
        # Of commits whose head was missed too, nobody told what they were.
        untold = first - 1 - before
        if untold or not self._chosen.by_site:
            self._missed += max(0, untold + wanted - came)

    def _say_missed(self) -> None:
        now = time.monotonic()
        if self._missed and now - self._said > SAY_MISSED:
            most = "up to " if self._chosen.types else ""
            why = "while nothing was heard" if self._back else "too fast for this terminal"
            self._say(f"{most}{self._missed} batches missed ({why})")
            self._said, self._missed, self._back = now, 0, False
