"""Names and keys come from sites, and a site may mean ill: nothing leaves its folder for them.

Each adapter gets each of them, as experiment, run, site and key. Nothing beside its folders may
change, distinct names must stay distinct, and each record is there or was refused with a reason.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import shutil
import subprocess
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from mlflow import MlflowClient
from tensorboard.backend.event_processing import io_wrapper
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from zmqtrack.adapters import base, mlflow_names
from zmqtrack.adapters.artifacts import Assembler
from zmqtrack.adapters.base import Adapter, Blocked, Context, Refused, own_entry, safe_name
from zmqtrack.adapters.jsonl import JSONLAdapter
from zmqtrack.adapters.ledger import Ledger
from zmqtrack.adapters.mlflow import MLflowAdapter
from zmqtrack.adapters.tensorboard import TensorBoardAdapter
from zmqtrack.adapters.wandb import WandBAdapter

import readers_wandb
from zmqtrack.errors import FrameError
from zmqtrack.records import Record, RunKey
from zmqtrack.wire import Batch, Header, decode_header, encode_header

#: A folder on a file system that folds case, for those who have one.
FOLDING_DIR = os.environ.get("ZMQTRACK_FOLDING_DIR")

LONG = "L" * 250
DEEP = "d/" * 5000

#: What may name an experiment, run or site.
NAMES = [
    *("..", ".", "...", "../x", "../../../../../../tmp/x", "/etc/x", "//x", "a/../../x"),
    *("a", "a/b", "a\\b", "C:\\x", "~", "~root", "-rf", "$(touch x)", ".hidden", ".part"),
    *("CON", "con", "nul.txt", "COM1", "aux.", "x", "x.", "x..", "x ", " x", "X"),
    *("%", "%41", "A", "%2e%2e%2f", "..%2f", "%252e", "a%2Fb", "a%~b"),
    *("Site-1", "site-1", "SITE-1", "sitE-1"),
    *("caf\u00e9", "cafe\u0301", "\u212b", "\u00c5", "A\u030a", "\ufb01", "fi", "\u0131", "\u017f"),
    *("a\u202eb", "\ufeffa", "a\u00a0b", "\U0001f600", "*?<>|:\"'`"),
    *(LONG, LONG[:-1], safe_name(LONG), "\u00e9" * 125, "m" + "\u00e9" * 124),
    *("a.jsonl", "a.files", "events.out.tfevents.0000000001.zmqtrack", ".hparams.part"),
    *("undo.sqlite", "lock", "wandb", "zmqtrack", "latest-run", "mlflow.db", "mlflow-artifacts"),
]
#: What may be a key as well.
KEYS = [
    *NAMES,
    *("", "/", "nul\0byte", "nul\0", "new\nline", "a\r\nb", "\x1b[31m", "\x7f", "tab\t"),
    *("x" * 10_000, "x" * 10_000 + "y", "\u00e9" * 5_000, "." * 10_000, DEEP, DEEP + "f"),
    *("b/c", "b", "b/c/d", "b/c/", "b//c", "B/c", "../state/undo.sqlite", "../../state/lock"),
    *("logs/stdout.txt", "text/note.txt", "params/p.txt", "tags/t.txt", "images/i.png"),
    *("logs/stdout.2.txt", "logs/STDOUT.txt", "a.png", "a.PNG", "media/x", "wandb-metadata.json"),
]
T = 1_700_000_000.125


def test_the_tables_hold_each_name_once() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert len(set(KEYS)) == len(KEYS)


# --- each adapter, and what its tracker shows ----------------------------------------------


class Bench:
    """One adapter in a folder of its own, with something beside it that must not change."""

    make: Callable[[Path, Context], Adapter]

    def __init__(self, folder: Path) -> None:
        self.out, self.state = folder / "in" / "out", folder / "in" / "state"
        self.beside = folder
        self.state.mkdir(parents=True)
        (folder / "in" / "precious").write_text("precious")
        (folder / "file").write_bytes(b"")
        self.offset = 0
        self.refused: list[tuple[str, str]] = []
        self.note = b""
        self.before = self._beside()
        self.adapter = self.start()

    def start(self) -> Adapter:
        context = Context("test", self.state, logging.getLogger("test"), {})
        adapter = type(self).make(self.out, context)
        adapter.open(self.note)
        return adapter

    def restart(self) -> None:
        self.note = self.adapter.note()
        self.adapter.close()
        self.adapter = self.start()

    def batch(self, run: RunKey, data_type: str, *records: Record) -> Batch:
        self.offset += 1
        stream = hashlib.sha256(repr(run).encode()).digest()[:16]
        return Batch(
            data_type, Header(stream, self.offset, run, len(records), offset=self.offset), records
        )

    def give(self, *batches: Batch) -> None:
        """As the host does: halve what is refused; anything else would stop the adapter."""
        try:
            self.adapter.deliver(batches)
        except Refused as error:
            assert str(error)
        else:
            return
        if len(batches) > 1:
            middle = len(batches) // 2
            self.give(*batches[:middle])
            self.give(*batches[middle:])
        elif len(batches[0]) > 1:
            for place in range(len(batches[0])):
                self.give(batches[0].part(place, place + 1))
        else:
            self.refused.append((batches[0].type, batches[0].records[0].key))

    def check_beside(self) -> None:
        """Nothing beside the adapter's two folders has changed, and no link leads out of them."""
        assert self._beside() == self.before
        for folder in (self.out, self.state):
            links = [path for path in folder.rglob("*") if path.is_symlink()]
            # wandb's own, to its log in the cache folder.
            links = [path for path in links if path.name != "debug-core.log"]
            assert [p for p in links if not p.resolve().is_relative_to(self.beside / "in")] == []

    def _beside(self) -> dict[str, Any]:
        return {
            str(path.relative_to(self.beside)): path.read_bytes() if path.is_file() else None
            for path in self.beside.rglob("*")
            if not (path.is_relative_to(self.out) or path.is_relative_to(self.state))
            and path != self.beside / "file"
        }

    def metrics(self) -> list[list[float]]:
        """The values of each run that the tracker has."""
        raise NotImplementedError

    def files(self) -> list[bytes]:
        """The content of each file that the tracker has."""
        raise NotImplementedError


