"""Each tracker's own reader, and what it shows of one site, in that tracker's own terms.

Nothing here knows an adapter: TensorBoard's event files are read by TensorBoard, MLflow's runs
by ``MlflowClient``, W&B's offline records by their own protobuf classes (``readers_wandb`` undoes
the framing), JSON lines by ``json``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util import tensor_util

import readers_wandb

__all__ = ["JSONLines", "MLflowRun", "Seen", "TensorBoardRun", "WandBRun", "number"]


class Seen(NamedTuple):
    """One thing that a tracker shows, with the step and time that it has for it."""

    key: str
    value: Any
    step: int | None
    time: Any


def number(value: Any) -> Any:
    """``value`` as a float that equals itself: NaN becomes a word."""
    return "NaN" if math.isnan(float(value)) else float(value)


def _named(folder: Path, name: str) -> Path:
    """What is called ``name`` in a folder, or so once ``%XX`` is read as in a URL."""
    found = [path for path in folder.iterdir() if unquote(path.name) == name]
    assert len(found) == 1, f"{name!r} is {len(found)} times in {sorted(folder.iterdir())}"
    return found[0]


# --- JSON lines --------------------------------------------------------------------------


class JSONLines:
    """``DIR/EXPERIMENT/RUN/SITE.jsonl`` and the files beside it."""

    def __init__(self, folder: Path, experiment: str, run: str, site: str) -> None:
        self.folder = _named(_named(folder, experiment), run)
        path = _named(self.folder, f"{site}.jsonl")
        self.lines: list[dict[str, Any]] = [
            json.loads(line, parse_constant=_refuse) for line in path.read_text().splitlines()
        ]

    def of(self, data_type: str) -> list[Seen]:
        """The lines of a data type, in their order."""
        return [
            Seen(line["key"], line["value"], line["step"], line["time"])
            for line in self.lines
            if line["type"] == data_type
        ]


def _refuse(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


# --- TensorBoard -------------------------------------------------------------------------


def _all_events(folder: Path) -> EventAccumulator:
    everything = {"scalars": 0, "tensors": 0, "images": 0, "histograms": 0}
    return EventAccumulator(str(folder), size_guidance=everything).Reload()


def _scalars(events: EventAccumulator, below: str) -> dict[str, list[Seen]]:
    """By tag; of a run that is called ``below``, the tag and its line."""
    found = {}
    for tag in events.Tags()["scalars"]:
        key = f"{tag}/{below.removeprefix(f'{tag}_')}" if below else tag
        found[key] = [Seen(key, number(e.value), e.step, e.wall_time) for e in events.Scalars(tag)]
    return found


class TensorBoardRun:
    """``LOGDIR/EXPERIMENT/RUN/SITE/``, by tag and in the order in which TensorBoard reads it."""

    def __init__(self, logdir: Path, experiment: str, run: str, site: str) -> None:
        self.folder = _named(_named(_named(logdir, experiment), run), site)

    @cached_property
    def _events(self) -> EventAccumulator:
        return _all_events(self.folder)

    @cached_property
    def scalars(self) -> dict[str, list[Seen]]:
        """Its own, and as CHART/LINE those of the runs CHART_LINE below it."""
        found = _scalars(self._events, "")
        for below in (path for path in self.folder.iterdir() if path.is_dir()):
            found |= _scalars(_all_events(below), below.name)
        return found

    @cached_property
    def images(self) -> dict[str, list[Seen]]:
        return {
            tag: [
                Seen(tag, e.encoded_image_string, e.step, e.wall_time)
                for e in self._events.Images(tag)
            ]
            for tag in self._events.Tags()["images"]
        }

    @cached_property
    def histograms(self) -> dict[str, list[Seen]]:
        return {
            tag: [
                Seen(tag, e.histogram_value, e.step, e.wall_time)
                for e in self._events.Histograms(tag)
            ]
            for tag in self._events.Tags()["histograms"]
        }

    @cached_property
    def texts(self) -> dict[str, list[Seen]]:
        """What the TEXT tab shows."""
        return {
            tag: [
                Seen(
                    tag,
                    tensor_util.make_ndarray(e.tensor_proto).item().decode(),
                    e.step,
                    e.wall_time,
                )
                for e in self._events.Tensors(tag)
            ]
            for tag in self._events.Tags()["tensors"]
            if self._plugin(tag).plugin_name == "text"
        }

    @property
    def hparams(self) -> dict[str, Any]:
        """What the HPARAMS tab shows."""
        hparams = self._session("_hparams_/session_start_info").session_start_info.hparams
        return {key: getattr(v, v.WhichOneof("kind")) for key, v in hparams.items()}

    @property
    def session_end(self) -> Any:
        return self._session("_hparams_/session_end_info").session_end_info

    def scalars_in_order(self) -> list[Seen]:
        """All scalars of all tags, event for event."""
        return [
            Seen(value.tag, value.tensor.float_val[0], event.step, event.wall_time)
            for file in sorted(self.folder.glob("events.out.tfevents.*"))
            for event in EventFileLoader(str(file)).Load()
            for value in event.summary.value
            if value.metadata.plugin_data.plugin_name == "scalars"
        ]

    def _plugin(self, tag: str) -> Any:
        return self._events.SummaryMetadata(tag).plugin_data

    def _session(self, tag: str) -> HParamsPluginData:
        return HParamsPluginData.FromString(self._plugin(tag).content)


# --- MLflow ------------------------------------------------------------------------------


class MLflowRun:
    """The one run of a site, read with ``MlflowClient``; ``folder`` takes its artifacts."""

    def __init__(self, uri: str, experiment: str, run: str, site: str, folder: Path) -> None:
        self._client = MlflowClient(tracking_uri=uri)
        self._folder = folder
        self.experiment = self._client.get_experiment_by_name(experiment)
        assert self.experiment is not None, f"no experiment {experiment!r} at {uri}"
        runs = self._client.search_runs([self.experiment.experiment_id])
        of_job = [each for each in runs if each.data.tags.get("zmqtrack.run") == run]
        sites = [each for each in of_job if each.data.tags.get("zmqtrack.site") == site]
        parents = [each for each in of_job if "zmqtrack.site" not in each.data.tags]
        together = len({each.data.tags.get("zmqtrack.site") for each in of_job}) > 1
        assert (len(sites), len(parents)) == (1, together), f"runs of {run!r}, {site!r}: {of_job}"
        self.run = self._client.get_run(sites[0].info.run_id)
        #: The run that holds the sites of the job together, where there are several.
        self.parent = parents[0] if parents else None

    def history(self, key: str) -> list[Seen]:
        """A metric's points in the order of (time, step); times in milliseconds."""
        points = self._client.get_metric_history(self.run.info.run_id, key)
        seen = [Seen(p.key, number(p.value), p.step, p.timestamp) for p in points]
        return sorted(seen, key=lambda point: (point.time, point.step))

    def histories(self) -> dict[str, list[Seen]]:
        return {key: self.history(key) for key in self.run.data.metrics}

    @cached_property
    def files(self) -> dict[str, bytes]:
        """The artifacts by their path."""
        self._folder.mkdir(parents=True)
        root = Path(
            self._client.download_artifacts(self.run.info.run_id, "", str(self._folder.absolute()))
        )
        return {
            path.relative_to(root).as_posix(): path.read_bytes()
            for path in sorted(root.rglob("*"))
            if path.is_file()
        }


