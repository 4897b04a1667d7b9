"""The YAML's schema, for the daemon, the adapters' processes and the CLI.

A training process never imports this: it needs pydantic and PyYAML.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from .control import DEFAULT_ADDRESS, check_address, is_local
from .errors import ConfigError
from .records import MAX_INT, VOCABULARY, check_type

__all__ = [
    "AdapterConfig",
    "Config",
    "DaemonConfig",
    "LimitsConfig",
    "Located",
    "load",
    "problems_of",
]

#: Largest configuration file, and most values that its aliases may make of it.
MAX_FILE = 1_000_000
MAX_VALUES = 100_000

#: Longest duration, in seconds: timers and clocks take no endless one.
MAX_DURATION = 36_500 * 86400

#: What stands between "://" and the last "@" before the path.
_USERINFO = re.compile(r"(?<=://)[^\s/?#'\"<>]+(?=@)")
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
    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is not None:
        seconds = float(match[1]) * _SECONDS[match[2]]
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0:
        seconds = value
    else:
        raise ValueError(f"{value!r} is no duration; write for example 500ms, 1s, 5m, or 0")
    if seconds > MAX_DURATION:
        raise ValueError(f"{value!r:.40} is too long; write 36500d at most")
    return float(seconds)


def _size(value: Any) -> int:
    if type(value) is int and value >= 0:
        return _countable(value)
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is no size; write for example 500MB or 2GiB")
    size = float(match[1]) * _BYTES[match[2]]
    if size > MAX_INT:
        raise ValueError(f"{value!r:.40} is too large; a size has less than 8589934592GiB")
    return int(size)


def _countable(value: int) -> int:
    """As writers are told it, and as databases keep it: in 64 bits."""
    if value > MAX_INT:
        raise ValueError(f"{value!r:.40} is too large; write {MAX_INT} at most")
    return value


def _adapter_name(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", value):
        return value
    raise ValueError(f"{value!r} is no name; letters, digits, '.', '_' and '-' only, 64 at most")


def _host_port(value: Any) -> str:
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):(\d{1,5})", str(value))
    if match is None or int(match[2]) > 65535:
        raise ValueError(f"{value!r} is no HOST:PORT; write for example 127.0.0.1:9464")
    if not is_local(f"tcp://{value}"):
        raise ValueError(
            f"{value} can be reached by other machines, and telemetry asks for no key: "
            "write 127.0.0.1, and let a proxy of yours serve others"
        )
    return str(value)


def _written(number: str, most: int, text: re.Pattern[str]) -> WithJsonSchema:
    """For editors: a bare number, or text with a unit."""
    forms = [
        {"type": number, "minimum": 0, "maximum": most},
        {"type": "string", "pattern": f"^(?:{text.pattern})$"},
    ]
    return WithJsonSchema({"anyOf": forms})


Duration = Annotated[
    float,
    BeforeValidator(_duration),
    _written("number", MAX_DURATION, re.compile(f"0|{_DURATION.pattern}")),
]
Size = Annotated[int, BeforeValidator(_size), _written("integer", MAX_INT, _SIZE)]
Count = Annotated[int, AfterValidator(_countable)]
Address = Annotated[str, BeforeValidator(partial(check_address, to_bind=True))]
HostPort = Annotated[str, BeforeValidator(_host_port)]
Topic = Annotated[str, BeforeValidator(check_type)]
Name = Annotated[str, BeforeValidator(_adapter_name)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True)


class LimitsConfig(_Section):
    """What one site may do. Beyond a rate it is told to wait, and keeps its records until then."""

    batches_per_second: Count = Field(10_000, gt=0, description="Batches, over a second.")
    bytes_per_second: Size = Field(200_000_000, gt=0, description="Bytes, over a second.")
    streams: Count = Field(10_000, gt=0, description="Writers that are open at the same time.")
    runs: Count = Field(10_000, gt=0, description="Runs that are open at the same time.")
    key_bytes: Size = Field(
        16 << 20, gt=0, description="All distinct keys of metrics in one run together."
    )
    records: int = Field(10_000, gt=0, le=10_000, description="Records in one batch.")
    text: Size = Field(256 << 20, description="Largest text.")
    image: Size = Field(256 << 20, description="Largest image, as it is encoded.")
    value: Size = Field(64 << 20, description="Largest value of any other data type, as packed.")
    artifact: Size = Field(1 << 40, description="Largest file.")


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
    keys: Path | None = Field(
        None, description="The folder that `zmqtrack keys init` made: only whom it knows gets in."
    )
    insecure: bool = Field(
        False, description="Let in anybody, without keys, also from other machines."
    )
    limits: LimitsConfig = Field(
        default_factory=lambda: LimitsConfig.model_validate({}),
        description="What one site may do.",
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
    dead_letter_bytes: Size = Field(
        1 << 30, description="Dead letters at which an adapter waits for a person to look at them."
    )
    memory: Size = Field(
        256 << 20, description="How much of what writers send may wait in memory, about."
    )
    stop_timeout: Duration = Field(
        20.0, description="How long adapters may take to deliver what is left at a stop."
    )
    stale_after: Duration = Field(
        15.0,
        ge=1,
        description="A run that has been silent for so long is shown as stale, until it is back.",
    )
    lease: Duration = Field(
        300.0,
        description="A run that has been silent for so long ends as killed in the trackers, and "
        "runs again if it is back. 0: never.",
    )
    telemetry: HostPort | None = Field(
        None,
        description="HOST:PORT at which Prometheus' /metrics, /live and /ready are served. "
        "Default: nowhere.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least that is logged; the log goes to stderr."
    )
    log_format: Literal["auto", "text", "json", "journald"] = Field(
        "auto",
        description="text for people, json for machines, journald with the priorities that it "
        "reads. auto: journald under systemd, else text.",
    )

    @model_validator(mode="after")
    def _derive(self) -> DaemonConfig:
        for shift, name in ((1, "ingest"), (2, "publish")):
            if getattr(self, name) is None:
                setattr(self, name, _derived(self.control, shift, name))
        addresses = {name: getattr(self, name) for name in ("control", "ingest", "publish")}
        for one, other in itertools.combinations(addresses, 2):
            address = addresses[one]
            if address == addresses[other] and not address.endswith(":0"):
                raise ValueError(f"{one} and {other} are both {address}: give each its own")
        if self.lease and self.lease < self.stale_after:
            raise ValueError(
                f"lease ({self.lease:g} s) is shorter than stale_after ({self.stale_after:g} s): a "
                "run would end as killed before it is stale. Make lease longer (0: never), or "
                "stale_after shorter"
            )
        if self.keys is None and not self.insecure:
            for name in ("control", "ingest", "publish"):
                if not is_local(getattr(self, name)):
                    raise ValueError(
                        f"{name} listens at {getattr(self, name)}, where other machines reach it, "
                        "and there are no keys: anybody could log as any site. Make keys with "
                        "`zmqtrack keys init DIR` and write `keys: DIR`; or `insecure: true`"
                    )
        return self


def _variable(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        return value
    # The value is not shown: somebody may have put the secret itself there.
    raise ValueError("expected the name of an environment variable: letters, digits and '_'")


def _credential(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"(?!\.\.?$)[^/\0]{1,255}", value):
        return value
    raise ValueError("expected the name of a credential: a file name without folder")


Variable = Annotated[str, BeforeValidator(_variable)]
Credential = Annotated[str, BeforeValidator(_credential)]


SECRET_FORMS = "{env: NAME}, {file: PATH}, {credential: NAME}"


class Secret(_Section):
    """Where a secret is. It is read by the adapter's own process, and nobody else."""

    env: Variable | None = Field(None, description="A variable of the daemon's environment.")
    file: Path | None = Field(None, description="A file that its owner alone may read.")
    credential: Credential | None = Field(
        None, description="A credential of systemd: a file in $CREDENTIALS_DIRECTORY."
    )

    @model_validator(mode="after")
    def _one(self) -> Secret:
        if [self.env, self.file, self.credential].count(None) != 2:
            raise ValueError(f"give one of: {SECRET_FORMS}")
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
    external: bool = Field(
        False,
        description="The daemon does not start it: it runs as a service of its own, here or on "
        "another machine. With keys on, it comes in with the key of its name.",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="The adapter's own options.")
    secrets: dict[Variable, Secret] = Field(
        default_factory=dict,
        description="Tokens and passwords: the variable that the tracker's library reads, and "
        "from where.",
    )

    @model_validator(mode="after")
    def _derive(self) -> AdapterConfig:
        if self.name is None:
            self.name = re.sub(r"[^A-Za-z0-9._-]", "-", self.type.rpartition(":")[2]) or "adapter"
        return self


