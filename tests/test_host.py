"""An adapter's process: what a user's own adapter may do to it, and what PUB does not bring."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from zmqtrack.adapters import host as host_module
from zmqtrack.adapters.base import Adapter
from zmqtrack.adapters.host import Host
from zmqtrack.daemon.broker import Broker
from zmqtrack.daemon.journal import Entry, Journal
from zmqtrack.daemon.publisher import Publisher

import zmqtrack
from harness import PATIENCE, Daemon, jsonl, read_jsonl
from zmqtrack import wire
from zmqtrack.config import AdapterConfig, DaemonConfig
from zmqtrack.control import Connection, ControlClient
from zmqtrack.wire import Batch

Make = Callable[..., Daemon]

#: A user's adapter that does what the word in the file ``mood`` says.
MOODY = """
import os, sqlite3, sys, time
from pathlib import Path

from zmqtrack.adapters.base import Adapter, Blocked, Options, Refused, Unavailable


class Moody(Adapter):
    types = None

    class Options(Options):
        dir: Path

    def open(self, note):
        self.mood("open-")
        self.db = sqlite3.connect(self.options.dir / "table.db")
        self.db.execute("PRAGMA synchronous = OFF")
        self.db.execute(
            "CREATE TABLE IF NOT EXISTS record (n INTEGER PRIMARY KEY, stream, seq, place, type, "
            "key, value, step, UNIQUE (stream, seq, place))"
        )

    def deliver(self, batches):
        with (self.options.dir / "attempts").open("a") as file:
            file.write(f"{time.monotonic()} {sum(map(len, batches))}\\n")
        # It would be the context, and so a cause, of whatever goes wrong here.
        assert sys.exc_info()[1] is None, "called while another error is handled"
        self.mood("")
        rows = [
            (b.header.stream, b.header.seq, place, b.type, r.key, self.plain(r.value), r.step)
            for b in batches for place, r in enumerate(b, b.first)
        ]
        if bad := [row for row in rows if row[4].startswith("bad")]:
            if self.word() != "lenient":
                raise Refused(f"{bad[0][4]} is refused" + "!" * 1000 + "\\udcff")
        with self.db:
            self.db.executemany(
                "INSERT OR IGNORE INTO record VALUES (NULL, ?, ?, ?, ?, ?, ?, ?)", rows
            )

    def plain(self, value):
        return value.read_bytes() if isinstance(value, Path) else str(value)

    def word(self):
        return (self.options.dir / "mood").read_text()

    def mood(self, when):
        word = self.word()
        word = word.removeprefix(when) if word.startswith(when) else ""
        if word == "unavailable":
            raise Unavailable("nobody there \\udcff")
        if word == "asks":
            raise Unavailable("not now", retry_after=2.0)
        if word == "blocked":
            raise Blocked("who are you?")
        if word == "refused":
            raise Refused("not like this")
        if word == "bug":
            raise KeyError(f"oops {time.monotonic()}")
        if word == "exit":
            os._exit(3)
        if word == "hangs":
            time.sleep(3600)
        while word == "waits" == self.word():
            time.sleep(0.02)
"""


def _python_path() -> list[str]:
    return list(filter(None, [os.environ.get("PYTHONPATH")]))


class Moody:
    """The adapter's folder, and a daemon that runs it beside a jsonl adapter."""

    def __init__(self, folder: Path, daemon: Make, mood: str) -> None:
        self.folder = folder
        self.lines = folder / "lines"
        self.folder.mkdir()
        (folder / "moody.py").write_text(MOODY)
        self.set(mood)
        adapter = {"type": "moody:Moody", "name": "moody", "flush_interval": 0, "retry_max": "1s"}
        self.daemon = daemon(
            [{**adapter, "options": {"dir": str(folder)}}, jsonl(self.lines)],
            env={"PYTHONPATH": os.pathsep.join([str(folder), *_python_path()])},
        )

    def set(self, mood: str) -> None:
        part = self.folder / "part"
        part.write_text(mood)
        part.replace(self.folder / "mood")

    def attempts(self) -> list[tuple[float, int]]:
        path = self.folder / "attempts"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(float(line.split()[0]), int(line.split()[1])) for line in lines]

    def rows(self, data_type: str = "metric") -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(self.folder / "table.db")) as db:
            return db.execute(
                "SELECT key, value, step FROM record WHERE type = ? ORDER BY n", (data_type,)
            ).fetchall()

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.daemon.status()["adapters"]["moody"]
        return found

    def wait_for_state(self, state: str) -> dict[str, Any]:
        found: dict[str, Any] = until(lambda: (now := self.status())["state"] == state and now)
        return found

    def log(self, keys: Sequence[str]) -> None:
        with zmqtrack.init("e", "r", "s", self.daemon.address) as run:
            for step, key in enumerate(keys):
                run.log_metric(key, step / 2, step)

    def retry_all(self) -> None:
        letters = self.daemon.request("dlq")["letters"]
        self.daemon.request("dlq_retry", ids=[letter["id"] for letter in letters])


