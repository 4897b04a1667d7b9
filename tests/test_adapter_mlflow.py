"""The MLflow adapter against a real SQLite store and a real ``mlflow server``."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

mlflow = pytest.importorskip("mlflow")
Image = pytest.importorskip("PIL.Image")

from zmqtrack.adapters.base import Blocked, Context, Refused, Unavailable  # noqa: E402
from zmqtrack.adapters.mlflow import MLflowAdapter, MLflowOptions  # noqa: E402

from zmqtrack.records import Record, RunKey  # noqa: E402
from zmqtrack.wire import Batch, Header  # noqa: E402

pytestmark = pytest.mark.timeout(180)

T = 1_700_000_000.125


# --- a store, a server -------------------------------------------------------------------


@pytest.fixture(scope="module")
def sqlite_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database whose tables are made; making them takes seconds."""
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder / 'new' / 'mlflow.db'}"  # "new" is the adapter's to make
    adapter = MLflowAdapter(MLflowOptions(tracking_uri=uri), context(folder / "state"))
    adapter.open(b"")
    adapter.close()
    return uri


@pytest.fixture(scope="module")
def server_uri(sqlite_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(sqlite_uri.removeprefix("sqlite:///"), folder / "mlflow.db")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--workers", "1"),
        *("--artifacts-destination", str(folder / "artifacts")),
    ]
    with (folder / "log").open("w") as log:
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        server = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    try:
        wait_for_server(f"http://127.0.0.1:{port}/health", server, folder / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, 15)
        server.wait(20)


def wait_for_server(health: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(health, timeout=2).close()
            return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"mlflow server does not answer:\n{log.read_text()[-3000:]}")


@pytest.fixture(params=["sqlite", "server"])
def uri(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"{request.param}_uri"))


def context(folder: Path) -> Context:
    folder.mkdir(parents=True, exist_ok=True)
    return Context("test", folder, logging.getLogger("test"), {})


class Site:
    """One site's stream of batches into one adapter, and what MLflow shows of it."""

    def __init__(self, uri: str, folder: Path, site: str = "site-1", run: str = "run-1") -> None:
        self.key = RunKey(folder.name, run, site)
        self.stream, self.seq = uuid4().bytes, 0
        self.uri, self.folder = uri, folder
        self.client = mlflow.MlflowClient(uri)
        self.restart()

    def restart(self, note: bytes = b"", **options: Any) -> None:
        """Go on with a fresh adapter, as after a kill -9."""
        self.context = context(self.folder / "state")
        self.adapter = MLflowAdapter(MLflowOptions(tracking_uri=self.uri, **options), self.context)
        self.adapter.open(note)

    def batch(self, data_type: str, *records: Record) -> Batch:
        self.seq += 1
        return Batch(data_type, Header(self.stream, self.seq, self.key, len(records)), records)

    def log(self, data_type: str, *records: Record) -> None:
        self.adapter.deliver([self.batch(data_type, *records)])

    @property
    def experiment(self) -> str:
        return str(self.client.get_experiment_by_name(self.key.experiment).experiment_id)

    def runs(self, parents: bool = False) -> list[Any]:
        return [
            run
            for run in self.client.search_runs([self.experiment])
            if ("zmqtrack.site" in run.data.tags) is not parents
        ]

    @property
    def run(self) -> Any:
        own = {"zmqtrack.run": self.key.run, "zmqtrack.site": self.key.site}
        (run,) = [run for run in self.runs() if own.items() <= run.data.tags.items()]
        return self.client.get_run(run.info.run_id)

    @property
    def parent(self) -> Any:
        (run,) = [r for r in self.runs(True) if r.data.tags["zmqtrack.run"] == self.key.run]
        return run

    def history(self, key: str) -> list[tuple[float, int, int]]:
        points = self.client.get_metric_history(self.run.info.run_id, key)
        return [(point.value, point.step, point.timestamp) for point in points]

    def files(self) -> dict[str, bytes]:
        """The artifacts, read through MLflow."""
        target = self.folder / "download" / uuid4().hex
        target.mkdir(parents=True)
        root = Path(self.client.download_artifacts(self.run.info.run_id, "", str(target)))
        return {
            str(path.relative_to(root)): path.read_bytes()
            for path in root.rglob("*")
            if path.is_file()
        }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / f"experiment {uuid4().hex[:8]} 'é\""
    path.mkdir()
    return path


