"""The real package ``wandb`` in the same process: its logging goes where ours goes.

``import wandb.plot`` behind ``import zmqtrack.writers.wandb as wandb`` binds the name to the real
package. So what a script meets there is ours from then on: the functions that log, the classes of
what is logged, and ``run``, ``config`` and ``summary`` as they change; the first call says so.
W&B's own modules, integrations among them, find ours through the package. What asks W&B's server
(``Api``, ``sweep``, ``agent``) stays W&B's.

A script that took ``WandBWriter`` alone, or has begun a run of W&B's own before, meant to have
both: then nothing is changed (:func:`leave_alone`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

from . import wandb_media as media
from ._common import note
from ._watch import watch as _watch
from .wandb_plot import CustomChart

__all__ = ["as_ours", "follow", "leave_alone", "watch"]

#: Functions of the package that log, or begin and end a run.
_FUNCTIONS = (
    "alert", "attach", "define_metric", "finish", "init", "join", "link_model", "log",
    "log_artifact", "log_code", "log_model", "login", "mark_preempting", "pin_config_keys",
    "restore", "save", "teardown", "unwatch", "use_artifact", "use_model", "watch",
)  # fmt: skip
#: What those are given, or raise.
_OTHERS = (
    "Artifact", "Audio", "Classes", "CommError", "Error", "EvalTable", "Graph", "Histogram", "Html",
    "Image", "JoinedTable", "Molecule", "Object3D", "Plotly", "Table", "UsageError", "Video",
    "box3d", "plot", "plot_table", "tensorboard", "visualize",
)  # fmt: skip
_CHANGING = ("run", "config", "summary")

_INSTEAD = (
    "this script has imported W&B's own package beside zmqtrack.writers.wandb; what its functions "
    "log goes the way of zmqtrack, not to W&B. To use both, each on its own, import WandBWriter "
    "from zmqtrack.writers.wandb instead of the module"
)
_MISSING = (
    "No module named 'wandb': zmqtrack.writers.wandb needs none of it, but its own modules "
    "(wandb.integration, wandb.errors …) are W&B's: `pip install wandb` beside zmqtrack, or take "
    "them away"
)

_alone = False
#: The package, and what stood in it, where it has been adopted.
_adopted: tuple[ModuleType, dict[str, Any]] | None = None


def leave_alone() -> None:
    """The real package logs for itself, as if it had never been changed."""
    global _alone, _adopted
    _alone = True
    if _adopted is not None:
        real, theirs = _adopted
        vars(real).update(theirs)
        _adopted = None


def watch(ours: ModuleType) -> None:
    """Let the real package log to ``ours`` once it is imported, or where it is already."""
    _watch("wandb", lambda real: _adopt(real, ours), _MISSING)


def follow(ours: ModuleType) -> None:
    """Let the package show the run that is active now, its config and its summary."""
    if _adopted is not None:
        vars(_adopted[0]).update({name: getattr(ours, name) for name in _CHANGING})


def _adopt(real: ModuleType, ours: ModuleType) -> None:
    global _adopted
    if real.__name__ != "wandb" or real is ours or _alone or vars(real).get("run") is not None:
        return
    names = [name for name in (*_FUNCTIONS, *_OTHERS) if name in vars(real) and hasattr(ours, name)]
    if _adopted is None or _adopted[0] is not real:
        _adopted = real, {name: vars(real).get(name) for name in (*names, *_CHANGING)}
    for name in names:
        found = getattr(ours, name)
        setattr(real, name, _telling(found) if name in _FUNCTIONS else found)
    follow(ours)


def _telling(ours: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(ours)
    def call(*args: Any, **kwargs: Any) -> Any:
        note("wandb", _INSTEAD)
        return ours(*args, **kwargs)

    return call


def as_ours(value: Any) -> Any:
    """An object of W&B's own, which a module of its package has made, as one of ours.

    What has no counterpart here is returned as it is.
    """
    if not type(value).__module__.startswith("wandb."):
        return value
    match type(value).__name__:
        case "Image":
            return media.Image(value.image, caption=value._caption)
        case "Histogram":
            return media.Histogram(np_histogram=(value.histogram, value.bins))
        case "Html":
            return media.Html(value.html, data_is_not_path=True)
        case "Table":
            rows = [[as_ours(cell) for cell in row] for row in value.data]
            return media.Table(columns=value.columns, data=rows)
        case "CustomChart":
            spec = value.spec
            return CustomChart(
                spec.spec_name, as_ours(value.table), spec.fields, spec.string_fields
            )
        case "Audio" | "Video" | "Object3D" | "Molecule" as kind:
            return getattr(media, kind)(value._path, caption=getattr(value, "_caption", None))
    return value
