"""What W&B's own forms are on their way, and in W&B again; rows of which a value is in pieces."""

from __future__ import annotations

import io
import logging
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from zmqtrack.adapters.artifacts import Assembler, load
from zmqtrack.adapters.base import Context
from zmqtrack.adapters.wandb_values import as_logged

import zmqtrack.writers.wandb
from harness import Daemon
from readers_wandb import folders, history
from spooled import Spooled, spool_fixture  # noqa: F401 -- a fixture
from test_adapter_wandb import Make, home, make  # noqa: F401 -- fixtures
from test_wandb_native import _restore_environment, run_ours, run_real, wandb_adapter  # noqa: F401
from zmqtrack import wire
from zmqtrack.spool import Spool, orphans
from zmqtrack.wire import Batch

wandb = zmqtrack.writers.wandb

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize(
    ("columns", "data"),
    [
        (["a", "b|c"], [[1, "x | y"], [None, "z\\"]]),
        (["n"], [[1.5], [True], [2**60]]),
        (["s"], [["1"], [""], ["two\nlines"]]),
        (["x", "y"], []),
        (["x", "y"], [["", ""], [None, None]]),
    ],
)
def test_a_table_is_the_same_one_behind_its_way_as_markdown(
    spool: Spooled, columns: list[str], data: list[list[Any]]
) -> None:
    with wandb.WandBWriter(project="p") as run:
        run.log({"t": wandb.Table(columns=columns, data=data)})
    ((key, text, _),) = spool.values("text")
    assert key == "t.md"
    base, table = as_logged(key, text)
    assert (base, table.columns) == ("t", columns)
    if data != [["", ""], [None, None]]:  # None beside text is text
        assert table.data == data


def test_a_text_that_only_looks_like_a_form_stays_a_text() -> None:
    assert as_logged("plain", "[1]") == ("plain", "[1]")
    assert as_logged("a.json", "no json") == ("a.json", "no json")
    key, page = as_logged("notes.md", "# no table")
    assert (key, page.html) == ("notes.md", "<pre># no table</pre>")


FORMS = """
import numpy as np
grey = np.full((2, 3, 3), 100, "uint8")
run = wandb.init(project="p", name="forms")
run.log({"loss": 1.0, "two": [wandb.Image(grey, caption="a"), wandb.Image(grey[:1], caption="b")]})
run.log({"page": wandb.Html("<p>", inject=False), "list": [1, "a", None], "empty": []})
run.log({"x.html": wandb.Html("<p>", inject=False), "after": 1})
run.log({"table": wandb.Table(columns=["n", "s"], data=[[1, "x"], [2.5, "y"]])})
run.log({"late": 1}, commit=False)
run.log({"pair": [wandb.Image(grey), wandb.Image(grey)]})
wandb.finish(exit_code=7)
"""


def told(directory: Path) -> list[dict[str, Any]]:
    """Rows, where the name of a file is left out, and its text is read."""
    [parts] = folders(directory).values()
    found = []
    for row in history(directory):
        row = {k: v for k, v in row.items() if k not in ("_runtime", "_timestamp")}
        for key, value in row.items():
            if isinstance(value, dict):
                files = value.get("filenames") or [value["path"]]
                for name in files:
                    assert any((folder / "files" / name).is_file() for folder, _ in parts)
                left = {"path", "filenames", "size", "sha256", "artifact_path"}
                left.add("_latest_artifact_path")
                row[key] = {k: v for k, v in value.items() if k not in left}
        found.append(row)
    return found


def exit_code(directory: Path) -> int:
    [parts] = folders(directory).values()
    return [r.exit.exit_code for _, records in parts for r in records if r.HasField("exit")][-1]


def test_wandb_shows_its_own_forms_as_its_own_tool_makes_them(
    daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    run_real(FORMS, tmp_path / "real")
    with daemon([wandb_adapter(tmp_path / "out")]) as served:
        run_ours(FORMS, served, tmp_path)
    assert told(tmp_path / "out") == told(tmp_path / "real")
    assert exit_code(tmp_path / "out") == exit_code(tmp_path / "real") == 7


def batches(folder: Path) -> list[Batch]:
    """What a writer has spooled, as it comes to an adapter's process."""
    found = []
    for path in orphans(folder):
        spool = Spool.open(path)
        for one in spool.after(0, 1_000_000):
            header = wire.decode_header(one.header)
            records = wire.decode_body(one.type, header, one.body)
            found.append(Batch(one.type, header._replace(offset=one.seq), records))
        spool.close()
    return found


def test_a_row_with_an_image_in_pieces_is_one_also_where_an_adapter_ends_between_them(
    make: Make,  # noqa: F811
    spool: Spooled,
    tmp_path: Path,
) -> None:
    file = io.BytesIO()
    noise = random.Random(7).randbytes(1500 * 1000 * 3)
    Image.frombytes("RGB", (1500, 1000), noise).save(file, "PNG")
    assert len(file.getvalue()) > 4 << 20
    with wandb.WandBWriter(project="p", name="r") as run:
        run.log({"a": 0})
        run.log({"a": 1, "i": wandb.Image(file.getvalue()), "s": "said"})
        run.log({"a": 2})
    spool.finish()
    sent = batches(spool.folder)
    pieces = [place for place, one in enumerate(sent) if one.header.in_pieces]
    assert len(pieces) > 4
    state = tmp_path / "state"
    state.mkdir()
    adapter, assembler = make(), Assembler(Context("wandb", state, logging.getLogger("t"), {}))
    for place, one in enumerate(sent):
        ends_here = place in (pieces[0], pieces[-2], pieces[-1])
        for again in range(2 if ends_here else 1):  # the cursor was not committed, or it was
            whole = one
            if one.header.in_pieces:
                whole = assembler.assemble(one)
                whole = replace(whole, records=[load(one.type, record) for record in whole])
            if len(whole):
                adapter.deliver([whole])
            if ends_here and not again:
                adapter.close()
                adapter = make()
                assembler = Assembler(Context("wandb", state, logging.getLogger("t"), {}))
        assembler.committed()
    rows = [
        {k: v for k, v in row.items() if not k.startswith("_")} for row in history(tmp_path / "out")
    ]
    assert [sorted(row) for row in rows] == [["a"], ["a", "i", "s"], ["a"]]
    image = next((tmp_path / "out").rglob(Path(rows[1]["i"]["path"]).name))
    assert image.read_bytes() == file.getvalue()
