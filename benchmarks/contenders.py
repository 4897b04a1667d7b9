"""Who is measured: how to open each logger, and the very statement that a user writes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["CONTENDERS", "Contender", "Direct", "Statement"]

#: The names that a statement uses, and what closes the logger.
Opened = tuple[dict[str, Any], Callable[[], object]]

_TEN = ", ".join(f'"k{i}": value' for i in range(10))


@dataclass(frozen=True)
class Statement:
    """``code`` logs ``value`` at ``step``. ``versus``: zmqtrack's own of the same syntax."""

    id: str
    title: str
    code: str
    metrics: int = 1
    versus: str = ""


@dataclass(frozen=True)
class Direct(Statement):
    """A statement for the rate into the logger's own files, ``size`` names how many metrics."""

    size: str = ""


@dataclass(frozen=True)
class Contender:
    """One logger, measured in a process of its own. ``open`` gets a folder and a URI."""

    name: str
    requires: tuple[str, ...]
    open: Callable[[Path, str], Opened]
    statements: tuple[Statement, ...]
    direct: tuple[Direct, ...] = ()
    uri: str = ""  # which URI it wants: "daemon", "nobody", "sqlite" or "server"


# --- zmqtrack ----------------------------------------------------------------------------


def _run(folder: Path, uri: str) -> Opened:
    import zmqtrack

    run = zmqtrack.init("bench", "run", "site", uri)
    return {"run": run}, lambda: run.finish(timeout=_patience(uri))


def _summary_writer(folder: Path, uri: str) -> Opened:
    from zmqtrack import SummaryWriter

    writer = SummaryWriter(str(folder / "runs"), address=uri)
    return {"writer": writer}, lambda: writer.run.finish(timeout=_patience(uri))


def _mlflow_writer(folder: Path, uri: str) -> Opened:
    import zmqtrack.writers.mlflow as mlflow
    from zmqtrack.writers.mlflow import MLflowWriter

    writer = MLflowWriter(address=uri)
    run = writer.start_run().zmq_run
    names = {"writer": writer, "mlflow": mlflow}
    return names, lambda: run.finish(timeout=_patience(uri))


def _wandb_writer(folder: Path, uri: str) -> Opened:
    import zmqtrack.writers.wandb as wandb

    run = wandb.init(project="bench", address=uri)

    def close() -> None:
        run.zmq_run.finish(timeout=_patience(uri))
        wandb.finish()

    return {"wandb": wandb}, close


def _patience(uri: str) -> float:
    """Port 1 is where nobody is: nothing to wait for."""
    return 0.0 if uri.endswith(":1") else 60.0


def _zmqtrack(uri: str) -> list[Contender]:
    end = "" if uri == "daemon" else ", no daemon"
    id = "zmqtrack" if uri == "daemon" else "zmqtrack-alone"
    metric = f"{id}/log_metric"
    return [
        Contender(
            metric,
            (),
            _run,
            (Statement(metric, f"Run.log_metric{end}", 'run.log_metric("loss", value, step)'),),
            uri=uri,
        ),
        Contender(
            f"{id}/tensorboard",
            (),
            _summary_writer,
            (
                Statement(
                    f"{id}/tensorboard",
                    f"SummaryWriter.add_scalar{end}",
                    'writer.add_scalar("loss", value, step)',
                ),
            ),
            uri=uri,
        ),
        Contender(
            f"{id}/mlflow",
            (),
            _mlflow_writer,
            (
                Statement(
                    f"{id}/mlflow",
                    f"MLflowWriter.log_metric{end}",
                    'writer.log_metric("loss", value, step)',
                ),
            ),
            uri=uri,
        ),
        Contender(
            f"{id}/wandb",
            (),
            _wandb_writer,
            (
                Statement(f"{id}/wandb", f"wandb.log, 1 key{end}", 'wandb.log({"loss": value})'),
                Statement(
                    f"{id}/wandb-10", f"wandb.log, 10 keys{end}", f"wandb.log({{{_TEN}}})", 10
                ),
            ),
            uri=uri,
        ),
    ]


# --- the others ----------------------------------------------------------------------------


def _tensorboardx(folder: Path, uri: str) -> Opened:
    from tensorboardX import SummaryWriter

    writer = SummaryWriter(str(folder))
    return {"writer": writer}, writer.close


