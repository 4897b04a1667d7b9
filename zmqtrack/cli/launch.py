"""``zmqtrack run``: a training with a daemon of its own, and no service."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, NamedTuple

import typer

from ..config import Config, load
from ..errors import ConfigError
from ..records import RunKey
from . import results, show
from .common import fail, seconds, tell
from .findings import mixed_writers
from .lastline import LastLine
from .private import EX_CONFIG, OUT, CannotServe, Private, leftovers

__all__ = ["run"]

HERE = Path("zmqtrack.yaml")
#: Seconds between two looks at the daemon.
REFRESH = 1.0
#: Seconds that it may take to start, and after an interruption to stop.
START, STOP_NOW = 60.0, 5.0
#: Seconds of delivering after which it is said for what we wait.
PATIENCE = 2.0
#: Warnings of the daemon that are repeated at the end.
WARNINGS = 5
#: What an adapter counts that is nothing to worry about, or told elsewhere.
COUNTED = frozenset({"delivered", "retries", "dead_letters"})
#: `si_code` of a signal that the terminal sent: to the training too, like to all in its foreground.
SI_KERNEL = 0x80

ENDING = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT})
HANDED_ON = ENDING | {signal.SIGUSR1, signal.SIGUSR2}


def run(
    command: Annotated[
        list[str] | None, typer.Argument(metavar="COMMAND [ARGUMENTS]", show_default=False)
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help=f"Its adapters are used. Default: {HERE}, if there."),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="TRACKERS",
            help=f"Without a file: {', '.join(results.TRACKERS)}; several with commas between. "
            "Default: tensorboard if it is installed, else jsonl.",
        ),
    ] = None,
    experiment: Annotated[
        str | None, typer.Option(help="The experiment's name, whatever the script says.")
    ] = None,
    run_name: Annotated[
        str | None, typer.Option("--run", help="The run's name, the same for all processes.")
    ] = None,
    site: Annotated[str | None, typer.Option(help="Who logs. Default: the host's name.")] = None,
    timeout: Annotated[
        float,
        typer.Option(callback=seconds, help="Seconds to wait at the end until all is delivered."),
    ] = 60.0,
    state: Annotated[
        Path | None,
        typer.Option(
            help=f"Where it is kept until then. Default: the file's state_dir, else {OUT}."
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Go on with what an earlier launch has kept there."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Tell only what is wrong.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the daemon's log.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Tell at the end in one line of JSON, on stderr.")
    ] = False,
) -> None:
    """Run a training with a daemon of its own: no service is needed.

    Waits until all is delivered, and says where it is. What cannot be is kept,
    and the next launch in the same folder tries again.

    Exit codes: the command's; 128 + N after signal N; 127 if there is no such
    command, 126 if it cannot be run; 78 for a bad configuration.

    Example:  zmqtrack run -- python train.py --lr 0.1

    Example:  zmqtrack run --to tensorboard,mlflow -- python train.py
    """
    try:
        Path.cwd()
    except FileNotFoundError:
        gone = str(Path("/proc/self/cwd").readlink()).removesuffix(" (deleted)")
        fail(f"the working folder {gone} was removed: cd to one that is there")
    if not command and resume is None:
        fail("name the command to be run: zmqtrack run -- python train.py", 2)
    if command and shutil.which(command[0]) is None:
        there = "/" in command[0] and Path(command[0]).exists()
        fail(f"{command[0]}: {'cannot be run' if there else 'command not found'}",
             126 if there else 127)  # fmt: skip
    plan = _plan(config, to, state, resume)
    names = {"EXPERIMENT": experiment, "RUN": run_name, "SITE": site}
    told = {f"ZMQTRACK_{name}": value for name, value in names.items() if value is not None}
    say = Say(quiet=quiet, verbose=verbose, as_json=as_json)
    try:
        with Signals() as signals:
            launch = Launch(plan, say, signals, timeout)
            code = launch.run(command or [], told)
    except CannotServe as error:
        raise typer.Exit(_explain(error, plan)) from None
    raise typer.Exit(code)


# --- what to use -----------------------------------------------------------------------------


class Plan(NamedTuple):
    """With which configuration, and where its state is."""

    config: Config | None  # None: the one that was kept
    state: Path
    file: Path | None
    resume: Path | None
    why: str


def _plan(config: Path | None, to: str | None, state: Path | None, resume: Path | None) -> Plan:
    """Exit codes: 2 for a wrong argument, 78 for a bad configuration."""
    if config and to is not None:
        fail("--config and --to both say where records go: give one of them", 2)
    if to is not None:
        return Plan(_chosen(to.split(",")), state or OUT, None, resume, "--to")
    if resume and not config:
        return Plan(None, state or OUT, None, resume, str(resume))
    file = config or (HERE if HERE.is_file() else None)
    if file is None:
        why = "the default; --to or --config choose others"
        return Plan(_chosen([results.default_tracker()]), state or OUT, None, resume, why)
    try:
        loaded = load(file).config
    except ConfigError as error:
        fail(str(error), EX_CONFIG)
    if not loaded.adapters:
        fail(f"{file}:1: adapters: there is none, so nothing would be delivered", EX_CONFIG)
    if state is None:
        given = "state_dir" in loaded.daemon.model_fields_set
        state = loaded.daemon.state_dir if given else OUT
    return Plan(loaded, state, file, resume, str(file))


def _chosen(names: list[str]) -> Config:
    names = list(dict.fromkeys(name.strip() for name in names))
    for name in names:
        if name not in results.TRACKERS:
            fail(
                f"--to takes {', '.join(results.TRACKERS)}, not {name!r}; "
                "another tracker takes a configuration file, see --config",
                2,
            )
    return Config(adapters=[results.tracker(name, OUT) for name in names], include=None)


def _explain(error: CannotServe, plan: Plan) -> int:
    """Say why there is no daemon, with the places in the user's own file."""
    if error.code == EX_CONFIG and plan.file is not None:
        command = [sys.executable, "-m", "zmqtrack.daemon", "--check", "--config", str(plan.file)]
        checked = subprocess.run(command, capture_output=True, text=True, check=False)
        if checked.returncode == EX_CONFIG:
            tell(checked.stderr.rstrip())
            return EX_CONFIG
    tell(f"zmqtrack: the daemon does not start, and nothing was run:\n{error}")
    return error.code