class JSONL(Bench):
    make = staticmethod(lambda out, context: JSONLAdapter(JSONLAdapter.Options(dir=out), context))

    def lines(self) -> dict[Path, list[dict[str, Any]]]:
        return {
            path: [json.loads(line) for line in path.read_text().splitlines()]
            for path in self.out.glob("*/*/*.jsonl")
            if path.is_file()
        }

    def metrics(self) -> list[list[float]]:
        return [
            [line["value"] for line in lines if line["type"] == "metric"]
            for lines in self.lines().values()
        ]

    def files(self) -> list[bytes]:
        return [
            (path.parent / line["value"]["file"]).read_bytes()
            for path, lines in self.lines().items()
            for line in lines
            if line["type"] == "artifact"
        ]


class TensorBoard(Bench):
    make = staticmethod(
        lambda out, context: TensorBoardAdapter(TensorBoardAdapter.Options(logdir=out), context)
    )

    def runs(self) -> list[EventAccumulator]:
        everything = {"scalars": 0, "tensors": 0}
        return [
            EventAccumulator(folder, size_guidance=everything).Reload()
            for folder in io_wrapper.GetLogdirSubdirectories(str(self.out))  # as TensorBoard does
        ]

    def metrics(self) -> list[list[float]]:
        return [
            [e.value for tag in run.Tags()["scalars"] for e in run.Scalars(tag)]
            for run in self.runs()
        ]

    def files(self) -> list[bytes]:  # TensorBoard has the name and size of an artifact
        return [
            event.tensor_proto.string_val[0].rpartition(b", ")[2].split()[0]
            for run in self.runs()
            for tag in run.Tags()["tensors"]
            if tag.startswith("artifact/")
            for event in run.Tensors(tag)
        ]


