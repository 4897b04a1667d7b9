"""A run that was begun in a thread ends with that thread, as frameworks run scripts in threads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import zmqtrack
from harness import PATIENCE, Daemon, jsonl, read_jsonl


def in_a_thread(function: Callable[[], Any]) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def told(lines: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    """What the lines tell of a run: its begins and ends, and its metrics."""
    return [
        (line["key"], line["value"] if line["key"] != "start" else None)
        for line in lines
        if line["type"] in ("run", "metric")
    ]


def test_a_run_ends_with_the_thread_that_began_it(
    tmp_path: Path, daemon: Callable[..., Daemon]
) -> None:
    with daemon([jsonl(tmp_path / "out")]) as running:

        def script() -> None:
            run = zmqtrack.init(run="r", site="s", address=running.address)
            run.log_metric("m", 1.0)

        in_a_thread(script)
        wait_for_end(running)
        running.drain()
    assert told(read_jsonl(tmp_path / "out", "experiment", "r", "s")) == [
        ("start", None),
        ("m", 1.0),
        ("end", "finished"),
    ]


def wait_for_end(running: Daemon) -> None:
    """Until the daemon has been told of it: nobody waits for the sender in a thread's end."""
    from zmqtrack.sender import running as senders

    for sender in list(senders):
        sender.join(PATIENCE)
    assert [site["state"] for site in running.status()["sites"]] == ["ended"]


def test_a_run_fails_with_the_exception_that_ends_its_thread(
    tmp_path: Path, daemon: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: said.append(str(args.exc_value)))
    monkeypatch.setattr("zmqtrack.ending._hooked", False)
    with daemon([jsonl(tmp_path / "out")]) as running:

        def script() -> None:
            zmqtrack.init(run="r", site="s", address=running.address).log_metric("m", 1.0)
            raise RuntimeError("too hot")

        in_a_thread(script)
        wait_for_end(running)
        running.drain()
    assert said == ["too hot"]
    assert told(read_jsonl(tmp_path / "out", "experiment", "r", "s"))[-1] == ("end", "failed")


def test_what_another_thread_logs_later_begins_the_run_again(
    tmp_path: Path, daemon: Callable[..., Daemon]
) -> None:
    runs: list[zmqtrack.Run] = []
    with daemon([jsonl(tmp_path / "out")]) as running:

        def script() -> None:
            runs.append(zmqtrack.init(run="r", site="s", address=running.address))
            runs[0].log_metric("m", 1.0)

        in_a_thread(script)
        wait_for_end(running)
        assert runs[0].flush()
        runs[0].log_metric("m", 2.0)
        assert runs[0].flush()
        in_a_thread(lambda: runs[0].log_metric("m", 3.0))  # ends nothing: it began nothing
        runs[0].log_metric("m", 4.0)
        runs[0].finish()
        running.drain()
    assert told(read_jsonl(tmp_path / "out", "experiment", "r", "s")) == [
        ("start", None),
        ("m", 1.0),
        ("end", "finished"),
        ("start", None),
        ("m", 2.0),
        ("m", 3.0),
        ("m", 4.0),
        ("end", "finished"),
    ]


def test_a_run_of_the_main_thread_outlives_other_threads(
    tmp_path: Path, daemon: Callable[..., Daemon]
) -> None:
    with daemon([jsonl(tmp_path / "out")]) as running:
        run = zmqtrack.init(run="r", site="s", address=running.address)
        in_a_thread(lambda: run.log_metric("m", 1.0))
        run.log_metric("m", 2.0)
        run.finish()
        running.drain()
    assert [key for key, _ in told(read_jsonl(tmp_path / "out", "experiment", "r", "s"))] == [
        "start",
        "m",
        "m",
        "end",
    ]


@pytest.mark.parametrize("ending", ["os._exit(0)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_process_that_is_ended_after_its_script_leaves_a_finished_run(
    tmp_path: Path, daemon: Callable[..., Daemon], ending: str
) -> None:
    """So does NVFLARE's simulator: the script is a thread of a process that it then ends."""
    script = f"""
        import os, signal, threading, zmqtrack
        from zmqtrack.sender import running

        def script():
            zmqtrack.init(run="r", site="s").log_metric("m", 1.0)

        thread = threading.Thread(target=script)
        thread.start()
        thread.join()
        for sender in list(running):
            sender.join()
        {ending}
    """
    with daemon([jsonl(tmp_path / "out")]) as running:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            env={**os.environ, "ZMQTRACK_ADDRESS": running.address},
            timeout=PATIENCE,
        )
        assert done.returncode in (0, -signal.SIGKILL)
        running.drain()
    assert told(read_jsonl(tmp_path / "out", "experiment", "r", "s"))[-1] == ("end", "finished")


def test_a_fork_in_a_thread_ends_nothing_in_the_child(
    tmp_path: Path, daemon: Callable[..., Daemon]
) -> None:
    with daemon([jsonl(tmp_path / "out")]) as running:

        def script() -> None:
            run = zmqtrack.init(run="r", site="s", address=running.address)
            run.log_metric("m", 1.0)
            child = os.fork()
            if not child:
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            run.log_metric("m", 2.0)

        in_a_thread(script)
        wait_for_end(running)
        running.drain()
    assert [key for key, _ in told(read_jsonl(tmp_path / "out", "experiment", "r", "s"))] == [
        "start",
        "m",
        "m",
        "end",
    ]
