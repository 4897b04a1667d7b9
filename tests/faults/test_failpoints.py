"""``kill -9`` exactly before, inside and after each step that makes something durable."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from scene import Scene, failing, free_address, nothing_left_behind, send_what_is_left

import oracle
from harness import PATIENCE, Daemon, jsonl
from oracle import Site, check, check_more

Make = Callable[..., Daemon]

CYCLES = int(os.environ.get("ZMQTRACK_FAULT_CYCLES", "0"))
SEED = int(os.environ.get("ZMQTRACK_FAULT_SEED", random.randrange(10**6)))
#: The long form goes through all points several times, at calls that it chooses.
ROUNDS = max(1, CYCLES // 70)
LONG = CYCLES >= 70

WRITERS: dict[str, Sequence[str]] = {
    "site-0": [
        "writer/spool.append:before:3",
        "writer/spool.insert:after:3",
        "writer/spool.append:after:3",
        "writer/link.push:before:3",
        "writer/link.push:after:3",
    ],
    "site-1": [
        "writer/link.ack:before:2",
        "writer/link.ack:after:2",
        "writer/spool.acknowledge:before:2",
        "writer/spool.acknowledge:after:2",
    ],
}

DAEMON = [
    "journal.append:after:9",
    "journal.commit:before:5",
    "journal.commit:after:5",
    "intake.acknowledge:before:5",
    "intake.acknowledge:after:5",
    "publisher.publish:before:5",
    "publisher.publish:after:5",
    "control.commit:before:3",
    "control.commit:after:3",
    "control.subscribe:after:2",
]

#: Of an adapter that owns its files.
FILES = [
    "adapter.deliver:before:2",
    "ledger.append:before:2",
    "ledger.bytes:before:2",  # after the undo log
    "ledger.bytes:inside:2",  # half of a file
    "ledger.cut:before:1",  # while it cuts that
    "ledger.cut:after:1",
    "ledger.next:before:1",  # between two files
    "adapter.deliver:after:2",
    "host.commit:before:2",
    "host.commit:after:2",
    "assembler.add:after:2",
    "assembler.assemble:before:1",
    "assembler.assemble:after:1",
    "assembler.committed:before:1",
]

MLFLOW = [
    "mlflow.create_run:after:1",
    "mlflow.log_batch:before:2",
    "mlflow.log_batch:after:2",
    "mlflow.log_artifact:after:1",
    "ledger.bytes:inside:1",
    "host.commit:before:2",
    "host.commit:after:2",
]

WANDB = [
    "wandb.publish:before:2",
    "wandb.publish:after:2",
    "wandb.artifact:after:1",
    "wandb.settle:before:3",
    "wandb.settle:after:3",
    "host.commit:before:2",
    "host.commit:after:2",
]


def chain(owner: str, points: Sequence[str], turn: int) -> list[str]:
    """The points of one process; from the second turn on, at calls that chance chooses."""
    chance = random.Random(f"{SEED} {owner} {turn}")
    found = []
    for point in points:
        name, when, n = point.split(":")
        if turn and int(n) > 1:
            most = int(n) if name == "control.subscribe" else 3 * int(n)  # once for each adapter
            n = str(chance.randint(1, most))
        found.append(f"{owner}/{name}:{when}:{n}")
    return found


def short(points: Sequence[str], *chosen: str) -> Sequence[str]:
    """In the short form only the points whose names begin so."""
    return points if LONG else [p for p in points if p.startswith(chosen)]


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path) -> Iterator[None]:
    print(f"ZMQTRACK_FAULT_SEED={SEED}")
    with nothing_left_behind(tmp_path):
        yield


@pytest.fixture
def address() -> str:
    return free_address()


def files(tmp_path: Path) -> list[dict[str, Any]]:
    return [
        jsonl(tmp_path / "lines", flush_interval="50ms"),
        {
            "type": "tensorboard",
            "flush_interval": "50ms",
            "options": {"logdir": str(tmp_path / "events")},
        },
    ]


def check_files(scene: Scene, status: dict[str, Any], tmp_path: Path) -> None:
    lines, events = tmp_path / "lines", tmp_path / "events"
    shown = oracle.read_jsonl(lines)
    check(scene.sites, shown)
    check(scene.sites, oracle.read_tensorboard(events))
    assert sorted(shown) == sorted(oracle.read_tensorboard(events))
    check_more(scene.sites, oracle.more_of_jsonl(lines))
    check_more(scene.sites, oracle.more_of_tensorboard(events))
    written = sum(len(path.read_text().splitlines()) for path in lines.glob("*/*/*.jsonl"))
    assert status["adapters"]["jsonl"]["counters"]["delivered"] == written, "I5"


@pytest.mark.timeout(400)
@pytest.mark.parametrize("turn", range(ROUNDS))
def test_a_daemon_that_dies_around_a_commit_loses_and_doubles_nothing(
    daemon: Make, tmp_path: Path, address: str, turn: int
) -> None:
    served = daemon(files(tmp_path), control=address)
    points = short(
        DAEMON, "journal", "intake.acknowledge:after", "publisher.publish:after", "control"
    )
    scene = Scene(served, tmp_path, chain("daemon", points, turn), dict.fromkeys(WRITERS, ()))
    with scene:
        scene.play(300)
        status = scene.settle()
    check_files(scene, status, tmp_path)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("turn", range(ROUNDS))
def test_writers_and_adapters_that_die_around_a_write_lose_and_double_nothing(
    daemon: Make, tmp_path: Path, address: str, turn: int
) -> None:
    served = daemon(files(tmp_path), control=address)
    # The start of TensorBoard's adapter takes seconds.
    few = short(FILES, "ledger.bytes:inside", "ledger.next", "host.commit:before")
    points = chain("jsonl", FILES, turn) + chain("tensorboard", few, turn)
    scene = Scene(served, tmp_path, points, WRITERS)
    with scene:
        scene.play(300)
        status = scene.settle()
    check_files(scene, status, tmp_path)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("turn", range(ROUNDS))
def test_mlflow_and_wandb_show_each_record_once_though_their_adapters_die_around_a_write(
    daemon: Make, tmp_path: Path, address: str, turn: int
) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("wandb")
    uri = f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}"
    adapters = [
        {"type": "mlflow", "flush_interval": "100ms", "options": {"tracking_uri": uri}},
        {
            "type": "wandb",
            "flush_interval": "100ms",
            "options": {"mode": "offline", "dir": str(tmp_path / "wandb")},
        },
    ]
    served = daemon(adapters, control=address)
    mlflow = short(MLFLOW, "mlflow.log_batch:after", "host.commit:before")
    wandb = short(WANDB, "wandb.publish:after", "wandb.settle:before", "host.commit:before")
    points = chain("mlflow", mlflow, turn) + chain("wandb", wandb, turn)
    scene = Scene(served, tmp_path, points, dict.fromkeys(WRITERS, ()), pause=0.3)
    with scene:
        scene.play(300)
        scene.settle()
    check(scene.sites, oracle.read_mlflow(uri))
    check_more(scene.sites, oracle.more_of_mlflow(uri, tmp_path / "downloads"))
    metrics, more = oracle.read_wandb(tmp_path / "wandb")
    check(scene.sites, metrics)
    check_more(scene.sites, more)


class Server:
    """A real ``mlflow server`` on one port, to be killed and started again."""

    def __init__(self, folder: Path, pid_file: Path, env: dict[str, str]) -> None:
        folder.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._folder, self._pid_file = folder, pid_file
        self._env = {**os.environ, **env, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self.starts = 0
        self.start()

    def start(self) -> None:
        with (self._folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"),
                    *("--port", str(self._port), "--workers", "1"),
                    *("--backend-store-uri", f"sqlite:///{self._folder / 'mlflow.db'}"),
                    *("--artifacts-destination", str(self._folder / "artifacts")),
                ],
                stdout=log,
                stderr=log,
                env=self._env,
                start_new_session=True,
            )
        self.starts += 1

    def wait_until_up(self) -> None:
        deadline = time.monotonic() + 2 * PATIENCE
        while not self._pid_file.exists():
            self.keep_going()
            assert time.monotonic() < deadline, (self._folder / "log").read_text()
            time.sleep(0.1)

    def keep_going(self) -> None:
        """Start it again if it was killed; once it answers, name it as one that can be killed."""
        if self._process.poll() is not None:
            assert self._process.returncode == -signal.SIGKILL, (self._folder / "log").read_text()
            self.start()
        elif not self._pid_file.exists():
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=2).close()
            except OSError:
                return
            self._pid_file.write_text(str(self._process.pid))

    def stop(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(30)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("turn", range(ROUNDS))
def test_an_mlflow_server_that_is_killed_around_a_request_loses_and_doubles_nothing(
    daemon: Make, tmp_path: Path, address: str, turn: int
) -> None:
    pytest.importorskip("mlflow")
    died = tmp_path / "daemon-died"
    server = Server(tmp_path / "server", tmp_path / "pid", failing(died))
    served = daemon(
        [
            {
                "type": "mlflow",
                "flush_interval": "100ms",
                "retry_max": "5s",
                "options": {"tracking_uri": server.uri},
            }
        ],
        control=address,
    )
    (died / "server.pid").symlink_to(tmp_path / "pid")
    points = ["log_batch:inside:2", "log_artifact:inside:1"]
    if LONG:
        points = ["create_run:inside:1", *points, "log_batch:after:2", "log_batch:inside:1"]
    chained = [f"{p}!server" for p in chain("mlflow", [f"mlflow.{p}" for p in points], turn)]
    scene = Scene(served, tmp_path, chained, dict.fromkeys(WRITERS, ()), pause=0.3)
    scene.also.append(server.keep_going)
    try:
        with scene:
            scene.play(300)
            server.wait_until_up()
            scene.settle()
        check(scene.sites, oracle.read_mlflow(server.uri))
        check_more(scene.sites, oracle.more_of_mlflow(server.uri, tmp_path / "downloads"))
        assert server.starts == 1 + len(points)
    finally:
        server.stop()


def test_what_a_writer_left_that_died_before_it_began_does_not_stop_others(
    daemon: Make, tmp_path: Path, address: str
) -> None:
    begun, other = Site("site-0", tmp_path / "ledgers"), Site("site-1", tmp_path / "ledgers")
    env = failing(tmp_path / "died", ["writer/spool.made:after:1"])
    for site, more in ((other, {"EXIT_TIMEOUT": "0"}), (begun, env)):
        process = site.start(address, 100, env=more)  # nobody listens yet
        process.communicate(timeout=PATIENCE)
    assert len(list(Path(os.environ["ZMQTRACK_SPOOL_DIR"]).glob("*.spool"))) == 2
    served = daemon([jsonl(tmp_path / "lines")], control=address).start()
    send_what_is_left()
    served.drain()
    served.stop()
    assert not begun.tried
    assert len(other.kept) == 100
    check([begun, other], oracle.read_jsonl(tmp_path / "lines"))
    assert not list(Path(os.environ["ZMQTRACK_SPOOL_DIR"]).glob("*.spool"))