class MLflow(Bench):
    make = staticmethod(
        lambda out, context: MLflowAdapter(
            MLflowAdapter.Options(tracking_uri=f"sqlite:///{out}/mlflow.db"), context
        )
    )

    def runs(self) -> list[Any]:
        client = MlflowClient(f"sqlite:///{self.out}/mlflow.db")
        ids = [e.experiment_id for e in client.search_experiments()]
        runs = client.search_runs(ids, max_results=10_000)
        return [run for run in runs if "zmqtrack.site" in run.data.tags]

    def metrics(self) -> list[list[float]]:
        return [list(run.data.metrics.values()) for run in self.runs()]

    def files(self) -> list[bytes]:
        folders = [Path(run.info.artifact_uri.removeprefix("file://")) for run in self.runs()]
        found = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
        assert not [path for path in found if path.is_symlink()]
        return [path.read_bytes() for path in found]


class WandB(Bench):
    make = staticmethod(
        lambda out, context: WandBAdapter(
            WandBAdapter.Options(mode="offline", dir=out, max_open_runs=4), context
        )
    )

    def metrics(self) -> list[list[float]]:
        self.restart()  # wandb's file is whole when its run is closed
        rows: dict[Any, list[float]] = {}
        for row in readers_wandb.read_wandb(self.out):
            if row.type == "metric":
                rows.setdefault((row.experiment, row.run, row.site), []).append(row.value)
        return list(rows.values())

    def files(self) -> list[bytes]:
        self.restart()
        rows = readers_wandb.read_wandb(self.out)
        return [row.value for row in rows if row.type == "artifact"]


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "home" / name))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture(params=[JSONL, TensorBoard, MLflow, WandB], ids=lambda kind: kind.__name__)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    made: Bench = request.param(tmp_path / "bench")
    yield made
    made.adapter.close()


def metric(value: float) -> Record:
    return Record("m", value, 1, T)


def test_no_name_of_a_run_leaves_the_folder_and_none_is_taken_for_another(bench: Bench) -> None:
    runs = [
        *(RunKey("e", "r", name) for name in NAMES),
        *(RunKey("e", name, "s") for name in NAMES),
        *(RunKey(name, "r", "s") for name in NAMES),
    ]
    if isinstance(bench, (MLflow, WandB)):  # which make a run in a tenth of a second or more
        runs = [RunKey("e", "r", name) for name in NAMES[::4]]
        runs += [RunKey(name, name, name) for name in NAMES]
    bench.give(*(bench.batch(run, "metric", metric(n)) for n, run in enumerate(runs)))
    bench.restart()
    bench.give(*(bench.batch(run, "metric", metric(n)) for n, run in enumerate(runs)))
    assert not bench.refused
    found = sorted(sorted(set(values)) for values in bench.metrics())
    assert found == [[float(n)] for n in range(len(runs))]
    bench.check_beside()


def test_no_key_leaves_the_folder_and_none_is_taken_for_another(bench: Bench) -> None:
    (bench.state / "sent").mkdir()
    sent, records = {}, []
    for n, key in enumerate(KEYS):
        content = b"x" * n if isinstance(bench, TensorBoard) else f"{n} {key[:100]!r}".encode()
        sent[key] = b"%d" % n if isinstance(bench, TensorBoard) else content
        file = bench.state / "sent" / str(n)
        file.write_bytes(content)
        records.append(Record(key, file, None, T))
    bench.give(bench.batch(RunKey("e", "r", "s"), "artifact", *records))
    refused = {key for _, key in bench.refused}
    # MLflow's artifacts are a tree: a file cannot be where a folder is. No other is refused.
    if isinstance(bench, MLflow):
        trees = {key for key in KEYS if any(k != key and k.startswith(f"{key}/") for k in KEYS)}
        under = {key for key in KEYS for k in KEYS if k != key and key.startswith(f"{k}/")}
        assert refused <= trees | under | {"", "..", "."}
    else:
        assert not refused
    expected = [content for key, content in sent.items() if key not in refused]
    assert sorted(bench.files()) == sorted(expected)
    bench.check_beside()


