"""The examples run as their READMEs say, and the demo notices what it claims to notice."""

from __future__ import annotations

import io
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import zmqtrack
from harness import Daemon, jsonl, read_jsonl
from zmqtrack.config import load

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
HELLO = ("hello-pt-tb", "hello-pt-mlflow", "hello-pt-wandb")

pytestmark = pytest.mark.timeout(400)  # PyTorch alone takes its time on a busy machine


@pytest.fixture(autouse=True)
def _as_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZMQTRACK_EXPERIMENT")
    monkeypatch.syspath_prepend(ROOT)


def start(script: str, *arguments: str, cwd: Path, address: str, **env: str) -> Any:
    return subprocess.Popen(
        [sys.executable, EXAMPLES / script / "train.py", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, "ZMQTRACK_ADDRESS": address, **env},
    )


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of the only run below a folder of the jsonl adapter."""
    [path] = folder.glob("*/*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def _has_ended(folder: Path) -> bool:
    lines = lines_of(folder) if list(folder.glob("*/*.jsonl")) else []
    return bool(lines) and lines[-1]["key"] == "end"


def curve(lines: list[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    return [(line["step"], line["value"]) for line in lines if line["key"] == key]


# --- plain and hello-pt-* -----------------------------------------------------------------------


def test_the_plain_loop_logs_exactly_what_it_computes(
    tmp_path: Path, daemon: Callable[..., Daemon]
) -> None:
    with daemon([jsonl(tmp_path / "jsonl")]) as running:
        process = start(
            "plain", "--steps", "300", cwd=tmp_path, address=running.address, ZMQTRACK_RUN="r"
        )
        out, err = process.communicate(timeout=100)
        assert (process.returncode, err) == (0, "")
        running.drain()
    [path] = (tmp_path / "jsonl/plain/r").glob("*.jsonl")
    lines = read_jsonl(tmp_path / "jsonl", "plain", "r", path.stem)

    fit = runpy.run_path(str(EXAMPLES / "plain/train.py"))["fit"]
    for number, key in enumerate(("loss", "slope", "offset")):
        expected = [(step, values[number]) for step, values in enumerate(fit(300, 0.1))]
        assert curve(lines, key) == expected
    assert {line["key"]: line["value"] for line in lines if line["type"] == "param"} == {
        "steps": 300,
        "lr": 0.1,
    }
    [text] = [line["value"] for line in lines if line["type"] == "text"]
    assert out.startswith(text)


def test_three_syntaxes_log_the_same_training_alike_with_the_daemon_coming_later(
    tmp_path: Path, nobody: str, daemon: Callable[..., Daemon]
) -> None:
    processes = [start(script, "--epochs", "1", cwd=tmp_path, address=nobody) for script in HELLO]
    for process in processes:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert "epoch 0: loss" in out
        assert "not yet delivered" in err and len(err.splitlines()) == 1  # no traceback

    any_port = "tcp://127.0.0.1:0"
    with (
        daemon([jsonl(tmp_path / "jsonl")], control=nobody, ingest=any_port, publish=any_port),
        zmqtrack.init(experiment="later", address=nobody),  # the next run brings the rest along
    ):
        deadline = time.monotonic() + 60
        while not all(_has_ended(tmp_path / "jsonl" / script) for script in HELLO):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    tensorboard, mlflow, wandb = (lines_of(tmp_path / "jsonl" / script) for script in HELLO)

    losses = curve(tensorboard, "train/loss")
    assert len(losses) > 40
    assert [step for step, _ in losses] == list(range(len(losses)))
    assert curve(mlflow, "train/loss") == losses
    assert [value for _, value in curve(wandb, "train/loss")] == [value for _, value in losses]

    [(_, accuracy)] = curve(tensorboard, "test/accuracy")
    assert curve(mlflow, "test/accuracy") == [(0, accuracy)]
    assert [value for _, value in curve(wandb, "test/accuracy")] == [accuracy]

    for lines in (tensorboard, mlflow, wandb):
        params = {line["key"]: line["value"] for line in lines if line["type"] == "param"}
        assert params == {"epochs": 1, "lr": 0.05, "batch_size": 32}
        assert [line["value"] for line in lines if line["type"] == "run"][-1] == "finished"
        assert any(line["type"] == "image" for line in lines)


@pytest.mark.parametrize("script", ["plain", *HELLO])
def test_the_configuration_beside_an_example_is_valid(script: str) -> None:
    path = EXAMPLES / script / "zmqtrack.yaml"
    own = {"plain": "jsonl", HELLO[0]: "tensorboard", HELLO[1]: "mlflow", HELLO[2]: "wandb"}
    assert [adapter.type for adapter in load(path).config.adapters] == [own[script]]
    assert f"examples/{script}/zmqtrack.yaml" in path.read_text()  # the command in its head


@pytest.mark.parametrize("script", HELLO)
def test_trackers_are_added_by_taking_the_comment_signs_away(script: str, tmp_path: Path) -> None:
    text = (EXAMPLES / script / "zmqtrack.yaml").read_text()
    (tmp_path / "all.yaml").write_text(text.replace("\n#  ", "\n  "))
    types = sorted(adapter.type for adapter in load(tmp_path / "all.yaml").config.adapters)
    assert types == ["mlflow", "tensorboard", "wandb"]


# --- the demo -----------------------------------------------------------------------------------


def run_demo(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "examples.demo", "--out", str(out), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        timeout=350,
    )


def processes_of(out: Path) -> list[psutil.Process]:
    """What runs for the demo in ``out``: told it by an argument, or with a file in it open."""
    found = []
    for process in psutil.process_iter(["cmdline", "open_files"]):
        paths = [
            *(process.info["cmdline"] or []),
            *(f.path for f in process.info["open_files"] or []),
        ]
        if process.pid != os.getpid() and any(str(out) in path for path in paths):
            found.append(process)
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, int]]:
    """One short demo for the tests below: its folder, what it printed, its exit code."""
    out = tmp_path_factory.mktemp("demo") / "out"
    done = run_demo(out, "--rounds", "2")
    yield out, done.stdout, done.returncode


def test_the_demo_finds_in_every_tracker_what_each_process_logged(
    finished: tuple[Path, str, int],
) -> None:
    out, printed, code = finished
    assert code == 0, printed
    assert "MISMATCH" not in printed
    assert "OK Every tracker has everything" in printed
    assert "Traceback" not in "".join(log.read_text() for log in (out / "logs").glob("*.log"))
    rows = [line.split() for line in printed.splitlines() if line.rstrip().endswith(" OK")]
    metrics = [row for row in rows if "metric" in row]
    assert [row[0] for row in metrics] == ["site-1", "site-2", "site-3", "server"]
    for row in rows:
        assert len(set(row[-6:-1])) == 1, row  # logged, and four trackers


def test_the_demo_finds_no_fault_in_an_untouched_folder(finished: tuple[Path, str, int]) -> None:
    assert _compare(finished[0]) == (True, set())


def test_the_demo_leaves_no_process_behind(finished: tuple[Path, str, int]) -> None:
    assert processes_of(finished[0]) == []
    assert not list((finished[0] / "spool").glob("*.db"))


def _compare(out: Path) -> tuple[bool, set[str]]:
    """The demo's verdict on what is in ``out``, and the sites that it finds fault with."""
    from rich.console import Console

    from examples.demo.proof import compare

    console = Console(width=100, file=io.StringIO())
    good = compare(out, console)
    site, faulty = "", set()
    for line in console.file.getvalue().splitlines():  # type: ignore[attr-defined]
        if line.split() and line.split()[0] in ("site-1", "site-2", "site-3", "server"):
            site = line.split()[0]
        if line.rstrip().endswith("MISMATCH"):
            faulty.add(site)
    return good, faulty


