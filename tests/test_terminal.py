"""``zmqtrack top`` and ``zmqtrack tap``, in a real terminal and in pipes."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

import terminal
import zmqtrack
from harness import PATIENCE, Daemon, jsonl
from keyed import Make, Place, Site
from terminal import PROMPT, Terminal
from zmqtrack import wire
from zmqtrack.cli import spools
from zmqtrack.records import Record, RunKey
from zmqtrack.spool import Outgoing, Spool

COMMAND = [sys.executable, "-m", "zmqtrack.cli"]
#: A PNG as far as anybody looks.
PNG = b"\x89PNG\r\n\x1a\n" + bytes(12_000)

needs_tmux = pytest.mark.skipif(bool(terminal.MISSING), reason=terminal.MISSING)


@pytest.fixture
def served(daemon: Make, tmp_path: Path, nobody: str) -> Iterator[Daemon]:
    """A daemon that is found again where it was, after a restart."""
    with daemon([jsonl(tmp_path / "out")], control=nobody) as running:
        yield running


def log(served: Daemon, site: str, count: int, run: str = "r") -> None:
    """``count`` metrics; with the run's start and end there are two records more."""
    with zmqtrack.init("e", run, site, served.address) as each:
        for step in range(count):
            each.log_metric("loss", step / 8, step=step)


# --- top ------------------------------------------------------------------------------------------


def rows(lines: list[str]) -> dict[str, list[str]]:
    """The cells of each line by its first one."""
    return {cells[0]: cells for line in lines if (cells := re.split(r" {2,}", line.strip()))[1:]}


def run_rows(shown: Terminal) -> dict[str, tuple[str, str, str, str]]:
    """Of each site (experiment, run, records, step)."""
    return {
        name: (cells[1], cells[2], cells[5], cells[6])
        for name, cells in rows(shown.lines()).items()
        if name.startswith("site-") and len(cells) > 6
    }


@needs_tmux
def test_top_shows_what_was_logged_and_follows_it(served: Daemon) -> None:
    with Terminal() as shown:
        shown.run("top", "-a", served.address, "-i", "200ms")
        shown.wait_for("no site has logged yet")
        with contextlib.ExitStack() as stack:
            runs = {
                name: stack.enter_context(zmqtrack.init("e", "r", name, served.address))
                for name in ("site-1", "site-2", "site-[red]3[/red]")
            }
            for each, run in enumerate(runs.values(), 1):
                for step in range(10 * each):
                    run.log_metric("loss", 0.5, step=step)
            logged = {
                name: ("e", "r", str(10 * each + 1), str(10 * each - 1))
                for each, name in enumerate(runs, 1)
            }
            shown.wait(lambda: run_rows(shown) == logged, str(logged))
            assert {rows(shown.lines())[name][3] for name in runs} == {"active"}
            runs["site-2"].log_metric("loss", 0.25, step=70)
            logged["site-2"] = ("e", "r", "22", "70")
            shown.wait(lambda: run_rows(shown) == logged, str(logged))
        shown.wait(lambda: "ended" in rows(shown.lines())["site-1"], "the end of site-1")
        served.drain()
        # adapter, state, rate, lag, retries, restarts, dead letters
        shown.wait(
            lambda: (
                [rows(shown.lines())["jsonl"][n] for n in (1, 3, 4, 5, 6)]
                == ["running", "0", "0", "0", "0"]
            ),
            "an adapter that has delivered all",
        )
        facts = served.status()
        total = sum(int(cells[2]) for cells in run_rows(shown).values())
        assert total == sum(site["records"] for site in facts["sites"]) == 10 + 21 + 30 + 6
        assert f"offset {facts['journal']['head']}," in shown.screen


@needs_tmux
def test_top_goes_on_after_a_restart_of_the_daemon(served: Daemon) -> None:
    log(served, "site-1", 5)
    with Terminal() as shown:
        shown.run("top", "-a", served.address, "-i", "200ms")
        shown.wait(lambda: run_rows(shown) == {"site-1": ("e", "r", "7", "4")}, "site-1")
        served.stop()
        shown.wait_for("no answer since")
        shown.wait_for("trying: no daemon answers at")  # a look that was under way says otherwise
        assert "site-1" in shown.screen
        served.start()
        shown.wait(lambda: "no answer since" not in shown.screen, "an answer")
        log(served, "site-2", 9)
        shown.wait(lambda: run_rows(shown).get("site-2") == ("e", "r", "11", "8"), "site-2")


