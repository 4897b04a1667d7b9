"""The jsonl adapter, read back with a strict JSON reader."""

from __future__ import annotations

import errno
import json
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgpack
import pytest
from zmqtrack.adapters import ledger
from zmqtrack.adapters.base import Blocked, Context, Unavailable
from zmqtrack.adapters.jsonl import JSONLAdapter, restore

from zmqtrack.records import Record, RunKey
from zmqtrack.wire import Batch, Header

STREAM = bytes(range(16))
RUN = RunKey("mnist", "round/1", "site-1")


def batch(seq: int, data_type: str, *records: tuple[Any, ...], run: RunKey = RUN) -> Batch:
    rows = [Record(*record) for record in records]
    return Batch(data_type, Header(STREAM, seq, run, len(rows), offset=seq), rows)


def losses(seq: int, *values: float, run: RunKey = RUN) -> Batch:
    return batch(
        seq, "metric", *((f"loss{i}", v, i, 1e9 + i) for i, v in enumerate(values)), run=run
    )


def start(tmp_path: Path, note: bytes = b"") -> JSONLAdapter:
    state = tmp_path / "state"
    state.mkdir(exist_ok=True)
    options = JSONLAdapter.Options(dir=tmp_path / "out")
    adapter = JSONLAdapter(options, Context("jsonl", state, logging.getLogger("jsonl"), {}))
    adapter.open(note)
    return adapter


def strict(line: str) -> dict[str, Any]:
    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is not JSON")

    parsed: dict[str, Any] = json.loads(line, parse_constant=refuse)
    return parsed


def lines(tmp_path: Path, run: RunKey = RUN) -> list[dict[str, Any]]:
    folder = tmp_path / "out" / run.experiment / run.run.replace("/", "%2F")
    return [strict(line) for line in (folder / f"{run.site}.jsonl").read_text().splitlines()]


def values(tmp_path: Path, run: RunKey = RUN) -> list[Any]:
    return [line["value"] for line in lines(tmp_path, run)]


@pytest.fixture
def adapter(tmp_path: Path) -> Iterator[JSONLAdapter]:
    adapter = start(tmp_path)
    yield adapter
    adapter.close()


@pytest.mark.parametrize(
    ("data_type", "key", "value"),
    [
        ("run", "start", {"host": "h", "pid": 7}),
        ("run", "end", "finished"),
        ("metric", "loss", 0.1),
        ("param", "layers", [64, "relu", None, True, {"rate": 0.5}]),
        ("param", "big", 2**64 - 1),
        ("tag", "who", "wir  \u2028\n\x00é"),
        ("text", "notes.md", "# two\nlines"),
        ("histogram", "w", {"counts": [1, 2], "edges": [0.0, 0.5, 1.0], "min": 0.1, "num": 3}),
        ("log", "stdout", "a\nb\n"),
        ("confusion_matrix", "val", [[1, 2], [3, 4]]),
        ("confusion_matrix", "odd", {1: b"\x00\xff", "$float": math.inf, None: -math.inf}),
        ("confusion_matrix", "like ours", {"$float": "NaN"}),
        ("confusion_matrix", "ext", [msgpack.ExtType(5, b"x"), msgpack.Timestamp(1, 2)]),
    ],
)
def test_every_data_type_comes_back_as_it_was_logged(
    adapter: JSONLAdapter, tmp_path: Path, data_type: str, key: str, value: Any
) -> None:
    adapter.deliver([batch(9, data_type, (key, value, 4, 1700000000.123456))])
    (line,) = lines(tmp_path)
    assert restore(line.pop("value")) == value
    assert line == {
        "type": data_type,
        "key": key,
        "step": 4,
        "time": 1700000000.123456,
        "stream": STREAM.hex(),
        "seq": 9,
    }


def test_a_number_that_is_not_finite_survives_in_strict_json(
    adapter: JSONLAdapter, tmp_path: Path
) -> None:
    adapter.deliver([losses(1, math.nan, math.inf, -math.inf)])
    adapter.deliver([batch(2, "param", ("p", [math.nan, "NaN"], None, math.nan))])
    *metrics, param = lines(tmp_path)
    assert [m["value"] for m in metrics] == ["NaN", "Infinity", "-Infinity"]
    assert math.isnan(float(metrics[0]["value"]))
    assert param["value"] == [{"$float": "NaN"}, "NaN"]
    assert param["time"] == "NaN"


