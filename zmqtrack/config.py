"""The YAML's schema, for the daemon, the adapters' processes and the CLI.

A training process never imports this: it needs pydantic and PyYAML.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from .control import DEFAULT_ADDRESS, check_address
from .errors import ConfigError
from .records import check_type

__all__ = ["AdapterConfig", "Config", "DaemonConfig", "Located", "load", "problems_of"]

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|kB|KB|MB|GB|KiB|MiB|GiB)")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_BYTES = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9} | {
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
}


def _duration(value: Any) -> float:
    if value == "0":
        return 0.0
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0:
        return float(value)  # seconds
    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is no duration; write for example 500ms, 1s, 5m, or 0")
    return float(match[1]) * _SECONDS[match[2]]


def _size(value: Any) -> int:
    if type(value) is int and value >= 0:
        return value
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is no size; write for example 500MB or 2GiB")
    return int(float(match[1]) * _BYTES[match[2]])


def _adapter_name(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", value):
        return value
    raise ValueError(f"{value!r} is no name; letters, digits, '.', '_' and '-' only, 64 at most")


Duration = Annotated[float, BeforeValidator(_duration)]
Size = Annotated[int, BeforeValidator(_size)]
Address = Annotated[str, BeforeValidator(check_address)]
Topic = Annotated[str, BeforeValidator(check_type)]
Name = Annotated[str, BeforeValidator(_adapter_name)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True)


class DaemonConfig(_Section):
    """The daemon itself. Sizes are in bytes, durations in seconds once loaded."""

    control: Address = Field(
        DEFAULT_ADDRESS, description="The one address that writers, adapters and commands are told."
    )
    ingest: Address | None = Field(
        None, description="Where batches come in. Default: control's port + 1, or path + '.ingest'."
    )
    publish: Address | None = Field(
        None, description="Where they go out. Default: control's port + 2, or path + '.publish'."
    )
    advertise_ingest: Address | None = Field(
        None, description="What writers are told instead of ingest, behind a port mapping."
    )
    advertise_publish: Address | None = Field(
        None, description="What subscribers are told instead of publish; our own adapters too."
    )
    state_dir: Path = Field(
        Path("zmqtrack-state"), description="The journal and the adapters' own state."
    )
    commit_interval: Duration = Field(
        0.01, description="Longest that a batch waits for others to share an fsync with."
    )
    max_body: Size = Field(8 << 20, le=8 << 20, description="Largest body of a batch.")
    retain_time: Duration = Field(
        7 * 86400.0, description="How long what every adapter has is kept for late adapters."
    )
    retain_bytes: Size = Field(2 << 30, description="How much of it is kept at most.")
    max_bytes: Size = Field(
        20 << 30, description="Size of the journal at which writers are held back."
    )
    stop_timeout: Duration = Field(
        20.0, description="How long adapters may take to deliver what is left at a stop."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="What is logged on stderr."
    )

    @model_validator(mode="after")
    def _derive(self) -> DaemonConfig:
        for shift, name in ((1, "ingest"), (2, "publish")):
            if getattr(self, name) is None:
                setattr(self, name, _derived(self.control, shift, name))
        return self


class AdapterConfig(_Section):
    """One adapter: which tracker, what of the stream, and how."""

    type: str = Field(
        description="A built-in name, the name of an entry point, or package.module:Class."
    )
    name: Name | None = Field(None, description="Names it among the others. Default: the type.")
    topics: list[Topic] | None = Field(
        None, min_length=1, description="Data types to deliver. Default: all that it supports."
    )
    flush_interval: Duration = Field(
        1.0, description="How long to gather before a delivery; 0 delivers each batch at once."
    )
    retry_max: Duration = Field(
        30.0,
        gt=0,
        description="Longest wait before a tracker that is away or refuses us is tried again.",
    )
    start: Literal["beginning", "now"] = Field(
        "beginning", description="Where a new adapter begins in the journal."
    )
    options: dict[str, Any] = Field(default_factory=dict, description="The adapter's own options.")

    @model_validator(mode="after")
    def _derive(self) -> AdapterConfig:
        if self.name is None:
            self.name = re.sub(r"[^A-Za-z0-9._-]", "-", self.type.rpartition(":")[2]) or "adapter"
        return self


class Config(_Section):
    """A whole configuration file, its includes merged in."""

    daemon: DaemonConfig = Field(default_factory=lambda: DaemonConfig.model_validate({}))
    adapters: list[AdapterConfig] = Field(default_factory=list)
    include: str | list[str] | None = Field(
        None, description="More files of adapters, as glob patterns relative to this file."
    )


def _derived(control: str, shift: int, suffix: str) -> str:
    if control.startswith("ipc://"):
        return f"{control}.{suffix}"
    host, _, port = control.rpartition(":")
    number = int(port) and int(port) + shift
    if number > 65535:
        raise ValueError(f"control's port {port} leaves none for {suffix}: set {suffix} itself")
    return f"{host}:{number}"


# --- loading, with messages that name file, line and key -----------------------------------------


class Located:
    """A configuration that was loaded, with the place of each key for later messages."""

    def __init__(self, config: Config, places: list[tuple[Path, yaml.Node]], main: Path) -> None:
        self.config = config
        self.path = main
        self._places = places

    def where(self, adapter: int, path: Iterable[str | int] = ()) -> str:
        """``file:line: adapters[NAME].key`` of a key below an adapter."""
        file, node = self._places[adapter]
        path = tuple(path)
        name = self.config.adapters[adapter].name
        dotted = "".join(f".{part}" for part in path)
        return f"{file}:{_line(node, path)}: adapter {name}{dotted}"


def load(path: Path) -> Located:
    """Read a configuration file and what it includes.

    Raises:
        ConfigError: one line for each problem: file, line, key, and what would be right.
    """
    path = Path(path)
    problems: list[str] = []
    node, data = _read(path, problems)
    if node is None or problems:
        raise ConfigError(problems)
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError([f"{path}:1: expected a mapping with daemon, adapters and include"])
    places: list[tuple[Path, yaml.Node]] = []
    config = _validate(Config, data, path, node, problems)
    adapters: list[AdapterConfig] = []
    if config is not None:
        adapters = list(config.adapters)
        places = [(path, child) for child in _items(_child(node, "adapters"))]
        for file in _included(path, config.include):
            more = _load_adapters(file, problems)
            adapters += [adapter for adapter, _ in more]
            places += [(file, child) for _, child in more]
    if config is None or problems:
        raise ConfigError(problems)
    located = Located(config.model_copy(update={"adapters": adapters}), places, path)
    seen: dict[str | None, int] = {}
    for index, adapter in enumerate(adapters):
        if adapter.name in seen:
            problems.append(
                f"{located.where(index)}: the name {adapter.name!r} is taken by "
                f"{located.where(seen[adapter.name])}; give one of them another 'name'"
            )
        seen.setdefault(adapter.name, index)
    if problems:
        raise ConfigError(problems)
    return located


def problems_of(
    error: ValidationError, model: type[BaseModel]
) -> list[tuple[tuple[str | int, ...], str]]:
    """Pydantic's errors as (path to the key, message for a person)."""
    found = []
    for detail in error.errors():
        # A union's branch is no key of the user's.
        path = tuple(part for part in detail["loc"] if not (isinstance(part, str) and "[" in part))
        message = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            known = _known(model, path[:-1])
            close = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.5)
            message = "unknown key" + (f"; did you mean {close[0]!r}?" if close else "")
            message += f" Known are: {', '.join(known)}" if known else ""
        elif detail["type"] == "missing":
            message = "is missing"
        elif not detail["type"].startswith("value_error"):
            message = f"{message}, not {detail['input']!r:.60}"
        found.append((path, message))
    return found