@needs_tmux
def test_top_fits_into_whatever_size_the_terminal_has(served: Daemon) -> None:
    for n in range(12):
        log(served, f"site-{n:02}", 1)
    with Terminal(110, 30) as shown:
        shown.run("top", "-a", served.address, "-i", "200ms")
        shown.wait_for("site-11")
        shown.wait_for("last seen")
        assert "more" not in shown.screen
        shown.resize(80, 24)
        shown.wait(lambda: shown.screen.count("site-") == 12, "all sites in 80 by 24")
        for word in ("state", "records/s", "records", "step", "waiting", "lag", "retries", "jsonl"):
            assert word in shown.screen
        shown.resize(44, 14)
        shown.wait_for("… and")
        visible = shown.screen.count("site-")
        assert f"… and {12 - visible} more" in shown.screen and 1 <= visible < 12
        assert {"site", "state", "records/s"} <= set(shown.screen.split())
        assert "last seen" not in shown.screen and "jsonl" in shown.screen
        shown.resize(20, 6)
        shown.wait(lambda: "last seen" not in shown.screen and "site" in shown.screen, "a rest")
        shown.resize(110, 30)
        shown.wait_for("last seen")
        shown.wait_for("site-11")
        shown.press("q")
        shown.wait_for("exit code: 0")


def assert_clean(shown: Terminal) -> None:
    """The terminal is as it was before: it shows the cursor, and what is typed."""
    assert (shown.fact("alternate_on"), shown.fact("cursor_flag")) == ("0", "1")
    shown.type("clear; stty -a; echo done")
    shown.wait_for("\ndone")
    settings = shown.screen.replace(";", " ").split()
    assert {"echo", "icanon", "isig"} <= set(settings)
    shown.wait(lambda: shown.lines()[-1:] != [] and PROMPT.strip() in shown.screen, "the prompt")


@needs_tmux
@pytest.mark.parametrize("how", ["q", "C-c", "SIGTERM"])
def test_top_leaves_the_terminal_clean(served: Daemon, how: str) -> None:
    with Terminal() as shown:
        shown.run("top", "-a", served.address)
        shown.wait_for("no site has logged yet")
        assert (shown.fact("alternate_on"), shown.fact("cursor_flag")) == ("1", "0")
        if how == "SIGTERM":
            (child,) = psutil.Process(shown.pid).children()
            child.terminate()
        else:
            shown.press(how)
        shown.wait_for("exit code: 0")
        assert "Traceback" not in shown.screen
        assert_clean(shown)


@needs_tmux
def test_top_goes_without_keys_where_stdin_is_closed(served: Daemon) -> None:
    with Terminal() as shown:
        command = shlex.join([*COMMAND, "top", "-a", served.address])
        shown.type(f'clear; {command} <&-; echo "exit code": $?')
        shown.wait_for("no site has logged yet")
        assert "q ends" not in shown.screen
        shown.press("C-c")
        shown.wait_for("exit code: 0")
        assert_clean(shown)


@needs_tmux
def test_top_gives_the_terminal_back_while_it_is_suspended(served: Daemon) -> None:
    with Terminal() as shown:
        shown.run("top", "-a", served.address, "-i", "200ms")
        shown.wait_for("no site has logged yet")
        shown.press("C-z")
        shown.wait_for("Stopped")
        assert_clean(shown)
        shown.type("fg")
        shown.wait_for("no site has logged yet")
        log(served, "site-1", 3)
        shown.wait(lambda: "site-1" in run_rows(shown), "site-1")
        shown.press("q")
        shown.wait(lambda: shown.fact("alternate_on") == "0", "the end")
        assert_clean(shown)


def told(*arguments: str, **options: Any) -> tuple[int, str, str]:
    done = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=PATIENCE, **options
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def test_top_prints_once_where_there_is_no_terminal(served: Daemon) -> None:
    log(served, "site-1", 5)
    served.drain()
    options = ("-a", served.address, "-i", "100ms")
    code, out, error = told("top", *options)
    assert (code, error) == (0, "") and "\x1b" not in out
    assert rows(out.splitlines())["site-1"][1:7] == ["e", "r", "ended", "0", "7", "4"]
    code, out, _ = told("top", "--once", "--json", *options)
    facts = json.loads(out)
    assert code == 0 and len(out.splitlines()) == 1
    (site,) = facts["sites"]
    assert (site["site"], site["records"], site["step"], site["rate"]) == ("site-1", 7, 4, 0.0)
    assert facts["adapters"]["jsonl"]["rate"] == 0.0 and facts["rate"] == 0.0


