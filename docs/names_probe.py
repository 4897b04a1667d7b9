"""Finds out what becomes of a call in one of zmqtrack's syntaxes: by calling it.

Each call is made in a forked child with a spool of its own; what it recorded is read back from
there. Nobody listens at the daemon's address: no call depends on one.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib
import inspect
import json
import logging
import os
import re
import select
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import names_samples as samples

#: The discard port.
NOBODY = "tcp://127.0.0.1:9"
#: Seconds for one call.
PATIENCE = 30
DID_NOT_COME_BACK = "the call did not come back"

WRITERS = "zmqtrack.writers."
#: Where a call's spool is: what it wrote need not survive, so no disk is waited for.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class Place(NamedTuple):
    """Names of a tool that belong together, and how one comes to ours."""

    title: str
    tool: str  #: tensorboard, mlflow, wandb: the module of ours
    #: Makes the object of ours that has these names; what must be there before comes first.
    ours: Callable[[Any], Any]
    #: What makes a record of an object that these names only prepare.
    after: Callable[[Any, Any], None] | None = None


class Seen(NamedTuple):
    """What one call did."""

    records: list[Any]
    lost: list[str]
    said: list[str]
    raised: str  #: empty, or the exception's type and text
    answer: str  #: what came back, in short; empty for None
    missing: bool
    takes_all: bool = False  #: every parameter of the tool's has a place

    @property
    def why(self) -> str:
        return self.raised or "; ".join(self.said)


# --- in the child -----------------------------------------------------------------------------


class _Said(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _observe(
    folder: Path,
    place: Place,
    name: str,
    arguments: Callable[[dict[str, Any]], Any],
    every: Iterable[str],
) -> Seen:
    os.chdir(folder)
    os.environ["ZMQTRACK_SPOOL_DIR"] = str(folder / "spool")
    said = _Said()
    logging.getLogger("zmqtrack").addHandler(said)
    raised = answer = ""
    missing = takes_all = False
    before = 0
    module = importlib.import_module(WRITERS + place.tool)
    values = samples.samples(folder)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            holder = place.ours(module)
            before = len(said.lines)
            try:
                found = getattr(holder, name or "__doc__")
            except AttributeError as error:
                missing = True
                raise LookupError(str(error)) from None
            if not name:
                if place.after is not None:
                    place.after(module, holder)
            elif inspect.isclass(found) and issubclass(found, BaseException):
                answer = found.__name__
            elif callable(found):
                keywords = arguments(values)
                row = samples.POSITIONAL.get(f"{place.title}.{name}", ())
                takes_all = _binds(found, {**dict.fromkeys(every), **keywords})
                if _binds(found, keywords):
                    back = found(*row, **keywords)
                    answer = _short(back, module)
                    if place.after is not None:
                        place.after(module, back if back is not None else holder)
                else:
                    missing = True
            else:
                answer = _short(found, module) or "None"
        except Exception as error:  # noqa: BLE001 -- what it raises is the question
            raised = f"{type(error).__name__}: {error}"
            if isinstance(error, AttributeError) and "zmqtrack" in str(error):
                missing = True
    records, lost = _recorded(folder / "spool")
    return Seen(
        records, lost, said.lines[before:] + [str(w.message) for w in warned if _ours(w)],
        raised.replace(str(folder), "FOLDER"), answer.replace(str(folder), "FOLDER"), missing,
        takes_all,
    )  # fmt: skip


def _ours(warned: warnings.WarningMessage) -> bool:
    return "zmqtrack" in str(warned.message)


def _binds(function: Any, keywords: Mapping[str, Any]) -> bool:
    """Whether the call's arguments have a place; None of them is looked at."""
    try:
        inspect.signature(function, follow_wrapped=False).bind(**keywords)
        wrapped = inspect.unwrap(function)
        if wrapped is not function:
            # A decorator that renames arguments takes any: ask what is behind it.
            renamed = inspect.getclosurevars(function).nonlocals.get("names", {})
            bound = {renamed.get(key, key): value for key, value in keywords.items()}
            inspect.signature(wrapped).bind(*([None] if _is_method(function) else []), **bound)
    except TypeError:
        return False
    except ValueError:  # no signature to be had
        pass
    return True


def _is_method(function: Any) -> bool:
    return inspect.ismethod(function)


