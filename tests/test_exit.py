"""How a process ends: normally, by an exception, by a signal; and what a fork does."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import zmqtrack
from harness import Daemon, jsonl, read_jsonl

Make = Callable[..., Daemon]


def _python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _end(lines: list[dict[str, Any]]) -> list[str]:
    return [line["value"] for line in lines if line["type"] == "run" and line["key"] == "end"]


BEGIN = """
import os, signal, sys, zmqtrack
run = zmqtrack.init("e", "r", "s", sys.argv[1], exit_timeout=30)
run.log_metric("a", 1, step=1)
"""


@pytest.mark.parametrize(
    ("ending", "code", "status"),
    [
        ("", 0, "finished"),
        ("raise ValueError('a bug in the training')", 1, "failed"),
        ("raise KeyboardInterrupt", -signal.SIGINT, "killed"),
        ("os.kill(os.getpid(), signal.SIGTERM); signal.pause()", -signal.SIGTERM, "killed"),
        ("run.finish('failed')", 0, "failed"),
        ("with run: raise KeyboardInterrupt", -signal.SIGINT, "killed"),
        ("with run: sys.exit(3)", 3, "failed"),
        ("with run: sys.exit()", 0, "finished"),
    ],
)
def test_the_end_of_a_process_is_the_end_of_its_run(
    daemon: Make, tmp_path: Path, ending: str, code: int, status: str
) -> None:
    out = tmp_path / "out"
    with daemon([jsonl(out)]) as served:
        process = _python(BEGIN + ending, served.address)
        _, stderr = process.communicate(timeout=60)
        served.drain()
    assert process.returncode == code, stderr
    lines = read_jsonl(out, "e", "r", "s")
    assert _end(lines) == [status]
    assert [line["step"] for line in lines if line["type"] == "metric"] == [1]


def test_a_handler_of_sigterm_that_the_program_has_is_left_alone(nobody: str) -> None:
    code = """
import os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: print("mine"))
import zmqtrack
run = zmqtrack.init("e", "r", "s", sys.argv[1], exit_timeout=0)
os.kill(os.getpid(), signal.SIGTERM)
"""
    process = _python(code, nobody)
    stdout, _ = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (0, "mine\n")


FORK = """
import os, sys, zmqtrack
run = zmqtrack.init("e", "r", "s", sys.argv[1], exit_timeout=30)
for i in range(100):
    run.log_metric("parent", i, step=i)
children = []
for child in range(3):
    pid = os.fork()
    if pid == 0:
        if child < 2:
            for i in range(50):
                run.log_metric(f"child-{child}", i, step=i)
        sys.exit(0)
    children.append(pid)
for i in range(100, 200):
    run.log_metric("parent", i, step=i)
assert all(os.waitpid(pid, 0)[1] == 0 for pid in children)
run.finish(timeout=30)
"""


def test_a_forked_child_that_logs_has_a_stream_of_its_own(daemon: Make, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with daemon([jsonl(out)]) as served:
        process = _python(FORK, served.address)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 0, stderr
        served.drain()
    lines = read_jsonl(out, "e", "r", "s")
    steps: dict[str, list[int]] = {}
    streams: dict[str, set[str]] = {}
    for line in lines:
        if line["type"] == "metric":
            steps.setdefault(line["key"], []).append(line["step"])
            streams.setdefault(line["key"], set()).add(line["stream"])
    assert steps == {
        "parent": list(range(200)),
        "child-0": list(range(50)),
        "child-1": list(range(50)),
    }
    assert [len(found) for found in streams.values()] == [1, 1, 1]
    assert len(set.union(*streams.values())) == 3
    assert _end(lines) == ["finished"]
    assert not list((tmp_path / "spool").iterdir())


LOADER = """
import sys, torch, zmqtrack
run = zmqtrack.init("e", "r", "s", sys.argv[1], exit_timeout=30)
run.log_metric("parent", 0, step=0)

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 40
    def __getitem__(self, i):
        if sys.argv[2] == "log":
            run.log_metric("item", i, step=i)
        return i

loader = torch.utils.data.DataLoader(Data(), batch_size=4, num_workers=2)
assert sum(len(batch) for batch in loader) == 40
run.finish(timeout=30)
"""


@pytest.mark.parametrize("logs", ["log", "do not log"])
def test_the_workers_of_a_data_loader_may_log(daemon: Make, tmp_path: Path, logs: str) -> None:
    pytest.importorskip("torch")
    out = tmp_path / "out"
    with daemon([jsonl(out)]) as served:
        process = _python(LOADER, served.address, logs)
        _, stderr = process.communicate(timeout=100)
        assert process.returncode == 0, stderr
        served.drain()
        streams = served.status()["streams"]
    lines = read_jsonl(out, "e", "r", "s")
    items = sorted(line["step"] for line in lines if line["key"] == "item")
    assert items == (list(range(40)) if logs == "log" else [])
    assert len(streams) == (3 if logs == "log" else 1)
    assert not list((tmp_path / "spool").iterdir())


def test_logging_to_a_finished_run_raises(nobody: str) -> None:
    run = zmqtrack.init("e", "r", "s", nobody, exit_timeout=0)
    run.finish()
    with pytest.raises(zmqtrack.RunFinished, match="'r' is finished"):
        run.log_metric("a", 1)
    run.finish()  # a second time is no error
