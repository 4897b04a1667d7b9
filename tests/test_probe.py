"""Each tracker can be tried beforehand: ``Adapter.probe``, and ``zmqtrack check --connect``."""

from __future__ import annotations

import json
import logging
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from zmqtrack.adapters import probe
from zmqtrack.adapters.base import Blocked, Context, TrackerError, Unavailable
from zmqtrack.adapters.mlflow import MLflowAdapter, MLflowOptions

PATIENCE = 100

ODD = """
import os, time
from zmqtrack.adapters.base import Adapter, Options, Unavailable

class Odd(Adapter):
    class Options(Options):
        what: str
    def deliver(self, batches):
        raise AssertionError("nothing is delivered")
    def probe(self, timeout):
        print("a library that chatters on stdout")
        match self.options.what:
            case "hangs":
                time.sleep(600)
            case "dies":
                os._exit(9)
            case "breaks":
                raise KeyError("no such thing")
            case "told":
                raise Unavailable("it is away", advice="Call it back")
        return f"found\\nwithin {timeout:g}"

class Plain(Adapter):
    def deliver(self, batches): ...

class Lacking(Adapter):
    requires = ("no_such_module",)
    extra = "lacking"
    def deliver(self, batches): ...
"""


@pytest.fixture(autouse=True)
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module ``odd`` can be imported by what we start."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "odd.py").write_text(ODD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))


@pytest.fixture
def answering() -> Iterator[Callable[[int, Any], str]]:
    """Servers that give one answer to everything."""
    servers = []

    def start(status: int, body: Any) -> str:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = answer

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def try_all(*adapters: dict[str, Any], timeout: float = 5) -> dict[str, dict[str, Any]]:
    """What is found of each adapter, by its name."""
    command = [sys.executable, "-m", "zmqtrack.adapters", "--probe", "--timeout", str(timeout)]
    found: list[dict[str, Any]] = []
    probe.try_all(adapters, timeout, command, found.append)
    assert sorted(each["index"] for each in found) == list(range(len(adapters)))
    return {each["adapter"]: each for each in found}


def check(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "zmqtrack.cli", "check", str(path), *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


# --- the processes --------------------------------------------------------------------------------


def test_an_adapter_of_ones_own_says_what_it_finds_and_may_go_wrong_in_any_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probe, "START", 12.0)  # of seven at a time, on a busy machine
    kinds = ("good", "told", "breaks", "dies", "hangs")
    found = try_all(
        *[{"type": "odd:Odd", "name": what, "options": {"what": what}} for what in kinds],
        {"type": "odd:Plain", "name": "plain"},
        {"type": "odd:Odd", "name": "bad", "options": {"what": 1}},
        timeout=1,
    )
    assert {name: (each["ok"], each["code"]) for name, each in found.items()} == {
        "good": (True, ""),
        "plain": (True, ""),
        "told": (False, "tracker_unavailable"),
        "breaks": (False, "tracker_error"),
        "dies": (False, "probe_died"),
        "hangs": (False, "tracker_timeout"),
        "bad": (False, "bad_config"),
    }
    assert found["good"]["detail"] == "found within 1"
    assert found["told"]["advice"] == "Call it back"
    assert found["breaks"]["detail"] == "KeyError: 'no such thing'"
    assert "no probe()" in found["plain"]["detail"]


# --- folders, databases, servers ------------------------------------------------------------------


def test_a_folder_can_be_written_and_nothing_is_left_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    assert "can be made" in probe.folder_to_write(folder / "b" / "c", "dir")
    assert not folder.exists()
    folder.mkdir()
    before = folder.stat().st_mtime_ns
    assert "can be written" in probe.folder_to_write(folder, "dir")
    assert list(folder.iterdir()) == []
    assert folder.stat().st_mtime_ns == before


def test_a_folder_that_cannot_be_used_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for folder, code in ((tmp_path / "file" / "x", "not_a_folder"), (Path("/sys/x"), None)):
        with pytest.raises(Blocked) as caught:
            probe.folder_to_write(folder, "dir")
        assert caught.value.code == (code or "folder_not_writable")
        assert "options.dir" in caught.value.advice
    monkeypatch.setattr(probe, "LITTLE", 1 << 62)
    with pytest.raises(Unavailable) as full:
        probe.folder_to_write(tmp_path, "dir")
    assert full.value.code == "disk_full"


def mlflow(uri: str, folder: Path, timeout: float = 5.0) -> str:
    context = Context("mlflow", folder, logging.getLogger("test"), {})
    return MLflowAdapter(MLflowOptions(tracking_uri=uri), context).probe(timeout)


def test_a_database_of_mlflow_is_looked_at_without_making_or_changing_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "mlflow.db"
    uri = f"sqlite:///{path}"
    assert "can be made" in mlflow(uri, tmp_path)
    assert not path.parent.exists()
    path.parent.mkdir()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE experiments (name)")
        db.execute("INSERT INTO experiments VALUES ('a')")
    db.close()
    before = path.read_bytes()
    assert mlflow(uri, tmp_path).endswith("can be written, 1 experiments")
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_database_that_mlflow_cannot_use_is_told_apart(tmp_path: Path) -> None:
    def code(path: Path) -> str:
        with pytest.raises(TrackerError) as caught:
            mlflow(f"sqlite:///{path}", tmp_path, timeout=0.2)
        assert caught.value.advice
        return caught.value.code

    path = tmp_path / "some.db"
    path.write_text("no database at all, but text " * 50)
    assert code(path) == "not_a_database"
    path.unlink()
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("CREATE TABLE songs (name)")
    assert code(path) == "not_mlflow"
    db.execute("BEGIN IMMEDIATE")
    assert code(path) == "database_locked"
    db.close()
    assert code(path / "below") == "not_a_folder"


