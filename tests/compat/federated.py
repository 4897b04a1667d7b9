"""What a federation's run has left: in a framework's own trackers, and in each of ours by site.

The scripts ``run_nvflare.py`` and ``run_flower.py`` share it. A point is (key, step, value); a
value counts as equal when its 32 bits do, which is what event files keep. Our four trackers are
read with each tracker's own reader, and each must have what the framework's own receiver has for
that site, in that order, and nothing else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

import readers_wandb
from harness import Daemon

__all__ = [
    "ROOT", "Daemon", "Point", "Row", "Seen", "adapters", "compare", "interpreter", "losses",
    "ours", "point", "print_table", "read_mlflow", "read_tensorboard", "read_wandb", "started",
]  # fmt: skip

ROOT = Path(__file__).parent.parent.parent

#: Tags that NVFLARE's receiver adds to what its clients log.
OF_THE_JOB = {"job_id", "run_name"}

#: How long a framework's job may take, in seconds.
PATIENCE = 900


class Point(NamedTuple):
    """A number, or (key ``param:NAME``, ``tag:NAME``, ``text:NAME``) another fact."""

    key: str
    step: int
    value: str


class Seen(NamedTuple):
    """What a tracker shows of a site: its points in order, and how its run ended."""

    points: list[Point]
    end: str


class Row(NamedTuple):
    """A line of the table.

    Attributes:
        name: what was run, and of which site.
        real: points in the framework's own tracker.
        here: those of them that each of our trackers has.
        announced: records that the daemon counts as lost or not carried, by reason.
        astray: what is missing, too much, or wrong, in words.
    """

    name: str
    real: int
    here: int
    announced: str
    astray: str


def point(key: str, step: Any, value: Any) -> Point:
    """``step`` None is 0, as in the trackers that have no other word for it."""
    import numpy

    return Point(key, int(step or 0), repr(float(numpy.float32(value))))


def _is_fact(each: Point) -> bool:
    return each.key.startswith(("param:", "tag:", "text:"))


def interpreter(package: str, variable: str) -> tuple[str, str]:
    """The Python that has ``package``, and a reason where none has it.

    Args:
        variable: of the environment, names an interpreter of another virtual environment, as
            frameworks pin versions that cannot stand beside each other.
    """
    python = os.environ.get(variable) or sys.executable
    found = subprocess.run([python, "-c", f"import {package}, zmq, msgpack"], capture_output=True)
    reason = f"{python} cannot import {package}, zmq and msgpack; {variable} may name another"
    return python, "" if found.returncode == 0 else reason


# --- a daemon with all adapters -----------------------------------------------------------------


def adapters(out: Path) -> list[dict[str, Any]]:
    return [
        {"type": "jsonl", "options": {"dir": str(out / "jsonl")}},
        {"type": "tensorboard", "options": {"logdir": str(out / "tensorboard")}},
        {"type": "mlflow", "options": {"tracking_uri": f"sqlite:///{out}/mlflow.db"}},
        {
            "type": "wandb",
            "options": {"project": "compat", "mode": "offline", "dir": str(out / "wandb")},
        },
    ]


def started(
    command: list[str], folder: Path, log: Path, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Run a framework's command in ``folder``; what it prints goes to ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        return subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, **environment},
            stdout=file,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE,
        )


def losses(daemon: Daemon) -> Counter[str]:
    """All that the daemon counts as lost or not carried, by reason."""
    counted: Counter[str] = Counter()
    for loss in daemon.status()["losses"]:
        counted[loss["reason"]] += loss["n"]
    return counted


# --- readers: {site: Seen} ------------------------------------------------------------------------


def ours(out: Path, run: str) -> dict[str, dict[str, Seen]]:
    """By tracker and site, what our adapters have of ``run``."""
    return {
        "jsonl": _jsonl(out / "jsonl", run),
        "tensorboard": {
            folder.name: Seen([each for _, each in _scalars(folder)], _session_end(folder))
            for folder in sorted((out / "tensorboard").glob(f"*/{run}/*"))
        },
        "mlflow": {
            each.data.tags["zmqtrack.site"]: seen
            for each, seen in read_mlflow(f"sqlite:///{out}/mlflow.db")
            if "zmqtrack.site" in each.data.tags and each.data.tags["zmqtrack.run"] == run
        },
        "wandb": {
            config["zmqtrack"]["site"]: seen
            for config, seen in read_wandb(out / "wandb")
            if config["zmqtrack"]["run"] == run
        },
    }


def _jsonl(folder: Path, run: str) -> dict[str, Seen]:
    found = {}
    for path in sorted(folder.glob(f"*/{run}/*.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        ends = [line["value"] for line in lines if (line["type"], line["key"]) == ("run", "end")]
        points = [
            point(line["key"], line["step"], line["value"])
            for line in lines
            if line["type"] == "metric"
        ]
        facts = {
            f"{line['type']}:{line['key']}": str(line["value"])
            for line in lines
            if line["type"] in ("param", "tag", "text")
        }
        points += [Point(key, 0, value) for key, value in facts.items()]
        found[path.stem] = Seen(points, ends[-1] if ends else "running")
    return found


def _scalars(folder: Path) -> Iterator[tuple[float, Point]]:
    """All scalars of a folder and those below, with their times, event for event.

    The line ``val`` of ``add_scalars("loss", …)``, which is the tag ``loss`` of a subfolder
    ``loss_val``, is called ``loss/val``.
    """
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    for path in sorted(folder.rglob("events.out.tfevents.*")):
        below = path.parent.relative_to(folder).parts
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars":
                    line = "/".join(below).removeprefix(f"{value.tag.replace('/', '_')}_")
                    tag = f"{value.tag}/{line}" if below else value.tag
                    yield event.wall_time, point(tag, event.step, value.tensor.float_val[0])


def _session_end(folder: Path) -> str:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    status = "running"
    for path in sorted(folder.rglob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tag == "_hparams_/session_end_info":
                    data = HParamsPluginData.FromString(value.metadata.plugin_data.content)
                    status = {1: "finished", 2: "failed"}.get(data.session_end_info.status, "?")
    return status


def read_tensorboard(folder: Path) -> dict[str, Seen]:
    """A folder with one folder a site, in the order of time: files of one second have none."""
    return {
        site.name: Seen([each for _, each in sorted(_scalars(site), key=lambda e: e[0])], "")
        for site in sorted(folder.iterdir())
    }


def read_mlflow(uri: str) -> Iterator[tuple[Any, Seen]]:
    """All runs of a store, with the points of each in the order of (time, step)."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id]):
            history = [
                each
                for key in run.data.metrics
                for each in client.get_metric_history(run.info.run_id, key)
            ]
            history.sort(key=lambda each: (each.timestamp, each.step))
            points = [point(each.key, each.step, each.value) for each in history]
            points += [Point(f"param:{key}", 0, value) for key, value in run.data.params.items()]
            points += [
                Point(f"tag:{key}", 0, value)
                for key, value in run.data.tags.items()
                if not key.startswith(("mlflow.", "zmqtrack.")) and key not in OF_THE_JOB
            ]
            points += [
                Point(
                    f"text:{path}",
                    0,
                    Path(client.download_artifacts(run.info.run_id, path)).read_text(),
                )
                for path in _files(client, run.info.run_id)
            ]
            yield run, Seen(points, run.info.status.lower())


