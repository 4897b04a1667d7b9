"""What is said of records that could not be delivered, and whether it is true."""

from __future__ import annotations

import logging
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import zmqtrack
from harness import PATIENCE, Daemon, jsonl, read_jsonl
from keyed import Place, Site
from zmqtrack import sender

Make = Callable[..., Daemon]


def _commands(text: str) -> list[list[str]]:
    """The commands that a text names, but for those that look for the reason."""
    return [shlex.split(found) for found in re.findall(r"`(zmqtrack spool [^`]*)`", text)]


def _do(command: list[str], **stand_for: str) -> str:
    words = [stand_for.get(word.replace("://HOST:PORT", ""), word) for word in command[1:]]
    done = subprocess.run(
        [sys.executable, "-m", "zmqtrack.cli", *words], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _steps(out: Path, run: str) -> list[int]:
    return [line["step"] for line in read_jsonl(out, "e", run, "s") if line["type"] == "metric"]


def _wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_wrong_address_is_told_once_after_a_while_and_the_command_sends_what_was_left(
    daemon: Make,
    tmp_path: Path,
    nobody: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert sender.SILENCE == 10
    monkeypatch.setattr(sender, "SILENCE", 0.2)
    folder, out = tmp_path / "my spool", tmp_path / "out"
    caplog.set_level(logging.WARNING, "zmqtrack")
    runs = [zmqtrack.init("e", name, "s", nobody, spool_dir=folder) for name in ("r", "other")]
    for step in range(50):
        runs[0].log_metric("a", step, step=step)
    runs[1].log_metric("a", 7, step=7)
    _wait_until(lambda: caplog.messages)
    time.sleep(0.5)
    for run in runs:
        run.finish(timeout=0.1)
    (told,) = caplog.messages
    assert f"no daemon has answered at {nobody}" in told
    assert str(folder) in told
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    commands = [_commands(text)[0] for text in (told, *lines)]
    assert commands[0] == commands[1] == commands[2]
    with daemon([jsonl(out)]) as served:
        said = _do(commands[0], tcp=served.address)
        assert said == "55 records delivered, 0 left\n"  # and two starts, two ends
        served.drain()
    assert _steps(out, "r") == list(range(50))
    assert _steps(out, "other") == [7]


def test_where_a_daemon_has_gone_the_command_names_it_and_so_does_the_next_run(
    daemon: Make, tmp_path: Path, nobody: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with daemon([jsonl(out)], control=nobody) as served:
        run = zmqtrack.init("e", "by command", "s", nobody)
        _wait_until(lambda: run._sender._own and run._sender._own.answered)
    run.log_metric("a", 1, step=1)
    run.finish(timeout=0.1)
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert "the next run that logs from this folder to that address;" in line
    (command,) = _commands(line)
    assert command[-2:] == ["--address", nobody]
    with daemon([jsonl(out)], control=nobody) as served:
        _do(command)
        served.drain()
        assert _steps(out, "by command") == [1]
    run = zmqtrack.init("e", "by the next run", "s", nobody)
    run.log_metric("a", 2, step=2)
    run.finish(timeout=0.1)
    with daemon([jsonl(out)], control=nobody) as served:
        with zmqtrack.init("e", "next", "s", nobody):
            pass
        served.drain()
    assert _steps(out, "by the next run") == [2]


def test_with_a_key_the_command_has_it(
    daemon: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Place(daemon, tmp_path) as place:
        site = Site(place, "s")
        run = site.init(address="tcp://127.0.0.1:1")
        run.log_metric("a", 3, step=3)
        run.finish(timeout=0.1)
        (line,) = capsys.readouterr().err.splitlines()
        assert "to that address with that key;" in line
        (command,) = _commands(line)
        assert command[-2:] == ["--key", str(site.file)]
        assert _do(command, tcp=place.address) == "3 records delivered, 0 left\n"
        place.served.drain()
        assert _steps(place.out, "r") == [3]