def test_top_prints_a_line_of_json_at_each_look_until_nobody_reads(served: Daemon) -> None:
    with Piped("top", "--json", "-a", served.address, "-i", "100ms") as piped:
        first = json.loads(piped.line())
        assert first["sites"] == []
        log(served, "site-1", 5)
        while not json.loads(piped.line())["sites"]:
            pass
        log(served, "site-1", 5)
        rates = []
        while not any(rates):
            (site,) = json.loads(piped.line())["sites"]
            rates.append(site["rate"])
        assert max(filter(None, rates)) > 0
        piped.close_stdout()
        assert piped.end() == (1, "")


def test_top_says_from_the_start_what_is_wrong(nobody: str) -> None:
    code, out, error = told("top", "-a", nobody)
    assert (code, out) == (1, "") and error.startswith(f"no daemon answers at {nobody}")
    code, _, error = told("top", "-a", nobody, "--interval", "often")
    assert code == 2 and "'often' is no duration" in error
    code, _, error = told("top", "--once", "-a", nobody, "-i", "99999999999d")
    assert (code, error) == (2, "--interval: '99999999999d' is too long; write 36500d at most\n")


def test_names_and_reasons_do_not_act_on_the_terminal(served: Daemon) -> None:
    hostile = "site-\x9b31m\u202e"  # names have no other control characters
    log(served, hostile, 1)
    for command in ("top", "status"):
        code, out, _ = told(command, "-a", served.address, env={**os.environ, "COLUMNS": "200"})
        assert code == 0
        assert r"site-\x9b31m\u202e" in out and hostile not in out


def test_a_picture_of_top_asks_nothing_of_the_network(served: Daemon, tmp_path: Path) -> None:
    log(served, "site-1", 5)
    picture = tmp_path / "top.svg"
    assert told("top", "--svg", str(picture), "-a", served.address, "-i", "100ms")[0] == 0
    drawn = picture.read_text()
    assert "site-1" in drawn and "jsonl" in drawn
    assert set(re.findall(r"https?://[^\"')\s]+", drawn)) <= {
        "http://www.w3.org/2000/svg",
        "https://www.textualize.io",  # in a comment: who drew it
    }


# --- tap ------------------------------------------------------------------------------------------


class Lines:
    """A pipe's, one at a time; only what is asked for is read, but for a buffer."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._buffer = b""

    def waits(self, timeout: float) -> bool:
        """Whether there is more, or the end."""
        return bool(self._buffer or select.select([self._file], [], [], timeout)[0])

    def _more(self) -> bytes:
        assert select.select([self._file], [], [], PATIENCE)[0], self._buffer
        return os.read(self._file.fileno(), 65536)

    def line(self) -> str:
        while b"\n" not in self._buffer and (more := self._more()):
            self._buffer += more
        line, end, self._buffer = self._buffer.partition(b"\n")
        return (line + end).decode()

    def rest(self) -> str:
        while more := self._more():
            self._buffer += more
        rest, self._buffer = self._buffer, b""
        return rest.decode()

    def close(self) -> None:
        self._file.close()


class Piped:
    """A command whose output we read through pipes."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self._process.stdout and self._process.stderr
        self._out, self._error = Lines(self._process.stdout), Lines(self._process.stderr)

    def listens(self) -> Piped:
        """What is logged from now on is shown: the daemon was heard on the subscription."""
        line = self.said()
        assert line.startswith("zmqtrack tap: listening to tcp://"), line
        return self

    def line(self) -> str:
        return self._out.line()

    def said(self) -> str:
        return self._error.line()

    def records(self) -> list[dict[str, Any]]:
        """The rest of them."""
        return [json.loads(line) for line in self._out.rest().splitlines()]

    def close_stdout(self) -> None:
        self._out.close()

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def end(self) -> tuple[int, str]:
        """Exit code, and what else was said."""
        error = self._error.rest()
        return self._process.wait(PATIENCE), error

    def __enter__(self) -> Piped:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._out.close()
        self._error.close()


