"""How much is measured, and the machine it is measured on."""

from __future__ import annotations

import dataclasses
import os
import platform
import sqlite3
import struct
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from random import Random
from typing import Any

import zmq

__all__ = ["Plan", "machine", "sample"]

PACKAGES = ("pyzmq", "msgpack", "tensorboardX", "torch", "wandb", "mlflow")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Sizes of one run; :attr:`scale` multiplies all of them."""

    quick: bool = False
    scale: float = 1.0

    @property
    def call_seconds(self) -> float:
        """For the calls that are timed one by one, and again for the loop, of one statement."""
        return (0.25 if self.quick else 0.8) * self.scale

    @property
    def direct_seconds(self) -> float:
        """At most, for the calls of one logger into its own files."""
        return (1.5 if self.quick else 5.0) * self.scale

    def metrics(self, kind: str) -> int:
        """How many metrics to log for a rate, by who takes them."""
        full, quick = {
            "journal": (1_000_000, 300_000),
            "jsonl": (200_000, 60_000),
            "tensorboard": (200_000, 60_000),
            "wandb": (60_000, 20_000),
            "mlflow": (20_000, 6_000),
        }[kind]
        return max(30, int((quick if self.quick else full) * self.scale))


def machine() -> dict[str, Any]:
    facts: dict[str, Any] = {
        "cores": os.cpu_count(),
        "processor": _processor(),
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "libzmq": zmq.zmq_version(),
        "sqlite": sqlite3.sqlite_version,
        "load": round(os.getloadavg()[0], 1),
    }
    for name in PACKAGES:
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            facts[name] = None
    return facts


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def sample(n: int, *, double: bool = False) -> list[float]:
    """A loss that falls with noise, as float32 has it (what ``loss.item()`` gives), or double."""
    random = Random(1)
    values = [2.0 / (1 + i / 50) + random.gauss(0, 0.05) for i in range(n)]
    return values if double else list(struct.unpack(f"{n}f", struct.pack(f"{n}f", *values)))