@pytest.fixture
def site(uri: str, folder: Path) -> Site:
    return Site(uri, folder)


@pytest.fixture
def local(sqlite_uri: str, folder: Path) -> Site:
    return Site(sqlite_uri, folder)


def metrics(values: Sequence[float], key: str = "loss", step: int = 0) -> list[Record]:
    return [Record(key, v, step + i, T + step + i) for i, v in enumerate(values)]


def picture(colour: str = "red", kind: str = "PNG") -> bytes:
    file = BytesIO()
    Image.new("RGB", (8, 4), colour).save(file, kind)
    return file.getvalue()


def all_types(site: Site) -> list[Batch]:
    file = site.folder / "some file"
    file.write_bytes(b"\0weights" * 1000)
    histogram = {"counts": [1, 2], "edges": [0.0, 1.0, 2.0]}
    return [
        site.batch(
            "run", Record("start", {"host": "alpha", "python": "3.11", "user": "me"}, None, T)
        ),
        site.batch("metric", *metrics([0.5, math.nan, math.inf, -math.inf, 1 / 3])),
        site.batch("param", Record("lr", 0.1, None, T), Record("empty", "", None, T)),
        site.batch("param", Record("lr", 0.2, None, T), Record("layers", [3, 4], None, T)),
        site.batch("tag", Record("phase", "one", None, T), Record("phase", "two", None, T)),
        site.batch("text", Record("notes/read me.md", "# ü", None, T)),
        site.batch("text", Record("sample", "first", None, T), Record("sample", "2nd", None, T)),
        site.batch("text", Record("said", "a", 7, T), Record("said", "b", 7, T + 1)),
        site.batch("image", Record("plots/x.png", picture(), None, T)),
        site.batch("image", Record("val/digit", picture("blue", "GIF"), 3, T)),
        site.batch("histogram", Record("w/1", histogram, 5, T)),
        site.batch("artifact", Record("model/weights.bin", file, None, T)),
        site.batch("log", Record("stdout", "one\ntwo", None, T), Record("stdout", "3\n", None, T)),
        site.batch("run", Record("end", "finished", None, T + 60)),
    ]


def check_all_types(site: Site) -> None:
    run = site.run
    assert run.info.run_name == "run-1"
    assert (run.info.start_time, run.info.end_time) == (1_700_000_000_125, 1_700_000_060_125)
    assert run.info.status == "FINISHED"
    assert site.runs(parents=True) == []
    ids = ("zmqtrack.id", "zmqtrack.job")
    tags = {key: tag for key, tag in run.data.tags.items() if key not in ids}
    assert tags == {
        "mlflow.runName": "run-1",
        "mlflow.user": "me",
        "mlflow.loggedImages": "True",
        "zmqtrack.run": "run-1",
        "zmqtrack.site": "site-1",
        "zmqtrack.adapter": "test",
        "zmqtrack.host": "alpha",
        "zmqtrack.python": "3.11",
        "param.lr.2": "0.2",
        "phase": "two",
    }
    assert run.data.params == {"lr": "0.1", "empty": "", "layers": "[3, 4]"}
    largest = sys.float_info.max
    points = [0.5, None, largest, -largest, 1 / 3]
    history = [(None if math.isnan(v) else v, step, ms) for v, step, ms in site.history("loss")]
    assert sorted(history, key=lambda point: point[1]) == [
        (value, step, 1_700_000_000_125 + 1000 * step) for step, value in enumerate(points)
    ]
    files = site.files()
    assert files.pop("notes/read me.md") == "# ü".encode()
    assert files.pop("text/sample.txt") == b"first\n2nd"
    assert files.pop("plots/x.png") == picture()
    assert files.pop("model/weights.bin") == b"\0weights" * 1000
    assert files.pop("logs/stdout.txt") == b"one\ntwo\n3\n"
    assert len(files) == 5
    shown = {
        re.sub(r"(?<=[-+])[0-9a-f][0-9a-f-]{7,}", "#", path): content
        for path, content in files.items()
    }
    assert shown.keys() == {
        "text/said/7-#.txt",
        "images/val~digit+step+3+timestamp+#+#.png",
        "images/val~digit+step+3+timestamp+#+#+compressed.webp",
        "histograms/w/1/5-#.json",
    }
    said = {path: content for path, content in files.items() if path.startswith("text/said/7-")}
    assert [said[path] for path in sorted(said)] == [b"a", b"b"]
    assert sorted(said)[0].startswith("text/said/7-1700000000125-")
    for path, kind, size in (
        ("val~digit+step+3+timestamp+#+#.png", "PNG", (8, 4)),
        ("val~digit+step+3+timestamp+#+#+compressed.webp", "WEBP", (256, 128)),
    ):
        with Image.open(BytesIO(shown[f"images/{path}"])) as image:
            assert (image.format, image.size) == (kind, size)
    assert json.loads(shown["histograms/w/1/5-#.json"]) == {
        "key": "w/1", "step": 5, "time": T, "counts": [1, 2], "edges": [0.0, 1.0, 2.0],
    }  # fmt: skip


