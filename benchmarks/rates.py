"""How many metrics arrive in a second: at the daemon's journal, and at each tracker."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import Any

from .plan import Plan
from .processes import Broken, Child, Daemon, Workshop

__all__ = ["ADAPTERS", "JOURNAL", "to_adapter", "to_journal"]

#: id → (title, writers, codec, records in a batch packed beforehand)
JOURNAL: dict[str, tuple[str, int, str, int]] = {
    "journal/1": ("daemon + journal, 1 writer", 1, "none", 0),
    "journal/3": ("daemon + journal, 3 writers", 3, "none", 0),
    "journal/zstd": ("daemon + journal, 1 writer, zstd", 1, "zstd", 0),
    "journal/packed": ("daemon + journal alone, batches of 4,096", 1, "none", 4096),
    "journal/small": ("daemon + journal alone, batches of 50", 1, "none", 50),
}

#: adapter → the module without which it cannot run
ADAPTERS = {
    "jsonl": "zmqtrack",
    "tensorboard": "tensorboardX",
    "mlflow": "mlflow",
    "wandb": "wandb",
}


def to_journal(id: str, plan: Plan, shop: Workshop) -> dict[str, Any]:
    """Until the daemon has acknowledged all: an fsync stands behind that."""
    _, writers, codec, batch = JOURNAL[id]
    folder = shop.new(id)
    metrics = plan.metrics("journal")
    with Daemon(folder) as daemon:
        before, cpu = daemon.rss(), daemon.cpu_seconds()
        results = _write(folder, daemon, metrics, writers, codec=codec, batch=batch)
        streams = daemon.status()["streams"]
        end = max(r["acknowledged"] for r in results)
        result = _summary(results, end, daemon.cpu_seconds() - cpu, streams)
        result["logging_seconds"] = max(r["logged"] - r["began"] for r in results)
        result["batches"] = daemon.status()["journal"]["batches"]
        result["daemon_rss"] = {"before": before, "after": daemon.rss()}
        result["writer_rss"] = {k: v for k, v in results[0].items() if k.startswith("rss")}
    return result


def to_adapter(name: str, plan: Plan, shop: Workshop, writers: tuple[int, ...]) -> dict[str, Any]:
    """Until the adapter has committed its cursor behind the last metric."""
    if importlib.util.find_spec(ADAPTERS[name]) is None:
        return {f"{name}/{n}": {"missing": f"not installed: {ADAPTERS[name]}"} for n in writers}
    found = {}
    folder = shop.new(name)
    options = _options(name, folder, shop)
    metrics = plan.metrics(name)
    with Daemon(folder, [{"type": name, "flush_interval": 0, "options": options}]) as daemon:
        known = 0
        for n in writers:
            cpu = daemon.cpu_seconds()
            results = _write(folder / f"of-{n}", daemon, metrics, n)
            journalled = max(r["acknowledged"] for r in results)
            daemon.drain()
            end = time.monotonic()
            cpu = daemon.cpu_seconds() - cpu
            status = daemon.status()
            found[f"{name}/{n}"] = _summary(results, end, cpu, status["streams"][known:])
            known = len(status["streams"])
            found[f"{name}/{n}"]["seconds_behind_journal"] = end - journalled
            counters = status["adapters"][name]["counters"]
            if trouble := {k: v for k, v in counters.items() if k != "delivered" and v}:
                found[f"{name}/{n}"]["counters"] = trouble
    return found


def _options(name: str, folder: Path, shop: Workshop) -> dict[str, Any]:
    out = folder / "out"
    out.mkdir()
    return {
        "jsonl": lambda: {"dir": str(out)},
        "tensorboard": lambda: {"logdir": str(out)},
        "mlflow": lambda: {"tracking_uri": shop.mlflow_database(out)},
        "wandb": lambda: {"mode": "offline", "dir": str(out)},
    }[name]()


def _write(
    folder: Path, daemon: Daemon, metrics: int, writers: int, *, codec: str = "none", batch: int = 0
) -> list[dict[str, Any]]:
    """``writers`` processes that begin together and share ``metrics`` between them."""
    children = [
        Child(
            folder / f"writer-{i}",
            "benchmarks.pusher" if batch else "benchmarks.writer",
            {
                "address": daemon.address,
                "site": f"site-{writers}-{i}",
                "metrics": metrics // writers,
                "codec": codec,
                "batch": batch,
            },
        )
        for i in range(writers)
    ]
    try:
        for child in children:
            child.wait_ready()
        for child in children:
            child.go()
        return [child.result() for child in children]
    finally:
        for child in children:
            child.close()


def _summary(
    results: list[dict[str, Any]], end: float, cpu: float, streams: list[dict[str, Any]]
) -> dict[str, Any]:
    """What the daemon has counted is what is divided by the time."""
    records = sum(stream["records"] for stream in streams)
    if not records:
        raise Broken("the daemon has no records")
    seconds = end - min(result["began"] for result in results)
    return {
        "metrics": records,
        "seconds": seconds,
        "metrics_per_second": records / seconds,
        "cpu_us_per_metric": 1e6 * (cpu + sum(result["cpu"] for result in results)) / records,
        "cpu_us_per_metric_daemon": 1e6 * cpu / records,
    }
