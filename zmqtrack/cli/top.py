"""``zmqtrack top``: sites and adapters, live."""

from __future__ import annotations

import io
import json
import os
import re
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.live import Live

from ..config import Duration
from ..errors import ControlError
from . import show
from .common import Address, AsJSON, KeyFile, fail, where
from .last import Last
from .view import ORDERS, View
from .watch import Watch

__all__ = ["top"]

#: Shortest time between two looks, in seconds: each costs the daemon some milliseconds.
SHORTEST = 0.1
#: Size of the picture that ``--svg`` makes, in characters.
PICTURE = (110, 24)


def top(
    address: Address = None,
    key: KeyFile = None,
    interval: Annotated[
        str, typer.Option("--interval", "-i", help="Time between two looks: 500ms, 1s, 1m.")
    ] = "1s",
    metric: Annotated[
        str | None,
        typer.Option("--metric", "-m", help="Show the last value of this metric, from now on."),
    ] = None,
    sort: Annotated[
        str, typer.Option("--sort", help=f"Order of the sites: {', '.join(ORDERS.values())}.")
    ] = "state",
    once: Annotated[
        bool, typer.Option("--once", help="Print it once, after two looks, and end.")
    ] = False,
    as_json: AsJSON = False,
    svg: Annotated[
        Path | None, typer.Option(hidden=True, help="Draw it once into this file.")
    ] = None,
) -> None:
    """Watch sites and adapters: rates, steps, what waits, who is silent. q or Ctrl-C ends it.

    ? shows the keys: they order the sites. --metric takes a key with the role subscriber. It goes
    on by itself when the daemon restarts. Without a terminal it prints once and ends; with --json
    it prints a line at each look. Rates are records a second, of the last five seconds.

    Example:  zmqtrack top --interval 2s --metric val/loss

    Example:  zmqtrack top --once --json | jq '.sites[] | {site, state, rate}'
    """
    try:
        seconds = TypeAdapter(Duration).validate_python(interval)
    except ValidationError as error:
        fail(f"--interval: {error.errors()[0]['ctx']['error']}", code=2)
    if sort not in ORDERS.values():
        fail(f"--sort: {sort!r} is none of {', '.join(ORDERS.values())}", code=2)
    place = where(address, key)
    watch = Watch(*place, max(SHORTEST, seconds))
    watch.look()
    _check(watch)  # what is wrong from the start is said as by the other commands
    if metric is not None:
        try:
            watch.last = Last(*place, metric)
        except ControlError as error:
            fail(str(error))
        watch.last.start()
    if sys.stdout is None:
        fail("stdout is closed: there is nowhere to show it")
    terminal = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    if once or svg is not None or not (terminal or as_json):
        time.sleep(watch.interval)
        watch.look()
        _check(watch)
        _print_once(watch, as_json, svg, sort)
    elif as_json:
        _print_lines(watch)
    else:
        watch.start()
        with suppress(OSError):  # the terminal is gone
            _live(watch, sort)


def _check(watch: Watch) -> None:
    if watch.trouble:
        fail(str(watch.trouble))


def _print_lines(watch: Watch) -> None:
    """A line of JSON at each look; none while the daemon does not answer, which stderr tells."""
    said = False
    while True:
        if watch.trouble is None:
            print(json.dumps(watch.facts), flush=True)
        elif not said:
            typer.echo(f"{watch.trouble}; trying", err=True)
        said = watch.trouble is not None
        time.sleep(watch.interval)
        watch.look()


def _print_once(watch: Watch, as_json: bool, svg: Path | None, sort: str) -> None:
    if as_json:
        print(json.dumps(watch.facts))
        return
    if svg is None:
        Console(highlight=False, markup=False, width=show.WIDE).print(View(watch, order=sort))
        return
    console = Console(
        record=True, file=io.StringIO(), force_terminal=True, width=PICTURE[0], height=PICTURE[1]
    )
    console.print(View(watch, order=sort))
    # Nothing is to be fetched from elsewhere to look at a picture.
    picture = re.sub(
        r"@font-face \{.*?\}", "", console.export_svg(title="zmqtrack top"), flags=re.S
    )
    svg.write_text(picture)


def _live(watch: Watch, sort: str) -> None:
    """Draw until q, Ctrl-C or a signal to end; Ctrl-Z gives the terminal back meanwhile."""
    keys = sys.stdin is not None and sys.stdin.isatty()  # None: it is closed, as by <&-
    # COLUMNS and LINES, where somebody exports them, do not follow when the terminal is resized.
    environ = {n: v for n, v in os.environ.items() if n not in ("COLUMNS", "LINES")}
    console = Console(highlight=False, markup=False, _environ=environ)
    caught: list[int] = []
    view = View(watch, keys, sort)

    def note(number: int, frame: FrameType | None) -> None:
        if number != signal.SIGWINCH:
            caught.append(number)
        watch.wake()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP, signal.SIGWINCH)
    with ExitStack() as stack:
        for number in numbers:
            stack.callback(signal.signal, number, signal.signal(number, note))
        stack.callback(watch.stop)
        while True:
            with _keyboard(keys), Live(console=console, screen=True, auto_refresh=False) as live:
                while not caught:
                    live.update(view, refresh=True)
                    ready, _, _ = select.select(
                        [watch.woken, *([sys.stdin] if keys else [])], [], [], 1.0
                    )
                    if watch.woken in ready:
                        os.read(watch.woken, 4096)
                    if sys.stdin in ready:
                        typed = os.read(sys.stdin.fileno(), 4096)
                        if _ends(typed):
                            caught.append(0)
                        elif not typed.startswith(b"\x1b"):  # an arrow, or another such key
                            for key in typed.decode(errors="replace"):
                                view.press(key.lower())
            if caught.pop() != signal.SIGTSTP:
                return
            os.kill(os.getpid(), signal.SIGSTOP)  # and here we are when somebody says `fg`


def _ends(typed: bytes) -> bool:
    """q; or nothing at all, as from a terminal that was closed."""
    return not typed or typed[:1] in b"qQ"


@contextmanager
def _keyboard(wanted: bool) -> Iterator[None]:
    """Keys as they are typed, not shown; Ctrl-C and Ctrl-Z stay what they are."""
    if not wanted:
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
