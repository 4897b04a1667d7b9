"""A training process needs pyzmq and msgpack alone."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

import zmqtrack
from harness import Daemon, jsonl, read_jsonl


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment with zmqtrack, pyzmq and msgpack, and nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in ("zmq", "msgpack"):
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.submodule_search_locations
        source = Path(spec.submodule_search_locations[0])
        (site / name).symlink_to(source)
        for libs in source.parent.glob("pyzmq.libs"):
            if not (site / libs.name).exists():
                (site / libs.name).symlink_to(libs)
    (site / "zmqtrack").mkdir()
    ours = Path(zmqtrack.__file__).parent
    for path in (*ours.iterdir(), ours.parent / "daemon", ours.parent / "adapters"):
        (site / "zmqtrack" / path.name).symlink_to(path)
    return folder / "bin" / "python"


def test_the_environment_of_this_test_is_bare(bare: Path) -> None:
    names = "('numpy', 'yaml', 'torch')"
    code = f"import importlib.util as u; print([n for n in {names} if u.find_spec(n)])"
    done = subprocess.run([bare, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_import_log_and_flush_work_with_pyzmq_and_msgpack_alone(
    bare: Path, daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    script = """
import sys
import zmqtrack
from zmqtrack import MLflowWriter, SummaryWriter, WandBWriter

run = zmqtrack.init("e", "r", "neutral", sys.argv[1], config={"lr": 0.1})
run.log_metric("loss", 0.5, step=1)
run.log_histogram("weights", [0.1, 0.2, 0.2, 0.9])
run.log_image("pixels", [[0, 128], [255, 3]], step=1)
run.log_text("note", "hello")
assert run.flush()
run.finish(timeout=30)
with SummaryWriter(experiment="e", run="r", site="tb", address=sys.argv[1]) as writer:
    writer.add_scalar("loss", 0.5, 1)
import numpy_is_not_here
"""
    out = tmp_path / "out"
    with daemon([jsonl(out)]) as served:
        done = subprocess.run(
            [bare, "-c", script, served.address], capture_output=True, text=True, timeout=60
        )
        assert "No module named 'numpy_is_not_here'" in done.stderr
        assert done.stderr.count("Traceback") == 1
        served.drain()
    types = [line["type"] for line in read_jsonl(out, "e", "r", "neutral")]
    assert sorted(set(types)) == ["histogram", "image", "metric", "param", "run", "text"]
    assert "loss" in [line["key"] for line in read_jsonl(out, "e", "r", "tb")]
    assert sys.executable != str(bare)


@pytest.mark.parametrize(
    ("module", "says"),
    [
        ("zmqtrack.daemon", "zmqtrackd needs yaml: pip install 'zmqtrack[daemon]'\n"),
        ("zmqtrack.cli", "zmqtrack's commands need typer: pip install 'zmqtrack[daemon]'\n"),
        ("zmqtrack.adapters", "zmqtrack's adapters need yaml: pip install 'zmqtrack[daemon]'\n"),
    ],
)
def test_a_command_without_its_extra_names_it_in_a_line(
    bare: Path, tmp_path: Path, module: str, says: str
) -> None:
    done = subprocess.run(
        [bare, "-m", module, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", says)
