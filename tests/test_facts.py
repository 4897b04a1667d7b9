"""What a run says of the process that logs: who, which program, which commit."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spooled import Spooled, spool_fixture  # noqa: F401 -- a fixture
from zmqtrack.facts import git_commit

GIT = ("git", "-c", "user.name=me", "-c", "user.email=me@example.org")


def git(folder: Path, *command: str) -> str:
    done = subprocess.run(
        [*GIT, *command], cwd=folder, check=True, capture_output=True, text=True, timeout=60
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    (folder / "deep" / "er").mkdir(parents=True)
    git(folder, "init", "-q")
    git(folder, "commit", "-q", "--allow-empty", "-m", "first")
    return folder


def test_the_commit_is_what_git_says(repository: Path) -> None:
    head = git(repository, "rev-parse", "HEAD")
    assert git_commit(repository / "deep" / "er") == head
    git(repository, "pack-refs", "--all")
    assert git_commit(repository) == head
    git(repository, "checkout", "-q", "--detach")
    git(repository, "commit", "-q", "--allow-empty", "-m", "second")
    assert git_commit(repository) == git(repository, "rev-parse", "HEAD") != head


def test_a_worktree_has_the_commit_of_its_own_branch(repository: Path, tmp_path: Path) -> None:
    other = tmp_path / "worktree"
    git(repository, "worktree", "add", "-q", "-b", "feature/x", str(other))
    git(other, "commit", "-q", "--allow-empty", "-m", "there")
    assert git_commit(other) == git(other, "rev-parse", "HEAD")
    assert git_commit(other) != git_commit(repository)


def test_what_is_no_repository_has_no_commit(tmp_path: Path) -> None:
    assert git_commit(tmp_path) is None
    (tmp_path / ".git").mkdir()
    assert git_commit(tmp_path) is None
    for head in ("ref: refs/heads/unborn\n", "garbage", "ref: ../../../etc/passwd"):
        (tmp_path / ".git" / "HEAD").write_text(head)
        assert git_commit(tmp_path) is None


SCRIPT = """
import zmqtrack
with zmqtrack.init(run="r"):
    pass
"""


def begun(spool: Spooled, script: Path, folder: Path) -> Any:
    subprocess.run(
        [sys.executable, str(script)],
        cwd=folder,
        env={
            **os.environ,
            "ZMQTRACK_ADDRESS": "tcp://127.0.0.1:9",
            "ZMQTRACK_SPOOL_DIR": str(spool.folder),
        },
        check=True,
        capture_output=True,
        timeout=60,
    )
    return spool.of("run")[0].value


def test_a_run_begins_with_user_script_and_commit(spool: Spooled, repository: Path) -> None:
    (repository / "train.py").write_text(SCRIPT)
    facts = begun(spool, Path("repository/train.py"), repository.parent)
    assert facts["user"] == getpass.getuser()
    assert (facts["script"], facts["source"]) == ("repository/train.py", "LOCAL")
    assert facts["commit"] == git(repository, "rev-parse", "HEAD")
    assert {"host", "pid", "python"} <= facts.keys()


def test_a_folder_that_was_removed_does_not_matter(spool: Spooled, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(f"import os\nos.rmdir(os.getcwd())\n{SCRIPT}")
    gone = tmp_path / "gone"
    gone.mkdir()
    facts = begun(spool, tmp_path / "train.py", gone)
    assert facts["script"] == str(tmp_path / "train.py")
