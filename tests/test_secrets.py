"""Tokens and passwords reach the tracker's library, and nothing that anybody reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from zmqtrack.adapters import secrets
from zmqtrack.adapters.secrets import mask, resolve

import zmqtrack
from harness import PATIENCE, Daemon, jsonl
from zmqtrack.config import AdapterConfig

Make = Callable[..., Daemon]

TOKEN = "tok-4fd1/8e b2+7c"  # spelled in several ways, as in a URL
PASSWORD = "pa%2Fss+w0rd"
PLAIN_PASSWORD = "pa/ss+w0rd"
URI = f"postgresql://alice:{PASSWORD}@db.example.com/runs"

LOAD = "LoadCredential=mlflow:PATH"

#: Its tracker answers with all that it was told. ``mood`` is a file with what it does next.
LEAKY = """
import json
import logging
import os
import sys
import threading
from pathlib import Path
from urllib.parse import quote, unquote

from zmqtrack.adapters.base import Adapter, Blocked, Options, Refused, Unavailable

AT_IMPORT = os.environ.get("LEAKY_TOKEN")


class Leaky(Adapter):
    class Options(Options):
        uri: str
        dir: str

    def deliver(self, batches):
        token, uri = os.environ["LEAKY_TOKEN"], self.options.uri
        folder = Path(self.options.dir)
        (folder / "seen").write_text(json.dumps([AT_IMPORT, token, uri]))
        password = unquote(uri.split(":")[2].split("@")[0])
        quoted = quote(token, safe="")
        answer = f"401 for {token} at {uri}, {password!r}: /login?t={quoted} {token!r}"
        print("printed", answer)
        print("printed on stderr", answer, file=sys.stderr)
        logging.getLogger("a.library").warning("logged %s", answer)
        self.context.count(f"counted {answer}")
        thread = threading.Thread(target=self.fail, args=(f"in a thread {answer}",))
        thread.start()
        thread.join()
        mood = (folder / "mood").read_text()
        if mood == "refuse":
            # It is cut at 2000, where the token stands; a list shows less.
            raise Refused(("x" * 280 + answer).ljust(1989, "x") + token)
        if mood == "block":
            raise Blocked("blocked " + answer)
        if mood == "away":
            raise Unavailable("y" * 989 + answer)
        if mood == "bug":
            raise KeyError("bug " + answer)
        if mood == "die":
            threading.Thread(target=os._exit, args=(9,)).start()

    def fail(self, answer):
        raise RuntimeError(answer)
"""


@pytest.fixture(autouse=True)
def _nothing_hidden_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_hidden", ())
    monkeypatch.setattr(secrets, "_short", (), raising=False)


@pytest.fixture
def leaky(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The adapter, its token in a file beside the configuration."""
    folder = tmp_path / "leaky"
    folder.mkdir()
    (folder / "leaky.py").write_text(LEAKY)
    (folder / "mood").write_text("refuse")
    (tmp_path / "daemon").mkdir()
    token = tmp_path / "daemon" / "the.token"
    token.write_text(f"  {TOKEN}\n\n")
    token.chmod(0o600)
    yield {
        "type": "leaky:Leaky",
        "flush_interval": 0,
        "retry_max": "0.2s",
        "secrets": {"LEAKY_TOKEN": {"file": "the.token"}},
        "options": {"uri": URI, "dir": str(folder)},
    }


def assert_unseen(text: str) -> None:
    for part in ("tok-4fd1", "8e b2", "8e%20b2", "w0rd", "alice:", "db.example.com@"):
        assert part not in text, f"{part!r} is in {text}"


def _adapter(served: Daemon, name: str = "Leaky") -> dict[str, Any]:
    found: dict[str, Any] = served.status()["adapters"][name]
    return found


def _until(what: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (value := what()):
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.05)
    return value


