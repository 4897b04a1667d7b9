"""A daemon, its adapters and logging sites, kept going while fail-points kill them."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from harness import PATIENCE, Daemon
from oracle import HERE, Site

FAILPOINTS = HERE / "faults" / "failpoints"

#: Longest time in which all is well again after the last fault.
HEALTHY = 60.0


def free_address() -> str:
    """A control address that is free, with the two ports behind it, and stays so.

    Not among those that the system gives to others, as a daemon comes back to it.
    """
    while True:
        port = random.randrange(10_000, 30_000)
        with contextlib.ExitStack() as sockets:
            try:
                for number in range(port, port + 3):
                    sockets.enter_context(socket.socket()).bind(("127.0.0.1", number))
            except OSError:
                continue
        return f"tcp://127.0.0.1:{port}"


def failing(
    folder: Path, points: Sequence[str] = (), mutations: Sequence[str] = ()
) -> dict[str, str]:
    """The environment of a process that is to die; ``folder`` remembers where it has."""
    folder.mkdir(parents=True, exist_ok=True)
    inherited = os.environ.get("PYTHONPATH")
    return {
        "FAILPOINTS": ",".join(points),
        "FAILPOINTS_DIR": str(folder),
        "MUTATIONS": ",".join(mutations),
        "PYTHONPATH": os.pathsep.join([str(HERE), str(FAILPOINTS), *filter(None, [inherited])]),
    }


class Scene:
    """``points`` are the daemon's and its adapters'; ``writers`` those of each site, by name."""

    def __init__(
        self,
        served: Daemon,
        folder: Path,
        points: Sequence[str],
        writers: dict[str, Sequence[str]],
        pause: float = 0.03,
    ) -> None:
        self.served = served
        self.sites = [Site(name, folder / "ledgers") for name in writers]
        self._folder = folder
        self._points = points
        self._writers = writers
        self._pause = pause
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._deaths: Counter[str] = Counter()
        served._env.update(failing(folder / "daemon-died", points))
        #: What else is to be kept going; called again and again.
        self.also: list[Callable[[], None]] = []

    def __enter__(self) -> Scene:
        self.served.start()
        for site in self.sites:
            self._start(site)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.kill()
            process.communicate()

    def _start(self, site: Site) -> None:
        env = failing(self._folder / f"{site.name}-died", self._writers[site.name])
        self._processes[site.name] = site.start(
            self.served.address, 500, pause=self._pause, env={**env, "LOG_MORE": "1"}
        )

    @property
    def missing(self) -> list[str]:
        """The points that have not been reached."""
        missing = []
        for folder, points in [
            (self._folder / "daemon-died", self._points),
            *((self._folder / f"{name}-died", points) for name, points in self._writers.items()),
        ]:
            reached = sorted(path.name[3:] for path in folder.iterdir() if path.suffix != ".pid")
            missing += [p for p in points if p.replace("/", "_") not in reached]
        return missing

    def play(self, timeout: float) -> None:
        """Start again what dies, until every point has been reached."""
        deadline = time.monotonic() + timeout
        dying = {"daemon": self._points, **self._writers}
        to_die = Counter({name: len(_own(name, points)) for name, points in dying.items()})
        while self.missing or self._deaths < to_die:
            assert time.monotonic() < deadline, (
                f"not reached in {timeout} s: {self.missing}\n{self.served.log[-5000:]}"
            )
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.served.process.wait(0.05)
            self._revive()

    def _revive(self) -> None:
        if (code := self.served.process.poll()) is not None:
            assert code == -signal.SIGKILL, f"exit code {code}:\n{self.served.log[-5000:]}"
            self._deaths["daemon"] += 1
            self.served.start()
        for site in self.sites:
            process = self._processes[site.name]
            if process.poll() is not None:
                _, stderr = process.communicate()
                assert process.returncode in (0, -signal.SIGKILL), stderr
                self._deaths[site.name] += process.returncode != 0
                self._start(site)
        for keep_going in self.also:
            keep_going()

    def settle(self) -> dict[str, Any]:
        """All is well again within a minute, drained, and a fresh record arrives (I4).

        Returns the daemon's status, whose counters are as they should be (I5).
        """
        self._revive()
        self._wait_until_healthy()
        for process in self._processes.values():
            _, stderr = process.communicate(timeout=2 * PATIENCE)
            assert process.returncode == 0, stderr
        send_what_is_left()
        self.served.drain(2 * PATIENCE)
        fresh = Site("fresh", self._folder / "ledgers")
        self.sites.append(fresh)
        process = fresh.start(self.served.address, 100, env={"LOG_MORE": "1"})
        _, stderr = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, stderr
        self.served.drain()
        status = self.served.status()
        self._check_counters(status)
        self._check_limits()
        self.served.stop()
        return status

    def _wait_until_healthy(self) -> None:
        deadline = time.monotonic() + HEALTHY
        while True:
            adapters = self.served.status()["adapters"]
            states = {name: facts["state"] for name, facts in adapters.items()}
            if set(states.values()) == {"running"}:
                return
            assert time.monotonic() < deadline, f"{states}\n{self.served.log[-5000:]}"
            time.sleep(0.1)

    def _check_counters(self, status: dict[str, Any]) -> None:
        assert status["losses"] == [], f"I5: {status['losses']}"
        assert status["daemon"]["refused"] == {}, f"I5: {status['daemon']['refused']}"
        for name, facts in status["adapters"].items():
            strange = set(facts["counters"]) - {"delivered", "retries"}
            assert not strange, f"I5: {name} counts {facts['counters']}"
        delivered = {name: f["counters"]["delivered"] for name, f in status["adapters"].items()}
        assert len(set(delivered.values())) == 1, f"I5: {delivered}"

    def _check_limits(self) -> None:
        """I6: what the daemon holds is bounded, and no outbox is left."""
        process = psutil.Process(self.served.process.pid)
        assert process.num_fds() < 200, f"I6: {process.num_fds()} descriptors"
        assert process.memory_info().rss < 500 << 20, f"I6: {process.memory_info().rss} bytes"
        left = list(Path(os.environ["ZMQTRACK_SPOOL_DIR"]).glob("*.spool"))
        assert not left, f"I6: {left}"


def _own(name: str, points: Sequence[str]) -> list[str]:
    """Those of the points at which a process dies that the scene itself starts again."""
    return [point for point in points if point.startswith(("writer/", f"{name}/"))]


def send_what_is_left() -> None:
    """Spools of killed writers that nobody has adopted yet."""
    from zmqtrack.cli.spools import send

    _, left = send(Path(os.environ["ZMQTRACK_SPOOL_DIR"]), PATIENCE, None)
    assert left == 0


@contextlib.contextmanager
def nothing_left_behind(folder: Path) -> Iterator[None]:
    """Every process whose environment names ``folder`` must end; those that do not are killed."""
    try:
        yield
    except BaseException:
        _end(_running(folder))
        raise
    _, alive = psutil.wait_procs(_running(folder), timeout=30)
    names = [" ".join(process.cmdline()) for process in alive]
    _end(alive)
    assert not names, f"still running: {names}"


def _running(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            mentioned = str(folder) in process.environ().get("FAILPOINTS_DIR", "")
        except psutil.Error:
            continue
        if mentioned and process.pid != os.getpid():
            found.append(process)
    return found


def _end(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
