"""The public names of the tools that are installed here, with their parameters, as JSON.

A process of its own, so that the one which probes zmqtrack's writers has none of the tools loaded.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
from importlib.metadata import version
from typing import Any

#: Title of a table: the tool's objects whose names stand in it.
SOURCES: dict[str, list[str]] = {
    "tensorboard.SummaryWriter": [
        "torch.utils.tensorboard:SummaryWriter",
        "tensorboardX:SummaryWriter",
    ],
    "tensorboard": ["tensorboardX:", "torch.utils.tensorboard:"],
    "tensorboard.GlobalSummaryWriter": ["tensorboardX:GlobalSummaryWriter"],
    "tensorboard.FileWriter": ["torch.utils.tensorboard:FileWriter", "tensorboardX:FileWriter"],
    "mlflow": ["mlflow:"],
    "mlflow.MlflowClient": ["mlflow:MlflowClient"],
    "mlflow.ActiveRun": ["mlflow:ActiveRun"],
    "wandb": ["wandb:"],
    "wandb.Run": ["wandb:Run"],
    "wandb.Config": ["wandb:Config"],
    "wandb.Summary": ["wandb.sdk.wandb_summary:Summary"],
    "wandb.Artifact": ["wandb:Artifact"],
    "wandb.Table": ["wandb:Table"],
    "wandb.Image": ["wandb:Image"],
    "wandb.plot": ["wandb.plot:"],
}
PACKAGES = ("torch", "tensorboardX", "mlflow", "wandb")

#: Of NVFLARE 2.9's writers, written down because it is no dependency: name → parameters.
NVFLARE: dict[str, dict[str, list[str]]] = {
    "tensorboard.SummaryWriter": {
        "add_scalar": ["tag", "scalar", "global_step"],
        "add_scalars": ["tag", "scalars", "global_step"],
        "flush": [],
    },
    "mlflow": {
        "log_param": ["key", "value"],
        "log_params": ["values"],
        "log_metric": ["key", "value", "step"],
        "log_metrics": ["metrics", "step"],
        "log_text": ["text", "artifact_file_path"],
        "set_tag": ["key", "tag"],
        "set_tags": ["tags"],
    },
    "wandb.Run": {"log": ["metrics", "step"]},
}


def inventory() -> dict[str, Any]:
    """Versions, and by title: name → kind and parameters."""
    return {
        "versions": {name: version(name).partition("+")[0] for name in PACKAGES},
        "names": {title: _names(title, paths) for title, paths in SOURCES.items()},
    }


def _names(title: str, paths: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in paths:
        module, _, name = path.partition(":")
        holder: Any = importlib.import_module(module)
        if name:
            holder = getattr(holder, name)
        for public in _public(holder, module):
            _merge(found, public, _facts(holder, public))
    for public, parameters in NVFLARE.get(title, {}).items():
        _merge(found, public, {"kind": "function", "of": [[[p, "needed"] for p in parameters]]})
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def _merge(found: dict[str, Any], name: str, facts: dict[str, Any]) -> None:
    """Two tools' versions of one name are kept side by side."""
    known = found.setdefault(name, {"kind": facts["kind"], "of": []})
    known["of"] += [one for one in facts["of"] if one not in known["of"]]


def _public(holder: Any, module: str) -> list[str]:
    names = [name for name in dir(holder) if not name.startswith("_")]
    if not inspect.ismodule(holder):
        return ["__init__", *names] if holder.__name__ in ("SummaryWriter", "Image") else names
    listed = set(getattr(holder, "__all__", ()))
    # What a module has by import only (contextlib, typing's TYPE_CHECKING) is not its own.
    own = {name for name in names if _is_own(holder, name, module)}
    return sorted(listed | own | {"__version__"} & set(dir(holder)))


def _is_own(holder: Any, name: str, module: str) -> bool:
    value = vars(holder).get(name)
    if type(value).__name__ == "LazyLoader":
        return True
    if inspect.ismodule(value):
        return value.__name__ == f"{module}.{name}"
    return (
        str(getattr(value, "__module__", None) or "").partition(".")[0] == module.partition(".")[0]
    )


def _facts(holder: Any, name: str) -> dict[str, Any]:
    value = vars(holder).get(name) if inspect.ismodule(holder) else getattr(holder, name)
    if value is None and inspect.ismodule(holder):
        value = getattr(holder, name, None)
    if inspect.ismodule(value) or type(value).__name__ == "LazyLoader":
        return {"kind": "module", "of": []}
    if not callable(value):
        return {"kind": "attribute", "of": []}
    try:
        parameters = inspect.signature(value).parameters
    except (TypeError, ValueError):
        parameters = {}
    kind = "class" if inspect.isclass(value) else "function"
    needs = [
        [p.name, "needed" if p.default is p.empty else "optional"]
        for p in parameters.values()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY, p.POSITIONAL_ONLY)
        and p.name != "self"
        and not p.name.startswith("_")
    ]
    return {"kind": kind, "of": [needs]}


if __name__ == "__main__":
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = os.environ["DO_NOT_TRACK"] = "true"
    json.dump(inventory(), sys.stdout)