# --- W&B ---------------------------------------------------------------------------------


@cache
def _wandb_folders(directory: Path) -> dict[str, list[Any]]:
    """All offline runs of a folder to which nothing is added any more."""
    return readers_wandb.folders(directory)


def _is_list_of_images(value: Any) -> bool:
    return isinstance(value, dict) and value.get("_type") == "images/separated"


class WandBRun:
    """The one offline run of a site: group is the run, name the site, project the experiment."""

    def __init__(self, directory: Path, experiment: str, run: str, site: str) -> None:
        found = []
        for parts in _wandb_folders(directory).values():
            about = next(r.run for _, records in parts for r in records if r.HasField("run"))
            if (about.project, about.run_group, about.display_name) == (experiment, run, site):
                found.append((about, parts))
        assert len(found) == 1, f"{len(found)} runs of {experiment!r}, {run!r}, {site!r}"
        self.about, self._parts = found[0]
        self.config = readers_wandb.config(self._parts[-1][1])
        self.history = list(self._history())

    def _history(self) -> Iterator[tuple[dict[str, Any], list[Any]]]:
        """Each row's columns, with the records of other kinds that stand between it and the next.

        Files that a row refers to are read: ``(kind, content)``.
        """
        last = -1
        row: dict[str, Any] = {}
        between: list[Any] = []
        for folder, records in self._parts:
            for record in records:
                if not record.HasField("history"):
                    between.append(record)
                    continue
                if row:
                    yield row, between
                row, between = readers_wandb.columns(record), []
                assert row["_step"] > last, "W&B drops a row whose _step goes back"
                last, captions = row["_step"], {}
                for key in [key for key, value in row.items() if _is_list_of_images(value)]:
                    listed = row.pop(key)
                    for number, name in enumerate(listed["filenames"]):
                        file = folder / "files" / name
                        row[f"{key}.{number}"] = ("image-file", file.read_bytes())
                for key, value in row.pop("zmqtrack/summary", {}).items():
                    row[f"summary/{key}"] = value
                for key, value in row.items():
                    if isinstance(value, dict) and "path" in value:
                        file = folder / "files" / value["path"]
                        row[key] = (value["_type"], file.read_bytes())
                        if "caption" in value:
                            captions[f"{key}.caption"] = value["caption"]
                row.update(captions)
        if row:
            yield row, between

    def rows(self) -> list[list[Seen]]:
        """By row, in order: what was logged under names of the user's."""
        return [
            [
                Seen(key, value, row.get("zmqtrack/step"), row["_timestamp"])
                for key, value in row.items()
                if not key.startswith(("_", "zmqtrack/"))
            ]
            for row, _ in self.history
        ]

    def strings(self) -> list[Seen]:
        """The columns that hold a string, and the captions of images, in order."""
        odd = ("NaN", "Infinity", "-Infinity")
        return [
            one
            for row in self.rows()
            for one in row
            if isinstance(one.value, str) and one.value not in odd
        ]

    def noted(self, what: str) -> list[tuple[Seen, list[Any]]]:
        """The rows that announce something else, each with the records behind it."""
        return [
            (Seen(what, row[what], row.get("zmqtrack/step"), row["_timestamp"]), between)
            for row, between in self.history
            if what in row
        ]
