"""Numbers, steps, times and images as MLflow takes them."""

from __future__ import annotations

import contextlib
import math
import tempfile
from pathlib import Path
from typing import Any

from ...arrays import is_array, to_host
from ...records import as_number
from ...run import MAX_STEP, MIN_STEP, Run, _plain
from .._common import note
from .exceptions import invalid

__all__ = ["as_param", "as_seconds", "as_step", "as_value", "in_range", "log_bytes"]


def as_value(key: str, value: Any) -> float:
    """What MLflow makes a float of: also a number as text, a decimal, a fraction."""
    try:
        return as_number(key, value)
    except TypeError as error:
        if hasattr(value, "item"):
            value = value.item() if getattr(value, "size", None) == 1 else None
        if value is None or isinstance(value, complex):
            raise invalid(error, TypeError) from None
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError):
            raise invalid(error, TypeError) from None


def as_param(value: Any) -> Any:
    """What has, as text, the text that MLflow keeps of ``value``: itself, nearly always.

    A number of NumPy's stays a number, of the digits that are shown. An array, a tensor and a tuple
    are text.
    """
    if value is None or value.__class__ in (bool, int, float, str):
        return value
    text = str(value)
    with contextlib.suppress(TypeError):  # what cannot be carried otherwise
        if str(_plain(value, fallback=str)) == text:
            return value
    with contextlib.suppress(ValueError):
        if getattr(value, "shape", None) == () and str(float(text)) == text:
            return float(text)
    return text


def as_step(key: str, step: Any) -> int | None:
    """A step; what lies between two integers is cut to the one nearer to 0, as by MLflow's REST."""
    if step is None:
        return None
    try:
        item = getattr(step, "item", None)
        number = item() if callable(item) else step
        if isinstance(number, str) or math.isnan(number):
            raise ValueError
        number = math.trunc(max(MIN_STEP, min(MAX_STEP, number)))
        return int(max(MIN_STEP, min(MAX_STEP, number)))  # a float's 2**63 - 1 is 2**63
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise invalid(f"step of {key!r} must be a number, not {step!r:.60}", TypeError) from None


def as_seconds(timestamp: Any) -> float | None:
    """MLflow's milliseconds since the epoch; None and 0: now."""
    if not timestamp:
        return None
    try:
        seconds = float(timestamp / 1000)
    except TypeError:
        seconds = -1.0
    if not seconds >= 0:
        raise invalid(f"timestamp must be milliseconds since the epoch, not {timestamp!r:.60}")
    return seconds


def in_range(image: Any) -> Any:
    """As MLflow does it: floats that leave 0 to 1 are scaled into it."""
    if not is_array(image):
        return image
    host = to_host(image)
    if not is_array(host) or host.dtype.kind != "f" or not host.size:
        return host
    low, high = float(host.min()), float(host.max())
    if low >= 0 and high <= 1:
        return host
    note("log_image", f"floats from {low:g} to {high:g} are scaled into 0 to 1, as in MLflow")
    return (host - low) / (high - low) if low < high else host


def log_bytes(run: Run, data: bytes, name: str) -> None:
    """Log bytes as a file: what is no text and no image."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "content")
        path.write_bytes(data)
        run.log_artifact(path, name)
