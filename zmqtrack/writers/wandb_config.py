"""W&B's ``config`` and ``summary``: dictionaries whose items are logged when they are set."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from ..records import as_number
from ..run import Run as ZMQRun
from ..run import _plain
from .wandb_media import Media
from .wandb_values import carried_key, friendly, is_number

__all__ = ["Config", "Early", "Summary", "as_dict"]


class _Items(MutableMapping[str, Any]):
    """A dictionary whose items are attributes too."""

    def __init__(self) -> None:
        object.__setattr__(self, "_items", {})

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __setitem__(self, key: str, value: Any) -> None:
        raise NotImplementedError

    def __delitem__(self, key: str) -> None:
        del self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __getattr__(self, key: str) -> Any:
        try:
            return self._items[key]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no {key!r}") from None

    def __setattr__(self, key: str, value: Any) -> None:
        self[key] = value

    def __repr__(self) -> str:
        return repr(self._items)


class _Configuration(_Items):
    """W&B's ways to set many items at once."""

    def update(  # type: ignore[override] # W&B's own signature
        self, d: Any = (), allow_val_change: bool | None = None, **more: Any
    ) -> None:
        """Set many items, of a dictionary, an ``argparse.Namespace`` or absl's flags."""
        for key, value in {**as_dict(d), **more}.items():
            self[key] = value

    def update_locked(self, d: Any, user: str | None = None, _allow: bool | None = None) -> None:
        """The same here."""
        self.update(d)

    def merge_locked(
        self, d: Any, user: str | None = None, _allow_val_change: bool | None = None
    ) -> None:
        """Set many items; a dictionary is merged into the one that is there. Nothing is locked."""
        for key, value in as_dict(d).items():
            self[key] = _merged(self.get(key), value)

    def setdefaults(self, d: Any) -> None:
        """Set those items that are not there."""
        for key, value in as_dict(d).items():
            self.setdefault(key.strip("-"), value)

    def as_dict(self) -> dict[str, Any]:
        """A copy."""
        return dict(self._items)


class Config(_Configuration):
    """A run's configuration; each item that is set is logged as a param.

    Setting another value logs it too, where W&B asks for ``allow_val_change``.
    """

    def __init__(self, run: ZMQRun) -> None:
        super().__init__()
        object.__setattr__(self, "_run", run)

    def __setitem__(self, key: str, value: Any) -> None:
        key = key.strip("-")
        value = _plain(friendly(value, names=True), fallback=str)
        if key not in self._items or self._items[key] != value:
            if name := carried_key(self._run, key):
                self._run.log_param(name, value)
            self._items[key] = value

    def persist(self) -> None:
        """Nothing to do: each item is logged when it is set."""


class Early(_Configuration):
    """``wandb.config`` before ``wandb.init``: what is set is logged when the run begins.

    Raises:
        Error: an item is read that was not set.
    """

    def __init__(self, error: Callable[[str], Exception]) -> None:
        super().__init__()
        object.__setattr__(self, "_error", error)

    def __setitem__(self, key: str, value: Any) -> None:
        self._items[key] = value

    def __getattr__(self, key: str) -> Any:
        if key in self._items or key.startswith("__"):
            return super().__getattr__(key)
        raise self._error(f"You must call wandb.init() before wandb.config.{key}")


class Summary(_Items):
    """A run's last values; :mod:`zmqtrack.writers.wandb` says how assigned ones are logged."""

    def __init__(self, run: ZMQRun) -> None:
        super().__init__()
        object.__setattr__(self, "_run", run)

    def __setitem__(self, key: str, value: Any) -> None:
        value = friendly(value)
        if isinstance(value, Mapping):
            for inner, part in value.items():
                self[f"{key}.{inner}"] = part
            return
        if name := carried_key(self._run, f"summary/{key}"):
            if isinstance(value, Media):
                value.log_to(self._run, name, None)
            elif is_number(value):
                self._run.log_metric(name, as_number(name, value))
            else:
                self._run.set_tag(name, value)
        self._items[key] = value

    def update(self, d: Any = (), **more: Any) -> None:  # type: ignore[override]
        for key, value in {**as_dict(d), **more}.items():
            self[key] = value


def _merged(old: Any, new: Any) -> Any:
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return new
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}


def as_dict(items: Any) -> dict[str, Any]:
    """A dictionary of what W&B takes as config."""
    if items is None:
        return {}
    if isinstance(items, Mapping):
        return dict(items)
    if hasattr(items, "flag_values_dict"):  # absl
        return dict(items.flag_values_dict())
    if isinstance(items, (str, os.PathLike)):
        return _read_config(Path(items))
    if hasattr(items, "__dict__") and not isinstance(items, type(sys)):
        return dict(vars(items))
    return dict(items)


def _read_config(path: Path) -> dict[str, Any]:
    """A file of YAML, or of JSON where PyYAML is not installed."""
    text = path.read_text(encoding="utf-8")
    try:
        import yaml
    except ImportError:
        loaded = json.loads(text)
    else:
        loaded = yaml.safe_load(text)
    if not isinstance(loaded, dict):
        raise TypeError(f"{path}: expected a dictionary, found {type(loaded).__name__}")
    # W&B's own files hold each value under `value`.
    return {
        key: item["value"] if isinstance(item, dict) and "value" in item else item
        for key, item in loaded.items()
        if key != "wandb_version"
    }
