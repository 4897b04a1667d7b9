"""Exit codes of ``zmqtrackd``: 78 is a bad configuration, and nothing else is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CONFIG = """
daemon: {control: "tcp://127.0.0.1:0", state_dir: state}
adapters:
  - type: own:Own
"""


@pytest.mark.parametrize("mode", [[], ["--check"], ["--check", "--json"]], ids=" ".join)
def test_a_check_that_is_killed_says_nothing_of_the_configuration(
    tmp_path: Path, mode: list[str]
) -> None:
    (tmp_path / "own.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    done = serve(tmp_path, mode)
    assert done.returncode == 1, done.stderr
    assert "the configuration is bad: try again" in done.stderr + done.stdout


def test_an_adapter_whose_import_crashes_is_a_bad_configuration(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    done = serve(tmp_path, [])
    assert done.returncode == 78, done.stderr
    assert "zmqtrack.yaml:4: adapter Own.type" in done.stderr


def serve(folder: Path, mode: list[str]) -> subprocess.CompletedProcess[str]:
    (folder / "zmqtrack.yaml").write_text(CONFIG)
    return subprocess.run(
        [sys.executable, "-m", "zmqtrack.daemon", "--config", "zmqtrack.yaml", *mode],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": str(folder), "PATH": ""},
    )
