"""A daemon of one's own: a folder with what it has not delivered yet, and its process.

Each launch has a folder and a daemon for itself, so that any number of them run side by side.
The folder goes when all is delivered. What stays behind, also after a crash, has all that is
needed to go on: configuration, the working directory that its paths are relative to, journal,
cursors and the writers' outboxes. Whoever holds its lock may do that.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from ..config import Config, load
from ..control import ControlClient
from ..errors import ControlError, ZMQTrackError
from . import spools

__all__ = ["OUT", "CannotServe", "Private", "leftovers"]

#: Where results go if no configuration says otherwise.
OUT = Path("zmqtrack-out")
#: The working directory of the launch.
CWD = "cwd"
#: Its presence says that nothing but dead letters is left.
DEAD_LETTERS = "dead-letters"
EX_CONFIG = 78
#: Longest path of a socket.
MAX_SOCKET = 107
#: Waits before a daemon that died is started again, in seconds: the first, and the longest.
BACKOFF_FIRST, BACKOFF_MAX = 0.5, 30.0
#: Lines of its log that are shown when it does not start.
TAIL = 8

#: As ``python -m zmqtrack.daemon`` does, but nothing is imported from the folder in which we were
#: started, and it ends in order should this process be killed. (1: PR_SET_PDEATHSIG.)
_START = (
    "import ctypes, os, signal, sys; '' in sys.path[:1] and sys.path.pop(0); "
    "signal.pthread_sigmask(signal.SIG_SETMASK, ()); "
    "ctypes.CDLL(None).prctl(1, signal.SIGTERM); "
    "os.getppid() == int(sys.argv.pop(1)) or sys.exit(1); "
    "from zmqtrack.daemon.__main__ import main; sys.exit(main())"
)


class CannotServe(ZMQTrackError):
    """There will be no daemon; ``code`` is the exit code that says so."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def leftovers(state: Path) -> list[Path]:
    """Folders of launches that may have something to deliver, the oldest first.

    Not those that hold nothing but dead letters: they wait for a person.
    """
    found = [path.parent for path in state.glob("launches/*/zmqtrack.yaml")]
    return sorted(path for path in found if not (path / DEAD_LETTERS).exists())


