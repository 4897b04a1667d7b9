"""What services log: one record, one line, in the form that its reader takes."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

import zmqtrack
from harness import Daemon, jsonl

Make = Callable[..., Daemon]

#: A name as an attacker would choose it.
FORGED = "site\nERROR [zmqtrackd] the disk is full\r\x1b[2Jred\u202eder"

SAYS = f"""
import logging
log = logging.getLogger("zmqtrack.daemon")
log.info("%s came", {FORGED!r})
log.debug("unseen")
log.warning("careful")
try:
    raise ValueError({FORGED!r})
except ValueError:
    log.exception("failed")
"""

#: What nobody logs itself.
SURPRISES = """
import threading, warnings
class Odd:
    def __del__(self):
        raise RuntimeError("while it was thrown away")
warnings.warn("it is old\\nand grey")
odd = Odd()
del odd
def work():
    raise RuntimeError("in a thread")
thread = threading.Thread(target=work, name="worker")
thread.start()
thread.join()
raise RuntimeError("at last")
"""


def say(source: str, log_format: str = "auto", **options: Any) -> subprocess.CompletedProcess[str]:
    """A process that logs what ``source`` says."""
    options.setdefault("stderr", subprocess.PIPE)
    return subprocess.run(
        [
            sys.executable,
            "-c",
            f"from zmqtrack import logs\nlogs.configure('info', {log_format!r}, 'zmqtrackd')\n"
            + source,
        ],
        text=True,
        timeout=60,
        **options,
    )


def test_text_is_a_line_a_record_and_no_name_can_forge_one() -> None:
    lines = say(SAYS, "text").stderr.split("\n")
    assert lines[0] == (
        "INFO [zmqtrackd] site\\nERROR [zmqtrackd] the disk is full\\r\\x1b[2Jred\\u202eder came"
    )
    assert lines[1:4] == [
        "WARNING [zmqtrackd] careful",
        "ERROR [zmqtrackd] failed",
        "  Traceback (most recent call last):",
    ]
    assert all(line.startswith("  ") for line in lines[4:-1])
    assert "  ERROR [zmqtrackd] the disk is full" in lines  # of the traceback, and seen as such
    assert lines[-1] == ""


def test_journald_gets_a_priority_on_every_line_and_no_time() -> None:
    lines = say(SAYS, "journald").stderr.splitlines()
    assert lines[0].startswith("<6>[zmqtrackd] site\\nERROR")
    assert lines[1:4] == [
        "<4>[zmqtrackd] careful",
        "<3>[zmqtrackd] failed",
        "<3>  Traceback (most recent call last):",
    ]
    assert all(line.startswith("<3>  ") for line in lines[4:])


def test_json_is_an_object_a_line_with_the_time_in_utc() -> None:
    before = datetime.now(timezone.utc)
    came, careful, failed = map(json.loads, say(SAYS, "json").stderr.splitlines())
    assert came["message"] == f"{FORGED} came"
    at = datetime.fromisoformat(came.pop("time").replace("Z", "+00:00"))
    assert abs((at - before).total_seconds()) < 60
    assert (came["level"], came["name"], came["logger"]) == ("info", "zmqtrackd", "zmqtrack.daemon")
    assert set(careful) == {"time", "level", "name", "logger", "message"}
    assert failed["message"] == "failed"
    assert failed["exception"].startswith("Traceback") and FORGED in failed["exception"]


def test_auto_is_for_journald_only_where_journald_reads() -> None:
    def first(told: Callable[[os.stat_result], str]) -> str:
        read, write = os.pipe()
        try:
            stream = told(os.fstat(write))
            env = {**os.environ, "JOURNAL_STREAM": stream}
            say(SAYS, env=env, stderr=write)
            return os.read(read, 5).decode()
        finally:
            os.close(read)
            os.close(write)

    assert first(lambda status: f"{status.st_dev}:{status.st_ino}") == "<6>[z"
    assert first(lambda status: f"{status.st_dev}:{status.st_ino + 1}") == "INFO "  # redirected
    assert first(lambda status: "nonsense") == "INFO "


@pytest.mark.parametrize("colour", [True, False])
def test_a_terminal_gets_the_time_and_colour_unless_it_wants_none(colour: bool) -> None:
    ours, theirs = pty.openpty()
    env = {k: v for k, v in os.environ.items() if k not in ("JOURNAL_STREAM", "NO_COLOR")}
    env |= {"TERM": "xterm"} | ({} if colour else {"NO_COLOR": "1"})
    try:
        say("logging = __import__('logging'); logging.warning('careful')", env=env, stderr=theirs)
        shown = os.read(ours, 1000).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    level = "\x1b[33mWARNING\x1b[0m" if colour else "WARNING"
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d " + re.escape(f"{level} [zmqtrackd] careful") + "\r\n", shown
    )


def test_warnings_and_what_nobody_catches_are_records_like_any_other() -> None:
    done = say(SURPRISES, "json")
    facts = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.returncode == 1
    assert [(fact["level"], fact["message"].split(" (")[0]) for fact in facts] == [
        ("warning", "UserWarning: it is old\nand grey"),
        ("error", facts[1]["message"]),
        ("error", "thread worker ended by an error of its own"),
        ("critical", "ended by an error of its own"),
    ]
    assert "Odd.__del__" in facts[1]["message"]
    for fact, error in zip(
        facts[1:], ("while it was thrown", "in a thread", "at last"), strict=True
    ):
        assert f"RuntimeError: {error}" in fact["exception"]
    # A thread may end itself; Ctrl-C is no error of the program's.
    silent = say("import threading\nt = threading.Thread(target=exit)\nt.start(); t.join()", "json")
    assert (silent.returncode, silent.stderr) == (0, "")
    interrupted = say("raise KeyboardInterrupt", "text")
    assert interrupted.stderr == "ERROR [zmqtrackd] interrupted\n"


def test_a_complaint_before_the_log_is_set_up_is_an_error_for_journald_too() -> None:
    read, write = os.pipe()
    try:
        status = os.fstat(write)
        env = {**os.environ, "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        source = "from zmqtrack import logs; logs.complain('a.yaml:1: bad\\na.yaml:2: worse')"
        subprocess.run([sys.executable, "-c", source], env=env, stderr=write, timeout=60)
        assert os.read(read, 1000) == b"<3>a.yaml:1: bad\n<3>a.yaml:2: worse\n"
    finally:
        os.close(read)
        os.close(write)
    plain = subprocess.run([sys.executable, "-c", source], stderr=subprocess.PIPE, timeout=60)
    assert plain.stderr == b"a.yaml:1: bad\na.yaml:2: worse\n"


# --- the services themselves ---------------------------------------------------------------

#: Spelled differently in a Python literal, in JSON, in a literal within JSON and in a URL.
SECRET = 'pa"ss\\wo\'rd-é\n-second-line-"of\\it"'

TALKATIVE = """
import json
import logging
import os
import warnings

