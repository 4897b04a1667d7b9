"""A site that is silent is stale, then killed after its lease, and active again when it is back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from zmqtrack.daemon.broker import Broker
from zmqtrack.daemon.journal import Journal
from zmqtrack.daemon.sites import Beat, Sites

import zmqtrack
from harness import PATIENCE, Daemon, jsonl, read_jsonl
from zmqtrack import wire
from zmqtrack.cli import spools
from zmqtrack.config import DaemonConfig
from zmqtrack.link import Link
from zmqtrack.records import Record, RunKey
from zmqtrack.spool import Outgoing, Spool

QUICK: dict[str, Any] = {"stale_after": "3s", "lease": "4s"}

WRITER = """
import sys, time, zmqtrack
run = zmqtrack.init(experiment="e", run="r", site="site", config={})
first = int(sys.argv[1])
run.log_metric("m", first, step=first)
run.flush()
print("ready", flush=True)
for line in sys.stdin:
    run.log_metric("m", float(line), step=int(line))
    run.flush()
    print("logged", flush=True)
run.finish()
"""


@contextmanager
def writer(served: Daemon, spool: Path, first: int = 0) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(first)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "ZMQTRACK_ADDRESS": served.address,
            "ZMQTRACK_SPOOL_DIR": str(spool),
        },
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()


def log(process: subprocess.Popen[str], number: int) -> None:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{number}\n")
    process.stdin.flush()
    assert process.stdout.readline() == "logged\n"


def site(served: Daemon) -> dict[str, Any]:
    found = [each for each in served.status()["sites"] if each["site"] == "site"]
    return found[0] if found else {"state": None}


def wait_for(served: Daemon, *states: str) -> list[str]:
    """Until the site is in the last of the states; returns all that were seen on the way."""
    seen: list[str] = []
    deadline = time.monotonic() + PATIENCE
    while not seen or seen[-1] != states[-1]:
        assert time.monotonic() < deadline, f"{seen}, not {states}:\n{served.log}"
        state = _gone(site(served)["state"])
        if state and (not seen or seen[-1] != state):
            seen.append(state)
        time.sleep(0.05)
    return seen


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _gone(state: Any) -> Any:
    """Which of the two it is depends on its last beat: tests/test_left.py tells them apart."""
    return "killed" if state == "left" else state


def ends(lines: Path) -> list[Any]:
    return [
        _gone(line["value"])
        for line in read_jsonl(lines, "e", "r", "site")
        if line["type"] == "run" and line["key"] == "end"
    ]


def test_a_killed_run_is_stale_then_killed_in_the_trackers_and_runs_again_when_it_resumes(
    tmp_path: Path,
) -> None:
    lines = tmp_path / "lines"
    with Daemon(tmp_path, [jsonl(lines)], **QUICK) as served:
        with writer(served, tmp_path / "spool") as process:
            wait_for(served, "active")
            process.kill()
            assert wait_for(served, "killed") == ["active", "stale", "killed"]
        served.drain()
        assert ends(lines) == ["killed"]
        facts = served.status()
        (found,) = facts["sites"]  # that it was killed is no sign of its life
        assert (found["records"], found["streams"]) == (2, 1)
        assert facts["now"] - found["last_seen"] >= 4
        with writer(served, tmp_path / "spool", 1):
            wait_for(served, "active")
        wait_for(served, "killed")
        served.drain()
        assert ends(lines) == ["killed", "killed"]
        metrics = [x for x in read_jsonl(lines, "e", "r", "site") if x["type"] == "metric"]
        assert [x["value"] for x in metrics] == [0, 1]


def test_mlflow_shows_it_as_killed_and_then_as_running(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    adapter = {"type": "mlflow", "flush_interval": 0, "options": {"tracking_uri": uri}}
    with Daemon(tmp_path, [adapter], **QUICK) as served:

        def shown() -> str:
            served.drain()
            client = MlflowClient(uri)  # the adapter makes the database
            experiment = client.get_experiment_by_name("e")
            assert experiment is not None
            runs = client.search_runs([experiment.experiment_id], "tags.`zmqtrack.site` = 'site'")
            return str(runs[0].info.status)

        with writer(served, tmp_path / "spool") as process:
            wait_for(served, "active")
            assert shown() == "RUNNING"
            os.kill(process.pid, signal.SIGSTOP)
            wait_for(served, "killed")
            assert shown() == "KILLED"
            os.kill(process.pid, signal.SIGCONT)
            wait_for(served, "active")
            wait_until(lambda: shown() == "RUNNING")  # though it has nothing to log
            log(process, 1)
            assert shown() == "RUNNING"
            process.communicate(timeout=PATIENCE)  # its input ends, and so does it
            assert process.returncode == 0
        assert wait_for(served, "ended")[-1] == "ended"
        assert shown() == "FINISHED"


def test_a_run_that_logs_nothing_for_long_lives_as_long_as_its_writer(tmp_path: Path) -> None:
    with (
        Daemon(tmp_path, [jsonl(tmp_path / "lines")], **QUICK) as served,
        writer(served, tmp_path / "spool") as process,
    ):
        wait_for(served, "active")
        until = time.monotonic() + 7
        while time.monotonic() < until:  # longer than the lease
            assert site(served)["state"] == "active"
            time.sleep(0.2)
        log(process, 7)
        wait_until(lambda: site(served)["step"] == 7)
        assert site(served)["waiting"] == 0 and site(served)["records"] == 3


def test_an_ended_run_is_never_killed_and_an_open_one_has_its_lease_after_a_restart(
    tmp_path: Path,
) -> None:
    lines = tmp_path / "lines"
    served = Daemon(tmp_path, [jsonl(lines)], control=f"ipc://{tmp_path}/c", **QUICK)
    with served:
        with zmqtrack.init(
            experiment="e", run="r", site="other", address=served.address, config={}
        ) as run:
            run.log_metric("m", 1.0)
        with writer(served, tmp_path / "spool"):
            wait_for(served, "active")
    with served:
        assert wait_for(served, "killed")[-1] == "killed"
        served.drain()
        assert ends(lines) == ["killed"]
        others = [each for each in served.status()["sites"] if each["site"] == "other"]
        assert [each["state"] for each in others] == ["ended"]
        assert "run e/r/other was silent" not in served.log


def test_a_writer_that_logs_nothing_outlives_a_restart_of_the_daemon(tmp_path: Path) -> None:
    served = Daemon(
        tmp_path, [jsonl(tmp_path / "lines")], control=f"ipc://{tmp_path}/c", **QUICK
    )  # fmt: skip
    with served:
        with writer(served, tmp_path / "spool"):
            wait_for(served, "active")
            served.stop()
            served.start()
            until = time.monotonic() + 6
            while time.monotonic() < until:  # longer than the lease
                assert site(served)["state"] not in ("killed", "left")
                time.sleep(0.2)
            wait_for(served, "active")
        wait_for(served, "killed")


def test_what_a_crashed_process_left_opens_no_run_that_another_has_ended(tmp_path: Path) -> None:
    lines, run = tmp_path / "lines", RunKey("e", "r", "site")
    with Daemon(tmp_path, [jsonl(lines)]) as served:
        with closing(Spool.create(tmp_path / "left", run, served.address)) as spool:
            header = wire.encode_header(wire.Header(spool.stream, 1, run, 1))
            body = wire.encode_body([Record("m", 1.0, 1, 1.0)])
            spool.append([Outgoing(1, "metric", 1, header, body)])
        with writer(served, tmp_path / "spool") as process:
            wait_for(served, "active")
            process.communicate(timeout=PATIENCE)  # its input ends, and so does it
        wait_for(served, "ended")
        assert spools.send(tmp_path / "left", PATIENCE, None) == (1, 0)
        assert (site(served)["state"], site(served)["records"]) == ("ended", 4)
        with writer(served, tmp_path / "spool"):  # it goes on with the same run
            wait_for(served, "active")
        served.drain()
    assert ends(lines) == ["finished"]


@contextmanager
def broker(folder: Path, **options: Any) -> Iterator[Broker]:
    """One whose loop turns only when it is told to."""
    config = {"control": f"ipc://{folder}/control", "state_dir": folder / "state", **options}
    journal = Journal(folder / "state")
    one = Broker(DaemonConfig.model_validate(config), journal)
    try:
        yield one
    finally:
        one.close()
        journal.close()


def turn(one: Broker, seconds: float = PATIENCE, until: Callable[[], Any] = lambda: False) -> None:
    deadline = time.monotonic() + seconds
    while not until() and time.monotonic() < deadline:
        one.step(0.05)


def test_what_a_daemon_could_not_hear_while_it_hung_ends_no_run(tmp_path: Path) -> None:
    key = RunKey("e", "r", "site")
    with (
        broker(tmp_path, stale_after="1s", lease="1500ms") as one,
        closing(_one_batch(tmp_path, one)) as spool,
        closing(Link(spool, one.control_address)) as link,
    ):
        turn(one, until=lambda: link.pump() or link.done)
        assert one.journal.run_state(key) == "open"
        time.sleep(2)  # it hangs, for longer than the lease
        turn(one, 0.5)
        assert one.journal.run_state(key) == "open"
        turn(one, until=lambda: one.journal.run_state(key) == "killed")
        assert one.journal.run_state(key) == "killed"


def _one_batch(folder: Path, one: Broker) -> Spool:
    run = RunKey("e", "r", "site")
    spool = Spool.create(folder / "spool", run, one.control_address)
    header = wire.encode_header(wire.Header(spool.stream, 1, run, 1))
    body = wire.encode_body([Record("m", 1.0, 1, 1.0)])
    spool.append([Outgoing(1, "metric", 1, header, body)])
    return spool


def test_writers_that_are_gone_take_no_part_of_the_memory_from_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zmqtrack.daemon.intake.IDLE", 0)
    with broker(tmp_path, stale_after="1s") as one:
        whole = one.intake.window
        for n in range(500):
            one.intake.set_route(n.to_bytes(16, "big"), b"nobody")
        assert one.intake.window < whole
        turn(one, until=lambda: one.intake.window == whole)
        assert one.intake.window == whole


def test_what_writers_said_is_not_forgotten_when_a_commit_fails() -> None:
    one, two, three = (RunKey("e", "r", name) for name in ("one", "two", "three"))
    sites = Sites([one])
    for run, stream in ((one, b"1"), (two, b"2")):
        sites.hear(run)
        sites.beat(run, stream, Beat(5, 77.0))
    sites.end(one, b"1")
    sites.agree([one, three])  # neither the end of one nor the beginning of two was committed
    assert sites.life(two) is None
    assert [sites.last_clock(run) for run in (one, two, three)] == [77.0, 77.0, 0.0]
    assert sites.life(one) is not None and sites.life(three) is not None


def test_what_waits_at_a_writer_that_is_dead_is_not_counted_for_ever() -> None:
    run = RunKey("e", "r", "site")
    sites = Sites([run])
    sites.beat(run, b"dead", Beat(56, 1.0))
    since = time.monotonic()
    sites.beat(run, b"alive", Beat(2, 1.0))
    life = sites.life(run)
    assert life is not None
    assert (life.waiting(0.0), life.waiting(since)) == (58, 2)
    assert life.waiting(time.monotonic() + 1) is None


def test_no_lease_means_that_silence_kills_nobody(tmp_path: Path) -> None:
    with Daemon(tmp_path, [], stale_after="1s", lease=0) as served:
        with writer(served, tmp_path / "spool"):
            wait_for(served, "active")
        wait_for(served, "stale")
        until = time.monotonic() + 3
        while time.monotonic() < until:
            assert site(served)["state"] == "stale"
            time.sleep(0.2)