def _torch(folder: Path, uri: str) -> Opened:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))
    return {"writer": writer}, writer.close


def _wandb(folder: Path, uri: str) -> Opened:
    import wandb

    run = wandb.init(project="bench", dir=str(folder), mode="offline", reinit="create_new")
    return {"run": run}, run.finish


def _mlflow(folder: Path, uri: str) -> Opened:
    import mlflow
    from mlflow.entities import Metric

    mlflow.set_tracking_uri(uri)
    run = mlflow.start_run()
    names = {"mlflow": mlflow, "client": mlflow.MlflowClient(uri), "Metric": Metric}
    names |= {"run_id": run.info.run_id, "stamp": int(time.time() * 1000)}

    def close() -> None:
        if getattr(mlflow, "flush_async_logging", None):
            mlflow.flush_async_logging()
        mlflow.end_run()

    return names, close


_SCALAR = 'writer.add_scalar("loss", value, step)'
_METRIC = 'mlflow.log_metric("loss", value, step=step)'
_BATCH = (
    'client.log_batch(run_id, [Metric("loss", value, stamp, step * 1000 + i) for i in range(1000)])'
)
_ASYNC = 'mlflow.log_metric("loss", value, step=step, synchronous=False)'
_TB, _WANDB, _MLFLOW = "zmqtrack/tensorboard", "zmqtrack/wandb", "zmqtrack/mlflow"

CONTENDERS: tuple[Contender, ...] = (
    *_zmqtrack("daemon"),
    *_zmqtrack("nobody"),
    Contender(
        "tensorboardX",
        ("tensorboardX",),
        _tensorboardx,
        (Statement("tensorboardX", "tensorboardX add_scalar", _SCALAR, versus=_TB),),
        (
            Direct(
                "tensorboardX",
                "tensorboardX add_scalar, its own files",
                _SCALAR,
                versus="tensorboard/1",
                size="tensorboard",
            ),
        ),
    ),
    Contender(
        "torch",
        ("torch", "tensorboard"),
        _torch,
        (Statement("torch", "torch SummaryWriter add_scalar", _SCALAR, versus=_TB),),
        (
            Direct(
                "torch",
                "torch SummaryWriter add_scalar, its own files",
                _SCALAR,
                versus="tensorboard/1",
                size="tensorboard",
            ),
        ),
    ),
    Contender(
        "wandb",
        ("wandb",),
        _wandb,
        (
            Statement(
                "wandb", "wandb offline log, 1 key", 'run.log({"loss": value})', versus=_WANDB
            ),
            Statement(
                "wandb-10",
                "wandb offline log, 10 keys",
                f"run.log({{{_TEN}}})",
                10,
                versus=f"{_WANDB}-10",
            ),
        ),
        (
            Direct(
                "wandb",
                "wandb offline log, 1 key, its own files",
                'run.log({"loss": value})',
                versus="wandb/1",
                size="wandb",
            ),
        ),
    ),
    Contender(
        "mlflow-sqlite",
        ("mlflow", "sqlalchemy"),
        _mlflow,
        (
            Statement("mlflow-sqlite", "MLflow log_metric, SQLite", _METRIC, versus=_MLFLOW),
            Statement("mlflow-async", "MLflow log_metric, SQLite, async", _ASYNC, versus=_MLFLOW),
        ),
        (
            Direct(
                "mlflow-sqlite",
                "MLflow log_metric, SQLite",
                _METRIC,
                versus="mlflow/1",
                size="mlflow",
            ),
            Direct(
                "mlflow-sqlite-batch",
                "MLflow log_batch of 1,000, SQLite",
                _BATCH,
                1000,
                versus="mlflow/1",
                size="mlflow",
            ),
        ),
        uri="sqlite",
    ),
    Contender(
        "mlflow-server",
        ("mlflow", "sqlalchemy"),
        _mlflow,
        (Statement("mlflow-server", "MLflow log_metric, HTTP server", _METRIC, versus=_MLFLOW),),
        (
            Direct(
                "mlflow-server",
                "MLflow log_metric, HTTP server",
                _METRIC,
                versus="mlflow/1",
                size="mlflow",
            ),
            Direct(
                "mlflow-server-batch",
                "MLflow log_batch of 1,000, HTTP server",
                _BATCH,
                1000,
                versus="mlflow/1",
                size="mlflow",
            ),
        ),
        uri="server",
    ),
)