def _lose_a_line(out: Path) -> None:
    path = next(out.glob("jsonl/*/*/site-2.jsonl"))
    lines = path.read_text().splitlines(keepends=True)
    del lines[next(i for i, line in enumerate(lines) if '"metric"' in line)]
    path.write_text("".join(lines))


def _repeat_a_line(out: Path) -> None:
    path = next(out.glob("jsonl/*/*/site-3.jsonl"))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, next(line for line in lines if '"image"' in line)]))


def _change_a_value(out: Path) -> None:
    path = out / "logged" / "site-1.json"
    facts = json.loads(path.read_text())
    facts["metric"][5][2] += 0.001
    path.write_text(json.dumps(facts))


def _change_a_param(out: Path) -> None:
    path = out / "logged" / "site-3.json"
    path.write_text(path.read_text().replace('["lr", "0.05"]', '["lr", "0.06"]'))


def _lose_a_run(out: Path) -> None:
    shutil.rmtree(next(out.glob("tensorboard/*/*/server")))


@pytest.mark.parametrize(
    ("damage", "site"),
    [
        (_lose_a_line, "site-2"),
        (_repeat_a_line, "site-3"),
        (_change_a_value, "site-1"),
        (_change_a_param, "site-3"),
        (_lose_a_run, "server"),
    ],
)
def test_the_demo_notices_a_difference(
    damage: Callable[[Path], None], site: str, finished: tuple[Path, str, int], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    damage(out)
    assert _compare(out) == (False, {site})


def test_the_demo_notices_that_the_trackers_have_nothing(
    finished: tuple[Path, str, int], tmp_path: Path
) -> None:
    shutil.copytree(finished[0] / "logged", tmp_path / "logged")
    assert _compare(tmp_path) == (False, {"site-1", "site-2", "site-3", "server"})


def test_the_demo_says_which_process_died_and_ends(tmp_path: Path) -> None:
    out = tmp_path / "out"
    demo = subprocess.Popen(
        [sys.executable, "-m", "examples.demo", "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )
    try:
        deadline = time.monotonic() + 100
        while not (victims := _site(out, "examples.demo.site_mlflow")):
            assert time.monotonic() < deadline and demo.poll() is None
            time.sleep(0.1)
        victims[0].send_signal(signal.SIGKILL)
        printed, _ = demo.communicate(timeout=100)
    finally:
        demo.terminate()
        demo.wait(60)
    assert demo.returncode == 1
    assert "site-2 was ended by SIGKILL" in printed
    assert str(out / "logs" / "site-2.log") in printed
    assert processes_of(out) == []


def _site(out: Path, module: str) -> list[psutil.Process]:
    return [p for p in processes_of(out) if module in p.info["cmdline"]]


def test_the_demo_touches_no_folder_that_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "mine").write_text("precious")
    done = run_demo(tmp_path)
    assert done.returncode == 1
    assert "not a folder that the demo has made" in done.stdout
    assert (tmp_path / "wandb" / "mine").read_text() == "precious"
    assert not (tmp_path / "zmqtrack.yaml").exists()