from zmqtrack.adapters.base import Adapter


class Talkative(Adapter):
    def deliver(self, batches):
        token = os.environ["TALKATIVE_TOKEN"]
        log = logging.getLogger("a.library")
        log.warning("plain %s", token)
        log.warning("literal %r", token)
        log.warning("json %s", json.dumps({"token": token}))
        log.warning("twice %s", json.dumps(repr(token)))
        log.warning("quoted %s", json.dumps([repr(f"{token} '"), json.dumps(token)]))
        log.warning(token)
        warnings.warn(f"warned {token}")
        try:
            raise ValueError(token)
        except ValueError:
            log.exception("failed %s", {"token": token})
"""


def assert_unseen(text: str) -> None:
    for part in ('pa"', "pa\\", "ss\\wo", "wo'rd", "wo\\'rd", "second-line", "of\\", "é", "u00e9"):
        assert part not in text, f"{part!r} is in {text}"


@pytest.mark.parametrize("log_format", ["text", "json", "journald"])
def test_daemon_and_adapters_log_in_the_form_that_is_configured_without_secrets(
    daemon: Make, tmp_path: Path, log_format: str
) -> None:
    (tmp_path / "talkative.py").write_text(TALKATIVE)
    (tmp_path / "token").write_text(SECRET)
    (tmp_path / "token").chmod(0o600)
    talkative = {
        "type": "talkative:Talkative",
        "flush_interval": 0,
        "secrets": {"TALKATIVE_TOKEN": {"file": str(tmp_path / "token")}},
    }
    adapters = [talkative, jsonl(tmp_path / "out")]
    env = {"PYTHONPATH": str(tmp_path)}
    with daemon(adapters, env=env, log_format=log_format) as served:
        with zmqtrack.init("e", "r", "s", served.address) as run:
            run.log_metric("loss", 0.5)
        served.drain()
    assert served.lines
    if log_format == "json":
        facts = [json.loads(line) for line in served.lines]
        assert {fact["name"] for fact in facts} == {"zmqtrackd", "Talkative", "jsonl"}
        said = [(f["message"], f.get("exception", "")) for f in facts if f["logger"] == "a.library"]
        for message, exception in said:
            assert_unseen(message)
            assert_unseen(exception)
        assert len(said) == 7 * len([m for m, _ in said if m.startswith("plain ***")])
    else:
        form = {"text": r"[A-Z]+ \[|  ", "journald": r"<[2-7]>(\[|  )"}[log_format]
        for line in served.lines:
            assert re.match(form, line), line
        assert "plain ***" in served.log and "warned ***" in served.log
    assert_unseen(served.log)