def test_steps_that_repeat_go_back_or_are_none_are_kept_in_order(
    adapter: JSONLAdapter, tmp_path: Path
) -> None:
    steps = [3, 3, 1, None, 0, -2]
    adapter.deliver([batch(1, "metric", *(("loss", 0.5, step, 1.0) for step in steps))])
    assert [line["step"] for line in lines(tmp_path)] == steps


def test_each_site_has_a_file_of_its_own(adapter: JSONLAdapter, tmp_path: Path) -> None:
    runs = [RUN._replace(site=site) for site in ("a", "b", "c")]
    adapter.deliver([losses(i, float(i), run=run) for i, run in enumerate(runs, 1)])
    assert [values(tmp_path, run) for run in runs] == [[1.0], [2.0], [3.0]]


def test_images_and_artifacts_lie_beside_the_lines_and_none_replaces_another(
    adapter: JSONLAdapter, tmp_path: Path
) -> None:
    model = tmp_path / "handed-over"
    records = []
    for step, content in enumerate((b"one", b"two" * 700_000)):
        model.write_bytes(content)
        adapter.deliver([batch(step + 1, "artifact", ("model/x.pt", model, step, 1.0))])
        records.append(content)
    model.unlink()
    png = b"\x89PNG\r\n\x1a\nrest"
    adapter.deliver([batch(3, "image", ("digits/7", png, 0, 1.0), ("model", png, 0, 1.0))])
    folder = tmp_path / "out" / "mnist" / "round%2F1"
    found = [(line["value"], folder / line["value"]["file"]) for line in lines(tmp_path)]
    assert [file.read_bytes() for _, file in found] == [*records, png, png]
    assert [file.name for _, file in found] == ["x.pt", "x.pt", "7.png", "model.png"]
    assert [value["size"] for value, _ in found] == [3, 2_100_000, len(png), len(png)]


@pytest.mark.parametrize(
    "key",
    [
        "../../../../etc/evil",
        "/etc/evil",
        "a/../../b",
        "..",
        ".",
        "//",
        "nul\0byte",
        "new\nline",
        "back\\slash",
        "x" * 5000,
        "d/" * 5000,
        "é" * 900,
    ],
)
def test_no_key_leads_a_file_out_of_its_folder(
    adapter: JSONLAdapter, tmp_path: Path, key: str
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"artifact")
    adapter.deliver([batch(1, "image", (key, b"image", 0, 1.0))])
    adapter.deliver([batch(2, "artifact", (key, source, 0, 1.0))])
    source.unlink()
    out = tmp_path / "out" / "mnist" / "round%2F1"
    for line, content in zip(lines(tmp_path), (b"image", b"artifact"), strict=True):
        file = (out / line["value"]["file"]).resolve()
        assert file.is_relative_to((out / "site-1.files").resolve())
        assert file.read_bytes() == content
    everything = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert all(path.is_relative_to(out) or path.parent.name == "state" for path in everything)


def test_no_name_of_a_run_leads_out_of_the_folder(adapter: JSONLAdapter, tmp_path: Path) -> None:
    adapter.deliver([losses(1, 0.5, run=RunKey("..", "../..", "/etc/passwd"))])
    (file,) = (tmp_path / "out").rglob("*.jsonl")
    assert file.resolve().is_relative_to((tmp_path / "out").resolve())
    assert len(file.relative_to(tmp_path / "out").parts) == 3


def test_what_was_delivered_but_not_committed_is_there_once_after_it_comes_again(
    tmp_path: Path,
) -> None:
    first = start(tmp_path)
    first.deliver([losses(1, 1.0)])
    note = first.note()
    other = RUN._replace(site="site-2")
    doubtful = [losses(2, 2.0, 3.0), losses(3, 4.0, run=other)]
    image = batch(4, "image", ("i", b"pixels", 0, 1.0))
    first.deliver(doubtful)
    first.deliver([image])
    del first  # killed here: the cursor and its note are those of the first delivery
    again = start(tmp_path, note)
    assert values(tmp_path) == [1.0]
    assert not list((tmp_path / "out").rglob("site-2.jsonl"))
    again.deliver([*doubtful, image])
    assert values(tmp_path)[:3] == [1.0, 2.0, 3.0]
    assert len(values(tmp_path)) == 4
    assert values(tmp_path, other) == [4.0]
    assert len([f for f in (tmp_path / "out").rglob("site-1.files/**/*") if f.is_file()]) == 1
    again.close()


