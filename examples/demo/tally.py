"""What a site has logged, or what a tracker has of it: to be compared, one with the other."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["KINDS", "Tally"]

#: The rows of the table at the end.
KINDS = ("metric", "param", "tag", "text", "image", "histogram", "artifact", "run")


class Tally:
    """Metrics, params and tags with their values; of what is large, how often it is there."""

    def __init__(self, facts: Mapping[str, Any] | None = None) -> None:
        self._facts: dict[str, Any] = dict.fromkeys(KINDS, 0)
        self._facts |= {"metric": [], "param": [], "tag": [], "run": "running"}
        self._facts |= facts or {}

    def metric(self, key: str, value: float, step: int | None) -> None:
        # TensorBoard keeps 32 bits of a number. Compared are those, from all trackers.
        (short,) = struct.unpack("f", struct.pack("f", value))
        self._facts["metric"].append([key, step, short])

    def metrics(self, values: Mapping[str, float], step: int | None) -> None:
        for key, value in values.items():
            self.metric(key, value, step)

    def params(self, values: Mapping[str, Any]) -> None:
        self._facts["param"] += [[key, str(value)] for key, value in values.items()]

    def tags(self, values: Mapping[str, str]) -> None:
        self._facts["tag"] += [[key, value] for key, value in values.items()]

    def more(self, kind: str, n: int = 1) -> None:
        """``n`` more texts, images, histograms or artifacts."""
        self._facts[kind] += n

    def end(self, status: str) -> None:
        self._facts["run"] = status

    def __getitem__(self, kind: str) -> Any:
        """All of one kind, in no particular order: equal if the same is there, as often."""
        value = self._facts[kind]
        return sorted(value) if isinstance(value, list) else value

    def show(self, kind: str) -> str:
        value = self._facts[kind]
        return str(len(value) if isinstance(value, list) else value)

    # --- on disk ------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self._facts))

    @classmethod
    def load(cls, path: Path) -> Tally:
        return cls(json.loads(path.read_text()))
