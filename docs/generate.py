"""Writes what follows from the code.

That is docs/configuration.md and configs/zmqtrack.schema.json, from the schema of the YAML, and the
table of commands in docs/cli.md.

``make docs`` runs it. With ``--check`` it writes nothing, and fails if a file is not what it would
write; a test does that.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path, PurePath
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from zmqtrack.adapters import loader
from zmqtrack.adapters.base import Options

from zmqtrack import config
from zmqtrack.cli.app import app
from zmqtrack.config import AdapterConfig, Config, DaemonConfig, LimitsConfig, Secret

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "configuration.md"
SCHEMA = ROOT / "configs" / "zmqtrack.schema.json"
COMMANDS = ROOT / "docs" / "cli.md"
SMALLEST = ROOT / "configs" / "zmqtrack.yaml"
OURS = "zmqtrack.adapters."

#: How the types that have a notation of their own are called, in messages and here.
KINDS: dict[Any, str] = {
    config.Duration: "duration",
    config.Size: "size",
    config.Address: "address",
    config.HostPort: "HOST:PORT",
    config.Topic: "data type",
    config.Name: "name",
    config.Variable: "variable",
    config.Credential: "name",
}
PLAIN = {bool: "true or false", int: "integer", float: "number", str: "text", Path: "path"}

#: Units from the largest down, as the YAML takes them.
DURATIONS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1), ("ms", 0.001))
SIZES = (
    *(("GiB", 1 << 30), ("GB", 10**9), ("MiB", 1 << 20), ("MB", 10**6)),
    *(("KiB", 1 << 10), ("kB", 10**3)),
)

HEAD = """\
<!-- Written by docs/generate.py from the schema: change it there, then run `make docs`. -->

# Configuration

One YAML file tells the daemon all; it is read at the start and at `zmqtrack reload`. The smallest
that is useful:

```yaml
{smallest}```

[configs/reference.yaml](../configs/reference.yaml) has every key with its comment, to copy from.
`zmqtrack check FILE` says what is wrong with a file, by file, line and key, and what would be
right; an unknown key is an error. `daemon`, `adapters` and `include` may each be left out.

What a running daemon cannot change takes effect at its next start; a reload says which.

- **duration**: a number with `ms`, `s`, `m`, `h` or `d`, such as `500ms`, `5m` or `7d`; without a
  unit, seconds.
- **size**: a number with `B`, `kB`, `MB`, `GB` (of 1000) or `KiB`, `MiB`, `GiB` (of 1024); without
  a unit, bytes.
- **address**: `tcp://HOST:PORT` or `ipc://PATH`.
- **path**: relative to the folder in which the daemon is started; that of a secret to the file that
  names it.

[configs/zmqtrack.schema.json](../configs/zmqtrack.schema.json) says the same as JSON Schema, for
editors. The line by which yaml-language-server is told where it is:

```yaml
# yaml-language-server: $schema=zmqtrack.schema.json
```
"""

SECRETS = """\
```yaml
secrets:
  WANDB_API_KEY: {file: wandb.token}            # chmod 600
  MLFLOW_TRACKING_TOKEN: {credential: mlflow}   # systemd: LoadCredential=mlflow:PATH
  MLFLOW_TRACKING_PASSWORD: {env: MLFLOW_PASS}
```
"""

INCLUDE = """\
## include

{} Each file holds one adapter (a mapping with `type`), a list of them, or a list under `adapters`:
one more adapter is one more file.
"""

OPTIONS = """\
## Options of the adapters