# --- what we hear and say --------------------------------------------------------------------


class Signals:
    """Signals are taken one by one, in :meth:`wait`, while the ``with`` block lasts."""

    def __enter__(self) -> Signals:
        # What was ignored when we were started (nohup) stays so.
        heard = {number for number in HANDED_ON if signal.getsignal(number) != signal.SIG_IGN}
        self._heard = heard | {signal.SIGCHLD}
        # Not this one, as of a parent that reaps nothing: exit codes would be lost, and be 0 to us.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, self._heard)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        while self.wait(0) is not None:
            pass  # they have had their effect
        self.restore()

    def restore(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)

    def wait(self, seconds: float) -> signal.struct_siginfo | None:
        """The next one; SIGCHLD too."""
        return signal.sigtimedwait(self._heard, seconds)

    def asked_to_end(self, seconds: float) -> int:
        """The number of a signal that asks us to, if one comes within ``seconds``; else 0."""
        info = self.wait(seconds)
        return info.si_signo if info is not None and info.si_signo in ENDING else 0


class Say:
    """All that we say goes to stderr: stdout is the training's."""

    def __init__(self, *, quiet: bool, verbose: bool, as_json: bool) -> None:
        self.quiet = quiet or as_json
        self.verbose = verbose
        self.as_json = as_json
        self.line = LastLine(not (self.quiet or verbose))

    def fact(self, text: str) -> None:
        if not self.quiet:
            self.problem(text)

    def problem(self, text: str) -> None:
        tell(f"zmqtrack: {text}")


# --- one launch ------------------------------------------------------------------------------


