"""Where a process can be made to die: see ``sitecustomize.py``.

Each patch wraps one method of the product. A call counts only where something is at stake: a
commit of nothing, say, is no place to die at.
"""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

Counts = Callable[..., bool]


class Point(NamedTuple):
    """One entry of ``FAILPOINTS``."""

    marker: str
    owner: str
    name: str
    when: str
    n: int
    victim: str


def parse(text: str) -> list[Point]:
    found = []
    for index, entry in enumerate(filter(None, text.split(","))):
        spec, _, victim = entry.partition("!")
        owner, _, rest = spec.partition("/")
        name, when, n = rest.split(":")
        marker = f"{index:02d}-{entry.replace('/', '_')}"
        found.append(Point(marker, owner, name, when, int(n), victim))
    return found


class Fuse:
    """The points of this process; what it is shows by what it loads."""

    def __init__(self, text: str, folder: str) -> None:
        self._points = parse(text)
        self._folder = Path(folder)
        self._lock = threading.RLock()
        self.owner = "writer"
        self._armed: Point | None = None
        self._calls = 0

    def arm(self) -> Point | None:
        """The first of our points that no process has reached."""
        for point in self._points:
            if point.owner == self.owner and not (self._folder / point.marker).exists():
                if point != self._armed:
                    self._armed, self._calls = point, 0
                return point
        self._armed = None
        return None

    def reached(self, name: str, when: str) -> bool:
        """Whether to die now."""
        with self._lock:
            point = self._armed or self.arm()
            if point is None or (point.name, point.when) != (name, when):
                return False
            if point.victim and not self._pid_of(point.victim).exists():
                return False  # it is dead already, and not up again
            self._calls += 1
            return self._calls >= point.n

    def blow(self) -> None:
        with self._lock:
            point = self._armed
            if point is None:
                return
            if point.victim:  # first, so that who sees the marker does not meet it alive
                pid = self._pid_of(point.victim)
                os.killpg(int(pid.read_text()), signal.SIGKILL)
                pid.resolve().unlink()
            try:
                os.close(os.open(self._folder / point.marker, os.O_CREAT | os.O_EXCL, 0o600))
            except FileExistsError:
                self.arm()
                return  # an older process of this owner was here first
            if point.victim:
                self.arm()
            else:
                os.kill(os.getpid(), signal.SIGKILL)
                signal.pause()  # not one instruction more

    def _pid_of(self, victim: str) -> Path:
        """A file that is there while the victim is up."""
        return self._folder / f"{victim}.pid"

    @property
    def kills_another(self) -> bool:
        return self._armed is not None and bool(self._armed.victim)


FUSE = Fuse(os.environ.get("FAILPOINTS", ""), os.environ.get("FAILPOINTS_DIR", ""))


def always(*_: Any, **__: Any) -> bool:
    return True


def wrapped(
    call: Callable[..., Any],
    name: str,
    counts: Counts = always,
    inside: Callable[..., None] | None = None,
) -> Callable[..., Any]:
    """``call`` with a fail-point before and after it, and one ``inside`` that does a part of it."""

    @functools.wraps(call)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if not counts(*args, **kwargs):
            return call(*args, **kwargs)
        if FUSE.reached(name, "before"):
            FUSE.blow()
        if FUSE.reached(name, "inside"):
            if FUSE.kills_another:
                threading.Timer(0.01, FUSE.blow).start()
            else:
                if inside is not None:
                    inside(*args, **kwargs)
                FUSE.blow()
        result = call(*args, **kwargs)
        if FUSE.reached(name, "after"):
            FUSE.blow()
        return result

    return wrapper


def method(
    of: str, attribute: str, name: str, counts: Counts = always
) -> Callable[[ModuleType], None]:
    def patch(module: ModuleType) -> None:
        cls = getattr(module, of)
        setattr(cls, attribute, wrapped(getattr(cls, attribute), name, counts))

    return patch


# --- the daemon ------------------------------------------------------------------------------


def _daemon(module: ModuleType) -> None:
    FUSE.owner = "daemon"
    module.Intake.acknowledge = wrapped(
        module.Intake.acknowledge, "intake.acknowledge", lambda self: bool(self._answers)
    )
    module.Publisher.publish = wrapped(
        module.Publisher.publish, "publisher.publish", lambda self, entries, head: bool(entries)
    )


def _restart_at_once(module: ModuleType) -> None:
    """Tests kill an adapter many times in a row: no long waits between."""
    module.BACKOFF_FIRST = module.BACKOFF_MAX = 0.1  # type: ignore[attr-defined]


