"""What the probe gives to each parameter, and what no probe can see.

Both are read by ``docs/names.py``. A value is chosen so that it shows in a record where the
parameter is carried: no sample is the parameter's default.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

#: Long ago, in seconds: what has this time was told so. MLflow's timestamps are milliseconds.
AGO = 1234.5


def samples(folder: Path) -> dict[str, Any]:
    """By parameter; ``TOOL.FUNCTION.PARAMETER`` comes before ``FUNCTION.PARAMETER`` and that
    before the name alone."""
    import numpy
    import torch
    from matplotlib.figure import Figure

    file = folder / "file.txt"
    file.write_text("text")
    page = folder / "page.html"
    page.write_text("<p>page")
    tree = folder / "tree" / "inner"
    tree.mkdir(parents=True)
    (tree / "leaf.txt").write_text("leaf")
    config = folder / "config.json"
    config.write_text('{"rate": {"value": 0.5}}')
    pixels = (numpy.arange(4 * 5 * 3) * 4).reshape(4, 5, 3).astype("uint8")
    planes = numpy.ascontiguousarray(pixels.transpose(2, 0, 1))
    stack = numpy.stack([planes, planes])
    ones = numpy.ones((1, 4, 3), "float32")
    counts = numpy.arange(1, 4)
    return {
        "tag": "tag",
        "tags": {"one": "1"},
        "key": "key",
        "name": "name",
        "value": 0.5,
        "step": 7,
        "global_step": 7,
        "walltime": AGO,
        "timestamp": int(AGO * 1000),
        "text": "text",
        "title": "title",
        "message": "message",
        "string": "text",
        "metrics": {"a": 1.0, "b": 2.0},
        "params": {"lr": 0.1},
        "values": numpy.arange(8.0),
        "file": file,
        "path": str(file),
        "local_path": str(file),
        "local_dir": str(tree.parent),
        "artifact_file": "notes/a.txt",
        "artifact_path": "sub",
        "display_name": "shown name",
        "summary_description": "what it means",
        "experiment_name": "mine",
        "model_id": "m-1",
        "dataset": object(),
        "run_id": None,
        "config": {"lr": 0.1},
        "status": "FAILED",
        "level": "WARN",
        "wait_duration": 60,
        # --- TensorBoard
        "scalar_value": 0.5,
        "scalar": 0.5,
        "scalars": {"a": 1.0, "b": 2.0},
        "tag_scalar_dict": {"a": 1.0, "b": 2.0},
        "main_tag": "main",
        "text_string": "text",
        "img_tensor": planes,
        "add_images.img_tensor": stack,
        "dataformats": "HWC",
        "add_image.dataformats": "CWH",
        "add_image_with_boxes.dataformats": "CWH",
        "add_images.dataformats": "NCWH",
        "add_video.dataformats": "NTHWC",
        "box_tensor": numpy.array([[0.0, 0, 3, 3]]),
        "labels": ["a"],
        "add_pr_curve.labels": numpy.array([0, 1, 1]),
        "predictions": numpy.array([0.1, 0.6, 0.9]),
        "rescale": 2,
        "figure": Figure(figsize=(1, 1), dpi=20, facecolor="red"),
        "close": False,
        "bins": [0.0, 4.0, 8.0],
        "max_bins": 2,
        "min": 0.0,
        "max": 3.0,
        "num": 6,
        "sum": 9.0,
        "sum_squares": 17.0,
        "bucket_limits": [1.0, 2.0, 3.0],
        "bucket_counts": counts,
        "hparam_dict": {"lr": 0.1},
        "metric_dict": {"acc": 0.5},
        "hparam_domain_discrete": {"lr": [0.1, 0.2]},
        "run_name": "other",
        "add_hparams.name": "other",
        "snd_tensor": numpy.zeros((1, 100), "float32"),
        "vid_tensor": numpy.zeros((1, 2, 3, 4, 5), "uint8"),
        "vertices": torch.from_numpy(ones),
        "mat": torch.eye(3),
        "tensor": torch.eye(2),
        "model": torch.nn.Linear(2, 1),
        "layout": {"cat": {"chart": ["Multiline", ["a", "b"]]}},
        "add_custom_scalars_marginchart.tags": ["a", "b", "c"],
        "add_custom_scalars_multilinechart.tags": ["a", "b"],
        "category": "cat",
        "prototxt": "model.onnx",
        "xmlname": "model.xml",
        "true_positive_counts": counts,
        "false_positive_counts": counts,
        "true_negative_counts": counts,
        "false_negative_counts": counts,
        "precision": counts,
        "recall": counts,
        "log_dir": "runs/there/it",
        "logdir": "runs/there/it",
        "comment": "-comment",
        "purge_step": 3,
        "max_queue": 5,
        "flush_secs": 5,
        "filename_suffix": ".x",
        "write_to_disk": False,
        "comet_config": {"disabled": False},
        "double_precision": True,
        "new_style": True,
        "metadata": {"k": "v"},
        "export_scalars_to_json.path": str(folder / "scalars.json"),
        # --- MLflow
        "synchronous": False,
        "start_run.run_name": "called",
        "start_run.nested": True,
        "start_run.parent_run_id": "above",
        "start_run.experiment_id": "mine",
        "start_run.run_id": "known",
        "start_run.description": "what for",
        "start_run.log_system_metrics": True,
        "set_experiment.experiment_id": "mine",
        "dictionary": {"a": [1, 2]},
        "log_dict.artifact_file": "d.json",
        "log_table.data": {"a": [1, 2], "b": [3, 4]},
        "log_table.artifact_file": "t.json",
        "log_image.image": pixels,
        "log_image.key": "picture",
        "log_figure.artifact_file": "f.png",
        "save_kwargs": {"dpi": 40},
        "uri": "sqlite:///elsewhere.db",
        "log_param.value": 0.1,
        "log_batch.metrics": [],
        "log_batch.params": [],
        "log_batch.tags": [],
        "trace_location": object(),
        # --- W&B
        "data": {"loss": 0.5},
        "log.step": 7,
        "log.commit": False,
        "wandb.init.project": "mine",
        "entity": "team",
        "project": "mine",
        "group": "job",
        "job_type": "train",
        "notes": "notes",
        "init.tags": ["one"],
        "init.name": "called",
        "init.id": "abc",
        "init.dir": str(folder / "elsewhere"),
        "init.mode": "disabled",
        "init.config_exclude_keys": ["lr"],
        "init.config_include_keys": ["rate"],
        "init.settings": {"mode": "disabled"},
        "init.reinit": "create_new",
        "init.resume": "allow",
        "resume_from": "abc?_step=3",
        "fork_from": "abc?_step=3",
        "artifact_or_path": str(file),
        "artifact_or_name": "data:latest",
        "type": "dataset",
        "aliases": ["best"],
        "log_artifact.tags": ["good"],
        "upsert_artifact.tags": ["good"],
        "glob_str": str(file),
        "base_path": str(folder.parent),
        "policy": "now",
        "exit_code": 3,
        "quiet": True,
        "define_metric.name": "loss",
        "step_metric": "epoch",
        "hidden": True,
        "summary": "min",
        "overwrite": True,
        "step_sync": False,
        "models": torch.nn.Linear(2, 1),
        "data_or_path": pixels,
        "Video.data_or_path": numpy.zeros((2, 3, 4, 5), "uint8"),
        "Audio.data_or_path": numpy.zeros(100, "float32"),
        "Object3D.data_or_path": numpy.zeros((4, 3)),
        "Molecule.data_or_path": str(file),
        "Html.data": "<p>hello",
        "Html.data_is_not_path": True,
        "Html.inject": False,
        "Image.mode": "L",
        "Image.caption": "caption",
        "Image.file_type": "jpg",
        "caption": "caption",
        "sequence": [1.0, 2.0, 4.0],
        "np_histogram": ([1, 2], [0.0, 1.0, 2.0]),
        "num_bins": 3,
        "columns": ["a", "b"],
        "Table.data": [[1, 2]],
        "Table.rows": [[1, 2]],
        "update.d": {"rate": 0.5},
        "setdefaults.d": {"rate": 0.5},
        "add_reference.uri": "s3://bucket/key",
        "keys": ["lr"],
    }


#: Why a call or a parameter has nothing to do. Keys: ``TITLE.NAME``, ``TITLE.NAME.PARAMETER``,
#: ``TOOL.NAME.PARAMETER``, or ``TOOL:PARAMETER`` for all calls of a tool.
IDLE: dict[str, str] = {}

#: Names that a module has and that are no part of its interface, and why.
NOT_PUBLIC: dict[str, str] = {}