class Private:
    """Made by :meth:`create` or :meth:`open`, which hold its lock until :meth:`close`."""

    def __init__(self, folder: Path, lock: int, config: Config, cwd: Path) -> None:
        self.folder = folder
        #: Where its daemon runs: options that are paths are relative to it.
        self.cwd = cwd
        self.config_file = folder / "zmqtrack.yaml"
        self.spool = folder / "spool"
        self.log = folder / "daemon.log"
        #: Where in it this launch begins.
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        self.config = config
        self.closed = False
        self._lock = lock
        self._process: subprocess.Popen[bytes] | None = None
        self._client: ControlClient | None = None
        self._verbose = False
        self._due, self._backoff = 0.0, BACKOFF_FIRST
        self._sockets = _socket_folder()
        self.address = f"ipc://{self._sockets}/control"
        self._write_config()

    @classmethod
    def create(cls, state: Path, config: Config) -> Private:
        """A new one in the folder ``state``, beside those of other launches.

        Raises:
            CannotServe: the folder cannot be written.
        """
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        folder = state.absolute() / "launches" / name
        try:
            _make(folder)
            return cls(folder, _take(folder), config, _settle(folder))
        except OSError as error:
            raise CannotServe(
                f"{error.filename or folder}: {error.strerror}; name a folder that can be "
                "written with --state"
            ) from error

    @classmethod
    def open(cls, folder: Path, config: Config | None = None) -> Private:
        """One that was left, with its own configuration or another, which is relative to here.

        Raises:
            CannotServe: it is in use, or none.
            ConfigError: its configuration was changed, and cannot be read.
        """
        folder = folder.absolute()
        try:
            if not (folder / "zmqtrack.yaml").is_file():
                raise CannotServe(f"{folder} is not what an earlier launch left", code=2)
            lock = _take(folder)
            stored = load(folder / "zmqtrack.yaml").config  # it may have gone while we waited
            sockets = Path(urlsplit(stored.daemon.control).path).parent
            if sockets.name.startswith("zmqtrack-run-"):  # its owner was killed
                shutil.rmtree(sockets, ignore_errors=True)
            (folder / DEAD_LETTERS).unlink(missing_ok=True)
            if config is not None:
                return cls(folder, lock, config, _settle(folder))
            return cls(folder, lock, stored, Path(os.fsdecode((folder / CWD).read_bytes())))
        except BlockingIOError:
            raise CannotServe(f"{folder} is in use by another launch") from None
        except OSError as error:
            raise CannotServe(f"{error.filename or folder}: {error.strerror}") from error

    def _write_config(self, **more: Any) -> None:
        """The same trackers behind sockets that only this user can reach."""
        data = self.config.model_dump(mode="json", exclude={"include"})
        data["daemon"] |= {
            "control": self.address,
            "ingest": None,
            "publish": None,
            "advertise_ingest": None,
            "advertise_publish": None,
            "keys": None,
            "insecure": False,
            "telemetry": None,
            "log_format": "text",
            "state_dir": str(self.folder / "state"),
            **more,
        }
        for adapter in data["adapters"]:
            adapter["external"] = False  # nobody else would start it
        # Addresses of trackers may have passwords in them.
        self.config_file.touch(mode=0o600)
        with self.config_file.open("w", encoding="utf-8") as file:
            yaml.safe_dump(data, file, sort_keys=False, allow_unicode=True)

    @property
    def adapters(self) -> list[str]:
        return [str(adapter.name) for adapter in self.config.adapters]

    # --- the process --------------------------------------------------------------------------

    @property
    def _told(self) -> Path:
        """Where it writes its address once it can be reached."""
        return self.folder / "state" / "address"

    @property
    def ready(self) -> bool:
        """Whether it can be reached now.

        Raises:
            CannotServe: it has ended; with what it said.
        """
        assert self._process is not None
        if (code := self._process.poll()) is not None:
            said = self.tail() or f"the daemon ended at once, with exit code {code}"
            raise CannotServe(said, EX_CONFIG if code == EX_CONFIG else 1)
        return self._told.exists()

    def tail(self) -> str:
        """The last lines of its log; without the places in a file that nobody has written."""
        where = f"{self.config_file}:"
        lines = self._logged()[-TAIL:]
        return "\n".join(
            line.partition(" ")[2] if line.startswith(where) else line for line in lines
        )

    def _logged(self) -> list[str]:
        """The lines of this launch in its log."""
        with self.log.open("rb") as file:
            file.seek(self._log_start)
            return file.read().decode(errors="replace").splitlines()

    def start(self, verbose: bool = False) -> None:
        """Start it; it is :attr:`ready` a moment later.

        Raises:
            CannotServe: the folder in which it was first started is gone.
        """
        self._verbose = verbose
        if not self.cwd.is_dir():
            raise CannotServe(
                f"{self.folder} was launched in {self.cwd}, which is no longer there: make that "
                "folder again, or deliver it to paths below this one with --resume and --config"
            )
        self._told.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, str(os.getpid()), "--config", str(self.config_file)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=None if verbose else log,
                cwd=self.cwd,
                start_new_session=True,  # Ctrl-C is the training's
                pass_fds=(self._lock,),  # in use as long as one of us lives
            )

    def revive(self) -> str:
        """Start it again if it has died; what there is to say about that."""
        assert self._process is not None
        code = self._process.poll()
        if code is None or time.monotonic() < self._due:
            return ""
        self._due = time.monotonic() + self._backoff
        self._backoff = min(2 * self._backoff, BACKOFF_MAX)
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        try:
            self.start(self._verbose)
        except OSError as error:  # no process to be had, or the disk is full
            return f"the daemon ended {how}, and cannot be started again: {error.strerror}"
        return f"the daemon ended {how}; started again, and nothing is lost"

    def status(self, timeout: float = 1.0) -> dict[str, Any] | None:
        """What it says of itself; None if it does not answer."""
        if self._client is None:
            self._client = ControlClient(self.address)
        try:
            return self._client.request("status", timeout=timeout)
        except ControlError:
            return None

    def behind(self, status: dict[str, Any]) -> dict[str, int]:
        """How many batches each adapter has still to deliver, if any."""
        known = status["adapters"]
        lags = {name: known.get(name, {}).get("lag", 1) for name in self.adapters}
        return {name: lag for name, lag in lags.items() if lag}

    def retrying(self, status: dict[str, Any]) -> bool:
        """Whether a dead letter is about to be tried again, as somebody asked."""
        if self._client is None or not any(a["dead_letters"] for a in status["adapters"].values()):
            return False
        try:
            letters = self._client.request("dlq")["letters"]
        except ControlError:
            return True
        return any(letter["retrying"] for letter in letters)

    def end_open_runs(self) -> bool:
        """Nobody is left to log: let runs without an end be killed now, not after their lease.

        False if they are to stay open, or the daemon does not answer.
        """
        if not self.config.daemon.lease or self._client is None:
            return False
        self._write_config(stale_after=1.0, lease=1.0)
        try:
            answer = self._client.request("reload", timeout=10.0)
        except ControlError:
            return False
        finally:
            self._write_config()
        return not answer["problems"]

    def send_spools(self, timeout: float) -> int:
        """Send what processes that have ended left in their outboxes; returns what is left."""
        if not any(self.spool.glob("*")):
            return 0
        return spools.send(self.spool, timeout, self.address)[1]

    def undelivered(self) -> int:
        """Outboxes that are not empty or still in use, which have not reached the daemon."""
        return sum(
            facts["state"] != "waiting" or facts["records"] > 0 for facts in spools.find(self.spool)
        )

    def stop(self) -> None:
        """Ask it to end: it delivers what is left, as long as its configuration says."""
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def warnings(self) -> list[str]:
        """What it, or one of its adapters, logged as a warning or an error; each line once.

        Not that a run was killed, which is no fault of theirs.
        """
        try:
            lines = self._logged()
        except OSError:
            return []
        bad = (line for line in lines if line.startswith(("WARNING ", "ERROR ", "CRITICAL ")))
        return [line for line in dict.fromkeys(bad) if "until it is back" not in line]

    def wait_for_person(self) -> None:
        """All is delivered but dead letters: the next launch has nothing to do here."""
        (self.folder / DEAD_LETTERS).touch()

    def close(self, *, keep: bool) -> None:
        """Let go of it; remove it unless somebody needs what is in it."""
        self.closed = True
        shutil.rmtree(self._sockets, ignore_errors=True)
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # not empty
                self.folder.parent.rmdir()
                self.folder.parent.parent.rmdir()
        os.close(self._lock)