@pytest.fixture
def moody(tmp_path: Path, daemon: Make) -> Iterator[Callable[..., Moody]]:
    made: list[Moody] = []

    def make(mood: str = "") -> Moody:
        made.append(Moody(tmp_path / "moody", daemon, mood))
        return made[-1]

    yield make
    for one in made:
        print(one.daemon.log)  # shown if the test failed


def until(what: Callable[[], Any], timeout: float = PATIENCE) -> Any:
    """The first true value of ``what``: for facts that nobody announces."""
    deadline = time.monotonic() + timeout
    while not (value := what()):
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)
    return value


def expected(keys: Sequence[str], bad: bool = False) -> list[tuple[Any, ...]]:
    return [(key, str(n / 2), n) for n, key in enumerate(keys) if key.startswith("bad") is bad]


# --- refused -----------------------------------------------------------------------------


def test_only_refused_records_become_dead_letters_and_the_rest_keeps_its_order(
    moody: Callable[..., Moody],
) -> None:
    one = moody()
    keys = ["bad" if n in (0, 7, 8, 500, 1999) else f"k{n % 3}" for n in range(2000)]
    with one.daemon as served:
        one.log(keys)
        served.drain()
        status = one.status()
        listed = served.request("dlq")
        letters = served.request("dlq_fetch", ids=[each["id"] for each in listed["letters"]])
    assert one.rows() == expected(keys)
    assert [letter[2] for letter in letters["letters"]] == ["metric"] * 5
    assert all("bad is refused!!!" in letter[3] for letter in letters["letters"])
    frames = letters["frames"]
    dead = [
        record
        for header, body in zip(frames[::2], frames[1::2], strict=True)
        for record in wire.decode_body("metric", wire.decode_header(header), body)
    ]
    assert [(r.key, str(r.value), r.step) for r in dead] == expected(keys, bad=True)
    assert status["dead_letters"] == status["counters"]["dead_letters"] == 5
    assert status["counters"]["delivered"] == 1995 + 2  # the run's start and end
    assert "retries" not in status["counters"]


def test_an_adapter_that_refuses_everything_goes_on_and_each_record_is_a_dead_letter(
    moody: Callable[..., Moody],
) -> None:
    one = moody()
    keys = ["bad"] * 1100  # their reasons are longer than a control message may be
    with one.daemon as served:
        one.log(keys)
        one.log(["good"])
        served.drain()
        assert one.status()["dead_letters"] == 1100
        assert one.rows() == expected(["good"])
        one.set("lenient")
        for _ in range(2):  # a list shows 1000 at a time
            one.retry_all()
            until(lambda: one.status()["dead_letters"] in (0, 100))
            until(lambda: not [n for n in served.request("dlq")["letters"] if n["retrying"]])
        status = one.status()
    assert one.rows() == [*expected(["good"]), *expected(keys, bad=True)]
    assert (status["dead_letters"], status["counters"]["dead_letters"]) == (0, 0)
    assert status["counters"]["delivered"] == 1100 + 1 + 4


