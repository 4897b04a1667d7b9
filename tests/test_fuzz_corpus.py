"""What the fuzzers (tests/fuzz) found interesting goes through decoders and daemon again."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))

import fuzz_control
import fuzz_wire

FUZZ = Path(__file__).parent / "fuzz"
#: Under what a frame that is refused may be counted.
REFUSED = {"bad_body", "bad_control", "bad_header", "bad_type", "bad_version", "empty"}


def _inputs(name: str, program: ModuleType) -> list[bytes]:
    files = sorted((FUZZ / "corpus" / name).iterdir())
    assert files, "the corpus is missing"
    return [*(file.read_bytes() for file in files), *program.seeds()]


def _once(program: ModuleType, inputs: list[bytes]) -> Counter[str]:
    """Run all inputs; each is counted, once, under what came of it."""
    program.outcomes.clear()
    seen: Counter[str] = Counter()
    for data in inputs:
        seen[program.run(data)] += 1
    assert program.outcomes == seen and sum(seen.values()) == len(inputs)
    return seen


@pytest.fixture(autouse=True)
def _daemon_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield
    fuzz_control.close()


def test_the_corpus_is_small() -> None:
    files = [file for file in (FUZZ / "corpus").rglob("*") if file.is_file()]
    assert len(files) < 300
    assert sum(file.stat().st_size for file in files) < 300_000


def test_every_frame_of_the_corpus_is_decoded_or_refused() -> None:
    seen = _once(fuzz_wire, _inputs("wire", fuzz_wire))
    assert seen.keys() <= REFUSED | {"decoded"}
    for outcome in ("decoded", "bad_body", "bad_control", "bad_header", "bad_type", "bad_version"):
        assert seen[outcome], f"no input of the corpus ends as {outcome}"


def test_every_message_of_the_corpus_is_answered_or_refused_by_the_daemon() -> None:
    inputs = _inputs("control", fuzz_control)
    seen = _once(fuzz_control, inputs)
    assert seen["welcome"] and seen["committed"] and seen["bad_control"]
    # Nothing stays from one input to the next.
    assert _once(fuzz_control, inputs[::-1]) == seen
