"""What is known of a run whose process went without a word is said, and no more (G9)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import zmqtrack
from harness import PATIENCE, Daemon, jsonl, read_jsonl

Make = Callable[..., Daemon]
QUICK: dict[str, Any] = {"stale_after": "1s", "lease": "3s"}

LEAVES = """
import os, sys, time, zmqtrack
run = zmqtrack.init("e", "r", "here")
run.log_metric("m", 1.0, step=7)
run.flush()
time.sleep(2)  # until a beat has said that nothing waits
os._exit(0)
"""

CHILD = """
import multiprocessing, sys, zmqtrack

def work(how):
    run = zmqtrack.init("e", how, "here", exit_timeout=60)
    run.log_metric("m", 1.0)
    if how == "failed":
        raise ValueError("it fails")
    if how == "exits":
        sys.exit(3)

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    for how in ("finished", "failed", "exits"):
        process = context.Process(target=work, args=(how,))
        process.start()
        process.join(60)
"""


def train(served: Daemon, folder: Path, code: str, *arguments: str) -> str:
    script = folder / "training.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        env={**os.environ, "ZMQTRACK_ADDRESS": served.address},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    return done.stderr


def wait_for(served: Daemon, *states: str) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE
    while True:
        (found,) = served.status()["sites"]
        if found["state"] in states:
            time.sleep(0.2)  # it is shown a moment before it is committed
            return dict(found)
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


def ends(lines: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """What trackers were told: ends, and tags about them."""
    return (
        [line["value"] for line in lines if (line["type"], line["key"]) == ("run", "end")],
        [line["value"] for line in lines if (line["type"], line["key"]) == ("tag", "zmqtrack.end")],
    )


def test_who_leaves_with_nothing_unfinished_is_told_from_who_may_have_more(
    daemon: Make, tmp_path: Path
) -> None:
    with daemon([jsonl(tmp_path / "out")], **QUICK) as served:
        train(served, tmp_path, LEAVES)
        found = wait_for(served, "left", "killed")
        assert (found["state"], found["step"], found["records"]) == ("left", 7, 2)
        served.drain()
        statuses, tags = ends(read_jsonl(tmp_path / "out", "e", "r", "here"))
        assert statuses == ["left"]
        (tag,) = tags
        assert tag.startswith("left: silent for 3 s") and "nothing waited" in tag
        done = subprocess.run(
            [sys.executable, "-m", "zmqtrack.cli", "doctor", "--json", "-a", served.address],
            capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip
        (finding,) = [each for each in json.loads(done.stdout) if each["code"] == "left"]
        assert "e/r/here" in finding["detail"] and "os._exit" in finding["advice"]
        # It is back, and ends as it says.
        with zmqtrack.init("e", "r", "here", served.address, exit_timeout=PATIENCE) as run:
            run.log_metric("m", 2.0, step=8)
            wait_for(served, "active")
        wait_for(served, "ended")
        served.drain()
        statuses, tags = ends(read_jsonl(tmp_path / "out", "e", "r", "here"))
        assert statuses == ["left", "finished"]


def test_of_one_that_was_never_heard_of_again_nothing_more_is_said_than_is_known(
    daemon: Make, tmp_path: Path
) -> None:
    """After a restart of the daemon nobody knows what waited at it."""
    with daemon([jsonl(tmp_path / "out")], **QUICK) as served:
        code = LEAVES.replace("os._exit(0)", f"os.kill(os.getpid(), {int(signal.SIGKILL)})")
        train(served, tmp_path, code)
        served.stop()
        served.start()
        wait_for(served, "killed")
        served.drain()
    statuses, tags = ends(read_jsonl(tmp_path / "out", "e", "r", "here"))
    assert statuses == ["killed"] and "is not known" in tags[-1]


@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
def test_runs_of_children_end_as_these_do(daemon: Make, tmp_path: Path, start: str) -> None:
    """Neither forked ones nor those of a fork server run atexit."""
    with daemon() as served:
        train(served, tmp_path, CHILD, start)
        states = {site["run"]: site["state"] for site in served.status()["sites"]}
        assert states == dict.fromkeys(("finished", "failed", "exits"), "ended")
        page = served.request("replay", after=0, types=["run"])
        from zmqtrack import wire

        found = {}
        for header, body in zip(page["frames"][::2], page["frames"][1::2], strict=True):
            decoded = wire.decode_header(header)
            for record in wire.decode_body("run", decoded, body):
                if record.key == "end":
                    found[decoded.run.run] = record.value
        assert found == {"finished": "finished", "failed": "failed", "exits": "failed"}