def test_a_refused_file_is_kept_whole_and_can_be_retried(
    moody: Callable[..., Moody], tmp_path: Path
) -> None:
    one = moody()
    content = os.urandom((4 << 20) + 12345)
    (tmp_path / "file").write_bytes(content)
    with one.daemon as served:
        with zmqtrack.init("e", "r", "s", served.address) as run:
            run.log_artifact(tmp_path / "file", "bad.bin")
            run.log_artifact(tmp_path / "file", "good.bin")
        served.drain()
        assert [row[0] for row in one.rows("artifact")] == ["good.bin"]
        assert one.status()["dead_letters"] == 2  # pieces
        one.set("lenient")
        one.retry_all()
        until(lambda: one.status()["dead_letters"] == 0)
    assert [row[:2] for row in one.rows("artifact")] == [
        ("good.bin", content), ("bad.bin", content)
    ]  # fmt: skip


def test_a_commit_that_comes_twice_because_its_answer_was_late_buries_once(daemon: Make) -> None:
    with daemon() as served, contextlib.closing(ControlClient(served.address)) as client:
        with zmqtrack.init("e", "r", "s", served.address) as run:
            run.log_metric("a", 1)
        session = client.request("subscribe", name="mine", start="beginning")["session"]
        header, body = client.request("replay", after=0, types=["metric"])["frames"]

        def commit(place: int, retried: Sequence[int]) -> list[int]:
            for _ in range(2):
                client.request(
                    "commit", name="mine", session=session, offset=1, counters={}, state="running",
                    detail="", dead=[["metric", place]], retried=retried,
                    frames=[b"", b"no", header, body],
                )  # fmt: skip
            return [letter["id"] for letter in client.request("dlq")["letters"]]

        assert (first := commit(0, [])) == [1]
        assert commit(5, []) == [1, 2]
        assert commit(0, first) == [2, 3], "refused anew under another number"


# --- away, blocked, broken ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("mood", "state", "detail"),
    [
        ("unavailable", "retrying", "nobody there"),
        ("blocked", "blocked", "who are you?"),
        ("bug", "retrying", "KeyError: 'oops"),
        ("open-refused", "blocked", "not like this"),
    ],
)
def test_what_an_adapter_raises_shows_as_its_state_until_it_goes_on_by_itself(
    moody: Callable[..., Moody], mood: str, state: str, detail: str
) -> None:
    one = moody(mood)
    keys = [f"k{n % 3}" for n in range(300)]
    with one.daemon as served:
        one.log(keys)
        facts = one.wait_for_state(state)
        assert detail in facts["detail"] and facts["lag"] > 0
        until(lambda: served.status()["adapters"]["jsonl"]["lag"] == 0)
        if not mood.startswith("open-"):
            until(lambda: len(one.attempts()) >= 4)
        until(lambda: one.status()["counters"].get("retries", 0) >= 4)  # not only once delivered
        one.set("")
        served.drain()
        facts = one.status()
    assert one.rows() == expected(keys)
    assert (facts["state"], facts["detail"], facts["dead_letters"]) == ("running", "", 0)
    assert facts["counters"]["delivered"] == 302
    if not mood.startswith("open-"):
        failed = len(one.attempts()) - facts["counters"]["retries"]
        assert 1 <= failed <= 5, "each attempt but the deliveries is counted"
        times = [when for when, _ in one.attempts()]
        waits = [after - before for before, after in itertools.pairwise(times)]
        # 0.5 s, 1 s, and then 1 s is the most; each shortened to its half at most.
        assert waits[0] >= 0.25 and waits[1] >= 0.5 and waits[2] >= 0.5
    assert served.log.count("Traceback") == (1 if mood == "bug" else 0)
    assert len(re.findall(f"WARNING.*{state}: ", served.log)) == 1
    assert [line["key"] for line in read_jsonl(one.lines, "e", "r", "s")][1:-1] == keys


def test_the_wait_that_a_tracker_asks_for_is_kept_though_it_is_longer(
    moody: Callable[..., Moody],
) -> None:
    one = moody("asks")
    with one.daemon as served:
        one.log(["a"])
        until(lambda: len(one.attempts()) >= 2)
        one.set("")
        served.drain()
    times = [when for when, _ in one.attempts()]
    assert times[1] - times[0] >= 2.0


