"""The trackers that `zmqtrack run` uses by itself, and where to look at what each of them has."""

from __future__ import annotations

import os
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from ..config import AdapterConfig, without_userinfo

__all__ = ["TRACKERS", "Place", "default_tracker", "place", "tracker"]

#: What `--to` takes.
TRACKERS = ("tensorboard", "mlflow", "wandb", "jsonl")


class Place(NamedTuple):
    """Where results are, and the command that shows them, as far as that is known."""

    where: str
    look: str


def default_tracker() -> str:
    """TensorBoard where its extra is installed, else JSON lines, which need nothing."""
    needed = ("tensorboardX", "crc32c", "PIL")
    return "tensorboard" if all(map(find_spec, needed)) else "jsonl"


def tracker(name: str, out: Path) -> AdapterConfig:
    """One of :data:`TRACKERS`: on this machine, unless its own variables say otherwise."""
    options: dict[str, Any] = {}
    if name == "tensorboard":
        options["logdir"] = str(out / "tensorboard")
    elif name == "jsonl":
        options["dir"] = str(out / "jsonl")
    elif name == "mlflow":
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            options["tracking_uri"] = f"sqlite:///{out / 'mlflow.db'}"
    elif name == "wandb":
        options["dir"] = str(out / "wandb")
        if not os.environ.get("WANDB_MODE"):
            options["mode"] = "offline"
    return AdapterConfig.model_validate({"type": name, "options": options})


def place(adapter: AdapterConfig, cwd: Path) -> Place:
    """Of an adapter of a daemon that runs in ``cwd``, as one calls it from here."""
    options = adapter.options
    if adapter.type == "tensorboard":
        logdir = _from_here(str(options.get("logdir", "")), cwd)
        # Its fast data server hides steps that repeat or go back.
        return Place(logdir, f"tensorboard --load_fast=false --logdir {shlex.quote(logdir)}")
    if adapter.type == "mlflow":
        uri = str(options.get("tracking_uri") or os.environ.get("MLFLOW_TRACKING_URI", ""))
        if uri.startswith("sqlite"):
            scheme, slashes, path = uri.partition(":///")
            uri = scheme + slashes + _from_here(path, cwd)
        before, mark, query = without_userinfo(uri).partition("?")
        shown = before + mark + ("***" if query else "")  # drivers take a password there too
        local = not uri.startswith(("http://", "https://")) and shown == uri
        return Place(shown, f"mlflow ui --backend-store-uri {shlex.quote(uri)}" if local else "")
    if adapter.type == "wandb":
        folder = _from_here(str(options.get("dir", ".")), cwd)
        mode = options.get("mode") or os.environ.get("WANDB_MODE") or "online"
        if mode != "offline":
            return Place(f"{folder}, and uploaded ({mode})", "")
        # The pattern is for the shell.
        return Place(folder, f"wandb sync {shlex.quote(folder)}/wandb/offline-run-*")
    if adapter.type == "jsonl":
        return Place(_from_here(str(options.get("dir", "")), cwd), "")
    return Place("", "")


def _from_here(path: str, cwd: Path) -> str:
    """Relative paths stay short where that is right."""
    return path if cwd == Path.cwd() else str(cwd / path)
