"""W&B's exceptions, which stand below zmqtrack's own."""

from __future__ import annotations

from ..errors import ZMQTrackError

__all__ = ["AuthenticationError", "CommError", "Error", "UnsupportedError", "UsageError"]


class Error(ZMQTrackError):
    """Stands for ``wandb.Error``."""


class CommError(Error):
    """Stands for ``wandb.CommError``; nothing here raises it."""


class AuthenticationError(CommError):
    """Stands for ``wandb.errors.AuthenticationError``; nothing here raises it."""


class UsageError(Error):
    """Stands for ``wandb.UsageError``."""


class UnsupportedError(UsageError):
    """Stands for ``wandb.errors.UnsupportedError``; nothing here raises it."""