# --- what arrives ------------------------------------------------------------------------


def test_each_data_type_arrives_with_key_value_step_time_site_and_run(site: Site) -> None:
    site.adapter.deliver(all_types(site))
    check_all_types(site)


def test_what_is_delivered_again_by_a_fresh_adapter_is_there_once(site: Site) -> None:
    batches = all_types(site)
    site.adapter.deliver(batches)
    site.restart(note=b"")  # killed before the cursor was committed
    for batch in batches:
        site.adapter.deliver([batch])
    check_all_types(site)
    site.restart(note=site.adapter.note())
    site.adapter.deliver(batches[1:5])
    assert len(site.history("loss")) == 5
    assert (len(site.runs()), len(site.runs(parents=True))) == (1, 0)


def test_more_metrics_than_one_request_takes_arrive_in_one_delivery(site: Site) -> None:
    site.log("metric", *metrics([i / 7 for i in range(2500)]))
    assert sorted(site.history("loss"), key=lambda point: point[1]) == [
        (i / 7, i, 1_700_000_000_125 + 1000 * i) for i in range(2500)
    ]


def test_a_partly_known_batch_adds_what_is_missing(site: Site) -> None:
    nan, points = math.nan, metrics([0.1, 0.2, 0.3])
    site.log("metric", *points[:2], Record("bad", nan, 1, T))
    site.log("metric", *points, Record("bad", nan, 1, T), Record("bad", nan, 2, T))
    assert len(site.history("loss")) == 3
    assert [step for _, step, _ in site.history("bad")] == [1, 2]


def test_steps_that_repeat_or_go_back_are_kept(site: Site) -> None:
    steps = [5, 6, 5, 5, -3, 2**40]
    site.log("metric", *[Record("acc", float(i), s, T + i) for i, s in enumerate(steps)])
    shown = sorted(site.history("acc"), key=lambda point: point[2])
    assert [step for _, step, _ in shown] == steps


def test_points_that_mlflow_cannot_tell_apart_are_counted(local: Site) -> None:
    same = Record("loss", 0.5, None, T)
    local.log("metric", same, same, Record("loss", 0.5, None, T + 0.0001), metrics([0.25])[0])
    assert sorted(value for value, _, _ in local.history("loss")) == [0.25, 0.5]
    assert local.context.counters == {"mlflow: identical metric point merged": 2}


