"""Who takes part. Imports nothing, so that the launcher need not load PyTorch."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["EXPERIMENT", "PEER_GONE", "RUN", "SERVER", "SITES"]

EXPERIMENT, RUN, SERVER = "federated-digits", "fedavg", "server"

#: Exit code of a process that gave up because another one had ended.
PEER_GONE = 75


class Plan(NamedTuple):
    """A site's program, and its share of the training data."""

    module: str
    syntax: str
    share: float


SITES = {
    "site-1": Plan("examples.demo.site_tensorboard", "TensorBoard", 0.55),
    "site-2": Plan("examples.demo.site_mlflow", "MLflow", 0.30),
    "site-3": Plan("examples.demo.site_wandb", "Weights & Biases", 0.15),
}