@pytest.mark.parametrize("mood", ["exit", "open-exit"])
def test_an_adapter_that_ends_its_process_is_started_again_ever_more_slowly(
    moody: Callable[..., Moody], mood: str
) -> None:
    one = moody(mood)
    keys = [f"k{n % 3}" for n in range(300)]
    with one.daemon as served:
        one.log(keys)
        for wait in ("0.5", "1"):
            served.wait_for(rf"adapter moody ended \(exit code 3\); next start in {wait} s")
        facts = one.wait_for_state("ended")
        assert facts["detail"].startswith("exit code 3; next start in ")
        until(lambda: served.status()["adapters"]["jsonl"]["lag"] == 0)
        one.set("")
        served.drain()
        assert one.status()["state"] == "running"
    assert one.rows() == expected(keys)


@pytest.mark.parametrize(
    ("number", "name"),
    [(signal.SIGKILL, "SIGKILL"), (signal.SIGRTMIN + 6, str(signal.SIGRTMIN + 6))],
)
def test_an_adapter_that_a_signal_ends_is_started_again_whether_or_not_the_signal_has_a_name(
    daemon: Make, tmp_path: Path, number: int, name: str
) -> None:
    with daemon([jsonl(tmp_path / "out")]) as served:
        process = int(served.wait_for("adapter jsonl runs as process").split()[-1])
        served.wait_for("delivering from offset")
        os.kill(process, number)
        served.wait_for(rf"adapter jsonl ended \(signal {name}\); next start in 0.5 s")
        served.wait_for("delivering from offset")


def test_a_stop_while_the_tracker_is_away_keeps_what_is_left_for_the_next_start(
    moody: Callable[..., Moody],
) -> None:
    one = moody("unavailable")
    keys = [f"k{n % 3}" for n in range(300)]
    with one.daemon:
        one.log(keys)
        one.wait_for_state("retrying")
    assert "did not stop in time" not in one.daemon.log
    one.set("")
    with one.daemon as served:
        served.drain()
    assert one.rows() == expected(keys)


def test_a_delivery_that_hangs_does_not_outlive_its_daemon_and_the_next_says_whom_it_waits_for(
    moody: Callable[..., Moody],
) -> None:
    one = moody("hangs")
    served = one.daemon.start()
    hung = int(served.wait_for("adapter moody runs as process").split()[-1])
    one.log(["a"])
    until(one.attempts)
    served.kill()
    one.set("")
    with served:
        served.wait_for(f"WARNING .moody. waiting for process {hung}, which still")
        served.drain()
        assert one.status()["state"] == "running"
    assert served.log.count("[moody] waiting for process") == 1
    assert one.rows() == expected(["a"])


def test_a_delivery_that_takes_long_comes_to_its_end_though_its_daemon_has_died(
    moody: Callable[..., Moody],
) -> None:
    one = moody("waits")
    served = one.daemon.start()
    one.log(["a"])
    until(one.attempts)
    served.kill()
    one.set("")
    until(one.rows)
    with served:
        served.drain()
    assert one.rows() == expected(["a"])


