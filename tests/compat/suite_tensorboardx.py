"""tensorboardX's own tests, from its source distribution, and its examples, from a checkout."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from . import translate
from .cases import HERE, Case, Skipped, Sources


def cases(sources: Sources) -> Iterator[Case | Skipped]:
    try:
        tests = _tests(sources.cache)
    except (PackageNotFoundError, subprocess.CalledProcessError, OSError) as error:
        yield Skipped("tensorboardX", f"no source distribution: {error}")
        return
    for path in sorted(tests.glob("test_*.py")):
        yield Case(
            f"tensorboardX.{path.stem}", "tensorboard", _Tests(tests, path.name), differs=DIFFERS
        )


#: Tests that look into what is no part of a writer's syntax.
DIFFERS: dict[str, str] = {
    "*test_wrong_input_size": "add_graph is announced and does not trace the model, so nothing "
    "raises where the model cannot take the input",
    "test_writer.*test_flush*": "the test reads the event file that tensorboardX's writer has "
    "open, and here the training process has none",
    "test_writer.*test_writer_with_default_metadata": "the test replaces tensorboardX's own "
    "EventFileWriter, which is not in use here",
}


class _Tests:
    """Puts the tests into a folder; one file of them is run."""

    def __init__(self, tests: Path, file: str) -> None:
        self.tests, self.file = tests, file

    def __call__(self, folder: Path, here: bool) -> list[str]:
        translate.copy(self.tests, folder, here)
        start = (
            f"import sys; sys.path[:0] = [{str(HERE)!r}, '.']; "  # for the plug-in
            "import pytest; sys.exit(pytest.main(sys.argv[1:]))"
        )
        options = ["-q", "-p", "each_alone", "-p", "no:cacheprovider", "-n", "0"]
        options += ["--timeout", "800", "--rootdir", "."]
        return [sys.executable, "-c", start, *options, f"tests/{self.file}"]


def _tests(cache: Path) -> Path:
    """The tests of the installed version, fetched once."""
    wanted = version("tensorboardX")
    folder = cache / f"tensorboardx-{wanted}"
    if not (folder / "tests").is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
                *("--no-binary", ":all:", "--dest", str(cache), f"tensorboardX=={wanted}"),
            ],
            check=True,
        )
        with tarfile.open(cache / f"{folder.name}.tar.gz") as archive:
            archive.extractall(cache, filter="data")
    return folder / "tests"
