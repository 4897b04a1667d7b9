"""What a status says of a run is right after ``spool send`` and after restarts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import zmqtrack
from harness import PATIENCE, Daemon, jsonl

LOGS = """
import sys, zmqtrack
address, spool, seconds = sys.argv[1:]
run = zmqtrack.init("e", "r", "s", address, spool_dir=spool, exit_timeout=float(seconds))
for step in range(10):
    run.log_metric("x", step, step=step)
"""


def logs(address: str, spool: Path, seconds: float) -> None:
    command = [sys.executable, "-c", LOGS, address, str(spool), str(seconds)]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)


def of_the_run(served: Daemon) -> tuple[Any, ...]:
    (site,) = served.status()["sites"]
    return site["records"], site["step"], site["state"]


def test_records_step_and_state_last_over_spool_send_and_restarts(tmp_path: Path) -> None:
    logs("tcp://127.0.0.1:9", tmp_path / "spool", 0.1)  # nobody is there
    folder = tmp_path / "daemon"
    with Daemon(folder, [jsonl(tmp_path / "lines")]) as served:
        sent = subprocess.run(
            [
                sys.executable, "-m", "zmqtrack.cli", "spool", "send", "--json",
                "--dir", str(tmp_path / "spool"), "--address", served.address,
            ],
            capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip
        assert sent.returncode == 0, sent.stderr
        assert json.loads(sent.stdout)
        served.drain()
        assert of_the_run(served) == (12, 9, "ended")  # and the run's start and end
    second = Daemon(folder, [jsonl(tmp_path / "lines")]).start()
    assert of_the_run(second) == (12, 9, "ended")
    logs(second.address, tmp_path / "spool", PATIENCE)  # it goes on, under another stream
    second.drain()
    assert of_the_run(second) == (24, 9, "ended")
    second.kill()
    with Daemon(folder, [jsonl(tmp_path / "lines")]) as third:
        assert of_the_run(third) == (24, 9, "ended")


@pytest.mark.timeout(60)
def test_top_shows_the_last_value_of_a_metric(tmp_path: Path) -> None:
    with Daemon(tmp_path / "daemon", [jsonl(tmp_path / "lines")]) as served:
        runs = {
            site: zmqtrack.init(
                "e", "r", site, served.address, spool_dir=tmp_path / "spool", flush_interval=0
            )
            for site in ("a", "b", "c")
        }
        watched = subprocess.Popen(
            [
                sys.executable, "-m", "zmqtrack.cli", "top", "--json", "--metric", "loss",
                "--address", served.address, "--interval", "200ms",
            ],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert watched.stdout is not None
            values = {"a": 0.25, "b": 0.75, "c": 0.5}
            for line in watched.stdout:  # it shows what is logged from now on
                for site, run in runs.items():
                    run.log_metric("loss", values[site])
                    run.log_metric("other", 9.0)
                shown = [
                    (each["site"], (each.get("metric") or {}).get("value"))
                    for each in json.loads(line)["sites"]
                ]
                if len(shown) == 3 and all(value is not None for _, value in shown):
                    break
            assert sorted(shown) == sorted(values.items())
        finally:
            watched.kill()
            watched.wait()
            watched.stdout.close()
            for run in runs.values():
                run.finish()


def test_top_orders_the_sites_as_it_is_told(tmp_path: Path) -> None:
    with Daemon(tmp_path / "daemon", [jsonl(tmp_path / "lines")]) as served:
        for site, steps in (("a", 5), ("b", 50), ("c", 20)):
            with zmqtrack.init("e", "r", site, served.address, spool_dir=tmp_path / "spool") as run:
                for step in range(steps):
                    run.log_metric("x", step, step=100 - steps)
        served.drain()

        def order(by: str) -> list[str]:
            command = f"top --once --interval 200ms --sort {by} --address {served.address}"
            shown = subprocess.run(
                [sys.executable, "-m", "zmqtrack.cli", *command.split()],
                capture_output=True, text=True, timeout=PATIENCE, check=True,
            ).stdout  # fmt: skip
            print(shown)
            words = [line.split() for line in shown.splitlines()]
            return [each[0] for each in words if each and each[0] in ("a", "b", "c")]

        assert order("name") == ["a", "b", "c"]
        assert order("records") == ["b", "c", "a"]
        assert order("step") == ["a", "c", "b"]