def test_a_stop_right_after_the_journal_took_it_delivers_what_was_not_heard_of_yet(
    daemon: Make, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with daemon([jsonl(out, flush_interval="1h")]) as served:
        served.wait_for("delivering from offset")
        for _ in range(3):
            with zmqtrack.init("e", "r", "s", served.address) as run:
                for step in range(3000):
                    run.log_metric("a", 1, step)
        served.stop()
    assert len(read_jsonl(out, "e", "r", "s")) == 3 * 3002


# --- gaps --------------------------------------------------------------------------------


class LossyPublisher(Publisher):
    """Publishes only what ``keeps`` says of (topic, offset or number of the head)."""

    keeps: Callable[[str, int], bool]

    def publish(self, entries: list[Entry], head: int) -> None:
        for entry in entries:
            if self.keeps("batch", entry.offset):
                topic = wire.topic(entry.type, entry.site)
                self.socket.send_multipart([topic, entry.header, entry.body])
        if entries:
            self._publish_head(entries[0].offset, [entry.type for entry in entries], head)

    def _publish_head(self, first: int, types: list[str], head: int) -> None:
        if self.keeps("head" if types else "heartbeat", first):
            super()._publish_head(first, types, head)
        else:
            self._said = time.monotonic()


class CountingBroker(Broker):
    """Knows how many pages it was asked for."""

    replays = 0


class Recorder(Adapter):
    """Keeps what it is given; waits while it is told to."""

    types = frozenset({"metric", "text"})
    got: list[Batch]
    free: threading.Event

    def deliver(self, batches: Sequence[Batch]) -> None:
        assert self.free.wait(PATIENCE)
        self.got.extend(batches)


@contextlib.contextmanager
def broker(folder: Path, keeps: Callable[[str, int], bool]) -> Iterator[CountingBroker]:
    """A broker in a thread."""
    made: list[CountingBroker] = []
    ready, stop = threading.Event(), threading.Event()

    def serve() -> None:
        journal = Journal(folder / "state")
        config = DaemonConfig(control=f"ipc://{folder}/control", state_dir=folder / "state")
        publisher = type("OneLossyPublisher", (LossyPublisher,), {"keeps": staticmethod(keeps)})
        with mock.patch("zmqtrack.daemon.broker.Publisher", publisher):
            one = CountingBroker(config, journal, [AdapterConfig(type="recorder")])
        handlers = one._control._handlers
        role, replay = handlers["replay"]

        def counted(identity: bytes, request: dict[str, Any]) -> None:
            one.replays += 1
            replay(identity, request)

        handlers["replay"] = role, counted
        made.append(one)
        ready.set()
        while not stop.is_set():
            one.step()
        one.close()
        journal.close()

    thread = threading.Thread(target=serve)
    thread.start()
    assert ready.wait(PATIENCE)
    try:
        yield made[0]
    finally:
        stop.set()
        thread.join(PATIENCE)


@contextlib.contextmanager
def recorder(
    address: str, folder: Path, *, flush_interval: float = 0, waits: bool = False
) -> Iterator[type[Recorder]]:
    """A host in a thread, with an adapter that records."""
    Recorder.got, Recorder.free = [], threading.Event()
    if not waits:
        Recorder.free.set()
    config = AdapterConfig(
        type=f"{__name__}:Recorder", name="recorder", flush_interval=flush_interval
    )
    host = Host(config, address, folder)
    thread = threading.Thread(target=host.run)
    thread.start()
    try:
        until(lambda: host._state == "running")
        yield Recorder
    finally:
        Recorder.free.set()
        host.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def _log_and_wait(address: str, count: int = 120, value: Any = None) -> None:
    with zmqtrack.init("e", "r", "s", address, flush_interval=0) as run:
        for step in range(count):
            run.log_metric("a", step, step)
            if step % 10 == 0:
                run.flush()  # a commit of its own, at least


def _steps(got: list[Batch]) -> list[int | None]:
    offsets = [batch.header.offset for batch in got]
    assert offsets == sorted(set(offsets))
    return [record.step for batch in got for record in batch]


@pytest.mark.parametrize(
    "keeps",
    [
        lambda kind, offset: kind != "batch" or offset % 3 == 0,
        lambda kind, offset: kind != "head" or offset % 3 == 0,
        lambda kind, offset: offset % 2 == 0,
        lambda kind, _: kind == "heartbeat",
        lambda kind, offset: kind == "heartbeat" or offset < 5,
    ],
    ids=["batches", "heads", "both", "all but the heartbeat", "the tail"],
)
def test_what_pub_drops_is_fetched_and_comes_once_and_in_order(
    tmp_path: Path, keeps: Callable[[str, int], bool]
) -> None:
    with broker(tmp_path, keeps) as one, recorder(one.control_address, tmp_path / "r") as adapter:
        replays = one.replays
        _log_and_wait(one.control_address)
        until(lambda: sum(map(len, adapter.got)) == 120)
        assert one.replays > replays
    assert _steps(adapter.got) == list(range(120))


def test_without_drops_the_batches_come_by_pub(tmp_path: Path) -> None:
    with (
        broker(tmp_path, lambda *_: True) as one,
        recorder(one.control_address, tmp_path / "r") as adapter,
    ):
        _log_and_wait(one.control_address, 1)  # by then the subscription has arrived
        until(lambda: sum(map(len, adapter.got)) == 1)
        replays = one.replays
        _log_and_wait(one.control_address)
        until(lambda: sum(map(len, adapter.got)) == 121)
        assert one.replays < replays + 60  # those that an answer of control overtook
    assert _steps(adapter.got) == [0, *range(120)]


def test_a_subscriber_that_was_too_slow_for_zeromqs_queues_misses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zmqtrack.daemon.sockets.PUBLISH_HWM", 1)
    monkeypatch.setattr(host_module, "Connection", partial(Connection, hwm=1))
    with (
        broker(tmp_path, lambda *_: True) as one,
        recorder(one.control_address, tmp_path / "r") as adapter,
    ):
        adapter.free.clear()
        with zmqtrack.init("e", "r", "s", one.control_address) as run:
            for step in range(150):  # more than the kernel's buffers, or one delivery, can hold
                run.log_text("t", "x" * 200_000, step=step)
                if step % 3 == 0:
                    run.flush()
        replays = one.replays
        adapter.free.set()
        until(lambda: sum(map(len, adapter.got)) == 150)
        assert one.replays > replays
    assert _steps(adapter.got) == list(range(150))


# --- heard of ----------------------------------------------------------------------------


def _facts(client: ControlClient) -> dict[str, Any]:
    found: dict[str, Any] = client.request("status")["adapters"]["recorder"]
    return found


def test_an_adapter_that_gathers_for_long_is_heard_of_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_module, "REPORT", 0.2)
    with (
        broker(tmp_path, lambda *_: True) as one,
        contextlib.closing(ControlClient(one.control_address)) as client,
        recorder(one.control_address, tmp_path / "r", flush_interval=3600) as adapter,
    ):

        def hear_of_it_again() -> None:
            seen = _facts(client)["seen"]
            until(lambda: _facts(client)["seen"] > seen)

        until(lambda: _facts(client)["state"] == "running")
        for _ in range(3):
            hear_of_it_again()
        _log_and_wait(one.control_address, 1)
        for _ in range(3):
            hear_of_it_again()
        assert _facts(client)["lag"] > 0 and not adapter.got