def _short(value: Any, module: Any) -> str:
    """An answer, and what can be read of it, without what differs from call to call."""
    if value is None:
        return ""
    text = type(value).__name__
    if isinstance(value, (str, int, float, bool, tuple, list, dict)):
        text += f" {value!r}"
    elif type(value).__module__.startswith("zmqtrack"):
        plain = {
            key: part
            for key, part in vars(value).items()
            if isinstance(part, (str, int, float, bool, type(None))) and key[0] != "_"
        }
        text += f" {plain!r}"
    return _stable(text)


def _stable(text: str) -> str:
    text = re.sub(r"run-\d{8}-\d{6}-[0-9a-f]{4}", "RUN", text)
    text = re.sub(r"\b1[789]\d{8}(\.\d+)?\b|\b1[789]\d{11}\b", "NOW", text)
    text = re.sub(r"0x[0-9a-f]+|\b[0-9a-f]{32}\b", "ID", text)
    return re.sub(rf"\b{os.getpid()}\b", "PID", text)


def _recorded(spools: Path) -> tuple[list[Any], list[str]]:
    """All that the child logged; its runs are ended, and nobody is waited for."""
    from zmqtrack import ending, wire
    from zmqtrack.spool import Spool, orphans

    for live in list(ending.live):
        live.finish("killed", timeout=0)  # so that one sees which call ends a run
    records, lost = [], []
    for path in orphans(spools) if spools.exists() else ():
        spool = Spool.open(path)
        for batch in spool.after(0, 1_000_000):
            header = wire.decode_header(batch.header)
            for record in wire.decode_body(batch.type, header, batch.body):
                if batch.type == "lost":
                    lost.append(record.key)
                    continue
                value: Any = record.value
                if (batch.type, record.key) == ("run", "start"):
                    value = None
                if isinstance(value, (list, bytes)) or len(repr(value)) > 200:
                    value = hashlib.sha256(repr(value).encode()).hexdigest()[:12]
                told = record.time if record.time < 10**9 else None
                line = (header.run, batch.type, record.key, value, record.step, told)
                records.append(_stable(repr(line)))
        spool.close()
    return sorted(records), sorted(set(lost))


# --- in the parent ----------------------------------------------------------------------------


def observe(
    place: Place,
    name: str,
    arguments: Callable[[dict[str, Any]], Any],
    every: Iterable[str] = (),
) -> Seen:
    """What a call does; ``arguments`` makes its keyword arguments of the samples."""
    folder = Path(tempfile.mkdtemp(prefix="names-", dir=MEMORY))
    out, into = os.pipe()
    child = os.fork()
    if not child:
        try:
            null = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1, 2):
                os.dup2(null, number)
            os.setsid()
            try:
                told: Any = _observe(folder, place, name, arguments, every)
            except Exception:  # noqa: BLE001 -- the probe's own fault; the parent raises it
                told = {"fault": traceback.format_exc()}
            line = json.dumps(told).encode() + b"\n"
            while line:
                line = line[os.write(into, line) :]
        finally:
            os._exit(0)
    os.close(into)
    try:
        return _collect(child, out, time.monotonic() + PATIENCE)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def warm_up() -> None:
    """Import here, once, what each child would import."""
    import matplotlib.figure
    import numpy
    import pandas
    import PIL.Image
    import torch

    for module in ("tensorboard", "mlflow", "wandb"):
        importlib.import_module(WRITERS + module)
    del matplotlib, numpy, pandas, PIL, torch
    os.environ["ZMQTRACK_ADDRESS"] = NOBODY
    gc.freeze()  # what no collection touches, the forked children need not copy


def _collect(child: int, out: int, deadline: float) -> Seen:
    data = b""
    while not data.endswith(b"\n"):
        ready, _, _ = select.select([out], [], [], max(0, deadline - time.monotonic()))
        piece = os.read(out, 1 << 20) if ready else b""
        data += piece
        if not piece:
            break
    os.close(out)
    # What the call began, and the child too if it does not end: setsid made them one group.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if not data.endswith(b"\n"):
        return Seen([], [], [], DID_NOT_COME_BACK, "", False)
    told = json.loads(data)
    if isinstance(told, dict):
        raise RuntimeError(f"the probe itself failed:\n{told['fault']}")
    return Seen(*told)
