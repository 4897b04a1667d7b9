from __future__ import annotations

import io
import logging
import math
import os
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image
from wandb.proto import wandb_internal_pb2
from zmqtrack.adapters import wandb_run
from zmqtrack.adapters.base import Blocked, Context, Unavailable
from zmqtrack.adapters.wandb import WandBAdapter, WandBOptions

from readers_wandb import config, folders, read_wandb
from zmqtrack.records import Record, RunKey
from zmqtrack.wire import Batch, Header

KEY = RunKey("mnist", "run-1", "site-1")
Make = Callable[..., WandBAdapter]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing of wandb's may touch the real home."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "home" / name))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    return tmp_path


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[WandBAdapter] = []

    def make(**options: Any) -> WandBAdapter:
        state = tmp_path / "state"
        state.mkdir(exist_ok=True)
        options = {"mode": "offline", "dir": tmp_path / "out", **options}
        context = Context("wandb", state, logging.getLogger("test"), {})
        adapter = WandBAdapter(WandBOptions(**options), context)
        adapter.open(b"")
        made.append(adapter)
        return adapter

    yield make
    for adapter in reversed(made):
        adapter.close()
    assert not cores(), "a wandb-core was left behind"


def cores() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "wandb-core" in p.name()]


def batch(
    data_type: str, offset: int, *records: tuple[Any, ...], key: RunKey = KEY, stream: bytes = b"s"
) -> Batch:
    header = Header(stream * 16, offset, key, len(records), offset=offset)
    return Batch(data_type, header, [Record(*record) for record in records])


def metrics(offset: int, values: range, key: RunKey = KEY) -> Batch:
    return batch("metric", offset, *[("m", float(v), v, 100.0 + v) for v in values], key=key)


def values(directory: Path, key: str = "m") -> list[Any]:
    return [row.value for row in read_wandb(directory / "out") if row.key == key]


def picture(form: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (5, 4), (250, 3, 7)).save(file, form)
    return file.getvalue()


def test_every_data_type_comes_back_with_key_value_step_time_and_run(
    make: Make, tmp_path: Path
) -> None:
    model = tmp_path / "piece"
    model.write_bytes(bytes(range(256)) * 10)
    counts = {"counts": [1, 0, 2], "edges": [-1.0, 0.0, 0.5, 2.0]}
    batches = [
        batch("run", 1, ("start", {"pid": 7}, None, 1.25)),
        batch("param", 2, ("lr", 0.1, None, 2.0), ("net", {"w": [1, None, "x"]}, None, 2.0)),
        batch("tag", 3, ("team", "red", None, 3.0), ("draft", "", None, 3.0)),
        batch("metric", 4, ("loss", 0.1, 7, 4.125), ("acc/top1", 1 / 3, None, 4.25)),
        batch("text", 5, ("n.md", "# <a> &amp;\r\nß\n", 1, 5.0), ("p.html", "<b>é</b>", 2, 5.5)),
        batch("image", 6, ("im", picture("PNG"), 3, 6.0), ("jp", picture("JPEG"), 3, 6.0)),
        batch("histogram", 7, ("h", counts, 4, 7.0)),
        batch("artifact", 8, ("ckpt/model.pt", model, 5, 8.0)),
        batch("log", 9, ("stdout", "one\ntwo", None, 9.0)),
        batch("run", 10, ("end", "finished", None, 10.0)),
    ]
    adapter = make()
    adapter.deliver(batches)
    model.unlink()  # it is there during deliver only

    rows = read_wandb(tmp_path / "out")
    assert {(row.site, row.run, row.experiment) for row in rows} == {("site-1", "run-1", "mnist")}
    got = {(row.type, row.key): row for row in rows}
    assert len(got) == len(rows) == 15
    for sent in batches:
        for record in sent:
            row = got[sent.type, record.key]
            expected = bytes(range(256)) * 10 if sent.type == "artifact" else record.value
            assert row.value == expected
            if sent.type not in ("param", "tag") and record.key != "start":
                assert (row.step, row.time) == (record.step, record.time)
    [[(_, records)]] = folders(tmp_path / "out").values()
    run = [record.run for record in records if record.HasField("run")][-1]
    assert (run.project, run.run_group, run.display_name) == ("mnist", "run-1", "site-1")
    assert list(run.tags) == ["draft"]
    assert adapter.context.counters == {}


