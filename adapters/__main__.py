"""The process of one adapter.

The daemon starts it with the adapter's configuration as one line of JSON on stdin, and keeps
stdin open: when that ends, the daemon has died, and so does the process. By hand, or as a
service of its own on any machine that reaches the daemon:
``python -m zmqtrack.adapters --config FILE --name NAME``. With ``--check`` it reads a list of
configurations and answers with a line of JSON for each, of what is wrong with it; with
``--connect`` it tries their trackers, and does the same (see ``probe.py``).
"""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

from zmqtrack import keys, logs
from zmqtrack.errors import ConfigError, ControlError, KeyFileError
from zmqtrack.keys import Key

try:
    from zmqtrack.config import AdapterConfig, load

    from . import loader, probe, secrets
    from .host import Host, Superseded
except ImportError as missing:
    sys.exit(f"zmqtrack's adapters need {missing.name}: pip install 'zmqtrack[daemon]'")

EX_CONFIG = 78
#: Seconds in which a delivery may come to its end when the daemon has died: some more than the ten
#: that the host then waits for the next daemon to take the cursor.
GRACE = 15.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="zmqtrack-adapter", description="Run one adapter.")
    parser.add_argument("--config", type=Path, help="a configuration file; default: JSON on stdin")
    parser.add_argument("--name", help="the adapter's name in that file")
    parser.add_argument("--folder", type=Path, help="its own state; default: below state_dir")
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--connect", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--probe", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--timeout", type=float, default=10.0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    secrets.guard_output()
    if arguments.check:
        return check(_take_stdout())
    if arguments.connect:
        return connect(_take_stdout(), arguments.timeout)
    if arguments.probe:
        return probe_one(_take_stdout(), arguments.timeout)
    if arguments.config:
        try:
            spec = _from_file(arguments.config, arguments.name)
        except ConfigError as error:
            logs.complain(str(error))
            return EX_CONFIG
        if arguments.folder:
            spec["folder"] = str(arguments.folder)
    else:
        spec = json.loads(sys.stdin.readline())
    return run(spec, supervised=not arguments.config)


def _questions() -> Any:
    """What is asked: a line of JSON on stdin. Who asks keeps that open; at its end we end too."""
    asked = json.loads(sys.stdin.readline())

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        _end_all()

    threading.Thread(target=watch, daemon=True).start()
    return asked


def _take_stdout() -> TextIO:
    """Stdout, for our answers alone: what modules, libraries and their processes print there is
    no answer of ours, and goes to stderr.
    """
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return answer


def _tell(answer: TextIO, found: object) -> None:
    try:
        print(json.dumps(found), file=answer, flush=True)
    except BrokenPipeError:  # who asks has died
        _end_all()


def check(answer: TextIO) -> int:
    """Answer a JSON list of adapter configurations with a line of JSON for each, in their order:
    a list of [path, message].

    A class that ends or blocks this process at its import is the first without an answer.
    """
    for item in _questions():
        error = loader.check(AdapterConfig.model_validate(item))
        problems = error.problems if error is not None else ()
        _tell(answer, [[path, secrets.mask(text)] for path, text in problems])
    return 0


def connect(answer: TextIO, timeout: float) -> int:
    """Answer a JSON list of adapter configurations with a line of JSON for each tracker."""
    # As we were started ourselves, up to our arguments.
    start = [sys.executable, *sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]]
    command = [*start, "--probe", "--timeout", str(timeout)]
    probe.try_all(_questions(), timeout, command, lambda found: _tell(answer, found))
    return 0


def probe_one(answer: TextIO, timeout: float) -> int:
    """Try the tracker of the one configuration that is on stdin."""
    _tell(answer, probe.try_one(json.load(sys.stdin), timeout))
    return 0


