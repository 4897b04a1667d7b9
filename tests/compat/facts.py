"""What a tracker shows of a run, read with the tracker's own reader, in terms that compare.

Each reader gives ``{site or None: {run: [Fact, …]}}``: what the real tool wrote has no site, and
what an adapter wrote has that of the case.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["READERS", "Fact", "Facts", "jsonl"]


class Fact(NamedTuple):
    """One thing that a tracker shows; ``value`` is what is compared of it."""

    kind: str
    key: str
    step: int | None = None
    value: Any = None


Facts = dict[str | None, dict[str, list[Fact]]]


def _number(value: float) -> str:
    """Six digits: event files keep 32 bits of a number."""
    return "nan" if math.isnan(value) else f"{value:.6g}"


# --- TensorBoard -------------------------------------------------------------------------


def tensorboard(folder: Path, ours: bool) -> Facts:
    """Of event files: a run is a folder. Ours lie in ``LOGDIR/EXPERIMENT/RUN/SITE/…``."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found: Facts = defaultdict(lambda: defaultdict(list))
    for path in sorted(folder.rglob("*tfevents*")):
        if not path.is_file():
            continue
        parts = path.parent.relative_to(folder).parts
        site = parts[2] if ours and len(parts) > 2 else None
        run = found[site]["/".join(parts)]
        kinds: dict[str, str] = {}
        for event in EventFileLoader(str(path)).Load():
            if event.HasField("graph_def"):
                run.append(Fact("graph", "graph"))
            for value in event.summary.value:
                kind = value.metadata.plugin_data.plugin_name or kinds.get(value.tag, "tensor")
                kinds[value.tag] = kind
                run += _of_tensorboard(kind, value, event.step)
    for path in sorted(folder.rglob("projector_config.pbtxt")):
        parts = path.parent.relative_to(folder).parts
        found[parts[2] if ours else None]["/".join(parts)].append(Fact("embedding", "projector"))
    return found


def _key(kind: str, tag: str) -> str:
    """A tag as every writer of TensorBoard's has it.

    torch and tensorboardX add a word to texts, and tensorboardX takes characters for others.
    """
    tag = re.sub(r"[^-/\w.]", "_", tag).lstrip("/")
    return tag.removesuffix("/text_summary") if kind == "text" else tag


def _of_tensorboard(kind: str, value: Any, step: int) -> Iterator[Fact]:
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    from tensorboard.util import tensor_util

    content = value.metadata.plugin_data.content
    if kind == "hparams":
        data = HParamsPluginData.FromString(content)
        for key, item in data.session_start_info.hparams.items():
            shown = getattr(item, item.WhichOneof("kind"))
            yield Fact(kind, key, None, _number(shown) if isinstance(shown, float) else shown)
        return
    array = tensor_util.make_ndarray(value.tensor)
    key = _key(kind, value.tag)
    if kind == "scalars":
        yield Fact("scalar", key, step, _number(float(array.item())))
    elif kind == "text":
        yield Fact(kind, key, step, tuple(_texts(array)))
    elif kind == "images":
        gif = bytes(array.flat[2][:3]) == b"GIF"
        size = tuple(bytes(part).decode() for part in array.flat[:2])
        yield Fact("video" if gif else "image", key, step, None if gif else size)
    elif kind == "histograms":
        total = float(array[:, 2].sum()) if array.size else 0.0
        yield Fact("histogram", key, step, _number(total))
    else:
        yield Fact(kind, key, step)


def _texts(array: Any) -> list[str]:
    return [
        part.decode(errors="replace") if isinstance(part, bytes) else str(part)
        for part in array.flat
    ]


# --- MLflow ------------------------------------------------------------------------------


def mlflow(folder: Path, ours: bool) -> Facts:
    """Of ``folder/mlflow.db``; tags of MLflow's own and of the adapter's are not looked at."""
    if not (folder / "mlflow.db").exists():
        return {}
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{(folder / 'mlflow.db').absolute()}")
    found: Facts = defaultdict(lambda: defaultdict(list))
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id], max_results=1000):
            site = run.data.tags.get("zmqtrack.site") if ours else None
            if ours and site is None:
                continue  # the parent of a job's sites
            facts = found[site][run.info.run_id]
            facts.append(Fact("status", run.info.status))
            # Equal points of one millisecond are one in MLflow: how many is chance.
            facts += dict.fromkeys(_of_mlflow(client, run))
        for model in client.search_logged_models([experiment.experiment_id]):
            if not ours:
                found[None][model.source_run_id or model.model_id].append(Fact("model", model.name))
    return found


