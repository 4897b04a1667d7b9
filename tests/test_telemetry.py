"""What Prometheus and probes are told, by a real daemon; and that asking is never in its way."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from zmqtrack.daemon import metrics, telemetry
from zmqtrack.daemon.journal import Journal
from zmqtrack.daemon.telemetry import Telemetry

import zmqtrack
from harness import PATIENCE, Daemon, jsonl
from zmqtrack.errors import ZMQTrackError

Make = Callable[..., Daemon]
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
ROOT = Path(__file__).parent.parent


class Metrics:
    """One answer of ``/metrics``."""

    def __init__(self, text: str) -> None:
        self.names: set[str] = set()  # as one writes them in an expression
        self._samples: Samples = {}
        for family in text_string_to_metric_families(text):
            self.names.add(family.name + ("_total" if family.type == "counter" else ""))
            for sample in family.samples:
                self._samples[sample.name, frozenset(sample.labels.items())] = sample.value

    def __call__(self, name: str, **labels: str) -> float | None:
        return self._samples.get((f"zmqtrack_{name}", frozenset(labels.items())))

    def labels(self, name: str, label: str) -> dict[str, float]:
        """Values of a metric, by one of its labels."""
        found = {}
        for (sample, labels), value in self._samples.items():
            if sample == f"zmqtrack_{name}":
                found[dict(labels)[label]] = value
        return found


def get(
    address: str, path: str = "/metrics", method: str = "GET", timeout: float = PATIENCE
) -> tuple[int, str]:
    connection = http.client.HTTPConnection(address, timeout=timeout)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def scrape(address: str) -> Metrics:
    code, text = get(address)
    assert code == 200, text
    return Metrics(text)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def at(served: Daemon) -> str:
    return (served.state_dir / "telemetry-address").read_text().strip()


@contextlib.contextmanager
def turning(
    facts: Callable[[], dict[str, Any]], every: float = 0.01
) -> Iterator[tuple[Telemetry, threading.Event]]:
    """A loop that turns for as long as the event is not set."""
    served, hangs, ends = Telemetry("127.0.0.1:0"), threading.Event(), threading.Event()

    def loop() -> None:
        while not ends.wait(every):
            if not hangs.is_set():
                served.step(facts)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield served, hangs
    finally:
        ends.set()
        thread.join()
        served.close()


def facts(**more: Any) -> dict[str, Any]:
    """What a status tells."""
    return {
        "version": "1.2.3",
        "now": time.time(),
        "daemon": {
            "started": time.time(),
            "accepting": True,
            "journal_full": False,
            "disk_full": False,
            "received_batches": 0,
            "duplicate_batches": 0,
            "refused": {},
            "keys": None,
            "insecure": False,
        },
        "journal": dict.fromkeys(("head", "batches", "bytes", "max_bytes", "file_bytes"), 0),
        "adapters": {},
        "losses": [],
        "not_carried": [],
        "quarantined": 0,
        "sites": [],
        "streams": [],
        **more,
    }


def stream(site: str, records: int = 1, ident: str = "") -> dict[str, Any]:
    return {"stream": ident or site, "run": ("e", "r", site), "records": records}


def run_of(site: str, run: str = "r", **more: Any) -> dict[str, Any]:
    return {
        "site": site,
        "experiment": "e",
        "run": run,
        "state": "active",
        "records": 1,
        "streams": 1,
        "last_seen": 1000.0,
        "waiting": None,
        "step": None,
        "writers": [],
        **more,
    }


# --- what is shown ----------------------------------------------------------------------------


def test_what_is_shown_equals_what_was_logged(daemon: Make, tmp_path: Path) -> None:
    with daemon([jsonl(tmp_path / "out")], telemetry="127.0.0.1:0") as served:
        for site, n in (("site-1", 300), ('a "quoted"\\site', 20)):
            with zmqtrack.init("e", "r", site, served.address) as run:
                for step in range(n):
                    run.log_metric("loss", 0.5, step=step)
        served.drain()
        wait_until(
            lambda: scrape(at(served))("adapter_delivered_records_total", adapter="jsonl") == 324
        )
        shown, status = scrape(at(served)), served.status()
        assert shown("accepting") == 1 and shown("journal_full") == 0
        assert shown("build_info", version=zmqtrack.__version__) == 1
        assert shown("keys_admitted") is None
        assert shown("received_batches_total") == status["daemon"]["received_batches"] > 0
        journal = status["journal"]
        assert shown("journal_head") == shown("journal_held_batches") == journal["head"]
        assert shown("journal_held_bytes") == journal["bytes"] > 0
        assert shown("journal_limit_bytes") == journal["max_bytes"] == 20 << 30
        assert shown("adapter_lag_batches", adapter="jsonl") == 0
        assert shown("adapter_dead_letters", adapter="jsonl") == 0
        assert shown("adapter_info", adapter="jsonl", type="jsonl", external="false") == 1
        states = shown.labels("adapter_state", "state")
        assert [state for state, is_it in states.items() if is_it] == ["running"]
        assert shown("loop_turn_seconds_count") > 0  # type: ignore[operator]
        records = shown.labels("site_records_total", "site")
        assert records == {"site-1": 302, 'a "quoted"\\site': 22}
        assert shown("site_runs", site="site-1", state="ended") == 1
        assert shown("site_runs", site="site-1", state="active") == 0
        assert shown("site_waiting_records", site="site-1") == 0
        assert set(shown.labels("site_losses_total", "site").values()) == {0}
        assert f"telemetry at http://{at(served)}/metrics" in served.log


def test_refusals_losses_and_an_adapters_own_counters_are_shown(
    daemon: Make, tmp_path: Path
) -> None:
    adapters = [
        {**jsonl(tmp_path / "out"), "name": "stuck", "options": {"dir": "/proc/none"}},
        {"type": "tensorboard", "flush_interval": 0, "topics": ["metric", "own_type"],
         "options": {"logdir": str(tmp_path / "tb")}},
    ]  # fmt: skip
    with daemon(adapters, telemetry="127.0.0.1:0", limits={"text": "100B"}) as served:
        with zmqtrack.init("e", "r", "site-1", served.address) as run:
            run.log_metric("a", 1.0)
            run.log_text("long", "x" * 200)
            run.log("own_type", "a", 1)
        wait_until(
            lambda: (
                scrape(at(served)).labels("adapter_notes_total", "reason")
                == {"unsupported_type:own_type": 1}
            )
        )
        wait_until(
            lambda: scrape(at(served))("adapter_state", adapter="stuck", state="retrying") == 1
        )
        shown = scrape(at(served))
    assert shown("losses_total", reason="text_too_large") == 1
    assert shown("site_losses_total", site="site-1") == 1
    assert shown("refused_messages_total", reason="text_too_large") == 1
    assert shown("refused_messages_total", reason="disk_full") == 0
    assert shown("adapter_lag_batches", adapter="stuck") == shown("journal_head") > 0  # type: ignore[operator]
    assert shown("adapter_state", adapter="stuck", state="running") == 0


def test_counters_never_fall_though_only_the_latest_streams_and_some_sites_are_told_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "MAX_SITES", 2)
    monkeypatch.setattr(telemetry, "FRESH", 0.0)
    now = facts(
        sites=[run_of("c", last_seen=3.0), run_of("a", waiting=9, state="stale"), run_of("b")],
        streams=[stream("c"), stream("a", 10), stream("b", 5)],
        losses=[{"reason": "x", "site": "d", "n": 7}],
        not_carried=[{"reason": "unsupported_y", "site": "a", "n": 3}],
    )
    with turning(lambda: now) as (served, _):
        shown = scrape(served.address)
        assert shown("unlabelled", kind="site") == 1
        assert shown.labels("site_records_total", "site") == {"a": 10, "b": 5, "(others)": 1}
        assert shown.labels("site_losses_total", "site") == {"": 0, "a": 0, "b": 0, "(others)": 7}
        kept_out = shown.labels("site_not_carried_total", "site")
        assert kept_out == {"": 0, "a": 3, "b": 0, "(others)": 0}
        assert shown.labels("not_carried_total", "reason") == {"unsupported_y": 3}
        assert shown("site_waiting_records", site="a") == 9
        assert shown("site_runs", site="a", state="stale") == 1
        assert shown("site_runs", site="a", state="active") == 0
        # The first stream of `a` is no longer told of, another of it is; `d` is new.
        now["streams"] = [stream("a", 4, "another"), stream("d", 2)]
        shown = scrape(served.address)
        assert shown.labels("site_records_total", "site") == {"a": 14, "b": 5, "(others)": 3}
        now["streams"] = [stream("a", 11), stream("a", 4, "another")]
        shown = scrape(served.address)
        assert shown.labels("site_records_total", "site") == {"a": 15, "b": 5, "(others)": 3}


def test_many_sites_adapters_and_reasons_do_not_make_the_answer_endless() -> None:
    adapter = {
        "type": "t", "types": None, "state": "surprised", "external": False, "lag": 0,
        "dead_letters": 0, "restarts": 0, "counters": {f"reason {n}": 1 for n in range(200)},
    }  # fmt: skip
    now = facts(
        sites=[run_of(f"site-{n}") for n in range(3000)],
        streams=[stream(f"site-{n}") for n in range(3000)],
        adapters={f"adapter-{n}": adapter for n in range(500)},
        losses=[{"reason": f"r{n}", "site": f"site-{n % 7}", "n": 1} for n in range(5000)],
    )
    with turning(lambda: now) as (served, _):
        shown = scrape(served.address)
        assert len(shown.labels("site_records_total", "site")) == 1001
        assert shown("site_records_total", site="(others)") == 2000
        assert shown("unlabelled", kind="site") == 2000
        assert shown("unlabelled", kind="adapter") == 300
        losses = shown.labels("losses_total", "reason")
        assert len(losses) == 201 and sum(losses.values()) == 5000
        notes = shown.labels("adapter_notes_total", "reason")
        assert len(notes) == 51 and notes["(others)"] == 150
        assert shown("adapter_state", adapter="adapter-0", state="other") == 1


# --- live, ready ------------------------------------------------------------------------------


def test_it_is_not_ready_while_the_journal_is_full_and_is_again_when_there_is_room(
    daemon: Make, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    folder.write_text("where a folder is to be")  # the adapter cannot deliver: nothing is trimmed
    with daemon(
        [jsonl(folder, retry_max="500ms")],
        telemetry="127.0.0.1:0",
        max_bytes=20_000,
        retain_bytes=0,
    ) as served:
        wait_until(lambda: get(at(served), "/ready") == (200, "ready\n"))
        with zmqtrack.init("e", "r", "s", served.address) as run:
            for step in range(5000):
                run.log_text("note", "x" * 10, step=step)
            wait_until(lambda: get(at(served), "/ready")[0] == 503)
            code, why = get(at(served), "/ready")
            assert code == 503 and "journal is full" in why
            assert get(at(served), "/live")[0] == 200
            shown = scrape(at(served))
            assert (shown("journal_full"), shown("accepting")) == (1, 0)
            folder.unlink()
            wait_until(lambda: get(at(served), "/ready") == (200, "ready\n"))
            run.finish(timeout=PATIENCE)
        wait_until(lambda: scrape(at(served))("accepting") == 1)


def test_a_status_fits_into_a_message_however_much_there_is_to_tell(daemon: Make) -> None:
    """With the longest names; what has no room in it is summed up, and no loss is left out."""
    served = daemon(telemetry="127.0.0.1:0")
    served.state_dir.mkdir()
    journal = Journal(served.state_dir)
    for n in range(1500):
        site = f"{n:0>250}"
        journal.adopt(n.to_bytes(16, "big"), 1, ("e" * 250, "r" * 250, site), float(n))
        for reason in ("too_large", "no_room", f"{n:~>250}"):
            journal.count(reason, site, 1000 + n)
    journal.commit()
    journal.close()
    total = sum(range(1000, 2500))
    with served:
        status = served.status()
        shown = scrape(at(served))
    assert shown("losses_total", reason="no_room") == total  # metrics are made of all there is
    told: Counter[str] = Counter()
    for loss in status["losses"]:
        told[loss["reason"]] += loss["n"]
    assert told["too_large"] == told["no_room"] == total and sum(told.values()) == 3 * total
    assert {"reason": "no_room", "site": f"{1499:0>250}", "n": 2499} in status["losses"]
    assert {loss["site"] for loss in status["losses"] if loss["n"] >= 2500} == {"(others)"}
    sites = [each["site"] for each in status["sites"]]
    assert sites == [f"{n:0>250}" for n in range(1500 - len(sites), 1500)] and len(sites) > 200
    assert len(status["streams"]) > 200
    assert status["streams_total"] == status["runs_total"] == 1500


def test_a_loop_that_hangs_is_not_live_and_nobody_waits_for_it_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(telemetry, "HANGS", 0.3)
    monkeypatch.setattr(telemetry, "PATIENCE", 0.3)
    monkeypatch.setattr(telemetry, "FRESH", 0.1)
    with turning(facts) as (served, hangs):
        assert get(served.address, "/live") == (200, "live\n")
        hangs.set()
        wait_until(lambda: get(served.address, "/live")[0] == 503)
        for path in ("/live", "/ready", "/metrics"):
            code, why = get(served.address, path)
            assert code == 503 and "has not turned for" in why
        hangs.clear()
        for path in ("/live", "/ready", "/metrics"):
            wait_until(lambda path=path: get(served.address, path)[0] == 200)  # type: ignore[misc]


def test_a_journal_that_cannot_be_asked_does_not_end_the_loop() -> None:
    def broken() -> dict[str, Any]:
        raise sqlite3.DatabaseError("database disk image is malformed")

    with turning(broken) as (served, _):
        for path in ("/metrics", "/ready"):
            code, why = get(served.address, path)
            assert code == 503 and "malformed" in why
        assert get(served.address, "/live")[0] == 200


# --- never in the way -------------------------------------------------------------------------


def test_clients_that_hang_hold_up_neither_the_loop_nor_for_long_a_scrape(
    daemon: Make, tmp_path: Path
) -> None:
    with daemon([jsonl(tmp_path / "out")], telemetry="127.0.0.1:0") as served:
        host, _, port = at(served).rpartition(":")
        hanging = [socket.create_connection((host, int(port))) for _ in range(telemetry.THREADS)]
        for n, each in enumerate(hanging):
            if n % 2:
                each.sendall(b"GET /metrics HTTP/1.1\r\nHost: ")
        with zmqtrack.init("e", "r", "s", served.address) as run:
            for step in range(100):
                run.log_metric("a", 1.0, step=step)
            assert run.flush(timeout=PATIENCE)
        served.drain()
        assert scrape(at(served))("adapter_lag_batches", adapter="jsonl") == 0
        for each in hanging:
            each.close()


def test_a_client_that_sends_ever_so_slowly_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "DEADLINE", 0.2)
    with turning(facts) as (served, _):
        host, _, port = served.address.rpartition(":")
        with socket.create_connection((host, int(port))) as slow:
            slow.settimeout(0.05)
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline:
                try:
                    slow.sendall(b"G")
                    if not slow.recv(100):
                        break
                except TimeoutError:
                    pass
                except ConnectionError:
                    break
            else:
                raise AssertionError("it is still let talk")


def test_a_hundred_scrapes_in_parallel_are_answered_from_a_few_snapshots() -> None:
    asked: list[float] = []

    def count() -> dict[str, Any]:
        asked.append(time.monotonic())
        return facts(streams=[stream(f"site-{n}") for n in range(50)])

    with turning(count) as (served, _), ThreadPoolExecutor(100) as pool:
        began = time.monotonic()
        found = list(pool.map(lambda _: scrape(served.address), range(100)))
        took = time.monotonic() - began
    assert {each("site_records_total", site="site-49") for each in found} == {1}
    assert 1 <= len(asked) <= 1 + took / telemetry.FRESH


def test_a_hundred_scrapes_in_parallel_and_the_daemon_goes_on(daemon: Make, tmp_path: Path) -> None:
    with (
        daemon([jsonl(tmp_path / "out")], telemetry="127.0.0.1:0") as served,
        ThreadPoolExecutor(100) as pool,
    ):
        answers = [pool.submit(get, at(served)) for _ in range(100)]
        with zmqtrack.init("e", "r", "s", served.address) as run:
            run.log_metric("a", 1.0)
            assert run.flush(timeout=PATIENCE)
        assert {answer.result()[0] for answer in answers} == {200}


def test_nobody_asks_so_nothing_is_looked_up() -> None:
    asked: list[int] = []

    def note() -> dict[str, Any]:
        asked.append(1)
        return facts()

    with turning(note, every=0.001) as (served, _):
        get(served.address, "/live")
        before = list(asked)
        get(served.address, "/nothing")
    assert before == asked == []


# --- other paths, other methods, other addresses ----------------------------------------------


def test_all_else_is_refused_with_a_word() -> None:
    with turning(facts) as (served, _):
        for path in ("/", "/metrics/", "/../etc/passwd", "/metricsx", "/live?x=/metrics/y/"):
            code, text = get(served.address, path)
            assert code == (200 if path.startswith("/live") else 404), path
            assert code == 200 or text == "here are /metrics, /live and /ready\n"
        for method in ("POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"):
            assert get(served.address, "/metrics", method)[0] == 405
        assert get(served.address, "/metrics", "BREW")[0] == 501
        host, _, port = served.address.rpartition(":")
        for garbage in (b"\x16\x03\x01\x02\x00\x01", b"\r\n\r\n", b"GET " + b"x" * 100_000):
            with (
                socket.create_connection((host, int(port)), PATIENCE) as other,
                contextlib.suppress(ConnectionError),
            ):
                other.sendall(garbage + b"\r\n\r\n")
                while other.recv(4096):
                    pass
        assert get(served.address, "/live")[0] == 200


def test_a_port_that_is_taken_is_named_and_what_to_do(daemon: Make, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        served = daemon([], telemetry=address)
        done = subprocess.run(
            [sys.executable, "-m", "zmqtrack.daemon", "--config", str(served.config)],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    assert done.returncode == 1
    assert f"cannot serve telemetry at {address}: Address already in use" in done.stderr
    assert "daemon.telemetry" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("host", ["localhost", "[::1]"])
def test_names_and_ipv6_are_addresses_too(host: str) -> None:
    try:
        served = Telemetry(f"{host}:0")
    except ZMQTrackError as error:
        if host == "[::1]" and "Cannot assign" in str(error):
            pytest.skip("no IPv6 on this machine")
        raise
    try:
        assert served.address.startswith(f"{host}:") and not served.address.endswith(":0")
        assert get(served.address, "/live")[0] == 200
    finally:
        served.close()


def test_a_daemon_that_stops_says_that_it_is_not_ready_and_leaves_no_port(
    daemon: Make, tmp_path: Path
) -> None:
    with daemon([jsonl(tmp_path / "out")], telemetry="127.0.0.1:0") as served:
        address = at(served)
        assert get(address, "/live")[0] == 200
    with pytest.raises(ConnectionRefusedError):
        get(address, "/live")


# --- the page, the rules, the dashboard -------------------------------------------------------


def exposed() -> set[str]:
    """Names of all metrics that there are."""
    with turning(facts) as (served, _):
        return scrape(served.address).names


def test_the_page_names_each_metric_and_no_other() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    table = page.partition("\n## Metrics\n")[2].partition("\n## ")[0]
    named = re.findall(r"^\| `(\w+)`", table, re.M)
    assert len(named) == len(set(named))
    assert set(named) == exposed()


NAME = re.compile(r"\b(?:zmqtrack|process)_\w+")
#: What Prometheus makes of a histogram.
SUFFIX = re.compile(r"(?<=_seconds)_(bucket|sum|count)$")


def test_rules_and_dashboard_use_metrics_that_there_are() -> None:
    known = exposed()
    rules = yaml.safe_load((ROOT / "configs" / "prometheus" / "alerts.yaml").read_text())
    alerts = [rule for group in rules["groups"] for rule in group["rules"]]
    dashboard = json.loads((ROOT / "configs" / "grafana" / "zmqtrack.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    targets = [target["expr"] for panel in panels for target in panel["targets"]]
    variables = [
        str(variable["query"]["query"])
        for variable in dashboard["templating"]["list"]
        if variable["type"] == "query"
    ]
    assert alerts and targets and variables
    for expression in [*(rule["expr"] for rule in alerts), *targets, *variables]:
        used = {SUFFIX.sub("", name) for name in NAME.findall(expression)}
        assert used <= known, expression
        assert used or "up{" in expression, expression
    assert all("$instance" in expression for expression in targets)
    assert {panel["datasource"]["uid"] for panel in panels} == {"${datasource}"}


def test_the_page_tells_of_each_alert() -> None:
    rules = yaml.safe_load((ROOT / "configs" / "prometheus" / "alerts.yaml").read_text())
    page = (ROOT / "docs" / "operations.md").read_text()
    for group in rules["groups"]:
        for rule in group["rules"]:
            assert f"`{rule['alert']}`" in page
            assert rule["annotations"]["summary"]


def test_the_rules_alert_when_they_should() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (it comes with Prometheus)")
    done = subprocess.run(
        [promtool, "test", "rules", "alerts_promtool.yaml"],
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
