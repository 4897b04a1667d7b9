"""What the commands share: options, a client, and how facts and mistakes are told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from .. import keys
from ..control import DEFAULT_ADDRESS, ControlClient, check_address
from ..errors import ControlError, KeyFileError
from ..keys import Key

__all__ = [
    "Address",
    "AsJSON",
    "KeyFile",
    "Timeout",
    "daemon",
    "fail",
    "print_json",
    "seconds",
    "tell",
    "where",
]

#: Seconds that a command may be told to wait.
LONGEST = 1e6

Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        "-a",
        envvar="ZMQTRACK_ADDRESS",
        help=f"The daemon's control. Default: the key's, else {DEFAULT_ADDRESS}.",
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key",
        "-k",
        envvar="ZMQTRACK_KEY",
        readable=False,  # keys.load says what is wrong with it
        help="A key file, where the daemon asks for one.",
    ),
]
AsJSON = Annotated[bool, typer.Option("--json", help="Print facts as JSON.")]


def seconds(value: float) -> float:
    if not 0 <= value <= LONGEST:  # nan is neither
        raise typer.BadParameter(f"{value:g} is no number of seconds from 0 to {LONGEST:.0f}")
    return value


Timeout = Annotated[
    float, typer.Option("--timeout", callback=seconds, help="Seconds to wait at most.")
]


def where(address: str | None, key_file: Path | None) -> tuple[str, Key | None]:
    """The daemon's control address, and the key to come in with; exit code 2 if one is none."""
    try:
        key = keys.load(key_file) if key_file else None
        return check_address(address or (key.address if key else DEFAULT_ADDRESS)), key
    except (ValueError, KeyFileError) as error:
        fail(str(error), code=2)


@contextmanager
def daemon(address: str | None, key_file: Path | None) -> Iterator[ControlClient]:
    """A client; what goes wrong is said in a line, with exit code 1."""
    client = ControlClient(*where(address, key_file))
    try:
        yield client
    except ControlError as error:
        fail(str(error))
    finally:
        client.close()


def tell(message: str) -> None:
    """Say it on stderr. That nobody reads it, or its disk is full, changes nothing else."""
    with suppress(OSError):
        typer.echo(message, err=True)


def fail(message: str, code: int = 1) -> NoReturn:
    tell(message)
    raise typer.Exit(code)


def print_json(facts: Any) -> None:
    typer.echo(json.dumps(facts, indent=2, default=_jsonable))


def _jsonable(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else str(value)
