"""The command line: what each command is called, and what it asks for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from .. import __version__, wire
from ..errors import ControlError, ZMQTrackError
from . import show, spools
from .common import Address, AsJSON, KeyFile, Timeout, seconds, where
from .common import daemon as _daemon
from .common import fail as _fail
from .common import print_json as _print_json
from .doctor import examine
from .keyring import keys_app
from .launch import run
from .service import service_app
from .tap import tap
from .top import top

__all__ = ["app"]

app = typer.Typer(
    name="zmqtrack",
    help="Look after a zmqtrack daemon and the records that wait on this machine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
spool_app = typer.Typer(help="Records that wait on this machine for the daemon.")
app.add_typer(spool_app, name="spool", no_args_is_help=True)
app.add_typer(keys_app, name="keys", no_args_is_help=True)
dlq_app = typer.Typer(help="Dead letters: records that a tracker refused for good.")
app.add_typer(dlq_app, name="dlq", no_args_is_help=True)
app.add_typer(service_app, name="service", no_args_is_help=True)

SpoolDir = Annotated[
    Path | None,
    typer.Option(
        "--dir",
        exists=True,
        file_okay=False,
        help="The folder. Default: where writers keep theirs.",
    ),
]

Ids = Annotated[
    list[int],
    typer.Argument(metavar="ID…", min=1, max=2**63 - 1, help="Numbers that `dlq list` shows."),
]


@app.callback()
def _main() -> None:
    pass


@app.command()
def version(as_json: AsJSON = False) -> None:
    """Print the version.

    Example:  zmqtrack version --json
    """
    if as_json:
        _print_json({"version": __version__, "protocol": wire.VERSION})
    else:
        typer.echo(__version__)


# What stands behind the command's name is the command's own.
app.command(context_settings={"allow_interspersed_args": False})(run)


@app.command()
def check(
    file: Annotated[
        Path, typer.Argument(readable=False, help="A configuration file.")  # the daemon looks
    ] = Path("zmqtrack.yaml"),
    connect: Annotated[
        bool, typer.Option("--connect", help="Try each tracker too; nothing is changed in it.")
    ] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", callback=seconds, help="Seconds for each tracker.")
    ] = 10.0,
    as_json: AsJSON = False,
) -> None:
    """Say what is wrong with a configuration: file, line, key, and what would be right.

    Exit code 78 if anything is; with --connect 1 if a tracker cannot be used. Run it as the
    daemon's user, who may read and write what others may not.

    Example:  zmqtrack check configs/zmqtrack.yaml --connect
    """
    # The daemon knows best; it is started as a process that only checks.
    command = [sys.executable, "-m", "zmqtrack.daemon", "--check", "--config", str(file)]
    command += ["--json"] if as_json else []
    command += ["--connect", "--timeout", str(timeout)] if connect else []
    # In a session of its own: Ctrl-C is ours, and ends all that it has started without a word.
    process = subprocess.Popen(command, start_new_session=True)
    try:
        raise typer.Exit(process.wait())
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()


@app.command()
def status(address: Address = None, key: KeyFile = None, as_json: AsJSON = False) -> None:
    """Show sites, journal, adapters and every loss counter, on one screen.

    Example:  zmqtrack status --json | jq .adapters
    """
    with _daemon(address, key) as client:
        facts = client.request("status")
    for name in ("id", "op", "v", "frames"):
        facts.pop(name)
    if as_json:
        _print_json(facts)
    else:
        show.status(facts)


@app.command()
def reload(
    address: Address = None, key: KeyFile = None, timeout: Timeout = 60.0, as_json: AsJSON = False
) -> None:
    """Have the daemon read its configuration again, and say what changed.

    New adapters start and backfill, changed ones restart, removed ones deliver what is left and
    stop; the others are not disturbed. With a mistake in a file nothing changes: exit code 78.

    Example:  zmqtrack reload
    """
    with _daemon(address, key) as client:
        facts = client.request("reload", timeout=timeout)
    facts = {name: facts[name] for name in show.RELOAD}
    if as_json:
        _print_json(facts)
    else:
        show.reloaded(facts)
    if facts["problems"]:
        raise typer.Exit(78)


@app.command()
def forget(
    name: Annotated[str, typer.Argument(help="The adapter, or NAME:SUBSCRIBER with keys.")],
    address: Address = None,
    key: KeyFile = None,
    as_json: AsJSON = False,
) -> None:
    """Forget how far an adapter that is no longer configured had come.

    Under the same name another one would begin from the beginning.

    Example:  zmqtrack forget old-mlflow
    """
    with _daemon(address, key) as client:
        client.request("forget", name=name)
    if as_json:
        _print_json({"forgotten": name})
    else:
        typer.echo(f"{name} is forgotten")


app.command()(top)
app.command()(tap)


@app.command()
def drain(
    address: Address = None, key: KeyFile = None, timeout: Timeout = 60.0, as_json: AsJSON = False
) -> None:
    """Wait until every adapter has delivered all that is journalled now.

    Exit code 1 if it takes longer than the time-out.

    Example:  zmqtrack drain --timeout 600
    """
    with _daemon(address, key) as client:
        try:
            head = client.request("drain", timeout=timeout)["head"]
        except ControlError as error:
            if error.reason != "timeout":
                raise
            adapters = client.request("status")["adapters"]
            _fail(f"not all is delivered after {timeout:g} s: {show.behind(adapters) or error}")
    if as_json:
        _print_json({"head": head})
    else:
        typer.echo(f"drained: every adapter has delivered all up to offset {head}")


@app.command()
def doctor(
    address: Address = None,
    key: KeyFile = None,
    timeout: Timeout = 5.0,
    as_json: AsJSON = False,
) -> None:
    """Say where the way from here to the trackers ends, and what to do. Exit code 1 if it does.

    With a writer's key as far as an acknowledgement; with an operator's (or a daemon without keys)
    to each adapter, and each tracker as the daemon's machine reaches it. Nothing is logged.

    Example:  ZMQTRACK_KEY=site-1.key zmqtrack doctor
    """
    findings = []
    for finding in examine(address, key, timeout):
        findings.append(finding)
        if not as_json:
            show.finding(finding)
    if as_json:
        _print_json([finding._asdict() for finding in findings])
    if any(finding.code and not finding.warning for finding in findings):
        raise typer.Exit(1)


@spool_app.command("list")
def spool_list(directory: SpoolDir = None, as_json: AsJSON = False) -> None:
    """Show the outboxes on this machine that are not empty.

    Example:  zmqtrack spool list
    """
    try:
        found, place = spools.find(directory), spools.folder(directory)
    except ZMQTrackError as error:
        _fail(str(error))
    if as_json:
        _print_json(found)
    else:
        show.spools(found, place)


@spool_app.command("send")
def spool_send(
    directory: SpoolDir = None,
    timeout: Timeout = 60.0,
    address: Annotated[
        str | None,
        typer.Option("--address", "-a", help="Send there, not to where the writer would have."),
    ] = None,
    key: KeyFile = None,
    as_json: AsJSON = False,
) -> None:
    """Deliver what processes that have ended left behind on this machine.

    With a key, what its site left. Exit code 1 if something of that is still there at the time-out.

    Example:  zmqtrack spool send --address tcp://logs.example.org:5555 --key site-1.key
    """
    _, own = where(address, key)
    try:
        sent, left = spools.send(directory, timeout, address, own)
    except ZMQTrackError as error:
        _fail(str(error))
    others: list[str] = []
    if own:
        waiting = {each["site"] for each in spools.find(directory) if each.get("records")}
        others = sorted(waiting - {own.name})
    if as_json:
        _print_json({"delivered": sent, "left": left, "take_other_keys": others})
    else:
        typer.echo(f"{sent} records delivered, {left} left")
        if others:
            typer.echo(f"what waits of {', '.join(others)} takes a key of theirs")
    if left:
        raise typer.Exit(1)


@dlq_app.command("list")
def dlq_list(
    address: Address = None,
    key: KeyFile = None,
    adapter: Annotated[str | None, typer.Option(help="Only those of this adapter.")] = None,
    as_json: AsJSON = False,
) -> None:
    """Show what trackers refused for good, and why.

    Example:  zmqtrack dlq list --adapter mlflow
    """
    with _daemon(address, key) as client:
        facts = client.request("dlq", name=adapter)
    if as_json:
        _print_json(facts["letters"])
    else:
        show.dead_letters(facts["letters"], facts["total"])


@dlq_app.command("show")
def dlq_show(ids: Ids, address: Address = None, key: KeyFile = None) -> None:
    """Print dead letters whole, as JSON.

    Example:  zmqtrack dlq show 3 4 | jq '.[].records'
    """
    found, left = [], sorted(ids)
    with _daemon(address, key) as client:
        while left:  # a page at a time
            answer = client.request("dlq_fetch", ids=left)
            found += show.letters(answer["letters"], answer["frames"])
            last = answer["letters"][-1][0] if answer["letters"] else left[-1]
            left = [ident for ident in left if ident > last]
    _print_json(found)
    _check_found(ids, len(found))


@dlq_app.command("retry")
def dlq_retry(
    ids: Ids, address: Address = None, key: KeyFile = None, as_json: AsJSON = False
) -> None:
    """Have the adapters try dead letters again, say after the tracker was put right.

    Example:  zmqtrack dlq retry 3 4
    """
    with _daemon(address, key) as client:
        n = client.request("dlq_retry", ids=ids)["n"]
    if as_json:
        _print_json({"retrying": n})
    else:
        typer.echo(f"{n} dead letters will be tried again")
    _check_found(ids, n)


@dlq_app.command("drop")
def dlq_drop(
    ids: Ids, address: Address = None, key: KeyFile = None, as_json: AsJSON = False
) -> None:
    """Give dead letters up for good; they are counted as lost.

    Example:  zmqtrack dlq drop 3 4
    """
    with _daemon(address, key) as client:
        n = client.request("dlq_drop", ids=ids)["n"]
    if as_json:
        _print_json({"dropped": n})
    else:
        typer.echo(f"{n} dead letters dropped")
    _check_found(ids, n)


def _check_found(ids: list[int], n: int) -> None:
    if n < len(set(ids)):
        _fail(f"{len(set(ids)) - n} of the numbers are no dead letter's: see `zmqtrack dlq list`")