@needs_tmux
def test_tap_shows_each_record_as_it_was_logged(served: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(bytes(700_000))
    with Terminal(80, 40) as shown:
        shown.run("tap", "-a", served.address)
        shown.wait_for("listening to")
        with zmqtrack.init("e", "r", "site-1", served.address) as run:
            run.log_metric("loss", 0.125, step=7)
            run.log_metric("nothing", float("nan"))
            run.log_text("note", "\x1b[2J[bold]two\nlines[/bold] " + "long " * 100, step=8)
            run.log_image("picture", PNG, step=9)
            run.log_histogram("weights", [1.0, 2.0, 3.5], step=10)
            run.log_param("lr", 0.01)
            run.log_artifact(file, "model.bin")
        shown.wait_for("finished")
        lines = {  # time, site, run, type, key and the rest
            cells[4]: (cells[1:4], cells[5:])
            for line in shown.lines()
            if len(cells := line.split("  ")) > 5
        }
        where = ["site-1", "e/r"]
        assert lines["loss"] == ([*where, "metric"], ["step 7", "0.125"])
        assert lines["nothing"] == ([*where, "metric"], ["nan"])
        assert lines["picture"] == ([*where, "image"], ["step 9", "image 12 kB"])
        assert lines["weights"][0] == [*where, "histogram"]
        assert lines["weights"][1][:1] == ["step 10"]
        assert lines["weights"][1][1].startswith("3 values from 1 to 3.5")
        assert lines["lr"] == ([*where, "param"], ["0.01"])
        assert lines["model.bin"] == ([*where, "artifact"], ["100 % of 700 kB"])
        assert lines["end"] == ([*where, "run"], ["finished"])
        note = lines["note"][1][1]
        assert note.startswith(r"\x1b[2J[bold]two\nlines[/bold]") and note.endswith("…")
        assert all(len(line) <= 80 for line in shown.lines())
        shown.press("C-c")
        shown.wait_for("exit code: 0")
        assert "Traceback" not in shown.screen and "Aborted" not in shown.screen
        assert_clean(shown)


@needs_tmux
def test_tap_goes_on_after_a_restart_and_a_resize(served: Daemon) -> None:
    with Terminal(100, 30) as shown:
        shown.run("tap", "metric", "-a", served.address)
        shown.wait_for("listening to")
        log(served, "site-1", 1)
        shown.wait_for("site-1")
        served.stop()
        shown.wait_for("nothing is heard from")
        served.start()
        shown.wait_for("the daemon is heard again")
        shown.resize(80, 20)
        with zmqtrack.init("e", "r", "site-2", served.address) as run:
            run.log_metric("x" * 300, 1.5, step=3)
        shown.wait_for("site-2")
        (line,) = [line for line in shown.lines() if "site-2" in line]
        assert "metric" in line and "xx…" in line and "step 3" in line and len(line) <= 80
        shown.press("C-c")
        shown.wait_for("exit code: 0")


def wait_for_width(shown: Terminal, width: int) -> None:
    """What runs in the terminal is told of a new size a moment later."""
    with Path(shown.fact("pane_tty")).open() as tty:
        shown.wait(lambda: os.get_terminal_size(tty.fileno()).columns == width, f"{width} columns")


@needs_tmux
def test_tap_fits_each_line_into_the_width_that_the_terminal_has_then(served: Daemon) -> None:
    with Terminal(100, 30) as shown:
        shown.run("tap", "text", "-a", served.address)
        shown.wait_for("listening to")
        for width, letter in ((100, "a"), (60, "b"), (120, "c")):
            shown.resize(width, 30)
            wait_for_width(shown, width)
            with zmqtrack.init("e", "r", "s", served.address) as run:
                run.log_text("note", letter * 300)
            shown.wait_for(letter * 10)
            (line,) = [line for line in shown.lines() if letter * 5 in line]
            assert len(line) == width and line.endswith(letter + "…")
        shown.press("C-c")
        shown.wait_for("exit code: 0")


def test_tap_chooses_by_type_site_run_and_key(served: Daemon) -> None:
    choices: dict[str, list[str]] = {
        "types": ["metric", "text"],
        "site": ["--site", "site-2", "--site", "site-3"],
        "type and site": ["param", "metric", "--site", "site-1"],
        "run": ["--run", "late"],
        "key": ["--key", "train/*", "--key", "l?"],
        "all": [],
    }
    logged: list[tuple[str, str, str, str]] = []
    with contextlib.ExitStack() as stack:
        taps = {
            name: stack.enter_context(Piped("tap", "--json", "-a", served.address, *choice))
            for name, choice in choices.items()
        }
        for each in taps.values():
            each.listens()
        for site, name in (("site-1", "r"), ("site-2", "r"), ("site-3", "late")):
            with zmqtrack.init("e", name, site, served.address) as run:
                run.log_metric("train/loss", 1)
                run.log_metric("loss", 2)
                run.log_param("lr", 0.1)
                run.log_text("train/text", "t")
                run.log("mine", "own", [1, 2])
            kinds = {"metric": ("train/loss", "loss"), "param": ("lr",), "text": ("train/text",)}
            kinds |= {"mine": ("own",), "run": ("start", "end")}
            logged += [(site, name, kind, key) for kind, keys in kinds.items() for key in keys]
        served.drain()
        shown = {}
        for name, each in taps.items():
            wanted = {
                "types": lambda r: r[2] in ("metric", "text"),
                "site": lambda r: r[0] in ("site-2", "site-3"),
                "type and site": lambda r: r[0] == "site-1" and r[2] in ("param", "metric"),
                "run": lambda r: r[1] == "late",
                "key": lambda r: r[3].startswith("train/") or r[3] == "lr",
                "all": lambda r: True,
            }[name]
            expected = sorted(filter(wanted, logged))
            found = [json.loads(each.line()) for _ in expected]
            each.interrupt()
            found += each.records()
            shown[name] = sorted((r["site"], r["run"], r["type"], r["key"]) for r in found)
            assert shown[name] == expected, name
            assert each.end() == (0, "")


def test_taps_json_holds_all_of_a_record(served: Daemon) -> None:
    with Piped("tap", "--json", "-a", served.address, "--limit", "8") as piped:
        piped.listens()
        with zmqtrack.init("e", "r", "site-1", served.address, flush_interval=0) as run:
            run.log_metric("nan", float("nan"), step=3, time=12.5)
            run.log_metric("inf", float("-inf"))
            run.log_text("text", "é\x1b\n")
            run.log_image("image", PNG)
            run.log_histogram("histogram", [1, 2])
            run.log("mine", "own", {"a": b"\0", 1: float("inf")})
        found = {record["key"]: record for record in piped.records()}
        assert piped.end() == (0, "")
    assert list(found) == ["start", "nan", "inf", "text", "image", "histogram", "own", "end"]
    nan = found["nan"]
    assert (nan["value"], nan["step"], nan["time"], nan["type"]) == ("NaN", 3, 12.5, "metric")
    assert (nan["site"], nan["experiment"], nan["run"]) == ("site-1", "e", "r")
    assert found["inf"]["value"] == "-Infinity" and found["inf"]["step"] is None
    assert found["text"]["value"] == "é\x1b\n"
    assert base64.b64decode(found["image"]["value"]) == PNG
    assert sum(found["histogram"]["value"]["counts"]) == 2
    assert found["own"]["value"] == {
        "$map": [["a", {"$bytes": "AA=="}], [1, {"$float": "Infinity"}]]
    }
    assert [record["seq"] for record in found.values()] == sorted(r["seq"] for r in found.values())


def test_tap_ends_when_nobody_reads_though_nothing_passes(served: Daemon) -> None:
    command = f"{' '.join(COMMAND)} tap metric -a {served.address} | head -2"
    process = subprocess.Popen(
        ["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr and "listening" in process.stderr.readline()
    log(served, "site-1", 3)
    out, error = process.communicate(timeout=PATIENCE)
    assert (len(out.splitlines()), error) == (2, "")


def test_tap_says_how_much_it_missed_and_holds_nobody_up(served: Daemon, tmp_path: Path) -> None:
    """Nobody reads its pipe: what goes on meanwhile, and no buffer holds, is dropped for it."""
    texts, folder, run = 5_000, tmp_path / "many", RunKey("e", "r", "site-1")
    with contextlib.closing(Spool.create(folder, run, served.address)) as spool:
        spool.append(_texts(spool.stream, run, texts))
    with Piped("tap", "text", "--json", "-a", served.address) as piped:
        piped.listens()
        assert spools.send(folder, PATIENCE, None) == (texts, 0)
        served.drain()  # the adapter has all of it, though the tap has not moved
        offsets, missed = set(), 0
        deadline = time.monotonic() + PATIENCE
        while len(offsets) + missed < texts:
            assert time.monotonic() < deadline, (len(offsets), missed)
            if piped._out.waits(0.1):
                offsets.add(json.loads(piped.line())["offset"])
            if piped._error.waits(0):
                said = piped.said()
                match = re.fullmatch(
                    r"zmqtrack tap: up to (\d+) batches missed \(too fast .*\)\n", said
                )
                assert match, said
                missed += int(match[1])
        piped.interrupt()
        assert (piped.records(), piped.end()) == ([], (0, ""))
    assert len(offsets) + missed == texts
    assert offsets and missed


def _texts(stream: bytes, run: RunKey, count: int) -> Iterator[Outgoing]:
    """Batches of one record, 12 kB each."""
    for seq in range(1, count + 1):
        header = wire.encode_header(wire.Header(stream, seq, run, 1))
        body = wire.encode_body([Record("text", "x" * 12_000, seq, 0.0)])
        yield Outgoing(seq, "text", 1, header, body)


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        ("Metric", 2, "'Metric' cannot name a data type"),
        ("lost", 2, "'lost' is the protocol's own word"),
        ("metrics", 1, "did you mean metric?"),
        ("--limit 0", 2, "--limit"),
        ("-a localhost", 2, "'localhost' is no address"),
        ("--key-file /nowhere/at.key", 2, "/nowhere/at.key"),
    ],
)
def test_what_tap_cannot_do_is_named(arguments: str, code: int, reason: str, nobody: str) -> None:
    env = {**os.environ, "COLUMNS": "300", "ZMQTRACK_ADDRESS": nobody}
    found, out, error = told("tap", *arguments.split(), env=env)
    assert (found, out) == (code, "") and reason in error


# --- tap, with keys -------------------------------------------------------------------------------


@pytest.fixture
def place(daemon: Make, tmp_path: Path) -> Iterator[Place]:
    with Place(daemon, tmp_path / "place") as made:
        yield made


def test_a_subscriber_sees_what_it_was_granted(place: Place) -> None:
    writers = [Site(place, "site-1"), Site(place, "site-2")]
    one = Site(place, "dashboard", "subscriber", sites=["site-1"], topics=["metric"])
    every = Site(place, "viewer", "subscriber")
    with (
        Piped("tap", "--json", "--key-file", str(one.file)) as narrow,
        Piped("tap", "--json", "--key-file", str(every.file)) as wide,
    ):
        narrow.listens()
        wide.listens()
        for writer in reversed(writers):
            with writer.init() as run:
                run.log_metric("a", 1)
                run.log_param("p", 2)
        # Four records of each site; the narrow one gets the last metric after all of site-2.
        seen = [json.loads(wide.line()) for _ in range(8)]
        assert {record["site"] for record in seen} == {"site-1", "site-2"}
        only = [json.loads(narrow.line())]
        for each in (narrow, wide):
            each.interrupt()
        only += narrow.records()
        assert [(record["site"], record["type"]) for record in only] == [("site-1", "metric")]
        assert wide.records() == []


def test_who_may_not_see_records_is_told_what_it_takes(place: Place, tmp_path: Path) -> None:
    writer = Site(place, "site-1")
    operator = Site(place, "boss", "operator")
    for site, roles in ((writer, "subscriber writer"), (operator, "operator subscriber")):
        name = site.key.name
        code, out, error = told("tap", "--key-file", str(site.file))
        assert (code, out) == (1, "")
        assert f"the key of {name} may not see records" in error
        assert f"zmqtrack keys roles {name} {roles}" in error


def test_a_subscriber_whose_key_is_taken_away_is_told_so(place: Place) -> None:
    viewer = Site(place, "viewer", "subscriber")
    with Piped("tap", "--key-file", str(viewer.file)) as piped:
        piped.listens()
        place.ring.revoke("viewer")
        assert "nothing is heard from" in piped.said()
        assert piped.end() == (1, "this key has been revoked\n")
