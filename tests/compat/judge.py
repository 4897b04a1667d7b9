"""Says of each record of the real tool whether it is here, was announced, or went astray."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from .facts import Fact

__all__ = ["Verdict", "judge"]

_GRAPHS = ("add_graph", "add_onnx_graph", "add_openvino_graph")

#: Kind → parts of the names under which calls of that kind are announced.
ANNOUNCED_AS = {
    # TensorBoard
    "audio": ("add_audio",),
    "custom_scalars": ("add_custom_scalars",),
    "embedding": ("add_embedding",),
    "graph": _GRAPHS,
    "graphs": _GRAPHS,
    "graph_tagged_run_metadata": _GRAPHS,
    "mesh": ("add_mesh",),
    "pr_curves": ("add_pr_curve",),
    "tensor": ("add_tensor", "add_event", "add_summary"),
    "video": ("add_video",),
    # MLflow
    "dataset": ("dataset", "log_input"),
    "model": ("log_model", "register_model"),
    # W&B
    "audio-file": ("Audio",),
    "define_metric": ("define_metric",),
    "file": ("save",),
    "molecule-file": ("Molecule",),
    "object3D-file": ("Object3D",),
    "video-file": ("Video",),
}

#: Kinds whose records may not be here more often than in the real tool.
POINTS = ("metric", "scalar", "value")


@dataclass
class Verdict:
    """What became of one part's records.

    Attributes:
        records: how many the real tool has.
        arrived: how many of them are here.
        announced: how many are not, and were announced.
        differs: sentence → how many are not as there, which the documentation says.
        astray: what is neither here nor announced, or is here and should not be; a line each.
    """

    records: int = 0
    arrived: int = 0
    announced: int = 0
    differs: Counter[str] = field(default_factory=Counter)
    astray: list[str] = field(default_factory=list)


def judge(
    real: Mapping[str, Iterable[Fact]],
    here: Mapping[str, Iterable[Fact]],
    announced: Iterable[str] = (),
    varies: Iterable[str] = (),
    differs: Mapping[str, str] | None = None,
) -> Verdict:
    """Compare one part's runs, each a name with its facts.

    Args:
        announced: names of what was said or counted as not carried.
        varies, differs: as of :class:`compat.cases.Case`.
    """
    varies = tuple(varies)
    there = {run: [_comparable(fact, varies) for fact in facts] for run, facts in real.items()}
    ours = {run: [_comparable(fact, varies) for fact in facts] for run, facts in here.items()}
    wanted = Counter(fact for facts in there.values() for fact in facts)
    found = Counter(fact for facts in ours.values() for fact in facts)
    verdict = Verdict(records=wanted.total())
    lacking: dict[tuple[str, str], list[Fact]] = defaultdict(list)
    for fact, n in (wanted - found).items():
        known = _difference(fact, differs or {})
        if known:
            verdict.differs[known] += n
        elif any(form in found for form in _other_forms(fact)) or _within(fact, found):
            verdict.arrived += n
        elif any(part in name for part in ANNOUNCED_AS.get(fact.kind, ()) for name in announced):
            verdict.announced += n
        else:
            lacking[fact.kind, fact.key] += [fact] * n
    verdict.arrived += (wanted & found).total()
    keys = {(fact.kind, fact.key) for fact in wanted if fact.kind in POINTS}
    surplus: dict[tuple[str, str], list[Fact]] = defaultdict(list)
    for fact, n in (found - wanted).items():
        if (fact.kind, fact.key) in keys and not _difference(fact, differs or {}):
            surplus[fact.kind, fact.key] += [fact] * n
    verdict.astray += _told(lacking, surplus)
    verdict.astray += _misplaced(there, ours)
    return verdict


def _comparable(fact: Fact, varies: tuple[str, ...]) -> Fact:
    if any(fnmatchcase(fact.key, pattern) for pattern in varies):
        return fact._replace(value=None)
    return fact


def _difference(fact: Fact, differs: Mapping[str, str]) -> str:
    name = f"{fact.kind} {fact.key}"
    return next((why for pattern, why in differs.items() if fnmatchcase(name, pattern)), "")


def _other_forms(fact: Fact) -> Iterator[Fact]:
    """The forms that the documentation's tables give what a tracker-neutral record cannot be."""
    if fact.kind == "about":
        yield Fact("config", f"tag.{fact.key}", None, f'"{fact.value}"')
    elif fact.kind == "summary":
        yield Fact("config", f"tag.summary/{fact.key}", None, fact.value)
    elif fact.kind == "table-file":
        yield Fact("html-file", f"{fact.key}.md", fact.step)
    elif fact.kind == "images/separated":
        yield Fact("image-file", f"{fact.key}.0", fact.step)
    elif fact.kind == "plotly-file":
        yield Fact("html-file", f"{fact.key}.html", fact.step)


def _within(fact: Fact, found: Mapping[Fact, int]) -> bool:
    """Forms of which only a part compares."""
    if fact.kind == "about" and fact.key == "tags":
        return any(f.key == "tag.tags" and str(fact.value) in str(f.value) for f in found)
    if fact.kind == "summary":
        return any(f.key == f"summary/{fact.key}" and f.value == fact.value for f in found)
    return False


def _told(
    lacking: Mapping[tuple[str, str], list[Fact]], surplus: Mapping[tuple[str, str], list[Fact]]
) -> Iterator[str]:
    for kind, key in dict.fromkeys([*lacking, *surplus]):
        missing, extra = lacking.get((kind, key), []), surplus.get((kind, key), [])
        parts = [
            f"{what} {len(facts)} (first: step {facts[0].step}, {str(facts[0].value)[:60]})"
            for what, facts in (("lacks", missing), ("has besides", extra))
            if facts
        ]
        yield f"{kind} {key!r}: {'; '.join(parts)}"


def _misplaced(there: Mapping[str, list[Fact]], ours: Mapping[str, list[Fact]]) -> Iterator[str]:
    """Runs that are one in the real tool and several here, or the other way round.

    Told by the points that are in one run of each side alone.
    """
    where_there, where_here = _only_place(there), _only_place(ours)
    pairs = {
        (where_there[fact], where_here[fact])
        for fact in where_there.keys() & where_here.keys()
        # Of hyperparameters TensorBoard makes a run of its own.
        if not any(other.kind == "hparams" for other in there[where_there[fact]])
    }
    for side, other, what in ((0, 1, "is split here into"), (1, 0, "mixes here")):
        met: dict[str, set[str]] = defaultdict(set)
        for pair in pairs:
            met[pair[side]].add(pair[other])
        for run, others in sorted(met.items()):
            if len(others) > 1:
                yield f"run {run!r} {what} {sorted(others)}"


def _only_place(runs: Mapping[str, list[Fact]]) -> dict[Fact, str]:
    places: dict[Fact, set[str]] = defaultdict(set)
    for run, facts in runs.items():
        for fact in facts:
            if fact.kind in POINTS:
                places[fact].add(run)
    return {fact: min(where) for fact, where in places.items() if len(where) == 1}