@pytest.mark.parametrize("same", [True, False], ids=["same content", "other content"])
@pytest.mark.parametrize("keys", list(itertools.permutations(["a", "a/b", "a/b/c"])), ids="-".join)
def test_a_key_that_is_a_folder_of_another_stops_nobody(
    tmp_path: Path, keys: Sequence[str], same: bool
) -> None:
    bench = JSONL(tmp_path / "bench")
    for _ in range(2):
        for key in keys:
            (bench.beside / "file").write_text("same" if same else key)
            file = Record(key, bench.beside / "file", None, T)
            bench.give(bench.batch(RunKey("e", "r", "s"), "artifact", file))
    bench.give(bench.batch(RunKey("e", "r", "other"), "metric", metric(1)))
    assert not bench.refused
    assert bench.files() == [b"same" if same else key.encode() for key in keys] * 2
    bench.check_beside()
    bench.adapter.close()


def test_other_records_with_odd_keys_are_delivered_or_refused_too(bench: Bench) -> None:
    run = RunKey("e", "r", "s")
    histogram = {"counts": [1], "edges": [0.0, 1.0]}
    values = {"text": "t", "log": "l", "param": "p" * 7000, "tag": "t" * 9000, "metric": 1.0}
    for data_type, value in {**values, "histogram": histogram, "image": b"no image"}.items():
        keys = KEYS[::3] if isinstance(bench, MLflow) else KEYS
        bench.give(bench.batch(run, data_type, *(Record(key, value, 1, T) for key in keys)))
    # MLflow cannot show such an image, and has no empty key.
    assert {data_type for data_type, key in bench.refused if key} <= {"image"}
    bench.check_beside()


def test_a_name_with_control_characters_is_refused_at_the_gate() -> None:
    for name in ("nul\0", "new\nline", "\x1b[31m", "\x7f", "", " ", "x" * 251):
        for run in (RunKey(name, "r", "s"), RunKey("e", name, "s"), RunKey("e", "r", name)):
            with pytest.raises(FrameError, match="bad_header"):
                decode_header(encode_header(Header(b"s" * 16, 1, run, 1)))


def test_a_file_of_ours_and_an_artifact_of_its_name_are_both_there(tmp_path: Path) -> None:
    """``logs/out.txt`` is what MLflow's adapter appends lines to, and may be a user's key."""
    run = RunKey("e", "r", "s")
    for order in (
        ["artifact", "log", "param", "again"],
        ["log", "param", "artifact", "again"],
        ["log", "artifact", "again", "param"],
    ):
        bench = MLflow(tmp_path / "-".join(order))
        file = bench.beside / "file"
        for kind in order:
            if kind == "log":
                bench.give(bench.batch(run, "log", Record("out", "line", None, T)))
            elif kind == "param":
                bench.give(bench.batch(run, "param", Record("p", "p" * 7000, None, T)))
            else:  # a second one of the same key replaces the first, as ever
                for key in ("logs/out.txt", "params/p.txt"):
                    file.write_text(kind + key)
                    bench.give(bench.batch(run, "artifact", Record(key, file, None, T)))
            bench.restart()
        expected = [b"line", b"p" * 7000, b"againlogs/out.txt", b"againparams/p.txt"]
        assert sorted(bench.files()) == sorted(expected)
        bench.adapter.close()