def test_servers_of_wandb_and_mlflow_are_told_apart(
    answering: Callable[[int, Any], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    key = "0123456789abcdef" * 3
    monkeypatch.setenv("SOME_KEY", key)
    places = {
        "knows": answering(200, {"data": {"viewer": {"username": "me", "entity": "us"}}}),
        "nobody": answering(200, {"data": {"viewer": None}}),
        "refuses": answering(401, {"errors": ["permission denied"]}),
        "html": answering(200, b"<html>hello</html>"),
        "down": "http://127.0.0.1:9",
        "broken": answering(503, b"later"),
    }

    def wandb(name: str, url: str, **secrets: Any) -> dict[str, Any]:
        monkeypatch.setenv(f"URL_{name}", url)
        secrets["WANDB_BASE_URL"] = {"env": f"URL_{name}"}
        options = {"mode": "online", "dir": str(tmp_path)}
        return {"type": "wandb", "name": name, "options": options, "secrets": secrets}

    with_key = {"WANDB_API_KEY": {"env": "SOME_KEY"}}
    found = try_all(
        *[wandb(name, url, **with_key) for name, url in places.items()],
        wandb("keyless", places["knows"]),
        {"type": "wandb", "name": "off", "options": {"mode": "offline", "dir": str(tmp_path)}},
        {"type": "mlflow", "name": "page", "options": {"tracking_uri": places["html"]}},
        {"type": "mlflow", "name": "gone", "options": {"tracking_uri": "http://u:pw@127.0.0.1:9"}},
    )
    assert {name: each["code"] for name, each in found.items()} == {
        "knows": "",
        "nobody": "tracker_credentials",
        "refuses": "tracker_credentials",
        "html": "not_wandb",
        "down": "tracker_unavailable",
        "broken": "tracker_unavailable",
        "keyless": "no_credentials",
        "off": "",
        "page": "not_mlflow",
        "gone": "tracker_unavailable",
    }
    assert "*** knows us as me; folder" in found["knows"]["detail"]  # the address is a secret here
    assert "secrets: {WANDB_API_KEY: {file: PATH}}" in found["keyless"]["advice"]
    assert "http://***@127.0.0.1:9: Connection refused" in found["gone"]["detail"]
    assert key not in json.dumps(found)


# --- the command ----------------------------------------------------------------------------------


def test_check_connect_tells_a_good_tracker_from_a_bad_one_and_names_its_line(
    tmp_path: Path,
) -> None:
    path = tmp_path / "zmqtrack.yaml"
    (tmp_path / "file").touch()
    good = {"type": "jsonl", "options": {"dir": str(tmp_path / "out")}}
    away = {"type": "jsonl", "name": "away", "external": True, "options": {"dir": "/sys/x"}}
    bad = {"type": "tensorboard", "options": {"logdir": str(tmp_path / "file")}}
    path.write_text(yaml.safe_dump({"adapters": [good, away]}))
    fine = check(path, "--connect")
    assert fine.returncode == 0, fine.stderr
    assert f"adapter jsonl: ok: folder {tmp_path / 'out'} can be made" in fine.stdout
    assert "adapter away: ok: external: to be tried where it runs" in fine.stdout
    path.write_text(f"adapters:\n- {json.dumps(good)}\n- {json.dumps(bad)}\n")
    assert check(path).returncode == 0  # not tried, not found
    failed = check(path, "--connect", "--timeout", "5")
    assert failed.returncode == 1
    assert failed.stderr == (
        f"{path}:3: adapter tensorboard: {tmp_path / 'file'} is no folder\n"
        "     Move it away, or name another folder in options.logdir.\n"
    )
    facts = check(path, "--connect", "--json")
    assert facts.returncode == 1
    found = {each["adapter"]: each for each in json.loads(facts.stdout)["trackers"]}
    assert found["jsonl"]["ok"] and found["jsonl"]["where"] == f"{path}:2"
    assert (found["tensorboard"]["code"], found["tensorboard"]["where"]) == (
        "not_a_folder",
        f"{path}:3",
    )


def test_check_connect_tries_nothing_while_the_configuration_is_bad(tmp_path: Path) -> None:
    path = tmp_path / "zmqtrack.yaml"
    path.write_text(
        "adapters:\n- {type: jsonl, options: {dri: out}}\n- {type: odd:Lacking, name: lacking}\n"
    )
    done = check(path, "--connect")
    assert (done.returncode, done.stdout) == (78, "")
    assert f"{path}:2: adapter jsonl.options.dri: unknown key; did you mean 'dir'?" in done.stderr
    assert "pip install 'zmqtrack[lacking]'" in done.stderr
    facts = check(path, "--connect", "--json")
    assert facts.returncode == 78
    assert json.loads(facts.stdout) == {
        "file": str(path),
        "problems": done.stderr.splitlines(),
        "hints": [],
        "trackers": [],
    }
