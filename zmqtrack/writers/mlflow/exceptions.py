"""MLflow's exceptions, so that ``except mlflow.exceptions.MlflowException`` catches ours.

Where the real package is loaded too, ours are its exceptions as well: it does not matter which of
the two a script names.
"""

from __future__ import annotations

import json
import sys
from typing import Any

__all__ = ["ExecutionException", "MissingConfigException", "MlflowException", "RestException"]

_STATUS = {"INVALID_PARAMETER_VALUE": 400, "RESOURCE_DOES_NOT_EXIST": 404, "NOT_IMPLEMENTED": 501}


class MlflowException(Exception):
    """What MLflow raises; ``message``, and ``error_code`` as a word."""

    def __init__(self, message: Any, error_code: str = "INTERNAL_ERROR", **more: Any) -> None:
        super().__init__(str(message))
        self.message = str(message)
        self.error_code = error_code
        self.json_kwargs = more

    def serialize_as_json(self) -> str:
        return json.dumps(
            {"error_code": self.error_code, "message": self.message, **self.json_kwargs}
        )

    def get_http_status_code(self) -> int:
        return _STATUS.get(self.error_code, 500)

    @classmethod
    def invalid_parameter_value(cls, message: Any, **more: Any) -> MlflowException:
        return cls(message, "INVALID_PARAMETER_VALUE", **more)


class RestException(MlflowException):
    """Never raised here: no call waits for a server."""


class ExecutionException(MlflowException):
    """Never raised here."""


class MissingConfigException(MlflowException):
    """Never raised here."""


def invalid(message: object, kind: type[Exception] = ValueError) -> MlflowException:
    """An argument that MLflow refuses too: an ``MlflowException`` that is a ``kind`` as well."""
    if isinstance(message, MlflowException):
        return message
    return _class(kind)(message, "INVALID_PARAMETER_VALUE")


def refused(what: str, instead: str) -> MlflowException:
    """A call whose result only a tracker has."""
    return _class(RuntimeError)(
        f"{what} asks the tracker, and a training with zmqtrack does not talk to it: {instead}",
        "NOT_IMPLEMENTED",
    )


def _class(kind: type[Exception]) -> type[MlflowException]:
    real = getattr(sys.modules.get("mlflow.exceptions"), "MlflowException", None)
    bases = (MlflowException, kind) if real is None else (MlflowException, real, kind)
    if bases not in _made:
        _made[bases] = type("MlflowException", bases, {"__module__": __name__})
    return _made[bases]


_made: dict[tuple[type, ...], type[MlflowException]] = {}