def test_a_request_stays_below_a_megabyte(local: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    send = local.adapter._client.log_batch

    def measure(run_id: str, metrics: Any, params: Any, tags: Any, synchronous: bool) -> None:
        rows = [{**vars(item), "_run": run_id} for item in (*metrics, *params, *tags)]
        sizes.append(len(json.dumps(rows, indent=2)))
        assert len(metrics) + len(params) + len(tags) <= 1000
        send(run_id, metrics, params, tags, synchronous=synchronous)

    monkeypatch.setattr(local.adapter._client, "log_batch", measure)
    local.adapter.deliver(
        [
            local.batch("param", *[Record(f"p{i}", "é" * 5900, None, T) for i in range(110)]),
            local.batch("tag", *[Record(f"t{i}", "é" * 7900, None, T) for i in range(110)]),
            local.batch("metric", *metrics([float(i) for i in range(1500)], key="ü" * 100)),
        ]
    )
    assert max(sizes) < 1_000_000
    assert len(local.run.data.params) == 110
    assert len(local.history("ü" * 100)) == 1500


# --- params and tags ---------------------------------------------------------------------


def test_a_param_logged_again_is_no_error_and_a_new_value_becomes_a_tag(site: Site) -> None:
    def param(*values: Any) -> Batch:
        return site.batch("param", *[Record("lr", value, None, T) for value in values])

    batches = [param(1, 1), param(2), param(1, 3), param(2)]
    for _ in range(2):
        for batch in batches:
            site.adapter.deliver([batch])
        site.restart()
    assert site.run.data.params == {"lr": "1"}
    changes = {k: v for k, v in site.run.data.tags.items() if k.startswith("param.")}
    assert changes == {"param.lr.2": "2", "param.lr.3": "3"}


def test_a_long_value_is_shortened_and_kept_whole_as_an_artifact(site: Site) -> None:
    first, second, tag = "a" * 7000, "a" * 6999 + "b", "c" * 9000
    for _ in range(2):
        site.log("param", Record("prompt", first, None, T), Record("prompt", second, None, T))
        site.log("tag", Record("note", tag, None, T))
    data = site.run.data
    assert data.params["prompt"].startswith("aaa")
    assert re.search(r"… \[7000 characters, sha256 [0-9a-f]{16}\]$", data.params["prompt"])
    assert data.tags["param.prompt.2"].startswith("aaa") and "param.prompt.3" not in data.tags
    assert len(data.params["prompt"]) == 6000 and len(data.tags["note"]) == 8000
    assert site.files() == {
        "params/prompt.txt": first.encode(),
        "params/prompt.2.txt": second.encode(),
        "tags/note.txt": tag.encode(),
    }


def test_keys_that_mlflow_forbids_are_written_reversibly(site: Site) -> None:
    keys = ["a%b", "a//b", "/a", "a/", "..", "a/../b", ".", "tab\t", "x_x0025_", "loss{é,中}",
            "a:b", "a b", "_x0025", "line\n", "a#b?c", "\U0001f600"]  # fmt: skip
    site.log("metric", *[Record(key, 1.0, 1, T) for key in keys])
    site.log("param", *[Record(key, "v", None, T) for key in keys])
    site.log("tag", *[Record(key, "v", None, T) for key in keys])

    def restore(name: str) -> str:
        return re.sub(r"_x([0-9A-F]{4,6})_", lambda match: chr(int(match[1], 16)), name)

    data = site.run.data
    assert sorted(map(restore, data.metrics)) == sorted(keys)
    assert sorted(map(restore, data.params)) == sorted(keys)
    assert set(keys) <= set(map(restore, data.tags))


def test_keys_longer_than_mlflow_takes_stay_distinct(local: Site) -> None:
    keys = ["k" * 1000 + end for end in "ab"] + ["中" * 300]
    local.log("metric", *[Record(key, 1.0, 1, T) for key in keys])
    local.log("param", *[Record(key, value, None, T) for key in keys for value in (1, 2)])
    assert len(local.run.data.metrics) == len(local.run.data.params) == 3
    assert len([key for key in local.run.data.tags if key.startswith("param.")]) == 3


def test_a_site_cannot_write_the_tags_that_say_whose_run_it_is(local: Site) -> None:
    local.log("run", Record("start", {"id": "0", "site": "other", "run": "x"}, None, T))
    local.log("tag", *[Record(key, "x", None, T) for key in ("zmqtrack.id", "mlflow.runName")])
    assert local.run.info.run_name == "run-1"
    assert local.run.data.tags["zmqtrack.site"] == "site-1"
    assert local.run.data.tags["_x007A_mqtrack.id"] == "x"
    local.restart()
    local.log("metric", *metrics([1.0]))
    assert len(local.runs()) == 1


# --- files -------------------------------------------------------------------------------


def test_a_path_cannot_leave_the_run(site: Site) -> None:
    keys = ["../up.txt", "/etc/abs.txt", "a/../../b.txt", "nul\0.txt", "%2e%2e/c.txt", "..",
            "C:\\d.txt", "file:///e.txt", "x" * 10_000 + ".txt", "y/" * 5000 + "f.txt", "#?;é.txt",
            "a~=@,()+b 中.txt"]  # fmt: skip
    for key in keys:
        site.log("text", Record(key, key, None, T))
    (site.folder / "artifact").write_text("whole")
    site.log("artifact", Record("../../../artifact", site.folder / "artifact", None, T))
    site.log("histogram", Record("../h", {"counts": [], "edges": [0.0]}, 1, T))
    site.log("image", Record("../i", picture(), 1, T))
    files = site.files()
    assert len(files) == len(keys) + 4
    assert set(keys) <= {content.decode(errors="replace") for content in files.values()}
    assert "a~=@,()+b 中.txt" in files


def test_steps_of_a_text_do_not_replace_each_other(local: Site) -> None:
    records = [Record("t", "x", 1, T), Record("t", "y", 1, T), Record("t.md", "z", 1, T),
               Record("t.md", "z", 2, T)]  # fmt: skip
    local.log("text", *records)
    local.log("text", *records)
    assert sorted(local.files().values()) == [b"x", b"y", b"z", b"z"]


def test_a_log_goes_on_in_another_part_and_forgets_old_ones(
    local: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zmqtrack.adapters.mlflow.PART_BYTES", 10)
    for number in range(6):
        local.log("log", Record("out", f"line {number}\n" * 2, None, T))
    files = local.files()
    names = ["logs/out.txt", *(f"logs/out.{n}.txt" for n in range(2, 7))]
    assert [files[name] for name in names] == [f"line {n}\n".encode() * 2 for n in range(6)]
    kept = [path.stat().st_size for path in (local.folder / "state/appended").rglob("*.txt")]
    assert len(kept) == 6 and Counter(size > 0 for size in kept)[True] <= 3


def test_a_log_that_failed_on_its_way_is_not_appended_twice(
    local: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.log("log", Record("out", "1", None, T))
    more = [local.batch("log", Record("out", "2", None, T)), local.batch("metric", *metrics([1]))]
    note = local.adapter.note()
    with monkeypatch.context() as patch:
        patch.setattr(local.adapter._runs, "settle", fail)
        more.append(local.batch("run", Record("end", "finished", None, T)))
        with pytest.raises(Unavailable):
            local.adapter.deliver(more)
    local.adapter.deliver(more)
    assert local.files()["logs/out.txt"] == b"1\n2"
    local.restart(note)  # delivered, not committed
    local.adapter.deliver(more)
    assert local.files()["logs/out.txt"] == b"1\n2"


def fail(*_: Any, **__: Any) -> None:
    raise Unavailable("on purpose")


def test_an_outage_is_no_refusal_also_while_the_caller_handles_one(
    local: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise ConnectionError("nobody there")

    monkeypatch.setattr(local.adapter._client, "log_batch", away)
    batch = local.batch("metric", *metrics([1]))
    try:
        raise Refused("another record")
    except Refused:
        with pytest.raises(Unavailable, match="nobody there"):
            local.adapter.deliver([batch])


# --- runs --------------------------------------------------------------------------------


def test_what_is_logged_after_the_end_reopens_the_run(local: Site) -> None:
    local.log("run", Record("end", "finished", None, T + 10))
    local.log("metric", *metrics([1.0]))  # logged before the end, arrived after it
    assert local.run.info.status == "FINISHED"
    local.log("run", Record("start", {}, None, T + 20))
    assert local.run.info.status == "RUNNING"
    local.log("run", Record("end", "failed", None, T + 30))
    assert (local.run.info.status, local.run.info.end_time) == ("FAILED", 1_700_000_030_125)


def test_no_second_run_is_made_when_the_process_died_after_the_first(
    local: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = local.adapter._client.create_run

    def create_and_die(*arguments: Any) -> None:
        create(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(local.adapter._client, "create_run", create_and_die)
    with pytest.raises(KeyboardInterrupt):
        local.log("metric", *metrics([1.0]))
    local.restart()
    local.log("metric", *metrics([1.0]))
    everything = local.client.search_runs([local.experiment], run_view_type=3)
    assert len(everything) == 1  # nothing was made and deleted, either


def test_a_twin_that_a_lost_answer_left_behind_is_removed(local: Site) -> None:
    local.log("metric", *metrics([1.0]))
    taken = local.run
    tags = {k: v for k, v in taken.data.tags.items() if k != "zmqtrack.adapter"}
    for _ in range(3):
        local.client.create_run(local.experiment, tags=tags)
    local.restart()
    local.log("metric", *metrics([2.0], step=1))
    assert local.run.info.run_id == taken.info.run_id
    assert len(local.history("loss")) == 2


def test_a_run_or_experiment_deleted_in_mlflow_blocks_and_says_what_to_do(local: Site) -> None:
    batch = local.batch("metric", *metrics([1.0]))
    local.adapter.deliver([batch])
    run_id, experiment = local.run.info.run_id, local.experiment
    local.client.delete_run(run_id)
    for _ in range(2):
        with pytest.raises(Blocked, match="restore"):
            local.adapter.deliver([batch])
        local.restart()
    local.client.restore_run(run_id)
    local.client.delete_experiment(experiment)
    local.restart()
    with pytest.raises(Blocked, match=f"mlflow experiments restore -x {experiment}"):
        local.adapter.deliver([batch])
    local.client.restore_experiment(experiment)
    local.adapter.deliver([batch])
    assert len(local.history("loss")) == 1


def test_a_run_that_was_removed_for_good_is_made_anew(local: Site) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    batch = local.batch("metric", *metrics([1.0]))
    local.adapter.deliver([batch])
    run_id = local.run.info.run_id
    local.client.delete_run(run_id)
    SqlAlchemyStore(local.uri, str(local.folder))._hard_delete_run(run_id)
    with pytest.raises(Unavailable):
        local.adapter.deliver([batch])
    local.adapter.deliver([batch])
    assert local.run.info.run_id != run_id


def test_the_artifact_location_is_obeyed(sqlite_uri: str, folder: Path) -> None:
    local = Site(sqlite_uri, folder)
    local.restart(artifact_location=str(folder / "elsewhere"))
    local.log("text", Record("a.txt", "x", None, T))
    assert local.files() == {"a.txt": b"x"}
    assert len(list((folder / "elsewhere").rglob("a.txt"))) == 1


# --- what MLflow refuses -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("data_type", "record"),
    [
        ("metric", Record("m", 1.0, 2**63, T)),
        ("metric", Record("m", 1.0, 1, -1.0)),
        ("metric", Record("m", 1.0, 1, math.nan)),
        ("metric", Record("m", 1.0, 1, 1e300)),
        ("image", Record("i", b"no image", 1, T)),
        ("run", Record("end", "exploded", None, T)),
        ("run", Record("end", ["?"], None, T)),
        ("text", Record("dir.txt/below.txt", "x", None, T)),
        ("artifact", Record("a", Path("folder"), None, T)),
    ],
)
def test_a_record_that_mlflow_cannot_hold_is_refused_alone(
    site: Site, data_type: str, record: Record
) -> None:
    if data_type == "text":
        site.log("text", Record("dir.txt", "x", None, T))
    elif data_type == "artifact":
        site.log("text", Record("a/b.txt", "x", None, T))
        path = site.folder / "file"
        path.write_text("x")
        record = record._replace(value=path)
    with pytest.raises(Refused):
        site.log(data_type, record)
    site.log("metric", *metrics([1.0]))
    assert len(site.history("loss")) == 1


@pytest.fixture
def answering() -> Iterator[Callable[..., str]]:
    """A server that gives one answer to everything."""
    servers = []

    def start(status: int, body: bytes = b"no", **headers: str) -> str:
        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PUT = answer

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


def json_error(code: str) -> bytes:
    return json.dumps({"error_code": code, "message": "because"}).encode()


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (401, b"You are not authenticated", Blocked),
        (401, b'{"message": "Unauthorized"}', Blocked),
        (403, json_error("PERMISSION_DENIED"), Blocked),
        (404, b"<html>no MLflow here</html>", Blocked),
        (400, json_error("INVALID_PARAMETER_VALUE"), Refused),
        (413, b"<html>too large</html>", Refused),
        (422, b'{"detail": "no"}', Refused),
        (429, b"slow down", Unavailable),
        (500, b"oops", Unavailable),
        (502, b"", Unavailable),
        (503, json_error("TEMPORARILY_UNAVAILABLE"), Unavailable),
        (200, b"<html>log in</html>", Unavailable),
    ],
)
def test_an_answer_becomes_the_error_that_the_host_knows(
    answering: Callable[..., str], folder: Path, status: int, body: bytes, error: type[Exception]
) -> None:
    started = time.monotonic()
    with pytest.raises(error):
        Site(answering(status, body), folder)
    assert time.monotonic() - started < 5  # the host retries, not MLflow


def test_a_store_that_is_there_is_found_by_a_probe(uri: str, folder: Path) -> None:
    adapter = MLflowAdapter(MLflowOptions(tracking_uri=uri), context(folder / "state"))
    found = adapter.probe(30)
    if uri.startswith("http"):
        assert found == f"MLflow {mlflow.__version__} at {uri} lets us in"
    else:
        assert re.search(r"can be (made|written)", found)


def test_the_wait_that_the_server_asks_for_reaches_the_host(
    answering: Callable[..., str], folder: Path
) -> None:
    with pytest.raises(Unavailable) as raised:
        Site(answering(429, Retry_After="17"), folder)
    assert raised.value.retry_after == 17


def test_a_server_that_is_down_is_unavailable(folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(Unavailable, match="refused"):
            Site(f"http://127.0.0.1:{free.getsockname()[1]}", folder)


def test_a_server_that_does_not_answer_is_unavailable(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(Unavailable):
            Site(f"http://127.0.0.1:{silent.getsockname()[1]}", folder)


def test_a_locked_database_is_unavailable(local: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy.exc import OperationalError

    def locked(*_: Any, **__: Any) -> None:
        raise OperationalError("INSERT", {}, Exception("database is locked"))

    monkeypatch.setattr(local.adapter._client, "log_batch", locked)
    with pytest.raises(Unavailable, match="locked"):
        local.log("metric", *metrics([1.0]))


# --- options, import ---------------------------------------------------------------------


def test_the_tracking_uri_comes_from_the_options_or_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://env:5000")
    assert MLflowOptions().tracking_uri == "http://env:5000"
    assert MLflowOptions(tracking_uri="http://x").tracking_uri == "http://x"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_URI"):
        MLflowOptions()


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns"])
def test_a_folder_is_no_store_because_it_repeats_what_is_sent_again(uri: str) -> None:
    with pytest.raises(ValueError, match="sqlite:///PATH"):
        MLflowOptions(tracking_uri=uri)


def test_importing_the_adapter_imports_no_mlflow() -> None:
    code = (
        "import sys, zmqtrack.adapters.mlflow;"
        "print({'mlflow', 'numpy', 'PIL', 'sqlalchemy'} & set(sys.modules))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert shown.stdout.strip() == "set()"


def test_processes_that_find_no_database_make_one_between_them(tmp_path: Path) -> None:
    """Each launch of a sweep has an adapter of its own; making the tables at once spoils them."""
    code = (
        "from zmqtrack.adapters.mlflow_store import connect\n"
        "import mlflow.store.tracking.sqlalchemy_store\n"
        "print('ready', flush=True)\n"
        "input()\n"
        "connect('sqlite:///mlflow.db')\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