def test_pieces_of_artifacts_lie_under_names_of_our_own(tmp_path: Path) -> None:
    state = tmp_path / "in" / "state"
    state.mkdir(parents=True)
    assembler = Assembler(Context("test", state, logging.getLogger("test"), {}))
    run, whole = RunKey("e", "r", "s"), {}
    for n, key in enumerate(KEYS):
        content = str(n).encode()
        batch = Batch(
            "artifact",
            Header(b"s" * 16, n + 1, run, 1),
            [Record(key, [0, len(content), content], None, T)],
        )
        (record,) = assembler.assemble(batch).records
        assert record.value.parent == state / "incoming"
        whole[record.value] = content
    assert len(whole) == len(KEYS)
    assert all(path.read_bytes() == content for path, content in whole.items())
    assert set(tmp_path.rglob("*")) == {*whole, state.parent, state, state / "incoming"}


def test_a_key_of_mlflow_that_was_cut_and_one_that_looks_so_are_two() -> None:
    for spell, limit in ((mlflow_names.as_key, 250), (mlflow_names.as_path, 700)):
        keys = ["k" * 1000, "k" * 1000 + ".txt", "k" * 1001, "\u4e2d" * 400 + "k", "d/" * 500 + "f"]
        cut = [spell(key) for key in keys]
        again = [spell(name) for name in cut]
        assert len({*cut, *again}) == 2 * len(keys)
        assert max(len(name.encode()) for name in (*cut, *again)) <= limit


# --- names as names of files ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("site-1", "site-1"),
        ("Site 1 @a=b,c(d)~+.", "Site 1 @a=b,c(d)~+."),
        ("..", "%2E."),
        ("a/b\0", "a%2Fb%00"),
        ("50%", "50%25"),
        ("caf\u00e9", "caf%C3%A9"),
        ("cafe\u0301", "cafe%CC%81"),
        ("CON", "CON"),
        (LONG, "L" * 160 + "~" + hashlib.sha256(LONG.encode()).hexdigest()[:32]),
    ],
)
def test_where_a_name_lands_does_not_change(name: str, safe: str) -> None:
    assert safe_name(name) == safe


def test_names_are_ascii_stay_in_their_folder_and_differ() -> None:
    safe = [safe_name(name) for name in KEYS]
    assert len(set(safe)) == len(KEYS)
    for one in safe:
        assert one.isascii() and one.isprintable() and 0 < len(one) <= 200
        assert "/" not in one and "\\" not in one and not one.startswith(".")
    other = [base.other_name(name) for name in KEYS]
    assert not set(other) & set(safe) and len(set(map(str.casefold, other))) == len(KEYS)


def test_a_file_system_that_tells_case_apart_needs_no_hash(tmp_path: Path) -> None:
    names = ["Site-1", "site-1", "SITE-1", "x", "x.", "1", "caf\u00e9", "cafe\u0301"]
    for _ in range(2):
        assert [own_entry(tmp_path, name, _folder) for name in names] == [*map(safe_name, names)]


def _folder(path: Path) -> None:
    path.mkdir(exist_ok=True)


#: Groups of names that are one to some file system.
ALIKE = [
    ["Site-1", "site-1", "SITE-1", "sitE-1"],
    ["x", "x.", "X", "x ", "X.. "],
    ["caf\u00e9", "cafe\u0301", "CAF\u00c9"],
    ["a/b", "A/b", "a%2Fb", "A%2FB"],
    [LONG, LONG.lower(), safe_name(LONG), safe_name(LONG).lower()],
    ["con", "CON", "Con."],
    ["1", "1.", "1 "],
]


def _folds(folder: Path, name: str) -> bool:
    """A file system that folds case, composes, and drops dots and blanks at the end."""

    def fold(text: str) -> str:
        return unicodedata.normalize("NFC", text.casefold()).rstrip(". ")

    entries = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    return name not in entries and fold(name) in map(fold, entries)


@pytest.fixture
def folding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zmqtrack.adapters.base.leads_elsewhere", _folds)
    monkeypatch.setattr("zmqtrack.adapters.mlflow_names.leads_elsewhere", _folds)


