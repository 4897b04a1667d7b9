"""Tokens and passwords: where they are read, and how they stay out of every text.

An adapter's own process reads them, just before its class is loaded, into its own environment,
where the tracker's library looks for them. They are on no command line, and neither the daemon
nor another adapter ever has them. What leaves the process as text (log, status, dead letters)
goes through :func:`mask`.
"""

from __future__ import annotations

import io
import json
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus, unquote

from zmqtrack.config import AdapterConfig, Secret, without_userinfo

__all__ = ["SecretError", "guard_output", "hide", "hide_passwords", "lent", "mask", "resolve"]

#: A larger file is no secret.
MAX_SECRET = 65_536

#: A shorter one stands in words that have nothing to do with it.
SHORTEST = 4

#: What no text may show, by how it may be spelled there; the longest first.
_hidden: tuple[str, ...] = ()
#: What is too short for that: shown, but for the place of a password in an address.
_short: tuple[str, ...] = ()

#: The password in a URI: as urllib sees it, and as SQLAlchemy, which allows a "/" in it.
_PASSWORDS = (re.compile(r"://[^:/?#\s]*:([^/?#\s]+)@"), re.compile(r"://[^:/\s]*:([^@\s]+)@"))


class SecretError(Exception):
    """Secrets that cannot be had: the path to the key, and why."""

    def __init__(self, problems: list[tuple[tuple[str | int, ...], str]]) -> None:
        super().__init__(
            "\n".join(f"{'.'.join(map(str, path))}: {message}" for path, message in problems)
        )
        self.problems = problems


# --- reading -----------------------------------------------------------------------------


def resolve(config: AdapterConfig) -> dict[str, str]:
    """The values of an adapter's secrets, by the variable that they are for; now hidden, too.

    Raises:
        SecretError: names all that cannot be had.
    """
    found: dict[str, str] = {}
    problems: list[tuple[tuple[str | int, ...], str]] = []
    for variable, secret in config.secrets.items():
        kind = next(k for k in ("env", "file", "credential") if getattr(secret, k) is not None)
        try:
            found[variable] = _value(secret)
        except ValueError as error:
            problems.append((("secrets", variable, kind), str(error)))
    hide(found.values())
    hide_passwords(config.options)
    if problems:
        raise SecretError(problems)
    return found


def _value(secret: Secret) -> str:
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    if secret.env is not None:
        value = os.environ.get(secret.env)
        if value is None:
            raise ValueError(f"{secret.env} is not set in the daemon's environment")
        what = secret.env
    elif secret.file is not None:
        what = str(secret.file)
        value = _read(secret.file, credentials)
    else:
        assert secret.credential is not None
        if not credentials:
            raise ValueError(
                "CREDENTIALS_DIRECTORY is not set: systemd sets it for a service with "
                f"LoadCredential={secret.credential}:PATH"
            )
        what = f"{credentials}/{secret.credential}"
        value = _read(Path(what), credentials)
    if not (value := value.strip()):
        raise ValueError(f"{what} is empty")
    if "\0" in value:
        raise ValueError(f"{what} holds a NUL, which no environment variable can")
    return value


def _read(path: Path, credentials: str | None) -> str:
    try:
        # Not blocking: a pipe would wait for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ValueError(f"{path} is no file")
            inside = credentials and path.resolve().is_relative_to(Path(credentials).resolve())
            if status.st_mode & 0o077 and not inside:
                raise ValueError(
                    f"others may read {path} (mode {stat.S_IMODE(status.st_mode):04o}): "
                    f"run  chmod 600 {path}"
                )
            if status.st_size > MAX_SECRET:
                raise ValueError(f"{path} has {status.st_size} bytes: that is no secret")
            return file.read().decode()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


@contextmanager
def lent(values: Mapping[str, str]) -> Iterator[None]:
    """Have them in the environment for a while, as a check of several adapters needs it."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


# --- hiding ------------------------------------------------------------------------------


def hide(values: Iterable[str]) -> None:
    """From now on :func:`mask` leaves none of these in a text."""
    global _hidden, _short
    spelled, short = set(_hidden), set(_short)
    for value in values:
        if len(value) < SHORTEST:
            short |= {value, quote(value), quote(value, safe=""), quote_plus(value)}
            continue
        # Of many lines each: a log may show them one by one.
        for part in {value, *(line.strip() for line in value.splitlines() if len(line) >= 8)}:
            spelled |= {part, quote(part), quote(part, safe=""), quote_plus(part)}
            once = _escaped(part)
            spelled |= once.union(*map(_escaped, once))  # JSON in JSON, a literal in JSON
    _hidden = tuple(sorted(filter(None, spelled), key=len, reverse=True))
    _short = tuple(filter(None, short))


def _escaped(text: str) -> set[str]:
    """How it may stand in a string of Python's or JSON's."""
    return {
        repr(text)[1:-1],
        repr("'\"" + text)[4:-1],  # where other text has both kinds of quotes, ours is escaped too
        json.dumps(text)[1:-1],
        json.dumps(text, ensure_ascii=False)[1:-1],
    }


def hide_passwords(options: Any) -> None:
    """The same for the passwords of URIs in an adapter's options."""
    if isinstance(options, str):
        found = [password for form in _PASSWORDS for password in form.findall(options)]
        hide([*found, *map(unquote, found)])
    elif isinstance(options, Mapping):
        for value in options.values():
            hide_passwords(value)
    elif isinstance(options, (list, tuple)):
        for value in options:
            hide_passwords(value)


def mask(text: str) -> str:
    """``text`` with ``***`` for secrets, and for user and password in URIs."""
    for value in _hidden:
        if value in text:
            text = text.replace(value, "***")
    for value in _short:
        text = text.replace(f":{value}@", ":***@")
    return without_userinfo(text)


def guard_output() -> None:
    """Mask all that this process writes: its log, tracebacks, and what libraries print."""
    sys.stdout = _Masked(sys.stdout)
    sys.stderr = _Masked(sys.stderr)


class _Masked(io.TextIOWrapper):
    def __init__(self, stream: Any) -> None:
        super().__init__(
            stream.buffer, stream.encoding, errors="backslashreplace", line_buffering=True
        )

    def write(self, text: str) -> int:
        super().write(mask(text))
        return len(text)
