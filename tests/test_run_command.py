"""``zmqtrack run``: a training with a daemon of its own, as a person or a script runs it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from harness import PATIENCE, jsonl, read_jsonl
from zmqtrack.cli import results
from zmqtrack.config import AdapterConfig

ROOT = Path(__file__).parent.parent
ZMQTRACK = [sys.executable, "-m", "zmqtrack.cli"]

#: Logs, says so, and goes on until it is told to end.
LOGS_ON = """\
import sys, time, zmqtrack
with zmqtrack.init("e", "r", "s") as run:
    for step in range(100):
        run.log_metric("a", step, step)
    run.flush()
    print("ready", flush=True)
    {then}
"""


class Place:
    """A folder of its own, with a short one for sockets: what is left in them shows."""

    def __init__(self, folder: Path, sockets: Path) -> None:
        self.folder = folder
        self.sockets = sockets
        self.env = {**os.environ, "TMPDIR": str(sockets), "TERM": "xterm"}
        for name in ("ZMQTRACK_EXPERIMENT", "ZMQTRACK_SPOOL_DIR"):
            self.env.pop(name)

    def configure(self, adapters: list[dict[str, Any]]) -> None:
        (self.folder / "zmqtrack.yaml").write_text(yaml.safe_dump({"adapters": adapters}))

    def script(self, text: str, name: str = "train.py") -> list[str]:
        (self.folder / name).write_text(text)
        return [sys.executable, name]

    def start(self, *arguments: str, **more: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*ZMQTRACK, "run", *arguments],
            cwd=self.folder,
            env=self.env,
            text=True,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more},
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=PATIENCE)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def lines(self, experiment: str = "e", run: str = "r", site: str = "s") -> list[dict[str, Any]]:
        return read_jsonl(self.folder / "zmqtrack-out" / "jsonl", experiment, run, site)

    def steps(self, **names: str) -> list[int]:
        return [line["step"] for line in self.lines(**names) if line["type"] == "metric"]

    def end(self, **names: str) -> list[str]:
        return [line["value"] for line in self.lines(**names) if line["key"] == "end"]

    def launches(self) -> list[Path]:
        return sorted(self.folder.glob("zmqtrack-out/launches/*"))

    def processes(self) -> list[psutil.Process]:
        """All that were started in the folder, and live."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.cwd() == str(self.folder) and process.status() != "zombie":
                    found.append(process)
        return found

    def daemon(self) -> psutil.Process:
        (found,) = [
            process
            for process in self.processes()
            if any("from zmqtrack.daemon" in part for part in process.cmdline())
        ]
        return found

    def assert_clean(self) -> None:
        """No process, no socket, no state is left behind."""
        assert _soon(lambda: not self.processes()), self.processes()
        assert not list(self.sockets.iterdir())
        assert not (self.folder / "zmqtrack-out" / "launches").exists()


def _soon(condition: Callable[[], Any], timeout: float = PATIENCE) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    sockets = Path(tempfile.mkdtemp(prefix="zr-", dir="/tmp"))
    made = Place(tmp_path / "here", sockets)
    made.folder.mkdir()
    made.configure([jsonl(Path("zmqtrack-out/jsonl"))])
    yield made
    for process in made.processes():  # of a test that failed
        with contextlib.suppress(psutil.Error):
            process.kill()
    shutil.rmtree(sockets)


# --- the training's way ----------------------------------------------------------------------


def test_an_example_lands_in_the_trackers_and_nothing_is_left_behind(place: Place) -> None:
    example = str(ROOT / "examples" / "plain" / "train.py")
    done = place.run("--to", "tensorboard,jsonl", "--run", "r", "--site", "s",
                     "--", sys.executable, example, "--steps", "50")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("logged as plain/r/s\n")
    out = "zmqtrack-out/tensorboard"  # and not what a zmqtrack.yaml says that is there
    assert "records go to tensorboard, jsonl (--to)" in done.stderr
    assert f"tensorboard: 156 delivered, in {out}" in done.stderr
    assert f"    tensorboard --load_fast=false --logdir {out}\n" in done.stderr
    assert place.steps(experiment="plain") == [s for s in range(50) for _ in range(3)]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(place.folder / out / "plain/r/s")).Reload()
    assert [each.step for each in events.Scalars("loss")] == list(range(50))
    logged = [line["value"] for line in place.lines(experiment="plain") if line["key"] == "loss"]
    assert [each.value for each in events.Scalars("loss")] == pytest.approx(logged)
    place.assert_clean()


