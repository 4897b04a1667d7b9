"""Lines of one chart, and trials in one run: keys of two names, from the call to the tracker."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.plugins.hparams import api_pb2
from zmqtrack.adapters import tensorboard
from zmqtrack.adapters.tensorboard import TensorBoardAdapter

from test_adapter_tensorboard import (
    RUN,
    adapter,  # noqa: F401 -- a fixture
    batch,
    event_files,
    session_groups,
    start,
)
from test_egress import clock, gate  # noqa: F401 -- fixtures
from test_host import Moody, moody  # noqa: F401 -- a fixture
from zmqtrack import wire
from zmqtrack.egress import Gate
from zmqtrack.errors import FrameError
from zmqtrack.records import LineKey, PairKey, Record, RunKey, TrialKey, plain_key, wire_key

PAIRS = [LineKey("a/b", "c"), LineKey("", ""), TrialKey("t1", "hp/acc")]


def decoded(data_type: str, *records: tuple[Any, ...]) -> list[Record]:
    body = wire.encode_body(records)
    return wire.decode_body(data_type, wire.Header(b"s" * 16, 1, RUN, len(records)), body)


# --- on the wire ---------------------------------------------------------------------------------


def test_a_pair_reads_as_its_plain_key_and_stays_apart_from_it() -> None:
    line = LineKey("Loss", "train")
    rows = [(wire_key(line), 1.0, 1, 1.0), ("Loss/train", 2.0, 1, 1.0)]
    first, second = decoded("metric", *rows)
    assert first.key == second.key == "Loss/train"
    assert type(second.key) is str
    assert isinstance(first.key, LineKey)
    assert (first.key.first, first.key.second) == ("Loss", "train")
    assert (first.value, second.value) == (1.0, 2.0)


@pytest.mark.parametrize("pair", PAIRS)
def test_a_pair_comes_back_as_it_was(pair: PairKey) -> None:
    (record,) = decoded("metric", (wire_key(pair), 1.0, 1, 1.0))
    assert type(record.key) is type(pair)
    assert wire_key(record.key) == wire_key(pair)
    for again in (copy.deepcopy(pair), pickle.loads(pickle.dumps(pair))):
        assert (type(again), again, again.second) == (type(pair), pair, pair.second)
    assert plain_key(wire_key(pair)) == pair == f"{pair.first}/{pair.second}"
    assert json.loads(json.dumps({pair: 1})) == {str(pair): 1}


@pytest.mark.parametrize(
    ("data_type", "key", "value"),
    [
        ("param", "a\x1fb", 1),
        ("text", "a\x1eb", "x"),
        ("metric", "a\x1fb\x1fc", 1.0),
        ("metric", "a\x1fb\x1ec", 1.0),
        ("metric", "a\nb", 1.0),
        ("metric", "x" * 999 + "\x1fyy", 1.0),
    ],
)
def test_no_other_control_character_passes(data_type: str, key: str, value: Any) -> None:
    with pytest.raises(FrameError):
        decoded(data_type, (key, value, 1, 1.0))


# --- policies and dead letters -------------------------------------------------------------------


def test_a_policy_knows_a_pair_by_its_plain_key(gate: Callable[..., Gate]) -> None:  # noqa: F811
    made = gate(allow=["Loss/*"], deny=["*/secret"])
    keys = [LineKey("Loss", "a"), LineKey("Loss", "secret"), TrialKey("t", "lr")]
    entries: list[Any] = [(wire_key(key), 0.5, 1, 1.0, "metric") for key in keys]
    assert made.sift(entries) == entries[:1]
    made.audit()
    lines = [json.loads(line) for line in made.audit_path.read_text().splitlines()]
    assert {(line["key"], line["reason"]) for line in lines} == {
        ("Loss/secret", "deny"),
        ("t/lr", "allow"),
    }


def test_a_refused_line_of_a_chart_is_still_one_when_it_is_retried(
    moody: Callable[..., Moody],  # noqa: F811
) -> None:
    import zmqtrack

    one = moody()
    with one.daemon as served:
        with zmqtrack.init("e", "r", "s", served.address) as run:
            run.log_metrics({"line": 1.0}, 3, chart="bad")
        served.drain()
        (letter,) = served.request("dlq")["letters"]
        header, body = served.request("dlq_fetch", ids=[letter["id"]])["frames"]
        (record,) = wire.decode_body("metric", wire.decode_header(header), body)
    assert isinstance(record.key, LineKey)
    assert record.key == "bad/line"


# --- in TensorBoard ------------------------------------------------------------------------------


def lines(seq: int, *named: tuple[str, str, float], run: RunKey = RUN) -> Any:
    rows = [(LineKey(chart, line), value, i, 1e9) for i, (chart, line, value) in enumerate(named)]
    return batch(seq, "metric", *rows, run=run)


def shown(tmp_path: Path) -> dict[str, dict[str, list[float]]]:
    """Run, below the site's → tag → values."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(tmp_path / "out")).Reload()
    return {
        run: {tag: [e.value for e in multiplexer.Scalars(run, tag)] for tag in tags["scalars"]}
        for run, tags in multiplexer.Runs().items()
    }


