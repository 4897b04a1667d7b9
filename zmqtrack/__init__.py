"""zmqtrack: experiment logs from training loops to experiment trackers, over ZeroMQ.

A training process imports this and needs pyzmq and msgpack alone.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from .errors import (
    ConfigError,
    ControlError,
    FrameError,
    RunFinished,
    SpoolError,
    ZMQTrackError,
)
from .run import Run, init

if TYPE_CHECKING:
    from .writers.mlflow import MLflowWriter
    from .writers.tensorboard import SummaryWriter
    from .writers.wandb import WandBWriter

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022 -- grouped: start here, writers, errors
    "init",
    "Run",
    "MLflowWriter",
    "SummaryWriter",
    "WandBWriter",
    "ConfigError",
    "ControlError",
    "FrameError",
    "RunFinished",
    "SpoolError",
    "ZMQTrackError",
    "__version__",
]

# A library's log goes where the program sends it; warnings reach stderr by logging's own
# last resort.
log = logging.getLogger("zmqtrack")

_WRITERS = {
    "MLflowWriter": "mlflow",
    "SummaryWriter": "tensorboard",
    "WandBWriter": "wandb",
}


def __getattr__(name: str) -> Any:
    """Writers are imported when they are named, to keep ``import zmqtrack`` quick."""
    if name in _WRITERS:
        from importlib import import_module

        return getattr(import_module(f".writers.{_WRITERS[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
