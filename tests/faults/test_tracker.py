"""A tracker that is slow, down, overloaded, refuses us, or refuses a record.

A real daemon, a real ``mlflow server`` behind a proxy that spoils what it is told to, and the
jsonl adapter beside it, which must not notice.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("mlflow")

from mlflow import MlflowClient

import oracle
import zmqtrack
from faults.fake_tracking import Proxy, mlflow_server
from harness import PATIENCE, Daemon, jsonl
from oracle import Seen, Site

pytestmark = pytest.mark.timeout(300)

Make = Callable[..., Daemon]

#: The requests that change something in MLflow.
WRITES = ("experiments/create", "runs/create", "runs/set-tag", "runs/log-batch", "runs/update",
          "mlflow-artifacts/artifacts")  # fmt: skip


def until(what: Callable[[], Any], timeout: float = PATIENCE) -> Any:
    """The first true value of ``what``: for facts that nobody announces."""
    deadline = time.monotonic() + timeout
    while not (value := what()):
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.05)
    return value


class Stack:
    """A daemon with two adapters: mlflow by way of the proxy, and jsonl."""

    def __init__(self, folder: Path, server: str, proxy: Proxy) -> None:
        self.lines = folder / "lines"
        self.server, self.proxy = server, proxy
        self.daemon = Daemon(
            folder,
            [mlflow_through(proxy), jsonl(self.lines)],
            env={"MLFLOW_HTTP_REQUEST_TIMEOUT": "2"},
        )
        self.client = MlflowClient(server)

    def adapter(self, name: str = "mlflow") -> dict[str, Any]:
        found: dict[str, Any] = self.daemon.status()["adapters"][name]
        return found

    def losses(self) -> list[Any]:
        found: list[Any] = self.daemon.status()["losses"]
        return found

    def log(self, site: Site, count: int = 500, **more: Any) -> None:
        """A process of that site logs; it must not notice what the tracker does."""
        process = site.start(self.daemon.address, count, env={"EXIT_TIMEOUT": "30", **more})
        _, stderr = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0 and "stays in the spool" not in stderr, stderr
        assert len(site.kept) == site.next_id

    def in_jsonl(self, site: Site) -> list[Seen]:
        return [seen for seen in oracle.read_jsonl(self.lines) if seen.site == site.name]

    def in_mlflow(self, site: Site) -> list[Seen]:
        return [seen for seen in oracle.read_mlflow(self.server) if seen.site == site.name]

    def wait_for_jsonl(self, site: Site) -> None:
        until(lambda: len(self.in_jsonl(site)) == site.next_id)
        oracle.check([site], self.in_jsonl(site))

    def finish(self, site: Site) -> None:
        """The fault is over: all that was logged is in both, once, and it runs again."""
        self.proxy.clear()
        self.daemon.drain()
        for shown in (self.in_jsonl(site), self.in_mlflow(site)):
            oracle.check([site], shown)
            assert len(shown) == site.next_id
        oracle.check_order(self.in_jsonl(site))
        assert self.adapter()["state"] == "running"

    def runs(self, site: str) -> list[Any]:
        experiments = [each.experiment_id for each in self.client.search_experiments()]
        return list(self.client.search_runs(experiments, f"tags.`zmqtrack.site` = '{site}'"))

    def command(self, *words: str, code: int = 0) -> str:
        """``zmqtrack`` as a real command; what it prints."""
        done = subprocess.run(
            [sys.executable, "-m", "zmqtrack.cli", *words, "--address", self.daemon.address],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + (done.stderr if code else "")


def mlflow_through(proxy: Proxy, **more: Any) -> dict[str, Any]:
    return {
        "type": "mlflow",
        "flush_interval": "100ms",
        "retry_max": "1s",
        "options": {"tracking_uri": proxy.address},
        **more,
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("server")) as address:
        yield address


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, server: str) -> Iterator[Stack]:
    with Proxy(server) as proxy:
        stack = Stack(tmp_path_factory.mktemp("daemon"), server, proxy)
        with stack.daemon:
            yield stack


@pytest.fixture
def stack(shared: Stack) -> Iterator[Stack]:
    yield shared
    shared.proxy.clear()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(f"site-{uuid4().hex[:8]}", tmp_path / "ledgers")


# --- slow, down, overloaded --------------------------------------------------------------


def test_a_tracker_that_takes_one_request_a_second_delays_neither_writers_nor_others(
    stack: Stack, site: Site
) -> None:
    stack.proxy.rule(delay=1.0)
    stack.log(site, 2000)
    stack.wait_for_jsonl(site)
    facts = stack.daemon.status()["adapters"]
    assert facts["jsonl"]["lag"] == 0 < facts["mlflow"]["lag"]
    assert len(stack.in_mlflow(site)) < site.next_id
    stack.finish(site)


def test_a_tracker_that_was_down_gets_everything_once_it_is_back(stack: Stack, site: Site) -> None:
    stack.proxy.down()
    try:
        for _ in range(3):
            stack.log(site)
            stack.wait_for_jsonl(site)
        facts = until(lambda: (now := stack.adapter())["state"] == "retrying" and now)
        assert "refused" in facts["detail"] and facts["lag"] > 0
    finally:
        stack.proxy.up()
    stack.finish(site)
    assert stack.adapter()["counters"]["retries"] > 0


def test_a_tracker_that_answers_503_for_long_gets_everything_in_the_end(
    stack: Stack, site: Site
) -> None:
    before = stack.adapter()["counters"].get("dead_letters", 0)
    rule = stack.proxy.rule(status=503)
    stack.log(site)
    stack.wait_for_jsonl(site)
    stack.proxy.wait_for(lambda: rule.hits >= 5)
    facts = stack.adapter()
    assert facts["state"] == "retrying" and "503" in facts["detail"]
    stack.finish(site)
    assert stack.adapter()["counters"].get("dead_letters", 0) == before


def test_no_request_comes_before_the_wait_that_a_429_asks_for_has_passed(
    stack: Stack, site: Site
) -> None:
    rule = stack.proxy.rule(path="log-batch", times=1, status=429, headers={"Retry-After": "3"})
    stack.log(site)
    stack.proxy.wait_for(lambda: rule.hits == 1)
    stack.finish(site)
    requests = stack.proxy.requests
    (refused,) = [n for n, request in enumerate(requests) if request.rule is rule]
    assert requests[refused + 1].came - requests[refused].done >= 3.0


# --- an error after the request was carried out ------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [{"status": 500}, {"status": 503}, {"status": 429}, {"reset": True}, {"hang": True}],
    ids=lambda kind: "-".join(f"{key}={value}" for key, value in kind.items()),
)
def test_what_a_tracker_did_before_it_answered_with_an_error_is_there_once(
    stack: Stack, site: Site, kind: dict[str, Any]
) -> None:
    experiment = f"after-{uuid4().hex[:8]}"
    before = stack.adapter()
    rules = [
        stack.proxy.rule(
            path=path, times=1 if path == "experiments/create" else 2, after=True, **kind
        )
        for path in WRITES
    ]
    with zmqtrack.init(experiment, "run", f"{site.name}-log", stack.daemon.address) as run:
        run.flush()
        stack.daemon.drain()  # a delivery of one record, the start of the run
        stack.log(site, ZMQTRACK_EXPERIMENT=experiment)
        for line in range(3):
            run.log_text("notes", f"line {line}")
            run.flush()
        run.log_param("lr", 0.1)
    stack.daemon.drain()
    assert not [rule for rule in rules if rule.times], "all of them have been spoiled"
    stack.finish(site)
    (one,), (other,) = stack.runs(site.name), stack.runs(f"{site.name}-log")
    assert one.info.status == other.info.status == "FINISHED"
    assert other.data.params == {"lr": "0.1"}
    local = stack.client.download_artifacts(other.info.run_id, "text/notes.txt")
    assert Path(local).read_text() == "line 0\nline 1\nline 2"
    parents = stack.client.search_runs([one.info.experiment_id], "attributes.run_name = 'run'")
    assert [parent.info.status for parent in parents] == ["FINISHED"]
    after = stack.adapter()
    assert after["dead_letters"] == before["dead_letters"]
    assert after["counters"]["retries"] > before["counters"].get("retries", 0)


# --- refused -----------------------------------------------------------------------------


def test_refused_credentials_block_the_adapter_and_nothing_is_discarded(
    stack: Stack, site: Site
) -> None:
    losses, dead = stack.losses(), stack.adapter()["dead_letters"]
    rule = stack.proxy.rule(status=401)
    stack.log(site)
    stack.wait_for_jsonl(site)
    stack.proxy.wait_for(lambda: rule.hits >= 3)  # it tries again now and then
    facts = until(lambda: (now := stack.adapter())["state"] == "blocked" and now)
    assert "401" in facts["detail"] and facts["lag"] > 0
    shown = stack.command("status")
    assert "blocked" in shown and "401" in shown
    stack.finish(site)  # the credentials are accepted again: it goes on by itself
    assert (stack.losses(), stack.adapter()["dead_letters"]) == (losses, dead)


@pytest.fixture
def refusing(stack: Stack, site: Site) -> list[Seen]:
    """MLflow refuses one of 500 records, of which all others have been delivered."""
    stack.proxy.rule(path="log-batch", body=b"poison", status=400, code="INVALID_PARAMETER_VALUE")
    logged = [
        Seen(site.name, "poison" if n == 321 else "loss", n / 8, n, 1_700_000_000.0 + n)
        for n in range(500)
    ]
    with zmqtrack.init("refused", "run", site.name, stack.daemon.address) as run:
        for seen in logged:
            run.log_metric(seen.key, seen.value, seen.step, seen.time)
    stack.daemon.drain()
    return logged


def _letters(stack: Stack) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(stack.command("dlq", "list", "--json"))
    return found


def test_one_bad_record_in_500_is_a_dead_letter_that_can_be_retried(
    stack: Stack, site: Site, refusing: list[Seen]
) -> None:
    good, bad = [s for s in refusing if s.key == "loss"], refusing[321]
    assert sorted(stack.in_mlflow(site)) == sorted(good) and len(good) == 499
    assert stack.in_jsonl(site) == refusing
    (letter,) = _letters(stack)
    assert (letter["adapter"], letter["type"], letter["records"]) == ("mlflow", "metric", 1)
    assert letter["run"] == ["refused", "run", site.name]
    assert "INVALID_PARAMETER_VALUE: on purpose" in letter["reason"]
    assert letter["reason"] in stack.command("dlq", "list", "--adapter", "mlflow")
    assert "no dead letters" in stack.command("dlq", "list", "--adapter", "jsonl")
    (whole,) = json.loads(stack.command("dlq", "show", str(letter["id"])))
    (record,) = whole["records"]
    assert (record["key"], record["value"], record["step"], record["time"]) == bad[1:]
    facts = stack.adapter()
    assert (facts["dead_letters"], facts["lag"], facts["state"]) == (1, 0, "running")

    stack.command("dlq", "retry", str(letter["id"]))  # it is still refused: it stays one
    (again,) = until(lambda: [n for n in _letters(stack) if n["id"] != letter["id"]])
    assert again["reason"] == letter["reason"]
    assert "no dead letter" in stack.command("dlq", "retry", str(letter["id"]), code=1)

    stack.proxy.clear()
    assert "1 dead letters will be tried" in stack.command("dlq", "retry", str(again["id"]))
    until(lambda: not _letters(stack))
    assert sorted(stack.in_mlflow(site)) == sorted(refusing)
    facts = stack.adapter()
    assert (facts["dead_letters"], facts["counters"]["dead_letters"]) == (0, 0)
    assert stack.in_jsonl(site) == refusing
    stack.daemon.drain()


def test_a_dead_letter_that_is_dropped_is_counted_as_lost(
    stack: Stack, site: Site, refusing: list[Seen]
) -> None:
    (letter,) = _letters(stack)
    assert "1 dead letters dropped" in stack.command("dlq", "drop", str(letter["id"]))
    assert _letters(stack) == []
    loss = {"reason": "dead_letter_dropped", "site": site.name, "n": 1}
    assert loss in stack.losses()
    assert "dead_letter_dropped" in stack.command("status")
    assert "no dead letter" in stack.command("dlq", "drop", str(letter["id"]), code=1)
    assert len(stack.in_mlflow(site)) == 499


# --- stopping ----------------------------------------------------------------------------


def test_a_tracker_that_hangs_does_not_hold_up_the_stop_and_gets_each_record_once_later(
    daemon: Make, server: str, site: Site, tmp_path: Path
) -> None:
    with Proxy(server) as proxy, contextlib.ExitStack() as ended:
        served = daemon(
            [mlflow_through(proxy), jsonl(tmp_path / "lines")],
            stop_timeout="2s",
            env={"MLFLOW_HTTP_REQUEST_TIMEOUT": "100"},
        )
        served.start()
        ended.callback(proxy.clear)
        rule = proxy.rule(path="log-batch", after=True, hang=True)
        _, stderr = site.start(served.address, 500).communicate(timeout=PATIENCE)
        assert len(site.kept) == 500, stderr
        until(lambda: rule.hits)
        began = time.monotonic()
        served.stop()
        assert 2 <= time.monotonic() - began < 60  # far less than the tracker's time-out
        assert "adapter mlflow did not stop in time" in served.log
        assert "adapter jsonl did not stop in time" not in served.log
        proxy.clear()
        with served:
            served.drain()
    shown = [seen for seen in oracle.read_mlflow(server) if seen.site == site.name]
    oracle.check([site], shown)
    assert Counter(shown) == Counter(oracle.read_jsonl(tmp_path / "lines"))