BASE = "/".join(RUN)


def test_lines_that_were_in_doubt_are_there_once_after_they_come_again(tmp_path: Path) -> None:
    first = start(tmp_path)
    first.deliver([lines(1, ("m", "a", 1.0), ("m", "b", 2.0))])
    note = first.note()
    doubtful = [
        lines(2, ("m", "a", 3.0), ("m", "c", 4.0)),
        batch(3, "metric", ("m/a", 5.0, 1, 1.0)),
    ]
    first.deliver(doubtful)
    del first  # killed here
    again = start(tmp_path, note)
    again.deliver(doubtful)
    again.close()
    assert shown(tmp_path) == {
        BASE: {"m/a": [5.0]},
        f"{BASE}/m_a": {"m": [1.0, 3.0]},
        f"{BASE}/m_b": {"m": [2.0]},
        f"{BASE}/m_c": {"m": [4.0]},
    }


def test_a_run_that_has_only_lines_begins_no_file_of_its_own(
    adapter: TensorBoardAdapter,  # noqa: F811
    tmp_path: Path,
) -> None:
    adapter.deliver([lines(1, ("m", "a", 1.0))])
    assert event_files(tmp_path) == []
    assert shown(tmp_path) == {f"{BASE}/m_a": {"m": [1.0]}}


def test_names_of_lines_stay_below_their_run_and_apart(
    adapter: TensorBoardAdapter,  # noqa: F811
    tmp_path: Path,
) -> None:
    odd = [
        "../../x",
        "..",
        "/etc",
        "tfevents",
        "CON",
        "A",
        "a",
        "x" * 400,
        "x" * 400 + "y",
        "é",
        "%",
    ]
    adapter.deliver([lines(1, *((name, "l", float(i)) for i, name in enumerate(odd)))])
    adapter.deliver([lines(2, *(("m", name, float(i)) for i, name in enumerate(odd)))])
    seen = shown(tmp_path)
    assert len(seen) == 2 * len(odd)
    assert all(run.startswith(f"{BASE}/") for run in seen)
    assert sorted(v for tags in seen.values() for v in tags.get("m", [])[:1]) == [
        float(i) for i in range(len(odd))
    ]
    assert {tag for tags in seen.values() for tag in tags} == {*odd, "m"}


def test_there_are_not_more_folders_of_lines_than_may_be(
    adapter: TensorBoardAdapter,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tensorboard, "MAX_FOLDERS", 2)
    adapter.deliver([lines(1, *(("m", name, 1.0) for name in "abcd"))])
    again = start(tmp_path, adapter.note())
    again.deliver([lines(2, *(("m", name, 2.0) for name in "dcba"))])
    again.close()
    assert shown(tmp_path) == {
        BASE: {"m/c": [1.0, 2.0], "m/d": [1.0, 2.0]},
        f"{BASE}/m_a": {"m": [1.0, 2.0]},
        f"{BASE}/m_b": {"m": [1.0, 2.0]},
    }
    (counted,) = adapter.context.counters.items()
    assert counted == ("record of a line or trial beyond 2 in a run", 2)


def test_each_trial_is_a_finished_session_of_the_hparams_tab(
    adapter: TensorBoardAdapter,  # noqa: F811
    tmp_path: Path,
) -> None:
    for n in range(3):
        params = [(TrialKey(f"t{n}", "lr"), n / 2, None, 5.0)]
        adapter.deliver(
            [
                batch(2 * n + 1, "param", *params, ("own", n, None, 5.0)),
                batch(2 * n + 2, "metric", (TrialKey(f"t{n}", "acc"), n, 0, 6.0)),
            ]
        )
    sessions = {}
    for group in session_groups(tmp_path):
        (session,) = group.sessions
        values = {name: held.number_value for name, held in group.hparams.items()}
        sessions[session.name.removeprefix(BASE)] = (
            values,
            session.status,
            [m.value for m in group.metric_values],
        )
    done = api_pb2.STATUS_SUCCESS
    unknown = sessions.pop("")
    assert unknown[0] == {"own": 2.0}
    assert unknown[1] != done
    assert {name: (v, s) for name, (v, s, _) in sessions.items()} == {
        f"/t{n}": ({"lr": n / 2}, done) for n in range(3)
    }
    assert [value for _, _, value in sessions.values()] == [[0.0], [1.0], [2.0]]