class Launch:
    """The daemon's start, the training, the delivery, the end."""

    def __init__(self, plan: Plan, say: Say, signals: Signals, timeout: float) -> None:
        self._plan = plan
        self._say = say
        self._signals = signals
        self._timeout = timeout
        self._began = time.monotonic()
        self._deadline = 0.0
        self._interrupted = False
        self._seen = (0.0, 0)  # when we last looked, and how many records there were

    def run(self, command: list[str], names: dict[str, str]) -> int:
        """Returns the exit code.

        Raises:
            CannotServe: the daemon does not start; nothing was run.
        """
        plan = self._plan
        try:
            if plan.resume is not None:
                private = Private.open(plan.resume, plan.config)
            else:
                assert plan.config is not None
                private = Private.create(plan.state, plan.config)
        except ConfigError as error:
            raise CannotServe(str(error), EX_CONFIG) from error
        code, facts = self._serve(private, command, names, keep=plan.resume is not None)
        if facts is None:
            return code
        facts = {"exit_code": code, **facts}
        if not self._say.as_json:
            self._report(facts)
        if plan.resume is None and not facts["kept"]:
            self._deliver_leftovers()
        if self._say.as_json:
            tell(json.dumps(facts))  # the last line
        return code if command else int(not facts["delivered"])

    def _serve(
        self, private: Private, command: list[str], names: dict[str, str], *, keep: bool
    ) -> tuple[int, dict[str, Any] | None]:
        """Start the daemon, run the command, deliver; returns its exit code and what came of it.

        None if a signal came before it began. ``keep`` says what becomes of the folder then.
        """
        started = False
        try:
            if number := self._start(private):
                return 128 + number, None
            started = True
            code = self._accompany(private, command, names) if command else 0
            self._deadline = self._deadline or time.monotonic() + self._timeout
            return code, self._deliver(private)
        finally:
            self._say.line.clear()
            if not private.closed:
                self._stop(private)
                private.close(keep=keep or started)

    def _start(self, private: Private) -> int:
        """The number of a signal that came before it could be reached, else 0."""
        private.start(self._say.verbose)
        deadline = time.monotonic() + START
        while not private.ready:
            if number := self._signals.asked_to_end(0.02):
                return number
            if time.monotonic() > deadline:
                raise CannotServe(f"it is not there after {START:g} s\n{private.tail()}")
        return 0

    def _accompany(self, private: Private, command: list[str], names: dict[str, str]) -> int:
        """Run the training to its end; returns its exit code as a shell tells it."""
        environment = {
            **os.environ,
            **names,
            "ZMQTRACK_ADDRESS": private.address,
            "ZMQTRACK_SPOOL_DIR": str(private.spool),
        }
        environment.pop("ZMQTRACK_KEY", None)  # it is for another daemon; this one asks for none
        self._say.fact(f"records go to {', '.join(private.adapters)} ({self._plan.why})")
        self._say.line.show("zmqtrack")
        try:
            # There is no thread yet, so the child may run some Python before it is the command.
            training = subprocess.Popen(command, env=environment, preexec_fn=self._signals.restore)
        except OSError as error:
            self._say.problem(f"{command[0]}: {error.strerror}")
            return 127 if isinstance(error, FileNotFoundError) else 126
        while (code := training.poll()) is None:
            info = self._signals.wait(REFRESH)
            if info is None:
                self._show(private, "")
            elif info.si_signo != signal.SIGCHLD and info.si_code != SI_KERNEL:
                training.send_signal(info.si_signo)
            self._revive(private)
        while self._signals.wait(0) is not None:
            pass  # the Ctrl-C that ended it is not meant for us
        return code if code >= 0 else 128 - code

    def _revive(self, private: Private) -> None:
        if news := private.revive():
            self._say.problem(news)

    def _show(self, private: Private, doing: str) -> None:
        """Draw the live line, if there is somebody to see it."""
        line = self._say.line
        if not line.wanted:
            line.clear()
            return
        status = private.status(timeout=0.5)
        if status is None:
            line.show("zmqtrack  the daemon does not answer")
            return
        now, records = time.monotonic(), _records(status)
        before, known = self._seen
        self._seen = now, records
        rate = (records - known) / (now - before) if before else 0.0
        steps = [each["step"] for each in status["sites"] if each["step"] is not None]
        behind = private.behind(status)
        parts = [f"zmqtrack {_clock(now - self._began)}", f"{records:,} records", f"{rate:,.0f}/s"]
        if steps:
            parts.append(f"step {max(steps)}")
        for name in private.adapters:
            state = status["adapters"].get(name, {}).get("state", "")
            word = "" if state in ("running", "starting", "away") else f" ({state})"
            lag = f"{behind[name]} behind" if name in behind else "up to date"
            parts.append(f"{name} {lag}{word}")
        line.show("  ".join([*parts, doing]))

    # --- delivery -----------------------------------------------------------------------------

    def _deliver(self, private: Private) -> dict[str, Any]:
        """Wait until all is delivered, stop the daemon, and keep what is left; tells about it."""
        status = self._await_delivery(private)
        outboxes = private.undelivered()
        facts = _facts(private, status)
        self._stop(private)
        facts["warnings"] = private.warnings()
        facts["outboxes"] = outboxes
        facts["delivered"] = status is not None and not (private.behind(status) or outboxes)
        letters = any(adapter["dead_letters"] for adapter in facts["adapters"].values())
        if facts["delivered"] and letters:
            private.wait_for_person()
        keep = letters or not facts["delivered"]
        facts["kept"] = _shown(private.folder) if keep else None
        private.close(keep=keep)
        return facts

    def _await_delivery(self, private: Private) -> dict[str, Any] | None:
        """Returns the daemon's last status."""
        say_at = time.monotonic() + PATIENCE
        ending = None  # whether runs that nobody goes on with come to their end
        while True:
            self._revive(private)
            left = private.send_spools(1.0)
            status = private.status()
            behind = private.behind(status) if status is not None else {}
            done = status is not None and not (behind or left or private.retrying(status))
            if done and _open(status):
                if ending is None and not private.undelivered():
                    ending = private.end_open_runs()
                done = not ending
            if done or time.monotonic() >= self._deadline:
                return status
            self._show(private, "Ctrl-C: deliver it later")
            if time.monotonic() > say_at and not self._say.line.wanted:
                names = ", ".join(behind or private.adapters)
                seconds = self._deadline - time.monotonic()
                self._say.fact(f"waiting for {names}, {seconds:.0f} s at most")
                say_at = self._deadline
            if self._signals.asked_to_end(0.1):
                self._interrupted = True
                return status

    def _stop(self, private: Private) -> None:
        private.stop()
        daemon = private.config.daemon
        seconds = STOP_NOW if self._interrupted else daemon.stop_timeout + STOP_NOW
        deadline = time.monotonic() + seconds
        while private.running and time.monotonic() < deadline:
            if self._signals.asked_to_end(0.1):
                break
        private.kill()

    def _deliver_leftovers(self) -> None:
        """What earlier launches could not, in the time that is left."""
        for folder in leftovers(self._plan.state):
            if self._interrupted or time.monotonic() >= self._deadline:
                return
            try:
                private = Private.open(folder)
            except (CannotServe, ConfigError):
                continue  # in use, or for a person to look at
            try:
                _, facts = self._serve(private, [], {}, keep=True)
            except CannotServe as error:
                self._say.problem(f"{_shown(folder)} is still to be delivered: {error}")
                continue
            if facts is None:
                return
            if facts["kept"]:
                self._say.problem(f"{_shown(folder)} is still to be delivered")
            else:
                self._say.fact(f"delivered what an earlier launch had kept in {_shown(folder)}")

    # --- the end ------------------------------------------------------------------------------

    def _report(self, facts: dict[str, Any]) -> None:
        problem, fact = self._say.problem, self._say.fact
        names = ["/".join(run[part] for part in RunKey._fields) for run in facts["runs"]]
        if names:
            fact(f"{facts['records']:,} records of {', '.join(names[:3])}{' …' * bool(names[3:])}")
            for name, run in zip(names, facts["runs"], strict=True):
                if run["state"] in ("killed", "left"):
                    fact(f"{name} ended without saying so: it is shown as {run['state']}")
        elif facts["exit_code"]:
            fact("nothing was logged")
        else:
            fact("nothing was logged; an address in the script comes before ZMQTRACK_ADDRESS")
        for name, adapter in facts["adapters"].items():
            undelivered = adapter["behind"] != 0 or adapter["dead_letters"]
            (problem if undelivered else fact)(_line(name, adapter))
            if adapter["look"] and not self._say.quiet:
                tell(f"    {adapter['look']}")
            for reason, n in adapter["in_part"].items():
                problem(f"{name}: {n:,} × {reason}")
        for loss in facts["losses"]:
            site = f" of {loss['site']}" if loss["site"] else ""
            problem(f"lost or refused: {loss['n']:,}{site}: {loss['reason']}")
        for each in facts["not_carried"]:
            fact(
                f"not carried, which is no loss: {each['n']:,} of {each['site']}: {each['reason']}"
            )
        for detail, advice in facts["mixed"]:
            problem(f"{detail}. {advice}")
        if facts["outboxes"]:
            problem(f"{facts['outboxes']} outboxes have not reached the daemon, or are in use")
        warnings = [] if self._say.verbose else facts["warnings"]
        for warning in warnings[-WARNINGS:]:
            problem(f"the daemon's log: {warning}")
        if not facts["kept"]:
            return
        problem(f"kept in {facts['kept']}")
        again = f"    zmqtrack run --resume {facts['kept']}"
        if facts["delivered"]:
            problem("to see what was refused, and why:")
            tell(f"{again} -- zmqtrack dlq list")
        else:
            problem("the next `zmqtrack run` here tries again; or now:")
            tell(again)