def _load_adapters(file: Path, problems: list[str]) -> list[tuple[AdapterConfig, yaml.Node]]:
    """An included file: one adapter (a mapping with ``type``), or a list under ``adapters``."""
    node, data = _read(file, problems)
    if node is None or data is None:
        return []
    if isinstance(data, dict) and set(data) == {"adapters"}:
        node = _child(node, "adapters") or node
        data = data["adapters"]
    pairs = [(data, node)]
    if isinstance(data, list):
        pairs = list(zip(data, _items(node), strict=True))
    loaded = []
    for item, child in pairs:
        adapter = _validate(AdapterConfig, item, file, child, problems)
        if adapter is not None:
            loaded.append((adapter, child))
    return loaded


def _included(path: Path, patterns: str | list[str] | None) -> list[Path]:
    names = [patterns] if isinstance(patterns, str) else patterns or []
    files: list[Path] = []
    for name in names:
        base, pattern = path.parent, name
        if Path(name).is_absolute():
            base, pattern = Path("/"), name.lstrip("/")
        files += sorted(base.glob(pattern))
    return files


class _Loader(yaml.SafeLoader):
    """The safe loader, which also refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add(key.value)
        return dict(super().construct_mapping(node, deep))


def _read(path: Path, problems: list[str]) -> tuple[yaml.Node | None, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        problems.append(f"{path}: cannot be read: {reason}")
        return None, None
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            data = loader.construct_document(node) if node is not None else None
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        problems.append(f"{path}:{line}: not valid YAML: {getattr(error, 'problem', error)}")
        return None, None
    return node if node is not None else yaml.MappingNode("", []), data


def _validate(
    model: type[Any], data: Any, path: Path, node: yaml.Node, problems: list[str]
) -> Any | None:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        for keys, message in problems_of(error, model):
            dotted = ".".join(str(key) for key in keys) or "(top)"
            problems.append(f"{path}:{_line(node, keys)}: {dotted}: {message}")
        return None


def _known(model: type[BaseModel], path: Iterable[str | int]) -> list[str]:
    """The keys that the section at ``path`` has."""
    current: Any = model
    for part in path:
        if isinstance(part, int):
            continue
        annotation = current.model_fields[part].annotation
        inner = getattr(annotation, "__args__", (annotation,))
        models = [a for a in inner if isinstance(a, type) and issubclass(a, BaseModel)]
        if not models:
            return []
        current = models[0]
    return list(current.model_fields)


def _child(node: yaml.Node, key: str) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if name.value == key:
                return value  # type: ignore[no-any-return]  # PyYAML types it as Any
    return None


def _items(node: yaml.Node | None) -> list[yaml.Node]:
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _line(node: yaml.Node, path: Iterable[str | int]) -> int:
    """The line of the key at ``path``, or of the nearest thing above it that exists."""
    current = node
    line = node.start_mark.line + 1 if node.start_mark else 1
    for part in path:
        if isinstance(part, int):
            items = _items(current)
            if part >= len(items):
                break
            current = items[part]
            line = current.start_mark.line + 1
            continue
        pairs: Mapping[str, tuple[yaml.Node, yaml.Node]] = {}
        if isinstance(current, yaml.MappingNode):
            pairs = {name.value: (name, value) for name, value in current.value}
        if part not in pairs:
            break
        name, current = pairs[part]
        line = name.start_mark.line + 1
    return line