def test_an_adapter_whose_first_delivery_hangs_is_known_to_run(tmp_path: Path) -> None:
    with (
        broker(tmp_path, lambda *_: True) as one,
        contextlib.closing(ControlClient(one.control_address)) as client,
    ):
        _log_and_wait(one.control_address, 1)
        with recorder(one.control_address, tmp_path / "r", waits=True) as adapter:
            until(lambda: _facts(client)["state"] == "running")
            assert not adapter.got


def test_a_second_process_under_the_same_name_ends_the_first(daemon: Make, tmp_path: Path) -> None:
    with daemon() as served, contextlib.ExitStack() as ended:

        def start(name: str) -> subprocess.Popen[str]:
            config = tmp_path / f"{name}.yaml"
            config.write_text(
                yaml.safe_dump(
                    {
                        "daemon": {"control": served.address, "state_dir": str(tmp_path / name)},
                        "adapters": [jsonl(tmp_path / f"out-{name}")],
                    }
                )
            )
            command = [sys.executable, "-m", "zmqtrack.adapters", "--config", str(config)]
            process = subprocess.Popen(
                [*command, "--name", "jsonl"], stderr=subprocess.PIPE, text=True
            )
            ended.callback(process.kill)
            return process

        first = start("first")
        with zmqtrack.init("e", "r", "s", served.address) as run:
            run.log_metric("a", 1)
        until(lambda: len(read_jsonl(tmp_path / "out-first", "e", "r", "s")) == 3)
        until(lambda: served.status()["adapters"]["jsonl"]["lag"] == 0)
        second = start("second")
        _, stderr = first.communicate(timeout=PATIENCE)
        assert first.returncode == 1
        assert "another process has taken over adapter 'jsonl'" in stderr
        with zmqtrack.init("e", "r", "s", served.address) as run:
            run.log_metric("a", 2)
        until(lambda: served.status()["adapters"]["jsonl"]["lag"] == 0)
        second.terminate()
        second.communicate(timeout=PATIENCE)
        assert second.returncode == 0
    lines = read_jsonl(tmp_path / "out-second", "e", "r", "s")
    assert [line["value"] for line in lines if line["type"] == "metric"] == [2]
    assert json.dumps(lines) and len(read_jsonl(tmp_path / "out-first", "e", "r", "s")) == 3