def test_the_training_gets_a_private_daemon_and_its_exit_code_comes_back(place: Place) -> None:
    place.env |= {"ZMQTRACK_KEY": "/nowhere.key", "ZMQTRACK_ADDRESS": "tcp://127.0.0.1:9"}
    script = place.script(
        LOGS_ON.format(then="import os; from pathlib import Path")
        + "    folder = Path(os.environ['ZMQTRACK_ADDRESS'][6:]).parent\n"
        + "    print(oct(folder.stat().st_mode), os.environ['ZMQTRACK_SPOOL_DIR'], sys.argv[1:])\n"
        + "sys.exit(3)\n"
    )
    done = place.run("--json", "--", *script, "--lr", "1", "--json")
    assert done.returncode == 3, done.stderr
    _, mode, spool, *arguments = done.stdout.split(maxsplit=3)
    assert mode == "0o40700" and arguments == ["['--lr', '1', '--json']\n"]
    assert Path(spool).parents[1] == place.folder / "zmqtrack-out" / "launches"
    facts = json.loads(done.stderr)
    assert (facts["exit_code"], facts["records"], facts["kept"]) == (3, 102, None)
    assert facts["adapters"]["jsonl"]["delivered"] == 102
    assert place.steps() == list(range(100)) and place.end() == ["finished"]
    place.assert_clean()


def test_a_training_that_is_killed_ends_as_killed_with_all_that_it_had_logged(place: Place) -> None:
    script = place.script(LOGS_ON.format(then="import os; os.kill(os.getpid(), 9)"))
    done = place.run("--", *script)
    assert done.returncode == 128 + signal.SIGKILL, done.stderr
    assert place.steps() == list(range(100)) and place.end() == ["killed"]
    assert "e/r/s ended without saying so: it is shown as killed" in done.stderr
    place.assert_clean()


@pytest.mark.parametrize(
    ("number", "code", "end"), [("SIGTERM", 143, "killed"), ("SIGINT", 130, "killed")]
)
def test_a_signal_is_handed_on_and_what_was_logged_is_delivered(
    place: Place, number: str, code: int, end: str
) -> None:
    script = place.script(LOGS_ON.format(then="while True: time.sleep(0.2)"))
    process = place.start("--", *script)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(getattr(signal, number))
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, err
    assert place.steps() == list(range(100)) and place.end() == [end]
    place.assert_clean()


def test_the_exit_code_comes_back_where_the_parent_ignores_that_its_children_end(
    place: Place,
) -> None:
    """As some supervisors do; who ignores SIGCHLD is told no exit code."""
    ignoring = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); "
    ignoring += "os.execv(sys.executable, sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", ignoring, *ZMQTRACK, "run", "--json", "--", "sh", "-c", "exit 3"],
        cwd=place.folder, env=place.env, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stderr)["exit_code"] == 3
    place.assert_clean()


@pytest.mark.parametrize("option", ["--verbose", "--json"])
def test_a_full_disk_below_stderr_keeps_no_training_from_running(place: Place, option: str) -> None:
    with Path("/dev/full").open("w") as full:
        process = place.start(option, "--", "touch", "ran", stderr=full)
        assert process.wait(PATIENCE) == 0
        failed = place.start(option, "--to", "nothing", "--", "touch", "ran", stderr=full)
        assert failed.wait(PATIENCE) == 2
    assert (place.folder / "ran").exists()
    place.assert_clean()


def test_the_exit_code_is_the_training_s_though_nobody_reads_any_more(place: Place) -> None:
    """As with `2>&1 | head -1`."""
    process = place.start("--", "sh", "-c", "read line; exit 5", stdin=subprocess.PIPE)
    assert process.stderr is not None
    assert "records go to jsonl" in process.stderr.readline()
    process.stderr.close()
    process.stderr = None
    process.communicate("go on\n", timeout=PATIENCE)
    assert process.returncode == 5
    place.assert_clean()