def _of_mlflow(client: Any, run: Any) -> Iterator[Fact]:
    for key in run.data.metrics:
        for point in client.get_metric_history(run.info.run_id, key):
            yield Fact("metric", key, point.step, _number(point.value))
    for key, value in run.data.params.items():
        yield Fact("param", key, None, value)
    for key, value in run.data.tags.items():
        if not key.startswith(("mlflow.", "zmqtrack.")) or key == "mlflow.note.content":
            yield Fact("tag", key, None, value)
    for given in run.inputs.dataset_inputs if run.inputs else []:
        yield Fact("dataset", given.dataset.name)
    waiting = [""]
    while waiting:
        for item in client.list_artifacts(run.info.run_id, waiting.pop() or None):
            if item.is_dir:
                waiting.append(item.path)
            else:
                yield Fact("artifact", item.path)


# --- W&B ---------------------------------------------------------------------------------

#: What W&B keeps of each run by itself.
_OWN_FILES = ("wandb-", "config.yaml", "output.log", "requirements.txt", "conda-", "diff.patch")


def wandb(folder: Path, ours: bool) -> Facts:
    """Of offline runs.

    What W&B collects by itself (console, system metrics, code, packages) is not looked at.
    """
    import readers_wandb

    found: Facts = defaultdict(lambda: defaultdict(list))
    roots = {path.parents[2] for path in folder.rglob("wandb/*run-*/run-*.wandb")}
    for root in sorted(roots):
        for run_id, parts in readers_wandb.folders(root).items():
            records = [record for _, part in parts for record in part]
            config = readers_wandb.config(parts[-1][1])
            site = config.get("zmqtrack", {}).get("site") if ours else None
            found[site][run_id] += _of_wandb(records, config)
    return found


def _of_wandb(records: list[Any], config: dict[str, Any]) -> Iterator[Fact]:
    import readers_wandb

    run = next(record.run for record in records if record.HasField("run"))
    yield Fact("about", "project", None, run.project)
    for name in ("notes", "job_type", "run_group", "display_name"):
        if getattr(run, name):
            yield Fact("about", name, None, getattr(run, name))
    for tag in run.tags:
        yield Fact("about", "tags", None, tag)
    for key, value in config.items():
        if key not in ("_wandb", "zmqtrack"):
            key = key.removeprefix("user/")  # before keys that look like W&B's own
            yield Fact("config", key, None, json.dumps(value, sort_keys=True))
    for record in records:
        kind = record.WhichOneof("record_type")
        if kind == "history":
            yield from _of_row(readers_wandb.columns(record))
        elif kind == "summary":
            update = record.summary.update
            media = {item.nested_key[0] for item in update if "_type" in item.nested_key[1:]}
            for item in update:
                key = item.key or ".".join(item.nested_key)
                if not key.startswith("_") and key.partition(".")[0] not in media:
                    yield Fact("summary", key, None, _shown(json.loads(item.value_json)))
        elif kind == "artifact" and not record.artifact.name.startswith("run-"):
            own = json.loads(record.artifact.metadata or "{}")
            for entry in record.artifact.manifest.contents:
                key = own.get("key") or f"{record.artifact.name}/{entry.path}"
                # Frameworks put the run's id into the name.
                yield Fact("artifact", re.sub(r"^model-[^/]+/", "model-ID/", key))
        elif kind == "files":
            for item in record.files.files:
                own_file = item.path.startswith(("media/", *_OWN_FILES))
                if not own_file and "tfevents" not in item.path:
                    yield Fact("file", item.path)
        elif kind == "metric" and record.metric.step_metric:
            about = record.metric
            if not about.step_metric.startswith("zmqtrack"):
                yield Fact("define_metric", about.name or about.glob_name, None, about.step_metric)
        elif kind == "exit":
            yield Fact("exit", str(record.exit.exit_code))


def _of_row(row: dict[str, Any]) -> Iterator[Fact]:
    step = row.get("zmqtrack/step", row["_step"])
    names = sorted(key for key in row if not key.startswith(("_", "zmqtrack/")))
    if names:
        # The parts and forms of one value: KEY.0, KEY.1, KEY.md …
        keys = dict.fromkeys(re.sub(r"\.(\d+|md|html|caption)$", "", name) for name in names)
        yield Fact("row", " ".join(keys), step)
    for key in names:
        value = row[key]
        if isinstance(value, dict) and "_type" in value:
            yield Fact(value["_type"], key, step)
        else:
            yield Fact("value", key, step, _shown(value))


def _shown(value: Any) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _number(float(value))
    return json.dumps(value, sort_keys=True)


# --- JSON lines --------------------------------------------------------------------------


def jsonl(folder: Path) -> dict[str, set[str]]:
    """The keys of all metrics, by site."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in folder.rglob("*.jsonl"):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            if record["type"] == "metric":
                found[path.stem].add(record["key"])
    return found


READERS = {"tensorboard": tensorboard, "mlflow": mlflow, "wandb": wandb}
