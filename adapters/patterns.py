"""Names of a tracker's as patterns of a run key and a date, for ``options`` in the YAML."""

from __future__ import annotations

import time
from typing import Annotated

from pydantic import AfterValidator, Field

from zmqtrack.records import RunKey

__all__ = ["Pattern", "filled"]

FIELDS = (*RunKey._fields, "date")


def filled(pattern: str, key: RunKey, seconds: float) -> str:
    """The name that it is for this run, which began at ``seconds`` since the epoch."""
    date = time.strftime("%Y-%m-%d", time.gmtime(seconds))
    return pattern.format_map({**key._asdict(), "date": date})


def _check(pattern: str) -> str:
    try:
        filled(pattern, RunKey("e", "r", "s"), 0)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        known = ", ".join(f"{{{field}}}" for field in FIELDS)
        raise ValueError(f"{pattern!r} is no pattern of {known}: {error}") from None
    return pattern


#: Text in which {experiment}, {run}, {site} and {date} stand for those of a run.
Pattern = Annotated[str, Field(min_length=1), AfterValidator(_check)]