# --- an adapter's process --------------------------------------------------------------------


def _brings_metrics(batches: Any) -> bool:
    return any(batch.type == "metric" for batch in batches)


def _host(module: ModuleType) -> None:
    host = module.Host
    begin = host.__init__

    @functools.wraps(begin)
    def init(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        FUSE.owner = str(config.name)
        begin(self, config, *args, **kwargs)
        self._adapter.deliver = wrapped(self._adapter.deliver, "adapter.deliver", _brings_metrics)

    host.__init__ = init
    host._commit = wrapped(
        host._commit, "host.commit", lambda self: self._position > self._committed
    )


def _ledger(module: ModuleType) -> None:
    """``ledger.bytes`` is the writing of one file, ``ledger.next`` that of one behind another."""
    state = {"files": 0}
    ledger = module.Ledger
    append, write = ledger.append, module._append

    def begin(self: Any, pieces: Any) -> None:
        state["files"] = 0
        append(self, pieces)

    def count(path: Any, piece: Any, new: bool) -> None:
        write(path, piece, new)
        state["files"] += 1

    def half(path: Any, piece: Any, new: bool) -> None:
        write(path, piece[: len(piece) // 2], new)

    ledger.append = wrapped(begin, "ledger.append")
    ledger._undo = wrapped(ledger._undo, "ledger.undo")
    module._cut = wrapped(  # type: ignore[attr-defined]
        module._cut, "ledger.cut", lambda path, before, *_: module._size(path) > before
    )
    every = wrapped(count, "ledger.bytes", inside=half)
    module._append = wrapped(  # type: ignore[attr-defined]
        every, "ledger.next", lambda *_, **__: state["files"] > 0
    )


def _mlflow(module: ModuleType) -> None:
    adapter = module.MLflowAdapter
    begin = adapter.open

    def open_(self: Any, note: bytes) -> None:
        begin(self, note)
        for name in ("create_run", "log_batch", "log_artifact", "set_terminated"):
            setattr(self._client, name, wrapped(getattr(self._client, name), f"mlflow.{name}"))

    adapter.open = open_


PATCHES: list[tuple[str, Callable[[ModuleType], None]]] = [
    ("zmqtrack.spool", method("Spool", "__init__", "spool.made")),
    ("zmqtrack.spool", method("Spool", "append", "spool.append")),
    ("zmqtrack.spool", method("Spool", "_insert", "spool.insert")),
    ("zmqtrack.spool", method("Spool", "acknowledge", "spool.acknowledge")),
    ("zmqtrack.link", method("Link", "_push", "link.push", lambda self: not self.done)),
    ("zmqtrack.link", method("Link", "_on_ack", "link.ack")),
    ("zmqtrack.daemon.broker", _daemon),
    ("zmqtrack.daemon.supervisor", _restart_at_once),
    ("zmqtrack.daemon.journal", method("Journal", "append", "journal.append")),
    (
        "zmqtrack.daemon.journal",
        method("Journal", "commit", "journal.commit", lambda self: bool(self._appended)),
    ),
    (
        "zmqtrack.daemon.journal",
        method(
            "Journal",
            "commit",
            "journal.metrics",
            lambda self: any(entry.type == "metric" for entry in self._appended),
        ),
    ),
    ("zmqtrack.daemon.control", method("Control", "_commit", "control.commit")),
    ("zmqtrack.daemon.control", method("Control", "_subscribe", "control.subscribe")),
    ("zmqtrack.adapters.host", _host),
    ("zmqtrack.adapters.ledger", _ledger),
    ("zmqtrack.adapters.artifacts", method("Assembler", "_add", "assembler.add")),
    (
        "zmqtrack.adapters.artifacts",
        method("Assembler", "assemble", "assembler.assemble"),
    ),
    (
        "zmqtrack.adapters.artifacts",
        method(
            "Assembler",
            "committed",
            "assembler.committed",
            lambda self: bool(self._whole),
        ),
    ),
    ("zmqtrack.adapters.mlflow", _mlflow),
    ("zmqtrack.adapters.wandb_run", method("Run", "_publish", "wandb.publish")),
    ("zmqtrack.adapters.wandb_run", method("Run", "artifact", "wandb.artifact")),
    (
        "zmqtrack.adapters.wandb_run",
        method("Run", "settle", "wandb.settle", lambda self, finished=False: bool(self._log)),
    ),
    ("zmqtrack.adapters.wandb_run", method("Run", "finish", "wandb.finish")),
]