def test_steps_that_repeat_or_go_back_and_odd_numbers_are_kept_in_order(
    make: Make, tmp_path: Path
) -> None:
    sent = [
        ("m", 1.0, 5, 1.0),
        ("m", 2.0, 5, 1.0),  # the same key, step and time: a row of its own
        ("m", math.nan, 3, 2.0),
        ("m", math.inf, -4, 0.5),
        ("m", -math.inf, None, 3.0),
        ("m", 5e-324, 2**60, 3.0),
        ("m", 0.1 + 0.2, 0, 1.7e9 + 0.123456),
    ]
    make().deliver([batch("metric", 1, *sent)])
    got = [(r.key, r.value, r.step, r.time) for r in read_wandb(tmp_path / "out")]
    assert repr(got) == repr(sent)


def test_metrics_of_one_step_and_time_share_a_row_that_names_its_batch(
    make: Make, tmp_path: Path
) -> None:
    make().deliver([batch("metric", 9, ("a", 1.0, 1, 1.0), ("b", 2.0, 1, 1.0), ("a", 3.0, 1, 2.0))])
    [[(_, records)]] = folders(tmp_path / "out").values()
    rows = [
        {i.nested_key[0]: i.value_json for i in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    assert [row["zmqtrack/id"] for row in rows] == [
        f'"{b"s".hex() * 16}/9/{place}@9"' for place in ("0+2", "2+1")
    ]
    assert [(row["a"], row.get("b")) for row in rows] == [("1", "2"), ("3", None)]


def test_names_that_wandb_or_we_reserve_are_kept_under_another(make: Make, tmp_path: Path) -> None:
    keys = ("_step", "_timestamp", "zmqtrack/id", "user/_step", "step", "a.b", "x\\y", "tag.z")
    make().deliver(
        [
            batch("metric", 1, *[(key, 1.0, 2, 3.0) for key in keys]),
            batch("param", 2, *[(key, "p", None, 3.0) for key in (*keys, "zmqtrack", "_wandb")]),
            batch("tag", 3, ("z", "t", None, 3.0)),
        ]
    )
    rows = read_wandb(tmp_path / "out")
    assert {r.key for r in rows if r.type == "metric"} == set(keys)
    assert {r.key for r in rows if r.type == "param"} == {*keys, "zmqtrack", "_wandb"}
    assert [r.value for r in rows if r.type == "tag"] == ["t"]


def test_two_sites_stand_side_by_side_in_one_process(make: Make, tmp_path: Path) -> None:
    other = KEY._replace(site="site-2")
    make().deliver(
        [
            metrics(1, range(3)),
            metrics(2, range(10, 13), other),
            batch("param", 3, ("lr", 1, None, 1.0)),
            batch("param", 4, ("lr", 2, None, 1.0), key=other),
            metrics(5, range(3, 6)),
        ]
    )
    assert len(cores()) == 1
    rows = read_wandb(tmp_path / "out")
    for site, expected, rate in (("site-1", range(6), 1), ("site-2", range(10, 13), 2)):
        assert [r.value for r in rows if (r.site, r.type) == (site, "metric")] == list(expected)
        assert [r.value for r in rows if (r.site, r.type) == (site, "param")] == [rate]


def test_redelivery_through_the_same_or_a_fresh_adapter_shows_each_record_once(
    make: Make, tmp_path: Path
) -> None:
    file = tmp_path / "piece"
    file.write_bytes(b"x")
    batches = [
        batch("run", 1, ("start", {"pid": 7}, None, 1.0)),
        batch("param", 2, ("lr", 0.1, None, 2.0)),
        metrics(3, range(5)),
        batch("text", 4, ("t", "x", 1, 1.0), ("t", "x", 1, 1.0)),
        batch("image", 5, ("i", picture("PNG"), 1, 1.0)),
        batch("artifact", 6, ("a", file, 1, 1.0)),
        batch("log", 7, ("stdout", "x", 1, 1.0), ("stdout", "x", 1, 1.0)),
        batch("run", 8, ("end", "failed", None, 9.0)),
    ]
    for count in (6, 8):
        adapter = make()
        adapter.deliver(batches[:count])
        once = read_wandb(tmp_path / "out")
        adapter.deliver(batches[:count])
        adapter.close()
        assert read_wandb(tmp_path / "out") == once
    assert len(once) == 14
    [parts] = folders(tmp_path / "out").values()
    make().deliver(batches)
    assert folders(tmp_path / "out").popitem()[1] == parts  # not even opened again


def test_parts_of_a_batch_are_told_from_the_whole_and_from_each_other(
    make: Make, tmp_path: Path
) -> None:
    whole = batch("metric", 1, *[(k, 1.0, n, 1.0) for n in range(3) for k in "abc"])
    for parts, count in (
        ([(1, 2), (1, 2)], 1),
        ([(0, 3), (3, 5), (3, 5)], 5),
        ([(4, 7), (0, 9)], 9),
        ([(0, 9)], 9),
    ):
        adapter = make()
        for part in parts:
            adapter.deliver([whole.part(*part)])
        adapter.close()
        got = [(row.key, row.value, row.step, row.time) for row in read_wandb(tmp_path / "out")]
        assert len(got) == len(set(got)) == count
    assert set(got) == {tuple(record) for record in whole}


CHILD = """
import sys
sys.path[:0] = [{tests!r}]
from test_adapter_wandb import *
state = Path({state!r}); state.mkdir(exist_ok=True)
context = Context("wandb", state, logging.getLogger(), {{}})
adapter = WandBAdapter(WandBOptions(mode="offline", dir={out!r}), context)
adapter.open(b"")
adapter.deliver([batch("param", 1, ("lr", 0.1, None, 2.0)), metrics(2, range(50))])
adapter.deliver([metrics(3, range(50, 60)), batch("log", 4, ("stdout", "x", None, 1.0))])
print(*[p.pid for p in cores()], flush=True)
sys.stdin.read()
"""


def test_what_was_delivered_survives_kill_9_of_adapter_and_core_and_is_not_repeated(
    make: Make, tmp_path: Path
) -> None:
    script = CHILD.format(
        tests=str(Path(__file__).parent), state=str(tmp_path / "state"), out=str(tmp_path / "out")
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout
        core = int(child.stdout.readline())
        os.kill(core, signal.SIGKILL)
        child.kill()
    assert values(tmp_path) == list(range(60))
    assert values(tmp_path, "stdout") == ["x"]
    # The cursor stood at 2: the rest comes again, and more.
    make().deliver(
        [
            metrics(3, range(50, 60)),
            batch("log", 4, ("stdout", "x", None, 1.0)),
            metrics(5, range(60, 65)),
        ]
    )
    assert values(tmp_path) == list(range(65))
    assert values(tmp_path, "stdout") == ["x"]
    assert values(tmp_path, "lr") == [0.1]


ORPHAN = """
def die(*_):
    print(flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
wandb_run.Run.settle = die
adapter.deliver([metrics(5, range(60, 6000))])
"""


def test_a_core_that_outlives_its_killed_adapter_writes_nothing_twice(
    make: Make, tmp_path: Path
) -> None:
    script = CHILD.format(
        tests=str(Path(__file__).parent), state=str(tmp_path / "state"), out=str(tmp_path / "out")
    )
    script = script.replace("sys.stdin.read()", ORPHAN)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout
        core = psutil.Process(int(run.stdout.readline()))
        run.stdout.readline()
    make().deliver([metrics(5, range(60, 6000))])
    assert not core.is_running() or core.status() == psutil.STATUS_ZOMBIE
    assert values(tmp_path) == list(range(6000))


def test_a_core_that_dies_makes_the_delivery_fail_and_the_next_attempt_complete_it(
    make: Make, tmp_path: Path
) -> None:
    adapter = make()
    adapter.deliver([metrics(1, range(10))])
    [core] = cores()
    core.kill()
    core.wait()
    with pytest.raises(Unavailable):
        adapter.deliver([metrics(2, range(10, 20))])
    adapter.deliver([metrics(2, range(10, 20))])
    assert values(tmp_path) == list(range(20))


def test_a_core_that_dies_while_it_writes_loses_and_repeats_nothing(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make()
    adapter.deliver([metrics(1, range(10))])

    def die(run: wandb_run.Run, finished: bool = False) -> None:
        for core in cores():
            core.kill()
            core.wait()
        monkeypatch.undo()
        run.settle(finished)

    monkeypatch.setattr(wandb_run.Run, "settle", die)
    batches = [metrics(2, range(10, 3000)), batch("log", 3, ("stdout", "x", None, 1.0))]
    with pytest.raises(Unavailable):
        adapter.deliver(batches)
    adapter.deliver(batches)
    assert values(tmp_path) == list(range(3000))
    assert values(tmp_path, "stdout") == ["x"]


def test_an_announcement_without_its_payload_does_not_count_as_delivered(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("here the power went out")

    adapter = make()
    sent = [batch("log", 1, ("stdout", "x", None, 1.0)), batch("run", 2, ("end", "killed", 1, 2.0))]
    with monkeypatch.context() as patch, pytest.raises(Unavailable, match="power"):
        patch.setattr(adapter, "_announced", fail)
        adapter.deliver(sent)
    adapter.deliver(sent)
    assert [(r.key, r.value) for r in read_wandb(tmp_path / "out")] == [
        ("stdout", "x"),
        ("end", "killed"),
    ]


def test_only_the_end_of_a_long_file_is_read_to_recognise_what_is_in_doubt(
    make: Make, tmp_path: Path
) -> None:
    adapter = make()
    adapter.deliver([metrics(1 + i, range(2000 * i, 2000 * i + 2000)) for i in range(5)])
    adapter.close()
    out = tmp_path / "out"
    held = wandb_run.Run(KEY, out, since=5).held
    assert sum("/5/" in ident for ident in held) == 2000
    assert len(held) < 9000
    assert len(wandb_run.Run(KEY, out, since=0).held) == 10_000
    make().deliver([metrics(5, range(8000, 10_000)), metrics(6, range(10_000, 10_010))])
    assert values(tmp_path) == list(range(10_010))


def test_records_are_read_wherever_a_block_of_the_file_ends(tmp_path: Path) -> None:
    def chunk(kind: int, data: bytes) -> bytes:
        crc = zlib.crc32(data, zlib.crc32(bytes([kind])))
        return struct.pack("<IHB", crc, len(data), kind) + data

    def record(size: int) -> bytes:
        made = wandb_internal_pb2.Record(uuid="x" * size).SerializeToString()
        return bytes(made)

    for left in range(12):  # bytes that are free in the first block after its record
        data = b":W&B\xe1\xbe\x00" + chunk(1, record(32768 - 7 - 7 - 5 - left))
        assert len(data) == 32768 - left
        second = record(40_000)  # longer than what is left and the next block
        if left < 7:
            data += bytes(left) + chunk(2, second[:32761]) + chunk(4, second[32761:])
        else:
            data += chunk(2, second[: left - 7])  # with 7 left: a part without data
            second = second[left - 7 :]
            data += chunk(3, second[:32761]) + chunk(4, second[32761:])
        third = chunk(1, record(5))
        file = tmp_path / "run.wandb"
        file.write_bytes(data + third[:9])
        log = wandb_run._TransactionLog(file)
        assert [len(r.uuid) for r in log.read()] == [32768 - 19 - left, 40_000]
        file.write_bytes(data + third[:9] + bytes(len(third) - 9))  # half written
        assert not list(log.read())
        file.write_bytes(data + third)
        assert [len(r.uuid) for r in log.read()] == [5]
        log.file.close()
        log = wandb_run._TransactionLog(file, 1)
        assert [len(r.uuid) for r in log.read()] == ([40_000, 5] if left < 7 else [5])
        log.file.close()


@pytest.mark.parametrize(("status", "code"), [("finished", 0), ("failed", 1), ("killed", 255)])
def test_the_end_of_the_run_becomes_its_exit_code(
    make: Make, tmp_path: Path, status: str, code: int
) -> None:
    make().deliver([metrics(1, range(2)), batch("run", 2, ("end", status, None, 3.0))])
    [[(_, records)]] = folders(tmp_path / "out").values()
    assert [r.exit.exit_code for r in records if r.HasField("exit")] == [code]
    assert not any(r.HasField("preempting") for r in records)


def test_a_run_that_goes_on_after_its_end_keeps_config_tags_steps_and_exit_code(
    make: Make, tmp_path: Path
) -> None:
    adapter = make()
    adapter.deliver(
        [
            batch("param", 1, ("lr", 0.1, None, 1.0)),
            batch("tag", 2, ("draft", "", None, 1.0)),
            metrics(3, range(3)),
            batch("run", 4, ("end", "failed", None, 3.0)),
            metrics(5, range(3, 6)),  # read_wandb checks that _step goes on
        ]
    )
    assert values(tmp_path) == list(range(6))
    [[_, (_, late)]] = folders(tmp_path / "out").values()
    assert [r.exit.exit_code for r in late if r.HasField("exit")] == [1]
    assert list(next(r.run.tags for r in late if r.HasField("run"))) == ["draft"]
    assert config(late)["lr"] == 0.1


def test_a_run_that_is_closed_before_its_end_is_marked_as_to_be_resumed(
    make: Make, tmp_path: Path
) -> None:
    adapter = make(max_open_runs=1)
    other = KEY._replace(site="site-2")
    adapter.deliver([metrics(1, range(3)), metrics(2, range(3), other), metrics(3, range(3, 6))])
    parts = folders(tmp_path / "out").values()
    assert sorted(map(len, parts)) == [1, 2]
    for records in (records for part in parts for _, records in part[:-1]):
        assert [r.WhichOneof("record_type") for r in records if r.HasField("preempting")]
    assert sorted(values(tmp_path)) == [0, 0, 1, 1, 2, 2, 3, 4, 5]


def test_keys_that_look_like_paths_stay_inside_the_runs_folder(make: Make, tmp_path: Path) -> None:
    file = tmp_path / "piece"
    file.write_bytes(b"x")
    secret = tmp_path / "secret.html"
    secret.write_text("secret")
    evil = (
        "../../../../evil",
        "/etc/evil",
        "..",
        "a/../../b",
        "ü" * 400,
        "C:\\x",
        "-rf",
        "x.html",
        "a?b",
        "a b",
    )
    where = KEY._replace(experiment="../ex#?%", run="../r", site="../s")
    before = {p for p in tmp_path.rglob("*") if not p.is_relative_to(tmp_path / "out")}
    make().deliver(
        [
            batch("text", 1, *[(key, str(secret), 1, 1.0) for key in evil], key=where),
            batch("image", 2, *[(key, picture("GIF"), 1, 1.0) for key in evil], key=where),
            batch("artifact", 3, *[(key, file, 1, 1.0) for key in evil], key=where),
        ]
    )
    rows = read_wandb(tmp_path / "out")  # which checks where the files are
    for data_type, value in (("text", str(secret)), ("image", picture("GIF")), ("artifact", b"x")):
        got = {row.key: row.value for row in rows if row.type == data_type}
        assert got == dict.fromkeys(evil, value)
    assert {row.site for row in rows} == {"../s"}
    [[(_, records)]] = folders(tmp_path / "out").values()
    names = [r.artifact.name for r in records if r.HasField("artifact")]
    entries = [e.path for r in records for e in r.artifact.manifest.contents]
    assert len(set(names)) == len(evil)
    assert all(".." not in Path(e).parts and not e.startswith("/") for e in entries)
    after = {p for p in tmp_path.rglob("*") if not p.is_relative_to(tmp_path / "out")}
    outside = {p.relative_to(tmp_path).parts[0] for p in after - before}
    assert outside <= {"state", "home"}


def test_what_wandb_cannot_hold_is_kept_in_the_next_best_form_and_counted(
    make: Make, tmp_path: Path
) -> None:
    counts = {"counts": [1] * 1200, "edges": [float(i) for i in range(1201)], "nan": 2}
    adapter = make()
    adapter.deliver(
        [
            batch("image", 1, ("broken", b"\x89PNG no", 1, 1.0), ("t", picture("TIFF"), 1, 1.0)),
            batch("histogram", 2, ("h", counts, 1, 1.0)),
            batch("param", 3, ("p", {"a": [math.nan, -math.inf, b"x"], 5: True}, None, 1.0)),
        ]
    )
    rows = {row.key: row for row in read_wandb(tmp_path / "out")}
    assert (rows["broken"].type, rows["broken"].value) == ("artifact", b"\x89PNG no")
    with Image.open(io.BytesIO(rows["t"].value)) as image:
        assert image.convert("RGB").getpixel((1, 1)) == (250, 3, 7)
    merged = rows["h"].value
    assert (len(merged["counts"]), sum(merged["counts"])) == (400, 1200)
    assert (merged["edges"][0], merged["edges"][1], merged["edges"][-1]) == (0, 3, 1200)
    assert rows["p"].value == {"a": ["NaN", "-Infinity", "b'x'"], "5": True}
    assert sorted(adapter.context.counters.values()) == [1, 1, 1]


def test_online_without_a_key_is_blocked_and_nothing_is_asked(make: Make, tmp_path: Path) -> None:
    adapter = make(mode="online")
    with pytest.raises(Blocked, match=r"(?i)api key"):
        adapter.deliver([metrics(1, range(2))])


def test_a_folder_that_cannot_be_made_is_blocked(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Blocked, match="file"):
        make(dir=tmp_path / "file" / "out")


def test_importing_the_module_imports_no_wandb() -> None:
    code = "import sys, zmqtrack.adapters.wandb; print('wandb' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
