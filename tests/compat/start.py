"""``python start.py TOOL SCRIPT ARGUMENTS``: run a script with the same random numbers each time.

With a TOOL that is not ``-``, the tool's module is replaced first: a framework imports its tracker
by itself, and there is no import to change. A user writes the lines of ``replace`` at the head of
the training script, before the framework is imported.
"""

from __future__ import annotations

import os
import random
import runpy
import socket
import sys
from importlib.util import find_spec
from pathlib import Path


def replace(tool: str) -> None:
    if tool == "tensorboard":
        import tensorboardX
        import torch.utils.tensorboard

        import zmqtrack

        torch.utils.tensorboard.SummaryWriter = zmqtrack.SummaryWriter
        tensorboardX.SummaryWriter = zmqtrack.SummaryWriter
    elif tool == "wandb":
        import wandb
        import wandb.wandb_run

        import zmqtrack.writers.wandb as ours

        wandb.wandb_run.Run = ours.Run
        ours.__path__ = wandb.__path__  # submodules are W&B's own
        sys.modules["wandb"] = ours
        replace("tensorboard")  # for sync_tensorboard
    elif tool == "mlflow":
        import mlflow.tracking

        import zmqtrack.writers.mlflow  # MLflow's own functions log to it from now on

        mlflow.tracking.MlflowClient = zmqtrack.writers.mlflow.MlflowClient


def seed() -> None:
    random.seed(0)
    if find_spec("numpy"):
        import numpy

        numpy.random.seed(0)
    if find_spec("torch"):
        import torch

        torch.manual_seed(0)


def name_machine() -> None:
    """Let the machine be called by the case, where that names no site."""
    name = os.environ.get("COMPAT_HOST")
    if name:
        socket.gethostname = lambda: name


if __name__ == "__main__":
    name_machine()
    replace(sys.argv[1])
    seed()
    del sys.argv[:2]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    sys.path.append(str(Path.cwd()))
    runpy.run_path(sys.argv[0], run_name="__main__")
