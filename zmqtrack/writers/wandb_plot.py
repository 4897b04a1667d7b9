"""``wandb.plot``: each chart is carried as the table that it is drawn from, and a note of it.

W&B draws these charts on its page, out of a table and the name of a preset; no other tracker has
them. The table goes as any Table does, and the text ``KEY.chart`` says which chart of which
columns it was made for.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from ..arrays import is_array, to_host
from ..run import Run as ZMQRun
from .wandb_errors import Error
from .wandb_media import Media, Table

__all__ = [
    "CustomChart", "Visualize", "bar", "confusion_matrix", "histogram", "line", "line_series",
    "plot_table", "pr_curve", "roc_curve", "scatter", "visualize",
]  # fmt: skip


class CustomChart(Media):
    """A chart, by its preset's name and the columns of a table."""

    def __init__(self, preset: str, table: Table, fields: dict[str, Any], strings: Any = None):
        self.preset = preset
        self.table = table
        self.fields = fields
        self.strings = dict(strings or {})

    def log_to(self, run: ZMQRun, key: str, step: int | None, time: float | None = None) -> None:
        self.table.log_to(run, key, step, time)
        parts = {**self.fields, **self.strings}
        facts = ", ".join(f"{part}: {value}" for part, value in parts.items() if value)
        run.log_text(f"{key}.chart", f"{self.preset} ({facts})", step, time)


#: W&B's older name of it.
Visualize = CustomChart


def plot_table(
    vega_spec_name: str,
    data_table: Table,
    fields: dict[str, Any],
    string_fields: dict[str, Any] | None = None,
    split_table: bool = False,
) -> CustomChart:
    """A chart of a preset of the user's own.

    Raises:
        Error: ``data_table`` is no Table.
    """
    if not isinstance(data_table, Table):
        raise Error(f"Expected `data_table` to be `wandb.Table` type, not {type(data_table)}")
    return CustomChart(vega_spec_name, data_table, fields, string_fields)


def visualize(id: str, value: Table) -> CustomChart:
    """A chart of a preset.

    Raises:
        Error: ``value`` is no Table.
    """
    return plot_table(id, value, {})


def line(
    table: Table,
    x: str,
    y: str,
    stroke: str | None = None,
    title: str = "",
    split_table: bool = False,
) -> CustomChart:
    return plot_table("line", table, {"x": x, "y": y, "stroke": stroke}, {"title": title})


def scatter(
    table: Table, x: str, y: str, title: str = "", split_table: bool = False
) -> CustomChart:
    return plot_table("scatter", table, {"x": x, "y": y}, {"title": title})


def bar(
    table: Table, label: str, value: str, title: str = "", split_table: bool = False
) -> CustomChart:
    return plot_table("bar", table, {"label": label, "value": value}, {"title": title})


def histogram(table: Table, value: str, title: str = "", split_table: bool = False) -> CustomChart:
    return plot_table("histogram", table, {"value": value}, {"title": title})


def line_series(
    xs: Iterable[Any],
    ys: Iterable[Iterable[Any]],
    keys: Iterable[str] | None = None,
    title: str = "",
    xname: str = "x",
    split_table: bool = False,
) -> CustomChart:
    """Lines ``ys`` over ``xs``, which is one for all, or one for each.

    Raises:
        ValueError: there are not as many of one as of the other.
    """
    lines = [_listed(y) for y in _listed(ys)]
    axes = _listed(xs)
    if not axes or not (isinstance(axes[0], (list, tuple, range)) or is_array(axes[0])):
        axes = [axes] * len(lines)
    names = list(keys) if keys is not None else [f"key_{n}" for n in range(len(lines))]
    if not len(axes) == len(lines) == len(names):
        raise ValueError("xs, ys and keys must be as many as each other")
    rows = [
        [x, name, y]
        for axis, name, values in zip(axes, names, lines, strict=True)
        for x, y in zip(_listed(axis), values, strict=False)
    ]
    table = Table(columns=["step", "lineKey", "lineVal"], data=rows)
    return plot_table("lineseries", table, {"step": "step"}, {"title": title, "xname": xname})


