"""docs/compatibility.md is what the code does: no public name of the tools is missing or silent."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

for package in ("torch", "tensorboardX", "mlflow", "wandb"):
    pytest.importorskip(package)

ROOT = Path(__file__).parent.parent


# Each name is called in a process of its own.
@pytest.mark.timeout(900)
def test_the_page_says_of_each_public_name_what_becomes_of_it() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "names.py"), "--check"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