What stands under `options` is the adapter's own. [One of your own](adapters.md) has those that its
class names.
"""


def page() -> str:
    parts = [HEAD.format(smallest=_without_comments(SMALLEST.read_text()))]
    parts += [
        "## daemon\n",
        _table(DaemonConfig),
        _section("### daemon.limits", LimitsConfig),
        "## adapters\n\nA list, one item for each tracker.\n",
        _table(AdapterConfig),
        _section("### adapters[].secrets", Secret),
        SECRETS,
        INCLUDE.format(Config.model_fields["include"].description),
        OPTIONS,
        *(_section(f"### {name}", options) for name, options in built_in()),
    ]
    return "\n".join(parts)


def schema() -> str:
    """JSON Schema, by which editors complete and check the YAML."""
    whole: dict[str, Any] = Config.model_json_schema()
    definitions = whole["$defs"]
    by_type: list[dict[str, Any]] = []
    for name, options in built_in():
        definitions[f"options of {name}"] = options.model_json_schema()
        then: dict[str, Any] = {"properties": {"options": {"$ref": f"#/$defs/options of {name}"}}}
        if any(field.is_required() for field in options.model_fields.values()):
            then["required"] = ["options"]
        by_type.append({"if": {"properties": {"type": {"const": name}}}, "then": then})
    definitions["AdapterConfig"]["allOf"] = by_type
    _without_titles(whole)
    whole = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Configuration of zmqtrackd",
        **whole,
    }
    return json.dumps(whole, indent=2) + "\n"


def built_in() -> Iterator[tuple[str, type[BaseModel]]]:
    """Name and options of the adapters that come with zmqtrack; what they need is not imported."""
    for name, point in sorted(loader.known().items()):
        if point.value.startswith(OURS):
            yield name, point.load().Options


def with_commands(text: str) -> str:
    """``text`` with the table of commands between its two marks."""
    lines = ["| command | what it does |", "| --- | --- |"]
    for path, command in commands(typer.main.get_command(app)):
        usage = "".join(
            f" {_argument(each)}" for each in command.params if each.param_type_name == "argument"
        )
        first = inspect.cleandoc(command.help).partition("\n\n")[0].replace("\n", " ")
        lines.append(f"| `zmqtrack {path}{usage}` | {first} |")
    table = "\n".join(lines)
    return re.sub(
        r"(<!-- commands: .*?-->\n).*(<!-- end of commands -->)",
        lambda marks: f"{marks[1]}\n{table}\n\n{marks[2]}",
        text,
        flags=re.DOTALL,
    )


def _argument(argument: Any) -> str:
    name = argument.metavar or argument.name.upper() + ("…" if argument.nargs != 1 else "")
    return name if argument.required else f"[{name}]"


def commands(group: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Each command that a person can run, with its name; hidden ones are not theirs."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{path}{name} ")
        elif not command.hidden:
            yield f"{path}{name}", command


# --- the page ----------------------------------------------------------------------------


def _section(title: str, model: type[BaseModel]) -> str:
    own = model.__doc__ if model.__doc__ != Options.__doc__ else None
    doc = f"{' '.join(inspect.cleandoc(own).split())}\n\n" if own else ""
    return f"{title}\n\n{doc}{_table(model)}"


def _table(model: type[BaseModel]) -> str:
    lines = ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in model.model_fields.items():
        if not field.description:
            raise SystemExit(f"{model.__name__}.{name} has no description")
        cells = [f"`{name}`", _value(field), _default(field), field.description]
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _value(field: FieldInfo) -> str:
    """What may be written there."""
    text = _kind(field.annotation, tuple(field.metadata))
    for bound in field.metadata:
        for name, form in (("gt", "more than {}"), ("ge", "{} or more"), ("le", "{} at most")):
            if (limit := getattr(bound, name, None)) is not None:
                text += ", " + form.format(_number(limit, text.partition(",")[0]))
    return text


def _kind(annotation: Any, metadata: tuple[Any, ...] = ()) -> str:
    for kind, name in KINDS.items():
        if annotation == kind or (metadata and kind.__metadata__[0] in metadata):
            return name
    if annotation in PLAIN:
        return PLAIN[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:  # what is checked beside the kind stands in the description
        return _kind(arguments[0])
    if origin in (Union, UnionType):
        return " or ".join(_kind(one) for one in arguments if one is not NoneType)
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in arguments)
    if origin is list:
        return f"list of {_kind(arguments[0])}s".replace("texts", "text")
    if origin is dict or issubclass(annotation, BaseModel):
        return "mapping"
    raise SystemExit(f"no word for {annotation}: write it into docs/generate.py")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    if field.default_factory is not None or field.default is None:
        return ""  # the description says what then is
    if field.default is PydanticUndefined:
        return ""
    text = _number(field.default, _kind(field.annotation, tuple(field.metadata)))
    return f"`{text}`" if text else "empty"


def _number(value: Any, kind: str) -> str:
    """A value in the notation that the YAML takes."""
    if kind == "duration":
        return _with_unit(value, DURATIONS)
    if kind == "size":
        return _with_unit(value, SIZES)
    if isinstance(value, bool):
        return str(value).lower()
    return f"./{value}" if isinstance(value, PurePath) and value != Path() else str(value)


def _with_unit(value: float, units: tuple[tuple[str, float], ...]) -> str:
    for unit, factor in units:
        count = value / factor
        if count >= 1 and abs(count - round(count)) < 1e-9:
            return f"{round(count)}{unit}"
    return f"{value:g}"


def _without_comments(text: str) -> str:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    text = "\n".join(lines) + "\n"
    assert yaml.safe_load(text)
    return text


def _without_titles(schema: Any) -> None:
    """Pydantic makes titles of names; an editor would show them beside the names."""
    if isinstance(schema, dict):
        if isinstance(schema.get("title"), str):
            del schema["title"]
        for value in schema.values():
            _without_titles(value)
    elif isinstance(schema, list):
        for value in schema:
            _without_titles(value)


def main() -> int:
    parser = argparse.ArgumentParser(description="Write what follows from the schema.")
    parser.add_argument("--check", action="store_true", help="only say whether it is up to date")
    check = parser.parse_args().check
    stale = []
    made = ((PAGE, page()), (SCHEMA, schema()), (COMMANDS, with_commands(COMMANDS.read_text())))
    for path, text in made:
        if path.exists() and path.read_text() == text:
            continue
        stale.append(path.relative_to(ROOT))
        if not check:
            path.write_text(text)
    for path in stale:
        print(f"{path} differs from the schema: run  make docs" if check else f"wrote {path}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
