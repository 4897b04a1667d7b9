"""The same calls on the real tool and on zmqtrack's writer for it, in what the tracker then shows.

The lines stand in ``differential.py``, run by a process for each side; each tracker's own reader
(``views.py``) reads back both. What differs must be a difference that the docs tell
(``docs/differences.py``), and each of those must be seen. Where the real tool does not raise, the
writer does not either.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("mlflow")
pytest.importorskip("wandb")
pytest.importorskip("torch")
pytest.importorskip("tensorboard")

import views
from differential import SCRIPTS, SYNTAX, experiment
from harness import Daemon

sys.path.insert(0, str(Path(__file__).parent.parent / "docs"))

from differences import DIFFERENCES

# The first test waits for all processes.
pytestmark = pytest.mark.timeout(600)

TESTS = Path(__file__).parent


class Side(NamedTuple):
    """What one side's process said, and what its tracker shows: script → item → values."""

    outcomes: dict[str, dict[str, str]]
    said: list[str]
    shown: dict[str, views.View]


def _start(side: str, tool: str, folder: Path, **more: str) -> subprocess.Popen[bytes]:
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("ZMQTRACK_", "WANDB_"))}
    environ.update(
        MPLBACKEND="Agg",
        MLFLOW_DISABLE_TELEMETRY="true",
        WANDB_SILENT="true",
        OMP_NUM_THREADS="1",
        **more,
    )
    log = (folder / f"{side}-{tool}.log").open("wb")
    return subprocess.Popen(
        [sys.executable, str(TESTS / "differential.py"), side, tool, str(folder / side / tool)],
        env=environ,
        stdout=log,
        stderr=subprocess.STDOUT,
    )


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, str], Side]]:
    """(side, tool) → what there is to see, once everything is delivered."""
    folder = tmp_path_factory.mktemp("differential")
    out = folder / "out"
    adapters: list[dict[str, Any]] = [
        {"type": "tensorboard", "options": {"logdir": str(out / "tensorboard")}},
        {"type": "mlflow", "options": {"tracking_uri": f"sqlite:///{out}/mlflow.db"}},
        {"type": "wandb", "options": {"dir": str(out / "wandb"), "mode": "offline"}},
    ]
    out.mkdir()
    wanted = [("ours", tool) for tool in ("torch", "mlflow", "wandb")]
    wanted += [("real", tool) for tool in SCRIPTS]
    with Daemon(folder / "daemon", adapters, env={"MLFLOW_DISABLE_TELEMETRY": "true"}) as daemon:
        for pair in (wanted[:2], wanted[2:4], wanted[4:6], wanted[6:]):
            begun = [
                _start(
                    *one,
                    folder,
                    ZMQTRACK_ADDRESS=daemon.address,
                    ZMQTRACK_SPOOL_DIR=str(folder / "spool" / one[1]),
                    ZMQTRACK_SITE=one[1],
                )
                for one in pair
            ]
            for one, process in zip(pair, begun, strict=True):
                code = process.wait(300)
                assert code == 0, (folder / f"{one[0]}-{one[1]}.log").read_text()
        daemon.drain()
    yield {one: _side(*one, folder, out) for one in wanted}


def _side(side: str, tool: str, folder: Path, out: Path) -> Side:
    told = json.loads((folder / side / tool / "outcomes.json").read_text())
    place = folder / side / tool
    shown: dict[str, views.View] = {}
    if SYNTAX[tool] == "tensorboard":
        for script in SCRIPTS[tool]:
            where = place / experiment(tool) / script
            if side == "ours":
                where = out / "tensorboard" / experiment(tool) / script / tool
            shown[script] = views.tensorboard(where)
    elif tool == "mlflow":
        uri = f"sqlite:///{place if side == 'real' else out}/mlflow.db"
        shown = views.mlflow(uri, experiment(tool), folder / "files" / side)
    else:
        shown = views.wandb(place if side == "real" else out / "wandb", experiment(tool))
    return Side(told["outcomes"], told["said"], shown)


def _allowed(tool: str, found: str) -> list[str]:
    """The patterns of the docs' differences that a difference matches."""
    return [
        pattern
        for name, pattern, _ in DIFFERENCES
        if name in (tool, SYNTAX[tool]) and fnmatchcase(found, pattern)
    ]


def _differences(tool: str, sides: dict[tuple[str, str], Side]) -> dict[str, str]:
    """``SCRIPT: ITEM`` → what the real tool shows, and what is shown of ours."""
    real, ours = sides["real", tool], sides["ours", "torch" if tool == "tensorboardX" else tool]
    found: dict[str, str] = {}
    for script in real.shown.keys() | SCRIPTS[tool].keys():  # a script may begin further runs
        if script != "raises":
            there, here = real.shown.get(script, {}), ours.shown.get(script, {})
            for item in there.keys() | here.keys():
                if there.get(item) != here.get(item):
                    found[f"{script}: {item}"] = f"{there.get(item)} → {here.get(item)}"
    return found


@pytest.mark.parametrize("tool", SCRIPTS)
def test_what_the_tracker_shows_differs_only_as_the_docs_tell(
    tool: str, sides: dict[tuple[str, str], Side]
) -> None:
    found = _differences(tool, sides)
    untold = {item: shown for item, shown in found.items() if not _allowed(tool, item)}
    assert not untold, "\n".join(f"{item}: {shown}" for item, shown in sorted(untold.items()))


def _raised(tool: str, sides: dict[tuple[str, str], Side]) -> dict[str, str]:
    """Line → what it raises here; only lines that the real tool takes."""
    real, ours = sides["real", tool], sides["ours", "torch" if tool == "tensorboardX" else tool]
    return {
        line: raised
        for script, lines in ours.outcomes.items()
        for line, raised in lines.items()
        if raised and not real.outcomes[script][line]
    }


@pytest.mark.parametrize("tool", SCRIPTS)
def test_where_the_real_tool_does_not_raise_the_writer_does_not(
    tool: str, sides: dict[tuple[str, str], Side]
) -> None:
    assert not _raised(tool, sides)


def test_each_difference_of_the_docs_is_seen(sides: dict[tuple[str, str], Side]) -> None:
    seen = set()
    for tool in SCRIPTS:
        for item in _differences(tool, sides):
            seen.update((SYNTAX[tool], pattern) for pattern in _allowed(tool, item))
            seen.update((tool, pattern) for pattern in _allowed(tool, item))
    unseen = [(name, p) for name, p, _ in DIFFERENCES if (name, p) not in seen]
    assert not unseen


@pytest.mark.parametrize(
    ("tool", "call"),
    [
        ("torch", "add_audio"),
        ("torch", "add_pr_curve"),
        ("torch", "add_mesh"),
        ("torch", "add_embedding"),
        ("torch", "add_custom_scalars"),
        ("mlflow", "delete_tag"),
        ("wandb", "None"),
    ],
)
def test_a_call_that_is_not_carried_is_announced(
    tool: str, call: str, sides: dict[tuple[str, str], Side]
) -> None:
    assert any(call in line for line in sides["ours", tool].said), sides["ours", tool].said
