"""What a tracker shows of one run, as plain values that can be compared: item → list of values.

The tracker's own reader reads it, whoever wrote it. Left out is what no two runs have in common:
the wall clock (but times that a call gave: they are long ago), ids, names of files that hold them.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from mlflow import MlflowClient
from PIL import Image
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util import tensor_util

import readers_wandb
from readers import number

View = dict[str, list[Any]]


def told(seconds: float) -> float | None:
    """A time that a call gave; None for one of the clock."""
    return seconds if seconds < 1e9 else None


def content(data: bytes) -> str:
    """A file in short: of an image, its size and pixels."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = hashlib.sha256(image.convert("RGBA").tobytes()).hexdigest()[:12]
            return f"image {image.width}×{image.height} {pixels}"
    except Exception:  # noqa: S110 -- Pillow's decoders raise anything: it is no image
        pass
    if len(data) < 300 and data.isascii():
        return data.decode()
    return f"{len(data)} bytes {hashlib.sha256(data).hexdigest()[:12]}"


# --- TensorBoard ----------------------------------------------------------------------------------


def tensorboard(folder: Path) -> View:
    """All that is in the event files below a folder; those of one sub-folder are one run."""
    view: defaultdict[str, list[Any]] = defaultdict(list)
    for file in sorted(folder.rglob("*tfevents*")):
        below = file.parent.relative_to(folder).as_posix()
        below = "" if below == "." else re.sub(r"^[\d.]+$", "TIME", below) + ": "
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                plugin = value.metadata.plugin_data.plugin_name
                seen = _summary(plugin, value)
                if isinstance(seen, dict):
                    view[f"{below}{value.tag}"] += [dict(sorted(seen.items()))]
                else:
                    key = f"{below}{plugin} {value.tag}"
                    view[key].append((seen, event.step, told(event.wall_time)))
    return dict(view)


def _summary(plugin: str, value: Any) -> Any:
    if plugin == "hparams":
        data = HParamsPluginData.FromString(value.metadata.plugin_data.content)
        kind = data.WhichOneof("data")
        if kind == "session_start_info":
            hparams = data.session_start_info.hparams
            return {key: getattr(v, v.WhichOneof("kind")) for key, v in hparams.items()}
        if kind == "session_end_info":
            return {"status": data.session_end_info.status}
        return {
            "hparams": sorted(info.name for info in data.experiment.hparam_infos),
            "metrics": sorted(info.name.tag for info in data.experiment.metric_infos),
        }
    if value.HasField("image"):
        return content(value.image.encoded_image_string)
    array = tensor_util.make_ndarray(value.tensor) if value.HasField("tensor") else None
    if plugin == "images":
        return [content(data) for data in array[2:]]
    if plugin == "scalars":
        return number(array.item())
    if plugin == "text":
        return [text.decode() for text in array.ravel()]
    if plugin == "histograms":
        # Buckets that hold nothing are drawn by nobody.
        return [[round(float(x), 6) for x in bucket] for bucket in array if bucket[2]]
    return hashlib.sha256(value.SerializeToString()).hexdigest()[:12]


# --- MLflow ---------------------------------------------------------------------------------------


def mlflow(uri: str, experiment: str, folder: Path) -> dict[str, View]:
    """The runs of an experiment by their names; the runs of zmqtrack by its own."""
    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None, f"no experiment {experiment!r} at {uri}"
    runs = client.search_runs([found.experiment_id])
    of: dict[str, Any] = {}
    for run in runs:
        tags = run.data.tags
        name = tags.get("zmqtrack.run", run.info.run_name)
        if name not in of or "zmqtrack.site" in tags:  # a site's run, not the one above it
            of[name] = run
    return {name: _mlflow_run(client, run.info.run_id, folder) for name, run in of.items()}


def _mlflow_run(client: Any, run_id: str, folder: Path) -> View:
    run = client.get_run(run_id)
    view: View = {"status": [run.info.status], "name": [run.info.run_name]}
    for key in run.data.metrics:
        points = sorted(client.get_metric_history(run_id, key), key=lambda p: (p.step, p.timestamp))
        view[f"metric {key}"] = [
            (number(p.value), p.step, told(p.timestamp / 1000)) for p in points
        ]
    view.update((f"param {key}", [value]) for key, value in run.data.params.items())
    view.update((f"tag {key}", [value]) for key, value in run.data.tags.items())
    view.pop("tag mlflow.source.git.repoURL", None)  # not told: it may hold a password
    place = folder / run_id
    place.mkdir(parents=True)
    root = Path(client.download_artifacts(run_id, "", str(place)))
    for path in sorted(root.rglob("*")):
        if path.is_file():
            name = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "ID", path.relative_to(root).as_posix())
            data: Any = content(path.read_bytes())
            if path.suffix in (".json", ".yaml"):  # by its meaning, not by its blanks
                data = yaml.safe_load(path.read_text())
            elif path.suffix == ".svg":  # matplotlib's have random ids in them
                data = path.stat().st_size
            view.setdefault(f"file {name}", []).append(data)
    return view