def _files(client: Any, run_id: str, folder: str | None = None) -> Iterator[str]:
    for item in client.list_artifacts(run_id, folder):
        if item.is_dir:
            yield from _files(client, run_id, item.path)
        else:
            yield item.path


def read_wandb(folder: Path) -> Iterator[tuple[dict[str, Any], Seen]]:
    """All offline runs below a folder: config, and the numbers of its rows.

    Where a row has our own column for the step, that is the step.
    """
    for parts in readers_wandb.folders(folder).values():
        points, code = [], None
        for _, records in parts:
            for record in records:
                if record.HasField("exit"):
                    code = record.exit.exit_code
                if record.HasField("history"):
                    row = readers_wandb.columns(record)
                    step = row.get("zmqtrack/step") if _is_ours(row) else row["_step"]
                    points += [
                        point(key, step, value)
                        for key, value in row.items()
                        if not key.startswith(("_", "zmqtrack/"))
                        and isinstance(value, (int, float))
                    ]
        end = {None: "running", 0: "finished"}.get(code, "failed")
        yield readers_wandb.config(parts[-1][1]), Seen(points, end)


def _is_ours(row: dict[str, Any]) -> bool:
    return any(key.startswith("zmqtrack/") for key in row)


# --- the comparison -------------------------------------------------------------------------------


def compare(
    name: str,
    real: dict[str, Seen],
    here: dict[str, dict[str, Seen]],
    announced: Counter[str],
) -> list[Row]:
    """A row for each site: each tracker must have the real one's points, and have ended."""
    rows = []
    for site in sorted({*real, *(site for seen in here.values() for site in seen)}):
        all_wanted = real[site].points if site in real else []
        found, wrong = [], []
        for tracker, seen in here.items():
            at = seen.get(site, Seen([], "nowhere"))
            # What the two make of facts that are no numbers is theirs: another test reads it.
            only = tracker in ("tensorboard", "wandb")
            wanted = [each for each in all_wanted if not (only and _is_fact(each))]
            missing, extra = _difference(wanted, at.points)
            found.append(len(all_wanted) - len(missing))
            if missing:
                wrong.append(f"{tracker} lacks {len(missing)}, as {missing[0]}")
            if extra:
                wrong.append(f"{tracker} has {len(extra)} more, as {extra[0]}")
            if not (missing or extra) and _by_key(wanted) != _by_key(at.points):
                wrong.append(f"{tracker} has them in another order")
            if at.end != "finished":
                wrong.append(f"{tracker} shows it as {at.end}")
        if not all_wanted:
            wrong.append("the framework's own receiver has no such site")
        told = ", ".join(f"{count} {reason}" for reason, count in sorted(announced.items()))
        rows.append(Row(f"{name}, {site}", len(all_wanted), min(found), told, "; ".join(wrong)))
    return rows


def _difference(wanted: list[Point], found: list[Point]) -> tuple[list[Point], list[Point]]:
    left, right = Counter(wanted), Counter(found)
    return list((left - right).elements()), list((right - left).elements())


def _by_key(points: Iterable[Point]) -> dict[str, list[Point]]:
    order: dict[str, list[Point]] = defaultdict(list)
    for each in points:
        order[each.key].append(each)
    return order


def print_table(title: str, rows: list[Row]) -> None:
    head = Row(title, "real", "here", "announced", "astray")  # type: ignore[arg-type]
    lines = [tuple(str(cell) for cell in row) for row in (head, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, [*widths, 0], strict=True)))
