"""From ``type`` in the YAML to a class: built-in names, entry points, ``module:Class``."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from importlib.machinery import PathFinder
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from pydantic import BaseModel, ValidationError

from zmqtrack.config import AdapterConfig, problems_of
from zmqtrack.errors import ZMQTrackError

from . import secrets
from .base import Adapter

__all__ = ["LoadError", "check", "known", "load"]

GROUP = "zmqtrack.adapters"


class LoadError(ZMQTrackError):
    """An adapter that cannot be used as configured.

    ``problems`` has for each fault the path to its key and a message.
    """

    def __init__(self, *problems: tuple[tuple[str | int, ...], str]) -> None:
        super().__init__("\n".join(message for _, message in problems))
        self.problems = problems


def known() -> dict[str, EntryPoint]:
    """The names that ``type`` may be, the built-in ones and those of installed packages."""
    return {point.name: point for point in entry_points(group=GROUP)}


def load(type_: str) -> type[Adapter]:
    """The adapter class that ``type_`` names.

    Raises:
        LoadError: there is none, it cannot be imported, or what it needs is not installed.
    """
    points = known()
    if type_ in points:
        target = points[type_].value
    elif ":" in type_:
        target = type_
    else:
        close = difflib.get_close_matches(type_, points, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise _bad_type(
            f"unknown adapter type {type_!r}.{hint} Known are: {', '.join(sorted(points))}; "
            "an own one is named package.module:Class",
        )
    module_name, _, class_name = target.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name, None)
    except ImportError as error:
        hint = _only_here(module_name, error)
        raise _bad_type(f"{type_!r}: cannot import {module_name!r}: {error}{hint}") from error
    except (Exception, SystemExit) as error:  # a module may do at its import what it likes
        raise _bad_type(f"{type_!r}: cannot import {module_name!r}: {_told(error)}") from error
    if not (isinstance(found, type) and issubclass(found, Adapter)):
        raise _bad_type(
            f"{type_!r}: {class_name!r} is no subclass of zmqtrack.adapters.base.Adapter"
        )
    missing = [name for name in found.requires if importlib.util.find_spec(name) is None]
    if missing:
        what = f"zmqtrack[{found.extra}]" if found.extra else " ".join(missing)
        raise _bad_type(f"{type_!r} needs {', '.join(missing)}: run  pip install '{what}'")
    return found


def options(config: AdapterConfig, cls: type[Adapter]) -> BaseModel:
    """The options, checked against the class's schema.

    Raises:
        LoadError: names all of them that are wrong.
    """
    try:
        options = cls.Options.model_validate(config.options)
        secrets.hide_passwords(options.model_dump())  # some come from the environment
        return options
    except ValidationError as error:
        problems = problems_of(error, cls.Options)
        raise LoadError(*((("options", *path), message) for path, message in problems)) from error
    except (Exception, SystemExit) as error:  # of a validator of its own
        raise LoadError((("options",), f"cannot be checked: {_told(error)}")) from error


def check(config: AdapterConfig) -> LoadError | secrets.SecretError | None:
    """Why the adapter cannot be used as configured, or None."""
    try:
        with secrets.lent(secrets.resolve(config)):
            options(config, load(config.type))
    except (LoadError, secrets.SecretError) as error:
        return error
    return None


def _only_here(module_name: str, error: ImportError) -> str:
    """What to do about a module that is in the working folder, and is not installed."""
    top = module_name.partition(".")[0]
    if error.name != top or PathFinder.find_spec(top, [str(Path.cwd())]) is None:
        return ""
    return (
        f". It is in {Path.cwd()}, but nothing is imported from the folder in which a daemon "
        "happens to be started: install it (pip install -e .), or name its folder in PYTHONPATH"
    )


def _told(error: BaseException) -> str:
    """An error that a user's own code raised, on one line, and where it did."""
    place, trace = "", error.__traceback__
    while trace is not None:
        place = f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})"
        trace = trace.tb_next
    if isinstance(error, SyntaxError):  # it names its place itself
        place = ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"


def _bad_type(message: str) -> LoadError:
    return LoadError((("type",), message))
