"""Rows of W&B's syntax on their way: marked by the sender, put together by W&B's adapter."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import zmqtrack
import zmqtrack.writers.wandb
from harness import Daemon
from readers_wandb import history, read_wandb
from spooled import spool_fixture  # noqa: F401 -- a fixture
from test_adapter_wandb import Make, batch, home, make  # noqa: F401 -- fixtures
from test_wandb_native import run_ours, wandb_adapter
from zmqtrack import wire
from zmqtrack.rows import Axes, Rows
from zmqtrack.spool import Spool, orphans
from zmqtrack.wire import ROWS_GO_ON, ROWS_LAST_OPEN, ROWS_WHOLE, Batch

IN_A_ROW = ("metric", "text", "image", "histogram")


def picture(shade: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (3, 2), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


def rows(data_type: str, offset: int, ends: int, *records: tuple[Any, ...]) -> Batch:
    one = batch(data_type, offset, *records)
    return Batch(data_type, one.header._replace(rows=ends), one.records)


def spooled(folder: Path) -> list[tuple[str, int, list[Any]]]:
    """Data type, mark and records of each batch that may hold a part of a row."""
    found = []
    for path in orphans(folder):
        spool = Spool.open(path)
        for one in spool.after(0, 1_000_000):
            header = wire.decode_header(one.header)
            if one.type in IN_A_ROW:
                records = wire.decode_body(one.type, header, one.body)
                found.append((one.type, header.rows, records))
        spool.close()
    return found


def test_records_of_one_call_have_one_time_and_step_whatever_they_are(spool: Any) -> None:
    wandb = zmqtrack.writers.wandb
    with wandb.WandBWriter(project="p") as run:
        run.log({"a": 1, "s": "text", "i": wandb.Image(picture()), "h": wandb.Histogram([1, 2])})
        run.log({"b": 1}, commit=False)
        run.log({"c": wandb.Html("<b>"), "t": wandb.Table(columns=["x"], data=[[1]])})
    records = [record for _, _, part in spooled(spool.folder) for record in part]
    first = [record for record in records if record.step == 0]
    second = [record for record in records if record.step == 1]
    assert {record.key for record in first} == {"a", "s", "i", "h"}
    assert {record.key for record in second} == {"b", "c.html", "t.md"}
    assert len({record.time for record in first}) == len({record.time for record in second}) == 1
    assert first[0].time < second[0].time


def test_a_header_says_whether_rows_go_on(spool: Any) -> None:
    wandb = zmqtrack.writers.wandb
    run = wandb.WandBWriter(project="p")
    run.log({"a": 1, "b": 2})
    run.flush()
    run.log({"a": 1, "i": wandb.Image(picture())})
    run.flush()
    run.log({"a": 1}, step=5)
    run.flush()
    run.log({"b": 1}, step=5, commit=True)
    run.flush()
    plain = zmqtrack.init("p", "plain", "site")
    plain.log_metric("a", 1.0)
    plain.flush()
    run.finish()
    plain.finish()
    marks = [(kind, ends) for kind, ends, _ in spooled(spool.folder)]
    marks.remove(("metric", 0))  # the plain run's
    assert marks[0] == ("metric", ROWS_WHOLE)
    assert marks[-2:] == [("metric", ROWS_LAST_OPEN), ("metric", ROWS_WHOLE)]
    # One turn of the sender, or two: the row of number and image goes on behind its first batch.
    (first, goes_on), (second, ends) = marks[1:3]
    assert {first, second} == {"metric", "image"}
    assert goes_on in (ROWS_GO_ON, ROWS_LAST_OPEN)
    assert ends in (ROWS_WHOLE, ROWS_LAST_OPEN)


def test_no_batch_ends_within_a_row_that_was_appended_at_once() -> None:
    entries = [(f"k{i % 7}", 1.0, i // 7, float(i // 7), "metric") for i in range(7 * 1000)]
    one = Rows()
    assert [len(part) for part in one.cut(entries, 100)][:2] == [100, 100]
    one.together = True
    parts = list(one.cut(entries, 100))
    assert [entry for part in parts for entry in part] == entries
    assert all(left[-1][3] != right[0][3] for left, right in pairwise(parts))
    assert set(one.ends([("metric", part) for part in parts])) == {ROWS_WHOLE}


def test_rows_that_share_a_later_batch_are_said_to_go_on() -> None:
    one = Rows()
    one.together = True
    metrics = [("a", 1.0, step, float(step), "metric") for step in range(4)]
    images = [("i", b"", 2, 2.0, "image")]
    texts = [("t", "", 9, 9.0, "text")]
    params = [("p", 1, None, 0.0, "param")]
    parts = [("metric", metrics), ("text", texts), ("param", params), ("image", images)]
    assert one.ends(parts) == [ROWS_GO_ON, ROWS_GO_ON, 0, ROWS_WHOLE]
    assert one.ends([("metric", metrics), ("text", texts)]) == [ROWS_WHOLE, ROWS_WHOLE]


def test_rows_that_begin_before_the_last_of_an_earlier_batch_wait_for_their_place() -> None:
    one = Rows()
    one.together = True
    images = [("i", b"", 0, 1.0, "image"), ("i", b"", 3, 4.0, "image")]
    texts = [("t", "", 1, 2.0, "text"), ("t", "", 2, 3.0, "text")]
    assert one.ends([("image", images), ("text", texts)]) == [ROWS_GO_ON, ROWS_WHOLE]
    assert one.ends([("image", images[:1]), ("text", texts)]) == [ROWS_WHOLE, ROWS_WHOLE]


def test_a_row_that_ends_while_the_sender_takes_is_not_called_whole_before_it_is() -> None:
    one = Rows()
    one.together = True
    one.before_taking()
    one.begun.append(1.0)
    taken = [("a", 1.0, 0, 1.0, "metric")]
    one.ended = 1.0  # behind the taking: its other records come with the next turn
    assert one.ends([("metric", taken)]) == [ROWS_LAST_OPEN]
    one.before_taking()
    assert one.ends([("image", [("i", b"", 0, 1.0, "image")])]) == [ROWS_WHOLE]


def parted(folder: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in row.items() if not key.startswith("_")}
        for row in history(folder)
    ]


def test_a_row_is_one_also_where_deliveries_and_processes_end_within_it(
    make: Make,  # noqa: F811
    tmp_path: Path,
) -> None:
    first = rows("metric", 1, ROWS_GO_ON, ("a", 1.0, 1, 1.0), ("a", 2.0, 2, 2.0))
    second = rows("image", 2, ROWS_WHOLE, ("i", picture(), 1, 1.0))
    adapter = make()
    adapter.deliver([first])
    assert not parted(tmp_path / "out"), "nothing is there before it is known how it goes on"
    adapter.close()
    adapter = make()
    adapter.deliver([first])  # the cursor was not committed: it comes again
    adapter.deliver([second])
    adapter.close()
    make().deliver([first, second])
    one, two = parted(tmp_path / "out")
    assert (one["a"], one["i"]["_type"], two["a"]) == (1, "image-file", 2)
    assert set(two) == {"a"}


def test_a_row_to_which_the_writer_may_add_waits_for_that_or_for_the_end(
    make: Make,  # noqa: F811
    tmp_path: Path,
) -> None:
    adapter = make()
    adapter.deliver([rows("metric", 1, ROWS_LAST_OPEN, ("a", 1.0, 4, 1.0), ("a", 2.0, 5, 2.0))])
    assert parted(tmp_path / "out") == [{"a": 1}]
    adapter.close()
    adapter = make()
    adapter.deliver([rows("metric", 2, ROWS_LAST_OPEN, ("b", 3.0, 5, 2.0))])
    adapter.deliver([rows("metric", 3, ROWS_LAST_OPEN, ("a", 4.0, 6, 3.0))])
    assert parted(tmp_path / "out") == [{"a": 1}, {"a": 2, "b": 3}]
    adapter.deliver([batch("run", 4, ("end", "killed", None, 9.0))])
    assert parted(tmp_path / "out") == [{"a": 1}, {"a": 2, "b": 3}, {"a": 4}]
    assert [row["_step"] for row in history(tmp_path / "out")] == [4, 5, 6]


def test_random_cuts_and_restarts_lose_tear_and_double_no_row(
    make: Make,  # noqa: F811
    tmp_path: Path,
) -> None:
    chance = random.Random(7)
    sent: list[Batch] = []
    for turn in range(12):
        steps = range(turn * 3, turn * 3 + 3)
        shown = [step for step in steps if chance.random() < 0.6]
        ends = ROWS_GO_ON if shown else ROWS_WHOLE
        numbers = [(key, float(s), s, float(s)) for s in steps for key in "ab"]
        sent.append(rows("metric", len(sent) + 1, ends, *numbers))
        if shown:
            images = [("i", picture(step), step, float(step)) for step in shown]
            sent.append(rows("image", len(sent) + 1, ROWS_WHOLE, *images))
    wanted = {record.step for one in sent if one.type == "image" for record in one}
    adapter, at = make(), 0
    while at < len(sent):
        until = at + chance.randrange(1, 4)
        adapter.deliver(sent[at:until])
        if chance.random() < 0.3:  # ends before the cursor is committed
            adapter.close()
            adapter = make()
        else:
            at = until
    found = parted(tmp_path / "out")
    assert [(row["a"], row["b"], "i" in row) for row in found] == [
        (step, step, step in wanted) for step in range(36)
    ]
    values = [(row.key, row.step) for row in read_wandb(tmp_path / "out")]
    assert len(values) == len(set(values)) == sum(len(one) for one in sent)


BUSY = """
import numpy as np
run = wandb.init(project="p", name="busy")
for step in range(120):
    picture = wandb.Image(np.full((2, 2, 3), step, "uint8"))
    wandb.log({"a": step, "b": step, "i": picture, "s": f"text {step}"})
    if step % 7 == 0:
        run.flush()
wandb.finish()
"""


def test_a_training_that_shows_pictures_has_one_row_for_each_call(
    daemon: Callable[..., Daemon], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "home"))
    adapter = {**wandb_adapter(tmp_path / "out"), "flush_interval": 0}
    with daemon([adapter]) as served:
        run_ours(BUSY, served, tmp_path)
    found = history(tmp_path / "out")
    assert [(row["a"], row["b"], row["s"], row["_step"]) for row in found] == [
        (step, step, f"text {step}", step) for step in range(120)
    ]
    assert all(row["i"]["_type"] == "image-file" for row in found)


def test_axes_are_found_by_name_and_by_the_longest_pattern() -> None:
    axes = Axes()
    assert not axes
    axes.define("*", "global")
    axes.define("eval/*", "epoch")
    axes.define("eval/own", None)
    axes.define("global", None)
    assert [axes.of(key) for key in ("loss", "eval/acc", "eval/own", "global", "epoch")] == [
        "global", "epoch", None, None, "global",
    ]  # fmt: skip
    axes.define("loss", "other")
    axes.define("loss", None)  # tells nothing of the axis
    assert axes.of("loss") == "other"