def test_a_crash_before_the_first_commit_leaves_nothing_twice(tmp_path: Path) -> None:
    start(tmp_path).deliver([losses(1, 1.0)])
    again = start(tmp_path)
    again.deliver([losses(1, 1.0)])
    assert values(tmp_path) == [1.0]
    again.close()


def test_what_was_committed_is_not_cut(tmp_path: Path) -> None:
    first = start(tmp_path)
    first.deliver([losses(1, 1.0)])
    again = start(tmp_path, first.note())
    again.deliver([losses(2, 2.0)])
    assert values(tmp_path) == [1.0, 2.0]
    again.close()


def test_a_lost_cursor_does_not_cut_what_was_confirmed_long_ago(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = start(tmp_path)
    for seq in range(1, ledger.KEPT + 3):
        first.deliver([losses(seq, float(seq))])
        first.note()  # as the host does at each commit
    first.close()
    start(tmp_path, b"").close()
    assert len(values(tmp_path)) == ledger.KEPT + 2
    assert "went back further" in caplog.text


def test_the_note_and_the_undo_log_do_not_grow_with_runs_or_time(tmp_path: Path) -> None:
    adapter = start(tmp_path)
    for seq in range(1, 3 * ledger.KEPT):
        adapter.deliver([losses(seq, 1.0, run=RUN._replace(site=f"s{seq % 40}"))])
        assert len(adapter.note()) < 20
    assert adapter._ledger._db is not None
    assert adapter._ledger._db.execute("SELECT count(*) FROM undo").fetchone() == (ledger.KEPT,)
    adapter.close()


def fail_at(monkeypatch: pytest.MonkeyPatch, name: str, code: int) -> None:
    """The disk refuses, once, when half of ``name``'s piece is written."""
    real = ledger._append

    def append(path: Path, piece: bytes, new: bool) -> None:
        if path.name == name:
            real(path, bytes(piece[: len(piece) // 2]), new)
            monkeypatch.setattr(ledger, "_append", real)
            raise OSError(code, "no", str(path))
        real(path, piece, new)

    monkeypatch.setattr(ledger, "_append", append)


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [(errno.ENOSPC, Unavailable, "disk is full"), (errno.EACCES, Blocked, "not permitted")],
)
def test_a_delivery_that_failed_halfway_is_taken_back_and_then_there_once(
    adapter: JSONLAdapter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    error: type[Exception],
    message: str,
) -> None:
    adapter.deliver([losses(1, 1.0)])
    second: Sequence[Batch] = [losses(2, 2.0), losses(3, 3.0, 3.5, run=RUN._replace(site="b"))]
    fail_at(monkeypatch, "b.jsonl", code)
    with pytest.raises(error, match=message):
        adapter.deliver(second)
    assert values(tmp_path) == [1.0]
    adapter.deliver(second)
    assert values(tmp_path) == [1.0, 2.0]
    assert values(tmp_path, RUN._replace(site="b")) == [3.0, 3.5]


def test_a_half_written_delivery_is_cut_even_when_the_disk_refused_that_at_first(
    adapter: JSONLAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter.deliver([losses(1, 1.0)])
    fail_at(monkeypatch, "site-1.jsonl", errno.EIO)

    def refuse(*_: Any) -> None:
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patched:
        patched.setattr(ledger, "_cut", refuse)
        with pytest.raises(Unavailable):
            adapter.deliver([losses(2, 2.0)])
    adapter.deliver([losses(2, 2.0)])
    assert values(tmp_path) == [1.0, 2.0]


def test_lines_of_somebody_else_are_never_cut(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start(tmp_path).deliver([losses(1, 1.0)])
    (file,) = (tmp_path / "out").rglob("*.jsonl")
    with file.open("a") as more:
        more.write('{"value": "theirs"}\n')
    start(tmp_path).close()
    assert values(tmp_path) == [1.0, "theirs"]
    assert "somebody else" in caplog.text


def test_more_deliveries_than_are_kept_can_be_undone_before_the_first_commit(
    tmp_path: Path,
) -> None:
    """As when a batch with many refused records is halved again and again."""
    import logging

    from zmqtrack.adapters.ledger import KEPT, Ledger

    file = tmp_path / "file"
    ledger = Ledger(tmp_path, logging.getLogger("test"))
    ledger.open(b"")
    ledger.append({file: b"confirmed\n"})
    note = ledger.note()
    for _ in range(2 * KEPT):
        ledger.append({file: b"in doubt\n"})
    ledger.close()
    again = Ledger(tmp_path, logging.getLogger("test"))
    again.open(note)
    assert file.read_bytes() == b"confirmed\n"
    again.close()
