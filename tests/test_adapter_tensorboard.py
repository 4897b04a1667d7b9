"""The tensorboard adapter, read back with TensorBoard's own readers."""

from __future__ import annotations

import errno
import io
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard import context as tensorboard_context
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups
from tensorboard.util import tensor_util
from zmqtrack.adapters import ledger
from zmqtrack.adapters.base import Context, Refused, Unavailable
from zmqtrack.adapters.tensorboard import TensorBoardAdapter

from zmqtrack.records import Record, RunKey
from zmqtrack.wire import Batch, Header

RUN = RunKey("mnist", "round-1", "site-1")
STORE_ALL = {"scalars": 0, "tensors": 0, "images": 0, "histograms": 0}


def batch(seq: int, data_type: str, *records: tuple[Any, ...], run: RunKey = RUN) -> Batch:
    rows = [Record(*record) for record in records]
    return Batch(data_type, Header(b"s" * 16, seq, run, len(rows), offset=seq), rows)


def losses(seq: int, *values: float, run: RunKey = RUN) -> Batch:
    return batch(seq, "metric", *(("loss", v, i, 1e9 + i) for i, v in enumerate(values)), run=run)


def start(tmp_path: Path, note: bytes = b"", **more: Any) -> TensorBoardAdapter:
    state = tmp_path / "state"
    state.mkdir(exist_ok=True)
    options = TensorBoardAdapter.Options(logdir=tmp_path / "out", **more)
    context = Context("tensorboard", state, logging.getLogger("tensorboard"), {})
    adapter = TensorBoardAdapter(options, context)
    adapter.open(note)
    return adapter


def folder(tmp_path: Path, run: RunKey = RUN) -> Path:
    return tmp_path.joinpath("out", *run)


def read(tmp_path: Path, run: RunKey = RUN) -> EventAccumulator:
    return EventAccumulator(str(folder(tmp_path, run)), size_guidance=STORE_ALL).Reload()


def scalars(tmp_path: Path, tag: str = "loss", run: RunKey = RUN) -> list[tuple[Any, ...]]:
    return [(e.step, e.wall_time, e.value) for e in read(tmp_path, run).Scalars(tag)]


def values(tmp_path: Path, run: RunKey = RUN) -> list[float]:
    return [value for _, _, value in scalars(tmp_path, run=run)]


def texts(tmp_path: Path, tag: str) -> list[tuple[int, float, str]]:
    read_back = read(tmp_path)
    assert read_back.SummaryMetadata(tag).plugin_data.plugin_name == "text"
    return [
        (e.step, e.wall_time, tensor_util.make_ndarray(e.tensor_proto).item().decode())
        for e in read_back.Tensors(tag)
    ]


def event_files(tmp_path: Path, run: RunKey = RUN) -> list[Path]:
    return sorted(p for p in folder(tmp_path, run).iterdir() if p.name.endswith(".zmqtrack"))


