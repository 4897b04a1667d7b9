"""``Run``: the neutral logging API that all writers stand on."""

from __future__ import annotations

import enum
import itertools
import logging
import math
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import msgpack

from . import fork, keys, wire  # noqa: F401 -- fork: for what it arranges
from .control import DEFAULT_ADDRESS, check_address
from .ending import (
    await_death,
    end_with_thread,
    hook_end_of_child,
    hook_exits,
    live,
    status_after,
    tell_at_exit,
)
from .errors import RunFinished
from .facts import about_process
from .histogram import summarise
from .image import encode_image
from .records import (
    CUT,
    MAX_KEY,
    RESERVED,
    STATUSES,
    VOCABULARY,
    Entry,
    LineKey,
    PairKey,
    RunKey,
    TrialKey,
    as_key,
    as_number,
    check_name,
    check_type,
    check_values,
)
from .rows import Rows
from .sender import Buffer, Sender, starting
from .settings import Settings
from .spool import Spool, default_directory

if TYPE_CHECKING:
    from .egress import Gate
    from .policy import Policy

__all__ = ["Run", "init", "status_after"]

#: Records in the buffer at which a logging call waits (at most :data:`STALL`, in seconds)
#: for the sender thread, which waits for nothing but the local disk.
BUFFER_RECORDS = 500_000
STALL = 1.0

#: Bytes of large values after which a call waits likewise.
BUFFER_BYTES = 32 << 20
#: A value of more bytes travels in pieces.
WHOLE = 1 << 20

#: Steps are integers of 64 bits.
MIN_STEP, MAX_STEP = -(2**63), 2**63 - 1

#: Files and large values travel in pieces of so many bytes.
PIECE = 512 << 10
#: Tells large values of one stream apart.
_numbers = itertools.count(1)

log = logging.getLogger("zmqtrack")

_now = time.time


def init(
    experiment: str | None = None,
    run: str | None = None,
    site: str | None = None,
    address: str | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    flush_interval: float | None = None,
    exit_timeout: float | None = None,
    codec: str | None = None,
    spool_dir: str | os.PathLike[str] | None = None,
    spool_bytes: int | None = None,
    keep: str | None = None,
    key: str | os.PathLike[str] | None = None,
    egress: str | os.PathLike[str] | None = None,
) -> Run:
    """Begin to log as ``site`` in ``run`` of ``experiment``; returns at once.

    No network is touched here: a sender thread connects when the daemon can be reached.

    Args:
        experiment: groups runs; ``ZMQTRACK_EXPERIMENT``, else ``"default"``.
        run: one training job, the same name at every site of it; ``ZMQTRACK_RUN``, else a
            new name of date, time and a few random letters.
        site: who logs; ``ZMQTRACK_SITE``, else the host's name.
        address: the daemon's control address; ``ZMQTRACK_ADDRESS``, else
            ``tcp://127.0.0.1:5555``.
        config: logged as params.
        flush_interval: seconds between two looks into the buffer; 0: each call at once.
            ``ZMQTRACK_FLUSH_INTERVAL``, else 0.05.
        exit_timeout: seconds that ``finish`` (also at exit) may take to deliver what is left;
            ``ZMQTRACK_EXIT_TIMEOUT``, else 5.
        codec: ``"zstd"`` compresses batches (needs the package zstandard here and there);
            ``ZMQTRACK_CODEC``, else ``"none"``.
        spool_dir: where what is undelivered is kept; ``ZMQTRACK_SPOOL_DIR``, else among the
            user's state files.
        spool_bytes: how much may wait there; ``ZMQTRACK_SPOOL_BYTES``, else 1 GiB. Beyond it
            records are given up and counted, never ``run``, ``param`` and ``tag`` before others.
        keep: which are kept then, the ``"newest"`` or the ``"oldest"``; ``ZMQTRACK_KEEP``, else
            the newest.
        key: file that ``zmqtrack keys new`` made for this site; ``ZMQTRACK_KEY``. It names the
            site and the address too. None: the daemon uses no keys.
        egress: file of the policy that says what may leave (:mod:`zmqtrack.policy`);
            ``ZMQTRACK_EGRESS``, else all may.

    Raises:
        TypeError, ValueError: an argument, or an egress policy, that cannot be used.
        KeyFileError: ``key`` cannot be used.
        SpoolError: ``spool_dir`` cannot be written.
    """
    environ = os.environ.get
    key_file = environ("ZMQTRACK_KEY") if key is None else key
    if key_file is not None and not os.fspath(key_file):
        raise ValueError("key (or ZMQTRACK_KEY) is set and empty: name a file, or leave it unset")
    own_key = None if key_file is None else keys.load(key_file)
    site = site or environ("ZMQTRACK_SITE")
    if own_key and site and site != own_key.name:
        raise ValueError(f"the key in {key_file} is that of site {own_key.name!r}, not {site!r}")
    run_key = RunKey(
        check_name("experiment", experiment or environ("ZMQTRACK_EXPERIMENT") or "default"),
        check_name("run", run or environ("ZMQTRACK_RUN") or _new_name()),
        check_name("site", own_key.name if own_key else site or socket.gethostname()),
    )
    told = own_key.address if own_key else DEFAULT_ADDRESS
    address = check_address(address or environ("ZMQTRACK_ADDRESS") or told)
    settings = Settings.of(
        flush_interval=flush_interval,
        exit_timeout=exit_timeout,
        codec=codec,
        spool_bytes=spool_bytes,
        keep=keep,
    )
    if config is not None and not isinstance(config, Mapping):
        raise TypeError(f"config maps names to values; it may not be a {type(config).__name__}")
    for name in config or ():
        check_name("key", name, MAX_KEY)
    policy_file = environ("ZMQTRACK_EGRESS") if egress is None else egress
    policy = None
    if policy_file is not None:
        from .policy import Policy  # only where it is asked for

        policy = Policy.load(policy_file)
    if settings.codec == "zstd":
        import zstandard  # noqa: F401 -- fail here, not in the sender thread
    new = Run(
        run_key,
        address,
        Path(spool_dir).absolute() if spool_dir is not None else default_directory(),
        exit_timeout=settings.exit_timeout,
        spool_limits=(settings.spool_bytes, settings.keep),
        sender_options={
            "flush_interval": settings.flush_interval,
            "codec": wire.CODECS[settings.codec],
            "key": own_key,
            "key_file": None if key_file is None else Path(key_file).absolute(),
        },
        policy=policy,
    )
    if config:
        new.log_params(config)
    return new


