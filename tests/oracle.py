"""What was logged, against what each tracker shows: the invariants of the fault tests.

I1 nothing is lost: what ``flush`` returned for is delivered, a dead letter, or a counted loss;
I2 nothing comes twice; I3 nothing comes that was not logged. Order (G4) is checked where the
tracker has one.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent

#: Metrics that are logged between two calls of flush.
BLOCK = 50


class Seen(NamedTuple):
    """One metric as a tracker shows it."""

    site: str
    key: str
    value: float
    step: int
    time: float


def record(ident: int) -> tuple[str, float, int, float]:
    """The metric with this id: (key, value, step, time). The value is the id.

    Steps repeat and go back; times have whole milliseconds, which every tracker can hold.
    """
    return f"key-{ident % 7}", float(ident), ident // 3 - (ident % 11), 1_700_000_000 + ident / 1000


class More(NamedTuple):
    """A text or a file (``kind``) as a tracker shows it, known by its id."""

    site: str
    kind: str
    ident: int


def text(ident: int) -> str:
    """What is logged as text behind the metric with this id."""
    return f"text {ident}"


def has_file(ident: int) -> bool:
    return (ident + 1) % (10 * BLOCK) == 0


def content(site: str, ident: int) -> bytes:
    """What is logged as a file behind the metric with this id: it travels in several batches."""
    return hashlib.shake_256(f"{site} {ident}".encode()).digest(1_300_000)


@dataclass
class Site:
    """The ledgers of one site's processes."""

    name: str
    folder: Path
    started: list[Path] = field(default_factory=list)
    next_id: int = 0

    def start(
        self, address: str, count: int, *, pause: float = 0.0, env: dict[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Begin a process that logs the next ``count`` ids to the daemon at ``address``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        ledger = self.folder / f"{self.name}-{len(self.started)}.ledger"
        self.started.append(ledger)
        first, self.next_id = self.next_id, self.next_id + count
        return subprocess.Popen(
            [sys.executable, str(HERE / "logging_site.py"), str(ledger), self.name, str(first),
             str(count), str(pause)],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(
                    [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
                ),
                "ZMQTRACK_ADDRESS": address,
                "ZMQTRACK_EXPERIMENT": "faults",
                "ZMQTRACK_RUN": "run",
                **(env or {}),
            },
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    def _ids(self, word: str) -> set[int]:
        """Ids that the ledgers name: each ledger begins where the one before it was to end."""
        ids: set[int] = set()
        for ledger in self.started:
            lines = ledger.read_text().splitlines() if ledger.exists() else []
            numbers = [int(line.split()[1]) for line in lines if line.startswith(word)]
            first = [int(line.split()[1]) for line in lines if line.startswith("tried")]
            if numbers:
                ids |= set(range(first[0] - first[0] % 50, max(numbers) + 1))
        return ids

    @property
    def tried(self) -> set[int]:
        """May have been logged."""
        return self._ids("tried")

    @property
    def kept(self) -> set[int]:
        """Flush has returned for them: must not be lost."""
        return self._ids("kept")


def check(sites: list[Site], shown: list[Seen], *, forgiven: int = 0) -> None:
    """Assert I1 to I3 for one tracker; ``forgiven`` records are accounted for elsewhere."""
    counted = Counter(shown)
    twice = [seen for seen, n in counted.items() if n > 1]
    assert not twice, f"I2: {len(twice)} records came more than once, for example {twice[:3]}"
    missing = []
    allowed = set()
    for site in sites:
        allowed |= {Seen(site.name, *record(ident)) for ident in site.tried}
        missing += [
            ident for ident in sorted(site.kept) if Seen(site.name, *record(ident)) not in counted
        ]
    strange = [seen for seen in counted if seen not in allowed]
    assert not strange, f"I3: {len(strange)} records were never logged, for example {strange[:3]}"
    assert len(missing) == forgiven, (
        f"I1: {len(missing)} records are missing, {forgiven} are accounted for; "
        f"for example {missing[:10]}"
    )


def check_more(sites: list[Site], shown: list[More]) -> None:
    """Assert I1 to I3 for texts and files, of sites that had LOG_MORE in their environment."""
    counted = Counter(shown)
    twice = [seen for seen, n in counted.items() if n > 1]
    assert not twice, f"I2: {len(twice)} came more than once, for example {twice[:3]}"
    must = {more for site in sites for more in _more(site.name, site.kept)}
    may = {more for site in sites for more in _more(site.name, site.tried)}
    assert must <= counted.keys(), f"I1: missing are {sorted(must - counted.keys())[:10]}"
    assert counted.keys() <= may, f"I3: never logged were {sorted(counted.keys() - may)[:10]}"


def _more(site: str, ids: set[int]) -> set[More]:
    blocks = [ident for ident in ids if (ident + 1) % BLOCK == 0]
    return {More(site, "text", ident) for ident in blocks} | {
        More(site, "file", ident) for ident in blocks if has_file(ident)
    }


def check_order(shown: list[Seen]) -> None:
    """Assert that each site's records stand in the order in which they were logged.

    Only for sites whose ids were logged by one process after another.
    """
    last: dict[str, float] = {}
    for seen in shown:
        assert seen.value > last.get(seen.site, -1.0), f"G4: {seen} comes after {last[seen.site]}"
        last[seen.site] = seen.value


def read_jsonl(folder: Path) -> list[Seen]:
    """All metrics that the jsonl adapter has written below ``folder``."""
    return [
        Seen(path.stem, line["key"], line["value"], line["step"], line["time"])
        for path in sorted(folder.glob("*/*/*.jsonl"))
        for line in map(json.loads, path.read_text().splitlines())
        if line["type"] == "metric"
    ]


def read_tensorboard(folder: Path) -> list[Seen]:
    """All scalars in the event files below ``folder``, by TensorBoard's own loader."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob("*/*/*/events.out.tfevents.*")):
        for raw in RawEventFileLoader(str(path)).Load():
            event = Event.FromString(raw)
            found += [
                Seen(path.parent.name, value.tag, value.simple_value, event.step, event.wall_time)
                for value in event.summary.value
                if value.WhichOneof("value") == "simple_value"
            ]
    return found


def read_mlflow(tracking_uri: str) -> list[Seen]:
    """All metrics of all runs that have the tag of a site, by MLflow's own client."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = []
    for run in client.search_runs(experiments, "tags.`zmqtrack.site` != ''", max_results=1000):
        site = run.data.tags["zmqtrack.site"]
        for key in run.data.metrics:
            found += [
                Seen(site, m.key, m.value, m.step, m.timestamp / 1000)
                for m in client.get_metric_history(run.info.run_id, key)
            ]
    return found


# --- texts and files -----------------------------------------------------------------------------


def more_of_jsonl(folder: Path) -> list[More]:
    """Texts, and files whose content is right, that the jsonl adapter has written."""
    found = []
    for path in sorted(folder.glob("*/*/*.jsonl")):
        for line in map(json.loads, path.read_text().splitlines()):
            if line["type"] == "text":
                found.append(_text_seen(path.stem, line["value"]))
            elif line["type"] == "artifact":
                data = (path.parent / line["value"]["file"]).read_bytes()
                found.append(_file_seen(path.stem, line["key"], data))
    return found


def more_of_tensorboard(folder: Path) -> list[More]:
    """Texts, and the texts that stand for files, in the event files."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob("*/*/*/events.out.tfevents.*")):
        site = path.parent.name
        for raw in RawEventFileLoader(str(path)).Load():
            for value in Event.FromString(raw).summary.value:
                if value.tag == "note/text_summary":
                    found.append(_text_seen(site, value.tensor.string_val[0].decode()))
                elif value.tag.startswith("artifact/"):
                    found.append(More(site, "file", _ident(value.tag.partition("/")[2])))
    return found


def more_of_mlflow(tracking_uri: str, folder: Path) -> list[More]:
    """Lines of the text, and files whose content is right; ``folder`` takes what is downloaded."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = []
    for run in client.search_runs(experiments, "tags.`zmqtrack.site` != ''", max_results=1000):
        site = run.data.tags["zmqtrack.site"]
        target = folder / run.info.run_id
        target.mkdir(parents=True)
        root = Path(client.download_artifacts(run.info.run_id, "", str(target)))
        for path in sorted(root.rglob("*")):
            if path.suffix == ".txt":
                found += [_text_seen(site, line) for line in path.read_text().splitlines()]
            elif path.suffix == ".bin":
                found.append(_file_seen(site, path.name, path.read_bytes()))
    return found


def read_wandb(folder: Path) -> tuple[list[Seen], list[More]]:
    """Metrics, texts and files in the offline runs below ``folder``."""
    import readers_wandb

    metrics, more = [], []
    for row in readers_wandb.read_wandb(folder):
        if row.type == "metric":
            assert row.step is not None and row.time is not None
            metrics.append(Seen(row.site, row.key, row.value, row.step, row.time))
        elif row.type == "text":
            more.append(_text_seen(row.site, row.value))
        elif row.type == "artifact":
            more.append(_file_seen(row.site, row.key, row.value))
    return metrics, more


def _text_seen(site: str, value: str) -> More:
    assert value == text(int(value.split()[1])), f"I3: {value!r} was never logged"
    return More(site, "text", int(value.split()[1]))


def _file_seen(site: str, name: str, data: bytes) -> More:
    assert data == content(site, _ident(name)), f"I3: {name} of {site} has another content"
    return More(site, "file", _ident(name))


def _ident(name: str) -> int:
    return int(name.removeprefix("file-").removesuffix(".bin"))
