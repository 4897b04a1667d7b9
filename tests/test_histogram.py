from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from zmqtrack.histogram import MAX_BINS, check_summary, summarise
from zmqtrack.records import check_values

NAN, INF = math.nan, math.inf


def test_counts_lie_between_edges_and_the_last_bin_holds_both_of_its_edges() -> None:
    summary = summarise([0, 1, 2, 3, 4], bins=2)
    assert summary["counts"] == [2, 3]
    assert summary["edges"] == [0.0, 2.0, 4.0]
    assert (summary["min"], summary["max"], summary["num"]) == (0, 4, 5)
    assert (summary["sum"], summary["sum_squares"]) == (10, 30)


@pytest.mark.parametrize(
    "values",
    [
        [[1.0, 2.0], [3.0, 4.0]],
        ((1, 2), 3, [4]),
        np.array([[1, 2], [3, 4]]),
        np.array([1, 2, 3, 4], dtype=np.float16),
        torch.tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True),
        torch.tensor([1, 2, 3, 4], dtype=torch.bfloat16),
        torch.nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]])),
        torch.tensor([[1.0, 2.0], [3.0, 4.0]]).to_sparse(),
        [torch.tensor(1.0), np.float32(2), np.array([3, 4])],
        (number for number in (1, 2, 3, 4)),
        range(1, 5),
    ],
    ids=lambda values: f"{type(values).__name__}-{getattr(values, 'dtype', '')}",
)
def test_numbers_come_in_lists_arrays_and_tensors(values: Any) -> None:
    summary = summarise(values, bins=3)
    assert summary["counts"] == [1, 1, 2]
    assert summary["sum"] == 10
    assert all(type(count) is int for count in summary["counts"])
    assert all(type(edge) is float for edge in summary["edges"])
    check_values("histogram", [summary])


def test_lists_and_arrays_are_counted_alike_with_every_rule() -> None:
    random = np.random.default_rng(7)
    values = np.concatenate([random.normal(size=400), [-5.0, 5.0]])
    for bins in ("tensorflow", "auto", "fd", "scott", "rice", "sturges", "sqrt", 1, 50):
        of_list, of_array = summarise(values.tolist(), bins), summarise(values, bins)
        assert of_list["counts"] == of_array["counts"], bins
        assert of_list["edges"] == pytest.approx(of_array["edges"])
        assert sum(of_list["counts"]) == 402
        if bins != "tensorflow":
            assert of_array["counts"] == np.histogram(values, bins)[0].tolist(), bins


def test_tensorflow_bins_are_those_of_torchs_writer() -> None:
    from torch.utils.tensorboard.summary import make_histogram

    values = np.random.default_rng(1).normal(size=500)
    grid, edge = [], 1e-12
    while edge < 1e20:
        grid.append(edge)
        edge *= 1.1
    proto = make_histogram(values, [-e for e in reversed(grid)] + [0] + grid)
    ours = summarise(values, "tensorflow")
    # Torch's first bucket is an empty one, there for its right limit.
    assert list(proto.bucket)[1:] == ours["counts"]
    assert list(proto.bucket_limit) == pytest.approx(ours["edges"])


def test_values_that_are_not_finite_are_counted_beside_the_bins() -> None:
    for values in ([1.0, NAN, INF, INF, -INF, 3.0], np.array([1.0, NAN, INF, INF, -INF, 3.0])):
        summary = summarise(values, bins=2)
        assert summary["counts"] == [1, 1]
        assert (summary["nan"], summary["inf"], summary["-inf"]) == (1, 2, 1)
        assert (summary["min"], summary["max"], summary["num"]) == (1, 3, 2)


def test_a_histogram_of_nan_alone_says_so_and_does_not_raise() -> None:
    for values in ([NAN, NAN], torch.tensor([NAN, NAN])):
        summary = summarise(values)
        assert summary["nan"] == 2
        assert summary["counts"] == [0]
        assert math.isnan(summary["min"])
        check_values("histogram", [summary])


@pytest.mark.parametrize("bins", ["tensorflow", "auto", "fd", "scott", 64, 1])
@pytest.mark.parametrize(
    "values",
    [[0.0], [3.0, 3.0], [1e300], [-1e308, 1e308], [1.0, 1.0 + 2**-52], [0, 1e-300], [1e25, -1e25]],
)
def test_every_finite_value_is_in_a_bin(values: list[float], bins: Any) -> None:
    for given in (values, np.array(values)):
        summary = summarise(given, bins)
        assert sum(summary["counts"]) == len(values)
        edges = summary["edges"]
        assert all(math.isfinite(edge) for edge in edges)
        assert edges == sorted(set(edges))


def test_an_outlier_does_not_make_a_million_bins() -> None:
    summary = summarise([*range(1000), 1e12], bins="fd")
    assert len(summary["counts"]) <= MAX_BINS


def test_edges_can_be_given_and_what_lies_outside_is_in_no_bin() -> None:
    for values in ([0, 1, 2, 9], np.array([0, 1, 2, 9])):
        summary = summarise(values, bins=np.array([1.0, 2.0, 3.0]))
        assert summary["counts"] == [1, 1]
        assert (summary["min"], summary["max"], summary["num"]) == (0, 9, 4)


def test_a_ready_summary_is_completed() -> None:
    summary = summarise({"counts": np.array([1, 3]), "edges": np.array([0.0, 1.0, 2.0])})
    assert summary == {
        "counts": [1, 3],
        "edges": [0.0, 1.0, 2.0],
        "min": 0.0,
        "max": 2.0,
        "num": 4,
        "sum": 5.0,
        "sum_squares": 7.0,
    }
    assert check_summary(summary) == summary


@pytest.mark.parametrize(
    ("summary", "message"),
    [
        ({"counts": [1]}, "'edges'"),
        ({"counts": [1], "edges": [0, 1, 2]}, "1 counts need 2 edges"),
        ({"counts": [1], "edges": [1, 0]}, "increase"),
        ({"counts": [-1], "edges": [0, 1]}, "negative"),
    ],
)
def test_a_summary_that_does_not_hold_together_is_refused(summary: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        summarise(summary)


@pytest.mark.parametrize("values", [[], [[]], np.array([]), torch.tensor([])])
def test_no_values_are_refused(values: Any) -> None:
    with pytest.raises(ValueError, match="at least one value"):
        summarise(values)


@pytest.mark.parametrize(
    "values", ["text", [1, "2"], [None], 1 + 2j, np.array([1 + 2j]), np.array(["a"]), [10**400]]
)
def test_what_is_no_number_is_refused(values: Any) -> None:
    with pytest.raises(TypeError, match="histogram is made of"):
        summarise(values)


@pytest.mark.parametrize("bins", [0, -1, True, MAX_BINS + 1, "many", [1.0], [2.0, 1.0]])
def test_bins_that_cannot_be_used_are_refused(bins: Any) -> None:
    with pytest.raises(ValueError, match=r"bins|edges"):
        summarise([1, 2, 3], bins)


def test_neither_numpy_nor_torch_is_imported_for_lists() -> None:
    code = (
        "import sys\n"
        "sys.modules['numpy'] = sys.modules['torch'] = None\n"
        "from zmqtrack.histogram import summarise\n"
        "from zmqtrack.image import encode_image\n"
        "print(summarise([0.0, 1.0, 4.0], 'auto')['counts'], len(encode_image([[0.5]])))\n"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert printed.stdout.startswith("[2, "), printed.stderr