def test_neither_token_nor_password_is_in_log_status_or_dead_letters(
    daemon: Make, tmp_path: Path, leaky: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "leaky"
    other = jsonl(tmp_path / "out")
    with daemon([leaky, other], env={"PYTHONPATH": str(folder)}) as served:
        with zmqtrack.init("e", "r", "s", served.address) as run:
            run.log_metric("loss", 0.5)
        served.drain()
        assert json.loads((folder / "seen").read_text()) == [TOKEN, TOKEN, URI]
        for mood, state in (("block", "blocked"), ("away", "retrying"), ("bug", "retrying")):
            (folder / "mood").write_text(mood)
            with zmqtrack.init("e", "r", "s", served.address) as run:
                run.log_metric("loss", 0.5)
            _until(lambda s=state: (a := _adapter(served))["state"] == s and "***" in a["detail"])
            assert_unseen(json.dumps(served.status(), default=str))
            (folder / "mood").write_text("well")
            served.drain()
        letters = served.request("dlq")
        status = served.status()
        names = {psutil.Process(served.process.pid).pid} | {
            child.pid for child in psutil.Process(served.process.pid).children()
        }
        for pid in names:  # what they were started with
            for fact in ("cmdline", "environ"):
                assert_unseen(Path(f"/proc/{pid}/{fact}").read_bytes().decode(errors="replace"))
        (folder / "mood").write_text("die")
        with zmqtrack.init("e", "r", "s", served.address) as run:
            run.log_metric("loss", 0.5)
        served.wait_for("Leaky ended")
        (folder / "mood").write_text("well")
        served.drain()
    assert len(letters["letters"]) >= 1 and "xxx401 for ***" in str(letters)
    assert_unseen(str(letters))
    assert_unseen(json.dumps(status, default=str))
    assert "counted 401 for *** at postgresql://***@db.example.com/runs" in str(status)
    assert_unseen(served.log)
    for said in ("printed on stderr", "logged", "in a thread", "blocked: blocked", "bug"):
        assert f"{said} 401 for ***" in served.log
    assert "Traceback" in served.log
    printed = capfd.readouterr().out
    assert "printed 401 for ***" in printed
    assert_unseen(printed)
    state = [path for path in served.state_dir.rglob("*") if path.is_file()]
    assert any(b"401 for ***" in path.read_bytes() for path in state)
    assert not [path for path in state if b"tok-4fd1" in path.read_bytes()]


# --- where they come from ----------------------------------------------------------------


def config(**source: str) -> AdapterConfig:
    return AdapterConfig.model_validate({"type": "jsonl", "secrets": {"A_TOKEN": source}})


def written(path: Path, text: str | bytes = "value\n", mode: int = 0o600) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return path


def test_a_secret_is_read_from_environment_file_and_credential(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTER", "from env")
    assert resolve(config(env="OUTER")) == {"A_TOKEN": "from env"}
    assert resolve(config(file=str(written(tmp_path / "f", " one\ntwo \r\n")))) == {
        "A_TOKEN": "one\ntwo"
    }
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    (tmp_path / "credentials").mkdir()
    inside = written(tmp_path / "credentials" / "mlflow", "from systemd", 0o444)
    assert resolve(config(credential="mlflow")) == {"A_TOKEN": "from systemd"}
    assert resolve(config(file=str(inside))) == {"A_TOKEN": "from systemd"}
    assert "A_TOKEN" not in os.environ


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"env": "NOT_SET"}, "NOT_SET is not set in the daemon's environment"),
        ({"env": "EMPTY"}, "EMPTY is empty"),
        ({"file": "missing"}, "%/missing cannot be read: No such file or directory"),
        (
            {"file": "open"},
            "others may read %/open (mode 0640): run  chmod 600 %/open",
        ),
        ({"file": "world"}, "others may read %/world (mode 0604): run  chmod 600 %/world"),
        ({"file": "empty"}, "%/empty is empty"),
        ({"file": "binary"}, "%/binary is not UTF-8 text"),
        ({"file": "nul"}, "%/nul holds a NUL, which no environment variable can"),
        ({"file": "large"}, "%/large has 70000 bytes: that is no secret"),
        ({"file": "folder"}, "%/folder cannot be read: Is a directory"),
        ({"file": "pipe"}, "%/pipe is no file"),
        (
            {"credential": "mlflow"},
            f"CREDENTIALS_DIRECTORY is not set: systemd sets it for a service with {LOAD}",
        ),
    ],
    ids=lambda value: str(next(iter(value.values()))) if isinstance(value, dict) else "",
)
def test_what_is_wrong_with_a_secret_is_said_with_file_line_and_key(
    tmp_path: Path, source: dict[str, str], message: str
) -> None:
    written(tmp_path / "open", mode=0o640)
    written(tmp_path / "world", mode=0o604)
    written(tmp_path / "empty", " \n")
    written(tmp_path / "binary", b"\xff\xfe")
    written(tmp_path / "nul", "a\0b")
    written(tmp_path / "large", "x" * 70_000)
    (tmp_path / "folder").mkdir(mode=0o700)
    os.mkfifo(tmp_path / "pipe", 0o600)
    path = tmp_path / "zmqtrack.yaml"
    adapter = {"type": "jsonl", "secrets": {"A_TOKEN": source}, "options": {"dir": "x"}}
    path.write_text("adapters:\n" + yaml.safe_dump([adapter]))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "CREDENTIALS_DIRECTORY"}
    commands = [
        [sys.executable, "-m", "zmqtrack.cli", "check", str(path)],
        [sys.executable, "-m", "zmqtrack.daemon", "--config", str(path)],
        [*(sys.executable, "-m", "zmqtrack.adapters"), "--config", str(path), "--name", "jsonl"],
    ]
    ((kind, name),) = source.items()
    line = next(
        n for n, text in enumerate(path.read_text().splitlines(), 1) if f"{kind}: {name}" in text
    )
    for command in commands if name in ("open", "NOT_SET") else commands[1:2]:
        done = subprocess.run(
            command,
            cwd=elsewhere,  # a file is relative to the configuration, not to this
            env={**environment, "EMPTY": " "},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 78
        expected = f"{path}:{line}: adapter jsonl.secrets.A_TOKEN.{kind}: {message}\n"
        assert done.stderr == expected.replace("%", str(tmp_path))


def test_a_file_is_relative_to_the_included_file_that_names_it(
    daemon: Make, tmp_path: Path, leaky: dict[str, Any]
) -> None:
    folder = tmp_path / "leaky"
    (folder / "mood").write_text("well")
    served = daemon([], env={"PYTHONPATH": str(folder)})
    more = tmp_path / "daemon" / "adapters.d"
    more.mkdir()
    (more / "leaky.yaml").write_text(yaml.safe_dump(leaky))
    (tmp_path / "daemon" / "the.token").rename(more / "the.token")
    served.config.write_text(served.config.read_text() + "include: adapters.d/*.yaml\n")
    with served:
        with zmqtrack.init("e", "r", "s", served.address) as run:
            run.log_metric("loss", 0.5)
        served.drain()
    assert json.loads((folder / "seen").read_text())[0] == TOKEN


def test_a_secret_that_is_gone_at_a_restart_ends_the_adapter_and_says_so(
    daemon: Make, tmp_path: Path, leaky: dict[str, Any]
) -> None:
    folder = tmp_path / "leaky"
    (folder / "mood").write_text("die")
    with daemon([leaky], env={"PYTHONPATH": str(folder)}) as served:
        (tmp_path / "daemon" / "the.token").unlink()
        with zmqtrack.init("e", "r", "s", served.address) as run:
            run.log_metric("loss", 0.5)
        served.wait_for("secrets.LEAKY_TOKEN.file: .*the.token cannot be read: No such file")
        served.wait_for("cannot run as configured")


def test_a_check_of_many_adapters_lends_each_its_own_secrets_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINE", "mine")
    monkeypatch.setenv("A_TOKEN", "outer")
    with secrets.lent(resolve(config(env="MINE"))):
        assert os.environ["A_TOKEN"] == "mine"
    assert os.environ["A_TOKEN"] == "outer"
    with secrets.lent({"B_TOKEN": "b"}):
        assert os.environ["B_TOKEN"] == "b"
    assert "B_TOKEN" not in os.environ


# --- what a text may show ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("no secret in tcp://127.0.0.1:5555", "no secret in tcp://127.0.0.1:5555"),
        ("at https://u:p@h/x and http://t@h", "at https://***@h/x and http://***@h"),
        ("'sqlite:////a/b.db' a@b.c", "'sqlite:////a/b.db' a@b.c"),
        ("mysql+pymysql://u:p@ss@h:3306/db?x=1", "mysql+pymysql://***@h:3306/db?x=1"),
        ("http://h/path@2x https://h?q=a@b", "http://h/path@2x https://h?q=a@b"),
    ],
)
def test_user_and_password_of_any_uri_are_masked(text: str, masked: str) -> None:
    assert mask(text) == masked


