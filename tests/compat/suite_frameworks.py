"""Frameworks that log by themselves, each with the syntax of each tool: small real trainings."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from .cases import HERE, Case, Skipped, Sources, command

#: Our training script (in ``drivers``) → the module that it needs.
FRAMEWORKS = {
    "lightning_logger": "lightning",
    "transformers_trainer": "transformers",
    "accelerate_tracker": "accelerate",
    "ignite_handler": "ignite",
    "stable_baselines3_logger": "stable_baselines3",
    "mmengine_backend": "mmengine",
}

#: What another run of the same training has otherwise: times, and names with a time in them.
VARIES = (
    "*runtime", "*_per_second", "*total_flos", "time/fps", "time/time_elapsed", "fps", "time",
    "data_time", "*/time", "*/data_time", "args*", "logging_dir", "config.py", "start_time", "env",
    "rollout_buffer", "_logger",
)  # fmt: skip


def cases(_sources: Sources) -> Iterator[Case | Skipped]:
    for script, module in FRAMEWORKS.items():
        for tool in ("tensorboard", "mlflow", "wandb"):
            name = f"{module}.{tool}"
            if find_spec(module) is None:
                yield Skipped(name, f"{module} is not installed")
            else:
                prepare = partial(_prepare, HERE / "drivers" / f"{script}.py", tool)
                yield Case(name, tool, prepare, VARIES, launched=tool != "wandb")


def _prepare(script: Path, tool: str, _folder: Path, here: bool) -> list[str]:
    return command(script, tool, alias=tool if here else "-")