class State(enum.Enum):
    """Where a run is in its life, in this process."""

    OPEN = "open"
    UNBORN = "unborn"  # in a forked child that has not logged
    RESTING = "resting"  # over, unless somebody logs after all
    BEGINNING = "beginning"  # the first call after either makes it a stream of its own
    ENDED = "ended"


class Run:
    """One site's life in one training job. Made by :func:`init`; safe to use from any thread.

    Times are seconds since the epoch, taken at the call unless given. Steps are integers,
    may repeat and go back, and may be left out.
    """

    _egress: Gate | None = None
    #: Changed under ``_lock`` alone. ``_append`` is what it means to a logging call.
    _state = State.OPEN
    _append: Callable[[Entry], None]
    _said_spelling = False
    _hurried = False  # it ends without waiting: another has just waited in vain

    def __init__(
        self,
        key: RunKey,
        address: str,
        spool_dir: Path,
        *,
        exit_timeout: float,
        spool_limits: tuple[int, str],
        sender_options: dict[str, Any],
        policy: Policy | None = None,
    ) -> None:
        self.key = key
        self.address = address
        self.exit_timeout = exit_timeout
        self._spool_dir = spool_dir
        self._spool_limits = spool_limits
        self._options = sender_options
        self._policy = policy
        self.rows = Rows()
        # One thread may take it twice: a signal's handler of the program's own may log.
        self._lock = threading.RLock()
        self._buffer: Buffer = Buffer()
        self._keys: set[str] = set()  # known to be good names of metrics
        self._large = 0  # bytes of large values since the last wait for the disk
        self._stalled = -math.inf  # when the disk last kept a call waiting in vain
        self._owner = os.getpid()
        with self._lock:
            self._start()
        self._append(self._beginning())
        live.add(self)
        hook_exits()
        end_with_thread(self)
        hook_end_of_child()

    def _start(self) -> None:
        """A new stream: a spool, and the sender thread that empties the buffer into it.

        Nothing of it is seen before all of it is there: an exception may come at any place.
        """
        with starting():
            spool = Spool.create(self._spool_dir, self.key, self.address)
            spool.limit, spool.keep = self._spool_limits
            egress = None
            if self._policy is not None:
                from .egress import Gate

                egress = Gate(self._policy, self.key, self._spool_dir)
            sender = Sender(
                spool,
                self._buffer,
                egress=egress,
                rows=self.rows,
                on_quiet=self._on_quiet,
                **self._options,
            )
            try:
                sender.start()
            except BaseException:
                sender.stop(time.monotonic())
                raise
        self._egress, self._sender = egress, sender
        if self._state is State.ENDED:  # meanwhile, by a signal's handler in this thread
            sender.stop(time.monotonic() + self.exit_timeout)
            return
        self._state = State.OPEN
        each_wakes = self._options["flush_interval"] == 0
        self._append = self._append_and_wake if each_wakes else self._buffer.append

    def _beginning(self) -> Entry:
        return "start", about_process(), None, _now(), "run"

    # --- logging ------------------------------------------------------------------------------

    def log_metric(
        self, key: str, value: Any, step: int | None = None, time: float | None = None
    ) -> None:
        """Log one number.

        Raises:
            TypeError: ``value`` is no number (see :func:`zmqtrack.records.as_number`), ``step``
                none that can be cut to an integer, or ``key`` no string.
            RunFinished: the run has been finished.
        """
        if value.__class__ is not float:
            value = as_number(key, value)
        if step is not None and (step.__class__ is not int or not MIN_STEP <= step <= MAX_STEP):
            step = _as_step(key, step)
        if key not in self._keys:
            key = self._new_key(key)
        self._append((key, value, step, _now() if time is None else float(time), "metric"))
        if len(self._buffer) > BUFFER_RECORDS:
            self._stall()

    def log_metrics(
        self,
        metrics: Mapping[str, Any],
        step: int | None = None,
        time: float | None = None,
        chart: str | None = None,
    ) -> None:
        """Log several numbers with one step and one time; all of them or, on an error, none.

        With ``chart`` they are lines of one chart: their keys are ``chart/KEY``, and a tracker
        that can draws them together.
        """
        when = _now() if time is None else float(time)
        step = None if step is None else _as_step("metrics", step)
        spell = self._new_key if chart is None else partial(self._new_pair, LineKey, chart)
        numbers = [(spell(key), as_number(key, value)) for key, value in metrics.items()]
        for key, value in numbers:
            self._append((key, value, step, when, "metric"))
            if len(self._buffer) > BUFFER_RECORDS:
                self._stall()

    def log_param(self, key: str, value: Any) -> None:
        """Log a parameter: text, number, bool, None, or lists and dicts of those.

        What is none of those is logged as its ``str``.
        """
        plain, size = _plain_and_size(value, fallback=str)
        self._log("param", key, plain, None, None, size)

    def log_params(self, params: Mapping[str, Any]) -> None:
        for key, value in params.items():
            self.log_param(key, value)

    def log_trial(
        self,
        trial: str,
        params: Mapping[str, Any],
        metrics: Mapping[str, Any],
        step: int | None = None,
        time: float | None = None,
    ) -> None:
        """Log params and metrics of one trial of several in this run: all or, on an error, none.

        Their keys are ``trial/KEY``; a tracker that can shows each trial by itself.
        """
        when = _now() if time is None else float(time)
        step = None if step is None else _as_step("metrics", step)
        spell = partial(self._new_pair, TrialKey, trial)
        values = [(spell(key), _plain(value, fallback=str)) for key, value in params.items()]
        numbers = [(spell(key), as_number(key, value)) for key, value in metrics.items()]
        for key, value in values:
            self._append((key, value, None, when, "param"))
        for key, value in numbers:
            self._append((key, value, step, when, "metric"))
        if len(self._buffer) > BUFFER_RECORDS:
            self._stall()

    def set_tag(self, key: str, value: Any) -> None:
        """Set a tag; the value is logged as its ``str``."""
        self._log("tag", key, str(value), None, None)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        for key, value in tags.items():
            self.set_tag(key, value)

    def log_text(
        self, key: str, text: str, step: int | None = None, time: float | None = None
    ) -> None:
        """Log text under a name or a path (``"notes/readme.md"``)."""
        if not isinstance(text, str):
            raise TypeError(f"text {key!r}: expected a string, got {type(text).__name__}")
        self._log("text", key, text, step, time)

    def log_image(
        self,
        key: str,
        image: Any,
        step: int | None = None,
        time: float | None = None,
        dataformats: str | None = None,
    ) -> None:
        """Log an image: encoded bytes, a path, a PIL image, a figure, an array or a tensor.

        See :func:`zmqtrack.image.encode_image` for shapes, ``dataformats`` and errors.
        """
        self._log("image", key, encode_image(image, dataformats), step, time)

    def log_histogram(
        self,
        key: str,
        values: Any,
        step: int | None = None,
        time: float | None = None,
        bins: int | str | Sequence[float] = 64,
    ) -> None:
        """Log the distribution of ``values``: numbers in any nesting, an array or a tensor.

        See :func:`zmqtrack.histogram.summarise`; its result is taken too.
        """
        summary = summarise(values, bins)
        self._log("histogram", key, summary, step, time, 18 * len(summary["counts"]))

    def log_artifact(
        self, path: str | os.PathLike[str], name: str | None = None, step: int | None = None
    ) -> None:
        """Log a file, or all files below a folder, under ``name`` (default: its own name).

        The content is read now, in pieces. Waits for the local disk if the file is large,
        never for the network.

        Raises:
            OSError: it cannot be read.
        """
        source = Path(path)
        name = name or source.name
        files = sorted(p for p in source.rglob("*") if p.is_file()) if source.is_dir() else [source]
        for file in files:
            key = f"{name}/{file.relative_to(source).as_posix()}" if source.is_dir() else name
            self._log_file(key, file, step)

    def log_line(self, text: str, stream: str = "stdout") -> None:
        """Log a line of output (data type ``log``)."""
        self._log("log", stream, text, None, None)

    def log(
        self,
        data_type: str,
        key: str,
        value: Any,
        step: int | None = None,
        time: float | None = None,
    ) -> None:
        """Log a record of a data type of your own, say ``confusion_matrix``.

        The value may be what msgpack carries (numbers, text, bytes, bools, None, lists, dicts)
        and arrays, which become lists.

        Raises:
            TypeError: something else is in it.
            ValueError: the data type's name is built in (use its method) or cannot name one.
        """
        if check_type(data_type) in VOCABULARY | RESERVED:
            raise ValueError(f"{data_type!r} is built in: use the method for it, or another name")
        plain, size = _plain_and_size(value)
        self._log(data_type, key, plain, step, time, size)

    def lose(self, reason: str) -> None:
        """Count, under ``reason``, something that could not be logged; ``status`` shows it."""
        self._append((reason, 1, None, _now(), "lost"))

    @property
    def held(self) -> dict[str, int]:
        """Records that the egress policy has held back until now, by reason."""
        return dict(self._egress.held) if self._egress else {}

    # --- life ---------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Nothing more can be logged to it."""
        return self._state is State.ENDED

    def flush(self, timeout: float | None = 10.0) -> bool:
        """Wait until what was logged is on this machine's disk, from where it will be sent.

        After it returned True, no crash of any process on the way can lose it. It does not
        wait for the network. False if it took longer than ``timeout`` seconds.
        """
        over = self._state in (State.ENDED, State.RESTING)
        if self._state is State.UNBORN or (over and not self._sender.at_work):
            return True
        return self._sender.flush(timeout)

    def finish(self, status: str = "finished", timeout: float | None = None) -> None:
        """End the run and deliver what is left, within ``exit_timeout`` seconds.

        What could not be delivered stays in the spool, and one line says so, with the command
        that sends it. The next run does too that logs from the same folder to the same address,
        with the same key. Where a run of this process has just waited for an answer in vain, this
        one does not wait, and a line at the end of the process tells what was left. A second call
        does nothing.

        Raises:
            ValueError: the status is not one of finished, failed, killed.
        """
        if status not in STATUSES:
            raise ValueError(f"status {status!r} is unknown; known are {', '.join(STATUSES)}")
        if self._begin_to_end(status, timeout):
            self._wait_for_end()

    def _begin_to_end(self, status: str, timeout: float | None = None) -> bool:
        """Take no more records and deliver what there is; False if there is nothing to wait for."""
        with self._lock:
            before, self._state = self._state, State.ENDED
            self._append = self._refuse
            if before is State.OPEN:
                ours = os.getpid() == self._owner  # and not a child's, which ends nothing
                last = ("end", status, None, _now(), "run") if ours else None
                if timeout is None:
                    timeout = self._sender.patience(self.exit_timeout)
                    self._hurried = timeout < self.exit_timeout
                self._sender.stop(time.monotonic() + timeout, last)
        live.discard(self)
        return before is State.OPEN

    def _wait_for_end(self) -> None:
        left = self._sender.wait()
        if left and self._hurried:
            tell_at_exit(self._sender.how_to_send, left)
        elif left:
            key = " with that key" if self._options["key"] else ""
            print(
                f"zmqtrack: {left} records of run {self.key.run!r} (site {self.key.site!r}) are "
                f"not yet delivered to {self.address}; they are kept in {self._spool_dir}. "
                f"`{self._sender.how_to_send}` sends them once the daemon takes them, and so does "
                f"the next run that logs from this folder to that address{key}; `zmqtrack doctor` "
                "looks for the reason",
                file=sys.stderr,
            )

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.finish(status_after(error))

    def __repr__(self) -> str:
        return f"<zmqtrack.Run {'/'.join(self.key)} → {self.address}>"

    # --- inside -------------------------------------------------------------------------------

    def _append_row(self, entries: list[Entry]) -> None:
        """Append metrics that have been checked: at once, so that no batch ends among them."""
        if len(entries) == 1:
            self._append(entries[0])
        elif self._append == self._buffer.append:
            self._buffer.extend(entries)
        else:
            for entry in entries:
                self._append(entry)
        if len(self._buffer) > BUFFER_RECORDS:
            self._stall()

    def _log(
        self,
        data_type: str,
        key: str,
        value: Any,
        step: int | None,
        time: float | None,
        size: int = 0,
    ) -> None:
        """Append a record; ``size`` is (about) that of a value that is neither text nor bytes."""
        key = self._spell(key)
        if step is not None and (step.__class__ is not int or not MIN_STEP <= step <= MAX_STEP):
            step = _as_step(key, step)
        if isinstance(value, str):
            value = value.encode(errors="replace").decode()  # lone surrogates cannot travel
            size = len(value) if value.isascii() else 4 * len(value)  # at most, in UTF-8
        elif isinstance(value, bytes):
            size = len(value)
        when = _now() if time is None else float(time)
        if size > WHOLE:
            self._log_large(data_type, key, value, step, when)
        else:
            self._append((key, value, step, when, data_type))
            self._note_large(size)

    def _log_large(
        self, data_type: str, key: str, value: Any, step: int | None, when: float
    ) -> None:
        """Append a value in pieces, if it needs to be; they share the memory of its encoding."""
        packed = memoryview(wire.encode_value(value))
        if (size := len(packed)) <= WHOLE:
            self._append((key, value, step, when, data_type))
            self._note_large(size)
            return
        number = next(_numbers)
        for offset in range(0, size, PIECE):
            piece = packed[offset : offset + PIECE]
            self._append((key, (offset, size, piece, number), step, when, data_type + CUT))
            self._note_large(len(piece))

    def _note_large(self, size: int) -> None:
        self._large += size
        if self._large > BUFFER_BYTES or len(self._buffer) > BUFFER_RECORDS:
            self._stall()

    def _log_file(self, key: str, path: Path, step: int | None) -> None:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            when, offset = _now(), 0  # one time for all pieces: it tells this file from others
            while True:
                piece = file.read(min(PIECE, size - offset))
                if len(piece) < min(PIECE, size - offset):
                    raise OSError(f"{path} became shorter while it was read")
                self._log("artifact", key, [offset, size, piece], step, when)
                offset += len(piece)
                self._large += len(piece)
                if offset >= size:
                    return

    def _new_key(self, key: str) -> str:
        """A metric's key as it is to be appended; one that needs no spelling is remembered."""
        if key in self._keys:
            return key
        spelled = self._spell(key)
        if spelled is key and len(self._keys) < 100_000:
            self._keys.add(key)
        return spelled

    def _new_pair(self, kind: type[PairKey], first: str, second: str) -> str:
        """The same for a key of two names."""
        key = f"{first}{kind.mark}{second}"
        if key not in self._keys:
            parts = [self._spell(part, MAX_KEY // 2 - 1) for part in (first, second)]
            spelled = kind.mark.join(parts)
            if spelled != key or len(self._keys) >= 100_000:
                return spelled
            self._keys.add(key)
        return key

    def _spell(self, key: str, limit: int = MAX_KEY) -> str:
        spelled = as_key(key, limit)
        if spelled is not key and not self._said_spelling:
            self._said_spelling = True
            log.warning(
                "zmqtrack: the key %.60r is logged as %.60r: keys are not empty, have no control "
                "characters and at most %d bytes (said once for each run)",
                key,
                spelled,
                limit,
            )
        return spelled

    def _stall(self) -> None:
        """The buffer is full: let the sender thread catch up, and shed if it cannot.

        It waits for the local disk alone. When even that hangs, calls wait no more than
        :data:`STALL` every ten seconds, and what does not fit is counted.
        """
        if not self._sender.stuck or time.monotonic() - self._stalled > 10 * STALL:
            if self._sender.flush(STALL):
                self._large = 0
                return
            self._stalled = time.monotonic()
        if self._large > 2 * BUFFER_BYTES or len(self._buffer) > BUFFER_RECORDS:
            try:
                _, value, *_, data_type = self._buffer.pop()
            except IndexError:
                return  # the sender emptied it just now
            if data_type == "artifact" or data_type.endswith(CUT):
                value = value[2]
            self._large -= len(value) if isinstance(value, (str, bytes, memoryview)) else 0
            self._sender.lost.append("buffer_full")

    def _on_quiet(self, quiet: bool) -> None:
        """By the sender thread: let each call wake it, or none."""
        with self._lock:
            if self._state is State.OPEN and self._options["flush_interval"]:
                self._append = self._append_and_wake if quiet else self._buffer.append

    def _append_and_wake(self, record: Entry) -> None:
        self._buffer.append(record)
        self._sender.wake()

    def _refuse(self, record: Entry) -> NoReturn:
        await_death()
        raise RunFinished(f"run {self.key.run!r} is finished: nothing more can be logged to it")

    # --- fork: a child that logs gets a stream of its own; one that does not, costs nothing ----

    def _after_fork(self) -> None:
        self._lock = threading.RLock()
        self._buffer = Buffer()  # what the parent has not packed is the parent's
        self._large = 0
        self._state, self._append = State.UNBORN, self._begin_in_child

    def _rest(self, status: str) -> bool:
        """The thread that began the run ends, and so does the run until another thread logs.

        False if there is nothing to wait for.
        """
        if os.getpid() != self._owner:
            return False
        with self._lock:
            if self._state is not State.OPEN:
                return False
            self._state, self._append = State.RESTING, self._begin_anew
            last = ("end", status, None, _now(), "run")
            self._sender.stop(time.monotonic() + self.exit_timeout, last)
            self._buffer = Buffer()
        return True

    def _begin_anew(self, record: Entry) -> None:
        with self._lock:
            if self._state is State.RESTING:
                self._begin_in_child(self._beginning())
        self._append(record)

    def _begin_in_child(self, record: Entry) -> None:
        with self._lock:
            if self._state in (State.UNBORN, State.RESTING):
                before, self._state = self._state, State.BEGINNING
                try:
                    self._start()
                except BaseException:
                    if self._state is State.BEGINNING:
                        self._state = before
                    raise
                if before is State.UNBORN:
                    hook_end_of_child()
            if self._state is State.BEGINNING:  # this call came in between, in the same thread
                self._buffer.append(record)
                return
        self._append(record)


def _new_name() -> str:
    return f"run-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def _as_step(key: str, step: Any) -> int:
    """What ``int`` makes of a step, so that fractions are cut off; tensors and text too."""
    try:
        item = getattr(step, "item", None)
        number = int(item() if callable(item) else step)
        if not MIN_STEP <= number <= MAX_STEP:
            raise ValueError
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise TypeError(
            f"step of {key!r}: expected an integer of 64 bits, got "
            f"{type(step).__name__} {step!r:.60}"
        ) from None
    return number


def _plain(value: Any, fallback: Callable[[Any], Any] | None = None) -> Any:
    """A copy of ``value`` in msgpack's types; arrays become lists."""
    return _plain_and_size(value, fallback)[0]


def _plain_and_size(value: Any, fallback: Callable[[Any], Any] | None = None) -> tuple[Any, int]:
    """The same, and the bytes that it takes."""

    def convert(other: Any) -> Any:
        for name in ("tolist", "item"):
            method = getattr(other, name, None)
            if callable(method):
                return method()
        if fallback is not None:
            return fallback(other)
        raise TypeError(f"{type(other).__name__} cannot be logged; convert it to numbers or text")

    try:
        packed = msgpack.packb(value, default=convert)
        plain = msgpack.unpackb(packed, strict_map_key=False)
        check_values("", [plain])
    except (OverflowError, RecursionError, UnicodeEncodeError) as error:
        raise TypeError(f"the value cannot be logged: {error}") from None
    return plain, len(packed)