@pytest.mark.usefixtures("folding")
@pytest.mark.parametrize("alike", ALIKE, ids=lambda alike: safe_name(alike[0])[:10])
def test_the_second_to_come_gets_a_hash_and_keeps_it(tmp_path: Path, alike: list[str]) -> None:
    def make(path: Path) -> None:
        _folder(path.with_name(path.name.rstrip(". ")))

    for number, order in enumerate(itertools.permutations(alike)):
        folder = tmp_path / str(number)
        folder.mkdir()
        got = {name: own_entry(folder, name, make) for name in order}
        assert {*got.values()} <= {entry.name for entry in folder.iterdir()}
        _assert_apart(list(got.values()))
        if not order[0].endswith((".", " ")):
            assert got[order[0]] == safe_name(order[0])
        for name in reversed(order):  # in whatever order they come again
            assert own_entry(folder, name, make) == got[name]
        # The first is removed by hand: the others stay where they are.
        (folder / got[order[0]]).rmdir()
        for name in order[1:]:
            assert own_entry(folder, name, make) == got[name]


def _assert_apart(entries: list[str]) -> None:
    folded = {entry.casefold().rstrip(". ") for entry in entries}
    assert len(folded) == len(entries), entries


def _alike_runs() -> list[RunKey]:
    flat = [name for alike in ALIKE for name in alike]
    return [
        *(RunKey("e", "r", name) for name in flat),
        *(RunKey("e", name, "s") for name in flat),
        *(RunKey(name, "r", "s") for name in flat),
    ]