def _open(status: dict[str, Any] | None) -> bool:
    """Whether a run has begun and not ended."""
    return any(each["state"] in ("active", "stale") for each in (status or {}).get("sites", ()))


def _facts(private: Private, status: dict[str, Any] | None) -> dict[str, Any]:
    adapters = {}
    status = show.clean(status)
    known = status["adapters"] if status is not None else {}
    for adapter in private.config.adapters:
        name = str(adapter.name)
        said = known.get(name, {})
        place = results.place(adapter, private.cwd)
        adapters[name] = {
            "type": adapter.type,
            "where": place.where,
            "look": place.look,
            "delivered": said.get("counters", {}).get("delivered", 0),
            "behind": said.get("lag"),
            "dead_letters": said.get("dead_letters", 0),
            "state": said.get("state", "unknown"),
            "detail": said.get("detail", ""),
            "in_part": {
                reason: n for reason, n in said.get("counters", {}).items() if reason not in COUNTED
            },
        }
    losses = [
        {"reason": reason, "site": "", "n": n}
        for reason, n in (status["daemon"]["refused"].items() if status is not None else ())
    ]
    return {
        "records": _records(status) if status is not None else 0,
        "runs": [
            {name: each[name] for name in ("experiment", "run", "site", "state", "records")}
            for each in (status or {}).get("sites", ())
        ],
        "adapters": adapters,
        "losses": losses + (status["losses"] if status is not None else []),
        "not_carried": status["not_carried"] if status is not None else [],
        "mixed": mixed_writers(status) if status is not None else [],
    }


def _line(name: str, adapter: dict[str, Any]) -> str:
    text = f"{name}: {adapter['delivered']:,} delivered"
    if adapter["where"]:
        text += f", in {adapter['where']}"
    if adapter["behind"] is None:
        text += "; how much is still to go is not known, as the daemon does not answer"
    elif adapter["behind"]:
        text += f"; {adapter['behind']} batches still to go ({adapter['state']}"
        text += f": {adapter['detail']})" if adapter["detail"] else ")"
    if adapter["dead_letters"]:
        text += f"; {adapter['dead_letters']} dead letters: it refuses them for good"
    return text


def _records(status: dict[str, Any]) -> int:
    return sum(each["records"] for each in status["sites"])


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _shown(folder: Path) -> str:
    """As short as it can be typed here."""
    with contextlib.suppress(ValueError):
        return str(folder.relative_to(Path.cwd()))
    return str(folder)
