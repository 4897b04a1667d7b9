"""``Run``: the neutral logging API that all writers stand on."""

from __future__ import annotations

import enum
import math
import operator
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import msgpack

from . import fork, keys, wire  # noqa: F401 -- fork: for what it arranges
from .control import DEFAULT_ADDRESS, check_address
from .ending import await_death, end_with_thread, hook_exits, live, status_after
from .errors import RunFinished
from .histogram import summarise
from .image import encode_image
from .records import (
    MAX_KEY,
    RESERVED,
    STATUSES,
    VOCABULARY,
    Entry,
    RunKey,
    as_number,
    check_name,
    check_type,
    check_values,
)
from .sender import Buffer, Sender, starting
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
#: Most bytes in one value.
MAX_VALUE = wire.MAX_BODY // 2

#: Steps are integers of 64 bits.
MIN_STEP, MAX_STEP = -(2**63), 2**63 - 1

#: A file travels in pieces of so many bytes.
PIECE = 512 << 10

_now = time.time


def init(
    experiment: str | None = None,
    run: str | None = None,
    site: str | None = None,
    address: str | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    flush_interval: float = 0.05,
    exit_timeout: float = 5.0,
    codec: str = "none",
    spool_dir: str | os.PathLike[str] | None = None,
    spool_bytes: int = Spool.limit,
    keep: str = Spool.keep,
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
        exit_timeout: seconds that ``finish`` (also at exit) may take to deliver what is left.
        codec: ``"zstd"`` compresses batches (needs the package zstandard here and there).
        spool_dir: where what is undelivered is kept; ``ZMQTRACK_SPOOL_DIR``, else among the
            user's state files.
        spool_bytes: how much may wait there. Beyond it records are given up and counted, never
            ``run``, ``param`` and ``tag`` before others.
        keep: which are kept then, the ``"newest"`` or the ``"oldest"``.
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
    if codec not in wire.CODECS:
        raise ValueError(f"codec {codec!r} is unknown; known are {', '.join(wire.CODECS)}")
    if keep not in ("newest", "oldest"):
        raise ValueError(f"keep is {keep!r}; it may be 'newest' or 'oldest'")
    if config is not None and not isinstance(config, Mapping):
        raise TypeError(f"config maps names to values; it may not be a {type(config).__name__}")
    for name in config or ():
        check_name("key", name, MAX_KEY)
    policy_file = environ("ZMQTRACK_EGRESS") if egress is None else egress
    policy = None
    if policy_file is not None:
        from .policy import Policy  # only where it is asked for

        policy = Policy.load(policy_file)
    if codec == "zstd":
        import zstandard  # noqa: F401 -- fail here, not in the sender thread
    new = Run(
        run_key,
        address,
        Path(spool_dir).absolute() if spool_dir is not None else default_directory(),
        exit_timeout=float(exit_timeout),
        spool_limits=(int(spool_bytes), keep),
        sender_options={
            "flush_interval": float(flush_interval),
            "codec": wire.CODECS[codec],
            "key": own_key,
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
                spool, self._buffer, egress=egress, on_quiet=self._on_quiet, **self._options
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
        facts = {"host": socket.gethostname(), "pid": os.getpid(), "python": sys.version.split()[0]}
        return "start", facts, None, _now(), "run"

    # --- logging ------------------------------------------------------------------------------

    def log_metric(
        self, key: str, value: Any, step: int | None = None, time: float | None = None
    ) -> None:
        """Log one number.

        Raises:
            TypeError: ``value`` is no number (see :func:`zmqtrack.records.as_number`), ``step``
                no integer, or ``key`` no string.
            RunFinished: the run has been finished.
        """
        if value.__class__ is not float:
            value = as_number(key, value)
        if step is not None and (step.__class__ is not int or not MIN_STEP <= step <= MAX_STEP):
            step = _as_step(key, step)
        if key not in self._keys:
            self._new_key(key)
        self._append((key, value, step, _now() if time is None else float(time), "metric"))
        if len(self._buffer) > BUFFER_RECORDS:
            self._stall()

    def log_metrics(
        self, metrics: Mapping[str, Any], step: int | None = None, time: float | None = None
    ) -> None:
        """Log several numbers with one step and one time; all of them or, on an error, none."""
        when = _now() if time is None else float(time)
        numbers = [(check_name("key", k, MAX_KEY), as_number(k, v)) for k, v in metrics.items()]
        for key, value in numbers:
            self.log_metric(key, value, step, when)

    def log_param(self, key: str, value: Any) -> None:
        """Log a parameter: text, number, bool, None, or lists and dicts of those.

        What is none of those is logged as its ``str``.
        """
        self._log("param", key, _plain(value, fallback=str), None, None)

    def log_params(self, params: Mapping[str, Any]) -> None:
        for key, value in params.items():
            self.log_param(key, value)

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
        self._log("histogram", key, summarise(values, bins), step, time)

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
        self._log(data_type, key, _plain(value), step, time)

    def lose(self, reason: str) -> None:
        """Count, under ``reason``, something that could not be logged; ``status`` shows it."""
        self._append((reason, 1, None, _now(), "lost"))

    @property
    def held(self) -> dict[str, int]:
        """Records that the egress policy has held back until now, by reason."""
        return dict(self._egress.held) if self._egress else {}

    # --- life ---------------------------------------------------------------------------------

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

        What could not be delivered stays in the spool, one line says so, and the next run on
        this machine sends it. A second call does nothing.

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
                timeout = self.exit_timeout if timeout is None else timeout
                self._sender.stop(time.monotonic() + timeout, last)
        live.discard(self)
        return before is State.OPEN

    def _wait_for_end(self) -> None:
        left = self._sender.wait()
        if left:
            print(
                f"zmqtrack: {left} records of run {self.key.run!r} (site {self.key.site!r}) are "
                f"not yet delivered to {self.address}; they are kept in {self._spool_dir} and "
                "the next run on this machine sends them; `zmqtrack doctor` looks for the reason",
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

    def _log(
        self, data_type: str, key: str, value: Any, step: int | None, time: float | None
    ) -> None:
        check_name("key", key, MAX_KEY)
        if step is not None and (step.__class__ is not int or not MIN_STEP <= step <= MAX_STEP):
            step = _as_step(key, step)
        if isinstance(value, str):
            value = value.encode(errors="replace").decode()  # lone surrogates cannot travel
        size = len(value) if isinstance(value, (str, bytes)) else 0
        if size > MAX_VALUE:
            raise ValueError(
                f"{data_type} {key!r} has {size} bytes; at most {MAX_VALUE} are allowed. "
                "Log it as an artifact"
            )
        self._append((key, value, step, _now() if time is None else float(time), data_type))
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

    def _new_key(self, key: str) -> None:
        check_name("key", key, MAX_KEY)
        if len(self._keys) < 100_000:
            self._keys.add(key)

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
                value = self._buffer.pop()[1]
            except IndexError:
                return  # the sender emptied it just now
            self._large -= len(value) if isinstance(value, (str, bytes)) else 0
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
                if before is State.UNBORN and "multiprocessing" in sys.modules:  # they skip atexit
                    from multiprocessing import util

                    util.Finalize(None, self.finish, exitpriority=100)
            if self._state is State.BEGINNING:  # this call came in between, in the same thread
                self._buffer.append(record)
                return
        self._append(record)


def _new_name() -> str:
    return f"run-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def _as_step(key: str, step: Any) -> int:
    """Steps come as NumPy integers and tensors too."""
    try:
        item = getattr(step, "item", None)
        step = item() if callable(item) else step
        if isinstance(step, float) and step.is_integer():
            step = int(step)
        number = int(operator.index(step))
        if not MIN_STEP <= number <= MAX_STEP:
            raise ValueError
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"step of {key!r}: expected an integer of 64 bits, got "
            f"{type(step).__name__} {step!r:.60}"
        ) from None
    return number


def _plain(value: Any, fallback: Callable[[Any], Any] | None = None) -> Any:
    """A copy of ``value`` in msgpack's types; arrays become lists."""

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
        if len(packed) > MAX_VALUE:
            raise ValueError(f"the value has {len(packed)} bytes; at most {MAX_VALUE} are allowed")
        plain = msgpack.unpackb(packed, strict_map_key=False)
        check_values("", [plain])
    except (OverflowError, RecursionError, UnicodeEncodeError) as error:
        raise TypeError(f"the value cannot be logged: {error}") from None
    return plain
