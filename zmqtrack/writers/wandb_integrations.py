"""What stands for the modules of ``wandb`` that call W&B from inside another library."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from ..run import Run as ZMQRun
from ._common import lose, note
from .wandb_errors import UsageError

__all__ = ["INTEGRATIONS", "Integration"]

INTEGRATIONS = frozenset({
    "catboost", "gym", "integration", "jupyter", "keras", "lightgbm", "sacred", "sklearn",
    "xgboost",
})  # fmt: skip


class Integration(ModuleType):
    """Charts that it would log (``sklearn.plot_…``) are counted; what it would make is refused.

    Args:
        active: gives the run that counts them, None before ``init``.
    """

    def __init__(self, name: str, active: Callable[[], ZMQRun | None]) -> None:
        super().__init__(f"wandb.{name}")
        self._active = active

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        what = f"{self.__name__.partition('.')[2]}.{name}"
        if name.startswith("plot_"):

            def plot(*args: Any, **kwargs: Any) -> None:
                run = self._active()
                if run is None:
                    note(what, "not logged: there is no active run")
                else:
                    lose(run, what, "a chart that W&B computes; log wandb.plot of your own")

            return plot
        raise UsageError(
            f"wandb.{what} logs with the real wandb, past zmqtrack: log what it would with "
            "wandb.log from the library's own callback, or import the real package for it"
        )
