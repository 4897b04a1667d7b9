"""How one comes to the objects of ours that stand for a tool's, by title of the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from names_probe import Place


def _writer(module: Any) -> Any:
    return module.SummaryWriter("runs/mine/first")


def _summary_writer(module: Any) -> Any:
    """A writer whose ``__init__`` is the making of one."""
    return _Making(module.SummaryWriter, lambda: _writer(module))


class _Making:
    """Names of a class and of an object of it; ``__init__`` makes another one."""

    def __init__(self, kind: Any, make: Any) -> None:
        self._kind, self._make = kind, make

    def __getattribute__(self, name: str) -> Any:
        kind, make = (object.__getattribute__(self, part) for part in ("_kind", "_make"))
        return kind if name == "__init__" else getattr(make(), name)


def _mlflow(module: Any) -> Any:
    return _Started(module)


class _Started:
    """MLflow's module; a run has begun, but where the name begins one."""

    BEGIN = frozenset({"start_run", "set_experiment", "create_experiment", "set_tracking_uri"})

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattribute__(self, name: str) -> Any:
        module = object.__getattribute__(self, "_module")
        if name not in _Started.BEGIN:
            module.set_experiment("mine")
            module.start_run(run_name="first")
        return getattr(module, name)


def _wandb(module: Any) -> Any:
    return _Initialised(module)


class _Initialised:
    """W&B's module; ``init`` has been called, but where the name is that."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattribute__(self, name: str) -> Any:
        module = object.__getattribute__(self, "_module")
        if name not in ("init", "__class__"):
            _begun(module)
        return getattr(module, name)


def _begun(module: Any) -> Any:
    return module.init(project="mine", name="first")


def _artifact(module: Any) -> Any:
    _begun(module)
    artifact = module.Artifact("name", "dataset")
    artifact.add_file(str(Path.cwd() / "file.txt"))
    return artifact


def _log(module: Any, thing: Any) -> None:
    """Log what has been made, if it is something to log."""
    from zmqtrack.writers.wandb_media import Media

    if module.run is None:
        return
    if isinstance(thing, Media):
        module.log({"thing": thing})
    elif isinstance(thing, module.Artifact):
        module.log_artifact(thing)


PLACES = {
    place.title: place
    for place in (
        Place("tensorboard.SummaryWriter", "tensorboard", _summary_writer),
        Place("tensorboard", "tensorboard", lambda module: module),
        Place(
            "tensorboard.GlobalSummaryWriter",
            "tensorboard",
            lambda module: module.GlobalSummaryWriter("runs/mine/first"),
        ),
        Place(
            "tensorboard.FileWriter",
            "tensorboard",
            lambda module: _writer(module).file_writer,
        ),
        Place("mlflow", "mlflow", _mlflow),
        Place("mlflow.MlflowClient", "mlflow", lambda module: module.MlflowClient()),
        Place("mlflow.ActiveRun", "mlflow", lambda module: module.start_run(run_name="first")),
        Place("wandb", "wandb", _wandb, _log),
        Place("wandb.Run", "wandb", _begun, _log),
        Place("wandb.Config", "wandb", lambda module: _begun(module).config),
        Place("wandb.Summary", "wandb", lambda module: _begun(module).summary),
        Place("wandb.Artifact", "wandb", _artifact, _log),
        Place("wandb.Table", "wandb", lambda m: [_begun(m), m.Table(["a"], [[1]])][1], _log),
        Place("wandb.Image", "wandb", lambda m: [_begun(m), m.Image([[1]])][1], _log),
        Place("wandb.plot", "wandb", lambda module: module.plot),
    )
}