@pytest.mark.usefixtures("folding")
@pytest.mark.parametrize("kind", [JSONL, TensorBoard], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("at_once", [True, False])
def test_runs_whose_names_are_alike_to_the_file_system_stay_apart(
    tmp_path: Path, kind: type[Bench], at_once: bool
) -> None:
    bench = kind(tmp_path / "bench")
    _runs_stay_apart(bench, _alike_runs(), at_once)
    for folder in [bench.out, *bench.out.rglob("*")]:
        if folder.is_dir():
            _assert_apart([entry.name for entry in folder.iterdir()])
    bench.check_beside()
    bench.adapter.close()


def _runs_stay_apart(bench: Bench, runs: list[RunKey], at_once: bool) -> None:
    batches = [bench.batch(run, "metric", metric(n)) for n, run in enumerate(runs)]
    if at_once:
        bench.give(*batches)
        bench.restart()
    else:
        for batch in batches:
            bench.give(batch)
    # What was given and not noted is taken back after a crash, and comes again.
    more = [bench.batch(run, "metric", metric(n)) for n, run in enumerate(runs)]
    bench.note = bench.adapter.note()
    bench.give(*more)
    bench.adapter.close()
    bench.adapter = bench.start()
    bench.give(*more)
    found = sorted(bench.metrics())
    assert found == [[float(n)] * 2 for n in range(len(runs))]


@pytest.mark.usefixtures("folding")
def test_artifacts_of_mlflow_that_are_alike_to_its_folder_stay_apart(tmp_path: Path) -> None:
    bench = MLflow(tmp_path / "bench")
    _artifacts_stay_apart(bench)
    for folder in bench.out.rglob("*"):
        if folder.is_dir():
            _assert_apart([entry.name for entry in folder.iterdir()])


def _artifacts_stay_apart(bench: Bench) -> None:
    run, file = RunKey("e", "r", "s"), bench.beside / "file"
    keys = ["model.pt", "Model.pt", "MODEL.PT", "d/x", "D/x", "d/X", "D/X", "\u212b", "\u00c5"]
    for _ in range(2):
        for key in keys:
            file.write_text(key)
            bench.give(bench.batch(run, "artifact", Record(key, file, None, T)))
        bench.restart()
    assert not bench.refused
    assert sorted({f.decode() for f in bench.files()}) == sorted(keys)
    bench.check_beside()
    bench.adapter.close()


# --- a file system that really folds -------------------------------------------------------


@pytest.fixture
def real(tmp_path: Path) -> Iterator[Path]:
    """A folder that folds case: one that is given, or an image that we can mount."""
    if FOLDING_DIR:
        folder = Path(FOLDING_DIR) / uuid4().hex
        folder.mkdir()
        yield folder
        shutil.rmtree(folder, ignore_errors=True)
        return
    if os.geteuid():
        pytest.skip("only root can mount a file system; or set ZMQTRACK_FOLDING_DIR")
    image, mount = tmp_path / "image", tmp_path / "mount"
    mount.mkdir()
    casefold = ["mkfs.ext4", "-q", "-F", "-O", "casefold", "-E", "encoding=utf8", "-m", "0"]
    for command in (["mkfs.vfat", "-F", "32"], casefold):
        if shutil.which(command[0]) is None:
            continue
        with image.open("wb") as file:
            file.truncate(64 << 20)
        subprocess.run([*command, str(image)], check=True, capture_output=True)
        if subprocess.run(["mount", "-o", "loop", str(image), str(mount)], capture_output=True):
            if not mount.is_mount():
                continue
            try:
                folder = mount / "folds"
                folder.mkdir()
                subprocess.run(["chattr", "+F", str(folder)], capture_output=True, check=False)
                (folder / "a").mkdir()
                if (folder / "A").exists():
                    yield folder
                    return
            finally:
                subprocess.run(["umount", str(mount)], check=True)
    pytest.skip("no file system that folds case can be mounted here; set ZMQTRACK_FOLDING_DIR")


@pytest.mark.parametrize("kind", [JSONL, TensorBoard], ids=lambda kind: kind.__name__)
def test_runs_stay_apart_where_case_is_really_folded(real: Path, kind: type[Bench]) -> None:
    bench = kind(real / "bench")
    _runs_stay_apart(bench, _alike_runs(), at_once=True)
    bench.check_beside()
    bench.adapter.close()


def test_artifacts_stay_apart_where_case_is_really_folded(real: Path) -> None:
    _artifacts_stay_apart(MLflow(real / "bench"))


# --- links that somebody put there ---------------------------------------------------------


def test_a_link_in_place_of_a_file_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("victim")
    run = RunKey("e", "r", "s")
    for name in ("s.jsonl", "s.files/.part"):
        bench = JSONL(tmp_path / safe_name(name))
        link = bench.out / "e" / "r" / name
        link.parent.mkdir(parents=True)
        link.symlink_to(victim)
        (bench.beside / "file").write_text("content")
        artifact = Record("a", bench.beside / "file", None, T)
        batch = bench.batch(run, "artifact", artifact)
        if name == "s.jsonl":
            with pytest.raises(Blocked, match=r"writing is not permitted: .*s\.jsonl"):
                bench.adapter.deliver([batch])
            link.unlink()
            link.symlink_to(tmp_path / "new")
            with pytest.raises(Blocked, match=r"writing is not permitted: .*s\.jsonl"):
                bench.adapter.deliver([batch])
        else:
            bench.adapter.deliver([batch])
            assert bench.files() == [b"content"]
        bench.adapter.close()
    ledger = Ledger(tmp_path, logging.getLogger("test"))
    ledger.open(b"")
    (tmp_path / "link").symlink_to(victim)
    with pytest.raises(Blocked, match=r"writing is not permitted: .*link"):
        ledger.append({tmp_path / "link": b"more"})
    ledger.close()
    assert victim.read_text() == "victim"
    assert not (tmp_path / "new").exists()


def test_an_artifact_that_is_a_link_at_the_writer_is_a_file_in_the_tracker(bench: Bench) -> None:
    secret = bench.beside / "file"
    secret.write_bytes(b"12345")
    bench.give(bench.batch(RunKey("e", "r", "s"), "artifact", Record("link", secret, None, T)))
    bench.check_beside()
    files = bench.files()
    assert files == ([b"5"] if isinstance(bench, TensorBoard) else [b"12345"])