def test_a_password_of_the_options_is_masked_wherever_it_stands() -> None:
    options = {"a": ["postgresql://u:s/lash@h/db"], "b": {"c": "http://u:one%40two@h/p?x=y@z"}}
    secrets.hide_passwords(options)
    assert mask("s/lash, one@two, one%40two") == "***, ***, ***"


def test_a_short_password_is_masked_where_a_password_stands_and_spoils_no_word() -> None:
    secrets.hide_passwords(["postgresql://u:p@h/db", "mysql://u:%40@h", "http://u:four@h"])
    assert mask("install psycopg2, @ four") == "install psycopg2, @ ***"
    assert mask("as u:p@h or u:%40@h or postgresql://u:p@h/db") == (
        "as u:***@h or u:***@h or postgresql://***@h/db"
    )


def test_a_secret_is_masked_as_it_is_quoted_escaped_and_line_by_line() -> None:
    secrets.hide(["k/1 é'\"", "first line\nsecond line"])
    for text in ("k/1 é'\"", "k/1%20%C3%A9%27%22", "k%2F1+%C3%A9%27%22", repr("k/1 é'\"")):
        assert "***" in mask(text) and "k" not in mask(text)
    assert json.dumps({"t": "k/1 é'\""}).count("k/1") == 1
    assert mask(json.dumps({"t": "k/1 é'\""})) == '{"t": "***"}'
    assert mask("second line; first line") == "***; ***"
    assert mask(repr("first line\nsecond line")) == "'***'"


def test_the_value_of_a_wrong_option_does_not_show_its_password(tmp_path: Path) -> None:
    path = tmp_path / "zmqtrack.yaml"
    path.write_text(
        "adapters:\n"
        "  - type: mlflow\n"
        "    options: {tracking_uri: 'file://u:hunter2@h/p', artifact_location: [x://u:hunter2@h]}\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "zmqtrack.daemon", "--config", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 78
    assert "hunter2" not in done.stderr
    assert done.stderr.count("://***@h") == 2