# --- W&B ------------------------------------------------------------------------------------------


def wandb(folder: Path, project: str) -> dict[str, View]:
    """The offline runs of a project by their names; the runs of zmqtrack by its own."""
    return {
        _name(parts): _wandb_run(parts)
        for parts in readers_wandb.folders(folder).values()
        if any(r.run.project == project for r in parts[0][1] if r.HasField("run"))
    }


def _name(parts: list[tuple[Path, list[Any]]]) -> str:
    config = readers_wandb.config(parts[0][1])
    if "zmqtrack" in config:
        return str(config["zmqtrack"]["run"])
    return next(r.run.display_name for r in parts[0][1] if r.HasField("run"))


def _wandb_run(parts: Iterable[tuple[Path, list[Any]]]) -> View:
    view: defaultdict[str, list[Any]] = defaultdict(list)
    for folder, records in parts:
        for record in records:
            kind = record.WhichOneof("record_type")
            if kind == "history":
                _row(view, folder, readers_wandb.columns(record))
            elif kind == "run":
                view["tags"] = [sorted(record.run.tags)]
                view["notes"], view["name"] = [record.run.notes], [record.run.display_name]
            elif kind == "artifact":
                for entry in record.artifact.manifest.contents:
                    data = Path(entry.local_path).read_bytes() if entry.local_path else b""
                    name = f"{record.artifact.type} {record.artifact.name}/{entry.path}"
                    name = re.sub(r"run-\w{8}-|[0-9a-f]{16}-", "ID-", name)
                    view[f"artifact {name}"].append(content(data))
            elif kind == "summary":
                for item in record.summary.update:
                    key = ".".join(item.nested_key) or item.key
                    value = json.loads(item.value_json)
                    if not key.startswith("_"):
                        view[f"summary {key}"] = [_cell(Path(), value)]
            elif kind == "files":
                for item in record.files.files:
                    path = folder / "files" / item.path
                    if not item.path.startswith(("media", "artifact")) and path.is_file():
                        view[f"file {item.path}"] = [content(path.read_bytes())]
            elif kind == "exit":
                view["exit code"] = [record.exit.exit_code]
        config = readers_wandb.config(records)
        view.update(
            (f"config {k}", [v]) for k, v in config.items() if k not in ("_wandb", "zmqtrack")
        )
    # What the summary has of media are names of files, which no two runs share.
    media = [key[7:] for key, cells in view.items() if not _is_plain(key, cells)]
    return {
        key: values
        for key, values in view.items()
        if not any(key == f"summary {name}" or key.startswith(f"summary {name}.") for name in media)
    }


def _is_plain(key: str, cells: list[Any]) -> bool:
    if not key.startswith("column "):
        return True
    return not any(
        isinstance(cell, tuple) or (isinstance(cell, dict) and "_type" in cell) for cell, _ in cells
    )


def _row(view: dict[str, list[Any]], folder: Path, row: dict[str, Any]) -> None:
    """Each column with the row's step, and which columns stand beside it."""
    step = row.get("zmqtrack/step", row["_step"])
    own = {key: v for key, v in row.items() if not key.startswith(("_", "zmqtrack/"))}
    if own:
        view["rows"].append(sorted(own))
    for key, value in own.items():
        view[f"column {key}"].append((_cell(folder, value), step))


def _cell(folder: Path, value: Any) -> Any:
    if not isinstance(value, dict):
        return "NaN" if isinstance(value, float) and math.isnan(value) else value
    if "path" in value:
        data = (folder / "files" / value["path"]).read_bytes()
        more = {k: v for k, v in value.items() if k in ("caption", "ncols", "nrows")}
        return value["_type"], content(data), more
    if "filenames" in value:
        files = [content((folder / "files" / name).read_bytes()) for name in value["filenames"]]
        return value["_type"], files, {k: v for k, v in value.items() if k != "filenames"}
    return {k: _cell(folder, v) for k, v in value.items() if k not in ("sha256", "size")}
