"""``python alias.py TOOL SCRIPT ARGUMENTS``: run a script with the tool's module replaced.

A framework imports its tracker by itself: there is no import to change. A user writes the lines
of ``replace`` at the head of the training script, before the framework is imported.
"""

from __future__ import annotations

import runpy
import sys


def replace(tool: str) -> None:
    if tool == "tensorboard":
        import tensorboardX
        import torch.utils.tensorboard

        import zmqtrack

        torch.utils.tensorboard.SummaryWriter = zmqtrack.SummaryWriter
        tensorboardX.SummaryWriter = zmqtrack.SummaryWriter
    elif tool == "wandb":
        import wandb  # noqa: F401 -- its submodules stay importable

        import zmqtrack.writers.wandb

        sys.modules["wandb"] = zmqtrack.writers.wandb
    else:
        import mlflow.tracking

        import zmqtrack.writers.mlflow

        client = getattr(zmqtrack.writers.mlflow, "MlflowClient", None)
        if client is not None:
            mlflow.tracking.MlflowClient = client
        sys.modules["mlflow"] = zmqtrack.writers.mlflow


if __name__ == "__main__":
    replace(sys.argv[1])
    del sys.argv[:2]
    sys.path[0] = sys.argv[0].rpartition("/")[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