class Terminal:
    """A process at a terminal of its own, in its foreground."""

    def __init__(self, place: Place, *arguments: str) -> None:
        self.pid, self._master = pty.fork()
        if not self.pid:
            os.chdir(place.folder)
            os.execve(sys.executable, [*ZMQTRACK, "run", *arguments], place.env)
        size = b"\x0c\x00\x50\x00\x00\x00\x00\x00"  # 12 rows, 80 columns
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)
        self.seen = ""

    def wait_for(self, pattern: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not re.search(pattern, self.seen):
            assert time.monotonic() < deadline, self.seen
            if select.select([self._master], [], [], 0.1)[0]:
                self.seen += os.read(self._master, 65536).decode()

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait(self) -> int:
        with contextlib.suppress(OSError):  # EIO: the other side has closed
            while data := os.read(self._master, 65536):
                self.seen += data.decode()
        os.close(self._master)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_ctrl_c_reaches_the_training_once_and_the_terminal_is_left_as_it_was(place: Place) -> None:
    then = "n = 0\n    try: time.sleep(60)\n    except KeyboardInterrupt: n += 1\n"
    then += "    try: time.sleep(0.5)\n    except KeyboardInterrupt: n += 1\n"
    then += "    print(f'interrupted {n} times')\n    raise KeyboardInterrupt"
    script = place.script(LOGS_ON.format(then=then))
    terminal = Terminal(place, "--", *script)
    terminal.wait_for("ready\r\n")
    terminal.wait_for(r"\x1b\[12;1H\x1b\[2K.*101 records  \S+/s  .*jsonl ")
    terminal.type("\x03")
    assert terminal.wait() == 130, terminal.seen
    assert "interrupted 1 times\r\n" in terminal.seen
    # The terminal scrolled above the last row; at the end it scrolls as a whole again.
    assert re.findall(r"\x1b\[[\d;]*r", terminal.seen) == ["\x1b[1;11r", "\x1b[r"]
    assert "\x1b[2K" not in terminal.seen.rpartition("\x1b[r\x1b[12;1H\x1b[2K\x1b8")[2]
    assert "jsonl: 102 delivered, in zmqtrack-out/jsonl\r\n" in terminal.seen
    assert place.steps() == list(range(100)) and place.end() == ["killed"]
    place.assert_clean()


# --- what is wrong before anything starts ----------------------------------------------------


def test_a_command_that_cannot_be_run_is_told_as_shells_do(place: Place) -> None:
    done = place.run("--", "no-such-command")
    assert (done.returncode, done.stderr) == (127, "no-such-command: command not found\n")
    (place.folder / "data.txt").write_text("")
    done = place.run("--", "./data.txt")
    assert (done.returncode, done.stderr) == (126, "./data.txt: cannot be run\n")
    done = place.run()
    assert done.returncode == 2
    assert done.stderr == "name the command to be run: zmqtrack run -- python train.py\n"
    place.assert_clean()


def test_a_script_that_the_system_cannot_run_ends_with_126_and_leaves_nothing(place: Place) -> None:
    (place.folder / "train").write_text("no first line names a program")
    (place.folder / "train").chmod(0o755)
    done = place.run("--", "./train")
    assert done.returncode == 126
    assert "zmqtrack: ./train: Exec format error\n" in done.stderr
    place.assert_clean()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("adapters:\n- type: jsonl\n  nmae: x\n", ":3: adapters.0.nmae: unknown key; did you mean"),
        ("adapters:\n- type: jsonl\n  options: {}\n", ":3: adapter jsonl.options.dir: is missing"),
        ("daemon: {lease: 5m}\n", ":1: adapters: there is none, so nothing would be delivered"),
    ],
)
def test_a_bad_configuration_is_told_with_its_place_and_nothing_is_run(
    place: Place, text: str, message: str
) -> None:
    (place.folder / "zmqtrack.yaml").write_text(text)
    done = place.run("--", "touch", "was-run")
    assert done.returncode == 78
    assert f"zmqtrack.yaml{message}" in done.stderr
    assert not (place.folder / "was-run").exists()
    place.assert_clean()


def test_a_tracker_that_is_none_or_contradicts_a_file_is_a_wrong_argument(place: Place) -> None:
    done = place.run("--to", "tensorbord", "--", "true")
    assert done.returncode == 2
    assert "--to takes tensorboard, mlflow, wandb, jsonl, not 'tensorbord'" in done.stderr
    done = place.run("--to", "jsonl", "--config", "zmqtrack.yaml", "--", "true")
    assert done.returncode == 2 and "give one of them" in done.stderr


def test_a_list_of_trackers_that_is_empty_is_a_wrong_argument(place: Place) -> None:
    done = place.run("--to", "", "--", "touch", "was-run")
    assert done.returncode == 2
    assert "--to takes tensorboard, mlflow, wandb, jsonl, not ''" in done.stderr
    assert not (place.folder / "was-run").exists()


