"""The neutral logging API: values, names, limits, and what stands in the spool."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy
import pytest

import zmqtrack
from harness import PATIENCE, Daemon
from zmqtrack import wire
from zmqtrack.control import check_address
from zmqtrack.records import Record, RunKey
from zmqtrack.run import Run
from zmqtrack.spool import Outgoing, Spool


@pytest.fixture
def run(nobody: str, tmp_path: Path) -> Iterator[Run]:
    made = zmqtrack.init("e", "r", "s", nobody, exit_timeout=0)
    yield made
    made.finish()


def spooled(run: Run, tmp_path: Path) -> list[tuple[str, Record]]:
    """Finish the run and read its records from the spool that it leaves."""
    run.finish(timeout=0)
    (path,) = (tmp_path / "spool").glob("*.spool")
    spool = Spool.open(path)
    found = []
    for batch in spool.after(0, 10_000):
        header = wire.decode_header(batch.header)
        assert header.run == run.key and header.seq == batch.seq
        records = wire.decode_body(batch.type, header, batch.body)
        found += [(batch.type, record) for record in records]
    spool.close()
    return found


def test_numbers_of_any_library_are_taken(run: Run, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    values: list[Any] = [
        1, 2.5, True, numpy.float32(0.5), numpy.int64(7), numpy.array(3.0), numpy.array([4.0]),
        torch.tensor(5.0), torch.tensor([[6]]), torch.tensor(8.0, requires_grad=True),
        torch.tensor(1.5, dtype=torch.bfloat16), math.inf, -math.inf,
    ]  # fmt: skip
    for value in values:
        run.log_metric("a", value)
    run.log_metric("a", math.nan)
    got = [record.value for kind, record in spooled(run, tmp_path) if kind == "metric"]
    assert got[:-1] == [1, 2.5, 1, 0.5, 7, 3, 4, 5, 6, 8, 1.5, math.inf, -math.inf]
    assert math.isnan(got[-1])
    assert all(type(value) is float for value in got)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("a half", "str 'a half'"),
        (None, "NoneType"),
        ([1.0], "list"),
        ({"a": 1}, "dict"),
        (1j, "complex"),
        (numpy.zeros(3), r"numpy.ndarray of shape \(3,\)"),
        (10**400, "too large"),
    ],
)
def test_what_is_no_number_raises_and_names_key_and_type(run: Run, value: Any, named: str) -> None:
    with pytest.raises(TypeError, match=f"metric 'loss': .*{named}"):
        run.log_metric("loss", value)


def test_a_wrong_metric_among_several_logs_none_of_them(run: Run, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="'b'"):
        run.log_metrics({"a": 1, "b": "x"})
    assert not [kind for kind, _ in spooled(run, tmp_path) if kind == "metric"]


@pytest.mark.parametrize(
    "value", ["0.5", b"0.5", Decimal("0.5"), Fraction(1, 2), numpy.array([[0.5]])]
)
def test_what_means_a_number_is_one(run: Run, tmp_path: Path, value: Any) -> None:
    run.log_metric("loss", value)
    (record,) = [record for kind, record in spooled(run, tmp_path) if kind == "metric"]
    assert record.value == 0.5


@pytest.mark.parametrize(
    "step",
    [numpy.int32(7), 7, 7.0, numpy.array(7), True, "7", 7.9, Decimal("7.9"), Fraction(15, 2)],
)
def test_steps_are_cut_to_integers_as_int_does(run: Run, tmp_path: Path, step: Any) -> None:
    run.log_metric("a", 1, step)
    (record,) = [record for kind, record in spooled(run, tmp_path) if kind == "metric"]
    assert record.step == int(step)
    assert type(record.step) is int


@pytest.mark.parametrize("step", ["7.5", math.nan, math.inf, [7], 2**63])
def test_a_step_that_is_no_integer_of_64_bits_raises(run: Run, step: Any) -> None:
    with pytest.raises(TypeError, match="step of 'a'"):
        run.log_metric("a", 1, step)


@pytest.mark.parametrize("key", [7, None, b"a"])
def test_a_key_that_is_no_text_raises_at_the_call(run: Run, key: Any) -> None:
    for log in (run.log_metric, run.log_param, run.set_tag):
        with pytest.raises(TypeError, match="key"):
            log(key, 1)


@pytest.mark.parametrize(
    ("key", "spelled"),
    [
        ("", "%"),
        ("  ", "%20%20"),
        ("a\nb\x1f", "a%0Ab%1F"),
        ("a\ud800", "a?"),
        ("é" * 501, r"é{491}~[0-9a-f]{16}"),
    ],
)
def test_a_key_that_cannot_travel_is_spelled_otherwise_which_is_said_once(
    run: Run, tmp_path: Path, key: str, spelled: str, caplog: pytest.LogCaptureFixture
) -> None:
    for step in range(2):
        run.log_metric(key, 1, step)
        run.log_metrics({key: 1}, step)
        run.log_text(key, "text", step)
    keys = [record.key for kind, record in spooled(run, tmp_path) if kind in ("metric", "text")]
    assert len(keys) == 6
    assert len(set(keys)) == 1
    assert re.fullmatch(spelled.replace("?", r"\?"), keys[0])
    assert len([r for r in caplog.records if "is logged as" in r.getMessage()]) == 1


def test_long_keys_that_begin_alike_stay_apart(run: Run, tmp_path: Path) -> None:
    run.log_metrics({"x" * 2000 + end: 1 for end in "ab"})
    keys = {record.key for kind, record in spooled(run, tmp_path) if kind == "metric"}
    assert len(keys) == 2
    assert max(len(key.encode()) for key in keys) <= 1000


def test_params_keep_their_shape_and_what_is_foreign_becomes_text(run: Run, tmp_path: Path) -> None:
    run.log_params(
        {
            "lr": 0.1,
            "layers": [1, 2],
            "nested": {"a": {"b": None}},
            "array": numpy.arange(3),
            "path": Path("/data"),
        }
    )
    got = {record.key: record.value for kind, record in spooled(run, tmp_path) if kind == "param"}
    assert got == {
        "lr": 0.1,
        "layers": [1, 2],
        "nested": {"a": {"b": None}},
        "array": [0, 1, 2],
        "path": "/data",
    }


def test_a_value_is_kept_as_it_was_at_the_call(run: Run, tmp_path: Path) -> None:
    matrix = [[1, 2], [3, 4]]
    run.log("confusion_matrix", "m", matrix)
    matrix[0][0] = 99
    ((_, record),) = [r for r in spooled(run, tmp_path) if r[0] == "confusion_matrix"]
    assert record.value == [[1, 2], [3, 4]]


@pytest.mark.parametrize("name", ["metric", "run", "Matrix", "a-b", "", "1a", "lost", "head"])
def test_a_data_type_of_ones_own_needs_a_name_that_is_free(run: Run, name: str) -> None:
    with pytest.raises(ValueError):
        run.log(name, "key", 1)


def test_a_value_that_cannot_travel_raises_at_the_call(run: Run) -> None:
    with pytest.raises(TypeError, match="cannot be logged"):
        run.log("thing", "key", object())
    nested: list[Any] = []
    for _ in range(40):
        nested = [nested]
    with pytest.raises(TypeError, match="nested"):
        run.log("thing", "key", nested)


def test_times_are_the_writers_unless_given(run: Run, tmp_path: Path) -> None:
    import time

    before = time.time()
    run.log_metric("now", 1)
    run.log_metric("then", 1, time=12)
    run.log_metrics({"a": 1, "b": 2}, step=1)
    after = time.time()
    times = {r.key: r.time for kind, r in spooled(run, tmp_path) if kind == "metric"}
    assert before <= times["now"] <= after
    assert times["then"] == 12.0
    assert times["a"] == times["b"]


def test_an_argument_wins_over_the_environment(
    nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("EXPERIMENT", "RUN", "SITE"):
        monkeypatch.setenv(f"ZMQTRACK_{name}", f"env-{name.lower()}")
    monkeypatch.setenv("ZMQTRACK_ADDRESS", nobody)
    one = zmqtrack.init(exit_timeout=0)
    two = zmqtrack.init(run="given", exit_timeout=0)
    assert one.key == RunKey("env-experiment", "env-run", "env-site")
    assert two.key == RunKey("env-experiment", "given", "env-site")
    assert one.address == nobody
    one.finish()
    two.finish()


def test_a_folder_is_logged_file_by_file_and_an_empty_file_too(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.bin").write_bytes(b"a" * 1_200_000)
    (folder / "sub" / "empty").write_bytes(b"")
    run.log_artifact(folder)
    records = [record for kind, record in spooled(run, tmp_path) if kind == "artifact"]
    assert {record.key for record in records} == {"model/a.bin", "model/sub/empty"}
    pieces = [record.value for record in records if record.key == "model/a.bin"]
    assert b"".join(piece for _, _, piece in pieces) == b"a" * 1_200_000
    assert len(pieces) == 3


def test_a_file_that_is_not_there_raises_at_the_call(run: Run, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        run.log_artifact(tmp_path / "nothing")


def test_a_spool_folder_that_cannot_be_written_is_named(nobody: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(zmqtrack.SpoolError, match="ZMQTRACK_SPOOL_DIR"):
        zmqtrack.init("e", "r", "s", nobody, spool_dir=tmp_path / "file" / "spool")


@pytest.mark.parametrize(
    "address",
    ["localhost", "tcp://127.0.0.1:5555/", "tcp://*:5555", "tcp://a b:5555", "tcp://-:5555",
     "tcp://a$b:5555", "tcp://127.0.0.1:0", "tcp://127.0.0.1:65536", f"ipc:///tmp/{'x' * 110}"],
)  # fmt: skip
def test_an_address_that_is_none_is_named(tmp_path: Path, address: str) -> None:
    with pytest.raises(ValueError, match=r"is no address.*write for example tcp://127"):
        zmqtrack.init("e", "r", "s", address)
    assert not list(tmp_path.glob("spool/*.spool"))


@pytest.mark.parametrize(
    "address", ["tcp://[::1]:5555", "tcp://my-host_1.example.org:1", f"ipc://{'x' * 107}"]
)
def test_an_address_that_is_one_is_taken_as_it_is(address: str) -> None:
    assert check_address(address) == address
    assert check_address("tcp://*:0", to_bind=True) == "tcp://*:0"


@pytest.mark.parametrize("config", [[1], "lr", {"": 1}, {7: 1}])
def test_a_config_that_is_none_begins_no_run(nobody: str, tmp_path: Path, config: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"config maps names|key must"):
        zmqtrack.init("e", "r", "s", nobody, config=config)
    assert not list(tmp_path.glob("spool/*.spool"))


def test_a_process_that_may_open_no_more_files_logs_to_its_disk_and_sends_later(
    daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    """ZeroMQ would end the whole process there."""
    code = (
        "import os, resource, sys, time, zmqtrack, zmqtrack.sender\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "few = len(os.listdir('/dev/fd')) + int(sys.argv[2])\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))\n"
        "run = zmqtrack.init('e', 'r', 's', sys.argv[1])\n"
        "run.log_metric('a', 1)\n"
        "assert run.flush(30)\n"
        "time.sleep(0.2)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (1000, hard))\n"
        "run.finish(timeout=30)\n"
    )
    with daemon() as served:
        for free in (6, 7, 8, 12):
            done = subprocess.run(
                [sys.executable, "-c", code, served.address, str(free)],
                capture_output=True,
                text=True,
                timeout=PATIENCE,
            )
            assert done.returncode == 0, done.stderr
            assert "too few files may be opened" in done.stderr
            assert "not yet delivered" not in done.stderr
        (site,) = served.status()["sites"]
    assert site["records"] == 4 * 3


def test_an_outbox_that_the_daemon_refuses_keeps_no_other_waiting(
    daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    folder = tmp_path / "left"
    with daemon(limits={"runs": 1}) as served:
        with zmqtrack.init("e", "welcome", "s", served.address, spool_dir=folder):
            pass
        for name in ("welcome", *4 * ["one too many"], "welcome", "welcome"):
            key = RunKey("e", name, "s")
            with closing(Spool.create(folder, key, served.address)) as spool:
                body = wire.encode_body([Record("m", 1.0, 1, 1.0)])
                header = wire.encode_header(wire.Header(spool.stream, 1, key, 1))
                spool.append([Outgoing(1, "metric", 1, header, body)])
        zmqtrack.init("e", "welcome", "s", served.address, spool_dir=folder).finish(
            timeout=PATIENCE
        )
        (site,) = served.status()["sites"]
    assert site["records"] == 2 + 3 + 2
    assert len(list(folder.glob("*.spool"))) == 4


def test_the_highest_step_is_shown_though_other_records_have_none(
    daemon: Callable[..., Daemon],
) -> None:
    with daemon() as served:
        with zmqtrack.init("e", "r", "s", served.address) as run:
            for step in range(100):
                run.log_metric("loss", 1.0, step=step)
            run.flush()
            run.log_metric("val/loss", 1.0, step=3)  # of the epoch
            run.log_text("note", "done")
        (site,) = served.status()["sites"]
    assert site["step"] == 99


def test_text_that_is_not_valid_unicode_still_arrives(run: Run, tmp_path: Path) -> None:
    run.log_text("note", "a\ud800b")
    assert run.flush()
    ((_, record),) = [r for r in spooled(run, tmp_path) if r[0] == "text"]
    assert record.value == "a?b"
