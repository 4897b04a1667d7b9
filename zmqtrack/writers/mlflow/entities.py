"""MLflow's entities, as far as a logging script meets them: small objects with its attributes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from .exceptions import invalid, refused

__all__ = [
    "Experiment", "LifecycleStage", "Metric", "Param", "Run", "RunData", "RunInfo", "RunStatus",
    "RunTag", "SourceType", "ViewType",
]  # fmt: skip


class _Entity(SimpleNamespace):
    """Attributes; iterating gives (name, value), as MLflow's entities do."""

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter(vars(self).items())


class Metric(_Entity):
    def __init__(self, key: str, value: Any, timestamp: int, step: int, **more: Any) -> None:
        super().__init__(key=key, value=value, timestamp=timestamp, step=step, **more)


class Param(_Entity):
    def __init__(self, key: str, value: Any) -> None:
        super().__init__(key=key, value=value)


class RunTag(_Entity):
    def __init__(self, key: str, value: Any) -> None:
        super().__init__(key=key, value=value)


class Experiment(_Entity):
    """``name``, and the same as ``experiment_id``: trackers make it with the first run in it."""

    def __init__(self, name: str) -> None:
        super().__init__(
            experiment_id=name,
            name=name,
            artifact_location=None,
            lifecycle_stage=LifecycleStage.ACTIVE,
            tags={},
            creation_time=None,
            last_update_time=None,
        )


class RunInfo(_Entity):
    """Whose run it is; ``run_id``, ``run_name`` and ``experiment_id`` are names."""

    def __init__(
        self, run: str, experiment: str, *, user: str = "unknown", artifact_uri: str | None = None
    ) -> None:
        super().__init__(
            run_id=run,
            run_uuid=run,
            run_name=run,
            experiment_id=experiment,
            user_id=user,
            status="RUNNING",
            start_time=int(time.time() * 1000),
            end_time=None,
            lifecycle_stage=LifecycleStage.ACTIVE,
            artifact_uri=artifact_uri,
        )


class RunData(_Entity):
    def __init__(self, metrics: Any, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        super().__init__(metrics=metrics, params=dict(params), tags=dict(tags))


class Run:
    """``info`` and ``data``."""

    def __init__(self, info: RunInfo, data: RunData) -> None:
        self.info = info
        self.data = data
        self.inputs = self.outputs = None

    def to_dictionary(self) -> dict[str, Any]:
        return {"info": dict(self.info), "data": dict(self.data)}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.info.run_name!r} {self.info.status}>"


class Unread:
    """What a call returns whose result only a tracker has: it may be kept, but not read.

    As a context manager it gives itself, so that ``with mlflow.start_span(…)`` runs.
    """

    def __init__(self, what: str, instead: str) -> None:
        self.__dict__.update(_what=what, _instead=instead)

    def _refusal(self) -> Exception:
        return refused(self._what, self._instead)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name.startswith(("set_", "add_", "record_", "end", "log_")):
            return lambda *args, **kwargs: None  # of a span: what is told to it goes nowhere
        raise self._refusal()

    def __getitem__(self, key: Any) -> Any:
        raise self._refusal()

    def __iter__(self) -> Iterator[Any]:
        raise self._refusal()

    def __len__(self) -> int:
        raise self._refusal()

    def __contains__(self, key: object) -> bool:
        raise self._refusal()

    def __bool__(self) -> bool:
        return False

    def __enter__(self) -> Unread:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def __repr__(self) -> str:
        return f"<{self._what}: not known here>"


class _Words:
    """Constants of a class that are words or, in MLflow's protocol, numbers."""

    @classmethod
    def _known(cls) -> dict[str, int]:
        return {word: n for word, n in vars(cls).items() if word.isupper()}

    @classmethod
    def from_string(cls, word: str) -> int:
        try:
            return cls._known()[word]
        except KeyError:
            raise invalid(f"{word!r} is unknown; known are {', '.join(cls._known())}") from None

    @classmethod
    def to_string(cls, number: int) -> str:
        for word, value in cls._known().items():
            if value == number:
                return word
        raise invalid(f"{number!r} is unknown; known are {cls._known()}")


class RunStatus(_Words):
    RUNNING, SCHEDULED, FINISHED, FAILED, KILLED = 1, 2, 3, 4, 5

    @classmethod
    def all_status(cls) -> list[int]:
        return list(cls._known().values())

    @classmethod
    def is_terminated(cls, status: int) -> bool:
        return status in (cls.FINISHED, cls.FAILED, cls.KILLED)


class SourceType(_Words):
    NOTEBOOK, JOB, PROJECT, LOCAL, UNKNOWN = 1, 2, 3, 4, 5


class ViewType(_Words):
    ACTIVE_ONLY, DELETED_ONLY, ALL = 1, 2, 3


class LifecycleStage:
    ACTIVE, DELETED = "active", "deleted"
