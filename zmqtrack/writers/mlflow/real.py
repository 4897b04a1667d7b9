"""The real package ``mlflow`` in the same process: its logging goes where ours goes.

A script that begins with ``import zmqtrack.writers.mlflow as mlflow`` and has ``import
mlflow.sklearn`` further down binds the name ``mlflow`` to the real package: from there on all would
go to ``./mlflow.db``, without a word. So what a script meets of the real package, its logging
functions, ``MlflowClient()`` without an address, and the ``log_model`` and ``autolog`` of its
flavours, is told to come to us; the first such call says so. The files of a model are logged as
artifacts; those of the last models are also kept until the process ends, so that
``load_model(info.model_uri)`` finds them.

A script that took ``MLflowWriter`` alone meant to have both: then nothing is changed
(:func:`leave_alone`). ``MlflowClient(tracking_uri=…)`` is always MLflow's own.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from .. import _watch
from .._common import lose, note
from .names import MODULES

__all__ = ["leave_alone", "watch"]

#: Names of the real package that neither log nor ask; ``run`` starts another process.
_LEFT = MODULES | {"ActiveModel", "ActiveRun", "Image", "MlflowClient", "MlflowException", "run"}

_INSTEAD = (
    "this script has imported MLflow's own package beside zmqtrack.writers.mlflow; what its "
    "functions log goes the way of zmqtrack, not to MLflow's tracking URI. To use both, each on "
    "its own, import MLflowWriter from zmqtrack.writers.mlflow instead of the module"
)

_MISSING = (
    "No module named 'mlflow': zmqtrack.writers.mlflow needs none of it, but its own modules "
    "(mlflow.sklearn, mlflow.models …) are MLflow's: `pip install mlflow` beside zmqtrack, or take "
    "them away"
)

#: Folders of models that are kept for ``load_model``; an older one goes.
KEPT = 8
_kept: list[str] = []

_alone = False


def leave_alone() -> None:
    """From now on the real package logs for itself."""
    global _alone
    _alone = True


def watch(ours: ModuleType) -> None:
    """Let the real package log to ``ours`` once it is imported, or where it is already."""
    _watch.watch("mlflow", lambda real: _adopt(real, ours), _MISSING)


def _adopt(real: ModuleType, ours: ModuleType) -> None:
    """Let what a script meets in this module of MLflow's come to us."""
    parts = real.__name__.split(".")
    if parts == ["mlflow"]:
        for name in getattr(real, "__all__", ()):
            if name in vars(real) and name not in _LEFT and hasattr(ours, name):
                setattr(real, name, _chosen(getattr(real, name), getattr(ours, name)))
    has_client = parts in (["mlflow"], ["mlflow", "tracking"], ["mlflow", "client"])
    if has_client and isinstance(client := vars(real).get("MlflowClient"), type):
        real.MlflowClient = _client(client, ours)  # type: ignore[attr-defined]
    if parts == ["mlflow", "models", "model"]:
        log = vars(real.Model)["log"].__func__
        real.Model.log = classmethod(_chosen(log, functools.partial(_log_model, ours)))
    if len(parts) == 2 and callable(vars(real).get("autolog")):
        autolog = ours._answer(f"{parts[1]}.autolog")
        real.autolog = _chosen(real.autolog, autolog)  # type: ignore[attr-defined]


def _chosen(theirs: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
    """Ours, unless the real package was to be left alone."""
    if hasattr(theirs, "_zmqtrack"):
        return theirs

    @functools.wraps(theirs)
    def call(*args: Any, **kwargs: Any) -> Any:
        if _alone:
            return theirs(*args, **kwargs)
        note("mlflow", _INSTEAD)
        return ours(*args, **kwargs)

    call._zmqtrack = True  # type: ignore[attr-defined]
    return call


@functools.cache
def _client(theirs: Any, ours: ModuleType) -> Any:
    """``MlflowClient()`` of a script is ours; with an address, or made by MLflow, it is theirs."""
    if hasattr(theirs, "_zmqtrack"):
        return theirs

    class MlflowClient(theirs):  # type: ignore[misc]
        _zmqtrack = True

        def __new__(cls, tracking_uri: Any = None, *args: Any, **kwargs: Any) -> Any:
            caller = sys._getframe(1).f_globals.get("__name__", "").partition(".")[0]
            if _alone or tracking_uri is not None or caller == "mlflow" or cls is not MlflowClient:
                return super().__new__(cls)
            note("mlflow", _INSTEAD)
            return ours.MlflowClient()

    return MlflowClient


def _folder_to_keep() -> str:
    if not _kept:
        atexit.register(_forget_models, 0)
    _kept.append(tempfile.mkdtemp(prefix="zmqtrack-model-"))
    _forget_models(KEPT)
    return _kept[-1]


def _forget_models(but: int) -> None:
    while len(_kept) > but:
        shutil.rmtree(_kept.pop(0), ignore_errors=True)


def _log_model(
    ours: ModuleType,
    cls: Any,
    artifact_path: str | None = None,
    flavor: Any = None,
    registered_model_name: str | None = None,
    await_registration_for: Any = None,
    metadata: Any = None,
    run_id: str | None = None,
    resources: Any = None,
    auth_policy: Any = None,
    prompts: Any = None,
    name: str | None = None,
    model_type: str | None = None,
    params: Any = None,
    tags: Any = None,
    step: int = 0,
    model_id: str | None = None,
    **options: Any,
) -> Any:
    """``Model.log``: the model is saved as MLflow saves it, its files are logged as artifacts."""
    folder = _folder_to_keep()
    options.pop("flavor_name", None)
    path = Path(folder, "model")
    active = ours.active_run() or ours.start_run()
    model = cls(
        artifact_path=str(path), run_id=run_id or active.info.run_id, metadata=metadata,
        resources=resources, auth_policy=auth_policy,
    )  # fmt: skip
    flavor.save_model(path=str(path), mlflow_model=model, **options)
    ours.log_artifacts(path, name or artifact_path or "model", run_id)
    lost = {"registered_model_name": registered_model_name, "prompts": prompts, "params": params,
            "tags": tags}  # fmt: skip
    for what in [what for what, given in lost.items() if given]:
        lose(active.zmq_run, f"log_model_{what}", "a model's files are logged, and nothing else")
    info = model.get_model_info()
    info._model_uri = str(path)
    return info
