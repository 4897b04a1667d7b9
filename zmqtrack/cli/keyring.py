"""``zmqtrack keys``: who may come in. Works on the daemon's folder of keys, on its machine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from .. import keys
from ..control import DEFAULT_ADDRESS, check_address
from ..errors import KeyFileError
from ..keyring import ROLES, KeyRing
from . import show
from .common import AsJSON, fail, print_json

__all__ = ["keys_app"]

keys_app = typer.Typer(
    help="Who may come in. Run these on the daemon's machine; it notices within a second."
)

Folder = Annotated[
    Path,
    typer.Option("--keys", envvar="ZMQTRACK_KEYS", help="The daemon's folder of keys."),
]
HERE = Path("zmqtrack-keys")
Roles = Annotated[
    list[str] | None,
    typer.Option("--role", help=f"{', '.join(ROLES)}; may stand several times. Default: writer."),
]
Topics = Annotated[
    list[str] | None,
    typer.Option("--topic", help="A data type that a subscriber may see; * stands for all."),
]
Sites = Annotated[
    list[str] | None,
    typer.Option("--site", help="A site that a subscriber may see; * stands for all."),
]
Name = Annotated[str, typer.Argument(help="The site, or whoever the key is for.")]


@contextmanager
def _told() -> Iterator[None]:
    """What goes wrong is said in a line, with exit code 1; 2 if an argument is to blame."""
    try:
        yield
    except ValueError as error:
        fail(str(error), code=2)
    except KeyFileError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}")


def _reachable(address: str) -> str:
    """An address that a site can connect to, unlike one that a daemon listens at."""
    check_address(address, to_bind=True)
    if urlsplit(address).netloc.rpartition(":")[0] in ("*", "0.0.0.0", "[::]"):
        raise ValueError(
            f"{address} names no machine: write the name under which sites reach the daemon"
        )
    return address


@keys_app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="A folder to be made.")] = HERE,
    address: Annotated[
        str, typer.Option("--address", "-a", help="Where sites will find the daemon's control.")
    ] = DEFAULT_ADDRESS,
    as_json: AsJSON = False,
) -> None:
    """Make the daemon's own key, and a folder for those of the sites.

    Example:  zmqtrack keys init /etc/zmqtrack/keys -a tcp://logs.example.org:5555
    """
    with _told():
        ring = KeyRing.create(folder, _reachable(address))
    if as_json:
        print_json({"keys": str(folder.absolute()), "address": ring.address})
        return
    typer.echo(
        f"made {ring.path}. Write into the configuration:  daemon: {{keys: {folder.absolute()}}}\n"
        f"then let a site in:  zmqtrack keys new site-1 --keys {folder}"
    )


@keys_app.command()
def new(
    name: Name,
    folder: Folder = HERE,
    role: Roles = None,
    topic: Topics = None,
    site: Sites = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file. Default: NAME.key.")
    ] = None,
    address: Annotated[
        str | None, typer.Option("--address", "-a", help="Where this one finds the daemon.")
    ] = None,
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Give a second key; the first still works.")
    ] = False,
    as_json: AsJSON = False,
) -> None:
    """Make one small file that lets a site in; hand it over by a safe way.

    Example:  zmqtrack keys new site-1  →  site-1.key; there: export ZMQTRACK_KEY=site-1.key
    """
    with _told():
        file = output or Path(f"{name.replace('/', '_')}.key")
        if file.exists():
            raise ValueError(f"{file} is there already; name another with --output")
        ring = KeyRing(folder)
        at = _reachable(address) if address else None
        key = ring.new(name, role or [], topic, site, rotate=rotate, address=at)
        try:
            keys.write(file, key.fields())
        except OSError:
            ring.forget(name, key)
            raise
    if as_json:  # without the key itself
        print_json({"file": str(file), "name": name, "address": key.address})
    else:
        typer.echo(f"{file} lets {name} in at {key.address}. It stands nowhere else: keep it safe")


@keys_app.command("list")
def list_(
    folder: Folder = HERE,
    as_json: AsJSON = False,
) -> None:
    """Show who may come in, and what for.

    Example:  zmqtrack keys list --keys /etc/zmqtrack/keys
    """
    with _told():
        found = KeyRing(folder).facts()
    if as_json:
        print_json(found)
    else:
        show.clients(found, time.time())


@keys_app.command()
def revoke(
    name: Name,
    folder: Folder = HERE,
    older: Annotated[
        bool, typer.Option("--older", help="Only those before the newest, after --rotate.")
    ] = False,
    as_json: AsJSON = False,
) -> None:
    """Take a site's keys away: what it sends is refused from now on, on open connections too.

    Example:  zmqtrack keys revoke site-1
    """
    with _told():
        gone = KeyRing(folder).revoke(name, older=older)
    if as_json:
        print_json({"name": name, "revoked": gone})
    else:
        typer.echo(f"{gone} keys of {name} are revoked")


@keys_app.command()
def roles(
    name: Name,
    role: Annotated[list[str] | None, typer.Argument(help=", ".join(ROLES))] = None,
    folder: Folder = HERE,
    topic: Topics = None,
    site: Sites = None,
    as_json: AsJSON = False,
) -> None:
    """Show what a key may be used for, or set it.

    Example:  zmqtrack keys roles dashboard subscriber --topic metric --site site-1
    """
    with _told():
        ring = KeyRing(folder)
        if role or topic or site:
            ring.grant(name, role, topic, site)
        found: dict[str, Any] = ring.known(name)
    if as_json:
        print_json(found)
    else:
        show.clients([found], time.time())