def _make(folder: Path, attempts: int = 20) -> None:
    """Make it; other launches may remove its empty parents at the same time."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)
    except FileNotFoundError:
        if not attempts:
            raise
        _make(folder, attempts - 1)


def _settle(folder: Path) -> Path:
    """Keep in which folder we are, before a configuration says that there is something to do."""
    cwd = Path.cwd()
    (folder / CWD).write_bytes(os.fsencode(cwd))
    return cwd


def _take(folder: Path) -> int:
    """Lock it for this process, or raise BlockingIOError."""
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock


def _socket_folder() -> Path:
    """A new folder for the sockets: their paths are short, and only this user gets in."""
    for parent in _short_folders():
        try:
            return Path(tempfile.mkdtemp(prefix="zmqtrack-run-", dir=parent))
        except OSError:
            continue
    raise CannotServe(
        "no folder for the daemon's sockets: set TMPDIR to one that can be written, with a path "
        "of 65 characters at most"
    )


def _short_folders() -> Iterator[Path]:
    longest = len("/zmqtrack-run-12345678/control.publish")
    for parent in (tempfile.gettempdir(), "/tmp", os.environ.get("XDG_RUNTIME_DIR")):
        if parent and len(os.fsencode(parent)) + longest <= MAX_SOCKET:
            yield Path(parent)
