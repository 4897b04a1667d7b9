"""The configuration in force: read at the start, and again on SIGHUP or when an operator asks."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from zmqtrack.config import AdapterConfig, Config, DaemonConfig, Located, load
from zmqtrack.errors import ConfigError, KeyFileError, ZMQTrackError
from zmqtrack.keyring import KeyRing

from .broker import Broker
from .inquiry import Inquiry
from .supervisor import Supervisor

__all__ = ["Outcome", "Reloader", "read", "read_located", "warn"]

log = logging.getLogger("zmqtrack.daemon")

#: What a running daemon cannot change: its sockets and files are open.
FIXED = (
    "control",
    "ingest",
    "publish",
    "keys",
    "insecure",
    "state_dir",
    "telemetry",
    "log_format",
)


#: Seconds in which an adapter's class must be imported and answer: large libraries take many on a
#: slow disk. Fewer than `zmqtrack reload` waits.
IMPORT = 50.0


class Outcome(NamedTuple):
    """What a reload came to. With ``problems`` nothing was changed."""

    problems: list[str]
    added: list[str]
    changed: list[str]
    removed: list[str]
    #: Keys of the daemon's section that take effect at its next start.
    at_next_start: list[str]

    def __str__(self) -> str:
        if self.problems:
            return "the configuration stays as it was:\n" + "\n".join(self.problems)
        parts = [
            f"{what}: {', '.join(names)}"
            for what, names in zip(self._fields[1:4], self[1:4], strict=True)
            if names
        ]
        text = "; ".join(parts) or "no adapter changed"
        if self.at_next_start:
            text += f"; takes effect at the next start: {', '.join(self.at_next_start)}"
        return text


def read(path: Path, inquiry: Inquiry | None = None) -> Located:
    """The configuration, its adapters' types and options checked too; takes a second or so.

    ``inquiry`` can end it from another thread.

    Raises:
        ConfigError: see :func:`zmqtrack.config.load`.
        ZMQTrackError: it could not be checked; nothing says that it is bad.
    """
    located = load(path)
    inquiry = inquiry or Inquiry()
    problems = _problems(located.config.adapters, inquiry)
    if inquiry.killed:
        raise ZMQTrackError(
            f"{path}: not checked: the process that looks at the adapters was killed, as happens "
            "when memory is short. Nothing says that the configuration is bad: try again"
        )
    if problems:
        raise ConfigError(
            [f"{located.where(index, keys)}: {message}" for index, keys, message in problems]
        )
    return located


def read_located(path: Path) -> Located:
    """The same as for a start: the folder of keys is looked at too."""
    located = read(path)
    keys = located.config.daemon.keys
    # systemd hands credentials to the service's main process, and not to its `ExecReload`.
    given = os.environ.get("CREDENTIALS_DIRECTORY")
    if keys is not None and (given is None or os.access(given, os.X_OK)):
        try:
            KeyRing(keys).clients()
        except (KeyFileError, OSError) as error:
            told = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else error
            raise ConfigError([f"{located.at('daemon', 'keys')}: {told}"]) from None
    return located


def _problems(
    adapters: list[AdapterConfig], inquiry: Inquiry
) -> list[tuple[int, list[str | int], str]]:
    """What is wrong with each adapter's type and options: (index, path to the key, message).

    The classes are loaded in a process of their own: the daemon imports no adapter. It answers
    for one after the other; one that ends it, or blocks it, is the first without an answer.
    """
    if not adapters:
        return []
    answers: list[list[tuple[list[str | int], str]]] = []
    why = inquiry.ask(["--check"], adapters, IMPORT, answers.append)
    problems = [
        (index, path, message) for index, found in enumerate(answers) for path, message in found
    ]
    if (index := len(answers)) < len(adapters):
        problems.append((index, ["type"], f"cannot import {adapters[index].type!r}: {why}"))
    return problems


def warn(located: Located) -> None:
    """Log what is allowed, and may not be what was meant."""
    for hint in located.hints():
        log.warning("%s", hint)
    if not located.config.adapters:
        log.warning(
            "there are no adapters: records are journalled and go nowhere; add some below "
            "'adapters' or 'include'"
        )


class Reloader:
    """Reads ``path`` again beside the daemon's loop, and then puts it in force between two turns.

    ``on_change(True)`` is called when it begins, ``on_change(False)`` when it is done.
    """

    def __init__(
        self,
        path: Path,
        broker: Broker,
        children: Supervisor,
        on_change: Callable[[bool], None] = lambda begins: None,
    ) -> None:
        self._path = path
        self._broker = broker
        self._children = children
        self._on_change = on_change
        self._asked = False
        self._waiting: list[Callable[[Outcome], None]] = []  # who is answered by this reload
        self._reading: threading.Thread | None = None
        self._read: Located | list[str] = []
        self._inquiry = Inquiry()

    def ask(self, answer: Callable[[Outcome], None] | None = None) -> None:
        """Reload at the next step; one that is under way is finished before. Tell ``answer``."""
        self._asked = True
        if answer is not None:
            self._waiting.append(answer)

    def step(self) -> None:
        """To be called from the daemon's loop; never waits."""
        if self._reading is not None:
            if not self._reading.is_alive():
                self._finish()
        elif self._asked:
            self._asked = False
            answers, self._waiting = self._waiting, []
            self._answers = answers
            self._on_change(True)
            self._reading = threading.Thread(target=self._load, name="reload", daemon=True)
            self._reading.start()

    def _load(self) -> None:
        try:
            self._read = read(self._path, self._inquiry)
        except ConfigError as error:
            self._read = str(error).splitlines()
        except (OSError, ZMQTrackError, ValueError) as error:
            self._read = [f"{self._path}: {error}"]
        except Exception as error:
            log.exception("the configuration could not be read again")
            self._read = [f"{self._path}: {error!r}"]

    def close(self) -> None:
        """Leave no process behind; a reload that is under way is given up."""
        self._inquiry.close()
        if self._reading is not None:
            self._reading.join()

    def _finish(self) -> None:
        self._reading = None
        if isinstance(self._read, Located):
            outcome = self._apply(self._read.config)
            log.info("reloaded %s: %s", self._path, outcome)
            warn(self._read)
        else:
            outcome = Outcome(self._read, [], [], [], [])
            for line in str(outcome).splitlines():
                log.error("cannot reload: %s", line)
        self._on_change(False)
        for answer in self._answers:
            answer(outcome)

    def _apply(self, config: Config) -> Outcome:
        new, fixed = _with_fixed(config.daemon, self._broker.config)
        logging.getLogger().setLevel(new.log_level.upper())
        self._broker.configure(new, config.adapters)
        changes = self._children.update(config.adapters, new)
        return Outcome([], *changes, fixed)


def _with_fixed(new: DaemonConfig, old: DaemonConfig) -> tuple[DaemonConfig, list[str]]:
    """``new``, but for what cannot change; and the names of that."""
    kept: dict[str, Any] = {
        name: getattr(old, name) for name in FIXED if getattr(new, name) != getattr(old, name)
    }
    return new.model_copy(update=kept), [f"daemon.{name}" for name in kept]