def run(spec: dict[str, Any], *, supervised: bool) -> int:
    config = AdapterConfig.model_validate(spec["adapter"])
    level, log_format = spec.get("log_level", "info"), spec.get("log_format", "auto")
    logs.configure(level, log_format, str(config.name), secrets.mask)
    log = logging.getLogger("zmqtrack.adapters")
    own = Path(spec["state_dir"]) / "adapters" / str(config.name)
    state_dir = Path(spec.get("folder", own))
    state_dir.mkdir(parents=True, exist_ok=True)
    lock = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    daemon_ended = threading.Event()
    if supervised:
        threading.Thread(target=_watch_stdin, args=(daemon_ended,), daemon=True).start()
    # An older process of this adapter may still finish its last delivery: wait for it.
    taken = _taken(lock)
    if not taken:
        log.warning(
            "waiting for process %s, which still runs this adapter; where its daemon has died, it "
            "ends within %g s",
            os.pread(lock, 20, 0).decode().strip() or "?",
            GRACE,
        )
    while not (taken or _taken(lock)):
        if daemon_ended.wait(0.1):
            return 0  # the next daemon starts a process of its own
    try:
        os.environ.update(secrets.resolve(config))
        host = Host(config, spec["address"], state_dir, _key(spec))
    except (loader.LoadError, secrets.SecretError, KeyFileError) as error:
        for line in str(error).splitlines():
            log.error("%s", line)
        return EX_CONFIG
    signal.signal(signal.SIGTERM, lambda *_: host.stop())
    signal.signal(signal.SIGINT, lambda *_: host.stop())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # the supervisor held it back
    if supervised:
        threading.Thread(target=_end_with, args=(daemon_ended, host), daemon=True).start()
    try:
        host.run()
    except Superseded as error:
        log.error("%s", error)
        return 1
    except ControlError as error:
        log.error("the daemon refuses: %s", error)
        return 1
    return 0


def _key(spec: dict[str, Any]) -> Key | None:
    """The daemon's own adapters are given one; on another machine it is in ``ZMQTRACK_KEY``.

    Raises:
        KeyFileError: it cannot be used.
    """
    if spec.get("key"):
        return Key.of(spec["key"])
    path = os.environ.get("ZMQTRACK_KEY")
    if path and "key" not in spec and keys.read_private(Path(path)):  # {}: systemd has none
        return keys.load(path)
    return None


def _taken(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)  # for who waits
    return True


def _watch_stdin(daemon_ended: threading.Event) -> None:
    """The daemon holds the other end of stdin; at its death the pipe closes.

    A delivery that hangs would keep the lock for ever, and the next daemon's process from
    beginning: what it delivers was not confirmed, and comes again.
    """
    while sys.stdin.readline():
        pass
    daemon_ended.set()
    time.sleep(GRACE)
    _end_all()


def _end_all() -> None:
    """End this process and all that it has started, whatever they are doing."""
    if os.getpgrp() == os.getpid():  # as the daemon starts us
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _end_with(daemon_ended: threading.Event, host: Host) -> None:
    daemon_ended.wait()
    host.stop()


def _from_file(path: Path, name: str | None) -> dict[str, Any]:
    located = load(path)
    config = located.config
    names = [adapter.name for adapter in config.adapters]
    for index, adapter in enumerate(config.adapters):
        if adapter.name == name:
            if (error := loader.check(adapter)) is not None:
                raise ConfigError(
                    [f"{located.where(index, keys)}: {text}" for keys, text in error.problems]
                )
            return {
                "address": config.daemon.control,
                "state_dir": str(config.daemon.state_dir),
                "log_level": config.daemon.log_level,
                "log_format": config.daemon.log_format,
                "adapter": adapter.model_dump(mode="json"),
            }
    raise ConfigError([f"{path}: no adapter is named {name!r}; there are: {names}"])


def without_folder_of_start() -> None:
    """Let no adapter's class be imported from the folder in which we happen to be started.

    ``python -m`` has put it first in ``sys.path``. What PYTHONPATH names comes after that.
    (``python -P`` would do; it came with Python 3.11.)
    """
    if not getattr(sys.flags, "safe_path", False) and sys.path[0] in ("", str(Path.cwd())):
        del sys.path[0]


if __name__ == "__main__":
    without_folder_of_start()
    sys.exit(main())
