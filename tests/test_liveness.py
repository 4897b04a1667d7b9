"""A site that is silent is stale, then killed after its lease, and active again when it is back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zmqtrack
from harness import PATIENCE, Daemon, jsonl, read_jsonl

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
        state = site(served)["state"]
        if state and (not seen or seen[-1] != state):
            seen.append(state)
        time.sleep(0.05)
    return seen


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ends(lines: Path) -> list[Any]:
    return [
        line["value"]
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
            log(process, 1)
            wait_for(served, "active")
            wait_until(lambda: shown() == "RUNNING")
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
        assert site(served)["spooled"] == 0 and site(served)["records"] == 3


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


def test_no_lease_means_that_silence_kills_nobody(tmp_path: Path) -> None:
    with Daemon(tmp_path, [], stale_after="1s", lease=0) as served:
        with writer(served, tmp_path / "spool"):
            wait_for(served, "active")
        wait_for(served, "stale")
        until = time.monotonic() + 3
        while time.monotonic() < until:
            assert site(served)["state"] == "stale"
            time.sleep(0.2)