def confusion_matrix(
    probs: Any = None,
    y_true: Any = None,
    preds: Any = None,
    class_names: Sequence[str] | None = None,
    title: str = "Confusion Matrix Curve",
    split_table: bool = False,
) -> CustomChart:
    """How often each class was taken for each.

    Raises:
        ValueError: both or neither of ``probs`` and ``preds``, or no ``y_true`` of that length.
    """
    if y_true is None or (probs is None) == (preds is None):
        raise ValueError("Must provide y_true, and either probabilities or predictions, not both.")
    truth = _listed(y_true)
    guesses = (
        _listed(preds)
        if probs is None
        else [max(range(len(row)), key=row.__getitem__) for row in map(_listed, _listed(probs))]
    )
    if len(truth) != len(guesses):
        raise ValueError(f"y_true has {len(truth)} items, the predictions {len(guesses)}")
    classes = sorted({*truth, *guesses}, key=lambda one: (str(type(one)), one))
    if class_names is not None and all(isinstance(one, int) for one in classes):
        names = dict(enumerate(class_names))
    else:
        names = {}
    names = {**{one: names.get(one, f"Class_{one}") for one in classes}, **names}
    counts = dict.fromkeys(itertools.product(names, names), 0)
    for pair in zip(truth, guesses, strict=True):
        counts[pair] += 1
    rows = [[names[actual], names[guess], n] for (actual, guess), n in counts.items()]
    table = Table(columns=["Actual", "Predicted", "nPredictions"], data=rows)
    fields = {"Actual": "Actual", "Predicted": "Predicted", "nPredictions": "nPredictions"}
    return plot_table("confusion_matrix", table, fields, {"title": title})


def roc_curve(
    y_true: Any,
    y_probas: Any = None,
    labels: Sequence[str] | None = None,
    classes_to_plot: Sequence[Any] | None = None,
    title: str = "ROC Curve",
    split_table: bool = False,
) -> CustomChart | None:
    """False against true positives, for each class; ``y_probas`` has a column for each."""
    rows = [
        [name, round(wrong / max(negative, 1), 3), round(right / max(positive, 1), 3)]
        for name, curve in _curves(y_true, y_probas, labels, classes_to_plot)
        for right, wrong, positive, negative in curve
    ]
    if not rows:
        return None
    table = Table(columns=["class", "fpr", "tpr"], data=rows)
    return plot_table("roc", table, {"x": "fpr", "y": "tpr", "class": "class"}, {"title": title})


def pr_curve(
    y_true: Any = None,
    y_probas: Any = None,
    labels: Sequence[str] | None = None,
    classes_to_plot: Sequence[Any] | None = None,
    interp_size: int = 21,
    title: str = "Precision-Recall Curve",
    split_table: bool = False,
) -> CustomChart | None:
    """Precision at ``interp_size`` values of recall, for each class."""
    rows: list[list[Any]] = []
    for name, curve in _curves(y_true, y_probas, labels, classes_to_plot):
        recalls = [right / max(positive, 1) for right, _, positive, _ in curve]
        precisions = [right / (right + wrong) for right, wrong, _, _ in curve[1:]]
        for number in range(interp_size):
            recall = number / max(interp_size - 1, 1)
            place = min(max(bisect.bisect_left(recalls, recall), 1), len(precisions))
            rows.append([name, round(precisions[place - 1], 3), round(recall, 3)])
    if not rows:
        return None
    table = Table(columns=["class", "precision", "recall"], data=rows)
    fields = {"x": "recall", "y": "precision", "class": "class"}
    return plot_table("area-under-curve", table, fields, {"title": title})


def _curves(
    y_true: Any, y_probas: Any, labels: Sequence[str] | None, wanted: Sequence[Any] | None
) -> Iterable[tuple[str, list[tuple[int, int, int, int]]]]:
    """By class: true and false positives at each threshold, and how many there are of each."""
    if y_true is None or y_probas is None:
        return
    truth, scores = _listed(y_true), [_listed(row) for row in _listed(y_probas)]
    for number, one in enumerate(sorted(set(truth))):
        if wanted is not None and one not in wanted:
            continue
        name = labels[number] if labels is not None and number < len(labels) else str(one)
        pairs = zip(scores, truth, strict=True)
        order = sorted(((row[number], is_one == one) for row, is_one in pairs), reverse=True)
        positive = sum(hit for _, hit in order)
        right = wrong = 0
        curve = [(0, 0, positive, len(order) - positive)]
        for _, group in itertools.groupby(order, key=lambda item: item[0]):
            hits = [hit for _, hit in group]
            right, wrong = right + sum(hits), wrong + len(hits) - sum(hits)
            curve.append((right, wrong, positive, len(order) - positive))
        yield name, curve


def _listed(values: Any) -> list[Any]:
    values = to_host(values) if is_array(values) else values
    return list(values.tolist() if is_array(values) else values)