def session_groups(tmp_path: Path) -> list[Any]:
    """What the HPARAMS tab shows."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(tmp_path / "out")).Reload()
    provider = MultiplexerDataProvider(multiplexer, str(tmp_path / "out"))
    statuses = [
        getattr(api_pb2, f"STATUS_{s}") for s in ("UNKNOWN", "SUCCESS", "FAILURE", "RUNNING")
    ]
    request = api_pb2.ListSessionGroupsRequest(
        start_index=0, slice_size=100, allowed_statuses=statuses
    )
    handler = list_session_groups.Handler(
        tensorboard_context.RequestContext(),
        backend_context.Context(TBContext(data_provider=provider)),
        "",
        request,
    )
    return list(handler.run().session_groups)


@pytest.fixture
def adapter(tmp_path: Path) -> Iterator[TensorBoardAdapter]:
    adapter = start(tmp_path)
    yield adapter
    adapter.close()


def test_a_metric_is_a_scalar_with_the_writers_step_and_time(
    adapter: TensorBoardAdapter, tmp_path: Path
) -> None:
    adapter.deliver([batch(1, "metric", ("train/loss", 0.5, 7, 1700000000.123456))])
    assert scalars(tmp_path, "train/loss") == [(7, 1700000000.123456, 0.5)]


def test_steps_that_repeat_or_go_back_are_all_there_also_across_files(
    adapter: TensorBoardAdapter, tmp_path: Path
) -> None:
    steps = [0, 5, 5, 5, 3, None, 7, 1]
    rows = [("loss", float(i), step, 1e9 - i) for i, step in enumerate(steps)]
    adapter.deliver([batch(1, "metric", *rows[:4])])
    again = start(tmp_path, adapter.note())
    again.deliver([batch(2, "metric", *rows[4:])])
    again.close()
    assert len(event_files(tmp_path)) == 2
    assert scalars(tmp_path) == [(step or 0, 1e9 - i, i) for i, step in enumerate(steps)]


def test_numbers_that_are_not_finite_survive(adapter: TensorBoardAdapter, tmp_path: Path) -> None:
    adapter.deliver([losses(1, math.nan, math.inf, -math.inf, 1e300)])
    nan, *rest = values(tmp_path)
    assert math.isnan(nan)
    assert rest == [math.inf, -math.inf, math.inf]
    assert adapter.context.counters == {"metric beyond float32's range, shown as infinite": 1}


@pytest.mark.parametrize(
    ("data_type", "key", "value", "tag", "shown"),
    [
        ("text", "notes", "# a *title*", "notes/text_summary", "# a *title*"),
        ("param", "lr", 0.1, "param/lr", "0.1"),
        ("param", "opt", "adam", "param/opt", "adam"),
        ("param", "layers", {"a": [1, None]}, "param/layers", '{"a": [1, null]}'),
        ("param", "odd", {b"k": b"v"}, "param/odd", "{b'k': b'v'}"),
        ("tag", "team", "rot", "tag/team", "rot"),
        ("log", "stdout", "a\nb\n", "log/stdout", "    a\n    b\n"),
        ("run", "start", {"pid": 7}, "run/start", '{"pid": 7}'),
        ("run", "end", "failed", "run/end", "failed"),
    ],
)
def test_words_are_texts(
    adapter: TensorBoardAdapter,
    tmp_path: Path,
    data_type: str,
    key: str,
    value: Any,
    tag: str,
    shown: str,
) -> None:
    adapter.deliver([batch(1, data_type, (key, value, 3, 1234.5))])
    assert texts(tmp_path, tag) == [(3, 1234.5, shown)]


def test_an_artifact_is_a_text_that_names_it(adapter: TensorBoardAdapter, tmp_path: Path) -> None:
    file = tmp_path / "handed-over"
    file.write_bytes(b"12345")
    adapter.deliver([batch(1, "artifact", ("model/x.pt", file, None, 2.0))])
    assert texts(tmp_path, "artifact/model/x.pt") == [(0, 2.0, "model/x.pt, 5 bytes")]


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4)])
def test_an_image_has_its_true_size_and_bytes(
    adapter: TensorBoardAdapter, tmp_path: Path, mode: str, channels: int
) -> None:
    png = io.BytesIO()
    Image.new(mode, (13, 8)).save(png, "PNG")
    adapter.deliver([batch(1, "image", ("digit", png.getvalue(), 2, 3.0))])
    (image,) = read(tmp_path).Images("digit")
    assert (image.step, image.wall_time, image.width, image.height) == (2, 3.0, 13, 8)
    assert image.encoded_image_string == png.getvalue()
    (_, event) = LegacyEventFileLoader(str(event_files(tmp_path)[0])).Load()
    assert event.summary.value[0].image.colorspace == channels


def test_an_image_that_cannot_be_read_is_a_text_and_counted(
    adapter: TensorBoardAdapter, tmp_path: Path
) -> None:
    adapter.deliver([batch(1, "image", ("digit", b"no image", 2, 3.0))])
    ((_, _, text),) = texts(tmp_path, "digit")
    assert "8 bytes" in text
    assert list(adapter.context.counters.values()) == [1]


def test_a_histogram_keeps_counts_and_edges(adapter: TensorBoardAdapter, tmp_path: Path) -> None:
    edges, counts = [-1.0, 0.0, 0.5, 2.0], [3, 0, 4]
    value = {"counts": counts, "edges": edges, "min": -1.0, "max": 2.0, "num": 7}
    value |= {"sum": 1.5, "sum_squares": 9.0}
    adapter.deliver([batch(1, "histogram", ("w", value, 1, 2.0))])
    (histogram,) = read(tmp_path).Histograms("w")
    found = histogram.histogram_value
    assert (histogram.step, histogram.wall_time, found.min, found.max) == (1, 2.0, -1.0, 2.0)
    assert (found.num, found.sum, found.sum_squares) == (7, 1.5, 9.0)
    assert (list(found.bucket_limit), list(found.bucket)) == (edges[1:], counts)


def test_a_histogram_is_what_the_histogram_tab_shows(
    adapter: TensorBoardAdapter, tmp_path: Path
) -> None:
    value = {"counts": [1, 2], "edges": [0.0, 1.0, 3.0], "min": 0.0, "max": 3.0, "num": 3}
    adapter.deliver([batch(1, "histogram", ("w", value, 1, 2.0))])
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(tmp_path / "out")).Reload()
    (event,) = multiplexer.Tensors("mnist/round-1/site-1", "w")
    shown = tensor_util.make_ndarray(event.tensor_proto)
    np.testing.assert_array_equal(shown, [[0.0, 1.0, 1.0], [1.0, 3.0, 2.0]])


def test_parameters_stand_in_the_hparams_tab_however_late_they_come(
    adapter: TensorBoardAdapter, tmp_path: Path
) -> None:
    adapter.deliver([batch(1, "param", ("lr", 0.1, None, 50.0), ("opt", "adam", None, 51.0))])
    adapter.deliver([losses(2, 0.5, 0.25)])
    again = start(tmp_path, adapter.note())
    late = [("deep", True, None, 60.0), ("nan", math.nan, None, 60.0), ("lr", 0.2, None, 61.0)]
    again.deliver([batch(3, "param", *late), batch(4, "run", ("end", "finished", None, 70.0))])
    again.close()
    (group,) = session_groups(tmp_path)
    shown = {name: getattr(v, v.WhichOneof("kind")) for name, v in group.hparams.items()}
    assert shown == {"lr": 0.2, "opt": "adam", "deep": True, "nan": "NaN"}
    (session,) = group.sessions
    assert session.name == "mnist/round-1/site-1"
    assert (session.start_time_secs, session.end_time_secs) == (50.0, 70.0)
    assert session.status == api_pb2.STATUS_SUCCESS
    assert [(m.name.tag, m.value) for m in group.metric_values] == [("loss", 0.25)]


def test_more_parameters_than_the_hparams_tab_can_take_are_counted(
    adapter: TensorBoardAdapter, tmp_path: Path
) -> None:
    params = [(f"p{i}", i, None, 1.0) for i in range(1003)]
    adapter.deliver([batch(1, "param", *params)])
    assert list(adapter.context.counters.values()) == [3]
    assert len(session_groups(tmp_path)[0].hparams) == 1000
    assert texts(tmp_path, "param/p1002") == [(0, 1.0, "1002")]


def test_each_site_is_one_run_and_each_start_and_each_end_begins_a_new_file(
    adapter: TensorBoardAdapter, tmp_path: Path
) -> None:
    runs = [RUN._replace(site=site) for site in ("a", "b")]
    adapter.deliver([losses(i, float(i), run=run) for i, run in enumerate(runs)])
    adapter.deliver([batch(3, "run", ("end", "finished", None, 2.0), run=runs[0])])
    adapter.deliver([losses(4, 4.0, run=run) for run in runs])
    assert [len(event_files(tmp_path, run)) for run in runs] == [2, 1]
    assert [values(tmp_path, run) for run in runs] == [[0.0, 4.0], [1.0, 4.0]]


def test_a_new_file_is_read_after_the_others_even_when_the_clock_went_back(
    adapter: TensorBoardAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter.deliver([losses(1, 1.0)])
    monkeypatch.setattr("time.time", lambda: 1000.0)
    again = start(tmp_path, adapter.note())
    again.deliver([losses(2, 2.0)])
    again.close()
    assert values(tmp_path) == [1.0, 2.0]


def test_what_was_delivered_but_not_committed_is_there_once_after_it_comes_again(
    tmp_path: Path,
) -> None:
    first = start(tmp_path)
    first.deliver([losses(1, 1.0)])
    note = first.note()
    (file,) = event_files(tmp_path)
    confirmed = file.read_bytes()
    other = RUN._replace(site="site-2")
    param = batch(4, "param", ("lr", 0.1, None, 1.0))
    doubtful = [losses(2, 2.0, 3.0), losses(3, 4.0, run=other), param]
    first.deliver(doubtful)
    live = EventAccumulator(str(folder(tmp_path)), size_guidance=STORE_ALL).Reload()
    del first  # killed here: the cursor and its note are those of the first delivery
    again = start(tmp_path, note)
    assert values(tmp_path) == [1.0]
    again.deliver(doubtful)
    assert values(tmp_path) == [1.0, 2.0, 3.0]
    assert values(tmp_path, other) == [4.0]
    assert texts(tmp_path, "param/lr") == [(0, 1.0, "0.1")]
    assert len(session_groups(tmp_path)) == 1
    assert file.read_bytes() == confirmed, "a file that was cut must not grow again"
    again.deliver([losses(5, 5.0)])
    assert [e.value for e in live.Reload().Scalars("loss")][-1] == 5.0
    again.close()


def test_an_adapter_that_is_opened_again_goes_on_in_new_files(
    adapter: TensorBoardAdapter, tmp_path: Path
) -> None:
    adapter.deliver([losses(1, 1.0)])
    note = adapter.note()
    adapter.deliver([losses(2, 2.0)])
    adapter.open(note)
    adapter.deliver([losses(2, 2.0)])
    assert values(tmp_path) == [1.0, 2.0]
    assert len(event_files(tmp_path)) == 2


def test_a_delivery_that_failed_halfway_is_taken_back_and_then_there_once(
    adapter: TensorBoardAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter.deliver([losses(1, 1.0)])
    (file,) = event_files(tmp_path)
    confirmed = file.read_bytes()
    real = ledger._append

    def half(path: Path, piece: bytes, new: bool) -> None:
        if path.parent.name == "b":
            real(path, bytes(piece[: len(piece) // 2]), new)
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, piece, new)

    second = [losses(2, 2.0), losses(3, 3.0, 3.5, run=RUN._replace(site="b"))]
    with monkeypatch.context() as patched:
        patched.setattr(ledger, "_append", half)
        for _ in range(2):
            with pytest.raises(Unavailable, match="disk is full"):
                adapter.deliver(second)
    assert values(tmp_path) == [1.0]
    adapter.deliver(second)
    assert values(tmp_path) == [1.0, 2.0]
    assert values(tmp_path, RUN._replace(site="b")) == [3.0, 3.5]
    assert file.read_bytes() == confirmed, "a file that was cut must not grow again"
    assert len(event_files(tmp_path)) == 2


def test_a_step_that_no_event_can_hold_is_refused_and_nothing_is_written(
    adapter: TensorBoardAdapter, tmp_path: Path
) -> None:
    bad = batch(2, "metric", ("ok", 1.0, 1, 1.0), ("too far", 1.0, 2**63, 1.0))
    with pytest.raises(Refused, match="too far"):
        adapter.deliver([losses(1, 1.0), bad])
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    adapter.deliver([losses(1, 1.0), bad.part(0, 1)])
    assert values(tmp_path) == [1.0]


def test_no_name_of_a_run_leads_out_of_the_folder(
    adapter: TensorBoardAdapter, tmp_path: Path
) -> None:
    run = RunKey("..", "../..", "/etc/passwd")
    adapter.deliver([losses(1, 0.5, run=run), batch(2, "param", ("a", 1, 0, 1.0), run=run)])
    files = [file for file in tmp_path.rglob("*tfevents*") if file.is_file()]
    assert len(files) == 2
    assert all(len(file.relative_to(tmp_path / "out").parts) == 4 for file in files)


def test_many_thousand_metrics_are_equal_in_number_order_and_value(
    adapter: TensorBoardAdapter, tmp_path: Path
) -> None:
    rows = [("loss", float(i), i, 1e9 + i / 7) for i in range(20_000)]
    for seq in range(10):
        adapter.deliver([batch(seq + 1, "metric", *rows[seq * 2000 : (seq + 1) * 2000])])
    assert scalars(tmp_path) == [(step, wall_time, value) for _, value, step, wall_time in rows]
    assert len(event_files(tmp_path)) == 1
    assert len(adapter.note()) < 20


# --- path ----------------------------------------------------------------------------------------


def test_a_path_says_where_a_run_stands(tmp_path: Path) -> None:
    made = start(tmp_path, path="fl/site_{site}/{experiment}/{run}")
    hostile = RunKey("../x", "a/b", "..")
    made.deliver([losses(1, 1.0), losses(2, 2.0, run=hostile)])
    made.deliver([batch(3, "param", ("lr", 0.1, None, 1.0))])
    made.close()
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(tmp_path / "out")).Reload()
    assert sorted(multiplexer.Runs()) == [
        "fl/site_../%2E.%2Fx/a%2Fb",
        "fl/site_site-1/mnist/round-1",
    ]
    (group,) = session_groups(tmp_path)
    assert group.sessions[0].status != api_pb2.STATUS_SUCCESS  # it is no trial, and has not ended


@pytest.mark.parametrize(
    "path",
    [
        "{run}/{site}",  # two experiments would be mixed
        "{experiment}/{run}-{site}",  # a-b with c, or a with b-c
        "{experiment}//{run}/{site}",
        "{experiment}/{run}/{site}/{site}",
        "{experiment}/{run}/{site}/{date}",
        "",
    ],
)
def test_a_path_that_would_mix_runs_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(ValueError, match="once each"):
        TensorBoardAdapter.Options(logdir=tmp_path, path=path)
