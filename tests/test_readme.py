"""Every command and every code block of the README is what runs here."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from zmqtrack.control import ControlClient

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()

#: Run by another test, or by this one being run.
ELSEWHERE = {
    "make demo": "tests/test_examples.py",
    "make test": "this run",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.S | re.M)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader stands: a checkout, without what running it leaves behind."""
    target = tmp_path_factory.mktemp("checkout")
    for name in ("zmqtrack", "daemon", "adapters", "configs", "docs"):
        shutil.copytree(
            ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target / name)
    return target


@pytest.fixture(scope="module")
def environment(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    free = _free_ports(3)
    config = folder / "configs" / "zmqtrack.yaml"
    config.write_text(config.read_text().replace("127.0.0.1:5555", f"127.0.0.1:{free}"))
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "ZMQTRACK_ADDRESS": f"tcp://127.0.0.1:{free}",
        "ZMQTRACK_SPOOL_DIR": str(tmp_path_factory.mktemp("spool")),
        "WANDB_SILENT": "true",
        "HOME": str(tmp_path_factory.mktemp("home")),
    }


def _free_ports(count: int) -> int:
    """The first of so many neighbouring free ports."""
    import socket

    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first: int = probe.getsockname()[1]
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first


@pytest.fixture(scope="module")
def started(folder: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """The daemon, started by the README's own command and with the README's own YAML."""
    (command,) = [line for line in COMMANDS if line.startswith("zmqtrackd")]
    example = yaml.safe_load(blocks("yaml")[0])
    shipped = yaml.safe_load((folder / "configs" / "zmqtrack.yaml").read_text())
    assert example["adapters"] == shipped["adapters"]
    assert example["include"] == shipped["include"]
    (folder / "configs" / "adapters.d" / "jsonl.yaml").write_text(blocks("yaml")[1])
    process = subprocess.Popen(
        ["bash", "-c", f"exec {command}"],
        cwd=folder, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if "listening at" in line:
            break
    else:
        raise AssertionError("".join(said))
    yield process
    process.send_signal(signal.SIGTERM)
    rest = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 0, rest


def test_every_command_is_run_by_a_test() -> None:
    known = ("pip install", "zmqtrackd ", "zmqtrack ", "tensorboard ")
    for command in COMMANDS:
        assert command in ELSEWHERE or command.startswith(known), f"not run anywhere: {command}"
    for command in ELSEWHERE:
        assert command in COMMANDS


@pytest.mark.timeout(300)
def test_the_python_blocks_log_and_every_tracker_gets_it(
    started: subprocess.Popen[str], folder: Path, environment: dict[str, str]
) -> None:
    examples = blocks("python")
    assert len(examples) == 4
    for source in examples:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", source],
            env=environment, cwd=folder, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, ""), source
    client = ControlClient(environment["ZMQTRACK_ADDRESS"])
    client.request("drain", timeout=200)
    adapters = client.request("status")["adapters"]
    client.close()
    assert set(adapters) == {"tensorboard", "mlflow", "wandb", "jsonl"}
    for adapter in adapters.values():
        # 4 loops of 100 steps, of which one logs two metrics.
        assert adapter["counters"]["delivered"] > 500
    found = sorted(
        path.relative_to(folder / "zmqtrack-out" / "jsonl").with_suffix("").parts
        for path in (folder / "zmqtrack-out").glob("jsonl/*/*/*.jsonl")
    )
    assert found == [("digits", "baseline", f"site-{number}") for number in range(1, 5)]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("zmqtrack ")])
def test_the_operators_commands_work(
    command: str, started: subprocess.Popen[str], folder: Path, environment: dict[str, str]
) -> None:
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("pip install")])
def test_installing_from_a_checkout_works(
    command: str, folder: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    # What it depends on is here already: no index is asked, and the extras are taken as met.
    venv.EnvBuilder(with_pip=True, symlinks=True).create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    import setuptools

    here = str(Path(setuptools.__file__).parent.parent)
    (site / "host.pth").write_text(here)
    subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={
            **environment,
            "PATH": f"{python.parent}:{os.environ['PATH']}",
            "PYTHONPATH": here,  # a setuptools that is new enough
            "PIP_NO_INDEX": "1",
            "PIP_NO_DEPS": "1",
            "PIP_NO_BUILD_ISOLATION": "0",  # pip's way to say: build with what is here
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        },
        check=True,
        capture_output=True,
        timeout=100,
    )
    shown = subprocess.run(
        [python.parent / "zmqtrackd", "--version"],
        cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert shown.stdout.startswith("zmqtrackd ")
    assert (site / "zmqtrack" / "daemon" / "broker.py").exists()
    assert (site / "zmqtrack" / "adapters" / "host.py").exists()


def test_tensorboard_takes_the_flags_that_are_named(
    environment: dict[str, str], tmp_path: Path
) -> None:
    (command,) = [line for line in COMMANDS if line.startswith("tensorboard ")]
    done = subprocess.run(
        ["bash", "-c", f"{command} --inspect"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert "unrecognized arguments" not in done.stderr
    assert "No event files found" in done.stdout + done.stderr