def _patterns(value: Any) -> Any:
    if value is None or all(
        isinstance(p, str) for p in (value if type(value) is list else [value])
    ):
        return value
    raise ValueError(f"expected a pattern of files, or a list of them, not {value!r:.60}")


class Config(_Section):
    """A whole configuration file, its includes merged in."""

    daemon: DaemonConfig = Field(default_factory=lambda: DaemonConfig.model_validate({}))
    adapters: list[AdapterConfig] = Field(default_factory=list)
    include: Annotated[str | list[str] | None, BeforeValidator(_patterns)] = Field(
        None,
        description="More files of adapters, as glob patterns relative to this file; a name "
        "without wildcards must be there.",
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

    def __init__(
        self, config: Config, places: list[tuple[Path, yaml.Node]], main: Path, node: yaml.Node
    ) -> None:
        self.config = config
        self.path = main
        self._places = places
        self._node = node

    def at(self, *keys: str | int) -> str:
        """``file:line: key`` of a key of the main file."""
        return _at(self.path, self._node, keys)

    def where(self, adapter: int, path: Iterable[str | int] = ()) -> str:
        """``file:line: adapters[NAME].key`` of a key below an adapter."""
        file, node = self._places[adapter]
        path = tuple(path)
        name = self.config.adapters[adapter].name
        dotted = "".join(f".{part}" for part in path)
        return f"{file}:{_line(node, path)}: adapter {name}{dotted}"

    def hints(self) -> list[str]:
        """What is allowed, and may not be what was meant: types of one's own, close to ours."""
        found = []
        for index, adapter in enumerate(self.config.adapters):
            for place, name in enumerate(adapter.topics or ()):
                near = difflib.get_close_matches(name, VOCABULARY, n=1)
                if near and name not in VOCABULARY:
                    found.append(
                        f"{self.where(index, ('topics', place))}: {name!r} is none of the built-in "
                        f"data types: did you mean {near[0]!r}?"
                    )
        return found


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
    _find_files(config.adapters if config is not None else [], path)
    adapters: list[AdapterConfig] = []
    if config is not None:
        adapters = list(config.adapters)
        places = [(path, child) for child in _items(_child(node, "adapters"))]
        for file in _included(path, config.include, node, problems):
            more = _load_adapters(file, problems)
            adapters += [adapter for adapter, _ in more]
            places += [(file, child) for _, child in more]
    if config is None or problems:
        raise ConfigError(problems)
    located = Located(config.model_copy(update={"adapters": adapters}), places, path, node)
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


#: What pydantic calls by names of Python's, in a user's words.
_WORDS = {
    "model_type": "expected a mapping",
    "dict_type": "expected a mapping",
    "list_type": "expected a list",
    "string_type": "expected text",
    "path_type": "expected a path",
    **dict.fromkeys(("bool_type", "bool_parsing"), "expected true or false"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "expected a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "expected a number"),
    "too_short": "expected {min_length} or more in the list",
    "greater_than": "expected more than {gt}",
    "greater_than_equal": "expected {ge} or more",
    "less_than_equal": "expected {le} or less",
    "literal_error": "expected {expected}",
    "invalid_key": "expected text as a key",
}


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
            message = "unknown key" + (f"; did you mean {close[0]!r}?" if close else ".")
            message += f" Known are: {', '.join(known)}" if known else ""
        elif detail["type"] == "missing":
            message = "is missing"
        elif "secrets" in path:  # what stands there may be the secret itself
            if not detail["type"].startswith("value_error"):
                message = f"give one of: {SECRET_FORMS}"
        elif not detail["type"].startswith("value_error"):
            if detail["type"] in _WORDS:
                message = _WORDS[detail["type"]].format(**detail.get("ctx", {}))
            message = f"{message}, not {detail['input']!r:.60}"
        found.append((path, without_userinfo(message)))
    return found


def without_userinfo(text: str) -> str:
    """``text`` without the user and password of the URIs in it."""
    return _USERINFO.sub("***", text)


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
    _find_files([adapter for adapter, _ in loaded], file)
    return loaded


def _find_files(adapters: Iterable[AdapterConfig], file: Path) -> None:
    """Files of secrets are relative to the configuration file that names them."""
    for adapter in adapters:
        for secret in adapter.secrets.values():
            if secret.file is not None:
                secret.file = (file.parent / secret.file).absolute()


def _included(
    path: Path, patterns: str | list[str] | None, node: yaml.Node, problems: list[str]
) -> list[Path]:
    files: list[Path] = []
    for index, name in enumerate([patterns] if isinstance(patterns, str) else patterns or []):
        try:
            files += _matching(path.parent, name)
        except (ValueError, OSError) as error:
            keys = ("include",) if isinstance(patterns, str) else ("include", index)
            why = str(error)
            if isinstance(error, OSError):
                why = f"{error.strerror}; name a file, or a pattern if there may be none: *.yaml"
            problems.append(f"{_at(path, node, keys)}: {name!r:.200}: {why}")
    return files


def _matching(base: Path, pattern: str) -> list[Path]:
    """The files below ``base``; a name without wildcards is one that must be there.

    Raises:
        ValueError: the pattern is none.
        OSError: it is not, or nobody can look.
    """
    if Path(pattern).is_absolute():
        base, pattern = Path("/"), pattern.lstrip("/")
    parts = Path(pattern).parts
    # Which of these glob takes differs between versions of Python.
    if not parts or any("**" in part for part in parts if part != "**"):
        raise ValueError(
            "no pattern of files; write for example adapters.d/*.yaml; '**' stands for folders, "
            "alone: **/*.yaml"
        )
    if not any(mark in pattern for mark in "*?["):
        (base / pattern).stat()
        return [base / pattern]
    return sorted(base.glob(pattern))


class _Loader(yaml.SafeLoader):
    """The safe loader, which also refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # refused by the loader itself
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add(key.value)
        return dict(super().construct_mapping(node, deep))


def _count_values(root: yaml.Node) -> None:
    """Refuse aliases by which a small file becomes a large configuration, or an endless one."""
    counts: dict[yaml.Node, int] = {}

    def count(node: yaml.Node) -> int:
        known = counts.get(node)
        if known is not None:
            if not known:
                raise _refused(node, "an alias within what it stands for")
            return known
        counts[node] = 0  # being counted
        total = 1
        if isinstance(node, yaml.MappingNode):
            total += sum(count(key) + count(value) for key, value in node.value)
        elif isinstance(node, yaml.SequenceNode):
            total += sum(map(count, node.value))
        if total > MAX_VALUES:
            raise _refused(node, f"more than {MAX_VALUES} values, with its aliases expanded")
        counts[node] = total
        return total

    count(root)


def _refused(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(None, None, problem, node.start_mark)


def _read(path: Path, problems: list[str]) -> tuple[yaml.Node | None, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE + 1)
        text = raw.decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        problems.append(f"{path}: cannot be read: {reason}")
        return None, None
    if len(raw) > MAX_FILE:
        problems.append(
            f"{path}: larger than {MAX_FILE} bytes: that is no configuration. Split it with "
            "'include' if it is"
        )
        return None, None
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is not None:
                _count_values(node)
            data = loader.construct_document(node) if node is not None else None
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        problems.append(f"{path}:{line}: not valid YAML: {getattr(error, 'problem', error)}")
        return None, None
    except RecursionError:
        problems.append(f"{path}:1: not valid YAML: nested too deeply")
        return None, None
    except (ValueError, OverflowError) as error:  # such as 2024-13-45, which looks like a date
        problems.append(f"{path}:1: not valid YAML: {error}")
        return None, None
    return node if node is not None else yaml.MappingNode("", []), data


def _validate(
    model: type[Any], data: Any, path: Path, node: yaml.Node, problems: list[str]
) -> Any | None:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        for keys, message in problems_of(error, model):
            problems.append(f"{_at(path, node, keys)}: {message}")
        return None


def _at(path: Path, node: yaml.Node, keys: tuple[str | int, ...]) -> str:
    """``file:line: key``"""
    dotted = ".".join(str(key) for key in keys) or "(top)"
    return f"{path}:{_line(node, keys)}: {dotted}"


def _known(model: type[BaseModel], path: Iterable[str | int]) -> list[str]:
    """The keys that the section at ``path`` has."""
    current: Any = model
    for part in path:
        if part not in current.model_fields:
            continue  # a place in a list, or a key of a mapping
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