def test_a_working_folder_that_was_removed_is_named(place: Place) -> None:
    script = 'mkdir gone; cd gone; rmdir "$PWD"; exec "$@"'
    done = subprocess.run(
        ["sh", "-c", script, "sh", *ZMQTRACK, "run", "--", "true"],
        cwd=place.folder, env=place.env, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    gone = place.folder / "gone"
    assert done.returncode == 1
    assert done.stderr == f"the working folder {gone} was removed: cd to one that is there\n"


def test_only_a_training_that_went_well_is_told_why_nothing_may_have_been_logged(
    place: Place,
) -> None:
    hint = "; an address in the script comes before ZMQTRACK_ADDRESS"
    assert f"zmqtrack: nothing was logged{hint}\n" in place.run("--", "true").stderr
    assert "zmqtrack: nothing was logged\n" in place.run("--", "false").stderr


@pytest.mark.parametrize("timeout", ["nan", "inf", "-1"])
def test_a_timeout_that_would_never_end_is_a_wrong_argument(place: Place, timeout: str) -> None:
    done = place.run("--timeout", timeout, "--", "touch", "was-run")
    assert done.returncode == 2
    assert f"{timeout} is no number of seconds" in done.stderr
    assert not (place.folder / "was-run").exists()


# --- configuration ---------------------------------------------------------------------------


def test_a_service_s_configuration_is_used_without_its_addresses_and_keys(place: Place) -> None:
    """Its adapters, secrets and state_dir hold; what others would reach is private here."""
    (place.folder / "conf").mkdir()
    secret = place.folder / "conf" / "token"
    secret.write_text("hush")
    secret.chmod(0o600)
    (place.folder / "conf" / "site.yaml").write_text(
        "daemon:\n"
        "  control: tcp://0.0.0.0:5555\n"
        "  keys: /nowhere/keys\n"
        "  telemetry: 127.0.0.1:9464\n"
        "  state_dir: kept\n"
        "adapters:\n"
        "- type: jsonl\n"
        "  external: true\n"
        "  secrets: {TOKEN: {file: token}}\n"
        "  options: {dir: zmqtrack-out/jsonl}\n"
    )
    script = place.script(LOGS_ON.format(then="from pathlib import Path")
                          + "    print(*Path('kept/launches').iterdir())")  # fmt: skip
    done = place.run("--config", "conf/site.yaml", "--", *script)
    assert done.returncode == 0, done.stderr
    assert "kept/launches/2" in done.stdout
    assert place.steps() == list(range(100))
    assert not (place.folder / "kept").exists()
    place.assert_clean()


# --- several launches, and what goes wrong on the way ----------------------------------------


def test_launches_side_by_side_in_one_folder_do_not_disturb_each_other(place: Place) -> None:
    """As a sweep starts them; all bring their runs into the same folder."""
    script = place.script(LOGS_ON.replace('"r"', "sys.argv[1]").format(then="pass"))
    names = ["r1", "r2", "r3"]
    launches = [place.start("--", *script, name) for name in names]
    for name, process in zip(names, launches, strict=True):
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, err
        assert f"102 records of e/{name}/s\n" in err
        assert place.steps(run=name) == list(range(100)) and place.end(run=name) == ["finished"]
    place.assert_clean()


def test_what_a_tracker_does_not_take_is_kept_and_the_next_launch_delivers_it(place: Place) -> None:
    out = place.folder / "zmqtrack-out"
    out.mkdir()
    (out / "jsonl").write_text("in the way")
    script = place.script(LOGS_ON.format(then="pass"))
    done = place.run("--timeout", "0.5", "--", *script)
    assert done.returncode == 0
    (kept,) = place.launches()
    assert "jsonl: 0 delivered, in zmqtrack-out/jsonl; 3 batches still to go (" in done.stderr
    resume = f"    zmqtrack run --resume {kept.relative_to(place.folder)}\n"
    assert done.stderr.endswith(f"the next `zmqtrack run` here tries again; or now:\n{resume}")
    assert _soon(lambda: not place.processes())
    (out / "jsonl").unlink()
    done = place.run("--", "true")
    assert done.returncode == 0
    assert f"delivered what an earlier launch had kept in {kept.relative_to(place.folder)}\n" in (
        done.stderr
    )
    assert place.steps() == list(range(100)) and place.end() == ["finished"]
    place.assert_clean()


def test_a_signal_stops_the_waiting_and_what_is_left_can_be_resumed(place: Place) -> None:
    out = place.folder / "zmqtrack-out"
    out.mkdir()
    (out / "jsonl").write_text("in the way")
    script = place.script(LOGS_ON.format(then="pass"))
    process = place.start("--timeout", "600", "--", *script)
    assert process.stderr is not None
    while "waiting for jsonl" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0  # the training's
    (kept,) = place.launches()
    assert f"zmqtrack run --resume {kept.relative_to(place.folder)}\n" in err
    failed = place.run("--resume", str(kept), "--timeout", "0")
    assert failed.returncode == 1 and place.launches() == [kept]
    (out / "jsonl").unlink()
    done = place.run("--resume", str(kept))
    assert done.returncode == 0, done.stderr
    assert "the daemon's log" not in done.stderr  # what it warned of before is mended
    assert place.steps() == list(range(100))
    place.assert_clean()


def test_a_daemon_that_is_killed_is_started_again_while_the_training_goes_on(place: Place) -> None:
    script = place.script(
        LOGS_ON.format(then="sys.stdin.readline()")
        + "    for step in range(100, 200):\n        run.log_metric('a', step, step)\n"
    )
    process = place.start("--", *script, stdin=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    place.daemon().kill()
    assert process.stderr is not None
    said = [process.stderr.readline() for _ in range(2)]
    assert said[1] == "zmqtrack: the daemon ended by signal 9; started again, and nothing is lost\n"
    _, err = process.communicate("go on\n", timeout=PATIENCE)
    assert process.returncode == 0, err
    assert place.steps() == list(range(200)) and place.end() == ["finished"]
    place.assert_clean()


def test_what_a_launch_leaves_that_is_killed_itself_the_next_one_delivers(place: Place) -> None:
    """Its daemon ends, the training goes on, and what that logs waits in its outbox."""
    script = place.script(
        LOGS_ON.replace('"s"', '"s", exit_timeout=0.3').format(then="sys.stdin.readline()")
        + "    run.log_metric('a', 100, 100)\n"
    )
    process = place.start("--", *script, stdin=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    daemon = place.daemon()
    process.kill()
    assert _soon(lambda: not daemon.is_running())
    _, err = process.communicate("go on\n", timeout=PATIENCE)
    assert _soon(lambda: not place.processes())
    (kept,) = place.launches()
    assert list(kept.glob("spool/*"))
    done = place.run("--", "true")
    assert f"delivered what an earlier launch had kept in {kept.relative_to(place.folder)}\n" in (
        done.stderr
    ), err
    assert place.steps() == list(range(101)) and place.end() == ["finished"]
    place.assert_clean()


@pytest.fixture
def elsewhere(place: Place, tmp_path: Path) -> Place:
    """Another project's folder, with trackers of the same names."""
    made = Place(tmp_path / "elsewhere", place.sockets)
    made.folder.mkdir()
    made.configure([jsonl(Path("zmqtrack-out/jsonl"))])
    return made


def test_what_a_launch_left_is_delivered_to_its_own_folder_from_wherever_it_is_found(
    place: Place, elsewhere: Place, tmp_path: Path
) -> None:
    """Two projects keep their state in one folder, and the launcher of the first is killed."""
    state = ("--state", str(tmp_path / "state"))
    script = place.script(
        LOGS_ON.replace('"s"', '"s", exit_timeout=0.3').format(then="sys.stdin.readline()")
        + "    run.log_metric('a', 100, 100)\n"
    )
    process = place.start(*state, "--", *script, stdin=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    daemon = place.daemon()
    process.kill()
    assert _soon(lambda: not daemon.is_running())
    process.communicate("go on\n", timeout=PATIENCE)
    assert _soon(lambda: not place.processes())
    done = elsewhere.run(*state, "--", "true")
    assert "delivered what an earlier launch had kept in " in done.stderr
    assert place.steps() == list(range(101)) and place.end() == ["finished"]
    assert not elsewhere.lines()
    place.assert_clean()


def test_a_launch_that_is_resumed_from_elsewhere_goes_on_in_its_own_folder_and_says_so(
    place: Place, elsewhere: Place
) -> None:
    out = place.folder / "zmqtrack-out"
    out.mkdir()
    (out / "jsonl").write_text("in the way")
    place.run("--timeout", "0.5", "--", *place.script(LOGS_ON.format(then="pass")))
    (kept,) = place.launches()
    (out / "jsonl").unlink()
    done = elsewhere.run("--resume", str(kept))
    assert done.returncode == 0, done.stderr
    assert f"jsonl: 102 delivered, in {out / 'jsonl'}\n" in done.stderr
    assert place.steps() == list(range(100)) and place.end() == ["finished"]
    assert not elsewhere.lines()
    place.assert_clean()


def test_a_launch_whose_folder_is_gone_waits_until_one_says_where_to_deliver_it(
    place: Place, elsewhere: Place, tmp_path: Path
) -> None:
    (place.folder / "zmqtrack-out").mkdir()
    (place.folder / "zmqtrack-out" / "jsonl").write_text("in the way")
    script = place.script(LOGS_ON.format(then="pass"))
    place.run("--state", str(tmp_path / "state"), "--timeout", "0.5", "--", *script)
    (kept,) = (tmp_path / "state" / "launches").iterdir()
    shutil.rmtree(place.folder)
    done = elsewhere.run("--resume", str(kept))
    assert done.returncode == 1
    assert f"{kept} was launched in {place.folder}, which is no longer there" in done.stderr
    done = elsewhere.run("--resume", str(kept), "--config", "zmqtrack.yaml")
    assert done.returncode == 0, done.stderr
    assert "jsonl: 102 delivered, in zmqtrack-out/jsonl\n" in done.stderr
    assert elsewhere.steps() == list(range(100))
    assert not kept.exists()


@pytest.mark.parametrize(
    ("uri", "where"),
    [
        ("postgresql://u:s3cret@h/db", "postgresql://***@h/db"),
        ("postgresql://h/db?user=u&password=s3cret", "postgresql://h/db?***"),
        ("mysql://u:s3cret@h/db?password=s3cret&x=?s3cret", "mysql://***@h/db?***"),
        ("http://h:5000/?token=s3cret", "http://h:5000/?***"),
    ],
)
def test_a_password_in_a_trackers_address_is_not_shown(uri: str, where: str) -> None:
    adapter = AdapterConfig.model_validate({"type": "mlflow", "options": {"tracking_uri": uri}})
    assert results.place(adapter, Path.cwd()) == (where, "")


def test_where_results_are_is_told_as_one_reaches_it_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.chdir(tmp_path)
    there = Path("/srv/train")

    def told(name: str, cwd: Path) -> results.Place:
        return results.place(results.tracker(name, Path("out")), cwd)

    assert told("mlflow", tmp_path).where == "sqlite:///out/mlflow.db"
    assert told("mlflow", there).where == "sqlite:////srv/train/out/mlflow.db"
    assert told("tensorboard", there).look.endswith("--logdir /srv/train/out/tensorboard")
    assert told("wandb", there).look == "wandb sync /srv/train/out/wandb/wandb/offline-run-*"
    assert told("jsonl", tmp_path).where == "out/jsonl"
    assert told("jsonl", there).where == "/srv/train/out/jsonl"


def test_dead_letters_are_kept_and_can_be_looked_at_and_tried_again(place: Place) -> None:
    (place.folder / "mine.py").write_text(
        "from pathlib import Path\n"
        "from zmqtrack.adapters.base import Adapter, Refused\n"
        "class Picky(Adapter):\n"
        "    def deliver(self, batches):\n"
        "        if not Path('content').exists(): raise Refused('not today')\n"
    )
    place.env["PYTHONPATH"] = str(place.folder)
    place.configure([{"type": "mine:Picky", "name": "picky", "flush_interval": 0}])
    done = place.run("--", *place.script(LOGS_ON.format(then="pass")))
    assert done.returncode == 0
    (kept,) = place.launches()
    assert "picky: 0 delivered; 102 dead letters: it refuses them for good" in done.stderr
    look = f"zmqtrack run --resume {kept.relative_to(place.folder)} -- "
    assert f"    {look}zmqtrack dlq list\n" in done.stderr
    listed = place.run("--resume", str(kept), "--", *ZMQTRACK, "dlq", "list", "--json")
    letters = json.loads(listed.stdout)
    assert [letter["reason"] for letter in letters] == ["not today"] * len(letters)
    assert kept.name not in place.run("--", "true").stderr  # it waits for a person
    (place.folder / "content").touch()
    numbers = [str(letter["id"]) for letter in letters]
    place.run("--resume", str(kept), "--", *ZMQTRACK, "dlq", "retry", *numbers)
    assert not place.launches()
    place.assert_clean()
